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

With cameras the neighbours are CA-Jaccard's (:mod:`.lists`); all else is the same.

Encodings are float64, unlike the toolbox's. Distances that equal ``eps`` exactly do occur (with
k2 = 6, two images that share 4 of 6 neighbours and nothing else are 0.5 apart); float32 sums
would place them on either side by the order of summation, float64 ones rounded to float32 place
them at ``eps``, hence within it.

Letters: N images, D embedding size.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from scipy import sparse

from . import kernels, memory
from .encoding import encode
from .inputs import as_feature_matrix, check_eps
from .lists import neighbor_lists
from .neighbors import Progress, Search
from .threads import over_rows, stack_rows
from .tracks import Tracks

# of one pair, at the peak: both halves of the graph, its transpose and what scipy copies
BYTES_OF_A_PAIR = 116


def jaccard_graph(features: torch.Tensor | np.ndarray, *, eps: float,
                  progress: Progress | None = None, **encoding: Any) -> sparse.csr_matrix:
    """Jaccard distances of every pair of images with distance <= ``eps``.

    Args:
        features: (N, D), any floating dtype (computed in float32), normalised or not.
        eps: largest distance kept, 0 < eps < 1.
        progress: called with (stage, done, total) during the stages "neighbours" and "pairs".
        encoding: ``k1`` and ``k2``, or ``camids`` with ``k1_intra`` and its like, ``small`` and
            ``search``, as :func:`jaccard_encoding` takes them.

    Returns:
        (N, N), float32, symmetric, indices sorted. Zeros are stored: on the diagonal, and
        those between duplicates. A pair that is not stored is farther apart than ``eps``. The
        diagonal is 0 by definition, also for an image whose encoding is empty because more than
        k1 exact duplicates push it out of every list.

    Raises:
        ValueError: bad features (the first bad row is named) or a parameter out of its range.
        MemoryError: it would not fit (see :class:`.neighbors.Search`).
    """
    check_eps(eps)
    return pairs_within(jaccard_encoding(features, progress=progress, **encoding), eps, progress)


def jaccard_encoding(features: torch.Tensor | np.ndarray, *, k1: int | None = None,
                     k2: int | None = None, camids: torch.Tensor | np.ndarray | None = None,
                     k1_intra: int | None = None, k1_inter: int | None = None,
                     k2_intra: int | None = None, k2_inter: int | None = None,
                     tracks: Tracks | None = None, small: bool = False,
                     search: Search = Search(), progress: Progress | None = None
                     ) -> sparse.csr_matrix:
    """The k-reciprocal encoding of every image: the rows that Jaccard distances compare.

    Args:
        features: (N, D), any floating dtype.
        k1: length of the neighbour lists, 1 <= k1 < N; 30 if not given.
        k2: neighbours whose encodings are averaged, 1 <= k2 <= k1; 6 if not given, 1 for none.
        camids: (N,) integers, the camera of each image: for camera-aware neighbours, which take
            the next four instead of k1 and k2.
        k1_intra, k1_inter, k2_intra, k2_inter: 5, 20, 2 and 4 if not given, see
            :mod:`.lists`.
        tracks: T of them, whose mean features take the place of the images'; N is T below.
        small: allow lists as long as N; they then hold the images there are.
        search: how neighbours are found.
        progress: as in :func:`jaccard_graph`.

    Returns:
        (N, N), float64, indices sorted; rows sum to 1 (0 if an image is in nobody's list).

    Raises:
        ValueError: as :func:`jaccard_graph`, or parameters of the one kind given for the other.
    """
    return encode(neighbor_lists(
        features, k1=k1, k2=k2, camids=camids, k1_intra=k1_intra, k1_inter=k1_inter,
        k2_intra=k2_intra, k2_inter=k2_inter, tracks=tracks, small=small, search=search,
        progress=progress))


def pairs_within(encoding: sparse.csr_matrix, eps: float,
                 progress: Progress | None = None) -> sparse.csr_matrix:
    """Every pair of rows whose Jaccard distance is at most ``eps``.

    For each row, only the later rows that share a column with it are visited, through the
    columns' entry lists (inverted lists); the other half of the graph is its mirror image.

    Args:
        encoding: (N, N), float64, non-negative, rows sum to 1 or 0, indices sorted.
        eps: largest distance kept.
        progress: called with ("pairs", rows done, N).

    Returns:
        (N, N), as :func:`jaccard_graph` returns it.

    Raises:
        MemoryError: so many pairs are within ``eps`` that their graph does not fit in what is free.
    """
    n = encoding.shape[0]
    above = stack_rows(over_rows(
        functools.partial(kernels.close_pairs, *_with_lists(encoding), np.float32(eps)), n,
        progress and functools.partial(progress, "pairs")), n)
    needed, free = BYTES_OF_A_PAIR * above.nnz / memory.GIB, memory.available()
    if needed > free:
        raise MemoryError(f"{above.nnz:,} pairs of images lie within eps {eps:g}, which takes "
                          f"about {needed:.1f} GiB, and {free:.1f} are free: lower eps")
    below = above.T.tocsr()
    bounds = np.arange(n + 1) + above.indptr + below.indptr
    columns = np.empty(bounds[-1], dtype=np.int32)
    distances = np.empty(bounds[-1], dtype=np.float32)
    over_rows(lambda start, stop: kernels.mirror(
        above.indptr, above.indices, above.data, below.indptr, below.indices, below.data,
        start, stop, bounds, columns, distances), n)
    return sparse.csr_matrix((distances, columns, bounds), shape=(n, n))


def _with_lists(encoding: sparse.csr_matrix) -> tuple[np.ndarray, ...]:
    """The encoding's arrays by row, then by column."""
    lists = encoding.tocsc()
    return (encoding.indptr, encoding.indices, encoding.data,
            lists.indptr, lists.indices, lists.data)


def jaccard_distances(query: torch.Tensor | np.ndarray, gallery: torch.Tensor | np.ndarray, *,
                      progress: Progress | None = None, **encoding: Any) -> np.ndarray:
    """Jaccard distances of every query to every gallery image, for re-ranking.

    Neighbours are searched among queries and gallery images together.

    Args:
        query: (Q, D).
        gallery: (G, D).
        progress: as in :func:`jaccard_graph`.
        encoding: as :func:`jaccard_encoding` takes it (camids: queries first).

    Returns:
        (Q, G), float32, 1 where two images share nothing.

    Raises:
        ValueError: bad features (of the one or the other) or a parameter out of its range.
    """
    query, gallery = as_feature_matrix(query), as_feature_matrix(gallery)
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(f"query and gallery must have the same size of features, got "
                         f"{query.shape[1]} and {gallery.shape[1]}")
    lists = _with_lists(jaccard_encoding(
        np.concatenate([query, gallery]), progress=progress, **encoding))
    distances = np.empty((len(query), len(gallery)), dtype=np.float32)
    over_rows(lambda start, stop: kernels.distances_to(
        *lists, len(query), start, stop, distances), len(query),
        progress and functools.partial(progress, "pairs"))
    return distances
