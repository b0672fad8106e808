"""The benchmark of training steps: what it compares, prints and writes. No time is looked at."""

import copy
import csv
import importlib.util
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import caureid_plugin  # noqa: F401  isort: skip  (before everything that imports fastreid)

from caureid_plugin import CamSepHead, CAUReID
from caureid_plugin.layers import GroupedBatchNorm2d
from fastreid.engine.train_loop import AMPTrainer, SimpleTrainer
from fastreid.modeling.heads import EmbeddingHead
from fastreid.modeling.losses import cross_entropy_loss, triplet_loss
from fastreid.modeling.meta_arch import Baseline
from fastreid.utils.events import EventStorage

TOOL = Path(__file__).resolve().parents[2] / "tools" / "benchmark_training.py"
NUMBERS = ["--steps", "2", "--warm-up", "1", "--images", "61", "--clusters", "10", "--classes",
           "7", "--threads", "1", "--device", "cpu"]
KEYS = ["MODEL.BACKBONE.NAME", "build_plain_backbone", "MODEL.BACKBONE.FEAT_DIM", "16",
        "INPUT.SIZE_TRAIN", "[16, 8]", "SOLVER.IMS_PER_BATCH", "8", "DATALOADER.NUM_INSTANCE", "2",
        "MODEL.BN_GROUP_SIZE", "4"]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("benchmark_training", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def parsed(tool):
    """Arguments and config of a tiny measurement."""
    return tool.parse_args([*NUMBERS, "--breakdown", *KEYS])


@pytest.fixture
def sides(tool, parsed):
    """{(name, layout): side}, not yet stepped."""
    args, cfg = parsed
    args.precisions = ["fp32"]
    return {(side.name, side.layout): side for side in tool.build_sides(cfg, args)}


def model_of(side):
    return side.trainer.model


def table_of(printed, heading):
    """Lines of the Markdown table that begins with a heading, as dicts."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")]
             for line in printed.splitlines() if line.startswith("|")]
    start = next(i for i, line in enumerate(lines) if heading in line)
    rows = []
    for line in lines[start + 2:]:
        if line[0] == "precision":
            break
        rows.append(dict(zip(lines[start], line, strict=True)))
    return rows


def rows_of(tool, parsed, times):
    """Rows of made-up times: {(name, precision, layout): milliseconds}."""
    args, cfg = parsed
    sides = []
    for (name, precision, layout), milliseconds in times.items():
        sides.append(tool.Side(name, precision, layout, None, None, {"float32"}, milliseconds))
    return tool.summarise(sides, cfg, args)


# ------------------------------------------------------------------------------ sides ----


def test_what_is_compared(tool, sides):
    baseline, ours = (model_of(sides[name, "default"]) for name in (tool.BASELINE, tool.CAUREID))
    assert type(baseline) is Baseline and type(baseline.heads) is EmbeddingHead
    assert baseline.heads.weight.shape == (7, 16) and baseline.heads.neck_feat == "before"
    assert list(baseline.loss_kwargs["loss_names"]) == ["CrossEntropyLoss", "TripletLoss"]
    assert type(ours) is CAUReID and type(ours.heads) is CamSepHead
    assert ours.heads.camera_classifier.out_features == 6
    plain, bare = (model_of(sides[name, "default"]) for name in tool.BREAKDOWN)
    grouped = [any(isinstance(module, GroupedBatchNorm2d) for module in model.modules())
               for model in (baseline, ours, plain, bare)]
    assert grouped == [False, True, False, False]
    assert plain.heads.attention is not None and bare.heads.attention is None
    for side in sides.values():
        assert type(side.trainer) is SimpleTrainer and model_of(side).training
        assert side.bank is getattr(model_of(side), "memory", None)


def test_all_backbones_start_alike(sides):
    first, *others = [model_of(side).backbone.state_dict() for side in sides.values()]
    assert len(others) == 7 and len(first) > 20
    for other in others:
        assert list(other) == list(first)
        for name, value in other.items():
            assert torch.equal(value, first[name])
            assert value.data_ptr() != first[name].data_ptr()


@pytest.mark.parametrize("name", ["Baseline", "CAUReID"])
@pytest.mark.parametrize("layout", ["default", "channels_last"])
def test_layout_of_the_feature_maps(sides, name, layout):
    model, maps = model_of(sides[name, layout]), []
    model.heads.register_forward_pre_hook(lambda module, inputs: maps.append(inputs[0]))
    with EventStorage(0):
        sides[name, layout].trainer.iter = 0
        sides[name, layout].step()
    found, = maps
    assert found.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")
    assert found.is_contiguous() == (layout == "default")


def test_a_step_of_baseline_is_a_step_by_hand(tool, parsed, sides):
    side = sides["Baseline", "default"]
    model = copy.deepcopy(model_of(side))
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
        side.trainer.iter = 0
        side.step()
    for (name, moved), expected in zip(model_of(side).named_parameters(), model.parameters(),
                                       strict=True):
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6, msg=name)
    assert side.dtypes == {"float32"}


def test_a_step_of_caureid_moves_weights_and_bank(tool, sides):
    side = sides[tool.CAUREID, "default"]
    before = [parameter.detach().clone() for parameter in model_of(side).parameters()]
    rows, seen = side.bank.features.clone(), []
    model_of(side).register_forward_hook(lambda module, inputs, losses: seen.append(
        (inputs[0]["indexes"], sorted(losses))))
    with EventStorage(0):
        for side.trainer.iter in range(2):
            side.step()
    moved = [not torch.equal(old, new)
             for old, new in zip(before, model_of(side).parameters(), strict=True)]
    frozen = [not parameter.requires_grad for parameter in model_of(side).parameters()]
    assert sum(moved) > 20 and not any(np.logical_and(moved, frozen))
    assert {tuple(names) for _, names in seen} == {("loss_cacc", "loss_camsep", "loss_infonce")}
    indexes = torch.cat([found for found, _ in seen])
    changed = (side.bank.features != rows).any(dim=1).nonzero().flatten()
    assert changed.tolist() == sorted(set(indexes.tolist()))
    torch.testing.assert_close(side.bank.features.norm(dim=1), torch.ones(61))


def test_banks_and_batches(tool, parsed):
    args, cfg = parsed
    bank = tool.make_bank(cfg, args, torch.device("cpu"))
    assert (len(bank), bank.num_clusters) == (61, 10)
    assert set(bank.camids.tolist()) == set(range(6))
    batches = tool.draw_batches(cfg, args, torch.device("cpu"))
    assert len(batches) == tool.BATCHES
    for batch in batches:
        assert batch["images"].shape == (8, 3, 16, 8)
        assert 0 <= batch["images"].min() < 20 and 235 < batch["images"].max() <= 255
        assert len(set(batch["indexes"].tolist())) == 8
        assert torch.equal(bank.labels[batch["indexes"]], batch["targets"])
        assert torch.equal(bank.camids[batch["indexes"]], batch["camids"])
        for key, limit in (("targets", 10), ("identities", 7)):
            found = batch[key].reshape(4, 2)
            assert torch.equal(found[:, 0], found[:, 1]) and len(set(found[:, 0].tolist())) == 4
            assert 0 <= found.min() and found.max() < limit
    assert not torch.equal(batches[0]["images"], batches[1]["images"])
    for seed, same in ((1, True), (2, False)):
        args.seed = seed
        again = tool.draw_batches(cfg, args, torch.device("cpu"))
        assert torch.equal(again[0]["images"], batches[0]["images"]) == same


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*GradScaler.*:UserWarning")
@pytest.mark.parametrize("name", ["Baseline", "CAUReID"])
def test_mixed_precision_is_the_toolbox_trainer_for_it(tool, parsed, name):
    args, cfg = parsed
    batches = tool.draw_batches(cfg, args, torch.device("cpu"))
    side = tool.build_side(cfg, args, name, "amp", "default", batches)
    assert type(side.trainer) is AMPTrainer
    assert tool.side_config(cfg, name, "amp", "default", 7).SOLVER.AMP.ENABLED
    assert not tool.side_config(cfg, name, "fp32", "default", 7).SOLVER.AMP.ENABLED
    assert not cfg.SOLVER.AMP.ENABLED  # the config of all sides stays as it was


# ------------------------------------------------------------------------- measuring ----


def test_sides_take_turns_back_and_forth(tool, parsed, monkeypatch):
    args = parsed[0]
    args.warm_up, args.steps = 1, 3
    order = []

    def timed_step(side, device):
        order.append(side.name)
        return len(order)

    monkeypatch.setattr(tool, "timed_step", timed_step)
    sides = [tool.Side(name, "fp32", "default", types.SimpleNamespace(), None) for name in "abc"]
    tool.measure(sides, args)
    assert "".join(order) == 2 * "abccba"
    assert [side.milliseconds for side in sides] == [[6, 7, 12], [5, 8, 11], [4, 9, 10]]


def test_memory_of_a_step_on_a_gpu(tool, monkeypatch):
    """A side holds 100 bytes, others 900; its step goes up by 50 and leaves 8 more behind."""
    held, calls = [1000], []
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: held[0])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: held[0] + 42)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append("reset"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("wait"))

    def step():
        calls.append("step")
        held[0] += 8

    side = tool.Side("a", "fp32", "default", types.SimpleNamespace(run_step=step), None, held=100)
    assert tool.timed_step(side, torch.device("cuda")) >= 0
    assert calls == ["reset", "wait", "step", "wait"]
    assert (side.held, side.peak) == (108, 150)
    tool.timed_step(side, torch.device("cuda"))
    assert (side.held, side.peak) == (116, 158)


def test_ratio_and_interval(tool):
    rng = np.random.default_rng(0)
    others = rng.uniform(90, 110, size=41)
    ratio, low, high = tool.ratio_interval(1.3 * others, others, 0)
    # a factor common to every round is found exactly: rounds are drawn as a whole
    assert (ratio, low, high) == pytest.approx((1.3, 1.3, 1.3))
    times = rng.uniform(100, 140, size=41)
    ratio, low, high = tool.ratio_interval(times, others, 0)
    assert ratio == pytest.approx(sorted(times)[20] / sorted(others)[20])
    assert ratio - 0.15 < low < ratio < high < ratio + 0.15 and high - low > 0.02
    assert tool.ratio_interval(times, others, 0) == (ratio, low, high)


def test_figures_of_a_row(tool, parsed):
    times = {("Baseline", "fp32", "default"): [10.0, 20.0, 40.0],
             ("CAUReID", "fp32", "default"): [30.0, 22.0, 21.0],
             ("Baseline", "fp32", "channels_last"): [8.0, 8.0, 8.0],
             ("CAUReID", "fp32", "channels_last"): [12.0, 12.0, 12.0]}
    rows = rows_of(tool, parsed, times)
    first, ours, _, last = rows
    assert (ours["median_ms"], ours["images_per_s"]) == (22.0, pytest.approx(8000 / 22))
    assert (ours["p10_ms"], ours["p90_ms"]) == pytest.approx((21.2, 28.4))
    assert first["ratio"] == 1 and ours["ratio"] == pytest.approx(1.1)
    assert [last[key] for key in ("ratio", "ratio_low", "ratio_high")] == [1.5, 1.5, 1.5]
    assert ours["batch"] == 8 and (ours["height"], ours["width"]) == (16, 8)
    lines = table_of(tool.table(rows), "Baseline, ms")
    assert [line["layout"] for line in lines] == ["default", "channels_last"]
    assert lines[0]["CAUReID, ms"] == "22.0 (21.2-28.4)"
    assert lines[1]["CAUReID, images/s"] == "666.7"
    assert lines[1]["ratio of times (95 %)"] == "1.500 (1.500-1.500)"
    assert (lines[1]["Baseline, speed-up"], lines[1]["CAUReID, speed-up"]) == ("2.50", "1.83")
    assert "Baseline, peak GiB" not in lines[0]
    on_gpu = [{**row, "peak_gib": number} for number, row in enumerate(rows, 1)]
    line = table_of(tool.table(on_gpu), "Baseline, ms")[1]
    assert (line["Baseline, peak GiB"], line["CAUReID, peak GiB"]) == ("3.00", "4.00")


@pytest.mark.parametrize("low, high, found", [
    (1.02, 1.10, "met"), (1.11, 1.3, "missed"), (1.05, 1.15, "not decided by these steps")])
def test_verdict(tool, low, high, found):
    row = {"precision": "amp", "layout": "default", "ratio": 1.1, "ratio_low": low,
           "ratio_high": high}
    expected = (f"amp, default: CAUReID's step takes 1.100 ({low:.3f}-{high:.3f}) times "
                f"Baseline's; at most 1.10: {found}")
    assert tool.verdict(row, "cuda:1") == expected
    assert tool.verdict(row, "cpu") == f"{expected}; that is for a GPU, this is a CPU"


# ------------------------------------------------------------------------ whole command ----


def test_whole_command(tool, capsys, tmp_path):
    found, picture = tmp_path / "steps.csv", tmp_path / "steps.png"
    threads = torch.get_num_threads()
    try:
        tool.main([*NUMBERS, "--breakdown", "--csv", str(found), "--plot", str(picture), *KEYS])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "amp is left out: FastReID trains in mixed precision on CUDA only" in printed
    assert "build_plain_backbone" in printed and "16 x 8, batch 8 of 2 per cluster" in printed
    assert "no data loading" in printed
    lines = table_of(printed, "Baseline, ms")
    assert [(line["precision"], line["layout"]) for line in lines] == [
        ("fp32", "default"), ("fp32", "channels_last")]
    assert {line["CAUReID's losses"] for line in lines} == {"float32"}
    parts = table_of(printed, "CAUReID, plain BN")
    assert parts[1]["CAUReID"] == lines[1]["ratio of times (95 %)"]
    assert len(re.findall(r"^fp32, \w+: CAUReID's step takes", printed, re.M)) == 2

    with found.open() as file:
        rows = list(csv.DictReader(file))
    names = ["Baseline", "CAUReID", "plain BN", "plain BN, no attention"]
    assert [(row["layout"], row["side"]) for row in rows] == [
        (layout, name) for layout in ("default", "channels_last") for name in names]
    for row in rows:
        low, median, high = (float(row[key]) for key in ("p10_ms", "median_ms", "p90_ms"))
        assert 0 < low <= median <= high
        assert float(row["images_per_s"]) == pytest.approx(8000 / median)
        base = float(rows[0 if row["layout"] == "default" else 4]["median_ms"])
        assert float(row["ratio"]) == pytest.approx(median / base)
        assert (row["batch"], row["clusters"], row["peak_gib"]) == ("8", "10", "")
    assert np.asarray(Image.open(picture).convert("RGB")).std() > 5


def test_the_default_config_is_the_shipped_one(tool):
    args, cfg = tool.parse_args(["--device", "cpu"])
    assert cfg.MODEL.BACKBONE.NAME == "build_resnet_backbone" and not cfg.MODEL.BACKBONE.PRETRAIN
    assert (cfg.SOLVER.IMS_PER_BATCH, list(cfg.INPUT.SIZE_TRAIN)) == (64, [256, 128])
    assert (args.images, args.breakdown, args.csv) == (12_936, False, None)


@pytest.mark.parametrize("arguments, message", [
    (["--steps", "0"], "--steps 0 must be at least 1"),
    (["--warm-up", "-1"], "--warm-up -1 must be at least 0"),
    (["--threads", "0"], "--threads 0 must be at least 1"),
    (["--seed", "-1"], "--seed -1 must be at least 0"),
    (["--device", "tpu"], r"--device tpu must be cpu or cuda\[:i\]"),
    (["--device", "meta"], r"--device meta must be cpu or cuda\[:i\]"),
    (["--precisions", "amp"], "--precisions amp: mixed precision needs a GPU"),
    (["--precisions", "fp32,fp8"], "--precisions fp8 is unknown, known are fp32, amp"),
    (["--layouts", "nhwc"], "--layouts nhwc is unknown, known are default, channels_last"),
    (["--csv", "nowhere/steps.csv"], "--csv nowhere/steps.csv: the folder nowhere does not exist"),
    (["--csv", "."], "--csv . is a folder, it must be a file to write"),
    (["--plot", "steps.txt"], "--plot steps.txt must end in .png"),
    (["--clusters", "3"], "--clusters 3 is fewer than the 4 in a batch"),
    (["--classes", "3"], "--classes 3 is fewer than the 4 in a batch"),
    (["--images", "19"], "--images 19 gives 10 clusters fewer than .* at least 20"),
    (["--config-file", "Market/nothing.yml"], "There is no config 'Market/nothing.yml'"),
    (["SOLVER.IMS_PER_BATCH", "7"], "IMS_PER_BATCH 7 must be a positive multiple of .* 2"),
    (["DATALOADER.NUM_INSTANCE", "0"], "positive multiple of DATALOADER.NUM_INSTANCE 0"),
    (["SOLVER.IMS_PER_BATCH", "2"], "IMS_PER_BATCH 2 must hold at least 2 clusters"),
    (["MODEL.DEVICE", "cuda"], "MODEL.DEVICE is set by --device"),
    (["SOLVER.AMP.ENABLED", "True"], "SOLVER.AMP.ENABLED is set by --precisions"),
    (["MODEL.CHANNELS_LAST", "True"], "MODEL.CHANNELS_LAST is set by --layouts"),
    (["MODEL.META_ARCHITECTURE", "Baseline"], "CAUReID .it is Baseline."),
    (["MODEL.LOSSES.NAME", "('TripletLoss',)"], r"LOSSES.NAME is \('TripletLoss',\)"),
    (["MODEL.LOSSES.NAME", "('Infonce',)"], "Unknown loss 'Infonce'"),
    (["SOLVER.IMS_PER_BATHC", "8"], "no config key 'SOLVER.IMS_PER_BATHC', did you mean"),
    (["SOLVER.IMS_PER_BATCH"], "must come in pairs"),
])
def test_wrong_arguments(tool, arguments, message, capsys):
    options, keys = (arguments, []) if arguments[0].startswith("--") else ([], arguments)
    with pytest.raises(SystemExit):
        tool.main([*NUMBERS, *options, *KEYS, *keys])
    captured = capsys.readouterr()
    assert not captured.out
    assert re.search(message, captured.err), captured.err


def test_a_device_that_is_not_there(tool, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        tool.main([*NUMBERS, "--device", "cuda", *KEYS])
    assert re.search("--device cuda needs a GPU, and torch .* finds none", capsys.readouterr().err)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SystemExit):
        tool.main([*NUMBERS, "--device", "cuda:2", *KEYS])
    assert "--device cuda:2: there are 2 GPUs" in capsys.readouterr().err
    args, cfg = tool.parse_args([*NUMBERS, "--device", "cuda:1", *KEYS])
    assert cfg.MODEL.DEVICE == "cuda:1" and args.precisions == ["fp32", "amp"]


def test_a_folder_in_the_place_of_a_file_to_write(tool, capsys, tmp_path):
    folder = tmp_path / "steps.png"
    folder.mkdir()
    for option in ("--csv", "--plot"):
        with pytest.raises(SystemExit):
            tool.parse_args([*NUMBERS, option, str(folder), *KEYS])
        assert f"{option} {folder} is a folder" in capsys.readouterr().err


@pytest.mark.parametrize("options, expected", [
    ([], "cuda:0"), (["--device", "cuda"], "cuda:0"), (["--device", "cuda:0"], "cuda:0"),
    (["--device", "cuda:1"], "cuda:1"), (["--device", "cpu"], None)])
def test_the_device_is_set_with_its_index(tool, options, expected, monkeypatch):
    """torch.cuda.set_device takes no device without an index, which is --device's default."""
    chosen = []

    def set_device(device):
        if torch.device(device).index is None:
            raise ValueError(f"Expected a torch.device with a specified index, but got: {device}")
        chosen.append(str(torch.device(device)))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    place = NUMBERS.index("--device")
    args, cfg = tool.parse_args([*NUMBERS[:place], *NUMBERS[place + 2:], *options, *KEYS])
    tool.prepare(cfg, args)
    assert chosen == ([expected] if expected else [])
    assert args.precisions == (["fp32", "amp"] if expected else ["fp32"])
