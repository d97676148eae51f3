"""Self-attention as all families share it: their projections differ, what is done with q, k and v does not."""

from collections.abc import Callable

import numpy as np
from minift_kernels.arrays import array_namespace

from minift import ops, random
from minift.history import Array
from minift.nn import Module, checked_dropout
from minift.tensor import Tensor


class SelfAttention(Module):
    """The base of each family's self-attention, which makes q, k and v and hands them to `attend`."""

    prefix: Callable[[], tuple[Tensor, Tensor]] | None = None
    """Gives key and value rows, (n, M D) each for M key heads, that stand in front of every text's own; set by
    prefix tuning (Li and Liang 2021)."""

    cache: "KeyValueCache | None" = None
    """Where the keys and values of earlier tokens are kept; set while text is generated."""

    def __init__(self, heads: int, dropout: float, causal: bool = False):
        self.heads = heads
        self.dropout = checked_dropout(dropout)
        self.causal = causal

    def attend(self, q: Tensor, k: Tensor, v: Tensor, q_segments: Array, k_segments: Array) -> Tensor:
        """What each query gathers, (T, H): q (T, H), k and v (T', M D), segments (B, 2) of the queries and the keys."""
        if self.prefix is not None and (self.cache is None or self.cache.empty):
            keys, values = self.prefix()
            k, v = ops.put_in_front(keys, k, k_segments), ops.put_in_front(values, v, k_segments)
            k_segments = segments_of(k_segments[:, 1] - k_segments[:, 0] + len(keys))
        if self.cache is not None:
            k, v, k_segments = self.cache.extend(k, v, k_segments)
        dropping = self.training and self.dropout > 0
        return ops.attention(
            q,
            k,
            v,
            q_segments,
            k_segments,
            heads=self.heads,
            causal=self.causal,
            dropout=self.dropout if dropping else 0.0,
            key=random.default_generator.next_key() if dropping else (0, 0),
        )


class KeyValueCache:
    """One layer's keys and values of B texts, with room to grow in place: a token's are computed once.

    Token i of text b stands in row b * room + i. It keeps values without their history, so nothing is trained
    through it.
    """

    def __init__(self, texts: int, room: int):
        self.first = np.arange(texts) * room  # (B,): where each text's rows begin
        self.lengths = np.zeros(texts, np.int64)  # (B,): how many of them are filled
        self.rows = texts * room
        self.keys: Array = None
        self.values: Array = None

    @property
    def empty(self) -> bool:
        """Whether no token has come yet."""
        return self.keys is None

    def extend(self, k: Tensor, v: Tensor, segments: Array) -> tuple[Tensor, Tensor, Array]:
        """All keys, values (B room, M D) and their segments (B, 2), once each text's new rows are added to its own."""
        xp = array_namespace(k.data)
        if self.keys is None:
            self.keys = xp.zeros((self.rows, k.shape[1]), k.dtype)
            self.values = xp.zeros((self.rows, k.shape[1]), k.dtype)
        for start, (begin, end) in zip(self.first + self.lengths, segments, strict=True):
            self.keys[start : start + end - begin] = k.data[begin:end]
            self.values[start : start + end - begin] = v.data[begin:end]
        self.lengths = self.lengths + segments[:, 1] - segments[:, 0]
        filled = np.stack([self.first, self.first + self.lengths], axis=1)
        return Tensor(self.keys), Tensor(self.values), filled


def segments_of(lengths: Array) -> Array:
    """The segments (B, 2) of texts of these lengths, one after the other."""
    ends = np.cumsum(lengths)
    return np.stack([ends - lengths, ends], axis=1)
