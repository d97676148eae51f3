"""Bugs of the training loop: what the optimizer holds, what it does, and how often its gradients are forgotten."""

from contextlib import ExitStack
from functools import partial

import numpy as np

from bug_zoo.plant import planted, replaced, updating
from bug_zoo.setups import (
    LORA,
    LORA_OF_LLAMA,
    RATE,
    answering,
    instructing,
    regression,
    sentiment,
    tagging,
    writing,
)
from minift.nn import Linear, Parameter
from minift.optim import AdamW, decay_groups, linear_schedule

# ---- not-in-optimizer ----------------------------------------------------------------------------


@planted(
    "not-in-optimizer",
    partial(sentiment, "bert"),
    "The optimizer was made of the pre-trained body, and the head was added afterwards: it stays random for ever.",
    "Make the optimizer last: AdamW(decay_groups(model)).",
)
def optimizer_of_the_body(setup):
    yield setup._replace(optimizer=AdamW(decay_groups(setup.model.body), lr=RATE))


@planted(
    "not-in-optimizer",
    partial(writing, "gpt2"),
    "The parameters were sorted into a group with weight decay and one without, and only the first was handed on.",
    "Hand on both groups; decay_groups(model) gives them.",
)
def the_group_without_decay_forgotten(setup):
    yield setup._replace(optimizer=AdamW(decay_groups(setup.model)[:1], lr=RATE))


@planted(
    "not-in-optimizer",
    partial(tagging, "roberta"),
    "The optimizer took what required a gradient while a layer was still frozen; then the layer was set free.",
    "Set free all that will be trained before the optimizer is made (its rate may be 0 until its time comes).",
)
def layer_unfrozen_too_late(setup):
    layer = setup.model.body.layers[0].requires_grad_(False)
    optimizer = AdamW(decay_groups(setup.model), lr=RATE)
    layer.requires_grad_(True)
    yield setup._replace(optimizer=optimizer)


# ---- foreign-parameters --------------------------------------------------------------------------


@planted(
    "foreign-parameters",
    partial(sentiment, "distilbert"),
    "The model was loaded once more after the optimizer was made: it moves the parameters of a model that nobody uses.",
    "Make the optimizer of the very model that is trained.",
)
def optimizer_of_another_copy(setup):
    groups = decay_groups(setup.model)
    copies = [
        {**group, "params": [Parameter(each.data.copy()) for each in group["params"]]} for group in groups
    ]
    yield setup._replace(optimizer=AdamW(copies, lr=RATE))


@planted(
    "foreign-parameters",
    partial(sentiment, "gpt2"),
    "Between two runs the head was made anew, and the optimizer of the first run, which holds the old head, went on.",
    "After a module is replaced, make a new optimizer.",
)
def head_made_anew(setup):
    head = Linear(24, 2, bias=False)
    head.weight.data = setup.model.score.weight.data.copy()
    with replaced(setup.model, score=head):
        yield setup


@planted(
    "foreign-parameters",
    partial(sentiment, "word-vectors"),
    "New words were added to the vocabulary after the optimizer was made: it holds the table as it was before.",
    "Grow the table first, then make the optimizer.",
)
def table_that_was_grown(setup):
    words = setup.model.body.vocabulary
    grown = np.concatenate([words.weight.data, np.zeros((2, 24), np.float32)])
    with replaced(words, weight=Parameter(grown)):
        yield setup


# ---- frozen-moves --------------------------------------------------------------------------------


@planted(
    "frozen-moves",
    partial(sentiment, "bert", method="frozen", layers=1),
    "The optimizer decays every weight that it was given, the frozen ones too, which have no gradient to hold them.",
    "Leave a parameter without a gradient as it is, decay included; and give the optimizer only what is trained.",
)
def decay_of_frozen_weights(setup):
    optimizer = AdamW(setup.model.parameters(), lr=RATE)
    step = optimizer.step

    def decay_and_step(max_grad_norm=None):
        for parameter in optimizer.parameters:
            if parameter.grad is None:
                parameter.data -= RATE * 0.01 * parameter.data
        return step(max_grad_norm)

    optimizer.step = decay_and_step
    yield setup._replace(optimizer=optimizer)


