"""LoRA: low-rank adaptation (Hu et al. 2021).

The weights that a task asks to change, change in few directions. So W stays frozen, and beside it two small
matrices are trained whose product has rank r:

    y = x W^T + s (x A^T) B^T        A (r, in), B (out, r), s = alpha / r         (section 4.1)

A is random and B is 0 at first, so that training begins at the pre-trained model: delta W = s B A = 0, the gradient of
A is 0 in the first step and that of B is not. Afterwards W + s B A is one matrix again (`merge`), and the model is as
fast as before.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from minift_kernels import matmul as matmul_kernels

from minift.errors import InputError
from minift.methods.method import freeze_body, parts_of_layers, replace_module, targeted
from minift.methods.peft import PeftMethod
from minift.models.gpt2 import Conv1D
from minift.nn import Dropout, Linear, Parameter
from minift.tasks.task_model import TaskModel
from minift.tensor import Tensor

TARGETS = ("query", "value")
"""The parts of a layer that are adapted where nothing else is asked for (section 7.1). GPT-2 makes queries, keys and
values in one layer, which is then adapted as a whole, as in PEFT."""


class LoRALinear(Linear):
    """A frozen linear layer and the two matrices beside it; the paths of its own weights stay what they were."""

    def __init__(self, base: Linear, rank: int, scale: float, dropout: float):
        self.transposed = isinstance(base, Conv1D)
        outputs, inputs = reversed(base.weight.shape) if self.transposed else base.weight.shape
        self.weight, self.bias = base.weight, base.bias
        self.base_forward = base.forward  # which reads these same two
        self.dropout = Dropout(dropout)
        self.lora_A = Linear(inputs, rank, bias=False)
        self.lora_B = Linear(rank, outputs, bias=False)
        self.lora_B.weight.data = np.zeros_like(self.lora_B.weight.data)
        self.scale = scale
        self.merged = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_forward(x)  # (T, out)
        if self.merged:
            return y
        return y + self.lora_B(self.lora_A(self.dropout(x))) * self.scale

    @property
    def delta(self) -> np.ndarray:
        """delta W = s B A, in W's shape: (out, in), or (in, out) in GPT-2."""
        delta = self.scale * matmul_kernels.forward(self.lora_B.weight.data, self.lora_A.weight.data)
        return delta.T if self.transposed else delta

    def merge(self) -> None:
        """W becomes W + delta W."""
        if not self.merged:
            self.weight.data, self.merged = self.weight.data + self.delta, True

    def unmerge(self) -> None:
        """W becomes what it was, but for rounding."""
        if self.merged:
            self.weight.data, self.merged = self.weight.data - self.delta, False


@dataclass(frozen=True)
class LoRA(PeftMethod):
    """Two small matrices beside each targeted linear layer, and the head."""

    name = "lora"
    peft_type = "LORA"
    unsupported = ("use_dora", "lora_bias", "alpha_pattern", "rank_pattern", "layer_replication")

    rank: int = 8
    """r; how many directions the change of a weight may have."""
    alpha: float = 16.0
    """The change is scaled by alpha / r, so that the rate need not be tuned anew for another r."""
    dropout: float = 0.0
    """The dropout of what goes into A."""
    targets: tuple[str, ...] = ()
    """The ends of the paths of the layers to adapt, such as query; queries and values if not given."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead, which keeps large ranks learning (Kalajdzievski 2023)."""

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def apply(self, model: TaskModel) -> None:
        if self.rank < 1:
            raise InputError(f"method lora: rank is {self.rank}, expected 1 or more")
        layers = targeted(model, self.targets or parts_of_layers(model, TARGETS, self.name), self.name)
        freeze_body(model)
        for path, layer in layers.items():
            replace_module(model, path, LoRALinear(layer, self.rank, self.scale, self.dropout))

    def inserted(self, model: TaskModel) -> dict[str, Parameter]:
        return {name: each for name, each in model.named_parameters() if ".lora_" in name}

    def merge(self, model: TaskModel) -> None:
        """Add each change to its weight: the model then computes the same in the time of the plain one."""
        for layer in lora_layers(model).values():
            layer.merge()

    def unmerge(self, model: TaskModel) -> None:
        """Subtract them again."""
        for layer in lora_layers(model).values():
            layer.unmerge()

    def unload(self, model: TaskModel) -> None:
        self.merge(model)
        for path, layer in lora_layers(model).items():
            replace_module(model, path, layer.base_forward.__self__)
        model.method = None

    def save(self, model: TaskModel, directory: Path) -> None:
        if any(layer.merged for layer in lora_layers(model).values()):
            raise InputError(
                f"{directory}: the LoRA layers are merged; unmerge them before saving, or unload"
            )
        super().save(model, directory)

    def peft_config(self, model: TaskModel) -> dict[str, Any]:
        return {
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "use_rslora": self.rslora,
            "target_modules": list(lora_layers(model)),
            "bias": "none",
            "fan_in_fan_out": any(layer.transposed for layer in lora_layers(model).values()),
        }

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Self:
        # target_modules may be a pattern, or limited to some layers; the keys say what came of it.
        targets = [key.removesuffix(".lora_A.weight") for key in shapes if key.endswith(".lora_A.weight")]
        return cls(
            rank=int(config.get("r", 8)),
            alpha=float(config.get("lora_alpha", 8)),
            dropout=float(config.get("lora_dropout", 0.0)),
            targets=tuple(target.removeprefix("base_model.model.") for target in targets),
            rslora=bool(config.get("use_rslora", False)),
        )


def lora_layers(model: TaskModel) -> dict[str, LoRALinear]:
    """The adapted layers by their paths."""
    return {path: each for path, each in model.named_modules() if isinstance(each, LoRALinear)}
