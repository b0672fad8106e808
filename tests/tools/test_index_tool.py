"""tools/index.py: what is in the index is what is in the folder, whatever happens on the way."""

import functools
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
from caureid_plugin import Index
from caureid_plugin.retrieval import index as index_module

import index as tool
from helpers import warm

PATTERN = ["CAMERA_FOLDER.CAMERA", "pattern", "CAMERA_FOLDER.PATTERN", r"_c(\d+)"]
load_once = functools.cache(tool.load_embedder)


@pytest.fixture(autouse=True)
def runs_are_loaded_once(monkeypatch):
    monkeypatch.setattr(tool, "load_embedder", load_once)


@pytest.fixture
def crops(tiny_market, tmp_path):
    """16 images in two folders, one for each camera."""
    for path in sorted((tiny_market / "Market-1501-v15.09.15" / "query").glob("*.jpg")):
        folder = tmp_path / "crops" / f"camera{re.search('_c(.)', path.name)[1]}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, folder)
    return tmp_path / "crops"


@pytest.fixture(scope="module")
def made():
    """The run that the tests of this module share."""
    return []


@pytest.fixture
def run(small_run, made):
    if not made:
        made.append(small_run())
    return made[0]


@pytest.fixture
def build(run, crops, tmp_path, capsys):
    """Calls the tool; gives what it printed."""
    def call(*words):
        tool.main([str(run), str(crops), "--index", str(tmp_path / "x"), *map(str, words)])
        return capsys.readouterr().out

    return call


def content(folder):
    """{path: (camera, vector)}."""
    index = Index.open(folder)
    every = index.search(np.eye(index.dim), top=len(index)) if len(index) else []
    vectors = np.zeros((len(index), index.dim))
    for column, hits in enumerate(every):
        for hit in hits:
            vectors[hit.row, column] = hit.score
    return {path: (camera, vector)
            for path, camera, vector in zip(index.paths, index.cameras, vectors, strict=True)}


def assert_holds(folder, run, paths):
    found = content(folder)
    assert sorted(found) == sorted(map(str, paths))
    expected = load_once(run).embed(sorted(found))
    for path, vector in zip(sorted(found), expected, strict=True):
        np.testing.assert_allclose(found[path][1], vector, atol=1e-3)


def test_every_image_with_its_camera(build, run, crops, tmp_path):
    said = build("CAMERA_FOLDER.CAMERA", "folder")
    paths = sorted(crops.rglob("*.jpg"))
    assert_holds(tmp_path / "x", run, paths)
    assert {path: camera for path, (camera, _) in content(tmp_path / "x").items()} == {
        str(path): path.parent.name for path in paths}
    assert "16 new, 0 changed; the camera of 0 is not known" in said
    assert "16/16 images" in said and "16 images of 2 cameras" in said and "minutes left" in said


def test_cameras_are_optional_and_may_come_later(build, tmp_path):
    assert "the camera of 16 is not known" in build()
    assert {camera for camera, _ in content(tmp_path / "x").values()} == {""}
    assert "the camera of 16 is not known" in build(*PATTERN[:3], "(nowhere)")
    assert "Cameras read anew: those of 16 images" in build(*PATTERN)
    assert {camera for camera, _ in content(tmp_path / "x").values()} == {"1", "2"}


def test_cameras_that_are_known_stay_where_none_are_asked_for(build, small_run, crops, tmp_path):
    assert "is not known (CAMERA_FOLDER keys say where to read it" in build()
    build(*PATTERN)
    before = content(tmp_path / "x")
    paths = sorted(crops.rglob("*.jpg"))
    shutil.copy(paths[0], paths[5])  # changed, and embedded anew
    shutil.copy(paths[3], crops / "new_c2.jpg")
    said = build()
    assert "1 new, 1 changed; the camera of 1 is not known" in said and "anew" not in said
    after = content(tmp_path / "x")
    assert {path: after[path][0] for path in before} == {
        path: camera for path, (camera, _) in before.items()}
    assert after[str(crops / "new_c2.jpg")][0] == ""
    own = small_run("DATASETS.NAMES", "('CameraFolder',)", "CAMERA_FOLDER.ROOT", str(crops),
                    *PATTERN[:3], "new_c(2)", "DATASETS.TESTS", "()", folder="own")
    tool.main([str(own), str(crops), "--index", str(tmp_path / "x")])  # its own keys find one more
    found = {path: camera for path, (camera, _) in content(tmp_path / "x").items()}
    assert found == {**{path: camera for path, (camera, _) in before.items()},
                     str(crops / "new_c2.jpg"): "2"}
    assert "Cameras read anew: those of 17 images" in build(*PATTERN[:3], "(nowhere)")


