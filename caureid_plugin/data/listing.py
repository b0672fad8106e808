"""What lies on the disk: images below a folder, and tables of images in CSV files."""

from __future__ import annotations

import collections
import csv
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from ..common.errors import UserError
from ..common.images import IMAGE_SUFFIXES
from ..common.text import is_nothing, printable

SHOWN = 3  # paths that a message names
# Folders, in lower case, that NAS and desktop systems keep thumbnails and deleted files in; those
# whose names begin with a dot are hidden anyway.
SYSTEM_FOLDERS = frozenset((
    "@eadir", "#recycle", "#snapshot", "@tmp", "@sharebin",  # Synology
    "@recycle", "@recently-snapshot", "@__thumb", "@upload_cache", "network recycle bin",  # QNAP
    "recycle bin", "trashbox", "_nas_recycle_", "_gsdata_",  # other NAS, GoodSync
    "~snapshot", "files_trashbin", "files_versions",  # NetApp, Nextcloud
    "$recycle.bin", "recycle.bin", "recycler", "recycled", "system volume information",  # Windows
    "__macosx", "network trash folder", "temporary items",  # macOS
    "lost+found", "lost.dir"))  # Linux, Android
# Windows, what it finds on a damaged disk; the bin of one volume of a NAS; copies of such folders,
# as in "__MACOSX 2" and "@eaDir (1)"
_NUMBERED = re.compile(r"found\.[0-9]{3}|recycle bin - volume_.*|network recycle bin [0-9]+|"
                       r"(@eadir|#recycle|__macosx)\b.*")


class EmptyFolder(UserError):
    """No image lies below a folder."""


class Listing(NamedTuple):
    """Images below a folder (sorted paths), the number of other files by suffix, the links that
    were not followed because they lead back to a folder above them, with that folder, and the
    number of images in systems' own folders, which are left out, by the folders' names."""

    paths: list[str]
    others: collections.Counter[str]
    loops: list[tuple[str, str]]
    system: collections.Counter[str]

    def in_system_folders(self) -> str:
        """A sentence about systems' own folders; empty where no image is in one."""
        return (f"{self.system.total()} image(s) in folders of the system were left out: "
                f"{first_of(sorted(self.system))}." if self.system else "")


class Row(NamedTuple):
    """Line of a CSV file (from 1), and the cells that were asked for."""

    line: int
    cells: list[str]


def first_of(paths: Sequence[str]) -> str:
    """The first paths of a list, for a message."""
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(printable(path) for path in paths[:SHOWN]) + more


def existing_folder(path: str, key: str) -> str:
    """The folder that a config key names, with ``~`` expanded.

    Raises:
        ValueError: the key is empty, or names something else.
        FileNotFoundError: there is nothing of that name.
    """
    if not path:
        raise UserError(f"{key} is empty: set it to the folder of the images.")
    folder = os.path.expanduser(path)
    if not os.path.exists(folder):
        raise FileNotFoundError(
            f"{key} {printable(folder)} does not exist, seen from {printable(os.getcwd())}: set it "
            "to the folder of the images.")
    if not os.path.isdir(folder):
        raise UserError(f"{key} {printable(folder)} is not a folder: set it to the folder of the "
                        "images.")
    return folder


def list_images(folder: str, key: str, *, system_folders: bool = False) -> Listing:
    """Every image below a folder, by its suffix; links are followed, hidden names left out.

    Args:
        folder: an existing one; the paths begin with it.
        key: what names it, for the messages.
        system_folders: whether SYSTEM_FOLDERS below it are searched as well.

    Raises:
        ValueError: a folder cannot be read, or is reached in two ways, so that its images would
            count twice.
        EmptyFolder: there is no image.
    """
    found = Listing([], collections.Counter(), [], collections.Counter())
    seen: dict[str, str] = {}  # real path -> the path that it was reached by
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        first = seen.setdefault(os.path.realpath(path), path)
        if first == path:
            waiting += _list_folder(path, key, found, system_folders)
        elif path.startswith(os.path.join(first, "")):
            found.loops.append((path, first))
        else:
            raise UserError(
                f"{printable(path)} and {printable(first)} below {key} are the same folder, whose "
                "images would count twice: remove the link.")
    if not found.paths:
        raise EmptyFolder(
            f"{key} {printable(folder)} holds no image: {len(seen)} folder(s) and "
            f"{found.others.total()} other file(s) were looked at. An image's name ends in "
            f"{', '.join(IMAGE_SUFFIXES)}, in capitals too. "
            f"{found.in_system_folders()}".rstrip())
    found.paths.sort()
    found.loops.sort()
    return found


