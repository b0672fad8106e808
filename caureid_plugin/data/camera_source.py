"""Where an image's camera is read from: its folder, a pattern, a CSV file, or nowhere."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import re
import time
import unicodedata
from collections.abc import Collection, Mapping, Sequence

import regex

from ..common.errors import UserError
from ..common.text import printable
from .listing import SHOWN, first_of, images_of_rows, read_rows

SECTION = "CAMERA_FOLDER"
SOURCES = ("folder", "pattern", "csv", "none")  # of cameras and of tracks
UNMATCHED = ("error", "skip")
# option that not every source uses -> those that do
USED_BY = {"level": ("folder",), "pattern": ("pattern",), "csv": ("csv",),
           "unmatched": ("folder", "pattern", "csv")}
LONGEST_PATTERN = 2000  # characters
MOST_REPEATS = 10 ** 6  # its {n} multiplied: each repeat is built, of some 300 bytes
# Of computing, for one image; and for each, beside twice that. Python's own ``re`` has no limit. A
# plain pattern takes some ten microseconds.
PATTERN_SECONDS, MORE_SECONDS = 1.0, 1e-4
ONLY_CAMERA = "one"  # its name, where there is no other
_WHOLE_NUMBER = re.compile(r"(-?)0*([0-9]+?)(?:\.0*)?")


def plain_name(text: str) -> str:
    """A camera's or identity's name; whole numbers in one spelling: 01 and 1.0 are 1.

    pandas writes 1.0 where a column of numbers has a gap. Other ways to write a number, such as +1
    and 1e0, are names.
    """
    number = _WHOLE_NUMBER.fullmatch(text)
    if number is None:
        return text
    return number[2] if number[2] == "0" else number[1] + number[2]


def spelling_key(name: str) -> str:
    """What names have in common that differ only in capitals, signs, blanks or leading zeros.

    So does ``.0`` behind a number, as pandas writes it.

    Signs between two numbers count: "1-2" is not "12"; so does the minus of a number: "-1" is not
    "1". How Unicode composes a letter does not.
    """
    minus = "-" if re.fullmatch(r"-[0-9]+(?:[.,][0-9]*)?", name) else ""
    name = "".join(c for c in unicodedata.normalize("NFKC", name).casefold()
                   if unicodedata.category(c) != "Cf")  # invisible
    text = re.sub(r"(?<=[0-9])[.,]0+(?![0-9])", "", name)
    # bytes that are no text, which Python keeps as surrogates, count
    text = re.sub(r"(?:[^\w\udc80-\udcff]|_)+", " ", text).strip()
    text = re.sub(r"(?<![0-9])0+(?=[0-9])", "", text)
    return minus + re.sub(r"(?<![0-9]) | (?![0-9])", "", text)


def alike_names(places: Mapping[str, Collection[str]]) -> str:
    """Names that differ only in their spelling, for a message; "" if there are none.

    Args:
        places: where names come from -> the names.

    Example:
        ``{"QUERY": ["Cam1"], "GALLERY": ["cam1", "2"]}`` gives
        ``"'Cam1' (QUERY) and 'cam1' (GALLERY)"``.
    """
    found: dict[str, dict[str, list[str]]] = collections.defaultdict(dict)
    for place, names in places.items():
        for name in sorted(names):
            found[spelling_key(name)].setdefault(name, []).append(place)
    groups = [" and ".join(f"{name!r} ({', '.join(where)})" for name, where in group.items())
              for group in found.values() if len(group) > 1]
    more = f"; and {len(groups) - SHOWN} more" if len(groups) > SHOWN else ""
    return "; ".join(groups[:SHOWN]) + more


@dataclasses.dataclass(frozen=True)
class CameraSource:
    """The options of CAMERA_FOLDER that say where a camera is read from; see config.py.

    Raises:
        ValueError: an unknown option, one that the source does not use, a pattern that is no
            regular expression or has no group for the camera.
    """

    camera: str = "folder"
    level: int = 1
    pattern: str = ""
    csv: str = ""
    unmatched: str = "error"

    def __post_init__(self) -> None:
        for name, known in (("camera", SOURCES), ("unmatched", UNMATCHED)):
            if getattr(self, name) not in known:
                raise UserError(f"{SECTION}.{name.upper()} {getattr(self, name)!r} is unknown, "
                                f"known are {known}.")
        for field in dataclasses.fields(self):
            used_by = USED_BY.get(field.name, SOURCES)
            value, default = getattr(self, field.name), field.default
            if self.camera not in used_by and value != default:
                raise UserError(
                    f"{SECTION}.{field.name.upper()} {value!r} is not used with {SECTION}.CAMERA "
                    f"{self.camera!r}: set it back to {default!r}, or CAMERA to "
                    f"{' or '.join(used_by)}.")
        if self.level == 0:
            raise UserError(f"{SECTION}.LEVEL 0 is no folder below {SECTION}.ROOT: 1 is the "
                            "first, -1 the one that holds the image.")
        if self.camera == "csv" and not self.csv:
            raise UserError(f"{SECTION}.CAMERA 'csv' needs {SECTION}.CSV, a file with the columns "
                            "path and camera.")
        if self.camera == "pattern":
            self._check_patterns()

    @property
    def patterns(self) -> list[str]:
        """The regular expressions of ``pattern``, which blanks separate."""
        return self.pattern.split()

    def _check_patterns(self) -> None:
        key = f"{SECTION}.PATTERN"
        if not self.patterns:
            raise UserError(f"{SECTION}.CAMERA 'pattern' needs {key}, a regular expression such "
                            f"as _c([0-9]+); it is {self.pattern!r}.")
        for text in self.patterns:
            groups = check_pattern(text, "PATTERN", (), whole=self.pattern)
            if groups.groups != 1 and "camera" not in groups.groupindex:
                raise UserError(
                    f"{key}: {text!r} has {groups.groups} groups, and the camera is read from one: "
                    "put (...) around it, or (?P<camera>...) if there are others. Blanks separate "
                    "patterns: \\s stands for one in a name.")

    def read(self, root: str, paths: Sequence[str]) -> list[str | None]:
        """The camera of each image, None where none is found.

        Args:
            root: the folder that the paths begin with.
            paths: of the images.

        Raises:
            ValueError: patterns that disagree about an image, or take more than a second for one
                or 0.1 ms for each; a CSV file that is damaged, names one image twice with
                different cameras, or images that there are not.
        """
        if self.camera == "none":
            return [ONLY_CAMERA] * len(paths)
        if self.camera == "csv":
            found = self._by_table(paths)
        elif self.camera == "pattern":
            search = PatternSearch(self.patterns, len(paths), "PATTERN")
            found = [search.camera(path) for path in below(root, paths)]
        else:
            found = [by_folder(path, self.level) for path in below(root, paths)]
        return [None if name is None else plain_name(name) for name in found]

    def _by_table(self, paths: Sequence[str]) -> list[str | None]:
        key = f"{SECTION}.CSV"
        rows = read_rows(os.path.expanduser(self.csv), ("path", "camera"), key)
        table: dict[str, tuple[int, str]] = {}
        for image, (line, (path, camera)) in images_of_rows(rows, paths, self.csv, key):
            first, known = table.setdefault(image, (line, plain_name(camera)))
            if known != plain_name(camera):
                raise UserError(
                    f"{key} {printable(self.csv)} names {printable(path)} twice: camera "
                    f"{printable(known)} in line {first}, {printable(camera)} in line {line}.")
        return [table[path][1] if path in table else None for path in paths]

    def how_to_change(self, root: str, paths: Sequence[str]) -> str:
        """Which keys to change where the cameras are read wrongly; LEVELs that find fewer."""
        if self.camera != "folder":
            key = "CSV (its column camera)" if self.camera == "csv" else self.camera.upper()
            return f"look at {SECTION}.{key}."
        most = len(set(self.read(root, paths)))
        found = {}
        for level in (1, 2, 3):
            names = set(dataclasses.replace(self, level=level).read(root, paths))
            if None not in names and len(names) < most:
                found[level] = len(names)
        others = ", ".join(f"LEVEL {level} finds {count}" for level, count in found.items())
        return (f"{SECTION}.LEVEL is {self.level}{f'; {others}' if others else ''}. See "
                f"{SECTION}.CAMERA for other ways.")

    def why_not(self, root: str, missing: Sequence[str], total: int) -> str:
        """What to say of the images without a camera, and which keys to change."""
        which = f"{len(missing)} of the {total} images below {SECTION}.ROOT {printable(root)}"
        first = first_of(below(root, missing))
        if self.camera == "folder":
            place = f"{abs(self.level)} folder(s) " + (
                "between it and the image" if self.level > 0 else "above the image")
            return (f"{SECTION}.CAMERA 'folder' with LEVEL {self.level} needs {place}, and {which} "
                    f"have fewer: {first}. Put each camera's images into a folder of its own, or "
                    "change LEVEL or CAMERA ('pattern' where the names tell it, 'none' for a "
                    "single camera)")
        if self.camera == "pattern":
            return (f"{SECTION}.PATTERN {self.pattern!r} finds no camera in {which}. It is "
                    f"searched in paths such as {first}. Change it, or add another behind a blank")
        return (f"{SECTION}.CSV {printable(self.csv)} has no row for {which}: {first}. Add them")


def by_folder(path: str, level: int) -> str | None:
    """The folder of a path below ROOT that a level names, None if it has fewer."""
    folders = path.split("/")[:-1]
    if len(folders) < abs(level):
        return None
    return folders[level - 1 if level > 0 else level]


def check_pattern(text: str, name: str, groups: Sequence[str], *, whole: str = ""
                  ) -> re.Pattern[str]:
    """Checks a regular expression of CAMERA_FOLDER.

    Args:
        text: the expression.
        name: of its key.
        groups: that it must have, by name.
        whole: what the key holds, if that is more.

    Raises:
        ValueError: it is too long, repeats too much, is no regular expression, or lacks a group.
    """
    key, whole = f"{SECTION}.{name}", whole or text
    if len(whole) > LONGEST_PATTERN:
        raise UserError(f"{key} has {len(whole)} characters, and {LONGEST_PATTERN} are allowed: "
                        f"shorten it, or list the images in a table ({SECTION}.CSV).")
    repeats = [max(1, int(number)) for number in re.findall(r"([0-9]+),?\}", text)]
    if math.prod(repeats) > MOST_REPEATS:
        raise UserError(f"{key}: {text!r} repeats what repeats, by {{n}}, more than "
                        f"{MOST_REPEATS:,} times: write smaller numbers, or + for them.")
    try:
        compiled = re.compile(text)
        regex.compile(text)
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        raise UserError(f"{key}: {text!r} is no regular expression: {error}. Blanks separate "
                        "patterns: \\s stands for one in a name.") from error
    if missing := [group for group in groups if group not in compiled.groupindex]:
        raise UserError(f"{key}: {text!r} has no group (?P<{missing[0]}>...): put it around the "
                        f"{missing[0]}.")
    return compiled


class PatternSearch:
    """Patterns in the paths of so many images, which have one budget of time together.

    Args:
        patterns: regular expressions.
        images: how many paths will be searched.
        name: of their key, for the messages.
    """

    def __init__(self, patterns: Sequence[str], images: int, name: str) -> None:
        self.key = f"{SECTION}.{name}"
        self.patterns = [regex.compile(text) for text in patterns]
        self.images, self.seconds = images, 2 * PATTERN_SECONDS + MORE_SECONDS * images
        self.end = time.thread_time() + self.seconds
        self.slowest = 0.0, "", ""  # seconds, pattern, path

    def groups(self, path: str) -> dict[str, str | None] | None:
        """The named groups of the first pattern in a path, None if it is not there."""
        match = self._match(self.patterns[0], path)
        return match and match.groupdict()

    def camera(self, path: str) -> str | None:
        """What the patterns find that match, None if none does."""
        camera, by = None, ""
        for pattern in self.patterns:
            match = self._match(pattern, path)
            found = match and match["camera" if "camera" in match.groupdict() else 1]
            if not found:
                continue
            if camera is not None and plain_name(found) != plain_name(camera):
                raise UserError(
                    f"Two of {self.key} disagree about {printable(path)}: {by!r} reads "
                    f"camera {printable(camera)}, {pattern.pattern!r} reads {printable(found)}. "
                    "Change one of them.")
            camera, by = found, pattern.pattern
        return camera

    def _match(self, pattern: regex.Pattern[str], path: str) -> regex.Match[str] | None:
        start = time.thread_time()
        left = self.end - start
        try:
            if left <= 0:  # short searches do not look at their limit
                raise TimeoutError
            match = pattern.search(path, timeout=min(PATTERN_SECONDS, left))
        except TimeoutError as error:
            text, where = pattern.pattern, f"{PATTERN_SECONDS:g} s for {printable(path)}"
            if left < PATTERN_SECONDS:
                _, text, slowest = max(self.slowest, (left, text, path))
                where = (f"{self.seconds:.3g} s for {self.images} images, {printable(slowest)} for "
                         "one")
            raise UserError(
                f"{self.key}: {text!r} takes more than {where}: it repeats what repeats, "
                "as (a+)+ does, or has several of .*; write it without.") from error
        self.slowest = max(self.slowest, (time.thread_time() - start, pattern.pattern, path))
        return match


def below(root: str, paths: Sequence[str]) -> list[str]:
    """Paths as seen from ``root``, which they begin with, with "/" between folders."""
    start = len(os.path.join(root, ""))
    return [path[start:].replace(os.sep, "/") for path in paths]
