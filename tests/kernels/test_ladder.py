"""Which rung runs, what the folders say of themselves, and what a first run says."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import minift_kernels
import ml_dtypes
import numpy as np
import pytest
from minift_kernels import OPERATIONS, attention, gelu, gpu, matmul, softmax, use_kernels
from minift_kernels.ladder import Ladder, RungError, family_of

KERNELS = Path(minift_kernels.__file__).parent


def python(code, **environment):
    """What `code` prints in an interpreter of its own."""
    environment = os.environ | {"PYTHONPATH": str(KERNELS.parent)} | environment
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_folder_lists_the_rungs_it_has(operation):
    folder = sys.modules[f"minift_kernels.{operation}"]
    listed = re.findall(
        r"^    ((?:reference|numba_cpu|numba_cuda|cuda_c)\w*)\s+\S", folder.__doc__ or "", re.MULTILINE
    )
    assert listed == list(folder.ladder.rungs)
    assert folder.ladder.operation == operation


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_rung_says_what_it_adds(operation):
    for number, (name, rung) in enumerate(OPERATIONS[operation].rungs.items(), start=1):
        assert (rung.__doc__ or "").startswith(f"Rung {number}, "), name


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_rungs_of_an_operation_have_the_same_functions(operation):
    folder = sys.modules[f"minift_kernels.{operation}"]
    public = {"forward", "backward", "step", "sum_rows"} & set(vars(folder))
    assert public
    for rung in OPERATIONS[operation].rungs.values():
        assert all(callable(getattr(rung, name)) for name in public)


def test_every_folder_is_in_the_list():
    folders = {path.parent.name for path in KERNELS.glob("*/__init__.py")}
    assert folders == set(OPERATIONS)


def test_float32_is_compiled_and_float64_goes_to_the_reference():
    for ladder in OPERATIONS.values():
        assert family_of(ladder.choose(np.zeros(1, np.float32))) == "numba_cpu"
        assert ladder.rung(np.zeros(1, np.float64)) is ladder.rungs["reference"]


def test_the_default_is_the_last_rung_that_pays_on_this_machine():
    plain, clever = SimpleNamespace(), SimpleNamespace(pays=False)
    x = np.zeros(1, np.float32)
    for pays, default in ((False, "numba_cpu_plain"), (True, "numba_cpu_clever")):
        clever.pays = pays
        ladder = Ladder("operation", {"numba_cpu_plain": plain, "numba_cpu_clever": clever})
        assert ladder.choose(x) == default
        with use_kernels("numba_cpu"):
            assert ladder.choose(x) == default
        with use_kernels("numba_cpu_clever"):
            assert ladder.choose(x) == "numba_cpu_clever"


def test_a_wish_is_obeyed_and_ends_with_its_block():
    x = np.zeros(1, np.float32)
    with use_kernels("reference"):
        assert gelu.ladder.rung(x) is gelu.ladder.rungs["reference"]
    assert gelu.ladder.rung(x) is gelu.ladder.rungs["numba_cpu"]


def test_an_unknown_rung_is_named_with_those_that_exist():
    with (
        pytest.raises(ValueError, match=r"'fortran'.*reference, numba_cpu, numba_cuda, cuda_c"),
        use_kernels("fortran"),
    ):
        pass


def test_an_unknown_rung_says_why_the_others_cannot_run_here(monkeypatch):
    monkeypatch.setattr(gpu, "why_no_gpu", lambda: "CuPy finds no GPU")
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    with pytest.raises(RungError) as error, use_kernels("fortran"):
        pass
    assert "numba_cuda cannot run here: Numba's simulator is off" in str(error.value)
    assert "cuda_c cannot run here: there is no g++ to run it on the CPU" in str(error.value)
    assert str(error.value).count("there is no GPU: CuPy finds no GPU") == 2
    assert "\n" not in str(error.value)


def test_an_unknown_step_says_so_too(monkeypatch):
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    message = r"no rung 'cuda_c_flsh'; it has reference.*; cuda_c cannot run here: there is no g\+\+"
    with use_kernels("cuda_c_flsh"), pytest.raises(RungError, match=message):
        gelu.ladder.rung(np.zeros(1, np.float32))


def test_a_family_stands_for_its_last_rung():
    x = np.zeros(1, np.float32)
    with use_kernels("cuda_c"):
        assert softmax.ladder.choose(x) == "cuda_c_warp"
    with use_kernels("cuda_c_naive"):
        assert softmax.ladder.choose(x) == "cuda_c_naive"
    with (
        use_kernels("cuda_c_fortran"),
        pytest.raises(RungError, match=r"softmax: .*it has reference, .*cuda_c_warp"),
    ):
        softmax.ladder.choose(x)


class ArrayOfAGpu:
    """All that the ladder looks at."""

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)


def test_arrays_of_a_gpu_take_cuda_c():
    single, double = ArrayOfAGpu(np.float32), ArrayOfAGpu(np.float64)
    assert softmax.ladder.default(single) == "cuda_c_warp"
    assert softmax.ladder.default(ArrayOfAGpu(ml_dtypes.bfloat16)) == "cuda_c_warp"
    assert softmax.ladder.default(double) == "reference"
    assert matmul.ladder.default(single) == "cuda_c_cublas"
    with use_kernels("numba_cpu"), pytest.raises(RungError, match="takes float32 arrays of NumPy"):
        softmax.ladder.choose(single)


def test_float32_is_not_computed_in_fewer_digits_unless_by_name():
    single, half = ArrayOfAGpu(np.float32), ArrayOfAGpu(ml_dtypes.bfloat16)
    assert attention.ladder.default(single) == "cuda_c_flash"
    assert attention.ladder.default(half) == "cuda_c_flash_tensor_core"
    with use_kernels("cuda_c"):
        assert attention.ladder.choose(single) == "cuda_c_flash"
        assert attention.ladder.choose(half) == "cuda_c_flash_tensor_core"
    with use_kernels("cuda_c_flash_tensor_core"):
        assert attention.ladder.choose(single) == "cuda_c_flash_tensor_core"
    gpu.allow_tf32(True)
    try:
        assert attention.ladder.default(single) == "cuda_c_flash_tensor_core"
    finally:
        gpu.allow_tf32(False)


def test_a_rung_that_the_operation_lacks():
    ladder = type(gelu.ladder)("gelu", {"reference": gelu.ladder.rungs["reference"]})
    with use_kernels("cuda_c_naive"), pytest.raises(ValueError, match=r"gelu: .*'cuda_c_naive'.* reference"):
        ladder.rung(np.zeros(1))
    with use_kernels("cuda_c"):  # the whole family is not there: as if nobody had wished for it
        assert ladder.choose(np.zeros(1)) == "reference"


def test_a_rung_that_cannot_take_the_array():
    with use_kernels("numba_cpu"), pytest.raises(ValueError, match=r"gelu: .*float64.*reference can"):
        gelu.forward(np.zeros(3))


def test_the_environment_is_a_wish():
    code = """
