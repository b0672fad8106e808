"""The demo, the camera bias, the benchmark of searching, and how every benchmark starts."""

import json
import os
import signal
import threading
import time

import pytest
from caureid_plugin.cli import demo
from caureid_plugin.cli.common import call
from caureid_plugin.data.synthetic.dataset import render_dataset

from helpers import warm
from helpers.page import Page
from helpers.tiny import KEYS
from helpers.tool_output import is_drawn


def test_the_demo_to_its_end(tmp_path, monkeypatch, capsys):
    root, commands, output = tmp_path / "datasets", [], tmp_path / "out"
    root.mkdir()
    render_dataset(str(root / "SyntheticCameras"), train_identities=8, test_identities=3)
    monkeypatch.setenv("FASTREID_DATASETS", str(root))

    def run(*words):
        done = warm.run(["-m", "caureid_plugin", *words], tmp_path)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        commands.append(words[0])
        return 0

    output.mkdir()
    (output / "metrics.json").write_text("of an earlier demo")
    monkeypatch.setattr(demo, "_caureid", run)
    assert not call(demo.command, [
        "--output", output, "--seed", "3", *KEYS, "MODEL.HEADS.CAMSEP.NUM_CAMERAS", "6",
        "DATASETS.NAMES", "('SyntheticCameras',)", "DATASETS.TESTS", "('SyntheticCameras',)"])
    assert commands == ["train", "report"]
    assert next(output.glob("metrics-until-*.json")).read_text() == "of an earlier demo"

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    for start, end, form in (
            ("start/mAP", "mAP", "mAP (%) {:.1f} {:.1f}"),
            ("start/Rank-1", "Rank-1", "Rank-1 (%) {:.1f} {:.1f}"),
            ("labels/clusters", "labels/clusters", "clusters {:.0f} {:.0f}"),
            ("labels/outliers", "labels/outliers", "outliers {:.0f} {:.0f}")):
        first = next(row[start] for row in rows if start in row)
        last = [row[end] for row in rows if end in row][-1]
        assert form.format(first, last).split() in lines
    assert next(float(line[1]) for line in lines if line[:1] == ["seconds"]) >= 0
    assert lines[-1][-1] == (output / "report.html").as_uri()

    page = Page(output / "report.html")
    pictures = len(list((root / "SyntheticCameras" / "bounding_box_train").glob("*.jpg")))
    assert (f"SyntheticCameras: {pictures} images of 6 cameras. Finished: 2 of 2 epochs."
            in page.text)
    assert page.source.count("<svg") >= 4 and page.source.count("data:image/") > 10
    assert is_drawn(output / "people.png")
    assert "SEED: 3" in (output / "config.yaml").read_text()


def test_a_demo_whose_training_fails_ends_with_its_status(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_caureid", lambda *words: 3)
    assert call(demo.command, ["--output", tmp_path]) == 3


WAITING = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
pathlib.Path("waits").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGHUP, 129)])
def test_a_signal_reaches_the_training_of_the_demo(tmp_path, monkeypatch, number, code):
    """It ends with its own exit code, or as the signal ends it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "caureid_plugin.py").write_text(WAITING)  # python -m finds it first
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def send():
        while not (tmp_path / "waits").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    assert demo._caureid("train") == code
    thread.join()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
