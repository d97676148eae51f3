"""What the doctor says: one finding, and how it is printed."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that is wrong."""

    name: str
    """One of the fixed names, such as decayed-norms."""
    where: str
    """The parameters, the module, the texts or the option."""
    found: str
    """What was measured, and what it was to be."""
    mend: str
    """How to put it right."""

    def __str__(self) -> str:
        return f"{self.name}: {self.where}\n  found: {self.found}\n  mend:  {self.mend}"


def some(names: list[str], shown: int = 3) -> str:
    """`a, b, c and 4 more`."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
