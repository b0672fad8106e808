"""Camera-aware contrastive centre (CACC) loss (CA-UReID, eqs. 6 and 7)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def batch_camera_centres(features: torch.Tensor, labels: torch.Tensor, camids: torch.Tensor, *,
                         normalize: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean feature of each (cluster, camera) pair of the batch (eq. 6, the batch's side).

    Args:
        features: (B, D).
        labels: (B,) clusters; images with -1 are left out.
        camids: (B,) cameras, >= 0.
        normalize: L2-normalise the centres.

    Returns:
        centres (A, D), ordered by cluster, then camera, and their clusters (A,).
    """
    inlier = labels >= 0
    features, labels, camids = features[inlier], labels[inlier], camids[inlier]
    pairs, member_of = torch.unique(
        torch.stack((labels, camids), dim=1), dim=0, return_inverse=True)
    counts = torch.bincount(member_of, minlength=len(pairs)).to(features.dtype)
    sums = features.new_zeros(len(pairs), features.shape[1]).index_add(0, member_of, features)
    centres = sums / counts[:, None]
    return (F.normalize(centres, dim=1) if normalize else centres), pairs[:, 0]


def cacc_loss(anchors: torch.Tensor, anchor_labels: torch.Tensor, centres: torch.Tensor,
              centre_labels: torch.Tensor, *, num_negatives: int,
              temperature: float) -> torch.Tensor:
    """Pulls an anchor to its cluster's camera centres, away from the nearest others (eq. 7).

    For an anchor c with positives P (every camera centre of its cluster, its own camera included)
    and Q (the ``num_negatives`` camera centres of other clusters nearest to c):
    ``-1/|P| sum_{p in P} log( exp(c.p/t) / (sum_{P} exp + sum_{Q} exp) )``, averaged over anchors.
    Its minimum is ``log |P|``, not 0.

    Args:
        anchors: (A, D), batch camera centres, or single images for the paper's "sample" variant.
        anchor_labels: (A,) clusters; -1 is left out.
        centres: (M, D) camera centres of the bank, which need no gradient.
        centre_labels: (M,) their clusters.
        num_negatives: k; with fewer centres of other clusters, all of them.
        temperature: t > 0.

    Returns:
        Scalar; 0 (with a graph) if no anchor has a positive centre.
    """
    positive = anchor_labels[:, None] == centre_labels[None, :]
    used = positive.any(dim=1) & (anchor_labels >= 0)
    if not used.any():
        return anchors.sum() * 0.0
    anchors, positive = anchors[used], positive[used]
    similarity = anchors @ centres.t() / temperature
    # positives first, then the nearest others: the gradient passes only through these few places
    count = positive.sum(dim=1)
    width = min(int(count.max()) + num_negatives, similarity.shape[1])
    ranking = similarity.detach().masked_fill(positive, torch.inf)
    nearest = similarity.gather(1, ranking.topk(width, dim=1).indices)
    place = torch.arange(width, device=count.device)
    left_out = place >= count[:, None] + num_negatives
    total = torch.logsumexp(nearest.masked_fill(left_out, -torch.inf), dim=1)
    mean_positive = nearest.masked_fill(place >= count[:, None], 0.0).sum(dim=1) / count
    return (total - mean_positive).mean()
