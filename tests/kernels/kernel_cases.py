"""What every rung of an operation must compute: for each operation how to run it, and the inputs that are
hard.

A runner takes a rung and named inputs, and returns named results, forward's and backward's. Inputs are
float64 (or integers); the contract casts them to what it checks. Odd sizes divide no block; the others are
where formulas break.

A rung may say two things of itself: `deterministic = False`, where it adds in an order that changes from run
to run, and `tolerance = 1e-3`, where it computes in fewer digits than float32 (of each value and of the
largest value beside it)."""

import os
import shutil
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from minift_kernels import OPERATIONS as LADDERS
from minift_kernels.ladder import family_of
from minift_kernels.matmul.reference import linear_gradients

INFINITY = float("inf")


def normal(*shape, scale=1.0, seed=0):
    """Random numbers whose float32 value is their float64 value, so that both precisions see one input."""
    values = np.random.default_rng([seed, *shape]).normal(0, scale, shape)
    return values.astype(np.float32).astype(np.float64)


# ------------------------------------------------------------------------------------------------------------
# How to run each operation


def run_matmul(rung, a, b, bias=None, dc=None):
    results = {"c": rung.forward(a, b, bias)}
    if dc is not None:
        results |= {"da": rung.forward(dc, b.T), "db": rung.forward(a.T, dc), "dbias": rung.sum_rows(dc)}
        if hasattr(rung, "linear_backward"):
            backward = rung.linear_backward
        else:  # which matmul's own linear_backward calls then
            backward = partial(linear_gradients, rung)
        for layout, weight in (("", b.T.copy()), ("transposed_", b.T)):
            dx, dweight, dbias = backward(dc, a, weight, True)
            results |= {f"{layout}dx": dx, f"{layout}dweight": dweight, f"{layout}linear_dbias": dbias}
    return results


def run_softmax(rung, x, dy):
    y = rung.forward(x)
    return {"y": y, "dx": rung.backward(dy, y)}


def run_attention(rung, q, k, v, dout, q_segments, k_segments, **options):
    out, logsumexp = rung.forward(q, k, v, q_segments, k_segments, **options)
    gradients = rung.backward(dout, q, k, v, out, logsumexp, q_segments, k_segments, **options)
    return {"out": out, "logsumexp": logsumexp} | dict(zip(("dq", "dk", "dv"), gradients, strict=True))


def run_layer_norm(rung, x, residual, weight, bias, dy, eps=1e-12):
    y, normalized, rstd = rung.forward(x, residual, weight, bias, eps)
    gradients = rung.backward(dy, normalized, rstd, weight)
    return {"y": y, "normalized": normalized, "rstd": rstd} | dict(
        zip(("dx", "dweight", "dbias"), gradients, strict=True)
    )


def run_gelu(rung, x, dy):
    return {"y": rung.forward(x), "dx": rung.backward(dy, x)}


def run_dropout(rung, x, p, key):
    return {"y": rung.forward(x, p, key)}


def run_embedding(rung, ids, table, dy):
    return {"y": rung.forward(ids, table), "dtable": rung.backward(dy, ids, len(table))}


def run_cross_entropy(rung, logits, targets, dlosses, class_weights=None, **options):
    losses, logsumexp = rung.forward(logits, targets, class_weights, **options)
    dlogits = rung.backward(dlosses, logits, logsumexp, targets, class_weights, **options)
    return {"losses": losses, "logsumexp": logsumexp, "dlogits": dlogits}


def run_adamw(rung, w, g, m, v, **options):
    w, m, v = ([array.copy(order="K") for array in arrays] for arrays in (w, m, v))
    rung.step(w, g, m, v, **options)
    return {
        f"{name}{i}": array
        for name, arrays in (("w", w), ("m", m), ("v", v))
        for i, array in enumerate(arrays)
    }


def run_grad_norm(rung, gradients):
    return {"norm": np.float64(float(rung.forward(gradients)))}


def run_summary(rung, x):
    moments, counts = rung.forward(x)
    return {"moments": moments, "counts": counts}


# ------------------------------------------------------------------------------------------------------------
# The hard inputs of each


