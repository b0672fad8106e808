"""Where tracks and times are read from, and what is refused."""

import logging
import math

import pytest
from caureid_plugin.data import CameraFolder, Sighting, build_dataset, training_images
from caureid_plugin.data.track_source import TrackSource, oddities
from PIL import Image

IMAGES = ["north/t1/a_f3.jpg", "north/t1/b_f4.jpg", "north/t2/c_f9.jpg", "south/t1/d_f3.jpg"]


@pytest.fixture
def root(tmp_path):
    for name in IMAGES:
        path = tmp_path / "crops" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 8)).save(path)
    return tmp_path / "crops"


@pytest.fixture
def own(cfg, root):
    """Builds the dataset with keys of CAMERA_FOLDER."""
    def build(**keys):
        for key, value in {"ROOT": str(root), **keys}.items():
            cfg.CAMERA_FOLDER[key] = value
        cfg.DATASETS.NAMES = ("CameraFolder",)
        return build_dataset(cfg, "CameraFolder")

    return build


def table(root, *lines):
    path = root.parent / "crops.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def seen(dataset):
    return [(item[3].track, None if math.isnan(item[3].time) else item[3].time)
            for item in dataset.train]


@pytest.mark.parametrize("keys, expected", [
    ({"TRACK": "folder"}, [("t1", None), ("t1", None), ("t2", None), ("t1", None)]),
    ({"TRACK": "folder", "TRACK_LEVEL": 2, "TIME": "pattern", "TRACK_PATTERN": r"_f(?P<time>\d+)"},
     [("t1", 3), ("t1", 4), ("t2", 9), ("t1", 3)]),
    ({"TRACK": "pattern", "TIME": "pattern", "TRACK_PATTERN": r"t(?P<track>\d)/._f(?P<time>\d)"},
     [("1", 3), ("1", 4), ("2", 9), ("1", 3)]),
    ({"TIME": "pattern", "TRACK_PATTERN": r"_f(?P<time>\d+)"},
     [(None, 3), (None, 4), (None, 9), (None, 3)])], ids=str)
def test_where_tracks_are_read_from(own, keys, expected):
    dataset = own(**keys)
    assert [item[0].rpartition("crops/")[2] for item in dataset.train] == IMAGES
    assert seen(dataset) == expected


@pytest.mark.parametrize("camera", ["folder", "csv"])
def test_tracks_of_a_table(own, root, cfg, camera):
    """As `caureid crops` writes it; cells may be empty, an image may have no row."""
    rows = [f"crops/{IMAGES[0]},n,7,1,0.04", f"crops/{IMAGES[1]},n,7,2,0.08",
            f"crops/{IMAGES[2]},n,,3,", f"crops/{IMAGES[3]},s,nan,3,1e1"]
    path = table(root, "path,camera,track,frame,seconds", *rows)
    dataset = own(CAMERA=camera, TRACK="csv", TIME="csv", CSV=path)
    assert seen(dataset) == [("7", 0.04), ("7", 0.08), (None, None), (None, 10)]
    names = {"folder": ["north"] * 3 + ["south"], "csv": ["n"] * 3 + ["s"]}[camera]
    assert [item[2].removeprefix("camerafolder_") for item in dataset.train] == names
    assert training_images(cfg) == [(item[0], *item[2:]) for item in dataset.train]
    if camera == "folder":
        path = table(root, "path,track", f"crops/{IMAGES[0]},7")
        assert seen(own(CAMERA=camera, TRACK="csv", TIME="none", CSV=path)) == [
            ("7", None)] + [(None, None)] * 3


def test_without_tracks_items_are_the_toolboxs(own):
    assert {len(item) for item in own().train} == {3}
    assert not TrackSource() and TrackSource(track="folder")


@pytest.mark.parametrize("keys, parts", [
    ({"TRACK": "name"}, ["CAMERA_FOLDER.TRACK 'name' is unknown", "'pattern'"]),
    ({"TIME": "folder"}, ["CAMERA_FOLDER.TIME 'folder' is unknown"]),
    ({"TRACK": "folder", "TRACK_LEVEL": 0}, ["TRACK_LEVEL 0 is no folder"]),
    ({"TRACK_LEVEL": 1}, ["TRACK_LEVEL 1 is not used", "TRACK to folder"]),
    ({"TRACK": "pattern"}, ["CAMERA_FOLDER.TRACK 'pattern' needs", "TRACK_PATTERN"]),
    ({"TRACK_PATTERN": "(?P<track>.)"}, ["is not used", "TRACK or TIME to pattern"]),
    ({"TRACK": "pattern", "TRACK_PATTERN": "t(.)"}, ["has no group (?P<track>...)"]),
    ({"TRACK": "pattern", "TIME": "pattern", "TRACK_PATTERN": "t(?P<track>.)"},
     ["has no group (?P<time>...)"]),
    ({"TRACK": "pattern", "TRACK_PATTERN": "("}, ["TRACK_PATTERN", "no regular expression"]),
    ({"TRACK": "csv"}, ["CAMERA_FOLDER.TRACK 'csv' needs CAMERA_FOLDER.CSV", "path and track"]),
    ({"TIME": "csv"}, ["CAMERA_FOLDER.TIME 'csv' needs CAMERA_FOLDER.CSV", "path and seconds"])])
def test_wrong_options(own, keys, parts):
    with pytest.raises(ValueError) as error:
        own(**keys)
    assert not [part for part in parts if part not in str(error.value)], str(error.value)


