"""When a model does not learn: invariants that hold for every right fine-tuning, and the name of what breaks them.

    for finding in minift.doctor(model, batch, optimizer):
        print(finding)

Each check is a short function that explains its invariant and yields findings. They stand in one list, the exact ones
first; a check is left out where an earlier finding explains all that it would find.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from minift.data import Batch
from minift.diagnosis import dealt, formulas, gradients, labels, learning, loss, parameters, steps, texts
from minift.diagnosis.case import Case
from minift.diagnosis.finding import Finding
from minift.diagnosis.untouched import move_to_cpu, untouched
from minift.errors import InputError
from minift.optim import AdamW
from minift.tasks.task_model import TaskModel


class Check(NamedTuple):
    """A check, and the findings beside which it has nothing to say."""

    run: Callable[[Case], Iterator[Finding]]
    unless: tuple[str, ...] = ()


NO_LOSS = ("label-out-of-range", "all-labels-ignored")
"""With these there is no loss, and nothing can be said of gradients and steps."""
NO_RATE = ("impossible-rate",)
"""With this no step can be told from another."""
CHANCE = ("dropout-in-evaluation",)
FORWARD = (
    "attention-across-texts", "batch-dependent", "future-leak", "wrong-positions", "transposed-weight",
    "wrong-normalisation", "wrong-softmax-axis", "unscaled-attention", "wrong-attention", "wrong-linear",
)  # fmt: skip
LOSS = (
    "loss-across-texts", "labels-compete", "softmax-twice", "class-ignored", "wrong-sign", "loss-not-mean",
    "mean-of-means", "shifted-labels", "wrong-loss",
)  # fmt: skip
MOVES = (
    "frozen-head", "not-in-optimizer", "foreign-parameters", "no-gradient", "wrong-gradient", "does-not-move",
    "wrong-update", "missing-bias-correction",
)  # fmt: skip

CHECKS = [
    Check(labels.labels_in_range),
    Check(labels.some_labels_count),
    Check(labels.next_token_labels, NO_LOSS),
    Check(labels.prompt_without_labels, NO_LOSS),
    Check(labels.special_tokens_have_no_label),
    Check(labels.some_tokens_are_masked),
    Check(parameters.head_is_trained),
    Check(parameters.parameters_are_listed, NO_LOSS),
    Check(parameters.optimizer_holds_what_is_trained),
    Check(parameters.norms_and_biases_are_not_decayed),
    Check(parameters.words_are_tied),
    Check(parameters.weights_are_as_loaded),
    Check(parameters.lora_begins_at_zero),
    Check(parameters.lora_can_move),
    Check(parameters.model_is_in_training),
    Check(parameters.frozen_have_no_gradient),
    Check(formulas.dropouts),
    Check(texts.evaluation_is_deterministic, (*NO_LOSS, *CHANCE)),
    Check(texts.positions),
    Check(formulas.linear_layers, ("transposed-weight",)),
    Check(formulas.merged_is_unmerged, (*CHANCE, "transposed-weight", "wrong-linear")),
    Check(formulas.norms, CHANCE),
    Check(formulas.attention, CHANCE),
    Check(texts.future_is_hidden, (*CHANCE, "future-leak", "attention-across-texts", "wrong-softmax-axis")),
    Check(
        texts.texts_are_independent,
        (*CHANCE, "wrong-positions", "attention-across-texts", "wrong-normalisation", "wrong-softmax-axis"),
    ),
    Check(loss.outputs_are_logits, NO_LOSS),
    Check(loss.each_label_is_its_own, NO_LOSS),
    Check(loss.loss_is_the_mean, (*NO_LOSS, "loss-across-texts", "labels-compete")),
    Check(dealt.labels_belong_to_texts, (*NO_LOSS, *FORWARD, *LOSS, *CHANCE)),
    Check(gradients.gradients_arrive, NO_LOSS),
    Check(gradients.backwards_are_right, NO_LOSS),
    Check(gradients.history_is_whole, (*NO_LOSS, *FORWARD, "no-gradient", "wrong-gradient")),
    Check(steps.gradients_are_fresh, NO_LOSS),
    Check(steps.rates_are_numbers),
    Check(steps.step_is_adamw, NO_RATE),
    Check(steps.what_moves, (*NO_LOSS, *NO_RATE, "frozen-moves")),
    Check(learning.rate_is_sensible, (*NO_LOSS, *NO_RATE, *MOVES, *LOSS)),
    Check(learning.loss_at_the_start, (*NO_LOSS, *LOSS, *FORWARD, *CHANCE)),
    Check(learning.learns_by_heart, (*NO_LOSS, *MOVES, *LOSS, *FORWARD, "rate-too-high", "labels-shuffled")),
]


def doctor(model: TaskModel, batch: Batch, optimizer: AdamW) -> list[Finding]:
    """What is wrong with a fine-tuning, the most exact first; nothing where all invariants hold.

    `batch` has labels, as the training loop's. All three are left as they were, to the bit, random numbers included;
    what is on a GPU is examined in NumPy. Raises InputError for a batch without labels.
    """
    if batch.labels is None:
        raise InputError("the doctor needs a batch with labels, such as model.batches(examples, 32) gives")
    found: list[Finding] = []
    with untouched(model, batch, optimizer), np.errstate(all="ignore"):
        move_to_cpu(model, optimizer)
        case = Case(model, batch, optimizer)
        for check in CHECKS:
            if not any(finding.name in check.unless for finding in found):
                found += check.run(case)
    return found
