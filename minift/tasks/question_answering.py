"""Question answering: which words of a text answer a question (Devlin et al. 2019, sections 4.2 and 4.3).

The head gives each token two scores: that the answer begins there, and that it ends there. A text that is too long
is read in windows that overlap, each with the question in front:

    [CLS] question [SEP] text, first part           [SEP]
    [CLS] question [SEP]          second part, ...  [SEP]

An answer that a window does not hold whole, or that nowhere is, stands at its first token, [CLS].
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minift.data import READERS, Batch, Columns, Dataset, pack
from minift.errors import InputError
from minift.ops import segment_log_softmax
from minift.tasks.squad import Questions, exact_match, word_f1
from minift.tasks.task_model import Outcomes, TaskModel, Verdict
from minift.tensor import Tensor
from minift.tokenizer import Encoding, Span

OVERLAP = 128
"""How many tokens of the text two windows share."""

LONGEST_ANSWER = 30
"""In tokens: longer spans are not looked at."""

LOWEST = float(np.finfo(np.float32).min)
"""Below every score, and a number that JSON can write, which minus infinity is not."""


class Answer(NamedTuple):
    """The answer to one question: characters `start` to `end` (exclusive) of its context, as they are written there.

    Where the model may say that there is none, and does, the text is empty and both ends are 0.
    """

    answer: str
    start: int
    end: int
    score: float
    """The sum of the two scores: logits, to compare the answers to one question by."""
    no_answer_score: float
    """The same sum for there being no answer: the lowest of all windows."""

    def __str__(self) -> str:
        return self.answer or "(no answer)"


@dataclass
class WindowBatch(Batch):
    """A batch of windows: where their tokens stand, which pair each is of, and the pairs."""

    spans: list[list[Span | None]] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    pairs: list[tuple[str, str]] = field(default_factory=list)


class QuestionAnswering(TaskModel):
    """The span of a text that answers a question: of each window a softmax over its tokens, for either end."""

    head = "QuestionAnswering"
    asked_with = '--question "..." --context "..."'
    settings = ("no_answer_threshold",)
    no_answer_threshold: float | None = None
    """The model says that there is no answer where the score of that exceeds the answer's by more; None: it never does.

    0 for a model that was trained on questions without an answer. config.json keeps it, and may be edited.
    """

    @classmethod
    def read(cls, path: Path, columns: Columns, labelled: bool = True) -> Questions | Dataset:
        """SQuAD's JSON, see `Questions`; unlabelled also .tsv, .csv and .jsonl with `question` and `context`."""
        if not labelled and path.suffix.lower() in READERS:
            return Dataset(path, columns.text or "question", columns.pair or "context", require_label=False)
        return Questions(path, require_answers=labelled)

    @property
    def outputs(self) -> int:
        return 2

    def prepare(self, examples: Questions) -> None:
        self.no_answer_threshold = 0.0 if examples.some_are_impossible else None

    def targets(self, examples: Questions) -> list[tuple[Span, ...]]:
        return [question.answers for question in examples.questions]

    def pack(
        self, inputs: list[tuple[str, str]], targets: Sequence[Sequence[Span]] | None = None
    ) -> WindowBatch:
        """Of (question, context) pairs, all windows of each. Of several answers the first one is learned."""
        for each in inputs:
            if isinstance(each, str) or len(each) != 2:
                raise InputError(f"a question with its context was expected, found {each!r:.60}")
        windows = self.tokenizer.encode_windows(inputs, OVERLAP)
        flat = [window for each in windows for window in each]
        labels = None
        if targets is not None:
            labels = np.array(
                [
                    rows_of_answer(window, answers[0] if answers else None)
                    for each, answers in zip(windows, targets, strict=True)
                    for window in each
                ]
            )  # (B, 2)
        packed = pack(flat, labels)
        packed.truncated = sum(each[0].truncated for each in windows)  # pairs, not windows
        return WindowBatch(
            **vars(packed),
            spans=[window.spans or [] for window in flat],
            owners=[owner for owner, each in enumerate(windows) for _ in each],
            pairs=list(inputs),
        )

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """The mean over windows and ends of -log softmax(scores)[right row]."""
        log_probabilities = segment_log_softmax(output, batch.segments)  # (T, 2)
        rows = batch.offsets[:-1, None] + batch.labels  # (B, 2)
        return -log_probabilities.reshape(-1)[2 * rows + [0, 1]].mean()

    def decode(self, output: np.ndarray, batch: WindowBatch) -> list[Answer]:
        nothing = Answer("", 0, 0, score=LOWEST, no_answer_score=-LOWEST)
        answers = [nothing] * len(batch.pairs)
        for (first, last), spans, owner in zip(batch.segments, batch.spans, batch.owners, strict=True):
            logits = output[first:last]  # (tokens, 2)
            best = answers[owner]
            no_answer = min(best.no_answer_score, float(logits[0].sum()))
            score, start, end = best_span(logits, spans)
            if score <= best.score:
                score, start, end = best.score, best.start, best.end
            answers[owner] = Answer(batch.pairs[owner][1][start:end], start, end, score, no_answer)
        return [self._withheld(answer) for answer in answers]

    def _withheld(self, answer: Answer) -> Answer:
        threshold = self.no_answer_threshold
        if threshold is None or answer.no_answer_score - answer.score <= threshold:
            return answer
        return Answer("", 0, 0, answer.score, answer.no_answer_score)

    def metrics(self, predictions: list[Answer], examples: Questions) -> dict[str, float]:
        """{"f1", "exact_match"} as the official script has them, but 1 and not 100 where all is right.

        Of a file with questions that have no answer also "answered_f1" and "unanswered_f1", of either kind alone.
        """
        expected = [question.answer_texts for question in examples.questions]
        pairs = list(zip([prediction.answer for prediction in predictions], expected, strict=True))
        scores = [word_f1(*pair) for pair in pairs]
        found = {"f1": np.mean(scores), "exact_match": np.mean([exact_match(*pair) for pair in pairs])}
        if examples.some_are_impossible:
            kinds = {"answered_f1": True, "unanswered_f1": False}
            for name, answered in kinds.items():
                part = [
                    score for score, texts in zip(scores, expected, strict=True) if bool(texts) == answered
                ]
                found |= {name: np.mean(part)} if part else {}
        return {name: float(value) for name, value in found.items()}

    def verdict(self, given: tuple[str, str], target: Sequence[Span], prediction: Answer) -> Verdict:
        """The score is the F1 of the answer's words."""
        question, context = given
        right = [context[start:end] for start, end in target]
        score = word_f1(prediction.answer, right)
        return Verdict(question, right[0] if right else "(no answer)", str(prediction), score)

    def outcomes(self, targets: list[tuple[Span, ...]], predictions: list[Answer]) -> Outcomes:
        """How many answers touch a right one: exact in both ends, in part, or not."""
        counts = np.zeros((2, 4), np.int64)
        for spans, each in zip(targets, predictions, strict=True):
            if not each.answer:
                column = 3
            elif (each.start, each.end) in spans:
                column = 0
            else:
                column = 1 if any(start < each.end and each.start < end for start, end in spans) else 2
            counts[int(not spans), column] += 1
        rows = ["with an answer", "without"]
        columns = ["the very span", "overlaps one", "elsewhere", "no answer"]
        kept = 2 if counts[1].any() else 1
        return Outcomes(rows[:kept], columns, counts[:kept].tolist())

    def balance(self, targets: list[tuple[Span, ...]]) -> dict[str, int]:
        answered = sum(map(bool, targets))
        return {"with an answer": answered, "without": len(targets) - answered}

    def shown(self, text: tuple[str, str]) -> str:
        return text[0]


