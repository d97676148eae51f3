"""From what was measured on a GPU to a page of tables."""

from statistics import median


def as_markdown(record: dict) -> str:
    """The whole record: one table a part, then the machine, the versions and the command."""
    lines = [f"# {record['title']}", ""]
    for part, write in PARTS.items():
        if part in record:
            lines += [*write(record[part]), ""]
    lines += ["## Circumstances", "", f"- `{record['command']}`, {record['date']}, {record['seconds']:.0f} s"]
    lines += [f"- {name}: {value}" for name, value in record["machine"].items()]
    if record["failed"]:
        lines += [f"- failed, so that what stands here of it is older: {', '.join(record['failed'])}"]
    return "\n".join(lines) + "\n"


def _checks(results: list[dict]) -> list[str]:
    wrong = [result for result in results if result["wrong"]]
    count = sum(result["cases"] for result in results)
    lines = [
        "## Right or wrong",
        "",
        f"{len(results)} rungs (each dtype counted) on {count} cases of the contract tests, against float64: "
        f"{len(wrong)} rungs wrong.",
    ]
    if wrong:
        lines.append("")
    for result in wrong:
        first, *others = result["wrong"]
        more = f" (and {len(others)} more cases)" if others else ""
        lines.append(f"- {result['operation']} {result['rung']} {result['dtype']}: {first}{more}")
    return lines


def _memory(part: dict) -> list[str]:
    return [
        "## Operations that memory bounds",
        "",
        "The fewest bytes that a step must move, against a copy that moves as many. Default rungs are bold; at least",
        "85 % is asked of them.",
        "",
        *_table(
            ("operation", "step", "rung", "dtype", "GB", "ms", "GB/s", "of the copy"),
            (
                (
                    each["operation"],
                    each["step"],
                    f"**{each['rung']}**" if each["default"] else each["rung"],
                    each["dtype"],
                    f"{each['moved_bytes'] / 1e9:.2f}",
                    f"{each['milliseconds']:.3f}",
                    f"{each['gigabytes_a_second']:,.0f}",
                    f"{each['share_of_copy']:.0%}",
                )
                for each in part["results"]
            ),
        ),
    ]


def _attention(results: list[dict]) -> list[str]:
    return [
        "## Attention in bfloat16",
        "",
        "Texts x tokens x heads x head size; PyTorch is `scaled_dot_product_attention`; at most 1.3 is asked.",
        "",
        *_table(
            ("shape", "rung", "forward, ms", "backward, ms", "PyTorch, ms", "ratio", "difference"),
            (
                (
                    each["shape"],
                    each["rung"],
                    f"{each['forward_milliseconds']:.3f}",
                    f"{each['backward_milliseconds']:.3f}",
                    " + ".join(f"{time:.3f}" for time in each["torch_milliseconds"] or ()) or "-",
                    "-" if each["ratio"] is None else f"**{each['ratio']:.2f}**",
                    "-" if each["difference"] is None else f"{each['difference']:.1e}",
                )
                for each in results
            ),
        ),
    ]


def _products(results: list[dict]) -> list[str]:
    return [
        "## Matrix products",
        "",
        "Square; cuda_c_cublas is cuBLAS, of whose speed 45 % is asked in bf16.",
        "",
        *_table(
            ("precision", "size", "rung", "ms", "TFLOP/s", "of cuBLAS"),
            (
                (
                    each["precision"],
                    str(each["size"]),
                    each["rung"],
                    f"{each['milliseconds']:.3f}",
                    f"{each['teraflops']:.1f}",
                    f"{each['share_of_cublas']:.0%}",
                )
                for each in results
            ),
        ),
    ]


def _steps(results: list[dict]) -> list[str]:
    names = ("minift", "PyTorch", "torch.compile", "launch by launch")
    lines = [
        "## Training steps",
        "",
        "Forward, backward, clipping, AdamW; the median of the turns. The ratio is that of minift's time to eager",
        "PyTorch's on the same batch, the median over all batches; at most 1.0 is asked. Tokens are real ones.",
        "`launch by launch` is minift without CUDA graphs.",
        "",
        *_table(("step", *names, "ratio", "tokens/s", "PyTorch", "peak", "PyTorch"), map(_step, results)),
        "",
        "What the GPU is busy with in one step, the mean of five; kernels that take least are summed up.",
    ]
    for result in results[:2]:
        for side, kernels in result["kernels"].items():
            lines += _kernels(f"{result['title']}, {side}", kernels)
    return lines


def _kernels(title: str, kernels: list[dict]) -> list[str]:
    busy, launches = (sum(kernel[what] for kernel in kernels) for what in ("milliseconds", "launches"))
    shown, rest = kernels[:MOST_KERNELS], kernels[MOST_KERNELS:]
    others = {
        "name": f"{len(rest)} others",
        "launches": sum(kernel["launches"] for kernel in rest),
        "milliseconds": sum(kernel["milliseconds"] for kernel in rest),
    }
    return [
        "",
        f"{title}: busy for {busy:.2f} ms in {launches:.0f} launches.",
        "",
        *_table(
            ("kernel", "launches", "ms", "share"),
            (
                (
                    f"`{kernel['name'][:90]}`",
                    f"{kernel['launches']:.0f}",
                    f"{kernel['milliseconds']:.3f}",
                    f"{kernel['milliseconds'] / busy:.0%}",
                )
                for kernel in [*shown, others]
            ),
        ),
    ]


def _step(result: dict) -> tuple[str, ...]:
    times, peaks = result["milliseconds"], result["peak_bytes"]
    speeds = {side: 1000 * sum(result["tokens"]) / sum(turns) for side, turns in times.items()}

    def shown(values: dict, side: str, form: str, scale: float = 1) -> str:
        return form.format(values[side] / scale) if side in values else "-"

    medians = {side: median(turns) for side, turns in times.items()}
    ratio = "-"
    if "PyTorch" in times:
        pairs = zip(times["minift"], times["PyTorch"], strict=True)
        ratio = f"**{median(ours / theirs for ours, theirs in pairs):.2f}**"
    return (
        result["title"],
        *(
            shown(medians, side, "{:.1f} ms")
            for side in ("minift", "PyTorch", "torch.compile", "launch by launch")
        ),
        ratio,
        *(shown(speeds, side, "{:,.0f}") for side in ("minift", "PyTorch")),
        *(shown(peaks, side, "{:.1f} GiB", 2**30) for side in ("minift", "PyTorch")),
    )


def _table(head: tuple[str, ...], rows) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows)]


MOST_KERNELS = 18
"""So many of a step's kernels get a line of their own."""

PARTS = {
    "check": _checks,
    "memory": _memory,
    "attention": _attention,
    "products": _products,
    "steps": _steps,
}
"""What can be measured, in the order of the page."""
