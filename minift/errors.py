"""The one kind of error that is the user's to mend."""


class InputError(ValueError):
    """Something is wrong with what the user gave: a file, a label, an option, a model's name.

    The message is one line that names the place, what was found there and what was expected. The command
    line prints it without a traceback and exits with status 2; in Python it is an ordinary exception with
    the same words.
    """


class DivergedError(InputError):
    """The loss is no number any more: another rate may mend it, which a search for rates takes as an answer."""
