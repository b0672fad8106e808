"""CameraFolder: where cameras are read from, what is left out, and what every error names."""

import collections
import csv
import logging
import os
import re
from pathlib import Path

import pytest
from caureid_plugin import build_dataset, compat, training_images
from caureid_plugin.common import images as images_module
from caureid_plugin.data import CAMERA_PREFIX, camera_source
from caureid_plugin.data.camera_source import alike_names, plain_name
from fastreid.data import build_reid_test_loader, build_reid_train_loader
from PIL import Image

NAME = "CameraFolder"
IMAGES = ["north/door/01/c.jpeg", "north/gate/a.PNG", "north/gate/b.jpg", "south/gate/d.webp"]


def touch(folder, *names):
    """Empty files, which are listed but not read."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def write_csv(path, *rows, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture
def root(tmp_path):
    """Folder of three cameras' folders below two sites'."""
    return touch(tmp_path / "crops", *IMAGES)


@pytest.fixture
def own(cfg, root):
    """Builds the dataset of ``root`` with some keys of CAMERA_FOLDER set."""

    def build(**keys):
        cfg.CAMERA_FOLDER.ROOT = str(root)
        for key, value in keys.items():
            cfg.merge_from_list([f"CAMERA_FOLDER.{key}",
                                 str(value) if isinstance(value, Path) else value])
        return build_dataset(cfg, NAME)

    return build


@pytest.fixture
def logged(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("fastreid"), "propagate", True)
    caplog.set_level(logging.INFO, logger="fastreid")
    return caplog


@pytest.fixture
def warning(logged):
    """Text of the one warning that is logged."""
    def find():
        (text,) = [r.getMessage() for r in logged.records if r.levelno == logging.WARNING]
        return text

    return find


def cameras(dataset, root):
    """{path below the root: camera}"""
    assert all(camera.startswith(CAMERA_PREFIX) for _, _, camera in dataset.train)
    return {os.path.relpath(path, root): camera.removeprefix(CAMERA_PREFIX)
            for path, _, camera in dataset.train}


def refused(action, *parts, kind=ValueError):
    """That an error is raised which says each of the parts."""
    with pytest.raises(kind) as caught:
        action()
    text = str(caught.value)
    assert not [part for part in parts if part not in text], text
    text.encode("utf-8")
    assert "\n" not in text
    return text


# ------------------------------------------------------------------------- the folder ----


@pytest.mark.parametrize("keys, expected", [
    ({"LEVEL": 1}, "north north north south"), ({"LEVEL": 2}, "door gate gate gate"),
    ({"LEVEL": -1}, "1 gate gate gate"), ({"LEVEL": -2}, "door north north south"),
    ({"CAMERA": "none"}, "one one one one"),
    ({"PATTERN": "(so|no)(?P<camera>[a-z]+)/"}, "rth rth rth uth"),
    ({"PATTERN": "^(north) ^(south)  /(nothing)/"}, "north north north south"),
    ({"PATTERN": "/(gate)/ /(0*1)/ (x)?c.jpeg"}, "1 gate gate gate")], ids=str)
def test_where_cameras_are_read_from(own, root, keys, expected):
    if "PATTERN" in keys:
        keys = {"CAMERA": "pattern", **keys}
    found = cameras(own(**keys), root)
    assert list(found) == IMAGES  # sorted by path
    assert list(found.values()) == expected.split()


def test_there_is_no_identity(own, cfg):
    dataset = own()
    assert len({identity for _, identity, _ in dataset.train}) == 1
    assert dataset.query == [] == dataset.gallery and dataset.left_out == {}
    cfg.DATASETS.NAMES = (NAME,)
    assert training_images(cfg) == [(path, camera) for path, _, camera in dataset.train]


def test_hidden_and_other_files_are_left_out(own, root, logged):
    touch(root, ".hidden.jpg", ".cache/x.jpg", "north/.git/y.jpg", "notes.txt", "north/a.TXT",
          "north/gate/Thumbs.db", "north/README")
    dataset = own()
    assert len(dataset.train) == 4 and not logged.text
    dataset.show_train()
    first, line = [r.getMessage() for r in logged.records if r.name == "fastreid.caureid"]
    assert f"4 images of 2 camera(s) below {root}" in first
    for part in ("4 files", str(root), "1 .db", "2 .txt", "1 without suffix"):
        assert part in line
    assert dataset.left_out == {"": 1, ".db": 1, ".txt": 2}


@pytest.mark.parametrize("others, level", [(4, logging.INFO), (5, logging.WARNING)])
def test_more_other_files_than_images_are_a_warning(own, root, logged, others, level):
    touch(root, *(f"{number}.heic" for number in range(others)))
    own().show_train()
    (record,) = [r for r in logged.records if "left out" in r.getMessage()]
    assert record.levelno == level and f"{others} .heic" in record.getMessage()


def test_home_and_relative_roots(own, root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    assert len(own(ROOT="~/crops").train) == 4
    monkeypatch.chdir(root.parent)
    assert own(ROOT="crops/").train[0][0] == "crops/north/door/01/c.jpeg"
    monkeypatch.chdir(root)
    assert sorted(cameras(own(ROOT="."), ".").values()) == ["north", "north", "north", "south"]


def test_links_are_followed_and_loops_are_not(own, root, tmp_path, warning):
    touch(tmp_path / "elsewhere", "e.jpg")
    (root / "west").symlink_to(tmp_path / "elsewhere")
    (root / "north" / "up").symlink_to(root)
    (root / "south" / "f.jpg").symlink_to(tmp_path / "elsewhere" / "e.jpg")
    (root / "itself").symlink_to(root / "itself")
    dataset = own()
    assert sorted(cameras(dataset, root)) == sorted([*IMAGES, "south/f.jpg", "west/e.jpg"])
    dataset.show_train()
    assert re.search(f"{root}/north/up .*back to {root}", warning())


def test_a_folder_that_is_reached_twice(own, root):
    (root / "west").symlink_to(root / "north")
    refused(lambda: own().train, str(root / "west"), str(root / "north"), "CAMERA_FOLDER.ROOT",
            "remove the link")


def test_the_images_reach_the_toolbox_and_its_tables(own, root, cfg, logged):
    for path, *_ in own().train:
        Image.new("RGB", (16, 32)).save(path)
    cfg.merge_from_list(["DATASETS.NAMES", (NAME,), "DATALOADER.NUM_WORKERS", 0, "MODEL.DEVICE",
                         "cpu", "SOLVER.IMS_PER_BATCH", 4])
    loader = build_reid_train_loader(cfg)
    assert len(loader.dataset) == 4 and loader.dataset.num_cameras == 2
    assert "4 images of 2 camera(s)" in logged.text and "# ids" not in logged.text
    own().show_test()
    assert "| gallery  | 0       | 0          | 0           |" in logged.text


# ------------------------------------------------------------------- errors of the folder ----


def test_a_root_that_is_none(own, tmp_path):
    refused(lambda: own(ROOT="").train, "CAMERA_FOLDER.ROOT is empty", "folder of the images")
    missing = tmp_path / "nothing"
    refused(lambda: own(ROOT=missing).train, f"CAMERA_FOLDER.ROOT {missing} does not exist",
            os.getcwd(), kind=FileNotFoundError)
    file = touch(tmp_path, "file.jpg") / "file.jpg"
    refused(lambda: own(ROOT=file).train, f"CAMERA_FOLDER.ROOT {file} is not a folder")


def test_a_folder_that_cannot_be_listed(own, root, monkeypatch):
    original = os.scandir

    def scandir(path):
        if str(path).endswith("door"):
            raise PermissionError(13, "Permission denied", path)
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    refused(lambda: own().train, "CAMERA_FOLDER.ROOT", str(root / "north" / "door"),
            "Permission denied", "chmod u+rx")


def test_a_folder_without_images(own, tmp_path):
    touch(tmp_path / "empty", "a/notes.txt", "a/.b.jpg")
    refused(lambda: own(ROOT=tmp_path / "empty").train,
            f"CAMERA_FOLDER.ROOT {tmp_path / 'empty'} holds no image", "2 folder(s)",
            "1 other file(s)", *images_module.IMAGE_SUFFIXES)


@pytest.mark.parametrize("level, needs, count, first", [
    (-1, "1 folder(s) above the image", 1, "loose.jpg"),
    (5, "5 folder(s) between it and the image", 5, "loose.jpg, north/door/01/c.jpeg")])
def test_images_that_lie_too_high(own, root, level, needs, count, first):
    touch(root, "loose.jpg")
    text = refused(lambda: own(LEVEL=level).train, f"LEVEL {level}", needs,
                   f"{count} of the 5 images", first, "CAMERA_FOLDER.CAMERA 'folder'", "'none'")
    assert ("UNMATCHED skip" in text) == (count < 5)  # nothing would be left


def test_not_all_images_may_be_skipped(own):
    refused(lambda: own(UNMATCHED="skip", LEVEL=9).train, "LEVEL 9", "4 of the 4 images")


@pytest.mark.parametrize("keys, kept, named", [
    ({"LEVEL": 2}, 4, ["CAMERA_FOLDER.UNMATCHED skip leaves out 1 of 5", "loose.jpg"]),
    ({"CAMERA": "pattern", "PATTERN": "^(no)"}, 3, ["leaves out 2 of 5", "loose"])])
def test_images_without_camera_may_be_skipped(own, root, keys, kept, named, warning):
    touch(root, "loose.jpg")
    dataset = own(UNMATCHED="skip", **keys)
    assert len(dataset.train) == kept and "loose.jpg" not in cameras(dataset, root)
    dataset.show_train()
    assert [part for part in named if part in warning()] == named


# -------------------------------------------------------------------------- the pattern ----


def test_numbers_compare_as_numbers(own, root, tmp_path):
    files = touch(tmp_path / "n", "c01_x1.jpg", "c1_x001.jpg", "c10_x10.jpg", "c00_x0.jpg")
    found = cameras(own(ROOT=files, CAMERA="pattern", PATTERN="c([0-9]+) x([0-9]+)"), files)
    assert list(found.values()) == ["0", "1", "10", "1"]


def test_two_patterns_that_disagree(own):
    refused(lambda: own(CAMERA="pattern", PATTERN="^(north|south) (gate)").train,
            "CAMERA_FOLDER.PATTERN disagree", "north/gate/a.PNG", "'^(north|south)'", "'(gate)'",
            "camera north", "reads gate")


def test_patterns_that_would_take_for_ever(own, tmp_path):
    files = touch(tmp_path / "n", f"{60 * 'a'}!.jpg")
    refused(lambda: own(ROOT=files, CAMERA="pattern", PATTERN="^(a|aa)+_c").train,
            "CAMERA_FOLDER.PATTERN: '^(a|aa)+_c' takes more than 1 s", f"{60 * 'a'}!.jpg")
    refused(lambda: own(CAMERA="pattern", PATTERN="(a)" + 2000 * "b"),
            "CAMERA_FOLDER.PATTERN has 2003 characters, and 2000 are allowed")


def test_patterns_that_take_long_for_each_of_many(own, tmp_path, monkeypatch):
    """One budget for all of them: none takes as long as a single one may."""
    spent = [0.0]
    monkeypatch.setattr(camera_source.time, "thread_time", lambda: spent[0])
    names = [f"c{i}_{i % 7 * 'a'}.jpg" for i in range(2000)]

    class Slow:
        pattern = "c([0-9])"

        def search(self, path, timeout):
            assert 0 < timeout <= 1
            spent[0] += 0.9 if path == "c1234_aa.jpg" else 0.001
            return re.search(self.pattern, path)

    monkeypatch.setattr(camera_source.regex, "compile", lambda text: Slow())
    files = touch(tmp_path / "n", *names)
    refused(lambda: own(ROOT=files, CAMERA="pattern", PATTERN="c([0-9])").train,
            "CAMERA_FOLDER.PATTERN: 'c([0-9])' takes more than 2.2 s for 2000 images, "
            "c1234_aa.jpg for one: it repeats")
    assert 2.2 <= spent[0] < 2.2 + 0.9


def test_patterns_that_match_nothing_or_only_some(own):
    text = refused(lambda: own(CAMERA="pattern", PATTERN="_c([0-9])").train,
                   "CAMERA_FOLDER.PATTERN '_c([0-9])'", "4 of the 4 images",
                   "north/door/01/c.jpeg, north/gate/a.PNG, north/gate/b.jpg and 1 more")
    assert "south" not in text and "skip" not in text
    refused(lambda: own(CAMERA="pattern", PATTERN="(south)").train, "3 of the 4 images",
            ", ".join(IMAGES[:3]), "CAMERA_FOLDER.UNMATCHED skip")


@pytest.mark.parametrize("pattern, says", [
    ("(ok) c([0-9]", ["'c([0-9]'", "no regular expression", "position 1"]),
    ("(a)(b)", ["2 groups", "(?P<camera>...)"]),
    ("cam ([0-9]+)", ["'cam'", "0 groups", r"Blanks separate patterns: \s stands for one"]),
    (" ", ["' '", "'pattern' needs"]),
    ("((x{999}){999,}){99}(a)b{0}", ["repeats what repeats", "1,000,000 times"])])
def test_patterns_that_are_none(own, pattern, says):
    refused(lambda: own(CAMERA="pattern", PATTERN=pattern), "CAMERA_FOLDER.PATTERN", *says)


# --------------------------------------------------------------------------- the options ----


@pytest.mark.parametrize("keys, says", [
    ({"PATTERN": "(a)"}, ["PATTERN '(a)'", "CAMERA_FOLDER.CAMERA 'folder'", "set it back to"]),
    ({"CAMERA": "none", "UNMATCHED": "skip"}, ["UNMATCHED 'skip'", "CAMERA 'none'"]),
    ({"CAMERA": "fodler"}, ["CAMERA 'fodler'", "known are"]),
    ({"UNMATCHED": "x"}, ["UNMATCHED 'x'", "known are"]),
    ({"LEVEL": 0}, ["LEVEL 0", "1 is the first"]),
    ({"CAMERA": "csv"}, ["CAMERA 'csv' needs CAMERA_FOLDER.CSV"]),
    ({"QUERY": "x"}, ["QUERY is x", "CAMERA_FOLDER.GALLERY is empty"]),
    ({"GALLERY": "x"}, ["GALLERY is x", "CAMERA_FOLDER.QUERY is empty"])], ids=str)
def test_options_that_make_no_sense(own, keys, says):
    refused(lambda: own(**keys), *(f"CAMERA_FOLDER.{says[0]}", *says[1:]))


# ---------------------------------------------------------------------------- the table ----


def table(root, *rows, header=("path", "camera"), **options):
    return write_csv(root.parent / "tables" / "cameras.csv", header, *rows, **options)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_cameras_from_a_table(own, root, encoding):
    file = table(
        root, ["x", " Tür, Süd ", f"../crops/{IMAGES[0]}"], ["", "02", str(root / IMAGES[1])],
        [], ["y", "2", f"../tables/../crops/{IMAGES[2]}"], ["", "2", f"../crops/{IMAGES[2]}"],
        ["z", "3", f" ../crops/{IMAGES[3]}"], header=("note", " camera", "path "),
        encoding=encoding)
    found = cameras(own(CAMERA="csv", CSV=file), root)
    assert list(found.values()) == ["Tür, Süd", "2", "2", "3"]


def test_a_table_may_lead_through_links(own, root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    file = table(root, *([f"../link/{name}", i] for i, name in enumerate(IMAGES)))
    assert list(cameras(own(CAMERA="csv", CSV=file), root).values()) == ["0", "1", "2", "3"]
    file = table(root, *([root / name, i] for i, name in enumerate(IMAGES)))
    linked = cameras(own(ROOT=tmp_path / "link", CSV=file), tmp_path / "link")
    assert list(linked.values()) == ["0", "1", "2", "3"]


ROWS = [[f"../crops/{name}", f"cam{i}"] for i, name in enumerate(IMAGES)]


@pytest.mark.parametrize("rows, says", [
    (ROWS[:2], ["no row for 2 of the 4 images", *IMAGES[2:], "UNMATCHED skip"]),
    ([*ROWS, ["../crops/x.jpg", "cam9"]], ["1 of 5 rows name no image", "line 6", "crops/x.jpg"]),
    ([*ROWS, [*ROWS[1][:1], "other"]], [IMAGES[1], "twice", "cam1 in line 3", "other in line 6"]),
    ([*ROWS[:3], ["../crops/south/gate/d.webp", " "]], ["1 of 4 rows", "no camera", "line 5"]),
    ([*ROWS[:3], ["", "cam"]], ["1 of 4 rows", "no path", "line 5"]),
    ([*ROWS[:2], *([ROWS[3][0], text] for text in ("nan", "None", "<NA>"))],
     ["3 of 5 rows", "no camera", "line 4, 5, 6"]),
    ([*ROWS[:2], *([ROWS[3][0], text] for text in ("NA", "N/A", "#NV", "#REF!", "-NaN"))],
     ["5 of 7 rows", "no camera", "line 4, 5, 6, ..."]),
    ([*ROWS, ["a", "b", "c"], ["d"]], ["2 of 7 rows", "not the 2 cells", "line 6, 7"])])
def test_tables_that_do_not_fit(own, root, rows, says):
    file = table(root, *rows)
    refused(lambda: own(CAMERA="csv", CSV=file).train, "CAMERA_FOLDER.CSV", str(file), *says)


@pytest.mark.parametrize("content, says", [
    (b"", ["is empty", "path, camera"]),
    (b"path;camera\na.jpg;1\n", ["column(s) path, camera", "path;camera", "commas"]),
    (b"path,cam\na.jpg,1\n", ["column(s) camera", "'cam'"]),
    (b"path,camera,camera\na.jpg,1,2\n", ["column(s) camera once"]),
    (b"path,camera\n\xff.jpg,1\n", ["damaged", "UTF-8"]),
    (b'path,camera\n"a.jpg,1\n', ["damaged", "unexpected end of data"]),
    (b"path,camera\na.jpg,\0\n", [])])
def test_tables_that_are_none(own, root, content, says):
    file = root.parent / "cameras.csv"
    file.write_bytes(content)
    refused(lambda: own(CAMERA="csv", CSV=file).train, "CAMERA_FOLDER.CSV", str(file), *says)


def test_no_table(own, root):
    os.mkfifo(root.parent / "waits.csv")
    for path in ("no.csv", str(root.parent / "waits.csv")):
        refused(lambda path=path: own(CAMERA="csv", CSV=path).train,
                f"CAMERA_FOLDER.CSV {path} is not a file", os.getcwd(), kind=FileNotFoundError)


# ------------------------------------------------------------------------- labelled images ----


@pytest.fixture
def labelled(tmp_path):
    """Query and gallery named as in Market-1501: cameras of two digits, any suffix, junk."""
    touch(tmp_path / "query", "0002_c1s1_0.jpg", "0002_c12s1_0.png", "17_c1.jpg")
    touch(tmp_path / "gallery", "0002_c12s1_1.JPG", "more/0002_c1s1_1.webp", "0017_c3.jpg",
          "-1_c1s1_0.jpg", "0000_c2s1_0.jpg", "notes.txt")
    return {"QUERY": tmp_path / "query", "GALLERY": tmp_path / "gallery"}


def by_name(items):
    return {Path(path).name: labels for path, *labels in items}


def test_labels_from_names(own, labelled):
    """Numbered over both, in the order of the names as texts, without the junk."""
    dataset = own(**labelled)
    nobody, seventeen, two = range(3)  # 0, 17, 2
    c1, c12, c2, c3 = range(4)
    assert by_name(dataset.query) == {
        "0002_c1s1_0.jpg": [two, c1], "0002_c12s1_0.png": [two, c12], "17_c1.jpg": [seventeen, c1]}
    assert by_name(dataset.gallery) == {
        "0002_c12s1_1.JPG": [two, c12], "0002_c1s1_1.webp": [two, c1],
        "0017_c3.jpg": [seventeen, c3], "0000_c2s1_0.jpg": [nobody, c2]}


def test_labels_from_tables(own, root, tmp_path, labelled):
    header = ["camera", "identity", "path"]
    write_csv(tmp_path / "q.csv", header, ["gate", "Ann, B.", "query/0002_c1s1_0.jpg"],
              ["door", "007", "query/17_c1.jpg"], ["door", "-1", "query/0002_c12s1_0.png"])
    write_csv(tmp_path / "g.CSV", header, ["door", "Ann, B.", "gallery/0002_c12s1_1.JPG"],
              ["gate", "7", tmp_path / "gallery" / "0017_c3.jpg"])
    dataset = own(QUERY=tmp_path / "q.csv", GALLERY=tmp_path / "g.CSV")
    (ann, gate), (seven, door) = by_name(dataset.query).values()
    assert by_name(dataset.gallery) == {
        "0002_c12s1_1.JPG": [ann, door], "0017_c3.jpg": [seven, gate]}
    assert ann != seven and gate != door
    mixed = own(GALLERY=labelled["GALLERY"], QUERY=write_csv(
        tmp_path / "q.csv", header, ["12", "2", "query/0002_c1s1_0.jpg"]))
    assert by_name(mixed.query)["0002_c1s1_0.jpg"] == by_name(mixed.gallery)["0002_c12s1_1.JPG"]


def test_labels_are_sorted_and_read_when_they_are_asked_for(own, labelled):
    missing = own(**{key: folder / "none" for key, folder in labelled.items()})  # no error yet
    refused(lambda: missing.gallery, "CAMERA_FOLDER.QUERY", kind=FileNotFoundError)
    with compat.without("sorted_listing"):
        dataset = own(**labelled)
        for part in (dataset.query, dataset.gallery):
            paths = [path for path, *_ in part]
            assert len(paths) > 2 and paths == sorted(paths)
    touch(labelled["QUERY"], "0002_c1_late.jpg")
    assert len(dataset.query) == 3 and dataset.query is dataset.query  # listed once


def test_labelled_images_are_not_combined_with_those_to_train_on(own, labelled, cfg):
    says = "DATASETS.COMBINEALL True", "CameraFolder have no identities", "set it to False"
    cfg.merge_from_list(["DATASETS.COMBINEALL", True, "DATASETS.NAMES", (NAME,)])
    refused(lambda: own(**labelled), *says)
    cfg.DATASETS.NAMES = ("Market1501",)  # another set is trained on
    assert len(own(**labelled).query) == 3


def test_the_test_loader_has_them(own, labelled, cfg, logged):
    own(**labelled)
    for folder in labelled.values():
        for path in folder.rglob("*_c*"):
            Image.new("RGB", (8, 16)).save(path)
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "MODEL.DEVICE", "cpu"])
    cfg.CAMERA_FOLDER.ROOT = ""  # what is only evaluated needs no training images
    loader, queries = build_reid_test_loader(cfg, dataset_name=NAME)
    assert queries == 3 and len(loader.dataset) == 7
    assert "| query    | 2       | 3          | 2           |" in logged.text


HEADER = ["path", "identity", "camera"]


@pytest.mark.parametrize("rows, says", [
    ([["query/17_c1.jpg", "", "1"], ["query/0002_c1s1_0.jpg", "2", "1"],
      ["query/0002_c12s1_0.png", " ", "2"]], ["2 of 3 rows have no identity", "line 2, 4"]),
    ([["query/17_c1.jpg", "17", ""]], ["1 of 1 rows have no camera"]),
    ([["query/17_c1.jpg", "NaN", "1"]], ["1 of 1 rows have no identity", "nan or the like"]),
    ([["query/x.jpg", "17", "1"]], ["1 of 1 rows name no file", "query/x.jpg", "line 2"]),
    ([["query/17_c1.jpg", "17", "1"], ["query/17_c1.jpg", "18", "1"]],
     ["17_c1.jpg twice", "line 3"]),
    ([["query/17_c1.jpg", "-1", "1"]], ["no image with an identity"])])
def test_labels_for_part_of_the_query(own, tmp_path, labelled, rows, says):
    file = write_csv(tmp_path / "q.csv", HEADER, *rows)
    dataset = own(QUERY=file, GALLERY=labelled["GALLERY"])
    refused(lambda: dataset.query, "CAMERA_FOLDER.QUERY", str(file), *says)
    refused(lambda: dataset.train, "CAMERA_FOLDER.QUERY")  # before anything is trained


def test_names_without_labels(own, tmp_path, labelled):
    touch(tmp_path / "gallery", "photo.jpg", "c1_0002.jpg")
    refused(lambda: own(**labelled).gallery, "CAMERA_FOLDER.GALLERY", "2 of 7 images",
            str(tmp_path / "gallery" / "c1_0002.jpg"), "photo.jpg", "0002_c1", ".csv")


@pytest.mark.parametrize("name, says, kind", [
    ("no", "does not exist", FileNotFoundError), ("no.csv", "is not a file", FileNotFoundError),
    ("bare", "holds no image", ValueError)])
def test_no_labelled_images(own, tmp_path, labelled, name, says, kind):
    (tmp_path / "bare").mkdir()
    refused(lambda: own(QUERY=tmp_path / name, GALLERY=labelled["GALLERY"]).query,
            f"CAMERA_FOLDER.QUERY {tmp_path / name} {says}", kind=kind)


@pytest.mark.parametrize("query, shared", [
    (["0017_c3.jpg"], "1 of 1 query identities are in the gallery, seen only by the query's"),
    (["9_c1.jpg", "8_c1.jpg"], "0 of 2 query identities")])
def test_queries_that_nothing_answers(own, tmp_path, labelled, query, shared):
    dataset = own(QUERY=touch(tmp_path / "other", *query), GALLERY=labelled["GALLERY"])
    refused(lambda: dataset.train, f"None of the {len(query)} images of CAMERA_FOLDER.QUERY",
            "CAMERA_FOLDER.GALLERY", shared, "add images")


def test_queries_some_of_which_nothing_answers(own, tmp_path, labelled, logged, warning):
    query = touch(tmp_path / "other", "0002_c5.jpg", "0002_c6.jpg", "9_c1.jpg")
    dataset = own(QUERY=query, GALLERY=labelled["GALLERY"])
    for show in (dataset.show_test, dataset.show_train):
        logged.clear()
        show()
        assert "1 of the 3 images of CAMERA_FOLDER.QUERY" in warning()


def test_labelled_images_among_the_training_images(own, root, labelled, warning):
    own(**labelled, LEVEL=1, ROOT=root.parent).show_train()
    assert "7 of the 7 images of CAMERA_FOLDER.QUERY and GALLERY" in warning()


# ----------------------------------------------------------------------- names of cameras ----


def test_whole_numbers_are_one_name_in_every_spelling():
    spellings = ["1", "01", "1.0", "001.00", "1."]
    assert {plain_name(text) for text in spellings} == {"1"}
    assert [plain_name(text) for text in ("-1.0", "-01", "000", "10.0", "1.5", "1.0.0", "c1.0",
                                          "", "1,0", ".0", "-0", "-0.0", "+1", "1e0")] == [
        "-1", "-1", "0", "10", "1.5", "1.0.0", "c1.0", "", "1,0", ".0", "0", "0", "+1", "1e0"]


@pytest.mark.parametrize("first, second, alike", [
    ("Cam1", "cam1", True), ("cam 1", "cam_01", True), ("gate-north", "GateNorth", True),
    ("Tu\u0308r", "T\u00fcr", True), ("cam1", "cam 2", False), ("cam1-2", "cam12", False),
    ("cam10", "cam1", False), ("1.5", "15", False), ("\udcff", "\udcfe", False),
    ("-1", "1", False), ("-1.5", "1.5", False), ("-1.0", "-01", True), ("+1", "1", True),
    ("cam-1", "cam1", True), ("1e0", "1", False)])
def test_names_that_differ_only_in_spelling(first, second, alike):
    expected = f"{first!r} (A) and {second!r} (B)" if alike else ""
    assert alike_names({"A": [first, "other"], "B": [second]}) == expected


@pytest.mark.parametrize("name", ["cam.1", "cam#1", "CAM(1)", "cam\u20131", "cam1/", "cam\u200b1",
                                  "cam1.0", "cam01,00"])
def test_signs_that_differ_are_reported(name):
    assert alike_names({"A": [name], "B": ["cam1"]})
    assert not alike_names({"A": [name], "B": ["cam2", "cam10", "1"]})


@pytest.fixture
def tables(own, tmp_path, labelled):
    """Builds the dataset with a query and a gallery of (name, identity, camera)."""
    def build(query, gallery, **keys):
        names = {"q": query, "g": gallery}
        for name, rows in names.items():
            touch(tmp_path, *(row[0] for row in rows))
            write_csv(tmp_path / f"{name}.csv", HEADER, *rows)
        return own(QUERY=tmp_path / "q.csv", GALLERY=tmp_path / "g.csv", **keys)

    return build


def test_a_camera_that_pandas_wrote_is_the_same_camera(tables):
    """1.0 against 1: images of the query's own camera must have its number, to be left out."""
    dataset = tables([["a.jpg", "7.0", "1.0"]], [
        ["b.jpg", "7", "1"], ["c.jpg", "07", "2"], ["d.jpg", "-1.0", "2"]])
    ((_, who, seen_by),) = dataset.query
    assert by_name(dataset.gallery) == {"b.jpg": [who, seen_by], "c.jpg": [who, 1 - seen_by]}


