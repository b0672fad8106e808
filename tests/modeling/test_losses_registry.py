"""The loss registry, its wrappers, and the CAUReID meta-architecture that sums them."""

import re

import caureid_plugin
import pytest
import torch
import torch.nn.functional as F
from caureid_plugin import LOSS_REGISTRY, build_losses, losses, needs_memory
from caureid_plugin.common.errors import UserError
from caureid_plugin.compat import TOOLBOX_LOSSES, registered_names
from caureid_plugin.compat.losses import PLUGIN_LOSSES
from caureid_plugin.modeling import camera_losses
from fastreid.modeling.meta_arch import build_model
from fastreid.utils.events import EventStorage

MEMORY_LOSSES = ["CACCLoss", "CAPLoss", "ICELoss", "InfoNCELoss"]
ALL_LOSSES = sorted([*MEMORY_LOSSES, "CameraSeparationLoss", *TOOLBOX_LOSSES])
NAME = "MODEL.LOSSES.NAME"


def make_outputs():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 4, generator=generator)
    return {
        "features": 3 * torch.randn(8, 16, generator=generator),
        "camera_logits": torch.randn(8, 3, generator=generator),
        "cls_outputs": 2 * logits,
        "pred_class_logits": logits,
        # of a teacher
        "second_images": F.normalize(torch.randn(8, 16, generator=generator), dim=1),
        "plain_images": F.normalize(torch.randn(8, 16, generator=generator), dim=1),
    }


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_every_registered_loss_is_built_from_a_config(make_cfg, make_batch, make_bank, name):
    assert registered_names(LOSS_REGISTRY) == ALL_LOSSES
    cfg = make_cfg(NAME, (name,))
    (loss,) = build_losses(cfg)
    assert type(loss) is LOSS_REGISTRY.get(name)
    assert loss.needs_memory == needs_memory(cfg) == (name in MEMORY_LOSSES)
    with EventStorage(0):
        found = loss(make_outputs(), make_batch(), make_bank())
    assert len(found) == (4 if name == "ICELoss" else 1)
    if name in PLUGIN_LOSSES:  # by which it is missed in somebody's own architecture
        assert PLUGIN_LOSSES[name] in found
    for value in found.values():
        assert value.shape == () and value > 0 and torch.isfinite(value)


@pytest.mark.parametrize("build", [build_losses, needs_memory])
def test_unknown_name_lists_the_known_ones(make_cfg, build):
    known = re.escape(str(ALL_LOSSES))
    with pytest.raises(ValueError, match=f"'InfoNCELos' in MODEL.LOSSES.NAME, known are {known}"):
        build(make_cfg(NAME, ("InfoNCELos",)))


@pytest.mark.parametrize("options, message", [
    ([NAME, ()], "at least one loss, each once"),
    ([NAME, ("InfoNCELoss", "CACCLoss", "InfoNCELoss")], "at least one loss, each once"),
    (["MODEL.LOSSES.CACC.ANCHOR", "center"], "CACC.ANCHOR 'center' .*'centre', 'sample'"),
    ([NAME, ("CAPLoss",), "MODEL.LOSSES.CAP.TEMPERATURE", 0.0], "CAP.TEMPERATURE 0.0 .*positive"),
    ([NAME, ("CAPLoss",), "MODEL.LOSSES.CAP.NUM_NEGATIVES", -1], "CAP.NUM_NEGATIVES -1 .*negative"),
    ([NAME, ("CAPLoss",), "MODEL.LOSSES.CAP.INTER_EPOCH", -1], "CAP.INTER_EPOCH -1 .*negative"),
    ([NAME, ("ICELoss",), "MODEL.LOSSES.CAP.INTER_SCALE", -0.5], "CAP.INTER_SCALE -0.5 .*negative"),
    ([NAME, ("ICELoss",), "MODEL.LOSSES.ICE.HARD_TEMPERATURE", 0.0], "ICE.HARD_TEMPERATURE 0.0"),
])
def test_what_cannot_be_built_is_refused(make_cfg, options, message):
    with pytest.raises(ValueError, match=message):
        build_losses(make_cfg(*options))


