"""cuBLAS, NVIDIA's library of matrix products, called through ctypes.

CuPy has a way to it, too: `a @ b`. But that refuses to be captured in a CUDA graph, adds to nothing, and of bfloat16
gives bfloat16 alone, though the sums were float32.

Names and numbers are those of cublas_api.h and library_types.h.
"""

import ctypes
from functools import cache
from typing import Any

from minift_kernels.arrays import lies_transposed

_FLOAT32, _BFLOAT16 = 0, 14  # CUDA_R_32F, CUDA_R_16BF
_IN_FLOAT32, _IN_TF32 = 68, 77  # CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32
_AS_IT_LIES, _TRANSPOSED = 0, 1  # CUBLAS_OP_N, CUBLAS_OP_T
_DEFAULT_ALGORITHM = -1  # CUBLAS_GEMM_DEFAULT
_SUMS_IN_FLOAT32 = 16  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION

_WORKSPACE_BYTES = 32 * 2**20
"""What NVIDIA recommends for Hopper. In a graph cuBLAS could not ask for it."""

_KINDS = {"float32": _FLOAT32, "bfloat16": _BFLOAT16}

_zero, _one = ctypes.c_float(0), ctypes.c_float(1)


def product(a, b, c, add: bool = False, tf32: bool = False) -> None:
    """c = a b, or with `add` c = c + a b: CuPy's a (M, K), b (K, N) and c (M, N), which lies in C order.

    a and b are of one dtype, float32 or bfloat16, and may be transposed views. c may be float32 where they are
    bfloat16: then the sums, which are taken in float32, are not rounded. With `tf32` factors of float32 are.
    """
    # cuBLAS takes matrices column by column. So read, an array in C order is its transpose, and c^T = b^T a^T.
    (rows, inner), columns = a.shape, b.shape[1]
    b, b_operation, b_lead = _read_by_columns(b)
    a, a_operation, a_lead = _read_by_columns(a)
    gemm_ex(
        b_operation, a_operation, columns, rows, inner,
        b.data.ptr, _KINDS[b.dtype.name], b_lead,
        a.data.ptr, _KINDS[a.dtype.name], a_lead,
        _one if add else _zero,
        c.data.ptr, _KINDS[c.dtype.name], max(1, columns),
        _IN_TF32 if tf32 and a.dtype.name == "float32" else _IN_FLOAT32,
    )  # fmt: skip


def _read_by_columns(x) -> tuple[Any, int, int]:
    """x in memory, or a copy; what makes of it x^T when it is read by columns; and how far apart its rows lie."""
    if lies_transposed(x):
        return x, _TRANSPOSED, max(1, x.shape[0])
    if not x.flags.c_contiguous:
        x = x.copy(order="C")
    return x, _AS_IT_LIES, max(1, x.shape[1])


def gemm_ex(
    a_operation, b_operation, m, n, k, a, a_kind, a_lead, b, b_kind, b_lead, beta, c, c_kind, c_lead, compute
):
    """cublasGemmEx with alpha 1, on the current stream: C = op(A) op(B) + beta C, all by columns, by addresses."""
    library, handle = _library(), _handle_on_current_stream()
    status = library.cublasGemmEx(
        handle, a_operation, b_operation, m, n, k, ctypes.byref(_one), a, a_kind, a_lead, b, b_kind, b_lead,
        ctypes.byref(beta), c, c_kind, c_lead, compute, _DEFAULT_ALGORITHM,
    )  # fmt: skip
    _check(status, f"cublasGemmEx of {m} x {k} and {k} x {n}")


def _check(status: int, call: str) -> None:
    if status:
        raise RuntimeError(f"{call}: status {status} (cublasStatus_t)")


@cache
def _library() -> ctypes.CDLL:
    from cuda.pathfinder import load_nvidia_dynamic_lib

    library = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    pointer, number = ctypes.c_void_p, ctypes.c_int
    matrix = (pointer, number, number)
    library.cublasGemmEx.argtypes = (
        pointer, *5 * (number,), pointer, *matrix, *matrix, pointer, *matrix, number, number,
    )  # fmt: skip
    library.cublasSetMathMode.argtypes = (pointer, number)
    library.cublasSetStream_v2.argtypes = (pointer, pointer)
    library.cublasSetWorkspace_v2.argtypes = (pointer, pointer, ctypes.c_size_t)
    return library


class _Handle:
    """cuBLAS's state, and the stream that it works on."""

    def __init__(self):
        import cupy

        self.address = ctypes.c_void_p()
        _check(_library().cublasCreate_v2(ctypes.byref(self.address)), "cublasCreate")
        # Else the parts of a sum that several blocks share may be bfloat16.
        _check(_library().cublasSetMathMode(self.address, _SUMS_IN_FLOAT32), "cublasSetMathMode")
        self.workspace = cupy.cuda.memory.alloc(_WORKSPACE_BYTES)
        self.stream = None

    def use(self, stream: int) -> None:
        library = _library()
        _check(library.cublasSetStream_v2(self.address, stream), "cublasSetStream")
        status = library.cublasSetWorkspace_v2(self.address, self.workspace.ptr, _WORKSPACE_BYTES)
        _check(status, "cublasSetWorkspace")
        self.stream = stream


_the_handle = cache(_Handle)


def _handle_on_current_stream() -> ctypes.c_void_p:
    import cupy

    handle, stream = _the_handle(), cupy.cuda.get_current_stream().ptr
    if stream != handle.stream:
        handle.use(stream)
    return handle.address
