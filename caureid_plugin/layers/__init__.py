"""Network layers: plain torch modules, usable without FastReID."""

from .attention import HarmoniousAttention
from .attention_maps import MAP_KINDS, branch_maps, mass_share, relative_maps, resize_maps
from .batch_norm import GroupedBatchNorm2d, convert_grouped_batch_norm

__all__ = [
    "MAP_KINDS", "GroupedBatchNorm2d", "HarmoniousAttention", "branch_maps",
    "convert_grouped_batch_norm", "mass_share", "relative_maps", "resize_maps",
]
