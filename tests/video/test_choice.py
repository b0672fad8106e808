"""Which boxes become crops, against plain loops."""

import dataclasses

import numpy as np
import pytest
from caureid_plugin.common.errors import UserError
from caureid_plugin.video.choice import CropChoice, choose, covered_shares, parts_of_tracks
from caureid_plugin.video.tracks import Tracks

SIZE = 200, 100
ALL = CropChoice(min_height=1, max_overlap=1, keep_border=True, max_per_track=1000)


def tracks_of(rows):
    """Tracks of (frame, id, left, top, right, bottom[, confidence])."""
    values = np.array([[*row, np.nan][:7] for row in rows], dtype=np.float64)
    return Tracks("t.txt", [f"line {n}" for n in range(1, len(rows) + 1)],
                  values[:, 0].astype(np.int64), values[:, 1].astype(np.int64), values[:, 2:6],
                  values[:, 6])


def kept(rows, **changes):
    """(frame, id) of what is chosen, and why others were left out."""
    found = choose(tracks_of(rows), SIZE, dataclasses.replace(ALL, **changes))
    return (list(zip(found.frames.tolist(), found.ids.tolist(), strict=True)), found.left_out)


def test_boxes_in_whole_pixels_within_the_picture():
    found = choose(tracks_of([(1, 2, -3, 10.4, 60.6, 99.9), (1, 1, 199.8, 5, 200.3, 90),
                              *((n, 1, 50, 10, 90, 90) for n in range(2, 5))]), SIZE, ALL)
    assert found.ids.tolist() == [1, 2, 1, 1, 1]
    assert found.boxes[:3].tolist() == [[199, 5, 200, 90], [0, 10, 61, 100], [50, 10, 90, 90]]


def test_every_k_th_frame():
    rows = [(frame, 1, 50, 10, 90, 90) for frame in range(1, 11)]
    assert kept(rows, every=4) == ([(1, 1), (5, 1), (9, 1)], {"not in every frame of 4": 7})


def test_height_and_confidence():
    rows = [(1, 1, 50, 10, 90, 73, 0.9), (1, 2, 110, 10, 150, 74, 0.5), (2, 1, 50, 10, 90, 90, 0.4),
            (2, 2, 110, 10, 150, 90)]
    assert kept(rows, min_height=64) == ([(1, 2), (2, 1), (2, 2)], {"below --min-height 64": 1})
    assert kept(rows, min_confidence=0.5) == ([(1, 1), (1, 2), (2, 2)],
                                              {"below --min-confidence 0.5": 1})
    with pytest.raises(UserError, match=r"gives no confidence: leave --min-confidence 0\.5 out"):
        kept(rows[3:], min_confidence=0.5)
    per_cent = [(1, 1, 50, 10, 90, 73, 0.9), (2, 1, 50, 10, 90, 73, 90)]
    assert kept(per_cent)[1] == {}
    with pytest.raises(UserError, match=r"1 of 2 boxes have a confidence above 1, .*line 2\)"):
        kept(per_cent, min_confidence=0.5)


@pytest.mark.parametrize("box, stays", [
    ((50, 10, 90, 90), True),
    ((1.1, 10, 40, 90), True),
    ((0, 10, 40, 90), False),  # a detector ended it there
    ((0.9, 10, 40, 90), False),
    ((-0.9, 10, 40, 90), False),
    ((-1.9, 10, 40, 90), True),  # known to be cut by 4.5 %
    ((-2.2, 10, 40, 90), False),  # 5.2 %
    ((160, 10, 199.5, 90), False),
    ((50, 0.5, 90, 90), False),
    ((50, 10, 90, 99.5), False),
    ((50, 10, 90, 103), True),
    ((50, 10, 90, 106), False),
])
def test_border(box, stays):
    rows = [(1, 1, *box)]
    expected = ([(1, 1)], {}) if stays else ([], {"at the border": 1})
    assert kept(rows, keep_border=False) == expected
    assert kept(rows) == ([(1, 1)], {})


