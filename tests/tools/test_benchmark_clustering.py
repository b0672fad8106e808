"""The benchmark of clustering: what it compares, prints and writes. No time is looked at."""

import contextlib
import csv
import importlib.util
import inspect
import itertools
import json
import mmap
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from caureid_plugin.clustering import assign_pseudo_labels, faiss_search, jaccard_graph, memory
from caureid_plugin.clustering.simulated import simulate_features
from PIL import Image
from scipy import sparse
from scipy.sparse.csgraph import minimum_spanning_tree

TOOL = Path(__file__).resolve().parents[2] / "tools" / "benchmark_clustering.py"
EPS = 0.47  # no distance equals it: with k2 = 3 many are 0.5 but for rounding
TINY = ["--n", "240", "--dim", "16", "--k1", "10", "--k2", "3", "--rounds", "2", "--eps", str(EPS)]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("benchmark_clustering", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def features():
    return simulate_features(240, 16)[0]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def table_of(printed):
    """{first cell: other cells} of the Markdown table in what was printed, heading included."""
    lines = [cells(line) for line in printed.splitlines() if line.startswith("|")]
    return {line[0]: line[1:] for line in lines}


# ------------------------------------------------------------------------ both sides ----


def test_the_toolbox_function_is_its_own_whatever_the_repairs_do(tool, features, monkeypatch):
    pytest.importorskip("faiss")
    from fastreid.utils import compute_dist

    def redirected(*args, **kwargs):
        raise AssertionError("the repaired function was timed")

    monkeypatch.setattr(compute_dist, "compute_jaccard_distance", redirected)
    function = tool.toolbox_function()
    assert inspect.unwrap(function).__code__.co_filename == compute_dist.__file__
    args = tool.parse_args(TINY)
    seconds, labels, dense = tool.run_toolbox(features, args, 3)
    assert dense.shape == (240, 240) and (dense.diagonal() < 1e-6).all()
    assert seconds["total"] == pytest.approx(seconds["distances"] + seconds["DBSCAN"])
    assert len(labels) == 240 and labels.max() > 3


def test_every_stage_of_the_plugin_is_timed(tool, features):
    args = tool.parse_args(TINY)
    noted = []
    seconds, labels = tool.run_plugin(
        features, args, "torch", note=lambda stage, spent, result: noted.append(stage))
    assert noted == ["search", "encoding", "pairs", "DBSCAN"]
    stages = [seconds[stage] for stage in noted]
    assert min(stages) > 0 and sum(stages) <= seconds["total"]
    assert np.array_equal(labels, assign_pseudo_labels(
        features, k1=10, k2=3, eps=EPS, min_samples=4))
    before = dict(seconds)
    assign_pseudo_labels(features, k1=10, k2=3, eps=EPS, min_samples=4)
    assert seconds == before  # nothing is watched any more


def test_same_partition_against_all_pairs(tool):
    rng = np.random.default_rng(0)
    agreed = 0
    for _ in range(200):
        labels = rng.integers(-1, 3, size=5)
        others = rng.permutation(5)[labels] if rng.random() < 0.5 else rng.integers(-1, 3, size=5)
        others = np.where(labels < 0, -1, others) if rng.random() < 0.5 else others
        together = [[a[i] == a[j] and a[i] >= 0 for i, j in itertools.combinations(range(5), 2)]
                    for a in (labels, others)]
        expected = together[0] == together[1] and (labels < 0).tolist() == (others < 0).tolist()
        assert tool.same_partition(labels, others) == expected
        agreed += expected
    assert 40 < agreed < 160


@pytest.mark.parametrize("seed", range(3))
def test_differences_of_distances_by_loops(tool, seed):
    rng = np.random.default_rng(seed)
    n, eps = 300, 0.5  # more than one block of rows
    dense = rng.random((n, n), dtype=np.float32)
    ours = (dense + rng.normal(scale=0.002, size=(n, n))).astype(np.float32).clip(0, 1)
    kept = ours <= eps + tool.MARGIN
    graph = sparse.csr_matrix((ours[kept], kept.nonzero()[1], np.r_[0, kept.sum(1).cumsum()]),
                              shape=(n, n))
    found = tool.compare_distances(graph, dense, eps)
    expected = tool.Difference()
    for i in range(n):
        for j in range(n):
            near, near_theirs = ours[i, j] <= eps, dense[i, j] <= eps
            if near or near_theirs:
                expected.pairs += 1
                expected.largest = max(expected.largest, abs(ours[i, j] - dense[i, j]))
            if near != near_theirs:
                expected.one_sided += 1
                expected.farthest = max(expected.farthest, abs(ours[i, j] - np.float32(eps)),
                                        abs(dense[i, j] - np.float32(eps)))
    assert expected.one_sided > 20
    assert (found.pairs, found.one_sided) == (expected.pairs, expected.one_sided)
    assert found.largest == pytest.approx(expected.largest, abs=1e-7)
    assert found.farthest == pytest.approx(expected.farthest, abs=1e-7)


def test_a_pair_that_one_side_lacks_counts(tool):
    graph = sparse.csr_matrix((np.zeros(3, np.float32), [0, 1, 2], [0, 1, 2, 3]), shape=(3, 3))
    dense = np.ones((3, 3), dtype=np.float32) - np.eye(3, dtype=np.float32)
    dense[0, 2] = 0.25
    found = tool.compare_distances(graph, dense, 0.5)
    assert found == tool.Difference(pairs=4, largest=0.75, one_sided=1, farthest=0.5)


def test_ours_runs_before_and_after_each_of_theirs(tool):
    ours, theirs = ([tool.Side(name, None) for name in names] for names in ("ab", "xy"))
    order = [f"{number}{side.name}" for number, side in tool.schedule(ours, theirs, 2)]
    one = ["a", "b", "x", "b", "a", "a", "b", "y", "b", "a"]
    assert order == [f"1{name}" for name in one] + [f"2{name}" for name in one]
    assert [side.name for _, side in tool.schedule(ours, [], 2)] == ["a", "b", "a", "b"]


# ------------------------------------------------------------------------ comparison ----


def test_comparison(tool, capsys):
    pytest.importorskip("faiss")
    tool.main([*TINY, "--backends", "torch,faiss-flat"])
    printed = capsys.readouterr().out
    assert re.search(r"CPU: .+ cores, \d+ thread\(s\) used \(\d+ by the toolbox\), "
                     r"bfloat16 instructions: .* load [\d.]+ before", printed)
    assert f"torch {torch.__version__.split('+')[0]}" in printed
    assert re.search(r"compiled loops ready after [\d.]+ s .*: not part of the times", printed)
    turns = re.findall(r"round (\d) of 2: (.+?) \.\.\. [\d.]+ s", printed)
    one = ["torch", "faiss-flat", "toolbox, option 3", "faiss-flat", "torch"]
    assert turns == [(number, name) for number in "12" for name in one]

    table = table_of(printed)
    assert table.pop("stage, s") == ["torch", "faiss-flat", "toolbox, option 3"]
    assert [name for name in table if name.strip("-:")] == [
        "neighbour search", "encoding", "pairs within eps", "distances, all", "DBSCAN", "total"]
    number = r"[\d.]+ \([\d.]+-[\d.]+\)"
    for name in ("neighbour search", "encoding", "pairs within eps"):
        assert re.fullmatch(f"{number}, {number}, ", ", ".join(table[name]))
    for name in ("distances, all", "DBSCAN", "total"):
        assert re.fullmatch(", ".join([number] * 3), ", ".join(table[name]))

    assert len(re.findall("times as fast", printed)) == 2
    assert printed.count("labels identical: yes") == 2 and "identical: no" not in printed
    differences = re.findall(r"over the ([\d,]+) pairs within eps: (\S+)", printed)
    assert len(differences) == 2
    for pairs, largest in differences:
        assert int(pairs.replace(",", "")) > 240 and 0 < float(largest) < 1e-5
    features, identities, _ = simulate_features(240, 16)
    labels = assign_pseudo_labels(features, k1=10, k2=3, eps=EPS, min_samples=4)
    assert printed.count(f"{labels.max() + 1} clusters, {(labels < 0).sum()} outliers") == 6
    assert f"simulated identities {tool.clustered_ari(identities, labels):.3f}" in printed


@pytest.mark.parametrize("which", ["run_plugin", "run_toolbox"])
@pytest.mark.parametrize("change", ["moved", "outlier", "renamed"])
def test_labels_that_differ_are_noticed(tool, which, change, monkeypatch, capsys):
    pytest.importorskip("faiss")
    run = getattr(tool, which)

    def changed(*args, **kwargs):
        seconds, labels, *rest = run(*args, **kwargs)
        labels = labels.copy()
        image = np.flatnonzero(labels == 0)[0]
        if change == "moved":
            labels[image] = 1
        elif change == "outlier":
            labels[image] = -1
        else:
            labels[labels >= 0] = labels.max() - labels[labels >= 0] + 7
        return seconds, labels, *rest

    monkeypatch.setattr(tool, which, changed)
    tool.main([*TINY, "--rounds", "1"])
    answer = re.findall(r"labels identical: (\w+)", capsys.readouterr().out)
    assert answer == ["yes" if change == "renamed" else "no"]


def test_threads_of_each_side(tool, monkeypatch):
    pytest.importorskip("faiss")
    seen = []
    for name in ("assign_pseudo_labels", "dense_labels"):

        def note(spent, result, name=name):
            seen.append((name, torch.get_num_threads()))

        monkeypatch.setattr(tool, name, tool.watched(getattr(tool, name), note))
    before = torch.get_num_threads()
    try:
        tool.main([*TINY, "--rounds", "1", "--threads", "2", "--toolbox-threads", "1"])
    finally:
        tool.limit_threads(before)
    assert set(seen) == {("assign_pseudo_labels", 2), ("dense_labels", 1)}


def test_distances_that_differ_are_noticed(tool, monkeypatch, capsys):
    pytest.importorskip("faiss")
    run = tool.run_toolbox

    def changed(*args):
        seconds, labels, dense = run(*args)
        return seconds, labels, dense + np.float32(1e-3)

    monkeypatch.setattr(tool, "run_toolbox", changed)
    tool.main([*TINY, "--rounds", "1"])
    assert re.search(r"pairs within eps: 1\.0e-03\n", capsys.readouterr().out)


def test_ties_at_eps_are_told_from_other_differences(tool, features, monkeypatch, capsys):
    pytest.importorskip("faiss")
    run = tool.run_toolbox
    graph = jaccard_graph(features, k1=10, k2=3, eps=0.6)
    links = minimum_spanning_tree(graph).data  # with min_samples 2, each makes or parts a cluster
    eps = str(float(np.sort(links)[len(links) // 2]))
    for shift, answers in ((0.5 * tool.ROUNDING, ["no", "yes"]), (50 * tool.ROUNDING, ["no"] * 2)):

        def shifted(features, args, option, shift=shift):
            seconds, _, dense = run(features, args, option)
            dense += np.float32(shift)
            return seconds, tool.dense_labels(dense, args.eps, args), dense

        monkeypatch.setattr(tool, "run_toolbox", shifted)
        tool.main([*TINY, "--rounds", "1", "--eps", eps, "--min-samples", "2"])
        printed = capsys.readouterr().out
        assert re.findall(r"labels identical.*: (yes|no)\b", printed) == answers
        assert int(re.search(r"one side only: (\d+), at most", printed)[1]) >= 2


def test_an_option_of_the_toolbox_that_fails_is_told_in_the_table(tool, monkeypatch, capsys):
    def no_gpu():
        raise RuntimeError("there is no GPU here\nand more")

    monkeypatch.setattr(tool, "toolbox_function", no_gpu)
    tool.main([*TINY, "--toolbox-options", "0,3"])
    printed = capsys.readouterr().out
    table = table_of(printed)
    assert table["total"][1:] == ["RuntimeError: there is no GPU here"] * 2
    assert table["DBSCAN"][1:] == ["", ""]
    assert "toolbox, option 0: not compared, RuntimeError: there is no GPU here" in printed
    assert "labels identical" not in printed and "and more" not in printed
    assert len(re.findall(r": toolbox, option 3 \.\.\.", printed)) == 1  # tried once


def test_dense_arrays_that_do_not_fit_are_not_tried(tool, monkeypatch, capsys):
    monkeypatch.setattr(tool, "dense_memory", lambda n: 1e9)
    tool.main([*TINY, "--rounds", "1"])
    assert re.search(r"MemoryError: two dense arrays of 240 x 240 take 1000000000\.0 GiB, .* free",
                     capsys.readouterr().out)


def test_the_plugin_alone(tool, capsys):
    tool.main([*TINY, "--no-toolbox"])
    printed = capsys.readouterr().out
    assert table_of(printed)["stage, s"] == ["auto"]
    assert printed.count("round") == 2 and "identical" not in printed


def test_figures_of_the_table(tool):
    ours = tool.Side("torch", None, {"search": [1, 2, 4], "encoding": [1, 1, 1],
                                     "pairs": [3, 2, 1], "DBSCAN": [2, 2, 2], "total": [7, 8, 9]})
    theirs = tool.Side("toolbox", None, {"distances": [40], "DBSCAN": [8], "total": [48]})
    for side, labels in ((ours, [0, 0, -1]), (theirs, [1, 1, -1])):
        side.labels = [np.array(labels)]
    table = table_of(tool.times_table([ours], [theirs]))
    assert table["neighbour search"] == ["2.00 (1.00-4.00)", ""]
    assert table["distances, all"] == ["5.00 (5.00-6.00)", "40.00 (40.00-40.00)"]
    assert table["total"] == ["8.00 (7.00-9.00)", "48.00 (48.00-48.00)"]
    text = tool.verdict(ours, theirs, tool.Difference(12, 2e-7, 3, 1e-8))
    assert "torch against toolbox: 6.0 times as fast" in text
    assert "labels identical: yes (1 clusters, 1 outliers; 1 clusters, 1 outliers)" in text
    assert "over the 12 pairs within eps: 2.0e-07" in text
    assert "on one side only: 3, at most 1.0e-08 from eps" in text
    ours.labels.append(np.array([0, 1, -1]))  # every round counts
    assert "identical: no" in tool.verdict(ours, theirs, tool.Difference())


# -------------------------------------------------------------------- one size alone ----


def test_exact_neighbors_by_loops(tool):
    features = np.random.default_rng(0).normal(size=(150, 5)).astype(np.float32)
    features[40:44] = features[40]
    rows = np.array([0, 17, 41, 149])
    found = tool.exact_neighbors(features, rows, 6)
    for row, neighbors in zip(rows, found, strict=True):
        distances = [sum((float(a) - float(b)) ** 2
                         for a, b in zip(features[row], other, strict=True))
                     for other in features]
        expected = sorted(distances)[:6]
        assert len(set(neighbors.tolist())) == 6
        assert [distances[j] for j in neighbors] == pytest.approx(expected, abs=1e-9)


def test_recall_by_hand(tool):
    exact = np.array([[1, 2, 3], [4, 5, 6]])
    assert tool.recall(exact[:, ::-1], exact) == 1
    assert tool.recall(np.array([[1, 9, 3], [-1, -1, 4]]), exact) == pytest.approx(3 / 6)


@contextlib.contextmanager
def _block():
    """128 MiB from the system itself: numpy might get them from memory that the process keeps."""
    with mmap.mmap(-1, 2**27, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        for start in range(0, 2**27, mmap.PAGESIZE):
            block[start] = 1
        yield


def test_peak_of_memory(tool):
    with _block():
        with_block = tool.peak_memory()
        assert with_block >= tool.current_memory() - 0.01
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak cannot be set back here")
    rises = []
    for _ in range(5):  # the system may take pages of others away at the same moment
        tool.forget_peak()
        low = tool.peak_memory()
        with _block():
            rises.append(tool.peak_memory() - low)
        assert low < with_block - 0.1
    assert max(rises) > 0.1


@pytest.mark.parametrize("backend", ["torch", "auto", "faiss-ivf"])
def test_a_row_of_one_size(tool, backend, monkeypatch, capsys):
    if backend.startswith("faiss"):
        pytest.importorskip("faiss")
    monkeypatch.setattr(faiss_search, "FLAT_UP_TO", 1000)
    monkeypatch.setattr(tool, "SECONDS_BETWEEN_LINES", 0)
    args = tool.parse_args(["--n", "1300", "--dim", "8", "--k1", "12", "--backends", backend])
    row = tool.measure_size(args)
    printed = capsys.readouterr().out
    assert tuple(sorted(row)) == tuple(sorted(tool.FIELDS))
    assert json.loads(json.dumps(row)) == row  # it travels as JSON
    features, identities, _ = simulate_features(1300, 8)
    labels = assign_pseudo_labels(features, k1=12, k2=6, eps=0.6, min_samples=4)
    if backend != "faiss-ivf":  # which is approximate
        assert (row["clusters"], row["outliers"]) == (labels.max() + 1, (labels < 0).sum())
        assert row["ari"] == pytest.approx(tool.clustered_ari(identities, labels))
    assert row["search"] == ("torch" if backend == "auto" else backend)
    assert row["estimate_gib"] == memory.estimate(
        1300, 8, (12,), backend=row["search"], device=torch.device("cpu"))["peak"]
    assert row["features_gib"] == pytest.approx(1300 * 8 * 4 / 2**30)
    assert row["peak_gib"] >= row["start_gib"] - 0.01 and row["start_gib"] > 0.1
    assert row["above_start_gib"] == pytest.approx(row["peak_gib"] - row["start_gib"])
    assert row["above_features_gib"] == pytest.approx(row["peak_gib"] - row["features_gib"])
    for stage in ("search", "encoding", "pairs", "DBSCAN"):
        assert 0 < row[f"{stage}_s"] < row["total_s"]
        assert f"N = 1,300, {backend}: {stage} took" in printed
    assert f"N = 1,300, {backend}: pairs 100 %" in printed
    # float32 rounding may swap two images at the end of an exact list
    assert (0.9 if backend == "faiss-ivf" else 0.999) < row["recall"] <= 1
    assert f"recall at 12 is {row['recall']:.4f}" in printed


def test_recall_is_that_of_the_lists_that_were_used(tool, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(tool, "exact_neighbors", lambda features, rows, k: np.stack(
        [np.full(k, -5)] * (len(rows) - 1) + [np.full(k, rows[-1])]))
    row = tool.measure_size(tool.parse_args(
        ["--n", "1300", "--dim", "8", "--k1", "12", "--backends", "faiss-ivf"]))
    assert row["recall"] == pytest.approx(1 / (12 * 1000))  # itself, in the last row


def test_what_does_not_fit_is_reported(tool, monkeypatch, tmp_path):
    path = tmp_path / "row.json"
    monkeypatch.setattr(memory, "available", lambda: 1e-9)
    monkeypatch.setattr(tool, "warm_up", lambda args: 0.0)
    tool.main([*TINY, "--child-result", str(path)])
    error = json.loads(path.read_text())["error"]
    assert re.match("MemoryError: clustering needs about .* GiB", error)


# --------------------------------------------------------------------------- scaling ----

SCALING = ["--dim", "8", "--k1", "10", "--k2", "3"]


@pytest.fixture
def measured(tool, monkeypatch):
    """Sizes that were measured; the measurement itself is made up, and fails for N = 666."""
    calls = []

    def start_child(args, n, backend):
        calls.append((n, backend))
        if n == 666:
            return {"error": "ended by signal 9, out of memory?"}
        row = dict.fromkeys(tool.FIELDS, 0.5)
        row.update({name: getattr(args, name) for name in tool.SETTINGS})
        return {**row, "n": n, "backend": backend, "search": backend, "total_s": n / 1000,
                "clusters": n // 17, "outliers": 3, "gpu_peak_gib": "",
                "machine": "made up, 2 cores"}

    monkeypatch.setattr(tool, "start_child", start_child)
    return calls


def test_finished_sizes_are_not_measured_again(tool, measured, tmp_path, capsys):
    path = tmp_path / "found.csv"
    command = ["--scaling", "300,200", "--backends", "torch,faiss-flat", *SCALING,
               "--output", str(path)]
    tool.main(command)
    first = [(n, backend) for n in (200, 300) for backend in ("torch", "faiss-flat")]
    assert measured == first
    printed = capsys.readouterr().out
    text = path.read_text()
    tool.main(command)
    assert measured == first and path.read_text() == text
    again = capsys.readouterr().out
    assert again.count("in " + str(path) + " already") == 4
    for name in ("N", "200", "300"):  # the table is complete all the same
        assert table_of(again)[name] == table_of(printed)[name]
    command[1] = "200,400"
    tool.main(command)
    assert measured[4:] == [(400, "torch"), (400, "faiss-flat")]
    tool.main([*command, "--eps", "0.4"])  # another setting is another measurement
    assert len(measured) == 10
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["n"]), row["backend"]) for row in rows] == measured
    assert [row["eps"] for row in rows] == ["0.6"] * 6 + ["0.4"] * 4
    assert np.asarray(Image.open(tmp_path / "found.png").convert("RGB")).std() > 5


def test_a_size_that_fails_is_told_and_tried_again(tool, measured, tmp_path, capsys):
    path = tmp_path / "found.csv"
    command = ["--scaling", "200,666,700", *SCALING, "--output", str(path),
               "--plot", str(tmp_path / "other.png")]
    for _ in range(2):
        with pytest.raises(SystemExit, match="1 of 3 measurements failed"):
            tool.main(command)
        table = table_of(capsys.readouterr().out)
        heading, line = table["N"], table["666"]
        assert line[heading.index("total, s")] == "ended by signal 9, out of memory?"
        assert table["700"][heading.index("total, s")] == "0.7"
    assert [n for n, _ in measured] == [200, 666, 700, 666]
    assert len(path.read_text().splitlines()) == 3
    assert (tmp_path / "other.png").exists()


def test_a_row_cut_short_is_measured_again(tool, measured, tmp_path):
    path = tmp_path / "found.csv"
    command = ["--scaling", "200,300", *SCALING, "--output", str(path)]
    tool.main(command)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:40]]) + "\n")
    tool.main(command)
    assert [n for n, _ in measured] == [200, 300, 300]


