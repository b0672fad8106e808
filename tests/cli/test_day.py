"""The commands of docs/day.md, one after the other, on a smaller day."""

import csv
import functools
import itertools
import re
import shlex
from collections import defaultdict
from pathlib import Path

import pytest
from caureid_plugin.cli import demo
from caureid_plugin.cli.common import call
from caureid_plugin.data.synthetic import video

from helpers import warm
from helpers.page import Page
from helpers.tool_output import is_drawn

ROOT = Path(__file__).resolve().parents[2]
TINY = dict(people=8, seconds=21, size=(160, 240))
TRAINING = """MODEL.BACKBONE.FEAT_DIM 64 INPUT.SIZE_TRAIN [32,16] INPUT.SIZE_TEST [32,16]
SOLVER.MAX_EPOCH 2 SOLVER.ITERS_PER_EPOCH 15 SOLVER.STEPS [1] SOLVER.IMS_PER_BATCH 32""".split()


def commands():
    """Words of each command line of the document."""
    text = (ROOT / "docs" / "day.md").read_text().replace("\\\n", " ")
    lines = re.findall(r"^    caureid ([a-z]+ .+)", text, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def tracks_of(rows):
    """{(camera, track): (person, first, last second)} of a table of people."""
    seen = defaultdict(list)
    for row in rows:
        seen[row["camera"], row["track"]].append((float(row["seconds"]), int(row["person"] or 0)))
    assert all(len({person for _, person in found}) == 1 for found in seen.values())
    return {key: (found[0][1], min(found)[0], max(found)[0]) for key, found in seen.items()}


def assert_nobody_is_twice_at_one_time(rows):
    """In any two cameras, since --apart-cameras is given, or in one."""
    people = defaultdict(list)
    for person, first, last in tracks_of(rows).values():
        people[person].append((first, last))
    people.pop(0, None)
    for times in people.values():
        for (_, last), (first, _) in itertools.pairwise(sorted(times)):
            assert last < first


def assert_is_numbered_anew(path, tracks):
    """The boxes are the tracker's, and no id is twice in a frame."""
    own, others = ([line.split(",") for line in file.read_text().splitlines()]
                   for file in (path, tracks))
    assert [line[:1] + line[2:] for line in own] == [line[:1] + line[2:] for line in others]
    assert len({tuple(line[:2]) for line in own}) == len(own)


def is_page_of(people):
    """Whether the page has each person."""
    text = Page(Path("people.html")).text
    return all(f"Person {number} " in text for number in {row["person"] for row in people} - {""})


@pytest.mark.slow
def test_the_day(tmp_path, monkeypatch):
    day = commands()
    assert [words[0] for words in day] == [
        "demo", "crops", "check", "train", "report", "threshold", "people", "people", "index",
        "search"]

    def run(words):
        done = warm.run(["-m", "caureid_plugin", *words], tmp_path)
        assert done.returncode == 0, (words, done.stdout[-3000:], done.stderr[-3000:])
        return done.stdout

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(video, "render_videos", functools.partial(video.render_videos, **TINY))
    assert not call(demo.command, day[0][1:])
    cameras = ["brick", "lawn", "fence"]
    assert {path.name for path in Path("videos").iterdir()} == {
        "truth.csv", *(f"{name}.{kind}" for name in cameras for kind in ("mp4", "txt"))}

    run(day[1])
    crops = rows_of("crops/crops.csv")
    assert {row["camera"] for row in crops} == set(cameras)
    assert all((tmp_path / "crops" / row["path"]).is_file() for row in crops)

    run([*day[2], *TRAINING])
    assert "3 cameras" in Page(tmp_path / "check.html").text
    run([*day[3], *TRAINING])
    assert (tmp_path / "run" / "model_final.pth").is_file()
    run(day[4])
    assert "Finished: 2 of 2 epochs." in Page(tmp_path / "run" / "report.html").text
    run(day[5])

    # two epochs may end in any way
    said = run([*day[6], "--despite-verdict"])
    table = re.search(r"^people +([0-9.]+) ", said, re.MULTILINE)
    assert table and 0 < float(table[1]) <= 100
    people = rows_of("people.csv")
    assert len(people) == len(crops)
    assert_nobody_is_twice_at_one_time(people)
    for name in cameras:
        assert_is_numbered_anew(Path(f"people_{name}.txt"), Path("videos", f"{name}.txt"))
    assert is_page_of(people)

    # a track is taken off its person
    of_track = tracks_of(people)
    persons = defaultdict(list)
    for key, (person, *_) in of_track.items():
        persons[person].append(key)
    person, (camera, track) = next((person, keys[0]) for person, keys in sorted(persons.items())
                                   if person and len(keys) > 1)
    Path("corrections.csv").write_text(f"action,a,b\nsplit,{person},{camera}/{track}\n")
    run([*day[7], "--despite-verdict"])
    corrected = rows_of("corrected.csv")
    assert_nobody_is_twice_at_one_time(corrected)
    changed = {key for key, (person, *_) in tracks_of(corrected).items()
               if person != of_track[key][0] and of_track[key][0]}
    assert changed == {(camera, track)}

    run(day[8])
    query = f"crops/{crops[0]['path']}"
    said = run([query if word.endswith(".jpg") else word for word in day[9]])
    assert query in said and is_drawn(tmp_path / "found.png")
