"""How well a model does on labelled data."""

import time

import numpy as np

from minift.data import Dataset, batches, warn_of_truncated
from minift.heads import TextClassification
from minift.losses import cross_entropy
from minift.metrics import accuracy
from minift.nn import evaluating


def evaluate(model: TextClassification, dataset: Dataset, batch_size: int = 32) -> dict[str, float]:
    """{"accuracy", "loss", "examples", "seconds"} over the whole data set, with dropout off.

    A warning says how many texts were longer than the maximum.

    Raises InputError for a label that the model does not have.
    """
    started = time.perf_counter()
    expected = dataset.label_ids(model.labels)
    predicted = []
    loss_sum = 0.0
    truncated = 0
    with evaluating(model):
        for batch in batches(dataset, model.tokenizer, batch_size, labels=expected):
            logits = model(batch)
            loss_sum += cross_entropy(logits, batch.labels).item() * len(batch)
            predicted.append(logits.numpy().argmax(axis=1))
            truncated += batch.truncated
    warn_of_truncated(truncated, len(dataset), model.tokenizer.max_length)
    return {
        "accuracy": accuracy(np.concatenate(predicted), expected),
        "loss": loss_sum / len(dataset),
        "examples": len(dataset),
        "seconds": round(time.perf_counter() - started, 3),
    }
