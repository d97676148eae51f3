"""DistilBERT (Sanh et al. 2019): BERT with half the layers, no token types and no pooler, taught by BERT."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
from minift.models.bert import ACTIVATIONS
from minift.models.encoder import Context, Encoder, EncoderBody
from minift.models.heads import TokenHead
from minift.nn import Dropout, Embedding, LayerNorm, Linear, Module, ModuleList
from minift.tensor import Tensor

EPS = 1e-12
"""Of every LayerNorm; config.json does not say it."""


@dataclass(frozen=True)
class DistilBertConfig(ModelConfig):
    """The shape of a DistilBERT, under the names of its config.json; the defaults are transformers'."""

    vocab_size: int = 30522
    dim: int = 768
    """H, the width of every token's vector."""
    n_layers: int = 6
    n_heads: int = 12
    """N; each head works on H / N of the vector."""
    hidden_dim: int = 3072
    """F, the width inside the feed-forward network."""
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    seq_classif_dropout: float = 0.2
    qa_dropout: float = 0.1
    max_position_embeddings: int = 512
    initializer_range: float = 0.02
    pad_token_id: int = 0

    @property
    def hidden_size(self) -> int:
        return self.dim

    @property
    def num_hidden_layers(self) -> int:
        return self.n_layers

    @property
    def num_attention_heads(self) -> int:
        return self.n_heads

    @property
    def longest_text(self) -> int:
        return self.max_position_embeddings

    @property
    def head_dropout(self) -> float:
        return self.dropout

    def check(self, config: Mapping[str, Any], source: str) -> None:
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"{source}: activation is {self.activation!r}, expected one of {', '.join(ACTIVATIONS)}"
            )
        if self.dim % self.n_heads:
            raise InputError(f"{source}: dim {self.dim} is no multiple of n_heads {self.n_heads}")


class DistilBertEmbeddings(Module):
    """What a token is, and where it stands."""

    def __init__(self, config: DistilBertConfig):
        self.word_embeddings = Embedding(config.vocab_size, config.dim)
        self.position_embeddings = Embedding(config.max_position_embeddings, config.dim)
        self.LayerNorm = LayerNorm(config.dim, EPS)
        self.dropout = Dropout(config.dropout)

    def forward(self, words: Tensor, batch: Batch) -> Tensor:
        """What the first layer reads, from the words' own vectors: both (T, H)."""
        return self.dropout(self.LayerNorm(words, self.position_embeddings(batch.positions)))


class DistilBertSelfAttention(SelfAttention):
    """Each token gathers from the tokens of its text; then the heads are mixed."""

    def __init__(self, config: DistilBertConfig):
        super().__init__(config.n_heads, config.attention_dropout)
        self.q_lin = Linear(config.dim, config.dim)
        self.k_lin = Linear(config.dim, config.dim)
        self.v_lin = Linear(config.dim, config.dim)
        self.out_lin = Linear(config.dim, config.dim)

    def forward(self, x: Tensor, segments: Array, context: Context | None = None) -> Tensor:
        looked_at, their_segments = context or (x, segments)
        q, k, v = self.q_lin(x), self.k_lin(looked_at), self.v_lin(looked_at)
        return self.out_lin(self.attend(q, k, v, segments, their_segments))


class DistilBertFeedForward(Module):
    """H to F, the activation, and back."""

    def __init__(self, config: DistilBertConfig):
        self.lin1 = Linear(config.dim, config.hidden_dim)
        self.lin2 = Linear(config.hidden_dim, config.dim)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.lin2(self.activation(self.lin1(x))))


class DistilBertLayer(Module):
    """Attention and feed-forward network, each added to what went in and normalised."""

    def __init__(self, config: DistilBertConfig):
        self.attention = DistilBertSelfAttention(config)
        self.sa_layer_norm = LayerNorm(config.dim, EPS)
        self.ffn = DistilBertFeedForward(config)
        self.output_layer_norm = LayerNorm(config.dim, EPS)

    def forward(self, x: Tensor, segments: Array, context: Context | None = None) -> Tensor:
        attended = self.sa_layer_norm(self.attention(x, segments, context), x)
        return self.output_layer_norm(self.ffn(attended), attended)


class DistilBertTransformer(Encoder):
    """The `DistilBertLayer`s."""

    def __init__(self, config: DistilBertConfig):
        self.layer = ModuleList([DistilBertLayer(config) for _ in range(config.n_layers)])


class DistilBert(EncoderBody):
    """The encoder with its embeddings, under the names of transformers' DistilBertModel."""

    def __init__(self, config: DistilBertConfig):
        super().__init__(config)
        self.embeddings = DistilBertEmbeddings(config)
        self.transformer = DistilBertTransformer(config)

    @property
    def stack(self) -> DistilBertTransformer:
        return self.transformer


class DistilBertSequenceHead(Head):
    """One answer per text, from its first token, [CLS]."""

    @staticmethod
    def build(model, config: DistilBertConfig, outputs: int) -> None:
        model.pre_classifier = Linear(config.dim, config.dim)
        model.dropout = Dropout(config.seq_classif_dropout)
        model.classifier = Linear(config.dim, outputs)

    @staticmethod
    def forward(model, batch: Batch) -> Tensor:
        first = model.distilbert(batch, row_of_each_text(batch, "first"))  # (B, H)
        return model.classifier(model.dropout(ops.relu(model.pre_classifier(first))))  # (B, C)


class DistilBertAnswerHead(Head):
    """Two scores per token: that the answer begins there, and that it ends there."""

    @staticmethod
    def build(model, config: DistilBertConfig, outputs: int) -> None:
        model.dropout = Dropout(config.qa_dropout)
        model.qa_outputs = Linear(config.dim, outputs)

    @staticmethod
    def forward(model, batch: Batch) -> Tensor:
        return model.qa_outputs(model.dropout(model.distilbert(batch)))  # (T, 2)


class DistilBertMaskedHead(Head):
    """Which word stood there, for each token that has a label, or for all."""

    @staticmethod
    def build(model, config: DistilBertConfig, outputs: int) -> None:
        model.vocab_transform = Linear(config.dim, config.dim)
        model.vocab_layer_norm = LayerNorm(config.dim, EPS)
        model.vocab_projector = Linear(config.dim, config.vocab_size)
        model.vocab_projector.weight = model.distilbert.vocabulary.weight

    @staticmethod
    def forward(model, batch: Batch) -> Tensor:
        x = model.distilbert(batch, rows_with_a_target(batch))  # (R, H)
        x = ACTIVATIONS[model.config.activation](model.vocab_transform(x))
        return model.vocab_projector(model.vocab_layer_norm(x))  # (R, V)


def current_name(key: str) -> str:
    """The name that transformers uses today for a key of an old or encoder-only checkpoint."""
    if key == "vocab_projector.weight":  # one with the word embeddings, which old checkpoints hold twice
        return "distilbert.embeddings.word_embeddings.weight"
    return f"distilbert.{key}" if key.startswith(("embeddings.", "transformer.")) else key


ARCHITECTURE = Architecture(
    model_type="distilbert",
    class_prefix="DistilBert",
    body_name="distilbert",
    layer_parts={
        "query": "q_lin",
        "key": "k_lin",
        "value": "v_lin",
        "feed_forward_output": r"ffn\.lin2",
    },
    config=DistilBertConfig,
    body=DistilBert,
    heads={
        "SequenceClassification": DistilBertSequenceHead,
        "TokenClassification": TokenHead,
        "QuestionAnswering": DistilBertAnswerHead,
        "MaskedLM": DistilBertMaskedHead,
    },
    current_name=current_name,
)
