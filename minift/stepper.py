"""The stepper: a backward pass in the terminal, one operation at a time, forth and back.

The tape on the left, folded by module; on the right what the step where one stands was given, what came in (dy) and
what went out to whom, and the source of its backward. Going into a step runs its backward line by line. All of it is
a view of a `Tape`; this file only draws, and binds keys to its moves. Needs Textual (the extra `tui`).
"""

from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from textual.app import App, ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Footer, Static

from minift.gradient_check import check_gradients
from minift.history import Step
from minift.recording import summary_of
from minift.tape import Tape, Unit
from minift.trace import Trace


class Stepper(App):
    """`Stepper(trace, title).run()` opens it; q closes it."""

    CSS = """
    #tape { width: 44%; border-right: solid $accent; }
    #values { height: 3fr; border-bottom: solid $accent; }
    #source { height: 2fr; }
    """
    BINDINGS = [  # noqa: RUF012
        ("n,down", "next", "next"),
        ("b,up", "back", "back"),
        ("i,right,enter", "into", "into"),
        ("o,left", "out", "out"),
        ("p", "breakpoint", "breakpoint"),
        ("r", "run_on", "run to it"),
        ("c", "check", "check the gradient"),
        ("q", "quit", "quit"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, trace: Trace, heading: str):
        super().__init__()
        self.trace = trace
        self.tape = Tape(trace)
        self.heading = heading
        self.remark = ""
        self.norms = [summary_of(step.gradient).norm for step in trace]

    def compose(self) -> ComposeResult:
        yield Static(self.heading, id="heading", markup=False)
        with Horizontal():
            with VerticalScroll(id="tape", can_focus=False):
                yield Static(id="tape_text")
            with Vertical():
                with VerticalScroll(id="values", can_focus=False):
                    yield Static(id="values_text")
                with VerticalScroll(id="source", can_focus=False):
                    yield Static(id="source_text")
        yield Footer()

    def on_mount(self) -> None:
        self.draw()

    # ---- Keys ------------------------------------------------------------------------------------------------------

    def action_next(self) -> None:
        self.draw("" if self.tape.next() else "the backward pass ends here: every gradient is complete")

    def action_back(self) -> None:
        self.draw(
            "" if self.tape.back() else "the backward pass begins here, with the gradient of the loss: 1"
        )

    def action_into(self) -> None:
        self.tape.into()
        self.draw()

    def action_out(self) -> None:
        self.tape.out()
        self.draw()

    def action_breakpoint(self) -> None:
        self.tape.toggle_breakpoint()
        self.draw()

    def action_run_on(self) -> None:
        self.draw("" if self.tape.run() else "no breakpoint lies ahead: this is the end of the pass")

    def action_check(self) -> None:
        remarks = []
        with np.errstate(all="ignore"):
            for check in check_gradients(self.trace[self.tape.number]):
                verdict = "right" if check.right else f"WRONG by {check.difference:.1e} of its size"
                remarks.append(
                    f"d{check.name}: said {check.said:+.6e}, measured {check.measured:+.6e}: {verdict}"
                )
        if remarks:
            remarks.insert(0, "along a random direction, by the backward and by finite differences:")
        self.draw("\n".join(remarks))

    # ---- Drawing ---------------------------------------------------------------------------------------------------

    def draw(self, remark: str = "") -> None:
        """Show where the reader stands, and a remark on what was just done."""
        self.remark = remark
        lines, current = self.tape_lines()
        self.query_one("#tape_text", Static).update(Text("\n").join(lines))
        tape = self.query_one("#tape", VerticalScroll)
        tape.scroll_to(y=max(0, current - tape.size.height // 2), animate=False)
        self.query_one("#values_text", Static).update(self.values())
        self.query_one("#source_text", Static).update(self.source())

    def tape_lines(self) -> tuple[list[Text], int]:
        """The tape as lines, and which of them is the reader's."""
        lines: list[Text] = []
        current = 0

        def add(unit: Unit, depth: int) -> None:
            nonlocal current
            here = unit is self.tape.place
            current = len(lines) if here else current
            stops = not (unit.open and unit.children) and any(n in self.tape.breakpoints for n in unit.steps)
            fold = "  " if unit.is_step else "▾ " if unit.open else "▸ "
            name = unit.name if unit.is_step else f"{unit.name} ({len(unit.steps)})"
            line = Text("▶" if here else " ", style="bold reverse" if here else "", no_wrap=True)
            line.append("●" if stops else " ", style="red")
            line.append(f"{'  ' * depth}{fold}{name}  ")
            if unit.is_step or not unit.open:
                line.append(f"{self.norms[unit.steps[-1]]:.1e}", style="dim")
            lines.append(line)
            for child in unit.children if unit.open else ():
                add(child, depth + 1)

        for unit in self.tape.units:
            add(unit, 0)
        return lines, current

    def values(self) -> Group:
        """The step's formula, and its inputs, output and gradients; in a backward, its variables."""
        tape = self.tape
        step = self.trace[tape.number]
        title = Text(f"{step.operation} ", style="bold").append(step.module, style="cyan")
        where = f"step {tape.number + 1} of {len(self.trace)}, called at {_short(step.line)}"
        if step.bytes_held is not None:
            where += f"; the rest of the pass holds {step.bytes_held / 1e6:,.1f} MB"
        shown: list[RenderableType] = [title, Text(step.formula, style="italic"), Text(where, style="dim")]
        if not tape.place.is_step:
            shown.append(
                Text(f"folded: {len(tape.place.steps)} steps, of which this is the last (i opens it)")
            )
        shown.append(self._variables() if tape.lines else self._arrays(step))
        if self.remark:
            shown.append(Text(self.remark, style="bold yellow"))
        return Group(*shown)

    def _arrays(self, step: Step) -> Table:
        table = _table()
        for name, value in zip(step.names, step.inputs or (), strict=False):
            _row(table, name, value)
        _row(table, "y", step.output)
        _row(table, "dy", step.gradient)
        sent = zip(step.names, step.contributions, self.trace.goes_to(self.tape.number), strict=True)
        for name, contribution, target in sent:
            own = f"{step.module}.{name}"
            to = f"step {target + 1}" if isinstance(target, int) else ".grad" if target == own else target
            _row(table, f"d{name}", contribution, f"→ {to}" if target is not None else "")
        return table

    def _variables(self) -> Table:
        table = _table()
        line = self.tape.lines[self.tape.line]
        for name, value in line.variables.items():
            if hasattr(value, "dtype") and value.dtype.kind == "f":
                corner = value[(slice(2),) * value.ndim]
                corner = np.array2string(corner, precision=2, separator=" ", max_line_width=60)
                _row(table, name, value, corner)
        if line.returned is not None:
            for name, value in zip(self.trace[self.tape.number].names, line.returned, strict=True):
                _row(table, f"returns d{name}", value)
        return table

    def source(self) -> Group:
        """The backward's source; in a backward, with its current line marked."""
        source = self.trace[self.tape.number].node.source
        current = self.tape.lines[self.tape.line].number if self.tape.lines else None
        code = Syntax(
            "\n".join(source.backward_lines),
            "python",
            line_numbers=True,
            start_line=source.backward_line,
            highlight_lines=set() if current is None else {current},
            word_wrap=True,
        )
        place = f"{_short(source.file)}:{current or source.backward_line}"
        return Group(Text(place if current is None else f"▶ {place}", style="dim"), code)


def _table() -> Table:
    table = Table(box=None, padding=(0, 1))
    for name, justify in (("", "left"), ("shape", "left"), ("norm", "right"), ("mean", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # pyright: ignore[reportArgumentType]
    table.add_column("largest", justify="right", no_wrap=True)
    table.add_column("zeros", justify="right", no_wrap=True)
    table.add_column("")
    return table


def _row(table: Table, name: str, value, remark: str = "") -> None:
    if value is None:
        return
    if not hasattr(value, "norm") and value.dtype.kind != "f":
        table.add_row(name, str(value.shape), *[""] * 4, remark)
        return
    summary = summary_of(value)
    bad = [
        f"{count} {what}" for count, what in ((summary.nan, "NaN"), (summary.infinite, "infinite")) if count
    ]
    numbers = [f"{number:.3g}" for number in (summary.norm, summary.mean, summary.largest)]
    shape = str(tuple(summary.shape))
    table.add_row(name, shape, *numbers, f"{100 * summary.zeros:.0f} %", " ".join([remark, *bad]))


def _short(path: str) -> str:
    """A path from the package or from here on."""
    package = str(Path(__file__).parents[1]) + "/"
    return path.removeprefix(package).removeprefix(str(Path.cwd()) + "/")
