"""Pre-training from nothing: nanoGPT's CPU run, minift and then PyTorch, on the same batches from the same weights.

    python benchmarks/nanogpt.py --seeds 1337 1338 1339

tinyshakespeare by characters, the first 90 % to learn from: 4 layers, 4 heads, width 128, context 64, batch 12, 2000
steps, dropout 0, AdamW (0.9, 0.99), decay 0.1 on matrices, clipping at 1.0, rate 1e-3 after 100 steps of warm-up, then
along a cosine to 1e-4: what the README of github.com/karpathy/nanoGPT gives for a CPU, where it reports a validation
loss of 1.88, estimated on 20 batches. Here the loss is over all of the validation part. Each side runs in a process of
its own; both begin with the weights that minift draws, and see the same random blocks. PyTorch's model is written below
as one would write it by hand, with its fused attention and its fused AdamW. A seed draws the weights and the blocks.
What stands in --results is not run again on the same kind of machine.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median

import numpy as np
from data import SHARED_DATA
from machine import describe

BATCH, CONTEXT, LAYERS, HEADS, WIDTH = 12, 64, 4, 4, 128
WARMUP, RATE, LOWEST_RATE, DECAY, BETAS, CLIPPING = 100, 1e-3, 1e-4, 0.1, (0.9, 0.99), 1.0
UNCOUNTED = 2
"""Steps that are run, but not timed: they compile kernels and touch fresh memory."""


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--data", type=Path, default=SHARED_DATA / "tinyshakespeare" / "input.txt")
    options.add_argument("--steps", type=int, default=2000)
    options.add_argument("--seeds", type=int, nargs="+", default=[1337])
    options.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "nanogpt.json")
    options.add_argument(
        "--side", nargs=2, help=argparse.SUPPRESS
    )  # library and directory: what a child runs
    options = options.parse_args()
    text = options.data.read_text()
    if options.side:
        library, directory = options.side
        side = {"minift": run_minift, "torch": run_torch}[library]
        print(json.dumps(side(Path(directory), text, options.steps, options.seeds[0])))
        return
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    machine = describe(None)
    kind = f"{machine['processor']}, {machine['threads']} threads"
    runs = [results.setdefault(f"{options.steps} steps, seed {seed}, {kind}", {}) for seed in options.seeds]
    for seed, run in zip(options.seeds, runs, strict=True):
        with tempfile.TemporaryDirectory() as directory:
            new_model(text, seed).save(directory)
            for library in ("minift", "torch"):
                if library not in run:
                    again = [sys.executable, __file__, "--data", options.data, "--steps", str(options.steps)]
                    command = [*again, "--seeds", str(seed), "--side", library, directory]
                    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                    run[library] = json.loads(child.stdout)
                    options.results.write_text(json.dumps(results, indent=2) + "\n")
                said = {name: value for name, value in run[library].items() if name != "sample"}
                print(seed, library, said, flush=True)
    for library in ("minift", "torch"):
        print(f"{library}: mean loss {mean(run[library]['validation_loss'] for run in runs):.4f}")
    ratio = median(run["minift"]["seconds"] / run["torch"]["seconds"] for run in runs)
    print(f"minift needs {ratio:.2f} of PyTorch's time\n\n{runs[0]['minift']['sample']}")


# ---- What both sides share -----------------------------------------------------------------------


def parts_of(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The training part and the validation part."""
    return ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]


def random_blocks(ids: np.ndarray, steps: int, seed: int):
    """For each step the tokens (B, context + 1) of B blocks that begin anywhere."""
    generator = np.random.default_rng(seed)
    for _ in range(steps):
        starts = generator.integers(0, len(ids) - CONTEXT, BATCH)
        yield ids[starts[:, None] + np.arange(CONTEXT + 1)]


def validation_blocks(ids: np.ndarray):
    """All of the part, 64 blocks at a time."""
    count = (len(ids) - 1) // CONTEXT
    blocks = ids[np.arange(count)[:, None] * CONTEXT + np.arange(CONTEXT + 1)]
    for start in range(0, count, 64):
        yield blocks[start : start + 64]


def rate_of(step: int, steps: int) -> float:
    """Of step 0, 1, ...: rises over WARMUP steps, then falls along a cosine."""
    if step < WARMUP:
        return RATE * (step + 1) / (WARMUP + 1)
    share = (step - WARMUP) / max(1, steps - WARMUP)
    return LOWEST_RATE + 0.5 * (1 + math.cos(math.pi * share)) * (RATE - LOWEST_RATE)


# ---- minift --------------------------------------------------------------------------------------


