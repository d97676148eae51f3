"""The optimizer's step: that it is AdamW's, that what is trained moves and what is frozen does not."""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

from minift.diagnosis.case import Case, differ
from minift.diagnosis.finding import Finding, some
from minift.nn import Parameter
from minift.optim import AdamW

SMALL_EPS = 1e-8
"""AdamW's usual one."""
SAMPLE = 2048
"""How many elements of a parameter are computed again in NumPy."""


def gradients_are_fresh(case: Case) -> Iterator[Finding]:
    """A step begins with nothing in .grad, and zero_grad() leaves nothing there.

    A backward pass adds to .grad: where an earlier one's was not zeroed, each step goes along the sum of all so far.
    """
    standing = {path: each.grad for path, each in case.trained.items() if each.grad is not None}
    if any(gradient.any() for gradient in standing.values()):
        yield Finding(
            "gradients-not-zeroed",
            some(list(standing)),
            "gradients of an earlier pass stand there before this step's own",
            "call optimizer.zero_grad() after every optimizer.step()",
        )
    for name, owner in (("optimizer", case.optimizer), ("model", case.model)):
        with case.untouched():
            for each in case.trained.values():
                each.grad = np.ones_like(each.data)
            owner.zero_grad()
            left = [
                path
                for path, each in case.trained.items()
                if each.grad is not None and each.grad.any() and (name == "model" or id(each) in case.held)
            ]
        if left:
            yield Finding(
                "gradients-not-zeroed",
                some(left),
                f"{name}.zero_grad() leaves gradients where they are",
                "zero_grad() sets .grad of every parameter to None",
            )
            return


def rates_are_numbers(case: Case) -> Iterator[Finding]:
    """The rate of each group is a finite number, 0 or more: NaN spoils all weights at once, below 0 the loss rises."""
    rates = [group["lr"] for group in case.optimizer.param_groups]
    wrong = [number for number, rate in enumerate(rates) if not 0 <= rate < np.inf]
    if wrong:
        yield Finding(
            "impossible-rate",
            some([f"optimizer.param_groups[{number}]" for number in wrong]),
            f"lr is {some([f'{rates[number]:g}' for number in wrong])}, where a finite number, 0 or more, was expected",
            "look for a division by 0 where the rate or its schedule is computed; minift find-lr looks for a rate",
        )


# ---- The formula ---------------------------------------------------------------------------------

VARIANTS = {
    "": "",
    "first": "missing-bias-correction",
    "second": "missing-bias-correction",
    "both": "missing-bias-correction",
    "coupled": "the decay is added to the gradient, as in Adam with L2 regularisation",
    "no decay": "nothing is decayed",
    "sign": "it goes up along the gradient, not down",
    "eps": "eps stands inside the root",
}
"""What may be wrong with an AdamW; the first is right."""


def _adamw(w, gradients, group, variant: str) -> list[np.ndarray]:
    """The weights after each step, in float64: see `minift.AdamW` for the formula."""
    rate, (b1, b2), eps, decay = group["lr"], group["betas"], group["eps"], group["weight_decay"]
    m = v = np.zeros_like(w)
    after = []
    for t, g in enumerate(gradients, start=1):
        g = g + decay * w if variant == "coupled" else g
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        first = m if variant in ("first", "both") else m / (1 - b1**t)
        second = v if variant in ("second", "both") else v / (1 - b2**t)
        root = np.sqrt(second + eps) if variant == "eps" else np.sqrt(second) + eps
        step = first / root * (-1 if variant == "sign" else 1)
        w = w - (0 if variant in ("coupled", "no decay") else rate * decay * w) - rate * step
        after.append(w)
    return after


def step_is_adamw(case: Case) -> Iterator[Finding]:
    """Two steps from empty moments, along invented gradients, come where the formula in NumPy comes.

    The gradients are of all sizes, so that it shows where eps stands; rates and decays are raised so that float32 shows
    them, the highest rate to 1e-2 and the others by more, in their order. Another step shortens the
    gradients to half their length.
    """
    where = f"{type(case.optimizer).__name__}.step"
    with case.untouched():
        walks = _two_steps(case.optimizer)
        fitting = [variant for variant in VARIANTS if all(walk.follows(variant) for walk in walks)]
        if "" not in fitting:
            said = VARIANTS[fitting[0]] if fitting else _how_far(case, walks)
        elif not _clips(case):
            said = "max_grad_norm does not shorten the gradients to that length"
        else:
            return
    if said == "missing-bias-correction":
        yield Finding(
            "missing-bias-correction",
            where,
            "the first steps are those of moments that are not divided by 1 - b^t",
            "divide m by 1 - b1^t and v by 1 - b2^t, t = 1 in the first step",
        )
        return
    yield Finding(
        "wrong-update",
        where,
        said,
        "w = w - lr weight_decay w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps), lr and the rest of the group",
    )


class Walk(NamedTuple):
    """What some steps did to one parameter; of all arrays a sample."""

    parameter: Parameter
    group: dict
    start: np.ndarray
    gradients: list[np.ndarray]
    """In each step."""
    after: list[np.ndarray]
    """Each step."""

    def follows(self, variant: str) -> bool:
        """Whether it went where an AdamW goes that is wrong in this way; a rate of 0 says nothing."""
        expected = _adamw(self.start, self.gradients, self.group, variant)
        return self.group["lr"] == 0 or not any(
            differ(a - self.start, e - self.start, 5e-4) for a, e in zip(self.after, expected, strict=True)
        )


