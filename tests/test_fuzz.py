"""Random input: the config merge, config files, and the names of images.

The plain model beside each: what a merge may accept, and how a name is read.
"""

import copy
import tempfile
from pathlib import Path

import pytest
import yaml
from caureid_plugin import PersonX, add_caureid_config
from caureid_plugin.data.synthetic_cameras import parse_name
from fastreid.config import CfgNode, get_cfg
from fastreid.data.datasets.dukemtmcreid import DukeMTMC
from fastreid.data.datasets.market1501 import Market1501
from hypothesis import example, given, settings
from hypothesis import strategies as st

# the same examples in every run; no limit on one of them, as machines differ
stable = settings(derandomize=True, deadline=None, database=None, max_examples=300)


def _small_config():
    config = CfgNode({
        "SEED": -1, "RATE": 0.5, "NAME": "a", "FLAG": True, "SIZE": [1, 2], "NAMES": ("a",),
        "NONE": None, "PART": {"RATE": 0.1, "INNER": {"COUNT": 3, "NAMES": ["x"]}}})
    return config


def _leaves(config, prefix=""):
    """{full key: value} of all values that are no sections."""
    found = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found.update(_leaves(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def _sections(config, prefix=""):
    return {name for key, value in config.items() if isinstance(value, dict)
            for name in ({f"{prefix}{key}"} | _sections(value, f"{prefix}{key}."))}


KNOWN = sorted(_leaves(_small_config()))
SECTIONS = sorted(_sections(_small_config()))

scalars = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
           | st.sampled_from(["1", "0.5", "[1, 2]", "('b',)", "None", "True", "{'a': 1}", "{1: 2}",
                              "{[]: 1}", "((((", "0b_", "1_0", "_BASE_", "!!int x", "nan", "1e400"])
           | st.binary(max_size=4) | st.complex_numbers())
values = st.recursive(
    scalars, lambda inner: (st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
                            | st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6)
keys = (st.sampled_from(KNOWN + SECTIONS) | st.sampled_from(KNOWN).map(str.lower)
        | st.text(max_size=8) | st.sampled_from(
            ["_BASE_", "PART._BASE_", "X_BASE_", "", ".", "PART.", ".SEED", "SEED.X", "PART.RATE.X",
             "PART.INNER.COUNTS"])
        | st.integers() | st.none() | st.tuples(st.text(max_size=2)))


def _assert_right_types(config):
    """Every key is there, with the kind of value it had, or with None, as yacs allows."""
    before = _leaves(_small_config())
    after = _leaves(config)
    assert after.keys() == before.keys()
    for key, value in after.items():
        if before[key] is not None and value is not None:
            assert type(value) is type(before[key]), key
        assert isinstance(value, (str, int, float, bool, list, tuple, type(None))), key


def _named(error, keys):
    text = str(error.args[0])  # of a KeyError, str() would be its repr
    return any(str(key) in text or repr(key) in text for key in keys)


# -------------------------------------------------------------------------- keys and values ----


@stable
@given(st.lists(st.tuples(keys, values), max_size=4), st.booleans())
@example([("PART", {"RATE": 0.2})], False)
@example([("SEED", 3), ("RATE", "fast")], False)
@example([("RATE", "{[]: 1}")], False)
@example([("PART._BASE_", "x")], False)
@example([([], 1)], False)
def test_keys_and_values_are_merged_with_their_type_or_refused_whole(pairs, odd):
    config, flat = _small_config(), [part for pair in pairs for part in pair]
    flat = flat[:-1] if odd and flat else flat
    before = copy.deepcopy(config)
    try:
        config.merge_from_list(copy.deepcopy(flat))
    except (KeyError, ValueError, TypeError) as error:
        assert repr(config) == repr(before)
        assert _named(error, flat[0::2]), error
        return
    assert len(flat) % 2 == 0 and all(key in KNOWN for key in flat[0::2])
    _assert_right_types(config)
    given_last = dict(zip(flat[0::2], flat[1::2], strict=True))
    for key, value in _leaves(config).items():
        if key not in given_last:
            assert repr(value) == repr(_leaves(before)[key])
        elif not isinstance(given_last[key], str):  # text may stand for a literal
            wanted = given_last[key]
            assert repr(value) == repr(type(value)(wanted) if isinstance(value, (list, tuple))
                                       else wanted)


@settings(stable, max_examples=60)
@given(st.dictionaries(st.sampled_from(
    ["SOLVER.BASE_LR", "SEED", "CAUREID.CLUSTER.EPS", "MODEL.LOSSES.NAME", "OUTPUT_DIR",
     "INPUT.SIZE_TRAIN", "CAUREID.LABELS", "SOLVER", "SOLVER.BASE_LRR"]), values, max_size=3))
def test_the_whole_config_is_merged_or_left_alone(config, pairs):
    merged, flat = config.clone(), [part for pair in pairs.items() for part in pair]
    try:
        merged.merge_from_list(flat)
    except (KeyError, ValueError, TypeError) as error:
        assert _named(error, pairs)
        assert repr(merged) == repr(config)
        return
    before, after = _leaves(config), _leaves(merged)
    assert after.keys() == before.keys()
    assert {key for key in before if repr(before[key]) != repr(after[key])} <= pairs.keys()


@pytest.fixture(scope="module")
def config():
    config = get_cfg()
    add_caureid_config(config)
    return config


# ------------------------------------------------------------------------------------ files ----

names = (st.sampled_from(["SEED", "RATE", "NAME", "FLAG", "SIZE", "NAMES", "NONE", "PART", "INNER",
                          "COUNT", "_BASE_", "RATES", "PART.RATE", ""]) | st.text(max_size=4)
         | st.integers() | st.none())
mappings = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
    | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=10)


def _merge_file(content: bytes):
    """The small config with a file merged: (config, None) or (config, error)."""
    config = _small_config()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.yml")
        path.write_bytes(content)
        try:
            config.merge_from_file(str(path))
        except (KeyError, ValueError, FileNotFoundError) as error:
            assert str(path) in str(error)
            return config, error
    return config, None


@stable
@given(mappings)
@example({"PART": {"INNER": {"COUNT": 4}}})
@example({"SEED": 3, "RATE": "fast"})
@example({"PART": None})
@example({"PART": {"RATE": {"X": 1}}})
@example({"SEED": {"X": 1}})
def test_a_file_is_merged_with_its_types_or_refused_whole(content):
    config, error = _merge_file(yaml.safe_dump(content, allow_unicode=True).encode())
    if error is not None:
        assert repr(config) == repr(_small_config())
        return
    _assert_right_types(config)
    merged, before = _leaves(config), _leaves(_small_config())
    given_here = _leaves(content)
    for key, value in merged.items():
        if key not in given_here:
            assert repr(value) == repr(before[key])
        elif not isinstance(given_here[key], str):
            wanted = given_here[key]
            assert repr(value) == repr(type(value)(wanted) if isinstance(value, (list, tuple))
                                       else wanted)


yaml_pieces = st.sampled_from([
    "SEED", "PART", "RATE", ": ", ":", "\n", "\n  ", "- ", "[", "]", "{", "}", ", ", "&a ", "*a",
    "!!python/object/apply:os.getcwd ", "!!int ", "!!timestamp ", "!!binary ", "!!set ", "!!omap ",
    "!x ", "<<: ", "'", '"', "|", ">", "#", "%", "@", "\t", "---", "...", "1", "0b_", "0x", "-",
    "1:2:3", "2020-13-45", "~", "null", "yes", "_BASE_", "../", "https://", "\x00", "\ufeff", "é",
    "\u2028", "=", ".inf", "1e", "? "])


@stable
@given(st.lists(yaml_pieces, max_size=14).map("".join))
@example("SEED: !!timestamp x")
@example("SEED: !!int ''")
@example("SEED: !!bool x")
@example("&a {SEED: *a}")
@example("? [a]\n: 1")
@example("? {a: 1}\n: 1")
@example("<<: [1]")
@example("_BASE_: run.yml")
def test_yaml_of_any_form_is_merged_or_refused_by_name(text):
    config, error = _merge_file(text.encode())
    if error is not None:
        assert repr(config) == repr(_small_config())
    _assert_right_types(config)


@stable
@given(st.binary(max_size=40))
def test_bytes_of_any_kind_are_refused_by_name(content):
    config, _ = _merge_file(content)
    _assert_right_types(config)


# -------------------------------------------------------------------------- names of images ----

name_pieces = st.sampled_from([
    "0001", "0002", "1501", "1502", "9999", "0", "-1", "-", "--", "_c", "c", "C", "_", "1", "3",
    "6", "7", "8", "9", "10", "s1", "s1_000000_00", "_00", " ", "\n", "\t", "é", "年", "٣", "²",
    "𝟙", ".", "*", "[1]", "%s", "{}", "'", "\\"])
stems = (st.lists(name_pieces, min_size=1, max_size=7).map("".join)
         | st.tuples(
             st.integers(-2, 1600), st.integers(0, 12), st.text("01s_ é\n", max_size=8)).map(
             lambda parts: f"{parts[0]:04d}_c{parts[1]}s{parts[2]}")
         | st.text(st.characters(exclude_characters="/\x00", exclude_categories=["Cs"]),
                   min_size=1, max_size=12))


def _file_name(stem):
    """A name that the file system takes and that ``*.jpg`` finds."""
    stem = stem.encode()[:200].decode(errors="ignore").lstrip(".")
    return f"{stem or 'x'}.jpg"


def _plain_labels(name):
    """(identity, camera) in the first part of a name that has the form of both, or None.

    Read character by character: digits, of any script, and minus signs, "_c", digits.
    """
    for place in range(len(name)):
        if not name.startswith("_c", place):
            continue
        start, end = place, place + 2
        while start > 0 and (name[start - 1] == "-" or name[start - 1].isdecimal()):
            start -= 1
        while end < len(name) and name[end].isdecimal():
            end += 1
        if start < place and end > place + 2:
            return name[start:place], name[place + 2:end]
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    # a random name could itself look like an identity and a camera
    return tmp_path_factory.mktemp("images")


def _listed(dataset, folder, name, is_train):
    """What a dataset reads from a folder with one file: its items, or an error that names it."""
    path = folder / name
    path.touch()
    try:
        return dataset.process_dir(str(folder), is_train=is_train), None
    except ValueError as error:
        shown = str(error)
        assert str(path) in shown or ascii(str(path)) in shown, shown
        return [], error
    finally:
        path.unlink()


def _bare(kind):
    return kind.__new__(kind)  # no folder is looked for


def _check_against_the_plain_parser(kind, folder, name, is_train, is_right, *, first, junk=()):
    """A name is refused, left out as junk, or read, as the plain parser says.

    ``is_right``: (identity text, camera text) -> whether the dataset has them; ``first``: the
    number of its first camera, which becomes 0.
    """
    items, error = _listed(_bare(kind), folder, name, is_train)
    labels = _plain_labels(name)
    is_number = labels is not None and "-" not in labels[0][1:] and labels[0] != "-"
    if is_number and int(labels[0]) in junk:
        assert not items  # whatever its camera
    elif is_number and is_right(*labels):
        expected = int(labels[0]), int(labels[1]) - first
        if is_train:
            expected = tuple(f"{kind.dataset_name}_{number}" for number in expected)
        assert error is None and [item[1:] for item in items] == [expected]
    else:
        assert error is not None


@stable
@given(stems.map(_file_name), st.booleans())
@example("0001_c10s1_000000_00.jpg", True)
@example("1502_c1s1_000000_00.jpg", True)
@example("0001_c0s1.jpg", True)
@example("1-2_c1s1.jpg", True)
@example("--1_c1.jpg", False)
@example("٣_c1.jpg", True)
@example("0001_c٣.jpg", True)
@example("-1_c3s1.jpg", False)
@example("x 0007_c5\n.jpg", True)
@example("a_c1_0002_c3.jpg", True)
def test_names_of_market1501(folder, name, is_train):
    _check_against_the_plain_parser(
        Market1501, folder, name, is_train, first=1, junk=[-1],
        is_right=lambda who, camera: 0 <= int(who) <= 1501 and len(camera) == 1
        and 1 <= int(camera) <= 6)


@stable
@given(stems.map(_file_name), st.booleans())
@example("0001_c9_f0.jpg", True)
@example("0001_c12_f0.jpg", True)
@example("0001_c8_f0.jpg", True)
def test_names_of_dukemtmc(folder, name, is_train):
    _check_against_the_plain_parser(
        DukeMTMC, folder, name, is_train, first=1,
        is_right=lambda who, camera: len(camera) == 1 and 1 <= int(camera) <= 8)


@stable
@given(stems.map(_file_name), st.booleans())
@example("0001_c12s1.jpg", True)
@example("٣_c1.jpg", True)
@example("0001_c٣.jpg", True)
@example("x0001_c3.jpg", True)
def test_names_of_personx(folder, name, is_train):
    _check_against_the_plain_parser(
        PersonX, folder, name, is_train, first=0, junk=[-1],
        is_right=lambda who, camera: name.startswith(f"{who}_c{camera}"))


@stable
@given(st.integers(0, 10**5), st.integers(0, 99), st.integers(0, 10**7), name_pieces | st.just(""),
       st.integers(0, 25))
@example(1, 1, 0, "", 0)
@example(1, 1, 0, "\n", 23)
def test_names_of_synthetic_cameras(identity, camera, shot, piece, place):
    whole = f"{identity:04d}_c{camera}s1_{shot:06d}_00.jpg"
    name = whole[:place] + piece + whole[place:]
    try:
        found = parse_name(f"/somewhere/{name}")
    except ValueError as error:
        assert name in str(error)
        assert (name != whole or identity < 1 or identity > 9999 or camera < 1 or shot > 999_999)
        return
    # what was read is what would be written
    assert name == f"{found[0]:04d}_c{found[1]}s1_{found[2]:06d}_00.jpg"
    assert all(isinstance(number, int) for number in found) and min(found[:2]) >= 1


def test_the_plain_parser():
    for name, expected in (
            ("0002_c1s1_000451_03.jpg", ("0002", "1")), ("-1_c3s2.jpg", ("-1", "3")),
            ("x_c1.jpg", None), ("0001_cs.jpg", None), ("1-2_c3", ("1-2", "3")),
            ("_c1_0002_c13.jpg", ("0002", "13")), ("٣_c1.jpg", ("٣", "1")), ("²_c1.jpg", None)):
        assert _plain_labels(name) == expected
    assert all(len(_file_name(stem).encode()) < 255 for stem in ("", ".", "x" * 300, "年" * 99))
