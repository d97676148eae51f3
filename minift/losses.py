"""Losses: one number that says how wrong the model was, and its gradient by what the model said."""

from collections.abc import Iterable, Sequence

import numpy as np
from minift_kernels import cross_entropy as cross_entropy_kernels
from minift_kernels.arrays import array_namespace, wide_dtype

from minift.device import as_numpy
from minift.errors import InputError
from minift.history import Array
from minift.tensor import Tensor

Label = int | str
"""A class by its index or by its name."""


def cross_entropy(
    logits: Tensor,
    targets: Label | Sequence[Label] | Array,
    *,
    class_weights: Array | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The mean over rows of -log softmax(logits)[target], as torch.nn.functional.cross_entropy computes it.

    logits (R, C); targets: R classes, or one, each an index or, for the logits of a classification head, a name.
    With `class_weights` (C,) each row weighs as much as its class and the mean is weighted. Rows whose target is
    `ignore_index` do not count. With `label_smoothing` e, the target is (1 - e) on its class plus e / C on every
    class (Szegedy et al. 2016, section 7).

    Raises InputError for a label that the model does not know, an index out of range, a number of targets that is
    not the number of rows, a smoothing outside 0 to 1, and when every row is ignored (the mean of nothing). Targets
    that are on a GPU are not looked at: there the mean of nothing is 0. TypeError for logits that are no Tensor.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(f"cross_entropy: logits are a Tensor, not {type(logits).__name__}")
    if logits.ndim != 2:
        raise InputError(f"cross_entropy: logits have shape {logits.shape}, expected rows and classes")
    if not 0 <= label_smoothing <= 1:
        raise InputError(f"cross_entropy: label_smoothing is {label_smoothing}, expected 0 to 1")
    rows, classes = logits.shape
    xp = array_namespace(logits.data)
    on_gpu = xp is not np and isinstance(targets, type(logits.data))
    # Targets that are on a GPU already are not looked at: that would have to wait for it.
    indices: Array = targets if on_gpu else label_indices(targets, logits.labels, classes, ignore_index)
    if indices.shape != (rows,):
        raise InputError(f"cross_entropy: {indices.size} targets for {rows} rows of logits")
    counted = indices != ignore_index
    dtype = wide_dtype(logits)  # of losses, and of what weighs them
    weights = None if class_weights is None else class_weights.astype(dtype)
    if on_gpu:
        weights = None if weights is None else xp.asarray(weights)
        total = (counted if weights is None else weights[xp.where(counted, indices, 0)] * counted).sum()
        total = total + (total == 0)  # where nothing counts, the sum of 0 by 1
    else:
        # What decides and divides is computed in NumPy: to ask a GPU for it would be to wait for it.
        total = counted.sum() if weights is None else as_numpy(weights)[indices[counted]].sum()
        if total == 0:
            raise InputError(f"cross_entropy: all {rows} targets are ignored, so there is nothing to average")
    total = total.astype(dtype)

    logits_data = logits.data
    weights = None if weights is None else xp.asarray(weights)
    options = (xp.asarray(indices), weights, ignore_index, label_smoothing)
    losses, logsumexp = cross_entropy_kernels.forward(logits_data, *options)  # (R,), (R,)

    def backward(dy):
        # d loss_r / d logit_rc = softmax(logits_r)_c - target_rc, each row weighted 1 / total in the mean
        dlosses = xp.full(rows, dy / total, dtype=dtype)
        return (cross_entropy_kernels.backward(dlosses, logits_data, logsumexp, *options),)

    return Tensor(losses.sum() / total, parents=(logits,), backward=backward)


def mse_loss(predictions: Tensor, targets: Array) -> Tensor:
    """The mean of (prediction - target)^2 over all elements; both of the same shape, else InputError."""
    xp = array_namespace(predictions.data)
    targets = xp.asarray(targets, dtype=predictions.dtype)
    if targets.shape != predictions.shape:
        raise InputError(
            f"mse_loss: predictions of shape {predictions.shape}, targets of shape {targets.shape}"
        )
    error = predictions.data - targets

    def backward(dy):
        return (dy * (2 / error.size) * error,)

    return Tensor((error * error).mean(), parents=(predictions,), backward=backward)


def binary_cross_entropy(logits: Tensor, targets: Array) -> Tensor:
    """The mean over all elements of -(y log p + (1 - y) log(1 - p)) with p = sigmoid(logit): torch's `..._with_logits`.

    logits and targets y (0 to 1) of the same shape, else InputError. Each element is a question of its own, answered
    with yes or no.
    """
    xp = array_namespace(logits.data)
    x, y = logits.data, xp.asarray(targets, dtype=logits.dtype)
    if y.shape != x.shape:
        raise InputError(f"binary_cross_entropy: logits of shape {x.shape}, targets of shape {y.shape}")
    # -log p = log(1 + e^-x) and -log(1 - p) = x + log(1 + e^-x); with |x| no exponential overflows.
    losses = xp.maximum(x, 0) - x * y + xp.log1p(xp.exp(-abs(x)))

    def backward(dy):
        # d loss / dx = p - y, each element weighted 1 / size in the mean
        return (dy * (1 / x.size) * (sigmoid(x) - y),)

    return Tensor(losses.mean(), parents=(logits,), backward=backward)


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), the probability behind a logit."""
    return 0.5 * (1 + array_namespace(x).tanh(0.5 * x))  # the same, and e^-x cannot overflow


def label_indices(
    targets: Label | Sequence[Label] | Array,
    labels: Sequence[str] | None,
    classes: int,
    ignore_index: int = -100,
) -> np.ndarray:
    """Each target as the index of its class, (R,) int64; names are looked up in `labels`.

    Raises InputError for a name without a class, and for an index outside 0 .. classes - 1.
    """
    if isinstance(targets, np.ndarray) and targets.dtype.kind in "iu":
        wrong = (targets != ignore_index) & ((targets < 0) | (targets >= classes))
        if wrong.any():
            raise InputError(
                f"there is no label {targets[wrong][0]}; the model's labels are 0 to {classes - 1}"
            )
        return targets.astype(np.int64, copy=False).reshape(-1)
    names = {name: index for index, name in enumerate(labels or ())}
    indices = []
    if isinstance(targets, str) or not isinstance(targets, Iterable):
        targets = [targets]
    for target in targets:
        if isinstance(target, str):
            if target not in names:
                known = ", ".join(names) or "not named: give its index"
                raise InputError(f"there is no label {target!r}; the model's labels are {known}")
            target = names[target]
        elif not isinstance(target, int | np.integer) or (
            target != ignore_index and not 0 <= target < classes
        ):
            raise InputError(f"there is no label {target}; the model's labels are 0 to {classes - 1}")
        indices.append(target)
    return np.array(indices, dtype=np.int64)
