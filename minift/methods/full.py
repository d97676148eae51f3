"""Full fine-tuning: every weight is trained (Devlin et al. 2019, section 4)."""

from dataclasses import dataclass

from minift.methods.method import Method
from minift.tasks.task_model import TaskModel


@dataclass(frozen=True)
class Full(Method):
    """All weights, at one rate."""

    name = "full"

    def apply(self, model: TaskModel) -> None:
        model.requires_grad_(True)
