"""The global norm of all gradients, as if they were one long vector: sqrt(sum of all squares), for clipping.

    reference    squares in float64, array by array
    numba_cpu    one pass, one launch, all cores
    numba_cuda   one launch for each array, whose blocks leave their sums; one more adds these up, in Python
    cuda_c       one launch for all arrays, by a table of where they are; 16-byte loads and shuffles

(Pascanu, Mikolov and Bengio 2013, section 3.2.)
"""

from minift_kernels.grad_norm import cuda_c, numba_cpu, numba_cuda, reference
from minift_kernels.ladder import Ladder

ladder = Ladder(
    "grad_norm",
    {"reference": reference, "numba_cpu": numba_cpu, "numba_cuda": numba_cuda, "cuda_c": cuda_c},
)


def forward(gradients: list):
    """The norm of a list of arrays of any shapes; 0 for an empty list.

    A float, but for a GPU's kernels, whose result is an array of no dimensions that stays on the device:
    `float(norm)` waits for it.
    """
    return ladder.rung(gradients[0]).forward(gradients) if gradients else 0.0
