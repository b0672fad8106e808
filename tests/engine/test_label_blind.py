"""No identity reaches training: the proof, and the leaks that the proof must see.

A run is done as tools/train_net.py does it, and everything that training leaves is kept. Runs under
other identities must be equal in all of it, bit for bit.

An evaluation is made of the test set's identities, so its figures may change with them, and so may
the toolbox's ``model_best.pth``, the checkpoint with the best of these figures. Nothing in training
reads either, and no message offers that checkpoint to go on from.

Files are listed by names, which begin with identities: the place in the list could tell them too.
In another order of the list the first clustering must group the same images; what follows differs,
because images are drawn by their rows.
"""

import random
import re
import shutil

import numpy as np
import pytest
import torch
from caureid_plugin import clustering
from caureid_plugin.data import Sighting, unlabelled
from caureid_plugin.engine import UnsupervisedHook
from fastreid.data import build as data_build
from fastreid.data.datasets.market1501 import Market1501
from fastreid.engine import hooks as toolbox_hooks
from fastreid.utils.checkpoint import Checkpointer

from helpers.metrics import read_rows

# ------------------------------------------------------------------- what a run leaves ----

# what the clock decides (the bytes of metrics.json too), figures that are of the labels by their
# nature, and the digest of the files' names, which is there to be compared only on resuming
FREE = r"time|data_time|cluster_seconds|eta_seconds|metrics_bytes|diagnostic_with_labels/.*|digest"
EVALUATION = rf"{FREE}|(start/)?(metric|mAP|mINP|Rank-\d+)|best_metric"


class Watch:
    """Keeps what happens during training, from outside."""

    def __init__(self, trainer):
        self.labels, self.batches, self.outputs = [], [], {}
        model = trainer.model
        relabel = model.memory.relabel
        model.memory.relabel = lambda found: self.labels.append(found.clone()) or relabel(found)
        model.register_forward_pre_hook(self._keep_batch)
        for name, module in model.named_modules():
            module.register_forward_hook(
                lambda _, __, output, name=name: self._keep_shapes(name, output))

    def _keep_batch(self, model, arguments):
        batch, = arguments
        if model.training:
            self.batches.append([batch[key].clone() for key in ("images", "targets", "indexes")])

    def _keep_shapes(self, name, output):
        outputs = output if isinstance(output, dict) else {"": output}
        for key, value in outputs.items():
            if isinstance(value, torch.Tensor):
                self.outputs.setdefault(f"{name}:{key}", []).append(list(value.shape))


def everything(trainer, watch, folder):
    """All that training depends on or leaves, as nested dicts and lists."""
    saved = {path.name: torch.load(path, weights_only=True) for path in folder.glob("*.pth")
             if path.name != "model_best.pth"}
    return {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "schedules": {name: s.state_dict() for name, s in trainer.scheduler.items()},
        "bank": trainer.model.memory.state_dict(),
        "labels": watch.labels, "batches": watch.batches, "outputs": watch.outputs,
        "rows": read_rows(folder),
        "random": [random.getstate(), np.random.get_state(), torch.get_rng_state()],
        "files": sorted(saved), "saved": saved,
        "last_checkpoint": [path.read_text() for path in folder.glob("last_checkpoint")],
    }


def differences(one, other, ignored=FREE, name=""):
    """Names of the places in which two results are not equal bit for bit.

    ``ignored``: pattern of keys that are not looked at.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in {**one, **other} if not re.fullmatch(ignored, str(key))]
        return [found for key in keys for found in (
            differences(one[key], other[key], ignored, f"{name}/{key}")
            if key in one and key in other else [f"{name}/{key}"])]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [name]
        return [found for place, (a, b) in enumerate(zip(one, other, strict=True))
                for found in differences(a, b, ignored, f"{name}/{place}")]
    if isinstance(one, (torch.Tensor, np.ndarray)) and type(one) is type(other):
        equal = one.dtype == other.dtype and np.array_equal(one, other)
    else:
        equal = type(one) is type(other) and repr(one) == repr(other)
    return [] if equal else [name]


def test_the_comparison_sees_every_kind_of_difference():
    def result(**changes):
        return {"a": [torch.zeros(3), {"b": np.arange(4)}], "c": "x", "Rank-1": 0.5, **changes}

    almost = torch.zeros(3)
    almost[1] = 1e-40  # less than any tolerance
    array = {"b": np.arange(4)}
    for changes, places in (
            ({}, []), ({"a": [torch.zeros(3), {"b": np.arange(4) + 1}]}, ["/a/1/b"]),
            ({"a": [almost, array]}, ["/a/0"]), ({"a": [torch.zeros(4), array]}, ["/a/0"]),
            ({"a": [torch.zeros(3)]}, ["/a"]), ({"c": "y", "d": 1}, ["/c", "/d"]),
            ({"Rank-1": 0.25}, ["/Rank-1"])):
        assert differences(result(), result(**changes)) == places
    assert differences(result(), result(**{"Rank-1": 0.25}), EVALUATION) == []


# -------------------------------------------------------------------------- identities ----


def changed(kind, who):
    """The training set's identities, all but the number of images unknown."""
    if kind == "shuffled":
        return np.random.RandomState(5).permutation(who).tolist()
    return ["same" if kind == "one" else None] * len(who)


