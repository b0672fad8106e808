"""Registered parts: meta-architecture, head and losses, and the memory bank they work with."""

from .backbones import build_plain_backbone
from .heads import CamSepHead
from .losses import LOSS_REGISTRY, build_losses, build_teacher, camera_losses, needs_memory
from .memory_bank import MemoryBank, build_memory_bank
from .meta_arch import CAUReID
from .teacher import Teacher
from .timm_backbone import build_timm_backbone

__all__ = [
    "LOSS_REGISTRY", "CAUReID", "CamSepHead", "MemoryBank", "Teacher", "build_losses",
    "build_memory_bank", "build_plain_backbone", "build_teacher", "build_timm_backbone",
    "camera_losses", "needs_memory",
]
