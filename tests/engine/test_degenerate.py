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

import caureid_plugin
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
AWARE = ("CAUREID.CLUSTER.CAMERA_AWARE", True, "CAUREID.CLUSTER.K1_INTRA", 3,
         "CAUREID.CLUSTER.K1_INTER", 6, "CAUREID.CLUSTER.EPS", 0.5)
BANK, EXTRACT = ("CAUREID.LABELS", "bank"), ("CAUREID.LABELS", "extract")


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


def write_images(folder, pairs):
    """One image for each (identity, camera): the identity's colours under the camera's tint."""
    rng = np.random.default_rng(0)
    colours = rng.uniform(20, 235, size=(100, 2, 3))
    folder.mkdir()
    items = []
    for number, (who, camera) in enumerate(pairs):
        image = np.repeat(colours[who], 16, axis=0)[:, None] * (1.0 - 0.15 * camera)
        image = image + rng.normal(scale=12.0, size=(32, 16, 3))
        path = folder / f"{number:03d}.png"
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
        items.append((str(path), f"p{who}", f"c{camera}"))
    return items


def copies(count, cameras=2):
    """As many images, all the same."""
    return [("copy", number % cameras) for number in range(count)]


@pytest.fixture
def made(start, tmp_path, monkeypatch):
    """Trainer with the hook on images made from (identity, camera) pairs."""

    def make(pairs, *options):
        identities = [(0 if who == "copy" else who, camera) for who, camera in pairs]
        items = write_images(tmp_path / f"images{len(list(tmp_path.iterdir()))}", identities)
        for (path, *_), (who, _) in zip(items, pairs, strict=True):
            if who == "copy":
                Image.open(items[0][0]).save(path)
        monkeypatch.setattr(MadeForTheCase, "items", items)
        return start(*PLAIN, *options)

    return make


@pytest.fixture
def warnings(caplog, messages):
    """Gives what the plugin has warned of; with ``messages`` the trainer sets up no log."""
    return lambda: [record.getMessage() for record in caplog.records
                    if record.name == "fastreid.caureid" and record.levelno == logging.WARNING]


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


def arrange(trainer, hook):
    """Registers a hook that comes before the others."""
    trainer.register_hooks([hook])
    trainer._hooks.insert(0, trainer._hooks.pop())


def neck(trainer):
    """The last batch norm before the embedding."""
    return next(module for module in trainer.model.heads.bottleneck.modules()
                if isinstance(module, nn.BatchNorm2d))


def zero(trainer):
    nn.init.zeros_(neck(trainer).weight)


def vanishing(trainer):
    nn.init.constant_(neck(trainer).weight, 1e-18)


def constant(trainer):
    nn.init.zeros_(neck(trainer).weight)
    nn.init.ones_(neck(trainer).bias)


# ------------------------------------------------------------------------------- the table ----


