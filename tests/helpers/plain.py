"""Clustering and losses in the plainest way, for tests to compare with: dense, float64, by rows.

Letters: N images, D embedding size. Encodings are (N, N): one row of weights per image.
"""

import math

import numpy as np


def squared_distances(features):
    """(N, N) squared L2 distances, from differences."""
    features = np.asarray(features, dtype=np.float64)
    return np.array([((features - row) ** 2).sum(axis=1) for row in features])


def nearest_first(distances, candidates):
    """Candidates by distance; those at equal distance by index."""
    candidates = np.asarray(candidates)
    return candidates[np.lexsort((candidates, distances[candidates]))].tolist()


def nearest_lists(features, k, allowed=None):
    """Indices and squared distances (N, k); -1 and infinity where there are fewer.

    ``allowed``: (N, N) booleans, the images that each image may list; None for all.
    """
    distances = squared_distances(features)
    ranks, values = np.full((len(distances), k), -1), np.full((len(distances), k), np.inf)
    for i, row in enumerate(distances):
        listed = nearest_first(row, np.flatnonzero(allowed[i]) if allowed is not None
                               else np.arange(len(row)))[:k]
        ranks[i, : len(listed)], values[i, : len(listed)] = listed, row[listed]
    return ranks, values


def reciprocal_sets(lists):
    """R(i) = {j in list i : i in list j}."""
    return [{j for j in members if i in lists[j]} for i, members in enumerate(lists)]


def expanded_sets(lists, k1):
    """R(i) and every half-size set of a member with more than two thirds of it in R(i)."""
    full = reciprocal_sets([ranks[:k1] for ranks in lists])
    half = reciprocal_sets([ranks[: round(k1 / 2) + 1] for ranks in lists])
    expanded = []
    for original in full:
        members = set(original)
        for candidate in original:
            if 3 * len(half[candidate] & original) > 2 * len(half[candidate]):
                members |= half[candidate]
        expanded.append(members)
    return expanded


def softmax_encoding(distances, sets):
    """Row i: softmax of the negative distances over set i, zero elsewhere."""
    encoding = np.zeros_like(distances)
    for i, members in enumerate(sets):
        if members:
            nearest = min(distances[i, j] for j in members)
            for j in members:
                encoding[i, j] = np.exp(nearest - distances[i, j])
            encoding[i] /= encoding[i].sum()
    return encoding


def average_rows(encoding, lists):
    """Row i becomes the mean of the rows that list i names."""
    return np.array([sum(encoding[j] for j in members) / len(members) for members in lists])


def distances_of_encodings(encoding):
    """1 - t / (2 - t) with t the sum of element-wise minima; 0 on the diagonal."""
    shared = np.array([np.minimum(row, encoding).sum(axis=1) for row in encoding])
    result = np.maximum(0.0, 1 - shared / (2 - shared))
    np.fill_diagonal(result, 0)
    return result


def jaccard_from_ranks(features, ranks, k2):
    """k-reciprocal Jaccard distances (N, N) for given neighbour lists (N, k1)."""
    lists, k1 = np.asarray(ranks).tolist(), len(ranks[0])
    encoding = softmax_encoding(squared_distances(features), expanded_sets(lists, k1))
    if k2 != 1:
        encoding = average_rows(encoding, [members[:k2] for members in lists])
    return distances_of_encodings(encoding)


def ca_jaccard_dense(features, camids, *, k1_intra, k1_inter, k2_intra, k2_inter):
    """Camera-aware Jaccard distances (N, N).

    Chen et al. (CVPR 2024, arXiv 2311.10605), as their code counts. Both kinds of list are cut
    after k + 1 images: the image itself and its k1_intra nearest within the camera, k1_inter + 1
    others across. The two reciprocal sets are united and not expanded. The encoding is averaged
    over the first k2_intra images of the camera, itself among them, and the first k2_inter of the
    others: no one is added to k2. Where there are too few images, lists are shorter.
    """
    distances, camids = squared_distances(features), np.asarray(camids)
    own = camids[:, None] == camids
    intra, inter = ([nearest_first(row, np.flatnonzero(listed))
                     for row, listed in zip(distances, kind, strict=True)] for kind in (own, ~own))
    within = reciprocal_sets([members[: k1_intra + 1] for members in intra])
    across = reciprocal_sets([members[: k1_inter + 1] for members in inter])
    encoding = softmax_encoding(distances, [a | b for a, b in zip(within, across, strict=True)])
    averaged = [a[:k2_intra] + b[:k2_inter] for a, b in zip(intra, inter, strict=True)]
    return distances_of_encodings(average_rows(encoding, averaged))


def dense(graph, fill=np.inf):
    """A sparse graph as a dense array, with ``fill`` where nothing is stored."""
    result = np.full(graph.shape, fill, dtype=np.float64)
    for i in range(graph.shape[0]):
        entries = slice(graph.indptr[i], graph.indptr[i + 1])
        result[i, graph.indices[entries]] = graph.data[entries]
    return result


def assert_same_pairs(graph, expected, eps, rounding=1e-6):
    """The graph holds the pairs of the dense matrix within eps; ``rounding`` may decide at eps."""
    got = dense(graph)
    stored = np.isfinite(got)
    assert np.abs(got[stored] - expected[stored]).max() < rounding
    decided = np.abs(expected - eps) > rounding
    assert np.array_equal(stored[decided], (expected <= eps)[decided])


def together(labels):
    """(N, N) booleans: both in one cluster. Outliers are with nobody, not with themselves."""
    return (labels[:, None] == labels[None, :]) & (labels >= 0)[:, None]


def statistics(labels, camids):
    """Clusters, outliers, the largest cluster, those of several cameras, pairs with a camera."""
    members = {}
    for label, camera in zip(labels.tolist(), camids.tolist(), strict=True):
        members.setdefault(label, []).append(camera)
    outliers = len(members.pop(-1, []))
    cameras = [len(set(seen)) for seen in members.values()]
    return {"clusters": len(members), "outliers": outliers,
            "largest": max(map(len, members.values()), default=0),
            "cross_camera": sum(c > 1 for c in cameras) / len(cameras) if cameras else 0.0,
            "centres": sum(cameras)}


def camera_centres(features, labels, camids, *, normalize=False):
    """{(cluster, camera): mean feature}, in the order of the pairs; outliers have none."""
    members = {}
    for feature, label, camera in zip(np.asarray(features, dtype=np.float64), labels.tolist(),
                                      camids.tolist(), strict=True):
        if label != -1:
            members.setdefault((label, camera), []).append(feature)
    means = {pair: np.mean(members[pair], axis=0) for pair in sorted(members)}
    return {pair: mean / np.linalg.norm(mean) if normalize else mean
            for pair, mean in means.items()}


def cross_entropy(scores, target):
    """Minus the logarithm of the softmax of scores at the target."""
    top = max(scores)
    total = math.fsum(math.exp(score - top) for score in scores)
    return math.log(total) + top - scores[target]
