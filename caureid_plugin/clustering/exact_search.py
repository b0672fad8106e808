"""Exact nearest neighbours by matrix products in torch, on the CPU or on a GPU.

Two steps. **Candidates**: the features are rounded to a type in which the processor multiplies
fastest (bfloat16 where it has instructions for it, else float32), the scores of all pairs are
computed tile by tile, and each image keeps its best few more than k. Scores are symmetric, so
only tiles on and above the diagonal are computed; each serves its rows and its columns.
**Exact**: the candidates' distances are computed again from the features themselves, by
differences, and the k nearest kept.

That this gives the k nearest of *all* images is proved for each image, or else redone for it. Let
x^ be the rounded x, e(x) = |x - x^|, and a the smallest distance |x^ - y^| that an image y which
is no candidate can have: that of the worst candidate, less what the matrix product may have
rounded away. By the triangle inequality |x - y| >= a - e(x) - max e. If the k-th exact distance
is below that, no other image comes before it. Images for which it is not (many near-equal
distances, duplicates) are searched again in float32 with some hundred candidates, and, if that
decides nothing either, compared with everyone. Rounding errors grow with the norm, distances do
not depend on the origin: it is moved to the mean first.

Distances are ordered as the float32 numbers that :func:`.kernels.squared_distance` gives, equal
ones by index.

Letters: N images, D embedding size, m candidates.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from . import kernels
from .best_scores import BestScores
from .processes import Processes
from .rounded import TILE_ROWS, RoundedFeatures, fast_dtype, num_candidates, split_rows
from .threads import over_rows

logger = logging.getLogger(__name__)
CACHED_TILE = 2**23  # bytes of scores, on a CPU
TILE_BYTES = 2**29  # on a GPU
# Candidates of an image in the second search, beyond k.
SECOND_SEARCH = 256
# Squared differences that are worth computing for lists that scores cannot decide: minutes.
MOST_TERMS = 10**12


class Everyone:
    """Neighbours among all images: one list.

    Args:
        n, k: N images, length of the list.
        dtype, device: of the scores.
        count: m for a k, :func:`num_candidates` or another.
    """

    def __init__(self, n: int, k: int, dtype: torch.dtype, device: torch.device,
                 count: Callable[[int, int], int] = num_candidates) -> None:
        self.order = np.arange(n)
        self.ks = (k,)
        self.best = (BestScores(n, count(k, n), dtype, device),)

    def add(self, first_row: int, first_column: int, scores: torch.Tensor, beyond: slice) -> None:
        """Takes a tile; ``beyond``: its columns right of the diagonal tile, which take it too."""
        tile = self.best[0].prepare(scores)
        self.best[0].add(first_row, first_column, tile)
        self.best[0].add_columns(first_row, first_column, tile, columns=beyond)

    def allowed(self, rows: np.ndarray, which: int) -> Iterator[tuple[np.ndarray, list[slice]]]:
        """Groups of rows, with the ranges of images that may be their neighbours."""
        yield np.arange(len(rows)), [slice(0, len(self.order))]


class ByCamera:
    """Neighbours within the image's camera and, in a second list, in all others.

    Images are ordered by camera, so that a camera is a range of rows.

    Args:
        camids: (N,).
        ks: two, the length of the list within the camera and of the one across cameras.
        dtype, device, count: as :class:`Everyone`.
    """

    def __init__(self, camids: np.ndarray, ks: tuple[int, ...], dtype: torch.dtype,
                 device: torch.device, count: Callable[[int, int], int] = num_candidates) -> None:
        self.order = np.argsort(camids, kind="stable")
        starts = np.flatnonzero(np.diff(camids[self.order], prepend=camids[self.order[0]] - 1))
        self.cameras = list(zip(starts.tolist(), [*starts[1:].tolist(), len(camids)], strict=True))
        self.ks = ks
        n = len(camids)
        self.best = tuple(BestScores(n, count(k, n), dtype, device) for k in ks)

    def add(self, first_row: int, first_column: int, scores: torch.Tensor, beyond: slice) -> None:
        """Takes a tile; ``beyond``: its columns right of the diagonal tile, which take it too."""
        within, across = self.best
        tile = within.prepare(scores)
        for start, stop in self.cameras:
            top, bottom = max(start - first_row, 0), min(stop - first_row, len(tile))
            left, right = max(start - first_column, 0), min(stop - first_column, tile.shape[1])
            if top < bottom and left < right:
                rows, columns = slice(top, bottom), slice(left, right)
                within.add(first_row, first_column, tile, rows, columns)
                within.add_columns(first_row, first_column, tile, rows,
                                   slice(max(left, beyond.start), right))
                within.exclude(tile, rows, columns)
        across.add(first_row, first_column, tile)
        across.add_columns(first_row, first_column, tile, columns=beyond)

    def allowed(self, rows: np.ndarray, which: int) -> Iterator[tuple[np.ndarray, list[slice]]]:
        for start, stop in self.cameras:
            group = np.flatnonzero((rows >= start) & (rows < stop))
            if len(group):
                within, before, after = (
                    slice(start, stop), slice(0, start), slice(stop, len(self.order)))
                yield group, [within] if which == 0 else [before, after]


def search_exact(features: np.ndarray, wanted: Callable[..., Everyone | ByCamera], *,
                 device: torch.device, dtype: torch.dtype | None = None,
                 basis: torch.Tensor | None = None, processes: Processes = Processes(),
                 progress: Callable[[int, int], None] | None = None
                 ) -> list[tuple[np.ndarray, np.ndarray]]:
    """The nearest images of every image.

    Args:
        features: (N, D) float32.
        wanted: called with ``dtype`` and ``device``; says who may be whose neighbour.
        device: where the scores are computed.
        dtype: of the scores; None: :func:`fast_dtype`.
        basis: see :class:`RoundedFeatures`; the search is then approximate.
        processes: shares the tiles.
        progress: called with (share of the tiles done, times N, and N).

    Returns:
        For each list that is wanted: neighbour indices (N, k) int32, nearest first, and squared
        distances (N, k) float32; -1 and infinity where there are fewer than k.
    """
    dtype = dtype or fast_dtype(device)
    neighbors = wanted(dtype=dtype, device=device)
    n = len(features)
    with torch.no_grad(), _full_float32(device):
        rounded = RoundedFeatures(features, neighbors.order, dtype, device, basis)
        wide = min(_tile_columns(device, dtype), n)
        memory = torch.empty(min(TILE_ROWS, n) * wide, dtype=dtype, device=device)
        for rows, columns in _tiles(n, wide, processes):
            if columns.start == rows.start:
                factor = rounded.left(rows)
            scores = rounded.scores(factor, columns, memory)
            # images of the diagonal tile have had their turn as its rows
            beyond = slice(max(rows.stop - columns.start, 0), scores.shape[1])
            neighbors.add(rows.start, columns.start, scores, beyond)
            if progress is not None and columns.stop == n:
                rest = (n - rows.stop) / n  # rows of tiles get shorter
                progress(round(n * (1 - rest**2)), n)
        return [_exact_lists(features, rounded, neighbors, which, processes)
                for which in range(len(neighbors.ks))]


def _tile_columns(device: torch.device, dtype: torch.dtype) -> int:
    """On a CPU a tile should stay in the cache, on a GPU it should be large."""
    size = CACHED_TILE if device.type == "cpu" else TILE_BYTES
    return size // (TILE_ROWS * dtype.itemsize)


def _tiles(n: int, wide: int, processes: Processes) -> Iterator[tuple[slice, slice]]:
    """This process's tiles on and above the diagonal, row of tiles by row of tiles.

    Their edges are the same for any number of processes, and so are the bits of the scores.
    """
    for number, start in enumerate(range(0, n, TILE_ROWS)):
        # rows of tiles get shorter: dealt out there and back, 0 1 1 0 0 1 1 0 ...
        turn, place = divmod(number, processes.size)
        if (place if turn % 2 == 0 else processes.size - 1 - place) != processes.rank:
            continue
        rows = slice(start, min(start + TILE_ROWS, n))
        for left in range(start, n, wide):
            yield rows, slice(left, min(left + wide, n))


def _exact_lists(features: np.ndarray, rounded: RoundedFeatures, wanted: Everyone | ByCamera,
                 which: int, processes: Processes) -> tuple[np.ndarray, np.ndarray]:
    n, k, best = len(features), wanted.ks[which], wanted.best[which]
    found = (np.full((n, k), -1, dtype=np.int32), np.full((n, k), np.inf, dtype=np.float32))
    unproved: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    blocks = [slice(start, min(start + TILE_ROWS, n)) for start in range(0, n, TILE_ROWS)]
    if processes.size > 1:
        for rows in blocks:
            _merge_processes(best, rows, processes)
    for number, rows in enumerate(blocks):
        if number % processes.size == processes.rank:
            lists, proved = _exact_rows(features, rounded, wanted, which, rows)
            for result, part in zip(found, lists, strict=True):
                result[wanted.order[rows]] = part
            unproved.append(rows.start + np.flatnonzero(~proved))
    _search_again(features, wanted, which, np.concatenate(unproved), rounded, found)
    return processes.share_rows(found, wanted.order, TILE_ROWS)


def _merge_processes(best: BestScores, rows: slice, processes: Processes) -> None:
    values, ids = best.of(rows)
    # as float32, which holds them exactly: not every back end sends bfloat16
    everyones = torch.cat(processes.gather(values.float()), dim=1).to(values.dtype)
    ids = torch.cat(processes.gather(ids), dim=1)
    best.forget(rows)
    best.merge(rows, everyones, ids)


def _exact_rows(features: np.ndarray, rounded: RoundedFeatures, wanted: Everyone | ByCamera,
                which: int, rows: slice
                ) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Lists of some rows, and for which of them it is proved that nobody is missing."""
    k, best = wanted.ks[which], wanted.best[which]
    values, ids = (own.cpu() for own in best.of(rows))
    scores, candidates = values.double().numpy(), wanted.order[ids.numpy()].astype(np.int32)
    if rounded.basis is not None:
        candidates[~np.isfinite(scores)] = -1
        if which == 0:  # an image is its own neighbour, whatever the estimate says
            own = wanted.order[rows].astype(np.int32)
            missing = (candidates != own[:, None]).all(axis=1)
            candidates = np.column_stack([candidates, np.where(missing, own, -1)])
        lists = rank_candidates(features, wanted.order[rows], candidates, k)
        return lists, np.ones(len(candidates), dtype=bool)
    slack = rounded.slack(rows, rounded.norms.max(), rounded.errors.max())
    nearest, others = np.empty(len(scores)), np.empty(len(scores))
    over_rows(lambda start, stop: kernels.limits(
        scores, k, *slack, start, stop, nearest, others), len(scores), block=256)
    over_rows(lambda start, stop: kernels.drop_hopeless(
        scores, *slack, nearest, start, stop, candidates), len(scores), block=256)
    lists = rank_candidates(features, wanted.order[rows], candidates, k)
    return lists, np.isinf(others) | (lists[1][:, -1] < others)


