"""Rungs 5 to 7, CUDA C: how the kernels are launched. Each step's lesson is in its own .cu file."""

from pathlib import Path

import numpy as np

from minift_kernels import gpu
from minift_kernels.arrays import array_namespace, check_segments
from minift_kernels.philox import mask_arguments

HERE = Path(__file__).parent


class Materialised:
    """Rung 5, the formula, a kernel a step; scores are written out: (N, T, L), where L is the longest text's keys."""

    file = HERE / "materialised.cu"

    def forward(self, q, k, v, q_segments, k_segments, heads, scale, causal=False, dropout=0.0, key=(0, 0)):
        xp = array_namespace(q)
        problem = _Problem(q, k, q_segments, k_segments, heads)
        q, k, v = (gpu.contiguous(x) for x in (q, k, v))
        out, logsumexp = xp.empty(q.shape, q.dtype), xp.empty((heads, len(q)), np.float32)
        text_of_query = self._texts_of_rows(xp, problem.q_segments, len(q))
        probabilities = self._scores(q, k, problem, text_of_query, scale, causal)
        sizes = np.array([len(q), probabilities.shape[2]], np.int32)
        arguments = (probabilities, logsumexp, *sizes, *mask_arguments(dropout, key))
        gpu.launch(self.file, "attention_softmax", (-(-len(q) // 4), heads), (128,), arguments)
        arguments = (probabilities, v, problem.k_segments, text_of_query, out, *problem.sizes, sizes[1])
        self._launch_by_columns("attention_out", out, arguments)
        return out, logsumexp

    def backward(
        self, dout, q, k, v, out, logsumexp, q_segments, k_segments, heads, scale,
        causal=False, dropout=0.0, key=(0, 0),
    ):  # fmt: skip
        xp = array_namespace(q)
        problem = _Problem(q, k, q_segments, k_segments, heads)
        dout, q, k, v, out, logsumexp = (gpu.contiguous(x) for x in (dout, q, k, v, out, logsumexp))
        dq, dk, dv = (xp.empty(x.shape, x.dtype) for x in (q, k, v))
        text_of_query = self._texts_of_rows(xp, problem.q_segments, len(q))
        text_of_key = self._texts_of_rows(xp, problem.k_segments, len(k))
        scores = self._scores(q, k, problem, text_of_query, scale, causal)  # which become probabilities
        dscores = xp.empty(scores.shape, np.float32)
        most_keys, scale = np.int32(scores.shape[2]), np.float32(scale)
        arguments = (dout, v, out, logsumexp, problem.k_segments, text_of_query, scores, dscores,
                     *problem.sizes, most_keys, *mask_arguments(dropout, key))  # fmt: skip
        self._launch_by_scores("attention_dscores", q, scores, arguments)
        arguments = (dscores, k, problem.k_segments, text_of_query, dq, *problem.sizes, most_keys, scale)
        self._launch_by_columns("attention_dq", dq, arguments)
        arguments = (dscores, scores, q, dout, problem.q_segments, problem.k_segments, text_of_key, dk, dv,
                     *problem.sizes, most_keys, scale)  # fmt: skip
        self._launch_by_columns("attention_dk_dv", dk, arguments)
        return dq, dk, dv

    def _texts_of_rows(self, xp, segments, rows):
        text_of_row = xp.empty(rows, np.int32)
        arguments = (segments, *np.array([len(segments), rows], np.int32), text_of_row)
        gpu.launch(self.file, "attention_find_texts", (-(-rows // 128),), (128,), arguments)
        return text_of_row

    def _scores(self, q, k, problem, text_of_query, scale, causal):
        scores = array_namespace(q).empty((problem.heads, len(q), problem.most_keys()), np.float32)
        arguments = (q, k, problem.q_segments, problem.k_segments, text_of_query, scores, *problem.sizes,
                     np.int32(scores.shape[2]), np.float32(scale), np.int32(causal))  # fmt: skip
        self._launch_by_scores("attention_scores", q, scores, arguments)
        return scores

    def _launch_by_scores(self, kernel, q, scores, arguments):
        heads, rows, keys = scores.shape
        grid = (-(-keys // 32), -(-rows // 4), heads)
        gpu.launch(self.file, f"{kernel}<{gpu.c_type(q)}>", grid, (32, 4), arguments)

    def _launch_by_columns(self, kernel, result, arguments):
        grid = (len(result), -(-result.shape[1] // 128))
        gpu.launch(self.file, f"{kernel}<{gpu.c_type(result)}>", grid, (128,), arguments)


class Flash:
    """Rung 6, a tile of scores at a time and the softmax step by step: nothing of size T x T is written."""

    file, kernels, threads = HERE / "flash.cu", "flash", 64

    def own_rows(self, size):
        """Rows of the tile that a block keeps, for heads of this size."""
        return 32

    def shared_bytes(self, kernel, size, itemsize):
        """Of dynamic shared memory."""
        return 0 if kernel == "forward" else 4 * (4 * 32 * (size + 1) + 2 * 32 * 33)  # BackwardTiles

    def forward(self, q, k, v, q_segments, k_segments, heads, scale, causal=False, dropout=0.0, key=(0, 0)):
        xp = array_namespace(q)
        problem = _Problem(q, k, q_segments, k_segments, heads)
        q, k, v = (gpu.contiguous(x) for x in (q, k, v))
        out = xp.zeros(q.shape, q.dtype)  # rows in no text stay 0
        logsumexp = xp.full((heads, len(q)), -np.inf, np.float32)
        options = problem.options(scale, causal, dropout, key)
        self._launch("forward", heads, len(q), problem, (q, k, v, out, logsumexp, *options))
        return out, logsumexp

    def backward(
        self, dout, q, k, v, out, logsumexp, q_segments, k_segments, heads, scale,
        causal=False, dropout=0.0, key=(0, 0),
    ):  # fmt: skip
        xp = array_namespace(q)
        problem = _Problem(q, k, q_segments, k_segments, heads)
        dout, q, k, v, out, logsumexp = (gpu.contiguous(x) for x in (dout, q, k, v, out, logsumexp))
        dq, dk, dv = (xp.zeros(x.shape, x.dtype) for x in (q, k, v))
        dots = xp.empty((heads, len(q)), np.float32)
        arguments = (dout, out, dots, *np.array([len(q), heads, problem.size], np.int32))
        kernel = f"flash_dots<{gpu.c_type(q)}>"
        gpu.launch(HERE / "flash.cu", kernel, (-(-len(q) // 4), heads), (128,), arguments)
        given, options = (dout, q, k, v, logsumexp, dots), problem.options(scale, causal, dropout, key)
        self._launch("dk_dv", problem.key_heads, len(k), problem, (*given, dk, dv, *options))
        self._launch("dq", heads, len(q), problem, (*given, dq, *options))
        return dq, dk, dv

    def _launch(self, kernel, heads, rows, problem, arguments):
        q, size = arguments[0], problem.padded_size()
        grid = (heads, problem.tiles(rows, self.own_rows(size)))
        name = f"{self.kernels}_{kernel}<{gpu.c_type(q)}, {size}>"
        shared = self.shared_bytes(kernel, size, q.itemsize)
        gpu.launch(self.file, name, grid, (self.threads,), arguments, shared)


class FlashTensorCore(Flash):
    """Rung 7, the same in matrix instructions of bfloat16 or tf32 (to which float32 is rounded).

    Backward of heads of more than 64 columns in tf32 takes 132 kB of shared memory, which sm_80 and sm_90 have and
    sm_86 and sm_89 have not; the rung before takes 75 kB.
    """

    file, kernels, threads = HERE / "flash_tensor_core.cu", "flash_tensor_core", 128
    tolerance = 2**-9
    """Of tf32, for scores of the usual size; flash_tensor_core.cu says what large ones cost."""

    def own_rows(self, size):
        return 128 if size <= 64 else 64  # Sizes::own_rows

    def shared_bytes(self, kernel, size, itemsize):
        # The tile that stays and the two that walk, each twice: one is here, one is on its way.
        if kernel == "forward":
            return itemsize * size * (self.own_rows(size) + 2 * 2 * 128 // itemsize)
        return itemsize * size * (2 * self.own_rows(size) + 2 * 2 * 32) + 2 * 2 * 32 * 4


class _Problem:
    """The segments as the kernels want them, and the sizes, which are the same for all of them."""

    def __init__(self, q, k, q_segments, k_segments, heads):
        self.heads, self.size = heads, q.shape[1] // heads
        self.key_heads = k.shape[1] // self.size
        self.rows, self.key_rows = len(q), len(k)
        self.q_segments = _segments(q_segments, q)
        are_the_same = k_segments is q_segments and len(k) == len(q)
        self.k_segments = self.q_segments if are_the_same else _segments(k_segments, k)
        self.sizes = np.array([len(q), len(k), heads, self.key_heads, self.size], np.int32)

    def most_keys(self):
        """How many keys the longest text has. The GPU must be waited for to know it."""
        lengths = self.k_segments[:, 1] - self.k_segments[:, 0]
        return int(lengths.max()) if len(lengths) else 0

    def tiles(self, rows, rows_of_tile):
        """As many as the tiles of all texts can be: each text may end in a tile that is not full."""
        return rows // rows_of_tile + len(self.q_segments) if rows else 0

    def padded_size(self):
        """The head size that the kernel is compiled for. Raises ValueError for one that is too large."""
        for size in (32, 64, 128):
            if self.size <= size:
                return size
        raise ValueError(f"attention: CUDA C takes heads of at most 128 columns, not {self.size}")

    def options(self, scale, causal, dropout, key):
        """What all flash kernels take after their arrays. Raises ValueError unless the scale is positive."""
        if not scale > 0:
            raise ValueError(f"attention: flash kernels take a positive scale, not {scale}")
        texts = np.int32(len(self.q_segments))
        return (self.q_segments, self.k_segments, texts, *self.sizes, np.float32(scale), np.int32(causal),
                *mask_arguments(dropout, key))  # fmt: skip


def _segments(segments, x):
    """int64 on x's device. Segments that are on a GPU already are not looked at: that would have to wait for it."""
    if isinstance(segments, np.ndarray):
        check_segments(segments, len(x))
    return gpu.contiguous(array_namespace(x).asarray(segments, np.int64))


materialised, flash, flash_tensor_core = Materialised(), Flash(), FlashTensorCore()
