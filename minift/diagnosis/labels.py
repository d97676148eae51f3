"""Labels: checks that need no training, and of the model at most its shape."""

from collections.abc import Iterator

import numpy as np

from minift.diagnosis.case import Case
from minift.diagnosis.finding import Finding
from minift.tasks.fill_mask import FillMask
from minift.tasks.instruction_tuning import InstructionTuning
from minift.tasks.text_generation import TextGeneration
from minift.tasks.token_classification import TokenClassification

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
