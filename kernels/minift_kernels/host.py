"""The CPU as the kernels use it: one pool of threads, compiled loops, and memory that stays warm.

Six facts, each of which decided more than any loop (see `benchmarks/`):

1. Two pools of threads starve each other. BLAS libraries keep threads that spin after each product while
   Numba's wait for a core, and the reverse. So there is one pool, Numba's: its threads call BLAS from inside
   compiled loops (`sgemm`, below), each on its own part of the product, and BLAS is told to use one thread
   for as long as the loop runs.
2. Threads that wait for the next loop by spinning hold a core that others could use, and where there are
   more threads than cores a loop may wait for one that does not run: a step that takes 10 ms took 400 on a
   busy machine. Threads that sleep at once must be woken for every loop, a tenth of a step in all. So they
   spin a little and then sleep. OpenMP reads these variables when the first loop starts, which is after this.
3. A large temporary that is returned to the system costs a page fault every 4 kB when it is needed again.
   `keep_freed_memory` tells malloc to keep it.
4. exp and erf are scalar calls unless they are written as polynomials that vectorise (`math32.py`).
5. A loop over x[i] from i = 3 on does not vectorise, because an index may be negative and then counts from the
   end; nor does one over a row of a matrix that was cut out of another, whose numbers may lie apart. A loop from
   0 over x[3:], or over a `float32_array`, does: adding up the rows of a matrix took five times as long without.
6. Python's garbage collector looks at all objects there are, time and again, and once more as the process ends:
   hundreds of thousands of them belong to Numba and live as long as it does. `gc.freeze()`, below, tells it to
   leave alone what is there when minift is imported. That is 0.15 s of every process. Its price: objects that were
   there before and refer to each other in a circle are not collected when nobody else refers to them any more.
"""

import ctypes
import gc
import os
import sys
from importlib import metadata
from pathlib import Path

import llvmlite.binding as llvm
import numba
import numpy as np
from numba import carray, types  # pyright: ignore[reportPrivateImportUsage]
from numba.core import event
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # turns of an empty loop, in GNU's OpenMP

gc.freeze()

# Reordering sums, contracting into fused multiply-adds and dividing by multiplication may change the last
# bit. NaN and infinity keep their meaning: a kernel that hides a NaN hides the bug that made it.
_FASTMATH = {"reassoc", "contract", "arcp", "nsz"}

_ONLY_PRANGE = dict.fromkeys(
    ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion"), False
) | {"prange": True}
"""Of all that Numba would turn into parallel loops, only the loops that say so: it also compiles faster."""

_SHARED_SOURCES = ("host.py", "math32.py", "philox.py", "tiles.py")
"""The files of functions that are compiled into the loops of all the others."""


def compiled(function):
    """Compile a function of NumPy arrays to machine code that runs `prange` loops on all cores.

    The machine code is kept on disk beside the source, so only the first run ever waits for the compiler.
    """
    options: dict = {"parallel": _ONLY_PRANGE, "fastmath": _FASTMATH, "error_model": "numpy"}
    dispatcher = numba.njit(cache=True, **options)(function)
    _watch_shared_sources(dispatcher)
    return dispatcher


def machine_code(function, signature) -> CFunc:
    """A function compiled for one signature, and kept on disk; its `address`, while it lives, is what loops call.

    Compiled loops call it as they call BLAS, and need no copy of it: for what is large and wanted in several.
    """
    callback = CFunc(function, (signature.args, signature.return_type), {}, {"error_model": "numpy"})
    callback.enable_caching()
    _watch_shared_sources(callback)
    callback.compile()
    return callback


def _watch_shared_sources(cached) -> None:
    # Numba forgets a function's machine code when the function's own file changes. It must also when the
    # files change whose functions are inlined into it, or an edit of exp would seem to have no effect.
    index = getattr(getattr(cached, "_cache", None), "_cache_file", None)
    if index is not None:  # there is none under NUMBA_DISABLE_JIT
        index._source_stamp = (index._source_stamp, _stamp_of_shared_sources)


def inlined(function):
    """Compile a function for use in compiled loops, which vectorise as if it stood inside them."""
    return _inline(function, _FASTMATH)


