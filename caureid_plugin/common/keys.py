"""Config keys and values as they are given on a command line: what is wrong with one, in words."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Collection, Mapping
from typing import Any

from .errors import UnknownName, UserError
from .text import printable

_KINDS = {bool: "True or False", int: "a whole number", float: "a number with a decimal point",
          str: "text", list: "a list", tuple: "a list"}


def every_key(config: Mapping[str, Any]) -> dict[str, Any]:
    """The full names of a config's keys with their values, sections too.

    Example:
        >>> every_key({"SOLVER": {"MAX_EPOCH": 50}})
        {'SOLVER': {'MAX_EPOCH': 50}, 'SOLVER.MAX_EPOCH': 50}
    """
    found = {}
    for name, value in config.items():
        found[name] = value
        if isinstance(value, Mapping):
            found.update({f"{name}.{key}": below for key, below in every_key(value).items()})
    return found


def decoded(text: str) -> Any:
    """The Python literal that a text is; the text itself where it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def check_key(key: str, known: Collection[str]) -> None:
    """Refuses a key that is not among the ``known`` ones.

    Raises:
        UnknownName: with known keys that are like it.
    """
    if key not in known:
        close = difflib.get_close_matches(key, known, n=3)
        raise UnknownName(f"There is no config key {key!r}"
                          + (f", did you mean {' or '.join(close)}?" if close else "."))


def check_value(key: str, given: object, value: object, present: object) -> None:
    """Refuses a value of the wrong type, and says how to write it.

    Args:
        given: the value as the user wrote it.
        value: what that stands for (:func:`decoded`).
        present: the key's value so far, whose type counts; of other types than a config's, none.

    Raises:
        UserError: the types differ, or the key is a section.
    """
    if isinstance(present, Mapping):
        raise UserError(f"The value of {key} is a section: give its keys one by one, as in "
                        f"{key}.KEY VALUE.")
    wanted = _KINDS.get(type(present))
    if wanted is None or _KINDS.get(type(value)) == wanted:
        return
    text = str(given)
    text = text if len(text) < 200 else f"{text[:200]}..."
    remedy = "."
    if wanted == _KINDS[str]:
        remedy = f": put it in quotes twice, as in \"{text!r}\"."
    elif type(value) is int and wanted == _KINDS[float]:
        remedy = f": write {value}.0."
    elif value is None:  # which yacs takes for any key, as of a line `BASE_LR:` in a file
        remedy = ": give it a value, or take the key out for its default."
    held = "nothing" if value is None else _KINDS.get(type(value), f"a {type(value).__name__}")
    raise UserError(f"Type mismatch: config key {key} takes {wanted}, and {printable(text)} is "
                    f"{held}{remedy}")
