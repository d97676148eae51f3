"""The report of a training: its numbers are the run's own, for every task, and a stopped run gives the same page."""

import itertools
import json
import re
import shlex
import socket
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from command import finetune_options, the_one_line
from test_question_answering import opinions
from test_token_classification import tagged
from test_train import config, log_lines, weights, without_seconds
from tiny import GOOD, rows, write_tsv

import minift
from minift import movement, report, train, training_state
from minift.data import Columns
from minift.movement import Movement
from minift.pretrain import PretrainingConfig, pretrain
from minift.report import Report
from minift.tasks import TASKS
from minift.train import begin, finetune
from minift.watch import watching


def data_of(directory) -> dict:
    page = (directory / report.FILE).read_text()
    return json.loads(
        re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1]
    )


def part_of(name: str) -> str:
    if name.startswith("bert.encoder.layer."):
        return f"layer {name.split('.')[3]}"
    return "embeddings" if name.startswith("bert.embeddings") else "head"


def norms_by_part(arrays) -> list[float]:
    sums = dict.fromkeys(["embeddings", "layer 0", "layer 1", "head"], 0.0)
    for name, values in arrays.items():
        sums[part_of(name)] += float(np.square(values, dtype=np.float64).sum())
    return [total**0.5 for total in sums.values()]


# ---- The numbers ----


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory, compiled):
    """A run of 16 steps, its metrics, and of each step the weights before it, its gradients, and the weights after."""
    steps = []
    real = train.AdamW.step
    chosen = config(tiny, tmp_path_factory.mktemp("report") / "out")
    names = [name for name, _ in begin(chosen).model.named_parameters()]

    def remembering(optimizer, *arguments):
        by_id = {id(each): name for name, each in watched.named_parameters()}
        before = {by_id[id(each)]: each.data.copy() for each in optimizer.parameters}
        gradients = {by_id[id(each)]: each.grad for each in optimizer.parameters}
        norm = real(optimizer, *arguments)
        steps.append(
            (before, gradients, {by_id[id(each)]: each.data.copy() for each in optimizer.parameters})
        )
        return norm

    real_begin = train.begin

    def keeping(options):
        nonlocal watched
        beginning = real_begin(options)
        watched = beginning.model
        return beginning

    watched = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.AdamW, "step", remembering)
        patch.setattr(train, "begin", keeping)
        metrics = finetune(chosen)
    assert len(steps) == 16 and set(steps[0][0]) == set(names)
    return chosen, metrics, steps


def test_curves_are_the_log(finished):
    chosen, _, _ = finished
    data, lines = data_of(chosen.out), log_lines(chosen.out)
    assert data["steps"] == data["total_steps"] == 16 and data["finished"] and data["steps_per_point"] == 1
    for name, values in data["curves"].items():
        np.testing.assert_allclose(values, [line[name] for line in lines], rtol=1e-6)


def test_measured_norms_are_those_of_gradients_updates_and_weights(finished):
    chosen, _, steps = finished
    data = data_of(chosen.out)
    assert data["parts"] == ["embeddings", "layer 0", "layer 1", "head"] and data["trained"] == [True] * 4
    assert [one["step"] for one in data["measured"]] == [4, 8, 12, 16]
    for one in data["measured"]:
        before, gradients, after = steps[one["step"] - 1]
        update = {name: after[name].astype(np.float64) - before[name] for name in before}
        np.testing.assert_allclose(one["gradient"], norms_by_part(gradients), rtol=1e-5)
        np.testing.assert_allclose(one["weight"], norms_by_part(before), rtol=1e-5)
        np.testing.assert_allclose(one["update"], norms_by_part(update), rtol=1e-4)


def test_how_far_each_part_moved(finished):
    chosen, _, steps = finished
    start, end = steps[0][0], steps[-1][2]
    moved = {name: end[name].astype(np.float64) - start[name] for name in start}
    data = data_of(chosen.out)
    found = np.array(data["moved"])
    np.testing.assert_allclose(found[:, 0], norms_by_part(moved), rtol=1e-4)
    np.testing.assert_allclose(found[:, 1], norms_by_part(start), rtol=1e-5)
    assert data["moved_at"] == 16


