"""Compiled loops (numba) of the clustering, each over a range of rows.

They hold no Python object and release the interpreter lock, so that :mod:`.threads` runs several
ranges at once; each row is the work of one thread in a fixed order, hence the same bits whatever
the number of threads. Neighbour lists are int32 and may end in -1 where a row has fewer
neighbours. Sparse results are three arrays: entries per row, columns, values.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

logger = logging.getLogger(__name__)
CHUNK = 32  # scores that are looked at together


@functools.cache  # says it once
def _say_uncached(reason: str) -> None:
    logger.warning("What is compiled for the clustering cannot be kept, and is compiled anew by "
                   "each process, which takes seconds: %s. Set NUMBA_CACHE_DIR to a folder that "
                   "can be written.", reason)


def compiled(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """numba's ``njit`` without the interpreter lock, kept on disk where a folder can be written."""
    if function is None:
        return functools.partial(compiled, **options)
    try:
        return _kept_if_possible(numba.njit(nogil=True, cache=True, **options)(function))
    except RuntimeError as error:  # neither the package's folder nor HOME, as in many containers
        _say_uncached(str(error).partition(": ")[2])
        return numba.njit(nogil=True, **options)(function)


def _kept_if_possible(dispatcher: Any) -> Any:
    """The same function, which goes on where its folder takes no more: a full disk, a quota."""
    cache = getattr(dispatcher, "_cache", None)  # numba has no public name for it
    save = getattr(cache, "save_overload", None)
    if save is None:
        return dispatcher

    def save_overload(*compiled: Any) -> None:
        try:
            save(*compiled)
        except OSError as error:
            _say_uncached(str(error))

    vars(cache)["save_overload"] = save_overload
    return dispatcher


# Sums may be reordered, which is what lets the compiler use the vector units; nothing else.
@compiled(fastmath={"reassoc", "contract"})
def squared_distance(x, y):
    """|x - y|^2 of two vectors, by differences: no digits are lost to large norms."""
    total = np.float32(0)
    for d in range(len(x)):
        difference = x[d] - y[d]
        total += difference * difference
    return total


@compiled
def _insert(key, id, keys, ids):
    """Puts a key in the place of the least (of equal ones the latest); returns the least then."""
    worst = 0
    for p in range(1, len(keys)):
        if keys[p] < keys[worst] or (keys[p] == keys[worst] and ids[p] > ids[worst]):
            worst = p
    keys[worst] = key
    ids[worst] = id
    least = keys[0]
    for p in range(1, len(keys)):
        least = min(least, keys[p])
    return least


# The loops over a chunk of scores run over slices from 0 and without a branch, or the compiler
# would not use the vector units: ten times slower.


@compiled
def order_bits(bits, low, high, start, stop):
    """Rows start..stop-1 of (R, C) bits of scores become integers in the order of the scores.

    ``low``, ``high``: the integer type's sign bit, as a shift, and all others, as a mask. Bits of
    negative numbers are flipped, but for the sign; doing it again gives the bits back.
    """
    for r in range(start, stop):
        row = bits[r]
        for c in range(len(row)):
            row[c] ^= (row[c] >> low) & high


@compiled
def keep_best(tile, left, right, first_row, first_column, keys, ids, least, start, stop):
    """Rows start..stop-1 of a tile of scores: the best m of each image so far are kept.

    ``tile``: (R, C), ordered integers, of which columns left..right-1 count.
    ``first_row``, ``first_column``: the images of the tile's first row and column.
    ``keys``, ``ids``: (N, m), changed; the best integers and their columns, in no order.
    ``least``: (N,), changed; the smallest key of each image. Of equal scores the first that comes
        is kept: an image's columns come in their order.
    """
    for r in range(start, stop):
        image = first_row + r
        for chunk in range(left, right, CHUNK):
            piece = tile[r, chunk : min(chunk + CHUNK, right)]
            limit = least[image]
            best = limit
            for c in range(len(piece)):
                best = max(best, piece[c])
            if best == limit:
                continue
            for c in range(len(piece)):
                if piece[c] > least[image]:
                    least[image] = _insert(
                        piece[c], first_column + chunk + c, keys[image], ids[image])


