"""Data, options and networks with little or nothing to learn from: each trains or says why not.

The cases of the table go through the toolbox's DefaultTrainer with the plugin's hook, over two
epochs of two steps, on images that are made for them.
"""

import contextlib
import dataclasses
import logging
import re
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest
import torch
from caureid_plugin import clustering, compat
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset
from fastreid.engine.train_loop import HookBase
from PIL import Image
from torch import nn

from helpers import warm

PLAIN = ("MODEL.LOSSES.NAME", ("InfoNCELoss", "CACCLoss"), "MODEL.HEADS.CAMSEP.NUM_CAMERAS", 0,
         "SOLVER.ITERS_PER_EPOCH", 2, "DATASETS.TESTS", (), "DATASETS.NAMES", ("MadeForTheCase",))
NAN = float("nan")
AWARE = ("CAUREID.CLUSTER.CAMERA_AWARE", True, "CAUREID.CLUSTER.K1_INTRA", 3,
         "CAUREID.CLUSTER.K1_INTER", 6, "CAUREID.CLUSTER.EPS", 0.5)
BANK, EXTRACT = ("CAUREID.LABELS", "bank"), ("CAUREID.LABELS", "extract")
ONE_CAMERA = ("DATALOADER.CAMERAS", "one")


# ------------------------------------------------------------------------------- images ----


@DATASET_REGISTRY.register()
class MadeForTheCase(ImageDataset):
    items: ClassVar[list] = []

    def __init__(self, root="", **kwargs):
        super().__init__(list(self.items), [], [], **kwargs)


def people(identities=8, cameras=2, images=3):
    """(identity, camera) of every image."""
    return [(who, camera) for who in range(identities) for camera in range(cameras)
            for _ in range(images)]


def copies(count):
    """As many images, all the same."""
    return [(None, number % 2) for number in range(count)]


def write_images(folder, pairs):
    """One image for each (identity, camera): the identity's colours under the camera's tint.

    Those of identity None are all the same.
    """
    rng = np.random.default_rng(0)
    colours = rng.uniform(20, 235, size=(100, 2, 3))
    folder.mkdir()
    items = []
    for number, (who, camera) in enumerate(pairs):
        tint, noise = (0, 0) if who is None else (0.15 * camera, 12.0)
        image = np.repeat(colours[who or 0], 16, axis=0)[:, None] * (1.0 - tint)
        image = image + rng.normal(scale=noise, size=(32, 16, 3))
        path = folder / f"{number:03d}.png"
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
        items.append((str(path), f"p{who}", f"c{camera}"))
    return items


@pytest.fixture
def made(start, tmp_path, monkeypatch):
    """Trainer with the hook on images made from (identity, camera) pairs."""

    def make(pairs, *options):
        items = write_images(tmp_path / f"images{len(list(tmp_path.iterdir()))}", pairs)
        monkeypatch.setattr(MadeForTheCase, "items", items)
        return start(*PLAIN, *options)

    return make


@pytest.fixture
def warnings(caplog, messages):
    """Gives what the plugin has warned of; with ``messages`` the trainer sets up no log."""
    return lambda: [record.getMessage() for record in caplog.records
                    if record.name == "fastreid.caureid" and record.levelno == logging.WARNING
                    and not record.getMessage().startswith("By its indicators")]  # the verdict


class At(HookBase):
    """Does something to the trainer before a step or before the clustering of an epoch."""

    def __init__(self, change, *, step=None, epoch=None):
        self.change, self.step, self.epoch = change, step, epoch

    def before_step(self):
        if self.trainer.iter == self.step:
            self.change(self.trainer)

    def before_epoch(self):
        if self.trainer.epoch == self.epoch:
            self.change(self.trainer)


def arrange(trainer, change, **when):
    """Registers a change of the trainer, to come before what the other hooks do."""
    trainer.register_hooks([At(change, **when)])
    trainer._hooks.insert(0, trainer._hooks.pop())