@planted(
    "frozen-moves",
    partial(instructing, "llama", **LORA_OF_LLAMA),
    "After each step LoRA's change was added to the frozen weight, to evaluate, and never taken away again.",
    "Merge into a copy, or unmerge before training goes on.",
)
def merged_and_not_unmerged(setup):
    layer = setup.model.body.layers[0].self_attn.q_proj
    step = setup.optimizer.step

    def step_and_merge(max_grad_norm=None):
        norm = step(max_grad_norm)
        layer.weight.data = layer.weight.data + layer.delta
        return norm

    with replaced(setup.optimizer, step=step_and_merge), replaced(layer.weight, data=layer.weight.data):
        yield setup


@planted(
    "frozen-moves",
    partial(sentiment, "qwen2", method="prompt", tokens=4),
    "The soft prompt began as rows of the word embeddings without copying them: training it rewrites the vocabulary.",
    "Copy: Parameter(words.weight.data[rows].copy()).",
)
def prompt_that_shares_its_words(setup):
    prompt = setup.model.body.soft_prompt.prompt_embeddings
    with replaced(prompt, data=setup.model.body.vocabulary.weight.data[10:14]):
        yield setup


# ---- does-not-move -------------------------------------------------------------------------------


@planted(
    "does-not-move",
    partial(sentiment, "distilbert", **LORA),
    "Both of LoRA's matrices begin at 0, so the gradient of each, which is a product with the other, is 0 for ever.",
    "A random, B at 0.",
)
def lora_a_zero_too(setup):
    with ExitStack() as stack:
        for name, each in setup.model.named_parameters():
            if "lora_A" in name:
                stack.enter_context(replaced(each, data=np.zeros_like(each.data)))
        yield setup


