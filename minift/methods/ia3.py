"""IA3: infused adapter by inhibiting and amplifying inner activations (Liu et al. 2022, section 3.3).

Three learned vectors in each layer rescale what flows there, element by element: the keys, the values, and what is
between the two halves of the feed-forward network. All are 1 at first, so training begins at the pre-trained model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from minift.methods.method import freeze_body, parts_of_layers, replace_module, targeted
from minift.methods.peft import PeftMethod
from minift.models.gpt2 import Conv1D
from minift.nn import Linear, Parameter
from minift.tasks.task_model import TaskModel
from minift.tensor import Tensor

OUTPUTS = ("key", "value")
"""The parts of a layer whose outputs are rescaled. GPT-2 makes them in one layer with the queries, which then are
rescaled, too, as in PEFT."""
INPUTS = ("feed_forward_output",)
"""The part whose input is: the second half of the feed-forward network."""


class IA3Linear(Linear):
    """A frozen linear layer and one vector that rescales its output, or its input."""

    def __init__(self, base: Linear, feed_forward: bool):
        self.transposed = isinstance(base, Conv1D)
        outputs, inputs = reversed(base.weight.shape) if self.transposed else base.weight.shape
        self.weight, self.bias = base.weight, base.bias
        self.base_forward = base.forward  # which reads these same two
        self.feed_forward = feed_forward
        # PEFT's shapes, which say which of the two it is.
        shape = (1, inputs) if feed_forward else (outputs, 1)
        self.ia3_l = Parameter(np.ones(shape, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.ia3_l.astype(x.dtype)
        if self.feed_forward:
            return self.base_forward(x * scale)  # (T, in) times (1, in)
        return self.base_forward(x) * scale.T  # (T, out) times (1, out)

    def merged(self) -> Linear:
        """The linear layer that computes the same."""
        base = self.base_forward.__self__
        scale = self.ia3_l.data.T if self.transposed else self.ia3_l.data
        base.weight = Parameter(self.weight.data * scale)
        if self.bias is not None and not self.feed_forward:
            base.bias = Parameter(self.bias.data * self.ia3_l.data[:, 0])
        return base


@dataclass(frozen=True)
class IA3(PeftMethod):
    """One vector in each targeted linear layer, and the head."""

    name = "ia3"
    peft_type = "IA3"

    targets: tuple[str, ...] = ()
    """The ends of the paths of the layers whose outputs are rescaled; keys and values if not given."""
    feed_forward: tuple[str, ...] = ()
    """The same of the layers whose inputs are; the feed-forward networks' second half if not given."""

    def apply(self, model: TaskModel) -> None:
        nothing_given = not self.targets and not self.feed_forward
        outputs = parts_of_layers(model, OUTPUTS, self.name) if nothing_given else self.targets
        inputs = parts_of_layers(model, INPUTS, self.name) if nothing_given else self.feed_forward
        of_outputs = targeted(model, outputs, self.name)
        of_inputs = targeted(model, inputs, self.name)
        freeze_body(model)
        for path, layer in (of_outputs | of_inputs).items():
            replace_module(model, path, IA3Linear(layer, feed_forward=path in of_inputs))

    def inserted(self, model: TaskModel) -> dict[str, Parameter]:
        return {name: each for name, each in model.named_parameters() if name.endswith(".ia3_l")}

    def unload(self, model: TaskModel) -> None:
        for path, layer in ia3_layers(model).items():
            replace_module(model, path, layer.merged())
        model.method = None

    def peft_config(self, model: TaskModel) -> dict[str, Any]:
        layers = ia3_layers(model)
        return {
            "target_modules": list(layers),
            "feedforward_modules": [path for path, layer in layers.items() if layer.feed_forward],
            "fan_in_fan_out": any(layer.transposed for layer in layers.values()),
            "init_ia3_weights": True,
        }

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Self:
        of_shape = {
            key.removeprefix("base_model.model.").removesuffix(".ia3_l"): shape
            for key, shape in shapes.items()
            if key.endswith(".ia3_l")
        }
        return cls(
            targets=tuple(path for path, shape in of_shape.items() if shape[0] > 1),
            feed_forward=tuple(path for path, shape in of_shape.items() if shape[0] == 1),
        )


def ia3_layers(model: TaskModel) -> dict[str, IA3Linear]:
    """The rescaled layers by their paths."""
    return {path: each for path, each in model.named_modules() if isinstance(each, IA3Linear)}
