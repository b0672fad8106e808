"""Pseudo labels: DBSCAN over the sparse graph of Jaccard distances."""

import numpy as np
from sklearn.cluster import DBSCAN
from sklearn.neighbors import sort_graph_by_row_values

from .inputs import check_min_samples
from .jaccard import jaccard_graph


def assign_pseudo_labels(features, *, k1, k2, eps, min_samples, progress=None):
    """Cluster the images and number the clusters.

    The partition is that of scikit-learn's ``DBSCAN(metric="precomputed")`` on the full matrix
    of k-reciprocal Jaccard distances: DBSCAN reads no distance above ``eps``.

    Args:
        features (torch.Tensor or np.ndarray): shape (N, D), any floating dtype.
        k1 (int): length of the neighbour lists, >= 1.
        k2 (int): neighbours whose encodings are averaged, 1 <= k2 <= k1.
        eps (float): largest distance between DBSCAN neighbours, 0 < eps < 1.
        min_samples (int): neighbours, itself included, that make an image a core point, >= 1.
        progress (Callable[[int, int], None], optional): see :func:`.jaccard.jaccard_graph`.

    Returns:
        np.ndarray: shape (N,), int64. Clusters are 0..K-1 in order of first appearance, -1
        marks an outlier.

    Raises:
        ValueError: bad features (the first bad row is named) or a parameter out of its range.
    """
    check_min_samples(min_samples)
    graph = jaccard_graph(features, k1=k1, k2=k2, eps=eps, progress=progress)
    return number_by_appearance(cluster_graph(graph, eps, min_samples))


def cluster_graph(graph, eps, min_samples):
    """scikit-learn's DBSCAN labels, shape (N,), of a graph of distances.

    A stored zero is a distance of 0 and a missing entry a distance above ``eps``.
    """
    # Not needed for the result; scikit-learn warns about any other order.
    graph = sort_graph_by_row_values(graph, copy=True, warn_when_not_sorted=False)
    # float32 like the graph, so a distance at the threshold counts on both sides alike.
    dbscan = DBSCAN(eps=float(np.float32(eps)), min_samples=min_samples, metric="precomputed")
    return dbscan.fit(graph).labels_


def number_by_appearance(labels):
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
