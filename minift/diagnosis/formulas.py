"""Modules against their formulas: what each was given and returned in a forward pass, computed again in NumPy."""

from collections.abc import Iterator

import numpy as np

from minift.data import Batch
from minift.diagnosis.case import Case, Heard, differ
from minift.diagnosis.finding import Finding, some
from minift.methods.adapters import AdaptedNorm
from minift.methods.ia3 import IA3Linear
from minift.methods.lora import LoRALinear
from minift.models.attention import SelfAttention, segments_of
from minift.models.gpt2 import Conv1D
from minift.nn import Dropout, LayerNorm, Linear, RMSNorm
from minift.tensor import Tensor


def heard_of(case: Case) -> list[Heard]:
    """The calls of one forward pass over a few texts, in evaluation."""
    with case.evaluating(), case.listening() as heard:
        case.model(case.few)
    return heard


# ---- Linear layers -------------------------------------------------------------------------------


def linear_layers(case: Case) -> Iterator[Finding]:
    """y = x W^T + b, W (out, in); GPT-2's y = x W + b, W (in, out)."""
    seen: dict[str, list[str]] = {"transposed-weight": [], "wrong-linear": []}
    for call in case.kept("heard", heard_of):
        if not isinstance(call.module, Linear):
            continue
        x, weight = np.asarray(call.inputs[0], np.float64), call.module.weight.data
        y = np.asarray(call.output, np.float64)
        stored_in_out = isinstance(call.module, Conv1D) or getattr(call.module, "transposed", False)
        if not differ(y, _linear(call.module, x, weight.T if not stored_in_out else weight)):
            continue
        turned = weight if not stored_in_out else weight.T
        if turned.shape[0] == x.shape[1] and not differ(y, _linear(call.module, x, turned)):
            seen["transposed-weight"].append(call.path)
        elif type(call.module) in (Linear, Conv1D, LoRALinear, IA3Linear):
            seen["wrong-linear"].append(call.path)
    if seen["transposed-weight"]:
        yield Finding(
            "transposed-weight",
            some(seen["transposed-weight"]),
            "it multiplies with W where W^T belongs: a square matrix lets that pass",
            "y = x @ W.T + b with W (out, in); in GPT-2's checkpoints W is (in, out), and y = x @ W + b",
        )
    if seen["wrong-linear"]:
        yield Finding(
            "wrong-linear",
            some(seen["wrong-linear"]),
            "its output is not x W^T + b",
            "compare its forward with minift.nn.Linear's",
        )


def _linear(module: Linear, x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """x times the matrix plus the bias, with what LoRA and IA3 do beside it."""
    inputs = x * module.ia3_l.data if isinstance(module, IA3Linear) and module.feed_forward else x
    y = inputs @ matrix + (0 if module.bias is None else module.bias.data)
    if isinstance(module, IA3Linear) and not module.feed_forward:
        y = y * module.ia3_l.data.T
    if isinstance(module, LoRALinear) and not module.merged:
        y = y + module.scale * (x @ module.lora_A.weight.data.T) @ module.lora_B.weight.data.T
    return y


def merged_is_unmerged(case: Case) -> Iterator[Finding]:
    """x W^T + s (x A^T) B^T is x (W + s B A)^T: merging LoRA leaves the answers as they are. B is drawn for it."""
    layers = [each for _, each in case.model.named_modules() if isinstance(each, LoRALinear)]
    if not layers or any(each.merged for each in layers):
        return
    random = np.random.default_rng(0)
    with case.untouched(), case.evaluating():
        for layer in layers:
            weight = layer.lora_B.weight
            weight.data = weight.data + 0.05 * random.standard_normal(weight.shape).astype(weight.dtype)
        apart = np.array(case.model(case.few).data)
        for layer in layers:
            layer.merge()
        together = np.array(case.model(case.few).data)
    if differ(together, apart, 1e-2):
        yield Finding(
            "wrong-merge",
            "LoRALinear.merge",
            f"merging changes the answers by up to {np.abs(together - apart).max():.3g}",
            "merging adds scale * B @ A to W, in W's own shape: (out, in), in GPT-2 (in, out)",
        )


# ---- Norms ---------------------------------------------------------------------------------------


def norms(case: Case) -> Iterator[Finding]:
    """LayerNorm: mean 0 and variance 1 in each row, times w plus b. RMSNorm: mean square 1 in each row, times w."""
    wrong, heard = [], case.kept("heard", heard_of)
    for call in heard:
        norm = call.module
        if not isinstance(norm, LayerNorm | RMSNorm) or isinstance(norm, AdaptedNorm):
            continue
        x = sum(np.asarray(each, np.float64) for each in call.inputs if each is not None)
        assert isinstance(x, np.ndarray)
        if isinstance(norm, LayerNorm):
            x = x - x.mean(axis=-1, keepdims=True)
        y = norm.weight.data * x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + norm.eps)
        if differ(call.output, y + norm.bias.data if isinstance(norm, LayerNorm) else y):
            wrong.append(call.path)
    called = {id(call.module) for call in heard}
    unused = [
        path
        for path, each in case.model.named_modules()
        if isinstance(each, LayerNorm | RMSNorm) and id(each) not in called
    ]
    if wrong or unused:
        yield Finding(
            "wrong-normalisation",
            some(wrong or unused),
            "its rows do not have the mean and the variance that its formula gives"
            if wrong
            else "never called",
            "normalise each token's vector by itself, over the last axis",
        )


