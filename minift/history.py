"""The history of a tensor: which operations made it, and the walk that takes a gradient back through them.

Every operation that has to be differentiated leaves a `Node`: its parents, and a function that turns the gradient
of its output (dy) into one gradient per parent. The backward pass is a walk over these nodes, newest first:

    y = x * x + x         x ──► mul ──► add ──► y          the walk:  add, mul, then x.grad is complete
                          └───────────────▲

A node is always newer than its parents, so when its turn comes, everything that used its output has already sent
its share, and one visit is enough. (Walking a branch to its end before the others would visit `mul` of the example
too early in a larger graph, or twice.) Nothing is recursive: a history may be a million operations deep.
"""

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, Protocol

Array = Any
"""numpy.ndarray or cupy.ndarray."""

Backward = Callable[[Array], tuple[Array | None, ...]]
"""Takes dy, the gradient of an operation's output, and returns one gradient per parent, None where none is needed."""

_grad_enabled: ContextVar[bool] = ContextVar("grad_enabled", default=True)
_detecting_anomaly: ContextVar[bool] = ContextVar("detecting_anomaly", default=False)
_module_path: ContextVar[str] = ContextVar("module_path", default="")


class Leaf(Protocol):
    """A tensor that no operation made, such as a parameter: the walk ends here."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its gradient."""
        ...

    def accumulate(self, gradient: Array) -> None:
        """Add to `.grad`."""
        ...


class Node:
    """One operation that ran.

    Attributes: `operation` its name, `module` the path of the module that called it
    (`bert.encoder.layer.3.attention.self`), `file` and `line` the source line that called it, `shape` and `dtype`
    of its output, `parents` the nodes and leaves its inputs came from (None for an input that needs no gradient).
    """

    __slots__ = ("backward", "dtype", "file", "line", "module", "operation", "parents", "serial", "shape")

    _serials = itertools.count()

    def __init__(self, output: Array, parents: Sequence["Node | Leaf | None"], backward: Backward):
        self.serial = next(Node._serials)
        self.shape = output.shape
        self.dtype = output.dtype
        self.parents = tuple(parents)
        self.backward: Backward | None = backward
        self.operation = operation_name(backward)
        self.module = _module_path.get()
        self.file, self.line = calling_line()

    def run_backward(self, dy: Array) -> tuple[Array | None, ...]:
        """One gradient per parent. What the operation saved is let go: a history serves once."""
        if self.backward is None:
            raise RuntimeError(
                f"the history through {self} was consumed by an earlier backward(), which freed what it had saved; "
                "run the forward pass again before another backward()"
            )
        contributions = self.backward(dy)
        for parent, contribution in zip(self.parents, contributions, strict=True):
            if parent is not None and contribution is not None and contribution.shape != parent.shape:
                raise ValueError(
                    f"the backward of {self} returned a gradient of shape {contribution.shape} "
                    f"for a parent of shape {parent.shape}"
                )
        self.backward = None
        return contributions

    def __repr__(self) -> str:
        module = f" in {self.module}" if self.module else ""
        return f"{self.operation}{module} ({self.file}:{self.line})"


@dataclass(frozen=True, slots=True)
class Step:
    """One node's turn in the backward pass: what came in (dy) and what each parent was sent."""

    node: Node
    gradient: Array
    contributions: tuple[Array | None, ...]


def backward_steps(root: Node, gradient: Array) -> Iterator[Step]:
    """Walk from `root` to the leaves, newest node first, each node once; yield after each.

    Leaves receive their share as the walk reaches them, so stopping half-way leaves a true partial result and
    going on completes it. Between two steps nothing is held but the gradients that still wait for their turn.
    """
    waiting: dict[Node, Array] = {root: gradient}
    queue = [(-root.serial, root)]
    del gradient
    while queue:
        _, node = heappop(queue)
        gradient = waiting.pop(node)
        contributions = node.run_backward(gradient)
        for parent, contribution in zip(node.parents, contributions, strict=True):
            if parent is None or contribution is None:
                continue
            if not isinstance(parent, Node):
                parent.accumulate(contribution)
            elif parent in waiting:
                # A new array, never +=: an operation may send one array to two parents.
                waiting[parent] = waiting[parent] + contribution
            else:
                waiting[parent] = contribution
                heappush(queue, (-parent.serial, parent))
            del contribution
        node.parents = ()
        step = Step(node, gradient, contributions)
        del node, gradient, contributions
        yield step
        del step


# ----------------------------------------------------------------------------------------------------------------
# What a new node records, and whether one is made at all


def grad_enabled() -> bool:
    """Whether operations leave a history now; False inside `no_grad()`."""
    return _grad_enabled.get()


@contextmanager
def no_grad() -> Iterator[None]:
    """Inside this block (or function, used as a decorator) operations leave no history and save nothing."""
    token = _grad_enabled.set(False)
    try:
        yield
    finally:
        _grad_enabled.reset(token)


@contextmanager
def inside_module(path: str) -> Iterator[None]:
    """Operations of this block belong to the module at `path`."""
    token = _module_path.set(path)
    try:
        yield
    finally:
        _module_path.reset(token)


@contextmanager
def detect_anomaly() -> Iterator[None]:
    """Inside this block every operation's output is checked: the first NaN or infinity raises FloatingPointError.

    The error names the operation, the module and the line. The check reads every output once more, so it is for
    finding a fault, not for training under.
    """
    token = _detecting_anomaly.set(True)
    try:
        yield
    finally:
        _detecting_anomaly.reset(token)


def detecting_anomaly() -> bool:
    """Whether outputs are being checked for NaN and infinity."""
    return _detecting_anomaly.get()


def operation_name(backward: Backward) -> str:
    """`softmax` for the function `backward` inside `softmax`; `add` for the one inside `Tensor.__add__`."""
    return backward.__qualname__.split(".<locals>")[0].split(".")[-1].strip("_")


_ENGINE = {__name__, "minift.tensor", "minift.ops", "minift.nn"}


def calling_line() -> tuple[str, int]:
    """File and line of the code outside the engine whose call led here."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") in _ENGINE:
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno
