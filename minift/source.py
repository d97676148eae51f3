"""What its source code says of an operation: the formula, the names of its inputs, the lines of its backward.

An operation is a function with its backward inside it (see `ops.py`). All that a reader is told about it stands
there once, and is read from there: the formula is the first line of the docstring, the names of the inputs are those
in `Tensor(..., parents=(x, weight, bias), ...)`. Nothing here is needed to compute; it is read when somebody looks.
"""

import ast
import inspect
import linecache
import sys
from functools import cache
from types import CodeType
from typing import NamedTuple

_ENGINE = {f"minift.{name}" for name in ("history", "tensor", "ops", "nn", "losses")} | {__name__}


def calling_line() -> tuple[str, int]:
    """File and line of the code outside the engine whose call led here."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") in _ENGINE:
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def operation_name(backward: CodeType) -> str:
    """`softmax` for the function `backward` inside `softmax`; `add` for the one inside `Tensor.__add__`."""
    return backward.co_qualname.split(".<locals>")[0].split(".")[-1].strip("_")


class OperationSource(NamedTuple):
    """Where an operation stands, and what it says of itself."""

    formula: str
    """The first line of its docstring, such as `y_j = exp(x_j) / sum_k exp(x_k), over the last axis.`"""
    file: str
    line: int
    """Its first line."""
    backward_line: int
    """The first line of its backward."""
    backward_lines: tuple[str, ...]
    """The lines of its backward, as they stand in the file."""
    parents: tuple[str, ...] | str
    """The names of its inputs; one name where the inputs are a sequence that goes by one name."""

    def input_names(self, count: int) -> tuple[str, ...]:
        """A name for each of `count` parents: x, weight, bias; tensors[0], tensors[1]; or input 0, input 1."""
        if isinstance(self.parents, str):
            return tuple(f"{self.parents}[{index}]" for index in range(count))
        if len(self.parents) == count:
            return self.parents
        return tuple(f"input {index}" for index in range(count))


@cache
def operation_source(backward: CodeType) -> OperationSource:
    """What the source says of the operation whose backward has this code; little, where there is no source."""
    file, line = backward.co_filename, backward.co_firstlineno
    operation = _enclosing_function(file, line)
    if operation is None:
        return OperationSource("", file, line, line, tuple(_lines(file, line, line)), ())
    formula = (ast.get_docstring(operation) or "").split("\n")[0]
    ends = [
        node.end_lineno or line
        for node in ast.walk(operation)
        if isinstance(node, ast.FunctionDef | ast.Lambda) and node.lineno == line
    ]
    last = max(ends, default=line)
    parents = next(map(_parent_names, filter(None, map(_parents_argument, ast.walk(operation)))), ())
    return OperationSource(formula, file, operation.lineno, line, tuple(_lines(file, line, last)), parents)


@cache
def _functions(file: str) -> list[ast.FunctionDef]:
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:  # the file is being edited
        return []
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def _enclosing_function(file: str, line: int) -> ast.FunctionDef | None:
    around = [
        function for function in _functions(file) if function.lineno < line <= (function.end_lineno or line)
    ]
    return max(around, key=lambda function: function.lineno, default=None)


def _parents_argument(node: ast.AST) -> ast.expr | None:
    if not isinstance(node, ast.Call):
        return None
    return next((keyword.value for keyword in node.keywords if keyword.arg == "parents"), None)


def _parent_names(parents: ast.expr) -> tuple[str, ...] | str:
    if not isinstance(parents, ast.Tuple | ast.List):
        return ast.unparse(parents)
    if any(isinstance(element, ast.Starred) for element in parents.elts):
        return ()
    names = [ast.unparse(element) for element in parents.elts]
    return tuple(
        "x" if name == "self" else name for name in names
    )  # x, as the formulas of Tensor's methods say


def _lines(file: str, first: int, last: int) -> list[str]:
    lines = [line.rstrip("\n") for line in linecache.getlines(file)[first - 1 : last]]
    return inspect.cleandoc("\n" + "\n".join(lines)).split("\n") if lines else []