def test_figures_of_the_scaling_table(tool):
    row = {**dict.fromkeys(tool.FIELDS, "1"), "n": "100000", "dim": "64", "backend": "auto",
           "search": "torch-pca", "search_s": "12.34", "total_s": "20.06", "above_features_gib":
           "1.254", "recall": "0.99123", "gpu_peak_gib": "", "clusters": "5900"}
    table = table_of(tool.scaling_table([row, {"n": 7, "dim": 64, "backend": "torch",
                                               "error": "ImportError: no"}]))
    line = dict(zip(table["N"], table["100,000"], strict=True))
    assert line["back end"] == "auto (torch-pca)" and line["search, s"] == "12.3"
    assert line["total, s"] == "20.1" and line["peak above features, GiB"] == "1.25"
    assert line["recall"] == "0.9912" and line["clusters"] == "5,900"
    assert "GPU peak, GiB" not in line
    assert dict(zip(table["N"], table["7"], strict=True))["total, s"] == "ImportError: no"
    on_gpu = table_of(tool.scaling_table([{**row, "gpu_peak_gib": "3.5"}]))
    line = dict(zip(on_gpu["N"], on_gpu["100,000"], strict=True))
    assert line["GPU peak, GiB"] == "3.50"


def test_dense_memory_is_that_of_two_float32_arrays(tool):
    arrays = [np.zeros((40, 40), dtype=np.float32) for _ in range(2)]
    assert tool.dense_memory(40) * 2**30 == pytest.approx(sum(array.nbytes for array in arrays))
    assert tool.dense_memory(400_000) == pytest.approx(1192, abs=1)