def test_before_and_after_are_what_the_models_say(finished):
    chosen, metrics, _ = finished
    data = data_of(chosen.out)
    dev = minift.Dataset(chosen.dev)
    texts, labels = zip(*(dev[row] for row in range(len(dev))), strict=True)
    said = {}
    for side, model in (("before", begin(chosen).model), ("after", minift.load(chosen.out))):
        said[side] = [each.label for each in model.predict(list(texts))]
        pairs = Counter(zip(labels, said[side], strict=True))
        names = ["negative", "positive"]
        expected = [[pairs[right, told] for told in names] for right in names]
        assert data["outcomes"][side] == {"rows": names, "columns": names, "counts": expected}
        assert data["metrics"][side]["accuracy"] == pytest.approx(metrics[side]["accuracy"], rel=1e-6)
        assert "seconds" not in data["metrics"][side]
    differ = [row for row in range(len(texts)) if said["before"][row] != said["after"][row]]
    changed = data["changed"]
    assert changed["count"] == len(differ) > 0 and changed["of"] == 30
    assert Counter(each["text"] for each in changed["examples"]) == Counter(texts[row] for row in differ)
    for each in changed["examples"]:
        row = texts.index(each["text"])
        assert (each["expected"], each["before"], each["after"]) == (
            labels[row],
            said["before"][row],
            said["after"][row],
        )
        assert (each["gain"] > 0) == (each["after"] == each["expected"])
    gains = [abs(each["gain"]) for each in changed["examples"]]
    assert gains == sorted(gains, reverse=True)


def test_the_data_is_that_of_the_files(finished):
    chosen, _, _ = finished
    data = data_of(chosen.out)["data"]
    train_set, model = minift.Dataset(chosen.train), minift.load(chosen.out)
    texts, labels = zip(*(train_set[row] for row in range(len(train_set))), strict=True)
    lengths = [model.encode(text).tokens for text in texts]
    counts, edges = data["lengths"]["counts"], data["lengths"]["edges"]
    assert counts == [
        sum(low <= length < high for length in lengths) for low, high in itertools.pairwise(edges)
    ]
    assert (data["counted"], data["longest"], data["median"]) == (60, max(lengths), np.median(lengths))
    assert data["balance"]["train"] == dict(sorted(Counter(labels).items()))
    assert sum(data["balance"]["dev"].values()) == 30 and data["truncated"] == 0


def test_truncated_texts_are_told(tiny, tmp_path):
    write_tsv(tmp_path / "long.tsv", [("good " * 50, "positive"), ("bad", "negative")])
    finetune(config(tiny, tmp_path / "out", train=tmp_path / "long.tsv", dev=None, epochs=1))
    data = data_of(tmp_path / "out")
    assert data["data"]["truncated"] == 1 and data["data"]["longest"] == data["data"]["max_length"] == 32
    assert data["finished"] and data["metrics"] == {"before": None, "after": None} and data["changed"] is None


def test_the_command_gives_the_same_run_again(tiny, tmp_path, run):
    odd = tmp_path / "a folder"
    chosen = config(
        tiny, odd, method="lora", method_options=("rank=2", "alpha=4"), epochs=1, label_smoothing=0.1
    )
    finetune(chosen)
    program, *arguments = shlex.split(data_of(odd)["command"])
    before, lines = weights_of_part(odd), without_seconds(log_lines(odd))
    assert program == "minift" and run(*arguments, "--overwrite")[0] == 0
    assert without_seconds(log_lines(odd)) == lines
    for name, values in weights_of_part(odd).items():
        np.testing.assert_array_equal(values, before[name])


def weights_of_part(directory) -> dict[str, np.ndarray]:
    return {name: each.numpy().copy() for name, each in minift.load(directory).named_parameters()}


# ---- What is frozen ----


