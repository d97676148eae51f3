"""Rung 1, the formula. An ignored row is computed as if its target were 0, then multiplied by nothing."""

from minift_kernels.arrays import array_namespace, check_indices, wide


def forward(logits, targets, class_weights=None, ignore_index=-100, label_smoothing=0.0):
    xp, logits = array_namespace(logits), wide(logits)
    counted, targets, weights = _prepare(logits, targets, class_weights, ignore_index)
    largest = logits.max(axis=1, keepdims=True)
    logsumexp = largest + xp.log(xp.exp(logits - largest).sum(axis=1, keepdims=True))  # (R, 1)
    negative_log_p = logsumexp - logits  # (R, C)
    rows = xp.arange(len(logits))
    losses = (1 - label_smoothing) * weights[targets] * negative_log_p[rows, targets]
    if label_smoothing:  # otherwise 0 times an infinite term would be NaN
        losses = losses + label_smoothing / logits.shape[1] * (weights * negative_log_p).sum(axis=1)
    return xp.where(counted, losses, 0).astype(logits.dtype), logsumexp[:, 0]


def backward(dlosses, logits, logsumexp, targets, class_weights=None, ignore_index=-100, label_smoothing=0.0):
    xp, dtype, logits = array_namespace(logits), logits.dtype, wide(logits)
    counted, targets, weights = _prepare(logits, targets, class_weights, ignore_index)
    p = xp.exp(logits - logsumexp[:, None])  # (R, C)
    # losses = sum_c pull_c (logsumexp - logits_c): each pull lifts its own logit, and all of them weigh on p.
    smoothing = label_smoothing / logits.shape[1] * weights  # (C,)
    target_pull = (1 - label_smoothing) * weights[targets]  # (R,)
    dlogits = (target_pull + smoothing.sum())[:, None] * p - smoothing
    dlogits[xp.arange(len(logits)), targets] -= target_pull
    return xp.where(counted[:, None], dlosses[:, None] * dlogits, 0).astype(dtype)


def _prepare(logits, targets, class_weights, ignore_index):
    """Which rows count, a valid target for each row, and the weight of each class."""
    xp = array_namespace(logits)
    counted = targets != ignore_index
    targets = xp.where(counted, targets, 0)
    check_indices("target class", targets, logits.shape[1])
    weights = xp.ones(logits.shape[1], logits.dtype) if class_weights is None else class_weights
    return counted, targets, weights
