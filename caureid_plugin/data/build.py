"""A dataset of the config, by its name."""

from __future__ import annotations

from typing import Any

from fastreid.config import CfgNode
from fastreid.utils import comm

from .. import compat


def build_dataset(cfg: CfgNode, name: str) -> Any:
    """A registered dataset, set up by the config as the toolbox's loaders have it.

    Args:
        cfg: whatever the dataset reads in its ``from_config``; most read nothing.
        name: as in DATASETS.NAMES.

    Returns:
        the toolbox's ImageDataset: ``train``, ``query`` and ``gallery`` are lists of (path,
        identity, camera), ``train`` with a fourth part where the data has tracks.

    Raises:
        KeyError: no dataset of that name (lists those there are).
    """
    return compat.configured_dataset(cfg, name)


def training_images(cfg: CfgNode) -> list[tuple[Any, ...]]:
    """(path, camera) of all training images of DATASETS.NAMES, in the order of the memory bank.

    A third part, :class:`.track_source.Sighting`, is there where the data has tracks or times.

    Each dataset is shown in the log, as when the toolbox loads it.
    """
    items: list[tuple[Any, ...]] = []
    for name in cfg.DATASETS.NAMES:
        dataset = build_dataset(cfg, name)
        if comm.is_main_process():
            dataset.show_train()
        items += [(path, *rest) for path, _, *rest in dataset.train]
    return items
