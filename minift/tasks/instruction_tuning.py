"""Instruction tuning: answer an instruction, the loss on the response alone (Ouyang et al. 2022; Taori et al. 2023)."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minift.checkpoint import open_file
from minift.data import Batch, BrokenRecord, Columns, Dataset, Lines, Text, json_object
from minift.errors import InputError
from minift.models.architecture import Architecture
from minift.tasks.documents import TextScore, batch_of_tokens, share_within
from minift.tasks.task_model import plain_text
from minift.tasks.text_generation import TextGeneration
from minift.tokenizer import check_characters

log = logging.getLogger("minift")

Message = dict[str, str]
"""One turn of a conversation: its role (system, user or assistant) and its content."""


class Instructions:
    """The conversations of a .jsonl file, each of which ends with the response that is to be learned.

    A line is {"instruction", "input", "output"}, where the input may be missing or empty, or {"messages": [{"role",
    "content"}, ...]}, whose last message is the assistant's. Raises InputError, with the line, for what is not so.
    """

    def __init__(self, path: Path):
        self.path = path
        self.conversations: list[list[Message]] = []
        with open_file(path) as file:
            lines = Lines(file, path)
            for line in lines:
                if line.strip():
                    place = f"{path}, line {lines.number - 1}"
                    try:
                        self.conversations.append(conversation(json_object(line), place))
                    except BrokenRecord as error:
                        raise InputError(f"{place}: {error}") from None
        if not self.conversations:
            raise InputError(f"{path}: the file is empty")
        self.examples: list[tuple[np.ndarray, np.ndarray]] = []
        self.complete: list[bool] = []
        self._made_with: tuple | None = None

    def tokenize(
        self,
        prompt: Callable[[list[Message]], list[int]],
        response: Callable[[str], list[int]],
        length: int,
        made_with: tuple,
    ) -> None:
        """Make the examples: tokens, and for each the next one where it is of the response.

        `made_with` is what decides them; examples that were made with the same are kept, another model's are not. A
        conversation whose prompt leaves no room for a response in `length` tokens is left out, and a warning says how
        many were. A longer response is cut. Raises InputError where none is left.
        """
        if self._made_with == made_with:
            return
        self.examples, self.complete = [], []
        for *before, last in self.conversations:
            asked, answered = prompt(before), response(last["content"])
            if len(asked) >= length:
                continue
            tokens = np.array([*asked, *answered][: length + 1])
            labels = tokens[1:].copy()
            labels[: len(asked) - 1] = -100
            self.examples.append((tokens[:-1], labels))
            self.complete.append(len(asked) + len(answered) <= length + 1)
        left_out = len(self.conversations) - len(self.examples)
        if left_out:
            log.warning(
                "%s: %d of %d instructions leave no room for a response in %d tokens, left out",
                self.path, left_out, len(self.conversations), length,
            )  # fmt: skip
        if not self.examples:
            raise InputError(f"{self.path}: no instruction leaves room for a response in {length} tokens")
        self._made_with = made_with

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.examples[index]


class Prompts(Dataset):
    """What is to be answered: texts as in any `Dataset`, or conversations as in `Instructions`, without the response.

    A response that is there is not looked at. `prompts[i]` is (text, None) or, of a conversation, (messages, None).
    """

    def _choose_text(self, names: list[str], text_column: str | None, pair_column: str | None) -> list[str]:
        if text_column is None and pair_column is None and {"instruction", "messages"} & set(names):
            return []
        return super()._choose_text(names, text_column, pair_column)

    def _text(self, row: dict[str, Any], number: int) -> Any:
        if self._text_columns:
            return super()._text(row, number)
        return conversation(row, f"{self.path}, line {number}", with_response=False)


def conversation(record: dict[str, Any], place: str, with_response: bool = True) -> list[Message]:
    """The messages of a line; the last one is the response, or what is to be answered where that is left out.

    Raises InputError, with the place, for a line that is not as `Instructions` says.
    """
    needed = ("instruction", "output") if with_response else ("instruction",)
    if "messages" in record:
        messages = record["messages"]
        if not isinstance(messages, list) or not all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in messages
        ):
            raise InputError(f"{place}: messages were to be a list of objects with a role and a content")
        answered = bool(messages) and messages[-1]["role"] == "assistant"
        if with_response and not (answered and len(messages) > 1):
            raise InputError(f"{place}: the last of two or more messages was to be the assistant's")
        if answered and not with_response:
            messages = messages[:-1]
        if not messages:
            raise InputError(f"{place}: there is no message to answer")
    elif set(needed) <= set(record):
        texts = [record["instruction"], record.get("input") or "", *(record[name] for name in needed[1:])]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{place}: instruction, input and output were to be texts")
        messages = as_messages((texts[0], texts[1]))
        messages += [{"role": "assistant", "content": text} for text in texts[2:]]
    else:
        expected = " and ".join(map(repr, needed))
        raise InputError(f"{place}: {expected}, or 'messages', were expected, found {', '.join(record)}")
    for message in messages:
        check_characters(message["content"], f"{place}: a text")
    return messages


def as_messages(instruction: Text) -> list[Message]:
    """What a user says who gives an instruction, or an instruction and what it is about."""
    parts = [instruction] if isinstance(instruction, str) else [part for part in instruction if part]
    return [{"role": "user", "content": "\n\n".join(parts)}]


class InstructionTuning(TextGeneration):
    """The next token of a response, given an instruction and the response so far.

    Conversations become text by the tokenizer's own chat template, else by `instruction_template`.
    """

    settings = ("instruction_template",)
    instruction_template = "### Instruction:\n{instruction}\n\n### Response:\n"
    """What stands around an instruction where the tokenizer has no chat template; config.json keeps it."""

    @classmethod
    def made(cls, config: Mapping[str, Any], architecture: Architecture) -> bool:
        return super().made(config, architecture) and "instruction_template" in config

    @classmethod
    def read(cls, path: Path, columns: Columns, labelled: bool = True) -> Any:
        """Conversations, see `Instructions`; without labels, what is to be answered, see `Prompts`."""
        return Instructions(path) if labelled else Prompts(path, *columns, require_label=False)

    def prepare(self, examples: Instructions) -> None:
        length = self.tokenizer.max_length
        made_with = (self.tokenizer, self.instruction_template, length)
        examples.tokenize(self.prompt_of, self.response, length, made_with)

    def targets(self, examples: Instructions) -> Sequence[Any]:
        self.prepare(examples)
        return [labels for _, labels in examples.examples]

    def pack(self, inputs: list[Any], targets: Sequence[Any] | None = None) -> Batch:
        """Of tokens, with the next ones of the response as labels; of instructions, nothing is asked."""
        return super().pack(inputs) if targets is None else batch_of_tokens(inputs, targets)

    def prompt(self, text: Text | list[Message]) -> list[int]:
        """An instruction, or a conversation, up to where the response begins."""
        return self.prompt_of(text if isinstance(text, list) else as_messages(text))

    def prompt_of(self, messages: list[Message]) -> list[int]:
        """A conversation, up to where the response begins. Raises InputError where there is no template for it."""
        template = self.tokenizer.config.get("chat_template")
        if isinstance(template, str):
            return self.tokenizer.pieces(fill_chat_template(template, messages, self.tokenizer.config))
        if [message["role"] for message in messages] != ["user"]:
            raise InputError(f"{self.tokenizer.source}: there is no chat_template, which conversations need")
        text = self.instruction_template.replace("{instruction}", messages[0]["content"])
        return self.tokenizer.before_text + self.tokenizer.pieces(text)

    def response(self, text: str) -> list[int]:
        """A response, with the token that ends it."""
        end = self.end_of_text
        return self.tokenizer.pieces(text) + ([] if end is None else [end])

    def shown(self, text: Text | list[Message]) -> str:
        return plain_text([message["content"] for message in text] if isinstance(text, list) else text)

    def metrics(self, predictions: list[TextScore], examples: Instructions) -> dict[str, float]:
        """{"exact_match", "response_loss", "accuracy"}.

        A response matches if each of its tokens, its end too, is the likeliest after those before it: then greedy
        generation writes just this response. A cut response never matches.
        """
        matches = [
            complete and not score.ranks.any()
            for score, complete in zip(predictions, examples.complete, strict=True)
        ]
        return {
            "exact_match": float(np.mean(matches)),
            "response_loss": float(np.concatenate([score.losses for score in predictions]).mean()),
            "accuracy": share_within(predictions, 1),
        }


def fill_chat_template(template: str, messages: list[Message], config: Mapping[str, Any]) -> str:
    """The text of a conversation, up to where the assistant's next message begins (transformers' chat templates).

    Raises InputError without the package jinja2, and for a template that cannot be filled with these messages.
    """
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError:
        raise InputError("a chat template needs the package jinja2: pip install jinja2") from None

    def refuse(message: str) -> None:
        raise TemplateError(message)

    # The sandbox, because the template comes with a checkpoint, and so from elsewhere.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    special = {
        name: token["content"] if isinstance(token, dict) else token
        for name, token in config.items()
        if name.endswith("_token")
    }
    try:
        filled = environment.from_string(template)
        return filled.render(messages=messages, add_generation_prompt=True, **special)
    except TemplateError as error:
        raise InputError(f"the chat template cannot be filled: {error}") from None
