"""The plugin where faiss or FastReID is not installed, in processes that do not find them."""

import json
import sys
import types

import caureid_plugin
import faiss
import pytest
from caureid_plugin import compat
from caureid_plugin.compat import importing

from helpers.tiny import KEYS

_SHOWN = """
import importlib, json, sys

def shown(action):
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "fine"

def import_it(name):
    importlib.import_module(name)

found = {}
"""

_WITHOUT_FAISS = _SHOWN + """
import caureid_plugin
from caureid_plugin import compat
found["import"] = shown(lambda: import_it("faiss"))
found["applied"] = compat.REPAIRS["faiss_missing"].applied

import torch
from fastreid.config import get_cfg
from fastreid.evaluation import ReidEvaluator
from fastreid.utils import compute_dist, faiss_utils
found["use"] = shown(lambda: faiss_utils.index_init_cpu(8))
found["dense"] = shown(lambda: compute_dist.compute_jaccard_distance(torch.eye(9)))
found["dunder"] = shown(lambda: compute_dist.faiss.__wrapped__)

def evaluate(*keys):
    cfg = get_cfg()
    cfg.merge_from_list(["TEST.RERANK.ENABLED", True, "TEST.RERANK.K1", 6, "TEST.RERANK.K2", 2,
                         *keys])
    evaluator = ReidEvaluator(cfg, 8)
    pids = torch.arange(40) % 4
    features = torch.eye(4)[pids] + 0.1 * torch.randn(40, 4, generator=torch.manual_seed(0))
    evaluator.process({"targets": pids, "camids": torch.arange(40) // 4 % 2}, features)
    found["results"] = {name: float(value) for name, value in evaluator.evaluate().items()}

with compat.without("faiss_missing"):
    found["rerank alone"] = shown(evaluate)
    found["without"] = shown(lambda: evaluate("TEST.ROC.ENABLED", True))
found["evaluation"] = shown(lambda: evaluate("TEST.ROC.ENABLED", True))

from fastreid.engine import DefaultTrainer
from fastreid.utils.logger import setup_logger

setup_logger()
cfg = caureid_plugin.load_config("Synthetic/caureid.yml", sys.argv[1:])
trainer = DefaultTrainer(cfg)
trainer.register_hooks([caureid_plugin.UnsupervisedHook(cfg)])
trainer.train()
found["again"] = shown(lambda: import_it("faiss"))
print(json.dumps(found))
"""


