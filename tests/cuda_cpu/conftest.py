import shutil

import pytest


def pytest_collection_modifyitems(items):
    if shutil.which("g++") is None:
        for item in items:
            if "cuda_cpu" in item.path.parts and "nvrtc" not in item.path.name:
                item.add_marker(pytest.mark.skip(reason="running CUDA C on the CPU needs g++"))
