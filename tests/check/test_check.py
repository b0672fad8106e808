"""``caureid check``: verdicts, lists and the page, on folders with and without faults."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
from types import SimpleNamespace

import caureid_plugin  # noqa: F401  (before everything that imports fastreid)
import numpy as np
import pytest
from caureid_plugin.check import findings, start, words
from caureid_plugin.check import page as check_page
from caureid_plugin.cli import check as check_command
from caureid_plugin.cli import eps as eps_command
from caureid_plugin.cli.common import call
from caureid_plugin.inspection import cameras as inspected_cameras
from PIL import Image

from helpers.page import Page, picture
from helpers.tiny import KEYS, OWN_CONFIG, write_crops

OWN = ["--config-file", OWN_CONFIG]
SMALL = """
MODEL.DEVICE cpu MODEL.BACKBONE.FEAT_DIM 16 MODEL.HEADS.CAMSEP.REDUCTION 4 MODEL.BN_GROUP_SIZE 8
INPUT.SIZE_TRAIN [32,16] INPUT.SIZE_TEST [32,16] SOLVER.IMS_PER_BATCH 16 DATALOADER.NUM_WORKERS 0
CAUREID.CLUSTER.CAMERA_AWARE False CAUREID.CLUSTER.K1 6 CAUREID.CLUSTER.K2 2
CAUREID.CLUSTER.EPS 0.6 SEED 7
""".split()


def run(root, *options, keys=(), network=False, page=False, few=1):
    """Runs the tool on the images below ``root``; gives status, output, JSON file and page.

    ``few``: batches that are enough, which would be too many for the tests' images; None is the
    tool's own number.
    """
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(start, "STEPS", 2)
        if few:
            patch.setattr(findings, "LEAST_BATCHES", few)
        table, shown = (root.parent / f"check.{suffix}" for suffix in ("json", "html"))
        status = call(check_command.command, [
            *OWN, "--json", table, *(["--output", shown] if page else []), "--workers", "2",
            *([] if network else ["--no-network"]), *options, "CAMERA_FOLDER.ROOT", root, *SMALL,
            *keys])
    return SimpleNamespace(
        status=status, printed=out.getvalue(), found=json.loads(table.read_text()),
        page=Page(shown) if page else None, text=" ".join(out.getvalue().split()))


@pytest.fixture
def check(tiny_crops):
    """Runs the tool on `tiny_crops`: 24 images of two cameras, north and south, no two alike."""
    return lambda *options, **others: run(tiny_crops, *options, **others)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A check of images without faults, with the network."""
    return run(write_crops(tmp_path_factory.mktemp("whole") / "crops"), network=True)


def texts(done, level):
    return [text for kind, text in done.found["findings"] if kind == level]


def test_images_without_faults_pass(whole):
    found = whole.found
    assert (whole.status, found["verdict"], found["findings"]) == (0, "PASS", [])
    assert whole.printed.startswith("24 images of CameraFolder, 2 cameras\n")
    assert "Verdict: PASS\n" in whole.printed and "All 24 files can be read." in whole.printed
    assert re.search(r"\| south +\| +12 \| +50\.0 % \| +64 x 32 \|", whole.printed)
    assert list(found["cameras"].values()) == [12, 12]
    assert found["copies"] == {"exact": [], "near_within": 0, "near_across": []}
    assert found["left_out"] == {} and "Left out" not in whole.printed


