"""The figures of a run: the one reader of metrics.json."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..compat.run_state import EVALUATION_CHANGED
from ..engine.verdict import collect, is_precision


def read_rows(path: Path) -> tuple[list[dict[str, Any]], str]:
    """Rows of metrics.json; none, and why, where it cannot be read.

    The last line may be cut off, in a run that is being written. Rows that a later one goes back
    behind are dropped: the run was resumed or begun anew there.
    """
    if not path.is_file():
        return [], f"{path.name} is missing from the run folder, which holds the curves' figures."
    rows: list[dict[str, Any]] = []
    try:
        lines = path.read_text(errors="replace").splitlines(keepends=True)
    except OSError as error:
        return [], f"{path.name} cannot be read ({error.strerror}): let this user read it."
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            step = operator.index(row["iteration"])
        except (KeyError, RecursionError, TypeError, ValueError):
            if number == len(lines) and not line.endswith("\n"):
                break
            return [], (f"{path.name} is damaged, its line {number} is no row of figures: remove "
                        "the line.")
        while rows and rows[-1]["iteration"] > step:
            rows.pop()
        rows.append(row)
    return rows, "" if rows else f"{path.name} holds no figures yet: wait for the first epoch."


def column(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """(iteration, finite value) of every row that has the key, the last of each iteration."""
    found = {row["iteration"]: row[key] for row in rows
             if isinstance(row.get(key), (int, float)) and abs(row[key]) < 1e300}  # not NaN, either
    return sorted(found.items())


def indicators(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Values in order of what :func:`caureid_plugin.engine.verdict.judge` looks at, NaN as well.

    Evaluations before the last change of the test sets are left out, as a resumed run does.
    """
    changed = max((n for n, row in enumerate(rows) if EVALUATION_CHANGED in row), default=0)
    figures: dict[str, dict[int, float]] = {}
    for n, row in enumerate(rows):
        for key, value in row.items():
            if n < changed and (is_precision(key) or is_precision(key, "start/")):
                continue
            figure = math.nan if value is None else value  # what jq and JavaScript make of NaN
            if type(figure) is float or (type(figure) is int and abs(figure) < 1e300):
                figures.setdefault(key, {})[row["iteration"]] = figure
    return collect({key: [value for _, value in sorted(found.items())]
                    for key, found in figures.items()})
