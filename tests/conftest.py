"""What all tests share."""

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(os.environ.get("MINIFT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout; they are not part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no data sets in {SHARED_DATA} (set MINIFT_SHARED_DATA)")
    return SHARED_DATA
