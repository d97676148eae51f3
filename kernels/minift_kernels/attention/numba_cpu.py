"""Rung 2, compiled loops around small matrix products. A task is a text and a head; its queries are taken a block at a
time, so that a block's scores against all keys stay in the second-level cache: they are computed, exponentiated and
multiplied with v without going to memory, and no T x T matrix exists.

Tasks are ordered head by head, so that threads which each take a run of tasks get equal shares of long texts.
"""

import numpy as np

from minift_kernels.attention import reference
from minift_kernels.host import (
    HAS_SGEMM,
    NO_TRANSPOSE,
    ROW_MAJOR,
    TRANSPOSE,
    compiled,
    contiguous,
    inlined,
    prange,
    sgemm,
    single_threaded_blas,
)
from minift_kernels.math32 import exp
from minift_kernels.philox import drop_threshold, keep_scale, philox_words

_SCORES = 1 << 15
"""Scores of a block of queries against all keys, at most (but at least 8 queries): 128 kB, of 512 kB of cache."""


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
            _segments(q_segments),
            _segments(k_segments),
            np.float32(scale),
            causal,
            *_dropout_arguments(dropout, key),
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
            _segments(q_segments),
            _segments(k_segments),
            np.float32(scale),
            causal,
            *_dropout_arguments(dropout, key),
            dq,
            dk,
            dv,
        )
    return dq, dk, dv


def _segments(segments):
    return contiguous(segments.astype(np.int64, copy=False))


def _dropout_arguments(dropout, key):
    return drop_threshold(dropout), np.float32(keep_scale(dropout)), np.uint32(key[0]), np.uint32(key[1])


