"""From the runs of textbook.py to a page: a table for each claim, what was found by a fixed rule, and a picture.

Two ways to train are compared seed by seed, since both got the same examples: the mean of the differences with its 95 %
interval. An interval that holds 0 tells nothing apart. The page says so, and says what has not run yet.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import runs
from data import Sentiment

SEEDS_NEEDED = 5
Cell = tuple[str, int, float]
"""A way to train, the number of examples, the rate."""


@dataclass(frozen=True)
class Comparison:
    """Two cells of one claim, and which of them the textbook expects to be better."""

    label: str
    better: Cell
    worse: Cell


@dataclass(frozen=True)
class Claim:
    """What the textbook says, and how its tables call their first column."""

    title: str
    says: str
    about: str


CLAIMS = {
    "scratch": Claim(
        "Fine-tuning against training from scratch",
        "A pre-trained model learns from few examples what one trained from scratch needs many for, so fine-tuning "
        "is better at every size.",
        "examples",
    ),
    "frozen": Claim(
        "Frozen layers against all layers",
        "With few examples all weights overfit: freeze the pre-trained layers and train the head. With many, train "
        "everything. Taken here at its word: frozen is better up to 200 examples, all layers from 500 on.",
        "examples",
    ),
    "rates": Claim(
        "The rate",
        "Fine-tune at 2e-5 to 1e-4; larger rates destroy what pre-training found. Taken here: 5e-5 is better than "
        "1e-5, which learns too slowly, and than 3e-4 and 1e-3.",
        "rate",
    ),
    "few": Claim(
        "Fewer than 50 examples",
        "With so few examples do not fine-tune: use a few-shot method (SetFit) or prompt tuning.",
        "examples",
    ),
}


def write_page(
    found: dict[str, list[dict]], wanted: dict[str, list[dict]], data: Sentiment, page: Path
) -> None:
    """Write the page, and its picture beside it in figures/."""
    positive = mean(data.dev_labels)
    majority = max(positive, 1 - positive)
    scratch_rate = next(run["learning_rate"] for run in wanted["scratch"] if run["name"] == "from scratch")
    facts = {
        "data": data.name,
        "majority": majority,
        "dev": len(data.dev_labels),
        "scratch_rate": short(scratch_rate),
    }
    lines = [INTRODUCTION.format(**facts).strip(), ""]
    lines += ["| claim | found so far |", "|---|---|"]
    sections = {part: section(part, found[part], wanted[part]) for part in CLAIMS}
    lines += [f"| {CLAIMS[part].title} | {verdict} |" for part, (verdict, _) in sections.items()]
    picture = page.parent / "figures" / f"{page.stem}.svg"
    lines += ["", f"![Accuracy by examples and by rate](figures/{picture.name})", ""]
    for part, (_, text) in sections.items():
        lines += [f"## {CLAIMS[part].title}", "", f"**The textbook:** {CLAIMS[part].says}", "", *text, ""]
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw(found, majority, picture)
    runs.write_text(page, "\n".join(lines).rstrip() + "\n")
    print(f"wrote {page} and {picture}")


INTRODUCTION = """
# 4. What the textbook claims

Four rules that every course on fine-tuning teaches, each tried on {data} with `minilm`, a BERT of 22.7 million
parameters. This page is written by `python benchmarks/textbook.py` from `benchmarks/results/textbook.jsonl`, which
has one line a run; what it has not measured yet it says, and the same command goes on with it.

