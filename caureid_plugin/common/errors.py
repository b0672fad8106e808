"""The errors that a user can put right. Every other error is a bug, and shows its traceback."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator


class UserError(ValueError):
    """What a user can put right: the message names the value, the rule and what to change.

    It is carried as data, also out of other processes; :func:`in_one_line` shows it.
    Its subclasses are errors of a built-in kind too, for those who catch that kind.
    """

    __str__ = BaseException.__str__  # KeyError's shows its text in quotes

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        # torch makes the error of a loader's worker anew, from a text that ends with a traceback
        if args and str(args[0]).startswith(f"Caught {type(self).__name__} in DataLoader worker"):
            last = re.split(rf"^[\w.]+\.{type(self).__name__}: ", str(args[0]), flags=re.MULTILINE)
            self.args = (last[-1].rstrip(),)


class MissingPackage(UserError, ImportError):
    """A package is not installed: names the extra that has it."""


class NotFinite(UserError, FloatingPointError):
    """Numbers became NaN or infinite: training diverged."""


class OutOfMemory(UserError, MemoryError):
    """The machine, or the limit that was set, has not enough memory."""


class UnknownName(UserError, KeyError):
    """A config key, or a value of one, that nothing has by that name."""


def is_users(error: BaseException) -> bool:
    """Whether a user can put it right: a UserError, or what the system refuses, as a full disk."""
    bugs = (ConnectionError, io.UnsupportedOperation)  # that are OSErrors
    return isinstance(error, (UserError, OSError)) and not isinstance(error, bugs)


@contextlib.contextmanager
def in_one_line(name: str) -> Iterator[None]:
    """Ends a command with one line where a user can put the error right, and with exit code 1.

    Args:
        name: of the command, which begins the line.

    Raises:
        SystemExit: with the line.
    """
    try:
        yield
    except Exception as error:
        if not is_users(error):
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        sys.exit(f"{name}: {text}")
