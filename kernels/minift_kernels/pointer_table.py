"""Tables by which one launch reaches many arrays, on a GPU or in a compiled loop: where each is, and its chunks.

A launch takes a fixed number of arguments, and a model has hundreds of arrays. So the kernel is given two
tables: the arrays' addresses, and chunks of equal size, one for each block.
"""

from functools import lru_cache
from types import ModuleType

import numpy as np

from minift_kernels.arrays import array_namespace
from minift_kernels.host import address, check_dtype


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
    """(chunks, 3) of int64: which array, where the chunk starts in it, how many elements; where the arrays are.

    It is not to be written to: the next launch on arrays of these sizes gets the same one.
    """
    return _chunk_table(array_namespace(arrays[0]), tuple(array.size for array in arrays), size)


@lru_cache(maxsize=16)
def _chunk_table(xp: ModuleType, sizes: tuple[int, ...], size: int):
    """Kept between launches: it depends on the sizes alone, and a model's do not change."""
    chunks = [
        (number, start, min(size, elements - start))
        for number, elements in enumerate(sizes)
        for start in range(0, elements, size)
    ]
    return xp.asarray(np.array(chunks, np.int64).reshape(-1, 3))


def _address(array) -> int:
    return address(array) if isinstance(array, np.ndarray) else array.data.ptr
