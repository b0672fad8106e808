"""Unsupervised training: the hook that clusters, labels and keeps the memory bank."""

from .extraction import extract_features
from .hooks import EvalAtStart, UnsupervisedHook

__all__ = ["EvalAtStart", "UnsupervisedHook", "extract_features"]
