"""The report of a real run in a real browser: it loads without errors and fits its screens."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests"))
from browser import REQUIRED, find_browser  # noqa: E402

SECTIONS = ["Verdict", "Curves", "Clusters", "Outliers", "Where the network looks",
            "Map of the embeddings", "Rank lists", "How this run was made"]
SCREENS = [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")]
# runs, if it is taken for HTML
HOSTILE = "<img src=x onerror=window.broken=1>'\"&"
NAME = "run <img src=x onerror=window.broken=2>"
CAMERAS = ["courtyardm", "entrance_w"]
KEYS = """
MODEL.DEVICE cpu MODEL.BACKBONE.FEAT_DIM 16 MODEL.HEADS.CAMSEP.REDUCTION 4
MODEL.HEADS.CAMSEP.NUM_CAMERAS 2 MODEL.BN_GROUP_SIZE 8 DATASETS.NAMES ('Market1501',)
DATASETS.TESTS ('Market1501',) DATALOADER.NUM_WORKERS 0 INPUT.SIZE_TRAIN [32,16]
INPUT.SIZE_TEST [32,16] SOLVER.IMS_PER_BATCH 16 SOLVER.ITERS_PER_EPOCH 3 SOLVER.MAX_EPOCH 2
CAUREID.CLUSTER.K1 6 CAUREID.CLUSTER.K2 2 CAUREID.CLUSTER.EPS 0.6 TEST.EVAL_PERIOD 1
TEST.IMS_PER_BATCH 16 SEED 1
""".split()


def write_images(root):
    """Eight people of two cameras to train with and eight to test with, in Market-1501's layout."""
    rng = np.random.default_rng(0)
    base = root / "Market-1501-v15.09.15"
    for person in range(16):
        names = ("bounding_box_train",) * 3 if person < 8 else (
            "query", "bounding_box_test", "bounding_box_test")
        colours = rng.uniform(20, 235, size=(2, 3))
        for camera in range(2):
            for frame, name in enumerate(names):
                (base / name).mkdir(parents=True, exist_ok=True)
                image = np.repeat(colours * (1 - 0.2 * camera), 16, axis=0)[:, None]
                image = image + rng.normal(scale=12, size=(32, 16, 3))
                Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(
                    base / name / f"{person + 1:04d}_c{camera + 1}s1_{frame:06d}_{HOSTILE}.jpg")


