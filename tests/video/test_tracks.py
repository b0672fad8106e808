"""Track files of every form that trackers write, and what is refused in them."""

import numpy as np
import pytest
from caureid_plugin.common.errors import UserError
from caureid_plugin.video.tracks import read_tracks

SIZE = 64, 48
# two boxes of track 7 and one of track 9, as read: frame, id, left, top, right, bottom
EXPECTED = [(1, 7, 10, 5, 20, 35), (1, 9, 30, 6, 42.5, 40), (2, 7, 11, 5, 21, 35)]


@pytest.fixture
def read(tmp_path):
    """Reads a track file of this content."""
    def read_text(content, **options):
        path = tmp_path / "tracks.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_tracks(str(path), "gate.avi", SIZE, **options)

    return read_text


def rows_of(tracks):
    return [(int(frame), int(track), *box) for frame, track, box in
            zip(tracks.frames, tracks.ids, tracks.boxes.tolist(), strict=True)]


@pytest.mark.parametrize("text, confidences", [
    # MOT's form, as ByteTrack and others write it
    ("1,7,10,5,10,30,0.9,-1,-1,-1\n1,9,30,6,12.5,34,0.5,-1,-1,-1\n2,7,11,5,10,30,0.8,-1,-1,-1\n",
     [0.9, 0.5, 0.8]),
    ("1, 7, 10, 5, 10, 30, -1, -1\n1, 9, 30, 6, 12.5, 34, -1, -1\n\n2, 7, 11, 5, 10, 30, -1, -1",
     [None] * 3),
    ("1 7 10 5 10 30\n1 9 30 6 12.5 34\n2 7 11 5 10 30\n", [None] * 3),
    ("1\t7.0\t10\t5\t10\t30\t1\r\n1\t9.0\t30\t6\t12.5\t34\t1\r\n2\t7.0\t11\t5\t10\t30\t1\r\n",
     [1, 1, 1]),
    # BoxMOT 11 to 16: a mark, the class, the confidence; the newest: confidence, class, number
    ("1,7,10,5,10,30,1,1,0.9\n1,9,30,6,12.5,34,1,1,0.5\n2,7,11,5,10,30,1,1,0.8\n",
     [0.9, 0.5, 0.8]),
    ("1,7,10,5,10,30,0.9,1,0\n1,9,30,6,12.5,34,0.5,1,1\n2,7,11,5,10,30,0.8,1,0\n",
     [0.9, 0.5, 0.8]),
    # with a header
    ("\ufeffframe,id,x1,y1,x2,y2,score\n1,7,10,5,20,35,.9\n1,9,30,6,42.5,40,\n2,7,11,5,21,35,nan\n",
     [0.9, None, None]),
    (",Frame,Track,X,Y,W,H\n0,1,7,10,5,10,30\n1,1,9,30,6,12.5,34\n2,2,7,11,5,10,30\n", [None] * 3),
    (('"frame";"track_id";"left";"top";"width";"height";"who"\n1;7;10;5;10;30;a b\n'
     "1;9;30;6;12.5;34;c\n2;7;11;5;10;30;\n"), [None] * 3),
    ("frame id x y w h\n1 7 10 5 10 30\n1 9 30 6 12.5 34\n2 7 11 5 10 30", [None] * 3),
])
def test_forms(read, text, confidences):
    tracks = read(text)
    assert rows_of(tracks) == EXPECTED
    assert [None if np.isnan(c) else c for c in tracks.confidences] == confidences


def test_frames_from_0(read):
    text = "0,7,10,5,10,30\n1,7,11,5,10,30\n"
    assert read(text, first_frame=0).frames.tolist() == [1, 2]
    with pytest.raises(UserError, match=r"1 of 2 boxes have a frame before 1, the first: give "
                                        r"--first-frame 0 if the tracker counts from 0 \(first in "
                                        r"line 1: '0'\)"):
        read(text)


GOOD = "1,7,10,5,10,30,0.9\n"
HEADER = "frame,id,left,top,width,height\n"


