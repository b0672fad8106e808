"""Fixtures shared by all tests: a tiny dataset in Market-1501's layout and a complete config."""

import os

# Before torch is imported, here and in the processes that tests start: on tensors as small as
# these, threads cost more than they gain.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image

IDENTITIES = 8  # of the training set; as many others to test with


def _write_person(folder, rng, colours, pid, camera, frame):
    """One 32 x 16 image: two blocks of clothing colours under the camera's tint, and noise."""
    image = np.empty((32, 16, 3))
    image[:16], image[16:] = colours
    image = image * (1.0 - 0.15 * camera) + rng.normal(scale=12.0, size=image.shape)
    identity = "-1" if pid < 0 else f"{pid:04d}"
    name = f"{identity}_c{camera + 1}s1_{frame:06d}_00.jpg"
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name, quality=95)


@pytest.fixture
def tiny_market(tmp_path, monkeypatch):
    """Folder for FASTREID_DATASETS with a coloured-noise dataset in Market-1501's layout.

    Training: 8 identities x 2 cameras x 3 images. Test: 8 other identities, one query per camera
    (16) and two gallery images per camera (32), a junk image and a distractor. An identity is a
    pair of colours. The toolbox's ``Market1501`` finds the folder, in this process.
    """
    rng = np.random.default_rng(0)
    colours = rng.uniform(20, 235, size=(2 * IDENTITIES, 2, 3))
    root = tmp_path / "datasets"
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

    import caureid_plugin  # noqa: F401
    from fastreid.data import build as data_build

    monkeypatch.setattr(data_build, "_root", str(root))
    return root


@pytest.fixture
def cfg():
    """A fresh config with the toolbox's and the plugin's keys."""
    from caureid_plugin import add_caureid_config
    from fastreid.config import get_cfg

    config = get_cfg()
    add_caureid_config(config)
    return config


SCRIPT_KEYS = """
MODEL.DEVICE cpu MODEL.BACKBONE.NAME build_plain_backbone MODEL.BACKBONE.PRETRAIN False
MODEL.BACKBONE.FEAT_DIM 16 MODEL.BACKBONE.LAST_STRIDE 2 MODEL.BACKBONE.WITH_IBN True
MODEL.HEADS.CAMSEP.REDUCTION 4 MODEL.HEADS.CAMSEP.NUM_CAMERAS 2 MODEL.BN_GROUP_SIZE 8
DATASETS.NAMES ('Market1501',) DATASETS.TESTS ('Market1501',) DATALOADER.NUM_WORKERS 0
INPUT.SIZE_TRAIN [32,16] INPUT.SIZE_TEST [32,16] SOLVER.IMS_PER_BATCH 16 SOLVER.ITERS_PER_EPOCH 3
SOLVER.MAX_EPOCH 2 SOLVER.CHECKPOINT_PERIOD 1 CAUREID.CLUSTER.CAMERA_AWARE False
CAUREID.CLUSTER.K1 6 CAUREID.CLUSTER.K2 2 CAUREID.CLUSTER.EPS 0.6 CAUREID.CLUSTER.K1_INTRA 3
CAUREID.CLUSTER.K1_INTER 7 TEST.EVAL_PERIOD 1 TEST.EVAL_AT_START True TEST.IMS_PER_BATCH 16
""".split()


@pytest.fixture
def train_as_script(tiny_market, tmp_path, monkeypatch):
    """Trains as tools/train_net.py does, by its own functions, in this process; gives the trainer.

    Arguments: keys and values as on the command line; ``folder``: below tmp_path, for the output;
    ``watch``: called with the trainer before it trains.
    """
    import importlib.util
    import logging
    from pathlib import Path

    from fastreid.engine import defaults

    repository = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location("train_net", repository / "tools/train_net.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(defaults, "collect_env_info", lambda: "")  # slow, of no interest here
    log = logging.getLogger("fastreid")
    before = log.handlers[:], log.level, log.propagate

    def run(*options, config="Synthetic/caureid.yml", folder="run", watch=lambda trainer: None):
        command = ["--config-file", config, *SCRIPT_KEYS, "OUTPUT_DIR", tmp_path / folder, *options]
        args = defaults.default_argument_parser().parse_args([str(part) for part in command])
        try:
            trainer = script.build_trainer(script.setup(args))
            watch(trainer)
            trainer.resume_or_load(resume=False)
            trainer.train()
        finally:
            for handler in set(log.handlers) - set(before[0]):
                handler.close()
            log.handlers, log.level, log.propagate = before[0][:], *before[1:]
        return trainer

    return run


@pytest.fixture
def script_keys():
    """Keys and values of a tiny training for the command line of tools/train_net.py."""
    return SCRIPT_KEYS


@pytest.fixture
def small_run(tmp_path):
    """Makes a run folder as training leaves it, of a network with random weights, in no time.

    Called with config keys and values it gives the folder. The memory bank has 60 images in 6
    clusters and of 2 cameras, and 6 outliers; those of a cluster are alike.
    """
    import torch
    from caureid_plugin.engine import build_network, load_config
    from torch.nn.functional import normalize

    def make(*options, folder="small_run"):
        cfg = load_config("Synthetic/caureid.yml", [*SCRIPT_KEYS, *options])
        model = build_network(cfg)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, value in model.state_dict().items():  # an attention that has left its start
                if name.endswith("combine.1.weight"):
                    value.normal_(0, 0.5, generator=generator)
            for module in model.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.momentum = 1.0
            for _ in range(6):  # batch norm sees images, one layer after the other
                blocks = 255 * torch.rand(32, 3, 4, 2, generator=generator)
                images = blocks.repeat_interleave(8, 2).repeat_interleave(8, 3)
                model.heads(model.backbone((images - model.pixel_mean) / model.pixel_std),
                            torch.zeros(32, dtype=torch.int64))
        labels = torch.cat([torch.arange(6).repeat_interleave(10), torch.full((6,), -1)])
        centres = torch.randn(7, 16, generator=generator)
        features = centres[labels] + 0.7 * torch.randn(66, 16, generator=generator)
        home = tmp_path / folder
        home.mkdir()
        (home / "config.yaml").write_text(cfg.dump())
        torch.save({"model": model.state_dict(), "memory_bank": {
            "features": normalize(features, dim=1), "labels": labels,
            "camids": torch.arange(66) % 2}}, home / "model_final.pth")
        (home / "last_checkpoint").write_text("model_final.pth")
        return home

    return make
