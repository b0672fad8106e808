"""timm's models as backbones: their map, what is left out of it, weights, and what is refused."""

import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from caureid_plugin import load_run
from caureid_plugin.common.safe_load import CodeInFile, DamagedFile
from caureid_plugin.export import export_network
from caureid_plugin.layers import GroupedBatchNorm2d
from caureid_plugin.modeling import build_timm_backbone
from caureid_plugin.modeling.timm_backbone import TimmBackbone
from fastreid.modeling.meta_arch import build_model
from fastreid.utils.events import EventStorage
from PIL import Image
from timm.models.hiera import Hiera

BACKBONE = "MODEL.BACKBONE."
STRIDE, OPTIONS, VECTORS = (BACKBONE + "TIMM." + key for key in (
    "STRIDE", "OPTIONS", "CAMERA_EMBEDDING"))
# model -> channels of its map; those of timm's own tests are the smallest
MODELS = {
    "lcnet_035": 176,  # a convolution behind the pooling
    "test_resnet": 96,
    "test_convnext": 64,  # a norm behind the pooling
    "test_vit": 64,  # tokens, the first of them the class token
    "test_mambaout": 64,  # channels last
}
JOINED = "test_efficientnet"  # of joined norms, with weights to download; 256 channels
SIZE = [64, 32]


@pytest.fixture
def timm_cfg(make_cfg):
    """Config of a CAUReID with a timm model; more keys as a list."""

    def make(name="test_resnet", *options):
        return make_cfg(
            BACKBONE + "NAME", "build_timm_backbone", BACKBONE + "TIMM.NAME", name,
            BACKBONE + "FEAT_DIM", MODELS.get(name, 64), BACKBONE + "LAST_STRIDE", 2,
            "INPUT.SIZE_TRAIN", SIZE, "INPUT.SIZE_TEST", SIZE, *options)

    return make


def random_images(n=4, size=SIZE):
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(1))


def alone(name, **options):
    """timm's own model without a classifier, with the first weights of seed 3."""
    torch.manual_seed(3)
    return timm.create_model(name, num_classes=0, **options)


def build(cfg):
    torch.manual_seed(3)
    return build_timm_backbone(cfg)


# ------------------------------------------------------------------------------- the map ----


@pytest.mark.parametrize("name", MODELS)
def test_the_map_is_what_timm_pools(timm_cfg, name):
    backbone = build(timm_cfg(name))
    sized = {"img_size": tuple(SIZE)} if name == "test_vit" else {}
    network, images = alone(name, **sized), random_images()
    if name != "test_mambaout":  # whose stochastic depth draws
        torch.testing.assert_close(backbone(images).std(), map_of(network, images).std())
    found, expected = backbone.eval()(images), map_of(network.eval(), images)
    assert found.shape == (4, MODELS[name], *backbone.places)
    assert found.std() > 1e-4 and backbone.places[0] >= 2  # it tells something, and has places
    torch.testing.assert_close(found, expected)


def map_of(network, images):
    """(B, C, h, w) place by place."""
    found = network.forward_features(images)
    if found.ndim == 3:
        h, w = network.patch_embed.grid_size
        rows = [torch.stack([found[:, 1 + y * w + x] for x in range(w)], dim=2) for y in range(h)]
        return torch.stack(rows, dim=2)
    if found.shape[1] == found.shape[2] * 2 or found.shape[3] == network.num_features:
        return torch.stack([found[..., c] for c in range(found.shape[3])], dim=1)
    return found


def test_a_network_whose_norm_lies_behind_its_pooling():
    network = Hiera(img_size=tuple(SIZE), num_classes=0, embed_dim=8, num_heads=1,
                    stages=(1, 1, 1, 1))
    backbone = TimmBackbone(network, tuple(SIZE))
    assert network.training
    backbone.eval()
    _, stages = network.forward_features(random_images(), return_intermediates=True)
    assert (backbone.channels, backbone.places) == (64, (2, 1))
    torch.testing.assert_close(backbone(random_images()), stages[-1].permute(0, 3, 1, 2))


