"""One HTML file that replays a backward pass: the picture, every step, the tokens' saliency, each head's attention.

The page carries its numbers, its style and its script, and asks nobody for anything: it opens from a disk, a mail or a
course's site, and will still open in ten years. `page.py` makes it of the parts in `pages/`.
"""

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from minift_kernels.summary import LOWEST

from minift import checkpoint, picture
from minift.errors import InputError
from minift.history import Array, Node, Step
from minift.page import rounded, shortened, write_page
from minift.picture import Stage
from minift.recording import Summary, summary_of
from minift.tasks.task_model import TaskModel
from minift.tensor import Tensor
from minift.text_trace import trace_text
from minift.trace import Trace

ATTENTION_BYTES = 1_200_000
"""What the attention of all heads may take; a longer text keeps the strongest of each row."""


def write_trace(model: TaskModel, text: str, label: str, path: Path, name: str) -> None:
    """Write the page, or for a path that ends in .svg the picture alone, of one backward pass on one labelled text.

    `name` is what the page calls the model. The pass is that of a training step without dropout. Every `.grad` is
    replaced. Raises InputError as `trace_text` does, and for another ending and what cannot be written.
    """
    if path.suffix not in (".html", ".svg"):
        raise InputError(
            f"{path}: unknown ending {path.suffix!r}; the endings are .html (the page) and .svg (the picture)"
        )
    trace, batch = trace_text(model, text, label, "summaries")
    stages = stages_of(model, trace)
    caption = f"{name} on “{shortened(text)}”, labelled {label}: loss {trace.loss:.4f}"
    drawn = picture.draw(stages, caption)
    if path.suffix == ".svg":
        checkpoint.write_text(path, drawn + "\n")
        return
    saliency, attention = look_closer(model, text, label)
    kept = keys_kept(attention, batch.tokens)
    data = {
        "stages": [
            {"name": each.name, "frozen": each.frozen, "norm": rounded(each.weights_norm)} for each in stages
        ],
        "steps": [step_json(model, trace, step) for step in trace],
        "tokens": [
            {"text": token, "saliency": value}
            for token, value in zip(
                model.tokenizer.tokens(batch.ids.tolist()), saliency.tolist(), strict=True
            )
        ],
        "attention": [
            {"name": attention_name(index, heads), "heads": [encoded(head, kept) for head in heads]}
            for index, heads in enumerate(attention)
        ],
        "attention_kept": kept,
    }
    note = (
        "" if kept == batch.tokens else f"Of each row only the {kept} strongest of {batch.tokens} are kept. "
    )
    write_page(path, "trace", caption, facts(model, text, label), data, picture=drawn, attention_note=note)


# ----------------------------------------------------------------------------------------------------------------
# The parts of the model


def stages_of(model: TaskModel, steps: Iterable[Step]) -> list[Stage]:
    """The model's parts from the embeddings to the loss, with the norms that the steps measured."""
    arriving: dict[
        int, float
    ] = {}  # at the output of each part: its newest operation comes first in a backward pass
    for step in steps:
        arriving.setdefault(stage_index(model, step.module), summary_of(step.gradient).norm)
    stages = []
    modules = [model.body.foundation[0].path, *(layer.path for layer in model.body.layers), "head"]
    for index, (module, (name, part)) in enumerate(zip(modules, model.parts().items(), strict=True)):
        is_new = name == "head"
        stages.append(_stage(name, module, list(part.values()), is_new, arriving.get(index - 1, 0.0)))
    stages.append(Stage("loss", "", False, True, 0.0, arriving.get(len(modules) - 1, 0.0)))
    return stages


def _stage(name: str, module: str, parameters: Sequence[Tensor], is_new: bool, outgoing: float) -> Stage:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = sum(float(np.square(gradient, dtype=np.float64).sum()) for gradient in gradients) ** 0.5
    return Stage(name, module, not any(each.requires_grad for each in parameters), is_new, norm, outgoing)


def stage_index(model: TaskModel, module: str) -> int:
    """The number of the stage that a module belongs to."""
    body = model.body
    for index, modules in enumerate([body.foundation, *([layer] for layer in body.layers)]):
        if any(module == each.path or module.startswith(f"{each.path}.") for each in modules):
            return index
    return len(body.layers) + (1 if module else 2)


# ----------------------------------------------------------------------------------------------------------------
# What the page is told


def step_json(model: TaskModel, trace: Trace, step: Step) -> dict[str, Any]:
    """One step as the page shows it."""
    stage = stage_index(model, step.module)
    return {
        "operation": step.operation,
        "formula": step.formula,
        "module": step.module,
        "local": local_path(model, step.module),
        "line": step.line.rsplit("/", 1)[-1],
        "shape": list(step.node.shape),
        "dtype": str(step.node.dtype),
        "bytes": step.bytes_held,
        "stage": stage,
        "gradient": summary_json(summary_of(step.gradient)),
        "contributions": [
            {
                "name": name,
                "to": origin(parent, trace),
                **({} if contribution is None else {"norm": rounded(summary_of(contribution).norm)}),
            }
            for name, parent, contribution in zip(step.names, step.parents, step.contributions, strict=True)
        ],
    }


