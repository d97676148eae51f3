"""Checkpoints: reading and writing tensors (safetensors) and configuration (JSON).

A safetensors file is a number N in 8 bytes, N bytes of JSON, and then the values of all tensors:

    {"__metadata__": {"format": "pt"},
     "pooler.dense.weight": {"dtype": "F32", "shape": [384, 384], "data_offsets": [0, 589824]}, ...}

Reading costs no copy: the file is mapped into memory, and a tensor is a view of its part. The header comes
from elsewhere and is believed in nothing: every number is checked against the size of the file before
anything is made of it, so a damaged file gives an InputError. (Source: github.com/huggingface/safetensors,
section Format.)

Writing never leaves half a file: the bytes go to a temporary file beside it, reach the disk, and only then
take the name. Whoever is killed in between still has the old file. The format is written here, too, because
the format's own library leaves its temporary files behind when killed and lets nobody else read the result.
"""

import contextlib
import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from minift.errors import InputError

WEIGHTS = "model.safetensors"
SHARDS = "model.safetensors.index.json"

FORMATS = {
    "transformers": (WEIGHTS,),
    "transformers, in shards": (SHARDS, "model-*-of-*.safetensors"),
    "minift": ("minift_part.json", "minift_part.safetensors"),
    "PEFT": ("adapter_config.json", "adapter_model.safetensors"),
    "AdapterHub": (
        "adapter_config.json",
        "adapter.safetensors",
        "head_config.json",
        "model_head.safetensors",
    ),
}
"""The files that hold the weights of a model, or of a part of one, and what tells of the part; names, or patterns."""

FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16}
INTEGERS = {f"{kind}{8 * width}": f"<{kind.lower()}{width}" for kind in "IU" for width in (8, 4, 2, 1)}
DTYPES = {name: np.dtype(dtype) for name, dtype in {**FLOATS, **INTEGERS, "BOOL": "?"}.items()}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

LENGTH_BYTES = 8
HEADER_LIMIT = 100_000_000  # bytes; the format's own limit


# ---- Reading -------------------------------------------------------------------------------------


def open_file(path: Path) -> BufferedReader:
    """The file, open for reading bytes. Raises InputError where there is none or it may not be read."""
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: this is a directory, a file was expected") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def sha256(path: Path) -> str:
    """What tells this file's bytes from any others. Raises InputError, as `open_file` does."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file. Raises InputError where it is missing, not UTF-8 or no JSON object."""
    with open_file(path) as file:
        content = file.read()
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start + 1} (0x{content[error.start]:02x}) is not UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON that can be read: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: a JSON object was expected, found {type(value).__name__}")
    return value


def read_config(directory: Path) -> dict[str, Any]:
    """The model's config.json. Raises InputError where `directory` holds none."""
    if not directory.is_dir():
        raise InputError(f"{directory}: there is no such directory")
    if not (directory / "config.json").exists():
        raise InputError(
            f"{directory}: no config.json here, so this is no model directory; {_contents(directory)}"
        )
    return read_json(directory / "config.json")


class Entry(NamedTuple):
    """Where one tensor lies: from byte `start` of the mapped file on."""

    file: Path
    mapped: mmap.mmap
    dtype: str  # as the header spells it: F32, BF16, I64, ...
    shape: tuple[int, ...]
    start: int

    def read(self) -> np.ndarray:
        values = np.frombuffer(self.mapped, DTYPES[self.dtype], math.prod(self.shape), self.start)
        array = values.reshape(self.shape)
        return array if array.flags.aligned else array.copy()


class Tensors(Mapping[str, np.ndarray]):
    """Tensors by key, read when asked for.

    `tensors[key]` is a read-only view of the file, which costs no memory of its own. Where `dtype` is given
    and differs, floating-point tensors are converted to it, which makes a copy; integers stay as they are.
    """

    def __init__(self, entries: dict[str, Entry], metadata: dict[str, str], dtype: Any = None):
        self.entries = entries
        self.metadata = metadata
        self.dtype = dtype

    def __getitem__(self, key: str) -> np.ndarray:
        entry = self.entries[key]
        array = entry.read()
        if self.dtype is None or entry.dtype not in FLOATS:
            return array
        return array.astype(self.dtype, copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: entry.shape for key, entry in self.entries.items()}


