"""Every shipped config builds; the keys hold the paper's values; installed configs are found."""

import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import caureid_plugin
import pytest
import torch
from caureid_plugin import add_caureid_config
from caureid_plugin.ablation.runs import plan
from caureid_plugin.cli import ablation
from caureid_plugin.modeling import build_memory_bank, build_teacher
from caureid_plugin.modeling.teacher import VIEWS
from fastreid.config import get_cfg
from fastreid.engine.hooks import LRScheduler
from fastreid.modeling import build_model
from fastreid.solver import build_lr_scheduler, build_optimizer
from fastreid.utils.events import EventStorage

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yml"))
NO_ATTENTION = {"MODEL.HEADS.CAMSEP.ATTENTION": "none"}
LOSSES, ANCHOR = "MODEL.LOSSES.NAME", "MODEL.LOSSES.CACC.ANCHOR"
# row of table 2 -> every key that differs from the config of the full method
ROWS = {
    "baseline": {**NO_ATTENTION, LOSSES: ("InfoNCELoss",)},
    "css": {LOSSES: ("InfoNCELoss", "CameraSeparationLoss")},
    "cacc": {**NO_ATTENTION, LOSSES: ("InfoNCELoss", "CACCLoss")},
    "full": {},
    "sample": {ANCHOR: "sample"},
    "centre": {},  # it states the default
}
# Each has a network of its own; that of every other config is one of these. Of the rows only
# those of the small network are here, FAMILY ROW: how they differ from the full method is tested
# for all.
NETWORKS = """
Market/caureid.yml Market/caureid_paper.yml Market/caureid_osnet.yml Synthetic/caureid.yml
Market/caureid_cap.yml Market/caureid_cajaccard.yml Market/caureid_best.yml
Market/infonce_best.yml Market/caureid_ibn_gem.yml OwnData/caureid.yml OwnData/caureid_cpu.yml
Synthetic/caureid_fine_map.yml Mix/bagtricks_camsep.yml Mix/caureid_osnet.yml
Mix/caureid_repvgg.yml Mix/caureid_resnest.yml Mix/caureid_vit.yml Mix/caureid_vit_small.yml
Mix/embedding_head.yml Synthetic/caureid_vit.yml
Mix/mgn_camsep.yml Mix/moco_camsep.yml Mix/supervised_camsep_loss.yml
Peers/spcl.yml Peers/cluster_contrast.yml Peers/cluster_contrast_hard.yml Peers/cap.yml
Peers/ice.yml
""".split()
NETWORKS += [f"synthetic {row}" for row in ("baseline", "cacc", "css", "sample")]


def load(name):
    """The config of a shipped file, or of a row: "Market/caureid.yml", "synthetic baseline"."""
    family, _, row = name.partition(" ")
    if row:
        recipe = str(CONFIGS / ablation.FAMILIES[family]), ablation.ROWS[row][1]
        cfg = plan({row: recipe}, [1], Path("out"), [])[row, 1].cfg
    else:
        cfg = get_cfg()
        add_caureid_config(cfg)
        cfg.merge_from_file(str(CONFIGS / name))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.PRETRAIN = False  # weights are the user's to bring
    return cfg


@pytest.fixture(scope="module")
def configs():
    """{name: config} of every shipped file, and of the rows among NETWORKS."""
    files = [str(path.relative_to(CONFIGS)) for path in FILES]
    return {name: load(name) for name in dict.fromkeys([*files, *NETWORKS])}


def flat(node, prefix=""):
    """{"SOLVER.BASE_LR": 0.00035, ...}"""
    found = {}
    for key, value in node.items():
        if isinstance(value, dict):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = tuple(value) if isinstance(value, list) else value
    return found


def difference(one, other):
    """Keys and values of one config that the other has not."""
    other = flat(other)
    return {key: value for key, value in flat(one).items() if value != other[key]}


# --------------------------------------------------------------------------- every config ----


