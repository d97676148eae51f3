"""Passes that are written down once and repeated, on the stand-in for a GPU, which spoils what a capture computed."""

import shutil

import cupy_stand_in
import numpy as np
import pytest
from minift_kernels import gpu
from tiny import make_model, rows

import minift
from minift import cuda_graph, random
from minift.cuda_graph import GraphedPass, plain_pass
from minift.device import as_numpy

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="running CUDA C on the CPU needs g++")


@pytest.fixture(autouse=True)
def cupy():
    with cupy_stand_in.installed() as cupy:
        yield cupy
        gpu.allow_tf32(False)


def model_on_gpu(folder, task="text-classification", precision="float32", **method):
    model = make_model(folder, task=task).to(device="cuda").compute_in(precision)
    if method:
        minift.apply_method(model, method.pop("name"), **method)
    return model.train()


def batches_of(model, counts=(4, 4, 3, 4, 4)):
    """Batches of so many texts, all of other lengths."""
    return [
        model.pack([text for text, _ in pairs], [int(label == "positive") for _, label in pairs])
        for pairs in (rows(count, seed) for seed, count in enumerate(counts))
    ]


def losses_and_weights(run_pass, model, batches):
    """Of some steps, dropout and clipping included."""
    minift.manual_seed(5)
    optimizer = minift.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-3)
    losses = []
    for batch in batches:
        losses.append(run_pass(batch).item())
        optimizer.step(max_grad_norm=1.0)
        optimizer.zero_grad()
    return (
        losses,
        {name: each.numpy() for name, each in model.named_parameters()},
        random.default_generator.calls,
    )


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_rows_in_front_of_a_text_have_its_dtype(tmp_path, method):
    """And no graph: texts are put together one by one."""
    model = model_on_gpu(tmp_path, precision="bf16", name=method)
    run_pass = GraphedPass(model)
    (batch,) = batches_of(model, (3,))
    assert np.isfinite(run_pass(batch).item())
    assert run_pass.why_not is not None


@pytest.mark.parametrize(
    ("precision", "method"),
    [
        ("float32", {}),
        ("bf16", {}),
        ("float32", {"name": "lora", "rank": 2}),
        ("float32", {"name": "bitfit"}),
        ("float32", {"name": "houlsby"}),
        ("bf16", {"name": "ia3"}),
    ],
)
def test_steps_by_graphs_equal_steps_launch_by_launch(tmp_path, precision, method):
    plain = model_on_gpu(tmp_path, precision=precision, **method)
    want, want_weights, want_calls = losses_and_weights(
        lambda batch: plain_pass(plain, batch), plain, batches_of(plain)
    )
    model = model_on_gpu(tmp_path, precision=precision, **method)
    run_pass = GraphedPass(model)
    got, got_weights, calls = losses_and_weights(run_pass, model, batches_of(model))
    assert run_pass.why_not is None
    assert len(run_pass.graphs) == 2, "one for four texts and one for three: all have up to 64 tokens"
    tolerance = 2e-2 if precision == "bf16" else 1e-5
    np.testing.assert_allclose(got, want, tolerance)
    assert calls == want_calls
    for name, want_weight in want_weights.items():
        if not name.endswith("key.bias"):  # whose gradients are rounding errors
            np.testing.assert_allclose(got_weights[name], want_weight, tolerance, 3 * tolerance, err_msg=name)


@pytest.mark.parametrize(
    ("task", "targets"),
    [
        ("multi-label", np.array([[1, 0], [0, 0], [1, 1]], np.float32)),
        ("text-regression", np.array([1.5, -2, 0], np.float32)),
    ],
)
def test_tasks_with_an_answer_for_each_text_have_graphs(tmp_path, task, targets):
    model = model_on_gpu(tmp_path, task=task)
    batch = model.pack(["a good film", "a dull , dull book", "poor"], targets)
    minift.manual_seed(5)
    want = plain_pass(model, batch).item()
    want_gradients = {name: as_numpy(each.grad) for name, each in model.named_parameters()}
    model.zero_grad()
    minift.manual_seed(5)
    run_pass = GraphedPass(model)
    assert run_pass(batch).item() == pytest.approx(want, rel=1e-6)
    assert run_pass.why_not is None
    for name, each in model.named_parameters():
        np.testing.assert_allclose(as_numpy(each.grad), want_gradients[name], 1e-4, 1e-5, err_msg=name)


def test_a_graph_of_answers_for_each_token(tmp_path):
    model = model_on_gpu(tmp_path, task="token-classification")
    batch = model.pack([("a", "good", "film"), ("poor",)], [[1, 0, 1], [0]])
    minift.manual_seed(5)
    want = plain_pass(model, batch).item()
    model.zero_grad()
    minift.manual_seed(5)
    run_pass = GraphedPass(model)
    assert run_pass(batch).item() == pytest.approx(want, rel=1e-6)
    assert run_pass.why_not is None


def test_a_pass_that_asks_the_gpu_is_run_as_ever(tmp_path, capsys):
    """Question answering goes through the texts one by one, and where they begin the GPU would have to say."""
    model = model_on_gpu(tmp_path, task="question-answering")
    batch = model.pack([("poor", "a good film"), ("a film", "dull book")], [((2, 6),), ()])
    minift.manual_seed(5)
    want = plain_pass(model, batch).item()
    calls = random.default_generator.calls
    model.zero_grad()
    minift.manual_seed(5)
    run_pass = GraphedPass(model)
    assert run_pass(batch).item() == want
    assert random.default_generator.calls == calls
    assert "minift: steps run without a CUDA graph (" in capsys.readouterr().err
    model.zero_grad()
    run_pass(batch)
    assert not run_pass.graphs
    assert capsys.readouterr().err == "", "it is said once"


