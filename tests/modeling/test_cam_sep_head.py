"""CamSepHead against eqs. 3 to 5 by hand, and against the toolbox's EmbeddingHead."""

import copy

import caureid_plugin
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.modeling.heads import EmbeddingHead
from fastreid.modeling.meta_arch import build_model
from fastreid.utils.events import EventStorage

CAMSEP = "MODEL.HEADS.CAMSEP."
RANDOM_START = (CAMSEP + "UNIFORM_START", False, CAMSEP + "REDUCTION", 4)
SMALL = ("MODEL.BACKBONE.FEAT_DIM", 12, *RANDOM_START)


def make_head(cfg):
    """A head whose batch norms have random affine weights and running statistics."""
    torch.manual_seed(0)
    head = caureid_plugin.CamSepHead(cfg)
    for norm in head.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.weight.data.uniform_(0.5, 1.5)
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2.0)
    return head.double()


def random_map(channels=12):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(6, channels, 5, 3, generator=generator).double()


def by_hand(x, norm, training):
    """BN(GAP(x)) in NumPy, (B, C, H, W) -> (B, C)."""
    x = x.detach().numpy().mean(axis=(2, 3))
    mean, variance = norm.running_mean.numpy().copy(), norm.running_var.numpy().copy()
    if training:
        mean, variance = x.mean(axis=0), x.var(axis=0)
    weight, bias = norm.weight.detach().numpy(), norm.bias.detach().numpy()
    return (x - mean) / np.sqrt(variance + norm.eps) * weight + bias


@pytest.mark.parametrize("mask_range, classes, detach", [
    ("full", -1, False), ("full", 4, True), ("half", -1, True)])
def test_training_and_evaluation_by_hand(make_cfg, mask_range, classes, detach):
    head = make_head(make_cfg(*SMALL, CAMSEP + "RANGE", mask_range, CAMSEP + "DETACH", detach,
                              "MODEL.HEADS.NUM_CLASSES", classes))
    head.camera_classifier.weight.data.normal_()
    x, attention = random_map(), copy.deepcopy(head.attention)
    mask = attention(x)
    agnostic = by_hand((1 - mask) * x, head.bottleneck[0], True)
    specific = by_hand(mask * x, head.camera_neck, True)
    expected = {"features": agnostic,
                "camera_logits": specific @ head.camera_classifier.weight.detach().numpy().T}
    if classes > 0:  # of the agnostic part
        logits = agnostic @ head.weight.detach().numpy().T
        expected.update(cls_outputs=logits, pred_class_logits=logits)
    outputs = head(x, torch.tensor([0, 1, 2, 3, 0, 1]))
    assert outputs.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name].detach(), value, atol=1e-10, err_msg=name)
    # running statistics have moved once
    torch.testing.assert_close(head.attention.state_dict(), attention.state_dict())
    embedding, mask = head.eval()(x), attention.eval()(x)
    assert torch.equal(head.mask(x), mask)
    expected = by_hand((1 - mask) * x, head.bottleneck[0], False)
    np.testing.assert_allclose(embedding.detach(), expected, atol=1e-10)


def test_feature_before_the_neck(make_cfg):
    cfg = make_cfg(*SMALL, "MODEL.HEADS.NECK_FEAT", "before")
    head, x = make_head(cfg), random_map()
    agnostic = (1 - copy.deepcopy(head.attention)(x)) * x
    torch.testing.assert_close(head(x)["features"], agnostic.mean(dim=(2, 3)))


@pytest.mark.parametrize("training", [False, True])
def test_uniform_start_keeps_the_direction_of_the_embedding(make_cfg, training):
    cfg = make_cfg("MODEL.HEADS.NUM_CLASSES", 4)
    torch.manual_seed(0)
    plain, head = EmbeddingHead(cfg).train(training), caureid_plugin.CamSepHead(cfg)
    head.train(training)
    missing = head.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    x, targets = random_map(16).float(), torch.tensor([0, 1, 2, 3, 0, 1])
    expected, embedding = plain(x, targets), head(x, targets)
    if training:
        expected, embedding = expected["features"], embedding["features"]
    cosine = F.cosine_similarity(embedding, expected)
    torch.testing.assert_close(cosine, torch.ones(6), rtol=0, atol=1e-4 if training else 1e-6)


