"""Joins and splits are obeyed, and what contradicts itself is named by its lines."""

import itertools

import numpy as np
import pytest
from caureid_plugin.common.errors import UserError
from caureid_plugin.people.corrections import facts, read_corrections
from caureid_plugin.people.table import Crop

# tracks 0 to 5; the last is a crop without one
CROPS = [Crop("/d/a.jpg", "north", "1"), Crop("/d/b.jpg", "north", "2"),
         Crop("/d/c.jpg", "south", "1"), Crop("/d/d.jpg", "south", "2"),
         Crop("/d/e.jpg", "west", "1"), Crop("/d/f.jpg", "west")]
PERSONS = np.array([3, 7, 3, 0, 7, 0])


def obeyed(tmp_path, text, persons=PERSONS, pairs=(), crops=CROPS):
    path = tmp_path / "corrections.csv"
    path.write_text("action,a,b\n" + text)
    return facts(crops, np.arange(len(crops)), np.asarray(persons), list(pairs),
                 read_corrections(path), path)


def numbers(found):
    """The person on each track: None: not known, 0: one without a number."""
    return [found.numbers[group] if group >= 0 else None for group in found.group.tolist()]


def test_without_corrections_the_table_holds(tmp_path):
    found = obeyed(tmp_path, "")
    assert numbers(found) == [3, 7, 3, None, 7, None] and found.apart == []


def test_a_join_of_two_people_keeps_the_lower_number(tmp_path):
    assert numbers(obeyed(tmp_path, "join,7,3\n")) == [3, 3, 3, None, 3, None]


def test_a_join_of_tracks_and_of_a_crop_without_one(tmp_path):
    assert numbers(obeyed(tmp_path, "join,south/2,7\njoin,/d/f.jpg,3\n")) == [3, 7, 3, 7, 7, 3]
    (tmp_path / "x").mkdir()
    crops = [*CROPS[:5], Crop(str(tmp_path / "x" / "f.jpg"), "west")]
    found = obeyed(tmp_path, "join,south/2,x/f.jpg\n", crops=crops)
    assert numbers(found) == [3, 7, 3, 0, 7, 0] and found.group[3] == found.group[5]


@pytest.mark.parametrize("line, left", [
    ("split,3,south/1", 2), ("split,south/1,3", 2), ("split,north/1,south/1", 2),
    ("split,south/1,north/1", 0)])
def test_a_split_takes_the_track_off_its_person(tmp_path, line, left):
    found = obeyed(tmp_path, line + "\n")
    expected = [3, 7, 3, None, 7, None]
    expected[left] = None
    assert numbers(found) == expected
    assert np.flatnonzero(found.left).tolist() == [left]
    assert [set(pair) for pair in found.apart] == [{0, 2}]


def test_a_track_moves_to_another_person(tmp_path):
    found = obeyed(tmp_path, "split,3,south/1\njoin,7,south/1\n")
    assert numbers(found) == [3, 7, 7, None, 7, None]


def test_tracks_of_nobody_are_kept_apart(tmp_path):
    found = obeyed(tmp_path, "split,south/2,/d/f.jpg\n")
    assert found.apart == [(3, 5)] and not found.left.any()


@pytest.mark.parametrize("text, said", [
    ("join,3,7\nsplit,north/1,3\njoin,north/1,7\n",
     "line 3 (split,north/1,3) splits what line(s) 2, 4 join"),
    ("join,3,7\nsplit,3,north/2\n",
     "(split,3,north/2): they are not joined in --known: one is person 3, the other 7"),
    ("split,3,south/2\n", "one is person 3, the other nobody"),
    ("split,3,7\n", "line 2 (split,3,7): two people are apart already"),
    ("join,3,4\n", "line 2: no person 4 is in --known"),
    ("join,3,east/1\n", "line 2: east/1 names 0 tracks"),
    ("join,north/1,north/1\n", "line 2 (join,north/1,north/1): both are the same"),
    ("merge,3,7\n", "the action merge in line 2"),
    ("join,3\n", "1 of 2 rows have not the 3 cells"),
    ("join,3,\n", "line 2 needs a person or track"),
    ("join,3,99999999999\n", "99999999999 names 0 tracks"),
])
def test_contradictions_are_named_by_their_lines(tmp_path, text, said):
    with pytest.raises(UserError) as error:
        obeyed(tmp_path, text)
    assert said in str(error.value) and "corrections.csv" in str(error.value)