def read_tensors(directory: Path, dtype: Any = None) -> Tensors:
    """The weights of a model directory, in one file or in the shards that model.safetensors.index.json lists.

    Raises InputError for a directory without them, a missing shard or key, and a damaged file.
    """
    if (directory / WEIGHTS).exists():
        return read_safetensors(directory / WEIGHTS, dtype)
    if (directory / SHARDS).exists():
        return _read_shards(directory / SHARDS, dtype)
    if (directory / "pytorch_model.bin").exists():
        raise InputError(
            f"{directory}: pytorch_model.bin is a pickle, which runs code when opened; convert it with "
            f"transformers: AutoModel.from_pretrained({str(directory)!r}).save_pretrained({str(directory)!r})"
        )
    raise InputError(f"{directory}: neither {WEIGHTS} nor {SHARDS} here; {_contents(directory)}")


def _read_shards(index: Path, dtype: Any) -> Tensors:
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise InputError(
            f"{index}: 'weight_map' from keys to file names was expected, found {_brief(shard_of)}"
        )
    entries: dict[str, Entry] = {}
    for name in sorted(set(map(str, shard_of.values()))):
        if Path(name).name != name:
            raise InputError(f"{index}: {name!r} was to be the name of a file in the same directory")
        for key, entry in read_safetensors(index.parent / name).entries.items():
            if key in entries:
                raise InputError(f"{index}: tensor {key!r} is both in {entries[key].file.name} and in {name}")
            entries[key] = entry
    for key, name in shard_of.items():
        if key not in entries or entries[key].file.name != name:
            raise InputError(f"{index}: tensor {key!r} was to be in {name}, which lacks it")
    return Tensors(entries, {}, dtype)


