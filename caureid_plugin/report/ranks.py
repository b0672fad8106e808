"""Rank lists of the report: what is found for some queries, with labels where a test set has them.

Letters: Q queries, G gallery images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from ..common.text import printable
from ..runs.run import Missing, Run, find_test_set
from .draw import picture
from .network import embed, one_by_camera

LISTS = 8  # queries shown
RANKS = 10  # images shown for each
QUERIES = 200  # of which LISTS are chosen
GALLERY = 20000


def rank_lists(model: torch.nn.Module, run: Run, seed: int) -> dict[str, Any]:
    """Rank lists of labelled test images; without these, of training images.

    Raises:
        Missing: they cannot be made.
    """
    name, query, gallery, names = find_test_set(run.cfg)
    if not name:
        return unlabelled_lists(run, seed)
    rng = np.random.default_rng([seed, 3])
    query = [query[i] for i in np.sort(rng.permutation(len(query))[:QUERIES])]
    gallery, total = thin_out(gallery, {pid for _, pid, _ in query}, rng)
    features = embed(model, run.cfg, [path for path, _, _ in query + gallery])
    distances = measure(features[:len(query)], features[len(query):], run.cfg.TEST.METRIC)
    pids, cameras = (np.array([item[i] for item in gallery]) for i in (1, 2))
    lists = [rank(distances[i], pids == pid, cameras == camera)
             for i, (_, pid, camera) in enumerate(query)]
    judged = [(precision, i, order, right) for i, (precision, order, right) in enumerate(lists)
              if precision is not None]
    if not judged:
        raise Missing(f"None of {len(query)} queries of {name} has an image of its identity from "
                      "another camera in the gallery: there is no right answer to look for.")
    judged.sort(key=lambda found: (-found[0], found[1]))
    places = np.unique(np.linspace(0, len(judged) - 1, min(LISTS, len(judged))).round().astype(int))
    mean = 100 * np.mean([precision for precision, *_ in judged])
    return {
        "labelled": True, "name": name, "queries": len(query), "gallery": len(gallery),
        "gallery_total": total, "left_out": len(query) - len(judged), "mean": f"{mean:.1f} %",
        "more": bool(run.cfg.TEST.RERANK.ENABLED or run.cfg.TEST.AQE.ENABLED),
        "lists": [_hits(query[i], gallery, order, right, names, "average precision "
                         f"{100 * precision:.0f} %")
                  for precision, i, order, right in (judged[place] for place in places)]}


def _hits(asked: tuple[Any, ...], gallery: list[Any], order: np.ndarray, right: np.ndarray,
          names: list[str], title: str) -> dict[str, Any]:
    def draw(path: str, _identity: int, camera: int) -> dict[str, Any]:
        return picture(path, names[camera] if names else str(camera))

    found = [{**draw(*gallery[i]), "right": bool(is_right)}
             for i, is_right in zip(order[:RANKS], right[:RANKS], strict=True)]
    return {"title": title, "query": draw(*asked), "found": found}


def thin_out(gallery: list[Any], asked: set[Any], rng: np.random.Generator
             ) -> tuple[list[Any], int]:
    """At most GALLERY images, all of the identities that are asked for among them; the total."""
    total = len(gallery)
    if total <= GALLERY:
        return gallery, total
    needed = [i for i, (_, pid, _) in enumerate(gallery) if pid in asked]
    others = [i for i, (_, pid, _) in enumerate(gallery) if pid not in asked]
    more = rng.permutation(others)[:max(0, GALLERY - len(needed))].tolist()
    return [gallery[i] for i in sorted(needed + more)], total


def measure(query: torch.Tensor, gallery: torch.Tensor, metric: str) -> np.ndarray:
    """Distances (Q, G) by TEST.METRIC, without re-ranking and query expansion."""
    if metric == "cosine":
        return (1.0 - normalize(query, dim=1) @ normalize(gallery, dim=1).T).numpy()
    return torch.cdist(query, gallery).numpy()


def rank(distances: np.ndarray, same_identity: np.ndarray, same_camera: np.ndarray
         ) -> tuple[float | None, np.ndarray, np.ndarray]:
    """Average precision, gallery places from the nearest on, and which of these are right.

    Gallery images of the query's identity and camera are left out, as the toolbox does; without
    any other of its identity there is no precision.

    Args:
        distances, same_identity, same_camera: (G,), of the gallery images to the query.
    """
    order = np.argsort(distances, kind="stable")
    order = order[~(same_identity & same_camera)[order]]
    right = same_identity[order]
    hits = np.flatnonzero(right)
    precision = float((np.arange(1, len(hits) + 1) / (hits + 1)).mean()) if len(hits) else None
    return precision, order, right


def unlabelled_lists(run: Run, seed: int) -> dict[str, Any]:
    """Training images as queries among images of other cameras, by the memory bank's features."""
    one_camera = len(run.names) < 2
    lists = []
    for index in one_by_camera(run.camids, LISTS, seed):
        distances = 1.0 - run.features @ normalize(run.features[index], dim=0)
        others = np.flatnonzero(run.camids != run.camids[index])
        if one_camera:
            others = np.delete(np.arange(len(run.paths)), index)
        nearest = others[np.argsort(distances.numpy()[others], kind="stable")][:RANKS]
        lists.append({"title": "", "query": picture(run.paths[index], run.camera(index)),
                      "found": [picture(run.paths[i], run.camera(i)) for i in nearest]})
    if not lists or not lists[0]["found"]:
        raise Missing("There are no other images to rank.")
    return {"labelled": False, "one_camera": one_camera, "lists": lists,
            "tests": printable(", ".join(run.cfg.DATASETS.TESTS))}
