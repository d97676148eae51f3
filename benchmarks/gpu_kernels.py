"""Kernels on a GPU: are all rungs right, and how near is each to what the machine can do?"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from gpu_device import Device, torch_or_none
from minift_kernels import OPERATIONS as LADDERS
from minift_kernels import gpu
from minift_kernels.ladder import family_of, why_not

BF16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)


def rungs_of_gpu(operation: str, dtype, device: Device) -> Iterator[tuple[str, Any]]:
    """The rungs of an operation that run on the device on arrays of this dtype, CuPy's own among them."""
    sample = device.xp.empty(0, dtype)
    for name, rung in LADDERS[operation].rungs.items():
        emulated = (
            not device.is_real and family_of(name) == "numba_cuda"
        )  # the stand-in has no arrays for Numba
        if family_of(name) != "numba_cpu" and not emulated and why_not(name, sample) is None:
            yield name, rung


# ------------------------------------------------------------------------------------------------------------
# Right?


SMALL = 300
"""Elements of a case that the CPU's emulation, and a sanitizer, get through in seconds."""

PATIENCE = 100
"""Seconds for a rung on all its cases, its compilation included. One that has no result by then hangs."""

SANITIZED = 10
"""A sanitizer takes so many times as long, at most."""

SANITIZER_FOUND = 66
"""The exit status by which a sanitizer is told to say that it found something."""


def check(device: Device, rungs_like: str, sanitizer: str | None = None) -> list[dict]:
    """Every rung on every case of the contract tests, against the reference in float64 on the CPU.

    On a GPU each rung has a process of its own: compilers run beside each other, and after a kernel that breaks its
    process's hold of the GPU the other rungs can still be checked. `rungs_like` is what their names begin with. With a
    `sanitizer`, one of NVIDIA's compute-sanitizer, it watches the small cases.
    """
    from kernel_cases import BFLOAT16, OPERATIONS

    rungs = [
        (operation, name, dtype)
        for operation in OPERATIONS
        for dtype in (FLOAT32, BF16)
        if dtype == FLOAT32 or operation in BFLOAT16
        for name, _ in rungs_of_gpu(operation, dtype, device)
        if name.startswith(rungs_like)
    ]
    if not device.is_real:
        return [check_rung(device, *rung, SMALL) for rung in rungs]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(partial(check_in_a_process, sanitizer=sanitizer), rungs))


