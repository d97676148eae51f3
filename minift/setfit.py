"""SetFit: learning from a handful of examples, without a prompt (Tunstall et al. 2022).

n labelled texts make n^2 pairs. First the body learns from pairs that texts of one class belong together and texts of
two do not (section 3.1); then a linear head is fitted to the vectors of the n texts (section 3.2). It stands beside
the training loop, because its batches are of pairs and its head is fitted, not fine-tuned.

    text -> body -> mean of its tokens' vectors -> length 1 -> u          cosine(u, v) = u . v
"""

from collections.abc import Sequence

import numpy as np
from minift_kernels import softmax as softmax_kernels

from minift import random
from minift.data import Text
from minift.errors import InputError
from minift.losses import cross_entropy, label_indices, mse_loss
from minift.nn import Linear, evaluating
from minift.optim import AdamW, linear_schedule
from minift.tasks.text_classification import Prediction, TextClassification
from minift.tensor import Tensor

Example = tuple[Text, int | str]
"""A text and its label."""


class SetFit:
    """A classifier on a body that is trained on pairs; `model` gives body, tokenizer and labels."""

    def __init__(self, model: TextClassification):
        self.model = model
        self.head: Linear | None = None

    def embed(self, texts: Sequence[Text]) -> Tensor:
        """A vector of length 1 for each text, (B, H)."""
        batch = self.model.encode(list(texts))
        x = self.model.body(batch)  # (T, H)
        lengths = np.diff(batch.offsets)
        averages = np.zeros((len(batch), batch.tokens), x.dtype)
        averages[np.repeat(np.arange(len(batch)), lengths), np.arange(batch.tokens)] = np.repeat(
            1 / lengths, lengths
        )
        mean = Tensor(averages) @ x  # (B, H)
        return mean * ((mean * mean).sum(axis=1, keepdims=True) + 1e-12) ** -0.5

    def fit(
        self,
        examples: Sequence[Example],
        pairs_per_example: int = 20,
        batch_size: int = 16,
        learning_rate: float = 2e-5,
        seed: int = 0,
    ) -> list[float]:
        """Train the body on pairs, one pass, and fit the head; returns the loss of every step.

        Raises InputError for fewer than two classes, and for a label that the model does not have.
        """
        texts = [text for text, _ in examples]
        labels = label_indices([label for _, label in examples], self.model.labels, len(self.model.labels))
        if len(set(labels.tolist())) < 2:
            raise InputError("SetFit needs examples of at least two classes: it learns from what differs")
        random.manual_seed(seed)
        pairs = pairs_of(labels, pairs_per_example, seed)
        optimizer = AdamW(self.model.body.parameters(), lr=learning_rate, weight_decay=0.01)
        steps = -(-len(pairs) // batch_size)
        schedule = linear_schedule(optimizer, steps, warmup_steps=steps // 10)
        losses = []
        self.model.train()
        for start in range(0, len(pairs), batch_size):
            first, second = pairs[start : start + batch_size].T
            u = self.embed([texts[index] for index in [*first, *second]])  # (2 P, H)
            left, right = u[np.arange(len(first))], u[np.arange(len(first), 2 * len(first))]
            cosine = (left * right).sum(axis=1)  # (P,)
            loss = mse_loss(cosine, (labels[first] == labels[second]).astype(np.float32))
            loss.backward()
            optimizer.step(1.0)
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        self._fit_head(texts, labels)
        return losses

    def _fit_head(self, texts: Sequence[Text], labels: np.ndarray, steps: int = 300) -> None:
        """Logistic regression on the frozen vectors, with a little decay against certainty."""
        with evaluating(self.model):
            x = self.embed(texts).detach()
        self.head = Linear(x.shape[1], len(self.model.labels))
        optimizer = AdamW(self.head.parameters(), lr=0.1, weight_decay=0.01)
        for _ in range(steps):
            cross_entropy(self.head(x), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    def predict(self, texts: Sequence[Text], batch_size: int = 32) -> list[Prediction]:
        """One prediction for each text, in evaluation mode. Raises InputError before `fit`."""
        if self.head is None:
            raise InputError("SetFit has no head yet: call fit with a few labelled texts")
        predictions = []
        with evaluating(self.model):
            for start in range(0, len(texts), batch_size):
                logits = self.head(self.embed(texts[start : start + batch_size])).numpy()
                for row in softmax_kernels.forward(logits):
                    probabilities = dict(zip(self.model.labels, row.tolist(), strict=True))
                    predictions.append(Prediction(self.model.labels[int(row.argmax())], probabilities))
        return predictions


def pairs_of(labels: np.ndarray, pairs_per_example: int, seed: int) -> np.ndarray:
    """Pairs of examples, (P, 2) indices, shuffled: for each example as many partners of its class as of others.

    A class of one example is paired with itself: under dropout its two vectors differ.
    """
    generator = np.random.default_rng(seed)
    pairs = []
    for index, label in enumerate(labels):
        same = np.flatnonzero(labels == label)
        same = same[same != index] if len(same) > 1 else same
        other = np.flatnonzero(labels != label)
        for partners in (same, other):
            pairs += [(index, int(partner)) for partner in generator.choice(partners, pairs_per_example // 2)]
    return generator.permutation(np.array(pairs))
