"""The global norm of all gradients, as if they were one long vector: sqrt(sum of all squares), for clipping.

    reference   squares in float64, array by array
    numba_cpu   one pass, one launch, all cores

(Pascanu, Mikolov and Bengio 2013, section 3.2.)
"""

from minift_kernels.grad_norm import numba_cpu, reference
from minift_kernels.ladder import Ladder

ladder = Ladder("grad_norm", {"reference": reference, "numba_cpu": numba_cpu})


def forward(gradients: list) -> float:
    """The norm of a list of arrays of any shapes; 0 for an empty list."""
    return ladder.rung(gradients[0]).forward(gradients) if gradients else 0.0