def test_tracks_are_counted(check, whole):
    """Of each camera ten images of one track and two of another, which are there at one time."""
    keys = ["CAMERA_FOLDER.TRACK", "pattern", "CAMERA_FOLDER.TRACK_PATTERN",
            "/(?P<track>.)(?P<time>.)[.]"]
    done = check(keys=[*keys, "CAMERA_FOLDER.TIME", "pattern", "CAUREID.CLUSTER.K1", "3"],
                 network=True)
    expected = {"tracks": 2, "mean_length": 6.0, "longest": 10, "pairs_at_one_time": 1}
    assert done.found["tracks"] == {"north": expected, "south": expected}
    assert re.search(r"\| south +\| +2 +\| +6.0 \| +10 \| +1 \|", done.printed), done.printed
    assert done.found["findings"] == [] and done.found["start"]["eps_sweep"]
    # four tracks are clustered, and not 24 images
    assert done.found["start"]["memory_gib"] < whole.found["start"]["memory_gib"]
    done = check(keys=keys)
    assert done.found["tracks"]["north"] == {**expected, "pairs_at_one_time": None}
    assert "Times are not known" in done.text
    assert "tracks" not in check().found


def test_time_and_memory(whole):
    figures = whole.found["start"]
    cost = figures["cost"]  # 20 epochs of 50 steps, images and clusters anew for each
    assert cost["total"] == pytest.approx(
        1000 * figures["seconds_per_step"] + 20 * 24 * figures["seconds_per_image"]
        + 20 * cost["clustering"])
    assert figures["memory_gib"] > 0 and "GiB beyond the features" in whole.printed
    assert "images at most" not in whole.text, "all images were measured"


def test_features_and_first_clustering_are_those_of_choose_eps(tiny_market, tmp_path, monkeypatch,
                                                               capsys):
    """Its features are those that training starts from, as its own tests show."""
    config, keys = ["--config-file", "Synthetic/caureid.yml"], [*KEYS, "SEED", "3"]
    paths = {name: str(tmp_path / name) for name in ("found.npz", "eps.csv", "check.json")}
    call(eps_command.command, [*config, "--save-features", paths["found.npz"],
                               "--output", paths["eps.csv"], *keys])
    capsys.readouterr()
    seen, original = [], start.cluster
    monkeypatch.setattr(start, "STEPS", 2)
    monkeypatch.setattr(start, "cluster", lambda cfg, features, *others: (
        seen.append(features.clone()), original(cfg, features, *others))[1])
    assert call(check_command.command, [*config, "--json", paths["check.json"], *keys]) == 0
    printed = capsys.readouterr().out
    assert "48 images of Market1501, 2 cameras" in printed
    assert np.array_equal(seen[0].numpy(), np.load(paths["found.npz"])["features"])
    with open(paths["eps.csv"], newline="") as file:
        rows = list(csv.DictReader(file))
    figures = json.loads((tmp_path / "check.json").read_text())["start"]
    assert figures["sampled"] == figures["images"] == 48
    assert [(row["eps"], row["centres"]) for row in figures["eps_sweep"]] == [
        (float(row["eps"]), int(row["centres"])) for row in rows]
    suggested, = (float(row["eps"]) for row in rows if row["suggested"] == "1")
    assert figures["eps"] == suggested and f"CAUREID.CLUSTER.EPS {suggested:g}" in printed
    chosen, = (row for row in rows if float(row["eps"]) == 0.6)
    assert figures["clusters"] == int(chosen["clusters"]) > 1
    assert figures["indicators"]["outlier_share"] == int(chosen["outliers"]) / 48


@pytest.mark.parametrize("batch, few", [(2, False), (4, True)])
def test_fewer_than_ten_batches_are_few(batch, few, check):
    done = check(few=None, keys=["SOLVER.IMS_PER_BATCH", batch, "DATALOADER.NUM_INSTANCE", 2])
    advice = [text for text in texts(done, "advice") if "few images" in text]
    assert done.status == 0 and len(advice) == few
    for text in advice:
        assert "24, fewer than 10 batches of 4 (SOLVER.IMS_PER_BATCH)" in text
        assert "by heart" in text and "(40 or more)" in text
    # the network was left out
    assert "The start of training" not in done.printed and "start" not in done.found


