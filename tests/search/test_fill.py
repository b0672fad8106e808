"""caureid index: what is in the index is what is in the folder, whatever happens on the way."""

import functools
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
from caureid_plugin import Index
from caureid_plugin.cli.common import call
from caureid_plugin.cli.index import command
from caureid_plugin.retrieval import index as index_module
from caureid_plugin.search import fill

from helpers.tool_output import refusal

PATTERN = ["CAMERA_FOLDER.CAMERA", "pattern", "CAMERA_FOLDER.PATTERN", r"_c(\d+)"]
load_once = functools.cache(fill.load_embedder)


def caureid_index(*words):
    """Calls the command, which does what it is to do."""
    assert not call(command, words)


@pytest.fixture(autouse=True)
def runs_are_loaded_once(monkeypatch):
    monkeypatch.setattr(fill, "load_embedder", load_once)


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
    """Calls the command; gives what it printed."""
    def build_with(*words):
        caureid_index(run, crops, "--index", tmp_path / "x", *words)
        return capsys.readouterr().out

    return build_with


def cameras_of(folder):
    """{path: camera}."""
    index = Index.open(folder)
    return dict(zip(index.paths, index.cameras, strict=True))


def assert_holds(folder, run, paths):
    """The index has these images, each with its own embedding."""
    index = Index.open(folder)
    assert sorted(index.paths) == sorted(map(str, paths))
    found = np.zeros((len(index), index.dim))
    for column, hits in enumerate(index.search(np.eye(index.dim), top=len(index))):
        for hit in hits:
            found[hit.row, column] = hit.score
    np.testing.assert_allclose(found, load_once(run).embed(index.paths), atol=1e-3)


def test_every_image_with_its_camera(build, run, crops, tmp_path):
    output = build("CAMERA_FOLDER.CAMERA", "folder")
    paths = sorted(crops.rglob("*.jpg"))
    assert_holds(tmp_path / "x", run, paths)
    assert cameras_of(tmp_path / "x") == {str(path): path.parent.name for path in paths}
    assert "16 new, 0 changed; the camera of 0 is not known" in output
    for part in ("16/16 images", "16 images of 2 cameras", "minutes left"):
        assert part in output
    assert "folders of the system" not in output


def test_thumbnails_of_a_system_are_left_out_and_said(build, run, crops, tmp_path):
    (crops / "@eaDir").mkdir()
    shutil.copy2(next(crops.rglob("*.jpg")), crops / "@eaDir")
    output = build("CAMERA_FOLDER.CAMERA", "folder")
    assert ("1 image(s) in folders of the system were left out: @eaDir. "
            "CAMERA_FOLDER.SYSTEM_FOLDERS read takes them.\n") in output
    assert len(Index.open(tmp_path / "x")) == 16


def test_thumbnails_of_a_system_are_read_where_that_is_asked_for(
        build, small_run, crops, tmp_path):
    """That key says nothing of cameras; a run that was trained on them has it, too."""
    build(*PATTERN)
    before, path = cameras_of(tmp_path / "x"), crops / "@eaDir" / "new_c7.jpg"
    path.parent.mkdir()
    shutil.copy2(next(crops.rglob("*.jpg")), path)
    output = build("CAMERA_FOLDER.SYSTEM_FOLDERS", "read")
    assert "left out" not in output and "1 new" in output
    assert "the camera of 1 is not known (CAMERA_FOLDER keys say" in output
    assert cameras_of(tmp_path / "x") == {**before, str(path): ""}
    assert "1 images are gone from the folder" in build("CAMERA_FOLDER.SYSTEM_FOLDERS", "skip")
    own = small_run("DATASETS.NAMES", "('CameraFolder',)", "CAMERA_FOLDER.ROOT", str(crops),
                    *PATTERN, "DATASETS.TESTS", "()", "CAMERA_FOLDER.SYSTEM_FOLDERS", "read",
                    folder="own")
    caureid_index(own, crops, "--index", tmp_path / "y")
    assert cameras_of(tmp_path / "y") == {**before, str(path): "7"}
    caureid_index(own, crops, "--index", tmp_path / "z", "CAMERA_FOLDER.SYSTEM_FOLDERS", "skip")
    assert cameras_of(tmp_path / "z") == before


def test_cameras_are_optional_and_may_come_later(build, tmp_path):
    assert "camera of 16 is not known (CAMERA_FOLDER keys say where to read it" in build()
    assert set(cameras_of(tmp_path / "x").values()) == {""}
    assert "the camera of 16 is not known" in build(*PATTERN[:3], "(nowhere)")
    assert "The cameras of 16 images were read anew" in build(*PATTERN)
    assert set(cameras_of(tmp_path / "x").values()) == {"1", "2"}