@compiled
def keep_best_of_columns(tile, top, bottom, first_row, first_column, keys, ids, least, start,
                         stop):
    """The same for columns start..stop-1 of the tile, of which rows top..bottom-1 count."""
    for r in range(top, bottom):
        for chunk in range(start, stop, CHUNK):
            piece = tile[r, chunk : min(chunk + CHUNK, stop)]
            limits = least[first_column + chunk : first_column + chunk + len(piece)]
            hit = np.int16(0)
            for c in range(len(piece)):
                hit = max(hit, np.int16(piece[c] > limits[c]))
            if hit == 0:
                continue
            for c in range(len(piece)):
                if piece[c] > limits[c]:
                    image = first_column + chunk + c
                    limits[c] = _insert(piece[c], first_row + r, keys[image], ids[image])


@compiled
def bounds_of(score, unit, lost, error, rounding):
    """Between what lies a squared distance with such a score, see ``RoundedFeatures.slack``."""
    half = -score  # of the squared distance; rounding may make it negative
    least, most = half / (1 + unit), half / (1 - unit)
    if half < 0:
        least, most = most, least
    low = max(np.sqrt(2 * max(least - lost, 0.0)) - error, 0.0)
    high = np.sqrt(2 * max(most + lost, 0.0)) + error
    return low * low * (1 - rounding), high * high * (1 + rounding)


@compiled
def limits(scores, k, unit, lost, errors, rounding, start, stop, nearest, others):
    """What the scores of an image's candidates say about distances.

    ``nearest``: no image among the k nearest has a squared distance above this.
    ``others``: no image that is no candidate has one below this; infinity if fewer than m were
    seen, for then there are none. Candidates that were not seen score -inf.
    """
    m = scores.shape[1]
    highs = np.empty(m)
    for r in range(start, stop):
        others[r] = 0.0
        for c in range(m):
            if np.isinf(scores[r, c]):
                highs[c] = np.inf
                others[r] = np.inf
            else:
                low, highs[c] = bounds_of(scores[r, c], unit, lost[r], errors[r], rounding)
                others[r] = max(others[r], low)
        nearest[r] = np.sort(highs)[k - 1] if k <= m else np.inf


@compiled
def drop_hopeless(scores, unit, lost, errors, rounding, nearest, start, stop, candidates):
    """Candidates become -1 if they cannot be within ``nearest`` or were not seen."""
    for r in range(start, stop):
        for c in range(scores.shape[1]):
            if np.isinf(scores[r, c]) or bounds_of(
                    scores[r, c], unit, lost[r], errors[r], rounding)[0] > nearest[r]:
                candidates[r, c] = -1


@compiled
def nearest_of(features, rows, candidates, start, stop, ranks, distances):
    """The nearest of each row's candidates, by (distance, index), into ranks and distances.

    ``rows``, ``candidates``: what is searched for, and where; -1 candidates are skipped.
    ``ranks``, ``distances`` (len(rows), k): filled in positions start..stop-1; -1 and infinity
    where there are fewer than k candidates.
    """
    k = ranks.shape[1]
    for r in range(start, stop):
        ranks[r] = -1
        distances[r] = np.inf
        found = 0
        for candidate in candidates[r]:
            if candidate < 0:
                continue
            d = squared_distance(features[rows[r]], features[candidate])
            slot = min(found, k)
            while slot > 0 and (
                    d < distances[r, slot - 1]
                    or (d == distances[r, slot - 1] and candidate < ranks[r, slot - 1])):
                if slot < k:
                    ranks[r, slot] = ranks[r, slot - 1]
                    distances[r, slot] = distances[r, slot - 1]
                slot -= 1
            if slot < k:
                ranks[r, slot] = candidate
                distances[r, slot] = d
                found += 1


