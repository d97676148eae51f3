"""Everything that minift does on a GPU, without one: CuPy is a strict stand-in, CUDA C runs on the CPU."""

import json
import shutil

import cupy_stand_in
import numpy as np
import pytest
import test_methods_families
from minift_kernels import OPERATIONS, gpu, matmul
from minift_kernels.cuda_cpu import KernelError
from tiny import make_model, rows, write_tsv

import minift
from minift import checkpoint, movement, train, training_state
from minift.cuda_graph import plain_pass
from minift.device import as_numpy
from minift.errors import InputError
from minift.train import TrainingConfig, finetune

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="running CUDA C on the CPU needs g++")

TEXTS = ["the film was great", "a dull , dull book", "poor", "it is not bad but it is not good ."]
LABELS = ["positive", "negative", "negative", "positive"]


@pytest.fixture
def cupy():
    with cupy_stand_in.installed() as cupy:
        yield cupy


def train_two_steps(model):
    """The losses and gradient norms of two steps, dropout and clipping included, and the weights after them."""
    minift.manual_seed(5)
    model.train()
    optimizer = minift.AdamW(minift.decay_groups(model), lr=1e-3)
    losses = []
    for _ in range(2):
        loss = minift.cross_entropy(model(TEXTS), LABELS, label_smoothing=0.1)
        loss.backward()
        norm = minift.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses += [loss.item(), norm]
    return losses, {name: parameter.numpy() for name, parameter in model.named_parameters()}


def test_two_steps_on_the_gpu_equal_two_steps_of_the_reference(tmp_path, cupy):
    with minift.use_kernels("reference"):
        want_losses, want = train_two_steps(make_model(tmp_path))
    model = make_model(tmp_path).to(device="cuda")
    losses, got = train_two_steps(model)
    assert all(isinstance(parameter.data, cupy.ndarray) for parameter in model.parameters())
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    assert_close(got, want, 1e-5)


def assert_close(got, want, tolerance):
    """The same weights, biases of keys aside: softmax does not see them, their gradients are rounding errors, and
    AdamW makes of each a step of full length."""
    assert got.keys() == want.keys()
    for name in want:
        if not name.endswith("key.bias"):
            np.testing.assert_allclose(got[name], want[name], tolerance, tolerance, err_msg=name)


@pytest.mark.parametrize(
    ("task", "inputs", "targets"),
    [
        ("multi-label", TEXTS, np.array([[1, 0], [0, 0], [1, 1], [0, 1]], np.float32)),
        ("text-regression", TEXTS, np.array([1.5, -2, 0, 3], np.float32)),
        ("token-classification", [tuple(text.split()) for text in TEXTS], [[1] * 4, [0] * 5, [1], [0] * 10]),
        ("question-answering", [(TEXTS[2], text) for text in TEXTS], [((4, 8),), (), ((0, 4),), ((3, 9),)]),
        ("fill-mask", ["[MASK] film", "the [MASK] [MASK] ,", "no mask"], None),
    ],
)
def test_the_loss_of_every_task_is_that_of_the_reference(tmp_path, cupy, task, inputs, targets):
    losses, gradients = [], []
    for device in ("cpu", "cuda"):
        with minift.use_kernels("reference"):
            model = make_model(tmp_path, task=task).to(device=device).eval()
            batch = model.pack(inputs, targets)
            loss = model.loss(model(batch), batch)
            loss.backward()
        losses.append(loss.item())
        gradients.append({name: as_numpy(each.grad) for name, each in model.named_parameters()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    for name, want in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], want, 1e-5, 1e-6, err_msg=name)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("family", test_methods_families.SIZES)
