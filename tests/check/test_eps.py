"""``caureid eps``: its sources, its table and its files."""

import itertools
import os
import re
from pathlib import Path

import caureid_plugin
import click
import numpy as np
import pytest
import torch
from caureid_plugin.check import eps as eps_module
from caureid_plugin.cli.common import call
from caureid_plugin.cli.eps import Values, command
from caureid_plugin.clustering import jaccard_encoding, suggest_eps, sweep_eps
from caureid_plugin.clustering.simulated import simulate_features
from fastreid.engine import DefaultTrainer
from fastreid.utils.env import seed_all_rng
from fastreid.utils.events import EventStorage
from sklearn.metrics import adjusted_rand_score

from helpers.tiny import KEYS
from helpers.tool_output import is_drawn, read_csv, refusal, table_rows

EPS = "0.3:0.9:0.1"
VALUES = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


@pytest.fixture(scope="module")
def people():
    return dict(zip(("features", "identities", "camids"), simulate_features(200, 24, seed=2),
                    strict=True))


@pytest.fixture
def stored(people, tmp_path):
    np.savez(tmp_path / "people.npz", **people)
    return tmp_path / "people.npz"


def test_table_file_and_picture(people, stored, tmp_path, capsys):
    call(command, ["--features", stored, "--eps", EPS, "--k1", "15",
                   "--output", tmp_path / "eps.csv", "--plot", tmp_path / "eps.png"])
    printed = capsys.readouterr().out
    rows = sweep_eps(jaccard_encoding(people["features"], k1=15, k2=6), VALUES, min_samples=4,
                     camids=people["camids"])
    suggested = suggest_eps(rows)
    assert suggested not in (0.3, 0.9)
    assert printed.startswith(
        "200 images, 6 cameras; plain neighbours, k1 15, k2 6, min_samples 4\n")
    heading, _, *lines = table_rows(printed)
    assert heading == ["", "eps", "clusters", "outliers", "largest", "span cameras", "centres"]
    for line, row in zip(lines, rows, strict=True):
        assert line == [
            "->" if row["eps"] == suggested else "", f"{row['eps']:g}", str(row["clusters"]),
            f"{row['outliers']} ({row['outliers'] / 2:.1f}%)",
            f"{row['largest']} ({row['largest'] / 2:.1f}%)",
            f"{100 * row['cross_camera']:.1f}%", str(row["centres"])]
    assert f"suggested: CAUREID.CLUSTER.EPS {suggested:g}, the most camera centres" in printed
    assert "end of the values" not in printed and "diagnostic" not in printed
    before = read_csv(tmp_path / "eps.csv")
    for line, row in zip(before, rows, strict=True):
        figures = {name: float(value) for name, value in line.items()}
        assert figures == {**row, "suggested": row["eps"] == suggested}
    assert is_drawn(tmp_path / "eps.png")

    call(command, ["--features", stored, "--eps", EPS, "--k1", "15",
                   "--output", tmp_path / "eps.csv", "--plot", tmp_path / "more.png",
                   "--diagnostics"])
    printed = capsys.readouterr().out
    assert "ARI*" in printed and "* diagnostic, uses identity labels" in printed
    after = read_csv(tmp_path / "eps.csv")
    names = ("ari", "ari_clustered", "precision", "recall")
    found = [[float(line.pop(name)) for name in names] for line in after]
    assert after == before, "identities must not change a figure or the suggestion"
    assert len(set(map(tuple, found))) > 3
    assert is_drawn(tmp_path / "more.png")


def test_camera_aware_neighbours_by_options_and_keys(people, stored, tmp_path, capsys):
    call(command, ["--features", stored, "--eps", EPS, "--camera-aware", "--k1-intra", "4",
                   "--k2-inter", "3", "--min-samples", "2", "--output", tmp_path / "eps.csv",
                   "CAUREID.CLUSTER.K1_INTER", "9"])
    counts = {"k1_intra": 4, "k1_inter": 9, "k2_intra": 2, "k2_inter": 3}
    assert ("camera-aware neighbours, k1_intra 4, k1_inter 9, k2_intra 2, k2_inter 3, "
            "min_samples 2") in capsys.readouterr().out
    camids = people["camids"]
    rows = sweep_eps(jaccard_encoding(people["features"], camids=camids, **counts), VALUES,
                     min_samples=2, camids=camids)
    found = [int(line["centres"]) for line in read_csv(tmp_path / "eps.csv")]
    assert found == [row["centres"] for row in rows] and len(set(found)) > 3


