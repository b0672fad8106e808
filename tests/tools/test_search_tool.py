"""tools/search.py lists what comparing every crop by hand gives, and says what it cannot do."""

import functools
import json
import os
import re
import shutil
import struct
import zlib

import numpy as np
import pytest
from caureid_plugin import Index, load_run
from caureid_plugin.retrieval import PairStatistics
from caureid_plugin.retrieval.run_folder import write_statistics
from PIL import Image

import index
import search
import search_sheet
from helpers import warm
from helpers.tiny import write_market

PATTERN = ["CAMERA_FOLDER.CAMERA", "pattern", "CAMERA_FOLDER.PATTERN", r"_c(\d+)"]


load_once = functools.cache(search.load_embedder)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where what the tests of this module only read is: images, a run and an index."""
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def market(home):
    return write_market(home) / "Market-1501-v15.09.15"


@pytest.fixture
def run(small_run, home):
    """Half of the pairs of one person are expected to score above 0.9."""
    if not (home / "run").exists():
        shutil.copytree(small_run(), home / "run")
        write_statistics(home / "run", load_run(home / "run").fingerprint, PairStatistics(
            np.linspace(0.8, 1, 201, dtype=np.float32),
            np.linspace(-1, 0.9, 1901, dtype=np.float32)))
    return home / "run"


@pytest.fixture
def ask(run, market, home, monkeypatch, capsys):
    """Calls the tool with the gallery's index; gives what it printed."""
    if not (home / "x").exists():
        index.main([str(run), str(market / "bounding_box_test"), "--index", str(home / "x"),
                    *PATTERN])
        capsys.readouterr()
    monkeypatch.setattr(search, "load_embedder", load_once)

    def call(*words):
        search.main([str(run), *map(str, words), "--index", str(home / "x")])
        return capsys.readouterr().out

    return call


def rows(text):
    """(rank, score, same, camera, path) of each line of tables."""
    return [line.split() for line in text.splitlines() if re.match(r"\d+ ", line)]


def by_hand(run, market, query, cameras=(1, 2)):
    """(cosine, path) by falling cosine."""
    embedder = load_once(run)
    paths = [path for path in sorted((market / "bounding_box_test").glob("*.jpg"))
             if int(re.search(r"_c(\d)", path.name)[1]) in cameras]
    gallery, one = embedder.embed(paths), embedder.embed(query)[0]
    found = [(sum(float(x) * float(y) for x, y in zip(row, one, strict=True)), str(path))
             for row, path in zip(gallery, paths, strict=True)]
    return sorted(found, reverse=True)


@pytest.mark.parametrize("words, cameras", [
    ([], (1, 2)), (["--camera", "1"], (1,)), (["--without-camera", "1"], (2,)),
    (["--camera", "1", "2", "--without-camera", "01"], (2,))])
def test_the_list_is_that_of_comparing_all(ask, run, market, words, cameras):
    query = sorted((market / "query").glob("*.jpg"))[3]
    expected = by_hand(run, market, query, cameras)
    said = ask(query, "--top", "7", *words)
    assert [int(row[0]) for row in rows(said)] == list(range(1, 8))
    assert [float(row[1]) for row in rows(said)] == pytest.approx(
        [score for score, _ in expected[:7]], abs=0.002)
    exact = {path: score for score, path in expected}
    assert all(float(row[1]) == pytest.approx(exact[row[4]], abs=0.002) for row in rows(said))
    assert all(row[3] == re.search(r"_c(\d)", row[4])[1] for row in rows(said))
    assert all(int(row[3]) in cameras for row in rows(said))
    assert len(rows(ask(query, "--top", "100", *words))) == len(expected)


def test_several_queries_and_the_threshold(ask, run, market):
    queries = sorted((market / "query").glob("*.jpg"))[:3]
    said = ask(*queries, "--top", "4", "--false-match-rate", "0.01")
    assert [line for line in said.splitlines() if line.endswith(".jpg") and "  " not in line] == [
        str(query) for query in queries]
    assert len(rows(said)) == 12
    found = load_once(run).statistics.threshold(0.01)
    assert f"Threshold for the same person: {found.value:.3f}" in said
    assert (f"{100 * found.false_match_rate:.3g} % of pairs of different people score as high, "
            f"{100 * found.false_non_match_rate:.3g} % of pairs of one person score lower") in said
    assert "1901 pairs in different clusters and 201 in the same one (training images)" in said
    assert "both rates are higher" in said and "threshold.py" not in said
    for row in rows(said):
        if abs(float(row[1]) - found.value) > 0.001:
            assert row[2] == ("yes" if float(row[1]) > found.value else "no")