@compiled
def mark_reciprocal(ranks, start, stop, mark):
    """mark[i, p]: whether the p-th neighbour of i lists i too."""
    for i in range(start, stop):
        for p, j in enumerate(ranks[i]):
            mark[i, p] = False
            if j >= 0:
                for back in ranks[j]:
                    if back == i:
                        mark[i, p] = True
                        break


@compiled
def _with_room(array, needed):
    if needed <= len(array):
        return array
    larger = np.empty(max(needed, 2 * len(array)), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


@compiled
def expand(ranks, full, half_ranks, half, start, stop):
    """R*(i) for a range of rows: marked members, and half-size sets that mostly agree."""
    in_full = np.full(len(ranks), -1, dtype=np.int32)  # the row that last put an image there
    in_grown = np.full(len(ranks), -1, dtype=np.int32)
    counts = np.zeros(stop - start, dtype=np.int64)
    columns = np.empty((stop - start) * ranks.shape[1], dtype=np.int32)
    used = 0
    for i in range(start, stop):
        # at most: every member brings a whole half-size set
        columns = _with_room(columns, used + ranks.shape[1] * (1 + half_ranks.shape[1]))
        first = used
        for p, j in enumerate(ranks[i]):
            if full[i, p]:
                in_full[j] = i
                in_grown[j] = i
                columns[used] = j
                used += 1
        for member in columns[first:used].copy():
            size = 0
            shared = 0
            for p, j in enumerate(half_ranks[member]):
                if half[member, p]:
                    size += 1
                    shared += in_full[j] == i
            if 3 * shared > 2 * size:
                for p, j in enumerate(half_ranks[member]):
                    if half[member, p] and in_grown[j] != i:
                        in_grown[j] = i
                        columns[used] = j
                        used += 1
        columns[first:used].sort()
        counts[i - start] = used - first
    return counts, columns[:used].copy()


@compiled
def member_distances(features, bounds, members, ranks, known, start, stop, distances):
    """Squared distance of every stored pair (i, j); those in the neighbour lists are copied."""
    scratch = np.full(len(features), np.nan, dtype=np.float32)
    for i in range(start, stop):
        for p, j in enumerate(ranks[i]):
            if j >= 0:
                scratch[j] = known[i, p]
        for entry in range(bounds[i], bounds[i + 1]):
            j = members[entry]
            d = scratch[j]
            distances[entry] = squared_distance(features[i], features[j]) if np.isnan(d) else d
        for j in ranks[i]:
            if j >= 0:
                scratch[j] = np.nan


@compiled
def softmax_rows(distances, bounds, start, stop, weights):
    """weights = softmax(-distances) within each row, in float64."""
    for i in range(start, stop):
        first, last = bounds[i], bounds[i + 1]
        if first == last:
            continue
        nearest = np.float64(distances[first:last].min())
        total = 0.0
        for entry in range(first, last):
            weights[entry] = np.exp(nearest - np.float64(distances[entry]))
            total += weights[entry]
        for entry in range(first, last):
            weights[entry] /= total


@compiled
def average_rows(bounds, columns, values, neighbors, start, stop):
    """Mean of the neighbours' rows, for a range of rows; columns sorted."""
    sums = np.zeros(len(bounds) - 1)
    counts = np.zeros(stop - start, dtype=np.int64)
    out_columns = np.empty(16, dtype=np.int32)
    out_values = np.empty(16)
    used = 0
    for i in range(start, stop):
        size = 0
        room = 0
        for j in neighbors[i]:
            if j >= 0:
                size += 1
                room += bounds[j + 1] - bounds[j]
        out_columns = _with_room(out_columns, used + room)
        first = used
        for j in neighbors[i]:
            if j < 0:
                continue
            for entry in range(bounds[j], bounds[j + 1]):
                column = columns[entry]
                share = values[entry] / size
                if share == 0:  # underflow of exp: 0 also marks what is not listed yet
                    continue
                if sums[column] == 0:
                    out_columns[used] = column
                    used += 1
                sums[column] += share
        out_columns[first:used].sort()
        out_values = _with_room(out_values, used)
        for entry in range(first, used):
            out_values[entry] = sums[out_columns[entry]]
            sums[out_columns[entry]] = 0
        counts[i - start] = used - first
    return counts, out_columns[:used].copy(), out_values[:used].copy()


@compiled
def _sum_minima(i, first, bounds, columns, values, list_bounds, list_rows, list_values, sums,
                touched):
    """sums[j] = t(i, j) for rows j >= first that share a column with i; returns how many do."""
    count = 0
    for entry in range(bounds[i], bounds[i + 1]):
        own = values[entry]
        column = columns[entry]
        begin, end = list_bounds[column], list_bounds[column + 1]
        begin += np.searchsorted(list_rows[begin:end], first)
        for place in range(begin, end):
            least = min(own, list_values[place])
            if least == 0:  # underflow of exp: 0 also marks what is not touched yet
                continue
            j = list_rows[place]
            if sums[j] == 0:
                touched[count] = j
                count += 1
            sums[j] += least
    return count


@compiled
def close_pairs(bounds, columns, values, list_bounds, list_rows, list_values, eps, start, stop):
    """Every j > i with Jaccard distance <= eps (float32), for a range of rows i."""
    n = len(bounds) - 1
    sums = np.zeros(n)
    touched = np.empty(n, dtype=np.int32)
    counts = np.zeros(stop - start, dtype=np.int64)
    out_columns = np.empty(16, dtype=np.int32)
    out_distances = np.empty(16, dtype=np.float32)
    used = 0
    for i in range(start, stop):
        count = _sum_minima(i, i + 1, bounds, columns, values, list_bounds, list_rows, list_values,
                            sums, touched)
        out_columns = _with_room(out_columns, used + count)
        first = used
        for j in touched[:count]:
            t = sums[j]
            if np.float32(1 - t / (2 - t)) <= eps:
                out_columns[used] = j
                used += 1
        out_columns[first:used].sort()
        out_distances = _with_room(out_distances, used)
        for entry in range(first, used):
            t = sums[out_columns[entry]]
            # rows sum to 1 only up to rounding, so duplicates could come out below 0
            out_distances[entry] = np.float32(max(1 - t / (2 - t), 0))
        for j in touched[:count]:
            sums[j] = 0
        counts[i - start] = used - first
    return counts, out_columns[:used].copy(), out_distances[:used].copy()


@compiled
def mirror(bounds, columns, distances, low_bounds, low_columns, low_distances, start, stop,
           full_bounds, full_columns, full_distances):
    """Rows of the whole graph: what is below the diagonal, the diagonal's 0, what is above."""
    for i in range(start, stop):
        place = full_bounds[i]
        for entry in range(low_bounds[i], low_bounds[i + 1]):
            full_columns[place] = low_columns[entry]
            full_distances[place] = low_distances[entry]
            place += 1
        full_columns[place] = i
        full_distances[place] = 0
        place += 1
        for entry in range(bounds[i], bounds[i + 1]):
            full_columns[place] = columns[entry]
            full_distances[place] = distances[entry]
            place += 1


@compiled
def distances_to(bounds, columns, values, list_bounds, list_rows, list_values, first, start, stop,
                 distances):
    """Jaccard distances of rows start..stop-1 to every row from ``first`` on, dense."""
    sums = np.zeros(len(bounds) - 1)
    touched = np.empty(len(bounds) - 1, dtype=np.int32)
    for i in range(start, stop):
        count = _sum_minima(i, first, bounds, columns, values, list_bounds, list_rows, list_values,
                            sums, touched)
        distances[i] = 1
        for j in touched[:count]:
            distances[i, j - first] = max(1 - sums[j] / (2 - sums[j]), 0)
            sums[j] = 0
