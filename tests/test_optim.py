"""AdamW, clipping and schedules against their formulas, written out in float64."""

import math

import numpy as np
import pytest

import minift
from minift import AdamW, clip_grad_norm_, decay_groups
from minift.models.gpt2 import GPT2, GPT2Config
from minift.nn import Parameter

SHAPES = [(5, 3), (7,), (2, 2)]
RANDOM = np.random.default_rng(4)
START = [RANDOM.standard_normal(shape) for shape in SHAPES]


def parameters(dtype=np.float64) -> list[Parameter]:
    return [Parameter(array.astype(dtype)) for array in START]


def gradients(step: int) -> list[np.ndarray]:
    random = np.random.default_rng([9, step])
    return [random.standard_normal(shape) * 10.0 ** random.integers(-3, 2) for shape in SHAPES]


def adamw_element(w: float, gradients: list[float | None], rates: list[float], b1, b2, eps, decay) -> float:
    """One number under AdamW, in the order of Loshchilov and Hutter's algorithm 2; None is a step without."""
    m = v = 0.0
    t = 0
    for g, rate in zip(gradients, rates, strict=True):
        if g is None:
            continue
        t += 1
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        w = w - rate * decay * w
        w = w - rate * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + eps)
    return w


def assert_is_adamw(found: Parameter, index: int, steps, rates, settings, tolerance=1e-12) -> None:
    for place in np.ndindex(SHAPES[index]):
        column = [None if each[index] is None else float(each[index][place]) for each in steps]
        expected = adamw_element(float(START[index][place]), column, rates, *settings)
        assert found.data[place] == pytest.approx(expected, rel=tolerance, abs=tolerance)


# ---- AdamW ----


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-6)])
@pytest.mark.parametrize(
    "settings", [(0.9, 0.999, 1e-8, 0.01), (0.8, 0.95, 1e-3, 0.0), (0.0, 0.5, 1e-6, 0.3)]
)
def test_adamw_is_the_formula(dtype, tolerance, settings):
    b1, b2, eps, decay = settings
    trained = parameters(dtype)
    optimizer = AdamW(trained, lr=0.01, betas=(b1, b2), eps=eps, weight_decay=decay)
    steps = [gradients(step) for step in range(12)]
    for step in steps:
        for parameter, gradient in zip(trained, step, strict=True):
            parameter.grad = gradient.astype(dtype)
        optimizer.step()
        optimizer.zero_grad()
    for index, parameter in enumerate(trained):
        assert parameter.data.dtype == dtype
        assert_is_adamw(parameter, index, steps, [0.01] * 12, settings, tolerance)


def test_groups_have_their_own_settings_and_the_defaults_for_the_rest():
    trained = parameters()
    optimizer = AdamW(
        [
            {"params": trained[:1], "lr": 0.1, "weight_decay": 0.0},
            {"params": iter(trained[1:]), "betas": (0.5, 0.6)},
        ],
        lr=0.02,
        weight_decay=0.2,
    )
    steps = [gradients(step) for step in range(3)]
    for step in steps:
        for parameter, gradient in zip(trained, step, strict=True):
            parameter.grad = gradient
        optimizer.step()
    assert_is_adamw(trained[0], 0, steps, [0.1] * 3, (0.9, 0.999, 1e-8, 0.0))
    for index in (1, 2):
        assert_is_adamw(trained[index], index, steps, [0.02] * 3, (0.5, 0.6, 1e-8, 0.2))


def test_a_parameter_without_gradient_is_left_alone_and_its_steps_are_not_counted():
    trained = parameters()
    optimizer = AdamW(trained, lr=0.01, weight_decay=0.5)
    steps = [gradients(step) for step in range(6)]
    for number in (0, 2, 3):
        steps[number][1] = None
    for number, step in enumerate(steps):
        for parameter, gradient in zip(trained, step, strict=True):
            parameter.grad = gradient
        optimizer.step()
        if number == 0:
            np.testing.assert_array_equal(trained[1].data, START[1])
            assert trained[1] not in optimizer.state
    for index, parameter in enumerate(trained):
        assert_is_adamw(parameter, index, steps, [0.01] * 6, (0.9, 0.999, 1e-8, 0.5))