import numpy as np
from minift_kernels import gelu
print(gelu.ladder.rung(np.zeros(1, np.float32)).__name__)"""
    assert python(code, MINIFT_KERNELS="reference").stdout.split() == ["minift_kernels.gelu.reference"]
    assert python(code, MINIFT_KERNELS="").stdout.split() == ["minift_kernels.gelu.numba_cpu"]
    assert "'fortran'" in python(code, MINIFT_KERNELS="fortran").stderr


def test_without_numbas_compiler_the_reference_computes():
    """So that a debugger that has it switched off steps through Python."""
    code = """
import numpy as np
from minift_kernels import OPERATIONS, use_kernels
x = np.zeros((2, 2), np.float32)
print({ladder.choose(x) for ladder in OPERATIONS.values()})
with use_kernels("numba_cpu"):
    OPERATIONS["softmax"].choose(x)"""
    done = python("import os; os.environ['NUMBA_DISABLE_JIT'] = '1'" + code)
    assert done.stdout == "{'reference'}\n"
    assert "Numba's compiler is off (NUMBA_DISABLE_JIT)" in done.stderr


def test_results_do_not_depend_on_what_was_imported_first():
    """Notebooks import numpy before anything else."""
    code = """
import hashlib
import numpy as np
from minift_kernels import matmul, softmax
x = np.random.default_rng(0).standard_normal((300, 200), np.float32)
y = softmax.forward(matmul.forward(x, x.T))
print(hashlib.sha256(y.tobytes()).hexdigest())"""
    after = python("import numpy; numpy.ones((500, 500)) @ numpy.ones((500, 500))" + code)
    before = python("import minift_kernels" + code)
    assert after.returncode == before.returncode == 0, after.stderr + before.stderr
    assert after.stdout == before.stdout


def test_results_do_not_depend_on_the_number_of_threads():
    code = """
