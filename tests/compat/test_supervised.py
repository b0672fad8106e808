"""The toolbox's own supervised recipe, from training to resuming, driven by its training script."""

import json
import shutil

import pytest
import torch
from caureid_plugin.engine import training as train_net
from fastreid.data import build as data_build
from fastreid.engine import default_argument_parser, defaults

from helpers.tiny import write_market

# FastReID's bagtricks on a small network and 32 x 16 images
RECIPE = [
    "MODEL.META_ARCHITECTURE", "Baseline",
    "MODEL.BACKBONE.NAME", "build_osnet_backbone", "MODEL.BACKBONE.DEPTH", "x0_25",
    "MODEL.BACKBONE.FEAT_DIM", 128,
    "MODEL.HEADS.NAME", "EmbeddingHead", "MODEL.HEADS.WITH_BNNECK", True,
    "MODEL.HEADS.POOL_LAYER", "GlobalAvgPool",
    "MODEL.LOSSES.NAME", '("CrossEntropyLoss", "TripletLoss")', "MODEL.LOSSES.CE.EPSILON", 0.1,
    "INPUT.SIZE_TRAIN", [32, 16], "INPUT.SIZE_TEST", [32, 16], "INPUT.FLIP.ENABLED", True,
    "INPUT.PADDING.ENABLED", True, "INPUT.PADDING.SIZE", 2, "INPUT.REA.ENABLED", True,
    "DATALOADER.SAMPLER_TRAIN", "NaiveIdentitySampler", "DATALOADER.NUM_INSTANCE", 4,
    "DATALOADER.NUM_WORKERS", 1,
    "SOLVER.IMS_PER_BATCH", 16, "SOLVER.OPT", "Adam", "SOLVER.BASE_LR", 0.003,
    "SOLVER.WARMUP_ITERS", 3, "SOLVER.STEPS", [2], "SOLVER.MAX_EPOCH", 2,
    "SOLVER.ITERS_PER_EPOCH", 8, "SOLVER.CHECKPOINT_PERIOD", 1,
    "TEST.EVAL_PERIOD", 1, "TEST.IMS_PER_BATCH", 25, "SEED", 1,
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the tiny images, for a run that the tests read."""
    folder = tmp_path_factory.mktemp("supervised")
    write_market(folder / "datasets")
    return folder


@pytest.fixture
def train(home, monkeypatch):
    """``tools/train_net.py`` as a function of its command line; gives its result."""
    monkeypatch.setattr(defaults, "collect_env_info", lambda: "")  # slow, of no interest here
    monkeypatch.setattr(data_build, "_root", str(home / "datasets"))

    def run(output, *options, keys=()):
        keys = [*RECIPE, "OUTPUT_DIR", str(output), *keys]
        return train_net.main(
            default_argument_parser().parse_args([*options, *map(str, keys)]))

    return run


@pytest.fixture
def finished(train, home):
    """A run of one epoch that was resumed for a second: its folder, its first and last results."""
    output, results = home / "run", home / "results.json"
    if not results.exists():
        train(output, keys=("SOLVER.MAX_EPOCH", 1))
        shutil.copy(output / "model_final.pth", home / "first.pth")
        results.write_text(json.dumps(ranks(train(output, "--resume"))))
    return output, home / "first.pth", json.loads(results.read_text())


def stored(path):
    return torch.load(path, map_location="cpu", weights_only=True)


def ranks(results):
    return {name: float(results[name]) for name in ("mAP", "Rank-1", "Rank-5", "mINP")}


WEIGHT = "backbone.conv1.conv.weight"


def test_trains_and_resumes_to_the_end(finished, train, tmp_path):
    output, first, _ = finished
    first, final = stored(first), stored(output / "model_final.pth")
    for checkpoint, epoch, steps in ((first, 0, 8), (final, 1, 16)):
        assert checkpoint["epoch"] == epoch
        assert {int(s["step"]) for s in checkpoint["optimizer"]["state"].values()} == {steps}
    assert final["lr_sched"]["last_epoch"] == 2
    assert final["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.003 * 0.1)
    assert not torch.equal(first["model"][WEIGHT], final["model"][WEIGHT])
    rows = list(map(json.loads, (output / "metrics.json").read_text().splitlines()))
    losses, precisions = ([row[name] for row in rows if name in row]
                          for name in ("loss_triplet", "mAP"))
    assert len(losses) == 2 and losses[1] < 0.8 * losses[0]
    assert len(precisions) == 2 and precisions[1] > 10 + precisions[0]
    # nothing is left to do, and a run that is resumed once more says so by doing nothing
    again = shutil.copytree(output, tmp_path / "again")
    train(again, "--resume")
    assert torch.equal(stored(again / "model_final.pth")["model"][WEIGHT], final["model"][WEIGHT])


def test_evaluates_again_to_the_same_figures(finished, train, tmp_path):
    output, _, results = finished
    weights = output / "model_final.pth"
    again = train(tmp_path / "again", "--eval-only", keys=("MODEL.WEIGHTS", weights))
    assert ranks(again) == pytest.approx(results, abs=1e-4)
    # the file matters: a network that sees nothing ranks otherwise
    blind = {name: torch.full_like(tensor, 0.01) if name.startswith("backbone.") else tensor
             for name, tensor in stored(weights)["model"].items()}
    torch.save({"model": blind}, tmp_path / "blind.pth")
    ranked = train(tmp_path / "blind", "--eval-only",
                   keys=("MODEL.WEIGHTS", tmp_path / "blind.pth"))
    assert ranks(ranked) != pytest.approx(results, abs=1e-4)


def test_training_starts_from_given_weights(finished, train, tmp_path):
    _, given, _ = finished
    # a step this small leaves the weights where they were
    train(tmp_path, keys=("SOLVER.MAX_EPOCH", 1, "SOLVER.ITERS_PER_EPOCH", 1, "DATASETS.TESTS", (),
                          "SOLVER.BASE_LR", 1e-7, "SEED", 2, "MODEL.WEIGHTS", given))
    started = stored(tmp_path / "model_final.pth")
    assert started["epoch"] == 0 and started["optimizer"]["state"][0]["step"] == 1
    torch.testing.assert_close(started["model"][WEIGHT], stored(given)["model"][WEIGHT],
                               rtol=0, atol=1e-5)
