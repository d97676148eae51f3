"""BERT, read from the bottom up (Devlin et al. 2019; the encoder of Vaswani et al. 2017, section 3).

Attribute paths are the keys of a Hugging Face checkpoint, odd ones included: `attention.self` is the attention
proper (query, key, value), `attention.output` the linear layer after it, `intermediate` and `output` the two layers of
the feed-forward network. Texts are packed: every layer but attention sees a plain (T, H) matrix.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minift import ops
from minift.data import Batch
from minift.errors import InputError
from minift.history import Array
from minift.models.architecture import (
    Architecture,
    Head,
    ModelConfig,
    row_of_each_text,
    rows_with_a_target,
)
from minift.models.attention import SelfAttention
from minift.models.encoder import Context, Encoder, EncoderBody
from minift.models.heads import AnswerHead, TokenHead
from minift.nn import Dropout, Embedding, LayerNorm, Linear, Module, ModuleList, Parameter
from minift.tensor import Tensor

ACTIVATIONS = {"gelu": ops.gelu, "relu": ops.relu}


@dataclass(frozen=True)
class BertConfig(ModelConfig):
    """The shape of a BERT, under the names of its config.json; the defaults are bert-base-uncased."""

    vocab_size: int = 30522
    hidden_size: int = 768
    """H, the width of every token's vector."""
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    """N; each head works on H / N of the vector."""
    intermediate_size: int = 3072
    """F, the width inside the feed-forward network."""
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    """The longest text in tokens."""
    type_vocab_size: int = 2
    """Token types: 0 for the first text of a pair, 1 for the second."""
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    """The standard deviation of new weights."""
    classifier_dropout: float | None = None
    """Dropout before the classifier; None means hidden_dropout_prob."""
    pad_token_id: int = 0

    @property
    def longest_text(self) -> int:
        return self.max_position_embeddings

    @property
    def head_dropout(self) -> float:
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    def check(self, config: Mapping[str, Any], source: str) -> None:
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise InputError(f"{source}: position_embedding_type is not 'absolute', which alone is supported")
        if self.hidden_act not in ACTIVATIONS:
            raise InputError(
                f"{source}: hidden_act is {self.hidden_act!r}, expected one of {', '.join(ACTIVATIONS)}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"{source}: hidden_size {self.hidden_size} is no multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )


class BertEmbeddings(Module):
    """What a token is, where it stands, and which text of a pair it belongs to: three vectors, added."""

    def __init__(self, config: BertConfig):
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, words: Tensor, batch: Batch) -> Tensor:
        """What the first layer reads, from the words' own vectors: both (T, H)."""
        positions = self.position_embeddings(batch.positions)
        types = self.token_type_embeddings(batch.token_types)
        return self.dropout(self.LayerNorm(words + types, positions))


class BertSelfAttention(SelfAttention):
    """Each token gathers from the tokens of its text, as much as its query fits their keys, their values."""

    def __init__(self, config: BertConfig):
        super().__init__(config.num_attention_heads, config.attention_probs_dropout_prob)
        self.query = Linear(config.hidden_size, config.hidden_size)
        self.key = Linear(config.hidden_size, config.hidden_size)
        self.value = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, segments: Array, context: Context | None = None) -> Tensor:
        looked_at, their_segments = context or (x, segments)
        return self.attend(
            self.query(x), self.key(looked_at), self.value(looked_at), segments, their_segments
        )


class BertSelfOutput(Module):
    """Mixes the heads, then adds what went into the attention, and normalises."""

    def __init__(self, config: BertConfig):
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)), residual)


class BertAttention(Module):
    """Attention and the layer after it."""

    def __init__(self, config: BertConfig):
        self.self = BertSelfAttention(config)
        self.output = BertSelfOutput(config)

    def forward(self, x: Tensor, segments: Array, context: Context | None = None) -> Tensor:
        return self.output(self.self(x, segments, context), x)


class BertIntermediate(Module):
    """The feed-forward network's first half: H to F, then the activation."""

    def __init__(self, config: BertConfig):
        self.dense = Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.dense(x))  # (T, F)


class BertOutput(Module):
    """The feed-forward network's second half: F to H, then adds what went into the first half, and normalises."""

    def __init__(self, config: BertConfig):
        self.dense = Linear(config.intermediate_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)), residual)