def test_a_frozen_part_stands_still(tiny, tmp_path):
    finetune(config(tiny, tmp_path / "out", method="frozen", method_options=("layers=1",), epochs=1))
    data = data_of(tmp_path / "out")
    assert data["trained"] == [False, False, True, True]
    assert data["moved"][:2] == [[0, 0], [0, 0]] and all(change > 0 for change, _ in data["moved"][2:])
    for one in data["measured"]:
        assert one["gradient"][:2] == one["update"][:2] == [0, 0] and min(one["gradient"][2:]) > 0


def test_a_part_that_is_unfrozen_later_moves_from_then_on(tiny, tmp_path):
    finetune(config(tiny, tmp_path / "out", method="ulmfit", epochs=2))
    data = data_of(tmp_path / "out")
    last_layer = {one["step"]: one["update"][2] for one in data["measured"]}
    assert all((update > 0) == (step > 8) for step, update in last_layer.items())


@pytest.mark.parametrize(("steps", "columns"), [(1, 1), (5, 2), (16, 4), (100, 12), (10_000, 64)])
def test_a_run_of_any_length_has_a_bounded_number_of_columns(tiny, steps, columns):
    stride = Movement(minift.load(tiny / "model"), steps).stride
    assert steps // stride == pytest.approx(columns, abs=1) and steps // stride <= movement.COLUMNS
    assert stride >= movement.EVERY or steps < movement.EVERY * movement.FEWEST


# ---- A run that was stopped ----


@pytest.mark.parametrize("stop", [4, 13])
def test_a_run_that_was_stopped_has_the_report_of_one_that_was_not(tiny, tmp_path, monkeypatch, stop):
    whole = config(tiny, tmp_path / "whole", save_every=3)
    finetune(whole)
    parts = replace(whole, out=tmp_path / "parts")
    real, calls = training_state.save, []

    def save_and_stop(*arguments):
        real(*arguments)
        calls.append(1)
        if len(calls) == stop // 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(training_state, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        finetune(parts)
    monkeypatch.setattr(training_state, "save", real)
    written = (parts.out / report.FILE).exists()
    assert written == (stop > 8), "the first page comes after the first epoch"
    if written:
        halfway = data_of(parts.out)
        assert not halfway["finished"] and halfway["steps"] == 8 and halfway["metrics"]["before"]
    finetune(replace(parts, resume=True))
    one, other = data_of(whole.out), data_of(parts.out)
    assert one.pop("command") != other.pop("command")  # another directory
    assert one == other


# ---- Every task ----


