"""Fine-tuning: it learns, it repeats itself, it survives, and what is frozen costs nothing."""

import json
import shutil
import socket
from dataclasses import replace

import numpy as np
import pytest
from tiny import CONFIG, make_model, rows, write_tsv

import minift
from minift import checkpoint, train, training_state
from minift.errors import DivergedError
from minift.train import TrainingConfig, finetune


def config(tiny, out, **changes) -> TrainingConfig:
    plain = TrainingConfig(
        model=str(tiny / "model"),
        train=tiny / "train.tsv",
        dev=tiny / "dev.tsv",
        out=out,
        epochs=2,
        batch_size=8,
        learning_rate=3e-3,
    )
    return replace(plain, **changes)


def weights(directory) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in checkpoint.read_tensors(directory).items()}


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def log_lines(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / train.LOG).read_text().splitlines()]


def without_seconds(lines):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_it_learns_and_writes_what_it_promises(tiny, tmp_path):
    write_tsv(tmp_path / "train.tsv", rows(200, seed=1))
    metrics = finetune(config(tiny, tmp_path / "out", train=tmp_path / "train.tsv", epochs=6))
    assert metrics["after"]["accuracy"] >= 0.9 > metrics["before"]["accuracy"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    for when in ("before", "after"):
        assert metrics[when].keys() == {"accuracy", "macro_f1", "matthews", "loss", "examples", "seconds"}
        assert metrics[when]["examples"] == 30
    lines = log_lines(tmp_path / "out")
    assert [line["step"] for line in lines] == list(range(1, 151))  # 200 texts in batches of 8, 6 times
    assert lines[0].keys() == {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "seconds"}
    assert [line["epoch"] for line in lines[23:27]] == [1, 1, 2, 2]
    assert sum(line["tokens"] for line in lines) == metrics["tokens"]
    assert not (tmp_path / "out" / training_state.FILE).exists()


def test_the_written_model_is_the_evaluated_one(tiny, tmp_path):
    metrics = finetune(config(tiny, tmp_path / "out"))
    model = minift.load(tmp_path / "out")
    assert model.labels == ("negative", "positive")
    found = minift.evaluate(model, minift.Dataset(tiny / "dev.tsv"))
    assert found["accuracy"] == metrics["after"]["accuracy"]
    assert found["loss"] == pytest.approx(metrics["after"]["loss"], rel=1e-6)
    assert model.training, "evaluate gives the model back as it was"


@pytest.mark.parametrize("method", ["full", "lora"])
def test_going_on_from_a_classifier_begins_where_it_stands(tiny, tmp_path, method):
    """Whichever order its labels have, and also where the base model's have another."""
    model = make_model(tmp_path / "words", labels=("positive", "negative"))
    model.save(tmp_path / "model")
    texts = [text for text, _ in rows(30, seed=2)]
    said = [prediction.label for prediction in model.predict(texts)]
    path = write_tsv(tmp_path / "a.tsv", list(zip(texts, said, strict=True)))
    run = config(tiny, tmp_path / "out", model=str(tmp_path / "model"), train=path, dev=path, method=method)
    metrics = finetune(replace(run, epochs=1, learning_rate=1e-6))
    assert metrics["before"]["accuracy"] == metrics["after"]["accuracy"] == 1
    assert minift.evaluate(minift.load(run.out), minift.Dataset(path))["accuracy"] == 1


def test_a_part_may_have_other_labels_than_its_base_model(tiny, tmp_path):
    texts = [("good", "a"), ("bad", "b"), ("film", "c")]
    path = write_tsv(tmp_path / "a.tsv", texts)
    metrics = finetune(config(tiny, tmp_path / "out", train=path, dev=path, method="lora"))
    found = minift.evaluate(minift.load(tmp_path / "out"), minift.Dataset(path))
    assert found["loss"] == pytest.approx(metrics["after"]["loss"], rel=1e-6)


def test_one_label_alone_is_nothing_to_learn(tiny, tmp_path):
    path = write_tsv(tmp_path / "a.tsv", [("good", "pos"), ("fine", "pos")])
    with pytest.raises(minift.InputError, match=r"a.tsv: only one label, 'pos'; two or more are expected"):
        finetune(config(tiny, tmp_path / "out", train=path))
    write_tsv(path, [("good", "positive"), ("fine", "positive")])  # one of those that the model tells apart
    finetune(config(tiny, tmp_path / "out", train=path))


def test_same_seed_same_run_and_another_seed_another(tiny, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        finetune(config(tiny, tmp_path / name, seed=seed))
    assert_same_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert without_seconds(log_lines(tmp_path / "a")) == without_seconds(log_lines(tmp_path / "b"))
    assert any(
        (weights(tmp_path / "a")[name] != weights(tmp_path / "c")[name]).any()
        for name in weights(tmp_path / "a")
    )


@pytest.mark.parametrize("stop", [4, 8, 13])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tiny, tmp_path, monkeypatch, stop):
    """Stopped at step 4, 8 (the first epoch's last) or 13, with the state of steps 3, 6 or 12 at hand."""
    whole = config(tiny, tmp_path / "whole", save_every=3)
    finetune(whole)

    real = train.AdamW.step
    calls = iter(range(1, 100))

    def interrupted(*arguments):
        if next(calls) == stop:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(train.AdamW, "step", interrupted)
    parts = replace(whole, out=tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        finetune(parts)
    monkeypatch.setattr(train.AdamW, "step", real)
    assert len(log_lines(tmp_path / "parts")) == stop - 1, (
        "the log is ahead of the state, and will be cut back"
    )
    metrics = finetune(replace(parts, resume=True))

    assert_same_bits(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert without_seconds(log_lines(tmp_path / "parts")) == without_seconds(log_lines(tmp_path / "whole"))
    assert metrics["steps"] == 16


def test_a_finished_run_leaves_nothing_of_a_killed_save_behind(tiny, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{training_state.FILE}.tmp").write_bytes(b"half a st")
    finetune(config(tiny, tmp_path / "out", epochs=1))
    assert not list((tmp_path / "out").glob("*state*"))


def test_resume_without_a_state_begins_at_the_start(tiny, tmp_path):
    finetune(config(tiny, tmp_path / "a", resume=True))
    finetune(config(tiny, tmp_path / "b"))
    assert_same_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_a_finished_run_is_not_begun_anew_by_resuming(tiny, tmp_path):
    finetune(config(tiny, tmp_path / "out"))
    with pytest.raises(minift.InputError, match="holds a finished run; pass --overwrite"):
        finetune(config(tiny, tmp_path / "out", resume=True))


def stopped_run(tiny, out, monkeypatch, **changes) -> TrainingConfig:
    """A run that wrote its state at step 2 and stopped."""
    begun = config(tiny, out, save_every=2, **changes)
    with monkeypatch.context() as patch:
        real = training_state.save

        def save_and_stop(*arguments):
            real(*arguments)
            raise KeyboardInterrupt

        patch.setattr(training_state, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            finetune(begun)
    return begun


def test_a_run_cannot_go_on_with_other_options(tiny, tmp_path, monkeypatch):
    begun = stopped_run(tiny, tmp_path / "out", monkeypatch)
    with pytest.raises(minift.InputError, match=r"begun with learning_rate = 0.003, not 0.1"):
        finetune(replace(begun, resume=True, learning_rate=0.1))


@pytest.mark.parametrize("role", ["train", "dev"])
def test_a_run_cannot_go_on_with_other_data(tiny, tmp_path, monkeypatch, role):
    path = write_tsv(tmp_path / "data.tsv", rows(20, seed=1))
    begun = stopped_run(tiny, tmp_path / "out", monkeypatch, **{role: path})
    other = {"negative": "positive", "positive": "negative"}
    write_tsv(path, [(text, other[label]) for text, label in rows(20, seed=1)])
    with pytest.raises(minift.InputError, match=rf"begun with {role}_sha256 = '\w+', not '\w+'"):
        finetune(replace(begun, resume=True))


def test_a_run_goes_on_from_another_folder(tiny, tmp_path, monkeypatch):
    """The same files under other names: there the model as `model`, here in full."""
    monkeypatch.chdir(tiny)
    begun = stopped_run(tiny, tmp_path / "out", monkeypatch, model="model", train="train.tsv")
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny / "dev.tsv", tmp_path)
    same = replace(begun, resume=True, model=tiny / "model", train=tiny / "train.tsv", dev="dev.tsv")
    assert finetune(same)["steps"] == 16
    assert log_lines(tmp_path / "out")[0]["step"] == 1


def test_a_run_does_not_go_on_without_its_dev_set(tiny, tmp_path, monkeypatch):
    begun = stopped_run(tiny, tmp_path / "out", monkeypatch)
    with pytest.raises(minift.InputError, match=r"begun with dev_sha256 = '\w+', not None"):
        finetune(replace(begun, resume=True, dev=None))


def test_a_state_of_an_earlier_version_is_named(tiny, tmp_path, monkeypatch):
    begun = stopped_run(tiny, tmp_path / "out", monkeypatch)
    path = begun.out / training_state.FILE
    tensors = checkpoint.read_safetensors(path)
    state = json.loads(tensors.metadata["state"])
    del state["options"]["train_sha256"]
    checkpoint.write_tensors(path, dict(tensors), {"state": json.dumps(state)})
    with pytest.raises(minift.InputError, match=r"did not keep train_sha256; pass --overwrite to begin"):
        finetune(replace(begun, resume=True))


def test_a_run_is_not_lost_by_mistake(tiny, tmp_path, monkeypatch):
    begun = stopped_run(tiny, tmp_path / "out", monkeypatch)
    with pytest.raises(minift.InputError, match=r"already holds a run.*--resume or --overwrite"):
        finetune(begun)
    finetune(replace(begun, overwrite=True))
    with pytest.raises(minift.InputError, match="already holds a run"):
        finetune(begun)


@pytest.mark.parametrize("resume", [False, True])
def test_a_model_is_not_lost_by_mistake(tiny, tmp_path, resume):
    shutil.copytree(tiny / "model", tmp_path / "out")
    run = config(tiny, tmp_path / "out", resume=resume, epochs=1)
    with pytest.raises(
        minift.InputError, match=r"holds a model \(config.json, model.safetensors\); pass --overwrite"
    ):
        finetune(run)
    assert_same_bits(weights(tmp_path / "out"), weights(tiny / "model"))
    finetune(replace(run, overwrite=True))


def test_a_run_that_was_stopped_while_it_replaced_a_model_is_taken_up(tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny / "model", tmp_path / "out")

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.AdamW, "step", stop)
        finetune(config(tiny, tmp_path / "out", overwrite=True))
    finetune(config(tiny, tmp_path / "out", resume=True))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_does_not_replace_what_it_begins_with(tiny, tmp_path, overwrite):
    model = shutil.copytree(tiny / "model", tmp_path / "model")
    with pytest.raises(minift.InputError, match="model is the directory of the model to begin with"):
        finetune(config(tiny, tmp_path / "other" / ".." / "model", model=str(model), overwrite=overwrite))


def contents(directory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("fault", ["port", "dropout"])
def test_what_fails_before_its_first_step_replaces_nothing(tiny, tmp_path, fault):
    finetune(config(tiny, tmp_path / "out", epochs=1))
    before = contents(tmp_path / "out")
    with socket.create_server(("127.0.0.1", 0)) as busy:
        changes = {
            "port": {"watch": True, "port": busy.getsockname()[1]},
            "dropout": {"method": "lora", "method_options": ("dropout=2",)},
        }
        with pytest.raises(ValueError, match=r"cannot be used for --watch|dropout"):
            finetune(config(tiny, tmp_path / "out", overwrite=True, **changes[fault]))
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_runs_do_not_write_to_one_directory(tiny, tmp_path, overwrite):
    def begin_another(model, epoch):
        with pytest.raises(minift.InputError, match=r"train_log.jsonl: another process writes here"):
            finetune(config(tiny, tmp_path / "out", overwrite=overwrite))

    finetune(config(tiny, tmp_path / "out"), after_epoch=begin_another)
    assert [line["step"] for line in log_lines(tmp_path / "out")] == list(range(1, 17))


def test_a_run_that_ended_while_another_began_is_not_replaced(tiny, tmp_path, monkeypatch):
    begin = train.begin

    def begin_slowly(started):
        monkeypatch.undo()
        finetune(config(tiny, tmp_path / "out"))
        return begin(started)

    monkeypatch.setattr(train, "begin", begin_slowly)
    with pytest.raises(minift.InputError, match=r"already holds a run \(metrics.json\)"):
        finetune(config(tiny, tmp_path / "out"))


def test_a_damaged_state_is_named(tiny, tmp_path, monkeypatch):
    begun = stopped_run(tiny, tmp_path / "out", monkeypatch)
    path = begun.out / training_state.FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(minift.InputError, match=training_state.FILE):
        finetune(replace(begun, resume=True))


def test_loss_that_is_no_number_names_step_and_operation(tiny, tmp_path):
    with np.errstate(all="ignore"), pytest.raises(minift.InputError) as caught:
        finetune(config(tiny, tmp_path / "out", learning_rate=1e30, warmup=0.0, max_grad_norm=1e30))
    assert "step 2: the loss became" in str(caught.value)
    assert "first operation whose output is not finite is " in str(caught.value)
    assert "bert." in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_first_loss_that_is_no_number_is_not_the_rate_s_fault(tiny, tmp_path):
    model = minift.load(tiny / "model")
    model.classifier.weight.data[0, 0] = np.nan
    model.save(tmp_path / "model")
    with pytest.raises(DivergedError, match=r"step 1: .* so the data or the weights are at fault$"):
        finetune(config(tiny, tmp_path / "out", model=tmp_path / "model", dev=None))


@pytest.mark.parametrize(
    ("rate", "dev", "message"),
    [
        (1e39, True, "step 1: its update made .* no number. Try a lower learning rate"),
        (1e39, False, "step 1: its update made .* no number. Try a lower learning rate"),
        (1e30, True, "the loss on the dev set became (nan|inf). Try a lower learning rate"),
    ],
)
def test_a_last_update_that_leaves_the_numbers_is_no_success(tiny, tmp_path, rate, dev, message):
    one_step = config(tiny, tmp_path / "out", epochs=1, batch_size=100, learning_rate=rate)
    with np.errstate(all="ignore"), pytest.raises(DivergedError, match=message):
        finetune(one_step if dev else replace(one_step, dev=None))
    # Weights that are numbers are saved before they are judged, so that nothing is lost if that is interrupted.
    assert (tmp_path / "out" / checkpoint.WEIGHTS).exists() == (rate == 1e30)
    assert not (tmp_path / "out" / train.METRICS).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0, expected 1 or more"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"learning_rate": np.inf}, "learning_rate is inf, expected a finite number"),
        ({"warmup": 1.5}, "warmup is 1.5, expected a share"),
        ({"schedule": "foo"}, "schedule is 'foo', expected one of linear, cosine, constant"),
        ({"epochs": "1"}, "epochs is '1', expected int"),
        ({"epochs": 1.5}, "epochs is 1.5, expected int"),
        ({"learning_rate": "1e-3"}, "learning_rate is '1e-3', expected float"),
        ({"method_options": "layers=1"}, "method_options is 'layers=1', expected tuple"),
        ({"method": "frozen", "method_options": ("layers=3",)}, "cannot freeze 3 layers: the model has 2"),
        ({"max_length": 99}, "max_length is 99; .* allows 32 tokens"),
        ({"max_length": 3}, "max_length 3 leaves no room"),
    ],
)
def test_options_out_of_range(tiny, tmp_path, changes, message):
    with pytest.raises(minift.InputError, match=message):
        finetune(config(tiny, tmp_path / "out", **changes))


def test_paths_may_be_strings(tiny, tmp_path):
    named = {name: str(tiny / f"{name}.tsv") for name in ("train", "dev")}
    run = config(tiny, str(tmp_path / "out"), epochs=1, model=tiny / "model", **named)
    assert run == config(tiny, tmp_path / "out", epochs=1)
    assert finetune(run)["steps"] == 8


@pytest.mark.parametrize("warmup", [0.1, 1.0])
def test_a_run_of_one_step_trains(tiny, tmp_path, warmup):
    finetune(config(tiny, tmp_path / "out", dev=None, epochs=1, batch_size=100, warmup=warmup))
    [line] = log_lines(tmp_path / "out")
    assert line["learning_rate"] == 3e-3
    before, after = weights(tiny / "model"), weights(tmp_path / "out")
    assert (before["classifier.weight"] != after["classifier.weight"]).any()


def test_truncated_texts_are_counted(tiny, tmp_path):
    long = [("good " * 50, "positive"), ("bad", "negative")]
    write_tsv(tmp_path / "long.tsv", long)
    metrics = finetune(config(tiny, tmp_path / "out", train=tmp_path / "long.tsv", dev=None, epochs=3))
    assert metrics["truncated"] == 3
    assert metrics["before"] is None and metrics["after"] is None


# ---- Frozen costs nothing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_no_backward_runs_and_nothing_is_kept_below_the_frozen_layers(tmp_path, frozen):
    model = make_model(tmp_path)
    model.bert.freeze(frozen)
    texts = [text for text, _ in rows(5, seed=0)]
    batch = model.encode(texts)
    loss = minift.cross_entropy(model(batch), ["positive"] * 5)
    kept = kept_bytes_by_module(loss)
    ran = [step.node.module for step in loss.backward_steps()]

    layers = [f"bert.encoder.layer.{index}" for index in range(CONFIG.num_hidden_layers)]
    below = [*layers[:frozen], *(["bert.embeddings"] if frozen else [])]
    above = [*layers[frozen:], *([] if frozen else ["bert.embeddings"])]
    for module in below:
        assert not any(path.startswith(module) for path in ran), f"a backward ran in {module}"
        assert sum(size for path, size in kept.items() if path.startswith(module)) == 0
    for module in above:
        assert any(path.startswith(module) for path in ran)
        assert sum(size for path, size in kept.items() if path.startswith(module)) > 0
    # One layer's nodes: query, key, value, attention, 2 x (linear, dropout, layer norm), linear, gelu.
    assert sum(path.startswith("bert.encoder.layer") for path in ran) == 12 * (
        CONFIG.num_hidden_layers - frozen
    )
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == any(name.startswith(module) for module in below), name


def kept_bytes_by_module(tensor) -> dict[str, int]:
    """The bytes that the backward of each module's operations keeps, parameters aside."""
    kept: dict[str, int] = {}
    nodes, seen = [tensor.node], set()
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        for cell in node.backward.__closure__ or ():
            if isinstance(cell.cell_contents, np.ndarray):
                kept[node.module] = kept.get(node.module, 0) + cell.cell_contents.nbytes
        nodes.extend(parent for parent in node.parents if hasattr(parent, "parents"))
    return kept


def test_a_frozen_run_leaves_the_frozen_weights_alone(tiny, tmp_path):
    finetune(config(tiny, tmp_path / "out", method="frozen", method_options=("layers=1",)))
    before, after = weights(tiny / "model"), weights(tmp_path / "out")
    for name in before:
        frozen = name.startswith(("bert.embeddings", "bert.encoder.layer.0"))
        assert (before[name] == after[name]).all() == frozen, name
