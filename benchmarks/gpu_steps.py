"""Training steps on a GPU: minift and PyTorch take turns on the same batches.

The weights are random, because speed does not depend on them, and a batch is made of numbers, not of texts, so that
neither a checkpoint nor a tokenizer has to be at hand.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gpu_device import Device, torch_or_none
from minift_kernels import gpu

import minift
from minift.data import Batch
from minift.models.architecture import initialize
from minift.models.bert import ARCHITECTURE, BertConfig
from minift.tasks.text_classification import TextClassification

SST2_LENGTHS = (4, 9, 11, 13, 15, 16, 18, 19, 21, 22, 24, 25, 27, 29, 30, 32, 34, 37, 40, 45, 66)
"""Tokens of SST-2's training sentences: the 0th, 5th, 10th, ... and 100th percentile."""

WARM_UP = 3


@dataclass(frozen=True)
class Race:
    name: str
    title: str
    precision: str
    lengths: list[list[int]]
    """The number of tokens of each text, for each batch."""
    compiled: bool
    """Whether torch.compile takes part; it would compile anew for every new shape of SST-2's batches."""


def races(device: Device) -> list[Race]:
    random = np.random.default_rng(0)
    steps, texts, length = device.size(20, 1), device.size(32, 2), device.size(128, 5)
    equal = [[length] * texts] * (WARM_UP + steps)
    percentiles = np.linspace(0, 1, len(SST2_LENGTHS))
    sst2 = [
        np.interp(random.random(texts), percentiles, SST2_LENGTHS).astype(int).clip(0, device.size(66, 9))
        for _ in range(WARM_UP + 2 * steps)
    ]
    return [
        race
        for precision in ("bf16", "tf32")
        for race in (
            Race(
                f"step-{precision}",
                f"BERT-base training step, {texts} x {length}, {precision}",
                precision,
                equal,
                True,
            ),
            Race(
                f"sst2-{precision}",
                f"BERT-base training step, SST-2's lengths, batch {texts}, {precision}",
                precision,
                [lengths.tolist() for lengths in sst2],
                False,
            ),
        )
    ]


def run(device: Device, race: Race, with_compile: bool) -> dict:
    """The times of each side's turns, in milliseconds, and the most memory it took, in bytes."""
    device.forget()
    vocabulary = vocabulary_of(device)
    batches = batches_of(race, vocabulary)
    sides: dict[str, Callable] = {"minift": minift_side(device, race.precision, vocabulary)}
    peaks: dict[str, Callable[[], int]] = {"minift": device.peak_bytes}
    torch = torch_or_none()
    if torch is not None:
        sides["PyTorch"] = torch_side(device, race.precision, vocabulary, compiled=False)
        peaks["PyTorch"] = torch.cuda.max_memory_reserved if device.is_real else lambda: 0
        if race.compiled and with_compile and device.is_real:
            sides["torch.compile"] = torch_side(device, race.precision, vocabulary, compiled=True)
    turns: dict[str, list[float]] = {side: [] for side in sides}
    losses: dict[str, list[float]] = {side: [] for side in sides}
    for number, (texts, labels) in enumerate(batches):
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        for side in order:
            start = time.perf_counter()
            losses[side].append(sides[side](texts, labels))
            device.synchronize()
            turns[side].append(1000 * (time.perf_counter() - start))
    gpu.allow_tf32(False)
    return {
        "name": race.name,
        "title": race.title,
        "tokens": [sum(lengths) for lengths in race.lengths[WARM_UP:]],
        "milliseconds": {side: times[WARM_UP:] for side, times in turns.items()},
        "losses": losses,
        "peak_bytes": {side: peak() for side, peak in peaks.items()},
    }


def vocabulary_of(device: Device) -> int:
    return device.size(30522, 60)


