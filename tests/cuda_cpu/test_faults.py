"""What a kernel does wrong is reported with kernel, block and thread."""

import signal
import threading
from functools import cache

import numpy as np
import pytest
from cuda_cases import KERNELS
from minift_kernels.cuda_cpu import ORDERS, BuildError, KernelError, Module, execution_order, launch


@cache
def faults():
    return Module(KERNELS / "faults.cu")


def line_of(kernel, text):
    """ "faults.cu:12": the first line with this text, from the beginning of the kernel."""
    lines = (KERNELS / "faults.cu").read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if f" {kernel}(" in line)
    return f"faults.cu:{next(i for i in range(begin, len(lines)) if text in lines[i]) + 1}"


def report_of(name, arguments, grid=(1,), block=(32,), order="ascending"):
    with pytest.raises(KernelError) as caught, execution_order(order):
        launch(faults().get_function(name), grid, block, arguments)
    return str(caught.value)


@pytest.mark.parametrize("order", ORDERS)
def test_divergent_barrier_names_who_waits_where(order):
    report = report_of("divergent_barrier", (np.zeros(64, np.float32),), block=(64,), order=order)
    first = line_of("divergent_barrier", "__syncthreads")
    second = f"faults.cu:{int(first.split(':')[1]) + 4}"
    assert report == (
        "kernel divergent_barrier, block (0, 0, 0): divergent barrier: "
        f"threads (0, 0, 0) to (31, 0, 0) wait at __syncthreads() in {first}; "
        f"threads (32, 0, 0) to (63, 0, 0) wait at __syncthreads() in {second}"
    )


def test_barrier_names_who_returned():
    report = report_of("return_before_barrier", (np.zeros(100, np.float32), np.int32(100)), (2,), (64,))
    assert "block (1, 0, 0): divergent barrier" in report
    barrier = line_of("return_before_barrier", "__syncthreads")
    assert f"threads (0, 0, 0) to (35, 0, 0) wait at __syncthreads() in {barrier}" in report
    assert "threads (36, 0, 0) to (63, 0, 0) returned from the kernel" in report


def test_shuffle_that_not_all_lanes_reach():
    report = report_of("shuffle_without_all", (np.zeros(32, np.float32),))
    shuffle, barrier = (
        line_of("shuffle_without_all", text) for text in ("__shfl_down_sync", "__syncthreads")
    )
    assert f"threads (0, 0, 0) to (15, 0, 0) wait at __shfl_down_sync(mask 0xffffffff) in {shuffle}" in report
    assert f"threads (16, 0, 0) to (31, 0, 0) wait at __syncthreads() in {barrier}" in report


def test_shuffle_outside_its_mask():
    report = report_of("shuffle_outside_mask", (np.zeros(32, np.float32),))
    shuffle = line_of("shuffle_outside_mask", "__shfl_sync")
    assert f"thread (16, 0, 0): {shuffle}: __shfl_sync(mask 0x0000ffff) is called by lane 16" in report


def test_spin_that_nothing_can_end():
    report = report_of("wait_for_ever", (np.zeros(1, np.int32),))
    atomic = line_of("wait_for_ever", "atomicAdd")
    assert f"threads spin for ever: threads (0, 0, 0) to (31, 0, 0) spin on an atomic at {atomic}" in report


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("index", [-2000, 2000])
def test_write_outside_an_array(index, order):
    report = report_of("write_at", (np.zeros(64, np.float32), np.int32(index)), order=order)
    assert "kernel write_at, block (0, 0, 0), thread (5, 0, 0): out of bounds" in report
    assert f"touched element {index} of x, which has 64" in report
    assert f"({line_of('write_at', 'x[i]')})" in report


@pytest.mark.parametrize(("index", "order"), [(64, "ascending"), (-1, "descending")])
def test_read_just_outside_an_array(index, order):
    arguments = (np.zeros(64, np.float32), np.zeros(1, np.float32), np.int32(index))
    report = report_of("read_at", arguments, order=order)
    line = line_of("read_at", "x[i]")
    assert f"thread (5, 0, 0): out of bounds: touched element {index} of x, which has 64 ({line})" in report


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("index", "size"), [(-1, 64), (64, 64), (-1, 3), (3, 3)])
def test_write_just_outside_an_array(index, size, order):
    report = report_of("write_at", (np.zeros(size, np.float32), np.int32(index)), order=order)
    assert "kernel write_at, block (0, 0, 0)" in report
    assert f"element {index} of x, which has {size}" in report


@pytest.mark.parametrize("index", [32, -1])
def test_index_outside_a_shared_array(index):
    report = report_of("shared_index", (np.zeros(32, np.float32), np.int32(index)))
    line = line_of("shared_index", "values[i]")
    assert f"thread (5, 0, 0): {line}: out of bounds: index {index} of 'float [32]'" in report


