"""Bugs inside the model: attention, norms, linear layers, heads, and backwards that do not fit their forwards."""

from functools import partial

import numpy as np

from bug_zoo.plant import planted, replaced
from bug_zoo.setups import RATE, filling, instructing, regression, sentiment, tagging, writing
from minift import ops
from minift.nn import Parameter, RMSNorm
from minift.ops import rotary, swiglu
from minift.optim import AdamW, decay_groups
from minift.tensor import Tensor

# ---- Attention, as a script would write it -------------------------------------------------------


def attention_by_hand(
    q, k, v, q_segments, k_segments, *, heads, causal=False, dropout=0.0, key=(0, 0), over="keys", ahead=0
):
    """As `ops.attention`, text by text and head by head, with two things to get wrong.

    `over`: what the weights sum to 1 over; keys is right. `ahead`: how many tokens a causal model sees of the future.
    """
    size = q.shape[1] // heads
    queries_a_key = heads // (k.shape[1] // size)
    texts = []
    for (q_start, q_end), (k_start, k_end) in zip(q_segments, k_segments, strict=True):
        scores, values = [], []
        for head in range(heads):
            column, key_column = head * size, head // queries_a_key * size
            queries = ops.columns(q, column, column + size)[q_start:q_end]
            keys = ops.columns(k, key_column, key_column + size)[k_start:k_end]
            values.append(ops.columns(v, key_column, key_column + size)[k_start:k_end])
            score = queries @ keys.T * size**-0.5  # (queries, keys)
            if causal:
                unseen = 1 - np.tri(*score.shape, k=score.shape[1] - score.shape[0] + ahead)
                score = score + np.where(unseen, -1e9, 0)
            scores.append(score)
        if over == "keys":
            weights = [ops.softmax(score) for score in scores]
        elif over == "queries":
            weights = [ops.softmax(score.T).T for score in scores]
        else:
            exponentials = [score.exp() for score in scores]
            total = sum(exponentials[1:], exponentials[0])
            weights = [each / total for each in exponentials]
        if dropout:
            weights = [ops.dropout(each, dropout, key) for each in weights]
        texts.append(
            ops.concatenate(
                [(w @ value).T for w, value in zip(weights, values, strict=True)]
            ).T  # (queries, H)
        )
    return ops.concatenate(texts)


def attending(attention, change):
    """The attention module with `change(q, k, v, q_segments, k_segments)` before its own."""
    right = attention.attend
    return replaced(attention, attend=lambda *given: right(*change(*given)))


# ---- wrong-softmax-axis --------------------------------------------------------------------------


@planted(
    "wrong-softmax-axis",
    partial(sentiment, "bert"),
    "softmax(scores, axis=-2): the weights sum to 1 over the queries, so popular tokens fade and lonely ones shout.",
    "axis=-1, the keys.",
)
def over_the_queries(setup):
    with replaced(ops, attention=partial(attention_by_hand, over="queries")):
        yield setup


@planted(
    "wrong-softmax-axis",
    partial(tagging, "distilbert"),
    "The scores are (texts, heads, queries, keys), and the axis 1 that was right for three axes is now the heads'.",
    "axis=-1, the keys.",
)
def over_the_heads(setup):
    with replaced(ops, attention=partial(attention_by_hand, over="heads")):
        yield setup


@planted(
    "wrong-softmax-axis",
    partial(writing, "gpt2"),
    "softmax over the queries in one layer of a causal model: what a token takes depends on tokens behind it.",
    "axis=-1, the keys.",
)
def in_one_causal_layer(setup):
    attention = setup.model.body.layers[1].attn

    def attend(q, k, v, q_segments, k_segments):
        return attention_by_hand(
            q, k, v, q_segments, k_segments, heads=attention.heads, causal=True, over="queries"
        )

    with replaced(attention, attend=attend):
        yield setup


# ---- unscaled-attention --------------------------------------------------------------------------


def scaled_by(factor):
    """A change of the queries that multiplies the scores."""
    return lambda q, k, v, q_segments, k_segments: (q * factor, k, v, q_segments, k_segments)


