"""Where arrays live: in the computer's memory (NumPy) or in a GPU's (CuPy).

A device is "cpu" or "cuda". A model moves as a whole, with `model.to(device="cuda")`; every operation then computes
where its arrays are. Batches stay NumPy's: the operation that reads their integers moves them, and waits for nothing.
(Only in a CUDA graph, `cuda_graph.py`, do they stand on the GPU.)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import ml_dtypes
import numpy as np
from minift_kernels import gpu

from minift.errors import InputError
from minift.history import Array

DEVICES = ("cpu", "cuda")

COMPUTE_DTYPES = {"float32": None, "tf32": None, "bf16": ml_dtypes.bfloat16}
"""The precisions, each with the dtype that activations are rounded to; None: they have the weights' own.

tf32 is float32 in memory; a GPU's tensor cores round the factors of its products to 10 bits. bf16 keeps activations and
their gradients in 16 bits, of which 7 are the mantissa; weights, their gradients, AdamW's moments, LayerNorm's sums and
the loss stay float32, or a step smaller than a 256th of a weight would change nothing (Micikevicius et al. 2018,
"Mixed precision training", section 3.1).
"""


def array_library(device: str) -> ModuleType:
    """numpy or cupy. Raises InputError for an unknown device, and for "cuda" where no GPU can be used."""
    if device not in DEVICES:
        raise InputError(f"there is no device {device!r}; the devices are {', '.join(DEVICES)}")
    if device == "cpu":
        return np
    reason = gpu.why_no_gpu()
    if reason is not None:
        raise InputError(f"device cuda cannot be used: {reason}")
    import cupy

    return cupy


def check_precision(precision: str, device: str) -> None:
    """Raise InputError for an unknown precision, and for one that the device does not have."""
    if precision not in COMPUTE_DTYPES:
        raise InputError(f"there is no precision {precision!r}; there are {', '.join(COMPUTE_DTYPES)}")
    if precision == "tf32" and device == "cpu":
        raise InputError("precision tf32 is a GPU's: it needs device cuda")


def as_numpy(x: Array) -> np.ndarray:
    """x as a NumPy array; from a GPU it is copied, which waits for all that was launched before."""
    return x if isinstance(x, np.ndarray) else x.get()


def gpu_name() -> str | None:
    """What the GPU is called, with its memory; None where there is none."""
    if gpu.why_no_gpu() is not None:
        return None
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(0)
    return f"{properties['name'].decode()}, {in_gib(properties['totalGlobalMem'])}"


@contextmanager
def explaining_out_of_memory() -> Iterator[None]:
    """Turn an array library's MemoryError inside this block into an InputError that says what to do."""
    try:
        yield
    except MemoryError as error:
        raise InputError(
            f"{_what_was_needed(error)}; a smaller --batch-size or --max-length needs less"
        ) from error


def _what_was_needed(error: MemoryError) -> str:
    if not type(error).__module__.startswith("cupy"):
        return f"out of memory: {error}"
    import cupy

    free, total = cupy.cuda.Device().mem_info  # CuPy has given back before what lay idle in its pool
    return (
        f"out of memory on the GPU, which has {in_gib(total)}: beside {in_gib(total - free)} in use, {error}"
    )


def in_gib(count: int) -> str:
    """A number of bytes, such as 79.6 GiB."""
    return f"{count / 2**30:.1f} GiB"
