"""The kernels that run on the CPU are CUDA C: NVIDIA's compiler takes them too."""

import pytest
from cuda_cases import KERNELS
from minift_kernels.nvrtc import nvrtc_compile, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("path", sorted(KERNELS.glob("*.cu")), ids=lambda path: path.name)
def test_compiles(path, arch):
    cubin = nvrtc_compile(path.read_text(), arch, path.name)
    assert cubin.startswith(b"\x7fELF")


def test_an_error_names_file_and_line():
    with pytest.raises(RuntimeError, match=r"wrong.cu\(2\): error: identifier \"y\" is undefined"):
        nvrtc_compile("__global__ void k(float* x) {\nx[0] = y;\n}", "sm_80", "wrong.cu")