def test_names_in_several_spellings_are_reported(tables, root, logged):
    (root / "Gate_1").mkdir()
    touch(root, "Gate_1/x.jpg")
    dataset = tables([["a.jpg", "Ann", "Cam1"], ["b.jpg", "bob", "gate 01"]], [
        ["c.jpg", "Ann", "cam1"], ["d.jpg", "Bob", "3"], ["e.jpg", "bob", "3"],
        ["f.jpg", "bob", "gate 01"]])
    dataset.show_test()
    (who, cameras) = [r.getMessage() for r in logged.records if r.levelno == logging.WARNING]
    assert "'bob' (CAMERA_FOLDER.QUERY, CAMERA_FOLDER.GALLERY) and 'Bob' (CAMERA_FOLDER." in who
    assert "'Cam1' (CAMERA_FOLDER.QUERY) and 'cam1' (CAMERA_FOLDER.GALLERY)" in cameras
    assert "Gate" not in cameras  # no training image is listed to evaluate
    logged.clear()
    dataset.show_train()
    text = [r.getMessage() for r in logged.records if r.levelno == logging.WARNING][-1]
    assert "'Cam1'" in text and "'Gate_1' (CAMERA_FOLDER.ROOT) and 'gate 01' (" in text


def test_training_cameras_in_several_spellings_are_reported(own, root, warning):
    touch(root, "North/x.jpg")
    own().show_train()
    assert "'North' (CAMERA_FOLDER.ROOT) and 'north' (CAMERA_FOLDER.ROOT)" in warning()