def test_cameras_as_the_run_read_its_own(small_run, crops, tmp_path):
    run = small_run("DATASETS.NAMES", "('CameraFolder',)", "CAMERA_FOLDER.ROOT", str(crops),
                    *PATTERN, "DATASETS.TESTS", "()", folder="own")
    for name, given in (("x", run), ("y", run / "model_final.pth")):
        tool.main([str(given), str(crops), "--index", str(tmp_path / name)])
        assert {camera for camera, _ in content(tmp_path / name).values()} == {"1", "2"}


def test_only_what_is_new_or_changed_is_embedded(build, run, crops, tmp_path, monkeypatch):
    build()
    paths = sorted(crops.rglob("*.jpg"))
    asked = []
    whole = tool.embed_readable
    monkeypatch.setattr(tool, "embed_readable", lambda embedder, entries, size: (
        asked.extend(entry.name for entry in entries), whole(embedder, entries, size))[1])
    assert "0 new, 0 changed" in build() and asked == []
    shutil.copy(paths[3], crops / "new.jpg")
    shutil.copy(paths[0], paths[5])  # another picture under the same name
    assert "1 new, 1 changed" in build()
    assert sorted(asked) == sorted(map(str, (crops / "new.jpg", paths[5])))
    paths[7].unlink()
    said = build()
    assert "1 images are gone" in said and "stays in the index (--prune" in said
    assert len(Index.open(tmp_path / "x")) == 17
    assert "is removed" in build("--prune")
    assert_holds(tmp_path / "x", run, crops.rglob("*.jpg"))


def test_gone_and_changed_cameras_at_once(build, run, crops, tmp_path, monkeypatch):
    """Over several blocks, whose rows removing numbers anew."""
    monkeypatch.setattr(index_module, "BLOCK_IMAGES", 3)
    build("CAMERA_FOLDER.CAMERA", "folder")
    paths = sorted(crops.rglob("*.jpg"))
    for path in (paths[0], paths[4], paths[13]):
        path.unlink()
    said = build("--prune", *PATTERN)
    assert "3 images are gone" in said and "Cameras read anew: those of 13 images" in said
    assert_holds(tmp_path / "x", run, crops.rglob("*.jpg"))
    assert {path: camera for path, (camera, _) in content(tmp_path / "x").items()} == {
        str(path): re.search(r"_c(\d)", path.name)[1] for path in crops.rglob("*.jpg")}


def test_a_folder_that_is_gone(build, run, crops, tiny_market, tmp_path):
    build()
    other = tiny_market / "Market-1501-v15.09.15" / "bounding_box_test"
    tool.main([str(run), str(other), "--index", str(tmp_path / "x")])
    for name in ("away", "empty"):
        crops.rename(tmp_path / name)
        if name == "empty":
            crops.mkdir()
        with pytest.raises(SystemExit, match="crops (does not exist|holds no image)"):
            build()
        assert len(Index.open(tmp_path / "x")) == 50
        assert "16 images are gone" in build("--prune")
        assert_holds(tmp_path / "x", run, other.glob("*.jpg"))
        with pytest.raises(SystemExit, match="crops (does not exist|holds no image)"):
            build("--prune")  # the index has nothing of it, either: a slip of the pen
        if name == "away":
            (tmp_path / name).rename(crops)
            build()


def test_no_image_is_in_an_index_twice(build, run, crops, tiny_market, tmp_path):
    build()
    before = content(tmp_path / "x")
    link = tmp_path / "link"
    link.symlink_to(crops)
    words = ["--index", str(tmp_path / "x")]
    tool.main([str(run), str(link), *words])  # the same folder by another name
    tool.main([str(run), str(link / ".." / "crops"), *words])
    assert content(tmp_path / "x").keys() == before.keys()
    link.unlink()
    for folder, count in ((crops / "camera2", 8), (tmp_path, 16)):
        with pytest.raises(SystemExit, match=rf"{count} images below {re.escape(str(folder))} are "
                           rf"in the index already, from folder {re.escape(str(crops))} \(first"):
            tool.main([str(run), str(folder), *words])
    # one that holds a link to a folder of the other
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "more").symlink_to(crops / "camera1")
    with pytest.raises(SystemExit, match="8 images .* would be found twice: give folders that do"):
        tool.main([str(run), str(mixed), *words])
    assert content(tmp_path / "x").keys() == before.keys()
    index = Index.open(tmp_path / "x")
    index.remove(range(len(index)))
    path = str(next((crops / "camera1").glob("*.jpg")))
    index.add(load_once(run).embed([path]), [path])
    with pytest.raises(SystemExit, match="1 images .* from a Python program"):
        build()


