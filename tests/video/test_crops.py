"""Crops of rendered videos, against plain loops; stopped, killed and damaged on the way."""

import csv
import dataclasses
import errno
import json
import math
import os
import re
import shutil
import signal

import cv2
import numpy as np
import pytest
from caureid_plugin.common import run_lock
from caureid_plugin.common.errors import UserError
from caureid_plugin.common.signals import StopNow, StopRequest
from caureid_plugin.data.camera_source import CameraSource
from caureid_plugin.data.listing import list_images
from caureid_plugin.video import CropChoice, Video, cut_crops
from caureid_plugin.video import crops as crops_module
from caureid_plugin.video.table import STATE, TABLE

FRAMES, FPS = 30, 10
SMALL = CropChoice(min_height=8, max_overlap=1, max_per_track=100)
# of each track: first and last frame, left of its box and pixels that it moves in a frame
WALKS = {3: (1, 20, 4, 1), 5: (8, 30, 40, -1), 12: (25, 28, 4, 2)}


def box_of(track, frame):
    """left, top, width, height."""
    first, _, left, step = WALKS[track]
    return left + step * (frame - first), 10 + track, 10, 24


def walks(tracks=tuple(WALKS)):
    """(frame, track) of all boxes, frame by frame."""
    return [(frame, track) for frame in range(1, FRAMES + 1) for track in tracks
            if WALKS[track][0] <= frame <= WALKS[track][1]]


@pytest.fixture
def render(tmp_path):
    """Writes a video of coloured boxes, some frames of which are blurred, and its track file."""
    def write(name="gate", tracks=tuple(WALKS), suffix=".avi", fourcc="MJPG", seed=0):
        rng = np.random.default_rng(seed)
        ground = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        path = tmp_path / f"{name}{suffix}"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), FPS, (64, 48))
        for frame in range(1, FRAMES + 1):
            picture = ground.copy()
            for track in tracks:
                left, top, width, height = box_of(track, frame)
                cv2.rectangle(picture, (left, top), (left + width - 1, top + height - 1),
                              (20 * track, 255 - 20 * track, 128), -1)
                cv2.line(picture, (left, top), (left + width, top + height), (255, 255, 255))
            if frame % 3:
                picture = cv2.GaussianBlur(picture, (0, 0), 1 + frame % 3)
            writer.write(picture)
        writer.release()
        rows = [",".join(map(str, (frame, track, *box_of(track, frame), 0.9, -1, -1, -1)))
                for frame, track in walks(tracks)]
        (tmp_path / f"{name}.txt").write_text("\n".join(rows))
        return Video(path, tmp_path / f"{name}.txt", name.split("/")[-1])

    return write


def pictures(video):
    """All frames of a video, from 1."""
    capture = cv2.VideoCapture(str(video.path))
    return {frame: capture.read()[1] for frame in range(1, FRAMES + 1)}


def table(folder):
    with (folder / TABLE).open(newline="") as file:
        return list(csv.DictReader(file))


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*g"))


def assert_whole(folder):
    """The table lists the crops that are there, and all can be decoded."""
    rows = table(folder)
    assert sorted(row["path"] for row in rows) == files(folder)
    assert all(cv2.imread(str(folder / row["path"])) is not None for row in rows)
    return rows


def test_every_box_is_cut_out_and_listed(render, tmp_path):
    video = render()
    folder = tmp_path / "new" / "crops"
    assert cut_crops([video], folder, SMALL, image_format="png") == folder / TABLE
    frames = pictures(video)
    rows = assert_whole(folder)
    assert list(rows[0]) == ["path", "camera", "track", "frame", "seconds"]
    assert [(int(row["track"]), int(row["frame"])) for row in rows] == sorted(
        (track, frame) for frame, track in walks())
    for row in rows:
        frame, track = int(row["frame"]), int(row["track"])
        assert row["path"] == f"gate/{track}/{frame:06d}.png" and row["camera"] == "gate"
        assert float(row["seconds"]) == pytest.approx((frame - 1) / FPS)
        left, top, width, height = box_of(track, frame)
        expected = frames[frame][top:top + height, left:left + width]
        assert np.array_equal(cv2.imread(str(folder / row["path"])), expected)


