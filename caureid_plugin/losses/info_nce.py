"""InfoNCE against cluster centroids (CA-UReID's baseline; van den Oord et al., 2018, in the
cluster form of SpCL, https://arxiv.org/abs/2006.02713, eq. 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def info_nce_loss(features: torch.Tensor, labels: torch.Tensor, centroids: torch.Tensor, *,
                  temperature: float, smoothing: float = 0.0) -> torch.Tensor:
    """``-log softmax(f . centroid / t)[label]``, averaged over the images that have a label.

    Args:
        features: (B, D), L2-normalised.
        labels: (B,) cluster of each image, -1 for an outlier, which does not count.
        centroids: (K, D), mean of the bank's features of each cluster, not normalised.
        temperature: t > 0.
        smoothing: share of the target that goes to all clusters alike (label smoothing).

    Returns:
        Scalar; 0 (with a graph) if no image has a label.
    """
    inlier = labels >= 0
    if not inlier.any():
        return features.sum() * 0.0
    logits = features[inlier] @ centroids.t() / temperature
    return F.cross_entropy(logits, labels[inlier], label_smoothing=smoothing)
