"""What an index is on the disk: a manifest, and blocks of images that it names.

A block is two files that are never changed: the vectors, as faiss writes them, and where each of
them comes from, as JSON. The manifest, ``index.json``, names the blocks with their digests and is
replaced as a whole after them: a block that it does not name is one that was not finished.

Letters: n images of a block, D embedding size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import filelock
import numpy as np

from ..compat import shown
from ..files import remove_leftovers, write_atomically

# A new one for whatever an older version would misread. 2: the search standardises by camera
FORMATS = 1, 2
BLOCK_IMAGES = 10_000  # of a full block
MANIFEST = "index.json"
LOCK = "index.lock"
VECTORS, ENTRIES = ".faiss", ".json"  # the two files of a block
AGAIN = "Restore the folder from a copy, or remove it and make the index again (tools/index.py)."


class IndexRefused(ValueError):
    """Why an index cannot be used, and what to do."""


class Entry(NamedTuple):
    """Where a vector comes from.

    ``path`` is seen from ``folder``, with "/" between folders; with the folder "" it is a name as
    it was given. ``camera`` is "" where none is known. ``size`` (bytes) and ``mtime`` (ns) are the
    file's when it was embedded, -1 where they were not given.
    """

    folder: str
    path: str
    camera: str = ""
    size: int = -1
    mtime: int = -1

    @property
    def name(self) -> str:
        """The path of the image."""
        return os.path.join(self.folder, self.path) if self.folder else self.path


@dataclasses.dataclass(frozen=True)
class Block:
    """Images of an index, ``entries`` (n) and ``vectors``, a faiss index of n x D halves."""

    number: int
    entries: tuple[Entry, ...]
    vectors: Any
    digests: tuple[str, str]

    @functools.cached_property
    def keys(self) -> frozenset[tuple[str, str]]:
        """Folder and path of each image: what an index holds once."""
        return frozenset(entry[:2] for entry in self.entries)

    def features(self) -> np.ndarray:
        """(n, D) float16, a copy."""
        codes = require_faiss().vector_to_array(self.vectors.codes)
        return codes.view(np.float16).reshape(len(self.entries), -1)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What ``index.json`` says; ``blocks``: number, images, digests of vectors and entries.

    ``statistics`` is what the network's pair statistics write of themselves, None if there are
    none, for the reason ``why_no_statistics``. ``standardize_by_camera`` is of the search: the
    vectors of the blocks are not standardised.
    """

    fingerprint: str
    model: str
    dim: int
    preprocessing: dict[str, Any]
    statistics: Any
    why_no_statistics: str
    plugin: str
    folders: tuple[str, ...] = ()
    next_block: int = 1
    blocks: tuple[tuple[int, int, str, str], ...] = ()
    standardize_by_camera: bool = False

    def to_bytes(self) -> bytes:
        content = {"format": FORMATS[self.standardize_by_camera], **dataclasses.asdict(self)}
        if not self.standardize_by_camera:  # older versions read it
            del content["standardize_by_camera"]
        return _json({**content, "digest": digest(_json(content))})


def require_faiss() -> ModuleType:
    """The module.

    Raises:
        ImportError: says what to install.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError("An index needs faiss, which is not installed: pip install "
                          "'caureid-plugin[faiss-cpu]' (or [faiss-gpu]).") from error
    return faiss


def digest(content: bytes) -> str:
    """32 hexadecimal digits (BLAKE2b)."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _json(content: object) -> bytes:
    # ASCII: a name that is no UTF-8 is kept by its escapes
    return (json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n").encode("ascii")


def block_file(folder: Path, number: int, kind: str) -> Path:
    return folder / f"block-{number:06d}{kind}"


@contextlib.contextmanager
def only_writer(folder: Path, lock: filelock.BaseFileLock) -> Iterator[None]:
    """The right to write to an index, which one process has at a time; within each other too.

    Raises:
        IndexRefused: another has it.
    """
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise IndexRefused(f"{shown(folder)} is being written by another process or part of this "
                           "one: wait until it is done, then start this again.") from error
    try:
        yield
    finally:
        lock.release()


# ------------------------------------------------------------------------------- writing ----


def make_vectors(features: np.ndarray) -> Any:
    """A faiss index that keeps (n, D) features as halves."""
    faiss = require_faiss()
    vectors = faiss.IndexScalarQuantizer(
        features.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    vectors.add(np.ascontiguousarray(features, dtype=np.float32))
    return vectors


def make_block(folder: Path, number: int, entries: Sequence[Entry], features: np.ndarray,
               folders: Sequence[str]) -> Block:
    """Writes the two files of a block that no manifest names yet.

    Args:
        entries: n of them; their folders are among ``folders``.
        features: (n, D) float16.
    """
    vectors = make_vectors(features)
    place = {name: number for number, name in enumerate(folders)}
    rows = [(place.get(entry.folder, -1), *entry[1:]) for entry in entries]
    contents = require_faiss().serialize_index(vectors).tobytes(), _json(rows)
    for kind, content in zip((VECTORS, ENTRIES), contents, strict=True):
        _write(block_file(folder, number, kind), content)
    return Block(number, tuple(entries), vectors, (digest(contents[0]), digest(contents[1])))


def write_manifest(folder: Path, manifest: Manifest) -> bytes:
    """Writes ``index.json``; gives its content."""
    content = manifest.to_bytes()
    _write(folder / MANIFEST, content)
    return content


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))


