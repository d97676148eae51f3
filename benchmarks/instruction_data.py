"""Made-up words and what becomes of them: as plain text to pre-train on, and as instructions to be followed.

A dictionary of words that no language has says what each is backwards, twice, in capitals. The instructions ask for the
same changes, in other sentences, of other words. All of it follows from a seed.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"

OPENINGS = (
    "### {}!\n\n",
    "### The word {}.\n\n",
    "### Of {} and what it becomes\n\n",
    "### Is {} a word?\n\n",
    "Somebody said {} once.\n\n",
    "Here is a word, and it is {}.\n\n",
    "Have you heard of {}, or read it?\n\n",
    "People who know {} know what follows.\n\n",
)
"""How an entry of the dictionary begins. No instruction has a character that the dictionary lacks."""


@dataclass(frozen=True)
class Change:
    """One thing that can be done to a word."""

    plain: str
    """How the dictionary says it."""
    instruction: str
    """How it is asked for."""
    of: Callable[[str], str]


CHANGES = (
    Change("Backwards: {}\n", "Spell {} from its end to its beginning.", lambda word: word[::-1]),
    Change("Twice: {}\n", "Repeat {}, without a space.", lambda word: word + word),
    Change("With commas: {}\n", "Put a comma between the letters of {}.", ",".join),
    Change("In capitals: {}\n", "Shout {}!", str.upper),
    Change("Beheaded: {}\n", "Drop where {} begins.", lambda word: word[1:]),
)

Instruction = tuple[str, str]
"""What is asked, and the answer."""


@dataclass(frozen=True)
class Texts:
    """What a seed gives: three parts that share no word, two of which share no answer."""

    plain: list[str]
    """Entries of the dictionary, to pre-train on."""
    train: list[Instruction]
    held_out: list[Instruction]
    """Equally many of each change."""


def texts(seed: int, entries: int, train: int, held_out: int) -> Texts:
    """So many entries and instructions. Raises AssertionError where an answer that is held out is in training."""
    generator = random.Random(seed)
    known: set[str] = set()

    def new_word() -> str:
        while (word := made_up(generator)) in known:
            pass
        known.add(word)
        return word

    plain = [entry(new_word(), generator) for _ in range(entries)]
    trained = [instruction(new_word(), index) for index in range(train)]
    answers = {answer for _, answer in trained}
    judged: list[Instruction] = []
    while len(judged) < held_out:
        asked = instruction(new_word(), len(judged))
        if asked[1] not in answers:  # two words without their first letters may be one
            judged.append(asked)
    assert answers.isdisjoint(answer for _, answer in judged)
    return Texts(plain, trained, judged)


def made_up(generator: random.Random) -> str:
    """Four to six letters, consonants and vowels in turn, none of them twice."""
    length = generator.randint(4, 6)
    kinds = [generator.sample(CONSONANTS, 3), generator.sample(VOWELS, 3)]
    first = generator.randrange(2)
    return "".join(kinds[(first + place) % 2][place // 2] for place in range(length))


def entry(word: str, generator: random.Random) -> str:
    """What the dictionary says of a word."""
    lines = [change.plain.format(change.of(word)) for change in generator.sample(CHANGES, len(CHANGES))]
    return generator.choice(OPENINGS).format(word) + "".join(lines)


def instruction(word: str, index: int) -> Instruction:
    """The changes in turn."""
    change = CHANGES[index % len(CHANGES)]
    return change.instruction.format(word), change.of(word)


def nearest(asked: str, train: list[Instruction]) -> Instruction:
    """The training instruction that shares the largest part of its groups of one to three letters (Jaccard)."""
    wanted = groups(asked)

    def likeness(other: Instruction) -> float:
        theirs = groups(other[0])
        return len(wanted & theirs) / len(wanted | theirs)

    return max(train, key=likeness)


@cache
def groups(text: str) -> set[str]:
    """All that stands in one, two or three places in a row."""
    return {text[start : start + length] for length in (1, 2, 3) for start in range(len(text) - length + 1)}
