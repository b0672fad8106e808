"""The index on the disk: what it finds, and what becomes of it when things go wrong."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from caureid_plugin.retrieval import index as index_module
from caureid_plugin.retrieval import index_files
from caureid_plugin.retrieval.index import Index
from caureid_plugin.retrieval.index_files import Entry, IndexRefused
from caureid_plugin.retrieval.preprocessing import Preprocessing
from caureid_plugin.runs.threshold import NO_VERDICT, PairStatistics, RunVerdict


class FakeEmbedder:
    """What an index asks of an Embedder."""

    name, statistics, why_no_statistics = "fake", None, "it was not trained"
    verdict = NO_VERDICT

    def __init__(self, fingerprint=32 * "a", dim=12):
        self.fingerprint, self.dim, self.preprocessing = fingerprint, dim, Preprocessing((4, 4))


def random_features(count, dim=12, seed=0):
    """(count, dim) float32 of length 1."""
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(index_module, "BLOCK_IMAGES", 10)


@pytest.fixture
def empty(tmp_path):
    return Index.create(tmp_path / "x", FakeEmbedder())


def entries_of(count, first=0):
    return [Entry("/crops", f"{i}.jpg", str(i % 3), 100 + i, i)
            for i in range(first, first + count)]


@pytest.fixture
def filled(empty):
    """34 images in four blocks, cameras 0, 1 and 2 in turn."""
    features = random_features(34)
    empty.add(features[:7], entries_of(7))
    empty.add(features[7:], entries_of(27, 7))
    return empty, features


@pytest.mark.parametrize("options, cameras", [
    ({}, {0, 1, 2}), ({"cameras": ["01", "2"]}, {1, 2}), ({"without_cameras": ["0"]}, {1, 2}),
    ({"cameras": ["0", "1"], "without_cameras": ["1"]}, {0}),
    ({"cameras": [0, np.int64(2)]}, {0, 2}),  # numbers as they come
    ({"cameras": ["0"], "without_cameras": ["0"]}, set()),
])
def test_it_finds_what_a_loop_finds(filled, options, cameras):
    features = filled[1]
    index = Index.open(filled[0].folder, FakeEmbedder())
    queries = random_features(70, seed=1)  # more than one call of faiss
    allowed = [row for row in range(34) if row % 3 in cameras]
    for top in (1, 5, 100):
        found = index.search(3 * queries, top, **options)
        assert len(found) == 70
        ties = 0
        for query, hits in zip(queries, found, strict=True):
            expected = sorted((-float(np.dot(query, features[row])), row) for row in allowed)[:top]
            assert [hit.rank for hit in hits] == list(range(1, len(expected) + 1))
            assert len({hit.row for hit in hits}) == len(hits)
            for hit, (score, row) in zip(hits, expected, strict=True):
                assert abs(hit.score - np.dot(query, features[hit.row])) < 6e-4
                assert abs(hit.score + score) < 6e-4
                ties += hit.row != row  # scores that are alike but for rounding may change places
                assert (hit.path, hit.camera) == (f"/crops/{hit.row}.jpg", str(hit.row % 3))
        assert ties <= 0.01 * sum(map(len, found))


def test_threads_change_nothing(filled, monkeypatch):
    index, _ = filled
    queries = random_features(70, seed=1)
    alone = index.search(queries)
    monkeypatch.setattr(index_files.require_faiss(), "omp_get_max_threads", lambda: 3)
    assert index.search(queries) == alone


def test_rounding_stays_within_what_is_said(tmp_path):
    """Halves change a score by less than 0.0006, also where all numbers are rounded one way."""
    worst = np.full(201, 2 ** -4 * (1 + 0.999 * 2 ** -11))  # each all but halfway to the next half
    worst[0] = np.sqrt(1 - (worst[1:] ** 2).sum())
    features = np.concatenate([random_features(40, 201), worst[None]]).astype(np.float32)
    index = Index.create(tmp_path / "x", FakeEmbedder(dim=201))
    index.add(features, entries_of(41))
    exact, errors = features.astype(np.float64) @ features.T.astype(np.float64), []
    for query, hits in enumerate(index.search(features, 41)):
        assert sorted(hit.row for hit in hits) == list(range(41))
        errors += [(abs(hit.score - exact[query, hit.row]), query, hit.row) for hit in hits]
    assert max(errors)[0] < 6e-4
    assert next(error for error, *pair in errors if pair == [40, 40]) > 3e-4


def test_an_empty_index_finds_nothing(empty):
    assert empty.search(random_features(2)) == [[], []] and len(empty) == 0
    assert empty.search(np.empty((0, 12))) == []


@pytest.mark.parametrize("features, options, message", [
    (random_features(1), {"top": 0}, "top 0 must be at least 1"),
    (random_features(1, 13), {}, r"\(1, 13\).* 12 numbers"),
    (np.zeros((2, 12)), {}, "query 0 is zero or not finite"),
    (np.full((1, 12), np.nan), {}, "query 0 is zero or not finite"),
    (random_features(1), {"cameras": ["9"]}, "'9'.*'0', '1', '2'"),
    (random_features(1), {"without_cameras": "9"}, "'9' must be a list"),
])
def test_a_wrong_search_is_refused(filled, features, options, message):
    with pytest.raises(ValueError, match=message):
        filled[0].search(features, **options)


def contents(index):
    """name -> camera and rounded features, as they are on the disk."""
    index = Index.open(index.folder)
    rows = np.concatenate([np.empty((0, 12))] + [block.features() for block in index._blocks])
    assert len(rows) == len(index) == len(index.paths) == len(index.cameras)
    return {entry.name: (entry.camera, row.tobytes())
            for entry, row in zip(index.entries, rows.astype(np.float16), strict=True)}


def expected(features, rows):
    halves = features.astype(np.float16)
    return {f"/crops/{row}.jpg": (str(row % 3), halves[row].tobytes()) for row in rows}


def test_images_are_added_replaced_removed(filled):
    index, features = filled
    assert contents(index) == expected(features, range(34))
    assert index.camera_counts == {"0": 12, "1": 11, "2": 11}
    index.remove([index.paths.index(f"/crops/{number}.jpg") for number in (3, 20)])
    known = expected(features, [row for row in range(34) if row not in (3, 20)])
    assert contents(index) == known
    other = random_features(34, seed=5)
    index.add(other[:2], entries_of(2))  # the same names
    known |= expected(other, range(2))
    assert contents(index) == known and len(index) == 32
    index.set_cameras({index.paths.index("/crops/7.jpg"): "007"})
    known["/crops/7.jpg"] = ("7", known["/crops/7.jpg"][1])
    assert contents(index) == known
    index.remove(range(32))
    assert contents(index) == {}
    assert {path.name for path in index.folder.iterdir()} <= {"index.json", "index.lock"}


def test_plain_values_of_python_are_taken(empty):
    empty.add(random_features(3), [Path("/a/b.jpg"), Entry("", "c", 5),
                                   Entry(Path("/d"), Path("e.jpg"), np.int64(6), np.int64(7))])
    assert empty.paths == ["/a/b.jpg", "c", "/d/e.jpg"] and empty.cameras == ["", "5", "6"]
    empty.set_cameras({np.int64(0): 7})
    assert Index.open(empty.folder).cameras == ["7", "5", "6"]
    with pytest.raises(ValueError, match="camera 0.5 is no name or number"):
        empty.set_cameras({1: 0.5})
    empty.remove(row for row in range(2))
    assert Index.open(empty.folder).paths == ["/d/e.jpg"]


@pytest.mark.parametrize("scale", [1e-38, 1e37])
def test_lengths_do_not_matter(empty, scale):
    features = scale * random_features(20).astype(np.float64)
    empty.add(features, entries_of(20))
    for row, hits in enumerate(empty.search(features, 1)):
        assert hits[0].row == row and abs(hits[0].score - 1) < 1e-3


def test_names_survive(empty):
    odd = [Entry("/a b", "c/ü\udcff.jpg", "Tür 1"), Entry("", "frame 3, box 2"), "plain"]
    empty.add(random_features(3), odd)
    again = Index.open(empty.folder)
    assert again.paths == ["/a b/c/ü\udcff.jpg", "frame 3, box 2", "plain"]
    assert again.cameras == ["Tür 1", "", ""] and again.entries[0] == odd[0]
    assert again.search(random_features(3), 1, cameras=[""])[1][0].path == "frame 3, box 2"


def test_blocks_are_full(empty):
    for first in range(0, 24, 3):
        empty.add(random_features(24)[first:first + 3], entries_of(3, first))
    assert [len(block.entries) for block in empty._blocks] == [10, 10, 4]
    assert len(list(empty.folder.glob("block-*"))) == 6


@pytest.mark.parametrize("entries, message", [
    (["a"], "2 embeddings and 1 entries"), (["a", "a"], "a is given 2 times"),
    (["a", "b\0"], "zero byte"), (["a", Entry("/crops", "../b")], r"\.\./b.*leads out"),
    (["a", Entry("/crops", "/etc/x")], "/etc/x.*leads out"), (["a", 5], "5 is no entry.*give a"),
    (["a", Entry("", "b", None)], "camera None.*no name or number"),
    (["a", Entry("", b"b")], "made of bytes"), (["a", Entry(None, "b")], "no entry of an index"),
    (["a", ""], "path is empty"), (["a", Entry("", 5)], "no entry of an index"),
    (["a", Entry("", "b", "", "5")], "size in bytes"),
    (["a", Entry("", "b", "", 5, 1.5)], "mtime in ns.*st_mtime_ns"),
])
def test_wrong_entries_are_refused(filled, entries, message):
    before = contents(filled[0])
    with pytest.raises(ValueError, match=message):
        filled[0].add(random_features(2), entries)
    assert contents(filled[0]) == before


@pytest.mark.parametrize("change", [
    lambda index: index.remove([34]), lambda index: index.set_cameras({-1: "a"}),
    lambda index: index.remove([0.5]), lambda index: index.set_cameras({"1": "a"})])
def test_a_wrong_row_is_refused(filled, change):
    with pytest.raises(ValueError, match="none of the 34"):
        change(filled[0])


def test_another_network_is_refused(filled):
    index, _ = filled
    for other in (32 * "b", FakeEmbedder(32 * "b")):
        with pytest.raises(IndexRefused, match="make a new index") as error:
            Index.open(index.folder, other)
        assert 32 * "a" in str(error.value) and 32 * "b" in str(error.value)
    assert len(Index.open(index.folder, 32 * "a")) == 34


def test_what_is_no_index_is_refused_and_not_made_one(filled, tmp_path):
    for name in ("empty", "photos"):
        (tmp_path / name).mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    (tmp_path / "file").touch()
    for name, part in (("none", "does not exist"), ("file", "is not a folder"),
                       ("empty", "is no index: it holds no index.json")):
        with pytest.raises(IndexRefused, match=rf"{name} {part}.*caureid index"):
            Index.open(tmp_path / name)
    for name, part in (("photos", r"holds a\.jpg"), ("file", "is not a folder"),
                       ("x", "holds an index already")):
        with pytest.raises(IndexRefused, match=part):
            Index.create(tmp_path / name, FakeEmbedder())
    (tmp_path / "x" / "index.json").unlink()
    with pytest.raises(IndexRefused, match=r"index\.json was lost"):
        Index.create(tmp_path / "x", FakeEmbedder())
    with pytest.raises(IndexRefused, match=r"no index\.json.*was lost"):
        Index.open(tmp_path / "x")


def test_without_faiss_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    for make in (lambda: Index.create(tmp_path / "x", FakeEmbedder()),
                 lambda: Index.open(tmp_path)):
        with pytest.raises(ImportError, match=r"pip install 'caureid-plugin\[faiss-cpu\]'"):
            make()
    assert not (tmp_path / "x").exists()


def each_file(index):
    return sorted(path for path in index.folder.iterdir() if path.suffix in (".json", ".faiss"))


def test_damage_is_found_in_every_file(filled):
    index, _ = filled
    files = each_file(index)
    assert len(files) == 9
    for path in files:
        whole = path.read_bytes()
        middle = len(whole) // 2
        changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1:]
        for content in (changed, whole[:middle], b"", whole + b"x"):
            path.write_bytes(content)
            with pytest.raises(IndexRefused, match="damaged.*make the index again") as error:
                Index.open(index.folder)
            assert path.name in str(error.value)
        path.unlink()
        with pytest.raises(IndexRefused, match="is missing|was lost"):
            Index.open(index.folder)
        os.mkfifo(path)
        with pytest.raises(IndexRefused, match="is not a file"):
            Index.open(index.folder)
        path.unlink()
        path.write_bytes(whole)
    assert len(Index.open(index.folder)) == 34


def sign(path, **fields):
    """Changes a manifest as another version would write it."""
    content = json.loads(path.read_bytes())
    del content["digest"]
    content.update(fields)
    content["digest"] = index_files.digest(index_files._json(content))
    path.write_bytes(index_files._json(content))


@pytest.mark.parametrize("fields, message", [
    ({"format": 4, "plugin": "9.0"}, r"format 4.*9\.0.*reads formats 1 to 3"),
    ({"dim": 13}, "of 12 numbers.*of 13.*two indexes")])
def test_a_newer_format_and_files_of_two_indexes_are_refused(filled, fields, message):
    sign(filled[0].folder / "index.json", **fields)
    with pytest.raises(IndexRefused, match=message):
        Index.open(filled[0].folder)


@pytest.fixture
def block(empty):
    """An index of one block of ten images."""
    empty.add(random_features(10), entries_of(10))
    return empty


def forge(index, vectors=None, rows=None):
    """Changes the index's first block as one who knows the format does: with digests that fit.

    ``rows``: called with the list of rows, which it changes; or the bytes of the file.
    """
    manifest = index.folder / "index.json"
    blocks = json.loads(manifest.read_bytes())["blocks"]
    names = [index.folder / f"block-{blocks[0][0]:06d}{kind}" for kind in (".faiss", ".json")]
    if callable(rows):
        content = json.loads(names[1].read_bytes())
        rows(content)
        rows = json.dumps(content).encode()
    for place, content in ((0, vectors), (1, rows)):
        if content is not None:
            names[place].write_bytes(content)
            blocks[0][2 + place] = index_files.digest(content)
    sign(manifest, blocks=blocks)


def halves(faiss, kind="QT_fp16", metric="METRIC_INNER_PRODUCT", dim=12, scale=1.0):
    """A faiss file of as many vectors as the first block of ``filled`` has."""
    made = faiss.IndexScalarQuantizer(dim, getattr(faiss.ScalarQuantizer, kind),
                                      getattr(faiss, metric))
    rows = random_features(10, dim, seed=3)
    made.train(rows)
    made.add(scale * rows)
    return faiss.serialize_index(made).tobytes()


def with_value(place, value):
    """Such a file with another half in its codes, at its end."""
    def make(faiss):
        content = np.frombuffer(halves(faiss), np.uint8).copy()
        content[-240:].view(np.float16)[place] = value
        return content.tobytes()

    return make


def untrained(faiss):
    content = bytearray(halves(faiss))
    content[32] = 0  # behind kind, D, n and two numbers
    return bytes(content)


def claims(place, value):
    """Such a file whose header claims more than there is: 8 bytes, counted from the codes."""
    def make(faiss):
        content = halves(faiss)
        place_there = len(content) - 240 + place
        return content[:place_there] + value.to_bytes(8, "little") + content[place_there + 8:]

    return make


@pytest.mark.parametrize("make, part", [
    (lambda faiss: faiss.serialize_index(faiss.IndexFlatL2(12)).tobytes(), "IxF2"),
    (lambda faiss: b"no index at all, but what was written", "no i"), (lambda faiss: b"", "begins"),
    (lambda faiss: halves(faiss, metric="METRIC_L2"), "metric 1 .*inner product"),
    (lambda faiss: halves(faiss, metric="METRIC_L1"), "metric 2 "),
    (lambda faiss: halves(faiss, "QT_8bit"), "type 0,.*16-bit floats"),
    (lambda faiss: halves(faiss, "QT_bf16"), "type 7,"),
    (lambda faiss: halves(faiss, dim=24), "10 vectors of 24 numbers.*10 of 12"),
    (with_value(0, np.nan), "vector 0 has length nan, and all have 1"),
    (with_value(119, -np.inf), "vector 9 has length inf"),
    (lambda faiss: halves(faiss, scale=60000), "vector 0 has length 6e.04"),
    (lambda faiss: halves(faiss, scale=0), "vector 0 has length 0,"),
    (claims(-8, 2 ** 39), "claims 549755813888 bytes"), (claims(-16, 2 ** 37), "claims 240 bytes"),
    (untrained, "not trained"),
    (lambda faiss: halves(faiss) + bytes(24), "claims 240 bytes, 24 .* and holds 264"),
])
def test_vectors_that_are_others_are_refused(block, make, part, monkeypatch):
    """Before faiss reads them, which allots what a header claims."""
    faiss = index_files.require_faiss()
    forge(block, vectors=make(faiss))
    monkeypatch.setattr(faiss, "deserialize_index", lambda content: pytest.fail("it was read"))
    with pytest.raises(IndexRefused, match=f"000001.faiss.*{part}.*make the index again"):
        Index.open(block.folder)


def put(place, *values):
    """Puts values into row 1 from a place on: folder, path, camera, size, mtime."""
    def change(rows):
        rows[1][place:place + len(values)] = values

    return change


@pytest.mark.parametrize("change, part", [
    (put(1, "../../x.png", "", -1, -1), r"row 1 .*\.\./x\.png leads out of its folder /crops"),
    (put(1, "a/../../x.png"), "row 1 .*leads out"), (put(1, ".."), "leads out"),
    (put(1, "/etc/x.png", "", -1, -1), "/etc/x.png leads out"), (put(1, "b\0"), "zero byte"),
    (put(0, 1), "no folder 1"), (put(0, -2), "no folder -2"), (put(0, "0"), "no folder '0'"),
    (put(0, True), "no folder True"), (put(0, None), "no folder None"), (put(1, 5), "as text"),
    (put(1, ""), "path is empty"), (put(2, None), "camera None is no name"),
    (put(2, ["1"]), "no name or number"), (put(3, "5"), "size in bytes"), (put(3, None), "size"),
    (put(4, 1e400), "infinity"), (lambda rows: rows[1].pop(), "row 1"),
    (lambda rows: rows[1].append(0), "row 1"), (lambda rows: rows.__setitem__(1, {}), "row 1"),
    (lambda rows: rows.__setitem__(1, 7), "row 1"), (lambda rows: rows.pop(), "9 rows"),
    (lambda rows: rows.__setitem__(1, rows[0]), "the image .*0.jpg twice"),
    (b"{}", "holds 0 rows"), (b"5", "row 0"), (b"[", "row 0"), (b"[" * 10 ** 5, "row 0"),
    (b"\xff", "row 0"), (b"[[NaN]]", "row 0"),
])
def test_rows_that_are_none_are_refused(block, change, part):
    """As they are when they are added: an index may come from someone else."""
    forge(block, rows=change)
    with pytest.raises(IndexRefused, match=f"{part}.*make the index again"):
        Index.open(block.folder)


def test_an_image_of_two_blocks_is_refused(filled):
    index, _ = filled
    forge(index, rows=put(0, 0, index.entries[20].path))
    with pytest.raises(IndexRefused, match=f"the image {index.paths[20]} twice"):
        Index.open(index.folder)


def test_rows_of_older_indexes_are_read(block):
    """Cameras are compared by their plain names, which were others; an mtime was taken as it came.
    """
    forge(block, rows=put(2, "01.0", 5, 1.5e9))
    entry = Index.open(block.folder).entries[1]
    assert (entry.camera, entry.size, entry.mtime) == ("1", 5, 1_500_000_000)


STATISTICS = PairStatistics(np.ones(5, np.float32), np.zeros(5, np.float32)).to_json()


@pytest.mark.parametrize("field, value", [
    ("dim", 0), ("dim", True), ("dim", 12.0), ("fingerprint", 5), ("model", None),
    ("why_no_statistics", []), ("preprocessing", 5), ("folders", "ab"), ("folders", [5]),
    ("folders", [""]), ("statistics", {}), ("statistics", {**STATISTICS, "same": 5}),
    ("standardize_by_camera", "no"), ("next_block", "7"), ("bad_verdict", 5), ("blocks", {}),
    ("blocks", 5),
    ("blocks", [[1, 10]]), ("blocks", [["1", 10, "", ""]]), ("blocks", [[1, -10, "", ""]]),
    ("blocks", [[-1, 10, "", ""]]), ("blocks", [[99, 10, "", ""]]), ("blocks", [5]),
    ("blocks", [[1, 10, "", ""]] * 2), ("extra", 1),
])
def test_a_manifest_of_other_values_is_refused(block, field, value):
    sign(block.folder / "index.json", **{field: value})
    with pytest.raises(IndexRefused, match=f"index.json is damaged: its {field} is .*make the"):
        Index.open(block.folder)


@pytest.mark.parametrize("content", [
    b'{"format":1,"dim":NaN}', b'{"format":1,"model":' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"format":true}', b'{"format":1}', b"[1]", b"\xff", b"1" * 9999])
def test_a_manifest_that_is_none_is_refused(block, content):
    (block.folder / "index.json").write_bytes(content)
    with pytest.raises(IndexRefused, match="index.json is damaged"):
        Index.open(block.folder)


def test_one_process_writes_at_a_time(filled):
    index, _ = filled
    other = Index.open(index.folder)
    with index.writing():
        with pytest.raises(IndexRefused, match="being written by another"):
            other.remove([0])
        index.remove([0])
    with pytest.raises(IndexRefused, match="changed since it was opened"):
        other.remove([0])
    assert len(Index.open(index.folder)) == 33


def test_a_reader_sees_the_index_that_replaces_the_one_it_reads(filled, monkeypatch):
    index, _ = filled
    original, calls = index_module.read_block, []

    def read(*arguments):
        if not calls:
            calls.append(index.remove([0]))
        return original(*arguments)

    monkeypatch.setattr(index_module, "read_block", read)
    assert len(Index.open(index.folder)) == 33


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_whatever_write_fails_the_index_is_as_it_was(filled, monkeypatch, error):
    index, features = filled
    known, original = contents(index), index_files.write_atomically
    new = random_features(20, seed=7)
    for failing in (0, 3, 6):  # of three blocks of two files, and the manifest
        index, count = Index.open(index.folder), iter(range(100))

        def write(path, function, count=count, failing=failing):
            if next(count) == failing:
                raise error
            original(path, function)

        with monkeypatch.context() as patch:
            patch.setattr(index_files, "write_atomically", write)
            with pytest.raises(type(error)):
                index.add(new, entries_of(20, 34))
        assert contents(index) == known
        if isinstance(error, OSError):  # and what was written makes room again
            assert len(each_file(index)) == 9
    index = Index.open(index.folder)
    index.add(new, entries_of(20, 34))
    assert contents(index) == expected(np.concatenate([features, new]), range(54))
    assert len(each_file(index)) == 13


def test_a_killed_process_loses_no_block_that_was_written(empty):
    folder = empty.folder
    original, left = index_files.write_atomically, iter(range(5))

    def dies_within(file):
        file.write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    def write(path, function):
        original(path, dies_within if next(left) == 4 else function)

    child = os.fork()
    if not child:
        try:
            index_files.write_atomically = write
            index = Index.open(folder)
            for part in range(3):
                index.add(random_features(5, seed=part), [f"{part}/{i}" for i in range(5)])
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert list(folder.glob(".*.part")) and len(list(folder.glob("block-*"))) > 2
    index = Index.open(folder)
    assert index.paths == [f"0/{i}" for i in range(5)]
    index.add(random_features(1), ["after"])  # the lock went with the process
    assert len(contents(index)) == 6 and not list(index.folder.glob(".*.part"))
    assert len(each_file(index)) == 3


def test_a_run_that_went_wrong_is_known_to_its_index(tmp_path):
    for level, number in (("bad", 3), ("mixed", 1), ("unknown", 1)):
        embedder = FakeEmbedder()
        embedder.verdict = RunVerdict(level, "Training went wrong: for a reason.")
        index = Index.create(tmp_path / level, embedder)
        index.add(random_features(3), entries_of(3))
        for now in (index, Index.open(index.folder)):
            assert now.verdict == (embedder.verdict if level == "bad" else NO_VERDICT)
        assert f'"format":{number},'.encode() in (index.folder / "index.json").read_bytes()
        assert (b"bad_verdict" in (index.folder / "index.json").read_bytes()) == (level == "bad")


# ---------------------------------------------------------------- standardised by camera ----


def cast_features(count, seed=0):
    """(count, 12) of length 1, moved and stretched by camera (row % 3)."""
    rows = np.random.default_rng(seed).standard_normal((count, 12))
    camera = np.arange(count) % 3
    rows = rows * (1 + camera[:, None] * np.linspace(0, 1, 12)) + 2 * np.eye(3, 12)[camera]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def standardized(row, gallery):
    """A row less the gallery's mean, by its deviation of n - 1, of length 1: number by number."""
    values = []
    for number, column in zip(row, np.transpose(gallery).tolist(), strict=True):
        mean = sum(column) / len(column)
        spread = (sum((x - mean) ** 2 for x in column) / (len(column) - 1)) ** 0.5
        values.append((float(number) - mean) / (spread + 1e-5))
    return np.array(values) / np.linalg.norm(values)


