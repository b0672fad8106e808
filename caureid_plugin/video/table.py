"""The output folder: crops, their table, and a state by which a second call goes on."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..common.errors import UserError
from ..common.files import remove_leftovers, write_atomically
from ..common.text import printable

TABLE, STATE = "crops.csv", ".crops.json"
_LONGEST = 60  # characters of a folder's name; four bytes each are less than file systems take
_MIB = 2 ** 20


class Row(NamedTuple):
    """A crop: its path below the output folder, and what the table says of it."""

    path: str
    camera: str
    track: str
    frame: int
    seconds: float


def folder_name(name: str) -> str:
    """A folder's name for any camera: the camera's own, where every file system takes it.

    Example:
        >>> folder_name("gate 2/north")
        'gate_2_north-c8d9df'
    """
    safe = re.sub(r"[^\w.+-]", "_", name).strip(".")[:_LONGEST]
    return name if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def digest(path: str) -> str:
    """Of a file's size, first and last MiB: by it a video is known again."""
    size = os.path.getsize(path)
    found = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        found.update(file.read(_MIB))
        file.seek(max(0, size - _MIB))
        found.update(file.read(_MIB))
    return found.hexdigest()


class Output:
    """A folder of crops, and how far each video is.

    A video counts only when all its crops are written. What a stopped or killed call left of
    another is removed before it is cut anew.

    Args:
        folder: there is none yet, it is empty, or an earlier call has made it.
        options: that decide which crops there are; a second call must have the same.
        videos: of each its camera, name and more; "content" is what may change until it is done.

    Raises:
        UserError: the folder holds something else, or crops of other options or videos.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any],
                 videos: Sequence[Mapping[str, Any]]) -> None:
        self.folder = folder
        self._state: dict[str, Any] = {"options": dict(options), "videos": [
            {"of": dict(video), "done": False, "folders": [], "rows": []} for video in videos]}
        if (folder / STATE).is_file():
            before = self._read()
            self._compare(before)
            for video, old in zip(self._state["videos"], before["videos"], strict=True):
                video.update({key: old[key] for key in ("done", "folders", "rows")})
        elif folder.exists() and any(name != ".run_lock" for name in os.listdir(folder)):
            raise UserError(f"--output {printable(folder)} is not empty, and caureid crops has not "
                            "made it: give a new folder.")

    def _read(self) -> dict[str, Any]:
        path = self.folder / STATE
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            for video in state["videos"]:
                video["rows"] = [Row(*row) for row in video["rows"]]
            return dict(state)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{printable(path)} is damaged ({error}): give a new folder, or remove "
                            "this one.") from error

    def _compare(self, before: Mapping[str, Any]) -> None:
        where = f"--output {printable(self.folder)} holds crops"
        changed = [f"{name} {before['options'].get(name)} (now {value})"
                   for name, value in self._state["options"].items()
                   if before["options"].get(name) != value]
        if changed:
            raise UserError(f"{where} that were cut with {', '.join(changed)}: give the same "
                            "options, or a new folder.")
        old, new = ([video["of"] for video in state["videos"]] for state in (before, self._state))
        if [_known_by(of) for of in old] != [_known_by(of) for of in new]:
            old_videos = ", ".join(printable(_words(of)) for of in old)
            raise UserError(f"{where} of {old_videos}: give the same videos in this order, or a "
                            "new folder.")
        for video, of in zip(before["videos"], new, strict=True):
            if video["done"] and video["of"]["content"] != of["content"]:
                raise UserError(f"{where} of another video or other tracks for camera "
                                f"{printable(of['camera'])} than {printable(of['name'])}: give a "
                                "new folder.")

    def is_done(self, number: int) -> bool:
        """Whether a video is done, and all its crops are still there."""
        video = self._state["videos"][number]
        return video["done"] and all(_has_content(self.folder / row.path) for row in video["rows"])

    def rows(self, number: int) -> list[Row]:
        """The crops of a video."""
        return list(self._state["videos"][number]["rows"])

    def begin(self, number: int, folders: Iterable[str]) -> None:
        """Before a video is cut: removes what there is of it, and the table.

        Args:
            number: of the video.
            folders: below the output folder, that its crops will be in, and no other's.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        (self.folder / TABLE).unlink(missing_ok=True)
        video = self._state["videos"][number]
        for name in video["folders"]:
            for path in (self.folder / name).glob("[0-9]*.*"):
                path.unlink()
        self._keep(number, folders=sorted(folders), rows=[], done=False)

    def finish(self, number: int, rows: Sequence[Row], done: bool) -> None:
        """After a video was cut.

        Args:
            number: of the video.
            rows: its crops.
            done: whether they are all there are.
        """
        self._keep(number, rows=list(rows), done=done)

    def _keep(self, number: int, **changes: Any) -> None:
        self._state["videos"][number].update(changes)
        write_atomically(self.folder / STATE, json.dumps(self._state))

    def write_table(self) -> Path:
        """Writes the table of all crops; gives its path."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("path", "camera", "track", "frame", "seconds"))
        for video in self._state["videos"]:
            for row in video["rows"]:
                writer.writerow(row._replace(seconds=f"{row.seconds:.3f}"))
        write_atomically(self.folder / TABLE, text.getvalue())
        return self.folder / TABLE


def _known_by(of: Mapping[str, Any]) -> dict[str, Any]:
    """A video may have another name or place; until it is done, it may be replaced."""
    return {key: value for key, value in of.items() if key not in ("content", "name")}


def _words(of: Mapping[str, Any]) -> str:
    return f"{of['name']} (camera {of['camera']}, start {of['start']:g})"


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