@compiled
def _forward(q, k, v, q_segments, k_segments, scale, causal, threshold, keep, key0, key1, out, logsumexp):
    heads, texts = len(logsumexp), len(q_segments)
    size = q.shape[1] // heads
    group = heads // (k.shape[1] // size)
    for task in prange(heads * texts):
        n, text = task // texts, task % texts
        q_start, q_end = q_segments[text]
        k_start, k_end = k_segments[text]
        keys = k_end - k_start
        k_n = _address(k, k_start, n // group * size)
        v_n = _address(v, k_start, n // group * size)
        block = max(8, _SCORES // max(1, keys))
        scores = np.empty((min(block, q_end - q_start), keys), np.float32)
        words = np.empty((keys + 3) // 4 * 4, np.uint32)
        for start in range(q_start, q_end if keys > 0 else q_start, block):
            rows = min(block, q_end - start)
            # scores = scale q k^T  (rows, keys)
            sgemm(
                ROW_MAJOR, NO_TRANSPOSE, TRANSPOSE, rows, keys, size, scale,
                _address(q, start, n * size), q.shape[1], k_n, k.shape[1],
                np.float32(0), scores.ctypes.data, keys,
            )  # fmt: skip
            for i in range(rows):
                t = start + i
                seen = min(keys, keys - (q_end - t) + 1) if causal else keys
                logsumexp[n, t] = _softmax(scores[i], seen)
                if threshold > 0:
                    philox_words(words, np.uint32(0), np.uint32(t), np.uint32(n), np.uint32(1), key0, key1)
                    for j in range(keys):
                        scores[i, j] *= keep if np.int64(words[j]) >= threshold else np.float32(0)
            # out = probabilities v  (rows, D)
            sgemm(
                ROW_MAJOR, NO_TRANSPOSE, NO_TRANSPOSE, rows, size, keys, np.float32(1),
                scores.ctypes.data, keys, v_n, v.shape[1],
                np.float32(0), _address(out, start, n * size), out.shape[1],
            )  # fmt: skip


@compiled
def _backward(
    dout,
    q,
    k,
    v,
    out,
    logsumexp,
    q_segments,
    k_segments,
    scale,
    causal,
    threshold,
    keep,
    key0,
    key1,
    dq,
    dk,
    dv,
):
    heads, texts = len(logsumexp), len(q_segments)
    size = q.shape[1] // heads
    key_heads = k.shape[1] // size
    group = heads // key_heads
    for task in prange(key_heads * texts):
        m, text = task // texts, task % texts
        q_start, q_end = q_segments[text]
        k_start, k_end = k_segments[text]
        keys = k_end - k_start
        k_m, v_m = _address(k, k_start, m * size), _address(v, k_start, m * size)
        dk_m, dv_m = _address(dk, k_start, m * size), _address(dv, k_start, m * size)
        block = max(8, _SCORES // max(1, keys))
        probabilities = np.empty((min(block, q_end - q_start), keys), np.float32)
        dscores = np.empty((min(block, q_end - q_start), keys), np.float32)
        words = np.empty((keys + 3) // 4 * 4, np.uint32)
        for n in range(m * group, (m + 1) * group):
            for start in range(q_start, q_end if keys > 0 else q_start, block):
                rows = min(block, q_end - start)
                q_n, dout_n = _address(q, start, n * size), _address(dout, start, n * size)
                # scores = scale q k^T and dprobabilities = dout v^T  (rows, keys)
                sgemm(
                    ROW_MAJOR, NO_TRANSPOSE, TRANSPOSE, rows, keys, size, scale,
                    q_n, q.shape[1], k_m, k.shape[1], np.float32(0), probabilities.ctypes.data, keys,
                )  # fmt: skip
                sgemm(
                    ROW_MAJOR, NO_TRANSPOSE, TRANSPOSE, rows, keys, size, np.float32(1),
                    dout_n, dout.shape[1], v_m, v.shape[1], np.float32(0), dscores.ctypes.data, keys,
                )  # fmt: skip
                for i in range(rows):
                    t = start + i
                    seen = min(keys, keys - (q_end - t) + 1) if causal else keys
                    # dscores = probabilities (dprobabilities - dout . out)
                    dot = np.float32(0)
                    for d in range(n * size, (n + 1) * size):
                        dot += dout[t, d] * out[t, d]
                    if threshold > 0:
                        philox_words(
                            words, np.uint32(0), np.uint32(t), np.uint32(n), np.uint32(1), key0, key1
                        )
                    for j in range(seen):
                        kept = np.float32(1)
                        if threshold > 0:
                            kept = keep if np.int64(words[j]) >= threshold else np.float32(0)
                        p = exp(probabilities[i, j] - logsumexp[n, t])
                        dscores[i, j] = p * (dscores[i, j] * kept - dot)
                        probabilities[i, j] = p * kept
                    for j in range(max(0, seen), keys):
                        dscores[i, j] = probabilities[i, j] = np.float32(0)
                # dv += probabilities^T dout, dk += scale dscores^T q  (keys, D)
                sgemm(
                    ROW_MAJOR, TRANSPOSE, NO_TRANSPOSE, keys, size, rows, np.float32(1),
                    probabilities.ctypes.data, keys, dout_n, dout.shape[1], np.float32(1), dv_m, dv.shape[1],
                )  # fmt: skip
                sgemm(
                    ROW_MAJOR, TRANSPOSE, NO_TRANSPOSE, keys, size, rows, scale,
                    dscores.ctypes.data, keys, q_n, q.shape[1], np.float32(1), dk_m, dk.shape[1],
                )  # fmt: skip
                # dq = scale dscores k  (rows, D)
                sgemm(
                    ROW_MAJOR, NO_TRANSPOSE, NO_TRANSPOSE, rows, size, keys, scale,
                    dscores.ctypes.data, keys, k_m, k.shape[1],
                    np.float32(0), _address(dq, start, n * size), dq.shape[1],
                )  # fmt: skip


@inlined
def _address(x, row, column):
    return x.ctypes.data + 4 * (row * x.shape[1] + column)


@inlined
def _softmax(row, seen):
    """Softmax of row[:seen] in place, 0 behind it; the log of the sum of exponentials, -inf where seen is none."""
    for j in range(max(0, seen), len(row)):
        row[j] = np.float32(0)
    result = np.float32(-np.inf)
    if seen > 0:
        largest = row[0]
        for j in range(1, seen):
            largest = max(largest, row[j])
        total = np.float32(0)
        for j in range(seen):
            row[j] = exp(row[j] - largest)
            total += row[j]
        for j in range(seen):
            row[j] *= np.float32(1) / total
        result = largest + np.log(total)
    return result