def test_files_that_are_no_images_are_counted(check, tiny_crops):
    for i in range(23):
        (tiny_crops / "south" / f"{i}.heic").write_bytes(b"x")
    (tiny_crops / "north" / "notes").write_text("x")
    done = check(page=True)
    line = ("Left out, no images by their names: 24 files (23 .heic, 1 without suffix). What is an "
            "image all the same must be converted, to JPEG or PNG.")
    assert done.found["left_out"] == {".heic": 23, "": 1} and done.found["findings"] == []
    assert line in done.text and line in done.page.text
    (tiny_crops / "north" / "1.heic").write_bytes(b"x")  # more than there are images
    advice, = texts(check(), "advice")
    assert "25" in advice and ".heic" in advice and "left out" in advice


def test_thumbnails_and_bins_are_left_out_and_counted(check, tiny_crops):
    for name in ("south/@eaDir/00.png/M.jpg", "south/@eaDir/00.png/S.jpg", "#recycle/x.png"):
        (tiny_crops / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_crops / "north" / "00.png", tiny_crops / name)
    done = check()
    assert done.found["verdict"] == "PASS" and done.found["images"] == 24
    assert done.found["left_out_folders"] == {"#recycle": 1, "@eaDir": 2}
    assert "3 images (#recycle 1, @eaDir 2). CAMERA_FOLDER.SYSTEM_FOLDERS read" in done.text
    assert check(keys=["CAMERA_FOLDER.SYSTEM_FOLDERS", "read"]).found["images"] == 27


def test_an_endless_image_is_not_decoded(check, tiny_crops):
    Image.new("L", (1, 100_000)).save(tiny_crops / "north" / "endless.png")
    done = check()
    (file,) = done.found["unreadable"]
    assert "endless.png: it is too large (1 x 100000 pixels; a side may" in file["error"]


def test_what_is_odd_about_labels_and_cameras_is_advice(check, tiny_crops):
    labels = {"query": "00.png,1,Cam1\n01.png,2,Cam1", "gallery": "02.png,1,cam1\n03.png,2,x"}
    for name, rows in labels.items():
        (tiny_crops / "north" / f"{name}.csv").write_text(f"path,identity,camera\n{rows}\n")
    advice = texts(check(keys=[
        part for name in labels for part in
        (f"CAMERA_FOLDER.{name.upper()}", tiny_crops / "north" / f"{name}.csv")]), "advice")
    assert any("'Cam1' (CAMERA_FOLDER.QUERY) and 'cam1' (CAMERA_FOLDER.GALLERY)" in text
               for text in advice)
    assert any("no camera in common" in text for text in advice)


def test_unreadable_files_are_all_listed(check, tiny_crops):
    bad = [tiny_crops / "south" / f"bad_{i:02d}.jpg" for i in range(22)]
    for path in bad[:20]:
        path.write_text("no image at all")
    bad[20].write_bytes(b"")
    os.mkfifo(bad[21])
    odd = os.fsencode(tiny_crops) + b"/north/\xff<b>.jpg"
    with open(odd, "wb") as file:
        file.write(b"x")
    done = check(page=True)
    assert (done.status, done.found["verdict"]) == (1, "FAIL")
    listed = {item["path"] for item in done.found["unreadable"]}
    assert listed == {*map(str, bad), os.fsdecode(odd)}
    assert "Unreadable: 23 of 47 (48.9 %)" in done.printed
    assert done.printed.count("Cannot read the image") == 19 and "... and 4 more" in done.printed
    assert "23 files cannot be read" in texts(done, "FAIL")[0]
    assert done.found["cameras"]["south"] == 34, "as training would count them"
    assert done.page.text.count("Cannot read the image") == 23
    assert "\\udcff<b>.jpg" in done.page.text and "b" not in done.page.tags


