"""The loss registry, its wrappers, and the CAUReID meta-architecture that sums them."""

import caureid_plugin
import pytest
import torch
import torch.nn.functional as F
from caureid_plugin import LOSS_REGISTRY, build_losses, losses, needs_memory
from caureid_plugin.compat import TOOLBOX_LOSSES, registered_names
from fastreid.modeling.meta_arch import build_model
from fastreid.utils.events import EventStorage

MEMORY_LOSSES = ["CACCLoss", "InfoNCELoss"]
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
    }


def only(result, name):
    assert list(result) == [name]
    return result[name].item()


def test_known_names():
    assert registered_names(LOSS_REGISTRY) == ALL_LOSSES


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_every_registered_loss_is_built_from_a_config(make_cfg, make_batch, make_bank, name):
    cfg = make_cfg(NAME, (name,))
    (loss,) = build_losses(cfg)
    assert type(loss) is LOSS_REGISTRY.get(name)
    assert loss.needs_memory == needs_memory(cfg) == (name in MEMORY_LOSSES)
    with EventStorage(0):
        result = loss(make_outputs(), make_batch(), make_bank())
    (value,) = result.values()
    assert value.shape == () and value > 0 and torch.isfinite(value)


def test_losses_keep_the_order_of_the_config(make_cfg):
    names = ("CACCLoss", "TripletLoss", "InfoNCELoss")
    assert tuple(type(loss).__name__ for loss in build_losses(make_cfg(NAME, names))) == names


@pytest.mark.parametrize("build", [build_losses, needs_memory])
def test_unknown_name_lists_the_known_ones(make_cfg, build):
    with pytest.raises(ValueError) as error:
        build(make_cfg(NAME, ("InfoNCELos",)))
    message = str(error.value)
    assert "'InfoNCELos'" in message and NAME in message
    assert all(name in message for name in ALL_LOSSES)


@pytest.mark.parametrize("names", [(), ("InfoNCELoss", "CACCLoss", "InfoNCELoss")])
def test_no_loss_and_a_loss_named_twice(make_cfg, names):
    with pytest.raises(ValueError, match="at least one loss, each once"):
        build_losses(make_cfg(NAME, names))


@pytest.mark.parametrize("name", MEMORY_LOSSES)
def test_memory_losses_without_a_bank(make_cfg, make_batch, name):
    (loss,) = build_losses(make_cfg(NAME, (name,)))
    with pytest.raises(RuntimeError, match=f"{name} .*UnsupervisedHook"):
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


@pytest.mark.parametrize("scale, temperature", [(1.0, 0.05), (0.3, 0.5)])
def test_info_nce_wrapper(make_cfg, make_batch, make_bank, scale, temperature):
    cfg = make_cfg(NAME, ("InfoNCELoss",), "MODEL.LOSSES.INFONCE.SCALE", scale,
                   "MODEL.LOSSES.INFONCE.TEMPERATURE", temperature)
    outputs, batch, bank = make_outputs(), make_batch(outlier=True), make_bank()
    value = only(build_losses(cfg)[0](outputs, batch, bank), "loss_infonce")
    pure = losses.info_nce_loss(F.normalize(outputs["features"], dim=1), batch["targets"],
                                bank.centroids, temperature=temperature)
    assert value == pytest.approx(scale * pure.item(), rel=1e-6)


def test_camera_separation_wrapper(make_cfg, make_batch):
    cfg = make_cfg(NAME, ("CameraSeparationLoss",), "MODEL.LOSSES.CAMSEP.SCALE", 0.3)
    outputs, batch = make_outputs(), make_batch(outlier=True)
    value = only(build_losses(cfg)[0](outputs, batch, None), "loss_camsep")
    pure = losses.camera_separation_loss(outputs["camera_logits"], batch["camids"])
    assert value == pytest.approx(0.3 * pure.item(), rel=1e-6)


