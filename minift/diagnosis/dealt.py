"""Were the labels dealt out against other texts? What can honestly be told, and nothing else.

That labels cannot be learned from a batch proves nothing: a hard task looks the same. So evidence is asked for:

1. Moved along by some places, or turned around, the labels fit the texts, and as they are they do not.
2. A trained model is sure of its answers, they come as often as the labels do, and are right as often as by chance.
3. Of a thousand texts, or of 64 that are three times as many as their different words, the labels cannot be told at all
   from the words, their vectors, and what two texts of a pair have in common. In real tasks they can, a little: of a
   thousand pairs of MRPC, which is hard, to 8 standard deviations.
4. In fill-mask, tokens that are asked for but not masked are never those that stand there, where half should be.

A labelling is judged by ridge regression, each text foretold from all others (the leave-one-out residuals of a linear
smoother with hat matrix H are (y - H y) / (1 - diag H): Hastie, Tibshirani and Friedman 2009, section 7.10), and by how
far that lies above labels in random orders.
"""

from collections.abc import Iterator

import numpy as np

from minift.data import Batch
from minift.diagnosis.case import Case
from minift.diagnosis.finding import Finding
from minift.tasks.fill_mask import FillMask

FEWEST, SOME, MANY = 16, 64, 1000
"""How many texts it takes to see an order, and to say that there is nothing to see: of few words, and of many."""
ORDERS = 300
"""How many random orders of the labels a labelling is compared with."""
CLEAR, NEAR = 5.0, 3.6
"""How many standard deviations above random orders nothing reaches by chance: among many orders, and among three."""

MEND = "keep each label beside its text when shuffling, sorting, filtering and batching: one permutation for both"


def labels_belong_to_texts(case: Case) -> Iterator[Finding]:
    """See above: for labels of whole texts, and for fill-mask."""
    if isinstance(case.model, FillMask):
        yield from _unmasked_are_themselves(case)
        return
    targets = _targets(case)
    if targets is None or len(targets) < FEWEST or not (targets != targets[0]).any():
        return
    features = _features(case, case.batch)
    hats = [_hat(each) for each in features]
    enough = min(MANY, max(SOME, 3 * features[0].shape[1]))
    moved = _as_if_moved(hats, targets)
    if moved is not None:
        yield Finding("labels-shuffled", "batch.labels", moved, MEND)
        return
    said = _sure_and_wrong(case) or (_nothing_to_see(hats, targets) if len(targets) >= enough else None)
    if said is not None:
        yield Finding("labels-shuffled", "batch.labels", said, MEND)


def _targets(case: Case) -> np.ndarray | None:
    """The labels as numbers (B, C), each column with mean 0; None where they are not of whole texts."""
    labels = case.labels
    if len(labels) != len(case.batch) or case.model.head != "SequenceClassification":
        return None
    if labels.dtype.kind != "f":
        labels = np.eye(case.model.outputs)[labels]
    labels = labels.reshape(len(labels), -1).astype(np.float64)
    return labels - labels.mean(axis=0)


def _features(case: Case, batch: Batch) -> list[np.ndarray]:
    """Which words a text has, and the mean of their vectors, with what a pair has in common."""
    words = np.zeros((len(batch), case.model.config.vocab_size), bool)
    owner = np.repeat(np.arange(len(batch)), np.diff(batch.offsets))
    words[owner, batch.ids] = True
    words = words[:, words.any(axis=0) & ~words.all(axis=0)]
    vectors = np.asarray(case.model.body.vocabulary.weight.data[batch.ids], np.float64)
    second = batch.token_types == 1
    means = []
    for side in (np.ones(batch.tokens, bool), second, ~second):
        total = np.zeros((len(batch), vectors.shape[1]))
        np.add.at(total, owner[side], vectors[side])
        means.append(total / np.maximum(1, np.bincount(owner[side], minlength=len(batch)))[:, None])
    together = means[1] * means[2]
    shared = [
        len(np.intersect1d(ids[kinds == 0], ids[kinds == 1])) / max(1, len(np.unique(ids)))
        for ids, kinds in (
            (batch.ids[start:end], batch.token_types[start:end]) for start, end in batch.segments
        )
    ]
    return [words.astype(np.float64), np.column_stack([means[0], together, shared])]