def matmul_cases():
    for m, k, n in ((1, 1, 1), (7, 5, 3), (3, 200, 1), (1, 33, 70), (130, 65, 37), (257, 129, 67)):
        yield f"{m}x{k}x{n}", dict(a=normal(m, k), b=normal(k, n), bias=normal(n), dc=normal(m, n))
    yield (
        "parts with a remainder",
        dict(a=normal(5, 37), b=normal(37, 150), bias=normal(150), dc=normal(5, 150)),
    )
    yield "no bias", dict(a=normal(9, 6), b=normal(6, 11))
    # Two of the largest tiles, each way, and a sum that is several tiles deep.
    yield "129x20x131", dict(a=normal(129, 20), b=normal(20, 131))
    yield "9x268x12", dict(a=normal(9, 268), b=normal(268, 12))
    # On a CPU: panels with and without a remainder, in one part and in several.
    yield "16x64x96", dict(a=normal(16, 64), b=normal(64, 96), bias=normal(96), dc=normal(16, 96))
    yield "11x1550x50", dict(a=normal(11, 1550), b=normal(1550, 50), bias=normal(50), dc=normal(11, 50))
    yield "no rows", dict(a=normal(0, 6), b=normal(6, 11), bias=normal(11), dc=normal(0, 11))
    yield "nothing to sum", dict(a=normal(4, 0), b=normal(0, 3), bias=normal(3))


def softmax_cases():
    # The last two are whole numbers of vector loads, of either type, and more of them than a few warps share.
    for rows, columns in ((1, 1), (5, 1), (3, 7), (3, 19), (13, 33), (4, 1003), (7, 24), (1, 2056)):
        yield f"{rows}x{columns}", dict(x=normal(rows, columns, scale=3), dy=normal(rows, columns, seed=1))
    yield "three axes", dict(x=normal(2, 3, 5), dy=normal(2, 3, 5, seed=1))
    yield "no rows", dict(x=normal(0, 5), dy=normal(0, 5))
    large = normal(4, 9)
    large[0, 3], large[1, :] = 1e4, -1e4
    yield "1e4", dict(x=large, dy=normal(4, 9, seed=1))
    masked = normal(4, 9)
    masked[0, 4:], masked[1, :8], masked[2, 0] = -INFINITY, -INFINITY, -INFINITY
    yield "-inf", dict(x=masked, dy=normal(4, 9, seed=1))
    nan = normal(3, 20)
    nan[1, 11] = np.nan
    yield "NaN in one row", dict(x=nan, dy=normal(3, 20, seed=1))


def attention_cases():
    def case(lengths, heads=2, key_heads=None, size=8, key_lengths=None, gap=0, scale=None, **options):
        key_heads = key_heads or heads
        q_segments = segments_of(lengths, gap)
        k_segments = segments_of(key_lengths or lengths, gap)
        t, tk = int(q_segments.max()) + gap, int(k_segments.max()) + gap
        return dict(
            q=normal(t, heads * size),
            k=normal(tk, key_heads * size, seed=1),
            v=normal(tk, key_heads * size, seed=2),
            dout=normal(t, heads * size, seed=3),
            q_segments=q_segments,
            k_segments=k_segments,
            heads=heads,
            scale=scale or size**-0.5,
            **options,
        )

    yield "one text", case([7])
    yield "length 1 and none", case([1, 0, 5, 1, 0, 17])
    yield "no text", case([0])
    yield "gaps", case([4, 0, 9], gap=3)
    yield "longer than a block", case([300, 2, 131], heads=1, size=32)
    yield "several tiles", case([140, 3, 66], heads=1, causal=True, dropout=0.2, key=(5, 6))
    yield "head size 64", case([22, 33], heads=3, size=64)
    yield "head size 100", case([3, 9], heads=1, size=100)
    yield "head size 128", case([70, 5], heads=2, key_heads=1, size=128, causal=True, dropout=0.1, key=(8, 9))
    yield "head size 5", case([6, 9], heads=3, size=5)
    yield "causal", case([1, 6, 0, 40], causal=True)
    yield "causal, more keys than queries", case([1, 3, 5], key_lengths=[9, 3, 6], causal=True)
    yield "causal, fewer keys than queries", case([3, 5, 2], key_lengths=[2, 1, 0], causal=True)
    yield (
        "causal, several tiles of both",
        case([140], key_lengths=[165], heads=2, key_heads=1, size=4, causal=True),
    )
    edges = [31, 32, 63, 64, 127, 128]
    yield "at the edges of tiles", case(edges, heads=1, size=4)
    yield "causal, at the edges of tiles", case(edges, heads=1, size=4, causal=True)
    # The first query sees all of the first tile of 32 keys, or of 64, but one.
    yield (
        "causal, a key before the edges of tiles",
        case([33, 65], key_lengths=[63, 127], heads=1, size=4, causal=True),
    )
    yield "queries and keys differ", case([4, 0, 7, 2], key_lengths=[9, 3, 2, 0], gap=1)
    yield "grouped queries", case([5, 12], heads=6, key_heads=2, causal=True)
    yield "dropout", case([5, 40, 1], dropout=0.3, key=(1, 2))
    yield "dropout of everything", case([5, 4], dropout=1.0, key=(1, 2))
    yield (
        "all at once",
        case(
            [5, 0, 18],
            key_lengths=[7, 2, 18],
            heads=4,
            key_heads=2,
            gap=2,
            causal=True,
            dropout=0.2,
            key=(3, 2**32 - 1),
        ),
    )
    # Whole numbers times a power of two: both precisions see the same scores of up to 1e4, and no two alike.
    whole = case([9, 4], scale=64.0)
    yield "scores of 1e4", whole | {name: (10 * whole[name]).round() for name in ("q", "k", "v", "dout")}