def test_what_was_measured_comes_before_the_memory_bank(run, market, tmp_path, capsys):
    """Whether the run or the index has it."""
    query = sorted((market / "query").glob("*.jpg"))[0]
    run = shutil.copytree(run, tmp_path / "run")
    words = ["--index", str(tmp_path / "x")]
    index.main([str(run), str(market / "bounding_box_test"), *words])
    measured = load_run(run).statistics.threshold().value
    kept = (run / "pair_statistics.json").read_bytes()
    (run / "pair_statistics.json").unlink()
    search.main([str(run), str(query), *words])
    said = capsys.readouterr().out
    assert f"{measured:.3f}" in said and "(training images)" in said
    index.main([str(run), str(market / "bounding_box_test"), "--index", str(tmp_path / "bank")])
    search.main([str(run), str(query), "--index", str(tmp_path / "bank")])
    said = capsys.readouterr().out  # rates that are too low
    assert "(memory bank)" in said and "understates the first by far" in said
    assert "tools/threshold.py" in said
    (run / "pair_statistics.json").write_bytes(kept)
    search.main([str(run), str(query), "--index", str(tmp_path / "bank")])
    said = capsys.readouterr().out
    assert f"{measured:.3f}" in said and "(training images)" in said


def test_json(ask, run, market, tmp_path):
    queries = sorted((market / "query").glob("*.jpg"))[:2]
    said = ask(*queries, "--top", "5", "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    loaded = load_once(run)
    threshold = loaded.statistics.threshold(0.001)
    assert found["fingerprint"] == loaded.fingerprint and found["model"] == loaded.name
    assert tuple(found["threshold"].values()) == threshold and found["why_no_threshold"] == ""
    listed = [(hit["rank"], f"{hit['score']:.3f}", hit["camera"], hit["path"])
              for query in found["queries"] for hit in query["hits"]]
    assert listed == [(int(row[0]), row[1], row[3], row[4]) for row in rows(said)]
    for query in found["queries"]:
        assert query["error"] == "" and [hit["same"] for hit in query["hits"]] == [
            hit["score"] >= threshold.value for hit in query["hits"]]


def test_picture(ask, market, tmp_path):
    queries = sorted((market / "query").glob("*.jpg"))[:2]
    ask(*queries, "--top", "12", "--picture", tmp_path / "found.png")
    with Image.open(tmp_path / "found.png") as picture:
        sheet = np.asarray(picture.convert("RGB")).astype(int)
    width, height = search_sheet.CELL
    # the queries and the first hit of each: the middle of the cell shows the image's own colours
    frame, gap = search_sheet.FRAME, search_sheet.GAP
    line = height + 2 * frame + search_sheet.TEXT + gap
    for number, query in enumerate(queries):
        top = 36 + 2 * number * line + frame  # twelve hits take two lines
        cell = sheet[top:top + height, gap + frame:gap + frame + width]
        with Image.open(query) as image:
            expected = np.asarray(image.convert("RGB").resize((width, height)), dtype=int)
        assert np.abs(cell - expected).mean() < 12
    assert sheet.shape[0] > 4 * line


def test_a_reader_that_stops_reading(ask, run, market, home, tmp_path):
    """As head does: the files are written, and nothing is said of it."""
    queries = sorted((market / "query").glob("*.jpg"))[:2]
    no_reader = "import os; end, pipe = os.pipe(); os.close(end); os.dup2(pipe, 1)"
    done = warm.run([search.__file__, run, *queries, "--index", home / "x",
                     "--json", tmp_path / "found.json", "--picture", tmp_path / "found.png"],
                    tmp_path, prepare=no_reader)
    assert done.returncode == 0 and "pipe" not in done.stderr.lower() and not done.stdout
    assert len(json.loads((tmp_path / "found.json").read_text())["queries"]) == 2
    assert (tmp_path / "found.png").stat().st_size > 1000


def test_queries_that_cannot_be_read_are_named_and_the_others_answered(
        ask, market, tmp_path, capsys):
    good = sorted((market / "query").glob("*.jpg"))[0]
    text, cut, pipe = (tmp_path / name for name in ("text.jpg", "cut.jpg", "pipe.jpg"))
    text.write_text("no image")
    cut.write_bytes(good.read_bytes()[:300])
    os.mkfifo(pipe)
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    with pytest.raises(SystemExit) as error:
        ask(text, good, cut, pipe, tmp_path / "absent.jpg", tmp_path / "huge.png", tmp_path,
            "--top", "3", "--json", tmp_path / "found.json")
    said = str(error.value).splitlines()
    for line, part in zip(said, (
            "text.jpg is no image that can be read: give a JPEG or PNG", "cut.jpg",
            "pipe.jpg is not a regular file", "absent.jpg does not exist: give the file",
            "huge.png has 9000 x 9000 pixels, and a query may have 50000000: make it smaller",
            "is not a regular file"), strict=True):
        assert part in line
    assert len(rows(capsys.readouterr().out)) == 3
    found = json.loads((tmp_path / "found.json").read_text())["queries"]
    assert [bool(query["error"]) for query in found] == [True, False, True, True, True, True, True]


def test_a_decompression_bomb_and_a_large_file(ask, tmp_path, monkeypatch):
    def chunk(kind, data):
        return (struct.pack(">I", len(data)) + kind + data
                + struct.pack(">I", zlib.crc32(kind + data)))

    header = struct.pack(">IIBBBBB", 10 ** 5, 10 ** 5, 8, 2, 0, 0, 0)
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))
    with pytest.raises(SystemExit, match="bomb.png has more pixels than the 50000000"):
        ask(bomb)
    monkeypatch.setattr(search, "MOST_BYTES", 2 ** 20)
    (tmp_path / "large.jpg").write_bytes(bytes(3 * 2 ** 20))
    with pytest.raises(SystemExit, match="large.jpg has 3 MiB, and a query may have 1: make it"):
        ask(tmp_path / "large.jpg")


