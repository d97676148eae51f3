"""Event files for TensorBoard, beside minift's own log and report; needs the extra `tensorboard` (tensorboardX)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from minift.errors import InputError

CURVES = ("loss", "learning_rate", "grad_norm")


class Events:
    """Writes scalars: train/loss, train/learning_rate and train/grad_norm at each step, and dev/ with every metric."""

    def __init__(self, writer: Any):
        self.writer = writer

    def add(self, line: Mapping[str, Any]) -> None:
        """Write what a line of the log says."""
        for name in CURVES:
            self.writer.add_scalar(f"train/{name}", line[name], line["step"])

    def judge(self, metrics: Mapping[str, float], step: int) -> None:
        """Write the metrics of the dev set after so many steps."""
        for name, value in metrics.items():
            if name not in ("examples", "seconds"):
                self.writer.add_scalar(f"dev/{name}", value, step)


@contextmanager
def events(directory: Path, step: int) -> Iterator[Events]:
    """Write events into the directory; what an earlier process wrote of later steps than `step` does not count."""
    from tensorboardX import SummaryWriter

    with SummaryWriter(
        str(directory), purge_step=step + 1 if step else None, filename_suffix=f".{step}"
    ) as writer:
        yield Events(writer)


def check_tensorboard() -> None:
    """Raise InputError where tensorboardX is not installed."""
    if find_spec("tensorboardX") is None:
        raise InputError("--tensorboard needs tensorboardX: pip install 'minift[tensorboard]'")
