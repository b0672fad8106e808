"""A run with the images it was trained on, in the order of its memory bank."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fastreid.config import CfgNode

from .. import compat
from ..common.errors import UserError
from ..common.text import printable, with_full_stop
from ..data import UnlabelledImages, build_dataset, training_images
from ..engine import images_digest
from ..inspection import short_names
from .folder import (
    RunError,
    check_folder,
    find_checkpoint,
    memory_bank,
    read_checkpoint,
    read_config,
    without_singletons,
)
from .metrics import read_rows

FOLDER = "CameraFolder"  # the dataset whose folder is a config key
ReportError = RunError  # why there can be no report of a run, and what to do


class Missing(UserError):
    """Why a section of the report cannot be made; the others can."""


class Run(NamedTuple):
    """A run, as far as it has come.

    ``features`` (N, D) are the memory bank's, L2-normalised; ``labels`` (N,) its clusters 0..K-1,
    numbered anew without clusters of one image, which are outliers: -1. ``camids`` (N,) number the
    cameras, whose names are ``names`` (C,) behind ``prefix``, which all share, without what the
    dataset puts before them. ``rows`` come from metrics.json; where they cannot be had,
    ``no_rows`` says why.
    """

    folder: Path
    cfg: Any
    checkpoint: Path
    written: str
    steps: int
    epoch_steps: int
    features: torch.Tensor
    labels: np.ndarray
    paths: list[str]
    camids: np.ndarray
    names: list[str]
    prefix: str
    rows: list[dict[str, Any]]
    no_rows: str

    @property
    def epochs(self) -> float:
        """Epochs that the checkpoint has behind it."""
        return self.steps / self.epoch_steps

    @property
    def is_finished(self) -> bool:
        return self.steps >= self.cfg.SOLVER.MAX_EPOCH * self.epoch_steps

    def camera(self, index: int) -> str:
        """Name of an image's camera; "" where there is only one, which needs no name."""
        return self.names[self.camids[index]] if len(self.names) > 1 else ""


def read_run(folder: Path, checkpoint: Path | None, opts: list[str]) -> Run:
    """Reads a run folder.

    Args:
        folder: OUTPUT_DIR of the run.
        checkpoint: None: the last one.
        opts: config keys and values that replace the run's.

    Raises:
        ReportError: it is no run folder, or not whole, or its data set is not the run's.
    """
    check_folder(folder)
    cfg = read_config(folder, opts, training=True)
    path = checkpoint or find_checkpoint(folder)
    if not path.is_file() and (folder / path).is_file():
        path = folder / path
    content = read_checkpoint(path)
    bank = memory_bank(content, path)
    images, names = match_images(cfg, content, path)
    steps, epoch_steps = progress(cfg, content, len(images))
    rows, no_rows = read_rows(folder / "metrics.json")
    return Run(folder, cfg, path, time.strftime("%Y-%m-%d %H:%M", time.localtime(
        path.stat().st_mtime)), steps, epoch_steps, bank["features"].float(),
        without_singletons(bank["labels"].long().numpy()), images.paths, images.camids,
        *short_names(names), rows, no_rows)


