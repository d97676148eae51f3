"""Takes the pictures of chapter 2: `PYTHONPATH=.:kernels:tests python tutorials/figures/take_02.py`, on Linux.

Each is what a program really showed, drawn as an SVG: a pdb session in a pseudo-terminal, what a client said to
debugpy and heard from it, and two screens of the stepper. It needs debugpy and textual.
"""

import asyncio
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from dap_client import DapSession
from rich.console import Console
from rich.text import Text

import minift
from minift.stepper import Stepper
from minift.text_trace import trace_text

FIGURES = Path(__file__).parent
ROOT = FIGURES.parents[1]
ONE_STEP, OPS = ROOT / "tutorials" / "debugging" / "one_step.py", ROOT / "minift" / "ops.py"
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}


def main() -> None:
    lines = OPS.read_text().splitlines()
    (line,) = [
        n for n, text in enumerate(lines, start=1) if "return attention_kernels.backward(dy, q_data" in text
    ]
    write("02_pdb.svg", "pdb", pdb(line))
    write("02_debugpy.svg", "a client of the Debug Adapter Protocol, and debugpy", debugpy(line))
    asyncio.run(stepper())


def pdb(line: int) -> str:
    """What a terminal shows of a pdb session, what is typed included."""
    typed = [
        f"break minift/ops.py:{line}",
        "ignore 1 2",
        "continue",
        "p dy.shape, q_data.shape, logsumexp.shape",
        "p abs(dy).max()",
        "list",
        "up",
        "p self.module",
        "quit",
    ]
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pdb", str(ONE_STEP)],
        **dict.fromkeys(("stdin", "stdout", "stderr"), terminal),
        env={**ENVIRONMENT, "TERM": "dumb"},
        cwd=ROOT,
    )
    os.close(terminal)
    shown = ""
    for command in typed:
        while not shown.endswith("(Pdb) "):
            shown += os.read(screen, 4096).decode()
        os.write(screen, f"{command}\n".encode())
        while not shown.endswith(f"{command}\r\n"):  # the terminal shows what is typed, in pieces
            shown += os.read(screen, 1).decode()
    process.wait()
    return without_places(shown.replace("\r", "").rstrip())


def debugpy(line: int) -> str:
    """What the client asked and heard, long answers cut."""
    session = DapSession([str(ONE_STEP)], ENVIRONMENT)
    session.break_at(str(OPS), line, hitCondition="3")
    _, frames = session.stopped()
    session.variables(frames[0])
    session.evaluate("dy.shape", frames[0])
    session.evaluate("self.module", frames[1])
    spoken = [
        said for said in session.transcript if not re.match(r"<- (output|process|debugpy|module)", said)
    ]
    session.close()
    return "\n".join(said if len(said) < 240 else said[:240] + " ..." for said in map(without_places, spoken))


async def stepper() -> None:
    """Two screens of the stepper."""
    minift.manual_seed(0)
    model = minift.load("minilm", labels=["negative", "positive"])
    trace, batch = trace_text(model, "A film that earns every one of its tears.", "positive")
    tokens = " ".join(model.tokenizer.tokens(batch.ids))
    app = Stepper(trace, f"loss {trace.loss:.4f}, label positive: {tokens}")
    (wanted,) = [
        number
        for number, step in enumerate(trace)
        if step.operation == "attention" and ".layer.3." in step.module
    ]
    app.tape.breakpoints.add(wanted)
    async with app.run_test(size=(150, 34)) as pilot:
        await pilot.press("r", "c")
        save("02_stepper.svg", app.export_screenshot(title="minift step"))
        await pilot.press("n", "b", "i")
        save("02_stepper_inside.svg", app.export_screenshot(title="minift step"))


def write(name: str, title: str, text: str) -> None:
    console = Console(record=True, width=118, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(Text(text))
    save(name, console.export_svg(title=title))


def save(name: str, svg: str) -> None:
    """Without the fonts that the picture would fetch from elsewhere; any monospaced font does."""
    (FIGURES / name).write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))


def without_places(text: str) -> str:
    """Paths as they are from the checkout on."""
    return re.sub(r"[\w/.-]+/lib/python3[\d.]+/", "", text.replace(f"{ROOT}/", ""))


if __name__ == "__main__":
    main()
