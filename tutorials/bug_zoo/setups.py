"""Right set-ups for the bugs to be planted in: tiny models of every family with random weights, and small batches.

Each function builds a model in training mode, a batch and an AdamW with the usual groups, always the same; `directory`
is for the files that it needs.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

import minift
from bug_zoo.plant import Setup
from minift.data import Batch, Columns
from minift.methods.method import LANGUAGE_MODELS, head_parameters
from minift.models import MODELS
from minift.models.architecture import initialize
from minift.optim import AdamW, decay_groups
from minift.tasks import TASKS
from minift.tokenizer import Tokenizer

RATE = 1e-3
RATE_OF_A_PART = 5e-3
"""Where a method trains a small part of a frozen model, or there is nothing but a table: it takes larger steps."""
WORDS = "a the film book meal was is it not very good bad fine dull great poor and but or , .".split()
LORA = {"method": "lora", "rank": 4}
LORA_OF_LLAMA = {"method": "lora", "rank": 8, "targets": ("q_proj", "v_proj", "up_proj", "down_proj")}
LORA_OF_GPT2 = {"method": "lora", "rank": 8, "targets": ("c_attn", "c_fc", "c_proj")}
GOOD, BAD = {"good", "fine", "great"}, {"bad", "dull", "poor"}
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

ENCODER = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40)
DECODER = {**ENCODER, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 48}
SIZES: dict[str, dict[str, Any]] = {
    "bert": {**ENCODER, "max_position_embeddings": 48},
    "roberta": {**ENCODER, "max_position_embeddings": 50},
    "distilbert": dict(dim=24, n_layers=2, n_heads=3, hidden_dim=40, max_position_embeddings=48),
    "gpt2": dict(n_embd=24, n_layer=2, n_head=3, n_positions=48),
    "llama": DECODER,
    "qwen2": DECODER,
    "word-vectors": dict(hidden_size=24),
}


def new_model(
    task: str, family: str, directory: Path, labels: tuple[str, ...] | None = None, **config: Any
) -> Any:
    """A tiny model with random weights, in training mode."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.txt").write_text("\n".join([*MARKS, *WORDS]) + "\n")
    minift.manual_seed(3)
    architecture = MODELS[family]
    shape = architecture.config(vocab_size=len(MARKS) + len(WORDS), **{**SIZES[family], **config})
    model = TASKS[task](architecture, shape, labels, Tokenizer.from_directory(directory, 48))
    initialize(dict(model.named_parameters()), 0.15)  # large, so that what is wrong shows
    if model.head not in LANGUAGE_MODELS:
        initialize(head_parameters(model), shape.initializer_range)
        model.drawn = tuple(head_parameters(model))  # as of a checkpoint without a head
    return model


def set_up(model: Any, batch: Batch, method: str | None = None, **options: Any) -> Setup:
    """With an optimizer of what the model trains, once the method, if there is one, has said what that is."""
    if method is not None:
        minift.apply_method(model, method, **options)
    small = method is not None or not len(model.body.layers)
    rate = RATE_OF_A_PART if small else RATE
    return Setup(model.train(), batch, AdamW(decay_groups(model), lr=rate))


def some_texts(count: int, seed: int = 4) -> tuple[list[str], list[int]]:
    """Texts of 3 to 12 words, each with one telling word, and their labels, 1 for praise."""
    random = np.random.default_rng(seed)
    neutral = [word for word in WORDS if word not in GOOD | BAD]
    texts, labels = [], []
    for label in random.permutation(np.arange(count) % 2):
        words = list(random.choice(neutral, random.integers(2, 12)))
        words.insert(int(random.integers(len(words))), str(random.choice(sorted(GOOD if label else BAD))))
        texts.append(" ".join(words))
        labels.append(int(label))
    return texts, labels


# ---- One set-up for each task --------------------------------------------------------------------