def neck(trainer):
    """The last batch norm before the embedding."""
    return next(module for module in trainer.model.heads.bottleneck.modules()
                if isinstance(module, nn.BatchNorm2d))


def fill(tensor_of, value):
    """A change of the trainer: one of its tensors gets a value."""

    def change(trainer):
        with torch.no_grad():
            tensor_of(trainer).fill_(value)

    return change


def neck_weight(value):
    return fill(lambda trainer: neck(trainer).weight, value)


def neck_bias(value):
    return fill(lambda trainer: neck(trainer).bias, value)


# ------------------------------------------------------------------------------- the table ----


@dataclasses.dataclass
class Case:
    """What is given, and what is to happen."""

    images: list  # (identity, camera) of each
    options: tuple = ()
    # a pattern for each warning; those of few clusters only where the labels are given
    warned: tuple = ()
    error: str | None = None  # a pattern; None: it trains
    labels: list | None = None  # what the clusterings find; None: what they do find
    network: Callable = lambda trainer: None  # done to the trainer before training
    at_epoch_1: Callable | None = None  # done to it before the second epoch


FEW_PAIRS = "^3 pairs of a cluster and a camera are fewer than the 4 of a batch"
FEW = r"^\d clusters are fewer than the 4 of a batch"
SMALL_CAMERA = r"so few images that they can hardly be learnt: c\d \(1\)"
SMALL_BATCH = r"SOLVER.IMS_PER_BATCH 16 is more than the \d+ training images"
ALIKE = r"epoch 0: the embedding of all \d+ images is the same.*DATASETS.NAMES.*MODEL.WEIGHTS"
ONE = r"all 48 images are in one cluster.*Lower CAUREID.CLUSTER.EPS \(now 0.6\)"
KEPT = "The labels of the last clustering stay in use"

