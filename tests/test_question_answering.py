"""Question answering: SQuAD files, windows, the best span, answers in the original characters, the official scores."""

import json

import numpy as np
import pytest
from command import finetune_options, the_one_line
from tiny import BAD, CONFIG, GOOD, make_model, write_tokenizer

import minift
from minift import ops
from minift.tasks.question_answering import LOWEST, QuestionAnswering, best_span, rows_of_answer
from minift.tasks.squad import Questions, exact_match, normalized, word_f1
from minift.tokenizer import Tokenizer


def squad(path, *entries: tuple, context="the film was very good , the meal was dull"):
    """A file of questions about one context: each entry is (question, answers), or (question, None) for impossible."""
    qas = []
    for number, (question, answers) in enumerate(entries):
        found = [{"text": text, "answer_start": context.find(text)} for text in answers or []]
        entry = {"id": f"q{number}", "question": question, "answers": found}
        qas.append(entry | ({"is_impossible": True} if answers is None else {}))
    paragraphs = [{"context": context, "qas": qas}]
    path.write_text(json.dumps({"version": "x", "data": [{"title": "A_Title", "paragraphs": paragraphs}]}))
    return path


# ---- Files ----


def test_questions(tmp_path):
    path = squad(tmp_path / "a.json", ("what was good ?", ["film", "the film"]), ("who ?", None))
    questions = Questions(path)
    assert len(questions) == 2 and questions.some_are_impossible
    assert questions[0] == (
        ("what was good ?", "the film was very good , the meal was dull"),
        ((4, 8), (0, 8)),
    )
    assert questions.questions[0].answer_texts == ["film", "the film"] and questions[1][1] == ()


def test_an_answer_that_is_not_in_its_context(tiny, tmp_path, run):
    path = squad(tmp_path / "a.json", ("what ?", ["film"]))
    sound = path.read_text()
    for wrong, found in (
        (
            sound.replace('"text": "film"', '"text": "Film"'),
            "'Film' does not stand at character 4 of its context, nor anywhere",
        ),
        (
            sound.replace('"answer_start": 4', '"answer_start": 5'),
            "'film' does not stand at character 5 of its context; found 'ilm '",
        ),
        (
            sound.replace('"film"', '"dull"').replace('"answer_start": 4', '"answer_start": -4'),
            "'dull' does not stand at character -4 of its context",  # where Python would find it
        ),
    ):
        path.write_text(wrong)
        line = the_one_line(
            *run(*finetune_options(tiny, tmp_path / "out", task="question-answering", train=path))
        )
        assert line.startswith(f"{path}: question 'q0': the answer {found}")


def test_a_context_with_what_is_no_character(tmp_path):
    path = squad(tmp_path / "a.json", ("what ?", ["film"]), context="the film \ud800")
    with pytest.raises(minift.InputError) as caught:
        Questions(path)
    assert str(caught.value).startswith(
        f"{path}: 'context' of a paragraph of article 'A_Title' holds '\\ud800', which is no character"
    )


def test_a_file_cut_in_half(tmp_path):
    path = squad(tmp_path / "a.json", ("what ?", ["film"]))
    path.write_text(path.read_text()[:150])
    with pytest.raises(minift.InputError, match=r"a.json: line 1, column \d+: not JSON"):
        Questions(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "the file has no 'data': this is not the layout of SQuAD"),
        ('{"data": {}}', "'data' of the file was to be a list, found dict"),
        ('{"data": []}', "no questions in it"),
        ('{"data": [{"title": "T"}]}', "article 'T' has no 'paragraphs'"),
        ('{"data": [{"title": "T", "paragraphs": [{"qas": []}]}]}', "article 'T' has no 'context'"),
        (
            '{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "id": "7"}]}]}]}',
            "'7' has no 'answers'",
        ),
        (
            '{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": []}]}]}]}',
            "'q' has no answers, and no is_impossible says so",
        ),
        ("[]", "a JSON object was expected, found list"),
    ],
)
def test_other_layouts(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(minift.InputError) as caught:
        Questions(tmp_path / "a.json")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"answers": [{"text": "film", "answer_start": "4"}]},
            "'answer_start' of an answer to question 'q' was to be an integer, found \"4\"",
        ),
        ({"answers": [{"text": "film"}]}, "an answer to question 'q' has no 'answer_start'"),
        (
            {"is_impossible": "false"},
            "'is_impossible' of question 'q' was to be true or false, found \"false\"",
        ),
    ],
)
def test_values_of_another_type(tmp_path, entry, message):
    paragraph = {"context": "the film", "qas": [{"question": "q", **entry}]}
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    with pytest.raises(minift.InputError) as caught:
        Questions(tmp_path / "a.json")
    assert str(caught.value).startswith(f"{tmp_path / 'a.json'}: {message}")


