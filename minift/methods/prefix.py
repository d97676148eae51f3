"""Prefix tuning: trained keys and values in front of every text's own, in every layer (Li and Liang 2021).

A soft prompt steers the model from below; a prefix speaks to each layer directly. Attention of layer l reads

    keys [P_l; K], values [P'_l; V]        P_l and P'_l (n, H) trained, K and V (T, H) the text's own

and no query, residual or feed-forward network knows of it (section 4.1). As in PEFT, a text's positions begin at n.
(PEFT itself has no prefix for DistilBERT, whose class in transformers takes no keys from outside.)
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np

from minift import ops, random
from minift.data import Batch
from minift.errors import InputError
from minift.methods.method import freeze_body
from minift.methods.peft import PeftMethod
from minift.methods.prompt import make_room, prompt_entries, prompt_key
from minift.models.attention import SelfAttention
from minift.nn import Module, Parameter
from minift.tasks.task_model import TaskModel
from minift.tensor import Tensor


class Prefix(Module):
    """The keys and values of all layers, side by side: key of layer 0, value of layer 0, key of layer 1, ..."""

    def __init__(self, vectors: np.ndarray, layers: int):
        self.prompt_embeddings = Parameter(vectors)  # (n, 2 layers H)
        self.width = vectors.shape[1] // (2 * layers)

    def rows(self, layer: int) -> tuple[Tensor, Tensor]:
        """The keys and values of a layer, (n, H) each."""
        start = 2 * layer * self.width
        middle, end = start + self.width, start + 2 * self.width
        vectors = self.prompt_embeddings
        return ops.columns(vectors, start, middle), ops.columns(vectors, middle, end)


@dataclass(frozen=True)
class PrefixTuning(PeftMethod):
    """n keys and n values in each layer, and the head."""

    name = "prefix"
    peft_type = "PREFIX_TUNING"
    unsupported = ("prefix_projection",)

    tokens: int = 20
    """n, how many of them."""

    @property
    def tokens_in_front(self) -> int:
        return self.tokens

    def apply(self, model: TaskModel) -> None:
        attentions = [
            each
            for layer in model.body.layers
            for _, each in layer.named_modules()
            if isinstance(each, SelfAttention)
        ]
        make_room(model, self.tokens, self.name)
        freeze_body(model)
        shape = (self.tokens, 2 * len(attentions) * model.config.key_width)
        vectors = random.default_generator.numpy().standard_normal(shape, dtype=np.float32)
        prefix = Prefix(vectors * model.config.initializer_range, len(attentions))
        model.body.key_values = prefix
        for index, attention in enumerate(attentions):
            attention.prefix = partial(prefix.rows, index)

    def inserted(self, model: TaskModel) -> dict[str, Parameter]:
        return {name: each for name, each in model.named_parameters() if name.endswith(".prompt_embeddings")}

    def answer(self, model: TaskModel, batch: Batch) -> Tensor:
        return model.plain_answer(replace(batch, positions=batch.positions + self.tokens))

    def unload(self, model: TaskModel) -> None:
        raise InputError("a prefix cannot be merged: no weight of the model gives these keys to every text")

    @staticmethod
    def key_of(name: str) -> str:
        return prompt_key(name)

    def peft_config(self, model: TaskModel) -> dict[str, Any]:
        sizes = {"token_dim": model.config.key_width, "num_attention_heads": model.config.key_heads}
        return {**prompt_entries(model, self.tokens), **sizes, "prefix_projection": False}

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Self:
        return cls(tokens=shapes["prompt_embeddings"][0])
