"""Compiles CUDA C for a GPU without one: NVRTC, NVIDIA's compiler as a library, called through ctypes.

It needs no driver, only NVIDIA's packages nvidia-cuda-nvrtc (the compiler), nvidia-cuda-runtime,
nvidia-cuda-crt, nvidia-cuda-cccl (headers) and cuda-pathfinder (which finds the others).
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


def why_not() -> str | None:
    """None where NVRTC can be used, else what is missing."""
    try:
        _library()
        _include_directories()
    except Exception as error:  # pathfinder's own exceptions; whatever it is, NVRTC cannot be used
        return f"NVRTC cannot be used: {error}"
    return None


def nvrtc_compile(
    source: str, arch: str, name: str = "kernel.cu", instantiations: Sequence[str] = ()
) -> bytes:
    """The machine code (a cubin) of CUDA C `source` for `arch`, such as "sm_80".

    `name` is what error messages call the source; `instantiations` are the template kernels to compile, as in
    `("softmax<float>",)`. Raises RuntimeError with NVRTC's log.
    """
    library = _library()
    flags = [
        f"--gpu-architecture={arch}",
        "-std=c++17",
        *(f"-I{folder}" for folder in (HERE, *_include_directories())),
    ]
    program = ctypes.c_void_p()
    _check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None))
    try:
        for instantiation in instantiations:
            _check(library.nvrtcAddNameExpression(program, instantiation.encode()))
        array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        if library.nvrtcCompileProgram(program, len(flags), array) != 0:
            raise RuntimeError(f"NVRTC refused {name} for {arch}:\n{_text(program, 'ProgramLog')}")
        return _bytes(program, "CUBIN")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


@cache
def _library() -> ctypes.CDLL:
    from cuda.pathfinder import load_nvidia_dynamic_lib

    library = ctypes.CDLL(load_nvidia_dynamic_lib("nvrtc").abs_path)
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


@cache
def _include_directories() -> tuple[Path, ...]:
    from cuda.pathfinder import find_nvidia_header_directory

    found = find_nvidia_header_directory("cudart")
    if found is None:
        raise RuntimeError("the headers of the CUDA runtime are not installed (nvidia-cuda-runtime)")
    return Path(found), Path(found, "cccl")


def _check(status: int) -> None:
    if status != 0:
        raise RuntimeError(f"NVRTC: {_library().nvrtcGetErrorString(status).decode()}")


def _bytes(program: ctypes.c_void_p, what: str) -> bytes:
    """The result `what` of a program, by NVRTC's pair of functions: one for the size, one for the bytes."""
    size = ctypes.c_size_t()
    _check(getattr(_library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(_library(), f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def _text(program: ctypes.c_void_p, what: str) -> str:
    return _bytes(program, what).rstrip(b"\0").decode()
