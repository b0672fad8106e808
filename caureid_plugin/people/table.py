"""The tables of ``caureid people``: crops with the person on each, as it writes and reads them."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import itertools
import json
import logging
import math
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..clustering.tracks import Tracks
from ..common.errors import UserError
from ..common.text import is_nothing, printable
from ..data.camera_source import alike_names
from ..data.listing import first_of, read_rows, same_file_names, why_gone

logger = logging.getLogger("fastreid.caureid")

COLUMNS = ("path", "camera", "track", "seconds", "person", "confidence")
SAME_TIME = 1e-3  # seconds: two tables that differ by less name one time


class Crop(NamedTuple):
    """An image, where and when it was taken; track "": none, seconds NaN: not known."""

    path: str
    camera: str
    track: str = ""
    seconds: float = math.nan


@dataclasses.dataclass(frozen=True)
class People:
    """Who is on each of T tracks, of N crops in the order of their paths.

    A crop without a track is one by itself.

    Attributes:
        crops: N of them.
        tracks: of the crops; its places are those in which nobody is twice at one time.
        persons: (T,) int64, the person on each track, from 1; 0: not known.
        confidence: (T,) float64, 0 to 1, see :func:`.assign.confidences`; NaN: no person.
        nearest: (T,) int64, the nearest other person that it may be, 0 if there is none.
        means: (T, D) float32, the mean features, of length 1.
        network: the checkpoint or file that has embedded the crops.
        fingerprint: of that network.
        settings: how tracks were compared, a sentence.
        threshold: of the run.
        first_new: number of the first person that an earlier table does not have.
        unreadable: why crops were left out.
        by_name: the folder's tracks that have a name, by camera and name. An earlier table's others
            are not in it: another day's track may have such a name.
    """

    crops: list[Crop]
    tracks: Tracks
    persons: np.ndarray
    confidence: np.ndarray
    nearest: np.ndarray
    means: np.ndarray
    network: str
    fingerprint: str
    settings: str
    threshold: float
    first_new: int
    unreadable: list[str]
    by_name: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def rows(self) -> list[list[int]]:
        """Of each track, the numbers of its crops, in the order of time and path."""
        found: list[list[int]] = [[] for _ in range(len(self.tracks))]
        for row, track in enumerate(self.tracks.of_image.tolist()):
            found[track].append(row)
        return [sorted(part, key=lambda row: (_or_zero(self.crops[row].seconds), row))
                for part in found]

    def name(self, track: int, folder: str) -> str:
        """What a track is called in a file of corrections in ``folder``."""
        crop = self.crops[self.rows[track][0]]
        return f"{crop.camera}/{crop.track}" if crop.track else path_in_table(
            crop.path, folder)

    def of_person(self) -> dict[int, list[int]]:
        """The tracks of each person, by camera and time; without a person under 0."""
        first = self.tracks.first.tolist()
        order = sorted(range(len(first)), key=lambda track: (
            self.crops[self.rows[track][0]].camera, _or_zero(first[track]), track))
        found: dict[int, list[int]] = defaultdict(list)
        for track in order:
            found[int(self.persons[track])].append(track)
        return dict(sorted(found.items()))


def _or_zero(number: float) -> float:
    return 0.0 if math.isnan(number) else number


def path_in_table(path: str, folder: str) -> str:
    """A path as a table in ``folder`` names it: from there if it lies below, else absolute."""
    path, folder = os.path.abspath(path), os.path.abspath(folder)
    if not path.startswith(os.path.join(folder, "")):
        return path
    found = os.path.relpath(path, folder).replace(os.sep, "/")
    return found if found == found.strip() else path  # blanks around a cell are not read


def check_names(crops: Sequence[Crop]) -> None:
    """Looks whether a table can hold the crops' names, so that it is read again as it was written.

    Raises:
        UserError: one is not UTF-8, or would be read as another name or as none.
    """
    for crop in crops:
        for what, name in (("camera", crop.camera), ("track", crop.track), ("path", crop.path)):
            if not name and what == "track":
                continue
            if "\r" in name or any("\ud800" <= sign <= "\udfff" for sign in name):
                why = "holds a carriage return, or bytes that are not UTF-8"
            elif name != name.strip() or is_nothing(name):
                why = "begins or ends with a blank, or is a word for an empty cell"
            else:
                continue
            raise UserError(f"The {what} '{printable(name)}' of {printable(crop.path)} {why}, "
                            "which no table of people can hold: rename it.")


def as_csv(people: People, folder: str) -> str:
    """The table, for a file in ``folder``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for crop, track in zip(people.crops, people.tracks.of_image.tolist(), strict=True):
        person = int(people.persons[track])
        writer.writerow((
            path_in_table(crop.path, folder), crop.camera, crop.track,
            "" if math.isnan(crop.seconds) else _exact(crop.seconds), person or "",
            f"{people.confidence[track]:.3f}" if person else ""))
    return text.getvalue()