def _list_folder(folder: str, key: str, found: Listing, system_folders: bool) -> list[str]:
    """Adds a folder's files to ``found``; returns the folders in it, real ones last."""
    try:
        with os.scandir(folder) as entries:
            visible = sorted((entry for entry in entries if not entry.name.startswith(".")),
                             key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{key} cannot be searched: the folder {printable(folder)} cannot be "
                        f"listed ({error.strerror}). Let this user read it (chmod u+rx)."
                        ) from error
    folders = []
    for entry in visible:
        suffix = os.path.splitext(entry.name)[1].lower()
        if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
            if system_folders or not _is_systems(entry.name):
                folders.append(entry.path)
            else:
                found.system[entry.name] += _count_images(entry.path)
        elif suffix in IMAGE_SUFFIXES:
            found.paths.append(entry.path)
        else:
            found.others[suffix] += 1
    return folders


def _is_systems(name: str) -> bool:
    name = name.strip().lower()  # tools that copy add blanks
    return name in SYSTEM_FOLDERS or _NUMBERED.fullmatch(name) is not None


def _count_images(folder: str) -> int:
    """Images below a folder, of what this user may list."""
    return sum(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
               for _, _, names in os.walk(folder) for name in names)


def read_rows(path: str, columns: Sequence[str], key: str, *,
              empty: Sequence[str] = ()) -> list[Row]:
    """Rows of a CSV file with a header line, their first cell a path seen from the file's folder.

    Args:
        path: UTF-8, with or without a byte order mark; cells separated by commas. Paths in it may
            have the backslashes of Windows.
        columns: those to read, "path" first; others in the file are left out.
        key: what names the file, for the messages.
        empty: columns whose cells may hold nothing; they are "" then.

    Raises:
        ValueError: the file cannot be read, a column is missing, a row has more or fewer cells
            than the header, or one that holds nothing (names the lines).
    """
    where = f"{key} {printable(path)}"
    header, rows = read_cells(path, where, columns)
    places = [header.index(name) for name in columns]
    chosen = [Row(row.line, [row.cells[place] for place in places]) for row in rows]
    for place, name in enumerate(columns):
        without = [row for row in chosen if is_nothing(row.cells[place])]
        if name not in empty:
            _refuse(without, len(chosen), where,
                    f"no {name} (an empty cell, nan or the like): fill it in, or remove the row")
        for row in without:
            row.cells[place] = ""
    folder = os.path.dirname(path)
    for row in chosen:
        row.cells[0] = _find(row.cells[0], folder)
    return chosen


def read_cells(path: str, where: str, columns: Sequence[str] = ()) -> tuple[list[str], list[Row]]:
    """The header and the other rows of a CSV file, without blanks around the cells.

    Args:
        path: the file.
        where: it, for messages.
        columns: that it must have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, is damaged or empty, lacks a column, or has a row of more or
            fewer cells than the header.
    """
    rows = _parse(path, where)
    if not rows:
        raise UserError(f"{where} is empty: it needs a header line with {', '.join(columns)}."
                        if columns else f"{where} is empty: it needs a header line.")
    header = [name.strip() for name in rows[0].cells]
    wrong = [name for name in columns if header.count(name) != 1]
    if wrong:
        raise UserError(
            f"{where} needs the column(s) {', '.join(wrong)} once each; its first line holds "
            f"{printable(header)}. Cells are separated by commas.")
    _refuse([row for row in rows if len(row.cells) != len(header)], len(rows), where,
            f"not the {len(header)} cells of the header: quote what holds a comma")
    return header, [Row(row.line, [cell.strip() for cell in row.cells]) for row in rows[1:]]


def images_of_rows(rows: Sequence[Row], paths: Sequence[str], table: str, key: str, *,
                   remedy: str = "") -> list[tuple[str, Row]]:
    """The image that each row's path names, as it is written in ``paths``, and the row.

    Args:
        rows: of :func:`read_rows`.
        paths: of the images below ROOT.
        table, key: the file and what names it, for the message, whose end is ``remedy``.

    Raises:
        ValueError: rows that name none of the images.
    """
    there = dict(zip(same_file_names(paths), paths, strict=True))
    names = same_file_names([row.cells[0] for row in rows])
    if gone := [row for name, row in zip(names, rows, strict=True) if name not in there]:
        missing = [row.cells[0] for row in gone]
        raise UserError(
            f"{key} {printable(table)}: {len(gone)} of {len(rows)} rows name no image below "
            f"CAMERA_FOLDER.ROOT (line {gone[0].line} is the first): {first_of(missing)}. "
            f"{why_gone(missing)}{remedy}")
    return [(there[name], row) for name, row in zip(names, rows, strict=True)]


