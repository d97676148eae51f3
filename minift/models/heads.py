"""Heads that several families share."""

from contextlib import nullcontext
from typing import Any

from minift.data import Batch
from minift.models.architecture import Head, row_of_each_text, rows_with_a_target
from minift.nn import Dropout, Linear, skip_init
from minift.tensor import Tensor


class TokenHead(Head):
    """One answer per token: dropout, and a linear layer on the token's vector."""

    @staticmethod
    def build(model, config: Any, outputs: int) -> None:
        model.dropout = Dropout(config.head_dropout)
        model.classifier = Linear(config.hidden_size, outputs)

    @staticmethod
    def forward(model, batch: Batch) -> Tensor:
        return model.classifier(model.dropout(model.body(batch)))  # (T, C)


class AnswerHead(Head):
    """Two scores per token: that the answer begins there, and that it ends there."""

    @staticmethod
    def build(model, config: Any, outputs: int) -> None:
        model.qa_outputs = Linear(config.hidden_size, outputs)

    @staticmethod
    def forward(model, batch: Batch) -> Tensor:
        return model.qa_outputs(model.body(batch))  # (T, 2)


class LastTokenHead(Head):
    """One answer per text, from its last token, the only one that a causal model lets see all others."""

    @staticmethod
    def build(model, config: Any, outputs: int) -> None:
        model.score = Linear(config.hidden_size, outputs, bias=False)

    @staticmethod
    def forward(model, batch: Batch) -> Tensor:
        return model.score(model.body(batch, row_of_each_text(batch, "last")))  # (B, C)


class CausalHead(Head):
    """Which word comes next, after each token that has a label, or after all."""

    @staticmethod
    def build(model, config: Any, outputs: int) -> None:
        with skip_init() if config.tie_word_embeddings else nullcontext():
            model.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            model.lm_head.weight = model.body.vocabulary.weight

    @staticmethod
    def forward(model, batch: Batch) -> Tensor:
        return model.lm_head(model.body(batch, rows_with_a_target(batch)))  # (R, V)
