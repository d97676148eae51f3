"""Labels, and the loss that is made of them: checks that need no training, and of the model at most its shape."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from minift.data import Batch
from minift.diagnosis.case import Case, differ
from minift.diagnosis.finding import Finding
from minift.tasks import TASKS
from minift.tasks.fill_mask import FillMask
from minift.tasks.instruction_tuning import InstructionTuning
from minift.tasks.text_generation import TextGeneration
from minift.tasks.token_classification import TokenClassification
from minift.tensor import Tensor

IGNORED = -100


def labels_in_range(case: Case) -> Iterator[Finding]:
    """A class is a number from 0 to C - 1, or -100 for none; a probability lies from 0 to 1; a score is a number.

    An answer's two labels are rows of its own text.
    """
    labels, model = case.labels, case.model
    if model.head == "QuestionAnswering":
        wrong = (labels < 0) | (labels >= np.diff(case.batch.offsets)[:, None])
        expected = "0 up to the length of its text"
    elif labels.dtype.kind != "f":
        wrong = (labels != IGNORED) & ((labels < 0) | (labels >= model.outputs))
        expected = f"0 to {model.outputs - 1}, or {IGNORED} for a token that does not count"
    elif model.problem_type == "multi_label_classification":
        wrong, expected = ~((labels >= 0) & (labels <= 1)), "0 to 1"
    else:
        wrong, expected = ~np.isfinite(labels), "a number"
    if wrong.any():
        place = np.argwhere(wrong)[0].tolist()
        yield Finding(
            "label-out-of-range",
            f"batch.labels{place}",
            f"{labels[tuple(place)]}, one of {int(wrong.sum())} such labels; expected {expected}",
            "count classes from 0, and give the head as many outputs as there are classes",
        )


def some_labels_count(case: Case) -> Iterator[Finding]:
    """A loss is a mean over labels that count: where all are -100, there is nothing to learn from."""
    if case.batch.targets == 0:
        yield Finding(
            "all-labels-ignored",
            "batch.labels",
            f"all {case.labels.size} labels are {IGNORED}",
            "see how labels are masked: is the text cut off before the response, are all tokens taken for the prompt?",
        )


def next_token_labels(case: Case) -> Iterator[Finding]:
    """In text generation the label of a token is the token after it: labels[i] == ids[i + 1], within each text.

    A text's last label is not among its ids, so it is not judged.
    """
    if not isinstance(case.model, TextGeneration) or not case.per_token:
        return
    ids, labels, offsets = case.batch.ids, case.labels, case.batch.offsets
    place = np.arange(len(ids))
    end = np.repeat(offsets[1:], np.diff(offsets))
    start = np.repeat(offsets[:-1], np.diff(offsets))

    def matching(shift: int) -> float:
        seen = (labels != IGNORED) & (place + shift < end) & (place + shift >= start)
        return float((labels[seen] == ids[place[seen] + shift]).mean()) if seen.any() else 0.0

    judged = (labels != IGNORED) & (place + 1 < end)
    if not judged.any() or matching(1) == 1.0:
        return
    shift = max((-1, 0, 2, 3), key=matching)
    if matching(shift) > 0.9 and matching(shift) > matching(1):
        means = {
            -1: "the token before",
            0: "the token itself",
            2: "the token after the next",
            3: "3 tokens on",
        }
        yield Finding(
            "shifted-labels",
            "batch.labels",
            f"labels[i] is ids[i{shift:+d}], {means[shift]}; expected ids[i+1]",
            "shift once, where the batch is made: labels = tokens[1:], ids = tokens[:-1]",
        )
    else:
        yield Finding(
            "labels-shuffled",
            "batch.labels",
            f"labels[i] == ids[i+1] holds for {matching(1):.0%} of the labels; expected all",
            "take a text's labels from the same text",
        )


def prompt_without_labels(case: Case) -> Iterator[Finding]:
    """In instruction tuning the first label that counts stands at the last token of the prompt, whose next token
    begins the response. A prompt ends in the same way in all texts, as the template says."""
    if not isinstance(case.model, InstructionTuning):
        return
    tail = _end_of_prompts(case.model)
    in_loss = []
    for text, (start, end) in enumerate(case.batch.segments):
        ids, counted = case.batch.ids[start:end], case.labels[start:end] != IGNORED
        if not counted.any():
            continue
        first = int(counted.argmax())
        ends = [
            place
            for place in range(len(tail), len(ids) + 1)
            if len(tail) and (ids[place - len(tail) : place] == tail).all()
        ]
        if first + 1 not in ends and (first == 0 or any(place > first + 1 for place in ends)):
            in_loss.append(text)
    if len(in_loss) > len(case.batch) / 2:
        yield Finding(
            "prompt-in-loss",
            f"{len(in_loss)} of {len(case.batch)} texts",
            f"text {in_loss[0]} has labels before its response begins",
            f"set the labels of the prompt to {IGNORED}: labels[: len(prompt) - 1] = {IGNORED}",
        )


def special_tokens_have_no_label(case: Case) -> Iterator[Finding]:
    """A tag is a word's: [CLS] and [SEP] have none. Where they do, the tags lie one token beside their words."""
    if not isinstance(case.model, TokenClassification):
        return
    tokenizer = case.model.tokenizer
    special = np.isin(case.batch.ids, [*tokenizer.before_text, *tokenizer.after_text])
    labelled = np.flatnonzero(special & (case.labels != IGNORED))
    if len(labelled):
        yield Finding(
            "label-on-special-token",
            f"batch.labels[{labelled[0]}]",
            f"{len(labelled)} special tokens have a label, "
            f"the first of them is {tokenizer.tokens([int(case.batch.ids[labelled[0]])])[0]}",
            f"count the tokens in front of the words, which have {IGNORED}, before the tags are laid on the words",
        )