def rows_of_answer(window: Encoding, answer: Span | None) -> tuple[int, int]:
    """The window's first and last token of the answer; (0, 0) where the window does not hold all of it."""
    if answer is None:
        return 0, 0
    touched = [
        row
        for row, span in enumerate(window.spans or [])
        if span is not None and span[0] < answer[1] and span[1] > answer[0]
    ]
    if not touched:
        return 0, 0
    first, last = touched[0], touched[-1]
    assert window.spans is not None
    begin, end = window.spans[first], window.spans[last]
    whole = begin is not None and end is not None and begin[0] <= answer[0] and end[1] >= answer[1]
    return (first, last) if whole else (0, 0)


def best_span(logits: np.ndarray, spans: Sequence[Span | None]) -> tuple[float, int, int]:
    """The highest sum of a token's start score and the end score of one behind it, and its first and last character.

    logits (tokens, 2). Only tokens with a span count, and spans of up to LONGEST_ANSWER tokens. LOWEST, 0, 0 where no
    token has a span.
    """
    rows = [row for row, span in enumerate(spans) if span is not None]
    best = (LOWEST, 0, 0)
    if not rows:
        return best
    starts, ends = logits[rows, 0], logits[rows, 1]
    for length in range(min(LONGEST_ANSWER, len(rows))):  # from a token to the one `length` behind it
        sums = starts[: len(rows) - length] + ends[length:]
        at = int(sums.argmax())
        begin, end = spans[rows[at]], spans[rows[at + length]]
        if sums[at] > best[0] and begin is not None and end is not None:
            best = (float(sums[at]), begin[0], end[1])
    return best
