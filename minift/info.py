"""What this machine runs minift with: for bug reports, and to see which rung each operation stands on."""

import platform
from importlib import metadata

import numba
import numpy as np
from minift_kernels import OPERATIONS, gpu
from minift_kernels.host import BLAS

from minift.device import gpu_name

PACKAGES = (
    "minift",
    "numpy",
    "numba",
    "tokenizers",
    "safetensors",
    "cupy-cuda13x",
    "cupy-cuda12x",
    "numba-cuda",
)


def info() -> dict:
    """Versions, device, threads, and the rung that runs each operation on float32 arrays, as wished or by default."""
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "gpu": gpu_name() or f"none: {gpu.why_no_gpu()}",
        "device": f"cpu ({platform.machine()}, {platform.system()})",
        "threads": numba.get_num_threads(),
        "matrix products": _products(),
        "rungs": {name: ladder.choose(np.empty(0, np.float32)) for name, ladder in OPERATIONS.items()},
    }


def _products() -> str:
    if OPERATIONS["matmul"].choose(np.empty(0, np.float32)) == "numba_cpu_tiled":
        return f"minift's own, small ones in {BLAS}"
    return f"{BLAS}, called from compiled loops" if BLAS else "numpy.matmul"


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