def test_every_network_is_one_of_those_that_are_built(configs):
    def network(name):
        found = flat(configs[name].MODEL)
        found.pop("HEADS.CAMSEP.NUM_CAMERAS")  # of the data set
        return found

    built = [network(name) for name in NETWORKS]
    assert len(configs) > 20 and all(network(name) in built for name in configs)
    assert all(one != other for one, other in itertools.combinations(built, 2)), "built twice"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_takes_a_step(name):
    cfg = load(name)
    supervised = cfg.MODEL.HEADS.NUM_CLASSES == 0
    if supervised:
        cfg.MODEL.HEADS.NUM_CLASSES = 2
    cfg.MODEL.HEADS.CAMSEP.NUM_CAMERAS = abs(cfg.MODEL.HEADS.CAMSEP.NUM_CAMERAS)  # -1: the data's
    # MGN cuts its last map into stripes, and needs six rows of it
    height = 96 if cfg.MODEL.META_ARCHITECTURE == "MGN" else 32
    cfg.INPUT.SIZE_TRAIN = cfg.INPUT.SIZE_TEST = [height, 16]  # a ViT takes no other
    model = build_model(cfg).train()
    camids, labels = torch.arange(4) % 2, torch.arange(4) // 2
    batch = {"images": torch.rand(4, 3, height, 16) * 255, "targets": labels,
             "camids": camids, "indexes": torch.arange(4)}
    if not supervised:
        model.teacher = build_teacher(cfg, model)
        if model.teacher:
            batch |= dict.fromkeys(VIEWS, batch["images"])
        model.memory = build_memory_bank(cfg, camids, "cpu")
        model.memory.epoch = cfg.SOLVER.MAX_EPOCH
        model.memory.reset(torch.randn(model.memory.features.shape))
        model.memory.relabel(labels)
    with EventStorage():  # the toolbox's losses write there
        losses = model(batch)
    assert len(losses) >= len(cfg.MODEL.LOSSES.NAME)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, "an unused parameter breaks DistributedDataParallel"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_options_with_which_training_starts(configs, path):
    cfg = configs[str(path.relative_to(CONFIGS))]
    optimizer, _ = build_optimizer(cfg, torch.nn.Linear(1, 1))
    iterations = cfg.SOLVER.ITERS_PER_EPOCH or 100  # 0: as many as the images give
    assert build_lr_scheduler(cfg, optimizer, iterations)
    supervised = path.read_text().startswith("# SUPERVISED:")  # whoever opens it is told
    # 0 classes are filled from the identities; a negative number is left alone
    assert (cfg.MODEL.HEADS.NUM_CLASSES == 0) == supervised
    assert cfg.MODEL.HEADS.NUM_CLASSES <= 0
    if not supervised:
        caureid_plugin.UnsupervisedHook(cfg)  # its options are checked on construction


# ------------------------------------------------------------------------ table 2, the paper ----


@pytest.mark.parametrize("family", ablation.FAMILIES)
def test_rows_differ_from_the_full_method_in_their_own_keys_alone(configs, family):
    assert set(ablation.ROWS) == set(ROWS)
    for row, keys in ROWS.items():
        assert difference(load(f"{family} {row}"), configs[ablation.FAMILIES[family]]) == {
            **keys, "OUTPUT_DIR": f"out/{row}-seed1"}, row


@pytest.mark.parametrize("folder, cameras, momentum, eps", [
    ("Market", 6, 0.2, 0.5), ("Duke", 8, 0.1, 0.6)])
def test_values_of_the_paper(configs, folder, cameras, momentum, eps):
    cfg = configs[f"{folder}/caureid_paper.yml"]
    losses, solver = cfg.MODEL.LOSSES, cfg.SOLVER
    assert (cfg.CAUREID.MEMORY.MOMENTUM, cfg.CAUREID.LABELS) == (momentum, "bank")
    node = cfg.CAUREID.CLUSTER
    assert (node.CAMERA_AWARE, node.EPS, node.K1, node.K2) == (False, eps, 30, 6)
    assert node.EPS_GAP == 0.02  # SpCL's
    node = cfg.MODEL.HEADS.CAMSEP
    assert (node.NUM_CAMERAS, node.RANGE, node.UNIFORM_START, node.DETACH) == (
        cameras, "half", False, False)
    assert (losses.CAMSEP.SCALE, losses.CACC.SCALE) == (0.4, 1.0)
    assert (losses.CACC.TEMPERATURE, losses.CACC.NUM_NEGATIVES) == (0.07, 50)
    assert (solver.OPT, solver.BASE_LR, solver.IMS_PER_BATCH) == ("Adam", 3.5e-4, 64)
    assert (list(solver.STEPS), solver.GAMMA) == ([20, 40], 0.1)
    assert (solver.MAX_EPOCH, solver.ITERS_PER_EPOCH) == (50, 400)
    assert list(cfg.INPUT.SIZE_TRAIN) == [256, 128]
    assert (cfg.MODEL.BACKBONE.DEPTH, cfg.MODEL.BACKBONE.LAST_STRIDE) == ("50x", 1)


