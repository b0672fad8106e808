"""The search page in a real browser: a crop is dropped, the ranked ones appear.

A run's own network and an index of files; the command serves the page in its own process.
"""

import re

import numpy as np
import pytest
from caureid_plugin import Index, load_run
from caureid_plugin.engine import load_config
from caureid_plugin.retrieval import Entry, PairStatistics
from caureid_plugin.runs.folder import write_statistics
from fastreid.data import build as data_build
from playwright.sync_api import expect

from helpers.browser import open_browser, watch
from helpers.run_folder import write_run
from helpers.server import served
from helpers.tiny import KEYS, write_market

LIMIT = 0.949  # of the statistics below: 0.1 % of the pairs of different people are above
# as a user does; ``bytes``: of the file, or how many zeros
DROP = """
([bytes, name]) => {
  const files = new DataTransfer();
  files.items.add(new File([new Uint8Array(bytes)], name));
  document.getElementById("drop").dispatchEvent(
    new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true}));
}
"""


class Find:
    """What the page searches in, by plain products."""

    def __init__(self, embedder, crops, queries):
        self.crops, self.queries, self._embedder = crops, queries, embedder

    def ranked(self, query, camera=None):
        """(score, camera, file) by falling cosine."""
        scores = self._embedder.embed(self.crops) @ self._embedder.embed(query)[0]
        rows = [(score, camera_of(path), path.name)
                for path, score in zip(self.crops, scores.tolist(), strict=True)]
        return sorted((row for row in rows if camera in (None, row[1])), reverse=True)


