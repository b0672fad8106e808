"""The plugin's parts in experiments that are not ours, and ours with the toolbox's other parts.

Every config of configs/Mix, and those of the data sets that the paper does not have, is trained a
few steps on tiny images by the parts of tools/train_net.py, and evaluated.
"""

import contextlib
import math
from pathlib import Path

import caureid_plugin
import numpy as np
import pytest
import torch
from caureid_plugin import LOSS_REGISTRY, compat
from caureid_plugin.engine import training as train_net
from caureid_plugin.layers import GroupedBatchNorm2d
from fastreid.config import CfgNode, get_cfg
from fastreid.engine import DefaultTrainer
from fastreid.evaluation import ClasEvaluator, ReidEvaluator
from fastreid.modeling import build_model, meta_arch
from fastreid.modeling.heads import REID_HEADS_REGISTRY, EmbeddingHead
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY, Baseline
from fastreid.utils.compute_dist import build_dist
from fastreid.utils.events import EventStorage
from PIL import Image

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MIX = sorted(path.name for path in (CONFIGS / "Mix").glob("*.yml"))
# those that use identity labels, and say so in their first line
SUPERVISED = ("bagtricks_camsep.yml", "mgn_camsep.yml", "moco_camsep.yml",
              "supervised_camsep_loss.yml")

NUM_CAMERAS = "MODEL.HEADS.CAMSEP.NUM_CAMERAS"
LOSSES = "MODEL.LOSSES.NAME"
TINY = f"""
MODEL.DEVICE cpu MODEL.BACKBONE.PRETRAIN False {NUM_CAMERAS} 2 INPUT.SIZE_TRAIN [32,16]
INPUT.SIZE_TEST [32,16] DATALOADER.NUM_WORKERS 0 SOLVER.IMS_PER_BATCH 16 SOLVER.MAX_EPOCH 1
SOLVER.ITERS_PER_EPOCH 1 SOLVER.WARMUP_ITERS 0 SOLVER.CHECKPOINT_PERIOD 1 TEST.EVAL_PERIOD 1
TEST.IMS_PER_BATCH 64 CAUREID.CLUSTER.K1 6 CAUREID.CLUSTER.K2 2 CAUREID.CLUSTER.K1_INTRA 3
CAUREID.CLUSTER.K1_INTER 6 CAUREID.CLUSTER.EPS 0.5 CAUREID.CLUSTER.MIN_SAMPLES 2
CAUREID.LABELS extract
""".split()
UNSUPERVISED = ["MODEL.BN_GROUP_SIZE", 8]
RESNET18 = ["MODEL.BACKBONE.DEPTH", "18x", "MODEL.BACKBONE.FEAT_DIM", 512]
PLAIN = ["MODEL.BACKBONE.NAME", "build_plain_backbone", "MODEL.BACKBONE.FEAT_DIM", 16,
         "MODEL.HEADS.CAMSEP.REDUCTION", 4]
# the smallest that the backbone in question allows
SMALLER = {
    "bagtricks_camsep.yml": RESNET18,
    "caureid_osnet.yml": ["MODEL.BACKBONE.DEPTH", "x0_25", "MODEL.BACKBONE.FEAT_DIM", 128],
    "caureid_vit.yml": ["MODEL.BACKBONE.DEPTH", "small"],
    "caureid_vit_small.yml": ["MODEL.BACKBONE.TIMM.NAME", "test_vit",
                              "MODEL.BACKBONE.FEAT_DIM", 64],
    "embedding_head.yml": PLAIN,
    "joint.yml": [*PLAIN, NUM_CAMERAS, 5],
    "market_to_msmt17.yml": [*PLAIN, NUM_CAMERAS, 3],
    "mgn_camsep.yml": ["INPUT.SIZE_TRAIN", [96, 16], "INPUT.SIZE_TEST", [96, 16],
                       "MODEL.HEADS.EMBEDDING_DIM", 8, "SOLVER.OPT", "SGD",
                       "SOLVER.IMS_PER_BATCH", 8],
    "moco_camsep.yml": [*RESNET18, "MODEL.QUEUE_SIZE", 32],
    "supervised_camsep_loss.yml": PLAIN,
}
SCALARS = {
    "CACCLoss": "loss_cacc", "CAPLoss": "loss_cap_intra", "CameraSeparationLoss": "loss_camsep",
    "CrossEntropyLoss": "loss_cls", "ICELoss": "loss_ice_hard", "InfoNCELoss": "loss_infonce",
    "TripletLoss": "loss_triplet",
}
# scalars that the toolbox's architectures name themselves
OWN_SCALARS = {
    "mgn_camsep.yml": {f"loss_cls_b{b}" for b in (1, 2, 21, 22, 3, 31, 32, 33)}
    | {f"loss_triplet_b{b}" for b in (1, 2, 22, 3, 33)},
    "moco_camsep.yml": {"loss_cls", "loss_triplet", "loss_mb"},
}