def read_safetensors(path: Path, dtype: Any = None) -> Tensors:
    """The tensors and the metadata (`.metadata`, text to text) of one safetensors file.

    Raises InputError, naming the file and what was found, wherever the file breaks the format.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        header = _read_header(path, file, size)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        data_start = file.tell()
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise _damaged(path, f"'__metadata__' was to map text to text, found {_brief(metadata)}")
    entries = {}
    spans = []
    for key, fields in header.items():
        dtype_name, shape, begin, end = _read_fields(path, key, fields, size - data_start)
        entries[key] = Entry(path, mapped, dtype_name, shape, data_start + begin)
        spans.append((begin, end, key))
    _check_spans(path, sorted(spans), size - data_start)
    return Tensors(entries, metadata, dtype)


def _read_header(path: Path, file: BufferedReader, size: int) -> dict[str, Any]:
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if size < LENGTH_BYTES or length > size - LENGTH_BYTES:
        raise _damaged(path, f"the header was to have {length:,} bytes, the whole file has {size:,}")
    if length > HEADER_LIMIT:
        raise _damaged(path, f"the header was to have {length:,} bytes, the format allows {HEADER_LIMIT:,}")
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"the header is not JSON that can be read: {error}") from None
    if not isinstance(header, dict):
        raise _damaged(path, f"the header was to be a JSON object, found {_brief(header)}")
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key appears twice")
    return result


def _read_fields(path: Path, key: str, fields: Any, data_size: int) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape, begin and end of one tensor, checked; begin and end count from the end of the header."""
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(
            path, f"tensor {key!r} was to have dtype, shape and data_offsets, found {_brief(fields)}"
        )
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _damaged(path, f"tensor {key!r} has dtype {_brief(dtype)}; minift reads {', '.join(DTYPES)}")
    # Bounded even where an axis of length 0 makes the product 0: an array cannot be told of more.
    if not _are_sizes(shape) or len(shape) > 32 or math.prod(size or 1 for size in shape) > 2**48:
        raise _damaged(path, f"tensor {key!r} has shape {_brief(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= data_size:
        raise _damaged(
            path, f"tensor {key!r} has data_offsets {_brief(offsets)}, there are {data_size:,} bytes of data"
        )
    begin, end = offsets
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != needed:
        raise _damaged(
            path, f"tensor {key!r}, {dtype} {_brief(shape)}, needs {needed:,} bytes and has {end - begin:,}"
        )
    return dtype, tuple(shape), begin, end


def _are_sizes(values: Any) -> bool:
    # By type, not isinstance: True and False are integers in Python.
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_spans(path: Path, spans: list[tuple[int, int, str]], data_size: int) -> None:
    """The tensors, in the order of their places, follow each other without gap or overlap up to the end."""
    position = 0
    for begin, end, key in spans:
        if begin != position:
            raise _damaged(
                path, f"tensor {key!r} was to begin at byte {position:,} of the data, found {begin:,}"
            )
        position = end
    if position != data_size:
        raise _damaged(path, f"the tensors end at byte {position:,} of the data, which has {data_size:,}")


def _damaged(path: Path, found: str) -> InputError:
    return InputError(f"{path}: not a sound safetensors file: {found}")


def _brief(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _contents(directory: Path) -> str:
    names = sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []
    return f"it holds {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else "it is empty"


# ---- Which key of the file is which of the model -------------------------------------------------


@dataclass(frozen=True)
class KeyReport:
    """What became of every key of the file and of the model."""

    loaded: list[str] = field(default_factory=list)
    initialized: list[str] = field(default_factory=list)  # in the model alone: they keep their new values
    unused: list[str] = field(default_factory=list)  # in the file alone

    def __str__(self) -> str:
        lists = {"newly initialized": self.initialized, "unused": self.unused}
        named = [f"{what}: {', '.join(keys)}" for what, keys in lists.items() if keys]
        return "; ".join([f"loaded {len(self.loaded)} tensors", *named])


def match_keys(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], source: Path | str
) -> KeyReport:
    """Account for every key: `found` holds the shapes in the file `source`, `expected` those of the model.

    Raises InputError where a key has another shape in the file than in the model.
    """
    for key in expected:
        if key in found and tuple(found[key]) != tuple(expected[key]):
            raise InputError(
                f"{source}: tensor {key!r} has shape {found[key]}, the model expects {expected[key]}"
            )
    return KeyReport(
        loaded=[key for key in expected if key in found],
        initialized=[key for key in expected if key not in found],
        unused=[key for key in found if key not in expected],
    )


# ---- Writing -------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write `path` whole or not at all: the block writes the temporary file that it is given.

    Raises InputError with the reason where that fails; `path` is then as it was, and nothing else is left.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def files_of_model(directory: Path) -> set[str]:
    """The names of the files there that hold a model or a part of one, in whatever format."""
    patterns = {pattern for files in FORMATS.values() for pattern in files}
    return {path.name for pattern in patterns for path in directory.glob(pattern)}


def check_no_model(directory: Path) -> None:
    """Raise InputError for a directory whose model would be lost."""
    held = files_of_model(directory) | {path.name for path in directory.glob("config.json")}
    if held:
        raise InputError(
            f"{directory} already holds a model ({', '.join(sorted(held))}); pass --overwrite to replace it"
        )


def remove_other_formats(directory: Path, written: str) -> None:
    """Remove what holds a model in other formats than the one just `written`: `load` might read that instead."""
    for name in files_of_model(directory) - set(FORMATS[written]):
        (directory / name).unlink()


def make_directory(path: Path) -> None:
    """Make the directory and those above it. Raises InputError where that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be made a directory: {error.strerror}") from error


@contextlib.contextmanager
def writing_alone(path: Path) -> Iterator[None]:
    """Inside this block no other process enters such a block for the file, which is made if it is not there.

    The lock goes with the process, however that ends. Raises InputError where another one holds it, and where the file
    cannot be written.
    """
    import fcntl  # here, because Windows has none, where minift can at least be imported

    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path}: another process writes here") from None
        except OSError:
            pass  # some network file systems have no locks, and are to be written all the same
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def continue_file(path: Path, length: int) -> Iterator[BufferedWriter]:
    """A file open for writing at its end, which is to have `length` bytes that count; what comes after them stays until
    the block cuts it off.

    Raises InputError where the file is shorter or cannot be written, in the block too.
    """
    try:
        with open(path, "ab") as file:
            if file.tell() < length:
                raise InputError(f"{path}: {length:,} bytes were expected, found {file.tell():,}")
            yield file
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def _sync(path: Path) -> None:
    """Return when the file's bytes, or the directory's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all. Raises InputError, as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, whole or not at all.

    Raises InputError, as `replacing` does, and for NaN and infinity, which JSON does not have.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise InputError(f"{path}: not written: {error}") from None
    write_text(path, text + "\n")


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write one safetensors file, whole or not at all; `metadata` (text to text) is added to its header.

    The same tensors and metadata give the same bytes. Raises InputError, as `replacing` does.
    """
    # Not np.ascontiguousarray, which gives a number (a tensor without axes) an axis.
    arrays = {key: np.asarray(array, order="C") for key, array in tensors.items()}
    # The widest numbers come first: then each tensor begins at a multiple of its own numbers' width.
    keys = sorted(arrays, key=lambda key: (-arrays[key].itemsize, key))

    # Other libraries refuse a file that does not say whose conventions it follows: pt is PyTorch.
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for key in keys:
        begin, end = end, end + arrays[key].nbytes
        dtype = DTYPE_NAMES[arrays[key].dtype]
        header[key] = {"dtype": dtype, "shape": list(arrays[key].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        for key in keys:
            file.write(arrays[key].reshape(-1).view(np.uint8).data)  # no copy
