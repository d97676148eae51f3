"""How well a model does on labelled data."""

import time
from typing import Any

from minift.data import warn_of_truncated
from minift.nn import evaluating
from minift.tasks.task_model import Examples, TaskModel


def evaluate(model: TaskModel, examples: Examples, batch_size: int = 32) -> dict[str, float]:
    """The task's metrics, the first one first, and "loss", "examples" and "seconds", with dropout off.

    A warning says how many texts were longer than the maximum.

    Raises InputError for a label that the model does not have, and for a list in the place of a file's examples.
    """
    return examine(model, examples, batch_size)[0]


def examine(model: TaskModel, examples: Examples, batch_size: int) -> tuple[dict[str, float], list[Any]]:
    """What `evaluate` says, and the prediction for each example."""
    started = time.perf_counter()
    predictions = []
    loss_sum = 0.0
    targets = truncated = 0
    with evaluating(model):
        for batch in model.batches(examples, batch_size):
            output = model(batch)
            # Weighed by what each mean is over: a mean of means would weigh all batches alike.
            loss_sum += model.loss(output, batch).item() * batch.targets
            predictions += model.decode(output.numpy(), batch)
            targets += batch.targets
            truncated += batch.truncated
    warn_of_truncated(truncated, len(examples), model.tokenizer.max_length)
    metrics = {
        **model.metrics(predictions, examples),
        "loss": loss_sum / max(targets, 1),
        "examples": len(examples),
        "seconds": round(time.perf_counter() - started, 3),
    }
    return metrics, predictions
