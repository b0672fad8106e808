"""caureid search lists what comparing every crop by hand gives, and says what it cannot do."""

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
from caureid_plugin.cli.common import call
from caureid_plugin.cli.index import command as index
from caureid_plugin.cli.search import command
from caureid_plugin.retrieval import PairStatistics, RunVerdict
from caureid_plugin.retrieval import sheet as search_sheet
from caureid_plugin.retrieval.index_files import Entry
from caureid_plugin.retrieval.verdicts import is_query
from caureid_plugin.runs.folder import write_statistics
from caureid_plugin.runs.threshold import NO_VERDICT
from caureid_plugin.search import answers
from PIL import Image

from helpers import warm
from helpers.tiny import write_market
from helpers.tool_output import refusal

PATTERN = ["CAMERA_FOLDER.CAMERA", "pattern", "CAMERA_FOLDER.PATTERN", r"_c(\d+)"]


load_once = functools.cache(answers.load_embedder)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where what the tests of this module only read is: images, a run and an index."""
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def market(home):
    return write_market(home) / "Market-1501-v15.09.15"


@pytest.fixture(scope="module")
def queries(market):
    return sorted((market / "query").glob("*.jpg"))


@pytest.fixture
def run(small_run, home):
    """Pairs of one person are expected to score from 0.5 to 1, those of two from -1 to 0.9."""
    if not (home / "run").exists():
        shutil.copytree(small_run(), home / "run")
        write_statistics(home / "run", load_run(home / "run").fingerprint, PairStatistics(
            np.linspace(0.5, 1, 501, dtype=np.float32),
            np.linspace(-1, 0.9, 1901, dtype=np.float32)))
    return home / "run"


@pytest.fixture
def ask(run, market, home, monkeypatch, capsys):
    """Calls the command with the gallery's index; gives what it printed."""
    if not (home / "x").exists():
        call(index, [run, market / "bounding_box_test", "--index", home / "x", *PATTERN])
        capsys.readouterr()
    monkeypatch.setattr(answers, "load_embedder", load_once)

    def ask_for(*words):
        call(command, [run, *words, "--index", home / "x"])
        return capsys.readouterr().out

    return ask_for


def rows(text):
    """(rank, score, same, camera, path) of each line of tables."""
    return [line.split() for line in text.splitlines() if re.match(r"\d+ ", line)]


@pytest.mark.parametrize("words, cameras", [
    ([], "12"), (["--camera", "1"], "1"), (["--without-camera", "1"], "2"),
    (["--camera", "1", "2", "--without-camera", "01"], "2")])
def test_the_list_is_that_of_comparing_all(ask, run, market, queries, words, cameras):
    gallery = {str(path): re.search(r"_c(\d)", path.name)[1]
               for path in (market / "bounding_box_test").glob("*.jpg")}
    paths = [path for path, camera in gallery.items() if camera in cameras]
    query, *others = load_once(run).embed([queries[3], *paths]).astype(np.float64)
    exact = {path: sum(x * y for x, y in zip(other, query, strict=True))
             for path, other in zip(paths, others, strict=True)}
    found = rows(ask(queries[3], "--top", "7", *words))
    assert [int(row[0]) for row in found] == list(range(1, 8))
    assert [float(row[1]) for row in found] == pytest.approx(
        sorted(exact.values(), reverse=True)[:7], abs=0.002)
    for _, score, _, camera, path in found:
        assert float(score) == pytest.approx(exact[path], abs=0.002) and camera == gallery[path]
    assert len(rows(ask(queries[3], "--top", "100", *words))) == len(paths)


