"""The losses of CA-UReID and of its peers as pure functions: tensors in, a scalar out, no FastReID.

Shapes: B images, D embedding, K clusters, M camera centres, A anchors, C cameras.
"""

from .cacc import batch_camera_centres, cacc_loss
from .camera_separation import camera_separation_loss
from .cap import inter_camera_loss, intra_camera_loss
from .ice import hard_instance_loss, soft_consistency_loss
from .info_nce import info_nce_loss

__all__ = ["batch_camera_centres", "cacc_loss", "camera_separation_loss", "hard_instance_loss",
           "info_nce_loss", "inter_camera_loss", "intra_camera_loss", "soft_consistency_loss"]
