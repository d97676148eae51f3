"""The command line, given what is wrong: one clear line on stderr, exit status 2, and nothing lost."""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from command import finetune_options, run_process, the_one_line
from stand_in_hub import StandInHub
from tiny import CONFIG, write_tsv

from minift import checkpoint, hub, training_state
from minift.cli import main
from minift.train import METRICS

pytestmark = pytest.mark.usefixtures("compiled")

# ---- Bad files ----


BAD_FILES = {
    "header without label": ("a.tsv", "sentence\tlable\nfine\tpositive\n", "a.tsv: no column 'label'"),
    "header without text": ("a.csv", "txt,label\nfine,positive\n", "a.csv: no column 'sentence' or 'text'"),
    "empty": ("a.tsv", "", "a.tsv: the file is empty"),
    "header alone": ("a.tsv", "sentence\tlabel\n", "a.tsv: a header .* and no rows"),
    "too few columns": ("a.tsv", "sentence\tlabel\nfine\tpositive\nbad\n", "a.tsv, line 3: 1 column, 2 were"),
    "not UTF-8": (
        "a.tsv",
        b"sentence\tlabel\ncaf\xe9\tpositive\n",
        "a.tsv, line 2, byte 4: 0xe9 is not UTF-8",
    ),
    "not JSON": ("a.jsonl", '{"text": "fine", "label": 1}\n{"text"', "a.jsonl, line 2: not JSON"),
    "unknown ending": ("a.xls", "x", "a.xls: unknown ending '.xls'"),
    "no labels at all": ("a.txt", "fine\n", "a.txt: no column 'label'"),
    "missing": ("a.tsv", None, "a.tsv: there is no such file"),
    "a directory": ("", None, "this is a directory, a file was expected"),
}