@pytest.mark.parametrize("camera", ["", "2"])
def test_queries_are_standardised_by_their_camera(run, market, queries, tmp_path, capsys, camera):
    """By that of all images, which is said, where it is not given."""
    folder, found = tmp_path / "x", tmp_path / "found.json"
    call(index, [run, market / "bounding_box_test", "--index", folder,
                 "--standardize-by-camera", *PATTERN])
    capsys.readouterr()
    call(command, [run, queries[3], "--index", folder, "--json", found,
                   *(["--query-camera", camera] if camera else [])])
    output = capsys.readouterr().out
    whose = f"camera {camera}" if camera else "all images, as no --query-camera"
    assert f"the queries by the statistics of {whose}" in output
    assert "Same or different is not shown: The index standardises by camera" in output
    expected = Index.open(folder).search(load_once(run).embed([queries[3]]),
                                         query_cameras=[camera])[0]
    assert [(row[1], row[4]) for row in rows(output)] == [
        (f"{hit.score:.3f}", hit.path) for hit in expected]
    content = json.loads(found.read_text())
    assert content["standardize_by_camera"] and content["query_camera"] == (camera or None)


def test_several_queries_and_the_threshold(ask, run, queries, tmp_path):
    output = ask(*queries[:3], "--top", "4", "--false-match-rate", "0.15", "--json",
               tmp_path / "found.json")
    assert [line for line in output.splitlines() if line.endswith(".jpg") and "  " not in line] == [
        str(query) for query in queries[:3]]
    loaded = load_once(run)
    threshold = loaded.statistics.threshold(0.15)
    assert f"Threshold for the same person: {threshold.value:.3f}" in output
    assert (f"{100 * threshold.false_match_rate:.3g} % of pairs of different people score as high, "
            f"{100 * threshold.false_non_match_rate:.3g} % of pairs of one person score lower"
            ) in output
    assert "1901 pairs in different clusters and 501 in the same one (training images)" in output
    assert "both rates are higher" in output and "memory bank" not in output

    found = json.loads((tmp_path / "found.json").read_text())
    assert found["fingerprint"] == loaded.fingerprint and found["model"] == loaded.name
    assert tuple(found["threshold"].values()) == threshold and found["why_no_threshold"] == ""
    assert not any(query["error"] for query in found["queries"])
    hits = [hit for query in found["queries"] for hit in query["hits"]]
    assert len(hits) == 12 and {hit["same"] for hit in hits} == {True, False}
    for hit, row in zip(hits, rows(output), strict=True):
        assert hit["same"] == (hit["score"] >= threshold.value)
        assert row == [str(hit["rank"]), f"{hit['score']:.3f}", "yes" if hit["same"] else "no",
                       hit["camera"], hit["path"]]


def test_of_a_run_that_went_wrong_same_is_not_told(ask, run, queries, tmp_path, monkeypatch):
    found = tmp_path / "found.json"
    monkeypatch.setattr(load_once(run), "verdict", RunVerdict("bad", "Training went wrong: so."))
    output = ask(queries[0], "--top", "5", "--json", found)
    content = json.loads(found.read_text())
    assert {row[2] for row in rows(output)} == {"-"} and "expects as" not in output
    why = ("Same or different is not shown, because training went wrong (so). "
           "--despite-verdict shows it.")
    assert why in output and content["why_no_threshold"] == why
    assert content["threshold"] is None and content["expected_same"] == {}
    assert content["verdict"] == {"level": "bad", "reason": "Training went wrong: so."}
    forced = ask(queries[0], "--top", "5", "--despite-verdict")
    assert {row[2] for row in rows(forced)} <= {"yes", "no"}
    assert "shown despite the run's verdict. Training went wrong: so." in forced
    assert [row[1] for row in rows(forced)] == [row[1] for row in rows(output)]
    monkeypatch.setattr(load_once(run), "verdict", RunVerdict("mixed", "Training went partly."))
    output = ask(queries[0], "--top", "5")
    assert {row[2] for row in rows(output)} <= {"yes", "no"} and "Training went partly." in output
    monkeypatch.setattr(load_once(run), "verdict", NO_VERDICT)
    assert "Whether training went well is not known." in ask(queries[0])


