"""Reading what others wrote, refusing what is damaged, and never leaving half a file."""

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from minift import checkpoint
from minift.checkpoint import (
    match_keys,
    read_config,
    read_json,
    read_safetensors,
    read_tensors,
    write_json,
    write_tensors,
)
from minift.errors import InputError

random_numbers = np.random.default_rng(0)


def some_tensors():
    return {
        "weight": random_numbers.standard_normal((3, 5)).astype(np.float32),
        "bias": random_numbers.standard_normal(5).astype(np.float16),
        "position_ids": np.arange(4)[None],
        "number": np.array(2.5, np.float32),
        "empty": np.zeros((0, 7), np.float32),
    }


def safetensors_bytes(header, data=b"", length=None):
    """A file with this header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


# ---- Reading ----


def test_reads_what_the_safetensors_library_wrote(tmp_path):
    tensors = some_tensors()
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors", metadata={"step": "7", "name": "ü"})
    read = read_safetensors(tmp_path / "a.safetensors")
    assert read.metadata == {"step": "7", "name": "ü"}
    assert set(read) == set(tensors) and read.shapes == {key: array.shape for key, array in tensors.items()}
    for key, array in tensors.items():
        assert read[key].dtype == array.dtype
        np.testing.assert_array_equal(read[key], array)


def test_the_safetensors_library_reads_what_was_written(tmp_path):
    tensors = some_tensors() | {"transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    write_tensors(tmp_path / "a.safetensors", tensors, {"step": "7"})
    (tmp_path / "b").touch()
    for key, array in safetensors.numpy.load_file(tmp_path / "a.safetensors").items():
        assert array.shape == tensors[key].shape
        np.testing.assert_array_equal(array, tensors[key])
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o444 == (tmp_path / "b").stat().st_mode & 0o444
    with safetensors.safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt", "step": "7"}


def test_every_tensor_is_written_at_a_multiple_of_its_width(tmp_path):
    dtypes = [np.uint8, np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int64, np.bool_]
    tensors = {f"{place}": np.ones(3, dtype) for place, dtype in enumerate(dtypes)}
    write_tensors(tmp_path / "a.safetensors", tensors)
    read = read_safetensors(tmp_path / "a.safetensors")
    assert all(entry.start % read[key].itemsize == 0 for key, entry in read.entries.items())
    assert all(read[key].tobytes() == array.tobytes() for key, array in tensors.items())


@pytest.mark.parametrize("stored", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wanted", [np.float32, np.float64])
def test_floats_become_the_wanted_dtype_and_integers_stay(tmp_path, stored, wanted):
    values = np.array([0.5, -1.25, 3.0, 1e-3]).astype(stored)
    write_tensors(tmp_path / "model.safetensors", {"weight": values, "position_ids": np.arange(3)})
    read = read_tensors(tmp_path, wanted)
    assert read["weight"].dtype == wanted and read["position_ids"].dtype == np.int64
    np.testing.assert_array_equal(read["weight"], values.astype(wanted))


def test_a_tensor_is_a_view_of_the_file(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"large": np.ones((1000, 1000), np.float32)})
    tracemalloc.start()
    tensor = read_safetensors(tmp_path / "a.safetensors", np.float32)["large"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tensor.sum() == 1e6 and peak < 100_000
    with pytest.raises(ValueError, match="read-only"):
        tensor[0] = 1


def test_an_unaligned_tensor_is_read(tmp_path):
    header = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    text += b" " * (5 - len(text) % 4)  # the data then begin at an odd byte
    values = np.array([1.5, -2.0], np.float32)
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(text, values.tobytes()))
    read = read_safetensors(tmp_path / "a.safetensors")["x"]
    assert read.flags.aligned
    np.testing.assert_array_equal(read, values)


def write_shards(directory, weight_map, files):
    for name, tensors in files.items():
        write_tensors(directory / name, tensors)
    write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def test_shards_are_read_as_one(tmp_path):
    first, second = {"a": np.ones(2, np.float32)}, {"b": np.zeros(3, np.float16)}
    write_shards(
        tmp_path,
        {"a": "1.safetensors", "b": "2.safetensors"},
        {"1.safetensors": first, "2.safetensors": second},
    )
    read = read_tensors(tmp_path, np.float32)
    assert {key: array.tolist() for key, array in read.items()} == {"a": [1, 1], "b": [0, 0, 0]}


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (
            {"a": "1.safetensors", "c": "1.safetensors"},
            "tensor 'c' was to be in 1.safetensors, which lacks it",
        ),
        ({"a": "1.safetensors", "b": "3.safetensors"}, "3.safetensors: there is no such file"),
        ({"a": "../1.safetensors"}, "'../1.safetensors' was to be the name of a file in the same directory"),
        (
            {"a": "1.safetensors", "b": "2.safetensors"},
            "tensor 'a' is both in 1.safetensors and in 2.safetensors",
        ),
        (None, "'weight_map' from keys to file names was expected, found None"),
        ({"a": 5}, "5: there is no such file"),
    ],
)
def test_broken_shards(tmp_path, weight_map, message):
    tensors = {"a": np.ones(2, np.float32)}
    write_shards(tmp_path, weight_map, {"1.safetensors": tensors, "2.safetensors": tensors})
    with pytest.raises(InputError, match=message):
        read_tensors(tmp_path)


def test_a_key_in_another_shard_than_the_index_says(tmp_path):
    files = {"1.safetensors": {"a": np.ones(2)}, "2.safetensors": {"b": np.ones(2)}}
    write_shards(tmp_path, {"a": "2.safetensors", "b": "1.safetensors"}, files)
    with pytest.raises(InputError, match=r"tensor 'a' was to be in 2.safetensors, which lacks it"):
        read_tensors(tmp_path)


def test_a_pickle_alone_is_refused_with_a_way_out(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(InputError, match=r"pytorch_model.bin is a pickle.*save_pretrained"):
        read_tensors(tmp_path)


def test_a_directory_without_weights_names_what_it_holds(tmp_path):
    with pytest.raises(InputError, match="it is empty"):
        read_tensors(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"neither model.safetensors nor .* it holds notes.txt"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b" 2}', "config.json: line 2, column 6: not JSON"),
        (b"[1]", "a JSON object was expected, found list"),
        (b'{"a": "\xe9"}', r"byte 8 \(0xe9\) is not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
    ],
)
def test_broken_config(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_config(tmp_path):
    with pytest.raises(InputError, match="there is no such directory"):
        read_config(tmp_path / "missing")
    with pytest.raises(InputError, match=r"no config.json here, so this is no model directory; it is empty"):
        read_config(tmp_path)
    with pytest.raises(InputError, match="there is no such file"):
        read_json(tmp_path / "other.json")
    with pytest.raises(InputError, match="this is a directory"):
        read_json(tmp_path)


# ---- Damaged files ----

SOUND = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def changed(**fields):
    return {"x": {**SOUND["x"], **fields}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the header was to have 0 bytes, the whole file has 0"),
        (b"\x10\0\0", "the header was to have 16 bytes, the whole file has 3"),
        (
            safetensors_bytes(SOUND, length=2**63),
            "was to have 9,223,372,036,854,775,808 bytes, the whole file has",
        ),
        (safetensors_bytes(b"{not json"), "the header is not JSON that can be read"),
        (safetensors_bytes(b"[" * 100_000), "the header is not JSON that can be read"),
        (safetensors_bytes(b"\xff{}"), "the header is not JSON that can be read"),
        (safetensors_bytes(b'{"x": ' + b"9" * 5000 + b"}"), "the header is not JSON that can be read"),
        (safetensors_bytes(b'{"x": 1, "x": 2}'), "a key appears twice"),
        (safetensors_bytes([1]), r"the header was to be a JSON object, found \[1\]"),
        (safetensors_bytes({"__metadata__": {"a": 1}}), "'__metadata__' was to map text to text"),
        (safetensors_bytes({"x": {"dtype": "F32"}}), "tensor 'x' was to have dtype, shape and data_offsets"),
        (
            safetensors_bytes(changed(dtype="F8_E4M3"), bytes(8)),
            "tensor 'x' has dtype 'F8_E4M3'; minift reads F64",
        ),
        (safetensors_bytes(changed(dtype=["F32"]), bytes(8)), "tensor 'x' has dtype"),
        (safetensors_bytes(changed(shape=[-2]), bytes(8)), "tensor 'x' has shape"),
        (safetensors_bytes(changed(shape=[True, 2]), bytes(8)), "tensor 'x' has shape"),
        (safetensors_bytes(changed(shape=[2.0]), bytes(8)), "tensor 'x' has shape"),
        (safetensors_bytes(changed(shape=[0, 2**60], data_offsets=[0, 0])), "tensor 'x' has shape"),
        (safetensors_bytes(changed(shape=[2**39]), bytes(8)), "needs 2,199,023,255,552 bytes and has 8"),
        (
            safetensors_bytes(changed(data_offsets=[0, 8]), bytes(4)),
            "has data_offsets .0, 8., there are 4 bytes",
        ),
        (safetensors_bytes(changed(data_offsets=[8, 0]), bytes(8)), "has data_offsets"),
        (
            safetensors_bytes(changed(data_offsets=[4, 12]), bytes(12)),
            "was to begin at byte 0 of the data, found 4",
        ),
        (safetensors_bytes(SOUND, bytes(12)), "the tensors end at byte 8 of the data, which has 12"),
        (safetensors_bytes({**SOUND, "y": SOUND["x"]}, bytes(8)), "tensor 'y' was to begin at byte 8"),
    ],
)
def test_a_damaged_file_says_what_was_found(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(InputError, match=message) as caught:
        read_tensors(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert peak < 2_000_000


def test_a_header_longer_than_the_format_allows_is_not_read(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes((150_000_000).to_bytes(8, "little"))
    os.truncate(path, 200_000_000)  # a sparse file, which takes no place on the disk
    with pytest.raises(InputError, match="was to have 150,000,000 bytes, the format allows 100,000,000"):
        read_safetensors(path)


def test_a_zero_axis_beside_a_long_one_does_not_overflow(tmp_path):
    long = 2**40 - 1
    header = {"x": {"dtype": "F32", "shape": [0, long, long, long], "data_offsets": [0, 0]}}
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(header))
    with pytest.raises(InputError, match="tensor 'x' has shape"):
        read_safetensors(tmp_path / "a.safetensors")


ODD_VALUES = [
    None,
    True,
    -1,
    0,
    1,
    7,
    2**31,
    2**63,
    10**30,
    0.5,
    "",
    "F32",
    "F64",
    "I64",
    [],
    [0],
    [0, 8],
    [8, 0],
    {},
    {"a": 1},
]


def damage(content: bytes, choose: random.Random) -> bytes:
    """The file with one accident: bytes changed, cut out, put in, or one value of its header exchanged."""
    kind = choose.choice(["flip", "cut", "end", "insert", "length", "value", "value", "value"])
    place = choose.randrange(len(content))
    if kind == "flip":
        return content[:place] + bytes([content[place] ^ (1 << choose.randrange(8))]) + content[place + 1 :]
    if kind == "cut":
        return content[:place] + content[place + choose.randrange(1, 9) :]
    if kind == "end":
        return content[:place]
    if kind == "insert":
        return content[:place] + choose.randbytes(choose.randrange(1, 9)) + content[place:]
    if kind == "length":
        return choose.randbytes(choose.choice([1, 2, 8])).ljust(8, b"\0") + content[8:]
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    fields = header[choose.choice(list(header))]
    field = choose.choice(list(fields))
    if isinstance(fields[field], list) and fields[field] and choose.random() < 0.7:
        fields[field][choose.randrange(len(fields[field]))] = choose.choice(ODD_VALUES)
    else:
        fields[field] = choose.choice(ODD_VALUES)
    return safetensors_bytes(header, content[8 + length :])


def test_no_damage_goes_further_than_one_clear_error(tmp_path):
    """What is still accepted must be what the format's own library reads from the same bytes."""
    tensors = some_tensors()
    content = safetensors.numpy.save(tensors, {"format": "pt"})
    choose = random.Random(0)
    path = tmp_path / "model.safetensors"
    refused = accepted = 0
    tracemalloc.start()
    for _ in range(2000):
        damaged = damage(content, choose)
        path.write_bytes(damaged)
        try:
            read = {key: array.copy() for key, array in read_safetensors(path).items()}
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
        else:
            accepted += 1
            for key, array in safetensors.numpy.load(damaged).items():
                assert array.tobytes() == read[key].tobytes() and array.shape == read[key].shape
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 1000 and accepted > 100  # else the damage is not what it was meant to be
    assert peak < 10_000_000


