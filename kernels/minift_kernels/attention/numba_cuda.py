"""Rungs 3 and 4, the first versions for a GPU, in Python: a kernel is what one thread does.

`Naive` is the formula, a kernel for each step, as materialised.cu has it. `Shared` forms the scores, which are most of
the work, from tiles in shared memory. Either writes out matrices of (N, T, L): a row for every query of every head, a
column for each key of its text, of which the longest has L.
"""

import math
from typing import Any

import numpy as np

from minift_kernels import gpu
from minift_kernels.arrays import array_namespace, check_segments
from minift_kernels.numba_device import philox_of
from minift_kernels.philox import keep_scale, word_threshold

cuda: Any = None  # is numba.cuda from the first launch on, see gpu.py

TILE = 8
"""A block has TILE x TILE threads, along the keys (or columns) and the rows. The heads are the grid's third axis."""


class Naive:
    """Rung 3, the formula, a kernel a step and a thread an element, in Python."""

    def products_of_rows(self, a, b, text_of_row, segments, products):
        """products (N, T, L): row t of a, of each head, times the rows of b in its text."""
        _products_of_rows.launch(_grid(products), (TILE, TILE), (a, b, text_of_row, segments, products))

    def forward(self, q, k, v, q_segments, k_segments, heads, scale, causal=False, dropout=0.0, key=(0, 0)):
        xp = array_namespace(q)
        out, logsumexp = xp.empty(q.shape, np.float32), xp.empty((heads, len(q)), np.float32)
        q_segments, k_segments = _checked(xp, q_segments, len(q)), _checked(xp, k_segments, len(k))
        text_of_query = _texts_of_rows(xp, q_segments, len(q))
        scores = xp.empty((heads, len(q), _most(k_segments)), np.float32)  # which become probabilities
        self.products_of_rows(q, k, text_of_query, k_segments, scores)
        rows = (-(-len(q) // TILE), heads)
        arguments = (scores, logsumexp, text_of_query, q_segments, k_segments, np.float32(scale), causal)
        _softmax.launch(rows, (TILE, 1), arguments)
        _drop(xp, scores, dropout, key)
        arguments = (scores, v, text_of_query, k_segments, np.float32(1), out)
        _weighted_rows.launch(_grid(out[None]), (TILE, TILE), arguments)
        return out, logsumexp

    def backward(
        self, dout, q, k, v, out, logsumexp, q_segments, k_segments, heads, scale,
        causal=False, dropout=0.0, key=(0, 0),
    ):  # fmt: skip
        xp = array_namespace(q)
        dq, dk, dv = (xp.empty(x.shape, np.float32) for x in (q, k, v))
        q_segments, k_segments = _checked(xp, q_segments, len(q)), _checked(xp, k_segments, len(k))
        text_of_query = _texts_of_rows(xp, q_segments, len(q))
        text_of_key = _texts_of_rows(xp, k_segments, len(k))
        probabilities = xp.empty((heads, len(q), _most(k_segments)), np.float32)
        dscores = xp.empty(probabilities.shape, np.float32)
        self.products_of_rows(q, k, text_of_query, k_segments, probabilities)
        # out = dropped probabilities v
        self.products_of_rows(dout, v, text_of_query, k_segments, dscores)
        _drop(xp, dscores, dropout, key)
        arguments = (probabilities, dscores, dout, out, logsumexp, text_of_query, q_segments, k_segments,
                     np.float32(scale), causal)  # fmt: skip
        _softmax_backward.launch(_grid(dscores), (TILE, TILE), arguments)
        _drop(xp, probabilities, dropout, key)
        # scores = scale q k^T
        arguments = (dscores, k, text_of_query, k_segments, np.float32(scale), dq)
        _weighted_rows.launch(_grid(dq[None]), (TILE, TILE), arguments)
        for weights, x, factor, gradient in ((dscores, q, scale, dk), (probabilities, dout, 1, dv)):
            arguments = (weights, x, text_of_key, q_segments, k_segments, np.float32(factor), gradient)
            _weighted_queries.launch(_grid(gradient[None]), (TILE, TILE), arguments)
        return dq, dk, dv


class Shared(Naive):
    """Rung 4, the same, with the products of rows (scores, and their gradients) from tiles in shared memory."""

    def products_of_rows(self, a, b, text_of_row, segments, products):
        arguments = (a, b, text_of_row, segments, products)
        _products_of_rows_shared.launch(_grid(products), (TILE, TILE), arguments)


naive, shared = Naive(), Shared()


def _grid(result):
    """A thread for each element of (N, T, L)."""
    heads, rows, columns = result.shape
    return -(-columns // TILE), -(-rows // TILE), heads


def _checked(xp, segments, rows):
    check_segments(segments, rows)
    return xp.asarray(segments, np.int64)


def _most(segments):
    """How many rows the longest text has."""
    return int((segments[:, 1] - segments[:, 0]).max()) if len(segments) else 0


def _texts_of_rows(xp, segments, rows):
    """(rows,): the text that each row belongs to, -1 if none."""
    text_of_row = xp.empty(rows, np.int32)
    _find_texts.launch((-(-rows // 32),), (32,), (segments, text_of_row))
    return text_of_row


def _drop(xp, probabilities, dropout, key):
    """Multiply by 0 what is dropped and by 1 / (1 - dropout) what is kept, in place."""
    threshold, scale = word_threshold(dropout), np.float32(keep_scale(dropout))
    if threshold:
        heads, rows, columns = probabilities.shape
        grid = -(-columns // (4 * TILE)), -(-rows // TILE), heads
        seed, call = key
        arguments = (probabilities, threshold, scale, np.uint64(seed), np.uint64(call))
        _dropout.launch(grid, (TILE, TILE), arguments)


@gpu.numba_kernel
def _find_texts(segments, text_of_row):
    row = cuda.grid(1)
    if row < len(text_of_row):
        text_of_row[row] = -1
        for text in range(len(segments)):
            if segments[text, 0] <= row and row < segments[text, 1]:
                text_of_row[row] = text


@gpu.numba_kernel
def _products_of_rows(a, b, text_of_row, segments, products):
    j, t, n = cuda.grid(3)
    if t < len(a) and j < products.shape[2]:
        text = text_of_row[t]
        if text >= 0 and j < segments[text, 1] - segments[text, 0]:
            size = a.shape[1] // products.shape[0]
            m = n // (products.shape[0] // (b.shape[1] // size))  # query heads may share a key head
            row = segments[text, 0] + j
            total = np.float32(0)
            for d in range(size):
                total += a[t, n * size + d] * b[row, m * size + d]
            products[n, t, j] = total


@gpu.numba_kernel
def _products_of_rows_shared(a, b, text_of_row, segments, products):
    """The block's TILE rows of a, and TILE rows of b. Rows of different texts need different rows of b: then the tile
    of b is that of the first row's text, and rows of other texts read b where it is."""
    tile_a = cuda.shared.array((TILE, TILE), np.float32)
    tile_b = cuda.shared.array((TILE, TILE), np.float32)
    j, t, n = cuda.grid(3)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    size = a.shape[1] // products.shape[0]
    m = n // (products.shape[0] // (b.shape[1] // size))
    shared_text = text_of_row[t - ty]
    text, keys, row, shared_row = -1, 0, 0, 0
    if t < len(a):
        text = text_of_row[t]
    if text >= 0:
        keys = segments[text, 1] - segments[text, 0]
        row = segments[text, 0] + j
    if shared_text >= 0:
        shared_row = segments[shared_text, 0] + j - tx + ty
    total = np.float32(0)
    for first in range(0, size, TILE):
        tile_a[ty, tx] = np.float32(0)
        tile_b[ty, tx] = np.float32(0)
        if first + tx < size:
            if t < len(a):
                tile_a[ty, tx] = a[t, n * size + first + tx]
            if shared_row < len(b):
                tile_b[ty, tx] = b[shared_row, m * size + first + tx]
        cuda.syncthreads()  # the tiles are complete
        if text >= 0 and j < keys:
            for d in range(min(TILE, size - first)):
                if text == shared_text:
                    total += tile_a[ty, d] * tile_b[tx, d]
                else:
                    total += tile_a[ty, d] * b[row, m * size + first + d]
        cuda.syncthreads()  # everybody has read them
    if text >= 0 and j < keys and j < products.shape[2]:
        products[n, t, j] = total


@gpu.numba_kernel
def _softmax(scores, logsumexp, text_of_query, q_segments, k_segments, scale, causal):
    """Products become probabilities, in place: one thread a row. What a query does not see becomes 0."""
    t, n = cuda.grid(2)
    if t < len(text_of_query):
        text, seen = text_of_query[t], 0
        if text >= 0:
            seen = k_segments[text, 1] - k_segments[text, 0]
            if causal:  # the ends are aligned
                seen += t - q_segments[text, 1] + 1
        largest, total = np.float32(-np.inf), np.float32(0)
        for j in range(seen):
            largest = max(largest, scale * scores[n, t, j])
        for j in range(seen):
            total += math.exp(scale * scores[n, t, j] - largest)
        for j in range(scores.shape[2]):
            if j < seen:
                scores[n, t, j] = math.exp(scale * scores[n, t, j] - largest) / total
            else:
                scores[n, t, j] = np.float32(0)
        logsumexp[n, t] = np.float32(-np.inf)
        if seen > 0:
            logsumexp[n, t] = largest + math.log(total)


@gpu.numba_kernel
def _softmax_backward(
    probabilities, dscores, dout, out, logsumexp, text_of_query, q_segments, k_segments, scale, causal
):
    """Products become probabilities, and dprobabilities dscores, both in place."""
    j, t, n = cuda.grid(3)
    if t < len(text_of_query) and j < dscores.shape[2]:
        text, seen = text_of_query[t], 0
        if text >= 0:
            seen = k_segments[text, 1] - k_segments[text, 0]
            if causal:
                seen += t - q_segments[text, 1] + 1
        probability, dscore = np.float32(0), np.float32(0)
        if j < seen:
            size = dout.shape[1] // dscores.shape[0]
            dot = np.float32(0)
            for d in range(n * size, (n + 1) * size):
                dot += dout[t, d] * out[t, d]
            probability = math.exp(scale * probabilities[n, t, j] - logsumexp[n, t])
            # softmax: ds_j = p_j (dp_j - sum_i p_i dp_i), and that sum is dout . out (Dao 2023, equation 4)
            dscore = probability * (dscores[n, t, j] - dot)
        probabilities[n, t, j] = probability
        dscores[n, t, j] = dscore


@gpu.numba_kernel
def _dropout(probabilities, threshold, scale, key0, key1):
    """A thread for four keys of a row, which share one Philox."""
    block, t, n = cuda.grid(3)
    if t < probabilities.shape[1] and 4 * block < probabilities.shape[2]:
        words = philox_of(np.uint64(block), np.uint64(t), np.uint64(n), np.uint64(1), key0, key1)
        for i in range(4):
            if 4 * block + i < probabilities.shape[2]:
                if words[i] >= threshold:
                    probabilities[n, t, 4 * block + i] *= scale
                else:
                    probabilities[n, t, 4 * block + i] = np.float32(0)


@gpu.numba_kernel
def _weighted_rows(weights, x, text_of_row, segments, factor, result):
    """result (T, N D): row t is factor times the sum of its text's rows of x, each with its weight."""
    column, t = cuda.grid(2)
    if t < result.shape[0] and column < result.shape[1]:
        text, total = text_of_row[t], np.float32(0)
        if text >= 0:
            size = result.shape[1] // weights.shape[0]
            n = column // size
            m = n // (weights.shape[0] // (x.shape[1] // size))
            for j in range(segments[text, 1] - segments[text, 0]):
                total += weights[n, t, j] * x[segments[text, 0] + j, m * size + column % size]
        result[t, column] = factor * total


@gpu.numba_kernel
def _weighted_queries(weights, x, text_of_key, q_segments, k_segments, factor, result):
    """result (Tk, M D): of each key, factor times the sum of all queries of its text, in all heads that share it."""
    column, row = cuda.grid(2)
    if row < result.shape[0] and column < result.shape[1]:
        text, total = text_of_key[row], np.float32(0)
        if text >= 0:
            size = x.shape[1] // weights.shape[0]
            group = weights.shape[0] // (result.shape[1] // size)
            m, j = column // size, row - k_segments[text, 0]
            for n in range(m * group, (m + 1) * group):
                for t in range(q_segments[text, 0], q_segments[text, 1]):
                    total += weights[n, t, j] * x[t, n * size + column % size]
        result[row, column] = factor * total