# ---- Attention -----------------------------------------------------------------------------------


def attention(case: Case) -> Iterator[Finding]:
    """y = softmax(q k^T / sqrt(D)) v in each text and head, the softmax over the keys, no later keys in a decoder.

    q, k and v are what the layer's own projections gave, y is what the next layer got. Where y is something else, the
    usual mistakes are computed, too, and the one that fits is named.
    """
    found: dict[str, list[str]] = {}
    heard = case.kept("heard", heard_of)
    for index, call in enumerate(heard):
        if isinstance(call.module, SelfAttention):
            name = _judge_attention(case, call, heard[index - call.inside : index])
            if name is not None:
                found.setdefault(name, []).append(call.path)
    for name, paths in found.items():
        said, mend = ATTENTION[name]
        yield Finding(name, some(paths), said, mend)


ATTENTION = {
    "unscaled-attention": (
        "its weights are those of scores that are not divided by sqrt(D)",
        "divide q k^T by the square root of a head's size",
    ),
    "wrong-softmax-axis": (
        "its weights do not sum to 1 over the keys of each query",
        "take the softmax over the last axis of the scores (heads, queries, keys)",
    ),
    "attention-across-texts": (
        "its tokens look at the tokens of other texts",
        "let attention run inside each text: give it the batch's segments",
    ),
    "future-leak": ("its tokens look at tokens behind them", "attend with causal=True"),
    "wrong-attention": (
        "its output is not softmax(q k^T / sqrt(D)) v",
        "compare it with minift.ops.attention",
    ),
}


def _judge_attention(case: Case, call: Heard, inside: list[Heard]) -> str | None:
    """The name of what is wrong with one call; None where nothing is, no token looks, or q, k and v cannot be told."""
    module, parts = call.module, case.model.architecture.layer_parts
    assert isinstance(module, SelfAttention)
    named = {each.path.removeprefix(f"{call.path}."): each for each in inside if each.module is not None}
    try:
        made = [np.asarray(named[parts[part]].output, np.float64) for part in ("query", "key", "value")]
    except KeyError:
        return None
    if parts["query"] == parts["key"]:
        made = np.split(made[0], 3, axis=1)
    turned = [each.output for each in inside if each.path == "rotary"]
    if len(turned) == 2:
        made[:2] = [np.asarray(each, np.float64) for each in turned]
    q, k, v = made
    behind = [name for name in named if "." not in name and name not in (*parts.values(), "resid_dropout")]
    y = call.output
    if behind and isinstance(named[behind[0]].module, Linear):
        y = named[behind[0]].inputs[0]
    lengths = np.diff(case.few.offsets) + (len(k) - case.few.tokens) // len(case.few)
    k_segments = segments_of(lengths)
    q_segments = k_segments if len(q) == len(k) else segments_of(_rows_read(case.few))
    if len(q) == 0 or len(q) != q_segments[-1, 1] or lengths.sum() != len(k):
        return None
    if module.prefix is not None:
        keys, values = (each.data.astype(np.float64) for each in module.prefix())
        cuts = np.split(np.arange(len(k)), k_segments[1:, 0])
        k = np.concatenate([part for rows in cuts for part in (keys, k[rows])])
        v = np.concatenate([part for rows in cuts for part in (values, v[rows])])
        k_segments = segments_of(lengths + len(keys))
    size = q.shape[1] // module.heads

    def weighed(scale=size**-0.5, causal=case.causal, axis=2, across=False) -> np.ndarray:
        return _attend(q, k, v, q_segments, k_segments, module.heads, scale, causal, axis, across)

    if not differ(y, weighed()):
        return None
    for scale in (1.0, 1 / size, q.shape[1] ** -0.5, k.shape[1] ** -0.5, size**0.5):
        if not differ(y, weighed(scale=scale)):
            return "unscaled-attention"
    for axis in (0, 1):
        if not differ(y, weighed(axis=axis)):
            return "wrong-softmax-axis"
    for causal in (True, False):
        if not differ(y, weighed(causal=causal, across=True)):
            return "attention-across-texts"
    if case.causal and not differ(y, weighed(causal=False)):
        return "future-leak"
    if not _is_a_mean(y, v, k_segments, q_segments, module.heads):
        return "wrong-softmax-axis"
    return "wrong-attention"


