"""Camera separation loss (CA-UReID, eq. 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def camera_separation_loss(logits: torch.Tensor, camids: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the camera classifier, averaged over the batch.

    Args:
        logits: (B, C) scores of the camera-specific embedding.
        camids: (B,) camera of each image, 0 to C - 1.

    Returns:
        Scalar.

    Raises:
        ValueError: a camera outside 0 to C - 1.
    """
    if camids.numel() and not 0 <= int(camids.min()) <= int(camids.max()) < logits.shape[1]:
        raise ValueError(
            f"Camera labels range from {int(camids.min())} to {int(camids.max())}, but the "
            f"logits have {logits.shape[1]} columns: each camera needs one.")
    return F.cross_entropy(logits, camids)
