"""The tool that kills a run and looks for leaks, on small runs; what it must find, it finds."""

import copy
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

TOOL = Path(__file__).resolve().parents[2] / "tools" / "check_reliability.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("check_reliability", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_killed_runs_go_on_as_if_nothing_had_been(tool, tmp_path, capsys):
    output = tmp_path / "kills"
    assert tool.main(["kills", "--kills", "2", "--epochs", "8", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "kill  2:" in printed and "OK: 2 kills" in printed
    written = json.loads((output / "kills.json").read_text())
    assert len(written["kills"]) == 2 and written["differences"] == []
    assert (output / "kills.png").stat().st_size > 1000
    # the same comparison sees one weight, one label, one row
    saved = tool.load(output / "killed" / "model_final.pth")
    metrics = (output / "killed" / "metrics.json").read_text()
    for change, name in ((_weight, "/model/heads.camera_classifier.weight"),
                         (_label, "/memory_bank/labels")):
        changed = copy.deepcopy(saved)
        change(changed)
        torch.save(changed, output / "killed" / "model_final.pth")
        assert tool.compare(output / "whole", output / "killed") == [name]
    torch.save(saved, output / "killed" / "model_final.pth")
    rows = metrics.splitlines()
    for wrong, found in (([*rows, rows[-1]], f"{len(rows) + 1} rows instead of {len(rows)}"),
                         ([*rows[:-1], rows[-1].replace('"iteration": ', '"iteration": 1')],
                          f"metrics.json row {len(rows) - 1}")):
        (output / "killed" / "metrics.json").write_text("\n".join(wrong))
        (difference,) = tool.compare(output / "whole", output / "killed")
        assert found in difference


def _weight(saved):
    saved["model"]["heads.camera_classifier.weight"][0, 0] += 1e-7


def _label(saved):
    saved["memory_bank"]["labels"][5] += 1


def sample(**changed):
    return {"processes": 1, "threads": 4, "files": 18, "memory": 900.0, **changed}


@pytest.mark.parametrize("last, after, found", [
    ({}, {"processes": 0}, None),
    ({"processes": 2}, {"processes": 0}, "processes: 1 after epoch 3, at least 2"),
    ({"threads": 5}, {"processes": 0}, "threads: 4 after epoch 3, at least 5"),
    ({"files": 19}, {"processes": 0}, "files: 18 after epoch 3, at least 19"),
    ({"memory": 911.0}, {"processes": 0}, "memory grew by 11.0 MiB"),
    ({"memory": 909.0}, {"processes": 0}, None),
    ({}, {}, "1 processes outlive the training"),
])
def test_a_leak_is_found(tool, tmp_path, capsys, last, after, found):
    options = tool.parse(["leaks", "--output", str(tmp_path / "leaks")])
    options.output.mkdir()
    samples = [sample(threads=9, memory=100.0), sample(), sample(), sample(), sample(**last)]
    assert tool.report_leaks(options, samples, sample(**after)) is (found is None)
    assert (found or "OK: 5 epochs") in capsys.readouterr().out
    assert (tmp_path / "leaks" / "leaks.png").stat().st_size > 1000


@pytest.mark.parametrize("arguments, message", [
    (["kills", "--epochs", "3"], "--epochs 3 must be at least 4"),
    (["kills", "--kills", "0"], "--kills 0 must be at least 1"),
    (["leaks", "--output", "{there}"], "is there already"),
    (["leaks", "--output", "{there}/0001_c1"], "looks like the name of an image"),
    (["neither"], "invalid choice"),
])
def test_bad_arguments(tool, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        tool.main([argument.format(there=tmp_path) for argument in arguments])
    assert message in capsys.readouterr().err