class BertLayer(Module):
    """Tokens look at each other (attention), then each thinks for itself (feed-forward network).

    x (T, H) are the tokens whose new vectors are wanted. They look at `context`, which is themselves unless given.
    """

    def __init__(self, config: BertConfig):
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config)

    def forward(self, x: Tensor, segments: Array, context: Context | None = None) -> Tensor:
        attended = self.attention(x, segments, context)
        return self.output(self.intermediate(attended), attended)


class BertEncoder(Encoder):
    """The `BertLayer`s."""

    def __init__(self, config: BertConfig):
        self.layer = ModuleList([BertLayer(config) for _ in range(config.num_hidden_layers)])


class BertPooler(Module):
    """One vector per text, from the last layer's vector of its first token, [CLS]."""

    def __init__(self, config: BertConfig):
        self.dense = Linear(config.hidden_size, config.hidden_size)

    def forward(self, first: Tensor) -> Tensor:
        return self.dense(first).tanh()  # (B, H)


class Bert(EncoderBody):
    """The encoder with its embeddings, under the names of transformers' BertModel.

    The pooler is added by the head that reads it, since checkpoints of other heads have none.
    """

    pooler: BertPooler

    def __init__(self, config: BertConfig, embeddings: type[BertEmbeddings] = BertEmbeddings):
        super().__init__(config)
        self.embeddings = embeddings(config)
        self.encoder = BertEncoder(config)

    @property
    def stack(self) -> BertEncoder:
        return self.encoder


class BertSequenceHead(Head):
    """One answer per text: dropout, and a linear layer on the pooler's vector."""

    @staticmethod
    def build(model, config: BertConfig, outputs: int) -> None:
        model.bert.pooler = BertPooler(config)
        model.dropout = Dropout(config.head_dropout)
        model.classifier = Linear(config.hidden_size, outputs)

    @staticmethod
    def forward(model, batch: Batch) -> Tensor:
        pooled = model.bert.pooler(model.bert(batch, row_of_each_text(batch, "first")))  # (B, H)
        return model.classifier(model.dropout(pooled))  # (B, C)


class BertPredictionTransform(Module):
    """One more layer between the last vector and the vocabulary."""

    def __init__(self, config: BertConfig):
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(self.activation(self.dense(x)))


class BertPredictions(Module):
    """How well each word of the vocabulary fits: the product with the word's own vector, plus its bias."""

    def __init__(self, config: BertConfig):
        self.transform = BertPredictionTransform(config)
        self.bias = Parameter(np.zeros(config.vocab_size, np.float32))

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        return ops.linear(self.transform(x), words, self.bias)  # (R, V)


class BertPretrainingHeads(Module):
    """Under its name in a checkpoint, `cls`."""

    def __init__(self, config: BertConfig):
        self.predictions = BertPredictions(config)


class BertMaskedHead(Head):
    """Which word stood there, for each token that has a label, or for all (Devlin et al. 2019, section 3.1)."""

    @staticmethod
    def build(model, config: BertConfig, outputs: int) -> None:
        model.cls = BertPretrainingHeads(config)

    @staticmethod
    def forward(model, batch: Batch) -> Tensor:
        x = model.bert(batch, rows_with_a_target(batch))  # (R, H)
        return model.cls.predictions(x, model.bert.vocabulary.weight)  # (R, V)


def current_name(key: str) -> str:
    """The name that transformers uses today for a key of an old or encoder-only checkpoint.

    The first BERT checkpoints call LayerNorm's weight and bias gamma and beta, and a checkpoint of the encoder alone
    leaves out `bert.`.
    """
    if key.endswith("LayerNorm.gamma"):
        key = key.removesuffix("gamma") + "weight"
    elif key.endswith("LayerNorm.beta"):
        key = key.removesuffix("beta") + "bias"
    if key.startswith(("embeddings.", "encoder.", "pooler.")):
        key = f"bert.{key}"
    return TIED.get(key, key)


TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
"""Second names of one parameter, which old checkpoints hold twice."""


LAYER_PARTS = {
    "query": "query",
    "key": "key",
    "value": "value",
    "feed_forward_output": r"\d+\.output\.dense",  # not the attention's output.dense
    "attention_norm": "attention.output.LayerNorm",
    "output_norm": "output.LayerNorm",
}

ARCHITECTURE = Architecture(
    model_type="bert",
    class_prefix="Bert",
    body_name="bert",
    layer_parts=LAYER_PARTS,
    config=BertConfig,
    body=Bert,
    heads={
        "SequenceClassification": BertSequenceHead,
        "TokenClassification": TokenHead,
        "QuestionAnswering": AnswerHead,
        "MaskedLM": BertMaskedHead,
    },
    current_name=current_name,
)
