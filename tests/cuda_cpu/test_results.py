"""Right kernels give right results, whatever the order; a kernel that lacks a barrier does not."""

import re
from functools import cache

import pytest
from cases import CASES, INSTANTIATIONS, KERNELS

from minift_kernels.cuda_cpu import KernelError, Module, execution_order

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


def barriers_of(file):
    """(the line, the source without its barrier) for every barrier of a file."""
    source = (KERNELS / file).read_text()
    for found in BARRIER.finditer(source):
        line = source[: found.start()].count("\n") + 1
        yield line, source[: found.start()] + ";" + source[found.end() :]


@pytest.mark.parametrize(
    ("file", "line", "code"),
    [pytest.param(file, *barrier, id=f"{file}:{barrier[0]}") for file in CASES for barrier in barriers_of(file)],
)
def test_a_missing_barrier_shows(file, line, code):
    crippled = module_of(file, code)
    for order, seed in SCHEDULES:
        for case in CASES[file]:
            with execution_order(order, seed):
                try:
                    case(crippled)
                except (AssertionError, KernelError):
                    return
    pytest.fail(f"{file}:{line}: the barrier was taken out and every result was still right")