def test_without_attention_it_is_the_embedding_head(make_cfg):
    cfg = make_cfg(*SMALL, CAMSEP + "ATTENTION", "none", "MODEL.HEADS.NUM_CLASSES", 4,
                   "MODEL.LOSSES.NAME", ("InfoNCELoss", "CACCLoss"))
    head, plain = make_head(cfg), EmbeddingHead(cfg).double()
    assert head.attention is None and head.camera_classifier is None
    assert list(head.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(head.state_dict())
    x, targets = random_map(), torch.tensor([0, 1, 2, 3, 0, 1])
    expected, outputs = plain(x, targets), head(x, targets)
    assert sorted(outputs) == sorted(expected)
    for name in expected:
        assert torch.equal(outputs[name], expected[name])
    assert torch.equal(head.eval()(x), plain.eval()(x))
    assert torch.equal(head.mask(x), torch.zeros_like(x))


@pytest.mark.parametrize("detach", [True, False])
def test_gradient_of_the_camera_loss(make_cfg, detach):
    head = make_head(make_cfg(*SMALL, CAMSEP + "DETACH", detach))
    x = random_map().requires_grad_()
    camids = torch.tensor([0, 1, 2, 0, 1, 2])
    head.camera_classifier.weight.data.normal_()
    F.cross_entropy(head(x)["camera_logits"], camids).backward()
    if detach:
        assert x.grad is None or not x.grad.any()
    else:
        assert x.grad.abs().max() > 1e-6
    for name, parameter in [*head.attention.named_parameters(),
                            *head.camera_classifier.named_parameters()]:
        assert parameter.grad.abs().max() > 1e-9, f"{name} learns nothing from the camera loss"
    assert head.bottleneck[0].weight.grad is None


def test_with_detach_the_embedding_sees_a_constant_mask(make_cfg):
    head, x = make_head(make_cfg(*SMALL, CAMSEP + "DETACH", True)), random_map()
    mask = head.mask(x).detach()
    constant = x.clone().requires_grad_()
    pooled = ((1.0 - mask) * constant).mean(dim=(2, 3), keepdim=True)
    (head.bottleneck(pooled) ** 3).sum().backward()
    x.requires_grad_()
    (head(x)["features"] ** 3).sum().backward()
    assert x.grad.abs().max() > 1e-3
    torch.testing.assert_close(x.grad, constant.grad)


@pytest.mark.parametrize("key, value, message", [
    ("ATTENTION", "harmonius", "CAMSEP.ATTENTION 'harmonius' .*'harmonious', 'none'"),
    ("ATTENTION", "none", "CameraSeparationLoss .*CAMSEP.ATTENTION 'none' does not"),
    ("NUM_CAMERAS", -1, "NUM_CAMERAS is -1 .*call cfg = .*fit_to_data"),
    ("NUM_CAMERAS", 1, "needs MODEL.HEADS.CAMSEP.NUM_CAMERAS.*is 1"),
    ("RANGE", "third", r"mask_range \(MODEL.HEADS.CAMSEP.RANGE\) 'third'"),
    ("RANGE", "half", r"uniform_start \(MODEL.HEADS.CAMSEP.UNIFORM_START\) needs .*CAMSEP.RANGE"),
])
def test_what_it_cannot_do_is_refused(make_cfg, key, value, message):
    with pytest.raises(ValueError, match=message):
        caureid_plugin.CamSepHead(make_cfg(CAMSEP + key, value))


def test_attention_needs_more_than_one_place_to_learn_from(make_cfg):
    head = make_head(make_cfg(*SMALL))
    token = torch.randn(6, 12, 1, 1).double()
    with pytest.raises(ValueError, match="needs a feature map with more than one place.*take "
                       "build_timm_backbone with MODEL.BACKBONE.TIMM.NAME vit_base.*'none'"):
        head(token)
    assert head.eval()(token).shape == (6, 12)
    column = random_map()[:, :, :2, :1]
    assert sorted(head.train()(column)) == ["camera_logits", "features"]


SUPERVISED = ["MODEL.HEADS.NUM_CLASSES", 4, "MODEL.LOSSES.NAME", (
    "CrossEntropyLoss", "TripletLoss")]


@pytest.mark.parametrize("options, camera_classifier", [
    ([], True),  # the full method
    ([*RANDOM_START, CAMSEP + "DETACH", True], True),
    (["MODEL.LOSSES.NAME", ("InfoNCELoss",), CAMSEP + "ATTENTION", "none"], False),
    (["MODEL.LOSSES.NAME", ("InfoNCELoss", "CACCLoss")], False),
    (["MODEL.LOSSES.NAME", ("InfoNCELoss", "CACCLoss"), "MODEL.HEADS.EMBEDDING_DIM", 32], False),
    (["MODEL.HEADS.EMBEDDING_DIM", 32], True),
    ([*SUPERVISED, "MODEL.META_ARCHITECTURE", "Baseline"], False),  # the toolbox's
])
def test_no_parameter_without_a_gradient(make_cfg, make_batch, make_bank, options,
                                         camera_classifier):
    cfg = make_cfg(*options)
    model = build_model(cfg)
    model.memory = make_bank(cfg.MODEL.HEADS.EMBEDDING_DIM or 16)
    assert (model.heads.camera_classifier is not None) == camera_classifier
    with EventStorage(0):
        total = model(make_batch(outlier=cfg.MODEL.HEADS.NUM_CLASSES < 0))
    assert len(total) == len(cfg.MODEL.LOSSES.NAME)
    sum(total.values()).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, grad in grads.items() if grad is None] == []
    backbone = [grad for name, grad in grads.items() if name.startswith("backbone.")]
    assert sum(grad.abs().sum() for grad in backbone) > 0