def test_every_family_computes_there_what_it_computes_here(tmp_path, cupy, family, precision):
    passes = []
    for device in ("cpu", "cuda"):
        model = test_methods_families.make(family, tmp_path).to(device=device).eval()
        if device == "cuda":
            model.compute_in(precision)
        batch = model.pack(TEXTS, [1, 0, 0, 1])
        loss = plain_pass(model, batch).item()
        passes.append((loss, {name: as_numpy(each.grad) for name, each in model.named_parameters()}))
    (want_loss, want), (loss, got) = passes
    assert loss == pytest.approx(want_loss, rel=1e-5 if precision == "float32" else 0.05)
    for name, want_gradient in want.items():
        if not name.endswith(("key.bias", "k_lin.bias", "k_proj.bias")):  # which are rounding errors
            error = np.linalg.norm(got[name] - want_gradient) / max(np.linalg.norm(want_gradient), 1e-3)
            assert error < (1e-4 if precision == "float32" else 0.3), name


def test_the_gpu_takes_the_best_rungs_and_launches_them(tmp_path, cupy, monkeypatch):
    launched = set()
    launch = gpu.launch
    monkeypatch.setattr(
        gpu, "launch", lambda file, *rest: (launched.add(file.parent.name), launch(file, *rest))
    )
    model = make_model(tmp_path).to(device="cuda")
    train_two_steps(model)
    minift.ops.softmax(
        minift.Tensor(cupy.ones((2, 3), np.float32))
    )  # BERT itself has it only inside attention
    with_cuda_c = {
        name
        for name, ladder in OPERATIONS.items()
        if ladder.default(model.classifier.weight.data).startswith("cuda_c")
    }
    assert launched == with_cuda_c


def test_a_step_waits_for_the_gpu_twice(tiny, tmp_path, cupy, monkeypatch):
    """For the loss, which must be a number before it moves any weight, and for the gradients' norm, which the log
    tells and clipping needs. A step that the report measures waits for the norms of each part, too."""
    counts = []
    step = minift.AdamW.step

    def counting(*arguments):
        counts.append(cupy_stand_in.waits)
        return step(*arguments)

    monkeypatch.setattr(minift.AdamW, "step", counting)
    monkeypatch.setattr(movement, "FEWEST", 1)  # the sixth step is measured
    write_tsv(tmp_path / "train.tsv", rows(12, seed=1))
    finetune(config(tiny, tmp_path / "out", train=tmp_path / "train.tsv", batch_size=2, dev=None))
    parts = 4
    assert np.diff(counts).tolist() == [2] * 4 + [2 + 2 * parts]


def config(tiny, out, **changes):
    plain = dict(
        model=str(tiny / "model"), train=tiny / "train.tsv", dev=tiny / "dev.tsv", epochs=1, device="cuda"
    )
    return TrainingConfig(out=out, learning_rate=3e-3, **(plain | changes))


def small(tiny, folder):
    """Data sets that an emulated GPU has done with soon."""
    return dict(
        train=write_tsv(folder / "train.tsv", rows(12, seed=1)),
        dev=write_tsv(folder / "dev.tsv", rows(4, seed=2)),
        batch_size=4,
    )


def test_a_whole_run_equals_the_same_on_the_cpu(tiny, tmp_path, cupy):
    data = small(tiny, tmp_path)
    on_gpu = finetune(config(tiny, tmp_path / "gpu", **data))
    on_cpu = finetune(config(tiny, tmp_path / "cpu", device="cpu", **data))
    for when in ("before", "after"):
        assert on_gpu[when]["loss"] == pytest.approx(on_cpu[when]["loss"], rel=1e-4)
        assert on_gpu[when]["accuracy"] == on_cpu[when]["accuracy"]
    assert_close(*(checkpoint.read_tensors(tmp_path / name) for name in ("gpu", "cpu")), 1e-4)


