"""Attention inside each text of a packed batch: out = dropout(softmax(scale q k^T)) v, for each head.

    reference                  the formula, one text and one head at a time
    numba_cpu                  blocks of queries whose scores stay in cache, on all cores
    numba_cuda_naive           the formula, a kernel a step, in Python
    numba_cuda_shared          the same, with the scores from tiles in shared memory
    cuda_c_materialised        a kernel for each step of the formula, the scores written out
    cuda_c_flash               a tile of scores at a time, and a softmax that is taken step by step
    cuda_c_flash_tensor_core   the same in matrix instructions of bfloat16 or tf32

Axes: T query rows, Tk key rows, B texts, N query heads, M key heads (M divides N: grouped-query attention,
Ainslie et al. 2023; M = N is the usual kind), D head size. A head's columns stand side by side: head n is
columns n D to (n + 1) D. M is inferred from the shapes.

Texts are given as segments, (start, end) pairs of rows, for the queries and for the keys. They may differ in
length (a cache holds more keys than there are new queries) and leave gaps. A query in no segment has zero
output and no gradient, a key in no segment gets none. Causal aligns the ends: query i of n sees keys up to
len(keys) - n + i. A query that sees no key has zero output.

No rung keeps a T x T matrix from forward to backward. Forward returns the log of each row's sum of
exponentials, from which backward recomputes the probabilities (Dao et al. 2022 and 2023, FlashAttention and
FlashAttention-2).

The dropout mask of (query row t, head n, key j of its segment) is word j % 4 of Philox with the counter
(j // 4, t, n, 1), see `philox.py`; it is kept where the word is at least round(dropout 2^32).
"""

from minift_kernels.arrays import check_array, check_same_dtype, wide_dtype
from minift_kernels.attention import cuda_c, numba_cpu, numba_cuda, reference
from minift_kernels.ladder import Ladder

ladder = Ladder(
    "attention",
    {
        "reference": reference,
        "numba_cpu": numba_cpu,
        "numba_cuda_naive": numba_cuda.naive,
        "numba_cuda_shared": numba_cuda.shared,
        "cuda_c_materialised": cuda_c.materialised,
        "cuda_c_flash": cuda_c.flash,
        "cuda_c_flash_tensor_core": cuda_c.flash_tensor_core,
    },
)


def forward(q, k, v, q_segments, k_segments, heads, scale, causal=False, dropout=0.0, key=(0, 0)):
    """out (T, N D) and logsumexp (N, T) from q (T, N D), k and v (Tk, M D), segments (B, 2) of integers.

    `key` is two uint32, which choose the dropout mask, or what `philox.mask_arguments` says of CUDA graphs. Rows that
    see no key have out 0 and logsumexp -inf. Query segments must not overlap, nor key segments. Raises ValueError
    where shapes do not fit, TypeError for a mix of dtypes, IndexError for a segment beyond the rows.
    """
    _check(q, k, v, q_segments, k_segments, heads)
    return ladder.rung(q).forward(q, k, v, q_segments, k_segments, heads, scale, causal, dropout, key)


def backward(
    dout, q, k, v, out, logsumexp, q_segments, k_segments, heads, scale, causal=False, dropout=0.0, key=(0, 0)
):
    """dq (T, N D), dk and dv (Tk, M D) from dout (T, N D), forward's inputs and forward's results."""
    _check(q, k, v, q_segments, k_segments, heads)
    check_array("attention", "dout", dout, q.shape, q.dtype)
    check_array("attention", "out", out, q.shape, q.dtype)
    check_array("attention", "logsumexp", logsumexp, (heads, len(q)), wide_dtype(q))
    return ladder.rung(q).backward(
        dout, q, k, v, out, logsumexp, q_segments, k_segments, heads, scale, causal, dropout, key
    )


def _check(q, k, v, q_segments, k_segments, heads):
    size = q.shape[1] // heads if heads > 0 else 0
    key_heads = k.shape[1] // size if size else 0
    if not key_heads or heads * size != q.shape[1] or key_heads * size != k.shape[1] or heads % key_heads:
        raise ValueError(f"attention: {heads} heads do not fit q {q.shape} and k {k.shape}")
    if k.shape != v.shape:
        raise ValueError(f"attention: k {k.shape} and v {v.shape} must have one shape")
    for name, x in (("k", k), ("v", v)):
        check_same_dtype("attention", name, x, q.dtype)
    if q_segments.shape != k_segments.shape:
        raise ValueError(
            f"attention: {len(q_segments)} query segments cannot meet {len(k_segments)} key segments"
        )