def test_a_join_of_tracks_at_one_time_is_named(tmp_path):
    with pytest.raises(UserError, match=r"line\(s\) 2 join north/1 and north/2, which are in one "
                       "camera at one time: they are two people.$"):
        obeyed(tmp_path, "join,3,7\n", pairs=[(0, 1)])
    with pytest.raises(UserError, match="person 3 on north/1 and south/1, which are in two cameras "
                       "at one time .*made without --apart-cameras .*split,north/1,south/1$"):
        obeyed(tmp_path, "", pairs=[(0, 2)])
    same = [3, 3, 0, 0, 0, 0]
    with pytest.raises(UserError, match="person 3 on north/1 and north/2, which are in one camera "
                       "at one time: they are two people. A line"):
        obeyed(tmp_path, "", same, pairs=[(0, 1)])
    with pytest.raises(UserError, match="in one frame of a --mot file: they are two people. A "
                       "table made without --mot may have this. .*split,north/1,north/2$"):
        facts(CROPS, np.arange(6), np.array(same), [], in_frames=[(0, 1)])
    assert facts(CROPS, np.arange(6), PERSONS, [], in_frames=[(3, 5)]).apart == [(3, 5)]
    assert numbers(obeyed(tmp_path, "split,north/1,south/1\n", pairs=[(0, 2)]))[2] is None


def test_a_name_of_two_tracks_is_refused(tmp_path):
    crops = [Crop("/d/a.jpg", "a", "b/c"), Crop("/d/b.jpg", "a/b", "c")]
    with pytest.raises(UserError, match="a/b/c names 2 tracks"):
        obeyed(tmp_path, "join,a/b/c,1\n", [1, 0], crops=crops)


@pytest.mark.parametrize("content, said", [
    (b"", "is empty"), (b"a,b,action\n", "needs the first line action,a,b"),
    (b"action,a,b\n\xff", "damaged or no CSV file"), (b'action,a,b\n"x', "damaged or no CSV file")])
def test_a_damaged_file_is_refused(tmp_path, content, said):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_corrections(tmp_path / "x.csv")


def test_random_corrections_are_obeyed_or_refused(tmp_path):
    """Whatever is said: joins hold, splits hold, and nobody is twice at one time."""
    names = ["3", "7", *(f"{crop.camera}/{crop.track}" if crop.track else crop.path
                         for crop in CROPS)]
    rng = np.random.default_rng(0)
    obeyed_calls = 0
    for _ in range(300):
        lines = [(rng.choice(["join", "split"]), *rng.choice(names, 2))
                 for _ in range(rng.integers(1, 4))]
        pairs = [pair for pair in itertools.combinations(range(6), 2) if rng.random() < 0.05]
        try:
            found = obeyed(tmp_path, "".join(",".join(line) + "\n" for line in lines), pairs=pairs)
        except UserError:
            continue
        obeyed_calls += 1
        who = found.group
        assert not [pair for pair in pairs if who[pair[0]] == who[pair[1]] >= 0]
        assert not [pair for pair in found.apart if who[pair[0]] == who[pair[1]] >= 0]
        for action, a, b in lines:
            if action == "join" and not {a, b} & {"3", "7"}:
                one, other = (names.index(word) - 2 for word in (a, b))
                assert who[one] == who[other] >= 0
    assert obeyed_calls > 60
