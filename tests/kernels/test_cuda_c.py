"""What the contract asks of CUDA C alone: every order of threads, every barrier, every compiler, 16 bits."""

import re
from functools import cache

import numpy as np
import pytest
from kernel_cases import (
    BFLOAT16,
    CASES,
    MOST_EMULATED,
    absolute_bound,
    as_bfloat16,
    as_float32,
    changed,
    check_close,
    cuda_c_rungs,
    each_case,
    elements,
    run,
)
from minift_kernels import OPERATIONS as LADDERS
from minift_kernels import gpu, nvrtc
from minift_kernels.cuda_cpu import KernelError, Module, execution_order, launch

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN and infinity are among the inputs

FILES = sorted(gpu.HERE.glob("*/*.cu"))
SCHEDULES = [("ascending", 0), ("descending", 0), ("random", 0), ("random", 1)]

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


@each_case(cuda_c_rungs)
def test_right_under_every_order(operation, rung, inputs):
    check_under(SCHEDULES, operation, rung, inputs)


@pytest.mark.slow
@each_case(cuda_c_rungs)
def test_right_under_many_random_orders(operation, rung, inputs):
    check_under([("random", seed) for seed in range(2, 20)], operation, rung, inputs)


def check_under(schedules, operation, rung, inputs):
    """The values of the reference under each, and the same bits, unless the rung says that its order changes."""
    want = run(operation, "reference", inputs)
    inputs = changed(inputs, as_float32)
    rung_of, first = LADDERS[operation].rungs[rung], {}
    for order, seed in schedules:
        with execution_order(order, seed):
            got = run(operation, rung, inputs)
        first = first or got
        for name in want:
            where = f"{operation} {rung} {name}, {order} {seed}"
            check_close(got[name], want[name], where, rung_of, absolute=absolute_bound(operation, inputs))
            if getattr(rung_of, "deterministic", True):
                assert got[name].tobytes() == first[name].tobytes(), where


@each_case(
    lambda operation: ["reference", *cuda_c_rungs(operation)],
    {operation: CASES[operation] for operation in BFLOAT16},
)
def test_bfloat16(operation, rung, inputs):
    """Numbers are stored in 16 bits and computed with in 32: an error of a rounding or two."""
    stay = BFLOAT16[operation]
    inputs = changed(changed(inputs, as_float32), as_bfloat16, leave=stay)
    want = run(operation, "reference", changed(inputs, lambda x: x.astype(np.float64) if is_real(x) else x))
    got = run(operation, rung, inputs)
    for name in want:
        check_close(got[name], want[name], f"{operation} {rung} {name}", relative=2**-6, absolute=2**-7)


def is_real(x):
    return x.dtype.kind not in "iub"


# ------------------------------------------------------------------------------------------------------------
# Barriers: each is necessary

BARRIER = re.compile(r"(?:__sync(?:threads|warp)\([^;()]*\)|cp_async_wait<[^;]*>\(\));(?! *// unseen: )")
"""All but those whose comment begins with "unseen:", which only a GPU misses (cuda_cpu.h says which can be)."""


@cache
def with_numbered_barriers(file):
    """The source with each barrier behind `if (left_out != its number)`, and the lines they stand on."""
    source = file.read_text()
    lines = [source[: found.start()].count("\n") + 1 for found in BARRIER.finditer(source)]
    numbers = iter(range(len(lines)))
    numbered = BARRIER.sub(lambda found: f"if (left_out != {next(numbers)}) {found[0]}", source)
    choose = 'extern "C" __global__ void leave_out(int barrier) { left_out = barrier; }'
    return f"__device__ int left_out = -1; {numbered}\n{choose}\n", lines


BARRIERS = [
    pytest.param(file, number, id=f"{file.name}:{line}")
    for file in FILES
    for number, line in enumerate(with_numbered_barriers(file)[1])
]


@cache
def with_numbered_barriers_built(file, together):
    return Module(file, code=with_numbered_barriers(file)[0], instantiations=together)