def sentiment(
    family: str, directory: Path, method: str | None = None, count: int = 8, **options: Any
) -> Setup:
    """Praise or complaint?"""
    model = new_model("text-classification", family, directory, ("negative", "positive"))
    return set_up(model, model.pack(*some_texts(count)), method, **options)


def regression(family: str, directory: Path, count: int = 8) -> Setup:
    """From -1 for a complaint to 1 for praise, in between by what else is spoken of."""
    model = new_model("text-regression", family, directory)
    texts, labels = some_texts(count)
    scores = [2.0 * label - 1 + 0.5 * ("film" in text) for text, label in zip(texts, labels, strict=True)]
    return set_up(model, model.pack(texts, scores))


def several_labels(family: str, directory: Path, count: int = 8) -> Setup:
    """What applies: praise, complaint, film, book?"""
    model = new_model("multi-label", family, directory, ("praise", "complaint", "film", "book"))
    texts, labels = some_texts(count)
    rows = [
        np.array([label, 1 - label, "film" in text, "book" in text], np.float32)
        for text, label in zip(texts, labels, strict=True)
    ]
    return set_up(model, model.pack(texts, rows))


def tagging(family: str, directory: Path) -> Setup:
    """Which words name a thing, and which say what somebody thinks of it?"""
    model = new_model("token-classification", family, directory, ("O", "B-THING", "B-OPINION"))
    texts, _ = some_texts(8)
    tag = dict.fromkeys(("film", "book", "meal"), 1) | dict.fromkeys(GOOD | BAD, 2)
    return set_up(
        model,
        model.pack(
            [tuple(text.split()) for text in texts], [[tag.get(w, 0) for w in text.split()] for text in texts]
        ),
    )


def answering(family: str, directory: Path) -> Setup:
    """Which words of a text answer a question?"""
    model = new_model("question-answering", family, directory)
    pairs = [
        ("was it good", "the book was dull and the film was fine"),
        ("was the meal poor", "a great film , but the meal was not good"),
        ("is the book dull", "it is a very good book"),
        ("what is great", "the film is bad , the book is great"),
    ]
    answers = ["fine", "not good", "very good", "the book"]
    starts = [text.index(answer) for (_, text), answer in zip(pairs, answers, strict=True)]
    spans = [((start, start + len(answer)),) for start, answer in zip(starts, answers, strict=True)]
    return set_up(model, model.pack(pairs, spans))


def filling(family: str, directory: Path) -> Setup:
    """Which word stood where the mask is?"""
    model = new_model("fill-mask", family, directory)
    blocks = [np.array(model.tokenizer.pieces(text)) for text in some_texts(8)[0]]
    return set_up(model, model.masked(blocks, np.random.default_rng(5)))


def writing(
    family: str, directory: Path, method: str | None = None, tied: bool = False, **options: Any
) -> Setup:
    """Which token comes next?"""
    config = {"tie_word_embeddings": True} if tied else {}
    model = new_model("text-generation", family, directory, **config)
    texts = [
        "the film was very good .", "a dull book and a bad meal", "it is not bad , but the meal was poor",
        "very fine and not very great .",
    ]  # fmt: skip
    batch = model.pack([np.array(model.document(text)) for text in texts], range(len(texts)))
    return set_up(model, batch, method, **options)


def instructing(family: str, directory: Path, method: str | None = None, **options: Any) -> Setup:
    """What is the response to an instruction?"""
    model = new_model("instruction-tuning", family, directory)
    model.instruction_template = "{instruction} . "
    pairs = {
        "is the film good": "it is very good",
        "was the meal poor": "not very poor , but dull",
        "a book or a film": "a film , and a very good meal",
        "is it not fine": "it was bad",
    }
    path = directory / "instructions.jsonl"
    path.write_text("".join(json.dumps({"instruction": a, "output": b}) + "\n" for a, b in pairs.items()))
    return set_up(model, next(model.batches(model.read(path, Columns()), len(pairs))), method, **options)
