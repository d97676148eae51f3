"""What the families whose tokens look at their whole text share: BERT, RoBERTa, DistilBERT."""

from typing import Any

import numpy as np
from minift_kernels.arrays import array_namespace

from minift import ops
from minift.data import Batch
from minift.history import Array
from minift.models.architecture import Body
from minift.nn import Embedding, Module, ModuleList
from minift.tensor import Tensor

Context = tuple[Tensor, Array]
"""What tokens look at: vectors (T, H), and the segments (B, 2) of the texts among them."""


class Encoder(Module):
    """The layers of a model whose tokens look at their whole text, one after the other.

    Whoever reads only the vectors of some tokens, as a classifier does of each text's first, needs no other rows of the
    last layer: all tokens are looked at, but only those look. For a classifier that saves five sixths of this layer's
    work, forward and backward, and it gives the same numbers. Lower layers need all rows, because the layer above
    looks at all of them.
    """

    layer: ModuleList
    """Each is called with x, segments and, where its tokens look at others than themselves, a `Context`."""

    def forward(self, x: Tensor, segments: Array, rows: Array | None = None) -> Tensor:
        """(T, H) from x (T, H) and the segments (B, 2) of the texts, or only these rows of it, (R, H).

        Raises ValueError for rows that are not in ascending order (on a GPU nobody looks).
        """
        if isinstance(rows, np.ndarray) and (np.diff(rows) < 0).any():
            raise ValueError("rows must be in ascending order")
        for layer in self.layer if rows is None else self.layer[:-1]:
            x = layer(x, segments)  # (T, H)
        if rows is None:
            return x
        xp = array_namespace(segments)
        rows_of_each = xp.searchsorted(rows, segments)  # (B, 2): where among `rows` each text's begin and end
        return self.layer[-1](ops.embedding(rows, x), rows_of_each, context=(x, segments))  # (R, H)


class EncoderBody(Body):
    """Embeddings and an `Encoder`, which has another name in each family's checkpoints."""

    embeddings: Any
    """What lies under the layers, called with the words' vectors and the batch; it has `word_embeddings`."""

    @property
    def stack(self) -> Encoder:
        """The encoder, by whatever name."""
        raise NotImplementedError

    @property
    def vocabulary(self) -> Embedding:
        return self.embeddings.word_embeddings

    def embed(self, words: Tensor, batch: Batch) -> Tensor:
        return self.embeddings(words, batch)

    def encode(self, x: Tensor, batch: Batch, rows: Array | None = None) -> Tensor:
        """All layers: (T, H), or only these rows of it, (R, H), which costs less."""
        return self.stack(x, batch.segments, rows)

    def forward(self, batch: Batch, rows: Array | None = None) -> Tensor:
        return self.encode(self.read(batch), batch, rows)

    @property
    def foundation(self) -> list[Module]:
        return [self.embeddings]

    @property
    def layers(self) -> list[Module]:
        return self.stack.layer.modules
