"""Camera-separation (Cam-Sep) attention head (CA-UReID, section 3.2, eqs. 3 to 5)."""

from __future__ import annotations

from typing import Any

import torch
from fastreid.config import CfgNode, configurable
from fastreid.layers import get_norm
from fastreid.layers.pooling import FastGlobalAvgPool
from fastreid.layers.weight_init import weights_init_classifier
from fastreid.modeling.heads import REID_HEADS_REGISTRY, EmbeddingHead
from torch import nn

from ..common.errors import UserError
from ..common.text import naming_keys
from ..compat import MGN_LOSSES, TOOLBOX_LOSSES
from ..layers import HarmoniousAttention

ATTENTIONS = ("harmonious", "none")
CAMSEP_KEYS = {"mask_range": "MODEL.HEADS.CAMSEP.RANGE",
               "uniform_start": "MODEL.HEADS.CAMSEP.UNIFORM_START"}
# the toolbox's meta-architectures, which know only the toolbox's losses; Baseline says so at its
# first step, as it is also built as a Distiller's teacher, whose losses nobody computes
TOOLBOX_ARCHITECTURES = ("Distiller", "MGN", "MoCo")


def _check_config(cfg: CfgNode) -> None:
    """Refuses what would train without a loss that is named, or with one that means nothing."""
    camsep, names = cfg.MODEL.HEADS.CAMSEP, cfg.MODEL.LOSSES.NAME
    if camsep.ATTENTION not in ATTENTIONS:
        raise UserError(f"MODEL.HEADS.CAMSEP.ATTENTION {camsep.ATTENTION!r} is unknown, known "
                        f"are {ATTENTIONS}.")
    if camsep.NUM_CAMERAS < 0:
        raise UserError(
            f"MODEL.HEADS.CAMSEP.NUM_CAMERAS is {camsep.NUM_CAMERAS} where the network is built. "
            "-1 leaves the number to the training set: call cfg = caureid_plugin.fit_to_data(cfg) "
            "before, or set the number of cameras (0: no camera classifier).")
    known = MGN_LOSSES if cfg.MODEL.META_ARCHITECTURE == "MGN" else TOOLBOX_LOSSES
    foreign = [name for name in names if name not in known]
    if foreign and cfg.MODEL.META_ARCHITECTURE in TOOLBOX_ARCHITECTURES:
        raise UserError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} does not know the losses "
            f"{foreign} of MODEL.LOSSES.NAME, it knows {list(known)}: take them out, or "
            "set MODEL.META_ARCHITECTURE CAUReID.")
    if "CameraSeparationLoss" not in names:
        return
    if camsep.ATTENTION == "none":
        raise UserError(
            "CameraSeparationLoss learns from the camera-specific part of the feature map, which "
            "MODEL.HEADS.CAMSEP.ATTENTION 'none' does not give: set it to 'harmonious', or take "
            "the loss out of MODEL.LOSSES.NAME.")
    if camsep.NUM_CAMERAS < 2:
        raise UserError(
            "CameraSeparationLoss needs MODEL.HEADS.CAMSEP.NUM_CAMERAS, the number of cameras, at "
            f"least 2; it is {camsep.NUM_CAMERAS}. With a single camera take the loss out of "
            "MODEL.LOSSES.NAME.")