def test_the_table_fits_the_data_set(render, tmp_path):
    """CAMERA_FOLDER.CSV takes it as it is."""
    cut_crops([render("gate"), render("yard", (3,))._replace(camera="yard, north")],
              tmp_path / "crops", SMALL)
    paths = list_images(str(tmp_path / "crops"), "ROOT").paths
    source = CameraSource(camera="csv", csv=str(tmp_path / "crops" / TABLE))
    cameras = source.read(str(tmp_path / "crops"), paths)
    assert set(cameras) == {"gate", "yard, north"} and len(paths) == len(walks()) + len(walks((3,)))


def plain_sharpness(crop):
    """The variance of the Laplacian of the grey picture at a height of 128, by loops."""
    grey = cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY)
    width = round(grey.shape[1] * 128 / grey.shape[0])
    padded = np.pad(cv2.resize(grey, (width, 128)).astype(float), 1, mode="reflect")
    values = [padded[y - 1, x] + padded[y + 1, x] + padded[y, x - 1] + padded[y, x + 1]
              - 4 * padded[y, x] for y in range(1, 129) for x in range(1, width + 1)]
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


def test_the_sharpest_of_each_part_is_kept(render, tmp_path):
    video = render()
    most = 4
    cut_crops([video], tmp_path / "crops", dataclasses.replace(SMALL, max_per_track=most))
    frames = pictures(video)
    expected = []
    for track, (first, last, *_) in WALKS.items():
        scores = {}
        for frame in range(first, last + 1):
            left, top, width, height = box_of(track, frame)
            scores[frame] = plain_sharpness(frames[frame][top:top + height, left:left + width])
        parts = {}
        for frame in scores:
            parts.setdefault(math.floor((frame - first) * most / (last - first + 1)),
                             []).append(frame)
        expected += [(track, max(part, key=scores.get)) for part in parts.values()]
    found = [(int(row["track"]), int(row["frame"])) for row in assert_whole(tmp_path / "crops")]
    assert sorted(found) == sorted(expected) and len(found) == 3 * most
    # two of three frames are blurred: parts of that length have a sharp one, which is taken
    assert {frame % 3 for track, frame in found if track != 12} == {0}


def test_frames_that_nothing_is_cut_from_are_not_converted(render, tmp_path, monkeypatch):
    opened = []

    class Capture:
        def __init__(self, path):
            self.capture, self.grabbed, self.retrieved = cv2_capture(path), 0, []
            opened.append(self)

        def __getattr__(self, name):
            return getattr(self.capture, name)

        def grab(self):
            self.grabbed += 1
            return self.capture.grab()

        def retrieve(self):
            self.retrieved.append(self.grabbed)
            return self.capture.retrieve()

    cv2_capture = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    cut_crops([render(tracks=(3,))], tmp_path / "crops", dataclasses.replace(SMALL, every=6))
    assert opened[-1].retrieved == [1, 7, 13, 19] and opened[-1].grabbed == FRAMES + 1


def test_two_videos_of_a_camera_have_tracks_and_times_apart(render, tmp_path):
    morning = render("morning")._replace(camera="gate", start=100)
    noon = render("noon", seed=1)._replace(camera="gate", start=103)
    cut_crops([noon, morning], tmp_path / "crops", SMALL)
    rows = assert_whole(tmp_path / "crops")
    seconds = {row["track"]: [] for row in rows}
    for row in rows:
        assert row["camera"] == "gate" and row["path"].startswith(f"gate/{row['track']}/")
        seconds[row["track"]].append(float(row["seconds"]))
    assert sorted(seconds) == sorted(f"{number}-{track}" for number in (1, 2) for track in WALKS)
    for number, start in ((2, 100), (1, 103)):
        for track, (first, last, *_) in WALKS.items():
            assert min(seconds[f"{number}-{track}"]) == pytest.approx(start + (first - 1) / FPS)
            assert max(seconds[f"{number}-{track}"]) == pytest.approx(start + (last - 1) / FPS)


