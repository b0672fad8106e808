"""Losses of camera-aware proxies (CAP; Wang et al., AAAI 2021, https://arxiv.org/abs/2012.10674).

A proxy is the centre of the images of one cluster under one camera. Both losses are averaged over
the images of a camera, and summed over the cameras of the batch (section "Camera-aware proxies";
so in the authors' code).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .cacc import cacc_loss


def intra_camera_loss(features: torch.Tensor, labels: torch.Tensor, camids: torch.Tensor,
                      centres: torch.Tensor, centre_labels: torch.Tensor,
                      centre_camids: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """Tells an image's cluster from the others that its own camera has seen.

    ``-log softmax(f . proxy / t)`` of the proxy of the image's cluster, over the proxies of its
    camera.

    Args:
        features: (B, D), L2-normalised.
        labels: (B,) clusters; -1 is left out, as is a cluster without a proxy of that camera.
        camids: (B,) cameras.
        centres: (M, D) proxies, L2-normalised, which need no gradient.
        centre_labels, centre_camids: (M,) their clusters and cameras.
        temperature: t > 0.

    Returns:
        Scalar; 0 (with a graph) if no image has a proxy of its cluster and camera.
    """
    own_camera = camids[:, None] == centre_camids[None, :]
    own = own_camera & (labels[:, None] == centre_labels[None, :])
    used = own.any(dim=1) & (labels >= 0)
    if not used.any():
        return features.sum() * 0.0
    logits = features[used] @ centres.t() / temperature
    logits = logits.masked_fill(~own_camera[used], -torch.inf)
    losses = F.cross_entropy(logits, own[used].int().argmax(dim=1), reduction="none")
    return (losses / torch.bincount(camids[used])[camids[used]]).sum()


def inter_camera_loss(features: torch.Tensor, labels: torch.Tensor, camids: torch.Tensor,
                      centres: torch.Tensor, centre_labels: torch.Tensor, *, num_negatives: int,
                      temperature: float) -> torch.Tensor:
    """Pulls an image to all proxies of its cluster, away from the nearest proxies of others.

    For each image :func:`.cacc_loss`, which CA-UReID takes from here for its camera centres.

    Args:
        features: (B, D), L2-normalised.
        labels: (B,) clusters; -1 is left out.
        camids: (B,) cameras.
        centres: (M, D) proxies, L2-normalised, which need no gradient.
        centre_labels: (M,) their clusters.
        num_negatives: proxies of other clusters; with fewer, all of them.
        temperature: t > 0.

    Returns:
        Scalar; 0 (with a graph) if no image has a proxy.
    """
    total = features.sum() * 0.0
    for camera in torch.unique(camids):
        images = camids == camera
        total = total + cacc_loss(features[images], labels[images], centres, centre_labels,
                                  num_negatives=num_negatives, temperature=temperature)
    return total
