"""One body for NumPy and CuPy: the module that an array belongs to, and what that module lacks."""

import math
import sys
from types import ModuleType
from typing import Any

import numpy as np


def array_namespace(x) -> ModuleType:
    """numpy for a NumPy array, cupy for a CuPy array (which only exists where cupy was imported)."""
    return np if isinstance(x, (np.ndarray, np.generic)) else sys.modules["cupy"]


def wide(x) -> Any:
    """x as it is computed with: bfloat16, which is only for storing, becomes float32, and all else stays."""
    return x.astype(np.float32) if x is not None and x.dtype.name == "bfloat16" else x


def wide_dtype(x) -> np.dtype:
    """The dtype of `wide(x)`, which what mixed precision never rounds has from the beginning."""
    return np.dtype(np.float32) if x.dtype.name == "bfloat16" else x.dtype


def lies_transposed(x) -> bool:
    """Whether the matrix x is, in memory, the transpose of a contiguous one; not so for None."""
    return x is not None and x.T.flags.c_contiguous and not x.flags.c_contiguous


def erf(x):
    """erf(x) = 2/sqrt(pi) * integral of exp(-t^2) from 0 to x, by elements. NumPy itself has none."""
    if isinstance(x, np.ndarray):
        values = map(math.erf, x.ravel().tolist())
        return np.fromiter(values, x.dtype, x.size).reshape(x.shape)
    from cupyx.scipy.special import erf as cupy_erf

    return cupy_erf(x)


def check_indices(what: str, indices, count: int) -> None:
    """Raise IndexError unless 0 <= index < count: NumPy would wrap -1, compiled code read foreign memory. TypeError for
    what is no integer.

    Indices that are already on a GPU are not looked at, because to look is to wait for all that it has to do.
    Check them before they go there, and let no kernel read or write outside its arrays whatever they are.
    """
    if indices.dtype.kind not in "iu":
        raise TypeError(f"{what}: expected integers, not {indices.dtype}")
    if isinstance(indices, np.ndarray) and indices.size and (indices.min() < 0 or indices.max() >= count):
        wrong = indices[(indices < 0) | (indices >= count)][0]
        raise IndexError(f"{what} {int(wrong)} is out of range: it must be at least 0 and less than {count}")


def check_shape(operation: str, name: str, x, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless x, which the operation calls `name`, has this shape."""
    if x.shape != shape:
        raise ValueError(f"{operation}: {name} has shape {x.shape}, not {shape}")


def check_array(operation: str, name: str, x, shape: tuple[int, ...], dtype) -> None:
    """Raise ValueError unless x, which the operation calls `name`, has this shape, and TypeError for another dtype."""
    check_shape(operation, name, x, shape)
    check_same_dtype(operation, name, x, dtype)


def check_same_dtype(operation: str, name: str, x, dtype) -> None:
    """Raise TypeError unless x has this dtype: a kernel on a GPU would read the bytes of another as if they were."""
    if x.dtype != dtype:
        raise TypeError(f"{operation}: {name} is {x.dtype}, not {dtype}, as the other arrays want")


def check_segments(segments, rows: int) -> None:
    """Raise IndexError unless every (start, end) pair lies inside `rows` rows."""
    wrong = (segments[:, 0] < 0) | (segments[:, 0] > segments[:, 1]) | (segments[:, 1] > rows)
    if wrong.any():
        start, end = segments[wrong][0].tolist()
        raise IndexError(f"attention: there is no segment from row {start} to {end} in {rows} rows")
