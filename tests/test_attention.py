"""What self-attention adds to the operation: rows in front of each text's own, and a cache that grows."""

import numpy as np
import pytest
from gradcheck import check_gradients

from minift import ops
from minift.models.attention import KeyValueCache, SelfAttention, segments_of
from minift.tensor import Tensor

random = np.random.default_rng(0)
LENGTHS = np.array([3, 1, 4])
SEGMENTS = segments_of(LENGTHS)
HEADS, SIZE = 4, 2


def qkv(rows: int) -> list[Tensor]:
    """Two query heads share a key head."""
    widths = (HEADS * SIZE, HEADS * SIZE // 2, HEADS * SIZE // 2)
    return [Tensor(random.standard_normal((rows, width))) for width in widths]


def test_rows_in_front_of_each_text():
    rows, x = Tensor(-np.arange(1.0, 3.0)[:, None]), Tensor(np.arange(8.0)[:, None])
    y = ops.put_in_front(rows, x, SEGMENTS).data[:, 0]
    assert y.tolist() == [-1, -2, 0, 1, 2, -1, -2, 3, -1, -2, 4, 5, 6, 7]
    check_gradients(
        lambda rows, x: ops.put_in_front(rows, x, np.array([[0, 3], [5, 7]])),
        random.standard_normal((2, 3)),
        random.standard_normal((7, 3)),
    )


@pytest.mark.parametrize("causal", [False, True])
def test_a_prefix_is_seen_by_every_token_of_every_text(causal):
    attention = SelfAttention(HEADS, 0.0, causal)
    q, k, v = qkv(8)
    _, prefix_k, prefix_v = qkv(2)
    attention.prefix = lambda: (prefix_k, prefix_v)
    found = attention.attend(q, k, v, SEGMENTS, SEGMENTS).data
    for start, end in SEGMENTS:
        longer_k = ops.concatenate([prefix_k, k[start:end]])
        longer_v = ops.concatenate([prefix_v, v[start:end]])
        alone = ops.attention(
            q[start:end],
            longer_k,
            longer_v,
            np.array([[0, end - start]]),
            np.array([[0, end - start + 2]]),
            heads=HEADS,
            causal=causal,
        )
        np.testing.assert_allclose(found[start:end], alone.data, rtol=1e-12)


@pytest.mark.parametrize("with_prefix", [False, True])
def test_token_by_token_with_a_cache_is_the_same_as_all_at_once(with_prefix):
    attention = SelfAttention(HEADS, 0.0, causal=True)
    q, k, v = qkv(8)
    _, prefix_k, prefix_v = qkv(2)
    if with_prefix:
        attention.prefix = lambda: (prefix_k, prefix_v)
    whole = attention.attend(q, k, v, SEGMENTS, SEGMENTS).data

    attention.cache = KeyValueCache(len(LENGTHS), room=9)
    assert attention.cache.empty
    parts = np.zeros_like(whole)
    taken = np.zeros(len(LENGTHS), int)
    for wanted in ([2, 1, 1], [1, 0, 0], [0, 0, 3]):
        rows = np.concatenate(
            [
                np.arange(start + past, start + past + new)
                for (start, _), past, new in zip(SEGMENTS, taken, wanted, strict=True)
            ]
        )
        segments = segments_of(np.array(wanted))
        parts[rows] = attention.attend(q[rows], k[rows], v[rows], segments, segments).data
        taken += wanted
    np.testing.assert_allclose(parts, whole, rtol=1e-12)
    assert attention.cache.lengths.tolist() == (LENGTHS + 2 * with_prefix).tolist()
