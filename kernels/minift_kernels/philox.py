"""Philox 4x32-10: random bits without a state.

A block cipher in miniature: ten rounds scramble a 128-bit counter under a 64-bit key into four random 32-bit
words. Which element needs which word is known from its index alone, so threads need not agree on an order,
every rung draws the same bits, and backward draws again what forward drew instead of keeping it.
(Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".)
"""

import numpy as np

from minift_kernels.arrays import array_namespace
from minift_kernels.host import inlined_as_written

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
"""What each round multiplies words 0 and 2 by."""

KEY_STEPS = 0x9E3779B9, 0xBB67AE85
"""What is added to the key after each round: the golden ratio and sqrt(3) - 1, as fractions of 2^32."""

ROUNDS = 10


def philox(counter, key):
    """Four arrays of random uint32 from `counter`, four arrays of uint32, and `key`, as `mask_arguments` takes it."""
    xp = array_namespace(counter[0])
    low_half = xp.uint64(0xFFFFFFFF)
    seed, call, *calls_before = key
    k0, k1 = xp.uint64(seed), xp.uint64(call)
    if calls_before:
        k1 = (calls_before[0].astype(xp.uint64) + k1) & low_half
    # Words are kept in uint64 so that a product of two of them has room for its high half.
    c0, c1, c2, c3 = (word.astype(xp.uint64) for word in counter)
    for _ in range(ROUNDS):
        product0 = c0 * xp.uint64(MULTIPLIERS[0])
        product1 = c2 * xp.uint64(MULTIPLIERS[1])
        c0 = (product1 >> xp.uint64(32)) ^ c1 ^ k0
        c2 = (product0 >> xp.uint64(32)) ^ c3 ^ k1
        c1 = product1 & low_half
        c3 = product0 & low_half
        k0 = (k0 + xp.uint64(KEY_STEPS[0])) & low_half
        k1 = (k1 + xp.uint64(KEY_STEPS[1])) & low_half
    return tuple(word.astype(xp.uint32) for word in (c0, c1, c2, c3))


def drop_threshold(p: float) -> int:
    """Words below this are dropped: a uint32 is, with probability p."""
    if not 0 <= p <= 1:
        raise ValueError(f"the dropout probability must lie between 0 and 1, not {p}")
    return round(p * 2**32)


def keep_scale(p: float) -> float:
    """What survivors are multiplied by, so that the expected value stays the same."""
    return 1 / (1 - p) if p < 1 else 0.0


def word_threshold(p: float) -> np.uint32:
    """The same for compiled loops, which compare 32 bits; at p = 1 the scale of 0 drops what is left."""
    return np.uint32(min(drop_threshold(p), 2**32 - 1))


def mask_arguments(p: float, key) -> tuple:
    """What CUDA C takes for a mask: threshold, scale, and the key's seed, call and the address of the calls before.

    `key` is two integers or, for launches that a CUDA graph writes down, a third thing: a uint32 on the GPU, to
    which the second adds.
    """
    seed, call, *calls_before = key
    scalars = word_threshold(p), np.float32(keep_scale(p)), np.uint32(seed), np.uint32(call)
    return (*scalars, calls_before[0] if calls_before else None)


@inlined_as_written
def philox_words(words, c0, c1, c2, c3, k0, k1):
    """Fill words (4 n,) from the counters (c0 + 0, c1, c2, c3) to (c0 + n - 1, c1, c2, c3); all are uint32.

    The same steps as above for one counter at a time, in a compiled loop.
    """
    for block in range(len(words) // 4):
        w0, w1, w2, w3 = np.uint32(c0 + np.uint32(block)), c1, c2, c3
        key0, key1 = k0, k1
        for _ in range(ROUNDS):
            product0 = np.uint64(w0) * np.uint64(MULTIPLIERS[0])
            product1 = np.uint64(w2) * np.uint64(MULTIPLIERS[1])
            w0 = np.uint32(product1 >> np.uint64(32)) ^ w1 ^ key0
            w2 = np.uint32(product0 >> np.uint64(32)) ^ w3 ^ key1
            w1 = np.uint32(product1)
            w3 = np.uint32(product0)
            key0 = np.uint32(key0 + np.uint32(KEY_STEPS[0]))
            key1 = np.uint32(key1 + np.uint32(KEY_STEPS[1]))
        words[4 * block] = w0
        words[4 * block + 1] = w1
        words[4 * block + 2] = w2
        words[4 * block + 3] = w3


@inlined_as_written
def drop(x, words, threshold, scale):
    """x scale where the word is at least the threshold, else 0; in place.

    (With a second array for the result, which may be x itself, a compiler asks at run time whether they overlap, and
    where they do it takes one element at a time.)
    """
    for i in range(len(x)):
        x[i] = x[i] * scale if words[i] >= threshold else np.float32(0)
