"""Bugs of training and evaluation mode, of what is frozen, and of LoRA."""

from functools import partial

import numpy as np

from bug_zoo.plant import planted, replaced
from bug_zoo.setups import (
    LORA,
    LORA_OF_GPT2,
    LORA_OF_LLAMA,
    RATE,
    answering,
    instructing,
    sentiment,
    several_labels,
    tagging,
    writing,
)
from minift import ops, random
from minift.methods.lora import lora_layers
from minift.nn import Dropout
from minift.optim import AdamW, decay_groups

# ---- dropout-in-evaluation, dropout-off-in-training ----------------------------------------------


@planted(
    "dropout-in-evaluation",
    partial(sentiment, "bert"),
    "The head calls dropout as a function, which does not know in which mode the model is.",
    "model.dropout(x): a module that asks self.training.",
)
def a_function_without_a_mode(setup):
    def forward(x):
        return ops.dropout(x, 0.1, random.default_generator.next_key())

    with replaced(setup.model.dropout, forward=forward):
        yield setup


@planted(
    "dropout-in-evaluation",
    partial(tagging, "distilbert"),
    "A module of this author's has its own train(), which ignores the argument False.",
    "def train(self, mode=True): super().train(mode)",
)
def eval_that_does_nothing(setup):
    right = setup.model.train
    with replaced(setup.model, train=lambda mode=True: right(True)):
        yield setup


@planted(
    "dropout-in-evaluation",
    partial(writing, "llama"),
    "Noise on the embeddings, which helps instruction tuning (NEFTune), stays on in evaluation.",
    "if self.training: x = x + noise",
)
def noise_that_stays(setup):
    body = setup.model.body
    right = body.embed

    def embed(words, batch):
        x = right(words, batch)
        return x + random.default_generator.numpy().uniform(-0.05, 0.05, x.shape)

    with replaced(body, embed=embed):
        yield setup


@planted(
    "dropout-off-in-training",
    partial(sentiment, "bert"),
    "model.eval() was called to measure the beginning, and model.train() never after it.",
    "model.train() at the head of each epoch; or `with evaluating(model):`, which puts the mode back.",
)
def eval_before_training(setup):
    setup.model.eval()
    try:
        yield setup
    finally:
        setup.model.train()


@planted(
    "dropout-off-in-training",
    partial(writing, "gpt2"),
    "Dropout asks for the mode the wrong way round in its first line, and so returns x in training, too.",
    "if not self.training or self.p == 0: return x",
)
def a_dropout_that_drops_nothing(setup):
    with replaced(Dropout, forward=lambda self, x: x):
        yield setup


@planted(
    "dropout-off-in-training",
    partial(several_labels, "roberta"),
    "The body was put into evaluation mode to freeze it, which freezes nothing but its dropout.",
    "body.requires_grad_(False) to freeze; the mode is another matter.",
)
def the_body_in_evaluation(setup):
    setup.model.body.eval()
    try:
        yield setup
    finally:
        setup.model.body.train()


# ---- frozen-head ---------------------------------------------------------------------------------


def frozen(setup, path):
    """The set-up with one module frozen, and an optimizer of the rest."""
    for each in dict(setup.model.named_modules())[path].parameters():
        each.requires_grad = False
    return setup._replace(optimizer=AdamW(decay_groups(setup.model), lr=RATE))


@planted(
    "frozen-head",
    partial(sentiment, "bert"),
    "The model was frozen and its body set free again; the new head stayed frozen, random as it is.",
    "Freeze model.body, not model.",
)
def the_classifier(setup):
    try:
        yield frozen(setup, "classifier")
    finally:
        setup.model.classifier.requires_grad_(True)


@planted(
    "frozen-head",
    partial(sentiment, "qwen2", **LORA),
    "All but lora_A and lora_B was frozen by name, the new head too.",
    "Train the head beside LoRA (and save it with LoRA).",
)
def the_head_beside_lora(setup):
    try:
        yield frozen(setup, "score")
    finally:
        setup.model.score.requires_grad_(True)


@planted(
    "frozen-head",
    partial(answering, "distilbert"),
    "What is to be trained was chosen by `layer` in its name, which qa_outputs does not have.",
    "What the checkpoint does not have is always to be trained.",
)
def the_scores_of_answers(setup):
    try:
        yield frozen(setup, "qa_outputs")
    finally:
        setup.model.qa_outputs.requires_grad_(True)


# ---- lora-not-zero-at-start ----------------------------------------------------------------------


def lora_b(model):
    """The first adapted layer's B."""
    return next(iter(lora_layers(model).values())).lora_B.weight


@planted(
    "lora-not-zero-at-start",
    partial(instructing, "llama", **LORA_OF_LLAMA),
    "Both of LoRA's matrices are random, so training begins beside the pre-trained model and not at it.",
    "A random, B at 0: then s B A = 0.",
)
def both_random(setup):
    weight = lora_b(setup.model)
    drawn = np.random.default_rng(0).normal(0, 0.1, weight.shape).astype(np.float32)
    with replaced(weight, data=drawn):
        yield setup


@planted(
    "lora-not-zero-at-start",
    partial(sentiment, "bert", **LORA),
    "A mean of two runs was loaded as the beginning: its B is small, but not 0.",
    "Begin at B = 0, or say that training goes on from another run.",
)
def small_is_not_zero(setup):
    weight = lora_b(setup.model)
    with replaced(weight, data=np.full_like(weight.data, 1e-2)):
        yield setup


@planted(
    "lora-not-zero-at-start",
    partial(writing, "gpt2", **LORA_OF_GPT2),
    "A and B began as the largest directions of W, as in PiSSA, but W was not made smaller by their product.",
    "W - s B A, if B and A begin as a part of W.",
)
def a_part_of_the_weight_twice(setup):
    layer = next(iter(lora_layers(setup.model).values()))
    left, sizes, right = np.linalg.svd(layer.weight.data.T, full_matrices=False)  # (out, in)
    rank = len(layer.lora_A.weight)
    a, b = right[:rank], left[:, :rank] * sizes[:rank] / layer.scale
    with replaced(layer.lora_A.weight, data=a.copy()), replaced(layer.lora_B.weight, data=b.copy()):
        yield setup


PLANTS = [
    a_function_without_a_mode, eval_that_does_nothing, noise_that_stays,
    eval_before_training, a_dropout_that_drops_nothing, the_body_in_evaluation,
    the_classifier, the_head_beside_lora, the_scores_of_answers,
    both_random, small_is_not_zero, a_part_of_the_weight_twice,
]  # fmt: skip
