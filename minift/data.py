"""From files of labelled texts to packed batches.

A file is read twice. The first pass checks every row and remembers where it begins and its label: some 12
bytes a row, so a file may be larger than memory. After that, rows are read when asked for, in any order.

A batch of B texts is one row of T tokens, one text after the other, without padding:

    ids        [CLS] good film [SEP] [CLS] a bore [SEP]      (T,)
    positions    0    1    2     3     0   1  2     3        (T,)
    offsets    [0, 4, 8]                                     (B + 1,)
"""

import csv
import json
import logging
import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from minift_kernels.arrays import array_namespace

from minift.checkpoint import open_file
from minift.errors import InputError
from minift.tokenizer import Encoding, Text, Tokenizer, check_characters

log = logging.getLogger("minift")

Label = int | str

TEXT_COLUMNS = ("sentence", "text")
PAIR_COLUMNS = ("sentence1", "sentence2")


class Columns(NamedTuple):
    """The columns, or keys, that the user chose; None for those of `Dataset`'s own choice."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None


# ---- Rows of a file ------------------------------------------------------------------------------


class Lines:
    """The lines of a UTF-8 file as text, from byte `offset` on; `offset` and `number` are the next line's."""

    def __init__(self, file: BufferedReader, path: Path, offset: int = 0, number: int = 1):
        file.seek(offset)
        self.file = file
        self.path = path
        self.offset = offset
        self.number = number

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.file.readline()
        if not line:
            raise StopIteration
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            place = f"{self.path}, line {self.number}, byte {error.start + 1}"
            raise InputError(f"{place}: 0x{line[error.start]:02x} is not UTF-8") from None
        if self.offset == 0:
            text = text.removeprefix("\ufeff")  # a byte-order mark, which some editors write
        self.offset += len(line)
        self.number += 1
        return text


class BrokenRecord(Exception):
    """What a reader found instead of a record."""


# A reader takes the next record: its fields, or None for a blank line. At the end it raises StopIteration.


def _read_tsv(lines: Lines) -> list[str] | None:
    line = next(lines).removesuffix("\n").removesuffix("\r")
    return line.split("\t") if line else None


def _read_csv(lines: Lines) -> list[str] | None:
    try:
        return next(csv.reader(lines, strict=True)) or None
    except csv.Error as error:
        raise BrokenRecord(f"not CSV: {error} (is a quotation mark missing?)") from None


def _read_txt(lines: Lines) -> dict[str, Any]:
    # An empty line is a text, too: whoever lays predictions beside the file's lines expects one for each.
    return {"text": next(lines).removesuffix("\n").removesuffix("\r")}


def _read_jsonl(lines: Lines) -> dict[str, Any] | None:
    line = next(lines)
    return json_object(line) if line.strip() else None