def test_a_changed_image_that_is_unreadable_is_out(build, run, crops, tmp_path):
    build()
    path = sorted(crops.rglob("*.jpg"))[5]
    path.write_bytes(path.read_bytes()[:150])
    for _ in range(2):  # the second time it is a new one
        with pytest.raises(SystemExit, match="1 images cannot be read and are not in the index"):
            build()
        assert_holds(tmp_path / "x", run, [other for other in crops.rglob("*.jpg")
                                           if other != path])


def test_unreadable_images_are_named_and_the_others_are_in(build, run, crops, tmp_path):
    paths = sorted(crops.rglob("*.jpg"))
    for path in paths[2:9]:
        path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(SystemExit) as error:
        build()
    said = str(error.value)
    assert "7 images cannot be read and are not in the index; the others are" in said
    assert all(str(path) in said for path in paths[2:7]) and "... and 2 more" in said
    assert_holds(tmp_path / "x", run, [*paths[:2], *paths[9:]])


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_stopped_it_goes_on(build, run, crops, tmp_path, monkeypatch, number, code):
    monkeypatch.setattr(tool, "BLOCK", 4)
    add, calls = Index.add, []

    def add_some(self, *args):
        if len(calls) == 2:
            os.kill(os.getpid(), number)
            time.sleep(5)  # the signal arrives here
        calls.append(args)
        add(self, *args)

    monkeypatch.setattr(Index, "add", add_some)
    with pytest.raises(SystemExit) as stop:
        build()
    assert stop.value.code == code
    assert len(Index.open(tmp_path / "x")) == 8
    monkeypatch.setattr(Index, "add", add)
    assert "8 new" in build()
    assert_holds(tmp_path / "x", run, crops.rglob("*.jpg"))


WAITS = """
import sys, time
import index
index.BLOCK = 2
add = index.Index.add
def add_some(self, *args):
    add(self, *args)
    print("added", flush=True)
    time.sleep(600)
index.Index.add = add_some
index.main()
"""


def test_killed_it_goes_on_and_keeps_others_out(build, run, crops, tmp_path):
    out = tmp_path / "out"
    out.touch()
    process = warm.start(["-c", WAITS, run, crops, "--index", tmp_path / "x"], out=out,
                         cwd=os.path.dirname(tool.__file__))
    try:
        while "added" not in out.read_text():
            assert process.poll() is None, out.read_text()
            time.sleep(0.01)
        with pytest.raises(SystemExit, match="is being written by another process"):
            build()
    finally:
        process.kill()
        process.wait()
    assert len(Index.open(tmp_path / "x")) == 2
    assert "14 new" in build()
    assert_holds(tmp_path / "x", run, crops.rglob("*.jpg"))


def test_an_index_of_another_network(build, small_run, crops, tmp_path):
    build()
    before = content(tmp_path / "x").keys()
    other = small_run("INPUT.SIZE_TEST", "[64,32]", folder="other")
    with pytest.raises(SystemExit, match="holds embeddings of another network.*make a new index"):
        tool.main([str(other), str(crops), "--index", str(tmp_path / "x")])
    assert content(tmp_path / "x").keys() == before


def test_a_damaged_index_is_left_as_it_is(build, tmp_path):
    build()
    manifest = tmp_path / "x" / "index.json"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    files = {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()}
    with pytest.raises(SystemExit, match=r"index.json is damaged.*Restore the folder from a copy"):
        build()
    assert {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()} == files


def test_wrong_words(build, run, crops, tmp_path, capsys):
    for words, said in ((["--batch-size", "0"], "--batch-size 0 must be at least 1"),
                        (["SEED"], "must come in pairs, got SEED"),
                        (["--index", "/absent/x"], "the folder /absent does not exist")):
        with pytest.raises(SystemExit):
            build(*words)
        assert said in capsys.readouterr().err
    for words, said in (([tmp_path / "absent", crops], "absent does not exist: give the folder"),
                        ([run, tmp_path / "absent"], "FOLDER.*absent"),
                        ([run, crops / "camera1"], "is not empty and no index"),
                        ([run, crops, "CAMERA_FOLDER.ROOT", "x"], "ROOT is no key of this tool"),
                        ([run, crops, *PATTERN[:3], "("], "CAMERA_FOLDER.PATTERN")):
        with pytest.raises(SystemExit, match=said):
            tool.main([*map(str, words), "--index", str(crops)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="empty"):
        tool.main([str(run), str(tmp_path / "empty"), "--index", str(tmp_path / "y")])
