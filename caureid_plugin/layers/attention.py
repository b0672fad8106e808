"""Harmonious (HA) soft attention.

Source: Li, Zhu, Gong, "Harmonious Attention Network for Person Re-identification", CVPR 2018
(https://arxiv.org/abs/1802.08122), section 3.2, soft attention only; CA-UReID uses it as the
Cam-Sep attention (its eq. 3). Departures: the range of the mask is a choice, and the mask can
start uniform.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

RANGES = ("full", "half")


def _conv_bn(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
    )


class HarmoniousAttention(nn.Module):
    """Mask A from a spatial and a channel attention: ``A = sigmoid(conv(spatial * channel))``.

    Args:
        channels: C, channels of the feature map.
        reduction: squeeze factor of the channel attention (16 in HA-CNN).
        mask_range: "full": A in (0, 1). "half": HA-CNN's own form with a ReLU before the sigmoid,
            A in [0.5, 1), so that the complement 1 - A never exceeds 0.5.
        uniform_start: A = 0.5 everywhere before training (the last batch norm's weight starts at
            zero). Only with the full range: behind a ReLU a zero would never receive a gradient.

    Shape:
        - input: (B, C, H, W)
        - output: (B, C, H, W)

    Raises:
        ValueError: unknown ``mask_range``; ``uniform_start`` with range "half".
    """

    def __init__(self, channels: int, *, reduction: int = 16, mask_range: str = "full",
                 uniform_start: bool = True) -> None:
        super().__init__()
        if mask_range not in RANGES:
            raise ValueError(f"mask_range {mask_range!r} is not one of {RANGES}.")
        if uniform_start and mask_range == "half":
            raise ValueError(
                "uniform_start needs mask_range 'full': with 'half' the zero weight sits behind a "
                "ReLU and never receives a gradient.")
        squeezed = max(1, channels // reduction)
        self.spatial_reduce = _conv_bn(1, 1, kernel=3, stride=2)
        self.spatial_refine = _conv_bn(1, 1, kernel=1)
        self.channel_squeeze = _conv_bn(channels, squeezed, kernel=1)
        self.channel_excite = _conv_bn(squeezed, channels, kernel=1)
        self.combine = _conv_bn(channels, channels, kernel=1)
        self.mask_range = mask_range
        self._reset_parameters(uniform_start)

    def _reset_parameters(self, uniform_start: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if uniform_start:
            norm = self.combine[1]
            assert isinstance(norm, nn.BatchNorm2d)
            nn.init.zeros_(norm.weight)

    def _spatial(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, 1, H, W), one weight per place."""
        y = F.relu(self.spatial_reduce(x.mean(dim=1, keepdim=True)))
        y = F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)
        return F.relu(self.spatial_refine(y))

    def _channel(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, 1, 1), one weight per channel."""
        y = F.relu(self.channel_squeeze(x.mean(dim=(2, 3), keepdim=True)))
        return F.relu(self.channel_excite(y))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        conv, norm = self.combine
        # conv(spatial * channel), whose first factor is one number for each place: a convolution
        # of 1 x 1 places instead of H x W
        y = norm(self._spatial(x) * conv(self._channel(x)))
        if self.mask_range == "half":
            y = F.relu(y)
        return torch.sigmoid(y)
