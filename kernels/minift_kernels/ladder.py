"""The ladder: which implementation of an operation runs, decided in this one place.

Every operation has a folder with its rungs. From the plainest to the fastest they are of four families:

    reference    NumPy and CuPy: the formula as the book writes it; it judges all the others
    numba_cpu    compiled loops over float32 NumPy arrays, on all cores: the default on a CPU
    numba_cuda   the first GPU versions, written in Python
    cuda_c       CUDA C, whose last step is the default on a GPU

The rungs of a family are steps that each add one thing: cuda_c_naive, cuda_c_shared, cuda_c_warp. The name of
the family stands for its last step, of those that pay on this machine (`pays`); for float32, for the last that
computes in float32 and not in tf32. An operation that has none of the family runs as if nobody had wished for it.

The caller's wish comes first (`MINIFT_KERNELS=reference` in the environment, or
`with use_kernels("cuda_c_naive"):`). Without a wish the array decides: NumPy float32 takes numba_cpu, CuPy
float32 and bfloat16 take cuda_c, and all else the reference: float64 is for checking, so it goes to the rung
that judges. A step that computes float32 in tf32 is passed over unless tf32 is allowed (`gpu.allow_tf32`).

Who wishes for it can have the GPU's rungs on NumPy arrays too: CUDA C runs on the CPU by way of
`cuda_cpu.h`, Numba's kernels in Numba's simulator. Both are for reading, testing and debugging, and slow.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import numpy as np

from minift_kernels import gpu, host

FAMILIES = ("reference", "numba_cpu", "numba_cuda", "cuda_c")

_wish: ContextVar[str | None] = ContextVar("kernels", default=os.environ.get("MINIFT_KERNELS") or None)


@contextmanager
def use_kernels(rung: str) -> Iterator[None]:
    """Run every operation inside the `with` block on this rung, or on the last of this family.

    Raises RungError for a name that can be no rung; an operation that lacks the rung (not its family), or whose rung
    cannot take the arrays it is given, raises when it is called.
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
    """The rungs of one operation: an explicit dict from a rung's name to the object with its functions."""

    def __init__(self, operation: str, rungs: dict[str, Any]):
        self.operation = operation
        self.rungs = rungs
        self._defaults: dict[tuple, str] = {}

    def rung(self, x) -> Any:
        """The object whose functions run on arrays like `x`. Raises RungError, as `choose` does."""
        return self.rungs[self.choose(x)]

    def choose(self, x) -> str:
        """The name of the rung that runs on arrays like `x`.

        Raises RungError when the wished rung does not exist here or cannot take `x`.
        """
        wish = _wish.get()
        if wish is None:
            return self.default(x)
        _check_name(wish)
        chosen = wish if wish in self.rungs else self._last(wish, x)
        if chosen is None and wish in FAMILIES:
            return self.default(x)
        if chosen is None:
            raise RungError(
                f"{self.operation}: there is no rung {wish!r}; it has {', '.join(self.rungs)}{_not_here(x)}"
            )
        reason = why_not(chosen, x)
        if reason is not None:
            can = ", ".join(name for name in self.rungs if why_not(name, x) is None)
            raise RungError(
                f"{self.operation}: rung {chosen!r} cannot take a {x.dtype} array of {type(x).__module__}: "
                f"{reason}; {can} can"
            )
        return chosen

    def default(self, x) -> str:
        """The name of the rung that runs on `x` where nobody wished for another: the fastest taker."""
        kind = (type(x), x.dtype, gpu.tf32_is_allowed())
        if kind not in self._defaults:  # a step of a small model asks hundreds of times
            self._defaults[kind] = self._fastest_taker(x)
        return self._defaults[kind]

    def _fastest_taker(self, x) -> str:
        on_cpu = isinstance(x, np.ndarray)
        families = ("numba_cpu", "reference") if on_cpu else ("cuda_c", "numba_cuda", "reference")
        takers = (self._last(name, x) for name in families if why_not(name, x) is None)
        return next(rung for rung in takers if rung is not None)

    def _last(self, family: str, x) -> str | None:
        """The last, which is the best, rung of a family for arrays like `x`; None where the operation has none.

        A rung that computes in fewer digits than float32 says so by its `tolerance`. Nobody gets it for float32
        who has not wished for it by name, or allowed tf32. One that is slower on this machine than the step before it
        says so by `pays`.
        """
        rungs = [
            name
            for name in self.rungs
            if family_of(name) == family and getattr(self.rungs[name], "pays", True)
        ]
        if x.dtype == np.float32 and not gpu.tf32_is_allowed():
            rungs = [name for name in rungs if not hasattr(self.rungs[name], "tolerance")]
        return rungs[-1] if rungs else None


@cache
def family_of(rung: str) -> str | None:
    """The family that a rung of this name belongs to; None for a name that can be no rung."""
    return next((name for name in FAMILIES if rung == name or rung.startswith(f"{name}_")), None)


def why_not(rung: str, x) -> str | None:
    """Why a rung, or a family, cannot run on arrays like `x` here; None where it can."""
    family = family_of(rung)
    if family == "cuda_c":
        return gpu.why_no_cuda_c(x)
    if family == "numba_cuda":
        return gpu.why_no_numba_cuda(x)
    if family == "numba_cpu":
        return host.why_not_compiled(x)
    return None


def _check_name(rung: str) -> None:
    if family_of(rung) is not None:
        return
    x = np.empty(0, np.float32)
    raise RungError(f"there is no kernel rung {rung!r}; there are {', '.join(FAMILIES)}{_not_here(x)}")


def _not_here(x) -> str:
    """What to add to a list of rungs: which families cannot run on arrays like `x` here, and why."""
    reasons = ((family, why_not(family, x)) for family in FAMILIES)
    return "".join(f"; {family} cannot run here: {reason}" for family, reason in reasons if reason)
