"""From a text and its label to the trace of one backward pass: what the stepper and the pages show."""

import numpy as np

from minift.data import Batch
from minift.errors import InputError
from minift.losses import label_indices
from minift.recording import Keep, recording
from minift.tasks import TASKS
from minift.tasks.task_model import TaskModel
from minift.tasks.text_classification import TextClassification
from minift.trace import Trace, trace


def trace_text(model: TaskModel, text: str, label: str, keep: Keep = "arrays") -> tuple[Trace, Batch]:
    """The backward pass of the model's loss on one text, without dropout, and the packed batch of the text.

    `label` is a name of the model's or an index. The gradients are left in the parameters. Raises InputError for a
    model of another task, a text without tokens and a label that the model does not have.
    """
    if not isinstance(model, TextClassification):
        task = next((name for name, each in TASKS.items() if type(model) is each), type(model).__name__)
        raise InputError(
            f"a text with a label is traced through a text-classification model; this one is for {task}"
        )
    batch = model.encode(text)
    special = set(model.encode("").ids.tolist())
    if set(batch.ids.tolist()) <= special:
        raise InputError(f"the text {text!r} has no tokens, so there is nothing to trace")
    index = int(label) if label not in model.labels and label.isdecimal() else label
    batch.labels = label_indices(index, model.labels, len(model.labels))
    model.eval()
    model.zero_grad()
    with recording(keep), np.errstate(all="ignore"):
        loss = model.loss(model(batch), batch)
    return trace(loss, model), batch
