"""A BERT small enough for tests to train, and a data set that it can learn."""

from pathlib import Path
from typing import Any

import numpy as np

import minift
from minift.models.architecture import initialize
from minift.models.bert import ARCHITECTURE, BertConfig
from minift.tasks import TASKS
from minift.tokenizer import Tokenizer

WORDS = "a the film book meal was is it not very good bad fine dull great poor and but or , .".split()
GOOD, BAD = {"good", "fine", "great"}, {"bad", "dull", "poor"}
CONFIG = BertConfig(
    vocab_size=5 + len(WORDS),
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=32,
)


def write_tokenizer(directory: Path) -> Tokenizer:
    """A vocab.txt of the words above in `directory`, and the tokenizer that reads it."""
    directory.mkdir(parents=True, exist_ok=True)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (directory / "vocab.txt").write_text("\n".join(tokens) + "\n")
    return Tokenizer.from_directory(directory, CONFIG.max_position_embeddings)


def make_model(
    directory: Path, config: BertConfig = CONFIG, labels=("negative", "positive"), task="text-classification"
) -> Any:
    """A model for the task with random weights, larger than a new model's, so that errors show."""
    minift.manual_seed(3)
    make = TASKS[task]
    model = make(ARCHITECTURE, config, labels if make.has_labels else None, write_tokenizer(directory))
    initialize(dict(model.named_parameters()), 0.15)
    return model


def rows(count: int, seed: int) -> list[tuple[str, str]]:
    """Texts of 3 to 12 words with one telling word each, and their labels."""
    random = np.random.default_rng(seed)
    neutral = [word for word in WORDS if word not in GOOD | BAD]
    made = []
    for _ in range(count):
        words = list(random.choice(neutral, random.integers(2, 12)))
        label = int(random.integers(2))
        words.insert(int(random.integers(len(words))), str(random.choice(sorted(GOOD if label else BAD))))
        made.append((" ".join(words), ["negative", "positive"][label]))
    return made


def write_tsv(path: Path, pairs: list[tuple[str, str]]) -> Path:
    """A file with the columns sentence and label."""
    path.write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in pairs))
    return path
