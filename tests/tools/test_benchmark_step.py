"""The benchmark of a step: what it compares, what it prints and writes. No time is looked at."""

import csv
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from caureid_plugin.losses import info_nce_loss
from PIL import Image

TOOL = Path(__file__).resolve().parents[2] / "tools" / "benchmark_step.py"
TINY = ["--sizes", "240", "120", "480", "--clusters", "10", "--dim", "8", "--batch", "16",
        "--repeats", "2"]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("benchmark_step", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bank(tool):
    """150 images (the last run of clusters is not whole) of 7 clusters."""
    bank = tool.make_bank(150, 12, torch.Generator().manual_seed(0))
    bank.relabel(tool.make_labels(150, 7))
    return bank


def draw(tool, bank, seed, batch=20):
    generator = torch.Generator().manual_seed(seed)
    found = tool.draw_batch(bank, batch, generator)
    return torch.randn(batch, bank.features.shape[1], generator=generator), found


@pytest.mark.parametrize("seed", range(3))
def test_logits_of_all_rows_are_mean_similarities(tool, bank, seed):
    features = F.normalize(draw(tool, bank, seed)[0], dim=1)
    logits = tool.all_rows_logits(features, bank.features, bank.labels, 7, 0.05)
    assert logits.shape == (20, 7)
    rows, labels = bank.features.double().tolist(), bank.labels.tolist()
    for feature, found in zip(features.double().tolist(), logits.tolist(), strict=True):
        for cluster in range(7):
            members = [row for row, label in zip(rows, labels, strict=True) if label == cluster]
            similarities = [sum(a * b for a, b in zip(feature, row, strict=True))
                            for row in members]
            mean = sum(similarities) / len(members)
            assert found[cluster] == pytest.approx(mean / 0.05, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_both_ways_have_the_same_loss_and_gradient(tool, bank, seed):
    features, batch = draw(tool, bank, seed)
    for function in ("ours", "all rows"):
        leaf = features.clone().requires_grad_()
        unit = F.normalize(leaf, dim=1)
        if function == "ours":
            expected = info_nce_loss(unit, batch["targets"], bank.centroids, temperature=0.05)
            expected.backward()
            gradient = leaf.grad
        else:
            logits = tool.all_rows_logits(unit, bank.features, bank.labels, 7, 0.05)
            loss = F.cross_entropy(logits, batch["targets"])
            loss.backward()
            torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
            torch.testing.assert_close(leaf.grad, gradient, rtol=0, atol=1e-5)


def test_both_ways_update_the_same_rows(tool, bank):
    features = F.normalize(torch.randn(6, 12, generator=torch.Generator().manual_seed(4)), dim=1)
    indexes = torch.tensor([3, 149, 3, 0, 3, 149])
    rows = bank.features.clone()
    tool.update_one_by_one(rows, features, indexes, bank.momentum)
    assert (rows != bank.features).any(dim=1).nonzero().flatten().tolist() == [0, 3, 149]
    bank.update(features, indexes)
    torch.testing.assert_close(rows, bank.features, rtol=0, atol=1e-6)


def test_each_step_learns_and_updates_the_bank_alike(tool, bank):
    features, batch = draw(tool, bank, 5)
    gradients, banks = {}, {}
    for name, step in tool.make_steps().items():
        copy = tool.make_bank(150, 12, torch.Generator().manual_seed(0))
        copy.relabel(bank.labels)
        leaf = features.clone().requires_grad_()
        step(leaf, batch, copy)
        gradients[name], banks[name] = leaf.grad, copy.features
        assert (copy.features[batch["indexes"]] != bank.features[batch["indexes"]]).any(dim=1).all()
        torch.testing.assert_close(copy.features, banks[tool.BOTH], rtol=0, atol=1e-6)
    torch.testing.assert_close(
        gradients[tool.INFONCE], gradients[tool.ALL_ROWS], rtol=0, atol=1e-5)
    assert (gradients[tool.BOTH] - gradients[tool.INFONCE]).abs().max() > 1e-3  # CACC is in it


def test_a_timed_step_of_all_rows_leaves_the_bank_alone(tool, bank):
    features, batch = draw(tool, bank, 6)
    before = bank.features.clone()
    for name, step in tool.make_steps().items():
        tool.time_step(name, step, features, batch, bank)
        assert torch.equal(bank.features, before) == (name == tool.ALL_ROWS)
        before = bank.features.clone()


@pytest.mark.parametrize("size, clusters", [(150, 7), (42, 7), (96, 6), (1000, 1)])
def test_every_cluster_is_seen_by_every_camera(tool, size, clusters):
    bank = tool.make_bank(size, 3, torch.Generator().manual_seed(0))
    bank.relabel(tool.make_labels(size, clusters))
    assert bank.num_clusters == clusters
    pairs = set(zip(bank.centre_labels.tolist(), bank.centre_camids.tolist(), strict=True))
    assert pairs == {(label, camera) for label in range(clusters) for camera in range(6)}


@pytest.mark.parametrize("batch", [4, 16, 28])
def test_batches_hold_four_images_of_each_cluster(tool, bank, batch):
    drawn = set()
    for seed in range(20):
        _, found = draw(tool, bank, seed, batch)
        indexes = found["indexes"].tolist()
        assert len(indexes) == len(set(indexes)) == batch
        labels = [bank.labels[index].item() for index in indexes]
        assert found["targets"].tolist() == labels
        assert found["camids"].tolist() == [bank.camids[index].item() for index in indexes]
        assert len(set(labels)) == batch // 4
        assert labels == [label for label in labels[::4] for _ in range(4)]
        drawn.update(indexes)
    assert batch == 4 or len(drawn) > 60


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_and_files(tool, tmp_path, capsys):
    csv_path, picture_path = tmp_path / "step.csv", tmp_path / "step.png"
    tool.main([*TINY, "--output", str(csv_path), "--plot", str(picture_path)])
    printed = capsys.readouterr().out
    assert "D 8, batch 4 clusters x 4, 6 cameras, seed 1, 1 thread" in printed
    tables = [cells(line) for line in printed.splitlines() if line.startswith("|")]
    assert len(tables) == 2 * (2 + 3)  # headings, rule, three sizes, twice
    expected = [["120", "10", "60"], ["240", "10", "60"], ["480", "10", "60"],
                ["120", "7", "42"], ["240", "15", "90"], ["480", "30", "180"]]
    assert [row[:3] for row in tables[2:5] + tables[7:10]] == expected
    assert [row[4:9:2] for row in (tables[2], tables[7])] == [["1.00"] * 3] * 2
    assert tables[0] == tables[5] and len(tables[0]) == len(tables[2]) == 11

    with csv_path.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["rule"], row["N"], row["K"], row["centres"]) for row in rows[::3]] == [
        ("fixed" if i < 3 else "proportional", *row) for i, row in enumerate(expected)]
    assert {row["step"] for row in rows} == {"InfoNCE + CACC", "InfoNCE", "SpCL's way"}
    for row in rows:
        assert 0 < float(row["q1_ms"]) <= float(row["median_ms"]) <= float(row["q3_ms"])
    picture = np.asarray(Image.open(picture_path).convert("RGB"))
    assert picture.shape[0] > 200 and picture.std() > 5


