"""Forward and backward on a GPU as a CUDA graph: told to it once, then only repeated.

A pass of BERT-base is nearly a thousand launches. Python takes some twenty microseconds to set one out, and the GPU
often fewer to do it, so it waits. A graph is the list of a pass's launches: Python runs the pass once while CUDA writes
down what it is told, and from then on one call repeats all of it.

What is written down cannot change. These are the four things that do:

    the batch     has arrays of its own in each graph, into which every new batch is copied
    its size      has a graph of its own. So that there are few, a batch is filled up to one of sixteen sizes between
                  a power of two and the next, with tokens that belong to no text: they have no gradient
    dropout       counts its keys from a number on the GPU (`Generator.counting_from`)
    the memory    of all graphs is one pool, since only one runs at a time: the loss and the gradients of a pass
                  stand there until the next pass, and what is free in it is never given back

A pass that has to wait for the GPU, or to bring it numbers, cannot be written down: CuPy refuses, and such a pass is
run launch by launch, as on a CPU. So is every pass once a graph finds no room, and where CUDA_LAUNCH_BLOCKING=1 asks
for the name of the launch that went wrong: of a graph CUDA could only tell that it was the graph.
"""

import os
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from minift import random
from minift.data import Batch
from minift.history import Array
from minift.nn import Parameter
from minift.optim import grad_norm
from minift.tasks.task_model import TaskModel

SMALLEST_STEP = 64
"""Batches are filled up to a multiple of this many tokens, or of a sixteenth of the power of two below."""

MOST_GRAPHS = 64
"""So many passes are kept. One takes the GPU a few megabytes, and Python as long as a pass without a graph."""


def plain_pass(model: TaskModel, batch: Batch) -> Array:
    """Forward and backward, operation by operation; gradients are added to `.grad`. Returns the loss, without axes."""
    loss = model.loss(model(batch), batch)
    loss.backward()
    return loss.data


class Graph(NamedTuple):
    """A pass that has been written down, with the arrays that it reads and those that it leaves."""

    graph: Any
    batch: Batch
    calls_before: Array
    """One uint32: how many keys were taken before the pass."""
    calls: int
    """How many keys it takes."""
    loss: Array
    gradients: list[tuple[Parameter, Array]]

    def run(self, batch: Batch) -> Array:
        """The pass of another batch of the same sizes."""
        import cupy

        for name, array in _arrays(batch).items():
            getattr(self.batch, name).set(array)
        generator = random.default_generator
        self.calls_before.set(np.array([generator.calls & 0xFFFFFFFF], np.uint32))
        self.graph.launch(cupy.cuda.get_current_stream())
        generator.calls += self.calls
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return self.loss


