"""Does training go well? Indicators of a clustering that need no identity.

What each tells, and how closely it follows mAP where identities are known: docs/indicators.md.

Letters: N images, D embedding size, K clusters.
"""

from __future__ import annotations

import numpy as np
import torch

from .pseudo_labels import label_statistics, outliers_to_singletons

# Images whose silhouette is taken: its standard error is then below 0.02, whatever N.
SAMPLE = 2000
HELD = 2 ** 26  # distances between images and clusters that are held at a time


def label_indicators(labels: np.ndarray, camids: np.ndarray, features: torch.Tensor,
                     previous: np.ndarray | None = None) -> dict[str, float]:
    """All indicators of a clustering.

    Args:
        labels: (N,) clusters 0..K-1, -1 for outliers.
        camids: (N,) cameras.
        features: (N, D), L2-normalised, what was clustered.
        previous: (N,) labels of the clustering before, None for the first.

    Returns:
        "outlier_share" (0 to 1, of the images), "largest_share" (of the images, in the largest
        cluster), "cross_camera" (0 to 1, of the clusters, that span cameras), "own_camera"
        (:func:`camera_shares`), "silhouette" (:func:`silhouette`), "stability"
        (:func:`stability`). Those that cannot be had are left out: "own_camera" with one camera,
        "silhouette" with fewer than two clusters, "stability" the first time.
    """
    counts = label_statistics(labels, camids)
    n = len(labels)
    found = {"outlier_share": counts["outliers"] / n, "largest_share": counts["largest"] / n,
             "cross_camera": counts["cross_camera"]}
    if (camids != camids[0]).any():
        found["own_camera"], _ = camera_shares(features, camids)
    if counts["clusters"] >= 2:
        found["silhouette"] = silhouette(features, labels)
    if previous is not None and (previous >= 0).any():
        found["stability"] = stability(previous, labels)
    return found


def camera_shares(features: torch.Tensor, camids: np.ndarray, neighbors: int = 10, *,
                  sample: int = SAMPLE, seed: int = 0) -> tuple[float, float]:
    """How many of an image's nearest neighbours are of its own camera, and how many by chance.

    Args:
        features: (N, D), L2-normalised.
        camids: (N,) cameras.
        neighbors: that are looked at, of all other images; N - 1 if there are fewer.
        sample: images whose neighbours are looked at; all of them if there are no more.
        seed: of the choice of the sample; no global generator is touched.

    Returns:
        two shares, 0 to 1. By chance: two images drawn at random are of one camera.
    """
    n, k = len(features), min(neighbors, len(features) - 1)
    rows: np.ndarray = np.arange(n)
    if n > sample:
        rows = np.sort(np.random.default_rng(seed).choice(n, sample, replace=False))
    cameras, own = torch.from_numpy(np.asarray(camids)).to(features.device), 0
    for part in torch.from_numpy(rows).to(features.device).split(max(1, HELD // n)):
        scores = features[part] @ features.T
        scores[torch.arange(len(part), device=part.device), part] = -torch.inf
        nearest = scores.topk(k, dim=1).indices
        own += int((cameras[nearest] == cameras[part, None]).sum())
    sizes = np.unique(camids, return_counts=True)[1]
    return own / (len(rows) * k), float((sizes * (sizes - 1)).sum() / (n * (n - 1)))


def stability(previous: np.ndarray, labels: np.ndarray) -> float:
    """Adjusted Rand index of two clusterings of the same images, an outlier counting as a cluster.

    Source: Hubert, Arabie, "Comparing partitions", Journal of Classification 1985, on the pseudo
    labels of two epochs.

    Args:
        previous, labels: (N,) clusters, -1 for outliers.

    Returns:
        1 for the same partition, about 0 for unrelated ones.
    """
    from sklearn.metrics import adjusted_rand_score  # slow to import

    return float(adjusted_rand_score(outliers_to_singletons(previous),
                                     outliers_to_singletons(labels)))


def silhouette(features: torch.Tensor, labels: np.ndarray, *, sample: int = SAMPLE,
               seed: int = 0) -> float:
    """Mean simplified silhouette of all images, by cosine distance; an outlier, alone, counts 0.

    See :func:`silhouettes` for that of an image. With outliers left out, a clustering would look
    the better the fewer images it dares to group.

    Args:
        features: (N, D), L2-normalised.
        labels: (N,) clusters 0..K-1, -1 for outliers.
        sample: clustered images looked at; all of them if there are no more.
        seed: of the choice of the sample; no global generator is touched.

    Returns:
        -1 (other clusters are nearer) to 1 (all images are in clusters, tight and far apart).

    Raises:
        ValueError: fewer than two clusters.
    """
    rows = np.flatnonzero(np.asarray(labels) >= 0)
    clustered = len(rows) / len(labels)
    if len(rows) > sample:
        rows = np.sort(np.random.default_rng(seed).choice(rows, sample, replace=False))
    return clustered * float(silhouettes(features, labels, rows).double().mean())


def silhouettes(features: torch.Tensor, labels: np.ndarray, rows: np.ndarray) -> torch.Tensor:
    """Simplified silhouette of some of the clustered images, by cosine distance.

    For an image, a is the distance to the mean of its cluster's other images and b that to the
    nearest mean of another cluster; its silhouette is ``(b - a) / max(a, b)``, and 0 if it is
    alone. Source: Rousseeuw, "Silhouettes", 1987; with centroids: Hruschka, de Castro, Campello,
    "Evolutionary algorithms for clustering gene-expression data", ICDM 2004. Distances to
    centroids, because a sample of images holds too few of each cluster to have distances between
    images: here every cluster takes part, whatever N.

    Args:
        features: (N, D), L2-normalised.
        labels: (N,) clusters 0..K-1, -1 for outliers.
        rows: (M,) images, none of them an outlier.

    Returns:
        (M,), -1 (another cluster is nearer) to 1.

    Raises:
        ValueError: fewer than two clusters.
    """
    labels = np.asarray(labels)
    clusters = int(labels.max(initial=-1)) + 1
    if clusters < 2:
        raise ValueError(f"The silhouette needs at least two clusters, got {clusters}.")
    inlier = torch.from_numpy(np.flatnonzero(labels >= 0)).to(features.device)
    every = torch.from_numpy(labels).to(features.device)
    sums = features.new_zeros(clusters, features.shape[1])
    sums.index_add_(0, every[inlier], features[inlier])
    sizes = torch.bincount(every[inlier], minlength=clusters)
    # as many at a time as keep the distances within HELD
    parts = torch.from_numpy(rows).to(features.device).split(max(1, HELD // clusters))
    return torch.cat([_silhouettes(features[part], every[part], sums, sizes) for part in parts])


def _silhouettes(points: torch.Tensor, own: torch.Tensor, sums: torch.Tensor,
                 sizes: torch.Tensor) -> torch.Tensor:
    """Of points (M, D) of clusters (M,), from the clusters' sums (K, D) and sizes (K,)."""
    far = 1.0 - points @ torch.nn.functional.normalize(sums, dim=1).T
    others = sums[own] - points
    near = 1.0 - (points * torch.nn.functional.normalize(others, dim=1)).sum(dim=1)
    far.scatter_(1, own[:, None], torch.inf)
    nearest = far.min(dim=1).values
    scale = torch.maximum(near, nearest).clamp(min=torch.finfo(points.dtype).eps)
    return ((nearest - near) / scale).masked_fill(sizes[own] == 1, 0.0)
