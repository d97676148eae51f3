"""SQuAD files, and how their official script judges an answer (Rajpurkar et al. 2016; version 2: 2018).

    {"data": [{"title": ..., "paragraphs": [{"context": "...", "qas": [
        {"id": "...", "question": "...", "answers": [{"text": "...", "answer_start": 515}, ...]}]}]}]}

In version 2 a question has "is_impossible" as well; where it is true, the context does not answer it.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minift.checkpoint import read_json
from minift.errors import InputError
from minift.metrics import f1
from minift.tokenizer import Span, check_characters


class Question(NamedTuple):
    """A question, the text that it asks about, and where in it people found the answer: nowhere, if there is none."""

    id: str
    question: str
    context: str
    answers: tuple[Span, ...]

    @property
    def answer_texts(self) -> list[str]:
        """The answers in the words of the context."""
        return [self.context[start:end] for start, end in self.answers]


class Questions:
    """The questions of a SQuAD file: `questions[i]` is ((question, context), answers).

    With `require_answers=False` answers are not looked at. Raises InputError for a file that is not so, for an answer
    that does not stand where the file says, and for a question without one that is not said to be impossible.
    """

    def __init__(self, path: Path, require_answers: bool = True):
        self.path = Path(path)
        self.questions: list[Question] = []
        for article in self._list(read_json(self.path), "data", "the file"):
            title = str(article.get("title", "without title")) if isinstance(article, dict) else ""
            for paragraph in self._list(article, "paragraphs", f"article {title!r}"):
                context = self._text(paragraph, "context", f"a paragraph of article {title!r}")
                for entry in self._list(paragraph, "qas", f"a paragraph of article {title!r}"):
                    self.questions.append(self._question(entry, context, require_answers))
        if not self.questions:
            raise InputError(f"{path}: no questions in it")

    def _question(self, entry: Any, context: str, require_answers: bool) -> Question:
        name = f"a question about {context[:30]!r}..."
        question = self._text(entry, "question", name)
        name = f"question {str(entry.get('id', question))!r}"
        answers: list[Span] = []
        impossible = entry.get("is_impossible", False)
        if require_answers and not isinstance(impossible, bool):
            raise InputError(
                f"{self.path}: 'is_impossible' of {name} was to be true or false, found {_brief(impossible)}"
            )
        if require_answers and not impossible:
            for answer in self._list(entry, "answers", name):
                answers.append(self._span(answer, context, name))
            if not answers:
                raise InputError(f"{self.path}: {name} has no answers, and no is_impossible says so")
        return Question(str(entry.get("id", "")), question, context, tuple(answers))

    def _span(self, answer: Any, context: str, name: str) -> Span:
        """Where an answer to the question `name` stands."""
        text = self._text(answer, "text", f"an answer to {name}")
        start = self._value(answer, "answer_start", f"an answer to {name}")
        if type(start) is not int:
            raise InputError(
                f"{self.path}: 'answer_start' of an answer to {name} was to be an integer, found {_brief(start)}"
            )
        there = context[start : start + len(text)] if start >= 0 else ""
        if not text or there != text:
            elsewhere = "" if text in context else ", nor anywhere else in it"
            raise InputError(
                f"{self.path}: {name}: the answer {text[:60]!r} does not stand at character {start} of its "
                f"context{elsewhere}; found {there[:60]!r}"
            )
        return start, start + len(text)

    def _list(self, holder: Any, key: str, name: str) -> list:
        found = self._value(holder, key, name)
        if not isinstance(found, list):
            raise InputError(f"{self.path}: {key!r} of {name} was to be a list, found {type(found).__name__}")
        return found

    def _text(self, holder: Any, key: str, name: str) -> str:
        found = self._value(holder, key, name)
        if not isinstance(found, str):
            raise InputError(f"{self.path}: {key!r} of {name} was to be a text, found {type(found).__name__}")
        check_characters(found, f"{self.path}: {key!r} of {name}")
        return found

    def _value(self, holder: Any, key: str, name: str) -> Any:
        if not isinstance(holder, dict) or key not in holder:
            raise InputError(f"{self.path}: {name} has no {key!r}: this is not the layout of SQuAD")
        return holder[key]

    @property
    def some_are_impossible(self) -> bool:
        """Whether there are questions without an answer, as in version 2."""
        return any(not question.answers for question in self.questions)

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> tuple[tuple[str, str], tuple[Span, ...]]:
        found = self.questions[index]
        return (found.question, found.context), found.answers


def _brief(value: Any) -> str:
    return json.dumps(value)[:60]


# ---- The official script's judgement -------------------------------------------------------------


def normalized(answer: str) -> str:
    """An answer without case, punctuation (ASCII's), the words a, an and the, and spare white space."""
    answer = "".join(character for character in answer.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer).split())


def exact_match(answer: str, expected: Sequence[str]) -> float:
    """1 where the normalized answer is one of the expected ones."""
    return float(normalized(answer) in _right_answers(expected))


def word_f1(answer: str, expected: Sequence[str]) -> float:
    """The F1 of the answer's words against those of the expected answer that it is nearest to.

    Where either has no words, 1 if neither has.
    """
    found = normalized(answer).split()
    scores = []
    for words in map(str.split, _right_answers(expected)):
        same = (Counter(found) & Counter(words)).total()
        scores.append(f1(same, len(found), len(words)) if found and words else float(found == words))
    return max(scores)


def _right_answers(expected: Sequence[str]) -> list[str]:
    """The expected answers, normalized; where nothing is left of any, to say nothing is right (version 2's script)."""
    return [each for each in map(normalized, expected) if each] or [""]
