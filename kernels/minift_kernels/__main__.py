"""Check and time every rung that this machine can run: `python -m minift_kernels [operation ...]`.

Each rung computes the same step of a typical BERT; the first, the reference, judges the others. Differences
are relative to the largest value of each result. On a GPU its rungs run there; without one they are emulated
on the CPU, at a tiny shape and without a time, since the emulation says nothing of their speed.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from minift_kernels import OPERATIONS, gpu, host
from minift_kernels.ladder import family_of, why_not


@dataclass(frozen=True)
class Setting:
    """The shape of a step, and the library whose arrays it takes."""

    tokens: int
    hidden: int
    heads: int
    feed_forward: int
    vocabulary: int
    xp: ModuleType = np

    def normal(self, *shape: int) -> Any:
        return self.xp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))

    def integers(self, high: int, count: int) -> Any:
        return self.xp.asarray(np.random.default_rng(0).integers(0, high, count))


MINILM = Setting(tokens=512, hidden=384, heads=12, feed_forward=1536, vocabulary=30522)
"""16 texts of 32 tokens."""

TINY = Setting(tokens=32, hidden=32, heads=2, feed_forward=48, vocabulary=61)

TOLERANCE = 2e-5


def main(arguments: list[str] | None = None) -> int:
    """Print the table of some operations, or of all; 0 where every rung agrees with the first, else 1."""
    parser = argparse.ArgumentParser(prog="python -m minift_kernels", description=__doc__)
    parser.add_argument("operations", nargs="*", metavar="operation", help=", ".join(OPERATIONS))
    wanted = parser.parse_args(arguments).operations
    unknown = [name for name in wanted if name not in OPERATIONS]
    if unknown:
        parser.error(f"there is no operation {unknown[0]!r}; there are {', '.join(OPERATIONS)}")
    print(f"{host.thread_count()} threads; {gpu.why_no_gpu() or 'a GPU'}; best of several runs\n")
    print(f"{'operation':<14} {'step':<22} {'rung':<24} {'ms':>9} {'speed-up':>9} {'difference':>11}")
    right = [_compare(operation, xp) for operation in wanted or OPERATIONS for xp in _array_libraries()]
    return 0 if all(right) else 1


def _array_libraries() -> list[ModuleType]:
    if gpu.why_no_gpu() is not None:
        return [np]
    import cupy

    return [np, cupy]


def _compare(operation: str, xp: ModuleType) -> bool:
    """Print a line for each step of the operation and each of its rungs; whether all agree with the first."""
    settings = [replace(setting, xp=xp) for setting in (MINILM, TINY)]
    right = True
    for (name, step), (_, tiny_step) in zip(*(STEPS[operation](s).items() for s in settings), strict=True):
        first_time, expected = 0.0, []
        for rung, module in OPERATIONS[operation].rungs.items():
            line = f"{operation:<14} {name:<22} {rung:<24}"
            reason = why_not(rung, xp.empty(0, np.float32))
            if reason is not None:
                if xp is np and gpu.why_no_gpu() is not None:
                    print(f"{line} cannot run here: {reason}")
                continue
            is_emulated = xp is np and family_of(rung) in ("cuda_c", "numba_cuda")
            if is_emulated and gpu.why_no_gpu() is None:
                continue  # the real one has its own lines
            results = _arrays((tiny_step if is_emulated else step)(module))
            if rung == "reference":
                expected = [results, _arrays(tiny_step(module))]
            difference = _largest_difference(results, expected[is_emulated])
            is_right = difference <= max(TOLERANCE, getattr(module, "tolerance", 0.0))
            right = right and is_right
            if is_emulated:
                times = f"{'emulated':>19}"
            else:
                seconds = _time(lambda module=module, step=step: step(module), xp)
                first_time = first_time or seconds
                times = f"{1000 * seconds:9.3f} {first_time / seconds:8.1f}x"
            print(f"{line} {times} {difference:11.1e}{'' if is_right else '  WRONG'}")
    return right


def _time(run: Callable, xp: ModuleType) -> float:
    """The shortest time of `run` in seconds. It has run before, so what had to be compiled is compiled."""
    best, deadline = float("inf"), time.perf_counter() + 0.5
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        run()
        if xp is not np:
            xp.cuda.Device().synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def _arrays(results) -> list[np.ndarray]:
    """The results of a step as NumPy arrays."""
    results = results if isinstance(results, tuple) else (results,)
    return [result.get() if hasattr(result, "get") else np.asarray(result) for result in results]


def _largest_difference(results: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Of all results; infinite where one is missing or holds NaN."""
    if len(results) != len(expected):
        return float("inf")
    largest = np.max([_difference(*pair) for pair in zip(results, expected, strict=True)])
    return float("inf") if np.isnan(largest) else float(largest)


def _difference(got, want) -> float:
    return float(np.abs(np.subtract(got, want, dtype=np.float64)).max() / max(np.abs(want).max(), 1e-30))


# ------------------------------------------------------------------------------------------------------------
# What is timed: for each operation its steps, each a function of a rung


