"""Whether it can learn: the rate, the loss at the start, one batch learned by heart."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minift.data import Batch
from minift.diagnosis.case import Case, differ
from minift.diagnosis.finding import Finding
from minift.diagnosis.labels import IGNORED
from minift.methods.lora import LoRALinear
from minift.methods.method import LANGUAGE_MODELS, head_parameters
from minift.nn import Linear, Parameter
from minift.optim import AdamW

HIGHEST_RATIO = 0.2
"""How large a step may be in units of a pre-trained matrix. Stanford's CS231n names 1e-3, in the notes' section "Ratio
of weights:updates"; the first steps of Adam are larger, and small models bear more."""
TURNS = 6
"""How many steps are tried; what a right rate for few numbers spoils in its first, the next ones mend."""
LONG = 1000
"""In how many steps a rate is to lead somewhere."""


class Trial(NamedTuple):
    """What the optimizer's first steps do."""

    losses: list[float]
    """On one batch: before the first step, the second, ..."""
    ratios: list[float]
    """How large the first step is, in units of each pre-trained matrix that it changes."""
    falls: float
    """By how much the first step lowers the loss, as far as its slope tells."""
    could_fall: float
    """The same at the rate 1e-3."""


def rate_is_sensible(case: Case) -> Iterator[Finding]:
    """A step changes the weights of the body's layers by far less than they are, and a thousand steps change the loss
    by more than nothing: Adam's first steps go `rate` in each direction, so the loss falls by rate |g|_1 in each.

    Rates as such say little: 0.1 is right for a soft prompt, 1e-4 for all weights. Before a warm-up, when the rate is
    0, nothing can be told.
    """
    highest = max(group["lr"] for group in case.optimizer.param_groups)
    if not highest > 0:
        return
    with case.untouched(), case.quiet():
        trial = _trial(case)
    if trial is None:
        return
    losses = trial.losses
    ratio = float(np.median(trial.ratios)) if trial.ratios else 0.0
    exploded = not np.isfinite(losses).all() or min(losses[2:]) > 2 * max(losses[0], guess(case))
    if ratio > HIGHEST_RATIO or exploded:
        yield Finding(
            "rate-too-high",
            f"lr {highest:g}",
            f"a step changes pre-trained matrices by {ratio:.1%} of their size (the median), and the loss on the same "
            f"batch goes {' '.join(f'{loss:.3g}' for loss in losses)}",
            "try a hundredth; minift find-lr looks for a rate",
        )
    elif LONG * trial.falls < 0.01 * losses[0] < LONG * trial.could_fall:
        yield Finding(
            "rate-too-low",
            f"lr {highest:g}",
            f"the loss is {losses[0]:.3g}, and {LONG} steps would lower it by some {LONG * trial.falls:.1g}",
            "try a thousand times as much; minift find-lr looks for a rate",
        )


def _trial(case: Case) -> Trial | None:
    """Of TURNS steps on the case's batch, with an optimizer that has seen none; None for a loss without a gradient."""
    optimizer = case.optimizer
    optimizer.state.clear()
    losses, ratios, falls, could_fall = [], [], 0.0, 0.0
    for turn in range(TURNS):
        for each in case.parameters.values():
            each.grad = None
        loss = case.loss(case.batch)
        losses.append(loss.item())
        if not loss.requires_grad:
            return None
        loss.backward()
        if turn == 0:
            falls, could_fall = _falls(optimizer), _falls(optimizer, rate=1e-3, eps=1e-8)
            ratios = _ratios_of_a_step(case)
        else:
            optimizer.step(1.0)
    return Trial(losses, ratios, falls, could_fall)


