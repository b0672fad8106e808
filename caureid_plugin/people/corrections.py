"""A user's corrections: who is one person, and which track is not who the table says."""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..common.errors import UserError
from ..common.text import is_nothing, printable
from ..data.listing import read_cells, same_file_names
from .table import Crop

ACTIONS = ("join", "split")
Node = tuple[str, int]  # ("person", its number) or ("track", its place)


class Correction(NamedTuple):
    """A line of the file."""

    line: int
    action: str
    a: str
    b: str


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known before tracks are compared.

    Attributes:
        group: (T,) int64, who is on a track, from 0; -1: not known.
        numbers: of each group its person; 0: one without a number yet.
        apart: pairs of tracks that are of two people.
        left: (T,) bool, tracks that were split off their person.
    """

    group: np.ndarray
    numbers: list[int]
    apart: list[tuple[int, int]]
    left: np.ndarray


def read_corrections(path: Path) -> list[Correction]:
    """Reads the file: CSV with the columns action, a and b.

    Raises:
        UserError: it is damaged, or an action is unknown; names the line.
    """
    where = f"--corrections {printable(path)}"
    header, rows = read_cells(str(path), where)
    if header != ["action", "a", "b"]:
        raise UserError(f"{where} needs the first line action,a,b, and has "
                        f"{printable(','.join(header))}.")
    found = [Correction(line, *cells) for line, cells in rows]
    for line, action, a, b in found:
        if is_nothing(a) or is_nothing(b):
            raise UserError(f"{where}: line {line} needs a person or track in a and in b.")
        if action not in ACTIONS:
            raise UserError(f"{where}: the action {printable(action)} in line {line} is neither "
                            "join nor split.")
    return found


class _Names:
    """What the words of a file of corrections name."""

    def __init__(self, crops: Sequence[Crop], of_image: np.ndarray, persons: np.ndarray,
                 path: Path) -> None:
        self._where, self._folder = f"--corrections {printable(path)}", os.path.dirname(path)
        self._cameras = {track: crop.camera for crop, track in
                         zip(crops, of_image.tolist(), strict=True)}
        self._people = set(persons[persons > 0].tolist())
        self._tracks: dict[str, set[int]] = defaultdict(set)
        for name, crop, track in zip(same_file_names([crop.path for crop in crops]), crops,
                                     of_image.tolist(), strict=True):
            self._tracks[f"{crop.camera}/{crop.track}" if crop.track else name].add(track)

    def node(self, line: int, word: str) -> Node:
        """The person or track of a word.

        Raises:
            UserError: there is none, or there are two.
        """
        if word.isascii() and word.isdigit() and len(word) < 11:
            if int(word) in self._people:
                return "person", int(word)
            raise UserError(f"{self._where}, line {line}: no person {word} is in --known. Person "
                            "numbers are that table's.")
        path, = same_file_names([os.path.abspath(os.path.join(self._folder, word))])
        found = self._tracks.get(word) or self._tracks.get(path) or set()
        if len(found) != 1:
            raise UserError(
                f"{self._where}, line {line}: {printable(word)} names {len(found)} tracks, and "
                "must name one: write CAMERA/TRACK, the path of a crop without a track, or a "
                "person's number.")
        return "track", min(found)

    def both(self, first: int, second: int, option: str, may_split: bool) -> str:
        """The end of a message: why two tracks are two people.

        Args:
            first, second: the tracks.
            option: that says so, "": the times in one camera, or --apart-cameras.
            may_split: whether a correction is a remedy.
        """
        one, other = (next(name for name, tracks in self._tracks.items() if number in tracks)
                      for number in (first, second))
        if not option and self._cameras[first] != self._cameras[second]:
            option = "--apart-cameras"
        why = {"": "in one camera at one time", "--mot": "in one frame of a --mot file",
               "--apart-cameras": "in two cameras at one time (--apart-cameras)"}[option]
        text = f"{printable(one)} and {printable(other)}, which are {why}: they are two people."
        if not may_split:
            return text
        made = f" A table made without {option} may have this." if option else ""
        return (f"{text}{made} A line of --corrections splits them: "
                f"split,{printable(one)},{printable(other)}")


def _text(one: Correction) -> str:
    return f"line {one.line} ({printable(','.join(one[1:]))})"


class _Joined:
    """People and tracks that are one, and the lines that say so."""

    def __init__(self) -> None:
        self._parent: dict[Node, Node] = {}
        self.lines: dict[Node, list[int]] = defaultdict(list)  # by the root

    def find(self, node: Node) -> Node:
        while (above := self._parent.setdefault(node, node)) != node:
            node = above
        return node

    def join(self, one: Node, other: Node, line: int | None = None) -> None:
        root, below = sorted((self.find(one), self.find(other)))  # the lowest person on top
        if root != below:
            self._parent[below] = root
            self.lines[root] += self.lines.pop(below, [])
        if line is not None:
            self.lines[root].append(line)


def facts(crops: Sequence[Crop], of_image: np.ndarray, persons: np.ndarray,
          pairs: Sequence[tuple[int, int]], corrections: Sequence[Correction] = (),
          path: Path = Path(), *, in_frames: Sequence[tuple[int, int]] = ()) -> Facts:
    """What an earlier table and corrections say of tracks.

    Splits come first: the track leaves its person. Of two tracks the second one does. Then joins
    make one of two people, who keeps the lower number.

    Args:
        crops: N of them.
        of_image: (N,) int64, the track of each.
        persons: (T,) int64, the person on each track, 0: not known.
        pairs: of tracks that cannot be one person: in one place at one time.
        corrections: of the file ``path``.
        in_frames: of tracks that cannot be one person: in one frame of a track file.

    Raises:
        UserError: these contradict themselves, each other or the table; names the lines.
    """
    names = _Names(crops, of_image, persons, path)
    where = f"--corrections {printable(path)}"
    nodes = [(one, names.node(one.line, one.a), names.node(one.line, one.b))
             for one in corrections]
    left = np.zeros(len(persons), dtype=bool)
    for one, a, b in nodes:
        if a == b:
            raise UserError(f"{where}, {_text(one)}: both are the same.")
        if one.action == "split":
            why = _why_not_to_split(a, b, persons)
            if why:
                raise UserError(f"{where}, {_text(one)}: {why}")
            goes = b if b[0] == "track" else a
            left[goes[1]] |= persons[goes[1]] > 0 and all(
                node[0] == "person" or persons[node[1]] > 0 for node in (a, b))
    joined = _Joined()
    for track, person in enumerate(persons.tolist()):
        if person and not left[track]:
            joined.join(("person", person), ("track", track))
    for one, a, b in nodes:
        if one.action == "join":
            joined.join(a, b, one.line)
    for one, a, b in nodes:
        if one.action == "split" and joined.find(a) == joined.find(b):
            lines = ", ".join(map(str, sorted(joined.lines[joined.find(a)])))
            raise UserError(f"{where} contradicts itself: {_text(one)} splits what line(s) "
                            f"{lines or 'of --known'} join.")
    group, numbers, named = _groups(joined, persons)
    for first, second, option in [*((*pair, "") for pair in pairs),
                                  *((*pair, "--mot") for pair in in_frames)]:
        if group[first] == group[second] >= 0:
            found = sorted(joined.lines[joined.find(("track", first))])
            said = (f"{where}: line(s) {', '.join(map(str, found))} join" if found else
                    f"--known has person {numbers[group[first]]} on")
            raise UserError(f"{said} {names.both(first, second, option, not found)}")
    apart = [(named[joined.find(a)], named[joined.find(b)]) for one, a, b in nodes
             if one.action == "split" and {joined.find(a), joined.find(b)} <= named.keys()]
    return Facts(group, numbers, [*apart, *in_frames], left)


def _groups(joined: _Joined, persons: np.ndarray) -> tuple[np.ndarray, list[int], dict[Node, int]]:
    """Groups and numbers as in :class:`Facts`, and a track of each root."""
    members: dict[Node, list[int]] = defaultdict(list)
    for track in range(len(persons)):
        members[joined.find(("track", track))].append(track)
    numbers: list[int] = []
    group = np.full(len(persons), -1, dtype=np.int64)
    for (kind, number), tracks in members.items():
        if kind == "person" or len(tracks) > 1:
            group[tracks] = len(numbers)
            numbers.append(number if kind == "person" else 0)
    return group, numbers, {root: tracks[0] for root, tracks in members.items()}


def _why_not_to_split(a: Node, b: Node, persons: np.ndarray) -> str:
    if a[0] == b[0] == "person":
        return ("two people are apart already: split a track off its person, as in "
                "split,3,north/7.")
    one, other = (node[1] if node[0] == "person" else int(persons[node[1]]) for node in (a, b))
    if one != other and ((one and other) or "person" in (a[0], b[0])):
        return (f"they are not joined in --known: one is person {one or 'nobody'}, the other "
                f"{other or 'nobody'}.")
    return ""
