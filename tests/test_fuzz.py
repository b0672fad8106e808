"""Random input: the config merge, config files, and the names of images.

The plain model beside each: what a merge may accept, and how a name is read. What is accepted comes
out right; what is refused changes nothing and is named. Of each kind, some input must be refused.
"""

import ast
import contextlib
import copy
import os
import tempfile
from pathlib import Path

import pytest
import yaml
from caureid_plugin import PersonX
from caureid_plugin.data.synthetic.dataset import parse_name
from fastreid.config import CfgNode
from fastreid.data.datasets.dukemtmcreid import DukeMTMC
from fastreid.data.datasets.market1501 import Market1501
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers import warm

# the same examples in every run; no limit on one of them, as machines differ
stable = settings(derandomize=True, deadline=None, database=None,
                  max_examples=int(os.environ.get("FUZZ_EXAMPLES", "100")))


@pytest.mark.slow
def test_ten_times_as_many_examples(tmp_path):
    done = warm.run(["-m", "pytest", "-q", "-m", "not slow", __file__], tmp_path, timeout=280,
                    cwd=warm.REPOSITORY, env=warm.environment(FUZZ_EXAMPLES=1000))
    assert done.returncode == 0, done.stdout[-6000:]


def _small_config():
    return CfgNode({
        "SEED": -1, "RATE": 0.5, "NAME": "a", "FLAG": True, "SIZE": [1, 2], "NAMES": ("a",),
        "NONE": None, "PART": {"RATE": 0.1, "INNER": {"COUNT": 3, "NAMES": ["x"]}}})


def _leaves(config, prefix=""):
    """{full key: value} of all values that are no sections."""
    found = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found.update(_leaves(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


KNOWN = sorted(_leaves(_small_config()))

scalars = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
           | st.sampled_from(["1", "0.5", "[1, 2]", "('b',)", "None", "True", "{'a': 1}", "{1: 2}",
                              "{[]: 1}", "((((", "0b_", "1_0", "_BASE_", "!!int x", "nan", "1e400"])
           | st.binary(max_size=4) | st.complex_numbers())
values = st.recursive(
    scalars, lambda inner: (st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
                            | st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6)
keys = (st.sampled_from([*KNOWN, "PART", "PART.INNER"]) | st.sampled_from(KNOWN).map(str.lower)
        | st.text(max_size=8) | st.sampled_from(
            ["_BASE_", "PART._BASE_", "X_BASE_", "", ".", "PART.", ".SEED", "SEED.X", "PART.RATE.X",
             "PART.INNER.COUNTS"])
        | st.integers() | st.none() | st.tuples(st.text(max_size=2)))


def _assert_merged(config, given):
    """Every key holds what was given for it, else what it held, and the kind of value it had.

    ``given``: {full key: value}; text may stand for a literal. None goes everywhere, as in yacs.
    """
    before, after = _leaves(_small_config()), _leaves(config)
    assert after.keys() == before.keys() >= given.keys()
    for key, value in after.items():
        if before[key] is not None and value is not None:
            assert type(value) is type(before[key]), key
        assert isinstance(value, (str, int, float, bool, list, tuple, type(None))), key
        wanted = given.get(key, before[key])
        if isinstance(wanted, str) and key in given:
            with contextlib.suppress(ValueError, SyntaxError):
                wanted = ast.literal_eval(wanted)
        if isinstance(value, (list, tuple)):
            wanted = type(value)(wanted)
        assert repr(value) == repr(wanted), key


def _named(error, keys):
    text = str(error.args[0])  # of a KeyError, str() would be its repr
    return any(str(key) in text or repr(key) in text for key in keys)


# -------------------------------------------------------------------------- keys and values ----

REFUSED = (KeyError, ValueError, TypeError)


@stable
@given(st.lists(st.tuples(keys, values), max_size=4), st.booleans())
@example([("PART.RATE", "0.2"), ("SIZE", "(3, 4)"), ("NAME", "'b'")], False)
def test_keys_and_values_are_merged_with_their_type_or_refused_whole(pairs, odd):
    config, flat = _small_config(), [part for pair in pairs for part in pair]
    flat = flat[:-1] if odd and flat else flat
    try:
        config.merge_from_list(copy.deepcopy(flat))
    except REFUSED as error:
        assert repr(config) == repr(_small_config())
        assert _named(error, flat[0::2]), error
        return
    assert len(flat) % 2 == 0
    _assert_merged(config, dict(zip(flat[0::2], flat[1::2], strict=True)))


@pytest.mark.parametrize("flat", [
    ["SEED"], ["SEEDS", 1], ["seed", 1], ["", 1], [3, 1], [[], 1], ["PART._BASE_", "x"],
    ["PART", {"RATE": 0.2}], ["PART.RATE.X", 1], ["SEED", 3, "RATE", "fast"], ["RATE", "{[]: 1}"],
    ["SIZE", 3], ["SEED", True], ["NAME", b"a"], ["NONE", 1j]], ids=str)
def test_keys_and_values_that_must_be_refused(flat):
    config = _small_config()
    with pytest.raises(REFUSED) as caught:
        config.merge_from_list(flat)
    assert repr(config) == repr(_small_config()) and _named(caught.value, flat[0::2])


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


some_texts = st.lists(st.text(max_size=4), max_size=3)


@stable
@given(st.fixed_dictionaries({}, optional={
    "SEED": st.integers(), "RATE": st.floats(), "NAME": st.sampled_from(["", "b c", "'1'", "[a"]),
    "FLAG": st.booleans(), "SIZE": st.lists(st.integers()) | st.tuples(st.floats()),
    "NAMES": some_texts | some_texts.map(tuple), "NONE": st.none() | st.integers(),
    "PART": st.fixed_dictionaries({
        "RATE": st.floats(), "INNER": st.fixed_dictionaries({"COUNT": st.integers()})})}))
def test_values_of_the_right_type_are_merged(nested):
    config, flat = _small_config(), _leaves(nested)
    config.merge_from_list([part for pair in flat.items() for part in pair])
    _assert_merged(config, flat)
    config, error = _merge_file(yaml.safe_dump(nested or {"SEED": -1}).encode())
    assert error is None
    _assert_merged(config, flat)


yaml_pieces = st.sampled_from([
    "SEED", "PART", "RATE", ": ", ":", "\n", "\n  ", "- ", "[", "]", "{", "}", ", ", "&a ", "*a",
    "!!python/object/apply:os.getcwd ", "!!int ", "!!timestamp ", "!!binary ", "!!set ", "!!omap ",
    "!x ", "<<: ", "'", '"', "|", ">", "#", "%", "@", "\t", "---", "...", "1", "0b_", "0x", "-",
    "1:2:3", "2020-13-45", "~", "null", "yes", "_BASE_", "../", "https://", "\x00", "\ufeff", "é",
    "\u2028", "=", ".inf", "1e", "? "])
contents = {
    "mappings": mappings.map(lambda data: yaml.safe_dump(data, allow_unicode=True).encode()),
    "yaml": st.lists(yaml_pieces, max_size=14).map(lambda pieces: "".join(pieces).encode()),
    "bytes": st.binary(max_size=40)}


@pytest.mark.parametrize("kind", contents)
@stable
@given(st.data())
def test_a_file_of_any_form_is_merged_with_its_types_or_refused_whole_by_name(kind, data):
    content = data.draw(contents[kind])
    config, error = _merge_file(content)
    if error is None:
        _assert_merged(config, _leaves(yaml.safe_load(content.decode())))
    else:
        assert repr(config) == repr(_small_config())


@pytest.mark.parametrize("content", [
    b"", b"3", b"- SEED", b"\xff", b"\x00", b"SEED: [", b"SEEDS: 1", b"PART.RATE: 1.0", b"1: 1",
    b"PART:", b"PART: 3", b"SEED: {X: 1}", b"SEED: 3\nRATE: fast", b"NONE: 2020-01-01",
    b"NONE: !!binary YWJj", b"SEED: !!timestamp x", b"NONE: !!set {a}", b"&a {SEED: *a}",
    b"? {a: 1}\n: 1", b"<<: [1]", b"NONE: !!python/object/apply:os.getcwd []", b"_BASE_: run.yml",
    b"_BASE_: https://host/a.yml", b"_BASE_: 3"], ids=repr)
def test_files_that_must_be_refused(content):
    config, error = _merge_file(content)
    assert error is not None and repr(config) == repr(_small_config())


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
def folder(tmp_path_factory):  # tmp_path's own name could hold an identity and a camera
    return tmp_path_factory.mktemp("images")


def _listed(kind, folder, name, is_train):
    """What a dataset reads from a folder with one file: its items, or an error that names it."""
    dataset = kind.__new__(kind)  # no folder is looked for
    path = folder / name
    path.touch()
    try:
        return dataset.process_dir(str(folder), is_train=is_train), None
    except ValueError as error:
        escaped = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))
        assert escaped in str(error), error
        return [], error
    finally:
        path.unlink()