def test_the_same_file_under_two_cameras_fails(check, tiny_crops):
    pair = [tiny_crops / "north" / "03.png", tiny_crops / "south" / "99.png"]
    shutil.copy(*pair)
    done = check()
    failed, = texts(done, "FAIL")
    assert done.status == 1 and "under several cameras: 1 image, mostly north and south" in failed
    assert done.found["copies"]["exact"] == [[str(path) for path in pair]]


def test_copies_in_one_camera_are_advice(check, tiny_crops):
    for i in range(4):
        shutil.copy(tiny_crops / "north" / f"{i:02d}.png", tiny_crops / "north" / f"{i:02d}a.png")
    done = check()
    assert done.status == 0 and done.found["verdict"] == "PASS with advice"
    assert "Verdict: PASS with advice" in done.printed
    exact, near = texts(done, "advice")
    assert "exact copies (4 files" in exact
    assert "8 of 28 (28.6 %)" in near and near.endswith("take every 2nd one.")


def test_near_copies_under_another_camera_are_advice(check, tiny_crops):
    pair = [str(tiny_crops / "north" / "03.png"), str(tiny_crops / "south" / "99.jpg")]
    Image.open(pair[0]).resize((29, 58)).save(pair[1], quality=60)
    done = check()
    assert done.status == 0
    assert "a near copy under another camera: 2." in texts(done, "advice")[0]
    assert sorted(done.found["copies"]["near_across"]) == sorted([pair, pair[::-1]])


def test_a_camera_in_two_folders_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(inspected_cameras, "LEAST_IMAGES", 20)
    root = write_crops(tmp_path / "crops", each=40)
    (root / "north 2").mkdir()
    for path in sorted(root.glob("north/*"))[::2]:
        path.rename(root / "north 2" / path.name)
    done = run(root, page=True)
    advice, = texts(done, "advice")
    assert done.status == 0 and "north and north 2 (AUC 0." in advice
    assert "the same name" in advice
    (first, second, auc), *others = done.found["alike"]
    assert {first, second} == {"north", "north 2"} and auc < 0.68
    assert len(others) == 2 and all(other[2] > 0.68 for other in others)
    assert "cannot be told apart: 1 of 3" in done.printed
    assert f"north and north 2 (AUC {auc:.2f})" in done.page.text


def test_a_camera_with_few_images_is_named(check, tiny_crops, tmp_path):
    def move(*numbers):
        for number in numbers:
            (roof / f"{number:02d}.png").rename(tiny_crops / "roof" / f"{number}.png")
        return check(keys=["CAUREID.CLUSTER.CAMERA_AWARE", len(numbers) > 2])

    roof = write_crops(tmp_path / "more", ("", " ", "roof"), each=5) / "roof"
    (tiny_crops / "roof").mkdir()
    advice, = texts(move(0), "advice")
    assert "1 camera can hardly be learnt: roof (1). Rule: an average batch" in advice
    assert "K1_INTRA" not in advice
    assert move(1).found["findings"] == []
    advice, = texts(move(2, 3, 4), "advice")  # enough for a batch, not for the list of neighbours
    assert "roof (5)" in advice and "fewer than 6 (CAUREID.CLUSTER.K1_INTRA + 1)" in advice


def test_sizes_are_compared_with_the_input(check, tiny_crops):
    for i in range(4):
        path = tiny_crops / "north" / f"{i:02d}.png"
        Image.open(path).resize((32, 15)).save(path)
    done = check()
    low, lying = texts(done, "advice")
    assert "magnified more than twice: 4 of 24 (16.7 %)" in low
    assert "wider than tall, and squeezed: 4 of 24 (16.7 %)" in lying
    assert done.found["sizes"] == {"median": [64, 32], "low": 4, "lying": 4}
    assert re.search(r"\| height +\| +15 \| +64 \| +64 \|", done.printed)
    wide = check(keys=["INPUT.SIZE_TRAIN", "[15,15]", "INPUT.SIZE_TEST", "[15,15]"])
    advice, = texts(wide, "advice")
    assert "Half of the images are over 64 pixels high" in advice and "wider" not in wide.printed


