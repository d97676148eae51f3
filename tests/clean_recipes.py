"""Right fine-tunings of every task, family and method, small enough for tests: where the doctor has nothing to say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from test_methods import OPTIONS
from test_methods_families import REFUSED, SIZES, WORDS_AND_MARKS
from tiny import CONFIG, GOOD, rows, write_tokenizer, write_tsv

import minift
from minift import checkpoint
from minift.data import Columns
from minift.methods import METHODS
from minift.models import MODELS
from minift.models.architecture import initialize
from minift.tasks import TASKS

RATES = {"lora": 5e-4, "ia3": 3e-2, "prompt": 3e-2, "prefix": 3e-2, "head": 1e-2}
"""The methods' own rates; 1e-3 for the others. Of prompt and prefix a third of it: at 1e-1 the new head of a tiny
DistilBERT or BERT dies in some steps (its ReLU, its tanh), and the doctor says so."""

HEADS = {name: task.head for name, task in TASKS.items()}


def recipes() -> list[tuple[str, str, str]]:
    """(task, family, method) for all that go together."""
    return [
        (task, family, method)
        for task, head in HEADS.items()
        for family in ("bert", *SIZES)
        if head in MODELS[family].heads
        for method in METHODS
        if (family, method) not in REFUSED
    ]


def write_examples(path: Path, task: str, count: int, seed: int) -> Path:
    """A file that the task reads, of texts of the tiny vocabulary."""
    random = np.random.default_rng(seed)
    pairs = rows(count, seed)
    texts = [text for text, _ in pairs]
    if task == "text-classification":
        return write_tsv(path.with_suffix(".tsv"), pairs)
    if task == "multi-label":
        records = [
            {"text": text, "labels": [label, *(["film"] if "film" in text else [])]} for text, label in pairs
        ]
    elif task == "text-regression":
        records = [
            {"text": t, "score": float(random.normal()) + 2 * (label == "positive")} for t, label in pairs
        ]
    elif task == "instruction-tuning":
        records = [{"instruction": text, "output": " ".join(text.split()[:3])} for text in texts]
    elif task == "question-answering":
        paragraphs = []
        for number, text in enumerate(texts):
            word = text.split()[0]
            answers = [{"text": word, "answer_start": text.index(word)}]
            question = {"id": str(number), "question": "what is it", "answers": answers}
            paragraphs.append({"context": text, "qas": [question]})
        path = path.with_suffix(".json")
        path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
        return path
    elif task == "token-classification":
        path = path.with_suffix(".conll")
        tagged = [[f"{word} {'B-GOOD' if word in GOOD else 'O'}" for word in text.split()] for text in texts]
        path.write_text("\n\n".join("\n".join(lines) for lines in tagged) + "\n")
        return path
    else:
        records = [{"text": text} for text in texts]
    path = path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_base(directory: Path, family: str) -> Path:
    """A checkpoint without a head, of random weights as large as a trained model's."""
    minift.manual_seed(3)
    architecture = MODELS[family]
    size = vars(CONFIG) if family == "bert" else {**SIZES[family], "vocab_size": WORDS_AND_MARKS}
    task = TASKS["text-classification"]
    tokenizer = write_tokenizer(directory / "words")
    model = task(architecture, architecture.config(**size), ("negative", "positive"), tokenizer)
    initialize(dict(model.named_parameters()), 0.15)
    model.save(directory / "base")
    body = {
        name: each.data
        for name, each in model.named_parameters()
        if name.startswith(f"{architecture.body_name}.") and "pooler" not in name
    }
    checkpoint.write_tensors(directory / "base" / checkpoint.WEIGHTS, body)
    return directory / "base"


def begin(directory: Path, task: str, family: str, method: str, seed: int = 0, batch_size: int = 16) -> Any:
    """(model, batch, optimizer) as the training loop has them before the first step."""
    base = directory / family / "base"
    if not base.is_dir():
        write_base(directory / family, family)
    examples_path = directory / f"{task}-{seed}"
    minift.manual_seed(seed)
    examples = TASKS[task].read(write_examples(examples_path, task, 40, seed), Columns())
    model = minift.load(base, task, TASKS[task].labels_in(examples), new_head=True)
    model.prepare(examples)
    made = minift.apply_method(model, method, **OPTIONS.get(method, {}))
    optimizer = minift.AdamW(made.parameter_groups(model, RATES.get(method, 1e-3), 0.01))
    made.start_epoch(model, 0)
    return model, next(iter(model.batches(examples, batch_size, seed=seed))), optimizer


def train(model, batch, optimizer, steps: int) -> None:
    """Some steps on one batch, as the training loop takes them."""
    for _ in range(steps):
        model.loss(model(batch), batch).backward()
        optimizer.step(1.0)
        optimizer.zero_grad()
