"""MOT files, as trackers write them, with the numbers of people in place of the tracks' ids."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..common.errors import UserError
from ..common.text import printable
from ..data.camera_source import plain_name

# names of columns, where a file has a header
FRAME, ID = ("frame", "frame_id"), ("id", "track", "track_id")
_CELL = re.compile(r"[^,;\s]+")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.0*)?")


class MotFile(NamedTuple):
    """A file of one camera, its lines, and of each that is a box: frame, track, place of the id.

    ``track`` is the name that caureid crops gives it: the id, behind the number of the file where
    a camera has several.
    """

    path: Path
    camera: str
    lines: list[str]
    boxes: dict[int, tuple[str, str, int, int]]


def read_mot(given: Sequence[str]) -> list[MotFile]:
    """Reads files, given as CAMERA=FILE, or FILE where the file has its camera's name.

    Raises:
        UserError: one cannot be read or is no such file (names the line); two would be written to
            one place.
    """
    named = []
    for word in given:
        camera, equals, file = word.partition("=")
        path = Path(file if equals and not Path(word).is_file() else word).expanduser()
        named.append((plain_name(camera if equals and not Path(word).is_file() else path.stem),
                      path))
    for (_, one), (_, other) in itertools.combinations(named, 2):
        if one.name == other.name:
            raise UserError(f"--mot {printable(one)} and {printable(other)} would be written to "
                            "one file: give them different names.")
    cameras = [camera for camera, _ in named]
    return [_read(path, camera, f"{cameras[:row + 1].count(camera)}-"
                  if cameras.count(camera) > 1 else "")
            for row, (camera, path) in enumerate(named)]


def _read(path: Path, camera: str, prefix: str) -> MotFile:
    where = f"--mot {printable(path)}"
    if not path.is_file():
        raise UserError(f"{where} is not a file.")
    try:
        lines = path.read_text("utf-8-sig").splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is no text in UTF-8 ({error}).") from error
    cells = [list(_CELL.finditer(line)) for line in lines]
    head = [cell[0].strip('"').lower() for cell in next(filter(None, cells), [])]
    frame, number, header = 0, 1, bool(head) and not _NUMBER.fullmatch(head[0])
    if header:
        places = [[place for place, name in enumerate(head) if name in names]
                  for names in (FRAME, ID)]
        if any(len(found) != 1 for found in places):
            raise UserError(f"{where} needs one column frame and one id (or track), its first line "
                            f"holds {printable(', '.join(head))}.")
        (frame,), (number,) = places
    boxes = {}
    for line, found in enumerate(cells):
        if not found or header:
            header = header and not found  # the first line that is not empty
            continue
        if len(found) <= max(frame, number) or not all(
                _NUMBER.fullmatch(found[place][0].strip('"')) for place in (frame, number)):
            raise UserError(f"{where}: line {line + 1} has no whole numbers for the frame and the "
                            "id. Trackers write frame,id,left,top,width,height,confidence.")
        track = plain_name(found[number][0].strip('"'))
        if track.startswith("-"):  # a detection without a track stays as it is
            continue
        boxes[line] = (plain_name(found[frame][0].strip('"')), prefix + track,
                       *found[number].span())
    return MotFile(path, camera, lines, boxes)


def tracks_of(files: Sequence[MotFile], names: Mapping[tuple[str, str], int]
              ) -> list[tuple[int, int]]:
    """Pairs of tracks that a file has in one frame: two people.

    Args:
        files: of the cameras.
        names: the number of each track that crops have, by camera and name.

    Raises:
        UserError: no id of a file is a track of its camera.
    """
    found: set[tuple[int, int]] = set()
    for file in files:
        frames: dict[str, set[int]] = defaultdict(set)
        for frame, track, *_ in file.boxes.values():
            if (number := names.get((file.camera, track))) is not None:
                frames[frame].add(number)
        if not frames:
            raise UserError(
                f"--mot {printable(file.path)}: none of its ids is a track of camera "
                f"{printable(file.camera)}. Give CAMERA=FILE, with the camera's name; several "
                "files of one camera in the order of caureid crops.")
        for there in frames.values():
            found.update(itertools.combinations(sorted(there), 2))
    return sorted(found)


def numbered(files: Sequence[MotFile], persons: Mapping[tuple[str, str], int], highest: int
             ) -> dict[Path, str]:
    """The text of each file with people's numbers.

    A track of nobody known gets a number above all people's, another one for each track.

    Args:
        files: of the cameras.
        persons: of each track, by camera and name; 0: nobody known.
        highest: number of a person.
    """
    free = itertools.count(highest + 1)
    others: dict[tuple[str, str], int] = {}
    texts = {}
    for file in files:
        lines = list(file.lines)
        for line, (_, track, start, end) in file.boxes.items():
            key = file.camera, track
            number = persons.get(key) or others.get(key)
            if not number:
                number = others[key] = next(free)
            lines[line] = f"{lines[line][:start]}{number}{lines[line][end:]}"
        texts[file.path] = "".join(lines)
    return texts
