"""The engine: history, the walk, what is kept and what is let go."""

import gc
import weakref

import numpy as np
import pytest

from minift import Tensor, detect_anomaly, manual_seed, mse_loss, no_grad, ops
from minift.nn import Linear, Module, ModuleList


def test_every_node_is_visited_once_and_after_all_that_used_it():
    # A ladder of diamonds: walking each path by itself would take 2^60 visits.
    x = Tensor([1.5], requires_grad=True)
    y = x
    for _ in range(60):
        y = y + y
    steps = list(y.backward_steps())
    assert len(steps) == 60
    assert x.grad == 2.0**60


def test_a_late_use_of_an_early_tensor_is_counted_before_the_early_one_goes_back():
    # Depth first from the loss would reach `early` by its short path before the long one has sent its share.
    x = Tensor([2.0], requires_grad=True)
    early = x * x
    late = early.exp().log() * early  # early^2
    (late + early).backward()
    np.testing.assert_allclose(x.grad, 4 * 2.0**3 + 2 * 2.0, rtol=1e-6)


def test_history_of_twenty_thousand_operations_needs_no_recursion():
    x = Tensor([1.0], requires_grad=True)
    y = x
    for _ in range(20_000):
        y = y + 0.0
    y.backward()
    assert x.grad == 1.0
    del y
    gc.collect()


def test_stopping_half_way_and_going_on_gives_the_same_bits():
    def loss_of(weight):
        x = Tensor(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3))
        return ops.softmax(ops.gelu(x @ weight)).log().mean()

    values = np.random.default_rng(0).standard_normal((3, 5), dtype=np.float32)
    whole, stepped = Tensor(values, requires_grad=True), Tensor(values, requires_grad=True)
    loss_of(whole).backward()
    steps = loss_of(stepped).backward_steps()
    for _ in range(3):
        next(steps)
    assert stepped.grad is None
    for _ in steps:
        pass
    np.testing.assert_array_equal(stepped.grad, whole.grad)


def test_second_backward_is_an_error_that_says_so():
    x = Tensor([1.0], requires_grad=True)
    y = x * x
    z = y.sum()
    z.backward()
    with pytest.raises(RuntimeError, match="consumed by an earlier backward"):
        z.backward()
    with pytest.raises(RuntimeError, match=r"mul .*consumed by an earlier backward"):
        (y + 1).backward()
    assert x.grad == 2.0


def test_gradients_add_up_over_calls_until_they_are_forgotten():
    x = Tensor([3.0], requires_grad=True)
    (x * x).backward()
    (x * x).backward()
    assert x.grad == 12.0


def test_backward_of_many_elements_or_without_history_is_an_error():
    with pytest.raises(RuntimeError, match="scalar"):
        (Tensor([1.0, 2.0], requires_grad=True) * 2).backward()
    with pytest.raises(RuntimeError, match="no history"):
        Tensor([1.0]).backward()


def test_a_gradient_of_another_shape_is_an_error():
    leaf = Tensor(np.ones(3), requires_grad=True)
    for tensor in (leaf, leaf * 2):
        with pytest.raises(ValueError, match=r"shape \(3,\) was given a gradient of \(5, 3\)"):
            tensor.backward(np.ones((5, 3)))


def test_a_gradient_has_the_dtype_of_its_leaf():
    single = Tensor(np.ones(3, np.float32), requires_grad=True)
    (single * Tensor(np.ones(3))).sum().backward()
    assert single.grad.dtype == np.float32


def test_no_grad_leaves_no_history():
    x = Tensor([1.0], requires_grad=True)
    with no_grad():
        y = x * x
    assert y.node is None
    assert not y.requires_grad
    assert (x * x).node is not None


