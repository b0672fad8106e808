"""Unsupervised training: the config, and the hook that clusters, labels and keeps the bank."""

from .extraction import extract_features
from .hooks import EvalAtStart, UnsupervisedHook, check_cameras
from .images import images_digest
from .setup import build_network, check_identities, fit_to_data, load_config
from .terminal import EpochLines, shortened_log

__all__ = [
    "EpochLines", "EvalAtStart", "UnsupervisedHook", "build_network", "check_cameras",
    "check_identities", "extract_features", "fit_to_data", "images_digest", "load_config",
    "shortened_log",
]
