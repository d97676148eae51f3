"""Cross-entropy of a row of logits against its target class: minus the log-probability of the right answer.

    loss = (1 - s) w_y (logsumexp(z) - z_y) + s / C sum_c w_c (logsumexp(z) - z_c)

z are the logits, y the target, w the class weights (1 where none are given) and s the label smoothing
(Szegedy et al. 2016). These are the unreduced losses of
`torch.nn.functional.cross_entropy(reduction="none")`.

    reference   one array operation after another
    numba_cpu   no array of the size of the logits but their gradient

Shapes: R rows, C classes. A row whose target is `ignore_index` has loss 0 and no gradient.
"""

from minift_kernels.arrays import check_shape
from minift_kernels.cross_entropy import numba_cpu, reference
from minift_kernels.ladder import Ladder

ladder = Ladder("cross_entropy", {"reference": reference, "numba_cpu": numba_cpu})


def forward(logits, targets, class_weights=None, ignore_index=-100, label_smoothing=0.0):
    """losses (R,) and logsumexp (R,) from logits (R, C), integers targets (R,), class_weights (C,) or None.

    Raises IndexError for a target that is neither a class nor `ignore_index`.
    """
    check_shape("cross_entropy", "targets", targets, logits.shape[:1])
    if class_weights is not None:
        check_shape("cross_entropy", "class_weights", class_weights, logits.shape[1:])
    return ladder.rung(logits).forward(logits, targets, class_weights, ignore_index, label_smoothing)


def backward(dlosses, logits, logsumexp, targets, class_weights=None, ignore_index=-100, label_smoothing=0.0):
    """dlogits (R, C) from dlosses (R,) and what forward was given and gave."""
    check_shape("cross_entropy", "dlosses", dlosses, logits.shape[:1])
    return ladder.rung(logits).backward(
        dlosses, logits, logsumexp, targets, class_weights, ignore_index, label_smoothing
    )