def _matmul(s: Setting):
    x, weight, bias = (
        s.normal(s.tokens, s.hidden),
        s.normal(s.feed_forward, s.hidden),
        s.normal(s.feed_forward),
    )
    dy = s.normal(s.tokens, s.feed_forward)
    return {
        "y = x W^T + bias": lambda rung: rung.forward(x, weight.T, bias),
        "dx = dy W": lambda rung: rung.forward(dy, weight),
        "dW = dy^T x": lambda rung: rung.forward(dy.T, x),
        "dbias": lambda rung: rung.sum_rows(dy),
    }


def _softmax(s: Setting):
    x, dy = s.normal(s.tokens, s.feed_forward), s.normal(s.tokens, s.feed_forward)
    y = OPERATIONS["softmax"].rungs["reference"].forward(x)
    return {"forward": lambda rung: rung.forward(x), "backward": lambda rung: rung.backward(dy, y)}


def _attention(s: Setting):
    steps = {}
    q, k, v, dout = s.normal(4, s.tokens, s.hidden)  # all different: were q = k, each would see itself alone
    for length in (s.tokens // 16, s.tokens):
        starts = np.arange(0, s.tokens, length)
        segments = np.stack([starts, starts + length], axis=1)
        options = (segments, segments, s.heads, (s.hidden // s.heads) ** -0.5, False, 0.1, (1, 2))
        saved = OPERATIONS["attention"].rungs["reference"].forward(q, k, v, *options)
        name = f"{s.tokens // length} x {length}"
        steps[f"forward {name}"] = lambda rung, o=options: rung.forward(q, k, v, *o)
        steps[f"backward {name}"] = lambda rung, o=options, r=saved: rung.backward(dout, q, k, v, *r, *o)
    return steps


def _layer_norm(s: Setting):
    x, residual, dy = s.normal(s.tokens, s.hidden), s.normal(s.tokens, s.hidden), s.normal(s.tokens, s.hidden)
    weight, bias = s.normal(s.hidden), s.normal(s.hidden)
    _, normalized, rstd = (
        OPERATIONS["layer_norm"].rungs["reference"].forward(x, residual, weight, bias, 1e-12)
    )
    return {
        "forward": lambda rung: rung.forward(x, residual, weight, bias, 1e-12),
        "backward": lambda rung: rung.backward(dy, normalized, rstd, weight),
    }


def _gelu(s: Setting):
    x, dy = s.normal(s.tokens, s.feed_forward), s.normal(s.tokens, s.feed_forward)
    return {"forward": lambda rung: rung.forward(x), "backward": lambda rung: rung.backward(dy, x)}


def _dropout(s: Setting):
    x = s.normal(s.tokens, s.hidden)
    return {"forward and backward": lambda rung: rung.forward(x, 0.1, (1, 2))}


def _embedding(s: Setting):
    table, dy = s.normal(s.vocabulary, s.hidden), s.normal(s.tokens, s.hidden)
    ids = s.integers(s.vocabulary, s.tokens)
    return {
        "forward": lambda rung: rung.forward(ids, table),
        "backward": lambda rung: rung.backward(dy, ids, s.vocabulary),
    }


def _cross_entropy(s: Setting):
    logits, dlosses = s.normal(64, s.vocabulary), s.normal(64)
    targets = s.integers(s.vocabulary, 64)
    _, logsumexp = OPERATIONS["cross_entropy"].rungs["reference"].forward(logits, targets)
    return {
        "forward": lambda rung: rung.forward(logits, targets),
        "backward": lambda rung: rung.backward(dlosses, logits, logsumexp, targets),
    }


def _parameters(s: Setting) -> list[np.ndarray]:
    """Arrays with the shapes of one layer of the model."""
    biases = [s.normal(s.hidden) for _ in range(9)] + [s.normal(s.feed_forward)]
    squares = [s.normal(s.hidden, s.hidden) for _ in range(4)]
    return [*biases, *squares, s.normal(s.feed_forward, s.hidden), s.normal(s.hidden, s.feed_forward)]


def _adamw(s: Setting):
    options = {"lr": 1e-5, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "step": 10}
    groups = {}  # each rung changes arrays of its own, which begin alike

    def step(rung) -> tuple:
        first = rung not in groups
        if first:
            groups[rung] = (
                _parameters(s),
                _parameters(s),
                _parameters(s),
                [x * x for x in _parameters(s)],
            )
        rung.step(*groups[rung], **options)
        return tuple(x.copy() for x in groups[rung][0]) if first else ()

    return {"step": step}


def _grad_norm(s: Setting):
    gradients = _parameters(s)
    return {"forward": lambda rung: np.float64(rung.forward(gradients))}


def _summary(s: Setting):
    x = s.normal(s.tokens, s.feed_forward)
    return {"forward": lambda rung: rung.forward(x)}


STEPS: dict[str, Callable[[Setting], dict[str, Callable]]] = {
    "matmul": _matmul,
    "softmax": _softmax,
    "attention": _attention,
    "layer_norm": _layer_norm,
    "gelu": _gelu,
    "gelu_tanh": _gelu,
    "dropout": _dropout,
    "embedding": _embedding,
    "cross_entropy": _cross_entropy,
    "adamw": _adamw,
    "grad_norm": _grad_norm,
    "summary": _summary,
}

if __name__ == "__main__":
    sys.exit(main())
