"""Every shipped config builds; the keys hold the paper's values; installed configs are found."""

import ast
from pathlib import Path

import caureid_plugin
import pytest
import torch
from fastreid.modeling import build_model
from fastreid.solver import build_lr_scheduler, build_optimizer

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yml"))


def _load(cfg, path):
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.PRETRAIN = False  # weights are the user's to bring
    return cfg


def test_there_are_configs():
    assert {"Base-caureid.yml", "caureid.yml"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_config_builds_and_takes_a_step(cfg, path):
    _load(cfg, path)
    if path.name == "Base-caureid.yml":  # the number of cameras belongs to a dataset
        cfg.MODEL.HEADS.CAMSEP.NUM_CAMERAS = 6
    torch.manual_seed(0)
    model = build_model(cfg)
    optimizer, _ = build_optimizer(cfg, model)
    assert build_lr_scheduler(cfg, optimizer, cfg.SOLVER.ITERS_PER_EPOCH)
    camids = torch.arange(8) % cfg.MODEL.HEADS.CAMSEP.NUM_CAMERAS
    dim = cfg.MODEL.BACKBONE.FEAT_DIM
    model.memory = caureid_plugin.MemoryBank(camids, dim, momentum=cfg.CAUREID.MEMORY.MOMENTUM)
    model.memory.reset(torch.randn(8, dim))
    model.memory.relabel(torch.arange(8) // 4)
    caureid_plugin.UnsupervisedHook(cfg)  # its options are checked on construction
    model.train()
    losses = model({
        "images": torch.rand(8, 3, 64, 32) * 255, "targets": torch.arange(8) // 4,
        "camids": camids, "indexes": torch.arange(8)})
    assert len(losses) == len(cfg.MODEL.LOSSES.NAME)
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, "an unused parameter breaks DistributedDataParallel"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_identities_cannot_reach_training(cfg, path):
    """0 classes would be filled from the identities; a negative number is left alone."""
    assert _load(cfg, path).MODEL.HEADS.NUM_CLASSES < 0


@pytest.mark.parametrize("name, cameras, momentum, eps", [
    ("Market/caureid.yml", 6, 0.2, 0.5), ("Duke/caureid.yml", 8, 0.1, 0.6)])
def test_values_of_the_paper(cfg, name, cameras, momentum, eps):
    cfg.merge_from_file(caureid_plugin.get_config_file(name))
    losses, solver = cfg.MODEL.LOSSES, cfg.SOLVER
    assert cfg.MODEL.HEADS.CAMSEP.NUM_CAMERAS == cameras
    assert cfg.CAUREID.MEMORY.MOMENTUM == momentum
    assert (cfg.CAUREID.CLUSTER.EPS, cfg.CAUREID.CLUSTER.K1) == (eps, 30)
    assert (losses.CAMSEP.SCALE, losses.CACC.SCALE) == (0.4, 1.0)
    assert (losses.CACC.TEMPERATURE, losses.CACC.NUM_NEGATIVES) == (0.07, 50)
    assert (solver.OPT, solver.BASE_LR, solver.IMS_PER_BATCH) == ("Adam", 3.5e-4, 64)
    assert (list(solver.STEPS), solver.GAMMA, solver.MAX_EPOCH) == ([20, 40], 0.1, 50)
    assert solver.ITERS_PER_EPOCH == 400
    assert list(cfg.INPUT.SIZE_TRAIN) == [256, 128]
    assert (cfg.MODEL.BACKBONE.DEPTH, cfg.MODEL.BACKBONE.LAST_STRIDE) == ("50x", 1)


def test_every_key_has_a_comment():
    """The line above each key of config.py, or that of the group it opens, is a comment."""
    path = Path(caureid_plugin.__file__).with_name("config.py")
    lines = path.read_text().splitlines()
    nodes = ast.walk(ast.parse(path.read_text()))
    targets = [node for node in nodes if isinstance(node, ast.Assign)]
    assert len(targets) > 25
    bare = []
    for node in targets:
        above = node.lineno - 2
        while lines[above].strip() and not lines[above].strip().startswith(("#", "def", '"""')):
            above -= 1  # keys that share a comment follow each other
        is_group = isinstance(node.value, ast.Call)
        if not lines[above].strip().startswith("#") and not is_group:
            bare.append(lines[node.lineno - 1].strip())
    assert not bare


def test_unknown_key_is_an_error(cfg):
    with pytest.raises(KeyError, match="did you mean MODEL.HEADS.CAMSEP.NUM_CAMERAS"):
        cfg.merge_from_list(["MODEL.HEADS.CAMSEP.NUM_CAMERA", 6])


def test_unknown_config_lists_the_known_ones():
    with pytest.raises(FileNotFoundError, match="Market/caureid.yml"):
        caureid_plugin.get_config_file("Markt/caureid.yml")


def test_camera_aware_values_of_its_paper(cfg):
    node = _load(cfg, CONFIGS / "Market" / "caureid_cajaccard.yml").CAUREID.CLUSTER
    assert node.CAMERA_AWARE and node.EPS == 0.4 and node.MIN_SAMPLES == 4
    assert (node.K1_INTRA, node.K1_INTER, node.K2_INTRA, node.K2_INTER) == (5, 20, 2, 4)
    assert (node.K2_INTRA_FIRST, node.K2_INTER_FIRST) == (3, 3)
