"""Text for people: paths, numbers and errors, each in one line."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping


def shown(path: object) -> str:
    """A path as an error shows it: quoted where it would break the line or cannot be encoded."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def sentence(text: object) -> str:
    """A text with a full stop at its end."""
    said = str(text).strip()
    return said if said.endswith((".", "!", "?")) else f"{said}."


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
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def printable(path: str) -> str:
    """A path as text that can be written whatever its bytes."""
    return os.fsencode(path).decode("utf-8", "replace")


@contextlib.contextmanager
def naming_keys(keys: Mapping[str, str]) -> Iterator[None]:
    """Adds config keys to the errors of functions that name only their own arguments.

    Args:
        keys: argument -> its config key. The key follows the argument's first mention in brackets.

    Raises:
        ValueError, MemoryError, ImportError: as raised within, of the same type.

    Example:
        >>> with naming_keys({"gain": "MODEL.HEADS.CAMSEP.GAIN"}):
        ...     raise ValueError("gain 0 must be positive.")
        Traceback (most recent call last):
        ValueError: gain (MODEL.HEADS.CAMSEP.GAIN) 0 must be positive.
    """
    try:
        yield
    except (ValueError, MemoryError, ImportError) as error:
        text = str(error)
        for argument, key in keys.items():
            text = re.sub(rf"\b{argument}\b", f"{argument} ({key})", text, count=1)
        if text == str(error):
            raise
        raise type(error)(text) from error