def _ratios_of_a_step(case: Case) -> list[float]:
    """Take a step; by how much it changes each pre-trained matrix, in units of what was there: of a matrix the rows
    that have a gradient, of one with LoRA beside it all of it, by delta W."""
    moving = [
        (each, np.abs(each.grad).sum(axis=1) > 0) for each in _pretrained(case) if each.grad is not None
    ]
    adapted = [
        each for _, each in case.model.named_modules() if isinstance(each, LoRALinear) and not each.merged
    ]

    def values() -> list[np.ndarray]:
        return [each.data[rows] for each, rows in moving] + [each.delta for each in adapted]

    before = values()
    case.optimizer.step(1.0)
    sizes = before[: len(moving)] + [each.weight.data for each in adapted]
    return [
        float(np.linalg.norm(b - a) / np.linalg.norm(size))
        for a, b, size in zip(before, values(), sizes, strict=True)
        if size.any()
    ]


def _pretrained(case: Case) -> list[Parameter]:
    """The matrices of the body that the optimizer trains, without those that a method inserted."""
    body, method = case.model.body, case.model.method
    inserted = set(method.inserted(case.model)) if method is not None else set()
    below = {id(each) for module in [*body.foundation, *body.layers] for each in module.parameters()}
    return [
        each
        for path, each in case.trained.items()
        if id(each) in case.held & below and path not in inserted and each.ndim > 1
    ]


def _falls(optimizer: AdamW, rate: float = 0.0, eps: float = 0.0) -> float:
    """By how much Adam's first step lowers the loss: each weight goes lr g / (|g| + eps), so lr g^2 / (|g| + eps).

    With a rate or an eps in the place of the optimizer's, if given.
    """
    total = 0.0
    for group in optimizer.param_groups:
        for each in group["params"]:
            if each.grad is not None:
                size = np.abs(np.asarray(each.grad))
                total += (rate or group["lr"]) * float((size * size / (size + (eps or group["eps"]))).sum())
    return total


def guess(case: Case) -> float:
    """The loss of who knows nothing but how many answers there are: log C; for numbers their variance."""
    labels = case.labels
    if case.model.head == "QuestionAnswering":
        return float(np.log(np.diff(case.batch.offsets)).mean())
    if labels.dtype.kind != "f":
        return float(np.log(case.model.outputs))
    if case.model.problem_type == "multi_label_classification":
        return float(np.log(2))
    return float(labels.var())


def loss_at_the_start(case: Case) -> Iterator[Finding]:
    """A new head knows nothing: its loss is near log C, C the number of classes.

    How near depends on how large its answers are: those of weights of the size that new weights have, on the vectors
    that the head is given.
    """
    model = case.model
    new = [path for path in model.drawn if path in head_parameters(model)]
    if case.steps or model.problem_type == "regression":
        return
    if model.head in LANGUAGE_MODELS:
        yield from _a_language_model_knows_something(case)
        return
    if not new:
        return
    with case.evaluating(), case.listening() as heard:
        loss = case.loss(case.batch).item()
    heads = [call for call in heard if isinstance(call.module, Linear) and f"{call.path}.weight" in new]
    if not heads:
        return
    x = np.asarray(heads[-1].inputs[0], np.float64)
    spread = model.config.initializer_range * float(np.sqrt((x * x).sum(axis=1).mean()))
    expected = guess(case)
    if not abs(loss - expected) < 0.1 * expected + 4 * spread:
        yield Finding(
            "wrong-loss-at-start",
            heads[-1].path,
            f"the loss is {loss:.3g}; a new head that knows nothing has {expected:.3g}",
            "are its first weights small, and its answers logits, neither scaled nor passed through a softmax?",
        )


def _a_language_model_knows_something(case: Case) -> Iterator[Finding]:
    """Of a language model, new or pre-trained, the loss is not far above that of who knows nothing, log V."""
    with case.evaluating():
        loss = case.loss(case.batch).item()
    if not loss < 1.5 * guess(case) + 1:
        yield Finding(
            "wrong-loss-at-start",
            "the language model's head",
            f"the loss is {loss:.3g}; a model that knows nothing has {guess(case):.3g}",
            "are its answers logits as the weights give them, and tokenizer and weights of one model?",
        )


