"""What the report asks of the network: features, attention maps, the map of the embeddings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastreid.config import CfgNode
from PIL import Image
from sklearn.manifold import TSNE
from torch.nn.functional import normalize

from ..clustering import camera_shares
from ..common.errors import UserError
from ..common.pages import image_uri
from ..common.text import printable
from ..data import build_extraction_loader
from ..engine import build_network, extract_features
from ..modeling import CamSepHead
from ..runs.run import Missing, ReportError, Run
from . import attention
from .draw import GREY, MOST_COLOURS, palette, scatter

PER_PAGE = 6  # images whose attention is drawn
NEIGHBOURS = 10  # whose cameras are counted
PERPLEXITY = 30  # of t-SNE, where there are enough images
LEAST = 8  # images of a map
ALIKE = 1e-5  # features that differ by no more are one and the same


def build_trained(run: Run) -> torch.nn.Module:
    """The network with the checkpoint's weights.

    Raises:
        ReportError: they do not fit the config.
    """
    try:
        return build_network(run.cfg, str(run.checkpoint)).eval()
    except (OSError, UserError) as error:
        raise ReportError(f"The network of {run.folder / 'config.yaml'} cannot take the weights of "
                          f"{run.checkpoint}: {error} Name a checkpoint of this run, or take back "
                          "the config keys on the command line.") from error


def build_start(run: Run) -> torch.nn.Module:
    """The network that training started from.

    Raises:
        Missing: it cannot be had again.
    """
    problem = start_problem(run.cfg, run.folder)
    if problem:
        raise Missing(problem)
    try:
        return build_network(run.cfg, run.cfg.MODEL.WEIGHTS).eval()
    except (OSError, UserError) as error:
        raise Missing(f"The network before training cannot be shown: {error}") from error


def start_problem(cfg: CfgNode, folder: Path) -> str:
    """Why the network before training cannot be had again; "": it can."""
    prefix = "The network before training cannot be shown: "
    backbone = cfg.MODEL.BACKBONE
    if cfg.MODEL.WEIGHTS:
        if not os.path.isfile(cfg.MODEL.WEIGHTS):
            return f"{prefix}MODEL.WEIGHTS {printable(cfg.MODEL.WEIGHTS)} is gone."
        if Path(cfg.MODEL.WEIGHTS).resolve().parent == folder.resolve():
            return (f"{prefix}config.yaml is not that of the training, but of a later evaluation "
                    f"of its own {printable(os.path.basename(cfg.MODEL.WEIGHTS))} (MODEL.WEIGHTS).")
        return ""
    if backbone.PRETRAIN and not backbone.PRETRAIN_PATH:
        return (f"{prefix}its weights were downloaded (MODEL.BACKBONE.PRETRAIN_PATH is empty), and "
                "the report downloads nothing.")
    if backbone.PRETRAIN and not os.path.isfile(backbone.PRETRAIN_PATH):
        return f"{prefix}MODEL.BACKBONE.PRETRAIN_PATH {printable(backbone.PRETRAIN_PATH)} is gone."
    if not backbone.PRETRAIN and cfg.SEED < 0:
        return (f"{prefix}its random weights were not kept, because SEED was {cfg.SEED}. Train "
                "with a SEED of 0 or more to see them.")
    return ""


def embed(model: torch.nn.Module, cfg: CfgNode, paths: list[str]) -> torch.Tensor:
    """Features (n, D) of images, as the network gives them.

    Raises:
        Missing: an image cannot be read; a feature is not finite.
    """
    loader = build_extraction_loader(cfg, [(path, "any") for path in paths])
    try:
        return extract_features(model, loader)
    except (OSError, UserError) as error:
        raise Missing(f"Images cannot be embedded: {error}") from error


# -------------------------------------------------------------------------------- attention ----


def attention_maps(model: torch.nn.Module, run: Run, seed: int) -> dict[str, Any]:
    """Images of as many cameras as there are, each with its two maps.

    Raises:
        Missing: the network has no attention, or does not see the whole image; none can be read.
    """
    cfg = run.cfg
    head = getattr(model, "heads", None)
    if not isinstance(head, CamSepHead) or head.attention is None:
        raise Missing("The network has no attention to draw (MODEL.HEADS.CAMSEP.ATTENTION "
                      f"{cfg.MODEL.HEADS.CAMSEP.ATTENTION}, MODEL.HEADS.NAME "
                      f"{cfg.MODEL.HEADS.NAME}).")
    if cfg.INPUT.CROP.ENABLED:
        raise Missing("INPUT.CROP.ENABLED True: maps do not cover the whole image.")
    choices = [attention.Choice(run.paths[index], run.camera(index), True)
               for index in one_by_camera(run.camids, PER_PAGE, seed)]
    samples, wrong = attention.read(choices, cfg)
    if not samples:
        raise Missing(f"None of the images can be drawn: {' '.join(wrong.values())}")
    images = [sample.image for sample in samples]
    branches = attention.network_maps(model, images, cfg.TEST.IMS_PER_BATCH)["mask"]
    shares = tuple(attention.person_shares(branch, samples) for branch in branches)
    panels, scale = attention.draw_panels(samples, branches, shares)
    ramp = np.tile(np.linspace(1 - scale, 1 + scale, 256), (16, 1))
    bar = attention.overlay(np.full((16, 256, 3), 255, np.uint8), ramp, scale)
    return {
        "panels": [{"name": panel.name, "camera": panel.group, "note": panel.note,
                    "pictures": [{"src": image_uri(Image.fromarray(p)), "caption": caption}
                                 for p, caption in zip(panel.pictures, (
                                     "image", "camera", "person"), strict=True)]}
                   for panel in panels],
        "bar": image_uri(Image.fromarray(bar)), "low": f"{1 - scale:.2f}",
        "high": f"{1 + scale:.2f}" + (" or more" if scale == 1 else ""),
        "wrong": [printable(text) for text in wrong.values()]}


def one_by_camera(camids: np.ndarray, count: int, seed: int) -> list[int]:
    """Images drawn from each camera in turn."""
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(camids))
    lists = [order[camids[order] == camera] for camera in np.unique(camids)]
    turns = [members[turn] for turn in range(count) for members in lists if turn < len(members)]
    return [int(index) for index in turns[:count]]


# ------------------------------------------------------------------------------------- maps ----


def embedding_maps(trained: torch.nn.Module, run: Run, count: int, seed: int) -> dict[str, Any]:
    """2-D maps of a sample of the training images, coloured by camera and by cluster.

    Raises:
        Missing: too few images, or all alike.
    """
    rng = np.random.default_rng([seed, 2])
    rows = np.sort(rng.permutation(len(run.paths))[:count])
    if len(rows) < LEAST:
        raise Missing(f"A map takes at least {LEAST} images, and there are {len(rows)}.")
    paths, camids = [run.paths[row] for row in rows], run.camids[rows]
    found: dict[str, Any] = {"count": len(rows), "total": len(run.paths), "problem": "", "maps": [],
             "neighbours": min(NEIGHBOURS, len(rows) - 1)}
    features = {}
    try:
        features["before"] = normalize(embed(build_start(run), run.cfg, paths), dim=1)
    except Missing as error:
        found["problem"] = str(error)
    features["after"] = normalize(embed(trained, run.cfg, paths), dim=1)
    by_camera = palette(len(run.names))
    colours, legend = cluster_colours(run.labels[rows])
    points = {"camera": ([by_camera[camid] for camid in camids], np.full(len(rows), 9.0),
                         np.full(len(rows), 0.8)),
              "cluster": (colours, np.where(run.labels[rows] < 0, 3.0, 11.0),
                          np.select([run.labels[rows] < 0, np.array(colours) == GREY],
                                    [0.35, 0.5], 0.95))}
    if len(run.names) < 2:
        del points["camera"]  # of one colour
    for name, values in features.items():
        places = flatten(values, seed)
        share, chance = camera_shares(values, camids, found["neighbours"])
        found[name] = {"share": f"{100 * share:.0f} %", "times": f"{share / chance:.1f}"}
        found["chance"] = f"{100 * chance:.0f} %"
        found["maps"] += [{"title": f"{name.capitalize()} training, by {kind}", "kind": kind,
                           "src": scatter(places, *drawn)} for kind, drawn in points.items()]
    found["maps"].sort(key=lambda drawn: drawn["kind"])  # before beside after
    return {**found, "cameras": list(zip(run.names, by_camera, strict=True)),
            "repeated": len(run.names) > MOST_COLOURS, "clusters": legend, "grey": GREY}


def cluster_colours(labels: np.ndarray) -> tuple[list[str], int]:
    """Colour of each image (the largest clusters', else grey), and how many clusters have one."""
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    largest = [c for c in np.argsort(-sizes, kind="stable")[:MOST_COLOURS] if sizes[c]]
    table = dict(zip(largest, palette(MOST_COLOURS), strict=False))
    return [table.get(label, GREY) for label in labels], len(largest)


def flatten(features: torch.Tensor, seed: int) -> np.ndarray:
    """Places (n, 2) of features in a plane, near where they are near, by t-SNE.

    Source: van der Maaten, Hinton, "Visualizing data using t-SNE", JMLR 2008.

    Raises:
        Missing: all features are the same.
    """
    values = features.numpy()
    if np.ptp(values, axis=0).max() <= ALIKE:
        raise Missing("There is nothing to map: the features of all images are the same.")
    near = min(PERPLEXITY, (len(values) - 1) / 3)
    return TSNE(init="pca", perplexity=near, random_state=seed).fit_transform(values)
