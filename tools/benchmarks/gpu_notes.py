"""What the stages of tools/benchmarks/gpu.py have found: the file of each, the page of all.

Nothing here imports torch: a page can be written where it is missing.
"""

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from caureid_plugin.common.files import write_atomically
from caureid_plugin.common.text import one_line

FINISHED, CUT, FAILED, NOT_RUN = "finished", "cut off", "failed", "not run"  # states of a stage
WHAT, NOT_MEASURED = "what", "not measured"  # columns that mean something here


class NotMeasured(Exception):
    """A measurement is impossible here, which is no failure. Its text says why."""


class Notes:
    """Rows and remarks of one stage, on disk after each: what is there survives any end.

    Args:
        path: a JSON file; what it holds is taken over.

    Attributes:
        rows: a dict each, of which WHAT says what was measured.
        remarks: sentences.
        failures: one sentence for each measurement that failed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        there = json.loads(path.read_text()) if path.is_file() else {}
        self.rows: list[dict] = there.get("rows", [])
        self.remarks: list[str] = there.get("remarks", [])
        self.failures: list[str] = []

    def find(self, what: str) -> dict | None:
        """The row of a measurement that succeeded."""
        return next((row for row in self.rows
                     if row[WHAT] == what and NOT_MEASURED not in row), None)

    def put(self, what: str, row: dict) -> None:
        """Adds a row, in place of an older one of the same name."""
        fresh = {WHAT: what, **row}
        places = [i for i, old in enumerate(self.rows) if old[WHAT] == what]
        if places:
            self.rows[places[0]] = fresh
        else:
            self.rows.append(fresh)
        print(f"{what}: {row}", flush=True)
        self.write()

    def fail(self, what: str, reason: str) -> None:
        """Notes that a measurement failed, and with it the stage."""
        self.failures.append(f"{what}: {reason}")
        self.put(what, {NOT_MEASURED: reason})

    def measure(self, what: str, function: Callable[[], dict]) -> None:
        """Adds the row that the function returns, unless an earlier try has it. Errors are noted.
        """
        if self.find(what):
            print(f"{what}: measured before", flush=True)
            return
        try:
            self.put(what, function())
        except NotMeasured as reason:
            self.put(what, {NOT_MEASURED: str(reason)})
        except Exception as error:  # noqa: BLE001  the other measurements do not depend on it
            traceback.print_exc()
            self.fail(what, kind_and_text(error))

    def remark(self, sentence: str) -> None:
        if sentence not in self.remarks:
            self.remarks.append(sentence)
            self.write()

    def write(self) -> None:
        write_atomically(self.path, json.dumps(
            {"rows": self.rows, "remarks": self.remarks, "failures": self.failures}, indent=1))


def kind_and_text(error: Exception) -> str:
    """An error in a cell of a table: a compiler's has pages, of which the log has the rest."""
    return f"{type(error).__name__}: {one_line(error)[:160]}"


# ---------------------------------------------------------------------------- the page ----


def page(results: dict, titles: dict[str, str]) -> str:
    """The Markdown page of all results.

    Args:
        results: "command", and "stages" by name: "state", "why", "seconds", "rows", "remarks".
        titles: what to call each stage, in the order of the page.
    """
    stages = results["stages"]
    facts = {row[WHAT]: row["value"] for row in stages.get("facts", {}).get("rows", ())}
    device = facts.get("device", "an unknown device")
    if device == "CPU":
        device = f"a CPU, {facts.get('processor')}"
    parts = [f"# Measured on {device}",
             f"`{results['command']}`, {time.strftime('%Y-%m-%d', time.gmtime())}"]
    failed = [titles[name] for name in titles if stages.get(name, {}).get("state") == FAILED]
    if failed:
        parts.append(f"**Failed: {', '.join(failed)}.** The reasons are at the end.")
    for name, title in titles.items():
        stage = stages.get(name, {})
        if stage.get("rows"):
            seconds = f" ({stage['seconds']:.0f} s)" if "seconds" in stage else ""
            parts += [f"## {title}{seconds}", table(stage["rows"])]
            if stage.get("remarks"):
                parts.append("\n".join(f"- {remark}" for remark in stage["remarks"]))
    parts += ["## Not measured", "\n".join(missing(stages, titles)) or "Everything was measured."]
    return "\n\n".join(parts) + "\n"


def missing(stages: dict, titles: dict[str, str]) -> list[str]:
    """A sentence for each stage that is not finished, and for each row without a figure."""
    lines = []
    for name, title in titles.items():
        stage = stages.get(name, {"state": NOT_RUN, "why": "it was not asked for, or not reached"})
        if stage["state"] != FINISHED:
            kept = [row[WHAT] for row in stage.get("rows", ()) if NOT_MEASURED not in row]
            lines.append(f"- {title}: {stage['state']}, {stage['why']}."
                         + (f" Measured before that: {', '.join(kept)}." if kept else ""))
        lines += [f"- {title}, {row[WHAT]}: {row[NOT_MEASURED]}."
                  for row in stage.get("rows", ()) if NOT_MEASURED in row]
    return lines


def table(rows: list[dict]) -> str:
    """Markdown: a line for each row, a column for each name that any row has."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != NOT_MEASURED))
    names += ["figure"] * (len(names) == 1)
    lines = [names, ["---" if name in (WHAT, "value") else "---:" for name in names]]
    for row in rows:
        cells = [cell(row.get(name, "")) for name in names]
        if NOT_MEASURED in row:
            cells[1] = NOT_MEASURED
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: object) -> str:
    """A figure with three digits that count, or a text on one line."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return " ".join(str(value).split()).replace("|", r"\|")
