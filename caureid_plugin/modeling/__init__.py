"""Registered parts: meta-architecture, head and losses, and the memory bank they work with."""

from .backbones import build_plain_backbone
from .heads import CamSepHead
from .losses import LOSS_REGISTRY, build_losses, needs_memory
from .memory_bank import MemoryBank
from .meta_arch import CAUReID
from .timm_backbone import build_timm_backbone

__all__ = [
    "LOSS_REGISTRY", "CAUReID", "CamSepHead", "MemoryBank", "build_losses", "build_plain_backbone",
    "build_timm_backbone", "needs_memory",
]