def test_figures_of_the_table(tool):
    banks = [tool.make_bank(size, 2, torch.Generator().manual_seed(0)) for size in (12, 24)]
    for bank in banks:
        bank.relabel(tool.make_labels(len(bank), 2))
    values = {(12, tool.BOTH): [4, 2, 3], (12, tool.INFONCE): [1, 1, 1],
              (12, tool.ALL_ROWS): [6, 6, 9], (24, tool.BOTH): [6, 6, 6],
              (24, tool.INFONCE): [3, 1, 2], (24, tool.ALL_ROWS): [60, 30, 50]}
    rows = tool.summarise(tool.FIXED, banks, {key: np.array(v) for key, v in values.items()})
    lines = tool.table(rows).splitlines()
    assert cells(lines[2]) == ["12", "2", "12", "3.00 (2.50-3.50)", "1.00", "1.00 (1.00-1.00)",
                               "1.00", "6.00 (6.00-7.50)", "1.00", "6.0", "2.0"]
    assert cells(lines[3]) == ["24", "2", "12", "6.00 (6.00-6.00)", "2.00", "2.00 (1.50-2.50)",
                               "2.00", "50.00 (40.00-55.00)", "8.33", "25.0", "8.3"]


@pytest.mark.parametrize("arguments, message", [
    (["--repeats", "0"], "--repeats 0 must be at least 1"),
    (["--dim", "-3"], "--dim -3 must be at least 1"),
    (["--threads", "0"], "--threads 0 must be at least 1"),
    (["--sizes", "50", "480"], "--sizes 50 is too small for --clusters 10: .* at least 60"),
    (["--batch", "18"], "--batch 18 must be a multiple of 4"),
    (["--batch", "44"], "--batch 44 holds 11 clusters, --clusters 10 are fewer"),
    (["--batch", "32"], "--batch 32 holds 8 clusters, --sizes 120 gives only 7"),
    (["--output", "nowhere/step.csv"], "--output nowhere/step.csv: the folder nowhere does not"),
    (["--plot", "step.txt"], r"--plot step.txt must end in \.png"),
    (["--sizes", "many"], "invalid int value: 'many'"),
])
def test_wrong_arguments(tool, arguments, message, capsys):
    with pytest.raises(SystemExit):
        tool.main([*TINY, *arguments])
    captured = capsys.readouterr()
    assert not captured.out
    assert re.search(message, captured.err), captured.err
