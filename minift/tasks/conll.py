"""CoNLL files: a word and its tag in each line, an empty line after each sentence (Tjong Kim Sang and De Meulder 2003).

    Angela   B-PER
    Merkel   I-PER
    visited  O
    Paris    B-LOC

Columns stand apart by tabs or spaces; the word is the first, the tag the last. Tags are BIO: B- begins a span, I-
continues it, O is outside.
"""

from pathlib import Path

from minift.checkpoint import open_file
from minift.data import Lines
from minift.errors import InputError

Sentence = tuple[str, ...]
"""The words of a sentence."""


class TaggedSentences:
    """The sentences of a file: `sentences[i]` is (words, tags). Lines that begin with -DOCSTART- are passed over.

    With `require_tags=False` tags are not looked at: a file may have a single column, and each sentence's tags are
    None. Raises InputError, with the line, for a file that is not so, and for tags that break the scheme.
    """

    def __init__(self, path: Path, require_tags: bool = True):
        self.path = Path(path)
        self.words: list[Sentence] = []
        self.tags: list[list[str]] = []
        self.first_lines: list[int] = []
        """The number of each sentence's first line."""
        self._columns: int | None = None
        self._require_tags = require_tags
        self._read()
        if not self.words:
            raise InputError(f"{path}: no sentences in it; a line was to hold a word and its tag")

    def _read(self) -> None:
        ended = True
        with open_file(self.path) as file:
            for number, line in enumerate(Lines(file, self.path), start=1):
                if not line.strip() or line.startswith("-DOCSTART-"):
                    ended = True
                    continue
                word, tag = self._row(line, number)
                if ended:
                    self.words.append(())
                    self.tags.append([])
                    self.first_lines.append(number)
                    ended = False
                if self._require_tags:
                    self._check(tag, self.tags[-1][-1] if self.tags[-1] else None, number)
                self.words[-1] += (word,)
                self.tags[-1].append(tag)

    def _row(self, line: str, number: int) -> tuple[str, str]:
        """The word and the tag of a line; where there are tabs they alone divide it."""
        fields = [field.strip() for field in line.split("\t")] if "\t" in line else line.split()
        self._columns = self._columns or max(len(fields), 2 if self._require_tags else 1)
        if len(fields) != self._columns or not all(fields):
            found = len([field for field in fields if field])
            columns = "1 column" if found == 1 else f"{found} columns"
            raise self.error(
                number, f"{columns}, {self._columns} were expected (the word first, the tag last)"
            )
        return fields[0], fields[-1]

    def _check(self, tag: str, before: str | None, number: int) -> None:
        """Raise InputError where `tag` is no BIO tag, or continues no span that the tag `before` it belongs to."""
        prefix, _, kind = tag.partition("-")
        if tag != "O" and not (prefix in ("B", "I") and kind):
            raise self.error(number, f"tag {tag!r}, expected O, or B- or I- with a type behind it")
        if prefix == "I" and before not in (f"B-{kind}", f"I-{kind}"):
            follows = "begins the sentence" if before is None else f"follows {before!r}"
            raise self.error(number, f"tag {tag!r} {follows}; a span begins with B-: 'B-{kind}'")

    def error(self, number: int, problem: str) -> InputError:
        """What to raise of line `number`."""
        return InputError(f"{self.path}, line {number}: {problem}")

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> tuple[Sentence, list[str] | None]:
        return self.words[index], self.tags[index] if self._require_tags else None

    @property
    def tag_names(self) -> list[str]:
        """O, then B- and I- of every type that occurs, in alphabetical order."""
        kinds = {tag.partition("-")[2] for tags in self.tags for tag in tags} - {""}
        return ["O", *(f"{prefix}-{kind}" for kind in sorted(kinds) for prefix in "BI")]
