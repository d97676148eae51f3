"""Launches the kernels that `cuda_cpu.py` has built, on NumPy arrays.

Run as a program, this file is the other side of a launch under a sanitizer; so it imports nothing of the
package.
"""

import ctypes
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

ORDERS = ("ascending", "descending", "random")
"""The orders in which threads, warps and blocks can run; the index is the value of `enum class Order`."""

LARGEST_GRID, LARGEST_BLOCK, MOST_THREADS = (2**31 - 1, 65535, 65535), (1024, 1024, 64), 1024
"""What every GPU of today launches: blocks and threads along x, y and z, and threads of a block in all."""

MOST_SHARED_BYTES = 227 * 1024
"""Dynamic shared memory of a block on sm_90 (163 KiB on sm_80)."""

SHARED_BYTES_FOR_THE_ASKING = 48 * 1024
"""Dynamic shared memory that a kernel gets on a GPU without having been set up for more."""

_MACHINE = Path(__file__).parent / "cuda_cpu_parts"

_order: ContextVar[tuple[str, int]] = ContextVar("execution_order", default=("ascending", 0))


class KernelError(RuntimeError):
    """A kernel did what no kernel may; the message names kernel, block and thread."""


@contextmanager
def execution_order(order: str, seed: int = 0) -> Iterator[None]:
    """Within the `with` block kernels run their threads, warps and blocks in this order, one of `ORDERS`."""
    _check_order(order)
    token = _order.set((order, seed))
    try:
        yield
    finally:
        _order.reset(token)


def _check_order(order: str) -> None:
    if order not in ORDERS:
        raise ValueError(f"there is no execution order {order!r}; there are {', '.join(ORDERS)}")


def launch(
    kernel, grid: Sequence[int], block: Sequence[int], arguments: Sequence, shared_bytes: int = 0
) -> None:
    """Run a kernel, of a `Module` here or of CuPy's RawModule, over `grid` blocks of `block` threads.

    `arguments` are arrays and NumPy scalars in the order of the kernel's parameters; `shared_bytes` is the
    size of a block's dynamic shared memory.
    """
    if shared_bytes > SHARED_BYTES_FOR_THE_ASKING and not isinstance(kernel, Kernel):
        kernel.max_dynamic_shared_size_bytes = shared_bytes
    kernel(tuple(grid), tuple(block), tuple(arguments), shared_mem=shared_bytes)


class _Parameter(ctypes.Structure):
    """`Parameter` of kernel_table.h."""

    _fields_ = (("type", ctypes.c_char_p), ("is_pointer", ctypes.c_int), ("is_const", ctypes.c_int))


class _KernelEntry(ctypes.Structure):
    """`KernelEntry` of kernel_table.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("call", ctypes.c_void_p),
        ("parameters", ctypes.POINTER(_Parameter)),
    )


class _Argument(ctypes.Structure):
    """`Argument` of launch.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("item_bytes", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("is_written", ctypes.c_int),
    )


@cache
def _open(library: Path) -> ctypes.CDLL:
    opened = ctypes.CDLL(str(library))
    opened.cuda_cpu_launch.restype = ctypes.c_char_p
    opened.cuda_cpu_fault_offset.restype = ctypes.c_size_t
    return opened


_one_launch_at_a_time = Lock()