def test_gradients_of_two_passes_are_added(tmp_path):
    model = model_on_gpu(tmp_path)
    first, second = batches_of(model, (3, 3))
    run_pass = GraphedPass(model)
    run_pass(first)
    name, parameter = next(model.named_parameters())
    alone = as_numpy(parameter.grad).copy()
    calls = random.default_generator.calls
    run_pass(second)
    both = as_numpy(parameter.grad).copy()
    model.zero_grad()
    random.default_generator.calls = calls
    plain_pass(model, second)
    np.testing.assert_allclose(both, alone + as_numpy(parameter.grad), 1e-5, 1e-6, err_msg=name)


def test_what_is_trained_may_change(tmp_path):
    model = model_on_gpu(tmp_path)
    (batch,) = batches_of(model, (3,))
    run_pass = GraphedPass(model)
    run_pass(batch)
    model.zero_grad()
    model.bert.requires_grad_(False)
    run_pass(batch)
    trained = {name for name, each in model.named_parameters() if each.grad is not None}
    assert trained == {"classifier.weight", "classifier.bias"}
    assert len(run_pass.graphs) == 2


def test_weights_may_be_put_elsewhere(tmp_path):
    model = model_on_gpu(tmp_path).eval()
    (batch,) = batches_of(model, (3,))
    run_pass = GraphedPass(model)
    run_pass(batch)
    model.zero_grad()
    for parameter in model.parameters():
        parameter.data = 2 * parameter.data
    loss = run_pass(batch).item()
    model.zero_grad()
    assert loss == pytest.approx(plain_pass(model, batch).item(), rel=1e-6)


def test_a_graph_that_gives_something_else_is_not_believed(tmp_path, monkeypatch, capsys):
    launch = cupy_stand_in.Graph.launch

    def launch_half(graph, stream):
        graph.actions = graph.actions[: len(graph.actions) // 2]
        launch(graph, stream)

    model = model_on_gpu(tmp_path)
    (batch,) = batches_of(model, (3,))
    minift.manual_seed(5)
    want = plain_pass(model, batch).item()
    model.zero_grad()
    minift.manual_seed(5)
    monkeypatch.setattr(cupy_stand_in.Graph, "launch", launch_half)
    run_pass = GraphedPass(model)
    assert run_pass(batch).item() == want
    assert "without it (" in run_pass.why_not
    assert run_pass.why_not in capsys.readouterr().err


def test_where_no_memory_is_left_graphs_give_theirs_back(tmp_path, cupy, monkeypatch, capsys):
    """And keep it until then: their pool must not free what the graphs before still use, to make room for another."""
    model = model_on_gpu(tmp_path)
    small, large = batches_of(model, (2, 4))
    minift.manual_seed(5)
    run_pass = GraphedPass(model)
    run_pass(small)
    model.zero_grad()
    pool, calls = run_pass._pool, random.default_generator.calls
    assert len(run_pass.graphs) == 1

    def once_full(size):
        monkeypatch.undo()
        raise cupy.cuda.runtime.CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")

    monkeypatch.setattr(cupy.cuda, "Memory", once_full)
    loss = run_pass(large).item()
    assert not pool.gave_back
    assert not run_pass.graphs
    assert run_pass._pool is None
    expected = "(MemoryError: 512 bytes more for a graph: cudaErrorMemoryAllocation: out of memory)"
    assert expected in capsys.readouterr().err
    model.zero_grad()
    random.default_generator.calls = calls
    assert loss == plain_pass(model, large).item()


def test_whoever_asks_which_launch_went_wrong_gets_no_graph(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    model = model_on_gpu(tmp_path)
    (batch,) = batches_of(model, (3,))
    run_pass = GraphedPass(model)
    run_pass(batch)
    assert not run_pass.graphs


def test_the_oldest_graph_makes_room(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_graph, "MOST_GRAPHS", 2)
    model = model_on_gpu(tmp_path)
    run_pass = GraphedPass(model)
    for batch in batches_of(model, (2, 3, 4)):
        run_pass(batch)
        model.zero_grad()
    texts = [shapes[3][0][0] - 1 for shapes, _, _ in run_pass.graphs]  # of the offsets
    assert texts == [3, 4]


@pytest.mark.parametrize(
    ("tokens", "filled"), [(1, 64), (64, 64), (65, 128), (800, 832), (1024, 1024), (2049, 2176), (5000, 5120)]
)
def test_batches_are_filled_up_to_few_sizes(tmp_path, tokens, filled):
    batch = minift.data.Batch(
        ids=np.ones(tokens, np.int64),
        token_types=np.ones(tokens, np.int64),
        positions=np.arange(tokens),
        offsets=np.array([0, tokens]),
        labels=np.ones(tokens, np.int64),
    )
    result = cuda_graph._filled_up(batch)
    assert [len(array) for array in (result.ids, result.token_types, result.positions)] == 3 * [filled]
    assert result.offsets.tolist() == [0, tokens]
    assert (result.labels[tokens:] == -100).all()
    assert (filled - tokens) / tokens <= 1 / 16 or filled - tokens < 64