def _two_steps(optimizer: AdamW) -> list[Walk]:
    """Take them, with raised rates and decays, which the caller puts back."""
    optimizer.state.clear()
    highest = max(group["lr"] for group in optimizer.param_groups)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2 * (group["lr"] / highest) ** 0.25 if highest else 1e-2
        group["weight_decay"] = 0.1 if group["weight_decay"] > 0 else 0.0
    walks = [
        Walk(each, group, _sample(each.data), [], [])
        for group in optimizer.param_groups
        for each in group["params"]
    ]
    for turn in range(2):
        for number, walk in enumerate(walks):
            walk.parameter.grad = _invented_gradient(walk.parameter, 7 * number + 31 * turn)
            walk.gradients.append(_sample(walk.parameter.grad))
        optimizer.step()
        for walk in walks:
            walk.after.append(_sample(walk.parameter.data))
    return walks


def _invented_gradient(parameter: Parameter, shift: int) -> np.ndarray:
    """Another one for each shift."""
    return np.resize(np.roll(_invented_numbers(), shift), parameter.shape).astype(parameter.dtype)


@cache
def _invented_numbers() -> np.ndarray:
    """Of all sizes from 1e-6 to 1, up and down."""
    random = np.random.default_rng(0)
    return np.exp(random.uniform(np.log(1e-6), 0, 4096)) * random.choice([-1, 1], 4096)


def _how_far(case: Case, walks: list[Walk]) -> str:
    wrong = next(walk for walk in walks if not walk.follows(""))
    [right, _] = _adamw(wrong.start, wrong.gradients, wrong.group, "")
    went, expected = wrong.after[0] - wrong.start, right - wrong.start
    scale = float(went @ expected / (expected @ expected))
    return f"in {_path(case, wrong.parameter)} the first step is {scale:.3g} times the formula's, along its direction"


def _clips(case: Case) -> bool:
    """Whether a first step with max_grad_norm is the one of gradients that were shortened before."""
    optimizer = case.optimizer
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    after = []
    for shortened in (True, False):
        with case.untouched():
            optimizer.state.clear()
            for group in optimizer.param_groups:
                group["eps"] = 1e-8
            for number, each in enumerate(parameters):
                each.grad = _invented_gradient(each, 7 * number) * np.asarray(1e-6, each.dtype)
            if shortened:
                for each in parameters:
                    each.grad = each.grad * np.asarray(0.5, each.dtype)
                optimizer.step()
            else:
                length = np.sqrt(
                    sum(float(np.square(each.grad, dtype=np.float64).sum()) for each in parameters)
                )
                optimizer.step(float(0.5 * length + 0.5e-6))
            after.append(np.concatenate([_sample(each.data) for each in parameters]))
    return not differ(after[0], after[1])


def _sample(values: np.ndarray) -> np.ndarray:
    flat = np.asarray(values).reshape(-1)
    return flat[:: max(1, flat.size // SAMPLE)].astype(np.float64)


def _path(case: Case, parameter: Parameter) -> str:
    return next(
        (path for path, each in case.parameters.items() if each is parameter), "a parameter of no module"
    )


# ---- What moves ----------------------------------------------------------------------------------


def what_moves(case: Case) -> Iterator[Finding]:
    """One step as the training loop takes it moves every trained parameter that has a gradient, and no frozen one.

    Where all rates are 0, as before a warm-up, or too small to show, they are raised together.
    """
    optimizer = case.optimizer
    with case.untouched(), case.quiet():
        raised = max(group["lr"] for group in optimizer.param_groups)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * max(1.0, 1e-3 / raised) if raised else 1e-3
            group["eps"] = min(group["eps"], SMALL_EPS)
        before = {path: each.data.copy() for path, each in case.parameters.items()}
        for each in [*case.parameters.values(), *optimizer.parameters]:
            if each.requires_grad:
                each.grad = None
        loss = case.loss(case.batch)
        if not loss.requires_grad:
            return
        loss.backward()
        sizes = {
            path: 0.0 if each.grad is None else float(np.linalg.norm(each.grad))
            for path, each in case.trained.items()
        }
        optimizer.step()
        moved = {
            path for path, each in case.parameters.items() if not np.array_equal(each.data, before[path])
        }
        for each in optimizer.parameters:
            each.grad = None
        case.loss(case.batch)
    largest = max(sizes.values(), default=0.0)
    wrong = sorted(moved - set(case.trained))
    if wrong:
        yield Finding(
            "frozen-moves",
            some(wrong),
            "frozen, and changed by a training step",
            "does it share its array with a trained one, is it decayed, or changed in place in a forward pass?",
        )
    stuck = [
        path
        for path, each in case.trained.items()
        if path not in moved and id(each) in case.held and sizes[path] > 1e-4 * largest > 0
    ]
    if stuck:
        yield Finding(
            "does-not-move",
            some(stuck),
            "it has a gradient and stands in the optimizer, and a step leaves it as it is",
            "is the rate of its group 0, or its array another than the one that the model reads?",
        )
