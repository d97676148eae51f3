"""Launches kernels, in CUDA C and in Numba's Python, on the device where their arrays are.

    gpu.launch(FILE, f"softmax_naive_forward<{gpu.c_type(x)}>", (blocks,), (128,), (x, y, np.int32(R)))

CuPy arrays run on the GPU, where CuPy compiles the file and keeps the machine code on disk. NumPy arrays run
on the CPU, through `cuda_cpu.h`: so every rung of CUDA C also runs on a laptop, in tests and under a
debugger. In the same way Numba's kernels run on the GPU, or in Numba's simulator on NumPy arrays.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from minift_kernels import cuda_cpu
from minift_kernels.cuda_cpu_launch import KernelError

HERE = Path(__file__).parent

_C_TYPES = {"float32": "float", "bfloat16": "__nv_bfloat16", "int32": "int", "int64": "long long"}


def c_type(x) -> str:
    """The name in CUDA C of an array's elements, which a kernel's template takes."""
    return _C_TYPES[x.dtype.name]


def contiguous(x) -> Any:
    """x, or a copy of it, whose elements lie in C order from a multiple of 16 bytes on, as vector loads want.

    None stays None: a kernel takes it as a null pointer.
    """
    if x is None:
        return None
    is_aligned = isinstance(x, np.ndarray) or x.data.ptr % 16 == 0  # the launch aligns a NumPy array itself
    return x if is_aligned and x.flags.c_contiguous else x.copy(order="C")


# ------------------------------------------------------------------------------------------------------------
# CUDA C


def launch(
    file: Path,
    kernel: str,
    grid: Sequence[int],
    block: Sequence[int],
    arguments: Sequence,
    shared_bytes: int = 0,
) -> None:
    """Run a kernel of a .cu file over `grid` blocks of `block` threads; a grid without blocks does nothing.

    `kernel` is a name, with the arguments of its template where it is one: "softmax_naive_forward<float>".
    `arguments` stand in the order of the kernel's parameters: arrays, contiguous and all of one kind, None
    for a null pointer, and NumPy scalars of the parameter's own type. `shared_bytes` is the size of a block's
    dynamic shared memory.

    Raises KernelError, which names the kernel and the launch, for what the kernel or the device refuses. A
    GPU reports what a kernel does wrong when the program next waits for it, which may be launches later; run
    with CUDA_LAUNCH_BLOCKING=1 to be told at once.
    """
    if 0 in grid:
        return
    on_cpu = any(isinstance(argument, np.ndarray) for argument in arguments)
    function = _emulated(file, kernel) if on_cpu else _compiled(file, kernel)
    try:
        cuda_cpu.launch(function, grid, block, arguments, shared_bytes)
    except RuntimeError as error:  # the emulator's own errors name the kernel, and CuPy's nothing
        shape = f"grid {tuple(grid)}, block {tuple(block)}, {shared_bytes} bytes of shared memory"
        raise KernelError(f"{file.name}: {kernel} with {shape}: {error}") from error


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Say by a KernelError what went wrong. Compilers, the driver and Numba each have exceptions of their own."""
    try:
        yield
    except MemoryError:  # has an explanation of its own
        raise
    except Exception as error:
        raise KernelError(f"{what}: {error}") from error


@cache
def _compiled(file: Path, kernel: str):
    """The kernel as CuPy compiles it for the GPU."""
    import cupy

    source = file.read_text()
    options = ("-std=c++17", f"-I{HERE}", f"-I{file.parent}")
    # CuPy keeps machine code by source and options. It must be forgotten when a header changes, too.
    code = f"{source}\n// headers: {_fingerprint_of_headers(file)}\n"
    module = cupy.RawModule(code=code, options=options, name_expressions=built_together(source, kernel))
    with _naming(f"{file.name}: {kernel} cannot be made ready for this GPU"):
        return module.get_function(kernel)


def _fingerprint_of_headers(file: Path) -> str:
    fingerprint = hashlib.sha256()
    for folder in (HERE, file.parent):
        for header in sorted([*folder.glob("*.h"), *folder.glob("*.cuh")]):
            fingerprint.update(header.read_bytes())
    return fingerprint.hexdigest()[:16]


@cache
def _emulated(file: Path, kernel: str) -> cuda_cpu.Kernel:
    """The kernel as g++ compiles it for the CPU."""
    source = file.read_text()
    return cuda_cpu.Module(file, instantiations=built_together(source, kernel)).get_function(kernel)


def built_together(source: str, kernel: str) -> tuple[str, ...]:
    """The instantiations that are compiled with `kernel` (none where it is no template).

    These are all templates of the file with the same parameters as its own, for the same arguments: an
    operation needs most of them, and one compilation takes less time than several.
    """
    name, bracket, arguments = kernel.partition("<")
    if not bracket:
        return ()
    parameters = cuda_cpu.template_kernels(source)
    if name not in parameters:
        raise KeyError(f"there is no template kernel {name!r}; there are {', '.join(parameters)}")
    return tuple(f"{other}<{arguments}" for other in parameters if parameters[other] == parameters[name])