def check_in_a_process(rung: tuple[str, str, np.dtype], sanitizer: str | None = None) -> dict:
    """What `gpu.py --rung softmax cuda_c_warp float32` prints, which is what `check_rung` returns.

    What a sanitizer found makes the rung wrong, too.
    """
    operation, name, dtype = rung
    command = [sys.executable, sys.argv[0], "--rung", operation, name, dtype.name]
    patience = PATIENCE
    if sanitizer is not None:
        options = ["--tool", sanitizer, "--error-exitcode", str(SANITIZER_FOUND)]
        command, patience = ["compute-sanitizer", *options, *command, "--small-cases"], SANITIZED * PATIENCE
    result = {"operation": operation, "rung": name, "dtype": dtype.name, "cases": 0}
    try:
        done = subprocess.run(command, timeout=patience, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return result | {"wrong": [f"no result after {patience} s"]}
    lines = done.stdout.splitlines()
    results = [line for line in lines if line.startswith("{")]
    if not results:
        return result | {"wrong": [f"exit {done.returncode}: {' '.join(done.stderr.split())[-300:]}"]}
    result = json.loads(results[-1])
    if done.returncode == SANITIZER_FOUND:
        found = [line.strip("= ") for line in lines if line.startswith("=========")]
        result["wrong"].append(
            f"{sanitizer}: {'; '.join(found[1:4])}"
        )  # the first line is the sanitizer's name
    return result


def check_rung(device: Device, operation: str, name: str, dtype: np.dtype, largest: int) -> dict:
    """One rung on the cases that have at most `largest` elements."""
    from kernel_cases import (
        BFLOAT16,
        OPERATIONS,
        absolute_bound,
        as_bfloat16,
        as_float32,
        changed,
        check_close,
        elements,
        run,
    )

    started = time.perf_counter()
    in_bf16 = dtype == BF16
    stay = BFLOAT16.get(operation, ()) if in_bf16 else ()
    count, wrong = 0, []
    for case, inputs in OPERATIONS[operation][1]():
        if elements(inputs) > largest:
            continue
        count += 1
        inputs = changed(inputs, as_float32)
        if in_bf16:
            inputs = changed(inputs, as_bfloat16, leave=stay)
        want = run(operation, "reference", changed(inputs, _as_float64))
        bounds = (
            {"relative": 2**-6, "absolute": 2**-7}
            if in_bf16
            else {"absolute": absolute_bound(operation, inputs)}
        )
        segments = [key for key in inputs if key.endswith("segments")]
        try:
            got = run(operation, name, changed(inputs, device.xp.asarray, leave=segments))
            for key in want:
                check_close(
                    _as_numpy(got[key]), want[key], f"{case} {key}", LADDERS[operation].rungs[name], **bounds
                )
        except Exception as error:
            wrong.append(f"{case}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return {
        "operation": operation,
        "rung": name,
        "dtype": dtype.name,
        "cases": count,
        "wrong": wrong,
        "seconds": round(time.perf_counter() - started, 1),
    }


def _as_float64(x):
    return x.astype(np.float64) if x.dtype.kind not in "iub" else x


def _as_numpy(x):
    return x.get() if hasattr(x, "get") else np.asarray(x)


# ------------------------------------------------------------------------------------------------------------
# Operations that memory bounds

Case = tuple[str, str, np.dtype, int, Callable]
"""Operation, what it does, dtype of its arrays, the fewest bytes it must move, and the run of a rung."""


def memory_bound(device: Device, every_rung: bool) -> dict:
    """Each operation's rate, as a share of the rate of a copy that moves as many bytes."""
    results = []
    copies: dict[int, float] = {}
    for make in (_softmax, _layer_norm, _gelu, _dropout, _cross_entropy, _adamw, _grad_norm):
        for dtype in (FLOAT32, BF16):
            for operation, step, dtype_of_arrays, moved, run in make(device, dtype):
                if moved not in copies:
                    copies[moved] = _copy_rate(device, moved)
                for name, rung in rungs_of_gpu(operation, dtype_of_arrays, device):
                    is_default = name == LADDERS[operation].default(device.xp.empty(0, dtype_of_arrays))
                    if not (is_default or (every_rung and dtype_of_arrays == FLOAT32)):
                        continue
                    milliseconds = device.milliseconds(partial(run, rung))
                    rate = moved / milliseconds / 1e6
                    results.append(
                        {
                            "operation": operation,
                            "step": step,
                            "rung": name,
                            "default": is_default,
                            "dtype": dtype_of_arrays.name,
                            "moved_bytes": moved,
                            "milliseconds": milliseconds,
                            "gigabytes_a_second": rate,
                            "share_of_copy": rate / copies[moved],
                        }
                    )
            device.forget()
    return {"copy_gigabytes_a_second": {str(size): rate for size, rate in copies.items()}, "results": results}


def _copy_rate(device: Device, moved: int) -> float:
    """Gigabytes a second of a copy that reads half of so many bytes and writes the other half."""
    x = device.xp.zeros(moved // 8, np.float32)
    y = device.xp.zeros(moved // 8, np.float32)

    def copy():
        y[...] = x

    return 2 * x.nbytes / device.milliseconds(copy) / 1e6


def _rows(device: Device, columns: int, dtype: np.dtype) -> int:
    """So many rows that an array takes a GiB."""
    return device.size((1 << 30) // (columns * dtype.itemsize), 5)


def _softmax(device: Device, dtype: np.dtype) -> Iterator[Case]:
    columns = device.size(1024, 40)
    x = device.normal(_rows(device, columns, dtype), columns, dtype=dtype)
    y = LADDERS["softmax"].rung(x).forward(x)
    yield "softmax", "forward", dtype, 2 * x.nbytes, lambda rung: rung.forward(x)
    yield "softmax", "backward", dtype, 3 * x.nbytes, lambda rung: rung.backward(x, y)


def _layer_norm(device: Device, dtype: np.dtype) -> Iterator[Case]:
    columns = device.size(768, 40)
    x = device.normal(_rows(device, columns, dtype), columns, dtype=dtype)
    residual = device.normal(*x.shape, dtype=dtype, seed=1)
    weight, bias = device.normal(columns), device.normal(columns)
    forward = (x, residual, weight, bias, 1e-12)
    _, normalized, rstd = LADDERS["layer_norm"].rung(x).forward(*forward)
    yield "layer_norm", "forward", dtype, 4 * x.nbytes + rstd.nbytes, lambda rung: rung.forward(*forward)
    backward = (x, normalized, rstd, weight)
    yield "layer_norm", "backward", dtype, 3 * x.nbytes + rstd.nbytes, lambda rung: rung.backward(*backward)


def _gelu(device: Device, dtype: np.dtype) -> Iterator[Case]:
    x = device.normal(_rows(device, 256, dtype), 256, dtype=dtype)
    yield "gelu", "forward", dtype, 2 * x.nbytes, lambda rung: rung.forward(x)
    yield "gelu", "backward", dtype, 3 * x.nbytes, lambda rung: rung.backward(x, x)


def _dropout(device: Device, dtype: np.dtype) -> Iterator[Case]:
    x = device.normal(_rows(device, 256, dtype), 256, dtype=dtype)
    yield "dropout", "forward or backward", dtype, 2 * x.nbytes, lambda rung: rung.forward(x, 0.1, (1, 2))


def _cross_entropy(device: Device, dtype: np.dtype) -> Iterator[Case]:
    if dtype != FLOAT32:  # losses are computed in float32
        return
    classes = device.size(30522, 50)
    rows = _rows(device, classes, dtype)
    logits, dlosses = device.normal(rows, classes), device.normal(rows)
    targets = device.xp.asarray(np.random.default_rng(0).integers(0, classes, rows))
    _, logsumexp = LADDERS["cross_entropy"].rung(logits).forward(logits, targets)

    def forward_and_backward(rung):
        rung.forward(logits, targets)
        rung.backward(dlosses, logits, logsumexp, targets)

    yield "cross_entropy", "forward and backward", dtype, 3 * logits.nbytes, forward_and_backward


def _parameters(device: Device, seed: int) -> list:
    """Arrays with the shapes of BERT-base's parameters, 110 million numbers."""
    hidden, inner, layers, words = (768, 3072, 12, 30522) if device.is_real else (8, 16, 2, 30)
    layer = [(hidden,)] * 9 + [(inner,)] + [(hidden, hidden)] * 4 + [(inner, hidden), (hidden, inner)]
    shapes = [(words, hidden), (512, hidden), (2, hidden), (hidden,), (hidden,)] + layers * layer
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    parts = device.xp.split(device.normal(int(ends[-1]), seed=seed), ends[:-1].tolist())
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _adamw(device: Device, dtype: np.dtype) -> Iterator[Case]:
    if dtype != FLOAT32:  # weights and moments stay float32
        return
    w, g, m, v = (_parameters(device, seed) for seed in range(4))
    v = [x * x for x in v]
    options = dict(lr=1e-5, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, step=10)
    moved = 7 * sum(x.nbytes for x in w)  # four are read, three written
    yield "adamw", "step", dtype, moved, lambda rung: rung.step(w, g, m, v, **options)


def _grad_norm(device: Device, dtype: np.dtype) -> Iterator[Case]:
    if dtype != FLOAT32:
        return
    gradients = _parameters(device, 0) + _parameters(device, 1) + _parameters(device, 2)
    moved = sum(x.nbytes for x in gradients)
    yield "grad_norm", "forward", dtype, moved, lambda rung: rung.forward(gradients)


# ------------------------------------------------------------------------------------------------------------
# Attention, against PyTorch's


def attention(device: Device) -> list[dict]:
    """Forward and backward in bfloat16, against torch.nn.functional.scaled_dot_product_attention."""
    shapes = ((16, 512, 12, 64, False), (4, 2048, 16, 64, True))
    if not device.is_real:
        shapes = ((2, 9, 2, 32, False), (2, 11, 1, 64, True))
    results = []
    for texts, length, heads, size, causal in shapes:
        q, k, v, dout = (
            device.normal(texts * length, heads * size, dtype=BF16, seed=seed) for seed in range(4)
        )
        starts = np.arange(0, texts * length, length)
        segments = np.stack([starts, starts + length], axis=1)
        options = (segments, segments, heads, size**-0.5, causal)
        torch_times, torch_out, torch_gradients = _torch_attention(
            device, (q, k, v, dout), texts, length, heads, causal
        )
        for name, rung in rungs_of_gpu("attention", BF16, device):
            if family_of(name) != "cuda_c":
                continue
            out, logsumexp = rung.forward(q, k, v, *options)
            saved = (q, k, v, out, logsumexp)
            gradients = rung.backward(dout, *saved, *options)
            difference = (
                None
                if torch_out is None
                else max(
                    _difference(ours, theirs)
                    for ours, theirs in zip((out, *gradients), (torch_out, *torch_gradients), strict=True)
                )
            )
            forward = device.milliseconds(partial(rung.forward, q, k, v, *options))
            backward = device.milliseconds(partial(rung.backward, dout, *saved, *options))
            ratio = (forward + backward) / sum(torch_times) if torch_times else None
            results.append(
                {
                    "shape": f"{texts} x {length} x {heads} x {size}{', causal' if causal else ''}",
                    "rung": name,
                    "forward_milliseconds": forward,
                    "backward_milliseconds": backward,
                    "torch_milliseconds": torch_times,
                    "ratio": ratio,
                    "difference": difference,
                }
            )
        device.forget()
    return results


def _torch_attention(device: Device, arrays, texts, length, heads, causal):
    """Times of forward and backward, the output and the gradients, as (texts length, heads size) arrays."""
    torch = torch_or_none()
    if torch is None:
        return None, None, None
    place = "cuda" if device.is_real else "cpu"

    def as_tensor(x):
        values = torch.from_numpy(x.astype(np.float32).get()).to(place, torch.bfloat16)
        return values.view(texts, length, heads, -1).transpose(1, 2).contiguous()

    def as_array(x):
        return x.transpose(1, 2).reshape(texts * length, -1).detach().float().cpu().numpy()

    q, k, v, dout = map(as_tensor, arrays)
    for x in (q, k, v):
        x.requires_grad_()
    attend = torch.nn.functional.scaled_dot_product_attention
    out = attend(q, k, v, is_causal=causal)
    gradients = torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
    forward = device.milliseconds(lambda: attend(q, k, v, is_causal=causal))
    backward = device.milliseconds(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))
    return [forward, backward], as_array(out), [as_array(gradient) for gradient in gradients]


def _difference(ours, theirs) -> float:
    """Relative to the largest value."""
    ours = ours.astype(np.float32).get()
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))


# ------------------------------------------------------------------------------------------------------------
# Matrix products, against cuBLAS


def products(device: Device) -> list[dict]:
    """Square products, every rung against cuBLAS in the same precision."""
    n = device.size(4096, 40)
    results = []
    for precision, dtype in (("bf16", BF16), ("tf32", FLOAT32), ("float32", FLOAT32)):
        gpu.allow_tf32(precision == "tf32")
        a, b = device.normal(n, n, dtype=dtype), device.normal(n, n, dtype=dtype, seed=1)
        cublas = device.milliseconds(partial(LADDERS["matmul"].rungs["cuda_c_cublas"].forward, a, b))
        for name, rung in rungs_of_gpu("matmul", dtype, device):
            computes_in_tf32 = dtype == FLOAT32 and hasattr(rung, "tolerance")
            is_of_another = computes_in_tf32 != (precision == "tf32") and dtype == FLOAT32
            if is_of_another and name != "cuda_c_cublas":  # which computes in either
                continue
            milliseconds = device.milliseconds(partial(rung.forward, a, b))
            results.append(
                {
                    "precision": precision,
                    "size": n,
                    "rung": name,
                    "milliseconds": milliseconds,
                    "teraflops": 2 * n**3 / milliseconds / 1e9,
                    "share_of_cublas": cublas / milliseconds,
                }
            )
        device.forget()
    gpu.allow_tf32(False)
    return results