@pytest.mark.parametrize("keys, parts", [
    ({"TRACK": "folder", "TRACK_LEVEL": 3}, ["TRACK_LEVEL 3 finds no folder for 4 of the 4"]),
    ({"TRACK": "pattern", "TRACK_PATTERN": "south/(?P<track>.)"},
     ["does not match 3 of the 4 images", IMAGES[0]]),
    ({"TIME": "pattern", "TRACK_PATTERN": "/(?P<time>t.)/"},
     ["CAMERA_FOLDER.TRACK_PATTERN", "the time t1", IMAGES[0], "is no number"]),
    ({"TRACK": "pattern", "TRACK_PATTERN": "(?P<track>.*)*x(?=(a+)+$)" + "(?P<more>a*)*b"},
     ["does not match 4 of the 4"])])
def test_images_without_a_track_or_time(own, keys, parts):
    dataset = own(**keys)
    with pytest.raises(ValueError) as error:
        _ = dataset.train
    assert not [part for part in parts if part not in str(error.value)], str(error.value)


def test_a_group_may_be_optional(own):
    assert seen(own(TIME="pattern", TRACK_PATTERN=r"(?:c_f(?P<time>\d))?\.jpg")) == [
        (None, None), (None, None), (None, 9), (None, None)]


@pytest.mark.parametrize("keys", [
    {"TRACK": "csv"}, {"TIME": "csv"}, {"TRACK": "pattern", "TRACK_PATTERN": "(?P<track>x)?"},
    {"TIME": "pattern", "TRACK_PATTERN": "(?P<time>x)?"}], ids=str)
def test_a_source_that_finds_nothing_is_refused(own, root, keys):
    if "csv" in keys.values():
        keys = {**keys, "CSV": table(root, "path,track,seconds",
                                     *(f"crops/{name},,nan" for name in IMAGES[:3]))}
    key, source = next(iter(keys.items()))
    with pytest.raises(ValueError, match=rf"CAMERA_FOLDER\.{key} {source} finds nothing for any of "
                                         rf"the 4 images.*set {key} to none"):
        _ = own(**keys).train


def test_names_as_in_mars(cfg, own, root):
    """As tools/benchmarks/tracks.py says; the same number of another person is another track."""
    names = ["0001/0001C1T0001F001.jpg", "0001/0001C1T0001F002.jpg", "0001/0001C2T0001F001.jpg",
             "0003/0003C1T0001F001.jpg"]
    for old, new in zip(IMAGES, names, strict=True):
        (root / new).parent.mkdir(exist_ok=True)
        (root / old).rename(root / new)
    dataset = own(CAMERA="pattern", PATTERN="C([0-9])T", TRACK="pattern",
                  TRACK_PATTERN="(?P<track>[0-9]+C[0-9]T[0-9]+)F")
    assert [item[2][-1] for item in dataset.train] == ["1", "1", "2", "1"]
    assert seen(dataset) == [("0001C1T0001", None)] * 2 + [("0001C2T0001", None),
                                                           ("0003C1T0001", None)]


@pytest.mark.parametrize("lines, parts", [
    (["path,camera", "crops/x.jpg,n"], ["needs the column(s) track"]),
    (["path,track", "crops/x.jpg,1"], ["name no image below", "line 2"]),
    (["path,track", f"crops/{IMAGES[0]},1", f"crops/{IMAGES[0]},2"],
     ["twice", "line 2", "line 3", "track"])])
def test_wrong_tables(own, root, lines, parts):
    with pytest.raises(ValueError) as error:
        _ = own(TRACK="csv", CSV=table(root, *lines)).train
    assert not [part for part in parts if part not in str(error.value)], str(error.value)
    with pytest.raises(ValueError, match="time soon of north/t1/a_f3.jpg is no number"):
        _ = own(TRACK="none", TIME="csv", CSV=table(
            root, "path,seconds", f"crops/{IMAGES[0]},soon")).train


def test_what_is_odd_about_tracks(own, caplog):
    caplog.set_level(logging.INFO, logger="fastreid.caureid")
    own(TRACK="folder", TRACK_LEVEL=2).show_train()
    assert "4 images are of 3 tracks, 0 of none. A name under several cameras" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert isinstance(own(), CameraFolder)
    cameras = ["a"] * 20
    one_each = [Sighting(str(i), math.nan) for i in range(20)]
    text, = oddities(cameras, one_each)
    assert "20 of the 20 tracks have a single image" in text
    text, = oddities(cameras, [Sighting("x", float(i // 2)) for i in range(20)])
    assert "10 times" in text and "camera a, track x, time 0" in text
    assert oddities(cameras, [Sighting("x", float(i)) for i in range(20)]) == []
    assert oddities(cameras, [Sighting(None, 1.0)] * 20) == []
    text, = oddities(cameras, [Sighting("x", float(i) if i else math.nan) for i in range(20)])
    assert "1 of the 20 images have no time" in text


def test_a_track_that_pauses_for_long_is_odd():
    """A tracker that begins its numbers anew, or a clock that is set back by an hour."""
    def seen_at(track, *times):
        return [Sighting(track, float(time)) for time in times]

    walks = [item for i in range(5) for item in seen_at(str(i), *range(10 * i, 10 * i + 9))]
    for again, pause in (((500, 501, 502), 492), ((-3600, -3599), 3599)):
        items = walks + seen_at("0", *again)
        text, = oddities(["a"] * len(items), items)
        assert f"1 track(s) pause for long (the longest: camera a, track 0, for {pause})" in text
    other = ["a"] * len(walks) + ["b"] * 3
    assert oddities(other, walks + seen_at("0", 500, 501, 502)) == []
    # 99 times the usual, or one who stays and is seen now and then
    assert oddities(["a"] * 47, walks + seen_at("0", 8 + 100, 8 + 101)) == []
    assert oddities(["a"] * 50, walks + seen_at("x", 0, 200, 400, 600, 800)) == []
