"""What an index lacks of a folder, and what it has that is gone: found, and made so."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from ..common.errors import UserError
from ..common.text import one_line, printable
from ..data.camera_source import CameraSource, below
from ..data.listing import same_file_names
from .embedder import Embedder
from .index import Index
from .index_files import Entry


class Plan(NamedTuple):
    """What there is to do: entries to embed, rows whose camera changes, rows without a file."""

    embed: list[Entry]
    cameras: dict[int, str]
    gone: list[int]
    changed: int


def list_entries(folder: str, paths: list[str], source: CameraSource | None) -> list[Entry]:
    """The images of a folder as they are now."""
    found = source.read(folder, paths) if source and paths else [None] * len(paths)
    entries = []
    for path, name, camera in zip(paths, below(folder, paths), found, strict=True):
        try:
            state = os.stat(path)
            size, mtime = state.st_size, state.st_mtime_ns
        except OSError:  # a broken link: reading it says so
            size = mtime = -1
        entries.append(Entry(folder, name, camera or "", size, mtime))
    return entries


def known_folder(index: Index, folder: str) -> str:
    """The name that the index has for a folder, which may be reached by another, a link."""
    real = os.path.realpath(folder)
    names = {entry.folder for entry in index.entries if entry.folder}
    return folder if folder in names else next(
        (name for name in sorted(names) if os.path.realpath(name) == real), folder)


def refuse_overlap(index: Index, entries: list[Entry]) -> None:
    """Refuses images that the index has from another folder.

    Raises:
        ValueError: there are some.
    """
    if not entries:
        return
    others = [entry for entry in index.entries if entry.folder != entries[0].folder]
    names = same_file_names([os.path.abspath(entry.name) for entry in others])
    known = dict(zip(names, others, strict=True))
    found = [known[name] for name in same_file_names([entry.name for entry in entries])
             if name in known]
    if found:
        source = f"folder {printable(found[0].folder)}" if found[0].folder else "a Python program"
        raise UserError(
            f"{len(found)} images below {printable(entries[0].folder)} are in the index already, "
            f"from {source} (first: {printable(found[0].name)}), and would be found twice: give "
            "folders that do not overlap, or make an index of its own for this one (--index).")


def with_known_cameras(index: Index, folder: str, entries: list[Entry]) -> list[Entry]:
    """The entries; those without a camera get the one that the index has for them."""
    known = {entry.path: entry.camera for entry in index.entries if entry.folder == folder}
    return [entry._replace(camera=entry.camera or known.get(entry.path, "")) for entry in entries]


def make_plan(index: Index, folder: str, entries: list[Entry]) -> Plan:
    """Compares the folder with the index."""
    known = {entry.path: (row, entry) for row, entry in enumerate(index.entries)
             if entry.folder == folder}
    embed, cameras, changed = [], {}, 0
    for entry in entries:
        row, old = known.pop(entry.path, (-1, None))
        if old is None or old[3:] != entry[3:]:
            embed.append(entry)
            changed += old is not None
        elif old.camera != entry.camera:
            cameras[row] = entry.camera
    return Plan(embed, cameras, [row for row, _ in known.values()], changed)


def embed_readable(embedder: Embedder, entries: list[Entry], batch_size: int
                   ) -> tuple[list[Entry], np.ndarray, dict[Entry, str]]:
    """Those images that can be read, their embeddings, and what is wrong with the others."""
    if not entries:
        return [], np.empty((0, embedder.dim), np.float32), {}
    try:
        features = embedder.embed([entry.name for entry in entries], batch_size=batch_size)
        return entries, features, {}
    except (UserError, OSError) as error:
        if len(entries) == 1:
            text = one_line(error)
            name = printable(entries[0].name)
            return [], np.empty((0, embedder.dim), np.float32), {
                entries[0]: text if name in text else f"{name}: {text}"}
    # halves, until only what cannot be read is left
    half = len(entries) // 2
    parts = [embed_readable(embedder, part, batch_size)
             for part in (entries[:half], entries[half:])]
    return (parts[0][0] + parts[1][0], np.concatenate([part[1] for part in parts]),
            parts[0][2] | parts[1][2])


def forget(index: Index, entries: Collection[Entry]) -> None:
    """Removes images that were changed and can no longer be read: what is known is of others."""
    keys = {entry[:2] for entry in entries}
    if keys:
        index.remove([row for row, entry in enumerate(index.entries) if entry[:2] in keys])