def some_tokens_are_masked(case: Case) -> Iterator[Finding]:
    """Of the tokens that fill-mask asks for 8 in 10 are masked (Devlin et al. 2019, section 3.1): else it reads what
    it is asked."""
    model, labels = case.model, case.labels
    if not isinstance(model, FillMask):
        return
    asked = labels != IGNORED
    if asked.sum() >= 8 and (case.batch.ids[asked] == labels[asked]).mean() > 0.9:
        yield Finding(
            "nothing-masked",
            "batch.ids",
            f"of {asked.sum()} tokens that are asked for, {(case.batch.ids[asked] == labels[asked]).sum()} can be read",
            "put the masks into the ids that the model is given, and keep a copy for the labels",
        )


def _end_of_prompts(model: InstructionTuning) -> np.ndarray:
    """The tokens that end every prompt: what the prompts of different instructions have in common at their ends."""
    prompts = [model.prompt(text) for text in ("a", "Why?", "The end.", "12", 'He said "no"', "(b)", "x\n")]
    length = 0
    while all(len(each) > length and each[-1 - length] == prompts[0][-1 - length] for each in prompts):
        length += 1
    return np.array(prompts[0][len(prompts[0]) - length :])


# ---- The loss ------------------------------------------------------------------------------------


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
    if case.labels.dtype.kind != "f" or few.labels is None or shape[0] != len(few):
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
    where = f"{type(model).__name__}.loss"
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
    rows = case.answers(case.few).shape
    batch = case.few
    if case.batch.targets * rows[-1] < 1_000_000:
        batch = case.batch
        rows = (case.batch.targets if len(case.few) != rows[0] != case.few.tokens else
                len(batch) if len(case.few) == rows[0] else batch.tokens, rows[-1])  # fmt: skip
    random = np.random.default_rng(0)
    x = Tensor(random.standard_normal(rows), requires_grad=True)  # float64
    x.labels = case.model.labels
    losses, gradient, owners = _reference(case, x.data, batch)
    if losses is None or gradient is None or owners is None:
        return
    with case.quiet(), case.untouched():
        case.model.label_smoothing = 0.0
        loss = case.model.loss(x, batch)
        if not differ(loss.item(), losses.mean()):
            return
        loss.backward()
    assert x.grad is not None
    count = len(losses)
    weights = np.zeros(count)
    known = owners >= 0
    np.add.at(weights, owners[known], (x.grad * gradient)[known])
    size = np.zeros(count)
    np.add.at(size, owners[known], (gradient * gradient)[known])
    weights /= size
    explained = np.where(known, weights[owners] * gradient, 0.0)
    where, names = f"{type(case.model).__name__}.loss", case.model.labels or range(case.model.outputs)
    said = (
        f"{loss.item():.4g} on random answers, where the mean over the {count} targets is {losses.mean():.4g}"
    )
    if differ(x.grad, explained):
        if case.per_token and _rewards_the_next(x.grad, batch):
            yield Finding(
                "shifted-labels",
                where,
                "in each row it rewards the label of the row behind: it shifts labels that are shifted already",
                "do not shift in the loss: in minift labels[i] is the token after ids[i]",
            )
        elif type(case.model) in TASKS.values() and "loss" not in vars(case.model):
            yield Finding("wrong-loss", where, said, "compare the loss with the formula in its docstring")
        return
    if (weights < 0).mean() > 0.5:
        yield Finding(
            "wrong-sign",
            where,
            f"it falls when the right answers become less likely: {said}",
            "the loss is MINUS the logarithm of the right answer's probability",
        )
    elif not differ(weights, np.full(count, weights.mean())):
        scale = weights.mean()
        kind = "the sum" if abs(scale / count - 1) < 1e-3 else f"{scale:.4g} times the mean"
        yield Finding(
            "loss-not-mean",
            where,
            f"{kind}: {said}",
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
            "mean-of-means" if abs(weights.mean() - 1) < 0.05 else "loss-not-mean",
            where,
            f"some targets weigh {weights.min():.2f} of what they should, others {weights.max():.2f}",
            "add up the losses of all targets first, and divide once, by their number in the whole batch",
        )


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


def _reference(case: Case, x: np.ndarray, batch: Batch):
    """Each target's loss (n,), the gradient of their mean by x, and to which target each element of x belongs (-1: to
    none). Three times None for a task with a formula of its own."""
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
    return None, None, None
