"""Runs CUDA C on the CPU: builds a .cu file with g++ and `cuda_cpu.h`, and launches its kernels on NumPy arrays.

    module = Module("softmax.cu")
    launch(module.get_function("softmax"), grid=(R,), block=(128,), arguments=(x, y, np.int32(R), np.int32(C)))

`launch` runs a kernel of CuPy's RawModule in the same way, so one launcher serves the GPU and the test without one.
Arrays must be contiguous, and scalars NumPy scalars of the parameter's own type: CuPy passes the bits as they are,
and a wrong type is garbage there; here it is an error that names the parameter.

`with execution_order("random", seed=3):` chooses the order in which threads, warps and blocks run. A right kernel
gives a right result under every order; `cuda_cpu.h` says what else is checked.
"""

import ctypes
import hashlib
import os
import pickle
import re
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

import numpy as np

HERE = Path(__file__).parent
ORDERS = ("ascending", "descending", "random")
"""The orders in which threads, warps and blocks can run; their index is the value of `enum class Order`."""

PARTS = HERE / "cuda_cpu_parts"
_FLAGS = ("-x", "c++", "-std=c++17", "-O2", "-g", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing",
          "-fdata-sections", "-I", str(HERE), "-I", str(PARTS))  # fmt: skip
_CHECKS = {
    None: ("-fsanitize=bounds,alignment", "-fno-sanitize-recover=all"),
    "address": ("-fsanitize=address,bounds,alignment", "-fno-sanitize-recover=all"),
    "undefined": ("-fsanitize=undefined", "-fno-sanitize-recover=all"),
}
_RUNTIME_CHECKS = {None: (), "address": ("-fsanitize=address",), "undefined": ("-DCUDA_CPU_UBSAN=1",)}

LARGEST_SHARED_BYTES = 48 * 1024
"""Dynamic shared memory that a GPU gives without being asked for more."""

_order: ContextVar[tuple[str, int]] = ContextVar("execution_order", default=("ascending", 0))


class BuildError(RuntimeError):
    """g++ is missing, or refused a kernel; the message is what it said."""


class KernelError(RuntimeError):
    """A kernel did what no kernel may; the message names kernel, block and thread."""


@contextmanager
def execution_order(order: str, seed: int = 0) -> Iterator[None]:
    """Within the `with` block kernels run their threads, warps and blocks in this order: one of `ORDERS`."""
    if order not in ORDERS:
        raise ValueError(f"there is no execution order {order!r}; there are {', '.join(ORDERS)}")
    token = _order.set((order, seed))
    try:
        yield
    finally:
        _order.reset(token)


def launch(kernel, grid: Sequence[int], block: Sequence[int], arguments: Sequence, shared_bytes: int = 0) -> None:
    """Run a kernel of a `Module` here or of CuPy's RawModule over `grid` blocks of `block` threads.

    `arguments` are arrays and NumPy scalars in the order of the kernel's parameters; `shared_bytes` is the size of
    its dynamic shared memory.
    """
    if shared_bytes > LARGEST_SHARED_BYTES and not isinstance(kernel, Kernel):
        kernel.max_dynamic_shared_size_bytes = shared_bytes
    kernel(tuple(grid), tuple(block), tuple(arguments), shared_mem=shared_bytes)


# ----------------------------------------------------------------------------------------------------------------
# Building


class Module:
    """The kernels of one .cu file, as cupy.RawModule holds them for a GPU.

    `code` is compiled in place of what the file holds, under its name; `instantiations` are the template kernels to
    build, as in `("softmax<128>",)`. With `sanitize="address"` or `"undefined"` launches run in a process of their
    own under AddressSanitizer or UBSan. Raises BuildError.
    """

    def __init__(
        self,
        path: str | Path,
        code: str | None = None,
        instantiations: Sequence[str] = (),
        sanitize: str | None = None,
    ):
        self.path = Path(path).resolve()
        self.sanitize = sanitize
        self._options = (str(self.path), code, tuple(instantiations), sanitize)
        source = self.path.read_text() if code is None else code
        self._parameter_names = _kernels_of(source)
        names = [name for name in self._parameter_names if not _is_template(source, name)] + list(instantiations)
        if not names:
            raise BuildError(f"{self.path.name}: no kernel found (void functions declared __global__)")
        self.library = _build(self.path, source, code is not None, names, sanitize)

    def get_function(self, name: str) -> "Kernel":
        """The kernel of this name; a template's is its instantiation. Raises KeyError with the names there are."""
        if self.sanitize:
            return Kernel(self, name, None, self._parameter_names[_without_arguments(name)])
        table = _load(self.library)
        if name not in table:
            raise KeyError(f"{self.path.name} has no kernel {name!r}; it has {', '.join(table)}")
        return Kernel(self, name, table[name], self._parameter_names[_without_arguments(name)])


def _without_arguments(name: str) -> str:
    return name.split("<")[0]


def _kernels_of(source: str) -> dict[str, list[str]]:
    """The names of the kernels, each with its parameters' names."""
    source = re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.DOTALL)
    kernel = r"__global__\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)"
    return {
        name: [re.findall(r"\w+", parameter)[-1] for parameter in parameters.split(",") if parameter.strip()]
        for name, parameters in re.findall(kernel, source)
    }