def test_one_camera_is_no_fault(check):
    done = check(keys=["CAMERA_FOLDER.CAMERA", "none"], network=True)
    assert done.status == 0 and "24 images of CameraFolder, 1 camera\n" in done.printed
    assert "There is one camera" in done.printed and list(done.found["cameras"]) == ["one"]
    assert any("All training images come from one camera" in text for text in texts(done, "advice"))
    assert "mean silhouette" in done.printed and "span cameras" not in done.printed


def test_identical_images_fail(check, tiny_crops):
    content = (tiny_crops / "north" / "00.png").read_bytes()
    for path in tiny_crops.glob("*/*.png"):
        path.write_bytes(content)
    done = check(network=True)
    failed = " ".join(texts(done, "FAIL"))
    assert done.status == 1 and "All images are the same file" in failed
    assert "embedding of all 24 images is the same" in failed and "24 images" in done.printed


def write_empty(folder):
    """Images that show nothing: two of north are black, the same file as one of south."""
    dark = np.random.default_rng(0).normal(6, 3, (64, 32, 3)).clip(0, 255).astype(np.uint8)
    for name in ("north/black.png", "north/later.png", "south/black.png"):
        Image.new("RGB", (32, 64)).save(folder / name)
    Image.fromarray(dark).save(folder / "south" / "lens.jpg")


def test_images_that_show_nothing_are_listed_and_left_out(check, tiny_crops, tmp_path):
    write_empty(tiny_crops)
    done, table = check(page=True), tmp_path / "empty.csv"
    assert done.found["verdict"] == "PASS with advice", "black files are no copies of a person"
    names = {str(tiny_crops / name) for name in (
        "north/black.png", "north/later.png", "south/black.png", "south/lens.jpg")}
    assert set(done.found["without_content"]) == names and done.found["copies"]["exact"] == []
    advice, = texts(done, "advice")
    assert "4 of 28 (14.3 %), of north (2), south (2)" in advice
    assert "--empty empty.csv and set CAMERA_FOLDER.LEAVE_OUT empty.csv" in advice
    assert re.search(r"\| north +\| +2 \| +14\.3 % \|", done.printed)
    shown = done.page.text[done.page.text.index("Images that show nothing"):]
    shown = shown[:shown.index("Copies")]
    for part in ("north, 2 images", "south, 2 images", "later.png", "lens.jpg"):
        assert part in shown
    done = check("--empty", table)
    assert f"set CAMERA_FOLDER.LEAVE_OUT {table}" in texts(done, "advice")[0]
    with open(table, newline="", encoding="utf-8") as file:
        assert {row["path"] for row in csv.DictReader(file)} == names
    for options in (["--empty", table], []):  # the first writes them again
        done = check(*options, keys=["CAMERA_FOLDER.LEAVE_OUT", table])
        assert (done.found["verdict"], done.found["images"]) == ("PASS", 24)
        assert done.found["left_out_images"] == 4 and done.found["without_content"] == []
        assert "named by CAMERA_FOLDER.LEAVE_OUT: 4 images" in done.text


def test_only_own_images_can_be_left_out(check, tiny_crops, tiny_market, tmp_path):
    """LEAVE_OUT names none of another dataset, and a table that has one is refused."""
    for path in sorted((tiny_market / "Market-1501-v15.09.15/bounding_box_train").iterdir())[:3]:
        Image.new("RGB", (32, 64)).save(path)
    table, both = tmp_path / "empty.csv", ["DATASETS.NAMES", "('CameraFolder','Market1501')"]
    alone = check("--empty", table, keys=["DATASETS.NAMES", "('Market1501',)"])
    (advice,) = (text for text in texts(alone, "advice") if "show nothing" in text)
    assert advice.endswith("Look at them (--output), and remove them.")
    assert table.read_text() == "path,camera\n"
    write_empty(tiny_crops)
    (advice,) = (text for text in texts(check("--empty", table, keys=both), "advice")
                 if "show nothing" in text)
    assert f"to leave 4 of them out of training, set CAMERA_FOLDER.LEAVE_OUT {table}" in advice
    done = check(keys=[*both, "CAMERA_FOLDER.LEAVE_OUT", table])
    assert done.found["left_out_images"] == 4
    assert done.found["without_content"] == alone.found["without_content"]