@pytest.mark.parametrize("anchor, normalize, scale, temperature, num_negatives", [
    ("centre", True, 1.0, 0.07, 50), ("centre", False, 0.4, 0.3, 2),
    ("sample", True, 0.4, 0.3, 2), ("sample", False, 1.0, 0.07, 50),
])
def test_cacc_wrapper(make_cfg, make_batch, make_bank, anchor, normalize, scale, temperature,
                      num_negatives):
    node = "MODEL.LOSSES.CACC."
    cfg = make_cfg(NAME, ("CACCLoss",), node + "SCALE", scale, node + "TEMPERATURE", temperature,
                   node + "NUM_NEGATIVES", num_negatives, node + "ANCHOR", anchor,
                   node + "NORMALIZE", normalize)
    outputs, batch, bank = make_outputs(), make_batch(outlier=True), make_bank()
    value = only(build_losses(cfg)[0](outputs, batch, bank), "loss_cacc")
    anchors, labels = F.normalize(outputs["features"], dim=1), batch["targets"]
    if anchor == "centre":
        anchors, labels = losses.batch_camera_centres(
            anchors, labels, batch["camids"], normalize=normalize)
    centres, clusters = bank.camera_centres(normalize=normalize)
    pure = losses.cacc_loss(anchors, labels, centres, clusters, num_negatives=num_negatives,
                            temperature=temperature)
    assert value == pytest.approx(scale * pure.item(), rel=1e-6)


def test_unknown_anchor(make_cfg):
    with pytest.raises(ValueError, match="CACC.ANCHOR 'center' .*'centre', 'sample'"):
        build_losses(make_cfg(NAME, ("CACCLoss",), "MODEL.LOSSES.CACC.ANCHOR", "center"))


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
def test_toolbox_losses_are_those_of_the_toolbox(make_cfg, make_batch, options):
    supervised = ["MODEL.HEADS.NAME", "EmbeddingHead", "MODEL.HEADS.NUM_CLASSES", 4, NAME,
                  TOOLBOX_LOSSES, *options]
    baseline = build_model(make_cfg("MODEL.META_ARCHITECTURE", "Baseline", *supervised))
    ours = build_model(make_cfg(*supervised))
    outputs, batch = make_outputs(), make_batch()
    with EventStorage(0) as storage:
        expected = baseline.losses(outputs, batch["targets"])
        accuracy = storage.history("cls_accuracy").latest()
    with EventStorage(0) as storage:
        found = ours.losses(outputs, batch)
        assert float(storage.history("cls_accuracy").latest()) == float(accuracy)
    assert len(expected) == 4 and sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-6), name


def test_supervised_training_equals_the_toolbox(make_cfg, make_batch):
    supervised = ["MODEL.HEADS.NAME", "EmbeddingHead", "MODEL.HEADS.NUM_CLASSES", 4, NAME,
                  ("CrossEntropyLoss", "TripletLoss"), "MODEL.BN_GROUP_SIZE", 0]
    baseline = build_model(make_cfg("MODEL.META_ARCHITECTURE", "Baseline", *supervised))
    ours = build_model(make_cfg(*supervised))
    ours.load_state_dict(baseline.state_dict())
    with EventStorage(0):
        expected, found = baseline(make_batch()), ours(make_batch())
    assert {name: value.item() for name, value in found.items()} == {
        name: value.item() for name, value in expected.items()}
    assert torch.equal(ours.eval()(make_batch()), baseline.eval()(make_batch()))


def test_model_sums_up_to_eq_2(make_cfg, make_batch, make_bank):
    cfg = make_cfg("MODEL.LOSSES.CAMSEP.SCALE", 0.4, "MODEL.LOSSES.CACC.SCALE", 0.7)
    model, batch, bank = build_model(cfg), make_batch(outlier=True), make_bank()
    model.memory = bank
    seen = {}
    model.heads.register_forward_hook(lambda module, inputs, outputs: seen.update(outputs))
    total = model(batch)
    features = F.normalize(seen["features"], dim=1)
    anchors = losses.batch_camera_centres(features, batch["targets"], batch["camids"])
    expected = {
        "loss_infonce": losses.info_nce_loss(features, batch["targets"], bank.centroids,
                                             temperature=0.05),
        "loss_camsep": 0.4 * losses.camera_separation_loss(seen["camera_logits"],
                                                           batch["camids"]),
        "loss_cacc": 0.7 * losses.cacc_loss(*anchors, *bank.camera_centres(), num_negatives=50,
                                            temperature=0.07),
    }
    assert sorted(total) == sorted(expected)
    for name, value in expected.items():
        assert total[name].item() == pytest.approx(value.item(), rel=1e-6), name


def test_bank_update_of_a_step(make_cfg, make_batch, make_bank):
    model, batch = build_model(make_cfg()), make_batch(outlier=True)
    model.memory = make_bank()
    with pytest.raises(RuntimeError, match="No training step"):
        model.pop_seen()
    seen = {}
    model.heads.register_forward_hook(lambda module, inputs, outputs: seen.update(outputs))
    model(batch)
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
