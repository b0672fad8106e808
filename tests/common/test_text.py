"""Texts for people."""

import pytest
from caureid_plugin.common.text import naming_keys

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
    assert type(raised.value) is kind and str(raised.value) == expected
    assert raised.value.__cause__ is first


@pytest.mark.parametrize("error", [
    ValueError("k1_intra, eps_values and A.EPS are other words"), KeyError("k1"),
    FloatingPointError("eps")])
def test_other_errors_stay_as_they_are(error):
    with pytest.raises(type(error)) as raised, naming_keys(KEYS):
        raise error
    assert raised.value is error and error.__cause__ is None
