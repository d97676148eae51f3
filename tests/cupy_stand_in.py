"""A CuPy for machines without a GPU, as strict as the real one: it runs on NumPy and lets nothing pass unseen.

Its arrays refuse every operation with NumPy's, as CuPy's do; `asarray(numpy_array)` and `.get()` are the only bridges.
Scalars of NumPy and of Python are welcome, as in CuPy, and a sum is an array without axes, not a number. Whatever
would make Python wait for a GPU (`.get()`, `.item()`, `float()`, `bool()`) is counted in `waits`. RawModule runs CUDA C
on the CPU, by way of the project's own emulator, so a kernel is launched by the very lines that launch it on a GPU.
cuBLAS is the one function that is called, by addresses as there. A stream can be captured in a graph, which is the list
of what was done, to be done again to the same arrays.

    with installed() as cupy:
        x = cupy.asarray(np.ones(3))

What CuPy has and is not here raises AttributeError: extend the lists below, after reading CuPy's documentation.
"""

import ctypes
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import ml_dtypes
import numpy as np
from minift_kernels import cublas, cuda_cpu, gpu

SCALARS = (bool, int, float, np.generic)

waits = 0
"""How often Python had to wait for the GPU."""


captured: list[Callable] | None = None
"""What has been done since a stream's capture began; None where none is captured."""

unwritten: list[np.ndarray] = []
"""The arrays that were made meanwhile. To capture is not to compute, so when it ends they are spoilt."""


def _wait() -> None:
    global waits
    if captured is not None:
        raise RuntimeError("the current stream is capturing, so synchronous API calls are disallowed")
    waits += 1


def _do(action: Callable) -> None:
    """Do something to arrays; a graph does it again."""
    action()
    if captured is not None:
        captured.append(action)


def _made(compute: Callable) -> "ndarray":
    """A new array (or a view, which stays one). A graph computes it again, into the same memory."""
    host = np.asarray(compute())
    if captured is not None:
        captured.append(lambda: np.copyto(host, compute()))
        is_new = not np.shares_memory(host, np.asarray(compute()))  # and no view, nor an array that was there
        if is_new:
            unwritten.append(host)
    return ndarray(host)


def _unwrap(value):
    """What NumPy computes with. Raises TypeError for NumPy's own arrays, in lists and in tuples too."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}: a GPU's array cannot meet NumPy's")
    if isinstance(value, (list, tuple)):
        return type(value)(map(_unwrap, value))
    return value


class ndarray:
    """cupy.ndarray, with its values in `_host`."""

    __array_ufunc__ = None  # NumPy's scalars leave their operators to ours
    __hash__ = None

    def __init__(self, host, dtype=None, memptr=None, strides=None):
        """Of an array in the computer's memory; or, as CuPy has it, of a shape, a dtype and a place in memory."""
        self._host = host if memptr is None else _array_at(memptr.ptr, host, dtype, strides)

    def set(self, values: np.ndarray) -> None:
        if captured is not None:
            raise RuntimeError("the current stream is capturing, so synchronous API calls are disallowed")
        assert isinstance(values, np.ndarray)
        assert values.dtype == self.dtype
        self._host[...] = values

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
        host, index = self._host, _unwrap(index)
        return _made(lambda: host[index])

    def __setitem__(self, index, value):
        host, index, value = self._host, _unwrap(index), _unwrap(value)
        _do(lambda: host.__setitem__(index, value))

    def _in_place(self, name, other):
        if not isinstance(other, (ndarray, *SCALARS)):
            raise TypeError(f"Unsupported type {type(other)}")
        host, other = self._host, _unwrap(other)
        _do(lambda: getattr(host, name)(other))
        return self


