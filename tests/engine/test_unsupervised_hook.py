"""The hook on FastReID's DefaultTrainer: clusters, labels, bank, loader, scalars, errors."""

import io
import multiprocessing
import os
import shutil
import sys

import caureid_plugin
import numpy as np
import pytest
import torch
from caureid_plugin import clustering
from caureid_plugin.common.errors import UserError
from caureid_plugin.engine import hooks
from fastreid.data.datasets.market1501 import Market1501
from fastreid.engine.train_loop import HookBase
from fastreid.utils.events import EventStorage
from PIL import Image
from torch.nn.functional import normalize


def test_each_step_updates_the_bank_by_equation_1(start):
    trainer, seen = start(), []
    bank = trainer.model.memory
    update = bank.update

    def watched(features, indexes):
        before = bank.features.clone()
        update(features, indexes)
        seen.append((before, features.clone(), indexes.tolist(), bank.features.clone()))

    bank.update = watched
    trainer.train()
    assert len(seen) == 6
    for before, features, indexes, after in seen:
        expected = before.clone()
        for feature, index in zip(features, indexes, strict=True):
            expected[index] = normalize(0.2 * expected[index] + 0.8 * feature, dim=0)
        torch.testing.assert_close(after, expected, atol=1e-6, rtol=0)
        assert not torch.equal(before, after)


def test_the_bank_starts_from_one_pass_of_the_network(start):
    trainer = start()
    with EventStorage():
        trainer._hooks[-1].before_train()
    model = trainer.model.eval()
    assert not [name for name in model.state_dict() if "memory" in name]
    paths = sorted(path for path, *_ in trainer.data_loader.dataset.img_items)
    for row in (0, 17, 47):
        image = Image.open(paths[row]).convert("RGB")
        image = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float()
        with torch.no_grad():
            expected = normalize(model({"images": image[None]}), dim=1)[0]
        torch.testing.assert_close(model.memory.features[row], expected, atol=1e-5, rtol=1e-4)


def test_the_centres_move_as_the_config_says(start):
    trainer = start("CAUREID.MEMORY.CENTRES", "hard")
    trainer.train()
    bank = trainer.model.memory
    torch.testing.assert_close(bank.centroids.norm(dim=1), torch.ones(bank.num_clusters))
    means = torch.stack([bank.features[bank.labels == k].mean(dim=0)
                         for k in range(bank.num_clusters)])
    assert (normalize(means, dim=1) - bank.centroids).abs().max() > 1e-4


def test_cap_compares_across_cameras_from_its_epoch(start):
    trainer = start("MODEL.LOSSES.NAME", ("CAPLoss",), "MODEL.LOSSES.CAP.INTER_EPOCH", 1)
    trainer.train()
    steps = [step for _, step in trainer.storage.history("loss_cap_inter").values()]
    assert steps == [3, 4, 5]


