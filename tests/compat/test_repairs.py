"""The list of repairs: described, tested, taken back without a trace, left out where not needed."""

import importlib.metadata
import importlib.util
import inspect
import re
import sys
from pathlib import Path

import pytest
import torch
from caureid_plugin import compat
from fastreid.engine import train_loop
from fastreid.evaluation import rank_cylib  # noqa: F401  (its attributes are compared)

HERE = Path(__file__).parent
RELEASE = any(d.metadata["Name"] == "fastreid" and d.version == "1.4.0"
              for d in importlib.metadata.distributions())


@pytest.fixture
def bare_toolbox():
    """The toolbox without any repair, as a function that applies those named."""
    applied = [repair for repair in compat.REPAIRS.values() if repair.applied]
    for repair in reversed(applied):
        repair.revert()
    yield
    for repair in reversed(list(compat.REPAIRS.values())):
        repair.revert()
    for repair in applied:
        repair.apply()


def toolbox_attributes():
    """Every attribute of every loaded module and class of the toolbox, by name."""
    found = {}
    for module_name, module in list(sys.modules.items()):
        if module is None or module_name.split(".")[0] != "fastreid":
            continue
        for name, value in list(vars(module).items()):
            if name.startswith("__"):
                continue
            found[f"{module_name}.{name}"] = value
            if inspect.isclass(value) and value.__module__ == module_name:
                for attribute, member in list(vars(value).items()):
                    if attribute not in ("__dict__", "__weakref__", "_abc_impl"):
                        found[f"{module_name}.{name}.{attribute}"] = member
    return found


def changed(before, after):
    missing = object()
    return {name for name in before.keys() | after.keys()
            if before.get(name, missing) is not after.get(name, missing)}


def from_the_plugin(attributes):
    return {name for name, value in attributes.items()
            if str(getattr(value, "__module__", "")).startswith("caureid_plugin")}


# ------------------------------------------------------------------------- description ----

# a piece of the code that each repair cites
CITED = {
    "contiguous_zero_grad": "self.optimizer.zero_grad()",
    "weights_guard": "def __init__(self, cfg):",
    "iters_per_epoch": "// cfg.SOLVER.IMS_PER_BATCH",
    "amp_needs_cuda": "CUDA is required for AMP training!",
    "default_device": "model.to(torch.device(cfg.MODEL.DEVICE))",
    "train_loader": "class DataLoaderX(DataLoader):",
    "test_loader_workers": "num_workers=4",
    "jaccard_without_cuda": "features = features.cuda()",
    "rerank_memory": "jaccard_dist = np.zeros((N, N), dtype=mat_type)",
    "faiss_missing": "import faiss",
    "batch_on_other_device": "def forward(self, batched_inputs):",
    "preprocess_in_place": "images.sub_(self.pixel_mean)",
    "ddp_on_cpu": "device_ids=[comm.get_local_rank()]",
    "processes": "def _distributed_worker(",
    "evaluator_build": "sys.exit(1)",
    "training_without_tests": "DATASETS.TESTS[0]",
    "printer_twice": "iteration - self._last_write[0]",
    "seed": "seed_all_rng()",
    "sampler_state": "np.random.seed(self._seed)",
    "sampler_hang": "while len(avl_pids) >= self.num_pids_per_batch:",
    "sorted_listing": "def query(self):",
    "missing_dataset": "is not found",
    "image_without_camera": "pattern.search(img_path).groups()",
    "image_modes": "image = np.asarray(image)",
    "unreadable_image": "def read_image(",
    "output_folder": "PathManager.mkdirs(output_dir)",
    "unwritable_figures": "self._file_handle.flush()",
    "whole_checkpoints": "torch.save(data, f)",
    "finite_checkpoints": 'data["model"] = self.model.state_dict()',
    "last_checkpoint": "last_saved = f.read().strip()",
    "safe_checkpoints": 'torch.load(f, map_location=torch.device("cpu"))',
    "plain_weights": 'checkpoint.pop("model")',
    "safe_pretraining": "torch.load(pretrain_path",
    "foreign_checkpoint": "strict=False",
    "dataset_config": "DATASET_REGISTRY.get(dataset_name)(root=_root",
    "unknown_name": "raise KeyError(",
    "unknown_key": "def merge_from_list(",
    "config_file": "cfg = yaml.safe_load(f)",
    "config_value": "def merge_from_list(",
    "half_merge": "def merge_from_list(",
    "unknown_loss": "if 'TripletLoss' in loss_names:",
    "small_gallery": "all_cmc = np.asarray(all_cmc)",
    "run_state": "self.checkpointer = Checkpointer(",
    "training_loop": "def train(self, start_epoch: int",
    "loss_not_finite": "Loss became infinite or NaN",
    "lost_figures": "if iter <= self._last_write:",
    "random_affine": "resample=False",
}


@pytest.mark.parametrize("name", compat.REPAIRS)
def test_every_repair_is_described(name):
    repair = compat.REPAIRS[name]
    assert repair.name == name
    assert ".py" in repair.upstream and repair.versions
    assert len(repair.symptom.split()) >= 5


