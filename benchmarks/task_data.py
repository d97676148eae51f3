"""What `tasks.py` compares on: for each data set a recipe, a training and a held-out part, and how answers are scored.

Both sides read the same two files of a split, and both sides' predictions are scored here, by the same functions.
"""

import hashlib
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from minift import metrics
from minift.tasks.conll import TaggedSentences
from minift.tasks.squad import Questions, exact_match, word_f1


@dataclass(frozen=True)
class Recipe:
    """How one data set is learned."""

    task: str
    """The name that minift's `--task` takes."""
    train: str
    dev: str | None
    """Files under the data folder; without a second one, 500 rows of the first are held out."""
    epochs: int
    learning_rate: float
    batch_size: int
    metrics: tuple[str, ...]
    held_out: str
    """In words, for the table."""
    minutes: dict[str, float]
    """A guess at what a run takes on 2 cores, until one has been timed."""
    max_length: int = 128


RECIPES = {
    "trec": Recipe(
        "text-classification", "trec/train.tsv", None, 2, 1e-4, 32,
        ("accuracy",), "500 held-out questions", {"minift": 2, "transformers": 4},
    ),
    "stsb": Recipe(
        "text-regression", "stsb/train.tsv", "stsb/dev.tsv", 2, 5e-5, 32,
        ("pearson", "spearman"), "1,500 dev pairs", {"minift": 4, "transformers": 8},
    ),
    "mrpc": Recipe(
        "text-classification", "mrpc/train.tsv", None, 2, 5e-5, 32,
        ("accuracy",), "500 held-out pairs", {"minift": 5, "transformers": 9},
    ),
    "wnut17": Recipe(
        "token-classification", "wnut17/train.conll", "wnut17/dev.conll", 3, 1e-4, 32,
        ("f1",), "1,009 dev tweets", {"minift": 4, "transformers": 8},
    ),
    "squad": Recipe(
        "question-answering", "squad/train-v1.1.first12articles.json", "squad/dev-v1.1.first24articles.json",
        2, 1e-4, 16, ("exact_match", "f1"), "5,696 questions of 24 dev articles",
        {"minift": 25, "transformers": 45}, max_length=384,
    ),
    "sst2": Recipe(
        "text-classification", "sst2/train_sentences.tsv", "sst2/dev.tsv", 2, 5e-5, 32,
        ("accuracy",), "872 dev sentences", {"minift": 5, "transformers": 10},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Split:
    """The two files of a data set, and what tells them from other files."""

    train: Path
    dev: Path
    digest: str


HELD_OUT = 500


def write_split(name: str, data: Path, folder: Path, examples: int | None) -> Split:
    """Write the data set's two files into `folder`; of each part at most `examples`, where that is given."""
    recipe = RECIPES[name]
    source = data / recipe.train
    if not source.exists():
        sys.exit(f"{source} is missing; --data names the folder that holds the data sets")
    kind = source.suffix
    head, train = _items(source)
    dev = _items(data / recipe.dev)[1] if recipe.dev else []
    if not recipe.dev:
        random.Random(0).shuffle(train)
        train, dev = train[HELD_OUT:], train[:HELD_OUT]
    paths = [folder / f"{name}_{part}{kind}" for part in ("train", "dev")]
    for path, items in zip(paths, (train, dev), strict=True):
        path.write_text(_join(kind, head, items[:examples]), encoding="utf-8")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]
    return Split(paths[0], paths[1], digest)


def _items(path: Path) -> tuple[str, list]:
    """A file's first line and its examples: rows, sentences, or SQuAD's paragraphs."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return "", [paragraph for article in json.loads(text)["data"] for paragraph in article["paragraphs"]]
    if path.suffix == ".conll":
        return "", text.strip("\n").split("\n\n")
    head, *rows = text.strip("\n").split("\n")
    return head, rows


def _join(kind: str, head: str, items: list) -> str:
    if kind == ".json":
        return json.dumps({"data": [{"title": "", "paragraphs": items}]})
    if kind == ".conll":
        return "\n\n".join(items) + "\n\n"
    return "\n".join([head, *items]) + "\n"


def read_rows(path: Path) -> tuple[list[tuple[str, ...]], list[str]]:
    """The texts (one or two a row) and labels of a TSV, whose last column is the label."""
    _, rows = _items(path)
    fields = [row.split("\t") for row in rows]
    return [tuple(row[:-1]) for row in fields], [row[-1] for row in fields]


def scores(recipe: Recipe, predictions: list, split: Split) -> dict[str, float]:
    """The recipe's metrics of one prediction an example of the held-out part, whoever made them."""
    if recipe.task == "text-classification":
        return {"accuracy": metrics.accuracy(predictions, read_rows(split.dev)[1])}
    if recipe.task == "text-regression":
        expected = [float(score) for score in read_rows(split.dev)[1]]
        return {
            "pearson": metrics.pearson(predictions, expected),
            "spearman": metrics.spearman(predictions, expected),
        }
    if recipe.task == "token-classification":
        return metrics.span_scores(predictions, TaggedSentences(split.dev).tags)
    expected = [question.answer_texts for question in Questions(split.dev).questions]
    pairs = list(zip(predictions, expected, strict=True))
    return {
        "exact_match": sum(exact_match(*pair) for pair in pairs) / len(pairs),
        "f1": sum(word_f1(*pair) for pair in pairs) / len(pairs),
    }