GOOD = np.arange(48) // 6
NONE = np.full(48, -1)
ALL_IN_ONE = np.zeros(48, dtype=np.int64)
ONE_AND_OUTLIERS = np.where(np.arange(48) < 8, 0, -1)
TWO = np.arange(48) // 24
NO_PAIR = np.where(np.arange(48) % 3 == 0, np.arange(48) // 6, -1)  # one image of each camera
TWO_AND_OUTLIERS = np.where(np.arange(48) < 8, np.arange(48) // 4, -1)

FIRST_CLUSTERING = {
    "no cluster, bank": Case(
        people(), BANK, labels=[NONE], error=r"epoch 0: every one of the 48 images is an outlier"
        r".*Raise CAUREID.CLUSTER.EPS \(now 0.6\).*CAUREID.CLUSTER.MIN_SAMPLES \(now 2\)"),
    "one cluster, bank": Case(
        people(), BANK, labels=[ALL_IN_ONE], error=ONE + r" or CAUREID.CLUSTER.K1 \(now 6\)"),
    "one cluster, camera-aware": Case(
        people(), AWARE, labels=[ALL_IN_ONE], error="all 48 images are in one cluster.*"
        r"CAUREID.CLUSTER.K1_INTRA \(now 3\) or CAUREID.CLUSTER.K1_INTER \(now 6\)"),
    "one cluster and outliers, extract": Case(
        people(), EXTRACT, labels=[ONE_AND_OUTLIERS],
        error="8 of the 48 images are in one cluster.*EPS.*MIN_SAMPLES.*CAUREID.LABELS bank"),
    "one cluster and outliers, bank": Case(people(), BANK, labels=[ONE_AND_OUTLIERS]),
    "two clusters, bank": Case(people(), BANK, labels=[TWO], warned=(FEW, FEW)),
    "two clusters and outliers, extract": Case(
        people(), EXTRACT, labels=[TWO_AND_OUTLIERS], warned=(FEW, FEW)),
    "single images, one camera a draw": Case(
        people(images=1), (*EXTRACT, *ONE_CAMERA), labels=[np.arange(16) // 2],
        error="epoch 0: no two images of a cluster come from one camera.*4 copies of an image. "
        "Set DATALOADER.CAMERAS mixed"),
    "few pairs, one camera a draw": Case(
        people(), (*EXTRACT, *ONE_CAMERA), labels=[np.where(np.arange(48) < 9, GOOD, -1)],
        warned=(FEW_PAIRS, FEW_PAIRS)),
    "hardly any link": Case(people(), (*BANK, "CAUREID.CLUSTER.EPS", 1e-4)),
}
LATER_CLUSTERING = {
    "no cluster later, bank": Case(people(), BANK, labels=[GOOD, NONE], warned=(
        f"^epoch 1: every one of the 48 images is an outlier.*{KEPT}",)),
    "one cluster later, extract": Case(people(), EXTRACT, labels=[GOOD, ALL_IN_ONE], warned=(
        f"^epoch 1: all 48 images are in one cluster.*{KEPT}",)),
    "single images later, one camera a draw": Case(
        people(), (*BANK, *ONE_CAMERA), labels=[GOOD, NO_PAIR],
        warned=(f"^epoch 1: no two images of a cluster come from one camera.*{KEPT}",)),
}
NETWORKS = {
    "48 copies of one image, camera-aware, extract": Case(
        copies(48), (*EXTRACT, *AWARE, "CAUREID.CLUSTER.K1_INTER", 4), error=ALIKE),
    "every image twice": Case([pair for pair in people(images=2) for _ in range(2)]),
    "vanishing": Case(people(), network=neck_weight(1e-18),
                      error="embedding of all 48 images is zero.*MODEL.WEIGHTS"),
    "zero later": Case(people(), EXTRACT, at_epoch_1=neck_weight(0.0),
                       warned=(f"^epoch 1: the embedding of all 48 images is zero.*{KEPT}",)),
}
CAMERAS = {
    "one camera": Case(people(cameras=1, images=6)),
    "one camera to tell apart": Case(
        people(cameras=1, images=6), ("MODEL.LOSSES.NAME", ("InfoNCELoss", "CameraSeparationLoss"),
                                      "MODEL.HEADS.CAMSEP.NUM_CAMERAS", 2),
        error="All 48 training images .*one camera, and CameraSeparationLoss needs at least two"),
    "one camera, CAP": Case(
        people(cameras=1, images=6), ("MODEL.LOSSES.NAME", ("CAPLoss", "InfoNCELoss")),
        error="one camera, and CAPLoss of MODEL.LOSSES.NAME compares cameras: set MODEL.LOSSES"),
    "one camera, ICE": Case(
        people(cameras=1, images=6), ("MODEL.LOSSES.NAME", ("ICELoss",)),
        error=r"one camera, and ICELoss of .*: set MODEL.LOSSES.NAME \"\('InfoNCELoss',\)\""),
    "one camera, camera-aware": Case(
        people(cameras=1, images=6), AWARE, error="set CAUREID.CLUSTER.CAMERA_AWARE False"),
    "all but one image in one camera, camera-aware": Case(
        [*people(cameras=1, images=6), (3, 1)], AWARE + EXTRACT, warned=(SMALL_CAMERA,)),
    "K1_INTRA beyond every camera": Case(
        people(cameras=8, images=1), (*AWARE, "CAUREID.CLUSTER.K1_INTRA", 9),
        warned=("CAUREID.CLUSTER.K1_INTRA 9 is more than the 7 images",
                "so few images that they can hardly be learnt")),
    "K1_INTER beyond the other camera": Case(
        people(), (*AWARE, "CAUREID.CLUSTER.K1_INTER", 25, "CAUREID.CLUSTER.EPS", 0.1),
        warned=("CAUREID.CLUSTER.K1_INTER 25 is more than the 24 images",)),
    "each identity in one camera": Case(
        [(who, who % 2) for who, _ in people()], AWARE + EXTRACT),
    "a cluster for each camera": Case(
        people(cameras=4, images=1), EXTRACT, labels=[np.tile(np.arange(4), 8)]),
}
SIZES = {
    "no image": Case([], error="found no image.*FASTREID_DATASETS"),
    "one image": Case(people(1, 1, 1), error=r"MadeForTheCase.* has 1 image.*at least two"),
    "fewer images than MIN_SAMPLES": Case(
        people(1, 2, 1), ("CAUREID.CLUSTER.MIN_SAMPLES", 4),
        error=r"has 2 image.*CAUREID.CLUSTER.MIN_SAMPLES 4 .*lower it"),
    "two images in one cluster": Case(
        people(2, 1, 1), warned=("K1 6 is more than the 1 images", SMALL_BATCH),
        error="all 2 images are in one cluster"),
    "two images": Case(
        people(2, 1, 1), ("CAUREID.CLUSTER.MIN_SAMPLES", 1, "CAUREID.CLUSTER.K1", 1,
                          "CAUREID.CLUSTER.K2", 1), warned=(SMALL_BATCH, FEW, FEW),
        labels=[np.array([0, 1])]),
    "K1 images": Case(
        people(3, 2, 1), warned=("CAUREID.CLUSTER.K1 6 is more than the 5 images", SMALL_BATCH,
                                 FEW, FEW), labels=[np.arange(6) // 3]),
    "one more than K1": Case(
        [*people(3, 2, 1), (3, 0)], warned=(SMALL_BATCH, FEW, FEW),
        labels=[np.arange(7) // 4]),
    "a batch of one image": Case(
        people(), ("SOLVER.IMS_PER_BATCH", 1, "DATALOADER.NUM_INSTANCE", 1),
        error="batch norm needs at least two images.*SOLVER.IMS_PER_BATCH 1"),
    "a batch of two images": Case(
        people(), ("SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_INSTANCE", 1),
        warned=("2 images are no multiple of MODEL.BN_GROUP_SIZE 8",)),
    "a batch of one cluster": Case(people(), ("SOLVER.IMS_PER_BATCH", 8,
                                              "DATALOADER.NUM_INSTANCE", 8)),
    "more in a batch than there are": Case(
        people(), ("SOLVER.IMS_PER_BATCH", 64), labels=[GOOD],
        warned=("SOLVER.IMS_PER_BATCH 64 is more than the 48", "^8 clusters are fewer than the 16",
                "^8 clusters are fewer than the 16")),
}
CASES = {**FIRST_CLUSTERING, **LATER_CLUSTERING, **NETWORKS, **CAMERAS, **SIZES}


@pytest.mark.timeout(60)  # a hang is what is to be found
@pytest.mark.parametrize("name", CASES)
def test_degenerate_case(made, found, warnings, name):
    case = CASES[name]
    if case.labels:
        found(*case.labels)
    with contextlib.nullcontext() if case.error is None else pytest.raises(
            ValueError, match=case.error):
        trainer = made(case.images, *case.options)
        case.network(trainer)
        _train(trainer, case)
    texts = warnings()
    if not case.labels:
        texts = [text for text in texts if not re.search(FEW, text)]
    assert len(texts) == len(case.warned), texts
    for pattern, text in zip(case.warned, texts, strict=True):
        assert re.search(pattern, text), text


def _train(trainer, case):
    """Trains; checks all that was trained on and what is left."""
    batches, losses, labels = [], [], []
    forward = trainer.model.losses

    def watched(outputs, batch):
        batches.append(batch)
        losses.append(forward(outputs, batch))
        labels.append(trainer.model.memory.labels.clone())
        return losses[-1]

    trainer.model.losses = watched
    if case.at_epoch_1:
        arrange(trainer, case.at_epoch_1, epoch=1)
    trainer.train()
    assert len(batches) == 4
    for batch, loss, bank_labels in zip(batches, losses, labels, strict=True):
        assert len(batch["images"]) == trainer.cfg.SOLVER.IMS_PER_BATCH, "every batch is full"
        assert (batch["targets"] >= 0).all()
        assert torch.equal(batch["targets"], bank_labels[batch["indexes"]])
        assert all(torch.isfinite(value) for value in loss.values())
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())
    bank = trainer.model.memory
    assert bank.num_clusters > 1 and len(bank) == len(case.images)
    for tensor in (bank.features, bank.centroids, bank.camera_centres()[0]):
        assert torch.isfinite(tensor).all()
    if any(KEPT in pattern for pattern in case.warned):
        assert all(torch.equal(labels[0], later) for later in labels)


# ---------------------------------------------------------------------- NaN and infinity ----


ADVICE = r"Lower SOLVER.BASE_LR \(now [\d.]+\).*last checkpoint is {}: --resume goes on from it"


def assert_goes_on(made, saved, *options):
    """The last checkpoint is that of the first epoch, and a run goes on from it."""
    assert (saved.parent / "last_checkpoint").read_text() == saved.name
    resumed = made(people(), *options)
    resumed.resume_or_load(resume=True)
    assert resumed.start_epoch == 1
    resumed.train()
    assert torch.isfinite(resumed.model.memory.features).all()


# no loss sees them, so that the toolbox's own check of the loss finds nothing
BLIND = ("MODEL.LOSSES.NAME", ("CameraSeparationLoss",), "MODEL.HEADS.CAMSEP.NUM_CAMERAS", 2)
FEATURES = (r"The features of (\d+) of \1 images for the memory bank are NaN or infinite. The "
            r"first belong to \S+/\d\d\d.png. This is step 3 \(epoch 1\). ")
STATISTICS = (r"The embedding of 48 of 48 images is NaN or infinite in evaluation mode, the first "
              r"is that of \S+/000.png: .*running statistics.*step 2 \(epoch 1\). ")


@pytest.mark.parametrize("options, change, when, says", [
    pytest.param(BLIND, neck_bias(NAN), {"step": 3}, FEATURES, id="features"),
    pytest.param((), neck_bias(NAN), {"step": 3},
                 "Loss became infinite or NaN at iteration=3.*", id="loss"),
    # training does not read them; evaluation, which new labels come from, does
    *(pytest.param(EXTRACT, fill(lambda t: neck(t).running_mean, value), {"epoch": 1}, STATISTICS,
                   id=f"statistics {value}") for value in (NAN, float("inf")))])
def test_what_becomes_nan_while_training(made, tmp_path, options, change, when, says):
    trainer = made(people(), *options)
    arrange(trainer, change, **when)
    with pytest.raises(FloatingPointError) as raised:
        trainer.train()
    saved = tmp_path / "out" / "model_0000.pth"
    assert re.search(says + ADVICE.format(re.escape(str(saved))),
                     " ".join(str(raised.value).split()))
    assert torch.isfinite(trainer.model.memory.features).all()
    assert_goes_on(made, saved, *options)


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_one_image_of_a_batch(made, monkeypatch, value):
    trainer = made(people())
    pop_seen, before, bad = trainer.model.pop_seen, [], []

    def popped():
        features, rows = pop_seen()
        if trainer.iter == 1:
            features[rows == rows[5], 3] = value
            before.append(trainer.model.memory.features.clone())
            bad.append(int(rows[5]))
        return features, rows

    monkeypatch.setattr(trainer.model, "pop_seen", popped)
    with pytest.raises(FloatingPointError) as raised:
        trainer.train()
    assert "The features of 1 of " in str(raised.value)
    assert f"{bad[0]:03d}.png" in str(raised.value) and "step 1 (epoch 0)" in str(raised.value)
    assert "There is no checkpoint yet" in str(raised.value)
    assert torch.equal(trainer.model.memory.features, before[0]), "nothing of the batch is taken"


def test_without_the_repair_a_loss_that_becomes_nan_comes_without_advice(made):
    with compat.without("loss_not_finite"):
        trainer = made(people())
        arrange(trainer, neck_bias(NAN), step=3)
        with pytest.raises(FloatingPointError, match="Loss became infinite or NaN") as raised:
            trainer.train()
    assert "BASE_LR" not in str(raised.value) and "--resume" not in str(raised.value)


def test_weights_that_are_nan_from_the_start(made):
    trainer = made(people())
    fill(lambda t: next(t.model.backbone.parameters()), NAN)(trainer)
    with pytest.raises(FloatingPointError, match=r"(?s)48 of 48 images.*MODEL\.WEIGHTS.*step 0 "
                                                 r"\(epoch 0\).*There is no checkpoint yet"):
        trainer.train()


def test_one_image_of_an_extraction(made):
    trainer = made(people())
    forward = trainer.model.forward
    trainer.model.forward = lambda batch: torch.where(
        (batch["indexes"] == 17)[:, None], NAN, forward(batch))
    with pytest.raises(FloatingPointError, match=r"1 of 48 images .*/017.png: look at that image"):
        trainer.train()


def test_no_memory_for_a_later_clustering_leaves_the_last_checkpoint(made, tmp_path, monkeypatch):
    calls = []

    def assign(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("it does not fit: CAUREID.CLUSTER.MAX_MEMORY")
        return GOOD.copy()

    monkeypatch.setattr(clustering, "assign_pseudo_labels", assign)
    with pytest.raises(MemoryError, match="MAX_MEMORY"):
        made(people()).train()
    assert_goes_on(made, tmp_path / "out" / "model_0000.pth")


# -------------------------------------------------------------------- several processes ----


_SCRIPT = """
import sys
from pathlib import Path

import caureid_plugin
import torch
import torch.distributed as dist
from caureid_plugin.modeling import MemoryBank
from caureid_plugin.modeling.gather import gather_batch
from fastreid.engine import launch


def constant(value):
    model = torch.nn.Identity()
    model.forward = lambda batch: torch.full((len(batch["indexes"]), 4), value)
    return model


class Loader(list):
    "Batches, with what the extraction needs of a loader."

    dataset = type("Images", (), {"paths": ["0.png"]})
    shutdown = list.clear


def main(folder):
    rank = dist.get_rank()
    features = torch.eye(4)
    features[2] += torch.nan if rank == 1 else 0
    bank = MemoryBank(torch.zeros(8), 4, momentum=0.2)
    try:
        bank.update(*gather_batch(features, 4 * rank + torch.arange(4)))
    except FloatingPointError as error:
        (folder / f"step{rank}").write_text(f"{error} {error.rows}")
    batches = lambda: Loader([{"indexes": torch.tensor([0])}] if rank == 0 else [])
    found = caureid_plugin.extract_features(constant(1.0), batches())
    (folder / f"shape{rank}").write_text(str(tuple(found.shape)))
    try:
        caureid_plugin.extract_features(constant(torch.nan), batches())
    except FloatingPointError as error:
        (folder / f"pass{rank}").write_text(str(error))


if __name__ == "__main__":
    launch(main, 2, dist_url="auto", args=(Path(sys.argv[1]),))
"""


def test_all_processes_end_and_one_may_have_no_image(tmp_path):
    (tmp_path / "script.py").write_text(_SCRIPT)
    done = warm.run([tmp_path / "script.py", tmp_path], tmp_path, prepare=warm.FORKED_RANKS)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        step = (tmp_path / f"step{rank}").read_text()
        assert "1 of 8 images" in step and "[6]" in step
        assert (tmp_path / f"shape{rank}").read_text() == "(1, 4)"
        assert "1 of 1 images" in (tmp_path / f"pass{rank}").read_text()