def test_the_teacher_is_averaged_after_each_step_and_gives_what_is_clustered(start, clusterings):
    trainer = start("MODEL.LOSSES.NAME", ("ICELoss",), "MODEL.LOSSES.ICE.MOMENTUM", 0.7,
                    "CAUREID.LABELS", "extract")
    model, teacher, seen = trainer.model, trainer.model.teacher, []
    trainer.model.load_state_dict({name: value + 0.01 for name, value in
                                   model.state_dict().items()})  # as weights that are loaded
    update = teacher.update

    def watched(network):
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        update(network)
        seen.append((before, {n: v.clone() for n, v in network.state_dict().items()},
                     {n: v.clone() for n, v in teacher.state_dict().items()}))

    teacher.update = watched
    start_weights = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    assert len(seen) == 6
    for name, value in seen[0][0].items():
        assert torch.equal(value, start_weights[name])  # it began as the network
    for before, network, after in seen:
        for name, value in after.items():
            if value.is_floating_point():
                torch.testing.assert_close(value, 0.7 * before[name] + 0.3 * network[name])
    teacher.network.load_state_dict(seen[2][2])  # as it was at the second clustering
    row = 17
    path = trainer.data_loader.dataset.paths[row]
    image = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy())
    with torch.no_grad():
        expected = teacher.network({"images": image.permute(2, 0, 1).float()[None]})
    torch.testing.assert_close(clusterings[1][0][row], normalize(expected, dim=1)[0],
                               atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("preset", ["bank", "extract"])
def test_batches_carry_the_labels_of_the_last_clustering(start, clusterings, preset):
    trainer, batches = start("CAUREID.LABELS", preset), []
    forward = trainer.model.losses
    trainer.model.losses = lambda out, batch: batches.append(batch) or forward(out, batch)
    trainer.train()
    assert (len(clusterings), len(batches)) == (2, 6)
    for number, batch in enumerate(batches):
        labels, rows = clusterings[number // 3][2].copy(), batch["indexes"].numpy()
        if preset == "bank":  # outliers follow as clusters of their own
            for row in np.flatnonzero(labels < 0):
                labels[row] = labels.max() + 1
        assert (batch["targets"].numpy() == labels[rows]).all()
        assert (labels[rows] >= 0).all()


def test_extract_clusters_new_features_and_bank_clusters_the_bank(start, monkeypatch):
    passes = []
    extract = hooks.extract_features
    monkeypatch.setattr(hooks, "extract_features",
                        lambda *a, **k: passes.append(1) or extract(*a, **k))
    for preset, expected in (("extract", 2), ("bank", 1)):  # the first one fills the bank
        passes.clear()
        start("SOLVER.ITERS_PER_EPOCH", 1, "DATASETS.TESTS", (), "CAUREID.LABELS", preset).train()
        assert len(passes) == expected


def test_seed_and_cameras_reach_the_weights_and_workers_do_not(start, monkeypatch):
    """The counterpart of tests/engine/test_label_blind.py."""
    def trained(*options):
        trainer = start("SOLVER.MAX_EPOCH", 1, "DATASETS.TESTS", (), *options)
        trainer.train()
        return torch.cat([value.flatten().double() for value in trainer.model.parameters()])

    first = trained()
    assert torch.equal(trained("DATALOADER.NUM_WORKERS", 2), first)
    assert not torch.equal(trained("SEED", 4), first)
    process = Market1501.process_dir

    def swapped(self, folder, is_train=True):
        items = sorted(process(self, folder, is_train))
        return [(p, who, f"c{i % 2}") for i, (p, who, _) in enumerate(items)]

    monkeypatch.setattr(Market1501, "process_dir", swapped)
    assert not torch.equal(trained(), first)


def test_scalars_and_log_line_say_what_the_clustering_found(start, found, messages):
    found([0] * 8 + [1] * 3 + [-1] * 37)
    trainer = start("SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1)
    trainer.train()
    latest = {name: value for name, (value, _) in trainer.storage.latest().items()}
    cameras = trainer._hooks[-1]._extraction.dataset.camids
    spans = np.mean([len(set(cameras[:8])) > 1, len(set(cameras[8:11])) > 1])
    assert (latest["labels/clusters"], latest["labels/outliers"]) == (2, 37)
    assert latest["labels/largest"] == 8 and latest["labels/cross_camera"] == spans
    assert latest["cluster_seconds"] >= 0
    assert {"loss_infonce", "loss_camsep", "loss_cacc", "mAP", "Rank-1"} <= set(latest)
    assert not [name for name in latest if "diagnostic" in name]
    assert any("epoch 0: 2 clusters, 37 outliers" in text for text in messages)


def test_diagnostics_are_marked_and_right(start, found):
    trainer = start("SOLVER.MAX_EPOCH", 1, "CAUREID.DIAGNOSTICS", True)
    identities = np.array([i[1] for i in trainer.data_loader.dataset.img_items])
    found(np.unique(identities, return_inverse=True)[1])
    trainer.train()
    assert trainer.storage.latest()["diagnostic_with_labels/ari"][0] == pytest.approx(1.0)


def test_a_hook_that_comes_after_resume_is_an_error(start):
    start("SOLVER.MAX_EPOCH", 1).train()
    late = start(hook=False)
    late.resume_or_load(resume=True)
    late.register_hooks([caureid_plugin.UnsupervisedHook(late.cfg)])
    with pytest.raises(RuntimeError, match="before trainer.resume_or_load"):
        late.train()


def test_clustering_every_second_epoch(start, clusterings):
    trainer = start("SOLVER.MAX_EPOCH", 4, "CAUREID.CLUSTER_PERIOD", 2, "DATASETS.TESTS", (),
                    "SOLVER.ITERS_PER_EPOCH", 1)
    bank, relabelled = trainer.model.memory, []
    relabel = bank.relabel
    bank.relabel = lambda labels: relabelled.append(trainer.epoch) or relabel(labels)
    trainer.train()
    assert len(clusterings) == 2 and relabelled == [0, 2]


def test_the_options_of_the_clustering_come_from_the_config(start, clusterings):
    start("CAUREID.CLUSTER.SEARCH", "faiss-flat", "CAUREID.CLUSTER.RECALL", 0.9,
          "CAUREID.CLUSTER.MAX_MEMORY", 7.0, "SOLVER.ITERS_PER_EPOCH", 1).train()
    assert len(clusterings) == 2
    for _, options, _ in clusterings:
        assert options["search"] == clustering.Search("faiss-flat", recall=0.9, max_memory=7.0)
        assert [options[name] for name in ("k1", "k2", "eps", "min_samples")] == [6, 2, 0.6, 2]
        assert "camids" not in options


def test_camera_aware_neighbours_with_the_cameras_of_the_bank(start, clusterings):
    trainer = start("CAUREID.CLUSTER.CAMERA_AWARE", True, "CAUREID.CLUSTER.K1_INTRA", 3,
                    "CAUREID.CLUSTER.K1_INTER", 7, "CAUREID.CLUSTER.K2_INTER", 5,
                    "CAUREID.CLUSTER.EPS", 0.4, "SOLVER.ITERS_PER_EPOCH", 1)
    trainer.train()
    for _, options, _ in clusterings:
        assert torch.equal(options["camids"], trainer.model.memory.camids)
        assert (options["k1_intra"], options["k1_inter"]) == (3, 7) and "k1" not in options
    # the first clustering has counts of its own
    assert [(o["k2_intra"], o["k2_inter"]) for _, o, _ in clusterings] == [(3, 3), (2, 5)]


def test_eps_goes_from_that_of_the_first_clustering_to_that_of_the_others(start, clusterings):
    start("CAUREID.CLUSTER.EPS_FIRST", 0.75, "CAUREID.CLUSTER.EPS_FIRST_EPOCHS", 2,
          "SOLVER.MAX_EPOCH", 4, "DATASETS.TESTS", ()).train()
    assert [options["eps"] for _, options, _ in clusterings] == pytest.approx(
        [0.75, 0.675, 0.6, 0.6])


def test_what_is_clustered_is_standardised_by_camera_and_the_bank_is_not(start, clusterings):
    trainer = start("CAUREID.CLUSTER.STANDARDIZE", True, "SOLVER.MAX_EPOCH", 1,
                    "DATASETS.TESTS", ())
    filled, bank = [], trainer.model.memory
    reset = bank.reset
    bank.reset = lambda features: reset(features) or filled.append(bank.features.clone())
    trainer.train()
    (features, _, _), = clusterings
    assert torch.equal(features, clustering.standardize_by_camera(filled[0], bank.camids))
    assert not torch.allclose(features, filled[0], atol=0.1)


def test_a_camera_of_one_image_is_not_standardised(start, tiny_market):
    image = next((tiny_market / "Market-1501-v15.09.15/bounding_box_train").glob("*_c1*.jpg"))
    shutil.copy(image, image.with_name("0001_c5s1_000001_01.jpg"))
    with pytest.raises(ValueError, match=r"1 of the 3 cameras .*CAUREID.CLUSTER.STANDARDIZE"):
        start("CAUREID.CLUSTER.STANDARDIZE", True, "MODEL.HEADS.CAMSEP.NUM_CAMERAS", 3)


def test_bank_keeps_the_reliable_images_by_the_first_clusterings_threshold(
        start, monkeypatch, messages):
    """Of the bank at three eps; the threshold of the first epoch holds in all."""
    seen, refine = [], clustering.reliable_labels

    def watched(labels, **others):
        found = refine(labels, **others)
        seen.append((trainer.model.memory.features.clone(), labels, others, found))
        return found

    monkeypatch.setattr(clustering, "reliable_labels", watched)
    trainer = start("CAUREID.CLUSTER.EPS_GAP", 0.15, "SOLVER.MAX_EPOCH", 3, "DATASETS.TESTS", ())
    bank, relabelled = trainer.model.memory, []
    relabel = bank.relabel
    bank.relabel = lambda labels: relabelled.append(labels.numpy()) or relabel(labels)
    trainer.train()
    assert len(seen) == 3
    first = seen[0][3][1]
    assert 0 < first < 1 and bank.threshold == first
    for number, (features, labels, others, (found, threshold)) in enumerate(seen):
        assert others["threshold"] == (first if number else None) and threshold == first
        for eps, given in ((0.45, others["tighter"]), (0.6, labels), (0.75, others["looser"])):
            expected = clustering.assign_pseudo_labels(
                features, eps=eps, min_samples=2, k1=6, k2=2)
            assert np.array_equal(given, expected)
        assert np.array_equal(relabelled[number], clustering.outliers_to_singletons(found))
        became = (labels >= 0).sum() - (found >= 0).sum()
        assert any(text.startswith(f"{became} of the {(labels >= 0).sum()} clustered images are "
                                   "not reliably so") for text in messages)
    assert any((found >= 0).sum() < (labels >= 0).sum() for _, labels, _, (found, _) in seen)


def test_extract_and_a_gap_of_0_know_no_reliability(start, monkeypatch):
    monkeypatch.setattr(clustering, "reliable_labels", lambda *_, **__: 1 / 0)
    for options in (["CAUREID.LABELS", "extract", "CAUREID.CLUSTER.EPS_GAP", 0.02],
                    ["CAUREID.LABELS", "bank", "CAUREID.CLUSTER.EPS_GAP", 0.0]):
        trainer = start("SOLVER.MAX_EPOCH", 1, "SOLVER.ITERS_PER_EPOCH", 1, "DATASETS.TESTS", (),
                        *options)
        trainer.train()
        assert trainer.model.memory.threshold is None


def test_one_camera_a_draw_by_its_key(start, found):
    found(np.arange(48) // 6)
    trainer, batches = start("DATALOADER.CAMERAS", "one", "DATASETS.TESTS", ()), []
    forward = trainer.model.losses
    trainer.model.losses = lambda out, batch: batches.append(batch) or forward(out, batch)
    trainer.train()
    for batch in batches:
        for name in ("targets", "camids"):
            units = batch[name].view(4, 4)
            assert (units == units[:, :1]).all(), name


def test_the_learning_rate_warms_up_and_falls_as_the_config_says(start):
    """FastReID's schedule on epochs of SOLVER.ITERS_PER_EPOCH.

    The warm-up is counted in steps. SOLVER.STEPS are counted in epochs, from the first one that
    ends behind the warm-up.
    """
    rates = []

    class Watch(HookBase):
        def before_step(self):
            rates.append({group["lr"] for group in self.trainer.optimizer.param_groups})

    trainer = start("SOLVER.BASE_LR", 0.002, "SOLVER.WARMUP_ITERS", 5, "SOLVER.WARMUP_FACTOR",
                    0.01, "SOLVER.STEPS", [1, 3], "SOLVER.GAMMA", 0.1, "SOLVER.MAX_EPOCH", 6,
                    "DATASETS.TESTS", (), "CAUREID.CLUSTER_PERIOD", 6)
    trainer.register_hooks([Watch()])
    trainer.train()
    expected = [0.002 * (0.01 * (1 - step / 5) + step / 5) for step in range(5)]
    expected += [0.002] + 2 * 3 * [0.0002] + 2 * 3 * [0.00002]  # epochs 2 and 4 begin lower
    assert [rate for (rate,) in rates] == pytest.approx(expected, rel=1e-9)


def test_memory_that_is_not_there_ends_the_run_before_it_clusters(start):
    with pytest.raises(MemoryError, match="CAUREID.CLUSTER.MAX_MEMORY"):
        start("CAUREID.CLUSTER.MAX_MEMORY", 1e-6).train()


def test_frozen_layers_stay_frozen_while_features_are_extracted(start):
    trainer = start()
    trainer.model.train()
    trainer.model.backbone.eval()
    caureid_plugin.extract_features(trainer.model, trainer._hooks[-1]._extraction)
    assert trainer.model.training and trainer.model.heads.training
    assert not any(module.training for module in trainer.model.backbone.modules())


# ------------------------------------------------------------------------- bad input ----


AWARE = ["CAUREID.CLUSTER.CAMERA_AWARE", True, "CAUREID.CLUSTER.K1_INTRA", 3,
         "CAUREID.CLUSTER.K1_INTER", 6]


@pytest.mark.parametrize("options, message", [
    (["MODEL.HEADS.CAMSEP.NUM_CAMERAS", 5], "NUM_CAMERAS is 5, but .* 2 cameras"),
    (["CAUREID.LABELS", "both"], "CAUREID.LABELS 'both' is unknown"),
    (["CAUREID.CLUSTER_PERIOD", 0], "CLUSTER_PERIOD 0"),
    (["CAUREID.CLUSTER.SEARCH", "annoy"], "CAUREID.CLUSTER.SEARCH"),
    (["CAUREID.CLUSTER.RECALL", 1.5], "CAUREID.CLUSTER.RECALL"),
    (["CAUREID.CLUSTER.EPS", 0.0], "CAUREID.CLUSTER.EPS"),
    (["CAUREID.CLUSTER.EPS_FIRST_EPOCHS", -1], "EPS_FIRST_EPOCHS -1"),
    (["CAUREID.CLUSTER.EPS_FIRST", 0.7], "EPS_FIRST 0.7 and .*EPS_FIRST_EPOCHS 0 must both"),
    (["CAUREID.CLUSTER.EPS_FIRST_EPOCHS", 2], "EPS_FIRST 0 and .*EPS_FIRST_EPOCHS 2 must both"),
    (["CAUREID.CLUSTER.EPS_FIRST", 1.0, "CAUREID.CLUSTER.EPS_FIRST_EPOCHS", 1],
     r"CAUREID.CLUSTER.EPS_FIRST\).*got 1\.0"),
    (["CAUREID.CLUSTER.EPS_GAP", 0.4], r"CAUREID.CLUSTER.EPS_GAP.*got 0\.4 and eps=0\.6"),
    (["CAUREID.CLUSTER.MIN_SAMPLES", 0], "CAUREID.CLUSTER.MIN_SAMPLES"),
    (["DATALOADER.CAMERAS", "single"], "DATALOADER.CAMERAS 'single' is unknown"),
    (["CAUREID.CLUSTER.K2", 9], "CAUREID.CLUSTER.K2.*k2=9 and k1=6"),
    ([*AWARE, "CAUREID.CLUSTER.K2_INTRA_FIRST", 5], r"CLUSTER.K2_INTRA_FIRST\).*5 and 3"),
    ([*AWARE, "CAUREID.CLUSTER.K2_INTER", 8], r"CLUSTER.K2_INTER\).*8 and 6"),  # used later only
    ([*AWARE, "CAUREID.CLUSTER.K2_INTER_FIRST", -1], r"CLUSTER.K2_INTER_FIRST\) must be .*got -1"),
    (["SOLVER.IMS_PER_BATCH", 18], "SOLVER.IMS_PER_BATCH 18.*DATALOADER.NUM_INSTANCE 4"),
    (["SOLVER.ITERS_PER_EPOCH", -5], "ITERS_PER_EPOCH -5"),
    (["MODEL.HEADS.NUM_CLASSES", 0], "NUM_CLASSES 0 .* set it to -1"),
    (["TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.DATASET", "Market1501"], "PRECISE_BN"),
    (["MODEL.BN_GROUP_SIZE", 1], "BN_GROUP_SIZE"),
    (["MODEL.LOSSES.INFONCE.TEMPERATURE", 0.0], "INFONCE.TEMPERATURE 0.0"),
    (["MODEL.LOSSES.CACC.NUM_NEGATIVES", -1], "NUM_NEGATIVES -1"),
    (["CAUREID.MEMORY.MOMENTUM", 1.0], "MOMENTUM 1.0"),
    (["CAUREID.MEMORY.CENTRES", "median"], "CAUREID.MEMORY.CENTRES 'median' is unknown"),
    (["MODEL.LOSSES.NAME", ("ICELoss",), "MODEL.LOSSES.ICE.MOMENTUM", 1.0],
     "MODEL.LOSSES.ICE.MOMENTUM 1.0"),
    (["MODEL.META_ARCHITECTURE", "Baseline", "MODEL.HEADS.NUM_CLASSES", 8, "MODEL.LOSSES.NAME",
      ("CrossEntropyLoss",)], "META_ARCHITECTURE CAUReID, the model is a Baseline"),
])
def test_wrong_options_are_found_before_anything_is_computed(start, options, message):
    with pytest.raises(ValueError, match=message):
        start(*options)  # never trained


def test_without_faiss_the_key_of_the_search_is_named(start, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)  # makes "import faiss" fail
    with pytest.raises(ImportError, match=r"set backend \(CAUREID.CLUSTER.SEARCH\) to torch"):
        start("CAUREID.CLUSTER.SEARCH", "faiss-flat")


def test_unknown_head_lists_the_known_ones(start):
    with pytest.raises(KeyError, match="CamSepHead"):
        start("MODEL.HEADS.NAME", "CamSepHed")


def test_losses_without_the_hook(start):
    with pytest.raises(UserError, match="UnsupervisedHook"):
        start(hook=False).train()


# --------------------------------------------------------------------- what runs leave ----


def test_processes_and_threads_stay_flat_over_ten_epochs(start):
    """New loaders for every epoch, for features and for training, leave nothing behind."""
    counts = []

    class Count(HookBase):
        def after_step(self):
            counts.append((len(multiprocessing.active_children()),
                           len(os.listdir("/proc/self/task"))))

    trainer = start("SOLVER.MAX_EPOCH", 10, "SOLVER.ITERS_PER_EPOCH", 1, "CAUREID.LABELS",
                    "extract", "DATALOADER.NUM_WORKERS", 1, "DATASETS.TESTS", ())
    trainer.register_hooks([Count()])
    trainer.train()
    assert {processes for processes, _ in counts} == {1}
    # a queue's thread may still be ending; a leak would add two or more with each epoch
    assert max(threads for _, threads in counts[3:]) <= counts[2][1] + 4
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_for_terminals(start, monkeypatch, terminal):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    trainer = start("SOLVER.MAX_EPOCH", 1, "SOLVER.ITERS_PER_EPOCH", 1, "DATASETS.TESTS", ())
    monkeypatch.setattr(sys, "stderr", stream)
    trainer.train()
    for name in ("features", "clustering"):
        assert (name in stream.getvalue()) == terminal
