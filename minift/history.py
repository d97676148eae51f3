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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Protocol

from minift.recording import Array, Recorded, Value
from minift.source import OperationSource, calling_line, operation_name, operation_source

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
    of its output, `parents` the nodes and leaves its inputs came from (None for an input that needs no gradient),
    `recorded` its inputs and output where the forward pass was recorded, `code` the code of its backward.
    """

    __slots__ = (
        "backward", "code", "dtype", "file", "line", "module", "operation", "parents", "recorded", "serial", "shape",
    )  # fmt: skip

    _serials = itertools.count()

    def __init__(
        self,
        output: Array,
        parents: Sequence["Node | Leaf | None"],
        backward: Backward,
        recorded: Recorded | None = None,
    ):
        self.serial = next(Node._serials)
        self.shape = output.shape
        self.dtype = output.dtype
        self.parents = tuple(parents)
        self.backward: Backward | None = backward
        self.recorded = recorded
        self.code = backward.__code__
        self.operation = operation_name(self.code)
        self.module = _module_path.get()
        self.file, self.line = calling_line()

    @property
    def source(self) -> OperationSource:
        """What the source code says of the operation: its formula, the names of its inputs, its backward's lines."""
        return operation_source(self.code)

    def run_backward(self, dy: Array) -> tuple[Array | None, ...]:
        """One gradient per parent; the same again when called again, until `release`."""
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
        return contributions

    def release(self) -> None:
        """Let go of what the operation saved and recorded: a history serves once."""
        self.backward = None
        self.parents = ()
        self.recorded = None

    def __repr__(self) -> str:
        module = f" in {self.module}" if self.module else ""
        return f"{self.operation}{module} ({self.file}:{self.line})"


@dataclass(frozen=True, slots=True)
class Step:
    """One node's turn in the backward pass: what came in, and what each parent was sent.

    `zip(step.names, step.inputs, step.parents, step.contributions)` goes through the operation's inputs one by one.
    """

    node: Node
    gradient: Value
    """dy, the gradient of the operation's output; the sum of what all that used the output sent."""
    parents: tuple[Node | Leaf | None, ...]
    """Where each contribution went: to the node that made the input, or to a leaf's `.grad`; None for nowhere."""
    contributions: tuple[Value | None, ...]
    """What was sent to each parent; None for one that needs no gradient."""
    recorded: Recorded | None
    bytes_held: int | None
    """What the rest of the pass holds once this step is done: arrays that operations still to come have saved, values
    of leaves aside, and gradients that wait for their turn. None outside a recording."""

    @property
    def operation(self) -> str:
        """Its name: softmax."""
        return self.node.operation

    @property
    def formula(self) -> str:
        """What the operation computes, as the first line of its docstring says."""
        return self.node.source.formula

    @property
    def module(self) -> str:
        """The path of the module that called it, such as bert.encoder.layer.3.attention.self."""
        return self.node.module

    @property
    def line(self) -> str:
        """The source line that called it: path/of/file.py:123."""
        return f"{self.node.file}:{self.node.line}"

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each input in the operation's source: x, weight, bias."""
        return self.node.source.input_names(len(self.parents))

    @property
    def inputs(self) -> tuple[Value | None, ...] | None:
        """The input from each parent, None for one that was not given; None outside a recording."""
        return None if self.recorded is None else self.recorded.inputs

    @property
    def output(self) -> Value | None:
        """What the operation returned; None outside a recording."""
        return None if self.recorded is None else self.recorded.output


def backward_steps(root: Node, gradient: Array, look: Callable[[Step], None]) -> Iterator[Step]:
    """Walk from `root` to the leaves, newest node first, each node once; yield after each.

    `look` is called with each step before its contributions are handed on. Leaves receive their share as the walk
    reaches them, so stopping half-way leaves a true partial result and going on completes it. Between two steps
    nothing is held but the gradients that still wait for their turn.
    """
    waiting: dict[Node, Array] = {root: gradient}
    queue = [(-root.serial, root)]
    held = SavedBytes(root) if root.recorded is not None else None
    del gradient
    while queue:
        _, node = heappop(queue)
        gradient = waiting.pop(node)
        contributions = node.run_backward(gradient)
        bytes_held = None if held is None else held.after(node, waiting, contributions)
        step = Step(node, gradient, node.parents, contributions, node.recorded, bytes_held)
        look(step)
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
        node.release()
        del node, parent, gradient, contributions
        yield step
        del step


class SavedBytes:
    """What a recorded history keeps for its backward; an array that several operations saved counts once."""

    def __init__(self, root: Node):
        self.users: Counter[int] = Counter()
        self.total = 0
        nodes, seen = [root], {root}
        while nodes:
            node = nodes.pop()
            for array, size in self._saved(node):
                self.total += 0 if self.users[array] else size
                self.users[array] += 1
            above = {parent for parent in node.parents if isinstance(parent, Node)} - seen
            seen |= above
            nodes.extend(above)

    def after(self, node: Node, waiting: dict[Node, Array], contributions: Sequence[Array | None]) -> int:
        """The bytes held when `node` has been released and its contributions handed to its parents."""
        for array, size in self._saved(node):
            self.users[array] -= 1
            self.total -= 0 if self.users[array] else size
        arriving = {
            parent: contribution
            for parent, contribution in zip(node.parents, contributions, strict=True)
            if isinstance(parent, Node) and contribution is not None
        }
        return self.total + sum({id(array): array.nbytes for array in (waiting | arriving).values()}.values())

    def _saved(self, node: Node):
        return () if node.recorded is None else node.recorded.saved.items()


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
