"""RoBERTa (Liu et al. 2019): BERT's encoder, trained for longer and without pairs; positions and heads differ."""

from dataclasses import dataclass, replace

import numpy as np

from minift import ops
from minift.data import Batch
from minift.models.architecture import Architecture, Head, row_of_each_text, rows_with_a_target
from minift.models.bert import LAYER_PARTS, Bert, BertConfig, BertEmbeddings
from minift.models.heads import AnswerHead, TokenHead
from minift.nn import Dropout, LayerNorm, Linear, Module, Parameter
from minift.tensor import Tensor


@dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """BERT's fields; the defaults are transformers'."""

    vocab_size: int = 50265
    pad_token_id: int = 1

    @property
    def first_position(self) -> int:
        """The row of the first token's position: RoBERTa's first code counted from the padding's row on."""
        return self.pad_token_id + 1

    @property
    def longest_text(self) -> int:
        return self.max_position_embeddings - self.first_position


class RobertaEmbeddings(BertEmbeddings):
    """BERT's, with the positions moved up."""

    def __init__(self, config: RobertaConfig):
        super().__init__(config)
        self.first_position = config.first_position

    def forward(self, words: Tensor, batch: Batch) -> Tensor:
        return super().forward(words, replace(batch, positions=batch.positions + self.first_position))


class Roberta(Bert):
    """The encoder with its embeddings, under the names of transformers' RobertaModel."""

    def __init__(self, config: RobertaConfig):
        super().__init__(config, RobertaEmbeddings)


class RobertaClassifier(Module):
    """From the vector of a text's first token, <s>, to its logits."""

    def __init__(self, config: RobertaConfig, outputs: int):
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.dropout = Dropout(config.head_dropout)
        self.out_proj = Linear(config.hidden_size, outputs)

    def forward(self, first: Tensor) -> Tensor:
        hidden = self.dense(self.dropout(first)).tanh()  # (B, H)
        return self.out_proj(self.dropout(hidden))  # (B, C)


class RobertaSequenceHead(Head):
    """One answer per text, from its first token."""

    @staticmethod
    def build(model, config: RobertaConfig, outputs: int) -> None:
        model.classifier = RobertaClassifier(config, outputs)

    @staticmethod
    def forward(model, batch: Batch) -> Tensor:
        return model.classifier(model.roberta(batch, row_of_each_text(batch, "first")))


class RobertaPredictions(Module):
    """How well each word of the vocabulary fits: one more layer, then the product with the word's own vector."""

    def __init__(self, config: RobertaConfig):
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.bias = Parameter(np.zeros(config.vocab_size, np.float32))

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        return ops.linear(self.layer_norm(ops.gelu(self.dense(x))), words, self.bias)  # (R, V)


class RobertaMaskedHead(Head):
    """Which word stood there, for each token that has a label, or for all."""

    @staticmethod
    def build(model, config: RobertaConfig, outputs: int) -> None:
        model.lm_head = RobertaPredictions(config)

    @staticmethod
    def forward(model, batch: Batch) -> Tensor:
        x = model.roberta(batch, rows_with_a_target(batch))  # (R, H)
        return model.lm_head(x, model.roberta.vocabulary.weight)  # (R, V)


TIED = {
    "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
"""Second names of one parameter, which old checkpoints hold twice."""


def current_name(key: str) -> str:
    """The name that transformers uses today for a key of an old or encoder-only checkpoint."""
    if key.startswith(("embeddings.", "encoder.", "pooler.")):
        key = f"roberta.{key}"
    return TIED.get(key, key)


ARCHITECTURE = Architecture(
    model_type="roberta",
    class_prefix="Roberta",
    body_name="roberta",
    layer_parts=LAYER_PARTS,
    config=RobertaConfig,
    body=Roberta,
    heads={
        "SequenceClassification": RobertaSequenceHead,
        "TokenClassification": TokenHead,
        "QuestionAnswering": AnswerHead,
        "MaskedLM": RobertaMaskedHead,
    },
    current_name=current_name,
)
