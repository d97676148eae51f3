"""The tasks: one file each, and one line in this table."""

from minift.tasks.task_model import TaskModel
from minift.tasks.text_classification import TextClassification

TASKS: dict[str, type[TaskModel]] = {
    "text-classification": TextClassification,
}
"""Every task by the name that `--task` takes."""