def test_a_name_that_no_table_holds_is_said(check, tiny_crops, tmp_path):
    write_empty(tiny_crops)
    os.rename(tiny_crops / "north" / "later.png", os.fsencode(tiny_crops) + b"/north/\xff.png")
    done = check("--empty", tmp_path / "empty.csv")
    assert len((tmp_path / "empty.csv").read_text().splitlines()) == 4
    assert any("lacks 1 image whose name" in text for text in texts(done, "advice"))


def test_nothing_but_images_that_show_nothing_fails(check, tiny_crops):
    for path in tiny_crops.glob("*/*.png"):
        Image.new("RGB", (32, 64), (len(path.parent.name), int(path.stem), 9)).save(path)
    done = check(page=True)
    assert done.status == 1 and "No image shows anything" in texts(done, "FAIL")[0]


def test_tiny_images_are_no_error(check, tiny_crops):
    for i, path in enumerate(tiny_crops.glob("south/*.png")):
        Image.new("RGB", (1, 1), (20 * i, 10 * i, 255 - 20 * i)).save(path)
    done = check(network=True)
    assert done.status == 0 and done.found["sizes"]["low"] == 12
    assert done.found["start"]["sampled"] == 24


def test_one_image_or_none_fails(check, tiny_crops):
    first, *others = sorted(tiny_crops.glob("*/*.png"))
    for path in others:
        path.unlink()
    done = check(page=True, network=True)
    assert done.status == 1 and any("has 1 image(s)" in text for text in texts(done, "FAIL"))
    assert "1 image" in done.printed and len(done.page.pictures) == 1
    first.unlink()
    done = check(page=True)
    error, = texts(done, "FAIL")
    assert done.status == 1 and str(tiny_crops) in error and error in done.page.text
    assert done.found["verdict"] == "FAIL" and "Verdict: FAIL" in done.printed


def test_no_image_can_be_read(check, tiny_crops):
    for path in tiny_crops.glob("*/*.png"):
        path.write_bytes(b"")
    done = check(page=True, network=True)
    assert done.status == 1 and len(done.found["unreadable"]) == 24 and "Sizes" not in done.printed
    assert re.search(r"\| south +\| +12 \| +50\.0 % \| +- \|", done.printed)
    assert done.page.pictures == [] and done.printed.endswith("check.html says the same.\n")


@pytest.mark.parametrize("content, message", [
    ("CAUREID: {CLUSTER: {EPSILON: 1}}", "EPSILON"), ("DATASETS: {NAMES: [Nowhere]}", "Nowhere")])
def test_a_config_that_cannot_be_read_fails(check, tmp_path, content, message):
    (tmp_path / "own.yml").write_text(content)
    done = check("--config-file", tmp_path / "own.yml")
    failed, = texts(done, "FAIL")
    assert done.status == 1 and message in failed


def test_options_with_which_training_would_not_start_fail(check):
    done = check(keys=["CAUREID.CLUSTER.EPS", 1.5, "CAUREID.CLUSTER.MIN_SAMPLES", 80,
                       "SOLVER.IMS_PER_BATCH", 18, "MODEL.HEADS.CAMSEP.NUM_CAMERAS", 5])
    failed = texts(done, "FAIL")
    for message in ("CAUREID.CLUSTER.EPS", "CAUREID.CLUSTER.MIN_SAMPLES 80",
                    "SOLVER.IMS_PER_BATCH 18", "NUM_CAMERAS is 5"):
        assert sum(message in text for text in failed) == 1, message
    assert done.status == 1 and len(failed) == 4


