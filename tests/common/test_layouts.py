"""Weights in the key layouts of others: recognised, renamed, of the right depth."""

import re

import pytest
import timm
import torch
from caureid_plugin.common import weights
from caureid_plugin.modeling import timm_backbone
from timm.models import swin_transformer
from torch import nn


def conv_names(depths, convolutions):
    """Names of a ResNet's tensors, a few of each block."""
    return ["conv1.weight", "bn1.weight", *(
        f"layer{stage}.{block}.conv{number}.weight" for stage, count in enumerate(depths, 1)
        for block in range(count) for number in range(1, convolutions + 1))]


def tensors(names):
    return {name: torch.full((2, 2), float(number)) for number, name in enumerate(names, 1)}


class Named(nn.Module):
    """A network with tensors of these names."""

    def __init__(self, names):
        super().__init__()
        self.names = list(names)
        self.values = nn.ParameterList(torch.zeros(2, 2) for _ in self.names)

    def state_dict(self, *args, **kwargs):
        return dict(zip(self.names, self.values, strict=True))

    def load_state_dict(self, state, strict=True):
        for name, value in state.items():
            self.state_dict()[name].data.copy_(value)


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_moco_gives_its_query_encoder(prefix, messages):
    names = conv_names((3, 4, 6, 3), 3)
    state = {f"{prefix}encoder_k.{name}": torch.zeros(2, 2) for name in names}
    state |= {f"{prefix}encoder_q.{name}": value for name, value in tensors(names).items()}
    state |= {f"{prefix}encoder_q.fc.2.weight": torch.ones(3), f"{prefix}queue": torch.ones(3)}
    network = Named(names)
    found = weights.unwrap({"epoch": 200, "arch": "resnet50", "state_dict": state}, "w.pth")
    weights.load_matching(network, found, "w.pth", "KEY")
    assert all(torch.equal(value, network.state_dict()[name])
               for name, value in tensors(names).items())
    assert "w.pth: weights in the layout of MoCo (LUPerson)." in messages


@pytest.mark.parametrize("wraps", ["teacher of a checkpoint", "only the teacher"])
def test_dino_gives_its_teachers_backbone(wraps, messages):
    network = timm.create_model("test_vit", num_classes=0)
    state = {name: torch.rand_like(value) for name, value in network.state_dict().items()}
    teacher = {f"backbone.{name}": value for name, value in state.items()}
    teacher |= {"head.mlp.0.weight": torch.ones(3), "head.last_layer.weight_g": torch.ones(3)}
    student = {f"module.{name}": value + 1 for name, value in teacher.items()}
    content = teacher if wraps == "only the teacher" else {
        "student": student, "teacher": teacher, "epoch": 99, "dino_loss": {"center": torch.ones(3)}}
    found = weights.unwrap(content, "w.pth")
    assert found.keys() == state.keys()
    weights.load_matching(network, found, "w.pth", "KEY")
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert "w.pth: weights in the layout of DINO (TransReID-SSL)." in messages


