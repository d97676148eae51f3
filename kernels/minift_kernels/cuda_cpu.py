"""Runs CUDA C on the CPU: builds a .cu file with g++ and `cuda_cpu.h`, launches its kernels on NumPy arrays.

    softmax = Module("softmax.cu").get_function("softmax")
    launch(softmax, grid=(R,), block=(128,), arguments=(x, y, np.int32(C)))

`launch` runs a kernel of CuPy's RawModule in the same way: one launcher serves the GPU and the test without
a GPU. Arrays must be contiguous, and scalars NumPy scalars of the parameter's own type: CuPy passes the bits
as they are, and a wrong type is garbage there; here it is an error that names the parameter.

`with execution_order("random", seed=3):` chooses the order in which threads, warps and blocks run. A right
kernel gives a right result under every order; `cuda_cpu.h` says what else is checked.

Two compilations make a library. The machine (`cuda_cpu_parts/runtime.cpp`) is the same for all kernels and
compiled once; a kernel's own file takes about half a second. Both are kept in a cache.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from minift_kernels.cuda_cpu_launch import ORDERS, Kernel, KernelError, execution_order, launch

__all__ = ["ORDERS", "BuildError", "Kernel", "KernelError", "Module", "execution_order", "launch"]

HERE = Path(__file__).parent
PARTS = HERE / "cuda_cpu_parts"

_FLAGS = ("-x", "c++", "-std=c++17", "-O2", "-g", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing",
          "-fdata-sections", "-I", str(HERE), "-I", str(PARTS))  # fmt: skip
_FATAL = "-fno-sanitize-recover=all"
_KERNEL_CHECKS = {
    None: ("-fsanitize=bounds,alignment", _FATAL),  # reported by guards.h, in this process
    "address": ("-fsanitize=address,bounds,alignment", _FATAL),
    "undefined": ("-fsanitize=undefined", _FATAL),
}
_RUNTIME_CHECKS = {None: (), "address": ("-fsanitize=address",), "undefined": ("-DCUDA_CPU_UBSAN=1",)}

_BOUNDS = r"(?:__launch_bounds__\s*\([^)]*\)\s*)?"
_KERNEL = rf"__global__\s+{_BOUNDS}void\s+{_BOUNDS}(\w+)"


class BuildError(RuntimeError):
    """g++ is missing, or refused a kernel; the message is what it said."""


class Module:
    """The kernels of one .cu file, as cupy.RawModule holds them for a GPU.

    `code` is compiled in place of what the file holds, under its name; `instantiations` are the template
    kernels to build, as in `("softmax<128>",)`. With `sanitize="address"` or `"undefined"` every launch runs
    in a process of its own under AddressSanitizer or UBSan. Raises BuildError.
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
        source = self.path.read_text() if code is None else code
        self._parameter_names = _parameters_of_kernels(source)
        templates = template_kernels(source)
        self.kernels = [name for name in self._parameter_names if name not in templates]
        self.kernels += instantiations
        if not self.kernels:
            raise BuildError(f"{self.path.name}: no kernel found; they begin with __global__ void")
        self.library = _build(self.path, code, self.kernels, sanitize)

    def get_function(self, name: str) -> Kernel:
        """The kernel, or the instantiation, of this name. Raises KeyError with the names there are."""
        if name not in self.kernels:
            raise KeyError(f"{self.path.name} has no kernel {name!r}; it has {', '.join(self.kernels)}")
        parameter_names = tuple(self._parameter_names[name.split("<")[0]])
        return Kernel(self.library, tuple(self.kernels), name, parameter_names, self.sanitize)


