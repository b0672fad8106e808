"""Pseudo labels: DBSCAN over the sparse graph of Jaccard distances, and figures of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse

from .encoding import encode
from .inputs import check_eps, check_min_samples
from .jaccard import pairs_within
from .lists import neighbor_lists
from .neighbors import Progress, Search
from .processes import Processes
from .tracks import Tracks, cluster_tracks


def assign_pseudo_labels(features: torch.Tensor | np.ndarray, *, eps: float, min_samples: int,
                         tracks: Tracks | None = None, progress: Progress | None = None,
                         **encoding: Any) -> np.ndarray:
    """Cluster the images and number the clusters.

    The partition is that of scikit-learn's ``DBSCAN(metric="precomputed")`` on the full matrix
    of k-reciprocal Jaccard distances: DBSCAN reads no distance above ``eps``. With tracks it is
    that of :func:`.tracks.cluster_tracks`, whose points are the tracks' mean features.

    Args:
        features: (N, D), any floating dtype.
        eps: largest distance between DBSCAN neighbours, 0 < eps < 1.
        min_samples: neighbours, itself included, that make an image a core point, >= 1.
        tracks: which images are one person for certain, and which tracks cannot be. Neighbours
            are then tracks, here and in the encoding.
        progress: see :func:`.jaccard.jaccard_graph`.
        encoding: ``k1``, ``k2``, ``search`` and so on, as :func:`.jaccard.jaccard_encoding`
            takes them.

    Returns:
        (N,), int64. Clusters are 0..K-1 in order of first appearance, -1 marks an outlier.

    Raises:
        ValueError: bad features (the first bad row is named) or a parameter out of its range.
        MemoryError: it would not fit (see :class:`.neighbors.Search`).
    """
    return labels_at(features, eps_values=[eps], min_samples=min_samples, tracks=tracks,
                     progress=progress, **encoding)[0]


def labels_at(features: torch.Tensor | np.ndarray, *, eps_values: Sequence[float],
              min_samples: int, tracks: Tracks | None = None, progress: Progress | None = None,
              **encoding: Any) -> list[np.ndarray]:
    """The labels of :func:`assign_pseudo_labels` at several eps, for one search and encoding.

    Args:
        features: (N, D), any floating dtype.
        eps_values: one eps or more, each 0 < eps < 1, in any order.
        min_samples, tracks, progress, encoding: see :func:`assign_pseudo_labels`.

    Returns:
        (N,) int64 labels for each eps, in the order of ``eps_values``.

    Raises:
        ValueError, MemoryError: see :func:`assign_pseudo_labels`.
    """
    check_min_samples(min_samples)
    for eps in eps_values:
        check_eps(eps)
    lists = neighbor_lists(features, tracks=tracks, progress=progress, **encoding)
    descending = sorted(set(eps_values), reverse=True)

    def label() -> list[np.ndarray]:
        return list(labels_of_encoding(encode(lists), descending, min_samples, tracks, progress))

    # only the search is shared: the rest is quick, and would take its memory in every process
    found = Processes(encoding.get("search", Search()).group).from_first(label)
    by_eps = dict(zip(descending, found, strict=True))
    return [by_eps[eps] for eps in eps_values]


def labels_of_encoding(encoding: sparse.csr_matrix, descending: Sequence[float],
                       min_samples: int, tracks: Tracks | None = None,
                       progress: Progress | None = None) -> Iterator[np.ndarray]:
    """Labels (N,) at each eps, from the largest down; with tracks the encoding is of those.

    The pairs within a smaller eps are among those within a larger one, so that they are computed
    once and thinned out from one value to the next. Rows that are equal, as for copies of an
    image, are one row that counts as many: each pair of them would be stored otherwise.
    """
    if tracks is not None:
        graph = pairs_within(encoding, descending[0], progress)
        for eps in descending:
            labels = cluster_tracks(graph, eps, min_samples, tracks)
            yield number_by_appearance(labels[tracks.of_image])
        return
    twins = _first_equal(encoding)
    kept, row, weights = np.unique(twins, return_inverse=True, return_counts=True)
    graph = pairs_within(encoding[kept] if len(kept) < len(twins) else encoding, descending[0],
                         progress)
    for eps in descending:
        graph = _thinned(graph, eps)
        yield number_by_appearance(cluster_graph(graph, eps, min_samples, weights)[row])


def _first_equal(encoding: sparse.csr_matrix) -> np.ndarray:
    """(N,), for each row the first one that is equal to it, mostly itself.

    Empty rows stand for themselves: their distance to each other is 1.
    """
    bounds, columns, values = encoding.indptr, encoding.indices, encoding.data
    # equal rows give equal sums; whether they are equal is looked at
    sums = encoding @ np.random.default_rng(0).random(encoding.shape[1])
    _, first, group = np.unique(sums, return_index=True, return_inverse=True)
    twins, own = first[group], np.arange(len(sums))
    for row in np.flatnonzero(twins != own):
        one, other = (slice(bounds[r], bounds[r + 1]) for r in (row, twins[row]))
        if not (np.array_equal(columns[one], columns[other]) and columns[one].size
                and np.array_equal(values[one], values[other])):
            twins[row] = row
    return twins


def _thinned(graph: sparse.csr_matrix, eps: float) -> sparse.csr_matrix:
    """The pairs of a graph within a smaller eps. Stored zeros are distances, hence kept."""
    kept = graph.data <= np.float32(eps)
    if kept.all():
        return graph
    bounds = np.concatenate([[0], np.cumsum(kept)])[graph.indptr]
    return sparse.csr_matrix((graph.data[kept], graph.indices[kept], bounds), graph.shape)


def cluster_graph(graph: sparse.csr_matrix, eps: float, min_samples: int,
                  weights: np.ndarray | None = None) -> np.ndarray:
    """scikit-learn's DBSCAN labels, shape (N,), of a graph of distances.

    A stored zero is a distance of 0 and a missing entry a distance above ``eps``. ``weights``:
    (N,), how many images each row stands for, 1 if not given.
    """
    # here: the import costs a second, which a program that does not cluster need not pay
    from sklearn.cluster import DBSCAN
    from sklearn.neighbors import sort_graph_by_row_values

    # Not needed for the result: older scikit-learn versions warn about any other order.
    graph = sort_graph_by_row_values(graph, copy=True, warn_when_not_sorted=False)
    # float32 like the graph, so a distance at the threshold counts on both sides alike.
    dbscan = DBSCAN(eps=float(np.float32(eps)), min_samples=min_samples, metric="precomputed")
    return dbscan.fit(graph, sample_weight=weights).labels_


def number_by_appearance(labels: np.ndarray) -> np.ndarray:
    """Renumber clusters 0..K-1 in the order in which they first occur; -1 stays -1.

    Example:
        >>> number_by_appearance(np.array([7, -1, 3, 7, 3])).tolist()
        [0, -1, 1, 0, 1]
    """
    clusters, first_seen = np.unique(labels[labels >= 0], return_index=True)
    numbers = np.empty(len(clusters), dtype=np.int64)
    numbers[np.argsort(first_seen)] = np.arange(len(clusters))
    renumbered = np.full(len(labels), -1, dtype=np.int64)
    renumbered[labels >= 0] = numbers[np.searchsorted(clusters, labels[labels >= 0])]
    return renumbered


def outliers_to_singletons(labels: np.ndarray, tracks: Tracks | None = None) -> np.ndarray:
    """Gives every outlier a cluster of its own, numbered after the others (SpCL's labels).

    Args:
        labels: (N,) clusters 0..K-1, -1 for outliers.
        tracks: whose outliers share one cluster, as they are one person.

    Returns:
        (N,) labels without -1.
    """
    labels = np.array(labels, dtype=np.int64)
    outlier = labels < 0
    alone = np.arange(len(labels)) if tracks is None else tracks.of_image
    labels[outlier] = labels.max(initial=-1) + 1 + number_by_appearance(alone[outlier])
    return labels


def label_statistics(labels: np.ndarray, camids: np.ndarray) -> dict[str, float]:
    """Figures of a clustering that need no identity.

    Args:
        labels: (N,) clusters, -1 for outliers.
        camids: (N,) cameras.

    Returns:
        "clusters" and "outliers" (counts), "largest" (images in the largest cluster) and
        "cross_camera" (share, 0 to 1, of the clusters that span more than one camera).
    """
    inlier = labels >= 0
    pairs = np.unique(np.stack((labels[inlier], camids[inlier])), axis=1)
    clusters, cameras = np.unique(pairs[0], return_counts=True)
    return {
        "clusters": len(clusters),
        "outliers": int((~inlier).sum()),
        "largest": int(np.bincount(labels[inlier]).max()) if len(clusters) else 0,
        "cross_camera": float((cameras > 1).mean()) if len(clusters) else 0.0,
    }
