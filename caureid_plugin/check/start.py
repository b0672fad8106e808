"""The part of caureid check that needs a network: time, memory, and the first clustering."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.engine.train_loop import AMPTrainer, SimpleTrainer
from fastreid.solver import build_optimizer
from fastreid.utils.events import EventStorage
from torch.nn.functional import normalize
from tqdm import tqdm

from ..clustering import (
    Search,
    Tracks,
    assign_pseudo_labels,
    jaccard_encoding,
    label_indicators,
    labels_at,
    outliers_to_singletons,
    reliable_labels,
    standardize_by_camera,
    suggest_eps,
    sweep_eps,
)
from ..common.text import one_line
from ..data import build_extraction_loader, build_pseudo_label_loader
from ..engine import extract_features
from ..engine.checks import eps_at, eps_gap, eps_key, naming_cluster_keys, why_not_to_train
from ..engine.setup import build_network
from ..inspection import clustering_seconds, neighbor_memory, sample_rows, training_cost
from ..modeling import CAUReID, build_memory_bank, build_teacher
from .words import WRONG, Data, Report, Section, duration, share

MOST_IMAGES = 5000  # that pass the network
EPS_VALUES = [round(0.3 + 0.025 * i, 3) for i in range(19)]  # as caureid eps
# training steps that are timed: so many, or fewer once they have taken so many seconds
STEPS, LEAST_STEPS, STEP_SECONDS = 10, 3, 10.0
LONG = 24 * 3600.0  # seconds of a training
MEANINGS = {
    "outlier_share": "of the images are in no cluster yet (should fall as training goes on)",
    "largest_share": "of the images are in the largest cluster (if far more than one person has, "
                     "people are mixed up: lower EPS)",
    "cross_camera": "of the clusters span cameras (near 0 %: images are grouped by camera, not by "
                    "person)",
    "own_camera": "of an image's nearest neighbours are of its own camera (should fall as training "
                  "goes on)",
    "silhouette": "mean silhouette, -1 to 1 (below 0: clusters overlap)",
}


class Clustering(NamedTuple):
    """The clustering that training starts with: labels (n,), seconds of the search and of the
    rest, rows of :func:`sweep_eps` and the eps that they suggest (None: no cluster at any)."""

    labels: np.ndarray
    search: float
    rest: float
    rows: list[Any]
    suggested: float | None


def measure(cfg: CfgNode, model: Any, items: list[Any], camids: np.ndarray,
            images: int, tracks: Tracks | None = None) -> dict[str, Any]:
    """Figures of a sample, and what they make of all images.

    Args:
        cfg: of the training.
        model: that training starts with; changed by the steps that are timed.
        items: (path, camera) of the sample.
        camids: (n,) cameras of the sample.
        images: N, of the training set.
        tracks: of the sample.
    """
    loader: Any = build_extraction_loader(cfg, items)
    start = time.perf_counter()
    features = normalize(extract_features(model, loader), dim=1).to(model.device)
    image = (time.perf_counter() - start) / len(items)
    with naming_cluster_keys(cfg):
        search = make_search(cfg)
        # tracks are what is clustered, where they are known
        points = images if tracks is None else -(-images * len(tracks) // len(items))
        needed, free = neighbor_memory(cfg, points, features.shape[1], search, model.device)
        found = cluster(cfg, features, camids, search, tracks)
    figures = {"device": str(model.device), "sampled": len(items), "images": images,
               "seconds_per_image": image, "memory_gib": needed, "memory_free_gib": free}
    figures["indicators"] = label_indicators(found.labels, camids, features)
    figures["clusters"] = int(found.labels.max(initial=-1)) + 1
    figures["eps"], figures["eps_sweep"] = found.suggested, found.rows
    figures["problem"] = why_not_to_train(cfg, features, found.labels, camids, epoch=0)
    if figures["problem"] is None and isinstance(model, CAUReID):
        figures["seconds_per_step"] = step = time_step(cfg, model, items, camids, features,
                                                       found.labels)
        clustering = clustering_seconds(found.search, found.rest, len(items), images,
                                        search.resolve(points, model.device))
        figures["cost"] = asdict(
            training_cost(cfg, images, step=step, image=image, clustering=clustering))
    return figures


def make_search(cfg: CfgNode) -> Search:
    """How training searches neighbours, in one process."""
    node = cfg.CAUREID.CLUSTER
    return Search(backend=node.SEARCH, recall=node.RECALL, max_memory=node.MAX_MEMORY or None)


def cluster(cfg: CfgNode, features: torch.Tensor, camids: np.ndarray, search: Search,
            tracks: Tracks | None = None) -> Clustering:
    """Clusters as training does before its first step, timed, and at other values of eps."""
    node, eps = cfg.CAUREID.CLUSTER, eps_at(cfg, 0)
    if node.STANDARDIZE:
        features = standardize_by_camera(features, camids)
    counts: dict[str, Any] = {"k1": node.K1, "k2": node.K2}
    if node.CAMERA_AWARE:
        counts = {"k1_intra": node.K1_INTRA, "k1_inter": node.K1_INTER,
                  "k2_intra": node.K2_INTRA_FIRST, "k2_inter": node.K2_INTER_FIRST}

    options = {"small": True, "search": search, "tracks": tracks, **counts}
    if node.CAMERA_AWARE:
        options["camids"] = camids

    few = slice(None, None, max(1, len(features) // 64))  # the first call compiles the loops
    assign_pseudo_labels(features[few], eps=eps, min_samples=node.MIN_SAMPLES, **{
        **options, "tracks": None, **({"camids": camids[few]} if node.CAMERA_AWARE else {})})
    searched = start = time.perf_counter()

    def note(stage: str, done: int, total: int) -> None:
        nonlocal searched
        if stage == "neighbours":
            searched = time.perf_counter()

    gap = eps_gap(cfg)
    tighter, labels, looser = labels_at(
        features, eps_values=(eps - gap, eps, eps + gap), min_samples=node.MIN_SAMPLES,
        progress=note, **options)
    if gap:
        labels, _ = reliable_labels(labels, tighter=tighter, looser=looser)
    end = time.perf_counter()
    rows = sweep_eps(jaccard_encoding(features, **options), EPS_VALUES,
                     min_samples=node.MIN_SAMPLES, camids=camids, tracks=tracks)
    suggested = suggest_eps(rows) if any(row["clusters"] for row in rows) else None
    return Clustering(labels, searched - start, end - searched, rows, suggested)


def time_step(cfg: CfgNode, model: Any, items: list[Any], camids: np.ndarray,
              features: torch.Tensor, labels: np.ndarray) -> float:
    """Mean seconds of a training step on the sample: loading, network, losses, optimizer, bank."""
    if cfg.CAUREID.LABELS == "bank":
        labels = outliers_to_singletons(labels)
    teacher = model.teacher = build_teacher(cfg, model)
    bank = model.memory = build_memory_bank(cfg, torch.from_numpy(camids), model.device)
    bank.reset(features)
    bank.relabel(torch.from_numpy(labels))
    loader: Any = build_pseudo_label_loader(cfg, items, labels, max(cfg.SEED, 0),
                                            views=teacher is not None)
    trainer_type = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
    seconds: list[float] = []
    try:
        trainer = trainer_type(model, loader, *build_optimizer(cfg, model))
        with EventStorage(0), tqdm(total=STEPS, desc="steps", leave=False, disable=None) as bar:
            for number in range(STEPS + 1):
                trainer.iter = number
                start = time.perf_counter()
                trainer.run_step()
                bank.update(*model.pop_seen())
                if teacher is not None:
                    teacher.update(model)
                if model.device.type == "cuda":
                    torch.cuda.synchronize(model.device)
                seconds.append(time.perf_counter() - start)
                bar.update(number > 0)
                if number >= LEAST_STEPS and sum(seconds[1:]) > STEP_SECONDS:
                    break
    finally:
        loader.shutdown()
    return float(np.mean(seconds[1:]))  # the first one starts the loader's processes


def check_start(report: Report, data: Data, cfg: CfgNode) -> None:
    """Time, memory and first clustering, with the network that training starts from."""
    section = report.section("start", "The start of training")
    try:
        model = build_network(cfg, cfg.MODEL.WEIGHTS)
    except WRONG as error:
        section.lines.append("Left out: the network could not be built.")
        if isinstance(error, OSError):  # a missing file or no internet: nothing about the images
            report.advise("Time, memory and the first clustering are not known, because the "
                          "network's weights cannot be had (name a file by "
                          "MODEL.BACKBONE.PRETRAIN_PATH, or leave this part out by --no-network): "
                          f"{one_line(error)}")
        else:
            report.fail(f"The network cannot be built: {one_line(error)}")
        return
    rows = sample_rows(data.cameras, data.order, MOST_IMAGES)
    items = [(data.path(row), data.name(row)) for row in rows.tolist()]
    camids = np.unique(data.cameras[rows], return_inverse=True)[1]
    try:
        tracks = data.tracks and data.tracks.of_images(data.rows[rows])
        figures = measure(cfg, model, items, camids, len(data.paths), tracks)
    except WRONG as error:
        report.fail(f"The start of training failed: {one_line(error)}")
        return
    report.figures["start"] = figures
    if len(rows) < len(data.rows):
        section.lines.append(f"Measured on a sample of {share(len(rows), len(data.rows))} images, "
                             "in blocks that follow each other.")
    say_time(report, section, figures, cfg)
    say_clustering(report, section, figures, cfg)


def say_time(report: Report, section: Section, figures: dict[str, Any], cfg: CfgNode) -> None:
    images, cost = figures["images"], figures.get("cost")
    at_most = "at most " if figures["sampled"] < images else ""
    line = (f"Time (estimates, one process on {figures['device']}): features of an image "
            f"{duration(figures['seconds_per_image'])}")
    if cost:
        line += (
            f", a step of {cfg.SOLVER.IMS_PER_BATCH} images "
            f"{duration(figures['seconds_per_step'])}, clustering {images} images "
            f"{at_most}{duration(cost['clustering'])}. An epoch of {cost['iterations']} steps "
            f"takes about {duration(cost['epoch'])}, all {cfg.SOLVER.MAX_EPOCH} (SOLVER.MAX_EPOCH) "
            f"{duration(cost['total'])}, evaluation left out")
        if cost["total"] > LONG:
            report.advise(f"Training takes about {duration(cost['total'])} on "
                          f"{figures['device']}. A GPU, a smaller MODEL.BACKBONE or INPUT."
                          "SIZE_TRAIN, or fewer epochs (SOLVER.MAX_EPOCH, SOLVER.ITERS_PER_EPOCH) "
                          "make it shorter.")
    section.lines.append(f"{line}.")
    needed, free = figures["memory_gib"], figures["memory_free_gib"]
    allowed = "allowed by CAUREID.CLUSTER.MAX_MEMORY" if cfg.CAUREID.CLUSTER.MAX_MEMORY else "free"
    section.lines.append(f"Memory: clustering {images} images needs about {needed:.1f} GiB beyond "
                         f"the features, {free:.1f} are {allowed}.")
    if needed > free:
        keys = ("CAUREID.CLUSTER.K1_INTRA and K1_INTER" if cfg.CAUREID.CLUSTER.CAMERA_AWARE
                else "CAUREID.CLUSTER.K1")
        report.fail(f"Clustering needs about {needed:.1f} GiB, {free:.1f} are {allowed}: lower "
                    f"{keys}, take fewer images, or free memory.")


def centres_at(rows: list[Any], eps: float) -> int:
    """Camera centres at the value that is nearest to an eps."""
    return min(rows, key=lambda row: abs(row["eps"] - eps))["centres"]


def say_clustering(report: Report, section: Section, figures: dict[str, Any], cfg: CfgNode) -> None:
    eps, suggested = eps_at(cfg, 0), figures["eps"]
    key = f"CAUREID.CLUSTER.{eps_key(cfg, 0)}"
    section.lines.append(f"First clustering, {key} {eps:g}: {figures['clusters']} "
                         "clusters. No fault by themselves, but worth a look:")
    for name, value in figures["indicators"].items():
        if name == "cross_camera" and len(report.figures["cameras"]) == 1:
            continue
        shown = f"{value:.2f}" if name == "silhouette" else f"{100 * value:.1f} %"
        section.lines.append(f"- {shown} {MEANINGS[name]}")
    if figures["problem"]:  # says itself how to change the value
        report.fail(f"The first clustering leaves nothing to train on: {figures['problem']}")
    elif suggested is not None:
        say_eps(report, section, figures["eps_sweep"], eps, suggested, key)


def say_eps(report: Report, section: Section, rows: list[Any], eps: float, suggested: float,
            key: str) -> None:
    line = f"Suggested by the camera centres at {len(rows)} values: {key} "
    here, best = (centres_at(rows, value) for value in (eps, suggested))
    if suggested == eps:
        section.lines.append(f"{line}{suggested:g}, as configured.")
    elif 2 * here >= best:
        section.lines.append(
            f"{line}{suggested:g}. The configured {eps:g} is no worse a start ({here} camera "
            f"centres, {best} at {suggested:g}): leave it as it is, unless training ends with "
            "many outliers. caureid eps shows more.")
    else:
        section.lines.append(f"{line}{suggested:g} (configured: {eps:g}), see the advice.")
        report.advise(f"{key} {eps:g} finds less than half of the camera centres "
                      f"that {suggested:g} finds ({here} of {best}): look at caureid eps "
                      "before a long run.")