def inlined_as_written(function):
    """The same for arithmetic whose steps must be done in the order in which they stand.

    The one freedom left is a * b + c in one instruction. (Without naming one, the caller's freedoms would
    apply.)
    """
    return _inline(function, {"contract"})


def _inline(function, fastmath):
    # Only compiled code calls these, so the compiler need not spend time on an entrance from Python or C.
    options: dict = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "forceinline": True}
    return numba.njit(fastmath=fastmath, error_model="numpy", **options)(function)


def _stamps(*names: str) -> tuple:
    files = [(Path(__file__).parent / name).stat() for name in names]
    return tuple((file.st_mtime, file.st_size) for file in files)


_stamp_of_shared_sources = _stamps(*_SHARED_SOURCES)


def contiguous(x: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """x itself where its elements lie in C order, aligned and writeable, else a copy for which that is true.

    Compiled code is made for one kind of array; every other kind would cost a compilation of its own. Raises
    TypeError for another dtype: no rung converts, since a silent mix of precisions is a bug of the caller.
    """
    check_dtype(x, dtype)
    return x if x.flags.carray else np.array(x, order="C")


def check_dtype(x: np.ndarray, dtype: type = np.float32) -> None:
    if x.dtype != dtype:
        raise TypeError(
            f"compiled kernels take {np.dtype(dtype)} here, not {x.dtype}: use one dtype for all arrays"
        )


@numba.njit(cache=True)
def address(x):
    """Where an array begins in memory: `x.ctypes.data`, in a sixth of the time. A training step asks 900 times."""
    return x.ctypes.data


@intrinsic
def _float32_pointer(typing_context, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(address), generate


@inlined
def float32_array(address, size):
    """The `size` float32 values from `address` on as an array, for one compiled loop over many arrays."""
    return carray(_float32_pointer(address), size)  # pyright: ignore[reportCallIssue]


def why_not_compiled(x) -> str | None:
    """Why compiled loops cannot run on arrays like `x` here; None where they can."""
    if numba.config.DISABLE_JIT:  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]
        return "Numba's compiler is off (NUMBA_DISABLE_JIT), and not all that they call is Python"
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        return "it takes float32 arrays of NumPy"
    return None


def thread_count() -> int:
    """How many threads compiled loops run on: NUMBA_NUM_THREADS, or all cores."""
    return numba.get_num_threads()


class _Announcement(event.Listener):
    """Says once that the compiler is at work, so that a first run's silence is explained."""

    said = False

    def on_start(self, event):
        function = event.data["dispatcher"].py_func
        if function.__module__.startswith("minift_kernels.") and not self.said:
            self.said = True
            print("minift: compiling the kernels for this machine (once, under a minute)", file=sys.stderr)

    def on_end(self, event):
        pass


event.register("numba:compile", _Announcement())


# ------------------------------------------------------------------------------------------------------------
# BLAS inside compiled loops


def _find_openblas() -> ctypes.CDLL | None:
    """The OpenBLAS that NumPy's own wheels carry, or None where NumPy was built on another library."""
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        for library in sorted(folder.glob("libscipy_openblas64_*")):
            return ctypes.CDLL(str(library))
    return None


_SEQUENTIAL, _SAME_BITS = 1, 2
"""MKL's MKL_THREADING_SEQUENTIAL: it uses the calling thread; and MKL_CBWR_AUTO: the same input gives the same bits,
wherever in memory it lies."""


def _find_mkl() -> ctypes.CDLL | None:
    """Intel's BLAS, if the package `mkl` is there and wanted: on Intel's processors, or where MINIFT_BLAS=mkl.

    On a Xeon it was a fifth faster than OpenBLAS, and a little faster than tiles; on an AMD EPYC slower than OpenBLAS.
    """
    wish = os.environ.get("MINIFT_BLAS", "")
    if wish not in ("", "mkl", "openblas"):
        raise ValueError(f"MINIFT_BLAS is {wish!r}, expected mkl or openblas")
    if wish == "openblas" or (not wish and not _is_intels()):
        return None
    try:
        files = metadata.files("mkl") or []
    except metadata.PackageNotFoundError:
        if wish:
            raise ImportError("MINIFT_BLAS=mkl: not installed, pip install 'minift[mkl]'") from None
        return None
    for file in files:
        if file.name.startswith("libmkl_rt.so"):
            library = ctypes.CDLL(str(file.locate()))
            library.MKL_Set_Threading_Layer(_SEQUENTIAL)
            library.MKL_CBWR_Set(_SAME_BITS)
            return library
    if wish:
        raise ImportError("MINIFT_BLAS=mkl: the package mkl has no libmkl_rt.so")
    return None


def _is_intels() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


_mkl = _find_mkl()
_openblas = None if _mkl else _find_openblas()

BLAS = "Intel's MKL" if _mkl else "NumPy's OpenBLAS" if _openblas else None
"""What compiled loops call for products, or None."""

HAS_SGEMM = BLAS is not None
"""Whether compiled loops can call BLAS here; without it matrix products go through numpy.matmul."""

ROW_MAJOR, NO_TRANSPOSE, TRANSPOSE = 101, 111, 112
"""The values that the CBLAS interface gives to its enumerations."""

for _library, _name in ((_mkl, "cblas_sgemm_64"), (_openblas, "scipy_cblas_sgemm64_")):
    if _library is not None:
        llvm.add_symbol("minift_sgemm", ctypes.cast(_library[_name], ctypes.c_void_p).value)

_int, _size, _float = types.int32, types.int64, types.float32
sgemm = types.ExternalFunction(
    "minift_sgemm",
    types.void(
        _int, _int, _int,              # layout, transpose a, transpose b
        _size, _size, _size,           # M, N, K
        _float, _size, _size,          # alpha, address of a, row length of a
        _size, _size,                  # address of b, row length of b
        _float, _size, _size,          # beta, address of c, row length of c
    ),
)  # fmt: skip
"""c = alpha a b + beta c on row-major float32 matrices, callable from `@compiled` code.

Addresses are `address(array)`; a row length is the distance in elements from one row to the next, so a
block of a larger matrix needs no copy. Call it under `single_threaded_blas`. """


@inlined
def blas_product(alpha, a, b, beta, c):
    """c = alpha a b + beta c in compiled code, for float32 views a (M, K), b (K, N), c (M, N).

    Each may be a block of a larger matrix, a and b also the transpose of one: BLAS is told, nothing is
    copied."""
    sgemm(
        ROW_MAJOR, _transposed(a), _transposed(b),
        a.shape[0], b.shape[1], a.shape[1],
        np.float32(alpha), a.ctypes.data, _row_length(a),
        b.ctypes.data, _row_length(b),
        np.float32(beta), c.ctypes.data, _row_length(c),
    )  # fmt: skip


@inlined
def _transposed(x):
    return NO_TRANSPOSE if x.strides[1] == x.itemsize else TRANSPOSE


@inlined
def _row_length(x):
    if x.strides[1] == x.itemsize:
        return max(x.strides[0] // x.itemsize, x.shape[1])  # a single row may say anything about the next
    return max(x.strides[1] // x.itemsize, x.shape[0])


class _SingleThreadedBlas:
    """While a compiled loop runs, its threads are the only ones: OpenBLAS gets one, then its old number again."""

    def __enter__(self):
        if _openblas is not None:
            self.before = _openblas.scipy_openblas_get_num_threads64_()
            _openblas.scipy_openblas_set_num_threads64_(1)

    def __exit__(self, *exception):
        if _openblas is not None:
            _openblas.scipy_openblas_set_num_threads64_(self.before)


def single_threaded_blas() -> _SingleThreadedBlas:
    """A context in which every BLAS call uses the thread it was called from and no other."""
    return _SingleThreadedBlas()


# ------------------------------------------------------------------------------------------------------------
# Memory


def keep_freed_memory() -> None:
    """Tell glibc's malloc to keep freed blocks, however large, instead of returning them to the system.

    A training step allocates the same large arrays again and again; fetched anew, each page costs a fault and
    is zeroed by the kernel (13 ms for 47 MB). Elsewhere than on glibc this does nothing."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    mallopt(m_mmap_threshold, 1 << 30)
    mallopt(m_trim_threshold, 1 << 30)
