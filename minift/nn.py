"""Modules: parameters with names.

A module's attribute path is the name of its weights in a checkpoint (`bert.encoder.layer.0.attention.self.query`),
so loading is a dictionary lookup and every operation can say which module ran it. Names are PyTorch's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Self

import numpy as np
from minift_kernels import gpu

from minift import ops, random
from minift.device import COMPUTE_DTYPES, array_library, as_numpy, check_precision
from minift.errors import InputError
from minift.history import Array, inside_module, no_grad
from minift.tensor import Tensor

_skip_init: ContextVar[bool] = ContextVar("skip_init", default=False)


@contextmanager
def skip_init() -> Iterator[None]:
    """Modules made inside this block leave their weights at zero, because a checkpoint is about to fill them."""
    token = _skip_init.set(True)
    try:
        yield
    finally:
        _skip_init.reset(token)


@contextmanager
def evaluating(module: Module) -> Iterator[None]:
    """Inside this block the module is in evaluation mode and leaves no history; afterwards it is as before, and so is
    each module inside it."""
    modes = [(each, each.training) for _, each in module.named_modules()]
    module.eval()
    try:
        with no_grad():
            yield
    finally:
        for each, mode in modes:
            each.training = mode


class Parameter(Tensor):
    """A tensor that is trained: it requires a gradient from the start."""

    def __init__(self, data):
        super().__init__(data, requires_grad=True)


class Module:
    """A function with parameters: a subclass sets parameters and modules as attributes and defines `forward`."""

    training = True
    path = ""
    """Where this module stands in the model, such as bert.encoder.layer.0; empty for the model itself."""

    def __setattr__(self, name: str, value) -> None:
        super().__setattr__(name, value)
        if isinstance(value, Module):
            value.set_path(f"{self.path}.{name}" if self.path else name)

    def set_path(self, path: str) -> None:
        """Called when this module, or one around it, becomes an attribute of another."""
        self.path = path
        for name, child in self.children():
            child.set_path(f"{path}.{name}")

    def __call__(self, *inputs, **options):
        with inside_module(self.path):
            return self.forward(*inputs, **options)

    def forward(self, *inputs, **options):
        """What the module computes."""
        raise TypeError(f"{type(self).__name__} has no forward")

    def children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly inside this one, with their names."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all inside it, with their paths."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter with its path, which is its key in a checkpoint; a shared one once, under its first."""
        seen = set()
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield f"{path}.{name}" if path else name, value

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter once."""
        for _, parameter in self.named_parameters():
            yield parameter

    def train(self, mode: bool = True) -> Self:
        """Switch to training (dropout on) or, with False, to evaluation."""
        self.training = mode
        for _, child in self.children():
            child.train(mode)
        return self

    def eval(self) -> Self:
        """Switch to evaluation: dropout off."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget every gradient."""
        for parameter in self.parameters():
            parameter.grad = None

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freeze (False) or free (True) every parameter of this module."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def to(self, dtype: type | None = None, device: str | None = None) -> Self:
        """Convert every parameter to `dtype`, np.float32 or np.float64, and move it to `device`, "cpu" or "cuda".

        Raises InputError for a device that cannot be used.
        """
        library = None if device is None else array_library(device)
        for parameter in self.parameters():
            if library is not None:
                parameter.data = (
                    as_numpy(parameter.data) if library is np else library.asarray(parameter.data)
                )
            if dtype is not None:
                parameter.data = parameter.data.astype(dtype, copy=False)
            parameter.grad = None
        return self

    def compute_in(self, precision: str) -> Self:
        """Compute in "float32", "tf32" or "bf16" (`device.COMPUTE_DTYPES`); parameters stay as they are.

        With bf16, embeddings give bfloat16, and every operation after them computes in the dtype of its input. tf32
        is allowed or not for the whole process. Raises InputError for another precision.
        """
        check_precision(precision, "cuda")
        gpu.allow_tf32(precision == "tf32")
        for _, module in self.named_modules():
            if isinstance(module, Embedding):
                module.compute_dtype = COMPUTE_DTYPES[precision]
        return self


class ModuleList(Module):
    """Modules under the names "0", "1", ...: `layer = ModuleList(...)` holds `layer.0`, `layer.1`, ..."""

    def __init__(self, modules: Sequence[Module]):
        self.modules = list(modules)

    def children(self) -> Iterator[tuple[str, Module]]:
        for index, module in enumerate(self.modules):
            yield str(index), module

    def __iter__(self) -> Iterator[Module]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)

    def __getitem__(self, index):
        return self.modules[index]


class Linear(Module):
    """y = x W^T + b with W (out, in) and b (out,), both uniform in +-1/sqrt(in) at first, as in PyTorch."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        bound = 1 / math.sqrt(in_features)
        self.weight = Parameter(_uniform((out_features, in_features), bound))
        self.bias = Parameter(_uniform((out_features,), bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)


class Embedding(Module):
    """One row of `weight` (V, H) for each id, standard normal at first, as in PyTorch."""

    compute_dtype: type | None = None
    """What the rows are rounded to; None leaves them as they are. See `Module.compute_in`."""

    def __init__(self, num_embeddings: int, embedding_dim: int):
        shape = (num_embeddings, embedding_dim)
        values = (
            np.zeros(shape, np.float32)
            if _skip_init.get()
            else random.default_generator.numpy().standard_normal(shape, dtype=np.float32)
        )
        self.weight = Parameter(values)

    def forward(self, ids: Array) -> Tensor:
        return ops.embedding(ids, self.weight, self.compute_dtype)


class LayerNorm(Module):
    """Mean 0 and variance 1 over the last axis, then times `weight` (1 at first) plus `bias` (0 at first)."""

    def __init__(self, size: int, eps: float = 1e-5):
        self.weight = Parameter(np.ones(size, np.float32))
        self.bias = Parameter(np.zeros(size, np.float32))
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Of x + residual where there is one."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps, residual)


class RMSNorm(Module):
    """Mean square 1 over the last axis, then times `weight` (1 at first)."""

    def __init__(self, size: int, eps: float):
        self.weight = Parameter(np.ones(size, np.float32))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)


class Dropout(Module):
    """In training, zeroes each element with probability p and scales the others up; in evaluation does nothing.

    Raises InputError unless 0 <= p <= 1.
    """

    def __init__(self, p: float):
        self.p = checked_dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return ops.dropout(x, self.p, random.default_generator.next_key())


def checked_dropout(p: float) -> float:
    """p. Raises InputError unless it is a probability."""
    if not 0 <= p <= 1:
        raise InputError(f"dropout is {p}, expected a probability from 0 to 1")
    return p


def _uniform(shape: tuple[int, ...], bound: float) -> np.ndarray:
    if _skip_init.get():
        return np.zeros(shape, np.float32)
    return random.default_generator.numpy().uniform(-bound, bound, shape).astype(np.float32)
