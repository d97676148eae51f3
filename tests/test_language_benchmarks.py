"""The scripts behind masked pre-training in a new domain, word vectors, and instructions."""

import json
import re
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from test_word_vectors import write_vectors
from tiny import WORDS, rows, write_tsv

import minift

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """The scripts are importable as modules, in this file alone."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


# ---- Masked pre-training -------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["all of the encoder", "the head alone"])
def test_masked_pretraining(way, tiny, tmp_path, compiled):
    import masked_pretraining as script

    (tmp_path / "trec").mkdir()
    write_tsv(tmp_path / "trec" / "train.tsv", rows(60, seed=1))
    options = Namespace(epochs=1, model=str(tiny / "body"), data=tmp_path)
    run = script.run_of(way, 0, options)
    parts = script.parts_of(tmp_path)
    questions = [text for part in parts.values() for text in part]
    assert len(set(questions)) == len(questions) and run["sentences"] == len(parts["train"])
    result = {"run": run, **script.measure(run, tmp_path, tmp_path)}
    assert 1 < result["perplexity"] < 200 and 1 < result["unigram_perplexity"] <= len(WORDS) + 5
    assert f"| minilm, {way} |" in script.table([result])


def test_every_judged_word_is_hidden(tiny, tmp_path, compiled):
    """The losses are those of the right words where all that is asked for is masked."""
    import masked_pretraining as script

    from minift.tasks.documents import Documents

    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in rows(20, seed=3)))
    model = minift.load(tiny / "body", "fill-mask", new_head=True).eval()
    losses, words = script.losses_of(model, Documents(file))
    [batch] = model.batches(Documents(file), script.BATCH_SIZE)
    asked = batch.labels != -100
    batch.ids[asked] = model.mask
    logits = model(batch).numpy().astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(losses, -logs[np.arange(len(logs)), batch.labels[asked]], rtol=1e-4)
    assert words.tolist() == batch.labels[asked].tolist()


def test_the_unigram_model():
    """As often as counted, if that is what is asked; a word never counted costs more smoothing."""
    from masked_pretraining import best_unigram

    counts = np.array([6, 3, 1, 0])
    _, counted = best_unigram(counts, np.array([0] * 6 + [1] * 3 + [2]))
    assert counted == pytest.approx(
        np.exp(-(0.6 * np.log(0.6) + 0.3 * np.log(0.3) + 0.1 * np.log(0.1))), rel=1e-4
    )
    alpha, unseen = best_unigram(counts, np.array([3, 3]))
    assert alpha == 10 and unseen == pytest.approx((10 + 40) / 10)


# ---- Word vectors --------------------------------------------------------------------------------


def test_word_vectors(tmp_path, compiled, monkeypatch):
    import word_vectors as script

    for folder in ("sst2", "embeddings"):
        (tmp_path / folder).mkdir()
    write_tsv(tmp_path / "sst2" / "train_sentences.tsv", rows(40, seed=1))
    write_tsv(tmp_path / "sst2" / "dev.tsv", [("a good thing", "positive"), ("bad", "negative")])
    write_vectors(tmp_path / script.VECTORS)
    data = script.Sentiment(tmp_path)
    run = script.run_of("convolution, static", 0, Namespace(epochs=1), data)
    result = {"run": run, **script.measure(run, tmp_path, tmp_path)}
    assert result["unknown_share"] == 0.25  # "thing"
    # Of the windows 3, 4 and 5 of 8 numbers 100 each, and a classifier; not the vectors.
    assert result["trained_parameters"] == (3 + 4 + 5) * 8 * 100 + 300 + 2 * 301
    line = {
        "library": "minift",
        "task": "sst2",
        "seed": 0,
        "data": data.digest,
        "metrics": {"accuracy": 0.75},
    }
    other = {**line, "metrics": {"accuracy": 0.1}}
    others = {**other, "library": "transformers"}, {**other, "task": "trec"}
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, (line, *others))))
    monkeypatch.setattr(script, "MINILM", tmp_path / "tasks.jsonl")
    table = script.table([result], data)
    assert f"| convolution, static | 10,502 | 0.003 | ~{result['seconds_an_epoch']:.1f} |" in table
    assert "| minilm, fine-tuned (`tasks.py`) | all | 5e-05 | | 0.7500 | 0: 0.7500 |" in table


# ---- Instructions --------------------------------------------------------------------------------


def test_no_word_and_no_answer_is_shared():
    from instruction_data import texts

    made = texts(0, entries=300, train=400, held_out=200)
    assert made == texts(0, entries=300, train=400, held_out=200) and made != texts(1, 300, 400, 200)
    answers = [{answer for _, answer in part} for part in (made.train, made.held_out)]
    asked = [{question for question, _ in part} for part in (made.train, made.held_out)]
    assert answers[0].isdisjoint(answers[1]) and asked[0].isdisjoint(asked[1])
    assert len(asked[0]) == 400 and len(asked[1]) == 200
    # A held-out answer is a change of its word, and no entry of the dictionary is about that word.
    headings = set(re.findall(r"\w+", " ".join(text.split("\n")[0] for text in made.plain)))
    for question, answer in made.held_out:
        if question.startswith("Spell"):
            assert f" {answer[::-1]} " in question and answer[::-1] not in headings


def test_a_held_out_answer_that_training_has_is_drawn_anew(monkeypatch):
    """Two words that differ in their first letter alone have one answer where that is dropped."""
    import instruction_data

    words = iter(["abc", "dbc", "ebx"])
    monkeypatch.setattr(instruction_data, "made_up", lambda generator: next(words))
    drop = [change for change in instruction_data.CHANGES if change.of("abc") == "bc"]
    monkeypatch.setattr(instruction_data, "CHANGES", tuple(drop))
    made = instruction_data.texts(0, entries=0, train=1, held_out=1)
    assert [answer for _, answer in made.train + made.held_out] == ["bc", "bx"]


def test_the_dictionary_has_every_character_of_the_instructions():
    from instruction_data import texts

    from minift.tasks.instruction_tuning import InstructionTuning

    made = texts(0, entries=300, train=400, held_out=200)
    asked = "".join(question + answer for question, answer in made.train + made.held_out)
    assert set(asked + InstructionTuning.instruction_template) - set("{}") <= set("".join(made.plain))


def test_the_nearest_instruction():
    from instruction_data import nearest

    train = [("Shout oruk!", "ORUK"), ("Shout tebu!", "TEBU"), ("Repeat tebo.", "tebotebo")]
    assert nearest("Shout tebo!", train) == ("Shout tebu!", "TEBU")
    assert nearest("Repeat orul.", train) == ("Repeat tebo.", "tebotebo")


def test_the_two_mistakes_are_what_they_say():
    import instructions as script

    from minift.tasks import TASKS

    inputs = [np.array([1, 2, 3, 4]), np.array([5, 6, 7])]
    targets = [np.array([-100, -100, 4, 9]), np.array([-100, 7, 9])]

    def pack(way):
        task = script.WAYS[way].task
        return task.pack(task.__new__(task), inputs, targets)

    right = pack("the response in the loss")
    assert right.labels.tolist() == [-100, -100, 4, 9, -100, 7, 9]
    prompt = pack("the prompt in it, too")
    assert prompt.labels.tolist() == [2, 3, 4, 9, 6, 7, 9]
    assert (prompt.ids == right.ids).all() and prompt.offsets.tolist() == right.offsets.tolist() == [0, 4, 7]
    leaking = pack("each text sees those before it")
    assert leaking.segments.tolist() == [[0, 7]] and leaking.positions.tolist() == list(range(7))
    assert (leaking.ids == right.ids).all() and (leaking.labels == right.labels).all()
    with script.tuned_as(script.Leaking):
        assert TASKS[script.TASK] is script.Leaking
    assert TASKS[script.TASK] is script.InstructionTuning


def test_a_short_run_of_instructions(tmp_path, compiled):
    """All ways begin with the same weights but the last, and differ after one epoch."""
    import instructions as script

    run = script.run_of(0, layers=1, width=16, entries=64, sentences=40, held_out=20, epochs=1)
    result = {"run": run, **script.measure(run, tmp_path, tmp_path)}
    assert result["copying"] == 0 and set(result["ways"]) == set(script.WAYS)
    losses = {way["response_loss"] for way in result["ways"].values()}
    assert len(losses) == 4 and all(0 < loss < 10 for loss in losses)
    table = script.table([result])
    way = result["ways"]["the prompt in it, too"]
    assert f"| the prompt in it, too | {way['exact_match']:.3f} | {way['response_loss']:.3f} |" in table