def rank_candidates(features: np.ndarray, rows: np.ndarray, candidates: np.ndarray, k: int
                    ) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of each row's candidates, by (distance, index).

    Args:
        features: (N, D) float32.
        rows: (R,) images.
        candidates: (R, any) int32, -1 for none.

    Returns:
        (R, k) int32 and squared distances (R, k) float32; -1 and infinity where there are fewer.
    """
    ranks = np.empty((len(rows), k), dtype=np.int32)
    distances = np.empty((len(rows), k), dtype=np.float32)
    over_rows(lambda start, stop: kernels.nearest_of(
        features, rows, candidates, start, stop, ranks, distances), len(rows), block=64)
    return ranks, distances


def _search_again(features: np.ndarray, wanted: Everyone | ByCamera, which: int, rows: np.ndarray,
                  rounded: RoundedFeatures, found: tuple[np.ndarray, np.ndarray]) -> None:
    """The float32 search of some rows (positions in ``wanted.order``), into ``found``."""
    logger.debug("%d of %d lists are searched again in float32", len(rows), len(features))
    for start in range(0, len(rows), TILE_ROWS):
        part = rows[start : start + TILE_ROWS]
        for group, ranges in wanted.allowed(part, which):
            images = wanted.order[part[group]]
            lists = search_rows(features, images, wanted.order, ranges, wanted.ks[which],
                                rounded.device, rounded.mean)
            for result, searched in zip(found, lists, strict=True):
                result[images] = searched


def search_rows(features: np.ndarray, rows: np.ndarray, order: np.ndarray, ranges: list[slice],
                k: int, device: torch.device, mean: torch.Tensor
                ) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of some images, exactly, from float32 scores.

    The proof is that of the whole search. A list that even float32 scores leave undecided (more
    than 256 images that are as near as the k-th up to rounding) is found by comparing all
    distances, unless that would take minutes: then it is said, and the list is what the scores
    gave.

    Args:
        features: (N, D) float32.
        rows: (R,) images.
        order, ranges: their neighbours are ``order[r]`` for the ranges r.
        k: neighbours.
        device: where scores are computed.
        mean: (D,) float32 of all features, as :func:`mean_of` gives it.

    Returns:
        As :func:`rank_candidates`.
    """
    count = len(rows)
    m = min(len(features), k + SECOND_SEARCH)
    best = BestScores(count, m, torch.float32, device)
    norms, errors = [], []
    with torch.no_grad(), _full_float32(device):
        for columns in split_rows(ranges):
            piece = RoundedFeatures(features, np.concatenate([rows, order[columns]]),
                                    torch.float32, device, mean=mean)
            best.add(0, columns.start, best.prepare(
                piece.scores(piece.left(slice(0, count)), slice(count, len(piece.rows)))))
            norms.append(piece.norms.max())
            errors.append(piece.errors.max())
    if not norms:  # one camera: nobody across
        return rank_candidates(features, rows, np.full((count, 1), -1, dtype=np.int32), k)
    slack = piece.slack(slice(0, count), max(norms), max(errors))
    scores, ids = (own.cpu().numpy() for own in best.of(slice(None)))
    candidates = np.where(np.isfinite(scores), order[ids], -1).astype(np.int32)
    lists = rank_candidates(features, rows, candidates, k)
    others = np.empty(count)
    kernels.limits(scores.astype(np.float64), k, *slack, 0, count, np.empty(count), others)
    undecided = np.flatnonzero(~(np.isinf(others) | (lists[1][:, -1] < others)))
    _compare_all(features, rows, order, ranges, undecided, lists)
    return lists