@pytest.mark.parametrize("role", ["train", "dev", "evaluate"])
@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file(tiny, tmp_path, run, role, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if role == "evaluate":
        line = the_one_line(*run("evaluate", tiny / "model", "--data", path))
    else:
        line = the_one_line(*run(*finetune_options(tiny, tmp_path / "out", **{role: path})))
    assert line.startswith(str(tmp_path)) and re.search(message, line)


def test_label_that_the_model_does_not_have(tiny, tmp_path, run):
    path = write_tsv(tmp_path / "a.tsv", [("fine", "positive"), ("so", "mixed")])
    expected = f"{path}, line 3: label 'mixed', expected one of: 'negative', 'positive'"
    assert the_one_line(*run(*finetune_options(tiny, tmp_path / "out", dev=path))) == expected
    assert the_one_line(*run("evaluate", tiny / "model", "--data", path)) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "a.txt: the file is empty"),
        ("a.txt", b"fine\ncaf\xe9\n", "a.txt, line 2, byte 4: 0xe9 is not UTF-8"),
        ("a.tsv", "review\nfine\n", "a.tsv: no column 'sentence' or 'text'"),
        ("a.txt", None, "a.txt: there is no such file"),
    ],
)
def test_bad_file_of_texts(tiny, tmp_path, run, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    line = the_one_line(*run("predict", tiny / "model", "--file", tmp_path / name))
    assert line.startswith(str(tmp_path)) and message in line


# ---- Bad models ----


@pytest.fixture
def broken(tiny, tmp_path) -> Path:
    """A copy of the tiny model, to be broken."""
    return shutil.copytree(tiny / "model", tmp_path / "broken")


def damage(path: Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


DAMAGES = {
    "truncated": (lambda content: content[:-1000], "not a sound safetensors file"),
    "truncated in the header": (lambda content: content[:100], "not a sound safetensors file"),
    "empty": (lambda content: b"", "not a sound safetensors file"),
    "huge header": (lambda content: b"\xff" * 8 + content[8:], "the header was to have"),
    "no JSON": (lambda content: content[:9] + b"\xff" + content[10:], "the header is not JSON"),
    "wrong offset": (
        lambda content: content.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1),
        "bytes",
    ),
}


@pytest.mark.parametrize(("change", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_weights(broken, tiny, tmp_path, run, change, message):
    damage(broken / checkpoint.WEIGHTS, change)
    for command in (
        ["predict", broken, "--text", "fine"],
        ["evaluate", broken, "--data", tiny / "dev.tsv"],
        finetune_options(tiny, tmp_path / "out", model=broken),
    ):
        line = the_one_line(*run(*command))
        assert line.startswith(f"{broken / checkpoint.WEIGHTS}: ") and message in line


def test_tokenizer_that_does_not_fit_the_vocabulary(broken, run):
    (broken / "tokenizer.json").unlink()
    words = [f"word{number}" for number in range(CONFIG.vocab_size)]
    (broken / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    line = the_one_line(*run("predict", broken, "--text", "fine"))
    size = CONFIG.vocab_size
    assert line == (
        f"{broken / 'vocab.txt'}: the tokenizer makes ids up to {size + 4}, the model knows those up to "
        f"{size - 1} (vocab_size {size}): they do not belong together"
    )


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "config.json: line 1, column 2: not JSON"),
        ("config.json", '{"model_type": "bart"}', "config.json: model_type is 'bart', expected one of bert"),
        ("config.json", None, "no config.json here, so this is no model directory"),
        ("tokenizer.json", "{}", "tokenizer.json: the tokenizers library cannot read this"),
        ("tokenizer.json", None, "no tokenizer here"),
        (checkpoint.WEIGHTS, None, f"neither {checkpoint.WEIGHTS} nor"),
    ],
)
def test_broken_directory(broken, run, file, content, message):
    (broken / file).unlink()
    if content is not None:
        (broken / file).write_text(content)
    line = the_one_line(*run("predict", broken, "--text", "fine"))
    assert line.startswith(str(broken)) and message in line


def test_directory_that_is_no_model(tiny, tmp_path, run):
    (tmp_path / "notes.md").write_text("x")
    message = f"{tmp_path}: no config.json here, so this is no model directory; it holds notes.md"
    assert the_one_line(*run("predict", tmp_path, "--text", "fine")) == message
    assert the_one_line(*run("evaluate", tmp_path, "--data", tiny / "dev.tsv")) == message
    assert the_one_line(*run(*finetune_options(tiny, tmp_path / "out", model=tmp_path))) == message


def test_checkpoint_without_a_head(broken, tiny, tmp_path, run):
    """A new head would say anything, so nobody may take what it says for a result."""
    tensors = dict(checkpoint.read_tensors(broken).items())
    checkpoint.write_tensors(
        broken / checkpoint.WEIGHTS,
        {name: tensors[name].copy() for name in tensors if "classifier" not in name},
    )
    for command in (["predict", broken, "--text", "fine"], ["evaluate", broken, "--data", tiny / "dev.tsv"]):
        line = the_one_line(*run(*command))
        assert line.startswith(f"{broken}: classifier.weight, classifier.bias missing: ")
        assert "no trained head" in line
    assert run(*finetune_options(tiny, tmp_path / "out", model=broken))[0] == 0


def test_checkpoint_without_labels(broken, run):
    config = json.loads((broken / "config.json").read_text())
    del config["id2label"]
    (broken / "config.json").write_text(json.dumps(config))
    line = the_one_line(*run("predict", broken, "--text", "fine"))
    assert line.startswith(f"{broken / 'config.json'}: id2label missing: ")


# ---- The hub ----


@pytest.fixture
def hub_server(tmp_path, monkeypatch):
    with StandInHub("somebody/tiny-bert", {"config.json": b"{}"}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        yield server


@pytest.mark.parametrize("behaviour", ["hang", "close", "fail"])
def test_hub_that_does_not_answer(hub_server, run, monkeypatch, behaviour):
    monkeypatch.setattr(hub, "HUB_TIMEOUT", 0.5)
    hub_server.behaviour = behaviour
    line = the_one_line(*run("predict", "somebody/tiny-bert", "--text", "fine"))
    assert line.startswith("somebody/tiny-bert: there is no such directory, and the hub (http://127.0.0.1:")


def test_unknown_model_name(hub_server):
    done = run_process("predict", "somebody/tiny-bart", "--text", "fine")
    line = the_one_line(done.returncode, done.stdout, done.stderr)
    assert line.startswith(
        "somebody/tiny-bart: there is no such directory, and no such model on the hub (http"
    )


def test_name_that_no_hub_could_know(run):
    line = the_one_line(*run("predict", "./runs/nothing", "--text", "fine"))
    assert line.startswith("./runs/nothing: there is no such directory")


# ---- Bad options ----


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["finetune"],
        ["finetune", "--train", "a.tsv"],
        ["finetune", "--train", "a.tsv", "--out", "b", "--batchsize", "4"],
        ["finetune", "--train", "a.tsv", "--out", "b", "--epochs", "two"],
        ["finetune", "--train", "a.tsv", "--out", "b", "--schedule", "sawtooth"],
        ["evaluate", "model"],
        ["predict"],
        ["info", "--everything"],
        ["train"],
    ],
    ids=" ".join,
)
def test_unknown_and_missing_options(arguments, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, stdout, stderr = run(*arguments)
    assert status == 2 and stdout == "" and stderr.strip() and "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0, expected 1 or more"),
        ({"learning_rate": -1}, "learning_rate is -1.0, expected more than 0"),
        ({"learning_rate": "nan"}, "learning_rate is nan, expected more than 0"),
        ({"method": "frozen", "method_options": "layers=3"}, "cannot freeze 3 layers: the model has 2"),
        ({"max_length": 33}, "max_length is 33; .*config.json allows 32 tokens"),
        ({"max_length": 2}, "max_length 2 leaves no room for texts"),
    ],
)
def test_options_out_of_range(tiny, tmp_path, run, changes, message):
    assert re.match(message, the_one_line(*run(*finetune_options(tiny, tmp_path / "out", **changes))))


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_size_out_of_range(tiny, tmp_path, run, batch_size):
    for command in (
        ["predict", tiny / "model", "--text", "fine"],
        ["evaluate", tiny / "model", "--data", tiny / "dev.tsv"],
        finetune_options(tiny, tmp_path / "out"),
    ):
        line = the_one_line(*run(*command, "--batch-size", batch_size))
        assert line == f"batch_size is {batch_size}, expected 1 or more"