def test_ultralytics_folder_of_two_videos(render, tmp_path):
    """One folder has the labels of both, by the videos' names."""
    (tmp_path / "labels").mkdir()
    videos = []
    for name in ("gate", "yard"):
        videos.append(render(name)._replace(tracks=tmp_path / "labels"))
        for frame, track in walks((3,)):
            left, top, width, height = box_of(track, frame)
            (tmp_path / "labels" / f"{name}_{frame}.txt").write_text(
                f"0 {(left + width / 2) / 64} {(top + height / 2) / 48} {width / 64} "
                f"{height / 48} 3\n")
    cut_crops(videos, tmp_path / "crops", SMALL, image_format="png")
    for video in videos:
        frames = pictures(video)
        for frame, track in walks((3,)):
            left, top, width, height = box_of(track, frame)
            crop = cv2.imread(str(tmp_path / "crops" / video.camera / f"3/{frame:06d}.png"))
            assert np.array_equal(crop, frames[frame][top:top + height, left:left + width])


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "x" * 300, "Tür 3", "#recycle"])
def test_any_camera_has_a_folder_of_its_own(render, tmp_path, name):
    cut_crops([render(tracks=(12,))._replace(camera=name), render("b", tracks=(12,))],
              tmp_path / "crops", SMALL)
    rows = assert_whole(tmp_path / "crops")
    assert {row["camera"] for row in rows} == {name, "b"} and len(rows) == 8
    assert len(os.listdir(tmp_path / "crops")) == 5  # two cameras, table, state, lock
    assert len(list_images(str(tmp_path / "crops"), "ROOT").paths) == 8


# ---------------------------------------------------------------------- going on, and stopping ----


def contents(folder):
    """{path: content, time of writing} of all crops, and the table."""
    return {name: ((folder / name).read_bytes(), (folder / name).stat().st_mtime_ns)
            for name in files(folder)}, (folder / TABLE).read_text()


def test_a_second_call_skips_what_is_done(render, tmp_path):
    videos = [render("gate"), render("yard", seed=1)]
    folder = tmp_path / "crops"
    cut_crops(videos, folder, SMALL)
    before, lines = contents(folder), []
    cut_crops(videos, folder, SMALL, tell=lines.append)
    assert contents(folder) == before
    assert [line.split(":")[1] for line in lines[:2]] == [
        f" {len(walks())} crops are there already."] * 2
    # a crop that is gone, or empty
    (folder / "gate/3/000005.jpg").write_bytes(b"")
    cut_crops(videos, folder, SMALL)
    after = contents(folder)
    assert {name: content for name, (content, _) in after[0].items()} == {
        name: content for name, (content, _) in before[0].items()} and after[1] == before[1]
    changed = [name for name in before[0] if after[0][name] != before[0][name]]
    assert changed and all(name.startswith("gate/") for name in changed)


def failing(monkeypatch, calls, error):
    """Makes the crop of that number fail in the middle of being written."""
    whole, count = cv2.imencode, iter(range(1, 10 ** 6))

    def imencode(*args):
        if next(count) == calls:
            raise error
        return whole(*args)

    monkeypatch.setattr(crops_module.cv2, "imencode", imencode)


@pytest.mark.parametrize("killed_at", [1, 30, len(walks()) + 5])
def test_a_killed_call_is_gone_on_with(render, tmp_path, monkeypatch, killed_at):
    videos = [render("gate"), render("yard", seed=1)]
    whole, folder = tmp_path / "whole", tmp_path / "crops"
    cut_crops(videos, whole, SMALL)
    with monkeypatch.context() as patch:
        failing(patch, killed_at, RuntimeError("killed"))
        with pytest.raises(RuntimeError, match="killed"):
            cut_crops(videos, folder, SMALL)
    assert not (folder / TABLE).exists()
    if files(folder):  # half of one is on the disk
        path = folder / files(folder)[-1]
        path.write_bytes(path.read_bytes()[:50])
    done = {name: found for name, found in contents_of(folder).items()
            if name.startswith("gate/") and killed_at > len(walks())}
    cut_crops(videos, folder, SMALL)
    assert {name: content for name, (content, _) in contents(folder)[0].items()} == {
        name: content for name, (content, _) in contents(whole)[0].items()}
    assert contents(folder)[1] == contents(whole)[1]
    assert all(contents_of(folder)[name] == found for name, found in done.items())
    assert bool(done) == (killed_at > len(walks()))


