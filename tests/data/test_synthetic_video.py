"""Tests of the drawn videos: who walks where and when, what is drawn, how the tracker errs."""

import csv
import itertools
from collections import Counter, defaultdict

import cv2
import numpy as np
import pytest
from caureid_plugin.data.synthetic import video as module
from caureid_plugin.data.synthetic.cameras import Camera
from caureid_plugin.data.synthetic.video import (
    Errors,
    Seen,
    Walk,
    draw_frames,
    plan_walks,
    render_videos,
    track,
)
from caureid_plugin.video.tracks import read_tracks

TINY = dict(people=5, cameras=2, seconds=14, size=(64, 96))
PERFECT = Errors(0, 0, 0, 0)
# A camera that changes nothing: what is drawn is what it shows.
NEUTRAL = Camera("brick", 11, (1.0, 1.0, 1.0), 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0,
                 0.0, 90)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return folder, render_videos(folder, seed=3, **TINY)


def walking(identity, first=0, frames=3, start=(0.5, 0.5), end=(0.5, 0.5), facing="front"):
    return Walk(identity, 0, first, frames, facing, start, end)


def draw(monkeypatch, *walks, frames=1, size=(96, 128)):
    """(frames, H, W, 3) without shadows and noise, and whom each frame shows."""
    monkeypatch.setattr(module, "ground_shadow", lambda canvas, cover, shot: canvas)
    return zip(*draw_frames(0, NEUTRAL, walks, frames, size), strict=True)


# ------------------------------------------------------------------------------- walks ----


@pytest.mark.parametrize("seed, cameras", [(0, 3), (1, 3), (2, 5), (3, 1)])
def test_nobody_is_in_two_cameras_at_one_time(seed, cameras):
    frames = 70 * cameras + 45
    walks = plan_walks(seed, 30, cameras, frames)
    assert walks == plan_walks(seed, 30, cameras, frames) != plan_walks(9, 30, cameras, frames)
    assert {walk.camera for walk in walks} == set(range(cameras))
    of_person = defaultdict(list)
    for walk in walks:
        assert walk.first >= 0 and walk.first + walk.frames <= frames and 40 <= walk.frames <= 60
        of_person[walk.identity].append(walk)
    assert set(of_person) == set(range(1, 31))
    for own in of_person.values():
        assert len({walk.camera for walk in own}) == len(own) >= min(2, cameras)
        own.sort(key=lambda walk: walk.first)
        for one, other in itertools.pairwise(own):
            assert other.first - (one.first + one.frames) >= 10  # a second


def test_several_are_there_at_once():
    at_once = Counter((walk.camera, frame) for walk in plan_walks(1, 24, 3, 600)
                      for frame in range(walk.first, walk.first + walk.frames))
    assert max(at_once.values()) >= 4


def test_a_video_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match=r"seconds=20: 3 cameras.*at least 21"):
        plan_walks(0, 5, 3, 200)
    assert plan_walks(0, 5, 3, 210)


# ----------------------------------------------------------------------------- drawing ----


@pytest.mark.parametrize("facing", ["front", "right"])
def test_a_box_is_around_what_is_drawn(monkeypatch, facing):
    """By the pixels that differ from the empty scene, in the middle and at the picture's edge."""
    walk = walking(3, frames=9, start=(0.5, 0.6), end=(0.97, 0.6), facing=facing)
    pictures, seen = draw(monkeypatch, walk, frames=10)
    for picture, found in zip(pictures[:9], seen[:9], strict=True):
        changed = np.abs(picture.astype(int) - pictures[9]).max(2) > 25
        rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
        around = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        np.testing.assert_allclose(found[0].box, around, atol=2)
        assert found[0].walk == 0 and found[0].covered == 0
    assert seen[8][0].box[2] == 128 and seen[9] == []


