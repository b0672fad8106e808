"""Datasets, the unlabelled training set, the pseudo-label sampler and the loaders made of them."""

from .build import build_dataset, training_images
from .camera_folder import CAMERA_PREFIX, CameraFolder
from .personx import PersonX
from .sampler import ClusterSampler
from .synthetic.dataset import SyntheticCameras, SyntheticTracks
from .track_source import Sighting
from .unlabelled import UnlabelledImages, build_extraction_loader, build_pseudo_label_loader

__all__ = [
    "CAMERA_PREFIX", "CameraFolder", "ClusterSampler", "PersonX", "Sighting", "SyntheticCameras",
    "SyntheticTracks", "UnlabelledImages", "build_dataset", "build_extraction_loader",
    "build_pseudo_label_loader", "training_images",
]