class GraphedPass:
    """`plain_pass` by graphs, for one model on a GPU. What it leaves in `.grad` stands until it is called again.

    It reads of Python only the batch, the seed, where the parameters are, and which of them require a gradient; all
    else is as it was when the graph was made.
    """

    def __init__(self, model: TaskModel):
        self.model = model
        self.parameters = list(model.parameters())
        self.graphs: dict[tuple, Graph] = {}
        self.why_not: str | None = None
        """Why passes are not written down; None where they are."""
        if os.environ.get("CUDA_LAUNCH_BLOCKING") == "1":
            self.why_not = "CUDA_LAUNCH_BLOCKING is set"
        self._pool: Any = None
        self._stream: Any = None

    def __call__(self, batch: Batch) -> Array:
        """The loss of a batch, without axes, and its gradients, each in its parameter's `.grad`."""
        if self.why_not is None and all(each.grad is None for each in self.parameters):
            loss = self._run(batch) if self.graphs else self._run_first(batch)
            if self.why_not is None:
                return loss
            print(f"minift: steps run without a CUDA graph ({self.why_not})", file=sys.stderr)
            self.graphs.clear()
            self._pool = None  # the plain pass needs its memory
        return plain_pass(self.model, batch)

    def _run_first(self, batch: Batch) -> Array | None:
        """The first batch plainly, and then by a graph, which has to give the same.

        The plain pass also compiles the kernels and starts cuBLAS, much of which CUDA forbids in a capture.
        """
        calls = random.default_generator.calls
        expected = plain_pass(self.model, batch).item(), grad_norm(self.parameters)
        self._forget(calls)
        loss = self._run(batch)
        if loss is not None:
            found = loss.item(), grad_norm(self.parameters)
            if not np.allclose(found, expected, rtol=0.1, atol=1e-3, equal_nan=True):
                self.why_not = f"its loss and gradients' norm are {found}, without it {expected}"
                self._forget(calls)
        return loss

    def _run(self, batch: Batch) -> Array | None:
        """A batch by the graph for its sizes, which is made where there is none; None where it cannot be."""
        batch = _filled_up(batch)
        shapes = tuple((array.shape, array.dtype) for array in _arrays(batch).values())
        parameters = tuple((each.data.data.ptr, each.requires_grad) for each in self.parameters)
        key = shapes, parameters, random.default_generator.seed
        if key not in self.graphs:
            if len(self.graphs) == MOST_GRAPHS:
                del self.graphs[next(iter(self.graphs))]
            graph = self._capture(batch)
            if graph is None:
                return None
            self.graphs[key] = graph
        return self.graphs[key].run(batch)

    def bytes_held(self) -> int:
        """What all graphs together hold of the GPU's memory, beside CuPy's own pool."""
        return 0 if self._pool is None else self._pool.total_bytes()

    def _capture(self, batch: Batch) -> Graph | None:
        """The pass written down, but not run; None, and `why_not`, where it cannot be."""
        import cupy

        if self._pool is None:
            self._pool, self._stream = cupy.cuda.MemoryPool(_allocate), cupy.cuda.Stream(non_blocking=True)
        cupy.get_default_memory_pool().free_all_blocks()  # nothing of it helps the graphs' pool
        on_gpu = replace(batch, **{name: cupy.asarray(array) for name, array in _arrays(batch).items()})
        calls_before = cupy.zeros(1, np.uint32)
        generator, stream = random.default_generator, self._stream
        first_call = generator.calls
        try:
            with stream, cupy.cuda.using_allocator(self._pool.malloc), generator.counting_from(calls_before):
                stream.begin_capture()
                try:
                    loss = plain_pass(self.model, on_gpu)
                except Exception:
                    with suppress(Exception):  # that the capture came to nothing
                        stream.end_capture()
                    raise
                graph = stream.end_capture()
            gradients = [
                (each, self._still_there(each.grad)) for each in self.parameters if each.grad is not None
            ]
            calls = generator.calls - first_call
            return Graph(graph, on_gpu, calls_before, calls, self._still_there(loss), gradients)
        except Exception as error:  # if it was no fault of the capture, the plain pass raises it, too
            self.why_not = f"{type(error).__name__}: {error}"
            return None
        finally:
            self._forget(first_call)

    def _forget(self, calls: int) -> None:
        """As if the last pass had not been: no gradients, and only so many keys taken."""
        random.default_generator.calls = calls
        for parameter in self.parameters:
            parameter.grad = None

    def _still_there(self, array: Array) -> Array:
        """The same place in the pool, without keeping it from other graphs."""
        import cupy

        memory = cupy.cuda.UnownedMemory(array.data.ptr, array.nbytes, self._pool)
        place = cupy.cuda.MemoryPointer(memory, 0)
        return cupy.ndarray(array.shape, array.dtype, memptr=place, strides=array.strides)


def _allocate(size: int) -> Any:
    """Memory for the graphs' pool. MemoryError where the GPU has no more.

    CuPy's own error for that would have the pool give back what is free in it, to try again. But graphs that were
    written down before run in there.
    """
    import cupy

    try:
        return cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise MemoryError(f"{size:,} bytes more for a graph: {error}") from error


def _arrays(batch: Batch) -> dict[str, Array]:
    """What a pass reads of a batch, by the names of its fields."""
    arrays = {name: getattr(batch, name) for name in ("ids", "token_types", "positions", "offsets")}
    return arrays if batch.labels is None else {**arrays, "labels": batch.labels}


def _filled_up(batch: Batch) -> Batch:
    """The batch with tokens behind its last text, up to a size that others have, too."""
    tokens = batch.tokens
    step = max(SMALLEST_STEP, 2 ** (tokens - 1).bit_length() // 32)
    missing = -tokens % step

    def filled(array: np.ndarray, value: int = 0) -> np.ndarray:
        return np.concatenate([array, np.full(missing, value, array.dtype)])

    labels = batch.labels
    if labels is not None and len(labels) == tokens:  # one for each token
        labels = filled(labels, -100)
    return replace(
        batch,
        ids=filled(batch.ids),
        token_types=filled(batch.token_types),
        positions=filled(batch.positions),
        labels=labels,
    )
