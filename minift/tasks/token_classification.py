"""Token classification: a tag for every word, such as who and where is named in a sentence.

The model sees pieces of words. A word's first piece carries its tag; the others are neither trained nor asked:

    words   Angela   Merkel        visited   Paris
    pieces  angela   merk   ##el   visited   paris
    labels  B-PER    I-PER  -100   O         B-LOC
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from minift_kernels import softmax as softmax_kernels

from minift.data import READERS, Batch, Columns, SingleTexts, pack
from minift.losses import cross_entropy
from minift.metrics import span_scores, spans
from minift.tasks.conll import Sentence, TaggedSentences
from minift.tasks.task_model import Outcomes, TaskModel, Verdict
from minift.tasks.text_classification import confusion
from minift.tensor import Tensor
from minift.tokenizer import Encoding, Span

WORD = re.compile(r"[@#]?\w+(?:[^\w\s]+\w+)*|[^\w\s]")
"""What is taken for a word in plain text: U.S, don't, @name and #tag are one, other punctuation stands alone."""

IGNORED = -100


@dataclass(frozen=True)
class Entity:
    """A span of a text, characters `start` to `end` (exclusive), and what the model takes it for."""

    label: str
    text: str
    start: int
    end: int
    probability: float
    """The mean over its words of the probability of the tag."""


class TagsPrediction(NamedTuple):
    """What the model says of one text: one tag a word, and the spans that these mark."""

    tags: list[str]
    entities: list[Entity]

    def __str__(self) -> str:
        return ", ".join(f"{each.text} ({each.label})" for each in self.entities) or "(none)"


@dataclass
class SentenceBatch(Batch):
    """A batch that remembers its texts, where their words stand, and the row of each word's first piece."""

    texts: list[str] = field(default_factory=list)
    words: list[list[Span]] = field(default_factory=list)
    first_pieces: list[list[int | None]] = field(default_factory=list)
    """None for a word without a piece: behind the maximum length, or of characters that the tokenizer drops."""