def batches_of(race: Race, vocabulary: int) -> list:
    """Texts, as arrays of ids, and their labels, for each batch."""
    random = np.random.default_rng(1)
    return [
        ([random.integers(5, vocabulary, n) for n in lengths], random.integers(0, 2, len(lengths)))
        for lengths in race.lengths
    ]


def profile(device: Device, race: Race) -> dict:
    """What the GPU does in a step of each side, kernel by kernel; PyTorch's profiler sees minift's launches too."""
    torch = torch_or_none()
    if torch is None or not device.is_real:
        return {"title": race.title, "sides": {}}
    vocabulary, steps, sides = vocabulary_of(device), 5, {}
    batches = batches_of(race, vocabulary)[: WARM_UP + steps]
    for name in ("minift", "PyTorch"):
        device.forget()
        step = (
            minift_side(device, race.precision, vocabulary)
            if name == "minift"
            else torch_side(device, race.precision, vocabulary, compiled=False)
        )
        for batch in batches[:WARM_UP]:
            step(*batch)
        device.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            for batch in batches[WARM_UP:]:
                step(*batch)
            device.synchronize()
        kernels = [
            {
                "name": event.key,
                "launches": event.count / steps,
                "milliseconds": event.self_device_time_total / 1000 / steps,
            }
            for event in seen.key_averages()
            if event.self_device_time_total > 0
        ]
        sides[name] = sorted(kernels, key=lambda kernel: -kernel["milliseconds"])
    return {"title": race.title, "sides": sides}


def configuration(device: Device, vocabulary: int) -> dict:
    """The shape of the model, under the names that both libraries have for it."""
    small = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    return dict(vocab_size=vocabulary) | ({} if device.is_real else small)


def minift_side(device: Device, precision: str, vocabulary: int) -> Callable:
    """A function of texts (arrays of ids) and labels that takes a training step and returns the loss."""
    minift.manual_seed(0)
    config = BertConfig(**configuration(device, vocabulary))
    model = TextClassification(ARCHITECTURE, config, ["negative", "positive"], None)  # pyright: ignore
    initialize(dict(model.named_parameters()), config.initializer_range)
    model.to(device="cuda").train()
    optimizer = minift.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01)
    schedule = minift.linear_schedule(optimizer, 1000, warmup_steps=100)

    def step(texts, labels) -> float:
        model.compute_in(precision)  # here, because tf32 is a switch of the whole process
        loss = minift.cross_entropy(model(packed(texts, labels)), labels)
        loss.backward()
        optimizer.step(max_grad_norm=1.0)
        schedule.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def packed(texts, labels) -> Batch:
    ids = np.concatenate(texts)
    return Batch(
        ids=ids,
        token_types=np.zeros_like(ids),
        positions=np.concatenate([np.arange(len(text)) for text in texts]),
        offsets=np.cumsum([0, *map(len, texts)], dtype=np.int64),
        labels=labels,
    )


def torch_side(device: Device, precision: str, vocabulary: int, compiled: bool) -> Callable:
    """The same in PyTorch with transformers: fused AdamW, foreach clipping, each batch padded to its longest."""
    import torch
    import transformers

    place = "cuda" if device.is_real else "cpu"
    torch.manual_seed(0)
    config = transformers.BertConfig(**configuration(device, vocabulary), num_labels=2)
    model = transformers.BertForSequenceClassification(config).to(place).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01, fused=True)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 100, 1000)
    forward = torch.compile(model) if compiled else model

    def step(texts, labels) -> float:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        longest = max(map(len, texts))
        ids, mask = np.zeros((2, len(texts), longest), np.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)], mask[row, : len(text)] = text, 1
        batch = {"input_ids": ids, "labels": labels}
        if not mask.all():  # a mask of ones alone would only cost PyTorch time
            batch["attention_mask"] = mask
        batch = {name: torch.from_numpy(np.asarray(values)).to(place) for name, values in batch.items()}
        with torch.autocast(place, torch.bfloat16, enabled=precision == "bf16"):
            loss = forward(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step
