"""BitFit: training the biases alone, a thousandth of the weights (Ben Zaken et al. 2022, section 3)."""

from dataclasses import dataclass
from pathlib import Path

from minift.errors import InputError
from minift.methods import part
from minift.methods.method import Method, freeze_body
from minift.tasks.task_model import TaskModel


@dataclass(frozen=True)
class BitFit(Method):
    """Every bias of the body, those of its norms included, and the head."""

    name = "bitfit"

    def apply(self, model: TaskModel) -> None:
        biases = [each for name, each in model.body.named_parameters() if name.endswith("bias")]
        if not biases:
            raise InputError(f"method bitfit: {model.architecture.model_type} has no biases to train")
        freeze_body(model)
        for bias in biases:
            bias.requires_grad = True

    def save(self, model: TaskModel, directory: Path) -> None:
        part.save(self, model, directory)