def segments_of(lengths, gap):
    """(B, 2) pairs of start and end, `gap` rows between texts."""
    starts = np.cumsum([gap] + [length + gap for length in lengths[:-1]])
    return np.stack([starts, starts + lengths], axis=1).astype(np.int64)


def layer_norm_cases():
    def case(t, h, residual=True, **change):
        arrays = dict(
            x=normal(t, h),
            residual=normal(t, h, seed=1) if residual else None,
            weight=normal(h, seed=2),
            bias=normal(h, seed=3),
            dy=normal(t, h, seed=4),
        )
        return arrays | change

    for t, h in ((1, 3), (1, 7), (1, 19), (3, 33), (131, 20), (5, 385), (3, 600)):
        yield f"{t}x{h}", case(t, h)
    yield "wider than a warp holds", case(2, 1028)
    yield "no residual", case(67, 12, residual=False)
    yield "no rows", case(0, 12)
    constant = normal(3, 16)
    constant[1] = 3.0
    yield "a constant row", case(3, 16, residual=False, x=constant, eps=1e-5)
    # E[x^2] - E[x]^2 would lose everything here. Of whole numbers, float32 knows the mean of 64 exactly.
    yield "a large mean", case(3, 64, residual=False, x=1000 + (4 * normal(3, 64)).round())


def gelu_cases():
    for shape in ((1,), (3, 7), (19,), (2, 3, 5), (2101,), (0, 4)):
        yield f"{shape}", dict(x=normal(*shape, scale=2), dy=normal(*shape, seed=1))
    extremes = np.array([30.0, -30, 1e4, -1e4, 0, -0.0, 1e-30, -1e-30, 5, -5, 9, -9, np.nan])
    yield "extremes", dict(x=extremes, dy=np.ones(13))


def dropout_cases():
    for shape in ((1,), (5,), (3, 7), (4097,), (13, 700), (0, 3)):
        yield f"{shape}", dict(x=normal(*shape), p=0.1, key=(7, 9))
    yield "p = 0", dict(x=normal(3, 5), p=0.0, key=(0, 0))
    yield "p = 1", dict(x=normal(3, 5), p=1.0, key=(0, 0))
    yield "largest key", dict(x=normal(33, 5), p=0.5, key=(2**32 - 1, 2**32 - 1))


def embedding_cases():
    def case(ids, rows, columns):
        ids = np.array(ids, np.int64)
        return dict(ids=ids, table=normal(rows, columns), dy=normal(len(ids), columns, seed=1))

    yield "repeated rows", case([2, 0, 2, 2, 4], 5, 7)
    yield "one column", case([1, 1, 0], 2, 1)
    yield "nearly all tokens of one row", case([1] * 3 + [0] * 150 + [2, 3] * 7, 4, 8)
    yield "many", case(np.random.default_rng(0).integers(0, 50, 333), 50, 37)
    yield "no tokens", case([], 5, 3)
    yield "int32", case([3, 1, 3], 4, 6) | dict(ids=np.array([3, 1, 3], np.int32))