def camera_of(path):
    return re.search(r"_c(\d)", path.name)[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run, with the statistics of its pairs."""
    home = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_build, "_root", str(write_market(home / "images")))
        folder = write_run(home / "run", load_config("Synthetic/caureid.yml", KEYS))
    write_statistics(folder, load_run(folder).fingerprint, PairStatistics(
        np.linspace(0.9, 1, 201, dtype=np.float32), np.linspace(-1, 0.95, 1951, dtype=np.float32)))
    return folder


@pytest.fixture(scope="module")
def find(run):
    """Makes ``index`` in the folder of the run, of test images."""
    embedder = load_run(run)
    folder = run.parent / "images" / "Market-1501-v15.09.15" / "bounding_box_test"
    crops = sorted(folder.glob("*.jpg"))
    Index.create(run / "index", embedder).add(embedder.embed(crops), [
        Entry(str(folder), path.name, camera_of(path)) for path in crops])
    return Find(embedder, crops, sorted((folder.parent / "query").glob("*.jpg")))


@pytest.fixture(scope="module")
def tab(run, find):
    """A browser's page and its address; what a browser complains of fails the module."""
    with (open_browser() as browser,
          served(["-m", "caureid_plugin", "serve", run, "--index", run / "index", "--port", "0",
                  "--top", "8"], run) as (_, url, _)):
        assert url.startswith("http://127.0.0.1:")
        page = browser.new_page()
        wrong, asked = watch(page)
        yield page, url
        page.close()  # before the server: pictures may still be on their way
    # refusals are logged by the browser itself
    assert [text for text in wrong if "415" not in text] == []
    assert len(asked) > 10 and all(address.startswith((url, "blob:")) for address in asked)


@pytest.fixture
def page(tab):
    """The page as it is at first."""
    opened, url = tab
    opened.set_viewport_size({"width": 1000, "height": 900})
    opened.goto(url)
    return opened


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
        if abs(score - LIMIT) > 0.003:
            assert mark == ("same" if score > LIMIT else "different")


def test_a_file_is_chosen_dropped_and_refused(page, find):
    expect(page.locator("#status")).to_have_text("Nothing was searched for yet.")
    page.set_input_files("#file", find.queries[3])
    found = shown(page, 8)
    assert_ranked(found, find.ranked(find.queries[3]))
    # every crop is a picture that was drawn, the first one that of its file
    page.wait_for_function("[...document.querySelectorAll('#hits img')].every("
                           "image => image.complete && image.naturalWidth > 0)")
    row = [path.name for path in find.crops].index(found[0][2])
    assert page.locator("#hits img").first.get_attribute("src") == f"/crops/{row}"
    page.evaluate(DROP, [list(find.queries[6].read_bytes()), "dropped.jpg"])
    expect(page.locator("#caption")).to_have_text("dropped.jpg")
    expect(page.locator("#status")).to_contain_text("8 crops")
    assert_ranked(shown(page, 8), find.ranked(find.queries[6]))
    page.evaluate(DROP, [list(b"this is no image"), "text.jpg"])
    expect(page.locator("#error")).to_contain_text("This is no JPEG, PNG, WEBP or BMP image.")
    expect(page.locator("#hits li")).to_have_count(0)
    page.evaluate(DROP, [9 * 2 ** 20, "large.jpg"])
    expect(page.locator("#error")).to_contain_text("large.jpg is larger than 8 MiB")
    page.fill("#top", "34")
    page.set_input_files("#file", find.queries[0])  # and all is well again
    expect(page.locator("#error")).to_be_hidden()
    found = shown(page, 34)
    assert_ranked(found, find.ranked(find.queries[0]))
    assert {mark for *_, mark in found} == {"same", "different"}


def test_cameras_and_number_and_search_with_a_crop(page, find):
    page.set_input_files("#file", find.queries[0])
    shown(page, 8)
    page.uncheck("input[name=camera][value='0']")
    page.fill("#top", "5")
    found = shown(page, 5)
    expect(page.locator("#status")).to_contain_text("5 crops")
    assert {camera for camera, *_ in found} == {"2"}
    assert_ranked(found, find.ranked(find.queries[0], "2"))
    page.check("input[name=camera][value='0']")
    expect(page.locator("#hits li").first).to_contain_text("camera")
    page.wait_for_function("document.getElementById('hits').getAttribute('aria-busy') === 'false'")
    first = page.locator("#hits li button").first
    name = first.get_attribute("title")
    with page.expect_response(re.compile("row=")):
        first.press("Enter")  # by the keyboard
    expect(page.locator("#caption")).to_contain_text(name)
    expect(page.locator("#hits")).not_to_contain_text(name)
    expect(page.locator("#hits li").first).to_contain_text("Search with this crop")
    again = [row for row in find.ranked(next(p for p in find.crops if p.name == name))
             if row[2] != name]
    assert_ranked(shown(page, 5), again)


def test_it_fits_a_phone_and_crops_come_into_view(page, find):
    page.set_viewport_size({"width": 360, "height": 700})
    page.set_input_files("#file", find.queries[0])
    shown(page, 8)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    boxes = [page.locator("#hits li").nth(number).bounding_box() for number in range(8)]
    assert all(box["width"] > 80 and box["x"] >= 0 for box in boxes)
    expect(page.locator("#hits li").first).to_be_in_viewport(ratio=1)
    page.evaluate("scrollTo(0, 0)")
    page.fill("#top", "4")  # whoever sets options stays with them
    shown(page, 4)
    assert page.evaluate("scrollY") < 50  # the field itself is scrolled to
    page.locator("#hits li button").nth(3).click()
    expect(page.locator("#status")).to_contain_text("4 crops")
    expect(page.locator("#hits li").first).to_be_in_viewport(ratio=1)
    page.evaluate("scrollTo(0, 0)")
    page.evaluate(DROP, [list(b"this is no image"), "text.jpg"])
    expect(page.locator("#error")).to_be_in_viewport()


def test_any_crop_begins_and_the_querys_own_file_is_left_out(page, find):
    with page.expect_response(re.compile("row=")):
        page.click("#any")
    found = {name for _, _, name, _ in shown(page, 8)}
    own = page.locator("#caption").inner_text().split()[-1]
    assert own in {path.name for path in find.crops} and own not in found
    page.set_input_files("#file", find.crops[5])
    expect(page.locator("#status")).to_contain_text(
        f"has the query's own file, which is left out: camera {camera_of(find.crops[5])}, "
        f"{find.crops[5].name}.")
    assert find.crops[5].name not in {name for _, _, name, _ in shown(page, 8)}
