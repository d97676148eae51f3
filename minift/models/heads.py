"""Heads that several families share."""

from typing import Any

from minift.data import Batch
from minift.models.architecture import Head
from minift.nn import Dropout, Linear
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
