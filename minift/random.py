"""Random numbers that can be asked for again.

Dropout's backward must drop what its forward dropped, and a run that was killed must go on with the very numbers it
would have drawn. Both follow from counting instead of keeping state: a call of dropout takes a key (seed, number of
the call), and from the key every rung of every kernel derives the same mask (Philox, Salmon et al. 2011).
"""

import numpy as np

Key = tuple[int, int]
"""Two 32-bit numbers: the seed, and how many keys were taken before."""


class Generator:
    """A source of keys. `seed` and `calls` are its whole state."""

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.calls = 0

    def next_key(self) -> Key:
        """A key that this generator has not given before."""
        key = (self.seed & 0xFFFFFFFF, self.calls & 0xFFFFFFFF)
        self.calls += 1
        return key

    def numpy(self) -> np.random.Generator:
        """A NumPy generator made from the next key, for new weights."""
        return np.random.default_rng(self.next_key())


default_generator = Generator()
"""The generator that every module draws from."""


def manual_seed(seed: int) -> None:
    """Start the default generator anew: the same seed gives the same new weights and the same dropout."""
    default_generator.seed = seed
    default_generator.calls = 0
