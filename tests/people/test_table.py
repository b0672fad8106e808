"""people.csv: written, read again, and put together with new crops."""

import csv
import io
import json
import math

import numpy as np
import pytest
from caureid_plugin.clustering.tracks import Tracks
from caureid_plugin.common.errors import UserError
from caureid_plugin.people.table import (
    Crop,
    Known,
    People,
    as_csv,
    as_json,
    check_names,
    check_nobody_is_twice,
    path_in_table,
    read_known,
    with_known,
)

HEAD = "path,camera,track,seconds,person,confidence\n"


def people(persons, crops, one_place=False):
    cameras = np.unique([crop.camera for crop in crops], return_inverse=True)[1]
    tracks = Tracks.of(cameras, [crop.track or None for crop in crops],
                       [crop.seconds for crop in crops], one_place=one_place)
    count = len(tracks)
    return People(list(crops), tracks, np.array(persons), np.where(persons, 0.75, np.nan),
                  np.zeros(count, int), np.eye(count, dtype=np.float32), "run/model.pth", "f" * 32,
                  "plain", 0.5, 1, [])


CROPS = [Crop("/d/in/a,b.jpg", "north", "1", 2.5), Crop("/d/in/c.jpg", "north", "1", 1.0),
         Crop("/e/x.jpg", 'so"uth', "", math.nan)]


def test_the_table_and_the_json_hold_the_same():
    found = people([4, 0], CROPS)
    rows = list(csv.reader(io.StringIO(as_csv(found, "/d"))))
    assert rows == [["path", "camera", "track", "seconds", "person", "confidence"],
                    ["in/a,b.jpg", "north", "1", "2.5", "4", "0.750"],
                    ["in/c.jpg", "north", "1", "1", "4", "0.750"],
                    ["/e/x.jpg", 'so"uth', "", "", "", ""]]
    content = json.loads(as_json(found, "/d"))
    assert content["people"] == [{"person": 4, "tracks": [{
        "camera": "north", "track": "1", "first": 1.0, "last": 2.5, "confidence": 0.75,
        "crops": ["in/c.jpg", "in/a,b.jpg"]}]}]  # by time
    assert content["unassigned"] == [{"camera": 'so"uth', "track": None, "first": None,
                                      "last": None, "confidence": None, "crops": ["/e/x.jpg"]}]


def test_a_path_is_seen_from_the_table_where_it_lies_below():
    assert path_in_table("/d/in/a.jpg", "/d") == "in/a.jpg"
    assert path_in_table("/dd/a.jpg", "/d") == "/dd/a.jpg"
    assert path_in_table("/d/ in/a.jpg", "/d") == "/d/ in/a.jpg"  # a cell's blanks are not read


def test_times_keep_their_digits(tmp_path):
    """Of two tracks, one begins 8 ms after the other ends: rounded they would overlap."""
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.jpg").touch()
    crops = [Crop(str(tmp_path / "a.jpg"), "north", "1", 1764321234.096),
             Crop(str(tmp_path / "b.jpg"), "north", "2", 1764321234.104)]
    (tmp_path / "people.csv").write_text(as_csv(people([4, 4], crops), str(tmp_path)))
    assert [one.crop for one in read_known(tmp_path / "people.csv")] == crops


@pytest.mark.parametrize("crop", [
    Crop("/d/a.jpg", "none"), Crop("/d/a.jpg", " north"), Crop("/d/a.jpg", "north", "nan"),
    Crop("/d/a.jpg", "a\rb"), Crop("/d/\udcff.jpg", "north"), Crop("/d/a.jpg", "north", "7 ")])
def test_names_that_a_table_cannot_hold_are_refused(crop):
    check_names([Crop("/d/ü, 'x\n.jpg", "a/b c", "")])
    with pytest.raises(UserError, match="no table of people can hold: rename it"):
        check_names([crop])


