"""The loss that is made of labels and answers, held against formulas that NumPy computes."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from minift.data import Batch
from minift.diagnosis.case import Case, differ
from minift.diagnosis.finding import Finding
from minift.diagnosis.labels import IGNORED
from minift.tasks import TASKS
from minift.tensor import Tensor


def outputs_are_logits(case: Case) -> Iterator[Finding]:
    """Cross-entropy takes the softmax itself: what it is given are logits, not probabilities, whose softmax is nearly
    the same for all classes."""
    if case.labels.dtype.kind == "f" or case.model.head == "QuestionAnswering":
        return
    answers = case.answers(case.few)
    if (answers >= 0).all() and not differ(answers.sum(axis=1), np.ones(len(answers)), 1e-4):
        yield Finding(
            "softmax-twice",
            f"the outputs of {type(case.model).__name__}",
            "they add up to 1 and none is below 0: probabilities, of which the loss takes the softmax again",
            "let the model end in its last linear layer; take the softmax where probabilities are shown",
        )


def each_label_is_its_own(case: Case) -> Iterator[Finding]:
    """Where an output is a number of its own, a score or the logit of one of several labels, the gradient by it
    depends on its own label and on no other: change one label, and one place of the gradient changes."""
    few, model = case.few, case.model
    shape = case.answers(few).shape
    if case.labels.dtype.kind != "f" or few.labels is None or not case.per_text:
        return
    changed = few.labels.copy()
    multi = model.problem_type == "multi_label_classification"
    changed.flat[0] = 1 - changed.flat[0] if multi else changed.flat[0] + 1
    x = np.random.default_rng(0).standard_normal(shape)
    gradients = []
    with case.quiet(), case.untouched():
        for labels in (few.labels, changed):
            output = Tensor(x, requires_grad=True)
            output.labels = model.labels
            model.loss(output, replace(few, labels=labels)).backward()
            gradients.append(output.grad)
    moved = ~np.isclose(*gradients, rtol=1e-6, atol=0)
    where = _name_of_loss(case)
    if moved[1:].any():
        yield Finding(
            "loss-across-texts",
            where,
            f"the label of text 0 changes the gradients of {moved[1:].any(axis=1).sum()} other texts",
            "do the shapes differ? (B, 1) - (B,) is (B, B): give the labels the shape of the outputs",
        )
    elif moved[0, 1:].any():
        yield Finding(
            "labels-compete",
            where,
            "a label changes the gradients of the text's other labels, as in a softmax over them",
            "where several labels or none may hold, each has a sigmoid of its own: binary cross-entropy",
        )


def loss_is_the_mean(case: Case) -> Iterator[Finding]:
    """A task's loss is the mean over its targets of a formula that NumPy can compute, too.

    Where it is not, its gradient by the answers tells how much each target weighs, 1 in units of 1 / n. A weight
    below 0 rewards the wrong answer, other equal weights are a sum or a scale, and weights that
    differ between texts are a mean of means. (Weights that depend on the class alone are the user's own.)
    """
    weighed = _weigh(case)
    if weighed is not None:
        yield from (
            _weights_that_are_wrong(case, weighed) if weighed.explains else _another_formula(case, weighed)
        )


class Weighed(NamedTuple):
    """A loss on random answers that is not the mean of its targets' losses, taken apart."""

    batch: Batch
    gradient: np.ndarray
    """Of the loss by the answers."""
    weights: np.ndarray
    """How much each target weighs in it, (n,)."""
    explains: bool
    """Whether these weights are all that is wrong with the gradient."""
    said: str
    """What the loss is, and what it was to be."""


def _weigh(case: Case) -> Weighed | None:
    """None where the loss is as it should be, and for a task with a formula of its own."""
    batch = case.few
    if case.batch.targets * _answers_shape(case, batch)[1] < 1_000_000:
        batch = case.batch
    random = np.random.default_rng(0)
    x = Tensor(random.standard_normal(_answers_shape(case, batch)), requires_grad=True)  # float64
    x.labels = case.model.labels
    reference = _reference(case, x.data, batch)
    if reference is None:
        return None
    losses, expected, owners = reference
    with case.quiet(), case.untouched():
        case.model.label_smoothing = 0.0
        loss = case.model.loss(x, batch)
        if not differ(loss.item(), losses.mean()):
            return None
        loss.backward()
    assert x.grad is not None
    # Of each target: by which factor of the expected gradient its part of the gradient is approached best.
    known, count = owners >= 0, len(losses)
    along = np.bincount(owners[known], (x.grad * expected)[known], count)
    weights = along / np.bincount(owners[known], (expected * expected)[known], count)
    explained = np.where(known, weights[owners] * expected, 0.0)
    said = (
        f"{loss.item():.4g} on random answers, where the mean over the {count} targets is {losses.mean():.4g}"
    )
    return Weighed(batch, x.grad, weights, not differ(x.grad, explained), said)


def _answers_shape(case: Case, batch: Batch) -> tuple[int, int]:
    """The shape of the answers to a batch: as for the few texts, they have a row for each text, token or target."""
    rows, columns = case.answers(case.few).shape
    if case.per_text:
        return len(batch), columns
    return (batch.tokens if rows == case.few.tokens else batch.targets), columns


def _another_formula(case: Case, weighed: Weighed) -> Iterator[Finding]:
    where = _name_of_loss(case)
    if case.per_token and _rewards_the_next(weighed.gradient, weighed.batch):
        yield Finding(
            "shifted-labels",
            where,
            "in each row it rewards the label of the row behind: it shifts labels that are shifted already",
            "do not shift in the loss: in minift labels[i] is the token after ids[i]",
        )
    elif type(case.model) in TASKS.values() and "loss" not in vars(case.model):
        yield Finding("wrong-loss", where, weighed.said, "compare the loss with the formula in its docstring")


def _weights_that_are_wrong(case: Case, weighed: Weighed) -> Iterator[Finding]:
    where, names = _name_of_loss(case), case.model.labels or range(case.model.outputs)
    weights, batch = weighed.weights, weighed.batch
    scale, count = weights.mean(), len(weights)
    if (weights < 0).mean() > 0.5:
        yield Finding(
            "wrong-sign",
            where,
            f"it falls when the right answers become less likely: {weighed.said}",
            "the loss is MINUS the logarithm of the right answer's probability",
        )
    elif not differ(weights, np.full(count, scale)):
        kind = "the sum" if abs(scale / count - 1) < 1e-3 else f"{scale:.4g} times the mean"
        yield Finding(
            "loss-not-mean",
            where,
            f"{kind}: {weighed.said}",
            "divide the sum of the losses by the number of targets, and by nothing else",
        )
    elif unheard := _classes_without_weight(weights, batch):
        yield Finding(
            "class-ignored",
            where,
            f"targets of class {', '.join(str(names[each]) for each in unheard)} have no gradient",
            f"a label that does not count is {IGNORED}; do not give a class's number to ignore_index",
        )
    elif not _by_class(weights, batch):
        yield Finding(
            "mean-of-means" if abs(scale - 1) < 0.05 else "loss-not-mean",
            where,
            f"some targets weigh {weights.min():.2f} of what they should, others {weights.max():.2f}",
            "add up the losses of all targets first, and divide once, by their number in the whole batch",
        )


def _name_of_loss(case: Case) -> str:
    return f"{type(case.model).__name__}.loss"


def _classes_without_weight(weights: np.ndarray, batch: Batch) -> list[int]:
    assert batch.labels is not None
    if batch.labels.dtype.kind == "f" or batch.labels.ndim > 1:
        return []
    labels = batch.labels[batch.labels != IGNORED]
    return [each for each in np.unique(labels).tolist() if not np.abs(weights[labels == each]).max() > 1e-6]


def _by_class(weights: np.ndarray, batch: Batch) -> bool:
    assert batch.labels is not None
    if batch.labels.dtype.kind == "f" or batch.labels.ndim > 1:
        return False
    labels = batch.labels[batch.labels != IGNORED]
    return len(labels) > 2 * len(np.unique(labels)) and not any(
        differ(weights[labels == label], np.full((labels == label).sum(), weights[labels == label].mean()))
        for label in np.unique(labels)
    )


def _rewards_the_next(gradient: np.ndarray, batch: Batch) -> bool:
    assert batch.labels is not None
    counted = batch.labels != IGNORED
    labels = batch.labels[counted]
    rows = gradient[counted] if len(gradient) == len(counted) else gradient
    moved = np.abs(rows).max(axis=1) > 0
    said = rows.argmin(axis=1)
    return any(
        float(
            (said[:-1] == labels[1:])[moved[:-1]].mean()
            if shift
            else (said[1:] == labels[:-1])[moved[1:]].mean()
        )
        > 0.9
        for shift in (True, False)
        if len(labels) > 2
    )


def _reference(case: Case, x: np.ndarray, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Each target's loss (n,), the gradient of their mean by x, and to which target each element of x belongs (-1: to
    none). None for a task with a formula of its own."""
    model, labels = case.model, batch.labels
    assert labels is not None
    owners = np.full(x.shape, -1)
    gradient = np.zeros(x.shape)
    if model.head == "QuestionAnswering":
        losses = np.zeros((len(batch), 2))
        for text, (start, end) in enumerate(batch.segments):
            part = x[start:end] - x[start:end].max(axis=0)
            probabilities = np.exp(part) / np.exp(part).sum(axis=0)
            losses[text] = -np.log(probabilities[labels[text], [0, 1]])
            probabilities[labels[text], [0, 1]] -= 1
            gradient[start:end] = probabilities / losses.size
            owners[start:end] = [2 * text, 2 * text + 1]
        return losses.ravel(), gradient, owners
    if labels.dtype.kind != "f":
        counted = labels != IGNORED
        rows = np.flatnonzero(counted) if len(x) == len(labels) else np.arange(len(x))
        shifted = x[rows] - x[rows].max(axis=1, keepdims=True)
        probabilities = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
        right = np.arange(len(rows)), labels[counted]
        losses = -np.log(probabilities[right])
        probabilities[right] -= 1
        gradient[rows] = probabilities / len(rows)
        owners[rows] = np.arange(len(rows))[:, None]
        return losses, gradient, owners
    if model.problem_type == "multi_label_classification":
        losses = np.log1p(np.exp(x)) - x * labels
        return losses.ravel(), (1 / (1 + np.exp(-x)) - labels) / x.size, np.arange(x.size).reshape(x.shape)
    if model.problem_type == "regression":
        error = x - labels.reshape(x.shape)
        return (error * error).ravel(), 2 * error / x.size, np.arange(x.size).reshape(x.shape)
    return None
