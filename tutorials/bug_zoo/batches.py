"""Bugs of the batch: labels, and which token or text they belong to; positions."""

from dataclasses import replace
from functools import partial

import numpy as np

from bug_zoo.plant import planted
from bug_zoo.setups import (
    answering,
    filling,
    instructing,
    regression,
    sentiment,
    several_labels,
    tagging,
    writing,
)

IGNORED = -100


def with_labels(setup, labels):
    """The set-up with other labels."""
    return setup._replace(batch=replace(setup.batch, labels=labels))


# ---- shifted-labels ------------------------------------------------------------------------------


@planted(
    "shifted-labels",
    partial(writing, "gpt2"),
    "The labels were shifted by one when the text was cut, and once more in the batch: the next but one is learned.",
    "Shift in one place: labels[t] = ids[t + 1].",
)
def shifted_twice(setup):
    labels = setup.batch.labels.copy()
    for start, end in setup.batch.segments:
        labels[start:end] = np.append(labels[start + 1 : end], IGNORED)
    yield with_labels(setup, labels)


@planted(
    "shifted-labels",
    partial(writing, "llama"),
    "labels = ids, as for a library that shifts them itself; here nobody does, and the model learns to repeat.",
    "labels[t] = ids[t + 1]",
)
def not_shifted(setup):
    yield with_labels(setup, setup.batch.ids.copy())


@planted(
    "shifted-labels",
    partial(instructing, "qwen2"),
    "Shifted, then masked by the prompt's length, then shifted once more by the loss that was copied from elsewhere.",
    "Shift first, then mask the first len(prompt) - 1 labels.",
)
def the_response_shifted_twice(setup):
    labels = setup.batch.labels.copy()
    for start, end in setup.batch.segments:
        labels[start:end] = np.append(labels[start + 1 : end], IGNORED)
    yield with_labels(setup, labels)


# ---- all-labels-ignored, label-out-of-range ------------------------------------------------------


@planted(
    "all-labels-ignored",
    partial(tagging, "bert"),
    "The words' places were looked up in the text with other spaces: no token is a word's first, so none has a tag.",
    "labels[first_pieces] = tags; and look at one batch before training.",
)
def no_word_found(setup):
    yield with_labels(setup, np.full_like(setup.batch.labels, IGNORED))


@planted(
    "all-labels-ignored",
    partial(instructing, "llama"),
    "All texts were cut behind the prompt, so what is left of their labels is -100.",
    "Leave out an example whose response is cut away; or cut the prompt.",
)
def responses_cut_away(setup):
    batch = setup.batch
    keep = np.concatenate(
        [np.arange(start, start + first(batch.labels[start:end])) for start, end in batch.segments]
    )
    lengths = [first(batch.labels[start:end]) for start, end in batch.segments]
    cut = replace(
        batch,
        ids=batch.ids[keep],
        token_types=batch.token_types[keep],
        positions=batch.positions[keep],
        labels=batch.labels[keep],
        offsets=np.cumsum([0, *lengths]),
    )
    yield setup._replace(batch=cut)


def first(labels):
    """The place of the first label that counts."""
    return int(np.argmax(labels != IGNORED))


@planted(
    "all-labels-ignored",
    partial(filling, "distilbert"),
    "Labels were kept where the id is 0, which is the mask of another tokenizer; this one's is 4, so none is left.",
    "labels = where(ids == tokenizer.mask, what_stood_there, -100)",
)
def the_mask_of_another_tokenizer(setup):
    yield with_labels(setup, np.where(setup.batch.ids == 0, setup.batch.labels, IGNORED))


@planted(
    "label-out-of-range",
    partial(sentiment, "bert"),
    "The file counts its classes from 1, the model's outputs count from 0.",
    "labels - 1; or names, which the model looks up.",
)
def counted_from_one(setup):
    yield with_labels(setup, setup.batch.labels + 1)


@planted(
    "label-out-of-range",
    partial(tagging, "roberta"),
    "Tokens without a tag have the label -1, but the one that does not count is -100.",
    "-100",
)
def minus_one_for_ignored(setup):
    yield with_labels(setup, np.where(setup.batch.labels == IGNORED, -1, setup.batch.labels))


@planted(
    "label-out-of-range",
    partial(writing, "gpt2"),
    "A token was added to the tokenizer that ends every text, and the model's vocabulary stayed as it was.",
    "Grow the embeddings with the tokenizer, before anything else.",
)
def a_token_too_many(setup):
    labels = setup.batch.labels.copy()
    labels[setup.batch.offsets[1:] - 1] = setup.model.outputs
    yield with_labels(setup, labels)


