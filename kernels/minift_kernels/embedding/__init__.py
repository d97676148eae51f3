"""Embedding: row ids[t] of a table for every token. Forward gathers, backward adds up where rows came from.

    reference       fancy indexing and add.at
    numba_cpu       rows of the table shared among the threads, no two write to one place
    numba_cuda      a block a token, and atomics where two add to one row, in Python
    cuda_c_atomic   the same in CUDA C, with 16-byte loads: last digits change from run to run
    cuda_c_sorted   tokens in the order of their ids, each row added up in one fixed order

On a GPU an id outside the table gives a row of NaN: to raise an error there would mean to wait for the device.

Shapes: T tokens, V rows in the table, H columns.
"""

from minift_kernels.arrays import check_shape
from minift_kernels.embedding import cuda_c, numba_cpu, numba_cuda, reference
from minift_kernels.ladder import Ladder

ladder = Ladder(
    "embedding",
    {
        "reference": reference,
        "numba_cpu": numba_cpu,
        "numba_cuda": numba_cuda.atomic,
        "cuda_c_atomic": cuda_c.atomic,
        "cuda_c_sorted": cuda_c.sorted_,
    },
)


def forward(ids, table):
    """y (T, H) from ids (T,) of integers and table (V, H).

    Raises IndexError for an id outside the table (on a GPU: NaN).
    """
    return ladder.rung(table).forward(ids, table)


def backward(dy, ids, rows):
    """dtable (rows, H): row v is the sum of dy[t] over all t with ids[t] = v."""
    check_shape("embedding", "ids", ids, dy.shape[:1])
    return ladder.rung(dy).backward(dy, ids, rows)