def test_how_many_are_expected_to_be_right_is_said(ask, run, queries, home, tmp_path, monkeypatch):
    assert "is not known: measure the run anew (caureid threshold)" in ask(queries[0])
    network, found = load_once(run), tmp_path / "found.json"
    monkeypatch.setattr(network, "statistics", PairStatistics(
        network.statistics.same, network.statistics.different, mates=4.0))
    output = ask(queries[0], "--json", found)
    threshold = network.statistics.threshold()
    counts = Index.open(home / "x").camera_counts
    others = sum(counts.values()) - sum(n * n for n in counts.values()) / sum(counts.values())
    right = 4 * (1 - threshold.false_non_match_rate)
    wrong = others * threshold.false_match_rate
    assert (f'expects as "yes", by the clusters of training: from other cameras '
            f"{right:.2g} right and {wrong:.2g} wrong ({100 * right / (right + wrong):.0f} % right"
            "). For a person who is not") in output
    expected = json.loads(found.read_text())["expected_same"]["other cameras"]
    assert expected == {"right": pytest.approx(right), "wrong": pytest.approx(wrong)}


def test_what_was_measured_comes_before_the_memory_bank(run, market, queries, tmp_path, capsys):
    """Whether the run or the index has it."""
    run = shutil.copytree(run, tmp_path / "run")
    kept = run / "pair_statistics.json"
    value = f"{load_run(run).statistics.threshold().value:.3f}"

    def ask(name):
        capsys.readouterr()
        call(command, [run, queries[0], "--index", tmp_path / name])
        return capsys.readouterr().out

    call(index, [run, market / "query", "--index", tmp_path / "has"])
    kept.rename(tmp_path / "kept")
    output = ask("has")
    assert value in output and "(training images)" in output
    call(index, [run, market / "query", "--index", tmp_path / "bank"])
    output = ask("bank")  # rates that are too low
    assert "(memory bank)" in output and "understates the first by far" in output
    assert "caureid threshold" in output
    (tmp_path / "kept").rename(kept)
    output = ask("bank")
    assert value in output and "(training images)" in output


def test_the_querys_own_file_is_left_out(ask, run, market, queries, home, tmp_path, capsys):
    """By its place or its content, with what it pushed from the list in its place."""
    crops = sorted((market / "bounding_box_test").glob("*.jpg"))
    found, link, copy = (tmp_path / name for name in ("found.json", "link.jpg", "copy.jpg"))
    link.symlink_to(crops[3])
    shutil.copy(crops[3], copy)
    others = None
    for query in (crops[3], link, copy):
        output = ask(query, "--top", "4", "--json", found)
        (answer,) = json.loads(found.read_text())["queries"]
        assert "Left out, the query's own file: " + f"{crops[3]} (camera " in output
        assert [item["path"] for item in answer["own_file"]] == [str(crops[3])]
        assert [row[0] for row in rows(output)] == list("1234")
        assert str(crops[3]) not in [row[4] for row in rows(output)]
        assert others in (None, answer["hits"])
        others = answer["hits"]
        assert [hit["rank"] for hit in others] == [1, 2, 3, 4]
    assert "own file" not in ask(queries[0], "--json", found)
    assert json.loads(found.read_text())["queries"][0]["own_file"] == []

    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(crops[3], alone)
    call(index, [run, alone, "--index", tmp_path / "x"])
    capsys.readouterr()
    call(command, [run, copy, "--index", tmp_path / "x"])
    output = capsys.readouterr().out
    assert "own file" in output and "asked for" not in output and not rows(output)


def test_the_querys_own_file_of_an_index_whose_file_is_gone_or_changed(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"abc")
    for name, size, data, is_own in (
            ("a.jpg", 9, b"abc", True), ("b.jpg", 3, b"abc", False), ("c.jpg", 3, b"abd", False),
            ("c.jpg", -1, b"abc", True), ("c.jpg", 4, b"abc", False)):
        (tmp_path / "c.jpg").write_bytes(b"abc")
        entry = Entry(str(tmp_path), name, "", size)
        assert is_query(entry, path, data) == is_own
        assert is_query(entry, None, data) == (is_own and name == "c.jpg")  # nothing but content