# ------------------------------------------------------------------------------------------------------------
# Precision

_tf32 = False


def tf32_is_allowed() -> bool:
    """Whether products of float32 may be computed in tf32: 8 bits of exponent as float32 has, and 10 of mantissa."""
    return _tf32


def allow_tf32(allowed: bool) -> None:
    """Let tensor cores compute products of float32 in tf32, in the rungs that can; or not."""
    global _tf32
    _tf32 = allowed


# ------------------------------------------------------------------------------------------------------------
# Numba


class NumbaKernel:
    """A kernel in Python, which Numba compiles when it is first launched.

        cuda: Any = None  # is numba.cuda from the first launch on

        @gpu.numba_kernel
        def double(x):
            i = cuda.grid(1)
            if i < len(x):
                x[i] = 2 * x[i]

        double.launch((blocks,), (128,), (x,))

    `cuda` is put into the function's file here, when it is first needed: to import it takes longer than to
    import all of minift. So are the functions marked `@gpu.numba_function` that the file imports.
    """

    def __init__(self, function: Callable):
        self.function = function
        self.kernel = None

    def launch(self, grid: Sequence[int], block: Sequence[int], arguments: Sequence) -> None:
        """Run it over `grid` blocks of `block` threads; a grid without blocks does nothing.

        Raises KernelError, which names the kernel and the launch, for whatever goes wrong.
        """
        if 0 in grid:
            return
        if self.kernel is None:
            self.kernel = _numba_cuda().jit(self.ready())
        with _naming(f"{self.function.__qualname__} with grid {tuple(grid)}, block {tuple(block)}"):
            self.kernel[tuple(grid), tuple(block)](*arguments)

    def ready(self) -> Callable:
        """The function, with what it needs to be compiled in its file."""
        file = self.function.__globals__
        file["cuda"] = _numba_cuda()
        for name, value in file.items():
            if isinstance(value, NumbaFunction):
                file[name] = value.compiled
        return self.function


class NumbaFunction:
    """A function in Python that kernels may call."""

    def __init__(self, function: Callable):
        self.function = function

    @cached_property
    def compiled(self) -> Callable:
        """What Numba compiles into the kernels that call it."""
        cuda = _numba_cuda()
        self.function.__globals__["cuda"] = cuda
        return cuda.jit(self.function, device=True)

    def __call__(self, *arguments):
        """Kernels call `compiled`, which is put in this object's place before they run."""
        raise TypeError(f"{self.function.__name__} is called by kernels alone")


numba_kernel, numba_function = NumbaKernel, NumbaFunction


@cache
def _numba_cuda() -> ModuleType:
    # Numba warns of grids that leave a GPU idle. Whoever runs small shapes knows.
    os.environ.setdefault("NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS", "0")
    # numba-cuda, which is maintained but not developed further, stops at NumPy 2.5 for the want of one old name
    # (https://github.com/NVIDIA/numba-cuda/issues/907).
    if not hasattr(np, "row_stack"):
        np.row_stack = np.vstack  # pyright: ignore
    from numba import cuda

    return cuda


# ------------------------------------------------------------------------------------------------------------
# What this machine can run


@cache
def why_no_gpu() -> str | None:
    """Why arrays cannot live on a GPU here; None where they can."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({error}); pip install 'minift[cuda]'"
    return None if cupy.is_available() else "CuPy finds no GPU"


def why_no_cuda_c(x) -> str | None:
    """Why CUDA C cannot run on arrays like `x` here; None where it can."""
    if x.dtype != np.float32 and x.dtype.name != "bfloat16":
        return f"it takes float32 and bfloat16, not {x.dtype}"
    if isinstance(x, np.ndarray) and shutil.which("g++") is None:
        return f"there is no g++ to run it on the CPU{_and_no_gpu()}"
    return None


def why_no_numba_cuda(x) -> str | None:
    """Why Numba's CUDA kernels cannot run on arrays like `x` here; None where they can."""
    if x.dtype != np.float32:
        return f"it takes float32, not {x.dtype}"
    if isinstance(x, np.ndarray) and os.environ.get("NUMBA_ENABLE_CUDASIM") != "1":
        return f"Numba's simulator is off (NUMBA_ENABLE_CUDASIM=1 turns it on){_and_no_gpu()}"
    try:
        _numba_cuda()
    except ImportError as error:
        return f"numba-cuda cannot be imported: {error}"
    return None


def _and_no_gpu() -> str:
    return f", and there is no GPU: {why_no_gpu()}" if why_no_gpu() else ", and this is no array of the GPU"