@planted(
    "does-not-move",
    partial(sentiment, "bert"),
    "Each layer's rate was to be half of that above it, but 1 // 2 is 0: all but the uppermost have the rate 0.",
    "RATE * 0.5 ** depth.",
)
def rates_by_integer_division(setup):
    parts = list(setup.model.parts().values())
    groups = [
        {"params": list(part.values()), "lr": RATE * (1 // 2) ** depth, "weight_decay": 0.0}
        for depth, part in enumerate(reversed(parts))
    ]
    yield setup._replace(optimizer=AdamW(groups, lr=RATE))


@planted(
    "does-not-move",
    partial(writing, "gpt2"),
    "In the optimizer's step `return` stands inside the loop over the groups, so only the first one is updated.",
    "Return after the loop over the groups.",
)
def only_the_first_group(setup):
    optimizer, step = setup.optimizer, setup.optimizer.step

    def step_of_one_group(max_grad_norm=None):
        with replaced(optimizer, param_groups=optimizer.param_groups[:1]):
            return step(max_grad_norm)

    with replaced(optimizer, step=step_of_one_group):
        yield setup


# ---- gradients-not-zeroed ------------------------------------------------------------------------


@planted(
    "gradients-not-zeroed",
    partial(sentiment, "bert"),
    "zero_grad is a method of this author's optimizer, but it does nothing: every gradient is the sum of all before.",
    "for parameter in self.parameters: parameter.grad = None",
)
def zero_grad_does_nothing(setup):
    with replaced(setup.optimizer, zero_grad=lambda: None):
        yield setup


@planted(
    "gradients-not-zeroed",
    partial(regression, "distilbert"),
    "One pass was run to see how long it takes; its gradients are still there when training begins.",
    "Call zero_grad() before the first step, too.",
)
def left_over_from_a_trial(setup):
    setup.model.loss(setup.model(setup.batch), setup.batch).backward()
    try:
        yield setup
    finally:
        setup.model.zero_grad()


@planted(
    "gradients-not-zeroed",
    partial(writing, "llama"),
    "zero_grad goes through the first group alone; the gradients of the second, the norms, add up.",
    "Go through all groups.",
)
def zero_grad_of_one_group(setup):
    def zero_grad():
        for parameter in setup.optimizer.param_groups[0]["params"]:
            parameter.grad = None

    with replaced(setup.optimizer, zero_grad=zero_grad):
        yield setup


# ---- rate-too-high, rate-too-low -----------------------------------------------------------------


def at_rate(setup, rate):
    """The set-up with an optimizer of this rate."""
    return setup._replace(optimizer=AdamW(decay_groups(setup.model), lr=rate))


@planted(
    "rate-too-high",
    partial(sentiment, "bert"),
    "The rate is 1e-1, fit for a linear model: the first steps throw away what pre-training has learned.",
    "1e-5 to 1e-4 for a pre-trained transformer (1e-3 for these tiny ones).",
)
def a_tenth(setup):
    yield at_rate(setup, 1e-1)


@planted(
    "rate-too-high",
    partial(writing, "gpt2"),
    "5e-5 was typed as 5e5.",
    "5e-5.",
)
def a_minus_forgotten(setup):
    yield at_rate(setup, 5e5)


@planted(
    "rate-too-high",
    partial(sentiment, "qwen2", **LORA),
    "LoRA takes a larger rate than full fine-tuning, but this one, 1, is SGD's.",
    "1e-4 to 1e-3.",
)
def a_rate_for_sgd(setup):
    yield at_rate(setup, 1.0)


@planted(
    "rate-too-low",
    partial(sentiment, "bert"),
    "The rate is 1e-9: float32 has seven digits, and most weights plus such an update are the same weights.",
    "1e-5 to 1e-4 for a pre-trained transformer (1e-3 for these tiny ones).",
)
def a_billionth(setup):
    yield at_rate(setup, 1e-9)


@planted(
    "rate-too-low",
    partial(answering, "distilbert"),
    "The warm-up was counted in tokens instead of steps: the rate will be reached in years.",
    "linear_schedule(optimizer, total_steps, warmup_steps), both in steps.",
)
def warm_up_without_end(setup):
    planted_setup = at_rate(setup, RATE)
    linear_schedule(planted_setup.optimizer, 2_000_000_000, warmup_steps=1_000_000_000).step()
    yield planted_setup


@planted(
    "rate-too-low",
    partial(writing, "llama"),
    "eps was typed as 1e8: every update is divided by a hundred million.",
    "eps=1e-8.",
)
def a_huge_eps(setup):
    yield setup._replace(optimizer=AdamW(decay_groups(setup.model), lr=RATE, eps=1e8))


# ---- missing-bias-correction, wrong-update -------------------------------------------------------


@planted(
    "missing-bias-correction",
    partial(sentiment, "bert"),
    "Neither mean is divided by 1 - b^t, so the first steps are three times too long.",
    "lr * (m / (1 - b1**t)) / (sqrt(v / (1 - b2**t)) + eps)",
)
def of_both_means(setup):
    with updating(lambda w, m, v, t, lr, b1, b2, eps: lr * m / (np.sqrt(v) + eps)):
        yield setup


@planted(
    "missing-bias-correction",
    partial(writing, "gpt2"),
    "Only m is corrected, and v, which begins far too small, is not: the first step is thirty times too long.",
    "lr * (m / (1 - b1**t)) / (sqrt(v / (1 - b2**t)) + eps)",
)
def of_the_squares(setup):
    with updating(lambda w, m, v, t, lr, b1, b2, eps: lr * (m / (1 - b1**t)) / (np.sqrt(v) + eps)):
        yield setup


@planted(
    "missing-bias-correction",
    partial(instructing, "qwen2", **LORA_OF_LLAMA),
    "Only v is corrected, and m is not: the first step is a tenth of what it should be.",
    "lr * (m / (1 - b1**t)) / (sqrt(v / (1 - b2**t)) + eps)",
)
def of_the_mean(setup):
    with updating(lambda w, m, v, t, lr, b1, b2, eps: lr * m / (np.sqrt(v / (1 - b2**t)) + eps)):
        yield setup


def adam(w, m, v, t, lr, b1, b2, eps):
    """The right update."""
    return lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)


@planted(
    "wrong-update",
    partial(sentiment, "roberta"),
    "Weight decay was added to the gradient, as in Adam with an L2 penalty, and so is divided by sqrt(v) with it.",
    "Decoupled, as in AdamW: w -= lr * weight_decay * w, beside the gradient's update.",
)
def coupled_decay(setup):
    with updating(adam, coupled_decay=True):
        yield setup


@planted(
    "wrong-update",
    partial(regression, "bert"),
    "The update is added and not subtracted: up the hill.",
    "w -= update",
)
def uphill(setup):
    with updating(lambda *args: -adam(*args)):
        yield setup


@planted(
    "wrong-update",
    partial(writing, "llama"),
    "eps stands inside the root, where its root, 1e-4, outweighs small gradients.",
    "sqrt(v / (1 - b2**t)) + eps",
)
def eps_inside_the_root(setup):
    with updating(
        lambda w, m, v, t, lr, b1, b2, eps: lr * (m / (1 - b1**t)) / np.sqrt(v / (1 - b2**t) + eps)
    ):
        yield setup


# ---- decayed-norms -------------------------------------------------------------------------------


def groups_by_name(model, exempt):
    """Two groups, as many scripts make them: without decay what has one of these words in its name."""
    named = dict(model.named_parameters())
    spared = [name for name in named if any(word in name for word in exempt)]
    groups = [
        {"params": [each for name, each in named.items() if name not in spared], "weight_decay": 0.01},
        {"params": [named[name] for name in spared], "weight_decay": 0.0},
    ]
    return AdamW([group for group in groups if group["params"]], lr=RATE)


@planted(
    "decayed-norms",
    partial(sentiment, "bert"),
    "All parameters are in one group with weight decay, which pulls the norms' weights from 1 towards 0.",
    "AdamW(decay_groups(model)).",
)
def one_group_for_all(setup):
    yield setup._replace(optimizer=AdamW(setup.model.parameters(), lr=RATE, weight_decay=0.01))


@planted(
    "decayed-norms",
    partial(writing, "gpt2"),
    "What has bias or LayerNorm in its name is spared, as in BERT's scripts; GPT-2 calls its norms ln_1, ln_2, ln_f.",
    "Spare what has one axis: decay_groups(model).",
)
def norms_of_another_name(setup):
    yield setup._replace(optimizer=groups_by_name(setup.model, ("bias", "LayerNorm.weight")))


@planted(
    "decayed-norms",
    partial(sentiment, "distilbert"),
    "The norms are spared by their name, and the biases were forgotten.",
    "Spare what has one axis: decay_groups(model).",
)
def biases(setup):
    yield setup._replace(optimizer=groups_by_name(setup.model, ("_norm", "LayerNorm")))


PLANTS = [
    optimizer_of_the_body, the_group_without_decay_forgotten, layer_unfrozen_too_late,
    optimizer_of_another_copy, head_made_anew, table_that_was_grown,
    decay_of_frozen_weights, merged_and_not_unmerged, prompt_that_shares_its_words,
    lora_a_zero_too, rates_by_integer_division, only_the_first_group,
    zero_grad_does_nothing, left_over_from_a_trial, zero_grad_of_one_group,
    a_tenth, a_minus_forgotten, a_rate_for_sgd,
    a_billionth, warm_up_without_end, a_huge_eps,
    of_both_means, of_the_squares, of_the_mean,
    coupled_decay, uphill, eps_inside_the_root,
    one_group_for_all, norms_of_another_name, biases,
]  # fmt: skip