@REID_HEADS_REGISTRY.register()
class CamSepHead(EmbeddingHead):
    """FastReID's embedding head on the camera-agnostic part of the feature map.

    A mask A splits the feature map F (eq. 3): ``A * F`` is camera-specific and feeds a camera
    classifier (eq. 4); ``(1 - A) * F`` is camera-agnostic and gives the embedding (eq. 5), through
    the toolbox's own pooling, neck and classifier. It fits every meta-architecture that takes an
    EmbeddingHead: CAUReID, and the toolbox's Baseline, MoCo and MGN (a mask for each branch), which
    train the mask only through their own losses.

    Args:
        attention: module that maps F to A, or None for no separation (the embedding comes from F).
        num_cameras: C, outputs of the camera classifier; 0 for none.
        detach: compute the mask from a detached F, and keep the camera classifier's gradient out
            of the backbone.
        num_classes: identities of the toolbox's classifier; below 1 for none.
        **kwargs: the toolbox's EmbeddingHead arguments.

    Shape:
        - features: (B, C, H, W)
        - evaluation: embedding f, (B, D), before L2 normalisation
        - training: dict with "features" (B, D); "camera_logits" (B, cameras) with a camera
          classifier; "cls_outputs" and "pred_class_logits" (B, classes) with an identity one

    Raises:
        ValueError: on construction for losses that this head or the meta-architecture cannot
            serve; in training with attention if the feature map is 1 x 1 (the class token of the
            toolbox's vision transformer), where there are no places to attend to.
    """

    @configurable
    def __init__(self, *, attention: nn.Module | None, num_cameras: int, detach: bool,
                 num_classes: int, **kwargs: Any) -> None:
        super().__init__(num_classes=max(num_classes, 1), **kwargs)
        if num_classes < 1:  # an unused weight would break DistributedDataParallel
            del self.weight
            self.cls_layer = None
        self.attention = attention
        self.detach = detach
        self.camera_classifier = None
        if num_cameras > 0:
            dim = kwargs["feat_dim"]
            self.camera_pool = FastGlobalAvgPool()
            self.camera_neck = get_norm(kwargs["norm_type"], dim)
            self.camera_classifier = nn.Linear(dim, num_cameras, bias=False)
            self.camera_classifier.apply(weights_init_classifier)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        _check_config(cfg)
        camsep = cfg.MODEL.HEADS.CAMSEP
        attention = None
        if camsep.ATTENTION == "harmonious":
            with naming_keys(CAMSEP_KEYS):
                attention = HarmoniousAttention(
                    cfg.MODEL.BACKBONE.FEAT_DIM, reduction=camsep.REDUCTION,
                    mask_range=camsep.RANGE, uniform_start=camsep.UNIFORM_START)
        # without its loss the camera branch would hold weights that never receive a gradient
        separated = "CameraSeparationLoss" in cfg.MODEL.LOSSES.NAME
        return {
            **super().from_config(cfg),
            "attention": attention,
            "num_cameras": camsep.NUM_CAMERAS if separated else 0,
            "detach": camsep.DETACH,
        }

    def mask(self, features: torch.Tensor) -> torch.Tensor:
        """A (eq. 3), (B, C, H, W); zeros without attention: everything is camera-agnostic."""
        return torch.zeros_like(features) if self.attention is None else self.attention(features)

    def forward(self, features: torch.Tensor, targets: torch.Tensor | None = None
                ) -> torch.Tensor | dict[str, torch.Tensor]:
        if self.attention is None:
            return self._embed(features, targets)
        # the spatial branch would see one number for each image, the mean over channels, which a
        # transformer's layer norm makes the same for all: the mask could never leave its start
        if self.training and features.shape[2:] == (1, 1):
            raise UserError(
                "MODEL.HEADS.CAMSEP.ATTENTION 'harmonious' needs a feature map with more than one "
                "place, and MODEL.BACKBONE.NAME gives 1 x 1. build_vit_backbone gives only its "
                "class token: take build_timm_backbone with MODEL.BACKBONE.TIMM.NAME "
                "vit_base_patch16_224 or vit_small_patch16_224, which give a map of their "
                "patches, or set ATTENTION 'none'. With another backbone enlarge "
                "INPUT.SIZE_TRAIN.")
        # detached, the mask still learns, but leads no gradient into the backbone
        seen = features.detach() if self.detach else features
        mask = self.mask(seen)
        outputs = self._embed((1.0 - mask) * features, targets)
        if self.training and self.camera_classifier is not None:
            pooled = self.camera_neck(self.camera_pool(mask * seen))
            outputs["camera_logits"] = self.camera_classifier(pooled[..., 0, 0])
        return outputs

    def _embed(self, agnostic: torch.Tensor, targets: torch.Tensor | None) -> Any:
        if self.cls_layer is not None or not self.training:
            return super().forward(agnostic, targets)
        pooled = self.pool_layer(agnostic)
        features = pooled if self.neck_feat == "before" else self.bottleneck(pooled)
        return {"features": features[..., 0, 0]}