def test_cameras_that_are_known_stay_where_none_are_asked_for(build, small_run, crops, tmp_path):
    build(*PATTERN)
    before = cameras_of(tmp_path / "x")
    paths = sorted(crops.rglob("*.jpg"))
    shutil.copy(paths[0], paths[5])  # changed, and embedded anew
    shutil.copy(paths[3], crops / "new_c2.jpg")
    output, new = build(), str(crops / "new_c2.jpg")
    assert "1 new, 1 changed; the camera of 1 is not known" in output and "anew" not in output
    assert cameras_of(tmp_path / "x") == {**before, new: ""}
    own = small_run("DATASETS.NAMES", "('CameraFolder',)", "CAMERA_FOLDER.ROOT", str(crops),
                    *PATTERN[:3], "new_c(2)", "DATASETS.TESTS", "()", folder="own")
    caureid_index(own, crops, "--index", tmp_path / "x")  # its own keys find one more
    assert cameras_of(tmp_path / "x") == {**before, new: "2"}
    assert "The cameras of 17 images were read anew" in build(*PATTERN[:3], "(nowhere)")
    # a checkpoint has the keys of its run
    caureid_index(own / "model_final.pth", crops, "--index", tmp_path / "y")
    assert cameras_of(tmp_path / "y") == {**dict.fromkeys(before, ""), new: "2"}


def test_searches_standardise_as_long_as_it_is_asked_for(build, run, crops, tmp_path):
    """Of an index that was made before, and until it is taken back."""
    assert "searches standardise" not in build(*PATTERN)
    assert "16 images of 2 cameras" in build("--standardize-by-camera", *PATTERN)
    output = build()
    assert "0 new, 0 changed" in output and "; searches standardise them by camera." in output
    assert Index.open(tmp_path / "x").standardize_by_camera
    shutil.copy(next(crops.rglob("*.jpg")), crops / "new_c7.jpg")
    with pytest.raises(SystemExit, match="camera '7'.*--no-standardize-by-camera"):
        build("--standardize-by-camera", *PATTERN)
    assert len(Index.open(tmp_path / "x")) == 17
    assert "searches standardise" not in build("--no-standardize-by-camera").splitlines()[-1]
    assert_holds(tmp_path / "x", run, crops.rglob("*.jpg"))


def test_only_what_is_new_or_changed_is_embedded(build, run, crops, tmp_path, monkeypatch):
    build()
    paths = sorted(crops.rglob("*.jpg"))
    asked = []
    whole = fill.embed_readable
    monkeypatch.setattr(fill, "embed_readable", lambda embedder, entries, size: (
        asked.extend(entry.name for entry in entries), whole(embedder, entries, size))[1])
    assert "0 new, 0 changed" in build() and asked == []
    shutil.copy(paths[3], crops / "new.jpg")
    shutil.copy(paths[0], paths[5])  # another picture under the same name
    assert "1 new, 1 changed" in build()
    assert sorted(asked) == sorted(map(str, (crops / "new.jpg", paths[5])))
    paths[7].unlink()
    output = build()
    assert "1 images are gone" in output and "stays in the index (--prune" in output
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
    output = build("--prune", *PATTERN)
    assert "3 images are gone" in output and "The cameras of 13 images were read anew" in output
    assert_holds(tmp_path / "x", run, crops.rglob("*.jpg"))
    assert cameras_of(tmp_path / "x") == {
        str(path): re.search(r"_c(\d)", path.name)[1] for path in crops.rglob("*.jpg")}


def test_a_folder_that_is_gone(build, run, crops, tiny_market, tmp_path, capsys):
    """Its images go only with --prune."""
    build()
    other = tiny_market / "Market-1501-v15.09.15" / "bounding_box_test"
    caureid_index(run, other, "--index", tmp_path / "x")
    for name in ("away", "empty"):
        crops.rename(tmp_path / name)
        if name == "empty":
            crops.mkdir()
        message = refusal(command, [run, crops, "--index", tmp_path / "x"], capsys)
        assert re.search("crops'? (does not exist|holds no image)", message)
        assert len(Index.open(tmp_path / "x")) == 50
        assert "16 images are gone" in build("--prune")
        assert_holds(tmp_path / "x", run, other.glob("*.jpg"))
        with pytest.raises(SystemExit, match="crops (does not exist|holds no image)"):
            build("--prune")  # the index has nothing of it, either: a slip of the pen
        if name == "away":
            (tmp_path / name).rename(crops)
            build()


