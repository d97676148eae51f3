"""Embedding: row ids[t] of a table for every token. Forward gathers rows, backward adds them up where they came from.

    reference   fancy indexing and add.at

Shapes: T tokens, V rows in the table, H columns.
"""

from minift_kernels.embedding import reference
from minift_kernels.ladder import Ladder

ladder = Ladder("embedding", {"reference": reference})


def forward(ids, table):
    """y (T, H) from ids (T,) of integers and table (V, H). Raises IndexError for an id outside the table."""
    return ladder.rung(table).forward(ids, table)


def backward(dy, ids, rows):
    """dtable (rows, H): row v is the sum of dy[t] over all t with ids[t] = v."""
    return ladder.rung(dy).backward(dy, ids, rows)
