"""ULMFiT's way to fine-tune without forgetting (Howard and Ruder 2018, section 3.2 and 3.3).

Discriminative rates: the layer below learns more slowly than the layer above it, at 1 / 2.6 of its rate, since it
holds what is more general. Gradual unfreezing: in the first epoch only what is above the layers is trained, in
the second the last layer as well, and so on down, one more layer an epoch.
"""

from dataclasses import dataclass

from minift.errors import InputError
from minift.methods.method import Method
from minift.nn import Module, Parameter
from minift.optim import decay_groups
from minift.tasks.task_model import TaskModel


@dataclass(frozen=True)
class Ulmfit(Method):
    """All weights, the upper layers first and fastest."""

    name = "ulmfit"

    ratio: float = 2.6
    """How much faster a layer learns than the one below; 1 for the same rate everywhere."""
    gradual: bool = True
    """Whether the layers are unfrozen one an epoch; otherwise all are trained from the start."""

    def apply(self, model: TaskModel) -> None:
        if not self.ratio > 0:
            raise InputError(f"method ulmfit: ratio is {self.ratio}, expected more than 0")
        model.requires_grad_(True)

    def parameter_groups(self, model: TaskModel, learning_rate: float, weight_decay: float) -> list[dict]:
        """rate(layer l - 1) = rate(layer l) / ratio; the highest first."""
        depths = depth_of_parameters(model)
        groups = []
        for depth in sorted(set(depths.values())):
            rate = learning_rate / self.ratio**depth
            for group in decay_groups(model, weight_decay):
                parameters = [each for each in group["params"] if depths[each] == depth]
                if parameters:
                    groups.append({**group, "params": parameters, "lr": rate})
        return groups

    def start_epoch(self, model: TaskModel, epoch: int) -> None:
        if self.gradual:
            for parameter, depth in depth_of_parameters(model).items():
                parameter.requires_grad = depth <= epoch


def depth_of_parameters(model: TaskModel) -> dict[Parameter, int]:
    """How far below the head each parameter lies: 0 above the layers, 1 in the last layer, ... the embeddings last."""
    depths = dict.fromkeys(model.parameters(), 0)
    levels: list[list[Module]] = [[layer] for layer in reversed(model.body.layers)]
    for depth, modules in enumerate([*levels, model.body.foundation], start=1):
        for module in modules:
            depths |= dict.fromkeys(module.parameters(), depth)
    return depths