def test_a_run_that_was_stopped_goes_on(tiny, tmp_path, cupy, monkeypatch):
    data = small(tiny, tmp_path)
    finetune(config(tiny, tmp_path / "whole", **data))

    class Stopped(Exception):
        pass

    def save_and_stop(*arguments):
        save(*arguments)
        raise Stopped

    save = training_state.save
    monkeypatch.setattr(train.training_state, "save", save_and_stop)
    with pytest.raises(Stopped):
        finetune(config(tiny, tmp_path / "stopped", save_every=2, **data))
    finetune(config(tiny, tmp_path / "stopped", resume=True, **data))
    got, want = (checkpoint.read_tensors(tmp_path / name) for name in ("stopped", "whole"))
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def test_the_command_line(run, tiny, tmp_path, cupy):
    data = small(tiny, tmp_path)
    texts = [option for text in TEXTS for option in ("--text", text)][:2]
    outputs = {}
    for device in ("cpu", "cuda"):
        status, evaluated, error = run(
            "evaluate", tiny / "model", "--data", data["dev"], "--json", "--device", device
        )
        assert status == 0, error
        status, predicted, error = run("predict", tiny / "model", *texts, "--json", "--device", device)
        assert status == 0, error
        outputs[device] = json.loads(evaluated), json.loads(predicted)
    (metrics, prediction), (want_metrics, want_prediction) = outputs["cuda"], outputs["cpu"]
    assert metrics["loss"] == pytest.approx(want_metrics["loss"], rel=1e-5)
    assert prediction["label"] == want_prediction["label"]
    assert prediction["probabilities"] == pytest.approx(want_prediction["probabilities"], rel=1e-5)
    status, output, _ = run("info")
    assert status == 0
    assert "gpu: Stand-in GPU, 8.0 GiB" in output


def test_a_model_moves_there_and_back(tmp_path, cupy):
    model = make_model(tmp_path)
    before = {name: parameter.numpy().copy() for name, parameter in model.named_parameters()}
    model.to(device="cuda").to(device="cpu")
    for name, parameter in model.named_parameters():
        assert isinstance(parameter.data, np.ndarray)
        np.testing.assert_array_equal(parameter.data, before[name])


def test_the_engine_computes_where_its_arrays_are(cupy):
    def result(library):
        x = minift.Tensor(library.asarray(np.linspace(0.1, 1, 12, dtype=np.float32).reshape(4, 3)), True)
        y = (2.0 * x + x * x - 1.0 / x).exp().log().tanh()
        y = y[np.array([0, 2, 2])] @ y[1:].T[:, :2]
        z = minift.ops.concatenate([y.mean(axis=0, keepdims=True), y / 3.0, minift.ops.relu(y - 0.5)])
        (minift.ops.softmax(z).sum() + (z**2.0).mean()).backward()
        return [as_numpy(array) for array in (z.data, x.grad)]

    for got, want in zip(result(cupy), result(np), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_other_losses(cupy):
    predictions = minift.Tensor(cupy.asarray(np.float32([[1.0], [2.0]])), True)
    minift.mse_loss(predictions, np.float32([[0.0], [4.0]])).backward()
    np.testing.assert_allclose(predictions.grad.get(), [[1.0], [-2.0]])
    logits = minift.Tensor(cupy.asarray(np.float32([[1, 2], [3, 1]])), True)
    loss = minift.cross_entropy(logits, [0, -100], class_weights=np.float32([0.5, 2]))
    assert loss.item() == pytest.approx(np.log(1 + np.e))
    there = minift.cross_entropy(logits, cupy.asarray([0, -100]), class_weights=np.float32([0.5, 2]))
    assert there.item() == pytest.approx(loss.item()), "targets that are there already"
    nothing = minift.cross_entropy(logits, cupy.asarray([-100, -100]))
    assert nothing.item() == 0, "to raise would be to wait for the GPU"


# ------------------------------------------------------------------------------------------------------------
# What goes wrong


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "why_no_gpu", lambda: "CuPy finds no GPU")


def test_no_gpu_is_one_line(run, no_gpu, tiny):
    for command in (
        ["evaluate", tiny / "model", "--data", tiny / "dev.tsv"],
        ["predict", tiny / "model", "--text", "a"],
    ):
        status, _, error = run(*command, "--device", "cuda")
        assert (status, error) == (2, "minift: device cuda cannot be used: CuPy finds no GPU\n")
    with pytest.raises(InputError, match="device cuda cannot be used: CuPy finds no GPU"):
        minift.load(tiny / "model", device="cuda")
    with pytest.raises(InputError, match="there is no device 'tpu'; the devices are cpu, cuda"):
        minift.load(tiny / "model", device="tpu")