def assert_standardized(index, features, query_cameras):
    """``features`` are the index's by row; each hit has the score that a loop gives it."""
    halves = features.astype(np.float16).astype(np.float64)
    groups = {camera: halves[[camera in ("", other) for other in index.cameras]]
              for camera in {"", *index.cameras}}
    queries = cast_features(6, seed=9)
    found = index.search(3 * queries, 100, query_cameras=query_cameras)
    for query, camera, hits in zip(queries, query_cameras or [""] * 6, found, strict=True):
        assert sorted(hit.row for hit in hits) == list(range(len(features)))
        scores = [hit.score for hit in hits]
        assert scores == sorted(scores, reverse=True)
        expected_query = standardized(query, groups[camera])
        for hit in hits:
            row = standardized(halves[hit.row], groups[index.cameras[hit.row]])
            assert hit.score == pytest.approx(expected_query @ row, abs=2e-3)


@pytest.mark.parametrize("query_cameras", [None, ["0", "1", "", "2", "1", "0"]])
def test_standardised_it_finds_what_loops_find(tmp_path, query_cameras):
    """Also after images were added, removed, and given other cameras or none."""
    features = cast_features(34)
    index = Index.create(tmp_path / "x", FakeEmbedder(), standardize_by_camera=True)
    index.add(features[:7], entries_of(7))
    assert_standardized(index, features[:7], query_cameras)
    index.add(features[7:], entries_of(27, 7))
    assert_standardized(index, features, query_cameras)
    index.remove([2, 8, 30])
    index.set_cameras({0: "1", 5: "", 20: ""})
    index = Index.open(index.folder)
    left = features[[int(Path(path).stem) for path in index.paths]]
    assert len(left) == 31 and index.cameras.count("") == 2
    assert_standardized(index, left, query_cameras)


