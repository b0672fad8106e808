"""The report of a run in a real browser: it loads without errors and fits its screens."""

import csv
import re
from pathlib import Path

import pytest
from caureid_plugin.cli.common import call
from caureid_plugin.cli.report import command
from caureid_plugin.engine import load_config
from fastreid.data import build as data_build

from helpers.browser import open_browser, watch
from helpers.run_folder import draw_nothing, write_run
from helpers.tiny import KEYS, write_market

SCREENS = [(390, "light"), (1280, "dark")]
# runs, if it is taken for HTML
HOSTILE = "<img src=x onerror=window.broken=1>'\"&"
NAME = "run <img src=x onerror=window.broken=2>"
CAMERAS = ["courtyardm", "entrance_w"]


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page_file(browser, tmp_path_factory):
    """The report of a run; names of its folder and images are hostile."""
    root = write_market(tmp_path_factory.mktemp("data"))
    for path in root.glob("*/*/*.jpg"):
        path.rename(path.with_name(f"{path.stem}_{HOSTILE}.jpg"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_build, "_root", str(root))
        folder = write_run(tmp_path_factory.mktemp("runs") / NAME,
                           load_config("Synthetic/caureid.yml", KEYS))
        call(command, [folder, "--images", "30"])
        yield folder / "report.html"


@pytest.fixture(scope="module", params=SCREENS, ids=lambda param: f"{param[0]}-{param[1]}")
def opened(request, browser, page_file):
    """The page on a screen, and what went wrong while it was loaded."""
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    wrong, asked = watch(page)
    page.goto(page_file.as_uri(), wait_until="load")
    yield page, width, scheme, wrong + [
        address for address in asked if not address.startswith(("data:", page_file.as_uri()))]
    page.close()


def test_names_of_cameras_are_not_cut(browser, page_file, tmp_path, monkeypatch):
    """Of ten letters, in a report of the same run."""
    images = sorted(Path(data_build._root).glob("*/bounding_box_train/*.jpg"))
    with (tmp_path / "cameras.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "camera"], *(
            [image, CAMERAS["_c2s" in image.name]] for image in images)])
    draw_nothing(monkeypatch)
    output = tmp_path / "report.html"
    options = ["--output", output, "DATASETS.NAMES", "('CameraFolder',)", "DATASETS.TESTS", "()",
               "CAMERA_FOLDER.ROOT", images[0].parent, "CAMERA_FOLDER.CAMERA", "csv",
               "CAMERA_FOLDER.CSV", tmp_path / "cameras.csv"]
    call(command, [page_file.parent, *options])
    for width in (390, 1280):
        page = browser.new_page(viewport={"width": width, "height": 844})
        page.goto(output.as_uri(), wait_until="load")
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
    assert wrong == [] and page.evaluate("window.broken") is None
    assert page.locator("h1").inner_text() == NAME
    pictures = page.evaluate(
        "[...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.alt])")
    assert len(pictures) > 50 and any(HOSTILE in alt for *_, alt in pictures)
    assert all(complete and wide > 0 and high > 0 for complete, wide, high, _ in pictures)
    charts = page.evaluate("[...document.querySelectorAll('svg')].map(s => s.clientWidth)")
    assert len(charts) == 5 and min(charts) > 200


def test_nothing_is_wider_than_the_screen(opened):
    page, width, *_ = opened
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # but for what scrolls by itself
    outside = page.evaluate("""width => [...document.querySelectorAll('body *')].filter(
        e => !e.closest('.strip') && !e.closest('svg') && e.getBoundingClientRect().right > width
    ).map(e => e.tagName)""", width)
    assert outside == []


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