def remove_unnamed(folder: Path, manifest: Manifest) -> None:
    """Removes blocks that the manifest does not name, and what killed processes left."""
    named = {block_file(folder, block[0], kind)
             for block in manifest.blocks for kind in (VECTORS, ENTRIES)}
    for path in folder.glob("block-*"):
        if path.suffix in (VECTORS, ENTRIES) and path not in named:
            path.unlink(missing_ok=True)
    remove_leftovers(folder)


# ------------------------------------------------------------------------------- reading ----


def read_manifest(folder: Path) -> tuple[Manifest, bytes]:
    """What ``index.json`` says, and its content.

    Raises:
        IndexRefused: there is none, it is damaged, or of a newer format.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise IndexRefused(f"The index {shown(folder)} {what}: give the folder that tools/index.py "
                           "has written.")
    path = folder / MANIFEST
    if not path.exists():
        raise IndexRefused(_why_no_manifest(folder))
    content = _read(path)
    return _parse_manifest(path, content), content


def _why_no_manifest(folder: Path) -> str:
    if any(folder.glob("block-*")):
        return (f"{shown(folder)} holds blocks of an index and no {MANIFEST}, which names them: it "
                f"was lost. {AGAIN}")
    return (f"{shown(folder)} is no index: it holds no {MANIFEST}. Give the folder that "
            "tools/index.py has written; if that was stopped before it had begun, start it again.")


def _read(path: Path) -> bytes:
    if not path.is_file():  # opening a FIFO would wait for ever
        what = "is not a file" if path.exists() else "is missing"
        raise IndexRefused(f"{shown(path)} {what}: the index is damaged. {AGAIN}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise IndexRefused(f"{shown(path)} cannot be read ({error.strerror}): let this user read "
                           "it, or look at the disk.") from error


def _parse_manifest(path: Path, content: bytes) -> Manifest:
    damaged = IndexRefused(f"{shown(path)} is damaged: it is not what was written. {AGAIN}")
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise damaged from error
    if not isinstance(fields, dict) or not isinstance(fields.get("format"), int):
        raise damaged
    if fields["format"] not in FORMATS:
        made = shown(fields.get("plugin", "another version"))
        raise IndexRefused(
            f"{shown(path)} has format {fields['format']}, made by caureid-plugin {made}, and this "
            f"version reads formats {FORMATS[0]} to {FORMATS[-1]}: use that version, or make the "
            "index again.")
    written = fields.pop("digest", None)
    if written != digest(_json(fields)):
        raise damaged
    del fields["format"]
    try:
        fields["blocks"] = tuple(map(tuple, fields["blocks"]))
        return Manifest(**{**fields, "folders": tuple(fields["folders"])})
    except (KeyError, TypeError) as error:
        raise damaged from error


def read_block(folder: Path, manifest: Manifest, block: tuple[int, int, str, str]) -> Block:
    """A block whose files are as they were written.

    Raises:
        IndexRefused: they are not.
    """
    number, images, *digests = block
    contents = []
    for kind, known in zip((VECTORS, ENTRIES), digests, strict=True):
        path = block_file(folder, number, kind)
        content = _read(path)
        if digest(content) != known:
            raise IndexRefused(f"{shown(path)} is damaged: its {len(content)} bytes are not those "
                               f"that were written. {AGAIN}")
        contents.append(content)
    vectors = _vectors(block_file(folder, number, VECTORS), contents[0])
    entries = tuple(_entry(row, manifest.folders) for row in json.loads(contents[1]))
    if not len(entries) == vectors.ntotal == images or vectors.d != manifest.dim:
        raise IndexRefused(
            f"{shown(block_file(folder, number, VECTORS))} holds {vectors.ntotal} vectors of "
            f"{vectors.d} numbers, and {MANIFEST} says {images} of {manifest.dim}: the files are "
            f"of two indexes. {AGAIN}")
    return Block(number, entries, vectors, (digests[0], digests[1]))


def _vectors(path: Path, content: bytes) -> Any:
    faiss = require_faiss()
    try:
        vectors = faiss.deserialize_index(np.frombuffer(content, dtype=np.uint8))
    except RuntimeError as error:  # all that faiss raises
        raise IndexRefused(f"faiss {faiss.__version__} cannot read {shown(path)}, which is as it "
                           f"was written: update faiss. It says: {error}") from error
    if not isinstance(vectors, faiss.IndexScalarQuantizer):
        raise IndexRefused(f"{shown(path)} is a {type(vectors).__name__} of faiss and no "
                           f"IndexScalarQuantizer: it was not written by this plugin. {AGAIN}")
    return vectors


def _entry(row: list[Any], folders: tuple[str, ...]) -> Entry:
    return Entry(folders[row[0]] if row[0] >= 0 else "", *row[1:])
