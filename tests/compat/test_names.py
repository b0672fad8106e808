"""Mistyped names in a config are errors that list the known ones."""

import pytest
import torch
from caureid_plugin import compat
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY, MGN
from fastreid.utils.events import EventStorage
from fastreid.utils.registry import Registry

# -------------------------------------------------------------------------------- keys ----


def test_a_mistyped_key_names_close_ones(cfg):
    mistyped = ["SOLVER.BASE_LRR", 0.1]
    with pytest.raises(KeyError, match=r"'SOLVER\.BASE_LRR', did you mean SOLVER\.BASE_LR"):
        cfg.merge_from_list(mistyped)
    with pytest.raises(KeyError, match=r"did you mean CAUREID\.CLUSTER\.K1"):
        cfg.merge_from_list(["CAUREID.CLUSTR.K1", 20])
    with pytest.raises(KeyError, match=r"no config key 'qqqqqqqq'\.\"$"):
        cfg.merge_from_list(["qqqqqqqq", 1])
    with compat.without("unknown_key"):
        with pytest.raises(AssertionError):
            cfg.merge_from_list(mistyped)


def test_a_key_without_value_is_an_error(cfg):
    with pytest.raises(ValueError, match="pairs.*SOLVER.MAX_EPOCH"):
        cfg.merge_from_list(["SOLVER.BASE_LR", 0.1, "SOLVER.MAX_EPOCH"])


def test_known_keys_are_merged(cfg):
    cfg.merge_from_list(
        ["SOLVER.BASE_LR", "0.5", "CAUREID.CLUSTER.K1", 20, "TEST.METRIC", "euclidean"])
    assert (cfg.SOLVER.BASE_LR, cfg.CAUREID.CLUSTER.K1, cfg.TEST.METRIC) == (0.5, 20, "euclidean")


def test_base_files_stay_reserved_for_files(cfg):
    with pytest.raises(AssertionError, match="can only be used in files"):
        cfg.merge_from_list(["_BASE_", "other.yml"])


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


def test_mgn_does_not_know_the_pairwise_losses_either():
    """Its network is large; the check looks at the names alone, before the nine arguments."""
    model = MGN.__new__(MGN)
    torch.nn.Module.__init__(model)
    model.loss_kwargs = {"loss_names": ("CrossEntropyLoss", "CircleLoss")}
    with pytest.raises(ValueError, match=r"MGN does not know the losses \['CircleLoss'\]"):
        model.losses(*[None] * 9)
    with compat.without("unknown_loss"), pytest.raises(TypeError, match="not subscriptable"):
        model.losses(*[None] * 9)  # it went on to the outputs


def test_the_toolboxs_losses_are_known(make_model):
    found = losses(make_model("MODEL.LOSSES.NAME", compat.TOOLBOX_LOSSES))
    assert set(found) == {"loss_cls", "loss_triplet", "loss_circle", "loss_cosface"}