def _rows_read(batch: Batch) -> np.ndarray:
    """Of how many tokens of each text, (B,), the head reads the vector, where it does not read all."""
    if batch.labels is None or batch.labels.shape != batch.ids.shape:
        return np.ones(len(batch), np.int64)
    return np.diff(np.searchsorted(np.flatnonzero(batch.labels != -100), batch.offsets))


def _attend(q, k, v, q_segments, k_segments, heads, scale, causal, axis, across) -> np.ndarray:
    """Attention with its mistakes: axis 2 of the scores (heads, queries, keys) is the right one."""
    y, key_heads = np.zeros_like(q), k.shape[1] * heads // q.shape[1]
    if across:
        q_segments, k_segments = np.array([[0, len(q)]]), np.array([[0, len(k)]])
    for (q_start, q_end), (k_start, k_end) in zip(q_segments, k_segments, strict=True):
        if q_start == q_end:  # a text of which nobody reads a token
            continue
        by_head = [
            _heads(q[q_start:q_end], heads, heads),
            *(_heads(each[k_start:k_end], key_heads, heads) for each in (k, v)),
        ]
        scores = scale * by_head[0] @ by_head[1].transpose(0, 2, 1)  # (N, queries, keys)
        if causal:
            queries, keys = scores.shape[1:]
            hidden = np.arange(keys) > np.arange(queries)[:, None] + keys - queries
            scores = np.where(hidden, -1e30, scores)
        scores = scores - scores.max(axis=axis, keepdims=True)
        weights = np.exp(scores)
        weights = weights / weights.sum(axis=axis, keepdims=True)
        y[q_start:q_end] = (weights @ by_head[2]).transpose(1, 0, 2).reshape(q_end - q_start, -1)
    return y


def _heads(x: np.ndarray, own: int, heads: int) -> np.ndarray:
    """(rows, own D) as (heads, rows, D): where keys have fewer heads than queries, each is repeated."""
    return np.repeat(x.reshape(len(x), own, -1).transpose(1, 0, 2), heads // own, axis=0)


def _is_a_mean(y, v, k_segments, q_segments, heads) -> bool:
    """Whether each row lies between the least and the largest of its text's values, as a weighted mean does."""
    width = y.shape[1]
    v = _heads(v, v.shape[1] * heads // width, heads).transpose(1, 0, 2).reshape(len(v), width)
    room = 1e-4 * np.abs(v).max()
    for (q_start, q_end), (k_start, k_end) in zip(q_segments, k_segments, strict=True):
        rows, values = y[q_start:q_end], v[k_start:k_end]
        if (rows > values.max(axis=0) + room).any() or (rows < values.min(axis=0) - room).any():
            return False
    return True


# ---- Dropout -------------------------------------------------------------------------------------


def dropouts(case: Case) -> Iterator[Finding]:
    """In training a share p of the elements is 0 and the others are divided by 1 - p; in evaluation nothing happens."""
    silent, noisy = [], []
    with case.untouched():
        for path, module in case.model.named_modules():
            if not isinstance(module, Dropout) or not 0 < module.p < 1:
                continue
            x = Tensor(
                np.random.default_rng(0).standard_normal((64, max(16, int(2 / module.p)))).astype(np.float32)
            )
            module.training = False
            once, again = module(x).data, module(x).data
            if (once != again).any():
                noisy.append(path)
            module.training = True
            if (once == x.data).all() and (module(x).data == once).all():
                silent.append(path)
    if silent:
        yield Finding(
            "dropout-off-in-training",
            some(silent),
            "p is more than 0, and in training it drops nothing",
            "let it drop while self.training is true",
        )
    if noisy:
        yield Finding(
            "dropout-in-evaluation",
            some(noisy),
            "it drops in evaluation, too",
            "return x as it is unless self.training; call model.eval() before evaluating",
        )