def test_query_and_gallery_without_a_common_camera(tables, warning):
    tables([["a.jpg", "1", "cam1"]], [["b.jpg", "1", "1"], ["c.jpg", "1", "2"]]).show_test()
    assert "no camera in common (cam1; 1, 2)" in warning()


def test_one_file_as_query_and_answer(tables):
    """It is left out as an image of the query's camera, unless its labels differ."""
    same = [["a.jpg", "1", "x"]]
    dataset = tables(same, [*same, ["b.jpg", "1", "y"]])
    assert len(dataset.gallery) == 2
    for row in (["a.jpg", "1", "y"], ["a.jpg", "2", "x"]):
        dataset = tables(same, [row, ["b.jpg", "1", "z"]])
        refused(lambda dataset=dataset: dataset.query, "CAMERA_FOLDER.QUERY and", "a.jpg",
                f"identity {row[1]!r} and camera {row[2]!r}", "correct the labels")


def test_one_camera_is_evaluated_as_two_sets(tables, warning):
    dataset = tables([["a.jpg", "ann", "hall"], ["b.jpg", "bob", "hall"]],
                     [["c.jpg", "ann", "hall"], ["d.jpg", "bob", "hall"]], CAMERA="none")
    assert [camera for _, _, camera in dataset.query] == [0, 0]
    assert [camera for _, _, camera in dataset.gallery] == [1, 1]
    dataset.show_test()
    assert "of one camera, 'hall'" in warning() and "two sets" in warning()


