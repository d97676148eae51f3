"""Rung 1, the formula: draw a word for every element, compare, multiply."""

from minift_kernels.arrays import array_namespace, wide
from minift_kernels.philox import drop_threshold, keep_scale, philox


def forward(x, p, key):
    xp, dtype, x = array_namespace(x), x.dtype, wide(x)
    block = xp.arange((x.size + 3) // 4, dtype=xp.uint64)  # one block gives the words of four elements
    zero = xp.zeros(1, xp.uint64)
    words = philox((block & xp.uint64(0xFFFFFFFF), block >> xp.uint64(32), zero, zero), key)
    words = xp.stack(words, axis=1).ravel()[: x.size].reshape(x.shape)
    y = xp.where(words >= drop_threshold(p), x * x.dtype.type(keep_scale(p)), x.dtype.type(0))
    return y.astype(dtype, copy=False)