def test_who_is_nearer_hides_who_is_farther(monkeypatch):
    near, far = walking(1, start=(0.5, 0.9), end=(0.5, 0.9)), walking(2)
    (picture,), ((first, second),) = draw(monkeypatch, far, near)
    (alone,), _ = draw(monkeypatch, near)
    assert (first.walk, second.walk) == (1, 0) and first.covered == 0
    left, top, right, bottom = map(int, first.box)
    inner = slice(top + 20, bottom - 25), slice((left + right) // 2 - 2, (left + right) // 2 + 3)
    # covers are 254 of 255 where edges were drawn: one intensity shines through
    np.testing.assert_allclose(picture[inner].astype(int), alone[inner], atol=1)
    assert (picture != alone).any()
    area = common = 0
    for x in range(int(second.box[0]), int(second.box[2])):
        for y in range(int(second.box[1]), int(second.box[3])):
            area += 1
            common += left <= x < right and top <= y < bottom
    assert second.covered == pytest.approx(common / area) and 0.5 < second.covered < 1


# ----------------------------------------------------------------------------- tracker ----


def seen_of(*walks):
    """Of walks as (first frame, frames, left of the first box, pixels a frame), in the order of
    frames; all boxes are 10 wide and 20 high."""
    boxes = [Seen(first + step, number, (left + speed * step, 0, left + speed * step + 10, 20), 0.0)
             for number, (first, frames, left, speed) in enumerate(walks) for step in range(frames)]
    return sorted(boxes)


def rng():
    return np.random.default_rng(0)


def test_a_perfect_tracker():
    seen = seen_of((0, 30, 0, 1), (5, 20, 100, 0))
    lines, identities = track(seen, [7, 4], rng(), PERFECT)
    assert [(line.frame - 1, line.id - 1, line.box) for line in lines] == [
        one[:3] for one in seen]
    assert identities == {1: 7, 2: 4}
    assert all(0.5 < line.confidence <= 1 for line in lines)


def test_a_cut_makes_two_tracks_of_one_walk():
    lines, identities = track(seen_of((0, 30, 0, 1), (5, 20, 100, 0)), [7, 4], rng(),
                              Errors(cut=1, swapped=0, missing=0, jitter=0))
    for walks_left, count, identity in ((True, 30, 7), (False, 20, 4)):
        ids = [line.id for line in lines if (line.box[0] < 100) == walks_left]
        assert len(ids) == count and len(set(ids)) == 2
        assert [key for key, _ in itertools.groupby(ids)] == list(dict.fromkeys(ids))
        assert all(identities[number] == identity for number in ids)
        assert min(Counter(ids).values()) >= 0.3 * count - 1
    assert set(identities) == {1, 2, 3, 4}


def test_a_swap_exchanges_ids_from_where_people_meet_most():
    """One walks to the right and one to the left; they are at one place in frame 20."""
    seen = seen_of((0, 50, 0, 2), (0, 50, 80, -2), (0, 50, 500, 0))
    lines, identities = track(seen, [7, 4, 5], rng(), Errors(0, 1, 0, 0))
    for line in lines:
        step = line.frame - 1
        expected = {2 * step: 1, 80 - 2 * step: 2, 500: 3}
        if step > 20:
            expected.update({2 * step: 2, 80 - 2 * step: 1})
        if step != 20:
            assert line.id == expected[line.box[0]], line
    assert identities == {1: 4, 2: 7, 3: 5}  # 29 of 50 boxes come after


def test_people_who_do_not_pass_each_other_are_not_swapped():
    lines, identities = track(seen_of((0, 30, 0, 0), (0, 30, 11, 0)), [7, 4], rng(),
                              Errors(0, 1, 0, 0))
    assert {line.id for line in lines if line.box[0] == 0} == {1} and identities == {1: 7, 2: 4}


def test_missing_and_hidden_boxes_and_jitter():
    seen = seen_of((0, 1000, 0, 0))
    seen[10] = seen[10]._replace(covered=0.7)
    seen[11] = seen[11]._replace(covered=0.5)
    lines, _ = track(seen, [7], rng(), PERFECT)
    assert [line.frame for line in lines] == [*range(1, 11), *range(12, 1001)]
    lines, _ = track(seen, [7], rng(), Errors(0, 0, 0.2, 1.5))
    assert 750 < len(lines) < 850
    sides = np.array([line.box for line in lines]) - (0, 0, 10, 20)
    np.testing.assert_allclose(sides.std(0), 1.5, rtol=0.1)


# ------------------------------------------------------------------------------- files ----


def test_the_files(videos):
    """The reader of `caureid crops` takes them; truth.csv names each track once."""
    folder, written = videos
    assert sorted(path.name for path in folder.iterdir()) == [
        "brick.mp4", "brick.txt", "lawn.mp4", "lawn.txt", "truth.csv"]
    with open(folder / "truth.csv", newline="") as file:
        truth = list(csv.DictReader(file))
    for one in written:
        capture = cv2.VideoCapture(str(folder / f"{one.camera}.mp4"))
        assert capture.get(cv2.CAP_PROP_FPS) == 10
        shapes = []
        while (frame := capture.read()[1]) is not None:
            shapes.append(frame.shape)
        assert shapes == [(64, 96, 3)] * 140 and one.frames == 140
        tracks = read_tracks(str(folder / f"{one.camera}.txt"), f"{one.camera}.mp4", (96, 64))
        assert len(tracks) == one.boxes > 50 and tracks.frames.max() <= 140
        assert (tracks.confidences > 0.2).all()
        numbers = [int(row["track"]) for row in truth if row["camera"] == one.camera]
        assert numbers == sorted(set(tracks.ids.tolist())) == list(range(1, one.tracks + 1))
    assert {int(row["identity"]) for row in truth} == set(range(1, 6))


def test_the_colours_of_the_video_are_those_of_the_scene(videos):
    """Brick is red, and a lawn is green."""
    folder, _ = videos
    for name, strongest in (("brick", 2), ("lawn", 1)):
        _, frame = cv2.VideoCapture(str(folder / f"{name}.mp4")).read()
        assert frame.reshape(-1, 3).mean(0).argmax() == strongest  # of blue, green, red


def test_the_same_seed_gives_the_same_tracks(videos, tmp_path):
    folder, written = videos
    assert render_videos(tmp_path, seed=3, **TINY) == written
    for path in [*folder.glob("*.txt"), folder / "truth.csv"]:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    render_videos(tmp_path, seed=4, **TINY)
    assert (tmp_path / "brick.txt").read_bytes() != (folder / "brick.txt").read_bytes()


def test_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="people=0"):
        render_videos(tmp_path, people=0)
    monkeypatch.setattr(cv2.VideoWriter, "fourcc", lambda *_: 1)
    with pytest.raises(ValueError, match=r"brick\.mp4"):
        render_videos(tmp_path, **TINY)
