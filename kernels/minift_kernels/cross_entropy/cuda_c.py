"""Rungs 5 and 6, CUDA C: how the kernels of cross_entropy.cu are launched. The lesson is in that file."""

from pathlib import Path

import numpy as np

from minift_kernels import gpu
from minift_kernels.arrays import array_namespace, check_indices

FILE = Path(__file__).with_name("cross_entropy.cu")


class _CrossEntropy:
    """What the steps share: they differ in the kernels' names and in how many threads a row gets."""

    step = ""

    def forward(self, logits, targets, class_weights=None, ignore_index=-100, label_smoothing=0.0):
        xp, targets = array_namespace(logits), checked_targets(targets, ignore_index, logits.shape[1])
        losses, logsumexp = xp.empty(len(logits), np.float32), xp.empty(len(logits), np.float32)
        logits, targets, class_weights = map(gpu.contiguous, (logits, targets, class_weights))
        options = np.int64(ignore_index), np.float32(label_smoothing)
        self._launch("forward", logits, logits, targets, class_weights, *options, losses, logsumexp)
        return losses, logsumexp

    def backward(
        self, dlosses, logits, logsumexp, targets, class_weights=None, ignore_index=-100, label_smoothing=0.0
    ):
        targets = checked_targets(targets, ignore_index, logits.shape[1])
        all_weights = None if class_weights is None else class_weights.sum().reshape(1)
        inputs = dlosses, logits, logsumexp, targets, class_weights, all_weights
        inputs = [gpu.contiguous(x) for x in inputs]
        dlogits = array_namespace(logits).empty_like(inputs[1])
        options = np.int64(ignore_index), np.float32(label_smoothing)
        self._launch("backward", logits, *inputs, *options, dlogits)
        return dlogits

    def _launch(self, direction, logits, *arguments):
        rows, columns = logits.shape
        kernel = f"cross_entropy_{self.step}_{direction}<{gpu.c_type(logits)}>"
        blocks, threads = self.shape_of_launch(rows, columns, logits.itemsize)
        gpu.launch(FILE, kernel, (blocks,), (threads,), (*arguments, np.int32(rows), np.int32(columns)))

    def shape_of_launch(self, rows, columns, itemsize):
        """How many blocks, and how many threads in each."""
        raise NotImplementedError


class Naive(_CrossEntropy):
    """Rung 5, one thread a row, each sum a loop of its own."""

    step = "naive"

    def shape_of_launch(self, rows, columns, itemsize):
        return -(-rows // 128), 128


class Online(_CrossEntropy):
    """Rung 6, one block a row: 16-byte loads, the largest logit and the sum of exponentials in one loop."""

    step = "online"

    def shape_of_launch(self, rows, columns, itemsize):
        in_a_load = 16 // itemsize
        return rows, 32 * min(16, max(1, columns // (32 * in_a_load)))


naive, online = Naive(), Online()


def checked_targets(targets, ignore_index, classes):
    """The targets as int64; NumPy's are looked at, a GPU's wrong ones get NaN from the kernels."""
    if isinstance(targets, np.ndarray):
        check_indices("target class", targets[targets != ignore_index], classes)
    return gpu.contiguous(targets.astype(np.int64, copy=False))
