"""k-reciprocal Jaccard distances of every pair within ``eps``, without an N x N matrix.

The distance is that of Zhong et al., "Re-ranking Person Re-identification with k-reciprocal
Encoding" (CVPR 2017, arXiv 1701.08398), without that paper's final mix with the original
distance, in the form that FastReID's ``compute_jaccard_distance`` gives it:

- neighbour lists have k1 columns, the image itself included, and the half lists
  ``round(k1 / 2) + 1`` columns;
- a row's expansion tests each member against the row's original set, not the growing one;
- weights are the softmax of the negative squared L2 distance over the expanded set;
- the encoding is then averaged over the first k2 neighbours, unless k2 = 1;
- with t the sum of element-wise minima of two encodings, the distance is 1 - t / (2 - t).

An encoding has few non-zeros, and t is zero for images that share none of them, so work and
memory grow with N times the number of neighbours.

Encodings are float64, unlike the toolbox's. Distances that equal ``eps`` exactly do occur (with
k2 = 6, two images that share 4 of 6 neighbours and nothing else are 0.5 apart); float32 sums
would place them on either side by the order of summation, float64 ones rounded to float32 place
them at ``eps``, hence within it.

Letters: N images, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy import sparse

from .inputs import as_feature_matrix, check_graph_parameters
from .neighbors import search_neighbors

# Pair terms, and accumulator cells, handled at once in the min-sum: arrays of a few MiB that
# stay in cache. A single row may exceed it.
BLOCK_ENTRIES = 2**18


def jaccard_graph(features: torch.Tensor | np.ndarray, *, k1: int, k2: int, eps: float,
                  progress: Callable[[int, int], None] | None = None) -> sparse.csr_matrix:
    """Jaccard distances of every pair of images with distance <= ``eps``.

    Args:
        features: (N, D), any floating dtype (computed in float32), normalised or not.
        k1: length of the neighbour lists, >= 1. More than N is taken as N: there is no
            further neighbour to list. (FastReID's function pads such lists with -1, which then
            indexes the last image, so its distances mean nothing there.)
        k2: neighbours whose encodings are averaged, 1 <= k2 <= k1; 1 turns this off.
        eps: largest distance kept, 0 < eps < 1.
        progress: called with (rows done, N) during the min-sum stage, the last time with (N, N).

    Returns:
        (N, N), float32, symmetric, indices sorted. Zeros are stored: those of the diagonal, and
        those between duplicates. A pair that is not stored is farther apart than ``eps``. The
        diagonal is 0 by definition, also for an image whose encoding is empty because more than
        k1 exact duplicates push it out of every list.

    Raises:
        ValueError: bad features (the first bad row is named) or a parameter out of its range.
    """
    features = as_feature_matrix(features)
    check_graph_parameters(k1, k2, eps)
    ranks = search_neighbors(features, min(int(k1), len(features)))
    members = expanded_sets(ranks)
    encoding = softmax_encoding(squared_distances(features, members), members)
    encoding = average_over_neighbors(encoding, ranks[:, :k2])
    return pairs_within(encoding, eps, progress)


def reciprocal_sets(ranks: np.ndarray) -> sparse.csr_matrix:
    """Images that list each other: R(i) = {j : j in ranks[i] and i in ranks[j]}.

    Args:
        ranks: (N, k), neighbour indices, no index twice in a row.

    Returns:
        (N, N), int32, symmetric, 1 at (i, j) if j is in R(i).
    """
    n, k = ranks.shape
    ones = np.ones(n * k, dtype=np.int32)
    listed = sparse.csr_matrix((ones, ranks.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
    return listed.multiply(listed.T).tocsr()


def expanded_sets(ranks: np.ndarray) -> sparse.csr_matrix:
    """Reciprocal sets grown by the half-size sets of members that mostly agree with them.

    R*(i) is the union of R(i) and of every half-size set H(c), c in R(i), that has more than
    two thirds of its members in R(i) (the paper's "K-reciprocal Nearest Neighbors").

    Args:
        ranks: (N, k1), neighbour indices, nearest first.

    Returns:
        (N, N), int32, indices sorted, non-zero at (i, j) if j is in R*(i).
    """
    full = reciprocal_sets(ranks)
    # np.around rounds halves to even, as the toolbox does: 5 / 2 -> 2, 7 / 2 -> 4.
    half = reciprocal_sets(ranks[:, : int(np.around(ranks.shape[1] / 2)) + 1])
    # H is symmetric, so (R H)(i, c) counts the members that H(c) and R(i) share.
    shared = (full @ half).multiply(full).tocsr()
    half_sizes = np.diff(half.indptr)
    shared.data = (3 * shared.data > 2 * half_sizes[shared.indices]).astype(np.int32)
    shared.eliminate_zeros()
    expanded = (full + shared @ half).tocsr()
    expanded.sort_indices()
    return expanded


def squared_distances(features: np.ndarray, members: sparse.csr_matrix) -> np.ndarray:
    """Squared L2 distance of every stored pair of a pattern.

    Differences are squared, not expanded into norms and products: at the size of unnormalised
    embeddings the expansion loses the digits that the softmax needs.

    Args:
        features: (N, D), float32.
        members: (N, N), the pattern.

    Returns:
        (members.nnz,), float32, in the order of ``members.indices``.
    """
    distances = np.empty(members.nnz, dtype=np.float32)
    bounds = members.indptr
    for row, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:])):
        difference = features[members.indices[start:stop]]
        difference -= features[row]
        np.einsum("md,md->m", difference, difference, out=distances[start:stop])
    return distances


def softmax_encoding(distances: np.ndarray, members: sparse.csr_matrix) -> sparse.csr_matrix:
    """Row-wise softmax of negative distances over the stored pairs.

    This is the paper's Gaussian weight exp(-d) ("Jaccard Distance"), made to sum to 1.

    Args:
        distances: (members.nnz,), squared L2 distances.
        members: (N, N), the pattern.

    Returns:
        (N, N), float64; every non-empty row sums to 1.
    """
    sizes = np.diff(members.indptr)
    # reduceat cannot express an empty segment, so rows without members are left out of it.
    starts, sizes = members.indptr[:-1][sizes > 0], sizes[sizes > 0]
    nearest = np.minimum.reduceat(distances, starts)
    weights = np.exp(np.repeat(nearest, sizes) - distances, dtype=np.float64)
    weights /= np.repeat(np.add.reduceat(weights, starts), sizes)
    return sparse.csr_matrix((weights, members.indices, members.indptr), shape=members.shape)


def average_over_neighbors(encoding: sparse.csr_matrix, ranks: np.ndarray) -> sparse.csr_matrix:
    """Each row becomes the mean of its neighbours' rows (the paper's "Local Query Expansion").

    Args:
        encoding: (N, N), float64.
        ranks: (N, k2), the neighbours to average over.

    Returns:
        (N, N), float64; ``encoding`` itself if k2 = 1.
    """
    n, k2 = ranks.shape
    if k2 == 1:  # also where a duplicate, not the image itself, is listed first
        return encoding
    shares = np.full(n * k2, 1 / k2)
    bounds = np.arange(0, n * k2 + 1, k2)
    return sparse.csr_matrix((shares, ranks.ravel(), bounds), shape=(n, n)) @ encoding


def pairs_within(encoding: sparse.csr_matrix, eps: float,
                 progress: Callable[[int, int], None] | None = None) -> sparse.csr_matrix:
    """Every pair of rows whose Jaccard distance is at most ``eps``.

    For each row, only the rows that share a column with it are visited, through the columns'
    entry lists (inverted lists), and each pair once, from its lower index.

    Args:
        encoding: (N, N), non-negative, rows sum to 1 or 0.
        eps: largest distance kept.
        progress: called with (rows done, N).

    Returns:
        (N, N), as :func:`jaccard_graph` returns it.
    """
    n = encoding.shape[0]
    lists = _InvertedLists(encoding)
    found = []
    for start, stop in lists.blocks():
        found.append(_close_pairs(*lists.minima(start, stop), np.float32(eps)))
        if progress is not None:
            progress(stop, n)
    low, high, distances = (np.concatenate(parts) for parts in zip(*found))
    diagonal = np.arange(n)
    rows = np.concatenate([low, high, diagonal])
    columns = np.concatenate([high, low, diagonal])
    data = np.concatenate([distances, distances, np.zeros(n, dtype=np.float32)])
    # Through COO, because adding sparse matrices would drop the zeros of duplicates.
    graph = sparse.coo_matrix((data, (rows, columns)), shape=(n, n)).tocsr()
    graph.sort_indices()
    return graph


class _InvertedLists:
    """The rows that hold each column of an encoding, reached from each of its entries.

    Entries are numbered as in the CSR arrays of the encoding. The tail of an entry (i, g) is
    the part of column g's list after row i: the later rows that share column g with row i.
    """

    def __init__(self, encoding: sparse.csr_matrix) -> None:
        n, nnz = encoding.shape[0], encoding.nnz
        numbers = sparse.csr_matrix(
            (np.arange(nnz), encoding.indices, encoding.indptr), shape=encoding.shape
        ).tocsc()
        self.rows = numbers.indices
        self.values = encoding.data[numbers.data]
        self.weights = encoding.data
        self.row_bounds = encoding.indptr
        # Where each entry's tail starts in the lists, and how long it is.
        self.tail_starts = np.empty(nnz, dtype=np.int64)
        self.tail_starts[numbers.data] = np.arange(1, nnz + 1)
        self.tail_lengths = numbers.indptr[encoding.indices + 1] - self.tail_starts
        # Pair terms of all rows before each row, N + 1 values.
        terms = np.concatenate([[0], np.cumsum(self.tail_lengths)])
        self.terms_before = terms[self.row_bounds]
        self.n = n

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) over all rows, each within ``BLOCK_ENTRIES`` or one row long."""
        start = 0
        while start < self.n:
            limit = self.terms_before[start] + BLOCK_ENTRIES
            by_terms = np.searchsorted(self.terms_before, limit, side="right") - 1
            by_cells = start + BLOCK_ENTRIES // (self.n - start)
            stop = min(max(start + 1, min(by_terms, by_cells)), self.n)
            yield start, int(stop)
            start = int(stop)

    def minima(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sums of minima t of rows start..stop-1 with every later row that shares a column.

        Returns:
            lower row, higher row and t, three arrays with one value per pair.
        """
        entries = slice(self.row_bounds[start], self.row_bounds[stop])
        lengths = self.tail_lengths[entries]
        # Positions of all tails, one after the other: within a tail they count up by one.
        offsets = np.cumsum(lengths) - lengths
        positions = np.repeat(self.tail_starts[entries] - offsets, lengths)
        positions += np.arange(len(positions))
        terms = np.minimum(self.values[positions], np.repeat(self.weights[entries], lengths))
        # One accumulator cell per (row of the block, row from ``start`` on).
        width = self.n - start
        row_sizes = np.diff(self.row_bounds[start : stop + 1])
        cells = np.repeat(np.arange(stop - start) * width - start, row_sizes)
        sums = np.bincount(self.rows[positions] + np.repeat(cells, lengths), weights=terms)
        shared = np.flatnonzero(sums)
        return start + shared // width, start + shared % width, sums[shared]


def _close_pairs(low: np.ndarray, high: np.ndarray, minima: np.ndarray,
                 eps: np.float32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs with distance <= ``eps`` (float32, as the distances a caller will compare)."""
    # Encodings sum to 1 only up to rounding, so duplicates could come out below 0.
    distances = np.maximum(1 - minima / (2 - minima), 0).astype(np.float32)
    close = distances <= eps
    return low[close], high[close], distances[close]
