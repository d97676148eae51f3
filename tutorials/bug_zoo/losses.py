"""Bugs of the loss: what it is the mean of, where it begins, and which way is down."""

import itertools
from dataclasses import replace
from functools import partial

import numpy as np

from bug_zoo.plant import planted, replaced
from bug_zoo.setups import (
    instructing,
    regression,
    sentiment,
    tagging,
    writing,
)
from minift import ops
from minift.losses import cross_entropy, mse_loss

# ---- mean-of-means -------------------------------------------------------------------------------


def mean_of_the_texts_means(output, labels, offsets):
    """What comes of dividing each text's loss by its own number of tokens, and the sum by the number of texts."""
    of_texts = [
        cross_entropy(output[start:end], labels[start:end])
        for start, end in itertools.pairwise(offsets)
        if (labels[start:end] != -100).any()
    ]
    return sum(of_texts[1:], of_texts[0]) * (1 / len(of_texts))


@planted(
    "mean-of-means",
    partial(writing, "gpt2"),
    "A text's loss is the mean over its tokens, the batch's that over its texts: tokens of short texts count more.",
    "The mean over all tokens of the batch, and of all batches between two steps.",
)
def over_the_texts(setup):
    def loss(output, batch):
        return mean_of_the_texts_means(output, batch.labels, batch.offsets)  # every token has a label

    with replaced(setup.model, loss=loss):
        yield setup


@planted(
    "mean-of-means",
    partial(tagging, "bert"),
    "Sentences are tagged one by one, each divided by its own number of words.",
    "One mean over all words that have a tag.",
)
def over_the_sentences(setup):
    def loss(output, batch):
        return mean_of_the_texts_means(output, batch.labels, batch.offsets)

    with replaced(setup.model, loss=loss):
        yield setup


