"""Track files: reads what trackers write, and refuses what cannot be right."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..common.errors import UserError
from ..common.text import is_nothing, printable

MOT = ("frame", "id", "left", "top", "width", "height", "confidence")  # in this order
# field -> names of columns that hold it, where a file has a header
COLUMNS = {
    "frame": ("frame", "frame_id"), "id": ("id", "track", "track_id"),
    "left": ("left", "x", "x1", "bb_left"), "top": ("top", "y", "y1", "bb_top"),
    "width": ("width", "w", "bb_width"), "height": ("height", "h", "bb_height"),
    "right": ("right", "x2"), "bottom": ("bottom", "y2"),
    "confidence": ("confidence", "conf", "score")}
_WHOLE = re.compile(r"([+-]?[0-9]+)(?:\.0*)?")
Cells = Mapping[str, Sequence[object]]  # field -> a text or number for each box


@dataclass(frozen=True)
class Tracks:
    """The B boxes of a track file, as they are written there.

    Attributes:
        name: of the file, for messages.
        places: where in it each box is, for messages.
        frames: (B,) int64, from 1.
        ids: (B,) int64, no id twice in a frame.
        boxes: (B, 4) float64, left, top, right, bottom in pixels; never empty.
        confidences: (B,) float64; NaN: not given.
    """

    name: str
    places: Sequence[str]
    frames: np.ndarray
    ids: np.ndarray
    boxes: np.ndarray
    confidences: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)

    def refuse(self, wrong: np.ndarray, what: str) -> None:
        """Raises a UserError if any box is wrong: how many there are, and where the first is.

        Args:
            wrong: (B,) bool.
            what: is wrong with them, behind "12 of 340 boxes".
        """
        _refuse(wrong, self.places, self.name, what)


def read_tracks(path: str, video: str, size: tuple[int, int], first_frame: int = 1) -> Tracks:
    """Reads a track file, or ultralytics' folder of one file for each frame.

    A file is text in UTF-8. Without a header it has MOT's columns, and more behind them. With one,
    columns are found by their names (:data:`COLUMNS`). Commas, semicolons, tabs or blanks
    separate them. In a file of nine columns whose seventh is a mark (0 or 1), the ninth is the
    confidence: so it is in files of BoxMOT 11 to 16, and in MOT's ground truth the visibility.

    Args:
        path: the file, or the folder.
        video: path of the video; with its name the folder's files begin.
        size: (width, height) of the video, in which the folder's shares are measured.
        first_frame: the number that the tracker gives the first frame, 1 or 0.

    Raises:
        UserError: it cannot be read, is empty, lacks a column, or holds what cannot be right.
            Names lines and counts.
    """
    name = printable(path)
    if os.path.isdir(path):
        cells, places = _read_folder(path, name, os.path.splitext(os.path.basename(video))[0], size)
    else:
        cells, places = _read_file(path, name)
    ids = [_WHOLE.fullmatch(str(cell)) for cell in cells["id"]]
    _refuse([match is None or abs(int(match[1])) >= 2 ** 63 for match in ids], places, name,
            "have an id that is no whole number", cells["id"])
    fields = {field: _numbers(field, cells[field], places, name) for field in cells
              if field != "id"}
    frames, left, top = fields["frame"], fields["left"], fields["top"]
    right = fields["right"] if "right" in fields else left + fields["width"]
    bottom = fields["bottom"] if "bottom" in fields else top + fields["height"]
    confidences = fields.get("confidence", np.full(len(places), np.nan))
    tracks = Tracks(name, places, (frames - first_frame + 1).astype(np.int64),
                    np.array([int(match[1]) for match in ids if match], dtype=np.int64),
                    np.column_stack((left, top, right, bottom)),
                    np.where(confidences < 0, np.nan, confidences))  # MOT's -1: not given
    _refuse(frames != np.floor(frames), places, name, "have a frame that is no whole number",
            cells["frame"])
    _refuse(frames < first_frame, places, name,
            f"have a frame before {first_frame}, the first" + (
                ": give --first-frame 0 if the tracker counts from 0" if first_frame else ""),
            cells["frame"])
    tracks.refuse(tracks.ids < 0, "have a negative id: they are detections without a track")
    tracks.refuse((right <= left) | (bottom <= top), "have a width or height that is not positive")
    pairs = np.column_stack((tracks.frames, tracks.ids))
    _, first = np.unique(pairs, axis=0, return_index=True)
    tracks.refuse(~np.isin(np.arange(len(pairs)), first),
                  "have the frame and id of another: an id may be once in a frame")
    return tracks


def _refuse(wrong: np.ndarray | Sequence[bool], places: Sequence[str], name: str, what: str,
            cells: Sequence[object] | None = None) -> None:
    if np.any(wrong):
        first = int(np.argmax(wrong))
        cell = "" if cells is None else f": '{printable(cells[first])}'"
        raise UserError(f"{name}: {np.sum(wrong)} of {len(places)} boxes {what} (first in "
                        f"{places[first]}{cell}).")


def _number(cell: object) -> float | None:
    try:
        return float(str(cell))
    except ValueError:
        return None


def _numbers(field: str, cells: Sequence[object], places: Sequence[str], name: str) -> np.ndarray:
    values = np.array([_number(cell) for cell in cells], dtype=np.float64)  # None is NaN
    wrong = ~np.isfinite(values) | (np.abs(values) > 1e12)
    if field == "confidence":  # need not be there
        wrong &= ~np.array([is_nothing(cell) for cell in cells], dtype=bool)
    _refuse(wrong, places, name, f"have a {field} that is no finite number", cells)
    return values


def _text(path: str, name: str) -> str:
    if not os.path.isfile(path):  # opening a FIFO would wait for ever
        raise UserError(f"{name} is neither a file nor a folder.")
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is no text in UTF-8 ({error}): give the track file.") from error
    if "\0" in text:
        raise UserError(f"{name} holds zero bytes: it is damaged, or no text in UTF-8.")
    return text


def _read_file(path: str, name: str) -> tuple[Cells, list[str]]:
    lines = [(f"line {number}", line) for number, line in
             enumerate(_text(path, name).splitlines(), 1) if line.strip()]
    if not lines:
        raise UserError(f"{name} is empty: it holds no box. If nobody was seen, leave its "
                        "video out.")
    separator = next((sign for sign in ",;\t" if sign in lines[0][1]), None)
    rows = [[cell.strip().strip('"') for cell in line.split(separator)] for _, line in lines]
    places = [place for place, _ in lines]
    if any(_number(cell) is not None for cell in rows[0]):
        _refuse([len(row) < 6 for row in rows], places, name,
                f"have fewer columns than {', '.join(MOT[:6])}")
        columns = {field: place for place, field in enumerate(MOT[:len(rows[0])])}
        if _marks(rows):
            columns["confidence"] = 8
    else:
        header = [cell.lower() for cell in rows[0]]
        columns = _columns(header, name)
        rows, places = rows[1:], places[1:]
        if not rows:
            raise UserError(f"{name} holds a header and no box.")
        _refuse([len(row) != len(header) for row in rows], places, name,
                f"do not have the {len(header)} columns of the header")
    return {field: [row[place] if place < len(row) else "" for row in rows]
            for field, place in columns.items()}, places


def _marks(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the seventh of nine columns is a mark, and the ninth the confidence."""
    return all(len(row) == 9 and row[6] in ("0", "1") and 0 <= (_number(row[8]) or 0) <= 1
               for row in rows)


