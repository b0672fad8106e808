"""MOT files with person numbers, and what they say of who is apart."""

import pytest
from caureid_plugin.common.errors import UserError
from caureid_plugin.people.mot import numbered, read_mot, tracks_of

TEXT = "1,4,10.5,20,30,60,0.9,-1,-1,-1\n1,7,1,2,3,4,1,-1,-1,-1\n2,4,1,2,3,4,1\n3,-1,1,2,3,4,1\n"


def test_ids_become_numbers_and_the_rest_stays(tmp_path):
    (tmp_path / "north.txt").write_text(TEXT)
    files = read_mot([str(tmp_path / "north.txt")])
    texts = numbered(files, {("north", "4"): 12, ("north", "7"): 0}, 30)
    assert texts == {tmp_path / "north.txt": TEXT.replace("1,4,", "1,12,").replace(
        "2,4,", "2,12,").replace("1,7,", "1,31,")}


def test_tracks_of_nobody_get_numbers_of_their_own_across_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("1,1,0,0,9,9\n2,1,0,0,9,9\n2,2,0,0,9,9\n")
    texts = numbered(read_mot([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]),
                     {("b", "2"): 5}, 5)
    ids = {path.stem: [line.split(",")[1] for line in text.split()] for path, text in texts.items()}
    assert ids == {"a": ["6", "6", "7"], "b": ["8", "8", "5"]}


def test_headers_blanks_and_several_files_of_a_camera(tmp_path):
    (tmp_path / "x.csv").write_text('\ntrack_id,frame,x\n"07",1,5\n8.0,1,6\n')
    (tmp_path / "y.txt").write_text("1 7 0 0 9 9\n")
    words = [f"yard={tmp_path / name}" for name in ("x.csv", "y.txt")]
    files = read_mot(words)
    assert [[box[:2] for box in file.boxes.values()] for file in files] == [
        [("1", "1-7"), ("1", "1-8")], [("1", "2-7")]]
    names = {("yard", "1-7"): 0, ("yard", "1-8"): 1, ("yard", "2-7"): 2}
    assert tracks_of(files, names) == [(0, 1)]
    texts = list(numbered(files, {("yard", "1-7"): 3, ("yard", "1-8"): 4, ("yard", "2-7"): 3},
                          4).values())
    assert texts == ['\ntrack_id,frame,x\n3,1,5\n4,1,6\n', "1 3 0 0 9 9\n"]


@pytest.mark.parametrize("before, after", [
    (b"1,4,9\r\n\r\n2, 4 ,9\r\n", b"1,12,9\r\n\r\n2, 12 ,9\r\n"),
    (b"\xef\xbb\xbf1,4,9\n2,4,9", b"\xef\xbb\xbf1,12,9\n2,12,9"),
    (b"\xef\xbb\xbfframe;id\n1;4\n", b"\xef\xbb\xbfframe;id\n1;12\n"),
    (b"frame,score,id\n1,,4\n2,.5,4\n", b"frame,score,id\n1,,12\n2,.5,12\n"),  # an empty cell
    (b"frame,note,id\n1,4 4,4\n", b"frame,note,id\n1,4 4,12\n"),
    (b"1\t4\t9\n", b"1\t12\t9\n"), (b" 1  4 9\n", b" 1  12 9\n")])
def test_every_other_byte_stays(tmp_path, before, after):
    (tmp_path / "north.txt").write_bytes(before)
    texts = numbered(read_mot([str(tmp_path / "north.txt")]), {("north", "4"): 12}, 30)
    assert [text.encode() for text in texts.values()] == [after]


@pytest.mark.parametrize("text, said", [
    ("1\n", "line 1 has no whole numbers"), ("1,a,3\n", "line 1 has no whole numbers"),
    ("frame,x\n1,2\n", "needs one column frame and one id"), ("1,99,0,0,1,1\n", "none of its ids")])
def test_wrong_files_are_refused(tmp_path, text, said):
    (tmp_path / "north.txt").write_text(text)
    with pytest.raises(UserError, match=said):
        tracks_of(read_mot([str(tmp_path / "north.txt")]), {("north", "4"): 0})


def test_what_is_no_file_and_equal_names_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        read_mot([str(tmp_path / "absent.txt")])
    with pytest.raises(UserError, match="written to one file"):
        read_mot(["a=x/t.txt", "b=y/t.txt"])