def _exact(number: float) -> str:
    """With all its digits: rounded, two tracks could seem to be there at one time."""
    return repr(float(number)).removesuffix(".0")


def as_json(people: People, folder: str) -> str:
    """The same for other programs, with the crops of a track together."""
    def number(value: float) -> float | None:
        return None if math.isnan(value) else round(float(value), 6)

    def track_of(track: int) -> dict[str, Any]:
        crops = [people.crops[row] for row in people.rows[track]]
        return {"camera": crops[0].camera, "track": crops[0].track or None,
                "first": number(people.tracks.first[track]),
                "last": number(people.tracks.last[track]),
                "confidence": number(people.confidence[track]),
                "crops": [path_in_table(crop.path, folder) for crop in crops]}

    found = {person: [track_of(track) for track in tracks]
             for person, tracks in people.of_person().items()}
    unassigned = found.pop(0, [])
    return json.dumps({
        "made_by": "caureid people", "network": people.network, "fingerprint": people.fingerprint,
        "settings": people.settings, "unassigned": unassigned,
        "people": [{"person": person, "tracks": tracks} for person, tracks in found.items()],
    }, indent=1) + "\n"


def check_nobody_is_twice(people: People) -> None:
    """Looks at the result once more, in another way than it was made.

    Raises:
        RuntimeError: a person is twice in one place at one time, a bug.
    """
    seen: dict[tuple[int, int], list[tuple[float, float, int]]] = defaultdict(list)
    for track, rows in enumerate(people.rows):
        times = [people.crops[row].seconds for row in rows]
        times = [time for time in times if not math.isnan(time)]
        if times and people.persons[track]:
            seen[int(people.persons[track]), int(people.tracks.places[track])].append(
                (min(times), max(times), track))
    for (person, _), spans in seen.items():
        spans.sort()
        for (_, last, one), (first, _, other) in itertools.pairwise(spans):
            if first <= last:
                raise RuntimeError(f"person {person} is on tracks {people.name(one, '')} and "
                                   f"{people.name(other, '')}, which are there at one time")


class Known(NamedTuple):
    """A crop of an earlier table, and the person on it (0: not known)."""

    crop: Crop
    person: int
    line: int