def _draw(cameras, place):
    """Five people to train with and three to test with, two images for each camera.

    32 x 16 images of two blocks of colour, darker with each camera, and noise. ``place``: the path
    for split (train, query, gallery), person, camera and shot.
    """
    rng = np.random.default_rng(1)
    for person in range(8):
        colours = np.repeat(rng.uniform(20, 235, size=(2, 3)), 16, axis=0)[:, None]
        for number, camera in enumerate(cameras):
            for shot in range(2):
                image = colours * (1.0 - 0.1 * number) + rng.normal(scale=12.0, size=(32, 16, 3))
                split = "train" if person < 5 else ("query", "gallery")[shot]
                path = place(split, person, camera, shot)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path, quality=95)


@pytest.fixture
def tiny_msmt17(tiny_market):
    """Three cameras in MSMT17's layout, beside the tiny Market-1501."""
    base, lists = tiny_market / "MSMT17_V1", {"train": [], "val": [], "query": [], "gallery": []}

    def place(split, person, camera, shot):
        name = f"{person:04d}/{person:04d}_{shot:03d}_{camera:02d}_0303morning_0015_0.jpg"
        lists[split].append(f"{name} {person if split == 'train' else person - 5}\n")
        return base / ("train" if split == "train" else "test") / name

    _draw((1, 7, 15), place)
    for split, lines in lists.items():
        (base / f"list_{split}.txt").write_text("".join(lines))


def _veri(split, who, camera, shot):
    folder = {"train": "image_train", "query": "image_query", "gallery": "image_test"}[split]
    return f"veri/{folder}/{who + 1:04d}_c{camera:03d}_{shot:08d}_0.jpg"


def _personx(split, who, camera, shot):
    folder = {"train": "bounding_box_train", "gallery": "bounding_box_test"}.get(split, split)
    return f"PersonX/{folder}/{who + 1:04d}_c{camera}s1_{shot:06d}_00.jpg"


@pytest.fixture
def start(cfg, tiny_market, tmp_path):
    """Trainer of a shipped config, made small; more keys as arguments."""

    def make(name, *options, folder="out", saved=False):
        run = cfg.clone()
        run.merge_from_file(str(CONFIGS / name))
        run.merge_from_list([*TINY, *([] if Path(name).name in SUPERVISED else UNSUPERVISED),
                             *SMALLER.get(Path(name).name, []), *options,
                             "OUTPUT_DIR", str(tmp_path / folder)])
        run.freeze()
        (tmp_path / folder).mkdir(exist_ok=True)
        torch.manual_seed(0)
        np.random.seed(0)
        trainer = train_net.build_trainer(run)
        trainer.checkpointer.save_to_disk = saved  # gigabytes, for the larger networks
        return trainer

    return make


def weights(trainer):
    return {name: parameter.detach().clone()
            for name, parameter in trainer.model.named_parameters()}


def norms(trainer):
    """Tells whether a weight has moved without a copy of them all."""
    return {name: parameter.detach().norm().item()
            for name, parameter in trainer.model.named_parameters()}


def plain_map(given, num_query):
    """mAP in per cent of batches and their embeddings, the queries first, in loops.

    The distances are the toolbox's: rounding orders images that so short a training leaves alike.
    """
    batches, embeddings = zip(*given, strict=True)
    embeddings = torch.cat(embeddings)
    distances = build_dist(embeddings[:num_query], embeddings[num_query:], "cosine")
    who, camera = (torch.cat([batch[key] for batch in batches]) for key in ("targets", "camids"))
    precisions = []
    for query in range(num_query):
        ranked = num_query + np.argsort(distances[query])
        hits = np.array([bool(who[row] == who[query]) for row in ranked
                         if (who[row], camera[row]) != (who[query], camera[query])])
        if hits.any():
            precisions.append(np.mean([hits[:rank + 1].mean() for rank in np.flatnonzero(hits)]))
    return 100 * np.mean(precisions)


