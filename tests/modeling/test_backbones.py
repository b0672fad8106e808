"""The plain backbone: sizes of its map, and what it refuses."""

import pytest
import torch
from caureid_plugin.modeling import build_plain_backbone


@pytest.fixture
def small(cfg):
    cfg.MODEL.BACKBONE.FEAT_DIM, cfg.MODEL.BACKBONE.PRETRAIN = 16, False
    return cfg


@pytest.mark.parametrize("last_stride, size", [(2, (8, 4)), (1, (16, 8))])
@pytest.mark.parametrize("with_ibn", [False, True])
def test_size_of_the_map(small, last_stride, size, with_ibn):
    small.MODEL.BACKBONE.LAST_STRIDE, small.MODEL.BACKBONE.WITH_IBN = last_stride, with_ibn
    assert build_plain_backbone(small)(torch.rand(2, 3, 64, 32)).shape == (2, 16, *size)


@pytest.mark.parametrize("key, value", [
    ("FEAT_DIM", 12), ("LAST_STRIDE", 3), ("PRETRAIN", True)])
def test_what_it_cannot_build_is_named(small, key, value):
    small.MODEL.BACKBONE[key] = value
    with pytest.raises(ValueError, match=f"MODEL.BACKBONE.{key}"):
        build_plain_backbone(small)
