"""One contract for all rungs of an operation: see `kernel_cases.py` for what is run on what.

Every rung, on every case: the values of the float64 reference, the same bits twice, the same values from
arrays that are not contiguous, and no byte read or written that it was not given."""

import numpy as np
import pytest
from guards import GuardedNumpy, guarded
from kernel_cases import OPERATIONS
from minift_kernels import OPERATIONS as LADDERS

CASES = [
    pytest.param(operation, rung, inputs, id=f"{operation}-{rung}-{name}")
    for operation, (_, cases) in OPERATIONS.items()
    for name, inputs in cases()
    for rung in LADDERS[operation].rungs
]

each_case = pytest.mark.parametrize(("operation", "rung", "inputs"), CASES)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN and infinity are among the inputs

RELATIVE, ABSOLUTE = 3e-6, 1e-6
"""Of each value, and of the largest value beside it: some 25 and 8 units of float32's last place."""


@each_case
def test_equals_the_float64_reference(operation, rung, inputs):
    want = run(operation, "reference", inputs)
    got = run(operation, rung, changed(inputs, as_float32))
    for name in want:
        _check_close(got[name], want[name], f"{operation} {rung} {name}")


@each_case
def test_gives_the_same_bits_twice(operation, rung, inputs):
    inputs = changed(inputs, as_float32)
    first, second = run(operation, rung, inputs), run(operation, rung, inputs)
    for name in first:
        assert first[name].tobytes() == second[name].tobytes(), name


@each_case
def test_takes_arrays_that_are_not_contiguous(operation, rung, inputs):
    inputs = changed(inputs, as_float32)
    want = run(operation, rung, inputs)
    for spread in (every_second, column_by_column):
        got = run(operation, rung, changed(inputs, spread))
        for name in want:
            _check_close(got[name], want[name], f"{spread.__name__} {name}")


@each_case
def test_stays_inside_its_arrays(operation, rung, inputs, monkeypatch):
    inputs = changed(inputs, as_float32)
    want = run(operation, rung, inputs)
    numpy = GuardedNumpy()
    module = LADDERS[operation].rungs[rung]
    if hasattr(module, "np"):
        monkeypatch.setattr(module, "np", numpy)  # what it allocates for its results
    guards = []
    got = run(operation, rung, changed(inputs, lambda x: guarded(x, guards)))
    for name in want:
        assert got[name].tobytes() == want[name].tobytes(), name
    for guard in guards + numpy.guards:
        guard.check()


def run(operation, rung, inputs):
    return OPERATIONS[operation][0](LADDERS[operation].rungs[rung], **inputs)


def changed(inputs, change):
    """The same inputs with `change` applied to every array."""

    def apply(value):
        if isinstance(value, list):
            return [change(array) for array in value]
        return change(value) if isinstance(value, np.ndarray) else value

    return {name: apply(value) for name, value in inputs.items()}


def as_float32(x):
    return x.astype(np.float32) if x.dtype == np.float64 else x


def every_second(x):
    """A view of every second element of each axis of a larger array."""
    larger = np.empty([2 * length for length in x.shape], x.dtype)
    view = larger[tuple(slice(None, None, 2) for _ in x.shape)]
    view[...] = x
    return view


def column_by_column(x):
    return np.asfortranarray(x)


def _check_close(got, want, name):
    assert got.shape == want.shape, name
    largest = np.abs(want[np.isfinite(want)]).max(initial=0)
    smallest = np.finfo(np.float32).tiny  # what lies below may be 0 in float32
    np.testing.assert_allclose(got, want, RELATIVE, ABSOLUTE * largest + smallest, err_msg=name)
