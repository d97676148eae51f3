"""The ladder: which implementation of an operation runs, decided in this one place.

Every operation has a folder with one file a rung. From the plainest to the fastest:

    reference    NumPy and CuPy: the formula as the book writes it; it judges all the others
    numba_cpu    compiled loops over float32 NumPy arrays, on all cores: the default on a CPU
    numba_cuda   the first GPU version, written in Python
    cuda_c       CUDA C: the default on a GPU

The caller's wish comes first (`MINIFT_KERNELS=reference` in the environment, or
`with use_kernels("reference"):`). Without a wish the array decides: NumPy float32 takes numba_cpu, CuPy takes
cuda_c, and all else the reference: float64 is for checking, so it goes to the rung that judges.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

import numpy as np

RUNG_NAMES = ("reference", "numba_cpu", "numba_cuda", "cuda_c")

_wish: ContextVar[str | None] = ContextVar("kernels", default=os.environ.get("MINIFT_KERNELS") or None)


@contextmanager
def use_kernels(rung: str) -> Iterator[None]:
    """Run every operation inside the `with` block on this rung.

    Raises RungError for a name that is no rung; an operation that lacks the rung, or whose rung cannot take
    the arrays it is given, raises when it is called.
    """
    _check_name(rung)
    token = _wish.set(rung)
    try:
        yield
    finally:
        _wish.reset(token)


class RungError(ValueError):
    """The wished rung does not exist, or cannot take the arrays. One line that the command line prints."""


class Ladder:
    """The rungs of one operation: an explicit dict from rung name to module."""

    def __init__(self, operation: str, rungs: dict[str, ModuleType]):
        self.operation = operation
        self.rungs = rungs

    def rung(self, x) -> ModuleType:
        """The module whose functions run on arrays like `x`. Raises RungError, as `choose` does."""
        return self.rungs[self.choose(x)]

    def choose(self, x) -> str:
        """The name of the rung that runs on arrays like `x`.

        Raises RungError when the wished rung does not exist here or cannot take `x`.
        """
        wish = _wish.get()
        if wish is None:
            return self.default(x)
        _check_name(wish)
        if wish not in self.rungs:
            raise RungError(f"{self.operation}: there is no rung {wish!r}; it has {', '.join(self.rungs)}")
        if wish not in takers(x):
            raise RungError(
                f"{self.operation}: rung {wish!r} cannot take a {x.dtype} array of {type(x).__module__}; "
                f"{', '.join(name for name in takers(x) if name in self.rungs)} can"
            )
        return wish

    def default(self, x) -> str:
        """The name of the rung that runs on `x` where nobody wished for another: the fastest taker."""
        return next(name for name in takers(x) if name in self.rungs)


def takers(x) -> tuple[str, ...]:
    """The names of the rungs that can take `x`, the fastest first."""
    if not isinstance(x, np.ndarray):
        return ("cuda_c", "numba_cuda", "reference")
    if x.dtype == np.float32:
        return ("numba_cpu", "reference")
    return ("reference",)


def _check_name(rung: str) -> None:
    if rung not in RUNG_NAMES:
        raise RungError(f"there is no kernel rung {rung!r}; the rungs are {', '.join(RUNG_NAMES)}")