@planted(
    "unscaled-attention",
    partial(sentiment, "bert"),
    "softmax(q k^T): scores grow with sqrt(D), softmax saturates, and hardly any gradient comes through.",
    "softmax(q k^T / sqrt(D))",
)
def scores_as_they_are(setup):
    right = ops.attention

    def attention(q, *given, heads, **options):
        return right(q * (q.shape[1] // heads) ** 0.5, *given, heads=heads, **options)

    with replaced(ops, attention=attention):
        yield setup


@planted(
    "unscaled-attention",
    partial(writing, "llama"),
    "In one layer the scores are not divided by sqrt(D); the others are right.",
    "softmax(q k^T / sqrt(D))",
)
def in_one_layer(setup):
    attention = setup.model.body.layers[0].self_attn
    with attending(attention, scaled_by(6**0.5)):  # D = 6
        yield setup


@planted(
    "unscaled-attention",
    partial(regression, "distilbert"),
    "The scores are divided by sqrt(H), the width of all heads together, so attention is nearly uniform.",
    "sqrt(D) with D = H / N, the width of one head.",
)
def by_the_width_of_all_heads(setup):
    first, second = (layer.attention for layer in setup.model.body.layers)
    too_small = (8 / 24) ** 0.5  # sqrt(D) / sqrt(H)
    with attending(first, scaled_by(too_small)), attending(second, scaled_by(too_small)):
        yield setup


# ---- attention-across-texts, future-leak ---------------------------------------------------------


@planted(
    "attention-across-texts",
    partial(tagging, "bert"),
    "The texts lie one after the other in one row, and nobody told attention where one ends.",
    "Attention within each segment (or, with padding, a mask).",
)
def one_long_text(setup):
    def as_one(q, k, v, q_segments, k_segments):
        whole = np.array([[0, len(q)]])
        return q, k, v, whole, whole

    first, second = (layer.attention.self for layer in setup.model.body.layers)
    with attending(first, as_one), attending(second, as_one):
        yield setup


@planted(
    "attention-across-texts",
    partial(sentiment, "roberta"),
    "Where the keys of a text begin is off by one: each text sees the last token of the one before it.",
    "offsets[b] to offsets[b + 1]",
)
def one_key_too_many(setup):
    def one_earlier(q, k, v, q_segments, k_segments):
        return q, k, v, q_segments, np.maximum(k_segments - [1, 0], 0)

    with attending(setup.model.body.layers[0].attention.self, one_earlier):
        yield setup


@planted(
    "attention-across-texts",
    partial(writing, "gpt2"),
    "Documents were packed to fill the context, and the causal mask is all there is: a document reads those before it.",
    "Attention within each segment.",
)
def packed_documents(setup):
    def as_one(q, k, v, q_segments, k_segments):
        whole = np.array([[0, len(q)]])
        return q, k, v, whole, whole

    with attending(setup.model.body.layers[1].attn, as_one):
        yield setup


@planted(
    "future-leak",
    partial(writing, "gpt2"),
    "causal=False: each token sees the next, which it is to foretell; the loss is wonderful and the texts are not.",
    "causal=True",
)
def not_causal_at_all(setup):
    first, second = (layer.attn for layer in setup.model.body.layers)
    with replaced(first, causal=False), replaced(second, causal=False):
        yield setup


@planted(
    "future-leak",
    partial(instructing, "llama"),
    "The causal mask is off by one in every layer: tri(k=1) leaves one token of the future.",
    "tri(k=0)",
)
def one_token_ahead(setup):
    with replaced(ops, attention=partial(attention_by_hand, ahead=1)):
        yield setup


@planted(
    "future-leak",
    partial(writing, "qwen2"),
    "The mean of all tokens' vectors is taken off before the last norm, and it knows how the text goes on.",
    "Nothing over the tokens of a causal model may look ahead, statistics included.",
)
def centred_over_the_text(setup):
    right = setup.model.body.encode

    def encode(x, batch):
        x = right(x, batch)
        means = ops.segment_mean(x, batch.offsets)  # (B, H)
        return x - ops.embedding(np.repeat(np.arange(len(batch)), np.diff(batch.offsets)), means)

    with replaced(setup.model.body, encode=encode):
        yield setup


# ---- batch-dependent -----------------------------------------------------------------------------


@planted(
    "batch-dependent",
    partial(sentiment, "bert"),
    "The texts' vectors are centred over the batch, as in batch norm, without running means for evaluation.",
    "A norm over each vector by itself.",
)
def centred_over_the_batch(setup):
    pooler = setup.model.bert.pooler
    right = pooler.forward

    def forward(first):
        pooled = right(first)
        return pooled - pooled.mean(axis=0, keepdims=True)

    with replaced(pooler, forward=forward):
        yield setup


@planted(
    "batch-dependent",
    partial(sentiment, "distilbert"),
    "The batch is sorted by length to be fast, and the answers are never put back into their texts' order.",
    "answers[np.argsort(order)]",
)
def answers_in_another_order(setup):
    right = setup.model.plain_answer

    def plain_answer(batch):
        return right(batch)[np.argsort(np.diff(batch.offsets), kind="stable")]

    with replaced(setup.model, plain_answer=plain_answer):
        yield setup


@planted(
    "batch-dependent",
    partial(sentiment, "word-vectors"),
    "The sum of a text's vectors is divided by the length of the longest text of the batch: padding in the mean.",
    "Divide by the text's own length: segment_mean.",
)
def a_mean_over_padding(setup):
    right = ops.segment_mean

    def segment_mean(x, offsets):
        lengths = np.diff(offsets)
        return right(x, offsets) * (lengths / lengths.max())[:, None]

    with replaced(ops, segment_mean=segment_mean):
        yield setup


# ---- transposed-weight, wrong-normalisation ------------------------------------------------------


def times_weight_itself(layer):
    """The linear layer with x W where x W^T belongs; for a square W no shape objects."""
    return replaced(layer, forward=lambda x: ops.linear(x, layer.weight.T, layer.bias))


@planted(
    "transposed-weight",
    partial(sentiment, "bert"),
    "x @ W instead of x @ W.T: the matrix of the values is square, so no shape is wrong and only its meaning is.",
    "y = x W^T + b with W (out, in).",
)
def of_the_values(setup):
    with times_weight_itself(setup.model.body.layers[0].attention.self.value):
        yield setup


@planted(
    "transposed-weight",
    partial(writing, "gpt2"),
    "GPT-2's checkpoint has its weights as (in, out); read as (out, in) they fit wherever they are square.",
    "Conv1D: y = x W + b with W (in, out).",
)
def read_as_linear(setup):
    layer = setup.model.body.layers[1].attn.c_proj
    with replaced(layer, forward=lambda x: ops.linear(x, layer.weight, layer.bias)):
        yield setup


@planted(
    "transposed-weight",
    partial(sentiment, "roberta"),
    "The head's first layer multiplies with W and not with its transpose.",
    "y = x W^T + b with W (out, in).",
)
def in_the_head(setup):
    with times_weight_itself(setup.model.classifier.dense):
        yield setup


@planted(
    "wrong-normalisation",
    partial(sentiment, "bert"),
    "LayerNorm's mean and variance are taken down the columns, over all tokens of the batch (axis 0).",
    "Over the last axis, each token by itself.",
)
def down_the_columns(setup):
    norm = setup.model.body.layers[0].attention.output.LayerNorm

    def forward(x, residual=None):
        z = x if residual is None else x + residual
        centred = z - z.mean(axis=0, keepdims=True)
        return (
            centred * ((centred * centred).mean(axis=0, keepdims=True) + norm.eps) ** -0.5 * norm.weight
            + norm.bias
        )

    with replaced(norm, forward=forward):
        yield setup


@planted(
    "wrong-normalisation",
    partial(writing, "llama"),
    "The root is missing in RMSNorm: x / mean(x^2).",
    "x / sqrt(mean(x^2) + eps)",
)
def without_the_root(setup):
    def forward(norm, x):
        return x * ((x * x).mean(axis=1, keepdims=True) + norm.eps) ** -1.0 * norm.weight

    with replaced(RMSNorm, forward=forward):
        yield setup


@planted(
    "wrong-normalisation",
    partial(instructing, "gpt2"),
    "The norm above the last layer gives back weight * x + bias: its mean and its variance were forgotten.",
    "weight * (x - mean) / sqrt(variance + eps) + bias",
)
def not_normalised_at_all(setup):
    norm = setup.model.body.ln_f
    with replaced(norm, forward=lambda x, residual=None: x * norm.weight + norm.bias):
        yield setup


# ---- wrong-gradient ------------------------------------------------------------------------------


def gelu_of_a_constant_phi(x):
    """y = x Phi(x), with a backward that forgets that Phi depends on x, too."""
    y = ops.gelu(Tensor(x.data)).data
    phi = np.divide(y, x.data, out=np.full_like(y, 0.5), where=x.data != 0)

    def backward(dy):
        return (dy * phi,)  # without x phi(x)

    return Tensor(y, parents=(x,), backward=backward)


@planted(
    "wrong-gradient",
    partial(sentiment, "bert"),
    "The backward of GELU takes Phi(x) for a constant: one half of the product rule is missing.",
    "dx = dy (Phi(x) + x phi(x))",
)
def half_of_the_product_rule(setup):
    with replaced(setup.model.body.layers[1].intermediate, activation=gelu_of_a_constant_phi):
        yield setup


def swiglu_without_the_gate(gate, x):
    """y = gate sigmoid(gate) x, with a backward that sends the gate nothing."""
    share = gate.data / (1 + np.exp(-gate.data))

    def backward(dy):
        return np.zeros_like(dy), dy * share

    return Tensor(swiglu(Tensor(gate.data), Tensor(x.data)).data, parents=(gate, x), backward=backward)


@planted(
    "wrong-gradient",
    partial(writing, "llama"),
    "The backward of the gated activation sends the gate zeros: its weights have gradients, and all are 0.",
    "dgate = dy x silu'(gate)",
)
def nothing_for_the_gate(setup):
    with replaced(ops, swiglu=swiglu_without_the_gate):
        yield setup


def rotary_turned_on(x, cos, sin):
    """Turns as `ops.rotary`, and turns the gradient on in the same direction instead of back."""

    def backward(dy):
        return (rotary(Tensor(dy), cos, sin).data,)

    return Tensor(rotary(Tensor(x.data), cos, sin).data, parents=(x,), backward=backward)


@planted(
    "wrong-gradient",
    partial(writing, "qwen2"),
    "The backward of the rotation turns the gradient by the same angle again, and not back.",
    "A rotation's transpose is the rotation by the opposite angle: sin becomes -sin.",
)
def turned_the_wrong_way(setup):
    with replaced(ops, rotary=rotary_turned_on):
        yield setup


# ---- no-gradient ---------------------------------------------------------------------------------


@planted(
    "no-gradient",
    partial(sentiment, "bert"),
    "The vector that the head reads was detached: the head learns, and the body looks on.",
    "Hand the tensor on as it is; to train the head alone, freeze the body and say so.",
)
def the_body_detached(setup):
    pooler = setup.model.bert.pooler
    right = pooler.forward
    with replaced(pooler, forward=lambda first: right(first).detach()):
        yield setup


@planted(
    "no-gradient",
    partial(writing, "gpt2"),
    "An activation was computed with NumPy and wrapped again, Tensor(...): its history ends there.",
    "Write it with operations that have a backward.",
)
def through_numpy_and_back(setup):
    mlp = setup.model.body.layers[0].mlp
    right = mlp.activation
    with replaced(mlp, activation=lambda x: Tensor(right(x).numpy())):
        yield setup


@planted(
    "no-gradient",
    partial(regression, "distilbert"),
    "Two vectors are added by their data, to save memory: what stands below one of them gets no gradient.",
    "Add the tensors.",
)
def added_by_their_data(setup):
    ffn = setup.model.body.layers[1].ffn
    right = ffn.forward
    with replaced(ffn, forward=lambda x: Tensor(right(x).data + 0)):
        yield setup


# ---- untied-embeddings ---------------------------------------------------------------------------


def untied(layer):
    """The language-model head with a copy of the embeddings' weight."""
    return replaced(layer, weight=Parameter(layer.weight.data.copy()))


@planted(
    "untied-embeddings",
    partial(writing, "gpt2"),
    "The head's weight was loaded by itself: equal numbers, but another parameter, which soon differs.",
    "model.lm_head.weight = model.body.vocabulary.weight: the same object.",
)
def loaded_twice(setup):
    with untied(setup.model.lm_head):
        yield setup._replace(optimizer=AdamW(decay_groups(setup.model), lr=RATE))


@planted(
    "untied-embeddings",
    partial(filling, "distilbert"),
    "A deep copy of the head, to be used for another task, took its own copy of the embeddings along.",
    "Tie again after copying.",
)
def copied_with_the_head(setup):
    with untied(setup.model.vocab_projector):
        yield setup._replace(optimizer=AdamW(decay_groups(setup.model), lr=RATE))


@planted(
    "untied-embeddings",
    partial(writing, "qwen2", tied=True),
    "The embeddings were grown for a new token, and the head still holds the table as it was before.",
    "Tie again after growing.",
)
def grown_on_one_side(setup):
    words = setup.model.body.vocabulary
    with replaced(
        words, weight=Parameter(np.concatenate([words.weight.data, np.zeros((1, 24), np.float32)]))
    ):
        yield setup._replace(optimizer=AdamW(decay_groups(setup.model), lr=RATE))


PLANTS = [
    over_the_queries, over_the_heads, in_one_causal_layer,
    scores_as_they_are, in_one_layer, by_the_width_of_all_heads,
    one_long_text, one_key_too_many, packed_documents,
    not_causal_at_all, one_token_ahead, centred_over_the_text,
    centred_over_the_batch, answers_in_another_order, a_mean_over_padding,
    of_the_values, read_as_linear, in_the_head,
    down_the_columns, without_the_root, not_normalised_at_all,
    half_of_the_product_rule, nothing_for_the_gate, turned_the_wrong_way,
    the_body_detached, through_numpy_and_back, added_by_their_data,
    loaded_twice, copied_with_the_head, grown_on_one_side,
]  # fmt: skip
