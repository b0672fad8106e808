"""An index of embedded images on the disk, searched by faiss.

Vectors are kept as halves (16-bit floats) and compared one by one with the query: the search
leaves nothing out. The score is the cosine of the query, which is not rounded, and the rounded
vector; rounding changes it by less than 0.0006 (2^-11 of each number, and 2^-25 of those that are
nearly 0). An index that standardises by camera keeps the vectors as they were embedded, takes the
cameras' statistics from them, and standardises them in memory. So the statistics always are of all
images that it has, whatever was added, removed or given another camera. Rounding changes such a
score by more: by as much as a camera's mean is larger than its standard deviation.

Letters: N images, Q queries, D embedding size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import filelock
import numpy as np
import torch

from .._version import __version__
from ..clustering.standardize import CameraStatistics, check_cameras_to_standardize
from ..common.errors import UserError
from ..common.text import printable
from ..runs.threshold import NO_VERDICT, PairStatistics, RunVerdict
from .index_files import (
    BLOCK_IMAGES,
    LOCK,
    Block,
    Entry,
    IndexRefused,
    Manifest,
    by_value,
    check_empty,
    check_network,
    check_once,
    checked_camera,
    checked_entry,
    make_block,
    make_vectors,
    only_writer,
    read_block,
    read_manifest,
    remove_unnamed,
    require_faiss,
    write_manifest,
)
from .index_search import best_rows

if TYPE_CHECKING:
    from .embedder import Embedder

class Hit(NamedTuple):
    """An image that was found.

    ``rank`` from 1; ``path`` of the image; ``camera``, "" where none is known; ``score``, the
    cosine of the two embeddings; ``row``, its place in the index.
    """

    rank: int
    path: str
    camera: str
    score: float
    row: int


class Index:
    """Embedded images with their paths and cameras, in a folder.

    :meth:`create` or :meth:`open` gives one. Searching from several threads is safe, changing is
    not. What changes it has changed the folder when it returns, wholly or not at all. Rows are
    numbered from 0 and are numbered anew by each change.

    Attributes:
        folder: where it is.
        fingerprint: of the network that made the embeddings, with its weights and preprocessing.
        model: that network's name.
        dim: D.
        statistics: similarities of pairs of the training run, from which a threshold follows;
            None: not known, for the reason ``why_no_statistics``.
        verdict: "bad" if the training of the network is known to have gone wrong, else "unknown".
        standardize_by_camera: whether a search compares features with mean 0 and standard
            deviation 1 within each camera, see :meth:`create`.
    """

    def __init__(self, folder: Path, manifest: Manifest, content: bytes,
                 blocks: Sequence[Block]) -> None:
        self.folder = folder
        self.fingerprint, self.model, self.dim = manifest.fingerprint, manifest.model, manifest.dim
        self.verdict = (RunVerdict("bad", manifest.bad_verdict) if manifest.bad_verdict
                        else NO_VERDICT)
        self._take_options(manifest)
        # not per thread: a server may open it in one and add in another
        self._lock = filelock.FileLock(folder / LOCK, thread_local=False)
        self._take(manifest, content, blocks)
        self._numbering  # noqa: B018  now, so that the first search is as fast as the others

    def _take_options(self, manifest: Manifest) -> None:
        self.standardize_by_camera = manifest.standardize_by_camera
        self.statistics, self.why_no_statistics = None, manifest.why_no_statistics
        if self.standardize_by_camera:
            self.why_no_statistics = ("The index standardises by camera, and the pairs of the "
                                      "training run are not standardised.")
        elif manifest.statistics is not None:
            self.statistics = PairStatistics.from_json(manifest.statistics)

    def _take(self, manifest: Manifest, content: bytes, blocks: Sequence[Block]) -> None:
        self._manifest, self._content, self._blocks = manifest, content, tuple(blocks)
        # made anew when they are asked for: adding to a large index shall not cost its size
        for name in ("entries", "paths", "cameras", "_numbering", "_groups", "_camera_statistics",
                     "_searched"):
            self.__dict__.pop(name, None)

    @functools.cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Where each image comes from, by row."""
        return tuple(itertools.chain.from_iterable(block.entries for block in self._blocks))

    @functools.cached_property
    def paths(self) -> list[str]:
        """Of the images, by row."""
        return [entry.name for entry in self.entries]

    @functools.cached_property
    def cameras(self) -> list[str]:
        """Of the images, by row, "" where none is known."""
        return [entry.camera for entry in self.entries]

    @functools.cached_property
    def _numbering(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """(N,) numbers of the cameras, and the names that they number."""
        return _numbered(self.cameras)

    @functools.cached_property
    def _groups(self) -> np.ndarray:
        """(N,) rows of the camera statistics; the last, of all images, without a known camera."""
        codes, names = self._numbering
        return np.array([code if name else len(names) for code, name in enumerate(names)],
                        dtype=np.int64)[codes]

    @functools.cached_property
    def _camera_statistics(self) -> CameraStatistics:
        """Of each camera by its number, and then of all images; there is one at least."""
        codes, names = self._numbering
        counts = np.bincount(codes)
        known = np.array([bool(name) or len(names) == 1 for name in names])
        try:
            check_cameras_to_standardize(np.array(names, dtype=object)[known], counts[known], (
                "Add others of it, remove it, or let the index not standardise: "
                "Index.set_standardize_by_camera(False), caureid index "
                "--no-standardize-by-camera."))
        except ValueError as error:
            raise UserError(str(error)) from error
        parts = (CameraStatistics.of(_tensor(block), torch.from_numpy(
            codes[start:start + len(block.entries)]), len(names))
            for start, block in self._starts())
        return functools.reduce(CameraStatistics.merge, parts).with_all()

    @functools.cached_property
    def _searched(self) -> tuple[Block, ...]:
        """The blocks with the vectors that queries are compared with."""
        if not self.standardize_by_camera:
            return self._blocks
        return tuple(dataclasses.replace(block, vectors=make_vectors(
            self._camera_statistics.standardize(_tensor(block), torch.from_numpy(
                self._groups[start:start + len(block.entries)])).numpy()))
            for start, block in self._starts())

    @classmethod
    def create(cls, folder: str | os.PathLike[str], embedder: Embedder, *,
               standardize_by_camera: bool = False) -> Index:
        """Makes an empty index for the embeddings of a network.

        Args:
            folder: one that does not exist or is empty; the one above it exists.
            embedder: whose embeddings will be added.
            standardize_by_camera: searches compare features with mean 0 and standard deviation 1
                within each camera, which helps a network that was not trained on these cameras
                (:func:`~caureid_plugin.clustering.standardize_by_camera` has the source). Images
                without a known camera are standardised by the statistics of all images. No
                threshold is known then: the run's are of other similarities.

        Raises:
            IndexRefused: the folder holds an index already, or something else.
            ImportError: faiss is not installed.
            OSError: it cannot be written.
        """
        require_faiss()
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise IndexRefused(f"{printable(folder)} is not a folder: name the index otherwise.")
        folder.mkdir(exist_ok=True)
        with only_writer(folder, filelock.FileLock(folder / LOCK)):
            check_empty(folder)
            statistics = embedder.statistics
            verdict = getattr(embedder, "verdict", NO_VERDICT)  # stand-ins may have none
            manifest = Manifest(
                fingerprint=embedder.fingerprint, model=embedder.name, dim=embedder.dim,
                preprocessing=dataclasses.asdict(embedder.preprocessing),
                statistics=None if statistics is None else statistics.to_json(),
                why_no_statistics=embedder.why_no_statistics,
                plugin=__version__,
                standardize_by_camera=bool(standardize_by_camera),
                bad_verdict=verdict.reason if verdict.level == "bad" else "")
            content = write_manifest(folder, manifest)
        return cls(folder, manifest, content, [])

    @classmethod
    def open(cls, folder: str | os.PathLike[str], embedder: Embedder | str | None = None) -> Index:
        """Reads an index; every file of it is compared with its digest.

        Args:
            folder: of the index.
            embedder: the network whose embeddings will be added or searched for, or its
                fingerprint; None: any.

        Raises:
            IndexRefused: there is no index, it is damaged, of a newer format, or its embeddings
                are another network's.
            ImportError: faiss is not installed.
        """
        require_faiss()
        folder = Path(folder)
        while True:
            manifest, content = read_manifest(folder)
            check_network(folder, manifest, embedder)
            try:
                blocks = [read_block(folder, manifest, block) for block in manifest.blocks]
            except IndexRefused:
                if read_manifest(folder)[1] == content:
                    raise
                continue  # another process has replaced it meanwhile
            check_once(folder, blocks)
            return cls(folder, manifest, content, blocks)

    def __len__(self) -> int:
        return sum(len(block.entries) for block in self._blocks)

    @property
    def camera_counts(self) -> dict[str, int]:
        """Number of images by camera, sorted by name, numbers by value."""
        counts = Counter(self.cameras)
        return {name: counts[name] for name in sorted(counts, key=by_value)}

    # ---------------------------------------------------------------------------- searching ----

    def prepare(self) -> None:
        """Does what else the first search does: standardises all images, where that is asked for.

        Raises:
            ValueError: a camera of a single image, which has no spread to standardise by.
        """
        if len(self):
            self._searched  # noqa: B018

    def search(self, features: np.ndarray, top: int = 10, *,
               cameras: Collection[str | int] | None = None,
               without_cameras: Collection[str | int] = (),
               query_cameras: Sequence[str | int] | None = None) -> list[list[Hit]]:
        """The images that are most similar to each query.

        Args:
            features: (Q, D) embeddings; their lengths do not matter.
            top: how many, at most.
            cameras: only images of these; "" is those without a known camera. None: all.
            without_cameras: no images of these.
            query_cameras: Q, those that the queries were seen by, where the index standardises by
                camera: a query by the statistics of its camera's images in the index. "", or None
                for all queries: the camera is not known, and the statistics are of all
                images.

        Returns:
            for each query at most ``top`` hits by falling score; fewer if there are no more images.

        Raises:
            ValueError: ``top`` below 1, features of another shape, zero or not finite, a camera
                that the index does not know; query cameras that are not one for each query, or are
                given to an index that does not standardise; see :meth:`prepare`.
        """
        if top < 1:
            raise UserError(f"top {top} must be at least 1.")
        queries = self._queries(features, query_cameras)
        allowed = self._allowed(cameras, without_cameras)
        blocks = [(start, block) for (start, _), block
                  in zip(self._starts(), self._searched, strict=True)]
        return [[self._hit(rank, score, row) for rank, (score, row) in enumerate(best, start=1)]
                for best in best_rows(blocks, queries, top, allowed)]

    def _queries(self, features: np.ndarray, cameras: Sequence[str | int] | None) -> np.ndarray:
        """(Q, D) float32 of length 1, standardised as the images that they are compared with."""
        queries = self._unit(features, "query")
        if not self.standardize_by_camera:
            if cameras is not None:
                raise UserError(
                    "query_cameras (--query-camera) are of use to an index that standardises by "
                    "camera, and this one does not: leave them out, or let it, by "
                    "Index.set_standardize_by_camera(True) or caureid index "
                    "--standardize-by-camera.")
            return queries
        groups = self._query_groups(cameras, len(queries))
        if not len(self):
            return queries
        return self._unit(self._camera_statistics.standardize(
            torch.from_numpy(queries), torch.from_numpy(groups)).numpy(), "standardised query")

    def _query_groups(self, cameras: Sequence[str | int] | None, count: int) -> np.ndarray:
        """(Q,) rows of the camera statistics."""
        if cameras is None:
            cameras = [""] * count
        if isinstance(cameras, str) or len(cameras) != count:
            raise UserError(f"query_cameras {cameras!r} must be a list of {count}, as the queries.")
        names = [checked_camera(name) for name in cameras]
        known = self._cameras_named(
            (name for name in names if name), " Its statistics are needed for a query that it saw "
            "(query_cameras, --query-camera); leave it out for the statistics of all images.")
        return np.array([known.get(name, len(self._numbering[1])) for name in names],
                        dtype=np.int64)

    def _allowed(self, only: Collection[str | int] | None, without: Collection[str | int]
                 ) -> np.ndarray | None:
        """(N,) bool, None for all."""
        if only is None and not without:
            return None
        for option, names in (("cameras", only), ("without_cameras", without)):
            if isinstance(names, str):
                raise UserError(f"{option} {names!r} must be a list of cameras.")
        codes, names = self._numbering
        chosen = set(self._cameras_named(names if only is None else only).values())
        return np.isin(codes, sorted(chosen.difference(self._cameras_named(without).values())))

    def _cameras_named(self, names: Iterable[str | int], hint: str = "") -> dict[str, int]:
        """Plain name and number of each; ``hint`` ends the error of one that is not known."""
        number = {name: code for code, name in enumerate(self._numbering[1])}
        plain = [checked_camera(name) for name in names]
        unknown = [name for name in plain if name not in number]
        if unknown:
            known = ", ".join(repr(name) for name in sorted(number, key=by_value)[:20])
            more = f" and {len(number) - 20} more" if len(number) > 20 else ""
            raise UserError(f"The index has no image of camera {unknown[0]!r}; it has cameras "
                            f"{known or 'none'}{more}.{hint}")
        return {name: number[name] for name in plain}

    def _hit(self, rank: int, score: float, row: int) -> Hit:
        entry = self.entries[row]
        return Hit(rank, entry.name, entry.camera, max(-1.0, min(1.0, score)), row)

    def _unit(self, features: np.ndarray, what: str) -> np.ndarray:
        """(n, D) float32 of length 1."""
        array = np.asarray(features, dtype=np.float32)
        if array.ndim != 2 or array.shape[1] != self.dim:
            raise UserError(
                f"Features have shape {array.shape}, and the index {printable(self.folder)} holds "
                f"embeddings of {self.dim} numbers: give (n, {self.dim}).")
        largest = np.abs(array).max(axis=1, keepdims=True, initial=0)
        wrong = np.flatnonzero(~(np.isfinite(largest[:, 0]) & (largest[:, 0] > 0)))
        if len(wrong):
            raise UserError(f"The embedding of {what} {wrong[0]} is zero or not finite: it has no "
                            "direction to compare.")
        array = array / largest  # or the squares of very large or small numbers leave float32
        return np.ascontiguousarray(array / np.linalg.norm(array, axis=1, keepdims=True))

    # ----------------------------------------------------------------------------- changing ----

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keeps other processes from writing until the block ends; each change does so itself.

        Raises:
            IndexRefused: another is writing, or has written since this was opened.
        """
        with only_writer(self.folder, self._lock):
            if read_manifest(self.folder)[1] != self._content:
                raise IndexRefused(f"{printable(self.folder)} was changed since it was opened: "
                                   "open it again.")
            yield

    def add(self, features: np.ndarray,
            entries: Sequence[Entry | str | os.PathLike[str]]) -> None:
        """Adds images, or replaces those that have the same folder and path.

        Args:
            features: (n, D) embeddings; their lengths do not matter.
            entries: where each comes from; a path or another text is a name without a camera.

        Raises:
            ValueError: features of another shape, zero or not finite; not one entry for each; an
                image twice; a path that leads out of its folder; what is no entry.
            IndexRefused: see :meth:`writing`.
            OSError: it cannot be written; the index is as before.
        """
        new = [checked_entry(entry) for entry in entries]
        halves = self._unit(features, "image").astype(np.float16)
        if len(new) != len(halves):
            raise UserError(f"{len(halves)} embeddings and {len(new)} entries: give one for each.")
        keys = {entry[:2] for entry in new}
        if len(keys) < len(new):
            twice, = Counter(entry[:2] for entry in new).most_common(1)
            raise UserError(f"{printable(Entry(*twice[0]).name)} is given {twice[1]} times: an "
                            "image is in an index once.")
        if new:
            with self.writing():
                gone = [row for start, block in self._starts() if not keys.isdisjoint(block.keys)
                        for row, entry in enumerate(block.entries, start) if entry[:2] in keys]
                self._rewrite(gone, {}, new, halves)

    def remove(self, rows: Iterable[int]) -> None:
        """Removes images.

        Raises:
            ValueError: a row that there is not.
            IndexRefused, OSError: as for :meth:`add`.
        """
        gone = self._checked_rows(rows)
        if gone:
            with self.writing():
                self._rewrite(gone, {}, [], np.empty((0, self.dim), np.float16))

    def set_cameras(self, cameras: Mapping[int, str | int]) -> None:
        """Changes the cameras of images, by row.

        Raises:
            ValueError: a row that there is not, a camera that is none.
            IndexRefused, OSError: as for :meth:`add`.
        """
        rows = self._checked_rows(cameras)
        names = dict(zip(rows, map(checked_camera, cameras.values()), strict=True))
        if names:
            with self.writing():
                self._rewrite((), names, [], np.empty((0, self.dim), np.float16))

    def set_standardize_by_camera(self, value: bool) -> None:
        """Changes whether searches standardise by camera, see :meth:`create`; costs no embedding.

        Raises:
            IndexRefused, OSError: as for :meth:`add`.
        """
        with self.writing():
            manifest = dataclasses.replace(self._manifest, standardize_by_camera=bool(value))
            self._take(manifest, write_manifest(self.folder, manifest), self._blocks)
            self._take_options(manifest)

    def _starts(self) -> Iterator[tuple[int, Block]]:
        """Each block with its first row."""
        start = 0
        for block in self._blocks:
            yield start, block
            start += len(block.entries)

    def _checked_rows(self, rows: Iterable[int]) -> list[int]:
        checked, count = [], len(self)
        for row in rows:
            if not isinstance(row, (int, np.integer)) or not 0 <= row < count:
                raise UserError(f"Row {row!r} is none of the {count} of the index, which are "
                                "numbered from 0.")
            checked.append(int(row))
        return checked

    def _rewrite(self, gone: Collection[int], cameras: Mapping[int, str],
                 new: Sequence[Entry], halves: np.ndarray) -> None:
        """Writes anew the blocks that change and blocks of new images, then the manifest.

        What is left of changed blocks goes first into a block that is not full.
        """
        removed, changed = set(gone), {*gone, *cameras}
        kept: list[Block] = []
        loose: list[tuple[list[Entry], np.ndarray]] = []  # images to be put into new blocks
        for start, block in self._starts():
            rows = range(start, start + len(block.entries))
            short = len(block.entries) < BLOCK_IMAGES and block is self._blocks[-1] and len(new) > 0
            if short or (changed and not changed.isdisjoint(rows)):
                left = [row for row in rows if row not in removed]
                moved = [entry._replace(camera=cameras[row]) if row in cameras else
                         entry for row, entry in ((row, block.entries[row - start])
                                                  for row in left)]
                loose.append((moved, block.features()[[row - start for row in left]]))
            else:
                kept.append(block)
        loose.append((list(new), halves))
        try:
            self._write([entry for part, _ in loose for entry in part],
                        np.concatenate([part for _, part in loose]), kept)
        except OSError:  # a full disk, for example: what was written of it makes room again
            remove_unnamed(self.folder, read_manifest(self.folder)[0])
            raise

    def _write(self, entries: list[Entry], halves: np.ndarray, kept: list[Block]) -> None:
        old = self._manifest
        remove_unnamed(self.folder, old)
        # a folder keeps its number, which the blocks hold that are kept
        new = (entry.folder for entry in entries if entry.folder)
        folders = tuple(dict.fromkeys((*old.folders, *new)))
        blocks, number = list(kept), old.next_block
        for start in range(0, len(entries), BLOCK_IMAGES):
            rows = slice(start, start + BLOCK_IMAGES)
            blocks.append(make_block(self.folder, number, entries[rows], halves[rows], folders))
            number += 1
        manifest = dataclasses.replace(old, folders=folders, next_block=number, blocks=tuple(
            (block.number, len(block.entries), *block.digests) for block in blocks))
        self._take(manifest, write_manifest(self.folder, manifest), blocks)
        remove_unnamed(self.folder, manifest)


def _numbered(names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(N,) the numbers of the names, and the names that they number."""
    number = {name: code for code, name in enumerate(dict.fromkeys(names))}
    return np.array([number[name] for name in names], dtype=np.int64), tuple(number)


def _tensor(block: Block) -> torch.Tensor:
    """(n, D) float32, the embeddings of a block."""
    return torch.from_numpy(block.features().astype(np.float32))
