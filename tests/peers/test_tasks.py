"""Every task's files, both ways: what minift saves transformers reads, and the reverse, with equal logits and loss."""

import json

import numpy as np
import pytest
from tiny import make_model, rows

import minift
from minift.tasks import TASKS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

TEXTS = [text for text, _ in rows(4, seed=8)]
WORDS = [tuple(text.split()) for text in TEXTS]
TAGS = ["O", "B-X", "I-X"]
CONTEXT = "the film was very good , the meal was dull and the book was fine ."
QUESTIONS = [("was it good ?", CONTEXT), ("the meal", "a poor meal ."), ("?", CONTEXT + " " + CONTEXT)]
RANDOM = np.random.default_rng(1)

CASES = {
    "text-classification": (
        transformers.AutoModelForSequenceClassification, ["no", "so", "yes"], TEXTS, [0, 2, 1, 1],
    ),
    "multi-label": (
        transformers.AutoModelForSequenceClassification, ["no", "so", "yes"], TEXTS,
        RANDOM.integers(2, size=(4, 3)).astype(np.float32),
    ),
    "text-regression": (
        transformers.AutoModelForSequenceClassification, None, TEXTS, np.array([1.5, -2, 0.25, 4], np.float32),
    ),
    "token-classification": (
        transformers.AutoModelForTokenClassification, TAGS, WORDS,
        [RANDOM.integers(3, size=len(words)).tolist() for words in WORDS],
    ),
    "question-answering": (
        transformers.AutoModelForQuestionAnswering, None, QUESTIONS, [((13, 22),), ((2, 6),), ((4, 8),)],
    ),
}  # fmt: skip
each_task = pytest.mark.parametrize("task", CASES)


def batches_of_one(tokenizer, task, texts) -> list:
    """What transformers' own tokenizer makes of each input, one text, or window, at a time."""
    if task == "token-classification":
        return [tokenizer(list(words), is_split_into_words=True, return_tensors="pt") for words in texts]
    if task != "question-answering":
        return [tokenizer(text, return_tensors="pt") for text in texts]
    windows = []
    for question, context in texts:
        room = tokenizer.model_max_length - 3 - len(tokenizer.tokenize(question))
        encoded = tokenizer(
            question, context, truncation="only_second", stride=min(128, room // 2),
            return_overflowing_tokens=True,
        )  # fmt: skip
        names = ("input_ids", "token_type_ids", "attention_mask")
        windows += [
            {name: torch.tensor([encoded[name][row]]) for name in names}
            for row in range(len(encoded["input_ids"]))
        ]
    return windows


def their_loss(peer, task, inputs, batch) -> float:
    """The mean of transformers' own losses, each weighted by the targets that it is a mean of."""
    total = 0.0
    for number, given in enumerate(inputs):
        start, end = batch.offsets[number], batch.offsets[number + 1]
        if task == "question-answering":
            first, last = batch.labels[number]
            labels = {"start_positions": torch.tensor([first]), "end_positions": torch.tensor([last])}
            weight = 2
        else:
            per_token = task == "token-classification"
            mine = batch.labels[start:end] if per_token else batch.labels[number]
            labels = {"labels": torch.tensor(np.asarray(mine))[None]}
            weight = (mine != -100).sum() if per_token else np.size(mine)
        total += peer(**given, **labels).loss.item() * weight
    return total / batch.targets


def their_logits(peer, task, inputs) -> np.ndarray:
    outputs = [peer(**given) for given in inputs]
    if task == "question-answering":
        return np.concatenate(
            [torch.stack([each.start_logits[0], each.end_logits[0]], dim=1).numpy() for each in outputs]
        )
    return np.concatenate([each.logits.numpy().reshape(-1, each.logits.shape[-1]) for each in outputs])


def assert_the_same(model, peer, tokenizer, task) -> None:
    _, _, texts, targets = CASES[task]
    batch = model.pack(list(texts), targets)
    inputs = batches_of_one(tokenizer, task, texts)
    assert (
        np.concatenate([np.asarray(given["input_ids"])[0] for given in inputs]).tolist() == batch.ids.tolist()
    )
    with torch.no_grad(), minift.no_grad():
        model.eval()
        logits = model(batch)
        expected = their_logits(peer, task, inputs)
        assert np.ptp(expected) > 0.01
        np.testing.assert_allclose(logits.numpy(), expected, atol=1e-5)
        assert model.loss(logits, batch).item() == pytest.approx(
            their_loss(peer, task, inputs, batch), abs=1e-5
        )


@each_task
def test_transformers_reads_what_minift_saves(task, tmp_path):
    auto, labels, _, _ = CASES[task]
    model = make_model(tmp_path / "vocabulary", labels=labels, task=task)
    model.save(tmp_path / "model")
    peer, report = auto.from_pretrained(
        tmp_path / "model", output_loading_info=True, attn_implementation="eager"
    )
    assert not (report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"])
    if labels:
        assert peer.config.id2label == dict(enumerate(labels))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert_the_same(model, peer.eval(), tokenizer, task)

    peer.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    again = minift.load(tmp_path / "again")
    assert type(again) is TASKS[task] and again.labels == model.labels
    for (name, parameter), (_, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        np.testing.assert_array_equal(parameter.data, other.data, err_msg=name)


@each_task
def test_minift_finds_the_task_of_what_transformers_saved(task, tmp_path, caplog):
    auto, labels, _, _ = CASES[task]
    body = make_model(tmp_path / "vocabulary", task="text-classification")
    body.save(tmp_path / "body")
    outputs = {"num_labels": 1} if task == "text-regression" else {}
    if labels:
        names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
        outputs |= names
    if task == "multi-label":
        outputs["problem_type"] = "multi_label_classification"
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "body")
    config = type(config)(
        **{
            name: value
            for name, value in config.to_dict().items()
            if name not in ("id2label", "label2id", "problem_type")
        }
        | outputs
    )
    peer = auto.from_config(config, attn_implementation="eager").eval()
    for parameter in peer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    peer.save_pretrained(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "body")
    tokenizer.save_pretrained(tmp_path / "model")
    assert ("problem_type" in json.loads((tmp_path / "model" / "config.json").read_text())) <= bool(outputs)
    model = minift.load(tmp_path / "model")
    assert type(model) is TASKS[task] and not caplog.messages
    assert_the_same(model, peer, tokenizer, task)
