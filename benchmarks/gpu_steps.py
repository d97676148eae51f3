"""Training steps on a GPU: minift and PyTorch take turns on the same batches.

The weights are random, because speed does not depend on them, and a batch is made of numbers, not of texts, so that
neither a checkpoint nor a tokenizer has to be at hand.
"""

import time
from dataclasses import dataclass
from functools import partial

import numpy as np
from gpu_device import Device, torch_or_none
from minift_kernels import gpu

import minift
from minift.cuda_graph import GraphedPass, plain_pass
from minift.data import Batch
from minift.models.architecture import initialize
from minift.models.bert import ARCHITECTURE, BertConfig
from minift.nn import skip_init
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


def races(device: Device, precisions: list[str]) -> list[Race]:
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
        for precision in precisions
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
    """The times of each side's turns, in milliseconds, the most memory it took, in bytes, and its kernels.

    minift and PyTorch take turns; what is told beside them runs afterwards, on the same batches.
    """
    device.forget()
    vocabulary = device.size(30522, 60)
    batches = batches_of(race, vocabulary)
    sides = {"minift": Minift(device, race.precision, vocabulary, in_graphs=True)}
    if torch_or_none() is not None:
        sides["PyTorch"] = PyTorch(device, race.precision, vocabulary, compiled=False)
    milliseconds = take_turns(device, sides, batches)
    peaks = {name: side.peak_bytes() for name, side in sides.items()}
    kernels = {}
    if device.is_real and "PyTorch" in sides:
        seen = batches[-5:]  # of sizes that have occurred: a graph that is made now would be seen, too
        kernels = {name: kernels_of(device, side, seen) for name, side in sides.items()}
    beside = {"launch by launch": Minift(device, race.precision, vocabulary, in_graphs=False)}
    if race.compiled and with_compile and device.is_real and "PyTorch" in sides:
        beside["torch.compile"] = PyTorch(device, race.precision, vocabulary, compiled=True)
    for name, side in beside.items():
        milliseconds |= take_turns(device, {name: side}, batches)
    gpu.allow_tf32(False)
    return {
        "name": race.name,
        "title": race.title,
        "tokens": [sum(lengths) for lengths in race.lengths[WARM_UP:]],
        "milliseconds": milliseconds,
        "losses": {name: side.losses for name, side in (sides | beside).items()},
        "peak_bytes": peaks,
        "kernels": kernels,
    }


def take_turns(device: Device, sides: "dict[str, Minift | PyTorch]", batches: list) -> dict[str, list[float]]:
    """Milliseconds of each side's steps, one a batch, those of the warm-up left out."""
    turns: dict[str, list[float]] = {name: [] for name in sides}
    for number, (texts, labels) in enumerate(batches):
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        for name in order:
            start = time.perf_counter()
            sides[name].step(texts, labels)
            device.synchronize()
            turns[name].append(1000 * (time.perf_counter() - start))
    return {name: times[WARM_UP:] for name, times in turns.items()}


def kernels_of(device: Device, side: "Minift | PyTorch", batches: list) -> list[dict]:
    """What the GPU does in a step, kernel by kernel, longest first; PyTorch's profiler sees minift's launches, too."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        for batch in batches:
            side.step(*batch)
        device.synchronize()
    kernels = [
        {
            "name": event.key,
            "launches": event.count / len(batches),
            "milliseconds": event.self_device_time_total / 1000 / len(batches),
        }
        for event in seen.key_averages()
        if event.self_device_time_total > 0
    ]
    return sorted(kernels, key=lambda kernel: -kernel["milliseconds"])


def batches_of(race: Race, vocabulary: int) -> list:
    """Texts, as arrays of ids, and their labels, for each batch."""
    random = np.random.default_rng(1)
    return [
        ([random.integers(5, vocabulary, n) for n in lengths], random.integers(0, 2, len(lengths)))
        for lengths in race.lengths
    ]


def configuration(device: Device, vocabulary: int) -> dict:
    """The shape of the model, under the names that both libraries have for it."""
    small = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    return dict(vocab_size=vocabulary) | ({} if device.is_real else small)


class Minift:
    """minift's steps: in CUDA graphs, as `minift finetune` has them on a GPU, or launch by launch."""

    def __init__(self, device: Device, precision: str, vocabulary: int, in_graphs: bool):
        minift.manual_seed(0)
        self.device = device
        config = BertConfig(**configuration(device, vocabulary))
        with skip_init():
            model = TextClassification(ARCHITECTURE, config, ["negative", "positive"], None)  # pyright: ignore
        initialize(dict(model.named_parameters()), config.initializer_range)
        model.to(device="cuda").compute_in(precision).train()
        self.optimizer = minift.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01)
        self.schedule = minift.linear_schedule(self.optimizer, 1000, warmup_steps=100)
        self.run_pass = GraphedPass(model) if in_graphs else partial(plain_pass, model)
        self.losses: list[float] = []

    def step(self, texts, labels) -> None:
        """A training step, whose loss is added to `losses`."""
        self.losses.append(self.run_pass(packed(texts, labels)).item())
        self.optimizer.step(max_grad_norm=1.0)
        self.schedule.step()
        self.optimizer.zero_grad()

    def peak_bytes(self) -> int:
        """What its pools have taken of the GPU's memory."""
        held = self.run_pass.bytes_held() if isinstance(self.run_pass, GraphedPass) else 0
        return self.device.peak_bytes() + held


def packed(texts, labels) -> Batch:
    ids = np.concatenate(texts)
    return Batch(
        ids=ids,
        token_types=np.zeros_like(ids),
        positions=np.concatenate([np.arange(len(text)) for text in texts]),
        offsets=np.cumsum([0, *map(len, texts)], dtype=np.int64),
        labels=labels,
    )


class PyTorch:
    """The same in PyTorch with transformers: fused AdamW, foreach clipping, each batch padded to its longest."""

    def __init__(self, device: Device, precision: str, vocabulary: int, compiled: bool):
        import torch
        import transformers

        self.torch, self.place, self.precision = torch, "cuda" if device.is_real else "cpu", precision
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        config = transformers.BertConfig(**configuration(device, vocabulary), num_labels=2)
        self.model = transformers.BertForSequenceClassification(config).to(self.place).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-5, weight_decay=0.01, fused=True)
        self.schedule = transformers.get_linear_schedule_with_warmup(self.optimizer, 100, 1000)
        self.forward = torch.compile(self.model) if compiled else self.model
        self.losses: list[float] = []

    def step(self, texts, labels) -> None:
        """A training step, whose loss is added to `losses`."""
        torch = self.torch
        longest = max(map(len, texts))
        ids, mask = np.zeros((2, len(texts), longest), np.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)], mask[row, : len(text)] = text, 1
        batch = {"input_ids": ids, "labels": labels}
        if not mask.all():  # a mask of ones alone would only cost PyTorch time
            batch["attention_mask"] = mask
        batch = {name: torch.from_numpy(np.asarray(values)).to(self.place) for name, values in batch.items()}
        with torch.autocast(self.place, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.forward(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.append(loss.item())

    def peak_bytes(self) -> int:
        """What its pool has taken of the GPU's memory."""
        return self.torch.cuda.max_memory_reserved() if self.place == "cuda" else 0
