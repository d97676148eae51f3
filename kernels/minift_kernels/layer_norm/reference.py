"""Rung 1, the formula. The variance is a mean of squared deviations; E[x^2] - E[x]^2 would cancel badly."""

from minift_kernels.arrays import array_namespace, wide


def forward(x, residual, weight, bias, eps):
    xp, dtype, x, residual = array_namespace(x), x.dtype, wide(x), wide(residual)
    if residual is not None:
        x = x + residual
    centered = x - x.mean(axis=1, keepdims=True)  # (T, H)
    variance = (centered * centered).mean(axis=1, keepdims=True)  # (T, 1)
    rstd = 1 / xp.sqrt(variance + x.dtype.type(eps))
    normalized = centered * rstd  # (T, H)
    y = normalized * weight + bias
    return y.astype(dtype, copy=False), normalized.astype(dtype, copy=False), rstd[:, 0]


def backward(dy, normalized, rstd, weight):
    dtype, dy, normalized = dy.dtype, wide(dy), wide(normalized)
    # In the forward pass y was normalized * weight + bias ...
    dbias = dy.sum(axis=0)
    dweight = (dy * normalized).sum(axis=0)
    dnormalized = dy * weight
    # ... and normalized was (x - mean) rstd. Moving one x moves the row's mean and rstd too: two more terms.
    mean_term = dnormalized.mean(axis=1, keepdims=True)
    rstd_term = normalized * (dnormalized * normalized).mean(axis=1, keepdims=True)
    dx = (dnormalized - mean_term - rstd_term) * rstd[:, None]
    return dx.astype(dtype, copy=False), dweight, dbias
