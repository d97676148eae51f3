"""The textbook's picture of fine-tuning, drawn from a measured backward pass.

Text goes up on the left through the pre-trained layers and the head to the loss; the gradient comes down on the right,
and every band is as wide as the gradient there is long. Below the lowest trained part there is none.

    ┌────────────┐
    │    loss    │
    └─▲───────█──┘       █  the gradient, its width the norm that was measured
    ┌─┴───────█──┐
    │    head    ├██     the arms: the gradients of the weights
    └─▲───────█──┘
    ┌─┴──────────┐
    │   frozen   │       no gradient is computed here
    └────────────┘
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

BOX_LEFT, BOX_WIDTH, BOX_HEIGHT, GAP = 120, 190, 34, 26
FORWARD_X, BAND_X = BOX_LEFT + 42, BOX_LEFT + 132
WIDTH, WIDEST = 520, 44
"""In the picture's own units, which the page scales; the widest arm still leaves room for its neighbours' numbers."""


@dataclass(frozen=True)
class Stage:
    """One part of the model, as high as a reader wants to see it: the embeddings, a layer, the head, the loss."""

    name: str
    module: str
    """The path of its module, such as bert.encoder.layer.3."""
    frozen: bool
    """Whether none of its weights is trained."""
    is_new: bool
    """Whether it is the task's own rather than pre-trained."""
    weights_norm: float
    """The norm of the gradient of all its weights together."""
    outgoing_norm: float
    """The norm of the gradient that it sends to the part below it; 0 where none is computed."""


def draw(stages: Sequence[Stage], caption: str) -> str:
    """An SVG of the stages, from the lowest (the embeddings) to the highest (the loss).

    Every width is proportional to its norm, in one scale for bands and arms.
    """
    largest = max([1e-30, *(norm for each in stages for norm in (each.weights_norm, each.outgoing_norm))])
    height = len(stages) * (BOX_HEIGHT + GAP) + GAP + 18
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" '
        f'font-size="13" role="img" aria-label="{escape(caption)}">',
        '<defs><pattern id="frozen" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">',
        f'<line y2="7" stroke="{_colour("frozen")}" stroke-width="2" opacity=".5"/></pattern></defs>',
    ]
    for index, stage in enumerate(stages):
        top = _top(index, len(stages))
        parts.append(
            f'<g data-stage="{index}" tabindex="0" role="button" aria-label="{escape(_in_words(stage))}">'
        )
        parts.append(f"<title>{escape(_in_words(stage))}</title>")
        parts += _box(stage, top)
        parts += _arm(stage, top, largest)
        parts.append("</g>")
        parts += _forward_arrow(top)
        if index > 0:
            parts += _band(stage.outgoing_norm, top + BOX_HEIGHT, largest)
    parts += _groups(stages)
    below = _top(0, len(stages)) + BOX_HEIGHT
    parts.append(_text(FORWARD_X, below + GAP + 14, "the text", "middle", "soft"))
    parts.append("</svg>")
    return "\n".join(parts)


def _top(index: int, count: int) -> float:
    """The y of the upper edge of a stage's box; the lowest stage stands at the bottom."""
    return 8 + (count - 1 - index) * (BOX_HEIGHT + GAP)


def _box(stage: Stage, top: float) -> list[str]:
    box = f'x="{BOX_LEFT}" y="{top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"'
    shown = [
        f'<rect class="box" {box} fill="{_colour("card")}" stroke="{_colour("line")}" stroke-width="1.5"/>'
    ]
    if stage.frozen:
        shown.append(f'<rect {box} fill="url(#frozen)"/>')
    shown.append(_text(BOX_LEFT + BOX_WIDTH / 2, top + 22, stage.name, "middle", "ink"))
    return shown


