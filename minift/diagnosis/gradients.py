"""Gradients: that they arrive, and that they are right, by finite differences in float64."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from minift.diagnosis.case import Case
from minift.diagnosis.finding import Finding, some
from minift.gradient_check import check_gradients
from minift.history import no_grad
from minift.nn import Parameter
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
    """For each trained parameter the loss's slope along a random direction; [] where the loss is left to chance.

    The parameters of a layer are moved together first: where that comes out right to five digits, each of them is.
    """
    batch = case.texts_of_few(TEXTS)
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
        sizes = {
            path: 0.0 if each.grad is None else float(np.linalg.norm(each.grad))
            for path, each in case.trained.items()
        }
        weak = {path for path, size in sizes.items() if size <= 1e-9 * max(sizes.values())}
        for part in model.parts().values():
            trained = {path: each for path, each in part.items() if path in case.trained}
            strong = {path: each for path, each in trained.items() if path not in weak}
            said, measured = _slope(loss, list(strong.values())) if strong else (0.0, 0.0)
            together = abs(said - measured) <= 1e-5 * max((sizes[path] for path in strong), default=0.0)
            for path, each in trained.items():
                if path in weak or not together:
                    said, measured = _slope(loss, [each])
                found.append(Slope(path, each.grad is not None, said, measured, sizes[path]))
    return found


def _slope(loss: Callable[[], float], parameters: list[Parameter]) -> tuple[float, float]:
    """The slope along a random direction of some parameters, as backward says and as measured: the best of three
    measurements, since a step may cross a kink of ReLU or of a maximum."""
    random = np.random.default_rng(0)
    starts = [each.data for each in parameters]
    scales = [max(0.01, float(np.sqrt((start * start).mean()))) for start in starts]
    size = np.sqrt(sum(0.0 if each.grad is None else float((each.grad**2).sum()) for each in parameters))
    best = (0.0, np.inf)
    for h in (1e-5, 1e-6, 1e-4):
        directions = [
            scale * random.standard_normal(each.shape) for scale, each in zip(scales, parameters, strict=True)
        ]
        slope = sum(
            0.0 if each.grad is None else float((each.grad * direction).sum())
            for each, direction in zip(parameters, directions, strict=True)
        )
        values = []
        for step in (h, -h):
            for each, start, direction in zip(parameters, starts, directions, strict=True):
                each.data = start + step * direction
            values.append(loss())
        for each, start in zip(parameters, starts, strict=True):
            each.data = start
        scale = max(scales)
        said, measured = slope / scale, (values[0] - values[1]) / (2 * h) / scale
        if not abs(best[0] - best[1]) < abs(said - measured):
            best = said, measured
        if abs(said - measured) <= max(1e-6 * size, NOISE / 100):
            break
    return best


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