@pytest.mark.parametrize(
    ("name", "count"), [("train-v1.1.first12articles", 4370), ("dev-v1.1.first24articles", 5696)]
)
def test_real_questions(shared_data, name, count):
    questions = Questions(shared_data / "squad" / f"{name}.json")
    assert len(questions) == count and not questions.some_are_impossible


# ---- The official scores ----


def test_normalized():
    """By the order of the official script: lower case, punctuation, articles, white space."""
    assert normalized(" The  Cat's (an) A-team, \n U.S. ") == "cats ateam us"
    assert normalized("a an the") == "" and normalized("Theatre") == "theatre"
    assert normalized("“quoted”") == "“quoted”"  # of punctuation ASCII's alone


@pytest.mark.parametrize(
    ("answer", "expected", "exact", "f1"),
    [
        ("the Broncos", ["Denver Broncos", "Broncos"], 1, 1),
        ("Denver Broncos", ["the Broncos"], 0, 2 / 3),
        ("in the city of Paris", ["Paris, France"], 0, 2 * (1 / 4) * (1 / 2) / (1 / 4 + 1 / 2)),
        ("very very good", ["very good"], 0, 0.8),  # a word counts as often as both have it
        ("very very good", ["very very bad"], 0, 2 / 3),
        ("1,000", ["1000"], 1, 1),
        ("nothing alike", ["else"], 0, 0),
        ("", ["else"], 0, 0),
        ("", [], 1, 1),
        ("something", [], 0, 0),
        ("the", ["a"], 1, 1),
    ],
)
def test_official_scores(answer, expected, exact, f1):
    assert exact_match(answer, expected) == exact
    assert word_f1(answer, expected) == pytest.approx(f1)


# ---- Windows ----


def test_windows_cover_the_context_and_overlap(tmp_path):
    tokenizer = Tokenizer.from_directory(write_tokenizer(tmp_path) and tmp_path, 12)
    context = "the film was very good , the meal was dull and the book was fine ."
    [windows] = tokenizer.encode_windows([("what was it", context)], overlap=2)
    # Of 16 tokens each window has 6, and shares 2 with the one before.
    assert [len(window.ids) for window in windows] == [12, 12, 12, 10]
    for number, window in enumerate(windows):
        tokens = tokenizer.tokens(window.ids)
        assert tokens[:5] == ["[CLS]", "what" if "what" in tokens else "[UNK]", "was", "it", "[SEP]"]
        first = next(span for span in window.spans if span)
        assert context[first[0] :].split()[0] == context.split()[4 * number]
        assert [context[slice(*span)] for span in window.spans if span] == tokens[5:-1]
        assert window.token_types == [0] * 5 + [1] * (len(tokens) - 5) and not window.truncated
    covered = {span for window in windows for span in window.spans if span}
    assert len(covered) == len(context.split())


def test_a_short_context_is_one_window_and_the_encoding_of_the_pair(tmp_path):
    tokenizer = write_tokenizer(tmp_path)
    for pair in (("was it good", "the film"), ("good", ""), ("", "bad")):
        [[window]] = tokenizer.encode_windows([pair], overlap=8)
        [whole] = tokenizer.encode([pair])
        assert (window.ids, window.token_types) == (whole.ids, whole.token_types)


def test_an_endless_question_leaves_room_for_the_context(tmp_path):
    tokenizer = write_tokenizer(tmp_path)
    [windows] = tokenizer.encode_windows([("good " * 90, "the film was bad " * 9)], overlap=128)
    assert all(window.truncated and len(window.ids) <= CONFIG.max_position_embeddings for window in windows)
    assert sum(span is not None for span in windows[0].spans) == 15  # of 29 the question has 14


