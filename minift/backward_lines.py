"""Inside a backward: its lines in the order in which they run, with the variables that a debugger would show."""

import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any

from minift.history import Step
from minift.recording import closure


@dataclass(frozen=True)
class Line:
    """A line that is about to run, and the variables as they are then; after the last line, what is returned."""

    number: int
    """In the operation's file."""
    variables: dict[str, Any]
    """What the backward was given (dy), what it has computed so far, and then what the forward saved for it."""
    returned: tuple | None = None


def backward_lines(step: Step) -> list[Line]:
    """Run the backward of a step once more and note each of its lines. A backward changes nothing, so it may.

    Takes a step from a trace whose forward pass was recorded as arrays, and raises ValueError for any other.
    """
    if step.recorded is None or step.recorded.call is None:
        raise ValueError("only a step of a recording of arrays can be computed again")
    node = step.recorded.call().node
    backward = node.backward
    saved = closure(backward)
    lines: list[Line] = []

    def trace(frame: FrameType, event: str, argument: Any):
        if frame.f_code is not backward.__code__:
            return None
        own = {name: value for name, value in frame.f_locals.items() if name not in saved}
        if event in ("line", "return"):
            lines.append(Line(frame.f_lineno, own | saved, argument if event == "return" else None))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        backward(step.gradient)
    finally:
        sys.settrace(before)
    return lines
