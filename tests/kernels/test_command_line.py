"""`python -m minift_kernels`: the table of all rungs."""

import shutil

import cupy_stand_in
import pytest
from minift_kernels import OPERATIONS, __main__, gpu
from minift_kernels.__main__ import STEPS, main


def test_prints_a_line_for_each_rung(capsys):
    assert main(["grad_norm"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("grad_norm")]
    assert [line[2] for line in lines] == list(OPERATIONS["grad_norm"].rungs)
    assert float(lines[1][-1]) < 1e-6  # the difference


@pytest.mark.skipif(shutil.which("g++") is None, reason="running CUDA C on the CPU needs g++")
def test_what_would_need_a_gpu_is_emulated_or_says_what_it_lacks(capsys, monkeypatch):
    monkeypatch.setattr(gpu, "why_no_gpu", lambda: "no GPU")
    assert main(["softmax"]) == 0
    lines = {line.split()[2]: line for line in capsys.readouterr().out.splitlines() if " backward " in line}
    assert list(lines) == list(OPERATIONS["softmax"].rungs)
    for name, line in lines.items():
        assert ("emulated" in line) == name.startswith("cuda_c")
        assert ("simulator is off" in line and "no GPU" in line) == name.startswith("numba_cuda")


def test_a_wrong_rung_is_said(capsys, monkeypatch):
    monkeypatch.setattr(OPERATIONS["grad_norm"].rungs["numba_cpu"], "forward", lambda gradients: 1.0)
    assert main(["grad_norm"]) == 1
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.parametrize(
    "spoil",
    [lambda results: (results[0], results[1] * float("nan"), results[2]), lambda results: results[:1]],
)
def test_a_result_that_is_no_number_or_missing_is_not_right(capsys, monkeypatch, spoil):
    rung = OPERATIONS["layer_norm"].rungs["numba_cpu"]
    backward = rung.backward
    monkeypatch.setattr(rung, "backward", lambda *arguments: spoil(backward(*arguments)))
    assert main(["layer_norm"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_every_operation_has_steps():
    assert set(STEPS) == set(OPERATIONS)


def test_an_unknown_operation(capsys):
    with pytest.raises(SystemExit) as error:
        main(["fortran"])
    assert error.value.code == 2
    assert "there is no operation 'fortran'; there are matmul, softmax" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("g++") is None, reason="running CUDA C on the CPU needs g++")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_on_a_gpu_its_rungs_have_lines_of_their_own(operation, capsys, monkeypatch):
    monkeypatch.setattr(__main__, "MINILM", __main__.TINY)
    monkeypatch.setattr(__main__, "_time", lambda run, xp: 1.0)
    monkeypatch.setattr(gpu, "why_no_numba_cuda", lambda x: "its arrays are no real ones")
    with cupy_stand_in.installed():
        assert main([operation]) == 0, capsys.readouterr().out
    words = capsys.readouterr().out.split()
    assert "emulated" not in words
    assert set(words) >= {name for name in OPERATIONS[operation].rungs if not name.startswith("numba")}