def test_one_camera_is_evaluated_as_two_folders(own, tmp_path):
    dataset = own(QUERY=touch(tmp_path / "q", "2_c1_a.jpg"),
                  GALLERY=touch(tmp_path / "g", "0002_c01_b.jpg", "3_c1.jpg"))
    assert [item[1:] for item in dataset.query] == [(0, 0)]
    assert [item[1:] for item in dataset.gallery] == [(0, 1), (1, 1)]


def test_one_camera_whose_query_lies_in_the_gallery(tables, tmp_path):
    """It would find itself."""
    touch(tmp_path, "a.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    for name in ("a.jpg", "link.jpg"):
        dataset = tables([["a.jpg", "1", "x"]], [[name, "1", "x"], ["b.jpg", "1", "x"]])
        refused(lambda dataset=dataset: dataset.query, "1 of the 1 images of CAMERA_FOLDER.QUERY",
                "a.jpg", "one camera", "into only one of them")


@pytest.mark.parametrize("labels, counts", [
    ((("1", "x"), ("1", "x")), True), ((("1", "x"), ("2", "x")), True),  # one camera: two sets
    ((("1", "x"), ("1", "y")), True), ((("1", "x"), ("1", "x"), ("1", "y")), False)])
def test_copies_of_queries_in_the_gallery_are_reported(tables, tmp_path, logged, labels, counts):
    """Unless the evaluator leaves them out, as it does those of the query's camera and identity."""
    rows = [[f"{name}.jpg", *label] for name, label in zip("abc", labels, strict=False)]
    gallery = [*rows[1:], ["d.jpg", "1", labels[0][1]]]
    dataset = tables(rows[:1], gallery)
    for name, content in (("a", b"same"), ("b", b"same"), ("c", b"diff"), ("d", b"others")):
        (tmp_path / f"{name}.jpg").write_bytes(content)
    dataset.show_test()
    found = [r.getMessage() for r in logged.records if "copy in GALLERY" in r.getMessage()]
    assert len(found) == counts
    assert not counts or ("1 of the 1 images of CAMERA_FOLDER.QUERY" in found[0]
                          and "a.jpg" in found[0] and "b.jpg" in found[0])


# ----------------------------------------------------------------------- systems' folders ----


THUMBNAILS = ["north/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "north/@eaDir/a.jpg/X.png",
              "@eaDir/y.jpg", "#recycle/old/z.jpg", "$RECYCLE.BIN/S-1-5/z.jpg", "FOUND.000/z.jpg",
              "lost+found/1.jpg", "__MACOSX/north/1.jpg", ".thumbnails/1.jpg", "@eaDir/notes.txt",
              "north/@__thumb/default0.jpg", "Recycle Bin /z.jpg", "_gsdata_/_saved_/z.jpg",
              ".@__thumb/z.jpg", ".Trash-1000/files/z.jpg"]
# bins and thumbnails of one volume, of older systems, of cards, and copies of them
MORE_THUMBNAILS = ["Network Recycle Bin 1/z.jpg", "Recycle Bin - Volume_1/z.jpg", "LOST.DIR/1.jpg",
                   "_NAS_Recycle_/z.jpg", "RECYCLE.BIN/z.jpg", "north/@eaDir (1)/z.jpg",
                   "north/@eaDir copy/z.jpg", "__MACOSX 2/z.jpg"]


def test_folders_of_the_system_are_left_out(own, root, logged):
    touch(root, *THUMBNAILS)
    dataset = own()
    assert sorted(cameras(dataset, root)) == IMAGES and dataset.left_out == {}
    assert dataset.left_out_folders == {
        "#recycle": 1, "$RECYCLE.BIN": 1, "@__thumb": 1, "@eaDir": 3, "FOUND.000": 1,
        "Recycle Bin ": 1, "__MACOSX": 1, "_gsdata_": 1, "lost+found": 1}
    dataset.show_train()
    (text,) = [r.getMessage() for r in logged.records if "SYSTEM_FOLDERS" in r.getMessage()]
    assert "11 images below" in text and "@eaDir (3)" in text
    assert len(own(SYSTEM_FOLDERS="read").train) == len(IMAGES) + 11  # hidden ones stay hidden
    refused(lambda: own(SYSTEM_FOLDERS="no"), "CAMERA_FOLDER.SYSTEM_FOLDERS 'no'", "known are")


def test_more_folders_of_the_system_are_left_out(own, root):
    touch(root, *MORE_THUMBNAILS, "recycle bin east/a.jpg")  # which a camera may look at
    dataset = own()
    assert dataset.left_out_folders == {Path(name).parts[-2]: 1 for name in MORE_THUMBNAILS}
    assert sorted(cameras(dataset, root)) == sorted([*IMAGES, "recycle bin east/a.jpg"])


def test_tables_that_name_what_is_left_out(own, root):
    """As `find` lists it."""
    touch(root, "north/@eaDir/x.jpg", "north/.hidden.jpg")
    rows = [[f"../crops/north/{name}", "n"] for name in ("@eaDir/x.jpg", ".hidden.jpg", "no.jpg")]
    refused(lambda: own(CAMERA="csv", CSV=table(root, *ROWS, *rows)).train,
            "3 of 7 rows name no image", "2 of them are files all the same", "SYSTEM_FOLDERS")


def test_tables_with_letters_that_are_composed_otherwise(own, root):
    """As macOS writes them."""
    touch(root, "T\u00fcr/x.jpg")
    file = table(root, *ROWS, ["../crops/Tu\u0308r/x.jpg", 1])
    refused(lambda: own(CAMERA="csv", CSV=file).train,
            "1 of 5 rows name no image", "There is", "/crops/T\u00fcr/x.jpg: write it so")


def test_a_folder_of_the_system_may_be_the_root_or_closed(own, root, tmp_path, monkeypatch):
    touch(tmp_path / "@eaDir", "north/a.jpg")
    assert len(own(ROOT=tmp_path / "@eaDir").train) == 1
    (root / "lost+found").mkdir()
    original = os.scandir

    def scandir(path):
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", path)
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert len(own(ROOT=root).train) == len(IMAGES)


def test_folders_of_the_system_hold_no_labels_and_nothing_else(own, labelled, tmp_path):
    touch(labelled["GALLERY"], "@eaDir/0002_c1s1_1.webp/SYNOPHOTO_THUMB_M.jpg")
    assert len(own(**labelled).gallery) == 4
    touch(tmp_path / "thumbs", "north/@eaDir/x.jpg")
    refused(lambda: own(ROOT=tmp_path / "thumbs").train, "holds no image",
            "1 image(s) in folders of the system were left out: @eaDir")


# --------------------------------------------------------------- tables of Windows, tracks ----


def test_backslashes_of_windows(own, root, tables, tmp_path):
    rows = [[rf"..\crops\{name}".replace("/", "\\"), i] for i, name in enumerate(IMAGES)]
    rows[0][0] = rf".\../crops\{IMAGES[0]}"  # both signs
    found = cameras(own(CAMERA="csv", CSV=table(root, *rows)), root)
    assert list(found.values()) == ["0", "1", "2", "3"]
    (root / "back\\slash.jpg").touch()  # a name of this system's
    rows.append([r"../crops/back\slash.jpg", 4])
    assert "back\\slash.jpg" in cameras(own(CAMERA="csv", CSV=table(root, *rows)), root)
    touch(tmp_path, "people/x.jpg", "people/y.jpg")
    write_csv(tmp_path / "w.csv", HEADER, [r"people\x.jpg", "1", "a"])
    write_csv(tmp_path / "v.csv", HEADER, [r"people\y.jpg", "1", "b"])
    dataset = own(QUERY=tmp_path / "w.csv", GALLERY=tmp_path / "v.csv", CAMERA="folder", CSV="")
    assert by_name(dataset.query) == {"x.jpg": [0, 0]}


@pytest.mark.parametrize("path, says", [
    (r"C:\crops\a.jpg", "a drive (C:)"), ("D:/crops/a.jpg", "a drive (C:)"),
    (r"\\nas\crops\a.jpg", "a server"), (r"wrong\a.jpg", "Backslashes are taken for /"),
    (r"..\CROPS\south\gate\D.webp", "/crops/south/gate/d.webp: write it so"),
    ("../crops/south/Gate/d.webp", "/crops/south/gate/d.webp: write it so")])
def test_paths_of_windows_that_name_nothing(own, root, path, says):
    refused(lambda: own(CAMERA="csv", CSV=table(root, *ROWS, [path, "x"])).train,
            "1 of 5 rows name no image", path.split("\\")[-1], says)
    write_csv(root.parent / "tables" / "q.csv", HEADER, [path, "1", "x"])
    refused(lambda: own(CAMERA="folder", CSV="", QUERY=root.parent / "tables" / "q.csv",
                        GALLERY=root.parent / "tables" / "q.csv").query,
            "1 of 1 rows name no file", says)


@pytest.mark.parametrize("keys, says", [
    ({"LEVEL": -1}, "LEVEL is -1; LEVEL 1 finds 2."),
    ({"LEVEL": 2}, "LEVEL is 2; LEVEL 1 finds 2."),
    ({"CAMERA": "pattern", "PATTERN": "track_([0-9]+)"}, "CAMERA_FOLDER.PATTERN")])
def test_tracks_that_are_taken_for_cameras(own, tmp_path, warning, keys, says):
    root = touch(tmp_path / "tracks", *(f"{camera}/track_{number}/{frame}.jpg" for camera in "ab"
                                        for number in range(25) for frame in range(3)))
    touch(root, *(f"b/track_{number}/0.jpg" for number in range(25, 31)))
    own(ROOT=root, **keys).show_train()
    assert "156 images are of 31 cameras, 5.0 each" in warning() and says in warning()


@pytest.mark.parametrize("count, frames", [(11, 3), (20, 3), (20, 59), (50, 110)])
def test_fewer_tracks_that_are_taken_for_cameras(own, tmp_path, warning, count, frames):
    root = touch(tmp_path / "tracks", *(f"{number % 2}/track_{number}/{frame}.jpg"
                                        for number in range(count) for frame in range(frames)))
    own(ROOT=root, LEVEL=-1).show_train()
    assert f"images are of {count} cameras, {frames}.0 each" in warning()
    assert "LEVEL 1 finds 2." in warning()


def test_a_few_small_cameras_or_many_large_ones_are_cameras(own, tmp_path, logged):
    few = touch(tmp_path / "few", *(f"{camera}/{i}.jpg" for camera in range(10) for i in range(2)))
    own(ROOT=few).show_train()
    more = touch(tmp_path / "more", *(f"{camera}/{i}.jpg" for camera in range(20)
                                      for i in range(60)))
    own(ROOT=more).show_train()
    many = touch(tmp_path / "many", *(f"{camera}/{i}.jpg" for camera in range(31)
                                      for i in range(100)))
    own(ROOT=many).show_train()
    assert not [r for r in logged.records if r.levelno == logging.WARNING]


# ------------------------------------------------------------------------- odd file names ----


@pytest.mark.parametrize("name", [b"\xff\xfe.jpg", b"a\nb\x1b[31m.jpg"])
def test_odd_names_break_no_message(own, root, name, logged):
    for place in (name, b"north/" + name, name + b".\xff"):
        Path(os.fsdecode(os.path.join(os.fsencode(root), place))).touch()
    path = os.fsdecode(name)
    text = refused(lambda: own().train, "1 of the 6 images", ascii(path)[1:-1])
    assert text.isprintable()
    dataset = own(UNMATCHED="skip")
    assert len(dataset.train) == 5 and "north/" + path in cameras(dataset, root)
    dataset.show_train()
    messages = [r.getMessage() for r in logged.records if r.name == "fastreid.caureid"]
    assert len(messages) == 3 and all(text.isprintable() for text in messages)
    escaped = re.escape(path).replace("\\\n", r"\s")  # a blank would begin another pattern
    keys = {"CAMERA": "pattern", "PATTERN": f"({escaped}) ^(n)orth"}
    refused(lambda: own(**keys).train, "disagree", ascii("north/" + path)[1:-1])


def test_cameras_of_odd_names_are_cameras(own, root):
    folder = os.path.join(os.fsencode(root), b"\xff")
    os.mkdir(folder)
    Path(os.fsdecode(folder), "x.jpg").touch()
    found = collections.Counter(camera for _, _, camera in own().train)
    assert found == {"camerafolder_north": 3, "camerafolder_south": 1, "camerafolder_\udcff": 1}


def test_a_table_of_images_is_left_out(own, root, logged):
    """Its paths are seen from its folder, and it may have other columns."""
    everything = own().train
    assert own().left_out_images == []
    (root.parent / "spare.csv").write_text(f"path,why\n{root.name}/{IMAGES[0]},black\n")
    dataset = own(LEAVE_OUT=root.parent / "spare.csv")
    assert dataset.train == everything[1:]
    assert dataset.left_out_images == [everything[0][0]]
    logged.clear()
    dataset.show_train()
    (text,) = [r.getMessage() for r in logged.records if "LEAVE_OUT" in r.getMessage()]
    assert "1 images below" in text and "spare.csv" in text


def test_an_image_that_is_left_out_needs_no_camera(own, root):
    touch(root, "loose.jpg")
    refused(lambda: own().train, "loose.jpg")
    (root / "spare.csv").write_text("path\nloose.jpg\n")
    assert len(own(LEAVE_OUT=root / "spare.csv").train) == len(IMAGES)


@pytest.mark.parametrize("content, words", [
    ("path\nnorth/absent.jpg\n", ("1 of 1 rows name no image below CAMERA_FOLDER.ROOT", "line 2",
                                  "absent.jpg")),
    ("file\nx.jpg\n", ("needs the column(s) path",)),
    (None, ("spare.csv", "is not a file"))])
def test_wrong_tables_of_images_to_leave_out(own, root, content, words):
    if content:
        (root / "spare.csv").write_text(content)
    refused(lambda: own(LEAVE_OUT=root / "spare.csv").train, "CAMERA_FOLDER.LEAVE_OUT", *words,
            kind=ValueError if content else FileNotFoundError)


def test_a_table_that_leaves_nothing(own, root):
    (root / "spare.csv").write_text("path\n" + "".join(f"{name}\n" for name in IMAGES))
    refused(lambda: own(LEAVE_OUT=root / "spare.csv").train, "names all 4 images", "none is left")
