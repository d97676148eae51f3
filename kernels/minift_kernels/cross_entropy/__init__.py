"""Cross-entropy of a row of logits against its target class: minus the log-probability of the right answer.

    loss = (1 - s) w_y (logsumexp(z) - z_y) + s / C sum_c w_c (logsumexp(z) - z_c)

z are the logits, y the target, w the class weights (1 where none are given) and s the label smoothing
(Szegedy et al. 2016). These are the unreduced losses of
`torch.nn.functional.cross_entropy(reduction="none")`.

    reference           one array operation after another
    numba_cpu           no array of the size of the logits but their gradient
    numba_cuda_naive    one thread a row, in Python
    numba_cuda_shared   one block a row, whose threads meet in shared memory
    cuda_c_naive        one thread a row again, in CUDA C
    cuda_c_online       one block a row: maximum and sum in one loop, 16-byte loads, shuffles

Shapes: R rows, C classes. A row whose target is `ignore_index` has loss 0 and no gradient.

On a GPU a target that is no class gives NaN: to raise an error there would mean to wait for the device.
"""

from minift_kernels.arrays import check_array, check_shape, wide_dtype
from minift_kernels.cross_entropy import cuda_c, numba_cpu, numba_cuda, reference
from minift_kernels.ladder import Ladder

ladder = Ladder(
    "cross_entropy",
    {
        "reference": reference,
        "numba_cpu": numba_cpu,
        "numba_cuda_naive": numba_cuda.naive,
        "numba_cuda_shared": numba_cuda.shared,
        "cuda_c_naive": cuda_c.naive,
        "cuda_c_online": cuda_c.online,
    },
)


def forward(logits, targets, class_weights=None, ignore_index=-100, label_smoothing=0.0):
    """losses (R,) and logsumexp (R,) from logits (R, C), integers targets (R,), class_weights (C,) or None.

    Raises IndexError for a target that is neither a class nor `ignore_index` (on a GPU: NaN).
    """
    _check(logits, targets, class_weights)
    return ladder.rung(logits).forward(logits, targets, class_weights, ignore_index, label_smoothing)


def backward(dlosses, logits, logsumexp, targets, class_weights=None, ignore_index=-100, label_smoothing=0.0):
    """dlogits (R, C) from dlosses (R,) and what forward was given and gave."""
    _check(logits, targets, class_weights)
    check_array("cross_entropy", "dlosses", dlosses, logits.shape[:1], wide_dtype(logits))
    check_array("cross_entropy", "logsumexp", logsumexp, logits.shape[:1], wide_dtype(logits))
    return ladder.rung(logits).backward(
        dlosses, logits, logsumexp, targets, class_weights, ignore_index, label_smoothing
    )


def _check(logits, targets, class_weights):
    check_shape("cross_entropy", "targets", targets, logits.shape[:1])
    if class_weights is not None:
        check_array("cross_entropy", "class_weights", class_weights, logits.shape[1:], wide_dtype(logits))