@pytest.fixture
def check_run(monkeypatch):
    """Trains; the named losses are there and finite, the weights move, every mAP is right.

    That is: of the trained network's embeddings, as plain loops find it.
    """
    given, process = {}, ReidEvaluator.process

    def watched(evaluator, inputs, outputs):
        given.setdefault(evaluator, []).append((inputs, outputs.clone()))
        process(evaluator, inputs, outputs)

    monkeypatch.setattr(ReidEvaluator, "process", watched)

    def check(trainer, expected):
        before = norms(trainer)
        results = trainer.train()
        latest = {name: value for name, (value, _) in trainer.storage.latest().items()}
        found = {name for name in latest if name.startswith("loss_")}
        assert found == expected
        assert all(math.isfinite(latest[name]) for name in found)
        after = norms(trainer)
        still = [name for name, value in before.items() if value == after[name]]
        assert len(still) < 0.2 * len(before), still
        tests = trainer.cfg.DATASETS.TESTS
        found = [results] if len(tests) == 1 else [results[name] for name in tests]
        trainer.model.eval()
        for name, result, (evaluator, batches) in zip(
                tests, found, list(given.items())[-len(tests):], strict=True):
            assert result["mAP"] == pytest.approx(
                plain_map(batches, evaluator._num_query), abs=1e-2)
            loader, _ = trainer.build_test_loader(trainer.cfg, name)
            images = next(iter(loader))["images"][:2]
            with torch.no_grad():
                expected = trainer.model({"images": images})
            scale = expected.abs().max()
            torch.testing.assert_close(batches[0][1][:2] / scale, expected / scale,
                                       rtol=0, atol=1e-4)

    return check


# ------------------------------------------------------------------------ the configs ----


@pytest.mark.parametrize("name", MIX)
def test_trains_and_evaluates(start, check_run, tiny_msmt17, name):
    trainer = start(f"Mix/{name}")
    losses = {SCALARS[loss] for loss in trainer.cfg.MODEL.LOSSES.NAME}
    check_run(trainer, OWN_SCALARS.get(name, losses))
    memory = getattr(trainer.model, "memory", None)
    assert isinstance(memory, caureid_plugin.MemoryBank) == (name not in SUPERVISED)


@pytest.mark.parametrize("name, losses, options", [  # a single one is logged as the total only
    ("spcl", (), ["CAUREID.LABELS", "bank"]), ("cluster_contrast", (), []),
    ("cluster_contrast_hard", (), []),
    ("cap", {"cap_intra", "cap_inter"}, ["MODEL.LOSSES.CAP.INTER_EPOCH", 0]),
    ("ice", {"ice_cluster", "ice_camera", "ice_hard", "ice_soft"}, [])])
def test_methods_of_others_train(start, check_run, name, losses, options):
    trainer = start(f"Peers/{name}.yml", *PLAIN, "DATALOADER.NUM_INSTANCE", 4, *options)
    check_run(trainer, {f"loss_{loss}" for loss in losses})
    assert math.isfinite(trainer.storage.latest()["total_loss"][0])


@pytest.mark.parametrize("name, cameras, layout", [
    ("MSMT17", (), None), ("VeRi", (1, 9, 20), _veri), ("PersonX", (3, 10, 11), _personx)])
def test_other_data_sets(start, check_run, tiny_market, tiny_msmt17, name, cameras, layout):
    _draw(cameras, lambda *image: tiny_market / layout(*image))
    trainer = start(f"{name}/caureid.yml", *PLAIN, NUM_CAMERAS, 3)
    assert trainer.cfg.DATASETS.NAMES == trainer.cfg.DATASETS.TESTS == (name,)
    check_run(trainer, {"loss_infonce", "loss_camsep", "loss_cacc"})
    assert torch.bincount(trainer.model.memory.camids).tolist() == [10, 10, 10]


def test_cameras_of_joined_data_sets_do_not_mix(start, tiny_msmt17):
    trainer = start("Mix/joint.yml")
    listed = trainer.data_loader.dataset.img_items
    numbers = {}
    for (path, _, _), camid in zip(listed, trainer.model.memory.camids.tolist(), strict=True):
        numbers.setdefault("MSMT17" in path, set()).add(camid)
    assert numbers == {False: {0, 1}, True: {2, 3, 4}}


