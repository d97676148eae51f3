"""AdamW: Adam (Kingma and Ba 2015) with decoupled weight decay (Loshchilov and Hutter 2019), as in PyTorch.

    m = beta1 m + (1 - beta1) g            v = beta2 v + (1 - beta2) g^2
    w = w - lr weight_decay w - lr (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)

    reference       a dozen passes over each array
    numba_cpu       one pass over memory, one launch for all arrays
    numba_cuda      one launch for each array, a thread for each element, in Python
    cuda_c_naive    the same in CUDA C
    cuda_c_chunks   one launch for all arrays, by a table of where they are; 16-byte loads

Parameters and moments change in place, gradients never.
"""

from minift_kernels.adamw import cuda_c, numba_cpu, numba_cuda, reference
from minift_kernels.arrays import check_array
from minift_kernels.ladder import Ladder

ladder = Ladder(
    "adamw",
    {
        "reference": reference,
        "numba_cpu": numba_cpu,
        "numba_cuda": numba_cuda.naive,
        "cuda_c_naive": cuda_c.naive,
        "cuda_c_chunks": cuda_c.chunks,
    },
)


def step(
    parameters: list,
    gradients: list,
    first_moments: list,
    second_moments: list,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    gradient_scale: float = 1.0,
) -> None:
    """One update of the arrays of one parameter group. The four lists run in parallel; `step` counts from 1.

    `gradient_scale` multiplies every gradient as it is read, which is how clipping costs no pass of its own.
    """
    if not parameters:
        return
    for name, arrays in (("a gradient", gradients), ("m", first_moments), ("v", second_moments)):
        for parameter, array in zip(parameters, arrays, strict=True):
            check_array("adamw", name, array, parameter.shape, parameter.dtype)
    ladder.rung(parameters[0]).step(
        parameters,
        gradients,
        first_moments,
        second_moments,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        step=step,
        gradient_scale=gradient_scale,
    )
