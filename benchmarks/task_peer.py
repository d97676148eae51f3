"""transformers' side of `tasks.py`: a plain loop over PyTorch, as their examples teach it, in a process of its own.

    python task_peer.py request.json reply.json

AdamW with weight decay 0.01 on everything, a linear schedule with 10 % warm-up, clipping at 1.0, the model's own
dropout, batches padded to their own longest text, the model's own tokenizer.
"""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.nn.utils import clip_grad_norm_

STRIDE, LONGEST_ANSWER, BEST = 128, 30, 20
"""Of question answering: tokens that windows share, and what is looked at for an answer (their example's values)."""

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def run(order: dict) -> dict:
    """Fine-tune as ordered; the predictions for the held-out part, and the seconds that both took."""
    started = time.perf_counter()
    torch.manual_seed(order["seed"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(order["model"])
    task = TASKS[order["task"]](tokenizer, order["max_length"])
    train, dev = task.read(order["train"], training=True), task.read(order["dev"], training=False)
    model = task.model(order["model"])
    learn(model, tokenizer, train, order)
    predictions = task.decode(predict(model, tokenizer, dev), dev)
    return {
        "predictions": predictions,
        "seconds": round(time.perf_counter() - started, 1),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def learn(model, tokenizer, features: list[dict], order: dict) -> list[float]:
    """Train; the loss of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=order["learning_rate"], weight_decay=0.01)
    steps = order["epochs"] * math.ceil(len(features) / order["batch_size"])
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, math.ceil(0.1 * steps), steps)
    model.train()
    losses = []
    for epoch in range(order["epochs"]):
        rows = shuffled(len(features), order["seed"], epoch)
        for number, batch in enumerate(chunks([features[row] for row in rows], order["batch_size"]), 1):
            loss = model(**collate(tokenizer, batch)).loss
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if number % 50 == 0:
                print(f"transformers epoch {epoch + 1} step {number} loss {losses[-1]:.3f}", flush=True)
    return losses


def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order that minift.data's function of this name gives. Written again, for to import minift would set up the
    threads and the memory of a process that is to be PyTorch's own; a test holds the two equal."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)


def predict(model, tokenizer, features: list[dict]) -> list[tuple[np.ndarray, ...]]:
    """The model's outputs for each feature, its padding cut off."""
    model.eval()
    found = []
    with torch.inference_mode():
        for batch in chunks(features, 32):
            inputs = collate(tokenizer, [{**each, "labels": None} for each in batch])
            outputs = [value.numpy() for name, value in model(**inputs).items() if name.endswith("logits")]
            for row, feature in enumerate(batch):
                length = len(feature["input_ids"])
                found.append(
                    tuple(value[row][:length] if value.ndim > 1 else value[row] for value in outputs)
                )
    return found


INPUTS = ("input_ids", "token_type_ids", "attention_mask")


def collate(tokenizer, features: list[dict]) -> dict:
    """One padded batch; labels that are one a token are padded with -100."""
    batch = tokenizer.pad([{name: each[name] for name in INPUTS} for each in features], return_tensors="pt")
    labels = [each["labels"] for each in features]
    if labels[0] is None:
        return dict(batch)
    if isinstance(labels[0], tuple):
        starts, ends = zip(*labels, strict=True)
        return {**batch, "start_positions": torch.tensor(starts), "end_positions": torch.tensor(ends)}
    if isinstance(labels[0], list):
        width = batch["input_ids"].shape[1]
        labels = [each + [-100] * (width - len(each)) for each in labels]
    return {**batch, "labels": torch.tensor(labels)}


def chunks(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]


class Classification:
    """One text or two in a row, and its label."""

    def __init__(self, tokenizer, max_length: int):
        self.tokenizer, self.max_length = tokenizer, max_length
        self.names: list[str] = []

    def read(self, path: str, training: bool) -> list[dict]:
        rows = [line.split("\t") for line in Path(path).read_text(encoding="utf-8").splitlines()[1:]]
        if training:
            self.names = sorted({row[-1] for row in rows})
        encoded = [self.tokenizer(*row[:-1], truncation=True, max_length=self.max_length) for row in rows]
        return [{**each, "labels": self.label(row[-1])} for each, row in zip(encoded, rows, strict=True)]

    def label(self, text: str):
        return self.names.index(text) if text in self.names else -100

    def model(self, directory: str):
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            directory, num_labels=len(self.names)
        )

    def decode(self, outputs: list, features: list[dict]) -> list:
        return [self.names[int(logits.argmax())] for (logits,) in outputs]


class Regression(Classification):
    """One text or two in a row, and a number."""

    def label(self, text: str) -> float:
        return float(text)

    def model(self, directory: str):
        return transformers.AutoModelForSequenceClassification.from_pretrained(directory, num_labels=1)

    def decode(self, outputs: list, features: list[dict]) -> list[float]:
        return [float(logits[0]) for (logits,) in outputs]


class Tokens(Classification):
    """Words with tags; the first piece of a word carries its tag."""

    def read(self, path: str, training: bool) -> list[dict]:
        text = Path(path).read_text(encoding="utf-8").strip("\n")
        sentences = [[line.split("\t") for line in part.split("\n")] for part in text.split("\n\n")]
        if training:
            self.names = sorted({tag for sentence in sentences for _, tag in sentence})
        features = []
        for sentence in sentences:
            words, tags = zip(*sentence, strict=True)
            encoded = self.tokenizer(
                list(words), is_split_into_words=True, truncation=True, max_length=self.max_length
            )
            word_ids = encoded.word_ids()
            first = [
                row for row, word in enumerate(word_ids) if word is not None and word not in word_ids[:row]
            ]
            labels = [-100] * len(word_ids)
            for row in first:
                tag = tags[word_ids[row]]
                labels[row] = self.names.index(tag) if tag in self.names else -100
            features.append(
                {
                    **encoded,
                    "labels": labels,
                    "words": len(words),
                    "first": {word_ids[row]: row for row in first},
                }
            )
        return features

    def model(self, directory: str):
        return transformers.AutoModelForTokenClassification.from_pretrained(
            directory, num_labels=len(self.names)
        )

    def decode(self, outputs: list, features: list[dict]) -> list[list[str]]:
        found = []
        for (logits,), feature in zip(outputs, features, strict=True):
            best = logits.argmax(axis=-1)
            rows = [feature["first"].get(word) for word in range(feature["words"])]
            found.append(["O" if row is None else self.names[int(best[row])] for row in rows])
        return found


class Answers:
    """Questions about texts, in windows with a stride."""

    def __init__(self, tokenizer, max_length: int):
        self.tokenizer, self.max_length = tokenizer, max_length
        self.contexts: list[str] = []

    def read(self, path: str, training: bool) -> list[dict]:
        features = []
        self.contexts = []
        data = json.loads(Path(path).read_text(encoding="utf-8"))["data"]
        paragraphs = [paragraph for article in data for paragraph in article["paragraphs"]]
        for paragraph in paragraphs:
            for entry in paragraph["qas"]:
                encoded = self.tokenizer(
                    entry["question"].lstrip(),
                    paragraph["context"],
                    truncation="only_second",
                    max_length=self.max_length,
                    stride=STRIDE,
                    return_overflowing_tokens=True,
                    return_offsets_mapping=True,
                )
                for window, offsets in enumerate(encoded["offset_mapping"]):
                    inside = [part == 1 for part in encoded.sequence_ids(window)]
                    spans = [span if kept else None for span, kept in zip(offsets, inside, strict=True)]
                    features.append(
                        {name: encoded[name][window] for name in INPUTS}
                        | {
                            "labels": rows_of_answer(spans, entry["answers"][0]),
                            "spans": spans,
                            "question": len(self.contexts),
                        }
                    )
                self.contexts.append(paragraph["context"])
        return features

    def model(self, directory: str):
        return transformers.AutoModelForQuestionAnswering.from_pretrained(directory)

    def decode(self, outputs: list, features: list[dict]) -> list[str]:
        """The best valid span of all windows of a question, among the 20 best starts and ends of each."""
        best = [(-math.inf, "")] * len(self.contexts)
        for (starts, ends), feature in zip(outputs, features, strict=True):
            spans, question = feature["spans"], feature["question"]
            for first in np.argsort(starts)[-BEST:]:
                for last in np.argsort(ends)[-BEST:]:
                    if spans[first] is None or spans[last] is None or not 0 <= last - first < LONGEST_ANSWER:
                        continue
                    score = float(starts[first] + ends[last])
                    if score > best[question][0]:
                        answer = self.contexts[question][spans[first][0] : spans[last][1]]
                        best[question] = (score, answer)
        return [answer for _, answer in best]


def rows_of_answer(spans: list, answer: dict) -> tuple[int, int]:
    """The tokens where the answer begins and ends; (0, 0), [CLS], where the window does not hold it whole."""
    start, end = answer["answer_start"], answer["answer_start"] + len(answer["text"])
    rows = [row for row, span in enumerate(spans) if span is not None]
    if not rows or spans[rows[0]][0] > start or spans[rows[-1]][1] < end:
        return 0, 0
    first = max(row for row in rows if spans[row][0] <= start)
    last = min(row for row in rows if spans[row][1] >= end)
    return first, last


TASKS = {
    "text-classification": Classification,
    "text-regression": Regression,
    "token-classification": Tokens,
    "question-answering": Answers,
}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))))
