"""The toolbox can be imported on today's stack."""

import collections
import importlib.util
import json
import sys
import types

import pytest
from caureid_plugin import compat
from caureid_plugin.compat import importing

# what a program that trains or searches may never use, and would pay for with seconds
RARELY_USED = ["flask", "matplotlib", "onnx", "onnxruntime", "scipy.stats", "sklearn",
               "tensorboard", "timm", "torch.utils.tensorboard"]

_IMPORT = """
import collections, importlib, json, sys, warnings

def shown(action):
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__} {error}"
    return "fine"

found = {"alone": shown(lambda: importlib.import_module("fastreid.data"))}
names = lambda: [hasattr(collections, "Mapping"), "torch._six" in sys.modules]
before = names()

import caureid_plugin  # also after a first import without it has failed

found["names"] = before, names()
found["rarely used"] = [name for name in sys.argv[1:] if name in sys.modules]
found["six"] = shown(lambda: importlib.import_module("torch._six"))
modules = "config", "data", "engine", "evaluation", "modeling", "solver", "utils"
found["all"] = all(f"fastreid.{name}" in sys.modules for name in modules)

from PIL import Image
from fastreid.data.transforms import ToTensor
with warnings.catch_warnings(record=True) as seen:
    ToTensor()(Image.new("RGB", (2, 2)))
found["warnings"] = len(seen)

from fastreid.evaluation import reid_evaluation
from fastreid.solver.optim import lamb
import sklearn.metrics, torch.utils.tensorboard
found["later"] = reid_evaluation.metrics.auc is sklearn.metrics.auc
found["later"] &= isinstance(lamb.SummaryWriter("."), torch.utils.tensorboard.SummaryWriter)
print(json.dumps(found))
"""


def test_the_plugin_makes_the_toolbox_importable(run_python):
    done = run_python("-c", _IMPORT, *RARELY_USED)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["alone"].startswith(("ModuleNotFoundError", "ImportError"))
    assert "torch._six" in found["alone"] or "Mapping" in found["alone"]
    assert found["names"] == [[False, False]] * 2
    assert "No module named 'torch._six'" in found["six"]
    assert found["all"] and found["warnings"] == 0
    assert found["rarely used"] == [] and found["later"]  # they are imported when they are used


def test_what_is_not_installed_has_no_stand_in(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name: None if name == "sklearn" else find(name))
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    with compat.slow_imports_later():
        assert "sklearn" not in sys.modules


def test_a_fork_of_the_toolbox_may_import_more_of_scikit_learn(monkeypatch):
    stood_in = []

    def import_parts():
        stood_in.append("sklearn" in sys.modules)
        if stood_in == [True]:
            raise ModuleNotFoundError("No module named 'sklearn.cluster'; 'sklearn' is no package")

    monkeypatch.setattr(importing, "_import_parts", import_parts)
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    importing._import_toolbox()
    assert stood_in == [True, False]


def legacy():
    six = sys.modules.get("torch._six")
    return getattr(collections, "Mapping", None), getattr(six, "string_classes", None)


def test_legacy_names_exist_inside_the_block_alone():
    with compat.legacy_names():
        assert legacy() == (collections.abc.Mapping, (str, bytes))
        from torch._six import string_classes
        assert isinstance("text", string_classes)
    assert legacy() == (None, None)
    with pytest.raises(OSError), compat.legacy_names():
        raise OSError
    assert legacy() == (None, None)
    with pytest.raises(ImportError):
        import torch._six  # noqa: F401


@pytest.fixture
def fastface(tmp_path, monkeypatch):
    """A package with the two lines of FastFace that matter; its modules are gone afterwards."""
    (tmp_path / "fastface").mkdir()
    (tmp_path / "fastface" / "__init__.py").touch()
    for name in ("utils_amp", "trainer"):
        (tmp_path / "fastface" / f"{name}.py").write_text(
            "from torch._six import container_abcs\nfrom torch.cuda.amp import GradScaler\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "fastface"]:
        del sys.modules[name]


def test_fastface_can_be_imported(fastface, monkeypatch):
    found = importlib.import_module("fastface.utils_amp")
    assert found.container_abcs is collections.abc and isinstance([], found.container_abcs.Iterable)
    assert legacy() == (None, None)
    importlib.reload(found)
    with pytest.raises(ImportError, match="torch._six"):  # other modules are on their own
        importlib.import_module("fastface.trainer")
    with compat.legacy_names():
        importlib.import_module("fastface.trainer")
    monkeypatch.setattr(sys, "meta_path",
                        [f for f in sys.meta_path if f is not importing._FastFace])
    with pytest.raises(ImportError, match="torch._six"):
        importlib.reload(found)


def test_legacy_names_leave_an_interpreter_alone_that_has_them(monkeypatch):
    six = types.ModuleType("torch._six")
    monkeypatch.setitem(sys.modules, "torch._six", six)
    monkeypatch.setattr(collections, "Mapping", dict, raising=False)
    with compat.legacy_names():
        assert legacy() == (dict, None)
    assert legacy() == (dict, None)
    assert sys.modules["torch._six"] is six


def test_two_distributions_of_faiss_are_warned_about(monkeypatch):
    monkeypatch.setattr(importing, "_is_installed", lambda name: name in ("faiss-cpu", "faiss-gpu"))
    with pytest.warns(UserWarning, match="faiss-cpu and faiss-gpu are both installed"):
        importing._import_toolbox()
    assert not importing._is_installed("no-such-distribution")
