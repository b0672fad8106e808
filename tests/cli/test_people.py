"""caureid people as it is called: on a tiny run, from crops to tables."""

import csv
import itertools
import json
import math
import os
import re
import sys

import numpy as np
import pytest
from caureid_plugin.cli.common import call
from caureid_plugin.cli.people import command
from caureid_plugin.people import find_people
from caureid_plugin.people import start as start_module
from PIL import Image

from helpers.page import Page
from helpers.tool_output import refusal

KEYS = ["CAMERA_FOLDER.CAMERA", "folder", "CAMERA_FOLDER.TRACK", "pattern", "CAMERA_FOLDER.TIME",
        "pattern", "CAMERA_FOLDER.TRACK_PATTERN", r"t(?P<track>\d+)_f(?P<time>\d+)"]
COLOURS = np.random.default_rng(7).uniform(20, 235, size=(6, 2, 3))


def write_footage(folder, tracks, start=0):
    """Crops of (camera, track, person, first frame), three frames each; gives the folder."""
    rng = np.random.default_rng(start)
    for camera, track, person, first in tracks:
        (folder / camera).mkdir(parents=True, exist_ok=True)
        for frame in range(first, first + 3):
            image = np.empty((32, 16, 3))
            image[:16], image[16:] = COLOURS[person]
            image += rng.normal(scale=8.0, size=image.shape)
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(
                folder / camera / f"{person}_t{track}_f{frame}.png")
    return folder


