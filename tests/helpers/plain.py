"""Jaccard distances in the plainest way, for tests to compare with: dense, float64, loops.

Letters: N images, D embedding size. Encodings are (N, N): one row of weights per image.
"""

import numpy as np


def squared_distances(features):
    """(N, N) squared L2 distances, from differences."""
    features = np.asarray(features, dtype=np.float64)
    return np.array([[((x - y) ** 2).sum() for y in features] for x in features])


def nearest_first(distances, candidates):
    """Candidates by distance; those at equal distance by index."""
    return sorted((int(j) for j in candidates), key=lambda j: (distances[j], j))


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
    n = len(encoding)
    result = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j:
                t = np.minimum(encoding[i], encoding[j]).sum()
                result[i, j] = max(0.0, 1 - t / (2 - t))
    return result


def jaccard_from_ranks(features, ranks, k2):
    """k-reciprocal Jaccard distances (N, N) for given neighbour lists (N, k1)."""
    lists, k1 = np.asarray(ranks).tolist(), len(ranks[0])
    encoding = softmax_encoding(squared_distances(features), expanded_sets(lists, k1))
    if k2 != 1:
        encoding = average_rows(encoding, [members[:k2] for members in lists])
    return distances_of_encodings(encoding)


def camera_lists(distances, camids):
    """Every image's own camera's images and those of all other cameras, nearest first.

    The image itself is in the first list, not in the second. With one camera the second is empty.
    """
    camids = np.asarray(camids)
    intra = [
        nearest_first(row, np.flatnonzero(camids == own))
        for row, own in zip(distances, camids, strict=True)
    ]
    inter = [
        nearest_first(row, np.flatnonzero(camids != own))
        for row, own in zip(distances, camids, strict=True)
    ]
    return intra, inter


def ca_jaccard_dense(features, camids, *, k1_intra, k1_inter, k2_intra, k2_inter):
    """Camera-aware Jaccard distances (N, N).

    Chen et al., "CA-Jaccard: Camera-aware Jaccard Distance for Person Re-identification" (CVPR
    2024, arXiv 2311.10605), as its authors' code counts: both kinds of list are cut after
    k + 1 images. Within the camera these are the image itself and its k1_intra nearest, across
    cameras k1_inter + 1 others. Reciprocity is asked for within each kind of list, the two sets
    are united and not expanded. The encoding is then averaged, all rows alike, over the first
    k2_intra images of the camera, the image itself among them, and the first k2_inter of the
    other cameras: here no one is added to k2. Where there are too few images, lists are shorter
    and the mean is over those there are; k2_intra >= 1 keeps at least one.
    """
    distances = squared_distances(features)
    intra, inter = camera_lists(distances, camids)
    within = reciprocal_sets([members[: k1_intra + 1] for members in intra])
    across = reciprocal_sets([members[: k1_inter + 1] for members in inter])
    encoding = softmax_encoding(distances, [a | b for a, b in zip(within, across, strict=True)])
    averaged = [a[:k2_intra] + b[:k2_inter] for a, b in zip(intra, inter, strict=True)]
    return distances_of_encodings(average_rows(encoding, averaged))
