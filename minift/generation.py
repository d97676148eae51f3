"""Text that a causal model writes: one token after the other, each chosen by what the model says comes next."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from minift_kernels import softmax as softmax_kernels

from minift.data import Batch
from minift.errors import InputError
from minift.models.attention import KeyValueCache, SelfAttention
from minift.nn import Module, evaluating


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen among all of the vocabulary."""

    temperature: float = 0.0
    """0 takes the likeliest token; 1 draws as the model says; between, likely tokens gain; above, unlikely ones."""
    top_k: int | None = None
    """Draw among this many of the likeliest tokens."""
    top_p: float | None = None
    """Draw among the fewest tokens that together have this probability (Holtzman et al. 2020, section 3.1)."""
    seed: int = 0
    """Decides what is drawn."""

    def __post_init__(self):
        if not 0 <= self.temperature < np.inf:  # so that NaN is refused, too
            raise InputError(f"temperature is {self.temperature}, expected 0 or more, and a number")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}, expected 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}, expected a share above 0 and up to 1")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}, expected 0 or more")

    def choose(self, logits: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """One token for each row of logits (B, V)."""
        if self.temperature == 0:
            return logits.argmax(axis=1)
        return np.array([generator.choice(len(row), p=row) for row in self.probabilities(logits)])

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """What is drawn from, (B, V) float64: softmax(logits / temperature), 0 for what is cut off."""
        probabilities = softmax_kernels.forward(logits.astype(np.float64) / self.temperature)
        order = np.argsort(-probabilities, axis=1, kind="stable")
        ranked = np.take_along_axis(probabilities, order, axis=1)
        kept = np.ones_like(ranked, bool)
        if self.top_k is not None:
            kept[:, self.top_k :] = False
        if self.top_p is not None:
            ranked_kept = ranked * kept / (ranked * kept).sum(axis=1, keepdims=True)
            before = ranked_kept.cumsum(axis=1) - ranked_kept  # the probability of all that is likelier
            kept &= before < self.top_p
        np.put_along_axis(probabilities, order, ranked * kept, axis=1)
        return probabilities / probabilities.sum(axis=1, keepdims=True)


def generate(
    model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    stop: int | None = None,
    use_cache: bool = True,
) -> list[list[int]]:
    """The tokens that `model`, one with a causal head, writes after each prompt: at most `max_new_tokens`.

    A text ends early behind the token `stop`, and where the model has no more positions. With the cache each step
    computes one token a text, without it all tokens again; the tokens are the same.

    Raises InputError for an empty prompt, for one that fills all the model's positions, and where nothing is to be
    written.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}, expected 1 or more")
    in_front = 0 if model.method is None else model.method.tokens_in_front
    longest = model.config.longest_text - in_front
    for prompt in prompts:
        if not 0 < len(prompt) < longest:
            beside = f" beside the {in_front} of its method" if in_front else ""
            raise InputError(
                f"the prompt has {len(prompt)} tokens; expected 1 to {longest - 1}, "
                f"since the model has positions for {longest}{beside} and one must be left to write"
            )
    texts = [list(prompt) for prompt in prompts]
    ends = [min(len(prompt) + max_new_tokens, longest) for prompt in prompts]
    known = [0] * len(texts)  # how many tokens of each text the cache holds
    generator = np.random.default_rng(sampling.seed)
    with (
        evaluating(model),
        caching(model, len(texts), max(ends, default=0) + in_front) if use_cache else evaluating(model),
    ):
        while writing := [
            text
            for text, end in enumerate(ends)
            if len(texts[text]) < end and (len(texts[text]) == len(prompts[text]) or texts[text][-1] != stop)
        ]:
            new = [tokens[known[text] :] if text in writing else [] for text, tokens in enumerate(texts)]
            logits = model.answer(_batch_of(new, known)).numpy()  # (texts still being written, V)
            if use_cache:
                known = [before + len(tokens) for before, tokens in zip(known, new, strict=True)]
            for text, token in zip(writing, sampling.choose(logits, generator), strict=True):
                texts[text].append(int(token))
    return [tokens[len(prompt) :] for tokens, prompt in zip(texts, prompts, strict=True)]


def _batch_of(new: list[list[int]], known: list[int]) -> Batch:
    """The new tokens of each text, behind those that the cache knows; only the last one of each is answered."""
    lengths = np.array([len(tokens) for tokens in new])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.array([token for tokens in new for token in tokens], np.int64)
    positions = np.concatenate(
        [np.arange(past, past + len(tokens)) for past, tokens in zip(known, new, strict=True)]
    )
    labels = np.full(len(ids), -100)
    labels[offsets[1:][lengths > 0] - 1] = 0  # any class: it only marks the row
    return Batch(ids, np.zeros_like(ids), positions, offsets, labels)


@contextmanager
def caching(model: Module, texts: int, room: int) -> Iterator[None]:
    """Inside this block every self-attention of the model keeps the keys and values that it has computed.

    `room` is for the tokens of the longest text, with what a method puts in front of it.
    """
    layers = [module for _, module in model.named_modules() if isinstance(module, SelfAttention)]
    for layer in layers:
        layer.cache = KeyValueCache(texts, room)
    try:
        yield
    finally:
        for layer in layers:
            layer.cache = None