def test_the_end_of_a_process_without_a_result(tool, monkeypatch):
    args = tool.parse_args(TINY)
    for code, message in ((-9, "ended by signal 9, out of memory?"), (-11, "ended by signal 11"),
                          (1, "ended with status 1, see above")):
        monkeypatch.setattr(subprocess, "run",
                            lambda *a, code=code, **k: types.SimpleNamespace(returncode=code))
        assert tool.start_child(args, 200, "torch") == {"error": message}


def test_a_size_in_its_own_process(tool, tmp_path, capfd):
    path = tmp_path / "found.csv"
    tool.main(["--scaling", "200", *SCALING, "--seed", "3", "--backends", "torch", "--eps", "0.45",
               "--min-samples", "3", "--output", str(path)])
    printed = capfd.readouterr().out
    assert "N = 200, torch: search took" in printed and "1 of 1: N = 200, torch: " in printed
    with path.open() as file:
        row, = csv.DictReader(file)
    features, _, _ = simulate_features(200, 8, seed=3)
    labels = assign_pseudo_labels(features, k1=10, k2=3, eps=0.45, min_samples=3)
    assert row["clusters"] == str(labels.max() + 1) and row["outliers"] == str((labels < 0).sum())
    assert row["threads"] == str(torch.get_num_threads())
    assert 0.05 < float(row["start_gib"]) <= float(row["peak_gib"]) + 0.01
    assert (tmp_path / "found.png").exists()


