"""Unsupervised training: the hook that clusters, labels and keeps the memory bank."""

from .extraction import extract_features
from .hooks import EvalAtStart, UnsupervisedHook, check_cameras

__all__ = ["EvalAtStart", "UnsupervisedHook", "check_cameras", "extract_features"]