def _hat(features: np.ndarray) -> np.ndarray:
    """H (B, B) of ridge regression on standardised features, its penalty half of the mean of the kernel's diagonal."""
    x = features - features.mean(axis=0)
    x = x / np.maximum(x.std(axis=0), 1e-8)
    kernel = x @ x.T
    return np.linalg.solve(kernel + 0.5 * np.trace(kernel) / len(x) * np.eye(len(x)), kernel)


def _fit(hat: np.ndarray, targets: np.ndarray) -> float:
    """The share of the variance that the other texts foretell: 1 minus that of the leave-one-out residuals."""
    residuals = (targets - hat @ targets) / (1 - np.diag(hat))[:, None]
    return 1 - float((residuals**2).sum() / (targets**2).sum())


def _above_chance(hat: np.ndarray, targets: np.ndarray, labellings: list[np.ndarray]) -> np.ndarray:
    """How many standard deviations each labelling fits better than the labels in random orders."""
    random = np.random.default_rng(0)
    by_chance = [_fit(hat, random.permutation(targets)) for _ in range(ORDERS if len(targets) < MANY else 50)]
    fits = np.array([_fit(hat, labelling) for labelling in labellings])
    return (fits - np.mean(by_chance)) / np.std(by_chance)


def _as_if_moved(hats: list[np.ndarray], targets: np.ndarray) -> str | None:
    shifts = [1, -1, *range(2, min(len(targets) - 1, 64))]
    labellings = [
        targets,
        targets[::-1],
        *(np.roll(targets, -shift, axis=0) for shift in shifts),
    ]
    names = ["", "turned around", *(f"moved by {shift}" for shift in shifts)]
    for hat in hats:
        above = _above_chance(hat, targets, labellings)
        best = int(above.argmax())
        best = best if above[best] > CLEAR else int(above[:4].argmax())
        if best and above[best] > NEAR and above[0] < above[best] / 3:
            return (
                f"{names[best]}, the labels fit the texts, {above[best]:.0f} standard deviations above chance; "
                f"as they are, {above[0]:.1f}"
            )
    return None


def _nothing_to_see(hats: list[np.ndarray], targets: np.ndarray) -> str | None:
    above = [float(_above_chance(hat, targets, [targets])[0]) for hat in hats]
    if max(above) > 2:
        return None
    return (
        f"neither the words of {len(targets)} texts nor their vectors tell anything of the labels: "
        f"{max(above):.1f} standard deviations above chance"
    )


def _sure_and_wrong(case: Case) -> str | None:
    """Of a trained classifier: its answers are sure, come as often as the labels, and are right by chance alone."""
    if case.labels.dtype.kind == "f" or any(
        path.startswith(("classifier", "score")) for path in case.model.drawn
    ):
        return None
    answers = case.answers(case.batch)
    said, count = answers.argmax(axis=1), len(answers)
    shifted = np.exp(answers - answers.max(axis=1, keepdims=True))
    each = (shifted / shifted.sum(axis=1, keepdims=True)).max(axis=1)
    sure, spread = float(each.mean()), float(np.sqrt((each * (1 - each)).sum()) / count)
    right = float((said == case.labels).mean())
    often = [np.bincount(each, minlength=answers.shape[1]) / count for each in (said, case.labels)]
    by_chance = float((often[0] * often[1]).sum())
    deviation = (by_chance * (1 - by_chance) / count) ** 0.5
    alike = np.abs(often[0] - often[1]).max() < 2 * (0.25 / count) ** 0.5
    if alike and right < by_chance + 2 * deviation and sure - right > CLEAR * max(spread, 0.3 / count**0.5):
        return f"the model is {sure:.0%} sure of its answers, and {right:.0%} are right, as many as by chance"
    return None


def _unmasked_are_themselves(case: Case) -> Iterator[Finding]:
    ids, labels, model = case.batch.ids, case.labels, case.model
    assert isinstance(model, FillMask)
    asked = (labels != -100) & (ids != model.mask)
    if asked.sum() >= 15 and (ids[asked] == labels[asked]).mean() < 0.05:
        share = (ids[asked] == labels[asked]).mean()
        yield Finding(
            "labels-shuffled",
            "batch.labels",
            f"of {asked.sum()} tokens that are asked for, not masked, {share:.0%} stand there themselves; half should",
            MEND,
        )