# ---------------------------------------------------------------------- command line ----


@pytest.mark.parametrize("arguments, message", [
    (["--rounds", "0"], "--rounds 0 must be at least 1"),
    (["--dim", "-3"], "--dim -3 must be at least 1"),
    (["--min-samples", "0"], "--min-samples 0 must be at least 1"),
    (["--threads", "0"], "--threads 0 must be at least 1"),
    (["--toolbox-threads", "0"], "--toolbox-threads 0 must be at least 1"),
    (["--seed", "-1"], "--seed -1 must be at least 0"),
    (["--eps", "1"], "--eps 1.0 must be between 0 and 1"),
    (["--eps", "nan"], "--eps nan must be between 0 and 1"),
    (["--k2", "11"], "--k2 11 must not exceed --k1 10"),
    (["--n", "10"], "--n 10 must be more than --k1 10"),
    (["--scaling", "500,5"], "--scaling 5 must be more than --k1 10"),
    (["--scaling", "many"], "invalid list of integers value: 'many'"),
    (["--backends", "torch,annoy"], "--backends annoy is unknown, known are auto, torch, "),
    (["--toolbox-options", "3,4"], "--toolbox-options 4 is unknown, known are 0,1,2,3"),
    (["--toolbox-options", "3", "--no-toolbox"], "cannot be used with --no-toolbox"),
    (["--device", "tpu"], "--device tpu must be cpu or cuda"),
    (["--device", "meta"], "--device meta must be cpu or cuda"),
    (["--output", "found.csv"], "--output needs --scaling"),
    (["--plot", "found.png"], "--plot needs --scaling"),
    (["--scaling", "50", "--output", "nowhere/found.csv"], "the folder nowhere does not exist"),
    (["--scaling", "50", "--plot", "found.txt"], r"--plot found.txt must end in \.png"),
])
def test_wrong_arguments(tool, arguments, message, capsys):
    with pytest.raises(SystemExit):
        tool.main([*TINY, *arguments])
    captured = capsys.readouterr()
    assert not captured.out
    assert re.search(message, captured.err), captured.err


def test_a_device_that_is_not_there(tool, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        tool.main([*TINY, "--device", "cuda"])
    assert re.search("--device cuda needs a GPU, and torch .* finds none", capsys.readouterr().err)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SystemExit):
        tool.main([*TINY, "--device", "cuda:2"])
    assert "--device cuda:2: there are 2 GPUs" in capsys.readouterr().err
    args = tool.parse_args([*TINY, "--device", "cuda:1"])
    assert args.toolbox_options == [0, 1, 2, 3]


def test_a_back_end_that_is_not_installed(tool, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(SystemExit):
        tool.main([*TINY, "--backends", "torch,faiss-flat"])
    assert "faiss back ends need faiss" in capsys.readouterr().err


def test_a_file_of_something_else(tool, tmp_path, capsys):
    path = tmp_path / "found.csv"
    path.write_text("n,seconds\n5,1\n")
    with pytest.raises(SystemExit):
        tool.main(["--scaling", "200", "--output", str(path)])
    assert re.search("--output .*has other columns than this tool writes", capsys.readouterr().err)
    assert path.read_text() == "n,seconds\n5,1\n"