# every person in both cameras, the times of some overlap
DAY = [("north", n, n, 5 * (n // 2)) for n in range(6)] + [
    ("south", n, n, 5 * (n // 3)) for n in range(6)]


@pytest.fixture
def crops(tmp_path):
    return write_footage(tmp_path / "crops", DAY)


@pytest.fixture
def people(small_run, crops, tmp_path, capsys):
    """Calls the command; gives the rows of its table, and what it printed."""
    run = small_run()

    def call_with(*words, folder=crops, output="people.csv", code=0):
        # click's exit code is given by call
        assert (call(command, [run, folder, "--output", tmp_path / output, *words, *KEYS])
                or 0) == code
        with open(tmp_path / output, newline="") as file:
            return list(csv.DictReader(file)), capsys.readouterr()

    def refused(folder, *words):
        text = refusal(command, [run, folder, "--output", tmp_path / "never.csv", *words], capsys)
        assert not (tmp_path / "never.csv").exists()
        return text

    call_with.run, call_with.refused = run, refused
    return call_with


def of_tracks(rows):
    return {(row["camera"], row["track"]): row["person"] for row in rows}


def assert_nobody_is_twice(rows, one_place=False):
    spans = {}
    for row in rows:
        if row["person"]:
            key = row["person"], "" if one_place else row["camera"]
            spans.setdefault(key, {}).setdefault((row["camera"], row["track"]), []).append(
                float(row["seconds"]))
    for tracks in spans.values():
        ordered = sorted((min(times), max(times)) for times in tracks.values())
        assert all(a[1] < b[0] for a, b in itertools.pairwise(ordered))


def test_the_table_the_page_and_the_json_are_of_one_result(people, tmp_path):
    rows, said = people("--page", tmp_path / "p.html", "--json", tmp_path / "p.json")
    assert len(rows) == 36 and all(len(row) == 6 for row in rows)
    assert_nobody_is_twice(rows)
    numbers = {int(row["person"]) for row in rows if row["person"]}
    assert numbers == set(range(1, max(numbers) + 1))
    assert all(0 <= float(row["confidence"]) <= 1 for row in rows if row["person"])
    content = json.loads((tmp_path / "p.json").read_text())
    told = {(track["camera"], track["track"]): str(person["person"])
            for person in content["people"] for track in person["tracks"]}
    told |= {(track["camera"], track["track"]): "" for track in content["unassigned"]}
    assert told == of_tracks(rows)
    assert len([name for name in Page(tmp_path / "p.html").ids if name.startswith("person-")]
               ) == len(numbers)
    assert f"{len(numbers)} people, " in said.out and "36 crops of 12 tracks" in said.out
    assert f"{sum(not person for person in told.values())} tracks (" in said.out


def test_apart_cameras_are_one_place(people):
    rows, _ = people("--apart-cameras")
    assert_nobody_is_twice(rows, one_place=True)


def test_from_python_it_is_the_same(people, crops):
    rows, _ = people()
    found = find_people(people.run, crops, opts=KEYS)
    assert [int(row["person"] or 0) for row in rows] == found.persons[
        found.tracks.of_image].tolist()


def test_known_people_keep_their_numbers(people, tmp_path):
    before, _ = people()
    more = write_footage(tmp_path / "more", [("north", 100 + n, n, 40) for n in (0, 3)], start=1)
    after, said = people("--known", tmp_path / "people.csv", folder=more, output="second.csv")
    old, new = of_tracks(before), of_tracks(after)
    assert len(after) == len(before) + 6 and len(new) == len(old) + 2
    assert all(new[track] == person for track, person in old.items() if person)
    assert_nobody_is_twice(after)
    assert "were known" in said.out
    again, _ = people("--known", tmp_path / "second.csv", folder=more, output="second.csv")
    assert {track: person for track, person in new.items() if person}.items() <= of_tracks(
        again).items()


def test_corrections_are_obeyed_and_nothing_is_written_where_they_contradict(people, tmp_path):
    before, _ = people()
    found = of_tracks(before)
    person = next(p for p in found.values() if list(found.values()).count(p) > 1 and p)
    leaves = next(track for track, p in found.items() if p == person)
    other = next(p for track, p in found.items() if p not in ("", person) and not_at_one_time(
        before, track, leaves))
    table = ["--known", tmp_path / "people.csv", "--corrections", tmp_path / "c.csv"]
    (tmp_path / "c.csv").write_text(f"action,a,b\nsplit,{person},{'/'.join(leaves)}\n")
    after = of_tracks(people(*table, output="second.csv")[0])
    assert after[leaves] not in ("", person)
    assert all(after[track] == p for track, p in found.items() if p and track != leaves)
    (tmp_path / "c.csv").write_text(f"action,a,b\njoin,{person},{other}\nsplit,{person},"
                                    f"{'/'.join(leaves)}\njoin,{'/'.join(leaves)},{other}\n")
    assert "splits what line(s) 2, 4 join" in people.refused(tmp_path / "crops", *table, *KEYS)


def not_at_one_time(rows, one, other):
    times = [[float(row["seconds"]) for row in rows if (row["camera"], row["track"]) == track]
             for track in (one, other)]
    return one[0] != other[0] or max(times[0]) < min(times[1]) or max(times[1]) < min(times[0])


def test_mot_files_get_person_numbers(people, tmp_path):
    (tmp_path / "north.txt").write_text("".join(
        f"{frame},{track},1,2,3,4,1,-1,-1,-1\n" for frame in range(3) for track in range(7)))
    rows, _ = people("--mot", tmp_path / "north.txt")
    found = of_tracks(rows)
    lines = [line.split(",") for line in (tmp_path / "people_north.txt").read_text().split()]
    highest = max(int(person) for person in found.values() if person)
    for track in range(7):
        numbers = {line[1] for place, line in enumerate(lines) if place % 7 == track}
        assert len(numbers) == 1
        person = found.get(("north", str(track)))
        assert numbers == {person} if person else int(numbers.pop()) > highest
    for frame in range(3):  # all are in each frame, so that no number is twice
        assert len({line[1] for line in lines[7 * frame:7 * frame + 7]}) == 7


def write_crops_table(folder):
    """crops.csv of some footage, as caureid crops writes it."""
    found = [(path, *re.search(r"t(\d+)_f(\d+)", path.name).groups())
             for path in sorted(folder.rglob("*.png"))]
    (folder / "crops.csv").write_text("path,camera,track,frame,seconds\n" + "".join(
        f"{path.relative_to(folder)},{path.parent.name},{track},{frame},{frame}.000\n"
        for path, track, frame in found))


def test_the_table_of_crops_is_read_unless_keys_say_else(people, crops, tmp_path, capsys):
    by_keys, _ = people()
    write_crops_table(crops)
    words = [people.run, crops, "--output", tmp_path / "short.csv"]
    assert not call(command, words)
    with open(tmp_path / "short.csv", newline="") as file:
        assert list(csv.DictReader(file)) == by_keys
    assert not call(command, [*words, "CAMERA_FOLDER.TIME", "none"])
    with open(tmp_path / "short.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert not any(row["seconds"] for row in rows) and all(row["track"] for row in rows)
    assert len(find_people(people.run, crops, opts=["CAMERA_FOLDER.CAMERA", "none"]).tracks) == 36
    (crops / "crops.csv").unlink()
    (crops / ".crops.json").touch()
    assert "caureid crops was stopped" in people.refused(crops)


def test_what_is_read_is_not_written_over(people, crops, tmp_path, capsys):
    write_crops_table(crops)
    (tmp_path / "people_t.csv").write_text("frame,id\n1,1\n")
    (tmp_path / "t.csv").write_text("frame,id\n1,1\n")
    (tmp_path / "c.csv").write_text("action,a,b\n")
    for output, words, option in [
            (crops / "crops.csv", [], "--output"),
            (tmp_path / "c.csv", ["--corrections", tmp_path / "c.csv"], "--output"),
            (tmp_path / "t.csv", ["--truth", tmp_path / "t.csv"], "--output"),
            (tmp_path / "t.csv", ["CAMERA_FOLDER.CSV", tmp_path / "t.csv"], "--output"),
            (tmp_path / "people.csv", ["--mot", f"north={tmp_path / 't.csv'}",
                                       f"south={tmp_path / 'people_t.csv'}"], "--mot"),
            (tmp_path / "people.csv", ["--known", tmp_path / "people_t.csv", "--mot",
                                       f"north={tmp_path / 't.csv'}"], "--mot")]:
        before = {path: path.read_text() for path in [*tmp_path.glob("*.csv"), crops / "crops.csv"]}
        said = refusal(command, [people.run, crops, "--output", output, *words], capsys)
        assert f"{option} would write" in said and "another name" in said
        assert before == {path: path.read_text() for path in before}


def test_a_track_file_numbers_only_tracks_of_the_folder(people, tmp_path):
    """Another day's track of that name is somebody else."""
    people()
    more = write_footage(tmp_path / "more", [("north", 100, 0, 40)], start=1)
    (tmp_path / "north.txt").write_text("40,100,1,2,3,4\n40,0,1,2,3,4\n")
    known = ["--known", tmp_path / "people.csv", "--mot", tmp_path / "north.txt"]
    rows, _ = people(*known, folder=more, output="second.csv")
    ids = [line.split(",")[1] for line in (tmp_path / "second_north.txt").read_text().split()]
    found = of_tracks(rows)
    assert found["north", "0"]  # known, of the other day
    highest = max(int(person) for person in found.values() if person)
    assert int(ids[1]) > highest and ids[0] in (found["north", "100"], str(highest + 1))
    (tmp_path / "north.txt").write_text("40,0,1,2,3,4\n")
    assert "is a track of camera north in the folder" in people.refused(more, *known, *KEYS)


def test_a_crop_that_cannot_be_read_still_tells_how_long_its_track_is(people, crops):
    for name in ("0_t0_f2.png", "1_t1_f0.png"):
        (crops / "north" / name).write_bytes(b"no image")
    found = find_people(people.run, crops, opts=KEYS)
    number = found.by_name["north", "0"]
    assert found.tracks.lengths[number] == 2
    assert (found.tracks.first[number], found.tracks.last[number]) == (0, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="file systems that take any bytes")
def test_a_name_that_no_table_can_hold_is_refused_before_the_work(people, crops, monkeypatch):
    (crops / "north").rename(crops / "none")
    monkeypatch.setattr(start_module, "load_run", None)
    assert "The camera 'none' of" in people.refused(crops, *KEYS)
    (crops / "none").rename(crops / os.fsdecode(b"n\xff"))
    assert "are not UTF-8" in people.refused(crops, *KEYS)


def test_truth_is_read_first_and_what_fits_nothing_loses_no_table(people, crops, tmp_path, capsys,
                                                                  monkeypatch):
    (tmp_path / "truth.csv").write_text("camera,track,identity\nwest,1,ann\n")
    words = [people.run, crops, "--output", tmp_path / "p.csv", *KEYS, "--truth"]
    assert "none of the 36 crops" in refusal(command, [*words, tmp_path / "truth.csv"], capsys)
    assert (tmp_path / "p.csv").exists()
    monkeypatch.setattr(start_module, "find_people", None)
    assert "has 0 groups" in refusal(command, [*words, "typo.csv"], capsys)


def test_truth_is_measured_and_changes_nothing(people):
    before, _ = people()
    rows, said = people("--truth", r"/(\d)_t")
    assert rows == before
    assert "36 of 36 crops of 6 identities" in said.out
    assert said.out.count("the plain way") == 2 and "IDF1" in said.out


def test_without_times_it_works_and_warns(people, crops, messages):
    found = find_people(people.run, crops,
                        opts=[*KEYS, "CAMERA_FOLDER.TIME", "none", "CAMERA_FOLDER.TRACK_PATTERN",
                              r"t(?P<track>\d+)"])
    assert np.isnan(found.tracks.first).all()
    assert any("12 of 12 tracks have no time" in text for text in messages)


def test_a_run_without_a_threshold_is_refused(people, crops, monkeypatch):
    load = start_module.load_run

    def without(run):
        embedder = load(run)
        embedder.statistics, embedder.why_no_statistics = None, "none is known"
        return embedder

    monkeypatch.setattr(start_module, "load_run", without)
    said = people.refused(crops, *KEYS)
    assert str(people.run) in said and "caureid threshold (none is known)" in said


def test_a_crop_that_cannot_be_read_is_named_and_left_out(people, crops):
    (crops / "north" / "9_t9_f1.png").write_bytes(b"no image")
    rows, said = people(code=1)
    assert len(rows) == 36 and "9_t9_f1.png" in said.err
    for path in crops.rglob("*.png"):
        path.write_bytes(b"no image")
    assert "None of the 37 crops can be read" in people.refused(crops, *KEYS)


def test_one_crop_has_no_person(people, tmp_path):
    (tmp_path / "one" / "north").mkdir(parents=True)
    Image.new("RGB", (16, 32)).save(tmp_path / "one" / "north" / "0_t0_f0.png")
    rows, said = people(folder=tmp_path / "one")
    assert [row["person"] for row in rows] == [""] and "0 people" in said.out


def test_what_cannot_be_used_is_said(people, crops, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no image" in people.refused(tmp_path / "empty", *KEYS)
    assert "SOLVER.MAX_EPOCH is no key of this command" in people.refused(
        crops, "SOLVER.MAX_EPOCH", "3")
    assert "CAUREID.CLUSTER.EPS" in people.refused(crops, *KEYS, "CAUREID.CLUSTER.EPS", "1.5")
    (tmp_path / "loose").mkdir()
    (crops / "north" / "0_t0_f0.png").rename(tmp_path / "loose" / "0_t0_f0.png")
    assert "Put each camera's images into a folder of its own" in people.refused(
        tmp_path / "loose", *KEYS)
    (tmp_path / "k.csv").write_text("path,camera,track,seconds,person\nx.png,north,1,2,3\n")
    assert "crops are not there" in people.refused(crops, "--known", tmp_path / "k.csv", *KEYS)


def test_a_bad_run_is_refused_unless_it_is_wanted(people, crops, monkeypatch):
    load = start_module.load_run

    def bad(run):
        embedder = load(run)
        embedder.verdict = embedder.verdict._replace(level="bad", reason="it went wrong")
        return embedder

    monkeypatch.setattr(start_module, "load_run", bad)
    assert "--despite-verdict shows it" in people.refused(crops, *KEYS)
    assert len(find_people(people.run, crops, opts=KEYS, despite_verdict=True).crops) == 36


def test_a_run_reads_the_folder_as_it_read_its_own(small_run, crops):
    run = small_run("DATASETS.NAMES", "('CameraFolder',)", "DATASETS.TESTS", "()", *KEYS,
                    folder="own")
    found = find_people(run, crops)
    assert len(found.tracks) == 12 and not math.isnan(found.crops[0].seconds)