@pytest.mark.parametrize(
    ("answer", "rows"),
    [
        ((9, 12), (6, 6)),
        ((4, 12), (5, 6)),
        ((13, 17), (7, 7)),  # the comma behind it is not in it
        ((13, 18), (7, 8)),
        ((14, 18), (7, 8)),  # begins inside a token: nearest to it is the whole token
        ((17, 23), (0, 0)),  # the window ends before it does
        ((19, 23), (0, 0)),  # it is not in the window
        (None, (0, 0)),
    ],
)
def test_rows_of_an_answer(tmp_path, answer, rows):
    tokenizer = Tokenizer.from_directory(write_tokenizer(tmp_path) and tmp_path, 10)
    first, *_ = tokenizer.encode_windows([("was it", "the film was very, good was the meal")], overlap=2)[0]
    assert first.spans == [None] * 4 + [(0, 3), (4, 8), (9, 12), (13, 17), (17, 18), None]
    assert rows_of_answer(first, answer) == rows


# ---- The softmax within each text ----


SEGMENTS = np.array([[0, 3], [3, 4], [4, 4], [5, 7]])


def test_segment_log_softmax_is_the_formula():
    x = np.random.default_rng(0).standard_normal((7, 2)) * 3
    found = ops.segment_log_softmax(minift.Tensor(x), SEGMENTS).data
    for start, end in SEGMENTS:
        np.testing.assert_allclose(np.exp(found[start:end]).sum(axis=0), 1 if end > start else 0)
        np.testing.assert_allclose(np.diff(found[start:end], axis=0), np.diff(x[start:end], axis=0))
    assert (found[4] == 0).all()


def test_large_scores_do_not_overflow():
    x = np.array([[1e4, -1e4], [0, 0]], np.float32)
    found = ops.segment_log_softmax(minift.Tensor(x), np.array([[0, 2]])).data
    assert found.tolist() == [[0, -10000], [-10000, 0]] and found.dtype == np.float32


def test_the_loss_is_that_of_each_window_alone(tmp_path):
    model = make_model(tmp_path, task="question-answering").eval()
    context = "the film was very good , " * 6
    pairs = [("was it good", context), ("what", "the film was bad")]
    batch = model.pack(pairs, [((9, 17),), ((4, 8),)])
    assert len(batch) == 3 and batch.owners == [0, 0, 1] and batch.targets == 6
    logits = model(batch).numpy().astype(np.float64)
    losses = []
    for (start, end), rows in zip(batch.segments, batch.labels, strict=True):
        for column, row in enumerate(rows):
            scores = logits[start:end, column]
            losses.append(np.log(np.exp(scores).sum()) - scores[row])
    assert model.loss(model(batch), batch).item() == pytest.approx(np.mean(losses), rel=1e-6)


def test_pairs_are_counted_and_not_their_windows(tmp_path, caplog):
    model = make_model(tmp_path, task="question-answering")
    entries = [("was it good " * 9, ["film"]), ("what ?", ["dull"])]
    path = squad(tmp_path / "a.json", *entries, context="the film was very good , the meal was dull " * 4)
    [batch] = model.batches(Questions(path), 2)
    assert len(batch) > 4 and batch.truncated == 1
    minift.evaluate(model, Questions(path))
    assert caplog.messages == ["1 of 2 texts: longer than 32 tokens, truncated"]


# ---- The best span ----


def test_best_span_is_the_best_of_all_valid_ones(monkeypatch):
    monkeypatch.setattr("minift.tasks.question_answering.LONGEST_ANSWER", 3)
    random = np.random.default_rng(1)
    for _ in range(50):
        logits = random.standard_normal((9, 2))
        spans = [None, None, *[(10 * row, 10 * row + 5) for row in range(6)], None]
        expected = max(
            (logits[first, 0] + logits[last, 1], spans[first][0], spans[last][1])
            for first in range(2, 8)
            for last in range(first, min(first + 3, 8))
        )
        assert best_span(logits, spans) == pytest.approx(expected)
    assert best_span(logits, [None] * 9) == (LOWEST, 0, 0)


def test_the_best_of_all_windows_in_the_original_characters(tmp_path):
    model = make_model(tmp_path, task="question-answering")
    context = "The  FILM was very good , " * 6
    batch = model.pack([("was it good", context), ("what", "")])
    assert batch.owners == [0, 0, 1]
    logits = np.zeros((batch.tokens, 2), np.float32)
    second = int(batch.offsets[1])
    logits[6, 0] = logits[8, 1] = 1.0  # a span of the first window
    logits[second + 7, 0] = logits[second + 8, 1] = 2.0  # a better one of the second
    logits[0] = [0.5, 1.5]
    first, empty = model.decode(logits, batch)
    start = batch.spans[1][7][0]
    assert (first.start, first.end) == (start, batch.spans[1][8][1]) and first.score == 4
    assert first.answer == context[first.start : first.end] and "  FILM" not in first.answer.strip()
    assert first.no_answer_score == 0  # the second window's; of the two the lower
    logits[6, 0] = 4.0  # now that of the first window is better
    again = model.decode(logits, batch)[0]
    assert again.score == 5 and (again.start, again.end) == (batch.spans[0][6][0], batch.spans[0][8][1])
    assert (empty.answer, str(empty)) == ("", "(no answer)")