def test_integers_cannot_require_a_gradient():
    with pytest.raises(TypeError, match="int64"):
        Tensor(np.arange(3), requires_grad=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_do_not_change_the_dtype(dtype):
    x = Tensor(np.ones(3, dtype), requires_grad=True)
    y = (2.0 * x / 3 - 1) ** 2
    y.mean().backward()
    assert y.dtype == dtype
    assert x.grad.dtype == dtype


def test_array_times_tensor_is_a_tensor():
    x = Tensor([1.0, 2.0], requires_grad=True)
    (np.array([3.0, 4.0]) * x).sum().backward()
    np.testing.assert_array_equal(x.grad, [3.0, 4.0])


def test_a_tensor_is_its_values_for_numpy_and_python():
    x = Tensor([1.0, 2.5], requires_grad=True)
    np.testing.assert_array_equal(np.asarray(x.detach()), [1.0, 2.5])
    assert np.asarray(x.detach()).dtype == np.float32
    assert float(x[1:].sum()) == 2.5


def test_a_history_is_not_lost_on_the_way_to_an_array():
    x = Tensor([1.0, 2.5], requires_grad=True)
    for lose in (np.asarray, lambda y: mse_loss(x, y), lambda y: x * [y.sum(), y.sum()]):
        with pytest.raises(TypeError, match="a tensor with a history is no array"):
            lose(x * 2.0)


@pytest.mark.parametrize("seed", ["x", 1.5, None])
def test_a_seed_is_an_integer(seed):
    with pytest.raises(TypeError, match="a seed is an integer"):
        manual_seed(seed)


def test_wrong_shape_from_a_backward_is_named():
    x = Tensor([1.0, 2.0], requires_grad=True)

    def backward(dy):
        return (np.ones(3),)

    y = Tensor(x.data, parents=(x,), backward=backward)
    with pytest.raises(ValueError, match=r"shape \(3,\).*shape \(2,\)"):
        y.backward(np.ones(2))


# ---- What is kept ----------------------------------------------------------------------------------------------


def saved_arrays(tensor):
    """The arrays that the history of a tensor keeps alive for its backward, found in the closures."""
    found, nodes = {}, [tensor.node]
    while nodes:
        node = nodes.pop()
        for cell in node.backward.__closure__ or ():
            if isinstance(cell.cell_contents, np.ndarray):
                found[id(cell.cell_contents)] = cell.cell_contents
        nodes.extend(parent for parent in node.parents if hasattr(parent, "parents"))
    return list(found.values())


def test_nothing_is_kept_for_a_frozen_weight():
    x = Tensor(np.ones((4, 3), np.float32), requires_grad=True)
    weight = Tensor(np.ones((2, 3), np.float32))
    y = ops.linear(x, weight)
    assert [array is weight.data for array in saved_arrays(y)] == [True]


def test_nothing_is_kept_where_nothing_needs_a_gradient():
    x = Tensor(np.ones((4, 3), np.float32))
    y = ops.gelu(ops.linear(x, Tensor(np.ones((2, 3), np.float32))))
    assert y.node is None


def test_a_sum_keeps_neither_summand():
    weight = Tensor(np.ones((3, 3), np.float32), requires_grad=True)
    a = weight * 2.0
    kept = weakref.ref(a.data)
    y = (a + weight).sum()
    del a
    assert kept() is None, "y only needs to know that a was there"
    y.backward()


def test_an_activation_is_released_as_soon_as_its_operation_has_gone_back():
    x = Tensor(np.ones((50, 8), np.float32), requires_grad=True)
    activations, y = [], x
    for _ in range(5):
        y = ops.gelu(y * 1.0)
        activations.append(weakref.ref(y.data))
    loss = y.sum()
    del y
    alive = [sum(reference() is not None for reference in activations)]
    for step in loss.backward_steps():
        if step.node.operation == "mul":
            del step
            alive.append(sum(reference() is not None for reference in activations))
    # The last gelu's output is needed by nobody. Each mul by 1.0 keeps nothing of x, each gelu its input.
    assert alive == sorted(alive, reverse=True)
    assert alive[-1] == 0


def test_memory_falls_while_the_walk_goes_back():
    import tracemalloc

    x = Tensor(np.ones((1000, 100), np.float32), requires_grad=True)
    size = x.data.nbytes
    tracemalloc.start()
    y = x
    for _ in range(20):
        y = y.tanh()
    loss = y.sum()
    del y
    held_before = tracemalloc.get_traced_memory()[0]
    assert held_before > 19 * size  # the outputs of 20 tanh
    tracemalloc.reset_peak()
    loss.backward()
    held_after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (
        peak < held_before + 3.5 * size
    )  # never more than a gradient coming in, one going out, and temporaries
    assert held_after < 1.5 * size  # x.grad


# ---- What a node knows ------------------------------------------------------------------------------------------


class Twice(Module):
    def __init__(self):
        self.layer = ModuleList([Linear(3, 3), Linear(3, 3)])

    def forward(self, x):
        for layer in self.layer:
            x = layer(x)  # the line that the nodes name
        return x


class Model(Module):
    def __init__(self):
        self.twice = Twice()

    def forward(self, x):
        return self.twice(x).tanh()


def test_a_node_knows_operation_module_and_line():
    y = Model()(Tensor(np.ones((2, 3), np.float32)))
    nodes = [step.node for step in y.sum().backward_steps()]
    assert [node.operation for node in nodes] == ["sum", "tanh", "linear", "linear"]
    assert [node.module for node in nodes] == ["", "", "twice.layer.1", "twice.layer.0"]
    with open(nodes[2].file) as source:
        assert "the line that the nodes name" in source.read().splitlines()[nodes[2].line - 1]


def test_repr_says_what_a_debugger_should_show():
    y = Model()(Tensor(np.ones((2, 30), np.float32)[:, :3]))
    text = repr(y)
    for fact in ("(2, 3)", "float32", "operation=tanh", "norm="):
        assert fact in text


def test_parameters_have_the_paths_of_their_attributes():
    assert [name for name, _ in Model().named_parameters()] == [
        "twice.layer.0.weight",
        "twice.layer.0.bias",
        "twice.layer.1.weight",
        "twice.layer.1.bias",
    ]


def test_a_shared_parameter_is_listed_once():
    model = Twice()
    model.layer[1].weight = model.layer[0].weight
    assert len(list(model.parameters())) == 3


def test_anomaly_detection_names_the_first_operation_that_is_not_finite():
    x = Tensor([-1.0], requires_grad=True)
    with (
        np.errstate(invalid="ignore"),
        detect_anomaly(),
        pytest.raises(FloatingPointError, match=r"log .*test_engine"),
    ):
        x.log().exp()
