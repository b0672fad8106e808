"""The benchmark of clustering: that its figures are what it says. No time is looked at."""

import inspect
import mmap
import re
import sys
import types

import numpy as np
import pytest
from caureid_plugin.clustering import assign_pseudo_labels
from caureid_plugin.clustering.simulated import simulate_features
from scipy import sparse

from benchmarks import clustering, machine, measure, scaling
from helpers import warm
from helpers.tool_output import is_drawn, read_csv, refusal, table_rows

EPS = 0.47  # no distance equals it: with k2 = 3 many are 0.5 but for rounding
TINY = ["--n", "240", "--dim", "16", "--k1", "10", "--k2", "3", "--rounds", "1", "--eps", str(EPS)]


@pytest.fixture(scope="module")
def features():
    return simulate_features(240, 16)[0]


def table_of(printed):
    """{first cell: other cells} of the Markdown table in what was printed, heading included."""
    return {line[0]: line[1:] for line in table_rows(printed)}


def test_comparison(capsys):
    clustering.main([*TINY, "--rounds", "2", "--backends", "torch,faiss-flat"])
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
    code = inspect.unwrap(clustering.toolbox_function()).__code__
    assert code.co_filename == compute_dist.__file__
    seconds, labels, dense = clustering.run_toolbox(features, clustering.parse_args(TINY), 3)
    assert dense.shape == (240, 240) and len(labels) == 240 and labels.max() > 3
    assert seconds["total"] == pytest.approx(seconds["distances"] + seconds["DBSCAN"])


@pytest.mark.parametrize("others, same", [
    ([5, 5, 2, 2, -1], True), ([0, 0, 1, -1, -1], False), ([0, 0, 1, 2, -1], False),
    ([0, 0, 1, 1, 2], False)])
def test_same_partition(others, same):
    labels = np.array([0, 0, 1, 1, -1])
    assert clustering.same_partition(labels, np.array(others)) == same
    assert clustering.same_partition(np.array(others), labels) == same


def test_differences_of_distances_by_loops():
    rng = np.random.default_rng(0)
    n, eps = 300, np.float32(0.5)  # more than one block of rows
    dense = rng.random((n, n), dtype=np.float32)
    ours = (dense + rng.normal(scale=0.002, size=(n, n))).astype(np.float32).clip(0, 1)
    ours[7, 9], dense[7, 9] = 1, 0.25  # a pair that the graph lacks
    kept = ours <= eps + clustering.MARGIN
    graph = sparse.csr_matrix((ours[kept], kept.nonzero()[1], np.r_[0, kept.sum(1).cumsum()]),
                              shape=(n, n))
    near = [(a, b) for a, b in zip(ours.flat, dense.flat, strict=True) if a <= eps or b <= eps]
    one_sided = [(a, b) for a, b in near if (a <= eps) != (b <= eps)]
    found = clustering.compare_distances(graph, dense, eps)
    assert (found.pairs, found.one_sided) == (len(near), len(one_sided)) and len(one_sided) > 20
    assert found.largest == max(abs(a - b) for a, b in near) == 0.75
    assert found.farthest == max(abs(x - eps) for pair in one_sided for x in pair)


def test_figures_of_a_comparison():
    """Medians of all rounds; labels that differ in any round are not the same."""
    ours = clustering.Side("torch", None, {"search": [1, 2, 4], "encoding": [1, 1, 1],
                                     "pairs": [3, 2, 1], "DBSCAN": [2, 2, 2], "total": [7, 8, 9]})
    theirs = clustering.Side("toolbox", None, {"distances": [40], "DBSCAN": [8], "total": [48]})
    ours.labels, theirs.labels = [np.array([0, 0, -1])], [np.array([1, 1, -1])]
    table = table_of(clustering.times_table([ours], [theirs]))
    assert table["neighbour search"] == ["2.00 (1.00-4.00)", ""]
    assert table["distances, all"] == ["5.00 (5.00-6.00)", "40.00 (40.00-40.00)"]
    text = clustering.verdict(ours, theirs, clustering.Difference())
    assert "6.0 times as fast" in text and "labels identical: yes" in text
    ours.labels.append(np.array([0, 1, -1]))
    assert "identical: no" in clustering.verdict(ours, theirs, clustering.Difference())


def test_recall_by_hand():
    exact = np.array([[1, 2, 3], [4, 5, 6]])
    assert measure.recall(np.array([[1, 9, 3], [-1, -1, 4]]), exact) == pytest.approx(3 / 6)


@pytest.mark.alone
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
def test_peak_of_memory():
    machine.forget_peak()
    low = measure.peak_memory()
    # from the system itself: numpy might take memory that the process keeps
    with mmap.mmap(-1, 2**27, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        for start in range(0, 2**27, mmap.PAGESIZE):
            block[start] = 1
    assert measure.peak_memory() - low > 0.12
    machine.forget_peak()
    assert measure.peak_memory() - low < 0.03


def test_a_size_in_a_process_of_its_own_is_measured_once(tmp_path, monkeypatch, capsys):
    children = []

    def run(command, env, check):
        children.append(warm.run(command[1:], tmp_path, env=env))
        return children[-1]

    monkeypatch.setattr(scaling, "subprocess", types.SimpleNamespace(run=run))
    path = tmp_path / "found.csv"
    for _ in range(2):
        clustering.main(["--scaling", "200", "--dim", "8", "--k1", "10", "--k2", "3", "--seed", "3",
                   "--backends", "torch", "--output", str(path)])
    assert len(children) == 1 and f"N = 200, torch: in {path} already" in capsys.readouterr().out
    row, = read_csv(path)
    assert tuple(row) == scaling.FIELDS
    features, identities, _ = simulate_features(200, 8, seed=3)
    labels = assign_pseudo_labels(features, k1=10, k2=3, eps=0.6, min_samples=4)
    assert (row["clusters"], row["outliers"]) == (str(labels.max() + 1), str((labels < 0).sum()))
    assert float(row["ari"]) == pytest.approx(measure.clustered_ari(identities, labels))
    assert 0.99 < float(row["recall"]) <= 1  # a list may end with either of two equal images
    assert all(0 < float(row[f"{stage}_s"]) < float(row["total_s"]) for stage in measure.STAGES)
    assert 0.05 < float(row["start_gib"]) <= float(row["peak_gib"]) + 0.01
    assert is_drawn(tmp_path / "found.png")


def test_more_neighbours_than_images(capsys):
    error = refusal(clustering.main, [*TINY, "--n", "10"], capsys)
    assert "--n 10 must be more than --k1 10" in error
