"""Recording: keep what the operations of a forward pass were given and what they returned, for whoever looks later.

A history holds no more than its backward needs, and lets that go as soon as it can. To see inputs and outputs
beside gradients, the forward pass has to keep them, from the start:

    with minift.recording():
        loss = minift.cross_entropy(model(text), label)
    for step in loss.backward_steps():
        step.inputs, step.output, step.gradient, step.contributions

`recording("summaries")` keeps of each array its norm, mean, largest value and so on (`Summary`) and lets the array go,
so that a large model fits; only parameters and other leaves, which somebody else holds anyway, stay arrays. Outside
a recording nothing is kept and nothing is computed.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import CO_VARARGS
from types import CellType, CodeType, FrameType, FunctionType
from typing import Any, Literal

import numpy as np
from minift_kernels import summary as summary_kernels

Array = Any
"""numpy.ndarray or cupy.ndarray."""

Keep = Literal["arrays", "summaries"]


@dataclass(frozen=True, slots=True)
class Summary:
    """What is worth knowing of an array that was not kept. Norm, mean and largest are those of its finite elements."""

    shape: tuple[int, ...]
    dtype: np.dtype
    norm: float
    """The square root of the sum of squares."""
    mean: float
    largest: float
    """The largest absolute value."""
    zeros: float
    """The share of elements that are 0, from 0 to 1."""
    nan: int
    infinite: int
    histogram: tuple[int, ...]
    """How many of the other elements have 2^(k-40) <= |x| < 2^(k-39), for k from 0 to 55; the ends hold the rest. Of
    more than 65,536 elements, every seventh is counted."""

    @classmethod
    def of(cls, array: Array) -> "Summary":
        """The summary of an array of any shape and of a floating-point dtype."""
        (norm, mean, largest), counts = summary_kernels.forward(array)
        zeros, nan, infinite, *histogram = counts.tolist()
        share = zeros / max(1, array.size)
        return cls(
            array.shape, array.dtype, float(norm), float(mean), float(largest), share, nan, infinite,
            tuple(histogram),
        )  # fmt: skip

    @property
    def finite(self) -> bool:
        """Whether no element is NaN or infinite."""
        return self.nan == 0 and self.infinite == 0


Value = Array | Summary
"""An array, or in a recording of summaries what is known of it."""


def summary_of(value: Value) -> Summary:
    """The summary of an array; a summary as it is."""
    return value if isinstance(value, Summary) else Summary.of(value)


@dataclass(frozen=True, slots=True)
class Call:
    """An operation with the arguments that it was called with: `call()` runs it again and returns its Tensor."""

    function: FunctionType
    arguments: Mapping[str, Any]

    def __call__(self, /, **changed: Any) -> Any:
        """Run it again, with some arguments changed."""
        code, arguments = self.function.__code__, {**self.arguments, **changed}
        positional = code.co_varnames[: code.co_argcount]
        named = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        return self.function(
            *(arguments[name] for name in positional),
            *(element for name in _variable(code) for element in arguments[name]),
            **{name: arguments[name] for name in named},
        )

    @classmethod
    def from_frame(cls, frame: FrameType, backward: FunctionType) -> "Call | None":
        """The call that is running in `frame`, if that is the operation that defined `backward`."""
        code = frame.f_code
        if backward.__code__ not in code.co_consts:
            return None
        values = frame.f_locals
        cells = tuple(CellType(values[name]) for name in code.co_freevars)
        names = (*code.co_varnames[: code.co_argcount + code.co_kwonlyargcount], *_variable(code))
        function = FunctionType(code, frame.f_globals, code.co_name, None, cells)
        return cls(function, {name: values[name] for name in names})


def _variable(code: CodeType) -> tuple[str, ...]:
    """The name behind a function's asterisk: ("shape",) of `def reshape(self, *shape)`."""
    first = code.co_argcount + code.co_kwonlyargcount
    return code.co_varnames[first : first + bool(code.co_flags & CO_VARARGS)]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What one operation was given, what it returned, and what it saved for its backward."""

    keep: Keep
    inputs: tuple[Value | None, ...]
    """One for each parent, None for an optional input that was not given; a leaf's is an array, whatever is kept."""
    leaves: tuple[Any, ...]
    """For each parent that no operation made (a parameter, frozen or not, or a constant) its Tensor, else None."""
    output: Value
    saved: Mapping[int, int]
    """The bytes of each array that the backward keeps alive, by the array's identity; values of leaves aside."""
    call: Call | None
    """The operation with its arguments; None where only summaries are kept."""


class _Recorder:
    def __init__(self, keep: Keep):
        self.keep: Keep = keep

    def record(
        self, output: Array, parents: Sequence[Any], backward: FunctionType, frame: FrameType
    ) -> Recorded:
        leaves = tuple(None if parent is None or parent.node else parent for parent in parents)
        return Recorded(
            self.keep,
            tuple(None if parent is None else self._input(parent) for parent in parents),
            leaves,
            output if self.keep == "arrays" else Summary.of(output),
            saved_bytes(backward, [leaf.data for leaf in leaves if leaf is not None]),
            Call.from_frame(frame, backward) if self.keep == "arrays" else None,
        )

    def _input(self, parent: Any) -> Value:
        """Of a tensor that an operation made, what was kept as that operation's output."""
        if self.keep == "arrays" or parent.node is None:
            return parent.data
        return Summary.of(parent.data) if parent.node.recorded is None else parent.node.recorded.output


def saved_bytes(backward: FunctionType, besides: Sequence[Array]) -> dict[int, int]:
    """The bytes of each array that a backward keeps alive, by identity; those that belong to `besides` do not count.

    A view keeps alive the whole array that it is a view of.
    """
    free = {id(_owner(array)) for array in besides}
    owners = [_owner(array) for value in closure(backward).values() for array in _arrays_in(value)]
    return {id(owner): owner.nbytes for owner in owners if id(owner) not in free}


def closure(function: FunctionType) -> dict[str, Any]:
    """The variables of the functions around it that a function has kept."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells}


def _arrays_in(value: Any) -> Iterator[Array]:
    if hasattr(value, "nbytes") and hasattr(value, "dtype"):
        yield value
    elif isinstance(value, tuple | list):
        for element in value:
            yield from _arrays_in(element)


def _owner(array: Array) -> Array:
    while isinstance(getattr(array, "base", None), type(array)):
        array = array.base
    return array


_recorder: ContextVar[_Recorder | None] = ContextVar("recorder", default=None)


@contextmanager
def recording(keep: Keep = "arrays") -> Iterator[None]:
    """Inside this block operations that leave a history keep their inputs and outputs with it.

    As "arrays" (nothing is copied: whoever changes an array in place changes what was kept) or as "summaries". They
    are let go when their step of the backward pass is. Raises ValueError for another word.
    """
    if keep not in ("arrays", "summaries"):
        raise ValueError(f"recording keeps 'arrays' or 'summaries', not {keep!r}")
    token = _recorder.set(_Recorder(keep))
    try:
        yield
    finally:
        _recorder.reset(token)


def record(output: Array, parents: Sequence[Any], backward: Any) -> Recorded | None:
    """Called by a Tensor that an operation makes: what to keep of the operation, None outside a recording."""
    recorder = _recorder.get()
    if recorder is None:
        return None
    return recorder.record(output, parents, backward, sys._getframe(2))
