"""Heads: what stands on the encoder and answers the task's question."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from minift_kernels import softmax as softmax_kernels

from minift import checkpoint
from minift.bert import Bert, BertConfig
from minift.data import Batch, Text, batches, pack, warn_of_truncated
from minift.nn import Dropout, Linear, Module, evaluating
from minift.tensor import Tensor
from minift.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prediction:
    """What the model says of one text: the most probable label, and every label's probability."""

    label: str
    probabilities: dict[str, float]

    @property
    def probability(self) -> float:
        """How sure the model is of `label`."""
        return self.probabilities[self.label]


class TextClassification(Module):
    """Which of C classes a text, or a pair of texts, belongs to: BERT, dropout, and one linear layer on its pooler.

    It takes texts as they are. Its weights have the names of transformers' BertForSequenceClassification.
    """

    def __init__(self, config: BertConfig, labels: Sequence[str], tokenizer: Tokenizer):
        dropout = config.classifier_dropout
        self.bert = Bert(config)
        self.dropout = Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        self.classifier = Linear(config.hidden_size, len(labels))
        self.labels = tuple(labels)
        self.tokenizer = tokenizer

    def encode(self, texts: Text | list[Text]) -> Batch:
        """The packed batch of a text, or of a list of texts or pairs."""
        return pack(self.tokenizer.encode(texts if isinstance(texts, list) else [texts]))

    def forward(self, texts: Text | list[Text] | Batch) -> Tensor:
        """Logits (B, C): the higher, the likelier. `texts` is a text, a list of them, or a packed batch."""
        batch = texts if isinstance(texts, Batch) else self.encode(texts)
        tokens = self.bert(batch)  # (T, H)
        pooled = self.bert.pooler(tokens, batch)  # (B, H)
        logits = self.classifier(self.dropout(pooled))  # (B, C)
        logits.labels = self.labels
        return logits

    def predict(self, texts: Text | list[Text], batch_size: int = 32) -> list[Prediction]:
        """One prediction for each text, in evaluation mode, whatever mode the model is in.

        A warning says how many texts were longer than the maximum.
        """
        texts = texts if isinstance(texts, list) else [texts]
        logits = []
        truncated = 0
        with evaluating(self):
            for batch in batches([(text, None) for text in texts], self.tokenizer, batch_size):
                logits.append(self(batch).numpy())
                truncated += batch.truncated
        warn_of_truncated(truncated, len(texts), self.tokenizer.max_length)
        return [
            Prediction(self.labels[int(row.argmax())], dict(zip(self.labels, row.tolist(), strict=True)))
            for rows in logits
            for row in softmax_kernels.forward(rows)
        ]

    def save(self, directory: str | Path) -> None:
        """Write a directory that `minift.load` and transformers' from_pretrained both read.

        Every file appears whole or not at all. Raises InputError where the directory cannot be written.
        """
        directory = Path(directory)
        checkpoint.make_directory(directory)
        names = {name: parameter.data.astype(np.float32) for name, parameter in self.named_parameters()}
        checkpoint.write_tensors(directory / checkpoint.WEIGHTS, names)
        self.tokenizer.save(directory)
        checkpoint.write_json(directory / "config.json", self._config_json())

    def _config_json(self) -> dict:
        return {
            "architectures": ["BertForSequenceClassification"],
            "model_type": "bert",
            **vars(self.bert.config),
            "id2label": {str(index): label for index, label in enumerate(self.labels)},
            "label2id": {label: index for index, label in enumerate(self.labels)},
            "dtype": "float32",
            "tie_word_embeddings": True,
            "problem_type": "single_label_classification",
        }
