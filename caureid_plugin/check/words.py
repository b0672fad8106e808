"""What caureid check says: findings, sections and their words, on the terminal."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tabulate import tabulate

from ..clustering import Tracks
from ..common.errors import UserError
from ..inspection import Facts, choose

FAIL, ADVICE = "FAIL", "advice"
MOST_LINES = 20  # of a list on the terminal
# what config, datasets and network raise for bad input; all else is a bug
WRONG = (OSError, UserError)


@dataclass
class Section:
    """A part of the report: lines of text, and a table of headings and rows."""

    title: str
    lines: list[str] = field(default_factory=list)
    headings: tuple[str, ...] = ()
    rows: list[Any] = field(default_factory=list)


@dataclass
class Report:
    """What is said: sections, findings (level, text), and figures for the JSON file."""

    sections: dict[str, Section] = field(default_factory=dict)
    findings: list[tuple[str, str]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def section(self, key: str, title: str) -> Section:
        self.sections[key] = Section(title)
        return self.sections[key]

    def fail(self, text: str) -> None:
        self.findings.append((FAIL, text))

    def advise(self, text: str) -> None:
        self.findings.append((ADVICE, text))

    def verdict(self) -> str:
        levels = {level for level, _ in self.findings}
        return FAIL if FAIL in levels else "PASS with advice" if levels else "PASS"


@dataclass
class Data:
    """The training images: paths, cameras 0..C-1 and their names, facts of those that were read;
    how many files of each suffix were left out, because they are no images by their names, how
    many images in the folders that systems keep for themselves, by the folders' names, and the
    images that CAMERA_FOLDER.LEAVE_OUT names; the paths that it may name; and the tracks.

    ``rows`` of the facts; ``order``: rows of the readable ones in the order of their paths.
    """

    paths: list[str]
    camids: np.ndarray
    names: list[str]
    facts: Facts
    left_out: dict[str, int] = field(default_factory=dict)
    left_out_folders: dict[str, int] = field(default_factory=dict)
    left_out_images: list[str] = field(default_factory=list)
    own: set[str] = field(default_factory=set)
    tracks: Tracks | None = None

    def __post_init__(self) -> None:
        self.rows = self.facts.rows
        self.cameras = self.camids[self.rows]  # of the readable ones
        self.order = np.array(sorted(range(len(self.rows)), key=lambda i: by_number(
            self.paths[self.rows[i]])), dtype=np.int64)

    def chosen(self, which: np.ndarray) -> Data:
        """The same with only some of the readable images, (R,) bool."""
        return replace(self, facts=choose(self.facts, which))

    def path(self, row: int) -> str:
        return self.paths[self.rows[row]]

    def name(self, row: int) -> str:
        return self.names[self.cameras[row]]


def by_number(text: str) -> list[Any]:
    """Sorting key that puts frame9 before frame10."""
    parts = re.split(r"(\d+)", text)
    return [int(part) if part.isdecimal() else part for part in parts]


def count(number: int, noun: str) -> str:
    """A number and what it counts."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def share(part: int, whole: int) -> str:
    """A part in numbers and in per cent."""
    if not part:
        return f"none of {whole}"
    return f"{part} of {whole} ({100 * part / whole:.1f} %)"


def duration(seconds: float) -> str:
    """A time as people say it, of two parts at most."""
    if seconds < 0.1:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} days {minutes % 1440 // 60} h"


def ordinal(number: int) -> str:
    """The ending of 1st, 2nd, 3rd, 4th."""
    if number % 100 in (11, 12, 13):
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def shorten(lines: list[str]) -> list[str]:
    rest = len(lines) - MOST_LINES
    return lines if rest <= 1 else [*lines[:MOST_LINES], f"... and {rest} more"]


def show(report: Report) -> None:
    """Prints the report."""
    def wrapped(text: str, indent: str = "") -> str:
        return textwrap.fill(text, 100, subsequent_indent=indent, break_long_words=False,
                             break_on_hyphens=False)

    figures = report.figures
    if "images" in figures:
        print(f"{figures['images']} images of {', '.join(figures['datasets'])}, "
              f"{count(len(figures['cameras']), 'camera')}")
    for section in report.sections.values():
        print(f"\n{section.title}")
        if section.rows:
            rows = section.rows[:MOST_LINES]
            table = tabulate(rows, section.headings, tablefmt="github", disable_numparse=True,
                             colalign=["left"] + ["right"] * (len(section.headings) - 1))
            print(textwrap.indent(table, "  "))
            if len(section.rows) > len(rows):
                print(f"  ... and {len(section.rows) - len(rows)} more")
        for line in shorten(section.lines):
            print(wrapped("  " + line, "    "))
    print(f"\nVerdict: {report.verdict()}")
    for level, text in sorted(report.findings, key=lambda finding: finding[0] != FAIL):
        print(wrapped(f"  {level}: {text}", "    "))
