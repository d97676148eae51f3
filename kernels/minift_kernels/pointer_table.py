"""Tables in a device's memory by which one launch reaches many arrays: where each is, and its chunks.

A launch takes a fixed number of arguments, and a model has hundreds of arrays. So the kernel is given two
tables: the arrays' addresses, and chunks of equal size, one for each block (`host.chunks_of`).
"""

from functools import lru_cache
from types import ModuleType

import numpy as np

from minift_kernels.arrays import array_namespace
from minift_kernels.host import check_dtype, chunks_of


def address_table(lists: list[list]):
    """(lists, arrays) of uint64: the addresses of contiguous float32 arrays, where the arrays are.

    It is made anew for each launch: gradients are new arrays in each step. Raises TypeError for another
    dtype: behind an address no launch sees what it points to.
    """
    for arrays in lists:
        for array in arrays:
            check_dtype(array, np.float32)
    table = np.array([[_address(array) for array in arrays] for arrays in lists], np.uint64)
    return array_namespace(lists[0][0]).asarray(table)


def chunk_table(arrays: list, size: int):
    """(chunks, 3) of int64: which array, where the chunk starts in it, how many elements; where they are."""
    return _chunk_table(array_namespace(arrays[0]), tuple(array.size for array in arrays), size)


@lru_cache(maxsize=16)
def _chunk_table(xp: ModuleType, sizes: tuple[int, ...], size: int):
    """Kept between launches: it depends on the sizes alone, and a model's do not change."""
    return xp.asarray(chunks_of(sizes, size))


def _address(array) -> int:
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr
