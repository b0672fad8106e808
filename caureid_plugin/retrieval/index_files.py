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
import itertools
import json
import operator
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import filelock
import numpy as np

from ..common.errors import MissingPackage, UserError
from ..common.files import remove_leftovers, write_atomically
from ..common.text import printable
from ..data.camera_source import plain_name
from ..runs.threshold import PairStatistics

if TYPE_CHECKING:
    from .embedder import Embedder

# A new one for whatever an older version would misread. 2: the search standardises by camera;
# 3: the training of the network went wrong, so that same or different is not told
FORMATS = 1, 2, 3
BLOCK_IMAGES = 10_000  # of a full block
MANIFEST = "index.json"
LOCK = "index.lock"
VECTORS, ENTRIES = ".faiss", ".json"  # the two files of a block
AGAIN = "Restore the folder from a copy, or remove it and make the index again (caureid index)."
# of faiss's file of an IndexScalarQuantizer: its kind, D, n, two numbers without use, whether it is
# trained, metric, type of the numbers, range (two), D, bytes of a vector, of training, of all
_HEADER = struct.Struct("=4siqqq?iiifQQQQ")
_INNER_PRODUCT, _FP16 = 0, 4  # faiss's numbers of them in a file
_LENGTHS = 0.01  # by which a vector's may differ from 1; rounding to halves takes less than 0.001


class IndexRefused(UserError):
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
    vectors of the blocks are not standardised. ``bad_verdict`` is why the network's training is
    known to have gone wrong, "" where it is not.
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
    bad_verdict: str = ""

    def to_bytes(self) -> bytes:
        number = 3 if self.bad_verdict else 2 if self.standardize_by_camera else 1
        content = {"format": number, **dataclasses.asdict(self)}
        for name in ("standardize_by_camera", "bad_verdict"):
            if not content[name]:  # older versions read it
                del content[name]
        return _json({**content, "digest": digest(_json(content))})


def checked_entry(entry: Entry | str | os.PathLike[str]) -> Entry:
    """An entry of plain values, with its camera's plain name, whose path stays in its folder.

    Raises:
        ValueError: it is none, or its path leads out of its folder.
    """
    if isinstance(entry, (str, os.PathLike)):
        entry = Entry("", os.fspath(entry))
    if not isinstance(entry, Entry):
        raise UserError(f"{entry!r} is no entry of an index: give a path, or an Entry with the "
                        "camera.")
    try:
        folder, path = os.fspath(entry.folder), os.fspath(entry.path)
        size, mtime = operator.index(entry.size), operator.index(entry.mtime)
        if not path or not isinstance(folder, str) or not isinstance(path, str):
            raise TypeError("its path is empty or made of bytes")
    except TypeError as error:
        raise UserError(f"{printable(repr(entry))} is no entry of an index ({error}): give folder "
                        "and path as text, the size in bytes and the mtime in ns "
                        "(os.stat(path).st_mtime_ns).") from error
    checked = Entry(folder, path, checked_camera(entry.camera), size, mtime)
    if "\0" in folder or "\0" in path:
        raise UserError(f"The path {printable(checked.name)} holds a zero byte, which no path "
                        "does.")
    if folder and _leads_out(path):
        raise UserError(f"The path {printable(path)} leads out of its folder {printable(folder)}: "
                        "give it as seen from there.")
    return checked


def _leads_out(path: str) -> bool:
    return (os.path.isabs(path) or bool(os.path.splitdrive(path)[0])
            or (".." in path and ".." in path.replace(os.sep, "/").split("/")))


def checked_camera(camera: str | int) -> str:
    """A camera's plain name; numbers are taken as they come.

    Raises:
        ValueError: it is no name.
    """
    if not isinstance(camera, (str, int, np.integer)):
        raise UserError(f"The camera {camera!r} is no name or number: \"\" is one that is not "
                        "known.")
    return _plain(str(camera))


_plain = functools.lru_cache(plain_name)  # an index has few cameras


def by_value(name: str) -> tuple[bool, int, str]:
    """Sorts names that are numbers by their values, before the others."""
    is_number = name.isascii() and name.isdigit()
    return not is_number, int(name) if is_number else 0, name