def test_from_a_supervised_start_to_another_data_set(start, check_run, tiny_msmt17, tmp_path):
    first = start("Mix/supervised_camsep_loss.yml", folder="first", saved=True)
    first.train()
    learnt = weights(first)
    trainer = start("Mix/market_to_msmt17.yml", "MODEL.WEIGHTS",
                    str(tmp_path / "first" / "model_final.pth"), folder="second")
    fresh = weights(trainer)
    trainer.resume_or_load(resume=False)
    assert trainer.start_epoch == 0
    loaded = weights(trainer)
    # cameras are others, identities there are none
    assert loaded.keys() == learnt.keys() - {"heads.weight"}
    for name, value in loaded.items():
        expected = fresh if name == "heads.camera_classifier.weight" else learnt
        assert torch.equal(value, expected[name]), name
    at_start = trainer.test(trainer.cfg, trainer.model)["mAP"]
    check_run(trainer, {"loss_infonce", "loss_camsep", "loss_cacc"})
    assert trainer.storage.latest()["start/mAP"][0] == at_start


# ------------------------------------------------------------- the toolbox's other parts ----


def test_each_head_of_mgn_has_its_own_mask(cfg):
    cfg.merge_from_file(str(CONFIGS / "Mix" / "mgn_camsep.yml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.PRETRAIN", False,
                         "MODEL.HEADS.CAMSEP.REDUCTION", 512])
    model = build_model(cfg)
    heads = [module for module in model.children()
             if isinstance(module, caureid_plugin.CamSepHead)]
    assert len({id(head.attention) for head in heads}) == 8
    assert all(head.camera_classifier is None for head in heads)
    assert model.eval()({"images": torch.rand(2, 3, 96, 32)}).shape == (2, 8 * 256)


@pytest.mark.parametrize("architecture, loss", [
    ("MGN", "CameraSeparationLoss"), ("MoCo", "InfoNCELoss"), ("Distiller", "CAPLoss"),
    ("MGN", "ICELoss")])
def test_the_toolboxs_architectures_do_not_know_our_losses(cfg, architecture, loss):
    """MGN would train without it, and the others would fail at their first step."""
    cfg.merge_from_file(str(CONFIGS / "Mix" / "bagtricks_camsep.yml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.PRETRAIN", False,
                         "MODEL.META_ARCHITECTURE", architecture,
                         LOSSES, ("CrossEntropyLoss", loss)])
    with pytest.raises(ValueError, match=rf"META_ARCHITECTURE {architecture} does not know .*"
                       rf"\['{loss}'\] of MODEL.LOSSES.NAME.* CAUReID"):
        build_model(cfg)


def supervised_run(cfg, tmp_path):
    """A network with the plugin's parts, and the config.yaml and weights of its run."""
    cfg.merge_from_file(str(CONFIGS / "Mix" / "supervised_camsep_loss.yml"))
    cfg.merge_from_list([*TINY, *PLAIN, "MODEL.HEADS.NUM_CLASSES", 4, "SEED", 3])
    model = build_model(cfg)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save({"model": model.state_dict()}, tmp_path / "model_final.pth")
    return model


