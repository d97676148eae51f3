"""The GPU that is measured, and its clock; for a dry run, the tests' stand-in for it, whose times mean nothing."""

import gc
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np

CHECKOUT = Path(__file__).resolve().parent.parent
WARM_UP = 3
"""Runs that are not counted: they compile kernels and fill the memory pool."""

FEWEST, MOST, ENOUGH = 5, 20, 300
"""A time is the median of so many runs; no more are begun after so many milliseconds."""


@dataclass
class Device:
    """Where arrays are made and times are taken."""

    xp: ModuleType
    is_real: bool
    busy: Any = None
    """Two large arrays. Copied from one to the other, they keep the GPU at work while Python prepares a launch."""

    def size(self, real: int, dry: int) -> int:
        """A size for the GPU, or for a dry run."""
        return real if self.is_real else dry

    def normal(self, *shape: int, dtype=np.float32, seed: int = 0):
        """Normal numbers, made on the device where there is one."""
        if self.is_real:
            generator = self.xp.random.default_rng(seed)
            return generator.standard_normal(shape, dtype=np.float32).astype(dtype)
        return self.xp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype))

    def milliseconds(self, run: Callable[[], Any]) -> float:
        """The median time of `run` on the GPU, by CUDA events, over some tenths of a second.

        Before each run the GPU is given something to do, so that it has not to wait for Python in between.
        """
        if not self.is_real:
            start = time.perf_counter()
            run()
            return 1000 * (time.perf_counter() - start)
        cuda, times = self.xp.cuda, []
        if self.busy is None:
            self.busy = self.xp.zeros((2, 1 << 28), np.float32)
        start, end = cuda.Event(), cuda.Event()
        while len(times) < WARM_UP + FEWEST or (len(times) < WARM_UP + MOST and sum(times) < ENOUGH):
            self.busy[0] = self.busy[1]
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(cuda.get_elapsed_time(start, end))
        return median(times[WARM_UP:])

    def synchronize(self) -> None:
        self.xp.cuda.Device().synchronize()

    def forget(self) -> None:
        """Give back the memory that is no longer used, and PyTorch's too."""
        self.busy = None
        if self.is_real:
            gc.collect()
            self.xp.get_default_memory_pool().free_all_blocks()
            if (torch := torch_or_none()) is not None:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        """What CuPy's pool has taken from the device since `forget`."""
        return self.xp.get_default_memory_pool().total_bytes() if self.is_real else 0


def real_device() -> Device:
    """The machine's GPU. Ends the program where there is none."""
    from minift_kernels import gpu

    if gpu.why_no_gpu() is not None:
        program = Path(sys.argv[0]).name
        sys.exit(f"{program} needs a GPU: {gpu.why_no_gpu()}; --help says what it does without one")
    import cupy

    return Device(cupy, is_real=True)


def opened(dry_run: bool):
    """A context in which `import cupy` is CuPy, or in a dry run the stand-in."""
    if not dry_run:
        return nullcontext()
    import cupy_stand_in

    return cupy_stand_in.installed()


def torch_or_none():
    """PyTorch, or None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def describe(device: Device) -> dict:
    """Which GPU, and which versions of what."""
    from importlib.metadata import PackageNotFoundError, version

    facts = {}
    properties = device.xp.cuda.runtime.getDeviceProperties(0)
    facts["gpu"] = properties["name"].decode()
    facts["memory"] = f"{properties['totalGlobalMem'] / 2**30:.0f} GiB"
    if device.is_real:
        facts["driver"] = str(device.xp.cuda.runtime.driverGetVersion())
    facts["python"] = sys.version.split()[0]
    for package in ("cupy-cuda13x", "cupy-cuda12x", "numba-cuda", "numpy", "torch", "transformers"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts
