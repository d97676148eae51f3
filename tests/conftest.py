"""What all tests share."""

import os
import shutil
from pathlib import Path

import pytest

SHARED_DATA = Path(os.environ.get("MINIFT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout; they are not part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no data sets in {SHARED_DATA} (set MINIFT_SHARED_DATA)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A folder with a tiny checkpoint (`model`), one without a head (`body`), `train.tsv` and `dev.tsv`."""
    from tiny import make_model, rows, write_tsv

    from minift import checkpoint

    folder = tmp_path_factory.mktemp("tiny")
    model = make_model(folder / "vocabulary")
    model.save(folder / "model")
    shutil.copytree(folder / "model", folder / "body")
    body = {name: parameter.data for name, parameter in model.named_parameters() if name.startswith("bert.")}
    checkpoint.write_tensors(folder / "body" / checkpoint.WEIGHTS, body)
    write_tsv(folder / "train.tsv", rows(60, seed=1))
    write_tsv(folder / "dev.tsv", rows(30, seed=2))
    return folder


@pytest.fixture(scope="session")
def compiled(tiny):
    """The kernels of this machine: the first process that needs them compiles them, and says so."""
    import minift

    model = minift.load(tiny / "model")
    minift.cross_entropy(model("fine"), "positive").backward()
    minift.AdamW(model.parameters()).step()


@pytest.fixture
def run(capsys, compiled):
    """Run one command in this process: its exit status, stdout and stderr."""
    from minift.cli import main

    def run(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # how the parser of options ends
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
