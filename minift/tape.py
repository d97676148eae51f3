"""The tape of a trace, folded by module, and a reader's place on it: next, back, into, out, run to a breakpoint.

    bert.encoder.layer.5                 a group: the steps of one module, one after the other
        attention.output                 groups inside it
            LayerNorm                    a step that is alone in its module
    ▸ bert.encoder.layer.4               folded: one move goes over all of it

A place is a step or a folded group. From a step one goes into its backward, whose lines are then the places.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import groupby

from minift.backward_lines import Line, backward_lines
from minift.trace import Trace

OPEN_ABOVE = 40
"""Groups of more steps than this are open at first: the encoder is, its layers are not."""


@dataclass(eq=False)
class Unit:
    """A step of the trace, or the steps of a module that follow each other."""

    name: str
    """A step's operation; of a group the part of its path that its parent does not say."""
    steps: range
    children: list[Unit] = field(default_factory=list)
    parent: Unit | None = None
    open: bool = False

    @property
    def is_step(self) -> bool:
        """Whether it is one step and no group."""
        return not self.children

    def places(self) -> list[Unit]:
        """Where one can stand: steps and folded groups, in the order of the pass."""
        if self.is_step or not self.open:
            return [self]
        return [place for child in self.children for place in child.places()]


class Tape:
    """A trace folded by module, and where the reader stands.

    Attributes: `place` the unit where the reader stands, `lines` and `line` the lines of its backward and which of
    them, where the reader has gone into it (else empty), `breakpoints` numbers of steps.
    """

    def __init__(self, trace: Trace):
        self.trace = trace
        self.units = _units(trace, range(len(trace)), 0)
        self.place: Unit = self.places()[0]
        self.lines: list[Line] = []
        self.line = 0
        self.breakpoints: set[int] = set()

    def places(self) -> list[Unit]:
        """Where one can stand now, in the order of the pass."""
        return [place for unit in self.units for place in unit.places()]

    @property
    def number(self) -> int:
        """The step that the reader sees: of a folded group its last."""
        return self.place.steps[-1]

    def next(self) -> bool:
        """To the next line, else to the next place; False at the end of the pass."""
        if self.lines and self.line + 1 < len(self.lines):
            self.line += 1
            return True
        return self._move(1)

    def back(self) -> bool:
        """To the line before, else to the place before; False at the beginning of the pass."""
        if self.lines and self.line > 0:
            self.line -= 1
            return True
        return self._move(-1)

    def into(self) -> None:
        """Into a folded group, to its first place; or into the backward of a step, to its first line."""
        if not self.place.is_step:
            self.place.open = True
            self.place = self.place.places()[0]
        elif not self.lines:
            self.lines, self.line = backward_lines(self.trace[self.number]), 0

    def out(self) -> None:
        """Out of a backward to its step; or out of a step or group, to the group around it, which is folded."""
        if self.lines:
            self._leave_lines()
        elif self.place.parent is not None:
            self.place = self.place.parent
            self.place.open = False

    def run(self) -> bool:
        """On to the next step with a breakpoint; without one to the end of the pass, and False."""
        ahead = [number for number in sorted(self.breakpoints) if number > self.number]
        self.go_to(ahead[0] if ahead else len(self.trace) - 1)
        return bool(ahead)

    def go_to(self, number: int) -> None:
        """Stand at a step, with the groups around it open."""
        self._leave_lines()
        units = self.units
        while True:
            (unit,) = [unit for unit in units if number in unit.steps]
            if unit.is_step:
                self.place = unit
                return
            unit.open = True
            units = unit.children

    def toggle_breakpoint(self) -> None:
        """Set or clear a breakpoint at the step that the reader sees."""
        self.breakpoints ^= {self.number}

    def _move(self, by: int) -> bool:
        self._leave_lines()
        places = self.places()
        index = places.index(self.place) + by
        if not 0 <= index < len(places):
            return False
        self.place = places[index]
        return True

    def _leave_lines(self) -> None:
        self.lines, self.line = [], 0


def _units(trace: Trace, numbers: range, depth: int, parent: Unit | None = None) -> list[Unit]:
    """The steps `numbers`, whose modules agree in their first `depth` parts, as units."""
    parts = [_parts(trace[number].module) for number in numbers]
    units, start = [], numbers.start
    for shared, steps in groupby(parts, key=lambda path: path[: depth + 1]):
        run = list(steps)
        steps_of_run = range(start, start + len(run))
        start += len(run)
        if len(shared) <= depth or len(run) == 1:
            for number, path in zip(steps_of_run, run, strict=True):
                name = ".".join([*path[depth:], trace[number].operation])
                units.append(Unit(name, range(number, number + 1), parent=parent))
            continue
        deeper = depth + 1
        while all(len(path) > deeper and path[: deeper + 1] == run[0][: deeper + 1] for path in run):
            deeper += 1
        group = Unit(".".join(run[0][depth:deeper]), steps_of_run, parent=parent, open=len(run) > OPEN_ABOVE)
        group.children = _units(trace, steps_of_run, deeper, group)
        units.append(group)
    return units


def _parts(path: str) -> list[str]:
    """bert.encoder.layer.5 as bert, encoder, layer.5: a number belongs to the list that it counts."""
    return re.split(r"\.(?!\d)", path) if path else []