OURS_AND_SOLIDERS = [  # pieces of names
    (r"^patch_embed\.proj\.", "patch_embed.projection."), (r"^layers\.", "stages."),
    (r"\.attn\.", ".attn.w_msa."), (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."), (r"^norm\.", "norm2.")]


def soliders_name(name):
    for ours, theirs in OURS_AND_SOLIDERS:
        name = re.sub(ours, theirs, name)
    # timm counts a merging to the stage behind it, SOLIDER to the one before
    return re.sub(r"\d+(?=\.downsample)", lambda stage: str(int(stage[0]) - 1), name)


def as_solider(state):
    """A small Swin Transformer as SOLIDER has it: its names, random values."""
    found = {soliders_name(name): torch.randn(value.shape) for name, value in state.items()}
    for stage, width in enumerate((8, 16, 16)):
        found |= {f"semantic_embed_{kind}.{stage}.{part}": torch.randn(shape)
                  for kind in "wb" for part, shape in (("weight", (width, 2)), ("bias", (width,)))}
        if stage < 2:
            found |= {f"norm{stage}.{part}": torch.ones(4 << stage) for part in ("weight", "bias")}
    return found


def wrapped(state):
    return {"teacher": {**{f"backbone.{name}": value for name, value in state.items()},
                        "head.last_layer.weight_g": torch.ones(3)}, "student": {}, "epoch": 9}


@pytest.fixture
def swin():
    torch.manual_seed(0)
    return swin_transformer.SwinTransformer(
        img_size=112, embed_dim=4, depths=(1, 2, 1), num_heads=(1, 2, 2), num_classes=0)


def test_soliders_swin_is_brought_to_timms(swin, messages):
    """The same tensors, and its merging of patches gives what SOLIDER's would."""
    given = as_solider(swin.state_dict())
    assert {"patch_embed.projection.bias", "stages.1.blocks.1.attn.w_msa.qkv.weight",
            "stages.2.blocks.0.ffn.layers.0.0.weight", "stages.0.blocks.0.ffn.layers.1.bias",
            "stages.1.downsample.reduction.weight", "norm2.weight"} <= given.keys()
    found = swin_transformer.checkpoint_filter_fn(weights.unwrap(wrapped(given), "w.pth"), swin)
    swin.load_state_dict(found)  # strictly
    assert "w.pth: weights in the layout of SOLIDER." in messages
    for name, value in swin.state_dict().items():
        assert ".downsample." in name or torch.equal(value, given[soliders_name(name)]), name
    for stage, width in enumerate((4, 8)):
        images = torch.randn(2, width, 6, 10)
        merged = nn.functional.unfold(images, 2, stride=2).transpose(1, 2)
        own = f"stages.{stage}.downsample."
        merged = nn.functional.layer_norm(merged, (4 * width,), given[f"{own}norm.weight"],
                                          given[f"{own}norm.bias"])
        expected = merged @ given[f"{own}reduction.weight"].T
        factors = {}
        for kind in "wb":
            part = f"semantic_embed_{kind}.{stage}"
            factors[kind] = (0.2 * given[f"{part}.weight"][:, 0]
                             + 0.8 * given[f"{part}.weight"][:, 1] + given[f"{part}.bias"])
        expected = expected * torch.log(1 + factors["w"].exp()) + factors["b"]
        result = swin.layers[stage + 1].downsample(images.permute(0, 2, 3, 1))
        torch.testing.assert_close(result.flatten(1, 2), expected, atol=1e-4, rtol=1e-4)


def test_a_swin_in_soliders_names_without_its_semantics(swin):
    """As its DINO stage leaves it; the order of the merging is changed nevertheless."""
    given = {name: value for name, value in as_solider(swin.state_dict()).items()
             if not name.startswith("semantic")}
    found = weights.unwrap(given, "w.pth")["layers.0.downsample.reduction.weight"]
    for channel in range(4):
        for row in range(2):
            for column in range(2):
                assert torch.equal(found[:, 8 * column + 4 * row + channel],
                                   given["stages.0.downsample.reduction.weight"][
                                       :, 4 * channel + 2 * row + column])


@pytest.mark.parametrize("lost", ["norm2.weight", "stages.0.downsample.norm.bias",
                                  "semantic_embed_b.1.bias"])
def test_a_file_of_solider_that_is_not_whole(swin, lost):
    state = as_solider(swin.state_dict())
    del state[lost]
    with pytest.raises(ValueError, match="has the layout of SOLIDER and is not whole"):
        weights.unwrap(wrapped(state), "w.pth")


def test_a_deeper_swin_is_refused(swin, tmp_path):
    deeper = swin_transformer.SwinTransformer(
        img_size=112, embed_dim=4, depths=(1, 3, 1), num_heads=(1, 2, 2), num_classes=0)
    torch.save(as_solider(deeper.state_dict()), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"PRETRAIN_PATH .*the file holds .*1, 3, 1.*, and the "
                                         r"network is .*1, 2, 1"):
        timm_backbone._load(swin, str(tmp_path / "w.pth"), "swin", (112, 112))


VIT = [f"blocks.{block}.attn.qkv.weight" for block in range(12)]
SWIN = {depth: [f"layers.{stage}.blocks.{block}.attn.qkv.weight" for stage, count in enumerate(
    (2, 2, depth, 2)) for block in range(count)] for depth in (6, 18)}


@pytest.mark.parametrize("of_file, of_network, said", [
    (conv_names((3, 4, 23, 3), 3), conv_names((3, 4, 6, 3), 3),
     ("a ResNet-101 of 3, 4, 23, 3 blocks", "a ResNet-50 of 3, 4, 6, 3 blocks")),
    (conv_names((3, 4, 6, 3), 3), conv_names((3, 8, 36, 3), 3),
     ("a ResNet-50 of 3, 4, 6, 3 blocks", "a ResNet-152 of 3, 8, 36, 3 blocks")),
    (conv_names((2, 2, 2, 2), 2), conv_names((3, 4, 6, 3), 2),
     ("a ResNet-18 of 2, 2, 2, 2 blocks", "a ResNet-34 of 3, 4, 6, 3 blocks")),
    (SWIN[18], SWIN[6],
     ("a transformer of 2, 2, 18, 2 blocks", "a transformer of 2, 2, 6, 2 blocks")),
    (VIT, VIT[:8], ("a transformer of 12 blocks", "a transformer of 8 blocks")),
    ([*VIT, "patch_embed.conv.0.weight"], VIT,
     ("a transformer of 12 blocks behind convolutions", "a transformer of 12 blocks")),
    (VIT, conv_names((3, 4, 6, 3), 3),
     ("a transformer of 12 blocks", "a ResNet-50 of 3, 4, 6, 3 blocks"))])
@pytest.mark.parametrize("prefix", ["", "module.backbone."])
def test_another_depth_is_refused_with_both(of_file, of_network, said, prefix):
    """Although a deeper network's file has all tensors of the shallower one."""
    state = {f"{prefix}{name}": value for name, value in tensors(of_file).items()}
    network = Named(of_network)
    message = re.escape(f"Set KEY so that both are of one architecture: the file holds {said[0]}, "
                        f"and the network is {said[1]}.")
    with pytest.raises(ValueError, match=rf"^w\.pth .*{message}$"):
        weights.load_matching(network, state, "w.pth", "KEY")
    assert not any(value.any() for value in network.state_dict().values())


def test_a_kind_that_is_not_known_is_not_compared():
    assert weights.architecture({"conv1.weight": torch.ones(1)}) == ""
    assert weights.architecture(tensors(conv_names((1, 1, 1), 2))) == "a ResNet of 1, 1, 1 blocks"


def test_what_is_missing_is_told(messages):
    names = conv_names((3, 4, 6, 3), 3)
    weights.load_matching(Named([*names, "extra.weight"]), tensors(names), "w.pth", "KEY")
    message, = messages
    assert message == (f"w.pth: {len(names)} of {len(names) + 1} tensors loaded; missing are, for "
                       "example: extra.weight (2, 2).")
