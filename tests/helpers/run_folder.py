"""The folder of a run that ``caureid report`` can show, in no time: nothing is trained."""

import json

import numpy as np
import torch
from caureid_plugin.data import UnlabelledImages, training_images
from caureid_plugin.report import network as report_network
from caureid_plugin.report import page as report
from fastreid.modeling import build_model
from torch.nn.functional import normalize

# 48 images: three clusters, one of a single image, which is an outlier, and six other outliers
LABELS = np.array([0] * 12 + [1] * 15 + [2] * 2 + [3] + [-1] * 6 + [0] * 12)
ROWS = [
    {"iteration": 0, "labels/clusters": 5, "labels/outliers": 9, "labels/cross_camera": 0.5,
     "labels/outlier_share": 0.1875, "labels/largest_share": 0.25, "labels/silhouette": 0.25,
     "start/mAP": 20.0, "start/Rank-1": 40.0},
    {"iteration": 2, "loss_infonce": 3.0, "loss_cacc": 2.0, "loss_camsep": 0.5},
    {"iteration": 3, "labels/clusters": 8, "labels/outliers": 3, "labels/cross_camera": 1.0,
     "labels/outlier_share": 0.0625, "labels/largest_share": 0.125, "labels/silhouette": 0.5,
     "labels/stability": 0.75},
    {"iteration": 5, "loss_infonce": 1.0, "loss_cacc": 1.5, "loss_camsep": 0.25, "mAP": 55.0,
     "Rank-1": 70.0},
]
"""Of metrics.json, after two epochs of three steps."""


def write_run(folder, cfg):
    """Writes what training leaves, of a network with random weights, into a new folder; gives it.

    ``cfg``: a config of 48 training images, which are there. The memory bank has LABELS.
    """
    folder.mkdir()
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    images = UnlabelledImages(training_images(cfg), None)
    features = torch.randn(len(LABELS), 16, generator=torch.Generator().manual_seed(5))
    features[torch.from_numpy(LABELS) == 1] += 2.0
    with torch.random.fork_rng():
        torch.manual_seed(3)
        weights = build_model(cfg).state_dict()
    torch.save({
        "model": weights, "epoch": 1, "run_state": {"steps_done": 0, "iters_per_epoch": 3},
        "memory_bank": {"features": normalize(features, dim=1), "labels": torch.from_numpy(LABELS),
                        "camids": torch.from_numpy(images.camids)}}, folder / "model_final.pth")
    (folder / "last_checkpoint").write_text("model_final.pth")
    return folder


def change_checkpoint(folder, **changes):
    """Replaces entries of the run's checkpoint."""
    content = torch.load(folder / "model_final.pth", weights_only=True)
    torch.save({**content, **changes}, folder / "model_final.pth")


def draw_nothing(monkeypatch):
    """A report that is made from now on has no t-SNE, curves and maps: they take the most time."""
    monkeypatch.setattr(report, "chart_svg", lambda chart, number: "")
    monkeypatch.setattr(report_network, "flatten", lambda features, seed: None)
    monkeypatch.setattr(report_network, "scatter", lambda *points: "data:,")