def test_no_memory_left_is_one_line(run, tiny, tmp_path, cupy, monkeypatch):
    def fail(*arguments, **options):
        raise cupy.cuda.memory.OutOfMemoryError("Out of memory allocating 9,000,000,000 bytes")

    monkeypatch.setattr(matmul.ladder.rungs["cuda_c_cublas"], "forward", fail)
    status, _, error = run(
        "finetune",
        "--model",
        tiny / "model",
        "--train",
        tiny / "train.tsv",
        "--out",
        tmp_path / "out",
        "--device",
        "cuda",
    )
    assert status == 2
    assert error.splitlines()[-1] == (
        "minift: out of memory on the GPU, which has 8.0 GiB: beside 3.0 GiB in use, "
        "Out of memory allocating 9,000,000,000 bytes; a smaller --batch-size or --max-length needs less"
    )


def test_an_error_of_cuda_names_the_kernel_and_the_launch(cupy, monkeypatch):
    class Kernel:
        max_dynamic_shared_size_bytes = 0

        def __call__(self, *arguments, **options):
            raise RuntimeError("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: too many resources requested")

    monkeypatch.setattr(cupy.RawModule, "get_function", lambda module, name: Kernel())
    expected = (
        r"softmax.cu: softmax_warp_forward<float> with grid \(5,\), block \(32,\), 0 bytes of shared memory: "
        "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"
    )
    with pytest.raises(KernelError, match=expected):
        OPERATIONS["softmax"].rungs["cuda_c_warp"].forward(cupy.ones((5, 7), np.float32))


def test_an_error_of_the_compiler_names_the_kernel(cupy, monkeypatch):
    def refuse(module, name):
        raise ValueError("NVRTC_ERROR_COMPILATION")

    monkeypatch.setattr(cupy.RawModule, "get_function", refuse)
    expected = r"softmax.cu: softmax_warp_forward<float> cannot be made ready for this GPU: NVRTC_ERROR"
    with pytest.raises(KernelError, match=expected):
        OPERATIONS["softmax"].rungs["cuda_c_warp"].forward(cupy.ones((5, 7), np.float32))


def test_an_error_in_a_kernel_of_numba_names_it_and_the_launch(monkeypatch):
    @gpu.numba_kernel
    def softmax_forward(x):
        pass

    def refuse(*arguments):
        raise ValueError("CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr(softmax_forward, "kernel", {((5,), (32,)): refuse})
    expected = r"softmax_forward with grid \(5,\), block \(32,\): CUDA_ERROR_ILLEGAL_ADDRESS"
    with pytest.raises(KernelError, match=expected):
        softmax_forward.launch((5,), (32,), (np.ones(3, np.float32),))


# ------------------------------------------------------------------------------------------------------------
# The stand-in is as strict as CuPy


def test_the_stand_in_refuses_numpy(cupy):
    x, y = cupy.ones(3, np.float32), np.ones(3, np.float32)
    for mix in (
        lambda: x + y,
        lambda: y + x,
        lambda: y * x,
        lambda: np.add(x, y),
        lambda: np.exp(x),
        lambda: np.asarray(x),
        lambda: cupy.exp(y),
        lambda: cupy.where(x > 0, x, y),
        lambda: cupy.concatenate([x, y]),
        lambda: x[np.array([0, 1])],
        lambda: x.__setitem__(0, y),
        lambda: x.__iadd__(y),
        lambda: x @ y,
        lambda: cupy.full(3, y),
    ):
        with pytest.raises(TypeError):
            mix()


def test_the_stand_in_takes_scalars_and_counts_waiting(cupy):
    x = cupy.arange(3, dtype=np.float32)
    assert (np.float32(2) * x + 1).dtype == np.float32
    total = x.sum()
    assert isinstance(total, cupy.ndarray)
    assert cupy_stand_in.waits == 0
    assert float(total) == total.item() == 3.0
    assert bool(total > 2)
    assert x.get().tolist() == [0, 1, 2]
    assert cupy_stand_in.waits == 4