def tool(name, root, *arguments):
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools" / name), *map(str, arguments)], check=False,
        capture_output=True, text=True, timeout=250,
        env={**os.environ, "FASTREID_DATASETS": str(root), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder of the images."""
    root = tmp_path_factory.mktemp("data")
    write_images(root)
    return root


@pytest.fixture(scope="module")
def page_file(data, tmp_path_factory):
    """The report of a tiny run that was trained for it, in a folder whose name is hostile too."""
    find_browser()  # before the work
    folder = tmp_path_factory.mktemp("runs") / NAME
    tool("train_net.py", data, "--config-file", "Synthetic/caureid.yml", *KEYS, "OUTPUT_DIR",
         folder)
    printed = tool("report.py", data, folder, "--images", "30")
    assert re.search(r"report\.html: \d\.\d MiB$", printed.strip())
    return folder / "report.html"


@pytest.fixture(scope="module")
def chromium(page_file):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_browser(),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=SCREENS, ids=lambda param: f"{param[0]}-{param[1]}")
def opened(request, chromium, page_file):
    """The page on a screen, and what went wrong while it was loaded."""
    width, scheme = request.param
    page = chromium.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    wrong = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith(
        ("data:", page_file.as_uri())) else None)
    page.goto(page_file.as_uri(), wait_until="load")
    yield page, width, scheme, wrong
    page.close()


@pytest.fixture(scope="module")
def named_page(data, page_file, tmp_path_factory):
    """A report of the same run, whose cameras have names of ten letters."""
    folder = tmp_path_factory.mktemp("named")
    images = sorted(data.glob("*/bounding_box_train/*.jpg"))
    with (folder / "cameras.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "camera"], *(
            [image, CAMERAS["_c2s" in image.name]] for image in images)])
    tool("report.py", data, page_file.parent, "--images", "30", "--output",
         folder / "report.html", "DATASETS.NAMES", "('CameraFolder',)", "DATASETS.TESTS", "()",
         "CAMERA_FOLDER.ROOT", images[0].parent, "CAMERA_FOLDER.CAMERA", "csv",
         "CAMERA_FOLDER.CSV", folder / "cameras.csv")
    return folder / "report.html"


@pytest.mark.parametrize("width", [390, 1280])
def test_names_of_cameras_are_not_cut(chromium, named_page, width):
    page = chromium.new_page(viewport={"width": width, "height": 844})
    page.goto(named_page.as_uri(), wait_until="load")
    captions = page.evaluate("""[...document.querySelectorAll('.crop figcaption')].map(e => [
        e.textContent, e.scrollWidth <= e.clientWidth, e.scrollHeight <= e.clientHeight])""")
    page.close()
    assert {text for text, *_ in captions} == set(CAMERAS)
    assert all(wide and high for _, wide, high in captions)


def luminance(colour):
    """Relative luminance of "rgb(r, g, b)", by WCAG 2's formula."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, two):
    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_page_loads_whole_and_asks_for_nothing(opened):
    page, *_, wrong = opened
    assert wrong == []
    assert page.evaluate("window.broken") is None
    pictures = page.evaluate(
        "[...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.alt])")
    assert len(pictures) > 50
    assert all(complete and wide > 0 and high > 0 for complete, wide, high, _ in pictures)
    assert any(HOSTILE in alt for *_, alt in pictures)
    charts = page.evaluate("[...document.querySelectorAll('svg')].map(s => s.clientWidth)")
    assert len(charts) == 5 and min(charts) > 200


def test_every_section_is_there(opened):
    page, *_ = opened
    headings = page.locator("h2").all_inner_texts()
    assert len(headings) == len(SECTIONS)
    assert all(name in heading for name, heading in zip(SECTIONS, headings, strict=True))
    for link in page.locator("nav a").all():
        assert page.locator(link.get_attribute("href")).count() == 1
    assert page.locator("h1").inner_text() == NAME


def test_nothing_is_wider_than_the_screen(opened):
    page, width, *_ = opened
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # but for what scrolls by itself
    outside = page.evaluate("""width => [...document.querySelectorAll('body *')].filter(
        e => !e.closest('.strip') && !e.closest('svg') && e.getBoundingClientRect().right > width
    ).map(e => e.tagName)""", width)
    assert outside == []


def test_the_maps_stand_below_each_other_on_a_phone(opened):
    page, width, *_ = opened
    tops = page.evaluate("[...document.querySelectorAll('.maps img')].map("
                         "i => Math.round(i.getBoundingClientRect().top))")
    assert len(tops) == 4 and len(set(tops)) == (4 if width == 390 else 1)


def test_text_stands_out_from_its_ground(opened):
    page, _, scheme, _ = opened
    ground = page.evaluate("getComputedStyle(document.querySelector('section')).backgroundColor")
    assert (luminance(ground) < 0.1) == (scheme == "dark")
    for place in ("section p", ".soft", "figcaption", "nav a", "h2", ".right b", ".wrong b",
                  "svg text"):
        name = "fill" if place.startswith("svg") else "color"
        colour = page.evaluate(
            f"getComputedStyle(document.querySelector({place!r})).{name}")
        assert contrast(colour, ground) >= 4.5, (place, colour, ground)


def test_right_and_wrong_are_told_without_colour(opened):
    page, *_ = opened
    marks = {kind: page.locator(f".{kind} figcaption").all_inner_texts()
             for kind in ("right", "wrong")}
    assert marks["right"] and all(text.startswith("✓") for text in marks["right"])
    assert marks["wrong"] and all(text.startswith("✗") for text in marks["wrong"])


def test_a_missing_browser_is_an_error_where_it_is_required(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no browser is installed"):
        find_browser()
    monkeypatch.setenv(REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match=f"{REQUIRED} is set"):
        find_browser()
