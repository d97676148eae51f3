"""One contract for all rungs of an operation: see `kernel_cases.py` for what is run on what.

Every rung, on every case: the values of the float64 reference, the same bits twice, the same values from
arrays that are not contiguous, and no byte read or written that it was not given.

CUDA C runs on the CPU here (`test_cuda_c.py` has what only concerns CUDA C: it gives the same bits in every
order of threads); Numba's CUDA kernels run where the simulator is on, which `test_numba_cuda.py` sees to.
"""

import inspect

import numpy as np
import pytest
from guards import PlacingNumpy, SideBySide, guarded
from kernel_cases import (
    SIMULATING,
    absolute_bound,
    as_float32,
    changed,
    check_close,
    each_case,
    elements,
    run,
    rungs_to_test,
)
from minift_kernels import OPERATIONS as LADDERS
from minift_kernels import arrays
from minift_kernels.ladder import family_of

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN and infinity are among the inputs

every_rung = each_case(rungs_to_test)
rungs_of_the_cpu = each_case(
    lambda operation: [rung for rung in rungs_to_test(operation) if family_of(rung) == "numba_cpu"]
)
every_rung_but_cuda_c = each_case(
    lambda operation: [rung for rung in rungs_to_test(operation) if family_of(rung) != "cuda_c"]
)


@every_rung
def test_equals_the_float64_reference(operation, rung, inputs):
    want = run(operation, "reference", inputs)
    got = run(operation, rung, changed(inputs, as_float32))
    absolute = absolute_bound(operation, inputs)
    for name in want:
        where = f"{operation} {rung} {name}"
        check_close(got[name], want[name], where, LADDERS[operation].rungs[rung], absolute=absolute)


@every_rung_but_cuda_c
def test_gives_the_same_bits_twice(operation, rung, inputs):
    if not getattr(LADDERS[operation].rungs[rung], "deterministic", True):
        pytest.skip("the rung adds in an order that changes, and says so")
    inputs = changed(inputs, as_float32)
    first, second = run(operation, rung, inputs), run(operation, rung, inputs)
    for name in first:
        assert first[name].tobytes() == second[name].tobytes(), name


@rungs_of_the_cpu
def test_gives_the_same_bits_wherever_arrays_lie(operation, rung, inputs, monkeypatch):
    """Compilers make two loops of one: where arrays are so near that they might overlap, numbers go one by one."""
    if elements(inputs) > 100_000:
        pytest.skip("arrays of this size are never near each other throughout")
    inputs = changed(inputs, as_float32)
    apart = run(operation, rung, changed(inputs, lambda x: guarded(x, [])))
    for given in inputs:  # results begin where this one ends
        memory = SideBySide()
        allocate_by(memory.place, operation, rung, monkeypatch)
        near = run(operation, rung, changed(inputs, memory.place, leave=inputs.keys() - {given}))
        for name in apart:
            assert np.asarray(near[name]).tobytes() == np.asarray(apart[name]).tobytes(), (given, name)


def allocate_by(place, operation, rung, monkeypatch):
    """Have what a rung allocates for its results lie where `place` copies it."""
    numpy = PlacingNumpy(place)
    module = inspect.getmodule(LADDERS[operation].rungs[rung])
    if hasattr(module, "np"):
        monkeypatch.setattr(module, "np", numpy)
    monkeypatch.setattr(arrays, "np", numpy)  # for rungs that run on a GPU too


@every_rung
def test_takes_arrays_that_are_not_contiguous(operation, rung, inputs):
    inputs = changed(inputs, as_float32)
    want = run(operation, rung, inputs)
    for spread in (every_second, column_by_column):
        if spread is every_second and operation in ("matmul", "attention") and SIMULATING:
            continue  # these rungs pass on what they are given, and the simulator refuses arrays with gaps
        got = run(operation, rung, changed(inputs, spread))
        for name in want:
            check_close(got[name], want[name], f"{spread.__name__} {name}", LADDERS[operation].rungs[rung])


@every_rung_but_cuda_c
def test_stays_inside_its_arrays(operation, rung, inputs, monkeypatch):
    inputs = changed(inputs, as_float32)
    want = run(operation, rung, inputs)
    guards = []
    allocate_by(lambda x: guarded(x, guards), operation, rung, monkeypatch)
    got = run(operation, rung, changed(inputs, lambda x: guarded(x, guards)))
    for name in want:
        assert got[name].tobytes() == want[name].tobytes(), name
    for guard in guards:
        guard.check()


def every_second(x):
    """A view of every second element of each axis of a larger array."""
    larger = np.empty([2 * length for length in x.shape], x.dtype)
    view = larger[tuple(slice(None, None, 2) for _ in x.shape)]
    view[...] = x
    return view


def column_by_column(x):
    return np.asfortranarray(x)


def test_every_default_rung_is_deterministic():
    for operation, ladder in LADDERS.items():
        defaults = [ladder.default(np.zeros(1, np.float32)), list(ladder.rungs)[-1]]
        for name in defaults:
            assert getattr(ladder.rungs[name], "deterministic", True), f"{operation} {name}"
