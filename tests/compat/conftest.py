"""A small supervised setup of the toolbox's own, and ways to watch it."""

from pathlib import Path

import caureid_plugin  # noqa: F401
import pytest
import torch
from fastreid.engine import DefaultTrainer
from fastreid.modeling import meta_arch
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from torch import nn


@pytest.fixture(scope="session")
def tiny_backbone():
    """Name of a registered backbone of one strided convolution, 16 channels."""

    def build_tiny_test_backbone(cfg):
        return nn.Sequential(
            nn.Conv2d(3, cfg.MODEL.BACKBONE.FEAT_DIM, 5, stride=4, bias=False),
            nn.BatchNorm2d(cfg.MODEL.BACKBONE.FEAT_DIM), nn.ReLU())

    BACKBONE_REGISTRY.register(build_tiny_test_backbone)
    yield build_tiny_test_backbone.__name__
    del BACKBONE_REGISTRY._obj_map[build_tiny_test_backbone.__name__]


@pytest.fixture
def tiny_cfg(cfg, tiny_market, tiny_backbone, tmp_path):
    """The toolbox's supervised training on the tiny dataset: one epoch of two iterations."""
    cfg.merge_from_list([
        "MODEL.BACKBONE.NAME", tiny_backbone, "MODEL.BACKBONE.FEAT_DIM", 16,
        "MODEL.HEADS.WITH_BNNECK", True,
        "MODEL.LOSSES.NAME", ("CrossEntropyLoss", "TripletLoss"),
        "INPUT.SIZE_TRAIN", [32, 16], "INPUT.SIZE_TEST", [32, 16],
        "DATALOADER.SAMPLER_TRAIN", "NaiveIdentitySampler",
        "DATALOADER.NUM_INSTANCE", 4, "DATALOADER.NUM_WORKERS", 0,
        "SOLVER.IMS_PER_BATCH", 16, "SOLVER.BASE_LR", 0.01, "SOLVER.WARMUP_ITERS", 0,
        "SOLVER.MAX_EPOCH", 1, "SOLVER.ITERS_PER_EPOCH", 2, "SOLVER.CHECKPOINT_PERIOD", 1,
        "TEST.EVAL_PERIOD", 1, "TEST.IMS_PER_BATCH", 20,
        "OUTPUT_DIR", str(tmp_path / "output"), "SEED", 1,
    ])
    Path(cfg.OUTPUT_DIR).mkdir()
    return cfg


@pytest.fixture
def make_model(tiny_cfg):
    """Builds the network of the tiny setup for 8 identities, with some keys set otherwise."""

    def make(*changes):
        cfg = tiny_cfg.clone()
        cfg.merge_from_list(["MODEL.HEADS.NUM_CLASSES", 8, *changes])
        torch.manual_seed(0)
        return meta_arch.build_model(cfg)

    return make


@pytest.fixture
def make_trainer(tiny_cfg):
    """Builds a DefaultTrainer of the tiny setup, with some keys set otherwise."""

    def make(*changes):
        config = tiny_cfg.clone()
        config.merge_from_list(list(changes))
        config.freeze()
        return DefaultTrainer(config)

    return make
