"""A checkpoint of another network is an error; another number of classes is not."""

import copy

import pytest
import torch
from caureid_plugin import compat
from fastreid.utils.checkpoint import Checkpointer


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


SEPARATED = ("MODEL.META_ARCHITECTURE", "CAUReID", "MODEL.HEADS.NAME", "CamSepHead",
             "MODEL.HEADS.CAMSEP.REDUCTION", 4)


@pytest.mark.parametrize("saved_with, loaded_with", [
    ("none", "harmonious"), ("harmonious", "none")])
def test_another_head_is_an_error_where_it_is_evaluated_and_a_warning_where_it_starts(
        make_model, tmp_path, messages, saved_with, loaded_with):
    attention = "MODEL.HEADS.CAMSEP.ATTENTION"
    Checkpointer(make_model(*SEPARATED, attention, saved_with), str(tmp_path)).save("head")
    path = str(tmp_path / "head.pth")
    other = make_model(*SEPARATED, attention, loaded_with)
    with pytest.raises(ValueError, match=r"another architecture.*heads\.attention"):
        compat.load_weights(other, path)
    Checkpointer(other).load(path)
    assert any("head is another one" in text for text in messages)
    compat.load_weights(make_model(*SEPARATED, attention, saved_with), path)