def test_no_image_is_in_an_index_twice(build, run, crops, tmp_path):
    build()
    before = cameras_of(tmp_path / "x").keys()
    link = tmp_path / "link"
    link.symlink_to(crops)
    words = ["--index", str(tmp_path / "x")]
    caureid_index(run, link, *words)  # the same folder by another name
    caureid_index(run, link / ".." / "crops", *words)
    assert cameras_of(tmp_path / "x").keys() == before
    link.unlink()
    for folder, count in ((crops / "camera2", 8), (tmp_path, 16)):
        with pytest.raises(SystemExit, match=rf"{count} images below {re.escape(str(folder))} are "
                           rf"in the index already, from folder {re.escape(str(crops))} \(first"):
            caureid_index(run, folder, *words)
    # one that holds a link to a folder of the other
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "more").symlink_to(crops / "camera1")
    with pytest.raises(SystemExit, match="8 images .* would be found twice: give folders that do"):
        caureid_index(run, mixed, *words)
    assert cameras_of(tmp_path / "x").keys() == before
    index = Index.open(tmp_path / "x")
    index.remove(range(len(index)))
    path = str(next((crops / "camera1").glob("*.jpg")))
    index.add(load_once(run).embed([path]), [path])
    with pytest.raises(SystemExit, match="1 images .* from a Python program"):
        build()


def test_unreadable_images_are_named_and_the_others_are_in(build, run, crops, tmp_path, capsys):
    build()
    paths = sorted(crops.rglob("*.jpg"))
    for path in paths[2:9]:
        path.write_bytes(path.read_bytes()[:150])
    for _ in range(2):  # they are changed ones, and then new ones
        assert call(command, [run, crops, "--index", tmp_path / "x"]) == 1
        output = capsys.readouterr().err
        assert "7 images cannot be read and are not in the index; the others are" in output
        assert all(str(path) in output for path in paths[2:7]) and "... and 2 more" in output
        assert_holds(tmp_path / "x", run, [*paths[:2], *paths[9:]])


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_stopped_it_goes_on(build, run, crops, tmp_path, monkeypatch, capsys, number, code):
    monkeypatch.setattr(fill, "BLOCK", 4)
    add, calls = Index.add, []

    def add_some(self, *args):
        if len(calls) == 2:
            os.kill(os.getpid(), number)
            time.sleep(5)  # the signal arrives here
        calls.append(args)
        add(self, *args)

    monkeypatch.setattr(Index, "add", add_some)
    assert call(command, [run, crops, "--index", tmp_path / "x"]) == code
    assert "Stopped; the same command goes on." in capsys.readouterr().err
    assert len(Index.open(tmp_path / "x")) == 8
    monkeypatch.setattr(Index, "add", add)
    assert "8 new" in build()
    assert_holds(tmp_path / "x", run, crops.rglob("*.jpg"))


def test_an_index_that_another_process_is_writing(build, tmp_path):
    build()
    with (Index.open(tmp_path / "x").writing(),
          pytest.raises(SystemExit, match="is being written by another process")):
        build()
    assert "0 new, 0 changed" in build()


def test_an_index_that_cannot_be_used_is_left_as_it_is(build, small_run, crops, tmp_path):
    def files():
        return {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()}

    build()
    before, manifest = files(), tmp_path / "x" / "index.json"
    other = small_run("INPUT.SIZE_TEST", "[64,32]", folder="other")
    with pytest.raises(SystemExit, match="holds embeddings of another network.*make a new index"):
        caureid_index(other, crops, "--index", tmp_path / "x")
    assert files() == before
    manifest.write_bytes(before["index.json"][:-20])
    with pytest.raises(SystemExit, match=r"index.json is damaged.*Restore the folder from a copy"):
        build()
    assert files() == {**before, "index.json": before["index.json"][:-20]}


def test_wrong_words(run, crops, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for words, message in (([run, crops, "--batch-size", "0"], "'--batch-size': 0 is not in the"),
                        ([run, crops, "SEED"], "must come in pairs, got SEED"),
                        ([run, crops, "--index", "/absent/x"], "the folder /absent does not"),
                        ([tmp_path / "absent", crops], "absent' does not exist"),
                        ([run, tmp_path / "absent"], f"Directory '{tmp_path / 'absent'}' does not"),
                        ([run, tmp_path / "empty"], f"FOLDER {tmp_path / 'empty'}"),
                        ([run, crops / "camera1"], "is not empty and no index"),
                        ([run, crops, "CAMERA_FOLDER.ROOT", "x"], "ROOT is no key of this command"),
                        ([run, crops, "CAMERA_FOLDER.SYSTEM_FOLDERS", "x"], "known are ('skip', "),
                        ([run, crops, *PATTERN[:3], "("], "CAMERA_FOLDER.PATTERN")):
        assert message in refusal(functools.partial(call, command), ["--index", crops, *words],
                                  capsys)