def test_overlap():
    """Of its own area: the small one is hidden, the large one is not; of another frame nobody."""
    rows = [(1, 1, 50, 10, 100, 90), (1, 2, 90, 10, 110, 90), (2, 3, 90, 10, 110, 90, 0.2),
            (2, 4, 85, 10, 105, 90, 0.9)]
    reason = "covered by more than --max-overlap 0.4"
    assert kept(rows, max_overlap=0.4) == ([(1, 1)], {reason: 3})
    assert kept(rows, max_overlap=0.5) == ([(1, 1), (1, 2)], {reason.replace("0.4", "0.5"): 2})
    # what is not believed hides nothing
    assert kept(rows, max_overlap=0.4, min_confidence=0.3)[0] == [(1, 1), (2, 4)]


def test_covered_shares_by_loops():
    rng = np.random.default_rng(3)
    frames = rng.integers(1, 6, 40)
    corner = rng.uniform(0, 60, (40, 2))
    boxes = np.hstack((corner, corner + rng.uniform(1, 50, (40, 2))))
    expected = []
    for i in range(40):
        most = 0.0
        for j in range(40):
            if i != j and frames[i] == frames[j]:
                width = min(boxes[i][2], boxes[j][2]) - max(boxes[i][0], boxes[j][0])
                height = min(boxes[i][3], boxes[j][3]) - max(boxes[i][1], boxes[j][1])
                if width > 0 and height > 0:
                    most = max(most, width * height)
        expected.append(most / ((boxes[i][2] - boxes[i][0]) * (boxes[i][3] - boxes[i][1])))
    assert max(expected) > 0.5
    np.testing.assert_allclose(covered_shares(frames, boxes), expected, atol=1e-12)


@pytest.mark.parametrize("most", [1, 3, 7, 30])
def test_parts_by_loops(most):
    rng = np.random.default_rng(most)
    frames = np.sort(rng.integers(1, 100, 60))
    ids = rng.integers(0, 4, 60)
    parts = parts_of_tracks(frames, ids, most)
    for track in range(4):
        own = [int(frame) for frame, of in zip(frames, ids, strict=True) if of == track]
        found = parts[ids == track].tolist()
        assert len(set(found)) <= most
        if len(own) <= most:
            assert found == list(range(len(own)))
            continue
        for frame, part in zip(own, found, strict=True):
            length = (own[-1] + 1 - own[0]) / most
            assert own[0] + part * length <= frame < own[0] + (part + 1) * length


def test_a_few_boxes_outside_are_left_out_and_many_are_another_videos():
    inside = [(frame, 1, 50, 10, 90, 90) for frame in range(1, 20)]
    assert kept([*inside, (20, 1, 210, 10, 250, 90)])[1] == {"outside the picture": 1}
    with pytest.raises(UserError, match=r"t\.txt: 2 of 21 boxes are outside the picture of 200 x "
                                        r"100 pixels: it is the file of another video.*line 20\)"):
        kept([*inside, (20, 1, 210, 10, 250, 90), (21, 1, 50, -90, 90, 0)])


def test_rights_and_bottoms_in_place_of_sizes():
    """Without a header they are read as width and height."""
    right = [(n, 1, 5 * n, 20, 5 * n + 30, 90) for n in range(1, 30)]
    assert len(kept(right)[0]) == 29
    wrong = [(n, 1, x, y, x + end, y + bottom) for n, _, x, y, end, bottom in right]
    with pytest.raises(UserError, match=r"29 of 29 boxes stick out of the picture, .*x1, y1, x2, "
                                        r"y2 in a header line \(first in line 1\)"):
        kept(wrong)
    # those who stand at the border, half outside, some far from the corner
    assert kept([(n, 1, -50, -10, 30, 90) for n in range(1, 9)] + [(9, 1, 150, 20, 180, 90)])


@pytest.mark.parametrize("name, value", [
    ("every", 0), ("min_height", 0), ("min_confidence", 1.5), ("max_overlap", -0.1),
    ("max_per_track", 0), ("max_overlap", float("nan"))])
def test_a_number_out_of_its_range_is_refused(name, value):
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} {value} must be"):
        CropChoice(**{name: value})
