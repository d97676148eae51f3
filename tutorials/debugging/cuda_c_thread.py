"""A kernel in CUDA C on the CPU, where gdb stops in one thread of it as in any function.

    gdb --args python tutorials/debugging/cuda_c_thread.py
    (gdb) set breakpoint pending on
    (gdb) break softmax_shared_forward if threadIdx.x == 3 && blockIdx.x == 1
    (gdb) run

or "one CUDA C thread on the CPU, with gdb" in .vscode/launch.json. It needs g++ and gdb.
"""

import numpy as np
from minift_kernels import softmax, use_kernels

x = np.arange(12, dtype=np.float32).reshape(2, 6)
with use_kernels("cuda_c_shared"):
    y = softmax.forward(x)
with use_kernels("reference"):
    np.testing.assert_allclose(y, softmax.forward(x), rtol=1e-6)
print(y)