@pytest.mark.parametrize("text, message", [
    ("", r"tracks.txt is empty: it holds no box\. If nobody was seen, leave its video out"),
    (" \n\n", "is empty"),
    (HEADER, "holds a header and no box"),
    (GOOD.encode("utf-16"), "is no text in UTF-8"),
    ("frame,größe\n".encode("latin-1"), "is no text in UTF-8"),
    (GOOD + "\0\0", "zero bytes"),
    (GOOD + "2,person,11,5,10,30,0.9", (r"1 of 2 boxes have an id that is no whole number \(first "
                                        r"in line 2: 'person'\)")),
    (GOOD + "2,7.5,11,5,10,30,0.9", "no whole number .first in line 2: '7.5'"),
    (GOOD + "2,99999999999999999999,11,5,10,30", "no whole number"),
    (GOOD + "2,-1,11,5,10,30,0.9", "1 of 2 boxes have a negative id: they are detections without"),
    (GOOD + "2.5,7,11,5,10,30,0.9", "a frame that is no whole number .first in line 2: '2.5'"),
    (GOOD + "2,7,nan,5,10,30,0.9", "a left that is no finite number .first in line 2: 'nan'"),
    (GOOD + "2,7,11,5,inf,30,0.9", "a width that is no finite number .first in line 2: 'inf'"),
    (GOOD + "2,7,11,5,10,,0.9", "a height that is no finite number .first in line 2: ''"),
    (GOOD + "2,7,11,5,10,30,high", "a confidence that is no finite number .first in line 2: 'hi"),
    (GOOD + "2,7,11,5,0,30\n3,7,11,5,0,30", (r"2 of 3 boxes have a width or height that is not "
                                             r"positive \(first in line 2\)")),
    (GOOD + "2,7,11,5,10,-30", "not positive .first in line 2"),
    (GOOD + "2,7,11,5,10,30\n1,7,12,5,10,30", (r"1 of 3 boxes have the frame and id of another: an "
                                               r"id may be once in a frame \(first in line 3\)")),
    (GOOD + "2,7,11\n", (r"1 of 2 boxes have fewer columns than frame, id, left, top, width, hei"
                         r"ght \(first in line 2\)")),
    ("frame,id,left,top\n1,7,10,5", "has no column width or w or bb_width; height or h or bb_heig"),
    ("time,who\n1,2", "no column frame or frame_id; id or track or track_id; left"),
    ("frame,id,track,left,top,width,height\n1,7,7,1,1,9,9", ("id and track in its first line all "
                                                             "name the id: rename")),
    (HEADER + "1,7,10,5,10,30\n2,7,10,5,10\n", (r"1 of 2 boxes do not have the 6 columns of the "
                                                r"header \(first in line 3\)")),
    ("1,abc,10,5,10,30\n", r"1 of 1 boxes have an id that is no whole number .* line 1: 'abc'"),
])
def test_what_cannot_be_right_is_refused(read, text, message):
    with pytest.raises(UserError, match=message):
        read(text)


def test_only_files_and_folders_are_read(tmp_path):
    with pytest.raises(UserError, match=r"none\.txt is neither a file nor a folder"):
        read_tracks(str(tmp_path / "none.txt"), "gate.avi", SIZE)


# ---------------------------------------------------------------------- ultralytics' folder ----


@pytest.fixture
def labels(tmp_path):
    """A folder of one file for each frame; reads the tracks of gate.avi in it."""
    def write(files):
        folder = tmp_path / "labels"
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        return read_tracks(str(folder), "/videos/gate.avi", SIZE)

    return write


def test_ultralytics_folder(labels):
    """Class, centre, size, as shares of the picture; confidence if asked for; id at the end."""
    tracks = labels({
        "gate_2.txt": "0 0.25 0.5 0.125 0.5 7\n", "gate_10.txt": "0 0.5 0.5 0.25 1 7\n",
        "gate_1.txt": "0 0.25 0.5 0.125 0.5 7\n0 0.5 0.5 0.25 1 9\n0 0.5 0.5 0.25 1\n",
        "gate_b_1.txt": "damaged", "gate.txt": "damaged"})
    assert rows_of(tracks) == [(1, 7, 12, 12, 20, 36), (1, 9, 24, 0, 40, 48),
                               (2, 7, 12, 12, 20, 36), (10, 7, 24, 0, 40, 48)]
    assert np.isnan(tracks.confidences).all()


def test_ultralytics_folder_with_confidences(labels):
    """Six numbers are a box that has no track yet, where others have seven."""
    tracks = labels({"gate_1.txt": "0 0.25 0.5 0.125 0.5 0.75\n0 0.25 0.5 0.125 0.5 0.5 3\n"})
    assert rows_of(tracks) == [(1, 3, 12, 12, 20, 36)] and tracks.confidences.tolist() == [0.5]


@pytest.mark.parametrize("files, message", [
    ({"yard_1.txt": "0 0.5 0.5 0.1 0.1 7"}, r"holds no gate_1\.txt or the like"),
    ({"gate_1.txt": "0 0.5 0.5 0.1 0.1"}, r"none of 1 boxes of gate has a track: model\.track"),
    ({"gate_1.txt": ""}, "none of 0 boxes"),
    ({"gate_1.txt": "0 0.5 0.5 0.1 0.1 0.87"}, ("id that is no whole number .first in line 1 of "
                                                "gate_1.txt: '0.87'")),
    ({"gate_1.txt": "0 0.5 0.5 0.1 0.1 7\n", "gate_2.txt": "0 .1 .1 .2 .1 .2 .3 .1 .3 7\n"},
     r"1 of 2 boxes have another number of columns .* \(first in line 1 of gate_2\.txt\)"),
    ({"gate_1.txt": "0 0.5 0.5 0.1 0.1 7\n0 0.2 0.5 0.1 0.1 7\n"}, ("an id may be once in a frame "
                                                                    ".first in line 2 of gate_1")),
])
def test_what_cannot_be_right_in_a_folder_is_refused(labels, files, message):
    with pytest.raises(UserError, match=message):
        labels(files)
