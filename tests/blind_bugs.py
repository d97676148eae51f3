"""A second set of planted bugs, for a doctor to find: planted without having read the doctor.

Each is a mistake that fine-tuning scripts really have, in a set-up that is right without it. Half are bugs of other
kinds than the doctor's own examples, half are kinds that it knows, in other places. They are written as their authors
write them, as a subclass with a wrong method, a batch that was collated wrongly or an optimizer that was made too
early, and no setting or name says that something is wrong.

    for bug in BUGS:
        setup = bug.make(directory)
        with bug.plant(setup) as planted:
            ...                          # planted.model, planted.batch, planted.optimizer
"""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from test_methods_families import SIZES, WORDS_AND_MARKS
from tiny import CONFIG, rows, write_tokenizer

import minift
from minift import ops
from minift.data import Batch, Columns, Text
from minift.losses import cross_entropy
from minift.models import MODELS
from minift.models.architecture import initialize
from minift.models.word_vectors import WordVectorsConfig
from minift.optim import AdamW, decay_groups
from minift.tasks import TASKS
from minift.tasks.fill_mask import FillMask
from minift.tasks.instruction_tuning import InstructionTuning
from minift.tasks.multi_label import MultiLabelClassification
from minift.tasks.question_answering import QuestionAnswering
from minift.tasks.text_classification import TextClassification
from minift.tasks.text_generation import TextGeneration
from minift.tasks.text_regression import TextRegression
from minift.tasks.token_classification import IGNORED, TokenClassification
from minift.tensor import Tensor


class Setup(NamedTuple):
    """What a training step needs."""

    model: Any
    batch: Batch
    optimizer: AdamW


@dataclass(frozen=True)
class Bug:
    """One mistake, and the set-up that it is made in."""

    name: str
    description: str
    """What is wrong, in one sentence."""
    expected: str
    """What a right diagnosis says at the least: the kind of the mistake, and the place."""
    make: Callable[[Path], Setup]
    """Builds the set-up without the mistake, always the same; files go into the directory."""
    plant: Callable[[Setup], AbstractContextManager[Setup]]
    """Inside the block the set-up that it gives has the mistake; afterwards the clean one is as before."""


# ---- The clean set-ups ---------------------------------------------------------------------------

RATE = 1e-3
TEXTS: list[Text] = [text for text, _ in rows(8, seed=4)]


def new_model(task: str, family: str, directory: Path, labels: tuple[str, ...] | None = None) -> Any:
    """A tiny model with random weights, in training mode."""
    minift.manual_seed(3)
    architecture = MODELS[family]
    if family == "bert":
        config = CONFIG
    elif family == "word-vectors":
        config = WordVectorsConfig(vocab_size=WORDS_AND_MARKS, hidden_size=24, pooling="convolution")
    else:
        config = architecture.config(vocab_size=WORDS_AND_MARKS, **SIZES[family])
    model = TASKS[task](architecture, config, labels, write_tokenizer(directory / "vocabulary"))
    initialize(dict(model.named_parameters()), 0.1)
    return model


def set_up(model: Any, batch: Batch) -> Setup:
    return Setup(model, batch, AdamW(decay_groups(model), lr=RATE))


def classification(family: str, labels: tuple[str, ...]) -> Callable[[Path], Setup]:
    def make(directory: Path) -> Setup:
        model: TextClassification = new_model("text-classification", family, directory, labels)
        return set_up(model, model.pack(TEXTS, [index % len(labels) for index in range(len(TEXTS))]))

    return make


def regression(directory: Path) -> Setup:
    model: TextRegression = new_model("text-regression", "distilbert", directory)
    return set_up(model, model.pack(TEXTS, [-1.2, 0.7, 0.1, 1.5, -0.4, -1.0, 0.9, -0.6]))


def several_labels(directory: Path) -> Setup:
    labels = ("praise", "complaint", "food", "cinema")
    model: MultiLabelClassification = new_model("multi-label", "roberta", directory, labels)
    answers = ["1001", "0110", "1100", "0000", "0010", "1011", "0101", "0000"]
    indicators = [np.array(list(answer), np.float32) for answer in answers]
    return set_up(model, model.pack(TEXTS, indicators))


