"""Each side of a race runs in a process of its own, started clean, and does one thing at a time when asked.

Two libraries in one process would share its memory and fight over its cores: threads that spin after a
product, variables of the environment that one library wants and the other suffers from. So a race holds
two of these:

    with Worker("minift", directory=folder) as ours, Worker("transformers", directory=folder) as peer:
        ours.step(texts, labels)      # {"seconds": ..., "encode_seconds": ..., "loss": ..., "tokens": ...}
        peer.step(texts, labels)
        ours.peak_memory()            # bytes: the most that this process ever held

Commands and replies are lines of JSON on the child's standard input and output. This file is both ends.
"""

import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODULES = {"minift": "ours", "transformers": "peer"}
UNWANTED = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMBA_", "MALLOC_", "LD_PRELOAD")
"""Variables that speed up one library and slow down another: no worker inherits them."""


class Worker:
    """A process that holds one `Trainer`; `options` go to its constructor. Used as a context."""

    def __init__(
        self,
        library: str,
        *,
        threads: int | None = None,
        numpy_first: bool = False,
        environment: dict[str, str] | None = None,
        **options,
    ):
        self.library = library
        command = [
            sys.executable,
            str(HERE / "worker.py"),
            library,
            *(["--numpy-first"] if numpy_first else []),
        ]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(threads) | (environment or {}),
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.requests, self.replies = self.process.stdin, self.process.stdout
        self.versions = self._ask("start", **options)

    def step(self, texts: list[str], labels: list[int]) -> dict:
        """One training step: seconds (without encoding), encode_seconds, loss, tokens."""
        return self._ask("step", texts=texts, labels=labels)

    def predict(self, texts: list[str]) -> dict:
        """seconds (encoding included), logits, tokens."""
        return self._ask("predict", texts=texts)

    def write_models(self, folder: Path) -> None:
        """Only on the side of transformers: see `peer.write_models`."""
        self._ask("write_models", folder=str(folder))

    def peak_memory(self) -> int:
        """The high-water mark of the process's resident memory in bytes (VmHWM, Linux)."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise OSError("this kernel does not report VmHWM")

    def cpu_seconds(self) -> float:
        """What the process and its threads have computed so far (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        user, system = int(fields[11]), int(fields[12])  # fields 14 and 15 of proc(5)
        return (user + system) / os.sysconf("SC_CLK_TCK")

    def _ask(self, command: str, **arguments) -> dict:
        self.requests.write(json.dumps({"command": command, **arguments}) + "\n")
        self.requests.flush()
        answer = self.replies.readline()
        if not answer:
            raise RuntimeError(f"the {self.library} worker died with exit code {self.process.wait()}")
        reply = json.loads(answer)
        if "error" in reply:
            raise RuntimeError(f"the {self.library} worker failed:\n{reply['error']}")
        return reply

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.requests.close()  # the child's loop ends with its input
        self.process.wait()
        self.replies.close()


def _environment(threads: int | None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(UNWANTED)}
    if cache := os.environ.get("NUMBA_CACHE_DIR"):
        kept["NUMBA_CACHE_DIR"] = cache
    if threads is not None:
        for pool in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
            kept[f"{pool}_NUM_THREADS"] = str(threads)
    checkout = HERE.parent
    path = [str(checkout), str(checkout / "kernels"), os.environ.get("PYTHONPATH", "")]
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


# ------------------------------------------------------------------------------------------------------------
# The child's end


def serve(library: str, numpy_first: bool) -> None:
    """Answer commands until the input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not stand between the replies
    if numpy_first:
        _use_numpy()
    side = _Side(importlib.import_module(MODULES[library]))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(side, request.pop("command"))(**request)
        except Exception:
            reply = {"error": traceback.format_exc()}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _use_numpy() -> None:
    """A notebook: NumPy was imported, and its threads were started, long before anybody thought of minift."""
    import numpy as np

    square = np.ones((512, 512), np.float32)
    np.matmul(square, square)


class _Side:
    """The commands, on either library."""

    def __init__(self, library):
        self.library = library

    def start(self, **options) -> dict:
        if options:
            self.trainer = self.library.Trainer(**options)
        return self.library.versions()

    def write_models(self, folder: str) -> dict:
        self.library.write_models(folder)
        return {}

    def step(self, texts: list[str], labels: list[int]) -> dict:
        start = time.perf_counter()
        batch = self.trainer.encode(texts)
        encoded = time.perf_counter()
        loss = self.trainer.step(batch, labels)
        end = time.perf_counter()
        return {
            "seconds": end - encoded,
            "encode_seconds": encoded - start,
            "loss": loss,
            "tokens": self.trainer.tokens(batch),
        }

    def predict(self, texts: list[str]) -> dict:
        start = time.perf_counter()
        logits = self.trainer.predict(texts)
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "logits": logits,
            "tokens": self.trainer.tokens(self.trainer.encode(texts)),
        }


if __name__ == "__main__":
    serve(sys.argv[1], numpy_first="--numpy-first" in sys.argv)
