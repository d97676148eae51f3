"""Instruction tuning: which tokens are asked for, what counts as a match, and what is refused."""

import copy
import json

import numpy as np
import pytest
from command import the_one_line

import minift
from minift.cli import main
from minift.models import MODELS
from minift.models.architecture import initialize
from minift.pretrain import PretrainingConfig, learn_tokenizer, new_shape
from minift.tasks.instruction_tuning import Instructions, InstructionTuning
from minift.tasks.text_generation import TextGeneration
from minift.train import TrainingConfig

ALPHABET = "abcdefghijklmnopqrstuvwxyz .:#\nIR>"
CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def model(tmp_path):
    config = PretrainingConfig(
        tmp_path / "text", tmp_path, tokens="characters", layers=1, heads=2, width=32, context=64
    )
    minift.manual_seed(0)
    tokenizer = learn_tokenizer([ALPHABET], config)
    model = InstructionTuning(MODELS["gpt2"], new_shape(config, tokenizer), None, tokenizer)
    model.instruction_template = "I:{instruction}R:"
    initialize(dict(model.named_parameters()), 0.1)
    return model


def test_only_the_response_is_asked_for(model, tmp_path):
    path = write(tmp_path / "a.jsonl", [{"instruction": "do", "input": "it", "output": "yes"}])
    [batch] = model.batches(Instructions(path), 1)
    pieces = model.tokenizer.pieces
    assert batch.ids.tolist() == pieces("I:do\n\nitR:yes")
    response = [*pieces("yes"), model.end_of_text]
    assert batch.labels.tolist() == [-100] * (len(batch.ids) - 4) + response
    assert len(model(batch)) == batch.targets == 4


def test_a_chat_template_comes_first(model, tmp_path):
    model.tokenizer.config["chat_template"] = CHAT
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    path = write(tmp_path / "a.jsonl", [{"messages": [{"role": "system", "content": "be"}, *messages]}])
    [batch] = model.batches(Instructions(path), 1)
    text = "system: be\nuser: hi\nassistant: yes"
    assert batch.ids.tolist() == model.tokenizer.pieces(text)
    assert batch.targets == 4
    model.tokenizer.config["chat_template"] = "{{ raise_exception('no') }}"
    with pytest.raises(minift.InputError, match="the chat template cannot be filled: no"):
        model.prompt("hi")


def test_a_response_matches_where_greedy_generation_writes_it(model, tmp_path):
    instructions = [f"say {letter}" for letter in "abcdefgh"]
    written = model.generate(instructions, 3)
    model.tokenizer.max_length = 64
    records = [
        {"instruction": instruction, "output": text}
        for instruction, text in zip(instructions, written, strict=True)
    ]
    examples = Instructions(write(tmp_path / "a.jsonl", records))
    scores = []
    for batch in model.eval().batches(examples, 3):
        scores += model.decode(model(batch).numpy(), batch)
    for score, text in zip(scores, written, strict=True):
        # The end of text was not written, unless fewer than three tokens came.
        assert not score.ranks[:-1].any() and len(score.ranks) == len(model.tokenizer.pieces(text)) + 1


def test_long_instructions_are_left_out_and_long_responses_cut(model, tmp_path, caplog):
    model.tokenizer.max_length = 12
    records = [
        {"instruction": "a" * 20, "output": "b"},
        {"instruction": "a", "output": "b" * 20},
        {"instruction": "a", "output": "b"},
    ]
    examples = Instructions(write(tmp_path / "a.jsonl", records))
    metrics = minift.evaluate(model, examples)
    assert len(examples) == 2 and examples.complete == [False, True]
    assert metrics["examples"] == 2 and metrics["response_loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert caplog.messages == [
        f"{tmp_path / 'a.jsonl'}: 1 of 3 instructions leave no room for a response in 12 tokens, left out"
    ]
    examples = Instructions(write(tmp_path / "b.jsonl", records[:1]))
    with pytest.raises(minift.InputError, match="no instruction leaves room for a response in 12 tokens"):
        model.batches(examples, 1)


def test_another_model_makes_its_own_examples(model, tmp_path):
    """One set of examples, judged by a model, then with a shorter limit, by another template and another vocabulary."""
    records = [{"instruction": "a", "output": "b" * 20}, {"instruction": "abc", "output": "bc"}]
    path = write(tmp_path / "a.jsonl", records)
    examples = Instructions(path)

    def change_template():
        model.instruction_template = "R:{instruction}I:"

    def change_vocabulary():
        config = PretrainingConfig(tmp_path / "text", tmp_path, tokens="characters", context=64)
        model.tokenizer = learn_tokenizer([ALPHABET[10:] + "ab"], config)

    minift.evaluate(model, examples)
    for change in (
        lambda: setattr(model.tokenizer, "max_length", 12), change_template, change_vocabulary,
    ):  # fmt: skip
        before = minift.evaluate(model, examples)["loss"]
        change()
        found, expected = minift.evaluate(model, examples), minift.evaluate(model, Instructions(path))
        assert found["loss"] == expected["loss"] != before
        assert found["exact_match"] == expected["exact_match"]