def _build(path: Path, code: str | None, kernels: Sequence[str], sanitize: str | None) -> Path:
    """The library with these kernels of the .cu file at `path`, or of `code` in its place."""
    runtime_source = (PARTS / "runtime.cpp").read_text()
    runtime = _compiled("runtime.o", runtime_source, (*_FLAGS, *_RUNTIME_CHECKS[sanitize], "-c"))
    text = f'#include "{path}"\n' if code is None else f'#line 1 "{path}"\n{code}\n'
    text += f"CUDA_CPU_KERNELS({', '.join(f'CUDA_CPU_KERNEL({name})' for name in kernels)})\n"
    flags = (*_FLAGS, *_KERNEL_CHECKS[sanitize], "-shared", "-I", str(path.parent), "-include", "cuda_cpu.h")
    return _compiled(f"{path.stem}.so", text, flags, also_read=path, link=runtime)


def _parameters_of_kernels(source: str) -> dict[str, list[str]]:
    """The names of the kernels in a source, each with the names of its parameters."""
    kernel = rf"{_KERNEL}\s*\(([^)]*)\)"
    return {
        name: [re.findall(r"\w+", parameter)[-1] for parameter in parameters.split(",") if parameter.strip()]
        for name, parameters in re.findall(kernel, _without_comments(source))
    }


def template_kernels(source: str) -> dict[str, str]:
    """The kernels of a source that are templates, which only exist once somebody names their arguments.

    Each with its template's parameters as they are written: "class T, int D".
    """
    kernels = re.findall(rf"template\s*<([^;{{}}]*?)>\s*{_KERNEL}\s*\(", _without_comments(source))
    return {name: " ".join(parameters.split()) for parameters, name in kernels}


def _without_comments(source: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.DOTALL)


def _compiled(
    name: str,
    text: str,
    flags: tuple[str, ...],
    also_read: Path | None = None,
    link: Path | None = None,
) -> Path:
    """What g++ makes of `text`, from the cache or new."""
    stem, suffix = name.rsplit(".", 1)
    result = _cache_directory() / f"{stem}-{_fingerprint((text, flags, link), also_read)}.{suffix}"
    if result.exists():
        return result
    result.parent.mkdir(parents=True, exist_ok=True)
    # The name appears when the file is complete: two processes may build the same one at once.
    with tempfile.TemporaryDirectory(dir=result.parent) as folder:
        source, incomplete = Path(folder, "source"), Path(folder, "result")
        source.write_text(text)
        command = [_compiler(), *flags, str(source), "-o", str(incomplete)]
        if link is not None:
            # -Bsymbolic: a debugger that stops in one library takes that library's threadIdx.
            command += ["-x", "none", str(link), "-Wl,-Bsymbolic", "-T", str(PARTS / "shared.ld")]
        completed = subprocess.run(command, capture_output=True, text=True, check=False)
        if completed.returncode != 0:
            raise BuildError(f"g++ refused {also_read.name if also_read else name}:\n{completed.stderr}")
        incomplete.replace(result)
    return result


def _fingerprint(what: tuple, also_read: Path | None) -> str:
    """Changes with everything that goes into a compilation: text, flags, compiler, source and headers."""
    fingerprint = hashlib.sha256(repr((what, _compiler_version())).encode())
    files = [*HERE.glob("*.h"), *PARTS.glob("*.h"), *PARTS.glob("*.ld")]
    if also_read is not None:
        files += [also_read, *also_read.parent.glob("*.h"), *also_read.parent.glob("*.cuh")]
    for file in sorted(set(files)):
        fingerprint.update(file.read_bytes())
    return fingerprint.hexdigest()[:16]


def _compiler() -> str:
    """The path of g++. Raises BuildError where there is none."""
    found = shutil.which("g++")
    if found is None:
        raise BuildError("running CUDA C on the CPU needs g++, and there is none on the PATH")
    return found


@cache
def _compiler_version() -> str:
    return subprocess.run([_compiler(), "--version"], capture_output=True, text=True, check=True).stdout


def _cache_directory() -> Path:
    """Where built libraries are kept: `$XDG_CACHE_HOME/minift/cuda_cpu`, by default under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minift" / "cuda_cpu"
