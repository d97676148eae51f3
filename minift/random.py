"""Random numbers that can be asked for again.

Dropout's backward must drop what its forward dropped, and a run that was killed must go on with the very numbers it
would have drawn. Both follow from counting instead of keeping state: a call of dropout takes a key (seed, number of
the call), and from the key every rung of every kernel derives the same mask (Philox, Salmon et al. 2011).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from minift.history import Array

Key = tuple[int, int] | tuple[int, int, Array]
"""Two 32-bit numbers: the seed, and how many keys were taken before. Inside `counting_from` the second counts from a
number on the GPU, which is then the third."""


class Generator:
    """A source of keys. `seed` and `calls` are its whole state."""

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.calls = 0
        self._origin: tuple[int, tuple[Array, ...]] = (0, ())
        """From which call keys are counted, and where that number stands if it is not in the keys."""

    def next_key(self) -> Key:
        """A key that this generator has not given before."""
        first, calls_before = self._origin
        key = (self.seed & 0xFFFFFFFF, (self.calls - first) & 0xFFFFFFFF, *calls_before)
        self.calls += 1
        return key

    @contextmanager
    def counting_from(self, calls_before: Array) -> Iterator[None]:
        """Keys of this block, which a CUDA graph writes down, are right for whatever `calls_before` says later.

        It is one uint32 on the GPU, and has to be the number of keys taken before the block, or its replay.
        """
        self._origin = (self.calls, (calls_before,))
        try:
            yield
        finally:
            self._origin = (0, ())

    def numpy(self) -> np.random.Generator:
        """A NumPy generator made from the next key, for new weights."""
        return np.random.default_rng(self.next_key())


default_generator = Generator()
"""The generator that every module draws from."""


def manual_seed(seed: int) -> None:
    """Start the default generator anew: the same seed gives the same new weights and the same dropout.

    Raises TypeError for a seed that is no integer.
    """
    if not isinstance(seed, int | np.integer):
        raise TypeError(f"a seed is an integer, not {seed!r}")
    default_generator.seed = int(seed)
    default_generator.calls = 0
