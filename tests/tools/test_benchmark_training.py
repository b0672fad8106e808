"""The benchmark of training steps: that both sides are what it says. No time is looked at."""

import copy
import csv
import itertools

import numpy as np
import pytest
import torch
from caureid_plugin import CamSepHead, CAUReID
from caureid_plugin.layers import GroupedBatchNorm2d
from fastreid.engine.train_loop import AMPTrainer, SimpleTrainer
from fastreid.modeling.heads import EmbeddingHead
from fastreid.modeling.losses import cross_entropy_loss, triplet_loss
from fastreid.modeling.meta_arch import Baseline
from fastreid.utils.events import EventStorage
from PIL import Image

import benchmark_training as tool

WORDS = """--steps 2 --warm-up 1 --images 61 --clusters 10 --classes 7 --threads 1 --device cpu
--breakdown""".split()
KEYS = ["MODEL.BACKBONE.NAME", "build_plain_backbone", "MODEL.BACKBONE.FEAT_DIM", "16",
        "INPUT.SIZE_TRAIN", "[16, 8]", "SOLVER.IMS_PER_BATCH", "8", "DATALOADER.NUM_INSTANCE", "2",
        "MODEL.BN_GROUP_SIZE", "4"]


@pytest.fixture
def parsed():
    """Arguments and config of a tiny measurement."""
    args, cfg = tool.parse_args([*WORDS, *KEYS])
    args.precisions = ["fp32"]
    return args, cfg


@pytest.fixture
def sides(parsed):
    """{(name, layout): side}, not yet stepped."""
    args, cfg = parsed
    return {(side.name, side.layout): side for side in tool.build_sides(cfg, args)}


def step(side, times=1):
    with EventStorage(0):
        for side.trainer.iter in range(times):
            side.step()


def test_what_is_compared(parsed, sides):
    models = [sides[name, "default"].trainer.model
              for name in ("Baseline", "CAUReID", "plain BN", "plain BN, no attention")]
    baseline, ours, plain, bare = models
    assert type(baseline) is Baseline and type(baseline.heads) is EmbeddingHead
    assert baseline.heads.weight.shape == (7, 16) and baseline.heads.neck_feat == "before"
    assert type(ours) is CAUReID and type(ours.heads) is CamSepHead
    assert [any(isinstance(module, GroupedBatchNorm2d) for module in model.modules())
            for model in models] == [False, True, False, False]
    assert plain.heads.attention is not None and bare.heads.attention is None
    assert {type(side.trainer) for side in sides.values()} == {SimpleTrainer}
    first, *others = [side.trainer.model.backbone.state_dict() for side in sides.values()]
    assert len(others) == 7
    for other in others:
        assert all(torch.equal(value, first[name]) for name, value in other.items())
    args, cfg = parsed
    batches = tool.draw_batches(cfg, args, torch.device("cpu"))
    with pytest.warns():  # of names that torch is about to retire
        assert type(tool.build_side(cfg, args, "CAUReID", "amp", "default", batches).trainer
                    ) is AMPTrainer


def test_layout_of_the_feature_maps(sides):
    for name, layout in itertools.product(["Baseline", "CAUReID"], ["default", "channels_last"]):
        maps = []
        sides[name, layout].trainer.model.heads.register_forward_pre_hook(
            lambda module, inputs, maps=maps: maps.append(inputs[0]))
        step(sides[name, layout])
        assert [maps[0].is_contiguous(), maps[0].is_contiguous(memory_format=torch.channels_last)
                ] == [layout == "default", layout == "channels_last"]


def test_a_step_of_baseline_is_a_step_by_hand(parsed, sides):
    side = sides["Baseline", "default"]
    model = copy.deepcopy(side.trainer.model)
    model._forward_hooks.clear()
    batch = tool.draw_batches(parsed[1], parsed[0], torch.device("cpu"))[0]
    targets = batch["identities"]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3.5e-4,
                                 weight_decay=5e-4)
    with EventStorage(0):
        images = (batch["images"] - model.pixel_mean) / model.pixel_std
        outputs = model.heads(model.backbone(images), targets)
        loss = (cross_entropy_loss(outputs["cls_outputs"], targets, 0.1, 0.2)
                + triplet_loss(outputs["features"], targets, 0.3, False, True))
        loss.backward()
        optimizer.step()
    step(side)
    for (name, moved), expected in zip(side.trainer.model.named_parameters(), model.parameters(),
                                       strict=True):
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6, msg=name)


