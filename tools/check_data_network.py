"""The part of tools/check_data.py that needs a network: time, memory, and the first clustering."""

import time
from dataclasses import asdict
from typing import NamedTuple

import caureid_plugin  # first: it makes the toolbox importable
import numpy as np
import torch
from caureid_plugin import CAUReID, MemoryBank
from caureid_plugin.clustering import (
    Search,
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
from caureid_plugin.data import build_extraction_loader, build_pseudo_label_loader
from caureid_plugin.engine.checks import eps_at, eps_gap, why_not_to_train
from caureid_plugin.inspection import clustering_seconds, neighbor_memory, training_cost
from fastreid.engine.train_loop import AMPTrainer, SimpleTrainer
from fastreid.solver import build_optimizer
from fastreid.utils.events import EventStorage
from torch.nn.functional import normalize
from tqdm import tqdm

MOST_IMAGES = 5000  # that pass the network
EPS_VALUES = [round(0.3 + 0.025 * i, 3) for i in range(19)]  # as tools/choose_eps.py
# training steps that are timed: so many, or fewer once they have taken so many seconds
STEPS, LEAST_STEPS, STEP_SECONDS = 10, 3, 10.0


class Clustering(NamedTuple):
    """The clustering that training starts with: labels (n,), seconds of the search and of the
    rest, rows of :func:`sweep_eps` and the eps that they suggest (None: no cluster at any)."""

    labels: np.ndarray
    search: float
    rest: float
    rows: list
    suggested: float | None


def measure(cfg, model, items: list, camids: np.ndarray, images: int) -> dict:
    """Figures of a sample, and what they make of all images.

    Args:
        cfg: of the training.
        model: that training starts with; changed by the steps that are timed.
        items: (path, camera) of the sample.
        camids: (n,) cameras of the sample.
        images: N, of the training set.
    """
    loader = build_extraction_loader(cfg, items)
    start = time.perf_counter()
    features = normalize(caureid_plugin.extract_features(model, loader), dim=1).to(model.device)
    image = (time.perf_counter() - start) / len(items)
    search = make_search(cfg)
    needed, free = neighbor_memory(cfg, images, features.shape[1], search, model.device)
    figures = {"device": str(model.device), "sampled": len(items), "images": images,
               "seconds_per_image": image, "memory_gib": needed, "memory_free_gib": free}
    found = cluster(cfg, features, camids, search)
    figures["indicators"] = label_indicators(found.labels, camids, features)
    figures["clusters"] = int(found.labels.max(initial=-1)) + 1
    figures["eps"], figures["eps_sweep"] = found.suggested, found.rows
    figures["problem"] = why_not_to_train(cfg, features, found.labels, camids, epoch=0)
    if figures["problem"] is None and isinstance(model, CAUReID):
        figures["seconds_per_step"] = step = time_step(cfg, model, items, camids, features,
                                                       found.labels)
        clustering = clustering_seconds(found.search, found.rest, len(items), images,
                                        search.resolve(images, model.device))
        figures["cost"] = asdict(
            training_cost(cfg, images, step=step, image=image, clustering=clustering))
    return figures


def make_search(cfg) -> Search:
    """How training searches neighbours, in one process."""
    node = cfg.CAUREID.CLUSTER
    return Search(backend=node.SEARCH, recall=node.RECALL, max_memory=node.MAX_MEMORY or None)


def cluster(cfg, features: torch.Tensor, camids: np.ndarray, search: Search) -> Clustering:
    """Clusters as training does before its first step, timed, and at other values of eps."""
    node, eps = cfg.CAUREID.CLUSTER, eps_at(cfg, 0)
    if node.STANDARDIZE:
        features = standardize_by_camera(features, camids)
    counts = {"k1": node.K1, "k2": node.K2}
    if node.CAMERA_AWARE:
        counts = {"k1_intra": node.K1_INTRA, "k1_inter": node.K1_INTER,
                  "k2_intra": node.K2_INTRA_FIRST, "k2_inter": node.K2_INTER_FIRST}

    def options(rows: slice) -> dict:
        cameras = {"camids": camids[rows]} if node.CAMERA_AWARE else {}
        return {"small": True, "search": search, **counts, **cameras}

    few = slice(None, None, max(1, len(features) // 64))  # the first call compiles the loops
    assign_pseudo_labels(features[few], eps=eps, min_samples=node.MIN_SAMPLES,
                         **options(few))
    searched = start = time.perf_counter()

    def note(stage: str, done: int, total: int) -> None:
        nonlocal searched
        if stage == "neighbours":
            searched = time.perf_counter()

    gap = eps_gap(cfg)
    tighter, labels, looser = labels_at(
        features, eps_values=(eps - gap, eps, eps + gap), min_samples=node.MIN_SAMPLES,
        progress=note, **options(slice(None)))
    if gap:
        labels, _ = reliable_labels(labels, tighter=tighter, looser=looser)
    end = time.perf_counter()
    rows = sweep_eps(jaccard_encoding(features, **options(slice(None))), EPS_VALUES,
                     min_samples=node.MIN_SAMPLES, camids=camids)
    suggested = suggest_eps(rows) if any(row["clusters"] for row in rows) else None
    return Clustering(labels, searched - start, end - searched, rows, suggested)


def time_step(cfg, model, items: list, camids: np.ndarray, features: torch.Tensor,
              labels: np.ndarray) -> float:
    """Mean seconds of a training step on the sample: loading, network, losses, optimizer, bank."""
    if cfg.CAUREID.LABELS == "bank":
        labels = outliers_to_singletons(labels)
    bank = model.memory = MemoryBank(torch.from_numpy(camids), features.shape[1],
                                     momentum=cfg.CAUREID.MEMORY.MOMENTUM, device=model.device)
    bank.reset(features)
    bank.relabel(torch.from_numpy(labels))
    loader = build_pseudo_label_loader(cfg, items, labels, max(cfg.SEED, 0))
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
                if model.device.type == "cuda":
                    torch.cuda.synchronize(model.device)
                seconds.append(time.perf_counter() - start)
                bar.update(number > 0)
                if number >= LEAST_STEPS and sum(seconds[1:]) > STEP_SECONDS:
                    break
    finally:
        loader.shutdown()
    return float(np.mean(seconds[1:]))  # the first one starts the loader's processes