def _compare_all(features: np.ndarray, rows: np.ndarray, order: np.ndarray, ranges: list[slice],
                 undecided: np.ndarray, lists: tuple[np.ndarray, np.ndarray]) -> None:
    everyone = np.concatenate([order[columns] for columns in ranges]).astype(np.int32)
    if len(undecided) * len(everyone) * features.shape[1] > MOST_TERMS:
        logger.warning(
            "%d images have more than %d neighbours at the same distance, up to float32 rounding "
            "(duplicates?): which of these are in their lists is arbitrary", len(undecided),
            SECOND_SEARCH)
        return
    found = tuple(np.empty((len(undecided), part.shape[1]), part.dtype) for part in lists)
    everyone = np.broadcast_to(everyone, (len(undecided), len(everyone)))
    over_rows(lambda start, stop: kernels.nearest_of(
        features, rows[undecided], everyone, start, stop, *found), len(undecided), block=1)
    for part, new in zip(lists, found, strict=True):
        part[undecided] = new


@contextmanager
def _full_float32(device: torch.device) -> Iterator[None]:
    """Float32 products without the shorter types that a user may have allowed, for the proof.

    torch >= 2.9 has a setting for each library, older versions one flag for CUDA; where there is
    the former, touching the latter is an error or leaves it half set.
    """
    library = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    matmul = getattr(library, "matmul", None)
    name, exact = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else (
        "allow_tf32", False)
    if not hasattr(matmul, name):
        yield
        return
    before = getattr(matmul, name)
    setattr(matmul, name, exact)
    try:
        yield
    finally:
        setattr(matmul, name, before)