@pytest.mark.parametrize("name", MEMORY_LOSSES)
def test_memory_losses_without_a_bank(make_cfg, make_batch, name):
    (loss,) = build_losses(make_cfg(NAME, (name,)))
    with pytest.raises(UserError, match=f"{name} .*UnsupervisedHook"):
        loss(make_outputs(), make_batch(), None)


@pytest.mark.parametrize("name, key", [
    ("InfoNCELoss", "features"), ("TripletLoss", "features"),
    ("CameraSeparationLoss", "camera_logits"), ("CrossEntropyLoss", "pred_class_logits"),
])
def test_missing_output_of_the_head(make_cfg, make_batch, make_bank, name, key):
    (loss,) = build_losses(make_cfg(NAME, (name,)))
    outputs = make_outputs()
    del outputs[key]
    with pytest.raises(ValueError, match=f"{name} needs the head's output '{key}'"):
        loss(outputs, make_batch(), make_bank())


def test_info_nce_wrapper(make_cfg, make_batch, make_bank):
    cfg = make_cfg(NAME, ("InfoNCELoss",), "MODEL.LOSSES.INFONCE.SCALE", 0.3,
                   "MODEL.LOSSES.INFONCE.TEMPERATURE", 0.5)
    outputs, batch, bank = make_outputs(), make_batch(outlier=True), make_bank()
    pure = losses.info_nce_loss(F.normalize(outputs["features"], dim=1), batch["targets"],
                                bank.centroids, temperature=0.5)
    torch.testing.assert_close(
        build_losses(cfg)[0](outputs, batch, bank), {"loss_infonce": 0.3 * pure}, rtol=1e-6, atol=0)


def test_camera_separation_wrapper(make_cfg, make_batch):
    cfg = make_cfg(NAME, ("CameraSeparationLoss",), "MODEL.LOSSES.CAMSEP.SCALE", 0.3)
    outputs, batch = make_outputs(), make_batch(outlier=True)
    pure = losses.camera_separation_loss(outputs["camera_logits"], batch["camids"])
    torch.testing.assert_close(
        build_losses(cfg)[0](outputs, batch, None), {"loss_camsep": 0.3 * pure}, rtol=1e-6, atol=0)


def test_more_cameras_than_the_head_has(make_cfg, make_batch):
    (loss,) = build_losses(make_cfg(NAME, ("CameraSeparationLoss",)))
    with pytest.raises(ValueError, match=r"logits \(MODEL.HEADS.CAMSEP.NUM_CAMERAS\) have 2 col"):
        loss({"camera_logits": torch.zeros(8, 2)}, make_batch(), None)


@pytest.mark.parametrize("anchor, normalize", [
    ("centre", True), ("centre", False), ("sample", True), ("sample", False)])
def test_cacc_wrapper(make_cfg, make_batch, make_bank, anchor, normalize):
    node = "MODEL.LOSSES.CACC."
    cfg = make_cfg(NAME, ("CACCLoss",), node + "SCALE", 0.4, node + "TEMPERATURE", 0.3,
                   node + "NUM_NEGATIVES", 2, node + "ANCHOR", anchor,
                   node + "NORMALIZE", normalize)
    outputs, batch, bank = make_outputs(), make_batch(outlier=True), make_bank()
    anchors, labels = F.normalize(outputs["features"], dim=1), batch["targets"]
    if anchor == "centre":
        anchors, labels = losses.batch_camera_centres(
            anchors, labels, batch["camids"], normalize=normalize)
    pure = losses.cacc_loss(anchors, labels, *bank.camera_centres(normalize=normalize),
                            num_negatives=2, temperature=0.3)
    torch.testing.assert_close(
        build_losses(cfg)[0](outputs, batch, bank), {"loss_cacc": 0.4 * pure}, rtol=1e-6, atol=0)


