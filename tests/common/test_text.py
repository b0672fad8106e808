"""Texts for people."""

import pytest
from caureid_plugin.common.errors import UserError
from caureid_plugin.common.text import naming_keys, one_line, printable, with_full_stop

KEYS = {"k1": "A.K1", "eps": "A.EPS", "not standardise": "A.STANDARDIZE False"}


@pytest.mark.parametrize("text, expected", [
    ("k2 must not exceed k1, got k1=3", "k2 must not exceed k1 (A.K1), got k1=3"),
    ("eps 0.5: lower eps, or k1.", "eps (A.EPS) 0.5: lower eps, or k1 (A.K1)."),
    ("do not standardise.", "do not standardise (A.STANDARDIZE False)."),
])
@pytest.mark.parametrize("kind", [ValueError, MemoryError, ImportError])
def test_arguments_get_their_keys(kind, text, expected):
    first = kind(text)
    with pytest.raises(kind) as raised, naming_keys(KEYS):
        raise first
    assert isinstance(raised.value, UserError) and str(raised.value) == expected
    assert raised.value.__cause__ is first


@pytest.mark.parametrize("error", [
    ValueError("k1_intra, eps_values and A.EPS are other words"), KeyError("k1"),
    FloatingPointError("eps")])
def test_other_errors_stay_as_they_are(error):
    with pytest.raises(type(error)) as raised, naming_keys(KEYS):
        raise error
    assert raised.value is error and error.__cause__ is None


@pytest.mark.parametrize("text, expected", [
    ("crops/Tür 1.jpg", "crops/Tür 1.jpg"), ("a\nb\x1b[31m", r"a\nb\x1b[31m"),
    ("caf\udce9", r"caf\udce9"), ("\u202egpj", r"\u202egpj")])
def test_what_would_break_a_line_is_escaped(text, expected):
    assert printable(text) == expected


def test_an_error_in_one_line():
    assert one_line(ValueError("first\n  second")) == "first second"
    assert one_line(KeyError("it's")) == "it's" and one_line(KeyError()) == "KeyError"


def test_one_full_stop():
    assert [with_full_stop(text) for text in ("a", "a.", "a? ")] == ["a.", "a.", "a?"]
