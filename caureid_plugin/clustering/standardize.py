"""Features without what a camera adds to all of its images."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from .inputs import as_cameras

# Added to a standard deviation: a dimension that is constant within a camera becomes 0 there.
EPSILON = 1e-5


@torch.no_grad()
def standardize_by_camera(features: torch.Tensor, camids: torch.Tensor | np.ndarray
                          ) -> torch.Tensor:
    """Each camera's features with mean 0 and standard deviation 1 in every dimension.

    A network that does not know a camera moves all of its images in one direction, so that they
    are each other's neighbours. Source: Song et al., "Exploring the Camera Bias of Person
    Re-identification" (ICLR 2025, arXiv 2502.10195). Features are L2-normalised before and after,
    so that lengths neither enter the statistics nor the neighbour search.

    Args:
        features: (N, D), any floating dtype.
        camids: (N,) integers, the camera of each image.

    Returns:
        (N, D), of the features' dtype and device, L2-normalised. The standard deviation is that of
        n - 1. A feature that equals its camera's mean stays zero.

    Raises:
        ValueError: camids that do not match; a camera of a single image, which has no spread.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
        >>> standardize_by_camera(features, np.array([0, 0, 1, 1])).round(decimals=2).tolist()
        [[0.71, -0.71], [-0.71, 0.71], [-0.71, 0.71], [0.71, -0.71]]
    """
    known = as_cameras(camids, len(features))
    cameras, number, counts = np.unique(known, return_inverse=True, return_counts=True)
    check_cameras_to_standardize(cameras, counts)
    group = torch.from_numpy(number).to(features.device)
    size = torch.from_numpy(counts).to(features)[:, None]
    standard = F.normalize(features, dim=1)

    def sums(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(len(counts), values.shape[1]).index_add_(0, group, values)

    standard = standard - (sums(standard) / size)[group]
    spread = (sums(standard.square()) / (size - 1)).sqrt()
    return F.normalize(standard / (spread + EPSILON)[group], dim=1)


def check_cameras_to_standardize(cameras: np.ndarray, counts: np.ndarray) -> None:
    """Checks that each of the cameras has a spread.

    Args:
        cameras, counts: (C,) each, a camera and the number of its images.

    Raises:
        ValueError: one has a single image; names it.
    """
    if single := cameras[counts < 2].tolist():
        raise ValueError(
            f"{len(single)} of the {len(cameras)} cameras have a single image, the first is camera "
            f"{single[0]}: its features have no spread to standardise by. Leave its image out, or "
            "set the key that asks for it, CAUREID.CLUSTER.STANDARDIZE or "
            "TEST.STANDARDIZE_BY_CAMERA False.")
