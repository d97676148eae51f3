"""bf16 rounds activations and nothing else; tf32 is a switch. On the CPU, and on the stand-in for a GPU."""

import shutil

import cupy_stand_in
import ml_dtypes
import numpy as np
import pytest
from minift_kernels import OPERATIONS, cublas, gpu, matmul
from minift_kernels.ladder import Ladder
from test_gpu_path import LABELS, TEXTS, config, small
from tiny import make_model

import minift
from minift import nn
from minift.errors import InputError
from minift.train import finetune

DEVICES = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(shutil.which("g++") is None, reason="CUDA C on the CPU needs g++"),
        ),
    ],
)


@pytest.fixture(autouse=True)
def cupy():
    with cupy_stand_in.installed() as cupy:
        yield cupy
        gpu.allow_tf32(False)


def step(model):
    """The loss of a step without dropout, and the gradients before it."""
    model.eval()
    optimizer = minift.AdamW(minift.decay_groups(model), lr=1e-3)
    loss = minift.cross_entropy(model(TEXTS), LABELS)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    minift.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item(), gradients, optimizer


@DEVICES
def test_bf16_keeps_weights_and_their_updates_in_float32(tmp_path, device, monkeypatch):
    dtypes = {}
    forward = nn.Module.__call__

    def remember(module, *inputs, **options):
        output = forward(module, *inputs, **options)
        dtypes[module.path] = output.dtype
        return output

    monkeypatch.setattr(nn.Module, "__call__", remember)
    model = make_model(tmp_path).to(device=device).compute_in("bf16")
    _, gradients, optimizer = step(model)
    bf16 = {path for path, dtype in dtypes.items() if dtype == ml_dtypes.bfloat16}
    assert bf16 == dtypes.keys() - {""}, "every module computes in bfloat16, but the logits are float32"
    assert dtypes[""] == np.float32
    for name, parameter in model.named_parameters():
        assert parameter.dtype == gradients[name].dtype == np.float32, name
        moments = optimizer.state[parameter]
        assert moments.first.dtype == moments.second.dtype == np.float32


@DEVICES
def test_bf16_is_near_float32(tmp_path, device):
    loss, gradients, _ = step(make_model(tmp_path).to(device=device).compute_in("bf16"))
    with minift.use_kernels("reference"):
        want_loss, want, _ = step(make_model(tmp_path))
    assert loss == pytest.approx(want_loss, rel=0.02)
    assert loss != want_loss
    for name, gradient in want.items():
        if name.endswith("key.bias"):  # rounding errors in both
            continue
        got = gradients[name] if device == "cpu" else gradients[name].get()
        assert np.linalg.norm(got - gradient) <= 0.05 * np.linalg.norm(gradient), name


@pytest.mark.skipif(shutil.which("g++") is None, reason="running CUDA C on the CPU needs g++")
def test_a_run_in_bf16_learns_as_well(tiny, tmp_path):
    data = small(tiny, tmp_path)
    plain = finetune(config(tiny, tmp_path / "plain", epochs=2, **data))
    mixed = finetune(config(tiny, tmp_path / "mixed", epochs=2, precision="bf16", **data))
    assert mixed["before"]["loss"] == pytest.approx(plain["before"]["loss"], rel=0.01)
    assert mixed["after"]["loss"] == pytest.approx(plain["after"]["loss"], rel=0.1)
    saved = minift.load(tmp_path / "mixed")
    assert all(parameter.dtype == np.float32 for parameter in saved.parameters())


def test_prediction_in_bf16(tiny):
    for text in TEXTS:
        plain = minift.load(tiny / "model").predict(text)[0]
        mixed = minift.load(tiny / "model", precision="bf16").predict(text)[0]
        assert mixed.probabilities == pytest.approx(plain.probabilities, abs=0.02)


def test_tf32_is_a_switch_of_cublas_and_of_the_ladder(tiny, cupy, monkeypatch):
    gemm_ex, modes = cublas.gemm_ex, []
    monkeypatch.setattr(cublas, "gemm_ex", lambda *given: (modes.append(given[-1]), gemm_ex(*given)))

    class Exact:
        pass

    class InTf32:
        tolerance = 2**-10

    ladder = Ladder("fake", {"reference": Exact(), "cuda_c_plain": Exact(), "cuda_c_tensor_core": InTf32()})
    single, half = cupy.ones(1, np.float32), cupy.ones(1, ml_dtypes.bfloat16)
    assert ladder.default(single) == "cuda_c_plain"
    assert ladder.default(half) == "cuda_c_tensor_core"
    model = minift.load(tiny / "model", device="cuda", precision="tf32")
    model.predict(TEXTS)
    assert set(modes) == {cublas._IN_TF32}
    # The switch is the whole process's; of bfloat16 there are no products in tf32 that it could ask for.
    modes.clear()
    matmul.forward(*2 * [cupy.ones((2, 2), ml_dtypes.bfloat16)])
    assert modes == [cublas._IN_FLOAT32]
    assert ladder.default(single) == "cuda_c_tensor_core"
    modes.clear()
    minift.load(tiny / "model", device="cuda").predict(TEXTS)
    assert set(modes) == {cublas._IN_FLOAT32}
    assert ladder.default(single) == "cuda_c_plain"
    with minift.use_kernels("cuda_c"):
        assert ladder.choose(single) == "cuda_c_plain", "who wishes for the family keeps float32"
    with minift.use_kernels("cuda_c_tensor_core"):
        assert ladder.choose(single) == "cuda_c_tensor_core"


def test_every_default_of_a_gpu_keeps_float32(cupy):
    for operation, ladder in OPERATIONS.items():
        chosen = ladder.rungs[ladder.default(cupy.ones(1, np.float32))]
        assert not hasattr(chosen, "tolerance"), operation


def test_precisions_that_there_are_not(run, tiny):
    with pytest.raises(InputError, match="there is no precision 'int8'; there are float32, tf32, bf16"):
        minift.load(tiny / "model", precision="int8")
    status, _, error = run("predict", tiny / "model", "--text", "a", "--precision", "tf32")
    assert (status, error) == (2, "minift: precision tf32 is a GPU's: it needs device cuda\n")


@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(
    ("dtype", "result"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")]
)
def test_cublas_is_told_how_matrices_lie(cupy, transposed, dtype, result):
    random, bf16 = np.random.default_rng(0), ml_dtypes.bfloat16
    dtypes = {"float32": np.float32, "bfloat16": bf16}
    a, b, c = (random.integers(-4, 5, shape).astype(np.float32) for shape in ((3, 7), (7, 5), (3, 5)))
    want = a @ b  # whole numbers below 256, which bfloat16 holds
    on_gpu = [
        cupy.asarray(x.T.astype(dtypes[dtype]).copy()).T
        if lies_across
        else cupy.asarray(x.astype(dtypes[dtype]))
        for x, lies_across in zip((a, b), transposed, strict=True)
    ]
    for add in (False, True):
        out = cupy.asarray(c.astype(dtypes[result]))
        cublas.product(*on_gpu, out, add=add)
        np.testing.assert_array_equal(out.get().astype(np.float32), want + add * c)


def test_nothing_to_sum_is_zero(cupy):
    out = cupy.ones((2, 3), np.float32)
    cublas.product(cupy.ones((2, 0), np.float32), cupy.ones((0, 3), np.float32), out)
    np.testing.assert_array_equal(out.get(), np.zeros((2, 3)))
