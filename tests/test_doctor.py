"""The doctor: silent where all is right, exact where it is not, and nobody notices that it was there."""

import json

import numpy as np
import pytest
from clean_recipes import begin, recipes, train
from command import the_one_line
from tiny import make_model, rows, write_tsv

import minift
from minift import ops, random
from minift.diagnosis import formulas
from minift.diagnosis.case import Case
from minift.diagnosis.finding import some
from minift.tensor import Tensor

pytestmark = pytest.mark.usefixtures("compiled")

CLEAN = [
    ("text-classification", "bert", "full"),
    ("text-classification", "llama", "lora"),
    ("text-classification", "gpt2", "prefix"),
    ("text-classification", "word-vectors", "head"),
    ("multi-label", "roberta", "ia3"),
    ("text-regression", "distilbert", "prompt"),
    ("token-classification", "bert", "houlsby"),
    ("question-answering", "roberta", "bitfit"),
    ("fill-mask", "distilbert", "full"),
    ("text-generation", "gpt2", "ulmfit"),
    ("instruction-tuning", "qwen2", "lora"),
]
"""Each task, family and most methods once."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes")


def said(model, batch, optimizer) -> list[str]:
    return [str(finding) for finding in minift.doctor(model, batch, optimizer)]


# ---- Silence ----


@pytest.mark.parametrize(("task", "family", "method"), CLEAN)
def test_silent_on_a_right_fine_tuning(folder, task, family, method):
    case = begin(folder, task, family, method)
    assert said(*case) == []
    train(*case, steps=5)
    assert said(*case) == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("task", sorted({task for task, _, _ in recipes()}))
def test_silent_on_every_right_fine_tuning(folder, task, seed):
    wrong = {}
    for this, family, method in recipes():
        for steps in (0, 40) if this == task else ():
            case = begin(folder, task, family, method, seed)
            train(*case, steps)
            wrong[family, method, steps] = said(*case)
    assert len(wrong) >= 10 and not {recipe: found for recipe, found in wrong.items() if found}


# ---- It leaves no trace ----


def state_of(model, batch, optimizer) -> dict:
    """All that an examination might change, as bytes."""
    parameters = dict(model.named_parameters())
    return {
        "data": {path: each.data.tobytes() for path, each in parameters.items()},
        "arrays": {path: id(each.data) for path, each in parameters.items()},
        "grad": {
            path: None if each.grad is None else each.grad.tobytes() for path, each in parameters.items()
        },
        "frozen": {path: each.requires_grad for path, each in parameters.items()},
        "moments": {
            path: (m.step, m.first.tobytes(), m.second.tobytes())
            for path, each in parameters.items()
            if (m := optimizer.state.get(each)) is not None
        },
        "groups": [{**group, "params": list(map(id, group["params"]))} for group in optimizer.param_groups],
        "modes": {path: each.training for path, each in model.named_modules()},
        "attributes": {path: sorted(vars(each)) for path, each in model.named_modules()},
        "batch": [each.tobytes() for each in vars(batch).values() if isinstance(each, np.ndarray)],
        "random": (random.default_generator.seed, random.default_generator.calls, str(np.random.get_state())),
    }


@pytest.mark.parametrize("method", ["full", "lora", "prompt"])
@pytest.mark.parametrize("steps", [0, 3])
def test_all_is_as_before(folder, method, steps):
    model, batch, optimizer = begin(folder, "text-classification", "bert", method)
    train(model, batch, optimizer, steps)
    model.bert.encoder.layer[0].eval()
    model.loss(model(batch), batch).backward()
    before = state_of(model, batch, optimizer)
    calls = minift.nn.Module.__call__, ops.embedding, ops.rotary
    minift.doctor(model, batch, optimizer)
    assert state_of(model, batch, optimizer) == before
    assert calls == (minift.nn.Module.__call__, ops.embedding, ops.rotary)


def test_training_goes_on_to_the_same_bits(folder):
    ends = []
    for examined in (False, True):
        case = begin(folder, "text-classification", "bert", "full")
        for _ in range(3):
            if examined:
                minift.doctor(*case)
            train(*case, steps=1)
        ends.append(state_of(*case)["data"])
    assert ends[0] == ends[1]


# ---- Bugs ----


def frozen_head(model, batch, optimizer):
    model.classifier.requires_grad_(False)


def optimizer_too_early(model, batch, optimizer):
    head = {id(each) for each in model.classifier.parameters()}
    for group in optimizer.param_groups:
        group["params"] = [each for each in group["params"] if id(each) not in head]
    optimizer.parameters = [each for each in optimizer.parameters if id(each) not in head]


def gradients_pile_up(model, batch, optimizer):
    for _ in range(2):
        model.loss(model(batch), batch).backward()
        optimizer.step()


def history_lost(model, batch, optimizer):
    pooler = model.bert.pooler
    forward = pooler.forward
    pooler.forward = lambda x: forward(Tensor(x.data))


def labels_from_one(model, batch, optimizer):
    batch.labels = batch.labels + 1


def summed_loss(model, batch, optimizer):
    loss = model.loss
    model.loss = lambda output, batch: loss(output, batch) * float(len(batch))


def sign_turned(model, batch, optimizer):
    loss = model.loss
    model.loss = lambda output, batch: -loss(output, batch)


def query_turned(model, batch, optimizer):
    query = model.bert.encoder.layer[1].attention.self.query
    query.forward = lambda x: ops.linear(x, query.weight.T, query.bias)


def positions_through_the_batch(model, batch, optimizer):
    batch.positions = np.arange(batch.tokens) % 32


def mean_over_the_batch(model, batch, optimizer):
    dropout = model.dropout
    forward = dropout.forward
    dropout.forward = lambda x: forward(x) - Tensor(x.data.mean(axis=0, keepdims=True))


def nothing_reaches_the_head(model, batch, optimizer):
    model.dropout.forward = lambda x: x * 0.0


def head_too_large(model, batch, optimizer):
    model.classifier.weight.data *= 100


def labels_slipped(model, batch, optimizer):
    batch.labels = np.roll(batch.labels, 1)


def rate(value):
    def set_rate(model, batch, optimizer):
        for group in optimizer.param_groups:
            group["lr"] = value

    return set_rate


def stuck_group(model, batch, optimizer):
    optimizer.param_groups[1]["lr"] = 0.0


@pytest.mark.parametrize(
    ("bug", "name", "where"),
    [
        (frozen_head, "frozen-head", "classifier.weight, classifier.bias"),
        (optimizer_too_early, "not-in-optimizer", "classifier.weight, classifier.bias"),
        (gradients_pile_up, "gradients-not-zeroed", "bert.embeddings.word_embeddings.weight"),
        (history_lost, "no-gradient", "bert.embeddings.word_embeddings.weight"),
        (labels_from_one, "label-out-of-range", "batch.labels["),
        (summed_loss, "loss-not-mean", "TextClassification.loss"),
        (sign_turned, "wrong-sign", "TextClassification.loss"),
        (query_turned, "transposed-weight", "bert.encoder.layer.1.attention.self.query"),
        (positions_through_the_batch, "wrong-positions", "batch.positions"),
        (mean_over_the_batch, "batch-dependent", "dropout"),
        (nothing_reaches_the_head, "does-not-overfit", "6 texts"),
        (rate(0.1), "rate-too-high", "lr 0.1"),
        (rate(1e-9), "rate-too-low", "lr 1e-09"),
        (head_too_large, "wrong-loss-at-start", "classifier"),
        (labels_slipped, "labels-shuffled", "batch.labels"),
        (stuck_group, "does-not-move", "bert.embeddings.LayerNorm.weight"),
        (rate(np.nan), "impossible-rate", "optimizer.param_groups[0], optimizer.param_groups[1]"),
        (rate(-1e-3), "impossible-rate", "optimizer.param_groups[0], optimizer.param_groups[1]"),
    ],
)
def test_a_bug_is_named_and_nothing_else(folder, bug, name, where):
    case = begin(folder, "text-classification", "bert", "full", batch_size=40)
    bug(*case)
    [finding] = minift.doctor(*case)
    assert finding.name == name and finding.where.startswith(where) and finding.found and finding.mend


def test_a_batch_without_labels_is_refused(folder):
    model, _, optimizer = begin(folder, "text-classification", "bert", "full")
    with pytest.raises(minift.InputError, match="needs a batch with labels"):
        minift.doctor(model, model.pack(["the film"]), optimizer)


def test_long_lists_are_cut():
    assert some(["a", "b"]) == "a, b" and some(list("abcde")) == "a, b, c and 2 more"


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("masked", [[0, 2, 1], [1, 1, 1], [2, 3, 1], [0, 0, 0]])
def test_attention_of_the_last_layer_where_masked_tokens_alone_look(folder, family, masked, monkeypatch):
    """Three masks in three texts need not be one in each."""
    model, batch, optimizer = begin(folder, "fill-mask", family, "full")
    batch = model.encode(["the film was very good", "a dull book", "it was not a great meal"])
    batch.labels = np.full(batch.tokens, -100)
    for start, count in zip(batch.offsets, masked, strict=False):
        batch.labels[start + 1 : start + 1 + count] = 7
    case = Case(model, batch, optimizer)
    assert [finding.name for finding in formulas.attention(case)] == []
    layer = model.body.layers[-1]
    attention = layer.attention if family == "distilbert" else layer.attention.self
    right = attention.attend
    monkeypatch.setattr(attention, "attend", lambda q, *others: right(q * 3, *others))
    case = Case(model, batch, optimizer)
    assert [finding.name for finding in formulas.attention(case)] == ["wrong-attention"] * any(masked)


# ---- The command ----

SCRIPT = """
import minift
model = minift.load({model!r})
texts, labels = ["the film was good", "a bad book", "the meal is great"], ["positive", "negative", "positive"]
optimizer = minift.AdamW({parameters}, lr=1e-3)
minift.cross_entropy(model(texts), labels).backward()
optimizer.step()
raise SystemExit("the script went on")
"""


DIRECTORY = ["{tiny}/model", "--train", "{tiny}/train.tsv"]


def test_a_directory(tiny, tmp_path, run):
    options = [
        "--model",
        tiny / "model",
        "--train",
        tiny / "train.tsv",
        "--epochs",
        1,
        "--learning-rate",
        1e-3,
    ]
    assert run("finetune", *options, "--method", "lora", "--out", tmp_path / "run")[0] == 0
    status, printed, _ = run("doctor", tmp_path / "run")
    assert (status, printed) == (0, "nothing found: all invariants hold\n")
    status, printed, _ = run("doctor", tiny / "model", "--train", tiny / "train.tsv", "--learning-rate", 0.1)
    assert status == 1 and printed.startswith("rate-too-high: lr 0.1\n  found: ")
    given = ["doctor", tiny / "model", "--train", tiny / "train.tsv", "--learning-rate", 1e-9, "--json"]
    status, printed, _ = run(*given)
    assert status == 1 and [each["name"] for each in json.loads(printed)] == ["rate-too-low"]


@pytest.mark.parametrize("words", [1, 2])
def test_as_many_masks_as_texts(tmp_path, run, words):
    """Of short texts each has about one mask; what is said of masks is then not taken for what is said of texts."""
    make_model(tmp_path / "vocabulary", task="fill-mask").save(tmp_path / "model")
    lines = [json.dumps({"text": " ".join(text.split()[:words])}) for text, _ in rows(40, seed=3)]
    (tmp_path / "short.jsonl").write_text("\n".join(lines))
    given = ["--train", tmp_path / "short.jsonl", "--learning-rate", 1e-3]
    assert run("doctor", tmp_path / "model", *given)[:2] == (0, "nothing found: all invariants hold\n")


def test_labels_of_the_whole_file(tiny, tmp_path, run):
    pairs = rows(200, seed=5)
    dealt = [label for _, label in rows(200, seed=6)]
    write_tsv(tmp_path / "right.tsv", pairs)
    write_tsv(tmp_path / "dealt.tsv", [(text, label) for (text, _), label in zip(pairs, dealt, strict=True)])
    given = ["doctor", tiny / "model", "--learning-rate", 1e-3, "--batch-size", 8, "--train"]
    assert run(*given, tmp_path / "right.tsv")[0] == 0
    status, printed, _ = run(*given, tmp_path / "dealt.tsv")
    assert status == 1 and printed.startswith(
        "labels-shuffled: batch.labels\n  found: neither the words of 200 texts"
    )


def test_a_script(tiny, tmp_path, run):
    script = tmp_path / "script.py"
    for parameters, expected in (("minift.decay_groups(model)", 0), ("model.bert.parameters()", 1)):
        script.write_text(SCRIPT.format(model=str(tiny / "model"), parameters=parameters))
        status, printed, _ = run("doctor", script)
        assert status == expected, printed
    assert printed.startswith("not-in-optimizer: classifier.weight, classifier.bias\n")
    assert minift.cross_entropy is minift.losses.cross_entropy


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("loss.backward()", 0),
        ("pass", 1),
        ("loss.backward(); optimizer.zero_grad()", 1),
    ],
)
def test_a_script_without_backward(tiny, tmp_path, run, lines, expected):
    script = tmp_path / "script.py"
    text = SCRIPT.format(model=str(tiny / "model"), parameters="minift.decay_groups(model)")
    text = text.replace("labels).backward()", f"labels)\n{lines}").replace(
        "minift.cross", "loss = minift.cross"
    )
    script.write_text(text)
    status, printed, _ = run("doctor", script)
    assert (status, printed.startswith("no-backward: optimizer.step()\n")) == (expected, bool(expected)), (
        printed
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["{out}/none"], "no such directory"),
        (["{out}/none.py"], "no such script"),
        (["{tiny}/model"], "no report.html says what it was trained on; pass --train FILE"),
        (
            ["{out}/fails.py"],
            "it failed before its first optimizer.step(): ZeroDivisionError: division by zero",
        ),
        (["{out}/ends.py"], "it ended without an optimizer.step()"),
        ([*DIRECTORY, "--batch-size", "0"], "batch_size is 0, expected 1 or more"),
        ([*DIRECTORY, "--learning-rate", "0"], "learning_rate is 0.0, expected a finite number above 0"),
        ([*DIRECTORY, "--learning-rate", "nan"], "learning_rate is nan, expected a finite number above 0"),
    ],
)
def test_what_it_refuses(tiny, tmp_path, run, given, message):
    (tmp_path / "fails.py").write_text("1 / 0\n")
    (tmp_path / "ends.py").write_text("import minift\n")
    assert message in the_one_line(*run("doctor", *(each.format(out=tmp_path, tiny=tiny) for each in given)))
