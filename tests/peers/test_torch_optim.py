"""The same optimizer, clipping, schedules and losses as torch and transformers, in float64."""

import numpy as np
import pytest

import minift
from minift import Tensor
from minift.nn import Parameter

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

SHAPES = [(6, 4), (5,), (3, 2, 2)]
STEPS = 40


def both_sides() -> tuple[list[Parameter], list]:
    random = np.random.default_rng(0)
    arrays = [random.standard_normal(shape) for shape in SHAPES]
    return [Parameter(array.copy()) for array in arrays], [
        torch.nn.Parameter(torch.tensor(a)) for a in arrays
    ]


def set_gradients(parameters, peers, step: int) -> None:
    random = np.random.default_rng([1, step])
    for index, (parameter, peer) in enumerate(zip(parameters, peers, strict=True)):
        gradient = random.standard_normal(parameter.shape)
        skipped = index == 1 and step % 3 == 1  # its bias correction then lags behind the others'
        parameter.grad = None if skipped else gradient
        peer.grad = None if skipped else torch.tensor(gradient)


def assert_same(parameters, peers) -> None:
    for parameter, peer in zip(parameters, peers, strict=True):
        np.testing.assert_allclose(parameter.data, peer.detach().numpy(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lr": 0.1, "weight_decay": 0.5},
        {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.0},
    ],
    ids=str,
)
def test_adamw(settings):
    parameters, peers = both_sides()
    optimizer = minift.AdamW(parameters, **settings)
    peer_optimizer = torch.optim.AdamW(peers, **settings)
    for step in range(STEPS):
        set_gradients(parameters, peers, step)
        optimizer.step()
        peer_optimizer.step()
    assert_same(parameters, peers)


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 7])
def test_groups_clipping_and_schedules(name, warmup):
    parameters, peers = both_sides()

    def groups(members):
        return [
            {"params": members[:1], "weight_decay": 0.3},
            {"params": members[1:], "weight_decay": 0.0, "lr": 0.2, "betas": (0.7, 0.8)},
        ]

    optimizer = minift.AdamW(groups(parameters), lr=0.05)
    schedule = getattr(minift, f"{name}_schedule")(optimizer, STEPS, warmup)
    peer_optimizer = torch.optim.AdamW(groups(peers), lr=0.05)
    make = getattr(transformers, f"get_{name}_schedule_with_warmup")
    peer_schedule = make(peer_optimizer, warmup, *([] if name == "constant" else [STEPS]))
    for step in range(STEPS + 1):  # beyond the end minift stays at 0, where transformers' cosine rises again
        set_gradients(parameters, peers, step)
        norm = minift.clip_grad_norm_(parameters, 4.0)
        assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(peers, 4.0)), rel=1e-12)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [group["lr"] for group in peer_optimizer.param_groups], rel=1e-12, abs=1e-15
        )
        optimizer.step()
        schedule.step()
        peer_optimizer.step()
        peer_schedule.step()
    assert_same(parameters, peers)


ROWS, CLASSES = 9, 4
WEIGHTS = np.array([0.5, 2.0, 0.0, 1.5])


@pytest.mark.parametrize("class_weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("ignore_index", [-100, 3])
def test_cross_entropy(class_weights, label_smoothing, ignore_index):
    random = np.random.default_rng(3)
    logits = random.standard_normal((ROWS, CLASSES)) * 4
    targets = random.integers(0, 3, ROWS)
    targets[[2, 5]] = ignore_index

    found = Tensor(logits, requires_grad=True)
    loss = minift.cross_entropy(
        found,
        targets,
        class_weights=class_weights,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
    loss.backward()
    peer = torch.tensor(logits, requires_grad=True)
    peer_loss = torch.nn.functional.cross_entropy(
        peer,
        torch.tensor(targets),
        weight=None if class_weights is None else torch.tensor(class_weights),
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
    peer_loss.backward()
    assert loss.item() == pytest.approx(peer_loss.item(), rel=1e-12)
    np.testing.assert_allclose(found.grad, peer.grad.numpy(), rtol=1e-11, atol=1e-15)


def test_mse_loss():
    random = np.random.default_rng(3)
    predictions, targets = random.standard_normal((2, 5, 3))
    found = Tensor(predictions, requires_grad=True)
    loss = minift.mse_loss(found, targets)
    loss.backward()
    peer = torch.tensor(predictions, requires_grad=True)
    peer_loss = torch.nn.functional.mse_loss(peer, torch.tensor(targets))
    peer_loss.backward()
    assert loss.item() == pytest.approx(peer_loss.item(), rel=1e-12)
    np.testing.assert_allclose(found.grad, peer.grad.numpy(), rtol=1e-12)
