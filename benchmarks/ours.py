"""minift's side of every race, with the methods that `peer.py` has: whatever differs here is the library."""

from importlib.metadata import version

import numpy as np
from minift_kernels import matmul
from minift_kernels.host import BLAS

import minift


class Trainer:
    """A classifier of two classes, its optimizer and its schedule; arguments as in `peer.Trainer`."""

    def __init__(self, directory: str, frozen_layers: int | None = None):
        self.model = minift.load(
            directory, task="text-classification", labels=["negative", "positive"], max_length=128
        )
        if frozen_layers is not None:
            _freeze(self.model, frozen_layers)
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = minift.AdamW(self.trainable, lr=5e-5, weight_decay=0.01)
        self.schedule = minift.linear_schedule(self.optimizer, total_steps=1000, warmup_steps=100)

    def encode(self, texts: list[str]):
        """A packed batch: one text after the other, no padding."""
        return self.model.encode(texts)

    def tokens(self, batch) -> int:
        return len(batch.ids)

    def step(self, batch, labels: list[int]) -> float:
        """One training step: forward, backward, clipping, update. Returns the loss."""
        loss = minift.cross_entropy(self.model(batch), labels)
        loss.backward()
        self.optimizer.step(max_grad_norm=1.0)
        self.schedule.step()
        self.optimizer.zero_grad()
        return loss.item()

    def predict(self, texts: list[str]) -> list[list[float]]:
        """The logits of each text (B, C), without dropout and without a history."""
        self.model.eval()
        with minift.no_grad():
            logits = self.model(self.encode(texts)).data
        self.model.train()
        return logits.tolist()


def _freeze(model, layers: int) -> None:
    model.bert.embeddings.requires_grad_(False)
    for name, layer in model.bert.encoder.layer.children():
        if int(name) < layers:
            layer.requires_grad_(False)


def versions() -> dict[str, str]:
    in_tiles = matmul.ladder.choose(np.empty(0, np.float32)) == "numba_cpu_tiled"
    return {
        "minift": minift.__version__,
        "numpy": version("numpy"),
        "numba": version("numba"),
        "its products in": "its own tiles" if in_tiles else str(BLAS),
    }