def test_a_transformers_places_are_those_of_the_image(timm_cfg):
    """A change in one patch of the image changes the map there the most."""
    backbone = build(timm_cfg("test_vit")).eval()
    images = random_images(1)
    before = backbone(images)
    for y in range(4):
        for x in range(2):
            changed = images.clone()
            changed[:, :, 16 * y:16 * y + 16, 16 * x:16 * x + 16] += 1
            moved = (backbone(changed) - before).abs().sum(dim=1)[0]
            assert divmod(int(moved.argmax()), 2) == (y, x)


@pytest.mark.parametrize("name", MODELS)
def test_no_parameter_without_a_gradient(timm_cfg, make_batch, make_bank, name):
    model = build_model(timm_cfg(name))
    model.memory = make_bank(MODELS[name])
    batch = make_batch()
    batch["images"] = batch["images"].repeat_interleave(2, 2).repeat_interleave(2, 3)
    with EventStorage(0):
        total = model(batch)
    sum(total.values()).backward()
    parameters = dict(model.backbone.named_parameters())
    trained = {key: p for key, p in parameters.items() if p.requires_grad}
    assert [key for key, p in trained.items() if p.grad is None] == []
    assert sum(p.grad.abs().sum() for p in trained.values()) > 0
    frozen = {"lcnet_035": ["conv_head.weight", "conv_head.bias"],
              "test_convnext": ["head.norm.weight", "head.norm.bias"],
              "test_mambaout": [f"head.{part}.{kind}" for part in ("norm", "pre_logits.fc")
                                for kind in ("weight", "bias")]}
    assert sorted(set(parameters) - set(trained)) == sorted(
        f"network.{key}" for key in frozen.get(name, []))


def test_batch_norm_groups_reach_timms_own_norms(timm_cfg):
    """timm joins batch norm and activation, which MODEL.BN_GROUP_SIZE would pass by."""
    network = alone("lcnet_035")
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {type(m).__name__ for m in norms} >= {"BatchNormAct2d"}
    found = [m for m in build_model(timm_cfg("lcnet_035")).backbone.modules()
             if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(found) == len(norms)
    assert {type(m) for m in found} == {GroupedBatchNorm2d} and {m.group_size for m in found} == {4}


@pytest.mark.parametrize("name, options", [
    ("test_resnet", {"output_stride": 16}), ("test_convnext", {"output_stride": 16}),
    ("test_vit", {"img_size": tuple(SIZE)})])  # of stride 16 by its patches
def test_stride_16(timm_cfg, name, options):
    backbone = build(timm_cfg(name, BACKBONE + "LAST_STRIDE", 1)).eval()
    assert backbone.places == (4, 2)
    torch.testing.assert_close(backbone(random_images()),
                               map_of(alone(name, **options).eval(), random_images()))


def test_another_size_to_test_with(timm_cfg):
    backbone = build(timm_cfg("test_resnet", "INPUT.SIZE_TEST", [96, 64]))
    assert backbone.training and backbone(random_images(size=(96, 64))).shape == (4, 96, 3, 2)


def test_options_of_a_model(timm_cfg):
    backbone = build(timm_cfg("test_vit", OPTIONS, "patch_size=8 depth=2 drop_path_rate=0.5"))
    assert backbone.places == (8, 4) and len(backbone.network.blocks) == 2
    assert backbone.network.blocks[1].drop_path1.drop_prob == 0.5
    torch.testing.assert_close(
        backbone.eval()(random_images()),
        map_of(alone("test_vit", patch_size=8, depth=2, img_size=tuple(SIZE)).eval(),
               random_images()))


# ------------------------------------------------------------------- overlapping patches ----


def tokens_by_hand(network, images, stride, added=0):
    """(B, 1 + h w, C) of a ViT with patches of 16, patch by patch."""
    (height, width), patches = images.shape[2:], []
    for top in range(0, height - 15, stride):
        for left in range(0, width - 15, stride):
            patch = images[:, :, top:top + 16, left:left + 16].flatten(1)
            patches.append(patch @ network.patch_embed.proj.weight.flatten(1).T
                           + network.patch_embed.proj.bias)
    tokens = [network.cls_token[0].expand(len(images), -1), *patches]
    tokens = [token + network.pos_embed[:, i] + added for i, token in enumerate(tokens)]
    return network.norm(network.blocks(torch.stack(tokens, dim=1)))


def as_map(tokens, rows, columns):
    assert tokens.shape[1] == 1 + rows * columns
    return torch.stack([torch.stack([tokens[:, 1 + y * columns + x] for x in range(columns)], 2)
                        for y in range(rows)], dim=2)


@pytest.mark.parametrize("stride, size, places", [
    (8, [64, 32], (7, 3)), (12, [64, 32], (5, 2)), (11, [64, 48], (5, 3)), (16, [64, 32], (4, 2))])
def test_overlapping_patches_by_hand(timm_cfg, stride, size, places):
    """A margin that no whole patch fits into is left out, as in TransReID."""
    backbone = build(timm_cfg("test_vit", STRIDE, stride, "INPUT.SIZE_TRAIN", size,
                              "INPUT.SIZE_TEST", size)).eval()
    assert backbone.places == backbone.network.patch_embed.grid_size == places
    assert backbone.network.patch_embed.num_patches == places[0] * places[1]
    images = random_images(size=size)
    found = backbone(images)
    torch.testing.assert_close(
        found, as_map(tokens_by_hand(backbone.network, images, stride), *places))


@pytest.mark.parametrize("stride, places", [(12, (21, 10)), (11, (22, 11)), (0, (16, 8))])
def test_maps_of_the_papers_size(timm_cfg, stride, places):
    """TransReID's images of 256 x 128 and strides."""
    size = [256, 128]
    backbone = build(timm_cfg("test_vit", STRIDE, stride, "INPUT.SIZE_TRAIN", size,
                              "INPUT.SIZE_TEST", size, OPTIONS, "depth=1"))
    assert backbone.places == places
    assert backbone.network.pos_embed.shape == (1, 1 + places[0] * places[1], 64)


def resampled(positions, old, new):
    """Positions (1, 1 + h w, C) of a map of another size, the class token's as it is."""
    grid = positions[:, 1:].transpose(1, 2).unflatten(2, old)
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=True)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