def test_batches_of_two_models_drawn_in_turn(model, tmp_path):
    records = [{"instruction": "do", "output": "b" * 20}, {"instruction": "abc", "output": "bc"}]
    examples = Instructions(write(tmp_path / "a.jsonl", records))
    other = copy.copy(model)
    other.instruction_template = "R:{instruction}I:"
    alone = [[batch.ids.tolist() for batch in each.batches(examples, 1)] for each in (model, other)]
    together = zip(model.batches(examples, 1), other.batches(examples, 1), strict=True)
    for number, pair in enumerate(together):
        assert [batch.ids.tolist() for batch in pair] == [alone[0][number], alone[1][number]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON: Expecting property name .*, at column"),
        (
            '{"instruction": "a"}',
            "line 2: 'instruction' and 'output', or 'messages', were expected, found instruction",
        ),
        ("[1]", "line 2: .* found list"),
        ('{"instruction": 3, "output": "a"}', "line 2: instruction, input and output were to be texts"),
        (
            '{"messages": ["a", "b"]}',
            "line 2: messages were to be a list of objects with a role and a content",
        ),
        ('{"messages": [{"role": "user", "content": "a"}]}', "line 2: the last of two or more messages"),
        (
            '{"instruction": "a \\ud800", "output": "b"}',
            r"line 2: a text holds '\\ud800', which is no character",
        ),
    ],
)
def test_broken_lines(line, message, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "output": "b"}\n' + line + "\n")
    with pytest.raises(minift.InputError, match=message):
        Instructions(tmp_path / "a.jsonl")


def test_predict_reads_what_the_task_is_trained_on(model, tmp_path, run):
    model.save(tmp_path / "model")
    line = {"instruction": "do", "input": "it", "output": "yes"}
    asked = {"messages": [{"role": "user", "content": "do\n\nit"}, {"role": "assistant", "content": "yes"}]}
    path = write(tmp_path / "a.jsonl", [line, {"instruction": "do\n\nit"}, asked])
    status, printed, stderr = run("predict", tmp_path / "model", "--file", path)
    assert status == 0, stderr
    first, *others = printed.split("\n")
    assert first.endswith("  do\\n\\nit") and others == [first, first, ""]
    printed = run("predict", tmp_path / "model", "--file", path, "--json")[1]
    said = json.loads(printed.splitlines()[0])
    assert said["text"] == [{"role": "user", "content": "do\n\nit"}]
    assert said["continuation"] == str(model.predict([("do", "it")])[0])
    path = write(tmp_path / "b.jsonl", [{"messages": []}])
    assert the_one_line(*run("predict", tmp_path / "model", "--file", path)) == (
        f"{path}, line 1: there is no message to answer"
    )


def test_conversations_without_a_template(model):
    with pytest.raises(minift.InputError, match="there is no chat_template, which conversations need"):
        model.prompt_of([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])


def test_tuning_a_small_model_on_a_task_of_its_size(model, tmp_path, capsys):
    """From a new model: repeat the letter. It learns its responses, which a saved and loaded model still gives."""
    model.save(tmp_path / "model")
    letters = "abcdefghijklmnop"
    records = [{"instruction": f"say {letter}", "output": letter} for letter in letters]
    path = str(write(tmp_path / "train.jsonl", records))
    arguments = ["--task", "instruction-tuning", "--model", str(tmp_path / "model"), "--epochs", "60"]
    arguments += ["--train", path, "--dev", path, "--out", str(tmp_path / "out"), "--learning-rate", "1e-2"]
    assert main(["finetune", *arguments, "--batch-size", "16"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["before"]["exact_match"] < 0.1 and metrics["after"]["exact_match"] > 0.9
    tuned = minift.load(tmp_path / "out")
    assert isinstance(tuned, InstructionTuning)
    right = [tuned.generate([f"say {letter}"], 5) == [letter] for letter in letters]
    assert np.mean(right) == metrics["after"]["exact_match"]
    assert type(minift.load(tmp_path / "out", "text-generation")) is TextGeneration


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_conversations_leave_room_for_what_stands_in_front(model, method, tmp_path):
    model.save(tmp_path / "model")
    path = write(tmp_path / "train.jsonl", [{"instruction": "say it", "output": "abc" * 40}])
    config = TrainingConfig(
        model=str(tmp_path / "model"), task="instruction-tuning", train=path, dev=path, out=tmp_path / "out",
        epochs=1, method=method, method_options=("tokens=4",),
    )  # fmt: skip
    told = minift.finetune(config)["after"]
    found = minift.evaluate(minift.load(tmp_path / "out"), Instructions(path))
    assert found["loss"] == pytest.approx(told["loss"], rel=1e-6)