def test_shared_memory_begins_as_nan():
    x = np.zeros(32, np.float32)
    launch(faults().get_function("unwritten_shared"), (1,), (32,), (x,))
    assert np.isnan(x[0])
    assert np.all(x[1:] == 1)


def test_misaligned_vector_load():
    report = report_of("misaligned", (np.zeros(64, np.float32), np.zeros(1, np.float32)))
    assert f"thread (0, 0, 0): {line_of('misaligned', 'x + 1')}: misaligned address" in report
    assert "16 bytes of 'const struct float4'" in report


def test_no_array_given():
    assert "touched address (nil), which belongs to no argument" in report_of("write_at", (None, np.int32(0)))


def test_stack_overflow():
    report = report_of("stack_overflow", (np.zeros(32, np.int32), np.int32(1000)))
    assert "touched its stack's end: a thread has 256 KiB" in report


def test_division_by_zero():
    assert "integer division by zero" in report_of("divide", (np.ones(32, np.int32), np.int32(0)))


def test_assertion_and_trap():
    code = """
        #include <assert.h>
        extern "C" __global__ void assertion(int* x) { assert(x[threadIdx.x] < 7); }
        extern "C" __global__ void trap(int* x) { if (x[threadIdx.x] == 7) __trap(); }
    """
    module = Module(KERNELS / "faults.cu", code=code)
    x = np.arange(10, dtype=np.int32)
    with pytest.raises(
        KernelError, match=r"thread \(7, 0, 0\): faults.cu:3: assertion failed: x\[threadIdx.x\] < 7"
    ):
        launch(module.get_function("assertion"), (1,), (10,), (x,))
    with pytest.raises(KernelError, match=r"thread \(7, 0, 0\): __trap\(\) was called"):
        launch(module.get_function("trap"), (1,), (10,), (x,))


def test_an_interrupt_ends_a_kernel_that_hangs():
    main = threading.get_ident()
    timer = threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt) as caught:
        launch(faults().get_function("hang"), (1,), (32,), (np.zeros(1, np.int32),))
    line = line_of("hang", "while")
    assert f"kernel hang, block (0, 0, 0), thread (0, 0, 0): interrupted ({line})" in str(caught.value)


def test_a_launch_after_a_fault_is_right():
    x = np.full(32, 6, np.int32)
    report_of("divide", (x, np.int32(0)))
    launch(faults().get_function("divide"), (1,), (32,), (x, np.int32(3)))
    assert np.all(x == 2)


def test_arguments_are_checked():
    kernel = faults().get_function("write_at")
    x, i = np.zeros(4, np.float32), np.int32(0)
    read_only = x.copy()
    read_only.flags.writeable = False
    for arguments, error in [
        ((x,), "write_at takes 2 arguments (x, i), got 1"),
        ((x, 0), "argument i must be a NumPy scalar int32, not int"),
        ((x, True), "argument i must be a NumPy scalar int32, not bool"),
        ((np.float32(0), i), "argument x must be an array of float32, not a scalar float32"),
        ((x, np.float32(0)), "argument i must be a NumPy scalar int32, not float32"),
        ((x.astype(np.float64), i), "argument x must be an array of float32, not float64"),
        ((i, i), "argument x must be an array of float32, not a scalar int32"),
        ((x[::2], i), "argument x must be contiguous"),
        ((read_only, i), "argument x is written by the kernel, and the array is read-only"),
    ]:
        with pytest.raises((TypeError, ValueError)) as caught:
            launch(kernel, (1,), (1,), arguments)
        assert error in str(caught.value)
    with pytest.raises(ValueError, match="share a part of their memory"):
        launch(faults().get_function("read_at"), (1,), (1,), (x[:3], x[1:], i))
    with pytest.raises(ValueError, match="at most 1024 threads, this one has 2048"):
        launch(kernel, (1,), (64, 32), (x, i))
    for grid in [(0,), (1, 65536), ()]:
        with pytest.raises(ValueError, match="grid must be one to three numbers from 1 to"):
            launch(kernel, grid, (1,), (x, i))
    with pytest.raises(ValueError, match="no execution order 'backwards'"), execution_order("backwards"):
        pass


def test_an_unknown_kernel_lists_those_there_are():
    with pytest.raises(KeyError, match="has no kernel 'writeat'; it has divergent_barrier, "):
        faults().get_function("writeat")


def test_a_compile_error_names_file_and_line(tmp_path):
    path = tmp_path / "wrong.cu"
    path.write_text("__global__ void k(float* x) {\n    x[0] = y;\n}\n")
    with pytest.raises(BuildError) as caught:
        Module(path)
    assert "g++ refused wrong.cu" in str(caught.value)
    assert "wrong.cu:2:12: error: 'y' was not declared" in str(caught.value).replace("‘", "'").replace(
        "’", "'"
    )


def test_a_missing_compiler_is_one_clear_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BuildError, match="needs g\\+\\+, and there is none on the PATH"):
        Module(KERNELS / "faults.cu", code="__global__ void never_built(int* x) {}")
