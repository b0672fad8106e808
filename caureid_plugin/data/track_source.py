"""Where an image's track and time are read from: its folder, a pattern, a CSV file, or nowhere."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..common.errors import UserError
from ..common.text import printable
from .camera_source import SECTION, SOURCES, PatternSearch, below, by_folder, check_pattern
from .listing import first_of, images_of_rows, read_rows

TIMES = ("none", "pattern", "csv")
# Of the tracks, that have one image: more, and what is read is hardly a track.
MOST_SINGLE = 0.9
# A pause of a track is odd that is so many times the usual, and more than a third of the track.
LONG_PAUSE = 100.0


class Sighting(NamedTuple):
    """What a tracker knows of an image: the track (None: none) and the time (NaN: not known)."""

    track: str | None
    time: float


@dataclasses.dataclass(frozen=True)
class TrackSource:
    """The options of CAMERA_FOLDER that say where tracks and times are read from; see config.py.

    Raises:
        ValueError: an unknown option, one that is not used, or a pattern without its group.
    """

    track: str = "none"
    level: int = -1
    pattern: str = ""
    time: str = "none"
    csv: str = ""

    def __post_init__(self) -> None:
        for name, known in (("track", SOURCES), ("time", TIMES)):
            if getattr(self, name) not in known:
                raise UserError(f"{SECTION}.{name.upper()} {getattr(self, name)!r} is unknown, "
                                f"known are {known}.")
        if self.level == 0:
            raise UserError(f"{SECTION}.TRACK_LEVEL 0 is no folder below {SECTION}.ROOT: 1 is the "
                            "first, -1 the one that holds the image.")
        if self.level != -1 and self.track != "folder":
            raise UserError(f"{SECTION}.TRACK_LEVEL {self.level} is not used with {SECTION}.TRACK "
                            f"{self.track!r}: set it back to -1, or TRACK to folder.")
        groups = [name for name in ("track", "time") if getattr(self, name) == "pattern"]
        if groups and not self.pattern:
            raise UserError(
                f"{SECTION}.{groups[0].upper()} 'pattern' needs {SECTION}.TRACK_PATTERN, a regular "
                "expression such as t(?P<track>[0-9]+)_f(?P<time>[0-9]+).")
        if self.pattern and not groups:
            raise UserError(f"{SECTION}.TRACK_PATTERN {self.pattern!r} is not used: set it back to "
                            "'', or TRACK or TIME to pattern.")
        if self.pattern:
            check_pattern(self.pattern, "TRACK_PATTERN", groups)
        if "csv" in (self.track, self.time) and not self.csv:
            key = "TRACK" if self.track == "csv" else "TIME"
            raise UserError(f"{SECTION}.{key} 'csv' needs {SECTION}.CSV, a file with the columns "
                            "path and " + {"TRACK": "track", "TIME": "seconds"}[key] + ".")

    def __bool__(self) -> bool:
        return (self.track, self.time) != ("none", "none")

    def read(self, root: str, paths: Sequence[str]) -> list[Sighting]:
        """The track and time of each image.

        Args:
            root: the folder that the paths begin with.
            paths: of the images.

        Raises:
            ValueError: an image in which none is found, but for an empty cell of the table; all
                are empty; a time that is no number; errors of patterns and tables as for cameras.
        """
        places = below(root, paths)
        tracks: Sequence[str | None] = [None] * len(paths)
        times: Sequence[str | None] = [None] * len(paths)
        if self.track == "folder":
            tracks = [by_folder(place, self.level) for place in places]
            self._check_found(tracks, places, f"TRACK_LEVEL {self.level} finds no folder for")
        if "pattern" in (self.track, self.time):
            search = PatternSearch([self.pattern], len(paths), "TRACK_PATTERN")
            found = [search.groups(place) for place in places]
            self._check_found(found, places, f"TRACK_PATTERN {self.pattern!r} does not match")
            if self.track == "pattern":
                tracks = [groups["track"] for groups in found if groups]
            if self.time == "pattern":
                times = [groups["time"] for groups in found if groups]
        if "csv" in (self.track, self.time):
            in_table = self._by_table(paths)
            tracks = in_table[0] if self.track == "csv" else tracks
            times = in_table[1] if self.time == "csv" else times
        for key, source, values in (("TRACK", self.track, tracks), ("TIME", self.time, times)):
            if source != "none" and not any(values):
                raise UserError(f"{SECTION}.{key} {source} finds nothing for any of the "
                                f"{len(paths)} images: fill the table's column or correct the "
                                f"pattern, or set {key} to none.")
        return [Sighting(track or None, _number(time, place, self.time))
                for track, time, place in zip(tracks, times, places, strict=True)]

    @staticmethod
    def _check_found(found: Sequence[object], places: Sequence[str], what: str) -> None:
        missing = [place for place, value in zip(places, found, strict=True) if value is None]
        if missing:
            raise UserError(f"{SECTION}.{what} {len(missing)} of the {len(places)} images: "
                            f"{first_of(missing)}. Change it, or list tracks in a table "
                            "(CAMERA_FOLDER.TRACK csv), where a cell may be empty.")

    def _by_table(self, paths: Sequence[str]) -> tuple[list[str | None], list[str | None]]:
        """Cells of the columns track and seconds; None where the table has none."""
        key = f"{SECTION}.CSV"
        columns = [name for name, source in (("track", self.track), ("seconds", self.time))
                   if source == "csv"]
        rows = read_rows(os.path.expanduser(self.csv), ("path", *columns), key, empty=columns)
        table: dict[str, tuple[int, list[str]]] = {}
        for image, row in images_of_rows(rows, paths, self.csv, key):
            line, known = table.setdefault(image, (row.line, row.cells[1:]))
            if known != row.cells[1:]:
                raise UserError(
                    f"{key} {printable(self.csv)} names {printable(row.cells[0])} twice: "
                    f"{' and '.join(columns)} {printable(known)} in line {line}, "
                    f"{printable(row.cells[1:])} in line {row.line}.")
        cells = [dict(zip(columns, table[path][1], strict=True)) if path in table else {}
                 for path in paths]
        return ([row.get("track") or None for row in cells],
                [row.get("seconds") or None for row in cells])


def _number(text: str | None, place: str, source: str) -> float:
    if text is None:
        return math.nan
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        key = "TRACK_PATTERN" if source == "pattern" else "CSV"
        raise UserError(f"{SECTION}.{key}: the time {printable(text)} of {printable(place)} is no "
                        "number: write seconds or the number of the frame.")
    return number


def oddities(cameras: Sequence[str], seen: Sequence[Sighting]) -> list[str]:
    """What is odd about tracks, one sentence each.

    Args:
        cameras: (N,) of the images.
        seen: (N,) tracks and times.
    """
    lengths = Counter((camera, item.track) for camera, item in zip(cameras, seen, strict=True)
                      if item.track is not None)
    single = sum(count == 1 for count in lengths.values())
    found = []
    if lengths and single > MOST_SINGLE * len(lengths):
        found.append(f"{single} of the {len(lengths)} tracks have a single image, so that they say "
                     "little: does CAMERA_FOLDER.TRACK read the track, or the image's own name?")
    moments = Counter((camera, item.track, item.time)
                      for camera, item in zip(cameras, seen, strict=True)
                      if item.track is not None and not math.isnan(item.time))
    if twice := [key for key, count in moments.items() if count > 1]:
        camera, track, time = twice[0]
        found.append(
            f"{len(twice)} times a track has several images at one time (the first: camera "
            f"{printable(camera)}, track {printable(track)}, time {time:g}): a tracker gives one "
            "box a frame, so that two people may share a track.")
    if pauses := _long_pauses(moments):
        pause, (camera, track) = max(pauses)
        found.append(
            f"{len(pauses)} track(s) pause for long (the longest: camera {printable(camera)}, "
            f"track {printable(track)}, for {pause:g}): has the tracker begun its numbers anew, "
            "or was a clock set? Whoever is there in between counts as another person.")
    without = sum(math.isnan(item.time) for item in seen)
    if 0 < without < len(seen):
        found.append(f"{without} of the {len(seen)} images have no time: nothing tells who was "
                     "there with them.")
    return found


def _long_pauses(moments: Iterable[tuple[str, str, float]]) -> list[tuple[float, tuple[str, str]]]:
    """The longest pause of each track that has an odd one, with its camera and name.

    Args:
        moments: camera, track and time of the images.
    """
    times = defaultdict(list)
    for camera, track, time in sorted(moments):
        times[camera, track].append(time)
    pauses = {key: [later - time for time, later in itertools.pairwise(own)]
              for key, own in times.items() if len(own) > 1}
    if not pauses:
        return []
    usual = statistics.median(itertools.chain.from_iterable(pauses.values()))
    return [(max(own), key) for key, own in pauses.items()
            if max(own) > max(LONG_PAUSE * usual, sum(own) / 3)]