class TokenClassification(TaskModel):
    """One of C tags for each word: softmax over the head's C outputs at the word's first piece, cross-entropy."""

    head = "TokenClassification"
    has_labels = True
    smooths_labels = True
    labels: tuple[str, ...]

    @classmethod
    def read(cls, path: Path, columns: Columns, labelled: bool = True) -> TaggedSentences | SingleTexts:
        """CoNLL columns, see `TaggedSentences`; unlabelled also .txt, .tsv, .csv and .jsonl, see `SingleTexts`."""
        if not labelled and path.suffix.lower() in READERS:
            return SingleTexts(path, *columns, require_label=False)
        return TaggedSentences(path, require_tags=labelled)

    @classmethod
    def labels_in(cls, examples: TaggedSentences) -> list[str]:
        return examples.tag_names

    @property
    def outputs(self) -> int:
        return len(self.labels)

    def targets(self, examples: TaggedSentences) -> list[list[int]]:
        index_of = {label: index for index, label in enumerate(self.labels)}
        for first, tags in zip(examples.first_lines, examples.tags, strict=True):
            for place, tag in enumerate(tags):
                if tag not in index_of:
                    raise examples.error(
                        first + place, f"tag {tag!r}, expected one of: {', '.join(self.labels)}"
                    )
        return [[index_of[tag] for tag in tags] for tags in examples.tags]

    def pack(
        self, inputs: list[str | Sentence], targets: Sequence[Sequence[int]] | None = None
    ) -> SentenceBatch:
        """Of texts, whose words are found as `WORD` says, or of tuples of words."""
        texts = [text if isinstance(text, str) else " ".join(text) for text in inputs]
        words = [spans_of_words(text) for text in inputs]
        encodings = self.tokenizer.encode_spans(texts)
        first_pieces = []
        offset = 0
        for encoding, places in zip(encodings, words, strict=True):
            rows = rows_of_first_pieces(encoding, places)
            first_pieces.append([None if row is None else offset + row for row in rows])
            offset += len(encoding.ids)
        labels = None
        if targets is not None:
            labels = np.full(offset, IGNORED)
            for rows, ids in zip(first_pieces, targets, strict=True):
                for row, label in zip(rows, ids, strict=True):
                    if row is not None:
                        labels[row] = label
        return SentenceBatch(
            **vars(pack(encodings, labels)), texts=texts, words=words, first_pieces=first_pieces
        )

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        # Sentences of which the tokenizer leaves nothing teach nothing. (Labels on a GPU are not looked at: that would
        # be to wait for it, and cross_entropy says 0 there.)
        if isinstance(batch.labels, np.ndarray) and batch.targets == 0:
            return (output * 0.0).sum()
        smoothing = self.label_smoothing if self.training else 0.0
        return cross_entropy(output, batch.labels, label_smoothing=smoothing)

    def decode(self, output: np.ndarray, batch: SentenceBatch) -> list[TagsPrediction]:
        probabilities = softmax_kernels.forward(output)  # (T, C)
        best, highest = probabilities.argmax(axis=1), probabilities.max(axis=1)
        predictions = []
        for text, words, rows in zip(batch.texts, batch.words, batch.first_pieces, strict=True):
            tags = ["O" if row is None else self.labels[best[row]] for row in rows]
            entities = []
            for label, first, end in spans(tags):
                span = words[first][0], words[end - 1][1]
                sure = float(np.mean([highest[row] for row in rows[first:end] if row is not None]))
                entities.append(Entity(label, text[slice(*span)], *span, sure))
            predictions.append(TagsPrediction(tags, entities))
        return predictions

    def metrics(self, predictions: list[TagsPrediction], examples: TaggedSentences) -> dict[str, float]:
        """{"f1", "precision", "recall"} of spans, by seqeval's rules; a word without a piece was told O."""
        return span_scores([prediction.tags for prediction in predictions], examples.tags)

    def verdict(self, given: Sentence, target: list[int], prediction: TagsPrediction) -> Verdict:
        """The score is the share of words with the right tag."""
        right = [self.labels[index] for index in target]
        found = [f"{' '.join(given[first:end])} ({kind})" for kind, first, end in spans(right)]
        score = float(np.mean([a == b for a, b in zip(right, prediction.tags, strict=True)]))
        return Verdict(" ".join(given), ", ".join(found) or "(none)", str(prediction), score)

    def outcomes(self, targets: list[list[int]], predictions: list[TagsPrediction]) -> Outcomes:
        """The confusion matrix of the words' tags."""
        said = [self.labels.index(tag) for each in predictions for tag in each.tags]
        return confusion(self.labels, np.concatenate(targets), said)

    def balance(self, targets: list[list[int]]) -> dict[str, int]:
        counts = np.bincount(np.concatenate(targets), minlength=len(self.labels))
        return dict(zip(self.labels, counts.tolist(), strict=True))

    def shown(self, text: str | Sentence) -> str:
        return text if isinstance(text, str) else " ".join(text)


def spans_of_words(text: str | Sentence) -> list[Span]:
    """Where the words of a text stand; those of a tuple of words in the text that has one space between them."""
    if isinstance(text, str):
        return [found.span() for found in WORD.finditer(text)]
    found, start = [], 0
    for word in text:
        found.append((start, start + len(word)))
        start += len(word) + 1
    return found


def rows_of_first_pieces(encoding: Encoding, words: Sequence[Span]) -> list[int | None]:
    """For each word its first token in the encoding: the first that holds one of the word's characters."""
    assert encoding.spans is not None
    rows: list[int | None] = [None] * len(words)
    word = 0
    for row, span in enumerate(encoding.spans):
        if span is None:
            continue
        while word < len(words) and words[word][1] <= span[0]:  # the word ends before this token
            word += 1
        if word < len(words) and rows[word] is None and words[word][0] < span[1] > span[0]:
            rows[word] = row
    return rows