def last_line(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_plugin_evaluates_and_trains_without_faiss(run_python, tiny_market, tmp_path):
    """How it searches then is in tests/clustering/test_neighbors.py."""
    done = run_python("-c", _WITHOUT_FAISS, *KEYS, "SOLVER.MAX_EPOCH", 1, "TEST.RERANK.ENABLED",
                      True, "OUTPUT_DIR", tmp_path, hidden=["faiss"])
    found = last_line(done)
    none = "ModuleNotFoundError: No module named 'faiss'"
    assert found["import"] == found["again"] == found["without"] == none and found["applied"]
    for name in ("use", "dense"):
        assert found[name].startswith("MissingPackage: faiss.")
        assert "pip install 'caureid-plugin[faiss-cpu]'" in found[name]
    assert found["dunder"].startswith("AttributeError")
    assert found["rerank alone"] == found["evaluation"] == "fine"
    assert found["results"]["mAP"] > 90 and "TPR@FPR=1e-02" in found["results"]
    assert "epoch 0:" in done.stdout and "Test with rerank setting" in done.stdout
    assert (tmp_path / "model_final.pth").is_file()


@pytest.mark.parametrize("blocked", [False, True])
def test_the_stand_in_is_there_inside_the_block_alone(monkeypatch, blocked):
    with compat.faiss_stand_in():
        assert sys.modules["faiss"] is faiss  # it is installed, and left alone
    monkeypatch.setattr(importing, "faiss_is_missing", lambda: True)
    monkeypatch.delitem(sys.modules, "faiss")
    if blocked:
        monkeypatch.setitem(sys.modules, "faiss", None)
    before = sys.modules.get("faiss", "absent")
    with compat.faiss_stand_in():
        assert sys.modules["faiss"].METRIC_L2 == 1
    assert sys.modules.get("faiss", "absent") == before
    with pytest.raises(ImportError, match=r"faiss\.IndexFlatL2 .*pip install"):
        with compat.faiss_stand_in():
            sys.modules["faiss"].IndexFlatL2(3)
    assert sys.modules.get("faiss", "absent") == before


_WITHOUT_FASTREID = _SHOWN + """
import pathlib, shutil
import numpy as np, torch
from caureid_plugin.clustering import assign_pseudo_labels
from caureid_plugin import clustering, layers, losses
import caureid_plugin.layers, caureid_plugin.losses
import caureid_plugin

rows = np.repeat(np.eye(3), 10, axis=0) + 0.01 * np.random.default_rng(0).normal(size=(30, 3))
found["labels"] = assign_pseudo_labels(rows, k1=10, k2=3, eps=0.6, min_samples=2).tolist()
found["loss"] = losses.info_nce_loss(
    torch.eye(2), torch.tensor([0, 1]), torch.eye(2), temperature=0.1).item()
found["layer"] = list(layers.GroupedBatchNorm2d(3, 2)(torch.ones(2, 3, 1, 1)).shape)

found["names"] = {name: shown(lambda: getattr(caureid_plugin, name))
                  for name in caureid_plugin.__all__ if name != "__version__"}
found["from"] = shown(lambda: exec("from caureid_plugin import CAUReID", {}))
found["star"] = shown(lambda: exec("from caureid_plugin import *", {}))
found["module"] = shown(lambda: import_it("caureid_plugin.compat"))
found["unknown"] = shown(lambda: caureid_plugin.NoSuchName)
found["version"] = caureid_plugin.__version__
found["loaded"] = [name for name in sys.modules if name.split(".")[0] == "fastreid"]

sys.meta_path[sys.meta_path.index(Hiding)] = PathFinder  # nothing is hidden any more
sys.path.insert(0, sys.argv[1])

def broken(name):
    folder = pathlib.Path(sys.argv[1], name)
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('numpy.core.multiarray failed')")
    for loaded in [n for n in sys.modules if n.split(".")[0] in ("caureid_plugin", "fastreid")]:
        del sys.modules[loaded]
    importlib.invalidate_caches()
    error = shown(lambda: import_it("caureid_plugin.compat"))
    shutil.rmtree(folder)
    return error

found["broken"] = [broken("fastreid"), broken("faiss")]
print(json.dumps(found))
"""


def test_parts_that_do_not_know_fastreid_work_without_it(run_python, tmp_path):
    found = last_line(run_python("-c", _WITHOUT_FASTREID, tmp_path, hidden=["fastreid"]))
    assert found["labels"] == [0] * 10 + [1] * 10 + [2] * 10
    assert 0 <= found["loss"] < 1 and found["layer"] == [2, 3, 1, 1]
    assert found["loaded"] == [] and found["version"]
    assert {"CAUReID", "UnsupervisedHook", "launch", "compat"} <= found["names"].keys()
    for text in (found["from"], found["star"], found["module"], *found["names"].values()):
        assert text.startswith("MissingPackage: FastReID is not installed: install it with "
                               "`pip install --no-deps fastreid==1.4.0`")
    assert found["unknown"] == \
        "AttributeError: module 'caureid_plugin' has no attribute 'NoSuchName'"
    # what is installed and broken shows its own error
    assert found["broken"] == ["ImportError: numpy.core.multiarray failed"] * 2


_FOUND_LATER = """
import json, os, sys
import caureid_plugin
from caureid_plugin import clustering, layers  # fast here, and there before the rest

assert not [name for name in sys.modules if name.split(".")[0] == "fastreid"]
hidden = sys.meta_path.index(Hiding)

def found(statement):
    sys.meta_path[hidden] = PathFinder  # as a script does that extends sys.path after its imports
    exec(statement, {})
    import fastreid, fastreid.solver
    from fastreid.modeling.heads import build_heads
    heads = sys.modules["fastreid.modeling.heads"].REID_HEADS_REGISTRY
    parts = [caureid_plugin.compat, caureid_plugin.config, caureid_plugin.modeling, clustering]
    return {
        "repaired": caureid_plugin.compat.REPAIRS["contiguous_zero_grad"].applied,
        "registered": heads.get("CamSepHead") is caureid_plugin.CamSepHead,
        "once": all(part is sys.modules[part.__name__] for part in parts)
                and caureid_plugin.config.add_caureid_config is caureid_plugin.add_caureid_config,
        "all": all(hasattr(caureid_plugin, name) for name in caureid_plugin.__all__),
        "as usual": all(part.__spec__.loader is part.__loader__
                        and type(part.__loader__).__name__ == "SourceFileLoader"
                        for part in [fastreid, *parts]),
        "left": [str(finder) for finder in sys.meta_path if "_Late" in str(finder)],
        "file": fastreid.__file__ == PathFinder.find_spec("fastreid").origin,
    }

for statement in sys.argv[1:]:
    child = os.fork()
    if not child:
        print(json.dumps(found(statement)), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, statement
"""


def test_where_fastreid_is_found_later_the_first_line_still_works(run_python):
    """As in a clone of the toolbox, whose scripts call sys.path.append after their imports."""
    statements = ["from fastreid.engine import DefaultTrainer",
                  "from caureid_plugin.config import add_caureid_config",
                  "import caureid_plugin.compat",
                  "from caureid_plugin import clustering, build_losses"]
    done = run_python("-c", _FOUND_LATER, *statements, hidden=["fastreid"])
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    good = dict.fromkeys(["repaired", "registered", "once", "all", "as usual", "file"], True)
    assert results == [{**good, "left": []}] * len(statements)


def test_an_error_inside_a_toolbox_that_is_found_later_is_shown_each_time(run_python, tmp_path):
    (tmp_path / "clone" / "fastreid").mkdir(parents=True)
    (tmp_path / "clone" / "fastreid" / "__init__.py").write_text("__version__ = '1.4.0'")
    code = """
import caureid_plugin
sys.meta_path[sys.meta_path.index(Hiding)] = PathFinder
sys.path.insert(0, sys.argv[1])
for attempt in range(2):
    try:
        import fastreid
    except ImportError as error:
        print(error)
"""
    done = run_python("-c", code, tmp_path / "clone", hidden=["fastreid"])
    assert done.stdout.splitlines() == ["No module named 'fastreid.config'"] * 2, done.stderr


def test_with_fastreid_the_face_has_all_its_names():
    assert all(hasattr(caureid_plugin, name) for name in caureid_plugin.__all__)
    assert isinstance(caureid_plugin.compat, types.ModuleType)
    assert not hasattr(caureid_plugin, "NoSuchName")
