"""The losses of CA-UReID as pure functions: tensors in, a scalar out, no FastReID.

Shapes: B images, D embedding, K clusters, M camera centres, A anchors, C cameras.
"""

from .cacc import batch_camera_centres, cacc_loss
from .camera_separation import camera_separation_loss
from .info_nce import info_nce_loss

__all__ = ["batch_camera_centres", "cacc_loss", "camera_separation_loss", "info_nce_loss"]