@pytest.mark.parametrize("epoch", [0, 1, 2, 7])
def test_cap_wrapper(make_cfg, make_batch, make_bank, epoch):
    node = "MODEL.LOSSES.CAP."
    cfg = make_cfg(NAME, ("CAPLoss",), node + "SCALE", 0.3, node + "TEMPERATURE", 0.2,
                   node + "NUM_NEGATIVES", 3, node + "INTER_SCALE", 0.7, node + "INTER_EPOCH", 2)
    outputs, batch, bank = make_outputs(), make_batch(outlier=True), make_bank(centres="momentum")
    bank.epoch = epoch
    given = F.normalize(outputs["features"], dim=1), batch["targets"], batch["camids"]
    expected = {"loss_cap_intra": 0.3 * losses.intra_camera_loss(
        *given, *bank.camera_centres(), bank.centre_camids, temperature=0.2)}
    if epoch >= 2:
        expected["loss_cap_inter"] = 0.3 * 0.7 * losses.inter_camera_loss(
            *given, *bank.camera_centres(), num_negatives=3, temperature=0.2)
    torch.testing.assert_close(build_losses(cfg)[0](outputs, batch, bank), expected,
                               rtol=1e-6, atol=0)


def test_ice_wrapper(make_cfg, make_batch, make_bank):
    ice, cap = "MODEL.LOSSES.ICE.", "MODEL.LOSSES.CAP."
    cfg = make_cfg(NAME, ("ICELoss",), ice + "SCALE", 0.5, ice + "TEMPERATURE", 0.9,
                   ice + "HARD_TEMPERATURE", 0.2, ice + "SOFT_TEMPERATURE", 0.6,
                   ice + "SOFT_SCALE", 3.0, cap + "TEMPERATURE", 0.3, cap + "NUM_NEGATIVES", 2,
                   cap + "INTER_SCALE", 0.7)
    outputs, batch, bank = make_outputs(), make_batch(outlier=True), make_bank(centres="fixed")
    raw, labels = outputs["features"], batch["targets"]
    features, keys, plain = F.normalize(raw, dim=1), outputs["second_images"], (
        outputs["plain_images"])
    expected = {
        "loss_ice_cluster": losses.info_nce_loss(raw, labels, bank.centroids, temperature=0.9,
                                                 smoothing=0.1),
        "loss_ice_camera": 0.7 * losses.inter_camera_loss(
            features, labels, batch["camids"], *bank.camera_centres(), num_negatives=2,
            temperature=0.3),
        "loss_ice_hard": losses.hard_instance_loss(features, labels, keys, temperature=0.2),
        "loss_ice_soft": 3 * losses.soft_consistency_loss(features, keys, plain,
                                                          temperature=0.6)}
    torch.testing.assert_close(build_losses(cfg)[0](outputs, batch, bank),
                               {name: 0.5 * loss for name, loss in expected.items()},
                               rtol=1e-6, atol=0)


def test_ice_without_a_teacher(make_cfg, make_batch, make_bank):
    (loss,) = build_losses(make_cfg(NAME, ("ICELoss",)))
    outputs = make_outputs()
    del outputs["plain_images"]
    with pytest.raises(UserError, match="ICELoss needs .* and a teacher: .*UnsupervisedHook"):
        loss(outputs, make_batch(), make_bank())


def test_losses_that_compare_cameras(make_cfg):
    cfg = make_cfg(NAME, ("InfoNCELoss", "CAPLoss", "CACCLoss", "ICELoss"))
    assert camera_losses(cfg) == ["CAPLoss", "ICELoss"]


