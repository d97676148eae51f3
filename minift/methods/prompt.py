"""Prompt tuning: trained vectors in front of every text, in place of an instruction in words (Lester et al. 2021).

The vectors stand where words' vectors stand, before positions are added; the model itself is frozen.

    [p1] [p2] ... [pn] [CLS] good film [SEP]       positions 0, 1, ..., n - 1, n, ...

As in PEFT they come before [CLS], so a head that reads the first token's vector reads that of p1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from minift import ops, random
from minift.data import Batch, pack
from minift.errors import InputError
from minift.history import no_grad
from minift.methods.method import freeze_body, parts_of_layers
from minift.methods.peft import PeftMethod
from minift.nn import Module, Parameter
from minift.tasks.task_model import TaskModel
from minift.tensor import Tensor
from minift.tokenizer import Encoding


class SoftPrompt(Module):
    """The vectors, and how they come into a batch."""

    def __init__(self, vectors: np.ndarray):
        self.prompt_embeddings = Parameter(vectors)  # (n, H)

    def forward(self, words: Tensor, batch: Batch) -> Tensor:
        """The words' vectors of a lengthened batch, (T + B n, H), with the prompt's in front of each text."""
        if goes_on(batch):
            return words
        starts = batch.offsets[:-1] + len(self.prompt_embeddings)
        texts = np.stack([starts, batch.offsets[1:]], axis=1)  # (B, 2)
        return ops.put_in_front(self.prompt_embeddings, words, texts)


def goes_on(batch: Batch) -> bool:
    """Whether the batch is what is generated behind tokens that a cache knows, and the prompt before them."""
    return bool(batch.positions[0] > 0)


def lengthened(batch: Batch, count: int) -> Batch:
    """The batch with `count` tokens of id and type 0 in front of each text, positions counted from the first."""
    starts = batch.offsets[:-1]

    def in_front(values: np.ndarray, value: int) -> np.ndarray:
        return np.insert(values, np.repeat(starts, count), value)

    offsets = batch.offsets + count * np.arange(len(batch.offsets))
    labels = batch.labels
    if labels is not None and labels.shape == batch.ids.shape:  # one a token: the new ones count in no loss
        labels = in_front(labels, -100)
    return replace(
        batch,
        ids=in_front(batch.ids, 0),
        token_types=in_front(batch.token_types, 0),
        positions=np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets)),
        offsets=offsets,
        labels=labels,
    )


@dataclass(frozen=True)
class Prompt(PeftMethod):
    """n vectors of the width of a word's, and the head."""

    name = "prompt"
    peft_type = "PROMPT_TUNING"

    tokens: int = 20
    """n, how many vectors."""
    text: str = ""
    """The words that the vectors begin as, over and over; random words of the vocabulary if not given."""

    @property
    def tokens_in_front(self) -> int:
        return self.tokens

    def apply(self, model: TaskModel) -> None:
        make_room(model, self.tokens, self.name)
        freeze_body(model)
        model.body.soft_prompt = SoftPrompt(self._first_vectors(model))

    def _first_vectors(self, model: TaskModel) -> np.ndarray:
        """The vectors of words: real ones train better than noise (section 3.2)."""
        if self.text:
            ids = model.tokenizer.backend.encode(self.text, add_special_tokens=False).ids
            if not ids:
                raise InputError(f"method prompt: text {self.text!r} has no tokens to begin with")
            ids = np.resize(ids, self.tokens).tolist()
        else:
            ids = (
                random.default_generator.numpy().integers(model.config.vocab_size, size=self.tokens).tolist()
            )
        with no_grad():
            return model.body.words(pack([Encoding(ids, [0] * len(ids), truncated=False)])).numpy()

    def inserted(self, model: TaskModel) -> dict[str, Parameter]:
        return {name: each for name, each in model.named_parameters() if name.endswith(".prompt_embeddings")}

    def answer(self, model: TaskModel, batch: Batch) -> Tensor:
        if goes_on(batch):
            return model.plain_answer(replace(batch, positions=batch.positions + self.tokens))
        longer = lengthened(batch, self.tokens)
        output = model.plain_answer(longer)
        if len(output) != longer.tokens:  # an answer for each text, or for the tokens that have a label
            return output
        first = np.repeat(longer.offsets[:-1], np.diff(longer.offsets))
        return ops.embedding(np.flatnonzero(np.arange(longer.tokens) >= first + self.tokens), output)

    def unload(self, model: TaskModel) -> None:
        raise InputError("a soft prompt cannot be merged: no word of the vocabulary has these vectors")

    @staticmethod
    def key_of(name: str) -> str:
        return prompt_key(name)

    def peft_config(self, model: TaskModel) -> dict[str, Any]:
        return {**prompt_entries(model, self.tokens), "prompt_tuning_init": "RANDOM"}

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Self:
        return cls(tokens=shapes["prompt_embeddings"][0])


def make_room(model: TaskModel, tokens: int, method: str) -> None:
    """Cut texts so that so many tokens more still have positions.

    Raises InputError where nothing is left for them, and for a model without attention, which would not see them.
    """
    parts_of_layers(model, ("key", "value"), method)
    if tokens < 1:
        raise InputError(f"method {method}: tokens is {tokens}, expected 1 or more")
    room = model.config.longest_text - tokens
    if room < 8:
        raise InputError(
            f"method {method}: {tokens} tokens leave {max(room, 0)} of {model.config.longest_text} for a text"
        )
    model.tokenizer.max_length = min(model.tokenizer.max_length, room)


def prompt_key(name: str) -> str:
    """PEFT's key of a parameter, for the methods that put something in front of the text."""
    return "prompt_embeddings" if name.endswith(".prompt_embeddings") else f"base_model.{name}"


def prompt_entries(model: TaskModel, tokens: int) -> dict[str, Any]:
    """PEFT's entries of all methods that put something in front of the text."""
    return {
        "num_virtual_tokens": tokens,
        "token_dim": model.config.hidden_size,
        "num_layers": model.config.num_hidden_layers,
        "num_attention_heads": model.config.num_attention_heads,
        "num_transformer_submodules": 1,
    }