@pytest.mark.parametrize("given", [[], ["--text", "fine", "--file", "a.txt"]])
def test_predict_takes_texts_or_a_file(tiny, run, given):
    assert the_one_line(*run("predict", tiny / "model", *given)) == (
        "predict takes one of --text, --file, and --question with --context"
    )


def test_a_question_without_words_is_asked_all_the_same(tiny, run):
    _, _, error = run("predict", tiny / "model", "--question", "", "--context", "b")
    assert "predict takes one of" not in error


@pytest.mark.parametrize("rung", ["nonsense", "numba_cuda"])
def test_kernels_that_do_not_exist_here(tiny, rung):
    for arguments in (["predict", tiny / "model", "--text", "fine"], ["info"]):
        done = run_process(*arguments, environment={"MINIFT_KERNELS": rung})
        line = the_one_line(done.returncode, done.stdout, done.stderr)
        assert f"{rung!r}" in line or f"'{rung}_" in line  # the family, or its last rung
        assert "numba_cpu" in line


# ---- Runs that cannot go on ----


@pytest.mark.parametrize("rung", ["", "reference"], ids=["default kernels", "reference"])
def test_loss_that_is_no_number_stops_the_run(tiny, tmp_path, rung):
    options = finetune_options(tiny, tmp_path / "out", learning_rate=1e30, warmup=0)
    done = run_process(*options, environment={"MINIFT_KERNELS": rung})
    assert done.returncode == 2 and done.stdout == ""
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    bar, line = done.stderr.rstrip("\n").rsplit("\n", 1)
    assert "\nminift" not in bar
    assert re.match(
        r"minift: step 2: the loss became (nan|inf); the first operation whose output is not finite is \w+ in bert\.",
        line,
    )


