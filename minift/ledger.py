"""The ledger: each `.grad`, itemised by where it came from.

    ledger = minift.Ledger(model)
    for texts, labels in micro_batches:
        ledger.add(minift.cross_entropy(model(texts), labels).backward_steps())
    print(ledger.table("bert.embeddings.word_embeddings.weight"))

A parameter's gradient is a sum: over the places where it is used (tied embeddings are used at both ends of a model),
and over the passes since `.grad` was last forgotten. An entry is one term of this sum. `ledger.difference(name)` says
how far the entries are from adding up to `.grad`.
"""

from collections.abc import Iterable
from typing import NamedTuple

from minift_kernels.arrays import array_namespace

from minift.history import Leaf, Node, Step
from minift.nn import Module
from minift.recording import Array, Summary, Value, summary_of
from minift.tensor import Tensor
from minift.trace import names_of_parameters


class Entry(NamedTuple):
    """What one use of a parameter in one pass added to its `.grad`."""

    batch: str
    """The pass it came from, such as `micro-batch 2`."""
    number: int
    """The number of the step in its pass."""
    operation: str
    module: str
    """The module that used the parameter."""
    name: str
    """As which of the operation's inputs: weight, bias."""
    line: str
    """The source line that called the operation."""
    gradient: Value
    """What was added, or a summary of it."""

    @property
    def norm(self) -> float:
        """How large: the square root of the sum of squares."""
        return summary_of(self.gradient).norm


class Ledger:
    """The entries of every leaf that got a gradient: `ledger["classifier.weight"]` is a list of `Entry`.

    What stands in the model's `.grad` when the ledger is made is entered as `before`.
    """

    def __init__(self, model: Module):
        self.entries: dict[str, list[Entry]] = {}
        self.leaves: dict[str, Leaf] = {}
        self.batches = 0
        self._names = names_of_parameters(model)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                self._enter(parameter, Entry("before", 0, "", "", name, "", parameter.grad))

    def add(self, steps: Iterable[Step], batch: str | None = None) -> None:
        """Enter a pass: `loss.backward_steps()`, which runs it, or a trace that ran it.

        It is called `batch`, or `micro-batch N` by its number.
        """
        self.batches += 1
        batch = batch or f"micro-batch {self.batches}"
        for number, step in enumerate(steps):
            for name, parent, contribution in zip(step.names, step.parents, step.contributions, strict=True):
                if parent is None or contribution is None or isinstance(parent, Node):
                    continue
                entry = Entry(batch, number, step.operation, step.module, name, step.line, contribution)
                self._enter(parent, entry)

    def _enter(self, leaf: Leaf, entry: Entry) -> None:
        name = self._names.setdefault(id(leaf), f"tensor {len(self._names)}")
        self.leaves[name] = leaf
        self.entries.setdefault(name, []).append(entry)

    def __getitem__(self, name: str) -> list[Entry]:
        return self.entries[name]

    def total(self, name: str) -> Array:
        """The sum of the entries of a leaf. Raises TypeError where they are summaries, which do not add up."""
        gradients: list[Array] = [entry.gradient for entry in self.entries[name]]
        if any(isinstance(gradient, Summary) for gradient in gradients):
            raise TypeError(f"{name}: summaries cannot be added up; trace with keep='arrays'")
        return sum(gradients[1:], gradients[0])

    def difference(self, name: str) -> float:
        """The largest difference between the sum of the entries and `.grad`, relative to the largest of `.grad`.

        Take it before `.grad` is clipped or forgotten. Raises TypeError where the entries are summaries.
        """
        leaf = self.leaves[name]
        assert isinstance(leaf, Tensor)
        xp = array_namespace(self.entries[name][0].gradient)
        grad = xp.zeros(leaf.shape) if leaf.grad is None else leaf.grad
        largest = float(xp.abs(grad).max(initial=0.0))
        return float(xp.abs(self.total(name) - grad).max(initial=0.0)) / (largest or 1.0)

    def table(self, name: str) -> str:
        """The entries of a leaf as lines of text: norm, pass, and the use."""
        lines = [f"{name}: {len(self.entries[name])} entries"]
        for entry in self.entries[name]:
            use = f"{entry.operation}({entry.name})" if entry.operation else "in .grad already"
            lines.append(f"  norm {entry.norm:10.3e}  {entry.batch:14}  {use:20} {entry.module}")
        return "\n".join(lines)
