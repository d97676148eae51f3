"""The operations of a transformer: each with its forward, and right under it its backward.

An operation computes on arrays, through a kernel, and returns a Tensor that knows its parents. Its backward takes
dy, the gradient of the loss by the operation's output, and returns the gradient by each parent. It keeps of the
forward only what it will read, and nothing for the sake of a parent that needs no gradient: under a frozen weight
no x is kept and no product is run.

Axis letters: T tokens in the batch, B texts, H hidden size, N heads, D head size (H = N D), V vocabulary, C classes.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from minift_kernels import attention as attention_kernels
from minift_kernels import dropout as dropout_kernels
from minift_kernels import embedding as embedding_kernels
from minift_kernels import gelu as gelu_kernels
from minift_kernels import gelu_tanh as gelu_tanh_kernels
from minift_kernels import layer_norm as layer_norm_kernels
from minift_kernels import matmul as matmul_kernels
from minift_kernels import softmax as softmax_kernels
from minift_kernels.arrays import array_namespace, check_indices, wide

from minift.history import Array
from minift.random import Key
from minift.tensor import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b: x (T, in), W (out, in), b (out,), y (T, out).

    It computes in the dtype of x: weights that are kept in float32 are rounded to bfloat16 for an x of bfloat16, and
    their gradients come back in float32.
    """
    weight_dtype, weight_data = weight.dtype, weight.data.astype(x.dtype, copy=False)
    bias_data = None if bias is None else bias.data
    y = matmul_kernels.forward(x.data, weight_data.T, bias_data)  # (T, out)
    saved_weight = weight_data if x.requires_grad else None  # dx needs W
    saved_x = x.data if weight.requires_grad else None  # dW needs x
    needs_bias = bias is not None and bias.requires_grad

    def backward(dy):
        # y_to = sum_i x_ti W_oi + b_o, so dx_ti = sum_o dy_to W_oi, dW_oi = sum_t dy_to x_ti, db_o = sum_t dy_to
        dx, dweight, dbias = matmul_kernels.linear_backward(dy, saved_x, saved_weight, needs_bias)
        return dx, _in(weight_dtype, dweight), _in(weight_dtype, dbias)  # (T, in), (out, in), (out,)

    return Tensor(y, parents=(x, weight, bias), backward=backward)


def _in(dtype: np.dtype, array: Array | None) -> Array | None:
    return None if array is None else array.astype(dtype, copy=False)


def embedding(ids: Array, weight: Tensor, dtype: type | None = None) -> Tensor:
    """y_t = W[ids_t]: ids (T,) integers, W (V, H), y (T, H), in W's dtype or rounded to `dtype`."""
    check_indices("embedding row", ids, weight.shape[0])  # here, for on a GPU nobody looks
    ids = array_namespace(weight.data).asarray(ids)
    y = embedding_kernels.forward(ids, weight.data).astype(dtype or weight.dtype, copy=False)  # (T, H)
    rows, weight_dtype = weight.shape[0], weight.dtype

    def backward(dy):
        # A row that was looked up several times receives the sum of what its copies receive.
        dweight = embedding_kernels.backward(_in(weight_dtype, dy), ids, rows)  # (V, H)
        return (_in(weight_dtype, dweight),)

    return Tensor(y, parents=(weight,), backward=backward)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
    """y = w (z - mean(z)) / sqrt(var(z) + eps) + b with z = x + residual, over the last axis (Ba et al. 2016).

    x, residual and y (T, H); w and b (H,). The sum with the residual stands inside because BERT never normalises
    without adding first, and one pass over memory does both.
    """
    y, normalized, rstd = layer_norm_kernels.forward(
        x.data, None if residual is None else residual.data, weight.data, bias.data, eps
    )
    weight_data = weight.data

    def backward(dy):
        dz, dweight, dbias = layer_norm_kernels.backward(dy, normalized, rstd, weight_data)
        return dz, dweight, dbias, dz  # z = x + residual: dz is the gradient of both

    return Tensor(y, parents=(x, weight, bias, residual), backward=backward)


def gelu(x: Tensor) -> Tensor:
    """y = x Phi(x), Phi the normal distribution function (Hendrycks and Gimpel 2016); the exact form, with erf."""
    x_data = x.data

    def backward(dy):
        # y' = Phi(x) + x phi(x)
        return (gelu_kernels.backward(dy, x_data),)

    return Tensor(gelu_kernels.forward(x_data), parents=(x,), backward=backward)


def gelu_tanh(x: Tensor) -> Tensor:
    """y = x (1 + tanh(u)) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3): GELU's approximation, which GPT-2 uses.

    Hendrycks and Gimpel 2016, section 2.
    """
    x_data = x.data

    def backward(dy):
        # y = x s with s = (1 + tanh(u)) / 2, so y' = s + x s (1 - s) 2 u'
        return (gelu_tanh_kernels.backward(dy, x_data),)

    return Tensor(gelu_tanh_kernels.forward(x_data), parents=(x,), backward=backward)


