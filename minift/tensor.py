"""Tensor: an array that remembers how it was made, so that gradients can be taken back to its origins.

    x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    loss = (x * x).sum()
    loss.backward()
    x.grad                      # array([2., 4., 6.])

This file has the class and the arithmetic that everybody expects of an array, each operation with its backward
right under it. The operations of neural networks are in `ops.py`. Names are PyTorch's where PyTorch has them.
"""

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
from minift_kernels import matmul as matmul_kernels
from minift_kernels.arrays import array_namespace, wide

from minift import breakpoints
from minift.device import as_numpy
from minift.history import Array, Backward, Leaf, Node, Step, backward_steps, detecting_anomaly, grad_enabled
from minift.recording import record


class Tensor:
    """An array with a history.

    Attributes:
        data: the values, a NumPy or CuPy array.
        grad: the gradient of whatever `backward()` was called on, an array of the same shape; None before. Only
            leaves (tensors that no operation made) with `requires_grad` get one.
        requires_grad: whether gradients flow to or through this tensor.
        node: the operation that made it; None for a leaf, and for a result that needs no gradient.
        labels: the names of the classes along the last axis, where a classification head made it.
    """

    __array_ufunc__ = None  # so that `array * tensor` asks the tensor

    def __init__(
        self,
        data,
        requires_grad: bool = False,
        *,
        parents: Sequence["Tensor | None"] = (),
        backward: Backward | None = None,
    ):
        """From numbers or an array; `parents` and `backward` are for operations (see `ops.py`).

        A parent may be None: an optional input that was not given. Python numbers become float32, arrays keep
        their dtype. Raises TypeError when a gradient is asked for integers.
        """
        self.data: Array = _array(data)
        self.grad: Array | None = None
        self.node: Node | None = None
        self.labels: tuple[str, ...] | None = None
        self.requires_grad = requires_grad
        if requires_grad and self.data.dtype.kind in "iub":
            raise TypeError(f"only floating-point tensors can require a gradient, not {self.data.dtype}")
        if backward is None:
            return
        origins: list[Node | Leaf | None] = [
            None if parent is None else parent._origin() for parent in parents
        ]
        if grad_enabled() and any(origin is not None for origin in origins):
            self.requires_grad = True
            self.node = Node(self.data, origins, backward, record(self.data, parents, backward))
        if detecting_anomaly():
            self._check_finite(backward)

    def _origin(self) -> "Node | Tensor | None":
        """Where a gradient of this tensor goes: to its node, to itself if it is a leaf, or nowhere."""
        return self.node if self.node is not None else self if self.requires_grad else None

    def _check_finite(self, backward: Backward) -> None:
        if not array_namespace(self.data).isfinite(self.data).all():
            node = self.node or Node(self.data, (), backward)
            raise FloatingPointError(f"the first operation whose output is not finite is {node}")

    # ------------------------------------------------------------------------------------------------------------
    # Gradients

    def backward(self, gradient: Array | None = None, *, breakpoint_on: str | None = None) -> None:
        """Take `gradient` (1 for a scalar) back through the history, adding to `.grad` of every leaf.

        With `breakpoint_on="nan"` the debugger opens at the first operation that turns finite numbers into NaN or
        infinity, before they are handed on.

        Raises RuntimeError without a history, for a tensor of several elements without `gradient`, and for a
        history that an earlier call has consumed; ValueError for a `gradient` of another shape than this tensor's, and
        for another `breakpoint_on`.
        """
        deque(self.backward_steps(gradient, breakpoint_on=breakpoint_on), maxlen=0)

    def backward_steps(
        self, gradient: Array | None = None, *, breakpoint_on: str | None = None
    ) -> Iterator[Step]:
        """The backward pass one operation at a time: `for step in loss.backward_steps(): ...`.

        Inputs, outputs and bytes held are in the steps of a forward pass that ran inside `minift.recording()`.
        """
        look = breakpoints.watcher(breakpoint_on)
        if not self.requires_grad:
            raise RuntimeError("this tensor has no history: nothing it was made of requires a gradient")
        if gradient is None:
            if self.data.size != 1:
                raise RuntimeError(
                    f"backward() of a tensor of shape {self.shape} needs the gradient of each element; "
                    "call it on a scalar, such as a loss, or pass gradient="
                )
            gradient = array_namespace(self.data).ones_like(self.data)
        elif gradient.shape != self.shape:
            raise ValueError(
                f"backward() of a tensor of shape {self.shape} was given a gradient of {gradient.shape}"
            )
        if self.node is None:
            self.accumulate(gradient)
            return iter(())
        return backward_steps(self.node, gradient, look)

    def accumulate(self, gradient: Array) -> None:
        """Add to `.grad`, in this tensor's dtype. Gradient arrays are never changed in place, so they may be shared."""
        gradient = gradient.astype(self.dtype, copy=False)
        self.grad = gradient if self.grad is None else self.grad + gradient

    def detach(self) -> "Tensor":
        """The same values without the history."""
        return Tensor(self.data)

    # ------------------------------------------------------------------------------------------------------------
    # What it is

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        """The type of the elements."""
        return self.data.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.data.ndim

    def __len__(self) -> int:
        return len(self.data)

    def item(self) -> float:
        """The one element as a Python number."""
        return self.data.item()

    def __float__(self) -> float:
        return float(self.item())

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array (copied from the GPU if they are there)."""
        return as_numpy(self.data)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """What `np.asarray` and plotting libraries ask for.

        Raises TypeError for a tensor with a history, which an array has not: gradients would silently be lost.
        """
        if self.requires_grad:
            raise TypeError("a tensor with a history is no array: take .numpy() of it, or .detach() it")
        return np.array(self.numpy(), dtype, copy=copy)

    def __repr__(self) -> str:
        facts = [f"shape={self.shape}", str(self.dtype)]
        if self.node is not None:
            facts.append(f"operation={self.node.operation}")
            if self.node.module:
                facts.append(f"module={self.node.module}")
        elif self.requires_grad:
            facts.append("requires_grad")
        facts.append(f"norm={float(np.linalg.norm(self.numpy().astype(np.float64).ravel())):.4g}")
        values = f" {np.array2string(self.numpy(), precision=4)}" if self.data.size <= 16 else ""
        return f"Tensor({', '.join(facts)}){values}"

    # ------------------------------------------------------------------------------------------------------------
    # Arithmetic, element by element; shapes broadcast as in NumPy

    def __add__(self, other) -> "Tensor":
        """y = a + b."""
        a, b = self, self._operand(other)
        needs_a, needs_b, a_shape, b_shape = a.requires_grad, b.requires_grad, a.shape, b.shape

        def backward(dy):
            da = unbroadcast(dy, a_shape) if needs_a else None
            db = unbroadcast(dy, b_shape) if needs_b else None
            return da, db

        return Tensor(a.data + b.data, parents=(a, b), backward=backward)

    def __mul__(self, other) -> "Tensor":
        """y = a b."""
        a, b = self, self._operand(other)
        saved_b = b.data if a.requires_grad else None  # da = dy b
        saved_a = a.data if b.requires_grad else None  # db = dy a
        a_shape, b_shape = a.shape, b.shape

        def backward(dy):
            da = unbroadcast(dy * saved_b, a_shape) if saved_b is not None else None
            db = unbroadcast(dy * saved_a, b_shape) if saved_a is not None else None
            return da, db

        return Tensor(a.data * b.data, parents=(a, b), backward=backward)

    def __pow__(self, exponent: float) -> "Tensor":
        """y = x^n for a constant n."""
        x = self.data

        def backward(dy):
            if exponent == 0:  # y is 1 everywhere; the formula would say 0 / 0 where x is 0
                return (array_namespace(dy).zeros_like(dy),)
            return (dy * exponent * x ** (exponent - 1),)

        return Tensor(x**exponent, parents=(self,), backward=backward)

    def __neg__(self) -> "Tensor":
        return self * -1.0

    def __sub__(self, other) -> "Tensor":
        return self + -self._operand(other)

    def __truediv__(self, other) -> "Tensor":
        return self * self._operand(other) ** -1.0

    def __radd__(self, other) -> "Tensor":
        return self + other

    def __rmul__(self, other) -> "Tensor":
        return self * other

    def __rsub__(self, other) -> "Tensor":
        return -self + other

    def __rtruediv__(self, other) -> "Tensor":
        return self**-1.0 * other

    def _operand(self, other) -> "Tensor":
        """A number or array beside this tensor, in this tensor's dtype, so that 2.0 * x stays float32."""
        if isinstance(other, Tensor):
            return other
        xp = array_namespace(self.data)
        if isinstance(other, (int, float)):
            return Tensor(xp.full((), other, self.dtype))
        return Tensor(xp.asarray(other, dtype=self.dtype))

    def exp(self) -> "Tensor":
        """y = e^x."""
        y = array_namespace(self.data).exp(self.data)

        def backward(dy):
            return (dy * y,)

        return Tensor(y, parents=(self,), backward=backward)

    def log(self) -> "Tensor":
        """y = ln x."""
        x = self.data

        def backward(dy):
            return (dy / x,)

        return Tensor(array_namespace(x).log(x), parents=(self,), backward=backward)

    def tanh(self) -> "Tensor":
        """y = tanh x."""
        y = array_namespace(self.data).tanh(self.data)

        def backward(dy):
            # tanh' = 1 - tanh^2
            return (dy * (1 - y * y),)

        return Tensor(y, parents=(self,), backward=backward)

    # ------------------------------------------------------------------------------------------------------------
    # Matrix product, sums, shapes

    def __matmul__(self, other: "Tensor") -> "Tensor":
        """y = a b, (M, K) times (K, N)."""
        a, b = self, other
        if a.ndim != 2 or b.ndim != 2:
            raise ValueError(f"a matrix product takes two matrices, not shapes {a.shape} and {b.shape}")
        saved_b = b.data if a.requires_grad else None
        saved_a = a.data if b.requires_grad else None

        def backward(dy):
            da = matmul_kernels.forward(dy, saved_b.T) if saved_b is not None else None  # (M, K)
            db = matmul_kernels.forward(saved_a.T, dy) if saved_a is not None else None  # (K, N)
            return da, db

        return Tensor(matmul_kernels.forward(a.data, b.data), parents=(a, b), backward=backward)

    def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> "Tensor":
        """The sum over `axis`, or over everything."""
        shape = self.shape

        def backward(dy):
            # Every summand has slope 1, so dy is handed to each of them.
            xp = array_namespace(dy)
            if axis is not None and not keepdims:
                dy = xp.expand_dims(dy, axis)
            return (xp.broadcast_to(dy, shape).copy(),)

        y = self.data.sum(axis=axis, keepdims=keepdims)
        return Tensor(y, parents=(self,), backward=backward)

    def mean(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> "Tensor":
        """The mean over `axis`, or over everything."""
        total = self.sum(axis, keepdims)
        return total * (total.data.size / self.data.size)

    def astype(self, dtype: type | np.dtype) -> "Tensor":
        """The same values in another dtype; the gradient comes back in this one's. Itself, where it has it already."""
        before = self.dtype
        if before == dtype:
            return self

        def backward(dy):
            return (dy.astype(before),)

        return Tensor(self.data.astype(dtype), parents=(self,), backward=backward)

    def reshape(self, *shape: int) -> "Tensor":
        """The same elements in the same order under another shape; one length may be -1."""
        before = self.shape

        def backward(dy):
            return (dy.reshape(before),)

        return Tensor(self.data.reshape(*shape), parents=(self,), backward=backward)

    @property
    def T(self) -> "Tensor":
        """The transpose of a matrix."""

        def backward(dy):
            return (dy.T,)

        return Tensor(self.data.T, parents=(self,), backward=backward)

    def __getitem__(self, index) -> "Tensor":
        """y = x[index], where index is anything NumPy takes, such as the rows `offsets[:-1]`."""
        shape = self.shape
        if isinstance(index, np.ndarray):
            index = array_namespace(self.data).asarray(index)

        def backward(dy):
            xp = array_namespace(dy)
            dx = xp.zeros(shape, wide(dy).dtype)
            xp.add.at(dx, index, wide(dy))  # not dx[index] += dy, which counts a repeated index once
            return (dx.astype(dy.dtype, copy=False),)

        # A basic index gives NumPy a view, which would keep all of x alive for as long as y lives.
        return Tensor(self.data[index].copy(), parents=(self,), backward=backward)


def unbroadcast(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum a gradient over the axes along which an operand of this shape was broadcast.

    Broadcasting used one element in many places; its gradient is the sum over these places.
    """
    if gradient.shape == shape:
        return gradient
    added = gradient.ndim - len(shape)
    stretched = tuple(
        axis for axis, length in enumerate(gradient.shape) if axis < added or shape[axis - added] != length
    )
    return gradient.sum(axis=stretched).reshape(shape)


def _array(data) -> Array:
    if isinstance(data, np.generic):  # what NumPy returns for a sum over everything
        return np.asarray(data)
    if hasattr(data, "dtype"):
        return data
    array = np.asarray(data)
    return array.astype(np.float32) if array.dtype == np.float64 else array