def task_files(task: str, tiny, tmp_path):
    """(model, train, dev) of a small run of the task."""
    made = []
    for name, count, seed in (("train", 60, 1), ("dev", 30, 2)):
        texts = [text for text, _ in rows(count, seed)]
        conversations = [json.dumps({"instruction": text[:6], "output": text[:4]}) for text in texts]
        moods = ["warm" * bool(GOOD & set(text.split())) for text in texts]
        if task == "question-answering":
            made.append(opinions(tmp_path / f"{name}.json", count, seed, impossible=True))
            continue
        ending, lines = {
            "text-classification": ("tsv", ["text\tlabel", *(f"{text}\t{len(text) % 3}" for text in texts)]),
            "multi-label": ("tsv", ["text\tlabels", *map("{}\t{},x".format, texts, moods)]),
            "text-regression": ("tsv", ["text\tscore", *(f"{text}\t{len(text)}" for text in texts)]),
            "token-classification": ("conll", tagged(count, seed)),
            "fill-mask": ("txt", [" . ".join(texts)]),
            "text-generation": ("txt", [" . ".join(texts)]),
            "instruction-tuning": ("jsonl", conversations),
        }[task]  # fmt: skip
        path = tmp_path / f"{name}.{ending}"
        path.write_text("\n".join(lines) + "\n")
        made.append(path)
    if task not in ("text-generation", "instruction-tuning"):
        return tiny / "body", *made
    shape = dict(layers=2, heads=2, width=16, context=64, tokens="characters", family="gpt2")
    (tmp_path / "all.txt").write_text(" . ".join(text for text, _ in rows(60, 1)) + "#InstructionResponse:\n")
    pretrain(PretrainingConfig(train=tmp_path / "all.txt", out=tmp_path / "gpt2", **shape))
    assert data_of(tmp_path / "gpt2")["finished"], "pre-training has its report"
    return tmp_path / "gpt2", *made


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_page_that_makes_sense(task, tiny, tmp_path, compiled):
    model, train_file, dev_file = task_files(task, tiny, tmp_path)
    changes = dict(task=task, model=str(model), train=train_file, dev=dev_file, epochs=1)
    metrics = finetune(config(tiny, tmp_path / "out", **changes))
    data = data_of(tmp_path / "out")
    for side in ("before", "after"):
        expected = {name: value for name, value in metrics[side].items() if name != "seconds"}
        assert data["metrics"][side] == pytest.approx(expected, rel=1e-6)
        table = data["outcomes"][side]
        counts = np.array(table["counts"])
        assert counts.shape == (len(table["rows"]), len(table["columns"])) and counts.min() >= 0
    # What was right does not depend on what is said.
    before, after = (np.array(data["outcomes"][side]["counts"]) for side in ("before", "after"))
    np.testing.assert_array_equal(before.sum(axis=1), after.sum(axis=1))
    examples = TASKS[task].read(dev_file, Columns())
    counted = {
        "token-classification": lambda: sum(map(len, examples.tags)),
        "multi-label": lambda: 2 * len(examples),
        "fill-mask": None,
        "text-generation": None,
        "instruction-tuning": None,
    }.get(task, lambda: len(examples))
    assert counted is None or after.sum() == counted()
    assert data["changed"]["count"] > 0 and data["changed"]["of"] == metrics["after"]["examples"]
    for each in data["changed"]["examples"]:
        assert each["text"] and each["before"] != each["after"]
    balance = data["data"]["balance"]["dev"]
    if task in ("text-classification", "text-regression", "question-answering", "token-classification"):
        assert list(balance.values()) == [count for count in after.sum(axis=1)]
    assert bool(balance) == (counted is not None)


# ---- The page is bounded, and alone ----


def test_a_long_run_s_curves_are_means_of_several_steps(monkeypatch):
    monkeypatch.setattr(report, "POINTS", 4)
    assert report.thinned([1.0, 2, 3, 4, 5, 6, 7, 8, 9], 3) == [2, 5, 8]
    assert report.thinned([1.0, 3, float("inf"), 7], 2) == [2, None]


def test_many_labels_are_taken_together():
    names = [f"label {index}" for index in range(20)]
    counts = np.diag(np.arange(1, 21)) + 1
    table = report.drawn({"rows": names, "columns": names, "counts": counts.tolist()})
    assert table is not None and len(table["rows"]) == report.SIDE and table["rows"] == table["columns"]
    assert table["rows"][-1] == "9 others" and table["rows"][0] == "label 9"
    assert np.sum(table["counts"]) == counts.sum()
    assert np.array(table["counts"])[0, 0] == counts[9, 9]
    assert np.array(table["counts"])[-1, -1] == counts[:9, :9].sum()
    assert report.fewer(dict.fromkeys(names, 2))["9 others"] == 18


def test_the_page_asks_nobody_for_anything(tiny, tmp_path):
    hostile = [("good </script><script>alert(1)</script>", "positive"), ("bad", "<b>negative</b>")]
    write_tsv(tmp_path / "train.tsv", hostile * 8)
    write_tsv(tmp_path / "dev.tsv", hostile * 8)
    files = dict(model=str(tiny / "body"), train=tmp_path / "train.tsv", dev=tmp_path / "dev.tsv")
    finetune(config(tiny, tmp_path / "out", **files))
    page = (tmp_path / "out" / report.FILE).read_text()
    assert not re.findall(r"(?:src|href)=|url\((?!#)|@import|\bfetch\(", page)
    assert re.findall(r"https?://[^\s\"']+", page) == ["http://www.w3.org/2000/svg"] * page.count("http://")
    assert "<script>alert" not in page and "<b>negative" not in page
    assert any("alert(1)" in each["text"] for each in data_of(tmp_path / "out")["changed"]["examples"])


# ---- Live ----


