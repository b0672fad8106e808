"""Config keys and values on a command line: what is right, and what the words for the rest are."""

import pytest
from caureid_plugin.common.errors import UnknownName, UserError
from caureid_plugin.common.keys import check_key, check_value, decoded, every_key

CONFIG = {"SEED": 1, "SOLVER": {"BASE_LR": 0.1, "STEPS": (1, 2), "AMP": {"ENABLED": True}},
          "OUTPUT_DIR": "", "OPEN": None}


def test_every_key_is_named_with_its_sections():
    assert every_key(CONFIG) == {
        "SEED": 1, "SOLVER": CONFIG["SOLVER"], "SOLVER.BASE_LR": 0.1, "SOLVER.STEPS": (1, 2),
        "SOLVER.AMP": {"ENABLED": True}, "SOLVER.AMP.ENABLED": True, "OUTPUT_DIR": "", "OPEN": None}


def test_an_unknown_key_is_refused_with_those_like_it():
    check_key("SOLVER.BASE_LR", every_key(CONFIG))
    with pytest.raises(UnknownName, match=r"key 'SOLVER.BASE_LRR', did you mean SOLVER\.BASE_LR"):
        check_key("SOLVER.BASE_LRR", every_key(CONFIG))
    with pytest.raises(UnknownName, match=r"^There is no config key 'qqqqqqqq'\.$"):
        check_key("qqqqqqqq", every_key(CONFIG))


@pytest.mark.parametrize("key, text, value", [
    ("SEED", "-1", -1), ("SOLVER.BASE_LR", "1e-3", 0.001), ("SOLVER.STEPS", "[3, 4]", [3, 4]),
    ("SOLVER.AMP.ENABLED", "False", False), ("OUTPUT_DIR", "logs/a b", "logs/a b"),
    ("OUTPUT_DIR", "'3'", "3"), ("OUTPUT_DIR", "{[]: 1}", "{[]: 1}"), ("OPEN", "3", 3),
    ("OUTPUT_DIR", 1000 * "(", 1000 * "(")])
def test_a_value_of_the_right_type_passes(key, text, value):
    assert decoded(text) == value and type(decoded(text)) is type(value)
    check_value(key, text, decoded(text), every_key(CONFIG)[key])


@pytest.mark.parametrize("key, text, says", [
    ("SEED", "True", "takes a whole number, and True is True or False."),
    ("SEED", "abc", "takes a whole number, and abc is text."),
    ("SOLVER.BASE_LR", "1", "takes a number with a decimal point, and 1 is a whole number: write"),
    ("SOLVER.BASE_LR", "None", "and None is nothing: give it a value, or take the key out for its"),
    ("OUTPUT_DIR", "2024", "2024 is a whole number: put it in quotes twice, as in \"'2024'\"."),
    ("SOLVER.STEPS", "{3}", "takes a list, and {3} is a set."),
    ("SOLVER", "3", "The value of SOLVER is a section: give its keys one by one, as in SOLVER.KEY"),
])
def test_a_value_of_the_wrong_type_is_refused_with_the_remedy(key, text, says):
    with pytest.raises(UserError) as refused:
        check_value(key, text, decoded(text), every_key(CONFIG)[key])
    assert says in str(refused.value)