def _is_template(source: str, name: str) -> bool:
    return re.search(rf"template\s*<[^;{{}}]*>\s*__global__[^;{{}}]*\b{name}\s*\(", source) is not None


def _build(path: Path, source: str, replaced: bool, names: list[str], sanitize: str | None) -> Path:
    """The library of these kernels, from the cache or from g++."""
    text = f'#line 1 "{path}"\n{source}\n' if replaced else f'#include "{path}"\n'
    text += f"CUDA_CPU_KERNELS({', '.join(f'CUDA_CPU_KERNEL({name})' for name in names)})\n"
    runtime = _compiled("runtime.o", (PARTS / "runtime.cpp").read_text(), (*_FLAGS, *_RUNTIME_CHECKS[sanitize], "-c"))
    flags = (*_FLAGS, *_CHECKS[sanitize], "-shared", "-I", str(path.parent), "-include", "cuda_cpu.h")
    return _compiled(f"{path.stem}.so", text, flags, also=source, headers=path.parent, link=runtime)


def _compiled(
    name: str, text: str, flags: tuple[str, ...], also: str = "", headers: Path = PARTS, link: Path | None = None
) -> Path:
    """What g++ makes of `text`, kept in the cache under a name that changes with everything that goes into it."""
    fingerprint = hashlib.sha256(repr((text, also, flags, link, _compiler_version())).encode())
    for folder in (HERE, PARTS, headers):
        for header in sorted(file for kind in ("h", "cuh", "ld") for file in folder.glob(f"*.{kind}")):
            fingerprint.update(header.read_bytes())
    stem, suffix = name.split(".")
    result = _cache_directory() / f"{stem}-{fingerprint.hexdigest()[:16]}.{suffix}"
    if not result.exists():
        result.parent.mkdir(parents=True, exist_ok=True)
        # The name appears when the file is complete: two processes may build the same one at once.
        with tempfile.TemporaryDirectory(dir=result.parent) as folder:
            source, incomplete = Path(folder, "source"), Path(folder, "result")
            source.write_text(text)
            command = [_compiler(), *flags, str(source), "-o", str(incomplete)]
            if link is not None:
                command += ["-x", "none", str(link), "-Wl,-Bsymbolic", "-T", str(PARTS / "shared.ld")]
            completed = subprocess.run(command, capture_output=True, text=True, check=False)
            if completed.returncode != 0:
                raise BuildError(f"g++ refused {stem}.cu:\n{completed.stderr}")
            incomplete.replace(result)
    return result


def _compiler() -> str:
    found = shutil.which("g++")
    if found is None:
        raise BuildError("running CUDA C on the CPU needs g++, and there is none on the PATH")
    return found


@cache
def _compiler_version() -> str:
    return subprocess.run([_compiler(), "--version"], capture_output=True, text=True, check=True).stdout


def _cache_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minift" / "cuda_cpu"


# ----------------------------------------------------------------------------------------------------------------
# Launching


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


@cache
def _load(library: Path) -> dict[str, _KernelEntry]:
    table = (_KernelEntry * 1000).in_dll(_open(library), "cuda_cpu_kernels")
    entries: dict[str, _KernelEntry] = {}
    for entry in table:
        if entry.name is None:
            break
        entries[entry.name.decode()] = entry
    return entries


_one_launch_at_a_time = Lock()


