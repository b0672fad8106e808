"""tools/check_data.py: verdicts, lists and the page, on folders of images with and without faults.
"""

import base64
import csv
import html.parser
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import caureid_plugin  # noqa: F401  (before everything that imports fastreid)
import numpy as np
import pytest
from caureid_plugin.inspection import cameras as inspected_cameras
from fastreid.engine.train_loop import HookBase
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "tools"))  # as for a script that is run there

import check_data  # noqa: E402
import check_data_network  # noqa: E402
import check_data_page  # noqa: E402
import check_data_report  # noqa: E402
import choose_eps  # noqa: E402

OWN = ["--config-file", "OwnData/caureid_plain.yml"]
SMALL = """
MODEL.DEVICE cpu MODEL.BACKBONE.FEAT_DIM 16 MODEL.HEADS.CAMSEP.REDUCTION 4 MODEL.BN_GROUP_SIZE 8
INPUT.SIZE_TRAIN [32,16] INPUT.SIZE_TEST [32,16] SOLVER.IMS_PER_BATCH 16 DATALOADER.NUM_WORKERS 0
CAUREID.CLUSTER.CAMERA_AWARE False CAUREID.CLUSTER.K1 6 CAUREID.CLUSTER.K2 2
CAUREID.CLUSTER.EPS 0.6 SEED 7
""".split()


def paint(path, seed, tint):
    """A picture with structure, whose background is its camera's colour."""
    rng = np.random.default_rng(seed)
    image = np.kron(rng.integers(256, size=(16, 8, 3)), np.ones((4, 4, 1)))
    image[:, :6] = image[:, -6:] = np.random.default_rng(100 + tint).integers(256, size=3)
    Image.fromarray(image.astype(np.uint8)).save(path)


@pytest.fixture
def crops(tmp_path):
    """24 images of each of three cameras, a folder for each; no two are alike."""
    for camera, name in enumerate(("door", "hall", "yard")):
        (tmp_path / "crops" / name).mkdir(parents=True)
        for i in range(24):
            paint(tmp_path / "crops" / name / f"{i:02d}.png", 50 * camera + i, camera)
    return tmp_path / "crops"


@pytest.fixture
def check(crops, tmp_path, capsys, monkeypatch):
    """Runs the tool on ``crops``; gives exit status, what was printed, and the JSON file.

    There are 72 images, which would be few by the rule that has a test of its own.
    """
    monkeypatch.setattr(check_data, "LEAST_BATCHES", 4)

    def run(*options, keys=(), network=False):
        status = check_data.main([
            *OWN, "--json", str(tmp_path / "check.json"), "--workers", "2",
            *([] if network else ["--no-network"]), *options, "CAMERA_FOLDER.ROOT", str(crops),
            *SMALL, *keys])
        with (tmp_path / "check.json").open() as file:
            return status, capsys.readouterr().out, json.load(file)

    return run


def texts(found, level):
    return [text for kind, text in found["findings"] if kind == level]


# ------------------------------------------------------------------------ without faults ----


def test_images_without_faults_pass(check):
    status, printed, found = check()
    assert (status, found["verdict"], found["findings"]) == (0, "PASS", [])
    assert printed.startswith("72 images of CameraFolder, 3 cameras\n")
    assert "Verdict: PASS\n" in printed and "All 72 files can be read." in printed
    assert re.search(r"\| hall +\| +24 \| +33\.3 % \| +64 x 32 \|", printed)
    assert list(found["cameras"].values()) == [24, 24, 24]
    assert found["copies"] == {"exact": [], "near_within": 0, "near_across": []}
    assert "The start of training" not in printed and "start" not in found
    assert found["left_out"] == {} and "Left out" not in printed


