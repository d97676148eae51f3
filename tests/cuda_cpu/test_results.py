"""Right kernels give right results, whatever the order; a kernel that lacks a barrier does not."""

import re
from functools import cache

import numpy as np
import pytest
from cuda_cases import CASES, INSTANTIATIONS, KERNELS
from minift_kernels.cuda_cpu import KernelError, Module, execution_order, launch

ALL_CASES = [(file, case) for file, cases in CASES.items() for case in cases]
SCHEDULES = [("ascending", 0), ("descending", 0), *(("random", seed) for seed in range(4))]

BARRIER = re.compile(r"__sync(threads|warp)\(\);|cp_async_wait<\d>\(\);")


@cache
def module_of(file, code=None):
    return Module(KERNELS / file, code=code, instantiations=INSTANTIATIONS.get(file, ()))


@pytest.mark.parametrize(("order", "seed"), SCHEDULES)
@pytest.mark.parametrize(("file", "case"), ALL_CASES, ids=lambda value: getattr(value, "__name__", value))
def test_right_under_every_order(file, case, order, seed):
    with execution_order(order, seed):
        case(module_of(file))


@pytest.mark.slow
@pytest.mark.parametrize(("file", "case"), ALL_CASES, ids=lambda value: getattr(value, "__name__", value))
def test_right_under_many_random_orders(file, case):
    for seed in range(300):
        with execution_order("random", seed):
            case(module_of(file))


def with_numbered_barriers(file):
    """The source with each barrier behind `if (left_out != its number)`, and the lines they stand on."""
    source = (KERNELS / file).read_text()
    lines = [source[: found.start()].count("\n") + 1 for found in BARRIER.finditer(source)]
    numbers = iter(range(len(lines)))
    numbered = BARRIER.sub(lambda found: f"if (left_out != {next(numbers)}) {found[0]}", source)
    choose = 'extern "C" __global__ void leave_out(int barrier) { left_out = barrier; }'
    return f"__device__ int left_out = -1; {numbered}\n{choose}\n", lines


BARRIERS = [
    (file, number, line) for file in CASES for number, line in enumerate(with_numbered_barriers(file)[1])
]


@pytest.mark.parametrize(
    ("file", "number"), [pytest.param(file, number, id=f"{file}:{line}") for file, number, line in BARRIERS]
)
def test_a_missing_barrier_shows(file, number):
    crippled = module_of(file, with_numbered_barriers(file)[0])
    launch(crippled.get_function("leave_out"), (1,), (1,), (np.int32(number),))
    for order, seed in SCHEDULES:
        for case in CASES[file]:
            with execution_order(order, seed):
                try:
                    case(crippled)
                except (AssertionError, KernelError):
                    return
    pytest.fail("the barrier was left out and every result was still right")


@pytest.mark.parametrize("file", CASES)
def test_with_its_barriers_numbered_and_none_left_out_it_is_right(file):
    module = module_of(file, with_numbered_barriers(file)[0])
    launch(module.get_function("leave_out"), (1,), (1,), (np.int32(-1),))
    for case in CASES[file]:
        case(module)


def test_an_array_given_twice_is_one_array():
    x = np.arange(8, dtype=np.float32)
    launch(module_of("blocks.cu").get_function("scale"), (1,), (32,), (x, x, np.float32(3), np.int32(8)))
    np.testing.assert_array_equal(x, 3 * np.arange(8))


def test_a_kernel_of_cupy_is_launched_in_its_own_way():
    class CupyKernel:
        max_dynamic_shared_size_bytes = 48 * 1024

        def __call__(self, *arguments, **keywords):
            self.launched = arguments, keywords

    kernel = CupyKernel()
    launch(kernel, [2, 3], [32], [1.0], shared_bytes=100_000)
    assert kernel.launched == (((2, 3), (32,), (1.0,)), {"shared_mem": 100_000})
    assert kernel.max_dynamic_shared_size_bytes == 100_000