def test_a_step_changes_no_gradient():
    trained = parameters()
    for parameter, gradient in zip(trained, gradients(0), strict=True):
        parameter.grad = gradient
    before = [parameter.grad.copy() for parameter in trained]
    AdamW(trained).step()
    for parameter, gradient in zip(trained, before, strict=True):
        np.testing.assert_array_equal(parameter.grad, gradient)


def test_zero_grad_forgets():
    trained = parameters()
    trained[0].grad = START[0]
    AdamW(trained).zero_grad()
    assert trained[0].grad is None


def test_what_adamw_refuses():
    with pytest.raises(ValueError, match="no parameters"):
        AdamW([])
    trained = parameters()
    with pytest.raises(ValueError, match="twice"):
        AdamW([{"params": trained}, {"params": trained[:1]}])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (lambda a, b: [a, {"params": [b]}], "parameters or groups of them, not both"),
        (
            lambda a, b: [{"params": [a, b], "learning_rate": 1}],
            "no option 'learning_rate'; a group takes params, lr",
        ),
    ],
)
def test_groups_that_are_none(groups, message):
    with pytest.raises(ValueError, match=message):
        AdamW(groups(*parameters()[:2]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": math.nan}, "lr is nan, expected a finite number, 0 or more"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": math.inf}, "lr is inf"),
        ({"betas": (1.0, 1.0)}, r"betas are \(1.0, 1.0\), expected two numbers from 0 to below 1"),
        ({"betas": (0.9, -0.1)}, "betas are"),
        ({"eps": -1e-8}, "eps is -1e-08"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
    ],
)
def test_numbers_out_of_range(options, message):
    trained = parameters()
    with pytest.raises(minift.InputError, match=message):
        AdamW(trained, **options)
    with pytest.raises(minift.InputError, match=message):
        AdamW([{"params": trained[:1]}, {"params": trained[1:], **options}])


# ---- Which parameters decay ----


def test_decay_groups_exempt_biases_and_layer_norm(tiny):
    model = minift.load(tiny / "model")
    decayed, exempt = decay_groups(model, 0.07)
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.07, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, exempt = ({names[id(each)] for each in group["params"]} for group in (decayed, exempt))
    assert exempt == {name for name in names.values() if name.endswith(".bias") or ".LayerNorm." in name}
    assert decayed == set(names.values()) - exempt


def test_norms_are_exempt_whatever_they_are_called():
    config = GPT2Config(vocab_size=5, n_positions=4, n_embd=4, n_layer=1, n_head=2)
    model = GPT2(config)
    decayed, exempt = ({id(each) for each in group["params"]} for group in decay_groups(model))
    block = model.h[0]
    for norm in (block.ln_1, block.ln_2, model.ln_f):
        assert {id(norm.weight), id(norm.bias)} <= exempt
    assert {id(block.mlp.c_fc.weight), id(model.wte.weight)} <= decayed


def test_decay_groups_leave_out_what_is_frozen(tiny):
    model = minift.load(tiny / "model")
    model.bert.requires_grad_(False)
    groups = decay_groups(model)
    assert [group["params"] for group in groups] == [[model.classifier.weight], [model.classifier.bias]]
    model.classifier.bias.requires_grad = False
    assert [group["params"] for group in decay_groups(model)] == [[model.classifier.weight]]


# ---- Clipping ----


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-6)])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clip_grad_norm_value_and_direction(dtype, tolerance, max_norm):
    trained = parameters(dtype)
    before = [gradient.astype(dtype) for gradient in gradients(1)]
    for parameter, gradient in zip(trained, before, strict=True):
        parameter.grad = gradient
    length = math.sqrt(sum(float(value) ** 2 for gradient in before for value in gradient.ravel()))
    kept = [gradient.copy() for gradient in before]

    assert clip_grad_norm_(iter(trained), max_norm) == pytest.approx(length, rel=tolerance)
    scale = min(1.0, max_norm / (length + 1e-6))
    for parameter, gradient, copy in zip(trained, before, kept, strict=True):
        np.testing.assert_allclose(parameter.grad, copy * scale, rtol=tolerance)
        np.testing.assert_array_equal(gradient, copy, err_msg="a gradient array was changed in place")
        assert parameter.grad.dtype == dtype
    if scale == 1:
        assert all(parameter.grad is gradient for parameter, gradient in zip(trained, before, strict=True))