# ---- prompt-in-loss ------------------------------------------------------------------------------


def next_ids(batch):
    """For each token the next one of its text; the last, whose next is gone, keeps its label."""
    return np.where(np.append(np.diff(batch.positions) == 1, False), np.roll(batch.ids, -1), batch.labels)


@planted(
    "prompt-in-loss",
    partial(instructing, "llama"),
    "Every token has a label: the model learns to write instructions, too, and short responses hardly count.",
    "-100 for what the prompt's tokens foretell, but for its last one.",
)
def nothing_masked(setup):
    yield with_labels(setup, next_ids(setup.batch))


@planted(
    "prompt-in-loss",
    partial(instructing, "gpt2"),
    "The prompt was looked for once in the whole batch, and so only that of the first text is masked.",
    "Mask text by text.",
)
def only_the_first_text_masked(setup):
    labels = next_ids(setup.batch)
    labels[: setup.batch.offsets[1]] = setup.batch.labels[: setup.batch.offsets[1]]
    yield with_labels(setup, labels)


@planted(
    "prompt-in-loss",
    partial(instructing, "qwen2"),
    "The mask is the wrong way round: what is learned is the prompt, and what is ignored is the response.",
    "labels = where(of_response, next_ids, -100)",
)
def the_mask_inverted(setup):
    labels = np.where(setup.batch.labels == IGNORED, next_ids(setup.batch), IGNORED)
    yield with_labels(setup, labels)


# ---- labels-shuffled -----------------------------------------------------------------------------

MANY = 1024
"""Texts in a batch: with few, labels that were dealt out wrongly look like labels that are hard."""


@planted(
    "labels-shuffled",
    partial(sentiment, "bert", count=MANY),
    "The texts were shuffled, and the labels, in a list of their own, were not.",
    "Shuffle the pairs, or index both by one order.",
)
def texts_without_their_labels(setup):
    yield with_labels(setup, np.random.default_rng(0).permutation(setup.batch.labels))


@planted(
    "labels-shuffled",
    partial(several_labels, "roberta", count=MANY),
    "The header of one file was taken for a row: every text has the label of the one before.",
    "Read texts and labels from one file, row by row.",
)
def off_by_a_row(setup):
    yield with_labels(setup, np.roll(setup.batch.labels, 1, axis=0))


@planted(
    "labels-shuffled",
    partial(regression, "distilbert", count=MANY),
    "The texts were sorted by length, to pack them well, and their scores stayed in the order of the file.",
    "Sort the pairs, or index both by one order.",
)
def sorted_by_length(setup):
    yield with_labels(setup, setup.batch.labels[np.argsort(np.diff(setup.batch.offsets), kind="stable")])


# ---- wrong-positions -----------------------------------------------------------------------------


@planted(
    "wrong-positions",
    partial(sentiment, "roberta"),
    "The batch counts positions from 2, as RoBERTa's table does, and the model adds these 2 once more.",
    "Positions begin at 0 in every text; the model knows where its table begins.",
)
def moved_up_twice(setup):
    yield setup._replace(batch=replace(setup.batch, positions=setup.batch.positions + 2))


@planted(
    "wrong-positions",
    partial(answering, "bert"),
    "Positions begin anew at the second text of a pair, so two tokens of one text stand in the same place.",
    "One count from [CLS] to the last [SEP].",
)
def anew_at_the_second_text(setup):
    batch = setup.batch
    positions = batch.positions.copy()
    for start, end in batch.segments:
        second = batch.token_types[start:end] == 1
        positions[start:end][second] = np.arange(second.sum())
    yield setup._replace(batch=replace(batch, positions=positions))


@planted(
    "wrong-positions",
    partial(writing, "gpt2"),
    "Positions are counted from the right, as if the texts had been padded on the left: they end, not begin, together.",
    "Positions begin at 0 in every text.",
)
def counted_from_the_right(setup):
    batch = setup.batch
    lengths = np.diff(batch.offsets)
    positions = batch.positions + np.repeat(lengths.max() - lengths, lengths)
    yield setup._replace(batch=replace(batch, positions=positions))


PLANTS = [
    shifted_twice, not_shifted, the_response_shifted_twice,
    no_word_found, responses_cut_away, the_mask_of_another_tokenizer,
    counted_from_one, minus_one_for_ignored, a_token_too_many,
    nothing_masked, only_the_first_text_masked, the_mask_inverted,
    texts_without_their_labels, off_by_a_row, sorted_by_length,
    moved_up_twice, anew_at_the_second_text, counted_from_the_right,
]  # fmt: skip