@pytest.mark.parametrize("source, trained_on, prefix", [
    ("name", (160, 160), ""), ("file", (160, 160), ""), ("file", (160, 160), "backbone."),
    ("file", (128, 64), "module."), ("file", (64, 32), "")])
def test_positions_are_resampled_to_overlapping_patches(
        timm_cfg, downloads, tmp_path, source, trained_on, prefix):
    state = alone("test_vit", img_size=trained_on).state_dict()
    options = [BACKBONE + "PRETRAIN", True, STRIDE, 8]
    if source == "name":
        downloads(state)
    else:
        torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "w.pth")
        options += [BACKBONE + "PRETRAIN_PATH", str(tmp_path / "w.pth")]
    torch.manual_seed(8)
    network = build_timm_backbone(timm_cfg("test_vit", *options)).network
    expected = resampled(state["pos_embed"], [side // 16 for side in trained_on], (7, 3))
    torch.testing.assert_close(network.pos_embed.detach(), expected)
    for name, value in network.state_dict().items():
        assert name == "pos_embed" or torch.equal(value, state[name]), name


def test_positions_of_a_map_that_is_as_large(timm_cfg, tmp_path):
    """They are taken as they are; others that make no map of these sides are refused."""
    for size, fits in (((64, 32), True), ((96, 16), False)):
        state = alone("test_vit", img_size=size).state_dict()
        torch.save(state, tmp_path / "w.pth")
        cfg = timm_cfg("test_vit", BACKBONE + "PRETRAIN", True,
                       BACKBONE + "PRETRAIN_PATH", str(tmp_path / "w.pth"))
        if fits:
            network = build_timm_backbone(cfg).network
            assert torch.equal(network.pos_embed, state["pos_embed"])
            continue
        with pytest.raises(ValueError, match=r"w.pth cannot be read .*of 6 patches, which make no "
                           r"map of the sides of INPUT.SIZE_TRAIN \[64, 32\] and no square"):
            build_timm_backbone(cfg)


# ------------------------------------------------------------------- a vector per camera ----


@pytest.fixture
def with_cameras(timm_cfg):
    """A backbone with vectors of three cameras that have left their start, in training."""
    backbone = build(timm_cfg("test_vit", VECTORS, True, BACKBONE + "SIE_COE", 2.5))
    torch.nn.init.normal_(backbone.camera_embedding)
    assert backbone.camera_embedding.shape == (3, 64) and backbone.training
    return backbone


def test_vectors_of_cameras_by_hand(with_cameras):
    """In training each image has its camera's, less their mean; in evaluation none."""
    images, cameras = random_images(), [2, 0, 0, 1]
    found = with_cameras(images, torch.tensor(cameras))
    vectors = with_cameras.camera_embedding
    mean = (vectors[0] + vectors[1] + vectors[2]) / 3
    added = torch.stack([2.5 * (vectors[camera] - mean) for camera in cameras])
    torch.testing.assert_close(
        found, as_map(tokens_by_hand(with_cameras.network, images, 16, added), 4, 2))
    plain = as_map(tokens_by_hand(with_cameras.network, images, 16), 4, 2)
    assert (found - plain).abs().amax(dim=(1, 2, 3)).min() > 0.1
    with_cameras.eval()
    torch.testing.assert_close(with_cameras(images), plain)
    assert torch.equal(with_cameras(images, torch.tensor(cameras)), with_cameras(images))


def test_vectors_start_small(timm_cfg):
    backbone = build(timm_cfg("test_vit", VECTORS, True))
    assert 0.01 < backbone.camera_embedding.std() < 0.03


@pytest.mark.parametrize("cameras, message", [
    (None, "CAMERA_EMBEDDING needs the camera of each .*got NoneType.*META_ARCHITECTURE CAUReID"),
    (["c1"] * 4, "got list"), (torch.zeros(4), "got torch.float32"),
    (torch.tensor([0, 1, 2, 3]), "cameras from 0 to 3, .* 0 to 2: set .*CAMSEP.NUM_CAMERAS"),
    (torch.tensor([0, 1, -1, 2]), "cameras from -1 to 2")])
def test_cameras_that_have_no_vector(with_cameras, cameras, message):
    with pytest.raises(ValueError, match=message):
        with_cameras(random_images(), cameras)


@pytest.mark.parametrize("number", [-1, 0, 1])
def test_vectors_need_a_number_of_cameras(timm_cfg, number):
    with pytest.raises(ValueError, match="^MODEL.BACKBONE.TIMM.CAMERA_EMBEDDING needs MODEL.HEADS."
                       f"CAMSEP.NUM_CAMERAS.* at least 2; it is {number}.*False"):
        build_timm_backbone(timm_cfg("test_vit", VECTORS, True,
                                     "MODEL.HEADS.CAMSEP.NUM_CAMERAS", number))


def test_the_model_hands_cameras_on(timm_cfg, make_batch, make_bank):
    """With the attention of CamSepHead on the map of overlapping patches."""
    torch.manual_seed(3)
    model = build_model(timm_cfg("test_vit", VECTORS, True, STRIDE, 8))
    model.memory, maps = make_bank(64), []
    model.heads.register_forward_pre_hook(lambda module, inputs: maps.append(inputs[0]))
    batch = {**make_batch(), "images": 255 * torch.rand(8, 3, *SIZE)}
    with EventStorage(0):
        total = model(batch)
    images = model.preprocess_image(batch)
    assert maps[0].shape == model.heads.mask(maps[0]).shape == (8, 64, 7, 3)
    torch.testing.assert_close(maps[0], model.backbone(images, batch["camids"]))
    assert (maps[0] - model.backbone(images, batch["camids"].flip(0))).abs().max() > 1e-3
    sum(total.values()).backward()
    assert [name for name, p in model.named_parameters()
            if p.requires_grad and p.grad is None] == []
    assert model.backbone.camera_embedding.grad.abs().min() > 0
    model.eval()
    changed = {**batch, "camids": batch["camids"].flip(0) + 7}  # test cameras, numbered otherwise
    assert torch.equal(model(batch), model(changed))
    assert torch.equal(model(batch), model({"images": batch["images"]}))


def test_baseline_hands_no_cameras_on(timm_cfg, make_batch):
    model = build_model(timm_cfg(
        "test_vit", VECTORS, True, "MODEL.META_ARCHITECTURE", "Baseline",
        "MODEL.HEADS.NUM_CLASSES", 4, "MODEL.LOSSES.NAME", ("CrossEntropyLoss",)))
    batch = {**make_batch(), "images": 255 * torch.rand(8, 3, *SIZE)}
    with pytest.raises(ValueError, match="CAMERA_EMBEDDING .*set MODEL.META_ARCHITECTURE CAUReID"):
        model(batch)
    assert model.eval()(batch).shape == (8, 64)


# ------------------------------------------------------------------------------- refusals ----


@pytest.mark.parametrize("name, options, message", [
    ("", [], "TIMM.NAME '' is no model of timm"),
    ("mobilenetv2_10", [], "TIMM.NAME 'mobilenetv2_10' is no model .*mobilenetv2_100"),
    ("hf-hub:timm/resnet18", [], "is no model of timm"),
    ("resnet18.imagenet", [], "'resnet18.imagenet'.*no such weights.* resnet18.a1_in1k"),
    ("test_resnet", [BACKBONE + "FEAT_DIM", 256], "FEAT_DIM is 256.* gives 96.*set it to 96"),
    ("test_resnet", [BACKBONE + "LAST_STRIDE", 3], "LAST_STRIDE 3 must be 1 or 2"),
    ("test_resnet", [BACKBONE + "NORM", "syncBN"], "BACKBONE.NORM syncBN.*set it to BN"),
    ("test_resnet", [BACKBONE + "WITH_IBN", True], "WITH_IBN True.*TIMM.NAME"),
    ("mobilenetv3_small_050", [BACKBONE + "LAST_STRIDE", 1],
     "'mobilenetv3_small_050' cannot be built .*LAST_STRIDE 1 .*stride 16.*output_stride"),
    ("test_coatnet", [BACKBONE + "LAST_STRIDE", 1, BACKBONE + "FEAT_DIM", 128],
     "gives no map of stride 16, as MODEL.BACKBONE.LAST_STRIDE 1 asks for: set it to 2"),
    ("vit_tiny_patch16_224", [BACKBONE + "FEAT_DIM", 192, "INPUT.SIZE_TEST", [96, 64]],
     r"SIZE_TRAIN \[64, 32\].* set INPUT.SIZE_TEST \[96, 64\] to the same"),
    ("test_vit", [STRIDE, 17], "STRIDE 17 must be from 1 to 16, the side of the patches"),
    ("test_vit", [STRIDE, -1], "STRIDE -1 must be from 1 to 16"),
    ("test_vit", [STRIDE, 8, OPTIONS, "patch_size=4"], "STRIDE 8 must be from 1 to 4"),
    ("test_vit", [STRIDE, 12, "INPUT.SIZE_TRAIN", [8, 32]], r"INPUT.SIZE_TRAIN \[8, 32\]"),
    ("test_resnet", [STRIDE, 12], "STRIDE 12 is for a vision transformer .*'test_resnet' is none"),
    ("test_mambaout", [STRIDE, 12], "set .*TIMM.STRIDE 0, or TIMM.NAME .* vit_small_patch16_224"),
    ("test_convnext", [VECTORS, True], "CAMERA_EMBEDDING True is for a vision transformer .*False"),
    ("vit_tiny_r_s16_p8_224", [STRIDE, 8], "with plain patches and learnt positions"),
    ("test_vit", [OPTIONS, "pos_embed=none", VECTORS, True], "with plain patches and learnt pos"),
    ("test_vit", [OPTIONS, "depth 4"], "OPTIONS 'depth 4': 'depth' is no option .*name=value"),
    ("test_vit", [OPTIONS, "num_classes=3"], "OPTIONS 'num_classes=3': num_classes is not given"),
    ("test_vit", [OPTIONS, "deep=3"], "cannot be built with .*OPTIONS 'deep=3'.*'deep'"),
])
def test_what_it_cannot_build_is_named(timm_cfg, name, options, message):
    with pytest.raises(ValueError, match=message):
        build_timm_backbone(timm_cfg(name, *options))


@pytest.mark.parametrize("features, message", [
    (torch.ones(1, 8), "no map and no tokens"), (torch.ones(1, 4, 8), "no map and no tokens"),
    ([torch.ones(1, 8, 4, 2)], "no map and no tokens")])
def test_a_model_without_a_map(timm_cfg, monkeypatch, features, message):
    class Pooled(torch.nn.Module):
        num_features = 8

        def forward_features(self, images):
            return features

    with pytest.raises(ValueError, match=message):
        TimmBackbone(Pooled(), (64, 32))
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: Pooled())
    with pytest.raises(ValueError, match="'test_resnet' gives no feature map.*Set TIMM.NAME"):
        build_timm_backbone(timm_cfg())


def test_timm_is_not_installed(timm_cfg, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'caureid-plugin\[timm\]'"):
        build_timm_backbone(timm_cfg())


# ------------------------------------------------------------------------------- weights ----


@pytest.fixture
def downloads(monkeypatch):
    """timm loads these weights, an argument, where it would download some; gives what it loads."""
    asked = []

    def replace(weights):
        create = timm.create_model

        def create_model(name, pretrained=False, **options):
            if not pretrained:
                return create(name, **options)
            asked.append(name)
            return create(name, pretrained=True, pretrained_cfg_overlay={
                "state_dict": dict(weights)}, **options)

        monkeypatch.setattr(timm, "create_model", create_model)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: None)
        return asked

    return replace


def as_of_training(state):
    return {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}


@pytest.mark.parametrize("source", ["name", "file", "of training", "safetensors"])
def test_weights(timm_cfg, downloads, tmp_path, source):
    network = alone(JOINED)
    network.train()(random_images())  # the statistics of the norms too have left their start
    # with the classifier that a file has, which is not loaded
    state = {**network.state_dict(), "classifier.weight": torch.zeros(1000, 256)}
    options, asked = [BACKBONE + "FEAT_DIM", 256, BACKBONE + "PRETRAIN", True], []
    if source == "name":
        asked = downloads(state)
    else:
        path = tmp_path / ("w.safetensors" if source == "safetensors" else "w.pth")
        if source == "safetensors":
            safetensors.torch.save_file(state, path)
        else:
            torch.save(as_of_training(state) if source == "of training" else state, path)
        options += [BACKBONE + "PRETRAIN_PATH", str(path)]
    torch.manual_seed(8)
    backbone = build_timm_backbone(timm_cfg(JOINED, *options)).eval()
    torch.testing.assert_close(backbone(random_images()),
                               network.eval().forward_features(random_images()))
    assert asked == ([JOINED] if source == "name" else [])


@pytest.mark.parametrize("source", ["name", "file"])
def test_positions_of_a_transformer_are_resampled(timm_cfg, downloads, tmp_path, source):
    """Weights for 160 x 160 images, for those of another size, as timm's own loading has them."""
    state = alone("test_vit").state_dict()
    options = [BACKBONE + "PRETRAIN", True]
    if source == "name":
        downloads(state)
    else:
        torch.save(state, tmp_path / "w.pth")
        options += [BACKBONE + "PRETRAIN_PATH", str(tmp_path / "w.pth")]
    backbone = build_timm_backbone(timm_cfg("test_vit", *options)).eval()
    expected = timm.create_model("test_vit", num_classes=0, img_size=tuple(SIZE))
    assert expected.pos_embed.shape != state["pos_embed"].shape
    expected.load_state_dict(
        timm.models.vision_transformer.checkpoint_filter_fn(dict(state), expected))
    torch.testing.assert_close(backbone(random_images()), map_of(expected.eval(), random_images()))


@pytest.mark.parametrize("left_out, loads", [(6, True), (20, False)])
def test_a_file_must_have_most_tensors(timm_cfg, tmp_path, left_out, loads):
    """Counters of batches do not count, since old files have none."""
    state = {name: value for name, value in alone("test_resnet").state_dict().items()
             if not name.endswith("num_batches_tracked")}
    assert len(state) == 75
    kept = dict(list(state.items())[left_out:])
    kept["elsewhere.weight"] = torch.zeros(2, 3)
    torch.save(kept, tmp_path / "w.pth")
    cfg = timm_cfg("test_resnet", BACKBONE + "PRETRAIN", True,
                   BACKBONE + "PRETRAIN_PATH", str(tmp_path / "w.pth"))
    if loads:
        build_timm_backbone(cfg)
        return
    with pytest.raises(ValueError, match=r"w.pth has 55 of the 75 tensors of the network. "
                       r"Missing, for example: conv1.0.weight \(16, 3, 3, 3\), .*, .*\. "
                       r"In the file instead: elsewhere.weight \(2, 3\). "
                       r"Set .*_PATH or MODEL.BACKBONE.TIMM.NAME 'test_resnet'"):
        build_timm_backbone(cfg)


def test_a_file_of_another_network(timm_cfg, tmp_path):
    """Three names of each side, with their sizes where it is these that differ."""
    torch.save(alone("test_resnet").state_dict(), tmp_path / "w.pth")
    cfg = timm_cfg("test_convnext", BACKBONE + "PRETRAIN", True,
                   BACKBONE + "PRETRAIN_PATH", str(tmp_path / "w.pth"))
    with pytest.raises(ValueError, match=r"has 0 of .* Missing, for example: stem.0.weight "
                       r"\(24, 3, 4, 4\), .*, .*\. In the file instead: conv1.0.weight"):
        build_timm_backbone(cfg)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_files_that_cannot_be_read(timm_cfg, tmp_path):
    fired = tmp_path / "fired"
    for name, content, kind, message in (
            ("none.pth", None, FileNotFoundError, "none.pth is no file of weights"),
            ("cut.pth", b"PK\x03\x04abc", DamagedFile, "cut.pth is damaged"),
            ("bomb.pth", Bomb(fired), CodeInFile, "bomb.pth is refused"),
            ("cut.safetensors", b"abc", DamagedFile, "cut.safetensors is damaged"),
            ("list.pth", [1], ValueError, "list.pth .*holds no tensors")):
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        elif content:
            torch.save(content, tmp_path / name)
        with pytest.raises(kind, match=message) as refused:
            build_timm_backbone(timm_cfg("test_resnet", BACKBONE + "PRETRAIN", True,
                                         BACKBONE + "PRETRAIN_PATH", str(tmp_path / name)))
        assert "MODEL.BACKBONE.PRETRAIN_PATH" in str(refused.value)
        assert "MODEL.BACKBONE.TIMM.NAME 'test_resnet'" in str(refused.value)
        assert str(refused.value).count(name) == 1 and not fired.exists()


@pytest.mark.parametrize("setting", [
    ("HF_HUB_OFFLINE", True),
    ("HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{filename}")])  # a closed port
def test_without_a_network(timm_cfg, tmp_path, monkeypatch, capfd, setting):
    """It is said at once: no attempt is repeated, none is logged."""
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setattr(huggingface_hub.constants, *setting)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    build_timm_backbone(timm_cfg())  # nothing is asked for
    with pytest.raises(FileNotFoundError, match="'test_resnet' cannot be fetched.*They are "
                       "model.safetensors of the model timm/test_resnet.r160_in1k on .*"
                       "set MODEL.BACKBONE.PRETRAIN_PATH to it, or MODEL.BACKBONE.PRETRAIN False"):
        build_timm_backbone(timm_cfg("test_resnet", BACKBONE + "PRETRAIN", True))
    assert waits == [] and capfd.readouterr().err == ""


def test_a_model_without_weights(timm_cfg):
    cfg = timm_cfg("test_mambaout", BACKBONE + "PRETRAIN", True)
    with pytest.raises(ValueError, match="PRETRAIN True: timm has no weights for .*mambaout"):
        build_timm_backbone(cfg)


def test_options_that_the_weights_do_not_fit(timm_cfg, downloads):
    downloads(alone("test_vit").state_dict())
    build_timm_backbone(timm_cfg("test_vit", BACKBONE + "PRETRAIN", True,
                                 OPTIONS, "drop_path_rate=0.1"))
    with pytest.raises(ValueError, match="OPTIONS 'mlp_ratio=2' makes a network that timm's"):
        build_timm_backbone(timm_cfg("test_vit", BACKBONE + "PRETRAIN", True,
                                     OPTIONS, "mlp_ratio=2"))


def test_pixels_that_the_weights_were_not_trained_with(timm_cfg, downloads, messages):
    downloads(alone("test_vit").state_dict())
    build_timm_backbone(timm_cfg("test_vit"))  # random weights were trained with none
    assert messages == []
    build_timm_backbone(timm_cfg("test_vit", BACKBONE + "PRETRAIN", True))
    assert [text for text in messages if "PIXEL_MEAN is [123.675, 116.28, 103.53]" in text
            and "test_vit were trained with [127.5,127.5,127.5]" in text]
    assert len([text for text in messages if "MODEL.PIXEL_STD" in text]) == 1
    messages.clear()
    build_timm_backbone(timm_cfg(
        "test_vit", BACKBONE + "PRETRAIN", True, "MODEL.PIXEL_MEAN", [127.5] * 3,
        "MODEL.PIXEL_STD", [127.5] * 3))
    assert messages == []


# ------------------------------------------------------------------------------- export ----


PLAIN = ("MODEL.HEADS.CAMSEP.ATTENTION", "none", "MODEL.LOSSES.NAME", ("InfoNCELoss", "CACCLoss"))


# The attention reads the mean over channels, which a new layer norm makes the same everywhere: what
# is left is rounding, which the batch norms of this run enlarge.
ATTENTIVE = (STRIDE, 8, OPTIONS, "final_norm=False")


@pytest.mark.parametrize("name, options", [
    ("lcnet_035", PLAIN), ("test_vit", PLAIN), ("test_vit", ATTENTIVE)])
def test_it_is_exported(small_run, tmp_path, name, options):
    run = small_run(
        BACKBONE + "NAME", "build_timm_backbone", BACKBONE + "TIMM.NAME", name,
        BACKBONE + "FEAT_DIM", MODELS[name], BACKBONE + "WITH_IBN", False,
        "INPUT.SIZE_TRAIN", [32, 16], "INPUT.SIZE_TEST", [32, 16], *options)
    if options is ATTENTIVE:
        _add_vectors(run)
    embedder = load_run(run)
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(256, size=(32, 16, 3), dtype=np.uint8)).save(path)
    export_network(embedder, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"),
                                           providers=["CPUExecutionProvider"])
    images = np.stack([embedder.preprocessing(Image.open(path)) for path in paths])
    found, = session.run(None, {"images": images})
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(found, embedder.embed(paths), atol=1e-4)
    export_network(embedder, tmp_path / "net.torchscript")
    program = torch.jit.load(tmp_path / "net.torchscript")
    found = program(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, embedder.embed(paths), atol=1e-4)


def _add_vectors(run):
    """Makes a run one with vectors of two cameras, of which its embeddings know nothing."""
    text = (run / "config.yaml").read_text()
    assert text.count("CAMERA_EMBEDDING: false") == 1
    (run / "config.yaml").write_text(
        text.replace("CAMERA_EMBEDDING: false", "CAMERA_EMBEDDING: true"))
    content = torch.load(run / "model_final.pth", weights_only=True)
    content["model"]["backbone.camera_embedding"] = torch.randn(2, 64)
    torch.save(content, run / "model_final.pth")
