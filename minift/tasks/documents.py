"""Plain text for language models: documents, cut into blocks that a model can read at once."""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from minift_kernels import cross_entropy as cross_entropy_kernels

from minift.checkpoint import open_file
from minift.data import Batch, SingleTexts
from minift.errors import InputError
from minift.tasks.task_model import Outcomes, Verdict
from minift.tokenizer import Tokenizer


class Documents:
    """The documents of a file: a .txt is one, and every row of a .tsv, .csv or .jsonl is one.

    `cut` makes blocks of their tokens; `documents[i]` is then (block, None). No block holds parts of two documents, so
    that none leaks into another.

    Raises InputError for a file that cannot be read, holds no text, or holds pairs of texts.
    """

    def __init__(self, path: Path, text_column: str | None = None):
        self.path = path
        if path.suffix.lower() == ".txt":
            self.texts = [_read_whole(path)]
        else:
            rows = SingleTexts(path, text_column, require_label=False)
            self.texts = [str(rows[index][0]) for index in range(len(rows))]
        if not any(text.strip() for text in self.texts):
            raise InputError(f"{path}: there is no text in it")
        self.blocks: list[np.ndarray] = []
        self._made_with: tuple | None = None

    def cut(
        self, tokenizer: Tokenizer, tokens_of: Callable[[str], list[int]], length: int, overlap: int = 0
    ) -> None:
        """Make the blocks: `length` tokens, fewer at a document's end, and `overlap` of the next.

        `tokens_of` gives the tokens of a document. Blocks that this tokenizer has made, with the same lengths, are
        kept; another model's are not. Raises InputError where no document has more than `overlap`.
        """
        if self._made_with == (tokenizer, length, overlap):
            return
        self.blocks = []
        for text in self.texts:
            tokens = np.array(tokens_of(text), np.int32)
            for start in range(0, len(tokens) - overlap, length):
                self.blocks.append(tokens[start : start + length + overlap])
        if not self.blocks:
            raise InputError(
                f"{self.path}: no text of more than {overlap} tokens, so there is nothing to learn"
            )
        self._made_with = (tokenizer, length, overlap)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> tuple[np.ndarray, None]:
        return self.blocks[index], None


def _read_whole(path: Path) -> str:
    with open_file(path) as file:
        content = file.read()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start + 1} (0x{content[error.start]:02x}) is not UTF-8"
        ) from None


def batch_of_tokens(texts: Sequence[Any], labels: Sequence[Any] | None = None) -> Batch:
    """Texts given as arrays of tokens, packed, with a label for every token where there are labels."""
    lengths = [len(text) for text in texts]
    ids = np.concatenate([np.asarray(text, np.int64) for text in texts])
    return Batch(
        ids=ids,
        token_types=np.zeros_like(ids),
        positions=np.concatenate([np.arange(length) for length in lengths]),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        labels=None if labels is None else np.concatenate([np.asarray(each, np.int64) for each in labels]),
    )


class TextScore(NamedTuple):
    """How well the model foretold a text's tokens: of each that had a label, its loss, and how many seemed likelier."""

    losses: np.ndarray
    ranks: np.ndarray


def scores(logits: np.ndarray, batch: Batch) -> list[TextScore]:
    """One for each text, from the logits (R, V) of the tokens that have labels."""
    assert batch.labels is not None
    rows = np.flatnonzero(batch.labels != -100)
    labels = batch.labels[rows]
    losses, _ = cross_entropy_kernels.forward(logits, labels, None, -100, 0.0)
    ranks = (logits > logits[np.arange(len(rows)), labels][:, None]).sum(axis=1)
    places = np.searchsorted(rows, batch.offsets)
    return [TextScore(losses[start:end], ranks[start:end]) for start, end in itertools.pairwise(places)]


def perplexity(predictions: list[TextScore]) -> float:
    """e to the mean loss of a token."""
    losses = np.concatenate([each.losses for each in predictions])
    return math.exp(min(float(losses.mean()), 700.0))  # e^710 is no float


def share_within(predictions: list[TextScore], k: int) -> float:
    """The share of tokens that were among the k likeliest."""
    return float((np.concatenate([each.ranks for each in predictions]) < k).mean())


def verdict(text: str, score: TextScore) -> Verdict:
    """Of a text's tokens the mean loss, which the score is below 0; nothing where none had a label."""
    loss = float(score.losses.mean()) if len(score.losses) else 0.0
    return Verdict(text, "", f"loss {loss:.3f}", -loss)


def rank_outcomes(predictions: list[TextScore]) -> Outcomes:
    """Where the right tokens stood among the model's guesses."""
    ranks = np.concatenate([each.ranks for each in predictions])
    edges = np.array([0, 1, 5, 20, 100, np.inf])
    columns = ["likeliest", "2nd to 5th", "6th to 20th", "21st to 100th", "behind"]
    return Outcomes(["the right token"], columns, [np.histogram(ranks, edges)[0].tolist()])