def test_what_a_killed_call_left_is_removed(render, tmp_path, monkeypatch):
    """Its crops if the video is replaced before it is done, and a table that is no longer right."""
    video, folder = render(), tmp_path / "crops"
    with monkeypatch.context() as patch:
        failing(patch, 30, RuntimeError("killed"))
        with pytest.raises(RuntimeError, match="killed"):
            cut_crops([video], folder, SMALL)
    assert len(files(folder)) == 29
    lines = video.tracks.read_text().splitlines()
    video.tracks.write_text("\n".join(line for line in lines if line.split(",")[1] == "12"))
    cut_crops([video], folder, SMALL)
    assert {row["track"] for row in assert_whole(folder)} == {"12"}
    (folder / files(folder)[0]).unlink()
    with monkeypatch.context() as patch:
        failing(patch, 2, RuntimeError("killed"))
        with pytest.raises(RuntimeError, match="killed"):
            cut_crops([video], folder, SMALL)
    assert not (folder / TABLE).exists()


def contents_of(folder):
    return {name: ((folder / name).read_bytes(), (folder / name).stat().st_mtime_ns)
            for name in files(folder)}


def test_a_stopped_call_leaves_whole_crops_and_their_table(render, tmp_path, monkeypatch):
    """Also where a call before was killed, in another video."""
    video, other = render(), render("yard", seed=1)
    folder, choice = tmp_path / "crops", dataclasses.replace(SMALL, max_per_track=3)
    with monkeypatch.context() as patch:
        failing(patch, 3 * 3 + 4, RuntimeError("killed"))
        with pytest.raises(RuntimeError, match="killed"):
            cut_crops([video, other], folder, choice)
    shutil.rmtree(folder / "gate")
    grey, count = crops_module.sharpness, iter(range(10 ** 6))

    def stop_at_20(crop):
        if next(count) == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return grey(crop)

    monkeypatch.setattr(crops_module, "sharpness", stop_at_20)
    with StopRequest() as stop, pytest.raises(StopNow):
        cut_crops([video, other], folder, choice)
    assert stop.signal == signal.SIGINT
    stopped = assert_whole(folder)
    assert {row["track"] for row in stopped} == {"3", "5"}  # the best of open parts as well
    assert {row["camera"] for row in stopped} == {"gate"}
    cut_crops([video, other], folder, choice)
    cut_crops([video, other], tmp_path / "whole", choice)
    assert_whole(folder)
    assert table(folder) == table(tmp_path / "whole")


