"""Adapters: two small layers with a bottleneck between them, put into every layer of a frozen model.

    adapter(x) = up(f(down(x)))        down (H / r, H), up (H, H / r)

Houlsby et al. 2019 (section 2.1) put one behind the attention and one behind the feed-forward network, each before
the sum with what went in and its norm, f = swish: y = norm(h + adapter(h) + residual). Pfeiffer et al. 2020 (section
3) found one a layer to be enough, behind the feed-forward network and its norm, f = ReLU, and the norm once more:
y = norm(h + adapter(norm(h + residual)) + residual). Weights are small and biases 0 at first, so training begins
near the pre-trained model.

The files are AdapterHub's (library `adapters`): `adapter_config.json` and `adapter.safetensors`, and of the head
`head_config.json` and `model_head.safetensors`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from minift import checkpoint, ops
from minift.errors import InputError
from minift.methods import part
from minift.methods.method import Method, freeze_body, head_parameters, parts_of_layers, replace_module
from minift.models.architecture import initialize
from minift.nn import LayerNorm, Linear, Module, ModuleList, Parameter
from minift.tasks.task_model import TaskModel
from minift.tensor import Tensor

CONFIG, WEIGHTS, HEAD_CONFIG, HEAD_WEIGHTS = checkpoint.FORMATS["AdapterHub"]
NAME = "minift"
"""What the adapter is called in the keys of its weights; AdapterHub wants a name, and any will do."""


class Activation(Module):
    """A place in a list of modules, as the keys count it, for a function without parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Adapter(Module):
    """Down to H / r, the activation, and up again, (T, H) to (T, H)."""

    def __init__(self, size: int, bottleneck: int, activation: Callable[[Tensor], Tensor]):
        self.adapter_down = ModuleList([Linear(size, bottleneck), Activation(activation)])
        self.adapter_up = Linear(bottleneck, size)
        initialize(dict(self.named_parameters()), 0.02)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.adapter_down:
            x = module(x)
        return self.adapter_up(x)


class Adapters(Module):
    """The adapters that stand in one place, by their names: here there is one."""

    def __init__(self, adapter: Adapter):
        setattr(self, NAME, adapter)


class AdaptedNorm(LayerNorm):
    """A frozen norm with an adapter before it, under the norm's own path.

    The adapter itself is a part of the module around the norm, where AdapterHub's keys have it.
    """

    def __init__(self, base: LayerNorm, adapter: Adapter, after_norm: bool):
        self.weight, self.bias, self.eps = base.weight, base.bias, base.eps
        self.adapt = adapter.__call__
        self.after_norm = after_norm

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        seen = super().forward(x, residual) if self.after_norm else x
        return super().forward(x + self.adapt(seen), residual)


