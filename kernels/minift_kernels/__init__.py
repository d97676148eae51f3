"""Arrays in, arrays out: the operations of a transformer, each as a ladder from the formula to the fast
kernel.

One folder an operation, one file a rung. Nothing here knows of Tensor, gradient history or models; read
`ladder.py`, then any folder, beginning with its `__init__.py`.
"""

from minift_kernels import (
    adamw,
    attention,
    cross_entropy,
    dropout,
    embedding,
    gelu,
    gelu_tanh,
    grad_norm,
    host,
    layer_norm,
    matmul,
    softmax,
    summary,
)
from minift_kernels.ladder import use_kernels

__all__ = ["OPERATIONS", "use_kernels"]

OPERATIONS = {
    folder.ladder.operation: folder.ladder
    for folder in (
        matmul,
        softmax,
        attention,
        layer_norm,
        gelu,
        gelu_tanh,
        dropout,
        embedding,
        cross_entropy,
        adamw,
        grad_norm,
        summary,
    )
}
"""Every ladder by the name of its operation."""

host.keep_freed_memory()
