"""Training only the head: the pre-trained layers give fixed features (Peters et al. 2019, feature extraction).

The head is what stands above the layers: the pooler or the last norm, where the body has one, and the task's own
modules.
"""

from dataclasses import dataclass
from pathlib import Path

from minift.methods import part
from minift.methods.method import Method
from minift.tasks.task_model import TaskModel


@dataclass(frozen=True)
class Head(Method):
    """What is above the layers; the backward pass ends there."""

    name = "head"

    def apply(self, model: TaskModel) -> None:
        for module in [*model.body.foundation, *model.body.layers]:
            module.requires_grad_(False)

    def save(self, model: TaskModel, directory: Path) -> None:
        part.save(self, model, directory)
