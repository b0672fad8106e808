"""The tiny images and the config keys of a tiny training that the tests share."""

from pathlib import Path

import numpy as np
from PIL import Image

IDENTITIES = 8  # of the training set; as many others to test with

OWN_CONFIG = str(Path(__file__).with_name("caureid_plain.yml"))
KEYS = """
MODEL.DEVICE cpu MODEL.BACKBONE.NAME build_plain_backbone MODEL.BACKBONE.PRETRAIN False
MODEL.BACKBONE.FEAT_DIM 16 MODEL.BACKBONE.LAST_STRIDE 2 MODEL.BACKBONE.WITH_IBN True
MODEL.HEADS.CAMSEP.REDUCTION 4 MODEL.HEADS.CAMSEP.NUM_CAMERAS 2 MODEL.BN_GROUP_SIZE 8
DATASETS.NAMES ('Market1501',) DATASETS.TESTS ('Market1501',) DATALOADER.NUM_WORKERS 0
INPUT.SIZE_TRAIN [32,16] INPUT.SIZE_TEST [32,16] SOLVER.IMS_PER_BATCH 16 SOLVER.ITERS_PER_EPOCH 3
SOLVER.MAX_EPOCH 2 SOLVER.CHECKPOINT_PERIOD 1 CAUREID.CLUSTER.CAMERA_AWARE False
CAUREID.CLUSTER.K1 6 CAUREID.CLUSTER.K2 2 CAUREID.CLUSTER.EPS 0.6 CAUREID.CLUSTER.K1_INTRA 3
CAUREID.CLUSTER.K1_INTER 7 TEST.EVAL_PERIOD 1 TEST.EVAL_AT_START True TEST.IMS_PER_BATCH 16
""".split()
"""A training of two epochs of three steps on `tiny_market`, as words of a command line."""


def _write_person(folder, rng, colours, pid, camera, frame):
    """One 32 x 16 image: two blocks of clothing colours under the camera's tint, and noise."""
    image = np.empty((32, 16, 3))
    image[:16], image[16:] = colours
    image = image * (1.0 - 0.15 * camera) + rng.normal(scale=12.0, size=image.shape)
    identity = "-1" if pid < 0 else f"{pid:04d}"
    name = f"{identity}_c{camera + 1}s1_{frame:06d}_00.jpg"
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name, quality=95)


def write_market(root):
    """Writes a coloured-noise data set in Market-1501's layout below ``root``; gives ``root``.

    Training: 8 identities x 2 cameras x 3 images. Test: 8 other identities, one query per camera
    (16) and two gallery images per camera (32), a junk image and a distractor. An identity is a
    pair of colours.
    """
    rng = np.random.default_rng(0)
    colours = rng.uniform(20, 235, size=(2 * IDENTITIES, 2, 3))
    base = root / "Market-1501-v15.09.15"
    train, query, gallery = (base / n for n in ("bounding_box_train", "query", "bounding_box_test"))
    for folder in (train, query, gallery):
        folder.mkdir(parents=True)
    for pid in range(2 * IDENTITIES):
        parts = [train] * 3 if pid < IDENTITIES else [query, gallery, gallery]
        for camera in range(2):
            for frame, folder in enumerate(parts):
                _write_person(folder, rng, colours[pid], pid + 1, camera, frame)
    grey = np.full((2, 3), 128.0)
    _write_person(gallery, rng, grey, 0, 1, 7)
    _write_person(gallery, rng, grey, -1, 0, 8)
    return root


def write_crops(root, cameras=("north", "south"), each=12):
    """Writes ``each`` images into a folder for each camera below ``root``; gives ``root``.

    64 x 32 images with structure, no two alike, whose edges have their camera's colour.
    """
    for camera, name in enumerate(cameras):
        (root / name).mkdir(parents=True)
        colour = np.random.default_rng(100 + camera).integers(256, size=3)
        for i in range(each):
            rng = np.random.default_rng(1000 * camera + i)
            image = np.kron(rng.integers(256, size=(16, 8, 3)), np.ones((4, 4, 1)))
            image[:, :6] = image[:, -6:] = colour
            Image.fromarray(image.astype(np.uint8)).save(root / name / f"{i:02d}.png")
    return root
