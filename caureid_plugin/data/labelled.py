"""Labelled images of one's own to evaluate with, from names or a CSV file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from ..compat import shown
from .camera_source import SECTION, plain_name
from .listing import existing_folder, first_of, list_images, read_rows, same_file_names

JUNK = "-1"  # identity of Market-1501's images of no one
_NAME = re.compile(r"(-?[0-9]+)_c([0-9]+)")


class Labelled(NamedTuple):
    """(path, identity, camera) of queries and gallery, numbered over both from 0, and how many
    queries no gallery image can answer."""

    query: list[tuple[str, int, int]]
    gallery: list[tuple[str, int, int]]
    unanswered: int


def read_labelled(query: str, gallery: str) -> Labelled:
    """Images to evaluate with.

    Args:
        query, gallery: each a folder of images named as in Market-1501 (``0002_c1...``), or a
            ``.csv`` file with the columns path, identity and camera. Identity -1 is left out.

    Raises:
        FileNotFoundError: neither a folder nor a file.
        ValueError: an image without identity or camera, a row without image, no image, or no
            query that a gallery image of another camera answers.
    """
    named = [_read(query, f"{SECTION}.QUERY"), _read(gallery, f"{SECTION}.GALLERY")]
    identities, cameras = (
        {name: number for number, name in enumerate(sorted({item[column] for part in named
                                                            for item in part}))}
        for column in (1, 2))
    queries, answers = (
        [(path, identities[identity], cameras[camera]) for path, identity, camera in part]
        for part in named)
    return Labelled(queries, answers, _count_unanswered(queries, answers))


def _read(path: str, key: str) -> list[tuple[str, str, str]]:
    if path.lower().endswith(".csv"):
        items = _from_table(os.path.expanduser(path), key)
    else:
        items = _from_names(existing_folder(path, key), key)
    kept = sorted(item for item in items if item[1] != JUNK)
    if not kept:
        raise ValueError(f"{key} {shown(path)} holds no image with an identity (-1 is none).")
    return kept


def _from_names(folder: str, key: str) -> list[tuple[str, str, str]]:
    paths = list_images(folder, key).paths
    matches = [_NAME.match(os.path.basename(path)) for path in paths]
    nameless = [path for path, match in zip(paths, matches, strict=True) if not match]
    if nameless:
        raise ValueError(
            f"{key}: the names of {len(nameless)} of {len(paths)} images do not begin with "
            f"identity and camera, as in 0002_c1_000451.jpg: {first_of(nameless)}. Rename them, or "
            "give a .csv file with the columns path, identity and camera.")
    return [(path, plain_name(match[1]), plain_name(match[2]))
            for path, match in zip(paths, matches, strict=True) if match]


def _from_table(path: str, key: str) -> list[tuple[str, str, str]]:
    rows = read_rows(path, ("path", "identity", "camera"), key)
    gone = [row for row in rows if not os.path.isfile(row.cells[0])]
    if gone:
        raise ValueError(
            f"{key} {shown(path)}: {len(gone)} of {len(rows)} rows name no file (line "
            f"{gone[0].line} is the first): {first_of([row.cells[0] for row in gone])}. A path is "
            "absolute, or seen from the folder of the CSV file.")
    items: dict[str, tuple[str, str, str]] = {}
    names = same_file_names([row.cells[0] for row in rows])
    for name, (line, (image, identity, camera)) in zip(names, rows, strict=True):
        item = (image, plain_name(identity), plain_name(camera))
        if items.setdefault(name, item)[1:] != item[1:]:
            raise ValueError(f"{key} {shown(path)} names {shown(image)} twice with different "
                             f"labels, the second time in line {line}.")
    return list(items.values())


def _count_unanswered(query: Sequence[tuple[str, int, int]],
                      gallery: Sequence[tuple[str, int, int]]) -> int:
    cameras: dict[int, set[int]] = {}
    for _, identity, camera in gallery:
        cameras.setdefault(identity, set()).add(camera)
    unanswered = sum(not cameras.get(identity, set()) - {camera} for _, identity, camera in query)
    if unanswered < len(query):
        return unanswered
    identities = {identity for _, identity, _ in query}
    shared = len(identities & cameras.keys())
    raise ValueError(
        f"None of the {len(query)} images of {SECTION}.QUERY has an image of the same identity "
        f"from another camera in {SECTION}.GALLERY, so that nothing can be evaluated (FastReID: "
        "all query identities do not appear in gallery). An evaluation leaves out gallery images "
        f"of the query's own camera. {shared} of {len(identities)} query identities are in the "
        "gallery" + (", seen by the query's camera alone: " if shared else ": ")
        + "add images of them from other cameras, or correct the identities and cameras that the "
        "names or columns give.")