@pytest.mark.parametrize("folder", ["Market", "Duke"])
def test_what_the_defaults_do_otherwise_than_the_paper(configs, folder):
    camsep = "MODEL.HEADS.CAMSEP"
    ours, paper = (configs[f"{folder}/{name}.yml"] for name in ("caureid", "caureid_paper"))
    assert difference(ours, paper) == {
        f"{camsep}.RANGE": "full", f"{camsep}.UNIFORM_START": True, f"{camsep}.DETACH": True,
        "CAUREID.CLUSTER.CAMERA_AWARE": True, "CAUREID.LABELS": "extract",
        "OUTPUT_DIR": f"logs/{folder.lower()}/caureid"}


# --------------------------------------------------------------------- recipes of others ----


def test_what_the_recipe_of_cap_changes(configs):
    cap, paper = configs["Market/caureid_cap.yml"], configs["Market/caureid_paper.yml"]
    assert difference(cap, paper) == {
        "MODEL.BN_GROUP_SIZE": 32, "MODEL.LOSSES.INFONCE.TEMPERATURE": 0.07,
        "DATALOADER.CAMERAS": "one", "SOLVER.WARMUP_FACTOR": 0.01, "SOLVER.WARMUP_ITERS": 4000,
        "SOLVER.STEPS": (10, 30), "CAUREID.LABELS": "extract", "CAUREID.CLUSTER.K1": 20,
        "OUTPUT_DIR": "logs/market/caureid_cap"}
    losses = cap.MODEL.LOSSES
    assert (losses.CACC.TEMPERATURE, losses.CACC.NUM_NEGATIVES) == (0.07, 50)
    assert (cap.CAUREID.CLUSTER.EPS, cap.CAUREID.MEMORY.MOMENTUM) == (0.5, 0.2)


@pytest.mark.parametrize("name, warm_up", [("caureid_cap", 10), ("caureid_paper", 0)])
def test_the_learning_rate_of_cap_and_of_the_paper_over_fifty_epochs(configs, name, warm_up):
    """FastReID's schedule and hook, stepped without training: 0.00035, lower at 20 and 40."""
    cfg = configs[f"Market/{name}.yml"]
    optimizer, _ = build_optimizer(cfg, torch.nn.Linear(1, 1))
    length = cfg.SOLVER.ITERS_PER_EPOCH
    trainer = SimpleNamespace(warmup_iters=cfg.SOLVER.WARMUP_ITERS, delay_epochs=0,
                              grad_scaler=None, storage=EventStorage())
    hook = LRScheduler(optimizer, build_lr_scheduler(cfg, optimizer, length))
    hook.trainer = trainer
    optimizer.step()  # or PyTorch warns
    for epoch in range(50):
        expected = 0.00035 * 0.1 ** ((epoch >= 20) + (epoch >= 40))
        if epoch < warm_up:
            expected *= 0.01 + 0.99 * epoch / warm_up
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-9), epoch
        trainer.epoch = epoch
        for trainer.iter in range(epoch * length, (epoch + 1) * length):
            hook.after_step()
        hook.after_epoch()


def test_what_the_recipe_of_ca_jaccard_changes(configs):
    theirs = configs["Market/caureid_cajaccard.yml"]
    assert difference(theirs, configs["Market/caureid.yml"]) == {
        "MODEL.BN_GROUP_SIZE": 64, "DATALOADER.NUM_INSTANCE": 16, "SOLVER.IMS_PER_BATCH": 256,
        "SOLVER.ITERS_PER_EPOCH": 200, "CAUREID.MEMORY.MOMENTUM": 0.1,
        "CAUREID.CLUSTER.EPS": 0.4, "OUTPUT_DIR": "logs/market/caureid_cajaccard"}
    node = theirs.CAUREID.CLUSTER
    assert (node.CAMERA_AWARE, node.K1_INTRA, node.K1_INTER, node.K2_INTRA, node.K2_INTER,
            node.K2_INTRA_FIRST, node.K2_INTER_FIRST) == (True, 5, 20, 2, 4, 3, 3)
    assert (theirs.SOLVER.OPT, theirs.SOLVER.BASE_LR, theirs.SOLVER.MAX_EPOCH) == (
        "Adam", 3.5e-4, 50)
    assert theirs.MODEL.LOSSES.INFONCE.TEMPERATURE == 0.05