def _columns(header: Sequence[str], name: str) -> dict[str, int]:
    found = {}
    for field, names in COLUMNS.items():
        places = [place for place, cell in enumerate(header) if cell in names]
        if len(places) > 1:
            raise UserError(f"{name}: {' and '.join(header[place] for place in places)} in its "
                            f"first line all name the {field}: rename those that are not it.")
        if places:
            found[field] = places[0]
    for size, end in (("width", "right"), ("height", "bottom")):
        if size in found:
            found.pop(end, None)
    missing = [field for field in MOT[:6] if field not in found
               and {"width": "right", "height": "bottom"}.get(field) not in found]
    if missing:
        wanted = "; ".join(" or ".join(COLUMNS[field]) for field in missing)
        raise UserError(f"{name} has no column {wanted} (or x2, y2 for a size). Its first line "
                        f"holds {printable(', '.join(header))}.")
    return found


def _read_folder(folder: str, name: str, stem: str, size: tuple[int, int]
                 ) -> tuple[Cells, list[str]]:
    """What ultralytics writes with save_txt: class, centre, size, maybe confidence, maybe id."""
    pattern = re.compile(rf"{re.escape(stem)}_([0-9]+)\.txt")
    files = sorted((int(match[1]), match[0]) for match in map(pattern.fullmatch, os.listdir(folder))
                   if match)
    if not files:
        raise UserError(f"{name} holds no {printable(stem)}_1.txt or the like: ultralytics writes "
                        "a file of the video's name for each frame (save_txt).")
    rows, places = [], []
    for frame, file in files:
        text = _text(os.path.join(folder, file), printable(os.path.join(folder, file)))
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                rows.append([str(frame), *line.split()])
                places.append(f"line {number} of {printable(file)}")
    lengths = [len(row) - 1 for row in rows]
    _refuse([not 5 <= length <= 7 for length in lengths], places, name,
            "have another number of columns than a class, a box, a confidence and an id: only "
            "boxes are read, no outlines or points")
    longest = max(lengths, default=0)
    kept = [place for place, length in enumerate(lengths) if length == longest > 5]
    if not kept:
        raise UserError(f"{name}: none of {len(rows)} boxes of {printable(stem)} has a track: "
                        "model.track(..., save_txt=True) writes them, model.predict does not.")
    places = [places[place] for place in kept]
    rows = [rows[place] for place in kept]  # the others have no track (yet)
    shares = np.column_stack([_numbers(field, [row[place] for row in rows], places, name) for
                              place, field in enumerate(("left", "top", "width", "height"), 2)])
    shares[:, :2] -= shares[:, 2:] / 2  # they are of the centre
    columns = (shares * (size * 2)).T.tolist()
    cells: dict[str, Sequence[object]] = dict(zip(MOT[2:6], columns, strict=True))
    if longest == 7:
        cells["confidence"] = [row[6] for row in rows]
    return {"frame": [row[0] for row in rows], "id": [row[-1] for row in rows], **cells}, places