@dataclasses.dataclass
class Case:
    """What is given, and what is to happen.

    Attributes:
        images: (identity, camera) of each.
        options: config keys and values.
        warned: patterns, each of which one warning has, in this order; no other warning may come
            (but for few clusters, where their number is left to the clustering).
        error: pattern of the error; None: it trains.
        labels: what the clusterings find, one after the other; None: what they do find.
        network: done to the trainer before training.
        at_epoch_1: done to the trainer before the second epoch.
    """

    images: list
    options: tuple = ()
    warned: tuple = ()
    error: str | None = None
    labels: list | None = None
    network: Callable = lambda trainer: None
    at_epoch_1: Callable | None = None


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
    "one cluster and outliers, bank": Case(people(), BANK, labels=[ONE_AND_OUTLIERS] * 2),
    "two clusters, bank": Case(people(), BANK, labels=[TWO] * 2, warned=(FEW, FEW)),
    "two clusters, extract": Case(people(), EXTRACT, labels=[TWO] * 2, warned=(FEW, FEW)),
    "two clusters and outliers, extract": Case(
        people(), EXTRACT, labels=[TWO_AND_OUTLIERS] * 2, warned=(FEW, FEW)),
    "hardly any link": Case(people(), (*BANK, "CAUREID.CLUSTER.EPS", 1e-4)),
}
LATER_CLUSTERING = {
    f"{name} later, {labels[1]}": Case(
        people(), labels, labels=[GOOD, found], warned=(f"^epoch 1: {pattern}.*{KEPT}",))
    for name, labels, found, pattern in (
        ("no cluster", BANK, NONE, "every one of the 48 images is an outlier"),
        ("one cluster", EXTRACT, ALL_IN_ONE, "all 48 images are in one cluster"),
        ("one cluster and outliers", EXTRACT, ONE_AND_OUTLIERS,
         "8 of the 48 images are in one cluster"))
}
NETWORKS = {
    "8 copies of one image": Case(
        copies(8), (*BANK, "SOLVER.IMS_PER_BATCH", 8), error=ALIKE),
    "48 copies of one image, camera-aware, extract": Case(
        copies(48), (*EXTRACT, *AWARE, "CAUREID.CLUSTER.K1_INTER", 4), error=ALIKE),
    "every image twice": Case([pair for pair in people(images=2) for _ in range(2)]),
    "zero": Case(people(), network=zero, error="embedding of all 48 images is zero.*MODEL.WEIGHTS"),
    "vanishing": Case(people(), network=vanishing, error="embedding of all 48 images is zero"),
    "constant": Case(people(), network=constant, error=ALIKE),
    "zero later": Case(people(), EXTRACT, at_epoch_1=zero,
                       warned=(f"^epoch 1: the embedding of all 48 images is zero.*{KEPT}",)),
    "constant later": Case(people(), EXTRACT, at_epoch_1=constant,
                           warned=(f"the embedding of all 48 images is the same.*{KEPT}",)),
}
CAMERAS = {
    "one camera": Case(people(cameras=1, images=6)),
    "one camera to tell apart": Case(
        people(cameras=1, images=6), ("MODEL.LOSSES.NAME", ("InfoNCELoss", "CameraSeparationLoss"),
                                      "MODEL.HEADS.CAMSEP.NUM_CAMERAS", 2),
        error="All 48 training images .*one camera, and CameraSeparationLoss needs at least two"),
    "one camera, camera-aware": Case(
        people(cameras=1, images=6), AWARE, error="set CAUREID.CLUSTER.CAMERA_AWARE False"),
    "a camera with one image": Case([*people(), (3, 2)], warned=(SMALL_CAMERA,)),
    "a camera with one image, camera-aware, extract": Case(
        [*people(), (3, 2)], AWARE + EXTRACT, warned=(SMALL_CAMERA,)),
    "all but one image in one camera, camera-aware": Case(
        [*people(cameras=1, images=6), (3, 1)], AWARE + EXTRACT, warned=(SMALL_CAMERA,)),
    "fewer images in a camera than K1_INTRA": Case(
        [*people(), (3, 2), (4, 2)], (*AWARE, "CAUREID.CLUSTER.K1_INTRA", 4),
        warned=("so few images that they can hardly be learnt",)),
    "K1_INTRA beyond every camera": Case(
        people(cameras=8, images=1), (*AWARE, "CAUREID.CLUSTER.K1_INTRA", 9),
        warned=("CAUREID.CLUSTER.K1_INTRA 9 is more than the 7 images",
                "so few images that they can hardly be learnt")),
    "K1_INTER beyond the other camera": Case(
        people(), (*AWARE, "CAUREID.CLUSTER.K1_INTER", 25, "CAUREID.CLUSTER.EPS", 0.1),
        warned=("CAUREID.CLUSTER.K1_INTER 25 is more than the 24 images",)),
    "an identity in one camera only": Case(
        [(who, camera if who else 0) for who, camera in people()], AWARE),
    "each identity in one camera": Case(
        [(who, who % 2) for who, _ in people()], AWARE + EXTRACT),
    "a cluster for each camera": Case(
        people(cameras=4, images=1), EXTRACT, labels=[np.tile(np.arange(4), 8)] * 2),
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
        labels=[np.array([0, 1])] * 2),
    "three images": Case(
        people(3, 1, 1), ("CAUREID.CLUSTER.K1", 2, "CAUREID.CLUSTER.K2", 1),
        warned=(SMALL_BATCH, FEW, FEW), labels=[np.array([0, 0, -1])] * 2),
    "K1 images": Case(
        people(3, 2, 1), warned=("CAUREID.CLUSTER.K1 6 is more than the 5 images", SMALL_BATCH,
                                 FEW, FEW), labels=[np.arange(6) // 3] * 2),
    "one more than K1": Case(
        [*people(3, 2, 1), (3, 0)], warned=(SMALL_BATCH, FEW, FEW),
        labels=[np.arange(7) // 4] * 2),
    "an epoch of no step": Case(
        people(3, 2, 1), ("SOLVER.ITERS_PER_EPOCH", 0),
        error="0 iterations.*SOLVER.IMS_PER_BATCH.*SOLVER.ITERS_PER_EPOCH"),
    "a batch of one image": Case(
        people(), ("SOLVER.IMS_PER_BATCH", 1, "DATALOADER.NUM_INSTANCE", 1),
        error="batch norm needs at least two images.*SOLVER.IMS_PER_BATCH 1"),
    "a batch of two images": Case(
        people(), ("SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_INSTANCE", 1),
        warned=("2 images are no multiple of MODEL.BN_GROUP_SIZE 8",)),
    "a batch of one cluster": Case(people(), ("SOLVER.IMS_PER_BATCH", 8,
                                              "DATALOADER.NUM_INSTANCE", 8)),
    "more in a batch than there are": Case(
        people(), ("SOLVER.IMS_PER_BATCH", 64), labels=[GOOD] * 2,
        warned=("SOLVER.IMS_PER_BATCH 64 is more than the 48", "^8 clusters are fewer than the 16",
                "^8 clusters are fewer than the 16")),
}
CASES = {**FIRST_CLUSTERING, **LATER_CLUSTERING, **NETWORKS, **CAMERAS, **SIZES}


@pytest.mark.timeout(60)  # a hang is what is to be found
@pytest.mark.parametrize("name", CASES)
def test_degenerate_case(made, monkeypatch, warnings, name):
    case = CASES[name]
    if case.labels is not None:
        answers = [labels.copy() for labels in case.labels]
        monkeypatch.setattr(clustering, "assign_pseudo_labels", lambda *a, **k: answers.pop(0))

    def train():
        trainer = made(case.images, *case.options)
        case.network(trainer)
        if case.error is None:
            _trains(trainer, case)
        else:
            trainer.train()

    with contextlib.nullcontext() if case.error is None else pytest.raises(
            ValueError, match=case.error):
        train()
    found = warnings()
    if case.labels is None:
        found = [text for text in found if not re.search(FEW, text)]
    assert len(found) == len(case.warned), found
    for pattern, text in zip(case.warned, found, strict=True):
        assert re.search(pattern, text), text


def _trains(trainer, case):
    batches, losses, labels = [], [], []
    forward = trainer.model.losses

    def watched(outputs, batch):
        batches.append(batch)
        losses.append(forward(outputs, batch))
        labels.append(trainer.model.memory.labels.clone())
        return losses[-1]

    trainer.model.losses = watched
    if case.at_epoch_1:
        arrange(trainer, At(case.at_epoch_1, epoch=1))
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


@pytest.mark.parametrize("options, named", [
    (("CAUREID.CLUSTER.EPS", 0.0), "CAUREID.CLUSTER.EPS"),
    (("CAUREID.CLUSTER.MIN_SAMPLES", 0), "CAUREID.CLUSTER.MIN_SAMPLES"),
    (("CAUREID.CLUSTER.K1", 0), "CAUREID.CLUSTER.K1"),
    (("CAUREID.CLUSTER.K2", 9), "CAUREID.CLUSTER.K2.*k2=9 and k1=6"),
    ((*AWARE, "CAUREID.CLUSTER.K2_INTER", 8), r"CAUREID.CLUSTER.K2_INTER\).*8 and 6"),
    ((*AWARE, "CAUREID.CLUSTER.K2_INTRA_FIRST", 5), r"CAUREID.CLUSTER.K2_INTRA_FIRST\).*5 and 3"),
    ((*AWARE, "CAUREID.CLUSTER.K2_INTER_FIRST", -1), r"CAUREID.CLUSTER.K2_INTER_FIRST\).*-1"),
    (("SOLVER.IMS_PER_BATCH", 18), "SOLVER.IMS_PER_BATCH 18.*DATALOADER.NUM_INSTANCE 4"),
    (("DATALOADER.NUM_INSTANCE", 0), "DATALOADER.NUM_INSTANCE 0"),
])
def test_wrong_numbers_are_found_before_anything_is_computed(made, options, named):
    """Those that only a later epoch uses as well."""
    with pytest.raises(ValueError, match=named):
        made(people(), *options)  # never trained


# ---------------------------------------------------------------------- NaN and infinity ----


def poison(tensor_of, value=float("nan")):
    def change(trainer):
        with torch.no_grad():
            tensor_of(trainer).fill_(value)

    return change


ADVICE = r"Lower SOLVER.BASE_LR \(now [\d.]+\).*last checkpoint is {}: --resume goes on from it"


def assert_goes_on(made, saved, *options):
    """The last checkpoint is that of the first epoch, and a run goes on from it."""
    assert (saved.parent / "last_checkpoint").read_text() == saved.name
    resumed = made(people(), *options)
    resumed.resume_or_load(resume=True)
    assert resumed.start_epoch == 1
    resumed.train()
    assert torch.isfinite(resumed.model.memory.features).all()


def test_features_that_become_nan_in_a_step(made, tmp_path):
    """No loss sees them, so that the toolbox's own check of the loss finds nothing."""
    blind = ("MODEL.LOSSES.NAME", ("CameraSeparationLoss",), "MODEL.HEADS.CAMSEP.NUM_CAMERAS", 2)
    trainer = made(people(), *blind)
    arrange(trainer, At(poison(lambda t: neck(t).bias), step=3))
    saved = tmp_path / "out" / "model_0000.pth"
    with pytest.raises(FloatingPointError) as raised:
        trainer.train()
    message = " ".join(str(raised.value).split())
    assert re.search(r"The features of (\d+) of \1 images for the memory bank are NaN or infinite. "
                     r"The first are those of \S+/\d\d\d.png. This is step 3 \(epoch 1\). "
                     + ADVICE.format(re.escape(str(saved))), message)
    assert torch.isfinite(trainer.model.memory.features).all()
    assert_goes_on(made, saved, *blind)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
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


def test_a_loss_that_becomes_nan(made, tmp_path):
    trainer = made(people())
    arrange(trainer, At(poison(lambda t: neck(t).bias), step=3))
    with pytest.raises(FloatingPointError) as raised:
        trainer.train()
    message = " ".join(str(raised.value).split())
    assert "Loss became infinite or NaN at iteration=3" in message
    saved = tmp_path / "out" / "model_0000.pth"
    assert re.search(ADVICE.format(re.escape(str(saved))), message)
    assert_goes_on(made, saved)


def test_without_the_repair_a_loss_that_becomes_nan_comes_without_advice(made):
    with compat.without("loss_not_finite"):
        trainer = made(people())
        arrange(trainer, At(poison(lambda t: neck(t).bias), step=3))
        with pytest.raises(FloatingPointError, match="Loss became infinite or NaN") as raised:
            trainer.train()
    assert "BASE_LR" not in str(raised.value) and "--resume" not in str(raised.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_running_statistics_that_are_not_finite(made, tmp_path, value):
    """Training does not read them; evaluation, which new labels come from, does."""
    trainer = made(people(), *EXTRACT)
    arrange(trainer, At(poison(lambda t: neck(t).running_mean, value), epoch=1))
    with pytest.raises(FloatingPointError) as raised:
        trainer.train()
    message = " ".join(str(raised.value).split())
    saved = tmp_path / "out" / "model_0000.pth"
    assert re.search(r"The embedding of 48 of 48 images is NaN or infinite in evaluation mode, the "
                     r"first is that of \S+/000.png: .*running statistics.*step 2 \(epoch 1\). "
                     + ADVICE.format(re.escape(str(saved))), message)
    assert_goes_on(made, saved, *EXTRACT)


def test_weights_that_are_nan_from_the_start(made):
    trainer = made(people())
    poison(lambda t: next(t.model.backbone.parameters()))(trainer)
    with pytest.raises(FloatingPointError, match=r"(?s)48 of 48 images.*MODEL\.WEIGHTS.*step 0 "
                                                 r"\(epoch 0\).*There is no checkpoint yet"):
        trainer.train()


class OneRow(nn.Module):
    """Embeddings of ones; NaN for one image."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def forward(self, batch):
        features = torch.ones(len(batch["indexes"]), 4)
        features[batch["indexes"] == self.bad] = torch.nan
        return features


def test_one_image_of_an_extraction(made):
    loader = made(people())._hooks[-1]._extraction
    with pytest.raises(FloatingPointError, match=r"1 of 48 images .*/017.png: look at that image"):
        caureid_plugin.extract_features(OneRow(17), loader)


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


class Model(torch.nn.Module):
    "An embedding of ones, or of NaN."

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, batch):
        return torch.full((len(batch["indexes"]), 4), self.value)


class Loader(list):
    "Batches, with what the extraction needs of a loader."

    dataset = type("Images", (), {"paths": ["0.png"]})

    def shutdown(self):
        pass


def main(folder):
    rank = dist.get_rank()
    features = torch.eye(4)
    features[2] += torch.nan if rank == 1 else 0
    bank = MemoryBank(torch.zeros(8), 4, momentum=0.2)
    try:
        bank.update(*gather_batch(features, 4 * rank + torch.arange(4)))
    except FloatingPointError as error:
        (folder / f"step{rank}").write_text(f"{error} {error.rows}")
    batches = Loader([{"indexes": torch.tensor([0])}] if rank == 0 else [])
    found = caureid_plugin.extract_features(Model(1.0), batches)
    (folder / f"shape{rank}").write_text(str(tuple(found.shape)))
    try:
        caureid_plugin.extract_features(Model(torch.nan), batches)
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
