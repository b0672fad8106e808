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
_NUMBER = re.compile(r"[+-]?[0-9]+(\.0*)?")
_BLANK = " \t\r\n\f\v\ufeff"  # around a cell; the last one is a byte order mark


class _Cell(NamedTuple):
    text: str
    start: int  # in its line
    end: int


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
        # not read_text: it changes the ends of lines, which are to be written as they were
        lines = path.read_bytes().decode().splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is no text in UTF-8 ({error}).") from error
    first = next((line for line in lines if line.strip(_BLANK)), "")
    separator = next((sign for sign in ",;\t" if sign in first), "")
    cells = [_cells(line, separator) for line in lines]
    head = [cell.text.strip('"').lower() for cell in next(filter(None, cells), [])]
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
                _NUMBER.fullmatch(found[place].text.strip('"')) for place in (frame, number)):
            raise UserError(f"{where}: line {line + 1} has no whole numbers for the frame and the "
                            "id. Trackers write frame,id,left,top,width,height,confidence.")
        track = plain_name(found[number].text.strip('"'))
        if track.startswith("-"):  # a detection without a track stays as it is
            continue
        boxes[line] = (plain_name(found[frame].text.strip('"')), prefix + track,
                       found[number].start, found[number].end)
    return MotFile(path, camera, lines, boxes)


def _cells(line: str, separator: str) -> list[_Cell]:
    """The cells of a line, without the blanks around them; none of a line without any text."""
    if not line.strip(_BLANK):
        return []
    if not separator:
        return [_Cell(match[0], *match.span()) for match in re.finditer(r"[^\s\ufeff]+", line)]
    found, at = [], 0
    for part in line.split(separator):
        text = part.strip(_BLANK)
        start = at + part.find(text)
        found.append(_Cell(text, start, start + len(text)))
        at += len(part) + len(separator)
    return found


def tracks_of(files: Sequence[MotFile], names: Mapping[tuple[str, str], int]
              ) -> list[tuple[int, int]]:
    """Pairs of tracks that a file has in one frame: two people.

    Args:
        files: of the cameras.
        names: the number of each track of the folder, by camera and name.

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
                f"{printable(file.camera)} in the folder. Give CAMERA=FILE, with the camera's "
                "name; several files of one camera in the order of caureid crops.")
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
