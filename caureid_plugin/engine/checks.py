"""What is asked of the options and of the data before training, and of a clustering in it."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

import numpy as np
import torch
from fastreid.config import CfgNode

from ..clustering.inputs import (
    check_camera_parameters,
    check_eps,
    check_eps_gap,
    check_graph_parameters,
    check_min_samples,
)
from ..clustering.standardize import check_cameras_to_standardize
from ..clustering.tracks import Tracks
from ..common.errors import UserError
from ..common.text import naming_keys
from ..data.sampler import why_only_copies

logger = logging.getLogger("fastreid.caureid")

# Unit features of all images that differ by no more than this are one and the same up to rounding.
ALIKE = 1e-5

# A list of so many neighbours was meant for images: few people have as many tracks.
LEAST_OF_IMAGES = 16

# what the clustering calls it -> the key
CLUSTER_KEYS = {
    **{name: f"CAUREID.CLUSTER.{name.upper()}" for name in (
        "k1", "k2", "k1_intra", "k1_inter", "k2_intra", "k2_inter", "eps", "min_samples", "recall",
        "max_memory")},
    "backend": "CAUREID.CLUSTER.SEARCH", "gap": "CAUREID.CLUSTER.EPS_GAP",
    "not standardise": "CAUREID.CLUSTER.STANDARDIZE False"}


def check_clustering(cfg: CfgNode) -> None:
    """Checks the numbers of CAUREID.CLUSTER, also for later epochs.

    Raises:
        ValueError: one is out of its range; names the key.
    """
    node = cfg.CAUREID.CLUSTER
    if node.EPS_FIRST_EPOCHS < 0 or bool(node.EPS_FIRST) != bool(node.EPS_FIRST_EPOCHS):
        raise UserError(
            f"CAUREID.CLUSTER.EPS_FIRST {node.EPS_FIRST:g} and CAUREID.CLUSTER.EPS_FIRST_EPOCHS "
            f"{node.EPS_FIRST_EPOCHS} must both be positive, or both 0 (EPS throughout).")
    for epoch in (0, max(1, node.EPS_FIRST_EPOCHS)):  # the first, and one with the final values
        with naming_cluster_keys(cfg, epoch):
            check_eps(eps_at(cfg, epoch))
            check_eps_gap(eps_at(cfg, epoch), eps_gap(cfg))
            check_min_samples(node.MIN_SAMPLES)
            if not node.CAMERA_AWARE:
                check_graph_parameters(node.K1, node.K2)
                continue
            first = "" if epoch else "_FIRST"
            check_camera_parameters(node.K1_INTRA, node.K1_INTER, node[f"K2_INTRA{first}"],
                                    node[f"K2_INTER{first}"])


def naming_cluster_keys(cfg: CfgNode, epoch: int = 0) -> AbstractContextManager[None]:
    """:func:`.naming_keys` with the keys that an epoch's clustering has its arguments from."""
    keys = {**CLUSTER_KEYS, "eps": f"CAUREID.CLUSTER.{eps_key(cfg, epoch)}"}
    if epoch == 0:
        keys |= {name: f"{keys[name]}_FIRST" for name in ("k2_intra", "k2_inter")}
    return naming_keys(keys)


def eps_gap(cfg: CfgNode) -> float:
    """CAUREID.CLUSTER.EPS_GAP where it counts, with CAUREID.LABELS bank; 0 elsewhere."""
    return cfg.CAUREID.CLUSTER.EPS_GAP if cfg.CAUREID.LABELS == "bank" else 0.0


def eps_at(cfg: CfgNode, epoch: int) -> float:
    """The eps of an epoch's clustering: from CAUREID.CLUSTER.EPS_FIRST to EPS in equal steps."""
    node = cfg.CAUREID.CLUSTER
    if epoch >= node.EPS_FIRST_EPOCHS:
        return node.EPS
    return node.EPS_FIRST + (node.EPS - node.EPS_FIRST) * epoch / node.EPS_FIRST_EPOCHS


def eps_key(cfg: CfgNode, epoch: int) -> str:
    """The key of CAUREID.CLUSTER by which an epoch's eps is changed."""
    return "EPS_FIRST" if epoch < cfg.CAUREID.CLUSTER.EPS_FIRST_EPOCHS else "EPS"