def _add_operators() -> None:
    def binary(name):
        def operator(self, other):
            if not isinstance(other, (ndarray, *SCALARS)):
                if isinstance(other, np.ndarray):
                    raise TypeError(f"Unsupported type {type(other)}")
                return NotImplemented
            host, other = self._host, _unwrap(other)
            return _made(lambda: getattr(host, name)(other))

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
        setattr(ndarray, f"__{name}__", lambda self, name=f"__{name}__": _made(getattr(self._host, name)))

    def method(name):
        def call(self, *arguments, **options):
            options = {key: _unwrap(value) for key, value in options.items()}
            arguments = tuple(map(_unwrap, arguments))
            host = self._host
            return _made(lambda: getattr(host, name)(*arguments, **options))

        return call

    for name in (
        *("sum", "mean", "max", "min", "argmax", "any", "all", "astype", "copy", "reshape", "ravel"),
        *("transpose", "view", "squeeze", "swapaxes"),
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
        plain = re.findall(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(', code)
        self.names = set(name_expressions or plain)

    def get_function(self, name: str):
        assert name in self.names, f"CUDA_ERROR_NOT_FOUND: {name} has another name in the machine code"
        return _Kernel(self.module.get_function(name))


class _Kernel:
    """A kernel that takes only arrays of the GPU, and scalars of NumPy."""

    max_dynamic_shared_size_bytes = 48 * 1024

    def __init__(self, kernel: cuda_cpu.Kernel):
        self.kernel = kernel

    def __call__(self, grid, block, args, *, shared_mem=0):
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise ValueError(f"the kernel was not set up for {shared_mem} bytes of shared memory")
        arguments = tuple(map(_unwrap, args))
        _do(lambda: self.kernel(grid, block, arguments, shared_mem=shared_mem))


FUNCTIONS = """
    empty empty_like zeros zeros_like ones ones_like full full_like arange ascontiguousarray broadcast_to expand_dims
    concatenate stack where exp log log1p sqrt tanh cos sin square abs maximum minimum isfinite isinf isnan isneginf
    matmul bincount argsort cumsum repeat searchsorted argmax max sum prod clip logical_and
""".split()

CONSTANTS = (
    "inf nan newaxis pi float32 float64 float16 int32 int64 uint8 uint16 uint32 uint64 bool_ dtype".split()
)


def _function(name):
    def call(*arguments, **options):
        options = {key: _unwrap(value) for key, value in options.items()}
        arguments = tuple(map(_unwrap, arguments))
        return _made(lambda: getattr(np, name)(*arguments, **options))

    return call


def _array(data, dtype=None, copy=True):
    """asarray and array: the bridge from NumPy."""
    if isinstance(data, ndarray):
        host = data._host
        return _made(lambda: np.array(host, dtype, copy=copy or None))
    if captured is not None:
        raise RuntimeError("the current stream is capturing, so H2D transfers are disallowed")
    return ndarray(np.array(data, dtype))


def _add_at(a: ndarray, index, b) -> None:
    if a.dtype.name not in ("int32", "int64", "float16", "float32", "float64", "uint32", "uint64"):
        raise TypeError(f"cupy.add.at does not take {a.dtype}")
    a, index, b = _unwrap(a), _unwrap(index), _unwrap(b)
    _do(lambda: np.add.at(a, index, b))


def _erf(x: ndarray) -> ndarray:
    if x.dtype not in (np.float32, np.float64):
        raise TypeError("erf takes float32 and float64")
    host = x._host
    return _made(lambda: np.vectorize(math.erf, otypes=[host.dtype])(host) if host.size else host.copy())


def _array_at(address: int, shape, dtype, strides) -> np.ndarray:
    """The array that lies in memory there."""
    dtype = np.dtype(dtype)
    reach = dtype.itemsize + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    memory = (ctypes.c_char * (reach if 0 not in shape else 0)).from_address(address)
    return np.ndarray(shape, dtype, memory, strides=strides)


def _gemm_ex(
    a_operation, b_operation, m, n, k, a, a_kind, a_lead, b, b_kind, b_lead, beta, c, c_kind, c_lead, compute
):
    """What cublas.gemm_ex has cuBLAS do, in float32, on matrices that lie in memory column by column."""
    dtypes = {cublas._FLOAT32: np.dtype(np.float32), cublas._BFLOAT16: np.dtype(ml_dtypes.bfloat16)}

    def matrix(address, kind, rows, columns, lead):
        size = dtypes[kind].itemsize
        assert lead >= max(1, rows)
        return _array_at(address, (rows, columns), dtypes[kind], (size, lead * size))

    def factor(operation, address, kind, rows, columns, lead):
        if operation == cublas._TRANSPOSED:
            return matrix(address, kind, columns, rows, lead).T
        return matrix(address, kind, rows, columns, lead)

    a, b = factor(a_operation, a, a_kind, m, k, a_lead), factor(b_operation, b, b_kind, k, n, b_lead)
    c = matrix(c, c_kind, m, n, c_lead)

    if compute == cublas._IN_TF32:  # of CUBLAS_COMPUTE_32F_FAST_TF32 there is only the product of float32
        assert a.dtype == b.dtype == c.dtype == np.float32

    def multiply():
        before = beta.value * c.astype(np.float32) if beta.value else 0
        c[...] = a.astype(np.float32) @ b.astype(np.float32) + before

    _do(multiply)


class Stream:
    """A stream that can be captured; the current one is always this machine's only one."""

    ptr = 0

    def __init__(self, non_blocking: bool = False):
        assert non_blocking, "the default stream would take part in the capture"

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def begin_capture(self) -> None:
        global captured
        captured = []

    def end_capture(self) -> "Graph":
        global captured
        graph, captured = Graph(captured), None
        for host in unwritten:
            host.fill(77 if host.dtype.kind in "iub" else np.nan)
        unwritten.clear()
        return graph


class Graph:
    def __init__(self, actions: list[Callable]):
        self.actions = actions

    def launch(self, stream) -> None:
        for action in self.actions:
            action()


class OutOfMemoryError(MemoryError):
    __module__ = "cupy.cuda.memory"


class CUDARuntimeError(RuntimeError):
    pass


class MemoryPool:
    """It says what CuPy's does where the GPU has no more memory: it gives back what is free in it, and asks again."""

    def __init__(self, allocator: Callable):
        self.allocator, self.gave_back = allocator, False

    def malloc(self, size: int):
        try:
            return self.allocator(size)
        except CUDARuntimeError:
            self.gave_back = True
            return self.allocator(size)

    def total_bytes(self) -> int:
        return 0


@contextmanager
def _using_allocator(malloc: Callable) -> Iterator[None]:
    malloc(512)  # of all that is allocated inside
    yield


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
    cupy.add.at = _add_at
    cupy.frexp = lambda x: tuple(_made(lambda part=part: np.frexp(x._host)[part]) for part in range(2))
    cupy.is_available = lambda: True
    cupy.get_default_memory_pool = lambda: SimpleNamespace(free_all_blocks=lambda: None)
    properties = {"name": b"Stand-in GPU", "totalGlobalMem": 8 * 2**30}
    cupy.split = lambda x, ends: list(map(ndarray, np.split(x._host, ends)))
    cupy.cuda = SimpleNamespace(
        Device=lambda: SimpleNamespace(synchronize=_wait, mem_info=(5 * 2**30, 8 * 2**30)),
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=SimpleNamespace(
            getDeviceProperties=lambda device: properties, CUDARuntimeError=CUDARuntimeError
        ),
        Stream=Stream,
        get_current_stream=lambda: SimpleNamespace(ptr=0),
        Memory=lambda size: SimpleNamespace(ptr=0, size=size),
        MemoryPool=MemoryPool,
        using_allocator=_using_allocator,
        UnownedMemory=lambda ptr, size, owner: SimpleNamespace(ptr=ptr, owner=owner),
        MemoryPointer=lambda memory, offset: SimpleNamespace(ptr=memory.ptr + offset, owner=memory),
    )
    special = ModuleType("cupyx.scipy.special")
    special.erf = _erf
    return {
        "cupy": cupy,
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
    caches, gemm_ex = (gpu.why_no_gpu, gpu._compiled), cublas.gemm_ex
    sys.modules.update(modules)
    cublas.gemm_ex = _gemm_ex
    for cache in caches:
        cache.cache_clear()
    waits = 0
    try:
        yield modules["cupy"]
    finally:
        gpu.allow_tf32(False)
        cublas.gemm_ex = gemm_ex
        for cache in caches:
            cache.cache_clear()
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