def test_a_run_of_the_plugin_teaches_in_a_distiller(cfg, tmp_path):
    teacher = supervised_run(cfg, tmp_path)
    student = student_of(tmp_path)
    model = build_model(student)
    taught, = model.model_ts
    assert all(torch.equal(value, teacher.state_dict()[name])
               for name, value in taught.state_dict().items() if name in teacher.state_dict())
    with EventStorage(0):
        found = model({"images": torch.rand(8, 3, 32, 16), "targets": torch.arange(8) // 2})
    assert set(found) == {"loss_cls", "loss_jsdiv"}


def test_a_teacher_needs_classes(cfg, tmp_path):
    cfg.merge_from_list([*TINY, *PLAIN])
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.HEADS.NAME = "CAUReID", "CamSepHead"
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model_final.pth")
    model = build_model(student_of(tmp_path))
    with EventStorage(0), pytest.raises(KeyError, match="'pred_class_logits', which CamSepHead .*"
                                        "NUM_CLASSES, a Distiller's teacher's as well"):
        model({"images": torch.rand(8, 3, 32, 16), "targets": torch.arange(8) // 2})


def student_of(tmp_path):
    student = get_cfg()
    student.KD = CfgNode({  # as FastReID's FastDistill adds them
        "MODEL_CONFIG": [str(tmp_path / "config.yaml")],
        "MODEL_WEIGHTS": [str(tmp_path / "model_final.pth")],
        "EMA": {"ENABLED": False, "MOMENTUM": 0.999}})
    student.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.PRETRAIN", False, *PLAIN[:4],
                             "MODEL.META_ARCHITECTURE", "Distiller",
                             "MODEL.HEADS.NUM_CLASSES", 4])
    return student


def test_the_toolboxs_tools_read_the_config_of_a_run(cfg, tmp_path):
    supervised_run(cfg, tmp_path)
    plain = get_cfg()
    plain.merge_from_file(str(tmp_path / "config.yaml"))
    assert plain == cfg and plain.SEED == 3
    by_key = get_cfg()
    by_key.merge_from_list(["MODEL.HEADS.NUM_CLASSES", 4])
    assert "CAUREID" not in by_key  # keys of the toolbox need nothing
    by_key.merge_from_list(["CAUREID.CLUSTER.EPS", 0.3])
    assert (by_key.CAUREID.CLUSTER.EPS, by_key.MODEL.HEADS.NUM_CLASSES, by_key.SEED) == (0.3, 4, -1)
    with pytest.raises(KeyError, match="CLUSTRE"):
        get_cfg().merge_from_list(["CAUREID.CLUSTRE.EPS", 0.3])
    own = get_cfg()
    own.SEED = 7  # a project's own key of that name
    own.merge_from_list(["CAUREID.CLUSTER.EPS", 0.3])
    assert own.SEED == 7
    with compat.without("plugin_keys"), pytest.raises(KeyError, match="CAUREID|CAMERA_FOLDER"):
        get_cfg().merge_from_file(str(tmp_path / "config.yaml"))


def test_the_head_in_a_config_without_the_plugins_keys():
    plain = get_cfg()
    plain.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.PRETRAIN", False,
                           *PLAIN[:4], "MODEL.HEADS.NAME", "CamSepHead"])
    plain.freeze()
    head = build_model(plain).heads
    assert isinstance(head, caureid_plugin.CamSepHead) and head.attention is not None
    assert "CAMSEP" not in plain.MODEL.HEADS and plain.is_frozen()
    with compat.without("plugin_keys"), pytest.raises(AttributeError, match="CAMSEP"):
        meta_arch.build_model(plain)


def test_grouped_batch_norms_of_repvgg_fold_into_its_convolutions(cfg):
    """The toolbox's deploy(), for a trained network: one convolution in place of three branches."""
    cfg.merge_from_file(str(CONFIGS / "Mix" / "caureid_repvgg.yml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.PRETRAIN", False])
    torch.manual_seed(0)
    backbone = build_model(cfg).backbone.eval()
    grouped = [m for m in backbone.modules() if isinstance(m, GroupedBatchNorm2d)]
    assert len(grouped) > 40
    for norm in grouped:
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.normal_(0, 0.1)
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 2.0)
    images = torch.randn(2, 3, 32, 16)
    with torch.no_grad():
        before = backbone(images)
        backbone.deploy(True)
        after = backbone(images)
    assert not [m for m in backbone.modules() if isinstance(m, GroupedBatchNorm2d)]
    scale = before.abs().max()
    assert (before[0] - before[1]).abs().max() > 0.01 * scale
    torch.testing.assert_close(after / scale, before / scale, rtol=0, atol=1e-5)


# ------------------------------------------------------- architectures of somebody's own ----


class ByAttributes(Baseline):
    """As FastReID's AttrBaseline: a loss of its own alone, whatever MODEL.LOSSES.NAME says."""

    def losses(self, outputs, gt_labels):
        return {"loss_attributes": outputs["cls_outputs"].square().mean()}


class WithCentres(Baseline):
    """The toolbox's losses and one more."""

    def losses(self, outputs, gt_labels):
        found = super().losses(outputs, gt_labels)
        if "CentreLoss" in self.loss_kwargs["loss_names"]:
            found["loss_centre"] = outputs["features"].square().mean()
        return found


class InForward(Baseline):
    """The same, added where the network is called."""

    def forward(self, batched_inputs):
        found = super().forward(batched_inputs)
        if self.training:
            found["loss_centre"] = found["loss_cls"] ** 2
        return found


