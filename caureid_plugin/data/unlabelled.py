"""Training images without identities, and the loaders made of them by the toolbox's builders."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.data import build_reid_test_loader, build_reid_train_loader
from fastreid.data import transforms as toolbox_transforms
from fastreid.data.data_utils import read_image
from fastreid.utils import comm
from torch.utils.data import DataLoader, Dataset

from ..clustering.tracks import Tracks
from ..common.errors import UserError
from ..compat.datasets import known_cameras
from .sampler import ClusterSampler, Draw


class UnlabelledImages(Dataset[dict[str, Any]]):
    """Images with cameras and, later, pseudo labels. Identities never enter it.

    Args:
        items: (path, camera) of each image; cameras are all text or all numbers. A third part,
            :class:`.track_source.Sighting`, tells what a tracker knows of it.
        transform: image -> tensor.
        labels: (N,) pseudo labels, -1 for outliers; None: all -1.
        views: more of each image by other transforms, {name in the item: image -> tensor}.

    Attributes:
        camids: (N,) int64, the cameras numbered in the order of their names.
        camera_names: C names, in that order.
        num_cameras: C.

    An item is a dict: images (3, H, W), targets, camids, indexes (its row), img_paths, and views.

    Raises:
        ValueError: no image; an image without a camera, or with what is no name of one (names it).
    """

    def __init__(self, items: Sequence[tuple[Any, ...]],
                 transform: Callable[[Any], torch.Tensor],
                 labels: np.ndarray | None = None, *,
                 views: Mapping[str, Callable[[Any], torch.Tensor]] | None = None) -> None:
        if not items:
            raise UserError("The training set has no image: check DATASETS.NAMES and the "
                            "environment variable FASTREID_DATASETS.")
        known = known_cameras(item[:2] for item in items)
        for path, camera, *_ in items:
            if camera not in known or camera == -1:
                raise UserError(f"The training image {path} has no camera label; every training "
                                "image needs one. Correct the dataset or remove the file.")
        self.paths = [item[0] for item in items]
        self.camera_names = sorted(known)
        number = {name: i for i, name in enumerate(self.camera_names)}
        self.camids = np.array([number[item[1]] for item in items], dtype=np.int64)
        self._seen = [item[2] if len(item) > 2 else None for item in items]
        self.num_cameras = len(self.camera_names)
        self.transform = transform
        self.views = dict(views or {})
        self.labels = np.full(len(items), -1) if labels is None else np.asarray(labels)

    @functools.cached_property
    def tracks(self) -> Tracks | None:
        """The tracks of the images, None where the data has neither tracks nor times."""
        if not any(self._seen):
            return None
        return Tracks.of(self.camids, [seen and seen.track for seen in self._seen],
                         [seen.time if seen else np.nan for seen in self._seen])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: int | Draw) -> dict[str, Any]:
        index, seed = draw if isinstance(draw, Draw) else (int(draw), None)
        image = read_image(self.paths[index])
        with contextlib.nullcontext() if seed is None else _seeded(seed):
            images = {name: transform(image)
                      for name, transform in {"images": self.transform, **self.views}.items()}
        return {
            **images,
            "targets": int(self.labels[index]),
            "camids": int(self.camids[index]),
            "indexes": index,
            "img_paths": self.paths[index],
        }


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Runs a block with seeded Python, NumPy and torch (CPU) generators, then restores them."""
    generator = torch.default_generator
    before = random.getstate(), np.random.get_state(), generator.get_state()
    random.seed(seed)
    np.random.seed(seed)
    generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        generator.set_state(before[2])


def build_pseudo_label_loader(cfg: CfgNode, items: Sequence[tuple[Any, ...]], labels: np.ndarray,
                              seed: int | Sequence[int], *, skip_batches: int = 0,
                              views: bool = False) -> DataLoader[dict[str, Any]]:
    """Endless P x K training loader over pseudo labels, through the toolbox's builder.

    Args:
        cfg: SOLVER.IMS_PER_BATCH, INPUT and of DATALOADER: NUM_INSTANCE, CAMERAS, NUM_WORKERS.
        items: as :class:`UnlabelledImages` takes them.
        labels: (N,) pseudo labels, -1 is not drawn.
        seed: the same on every process.
        skip_batches: batches to leave out at the start, where a run goes on within an epoch.
        views: each image twice more, for a teacher: "second_images", augmented anew, and
            "plain_images", as in evaluation.
    """
    augmented = toolbox_transforms.build_transforms(cfg, is_train=True)
    more = {"second_images": augmented,
            "plain_images": toolbox_transforms.build_transforms(cfg, is_train=False)}
    train_set = UnlabelledImages(items, augmented, labels, views=more if views else None)
    sampler = ClusterSampler(
        labels, train_set.camids,
        tracks=None if train_set.tracks is None else train_set.tracks.of_image,
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        num_instances=cfg.DATALOADER.NUM_INSTANCE, cameras=cfg.DATALOADER.CAMERAS, seed=seed,
        rank=comm.get_rank(), world_size=comm.get_world_size(), skip_batches=skip_batches)
    return build_reid_train_loader(cfg, train_set=train_set, sampler=sampler)


def build_extraction_loader(cfg: CfgNode, items: Sequence[tuple[Any, ...]]
                            ) -> DataLoader[dict[str, Any]]:
    """Loader that gives every training image once, in order, with the test transforms."""
    images = UnlabelledImages(items, toolbox_transforms.build_transforms(cfg, is_train=False))
    loader, _ = build_reid_test_loader(cfg, test_set=images)
    return loader