def origin(parent: Any, trace: Trace) -> str:
    """Where an input came from: an operation and its module, or a leaf's name."""
    if isinstance(parent, Node):
        return f"{parent.operation} in {parent.module}" if parent.module else parent.operation
    return "a constant" if parent is None else trace.name_of(parent)


def local_path(model: TaskModel, module: str) -> str:
    """A module's path without the layer's own."""
    for layer in model.body.layers:
        if module.startswith(f"{layer.path}."):
            return module.removeprefix(f"{layer.path}.")
    return module


def summary_json(summary: Summary) -> dict[str, Any]:
    """A summary as the page reads it, the histogram without its empty ends."""
    filled = [index for index, count in enumerate(summary.histogram) if count] or [0]
    first, last = filled[0], filled[-1]
    return {
        "norm": rounded(summary.norm),
        "mean": rounded(summary.mean),
        "largest": rounded(summary.largest),
        "zeros": summary.zeros,
        "nan": summary.nan,
        "infinite": summary.infinite,
        "histogram": {
            "counts": summary.histogram[first : last + 1],
            "low": 2.0 ** (LOWEST + first),
            "high": 2.0 ** (LOWEST + last + 1),
        },
    }


def facts(model: TaskModel, text: str, label: str) -> str:
    """A line on the model and what it says of the text."""
    total = sum(parameter.data.size for parameter in model.parameters())
    trained = sum(parameter.data.size for parameter in model.parameters() if parameter.requires_grad)
    [prediction] = model.predict([text])
    said = ", ".join(f"{name} {share:.3f}" for name, share in prediction.probabilities.items())
    return f"{total:,} parameters, {trained:,} of them trained. The model says: {said}. The label is {label}."


# ----------------------------------------------------------------------------------------------------------------
# Saliency and attention


def look_closer(model: TaskModel, text: str, label: str) -> tuple[Array, list[Array]]:
    """Each token's saliency, (T,), and the attention of each layer, (N, T, T); in the last one (N, 1, T) where only the
    first token is read.

    They need a gradient at the embeddings and a record of every layer, frozen or not; so this is a pass of its own, in
    which everything is trained. Saliency is gradient times input (Shrikumar et al. 2016), summed over the vector.
    """
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad = True
    try:
        trace, _ = trace_text(model, text, label)
    finally:
        for parameter in frozen:
            parameter.requires_grad, parameter.grad = False, None
    layers = [attention_of(step) for step in trace if step.operation == "attention"]
    # The embeddings' output is what their newest operation made, which comes first in a backward pass.
    embeddings = next(step for step in trace if stage_index(model, step.module) == 0)
    gradient, output = embeddings.gradient, embeddings.output
    assert not isinstance(gradient, Summary) and not isinstance(output, Summary) and output is not None
    return (gradient * output).sum(axis=1), layers[::-1]


def attention_of(step: Step) -> Array:
    """The probabilities (N, T, T) of an attention step of one text: softmax(q k^T / sqrt(D)), row looks at column."""
    assert step.recorded is not None and step.recorded.call is not None
    arguments = step.recorded.call.arguments
    q, k, heads = arguments["q"].data, arguments["k"].data, arguments["heads"]
    size = q.shape[1] // heads
    q_heads = q.reshape(len(q), heads, size).transpose(1, 0, 2)  # (N, T, D)
    k_heads = k.reshape(len(k), -1, size).transpose(1, 2, 0)  # (M, D, T)
    scores = q_heads @ np.repeat(k_heads, heads // len(k_heads), axis=0) / size**0.5
    if arguments["causal"]:
        scores = np.where(np.tri(*scores.shape[1:], k=len(k) - len(q), dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def attention_name(layer: int, attention: Array) -> str:
    """What the page calls the layer. Where only the first token of a text is read, it alone looks in the last layer."""
    _, looking, looked_at = attention.shape
    return f"layer {layer}" if looking == looked_at else f"layer {layer} (only the first token looks)"


def keys_kept(attention: list[Array], tokens: int) -> int:
    """How many of each row's probabilities the page carries: all, or the strongest that fit."""
    heads = sum(map(len, attention))
    if heads * tokens * tokens <= ATTENTION_BYTES:
        return tokens
    return max(1, ATTENTION_BYTES // (3 * heads * tokens))


def encoded(probabilities: Array, kept: int) -> str:
    """One head's probabilities, (T, T) or (1, T), in base64.

    A byte each, or, of the strongest in each row, two bytes of column and a byte.
    """
    values = np.round(255 * probabilities).astype(np.uint8)
    if kept < values.shape[1]:
        columns = np.argsort(-probabilities, axis=1, kind="stable")[:, :kept]
        chosen = np.take_along_axis(values, columns, axis=1)
        values = np.stack([columns & 255, columns >> 8, chosen], axis=-1).astype(np.uint8)
    return base64.b64encode(values.tobytes()).decode()