# ---- Keys ----


def test_every_key_is_accounted_for():
    found = {"a": (2, 3), "b": (4,), "old": (1,)}
    expected = {"a": (2, 3), "b": (4,), "classifier.weight": (2, 4), "classifier.bias": (2,)}
    report = match_keys(found, expected, "model.safetensors")
    assert report.loaded == ["a", "b"]
    assert report.initialized == ["classifier.weight", "classifier.bias"]
    assert report.unused == ["old"]
    assert (
        str(report) == "loaded 2 tensors; newly initialized: classifier.weight, classifier.bias; unused: old"
    )
    assert str(match_keys(found, found, "model.safetensors")) == "loaded 3 tensors"


def test_a_wrong_shape_names_the_key_the_file_and_both_shapes():
    with pytest.raises(
        InputError, match=r"m.safetensors: tensor 'a' has shape \(2, 3\), the model expects \(3, 2\)"
    ):
        match_keys({"a": (2, 3)}, {"a": (3, 2)}, "m.safetensors")


# ---- Writing ----


def writes(path, version):
    write_tensors(path, {"x": np.full(100_000, version, np.float32)})


@pytest.mark.parametrize("cause", ["file size limit", "disk full when syncing"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, cause):
    path = tmp_path / "model.safetensors"
    writes(path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if cause == "file size limit":  # the system refuses to write on, as it does on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        else:
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            monkeypatch.setattr(checkpoint.os, "fsync", lambda descriptor: (_ for _ in ()).throw(full))
        with pytest.raises(InputError, match=r"model.safetensors: cannot be written: ") as caught:
            writes(path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert read_safetensors(path)["x"][0] == 1


def test_an_unwritable_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"config.json: cannot be written: (Not a directory|File exists)"):
        write_json(tmp_path / "file" / "config.json", {})
    (tmp_path / "config.json").mkdir()
    with pytest.raises(InputError, match=r"config.json: cannot be written: Is a directory"):
        write_json(tmp_path / "config.json", {})
    assert sorted(os.listdir(tmp_path)) == ["config.json", "file"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_has_no_such_number(tmp_path, value):
    with pytest.raises(InputError, match=r"metrics.json: not written: Out of range float values"):
        write_json(tmp_path / "metrics.json", {"loss": value})
    assert not os.listdir(tmp_path)


def test_a_view_outlives_the_file_it_was_read_from(tmp_path):
    path = tmp_path / "model.safetensors"
    writes(path, 1)
    old = read_safetensors(path)["x"]
    writes(path, 2)
    assert old[0] == 1 and read_safetensors(path)["x"][0] == 2


@pytest.mark.slow
def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    path = tmp_path / "model.safetensors"
    writes(path, 0)
    program = (
        "import itertools, sys, pathlib, numpy as np\n"
        "from minift.checkpoint import write_tensors\n"
        "print('ready', flush=True)\n"
        "for version in itertools.count(1):\n"
        "    write_tensors(pathlib.Path(sys.argv[1]), {'x': np.full(1_000_000, version % 100, np.float32)})\n"
    )
    choose = random.Random(0)
    for _ in range(10):
        writer = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE)
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        time.sleep(choose.uniform(0, 0.1))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        values = read_safetensors(path)["x"]
        assert values.min() == values.max()
    writes(path, 1)  # and what the killed one left behind is in nobody's way
    assert os.listdir(tmp_path) == ["model.safetensors"]
