"""How well a model does on labelled data."""

import time

import numpy as np

from minift.data import Dataset, batches
from minift.heads import TextClassification
from minift.history import no_grad
from minift.losses import cross_entropy
from minift.metrics import accuracy


def evaluate(model: TextClassification, dataset: Dataset, batch_size: int = 32) -> dict[str, float]:
    """{"accuracy", "loss", "examples", "seconds"} over the whole data set, with dropout off.

    Raises InputError for a label that the model does not have.
    """
    started = time.perf_counter()
    expected = dataset.label_ids(model.labels)
    predicted = []
    loss_sum = 0.0
    was_training = model.training
    model.eval()
    try:
        with no_grad():
            for batch in batches(dataset, model.tokenizer, batch_size, labels=expected):
                logits = model(batch)
                loss_sum += cross_entropy(logits, batch.labels).item() * len(batch)
                predicted.append(logits.numpy().argmax(axis=1))
    finally:
        model.train(was_training)
    return {
        "accuracy": accuracy(np.concatenate(predicted), expected),
        "loss": loss_sum / len(dataset),
        "examples": len(dataset),
        "seconds": round(time.perf_counter() - started, 3),
    }
