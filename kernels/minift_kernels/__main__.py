"""Check and time every rung that this machine can run: `python -m minift_kernels [operation ...]`.

Each rung computes the same step of a typical BERT; the first, the reference, judges the others. Differences
are relative to the largest value of each result.
"""

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np

from minift_kernels import OPERATIONS, host

TOKENS, HIDDEN, HEADS, FEED_FORWARD, VOCABULARY = 512, 384, 12, 1536, 30522
"""MiniLM on 16 texts of 32 tokens."""

TOLERANCE = 2e-5


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m minift_kernels", description=__doc__)
    parser.add_argument("operations", nargs="*", metavar="operation", help=", ".join(OPERATIONS))
    wanted = parser.parse_args(arguments).operations
    unknown = [name for name in wanted if name not in OPERATIONS]
    if unknown:
        parser.error(f"there is no operation {unknown[0]!r}; there are {', '.join(OPERATIONS)}")
    print(f"{host.thread_count()} threads; best of several runs\n")
    print(f"{'operation':<14} {'step':<22} {'rung':<12} {'ms':>9} {'speed-up':>9} {'difference':>11}")
    right = [_compare(operation) for operation in wanted or OPERATIONS]
    return 0 if all(right) else 1


def _compare(operation: str) -> bool:
    """Print a line for each step of the operation and each of its rungs; whether all agree with the first."""
    right = True
    for name, step in STEPS[operation]().items():
        expected, first_time = [], 0.0
        for rung, module in OPERATIONS[operation].rungs.items():
            results, seconds = _time(lambda module=module, step=step: step(module))
            if not expected:
                expected, first_time = results, seconds
            difference = max(map(_difference, results, expected))
            right = right and difference <= TOLERANCE
            print(
                f"{operation:<14} {name:<22} {rung:<12} {1000 * seconds:9.3f} {first_time / seconds:8.1f}x "
                f"{difference:11.1e}{'' if difference <= TOLERANCE else '  WRONG'}"
            )
    return right


def _time(run: Callable) -> tuple[list, float]:
    """The results of `run` as a list of arrays, and its shortest time in seconds, compilation aside."""
    results = run()
    best, deadline = float("inf"), time.perf_counter() + 0.5
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return [np.asarray(result) for result in (results if isinstance(results, tuple) else (results,))], best


def _difference(got, want) -> float:
    return float(np.abs(np.subtract(got, want, dtype=np.float64)).max() / max(np.abs(want).max(), 1e-30))


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


# ------------------------------------------------------------------------------------------------------------
# What is timed: for each operation its steps, each a function of a rung


def _matmul():
    x, weight, bias = _normal(TOKENS, HIDDEN), _normal(FEED_FORWARD, HIDDEN), _normal(FEED_FORWARD)
    dy = _normal(TOKENS, FEED_FORWARD)
    return {
        "y = x W^T + bias": lambda rung: rung.forward(x, weight.T, bias),
        "dx = dy W": lambda rung: rung.forward(dy, weight),
        "dW = dy^T x": lambda rung: rung.forward(dy.T, x),
        "dbias": lambda rung: rung.sum_rows(dy),
    }


def _softmax():
    x, dy = _normal(TOKENS, FEED_FORWARD), _normal(TOKENS, FEED_FORWARD)
    y = OPERATIONS["softmax"].rungs["reference"].forward(x)
    return {"forward": lambda rung: rung.forward(x), "backward": lambda rung: rung.backward(dy, y)}


def _attention():
    steps = {}
    q, k, v, dout = (_normal(TOKENS, HIDDEN) for _ in range(4))
    for length in (32, TOKENS):
        starts = np.arange(0, TOKENS, length)
        segments = np.stack([starts, starts + length], axis=1)
        options = (segments, segments, HEADS, (HIDDEN // HEADS) ** -0.5, False, 0.1, (1, 2))
        saved = OPERATIONS["attention"].rungs["reference"].forward(q, k, v, *options)
        name = f"{TOKENS // length} x {length}"
        steps[f"forward {name}"] = lambda rung, o=options: rung.forward(q, k, v, *o)
        steps[f"backward {name}"] = lambda rung, o=options, s=saved: rung.backward(dout, q, k, v, *s, *o)
    return steps


def _layer_norm():
    x, residual, dy = _normal(TOKENS, HIDDEN), _normal(TOKENS, HIDDEN), _normal(TOKENS, HIDDEN)
    weight, bias = _normal(HIDDEN), _normal(HIDDEN)
    _, normalized, rstd = (
        OPERATIONS["layer_norm"].rungs["reference"].forward(x, residual, weight, bias, 1e-12)
    )
    return {
        "forward": lambda rung: rung.forward(x, residual, weight, bias, 1e-12),
        "backward": lambda rung: rung.backward(dy, normalized, rstd, weight),
    }


def _gelu():
    x, dy = _normal(TOKENS, FEED_FORWARD), _normal(TOKENS, FEED_FORWARD)
    return {"forward": lambda rung: rung.forward(x), "backward": lambda rung: rung.backward(dy, x)}


def _dropout():
    x = _normal(TOKENS, HIDDEN)
    return {"forward and backward": lambda rung: rung.forward(x, 0.1, (1, 2))}


def _embedding():
    table, dy = _normal(VOCABULARY, HIDDEN), _normal(TOKENS, HIDDEN)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, TOKENS)
    return {
        "forward": lambda rung: rung.forward(ids, table),
        "backward": lambda rung: rung.backward(dy, ids, VOCABULARY),
    }


def _cross_entropy():
    logits, dlosses = _normal(64, VOCABULARY), _normal(64)
    targets = np.random.default_rng(0).integers(0, VOCABULARY, 64)
    _, logsumexp = OPERATIONS["cross_entropy"].rungs["reference"].forward(logits, targets)
    return {
        "forward": lambda rung: rung.forward(logits, targets),
        "backward": lambda rung: rung.backward(dlosses, logits, logsumexp, targets),
    }


def _parameters() -> list[np.ndarray]:
    """Arrays with the shapes of one layer of the model."""
    biases = [_normal(HIDDEN) for _ in range(9)] + [_normal(FEED_FORWARD)]
    squares = [_normal(HIDDEN, HIDDEN) for _ in range(4)]
    return [*biases, *squares, _normal(FEED_FORWARD, HIDDEN), _normal(HIDDEN, FEED_FORWARD)]


def _adamw():
    options = {"lr": 1e-5, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "step": 10}
    groups = {}  # each rung changes arrays of its own, which begin alike

    def step(rung):
        first = rung not in groups
        if first:
            groups[rung] = _parameters(), _parameters(), _parameters(), [np.square(x) for x in _parameters()]
        rung.step(*groups[rung], **options)
        return tuple(x.copy() for x in groups[rung][0]) if first else ()

    return {"step": step}


def _grad_norm():
    gradients = _parameters()
    return {"forward": lambda rung: np.float64(rung.forward(gradients))}


STEPS: dict[str, Callable[[], dict[str, Callable]]] = {
    "matmul": _matmul,
    "softmax": _softmax,
    "attention": _attention,
    "layer_norm": _layer_norm,
    "gelu": _gelu,
    "dropout": _dropout,
    "embedding": _embedding,
    "cross_entropy": _cross_entropy,
    "adamw": _adamw,
    "grad_norm": _grad_norm,
}

if __name__ == "__main__":
    sys.exit(main())
