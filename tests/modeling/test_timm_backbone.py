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
            ("cut.safetensors", b"abc", ValueError, "cut.safetensors cannot be read"),
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


@pytest.mark.parametrize("name", ["lcnet_035", "test_vit"])
def test_it_is_exported(small_run, tmp_path, name):
    embedder = load_run(small_run(
        BACKBONE + "NAME", "build_timm_backbone", BACKBONE + "TIMM.NAME", name,
        BACKBONE + "FEAT_DIM", MODELS[name], BACKBONE + "WITH_IBN", False,
        "MODEL.HEADS.CAMSEP.ATTENTION", "none", "MODEL.LOSSES.NAME", ("InfoNCELoss", "CACCLoss"),
        "INPUT.SIZE_TRAIN", [32, 16], "INPUT.SIZE_TEST", [32, 16]))
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