# What a dataset takes: the number of its first camera, which becomes 0; identities that are junk;
# whether it has an identity and a camera, as they stand in the name.
RULES = {
    Market1501: (1, [-1], lambda name, who, camera: (
        0 <= int(who) <= 1501 and len(camera) == 1 and 1 <= int(camera) <= 6)),
    DukeMTMC: (1, [], lambda name, who, camera: len(camera) == 1 and 1 <= int(camera) <= 8),
    PersonX: (0, [-1], lambda name, who, camera: name.startswith(f"{who}_c{camera}")),
}


@pytest.mark.parametrize("kind", RULES)
@stable
@given(stems.map(_file_name), st.booleans())
@example("0001_c10s1_000000_00.jpg", True)
@example("1501_c6s1.jpg", True)
@example("1502_c1s1_000000_00.jpg", True)
@example("0001_c7s1.jpg", True)
@example("0001_c0s1.jpg", True)
@example("0001_c8_f0.jpg", True)
@example("0001_c9_f0.jpg", True)
@example("1-2_c1s1.jpg", True)
@example("--1_c1.jpg", False)
@example("٣_c1.jpg", True)
@example("0001_c٣.jpg", True)
@example("-1_c3s1.jpg", False)
@example("x0001_c3.jpg", True)
@example("x 0007_c5\n.jpg", True)
@example("a_c1_0002_c3.jpg", True)
def test_names_are_read_left_out_or_refused_as_the_plain_parser_says(kind, folder, name, is_train):
    first, junk, is_right = RULES[kind]
    items, error = _listed(kind, folder, name, is_train)
    labels = _plain_labels(name)
    is_number = labels is not None and "-" not in labels[0][1:] and labels[0] != "-"
    if is_number and int(labels[0]) in junk:
        assert not items  # whatever its camera
    elif is_number and is_right(name, *labels):
        expected = int(labels[0]), int(labels[1]) - first
        if is_train:
            expected = tuple(f"{kind.dataset_name}_{number}" for number in expected)
        assert error is None and [item[1:] for item in items] == [expected]
    else:
        assert error is not None


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
