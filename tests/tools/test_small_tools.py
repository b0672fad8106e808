"""The small tools: the demo's table, the camera bias."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def _tool(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ROWS = [
    {"iteration": 0, "start/mAP": 10.25, "start/Rank-1": 20.0},
    {"iteration": 0, "labels/clusters": 5.0, "labels/outliers": 90.0, "labels/largest": 9.0},
    {"iteration": 49, "mAP": 30.0, "Rank-1": 41.0, "loss_infonce": 3.0, "loss_camsep": 0.7,
     "loss_cacc": 4.0},
    {"iteration": 50, "labels/clusters": 8.0, "labels/outliers": 12.0, "labels/largest": 8.0},
    {"iteration": 99, "mAP": 55.55, "Rank-1": 66.0, "loss_infonce": 2.0, "loss_camsep": 0.5,
     "loss_cacc": 3.0},
]


def test_demo_table_has_the_first_and_the_last_values(tmp_path):
    (tmp_path / "metrics.json").write_text("\n".join(json.dumps(row) for row in ROWS))
    lines = [line.split() for line in _tool("demo").report(tmp_path, 123.4, tmp_path).splitlines()]
    assert ["mAP", "(%)", "10.2", "55.5"] in lines or ["mAP", "(%)", "10.2", "55.6"] in lines
    assert ["Rank-1", "(%)", "20.0", "66.0"] in lines
    assert ["clusters", "5", "8"] in lines and ["outliers", "90", "12"] in lines
    assert ["seconds", "123"] in lines
    assert any(str(tmp_path.resolve()) in line for line in lines)
    assert lines[-1][-1] == (tmp_path / "report.html").resolve().as_uri()


def test_demo_trains_and_then_makes_the_report(tmp_path, monkeypatch, capsys):
    demo, calls = _tool("demo"), []

    def run(command, check):
        calls.append(command[1:])
        if "train_net.py" in command[1]:
            (tmp_path / "metrics.json").write_text("\n".join(json.dumps(row) for row in ROWS))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(demo.subprocess, "run", run)
    monkeypatch.setattr(
        sys, "argv", ["demo.py", "--output", str(tmp_path), "TEST.EVAL_PERIOD", "1"])
    demo.main()
    scripts = [Path(script).name for script, *_ in calls]
    assert scripts == ["train_net.py", "show_synthetic.py", "report.py"]
    assert calls[0][-2:] == ["TEST.EVAL_PERIOD", "1"] and calls[2][1:] == [str(tmp_path)]
    assert capsys.readouterr().out.rstrip().endswith("report.html")


@pytest.mark.parametrize("seed", range(3))
def test_camera_shares_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(40, 6)).astype(np.float32)
    camids = rng.integers(3, size=40)
    features[:, 0] += camids
    shared, total = 0, 0
    for i in range(40):
        distance = ((features - features[i]) ** 2).sum(axis=1)
        distance[i] = np.inf
        nearest = np.argsort(distance)[:5]
        shared += (camids[nearest] == camids[i]).sum()
        total += 5
    pairs = [(i, j) for i in range(40) for j in range(40) if i != j]
    chance = np.mean([camids[i] == camids[j] for i, j in pairs])
    measured = _tool("camera_bias").camera_shares(torch.from_numpy(features), camids, 5)
    assert measured == pytest.approx((shared / total, chance))