def test_nothing_else_is_written_over(ask, market, home, tmp_path, capsys):
    query = sorted((market / "query").glob("*.jpg"))[0]
    out = {"--json": tmp_path / "found.json", "--picture": tmp_path / "found.png"}
    for _ in range(2):  # what it has written itself, it writes anew
        ask(query, *(word for pair in out.items() for word in pair))
    before = {path: path.read_bytes() for path in (home / "x").iterdir()}
    crop = tmp_path / "crop.png"
    Image.open(query).save(crop)
    other = tmp_path / "other.json"
    other.write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere")
    for option, path, said in (
            ("--json", home / "x" / "index.json", "lies in the folder of the index"),
            ("--json", home / "x" / "block-000009.json", "lies in the folder of the index"),
            ("--json", other, "is there already and was not written by this tool"),
            ("--json", tmp_path / "link.json", "is there already and was not written by"),
            ("--picture", crop, "is there already and was not written by this tool: give")):
        with pytest.raises(SystemExit):
            ask(query, crop, option, path)
        assert said in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (home / "x").iterdir()} == before
    assert other.read_text() == "{}" and (tmp_path / "link.json").is_symlink()
    with Image.open(crop) as image:
        assert image.size == Image.open(query).size


def test_a_picture_that_would_be_too_large(ask, market, tmp_path, monkeypatch):
    queries = sorted((market / "query").glob("*.jpg"))[:3]
    words = ["--picture", tmp_path / "found.png", "--json", tmp_path / "found.json"]
    monkeypatch.setattr(search, "MOST_CELLS", 33)
    with pytest.raises(SystemExit, match="34 images for each of 3 queries in 132 places, and may"
                       " have 33: lower --top"):  # 4 lines of 11 for each
        ask(*queries, *words, "--top", "1000")
    assert not (tmp_path / "found.png").exists()
    ask(*queries, *words, "--top", "10")
    assert (tmp_path / "found.png").exists()


def test_a_picture_that_fails_loses_nothing_else(ask, market, tmp_path, monkeypatch):
    query = sorted((market / "query").glob("*.jpg"))[0]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(search, "draw_sheet", full)
    with pytest.raises(SystemExit, match="No space left"):
        ask(query, "--picture", tmp_path / "a.png", "--json", tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text())["queries"][0]["hits"]


def test_nothing_found_is_said(ask, run, market, tmp_path, capsys):
    query = sorted((market / "query").glob("*.jpg"))[0]
    said = ask(query, "--camera", "1", "--without-camera", "01")
    assert "no image of the index is of a camera that was asked for" in said and not rows(said)
    Index.create(tmp_path / "empty", load_once(run))
    search.main([str(run), str(query), "--index", str(tmp_path / "empty")])
    assert "the index is empty, tools/index.py fills it" in capsys.readouterr().out


def test_mistakes(ask, run, small_run, market, home, tmp_path, capsys):
    query = sorted((market / "query").glob("*.jpg"))[0]
    for words, said in ((["--camera", "7"], "no image of camera '7'; it has those of '1', '2'"),
                        (["--false-match-rate", "0.0000001"], "is too low to be told from")):
        with pytest.raises(SystemExit, match=said):
            ask(query, *words)
    for words, said in ((["--top", "0"], "--top 0 must be from 1 to 1000"),
                        (["--false-match-rate", "2"], "2 must lie between 0 and 1"),
                        (["--json", "x.txt"], "--json x.txt must end in .json"),
                        (["--picture", "/absent/x.png"], "/absent/x.png cannot be written")):
        with pytest.raises(SystemExit):
            ask(query, *words)
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit, match="absent does not exist: give the folder that tools/index"):
        search.main([str(run), str(query), "--index", str(tmp_path / "absent")])
    (tmp_path / "a.torchscript").touch()
    with pytest.raises(SystemExit, match="is a program for other tools.*give the run folder"):
        search.main([str(tmp_path / "a.torchscript"), str(query), "--index", str(home / "x")])
    other = small_run("INPUT.SIZE_TEST", "[64,32]", folder="other")
    with pytest.raises(SystemExit, match="another network, and those of two cannot be compared"):
        search.main([str(other), str(query), "--index", str(home / "x")])
