"""Rung 1, the formula, one array operation after another."""

from minift_kernels.arrays import array_namespace


def step(
    parameters,
    gradients,
    first_moments,
    second_moments,
    *,
    lr,
    beta1,
    beta2,
    eps,
    weight_decay,
    step,
    gradient_scale=1.0,
):
    for w, g, m, v in zip(parameters, gradients, first_moments, second_moments, strict=True):
        xp = array_namespace(w)
        g = gradient_scale * g
        m += (1 - beta1) * (g - m)
        v += (1 - beta2) * (g * g - v)
        # Both moments start at 0 and lean towards it; dividing by 1 - beta^step straightens them.
        unbiased_m = m / (1 - beta1**step)
        unbiased_v = v / (1 - beta2**step)
        w -= lr * weight_decay * w
        w -= lr * unbiased_m / (xp.sqrt(unbiased_v) + eps)