def test_picture(ask, queries, tmp_path):
    ask(*queries[:2], "--top", "12", "--picture", tmp_path / "found.png")
    with Image.open(tmp_path / "found.png") as picture:
        sheet = np.asarray(picture.convert("RGB")).astype(int)
    width, height = search_sheet.CELL
    # the queries and the first hit of each: the middle of the cell shows the image's own colours
    frame, gap = search_sheet.FRAME, search_sheet.GAP
    line = height + 2 * frame + search_sheet.TEXT + gap
    for number, query in enumerate(queries[:2]):
        top = 36 + 2 * number * line + frame  # twelve hits take two lines
        cell = sheet[top:top + height, gap + frame:gap + frame + width]
        with Image.open(query) as image:
            expected = np.asarray(image.convert("RGB").resize((width, height)), dtype=int)
        assert np.abs(cell - expected).mean() < 12
    assert sheet.shape[0] > 4 * line


def test_a_reader_that_stops_reading(ask, run, queries, home, tmp_path):
    """As head does: the files are written, and nothing is said of it."""
    no_reader = "import os; end, pipe = os.pipe(); os.close(end); os.dup2(pipe, 1)"
    done = warm.run(["-m", "caureid_plugin", "search", run, *queries[:2], "--index", home / "x",
                     "--json", tmp_path / "found.json", "--picture", tmp_path / "found.png"],
                    tmp_path, prepare=no_reader)
    assert done.returncode == 0 and "pipe" not in done.stderr.lower() and not done.stdout
    assert len(json.loads((tmp_path / "found.json").read_text())["queries"]) == 2
    assert (tmp_path / "found.png").stat().st_size > 1000


def test_queries_that_cannot_be_read_are_named_and_the_others_answered(
        ask, run, queries, home, tmp_path, capsys, monkeypatch):
    """``ask`` has made the index."""
    text, cut, large, pipe = (
        tmp_path / f"{name}.jpg" for name in ("text", "cut", "large", "pipe"))
    text.write_text("no image")
    cut.write_bytes(queries[0].read_bytes()[:300])
    monkeypatch.setattr(answers, "MOST_BYTES", 2 ** 20)
    large.write_bytes(bytes(3 * 2 ** 20))
    os.mkfifo(pipe)
    huge, bomb = tmp_path / "huge.png", tmp_path / "bomb.png"
    Image.new("1", (9000, 9000)).save(huge)
    chunks = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", 10 ** 5, 10 ** 5, 8, 2, 0, 0, 0)),
                       (b"IDAT", b"")):
        chunks.append(struct.pack(">I", len(data)) + kind + data
                      + struct.pack(">I", zlib.crc32(kind + data)))
    bomb.write_bytes(b"".join(chunks))
    assert call(command, [
        run, text, queries[0], cut, pipe, tmp_path / "absent.jpg", large, huge, bomb, tmp_path,
        "--index", home / "x", "--top", "3", "--json", tmp_path / "found.json"]) == 1
    output = capsys.readouterr()
    for line, part in zip(output.err.splitlines(), (
            "text.jpg is of no image format that Pillow knows: give a JPEG or PNG.", "cut.jpg",
            "pipe.jpg is not a regular file", "absent.jpg does not exist: give the file",
            "large.jpg has 3 MiB, and a query may have 1: make it smaller",
            "huge.png is too large (9000 x 9000 pixels; an image may have 50000000): make",
            "bomb.png is too large (", "is not a regular file"), strict=True):
        assert part in line
    assert len(rows(output.out)) == 3
    found = json.loads((tmp_path / "found.json").read_text())["queries"]
    assert [bool(query["error"]) for query in found] == [True, False, *[True] * 7]


