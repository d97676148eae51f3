"""Rung 2, compiled loops around small matrix products. A task is a text and a head; its queries are taken a
block at a time, so that a block's scores against all keys stay in the second-level cache: they are computed,
exponentiated and multiplied with v without going to memory, and no T x T matrix exists.

Tasks are ordered head by head, so that threads which each take a run of tasks get equal shares of long texts.
"""

import numpy as np
from numba import prange

from minift_kernels.arrays import check_segments
from minift_kernels.attention import reference
from minift_kernels.host import HAS_SGEMM, compiled, contiguous, float32_array, inlined, single_threaded_blas
from minift_kernels.math32 import exp, largest
from minift_kernels.philox import drop, keep_scale, philox_words, word_threshold
from minift_kernels.tiles import PAYS, multiply_address, product

_SCORES = 1 << 15
"""Scores of a block of queries against all keys, at most (but at least 8 queries): 128 kB of cache."""


def forward(q, k, v, q_segments, k_segments, heads, scale, causal=False, dropout=0.0, key=(0, 0)):
    if not HAS_SGEMM:
        return reference.forward(q, k, v, q_segments, k_segments, heads, scale, causal, dropout, key)
    out = np.zeros(q.shape, np.float32)
    logsumexp = np.full((heads, len(q)), -np.inf, np.float32)
    with single_threaded_blas():
        _forward(
            contiguous(q),
            contiguous(k),
            contiguous(v),
            _segments(q_segments, len(q)),
            _segments(k_segments, len(k)),
            np.float32(scale),
            causal,
            _mask(dropout, key),
            multiply_address() if PAYS else 0,
            out,
            logsumexp,
        )
    return out, logsumexp


def backward(
    dout, q, k, v, out, logsumexp, q_segments, k_segments, heads, scale, causal=False, dropout=0.0, key=(0, 0)
):
    if not HAS_SGEMM:
        return reference.backward(
            dout, q, k, v, out, logsumexp, q_segments, k_segments, heads, scale, causal, dropout, key
        )
    dq, dk, dv = (np.zeros(x.shape, np.float32) for x in (q, k, v))
    with single_threaded_blas():
        _backward(
            contiguous(dout),
            contiguous(q),
            contiguous(k),
            contiguous(v),
            contiguous(out),
            contiguous(logsumexp),
            _segments(q_segments, len(q)),
            _segments(k_segments, len(k)),
            np.float32(scale),
            causal,
            _mask(dropout, key),
            multiply_address() if PAYS else 0,
            dq,
            dk,
            dv,
        )
    return dq, dk, dv


def _segments(segments, rows):
    check_segments(segments, rows)
    return contiguous(segments.astype(np.int64, copy=False), np.int64)


def _mask(dropout, key):
    """All that decides which probabilities are kept, and what these are multiplied by."""
    seed, call = key
    return word_threshold(dropout), np.float32(keep_scale(dropout)), np.uint32(seed), np.uint32(call)


@compiled
def _forward(q, k, v, q_segments, k_segments, scale, causal, mask, in_tiles, out, logsumexp):
    heads, texts = len(logsumexp), len(q_segments)
    for task in prange(heads * texts):
        n, text = task // texts, task % texts
        _forward_task(
            n, q_segments[text], k_segments[text], q, k, v, scale, causal, mask, in_tiles, out, logsumexp
        )


@inlined
def _forward_task(n, q_segment, k_segment, q, k, v, scale, causal, mask, in_tiles, out, logsumexp):
    """One text, one head."""
    heads = len(logsumexp)
    size = q.shape[1] // heads
    m = n // (heads // (k.shape[1] // size))
    logsumexp = logsumexp[n, q_segment[0] : q_segment[1]]  # (queries,)
    q, out = _head(q, q_segment, n, size), _head(out, q_segment, n, size)  # (queries, D)
    k, v = _head(k, k_segment, m, size), _head(v, k_segment, m, size)  # (keys, D)
    block, padded = _block(len(q), len(k), causal)
    score_buffer = np.empty((block, padded), np.float32)
    words = _words_for(padded)
    for start in range(0, len(q), block):
        end = min(start + block, len(q))
        columns = _seen(end - 1, q, k, causal)
        if columns > 0:
            scores = score_buffer[: end - start, :columns]
            product(in_tiles, scale, q[start:end], k[:columns].T, 0, scores)
            for i in range(start, end):
                row = score_buffer[i - start]
                logsumexp[i] = _softmax(row, _seen(i, q, k, causal))
                if mask[0] > 0:
                    _draw(words, q_segment[0] + i, n, mask)
                    drop(row, words, mask[0], mask[1])
            product(in_tiles, 1, scores, v[:columns], 0, out[start:end])


@compiled
def _backward(
    dout, q, k, v, out, logsumexp, q_segments, k_segments, scale, causal, mask, in_tiles, dq, dk, dv
):
    heads, texts = len(logsumexp), len(q_segments)
    key_heads = heads * k.shape[1] // q.shape[1]
    group = heads // key_heads
    # Query heads that share a key head add to the same dk and dv, so they are one task.
    for task in prange(key_heads * texts):
        m, text = task // texts, task % texts
        for n in range(m * group, (m + 1) * group):
            _backward_task(
                n, m, q_segments[text], k_segments[text],
                dout, q, k, v, out, logsumexp, scale, causal, mask, in_tiles, dq, dk, dv,
            )  # fmt: skip


