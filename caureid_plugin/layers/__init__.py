"""Network layers: plain torch modules, usable without FastReID."""

from .attention import HarmoniousAttention
from .batch_norm import GroupedBatchNorm2d, convert_grouped_batch_norm

__all__ = ["GroupedBatchNorm2d", "HarmoniousAttention", "convert_grouped_batch_norm"]
