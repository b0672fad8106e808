"""The benchmark of clustering: that its figures are what it says. No time is looked at."""

import csv
import inspect
import mmap
import re
import sys
import types

import numpy as np
import pytest
from caureid_plugin.clustering import assign_pseudo_labels
from caureid_plugin.clustering.simulated import simulate_features
from PIL import Image
from scipy import sparse

import benchmark_clustering as tool
from helpers import warm

EPS = 0.47  # no distance equals it: with k2 = 3 many are 0.5 but for rounding
TINY = ["--n", "240", "--dim", "16", "--k1", "10", "--k2", "3", "--rounds", "1", "--eps", str(EPS)]


@pytest.fixture(scope="module")
def features():
    return simulate_features(240, 16)[0]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def table_of(printed):
    """{first cell: other cells} of the Markdown table in what was printed, heading included."""
    lines = [cells(line) for line in printed.splitlines() if line.startswith("|")]
    return {line[0]: line[1:] for line in lines}


# ------------------------------------------------------------------------ comparison ----


def test_comparison(capsys):
    tool.main([*TINY, "--rounds", "2", "--backends", "torch,faiss-flat"])
    printed = capsys.readouterr().out
    turns = re.findall(r"round (\d) of 2: (.+?) \.\.\. [\d.]+ s", printed)
    one = ["torch", "faiss-flat", "toolbox, option 3", "faiss-flat", "torch"]
    assert turns == [(number, name) for number in "12" for name in one]
    table = table_of(printed)
    assert table["stage, s"] == ["torch", "faiss-flat", "toolbox, option 3"]
    number = r"[\d.]+ \([\d.]+-[\d.]+\)"
    assert re.fullmatch(f"{number}, {number}, ", ", ".join(table["encoding"]))
    assert re.fullmatch(", ".join([number] * 3), ", ".join(table["total"]))
    assert printed.count("times as fast") == printed.count("labels identical: yes") == 2
    differences = re.findall(r"over the ([\d,]+) pairs within eps: (\S+)", printed)
    assert len(differences) == 2
    for pairs, largest in differences:
        assert int(pairs.replace(",", "")) > 240 and 0 < float(largest) < 1e-5


def test_the_toolbox_function_is_its_own_whatever_the_repairs_do(features, monkeypatch):
    from fastreid.utils import compute_dist

    def redirected(*args, **kwargs):
        raise AssertionError("the repaired function was timed")

    monkeypatch.setattr(compute_dist, "compute_jaccard_distance", redirected)
    assert inspect.unwrap(tool.toolbox_function()).__code__.co_filename == compute_dist.__file__
    seconds, labels, dense = tool.run_toolbox(features, tool.parse_args(TINY), 3)
    assert dense.shape == (240, 240) and len(labels) == 240 and labels.max() > 3
    assert seconds["total"] == pytest.approx(seconds["distances"] + seconds["DBSCAN"])


@pytest.mark.parametrize("others, same", [
    ([5, 5, 2, 2, -1], True), ([0, 0, 1, -1, -1], False), ([0, 0, 0, 0, -1], False),
    ([0, 0, 1, 2, -1], False), ([0, 0, 1, 1, 2], False), ([0, 1, 0, 1, -1], False)])
def test_same_partition(others, same):
    labels = np.array([0, 0, 1, 1, -1])
    assert tool.same_partition(labels, np.array(others)) == same
    assert tool.same_partition(np.array(others), labels) == same


def test_differences_of_distances_by_loops():
    rng = np.random.default_rng(0)
    n, eps = 300, np.float32(0.5)  # more than one block of rows
    dense = rng.random((n, n), dtype=np.float32)
    ours = (dense + rng.normal(scale=0.002, size=(n, n))).astype(np.float32).clip(0, 1)
    ours[7, 9], dense[7, 9] = 1, 0.25  # a pair that the graph lacks
    kept = ours <= eps + tool.MARGIN
    graph = sparse.csr_matrix((ours[kept], kept.nonzero()[1], np.r_[0, kept.sum(1).cumsum()]),
                              shape=(n, n))
    near = [(a, b) for a, b in zip(ours.flat, dense.flat, strict=True) if a <= eps or b <= eps]
    one_sided = [(a, b) for a, b in near if (a <= eps) != (b <= eps)]
    found = tool.compare_distances(graph, dense, eps)
    assert (found.pairs, found.one_sided) == (len(near), len(one_sided)) and len(one_sided) > 20
    assert found.largest == max(abs(a - b) for a, b in near) == 0.75
    assert found.farthest == max(abs(x - eps) for pair in one_sided for x in pair)


def test_labels_that_differ_are_noticed(monkeypatch, capsys):
    run = tool.run_toolbox

    def changed(*args):
        seconds, labels, dense = run(*args)
        labels[np.flatnonzero(labels == 0)[0]] = 1
        return seconds, labels, dense + np.float32(1e-3)

    monkeypatch.setattr(tool, "run_toolbox", changed)
    tool.main(TINY)
    printed = capsys.readouterr().out
    assert "labels identical: no" in printed and "pairs within eps: 1.0e-03\n" in printed