def swiglu(gate: Tensor, x: Tensor) -> Tensor:
    """y = gate sigmoid(gate) x: SiLU of the gate lets x pass (Shazeer 2020); gate, x and y (T, F)."""
    gate_data, x_data, dtype = wide(gate.data), wide(x.data), x.dtype
    share = _sigmoid(gate_data)

    def backward(dy):
        # silu(g) = g s, so silu' = s + g s (1 - s)
        dy = wide(dy)
        dgate = dy * x_data * share * (1 + gate_data * (1 - share))
        dx = dy * gate_data * share
        return _in(dtype, dgate), _in(dtype, dx)

    return Tensor(_in(dtype, gate_data * share * x_data), parents=(gate, x), backward=backward)


def _sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), of x's dtype; exp may overflow to infinity, whose reciprocal is 0, as it should be."""
    xp = array_namespace(x)
    with np.errstate(over="ignore"):
        return 1 / (1 + xp.exp(-x))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y = w x / sqrt(mean(x^2) + eps) over the last axis (Zhang and Sennrich 2019): x and y (T, H), w (H,)."""
    x_data, weight_data, dtype = wide(x.data), weight.data, x.dtype
    rrms = ((x_data * x_data).mean(axis=1, keepdims=True) + eps) ** -0.5  # (T, 1)
    needs_weight = weight.requires_grad

    def backward(dy):
        # With n = x rrms and y = w n: dx = rrms (dn - n mean(dn n)), dn = w dy, and dw = sum_t dy n
        normalized, dy = x_data * rrms, wide(dy)
        dnormalized = dy * weight_data
        dx = rrms * (dnormalized - normalized * (dnormalized * normalized).mean(axis=1, keepdims=True))
        dweight = (dy * normalized).sum(axis=0) if needs_weight else None
        return _in(dtype, dx), dweight

    return Tensor(_in(dtype, x_data * rrms * weight_data), parents=(x, weight), backward=backward)


def rotary(x: Tensor, cos: Array, sin: Array) -> Tensor:
    """Turn each head's pairs of numbers by angles that grow with the position (Su et al. 2021, section 3.2.2).

    x and y (T, N D); cos and sin (T, D / 2), of the angle of each token and pair. Number i of a head makes a pair with
    number i + D / 2, as in the checkpoints of the Llama family. The product of a turned query and a turned key
    depends on their distance alone.
    """

    def backward(dy):
        # A rotation's transpose is the rotation back.
        return (_turn(dy, cos, -sin),)

    return Tensor(_turn(x.data, cos, sin), parents=(x,), backward=backward)


def _turn(x: Array, cos: Array, sin: Array) -> Array:
    half = cos.shape[1]
    heads = x.reshape(len(x), -1, 2, half)  # (T, N, 2, D / 2)
    first, second = heads[:, :, 0], heads[:, :, 1]
    cos, sin = cos[:, None], sin[:, None]  # the same for every head
    xp = array_namespace(x)
    return xp.stack([first * cos - second * sin, second * cos + first * sin], axis=2).reshape(x.shape)


def silu(x: Tensor) -> Tensor:
    """y = x / (1 + e^-x), also called swish (Hendrycks and Gimpel 2016, Ramachandran et al. 2017)."""
    x_data, dtype = wide(x.data), x.dtype
    sigmoid = _sigmoid(x_data)

    def backward(dy):
        # y' = s + x s (1 - s)
        return (_in(dtype, wide(dy) * (sigmoid * (1 + x_data * (1 - sigmoid)))),)

    return Tensor(_in(dtype, x_data * sigmoid), parents=(x,), backward=backward)


def relu(x: Tensor) -> Tensor:
    """y = max(x, 0)."""
    positive = x.data > 0

    def backward(dy):
        return (dy * positive,)

    return Tensor(x.data * positive, parents=(x,), backward=backward)


def softmax(x: Tensor) -> Tensor:
    """y_j = exp(x_j) / sum_k exp(x_k), over the last axis."""
    y = softmax_kernels.forward(x.data)  # (..., C)

    def backward(dy):
        # dy_j/dx_i = y_j (1[i=j] - y_i), so dx_i = y_i (dy_i - sum_j dy_j y_j)
        return (softmax_kernels.backward(dy, y),)  # (..., C)

    return Tensor(y, parents=(x,), backward=backward)


def segment_log_softmax(x: Tensor, segments: Array) -> Tensor:
    """y_tc = x_tc - log sum_s exp(x_sc), s over the rows of t's own text: which row it is, for each column c.

    x and y (T, C), segments (B, 2) as in `attention`; rows in no segment give 0. With C = 2 this is where an answer
    begins and where it ends (Devlin et al. 2019, section 4.2). No kernel: T C is a thousandth of what a layer computes.
    """
    xp = array_namespace(x.data)
    bounds = [(int(start), int(end)) for start, end in segments if end > start]
    y = xp.zeros_like(x.data)
    for start, end in bounds:
        rows = x.data[start:end]
        shifted = rows - rows.max(axis=0)  # so that exp cannot overflow
        y[start:end] = shifted - xp.log(xp.exp(shifted).sum(axis=0))

    def backward(dy):
        # With p = exp(y), dy_t/dx_s = 1[s=t] - p_s within a text, so dx_s = dy_s - p_s sum_t dy_t
        dx = xp.zeros_like(y)
        for start, end in bounds:
            part = dy[start:end]
            dx[start:end] = part - xp.exp(y[start:end]) * part.sum(axis=0)
        return (dx,)

    return Tensor(y, parents=(x,), backward=backward)


def dropout(x: Tensor, p: float, key: Key) -> Tensor:
    """Each element is 0 with probability p, else divided by 1 - p so that the mean stays (Srivastava et al. 2014).

    The mask follows from `key` (see `random.py`), so backward draws it again instead of keeping it.
    """

    def backward(dy):
        # The same elements pass, with the same scale.
        return (dropout_kernels.forward(dy, p, key),)

    return Tensor(dropout_kernels.forward(x.data, p, key), parents=(x,), backward=backward)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_segments: Array,
    k_segments: Array,
    *,
    heads: int,
    causal: bool = False,
    dropout: float = 0.0,
    key: Key = (0, 0),
) -> Tensor:
    """Each text's tokens look at each other: softmax(q k^T / sqrt(D)) v, for every text and head on its own.

    q (T, H), k and v (T', H), segments (B, 2) with the first row and the row after the last of every text; y (T, H).
    Scaled dot-product attention, Vaswani et al. 2017, section 3.2.1. The probabilities are never kept: backward
    computes them again from q, k and the logarithm of each softmax's denominator (Dao 2023, section 3.1).
    """
    scale = (q.shape[1] // heads) ** -0.5
    options = (q_segments, k_segments, heads, scale, causal, dropout, key)
    y, logsumexp = attention_kernels.forward(q.data, k.data, v.data, *options)  # (T, H), (N, T)
    q_data, k_data, v_data = q.data, k.data, v.data

    def backward(dy):
        # With P = softmax(S), S = q k^T / sqrt(D), y = P v:
        # dv = P^T dy, dP = dy v^T, dS = P (dP - rowsum(dy y)), dq = dS k / sqrt(D), dk = dS^T q / sqrt(D)
        return attention_kernels.backward(dy, q_data, k_data, v_data, y, logsumexp, *options)

    return Tensor(y, parents=(q, k, v), backward=backward)


def columns(x: Tensor, start: int, end: int) -> Tensor:
    """y = x[:, start:end]."""
    shape = x.shape

    def backward(dy):
        dx = array_namespace(dy).zeros(shape, dy.dtype)
        dx[:, start:end] = dy
        return (dx,)

    return Tensor(x.data[:, start:end].copy(), parents=(x,), backward=backward)


def concatenate(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors one under the other, along the first axis."""
    lengths = [len(tensor) for tensor in tensors]

    def backward(dy):
        parts, start = [], 0
        for length in lengths:
            parts.append(dy[start : start + length])
            start += length
        return tuple(parts)

    xp = array_namespace(tensors[0].data)
    return Tensor(xp.concatenate([tensor.data for tensor in tensors]), parents=tensors, backward=backward)


def put_in_front(rows: Tensor, x: Tensor, segments: Array) -> Tensor:
    """The texts of x, each with the same rows in front of it: rows (n, H), x (T, H), segments (B, 2); y (T + B n, H).

    Texts follow each other without gaps in y, wherever they stood in x.
    """
    count = len(rows)
    xp = array_namespace(x.data)
    indices = [
        index for start, end in segments for index in (range(count), range(count + start, count + end))
    ]
    places = xp.concatenate([xp.arange(each.start, each.stop) for each in indices])
    return embedding(places, concatenate([rows.astype(x.dtype), x]))


def segment_mean(x: Tensor, offsets: Array) -> Tensor:
    """The mean of each text's rows: x (T, H), offsets (B + 1,), y (B, H); of an empty text, 0."""
    xp = array_namespace(x.data)
    lengths, texts = np.diff(offsets), np.arange(len(offsets) - 1)
    belongs = xp.asarray(texts[:, None] == np.repeat(texts, lengths)).astype(x.dtype)  # (B, T) of 0 and 1
    lengths = xp.asarray(np.maximum(lengths, 1)[:, None]).astype(x.dtype)  # (B, 1)

    def backward(dy):
        # Each of a text's n rows has the slope 1 / n.
        return (matmul_kernels.forward(belongs.T, dy / lengths),)

    y = matmul_kernels.forward(belongs, x.data) / lengths  # (B, H)
    return Tensor(y, parents=(x,), backward=backward)


def segment_max(x: Tensor, offsets: Array) -> Tensor:
    """The largest number of each column in each text's rows: x (T, H), offsets (B + 1,), y (B, H), no text empty."""
    xp = array_namespace(x.data)
    shape = x.shape
    segments = itertools.pairwise(offsets)
    largest = xp.stack(
        [start + x.data[start:end].argmax(axis=0) for start, end in segments]
    )  # (B, H), row numbers
    columns_of = xp.arange(shape[1])

    def backward(dy):
        # Only the largest number was handed on; no two texts share a row.
        dx = xp.zeros(shape, dy.dtype)
        dx[largest, columns_of] = dy
        return (dx,)

    return Tensor(x.data[largest, columns_of], parents=(x,), backward=backward)
