"""Draw a record of cpu.py as bars: time and memory of minift where PyTorch's are 1.

python benchmarks/plot.py benchmarks/results/cpu.json     # writes cpu.svg beside it
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from report import numbers

MEASURED, ASKED = "#3b6ea5", "#c44e52"

plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "minift"}  # text as text, and the same file twice


def main():
    path = Path(sys.argv[1])
    record = json.loads(path.read_text())
    results = record["results"][::-1]  # matplotlib counts bars from the bottom
    titles = [result["title"] for result in results]
    figure, (times, memories) = plt.subplots(1, 2, sharey=True, figsize=(12, 1.5 + 0.5 * len(results)))
    draw(times, titles, [numbers(result)["ratio"] for result in results], [r["asked_time"] for r in results])
    times.set_xlabel("time of a turn, PyTorch = 1 (red: asked, at most)")
    memory_ratios = [numbers(result)["memory_ratio"] for result in results]
    draw(memories, titles, memory_ratios, [r["asked_memory"] for r in results])
    memories.set_xlabel("peak memory, PyTorch = 1 (red: asked, at most)")
    figure.suptitle(
        f"{record['title']}: {record['processor']}, {record['threads']} threads, {record['date']}"
    )
    figure.tight_layout()
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    print(f"wrote {path.with_suffix('.svg')}")


def draw(axes, titles: list[str], ratios: list[float], asked: list[float]) -> None:
    """A bar for each measure, a red mark where it was asked to end, and a line where PyTorch is."""
    bars = axes.barh(titles, ratios, color=MEASURED)
    axes.bar_label(bars, fmt="%.2f", label_type="center", color="white")
    axes.scatter(asked, titles, marker="|", s=400, color=ASKED, zorder=3)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlim(0, 1.2 * max(1.0, *ratios))


if __name__ == "__main__":
    main()
