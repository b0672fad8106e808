"""Contact sheets of the report: clusters and outliers, chosen without identities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from ..clustering import silhouettes
from ..runs.run import Missing, Run
from .draw import picture

STRIPS = 6  # clusters of each kind
CROPS = 10  # images of a cluster
OUTLIERS = 8
NEIGHBOURS = 4  # images of the cluster beside an outlier


def crop(run: Run, index: int) -> dict[str, Any]:
    """A training image for the page."""
    return picture(run.paths[index], run.camera(index))


def spread(camids: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Places of at most ``count`` images, drawn from each camera in turn, in the cameras' order."""
    order = rng.permutation(len(camids))
    turns = np.empty(len(camids), int)  # how many of its camera were drawn before
    for camera in np.unique(camids):
        members = order[camids[order] == camera]
        turns[members] = np.arange(len(members))
    chosen = order[np.argsort(turns[order], kind="stable")][:count]
    return chosen[np.argsort(camids[chosen], kind="stable")]


def cluster_silhouettes(features: torch.Tensor, labels: np.ndarray) -> np.ndarray:
    """Mean simplified silhouette of each cluster (K,).

    Args:
        features: (N, D), L2-normalised.
        labels: (N,) clusters 0..K-1 with K >= 2, -1 for outliers.
    """
    rows = np.flatnonzero(labels >= 0)
    found = silhouettes(features, labels, rows).numpy()
    return np.bincount(labels[rows], weights=found) / np.bincount(labels[rows])


def strip(run: Run, cluster: int, seed: int, note: str = "") -> dict[str, Any]:
    """A cluster for the page."""
    members = np.flatnonzero(run.labels == cluster)
    camids = run.camids[members]
    chosen = spread(camids, CROPS, np.random.default_rng([seed, cluster]))
    cameras = len(np.unique(camids))
    return {"title": f"Cluster {cluster + 1}: {len(members)} images, {cameras} camera"
                     f"{'s' if cameras > 1 else ''}{note}",
            "crops": [crop(run, index) for index in members[chosen]]}


def sheets(run: Run, seed: int) -> list[dict[str, Any]]:
    """The sheets of clusters: the largest, the most cross-camera, the most doubtful ones.

    Raises:
        Missing: there is no cluster; an image cannot be read.
    """
    clusters = int(run.labels.max(initial=-1)) + 1
    if not clusters:
        raise Missing("There are no clusters yet: every image is an outlier.")
    sizes = np.bincount(run.labels[run.labels >= 0])
    largest = np.argsort(-sizes, kind="stable")[:STRIPS]
    return [
        {"title": "Largest clusters", "intro": "Should each show one person or vehicle; several "
         "mixed in a large one mean that CAUREID.CLUSTER.EPS is too high.", "why": "",
         "strips": [strip(run, cluster, seed) for cluster in largest]},
        _cross_camera(run, sizes, largest, seed), _doubtful(run, clusters, seed)]


def _cross_camera(run: Run, sizes: np.ndarray, shown: np.ndarray, seed: int) -> dict[str, Any]:
    """Clusters of the most cameras, the larger ones first; those that are shown are left out."""
    sheet: dict[str, Any] = {
        "title": "Clusters that span the most cameras", "intro": "From these the network "
        "learns to recognise someone in another camera. Those above are left out.",
        "why": "", "strips": []}
    pairs = np.unique(np.stack((run.labels, run.camids))[:, run.labels >= 0], axis=1)
    cameras = np.bincount(pairs[0], minlength=len(sizes))
    order = [c for c in np.lexsort((-sizes, -cameras)) if cameras[c] > 1]
    left = [cluster for cluster in order if cluster not in shown][:STRIPS]
    if len(run.names) < 2:
        sheet["why"] = "All training images come from one camera."
    elif not order:
        sheet["why"] = "No cluster spans two cameras."
    elif not left:
        sheet["why"] = "All clusters that span cameras are shown above."
    sheet["strips"] = [strip(run, cluster, seed) for cluster in left]
    return sheet


def _doubtful(run: Run, clusters: int, seed: int) -> dict[str, Any]:
    sheet: dict[str, Any] = {
        "title": "Most doubtful clusters", "intro": "The lowest silhouettes: -1 means that "
        "another cluster is nearer, 1 that the cluster is tight and far from all others. "
        "Look for several people in one.", "why": "", "strips": []}
    if clusters < 2:
        sheet["why"] = "There is only one cluster, and doubt is measured between clusters."
        return sheet
    values = cluster_silhouettes(run.features, run.labels)
    sheet["strips"] = [strip(run, cluster, seed, f", silhouette {values[cluster]:.2f}")
                       for cluster in np.argsort(values, kind="stable")[:STRIPS]]
    return sheet


def outliers(run: Run, seed: int) -> dict[str, Any]:
    """A sample of the outliers, each with the nearest cluster.

    Raises:
        Missing: there is no outlier; an image cannot be read.
    """
    rows = np.flatnonzero(run.labels < 0)
    if not len(rows):
        raise Missing("There are no outliers: every image is in a cluster.")
    rng = np.random.default_rng([seed, 0])
    chosen = np.sort(rng.choice(rows, min(OUTLIERS, len(rows)), replace=False))
    nearest, distances = nearest_clusters(run, chosen)
    pairs = []
    for index, cluster, distance in zip(chosen, nearest, distances, strict=True):
        members = np.flatnonzero(run.labels == cluster)
        picked = members[spread(run.camids[members], NEIGHBOURS, rng)]
        pairs.append({"outlier": crop(run, index), "crops": [crop(run, i) for i in picked],
                      "title": f"nearest: cluster {cluster + 1}, cosine distance {distance:.2f}"
                      if len(members) else "there is no cluster"})
    return {"pairs": pairs, "count": len(rows), "total": len(run.labels)}


def nearest_clusters(run: Run, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cluster whose mean is nearest to each image, and its cosine distance; -2 without any."""
    clusters = int(run.labels.max(initial=-1)) + 1
    if not clusters:
        return np.full(len(rows), -2), np.ones(len(rows))
    inlier = torch.from_numpy(np.flatnonzero(run.labels >= 0))
    sums = torch.zeros(clusters, run.features.shape[1])
    sums.index_add_(0, torch.from_numpy(run.labels)[inlier], run.features[inlier])
    far = 1.0 - run.features[torch.from_numpy(rows)] @ normalize(sums, dim=1).T
    distances, nearest = far.min(dim=1)
    return nearest.numpy(), distances.numpy()
