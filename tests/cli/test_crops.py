"""caureid crops: what it hands over, what it says, how it ends."""

import csv
import os
import signal

import cv2
import numpy as np
import pytest
from caureid_plugin.cli import main
from caureid_plugin.cli.common import call
from caureid_plugin.cli.crops import command
from caureid_plugin.common.signals import EXIT_INTERRUPTED, EXIT_STOPPED
from caureid_plugin.video import CropChoice
from caureid_plugin.video import crops as crops_module

from helpers.tool_output import read_csv, refusal


@pytest.fixture
def videos(tmp_path, monkeypatch):
    """Two videos of 6 frames of noise, with a track each, here."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    for name in ("gate", "yard"):
        writer = cv2.VideoWriter(f"{name}.avi", cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
        for _ in range(6):
            writer.write(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        writer.release()
        with open(f"{name}.txt", "w", newline="") as file:
            csv.writer(file).writerows((frame, 1, 9 + frame, 8, 12, 30) for frame in range(1, 7))
    return tmp_path


BOTH = ["gate.avi", "yard.avi", "--tracks", "gate.txt", "yard.txt", "--camera", "gate", "yard",
        "--output", "crops", "--min-height", "20"]


def test_two_videos(videos, capsys):
    assert call(command, [*BOTH, "--start", "10", "20", "--format", "png"]) == 0
    rows = read_csv(videos / "crops" / "crops.csv")
    assert [(row["path"], row["camera"], row["track"], row["frame"], row["seconds"])
            for row in rows] == [
        (f"{camera}/1/{frame:06d}.png", camera, "1", str(frame), f"{start + (frame - 1) / 5:.3f}")
        for camera, start in (("gate", 10), ("yard", 20)) for frame in range(1, 7)]
    assert capsys.readouterr().out.splitlines() == [
        *(f"{camera} ({camera}.avi): 6 crops of 1 tracks, of 1 tracks with 6 boxes. Left out: 0 "
          "less sharp than others of their track." for camera in ("gate", "yard")),
        "crops/crops.csv: 12 crops."]


def test_every_option_arrives(videos, monkeypatch):
    given = {}
    monkeypatch.setattr(crops_module, "cut_crops",
                        lambda videos, output, choice, **rest: given.update(choice=choice, **rest))
    call(command, [*BOTH[:-2], "--every", "2", "--min-height", "30", "--min-confidence", "0.5",
                   "--max-overlap", "0.25", "--keep-border", "--max-per-track", "7", "--fps",
                   "12.5", "--first-frame", "0"])
    assert given.pop("tell") is not None
    assert given == {"choice": CropChoice(2, 30, 0.5, 0.25, True, 7), "fps": 12.5, "first_frame": 0,
                     "image_format": "jpg"}
    call(command, BOTH[:-2])
    assert given["choice"] == CropChoice() and given["fps"] is None and given["first_frame"] == 1


@pytest.mark.parametrize("words, message", [
    (["gate.avi", "--tracks", "gate.txt", "yard.txt", "--camera", "gate", "--output", "crops"],
     "1 video(s) and 2 of --tracks: give one for each video, in the order of the videos"),
    (["gate.avi", "yard.avi", "--tracks", "gate.txt", "yard.txt", "--camera", "gate", "--output",
      "crops"], "2 video(s) and 1 of --camera"),
    ([*BOTH, "--start", "5"], "2 video(s) and 1 of --start"),
    (["--tracks", "gate.txt", "gate.avi", "--camera", "gate", "--output", "crops"],
     "Missing argument 'VIDEO...'"),
    (["yard.avi", "--tracks", "yard.txt", "gate.avi", "--camera", "gate", "--output", "crops"],
     "1 video(s) and 2 of --tracks"),
    (["gate.avi", "--tracks", "none.txt", "--camera", "gate", "--output", "crops"],
     "'none.txt' does not exist"),
    ([*BOTH, "--max-overlap", "1.5"], "1.5 is not in the range"),
    ([*BOTH, "--first-frame", "2"], "2 is not in the range"),
    ([*BOTH, "--fps", "0"], "0.0 is not in the range"),
    ([*BOTH, "--min-heigth", "9"], "No such option '--min-heigth'"),
])
def test_words_that_do_not_fit(videos, words, message, capsys):
    assert message in " ".join(refusal(command, words, capsys).split())
    assert not (videos / "crops").exists()


def test_a_damaged_video_is_an_error_at_the_end(videos, capsys):
    content = (videos / "gate.avi").read_bytes()
    (videos / "gate.avi").write_bytes(content[:len(content) // 2])
    with pytest.raises(SystemExit) as leaving:
        main(["crops", *BOTH], prog_name="caureid")
    assert str(leaving.value.code).startswith("caureid crops: gate (gate.avi) is damaged: frame ")
    out = capsys.readouterr().out
    assert "yard (yard.avi): 6 crops" in out
    assert f"crops/crops.csv: {len(read_csv(videos / 'crops' / 'crops.csv'))} crops." in out


@pytest.mark.parametrize("number, code", [(signal.SIGINT, EXIT_INTERRUPTED),
                                          (signal.SIGTERM, EXIT_STOPPED)])
def test_a_signal_stops_it_and_the_same_command_goes_on(videos, number, code, monkeypatch, capsys):
    whole = crops_module.sharpness
    seen = []

    def signal_at_the_third(crop):
        seen.append(crop)
        if len(seen) == 3:
            os.kill(os.getpid(), number)
        return whole(crop)

    monkeypatch.setattr(crops_module, "sharpness", signal_at_the_third)
    with pytest.raises(SystemExit) as leaving:
        main(["crops", *BOTH], prog_name="caureid")
    assert leaving.value.code == code
    assert "Stopped; the same command goes on." in capsys.readouterr().out
    assert len(read_csv(videos / "crops" / "crops.csv")) == 3
    assert call(command, BOTH) == 0
    assert len(read_csv(videos / "crops" / "crops.csv")) == 12
