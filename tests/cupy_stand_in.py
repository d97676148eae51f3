"""A CuPy for machines without a GPU, as strict as the real one: it runs on NumPy and lets nothing pass unseen.

Its arrays refuse every operation with NumPy's, as CuPy's do; `asarray(numpy_array)` and `.get()` are the only bridges.
Scalars of NumPy and of Python are welcome, as in CuPy, and a sum is an array without axes, not a number. Whatever
would make Python wait for a GPU (`.get()`, `.item()`, `float()`, `bool()`) is counted in `waits`. RawModule runs CUDA C
on the CPU, by way of the project's own emulator, so a kernel is launched by the very lines that launch it on a GPU.

    with installed() as cupy:
        x = cupy.asarray(np.ones(3))

What CuPy has and is not here raises AttributeError: extend the lists below, after reading CuPy's documentation.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
from minift_kernels import cuda_cpu, gpu

SCALARS = (bool, int, float, np.generic)

waits = 0
"""How often Python had to wait for the GPU."""


def _wait() -> None:
    global waits
    waits += 1


def _unwrap(value):
    """What NumPy computes with. Raises TypeError for NumPy's own arrays, in lists and in tuples too."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}: a GPU's array cannot meet NumPy's")
    if isinstance(value, (list, tuple)):
        return type(value)(map(_unwrap, value))
    return value


def _wrap(value):
    if isinstance(value, (np.ndarray, np.generic)):
        return ndarray(np.asarray(value))
    return value


class ndarray:
    """cupy.ndarray, with its values in `_host`."""

    __array_ufunc__ = None  # NumPy's scalars leave their operators to ours
    __hash__ = None

    def __init__(self, host: np.ndarray):
        self._host = host

    def __array__(self, *arguments, **options):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def get(self) -> np.ndarray:
        _wait()
        return self._host.copy(order="K")

    def item(self):
        _wait()
        return self._host.item()

    def tolist(self):
        _wait()
        return self._host.tolist()

    def __float__(self):
        return float(self.item())

    def __int__(self):
        return int(self.item())

    def __bool__(self):
        return bool(self.item())

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[index] for index in range(len(self)))

    def __repr__(self):
        return f"cupy_stand_in.{self._host!r}"

    @property
    def data(self):
        return SimpleNamespace(ptr=self._host.ctypes.data)

    @property
    def T(self):
        return ndarray(self._host.T)

    def __getitem__(self, index):
        return ndarray(np.asarray(self._host[_unwrap(index)]))

    def __setitem__(self, index, value):
        self._host[_unwrap(index)] = _unwrap(value)

    def _in_place(self, name, other):
        if not isinstance(other, (ndarray, *SCALARS)):
            raise TypeError(f"Unsupported type {type(other)}")
        getattr(self._host, name)(_unwrap(other))
        return self


def _add_operators() -> None:
    def binary(name):
        def operator(self, other):
            if not isinstance(other, (ndarray, *SCALARS)):
                if isinstance(other, np.ndarray):
                    raise TypeError(f"Unsupported type {type(other)}")
                return NotImplemented
            return _wrap(getattr(self._host, name)(_unwrap(other)))

        return operator

    names = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift".split()
    for name in names:
        for prefix in ("", "r"):
            setattr(ndarray, f"__{prefix}{name}__", binary(f"__{prefix}{name}__"))
        in_place = f"__i{name}__"
        setattr(ndarray, in_place, lambda self, other, in_place=in_place: self._in_place(in_place, other))
    for name in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(ndarray, f"__{name}__", binary(f"__{name}__"))
    for name in ("neg", "pos", "abs", "invert"):
        setattr(ndarray, f"__{name}__", lambda self, name=f"__{name}__": _wrap(getattr(self._host, name)()))

    def method(name):
        def call(self, *arguments, **options):
            options = {key: _unwrap(value) for key, value in options.items()}
            return _wrap(getattr(self._host, name)(*map(_unwrap, arguments), **options))

        return call

    for name in (
        *("sum", "mean", "max", "min", "argmax", "any", "all", "astype", "copy", "reshape", "ravel"),
        *("transpose", "fill", "view", "squeeze", "swapaxes"),
    ):
        setattr(ndarray, name, method(name))
    for name in ("shape", "dtype", "size", "ndim", "nbytes", "itemsize", "strides", "flags"):
        setattr(ndarray, name, property(lambda self, name=name: getattr(self._host, name)))


_add_operators()