class Kernel(NamedTuple):
    """A kernel of a `Module`, called like CuPy's: `kernel(grid, block, arguments, shared_mem=0)`."""

    library: Path
    kernels: tuple[str, ...]
    """All kernels of the library, in the order of its table."""
    name: str
    parameter_names: tuple[str, ...]
    sanitize: str | None

    def __call__(
        self, grid, block, args, *, shared_mem: int = 0, order: str | None = None, seed: int = 0
    ) -> None:
        """Run the kernel; the arrays it writes are changed in place.

        `order` and `seed` go before those of `execution_order`. Raises KernelError for what the kernel did,
        TypeError or ValueError for how it was called.
        """
        order, seed = _order.get() if order is None else (order, seed)
        _check_order(order)
        grid = _three_numbers("grid", grid, LARGEST_GRID)
        block = _three_numbers("block", block, LARGEST_BLOCK)
        if np.prod(block) > MOST_THREADS:
            raise ValueError(
                f"{self.name}: a block has at most {MOST_THREADS} threads, this one has {np.prod(block)}"
            )
        if shared_mem > MOST_SHARED_BYTES:
            raise ValueError(
                f"{self.name}: a block has at most {MOST_SHARED_BYTES} shared bytes, not {shared_mem}"
            )
        run = self.run if self.sanitize is None else self._run_in_own_process
        run(grid, block, args, shared_mem, order, seed)

    def run(self, grid, block, args, shared_mem: int, order: str, seed: int) -> None:
        """The launch itself, in this process."""
        library = _open(self.library)
        table = (_KernelEntry * len(self.kernels)).in_dll(library, "cuda_cpu_kernels")
        entry = table[self.kernels.index(self.name)]
        given, scalars = self._marshal(args, entry)
        with _one_launch_at_a_time:
            failure = library.cuda_cpu_launch(
                ctypes.byref(entry), (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block),
                given, ctypes.c_int(len(args)), ctypes.c_size_t(shared_mem),
                ctypes.c_int(ORDERS.index(order)), ctypes.c_uint64(seed),
            )  # fmt: skip
            del scalars
            if failure is not None:
                message = failure.decode() + self._line_of(library.cuda_cpu_fault_offset())
                raise (KeyboardInterrupt if failure.endswith(b": interrupted") else KernelError)(message)

    def _marshal(self, args, entry: _KernelEntry) -> tuple[ctypes.Array, list[np.ndarray]]:
        """The arguments as launch.h wants them, each checked against the kernel's parameter.

        They are addresses: of the arrays, and of the scalars' values, which live in the second list.
        """
        names = self.parameter_names
        if len(args) != len(names):
            raise TypeError(f"{self.name} takes {len(names)} arguments ({', '.join(names)}), got {len(args)}")
        _refuse_overlap(self.name, args)
        given, scalars = (_Argument * len(args))(), []
        for i, (argument, name) in enumerate(zip(args, names, strict=True)):
            parameter, slot = entry.parameters[i], given[i]
            _check_argument(f"{self.name}: argument {name}", argument, parameter)
            slot.name = name.encode()
            slot.is_written = not parameter.is_const
            slot.item_bytes = argument.itemsize if parameter.is_pointer and argument is not None else 0
            if isinstance(argument, np.generic):
                scalars.append(np.array(argument))
                argument = scalars[-1]
            if argument is None:  # the null pointer is a value like a scalar's
                scalars.append(np.zeros(1, np.uintp))
                argument = scalars[-1]
            slot.data, slot.bytes = argument.ctypes.data, argument.nbytes
        return given, scalars

    def _line_of(self, offset: int) -> str:
        """The line of the instruction at `offset` in the library, in brackets; empty where unknown."""
        if not offset or shutil.which("addr2line") is None:
            return ""
        command = ["addr2line", "-i", "-e", str(self.library), hex(offset)]
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        outside_the_machine = [line for line in lines if not line.startswith(str(_MACHINE))]
        return f" ({Path(outside_the_machine[0].split(' ')[0]).name})" if outside_the_machine else ""

    def _run_in_own_process(self, grid, block, args, shared_mem: int, order: str, seed: int) -> None:
        """A sanitizer ends the process in which it finds something; what it said becomes a KernelError."""
        with tempfile.TemporaryDirectory() as folder:
            request, result = Path(folder, "request"), Path(folder, "result")
            request.write_bytes(pickle.dumps((self._asdict(), (grid, block, args, shared_mem, order, seed))))
            completed = subprocess.run(
                [sys.executable, __file__, str(request), str(result)],
                env=os.environ | _sanitizer_environment(self.sanitize),
                capture_output=True,
                text=True,
                check=False,
            )
            if completed.returncode != 0:
                raise KernelError(f"{self.name} with sanitize={self.sanitize!r}:\n{completed.stderr}")
            for argument, after in zip(args, pickle.loads(result.read_bytes()), strict=True):
                if isinstance(argument, np.ndarray) and argument.flags.writeable:
                    argument[...] = after


def _three_numbers(what: str, size: Sequence[int], most: tuple[int, int, int]) -> tuple[int, int, int]:
    if not 1 <= len(size) <= 3 or min(size) < 1 or any(n > m for n, m in zip(size, most, strict=False)):
        raise ValueError(f"{what} must be one to three numbers from 1 to {most}, not {tuple(size)}")
    x, y, z = (*size, 1, 1)[:3]
    return int(x), int(y), int(z)


def _check_argument(where: str, argument, parameter: _Parameter) -> None:
    wanted = parameter.type.decode()
    is_numpy = isinstance(argument, (np.ndarray, np.generic))
    found = argument.dtype.name if is_numpy else type(argument).__name__
    kind = "a scalar " if isinstance(argument, np.generic) else ""
    if not parameter.is_pointer:
        if not isinstance(argument, np.generic) or found != wanted:
            raise TypeError(f"{where} must be a NumPy scalar {wanted}, not {found}")
        return
    if argument is None:  # a null pointer
        return
    if not isinstance(argument, np.ndarray) or wanted not in (found, "void", "struct"):
        raise TypeError(f"{where} must be an array of {wanted}, not {kind}{found}")
    if not argument.flags.c_contiguous:
        raise ValueError(f"{where} must be contiguous")
    if not parameter.is_const and not argument.flags.writeable:
        raise ValueError(f"{where} is written by the kernel, and the array is read-only")


def _refuse_overlap(kernel: str, args) -> None:
    """Each array is copied into memory of its own: the same may come twice, a part of another may not."""
    arrays = [argument for argument in args if isinstance(argument, np.ndarray) and argument.size]
    for i, a in enumerate(arrays):
        for b in arrays[:i]:
            if np.may_share_memory(a, b) and (a.ctypes.data, a.nbytes) != (b.ctypes.data, b.nbytes):
                raise ValueError(
                    f"{kernel}: two arguments share a part of their memory; give the whole, or copies"
                )


def _sanitizer_environment(sanitize: str | None) -> dict[str, str]:
    if sanitize != "address":
        return {}
    # Python was built without AddressSanitizer, whose library must then be the first to be loaded.
    command = ["g++", "-print-file-name=libasan.so"]
    library = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0"}


def _serve(request: Path, result: Path) -> None:
    """The other side of `Kernel._run_in_own_process`."""
    kernel, (grid, block, args, shared_mem, order, seed) = pickle.loads(request.read_bytes())
    try:
        Kernel(**kernel).run(grid, block, args, shared_mem, order, seed)
    except KernelError as error:
        sys.exit(str(error))
    result.write_bytes(pickle.dumps(args))


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), Path(sys.argv[2]))
