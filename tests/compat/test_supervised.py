"""The toolbox's own supervised recipe, from training to resuming, driven by its training script."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from caureid_plugin import compat
from fastreid.engine import default_argument_parser, defaults

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "train_net.py"

# FastReID's bagtricks on ResNet-18 and 32 x 16 images
RECIPE = [
    "MODEL.META_ARCHITECTURE", "Baseline",
    "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.DEPTH", "18x",
    "MODEL.BACKBONE.FEAT_DIM", 512, "MODEL.BACKBONE.LAST_STRIDE", 1,
    "MODEL.HEADS.NAME", "EmbeddingHead", "MODEL.HEADS.WITH_BNNECK", True,
    "MODEL.HEADS.POOL_LAYER", "GlobalAvgPool",
    "MODEL.LOSSES.NAME", '("CrossEntropyLoss", "TripletLoss")', "MODEL.LOSSES.CE.EPSILON", 0.1,
    "INPUT.SIZE_TRAIN", [32, 16], "INPUT.SIZE_TEST", [32, 16], "INPUT.FLIP.ENABLED", True,
    "INPUT.PADDING.ENABLED", True, "INPUT.PADDING.SIZE", 2, "INPUT.REA.ENABLED", True,
    "DATALOADER.SAMPLER_TRAIN", "NaiveIdentitySampler", "DATALOADER.NUM_INSTANCE", 4,
    "DATALOADER.NUM_WORKERS", 1,
    "SOLVER.IMS_PER_BATCH", 16, "SOLVER.OPT", "Adam", "SOLVER.BASE_LR", 0.001,
    "SOLVER.WARMUP_ITERS", 3, "SOLVER.STEPS", [2], "SOLVER.MAX_EPOCH", 2,
    "SOLVER.ITERS_PER_EPOCH", 8, "SOLVER.CHECKPOINT_PERIOD", 1,
    "TEST.EVAL_PERIOD", 1, "TEST.IMS_PER_BATCH", 25, "SEED", 1,
]


@pytest.fixture
def train_net(tiny_market, monkeypatch):
    """``tools/train_net.py`` as a function of its command line; gives its result."""
    monkeypatch.setattr(defaults, "collect_env_info", lambda: "")  # slow, of no interest here
    spec = importlib.util.spec_from_file_location("train_net", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(output, *options, keys=()):
        keys = [*RECIPE, "OUTPUT_DIR", str(output), *keys]
        arguments = default_argument_parser().parse_args([*options, *map(str, keys)])
        results = []
        compat.launch(lambda args: results.append(module.main(args)), arguments.num_gpus,
                      args=(arguments,))
        return results[0]

    return run


def scalars(output, name):
    """(iteration, value) of a logged figure."""
    lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
    return [(line["iteration"], line[name]) for line in lines if name in line]


def stored(output, name="model_final.pth"):
    return torch.load(output / name, map_location="cpu", weights_only=True)


def optimizer_steps(checkpoint):
    return {int(state["step"]) for state in checkpoint["optimizer"]["state"].values()}


def ranks(results):
    return {name: results[name] for name in ("mAP", "Rank-1", "Rank-5", "mINP")}


def test_trains_evaluates_and_evaluates_again_to_the_same_figures(train_net, tmp_path):
    output = tmp_path / "run"
    results = train_net(output)
    losses = [value for _, value in scalars(output, "total_loss")]
    assert len(losses) == 2 and losses[1] < 0.5 * losses[0]

    final = stored(output)
    assert final["epoch"] == 1 and optimizer_steps(final) == {16}
    assert {path.name for path in output.glob("*.pth")} >= {"model_0000.pth", "model_final.pth"}

    again = train_net(tmp_path / "again", "--eval-only",
                      keys=("MODEL.WEIGHTS", output / "model_final.pth"))
    assert ranks(again) == pytest.approx(ranks(results), abs=1e-4)
    # the file matters: a network that sees nothing ranks otherwise
    blind = {name: torch.zeros_like(tensor) if name.startswith("backbone.") else tensor
             for name, tensor in final["model"].items()}
    torch.save({"model": blind}, tmp_path / "blind.pth")
    ranked = train_net(tmp_path / "blind", "--eval-only",
                       keys=("MODEL.WEIGHTS", tmp_path / "blind.pth"))
    assert ranks(ranked) != pytest.approx(ranks(results), abs=1e-4)


def test_resumes_to_the_end(train_net, tmp_path):
    output = tmp_path / "run"
    train_net(output, keys=("SOLVER.MAX_EPOCH", 1))
    first = stored(output)
    assert first["epoch"] == 0 and optimizer_steps(first) == {8}
    results = train_net(output, "--resume")
    final = stored(output)
    assert final["epoch"] == 1 and optimizer_steps(final) == {16}
    assert final["lr_sched"]["last_epoch"] == 2
    assert final["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.001 * 0.1)
    weight = "backbone.conv1.weight"
    assert not torch.equal(first["model"][weight], final["model"][weight])

    again = train_net(tmp_path / "again", "--eval-only",
                      keys=("MODEL.WEIGHTS", output / "model_final.pth"))
    assert ranks(again) == pytest.approx(ranks(results), abs=1e-4)
    # nothing is left to do, and a run that is resumed once more says so by doing nothing
    train_net(output, "--resume")
    assert optimizer_steps(stored(output)) == {16}


def test_training_starts_from_given_weights(train_net, tmp_path):
    output = tmp_path / "run"
    train_net(output, keys=("SOLVER.MAX_EPOCH", 1, "SOLVER.ITERS_PER_EPOCH", 1,
                            "DATASETS.TESTS", ()))
    given = stored(output)
    other = tmp_path / "other"
    # a step this small leaves the weights where they were
    train_net(other, keys=("SOLVER.MAX_EPOCH", 1, "SOLVER.ITERS_PER_EPOCH", 1, "DATASETS.TESTS", (),
                           "SOLVER.BASE_LR", 1e-7, "SEED", 2,
                           "MODEL.WEIGHTS", output / "model_final.pth"))
    started = stored(other)
    assert started["epoch"] == 0 and optimizer_steps(started) == {1}
    weight = "backbone.conv1.weight"
    torch.testing.assert_close(started["model"][weight], given["model"][weight], rtol=0, atol=1e-5)
