"""The search page in a real browser: a crop is dropped, the ranked ones appear.

A run's own network and an index of files; the page is served by the tool in a process of its own.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import caureid_plugin  # noqa: F401
import numpy as np
import pytest
from caureid_plugin import Index, load_run
from caureid_plugin.retrieval import Entry, PairStatistics
from caureid_plugin.retrieval.run_folder import write_statistics
from PIL import Image

pytest.importorskip("playwright")
pytest.importorskip("flask")
from playwright.sync_api import expect, sync_playwright

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests"))
from browser import find_browser  # noqa: E402

DROP = """
([bytes, name]) => {
  const files = new DataTransfer();
  files.items.add(new File([new Uint8Array(bytes)], name));
  document.getElementById("drop").dispatchEvent(
    new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true}));
}
"""


class Served:
    """A page with what it is made of."""

    def __init__(self, embedder, paths, url):
        self.embedder, self.paths, self.url = embedder, paths, url

    def ranked(self, query, camera=None):
        """(camera, score, file) by falling cosine, by loops."""
        one = self.embedder.embed(query)[0]
        rows = []
        for path, vector in zip(self.paths, self.embedder.embed(self.paths), strict=True):
            where = re.search(r"_c(\d)", path.name)[1]
            if camera in (None, where):
                rows.append((sum(float(x) * float(y) for x, y in zip(one, vector, strict=True)),
                             where, path.name))
        return sorted(rows, reverse=True)


@pytest.fixture
def served(small_run, tiny_market, tmp_path):
    run = small_run()
    write_statistics(run, load_run(run).fingerprint, PairStatistics(
        np.linspace(0.8, 1, 201, dtype=np.float32), np.linspace(-1, 0.9, 1901, dtype=np.float32)))
    embedder = load_run(run)
    folder = tiny_market / "Market-1501-v15.09.15" / "bounding_box_test"
    paths = sorted(folder.glob("*.jpg"))
    index = Index.create(tmp_path / "x", embedder)
    index.add(embedder.embed(paths), [
        Entry(str(folder), path.name, re.search(r"_c(\d)", path.name)[1]) for path in paths])
    with subprocess.Popen(
            [sys.executable, str(REPOSITORY / "tools" / "serve.py"), str(run), "--index",
             str(tmp_path / "x"), "--port", "0", "--top", "8"],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        url = process.stdout.readline().split()[0]
        assert url.startswith("http://127.0.0.1:")
        yield Served(embedder, paths, url)
        process.kill()


@pytest.fixture
def page(served):
    """The page, opened; what a browser complains of fails the test."""
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        wrong, asked = [], []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(served.url)
        yield page
        browser.close()
    # refusals are logged by the browser itself
    assert [text for text in wrong if "415" not in text] == []
    assert all(url.startswith((served.url, "blob:")) for url in asked)


def shown(page, count):
    """(camera, score, file, mark) of each crop on the page."""
    cards = page.locator("#hits li")
    expect(cards).to_have_count(count)
    found = []
    for number, text in enumerate(cards.all_inner_texts(), 1):
        match = re.search(r"(\d+) camera (\d)\s+score (-?[\d.]+)\s+. (same|different)\s+(\S+)",
                          text)
        assert match and int(match[1]) == number, text
        found.append((match[2], float(match[3]), match[5], match[4]))
    return found


def assert_ranked(found, expected):
    assert [score for _, score, _, _ in found] == pytest.approx(
        [score for score, _, _ in expected[:len(found)]], abs=0.002)
    exact = {name: (score, camera) for score, camera, name in expected}
    for camera, score, name, mark in found:
        assert exact[name] == (pytest.approx(score, abs=0.002), camera)
        if abs(score - 0.899) > 0.003:
            assert mark == ("same" if score > 0.899 else "different")


def test_a_file_is_chosen_dropped_and_refused(served, page, tiny_market, tmp_path):
    queries = sorted((tiny_market / "Market-1501-v15.09.15" / "query").glob("*.jpg"))
    expect(page.locator("#status")).to_have_text("Nothing was searched for yet.")
    page.set_input_files("#file", queries[3])
    assert_ranked(shown(page, 8), served.ranked(queries[3]))
    # every crop is a picture that was drawn
    page.wait_for_function("[...document.querySelectorAll('#hits img')].every("
                           "image => image.complete && image.naturalWidth > 0)")
    page.evaluate(DROP, [list(queries[6].read_bytes()), "dropped.jpg"])
    expect(page.locator("#caption")).to_have_text("dropped.jpg")
    expect(page.locator("#status")).to_contain_text("8 crops")
    assert_ranked(shown(page, 8), served.ranked(queries[6]))
    page.evaluate(DROP, [list(b"this is no image"), "text.jpg"])
    expect(page.locator("#error")).to_contain_text("This is no JPEG, PNG, WEBP or BMP image.")
    expect(page.locator("#hits li")).to_have_count(0)
    page.evaluate(DROP, [[0] * (9 * 2 ** 20), "large.jpg"])
    expect(page.locator("#error")).to_contain_text("large.jpg is larger than 8 MiB")
    page.set_input_files("#file", queries[3])  # and all is well again
    expect(page.locator("#error")).to_be_hidden()
    assert_ranked(shown(page, 8), served.ranked(queries[3]))


def test_cameras_and_number_and_search_with_a_crop(served, page, tiny_market):
    query = sorted((tiny_market / "Market-1501-v15.09.15" / "query").glob("*.jpg"))[0]
    page.set_input_files("#file", query)
    shown(page, 8)
    page.uncheck("input[name=camera][value='0']")
    page.fill("#top", "5")
    found = shown(page, 5)
    expect(page.locator("#status")).to_contain_text("5 crops")
    assert {camera for camera, *_ in found} == {"2"}
    assert_ranked(found, served.ranked(query, "2"))
    page.check("input[name=camera][value='0']")
    expect(page.locator("#hits li").first).to_contain_text("camera")
    page.wait_for_function("document.getElementById('hits').getAttribute('aria-busy') === 'false'")
    first = page.locator("#hits li button").first
    name = first.get_attribute("title")
    with page.expect_response(re.compile("row=")):
        first.press("Enter")  # by the keyboard
    expect(page.locator("#caption")).to_contain_text(name)
    expect(page.locator("#hits")).not_to_contain_text(name)
    again = [row for row in served.ranked(next(p for p in served.paths if p.name == name))
             if row[2] != name]
    assert_ranked(shown(page, 5), again)


def test_it_fits_a_phone(served, page, tiny_market):
    page.set_viewport_size({"width": 360, "height": 700})
    page.set_input_files("#file", served.paths[0])
    shown(page, 8)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    boxes = [page.locator("#hits li").nth(number).bounding_box() for number in range(8)]
    assert all(box["width"] > 80 and box["x"] >= 0 for box in boxes)


def test_the_picture_that_is_shown_is_the_crop(served, page, tmp_path):
    page.set_input_files("#file", served.paths[4])
    shown(page, 8)
    page.locator("#hits li img").first.screenshot(path=tmp_path / "first.png")
    with Image.open(tmp_path / "first.png") as seen, Image.open(served.paths[4]) as crop:
        middle = np.asarray(seen.convert("RGB"), float)
        expected = np.asarray(crop.convert("RGB"), float)
    size = middle.shape[0]
    for part in (slice(size // 8, 3 * size // 8), slice(5 * size // 8, 7 * size // 8)):
        column = middle[part, middle.shape[1] // 2 - 5:middle.shape[1] // 2 + 5]
        half = expected[:16] if part.start < size // 2 else expected[16:]
        assert np.abs(column.mean((0, 1)) - half.mean((0, 1))).max() < 25
