"""Fill-mask: which word stood where the mask is; how encoders are pre-trained (Devlin et al. 2019, section 3.1)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from minift_kernels import softmax as softmax_kernels

from minift.data import Batch, Columns, Dataset, Text, pack, rows_of_batches
from minift.errors import InputError
from minift.losses import cross_entropy
from minift.nn import evaluating
from minift.tasks.documents import (
    Documents,
    TextScore,
    batch_of_tokens,
    perplexity,
    rank_outcomes,
    scores,
    share_within,
    verdict,
)
from minift.tasks.task_model import Outcomes, TaskModel, Verdict
from minift.tensor import Tensor

MASKED = 0.15
"""The share of tokens that are asked for. Of these, 80 % are masked, 10 % are another word, 10 % stay."""

CANDIDATES = 5


class Filling(NamedTuple):
    """The likeliest words for each mask of a text, and how likely each is."""

    words: list[dict[str, float]]

    def __str__(self) -> str:
        return "  ".join(
            " ".join(f"{word} {probability:.3f}" for word, probability in mask.items()) for mask in self.words
        )


class FillMask(TaskModel):
    """The masked tokens of a text: softmax over the vocabulary, cross-entropy against what stood there."""

    head = "MaskedLM"

    @classmethod
    def read(cls, path: Path, columns: Columns, labelled: bool = True) -> Any:
        """Plain text, see `Documents`; without labels, texts with masks to fill, see `Dataset`."""
        if labelled:
            return Documents(path, columns.text)
        return Dataset(path, *columns, require_label=False)

    @property
    def outputs(self) -> int:
        return self.config.vocab_size

    @property
    def mask(self) -> int:
        """The id of the mask. Raises InputError where the tokenizer has none."""
        found = self.tokenizer.special_id("mask_token")
        if found is None:
            raise InputError(f"{self.tokenizer.source}: the tokenizer has no mask_token")
        return found

    def prepare(self, examples: Documents) -> None:
        before, after = self.tokenizer.before_text, self.tokenizer.after_text
        length = self.tokenizer.max_length - len(before) - len(after)
        examples.cut(self.tokenizer, self.tokenizer.pieces, length)

    def targets(self, examples: Documents) -> Sequence[Any]:
        self.prepare(examples)
        return range(len(examples))  # what is asked for is drawn with each batch

    def batches(
        self, examples: Any, batch_size: int, *, seed: int | None = None, epoch: int = 0, start: int = 0
    ) -> Iterator[Batch]:
        """The blocks once, masked anew in each epoch; without a seed always in the same way."""
        examples, _ = self.take(examples)
        order = rows_of_batches(len(examples), batch_size, seed=seed, epoch=epoch, start=start)
        return (
            self.masked(
                [examples[int(row)][0] for row in rows],
                np.random.Generator(np.random.PCG64([seed or 0, epoch, start + number])),
            )
            for number, rows in enumerate(order)
        )

    def masked(self, blocks: list[np.ndarray], generator: np.random.Generator) -> Batch:
        """The blocks, special tokens around each, with some of their tokens hidden, and those as labels."""
        before, after = self.tokenizer.before_text, self.tokenizer.after_text
        texts = [np.concatenate([before, block, after]) for block in blocks]
        batch = batch_of_tokens(texts, texts)
        assert batch.labels is not None
        special = np.isin(batch.ids, self.special_ids)
        asked = (generator.random(batch.tokens) < MASKED) & ~special
        if not asked.any():  # so that there is a loss
            asked[generator.choice(np.flatnonzero(~special))] = True
        how = generator.random(batch.tokens)
        words = np.setdiff1d(np.arange(self.tokenizer.vocab_size), self.special_ids)
        others = generator.choice(words, batch.tokens)
        batch.ids = np.where(asked & (how < 0.8), self.mask, batch.ids)
        batch.ids = np.where(asked & (how >= 0.9), others, batch.ids)
        batch.labels = np.where(asked, batch.labels, -100)
        return batch

    @property
    def special_ids(self) -> np.ndarray:
        """The ids of all special tokens."""
        added = self.tokenizer.backend.get_added_tokens_decoder()
        return np.array(sorted(number for number, token in added.items() if token.special), np.int64)

    def pack(self, inputs: list[Text], targets: Sequence[Any] | None = None) -> Batch:
        """Of texts: what stands at their masks is asked."""
        batch = pack(self.tokenizer.encode(inputs))
        batch.labels = np.where(batch.ids == self.mask, 0, -100)  # any class: it only marks the rows
        return batch

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        assert batch.labels is not None
        return cross_entropy(output, batch.labels[batch.labels != -100])

    def decode(self, output: np.ndarray, batch: Batch) -> list[Any]:
        return scores(output, batch)

    def metrics(self, predictions: list[Any], examples: Any) -> dict[str, float]:
        """{"perplexity", "top1", "top5"}: e to a masked token's mean loss; how often it was among the likeliest."""
        return {
            "perplexity": perplexity(predictions),
            "top1": share_within(predictions, 1),
            "top5": share_within(predictions, 5),
        }

    def verdict(self, given: Any, target: Any, prediction: TextScore) -> Verdict:
        """The score is minus the loss of a token."""
        return verdict(self.tokenizer.decode(given.tolist()), prediction)

    def outcomes(self, targets: Any, predictions: list[TextScore]) -> Outcomes:
        return rank_outcomes(predictions)

    def predict(self, inputs: Any, batch_size: int = 32) -> list[Filling]:
        """The likeliest words for every mask of each text; an empty one has none. InputError for another without."""
        inputs = inputs if isinstance(inputs, list) else [inputs]
        asked = [row for row, text in enumerate(inputs) if text]
        fillings = [Filling([])] * len(inputs)
        with evaluating(self):
            for chosen in rows_of_batches(len(asked), batch_size):
                rows = [asked[number] for number in chosen]
                batch = self.pack([inputs[row] for row in rows])
                masks = np.add.reduceat(batch.ids == self.mask, batch.offsets[:-1])
                for row, count in zip(rows, masks, strict=True):
                    if count == 0:
                        mask = self.tokenizer.tokens([self.mask])[0]
                        raise InputError(
                            f"text {row + 1} of {len(inputs)}: there is no {mask} in {inputs[row][:60]!r}"
                        )
                probabilities = softmax_kernels.forward(self.answer(batch).numpy())  # (masks, V)
                words = [self.candidates(row) for row in probabilities]
                ends = np.cumsum(masks)
                for row, count, end in zip(rows, masks, ends, strict=True):
                    fillings[row] = Filling(words[end - count : end])
        return fillings

    def candidates(self, probabilities: np.ndarray) -> dict[str, float]:
        """The likeliest words, the likeliest first."""
        best = np.argsort(-probabilities)[:CANDIDATES]
        return {
            word: float(probabilities[token])
            for word, token in zip(self.tokenizer.tokens(best.tolist()), best, strict=True)
        }
