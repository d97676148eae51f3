"""Dropout: elements become 0 with probability p, the others are divided by 1 - p (Srivastava et al. 2014).

    reference    a random word for every element, then a comparison
    numba_cpu    words drawn a chunk at a time into cache
    numba_cuda   a thread for each four elements, which one Philox gives their words, in Python
    cuda_c       words drawn in registers, while the thread waits for its load of 16 bytes

The mask is never kept. Element i in C order uses word i % 4 of Philox with the counter (i // 4 mod 2^32,
i // 4 div 2^32, 0, 0), see `philox.py`, so it follows from the key and whoever has the key has the mask.

There is no backward of its own: y = mask x is linear, so dx = mask dy is forward(dy, p, key).
"""

from minift_kernels.dropout import cuda_c, numba_cpu, numba_cuda, reference
from minift_kernels.ladder import Ladder

ladder = Ladder(
    "dropout", {"reference": reference, "numba_cpu": numba_cpu, "numba_cuda": numba_cuda, "cuda_c": cuda_c}
)


def forward(x, p, key):
    """y, of x's shape. Raises ValueError unless 0 <= p <= 1.

    `key` is two uint32, or what `philox.mask_arguments` says of CUDA graphs.
    """
    return ladder.rung(x).forward(x, p, key)