def json_object(line: str) -> dict[str, Any]:
    """The JSON object that a line holds. Raises BrokenRecord for anything else."""
    try:
        record = json.loads(line)
    except RecursionError:
        raise BrokenRecord("not JSON that can be read: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise BrokenRecord(f"not JSON: {error.msg}, at column {error.colno}") from None
    except ValueError as error:
        raise BrokenRecord(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise BrokenRecord(f"a JSON object was expected, found {type(record).__name__}")
    return record


READERS: dict[str, Callable[[Lines], Any]] = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".txt": _read_txt,
}


class Dataset:
    """The rows of one file: `dataset[i]` is (text, label), or ((text, text), label) for pairs of texts.

    The file is .tsv (split at tabs alone, no quoting), .csv or .jsonl, in UTF-8, with a header or keys. The
    text is the column `sentence` or `text`, or the pair `sentence1` and `sentence2`; the label is the
    column `label`. The arguments choose others. With `require_label=False` no label is looked for, and each
    label is None; the file may then also be .txt, a text in every line, without a header.

    Raises InputError, with the line, for a file that is not so.
    """

    LABEL_COLUMNS: ClassVar[tuple[str, ...]] = ("label",)
    """Where the label is if nobody says: the first of these that the file has."""

    def __init__(
        self,
        path: str | Path,
        text_column: str | None = None,
        pair_column: str | None = None,
        label_column: str | None = None,
        require_label: bool = True,
    ):
        self.path = Path(path)
        self._file = open_file(self.path)
        if self.path.suffix.lower() not in READERS:
            raise InputError(
                f"{path}: unknown ending {self.path.suffix!r}; the endings are {', '.join(READERS)}"
            )
        self._read = READERS[self.path.suffix.lower()]
        self._header: list[str] | None = None
        self._offsets = array("q")  # where each row begins, in bytes
        self._codes = array("i")  # the label of each row, as an index into values
        self.values: list[Label] = []  # the distinct labels, in the order of their first row
        self._index(text_column, pair_column, label_column, require_label)

    # ---- The first pass ----

    def _index(
        self, text_column: str | None, pair_column: str | None, label_column: str | None, require_label: bool
    ) -> None:
        first = next(self._records(), None)
        if first is None:
            raise InputError(f"{self.path}: the file is empty")
        names = list(first[2])  # the header's fields, or the keys of the first object
        self._text_columns = self._choose_text(names, text_column, pair_column)
        present = [name for name in self.LABEL_COLUMNS if name in names]
        chosen = label_column or (present or self.LABEL_COLUMNS)[0]
        self._label_column = self._choose(names, chosen) if require_label else None
        columns = [*self._text_columns, self._label_column]
        twice = [name for name in columns if columns.count(name) > 1]
        if twice:
            raise InputError(
                f"{self.path}: column {twice[0]!r} is chosen twice; text, pair and label are each one of their own"
            )

        records = self._records()
        if not isinstance(first[2], dict):
            self._header = names
            next(records)
        codes: dict[str, int] = {}
        for offset, number, record in records:
            row = self._named(record, number)
            self._text(row, number)
            self._offsets.append(offset)
            if self._label_column is not None:
                label = self.label_text(self._value(row, self._label_column, number), number)
                self._codes.append(codes.setdefault(label, len(codes)))
        if not self._offsets:
            raise InputError(f"{self.path}: a header ({_list(names)}) and no rows")
        integers = all(map(_is_integer, codes))
        self.values = [int(label) if integers else label for label in codes]

    def _choose_text(self, names: list[str], text_column: str | None, pair_column: str | None) -> list[str]:
        if text_column is not None:
            wanted = [text_column] if pair_column is None else [text_column, pair_column]
            return [self._choose(names, name) for name in wanted]
        if pair_column is not None:
            raise InputError(
                f"pair_column {pair_column!r} is the second text; text_column, the first, is missing"
            )
        for name in TEXT_COLUMNS:
            if name in names:
                return [self._choose(names, name)]
        if set(PAIR_COLUMNS) <= set(names):
            return [self._choose(names, name) for name in PAIR_COLUMNS]
        expected = f"{' or '.join(map(repr, TEXT_COLUMNS))}, or {' with '.join(map(repr, PAIR_COLUMNS))}"
        raise InputError(f"{self.path}: no column {expected}; there are: {_list(names)}")

    def _choose(self, names: list[str], name: str) -> str:
        if names.count(name) == 1:
            return name
        problem = "no column" if name not in names else "more than one column"
        raise InputError(f"{self.path}: {problem} {name!r}; there are: {_list(names)}")

    # ---- Records ----

    def _records(self, offset: int = 0, number: int = 1) -> Iterator[tuple[int, int, Any]]:
        """(offset, line number, fields) of each record from `offset` on. Blank lines are none, but in a .txt."""
        lines = Lines(self._file, self.path, offset, number)
        while True:
            offset, number = lines.offset, lines.number
            try:
                record = self._read(lines)
            except StopIteration:
                return
            except BrokenRecord as error:
                raise self.error(number, str(error)) from None
            if record is not None:
                yield offset, number, record

    def _named(self, record: Any, number: int) -> dict[str, Any]:
        if self._header is None:
            return record
        if len(record) != len(self._header):
            expected = f"{len(self._header)} were expected ({_list(self._header)})"
            raise self.error(
                number, f"{len(record)} {'column' if len(record) == 1 else 'columns'}, {expected}"
            )
        return dict(zip(self._header, record, strict=True))

    def _text(self, row: dict[str, Any], number: int) -> Text:
        texts = []
        for name in self._text_columns:
            text = self._value(row, name, number)
            if not isinstance(text, str):
                raise self.error(number, f"{name!r} was to be a text, found {json.dumps(text)[:60]}")
            check_characters(text, f"{self.path}, line {number}: {name!r}")
            texts.append(text)
        return texts[0] if len(texts) == 1 else (texts[0], texts[1])

    def label_text(self, value: Any, number: int) -> str:
        """The label that stands in line `number` as `value`, as a text; equal labels are equal texts.

        Raises InputError, with the line, for what is no label.
        """
        no_number = isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value))
        if no_number or not isinstance(value, str | int | float):
            raise self.error(number, f"label was to be a string or a number, found {json.dumps(value)[:60]}")
        label = str(value).strip()  # a space that nobody sees is no other class
        if not label:
            raise self.error(number, "the label is empty")
        check_characters(label, f"{self.path}, line {number}: the label")
        return label

    def _value(self, row: dict[str, Any], name: str, number: int) -> Any:
        if name not in row:  # only JSON objects can differ from row to row
            raise self.error(number, f"no key {name!r}; there are: {_list(list(row))}")
        return row[name]

    def error(self, number: int, problem: str) -> InputError:
        """What to raise of line `number`."""
        return InputError(f"{self.path}, line {number}: {problem}")

    # ---- Access ----

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> tuple[Text, Label | None]:
        try:
            _, number, record = next(self._records(self._offsets[index]))
            text = self._text(self._named(record, number), number)
        except (InputError, StopIteration):  # the first pass has read this row
            raise InputError(
                f"{self.path}: the file was changed while in use, row {index + 1} is broken"
            ) from None
        return text, self.values[self._codes[index]] if self._codes else None

    @property
    def labels(self) -> list[Label]:
        """The distinct labels: integers in their order if all are integers, else strings, alphabetically."""
        return sorted(self.values)  # type: ignore[type-var]  # never both kinds at once

    def label_ids(self, names: Sequence[Label]) -> np.ndarray:
        """(N,) int64: for each row the index of its label in `names`, the model's labels in their order.

        Where no name is an integer, a file may also say the index itself (0 and 1 for negative and
        positive). Raises InputError, with the line, for a label that is not among the names.
        """
        index_of = {str(name): index for index, name in enumerate(names)}
        if not any(map(_is_integer, index_of)):
            index_of |= {str(index): index for index in range(len(names))}
        for code, label in enumerate(self.values):
            if str(label) not in index_of:
                raise self.error(
                    self.first_line(code), f"label {label!r}, expected one of: {_list(list(names))}"
                )
        return self.each([index_of[str(label)] for label in self.values]).astype(np.int64)

    def each(self, of_label: Sequence[Any] | np.ndarray) -> np.ndarray:
        """(N, ...): for each row what belongs to its label; `of_label` has it in the order of `values`."""
        return np.asarray(of_label)[np.array(self._codes)]

    def first_line(self, code: int) -> int:
        """The line that first has the label `values[code]`: counted when an error needs it, not kept for every row."""
        offset = self._offsets[self._codes.index(code)]
        self._file.seek(0)
        number = 1
        while offset > 0:
            block = self._file.read(min(offset, 1 << 20))
            number += block.count(b"\n")
            offset -= len(block)
        return number