def cross_entropy_cases():
    def case(rows, classes, weighted=False, **options):
        targets = np.random.default_rng(rows).integers(0, classes, rows)
        options.setdefault("logits", normal(rows, classes, scale=3))
        weights = dict(class_weights=abs(normal(classes, seed=1))) if weighted else {}
        return dict(targets=targets, dlosses=normal(rows, seed=2)) | weights | options

    for rows, classes in ((1, 1), (1, 2), (5, 3), (1, 19), (33, 17), (3, 1003)):
        yield f"{rows}x{classes}", case(rows, classes)
    yield "no rows", case(0, 3)
    yield "weights", case(9, 5, weighted=True)
    yield "smoothing", case(9, 5, label_smoothing=0.1)
    yield "smoothing over many classes", case(2, 601, label_smoothing=0.1)
    yield "smoothing over thousands of classes", case(2, 2051, label_smoothing=0.1)
    yield "weights and smoothing", case(9, 5, weighted=True, label_smoothing=0.3)
    ignored = np.array([0, -100, 2, -100])
    yield "ignored rows", case(4, 3, weighted=True, label_smoothing=0.1, targets=ignored)
    yield "another ignored index", case(4, 3, targets=np.array([0, 1, 2, 1]), ignore_index=1)
    yield "all ignored", case(2, 3, targets=np.array([-100, -100]))
    yield "int32 targets", case(4, 3, targets=np.array([0, 1, 2, 1], np.int32))
    extreme = np.array([[1e4, 0, -1e4], [-INFINITY, 1, 2], [0, -INFINITY, -INFINITY], [30, 30, 30]])
    yield "extreme logits", case(4, 3, logits=extreme, targets=np.array([0, 2, 0, 1]))
    # The wrong side of a saturated softmax: a loss of 2e4, whose gradient is still 1.
    yield "hopeless", case(2, 3, logits=extreme[:2].clip(-1e4), targets=np.array([2, 0]))


def adamw_cases():
    def case(*shapes, **change):
        options = dict(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, step=1) | change
        arrays = dict(
            w=[normal(*shape) for shape in shapes],
            g=[normal(*shape, seed=1) for shape in shapes],
            m=[normal(*shape, scale=0.1, seed=2) for shape in shapes],
            v=[normal(*shape, seed=3) ** 2 for shape in shapes],
        )
        if options["step"] == 1:
            arrays["m"] = [np.zeros(shape) for shape in shapes]
            arrays["v"] = [np.zeros(shape) for shape in shapes]
        return arrays | options

    yield "first step", case((3, 5), (1,), (7,))
    yield "later step", case((3, 5), (1,), (7,), step=1000)
    yield "longer than a chunk", case((33, 1001), (2,), step=3)
    yield "a vector and a rest", case((19,), step=5)
    yield "scaled gradients", case((4, 3), gradient_scale=0.25)
    yield "no decay", case((4, 3), weight_decay=0.0, step=2)
    yield "an empty array among others", case((4,), (0, 3), (2,))
    yield "no gradient yet", case((4, 3)) | dict(g=[np.zeros((4, 3))])
    yield "gradients as small as eps", case((4, 3)) | dict(g=[normal(4, 3, scale=1e-8)])


def grad_norm_cases():
    yield "one number", dict(gradients=[np.array([3.0])])
    yield "several arrays", dict(gradients=[normal(3, 5), normal(1), normal(2, 3, 4), normal(0, 7)])
    yield "longer than a chunk", dict(gradients=[normal(100_003), normal(17)])
    yield "more arrays than a block has threads", dict(gradients=[normal(2, seed=i) for i in range(1100)])
    yield "squares beyond float32", dict(gradients=[np.full(5, 2.0**100), np.full(3, 2.0**-100)])
    yield "many equal squares", dict(gradients=[np.full(1 << 20, 1 + 2.0**-23)])


def summary_cases():
    for shape in ((1,), (3, 7), (2, 3, 5), (16385,), (0, 4)):
        yield f"{shape}", dict(x=normal(*shape))
    yield "more than are counted one and all", dict(x=normal(257, 300))
    powers = 2.0 ** np.arange(-60, 60)
    yield "the edges of the bins", dict(x=np.concatenate([powers, -powers, powers * (1 - 2.0**-24)]))
    yield "zeros and denormal numbers", dict(x=np.array([0.0, -0.0, 2.0**-140, -(2.0**-149), 1.0]))
    some = normal(3, 8000)
    some[0, 5], some[1, 3], some[1, 4], some[2, 7990] = np.nan, INFINITY, -INFINITY, np.nan
    yield "NaN and infinities among others", dict(x=some)
    yield "nothing finite", dict(x=np.array([np.nan, INFINITY]))
    yield "squares beyond float32", dict(x=np.array([2.0**100, -(2.0**100), 2.0**-100]))


OPERATIONS = {
    "matmul": (run_matmul, matmul_cases),
    "softmax": (run_softmax, softmax_cases),
    "attention": (run_attention, attention_cases),
    "layer_norm": (run_layer_norm, layer_norm_cases),
    "gelu": (run_gelu, gelu_cases),
    "gelu_tanh": (run_gelu, gelu_cases),
    "dropout": (run_dropout, dropout_cases),
    "embedding": (run_embedding, embedding_cases),
    "cross_entropy": (run_cross_entropy, cross_entropy_cases),
    "adamw": (run_adamw, adamw_cases),
    "grad_norm": (run_grad_norm, grad_norm_cases),
    "summary": (run_summary, summary_cases),
}