@inlined
def _backward_task(
    n, m, q_segment, k_segment, dout, q, k, v, out, logsumexp, scale, causal, mask, in_tiles, dq, dk, dv
):
    """One text, one query head n and the key head m that it looks at."""
    size = q.shape[1] // len(logsumexp)
    logsumexp = logsumexp[n, q_segment[0] : q_segment[1]]
    q, dq = _head(q, q_segment, n, size), _head(dq, q_segment, n, size)
    out, dout = _head(out, q_segment, n, size), _head(dout, q_segment, n, size)
    k, v = _head(k, k_segment, m, size), _head(v, k_segment, m, size)
    dk, dv = _head(dk, k_segment, m, size), _head(dv, k_segment, m, size)
    block, padded = _block(len(q), len(k), causal)
    # What rows of the second hold behind `columns` may be anything: nobody reads it.
    probability_buffer = np.empty((block, padded), np.float32)
    dscore_buffer = np.empty((block, padded), np.float32)
    means = np.empty(len(q), np.float32)
    _mean_gradients(dout, out, means)
    words = _words_for(padded)
    for start in range(0, len(q), block):
        end = min(start + block, len(q))
        columns = _seen(end - 1, q, k, causal)
        if columns > 0:
            probabilities = probability_buffer[: end - start, :columns]
            dscores = dscore_buffer[: end - start, :columns]
            product(in_tiles, scale, q[start:end], k[:columns].T, 0, probabilities)
            product(in_tiles, 1, dout[start:end], v[:columns].T, 0, dscores)
            for i in range(start, end):
                p, ds = probability_buffer[i - start], dscore_buffer[i - start]
                _probabilities(p, logsumexp[i], _seen(i, q, k, causal))
                if mask[0] > 0:  # out was (p * kept) v, so dp is kept * (dout v^T)
                    _draw(words, q_segment[0] + i, n, mask)
                    drop(ds, words, mask[0], mask[1])
                _softmax_backward(ds, p, means[i])
                if mask[0] > 0:
                    drop(p, words, mask[0], mask[1])
            product(in_tiles, 1, probabilities.T, dout[start:end], 1, dv[:columns])
            product(in_tiles, scale, dscores.T, q[start:end], 1, dk[:columns])
            product(in_tiles, scale, dscores, k[:columns], 0, dq[start:end])


@inlined
def _head(x, segment, n, size):
    """The rows of one text and the columns of one head."""
    return x[segment[0] : segment[1], n * size : (n + 1) * size]


@inlined
def _row(x, i):
    """Row i of a head. Of a row of x[i] the compiler would not know that its numbers lie side by side."""
    return float32_array(x.ctypes.data + i * x.strides[0], x.shape[1])


@inlined
def _block(queries, keys, causal):
    """How many queries make a block, and a row length without a remainder that would not vectorise.

    All queries of a block are multiplied with the keys that its last one sees. Where the others see fewer, a
    large block computes much in vain, and a small one makes many small products."""
    padded = max(8, (keys + 7) // 8 * 8)
    block = max(8, _SCORES // padded)
    if causal:
        block = min(block, max(16, min(32, queries // 4)))
    return max(1, min(queries, block)), padded


@inlined
def _seen(i, q, k, causal):
    """How many keys query i sees."""
    return len(k) - len(q) + i + 1 if causal else len(k)


@inlined
def _softmax(row, seen):
    """Softmax of row[:seen] in place, 0 behind it; returns the log of the sum of exponentials."""
    if seen <= 0:
        row[:] = 0
        return np.float32(-np.inf)
    row[seen:] = row[0]
    shift = largest(row)
    _exponentials(row, shift, seen)
    total = np.float32(0)
    for j in range(len(row)):
        total += row[j]
    for j in range(len(row)):
        row[j] *= np.float32(1) / total
    return shift + np.log(total)


@inlined
def _probabilities(row, logsumexp, seen):
    """The same from the scores and forward's result."""
    if seen <= 0:
        row[:] = 0
        return
    row[seen:] = row[0]
    _exponentials(row, logsumexp, seen)


@inlined
def _exponentials(row, shift, seen):
    """exp(row - shift) in place, 0 from `seen` on, where a query sees no keys and the caller has put its first score.

    With -inf there the exponential would be 0 by itself. But on its way it passes through denormal numbers, and with
    such a row takes five times as long."""
    for j in range(len(row)):
        row[j] = exp(row[j] - shift)
    row[seen:] = 0


@inlined
def _mean_gradients(dout, out, means):
    """sum_j p_j dp_j of each query, which is dout . out (Dao 2023, equation 4).

    All queries at once: one by one, each would wait for its row of out, which lies in a slower cache.
    """
    for i in range(len(means)):
        dout_row, out_row = _row(dout, i), _row(out, i)
        total = np.float32(0)
        for d in range(len(out_row)):
            total += dout_row[d] * out_row[d]
        means[i] = total


@inlined
def _softmax_backward(ds, p, mean):
    """ds_j = p_j (dp_j - sum_i p_i dp_i) in place of dp."""
    for j in range(len(p)):
        ds[j] = p[j] * (ds[j] - mean)


@inlined
def _words_for(columns):
    """Room for a row's random words, 32 at a time: 8 counters of 4 words fill a vector, and a rest would not."""
    return np.empty((columns + 31) // 32 * 32, np.uint32)


@inlined
def _draw(words, t, n, mask):
    philox_words(words, np.uint32(0), np.uint32(t), np.uint32(n), np.uint32(1), mask[2], mask[3])
