"""The CA-UReID meta-architecture."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, configurable
from fastreid.modeling.heads import REID_HEADS_REGISTRY, ClasHead, EmbeddingHead
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY, Baseline
from torch import nn

from ..common.errors import UserError
from ..common.text import naming_keys
from ..compat import to_device
from ..layers import convert_grouped_batch_norm
from .heads import CamSepHead
from .losses import Loss, build_losses
from .memory_bank import MemoryBank
from .teacher import Teacher


def _head_is(cfg: CfgNode, kind: type) -> bool:
    found = REID_HEADS_REGISTRY.get(cfg.MODEL.HEADS.NAME)
    return isinstance(found, type) and issubclass(found, kind)


def _with_no_classes(cfg: CfgNode) -> CfgNode:
    """The config with an identity classifier of no classes, and no margin between them."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.HEADS.NUM_CLASSES = 0
    cfg.MODEL.HEADS.CLS_LAYER = "Linear"
    return cfg


@META_ARCH_REGISTRY.register()
class CAUReID(Baseline):
    """FastReID's Baseline with losses from a registry, a memory bank and grouped batch norm.

    Args:
        losses: built losses; their scalars are summed by the trainer.
        bn_group_size: images per batch-norm group in backbone and head, 0 for plain batch norm.
        channels_last: feature maps are laid out channels last in memory.
        **kwargs: Baseline's arguments.

    With MODEL.HEADS.NUM_CLASSES -1 the toolbox's EmbeddingHead, which cannot do without an
    identity classifier, gets one of no classes, which is never trained.

    Attributes:
        memory: the memory bank; set by the UnsupervisedHook, None in supervised training.
        teacher: the moving average of this network, for losses that need it; set by the hook.

    Input of ``forward`` (a dict): "images" (B, 3, H, W) in 0..255; in training also "targets" (B,)
    (pseudo labels, or identities in supervised training), "camids" (B,), and, with a memory bank,
    "indexes" (B,), with a teacher also "second_images" and "plain_images".
    """

    @configurable
    def __init__(self, *, losses: list[Loss], bn_group_size: int,
                 channels_last: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with naming_keys({"group_size": "MODEL.BN_GROUP_SIZE"}):
            self.backbone: nn.Module = convert_grouped_batch_norm(self.backbone, bn_group_size)
            self.heads: nn.Module = convert_grouped_batch_norm(self.heads, bn_group_size)
        # the weights keep their layout: the toolbox's optimizer views them as one flat buffer
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._losses = losses
        self.memory: MemoryBank | None = None
        self.teacher: Teacher | None = None  # no module: neither a weight nor in a checkpoint
        self._seen: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        losses = build_losses(cfg)
        if any(loss.needs_memory for loss in losses):
            cls._check_embedding(cfg)
        classless = (cfg.MODEL.HEADS.NUM_CLASSES < 0 and _head_is(cfg, EmbeddingHead)
                     and not _head_is(cfg, CamSepHead))
        arguments = super().from_config(_with_no_classes(cfg) if classless else cfg)
        if classless:  # DistributedDataParallel would wait for its gradient
            arguments["heads"].weight.requires_grad_(False)
        del arguments["loss_kwargs"]
        return {**arguments, "losses": losses, "bn_group_size": cfg.MODEL.BN_GROUP_SIZE,
                "channels_last": cfg.MODEL.CHANNELS_LAST}

    @staticmethod
    def _check_embedding(cfg: CfgNode) -> None:
        """Refuses a head whose output in training is not its embedding in evaluation."""
        if cfg.MODEL.HEADS.NECK_FEAT != "after":
            raise UserError(
                "The memory bank holds the test embedding, which is taken after the neck: set "
                f"MODEL.HEADS.NECK_FEAT after (it is {cfg.MODEL.HEADS.NECK_FEAT!r}).")
        if _head_is(cfg, ClasHead):
            raise UserError(
                f"MODEL.HEADS.NAME {cfg.MODEL.HEADS.NAME} gives scores of classes in evaluation, "
                "and the memory bank holds embeddings: set it to CamSepHead or EmbeddingHead.")

    def forward(self, batched_inputs: dict[str, Any]) -> torch.Tensor | dict[str, torch.Tensor]:
        if isinstance(batched_inputs, dict):
            batched_inputs = to_device(batched_inputs, self.device)
        images = self.preprocess_image(batched_inputs).contiguous(memory_format=self._layout)
        if not self.training:
            return self.heads(self.backbone(images))
        cameras = ({"camids": batched_inputs.get("camids")}
                   if getattr(self.backbone, "camera_embedding", None) is not None else {})
        features = self.backbone(images, **cameras)
        targets = batched_inputs["targets"]
        if self.memory is None:
            targets = targets.clamp(min=0)  # FastReID's PreciseBN marks its batches with -1
        outputs = self.heads(features, targets)
        if self.teacher is not None:
            outputs.update(self.teacher.keys(batched_inputs))
        return self.losses(outputs, {**batched_inputs, "targets": targets})

    def losses(self, outputs: dict[str, torch.Tensor],
               batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Named losses, computed in fp32 whatever the precision of the network.

        Raises:
            ValueError: two losses give a scalar of one name.
        """
        with torch.autocast(self.device.type, enabled=False):
            # without the scores of a classifier of no classes
            outputs = {key: value.float() for key, value in outputs.items() if value.numel()}
            if self.memory is not None:
                features = F.normalize(outputs["features"].detach(), dim=1)
                self._seen = features, batch["indexes"]
            total: dict[str, torch.Tensor] = {}
            for loss in self._losses:
                found = loss(outputs, batch, self.memory)
                if twice := sorted(total.keys() & found):
                    raise UserError(
                        f"Two losses of MODEL.LOSSES.NAME give {twice}: one would replace the "
                        "other. Give each scalar a name of its own.")
                total.update(found)
            return total

    def pop_seen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """L2-normalised features (B, D) and bank rows (B,) of the last step, for the bank update.

        Raises:
            RuntimeError: no training step since the last call.
        """
        if self._seen is None:
            raise RuntimeError("No training step has run since the last bank update.")
        seen, self._seen = self._seen, None
        return seen
