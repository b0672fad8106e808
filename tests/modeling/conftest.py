"""A small configuration, batch and memory bank for the tests of the registered parts."""

import pytest
import torch

import caureid_plugin  # isort: skip  (before everything that imports fastreid)

from fastreid.config import get_cfg


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def make_cfg():
    """Config of a small CAUReID with all of the method's losses; more keys as a list."""

    def make(*options):
        cfg = get_cfg()
        caureid_plugin.add_caureid_config(cfg)
        cfg.merge_from_list([
            "MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "CAUReID",
            "MODEL.BACKBONE.NAME", "build_osnet_backbone", "MODEL.BACKBONE.DEPTH", "x0_25",
            "MODEL.BACKBONE.FEAT_DIM", 128, "MODEL.BACKBONE.PRETRAIN", False,
            "MODEL.HEADS.NAME", "CamSepHead", "MODEL.HEADS.NUM_CLASSES", -1,
            "MODEL.HEADS.WITH_BNNECK", True, "MODEL.HEADS.NECK_FEAT", "after",
            "MODEL.HEADS.CAMSEP.NUM_CAMERAS", 3, "MODEL.BN_GROUP_SIZE", 4,
            "MODEL.LOSSES.NAME", ("InfoNCELoss", "CameraSeparationLoss", "CACCLoss"),
        ])
        cfg.merge_from_list(list(options))
        return cfg

    return make


@pytest.fixture
def make_batch():
    """Eight 64 x 32 images of four clusters and three cameras, one an outlier if asked."""

    def make(seed=0, outlier=False):
        generator = torch.Generator().manual_seed(seed)
        targets = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        if outlier:
            targets[5] = -1
        return {
            "images": 255 * torch.rand(8, 3, 64, 32, generator=generator),
            "targets": targets,
            "camids": torch.tensor([0, 1, 2, 0, 1, 1, 2, 0]),
            "indexes": torch.tensor([0, 5, 1, 6, 2, 7, 3, 8]),
        }

    return make


@pytest.fixture
def make_bank():
    """Twenty random images of five clusters and three cameras."""

    def make(dim=128, seed=0):
        generator = torch.Generator().manual_seed(seed)
        camids = torch.randint(3, (20,), generator=generator)
        bank = caureid_plugin.MemoryBank(camids, dim, momentum=0.2)
        bank.reset(torch.randn(20, dim, generator=generator))
        bank.relabel(torch.arange(20) % 5)
        return bank

    return make