@pytest.fixture
def running(tiny, tmp_path) -> Report:
    """The report of a run that has made one step."""
    chosen = config(tiny, tmp_path / "out")
    start = begin(chosen)
    found = Report(start.model, Movement(start.model, 16), start.train_set, start.dev_set, chosen, 16)
    found.add({"step": 1, "loss": 0.5, "learning_rate": 1e-3, "grad_norm": 2.0})
    return found


def test_the_report_is_served_to_this_machine_alone(running, capsys, monkeypatch):
    monkeypatch.setattr("minift.watch.LAST_SECONDS", 0.1)
    with watching(running, 0):
        [address] = re.findall(r"watch it at (http://127\.0\.0\.1:\d+/)\n", capsys.readouterr().err)
        page = urllib.request.urlopen(address).read().decode()
        assert page == running.html("live") and "fetch(" in page
        running.add({"step": 2, "loss": 0.25, "learning_rate": 1e-3, "grad_norm": 2.0})
        data = json.load(urllib.request.urlopen(address + "data.json"))
        assert data["curves"]["loss"] == [0.5, 0.25] and not data["finished"]
        for path, headers, status in (("secret", {}, 404), ("", {"Host": "evil.example"}, 403)):
            with pytest.raises(urllib.error.HTTPError, match=str(status)):
                urllib.request.urlopen(urllib.request.Request(address + path, headers=headers))
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address)


def test_a_port_that_cannot_be_had(tiny, tmp_path, run):
    options = [*finetune_options(tiny, tmp_path / "out"), "--watch", "--port"]
    assert the_one_line(*run(*options, 70000)) == "port is 70000, expected 0 to 65535"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        _, _, stderr = run(*options, port)
    assert stderr.splitlines()[-1] == (
        f"minift: port {port} of 127.0.0.1 cannot be used for --watch: Address already in use"
    )


# ---- TensorBoard ----


def events_in(directory) -> dict[str, dict[int, float]]:
    """The scalars of a directory's event files, by name and step; later files' purges done as TensorBoard does."""
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found: dict[str, dict[int, float]] = {}
    for path in sorted(directory.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:  # a record: its length in 8 bytes, their checksum in 4, the record, its checksum in 4
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == SessionLog.START:
                for values in found.values():
                    for step in [step for step in values if step >= event.step]:
                        del values[step]
            for value in event.summary.value:
                values = found.setdefault(value.tag, {})
                assert event.step not in values, "a step that was taken again is shown once"
                values[event.step] = value.simple_value
    return found


def test_events_are_the_log(tiny, tmp_path, monkeypatch):
    chosen = config(tiny, tmp_path / "out", tensorboard=True, save_every=5)
    real = train.AdamW.step
    calls = iter(range(100))

    def interrupted(*arguments):
        if next(calls) == 7:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.AdamW, "step", interrupted)
        finetune(chosen)
    metrics = finetune(replace(chosen, resume=True))
    found = events_in(chosen.out)
    for name in ("loss", "learning_rate", "grad_norm"):
        expected = {line["step"]: line[name] for line in log_lines(chosen.out)}
        assert found[f"train/{name}"] == pytest.approx(expected, rel=1e-6)
    dev = {0: metrics["before"]["accuracy"], 16: metrics["after"]["accuracy"]}
    assert found["dev/accuracy"] == pytest.approx(dev)


def test_without_tensorboardx(tiny, tmp_path, run, monkeypatch):
    monkeypatch.setattr("minift.tensorboard.find_spec", lambda name: None)
    found = the_one_line(*run(*finetune_options(tiny, tmp_path / "out"), "--tensorboard"))
    assert found == "--tensorboard needs tensorboardX: pip install 'minift[tensorboard]'"
    assert not (tmp_path / "out").exists()


def test_the_run_s_weights_do_not_depend_on_who_looks(tiny, tmp_path, monkeypatch):
    finetune(config(tiny, tmp_path / "a"))
    monkeypatch.setattr(movement, "EVERY", 1)
    finetune(config(tiny, tmp_path / "b", watch=True, tensorboard=True))
    one, other = weights(tmp_path / "a"), weights(tmp_path / "b")
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
