"""The CA-UReID meta-architecture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fastreid.config import configurable
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY, Baseline

from ..compat import to_device
from ..layers import convert_grouped_batch_norm
from .losses import Loss, build_losses
from .memory_bank import MemoryBank


@META_ARCH_REGISTRY.register()
class CAUReID(Baseline):
    """FastReID's Baseline with losses from a registry, a memory bank and grouped batch norm.

    Args:
        losses: built losses; their scalars are summed by the trainer.
        bn_group_size: images per batch-norm group in backbone and head, 0 for plain batch norm.
        **kwargs: Baseline's arguments.

    Attributes:
        memory: the memory bank; set by the UnsupervisedHook, None in supervised training.

    Input of ``forward`` (a dict): "images" (B, 3, H, W) in 0..255; in training also "targets" (B,)
    (pseudo labels, or identities in supervised training), "camids" (B,), and, with a memory bank,
    "indexes" (B,).
    """

    @configurable
    def __init__(self, *, losses: list[Loss], bn_group_size: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.backbone = convert_grouped_batch_norm(self.backbone, bn_group_size)
        self.heads = convert_grouped_batch_norm(self.heads, bn_group_size)
        self._losses = losses
        self.memory: MemoryBank | None = None
        self._seen: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def from_config(cls, cfg):
        arguments = super().from_config(cfg)
        del arguments["loss_kwargs"]
        losses = build_losses(cfg)
        if any(loss.needs_memory for loss in losses) and cfg.MODEL.HEADS.NECK_FEAT != "after":
            raise ValueError(
                "The memory bank holds the test embedding, which is taken after the neck: set "
                f"MODEL.HEADS.NECK_FEAT after (it is {cfg.MODEL.HEADS.NECK_FEAT!r}).")
        return {**arguments, "losses": losses, "bn_group_size": cfg.MODEL.BN_GROUP_SIZE}

    def forward(self, batched_inputs):
        if isinstance(batched_inputs, dict):
            batched_inputs = to_device(batched_inputs, self.device)
        features = self.backbone(self.preprocess_image(batched_inputs))
        if not self.training:
            return self.heads(features)
        targets = batched_inputs["targets"]
        if self.memory is None:
            targets = targets.clamp(min=0)  # FastReID's PreciseBN marks its batches with -1
        outputs = self.heads(features, targets)
        return self.losses(outputs, {**batched_inputs, "targets": targets})

    def losses(self, outputs: dict, batch: dict) -> dict:
        """Named losses, computed in fp32 whatever the precision of the network."""
        with torch.autocast(self.device.type, enabled=False):
            outputs = {key: value.float() for key, value in outputs.items()}
            if self.memory is not None:
                features = F.normalize(outputs["features"].detach(), dim=1)
                self._seen = features, batch["indexes"]
            total: dict = {}
            for loss in self._losses:
                total.update(loss(outputs, batch, self.memory))
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
