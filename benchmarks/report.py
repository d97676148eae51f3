"""From the recorded turns of a race to the numbers of a table."""

from statistics import median, quantiles

MEGABYTE = 1 << 20


def paired_ratios(result: dict) -> list[float]:
    """minift's time over PyTorch's, for each batch that both ran one after the other."""
    turns = result["turns"]
    return [ours[0] / peer[0] for ours, peer in zip(turns["minift"], turns["transformers"], strict=True)]


def numbers(result: dict) -> dict:
    """Everything that a row shows; milliseconds are the mean of a turn, the ratio is the median of pairs."""
    ratios = paired_ratios(result)
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    seconds = {library: sum(turn[0] for turn in turns) for library, turns in result["turns"].items()}
    tokens = {library: sum(turn[1] for turn in turns) for library, turns in result["turns"].items()}
    peak = {library: size / MEGABYTE for library, size in result["peak_bytes"].items()}
    return {
        "turns": len(ratios),
        "milliseconds": {library: 1000 * total / len(ratios) for library, total in seconds.items()},
        "ratio": median(ratios),
        "quartiles": (low, high),
        "ratio_of_sums": seconds["minift"] / seconds["transformers"],
        "tokens_a_second": {library: tokens[library] / seconds[library] for library in seconds},
        "peak_megabytes": peak,
        "memory_ratio": peak["minift"] / peak["transformers"],
    }


def summary(result: dict) -> str:
    """One line for whoever waits."""
    n = numbers(result)
    ours, peer = n["milliseconds"]["minift"], n["milliseconds"]["transformers"]
    return (
        f"{result['title']}: {ours:.0f} ms against {peer:.0f} ms, ratio {n['ratio']:.2f} "
        f"(at most {result['asked_time']:.2f}); memory ratio {n['memory_ratio']:.2f} "
        f"(at most {result['asked_memory']:.2f})"
    )


def as_markdown(record: dict) -> str:
    """The whole record as a page: the table, the machine, and what disturbed the race."""
    lines = [
        f"# {record['title']}",
        "",
        "Times are means of one turn: a training step, or one batch of an epoch. The ratio is the median",
        "over paired turns, with its quartiles; `sums` is the ratio of the total times. Tokens are real",
        "ones, without padding.",
        "",
        "| measure | minift | PyTorch | ratio | sums | asked "
        "| tokens/s, minift | PyTorch | peak, minift | PyTorch | ratio | asked |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(_row(result) for result in record["results"]),
        "",
        *_circumstances(record),
    ]
    return "\n".join(lines) + "\n"


def _row(result: dict) -> str:
    n = numbers(result)
    low, high = n["quartiles"]
    cells = [
        f"{result['title']}, {n['turns']} turns",
        f"{n['milliseconds']['minift']:.0f} ms",
        f"{n['milliseconds']['transformers']:.0f} ms",
        f"**{n['ratio']:.2f}** ({low:.2f} to {high:.2f})",
        f"{n['ratio_of_sums']:.2f}",
        f"{result['asked_time']:.2f}",
        f"{n['tokens_a_second']['minift']:,.0f}",
        f"{n['tokens_a_second']['transformers']:,.0f}",
        f"{n['peak_megabytes']['minift']:,.0f} MiB",
        f"{n['peak_megabytes']['transformers']:,.0f} MiB",
        f"**{n['memory_ratio']:.2f}**",
        f"{result['asked_memory']:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _circumstances(record: dict) -> list[str]:
    versions = record["results"][0]["versions"]
    others = max(result["other_programs_share"] for result in record["results"])
    idle = sum(result["idle_cpu_seconds"] for result in record["results"])
    lines = [
        f"- Machine: {record['processor']}, {record['cores']} cores, {record['memory']}, {record['system']}; "
        f"{record['threads']} threads on both sides.",
        f"- Versions: Python {record['python']}, "
        + ", ".join(f"{name} {v}" for name, v in versions.items())
        + ".",
        f"- Date: {record['date']}. Command: `{record['command']}`.",
        f"- While it waited, a side computed for {idle:.1f} s in all; "
        f"other programs took up to {others:.0%} of the cores.",
    ]
    if others > 0.05:
        lines.append("- **The machine was not idle: these times are not to be relied on.**")
    return lines
