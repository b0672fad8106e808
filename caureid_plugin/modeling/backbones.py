"""A small plain backbone that learns from random weights within minutes on a CPU.

The toolbox's own backbones are made for pretrained weights; from random ones, on the budget of a
demonstration, they do not leave the start.
"""

from __future__ import annotations

from fastreid.config import CfgNode
from fastreid.layers import get_norm
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from torch import nn

from ..common.errors import UserError


@BACKBONE_REGISTRY.register()
def build_plain_backbone(cfg: CfgNode) -> nn.Sequential:
    """Six 3 x 3 convolutions with norm and ReLU, stride 4 x LAST_STRIDE in all.

    Reads MODEL.BACKBONE.FEAT_DIM (channels of the map; the layers before have an eighth to a half
    of them), NORM, LAST_STRIDE (1 or 2) and WITH_IBN: instance norm of the image itself, which
    takes a camera's colour cast and exposure away before anything is learnt.

    Shape:
        - input: (B, 3, H, W)
        - output: (B, FEAT_DIM, H / 8, W / 8) with LAST_STRIDE 2, (B, FEAT_DIM, H / 4, W / 4) with 1

    Raises:
        ValueError: FEAT_DIM is not a multiple of 8; LAST_STRIDE neither 1 nor 2; PRETRAIN is asked
            for (there are no weights).
    """
    dim, norm = cfg.MODEL.BACKBONE.FEAT_DIM, cfg.MODEL.BACKBONE.NORM
    if dim % 8:
        raise UserError(f"MODEL.BACKBONE.FEAT_DIM {dim} must be a multiple of 8 here.")
    if cfg.MODEL.BACKBONE.PRETRAIN:
        raise UserError("build_plain_backbone has no pretrained weights: set "
                        "MODEL.BACKBONE.PRETRAIN False.")
    last_stride = cfg.MODEL.BACKBONE.LAST_STRIDE
    if last_stride not in (1, 2):
        raise UserError(f"MODEL.BACKBONE.LAST_STRIDE {last_stride} must be 1 or 2.")
    widths = (dim // 8, dim // 4, dim // 4, dim // 2, dim // 2, dim)
    strides = (2, 2, 1, last_stride, 1, 1)
    layers: list[nn.Module] = []
    if cfg.MODEL.BACKBONE.WITH_IBN:
        layers.append(nn.InstanceNorm2d(3, affine=True))
    channels = 3
    for width, stride in zip(widths, strides, strict=True):
        layers += [nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
                   get_norm(norm, width), nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers)