def test_warnings_of_training_are_advice(check):
    advice = texts(check(keys=["CAUREID.CLUSTER.K1", 80, "SOLVER.IMS_PER_BATCH", 28]), "advice")
    assert any("K1 80 is more than the 23 images" in text for text in advice)
    assert any("IMS_PER_BATCH 28 is more than the 24 training images" in text for text in advice)


def test_weights_that_cannot_be_had_are_advice(check):
    done = check(network=True, keys="""
        MODEL.BACKBONE.NAME build_osnet_backbone MODEL.BACKBONE.DEPTH x0_25
        MODEL.BACKBONE.FEAT_DIM 128 MODEL.BACKBONE.WITH_IBN False MODEL.BACKBONE.PRETRAIN True
        MODEL.BACKBONE.PRETRAIN_PATH nowhere.pth""".split())
    advice, = texts(done, "advice")
    assert done.status == 0 and "weights cannot be had" in advice and "nowhere.pth" in advice
    assert "--no-network" in advice and "Left out" in done.printed and "start" not in done.found


@pytest.mark.parametrize("key, value, message", [
    ("CAUREID.CLUSTER.MIN_SAMPLES", 23, "every one of the 24 images is an outlier"),
    ("CAUREID.CLUSTER.EPS", 0.9999, "all 24 images are in one cluster")])
def test_a_clustering_that_leaves_nothing_to_learn_fails_alone(check, key, value, message):
    done = check(network=True, keys=[key, value])
    failed, = [text for _, text in done.found["findings"]]
    figures = done.found["start"]
    assert done.status == 1 and message in failed and "cost" not in figures
    assert "Suggested" not in done.printed and (figures["eps"] is None) == (value == 23)


@pytest.mark.parametrize("keys, message", [
    (["MODEL.BACKBONE.PRETRAIN", "True"], "no pretrained weights"),
    (["CAUREID.CLUSTER.MAX_MEMORY", "0.001"], "MAX_MEMORY")])
def test_a_start_that_fails(check, keys, message):
    done = check(network=True, keys=keys)
    assert done.status == 1 and any(message in text for text in texts(done, "FAIL"))


@pytest.mark.parametrize("labels, refined", [("bank", True), ("extract", False)])
def test_banks_first_clustering_is_refined_as_in_training(check, monkeypatch, labels, refined):
    monkeypatch.setattr(start, "reliable_labels",
                        lambda found, **_: (np.full_like(found, -1), None))
    failed = texts(check(network=True, keys=["CAUREID.LABELS", labels]), "FAIL")
    assert any("CAUREID.CLUSTER.EPS_GAP (now 0.02)" in text for text in failed) == refined


def test_memory_for_all_images_where_a_sample_fits(check, monkeypatch):
    monkeypatch.setattr(start, "MOST_IMAGES", 16)
    monkeypatch.setattr(start, "neighbor_memory", lambda cfg, images, *_: (
        images / 8, 2.5))
    done = check(network=True, keys=["CAUREID.LABELS", "bank"])
    sampled = done.found["start"]["sampled"]
    assert done.status == 1 and 16 <= sampled < 24
    assert f"sample of {sampled} of 24" in done.text
    assert "clustering 24 images at most " in done.text
    failed, = texts(done, "FAIL")
    assert failed.startswith("Clustering needs about 3.0 GiB, 2.5 are free: lower "
                             "CAUREID.CLUSTER.K1,")


@pytest.mark.parametrize("centres, eps, line, advised", [
    (10, 0.49, "0.49 is no worse a start (10 camera centres, 20 at 0.6): leave it as it is", False),
    (9, 0.51, "(configured: 0.51), see the advice.", True),
    (9, 0.6, "CAUREID.CLUSTER.EPS 0.6, as configured.", False)])