def test_clipping_passes_over_parameters_without_gradient():
    trained = parameters()
    trained[1].grad = np.full(7, 3.0)
    assert clip_grad_norm_(trained, 1.0) == pytest.approx(math.sqrt(63))
    assert trained[0].grad is None
    assert np.linalg.norm(trained[1].grad) == pytest.approx(1.0, rel=1e-6)
    assert clip_grad_norm_(parameters(), 1.0) == 0.0


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-14), (np.float32, 1e-6)])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_a_step_that_clips_equals_clipping_and_a_step(dtype, tolerance, max_norm):
    both, once = parameters(dtype), parameters(dtype)
    clipping, plain = AdamW(both, lr=0.1), AdamW(once, lr=0.1)
    for step in range(1, 4):
        for parameter, gradient in zip(both + once, gradients(step) * 2, strict=True):
            parameter.grad = gradient.astype(dtype)
        norm = clip_grad_norm_(both, max_norm)
        assert clipping.step() is None
        assert plain.step(max_grad_norm=max_norm) == pytest.approx(norm, rel=tolerance)
    for a, b in zip(both, once, strict=True):
        np.testing.assert_allclose(a.data, b.data, rtol=tolerance)


# ---- Schedules ----

HALF = 0.5
THREE_QUARTERS_DOWN = 0.5 * (1 + math.cos(math.pi * 0.75))


@pytest.mark.parametrize(
    ("schedule", "total", "warmup", "expected"),
    [
        # (steps taken: share of the rate) at the corners: start, end of warm-up, middle, end, beyond.
        (minift.linear_schedule, 12, 4, {0: 0, 1: 0.25, 4: 1, 8: HALF, 11: 0.125, 12: 0, 13: 0}),
        (minift.linear_schedule, 10, 0, {0: 1, 5: HALF, 10: 0}),
        (minift.linear_schedule, 4, 4, {0: 0, 3: 0.75, 4: 0}),
        (
            minift.cosine_schedule,
            12,
            4,
            {0: 0, 1: 0.25, 4: 1, 8: HALF, 10: THREE_QUARTERS_DOWN, 12: 0, 13: 0},
        ),
        (minift.cosine_schedule, 8, 0, {0: 1, 4: HALF, 6: THREE_QUARTERS_DOWN, 8: 0}),
        (minift.constant_schedule, 12, 4, {0: 0, 1: 0.25, 4: 1, 8: 1, 12: 1, 100: 1}),
        (minift.constant_schedule, 12, 0, {0: 1, 12: 1}),
    ],
)
def test_schedule_at_its_corners(schedule, total, warmup, expected):
    first, second, third = parameters()
    optimizer = AdamW([{"params": [first, second]}, {"params": [third], "lr": 0.5}], lr=0.02)
    scheduled = schedule(optimizer, total, warmup)
    for steps in range(max(expected) + 1):
        if steps in expected:
            rates = [group["lr"] for group in optimizer.param_groups]
            assert rates == pytest.approx([0.02 * expected[steps], 0.5 * expected[steps]], abs=1e-15)
        scheduled.step()


def test_a_schedule_taken_up_again_goes_on_where_it_was():
    [one, other] = [AdamW(parameters(), lr=0.3) for _ in range(2)]
    stepped, jumped = minift.cosine_schedule(one, 20, 5), minift.cosine_schedule(other, 20, 5)
    for _ in range(13):
        stepped.step()
    jumped.set_step(13)
    assert one.param_groups[0]["lr"] == other.param_groups[0]["lr"] > 0


def test_the_rate_of_a_step_is_the_scheduled_one():
    trained = parameters()
    optimizer = AdamW(trained, lr=0.1, weight_decay=0.2)
    schedule = minift.linear_schedule(optimizer, 6, 2)
    steps = [gradients(step) for step in range(6)]
    for step in steps:
        for parameter, gradient in zip(trained, step, strict=True):
            parameter.grad = gradient
        optimizer.step()
        schedule.step()
    rates = [0.0, 0.05, 0.1, 0.075, 0.05, 0.025]
    for index, parameter in enumerate(trained):
        assert_is_adamw(parameter, index, steps, rates, (0.9, 0.999, 1e-8, 0.2))
