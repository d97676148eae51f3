"""Rung 1, the formula, one text and one head at a time: probabilities are written out, used and forgotten."""

from minift_kernels.arrays import array_namespace, check_segments, wide
from minift_kernels.philox import drop_threshold, keep_scale, philox


def forward(q, k, v, q_segments, k_segments, heads, scale, causal=False, dropout=0.0, key=(0, 0)):
    xp, dtype, q, k, v = array_namespace(q), q.dtype, wide(q), wide(k), wide(v)
    out = xp.zeros_like(q)
    logsumexp = xp.full((heads, q.shape[0]), -xp.inf, q.dtype)
    for n, rows, columns, keys, key_columns in _texts_and_heads(q, k, q_segments, k_segments, heads):
        scores = _scores(q[rows, columns], k[keys, key_columns], scale, causal)  # (queries, keys)
        largest = scores.max(axis=1, keepdims=True)
        unseeing = xp.isneginf(largest)  # queries that see no key (with causal, when there are fewer keys)
        weights = xp.exp(scores - xp.where(unseeing, 0, largest))
        total = xp.where(unseeing, 1, weights.sum(axis=1, keepdims=True))
        kept = _dropout(rows, n, keys, dropout, key, q)
        out[rows, columns] = (weights / total * kept) @ v[keys, key_columns]
        logsumexp[n, rows] = (largest + xp.log(total))[:, 0]
    return out.astype(dtype, copy=False), logsumexp


def backward(
    dout, q, k, v, out, logsumexp, q_segments, k_segments, heads, scale, causal=False, dropout=0.0, key=(0, 0)
):
    xp, dtype = array_namespace(q), q.dtype
    dout, q, k, v, out = wide(dout), wide(q), wide(k), wide(v), wide(out)
    dq, dk, dv = xp.zeros_like(q), xp.zeros_like(k), xp.zeros_like(v)
    for n, rows, columns, keys, key_columns in _texts_and_heads(q, k, q_segments, k_segments, heads):
        q_n, k_n, v_n = q[rows, columns], k[keys, key_columns], v[keys, key_columns]
        dout_n = dout[rows, columns]
        scores = _scores(q_n, k_n, scale, causal)
        log_total = logsumexp[n, rows][:, None]  # (queries, 1)
        # In the forward pass these were exp(scores) / sum(exp(scores)).
        probabilities = xp.exp(scores - xp.where(xp.isneginf(log_total), 0, log_total))
        kept = _dropout(rows, n, keys, dropout, key, q)
        # out = (probabilities * kept) v
        dv[keys, key_columns] += (probabilities * kept).T @ dout_n
        dprobabilities = (dout_n @ v_n.T) * kept
        # softmax: ds_j = p_j (dp_j - sum_i p_i dp_i), and that sum is dout . out (Dao 2023, equation 4)
        dot = (dout_n * out[rows, columns]).sum(axis=1, keepdims=True)
        dscores = probabilities * (dprobabilities - dot)
        # scores = scale q k^T
        dq[rows, columns] += scale * (dscores @ k_n)
        dk[keys, key_columns] += scale * (dscores.T @ q_n)
    return tuple(gradient.astype(dtype, copy=False) for gradient in (dq, dk, dv))


def _texts_and_heads(q, k, q_segments, k_segments, heads):
    """For each text and head: the head's number, and where its queries and its keys stand (rows, columns)."""
    check_segments(q_segments, len(q))
    check_segments(k_segments, len(k))
    size = q.shape[1] // heads
    queries_per_key_head = heads // (k.shape[1] // size)
    for (q_start, q_end), (k_start, k_end) in zip(q_segments.tolist(), k_segments.tolist(), strict=True):
        if q_start == q_end or k_start == k_end:
            continue
        for n in range(heads):
            m = n // queries_per_key_head  # several query heads may share a key head
            yield (
                n,
                slice(q_start, q_end),
                slice(n * size, (n + 1) * size),
                slice(k_start, k_end),
                slice(m * size, (m + 1) * size),
            )


def _scores(q, k, scale, causal):
    """scale q k^T, -inf where a query may not look: causal lets query i see len(k) - len(q) + i + 1 keys."""
    xp = array_namespace(q)
    scores = scale * (q @ k.T)
    if causal:
        last = len(k) - len(q) + xp.arange(len(q))
        scores = xp.where(xp.arange(len(k))[None, :] <= last[:, None], scores, -xp.inf)
    return scores.astype(q.dtype, copy=False)


def _dropout(rows, n, keys, dropout, key, q):
    """What each probability is multiplied by, (queries, keys): 0 if dropped, 1 / (1 - dropout) if kept."""
    xp = array_namespace(q)
    threshold = drop_threshold(dropout)
    if threshold == 0:
        return q.dtype.type(1)
    t = xp.arange(rows.start, rows.stop)[:, None]
    j = xp.arange(keys.stop - keys.start)[None, :]
    words = philox((j // 4, t, xp.full((1, 1), n), xp.ones((1, 1))), key)  # four of (queries, keys)
    first, second = xp.where(j % 2, words[1], words[0]), xp.where(j % 2, words[3], words[2])
    word = xp.where(j % 4 < 2, first, second)
    return xp.where(word >= threshold, keep_scale(dropout), 0).astype(q.dtype)
