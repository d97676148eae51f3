"""The shell of every page that minift writes: one HTML file that asks nobody for anything.

A page is made of parts in `pages/`: `page.css` and `page.js`, which all share, and its own .html, .css and .js.
"""

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from minift import checkpoint

PAGES = Path(__file__).parent / "pages"


def page(
    name: str, title: str, facts: str, data: dict[str, Any], scripts: Sequence[str] = (), **markup: str
) -> str:
    """The HTML of the page `name`, whole: `data` goes to its script, `markup` as it is into its template.

    `scripts` are the names of further scripts in `pages/`.
    """
    parts = {each.name: each.read_text(encoding="utf-8") for each in PAGES.iterdir() if each.is_file()}
    return Template(parts[f"{name}.html"]).substitute(
        markup,
        title=escape(title),
        facts=escape(facts),
        style=parts["page.css"] + parts[f"{name}.css"],
        script="".join(parts[f"{each}.js"] for each in ("page", name, *scripts)),
        data=as_json(data).replace("<", "\\u003c"),  # a "</script>" inside the data would end it
    )


def write_page(path: Path, name: str, title: str, facts: str, data: dict[str, Any], **markup: str) -> None:
    """Write a page, whole or not at all. Raises InputError where that fails."""
    checkpoint.write_text(path, page(name, title, facts, data, **markup))


def as_json(data: Any) -> str:
    """JSON without spare white space. Raises ValueError for what is no number, which JSON cannot say."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def rounded(value: float) -> float | None:
    """Seven digits, as many as a float32 has; None where it is no number, which JSON cannot say."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def shortened(text: str, length: int = 60) -> str:
    """The text's beginning, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rsplit(" ", 1)[0] + "…"
