"""The list of repairs: described, tested, taken back without a trace, left out where not needed."""

import importlib.metadata
import inspect
import re
import sys
from pathlib import Path

import pytest
import torch
from caureid_plugin import compat
from fastreid.engine import train_loop
from fastreid.evaluation import rank_cylib  # noqa: F401  (its attributes are compared)
from fastreid.utils.params import ContiguousParams

CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="shows a defect without CUDA")


@pytest.fixture
def bare_toolbox():
    """The toolbox without any repair."""
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


def test_every_repair_is_described():
    for name, repair in compat.REPAIRS.items():
        assert repair.name == name and ".py" in repair.upstream and repair.versions
        assert len(repair.symptom.split()) >= 5


def cited_spans(upstream):
    """The lines of every `file.py:first-last,other`; nothing of files where `*` stands for some."""
    toolbox, files = Path(train_loop.__file__).parents[1], []
    for token in re.findall(r"[\w/*]+\.py|:[\d,-]+", upstream):
        if not token.startswith(":"):
            files = [path.read_text() for path in toolbox.rglob("*.py") if path.match(token)]
            assert files, f"{token} is no file of the toolbox"
            continue
        assert len(files) == 1, f"{token} is of several files"
        for span in filter(None, token[1:].split(",")):
            first, _, last = span.partition("-")
            yield files[0].splitlines()[int(first) - 1:int(last or first)]


# By room. Several may wrap one function: DefaultTrainer.__init__ is wrapped five times, and what is
# applied later runs first.
ORDER = {
    "optimisation": "contiguous_zero_grad weights_guard frozen_layers iters_per_epoch "
                    "amp_needs_cuda",
    "devices": "default_device train_loader test_loader_workers jaccard_without_cuda "
               "batch_on_other_device preprocess_in_place",
    "processes": "ddp_on_cpu processes",
    "evaluation": "evaluator_build ranked_features text_labels small_gallery rerank_memory "
                  "faiss_missing training_without_tests printer_twice lost_figures",
    "resuming": "run_state training_loop loss_not_finite",
    "run_configs": "run_config resumed_config one_run",
    "seeding": "seed sampler_state sampler_hang",
    "datasets": "sorted_listing unknown_cameras missing_dataset image_without_camera",
    "images": "image_modes unreadable_image random_affine",
    "outputs": "output_folder unwritable_figures",
    "checkpoints": "whole_checkpoints finite_checkpoints last_checkpoint safe_checkpoints",
    "weights": "plain_weights safe_pretraining foreign_pretraining foreign_checkpoint",
    "registries": "dataset_config unknown_name",
    "configs": "config_file unknown_key config_value plugin_keys half_merge",
    "losses": "unknown_loss missing_output embedding_as_scores",
}


def test_repairs_are_applied_in_this_order():
    assert [(name, repair.room) for name, repair in compat.REPAIRS.items()] == [
        (name, room) for room, names in ORDER.items() for name in names.split()]


def test_every_repair_cites_code_of_the_release():
    assert importlib.metadata.version("fastreid") == "1.4.0"
    for name, repair in compat.REPAIRS.items():
        spans = list(cited_spans(repair.upstream))
        assert all("".join(span).strip(" #\n") for span in spans), name


def test_every_repair_has_a_test_that_switches_it_off():
    tests = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    switched_off = set(re.findall(r"""without\(["'](\w+)["']\)""", tests))
    assert compat.REPAIRS.keys() - switched_off == set()


def test_without_the_repairs_nothing_of_the_plugin_is_left(bare_toolbox):
    # but what slow_imports_later leaves, unless somebody has imported the real ones before
    assert {name for name, value in toolbox_attributes().items()
            if str(getattr(value, "__module__", "")).startswith("caureid_plugin")} <= {
        "fastreid.evaluation.reid_evaluation.metrics", "fastreid.solver.optim.lamb.SummaryWriter"}


def test_repairs_change_the_toolbox_and_take_it_back(bare_toolbox):
    before = toolbox_attributes()
    for name, repair in compat.REPAIRS.items():
        needed = repair.is_broken()
        repair.apply()
        assert repair.applied == needed, name
        during = toolbox_attributes()
        assert bool(changed(before, during)) == needed, name
        repair.apply()  # a second time changes nothing
        assert changed(during, toolbox_attributes()) == set(), name
        for _ in range(2):
            repair.revert()
            assert not repair.applied and changed(before, toolbox_attributes()) == set(), name
    compat.apply_all(compat.ROOMS)
    assert len(changed(before, toolbox_attributes())) >= len(compat.REPAIRS)
    for repair in reversed(list(compat.REPAIRS.values())):
        repair.revert()
    assert changed(before, toolbox_attributes()) == set()


@pytest.mark.parametrize("name", [next(iter(compat.REPAIRS)), "processes", [*compat.REPAIRS][-1]])
def test_without_switches_one_repair_off_and_on_again(name):
    before = toolbox_attributes().keys()
    applied = {name for name, repair in compat.REPAIRS.items() if repair.applied}
    with compat.without(name):
        assert {n for n, r in compat.REPAIRS.items() if r.applied} == applied - {name}
    with pytest.raises(OSError), compat.without(name):
        raise OSError
    assert {n for n, r in compat.REPAIRS.items() if r.applied} == applied
    assert toolbox_attributes().keys() == before
    with pytest.raises(KeyError, match="no_such_repair"), compat.without("no_such_repair"):
        pass


def test_importing_the_plugin_applies_every_needed_repair():
    unneeded = {name for name, repair in compat.REPAIRS.items() if not repair.applied}
    assert unneeded == {"faiss_missing"}  # it is installed wherever the tests run


def test_a_buffer_that_survives_zero_grad_is_left_alone(bare_toolbox, monkeypatch):
    repair = compat.REPAIRS["contiguous_zero_grad"]
    assert repair.is_broken()
    zero_grad = torch.optim.Optimizer.zero_grad
    monkeypatch.setattr(  # the default of torch < 2
        torch.optim.Optimizer, "zero_grad", lambda self, set_to_none=False: zero_grad(
            self, set_to_none))
    original = ContiguousParams.make_params_contiguous
    repair.apply()
    assert not repair.is_broken() and not repair.applied
    assert ContiguousParams.make_params_contiguous is original


@pytest.mark.parametrize("name", [
    pytest.param("jaccard_without_cuda", marks=CPU_ONLY), "contiguous_zero_grad",
    "preprocess_in_place", "random_affine", "sampler_hang", "sampler_state", "unknown_key",
    "unknown_name"])
def test_a_probe_sees_the_defect_without_the_repair_and_none_with_it(name):
    repair = compat.REPAIRS[name]
    with compat.without(name):
        assert repair.is_broken()
    assert not repair.is_broken() and repair.applied