def damage(video):
    """The second half of its file is gone."""
    content = video.path.read_bytes()
    video.path.write_bytes(content[:len(content) // 2])
    return content


def test_a_damaged_video_names_the_frame_and_keeps_what_is_done(render, tmp_path):
    gate, yard = render("gate"), render("yard", seed=1)
    content = damage(gate)
    capture, readable = cv2.VideoCapture(str(gate.path)), 0
    while capture.grab():
        readable += 1
    assert 3 < readable < 20
    folder = tmp_path / "crops"
    with pytest.raises(UserError, match=rf"^gate \(gate\.avi\) is damaged: frame {readable + 1} of "
                                        r"30 cannot be read\. Crops from before are kept"):
        cut_crops([gate, yard], folder, SMALL)
    rows = assert_whole(folder)
    found = {camera: sorted((int(row["frame"]), int(row["track"])) for row in rows
                            if row["camera"] == camera) for camera in ("gate", "yard")}
    assert found == {"yard": walks(), "gate": [w for w in walks() if w[0] <= readable]}
    before = contents_of(folder)
    # it is replaced
    gate.path.write_bytes(content)
    cut_crops([gate, yard], folder, SMALL)
    assert len(assert_whole(folder)) == 2 * len(walks())
    after = contents_of(folder)
    assert all(after[name] == before[name] for name in before if name.startswith("yard"))


def test_frames_that_are_left_out_in_the_middle_are_told(render, tmp_path):
    """Their bytes are gone, and the decoder goes on behind them without a word."""
    whole = render()
    content = whole.path.read_bytes()
    starts = [found.start() for found in re.finditer(b"00dc", content)][:FRAMES]
    whole.path.write_bytes(content[:starts[9]] + content[starts[14]:])
    readable = 0
    capture = cv2.VideoCapture(str(whole.path))
    while capture.grab():
        readable += 1
    assert readable == FRAMES - 5
    lines = whole.tracks.read_text().splitlines()
    whole.tracks.write_text("\n".join(line for line in lines if int(line.split(",")[0]) <= 25))
    told = []
    cut_crops([whole], tmp_path / "crops", SMALL, tell=told.append)
    assert told[0].startswith("gate (gate.avi): 25 frames can be read, of 30 by what the video")
    assert len(told) == 3


def test_a_video_that_does_not_say_how_long_it_is(render, tmp_path, monkeypatch):
    video = render()
    with video.tracks.open("a") as file:
        file.write("\n90,3,4,13,10,24")
    whole = cv2.VideoCapture

    class Silent:
        def __init__(self, path):
            self.capture = whole(path)

        def __getattr__(self, name):
            return getattr(self.capture, name)

        def get(self, key):
            return -9e18 if key == cv2.CAP_PROP_FRAME_COUNT else self.capture.get(key)

    monkeypatch.setattr(cv2, "VideoCapture", Silent)
    with pytest.raises(UserError, match=r"gate\.avi\) is damaged, or ends before the last boxes of "
                                        r".*gate\.txt: frame 31 cannot be read"):
        cut_crops([video], tmp_path / "crops", SMALL)
    assert len(assert_whole(tmp_path / "crops")) == len(walks())


def test_a_full_disk_says_how_to_go_on(render, tmp_path, monkeypatch):
    videos = [render("gate"), render("yard", seed=1)]
    with monkeypatch.context() as patch:
        failing(patch, len(walks()) + 5, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(UserError, match=r"--output .*crops: No space left on device\. Make "
                                            "room and give the same command"):
            cut_crops(videos, tmp_path / "crops", SMALL)
    done = {name: found for name, found in contents_of(tmp_path / "crops").items()
            if name.startswith("gate")}
    cut_crops(videos, tmp_path / "crops", SMALL)
    assert len(assert_whole(tmp_path / "crops")) == 2 * len(walks()) and len(done) == len(walks())
    assert all(contents_of(tmp_path / "crops")[name] == found for name, found in done.items())


def test_a_video_that_ends_before_its_tracks(render, tmp_path):
    """One frame more than it says it has is not refused at once: some files only estimate."""
    video = render()
    left, top, width, height = box_of(3, 1)
    with video.tracks.open("a") as file:
        file.write(f"\n31,3,{left},{top},{width},{height}\n")
    with pytest.raises(UserError, match=r"gate\.avi\) ends with frame 30, and 1 boxes of .*gate\."
                                        r"txt are in later frames \(first in line 48\)"):
        cut_crops([video], tmp_path / "crops", SMALL)
    assert len(assert_whole(tmp_path / "crops")) == len(walks())


# ------------------------------------------------------------------------------ wrong input ----


def assert_refused(message, videos, folder, choice=SMALL, **options):
    """It is refused with these words, and nothing is written or lost."""
    before = contents(folder) if (folder / TABLE).exists() else folder.exists()
    with pytest.raises(UserError, match=message):
        cut_crops(videos, folder, choice, **options)
    assert (contents(folder) if (folder / TABLE).exists() else folder.exists()) == before


def test_other_options_and_videos_are_not_mixed_in(render, tmp_path):
    video, other = render(), render("other", seed=1)
    folder = tmp_path / "crops"
    cut_crops([video], folder, SMALL)
    assert_refused(r"crops that were cut with --every 1 \(now 2\), --max-per-track 100 \(now 10\): "
                   "give the same", [video], folder,
                   dataclasses.replace(SMALL, every=2, max_per_track=10))
    assert_refused(r"--format jpg \(now png\)", [video], folder, image_format="png")
    assert_refused(r"--fps None \(now 5\)", [video], folder, fps=5)
    assert_refused("holds crops of another video or other tracks for camera gate than other.avi",
                   [other._replace(camera="gate")], folder)
    said = r"holds crops of gate\.avi \(camera gate, start 0\): give the same videos in this order"
    for videos in ([other], [video, other], [video._replace(start=3)]):
        assert_refused(said, videos, folder)
    lines = video.tracks.read_text().splitlines()
    video.tracks.write_text("\n".join(lines[:-1]))
    assert_refused("of another video or other tracks for camera gate", [video], folder)


def test_a_video_that_was_moved_is_the_same(render, tmp_path):
    video = render()
    cut_crops([video], tmp_path / "crops", SMALL)
    (tmp_path / "elsewhere").mkdir()
    moved = video.path.rename(tmp_path / "elsewhere" / "g.avi")
    lines = []
    cut_crops([video._replace(path=moved)], tmp_path / "crops", SMALL, tell=lines.append)
    assert lines[0].endswith("crops are there already.")


def test_a_folder_of_something_else_is_refused(render, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.jpg").write_text("mine")
    assert_refused("mine is not empty, and caureid crops has not made it", [render()], folder)
    (folder / STATE).write_text("{")
    assert_refused(r"\.crops\.json is damaged .*: give a new folder", [render()], folder)
    assert sorted(os.listdir(folder)) == [STATE, "a.jpg"]


def test_one_call_at_a_time(render, tmp_path, monkeypatch):
    def held(folder):
        raise BlockingIOError("held")

    monkeypatch.setattr(run_lock, "hold", held)
    with pytest.raises(UserError, match="Another process writes crops to .*crops: wait"):
        cut_crops([render()], tmp_path / "crops", SMALL)


def test_files_of_another_video(render, tmp_path):
    video = render()
    rows = video.tracks.read_text().splitlines()
    video.tracks.write_text("\n".join([*rows, "40,3,5,13,10,24", "41,3,5,13,10,24"]))
    assert_refused(r"gate\.txt: 2 of 49 boxes are in frames beyond the 30 of .*gate\.avi: it is "
                   r"the file of another video, .* \(first in line 48\)", [video],
                   tmp_path / "crops")
    video.tracks.write_text("\n".join([*rows[:20], "5,40,100,13,10,24", "6,40,100,13,10,24"]))
    assert_refused("2 of 22 boxes are outside the picture of 64 x 48 pixels", [video],
                   tmp_path / "crops")


def test_a_name_that_is_not_in_utf_8(render, tmp_path):
    """OpenCV would end the process."""
    video = render()
    named = tmp_path / "g\udcff.avi"
    shutil.copy(video.path, named)
    assert_refused("OpenCV cannot open .*: its name, .* is not in UTF-8. Rename it",
                   [video._replace(path=named)], tmp_path / "crops")


@pytest.mark.parametrize("change, message", [
    ({"path": "none.avi"}, r"The video .*none\.avi does not exist"),
    ({"path": "notes.avi"}, r"notes\.avi is no video that OpenCV can open"),
    ({"tracks": "none.txt"}, "is neither a file nor a folder"),
    ({"tracks": "gate.avi"}, "is no text in UTF-8"),
    ({"camera": " "}, "--camera '' is no name"),
    ({"camera": "none"}, "--camera 'none' is no name"),
    ({"camera": "a\nb"}, r"--camera 'a\\nb' is no name"),
    ({"start": float("nan")}, "--start nan is no finite number"),
])
def test_what_is_no_video_or_no_name(render, tmp_path, change, message):
    video = render()
    (tmp_path / "notes.avi").write_text("words, not pictures\n" * 50)
    change = {key: tmp_path / value if key in ("path", "tracks") else value
              for key, value in change.items()}
    assert_refused(message, [video._replace(**change)], tmp_path / "crops")


def test_pairs_that_cannot_be_meant(render, tmp_path):
    gate, yard = render("gate"), render("yard")
    folder = tmp_path / "crops"
    assert_refused("No video was given", [], folder)
    assert_refused("--format gif is unknown, known are jpg", [gate], folder, image_format="gif")
    assert_refused(r"The video .*gate\.avi is given twice", [gate, yard._replace(path=gate.path)],
                   folder)
    assert_refused(r"track file .*gate\.txt is given twice",
                   [gate, yard._replace(tracks=gate.tracks)], folder)
    for one, other in (("Gate", "gate"), ("01", "1"), ("1.0", "1")):
        assert_refused(f"--camera {one} and {other} differ only in their spelling",
                       [gate._replace(camera=one), yard._replace(camera=other)], folder)


def test_times_of_one_camera_must_be_apart(render, tmp_path):
    one, two = (render(name)._replace(camera="gate") for name in ("one", "two"))
    folder = tmp_path / "crops"
    assert_refused("Camera gate has 2 videos: give --start", [one, two], folder)
    assert_refused("give --start", [one, two._replace(start=50)], folder)
    # 30 frames of 0.1 s: the last is at 2.9
    assert_refused(r"Two videos of one camera are in time together: gate \(two\.avi\) lasts until "
                   r"3\.400 s, gate \(one\.avi\) begins at 3 s",
                   [one._replace(start=3), two._replace(start=0.5)], folder)
    cut_crops([one._replace(start=3), two._replace(start=0)], folder, SMALL)


def test_frames_a_second(render, tmp_path, monkeypatch):
    video = render()
    cut_crops([video], tmp_path / "a", SMALL, fps=4)
    for row in table(tmp_path / "a"):
        assert float(row["seconds"]) == (int(row["frame"]) - 1) / 4
    whole = crops_module._open

    class Silent:
        def __init__(self, capture, fps):
            self.get = lambda key: fps if key == cv2.CAP_PROP_FPS else capture.get(key)
            self.release = capture.release

    for fps in (0.0, float("nan"), float("inf")):
        with monkeypatch.context() as patch:
            patch.setattr(crops_module, "_open",
                          lambda *args, fps=fps: Silent(whole(*args), fps))
            assert_refused(r"gate\.avi has (0|nan|inf) frames a second.*give --fps", [video],
                           tmp_path / "b")


def test_where_nothing_remains_it_says_why(render, tmp_path):
    assert_refused(r"No box becomes a crop: gate \(gate\.avi\) has 47 boxes, 47 below "
                   r"--min-height 64\.$", [render()], tmp_path / "crops", CropChoice())


def test_a_camera_without_crops_is_told_and_does_no_harm(render, tmp_path):
    far = render("far")
    far.tracks.write_text("1,1,20,20,3,5\n")
    lines = []
    cut_crops([far, render()], tmp_path / "crops", SMALL, tell=lines.append)
    assert lines[0].startswith("far (far.avi): 0 crops of 0 tracks, of 1 tracks with 1 boxes. Left "
                               "out: 1 below --min-height 8, 0 less sharp")
    assert lines[1].startswith(f"gate (gate.avi): {len(walks())} crops of 3 tracks, of 3 tracks")
    assert len(assert_whole(tmp_path / "crops")) == len(walks())


def test_state_is_of_this_call(render, tmp_path):
    """What is kept about a call has no path of this machine in it."""
    cut_crops([render()], tmp_path / "crops", SMALL)
    text = (tmp_path / "crops" / STATE).read_text()
    assert str(tmp_path) not in text and json.loads(text)["videos"][0]["done"]