@dataclass(frozen=True)
class Bottleneck(Method):
    """What both placements have in common."""

    architecture: ClassVar[dict[str, Any]]
    """The entries of AdapterHub's adapter_config.json that say which placement it is."""
    activation: ClassVar[Callable[[Tensor], Tensor]]
    """f."""

    reduction: int = 16
    """r; how many times narrower than the model the bottleneck is."""

    def apply(self, model: TaskModel) -> None:
        config = model.config
        parts = ["output_norm", *(["attention_norm"] if self.architecture["mh_adapter"] else [])]
        places = parts_of_layers(model, parts, self.name)
        if not 1 <= self.reduction <= config.hidden_size:
            raise InputError(
                f"method {self.name}: reduction is {self.reduction}, expected 1 to {config.hidden_size}"
            )
        freeze_body(model)
        for layer in model.body.layers:
            for place in places:
                adapter = Adapter(
                    config.hidden_size, config.hidden_size // self.reduction, type(self).activation
                )
                around, _, norm = place.rpartition(".")
                parent = dict(layer.named_modules())[around]
                adapted = AdaptedNorm(getattr(parent, norm), adapter, self.architecture["original_ln_before"])
                replace_module(layer, place, adapted)
                parent.adapters = Adapters(adapter)

    def inserted(self, model: TaskModel) -> dict[str, Parameter]:
        return {name: each for name, each in model.named_parameters() if f".adapters.{NAME}." in name}

    def unload(self, model: TaskModel) -> None:
        raise InputError(
            "an adapter cannot be merged: its activation stands between it and the frozen weights"
        )

    def save(self, model: TaskModel, directory: Path) -> None:
        adapters, head = self.inserted(model), head_parameters(model)
        part.check_place(model, directory)
        part.check_complete(model, adapters | head, directory / WEIGHTS)
        model.save_description(directory)
        checkpoint.write_tensors(directory / WEIGHTS, part.tensors(adapters))
        checkpoint.write_tensors(directory / HEAD_WEIGHTS, part.tensors(head))
        about = {
            "hidden_size": model.config.hidden_size,
            "model_class": model.config_json()["architectures"][0],
            "model_name": model.source,
            "model_type": model.architecture.model_type,
            "version": "adapters.1.3.0",
        }
        entries = {**DEFAULTS, **self.architecture, "reduction_factor": self.reduction}
        checkpoint.write_json(directory / CONFIG, {"config": entries, "name": NAME, **about})
        labels = {label: index for index, label in enumerate(model.labels or ())}
        head_entries = {"config": None, "label2id": labels, "name": None, "num_labels": model.outputs}
        checkpoint.write_json(directory / HEAD_CONFIG, {**head_entries, **about})
        checkpoint.remove_other_formats(directory, "AdapterHub")

    @classmethod
    def from_hub(cls, entries: Mapping[str, Any]) -> Self:
        """The method of an adapter_config.json's `config`. Raises InputError for what minift does not have."""
        expected = {**DEFAULTS, **cls.architecture}
        for name, value in entries.items():
            if name in expected and name != "init_weights" and value != expected[name]:
                raise InputError(f"{CONFIG}: {name} is {value!r}, minift's {cls.name} has {expected[name]!r}")
        return cls(reduction=int(entries.get("reduction_factor", 16)))


DEFAULTS: dict[str, Any] = {
    "original_ln_after": True,
    "residual_before_ln": True,
    "adapter_residual_before_ln": False,
    "ln_before": False,
    "ln_after": False,
    "output_adapter": True,
    "cross_adapter": False,
    "inv_adapter": None,
    "is_parallel": False,
    "leave_out": [],
    "dropout": 0.0,
    "scaling": 1.0,
    "use_gating": False,
    "phm_layer": False,
    "init_weights": "bert",
}
"""What AdapterHub's configuration says of all adapters that minift has."""


@dataclass(frozen=True)
class Houlsby(Bottleneck):
    """Two adapters a layer, and the head."""

    name = "houlsby"
    activation = ops.silu
    architecture: ClassVar = {"mh_adapter": True, "original_ln_before": False, "non_linearity": "swish"}


@dataclass(frozen=True)
class Pfeiffer(Bottleneck):
    """One adapter a layer, and the head."""

    name = "pfeiffer"
    activation = ops.relu
    architecture: ClassVar = {"mh_adapter": False, "original_ln_before": True, "non_linearity": "relu"}


def read(description: Mapping[str, Any], directory: Path) -> Bottleneck:
    """The method of a directory that AdapterHub's library or minift wrote. Raises InputError for any other adapter."""
    entries = description["config"]
    if not isinstance(entries, dict) or "mh_adapter" not in entries:
        raise InputError(
            f"{directory / CONFIG}: config is {entries!r}, expected that of a bottleneck adapter"
        )
    if not (directory / WEIGHTS).exists() and (directory / "pytorch_adapter.bin").exists():
        raise InputError(
            f"{directory}: pytorch_adapter.bin is a pickle, which runs code when opened; save it with "
            "save_adapter(..., use_safetensors=True)"
        )
    try:
        return (Houlsby if entries["mh_adapter"] else Pfeiffer).from_hub(entries)
    except InputError as error:
        raise InputError(f"{directory}/{error}") from None


def fill(model: TaskModel, method: Bottleneck, directory: Path) -> None:
    """Fill the model's adapters and head. Raises InputError where the files do not fit the model."""
    name = checkpoint.read_json(directory / CONFIG).get("name")

    def key_of(path: str) -> str:
        return path.replace(f".adapters.{NAME}.", f".adapters.{name}.")

    files = [directory / WEIGHTS]
    if (directory / HEAD_WEIGHTS).exists():
        files.append(directory / HEAD_WEIGHTS)
    part.read(model, files, method.inserted(model), key_of)
