"""What to do with, and say about, cluster labels."""

from __future__ import annotations

import numpy as np


def outliers_to_singletons(labels: np.ndarray) -> np.ndarray:
    """Gives every outlier a cluster of its own, numbered after the others (SpCL's labels).

    Args:
        labels: (N,) clusters 0..K-1, -1 for outliers.

    Returns:
        (N,) labels without -1.
    """
    labels = np.array(labels, dtype=np.int64)
    outlier = labels < 0
    labels[outlier] = labels.max(initial=-1) + 1 + np.arange(outlier.sum())
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
