"""Text generation: which token comes next, learned from plain text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minift.data import Batch, Columns, SingleTexts
from minift.generation import Sampling, generate
from minift.losses import cross_entropy
from minift.tasks.documents import (
    Documents,
    TextScore,
    batch_of_tokens,
    perplexity,
    rank_outcomes,
    scores,
    share_within,
    verdict,
)
from minift.tasks.task_model import Outcomes, TaskModel, Verdict
from minift.tensor import Tensor


class Continuation(NamedTuple):
    """What the model writes after a prompt."""

    continuation: str

    def __str__(self) -> str:
        return self.continuation


class TextGeneration(TaskModel):
    """The next token after every token: softmax over the vocabulary, cross-entropy against what came next."""

    head = "CausalLM"

    @classmethod
    def read(cls, path: Path, columns: Columns, labelled: bool = True) -> Any:
        """Plain text, see `Documents`; without labels, prompts, see `SingleTexts`."""
        if labelled:
            return Documents(path, columns.text)
        return SingleTexts(path, *columns, require_label=False)

    @property
    def outputs(self) -> int:
        return self.config.vocab_size

    @property
    def end_of_text(self) -> int | None:
        """The token that ends a document; None where the tokenizer has none."""
        return self.tokenizer.special_id("eos_token")

    def prepare(self, examples: Any) -> None:
        # Each block has one token of the next, which is what its last token is to foretell.
        examples.cut(self.tokenizer, self.document, self.tokenizer.max_length, overlap=1)

    def targets(self, examples: Any) -> Sequence[Any]:
        self.prepare(examples)
        return range(len(examples))  # the blocks themselves say what comes next

    def pack(self, inputs: list[Any], targets: Sequence[Any] | None = None) -> Batch:
        """Of blocks of tokens, each token's label is the next one; of texts, nothing is asked."""
        if targets is None:
            return batch_of_tokens([self.prompt(text) for text in inputs])
        return batch_of_tokens([block[:-1] for block in inputs], [block[1:] for block in inputs])

    def document(self, text: str) -> list[int]:
        """A whole text, with the token that ends it."""
        end = self.end_of_text
        return self.prompt(text) + ([] if end is None else [end])

    def prompt(self, text: str) -> list[int]:
        """A text as the beginning of a document."""
        return self.tokenizer.before_text + self.tokenizer.pieces(text)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        assert batch.labels is not None
        return cross_entropy(output, batch.labels[batch.labels != -100])

    def decode(self, output: np.ndarray, batch: Batch) -> list[Any]:
        return scores(output, batch)

    def metrics(self, predictions: list[Any], examples: Any) -> dict[str, float]:
        """{"perplexity", "accuracy"}: e to the mean loss of a token; the share of tokens that seemed likeliest."""
        return {"perplexity": perplexity(predictions), "accuracy": share_within(predictions, 1)}

    def verdict(self, given: Any, target: Any, prediction: TextScore) -> Verdict:
        """The score is minus the loss of a token."""
        return verdict(self.tokenizer.decode(given.tolist()), prediction)

    def outcomes(self, targets: Any, predictions: list[TextScore]) -> Outcomes:
        return rank_outcomes(predictions)

    def generate(
        self,
        prompts: list[str],
        max_new_tokens: int = 100,
        sampling: Sampling | None = None,
        use_cache: bool = True,
    ) -> list[str]:
        """What comes after each prompt, without the prompt. Raises InputError as `generation.generate` does."""
        written = generate(
            self,
            [self.prompt(prompt) for prompt in prompts],
            max_new_tokens,
            sampling or Sampling(),
            self.end_of_text,
            use_cache,
        )
        return [self.tokenizer.decode(tokens) for tokens in written]

    def predict(self, inputs: Any, batch_size: int = 32) -> list[Continuation]:
        """How each text goes on, the likeliest token at every step; from a text without tokens nothing does."""
        inputs = inputs if isinstance(inputs, list) else [inputs]
        written = [""] * len(inputs)
        asked = [row for row, text in enumerate(inputs) if self.prompt(text)]
        for start in range(0, len(asked), batch_size):
            rows = asked[start : start + batch_size]
            for row, text in zip(rows, self.generate([inputs[row] for row in rows]), strict=True):
                written[row] = text
        return [Continuation(text) for text in written]