class WithTheRegistry(Baseline):
    """Calls the plugin's losses itself."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.built = caureid_plugin.build_losses(cfg)

    def forward(self, batched_inputs):
        self.batch = batched_inputs
        return super().forward(batched_inputs)

    def losses(self, outputs, gt_labels):
        found = {}
        for loss in self.built:
            found.update(loss(outputs, self.batch, None))
        return found


class Unchanged(Baseline):
    def preprocess_image(self, batched_inputs):
        return super().preprocess_image(batched_inputs)


class AddedToAFork(Baseline):
    def losses(self, outputs, gt_labels):
        return {"loss_own": outputs["features"].mean()}


AddedToAFork.__module__ = "fastreid.modeling.meta_arch.added"


class OfThePlugin(caureid_plugin.CAUReID):
    """A subclass of CAUReID that leaves a loss out."""

    def losses(self, outputs, batch):
        found = super().losses(outputs, batch)
        return {"loss_own": 2 * found.pop("loss_camsep"), **found}


class SetOnTheInstance(Baseline):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.losses = lambda outputs, gt_labels: {"loss_own": outputs["features"].mean()}


class OneNumber(Baseline):
    def losses(self, outputs, gt_labels):
        return outputs["features"].mean()


OWN = (ByAttributes, WithCentres, InForward, WithTheRegistry, Unchanged, AddedToAFork, OfThePlugin,
       SetOnTheInstance, OneNumber)


@pytest.fixture
def first_step(cfg, monkeypatch):
    """Losses of the first training step of an architecture, with the losses named."""
    monkeypatch.setattr(META_ARCH_REGISTRY, "_obj_map", {
        **META_ARCH_REGISTRY._obj_map, **{own.__name__: own for own in OWN}})

    def step(architecture, *names, head="CamSepHead"):
        cfg.merge_from_file(str(CONFIGS / "Mix" / "supervised_camsep_loss.yml"))
        cfg.merge_from_list([*TINY, *PLAIN, LOSSES, names, "MODEL.HEADS.NAME", head,
                             "MODEL.META_ARCHITECTURE", architecture.__name__,
                             "MODEL.HEADS.NUM_CLASSES", 4])
        model = build_model(cfg)
        camera = torch.arange(8) % 2
        with EventStorage(0):
            losses = model({"images": torch.rand(8, 3, 32, 16), "targets": torch.arange(8) // 2,
                            "camids": camera})
        assert model.eval()({"images": torch.rand(2, 3, 32, 16)}).shape == (2, 16)
        return set(losses)

    return step


@pytest.mark.parametrize("architecture, names, head", [
    (ByAttributes, ("CameraSeparationLoss",), "CamSepHead"),
    (ByAttributes, ("CrossEntropyLoss", "InfoNCELoss"), "EmbeddingHead"),
    (WithCentres, ("CrossEntropyLoss", "CACCLoss", "CentreLoss"), "CamSepHead"),
    (InForward, ("CrossEntropyLoss", "CameraSeparationLoss"), "EmbeddingHead"),
    (AddedToAFork, ("CameraSeparationLoss",), "CamSepHead"),
    (OfThePlugin, ("CameraSeparationLoss",), "CamSepHead"),
    (SetOnTheInstance, ("CameraSeparationLoss",), "CamSepHead"),
    (OneNumber, ("CameraSeparationLoss",), "CamSepHead")])
def test_a_loss_of_the_plugin_that_nobody_computes_is_an_error(
        first_step, architecture, names, head):
    ours, = set(names) & {"CameraSeparationLoss", "InfoNCELoss", "CACCLoss"}
    with pytest.raises(ValueError, match=rf"{architecture.__name__} gives no {SCALARS[ours]} in "
                       rf"training.*\['{ours}'\] of MODEL.LOSSES.NAME.*CAUReID.*build_losses"):
        first_step(architecture, *names, head=head)


def test_an_architecture_may_compute_the_plugins_losses_itself(first_step, messages):
    names = ("CrossEntropyLoss", "CameraSeparationLoss")
    assert first_step(WithTheRegistry, *names) == {"loss_cls", "loss_camsep"}
    assert not [message for message in messages if "LOSSES.NAME" in message]


def test_baseline_does_not_know_them_at_its_first_step(first_step):
    """It is built with them all the same, as a Distiller's teacher, which computes no losses."""
    with pytest.raises(ValueError, match=r"Baseline does not know the losses "
                       r"\['CameraSeparationLoss'\] of MODEL.LOSSES.NAME.* CAUReID"):
        first_step(Baseline, "CrossEntropyLoss", "CameraSeparationLoss")


