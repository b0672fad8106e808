"""tools/compare_indicators.py: which mAP belongs to which clustering, the correlations, errors."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import compare_indicators as tool


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


def test_a_clustering_in_the_row_of_an_evaluation_was_made_before_it(tmp_path):
    """One iteration an epoch: labels and mAP share a row, and the mAP is that behind the step."""
    rows = [{"iteration": 0, "start/mAP": 5.0, **_clustering(0, silhouette=0.3), "mAP": 6.0},
            {**_clustering(1, silhouette=0.4), "mAP": 7.0}]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    found = tool.read_rows(tmp_path / "metrics.json")
    assert [(row["mAP"], row["silhouette"]) for row in found] == [(5.0, 0.3), (6.0, 0.4)]


def _ranks(values):
    return [sum(other < value for other in values) for value in values]


def _plain_spearman(xs, ys):
    """Pearson's correlation of the ranks, without ties, in sums."""
    x, y = _ranks(xs), _ranks(ys)
    mean = (len(x) - 1) / 2
    top = sum((a - mean) * (b - mean) for a, b in zip(x, y, strict=True))
    return top / sum((a - mean) ** 2 for a in x)


def test_correlation_against_sums():
    rng = np.random.default_rng(2)
    xs, ys = rng.normal(size=12).tolist(), rng.normal(size=12).tolist()
    assert tool.correlation(xs, ys) == pytest.approx(_plain_spearman(xs, ys))
    with_gap = tool.correlation([*xs, float("nan")], [*ys, 3.0])
    assert with_gap == pytest.approx(_plain_spearman(xs, ys))
    assert np.isnan(tool.correlation([1, 2, 3], [1, 2, 3]))  # too few
    assert np.isnan(tool.correlation([1, 1, 1, 1], [1, 2, 3, 4]))  # no change


def test_within_runs_and_between_their_ends(tmp_path):
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


def test_table_picture_and_file(tmp_path, capsys):
    for number in range(4):
        _write_run(tmp_path / "group" / f"run{number}", [number, 3, 4, 5, 6],
                   [0.1 * number, 0.2, 0.3, 0.4])
    plot, output = tmp_path / "plot.png", tmp_path / "rows.csv"
    tool.main([str(tmp_path / "group"), str(tmp_path / "group" / "run0"), "--plot", str(plot),
               "--output", str(output)])
    text = capsys.readouterr().out
    assert "| group   | silhouette" in text and "| runs    | silhouette" in text
    assert np.asarray(Image.open(plot).convert("L")).std() > 5
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 and rows[0]["run"] == "run0" and float(rows[0]["mAP"]) == 0


@pytest.mark.parametrize("content, message", [
    ("{", "cannot be read as the metrics.json"),
    (json.dumps(_clustering(0)), "TEST.EVAL_AT_START True"),
    (json.dumps({"iteration": 0, "start/mAP": 1.0}), "no clustering"),
    ("[1]", "no row of figures"), ('{"labels/clusters": 3}', "no row of figures"),
])
def test_files_that_are_no_such_run(tmp_path, content, message):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(SystemExit, match=message) as error:
        tool.main([str(tmp_path)])
    text = error.value.code  # printed, with exit status 1
    assert text.startswith(f"tools/compare_indicators.py: {tmp_path / 'metrics.json'} ")
    assert "\n" not in text


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


def test_folders_without_runs_and_wrong_outputs(tmp_path, capsys):
    with pytest.raises(SystemExit, match="holds neither metrics.json nor"):
        tool.main([str(tmp_path)])
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path), "--plot", "x.jpg"])
    assert "must end in .png" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path), "--output", str(tmp_path / "none" / "x.csv")])
    assert "does not exist" in capsys.readouterr().err
