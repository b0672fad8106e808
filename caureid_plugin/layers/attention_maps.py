"""What a mask looks at: heat maps of its two branches and their share of mass on a region.

Source: the attention maps that CA-UReID shows (arXiv 2112.10089, fig. 4 and section 4.3), camera-
specific beside camera-agnostic. The paper does not say how C channels become one map; here it is
their mean.

Letters: B images, C channels, H x W places of the feature map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

MAP_KINDS = ("mask", "feature")


def branch_maps(features: torch.Tensor, mask: torch.Tensor,
                kind: str = "mask") -> tuple[torch.Tensor, torch.Tensor]:
    """One heat map for each branch: camera-specific, camera-agnostic.

    Args:
        features: F (B, C, H, W), what the mask splits. Not looked at by kind "mask".
        mask: A (B, C, H, W) in [0, 1].
        kind: "mask": the attention itself, means over the channels of A and of 1 - A (they add up
            to 1 at every place). "feature": what the branch then pools, means over the channels of
            ``|A F|`` and of ``|(1 - A) F|``.

    Returns:
        Two tensors (B, H, W), both >= 0.

    Raises:
        ValueError: unknown ``kind``; features and mask of different shapes.
    """
    if kind not in MAP_KINDS:
        raise ValueError(f"kind {kind!r} is not one of {MAP_KINDS}.")
    if features.shape != mask.shape or mask.dim() != 4:
        raise ValueError(f"features {tuple(features.shape)} and mask {tuple(mask.shape)} must both "
                         "be (B, C, H, W).")
    if kind == "mask":
        return mask.mean(dim=1), (1.0 - mask).mean(dim=1)
    return (mask * features).abs().mean(dim=1), ((1.0 - mask) * features).abs().mean(dim=1)


def resize_maps(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, h, w) -> (B, H, W), bilinear; ``size`` is (H, W). Nothing leaves the range of values."""
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def relative_maps(maps: torch.Tensor) -> torch.Tensor:
    """Each map divided by its own mean: 1 is what a uniform map has everywhere.

    Two maps of different strength can then be compared by where they look, and what is uniform
    looks uniform. A map of zeros stays one.

    Shape:
        - input, output: (B, H, W)
    """
    mean = maps.mean(dim=(1, 2), keepdim=True)
    return torch.where(mean > 0, maps / mean, torch.zeros_like(maps))


def mass_share(maps: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Share of each map's mass on a region: sum over its places / sum over all places.

    A uniform map gives the region's share of the area. Summed in float64.

    Args:
        maps: (B, H, W), >= 0.
        region: bool (B, H, W).

    Returns:
        (B,) float64 in [0, 1]; NaN for a map of zeros, which has no mass to share.

    Raises:
        ValueError: shapes differ; a negative or non-finite value.

    Example:
        maps [[1, 3], [2, 2]] and region [[False, True], [False, False]] give 3 / 8.
    """
    if maps.shape != region.shape or maps.dim() != 3:
        raise ValueError(f"maps {tuple(maps.shape)} and region {tuple(region.shape)} must both be "
                         "(B, H, W).")
    if not (torch.isfinite(maps).all() and (maps >= 0).all()):
        raise ValueError("maps holds negative or non-finite values: a mass must be >= 0.")
    maps = maps.double()
    return (maps * region).sum(dim=(1, 2)) / maps.sum(dim=(1, 2))
