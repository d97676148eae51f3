"""A case: the model, the batch and the optimizer that the doctor sees, and the ways to look at them."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from minift import ops, random
from minift.data import Batch
from minift.diagnosis.untouched import untouched
from minift.models.attention import SelfAttention
from minift.nn import Dropout, Module, Parameter, evaluating
from minift.optim import AdamW
from minift.tasks.task_model import TaskModel
from minift.tensor import Tensor

FEW_TEXTS, FEW_TOKENS = 6, 256
"""How much of the batch is looked at where a part will do."""


@dataclass
class Heard:
    """One call of a module, or of an operation, as it happened."""

    path: str
    module: Module | None
    """None for an operation, whose name is then the path."""
    inputs: tuple[Any, ...]
    """What it was given: arrays for tensors."""
    output: Any = None
    inside: int = 0
    """How many of the calls heard just before this one happened inside it."""


class Case:
    """What is examined. The checks only read `model`, `batch` and `optimizer`, or change them in `untouched`."""

    def __init__(self, model: TaskModel, batch: Batch, optimizer: AdamW):
        self.model = model
        self.batch = batch
        self.optimizer = optimizer
        self.modes = {path: module.training for path, module in model.named_modules()}
        self.parameters: dict[str, Parameter] = dict(model.named_parameters())
        self.trained = {path: each for path, each in self.parameters.items() if each.requires_grad}
        self.held = {id(each) for group in optimizer.param_groups for each in group["params"]}
        self.causal = "CausalLM" in model.architecture.heads
        """Whether the family is one whose tokens may not see those behind them."""
        self.per_text = model.head == "SequenceClassification"
        """Whether the model answers once for each text; else for each token, or each that has a label."""
        self.per_token = (
            not self.per_text and batch.labels is not None and batch.labels.shape == batch.ids.shape
        )
        self._kept: dict[str, Any] = {}
        self.few = self.texts(self._short_ones())

    @property
    def labels(self) -> np.ndarray:
        """The batch's labels."""
        assert self.batch.labels is not None
        return self.batch.labels

    @property
    def steps(self) -> int:
        """How many steps the optimizer has taken."""
        return max((moments.step for moments in self.optimizer.state.values()), default=0)

    def kept(self, name: str, make: Callable[["Case"], Any]) -> Any:
        """What `make` makes of the case, made once."""
        if name not in self._kept:
            self._kept[name] = make(self)
        return self._kept[name]

    # ---- The batch ----

    def texts(self, numbers: Sequence[int] | np.ndarray) -> Batch:
        """A batch of some texts of the batch, in this order."""
        return select(self.batch, numbers, self.per_token)

    def _short_ones(self) -> list[int]:
        """The shortest texts that have a label."""
        lengths = np.diff(self.batch.offsets)
        chosen: list[int] = []
        for text in np.argsort(lengths, kind="stable").tolist():
            if self.texts([text]).targets == 0:
                continue
            if len(chosen) >= 2 and sum(lengths[chosen]) + lengths[text] > FEW_TOKENS:
                break
            chosen.append(text)
        if len(chosen) > FEW_TEXTS:  # spread over all lengths, the shortest among them
            places = np.linspace(0, len(chosen) - 1, FEW_TEXTS).round().astype(int)
            chosen = [chosen[place] for place in places]
        return sorted(chosen) or [0]

    def texts_of_few(self, count: int) -> Batch:
        """The first of the few texts, as many as there are up to `count`."""
        return select(self.few, range(min(count, len(self.few))), self.per_token)

    # ---- Ways to run the model ----

    def evaluating(self):
        """In evaluation, and without a history; then as it was."""
        return evaluating(self.model)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """In training, every dropout's probability at 0, so that nothing is left to chance."""
        silenced: list[tuple[Any, str, float]] = []
        for _, module in self.model.named_modules():
            for kind, name in ((Dropout, "p"), (SelfAttention, "dropout")):
                if isinstance(module, kind):
                    silenced.append((module, name, getattr(module, name)))
                    setattr(module, name, 0.0)
        self.model.train()
        try:
            yield
        finally:
            for module, name, value in silenced:
                setattr(module, name, value)

    @contextmanager
    def same_chance(self) -> Iterator[None]:
        """Whatever is drawn inside is drawn again by the next block."""
        calls = random.default_generator.calls
        try:
            yield
        finally:
            random.default_generator.calls = calls

    def untouched(self):
        """See `untouched`."""
        return untouched(self.model, self.batch, self.optimizer)

    def loss(self, batch: Batch) -> Tensor:
        """As the training loop computes it."""
        return self.model.loss(self.model(batch), batch)

    def answers(self, batch: Batch) -> np.ndarray:
        """What the model says of a batch in evaluation."""
        with self.evaluating():
            return np.array(self.model(batch).data)

    def answers_of_each(self, batch: Batch, answers: np.ndarray) -> list[np.ndarray]:
        """The answers' rows text by text, whether they are of texts, of tokens or of tokens with a label."""
        if self.per_text:
            return list(answers[:, None])
        rows = np.arange(batch.tokens)
        if len(answers) != batch.tokens and batch.labels is not None:
            rows = np.flatnonzero(batch.labels != -100)
        places = np.searchsorted(rows, batch.offsets)
        return [answers[start:end] for start, end in itertools.pairwise(places)]

    @contextmanager
    def listening(self) -> Iterator[list[Heard]]:
        """Inside this block every call of a module, of ops.rotary and of ops.embedding is noted when it ends."""
        heard: list[Heard] = []

        def listen(path, module, function):
            def heard_function(*inputs, **options):
                begun = len(heard)
                output = function(*inputs, **options)
                given = tuple(map(_values, (*inputs, *options.values())))
                heard.append(Heard(path, module, given, _values(output), len(heard) - begun))
                return output

            return heard_function

        call = Module.__call__

        def heard_call(module, *inputs, **options):
            return listen(module.path, module, lambda *i, **o: call(module, *i, **o))(*inputs, **options)

        with ExitStack() as stack:
            for owner, name, heard_one in [
                (Module, "__call__", heard_call),
                (ops, "rotary", listen("rotary", None, ops.rotary)),
                (ops, "embedding", listen("embedding", None, ops.embedding)),
            ]:
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, heard_one)
            yield heard


def _values(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) and not isinstance(value, Parameter) else value


def select(batch: Batch, numbers: Sequence[int] | np.ndarray, per_token: bool) -> Batch:
    """A plain batch of the texts with these numbers, in this order; one may come twice."""
    rows = np.concatenate([np.arange(batch.offsets[text], batch.offsets[text + 1]) for text in numbers])
    lengths = np.diff(batch.offsets)[list(numbers)]
    labels = batch.labels
    if labels is not None:
        labels = labels[rows] if per_token else labels[list(numbers)]
    return Batch(
        ids=batch.ids[rows],
        token_types=batch.token_types[rows],
        positions=batch.positions[rows],
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        labels=labels,
    )


def differ(found: Any, expected: Any, tolerance: float = 1e-3) -> bool:
    """Whether two arrays are further apart than float32's rounding explains, or of different shapes."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape:
        return True
    if found.size == 0:
        return False
    return not np.abs(found - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-6)