TOOLBOX_OPTIONS = [
    [],
    ["MODEL.LOSSES.CE.EPSILON", 0.1, "MODEL.LOSSES.CE.SCALE", 0.5, "MODEL.LOSSES.TRI.MARGIN", 0.0,
     "MODEL.LOSSES.TRI.HARD_MINING", True, "MODEL.LOSSES.TRI.SCALE", 2.0,
     "MODEL.LOSSES.CIRCLE.GAMMA", 32, "MODEL.LOSSES.CIRCLE.SCALE", 0.25,
     "MODEL.LOSSES.COSFACE.MARGIN", 0.5, "MODEL.LOSSES.COSFACE.SCALE", 3.0],
    ["MODEL.LOSSES.CE.EPSILON", -1.0, "MODEL.LOSSES.CE.ALPHA", 0.4,
     "MODEL.LOSSES.TRI.NORM_FEAT", True, "MODEL.LOSSES.TRI.MARGIN", 0.1,
     "MODEL.LOSSES.CIRCLE.MARGIN", 0.4, "MODEL.LOSSES.COSFACE.GAMMA", 16],
]


@pytest.mark.parametrize("options", TOOLBOX_OPTIONS)
def test_supervised_training_is_that_of_the_toolbox(make_cfg, make_batch, options):
    supervised = ["MODEL.HEADS.NAME", "EmbeddingHead", "MODEL.HEADS.NUM_CLASSES", 4,
                  "MODEL.BN_GROUP_SIZE", 0, NAME, TOOLBOX_LOSSES, *options]
    baseline = build_model(make_cfg("MODEL.META_ARCHITECTURE", "Baseline", *supervised))
    ours = build_model(make_cfg(*supervised))
    ours.load_state_dict(baseline.state_dict())
    steps = []
    for model in (baseline, ours):
        with EventStorage(0) as storage:
            found = {name: value.item() for name, value in model(make_batch()).items()}
            steps.append({**found, "accuracy": float(storage.history("cls_accuracy").latest())})
    assert len(steps[0]) == 5 and steps[1] == pytest.approx(steps[0], rel=1e-6)
    assert torch.equal(ours.eval()(make_batch()), baseline.eval()(make_batch()))


def test_two_losses_with_a_scalar_of_one_name(make_cfg, make_batch, monkeypatch):
    """The second would replace the first."""
    class Twin(LOSS_REGISTRY.get("CameraSeparationLoss")):
        pass

    monkeypatch.setitem(LOSS_REGISTRY._obj_map, "Twin", Twin)
    model = build_model(make_cfg(NAME, ("CameraSeparationLoss", "Twin")))
    with pytest.raises(ValueError, match=r"Two losses .* give \['loss_camsep'\].*of its own"):
        model(make_batch())


def test_a_step_gives_every_loss_and_what_the_bank_is_updated_with(
        make_cfg, make_batch, make_bank):
    cfg = make_cfg("MODEL.LOSSES.CAMSEP.SCALE", 0.4, "MODEL.LOSSES.CACC.SCALE", 0.7)
    model, batch = build_model(cfg), make_batch(outlier=True)
    model.memory = make_bank()
    with pytest.raises(RuntimeError, match="No training step"):
        model.pop_seen()
    seen = {}
    model.heads.register_forward_hook(lambda module, inputs, outputs: seen.update(outputs))
    total = model(batch)
    expected = {}
    for loss in build_losses(cfg):
        expected.update(loss(seen, batch, model.memory))
    assert list(total) == ["loss_infonce", "loss_camsep", "loss_cacc"]  # the config's order
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    features, indexes = model.pop_seen()
    assert torch.equal(features, F.normalize(seen["features"], dim=1))
    assert not features.requires_grad and torch.equal(indexes, batch["indexes"])
    with pytest.raises(RuntimeError, match="No training step"):
        model.pop_seen()


def test_memory_losses_need_the_feature_after_the_neck(make_cfg):
    with pytest.raises(ValueError, match="MODEL.HEADS.NECK_FEAT after"):
        build_model(make_cfg("MODEL.HEADS.NECK_FEAT", "before"))
    supervised = build_model(make_cfg("MODEL.HEADS.NECK_FEAT", "before", NAME, ("TripletLoss",)))
    assert isinstance(supervised, caureid_plugin.CAUReID)
