"""Breakpoints in the backward pass: by operation, by module, by what a step computes, and where numbers turn bad.

    minift.set_breakpoint(op="attention", module="*.layer.3.*")
    minift.set_breakpoint(when=lambda step: abs(step.gradient).max() > 100)
    loss.backward(breakpoint_on="nan")

The debugger is whichever `breakpoint()` opens: pdb in a terminal, VS Code's when it is attached. It opens on the
thread that called `backward()`, in a function whose variables are the step's, when the operation's contributions are
computed but have gone nowhere yet: no gradient has been touched. Its next line calls the operation's backward once
more (a backward changes nothing, so that does no harm): stepping into it shows the very code with the very numbers.
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import NamedTuple

from minift_kernels.arrays import array_namespace

from minift.history import Node, Step
from minift.recording import Array


class Breakpoint(NamedTuple):
    """Where to stop: all that is given must hold."""

    op: str | None = None
    """The operation's name or a pattern of it: attention, *norm."""
    module: str | None = None
    """The path of the module that called the operation, or a pattern of it: *.layer.3.*"""
    when: Callable[[Step], bool] | None = None
    """Whether to stop at a step."""

    def holds(self, step: Step) -> bool:
        """Whether the pass stops at this step."""
        return (
            (self.op is None or fnmatchcase(step.operation, self.op))
            and (self.module is None or fnmatchcase(step.module, self.module))
            and (self.when is None or bool(self.when(step)))
        )

    def __str__(self) -> str:
        given = {"op": self.op, "module": self.module, "when": self.when and self.when.__qualname__}
        return ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)


_breakpoints: list[Breakpoint] = []


def set_breakpoint(
    op: str | None = None, module: str | None = None, when: Callable[[Step], bool] | None = None
) -> Breakpoint:
    """Open the debugger in every backward pass from now on where all that is given holds.

    `op` and `module` are names, in which * stands for anything; `when` is asked of each step that they fit. Raises
    ValueError where nothing is given.
    """
    if op is None and module is None and when is None:
        raise ValueError("set_breakpoint takes op, module, when, or several of them")
    made = Breakpoint(op, module, when)
    _breakpoints.append(made)
    return made


def clear_breakpoints() -> None:
    """Forget every breakpoint."""
    _breakpoints.clear()


def watcher(breakpoint_on: str | None) -> Callable[[Step], None]:
    """What the backward pass calls with each step. Raises ValueError for a `breakpoint_on` that is not "nan"."""
    if breakpoint_on not in (None, "nan"):
        raise ValueError(f"breakpoint_on is {breakpoint_on!r}; it can be 'nan'")

    def look(step: Step) -> None:
        reason = next((f"breakpoint: {made}" for made in _breakpoints if made.holds(step)), None)
        if reason is None and breakpoint_on == "nan" and makes_nan(step):
            reason = "finite numbers came in, and NaN or infinity would go out"
        if reason is not None:
            stop(step.node, step.gradient, dict(zip(step.names, step.contributions, strict=True)), reason)

    return look


def makes_nan(step: Step) -> bool:
    """Whether the gradient that came in is finite and what would go out is not."""
    return _finite(step.gradient) and not all(map(_finite, step.contributions))


def _finite(array: Array | None) -> bool:
    return array is None or bool(array_namespace(array).isfinite(array).all())


def stop(node: Node, dy: Array, contributions: dict[str, Array | None], reason: str) -> None:
    """Open the debugger in this function, whose arguments are what there is to see."""
    backward = node.backward
    assert backward is not None, "a step is looked at before its node is released"
    print(
        f"{node}: {reason}. `dy` came in, `contributions` wait to go out; step into the next line to see how."
    )
    breakpoint()
    # The same once more, for stepping into: F11 in VS Code, s in pdb (twice, where pdb stops at the line above: Python
    # 3.13 does).
    backward(dy)