def test_no_answer_where_its_score_is_higher(tmp_path):
    model = make_model(tmp_path, task="question-answering")
    batch = model.pack([("was it good", "the film")])
    logits = np.zeros((batch.tokens, 2), np.float32)
    logits[0], logits[5, 0], logits[6, 1] = 2, 1, 1
    assert model.decode(logits, batch)[0].answer == "the film"
    for threshold, answer in ((0.0, ""), (1.9, ""), (2.0, "the film")):
        model.no_answer_threshold = threshold
        [found] = model.decode(logits, batch)
        assert found.answer == answer and (found.score, found.no_answer_score) == (2, 4)


# ---- The way through ----


def opinions(path, count: int, seed: int, impossible: bool):
    """What was good in a text of a good and a bad word; in version 2 some texts have bad words alone."""
    random = np.random.default_rng(seed)
    paragraphs = []
    for number in range(count):
        good, bad, worse = (str(random.choice(sorted(words))) for words in (GOOD, BAD, BAD))
        entry = {"id": str(number), "question": "what was it ?"}
        words = [bad, worse] if impossible and number % 2 else random.permutation([good, bad]).tolist()
        context = f"the film was {words[0]} , the {random.choice(['book', 'meal'])} {words[1]} ."
        if good in words:
            entry["answers"] = [{"text": good, "answer_start": context.index(good)}]
        else:
            entry |= {"answers": [], "is_impossible": True}
        paragraphs.append({"context": context, "qas": [entry]})
    path.write_text(json.dumps({"data": [{"title": "opinions", "paragraphs": paragraphs}]}))
    return path


def test_from_end_to_end(tiny, tmp_path, run):
    train = opinions(tmp_path / "train.json", 300, 1, impossible=True)
    dev = opinions(tmp_path / "dev.json", 60, 2, impossible=True)
    out = tmp_path / "out"
    changes = {"model": tiny / "body", "task": "question-answering", "train": train, "dev": dev}
    status, printed, stderr = run(*finetune_options(tiny, out, epochs=6, **changes))
    assert status == 0, stderr
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["after"])[:4] == ["f1", "exact_match", "answered_f1", "unanswered_f1"]
    assert metrics["after"]["f1"] > 0.8 > metrics["before"]["f1"]
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["BertForQuestionAnswering"] and config["no_answer_threshold"] == 0

    model = minift.load(out)
    assert isinstance(model, QuestionAnswering) and model.no_answer_threshold == 0
    status, printed, _ = run("evaluate", out, "--data", dev, "--json")
    assert json.loads(printed)["f1"] == metrics["after"]["f1"]
    question, context = "was the film it ?", "the book was dull , the film was good ."
    status, printed, _ = run("predict", out, "--question", question, "--context", context, "--json")
    line = json.loads(printed)
    assert line["text"] == [question, context] and line["answer"] == context[line["start"] : line["end"]]
    assert line["score"] == pytest.approx(model.predict((question, context))[0].score, rel=1e-5)
    status, printed, _ = run("predict", out, "--file", dev)
    assert status == 0 and len(printed.splitlines()) == len(Questions(dev))
    (tmp_path / "a.tsv").write_text(f"question\tcontext\n{question}\t{context}\n")
    status, printed, _ = run("predict", out, "--file", tmp_path / "a.tsv", "--json")
    assert json.loads(printed) == line


def test_a_model_of_questions_that_all_have_answers_always_answers(tmp_path):
    model = make_model(tmp_path, task="question-answering")
    for impossible, threshold in ((True, 0.0), (False, None)):
        model.prepare(Questions(opinions(tmp_path / "a.json", 9, 1, impossible)))
        assert model.no_answer_threshold == threshold


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--question", "who ?"], "--question and --context belong together"),
        (["--text", "who ?"], "a question with its context was expected, found 'who ?'"),
        ([], "predict takes one of --text, --file, and --question with --context"),
    ],
)
def test_what_predict_refuses(tmp_path, run, options, message):
    make_model(tmp_path / "vocabulary", task="question-answering").save(tmp_path / "model")
    assert the_one_line(*run("predict", tmp_path / "model", *options)) == message
