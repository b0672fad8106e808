"""Comparing indicators: which mAP belongs to which clustering, the correlations, errors."""

import json

import numpy as np
import pytest

from benchmarks import compare_indicators as tool
from helpers.tool_output import is_drawn, read_csv, refusal


def _clustering(iteration, **indicators):
    return {"iteration": iteration, "labels/clusters": 9.0, **{
        f"labels/{name}": value for name, value in indicators.items()}}


def _write_run(folder, maps, silhouettes):
    """A run of epochs of 10 iterations: maps[0] is that of the start."""
    rows = [{"iteration": 0, "start/mAP": maps[0]}]
    for epoch, (after, value) in enumerate(zip(maps[1:], silhouettes, strict=True)):
        more = {"stability": value / 2} if epoch else {}
        rows.append(_clustering(10 * epoch, silhouette=value, outlier_share=1 - value,
                                largest_share=0.5, cross_camera=0.5, **more))
        rows.append({"iteration": 10 * epoch + 9, "loss_infonce": 1.0, "mAP": after})
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_a_clustering_has_the_map_of_the_evaluation_before_it(tmp_path):
    folder = _write_run(tmp_path / "run", [10, 20, 30, 40], [0.1, 0.2, 0.3])
    rows = tool.read_rows(folder / "metrics.json")
    assert [(row["iteration"], row["mAP"], row["silhouette"]) for row in rows] == [
        (0, 10, 0.1), (10, 20, 0.2), (20, 30, 0.3)]
    assert np.isnan(rows[0]["stability"]) and rows[1]["stability"] == 0.1
    # one iteration an epoch: labels and mAP share a row, and the mAP is that behind the step
    rows = [{"iteration": 0, "start/mAP": 5.0, **_clustering(0, silhouette=0.3), "mAP": 6.0},
            {**_clustering(1, silhouette=0.4), "mAP": 7.0}]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    found = tool.read_rows(tmp_path / "metrics.json")
    assert [(row["mAP"], row["silhouette"]) for row in found] == [(5.0, 0.3), (6.0, 0.4)]


def test_correlation_is_that_of_the_ranks():
    rng = np.random.default_rng(2)
    xs, ys = rng.normal(size=(2, 12))
    ranks = [[sum(other < value for other in values) for value in values] for values in (xs, ys)]
    expected = pytest.approx(np.corrcoef(ranks)[0, 1])
    assert tool.correlation(xs.tolist(), ys.tolist()) == expected
    assert tool.correlation([*xs, float("nan")], [*ys, 3.0]) == expected
    assert np.isnan(tool.correlation([1, 2, 3], [1, 2, 3]))  # too few
    assert np.isnan(tool.correlation([1, 1, 1, 1], [1, 2, 3, 4]))  # no change


def test_within_runs_and_between_their_ends(tmp_path, capsys):
    """Within each run the silhouette rises with mAP; the better a run, the lower its silhouette."""
    for number in range(4):
        start = 10.0 * number
        _write_run(tmp_path / "group" / f"run{number}", [start + i for i in range(5)],
                   [0.5 - 0.1 * number + 0.01 * i for i in range(4)])
    runs = tool.find_runs([tmp_path / "group"])
    table = {row["indicator"]: row for row in tool.correlations(runs)}
    assert table["silhouette"]["within"] == pytest.approx(1)
    assert table["silhouette"]["between"] == pytest.approx(-1)
    assert table["outlier_share"]["within"] == pytest.approx(-1)
    assert np.isnan(table["largest_share"]["within"]) and table["silhouette"]["runs"] == 4

    tool.main([str(tmp_path / "group"), str(tmp_path / "group" / "run0"), "--plot",
               str(tmp_path / "plot.png"), "--output", str(tmp_path / "rows.csv")])
    text = capsys.readouterr().out
    assert "| group   | silhouette" in text and "| runs    | silhouette" in text
    assert is_drawn(tmp_path / "plot.png")
    rows = read_csv(tmp_path / "rows.csv")
    assert len(rows) == 20 and rows[0]["run"] == "run0" and float(rows[0]["mAP"]) == 0


@pytest.mark.parametrize("content, message", [
    ("{", "cannot be read as the metrics.json"),
    (json.dumps(_clustering(0)), "TEST.EVAL_AT_START True"),
    (json.dumps({"iteration": 0, "start/mAP": 1.0}), "no clustering"),
    ("[1]", "no row of figures"), ('{"labels/clusters": 3}', "no row of figures"),
])
def test_files_that_are_no_such_run(tmp_path, capsys, content, message):
    (tmp_path / "metrics.json").write_text(f"{content}\n")
    text = refusal(tool.main, [tmp_path], capsys).strip()
    assert text.startswith(f"tools/benchmarks/compare_indicators.py: {tmp_path / 'metrics.json'} ")
    assert message in text and "\n" not in text


def test_a_run_without_figures_among_others_is_named_and_left_out(tmp_path, capsys):
    _write_run(tmp_path / "group" / "good", [1, 2, 3], [0.1, 0.2])
    (tmp_path / "group" / "failed").mkdir()
    (tmp_path / "group" / "failed" / "metrics.json").write_text("")
    assert [run.name for run in tool.find_runs([tmp_path / "group"])] == ["good"]
    text = capsys.readouterr().out
    assert text.startswith("left out: ") and str(tmp_path / "group" / "failed") in text
    (tmp_path / "group" / "good" / "metrics.json").unlink()
    with pytest.raises(ValueError, match="No run of .* can be used"):
        tool.find_runs([tmp_path / "group"])


@pytest.mark.parametrize("words, message", [
    ([], "holds neither metrics.json nor"), (["--plot", "x.jpg"], "must end in .png"),
    (["--output", "none/x.csv"], "does not exist")])
def test_folders_without_runs_and_wrong_outputs(tmp_path, capsys, words, message):
    assert message in refusal(tool.main, [tmp_path, *words], capsys)