def cited_lines(upstream):
    """Text of every `file.py:first-last,other`; of the whole files where `*` stands for several."""
    toolbox, files, text = Path(train_loop.__file__).parents[1], [], []
    for token in re.findall(r"[\w/*]+\.py|:[\d,-]+", upstream):
        if not token.startswith(":"):
            files = [path.read_text() for path in toolbox.rglob("*.py") if path.match(token)]
            text += files if "*" in token else []
            continue
        assert len(files) == 1, f"{token} is of no file or of several"
        for span in filter(None, token[1:].split(",")):
            first, _, last = span.partition("-")
            text += files[0].splitlines()[int(first) - 1:int(last or first)]
    return "\n".join(text)


@pytest.mark.skipif(not RELEASE, reason="the lines are those of FastReID 1.4.0")
@pytest.mark.parametrize("name", compat.REPAIRS)
def test_the_cited_lines_hold_the_defect(name):
    assert CITED[name] in cited_lines(compat.REPAIRS[name].upstream)


@pytest.mark.parametrize("name", compat.REPAIRS)
def test_every_repair_has_a_test_that_switches_it_off(name):
    switch = re.compile(rf"""without\(["']{name}["']\)""")
    assert any(switch.search(path.read_text()) for path in HERE.parent.rglob("test_*.py"))


# -------------------------------------------------------------------- applying, reverting ----


def test_all_repairs_leave_no_trace_when_taken_back(bare_toolbox):
    before = toolbox_attributes()
    assert from_the_plugin(before) == set()
    compat.apply_all()
    during = toolbox_attributes()
    assert len(changed(before, during)) >= len(compat.REPAIRS)
    for repair in reversed(list(compat.REPAIRS.values())):
        repair.revert()
    assert changed(before, toolbox_attributes()) == set()


@pytest.mark.parametrize("name", compat.REPAIRS)
def test_one_repair_changes_the_toolbox_and_takes_it_back(bare_toolbox, name):
    repair, before = compat.REPAIRS[name], toolbox_attributes()
    needed = repair.is_broken()
    repair.apply()
    assert repair.applied == needed
    assert bool(changed(before, toolbox_attributes())) == needed
    during = toolbox_attributes()
    repair.apply()  # a second time changes nothing
    assert changed(during, toolbox_attributes()) == set()
    repair.revert()
    assert not repair.applied
    assert changed(before, toolbox_attributes()) == set()
    repair.revert()
    assert changed(before, toolbox_attributes()) == set()


def test_without_switches_one_repair_off_and_on_again():
    applied = {name for name, repair in compat.REPAIRS.items() if repair.applied}
    names = set(changed({}, toolbox_attributes()))
    for name in applied:
        with compat.without(name):
            assert {n for n, r in compat.REPAIRS.items() if r.applied} == applied - {name}
        assert {n for n, r in compat.REPAIRS.items() if r.applied} == applied
    assert set(changed({}, toolbox_attributes())) == names


def test_without_switches_on_again_after_an_error():
    with pytest.raises(OSError):
        with compat.without("seed"):
            raise OSError
    assert compat.REPAIRS["seed"].applied


def test_an_unknown_repair_cannot_be_switched_off():
    with pytest.raises(KeyError, match="no_such_repair"):
        with compat.without("no_such_repair"):
            pass


def test_importing_the_plugin_applies_every_needed_repair():
    unneeded = {name for name, repair in compat.REPAIRS.items() if not repair.applied}
    assert unneeded == ({"faiss_missing"} if importlib.util.find_spec("faiss") else set())


# ----------------------------------------------------------------------------- probes ----


def test_a_buffer_that_survives_zero_grad_is_left_alone(bare_toolbox, monkeypatch):
    repair = compat.REPAIRS["contiguous_zero_grad"]
    assert repair.is_broken()
    zero_grad = torch.optim.Optimizer.zero_grad
    monkeypatch.setattr(  # the default of torch < 2
        torch.optim.Optimizer, "zero_grad", lambda self, set_to_none=False: zero_grad(
            self, set_to_none))
    original = train_loop.SimpleTrainer.__init__
    repair.apply()
    assert not repair.is_broken() and not repair.applied
    assert train_loop.SimpleTrainer.__init__ is original


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows a defect without CUDA")
def test_a_jaccard_distance_that_works_is_left_alone(bare_toolbox, monkeypatch):
    pytest.importorskip("faiss")
    repair = compat.REPAIRS["jaccard_without_cuda"]
    assert repair.is_broken()
    compute = compat._compute_dist.compute_jaccard_distance
    monkeypatch.setattr(  # as a toolbox would that chooses the CPU by itself
        compat._compute_dist, "compute_jaccard_distance",
        lambda features, search_option=0, **options: compute(features, search_option=3, **options))
    mended = compat._compute_dist.compute_jaccard_distance
    repair.apply()
    assert not repair.is_broken() and not repair.applied
    assert compat._compute_dist.compute_jaccard_distance is mended


@pytest.mark.parametrize("name", [
    "jaccard_without_cuda", "preprocess_in_place", "random_affine", "sampler_hang",
    "sampler_state", "unknown_key", "unknown_name"])
def test_a_probe_sees_the_defect_without_the_repair_and_none_with_it(name):
    repair = compat.REPAIRS[name]
    if name == "jaccard_without_cuda":
        pytest.importorskip("faiss")
        if torch.cuda.is_available():
            pytest.skip("the probe leaves CUDA alone")
    with compat.without(name):
        assert repair.is_broken()
    assert not repair.is_broken() and repair.applied