CASES = {operation: cases for operation, (_, cases) in OPERATIONS.items()}


# ------------------------------------------------------------------------------------------------------------
# What the contract tests share

RELATIVE, ABSOLUTE = 3e-6, 1e-6
"""Of each value, and of the largest value beside it: some 25 and 8 units of float32's last place."""

MOST_EMULATED = 10_000
"""Inputs of more elements than this make an emulated GPU too slow for the ordinary suite."""

MOST_SIMULATED = 2_000
"""Inputs of more elements than this make Numba's simulator, whose threads are real ones, take minutes."""

BFLOAT16 = {
    "matmul": (),
    "softmax": (),
    "attention": (),
    "layer_norm": ("weight", "bias"),
    "gelu": (),
    "gelu_tanh": (),
    "dropout": (),
    "embedding": (),
    "cross_entropy": ("dlosses", "class_weights"),
}
"""The operations that run in bfloat16 in mixed precision, and their inputs that stay float32 all the same."""

SIMULATING = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"


def rungs_to_test(operation):
    """The rungs that can run in this process: in the simulator only Numba's, for there all are slow."""
    rungs = LADDERS[operation].rungs
    if SIMULATING:
        return [rung for rung in rungs if family_of(rung) == "numba_cuda"]
    return [rung for rung in rungs if family_of(rung) != "numba_cuda"]


def cuda_c_rungs(operation):
    return [rung for rung in LADDERS[operation].rungs if family_of(rung) == "cuda_c"]


def each_case(rungs_of, cases=CASES):
    """Run a test as (operation, rung, inputs) for every case of every operation and each of these rungs."""
    return pytest.mark.parametrize(
        ("operation", "rung", "inputs"),
        [
            pytest.param(operation, rung, inputs, id=f"{operation}-{rung}-{name}", marks=_marks(rung, inputs))
            for operation in cases
            for name, inputs in cases[operation]()
            for rung in rungs_of(operation)
        ],
    )


def _marks(rung, inputs):
    is_cuda_c = family_of(rung) == "cuda_c"
    marks = []
    if is_cuda_c and shutil.which("g++") is None:
        marks.append(pytest.mark.skip(reason="running CUDA C on the CPU needs g++"))
    if is_cuda_c and elements(inputs) > MOST_EMULATED:
        marks.append(pytest.mark.slow)
    if family_of(rung) == "numba_cuda" and elements(inputs) > MOST_SIMULATED:
        marks.append(pytest.mark.skip(reason="Numba's simulator would take minutes"))
    return marks


def elements(inputs):
    """How many elements the arrays among the inputs have in all."""
    values = [x for value in inputs.values() for x in (value if isinstance(value, list) else [value])]
    return sum(value.size for value in values if isinstance(value, np.ndarray))


def run(operation, rung, inputs):
    return OPERATIONS[operation][0](LADDERS[operation].rungs[rung], **inputs)


def changed(inputs, change, leave=()):
    """The same inputs with `change` applied to every array but those named in `leave`."""

    def apply(value):
        if isinstance(value, list):
            return [change(array) for array in value]
        return change(value) if isinstance(value, np.ndarray) else value

    return {name: value if name in leave else apply(value) for name, value in inputs.items()}


def as_float32(x):
    return x.astype(np.float32) if x.dtype == np.float64 else x


def as_bfloat16(x):
    return x.astype(ml_dtypes.bfloat16) if x.dtype in (np.float64, np.float32) else x


def absolute_bound(operation, inputs):
    """ABSOLUTE, and more for attention with large heads.

    Its dq and dk come from the difference of two sums of D products (dout v and dout out), and where a query sees one
    key alone nothing but their roundings is left, which grow with D.
    """
    if operation != "attention":
        return ABSOLUTE
    return ABSOLUTE * max(1, inputs["q"].shape[1] // inputs["heads"] / 64)


def check_close(got, want, name, rung=None, relative=RELATIVE, absolute=ABSOLUTE):
    """Whether results agree to what float32 promises, or to what the rung does."""
    assert got.shape == want.shape, name
    relative, absolute = (max(bound, getattr(rung, "tolerance", 0)) for bound in (relative, absolute))
    largest = np.abs(want[np.isfinite(want)]).max(initial=0)
    smallest = np.finfo(np.float32).tiny  # what lies below may be 0 in float32
    np.testing.assert_allclose(
        np.asarray(got, np.float64), want, relative, absolute * largest + smallest, err_msg=name
    )
