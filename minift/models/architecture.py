"""What all families of models have in common: how they are described, built and given their first weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import numpy as np

from minift import ops, random
from minift.data import Batch
from minift.errors import InputError
from minift.history import Array
from minift.nn import Embedding, Module, ModuleList
from minift.tensor import Tensor


@dataclass(frozen=True)
class Architecture:
    """A family of models, such as BERT: all that loading, saving and the tasks must know of it."""

    model_type: str
    """What config.json calls it, such as bert."""
    class_prefix: str
    """What transformers' classes begin with: Bert, as in BertForSequenceClassification."""
    body_name: str
    """The attribute that holds the body in a model with a head, and so the first part of its keys."""
    config: type["ModelConfig"]
    body: type["Body"]
    heads: Mapping[str, type["Head"]]
    """The heads by what transformers' class names end with, such as SequenceClassification."""
    current_name: Callable[[str], str] = str
    """From a key of an old or body-only checkpoint to the name that transformers uses today."""
    layer_parts: Mapping[str, str] = field(default_factory=dict)
    """Where the methods find their places: the ends of the paths of a layer's parts, as regular expressions.

    "query", "key", "value": the linear layers that make them, which may be one; "feed_forward_output": the second
    linear layer of the feed-forward network; "attention_norm", "output_norm": the norm behind the attention and that
    behind the feed-forward network, in families whose layers end with one.
    """
    odd_class_names: Mapping[str, str] = field(default_factory=dict)
    """What transformers calls the model with a head where it is not the prefix, For and the head."""

    def class_name(self, head: str) -> str:
        """transformers' class of the model with this head, such as BertForSequenceClassification."""
        return self.odd_class_names.get(head, f"{self.class_prefix}For{head}")


