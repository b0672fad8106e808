"""Checkpoints of another network, unknown names and unknown losses are errors."""

import copy

import pytest
import torch
from caureid_plugin import compat
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY, build_model
from fastreid.utils.checkpoint import Checkpointer
from fastreid.utils.events import EventStorage
from fastreid.utils.registry import Registry


@pytest.fixture
def make_model(tiny_cfg):
    def make(*changes):
        cfg = tiny_cfg.clone()
        cfg.merge_from_list(["MODEL.HEADS.NUM_CLASSES", 8, *changes])
        torch.manual_seed(0)
        return build_model(cfg)

    return make


@pytest.fixture
def saved(make_model, tmp_path):
    """A checkpoint of the tiny network whose every tensor is 7, as a path."""
    model = make_model()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(7)
    Checkpointer(model, str(tmp_path)).save("seven")
    return str(tmp_path / "seven.pth")


def sevens(model):
    return {name for name, tensor in model.state_dict().items() if (tensor == 7).all()}


def test_the_same_network_loads_completely(make_model, saved):
    model = make_model()
    Checkpointer(model).load(saved)
    assert sevens(model) == set(model.state_dict())


def test_another_number_of_classes_loads_all_but_the_classifier(make_model, saved):
    model = make_model("MODEL.HEADS.NUM_CLASSES", 11)
    Checkpointer(model).load(saved)
    assert set(model.state_dict()) - sevens(model) == {"heads.weight"}


def test_another_width_is_an_error(make_model, saved):
    wide = "MODEL.BACKBONE.FEAT_DIM", 24
    with pytest.raises(ValueError, match=r"another architecture: 5 of 6 backbone.*"
                                         r"backbone\.0\.weight.*MODEL\.WEIGHTS.*MODEL\.BACKBONE"):
        Checkpointer(make_model(*wide)).load(saved)
    with compat.without("foreign_checkpoint"):
        model = make_model(*wide)
        start = copy.deepcopy(model.backbone[0].weight)
        Checkpointer(model).load(saved)  # as if nothing were wrong
        assert torch.equal(model.backbone[0].weight, start)


def test_another_kind_of_network_is_an_error(make_model, saved):
    resnet = "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.DEPTH", "18x"
    with pytest.raises(ValueError, match="another architecture"):
        Checkpointer(make_model(*resnet, "MODEL.BACKBONE.FEAT_DIM", 512)).load(saved)


def test_a_resumed_run_checks_its_checkpoint_too(make_trainer):
    make_trainer().train()
    trainer = make_trainer("MODEL.BACKBONE.FEAT_DIM", 24)
    with pytest.raises(ValueError, match="another architecture"):
        trainer.resume_or_load(resume=True)


# --------------------------------------------------------------------------- registries ----


@pytest.mark.parametrize("registry, known", [
    (BACKBONE_REGISTRY, "build_resnet_backbone"), (REID_HEADS_REGISTRY, "EmbeddingHead"),
    (META_ARCH_REGISTRY, "Baseline"), (DATASET_REGISTRY, "Market1501")])
def test_an_unknown_name_lists_the_known_ones(registry, known):
    assert known in compat.registered_names(registry)
    assert compat.registered_names(registry) == sorted(compat.registered_names(registry))
    with pytest.raises(KeyError, match=rf"'Nonsense' in the {registry._name} registry.*'{known}'"):
        registry.get("Nonsense")
    with compat.without("unknown_name"):
        with pytest.raises(KeyError) as caught:
            registry.get("Nonsense")
    assert known not in str(caught.value)


def test_known_names_are_found():
    registry = Registry("THINGS")
    registry.register(Registry)
    assert registry.get("Registry") is Registry
    assert compat.registered_names(registry) == ["Registry"]


@pytest.mark.parametrize("key", ["MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME",
                                 "MODEL.HEADS.NAME"])
def test_a_mistyped_config_lists_the_known_names(make_model, key):
    with pytest.raises(KeyError, match="'Nonsense'.*known are"):
        make_model(key, "Nonsense")


# ------------------------------------------------------------------------------- losses ----


def losses(model):
    model.train()
    batch = {"images": 255 * torch.rand(4, 3, 32, 16, device=model.device),
             "targets": torch.tensor([0, 0, 1, 1], device=model.device)}
    with EventStorage(0):
        return model(batch)


@pytest.mark.parametrize("architecture", ["Baseline", "MoCo"])
def test_an_unknown_loss_lists_the_known_ones(make_model, architecture):
    mistyped = ("MODEL.LOSSES.NAME", ("CrossEntropyLoss", "TripletLos"),
                "MODEL.META_ARCHITECTURE", architecture)
    with pytest.raises(ValueError, match=r"\['TripletLos'\] of MODEL\.LOSSES\.NAME.*'TripletLoss'"):
        losses(make_model(*mistyped))
    with compat.without("unknown_loss"):
        assert set(losses(make_model(*mistyped))) - {"loss_mb"} == {"loss_cls"}


def test_the_toolboxs_losses_are_known(make_model):
    found = losses(make_model("MODEL.LOSSES.NAME", compat.TOOLBOX_LOSSES))
    assert set(found) == {"loss_cls", "loss_triplet", "loss_circle", "loss_cosface"}