def answers_in_texts(directory: Path) -> Setup:
    model: QuestionAnswering = new_model("question-answering", "bert", directory)
    pairs = [
        ("was it good", "the book was dull and the film was fine"),
        ("was the meal poor", "a great film , but the meal was not good"),
        ("is the book dull", "it is a very good book"),
        ("what is great", "the film is bad , the book is great"),
    ]
    answers = ["fine", "not good", "very good", "the book"]
    spans = [
        ((text.index(answer), text.index(answer) + len(answer)),)
        for (_, text), answer in zip(pairs, answers, strict=True)
    ]
    return set_up(model, model.pack(pairs, spans))


def tagging(directory: Path) -> Setup:
    tags = ("O", "B-OPINION", "I-OPINION", "B-THING")
    model: TokenClassification = new_model("token-classification", "bert", directory, tags)
    sentences = [
        "the film was very good .",
        "a dull book",
        "it is not bad , but the meal is poor",
        "a great meal",
    ]
    answers = [[0, 3, 0, 1, 2, 0], [0, 1, 3], [0, 0, 1, 2, 0, 0, 0, 3, 0, 1], [0, 1, 3]]
    return set_up(model, model.pack([tuple(each.split()) for each in sentences], answers))


def filling(directory: Path) -> Setup:
    model: FillMask = new_model("fill-mask", "bert", directory)
    blocks = [np.array(model.tokenizer.pieces(str(text))) for text in TEXTS]
    return set_up(model, model.masked(blocks, np.random.default_rng(5)))


def generating(directory: Path) -> Setup:
    model: TextGeneration = new_model("text-generation", "gpt2", directory)
    texts = ["the film was very good .", "a dull book", "the meal is not bad .", "it was poor and dull ."]
    return set_up(model, model.pack([np.array(model.document(text)) for text in texts], range(len(texts))))


def instructing_with_lora(directory: Path) -> Setup:
    model: InstructionTuning = new_model("instruction-tuning", "llama", directory)
    model.instruction_template = "{instruction} . "
    pairs = {"is the film good": "it is very good", "was the meal poor": "not very poor , but dull"}
    path = directory / "instructions.jsonl"
    path.write_text("".join(json.dumps({"instruction": a, "output": b}) + "\n" for a, b in pairs.items()))
    minift.apply_method(model, "lora", rank=4, targets=("q_proj", "k_proj", "v_proj", "o_proj"))
    return set_up(model, next(model.batches(model.read(path, Columns()), len(pairs))))


# ---- How a mistake gets into a set-up ------------------------------------------------------------


def written_as(wrong: type) -> Callable[[Setup], AbstractContextManager[Setup]]:
    """The model as if its author had written this subclass of its class."""

    @contextmanager
    def plant(setup: Setup) -> Iterator[Setup]:
        right = type(setup.model)
        setup.model.__class__ = wrong
        try:
            yield setup
        finally:
            setup.model.__class__ = right

    return plant


def collated(wrongly: Callable[[Batch], Batch]) -> Callable[[Setup], AbstractContextManager[Setup]]:
    """The batch as another collate function makes it; the clean one is not touched."""

    @contextmanager
    def plant(setup: Setup) -> Iterator[Setup]:
        yield setup._replace(batch=wrongly(setup.batch))

    return plant


# ---- The mistakes --------------------------------------------------------------------------------


class EndsInSoftmax(TextClassification):
    def plain_answer(self, batch: Batch) -> Tensor:
        return ops.softmax(super().plain_answer(batch))


class EveryScoreAgainstEveryLabel(TextRegression):
    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return ((output - batch.labels) ** 2).mean()  # (B, 1) - (B,) is (B, B)


class OneLabelATextAtMost(MultiLabelClassification):
    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        log_probabilities = ops.softmax(output).log()  # (B, C)
        return -(log_probabilities * batch.labels).sum(axis=1).mean()


class WithoutTheMinus(QuestionAnswering):
    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        log_probabilities = ops.segment_log_softmax(output, batch.segments)  # (T, 2)
        right = batch.offsets[:-1, None] + batch.labels  # (B, 2)
        return log_probabilities.reshape(-1)[2 * right + [0, 1]].mean()


class ClassZeroIgnored(TextClassification):
    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return cross_entropy(output, batch.labels, ignore_index=0)


@contextmanager
def filters_in_a_plain_list(setup: Setup) -> Iterator[Setup]:
    model = setup.model
    registered = model.convolutions
    model.convolutions = list(registered)
    try:
        yield set_up(model, setup.batch)  # whose optimizer is given what model.parameters() lists
    finally:
        model.convolutions = registered