def progress(cfg: CfgNode, content: dict[str, Any], images: int) -> tuple[int, int]:
    """Steps that the checkpoint has behind it, and steps of an epoch."""
    state = content.get("run_state")
    if not isinstance(state, dict):
        state = {}
    count = max(int(state.get("iters_per_epoch") or cfg.SOLVER.ITERS_PER_EPOCH
                    or images // cfg.SOLVER.IMS_PER_BATCH), 1)
    # "epoch" is the last whole one; of the next, a run that was stopped has done some steps
    return (int(content.get("epoch", -1)) + 1) * count + int(state.get("steps_done", 0)), count


def data_place(cfg: CfgNode) -> tuple[str, str]:
    """Where the training images are looked for, and what to do if they are not the run's."""
    names, root = list(cfg.DATASETS.NAMES), compat.dataset_root()
    if FOLDER not in names:
        return f"DATASETS.NAMES {names} below {root}", (
            "Give the folder that the run read its data from: the environment variable "
            "FASTREID_DATASETS, or config keys behind the run folder.")
    folder = cfg.CAMERA_FOLDER.ROOT
    where = f"DATASETS.NAMES {names} below CAMERA_FOLDER.ROOT {printable(folder)}"
    advice = ("Give the folder that the run read its data from: CAMERA_FOLDER.ROOT and the folder "
              "behind the run folder on the command line.")
    if folder and not os.path.isabs(os.path.expanduser(folder)):
        advice += (f" {printable(folder)} is relative to the current directory, "
                   f"{printable(os.getcwd())}: run the report where the training was started, or "
                   "give the whole path.")
    if len(names) > 1:
        where += f" and {root}"
        advice += " Other datasets are found by the environment variable FASTREID_DATASETS."
    return where, advice


def match_images(cfg: CfgNode, content: dict[str, Any], checkpoint: Path
                 ) -> tuple[UnlabelledImages, list[str]]:
    """The training images, without identities, in the order of the memory bank; cameras' names.

    Args:
        content: of the checkpoint.

    Raises:
        ReportError: they cannot be listed, are gone, or are not the bank's.
    """
    camids = content["memory_bank"]["camids"]
    where, advice = data_place(cfg)
    try:
        items = training_images(cfg)
        images = UnlabelledImages(items, lambda image: image)
    except (OSError, UserError) as error:
        raise ReportError(f"The training images of {where} cannot be listed: "
                          f"{with_full_stop(error)} {advice}") from error
    if len(images) != len(camids):
        raise ReportError(f"The data set differs from the run's: {where} has {len(images)} "
                          f"training images, the memory bank of {checkpoint} {len(camids)}. "
                          f"{advice}")
    if not np.array_equal(images.camids, camids.numpy()):
        now, then = (np.bincount(ids).tolist() for ids in (images.camids, camids.numpy()))
        raise ReportError(f"The data set differs from the run's: the {len(images)} training images "
                          f"of {where} come from other cameras than in the memory bank of "
                          f"{checkpoint} (images of each camera: {now}, in the bank {then}), or in "
                          f"another order. {advice}")
    check_digest(content, images.paths, where, checkpoint, advice)
    gone = [path for path in images.paths if not os.path.isfile(path)]
    if gone:
        raise ReportError(f"{len(gone)} of the {len(images)} training images of {where} are gone, "
                          f"the first is {printable(gone[0])}. {advice}")
    return images, [printable(str(name)) for name in images.camera_names]


def check_digest(content: dict[str, Any], paths: list[str], where: str, checkpoint: Path,
                 advice: str) -> None:
    """Compares the images' names with the run's, where the checkpoint has their digest.

    Raises:
        ReportError: they are others.
    """
    kept = content.get("training_images")
    digest = kept.get("digest") if isinstance(kept, dict) else None
    if digest is not None and digest != images_digest(paths):
        raise ReportError(
            f"The data set differs from the run's: the {len(paths)} training images of {where} "
            f"are as many as in the memory bank of {checkpoint}, but other files: names were "
            "changed, or files were added and others removed, since the run began. Every image "
            f"would be shown with another one's cluster. Restore the files, or: {advice}")


def find_test_set(cfg: CfgNode) -> tuple[str, list[Any], list[Any], list[str]]:
    """Name, query, gallery and names of cameras of the first labelled test set; "" without any.

    Cameras without names have their numbers.

    Raises:
        Missing: a test set of the config cannot be listed.
    """
    for name in cfg.DATASETS.TESTS:
        try:
            data = build_dataset(cfg, name)
            query, gallery = ([item[:3] for item in part] for part in (data.query, data.gallery))
        except (OSError, UserError) as error:
            raise Missing(f"The test set {name} (DATASETS.TESTS) cannot be listed: {error}"
                          ) from error
        if query and gallery:
            return name, query, gallery, getattr(data, "test_cameras", [])
    return "", [], [], []
