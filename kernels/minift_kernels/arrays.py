"""One body for NumPy and CuPy: the module that an array belongs to."""

import sys
from types import ModuleType

import numpy as np


def array_namespace(x) -> ModuleType:
    """numpy for a NumPy array, cupy for a CuPy array (which only exists where cupy was imported)."""
    return np if isinstance(x, np.ndarray) else sys.modules["cupy"]