def listed_images(table: str, key: str, paths: Sequence[str]) -> list[str]:
    """Which of ``paths`` a table with the column path names, as they are written there.

    Args:
        table: a file as :func:`read_rows` takes it, with ``~`` or not.
        key: what names the file, for the messages.
        paths: of the images below ROOT.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or a row names none of the images.
    """
    rows = read_rows(os.path.expanduser(table), ("path",), key)
    return sorted({image for image, _ in images_of_rows(
        rows, paths, table, key, remedy=" Correct or remove these rows.")})


def _find(path: str, folder: str) -> str:
    """A path as seen from a folder; with / for backslashes where only then it names something."""
    found = os.path.join(folder, os.path.expanduser(path))
    if "\\" in path and not os.path.lexists(found):
        other = os.path.join(folder, os.path.expanduser(path.replace("\\", "/")))
        if os.path.lexists(other):
            return other
    return found


def why_gone(paths: Sequence[str]) -> str:
    """How a table's paths are read, and what may be wrong with those that name no image."""
    text = "A path is absolute, or seen from the folder of the CSV file."
    if any(re.search(r"(?:^|/)(?:[A-Za-z]:|\\\\|//)", path) for path in paths):
        text += (" With a drive (C:) or a server (\\\\name) a path is one of Windows, which this "
                 "system does not know: write it as seen from the CSV file.")
    elif any("\\" in path for path in paths):
        text += (" Backslashes are taken for / where the file is there then: look at the folder "
                 "that they begin in.")
    if other := _in_other_spelling(paths[0]):
        text += (f" There is {printable(other)}: write it so (capitals count, and how accents are "
                 "composed).")
    elif there := [path for path in paths if os.path.isfile(path)]:
        text += (f" {len(there)} of them are files all the same: not below ROOT, hidden, of no "
                 "image's suffix, or in a folder of the system (CAMERA_FOLDER.SYSTEM_FOLDERS).")
    return text


def _in_other_spelling(path: str) -> str:
    """What is there of a path's name but for capitals and composed letters, "" if nothing."""
    if os.path.lexists(path):
        return ""
    def plain(name: str) -> str:
        return unicodedata.normalize("NFC", name).lower()

    found = os.sep if os.path.isabs(path) else os.curdir
    for part in path.replace("\\", "/").split("/"):
        step = os.path.join(found, part)
        if not os.path.lexists(step):
            try:
                same = [name for name in os.listdir(found) if plain(name) == plain(part)]
            except OSError:
                return ""
            if not same:
                return ""
            step = os.path.join(found, min(same))
        found = step
    return os.path.normpath(found)


def _parse(path: str, where: str) -> list[Row]:
    if not os.path.isfile(path):  # opening a FIFO would wait for ever
        raise FileNotFoundError(f"{where} is not a file, seen from {printable(os.getcwd())}.")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows = [Row(reader.line_num, cells) for cells in reader if cells]
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{where} is damaged or no CSV file in UTF-8: {error}. Save it as CSV, "
                        "UTF-8, separated by commas.") from error
    _refuse([row for row in rows if any("\0" in cell for cell in row.cells)], len(rows), where,
            "a zero byte: the file is damaged, or not in UTF-8")
    return rows


def _refuse(wrong: Sequence[Row], total: int, where: str, what: str) -> None:
    if wrong:
        more = ", ..." if len(wrong) > SHOWN else ""
        lines = ", ".join(str(row.line) for row in wrong[:SHOWN])
        raise UserError(f"{where}: {len(wrong)} of {total} rows have {what} (line {lines}{more}).")


def same_file_names(paths: Sequence[str]) -> list[str]:
    """A name for each path that does not depend on the way to its folder, by links or not.

    A link to a file has a name of its own: two cameras' folders may link to one image.
    """
    real: dict[str, str] = {}
    names = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in real:
            real[folder] = os.path.realpath(folder)
        names.append(os.path.join(real[folder], name))
    return names