class SingleTexts(Dataset):
    """A `Dataset` for tasks that know no pairs: raises InputError where the columns are those of a pair."""

    def _choose_text(self, names: list[str], text_column: str | None, pair_column: str | None) -> list[str]:
        chosen = super()._choose_text(names, text_column, pair_column)
        if len(chosen) > 1:
            raise InputError(
                f"{self.path}: one text a row was expected, found two, {' and '.join(map(repr, chosen))}; "
                f"choose one with --text-column {chosen[0]}"
            )
        return chosen


def _is_integer(label: str) -> bool:
    """Whether the text is how an integer is written, so that none is lost by reading it as one: 1, not 01."""
    digits = label.removeprefix("-")
    return digits.isdecimal() and digits.isascii() and (digits == "0") == digits.startswith("0")


def _list(names: Sequence[Any]) -> str:
    shown = ", ".join(repr(name) if isinstance(name, str) else str(name) for name in names[:12])
    return shown + (f", ... ({len(names)} in all)" if len(names) > 12 else "")


# ---- Batches -------------------------------------------------------------------------------------


@dataclass
class Batch:
    """B texts with T tokens in all, packed."""

    ids: np.ndarray
    """(T,) int64: the tokens of all texts, one text after the other."""
    token_types: np.ndarray
    """(T,) int64: 0, and 1 in the second text of a pair."""
    positions: np.ndarray
    """(T,) int64: the place of each token in its own text, from 0."""
    offsets: np.ndarray
    """(B + 1,) int64: text b is tokens offsets[b] to offsets[b + 1]; the last one is T."""
    labels: np.ndarray | None = None
    """Where there are labels: one a text (B,), several (B, ...), or one a token (T,), as the task has it."""
    truncated: int = 0
    """How many of the texts were cut to the maximum length."""

    def __len__(self) -> int:
        """B."""
        return len(self.offsets) - 1

    @property
    def tokens(self) -> int:
        """T."""
        return len(self.ids)

    @property
    def targets(self) -> int:
        """How many labels count in the loss: of classes, all but those that are -100."""
        if self.labels is None:
            return 0
        return self.labels.size if self.labels.dtype.kind == "f" else int((self.labels != -100).sum())

    @property
    def segments(self) -> np.ndarray:
        """(B, 2): where each text starts, and where it ends (exclusive)."""
        xp = array_namespace(self.offsets)
        return xp.stack([self.offsets[:-1], self.offsets[1:]], axis=1)


