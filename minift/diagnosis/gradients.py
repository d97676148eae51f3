"""Gradients: that they arrive, and that they are right, by finite differences in float64."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from minift.diagnosis.case import Case
from minift.diagnosis.finding import Finding, some
from minift.gradient_check import check_gradients
from minift.history import no_grad
from minift.recording import recording
from minift.trace import trace

TEXTS = 3
"""How many texts gradients are checked on: finite differences take two forward passes for each parameter."""

NOISE = 1e-7
"""What float64 leaves of a slope that is 0: its rounding, divided by the step."""


@dataclass
class Slope:
    """One parameter's gradient along a random direction, as backward says and as measured."""

    path: str
    arrived: bool
    """Whether backward left a gradient at all."""
    said: float
    measured: float
    size: float
    """|gradient|."""


def slopes(case: Case) -> list[Slope]:
    """For each trained parameter the loss's slope along a random direction; [] where the loss is left to chance."""
    batch = case.texts_of_few(TEXTS)
    random = np.random.default_rng(0)
    found = []
    with case.untouched():
        model = case.model.to(np.float64)
        model.train()

        def loss() -> float:
            with no_grad(), case.same_chance():
                return case.loss(batch).item()

        if loss() != loss():
            return []
        with case.same_chance():
            total = case.loss(batch)
            if not total.requires_grad:
                return [Slope(path, False, 0.0, 1.0, 0.0) for path in case.trained]
            total.backward()
        for path, parameter in case.trained.items():
            gradient = np.zeros(parameter.shape) if parameter.grad is None else parameter.grad
            slope = Slope(path, parameter.grad is not None, 0.0, 0.0, float(np.linalg.norm(gradient)))
            slope.said, slope.measured = 0.0, np.inf
            start = parameter.data
            size = max(0.01, float(np.sqrt((start * start).mean())))
            for h in (
                1e-5 * size,
                1e-6 * size,
                1e-4 * size,
            ):  # a step may cross a kink of ReLU or of a maximum
                direction = random.standard_normal(parameter.shape)
                parameter.data = start + h * direction
                forth = loss()
                parameter.data = start - h * direction
                back = loss()
                parameter.data = start
                said, measured = float((gradient * direction).sum()), (forth - back) / (2 * h)
                if not abs(slope.said - slope.measured) < abs(said - measured):
                    slope.said, slope.measured = said, measured
                if abs(said - measured) < 1e-4 * slope.size:
                    break
            found.append(slope)
    return found


def gradients_arrive(case: Case) -> Iterator[Finding]:
    """Every trained parameter that the loss depends on gets a gradient.

    Some are 0 by nature: of a key's bias, which the softmax does not see, and of LoRA's A while B is 0. There the loss
    does not change with the parameter either.
    """
    found = case.kept("slopes", slopes)
    largest = max((each.size for each in found), default=0.0) or 1.0
    lost = [
        each.path
        for each in found
        if not each.arrived
        or (each.size < 1e-9 * largest and abs(each.measured) > max(1e-4 * largest, NOISE))
    ]
    if lost:
        yield Finding(
            "no-gradient",
            some(lost),
            f"{len(lost)} of {len(found)} trained parameters get no gradient from the loss",
            "keep the history: no Tensor(x.data), .detach() or no_grad() between them and the loss, and use them",
        )


def backwards_are_right(case: Case) -> Iterator[Finding]:
    """Backward says what finite differences of the forward pass measure, parameter by parameter.

    Where they disagree, each operation is asked by itself, with the inputs that it had (`gradient_check`).
    """
    wrong = _wrong_slopes(case)
    guilty = _guilty_operations(case) if wrong else []
    if guilty:
        yield Finding(
            "wrong-gradient",
            some(guilty),
            _in_words(wrong),
            "derive the backward anew, line by line under its forward",
        )


def history_is_whole(case: Case) -> Iterator[Finding]:
    """The same, where each operation's backward is right: then the history does not hold all that was computed."""
    wrong = _wrong_slopes(case)
    if wrong:
        yield Finding(
            "wrong-gradient",
            some([each.path for each in wrong]),
            _in_words(wrong),
            "each operation by itself is right: is a part of the history cut off, or an array changed in place?",
        )


def _wrong_slopes(case: Case) -> list[Slope]:
    found = case.kept("slopes", slopes)
    largest = max((each.size for each in found), default=0.0)
    return [
        each
        for each in found
        if each.arrived and not abs(each.said - each.measured) <= max(1e-3 * each.size, 1e-5 * largest, NOISE)
    ]


def _in_words(wrong: list[Slope]) -> str:
    worst = max(wrong, key=lambda each: abs(each.said - each.measured) / (each.size or 1.0))
    return (
        f"{len(wrong)} gradients are not what finite differences measure; of {worst.path} backward says "
        f"{worst.said:.4g} along a direction where {worst.measured:.4g} is measured"
    )


def _guilty_operations(case: Case) -> list[str]:
    """`gelu (input x) in bert.encoder.layer.0.intermediate` for each operation whose backward is wrong."""
    guilty = []
    with case.untouched():
        case.model.to(np.float64).train()
        with recording():
            loss = case.loss(case.texts_of_few(TEXTS))
        for step in trace(loss, case.model):
            if step.recorded is None or step.recorded.call is None:
                continue
            for check in check_gradients(step):
                if not check.right:
                    guilty.append(f"{step.operation} (input {check.name}) in {step.module or 'the loss'}")
    return list(dict.fromkeys(guilty))
