"""A trace: a whole backward pass, kept so that one can go through it back and forth.

    with minift.recording():
        loss = minift.cross_entropy(model(text), label)
    trace = minift.trace(loss, model)
    trace[40].module, trace[40].gradient
    trace.goes_to(40), trace.comes_from(40)

It is `loss.backward()`, with the same gradients to the last bit, and keeps each `Step`. Where the forward pass was
recorded as summaries, the gradients are kept as summaries, too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import overload

from minift.history import Node, Step
from minift.nn import Module
from minift.recording import Array, Keep, Summary
from minift.tensor import Tensor


class Trace(Sequence[Step]):
    """The steps of a backward pass in their order: `trace[0]` is the loss's own.

    Attributes: `loss` its value, `steps`, `names` of the leaves by identity (`trace.name_of(leaf)` looks there).
    """

    def __init__(self, loss: float, steps: list[Step], model: Module | None):
        self.loss = loss
        self.steps = steps
        self.names = names_of_parameters(model)
        self._number_of = {step.node: number for number, step in enumerate(steps)}
        self._senders: dict[Node, list[int]] = {}
        for number, step in enumerate(steps):
            for parent, contribution in zip(step.parents, step.contributions, strict=True):
                if isinstance(parent, Node) and contribution is not None:
                    self._senders.setdefault(parent, []).append(number)

    def __len__(self) -> int:
        return len(self.steps)

    @overload
    def __getitem__(self, number: int) -> Step: ...
    @overload
    def __getitem__(self, number: slice) -> list[Step]: ...
    def __getitem__(self, number: int | slice) -> Step | list[Step]:
        return self.steps[number]

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def goes_to(self, number: int) -> tuple[int | str | None, ...]:
        """For each input of a step where its contribution went: a step's number, a leaf's name, None for nowhere."""
        step = self.steps[number]
        return tuple(
            None if parent is None or contribution is None
            else self._number_of[parent] if isinstance(parent, Node)
            else self.name_of(parent)
            for parent, contribution in zip(step.parents, step.contributions, strict=True)
        )  # fmt: skip

    def comes_from(self, number: int) -> list[int]:
        """The numbers of the steps whose contributions add up to this step's gradient; none for the loss's own."""
        return self._senders.get(self.steps[number].node, [])

    def name_of(self, leaf: object) -> str:
        """The parameter's path in the model; for any other leaf its shape."""
        return self.names.get(id(leaf), f"a tensor of shape {getattr(leaf, 'shape', ())}")


def trace(loss: Tensor, model: Module | None = None, keep: Keep | None = None) -> Trace:
    """Run `loss.backward()` and keep every step.

    `model` gives the parameters their names. `keep` is "arrays" or "summaries"; without it, what the recording of the
    forward pass kept, and "arrays" where there was none. Raises RuntimeError as `loss.backward()` does, and
    ValueError for another `keep`.
    """
    if keep not in (None, "arrays", "summaries"):
        raise ValueError(f"a trace keeps 'arrays' or 'summaries', not {keep!r}")
    recorded = None if loss.node is None else loss.node.recorded
    keep = keep or (recorded.keep if recorded is not None else "arrays")
    value = loss.item()
    steps = loss.backward_steps()
    return Trace(value, list(steps) if keep == "arrays" else list(_summarised(steps)), model)


def names_of_parameters(model: Module | None) -> dict[int, str]:
    """The path of each parameter by the parameter's identity; a shared one under its first."""
    return {} if model is None else {id(parameter): name for name, parameter in model.named_parameters()}


def _summarised(steps: Iterator[Step]) -> Iterator[Step]:
    """Each step with summaries for arrays. No array is looked at twice: not on arrival, nor for a second parent."""
    sent: dict[Node, tuple[Array, Summary]] = {}
    for step in steps:
        array, summary = sent.pop(step.node, (None, None))
        gradient = summary if array is step.gradient and summary is not None else Summary.of(step.gradient)
        seen: dict[int, Summary] = {}
        for parent, contribution in zip(step.parents, step.contributions, strict=True):
            if contribution is not None:
                if id(contribution) not in seen:
                    seen[id(contribution)] = Summary.of(contribution)
                if isinstance(parent, Node):
                    sent[parent] = contribution, seen[id(contribution)]
        contributions = tuple(None if c is None else seen[id(c)] for c in step.contributions)
        yield replace(step, gradient=gradient, contributions=contributions)