def _arm(stage: Stage, top: float, largest: float) -> list[str]:
    """The gradient of the stage's weights, leaving to the right."""
    if stage.weights_norm == 0:
        return []
    width = _width(stage.weights_norm, largest)
    left, middle = BOX_LEFT + BOX_WIDTH, top + BOX_HEIGHT / 2
    neck, head = left + 40, width / 2 + 4
    points = [
        (left, middle - width / 2), (neck, middle - width / 2), (neck, middle - head), (neck + head, middle),
        (neck, middle + head), (neck, middle + width / 2), (left, middle + width / 2),
    ]  # fmt: skip
    return [
        f'<polygon points="{_points(points)}" fill="{_colour("gradient")}" opacity=".8" '
        f'data-norm="{stage.weights_norm!r}"/>',
        _text(neck + head + 6, middle + 4, _number(stage.weights_norm), "start", "gradient"),
    ]


def _band(norm: float, top: float, largest: float) -> list[str]:
    """The gradient between two stages, going down; nothing where none is computed."""
    if norm == 0:
        return []
    width, bottom = _width(norm, largest), top + GAP
    left, right, neck = BAND_X - width / 2, BAND_X + width / 2, bottom - 8
    points = [
        (left, top), (right, top), (right, neck), (right + 4, neck), (BAND_X, bottom), (left - 4, neck), (left, neck),
    ]  # fmt: skip
    return [
        f'<polygon points="{_points(points)}" fill="{_colour("gradient")}" data-norm="{norm!r}"/>',
        _text(BAND_X + width / 2 + 10, top + GAP / 2 + 4, _number(norm), "start", "gradient"),
    ]


def _forward_arrow(top: float) -> list[str]:
    bottom = top + BOX_HEIGHT
    return [
        f'<path d="M{FORWARD_X} {bottom + GAP}V{bottom + 8}" stroke="{_colour("forward")}" stroke-width="3"/>',
        f'<path d="M{FORWARD_X - 6} {bottom + 9}h12l-6 -9z" fill="{_colour("forward")}"/>',
    ]


def _groups(stages: Sequence[Stage]) -> list[str]:
    """Braces on the left: what is frozen, what is pre-trained, what is new."""
    kinds = [_kind(stage) for stage in stages]
    shown = []
    start = 0
    for index in range(1, len(kinds) + 1):
        if index < len(kinds) and kinds[index] == kinds[start]:
            continue
        upper, lower = _top(index - 1, len(stages)) + 3, _top(start, len(stages)) + BOX_HEIGHT - 3
        x = BOX_LEFT - 10
        shown.append(f'<path d="M{x} {upper}h-6V{lower}h6" fill="none" stroke="{_colour("soft")}"/>')
        for line, words in enumerate(kinds[start]):
            y = (upper + lower) / 2 + 4 + 15 * (line - (len(kinds[start]) - 1) / 2)
            shown.append(_text(x - 12, y, words, "end", "soft"))
        start = index
    return shown


def _kind(stage: Stage) -> tuple[str, ...]:
    if not stage.module:
        return ("the task's", "labels")
    if stage.is_new:
        return ("task head",)
    return ("pre-trained,", "frozen") if stage.frozen else ("pre-trained,", "trained on")


def _in_words(stage: Stage) -> str:
    if stage.frozen and stage.module:
        return f"{stage.name}: frozen"
    weights, outgoing = _number(stage.weights_norm), _number(stage.outgoing_norm)
    return f"{stage.name}: the gradient of its weights is {weights} long, what it sends on {outgoing}"


def _width(norm: float, largest: float) -> float:
    return WIDEST * norm / largest


def _number(value: float) -> str:
    return f"{value:.3g}"


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in points)


def _text(x: float, y: float, words: str, anchor: str, colour: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{_colour(colour)}">{escape(words)}</text>'


_FALLBACKS = {
    "ink": "#1d2126", "soft": "#5d6670", "card": "#ffffff", "line": "#b9b4a8",
    "forward": "#2f6fab", "gradient": "#c8442c", "frozen": "#9aa7b4",
}  # fmt: skip


def _colour(name: str) -> str:
    """A colour of the page's theme; alone, without the page, the light one."""
    return f"var(--{name}, {_FALLBACKS[name]})"
