"""A small configuration, batch and memory bank for the tests of the registered parts."""

import caureid_plugin
import pytest
import torch


@pytest.fixture
def make_cfg(cfg):
    """Config of a small CAUReID with all of the method's losses; more keys as a list."""

    def make(*options):
        small = cfg.clone()
        small.merge_from_list([
            "MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "CAUReID",
            "MODEL.BACKBONE.NAME", "build_plain_backbone", "MODEL.BACKBONE.FEAT_DIM", 16,
            "MODEL.BACKBONE.PRETRAIN", False, "MODEL.HEADS.NAME", "CamSepHead",
            "MODEL.HEADS.NUM_CLASSES", -1, "MODEL.HEADS.WITH_BNNECK", True,
            "MODEL.HEADS.NECK_FEAT", "after", "MODEL.HEADS.CAMSEP.NUM_CAMERAS", 3,
            "MODEL.HEADS.CAMSEP.REDUCTION", 4, "MODEL.BN_GROUP_SIZE", 4,
            "MODEL.LOSSES.NAME", ("InfoNCELoss", "CameraSeparationLoss", "CACCLoss"),
        ])
        small.merge_from_list(list(options))
        return small

    return make


@pytest.fixture
def make_batch():
    """Eight 32 x 16 images of four clusters and three cameras, one an outlier if asked."""

    def make(seed=0, outlier=False):
        generator = torch.Generator().manual_seed(seed)
        targets = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        if outlier:
            targets[5] = -1
        return {
            "images": 255 * torch.rand(8, 3, 32, 16, generator=generator),
            "targets": targets,
            "camids": torch.tensor([0, 1, 2, 0, 1, 1, 2, 0]),
            "indexes": torch.tensor([0, 5, 1, 6, 2, 7, 3, 8]),
        }

    return make


@pytest.fixture
def make_bank():
    """A bank of random images, by default sixty of seven clusters and four cameras."""

    def make(dim=16, *, n=60, clusters=7, momentum=0.2, outliers=5, centres="mean"):
        generator = torch.Generator().manual_seed(0)
        bank = caureid_plugin.MemoryBank(
            torch.randint(4, (n,), generator=generator), dim, momentum=momentum, centres=centres)
        bank.reset(torch.randn(n, dim, generator=generator))
        labels = torch.arange(n) % clusters
        labels[torch.randperm(n, generator=generator)[:outliers]] = -1
        bank.relabel(labels)
        return bank

    return make