def test_features_alone(people, tmp_path, capsys):
    np.save(tmp_path / "people.npy", people["features"].astype(np.float16))
    call(command, ["--features", tmp_path / "people.npy", "--eps", "0.4,0.5", "--plot",
                   tmp_path / "eps.png"])
    printed = capsys.readouterr().out
    assert "200 images, no cameras; plain" in printed and "span" not in printed
    assert re.search(r"EPS 0\.\d, the most clusters \(no cameras are known\)", printed)
    assert "It is at an end of the values tried" in printed
    assert (tmp_path / "eps.png").is_file()


def change_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


BROKEN = {
    "cut off.npz": lambda path: path.write_bytes(path.read_bytes()[:-300]),
    "packed and changed.npz": change_a_byte, "empty.npz": lambda path: path.write_bytes(b""),
    "heading.npy": lambda path: path.write_bytes(path.read_bytes()[:20] + b"(" * 400),
    "huge.npy": lambda path: path.write_bytes(path.read_bytes().replace(b"(200, ", b"(10**9")),
    "objects.npz": lambda path: np.savez(path, features=np.array([{}, {}])),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_file_of_features_is_named(people, tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, people["features"])
    else:
        (np.savez_compressed if "packed" in name else np.savez)(path, **people)
    assert eps_module.read_features(path)["features"].shape == people["features"].shape
    BROKEN[name](path)
    with pytest.raises(ValueError, match=rf"--features .*{name} is damaged or holds objects: save "
                                         r"plain arrays with np\.savez"):
        eps_module.read_features(path)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_features_in_no_file(tmp_path, make):
    make(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"--features .*a\.npz is not a file"):
        eps_module.read_features(tmp_path / "a.npz")


@pytest.mark.parametrize("labels", [
    [0, 0, 1, -1, 1, -1, 0, 2, 2, -1], [-1] * 9 + [0], [-1] * 10])
def test_comparison_by_loops(labels):
    identities = np.array([30, 30, 5, 5, 5, 30, 8, 8, 8, 8])
    labels = np.array(labels)
    both = found = real = 0
    for i, j in itertools.combinations(range(10), 2):
        together, same = labels[i] == labels[j] >= 0, identities[i] == identities[j]
        both, found, real = both + (together and same), found + together, real + same
    alone = [label if label >= 0 else 100 + i for i, label in enumerate(labels.tolist())]
    inlier = labels >= 0
    assert eps_module.compare(labels, identities) == pytest.approx({
        "precision": both / found if found else float("nan"), "recall": both / real,
        "ari": adjusted_rand_score(identities, alone),
        "ari_clustered": adjusted_rand_score(identities[inlier], labels[inlier])
        if inlier.any() else float("nan")}, nan_ok=True)


def from_config(tmp_path, *arguments, keys=()):
    call(command, ["--config-file", "Synthetic/caureid.yml", "--eps", "0.5,0.6,0.7",
                   "--save-features", tmp_path / "found.npz", *arguments, *KEYS, "SEED", "7",
                   *keys])
    return dict(np.load(tmp_path / "found.npz"))


def test_features_are_those_that_training_starts_from(tiny_market, tmp_path, capsys):
    """Of the config's first network, and of a checkpoint."""
    # as tools/train_net.py builds it
    cfg = caureid_plugin.load_config(
        "Synthetic/caureid.yml", [*KEYS, "SEED", "7", "OUTPUT_DIR", str(tmp_path)])
    seed_all_rng(caureid_plugin.compat.process_seed(cfg.SEED, 0))  # as default_setup does
    trainer, hook = DefaultTrainer(cfg), caureid_plugin.UnsupervisedHook(cfg)
    trainer.register_hooks([hook])
    with EventStorage():
        hook.before_train()
    bank = trainer.model.memory
    found = from_config(tmp_path)
    assert np.array_equal(found["features"], bank.features.numpy())
    assert np.array_equal(found["camids"], bank.camids.numpy())
    assert set(found) == {"features", "camids"}, "identities were not asked for"
    assert "48 images, 2 cameras; plain neighbours, k1 6, k2 2, min_samples 2" in (
        capsys.readouterr().out)

    with torch.no_grad():
        for weights in trainer.model.parameters():
            weights.add_(0.01 * torch.randn(weights.shape))
    trainer.checkpointer.save("model_test")
    before = bank.features.clone()
    found = from_config(tmp_path, "--camera-aware", "--diagnostics",
                        keys=["MODEL.WEIGHTS", str(tmp_path / "model_test.pth")])
    bank.reset(caureid_plugin.extract_features(trainer.model, hook._extraction))
    assert np.array_equal(found["features"], bank.features.numpy())
    assert not np.allclose(found["features"], before.numpy(), atol=1e-3)
    listed = trainer.data_loader.dataset.img_items
    for i, j in itertools.combinations(range(0, 48, 5), 2):
        assert (found["identities"][i] == found["identities"][j]) == (
            listed[i][1] == listed[j][1])
    assert "k2_intra 2, k2_inter 4" in capsys.readouterr().out


def test_the_first_clustering_has_counts_of_its_own(tiny_market, tmp_path, capsys):
    for words, inter in (([], 3), (["--k2-inter", "2"], 2)):
        from_config(tmp_path, "--camera-aware", *words)
        assert f"k2_intra 3, k2_inter {inter}" in capsys.readouterr().out


@pytest.mark.parametrize("text, values", [
    ("0.6,0.4", [0.6, 0.4]), ("0.3:0.5:0.1", [0.3, 0.4, 0.5]),
    ("0.3:0.58:0.1", [0.3, 0.4, 0.5]), ("0.5:0.5:0.1", [0.5])])
def test_values_of_eps(text, values):
    assert Values().convert(text, None, None) == values


@pytest.mark.parametrize("text, message", [
    ("many", "neither a list"), ("0.3:nan:0.1", "neither a list"),
    ("0.3:0.5:0", "holds 0 values"), ("0.1:0.9:0.0001", "holds 8001 values")])
def test_wrong_values_of_eps(text, message):
    with pytest.raises(click.BadParameter, match=message):
        Values().convert(text, None, None)


@pytest.mark.parametrize("arguments, message", [
    (["--output", "table.txt"], "'--output': table.txt must end in .csv"),
    (["--plot", "nowhere/a.png"], "the folder nowhere does not exist"),
    (["--features", "absent.npz"], "absent.npz' does not exist"),
    (["--k1", "0"], "'--k1': 0 is not in the range x>=1"),
    (["--config-file", "Market/caureid.yml"], "Give either --config-file or --features"),
    (["--eps", "0.5,1.5"], "1.5 is no eps: 0 < eps < 1"),
])
def test_wrong_arguments(arguments, message, stored, capsys):
    assert message in refusal(command, ["--features", stored, *arguments], capsys)


@pytest.mark.parametrize("arrays, says", [
    ({"features": np.zeros((4, 2), int)}, "features (--features {}) must be floating point"),
    ({"features": np.zeros(4)}, "features (--features {}) must have shape (N, D)"),
    ({"features": np.full((4, 2), np.nan)}, "features (--features {}) row 0 holds NaN"),
    ({"features": np.eye(4), "camids": np.zeros(4)}, "camids (--features {}) must hold one"),
])
def test_arrays_that_are_no_features(arrays, says, tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(SystemExit) as error:
        call(command, ["--features", path, "--eps", "0.5"])
    assert says.format(path) in str(error.value)


def test_features_or_a_config_must_be_given(capsys):
    assert "Give either --config-file or --features" in refusal(command, [], capsys)


@pytest.mark.parametrize("words, names, message", [
    ([], {"features": "other"}, r'holds no "features", only \[\'camids\', \'other\'\]'),
    (["--camera-aware"], {"camids": "other"}, '--camera-aware needs "camids"'),
    (["--diagnostics"], {}, '--diagnostics needs "identities"'),
    (["--eps", "0.001"], {}, r"eps \(CAUREID.CLUSTER.EPS\) or .*\(CAUREID.CLUSTER.MIN_SAMPLES\)"),
])
def test_wrong_files(people, tmp_path, words, names, message):
    """``names``: what the file calls an array instead."""
    np.savez(tmp_path / "a.npz", **{
        names.get(name, name): people[name] for name in ("features", "camids")})
    with pytest.raises(SystemExit, match=f"^caureid eps: .*{message}"):
        call(command, ["--features", tmp_path / "a.npz", *words])