def test_no_camera_known_all_images_are_one(tmp_path):
    index = Index.create(tmp_path / "x", FakeEmbedder(), standardize_by_camera=True)
    assert index.search(random_features(2), query_cameras=["", ""]) == [[], []]
    index.add(cast_features(12), [str(row) for row in range(12)])
    assert_standardized(index, cast_features(12), None)


def test_standardising_is_turned_on_and_off(tmp_path):
    embedder = FakeEmbedder()
    embedder.statistics = PairStatistics(np.ones(5, np.float32), np.zeros(5, np.float32))
    index = Index.create(tmp_path / "x", embedder)
    index.add(cast_features(34), entries_of(34))
    plain, before = index.search(random_features(3)), (index.folder / "index.json").read_bytes()
    assert b'"format":1' in before and b"standardize" not in before  # older versions read it
    index.set_standardize_by_camera(True)
    assert b'"format":2' in (index.folder / "index.json").read_bytes()
    for now in (index, Index.open(index.folder)):
        assert now.standardize_by_camera and now.search(random_features(3)) != plain
        assert now.statistics is None and "not standardised" in now.why_no_statistics
        assert_standardized(now, cast_features(34), None)
    index.set_standardize_by_camera(False)
    assert (index.folder / "index.json").read_bytes() == before
    for now in (index, Index.open(index.folder)):
        assert now.search(random_features(3)) == plain and now.statistics is not None


