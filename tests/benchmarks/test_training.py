"""The benchmark of training steps: that both sides are what it says. No time is looked at."""

import warnings

import pytest
import torch
from caureid_plugin import CamSepHead, CAUReID
from caureid_plugin.layers import GroupedBatchNorm2d
from fastreid.engine.train_loop import AMPTrainer, SimpleTrainer
from fastreid.modeling.heads import EmbeddingHead
from fastreid.modeling.meta_arch import Baseline
from fastreid.utils.events import EventStorage

from benchmarks import training as tool
from helpers.tool_output import is_drawn, read_csv, refusal

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
    with warnings.catch_warnings():  # of names that torch is about to retire, on CUDA
        warnings.simplefilter("ignore")
        mixed = tool.build_side(cfg, args, "CAUReID", "amp", "default", batches)
    assert type(mixed.trainer) is AMPTrainer


@pytest.mark.parametrize("layout, contiguous", [
    ("default", torch.contiguous_format), ("channels_last", torch.channels_last)])
@pytest.mark.parametrize("name, losses", [
    ("Baseline", ["loss_cls", "loss_triplet"]),
    ("CAUReID", ["loss_cacc", "loss_camsep", "loss_infonce"])])
def test_a_step_moves_weights_and_bank(sides, name, losses, layout, contiguous):
    side, seen, maps = sides[name, layout], [], []
    model = side.trainer.model
    before = [parameter.detach().clone() for parameter in model.parameters()]
    rows = None if side.bank is None else side.bank.features.clone()
    model.register_forward_hook(
        lambda module, inputs, found: seen.append((inputs[0], sorted(found))))
    model.heads.register_forward_pre_hook(lambda module, inputs: maps.append(inputs[0]))
    with EventStorage(0):
        for side.trainer.iter in range(2):
            side.step()
    assert maps[0].is_contiguous(memory_format=contiguous)
    assert sum(not torch.equal(old, new) for old, new in zip(
        before, model.parameters(), strict=True)) >= 20
    assert [found for _, found in seen] == [losses] * 2
    if name == "CAUReID":
        indexes = torch.cat([batch["indexes"] for batch, _ in seen])
        assert torch.equal(side.bank.labels[indexes],
                           torch.cat([batch["targets"] for batch, _ in seen]))
        changed = (side.bank.features != rows).any(dim=1).nonzero().flatten()
        assert changed.tolist() == sorted(set(indexes.tolist()))


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
    rows = read_csv(found)
    assert [(row["layout"], row["side"]) for row in rows] == [
        (layout, name) for layout in ("default", "channels_last")
        for name in ("Baseline", "CAUReID", "plain BN", "plain BN, no attention")]
    for row in rows:
        median = float(row["median_ms"])
        base = float(rows[0 if row["layout"] == "default" else 4]["median_ms"])
        assert float(row["ratio"]) == pytest.approx(median / base)
        assert (row["batch"], row["clusters"], row["peak_gib"]) == ("8", "10", "")
    for row in (rows[1], rows[5]):  # CAUReID's, in the table and in the verdict
        assert printed.count(f"{float(row['ratio']):.3f} ({float(row['ratio_low']):.3f}") == 3
    assert is_drawn(picture)


def test_a_key_that_would_change_what_is_compared(capsys):
    error = refusal(tool.main, [*WORDS, *KEYS, "MODEL.CHANNELS_LAST", "True"], capsys)
    assert "MODEL.CHANNELS_LAST is set by --layouts" in error
