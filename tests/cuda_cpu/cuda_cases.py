"""Each kernel of kernels/*.cu with inputs, a launch, and the result that NumPy computes in float64."""

from pathlib import Path

import ml_dtypes
import numpy as np
from minift_kernels.cuda_cpu import launch

KERNELS = Path(__file__).parent / "kernels"


def random(*shape, dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def agree(result, expected, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(result, np.float64), expected, rtol=tolerance, atol=tolerance)


def softmax(module, name, threads, shape):
    x = 5 * random(*shape)
    y = np.zeros_like(x)
    launch(module.get_function(name), (shape[0],), (threads,), (x, y, np.int32(shape[1])))
    exponentials = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    agree(y, exponentials / exponentials.sum(axis=1, keepdims=True))


def softmax_naive(module):
    softmax(module, "softmax_naive", 24, (5, 33))


def softmax_shuffle(module):
    softmax(module, "softmax_shuffle", 128, (5, 300))


def matmul_tiled(module):
    (M, N, K), a, b = (35, 21, 50), random(35, 50), random(50, 21)
    c = np.zeros((M, N), np.float32)
    grid = (-(-N // 16), -(-M // 16))
    launch(module.get_function("matmul_tiled"), grid, (16, 16), (a, b, c, *np.int32([M, N, K])))
    agree(c, a.astype(np.float64) @ b)


def on_tensor_cores(module, name, dtype, threads, factor=1.0):
    (M, N, K), a, b = (32, 48, 64), random(32, 64, dtype=dtype), random(64, 48, dtype=dtype)
    c = np.zeros((M, N), np.float32)
    launch(module.get_function(name), (N // 16, M // 16), (threads,), (a, b, c, *np.int32([N, K])))
    agree(c, factor * (a.astype(np.float64) @ b.astype(np.float64)))


def matmul_wmma_bf16(module):
    on_tensor_cores(module, "matmul_wmma_bf16", ml_dtypes.bfloat16, threads=32, factor=2.0)


def matmul_wmma_f16(module):
    on_tensor_cores(module, "matmul_wmma_f16", np.float16, threads=32, factor=2.0)


def matmul_mma_bf16(module):
    on_tensor_cores(module, "matmul_mma_bf16", ml_dtypes.bfloat16, threads=64)


def round_to_tf32(x):
    """The 10 leading bits of the mantissa, rounded to the nearest, ties away from zero."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.trunc(mantissa * 2**11 + np.copysign(0.5, mantissa)) / 2**11 * 2.0**exponent


def matmul_mma_tf32(module):
    a, b = random(32, 64), random(64, 48)
    c = np.zeros((32, 48), np.float32)
    launch(module.get_function("matmul_mma_tf32"), (6, 2), (32,), (a, b, c, *np.int32([48, 64])))
    agree(c, round_to_tf32(a) @ round_to_tf32(b))


def matmul_wmma_tf32(module):
    M, N, K = 32, 48, 64
    a, b = random(M, K), random(K, N)
    c_transposed = np.zeros((N, M), np.float32)
    columns = np.ascontiguousarray(b.T)
    launch(
        module.get_function("matmul_wmma_tf32"),
        (3, 2),
        (32,),
        (a, columns, c_transposed, *np.int32([M, N, K])),
    )
    agree(c_transposed.T, round_to_tf32(a) @ round_to_tf32(b))


def load_fragments(module):
    x, registers = np.arange(1, 257, dtype=np.uint16), np.zeros((12, 32), np.uint32)
    launch(module.get_function("load_fragments"), (1,), (32,), (x, registers))
    matrices = x.reshape(4, 8, 8).copy()
    matrices[3, 7, 3:] = 0
    transposed = matrices.transpose(0, 2, 1)
    for lane in range(32):
        row, columns = lane // 4, slice(lane % 4 * 2, lane % 4 * 2 + 2)
        plain, swapped = matrices[:, row, columns], transposed[:, row, columns]
        expected = np.concatenate([plain, swapped, plain[:2], swapped[:2]])  # (12, 2): lower and upper half
        assert registers[:, lane].tolist() == [int(low) | int(high) << 16 for low, high in expected]


def row_sums(module):
    x, sums = random(3, 150), np.zeros(3, np.float32)
    launch(module.get_function("row_sums"), (3,), (64,), (x, sums, np.int32(150)), shared_bytes=64 * 4)
    agree(sums, x.sum(axis=1, dtype=np.float64))


def histogram(module):
    values = np.random.default_rng(0).integers(0, 64, 3000, dtype=np.int32)
    counts = np.zeros(64, np.uint32)
    launch(module.get_function("histogram"), (4,), (96,), (values, counts, np.int32(3000)))
    np.testing.assert_array_equal(counts, np.bincount(values, minlength=64))


def scale(module):
    x, y = random(103), np.zeros(103, np.float32)
    launch(module.get_function("scale"), (2,), (32,), (x, y, np.float32(3), np.int32(103)))
    agree(y, 3 * x)


def reverse_warps(module):
    x, y = np.arange(64, dtype=np.int32), np.zeros(64, np.int32)
    launch(module.get_function("reverse_warps"), (1,), (64,), (x, y))
    np.testing.assert_array_equal(y, x.reshape(2, 32)[:, ::-1].ravel())


def sum_by_last_block(module):
    x, total = random(5 * 32), np.zeros(1, np.float32)
    arguments = (x, np.zeros(5, np.float32), np.zeros(1, np.uint32), total)
    launch(module.get_function("sum_by_last_block"), (5,), (32,), arguments)
    agree(total[0], x.sum(dtype=np.float64))


def votes(module):
    x, answers, ballots = random(96), np.zeros(5, np.int32), np.zeros(3, np.uint32)
    launch(module.get_function("votes"), (1,), (96,), (x, answers, ballots))
    half = x[32:48] > 0
    assert answers.tolist() == [(x > 0).sum(), 1, 0, half.any(), half.all()]
    bits = (x > 0).reshape(3, 32)
    assert ballots.tolist() == [sum(1 << i for i in range(32) if row[i]) for row in bits]


def add_under_lock(module):
    lock, value = np.zeros(1, np.int32), np.zeros(1, np.int32)
    launch(module.get_function("add_under_lock"), (3,), (70,), (lock, value))
    assert value[0] == 3 * sum(range(70))


def shuffles(module, width=8):
    x, y = random(32, dtype=np.float64), np.zeros((4, 32))
    launch(module.get_function("shuffles"), (1,), (32,), (x, y, np.int32(width)))
    lane = np.arange(32)
    group = lane // width * width
    np.testing.assert_array_equal(y[0], x[group + 3])
    np.testing.assert_array_equal(y[1], x[np.where(lane - 2 < group, lane, lane - 2)])
    np.testing.assert_array_equal(y[2], x[np.where(lane + 2 >= group + width, lane, lane + 2)])
    np.testing.assert_array_equal(y[3], x[lane ^ 5])


def rotate(module):
    x, y = random(64), np.zeros(64, np.float32)
    launch(module.get_function("rotate<64>"), (1,), (64,), (x, y))
    np.testing.assert_array_equal(y, np.roll(x, -1))


CASES = {
    "softmax.cu": (softmax_naive, softmax_shuffle),
    "matmul.cu": (
        matmul_tiled,
        matmul_wmma_bf16,
        matmul_wmma_f16,
        matmul_wmma_tf32,
        matmul_mma_bf16,
        matmul_mma_tf32,
        load_fragments,
    ),
    "blocks.cu": (
        row_sums,
        histogram,
        scale,
        reverse_warps,
        sum_by_last_block,
        votes,
        add_under_lock,
        shuffles,
        rotate,
    ),
}
"""The kernels that are right, by file."""

INSTANTIATIONS = {"blocks.cu": ("rotate<64>",)}
"""Template kernels to build."""