@pytest.mark.parametrize("below", ["file", "file/deeper"])
def test_out_that_cannot_be_written(tiny, tmp_path, run, below):
    (tmp_path / "file").write_text("mine")
    line = the_one_line(*run(*finetune_options(tiny, tmp_path / below)))
    assert line.startswith(f"{tmp_path / below}: cannot be made a directory: ")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_name_that_the_system_refuses(tiny, tmp_path, run):
    for name, command in {
        "model": ["predict", "x" * 300, "--text", "fine"],
        "out": finetune_options(tiny, tmp_path / ("x" * 300)),
    }.items():
        assert "x" * 300 in the_one_line(*run(*command)), name


def test_a_run_is_not_replaced_by_mistake(tiny, tmp_path, run):
    out = tmp_path / "out"
    assert run(*finetune_options(tiny, out))[0] == 0
    line = the_one_line(*run(*finetune_options(tiny, out)))
    assert line.startswith(f"{out} already holds a run ({METRICS})")
    assert run(*finetune_options(tiny, out), "--overwrite")[0] == 0


# ---- A full disk ----


@pytest.fixture
def stopped(tiny, tmp_path, monkeypatch) -> Path:
    """The directory of a run that was stopped after it had saved its state at step 3."""
    real = training_state.save

    def save_and_stop(*arguments):
        real(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_state, "save", save_and_stop)
        options = [str(option) for option in finetune_options(tiny, tmp_path / "out", save_every=3)]
        assert main(options) == 130
    return tmp_path / "out"


def assert_resumes_to_the_uninterrupted_end(tiny, tmp_path, out, run) -> None:
    assert run(*finetune_options(tiny, out, save_every=3), "--resume")[0] == 0
    assert run(*finetune_options(tiny, tmp_path / "whole", save_every=3))[0] == 0
    for name in (checkpoint.WEIGHTS, "tokenizer.json", "config.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not list(out.glob("*.tmp"))


def test_a_file_that_may_not_grow_leaves_the_last_checkpoint(tiny, tmp_path, stopped, run):
    """The system's limit on the size of a file stands for a full disk: the state is larger, the log is not."""
    resource = pytest.importorskip("resource", reason="this system has no such limit")
    good = (stopped / training_state.FILE).read_bytes()
    limit = 20_000
    assert len(good) > limit

    done = run_process(
        *finetune_options(tiny, stopped, save_every=3),
        "--resume",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"minift: {stopped / training_state.FILE}: cannot be written: File too large"
    )
    assert (stopped / training_state.FILE).read_bytes() == good and not list(stopped.glob("*.tmp"))
    assert_resumes_to_the_uninterrupted_end(tiny, tmp_path, stopped, run)


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint(tiny, tmp_path, stopped, run):
    """A real one: a file system in memory with room for the state, and not for the next one beside it."""
    good = (stopped / training_state.FILE).read_bytes()
    disk = Path(tempfile.mkdtemp(dir=tmp_path))
    size = int(1.5 * len(good))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system takes root")
    try:
        out = shutil.copytree(stopped, disk / "out")
        done = run_process(*finetune_options(tiny, out, save_every=3), "--resume")
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith(
            f"minift: {out / training_state.FILE}: cannot be written: "
        )
        assert "No space left on device" in done.stderr
        assert (out / training_state.FILE).read_bytes() == good and not list(out.glob("*.tmp"))
        rescued = shutil.copytree(out, tmp_path / "rescued")
    finally:
        subprocess.run(["umount", disk], check=True)
    assert_resumes_to_the_uninterrupted_end(tiny, tmp_path, rescued, run)