def read_known(path: Path) -> list[Known]:
    """Reads an earlier table.

    Raises:
        UserError: it is damaged or contradicts itself, or its crops are gone; names the lines.
    """
    rows = read_rows(os.path.abspath(path), COLUMNS[:5], "--known", empty=COLUMNS[2:5])
    where = f"--known {printable(path)}"
    known: list[Known] = []
    paths: dict[str, int] = {}
    people: dict[tuple[str, str], Known] = {}
    names = same_file_names([row.cells[0] for row in rows])
    for name, (line, (file, camera, track, seconds, person)) in zip(names, rows, strict=True):
        if paths.setdefault(name, line) != line:
            raise UserError(f"{where} names {printable(file)} twice, in lines {paths[name]} and "
                            f"{line}: remove one.")
        one = Known(Crop(os.path.normpath(file), camera, track, _seconds(where, line, seconds)),
                    _person(where, line, person), line)
        first = people.setdefault((camera, track or name), one)
        if first.person != one.person:
            raise UserError(
                f"{where} has two people on track {printable(track)} of camera "
                f"{printable(camera)}: {first.person or 'nobody'} in line {first.line}, "
                f"{one.person or 'nobody'} in line {line}. A track has one; --corrections changes "
                "who it is.")
        known.append(one)
    if not known:
        raise UserError(f"{where} has no rows: leave --known out for the first table.")
    if gone := [one for one in known if not os.path.isfile(one.crop.path)]:
        missing = [one.crop.path for one in gone]
        raise UserError(
            f"{where}: {len(gone)} of its {len(known)} crops are not there (line {gone[0].line} is "
            f"the first): {first_of(missing)}. Known people are compared by their crops, so that "
            f"these must stay where they were. {why_gone(missing)}")
    return known


def _person(where: str, line: int, cell: str) -> int:
    if not cell:
        return 0
    if not re.fullmatch("[0-9]{1,10}", cell) or not 0 < int(cell) < 2 ** 31:
        raise UserError(f"{where}: the person {printable(cell)} in line {line} is no whole number "
                        "from 1.")
    return int(cell)


def _seconds(where: str, line: int, cell: str) -> float:
    try:
        seconds = float(cell) if cell else math.nan
    except ValueError:
        seconds = math.inf
    if math.isinf(seconds):
        raise UserError(f"{where}: the seconds {printable(cell)} in line {line} are no number.")
    return seconds


def with_known(crops: Sequence[Crop], known: Sequence[Known], table: Path | None) -> list[Crop]:
    """The crops of a folder and of an earlier table, each once, in the order of their paths.

    Args:
        crops: of the folder.
        known: of the table.
        table: for the messages.

    Raises:
        UserError: the folder says something else of a crop than the table; a track of the table
            goes by the name of another one of the folder.
    """
    where = f"--known {printable(table)}"
    listed = dict(zip(same_file_names([crop.path for crop in crops]), crops, strict=True))
    names = same_file_names([one.crop.path for one in known])
    here, away = set(), {}
    for name, one in zip(names, known, strict=True):
        key = one.crop.camera, one.crop.track
        crop = listed.pop(name, None)
        if crop is None:
            away[key] = one
            continue
        here.add(key)
        # another program may have rounded it
        same_time = (abs(crop.seconds - one.crop.seconds) <= SAME_TIME + 1e-9 * abs(crop.seconds)
                     or (math.isnan(crop.seconds) and math.isnan(one.crop.seconds)))
        if crop[1:3] != key or not same_time:
            raise UserError(
                f"{where}, line {one.line}: {printable(crop.path)} is {_where_and_when(one.crop)} "
                f"there, and {_where_and_when(crop)} in the folder: read the folder as for that "
                "table (CAMERA_FOLDER keys).")
    for crop in listed.values():
        key = crop.camera, crop.track
        if crop.track and key in away and key not in here:
            raise UserError(
                f"Camera {printable(crop.camera)} has a track {printable(crop.track)} in the "
                f"folder, and another in {where} (line {away[key].line}): a tracker that begins "
                "anew counts anew. Give the new tracks other names, such as the day before the "
                "number.")
    if alike := alike_names({"the folder": {crop.camera for crop in crops},
                             "--known": {one.crop.camera for one in known}}):
        logger.warning("Cameras that differ only in their spelling are different cameras, so that "
                       "a person may be in both at one time: %s. If one is meant, write it the "
                       "same everywhere.", alike)
    return sorted([*listed.values(), *(one.crop for one in known)])


def _where_and_when(crop: Crop) -> str:
    parts = [f"of camera {printable(crop.camera)}"]
    parts += [f"track {printable(crop.track)}"] if crop.track else []
    parts += [] if math.isnan(crop.seconds) else [f"time {_exact(crop.seconds)}"]
    return ", ".join(parts)