@pytest.mark.parametrize("architecture, name, expected", [
    (WithCentres, "CentreLoss", {"loss_cls", "loss_centre"}),
    (InForward, "CentreLoss", {"loss_cls", "loss_centre"}),
    (ByAttributes, "BinaryCrossEntropyLoss", {"loss_attributes"}),
    (AddedToAFork, "OwnLoss", {"loss_own"})])
def test_an_architecture_may_have_losses_of_its_own(
        first_step, messages, architecture, name, expected):
    assert first_step(architecture, "CrossEntropyLoss", name, head="EmbeddingHead") == expected
    told, = [message for message in messages if "LOSSES.NAME" in message]
    assert f"has ['{name}']" in told and f"left to {architecture.__name__}" in told
    assert "neither FastReID's nor the plugin's own" in told and "LOSS_REGISTRY" in told


def test_an_architecture_without_losses_of_its_own_knows_the_toolboxs(first_step):
    assert first_step(Unchanged, "CrossEntropyLoss", head="EmbeddingHead") == {"loss_cls"}
    with pytest.raises(ValueError, match=r"Unchanged does not know the losses \['CentreLoss'\]"):
        first_step(Unchanged, "CrossEntropyLoss", "CentreLoss", head="EmbeddingHead")


def test_the_scalars_of_the_plugins_losses_are_known():
    theirs = {name: SCALARS[name] for name in LOSS_REGISTRY._obj_map
              if name not in compat.TOOLBOX_LOSSES}
    assert theirs == compat.PLUGIN_LOSSES


@pytest.mark.parametrize("classes", [4, 16])  # as many as the embedding has numbers
@pytest.mark.parametrize("head", ["CamSepHead", "EmbeddingHead", "ClasHead"])
def test_classification_with_embeddings_is_an_error(cfg, head, classes):
    """It would take the place of the embedding's largest number for a class."""
    cfg.merge_from_file(str(CONFIGS / "Mix" / "bagtricks_camsep.yml"))
    cfg.merge_from_list([*TINY, *PLAIN, "MODEL.HEADS.NAME", head,
                         "MODEL.HEADS.NUM_CLASSES", classes])
    evaluator = ClasEvaluator(cfg)
    batch = {"images": torch.rand(8, 3, 32, 16), "targets": torch.arange(8) // 2}
    with torch.no_grad():
        outputs = build_model(cfg).eval()({"images": batch["images"]})
    if head == "ClasHead":
        evaluator.process(batch, outputs)
        right = 100 * (outputs.argmax(dim=1) == batch["targets"]).float().mean()
        assert evaluator.evaluate()["Acc@1"] == pytest.approx(right.item())
        return
    with pytest.raises(ValueError, match=f"16 numbers for an image.*there are {classes} classes.*"
                       f"{head} gives embeddings.*ClasHead"):
        evaluator.process(batch, outputs)
    with compat.without("embedding_as_scores"):
        evaluator.process(batch, outputs)


@pytest.mark.parametrize("own", ["head", "architecture"])
def test_scores_of_ones_own_parts_are_scores(cfg, own, monkeypatch):
    """The configured head may be another's that inherits, or one that nobody asks."""
    class OwnHead(EmbeddingHead):
        def forward(self, features, targets=None):
            return features

    class OwnNet(Baseline):
        def forward(self, batched_inputs):
            return batched_inputs["scores"]

    monkeypatch.setitem(REID_HEADS_REGISTRY._obj_map, "OwnHead", OwnHead)
    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, "OwnNet", OwnNet)
    key, name = {"head": ("MODEL.HEADS.NAME", "OwnHead"),
                 "architecture": ("MODEL.META_ARCHITECTURE", "OwnNet")}[own]
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "Baseline", "MODEL.HEADS.NAME", "EmbeddingHead",
                         "MODEL.HEADS.NUM_CLASSES", 4, key, name])
    evaluator = ClasEvaluator(cfg)
    evaluator.process({"targets": torch.arange(4)}, torch.eye(4))
    assert evaluator.evaluate()["Acc@1"] == 100


# ----------------------------------------------------- EmbeddingHead without identities ----


