"""Losses between images of a batch (ICE; Chen et al., ICCV 2021, https://arxiv.org/abs/2103.16364).

A teacher, the moving average of the network, sees another view of each image and gives the keys
that the network's features are compared with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def hard_instance_loss(features: torch.Tensor, labels: torch.Tensor, keys: torch.Tensor, *,
                       temperature: float) -> torch.Tensor:
    """Tells the least similar key of an image's cluster from the keys of all other clusters.

    For an image f, its hardest positive k (of its cluster's keys, the image's own included, the
    one with the smallest ``f . k``) and the keys N of other clusters:
    ``-log( exp(f.k/t) / (exp(f.k/t) + sum_{N} exp(f.n/t)) )``, averaged over the images.

    Args:
        features: (B, D), L2-normalised.
        labels: (B,) clusters; -1 is left out, as an image and as a key.
        keys: (B, D), L2-normalised, of the teacher, which need no gradient.
        temperature: t > 0.

    Returns:
        Scalar; 0 (with a graph) if no image has a label.
    """
    inlier = labels >= 0
    if not inlier.any():
        return features.sum() * 0.0
    labels = labels[inlier]
    similarity = features[inlier] @ keys[inlier].t() / temperature
    same = labels[:, None] == labels[None, :]
    hardest = similarity.masked_fill(~same, torch.inf).amin(dim=1)
    others = similarity.masked_fill(same, -torch.inf)
    total = torch.logsumexp(torch.cat((hardest[:, None], others), dim=1), dim=1)
    return (total - hardest).mean()


def soft_consistency_loss(features: torch.Tensor, keys: torch.Tensor, plain: torch.Tensor, *,
                          temperature: float) -> torch.Tensor:
    """Keeps the similarities of augmented images as those between the images as they are.

    ``KL(Q || P)``, averaged over the images, where row i of P is ``softmax(f_i . keys / t)`` and
    of Q ``softmax(plain_i . plain / t)``.

    Args:
        features: (B, D), L2-normalised.
        keys: (B, D), L2-normalised, of the teacher on another augmented view.
        plain: (B, D), L2-normalised, of the teacher on the images without augmentation. Neither
            needs a gradient.
        temperature: t > 0.

    Returns:
        Scalar, at least 0.
    """
    found = F.log_softmax(features @ keys.t() / temperature, dim=1)
    wanted = F.log_softmax(plain @ plain.t() / temperature, dim=1)
    return F.kl_div(found, wanted, reduction="batchmean", log_target=True)