STEPS, RATES = 40, (1e-3, 1e-2, 1e-1, 1e-4)


def learns_by_heart(case: Case) -> Iterator[Finding]:
    """Some texts can be learned by heart: at one of four rates the loss on a few falls clearly, dropout off.

    Where it is low already, there is nothing to learn, and texts that are the same cannot be told apart. Tokens are
    many, and methods that train little cannot learn them all by heart: a little less loss is enough there.
    """
    if not case.trained:
        return
    disagreeing = _disagreeing(case)
    if disagreeing > len(case.batch) / 2:
        yield Finding(
            "does-not-overfit",
            "batch.labels",
            f"{disagreeing} of {len(case.batch)} texts come with different labels",
            "give a text one label: nobody can learn two by heart",
        )
        return
    few, floor = case.few, _floor(case, case.few)
    labels_of_few = few.labels
    assert labels_of_few is not None
    all_trained = len(case.trained) == len(case.parameters)
    differing = not case.per_token and (labels_of_few != labels_of_few[0]).any()
    finals, enough = [], (0.65 if all_trained else 0.98) if case.per_token else 0.8
    for rate in RATES:
        with case.untouched(), case.quiet():
            for each in case.parameters.values():
                each.grad = None
            optimizer = AdamW(list(case.trained.values()), lr=rate, weight_decay=0.0)
            losses = []
            for _ in range(STEPS):
                loss = case.loss(few)
                losses.append(loss.item())
                if losses[0] - floor < 0.3 * guess(case):
                    return
                if losses[-1] - floor < enough * (losses[0] - floor) and not (
                    differing and _alike(case, few)
                ):
                    return
                if not loss.requires_grad or not np.isfinite(losses[-1]):
                    break
                loss.backward()
                optimizer.step(1.0)
                optimizer.zero_grad()
            finals.append(min(losses))
    alike = _alike(case, few)
    yield Finding(
        "does-not-overfit",
        f"{len(few)} texts",
        f"in {STEPS} steps at any of the rates {', '.join(f'{rate:g}' for rate in RATES)} the loss falls from "
        f"{losses[0]:.3g} to {min(finals):.3g} at best"
        + ("; all texts get the same answers" if alike else ""),
        "what is lost between the texts and the answers: is a layer stuck at 0, by a rate too high or by its weights?"
        if alike
        else "do the labels belong to these texts, and are they the same each time?",
    )


def _alike(case: Case, few: Batch) -> bool:
    """Whether all texts get the same answer: then the loss falls by how often a label comes, whatever the texts."""
    each = case.answers_of_each(few, case.answers(few))
    return all(not differ(one[:1], each[0][:1], 1e-5) for one in each)


def _labels_of_each(case: Case, batch: Batch) -> list[list]:
    """The labels of the texts that are the same, a list for each such text."""
    labels = batch.labels
    assert labels is not None
    groups: dict[bytes, list] = {}
    for (start, end), label in zip(batch.segments, labels.tolist(), strict=True):
        groups.setdefault(batch.ids[start:end].tobytes(), []).append(label)
    return list(groups.values())


def _disagreeing(case: Case) -> int:
    """How many texts of the batch have another label where they come again; 0 where labels are not one a text."""
    if case.per_token or case.labels.ndim > 1:
        return 0
    return sum(len(each) for each in _labels_of_each(case, case.batch) if len(set(each)) > 1)


def _floor(case: Case, batch: Batch) -> float:
    """The least loss that texts which are the same, with labels that are not, allow; 0 where labels are a token's."""
    labels = batch.labels
    assert labels is not None
    if case.per_token or labels.ndim > 1:
        return 0.0
    total = 0.0
    for each in _labels_of_each(case, batch):
        if labels.dtype.kind == "f":
            total += len(each) * float(np.var(each))
        else:
            shares = np.unique([label for label in each if label != IGNORED], return_counts=True)[1] / len(
                each
            )
            total -= len(each) * float((shares * np.log(shares)).sum())
    return total / len(batch)