def test_figures_of_a_comparison():
    """Medians of all rounds; labels that differ in any round are not the same."""
    ours = tool.Side("torch", None, {"search": [1, 2, 4], "encoding": [1, 1, 1],
                                     "pairs": [3, 2, 1], "DBSCAN": [2, 2, 2], "total": [7, 8, 9]})
    theirs = tool.Side("toolbox", None, {"distances": [40], "DBSCAN": [8], "total": [48]})
    ours.labels, theirs.labels = [np.array([0, 0, -1])], [np.array([1, 1, -1])]
    table = table_of(tool.times_table([ours], [theirs]))
    assert table["neighbour search"] == ["2.00 (1.00-4.00)", ""]
    assert table["distances, all"] == ["5.00 (5.00-6.00)", "40.00 (40.00-40.00)"]
    text = tool.verdict(ours, theirs, tool.Difference())
    assert "6.0 times as fast" in text and "labels identical: yes" in text
    ours.labels.append(np.array([0, 1, -1]))
    assert "identical: no" in tool.verdict(ours, theirs, tool.Difference())


# ----------------------------------------------------------------------------- sizes ----


def test_exact_neighbors_and_recall_by_hand():
    features = np.random.default_rng(0).normal(size=(150, 5)).astype(np.float32)
    features[40:44] = features[40]
    rows = np.array([0, 17, 41, 149])
    for row, found in zip(rows, tool.exact_neighbors(features, rows, 6), strict=True):
        distances = ((features.astype(np.float64) - features[row]) ** 2).sum(axis=1)
        assert len(set(found.tolist())) == 6
        assert distances[found] == pytest.approx(np.sort(distances)[:6], abs=1e-9)
    exact = np.array([[1, 2, 3], [4, 5, 6]])
    assert tool.recall(np.array([[1, 9, 3], [-1, -1, 4]]), exact) == pytest.approx(3 / 6)


@pytest.mark.alone
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
def test_peak_of_memory():
    tool.forget_peak()
    low = tool.peak_memory()
    # from the system itself: numpy might take memory that the process keeps
    with mmap.mmap(-1, 2**27, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        for start in range(0, 2**27, mmap.PAGESIZE):
            block[start] = 1
        assert tool.peak_memory() - low > 0.12
    assert tool.peak_memory() - low > 0.12
    tool.forget_peak()
    assert tool.peak_memory() - low < 0.03


def test_a_size_in_a_process_of_its_own_is_measured_once(tmp_path, monkeypatch, capsys):
    children = []

    def run(command, env, check):
        children.append(warm.run(command[1:], tmp_path, env=env))
        return children[-1]

    monkeypatch.setattr(tool, "subprocess", types.SimpleNamespace(run=run))
    path = tmp_path / "found.csv"
    for _ in range(2):
        tool.main(["--scaling", "200", "--dim", "8", "--k1", "10", "--k2", "3", "--seed", "3",
                   "--backends", "torch", "--output", str(path)])
    assert len(children) == 1 and f"N = 200, torch: in {path} already" in capsys.readouterr().out
    with path.open() as file:
        row, = csv.DictReader(file)
    assert tuple(row) == tool.FIELDS
    features, identities, _ = simulate_features(200, 8, seed=3)
    labels = assign_pseudo_labels(features, k1=10, k2=3, eps=0.6, min_samples=4)
    assert (row["clusters"], row["outliers"]) == (str(labels.max() + 1), str((labels < 0).sum()))
    assert float(row["ari"]) == pytest.approx(tool.clustered_ari(identities, labels))
    assert 0.99 < float(row["recall"]) <= 1  # a list may end with either of two equal images
    assert all(0 < float(row[f"{stage}_s"]) < float(row["total_s"]) for stage in tool.STAGES)
    assert 0.05 < float(row["start_gib"]) <= float(row["peak_gib"]) + 0.01
    assert np.asarray(Image.open(tmp_path / "found.png").convert("RGB")).std() > 5


def test_recall_is_that_of_the_lists_that_were_used(monkeypatch):
    monkeypatch.setattr(tool, "exact_neighbors", lambda features, rows, k: np.stack(
        [np.full(k, -5)] * (len(rows) - 1) + [np.full(k, rows[-1])]))
    row = tool.measure_size(tool.parse_args(["--n", "300", "--dim", "8", "--k1", "12"]))
    assert row["recall"] == pytest.approx(1 / (12 * 300))  # itself, in the last row


def test_more_neighbours_than_images(capsys):
    with pytest.raises(SystemExit):
        tool.main([*TINY, "--n", "10"])
    assert "--n 10 must be more than --k1 10" in capsys.readouterr().err