Every number is the mean accuracy on {dev} dev sentences, with its 95 % interval over the seeds (Student's t); always
saying the commoner label scores {majority:.3f}. A seed draws its own examples, as many of either class, and both sides
of a comparison get the same ones. So differences are taken seed by seed, and one whose interval holds 0 tells nothing
apart. Batches of 16, at least 100 steps (prompt tuning 300, from scratch 600) and 3 epochs; the rates of fine-tuning,
of the head alone and of the prompt are those of the methods' table (`make experiments`); from scratch trains at
{scratch_rate}. With some twenty comparisons on this page, one whose interval misleads is to be expected.
"""


def cells_of(results: list[dict]) -> dict[Cell, dict[int, float]]:
    """The accuracies of each cell by seed."""
    cells: dict[Cell, dict[int, float]] = {}
    for result in results:
        run = result["run"]
        cell = (run["name"], run["sentences"], run["learning_rate"])
        cells.setdefault(cell, {})[run["seed"]] = result["accuracy"]
    return cells


def comparisons(part: str, cells: Sequence[Cell]) -> list[Comparison]:
    """The part's comparisons, each written so that the textbook expects `better` to be better."""
    made = []
    for cell in cells:
        way, size, rate = cell
        if part == "rates":
            usual = next(each for each in cells if each[2] == 5e-5)
            if rate not in (5e-5, 1e-4):
                made.append(Comparison(short(rate), usual, cell))
        elif way != "fine-tuned":
            tuned = next(each for each in cells if each[:2] == ("fine-tuned", size))
            tuned_is_better = part == "scratch" or (part == "frozen" and size >= 500)
            label = f"{size} ({way})" if part == "few" else str(size)
            made.append(Comparison(label, *((tuned, cell) if tuned_is_better else (cell, tuned))))
    return made


def judge(differences: list[float]) -> str:
    """What `better - worse`, seed by seed, says of the claim."""
    if len(differences) < SEEDS_NEEDED:
        return "missing"
    middle, half = mean(differences), runs.half_interval(differences) or 0.0
    if middle - half > 0:
        return "as claimed"
    if middle + half < 0:
        return "the opposite"
    return "not told apart"


def differences_of(comparison: Comparison, cells: dict[Cell, dict[int, float]]) -> list[float]:
    better, worse = cells.get(comparison.better, {}), cells.get(comparison.worse, {})
    return [better[seed] - worse[seed] for seed in sorted(better.keys() & worse.keys())]


def section(part: str, results: list[dict], wanted: list[dict]) -> tuple[str, list[str]]:
    """In a few words what was found, and the part's tables."""
    cells = cells_of(results)
    all_cells = list(cells_of([{"run": run, "accuracy": None} for run in wanted]))
    compared = [(each, differences_of(each, cells)) for each in comparisons(part, all_cells)]
    if all(judge(differences) == "missing" for _, differences in compared):
        return "not measured yet", [f"Not measured yet: {len(results)} of {len(wanted)} runs are done."]
    lines = [f"Runs so far: {len(results)} of {len(wanted)}.", "", *table(part, all_cells, cells), ""]
    lines += [
        f"| {CLAIMS[part].about} | the claim's difference | of seeds | found |",
        "|---|---|---|---|",
    ]
    by_verdict: dict[str, list[str]] = {}
    for comparison, differences in compared:
        verdict = judge(differences)
        by_verdict.setdefault(verdict, []).append(comparison.label)
        names = f"{name_of(part, comparison.better)} - {name_of(part, comparison.worse)}"
        shown = f"{names}: {runs.with_interval(differences, 3)}" if differences else names
        lines.append(f"| {comparison.label} | {shown} | {len(differences)} | {verdict} |")
    order = ("as claimed", "the opposite", "not told apart", "missing")
    summary = "; ".join(f"{each} at {', '.join(by_verdict[each])}" for each in order if each in by_verdict)
    return summary, [*lines, "", f"**Found:** {summary}."]


def short(number: float) -> str:
    """5e-5 rather than 5e-05; whole numbers as they are."""
    return f"{number:.0e}".replace("e-0", "e-") if number < 1 else str(number)


def name_of(part: str, cell: Cell) -> str:
    return short(cell[2]) if part == "rates" else cell[0]


def table(part: str, all_cells: Sequence[Cell], cells: dict[Cell, dict[int, float]]) -> list[str]:
    """The accuracies: a column for each way, a row for each size or rate."""
    ways = list(dict.fromkeys(way for way, _, _ in all_cells))
    rows: dict[str, dict[str, Cell]] = {}
    for cell in all_cells:
        rows.setdefault(short(cell[2]) if part == "rates" else str(cell[1]), {})[cell[0]] = cell
    lines = [f"| {CLAIMS[part].about} | " + " | ".join(ways) + " |", "|---" * (len(ways) + 1) + "|"]
    for row, of_way in rows.items():
        lines.append(
            f"| {row} | " + " | ".join(accuracy_in_words(cells.get(of_way[way])) for way in ways) + " |"
        )
    return lines


def accuracy_in_words(by_seed: dict[int, float] | None) -> str:
    if not by_seed:
        return "missing"
    note = "" if len(by_seed) >= SEEDS_NEEDED else f" ({len(by_seed)} of {SEEDS_NEEDED} seeds)"
    return runs.with_interval(list(by_seed.values()), 3) + note


COLORS = {
    "fine-tuned": "#3b6ea5", "from scratch": "#c44e52", "frozen": "#55a868",
    "prompt tuning": "#8172b3", "SetFit": "#dd8452",
}  # fmt: skip


def draw(found: dict[str, list[dict]], majority: float, path: Path) -> None:
    """Three plots side by side: by size, by rate, and with few examples. Bars are the 95 % intervals."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "minift"  # the same picture is the same file
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), sharey=True, width_ratios=(3, 2, 2))
    by_size = {**cells_of(found["scratch"]), **cells_of(found["frozen"])}
    plots = (
        (axes[0], by_size, 1, "examples", "how many examples"),
        (axes[1], cells_of(found["rates"]), 2, "rate", "the rate, 1000 examples"),
        (axes[2], cells_of(found["few"]), 1, "examples", "fewer than 50 examples"),
    )
    for axis, cells, place, label, title in plots:
        for way in dict.fromkeys(cell[0] for cell in cells):
            points = sorted(
                (cell[place], list(by_seed.values())) for cell, by_seed in cells.items() if cell[0] == way
            )
            axis.errorbar(
                [x for x, _ in points],
                [mean(values) for _, values in points],
                [runs.half_interval(values) or 0.0 for _, values in points],
                marker="o", markersize=4, capsize=3, color=COLORS[way], label=way,
            )  # fmt: skip
        axis.axhline(majority, color="gray", linewidth=1, linestyle=":")
        axis.set(xscale="log", xlabel=label, title=title, ylim=(0.45, 0.95))
        ticks = sorted({cell[place] for cell in cells})
        axis.set_xticks(ticks, [short(tick) for tick in ticks])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
        if cells:
            axis.legend(frameon=False, loc="upper left", fontsize=8)
    axes[0].set_ylabel("dev accuracy (dotted: the commoner label)")
    figure.tight_layout()
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    plt.close(figure)
    runs.write_text(path, drawn.getvalue())


def print_search(results: list[dict], held_out: int) -> None:
    print(f"\nAccuracy on {held_out} held-out training sentences, one seed, the best marked")
    for name in dict.fromkeys(result["run"]["name"] for result in results):
        of_name = [result for result in results if result["run"]["name"] == name]
        tried = {result["run"]["learning_rate"]: result["accuracy"] for result in of_name}
        best = max(tried, key=tried.__getitem__)
        cells = [f"{rate:g}: {tried[rate]:.3f}{'*' if rate == best else ' '}" for rate in tried]
        print(f"{name:<22}" + "  ".join(cells))
