"""What the toolbox's evaluator ranks."""

from __future__ import annotations

import torch
from fastreid.config import CfgNode

from .. import compat
from ..clustering import standardize_by_camera


def features_to_rank(cfg: CfgNode, features: torch.Tensor, camids: torch.Tensor) -> torch.Tensor:
    """The features (N, D) of query and gallery as TEST.STANDARDIZE_BY_CAMERA wants them ranked.

    Raises:
        ValueError: a camera of a single image is to be standardised.
    """
    # a config of the toolbox alone does not have the key
    if not getattr(cfg.TEST, "STANDARDIZE_BY_CAMERA", False):
        return features
    return standardize_by_camera(features, camids, key="TEST.STANDARDIZE_BY_CAMERA")


compat.before_ranking(features_to_rank)