@contextmanager
def optimizer_before_lora(setup: Setup) -> Iterator[Setup]:
    there_before = [each for name, each in setup.model.named_parameters() if ".lora_" not in name]
    yield setup._replace(optimizer=AdamW(there_before, lr=RATE))


def tags_from_the_first_row(batch: Batch) -> Batch:
    assert batch.labels is not None
    return replace(batch, labels=np.append(batch.labels[1:], IGNORED))


def nothing_masked(batch: Batch) -> Batch:
    assert batch.labels is not None
    return replace(batch, ids=np.where(batch.labels == IGNORED, batch.ids, batch.labels))


def positions_run_on(batch: Batch) -> Batch:
    return replace(batch, positions=np.arange(batch.tokens))


BUGS = [
    Bug(
        "softmax twice",
        "The model ends in a softmax, and cross-entropy takes the softmax of these probabilities again.",
        "The outputs are probabilities already, not logits: the softmax at the end of the model (or a softmax applied "
        "twice) is to go.",
        classification("bert", ("bad", "mixed", "good")),
        written_as(EndsInSoftmax),
    ),
    Bug(
        "scores against all labels",
        "The squared error takes scores (B, 1) from labels (B,), which broadcasts to (B, B): each score is pulled "
        "towards every text's label, and so to the mean.",
        "The loss compares a text's score with the labels of other texts (a text's loss depends on its neighbours in "
        "the batch), by broadcasting (B, 1) against (B,) in the loss.",
        regression,
        written_as(EveryScoreAgainstEveryLabel),
    ),
    Bug(
        "filters in a plain list",
        "The convolutions stand in a Python list, so that parameters() does not know them: they are neither trained "
        "nor saved.",
        "Parameters that the model computes with, those of `convolutions`, are not among its parameters() and not in "
        "the optimizer; a ModuleList is to hold them.",
        classification("word-vectors", ("bad", "good")),
        filters_in_a_plain_list,
    ),
    Bug(
        "softmax for independent labels",
        "Labels of which several or none may apply are trained with a softmax over the labels, as if just one did.",
        "The loss of a multi-label task is a softmax cross-entropy (the same for logits moved by a constant, nothing "
        "learned from texts without a label); a sigmoid for each label belongs there.",
        several_labels,
        written_as(OneLabelATextAtMost),
    ),
    Bug(
        "likelihood without the minus",
        "The loss of question answering is the mean log-likelihood without its minus sign, so training makes the "
        "right answers less likely.",
        "The loss has the wrong sign: it is negative, and minimising it drives the right answers' probability down.",
        answers_in_texts,
        written_as(WithoutTheMinus),
    ),
    Bug(
        "tags one token early",
        "The special token in front was forgotten when tags were laid on tokens: [CLS] has the first word's tag, and "
        "every other word the next one's.",
        "The batch's labels are shifted by one token against the words: special tokens ([CLS]) carry labels, or the "
        "labelled rows are not the words' first pieces.",
        tagging,
        collated(tags_from_the_first_row),
    ),
    Bug(
        "class 0 ignored",
        "The loss is told ignore_index=0, meant for padding, so texts of class 0 count for nothing.",
        "Labels of the first class are ignored by the loss: its texts have no gradient, although they are labelled.",
        classification("qwen2", ("bad", "good")),
        written_as(ClassZeroIgnored),
    ),
    Bug(
        "nothing masked",
        "The masks were put into a copy of the ids: the model reads the very tokens that it is asked for.",
        "The answer leaks through the input: at the labelled tokens of the batch stand the labels themselves, and no "
        "mask.",
        filling,
        collated(nothing_masked),
    ),
    Bug(
        "optimizer before LoRA",
        "The optimizer was made before LoRA was applied: it holds the weights that are frozen since, and none of "
        "LoRA's, so nothing moves.",
        "LoRA's matrices (lora_A, lora_B), all that is trainable, are not in the optimizer, which is to be made after "
        "apply_method.",
        instructing_with_lora,
        optimizer_before_lora,
    ),
    Bug(
        "positions run on",
        "Positions count through the packed batch instead of beginning at 0 in every text, so a text's beginning has "
        "positions that it never has alone.",
        "The batch's positions do not begin again at each text (or: what the model says of a text depends on where in "
        "the batch it stands, by its positions).",
        generating,
        collated(positions_run_on),
    ),
]