class Kernel:
    """One kernel of a `Module`, called like CuPy's RawKernel: `kernel(grid, block, arguments, shared_mem=...)`."""

    def __init__(self, module: Module, name: str, entry: _KernelEntry | None, parameter_names: list[str]):
        self.module = module
        self.name = name
        self.parameter_names = parameter_names
        self._entry = entry

    def __call__(self, grid, block, args, *, shared_mem: int = 0, order: str | None = None, seed: int = 0) -> None:
        """Run the kernel; written arrays are changed in place.

        Raises KernelError for what the kernel did, TypeError or ValueError for how it was called.
        """
        order, seed = (order, seed) if order is not None else _order.get()
        grid, block = _three(grid, "grid"), _three(block, "block")
        if np.prod(block) > 1024:
            raise ValueError(f"{self.name}: a block has at most 1024 threads, this one has {np.prod(block)}")
        if self._entry is None:
            _launch_in_own_process(self, grid, block, args, shared_mem, order, seed)
            return
        given, kept = self._marshal(args)
        library = _open(self.module.library)
        with _one_launch_at_a_time:
            failure = library.cuda_cpu_launch(
                ctypes.byref(self._entry), (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block),
                given, ctypes.c_int(len(args)), ctypes.c_size_t(shared_mem),
                ctypes.c_int(ORDERS.index(order)), ctypes.c_uint64(seed),
            )  # fmt: skip
            del kept
            if failure is not None:
                raise KernelError(failure.decode() + self._fault_line(library.cuda_cpu_fault_offset()))

    def _marshal(self, args):
        """The arguments as launch.h wants them, each checked against the kernel's parameter."""
        parameters = _parameters(self._entry)
        if len(args) != len(parameters):
            raise TypeError(
                f"{self.name} takes {len(parameters)} arguments ({', '.join(self.parameter_names)}), got {len(args)}"
            )
        _refuse_overlap(self.name, args)
        given = (_Argument * len(args))()
        kept = []  # the structures hold addresses only
        for slot, argument, parameter, name in zip(given, args, parameters, self.parameter_names, strict=True):
            where, element = f"{self.name}: argument {name}", parameter.type.decode()
            slot.name = name.encode()
            if parameter.is_pointer:
                slot.item_bytes = 1
                slot.is_written = not parameter.is_const
                if argument is not None:
                    _check_array(argument, element, bool(slot.is_written), where)
                    slot.data, slot.bytes, slot.item_bytes = argument.ctypes.data, argument.nbytes, argument.itemsize
            else:
                if not isinstance(argument, np.generic) or argument.dtype.name != element:
                    found = argument.dtype.name if isinstance(argument, np.generic) else type(argument).__name__
                    raise TypeError(f"{where} must be a NumPy scalar {element}, not {found}")
                kept.append(np.array(argument))
                slot.data, slot.bytes = kept[-1].ctypes.data, kept[-1].nbytes
        return given, kept

    def _fault_line(self, offset: int) -> str:
        """" (softmax.cu:12)": the line of the instruction at `offset` in the library, where addr2line can tell."""
        if not offset or shutil.which("addr2line") is None:
            return ""
        command = ["addr2line", "-i", "-e", str(self.module.library), hex(offset)]
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        ours = [Path(line).name for line in lines if Path(line.split(":")[0]).parent != PARTS]
        return f" ({ours[0]})" if ours else ""


def _three(size: Sequence[int], what: str) -> tuple[int, int, int]:
    x, y, z = (*size, 1, 1)[:3]
    if len(size) > 3 or min(x, y, z) < 1:
        raise ValueError(f"{what} must be one to three positive numbers, not {tuple(size)}")
    return int(x), int(y), int(z)


def _parameters(entry: _KernelEntry) -> list[_Parameter]:
    found = []
    while entry.parameters[len(found)].type is not None:
        found.append(entry.parameters[len(found)])
    return found


def _check_array(array, element: str, is_written: bool, where: str) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{where} must be an array of {element}, not {type(array).__name__}")
    if element not in (array.dtype.name, "void", "struct"):
        raise TypeError(f"{where} must be an array of {element}, not {array.dtype.name}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{where} must be contiguous")
    if is_written and not array.flags.writeable:
        raise ValueError(f"{where} is written by the kernel, and the array is read-only")


def _refuse_overlap(kernel: str, args) -> None:
    """Each array is copied into memory of its own; the same array may come twice, half of another may not."""
    arrays = [a for a in args if isinstance(a, np.ndarray) and a.size]
    for i, a in enumerate(arrays):
        for b in arrays[:i]:
            if np.may_share_memory(a, b) and (a.ctypes.data, a.nbytes) != (b.ctypes.data, b.nbytes):
                raise ValueError(f"{kernel}: two arguments share part of their memory; give one array, or two apart")


# ----------------------------------------------------------------------------------------------------------------
# Sanitizers. They end the process when they find something, so the launch gets a process of its own.


def _launch_in_own_process(kernel: Kernel, grid, block, args, shared_mem: int, order: str, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        request, result = Path(folder, "request"), Path(folder, "result")
        request.write_bytes(
            pickle.dumps((kernel.module._options, kernel.name, grid, block, args, shared_mem, order, seed))
        )
        completed = subprocess.run(
            [sys.executable, __file__, str(request), str(result)],
            env=os.environ | _sanitizer_environment(kernel.module.sanitize),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if completed.returncode != 0:
            raise KernelError(f"{kernel.name} under sanitize={kernel.module.sanitize!r}:\n{completed.stderr}")
        for argument, after in zip(args, pickle.loads(result.read_bytes()), strict=True):
            if isinstance(argument, np.ndarray) and argument.flags.writeable:
                argument[...] = after


def _sanitizer_environment(sanitize: str | None) -> dict[str, str]:
    environment = {"OPENBLAS_NUM_THREADS": "1"}
    if sanitize == "address":
        # Python was not built with AddressSanitizer, whose library must then be the first to be loaded.
        where = subprocess.run([_compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
        environment |= {"LD_PRELOAD": where.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    return environment


def _serve_launch(request: Path, result: Path) -> None:
    options, name, grid, block, args, shared_mem, order, seed = pickle.loads(request.read_bytes())
    module = Module(*options)
    entry = _load(module.library)[name]
    kernel = Kernel(module, name, entry, module._parameter_names[_without_arguments(name)])
    try:
        kernel(grid, block, args, shared_mem=shared_mem, order=order, seed=seed)
    except KernelError as error:
        sys.exit(str(error))
    result.write_bytes(pickle.dumps(args))


if __name__ == "__main__":
    _serve_launch(Path(sys.argv[1]), Path(sys.argv[2]))