def test_the_first_clustering_is_that_of_choose_eps(check, tmp_path, capsys, monkeypatch):
    seen = {}
    original = check_data_network.cluster

    def spy(cfg, features, camids, search):
        seen.update(features=features.numpy(), camids=camids)
        return original(cfg, features, camids, search)

    monkeypatch.setattr(check_data_network, "cluster", spy)
    status, printed, found = check(network=True)
    figures = found["start"]
    assert status == 0 and figures["sampled"] == figures["images"] == 72

    np.savez(tmp_path / "features.npz", **seen)
    choose_eps.main(["--features", str(tmp_path / "features.npz"), "--k1", "6", "--k2", "2",
                     "--min-samples", "2", "--output", str(tmp_path / "eps.csv")])
    capsys.readouterr()
    with (tmp_path / "eps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["eps"] for row in figures["eps_sweep"]] == [float(row["eps"]) for row in rows]
    assert [row["centres"] for row in figures["eps_sweep"]] == [int(row["centres"]) for row in rows]
    suggested, = (float(row["eps"]) for row in rows if row["suggested"] == "1")
    assert figures["eps"] == suggested and f"CAUREID.CLUSTER.EPS {suggested:g}" in printed
    at, = (row for row in rows if float(row["eps"]) == 0.6)
    assert figures["clusters"] == int(at["clusters"]) > 1
    assert figures["indicators"]["outlier_share"] == int(at["outliers"]) / 72

    cost = figures["cost"]  # 20 epochs of 50 steps, images and clusters anew for each
    assert cost["total"] == pytest.approx(
        1000 * figures["seconds_per_step"] + 20 * 72 * figures["seconds_per_image"]
        + 20 * cost["clustering"])
    assert figures["memory_gib"] > 0 and "GiB beyond the features" in printed
    assert "images at most" not in " ".join(printed.split()), "all images were measured"


def test_features_are_those_that_training_starts_from(train_as_script, script_keys, monkeypatch,
                                                      capsys):
    banks = []
    train_as_script("SEED", 3, watch=lambda trainer: trainer.register_hooks([Grab(banks)]))
    seen = []
    original = check_data_network.cluster
    monkeypatch.setattr(check_data_network, "cluster", lambda cfg, features, *others: (
        seen.append(features.clone()), original(cfg, features, *others))[1])
    status = check_data.main(["--config-file", "Synthetic/caureid.yml", *script_keys, "SEED", "3"])
    assert "48 images of Market1501, 2 cameras" in capsys.readouterr().out and status == 0
    assert np.array_equal(seen[0].numpy(), banks[0].numpy())


class Grab(HookBase):
    """Keeps what the bank was filled with."""

    def __init__(self, banks):
        self.banks = banks

    def before_train(self):
        self.banks.append(self.trainer.model.memory.features.clone())


# --------------------------------------------------------------------------- with faults ----


@pytest.mark.parametrize("batch, few", [(16, False), (18, True)])
def test_fewer_than_ten_batches_are_few(batch, few, crops, check, monkeypatch):
    """160 images: ten batches of 16 and fewer than nine of 18."""
    monkeypatch.undo()
    for i in range(88):
        paint(crops / "yard" / f"more_{i}.png", 2000 + i, 2)
    status, _, found = check(keys=["SOLVER.IMS_PER_BATCH", str(batch), "DATALOADER.NUM_INSTANCE",
                                   "2"])
    assert status == 0 and found["images"] == 160
    assert any("fewer than 10 batches of 18 (SOLVER.IMS_PER_BATCH)" in text and "by heart" in text
               and "(180 or more)" in text for text in texts(found, "advice")) == few
    assert len(texts(found, "advice")) == few


def test_files_that_are_no_images_are_counted(check, crops, tmp_path):
    for i in range(3):
        (crops / "yard" / f"{i}.heic").write_bytes(b"x")
    (crops / "door" / "notes").write_text("x")
    status, printed, found = check("--output", str(tmp_path / "check.html"))
    line = ("Left out, no images by their names: 4 files (3 .heic, 1 without suffix). What is an "
            "image all the same must be converted, to JPEG or PNG.")
    assert status == 0 and found["left_out"] == {".heic": 3, "": 1} and found["findings"] == []
    assert line in " ".join(printed.split()) and line in Page(tmp_path / "check.html").text


def test_more_files_left_out_than_images_are_advice(check, crops):
    for i in range(72):
        (crops / "yard" / f"{i}.heic").write_bytes(b"x")
    assert check()[2]["findings"] == []
    (crops / "yard" / "72.heic").write_bytes(b"x")
    advice, = texts(check()[2], "advice")
    assert "73" in advice and ".heic" in advice and "left out" in advice


def test_unreadable_files_are_all_listed(check, crops, tmp_path):
    bad = [crops / "yard" / f"bad_{i:02d}.jpg" for i in range(22)]
    for path in bad[:20]:
        path.write_text("no image at all")
    bad[20].write_bytes(b"")
    os.mkfifo(bad[21])
    with open(os.fsencode(crops) + b"/hall/\xff<b>.jpg", "wb") as file:
        file.write(b"x")
    status, printed, found = check("--output", str(tmp_path / "check.html"))
    assert (status, found["verdict"]) == (1, "FAIL")
    listed = {item["path"] for item in found["unreadable"]}
    assert listed == {*map(str, bad), os.fsdecode(os.fsencode(crops) + b"/hall/\xff<b>.jpg")}
    assert "Unreadable: 23 of 95 (24.2 %)" in printed
    assert printed.count("Cannot read the image") == 19 and "... and 4 more" in printed
    assert "23 files cannot be read" in texts(found, "FAIL")[0]
    assert found["cameras"]["yard"] == 46, "as training would count them"
    page = Page(tmp_path / "check.html")
    assert page.text.count("Cannot read the image") == 23
    assert "\\udcff<b>.jpg" in page.text and "b" not in page.tags


def test_the_same_file_under_two_cameras_fails(check, crops):
    shutil.copy(crops / "door" / "03.png", crops / "yard" / "99.png")
    status, _, found = check()
    assert status == 1 and len(texts(found, "FAIL")) == 1
    assert re.search("under several cameras: 1 image, mostly door and "
                     "yard", texts(found, "FAIL")[0])
    assert found["copies"]["exact"] == [[str(crops / "door" / "03.png"),
                                         str(crops / "yard" / "99.png")]]


def test_copies_in_one_camera_are_advice(check, crops):
    for i in range(12):
        shutil.copy(crops / "door" / f"{i:02d}.png", crops / "door" / f"{i:02d}a.png")
    status, printed, found = check()
    assert status == 0 and found["verdict"] == "PASS with advice"
    assert "Verdict: PASS with advice" in printed
    exact, near = texts(found, "advice")
    assert "exact copies (12 files" in exact
    assert "24 of 84 (28.6 %)" in near and near.endswith("take every 2nd one.")


def test_near_copies_under_another_camera_are_advice(check, crops):
    image = Image.open(crops / "door" / "03.png").resize((29, 58))
    image.save(crops / "yard" / "99.jpg", quality=60)
    status, _, found = check()
    assert status == 0 and "a near copy under another camera: 2." in texts(found, "advice")[0]
    pair = [str(crops / "door" / "03.png"), str(crops / "yard" / "99.jpg")]
    assert sorted(found["copies"]["near_across"]) == sorted([pair, pair[::-1]])


def test_a_camera_in_two_folders_is_found(check, crops, tmp_path, monkeypatch):
    monkeypatch.setattr(inspected_cameras, "LEAST_IMAGES", 20)
    (crops / "door 2").mkdir()
    for i in range(24):
        paint(crops / "door 2" / f"{i}.png", 500 + i, 0)
    status, printed, found = check("--output", str(tmp_path / "check.html"))
    advice, = texts(found, "advice")
    assert status == 0 and "door and door 2 (AUC 0." in advice
    assert "the same name" in advice
    (first, second, auc), *others = found["alike"]
    assert {first, second} == {"door", "door 2"} and auc < 0.68
    assert len(others) == 5 and all(other[2] > 0.68 for other in others)
    assert "cannot be told apart: 1 of 6" in printed
    assert f"door and door 2 (AUC {auc:.2f})" in (
        Page(tmp_path / "check.html").text)


def test_a_camera_with_few_images_is_named(check, crops):
    (crops / "roof").mkdir()
    paint(crops / "roof" / "0.png", 900, 5)
    _, _, found = check(keys=["CAUREID.CLUSTER.CAMERA_AWARE", "False"])
    advice, = texts(found, "advice")
    assert "1 camera can hardly be learnt: roof (1). Rule: an average batch" in advice
    assert "K1_INTRA" not in advice
    paint(crops / "roof" / "1.png", 901, 5)
    for i in range(2, 5):  # enough for a batch, not for the list of neighbours
        paint(crops / "roof" / f"{i}.png", 900 + i, 5)
    assert check()[2]["findings"] == []
    advice, = texts(check(keys=["CAUREID.CLUSTER.CAMERA_AWARE", "True"])[2], "advice")
    assert "roof (5)" in advice and "fewer than 6 (CAUREID.CLUSTER.K1_INTRA + 1)" in advice


def test_sizes_are_compared_with_the_input(check, crops):
    for i in range(8):
        Image.open(crops / "door" / f"{i:02d}.png").resize((32, 15)).save(
            crops / "door" / f"{i:02d}.png")
    _, printed, found = check()
    low, lying = texts(found, "advice")
    assert "magnified more than twice: 8 of 72 (11.1 %)" in low
    assert "wider than tall, and squeezed: 8 of 72 (11.1 %)" in lying
    assert found["sizes"] == {"median": [64, 32], "low": 8, "lying": 8}
    assert re.search(r"\| height +\| +15 \| +64 \| +64 \|", printed)
    wide = check(keys=["INPUT.SIZE_TRAIN", "[15,15]", "INPUT.SIZE_TEST", "[15,15]"])
    advice, = texts(wide[2], "advice")
    assert "Half of the images are over 64 pixels high" in advice and "wider" not in wide[1]


def test_one_camera_is_no_fault(check, crops):
    for path in [*crops.glob("door/*"), *crops.glob("hall/*")]:
        path.unlink()
    status, printed, found = check(network=True)
    assert status == 0 and "24 images of CameraFolder, 1 camera\n" in printed
    assert "There is one camera" in printed
    assert any("All training images come from one camera" in text
               for text in texts(found, "advice"))


def test_identical_images_fail(check, crops):
    content = (crops / "door" / "00.png").read_bytes()
    for path in crops.glob("*/*.png"):
        path.write_bytes(content)
    status, printed, found = check(network=True)
    failed = texts(found, "FAIL")
    assert status == 1 and "All images are the same file" in " ".join(failed)
    assert "embedding of all 72 images is the same" in " ".join(failed)
    assert "72 images" in printed


def test_tiny_images_are_no_error(check, crops):
    for i, path in enumerate(crops.glob("yard/*.png")):
        Image.new("RGB", (1, 1), (10 * i, 5 * i, 255 - 10 * i)).save(path)
    status, _, found = check(network=True)
    assert status == 0 and found["sizes"]["low"] == 24
    assert found["start"]["sampled"] == 72


def test_one_image_fails(check, crops, tmp_path):
    for path in crops.glob("*/*.png"):
        path.unlink()
    paint(crops / "door" / "0.png", 1, 0)
    status, printed, found = check("--output", str(tmp_path / "check.html"), network=True)
    assert status == 1 and any("has 1 image(s)" in text for text in texts(found, "FAIL"))
    assert "1 image" in printed and len(Page(tmp_path / "check.html").pictures) == 1


def test_no_image_can_be_read(check, crops, tmp_path):
    for path in crops.glob("*/*.png"):
        path.write_bytes(b"")
    status, printed, found = check("--output", str(tmp_path / "check.html"), network=True)
    assert status == 1 and len(found["unreadable"]) == 72 and "Sizes" not in printed
    assert re.search(r"\| hall +\| +24 \| +33\.3 % \| +- \|", printed)
    assert Page(tmp_path / "check.html").pictures == []
    assert printed.endswith("check.html says the same.\n")


def test_an_empty_folder_fails_with_its_error(check, crops, tmp_path):
    for path in crops.glob("*/*.png"):
        path.unlink()
    status, printed, found = check("--output", str(tmp_path / "check.html"))
    error, = texts(found, "FAIL")
    assert status == 1 and found["verdict"] == "FAIL" and str(crops) in error
    assert "Verdict: FAIL" in printed and error in Page(tmp_path / "check.html").text
    assert printed.endswith("check.html says the same.\n")


@pytest.mark.parametrize("keys, message", [
    (["CAUREID.CLUSTER.EPSILON", "1"], "CAUREID.CLUSTER.EPSILON|EPSILON"),
    (["DATASETS.NAMES", "('Nowhere',)"], "Nowhere"),
    (["CAUREID.CLUSTER.EPS", "1.5"], "CAUREID.CLUSTER.EPS"),
    (["CAUREID.CLUSTER.MIN_SAMPLES", "80"], "CAUREID.CLUSTER.MIN_SAMPLES 80"),
    (["SOLVER.IMS_PER_BATCH", "18"], "SOLVER.IMS_PER_BATCH 18"),
    (["MODEL.HEADS.CAMSEP.NUM_CAMERAS", "5"], "NUM_CAMERAS is 5"),
])
def test_options_with_which_training_would_not_start(check, keys, message):
    status, _, found = check(keys=keys)
    assert status == 1 and any(re.search(message, text) for text in texts(found, "FAIL"))


def test_warnings_of_training_are_advice(check):
    advice = texts(check(keys=["CAUREID.CLUSTER.K1", "80", "SOLVER.IMS_PER_BATCH", "76"])[2],
                   "advice")
    assert any("K1 80 is more than the 71 images" in text for text in advice)
    assert any("IMS_PER_BATCH 76 is more than the 72 training images" in text for text in advice)


# ---------------------------------------------------------------------- the network's part ----


def test_weights_that_cannot_be_had_are_advice(check):
    status, printed, found = check(
        network=True, keys=["MODEL.BACKBONE.NAME", "build_osnet_backbone", "MODEL.BACKBONE.DEPTH",
                            "x0_25", "MODEL.BACKBONE.FEAT_DIM", "128", "MODEL.BACKBONE.WITH_IBN",
                            "False", "MODEL.BACKBONE.PRETRAIN", "True",
                            "MODEL.BACKBONE.PRETRAIN_PATH", "nowhere.pth"])
    advice, = texts(found, "advice")
    assert status == 0 and "weights cannot be had" in advice and "nowhere.pth" in advice
    assert "--no-network" in advice and "Left out" in printed and "start" not in found


def test_a_network_that_cannot_be_built_fails(check):
    status, _, found = check(network=True, keys=["MODEL.BACKBONE.PRETRAIN", "True"])
    assert status == 1 and "no pretrained weights" in texts(found, "FAIL")[0]


def test_no_cluster_at_all_fails(check):
    status, printed, found = check(network=True, keys=["CAUREID.CLUSTER.MIN_SAMPLES", "70"])
    assert status == 1 and "every one of the 72 images is an outlier" in texts(found, "FAIL")[0]
    assert "Suggested" not in printed
    assert found["start"]["eps"] is None and "cost" not in found["start"]


def test_memory_that_is_not_there_fails(check):
    status, _, found = check(network=True, keys=["CAUREID.CLUSTER.MAX_MEMORY", "0.001"])
    assert status == 1 and any("MAX_MEMORY" in text for text in texts(found, "FAIL"))


def test_memory_for_all_images_where_a_sample_fits(check, monkeypatch):
    monkeypatch.setattr(check_data_network, "MOST_IMAGES", 40)
    monkeypatch.setattr(check_data_network, "neighbor_memory", lambda cfg, images, *_: (
        images / 8, 2.5))
    status, printed, found = check(network=True)
    sampled = found["start"]["sampled"]
    assert status == 1 and 40 <= sampled < 72
    assert f"sample of {sampled} of 72" in printed.replace("\n    ", " ")
    assert "clustering 72 images at most " in " ".join(printed.split())
    failed, = texts(found, "FAIL")
    assert failed.startswith("Clustering needs about 9.0 GiB, 2.5 are free: lower "
                             "CAUREID.CLUSTER.K1,")


def test_an_eps_that_finds_little_is_advice():
    rows = [{"eps": 0.4, "centres": 3}, {"eps": 0.5, "centres": 9}, {"eps": 0.6, "centres": 20}]
    assert check_data.centres_at(rows, 0.41) == 3
    assert check_data.centres_at(rows, 0.9) == 20
    for centres, eps, suggested, line, advised in (
            (10, 0.5, 0.6, ("The configured 0.5 is no worse a start (10 camera centres, 20 at 0.6):"
                            " leave it as it is, unless training ends with many outliers."), False),
            (9, 0.5, 0.6, "(configured: 0.5), see the advice.", True),
            (9, 0.6, 0.6, "CAUREID.CLUSTER.EPS 0.6, as configured.", False)):
        rows[1]["centres"] = centres
        report = check_data_report.Report()
        check_data.say_eps(report, report.section("start", ""), rows, eps, suggested)
        said, = report.sections["start"].lines
        assert line in said
        advice = ("CAUREID.CLUSTER.EPS 0.5 finds less than half of the camera centres that 0.6 "
                  "finds (9 of 20): look at tools/choose_eps.py before a long run.")
        assert [text for _, text in report.findings] == ([advice] if advised else [])


def test_a_problem_leaves_no_second_advice_on_eps(cfg):
    figures = {"clusters": 1, "indicators": {}, "eps": 0.6, "eps_sweep": [
        {"eps": 0.5, "centres": 1}, {"eps": 0.6, "centres": 9}], "problem": "one cluster: lower"}
    report = check_data_report.Report()
    check_data.say_clustering(report, report.section("start", ""), figures, cfg)
    assert not any("Suggested" in line for line in report.sections["start"].lines)
    (level, text), = report.findings
    assert level == "FAIL" and text.endswith("one cluster: lower")


def test_runs_repeat(check, tmp_path):
    pages = []
    for _ in range(2):
        check("--output", str(tmp_path / "check.html"))
        pages.append((tmp_path / "check.html").read_bytes())
    assert pages[0] == pages[1]
    check("--output", str(tmp_path / "check.html"), "--seed", "2")
    assert (tmp_path / "check.html").read_bytes() != pages[0]


# -------------------------------------------------------------------------------- the page ----


class Page(html.parser.HTMLParser):
    """A page's text, tags, addresses and pictures, which must all be in it."""

    def __init__(self, path):
        super().__init__()
        self.text, self.tags, self.addresses, self.pictures = "", [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href"):
                self.addresses.append(value)
            if tag == "img" and name == "src":
                data = base64.b64decode(value.removeprefix("data:image/jpeg;base64,"))
                self.pictures.append(Image.open(io.BytesIO(data)))

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_and_escapes_names(check, crops, tmp_path):
    name = '<b>a & "x"'
    (crops / name).mkdir()
    for i in range(20):
        paint(crops / name / f"<script>{i:02d}.png", 700 + i, 9)
    shutil.copy(crops / name / "<script>00.png", crops / name / "<script>99.png")
    _, _, found = check("--output", str(tmp_path / "check.html"))
    page = Page(tmp_path / "check.html")
    assert not {"b", "script", "link", "iframe"} & set(page.tags) and "svg" in page.tags
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    content = (tmp_path / "check.html").read_text(encoding="utf-8")
    assert "url(http" not in content and "@import" not in content
    assert f'{name}, 21 images' in page.text and "<script>0" in page.text
    assert found["verdict"] in page.text
    for text in texts(found, "advice"):
        assert " ".join(text.split()) in page.text
    # eight of each camera, and the pair of copies
    assert len(page.pictures) == 4 * 8 + 2
    assert page.pictures[0].size == (32, 64) and (
        max(max(picture.size) for picture in page.pictures) <= 128)
    assert "prefers-color-scheme" in content and 'name="viewport"' in content


def test_a_file_that_vanishes_meanwhile_is_said(tmp_path):
    facts = check_data.inspect_images([])
    data = check_data_report.Data([], np.zeros(0, int), ["c"], facts)
    data.paths, data.rows, data.cameras = [str(tmp_path / "gone.png")], [0], np.array([0])
    shown = check_data_page.picture(data, 0)
    assert shown.source == "data:," and "gone.png" in shown.caption


# ------------------------------------------------------------------------------- the words ----


@pytest.mark.parametrize("seconds, text", [
    (0.0004, "0.4 ms"), (0.042, "42 ms"), (0.31, "0.3 s"), (45.2, "45 s"), (200, "3 min"),
    (3600, "60 min"), (7500, "2 h 05 min"), (200000, "2 days 7 h")])
def test_durations(seconds, text):
    assert check_data_report.duration(seconds) == text


def test_words():
    assert check_data_report.share(1, 8) == "1 of 8 (12.5 %)"
    assert check_data_report.share(0, 8) == "none of 8"
    assert [check_data_report.ordinal(i) for i in (1, 2, 3, 4, 11, 12, 22)] == [
        "st", "nd", "rd", "th", "th", "th", "nd"]
    assert sorted(["f10", "f9", "e1"], key=check_data_report.by_number) == ["e1", "f9", "f10"]
    assert check_data_report.printable("a\nb") == "'a\\nb'"


# ------------------------------------------------------------------------ the command line ----


@pytest.mark.parametrize("options, message", [
    (["--output", "check.txt"], r"--output check.txt must end in \.html"),
    (["--json", "check.html"], r"--json check.html must end in \.json"),
    (["--output", "nowhere/a.html"], "the folder nowhere does not exist"),
    (["--output", "folder.html"], "--output folder.html cannot be written"),
    (["--workers", "0"], "--workers 0 must be at least 1"),
    (["--seed", "-1"], "--seed -1 must not be negative"),
])
def test_wrong_arguments_are_said_before_the_work(options, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "folder.html").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check_data, "load_config", None)  # not called
    with pytest.raises(SystemExit) as caught:
        check_data.main([*OWN, *options])
    assert caught.value.code == 2 and re.search(message, capsys.readouterr().err)


def test_an_output_that_may_not_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(SystemExit) as caught:
        check_data.main([*OWN, "--output", str(tmp_path / "a.html")])
    assert caught.value.code == 2 and "a.html cannot be written" in capsys.readouterr().err


def test_an_option_among_the_keys_is_named(crops, capsys):
    with pytest.raises(SystemExit) as error:
        check_data.main([*OWN, "CAMERA_FOLDER.ROOT", str(crops), "--no-network"])
    assert error.value.code == 2
    assert "--no-network stands among config keys" in capsys.readouterr().err


def test_clusters_of_one_camera_are_not_said_to_span_none(check):
    _, text, found = check(keys=["CAMERA_FOLDER.CAMERA", "none"], network=True)
    assert "mean silhouette" in text and "span cameras" not in text
    assert list(found["cameras"]) == ["one"]
