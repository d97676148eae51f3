"""A kernel of Numba's for the GPU, in Numba's simulator: every CUDA thread is a Python thread, one can stop in each.

    "one numba-cuda kernel in the simulator" in .vscode/launch.json

Set a breakpoint in a kernel of kernels/minift_kernels/softmax/numba_cuda.py and debug this file in VS Code (debugpy).
A `breakpoint()` written into the kernel opens pdb there; pdb's own `b` is not seen by threads that it did not start.
"""

import os

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # before Numba's CUDA is imported

import numpy as np
from minift_kernels import softmax, use_kernels

x = np.array([[0.0, 1.0, 2.0], [3.0, 3.0, 3.0]], np.float32)
with use_kernels("numba_cuda_naive"):
    y = softmax.forward(x)
with use_kernels("reference"):
    np.testing.assert_allclose(y, softmax.forward(x), rtol=1e-6)
print(y)
