"""Features without what a camera adds to all of its images."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from .inputs import as_cameras

# Added to a standard deviation; one that is no larger is rounding of what does not differ.
EPSILON = 1e-5


class CameraStatistics(NamedTuple):
    """What standardising needs of C cameras' features, which are L2-normalised.

    ``images``: (C, 1), how many each has; ``mean``: (C, D); ``squares``: (C, D), the sums of the
    squared differences from the mean.
    """

    images: torch.Tensor
    mean: torch.Tensor
    squares: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor, cameras: torch.Tensor, count: int) -> CameraStatistics:
        """Statistics of some images.

        Args:
            features: (N, D), any floating dtype; their lengths do not matter.
            cameras: (N,) int64 from 0 to ``count`` - 1, on the same device.
            count: C; a camera without an image has zeros.
        """
        unit = F.normalize(features, dim=1)

        def sums(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(count, values.shape[1]).index_add_(0, cameras, values)

        images = sums(unit.new_ones(len(unit), 1))
        mean = sums(unit) / images.clamp(min=1)
        return cls(images, mean, sums((unit - mean[cameras]).square()))

    def merge(self, other: CameraStatistics) -> CameraStatistics:
        """Statistics of the images of both, camera by camera (Chan, Golub and LeVeque 1979)."""
        images = self.images + other.images
        part, shift = other.images / images.clamp(min=1), other.mean - self.mean
        return CameraStatistics(images, self.mean + part * shift, self.squares + other.squares
                                + self.images * part * shift.square())

    def with_all(self) -> CameraStatistics:
        """With a row more, of all images whatever their camera."""
        rows = [CameraStatistics(*(part[row:row + 1] for part in self))
                for row in range(len(self.images))]
        every = functools.reduce(CameraStatistics.merge, rows)
        return CameraStatistics(*map(torch.cat, zip(self, every, strict=True)))

    def standardize(self, features: torch.Tensor, cameras: torch.Tensor) -> torch.Tensor:
        """Features with their camera's mean taken away, divided by its standard deviation.

        Args:
            features, cameras: as for :meth:`of`; they need not have made the statistics.

        Returns:
            (N, D), L2-normalised. A dimension in which a camera's images do not differ tells
            nothing and is 0.
        """
        spread = (self.squares / (self.images - 1).clamp(min=1)).sqrt()
        divisor = (spread + EPSILON).masked_fill(spread <= EPSILON, torch.inf)
        unit = F.normalize(features, dim=1)
        return F.normalize((unit - self.mean[cameras]) / divisor[cameras], dim=1)


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
    return CameraStatistics.of(features, group, len(cameras)).standardize(features, group)


def check_cameras_to_standardize(
        cameras: np.ndarray, counts: np.ndarray,
        remedy: str = "Leave its image out, or do not standardise.") -> None:
    """Checks that each of the cameras has a spread.

    Args:
        cameras, counts: (C,) each, a camera and the number of its images.
        remedy: what the error tells to do.

    Raises:
        ValueError: one has a single image; names it.
    """
    if single := cameras[counts < 2].tolist():
        raise ValueError(
            f"{len(single)} of the {len(cameras)} cameras have a single image, the first is camera "
            f"{single[0]!r}: its features have no spread to standardise by. {remedy}")
