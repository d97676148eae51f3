"""AddressSanitizer and UBSan are silent on right kernels and find what is planted, down to a single byte."""

from functools import cache

import numpy as np
import pytest
from cuda_cases import CASES, INSTANTIATIONS, KERNELS
from minift_kernels.cuda_cpu import KernelError, Module, execution_order, launch

pytestmark = pytest.mark.slow


@cache
def module_of(file, sanitize):
    return Module(KERNELS / file, instantiations=INSTANTIATIONS.get(file, ()), sanitize=sanitize)


@pytest.mark.parametrize("order", ["ascending", "random"])
@pytest.mark.parametrize("sanitize", ["address", "undefined"])
@pytest.mark.parametrize(
    ("file", "case"),
    [(file, case) for file, cases in CASES.items() for case in cases],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_silent_on_right_kernels(file, case, sanitize, order):
    with execution_order(order, 1):
        case(module_of(file, sanitize))


@pytest.mark.parametrize(
    ("sanitize", "kernel", "arguments", "expected"),
    [
        ("address", "read_at", (np.zeros(3, np.float32), np.zeros(1, np.float32), np.int32(3)), "READ"),
        ("address", "read_at", (np.zeros(3, np.float32), np.zeros(1, np.float32), np.int32(-1)), "READ"),
        ("address", "write_at", (np.zeros(3, np.float32), np.int32(3)), "WRITE"),
        ("address", "shared_pointer", (np.zeros(32, np.float32), np.int32(32)), "global-buffer-overflow"),
        ("address", "shared_pointer", (np.zeros(32, np.float32), np.int32(-1)), "global-buffer-overflow"),
        ("address", "local_pointer", (np.zeros(32, np.float32), np.int32(32)), "stack-buffer-"),
        ("address", "local_pointer", (np.zeros(32, np.float32), np.int32(-1)), "stack-buffer-"),
        ("undefined", "overflow", (np.full(32, 2**31 - 1, np.int32), np.int32(1)), "signed integer overflow"),
        ("undefined", "shared_index", (np.zeros(32, np.float32), np.int32(32)), "index 32 out of bounds"),
    ],
)
@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_finds_what_is_planted(sanitize, kernel, arguments, expected, order):
    with pytest.raises(KernelError) as caught, execution_order(order):
        launch(module_of("faults.cu", sanitize).get_function(kernel), (1,), (32,), arguments)
    report = str(caught.value)
    thread = {"overflow": {"ascending": 0, "descending": 31}[order]}.get(kernel, 5)
    assert expected in report
    assert f"cuda_cpu: kernel {kernel}, block (0, 0, 0), thread ({thread}, 0, 0)" in report
    assert "faults.cu:" in report