@pytest.mark.parametrize(("file", "number"), BARRIERS)
def test_a_missing_barrier_shows(file, number, monkeypatch):
    """Leave one out, and some case of some rung goes wrong under some order, or it need not be there."""

    def crippled(launched, kernel):
        if launched != file:
            return emulated(launched, kernel)
        module = with_numbered_barriers_built(file, gpu.built_together(file.read_text(), kernel))
        launch(module.get_function("leave_out"), (1,), (1,), (np.int32(number),))
        return module.get_function(kernel)

    emulated = gpu._emulated
    monkeypatch.setattr(gpu, "_emulated", crippled)
    operation = file.parent.name
    cases = sorted((inputs for _, inputs in CASES[operation]()), key=elements)
    for inputs in reversed([inputs for inputs in cases if elements(inputs) <= MOST_EMULATED]):
        for rung in cuda_c_rungs(operation):
            try:
                check_under(SCHEDULES, operation, rung, inputs)
            except (AssertionError, KernelError):
                return
    pytest.fail("the barrier was left out and every result was still right")


# ------------------------------------------------------------------------------------------------------------
# Launches


@pytest.mark.parametrize(
    ("rung", "rows"),
    [("cuda_c_materialised", 70_000), ("cuda_c_flash", 300_000), ("cuda_c_flash_tensor_core", 300_000)],
)
def test_attention_of_many_rows_fits_a_grid(rung, rows, monkeypatch):
    """Every axis of a grid but the first has at most 65,535 blocks."""
    grids = []
    monkeypatch.setattr(gpu, "launch", lambda file, kernel, grid, *others: grids.append((kernel, grid)))
    texts = 100
    ends = np.linspace(
        0, 8 * texts, texts + 1, dtype=np.int64
    )  # scores that are written out have to fit, too
    segments = np.stack([ends[:-1], ends[1:]], axis=1)
    x, logsumexp = np.zeros((rows, 2), np.float32), np.zeros((1, rows), np.float32)
    options = dict(q_segments=segments, k_segments=segments, heads=1, scale=1.0)
    rung = LADDERS["attention"].rungs[rung]
    rung.forward(x, x, x, **options)
    rung.backward(x, x, x, x, x, logsumexp, **options)
    assert len(grids) >= 4
    assert [each for each in grids if max(each[1][1:], default=0) > 65535] == []


# ------------------------------------------------------------------------------------------------------------
# NVIDIA's compiler takes what g++ takes


@pytest.mark.skipif(nvrtc.why_not() is not None, reason=str(nvrtc.why_not()))
@pytest.mark.parametrize(
    "everything", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "all"]
)
@each_file
def test_compiles_for_a_gpu(file, everything, monkeypatch):
    """Every kernel that the rungs launch: one of each for both kinds of element, or, slowly, all there are."""
    source, kernels = file.read_text(), set()

    def remember(launched, kernel):
        if launched == file:
            kernels.update(gpu.built_together(source, kernel) or [kernel])
        return lambda *arguments, **options: None

    monkeypatch.setattr(gpu, "_emulated", remember)
    operation = file.parent.name
    for _, inputs in CASES[operation]():
        for rung in cuda_c_rungs(operation):
            run(operation, rung, changed(inputs, as_float32))
            if operation in BFLOAT16:
                run(operation, rung, changed(inputs, as_bfloat16, leave=BFLOAT16[operation]))
    assert kernels
    if not everything:
        kernels = set({kernel.partition(",")[0]: kernel for kernel in sorted(kernels)}.values())
    templates = sorted(kernel for kernel in kernels if "<" in kernel)
    for arch in ("sm_80", "sm_90") if everything else ("sm_80",):
        cubin = nvrtc.nvrtc_compile(source, arch, file.name, instantiations=templates)
        assert cubin.startswith(b"\x7fELF")
        for kernel in kernels.difference(
            templates
        ):  # CuPy asks for these by the names they have in the source
            assert f".text.{kernel}\0".encode() in cubin, f'{kernel} is not extern "C"'
