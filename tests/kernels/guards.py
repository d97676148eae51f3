"""Arrays in places that tests choose: inside a fence, or side by side.

Behind a fence a read beyond the end sees NaN, and a write beyond it changes the fence.
"""

from collections.abc import Callable

import numpy as np

_FENCE = 256  # bytes on either side, several vector registers wide
_PATTERN = 0xFF  # four of these bytes are a NaN in float32, and -1 as an integer


class Guard:
    def __init__(self, whole: np.ndarray):
        self.whole = whole

    def check(self) -> None:
        assert (self.whole[:_FENCE] == _PATTERN).all(), "something was written before the start of an array"
        assert (self.whole[-_FENCE:] == _PATTERN).all(), "something was written behind the end of an array"


def guarded(x: np.ndarray, guards: list[Guard]) -> np.ndarray:
    """A copy of x inside a fence, which is appended to `guards`."""
    whole = np.full(2 * _FENCE + x.nbytes, _PATTERN, np.uint8)
    inside = whole[_FENCE : _FENCE + x.nbytes].view(x.dtype).reshape(x.shape)
    inside[...] = x
    guards.append(Guard(whole))
    return inside


class SideBySide:
    """Memory in which each array begins where the one before it ends, but for what aligns it."""

    def __init__(self):
        self.memory, self.used = np.empty(1 << 22, np.uint8), 0

    def place(self, x: np.ndarray) -> np.ndarray:
        """A copy of x behind all that was placed before."""
        start = -(-self.used // 8) * 8
        self.used = start + x.nbytes
        copy = self.memory[start : self.used].view(x.dtype).reshape(x.shape)
        copy[...] = x
        return copy


class PlacingNumpy:
    """numpy, except that new arrays are where `place` copies them, and that empty ones are full of NaN."""

    def __init__(self, place: Callable[[np.ndarray], np.ndarray]):
        self.place = place

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype=np.float64):
        return self.place(np.full(shape, np.nan, dtype))

    def zeros(self, shape, dtype=np.float64):
        return self.place(np.zeros(shape, dtype))

    def full(self, shape, value, dtype=np.float64):
        return self.place(np.full(shape, value, dtype))

    def empty_like(self, x, order="K"):
        return self.empty(x.shape, x.dtype)
