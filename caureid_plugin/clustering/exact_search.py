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
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from . import kernels
from .processes import Processes
from .threads import Pool, over_rows

logger = logging.getLogger(__name__)

TILE_ROWS = 1024
CACHED_TILE = 2**23  # bytes of scores, on a CPU
TILE_BYTES = 2**29  # on a GPU
ROWS_IN_CACHE = 256
# Candidates of an image in the second search, beyond k.
SECOND_SEARCH = 256
# Squared differences that are worth computing for lists that scores cannot decide: minutes.
MOST_TERMS = 10**12
CPU_INFO = Path("/proc/cpuinfo")
EXTRA_COLUMNS = 6  # three parts of the squared norm, three ones


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on processors that multiply it natively, else float32."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return torch.float32
    try:
        words = set(CPU_INFO.read_text().split())
    except OSError:  # not Linux
        return torch.float32
    return torch.bfloat16 if words & {"avx512_bf16", "amx_bf16"} else torch.float32


def num_candidates(k: int, n: int) -> int:
    """m: with half as many again as asked for, bfloat16 leaves 1 image in 1,000 unproved.

    (Embeddings of people, 12,936 x 2048: 5.6 % unproved with m = 38 of k = 30, 0.1 % with 45.)
    """
    return min(n, k + max(k // 2, 8))


def mean_of(features: np.ndarray) -> torch.Tensor:
    """(D,) float32, the mean of (N, D) features."""
    return torch.from_numpy(features.mean(axis=0, dtype=np.float64).astype(np.float32))


class Slack(NamedTuple):
    """What scores may differ by from distances, as ``kernels.bounds_of`` takes it.

    Attributes:
        unit: relative, as the score itself was rounded to its type.
        lost: (R,), what summing D + 6 products in float32 may lose.
        errors: (R,), e(x) of the row and the largest e(y).
        rounding: relative, of summing D squared differences in float32.
    """

    unit: float
    lost: np.ndarray
    errors: np.ndarray
    rounding: float


class RoundedFeatures:
    """Features in a faster type, laid out so that one product gives ``-|x^ - y^|^2 / 2``.

    A row holds x^ (of x less the mean), then -|x^|^2 / 2 split into three numbers of the type
    (their sum is exact to float32's digits), then three ones. With the two groups of three
    swapped on one side, the product of two rows is x^.y^ - |x^|^2 / 2 - |y^|^2 / 2.

    Args:
        features: (N, D) float32.
        order: (any,) the row of ``features`` that each row here holds.
        dtype: of the copy.
        device: where scores are computed. The copy lies there too if it takes no more than half
            of what is free there, else in the CPU's memory.
        basis: (D, P), orthonormal columns: x^ then holds P coordinates of x, while |x|^2 stays
            that of all D. Scores are then estimates, and nothing is proved from them.
        mean: (D,), what is subtracted; None: the features' mean.

    Attributes:
        rows: (N, D + 6) of that type.
        errors: (N,) float64, at least e(x) = |x - x^|.
        norms: (N,) float64, |x^|.
        mean: (D,) float32, what was subtracted.
    """

    def __init__(self, features: np.ndarray, order: np.ndarray, dtype: torch.dtype,
                 device: torch.device, basis: torch.Tensor | None = None,
                 mean: torch.Tensor | None = None) -> None:
        n, dim = len(order), features.shape[1] if basis is None else basis.shape[1]
        self.dim, self.dtype, self.device, self.basis = dim, dtype, device, basis
        self.mean = mean_of(features) if mean is None else mean
        size = n * (dim + EXTRA_COLUMNS) * dtype.itemsize
        fits = device.type != "cuda" or size <= torch.cuda.mem_get_info(device)[0] / 2
        self.rows = torch.empty(n, dim + EXTRA_COLUMNS, dtype=dtype,
                                device=device if fits else "cpu")
        self.errors, self.norms = np.empty(n), np.empty(n)
        for start in range(0, n, ROWS_IN_CACHE):
            part = slice(start, start + ROWS_IN_CACHE)
            self._take(part, torch.from_numpy(_take(features, order[part])) - self.mean)
        self.errors += 2.0**-23 * self.norms  # that subtraction rounded too
        self.rows[:, dim + 3 :] = 1

    def _take(self, part: slice, exact: torch.Tensor) -> None:
        rounded = (exact if self.basis is None else exact @ self.basis).to(self.dtype)
        self.rows[part, : self.dim] = rounded.to(self.rows.device)
        rounded = rounded.float() if self.basis is None else exact
        # float32 sums of D terms: their own rounding is far below the 0.1 % added to them
        self.errors[part] = 1.001 * (exact - rounded).norm(dim=1).numpy()
        self.norms[part] = rounded.norm(dim=1).numpy()
        rest = -torch.linalg.vecdot(rounded.double(), rounded.double()) / 2
        for column in range(self.dim, self.dim + 3):
            piece = rest.to(self.dtype)
            self.rows[part, column] = piece.to(self.rows.device)
            rest = rest - piece.double()

    def left(self, rows: slice | torch.Tensor) -> torch.Tensor:
        """Rows (a range or indices) as the left factor of :meth:`scores`, on its device."""
        part = self.rows[rows].to(self.device)
        return torch.cat([part[:, : self.dim], part[:, self.dim + 3 :],
                          part[:, self.dim : self.dim + 3]], dim=1)

    def scores(self, left: torch.Tensor, columns: slice,
               memory: torch.Tensor | None = None) -> torch.Tensor:
        """-|x^ - y^|^2 / 2 of a tile, in the type.

        Args:
            left: (R, D + 6), from :meth:`left`.
            columns: a range of C rows.
            memory: where to put the (R, C). A fresh array costs more than the product.
        """
        right = self.rows[columns].to(self.device)
        if memory is None:
            return left @ right.T
        return torch.mm(left, right.T, out=memory[: len(left) * len(right)].view(len(left), -1))

    def slack(self, rows: slice, most_norm: float, most_error: float) -> Slack:
        """What scores of some rows may differ by from distances.

        A score s of two images, one of them among ``rows``, says that their squared distance, as
        computed, lies between ``kernels.bounds_of(s, ...)``.

        Args:
            rows: a range of R.
            most_norm, most_error: the largest of anyone they are compared with.
        """
        # relative error of a float32 sum of as many terms as a row has, at the worst
        rounding = (self.dim + EXTRA_COLUMNS + 2) * 2.0**-24
        return Slack(float(torch.finfo(self.dtype).eps) / 2,
                     rounding * (self.norms[rows] + most_norm) ** 2 / 2,
                     self.errors[rows] + most_error, rounding)


class BestScores:
    """The best m scores of each image among the tiles seen so far.

    On a GPU by torch's topk; on a CPU by a compiled loop that remembers what a score has to beat,
    several times as fast (docs/clustering.md).

    Args:
        n, m: N images, m scores of each.
        dtype, device: of the scores.
        loop: whether by the loop; None: on a CPU.
    """

    def __init__(self, n: int, m: int, dtype: torch.dtype, device: torch.device,
                 loop: bool | None = None) -> None:
        self._dtype = dtype
        self._pool = Pool()
        self._ids = torch.full((n, m), -1, dtype=torch.int32, device=device)
        self._values = torch.full((n, m), -torch.inf, dtype=dtype, device=device)
        self._keys: np.ndarray | None = None
        self._bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
        self._low, self._high = 8 * dtype.itemsize - 1, torch.iinfo(self._bits).max
        if loop or (loop is None and device.type == "cpu"):
            self._keys = self._flip(self._values.view(self._bits)).numpy()
            self._values = torch.empty(0, dtype=dtype)  # the keys stand for them
            self._least = self._keys.min(axis=1)

    def _flip(self, bits: torch.Tensor) -> torch.Tensor:
        """Bits of floating-point numbers to integers of the same order, and back."""
        return bits ^ ((bits >> self._low) & self._high)

    def prepare(self, scores: torch.Tensor) -> torch.Tensor | np.ndarray:
        """A tile of scores (contiguous, changed in place) as the other methods take it."""
        if self._keys is None:
            return scores
        bits = scores.view(self._bits).numpy()
        low, high = bits.dtype.type(self._low), bits.dtype.type(self._high)
        self._pool(lambda start, stop: kernels.order_bits(bits, low, high, start, stop), len(bits))
        return bits

    def exclude(self, tile: torch.Tensor | np.ndarray, rows: slice, columns: slice) -> None:
        """Makes a part of the tile worse than any score."""
        tile[rows, columns] = -torch.inf if self._keys is None else np.iinfo(tile.dtype).min

    def add(self, first_row: int, first_column: int, tile: torch.Tensor | np.ndarray,
            rows: slice = slice(None), columns: slice = slice(None)) -> None:
        """Takes the scores of consecutive images, the rows, against others, the columns.

        Args:
            first_row, first_column: the images of the first row and column.
            tile: (R, C), prepared.
            rows, columns: the part that counts.
        """
        top, bottom, _ = rows.indices(len(tile))
        left, right, _ = columns.indices(tile.shape[1])
        if isinstance(tile, torch.Tensor):
            self._topk(first_row + top, first_column + left, tile[top:bottom, left:right])
            return
        self._pool(lambda start, stop: kernels.keep_best(
            tile, left, right, first_row, first_column, self._keys, self._ids.numpy(),
            self._least, top + start, top + stop), bottom - top)

    def add_columns(self, first_row: int, first_column: int, tile: torch.Tensor | np.ndarray,
                    rows: slice = slice(None), columns: slice = slice(None)) -> None:
        """The same scores for the columns' images, against the rows."""
        top, bottom, _ = rows.indices(len(tile))
        left, right, _ = columns.indices(tile.shape[1])
        if isinstance(tile, torch.Tensor):
            self._topk(first_column + left, first_row + top, tile[top:bottom, left:right].T)
            return
        self._pool(lambda start, stop: kernels.keep_best_of_columns(
            tile, top, bottom, first_row, first_column, self._keys, self._ids.numpy(),
            self._least, left + start, left + stop), right - left)

    def _topk(self, first_row: int, first_column: int, scores: torch.Tensor) -> None:
        if not scores.numel():
            return
        values, ids = scores.topk(min(self._ids.shape[1], scores.shape[1]), dim=1, sorted=False)
        self.merge(slice(first_row, first_row + len(scores)), values,
                   (ids + first_column).to(torch.int32))

    def merge(self, rows: slice, values: torch.Tensor, ids: torch.Tensor) -> None:
        """Takes scores (R, any) and their columns for some rows; of equal ones the lower column."""
        own, own_ids = self.of(rows)
        values, ids = torch.cat([own, values], dim=1), torch.cat([own_ids, ids], dim=1)
        order = self._flip(values.contiguous().view(self._bits)).long() * 2**32 - ids
        kept = order.topk(own.shape[1], dim=1, sorted=False).indices
        self._ids[rows] = ids.gather(1, kept)
        if self._keys is None:
            self._values[rows] = values.gather(1, kept)
        else:
            self._set_keys(rows, values.gather(1, kept))

    def _set_keys(self, rows: slice, values: torch.Tensor) -> None:
        assert self._keys is not None  # without the loop there are none
        self._keys[rows] = self._flip(values.contiguous().view(self._bits)).numpy()
        self._least[rows] = self._keys[rows].min(axis=1)

    def of(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (R, m), -inf where fewer were seen, and their columns, in no order."""
        if self._keys is None:
            return self._values[rows], self._ids[rows]
        bits = self._flip(torch.from_numpy(self._keys[rows]))
        return bits.view(self._dtype), self._ids[rows]

    def forget(self, rows: slice) -> None:
        """As if nothing had been seen of these rows."""
        nothing = torch.full_like(self.of(rows)[0], -torch.inf)
        if self._keys is None:
            self._values[rows] = nothing
        else:
            self._set_keys(rows, nothing)


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
    unproved = [np.empty(0, dtype=np.int64)]
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
        for columns in _pieces(ranges):
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


def _take(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """features[rows], without a copy if the rows are consecutive."""
    if rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return features[rows[0] : rows[-1] + 1]
    return features[rows]


def _pieces(ranges: list[slice]) -> Iterator[slice]:
    for whole in ranges:
        for start in range(whole.start, whole.stop, 2 * TILE_ROWS):
            yield slice(start, min(start + 2 * TILE_ROWS, whole.stop))


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