class RawModule:
    """cupy.RawModule, compiled by g++."""

    def __init__(self, *, code: str, options=(), name_expressions=None):
        folder = Path(options[-1].removeprefix("-I"))
        file = next(path for path in folder.glob("*.cu") if code.startswith(path.read_text()))
        assert "-std=c++17" in options
        assert f"-I{gpu.HERE}" in options
        self.module = cuda_cpu.Module(file, instantiations=name_expressions or ())

    def get_function(self, name: str):
        return _Kernel(self.module.get_function(name))


class _Kernel:
    """A kernel that takes only arrays of the GPU, and scalars of NumPy."""

    max_dynamic_shared_size_bytes = 48 * 1024

    def __init__(self, kernel: cuda_cpu.Kernel):
        self.kernel = kernel

    def __call__(self, grid, block, args, *, shared_mem=0):
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise ValueError(f"the kernel was not set up for {shared_mem} bytes of shared memory")
        self.kernel(grid, block, tuple(map(_unwrap, args)), shared_mem=shared_mem)


FUNCTIONS = """
    empty empty_like zeros zeros_like ones ones_like full full_like arange ascontiguousarray broadcast_to expand_dims
    concatenate stack where choose exp log log1p sqrt tanh square abs maximum minimum isfinite isnan isneginf matmul
    frexp argsort cumsum repeat searchsorted argmax max sum prod clip logical_and
""".split()

CONSTANTS = (
    "inf nan newaxis pi float32 float64 float16 int32 int64 uint8 uint16 uint32 uint64 bool_ dtype".split()
)


def _function(name):
    def call(*arguments, **options):
        options = {key: _unwrap(value) for key, value in options.items()}
        return _wrap(getattr(np, name)(*map(_unwrap, arguments), **options))

    return call


def _array(data, dtype=None, copy=True):
    """asarray and array: the bridge from NumPy."""
    if isinstance(data, ndarray):
        return ndarray(np.array(data._host, dtype, copy=copy or None))
    return ndarray(np.array(data, dtype))


def _erf(x: ndarray) -> ndarray:
    if x.dtype not in (np.float32, np.float64):
        raise TypeError("erf takes float32 and float64")
    return ndarray(np.vectorize(math.erf, otypes=[x.dtype])(x._host) if x.size else x._host.copy())


class OutOfMemoryError(MemoryError):
    __module__ = "cupy.cuda.memory"


def _modules() -> dict[str, ModuleType]:
    cupy = ModuleType("cupy")
    for name in FUNCTIONS:
        setattr(cupy, name, _function(name))
    for name in CONSTANTS:
        setattr(cupy, name, getattr(np, name))
    cupy.ndarray, cupy.RawModule = ndarray, RawModule
    cupy.asarray = lambda data, dtype=None: _array(data, dtype, copy=False)
    cupy.array = _array
    cupy.asnumpy = lambda x: x.get()
    cupy.add = _function("add")
    cupy.add.at = lambda a, index, b: np.add.at(_unwrap(a), _unwrap(index), _unwrap(b))
    cupy.is_available = lambda: True
    cupy.get_default_memory_pool = lambda: SimpleNamespace(used_bytes=lambda: 3 * 2**30)
    properties = {"name": b"Stand-in GPU", "totalGlobalMem": 8 * 2**30}
    cupy.cuda = SimpleNamespace(
        Device=lambda: SimpleNamespace(synchronize=_wait, mem_info=(5 * 2**30, 8 * 2**30)),
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=SimpleNamespace(getDeviceProperties=lambda device: properties),
    )
    compute_types = {}
    linalg = SimpleNamespace(
        COMPUTE_TYPE_DEFAULT=0,
        COMPUTE_TYPE_TF32=3,
        set_compute_type=compute_types.__setitem__,
        chosen=compute_types,
    )
    core = ModuleType("cupy._core")
    core._routines_linalg = linalg
    special = ModuleType("cupyx.scipy.special")
    special.erf = _erf
    return {
        "cupy": cupy,
        "cupy._core": core,
        "cupyx": ModuleType("cupyx"),
        "cupyx.scipy": ModuleType("cupyx.scipy"),
        "cupyx.scipy.special": special,
    }


@contextmanager
def installed() -> Iterator[ModuleType]:
    """Inside this block `import cupy` gives the stand-in, whatever is installed."""
    global waits
    modules = _modules()
    before = {name: sys.modules.get(name) for name in modules}
    caches = (gpu.why_no_gpu, gpu._compiled)
    sys.modules.update(modules)
    for cache in caches:
        cache.cache_clear()
    waits = 0
    try:
        yield modules["cupy"]
    finally:
        gpu.allow_tf32(False)
        for cache in caches:
            cache.cache_clear()
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
