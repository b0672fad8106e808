"""Every shipped config builds; the keys hold the paper's values; installed configs are found."""

import ast
from pathlib import Path

import caureid_plugin
import pytest
import torch
import yaml
from fastreid.modeling import build_model
from fastreid.solver import build_lr_scheduler, build_optimizer

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yml"))
ROWS = [path for path in FILES if path.parent.name.startswith("ablation")]  # of table 2
FAMILIES = sorted({path.parent for path in ROWS})
NO_ATTENTION = {"MODEL.HEADS.CAMSEP.ATTENTION": "none"}
LOSSES, ANCHOR = "MODEL.LOSSES.NAME", "MODEL.LOSSES.CACC.ANCHOR"
# row -> every key that differs from the config of the family's full method
KEYS_OF_ROWS = {
    "baseline": {**NO_ATTENTION, LOSSES: ("InfoNCELoss",)},
    "css": {LOSSES: ("InfoNCELoss", "CameraSeparationLoss")},
    "cacc": {**NO_ATTENTION, LOSSES: ("InfoNCELoss", "CACCLoss")},
    "full": {},
    "sample": {ANCHOR: "sample"},
    "centre": {},  # it states the default
}


def _name(path):
    return str(path.relative_to(CONFIGS))


def _load(cfg, path):
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.PRETRAIN = False  # weights are the user's to bring
    return cfg


def test_there_are_configs():
    assert {"Base-caureid.yml", "caureid.yml"} <= {path.name for path in FILES}


# Mix: tests/test_mixing.py. Rows are built for the small network alone; how they differ from its
# full method, which is built, is the same in every family.
@pytest.mark.parametrize("path", [
    p for p in FILES if p.parent != CONFIGS / "Mix"
    and (p not in ROWS or p.parent == CONFIGS / "Synthetic" / "ablation")], ids=_name)
def test_config_builds_and_takes_a_step(cfg, path):
    _load(cfg, path)
    if cfg.MODEL.HEADS.CAMSEP.NUM_CAMERAS < 1:  # it belongs to a dataset
        assert path.name == "Base-caureid.yml" or path.parent.name == "OwnData"
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


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_identities_cannot_reach_training(cfg, path):
    """0 classes would be filled from the identities; a negative number is left alone."""
    if _load(cfg, path).MODEL.HEADS.NUM_CLASSES >= 0:
        assert path.read_text().startswith("# SUPERVISED:")  # whoever opens it is told


def _flat(node, prefix=""):
    """{"SOLVER.BASE_LR": 0.00035, ...}"""
    flat = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list) else value
    return flat


def test_every_family_has_every_row():
    assert [_name(family) for family in FAMILIES] == [
        "Duke/ablation", "Market/ablation", "Market/ablation_osnet", "Synthetic/ablation"]
    for family in FAMILIES:
        assert {path.stem for path in family.iterdir()} == set(KEYS_OF_ROWS)


@pytest.mark.parametrize("path", ROWS, ids=_name)
def test_row_differs_from_the_full_method_in_its_own_keys_alone(cfg, path):
    full = cfg.clone()
    folder = path.parent
    full.merge_from_file(str(folder.parent / folder.name.replace("ablation", "caureid")) + ".yml")
    cfg.merge_from_file(str(path))
    full, row = _flat(full), _flat(cfg)
    assert {key: value for key, value in row.items() if value != full[key]} == {
        **KEYS_OF_ROWS[path.stem],
        "OUTPUT_DIR": f"logs/{_name(folder).lower()}/{path.stem}"}


@pytest.mark.parametrize("path", ROWS, ids=_name)
def test_row_states_nothing_else(path):
    stated = yaml.safe_load(path.read_text())
    assert stated.pop("_BASE_").startswith("../caureid")
    expected = {ANCHOR} if path.stem == "centre" else set(KEYS_OF_ROWS[path.stem])
    assert set(_flat(stated)) == expected | {"OUTPUT_DIR"}


@pytest.mark.parametrize("name, cameras, momentum, eps", [
    ("Market/caureid_paper.yml", 6, 0.2, 0.5), ("Duke/caureid_paper.yml", 8, 0.1, 0.6)])
def test_values_of_the_paper(cfg, name, cameras, momentum, eps):
    cfg.merge_from_file(caureid_plugin.get_config_file(name))
    losses, solver = cfg.MODEL.LOSSES, cfg.SOLVER
    assert cfg.MODEL.HEADS.CAMSEP.NUM_CAMERAS == cameras
    assert cfg.CAUREID.MEMORY.MOMENTUM == momentum
    node = cfg.CAUREID.CLUSTER
    assert (node.CAMERA_AWARE, node.EPS, node.K1, node.K2) == (False, eps, 30, 6)
    assert cfg.CAUREID.LABELS == "bank"
    node = cfg.MODEL.HEADS.CAMSEP
    assert (node.RANGE, node.UNIFORM_START, node.DETACH) == ("half", False, False)
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


@pytest.mark.parametrize("folder", ["Market", "Duke"])
def test_what_the_defaults_do_otherwise_than_the_paper(cfg, folder):
    ours, paper = cfg.clone(), cfg.clone()
    ours.merge_from_file(str(CONFIGS / folder / "caureid.yml"))
    paper.merge_from_file(str(CONFIGS / folder / "caureid_paper.yml"))
    ours, paper = _flat(ours), _flat(paper)
    camsep = "MODEL.HEADS.CAMSEP"
    assert {key: value for key, value in ours.items() if value != paper[key]} == {
        f"{camsep}.RANGE": "full", f"{camsep}.UNIFORM_START": True, f"{camsep}.DETACH": True,
        "CAUREID.CLUSTER.CAMERA_AWARE": True, "CAUREID.LABELS": "extract",
        "OUTPUT_DIR": f"logs/{folder.lower()}/caureid"}


def test_camera_aware_values_of_its_paper(cfg):
    node = _load(cfg, CONFIGS / "Market" / "caureid.yml").CAUREID.CLUSTER
    assert node.CAMERA_AWARE and node.MIN_SAMPLES == 4
    assert (node.K1_INTRA, node.K1_INTER, node.K2_INTRA, node.K2_INTER) == (5, 20, 2, 4)
    assert (node.K2_INTRA_FIRST, node.K2_INTER_FIRST) == (3, 3)
