"""The k-reciprocal encoding of every image, in stages; :mod:`.jaccard` says what it is for.

Letters: N images, D embedding size.
"""

from __future__ import annotations

import functools

import numpy as np
from scipy import sparse

from . import kernels
from .lists import NeighborLists
from .threads import over_rows, stack_rows


def encode(lists: NeighborLists) -> sparse.csr_matrix:
    """The encoding (N, N) that :func:`.jaccard.jaccard_encoding` describes."""
    if lists.expand:
        (ranks, known), = lists.parts
        members = expanded_sets(ranks)
    else:
        ranks = np.concatenate([ranks for ranks, _ in lists.parts], axis=1)
        known = np.concatenate([known for _, known in lists.parts], axis=1)
        mutual = np.concatenate([reciprocal_mask(ranks) for ranks, _ in lists.parts], axis=1)
        members = marked_members(ranks, mutual)
    weights = softmax_encoding(member_distances(lists.features, members, ranks, known), members)
    return average_over_neighbors(weights, lists.averaged)


def reciprocal_mask(ranks: np.ndarray) -> np.ndarray:
    """Which neighbours list the image too: (N, k) booleans for (N, k) neighbour indices."""
    mask = np.empty(ranks.shape, dtype=bool)
    over_rows(lambda start, stop: kernels.mark_reciprocal(ranks, start, stop, mask), len(ranks))
    return mask


def marked_members(ranks: np.ndarray, mask: np.ndarray) -> sparse.csr_matrix:
    """(N, N) int8 pattern of the marked neighbours (N, k) of each row, indices sorted."""
    n = len(ranks)
    bounds = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
    members = sparse.csr_matrix((np.ones(bounds[-1], dtype=np.int8), ranks[mask], bounds), (n, n))
    members.sort_indices()
    return members


def expanded_sets(ranks: np.ndarray) -> sparse.csr_matrix:
    """Reciprocal sets grown by the half-size sets of members that mostly agree with them.

    R(i) holds the images that i lists and that list i. R*(i) is the union of R(i) and of every
    half-size set H(c), c in R(i), that has more than two thirds of its members in R(i) (the
    paper's "K-reciprocal Nearest Neighbors").

    Args:
        ranks: (N, k1), int32 neighbour indices, nearest first.

    Returns:
        (N, N), int8, indices sorted, non-zero at (i, j) if j is in R*(i).
    """
    # np.around rounds halves to even, as the toolbox does: 5 / 2 -> 2, 7 / 2 -> 4.
    half_ranks = np.ascontiguousarray(ranks[:, : int(np.around(ranks.shape[1] / 2)) + 1])
    full, half = reciprocal_mask(ranks), reciprocal_mask(half_ranks)
    return stack_rows(over_rows(
        functools.partial(kernels.expand, ranks, full, half_ranks, half), len(ranks)), len(ranks))


def member_distances(features: np.ndarray, members: sparse.csr_matrix, ranks: np.ndarray,
                     known: np.ndarray) -> np.ndarray:
    """Squared L2 distance of every stored pair of a pattern.

    Differences are squared, not expanded into norms and products: at the size of unnormalised
    embeddings the expansion loses the digits that the softmax needs.

    Args:
        features: (N, D), float32.
        members: (N, N), the pattern.
        ranks, known: (N, k), neighbours (-1: none) and their squared distances, which are taken
            over where the pattern holds the pair.

    Returns:
        (members.nnz,), float32, in the order of ``members.indices``.
    """
    distances = np.empty(members.nnz, dtype=np.float32)
    over_rows(lambda start, stop: kernels.member_distances(
        features, members.indptr, members.indices, ranks, known, start, stop, distances),
        len(features))
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
    weights = np.empty(members.nnz)
    over_rows(lambda start, stop: kernels.softmax_rows(
        distances, members.indptr, start, stop, weights), members.shape[0])
    return sparse.csr_matrix((weights, members.indices, members.indptr), shape=members.shape)


def average_over_neighbors(encoding: sparse.csr_matrix, ranks: np.ndarray) -> sparse.csr_matrix:
    """Each row becomes the mean of its neighbours' rows (the paper's "Local Query Expansion").

    Args:
        encoding: (N, N), float64.
        ranks: (N, k2), int32, the neighbours to average over, -1 where there is none.

    Returns:
        (N, N), float64, indices sorted; ``encoding`` itself if k2 = 1.
    """
    n, k2 = ranks.shape
    if k2 == 1:  # also where a duplicate, not the image itself, is listed first
        return encoding
    return stack_rows(over_rows(functools.partial(
        kernels.average_rows, encoding.indptr, encoding.indices, encoding.data,
        np.ascontiguousarray(ranks)), n), n)
