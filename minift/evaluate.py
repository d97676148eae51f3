"""How well a model does on labelled data."""

import time

from minift.data import warn_of_truncated
from minift.nn import evaluating
from minift.tasks.task_model import Examples, TaskModel


def evaluate(model: TaskModel, examples: Examples, batch_size: int = 32) -> dict[str, float]:
    """The task's metrics, the first one first, and "loss", "examples" and "seconds", with dropout off.

    A warning says how many texts were longer than the maximum.

    Raises InputError for a label that the model does not have.
    """
    started = time.perf_counter()
    outputs = []
    loss_sum = 0.0
    targets = texts = truncated = 0
    with evaluating(model):
        for batch in model.batches(examples, batch_size):
            output = model(batch)
            loss_sum += (
                model.loss(output, batch).item() * batch.targets
            )  # a mean of means would weigh them alike
            outputs.append(output.numpy())
            targets += batch.targets
            texts += len(batch)
            truncated += batch.truncated
    warn_of_truncated(truncated, texts, model.tokenizer.max_length)
    return {
        **model.metrics(outputs, examples),
        "loss": loss_sum / targets,
        "examples": len(examples),
        "seconds": round(time.perf_counter() - started, 3),
    }