@planted(
    "mean-of-means",
    partial(instructing, "llama"),
    "The gradients of two halves of the batch are added, each divided by its own labels and then by 2.",
    "Divide each half's sum by the labels of both halves.",
)
def over_two_halves(setup):
    def loss(output, batch):
        labels = batch.labels[batch.labels != -100]
        half = int((batch.labels[: batch.offsets[len(batch) // 2]] != -100).sum())
        if not 0 < half < len(labels):
            return cross_entropy(output, labels)
        return (
            cross_entropy(output[:half], labels[:half]) + cross_entropy(output[half:], labels[half:])
        ) * 0.5

    with replaced(setup.model, loss=loss):
        yield setup


# ---- loss-not-mean -------------------------------------------------------------------------------


def loss_times(setup, factor):
    """The model with a loss that is `factor(batch)` times the right one."""
    right = setup.model.loss
    return replaced(setup.model, loss=lambda output, batch: right(output, batch) * float(factor(batch)))


@planted(
    "loss-not-mean",
    partial(sentiment, "bert"),
    "The loss was scaled up by 1024, which half precision needs, and the gradients were never scaled down again.",
    "Divide the gradients by the same 1024 before they are clipped and used; float32 needs no scale.",
)
def scaled_up_for_half_precision(setup):
    with loss_times(setup, lambda batch: 1024):
        yield setup


@planted(
    "loss-not-mean",
    partial(writing, "gpt2"),
    'reduction="sum": the gradient grows with the number of tokens, and clipping hides it.',
    "The mean over all tokens that have a label.",
)
def a_sum_over_tokens(setup):
    with loss_times(setup, lambda batch: batch.targets):
        yield setup


@planted(
    "loss-not-mean",
    partial(regression, "distilbert"),
    "Squared errors are added up over the texts: twice the batch, twice the gradient.",
    "The mean over the texts.",
)
def a_sum_over_texts(setup):
    with loss_times(setup, len):
        yield setup


# ---- wrong-sign ----------------------------------------------------------------------------------


@planted(
    "wrong-sign",
    partial(sentiment, "bert"),
    "The loss is the mean of log p, without the minus: it falls when the right label becomes less likely.",
    "-log p",
)
def log_p_of_labels(setup):
    with loss_times(setup, lambda batch: -1):
        yield setup


@planted(
    "wrong-sign",
    partial(writing, "qwen2"),
    "The mean probability of the right token was taken for the loss; minimised, it goes to 0.",
    "-log p",
)
def the_probability_itself(setup):
    def loss(output, batch):
        return ops.softmax(output)[np.arange(len(output)), batch.labels].mean()  # every token has a label

    with replaced(setup.model, loss=loss):
        yield setup


@planted(
    "wrong-sign",
    partial(regression, "distilbert"),
    "The score of a model selection, minus the squared error, of which more is better, was taken for the loss.",
    "The squared error itself.",
)
def a_score_to_be_maximised(setup):
    with replaced(setup.model, loss=lambda output, batch: -mse_loss(output.reshape(-1), batch.labels)):
        yield setup


# ---- wrong-loss-at-start -------------------------------------------------------------------------


@planted(
    "wrong-loss-at-start",
    partial(sentiment, "bert"),
    "The new head was drawn with a standard deviation of 20 instead of 0.02: it is sure of its random answers.",
    "Small weights: whoever knows nothing should say 1 / C for each class, and have a loss of log C.",
)
def a_loud_head(setup):
    weight = setup.model.classifier.weight
    loud = np.random.default_rng(0).normal(0, 20, weight.shape).astype(np.float32)
    with replaced(weight, data=loud):
        yield setup


@planted(
    "wrong-loss-at-start",
    partial(tagging, "roberta"),
    "The head's bias is still that of another task with as many classes, of which the last was nearly always right.",
    "A new head for a new task: weights small, biases 0.",
)
def the_bias_of_another_task(setup):
    bias = setup.model.classifier.bias
    with replaced(bias, data=np.array([-6, 0, 8], np.float32)):
        yield setup


@planted(
    "wrong-loss-at-start",
    partial(writing, "llama"),
    "Logits are divided by the temperature 0.01, which was meant for generation.",
    "A temperature belongs to sampling alone.",
)
def a_temperature_in_training(setup):
    with replaced(
        setup.model, plain_answer=lambda batch: type(setup.model).plain_answer(setup.model, batch) * 100.0
    ):
        yield setup


# ---- does-not-overfit ----------------------------------------------------------------------------


@planted(
    "does-not-overfit",
    partial(sentiment, "roberta"),
    "Two annotators never agreed, and both were asked: every text stands in the data twice, once with each label.",
    "One label a text: let a third one decide.",
)
def contradicting_annotators(setup):
    batch = setup.batch
    twice = {
        "ids": np.tile(batch.ids, 2),
        "token_types": np.tile(batch.token_types, 2),
        "positions": np.tile(batch.positions, 2),
        "offsets": np.append(batch.offsets, batch.tokens + batch.offsets[1:]),
        "labels": np.append(batch.labels, 1 - batch.labels),
    }
    yield setup._replace(batch=replace(batch, **twice))


@planted(
    "does-not-overfit",
    partial(sentiment, "word-vectors"),
    "The tokenizer is another model's: every word is unknown, so that all texts look alike.",
    "Load tokenizer and weights from one directory.",
)
def all_words_unknown(setup):
    yield setup._replace(batch=replace(setup.batch, ids=np.full_like(setup.batch.ids, 1)))


@planted(
    "does-not-overfit",
    partial(writing, "gpt2"),
    "Logits are cosines, which stay between -1 and 1: softmax of these can never be sure.",
    "Divide cosines by a small temperature, 0.05 or so; or take plain logits.",
)
def cosines_without_a_temperature(setup):
    def cosines(batch):
        return unit_rows(setup.model.body(batch)) @ unit_rows(setup.model.lm_head.weight).T

    with replaced(setup.model, plain_answer=cosines):
        yield setup


def unit_rows(x):
    """Each row divided by its length."""
    return x * (x * x).sum(axis=1, keepdims=True) ** -0.5


PLANTS = [
    over_the_texts, over_the_sentences, over_two_halves,
    scaled_up_for_half_precision, a_sum_over_tokens, a_sum_over_texts,
    log_p_of_labels, the_probability_itself, a_score_to_be_maximised,
    a_loud_head, the_bias_of_another_task, a_temperature_in_training,
    contradicting_annotators, all_words_unknown, cosines_without_a_temperature,
]  # fmt: skip