def new_model(text: str, seed: int):
    """The model before its training. As in GPT-2, what each layer adds begins smaller, by the number of sums."""
    import minift
    from minift.models import MODELS
    from minift.models.architecture import initialize
    from minift.pretrain import PretrainingConfig, learn_tokenizer, new_shape
    from minift.tasks.text_generation import TextGeneration

    shape = dict(layers=LAYERS, heads=HEADS, width=WIDTH, context=CONTEXT, tokens="characters")
    config = PretrainingConfig(Path("input.txt"), Path("."), **shape)
    minift.manual_seed(seed)
    tokenizer = learn_tokenizer([text], config)
    model = TextGeneration(MODELS["gpt2"], new_shape(config, tokenizer), None, tokenizer)
    initialize(dict(model.named_parameters()), 0.02)
    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.weight"):
            parameter.data = parameter.data / math.sqrt(2 * LAYERS)
    return model


def run_minift(directory: Path, text: str, steps: int, seed: int) -> dict:
    import minift
    from minift.generation import Sampling

    model = minift.load(directory, "text-generation")
    train, validation = parts_of(np.array(model.tokenizer.pieces(text)))
    optimizer = minift.AdamW(minift.decay_groups(model, DECAY), lr=RATE, betas=BETAS)
    seconds = 0.0
    for step, blocks in enumerate(random_blocks(train, steps, seed)):
        started = time.perf_counter()
        batch = model.pack(list(blocks), blocks)
        for group in optimizer.param_groups:
            group["lr"] = rate_of(step, steps)
        model.loss(model(batch), batch).backward()
        optimizer.step(CLIPPING)
        optimizer.zero_grad()
        seconds += time.perf_counter() - started if step >= UNCOUNTED else 0.0
    losses = []
    with minift.no_grad():
        for blocks in validation_blocks(validation):
            batch = model.pack(list(blocks), blocks)
            losses.append((model.loss(model.eval()(batch), batch).item(), len(blocks)))
    [sample] = model.generate(["\n"], CONTEXT - 2, Sampling(0.8, top_k=200, seed=1))
    return {"validation_loss": mean_loss(losses), "seconds": round(seconds, 2), "sample": sample}


def mean_loss(losses: list[tuple[float, int]]) -> float:
    """The mean of batches' losses, each weighed by its blocks."""
    return round(sum(loss * blocks for loss, blocks in losses) / sum(blocks for _, blocks in losses), 4)


# ---- PyTorch -------------------------------------------------------------------------------------


def run_torch(directory: Path, text: str, steps: int, seed: int) -> dict:
    import torch
    from safetensors.torch import load_file
    from torch.nn.functional import cross_entropy, gelu, layer_norm, linear, scaled_dot_product_attention

    from minift.tokenizer import Tokenizer

    ids = np.array(Tokenizer.from_directory(directory).pieces(text))
    train, validation = parts_of(ids)
    weights = {
        name: torch.nn.Parameter(value) for name, value in load_file(directory / "model.safetensors").items()
    }

    def normalized(x, name):
        return layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    def projected(x, name):
        return linear(x, weights[f"{name}.weight"].T, weights[f"{name}.bias"])

    def logits(tokens):
        texts, length = tokens.shape
        x = weights["transformer.wte.weight"][tokens] + weights["transformer.wpe.weight"][:length]
        for layer in range(LAYERS):
            block = f"transformer.h.{layer}"
            qkv = projected(normalized(x, f"{block}.ln_1"), f"{block}.attn.c_attn")
            q, k, v = (
                part.view(texts, length, HEADS, -1).transpose(1, 2) for part in qkv.split(WIDTH, dim=2)
            )
            attended = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
            x = x + projected(attended, f"{block}.attn.c_proj")
            inner = gelu(projected(normalized(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"), approximate="tanh")
            x = x + projected(inner, f"{block}.mlp.c_proj")
        return linear(normalized(x, "transformer.ln_f"), weights["transformer.wte.weight"])

    def loss_of(blocks):
        tokens = torch.from_numpy(blocks)
        return cross_entropy(logits(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    matrices = [parameter for parameter in weights.values() if parameter.ndim > 1]
    others = [parameter for parameter in weights.values() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, fused=True)
    seconds = 0.0
    for step, blocks in enumerate(random_blocks(train, steps, seed)):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate_of(step, steps)
        loss_of(blocks).backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), CLIPPING)
        optimizer.step()
        optimizer.zero_grad()
        seconds += time.perf_counter() - started if step >= UNCOUNTED else 0.0
    with torch.no_grad():
        losses = [(loss_of(blocks).item(), len(blocks)) for blocks in validation_blocks(validation)]
    return {"validation_loss": mean_loss(losses), "seconds": round(seconds, 2)}


if __name__ == "__main__":
    main()
