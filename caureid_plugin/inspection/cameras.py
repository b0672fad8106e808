"""Cameras that are small, and pairs of cameras that look like one.

Two cameras are told apart by logistic regression on thumbnails of 8 x 4 pixels: background, light
and colour cast, which a camera does not share with another, show in them. The score is the area
under the ROC curve (AUC, 0.5: by chance) on images that were held out, in blocks of the order of
the paths, so that one person's images are not on both sides.

Measured with at most 200 images of each camera (Market-1501: 3,473 images of 200 people; halves of
one camera 20 times for each of the 6):

============================================  ==================  ==================
pairs                                         Market-1501         SyntheticCameras
============================================  ==================  ==================
true cameras, least of 15 (median)            0.78 (0.90)         1.00 (1.00)
one camera, images split at random, 95 %      0.56 (most: 0.61)   0.58 (most: 0.65)
one camera, people split in two, 95 %         0.60 (most: 0.66)   0.63 (most: 0.73)
============================================  ==================  ==================

With 100 images each the least of the true pairs is 0.71, with 80 it is 0.68 and with 40 it is 0.60:
such pairs cannot be told from one camera any more, so that cameras below 100 images are not judged.
Recordings of one camera at different hours (Market-1501's sequences) reach 0.37 to 0.80: most, not
all, look like one camera.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from fastreid.config import CfgNode

ALIKE_BELOW = 0.68  # AUC, between the figures above
LEAST_IMAGES = 100  # of a camera that is judged, see above
MOST_IMAGES = 200  # of a camera that are looked at
MOST_PAIRS = 30 * 29 // 2  # all of 30 cameras; half a minute
FOLDS = 5


class CameraPairs(NamedTuple):
    """Pairs of cameras that were compared.

    ``pairs``: (camera, camera, AUC), the least different first; ``alike``: the first of them,
    those below ALIKE_BELOW; ``left_out``: pairs of judged cameras that were not compared;
    ``too_small``: cameras that are not judged.
    """

    pairs: list[tuple[int, int, float]]
    alike: list[tuple[int, int, float]]
    left_out: int
    too_small: list[int]


def short_names(names: Sequence[str]) -> tuple[list[str], str]:
    """Names of cameras as the user knows them: without the dataset's name, which stands before.

    Args:
        names: of the cameras, at least one. Names of several datasets stay whole.

    Returns:
        the names, and what was taken off; "" for CameraFolder, since who named the cameras has
        never seen its prefix.

    Example:
        ``["market1501_0", "market1501_1"]`` gives ``(["0", "1"], "market1501_")``,
        ``["camerafolder_gate_1", "camerafolder_gate_2"]`` gives ``(["gate_1", "gate_2"], "")``.
    """
    prefix = names[0].partition("_")[0] + "_"
    if not all(name.startswith(prefix) and name != prefix for name in names):
        return list(names), ""
    return [name.removeprefix(prefix) for name in names], prefix * (prefix != "camerafolder_")


def least_images(cfg: CfgNode) -> int:
    """Images that a camera must have to fill an image's list within it; 0 where there is none.

    With CAUREID.CLUSTER.CAMERA_AWARE an image has K1_INTRA neighbours in its camera, beside
    itself.
    """
    node = cfg.CAUREID.CLUSTER
    return int(node.K1_INTRA) + 1 if node.CAMERA_AWARE else 0


def small_cameras(camids: np.ndarray, batch_size: int, least: int = 0) -> list[int]:
    """Cameras that can hardly be learnt, by a rule of thumb.

    A camera is small if the average batch has less than one image of it (fewer than N / batch size
    images), so that most steps say nothing about it, or if it has fewer than ``least`` images.

    Args:
        camids: (N,) cameras, numbered from 0.
        batch_size: SOLVER.IMS_PER_BATCH.
        least: images, see :func:`least_images`.
    """
    counts = np.bincount(camids)
    return np.flatnonzero((counts * batch_size < len(camids)) | (counts < least)).tolist()


def summarize_cameras(camids: np.ndarray, names: Sequence[str], *, batch_size: int,
                      least: int = 0) -> list[str]:
    """Lines for the log at the start of training: one of figures, then one for each warning.

    Args:
        camids: (N,) cameras, numbered from 0 in the order of ``names``.
        names: C names of cameras.
        batch_size, least: as in :func:`small_cameras`.
    """
    counts = np.bincount(camids, minlength=len(names))
    if len(names) == 1:
        return [f"{len(camids)} training images of one camera ({names[0]})"]
    few, many = int(counts.argmin()), int(counts.argmax())
    sizes = f"{counts[few]} each"
    if counts[few] < counts[many]:
        sizes = (f"the smallest {names[few]} with {counts[few]}, the largest {names[many]} with "
                 f"{counts[many]}")
    lines = [f"{len(camids)} training images of {len(names)} cameras, {sizes}"]
    if small := small_cameras(camids, batch_size, least):
        listed = ", ".join(f"{names[i]} ({counts[i]})" for i in small[:5])
        more = f" and {len(small) - 5} more" if len(small) > 5 else ""
        lines.append(f"Cameras with so few images that they can hardly be learnt: {listed}{more}. "
                     "Add images, or leave them out; caureid check says more.")
    return lines


def compare_cameras(thumbnails: np.ndarray, camids: np.ndarray, order: np.ndarray, *,
                    progress: Callable[[int, int], object] = lambda done, total: None
                    ) -> CameraPairs:
    """How well each pair of cameras can be told apart by their thumbnails.

    With more than MOST_PAIRS pairs only those are compared whose mean thumbnails are nearest: a
    pair that looks like one camera has the same mean.

    Args:
        thumbnails: (N, T), any real dtype.
        camids: (N,) cameras, numbered from 0.
        order: (N,) rows in the order of the paths.
        progress: called with the pairs done and their number.
    """
    rows = [order[camids[order] == camera] for camera in range(int(camids.max()) + 1)]
    judged = [camera for camera, found in enumerate(rows) if len(found) >= LEAST_IMAGES]
    means = {camera: thumbnails[rows[camera]].mean(axis=0) for camera in judged}
    candidates = sorted(
        itertools.combinations(judged, 2),
        key=lambda pair: float(np.square(means[pair[0]] - means[pair[1]]).sum()))
    pairs = []
    for a, b in candidates[:MOST_PAIRS]:
        pairs.append((a, b, camera_auc(thumbnails[rows[a]], thumbnails[rows[b]])))
        progress(len(pairs), min(len(candidates), MOST_PAIRS))
    pairs.sort(key=lambda pair: pair[2])
    return CameraPairs(pairs, [pair for pair in pairs if pair[2] < ALIKE_BELOW],
                       max(0, len(candidates) - MOST_PAIRS),
                       [camera for camera, found in enumerate(rows) if len(found) < LEAST_IMAGES])


def camera_auc(first: np.ndarray, second: np.ndarray) -> float:
    """Mean AUC over FOLDS held-out blocks of logistic regression between two cameras.

    Of each camera the same number of images takes part, at most MOST_IMAGES, at even distances.

    Args:
        first, second: (A, T) and (B, T) thumbnails in the order of the paths, at least FOLDS each.
    """
    # slow to import, and training needs only the summary of this module
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n = min(len(first), len(second), MOST_IMAGES)
    points = np.concatenate([_evenly(first, n), _evenly(second, n)]).astype(np.float64)
    camera = np.repeat([0, 1], n)
    block = np.tile(np.arange(n) * FOLDS // n, 2)
    scores = []
    for held_out in range(FOLDS):
        test = block == held_out
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
        model.fit(points[~test], camera[~test])
        scores.append(roc_auc_score(camera[test], model.decision_function(points[test])))
    return float(np.mean(scores))


def _evenly(rows: np.ndarray, n: int) -> np.ndarray:
    return rows[np.linspace(0, len(rows) - 1, n).round().astype(np.int64)]
