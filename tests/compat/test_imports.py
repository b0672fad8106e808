"""The toolbox can be imported on today's stack."""

import collections
import sys
import types

import pytest
from caureid_plugin import compat

_IMPORT = """
import collections, importlib, sys, warnings

def shown(action):
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__} {error}"
    return "fine"

alone = shown(lambda: importlib.import_module("fastreid.data"))
names = lambda: (hasattr(collections, "Mapping"), "torch._six" in sys.modules)
before = names()

import caureid_plugin  # also after a first import without it has failed

print("ALONE", alone)
print("NAMES", before == names() == (False, False))
print("SIX", shown(lambda: importlib.import_module("torch._six")))
modules = "config", "data", "engine", "evaluation", "modeling", "solver", "utils"
print("ALL", all(f"fastreid.{name}" in sys.modules for name in modules))

from PIL import Image
from fastreid.data.transforms import ToTensor
with warnings.catch_warnings(record=True) as seen:
    ToTensor()(Image.new("RGB", (2, 2)))
print("WARNINGS", len(seen))
"""


def test_the_plugin_makes_the_toolbox_importable(run_python):
    done = run_python("-c", _IMPORT)
    assert done.returncode == 0, done.stderr
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert found["ALONE"].startswith(("ModuleNotFoundError", "ImportError"))
    assert "torch._six" in found["ALONE"] or "Mapping" in found["ALONE"]
    assert found["NAMES"] == "True"
    assert "No module named 'torch._six'" in found["SIX"]
    assert found["ALL"] == "True"
    assert found["WARNINGS"] == "0"


def legacy():
    six = sys.modules.get("torch._six")
    return getattr(collections, "Mapping", None), getattr(six, "string_classes", None)


def test_legacy_names_exist_inside_the_block_alone():
    assert legacy() == (None, None)
    with compat.legacy_names():
        assert legacy() == (collections.abc.Mapping, (str, bytes))
        from torch._six import string_classes
        assert isinstance("text", string_classes)
    assert legacy() == (None, None)
    with pytest.raises(OSError):
        with compat.legacy_names():
            raise OSError
    assert legacy() == (None, None)
    with pytest.raises(ImportError):
        import torch._six  # noqa: F401


def test_legacy_names_leave_an_interpreter_alone_that_has_them(monkeypatch):
    six = types.ModuleType("torch._six")
    monkeypatch.setitem(sys.modules, "torch._six", six)
    monkeypatch.setattr(collections, "Mapping", dict, raising=False)
    with compat.legacy_names():
        assert legacy() == (dict, None)
    assert legacy() == (dict, None)
    assert sys.modules["torch._six"] is six


def test_two_distributions_of_faiss_are_warned_about(monkeypatch):
    monkeypatch.setattr(compat, "_is_installed", lambda name: name in ("faiss-cpu", "faiss-gpu"))
    with pytest.warns(UserWarning, match="faiss-cpu and faiss-gpu are both installed"):
        compat._import_toolbox()
    assert not compat._is_installed("no-such-distribution")
