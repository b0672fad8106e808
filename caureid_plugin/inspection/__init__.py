"""Looks at training images before training: what can be told without a network, and what it costs.

:mod:`.images` reads every file once; :mod:`.content` finds images that show nothing,
:mod:`.copies` those that are (nearly) the same, :mod:`.cameras` cameras that are small or alike;
:mod:`.cost` estimates time and memory. Nothing here knows identities.

Letters in the docstrings: N images, C cameras.
"""

from .cameras import (
    LEAST_IMAGES,
    CameraPairs,
    compare_cameras,
    least_images,
    short_names,
    small_cameras,
    summarize_cameras,
)
from .content import LEAST_STRUCTURE, structure
from .copies import COPY_DISTANCE, NearCopies, exact_copies, find_near_copies, run_length
from .cost import TrainingCost, clustering_seconds, neighbor_memory, sample_rows, training_cost
from .images import Facts, choose, inspect_images

__all__ = [
    "COPY_DISTANCE", "LEAST_IMAGES", "LEAST_STRUCTURE", "CameraPairs", "Facts", "NearCopies",
    "TrainingCost", "choose", "clustering_seconds", "compare_cameras", "exact_copies",
    "find_near_copies", "inspect_images", "least_images", "neighbor_memory", "run_length",
    "sample_rows", "short_names", "small_cameras", "structure", "summarize_cameras",
    "training_cost",
]