def test_embedding_head_trains_as_our_head_without_attention(start):
    states = []
    for options in ([], ["MODEL.HEADS.NAME", "CamSepHead", "MODEL.HEADS.CAMSEP.ATTENTION", "none"]):
        trainer = start("Mix/embedding_head.yml", *options, "SOLVER.MAX_EPOCH", 2,
                        "DATASETS.TESTS", ())
        trainer.train()
        states.append(weights(trainer))
    assert states[0].pop("heads.weight").numel() == 0
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_embedding_head_gets_no_classes_whatever_the_classifier(start, check_run):
    trainer = start("Mix/embedding_head.yml", "MODEL.HEADS.CLS_LAYER", "CircleSoftmax")
    head = trainer.model.heads
    assert head.weight.shape == (0, 16) and not head.weight.requires_grad
    assert trainer.cfg.MODEL.HEADS.NUM_CLASSES == -1
    check_run(trainer, {"loss_infonce", "loss_cacc"})


@pytest.mark.parametrize("options, message", [
    ([LOSSES, ("InfoNCELoss", "CrossEntropyLoss")],
     "CrossEntropyLoss needs the head's output 'pred_class_logits'.*NUM_CLASSES"),
    ([LOSSES, ("InfoNCELoss", "CameraSeparationLoss")], "'camera_logits'.*MODEL.HEADS.NAME"),
    (["MODEL.HEADS.NAME", "ClasHead"], "HEADS.NAME ClasHead .*CamSepHead or EmbeddingHead")])
def test_heads_without_what_training_needs(start, options, message):
    with pytest.raises(ValueError, match=message):
        start("Mix/embedding_head.yml", *options).train()


@pytest.mark.parametrize("options, fine", [
    ([], True),
    (["MODEL.HEADS.NUM_CLASSES", 4], False),  # a classifier that no loss looks at
])
def test_every_weight_of_embedding_head_gets_a_gradient(cfg, tmp_path, options, fine):
    """DistributedDataParallel ends a run at its second step otherwise."""
    cfg.merge_from_file(str(CONFIGS / "Mix" / "embedding_head.yml"))
    assert cfg.MODEL.HEADS.NAME == "EmbeddingHead"
    cfg.merge_from_list([*TINY, *PLAIN, LOSSES, ("TripletLoss",), *options])
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", world_size=1, rank=0)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(build_model(cfg))

        def step():
            batch = {"images": torch.rand(8, 3, 32, 16), "targets": torch.arange(8) // 2}
            sum(parallel(batch).values()).backward()

        step()
        with contextlib.nullcontext() if fine else pytest.raises(RuntimeError, match="reduction"):
            step()
    finally:
        torch.distributed.destroy_process_group()


# ----------------------------------------------------------------------------- cameras ----


def test_supervised_training_with_a_camera_too_many(start, tiny_msmt17):
    with pytest.raises(ValueError, match="MODEL.HEADS.CAMSEP.NUM_CAMERAS is 2, but the training "
                       "images come from 3 cameras: set it to 3"):
        start("Mix/supervised_camsep_loss.yml", "DATASETS.NAMES", ("MSMT17",))


@pytest.mark.parametrize("camids, found", [
    (None, "NoneType"), (["c1"] * 8, "list"), (torch.zeros(8), "torch.float32")])
def test_cameras_that_are_no_integers(cfg, camids, found):
    cfg.merge_from_file(str(CONFIGS / "Mix" / "supervised_camsep_loss.yml"))
    cfg.merge_from_list([*TINY, *PLAIN, LOSSES, ("TripletLoss", "CameraSeparationLoss")])
    model = build_model(cfg)
    batch = {"images": torch.rand(8, 3, 32, 16), "targets": torch.arange(8) // 2}
    if camids is not None:
        batch["camids"] = camids
    with pytest.raises(ValueError, match=f"'camids' of the batch; it is of type {found}"):
        model(batch)


def test_the_trainer_of_the_toolbox_takes_the_supervised_config(cfg, check_run, tiny_market,
                                                                tmp_path):
    """Nothing but the import and the keys of the plugin is needed: no hook."""
    cfg.merge_from_file(str(CONFIGS / "Mix" / "supervised_camsep_loss.yml"))
    cfg.merge_from_list([*TINY, *PLAIN, "OUTPUT_DIR", str(tmp_path)])
    check_run(DefaultTrainer(cfg), {"loss_cls", "loss_triplet", "loss_camsep"})


def test_values_that_were_given_before_the_keys_are_asked_for_stay():
    cfg = get_cfg()
    cfg.merge_from_list(["CAUREID.CLUSTER.EPS", 0.3])
    caureid_plugin.add_caureid_config(cfg)
    assert cfg.CAUREID.CLUSTER.EPS == 0.3 and cfg.CAUREID.CLUSTER.MIN_SAMPLES == 4