def test_nothing_else_is_written_over(ask, queries, home, tmp_path, capsys):
    for _ in range(2):  # what it has written itself, it writes anew
        ask(queries[0], "--json", tmp_path / "found.json", "--picture", tmp_path / "found.png")
    before = {path: path.read_bytes() for path in (home / "x").iterdir()}
    crop, other = tmp_path / "crop.png", tmp_path / "other.json"
    Image.open(queries[0]).save(crop)
    other.write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere")
    for option, path, message in (
            ("--json", home / "x" / "block-000009.json", "lies in the folder of the index"),
            ("--json", other, "is there already and was not written by caureid search"),
            ("--json", tmp_path / "link.json", "is there already and was not written by"),
            ("--picture", crop, "is there already and was not written by caureid search: give")):
        assert message in refusal(lambda words: ask(*words), [queries[0], crop, option, path],
                                  capsys)
    assert {path: path.read_bytes() for path in (home / "x").iterdir()} == before
    assert other.read_text() == "{}" and (tmp_path / "link.json").is_symlink()
    with Image.open(crop) as image:
        assert image.size == Image.open(queries[0]).size


def test_a_picture_that_cannot_be_made(ask, queries, tmp_path, monkeypatch):
    """What else was asked for is written."""
    picture, found = tmp_path / "found.png", tmp_path / "found.json"
    monkeypatch.setattr(answers, "MOST_CELLS", 33)
    with pytest.raises(SystemExit, match="34 images for each of 3 queries in 132 places, and may"
                       " have 33: lower --top"):  # 4 lines of 11 for each
        ask(*queries[:3], "--picture", picture, "--top", "1000")
    assert not picture.exists()
    ask(*queries[:3], "--picture", picture, "--top", "10")
    assert picture.exists()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(answers, "draw_sheet", full)
    with pytest.raises(SystemExit, match="No space left"):
        ask(queries[0], "--picture", picture, "--json", found)
    assert json.loads(found.read_text())["queries"][0]["hits"]


def test_nothing_found_is_said(ask, run, queries, tmp_path, capsys):
    output = ask(queries[0], "--camera", "1", "--without-camera", "01")
    assert "no image of the index is of a camera that was asked for" in output and not rows(output)
    Index.create(tmp_path / "empty", load_once(run))
    call(command, [run, queries[0], "--index", tmp_path / "empty"])
    assert "the index is empty, caureid index fills it" in capsys.readouterr().out


def test_mistakes(ask, run, small_run, queries, home, tmp_path, capsys):
    """``ask`` has made the index."""
    (tmp_path / "a.torchscript").touch()
    other = small_run("INPUT.SIZE_TEST", "[64,32]", folder="other")
    for network, words, message in (
            (run, ["--camera", "7"], "no image of camera '7'; it has cameras '1', '2'"),
            (run, ["--query-camera", "1"], "(--query-camera) are of use to an index that"),
            (run, ["--false-match-rate", "0.0000001"], "is too low to be told from"),
            (run, ["--top", "0"], "'--top': 0 is not in the range"),
            (run, ["--false-match-rate", "2"], "'--false-match-rate': 2.0 is not in the"),
            (run, ["--json", "x.txt"], "'--json': x.txt must end in .json"),
            (run, ["--picture", "/absent/x.png"], "x.png: the folder /absent does not exist"),
            (run, ["--index", "absent"], "'--index': Directory 'absent' does not exist"),
            (tmp_path / "a.torchscript", [], "is a program for other tools"),
            (other, [], "another network, which cannot be compared")):
        assert message in refusal(functools.partial(call, command), [
            network, queries[0], "--index", home / "x", *words], capsys)


def test_several_cameras_in_capitals_are_no_config_keys():
    words = ". q.jpg --index . --camera DOOR YARD".split()
    assert command.make_context("search", words).params["camera"] == ("DOOR", "YARD")