import hashlib
import numpy as np
from minift_kernels import grad_norm, layer_norm, matmul
x = np.random.default_rng(0).standard_normal((1000, 96), np.float32)
print(grad_norm.forward([x, x[:7]]))
print(hashlib.sha256(matmul.sum_rows(x).tobytes()).hexdigest())
print([hashlib.sha256(g.tobytes()).hexdigest() for g in layer_norm.backward(x, x, x[:, 0], x[0])])"""
    one, two = (python(code, NUMBA_NUM_THREADS=str(threads)) for threads in (1, 2))
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert one.stdout == two.stdout


def test_blas_gets_its_threads_back():
    code = """
import numpy as np
from minift_kernels import host, matmul
count = host._openblas.scipy_openblas_get_num_threads64_
before = count()
with host.single_threaded_blas():
    assert count() == 1
matmul.forward(np.ones((9, 9), np.float32), np.ones((9, 9), np.float32))
print(before == count())"""
    if minift_kernels.host.BLAS != "NumPy's OpenBLAS":
        pytest.skip("NumPy was not built on OpenBLAS, or MKL is there, which has one thread from the start")
    assert python(code).stdout == "True\n"


def test_without_openblas_products_go_through_numpy():
    code = """
import numpy as np
from minift_kernels import attention, host, matmul
from minift_kernels.matmul import numba_cpu
numba_cpu.HAS_SGEMM = attention.numba_cpu.HAS_SGEMM = False
a = np.arange(6, dtype=np.float32).reshape(2, 3)
print(matmul.forward(a, a.T).tolist())
segments = np.array([[0, 2]])
print(attention.forward(a, a, a, segments, segments, 1, 1.0)[0].shape)"""
    assert python(code).stdout == "[[5.0, 14.0], [14.0, 50.0]]\n(2, 3)\n"


def test_the_first_compilation_is_announced_once(tmp_path):
    code = """
import numpy as np
from minift_kernels import gelu
gelu.forward(np.ones(3, np.float32)); gelu.backward(np.ones(3, np.float32), np.ones(3, np.float32))"""
    first = python(code, NUMBA_CACHE_DIR=str(tmp_path))
    second = python(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert first.stderr.count("minift: compiling the kernels") == 1, first.stderr
    assert second.stderr == ""


def test_machine_code_is_forgotten_when_an_inlined_file_changes():
    """An edit of exp must not go unnoticed because only softmax's own file was looked at."""
    stamp = OPERATIONS["softmax"].rungs["numba_cpu"]._forward._cache._cache_file._source_stamp
    math32 = (KERNELS / "math32.py").stat()
    assert (math32.st_mtime, math32.st_size) in stamp[1]


def test_importing_the_kernels_is_quick():
    code = """
import time, numpy, numba
start = time.process_time()
import minift_kernels
print(time.process_time() - start)"""
    assert min(float(python(code).stdout) for _ in range(3)) < 0.2
