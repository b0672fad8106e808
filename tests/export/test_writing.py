"""caureid export and benchmarks/evaluate_export.py: from a run folder to a file and its figures."""

import functools
import json
import re

import numpy as np
import pytest
from caureid_plugin import load_export, load_run
from caureid_plugin.cli import export
from caureid_plugin.cli.common import call
from caureid_plugin.export import export_network, graph, precision

from benchmarks import evaluate_export
from helpers.tool_output import refusal, table_rows


@pytest.fixture
def run(small_run):
    return small_run("SEED", "3")  # whose weights int8 rounds well


@pytest.fixture
def market(tiny_market):
    return tiny_market / "Market-1501-v15.09.15"


def test_a_file_from_a_run(run, market, tmp_path, capsys):
    paths = sorted((market / "query").glob("*.jpg"))
    expected = load_run(run).embed(paths)
    for words, count in ((["--input", "imagenet"], "eight noise"),
                         (["--precision", "int8", "--images", str(market / "query")], "16")):
        call(export.command, [run, "--output", tmp_path / "x.onnx", *words])
        output = capsys.readouterr().out
        made = json.loads((tmp_path / "x.onnx.json").read_text())
        assert "(B, 3, 32, 16) float32" in output and "to (B, 16) of length 1" in output
        assert f"embeddings of {count} images" in output
        assert f"{made['difference']:.1e}" in output and made["precision"] in output
        cosines = (load_export(tmp_path / "x.onnx").embed(paths) * expected).sum(1)
        assert cosines.min() > (0.9 if "int8" in words else 0.999)
    call(export.command, [run / "model_final.pth", "--output", tmp_path / "x.torchscript"])
    assert (tmp_path / "x.torchscript.json").is_file()


def test_choices():
    assert (export.INPUTS, export.PRECISIONS) == (graph.INPUTS, precision.PRECISIONS)


def test_mistakes(run, tmp_path, capsys):
    out = ["--output", tmp_path / "x.onnx"]
    for words, message in (
            ([tmp_path / "absent", *out], "absent' does not exist"),
            ([run, *out, "--precision", "int8"], "int8 takes at least 8 images"),
            ([run, *out, "--images", "absent"], "'--images': Directory 'absent' does not exist"),
            ([run, "--output", "x.pt"], "x.pt must end in .onnx or .torchscript"),
            ([run, *out, "SEED"], "must come in pairs, got SEED")):
        assert message in refusal(functools.partial(call, export.command), words, capsys)
    assert not list(tmp_path.glob("x.onnx*"))


def mean_precision(run, market):
    """mAP and Rank-1 by loops, as the data set's rules say."""
    embedder = load_run(run)
    sets = []
    for folder in ("query", "bounding_box_test"):
        paths = sorted((market / folder).glob("*.jpg"))
        names = [re.match(r"(-?\d+)_c(\d)", path.name) for path in paths]
        rows = [(int(name[1]), int(name[2]), vector) for name, vector in zip(
            names, embedder.embed(paths).astype(np.float64), strict=True) if int(name[1]) >= 0]
        sets.append(rows)
    precisions, firsts = [], []
    for person, camera, vector in sets[0]:
        ranked = sorted(((-float(vector @ other), who == person) for who, where, other in sets[1]
                         if (who, where) != (person, camera)))
        hits = [number for number, (_, right) in enumerate(ranked, 1) if right]
        precisions.append(np.mean([(i + 1) / number for i, number in enumerate(hits)]))
        firsts.append(ranked[0][1])
    return 100 * np.mean(precisions), 100 * np.mean(firsts)


def test_figures_of_files(run, market, tmp_path, capsys):
    files = []
    for name in ("fp32", "int8"):
        (tmp_path / name).mkdir()
        files.append(str(tmp_path / name / "x.onnx"))  # of the same name, in another folder
        call(export.command, [run, "--output", files[-1], "--precision", name, "--images",
                              market / "bounding_box_train"])
    capsys.readouterr()
    evaluate_export.main([str(run), *files])
    output = capsys.readouterr().out
    assert "Market1501: 16 queries, 33 gallery images" in output
    rows = table_rows(output)[2:]
    assert [row[0] for row in rows] == ["PyTorch, the run itself", *files]
    expected = mean_precision(run, market)
    for row in rows[:2]:
        assert float(row[1]) == pytest.approx(expected[0], abs=0.011) and row[2] == "0.00"
        assert float(row[3]) == pytest.approx(expected[1], abs=0.011)
    assert float(rows[2][2]) == pytest.approx(expected[0] - float(rows[2][1]), abs=0.011)
    assert all(float(cell) > 0 for row in rows[1:] for cell in row[4:])


@pytest.mark.usefixtures("tiny_market")
def test_mistakes_of_the_figures(run, small_run, tmp_path, capsys):
    other = load_run(small_run("SEED", "7", folder="other_run"))
    export_network(other, tmp_path / "y.onnx", precision="fp16")
    for words, message in (
            ([run, "x.onnx", "DATASETS.TESTS", "()"], "no labelled test set to measure with"),
            ([run, tmp_path / "x.onnx"], "x.onnx does not exist"),
            ([tmp_path / "absent.pth", "x.onnx"], "absent.pth is not a file"),
            ([run, tmp_path / "y.onnx"], "y.onnx was exported from another network "),
            ([run, "SEED", "1"], "give exported .onnx files first"),
            ([run, "x.onnx", "SEED"], "must come in pairs, got SEED"),
            ([run, "SEED", "x.onnx"], "give exported .onnx files first")):
        assert message in refusal(evaluate_export.main, words, capsys)