def test_a_step_of_caureid_moves_weights_and_bank(sides):
    side, seen = sides["CAUReID", "default"], []
    before = [parameter.detach().clone() for parameter in side.trainer.model.parameters()]
    rows = side.bank.features.clone()
    side.trainer.model.register_forward_hook(
        lambda module, inputs, losses: seen.append((inputs[0], sorted(losses))))
    step(side, times=2)
    assert sum(not torch.equal(old, new) for old, new in zip(
        before, side.trainer.model.parameters(), strict=True)) > 20
    for batch, losses in seen:
        assert losses == ["loss_cacc", "loss_camsep", "loss_infonce"]
        assert torch.equal(side.bank.labels[batch["indexes"]], batch["targets"])
    changed = (side.bank.features != rows).any(dim=1).nonzero().flatten()
    assert changed.tolist() == sorted({i for batch, _ in seen for i in batch["indexes"].tolist()})


def test_figures_of_a_row(parsed):
    times = {("Baseline", "default"): [10, 20, 40], ("CAUReID", "default"): [30, 22, 21],
             ("Baseline", "channels_last"): [8] * 3, ("CAUReID", "channels_last"): [12] * 3}
    args, cfg = parsed
    rows = tool.summarise([tool.Side(name, "fp32", layout, None, None, {"float32"}, spent)
                           for (name, layout), spent in times.items()], cfg, args)
    first, ours, _, last = rows
    assert (ours["median_ms"], ours["images_per_s"]) == (22.0, pytest.approx(8000 / 22))
    assert (ours["p10_ms"], ours["p90_ms"]) == pytest.approx((21.2, 28.4))
    assert first["ratio"] == 1 and ours["ratio"] == pytest.approx(1.1)
    assert ours["ratio_low"] < 1.1 < ours["ratio_high"]
    # a factor common to every round is found exactly: rounds are drawn as a whole
    assert [last[key] for key in ("ratio", "ratio_low", "ratio_high")] == [1.5, 1.5, 1.5]
    assert tool.verdict(ours, "cuda").endswith("at most 1.10: not decided by these steps")
    assert tool.verdict(last, "cuda").endswith("at most 1.10: missed")
    assert ": met; that is for a GPU, this is a CPU" in tool.verdict(first, "cpu")


def test_whole_command(capsys, tmp_path):
    found, picture = tmp_path / "steps.csv", tmp_path / "steps.png"
    tool.main([*WORDS, "--csv", str(found), "--plot", str(picture), *KEYS])
    printed = capsys.readouterr().out
    assert "amp is left out: FastReID trains in mixed precision on CUDA only" in printed
    with found.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["layout"], row["side"]) for row in rows] == [
        (layout, name) for layout in ("default", "channels_last")
        for name in ("Baseline", "CAUReID", "plain BN", "plain BN, no attention")]
    for row in rows:
        median = float(row["median_ms"])
        assert 0 < float(row["p10_ms"]) <= median <= float(row["p90_ms"])
        assert float(row["images_per_s"]) == pytest.approx(8000 / median)
        base = float(rows[0 if row["layout"] == "default" else 4]["median_ms"])
        assert float(row["ratio"]) == pytest.approx(median / base)
        assert (row["batch"], row["clusters"], row["peak_gib"]) == ("8", "10", "")
    for row in (rows[1], rows[5]):  # CAUReID's, in the table and in the verdict
        assert printed.count(f"{float(row['ratio']):.3f} ({float(row['ratio_low']):.3f}") == 3
    assert np.asarray(Image.open(picture).convert("RGB")).std() > 5


def test_a_key_that_would_change_what_is_compared(capsys):
    with pytest.raises(SystemExit):
        tool.main([*WORDS, *KEYS, "MODEL.CHANNELS_LAST", "True"])
    assert "MODEL.CHANNELS_LAST is set by --layouts" in capsys.readouterr().err
