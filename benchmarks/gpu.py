"""How fast on a GPU, and is every kernel right there? minift against PyTorch, cuBLAS and the memory (`make bench-gpu`).

    python benchmarks/gpu.py                       # everything; writes results/gpu.md and results/gpu.json
    python benchmarks/gpu.py --only check memory   # some parts; those measured before stay in the files
    python benchmarks/gpu.py --rung softmax cuda_c_warp float32    # is this one right?
    python benchmarks/gpu.py --only check --sanitizer racecheck    # does any thread read what another may be writing?
    python benchmarks/gpu.py --dry-run             # tiny shapes without a GPU: does the harness work?

It needs CuPy, PyTorch and transformers beside minift's own dependencies, and runs from a checkout: nothing has to be
installed of minift, and nothing is downloaded. Results are written after each part, so a run can be cut short.
README.md says how each number is taken.
"""

import argparse
import json
import shutil
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(CHECKOUT / folder) for folder in (".", "kernels", "benchmarks", "tests", "tests/kernels")]

import gpu_device  # noqa: E402
import gpu_kernels  # noqa: E402
import gpu_report  # noqa: E402
import gpu_steps  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(gpu_report.PARTS), default=list(gpu_report.PARTS))
    parser.add_argument(
        "--every-rung", action="store_true", help="time the slower steps of memory's ladders too"
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out torch.compile, which takes minutes"
    )
    parser.add_argument(
        "--precisions", nargs="+", choices=("bf16", "tf32"), default=["bf16", "tf32"], help="of steps"
    )
    parser.add_argument("--rungs", default="", metavar="PREFIX", help="check only rungs so named, as cuda_c")
    parser.add_argument(
        "--sanitizer",
        choices=("memcheck", "racecheck", "initcheck", "synccheck"),
        help="check under this tool of NVIDIA's compute-sanitizer, on small cases",
    )
    parser.add_argument(
        "--rung",
        nargs=3,
        metavar=("OPERATION", "RUNG", "DTYPE"),
        help="check this one, as softmax cuda_c_warp float32, and print what was found",
    )
    parser.add_argument("--small-cases", action="store_true", help="with --rung: as a sanitizer wants them")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU's emulation of a GPU")
    parser.add_argument(
        "--out", type=Path, help="the folder to write; benchmarks/results, or nothing on a dry run"
    )
    options = parser.parse_args(arguments)
    if options.sanitizer and options.dry_run:
        parser.error("a sanitizer watches a GPU; a dry run has none")
    if options.sanitizer and shutil.which("compute-sanitizer") is None:
        parser.error("there is no compute-sanitizer on the PATH; NVIDIA's CUDA toolkit has it")
    with gpu_device.opened(options.dry_run) as stand_in:
        device = gpu_device.Device(stand_in, is_real=False) if options.dry_run else gpu_device.real_device()
        if options.rung:
            return check_one(device, options.rung, options.small_cases)
        record = measure(device, options, sys.argv[1:] if arguments is None else arguments)
    print(gpu_report.as_markdown(record))
    wrong = any(result["wrong"] for result in record.get("check", ()))
    return 1 if wrong or record["failed"] else 0


def check_one(device: gpu_device.Device, rung: list[str], small_cases: bool) -> int:
    """Print what `gpu_kernels.check_rung` says of a rung; 1 where it is wrong."""
    operation, name, dtype = rung
    dtype = {"float32": gpu_kernels.FLOAT32, "bfloat16": gpu_kernels.BF16}[dtype]
    largest = gpu_kernels.SMALL if small_cases else sys.maxsize
    result = gpu_kernels.check_rung(device, operation, name, dtype, largest)
    print(json.dumps(result))
    return 1 if result["wrong"] else 0


def measure(device: gpu_device.Device, options: argparse.Namespace, arguments: list[str]) -> dict:
    """Run the parts that were asked for, and write the record after each."""
    out = options.out or (None if options.dry_run else CHECKOUT / "benchmarks" / "results")
    started = time.perf_counter()
    record = _record_before(out)
    record["title"] = "minift on a GPU" if device.is_real else "A dry run: these times say nothing of a GPU"
    record["date"] = datetime.now(UTC).date().isoformat()
    record["command"] = " ".join(["python benchmarks/gpu.py", *arguments])
    record["machine"] = gpu_device.describe(device)
    parts = {
        "check": lambda: gpu_kernels.check(device, options.rungs, options.sanitizer),
        "memory": lambda: gpu_kernels.memory_bound(device, options.every_rung),
        "attention": lambda: gpu_kernels.attention(device),
        "products": lambda: gpu_kernels.products(device),
        "steps": lambda: [
            gpu_steps.run(device, race, with_compile=not options.no_compile)
            for race in gpu_steps.races(device, options.precisions)
        ],
    }
    failed = record["failed"] = []
    for part in options.only:
        print(f"{part} ...", file=sys.stderr)
        try:
            record[part] = parts[part]()
        except Exception:  # the parts after it may still be measured
            traceback.print_exc()
            failed.append(part)
        record["seconds"] = time.perf_counter() - started
        device.forget()
        if out is not None:
            write(out, record)
    return record


def _record_before(out: Path | None) -> dict:
    """What an earlier run wrote there: its parts stay unless they are measured again."""
    path = None if out is None else out / "gpu.json"
    return json.loads(path.read_text()) if path is not None and path.exists() else {}


def write(out: Path, record: dict) -> None:
    """The record as gpu.json and gpu.md, each under a temporary name first."""
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("gpu.json", json.dumps(record, indent=1) + "\n"),
        ("gpu.md", gpu_report.as_markdown(record)),
    ):
        temporary = out / f"{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(out / name)


if __name__ == "__main__":
    sys.exit(main())
