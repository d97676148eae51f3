"""Embedding: row ids[t] of a table for every token. Forward gathers, backward adds up where rows came from.

    reference   fancy indexing and add.at
    numba_cpu   columns shared among the threads, no two write to one place

Shapes: T tokens, V rows in the table, H columns.
"""

from minift_kernels.arrays import check_shape
from minift_kernels.embedding import numba_cpu, reference
from minift_kernels.ladder import Ladder

ladder = Ladder("embedding", {"reference": reference, "numba_cpu": numba_cpu})


def forward(ids, table):
    """y (T, H) from ids (T,) of integers and table (V, H). Raises IndexError for an id outside the table."""
    return ladder.rung(table).forward(ids, table)


def backward(dy, ids, rows):
    """dtable (rows, H): row v is the sum of dy[t] over all t with ids[t] = v."""
    check_shape("embedding", "ids", ids, dy.shape[:1])
    return ladder.rung(dy).backward(dy, ids, rows)