@pytest.mark.parametrize("cameras, message", [
    (["9", "0"], r"no image of camera '9'; it has cameras '0', '1', '2'\..*--query-camera"),
    (["0"], "must be a list of 2"), ("01", "'01' must be a list of 2"),
    ([None, "0"], "None is no name or number"),
])
def test_wrong_cameras_of_queries_are_refused(filled, cameras, message):
    index = filled[0]
    with pytest.raises(ValueError, match="this one does not.*set_standardize_by_camera"):
        index.search(random_features(2), query_cameras=["0", "1"])
    index.set_standardize_by_camera(True)
    with pytest.raises(ValueError, match=message):
        index.search(random_features(2), query_cameras=cameras)


@pytest.mark.parametrize("camera", ["7", ""])
def test_a_camera_of_one_image_is_named_until_it_has_more(tmp_path, camera):
    index = Index.create(tmp_path / "x", FakeEmbedder(), standardize_by_camera=True)
    index.add(random_features(1), [Entry("", "a", camera)])
    for ask in (index.prepare, lambda: index.search(random_features(1))):
        with pytest.raises(ValueError, match=f"1 of the 1 .* camera '{camera}'.*Add others of it"):
            ask()
    index = Index.open(index.folder)
    index.add(random_features(3)[1:], [Entry("", name, camera) for name in "bc"])
    index.prepare()
    assert len(index.search(random_features(1))[0]) == 3