def test_a_result_in_which_somebody_is_twice_is_a_bug():
    crops = [Crop("/a", "1", "a", 1.0), Crop("/b", "1", "a", 3.0), Crop("/c", "1", "b", 2.0),
             Crop("/d", "2", "a", 2.0)]
    check_nobody_is_twice(people([5, 6, 5], crops))
    with pytest.raises(RuntimeError, match="person 5 is on tracks 1/a and 1/b"):
        check_nobody_is_twice(people([5, 5, 6], crops))
    with pytest.raises(RuntimeError, match="person 5 is on tracks 1/a and 2/a"):
        check_nobody_is_twice(people([5, 6, 5], crops, one_place=True))
    check_nobody_is_twice(people([0, 0, 0], crops, one_place=True))


def known_file(tmp_path, rows):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "people.csv").write_text(HEAD + rows)
    return tmp_path / "people.csv"


def test_a_table_is_read_as_it_was_written(tmp_path):
    path = known_file(tmp_path, "a.jpg,north,1,2.5,4,0.75\nb.jpg,south,,,,\n")
    one, other = read_known(path)
    assert one == Known(Crop(str(tmp_path / "a.jpg"), "north", "1", 2.5), 4, 2)
    assert other.crop[:3] == (str(tmp_path / "b.jpg"), "south", "") and other.person == 0
    assert math.isnan(other.crop.seconds)


@pytest.mark.parametrize("rows, said", [
    ("a.jpg,north,1,2,4,\na.jpg,north,1,2,4,\n", "twice, in lines 2 and 3"),
    ("a.jpg,north,1,2,4,\nb.jpg,north,1,2,5,\n",
     "two people on track 1 of camera north: 4 in line 2, 5 in line 3"),
    ("a.jpg,north,1,2,4,\nb.jpg,north,1,2,,\n", "nobody in line 3"),
    ("a.jpg,north,1,2,x,\n", "the person x in line 2 is no whole number"),
    ("a.jpg,north,1,2,0,\n", "the person 0 in line 2"),
    (f"a.jpg,north,1,2,{'9' * 5000},\n", "is no whole number"),
    ("a.jpg,north,1,soon,4,\n", "the seconds soon in line 2"),
    ("a.jpg,north,1,2\n", "not the 6 cells"),
    ("a.jpg,,1,2,4,\n", "no camera"),
    ("", "has no rows"),
    ("gone.jpg,north,1,2,4,\n", "1 of its 1 crops are not there (line 2 is the first)"),
])
def test_a_table_that_cannot_be_is_refused(tmp_path, rows, said):
    with pytest.raises(UserError) as error:
        read_known(known_file(tmp_path, rows))
    assert said in str(error.value) and "people.csv" in str(error.value)


def test_a_file_that_is_no_such_table_is_refused(tmp_path):
    (tmp_path / "people.csv").write_text("path,camera\nx,y\n")
    with pytest.raises(UserError, match="needs the column"):
        read_known(tmp_path / "people.csv")


OLD = [Known(Crop("/d/a.jpg", "north", "1", 1.0), 4, 2)]


def test_old_and_new_crops_are_each_there_once(tmp_path):
    new = Crop("/d/b.jpg", "north", "1", 2.0)
    assert with_known([OLD[0].crop, new], OLD, tmp_path) == [OLD[0].crop, new]
    assert with_known([new._replace(track="2")], OLD, tmp_path) == [
        OLD[0].crop, new._replace(track="2")]


def test_cameras_that_differ_only_in_spelling_are_told(messages):
    with_known([Crop("/d/b.jpg", "north", "2")], OLD, None)
    assert not messages
    with_known([Crop("/d/b.jpg", "North", "2")], OLD, None)
    assert "'North' (the folder) and 'north' (--known)" in messages[-1]


@pytest.mark.parametrize("crop, said", [
    (Crop("/d/a.jpg", "south", "1", 1.0),
     "north, track 1, time 1 there, and of camera south, track 1, time 1 in the folder"),
    (Crop("/d/a.jpg", "north", "", 1.0), "of camera north, time 1 in the folder"),
    (Crop("/d/a.jpg", "north", "1", 3.0), "time 3 in the folder"),
    (Crop("/new/b.jpg", "north", "1", 9.0),
     "Camera north has a track 1 in the folder, and another in --known")])
def test_what_does_not_fit_is_refused(tmp_path, crop, said):
    with pytest.raises(UserError) as error:
        with_known([crop], OLD, tmp_path)
    assert said in str(error.value)
