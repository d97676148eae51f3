"""A BERT tokenizer of a few words, for tests that need some tokenizer and not a real one."""

from pathlib import Path

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film", "##s", "bore", "."]


def write_vocabulary(directory: Path, words: list[str] = WORDS) -> Path:
    """Write a vocab.txt into the directory and return the directory."""
    (directory / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return directory