def test_an_eps_that_finds_little_is_advice(centres, eps, line, advised):
    rows = [{"eps": 0.4, "centres": 3}, {"eps": 0.5, "centres": centres},
            {"eps": 0.6, "centres": 20}]
    report = words.Report()
    start.say_eps(report, report.section("start", ""), rows, eps, 0.6, "CAUREID.CLUSTER.EPS")
    written, = report.sections["start"].lines
    assert line in written and len(report.findings) == advised
    for _, text in report.findings:
        assert "0.51 finds less than half of the camera centres that 0.6 finds (9 of 20)" in text


def test_runs_repeat(check):
    first, again = (check(page=True).page.source for _ in range(2))
    assert first == again != check("--seed", 2, page=True).page.source


def test_the_page_is_whole_and_escapes_names(tmp_path):
    root = write_crops(tmp_path / "crops", ('<b>a & "x"', "other"))
    for path in root.glob("<b>*/*"):
        path.rename(path.with_name(f"<script>{path.name}"))
    name = root / '<b>a & "x"' / "<script>00.png"
    shutil.copy(name, name.with_name("<script>99.png"))
    done = run(root, page=True)
    page = done.page
    assert not {"b", "script", "link", "iframe"} & page.tags and "svg" in page.tags
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "url(http" not in page.source and "@import" not in page.source
    assert '<b>a & "x", 13 images' in page.text and "<script>0" in page.text
    assert done.found["verdict"] in page.text and texts(done, "advice")
    assert all(" ".join(text.split()) in page.text for text in texts(done, "advice"))
    # eight of each camera, and the pair of copies
    pictures = [picture for _, picture in page.pictures]
    assert len(pictures) == 2 * 8 + 2 and {picture.size for picture in pictures} == {(32, 64)}
    assert "prefers-color-scheme" in page.source and 'name="viewport"' in page.source


def test_pictures_of_the_page_are_small(tmp_path):
    Image.new("RGB", (300, 900)).save(tmp_path / "large.png")
    facts = findings.inspect_images([str(tmp_path / "large.png")])
    data = words.Data([str(tmp_path / "large.png")], np.zeros(1, int), ["c"], facts)
    source = check_page.picture(data, 0).source
    assert picture(source).size == (43, 128)
    (tmp_path / "large.png").unlink()  # one that vanishes meanwhile is said
    shown = check_page.picture(data, 0)
    assert shown.source == "data:," and "large.png" in shown.caption


def test_words():
    duration = words.duration
    assert [duration(seconds) for seconds in (0.042, 0.31, 45.2, 200, 7500, 200000)] == [
        "42 ms", "0.3 s", "45 s", "3 min", "2 h 05 min", "2 days 7 h"]
    assert [words.ordinal(i) for i in (1, 2, 3, 4, 11, 22)] == [
        "st", "nd", "rd", "th", "th", "nd"]
    assert sorted(["f10", "f9", "e1"], key=words.by_number) == ["e1", "f9", "f10"]


@pytest.mark.parametrize("options, message", [
    (["--output", "check.txt"], r"'--output': check.txt must end in \.html"),
    (["--json", "nowhere/a.json"], "the folder nowhere does not exist"),
    (["--output", "folder.html"], "'--output': folder.html cannot be written"),
    (["--workers", "0"], "'--workers': 0 is not in the range x>=1"),
    (["--config-file", ""], "--config-file': it is empty: name a config"),
    (["CAMERA_FOLDER.ROOT"], "must come in pairs, got CAMERA_FOLDER.ROOT"),
])
def test_wrong_arguments_are_said_before_the_work(options, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "folder.html").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(findings, "load_config", None)  # not called
    with pytest.raises(SystemExit) as caught:
        call(check_command.command, [*OWN, *options])
    assert caught.value.code == 2 and re.search(message, capsys.readouterr().err)