def require_faiss() -> ModuleType:
    """The module.

    Raises:
        ImportError: says what to install.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingPackage("An index needs faiss, which is not installed: pip install "
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
        raise IndexRefused(f"{printable(folder)} is being written by another process or part of "
                           "this one: wait until it is done, then start this again.") from error
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
    write_atomically(path, content)


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
        raise IndexRefused(f"The index {printable(folder)} {what}: give the folder that caureid "
                           "index has written.")
    path = folder / MANIFEST
    if not path.exists():
        raise IndexRefused(_why_no_manifest(folder))
    content = _read(path)
    return _parse_manifest(path, content), content


def _why_no_manifest(folder: Path) -> str:
    if any(folder.glob("block-*")):
        return (f"{printable(folder)} holds blocks of an index and no {MANIFEST}, which names "
                f"them: it was lost. {AGAIN}")
    return (f"{printable(folder)} is no index: it holds no {MANIFEST}. Give the folder that "
            "caureid index has written; if that was stopped before it had begun, start it again.")


def _read(path: Path) -> bytes:
    if not path.is_file():  # opening a FIFO would wait for ever
        what = "is not a file" if path.exists() else "is missing"
        raise IndexRefused(f"{printable(path)} {what}: the index is damaged. {AGAIN}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise IndexRefused(f"{printable(path)} cannot be read ({error.strerror}): let this user "
                           "read it, or look at the disk.") from error


def _parse_manifest(path: Path, content: bytes) -> Manifest:
    damaged = IndexRefused(f"{printable(path)} is damaged: it is not what was written. {AGAIN}")
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise damaged from error
    if not isinstance(fields, dict) or type(fields.get("format")) is not int:
        raise damaged
    if fields["format"] not in FORMATS:
        made = printable(str(fields.get("plugin", "another version"))[:30])
        raise IndexRefused(
            f"{printable(path)} has format {fields['format']}, made by caureid-plugin {made}, and "
            f"this version reads formats {FORMATS[0]} to {FORMATS[-1]}: use that version, or make "
            "the index again.")
    written = fields.pop("digest", None)
    try:
        if written != digest(_json(fields)):
            raise damaged
    except (ValueError, RecursionError) as error:  # NaN, or lists in lists without end
        raise damaged from error
    del fields["format"]
    _check_manifest(path, fields)
    fields["blocks"] = tuple(map(tuple, fields["blocks"]))
    return Manifest(**{**fields, "folders": tuple(fields["folders"])})


def _check_manifest(path: Path, fields: Mapping[str, Any]) -> None:
    """Refuses a manifest that is not of these fields, or of values that this plugin never writes.

    Raises:
        IndexRefused: names the first.
    """
    def is_statistics(value: Any) -> bool:
        return value is None or bool(PairStatistics.from_json(value))

    def is_blocks(value: Any) -> bool:
        blocks = [block for block in value if type(block[0]) is type(block[1]) is int
                  and len(block) == 4 and 0 < block[0] < fields["next_block"] and block[1] > 0]
        return isinstance(value, list) and (
            len(blocks) == len(value) == len({block[0] for block in blocks}))

    good: dict[str, Callable[[Any], bool]] = {
        **dict.fromkeys(("fingerprint", "model", "why_no_statistics", "plugin"), _is_text),
        "dim": _is_count, "preprocessing": lambda value: isinstance(value, dict),
        "statistics": is_statistics,
        "folders": lambda value: isinstance(value, list) and all(map(_is_name, value)),
        "next_block": _is_count, "blocks": is_blocks,
        "standardize_by_camera": lambda value: isinstance(value, bool), "bad_verdict": _is_text}
    known = {field.name: field.default for field in dataclasses.fields(Manifest)}
    for name in (*good, *fields):
        try:
            is_good = name in known and good[name](fields.get(name, known[name]))
        except (IndexError, KeyError, TypeError, ValueError):
            is_good = False
        if not is_good:
            value = printable(repr(fields[name])[:60]) if name in fields else "missing"
            raise IndexRefused(f"{printable(path)} is damaged: its {printable(name)} is {value}. "
                               f"{AGAIN}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def read_block(folder: Path, manifest: Manifest, block: tuple[int, int, str, str]) -> Block:
    """A block whose files are as they were written, and hold what this plugin writes.

    Raises:
        IndexRefused: they do not.
    """
    number, images, *digests = block
    contents = []
    for kind, known in zip((VECTORS, ENTRIES), digests, strict=True):
        path = block_file(folder, number, kind)
        content = _read(path)
        if digest(content) != known:
            raise IndexRefused(f"{printable(path)} is damaged: its {len(content)} bytes are not "
                               f"those that were written. {AGAIN}")
        contents.append(content)
    vectors = _vectors(block_file(folder, number, VECTORS), contents[0], images, manifest.dim)
    path = block_file(folder, number, ENTRIES)
    entries = _entries(path, contents[1], manifest.folders)
    if len(entries) != images:
        raise IndexRefused(f"{printable(path)} holds {len(entries)} rows, and {MANIFEST} says "
                           f"{images}: the files are of two indexes. {AGAIN}")
    return Block(number, entries, vectors, (digests[0], digests[1]))


def _vectors(path: Path, content: bytes, images: int, dim: int) -> Any:
    """The faiss index of a file: halves of length 1, compared by their inner product.

    What faiss would make of anything else is not tried: it allots what a file claims to hold.
    """
    header = _HEADER.unpack(content[:_HEADER.size].ljust(_HEADER.size, b"\0"))
    kind, size, count, _, _, whole, metric, quantizer, _, _, *rest = header
    same_size, code, trained, codes = rest
    if kind != b"IxSQ" or metric != _INNER_PRODUCT or quantizer != _FP16:
        raise IndexRefused(
            f"{printable(path)} begins with {kind!r}, metric {metric} and type {quantizer}, and an "
            f"IndexScalarQuantizer of faiss by which this plugin searches with b'IxSQ', "
            f"{_INNER_PRODUCT} (inner product) and {_FP16} (16-bit floats): it was not written by "
            f"this plugin. {AGAIN}")
    if (size, count) != (dim, images):
        raise IndexRefused(
            f"{printable(path)} holds {count} vectors of {size} numbers, and {MANIFEST} says "
            f"{images} of {dim}: the files are of two indexes. {AGAIN}")
    room = len(content) - _HEADER.size
    if (same_size, code, trained, codes, room) != (dim, 2 * dim, 0, 2 * images * dim, codes):
        raise IndexRefused(f"{printable(path)} claims {codes} bytes, {code} for each vector, and "
                           f"holds {room}: it was not written by this plugin. {AGAIN}")
    if not whole:
        raise IndexRefused(f"{printable(path)} says that it is not trained, and faiss would search "
                           f"in no such file: it was not written by this plugin. {AGAIN}")
    rows = np.frombuffer(content, np.float16, offset=_HEADER.size).reshape(images, dim)
    lengths = np.linalg.norm(rows.astype(np.float32), axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) < _LENGTHS))  # NaN as well
    if len(wrong):
        raise IndexRefused(
            f"{printable(path)}: vector {wrong[0]} has length {lengths[wrong[0]]:.3g}, and all "
            f"have 1; its scores would be no cosines. It was not written by this plugin. {AGAIN}")
    return require_faiss().deserialize_index(np.frombuffer(content, dtype=np.uint8))


def _entries(path: Path, content: bytes, folders: Sequence[str]) -> tuple[Entry, ...]:
    """The entries of a file, which are checked as those that are added."""
    found: list[Entry] = []
    try:
        for place, name, camera, size, mtime in json.loads(content):
            if type(place) is not int or not -1 <= place < len(folders):
                raise UserError(f"there is no folder {place!r}")
            found.append(checked_entry(Entry(
                "" if place < 0 else folders[place], name, camera, size,
                int(mtime) if type(mtime) is float else mtime)))  # seconds were taken once
    except (OverflowError, RecursionError, TypeError, ValueError) as error:
        raise IndexRefused(f"{printable(path)} is damaged: its row {len(found)} is no image of an "
                           f"index ({error}). {AGAIN}") from error
    return tuple(found)


def check_empty(folder: Path) -> None:
    """Refuses a folder that holds more than what a process left that was killed at once."""
    names = sorted(path.name for path in folder.iterdir())
    if MANIFEST in names:
        raise IndexRefused(f"{printable(folder)} holds an index already: open it, or give another "
                           "name.")
    other = [name for name in names if name != LOCK and not name.startswith(f".{MANIFEST}.")]
    if other:
        raise IndexRefused(
            f"{printable(folder)} is not empty and no index: it holds {printable(other[0])}. An "
            "index has a folder of its own: give another name" + (
                f". If it was one, its {MANIFEST} was lost: restore it from a copy, or remove the "
                "folder." if other[0].startswith("block-") else "."))


def check_once(folder: Path, blocks: Sequence[Block]) -> None:
    """Refuses an index that has an image twice."""
    known: set[tuple[str, str]] = set()
    for entry in itertools.chain.from_iterable(block.entries for block in blocks):
        if entry[:2] in known:
            raise IndexRefused(f"{printable(folder)} has the image {printable(entry.name)} twice: "
                               f"it was not written by this plugin. {AGAIN}")
        known.add(entry[:2])


def check_network(folder: Path, manifest: Manifest, embedder: Embedder | str | None) -> None:
    if embedder is None:
        return
    given = embedder if isinstance(embedder, str) else embedder.fingerprint
    if given != manifest.fingerprint:
        name = "the one given" if isinstance(embedder, str) else printable(embedder.name)
        raise IndexRefused(
            f"The index {printable(folder)} holds embeddings of another network, which "
            f"cannot be compared: it was made with {printable(manifest.model)} (fingerprint "
            f"{manifest.fingerprint}), and this is {name} ({given}). Use the run it was made with, "
            "or make a new index.")