@pytest.mark.parametrize("name, expected", {
    "spcl": {"MODEL.HEADS.CAMSEP.NUM_CAMERAS": 0, "MODEL.LOSSES.NAME": ("InfoNCELoss",),
             "CAUREID.LABELS": "bank", "CAUREID.CLUSTER.EPS": 0.6},
    "cluster_contrast": {
        "MODEL.HEADS.CAMSEP.NUM_CAMERAS": 0, "MODEL.LOSSES.NAME": ("InfoNCELoss",),
        "MODEL.BN_GROUP_SIZE": 64, "MODEL.HEADS.POOL_LAYER": "GeneralizedMeanPoolingP",
        "DATALOADER.NUM_INSTANCE": 16, "SOLVER.IMS_PER_BATCH": 256, "SOLVER.ITERS_PER_EPOCH": 200,
        "CAUREID.MEMORY.MOMENTUM": 0.1, "CAUREID.MEMORY.CENTRES": "momentum",
        "CAUREID.CLUSTER.EPS": 0.6},
    "cluster_contrast_hard": {
        "MODEL.HEADS.CAMSEP.NUM_CAMERAS": 0, "MODEL.LOSSES.NAME": ("InfoNCELoss",),
        "MODEL.BN_GROUP_SIZE": 64, "DATALOADER.NUM_INSTANCE": 16, "SOLVER.IMS_PER_BATCH": 256,
        "SOLVER.ITERS_PER_EPOCH": 200, "CAUREID.MEMORY.MOMENTUM": 0.1,
        "CAUREID.MEMORY.CENTRES": "hard", "CAUREID.CLUSTER.EPS": 0.4},
    "cap": {"MODEL.LOSSES.NAME": ("CAPLoss",), "MODEL.BN_GROUP_SIZE": 32,
            "DATALOADER.CAMERAS": "one", "SOLVER.IMS_PER_BATCH": 32, "SOLVER.WARMUP_FACTOR": 0.01,
            "SOLVER.WARMUP_ITERS": 4000, "SOLVER.STEPS": (10, 30),
            "CAUREID.MEMORY.CENTRES": "momentum", "CAUREID.CLUSTER.K1": 20},
    "ice": {"MODEL.LOSSES.NAME": ("ICELoss",), "MODEL.BN_GROUP_SIZE": 8, "INPUT.REA.PROB": 0.6,
            "SOLVER.IMS_PER_BATCH": 32, "SOLVER.MAX_EPOCH": 40,
            "SOLVER.WARMUP_ITERS": 4000, "SOLVER.GAMMA": 1.0, "CAUREID.MEMORY.CENTRES": "fixed",
            "CAUREID.CLUSTER.EPS": 0.55},
}.items())
def test_what_the_recipes_of_the_peers_change(configs, name, expected):
    assert difference(configs[f"Peers/{name}.yml"], configs["Market/caureid.yml"]) == {
        **NO_ATTENTION, "CAUREID.CLUSTER.CAMERA_AWARE": False, "OUTPUT_DIR": f"logs/peers/{name}",
        **expected}


def test_values_of_the_peers_that_are_the_defaults(configs):
    cap, ice = (configs[f"Peers/{name}.yml"] for name in ("cap", "ice"))
    for cfg in (cap, ice):
        node = cfg.MODEL.LOSSES.CAP
        assert (node.TEMPERATURE, node.NUM_NEGATIVES, node.INTER_SCALE) == (0.07, 50, 0.5)
    assert cap.MODEL.LOSSES.CAP.INTER_EPOCH == 5 and cap.CAUREID.MEMORY.MOMENTUM == 0.2
    assert ice.SOLVER.WARMUP_FACTOR == 0.1
    node = ice.MODEL.LOSSES.ICE
    assert (node.TEMPERATURE, node.HARD_TEMPERATURE, node.SOFT_TEMPERATURE, node.SOFT_SCALE,
            node.MOMENTUM) == (0.5, 0.1, 0.4, 10.0, 0.999)


def test_the_family_of_peers_is_every_config_of_the_folder():
    names = {path.stem for path in FILES if path.parent.name == "Peers"}
    assert {*ablation.PEERS} == {*names, "caureid"}
    assert all((CONFIGS / path).is_file() for path in ablation.PEERS.values())


# ------------------------------------------------------------------------------------- keys ----


def test_every_key_has_a_comment():
    """Above each key of config.py, or the keys that it follows, is a comment."""
    lines = Path(caureid_plugin.__file__).with_name("config.py").read_text().splitlines()
    keys = [number for number, line in enumerate(lines)
            if re.match(r" +[\w.]+\.[A-Z_0-9]+ = (?!.*CN\(\))", line)]
    assert len(keys) > 25
    for number in keys:
        above = next(line for line in reversed(lines[:number]) if " = " not in line.split("#")[0])
        assert above.strip().startswith("#"), lines[number]


def test_unknown_config_lists_the_known_ones():
    with pytest.raises(FileNotFoundError, match="Market/caureid.yml"):
        caureid_plugin.get_config_file("Markt/caureid.yml")