def check_size(cfg: CfgNode, camids: np.ndarray, tracks: Tracks | None = None) -> None:
    """Compares the number of training images with what the config asks of it.

    Neighbour lists that are longer than the images there are become shorter, and a batch repeats
    images where there are too few; both are warned about.

    Args:
        cfg: CAUREID.CLUSTER, SOLVER.IMS_PER_BATCH and, for the messages, DATASETS.NAMES.
        camids: (N,) cameras of the training images, numbered from 0.
        tracks: of the images, which are then neighbours in their place.

    Raises:
        ValueError: fewer than two images or tracks, or fewer than CAUREID.CLUSTER.MIN_SAMPLES; a
            camera of one image that is to be standardised.
    """
    node, n = cfg.CAUREID.CLUSTER, len(camids)
    if node.STANDARDIZE:
        with naming_cluster_keys(cfg):
            check_cameras_to_standardize(*np.unique(camids, return_counts=True))
    found = f"The training set of DATASETS.NAMES {list(cfg.DATASETS.NAMES)} has {n} image(s)"
    of_camera, what = camids, "images"
    if tracks is not None:
        of_camera, what = tracks.camids, "tracks"
        found += f" of {len(tracks)} track(s)"
    if len(of_camera) < 2:
        raise UserError(f"{found}: at least two are needed, to tell one from the other.")
    if node.MIN_SAMPLES > len(of_camera):
        raise UserError(f"{found}, so that with CAUREID.CLUSTER.MIN_SAMPLES {node.MIN_SAMPLES} "
                        "every one would be an outlier: lower it.")
    if tracks is not None:
        _warn_of_counts_for_images(node, tracks)
    per_camera = np.bincount(of_camera)
    candidates = {"K1": len(of_camera) - 1}
    if node.CAMERA_AWARE:
        candidates = {"K1_INTRA": int(per_camera.max()) - 1,
                      "K1_INTER": len(of_camera) - int(per_camera.min())}
    for name, others in candidates.items():
        if 0 < others < node[name]:
            logger.warning(
                "CAUREID.CLUSTER.%s %d is more than the %d %s that can be neighbours of one: all "
                "of them are then, whatever they show, and few clusters are found. Lower it.",
                name, node[name], others, what)
    if cfg.SOLVER.IMS_PER_BATCH > n:
        logger.warning("SOLVER.IMS_PER_BATCH %d is more than the %d training images: every batch "
                       "repeats images.", cfg.SOLVER.IMS_PER_BATCH, n)


def _warn_of_counts_for_images(node: CfgNode, tracks: Tracks) -> None:
    images = len(tracks.of_image)
    if images < 1.5 * len(tracks):  # hardly any
        return
    name = "K1_INTER" if node.CAMERA_AWARE else "K1"
    if node[name] >= LEAST_OF_IMAGES:
        logger.warning(
            "The %d images are of %d tracks, and CAUREID.CLUSTER.%s %d counts tracks: that is more "
            "than most people have. configs/OwnData/caureid_tracks.yml has counts for tracks.",
            images, len(tracks), name, node[name])


def why_not_to_train(cfg: CfgNode, features: torch.Tensor, labels: np.ndarray,
                     camids: np.ndarray, *, epoch: int) -> str | None:
    """Why nothing is to be learnt from a clustering, and the key to change; None: something is.

    Learning is telling clusters apart, so that it takes two: outliers count as clusters of their
    own where they become such (CAUREID.LABELS bank) and there is any other.

    Args:
        cfg: CAUREID and DATALOADER, for the messages too.
        features: (N, D), L2-normalised, what was clustered.
        labels: (N,) clusters 0..K-1, -1 for outliers.
        camids: (N,) cameras.
        epoch: in which the clustering was made.
    """
    node, n = cfg.CAUREID.CLUSTER, len(labels)
    if alike := _alike(features):
        return alike
    clusters, outliers = int(labels.max(initial=-1)) + 1, int((labels < 0).sum())
    key = eps_key(cfg, epoch)
    eps = f"CAUREID.CLUSTER.{key} (now {node[key]})"
    min_samples = f"CAUREID.CLUSTER.MIN_SAMPLES (now {node.MIN_SAMPLES})"
    if not clusters:
        gap = eps_gap(cfg)
        unreliable = f", or set CAUREID.CLUSTER.EPS_GAP (now {gap}) to 0" if gap else ""
        return (f"every one of the {n} images is an outlier, there is no cluster to learn from. "
                f"Raise {eps} or lower {min_samples}{unreliable}.")
    if clusters == 1 and not outliers:
        names = ("K1_INTRA", "K1_INTER") if node.CAMERA_AWARE else ("K1",)
        counts = " or ".join(f"CAUREID.CLUSTER.{name} (now {node[name]})" for name in names)
        return (f"all {n} images are in one cluster, there is no other to tell it from. Lower "
                f"{eps} or {counts}.")
    if clusters == 1 and cfg.CAUREID.LABELS == "extract":
        return (f"{n - outliers} of the {n} images are in one cluster and the others are outliers, "
                f"which are not trained on: there is nothing to tell it from. Change {eps} or "
                f"{min_samples}, or set CAUREID.LABELS bank, which makes clusters of outliers.")
    if cfg.DATALOADER.CAMERAS == "one":
        return why_only_copies(labels, camids, cfg.DATALOADER.NUM_INSTANCE)
    return None


def _alike(features: torch.Tensor) -> str | None:
    """What to say if the features (N, D) of all images are the same, or zero."""
    lowest, highest = features.amin(dim=0), features.amax(dim=0)
    if (highest - lowest).norm() > ALIKE:  # at least the distance between any two
        return None
    kind = "zero" if highest.abs().max() <= ALIKE else "the same"
    return (f"the embedding of all {len(features)} images is {kind}: either the images are copies "
            "of one (check DATASETS.NAMES), or the network does not look at them (check "
            "MODEL.WEIGHTS and MODEL.BACKBONE.PRETRAIN; lower SOLVER.BASE_LR if it once did).")
