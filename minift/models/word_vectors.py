"""Word vectors: the beginning of the story. A word has one vector whatever stands beside it (Mikolov et al. 2013).

The body is a table of vectors, read from word2vec's text format. What makes a text of them is the head: their mean, or
convolutions (Kim 2014). Static vectors are those of `--method head`; any other method trains them, too.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from minift import checkpoint, ops
from minift.data import Batch, Lines
from minift.errors import InputError
from minift.models.architecture import Architecture, Body, Head, ModelConfig
from minift.nn import Dropout, Embedding, Linear, Module, ModuleList
from minift.tensor import Tensor
from minift.tokenizer import Tokenizer

UNKNOWN = "<unk>"
"""Stands for every word that has no vector; its own is 0 at first."""

POOLINGS = ("mean", "convolution")
WINDOWS, FILTERS = (3, 4, 5), 100  # Kim 2014, section 3.1
WORDS = r"\w+(?=n't)|n't|'\w+|\w+|[^\w\s]"
"""What a text is split into: words and signs, with "don't" as "do" and "n't", for which GloVe has vectors."""


@dataclass(frozen=True)
class WordVectorsConfig(ModelConfig):
    """The size of the table, and what makes a text of its rows."""

    vocab_size: int = 1
    hidden_size: int = 50
    """H, the numbers of a vector."""
    pooling: str = "mean"
    """mean or convolution."""
    classifier_dropout: float = 0.5
    initializer_range: float = 0.1
    max_position_embeddings: int = 512
    """The longest text in tokens; the vectors themselves know no positions."""
    num_hidden_layers: int = 0
    num_attention_heads: int = 0

    @property
    def longest_text(self) -> int:
        return self.max_position_embeddings

    @property
    def head_dropout(self) -> float:
        return self.classifier_dropout

    def check(self, config: Mapping[str, Any], source: str) -> None:
        if self.pooling not in POOLINGS:
            raise InputError(f"{source}: pooling is {self.pooling!r}, expected one of {', '.join(POOLINGS)}")


class WordVectors(Body):
    """A vector for every token, by itself."""

    def __init__(self, config: WordVectorsConfig):
        super().__init__(config)
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size)
        self.layers = ModuleList([])

    @property
    def vocabulary(self) -> Embedding:
        return self.word_embeddings

    def embed(self, words: Tensor, batch: Batch) -> Tensor:
        return words

    def encode(self, x: Tensor, batch: Batch) -> Tensor:
        return x

    @property
    def foundation(self) -> list[Module]:
        return [self.word_embeddings]


class Convolution(Module):
    """FILTERS numbers for each window of `width` words: a linear layer on the window's vectors, side by side.

    A text is as if it had zeros around it, so that each of its words begins a window, and one more for each that ends
    before.
    """

    def __init__(self, hidden: int, width: int):
        self.width = width
        self.dense = Linear(width * hidden, FILTERS)

    def forward(self, x: Tensor, offsets: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """The windows' numbers (R, FILTERS), and where each text's windows begin, (B + 1,)."""
        reach = np.arange(self.width)
        windows, ends = [], [0]
        for start, end in itertools.pairwise(offsets):
            first = np.arange(start - self.width + 1, end)
            rows = first[:, None] + reach  # (windows, width)
            windows.append(np.where((rows >= start) & (rows < end), rows, len(x)))  # row T is the zeros
            ends.append(ends[-1] + len(first))
        padded = ops.concatenate([x, Tensor(np.zeros((1, x.shape[1]), x.dtype))])
        side_by_side = ops.embedding(np.concatenate(windows).ravel(), padded).reshape(
            -1, self.width * x.shape[1]
        )
        return ops.relu(self.dense(side_by_side)), np.array(ends)


class WordVectorsHead(Head):
    """One answer per text: a linear layer on the mean of its vectors, or on the largest answer of each filter."""

    @staticmethod
    def build(model, config: WordVectorsConfig, outputs: int) -> None:
        width = config.hidden_size
        if config.pooling == "convolution":
            model.convolutions = ModuleList([Convolution(config.hidden_size, window) for window in WINDOWS])
            width = len(WINDOWS) * FILTERS
        model.dropout = Dropout(config.head_dropout)
        model.classifier = Linear(width, outputs)

    @staticmethod
    def forward(model, batch: Batch) -> Tensor:
        x = model.vectors(batch)  # (T, H)
        if model.config.pooling == "mean":
            pooled = ops.segment_mean(x, batch.offsets)  # (B, H)
        else:
            answers = [convolution(x, batch.offsets) for convolution in model.convolutions]
            pooled = ops.concatenate([ops.segment_max(*answer).T for answer in answers]).T  # (B, 3 FILTERS)
        return model.classifier(model.dropout(pooled))  # (B, C)


ARCHITECTURE = Architecture(
    model_type="word-vectors",
    class_prefix="WordVectors",
    body_name="vectors",
    config=WordVectorsConfig,
    body=WordVectors,
    heads={"SequenceClassification": WordVectorsHead},
)


def read_word2vec(path: Path) -> tuple[list[str], np.ndarray]:
    """The words and their vectors (V, H) float32 of a file in word2vec's text format.

    The first line says how many words there are and how many numbers each has; then come a word and its numbers a line.
    Raises InputError, with the line, for a file that is not so, and for a number that float32 does not hold.
    """
    with checkpoint.open_file(path) as file:
        lines = Lines(file, path)
        header = next(lines, "").split()
        if len(header) != 2 or not all(number.isdecimal() for number in header):
            raise InputError(
                f"{path}, line 1: '<words> <numbers>' was expected, found {' '.join(header)[:60]!r}"
            )
        count, width = map(int, header)
        words: list[str] = []
        vectors = []
        for line in lines:
            word, *numbers = line.rstrip().split(" ")
            place = f"{path}, line {lines.number - 1}"
            if len(numbers) != width:
                raise InputError(f"{place}: {len(numbers)} numbers, {width} were expected")
            try:
                vectors.append(np.array(numbers, np.float32))
            except ValueError:
                raise InputError(f"{place}: {word!r} is followed by something that is no number") from None
            if not np.isfinite(vectors[-1]).all():
                wrong = numbers[int(np.isfinite(vectors[-1]).argmin())]
                raise InputError(f"{place}: {word!r} is followed by {wrong}, expected a number (of float32)")
            words.append(word)
    if len(words) != count or len(set(words)) != count or count == 0:
        raise InputError(
            f"{path}: {count} distinct words were promised, found {len(set(words))} in {len(words)} lines"
        )
    return words, np.stack(vectors)


def import_word2vec(path: Path, out: Path, pooling: str = "mean") -> None:
    """Write the vectors of a file as a model directory, which `minift finetune --model` takes.

    Texts are read in lower case unless a tenth of the file's words have capitals: a few do in any file.

    Raises InputError for a file in another format and for an unknown pooling.
    """
    words, vectors = read_word2vec(path)
    names = [UNKNOWN, *(word for word in words if word != UNKNOWN)]
    table = np.stack(
        [
            np.zeros(vectors.shape[1], np.float32),
            *(v for w, v in zip(words, vectors, strict=True) if w != UNKNOWN),
        ]
    )
    backend = tokenizers.Tokenizer(
        models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=UNKNOWN)
    )
    if sum(word != word.lower() for word in words) < len(words) / 10:
        backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), "removed", invert=True)
    backend.decoder = decoders.WordPiece()
    config = WordVectorsConfig(vocab_size=len(names), hidden_size=vectors.shape[1], pooling=pooling)
    config.check({}, str(path))
    entries = {"unk_token": UNKNOWN, "tokenizer_class": "PreTrainedTokenizerFast"}
    checkpoint.make_directory(out)
    Tokenizer(backend, entries, config.longest_text, path).save(out)
    key = f"{ARCHITECTURE.body_name}.word_embeddings.weight"
    checkpoint.write_tensors(out / checkpoint.WEIGHTS, {key: table})
    checkpoint.write_json(out / "config.json", {"model_type": ARCHITECTURE.model_type, **vars(config)})
    checkpoint.remove_other_formats(out, "transformers")