@dataclass(frozen=True)
class ModelConfig:
    """A model's shape, under the names of its config.json: the base of each family's frozen dataclass.

    Each family has its own fields; these are what everybody may ask of any of them.
    """

    vocab_size: int
    initializer_range: float
    """The standard deviation of new weights."""

    hidden_size: ClassVar[Any]
    """H, the width of every token's vector: a field, or a property where config.json has another name for it."""
    num_hidden_layers: ClassVar[Any]
    """The number of layers."""
    num_attention_heads: ClassVar[Any]
    """N, the number of heads; each works on D numbers of every query."""

    @property
    def key_heads(self) -> int:
        """M, the number of heads that keys and values have."""
        return self.num_attention_heads

    @property
    def key_width(self) -> int:
        """M D, the width of a key or a value: of all its heads together."""
        return self.hidden_size

    @property
    def longest_text(self) -> int:
        """In tokens: what the model has positions for."""
        raise NotImplementedError

    @property
    def head_dropout(self) -> float:
        """The dropout before a classifier."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], source: str) -> Self:
        """The known fields of a config.json that was read from `source`, each of its declared type.

        Raises InputError for a value of another type, and for what `check` finds.
        """
        known = {field.name: config[field.name] for field in fields(cls) if field.name in config}  # type: ignore[arg-type]
        declared_types = {field.name: field.type for field in fields(cls)}  # type: ignore[arg-type]
        for name, value in known.items():
            declared = str(declared_types[name])
            if not _is_of_type(value, declared):
                raise InputError(f"{source}: {name} is {value!r}, expected {declared}")
        made = cls(**known)
        made.check(config, source)
        return made

    def check(self, config: Mapping[str, Any], source: str) -> None:
        """Raise InputError where the fields do not fit each other, or ask for a part that minift does not have."""


_TYPES = {"bool": bool, "int": int, "float": (int, float), "str": str, "None": type(None)}


def _is_of_type(value: Any, declared: str) -> bool:
    """Whether a value read from JSON is of the type that an annotation such as `float | None` declares."""
    names = [name.strip() for name in declared.replace("<class '", "").replace("'>", "").split("|")]
    return any(
        isinstance(value, _TYPES.get(name, object)) and isinstance(value, bool) <= (name == "bool")
        for name in names
    )


class Body(Module):
    """A model without its head: from a batch of texts to one vector for every token, (T, H), or for some.

    A subclass says what lies under its layers (`foundation`) and which its layers are (`layers`), the lowest first.
    """

    layers: Sequence[Module] | ModuleList
    """The layers, the lowest first: an attribute, or a property where checkpoints have another name for them."""

    soft_prompt: Callable[[Tensor, Batch], Tensor] | None = None
    """Puts vectors in front of the words of each text of a batch that has room for them; set by prompt tuning
    (Lester et al. 2021)."""

    def __init__(self, config: Any):
        self.config = config

    @property
    def foundation(self) -> list[Module]:
        """The modules under the first layer: the embeddings."""
        raise NotImplementedError

    @property
    def vocabulary(self) -> Embedding:
        """The vectors of all words, (V, H); language models say with them, too, which word fits."""
        raise NotImplementedError

    def words(self, batch: Batch) -> Tensor:
        """The vector of each token by itself, (T, H): what soft prompts are put in front of, text by text."""
        return self.vocabulary(batch.ids)

    def embed(self, words: Tensor, batch: Batch) -> Tensor:
        """What the first layer reads, (T, H): the words, and what the foundation adds to them, such as positions."""
        raise NotImplementedError

    def read(self, batch: Batch) -> Tensor:
        """What the first layer reads of a batch, (T, H)."""
        words = self.words(batch)
        if self.soft_prompt is not None:
            words = self.soft_prompt(words, batch)
        return self.embed(words, batch)

    def encode(self, x: Tensor, batch: Batch) -> Tensor:
        """All layers, and what stands above the last one: (T, H)."""
        raise NotImplementedError

    def forward(self, batch: Batch, rows: Array | None = None) -> Tensor:
        """One vector for every token, (T, H), or only for the tokens in these rows, (R,) in ascending order: (R, H)."""
        x = self.encode(self.read(batch), batch)
        return x if rows is None else ops.embedding(rows, x)

    def freeze(self, layers: int) -> None:
        """Freeze the embeddings and the lowest `layers` layers. Raises InputError where there are fewer layers."""
        total = len(self.layers)
        if not 0 <= layers <= total:
            raise InputError(f"cannot freeze {layers} layers: the model has {total}")
        if layers == 0:
            return
        for module in [*self.foundation, *self.layers[:layers]]:
            module.requires_grad_(False)


class Head:
    """What answers a task's question: modules that stand in the model beside the body, and how they are used.

    It is no module of its own, because in transformers' checkpoints a head's parts have no name before theirs.
    """

    @staticmethod
    def build(model: Any, config: Any, outputs: int) -> None:
        """Give the model the head's modules as attributes; `outputs` is the number of answers."""
        raise NotImplementedError

    @staticmethod
    def forward(model: Any, batch: Batch) -> Tensor:
        """The answers to a batch, such as logits (B, C)."""
        raise NotImplementedError


def rows_with_a_target(batch: Batch) -> np.ndarray | None:
    """The rows (R,) of the tokens that have a label; None, which stands for all, where all have one or none is given.

    A vocabulary is so large that a language model's head costs as much as several layers; it is run where it counts.
    """
    if batch.labels is None:
        return None
    rows = np.flatnonzero(batch.labels != -100)
    return None if len(rows) == len(batch.labels) else rows


def row_of_each_text(batch: Batch, end: str) -> Array:
    """The row of each text's "first" token, or of its "last", (B,). Raises InputError for a text without tokens.

    On a GPU nobody looks for one.
    """
    if isinstance(batch.offsets, np.ndarray) and (np.diff(batch.offsets) == 0).any():
        number = int(np.argmin(np.diff(batch.offsets))) + 1
        raise InputError(
            f"text {number} of {len(batch)} has no tokens, so no {end} one that could answer for it"
        )
    return batch.offsets[:-1] if end == "first" else batch.offsets[1:] - 1


def initialize(parameters: dict[str, Tensor], standard_deviation: float) -> None:
    """New values for the named parameters, as transformers draws them: weights normal, biases 0, norms 1 and 0."""
    generator = random.default_generator.numpy()
    for name, parameter in parameters.items():
        if name.endswith("bias"):
            parameter.data = np.zeros_like(parameter.data)
        elif parameter.ndim == 1:  # the weight of a LayerNorm or an RMSNorm
            parameter.data = np.ones_like(parameter.data)
        else:
            values = generator.standard_normal(parameter.shape, dtype=np.float32) * standard_deviation
            parameter.data = values.astype(parameter.dtype)
