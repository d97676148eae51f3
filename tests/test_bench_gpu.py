"""The benchmark of the GPU runs whole without one, so that the first minutes on a GPU are spent on measuring."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from minift_kernels import OPERATIONS, nvrtc

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    tests = Path(__file__).parent
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), str(tests / "kernels"), *sys.path])
    import gpu

    return gpu.main


@pytest.mark.skipif(shutil.which("g++") is None, reason="running CUDA C on the CPU needs g++")
def test_a_dry_run(bench, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if PyTorch were not installed
    assert bench(["--dry-run", "--only", "memory", "attention", "products", "--out", str(tmp_path)]) == 0
    assert bench(["--dry-run", "--only", "steps", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert {"memory", "attention", "products", "steps", "machine", "date", "command"} <= record.keys()
    assert {each["operation"] for each in record["memory"]["results"]} >= {"softmax", "layer_norm", "adamw"}
    assert all(each["milliseconds"] > 0 for each in record["memory"]["results"])
    assert [each["name"] for each in record["steps"]] == ["step-bf16", "sst2-bf16", "step-tf32", "sst2-tf32"]
    assert all(len(each["milliseconds"]["minift"]) == len(each["tokens"]) for each in record["steps"])
    page = (tmp_path / "gpu.md").read_text()
    assert page in capsys.readouterr().out
    assert "# A dry run: these times say nothing of a GPU" in page
    assert "Stand-in GPU" in page


@pytest.mark.parametrize("operation", ["summary", "gelu_tanh"])
def test_operations_that_a_gpu_has_by_cupy_alone(operation, bench, monkeypatch):
    import kernel_cases

    monkeypatch.setattr(kernel_cases, "OPERATIONS", {operation: kernel_cases.OPERATIONS[operation]})
    assert bench(["--dry-run", "--only", "check"]) == 0


@pytest.mark.parametrize(("found", "status"), [("ERROR: Race reported", 66), ("0 errors", 0)])
def test_what_a_sanitizer_finds_makes_a_rung_wrong(bench, monkeypatch, tmp_path, found, status):
    """Of compute-sanitizer there is only what it prints, and its exit status, in the way that it was asked for."""
    import gpu_kernels

    result = {"operation": "softmax", "rung": "cuda_c_warp", "dtype": "float32", "cases": 3, "wrong": []}
    (tmp_path / "rung.py").write_text(
        f"import sys; assert sys.argv[-1] == '--small-cases'; print({json.dumps(result)!r})"
    )
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text(
        f"#!/bin/sh\n[ $2 = racecheck ] && [ $4 = 66 ] || exit 1\nshift 4\necho ========= COMPUTE-SANITIZER\n"
        f'"$@" || exit 1\necho ========= {found}\nexit {status}\n'
    )
    sanitizer.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "rung.py")])
    got = gpu_kernels.check_in_a_process(("softmax", "cuda_c_warp", gpu_kernels.FLOAT32), "racecheck")
    assert got == result | {"wrong": ["racecheck: ERROR: Race reported"] if status else []}


@pytest.mark.skipif(shutil.which("g++") is None, reason="running CUDA C on the CPU needs g++")
def test_a_wrong_rung_is_told(bench, monkeypatch, capsys):
    import kernel_cases

    monkeypatch.setattr(kernel_cases, "OPERATIONS", {"softmax": kernel_cases.OPERATIONS["softmax"]})
    assert bench(["--dry-run", "--only", "check"]) == 0
    assert ": 0 rungs wrong" in capsys.readouterr().out
    monkeypatch.setattr(OPERATIONS["softmax"].rungs["cuda_c_warp"], "forward", lambda x: x)
    assert bench(["--dry-run", "--only", "check"]) == 1
    page = capsys.readouterr().out
    assert ": 2 rungs wrong" in page
    assert "- softmax cuda_c_warp float32: " in page


@pytest.mark.skipif(nvrtc.why_not() is not None, reason=str(nvrtc.why_not()))
def test_registers_of_other_tiles(bench):
    import gpu_tiles

    roomy, crowded = gpu_tiles.Tiles(own_tiles=1), gpu_tiles.Tiles(own_tiles=1, blocks=4)
    assert gpu_tiles.registers(roomy, "dq")[0] > 128
    assert gpu_tiles.registers(crowded, "dq")[0] <= 65536 // (4 * 128), (
        "what four blocks of 128 threads can have"
    )


@pytest.mark.peers
def test_a_dry_run_beside_pytorch(bench, capsys):
    assert bench(["--dry-run", "--only", "attention", "steps"]) == 0
    page = capsys.readouterr().out
    lines = [line.split("|") for line in page.splitlines() if line.startswith("| 2 x ")]
    assert lines
    assert all(float(line[7]) < 0.02 for line in lines), "attention differs from PyTorch's"
    assert "| - |" in page  # torch.compile takes no part in a dry run
