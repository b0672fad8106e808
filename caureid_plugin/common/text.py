"""Text for people: paths, numbers and errors, each in one line."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping

from .errors import MissingPackage, OutOfMemory, UserError


def printable(text: object) -> str:
    """A text that fits in a line: what would break it or cannot be encoded is escaped.

    Example:
        >>> printable("crops/a\\nb.jpg")
        'crops/a\\\\nb.jpg'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def with_full_stop(text: object) -> str:
    """A text with a full stop at its end."""
    stripped = str(text).strip()
    return stripped if stripped.endswith((".", "!", "?")) else f"{stripped}."


def short(number: float) -> str:
    """Two digits of a mean number, or all before the point."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def say(text: str) -> None:
    """Prints; a reader that has seen enough, as head has, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the end of Python


def percent(share: float, count: int) -> str:
    """A share of so many; where there was none of them, what that can tell."""
    return f"{100 * share:.3g} %" if share else f"under {100 / count:.2g} %"


def one_line(error: BaseException) -> str:
    """The text of an error, or its kind where it has none; a KeyError's without its quotes."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return printable(" ".join(str(text).split()) or type(error).__name__)


# What programs write into a cell that holds nothing, in lower case (R: NA; Excel, also in German:
# its errors).
_NOTHING = ("", "nan", "-nan", "nat", "<na>", "na", "n/a", "none", "null", "#n/a", "#na", "#nv",
            "#ref!", "#value!", "#name?", "#div/0!", "#null!", "#num!", "#bezug!", "#wert!")


def is_nothing(value: object) -> bool:
    """Whether a value stands for none: None, NaN, blanks, or the text that programs write then."""
    if isinstance(value, str):
        return value.strip().lower() in _NOTHING
    return value is None or value != value


_OF_KIND = {ValueError: UserError, MemoryError: OutOfMemory, ImportError: MissingPackage}


@contextlib.contextmanager
def naming_keys(keys: Mapping[str, str]) -> Iterator[None]:
    """Adds config keys to the errors of functions that name only their own arguments.

    Args:
        keys: argument -> its config key. The key follows the argument's first mention in brackets.

    Raises:
        UserError, OutOfMemory, MissingPackage: an error from within that names an argument, with
            its key. Other errors pass as they are.

    Example:
        >>> with naming_keys({"eps": "CAUREID.CLUSTER.EPS"}):
        ...     raise ValueError("eps 2 must be below 1.")
        Traceback (most recent call last):
        caureid_plugin.common.errors.UserError: eps (CAUREID.CLUSTER.EPS) 2 must be below 1.
    """
    try:
        yield
    except tuple(_OF_KIND) as error:
        text = str(error)
        for argument, key in keys.items():
            text = re.sub(rf"\b{argument}\b", f"{argument} ({key})", text, count=1)
        if text == str(error):
            raise
        raise next(kind for plain, kind in _OF_KIND.items() if isinstance(error, plain))(
            text) from error
