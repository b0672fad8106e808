"""Labelled images of one's own to evaluate with, from names or a CSV file."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from ..common.errors import UserError
from ..common.text import printable
from .camera_source import SECTION, alike_names, plain_name
from .listing import (
    existing_folder,
    first_of,
    list_images,
    read_rows,
    same_file_names,
    why_gone,
)

JUNK = "-1"  # identity of Market-1501's images of no one
_NAME = re.compile(r"(-?[0-9]+)_c([0-9]+)")


class Labelled(NamedTuple):
    """(path, identity, camera) of queries and gallery, numbered over both from 0; the names of
    the cameras by the key that they come from, and by their number; what there is to warn of."""

    query: list[tuple[str, int, int]]
    gallery: list[tuple[str, int, int]]
    cameras: dict[str, set[str]]
    camera_names: list[str]
    warnings: list[str]


_Named = list[tuple[str, str, str]]


def read_labelled(query: str, gallery: str, *, system_folders: bool = False) -> Labelled:
    """Images to evaluate with.

    Where all are of one camera, the gallery's gets a number of its own, so that the evaluator,
    which leaves out images of the query's camera, compares the two as sets.

    Args:
        query, gallery: each a folder of images named as in Market-1501 (``0002_c1...``), or a
            ``.csv`` file with the columns path, identity and camera. Identity -1 is left out.
        system_folders: see :func:`.listing.list_images`.

    Raises:
        FileNotFoundError: neither a folder nor a file.
        ValueError: an image without identity or camera, a row without image, no image, an image
            of both with different labels, or of both where there is a single camera, or no query
            that a gallery image of another camera answers.
    """
    keys = f"{SECTION}.QUERY", f"{SECTION}.GALLERY"
    named = _read(query, keys[0], system_folders), _read(gallery, keys[1], system_folders)
    names = [{key: {item[column] for item in part} for key, part in zip(keys, named, strict=True)}
             for column in (1, 2)]
    identities, cameras = (
        {name: number for number, name in enumerate(sorted(set().union(*places.values())))}
        for places in names)
    _check_shared(*named, one_camera=len(cameras) == 1)
    queries, answers = (
        [(path, identities[identity], cameras[camera]) for path, identity, camera in part]
        for part in named)
    if len(cameras) == 1:
        answers = [(path, identity, 1) for path, identity, _ in answers]
    unanswered = _count_unanswered(queries, answers)
    return Labelled(queries, answers, names[1], list(cameras) * (2 if len(cameras) == 1 else 1),
                    _warnings(len(queries), unanswered, *names) + _copies(queries, answers))


def _check_shared(query: _Named, gallery: _Named, one_camera: bool) -> None:
    """Refuses images of both that would be compared with themselves."""
    labels = {os.path.realpath(path): item for path, *item in gallery}
    shared = [(path, item, labels[os.path.realpath(path)]) for path, *item in query
              if os.path.realpath(path) in labels]
    where = f"{SECTION}.QUERY and {SECTION}.GALLERY"
    for path, (identity, camera), (other, seen_by) in shared:
        if (identity, camera) != (other, seen_by):
            raise UserError(
                f"{where} both name {printable(path)}, with different labels: identity "
                f"{identity!r} and camera {camera!r}, identity {other!r} and camera {seen_by!r}. "
                "It would be compared with itself: correct the labels, or leave it out of one of "
                "them.")
    if shared and one_camera:
        raise UserError(
            f"{len(shared)} of the {len(query)} images of {SECTION}.QUERY are in {SECTION}.GALLERY "
            f"too ({first_of([path for path, *_ in shared])}), and all are of one camera: each "
            "would find itself. Put an image into only one of them.")


def _warnings(queries: int, unanswered: int, identities: dict[str, set[str]],
              cameras: dict[str, set[str]]) -> list[str]:
    found = []
    query, gallery = cameras.values()
    if unanswered:
        found.append(
            f"{unanswered} of the {queries} images of {SECTION}.QUERY have no image of the same "
            "identity from another camera in GALLERY: the evaluation leaves them out.")
    if len(query | gallery) == 1:
        found.append(
            f"All images of {SECTION}.QUERY and GALLERY are of one camera, {query.pop()!r}: they "
            "are compared as two sets, and no image is left out for its camera. The figures tell "
            "how people are found again within this camera, which is easier than across cameras. "
            "A query and its answers should be of different moments.")
    elif not query & gallery:
        found.append(
            f"{SECTION}.QUERY and GALLERY have no camera in common ({first_of(sorted(query))}; "
            f"{first_of(sorted(gallery))}), so that no image is left out for being of the query's "
            "own camera. If one is named differently in the two, the figures are too good: write "
            "its name the same.")
    if alike := alike_names(identities):
        found.append(f"Identities that differ only in their spelling are different people: {alike}."
                     " If one is meant, write it the same everywhere: the figures are wrong.")
    return found


def _copies(queries: Sequence[tuple[str, int, int]],
            gallery: Sequence[tuple[str, int, int]]) -> list[str]:
    """A warning of queries that find a file of the same content; none if there are none."""
    sizes = [[os.path.getsize(path) if os.path.isfile(path) else 0 for path, *_ in part]
             for part in (queries, gallery)]
    both = set(sizes[0]) & set(sizes[1]) - {0}
    contents: dict[bytes, list[tuple[str, int, int]]] = {}
    for item, size in zip(gallery, sizes[1], strict=True):
        if size in both:
            contents.setdefault(_digest(item[0]), []).append(item)
    pairs = []
    for item, size in zip(queries, sizes[0], strict=True):
        same = contents.get(_digest(item[0]), []) if size in both else []
        # of the same labels, the evaluator leaves it out
        pairs += [(item[0], other[0]) for other in same if other[1:] != item[1:]][:1]
    if not pairs:
        return []
    first = " and ".join(map(printable, pairs[0]))
    return [(
        f"{len(pairs)} of the {len(queries)} images of {SECTION}.QUERY have a copy in GALLERY, the "
        f"same file by another name or label (first: {first}): each finds itself, and the figures "
        "are wrong. Remove the copies.")]


def _digest(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.blake2b(file.read()).digest()
    except OSError:  # which the evaluation names
        return os.fsencode(path)


def _read(path: str, key: str, system_folders: bool) -> _Named:
    if path.lower().endswith(".csv"):
        items = _from_table(os.path.expanduser(path), key)
    else:
        items = _from_names(existing_folder(path, key), key, system_folders)
    kept = sorted(item for item in items if item[1] != JUNK)
    if not kept:
        raise UserError(f"{key} {printable(path)} holds no image with an identity (-1 is none).")
    return kept


def _from_names(folder: str, key: str, system_folders: bool) -> _Named:
    paths = list_images(folder, key, system_folders=system_folders).paths
    matches = [_NAME.match(os.path.basename(path)) for path in paths]
    nameless = [path for path, match in zip(paths, matches, strict=True) if not match]
    if nameless:
        raise UserError(
            f"{key}: the names of {len(nameless)} of {len(paths)} images do not begin with "
            f"identity and camera, as in 0002_c1_000451.jpg: {first_of(nameless)}. Rename them, or "
            "give a .csv file with the columns path, identity and camera.")
    return [(path, plain_name(match[1]), plain_name(match[2]))
            for path, match in zip(paths, matches, strict=True) if match]


def _from_table(path: str, key: str) -> _Named:
    rows = read_rows(path, ("path", "identity", "camera"), key)
    gone = [row for row in rows if not os.path.isfile(row.cells[0])]
    if gone:
        raise UserError(
            f"{key} {printable(path)}: {len(gone)} of {len(rows)} rows name no file (line "
            f"{gone[0].line} is the first): {first_of([row.cells[0] for row in gone])}. "
            f"{why_gone([row.cells[0] for row in gone])}")
    items: dict[str, tuple[str, str, str]] = {}
    names = same_file_names([row.cells[0] for row in rows])
    for name, (line, (image, identity, camera)) in zip(names, rows, strict=True):
        item = (image, plain_name(identity), plain_name(camera))
        if items.setdefault(name, item)[1:] != item[1:]:
            raise UserError(f"{key} {printable(path)} names {printable(image)} twice with "
                            f"different labels, the second time in line {line}.")
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
    raise UserError(
        f"None of the {len(query)} images of {SECTION}.QUERY has an image of the same identity "
        f"from another camera in {SECTION}.GALLERY, so that nothing can be evaluated (FastReID: "
        "all query identities do not appear in gallery). An evaluation leaves out gallery images "
        f"of the query's own camera. {shared} of {len(identities)} query identities are in the "
        "gallery" + (", seen only by the query's camera: " if shared else ": ")
        + "add images of them from other cameras, or correct the identities and cameras that the "
        "names or columns give. To find people again within a camera, name the cameras of the "
        "gallery otherwise in its column (hall in one, hall-gallery in the other).")
