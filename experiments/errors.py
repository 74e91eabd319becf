"""What a user did wrong, and how it is said."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what was asked for: one line on stderr and exit status 2."""

    status = 2

    def __init__(self, message: str):
        super().__init__(_printable(" ".join(message.splitlines())))


def nearest(given: str, allowed: Iterable[str]) -> str:
    """` (nearest: x)`, or nothing where nothing is near."""
    near = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    return f" (nearest: {near[0]})" if near else ""


def one_line(error: BaseException) -> str:
    """The first line of what an exception says; its type's name where that is empty."""
    lines = [line.strip() for line in str(error).splitlines()]
    first = next(filter(None, lines), type(error).__name__)
    return _printable(first)


def _printable(text: str) -> str:
    # Control characters would move a terminal's cursor.
    return "".join(x if x.isprintable() else repr(x)[1:-1] for x in text)