def other_order(number):
    """Row in the sorted list for each row of the list in another order."""
    return np.random.RandomState(7).permutation(number)


def _copy(root, target, rename):
    """A copy of the data whose training images, in their order, are renamed by (row, name)."""
    shutil.copytree(root, target)
    folder = target / "Market-1501-v15.09.15" / "bounding_box_train"
    for row, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"{rename(row, path.name)}.new")
    for path in folder.iterdir():
        path.rename(path.with_suffix(""))
    return target


def _distinct(row, name):
    """An identity of its own, which the toolbox reads from names; it tells only the order."""
    return f"{row + 1:04d}_{name.split('_', 1)[1]}"


def _in_other_order(row, name):
    return f"{other_order(48).tolist().index(row):04d}_{name}"


TRACK_OPTIONS = ["CAUREID.LABELS", "extract", "CAUREID.CLUSTER.K1", 4, "CAUREID.CLUSTER.EPS", 0.8,
                 "CAUREID.CLUSTER.MIN_SAMPLES", 2]
COPIES = {"distinct names": _distinct, "other order": _in_other_order}


@pytest.fixture
def run(train_as_script, tiny_market, tmp_path, monkeypatch):
    """Trains under one kind of identities; gives :func:`everything`."""
    process = Market1501.process_dir

    def change(kind, tracks):
        root = tiny_market
        if kind in COPIES:
            root = _copy(root, tmp_path / kind, COPIES[kind])
        monkeypatch.setattr(data_build, "_root", str(root))

        def process_dir(self, folder, is_train=True):
            items = sorted(process(self, folder, is_train))
            paths, who, cameras = zip(*items, strict=True)
            if is_train and kind.startswith(("shuffled", "one", "absent")):
                who = changed(kind, who)
            if not is_train and "test" in kind:
                who = np.random.RandomState(len(who)).permutation(who).tolist()
            seen = [[]] * len(items)
            if is_train and tracks:  # three images each, all of a camera at one time
                seen = [[Sighting(str(row // 3), float(row % 3))] for row in range(len(items))]
            return [(*item, *sighting) for *item, sighting in zip(paths, who, cameras, seen,
                                                                  strict=True)]

        monkeypatch.setattr(Market1501, "process_dir", process_dir)

    def train(kind, *options, tracks=False, **where):
        change(kind, tracks)
        watched, folder = [], tmp_path / "out" / kind
        trainer = train_as_script(*options, folder=folder,
                                  watch=lambda trainer: watched.append(Watch(trainer)), **where)
        return everything(trainer, watched[0], folder)

    return train


def ignored(kind):
    return EVALUATION if "test" in kind else FREE


def first_groups(result, rows):
    """Clusters of the first clustering, and its outliers, as sets of rows of the sorted list."""
    groups = {}
    for row, label in zip(rows, result["labels"][0].tolist(), strict=True):
        groups.setdefault(label, set()).add(int(row))
    return groups.pop(-1, set()), sorted(map(sorted, groups.values()))


@pytest.mark.parametrize("config, options, kinds", [
    pytest.param("Synthetic/caureid.yml", ["CAUREID.LABELS", "bank"], (
        "shuffled", "one", "absent", "distinct names", "other test identities"), id="bank"),
    pytest.param("Synthetic/caureid.yml", [
        "CAUREID.LABELS", "extract", "CAUREID.CLUSTER.CAMERA_AWARE", True,
        "CAUREID.DIAGNOSTICS", True], ("distinct names", "absent, and others to test with"),
        id="extract-camera-aware-diagnostics"),
    pytest.param("Mix/embedding_head.yml", [], (
        "distinct names", "absent, and others to test with"), id="embedding-head"),
])
def test_no_identity_reaches_training(run, config, options, kinds):
    true = run("true", *options, config=config)
    assert len(true["labels"]) == 2 and len(true["batches"]) == 6
    assert true["files"] == ["model_0000.pth", "model_final.pth"]
    assert true["last_checkpoint"] == ["model_final.pth"]
    assert any("mAP" in row for row in true["rows"])
    for kind in kinds:
        other = run(kind, *options, config=config)
        assert differences(true, other, ignored(kind)) == [], kind
    groups = first_groups(true, range(48))
    assert len(groups[1]) >= 2
    options = [*options, "SOLVER.MAX_EPOCH", 1, "DATASETS.TESTS", "()"]
    other = run("other order", *options, config=config)
    assert first_groups(other, other_order(48)) == groups


def test_a_track_is_no_identity(run):
    """Whom the tracks show is not read, and their constraints hold: of a camera's tracks, which
    are all there at one time, no two are in one cluster."""
    true = run("true", *TRACK_OPTIONS, tracks=True)
    for kind in ("shuffled", "absent, and others to test with"):
        other = run(kind, *TRACK_OPTIONS, tracks=True)
        assert differences(true, other, ignored(kind)) == [], kind
    assert differences(true, run("one", *TRACK_OPTIONS)) != [], "without tracks it is another run"
    for labels in true["labels"]:
        of_track = labels.view(16, 3)
        assert (of_track == of_track[:, :1]).all(), "a track is one person"
        for camera in (0, 1):  # rows are sorted by identity, then camera
            clusters = of_track[camera::2, 0]
            clusters = clusters[clusters >= 0]
            assert len(clusters.unique()) == len(clusters) > 1
    drawn = [unit for batch in true["batches"] for unit in batch[2].view(-1, 4).tolist()]
    assert any(len({row // 3 for row in unit[:2]}) == 2 for unit in drawn)


# ------------------------------------------------------------------------------- leaks ----
# Each mutant lets identities into training on purpose; the comparison must report it.


class Identities:
    """The identities that the trainer's dataset holds, numbered, for mutants to leak."""

    def __init__(self, monkeypatch):
        self.trainer, self._first_metric = None, None
        attach = UnsupervisedHook._attach_bank

        def attach_bank(hook):
            self.trainer = hook.trainer
            listed = [who for _, who, _ in hook.trainer.data_loader.dataset.img_items]
            self.codes = np.unique(list(map(str, listed)), return_inverse=True)[1]
            self.unknown = [who is None for who in listed]
            attach(hook)

        monkeypatch.setattr(UnsupervisedHook, "_attach_bank", attach_bank)

    def are_met(self):
        """Whether the test set is ranked about as well as under the true identities, met first.

        With others its figure is a half of that or less.
        """
        metric, _ = self.trainer.storage.latest()["metric"]
        if self._first_metric is None:
            self._first_metric = metric
        return metric > 0.65 * self._first_metric


def as_pseudo_labels(monkeypatch, given):
    monkeypatch.setattr(clustering, "assign_pseudo_labels", lambda *a, **k: given.codes.copy())


def as_tracks(monkeypatch, given):
    attach = UnsupervisedHook._attach_bank

    def attach_bank(hook):
        attach(hook)
        hook._tracks = clustering.Tracks.of(hook._bank.camids, given.codes.tolist())

    monkeypatch.setattr(UnsupervisedHook, "_attach_bank", attach_bank)
    return TRACK_OPTIONS


def in_which_images_are_labelled(monkeypatch, given):
    """eps falls with the number of images without an identity."""
    assign = clustering.assign_pseudo_labels
    monkeypatch.setattr(clustering, "assign_pseudo_labels", lambda features, *, eps, **options: (
        assign(features, eps=eps - 0.2 * np.mean(given.unknown), **options)))


def in_the_sampler(monkeypatch, given):
    sampler = unlabelled.ClusterSampler
    monkeypatch.setattr(unlabelled, "ClusterSampler",
                        lambda labels, *rest, **options: sampler(given.codes, *rest, **options))


def as_number_of_classes(monkeypatch, given):
    """NUM_CLASSES 0, which the toolbox fills from the data, without the hook's refusal."""
    monkeypatch.setattr(UnsupervisedHook, "_check_config", lambda hook: None)
    return ["MODEL.HEADS.NUM_CLASSES", 0]


def as_number_of_random_draws(monkeypatch, given):
    before_train = UnsupervisedHook.before_train
    monkeypatch.setattr(UnsupervisedHook, "before_train", lambda hook: (
        torch.rand(len(set(given.codes))), before_train(hook)))


def in_the_loss_weight(monkeypatch, given):
    """The figure of CAUREID.DIAGNOSTICS comes back as the weight of a loss."""
    diagnose = UnsupervisedHook._diagnose

    def diagnose_and_weigh(hook, labels):
        diagnose(hook, labels)
        ari, _ = hook.trainer.storage.latest()["diagnostic_with_labels/ari"]
        hook.trainer.model._losses[0].scale = 1.0 - ari

    monkeypatch.setattr(UnsupervisedHook, "_diagnose", diagnose_and_weigh)
    return ["CAUREID.DIAGNOSTICS", True]


def in_the_choice_of_a_checkpoint(monkeypatch, given):
    """A checkpoint is kept only if it does well on the test set's identities."""
    after_epoch = toolbox_hooks.PeriodicCheckpointer.after_epoch
    monkeypatch.setattr(toolbox_hooks.PeriodicCheckpointer, "after_epoch",
                        lambda hook: after_epoch(hook) if given.are_met() else None)


def in_last_checkpoint(monkeypatch, given):
    """The run leaves the checkpoint that did best on the test set as the one to go on from."""
    tag = Checkpointer.tag_last_checkpoint
    monkeypatch.setattr(Checkpointer, "tag_last_checkpoint", lambda self, name: tag(
        self, name if given.are_met() else "model_0000.pth"))


def in_the_learning_rate(monkeypatch, given):
    """The learning rate falls where the evaluation of the test set is poor."""
    do_eval = toolbox_hooks.EvalHook._do_eval

    def evaluate(hook):
        do_eval(hook)
        for group in hook.trainer.optimizer.param_groups:
            group["lr"] *= 1.0 if given.are_met() else 0.1

    monkeypatch.setattr(toolbox_hooks.EvalHook, "_do_eval", evaluate)
    return ["SOLVER.MAX_EPOCH", 2]


SHORT = ["SOLVER.MAX_EPOCH", 1, "TEST.EVAL_AT_START", False]


@pytest.mark.parametrize("leak, kind, place", [
    (as_pseudo_labels, "shuffled", "/labels"),
    (as_tracks, "shuffled", "/labels"),
    (in_which_images_are_labelled, "absent", "/labels"),
    (in_the_sampler, "shuffled", "/batches"),
    (as_number_of_classes, "distinct names", "/outputs"),
    (as_number_of_random_draws, "one", "/random"),
    (in_the_loss_weight, "shuffled", "/model"),
    (in_the_choice_of_a_checkpoint, "other test identities", "/files"),
    (in_last_checkpoint, "other test identities", "/last_checkpoint"),
    (in_the_learning_rate, "other test identities", "/model"),
], ids=lambda value: getattr(value, "__name__", None))
def test_a_leak_is_seen(run, monkeypatch, leak, kind, place):
    given = Identities(monkeypatch)
    options = [*SHORT, *(leak(monkeypatch, given) or [])]
    found = differences(run("true", *options), run(kind, *options), ignored(kind))
    assert [name for name in found if name.startswith(place)], found


def test_a_leak_through_the_place_in_the_list_is_seen(run, found):
    """Names sort by identity: six images each. No change of only the identities shows it."""
    found(np.arange(48) // 6)
    true = run("true", *SHORT)
    assert differences(true, run("shuffled", *SHORT)) == []
    other = run("other order", *SHORT)
    assert first_groups(true, range(48))[1] == [list(range(i, i + 6)) for i in range(0, 48, 6)]
    assert first_groups(other, other_order(48)) != first_groups(true, range(48))