def pack(encodings: Sequence[Encoding], labels: Any = None) -> Batch:
    """One batch from tokenized texts, and their labels, if there are any: one a text, in the same order."""
    lengths = [len(encoding.ids) for encoding in encodings]
    return Batch(
        ids=np.array([token for encoding in encodings for token in encoding.ids], np.int64),
        token_types=np.array([kind for encoding in encodings for kind in encoding.token_types], np.int64),
        positions=np.array([position for length in lengths for position in range(length)], np.int64),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        labels=None if labels is None else np.asarray(labels),
        truncated=sum(encoding.truncated for encoding in encodings),
    )


def batches(
    dataset: Dataset | Sequence[tuple[Text, Any]],
    tokenizer: Tokenizer,
    batch_size: int,
    *,
    labels: np.ndarray | None = None,
    seed: int | None = None,
    epoch: int = 0,
    start: int = 0,
) -> Iterator[Batch]:
    """The data set once, in batches of `batch_size` texts; the last one may be smaller.

    `labels` (one a row of the data set, such as `dataset.label_ids(names)`) go into the batches. With a
    seed the rows are shuffled, anew each epoch; without one they come in the order of the file. The first
    `start` batches are passed over unread: whoever resumes gets the same batches that would have come.
    Raises InputError for a batch size below 1.
    """
    for rows in rows_of_batches(len(dataset), batch_size, seed=seed, epoch=epoch, start=start):
        encodings = tokenizer.encode([dataset[int(row)][0] for row in rows])
        yield pack(encodings, None if labels is None else labels[rows])


def rows_of_batches(
    count: int, batch_size: int, *, seed: int | None = None, epoch: int = 0, start: int = 0
) -> Iterator[np.ndarray]:
    """The numbers 0 to count - 1 in batches, as `batches` takes them from a data set of `count` rows."""
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, expected 1 or more")
    order = np.arange(count) if seed is None else shuffled(count, seed, epoch)
    for first in range(start * batch_size, count, batch_size):
        yield order[first : first + batch_size]


def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers 0 to count - 1 in an order that depends on (seed, epoch) alone. Neither may be negative."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)


def warn_of_truncated(truncated: int, texts: int, max_length: int) -> None:
    """Say in one line how many texts were not read to their end; nothing where all were."""
    if truncated:
        log.warning("%d of %d texts: longer than %d tokens, truncated", truncated, texts, max_length)
