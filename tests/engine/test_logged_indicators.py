"""What the hook says at the start, of each clustering and at the end, without any identity."""

import json

import numpy as np
import pytest
from caureid_plugin import clustering
from caureid_plugin.engine import UnsupervisedHook
from caureid_plugin.engine.verdict import JUDGED, judge
from sklearn.metrics import adjusted_rand_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.metrics import read_rows


def _alone(labels):
    """Outliers as clusters of their own, in a loop."""
    labels = labels.copy()
    for row in np.flatnonzero(labels < 0):
        labels[row] = labels.max() + 1
    return labels


def test_indicators_of_each_clustering_are_in_metrics_json(start, clusterings, tmp_path):
    start("CAUREID.LABELS", "extract", "SOLVER.MAX_EPOCH", 3).train()
    rows = [row for row in read_rows(tmp_path / "out") if "labels/clusters" in row]
    assert len(rows) == len(clusterings) == 3
    before = None
    for row, (features, _, labels) in zip(rows, clusterings, strict=True):
        assert row["labels/outlier_share"] == pytest.approx((labels < 0).mean())
        assert row["labels/largest_share"] == pytest.approx(np.bincount(labels + 1)[1:].max() / 48)
        assert row["labels/silhouette"] == pytest.approx(
            clustering.silhouette(features, labels), abs=1e-6)
        assert ("labels/stability" in row) == (before is not None)
        if before is not None:
            assert row["labels/stability"] == pytest.approx(
                adjusted_rand_score(_alone(before), _alone(labels)))
        before = labels


def test_tensorboard_has_every_figure_of_metrics_json(start, tmp_path):
    start("TEST.EVAL_PERIOD", 1).train()
    events = EventAccumulator(str(tmp_path / "out"))
    events.Reload()
    shown = {(name, event.step): event.value
             for name in events.Tags()["scalars"] for event in events.Scalars(name)}
    lines = (tmp_path / "out/metrics.json").read_text().splitlines()
    written = {(name, row["iteration"]): value for row in map(json.loads, lines)
               for name, value in row.items() if name != "iteration"}
    assert {("mAP", 2), ("mAP", 5), ("loss_cacc", 5), ("labels/silhouette", 3)} <= written.keys()
    assert shown == pytest.approx(written, rel=1e-6, nan_ok=True)  # TensorBoard keeps float32


def test_a_finished_run_ends_with_its_verdict(start, messages, tmp_path):
    trainer = start("SOLVER.MAX_EPOCH", 3)
    trainer.train()
    assert sum("48 training images of 2 cameras, 24 each" in text for text in messages) == 1
    rows = read_rows(tmp_path / "out")
    figures = {name: [row[f"labels/{name}"] for row in rows if f"labels/{name}" in row]
               for name in (*JUDGED, "largest_share")}
    figures["mAP"] = [row["mAP"] for row in rows if "mAP" in row]
    verdict = judge(figures, trainer.cfg, num_cameras=2)
    assert len(verdict.findings) == len(JUDGED) + 1 == 6
    assert messages[-7:] == [
        *(f"{f.name} {f.figure}: {f.meaning}" for f in verdict.findings),
        " ".join([verdict.summary, verdict.note, *verdict.advice])]


def test_a_run_that_fails_has_no_verdict(start, messages):
    trainer = start()
    trainer.model.forward = lambda batch: (_ for _ in ()).throw(RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="broken"):
        trainer.train()
    assert not any("indicators training went" in text for text in messages)


def test_one_camera_is_not_held_against_a_run(start, messages):
    """No cluster can span cameras there."""
    trainer = start("MODEL.LOSSES.NAME", ("InfoNCELoss",), "MODEL.HEADS.CAMSEP.NUM_CAMERAS", 0,
                    "MODEL.HEADS.CAMSEP.ATTENTION", "none", hook=False)
    images = trainer.data_loader.dataset
    images.img_items = [(path, identity, "only") for path, identity, _ in images.img_items]
    trainer.register_hooks([UnsupervisedHook(trainer.cfg)])
    trainer.train()
    assert any(text.startswith("silhouette ") for text in messages)
    assert not any(text.startswith("cross_camera ") for text in messages)
    assert any("48 training images of one camera (only)" in text for text in messages)
