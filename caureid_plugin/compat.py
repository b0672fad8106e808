"""Makes FastReID 1.4.0, unmodified, run on current Python, PyTorch and NumPy, with or without CUDA.

This is the only module that touches the toolbox's internals. Each defect has one repair: a
function under ``@_repair`` that names the upstream location, the symptom and the versions where it
was seen. None asks for a version: where the defect can be shown cheaply and without side effects,
a probe runs the code and looks, and the repair is left out if the defect is gone; the others wrap
the toolbox's function in a check or a default that does no harm to a toolbox without the defect.
``docs/compatibility.md`` lists the repairs; ``tests/compat/`` switches each off in turn and watches
the defect come back.

``REPAIRS[name].revert()`` and ``.apply()`` switch one repair; :func:`without` does both around a
block.
"""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import copy
import dataclasses
import datetime
import difflib
import errno
import functools
import glob
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import io
import logging
import os
import random
import re
import shlex
import signal
import stat
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import types
import urllib.parse
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image, UnidentifiedImageError
from torch.distributed.elastic.multiprocessing.errors import record

from . import resume as _resume
from . import run_lock
from .clustering import Search, jaccard_distances, standardize_by_camera
from .files import remove_leftovers, write_atomically
from .launcher import PortError, check_address, check_port, run_processes
from .safe_load import (
    CodeInFile,
    DamagedFile,
    find_non_finite,
    load_tensors,
    newest_that_loads,
    plain_values,
)
from .signals import StopNow, StopRequest
from .weights import check_content, find_weights, load_matching, strip, unwrap

logger = logging.getLogger("fastreid.caureid")

_INSTALL_HINT = (
    "install it with `pip install --no-deps fastreid==1.4.0` "
    "(--no-deps, because its own pins ask for torch 1.13.1)"
)


# --------------------------------------------------------------------------- import ----


@contextlib.contextmanager
def legacy_names() -> Iterator[None]:
    """Provides the names that the toolbox and its projects import and that no longer exist.

    Upstream: ``data/build.py:11-12`` (``torch._six.string_classes``, ``collections.Mapping``),
    ``evaluation/testing.py:5`` (``collections.Mapping``) and the project FastFace
    (``torch._six.container_abcs``). Symptom: ``import fastreid.data`` raises ImportError on Python
    >= 3.10 and on torch >= 2.0. The names are gone again afterwards, so that other libraries see
    the interpreter as it is.
    """
    added = []
    if not hasattr(collections, "Mapping"):
        collections.Mapping = collections.abc.Mapping
        added.append(lambda: delattr(collections, "Mapping"))
    try:
        importlib.import_module("torch._six")
    except ImportError:
        six = types.ModuleType("torch._six")
        six.string_classes, six.container_abcs = (str, bytes), collections.abc
        sys.modules["torch._six"] = six
        added.append(lambda: sys.modules.pop("torch._six", None))
    try:
        yield
    finally:
        for remove in added:
            remove()


class _FastFace:
    """Finds the part of FastFace that imports one of :func:`legacy_names`, and provides them.

    Upstream: ``fastface/utils_amp.py:10`` of FastReID's repository. Symptom: the project cannot be
    imported on torch >= 2.0. Its scripts import it after the toolbox, when the names are gone.
    """

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> importlib.machinery.ModuleSpec | None:
        if name != "fastface.utils_amp":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                with legacy_names():
                    execute(module)

            spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _FastFace)


@contextlib.contextmanager
def faiss_stand_in() -> Iterator[None]:
    """Lets modules of the toolbox be imported where faiss is not installed.

    Upstream: ``utils/compute_dist.py:10``, ``utils/faiss_utils.py:4`` and ``evaluation/roc.py:9``
    import faiss, which only the dense Jaccard distance uses. Symptom: without faiss nothing of
    the toolbox can be imported. Modules imported inside the block keep a stand-in that says, when
    it is used, what to install; ``import faiss`` afterwards fails as before. Where faiss is
    installed nothing happens, also if it is broken: its own error is the one to see.
    """
    if not _faiss_is_missing():
        yield
        return
    stand_in = types.ModuleType("faiss")
    stand_in.__getattr__ = _missing_faiss_attribute
    stand_in.METRIC_L2 = 1  # faiss_utils.py:49 makes it a default argument
    blocked = "faiss" in sys.modules  # as None
    sys.modules["faiss"] = stand_in
    try:
        yield
    finally:
        if blocked:
            sys.modules["faiss"] = None
        else:
            del sys.modules["faiss"]


class _Later(types.ModuleType):
    """Stands in for a module, which is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> object:
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def slow_imports_later() -> Iterator[None]:
    """Lets the toolbox be imported without scikit-learn and TensorBoard.

    Upstream: ``evaluation/reid_evaluation.py:15`` imports ``sklearn.metrics`` for the ROC curve
    alone, ``solver/optim/lamb.py:9`` TensorBoard's ``SummaryWriter`` for an annotation. Symptom:
    every program pays for both, a quarter of the import. Inside the block the two names are
    stand-ins that import the real ones when they are used. Another thread that imports them at the
    same moment meets the stand-ins. What is not installed has none: its own error is shown.
    """

    def SummaryWriter(*args: object, **options: object) -> object:
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter(*args, **options)

    stand_ins = {"sklearn": {"metrics": _Later("sklearn.metrics")},
                 "torch.utils.tensorboard": {"SummaryWriter": SummaryWriter}}
    found = {name: importlib.util.find_spec(name) for name in stand_ins if name not in sys.modules}
    added = [name for name, spec in found.items() if spec is not None]
    for name in added:
        stand_in = types.ModuleType(name)
        stand_in.__spec__ = found[name]  # torch asks what is installed
        vars(stand_in).update(stand_ins[name])
        sys.modules[name] = stand_in
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def _faiss_is_missing() -> bool:
    return importlib.util.find_spec("faiss") is None


def _missing_faiss_attribute(name: str) -> None:
    if name.startswith("__"):  # asked for by whoever looks at modules, not by the toolbox
        raise AttributeError(f"the stand-in for faiss has no {name}")
    raise ImportError(f"faiss.{name} of FastReID needs faiss, which is not installed: pip install "
                      "'caureid-plugin[faiss-cpu]' (or [faiss-gpu]).")


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _import_toolbox() -> None:
    found = importlib.util.find_spec("fastreid")
    if found is None or found.origin is None:  # a mere folder of that name has no origin
        raise ImportError(f"FastReID is not installed: {_INSTALL_HINT}.")
    both = [name for name in ("faiss-cpu", "faiss-gpu") if _is_installed(name)]
    if len(both) > 1:
        warnings.warn(f"{' and '.join(both)} are both installed, and overwrite each other's files: "
                      "uninstall both, then install one of them.", stacklevel=2)
    with legacy_names(), faiss_stand_in():
        try:
            with slow_imports_later():
                _import_parts()
        except ImportError:  # a fork of the toolbox may import more of scikit-learn
            _import_parts()


def _import_parts() -> None:
    for name in ("config", "data", "engine", "evaluation", "modeling", "solver", "utils"):
        importlib.import_module(f"fastreid.{name}")
    for name in ("compute_dist", "checkpoint", "comm", "events", "params"):
        importlib.import_module(f"fastreid.utils.{name}")


_import_toolbox()

import fastreid.data.build as _data_build  # noqa: E402
import fastreid.data.data_utils as _data_utils  # noqa: E402
import fastreid.data.transforms.build as _transforms_build  # noqa: E402
import fastreid.engine.defaults as _defaults  # noqa: E402
import fastreid.engine.hooks as _hooks  # noqa: E402
import fastreid.engine.train_loop as _train_loop  # noqa: E402
import fastreid.evaluation.clas_evaluator as _clas_evaluator  # noqa: E402
import fastreid.evaluation.rank_cylib as _rank_cylib  # noqa: E402
import fastreid.modeling.backbones.build as _backbones_build  # noqa: E402
import fastreid.modeling.meta_arch.build as _meta_build  # noqa: E402
import fastreid.solver.build as _solver_build  # noqa: E402
import fastreid.utils.checkpoint as _checkpoint  # noqa: E402
import fastreid.utils.compute_dist as _compute_dist  # noqa: E402
import fastreid.utils.events as _events  # noqa: E402
from fastreid.config import CfgNode, get_cfg  # noqa: E402
from fastreid.data import samplers as _samplers  # noqa: E402
from fastreid.data.common import CommDataset as _CommDataset  # noqa: E402
from fastreid.data.datasets import bases as _bases  # noqa: E402
from fastreid.data.datasets import dukemtmcreid as _duke  # noqa: E402
from fastreid.data.datasets import market1501 as _market  # noqa: E402
from fastreid.data.datasets import msmt17 as _msmt17  # noqa: E402
from fastreid.data.samplers import data_sampler as _data_sampler  # noqa: E402
from fastreid.data.samplers import imbalance_sampler as _imbalance_sampler  # noqa: E402
from fastreid.modeling.heads import REID_HEADS_REGISTRY, EmbeddingHead  # noqa: E402
from fastreid.modeling.meta_arch import MGN as _MGN  # noqa: E402
from fastreid.modeling.meta_arch import Baseline as _Baseline  # noqa: E402
from fastreid.modeling.meta_arch import Distiller as _Distiller  # noqa: E402
from fastreid.modeling.meta_arch import MoCo as _MoCo  # noqa: E402
from fastreid.utils import comm  # noqa: E402
from fastreid.utils.env import seed_all_rng  # noqa: E402
from fastreid.utils.params import ContiguousParams  # noqa: E402
from fastreid.utils.registry import Registry  # noqa: E402

# `fastreid.engine.launch` is the function: the package overwrites the submodule's name.
_launch = sys.modules["fastreid.engine.launch"]

# One warning for every image, from data/transforms/functional.py:46 in every worker; the call
# itself works.
warnings.filterwarnings("ignore", message="TypedStorage is deprecated", category=UserWarning)

TOOLBOX_LOSSES = ("CrossEntropyLoss", "TripletLoss", "CircleLoss", "Cosface")
MGN_LOSSES = TOOLBOX_LOSSES[:2]  # its chain leaves the pairwise ones out
"""Names that the toolbox's meta-architectures understand in ``MODEL.LOSSES.NAME``."""
PLUGIN_LOSSES = {"CACCLoss": "loss_cacc", "CameraSeparationLoss": "loss_camsep",
                 "InfoNCELoss": "loss_infonce"}
"""The plugin's, and the names of their scalars."""


# ------------------------------------------------------------------------- framework ----


class _Patches:
    """Remembers every replaced attribute, so that a repair can be taken back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def set(self, owner: object, name: str, value: object) -> None:
        if name in vars(owner):
            self._undo.append(functools.partial(setattr, owner, name, vars(owner)[name]))
        else:
            self._undo.append(functools.partial(delattr, owner, name))
        setattr(owner, name, value)

    def everywhere(self, old: object, new: object) -> None:
        """Replaces ``old`` under every name by which a loaded toolbox module knows it."""
        for module_name, module in list(sys.modules.items()):
            if module is None or module_name.split(".")[0] != "fastreid":
                continue
            for name, value in list(vars(module).items()):
                if value is old:
                    self.set(module, name, new)

    def revert(self) -> None:
        while self._undo:
            self._undo.pop()()


@dataclasses.dataclass
class Repair:
    """One mended defect of the toolbox.

    Attributes:
        name: short name.
        upstream: file and line in FastReID 1.4.0.
        symptom: what a user saw.
        versions: where it was seen.
        is_broken: probe that shows the defect; the repair is applied only where it returns True.
    """

    name: str
    upstream: str
    symptom: str
    versions: str
    is_broken: Callable[[], bool]
    _change: Callable[[_Patches], None]
    _patches: _Patches | None = None

    @property
    def applied(self) -> bool:
        return self._patches is not None

    def apply(self) -> None:
        """Applies the repair if it is not applied already and the defect is there."""
        if not self.applied and self.is_broken():
            self._switch_on()

    def _switch_on(self) -> None:
        self._patches = _Patches()
        self._change(self._patches)

    def revert(self) -> None:
        if self._patches is not None:
            self._patches.revert()
            self._patches = None


REPAIRS: dict[str, Repair] = {}


def _always() -> bool:
    return True


def _repair(*, upstream: str, symptom: str, versions: str, broken: Callable[[], bool] = _always):
    def register(change: Callable[[_Patches], None]):
        name = change.__name__.strip("_")
        REPAIRS[name] = Repair(name, upstream, symptom, versions, broken, change)
        return change

    return register


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """Switches one repair off for a block, for tests and for reproducing a defect.

    Repairs applied after it are taken back first and applied again, because several may wrap the
    same function.

    Raises:
        KeyError: no repair of that name.
    """
    if name not in REPAIRS:
        raise KeyError(f"There is no repair {name!r}, known are {sorted(REPAIRS)}.")
    applied = [repair for repair in REPAIRS.values() if repair.applied]
    for repair in reversed(applied):
        repair.revert()
    for repair in applied:
        if repair.name != name:
            repair._switch_on()  # it was needed before: not probed again
    try:
        yield
    finally:
        for repair in reversed(applied):
            repair.revert()
        for repair in applied:
            repair._switch_on()


def apply_all() -> None:
    """Applies every repair whose defect is present. Called once, on import of the plugin."""
    for repair in REPAIRS.values():
        repair.apply()


def _raises(action: Callable[[], object], kind: type[BaseException] = Exception) -> bool:
    try:
        action()
    except kind:
        return True
    return False


# ------------------------------------------------------------------------ optimisation ----


def _flat_buffer_gets_no_gradient() -> bool:
    weight = torch.nn.Parameter(torch.ones(2))
    wrapper = ContiguousParams(
        [{"freeze_status": "normal", "params": [weight], "lr": 0.1, "weight_decay": 0.0}]
    )
    optimizer = torch.optim.SGD(wrapper.contiguous(), lr=0.1)
    optimizer.zero_grad()
    weight.sum().backward()
    return optimizer.param_groups[0]["params"][0].grad is None


Member = tuple[torch.nn.Parameter, torch.Tensor]  # a weight, and its place in the flat gradient


@torch.no_grad()
def _gather(members: Sequence[Member]) -> None:
    """Brings gradients that somebody has replaced, or set to None, back to their places."""
    for weight, place in members:
        if weight.grad is not place:
            place.zero_() if weight.grad is None else place.copy_(weight.grad)
            weight.grad = place


def _receive(flat: torch.Tensor, gradient: torch.Tensor, members: Sequence[Member]) -> None:
    """Has the flat gradient ready whenever a weight of the buffer is about to receive its own."""

    def make_ready(weight: torch.nn.Parameter, place: torch.Tensor, start: int, _) -> None:
        if weight.data_ptr() != start:  # in the buffer of a later optimizer
            return
        if flat.grad is None:  # zero_grad() of the optimizer
            gradient.zero_()
            flat.grad = gradient
        if weight.grad is not place:  # zero_grad() of the model
            _gather(members)

    for weight, place in members:
        if weight.requires_grad:
            hook = functools.partial(make_ready, weight, place, weight.data_ptr())
            # no warning when a whole model is saved
            weight.register_hook(torch.utils.hooks.unserializable_hook(hook))


@_repair(
    upstream="utils/params.py:53-70 (make_params_contiguous), solver/build.py:180-209 "
    "(build_optimizer)",
    symptom="trains nothing, silently: zero_grad(), of the optimizer or of the model, takes the "
    "flat buffer's gradient away, later gradients go where no optimizer reads, no weight learns; "
    "nor does one where the model is moved behind its optimizer",
    versions="torch >= 2.0 (set_to_none became the default)",
    broken=_flat_buffer_gets_no_gradient,
)
def _contiguous_zero_grad(patch: _Patches) -> None:
    make, build = ContiguousParams.make_params_contiguous, _solver_build.build_optimizer

    @functools.wraps(make)
    def make_params_contiguous(self):
        make(self)
        self.flats: list[tuple[torch.Tensor, torch.Tensor, list[Member]]] = []
        groups = zip(self._param_buffer, self._grad_buffer, self._group_dict.values(), strict=True)
        for flat, gradient, entries in groups:
            weights = [entry["params"][0] for entry in entries]
            members = [(weight, weight.grad) for weight in weights]
            _receive(flat, gradient, members)
            self.flats.append((flat, gradient, members))

    @functools.wraps(build)
    def build_optimizer(cfg, model, *args, **kwargs):
        optimizer, wrapper = build(cfg, model, *args, **kwargs)
        if hasattr(wrapper, "flats"):  # it is a list where no flat buffer is asked for
            alive = weakref.ref(model)
            optimizer.register_step_pre_hook(lambda *_: _check_buffer(wrapper, alive()))
        return optimizer, wrapper

    patch.set(ContiguousParams, "make_params_contiguous", make_params_contiguous)
    patch.everywhere(build, build_optimizer)


def _check_buffer(wrapper: ContiguousParams, model: torch.nn.Module | None) -> None:
    for flat, gradient, members in wrapper.flats:
        # gradients that were put there by hand, behind zero_grad() of the optimizer
        if flat.grad is None and any(weight.grad is not None and weight.grad is not place
                                     for weight, place in members):
            gradient.zero_()
            flat.grad = gradient
        _gather(members)
    known = {id(weight) for _, _, members in wrapper.flats for weight, _ in members}
    replaced = model is not None and not any(id(weight) in known for weight in model.parameters())
    if replaced or not wrapper.buffer_is_valid():
        raise ValueError(
            "The optimizer moves weights that the model no longer has: the model was moved or "
            "converted (to(), cuda(), half(), load_state_dict(assign=True)), or got another "
            "optimizer, after this one was built. "
            "Call fastreid.solver.build_optimizer afterwards.")


class WeightsMovedGuard(_train_loop.HookBase):
    """Stops a run in which no weight has moved after its first steps.

    Where some layers are frozen at first, the others have to move; where all are, as in the
    toolbox's configs of MGN, the guard waits until they are free, and warns if the run is shorter.

    Args:
        steps: number of steps to wait. Mixed precision may skip steps while it looks for its loss
            scale, so :func:`_weights_guard` waits longer there.
        freeze_layers: beginnings of the names of weights (regular expressions) that the optimizer
            leaves alone at first (MODEL.FREEZE_LAYERS).
        freeze_iters: for how many steps (SOLVER.FREEZE_ITERS).

    Raises:
        RuntimeError: after ``steps`` steps (or at the end of a shorter run) with every parameter
            that is trained equal to its first value.
    """

    def __init__(self, steps: int = 10, freeze_layers: Sequence[str] = (),
                 freeze_iters: int = 0) -> None:
        self._steps = steps
        self._freeze_layers = freeze_layers if freeze_iters > 0 else ()
        self._freeze_iters = freeze_iters
        self._watched: list[tuple[torch.nn.Parameter, torch.Tensor]] | None = None
        self._wait = steps

    def _is_frozen(self, name: str) -> bool:
        # DistributedDataParallel is built around the model after the optimizer
        name = name.removeprefix("module.")
        return any(re.match(layer, name) for layer in self._freeze_layers)

    def before_train(self) -> None:
        trained = {name: p for name, p in self.trainer.model.named_parameters() if p.requires_grad}
        free = {name: p for name, p in trained.items() if not self._is_frozen(name)}
        self._wait = self._steps
        frozen = self._freeze_iters - self.trainer.start_iter  # of the steps of a resumed run
        if trained and not free:
            free, self._wait = trained, max(frozen, 0) + self._steps
            length = self.trainer.max_iter - self.trainer.start_iter
            if 0 < length <= frozen:
                logger.warning(
                    "This run trains nothing: MODEL.FREEZE_LAYERS %s freezes every weight for "
                    "SOLVER.FREEZE_ITERS %d steps, and the run has %d. Lower FREEZE_ITERS.",
                    list(self._freeze_layers), self._freeze_iters, length)
                return
        self._watched = [(p, p.detach().clone()) for p in free.values()]

    def after_step(self) -> None:
        if self._watched is None:
            return
        done = self.trainer.iter - self.trainer.start_iter + 1
        if done < self._wait and self.trainer.iter + 1 < self.trainer.max_iter:
            return
        watched, self._watched = self._watched, None
        if any(not torch.equal(old, new) for new, old in watched):
            return
        raise RuntimeError(
            f"No weight has moved after {done} training steps: the optimizer is not connected to "
            "the model, every parameter is frozen, or the learning rate is 0. Check "
            "SOLVER.BASE_LR, MODEL.FREEZE_LAYERS and that `import caureid_plugin` comes before "
            "the trainer is built."
        )


@_repair(
    upstream="engine/defaults.py:190-239 (DefaultTrainer.__init__)",
    symptom="nothing notices a run that does not train",
    versions="all",
)
def _weights_guard(patch: _Patches) -> None:
    original = _defaults.DefaultTrainer.__init__

    @functools.wraps(original)
    def init(self, cfg):
        original(self, cfg)
        self.register_hooks([WeightsMovedGuard(
            30 if cfg.SOLVER.AMP.ENABLED else 10, cfg.MODEL.FREEZE_LAYERS,
            cfg.SOLVER.FREEZE_ITERS)])

    patch.set(_defaults.DefaultTrainer, "__init__", init)


@_repair(
    upstream="engine/hooks.py:457-500 (LayerFreeze), solver/build.py:120-154 "
    "(_generate_optimizer_class_with_freeze_layer), :180-209 (build_optimizer)",
    symptom="MODEL.FREEZE_LAYERS: a resumed run freezes them anew for SOLVER.FREEZE_ITERS steps, "
    "an evaluation sets their batch norm back to training, `heads` is an IndexError of the first "
    "step, and a name that no weight begins with freezes nothing, silently",
    versions="all",
)
def _frozen_layers(patch: _Patches) -> None:
    generate = _solver_build._generate_optimizer_class_with_freeze_layer
    build = _solver_build.build_optimizer
    init, before_step = _hooks.LayerFreeze.__init__, _hooks.LayerFreeze.before_step

    @functools.wraps(generate)
    def generate_(optimizer, *, freeze_iters=0):
        kind = generate(optimizer, freeze_iters=freeze_iters)
        frozen_step = kind.step

        def step(self, closure=None):
            first = self.param_groups[0]  # in the optimizer's checkpoint, unlike its own counter
            done = first.setdefault(_FROZEN_STEPS, 0)
            if done >= freeze_iters:
                return optimizer.step(self, closure)
            first[_FROZEN_STEPS] = done + 1
            return frozen_step(self, closure)

        kind.step = step
        return kind

    @functools.wraps(build)
    def build_optimizer(cfg, model, *args, **kwargs):
        if cfg.SOLVER.FREEZE_ITERS > 0:
            _check_frozen_layers(cfg.MODEL.FREEZE_LAYERS, model)
        return build(cfg, model, *args, **kwargs)

    @functools.wraps(init)
    def init_(self, model, freeze_layers, freeze_iters):
        init(self, model, freeze_layers, freeze_iters)
        heads = [name for name, part in self.model.named_children() if name in freeze_layers
                 and type(part).__name__ in registered_names(REID_HEADS_REGISTRY)]
        if heads:
            raise ValueError(
                f"MODEL.FREEZE_LAYERS {list(freeze_layers)} has {heads[0]!r}, the head: frozen as "
                "in evaluation, it would give no losses. Take it out, or write "
                f"'{heads[0]}.' to freeze its weights alone.")

    @functools.wraps(before_step)
    def before_step_(self):
        # a checkpoint without it is the toolbox's
        self.trainer.optimizer.param_groups[0].setdefault(_FROZEN_STEPS, self.trainer.start_iter)
        before_step(self)
        for name, part in self.model.named_children():
            if self.is_frozen and name in self.freeze_layers:
                part.eval()

    patch.set(_solver_build, "_generate_optimizer_class_with_freeze_layer", generate_)
    patch.everywhere(build, build_optimizer)
    patch.set(_hooks.LayerFreeze, "__init__", init_)
    patch.set(_hooks.LayerFreeze, "before_step", before_step_)


_FROZEN_STEPS = "frozen_steps"


def _check_frozen_layers(layers: Sequence[str], model: torch.nn.Module) -> None:
    for layer in layers:
        try:
            matches = any(re.match(layer, name) for name, _ in model.named_parameters())
        except re.error as error:
            raise ValueError(f"MODEL.FREEZE_LAYERS {list(layers)}: {layer!r} is no regular "
                             f"expression ({error}).") from error
        if not matches:
            parts = [name for name, _ in model.named_children()]
            raise ValueError(f"MODEL.FREEZE_LAYERS {list(layers)}: the name of no weight begins "
                             f"with {layer!r}; the network has {parts}.")


@_repair(
    upstream="engine/defaults.py:218 (iters_per_epoch = N // batch)",
    symptom="an epoch has N // batch iterations: 0 for small data (ZeroDivisionError in the "
    "scheduler, or a run without a step), 202 for Market-1501 where the literature uses 400",
    versions="all",
)
def _iters_per_epoch(patch: _Patches) -> None:
    original = _defaults.DefaultTrainer.__init__

    @functools.wraps(original)
    def init(self, cfg):
        self._configured_iters = int(cfg.SOLVER.get("ITERS_PER_EPOCH", 0))
        original(self, cfg)

    def get(self) -> int:
        return self._iters_per_epoch

    def put(self, value: int) -> None:
        configured = getattr(self, "_configured_iters", 0)
        if configured < 0:
            raise ValueError(f"SOLVER.ITERS_PER_EPOCH {configured} must be positive, or 0 for "
                             "number of images // SOLVER.IMS_PER_BATCH.")
        count = configured or value
        if count < 1:
            raise ValueError(
                f"An epoch would have {count} iterations: the training set has fewer images than "
                "SOLVER.IMS_PER_BATCH. Set SOLVER.ITERS_PER_EPOCH to a positive number or lower "
                "SOLVER.IMS_PER_BATCH."
            )
        self._iters_per_epoch = count

    patch.set(_defaults.DefaultTrainer, "__init__", init)
    patch.set(_defaults.DefaultTrainer, "iters_per_epoch", property(get, put))


@_repair(
    upstream="engine/train_loop.py:335 (AMPTrainer.run_step), :325-327 (GradScaler)",
    symptom="mixed precision, which all SBS and bagtricks configs ask for, dies on the CPU with a "
    "bare assertion at the first step, after data and model are built",
    versions="all",
)
def _amp_needs_cuda(patch: _Patches) -> None:
    amp = _train_loop.AMPTrainer
    original, step = amp.__init__, amp.run_step

    @functools.wraps(original)
    def init(self, model, data_loader, optimizer, param_wrapper, grad_scaler=None):
        if not _on_cuda(model):
            logger.warning("SOLVER.AMP.ENABLED is True, but mixed precision needs a CUDA device "
                           "and this run uses the CPU: training in full precision.")
            with warnings.catch_warnings():  # the constructor says the same in other words
                warnings.simplefilter("ignore")
                grad_scaler = torch.cuda.amp.GradScaler(enabled=False)
        original(self, model, data_loader, optimizer, param_wrapper, grad_scaler)

    @functools.wraps(step)
    def run_step(self):
        # super() in a subclass's own run_step arrives here as well
        (step if _on_cuda(self.model) else _train_loop.SimpleTrainer.run_step)(self)

    patch.set(amp, "__init__", init)
    patch.set(amp, "run_step", run_step)


def _on_cuda(model: torch.nn.Module) -> bool:
    return next(model.parameters()).device.type == "cuda"


# ------------------------------------------------------------------------------ device ----


@_repair(
    upstream="modeling/meta_arch/build.py:25 with config/defaults.py:23 (MODEL.DEVICE = "
    "'cuda')",
    symptom="every config asks for CUDA; without it the model cannot be built",
    versions="all",
)
def _default_device(patch: _Patches) -> None:
    original = _meta_build.build_model

    @functools.wraps(original)
    def build_model(cfg):
        if str(cfg.MODEL.DEVICE).startswith("cuda") and not torch.cuda.is_available():
            logger.info("MODEL.DEVICE is %r, but there is no CUDA device: running on the CPU.",
                        cfg.MODEL.DEVICE)
            frozen, cfg = cfg.is_frozen(), cfg.clone()
            cfg.defrost()
            cfg.MODEL.DEVICE = "cpu"
            if frozen:
                cfg.freeze()
        return original(cfg)

    patch.everywhere(original, build_model)


class DeviceLoader(torch.utils.data.DataLoader):
    """Stands in for the toolbox's ``DataLoaderX``: same constructor, CPU or CUDA, no own thread.

    Starts its workers at the first batch, not at ``iter()``, so that a loader which is replaced
    before it is used costs nothing. With CUDA, batches come from pinned memory and are copied to
    the device without waiting. :meth:`shutdown` ends the workers.
    """

    def __init__(self, local_rank: int, **kwargs) -> None:
        cuda = torch.cuda.is_available()
        kwargs["pin_memory"] = kwargs.get("pin_memory", False) and cuda
        # Its own: iterating draws a seed for the workers, and must not move the generator that a
        # run is to find where it was, whenever it goes on.
        own = torch.Generator()
        own.manual_seed(random.getrandbits(62))
        defaults = {"worker_init_fn": _outlive_signals, "generator": own}
        if kwargs.get("num_workers") and sys.platform == "linux":
            # a process that was spawned would spawn its workers, each importing everything anew
            defaults["multiprocessing_context"] = "fork"
        super().__init__(**{**defaults, **kwargs})
        # DataLoader refuses attributes it knows; these are ours.
        self.target_device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
        self._running: Iterator | None = None

    def __iter__(self):
        self.shutdown()
        start = super().__iter__
        if self.worker_init_fn is _outlive_signals:
            start = functools.partial(_shielded, start)
        self._running = _batches(start, self.target_device)
        return self

    def __next__(self):
        if self._running is None:
            raise StopIteration
        return next(self._running)

    def shutdown(self) -> None:
        """Ends the worker processes; the loader can be iterated again."""
        if self._running is not None:
            self._running.close()
            self._running = None


def _outlive_signals(worker_id: int) -> None:
    """Lets a loader's worker go on through a signal that was sent to all processes of a job.

    The training process finishes its step first, and ends its workers itself. A second SIGTERM is
    obeyed, so that a worker which hangs in its file system can be ended.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _TO_WORKERS)


# a Ctrl-C that comes while one is forked would be lost in Python's own hooks
_TO_WORKERS = {signal.SIGTERM, signal.SIGHUP, signal.SIGINT}


def _shielded(start: Callable[[], Iterator]) -> Iterator:
    """Starts workers with signals held back until they are ready for them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TO_WORKERS)
    try:
        return start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _batches(start: Callable[[], Iterator], device: torch.device) -> Iterator:
    source = start()
    del start  # it holds the loader: the cycle would keep the workers until the next collection
    try:
        for batch in source:
            yield to_device(batch, device)
    finally:
        # not left to the destructor: after an error the traceback keeps the iterator alive
        if hasattr(source, "_shutdown_workers"):
            source._shutdown_workers()


def to_device(batch: dict, device: torch.device) -> dict:
    """The batch with its tensors on the device; other values stay."""
    return {key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for key, value in batch.items()}


@_repair(
    upstream="data/data_utils.py:82-202 (BackgroundGenerator, DataLoaderX)",
    symptom="every loader needs CUDA; each one keeps a thread and its workers for ever, and starts "
    "them when the trainer is built, before anybody has asked for a batch; in a run of several "
    "processes workers are spawned, not forked, and each imports everything anew",
    versions="all",
)
def _train_loader(patch: _Patches) -> None:
    patch.everywhere(_data_utils.DataLoaderX, DeviceLoader)


@_repair(
    upstream="data/build.py:124 (build_reid_test_loader, num_workers=4)",
    symptom="DATALOADER.NUM_WORKERS does not reach the test loader, which always starts four",
    versions="all",
)
def _test_loader_workers(patch: _Patches) -> None:
    original = _data_build.build_reid_test_loader

    @functools.wraps(original)
    def build_reid_test_loader(*args, **kwargs):
        cfg = kwargs.get("cfg", args[0] if args else None)
        if not isinstance(cfg, CfgNode):
            return original(*args, **kwargs)
        explicit = _data_build._test_loader_from_config(*args, **kwargs)
        workers = kwargs.get("num_workers", cfg.DATALOADER.NUM_WORKERS)
        return original(**explicit, num_workers=workers)

    patch.everywhere(original, build_reid_test_loader)


def _jaccard_needs_cuda() -> bool:
    # with CUDA the call would open a context on the first device, whatever the rank
    return torch.cuda.is_available() or _raises(
        lambda: _compute_dist.compute_jaccard_distance(torch.eye(4), k1=2, k2=1))


@_repair(
    upstream="utils/compute_dist.py:68 (features.cuda()) with :76,82 and utils/faiss_utils.py:115",
    symptom="compute_jaccard_distance with its default search_option fails without CUDA or "
    "without faiss-gpu",
    versions="all",
    broken=_jaccard_needs_cuda,
)
def _jaccard_without_cuda(patch: _Patches) -> None:
    original = _compute_dist.compute_jaccard_distance

    @functools.wraps(original)
    def compute_jaccard_distance(features, k1=20, k2=6, search_option=0, fp16=False):
        if not (torch.cuda.is_available() and hasattr(_compute_dist.faiss, "StandardGpuResources")):
            features, search_option = features.cpu(), 3
        return original(features, k1=k1, k2=k2, search_option=search_option, fp16=fp16)

    patch.everywhere(original, compute_jaccard_distance)


@_repair(
    upstream="modeling/meta_arch/baseline.py:99 (forward) with data/data_utils.py:186 (preload)",
    symptom="MODEL.DEVICE cpu on a machine with CUDA: the loader's batches are on the GPU, the "
    "model is not",
    versions="all",
)
def _batch_on_other_device(patch: _Patches) -> None:
    original = _Baseline.forward

    @functools.wraps(original)
    def forward(self, batched_inputs):
        if isinstance(batched_inputs, dict):
            batched_inputs = to_device(batched_inputs, self.device)
        return original(self, batched_inputs)

    patch.set(_Baseline, "forward", forward)


def _preprocessing_changes_its_input() -> bool:
    model = types.SimpleNamespace(pixel_mean=torch.ones(1), pixel_std=torch.ones(1))
    images = torch.zeros(1, 3, 1, 1)
    _Baseline.preprocess_image(model, {"images": images})
    return bool(images.any())


@_repair(
    upstream="modeling/meta_arch/baseline.py:130 and mgn.py:256 (images.sub_().div_() in place)",
    symptom="TEST.FLIP.ENABLED normalises the flipped images twice, so half of every averaged "
    "feature comes from a wrong image; the caller's batch is changed as well",
    versions="all",
    broken=_preprocessing_changes_its_input,
)
def _preprocess_in_place(patch: _Patches) -> None:
    def on_a_copy(original):
        @functools.wraps(original)
        def preprocess_image(self, batched_inputs):
            if isinstance(batched_inputs, dict):
                batched_inputs = {**batched_inputs, "images": batched_inputs["images"].clone()}
            elif isinstance(batched_inputs, torch.Tensor):
                batched_inputs = batched_inputs.clone()
            return original(self, batched_inputs)

        return preprocess_image

    for architecture in (_Baseline, _MGN):
        patch.set(architecture, "preprocess_image", on_a_copy(architecture.preprocess_image))


# ------------------------------------------------------------------- several processes ----


def _ddp(model, device_ids=None, **kwargs):
    on_cpu = next(model.parameters()).device.type == "cpu"
    synced = [name for name, part in model.named_modules()
              if on_cpu and isinstance(part, torch.nn.SyncBatchNorm)]
    if synced:
        raise ValueError(
            "syncBN needs a GPU for each process, and several processes on the CPU have it, first "
            f"in {synced[0]}: set MODEL.BACKBONE.NORM and MODEL.HEADS.NORM to BN, or train in one "
            "process (--num-gpus 1).")
    return torch.nn.parallel.DistributedDataParallel(
        model, device_ids=None if on_cpu else device_ids, **kwargs)


@_repair(
    upstream="engine/defaults.py:211 (DistributedDataParallel(device_ids=[rank]))",
    symptom="several processes on the CPU: ValueError, device_ids is for GPU modules; with syncBN "
    "an error that names no key",
    versions="all",
)
def _ddp_on_cpu(patch: _Patches) -> None:
    patch.set(_defaults, "DistributedDataParallel", _ddp)


# Seconds that a process waits for all the others of a run to start.
JOIN_SECONDS = 300.0
# Seconds that a process waits for another in the middle of a run. The first one alone saves, ranks
# and clusters, which may take long; torch's own limit for gloo.
HANG_SECONDS = 1800.0
# Seconds in which all processes that wait for one that hangs notice it; the launcher's patience
# with those that are left is longer.
NOTICE_SECONDS = 3.0


def _init_process(rank: int, local_rank: int, local_size: int, world_size: int, url: str,
                  join_seconds: float = JOIN_SECONDS) -> None:
    """Joins the process group and sets the group of this machine, as the toolbox's comm needs."""
    cuda = torch.cuda.is_available()
    if cuda and local_size > torch.cuda.device_count():
        raise ValueError(
            f"--num-gpus {local_size} was asked for, but this machine has "
            f"{torch.cuda.device_count()} CUDA devices.")
    if cuda:
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))
    known = ({"store": _meet(rank, local_size, world_size, url, join_seconds)}
             if url.startswith("tcp://") else {"init_method": url})
    torch.distributed.init_process_group(
        "nccl" if cuda else "gloo", world_size=world_size, rank=rank,
        timeout=datetime.timedelta(seconds=HANG_SECONDS), **known)
    for machine in range(world_size // local_size):
        ranks = list(range(machine * local_size, (machine + 1) * local_size))
        group = torch.distributed.new_group(ranks)
        if rank in ranks:
            comm._LOCAL_PROCESS_GROUP = group
    comm.synchronize()


def _meet(rank: int, local_size: int, world_size: int, url: str, seconds: float):
    """Waits until all processes of the run are there; returns the store through which they talk.

    Raises:
        RuntimeError: they did not all come within the time, or two have the same rank.
    """
    machines = (f"--num-machines {world_size // local_size} with --num-gpus {local_size} each at "
                f"--dist-url {url}")
    limit, start = datetime.timedelta(seconds=seconds), time.monotonic()
    try:
        store, _, _ = next(torch.distributed.rendezvous(url, rank, world_size, timeout=limit))
        # of processes that count otherwise there is no trace, and the wait says so
        present = [f"caureid/{world_size}/{local_size}/{other}" for other in range(world_size)]
        taken = store.add(present[rank], 1) > 1
        if not taken:
            store.wait(present, limit)
    except (RuntimeError, OSError) as error:
        raise RuntimeError(
            f"Process {rank} of {machines} waited {time.monotonic() - start:.0f} s for the others, "
            f"of {seconds:g} s (--join-timeout), and not all came, or the port is taken. Is every "
            "machine started, with the same three options and a --machine-rank of its own, and "
            "does --dist-url name machine 0 and a free port of it? For several runs on one "
            "machine, take --dist-url auto. "
            f"({type(error).__name__}: {str(error).splitlines()[0]})") from error
    if taken:
        raise RuntimeError(
            f"There are two processes {rank} of {machines}: give every machine a --machine-rank "
            "of its own, and every run a port (--dist-url auto takes a free one).")
    store.set_timeout(datetime.timedelta(seconds=HANG_SECONDS))
    return store


def _leave_process_group() -> None:
    torch.distributed.destroy_process_group()
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()


def _run_in_group(main_func, args) -> None:
    """Runs the function and leaves the group, unless it fails: others may wait in it for ever.

    Raises:
        ProcessHangs: others were waited for in vain; names them.
    """
    try:
        main_func(*args)
    except SystemExit:  # all processes have agreed to stop
        _leave_process_group()
        raise
    except Exception as error:
        has_waited = isinstance(error, RuntimeError) and _WAITED.search(str(error))
        missing = _who_is_missing(has_waited=bool(has_waited))
        if missing:
            raise ProcessHangs(
                f"{_processes_named(missing)} of {comm.get_world_size()} (counted from 0) did not "
                f"come to where process {comm.get_rank()} waited {HANG_SECONDS:g} s: look at what "
                "it does there (py-spy dump --pid shows it), at its disk and its memory. "
                "--resume goes on from the last checkpoint.") from error
        raise
    _leave_process_group()


class ProcessHangs(RuntimeError):
    """Another process did not come to where this one waited for it."""


# what gloo says of a time limit
_WAITED = re.compile(r"timed out waiting|(application|socket|wait) timeout", re.IGNORECASE)


def _processes_named(ranks: Sequence[int]) -> str:
    return f"Process {ranks[0]}" if len(ranks) == 1 else f"Processes {list(ranks)}"


def _who_is_missing(*, has_waited: bool) -> list[int]:
    """Says in the store that this process has failed; which ranks say nothing, if it has waited.

    A process that hangs is the one that does not say so: those that wait for it run into the
    time limit, and lose their connections as others do. The store is asked in a thread: where it
    does not answer, it is the first process, which keeps it, that hangs.
    """
    store = torch.distributed.distributed_c10d._get_default_store()
    rank, world_size = comm.get_rank(), comm.get_world_size()
    silent: list[int] | None = None

    def ask() -> None:
        nonlocal silent
        with contextlib.suppress(RuntimeError):  # the store is gone with the first process
            store.set(f"caureid/failed/{rank}", "")
            end = time.monotonic() + NOTICE_SECONDS
            while has_waited and silent != [] and time.monotonic() < end:
                silent = [other for other in range(world_size)
                          if not store.check([f"caureid/failed/{other}"])]
                time.sleep(0.1)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(NOTICE_SECONDS + 1.0 if has_waited else 1.0)
    if not has_waited:
        return []
    return [0] if silent is None else silent


def _worker(local_rank, main_func, world_size, local_size, machine_rank, url, join_seconds,
            args) -> None:
    rank = machine_rank * local_size + local_rank
    _init_process(rank, local_rank, local_size, world_size, url, join_seconds)
    _run_in_group(main_func, args)


def _check_machines(num_gpus: int, num_machines: int, machine_rank: int, dist_url) -> None:
    if num_gpus < 1 or num_machines < 1:
        raise PortError(f"--num-gpus {num_gpus} and --num-machines {num_machines} must be at "
                         "least 1; without CUDA, --num-gpus counts processes.")
    if not 0 <= machine_rank < num_machines:
        raise PortError(f"--machine-rank {machine_rank} must be from 0 to {num_machines - 1}: "
                         f"there are --num-machines {num_machines}.")
    if dist_url in (None, "auto"):
        if num_machines > 1:
            raise PortError("--dist-url auto works on one machine only: give tcp://host:port.")
    elif num_machines * num_gpus > 1:  # else nobody is to be met
        check_address(dist_url)
        if machine_rank == 0:
            check_port(dist_url)


def launch(main_func, num_gpus_per_machine, num_machines=1, machine_rank=0, dist_url=None, args=(),
           *, join_seconds=JOIN_SECONDS):
    """Runs ``main_func(*args)`` in every process; the toolbox's ``launch``, with or without CUDA.

    Under ``torchrun`` (which starts the processes itself) it joins the group that torchrun
    describes. Without CUDA the processes talk through gloo and share the machine's cores. How
    processes are watched over and ended: :func:`caureid_plugin.launcher.run_processes`.

    Args:
        main_func: picklable function run in every process.
        num_gpus_per_machine: processes on this machine (GPUs, or CPU processes without CUDA).
        num_machines, machine_rank: as in the toolbox.
        dist_url: ``tcp://host:port``, or "auto" for a free port of this machine.
        args: arguments of ``main_func``.
        join_seconds: for all processes of all machines to start.

    Raises:
        ValueError: numbers of processes, machines or a rank that cannot be.
        PortError: ``dist_url`` is no such address, nothing knows its host, or its port is taken on
            this machine, which is to offer it.
        ProcessError: a process failed.
        SystemExit: the run was stopped by a signal.
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        _init_process(int(env["RANK"]), int(env["LOCAL_RANK"]), int(env["LOCAL_WORLD_SIZE"]),
                      int(env["WORLD_SIZE"]), "env://")
        # so that torchrun's summary shows the error of the process that failed first
        record(_run_in_group)(main_func, args)
        return
    _check_machines(num_gpus_per_machine, num_machines, machine_rank, dist_url)
    world_size = num_machines * num_gpus_per_machine
    if world_size == 1:
        main_func(*args)
        return
    if dist_url in (None, "auto"):
        dist_url = f"tcp://127.0.0.1:{_launch._find_free_port()}"
    run_processes(
        _worker, num_gpus_per_machine, first_rank=machine_rank * num_gpus_per_machine,
        world_size=world_size, args=(main_func, world_size, num_gpus_per_machine, machine_rank,
                                     dist_url, join_seconds, args))


@_repair(
    upstream="engine/launch.py:74 (_distributed_worker)",
    symptom="several processes assert CUDA and NCCL; torchrun starts N independent runs; a signal "
    "to the launcher leaves its processes behind, the error shown may be that of a victim, and a "
    "machine that never comes is waited for half an hour",
    versions="all",
)
def _processes(patch: _Patches) -> None:
    patch.everywhere(_launch.launch, launch)


# -------------------------------------------------------------------------- evaluation ----


def _cython_cache() -> Path:
    """Folder for the evaluator compiled for this Python, NumPy and toolbox."""
    source = Path(_rank_cylib.__file__).parent
    key = hashlib.sha256(sysconfig.get_config_var("SOABI").encode() + np.__version__.encode())
    for path in sorted(source.glob("*.pyx")):
        key.update(path.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "caureid-plugin" / f"rank_cylib-{key.hexdigest()[:16]}"


_CYTHON_BUILD = """
import sys
import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
source, target, scratch = sys.argv[1:4]
names = ("rank_cy", "roc_cy")
modules = [Extension(n, [source + "/" + n + ".pyx"], include_dirs=[numpy.get_include()])
           for n in names]
setup(name="rank_cylib", ext_modules=cythonize(modules, build_dir=scratch, quiet=True),
      script_args=["-q", "build_ext", "--build-lib", target, "--build-temp", scratch])
"""


_not_compilable: set[Path] = set()


def _compile_evaluator() -> None:
    """Compiles the toolbox's Cython ranking into the user's cache; warns, once, if it cannot.

    The toolbox itself falls back to its Python ranking when the compiled module is missing.
    """
    cache = _cython_cache()
    if cache in _not_compilable:
        return
    if not cache.is_dir():
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache.parent) as scratch:
                built = Path(scratch, "built")
                subprocess.run(
                    [sys.executable, "-c", _CYTHON_BUILD, str(Path(_rank_cylib.__file__).parent),
                     str(built), str(Path(scratch, "build"))],
                    check=True, capture_output=True, text=True, cwd=scratch)
                with contextlib.suppress(OSError):  # another process was faster
                    os.replace(built, cache)
        except (OSError, subprocess.CalledProcessError) as error:
            _not_compilable.add(cache)
            reason = getattr(error, "stderr", None) or str(error)
            logger.warning(
                "FastReID's compiled evaluation is not available, its slower Python code will be "
                "used: %s", reason.strip().splitlines()[-1] if reason.strip() else error)
            return
    if str(cache) in _rank_cylib.__path__:
        return
    _rank_cylib.__path__.append(str(cache))
    importlib.invalidate_caches()
    for name, function in (("rank", "evaluate_cy"), ("roc", "evaluate_roc_cy")):
        user = sys.modules.get(f"fastreid.evaluation.{name}")
        if user is not None and not user.IS_CYTHON_AVAI:  # imported before, when there was none
            compiled = importlib.import_module(f"fastreid.evaluation.rank_cylib.{name}_cy")
            setattr(user, function, getattr(compiled, function))
            user.IS_CYTHON_AVAI = True


def prepare_evaluation() -> None:
    """Compiles the evaluator, or settles on the toolbox's Python one, before any training."""
    if comm.is_main_process() and not _evaluator_is_compiled():
        _rank_cylib.compile_helper()
    comm.synchronize()


def _evaluator_is_compiled() -> bool:
    return importlib.util.find_spec("fastreid.evaluation.rank_cylib.rank_cy") is not None


@_repair(
    upstream="evaluation/rank_cylib/__init__.py:8-20, called by evaluation/reid_evaluation.py:128",
    symptom="the evaluator is compiled by `make` with whatever `python3` is on the PATH, inside "
    "site-packages, at the first evaluation, and sys.exit(1) ends the run if that fails",
    versions="all (Python >= 3.12 has no distutils, so `make` fails there without setuptools)",
)
def _evaluator_build(patch: _Patches) -> None:
    original = _defaults.DefaultTrainer.__init__

    @functools.wraps(original)
    def init(self, cfg):
        prepare_evaluation()
        original(self, cfg)

    patch.everywhere(_rank_cylib.compile_helper, _compile_evaluator)
    patch.set(_defaults.DefaultTrainer, "__init__", init)


@_repair(
    upstream="evaluation/reid_evaluation.py:72-79 (ReidEvaluator.evaluate)",
    symptom="the evaluator ranks features as the network gives them: what needs the statistics of "
    "all of them, such as standardising by camera, has no place",
    versions="all",
)
def _ranked_features(patch: _Patches) -> None:
    original = _defaults.ReidEvaluator.evaluate

    @functools.wraps(original)
    def evaluate(self):
        # a config of the toolbox alone does not have the key
        if not getattr(self.cfg.TEST, "STANDARDIZE_BY_CAMERA", False):
            return original(self)
        own = self._predictions
        shares = comm.all_gather([(p["feats"], p["camids"]) for p in own])
        features, camids = (torch.cat([batch[place] for share in shares for batch in share])
                            for place in (0, 1))
        features = standardize_by_camera(features, camids)
        row = sum(len(batch[0]) for share in shares[:comm.get_rank()] for batch in share)
        self._predictions = []
        for prediction in own:
            rows = slice(row, row := row + len(prediction["feats"]))
            self._predictions.append({**prediction, "feats": features[rows]})
        try:
            return original(self)
        finally:
            self._predictions = own

    patch.set(_defaults.ReidEvaluator, "evaluate", evaluate)


@_repair(
    upstream="evaluation/reid_evaluation.py:41-47 (ReidEvaluator.process)",
    symptom="test images whose camera or identity is text, be it a number as in the project "
    "NAIC20, end in `'list' object has no attribute 'to'`",
    versions="all",
)
def _text_labels(patch: _Patches) -> None:
    original = _defaults.ReidEvaluator.process

    @functools.wraps(original)
    def process(self, inputs, outputs):
        texts = [key for key in ("targets", "camids") if isinstance(inputs[key], (list, tuple))]
        return original(self, {**inputs, **{key: _as_numbers(inputs, key) for key in texts}},
                        outputs)

    patch.set(_defaults.ReidEvaluator, "process", process)


def _as_numbers(inputs, key: str) -> torch.Tensor:
    numbers = []
    for place, text in enumerate(inputs[key]):
        try:
            numbers.append(int(text))
        except (TypeError, ValueError):
            what = {"targets": "identity", "camids": "camera"}[key]
            path = inputs["img_paths"][place] if "img_paths" in inputs else "a test image"
            raise ValueError(
                f"{path}: its {what} must be a whole number, got {text!r}. The dataset, one of "
                "DATASETS.TESTS, is to give each name a number, the same in query and gallery."
                ) from None
    return torch.tensor(numbers)


@_repair(
    upstream="evaluation/rank.py:156 and evaluation/reid_evaluation.py:112",
    symptom="a small gallery cannot be evaluated: fewer than 10 images raise IndexError, and the "
    "Python ranking raises ValueError when fewer than 50 count for some query",
    versions="all",
)
def _small_gallery(patch: _Patches) -> None:
    with warnings.catch_warnings():  # that it is not compiled, which comes before it is used
        warnings.simplefilter("ignore")
        original = importlib.import_module("fastreid.evaluation.rank").evaluate_rank

    @functools.wraps(original)
    def evaluate_rank(distmat, q_pids, g_pids, q_camids, g_camids, max_rank=50,
                      use_metric_cuhk03=False, use_cython=True):
        same = (q_pids[:, None] == g_pids) & (q_camids[:, None] == g_camids)
        # that metric counts identities, which are fewer
        if use_metric_cuhk03 or distmat.shape[1] - same.sum(axis=1).max(initial=0) < max_rank:
            # infinitely far: no hit, and behind every other image
            nobody = -2 - np.arange(max_rank)
            distmat = np.pad(distmat, ((0, 0), (0, max_rank)), constant_values=np.inf)
            g_pids, g_camids = np.append(g_pids, nobody), np.append(g_camids, nobody)
        return original(distmat, q_pids, g_pids, q_camids, g_camids, max_rank, use_metric_cuhk03,
                        use_cython)

    patch.everywhere(original, evaluate_rank)


@_repair(
    upstream="utils/compute_dist.py:51-54 (build_dist) with :105 and :156",
    symptom="TEST.RERANK fills two dense arrays over queries and gallery together, in Python "
    "loops, to return the Q x G part of one; with fewer images than K1, neighbour lists are padded "
    "with -1, which indexes the last image",
    versions="all",
)
def _rerank_memory(patch: _Patches) -> None:
    original = _compute_dist.build_dist

    @functools.wraps(original)
    def build_dist(feat_1, feat_2, metric="euclidean", **kwargs):
        if metric == "jaccard":
            return _rerank(feat_1, feat_2, kwargs["k1"], kwargs["k2"])
        return original(feat_1, feat_2, metric, **kwargs)

    patch.everywhere(original, build_dist)


def _rerank(query: torch.Tensor, gallery: torch.Tensor, k1: int, k2: int) -> np.ndarray:
    """Jaccard distances (Q, G), float32, of features (Q, D) and (G, D).

    Raises:
        ValueError: features that are not finite, or k1 or k2 below 1.
        MemoryError: it would not fit.
    """
    for name, value in (("K1", k1), ("K2", k2)):
        if value < 1:
            raise ValueError(f"TEST.RERANK.{name} must be at least 1, got {value}.")
    # exact whatever the size, and on the GPU if there is one, as the toolbox does it
    search = Search(backend="torch", device="cuda" if torch.cuda.is_available() else "cpu")
    try:
        # a list has only k1 neighbours to average over
        return jaccard_distances(query, gallery, k1=k1, k2=min(k1, k2), small=True, search=search)
    except MemoryError as error:
        raise MemoryError(
            f"Re-ranking {len(query)} queries against {len(gallery)} images does not fit: lower "
            f"TEST.RERANK.K1 {k1} or set TEST.RERANK.ENABLED False.") from error


@_repair(
    upstream="evaluation/roc.py:9 (import faiss), also utils/compute_dist.py:10 and "
    "utils/faiss_utils.py:4",
    symptom="nothing of the toolbox can be imported without faiss, and TEST.ROC, which imports it "
    "at the first evaluation and never uses it, ends the run",
    versions="all",
    broken=_faiss_is_missing,
)
def _faiss_missing(patch: _Patches) -> None:
    # faiss_stand_in has helped the other two, when the toolbox was imported
    original = _defaults.ReidEvaluator.evaluate

    @functools.wraps(original)
    def evaluate(self):
        if self.cfg.TEST.ROC.ENABLED:
            with faiss_stand_in():
                importlib.import_module("fastreid.evaluation.roc")  # not before it is compiled
        return original(self)

    patch.set(_defaults.ReidEvaluator, "evaluate", evaluate)


@_repair(
    upstream="engine/defaults.py:342-353 (train), engine/hooks.py:204 "
    "(PeriodicCheckpointer), :382 (EvalHook), engine/train_loop.py:153",
    symptom="training without a labelled test set fails: DATASETS.TESTS () raises IndexError, "
    "TEST.EVAL_PERIOD 0 ZeroDivisionError, and train() asserts evaluation results; an error "
    "before the first epoch is hidden behind `no attribute 'epoch'`; a run that fails in its last "
    "epoch is evaluated all the same",
    versions="all",
)
def _training_without_tests(patch: _Patches) -> None:
    train = _defaults.DefaultTrainer.train
    before_train = _hooks.PeriodicCheckpointer.before_train
    after_train = _hooks.EvalHook.after_train

    @functools.wraps(train)
    def train_(self):
        self.epoch = self.start_epoch - 1
        self._last_eval_results = getattr(self, "_last_eval_results", collections.OrderedDict())
        return train(self)

    @functools.wraps(before_train)
    def before_train_(self):
        if self.trainer.cfg.DATASETS.TESTS:
            before_train(self)
        else:
            self.max_epoch, self.metric_name = self.trainer.max_epoch, "metric"

    @functools.wraps(after_train)
    def after_train_(self):
        if not _is_finished(self.trainer):
            return  # the run has failed or was stopped, perhaps within its last epoch
        if self._period > 0:
            after_train(self)
        else:
            self._do_eval()  # the documented meaning: at the end of training

    patch.set(_defaults.DefaultTrainer, "train", train_)
    patch.set(_hooks.PeriodicCheckpointer, "before_train", before_train_)
    patch.set(_hooks.EvalHook, "after_train", after_train_)


def _is_finished(trainer) -> bool:
    return getattr(trainer, "is_finished", trainer.iter >= trainer.max_iter)


@_repair(
    upstream="utils/events.py:221 (CommonMetricPrinter.write)",
    symptom="an iteration that ends an epoch and the run is printed twice, in a run of fewer than "
    "three iterations as a ZeroDivisionError",
    versions="all",
)
def _printer_twice(patch: _Patches) -> None:
    original = _events.CommonMetricPrinter.write

    @functools.wraps(original)
    def write(self):
        iteration = _events.get_event_storage().iter
        if getattr(self, "_printed", None) != iteration:
            self._printed = iteration
            original(self)

    patch.set(_events.CommonMetricPrinter, "write", write)


@_repair(
    upstream="engine/hooks.py:170-188 (PeriodicWriter) with utils/events.py:105 "
    "(JSONWriter) and :147 (TensorboardXWriter)",
    symptom="figures are missing from metrics.json and TensorBoard when something else was written "
    "at their iteration before: the last evaluation, and everything logged before an epoch's first "
    "step",
    versions="all",
)
def _lost_figures(patch: _Patches) -> None:
    for kind in (_events.JSONWriter, _events.TensorboardXWriter):
        patch.set(kind, "write", _writes_every_figure(kind.write))
    after_step = _hooks.PeriodicWriter.after_step
    after_train = _hooks.PeriodicWriter.after_train

    @functools.wraps(after_step)
    def after_step_(self):
        # the last step's figures follow behind its epoch, in one row as those of other epochs
        if (self.trainer.iter + 1) % self._period == 0:
            after_step(self)

    @functools.wraps(after_train)
    def after_train_(self):
        if _is_finished(self.trainer):  # an evaluation after the last epoch
            _write_figures(self._writers)
        after_train(self)

    patch.set(_hooks.PeriodicWriter, "after_step", after_step_)
    patch.set(_hooks.PeriodicWriter, "after_train", after_train_)


def _write_figures(writers: Sequence) -> None:
    """Lets writers of files write what they have not written yet."""
    for writer in writers:
        if not isinstance(writer, _events.CommonMetricPrinter):
            writer.write()


def _writes_every_figure(original):
    """Lets a writer remember what it wrote for each figure, not for all of them together."""

    @functools.wraps(original)
    def write(self):
        storage = _events.get_event_storage()
        latest = storage.latest_with_smoothing_hint
        written = self.__dict__.setdefault("_written", {})

        def unwritten(window_size=20):
            return {name: (value, at) for name, (value, at) in latest(window_size).items()
                    if written.get(name, -1) < at}

        fresh = {name: at for name, (_, at) in unwritten().items()}
        self._last_write = -1
        storage.latest_with_smoothing_hint = unwritten
        try:
            original(self)
        finally:
            del storage.latest_with_smoothing_hint
        written.update(fresh)

    return write


# ------------------------------------------------------------------- stopping, going on ----


def _random_state() -> dict:
    """States of this process's random generators, as tensors and plain values."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_state(state: dict) -> None:
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


# what RunState saves: a checkpoint may come from someone else
_RUN_STATE = {"seed": int, "steps_done": int, "iters_per_epoch": int, "random": list,
              "scalars": dict, "written": dict, "metrics_bytes": (int, types.NoneType),
              "best_metric": float, "grad_scaler": (dict, types.NoneType)}


EVALUATION_CHANGED = "evaluation_changed"
"""Scalar of the step from which on a resumed run evaluates otherwise: on other test sets, say."""


class RunState:
    """What a run needs to go on bit for bit, besides weights, optimizer, schedule and bank.

    A checkpointable of every DefaultTrainer ("run_state"): the seed, the random states of all
    processes, the steps done of an epoch that was stopped, the loss scale of mixed precision, the
    best metric so far, and the figures that are not yet in metrics.json with the length it had, so
    that a resumed run writes the same rows.

    Args:
        trainer: a DefaultTrainer.
        seed: of the run, the same in every process.

    Attributes:
        seed: as given, or that of the run which is resumed.
        steps_done: steps done in the epoch that is resumed, 0 at its start.
    """

    WINDOW = 20  # values of a figure that the toolbox's writers look back at
    OF_THIS_PROCESS = ("time", "eta_seconds")  # figures measured anew

    def __init__(self, trainer, seed: int) -> None:
        self._trainer = weakref.proxy(trainer)
        self.seed = seed
        self.steps_done = 0
        self._random: list[dict] = []
        self._unused_random: list[dict] = []
        self._restored: dict | None = None
        self._evaluates_anew = False

    @property
    def is_resumed(self) -> bool:
        return self._restored is not None

    def collect_random_states(self) -> None:
        """Takes the random states of all processes, each of which must call this."""
        self._random = comm.all_gather(_random_state())

    def mark(self) -> Callable[[], None]:
        """Takes note of what an epoch's end changes; what it returns goes back to here.

        Every process must call it, since random states are among that.
        """
        self.collect_random_states()
        random_states, trainer = self._random, self._trainer
        schedules = {name: copy.deepcopy(part.state_dict())
                     for name, part in trainer.scheduler.items()}
        rates = [group["lr"] for group in trainer.optimizer.param_groups]

        def go_back() -> None:
            self._random = random_states
            for name, state in schedules.items():
                trainer.scheduler[name].load_state_dict(state)
            for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

        return go_back

    def state_dict(self) -> dict:
        trainer, writer = self._trainer, self._json_writer()
        return {
            "seed": self.seed, "steps_done": self.steps_done,
            "iters_per_epoch": trainer.iters_per_epoch, "random": self._random,
            "scalars": self._scalars(), "written": dict(getattr(writer, "_written", {})),
            "metrics_bytes": _flushed_size(writer) if writer else None,
            "best_metric": self._best_metric(),
            "grad_scaler": trainer.grad_scaler.state_dict() if trainer.grad_scaler else None,
        }

    def _scalars(self) -> dict:
        storage = getattr(self._trainer, "storage", None)
        if storage is None:  # saved before any training
            return {}
        return {name: (hint, [(float(value), int(at))
                              for value, at in storage.history(name).values()[-self.WINDOW:]])
                for name, hint in storage.smoothing_hints().items()
                if name not in self.OF_THIS_PROCESS}

    def _best_metric(self) -> float:
        periodic, trainer = self._periodic(), self._trainer
        if periodic is None:
            return -1.0
        if self.steps_done or getattr(trainer, "iter", 0) < trainer.max_iter:
            return float(periodic.best_metric)
        # of the last epoch the toolbox saves a better model without taking note of its metric
        latest = trainer.storage.latest().get(periodic.metric_name, (-1,))[0]
        return float(max(periodic.best_metric, latest))

    def load_state_dict(self, state: dict) -> None:
        """Restores :meth:`state_dict`; figures and random states when the training starts.

        Raises:
            ValueError: the checkpoint is of a run whose epochs have another length, or this part
                of it is not as :meth:`state_dict` gives it.
        """
        iters = self._trainer.iters_per_epoch
        wrong = [name for name, kind in _RUN_STATE.items() if not isinstance(state[name], kind)]
        if not wrong and not 0 <= state["steps_done"] <= state["iters_per_epoch"]:
            wrong = ["steps_done"]
        if wrong:
            raise ValueError(
                f"The checkpoint's run_state is damaged: {wrong[0]} is "
                f"{str(state[wrong[0]])[:80]!r}. Write another checkpoint's name into "
                "last_checkpoint.")
        if state["iters_per_epoch"] != iters:
            raise ValueError(
                f"The checkpoint is of a run with {state['iters_per_epoch']} steps an epoch, "
                f"and this one has {iters}: set SOLVER.ITERS_PER_EPOCH "
                f"{state['iters_per_epoch']} to go on from it.")
        self.steps_done = state["steps_done"]
        self._random = self._unused_random = state["random"]
        if self._trainer.cfg.get("SEED", -1) < 0:
            self.seed = state["seed"]
        elif self.seed != state["seed"]:
            logger.warning("SEED is %d, and the checkpoint is of a run with seed %d: what follows "
                           "is neither the one run nor the other.", self.seed, state["seed"])
        if self._trainer.grad_scaler and state["grad_scaler"]:
            self._trainer.grad_scaler.load_state_dict(state["grad_scaler"])
        if self._periodic():
            self._periodic().best_metric = state["best_metric"]
        self._restored = state

    def evaluate_anew(self) -> None:
        """Tells a resumed run that its evaluations cannot be compared with those before."""
        self._evaluates_anew = True
        if self._periodic():
            self._periodic().best_metric = -1

    def restore_figures(self) -> None:
        """Gives the trainer's storage and writers what they held when the checkpoint was saved."""
        if not self.is_resumed:
            return
        storage = self._trainer.storage
        for name, (hint, values) in self._restored["scalars"].items():
            for value, iteration in values:
                storage.histories()[name].update(value, iteration)
            storage._latest_scalars[name] = tuple(values[-1])
            storage._smoothing_hints[name] = hint
        for writer in self._writers():
            writer.__dict__["_written"] = dict(self._restored["written"])
        if self._json_writer() and self._restored["metrics_bytes"] is not None:
            _drop_rows_after(self._json_writer(), self._restored["metrics_bytes"])
        if self._trainer.start_epoch > 0 and not self.steps_done:
            # a checkpoint is saved before its epoch's figures are written
            _write_figures(self._writers())
        if self._evaluates_anew:
            self._forget_evaluations(storage)

    def _forget_evaluations(self, storage) -> None:
        for name in list(storage.histories()):
            if name.rpartition("/")[2] in ("mAP", "metric", EVALUATION_CHANGED):
                for known in (storage.histories(), storage.smoothing_hints(), storage.latest()):
                    del known[name]
        # one that was stopped behind its epoch's last step, and is made again, has its number
        storage.iter = self._trainer.start_iter - (self.steps_done > 0)
        storage.put_scalar(EVALUATION_CHANGED, 1.0, smoothing_hint=False)
        storage.iter = self._trainer.start_iter

    def restore_random_states(self) -> None:
        """Gives this process the random state of the checkpoint; only the first call does."""
        states, self._unused_random = self._unused_random, []
        if len(states) == comm.get_world_size():
            _set_random_state(states[comm.get_rank()])
        elif states:
            logger.warning("The checkpoint is of %d processes and this run has %d: they go on with "
                           "random numbers of their own.", len(states), comm.get_world_size())

    def _periodic(self):
        found = [h for h in self._trainer._hooks if isinstance(h, _hooks.PeriodicCheckpointer)]
        return found[0] if found else None

    def _writers(self) -> list:
        return [writer for hook in self._trainer._hooks if isinstance(hook, _hooks.PeriodicWriter)
                for writer in hook._writers]

    def _json_writer(self):
        found = [w for w in self._writers() if isinstance(w, _events.JSONWriter)]
        return found[0] if found else None


def _flushed_size(writer) -> int:
    file = writer._file_handle
    if file.closed:
        return os.path.getsize(file.name)
    file.flush()
    return os.fstat(file.fileno()).st_size  # also of one whose folder was deleted


def _drop_rows_after(writer, size: int) -> None:
    """Cuts metrics.json to what it held at the checkpoint: the steps after it are done again."""
    path, now = Path(writer._file_handle.name), _flushed_size(writer)
    if now < size:
        logger.warning("%s is shorter than when the checkpoint was saved (%d bytes, then %d): rows "
                       "before it are missing.", path, now, size)
        return
    content = path.read_bytes()
    if size and content[size - 1:size] != b"\n":
        logger.warning("%s is not the file that the checkpoint was saved with: it stays as it is.",
                       path)
    elif now > size:
        logger.info("%d rows of %s are of steps that are done again: they are left out.",
                    content[size:].count(b"\n"), path)
        writer._file_handle.truncate(size)


class _CollectRandomStates(_train_loop.HookBase):
    """Before each checkpoint, and in every process: the checkpointer runs in the first one only."""

    def after_epoch(self) -> None:
        self.trainer.run_state.steps_done = 0
        self.trainer.run_state.collect_random_states()


@_repair(
    upstream="engine/defaults.py:223 (Checkpointer(..., optimizer, scheduler)) with "
    "engine/hooks.py:190 (PeriodicCheckpointer)",
    symptom="a resumed run is another one: random states, the loss scale of mixed precision, the "
    "best metric and smoothed figures start anew; metrics.json keeps the rows of steps that are "
    "done again",
    versions="all",
)
def _run_state(patch: _Patches) -> None:
    original = _defaults.DefaultTrainer.__init__

    @functools.wraps(original)
    def init(self, cfg):
        original(self, cfg)
        seed = cfg.get("SEED", -1)
        self.run_state = RunState(self, seed if seed >= 0 else int(comm.shared_random_seed()))
        self.checkpointer.checkpointables["run_state"] = self.run_state
        self.register_hooks([_CollectRandomStates()])
        collects = self._hooks.pop()
        saves = [i for i, hook in enumerate(self._hooks)
                 if isinstance(hook, _hooks.PeriodicCheckpointer)]
        # evaluating draws random numbers too: after it, and before the checkpoint
        self._hooks.insert(saves[0] if saves else len(self._hooks), collects)

    patch.set(_defaults.DefaultTrainer, "__init__", init)


STOPPED_CHECKPOINT = "model_stopped"


@_repair(
    upstream="engine/train_loop.py:128-153 (TrainerBase.train)",
    symptom="a run can only go on at the start of an epoch: SIGTERM (a scheduler's notice) and "
    "Ctrl-C lose everything since the last checkpoint",
    versions="all",
)
def _training_loop(patch: _Patches) -> None:
    patch.set(_train_loop.TrainerBase, "train", _train)
    original = _defaults.inference_on_dataset

    @functools.wraps(original)
    def inference_on_dataset(model, data_loader, *args, **options):
        if StopRequest.current is None:  # no training runs: a signal does what it always does
            return original(model, data_loader, *args, **options)
        return original(model, _StoppableLoader(data_loader), *args, **options)

    patch.everywhere(original, inference_on_dataset)


def _train(self, start_epoch: int, max_epoch: int, iters_per_epoch: int) -> None:
    """The loop over epochs and steps; after a signal it ends behind a step, with a checkpoint.

    In an evaluation it ends behind a batch: the run goes on behind the step before.

    Raises:
        SystemExit: with a code of :mod:`caureid_plugin.signals`, after SIGTERM, SIGHUP or Ctrl-C.
    """
    state = getattr(self, "run_state", None)  # other trainers have none, and are not stopped
    self.iter = self.start_iter = (
        start_epoch * iters_per_epoch + (state.steps_done if state else 0))
    self.is_finished = False
    logger.info("Starting training from epoch %d, iteration %d", start_epoch, self.start_iter)
    if state:
        _check_start(self, state)
    request = StopRequest()
    with _events.EventStorage(self.start_iter) as self.storage, \
            request if state else contextlib.nullcontext():
        self.stop_request = request
        try:
            if state:
                state.restore_figures()
            self.before_train()
            for self.epoch in range(start_epoch, max_epoch):
                _train_epoch(self, state, iters_per_epoch)
            self.is_finished = True
        except StopNow:
            if self.epoch < start_epoch:
                logger.warning("Stopped by %s before the first step: there is nothing to save that "
                               "the same command would not find again.", request.signal.name)
            raise SystemExit(request.exit_code) from None
        except Exception:
            logger.exception("Exception during training:")
            raise
        finally:
            _after_train(self)


def _after_train(self) -> None:
    try:
        self.after_train()
    except StopNow:  # in the evaluation behind the last epoch, whose checkpoint is saved
        self.is_finished = False
        evaluates = [isinstance(hook, _hooks.EvalHook) for hook in self._hooks]
        for hook in self._hooks[evaluates.index(True) if any(evaluates) else 0:]:
            hook.after_train()  # those behind the evaluation end what they began
        logger.warning("Stopped by %s in the last evaluation. %s --resume evaluates it.",
                       self.stop_request.signal.name,
                       _last_good(self.checkpointer) if comm.is_main_process() else "")
        raise SystemExit(self.stop_request.exit_code) from None


def _check_start(self, state: RunState) -> None:
    """Looks whether all processes start at one place, and sets aside what --resume must not find.

    Raises:
        ValueError: the processes have found different checkpoints.
    """
    places = comm.all_gather((self.start_epoch, state.steps_done, state.seed))
    if len(set(places)) > 1:
        raise ValueError(
            "The processes of this run found different checkpoints (epoch, step and seed: "
            f"{places}). OUTPUT_DIR {self.cfg.OUTPUT_DIR} must be on a file system that all "
            "machines share.")
    if self.start_epoch > 0 and not state.is_resumed:
        logger.warning("The checkpoint holds no state of a run (it is of FastReID alone or of an "
                       "older version): random numbers and rows of metrics.json do not go on "
                       "where they were.")
    tag = Path(self.cfg.OUTPUT_DIR, "last_checkpoint")
    if self.start_epoch == 0 and not state.is_resumed and comm.is_main_process() and tag.is_file():
        config = tag.with_name(_RUN_CONFIG)
        for path in (tag, config):
            if path.is_file():
                os.replace(path, path.with_name(f"{path.name}.old"))
        logger.warning("%s named %r, of a run before this one: it is last_checkpoint.old now, so "
                       "that --resume does not go on from it, and that run's config is "
                       f"{config.name}.old.", tag,
                       tag.with_name("last_checkpoint.old").read_text(errors="replace"))


def _train_epoch(self, state: RunState | None, iters_per_epoch: int) -> None:
    begin = self.epoch * iters_per_epoch
    is_resumed_within = self.iter > begin
    if state and not is_resumed_within:
        state.restore_random_states()
        state.collect_random_states()
    try:
        if _is_stop_wanted(self):
            raise StopNow
        self.before_epoch()
    except StopNow:
        _save_stopped(self, steps_done=self.iter - begin)
        raise
    if is_resumed_within:
        state.restore_random_states()  # building the loaders has drawn from them
    while self.iter < begin + iters_per_epoch:
        self.before_step()
        self.run_step()
        self.after_step()
        self.iter += 1
        if _is_stop_wanted(self):
            state.collect_random_states()
            _save_stopped(self, steps_done=self.iter - begin)
            raise StopNow
    self.storage.iter = self.iter - 1  # as the last step sets it, which may be in the checkpoint
    go_back = state.mark() if state else None
    try:
        self.after_epoch()
    except StopNow:  # in an evaluation, which is made again
        go_back()
        _save_stopped(self, steps_done=self.iter - begin)
        raise


def _is_stop_wanted(self) -> bool:
    return _agree(self.stop_request)


def _agree(request: StopRequest) -> bool:
    """Whether any process has received a signal; the same answer in all of them."""
    received = [signal for signal in comm.all_gather(request.signal) if signal]
    if received:
        request.signal = received[0]
    return bool(received)


class _StoppableLoader:
    """A loader for evaluation, whose batches are places at which all processes can stop together.

    A process with fewer batches than others asks as often as they do.
    """

    def __init__(self, loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator:
        rounds = max(comm.all_gather(len(self)))
        try:
            for batch in self._loader:
                self._stop_point()
                yield batch
            for _ in range(rounds - len(self)):
                self._stop_point()
            self._stop_point()  # before distances and ranks are computed, which takes long, too
        except StopNow:
            if hasattr(self._loader, "shutdown"):
                self._loader.shutdown()
            raise

    @staticmethod
    def _stop_point() -> None:
        if _agree(StopRequest.current):
            raise StopNow


def _save_stopped(self, steps_done: int) -> None:
    self.run_state.steps_done = steps_done
    # to a toolbox without this repair the epoch before is the last one done
    self.checkpointer.save(STOPPED_CHECKPOINT, epoch=self.epoch - 1)
    comm.synchronize()
    logger.warning(
        "Stopped by %s after %d steps of epoch %d. %s holds the run, --resume goes on from it.",
        self.stop_request.signal.name, steps_done, self.epoch,
        Path(self.cfg.OUTPUT_DIR, f"{STOPPED_CHECKPOINT}.pth"))


def stop_point(trainer, *, together: bool = False) -> None:
    """Place in long work before an epoch at which a run can be stopped.

    Args:
        trainer: of the run.
        together: whether all processes come here equally often, so that they can agree. Else
            several processes go on to where they can.

    Raises:
        StopNow: a signal was received.
    """
    request = getattr(trainer, "stop_request", None)
    if request is None or (comm.get_world_size() > 1 and not together):
        return
    if _agree(request):
        raise StopNow


@_repair(
    upstream="engine/train_loop.py:293-297 (SimpleTrainer._write_metrics)",
    symptom="a loss that is not finite ends the run without a word on what to change or how to go "
    "on",
    versions="all",
)
def _loss_not_finite(patch: _Patches) -> None:
    original = _defaults.DefaultTrainer.run_step

    @functools.wraps(original)
    def run_step(self):
        try:
            original(self)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}\nThe weights were not changed by this step. "
                                     f"{how_to_go_on(self)}") from error

    patch.set(_defaults.DefaultTrainer, "run_step", run_step)


def how_to_go_on(trainer) -> str:
    """When it happened, what to change and where to go on, once numbers are NaN or infinite."""
    solver = trainer.cfg.SOLVER
    try:
        last = trainer.checkpointer.get_checkpoint_file()
    except ValueError:  # a damaged last_checkpoint is not what this is about
        last = ""
    return (f"This is step {trainer.iter} (epoch {max(trainer.epoch, 0)}). Lower SOLVER.BASE_LR "
            f"(now {solver.BASE_LR})"
            + (" or set SOLVER.AMP.ENABLED False. " if solver.AMP.ENABLED else ". ")
            + (f"The last checkpoint is {last}: --resume goes on from it." if last
               else "There is no checkpoint yet."))


_RUN_CONFIG = "config.yaml"
_new_configs: dict[str, str] = {}  # paths of a run's config.yaml: what is to replace it


class _ConfigFile(io.StringIO):
    """A new config.yaml; what a run has there stays until another one begins, or this goes on."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def __exit__(self, kind, *rest) -> None:
        if kind is None and os.path.isfile(self._path):
            _new_configs[os.path.abspath(self._path)] = self.getvalue()
        elif kind is None:
            with open(self._path, "w") as file:
                file.write(self.getvalue())
        super().__exit__(kind, *rest)


class _KeepsConfig:
    """The toolbox's PathManager, but for a config.yaml that is written."""

    def __init__(self, original) -> None:
        self._original = original

    def __getattr__(self, name: str) -> object:
        return getattr(self._original, name)

    def open(self, path, mode="r", *args, **kwargs):
        if mode == "w" and os.path.basename(path) == _RUN_CONFIG:
            return _ConfigFile(path)
        return self._original.open(path, mode, *args, **kwargs)


@_repair(
    upstream="engine/defaults.py:102-108 (default_setup), :475-481 (auto_scale_hyperparams)",
    symptom="config.yaml is overwritten before anything is accepted: after a refused command, or "
    "an evaluation with other keys, it does not describe the checkpoints beside it",
    versions="all",
)
def _run_config(patch: _Patches) -> None:
    default_setup = _defaults.default_setup
    before_train = _defaults.DefaultTrainer.before_train

    @functools.wraps(default_setup)
    def default_setup_(cfg, args):
        log, path = logging.getLogger("fastreid"), os.path.join(cfg.OUTPUT_DIR, _RUN_CONFIG)
        if not os.path.isfile(path):
            default_setup(cfg, args)
            return
        log.addFilter(_says_not_saved)
        try:
            default_setup(cfg, args)
        finally:
            log.removeFilter(_says_not_saved)
        if getattr(args, "eval_only", False):
            _new_configs.pop(os.path.abspath(path), None)

    @functools.wraps(before_train)
    def before_train_(self):
        if comm.is_main_process() and self.cfg.OUTPUT_DIR:
            path, goes_on = Path(self.cfg.OUTPUT_DIR, _RUN_CONFIG), getattr(
                getattr(self, "run_state", None), "is_resumed", False)
            if goes_on and path.is_file():  # until there is a checkpoint that it describes
                _new_configs[os.path.abspath(path)] = self.cfg.dump()
            else:
                _write_run_config(self.cfg.OUTPUT_DIR, self.cfg.dump())
        before_train(self)

    patch.set(_defaults, "PathManager", _KeepsConfig(_defaults.PathManager))
    patch.everywhere(default_setup, default_setup_)
    patch.set(_defaults.DefaultTrainer, "before_train", before_train_)


def _says_not_saved(record: logging.LogRecord) -> bool:
    if str(record.msg).startswith("Full config saved to"):
        record.msg = "config.yaml of the run that is there stays until training begins"
    return True


def _write_run_config(folder: str, text: str) -> None:
    path = Path(folder, _RUN_CONFIG)
    _new_configs.pop(os.path.abspath(path), None)
    try:
        write_atomically(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise _output_error(f"{_RUN_CONFIG} in OUTPUT_DIR {shown(folder)}", error) from error


@_repair(
    upstream="engine/defaults.py:241 (DefaultTrainer.resume_or_load)",
    symptom="a run goes on with keys of another config, silently: optimizer and schedule keep the "
    "values of the checkpoint, the rest takes the new ones, and config.yaml names the new ones; "
    "another SOLVER.OPT or loss ends in a traceback",
    versions="all",
)
def _resumed_config(patch: _Patches) -> None:
    default_setup = _defaults.default_setup
    resume_or_load = _defaults.DefaultTrainer.resume_or_load

    @functools.wraps(default_setup)
    def default_setup_(cfg, args):
        if getattr(args, "resume", False) and not getattr(args, "eval_only", False):
            _changed_keys(cfg)  # refused here before anything is written or built
        default_setup(cfg, args)

    @functools.wraps(resume_or_load)
    def resume_or_load_(self, resume=True):
        goes_on = resume and self.checkpointer.has_checkpoint()
        changes = _changed_keys(self.cfg) if goes_on else {}
        resume_or_load(self, resume)
        if goes_on:
            _take_over(self, changes)

    patch.everywhere(default_setup, default_setup_)
    patch.set(_defaults.DefaultTrainer, "resume_or_load", resume_or_load_)


def _changed_keys(cfg: CfgNode) -> dict[str, tuple[object, object]]:
    """{key: (the run's value, the new one)} of what differs from the config of the run to go on.

    Raises:
        ValueError: one of them may not, or the run's config.yaml is damaged.
    """
    folder = cfg.OUTPUT_DIR
    path = Path(folder, _RUN_CONFIG)
    if not Path(folder, "last_checkpoint").exists() or not path.exists():
        return {}
    try:
        before = _read_yaml(str(path))
    except ValueError as error:
        raise ValueError(f"{str(error).rstrip('.')}. A run goes on with its own config: restore "
                         "it, or remove the file to go on without a comparison.") from error
    now, defaults = (_resume.flatten(yaml.safe_load(c.dump())) for c in (cfg, get_cfg()))
    if cfg.MODEL.HEADS.NUM_CLASSES == 0:  # the trainer counts them
        del now["MODEL.HEADS.NUM_CLASSES"]
    changes = _resume.differences(_resume.flatten(before), now, defaults)
    problems = _resume.refused(changes, cfg.SOLVER.SCHED)
    if problems:
        raise ValueError(_resume.refusal(problems, changes, folder))
    return changes


def _take_over(trainer, changes: dict[str, tuple[object, object]]) -> None:
    """Lets the keys that differ act in a trainer that has loaded its checkpoint, and says so.

    Raises:
        ValueError: SOLVER.MAX_EPOCH is changed to what the run has passed.
    """
    cfg, done, max_epoch = trainer.cfg, trainer.start_epoch, "SOLVER.MAX_EPOCH"
    if not Path(cfg.OUTPUT_DIR, _RUN_CONFIG).exists():
        logger.warning("There is no config.yaml in OUTPUT_DIR %s: that the run goes on with its "
                       "own config cannot be checked.", shown(cfg.OUTPUT_DIR))
    if max_epoch in changes and trainer.max_epoch <= done:
        raise ValueError(_resume.refusal({max_epoch: f"epochs done: {done}"}, changes,
                                         cfg.OUTPUT_DIR))
    kept = _resume.kept(changes)
    for key, (before, now) in changes.items():
        logger.info("%s %s is %s: the run had %s.", key, _resume.short(now),
                    "of no use any more" if key in kept else "taken over", _resume.short(before))
    trainer.cfg = cfg.clone()
    trainer.cfg.defrost()
    for key, value in kept.items():
        section, _, name = key.rpartition(".")
        _section(trainer.cfg, section)[name] = value
    if cfg.is_frozen():
        trainer.cfg.freeze()
    if "SOLVER.BASE_LR" in changes:
        before, now = changes["SOLVER.BASE_LR"]
        _multiply_learning_rates(trainer, now / before)
    if _resume.changes_metric(changes):
        trainer.run_state.evaluate_anew()


def _multiply_learning_rates(trainer, factor: float) -> None:
    """Those of now and, as they are multiples of SOLVER.BASE_LR, those that the schedule gives."""
    for group in trainer.optimizer.param_groups:
        for name in ("lr", "initial_lr"):
            group[name] *= factor
    for schedule in trainer.scheduler.values():
        schedule.base_lrs = [factor * rate for rate in schedule.base_lrs]


@_repair(
    upstream="engine/defaults.py:72 (default_setup), :342 (DefaultTrainer.train)",
    symptom="two runs with one OUTPUT_DIR write rows of both into metrics.json and checkpoints "
    "over each other's, and both end as if all were well",
    versions="all",
)
def _one_run(patch: _Patches) -> None:
    default_setup, train = _defaults.default_setup, _defaults.DefaultTrainer.train

    @functools.wraps(default_setup)
    def default_setup_(cfg, args):
        if comm.is_main_process() and cfg.OUTPUT_DIR and not getattr(args, "eval_only", False):
            os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
            run_lock.hold(cfg.OUTPUT_DIR)
        default_setup(cfg, args)

    @functools.wraps(train)
    def train_(self):
        if not (comm.is_main_process() and self.cfg.OUTPUT_DIR):
            return train(self)
        run_lock.hold(self.cfg.OUTPUT_DIR)
        try:
            return train(self)
        finally:
            run_lock.release(self.cfg.OUTPUT_DIR)

    patch.everywhere(default_setup, default_setup_)
    patch.set(_defaults.DefaultTrainer, "train", train_)


# ---------------------------------------------------------------------- reproducibility ----


@_repair(
    upstream="engine/defaults.py:111 (seed_all_rng() without a seed)",
    symptom="there is no key for the random seed: no run can be repeated, and the log names a seed "
    "that does not count; and none that asks for deterministic algorithms",
    versions="all",
)
def _seed(patch: _Patches) -> None:
    original = _defaults.default_setup

    @functools.wraps(original)
    def default_setup(cfg, args):
        deterministic = cfg.get("DETERMINISTIC", False)
        if deterministic:
            # read when the first cuBLAS handle is made; a value of the user's own stays
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        log, is_given = logging.getLogger("fastreid.utils.env"), cfg.get("SEED", -1) >= 0
        if is_given:
            log.addFilter(_names_no_seed)
        try:
            original(cfg, args)
        finally:
            log.removeFilter(_names_no_seed)
        if deterministic:  # after the toolbox, which sets cudnn.benchmark from CUDNN_BENCHMARK
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.benchmark = False
        if is_given:
            # every process draws its own augmentations; what must be shared is shared by comm
            seed_all_rng(process_seed(cfg.SEED, comm.get_rank()))

    patch.everywhere(original, default_setup)


def _names_no_seed(record: logging.LogRecord) -> bool:
    return "generated random seed" not in record.getMessage()


def process_seed(seed: int, rank: int) -> int:
    """Seed (32 bits) of a process's generators: of SEED and rank, hashed together.

    Their sum would give process 1 of SEED 1 the random numbers of process 0 of SEED 2.
    """
    return int(np.random.SeedSequence((seed, rank)).generate_state(1)[0])


def _keeps_numpy_state(original: Callable[..., Iterator]) -> Callable[..., Iterator]:
    """Lets a generator that reseeds NumPy's global state draw from a state of its own."""

    @functools.wraps(original)
    def generate(*args, **kwargs):
        source, own = original(*args, **kwargs), None
        while True:
            outer = np.random.get_state()
            if own is not None:
                np.random.set_state(own)
            try:
                item = next(source)
                own = np.random.get_state()
            except StopIteration:
                return
            finally:
                np.random.set_state(outer)
            yield item

    return generate


def _sampler_reseeds_numpy() -> bool:
    outer = np.random.get_state()
    np.random.seed(1)  # the state may be that of the sampler's own seed by chance
    before = np.random.get_state()
    next(iter(_samplers.TrainingSampler(2, seed=0)))
    changed = any(not np.array_equal(a, b)
                  for a, b in zip(before, np.random.get_state(), strict=True))
    np.random.set_state(outer)
    return changed


@_repair(
    upstream="data/samplers/*.py (np.random.seed in _infinite_indices)",
    symptom="starting a sampler reseeds NumPy for the whole process; what is drawn afterwards "
    "depends on how far the loader has read ahead",
    versions="all",
    broken=_sampler_reseeds_numpy,
)
def _sampler_state(patch: _Patches) -> None:
    for kind in (_data_sampler.TrainingSampler, _imbalance_sampler.ImbalancedDatasetSampler,
                 _samplers.NaiveIdentitySampler, _samplers.BalancedIdentitySampler,
                 _samplers.SetReWeightSampler):
        patch.set(kind, "_infinite_indices", _keeps_numpy_state(kind._infinite_indices))


def _sampler_accepts_too_few_identities() -> bool:
    items = [("1.jpg", "one", 0), ("2.jpg", "one", 0)]
    return not _raises(lambda: _samplers.NaiveIdentitySampler(items, 4, 2, seed=0), ValueError)


@_repair(
    upstream="data/samplers/triplet_sampler.py:78 and :236-241",
    symptom="with fewer identities than P, or a batch that K does not divide, the first batch "
    "never comes: the samplers spin for ever",
    versions="all",
    broken=_sampler_accepts_too_few_identities,
)
def _sampler_hang(patch: _Patches) -> None:
    for kind in (_samplers.NaiveIdentitySampler, _samplers.BalancedIdentitySampler):
        patch.set(kind, "__init__", _checked_sampler_init(kind.__init__))


def _checked_sampler_init(original):
    @functools.wraps(original)
    def init(self, data_source, mini_batch_size, num_instances, seed=None):
        original(self, data_source, mini_batch_size, num_instances, seed)
        if mini_batch_size % num_instances:
            raise ValueError(
                f"A process's batch of {mini_batch_size} images is not divisible by "
                f"DATALOADER.NUM_INSTANCE {num_instances}: change SOLVER.IMS_PER_BATCH or "
                "DATALOADER.NUM_INSTANCE.")
        needed = self.num_pids_per_batch * comm.get_world_size()
        if self.num_identities < needed:
            raise ValueError(
                f"A batch needs {needed} identities, the training set has {self.num_identities}: "
                "lower SOLVER.IMS_PER_BATCH or raise DATALOADER.NUM_INSTANCE.")

    return init


# --------------------------------------------------------------------------------- data ----


@_repair(
    upstream="data/datasets/*.py (glob.glob without sorting), data/datasets/bases.py:56-72",
    symptom="the order of the images, and with it every index, depends on the file system; an "
    "empty training folder ends in a bare `assert size > 0`",
    versions="all",
)
def _sorted_listing(patch: _Patches) -> None:
    for split in ("train", "query", "gallery"):
        patch.set(_bases.Dataset, split, property(_sorted_split(split)))


def _sorted_split(split: str):
    original = getattr(_bases.Dataset, split)

    def items(self):
        listed_now = callable(getattr(self, f"_{split}"))
        found = original.fget(self)
        if not isinstance(found, list):
            found = list(found)
            setattr(self, f"_{split}", found)
        # a dataset for training alone gives [] to test with, on purpose, one to test with alone []
        # to train on, which the toolbox reads once while it builds the dataset
        refused = "data" in vars(self) if split == "train" else listed_now
        if not found and refused:
            raise ValueError(
                f"{type(self).__name__} found no image for its subset {split!r} below "
                f"{getattr(self, 'dataset_dir', '') or getattr(self, 'root', '')!r}. Set the "
                "environment variable FASTREID_DATASETS to the folder that holds the dataset"
                + (", or, where it has images to test with alone, take it out of DATASETS.NAMES."
                   if split == "train" else "."))
        # in place: datasets keep the list they built, and callers may hold it already
        found.sort(key=lambda item: str(item[0]))
        return found

    return items


@_repair(
    upstream="data/common.py:27 (CommDataset.__init__, sorted(list(cam_set))), "
    "data/datasets/bases.py:112-128 (combine_all)",
    symptom="training images some of which have no camera, which supervised training does not ask "
    "for, end in a TypeError about '<'; where none has one, they count as one camera, and those "
    "of DATASETS.COMBINEALL as a camera None; test images whose camera is NaN are never left out "
    "as the query's, so that mAP is too high",
    versions="all",
)
def _unknown_cameras(patch: _Patches) -> None:
    original, combine = _CommDataset.__init__, _bases.Dataset.combine_all

    @functools.wraps(original)
    def init(self, img_items, transform=None, relabel=True):
        known = known_cameras((item[0], item[2]) for item in img_items)
        unknown = [item for item in img_items if item[2] not in known]
        if not relabel:
            for path, _, camera, *_ in unknown[:1]:
                raise ValueError(
                    f"The test image {path} has no camera ({camera!r}): an evaluation leaves out "
                    "images of the query's camera. Give it one in the dataset.")
            if any(isinstance(value, np.integer) for item in img_items for value in item[1:3]):
                img_items = [tuple(int(part) if isinstance(part, np.integer) else part
                                   for part in item) for item in img_items]  # else not collated
        if not unknown:
            original(self, img_items, transform, relabel)
            return
        stand_in = min(known, default="")
        original(self, [(*item[:2], item[2] if item[2] in known else stand_in)
                        for item in img_items], transform, relabel)
        self.img_items = [(*item[:2], None) if item[2] != item[2] else item for item in img_items]
        if not known:
            self.cams, self.cam_dict = [], {}
        # a number that no camera has: what needs cameras refuses it
        self.cam_dict.update(dict.fromkeys(_NO_CAMERA, -1))

    @functools.wraps(combine)
    def combine_all(self):
        combine(self)
        added = [item for subset in (self.query, self.gallery) for item in subset
                 if item[1] not in self._junk_pids]
        for place, item in enumerate(added, len(self._train) - len(added)):
            if item[2] in _NO_CAMERA or item[2] != item[2]:
                self._train[place] = (*self._train[place][:2], None)

    patch.set(_CommDataset, "__init__", init)
    patch.set(_bases.Dataset, "combine_all", combine_all)


_NO_CAMERA = (None, "")  # what a dataset says of an image whose camera is not known; NaN as well


def known_cameras(items: Iterable[tuple[str, object]]) -> set:
    """Cameras of images, (path, camera), without those that stand for none: None, "" and NaN.

    Raises:
        ValueError: one that is neither text nor a number, or cameras of both kinds.
    """
    known: dict[object, str] = {}
    for path, camera in items:
        if camera is not None and not isinstance(camera, (str, int, float, np.number)):
            raise ValueError(
                f"The camera of the image {path} must be text or a number, got {camera!r} "
                f"({type(camera).__name__}). Mend the dataset.")
        if camera not in _NO_CAMERA and camera == camera:
            known.setdefault(camera, path)
    texts, numbers = ([camera for camera in known if isinstance(camera, str) == wanted]
                      for wanted in (True, False))
    if texts and numbers:
        raise ValueError(
            f"Cameras must be all text or all numbers, and {known[texts[0]]} has {texts[0]!r}, "
            f"{known[numbers[0]]} {numbers[0]!r}. Mend the dataset, or DATASETS.NAMES.")
    return set(known)


@_repair(
    upstream="data/datasets/bases.py:139 (check_before_run), data/datasets/msmt17.py:58 and :99, "
    "data/datasets/wildtracker.py:52 (os.listdir)",
    symptom='a missing dataset is reported as `"x" is not found`, without the remedy; MSMT17 in a '
    "folder of another name as `Dataset folder not found`, its lists as an error of open()",
    versions="all",
)
def _missing_dataset(patch: _Patches) -> None:
    original = _bases.Dataset.check_before_run

    @functools.wraps(original)
    def check_before_run(self, required_files):
        try:
            original(self, required_files)
        except RuntimeError as error:
            files = [required_files] if isinstance(required_files, str) else required_files
            missing = next(path for path in files if not os.path.exists(path))
            raise _no_dataset(type(self), missing) from error

    patch.set(_bases.Dataset, "check_before_run", check_before_run)
    patch.set(_msmt17.MSMT17, "__init__", _finds_its_folder(_msmt17.MSMT17.__init__))
    for kind in list(_data_build.DATASET_REGISTRY._obj_map.values()):
        if kind.__module__.startswith("fastreid."):
            patch.set(kind, "__init__", _names_the_root(kind.__init__))


def _no_dataset(kind: type, missing: str | os.PathLike[str], accepted: Sequence[str] = ()
                ) -> FileNotFoundError:
    """What to say of a missing file or folder of a dataset.

    Args:
        kind: of the dataset.
        missing: the path.
        accepted: names that its last part may have, where there are several.
    """
    parent, name = os.path.split(os.path.abspath(missing))
    while not os.path.isdir(parent):
        parent, name = os.path.split(parent)
    try:
        there = sorted(entry for entry in os.listdir(parent) if not entry.startswith("."))
    except OSError:
        there = []
    deeper = [path for entry in there for wanted in (accepted or [name])
              if os.path.lexists(path := os.path.join(parent, entry, wanted))]
    if deeper:
        found = f"there is {shown(deeper[0])}"
    else:
        names = ", ".join(map(shown, there[:5])) + (", ..." if len(there) > 5 else "")
        found = f"{shown(parent)} holds {names or 'nothing'}"
    wanted = f" (accepted are {' and '.join(accepted)})" if accepted else ""
    return FileNotFoundError(
        f'{kind.__name__}: "{shown(missing)}" is not found{wanted}; {found}. Set the environment '
        "variable FASTREID_DATASETS to the folder that holds the dataset (now "
        f"{_data_build._root!r}).")


def _finds_its_folder(original: Callable) -> Callable:
    @functools.wraps(original)
    def init(self, root="datasets", **kwargs):
        names = list(_msmt17.VERSION_DICT)
        base = next((path for path in (os.path.join(root, name) for name in names)
                     if os.path.exists(path)), None)
        if base is None:
            raise _no_dataset(type(self), os.path.join(root, names[-1]), names)
        original(self, root, **kwargs)

    return init


def _names_the_root(original: Callable) -> Callable:
    @functools.wraps(original)
    def init(self, *args, **kwargs):
        try:
            original(self, *args, **kwargs)
        except FileNotFoundError as error:
            if error.filename is None:  # said already
                raise
            raise _no_dataset(type(self), os.fsdecode(error.filename)) from error

    return init


_LABELS_IN_NAME = re.compile(r"([-\d]+)_c(\d)")
# of names that are taken for images, in lower case
IMAGE_SUFFIXES = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff",
                  ".webp")


@_repair(
    upstream="data/datasets/market1501.py:78 and data/datasets/dukemtmcreid.py:62 "
    "(pattern.search().groups())",
    symptom="an image whose name has no camera: AttributeError, 'NoneType' has no 'groups'; with "
    "one out of range: a bare assertion; below a folder whose own name looks like one, every image "
    "silently gets that identity and camera; in a folder with [ in its path no image is found; "
    "images named .png or .JPG are left out without a word",
    versions="all",
)
def _image_without_camera(patch: _Patches) -> None:
    # identities and cameras that the toolbox's own assertions let pass
    for kind, identities, cameras in ((_market.Market1501, range(-1, 1502), range(1, 7)),
                                      (_duke.DukeMTMC, None, range(1, 9))):
        patch.set(kind, "process_dir",
                  _checked_process_dir(kind.process_dir, identities, cameras))


def _checked_process_dir(original, identities: range | None, cameras: range):
    @functools.wraps(original)
    def process_dir(self, dir_path, is_train=True):
        name = type(self).__name__
        if _LABELS_IN_NAME.search(str(dir_path)):
            raise ValueError(
                f"{name} reads identity and camera from the first thing in the path "
                f"that looks like 0002_c1, which is a folder in {dir_path}. Rename that folder.")
        left_out = []
        for path in _listed(dir_path, name):
            if path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            if path.suffix == ".jpg":
                _check_labels_in_name(path, name, identities, cameras)
            else:
                left_out.append(path.name)
        if left_out:
            logger.warning(
                "%s: %d images in %s are left out, because only names that end in .jpg are read "
                "(first: %s). Rename them to use them: what is inside may be of any format.",
                name, len(left_out), shown(dir_path), shown(left_out[0]))
        return original(self, glob.escape(str(dir_path)), is_train)

    return process_dir


def _listed(folder: str, name: str) -> list[Path]:
    try:
        return sorted(Path(folder).iterdir())
    except OSError as error:  # glob would find nothing
        raise ValueError(
            f"{name} cannot list the folder {shown(folder)}: {error.strerror}. Let this user read "
            "it (chmod u+rx), or set the environment variable FASTREID_DATASETS to the folder that "
            "holds the dataset.") from error


def _check_labels_in_name(path: Path, name: str, identities: range | None, cameras: range) -> None:
    found = _LABELS_IN_NAME.search(path.name)
    if not found:
        raise ValueError(
            f"{shown(path)} carries no camera label: {name} reads identity and "
            "camera from names like 0002_c1s1_000451_03.jpg. Rename or remove the file.")
    if path.name[found.end():found.end() + 1].isdecimal():
        raise ValueError(
            f"{shown(path)} has a camera of several digits, of which {name} reads the first. "
            "Rename or remove the file, or register the data as a dataset of its own.")
    try:
        identity, camera = map(int, found.groups())
    except ValueError:  # such as 0001-2
        raise ValueError(
            f"{shown(path)}: {found[1]!r} before _c is no number of an identity. Rename or remove "
            "the file.") from None
    if identity == -1 and identities is not None:
        return  # junk
    for kind, value, allowed in (("identity", identity, identities), ("camera", camera, cameras)):
        if allowed is not None and value not in allowed:
            raise ValueError(
                f"{shown(path)} has {kind} {value}, but {name} has {allowed[0]} to {allowed[-1]}. "
                "Rename or remove the file, or register the data as a dataset of its own.")


def shown(path: object) -> str:
    """A path as an error shows it: quoted where it would break the line or cannot be encoded."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


# EXIF orientation -> what turns the image upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112  # the EXIF tag
# Of images that are decoded: 16 K video is 15,360 wide, Pillow warns beyond so many pixels, and a
# crop is nowhere near the ratio. Shorter ones cost nothing, whatever their ratio.
MOST_SIDE, MOST_PIXELS = 16_384, 89_478_485
MOST_RATIO, SHORT_SIDE = 100, 1024


def check_dimensions(width: int, height: int) -> None:
    """Refuses images that would take long to decode and to shrink, whatever their files' size.

    Raises:
        PIL.Image.DecompressionBombError: more than MOST_SIDE or MOST_PIXELS, or longer than
            SHORT_SIDE and more than MOST_RATIO times as long as wide. Names size and limit.
    """
    longer, shorter = max(width, height), max(min(width, height), 1)
    if longer > MOST_SIDE:
        limit = f"a side may have {MOST_SIDE}"
    elif longer > SHORT_SIDE and longer > MOST_RATIO * shorter:
        limit = f"one longer than {SHORT_SIDE} may be {MOST_RATIO} times as long as wide"
    elif width * height > MOST_PIXELS:
        limit = f"an image may have {MOST_PIXELS}"
    else:
        return
    raise Image.DecompressionBombError(f"{width} x {height} pixels; {limit}")


def _read_image(file_name: str, format: str | None = None) -> Image.Image:
    """Reads an image as 8-bit RGB (or the mode that ``format`` names, or "BGR"), upright.

    Transparency is dropped and the colours below it are kept, as PIL's ``convert`` does; 16-bit
    values keep their upper byte; of several frames the first is read.
    """
    with _data_utils.PathManager.open(file_name, "rb") as file:
        image = Image.open(file)
        if image.format == "EPS":
            raise ValueError("it is PostScript, a program, which is not run")
        check_dimensions(*image.size)
        image.load()
        turn = _UPRIGHT.get(_orientation(image, file_name))
    image = _in_8_bit(image)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns about a direct way
    image = image.convert("RGB" if format in (None, "BGR") else format)
    if turn is not None:
        image = image.transpose(turn)
    if format == "BGR":
        image = Image.fromarray(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))
    return image


def _orientation(image: Image.Image, file_name: str) -> int | None:
    try:
        value = image.getexif().get(_ORIENTATION)
        if value is None and "exif" in image.info:
            Image.Exif().load(image.info["exif"])  # Pillow says nothing if a JPEG's are damaged
    except (SyntaxError, struct.error, ValueError, TypeError, KeyError, OSError) as error:
        warnings.warn(f"The EXIF data of {shown(file_name)} are damaged ({error}): the image is "
                      "taken as it is stored, which may be turned.", stacklevel=2)
        return None
    return value if isinstance(value, int) else None


def _in_8_bit(image: Image.Image) -> Image.Image:
    """The upper byte of 16-bit grey values, which PIL would clip at 255; others as they are."""
    wide = image.mode.startswith("I;16")
    # how PIL opens 16-bit PGM, and with older versions 16-bit PNG
    if wide or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are 32-bit numbers, whose range nothing tells. Convert it to "
                         "8 bits")
    return image


@_repair(
    upstream="data/data_utils.py:17-59 (read_image)",
    symptom="images that are not 8-bit RGB or grey: palette indexes are taken as grey values, CMYK "
    "and transparency are channels too many, 1-bit and 16-bit images are a TypeError; a damaged "
    "PNG is read a second time after its error, as if it were whole; damaged EXIF data go unsaid; "
    "an image of 1 x 25,000,000 pixels, a file of 48 KB, takes half a minute",
    versions="all",
)
def _image_modes(patch: _Patches) -> None:
    patch.everywhere(_data_utils.read_image, _read_image)


# what a user can do about an image, by the error's number
_REMEDIES = {
    errno.EACCES: "Let this user read it: chmod u+r the file, u+x the folders above it",
    errno.EPERM: "Let this user read it: chmod u+r the file, u+x the folders above it",
    errno.ENOENT: "It was there when the folder was listed: put it back (or what the symbolic link "
                  "points to), or start again without it",
    errno.ELOOP: "Replace or remove the symbolic link, which leads back to itself",
    errno.ENAMETOOLONG: "Shorten its name",
    errno.EMFILE: "Raise the limit of open files (ulimit -n) or lower DATALOADER.NUM_WORKERS",
    errno.ENFILE: "Raise the system's limit of open files or lower DATALOADER.NUM_WORKERS",
    errno.EIO: "The disk or the network failed: check it, or replace the file",
}
_FILE_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket",
               stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


@_repair(
    upstream="data/data_utils.py:17-59 (read_image)",
    symptom="a damaged image stops training with a message that does not name the file; a FIFO "
    "among the images hangs",
    versions="all",
)
def _unreadable_image(patch: _Patches) -> None:
    original = _data_utils.read_image

    @functools.wraps(original)
    def read_image(file_name, format=None):
        try:
            _check_regular_file(file_name)
            return original(file_name, format)
        except Exception as error:  # broken data make Pillow's decoders raise nearly anything
            reason, remedy = _reason_and_remedy(error)
            raise ValueError(
                f"Cannot read the image {shown(file_name)}: {reason}. {remedy}.") from error

    patch.everywhere(original, read_image)


def _check_regular_file(file_name: str) -> None:
    """Refuses what would wait for ever when it is opened, and an empty file."""
    try:
        found = os.stat(file_name)
    except OSError:
        return  # opening it says why; or the path manager knows the address
    if not stat.S_ISREG(found.st_mode):
        kind = _FILE_KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise ValueError(f"it is {kind}, not a regular file")
    if found.st_size == 0:
        raise ValueError("it is empty (0 bytes)")


def _reason_and_remedy(error: Exception) -> tuple[str, str]:
    remedy = "Replace or remove the file"
    if isinstance(error, UnidentifiedImageError):
        return "its content is of no image format that Pillow knows", remedy
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror, _REMEDIES.get(error.errno, remedy)
    if isinstance(error, (Image.DecompressionBombError, MemoryError)):
        return f"it is too large ({error or 'not enough memory'})", (
            "Scale it down, or replace or remove the file")
    if isinstance(error, (OSError, SyntaxError, ValueError)):
        return str(error).rstrip("."), remedy
    return f"{type(error).__name__}: {error}", remedy


def _affine_arguments_renamed() -> bool:
    return _raises(
        lambda: _transforms_build.T.RandomAffine(degrees=10, resample=False, fillcolor=0),
        TypeError)


@_repair(
    upstream="data/transforms/build.py:81",
    symptom="INPUT.AFFINE.ENABLED raises TypeError: torchvision renamed the arguments",
    versions="torchvision >= 0.15",
    broken=_affine_arguments_renamed,
)
def _random_affine(patch: _Patches) -> None:
    current = _transforms_build.T

    def random_affine(*, resample, fillcolor, **options):
        return current.RandomAffine(**options, fill=fillcolor)  # resample False is the default

    patch.set(_transforms_build, "T",
              types.SimpleNamespace(**{**vars(current), "RandomAffine": random_affine}))


# ------------------------------------------------------------------------- output files ----

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# what ends an error in writing; {at}: the folder, or "there" behind its name
_CURES = {
    **dict.fromkeys(_NO_SPACE, "Free space {at}"),
    errno.EACCES: "Let this user write {at} (chmod u+rwx)",
    errno.EPERM: "It may be immutable or open for appending only, which `lsattr -d` shows: end "
    "that (chattr -i -a)",
    errno.ENOENT: "It was removed or renamed while it was in use, or a link on the way leads "
    "nowhere: put it back",
    errno.EROFS: "Its file system is mounted read-only, perhaps after an error of the disk, which "
    "`dmesg` shows: mount it for writing",
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN),
                    "The disk or the network failed: check it"),
    errno.ENAMETOOLONG: "Shorten its name",
}


@_repair(
    upstream="engine/defaults.py:84,107,481 (default_setup, auto_scale_hyperparams) with "
    "utils/file_io.py:301-308 (_mkdirs)",
    symptom="an OUTPUT_DIR that is a file or cannot be written is an error without the key, in a "
    "trainer built without default_setup only after data and model are built; on a full disk "
    "config.yaml is an error without a file",
    versions="all",
)
def _output_folder(patch: _Patches) -> None:
    default_setup = _defaults.default_setup
    init = _defaults.DefaultTrainer.__init__

    @functools.wraps(default_setup)
    def default_setup_(cfg, args):
        with _writable_folder(cfg.OUTPUT_DIR):
            default_setup(cfg, args)

    @functools.wraps(init)
    def init_(self, cfg):
        with _writable_folder(cfg.OUTPUT_DIR if comm.is_main_process() else ""):
            init(self, cfg)

    patch.everywhere(default_setup, default_setup_)
    patch.set(_defaults.DefaultTrainer, "__init__", init_)


@contextlib.contextmanager
def _writable_folder(folder: str) -> Iterator[None]:
    """Makes the folder and tries it before the block runs; names it where the block's files fail.

    An empty name stands for no folder.
    """
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in folder):  # how Python holds such bytes
        raise ValueError(f"OUTPUT_DIR {shown(folder)} is no text in UTF-8, which the log cannot "
                         "hold. Set OUTPUT_DIR to another folder.")
    if "\0" in folder:
        raise ValueError(f"OUTPUT_DIR {shown(folder)} has a null byte, which no name of a file "
                         "can have. Set OUTPUT_DIR to another folder.")
    try:
        if folder:
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(4096))
    except OSError as error:
        raise _output_error(f"OUTPUT_DIR {shown(folder)}", error) from error
    try:
        yield
    except OSError as error:
        if not folder or error.errno is None:
            raise
        if error.filename is None and error.errno in _NO_SPACE:  # a write, of a file it knows not
            name = "config.yaml or log.txt"
        elif os.path.dirname(os.path.abspath(str(error.filename))) == os.path.abspath(folder):
            name = os.path.basename(str(error.filename))
        else:
            raise
        raise _output_error(f"{name} in OUTPUT_DIR {shown(folder)}", error) from error


def _output_error(what: str, error: OSError, last_advice: str = "") -> OSError:
    """The same kind of error, with the file or folder in words and what to do about it."""
    remedy = "Set OUTPUT_DIR to another folder"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        remedy = "It, or something above it, is a file or a broken link: set OUTPUT_DIR to a folder"
    elif error.errno == errno.EISDIR:
        remedy = "Remove that folder, or set OUTPUT_DIR to another one"
    elif error.errno in _CURES:
        remedy = f"{_CURES[error.errno].format(at='there')}, or set OUTPUT_DIR to another folder"
    return OSError(error.errno, f"{what} cannot be written: {error.strerror or error}. "
                   f"{remedy}{last_advice}.")


@_repair(
    upstream="utils/events.py:99-122 (JSONWriter), :143-171 (TensorboardXWriter)",
    symptom="figures on a full disk: `No space left on device` without a file; closing the file "
    "fails again, so that hooks behind the writer do not end what they began",
    versions="all",
)
def _unwritable_figures(patch: _Patches) -> None:
    for kind in (_events.JSONWriter, _events.TensorboardXWriter):
        patch.set(kind, "write", _naming_write(kind.write))
        patch.set(kind, "close", _naming_close(kind.close))


def _naming_write(original: Callable) -> Callable:
    @functools.wraps(original)
    def write(self):
        if getattr(self, "_failed", False):
            return  # the error that ends the run has been raised
        try:
            original(self)
        except OSError as error:
            self._failed = True
            raise _figures_error(self, error) from error

    return write


def _naming_close(original: Callable) -> Callable:
    @functools.wraps(original)
    def close(self):
        try:
            original(self)
        except OSError as error:
            if not getattr(self, "_failed", False):
                raise _figures_error(self, error) from error
            logger.error("%s", _figures_error(self, error))

    return close


def _figures_error(writer, error: OSError) -> OSError:
    where = (writer._file_handle.name if isinstance(writer, _events.JSONWriter)
             else writer._writer.log_dir)
    return _output_error(shown(where), error, "; go on with --resume")


# --------------------------------------------------------------------------- checkpoints ----


@_repair(
    upstream="utils/checkpoint.py:93-95 (Checkpointer.save), :200-202 (tag_last_checkpoint)",
    symptom="a run killed while it saves leaves a broken checkpoint or a broken `last_checkpoint`, "
    "also over the good one of that name; `last_checkpoint` names model_best for a moment; a full "
    "disk is a RuntimeError about positions in a file",
    versions="all",
)
def _whole_checkpoints(patch: _Patches) -> None:
    resume_or_load = _checkpoint.Checkpointer.resume_or_load

    @functools.wraps(_checkpoint.Checkpointer.save)
    def save(self, name, **extra):
        if not self.save_dir or not self.save_to_disk:
            return
        parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
        data = {"model": self.model.state_dict(), **plain_values({**parts, **extra})}
        plain_values(data["model"], "model")  # checked only: it carries the versions of its modules
        _write_checkpoint(self, f"{name}.pth", data)

    @functools.wraps(_checkpoint.Checkpointer.tag_last_checkpoint)
    def tag_last_checkpoint(self, last_filename_basename):
        if last_filename_basename != "model_best.pth":
            write_atomically(Path(self.save_dir, "last_checkpoint"),
                             lambda file: file.write(last_filename_basename.encode()))

    @functools.wraps(resume_or_load)
    def resume_or_load_(self, path, *, resume=True):
        if self.save_to_disk and os.path.isdir(self.save_dir):
            remove_leftovers(self.save_dir)
        return resume_or_load(self, path, resume=resume)

    patch.set(_checkpoint.Checkpointer, "save", save)
    patch.set(_checkpoint.Checkpointer, "tag_last_checkpoint", tag_last_checkpoint)
    patch.set(_checkpoint.Checkpointer, "resume_or_load", resume_or_load_)


def _write_checkpoint(checkpointer, filename: str, data: dict) -> None:
    path = Path(checkpointer.save_dir, filename)
    if path.name != filename:
        raise ValueError(f"{filename!r} is no file name: a checkpoint is saved in OUTPUT_DIR.")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):  # said below
        run_lock.hold_again(checkpointer.save_dir)
    checkpointer.logger.info("Saving checkpoint to %s", path)
    waiting = _new_configs.get(os.path.abspath(path.with_name(_RUN_CONFIG)))
    if waiting is not None:  # of a script with a loop of its own
        _write_run_config(checkpointer.save_dir, waiting)
    try:
        remove_leftovers(checkpointer.save_dir)
        write_atomically(path, functools.partial(torch.save, data))
        checkpointer.tag_last_checkpoint(filename)
    except OSError as error:
        raise OSError(
            error.errno, f"The checkpoint {path} could not be saved: {error.strerror or error}. "
            f"{_last_good(checkpointer)} {_cure_in(checkpointer.save_dir, error)}, then go on with "
            "--resume.") from error


def _cure_in(folder: str, error: OSError) -> str:
    cure = _CURES.get(error.errno, "Make it possible to write {at}")
    return cure.format(at=f"in {folder} (OUTPUT_DIR)")


def _tagged(checkpointer) -> str | None:
    """What last_checkpoint says, whatever it is; None if there is none."""
    if not checkpointer.save_dir or not checkpointer.has_checkpoint():
        return None
    tag = Path(checkpointer.save_dir, "last_checkpoint")
    if not tag.is_file():
        raise ValueError(f"{tag} is a folder or a FIFO, not a regular file. Remove it. "
                         f"{_other_checkpoint(checkpointer.save_dir)}")
    try:
        return tag.read_text(errors="replace").strip()
    except OSError as error:
        raise _unreadable(error, tag, _other_checkpoint(checkpointer.save_dir)) from error


def _unreadable(error: OSError, path: str | os.PathLike[str], remedy: str) -> OSError:
    """An error of the same kind that names the file and what to do."""
    if isinstance(error, PermissionError):
        remedy = f"Let this user read it (chmod u+r). {remedy}"
    return OSError(error.errno, f"{path} could not be read: {error.strerror or error}. {remedy}")


def _last_good(checkpointer) -> str:
    """A sentence that names the checkpoint which --resume would take."""
    last = _tagged(checkpointer)
    if not os.path.isdir(checkpointer.save_dir):
        return "Earlier checkpoints went with their folder."
    if not last:
        return "There is no earlier checkpoint."
    return f"{Path(checkpointer.save_dir, last)} is still good."


@_repair(
    upstream="utils/checkpoint.py:83-87 (Checkpointer.save)",
    symptom="a run whose weights have become NaN goes on saving them, over the last good "
    "checkpoint as well",
    versions="all",
)
def _finite_checkpoints(patch: _Patches) -> None:
    save = _checkpoint.Checkpointer.save

    @functools.wraps(save)
    def save_(self, name, **extra):
        if self.save_dir and self.save_to_disk:
            parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
            wrong = find_non_finite({"model": self.model.state_dict(), **parts, **extra})
            if wrong:
                raise FloatingPointError(
                    f"{name}.pth is not saved: {wrong} holds NaN or infinity. {_last_good(self)} "
                    "Lower SOLVER.BASE_LR or set SOLVER.CLIP_GRADIENTS.ENABLED True, then go on "
                    "with --resume.")
        save(self, name, **extra)

    patch.set(_checkpoint.Checkpointer, "save", save_)


@_repair(
    upstream="utils/checkpoint.py:146-159 (get_checkpoint_file), :187-191 (resume_or_load)",
    symptom="a `last_checkpoint` that is empty or names a missing file is an error about something "
    "else, and one may name a file anywhere",
    versions="all",
)
def _last_checkpoint(patch: _Patches) -> None:
    resume_or_load = _checkpoint.Checkpointer.resume_or_load

    @functools.wraps(_checkpoint.Checkpointer.get_checkpoint_file)
    def get_checkpoint_file(self):
        name = _tagged(self)
        if name is None:
            return ""
        fault = _fault_of_tag(name, self.save_dir)
        if fault:
            raise ValueError(f"{Path(self.save_dir, 'last_checkpoint')} {fault}. "
                             f"{_other_checkpoint(self.save_dir)}")
        return os.path.join(self.save_dir, name)

    @functools.wraps(resume_or_load)
    def resume_or_load_(self, path, *, resume=True):
        if resume and _tagged(self) is None and any(Path(self.save_dir).glob("*.pth")):
            logger.warning("There is no last_checkpoint to resume from, so that the run begins "
                           "anew. %s", _other_checkpoint(self.save_dir))
        return resume_or_load(self, path, resume=resume)

    patch.set(_checkpoint.Checkpointer, "get_checkpoint_file", get_checkpoint_file)
    patch.set(_checkpoint.Checkpointer, "resume_or_load", resume_or_load_)


def _fault_of_tag(name: str, folder: str) -> str | None:
    if not name:
        return "is empty"
    if os.path.basename(name) != name:
        return f"names {name[:99]!r}, which is no file name"
    if not os.path.isfile(os.path.join(folder, name)):
        return f"names {name[:99]!r}, which is missing"
    return None


def _other_checkpoint(folder: str, broken: str = "") -> str:
    """How to go on from the newest checkpoint in a folder that loads."""
    tag = os.path.join(folder, "last_checkpoint")
    good = newest_that_loads(p for p in Path(folder).glob("*.pth") if p.name != broken)
    if good is None:
        return f"No other checkpoint in {folder} loads: remove {tag} to begin anew."
    return (f"The newest other checkpoint that loads is {good.name}: after `echo "
            f"{shlex.quote(good.name)} > {shlex.quote(tag)}`, --resume goes on from it.")


@_repair(
    upstream="utils/checkpoint.py:216 (Checkpointer._load_file), :118-120 (load)",
    symptom="before torch 2.6 a checkpoint or MODEL.WEIGHTS runs the code that it holds; a damaged "
    "one is an error that does not name the file, and changed bytes in it are not noticed; a "
    "missing one is an AssertionError",
    versions="all",
)
def _safe_checkpoints(patch: _Patches) -> None:
    load = _checkpoint.Checkpointer.load

    @functools.wraps(_checkpoint.Checkpointer._load_file)
    def load_file(self, f):
        try:
            return load_tensors(f)
        except (DamagedFile, CodeInFile) as error:
            raise type(error)(f"{error} {_remedy(self, f)}") from error
        except OSError as error:
            raise _unreadable(error, f, _remedy(self, f)) from error

    @functools.wraps(load)
    def load_(self, path, checkpointables=None):
        if path and not os.path.isfile(self.path_manager.get_local_path(path)):
            raise FileNotFoundError(
                errno.ENOENT, "There is no such checkpoint; check MODEL.WEIGHTS", path)
        try:
            return load(self, path, checkpointables)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
            if isinstance(error, (FloatingPointError, torch.cuda.OutOfMemoryError)):
                raise  # of a NaN in the memory bank, which says it all; no fault of the file
            parts = ", ".join(["model", *(
                self.checkpointables if checkpointables is None else checkpointables)])
            raise ValueError(
                f"{path} is no checkpoint of this run: a part of it ({parts}) is not as a run "
                f"saves it ({type(error).__name__}: {str(error)[:300]}). {_remedy(self, path)}"
                ) from error

    patch.set(_checkpoint.Checkpointer, "_load_file", load_file)
    patch.set(_checkpoint.Checkpointer, "load", load_)
    _allow_counters()


def _allow_counters() -> None:
    """Lets weights_only read a collections.Counter, a dict of counts.

    The state of MultiStepLR holds one, which some versions of torch refuse (2.2, for example).
    """
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals([collections.Counter])
        return
    from torch import _weights_only_unpickler  # torch < 2.4 has no public list

    allowed = _weights_only_unpickler._get_allowed_globals()  # one cached dict for all calls
    allowed["collections.Counter"] = collections.Counter


def _remedy(checkpointer, path: str) -> str:
    folder = checkpointer.save_dir
    if folder and Path(path).resolve().parent == Path(folder).resolve():
        return _other_checkpoint(folder, os.path.basename(path))
    return "Check MODEL.WEIGHTS: copy or download the file again, or take another."


@_repair(
    upstream="utils/checkpoint.py:225 (Checkpointer._load_model)",
    symptom="MODEL.WEIGHTS of nothing but weights (a state_dict(), as they are often published) is "
    "`KeyError: 'model'`",
    versions="all",
)
def _plain_weights(patch: _Patches) -> None:
    load_file = _checkpoint.Checkpointer._load_file

    @functools.wraps(load_file)
    def load_file_(self, f):
        content = load_file(self, f)
        tensors, under = find_weights(content)
        if under not in ((), ("model",)) and not _is_resumed(self, f):
            content = {"model": tensors}
        if isinstance(content, dict) and isinstance(content.get("model"), dict):
            for name, value in content["model"].items():
                if not isinstance(name, str) or not isinstance(value, (torch.Tensor, np.ndarray)):
                    raise ValueError(
                        f"{f} is no checkpoint: under the key 'model' it must have tensors by "
                        f"their names, and {str(name)[:80]!r} ({type(name).__name__}) is a "
                        f"{type(value).__name__}. {_remedy(self, f)}")
            return without_prefix(self, f, content, under)
        is_weights = isinstance(content, dict) and content and all(
            isinstance(name, str) and isinstance(value, torch.Tensor)
            for name, value in content.items())
        if is_weights and not _is_resumed(self, f):
            return without_prefix(self, f, {"model": content}, ())
        found = sorted(map(str, content))[:5] if isinstance(content, dict) else type(content)
        raise ValueError(
            f"{f} is no checkpoint: it has no weights under the key 'model' (found: {found}). "
            "A run goes on from its own checkpoints only; MODEL.WEIGHTS may also be the file of "
            "torch.save(model.state_dict(), ...).")

    def without_prefix(self, f, content, under):
        _refuse_a_part(self, f, content)
        weights, prefix = strip(content["model"], self.model.state_dict())
        if prefix and _is_resumed(self, f):
            return content
        if prefix or under not in ((), ("model",)):
            logger.info("%s: the weights%s are taken%s.", f,
                        f" under {' > '.join(map(repr, under))}" if under else "",
                        f", without the prefix {prefix!r}" if prefix else "")
        return {**content, "model": weights}

    patch.set(_checkpoint.Checkpointer, "_load_file", load_file_)


def _is_resumed(checkpointer, path: str) -> bool:
    return (_tagged(checkpointer) == os.path.basename(path)
            and os.path.samefile(os.path.dirname(path) or ".", checkpointer.save_dir))


def _refuse_a_part(checkpointer, path: str, content: dict) -> None:
    # its run_state may be missing: FastReID alone saves none
    missing = [part for part in ("optimizer", "lr_sched", "warmup_sched", "memory_bank")
               if part in checkpointer.checkpointables and part not in content]
    if "optimizer" in checkpointer.checkpointables and "epoch" not in content:
        missing.append("epoch")
    if missing and _is_resumed(checkpointer, path):
        raise ValueError(f"{path} has no {', '.join(missing)}: a run goes on from a whole "
                         f"checkpoint of its own. {_remedy(checkpointer, path)}")


@_repair(
    upstream="modeling/backbones/*.py (torch.load(pretrain_path) and downloads)",
    symptom="before torch 2.6 MODEL.BACKBONE.PRETRAIN_PATH runs the code that it holds; a damaged "
    "one, and a download that fails, is an error that names neither file nor key",
    versions="all",
)
def _safe_pretraining(patch: _Patches) -> None:
    hub = _module_like(torch.hub, load_state_dict_from_url=_download_pretrained)
    mended = _module_like(torch, load=_load_pretrained, hub=hub)
    for name, module in list(sys.modules.items()):
        if name.startswith("fastreid.modeling.backbones."):
            if getattr(module, "torch", None) is torch:
                patch.set(module, "torch", mended)
            if hasattr(module, "load_state_dict_from_url"):
                patch.set(module, "load_state_dict_from_url", _download_pretrained)
            if hasattr(module, "init_pretrained_weights"):
                patch.set(module, "init_pretrained_weights",
                          _says_what_to_download(module.init_pretrained_weights))


def _module_like(module: types.ModuleType, **changes: object) -> types.ModuleType:
    """A module with some names of its own and all others looked up in another."""
    copy = types.ModuleType(module.__name__, module.__doc__)
    copy.__getattr__ = functools.partial(getattr, module)
    vars(copy).update(changes)
    return copy


def _load_pretrained(path: str | os.PathLike[str], map_location: object = None) -> object:
    """Reads a backbone's weights, always onto the CPU: they are copied into the network anyway."""
    del map_location  # an argument of the toolbox's calls
    if not os.path.isfile(path):  # reading a FIFO would wait for ever
        message = "There are no such weights; check MODEL.BACKBONE.PRETRAIN_PATH"
        raise FileNotFoundError(errno.ENOENT, message, path)
    try:
        return load_tensors(path)
    except OSError as error:
        raise _unreadable(error, path, "Check MODEL.BACKBONE.PRETRAIN_PATH.") from error
    except (DamagedFile, CodeInFile) as error:
        raise type(error)(
            f"{error} Check MODEL.BACKBONE.PRETRAIN_PATH; where that is empty, the toolbox has "
            "downloaded the file itself, and does so again once it is removed.") from error


def _download_pretrained(
        url: str, model_dir: str | None = None, map_location: object = None, progress: bool = True,
        check_hash: bool = False, file_name: str | None = None) -> object:
    """``torch.hub.load_state_dict_from_url``, which has no weights_only in every torch."""
    del map_location  # as there
    folder = Path(model_dir or Path(torch.hub.get_dir(), "checkpoints"))
    path = folder / (file_name or Path(urllib.parse.urlparse(url).path).name)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        digest = re.search(r"-([a-f0-9]+)\.", path.name) if check_hash else None
        try:
            torch.hub.download_url_to_file(url, str(path), digest and digest[1], progress=progress)
        except OSError as error:  # urllib's errors among them
            raise _not_downloaded(error) from error
    return _load_pretrained(path)


def _says_what_to_download(original: Callable) -> Callable:
    """``init_pretrained_weights``, which fetches by gdown where the file is not there."""

    @functools.wraps(original)
    def init_pretrained_weights(*args, **kwargs):
        try:
            return original(*args, **kwargs)
        except FileNotFoundError:  # of _load_pretrained
            raise
        except (OSError, ImportError) as error:  # those of requests among them; no gdown
            raise _not_downloaded(error) from error
        except Exception as error:  # of gdown, which need not be installed and cannot be named
            if type(error).__module__.partition(".")[0] != "gdown":
                raise
            raise _not_downloaded(error) from error

    return init_pretrained_weights


def _not_downloaded(error: Exception) -> FileNotFoundError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return FileNotFoundError(
        "MODEL.BACKBONE.PRETRAIN is True without a MODEL.BACKBONE.PRETRAIN_PATH, and the weights "
        f"cannot be downloaded ({type(error).__name__}: {first}). Set MODEL.BACKBONE.PRETRAIN_PATH "
        "to a file of weights, or PRETRAIN to False to begin with random ones.")


@_repair(
    upstream="modeling/backbones/*.py (model.load_state_dict(state_dict, strict=False))",
    symptom="MODEL.BACKBONE.PRETRAIN_PATH with names that begin with module. or backbone., in a "
    "wrapper, or of another network loads nothing, and training begins with random weights",
    versions="all",
)
def _foreign_pretraining(patch: _Patches) -> None:
    original = _backbones_build.build_backbone

    @functools.wraps(original)
    def build_backbone(cfg):
        keys = cfg.MODEL.BACKBONE
        module = _backbones_build.BACKBONE_REGISTRY.get(keys.NAME).__module__
        if not (keys.PRETRAIN and keys.PRETRAIN_PATH
                and module.startswith("fastreid.modeling.backbones.")):
            return original(cfg)
        state = _load_pretrained(keys.PRETRAIN_PATH)
        try:
            tensors = unwrap(state, keys.PRETRAIN_PATH)
        except ValueError as error:
            raise ValueError(
                f"MODEL.BACKBONE.PRETRAIN_PATH {keys.PRETRAIN_PATH}: {error}.") from error
        # the transformer's own reading resizes its position embeddings; what it loads stays
        own = module.endswith(".vision_transformer") and isinstance(state, dict)
        backbone = original(cfg if own else _without_pretraining(cfg))
        load_matching(backbone, tensors, keys.PRETRAIN_PATH, "MODEL.BACKBONE.PRETRAIN_PATH")
        return backbone

    patch.everywhere(original, build_backbone)


def _without_pretraining(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.PRETRAIN = False
    return cfg


@_repair(
    upstream="utils/checkpoint.py:244 (load_state_dict(strict=False))",
    symptom="a checkpoint of another architecture is `loaded`: every weight is skipped with a log "
    "line and the run goes on from random weights",
    versions="all",
)
def _foreign_checkpoint(patch: _Patches) -> None:
    load_model = _checkpoint.Checkpointer._load_model
    resume_or_load = _checkpoint.Checkpointer.resume_or_load

    @functools.wraps(load_model)
    def load_model_(self, checkpoint):
        expected = self.model.state_dict()
        check_content(checkpoint["model"], expected, "The checkpoint")
        incompatible = load_model(self, checkpoint)
        wrong = {name for name, *_ in incompatible.incorrect_shapes}
        wrong.update(incompatible.missing_keys, incompatible.unexpected_keys)
        _check_checkpoint(expected, wrong, strict=getattr(self, "must_match", False))
        return incompatible

    @functools.wraps(resume_or_load)
    def resume_or_load_(self, path, *, resume=True):
        self.must_match = resume and self.has_checkpoint()
        try:
            return resume_or_load(self, path, resume=resume)
        finally:
            self.must_match = False

    patch.set(_checkpoint.Checkpointer, "_load_model", load_model_)
    patch.set(_checkpoint.Checkpointer, "resume_or_load", resume_or_load_)


def _check_checkpoint(expected: Iterable[str], wrong: set[str], strict: bool) -> None:
    """Refuses another backbone; another head too where the run is to go on or to be evaluated."""
    advice = ("Check MODEL.WEIGHTS (or the checkpoint in OUTPUT_DIR) against MODEL.BACKBONE and "
              "MODEL.HEADS.")
    backbone = [name for name in expected if name.startswith("backbone.")
                and not name.endswith("num_batches_tracked")]
    lost = [name for name in backbone if name in wrong]
    if lost:
        if len(lost) == len(backbone):
            advice += (" A file with the weights of a backbone alone goes into "
                       "MODEL.BACKBONE.PRETRAIN_PATH.")
        raise ValueError(
            f"The checkpoint is of another architecture: {len(lost)} of {len(backbone)} backbone "
            f"tensors are missing or of another shape (first: {lost[0]}). {advice}")
    # classifiers do not take part in the embedding, and another data set has other classes
    head = sorted(name for name in wrong if name.startswith("heads.")
                  and not name.startswith(("heads.weight", "heads.camera_")))
    if any(name.startswith("heads.attention.") for name in head):
        advice += " A network that was trained on one camera has MODEL.HEADS.CAMSEP.ATTENTION none."
    if head:
        message = (f"The checkpoint's head is another one: {len(head)} tensors are missing, left "
                   f"over or of another shape (first: {head[0]}). {advice}")
        if strict:
            raise ValueError(f"The checkpoint is of another architecture. {message}")
        logger.warning("%s They keep their first values.", message)


def load_weights(model: torch.nn.Module, path: str) -> None:
    """Loads a checkpoint's weights into a model that is to be evaluated, all of them or none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds code, or is of another architecture.
    """
    checkpointer = _checkpoint.Checkpointer(model)
    checkpointer.must_match = True
    checkpointer.load(path)


class _ConfiguredDatasets:
    """The registry of datasets for the toolbox's loaders: what they get is set up by a config.

    A dataset whose ``__init__`` is the toolbox's ``configurable`` is given the config before its
    root; all others are what they were.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._cfg: CfgNode | None = None

    def get(self, name: str) -> Callable:
        kind = self._registry.get(name)
        if self._cfg is None or not hasattr(kind, "from_config"):
            return kind
        return functools.partial(kind, self._cfg)

    @contextlib.contextmanager
    def by(self, cfg: CfgNode | None) -> Iterator[None]:
        before, self._cfg = self._cfg, cfg
        try:
            yield
        finally:
            self._cfg = before

    def __getattr__(self, name: str) -> object:
        return getattr(self._registry, name)


def _builds_with_config(original: Callable, datasets: _ConfiguredDatasets) -> Callable:
    @functools.wraps(original)
    def build(*args, **kwargs):
        cfg = kwargs.get("cfg", args[0] if args else None)
        with datasets.by(cfg if isinstance(cfg, CfgNode) else None):
            return original(*args, **kwargs)

    return build


# one for good: who imported a loader's builder keeps it when the repair is switched off and on
_DATASETS = _ConfiguredDatasets(_data_build.DATASET_REGISTRY)


@_repair(
    upstream="data/build.py:37, :107 (DATASET_REGISTRY.get(name)(root=_root))",
    symptom="a dataset is built from its root alone: none can be set up by config keys",
    versions="all",
)
def _dataset_config(patch: _Patches) -> None:
    for name in ("build_reid_train_loader", "build_reid_test_loader"):
        original = getattr(_data_build, name)
        patch.everywhere(original, _builds_with_config(original, _DATASETS))
    patch.set(_data_build, "DATASET_REGISTRY", _DATASETS)


def configured_dataset(cfg: CfgNode, name: str):
    """A registered dataset as the toolbox's loaders build it for a config.

    Raises:
        KeyError: no dataset of that name (lists those there are).
    """
    with _DATASETS.by(cfg):
        return _DATASETS.get(name)(root=dataset_root())


# ------------------------------------------------------------------------------ registries ----


def registered_names(registry) -> list[str]:
    """Names known to one of the toolbox's registries, sorted; the registry itself has no list."""
    return sorted(registry._obj_map)


def _registry_keeps_its_names() -> bool:
    registry = Registry("PROBE")
    registry.register(_always)
    try:
        registry.get("absent")
    except KeyError as error:
        return _always.__name__ not in str(error)
    return True


@_repair(
    upstream="utils/registry.py:61 (Registry.get)",
    symptom="an unknown head, backbone, dataset or meta-architecture is an error that does not say "
    "which names there are",
    versions="all",
    broken=_registry_keeps_its_names,
)
def _unknown_name(patch: _Patches) -> None:
    original = Registry.get

    @functools.wraps(original)
    def get(self, name):
        try:
            return original(self, name)
        except KeyError:
            raise KeyError(
                f"No object named {name!r} in the {self._name} registry, known are "
                f"{registered_names(self)}.") from None

    patch.set(Registry, "get", get)


# ---------------------------------------------------------------------------------- config ----

BASE_KEY = "_BASE_"
# Of a config file: far above what a config needs, below what aliases of aliases could grow to.
# PyYAML takes 0.1 ms for a value, so that bytes and values are counted before they are read.
DEEPEST_CONFIG, LARGEST_CONFIG, LONGEST_CONFIG = 30, 20_000, 500_000
# What PyYAML raises for text it cannot read, its own errors and those of Python's constructors.
_YAML_ERRORS = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError,
                TypeError, ValueError)


@_repair(
    upstream="config/config.py:52-98 (load_yaml_with_base)",
    symptom="a config file that is empty, damaged, not UTF-8 or no mapping ends in an error that "
    "does not name it (a TypeError, an AssertionError); a missing _BASE_ does not say who asks for "
    "it, one that leads back to itself is a RecursionError",
    versions="all",
)
def _config_file(patch: _Patches) -> None:
    load, merge = CfgNode.load_yaml_with_base, CfgNode.merge_from_file

    @functools.wraps(load)
    def load_yaml_with_base(filename, allow_unsafe=False):
        if allow_unsafe:  # runs the file's code: only where the caller says so
            return load(filename, allow_unsafe=True)
        return _load_config(str(filename), ())

    @functools.wraps(merge)
    def merge_from_file(self, cfg_filename, allow_unsafe=False):
        loaded = CfgNode.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe)
        try:
            self.merge_from_other_cfg(type(self)(loaded))
        except (KeyError, ValueError) as error:
            kind = KeyError if isinstance(error, KeyError) else ValueError
            raise kind(f"The config {cfg_filename}: {error.args[0]}") from error

    patch.set(CfgNode, "load_yaml_with_base", staticmethod(load_yaml_with_base))
    patch.set(CfgNode, "merge_from_file", merge_from_file)


class _CountingLoader(yaml.SafeLoader):
    """YAML's safe loader, which ends at what is too much while it reads it."""

    _nodes = 0
    _depth = 0
    _merged = 0

    def compose_node(self, parent, index):
        self._nodes += 1  # keys and values
        if self._nodes > 2 * LARGEST_CONFIG:
            raise ValueError(f"it holds more than {LARGEST_CONFIG} values")
        self._depth += 1
        if self._depth > 2 * DEEPEST_CONFIG:
            raise ValueError(f"it is nested more than {DEEPEST_CONFIG} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and node.value.count(":") > 3 and node.tag.endswith(
                (":int", ":float")):  # digits to the base 60, of any number
            raise ValueError(f"{node.value[:20]!r} is read as a number to the base 60: put it in "
                             "quotes")
        return node

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:  # YAML keeps the last, without a word
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise ValueError(f"{key.value[:80]} stands twice at one place, again in line "
                                     f"{key.start_mark.line + 1}: make one of the two")
                seen.add(key.value)
        return node

    def flatten_mapping(self, node):
        super().flatten_mapping(node)  # which comes here for each mapping that "<<" names
        self._merged += 1 + len(node.value)  # copied next, however often it was before
        if self._merged > 2 * LARGEST_CONFIG:
            raise ValueError(f"it holds more than {LARGEST_CONFIG} values, what << merges counted "
                             "each time")


def _load_config(filename: str, derived: tuple[str, ...]) -> dict:
    """A config file over its _BASE_; ``derived`` are the files that led here by theirs."""
    if len(derived) > DEEPEST_CONFIG:
        raise ValueError(f"The config {derived[0]} has more than {DEEPEST_CONFIG} files above it, "
                         f"each the {BASE_KEY} of the one before: merge some of them.")
    if os.path.realpath(filename) in map(os.path.realpath, derived):
        circle = " -> ".join((*derived, filename))
        raise ValueError(f"The config {filename} is its own {BASE_KEY}: {circle}.")
    loaded = _read_yaml(filename)
    if BASE_KEY not in loaded:
        return loaded
    path = _base_path(filename, loaded.pop(BASE_KEY))
    base = _load_config(path, (*derived, filename))
    _merge_sections(loaded, base, filename)
    return base


def _read_yaml(filename: str) -> dict:
    _refuse_url(filename, "the config file")
    try:
        with open(filename, encoding="utf-8") as file:
            text = file.read(LONGEST_CONFIG + 1)
        if len(text) > LONGEST_CONFIG:
            raise ValueError(f"it is longer than {LONGEST_CONFIG} characters")
        loaded = _CountingLoader(text).get_single_data()
    except _YAML_ERRORS as error:
        raise ValueError(f"The config {filename} is not readable as YAML in UTF-8, of at most "
                         f"{LARGEST_CONFIG} values: {error}") from error
    if not isinstance(loaded, dict):
        held = "is empty" if loaded is None else f"holds a {type(loaded).__name__}"
        raise ValueError(f"The config {filename} {held}: it must map config keys to values, as in "
                         "`SEED: 1`.")
    try:
        _check_section(loaded, "", (), {})
    except ValueError as error:
        raise ValueError(f"The config {filename}: {error}") from None
    return loaded


def _check_section(section, name: str, above: tuple[int, ...], sizes: dict[int, int]) -> int:
    """Refuses what a config cannot hold; returns the number of values, aliases written out."""
    if not isinstance(section, (dict, list)):
        if type(section) not in (str, int, float, bool, type(None)):
            raise ValueError(f"{name} is a {type(section).__name__}, and a config holds text, "
                             "numbers, True, False, null and lists alone: put it in quotes.")
        return 1
    if id(section) in above or len(above) >= DEEPEST_CONFIG:
        raise ValueError(f"{name} contains itself, or is nested more than {DEEPEST_CONFIG} deep.")
    if id(section) not in sizes:  # each alias is counted once: linear, however large it grows
        above = (*above, id(section))
        items = section.items() if isinstance(section, dict) else enumerate(section)
        size = 1
        for key, value in items:
            if isinstance(section, dict) and (not isinstance(key, str) or "." in key):
                raise ValueError(f"{key!r} in {name or 'the file'} is no config key: a key is "
                                 "text without a dot, sections are nested.")
            size += _check_section(value, f"{name}.{key}" if name else str(key), above, sizes)
        sizes[id(section)] = size
    if sizes[id(section)] > LARGEST_CONFIG:
        raise ValueError(f"{name or 'the file'} holds more than {LARGEST_CONFIG} values.")
    return sizes[id(section)]


def _base_path(filename: str, base) -> str:
    if not isinstance(base, str) or not base:
        raise ValueError(f"The config {filename}: {BASE_KEY} {base!r} must be the path of a file.")
    _refuse_url(base, f"{BASE_KEY} of the config {filename}")
    path = os.path.join(os.path.dirname(filename), os.path.expanduser(base))
    if not os.path.isfile(path):
        raise FileNotFoundError(f"The config {filename}: its {BASE_KEY} {base!r} is no file "
                                f"({path}).")
    return path


def _refuse_url(path: str, what: str) -> None:
    if "://" in path:
        raise ValueError(f"{path!r} as {what} is a URL, and configs are not fetched: download the "
                         "file and give its path.")


def _merge_sections(new: dict, base: dict, filename: str, prefix: str = "") -> None:
    for key, value in new.items():
        if isinstance(value, dict) and key in base:
            if not isinstance(base[key], dict):
                raise ValueError(f"The config {filename}: {prefix}{key} is a section, but a value "
                                 f"in its {BASE_KEY}.")
            _merge_sections(value, base[key], filename, f"{prefix}{key}.")
        else:
            base[key] = value


def _all_keys(cfg, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _all_keys(value, f"{prefix}{key}.")


def _check_known(key, known: set[str], root: CfgNode) -> None:
    if not isinstance(key, str):
        raise TypeError(f"A config key is text, got {key!r}.")
    if BASE_KEY in key.split("."):
        raise ValueError(f"{key!r}: the reserved key {BASE_KEY!r} can only be used in files.")
    told_by_yacs = root.key_is_deprecated(key) or root.key_is_renamed(key)
    if key not in known and not told_by_yacs:
        close = difflib.get_close_matches(key, known, n=3)
        raise KeyError(f"There is no config key {key!r}"
                       + (f", did you mean {' or '.join(close)}?" if close else "."))


def _check_known_keys(
        other: CfgNode, cfg: CfgNode, known: set[str], root: CfgNode, prefix: str = "") -> None:
    for key, value in other.items():
        if key not in cfg and not cfg.is_new_allowed():
            _check_known(f"{prefix}{key}" if isinstance(key, str) else key, known, root)
        elif isinstance(value, CfgNode) and isinstance(cfg.get(key), CfgNode):
            _check_known_keys(value, cfg[key], known, root, f"{prefix}{key}.")


def _unknown_key_is_an_assertion() -> bool:
    try:
        CfgNode({"KEY": 1}).merge_from_list(["KEZ", 2])
    except KeyError:
        return False
    except AssertionError:
        return True
    return True


@_repair(
    upstream="config/config.py:115 (merge_from_other_cfg) and :125 (merge_from_list) with yacs, "
    "whose merge_from_list asserts",
    symptom="a mistyped config key is a bare AssertionError, in a file a KeyError, without a hint",
    versions="all (yacs 0.1.8)",
    broken=_unknown_key_is_an_assertion,
)
def _unknown_key(patch: _Patches) -> None:
    merge_list, merge_other = CfgNode.merge_from_list, CfgNode.merge_from_other_cfg

    @functools.wraps(merge_list)
    def merge_from_list(self, cfg_list):
        if len(cfg_list) % 2:
            raise ValueError(f"Config keys and values must come in pairs, got {list(cfg_list)}.")
        known = set(_all_keys(self))
        for key in cfg_list[0::2]:
            _check_known(key, known, self)
        return merge_list(self, cfg_list)

    @functools.wraps(merge_other)
    def merge_from_other_cfg(self, cfg_other):
        if not isinstance(cfg_other, CfgNode):
            raise TypeError(f"A config is merged with a CfgNode, got {type(cfg_other).__name__}.")
        _check_known_keys(cfg_other, self, set(_all_keys(self)), self)
        return merge_other(self, cfg_other)

    patch.set(CfgNode, "merge_from_list", merge_from_list)
    patch.set(CfgNode, "merge_from_other_cfg", merge_from_other_cfg)


@_repair(
    upstream="config/config.py:125 (merge_from_list) with yacs, which decodes its values",
    symptom="a dict given for a section replaces it, and every key it does not name is gone; text "
    "such as `{[]: 1}` or a thousand brackets ends in a TypeError or MemoryError without the key; "
    "a folder called 20240501 is a number, and the error does not say how to write it",
    versions="all (yacs 0.1.8)",
)
def _config_value(patch: _Patches) -> None:
    decode, merge_list = CfgNode._decode_cfg_value, CfgNode.merge_from_list
    merge_other = CfgNode.merge_from_other_cfg

    def decode_cfg_value(cls, value):
        try:
            return decode(value)
        except (TypeError, MemoryError, RecursionError):  # of literal_eval: it is no literal
            if isinstance(value, str):
                return value
            raise

    @functools.wraps(merge_list)
    def merge_from_list(self, cfg_list):
        for key, value in zip(cfg_list[0::2], cfg_list[1::2], strict=False):  # odd: refused below
            if isinstance(value, dict):
                raise ValueError(f"The value of {key} is a section: give its keys one by one, as "
                                 f"in {key}.KEY VALUE.")
            section, _, name = key.rpartition(".") if isinstance(key, str) else ("", "", "")
            _check_type(_section(self, section), name, value, key)
        return merge_list(self, cfg_list)

    @functools.wraps(merge_other)
    def merge_from_other_cfg(self, cfg_other):
        if isinstance(cfg_other, CfgNode):
            _check_types(self, cfg_other)
        return merge_other(self, cfg_other)

    patch.set(CfgNode, "_decode_cfg_value", classmethod(decode_cfg_value))
    patch.set(CfgNode, "merge_from_list", merge_from_list)
    patch.set(CfgNode, "merge_from_other_cfg", merge_from_other_cfg)


_KINDS = {bool: "True or False", int: "a whole number", float: "a number with a decimal point",
          str: "text", list: "a list", tuple: "a list"}


def _section(cfg: CfgNode, name: str) -> CfgNode:
    """A section by its name; an empty one where there is none, which is for others to say."""
    for part in name.split(".") if name else ():
        cfg = cfg.get(part)
        if not isinstance(cfg, CfgNode):
            return CfgNode()
    return cfg


def _check_types(cfg: CfgNode, other: CfgNode, prefix: str = "") -> None:
    for key, value in other.items():
        if isinstance(value, CfgNode) and isinstance(cfg.get(key), CfgNode):
            _check_types(cfg[key], value, f"{prefix}{key}.")
        else:
            _check_type(cfg, key, value, f"{prefix}{key}")


def _check_type(cfg: CfgNode, name: str, given: object, key: str) -> None:
    """Says of a value of the wrong type how to write it; other types are for yacs to judge."""
    wanted = _KINDS.get(type(cfg.get(name)))
    value = CfgNode._decode_cfg_value(given)
    if wanted is None or value is None or _KINDS.get(type(value)) == wanted:
        return
    text = str(given)
    text = text if len(text) < 200 else f"{text[:200]}..."
    remedy = "."
    if wanted == _KINDS[str]:
        remedy = f": put it in quotes twice, as in \"{text!r}\"."
    elif type(value) is int and wanted == _KINDS[float]:
        remedy = f": write {value}.0."
    held = _KINDS.get(type(value), f"a {type(value).__name__}")
    raise ValueError(f"Type mismatch: config key {key} takes {wanted}, and {shown(text)} is {held}"
                     f"{remedy}")


_key_adders: list[Callable[[CfgNode], None]] = []


def offer_keys(add: Callable[[CfgNode], None]) -> None:
    """Has config keys added where a config that does not know them is given one, or is built from.

    Args:
        add: adds the keys to a config of the toolbox, in place.
    """
    _key_adders.append(add)


def _with_offered_keys(cfg: CfgNode) -> CfgNode:
    """The config itself, or a copy with the keys that are offered; its own values stay."""
    if "MODEL" not in cfg or "SOLVER" not in cfg:  # a part of a config
        return cfg
    full = cfg.clone()
    full.defrost()
    for add in _key_adders:
        add(full)
    if set(_all_keys(full)) == set(_all_keys(cfg)):
        return cfg
    _merge_known(full, cfg)
    if cfg.is_frozen():
        full.freeze()
    return full


def _merge_known(cfg: CfgNode, values: CfgNode) -> None:
    for key, value in values.items():
        if isinstance(value, CfgNode) and isinstance(cfg.get(key), CfgNode):
            _merge_known(cfg[key], value)
        else:
            cfg[key] = value


def _take_offered_keys(cfg: CfgNode, asked: Sequence[str]) -> None:
    """Adds the keys that are offered to a config which is given one that it does not know."""
    if cfg.is_frozen() or set(asked) <= set(_all_keys(cfg)):
        return
    full = _with_offered_keys(cfg)
    if (set(asked) & set(_all_keys(full))) - set(_all_keys(cfg)):
        _merge_known(cfg, full)


@_repair(
    upstream="config/config.py:115-134 (merge_from_other_cfg, merge_from_list), "
    "modeling/meta_arch/build.py:18-27 (build_model)",
    symptom="config.yaml of a run with the plugin is a KeyError in the toolbox's own tools "
    "(demo.py, a Distiller's teacher), which know the toolbox's keys alone; the plugin's head, "
    "named in a config without its keys, is an AttributeError",
    versions="all",
)
def _plugin_keys(patch: _Patches) -> None:
    merge_list, merge_other = CfgNode.merge_from_list, CfgNode.merge_from_other_cfg
    original = _meta_build.build_model

    @functools.wraps(merge_list)
    def merge_from_list(self, cfg_list):
        _take_offered_keys(self, [key for key in cfg_list[0::2] if isinstance(key, str)])
        return merge_list(self, cfg_list)

    @functools.wraps(merge_other)
    def merge_from_other_cfg(self, cfg_other):
        if isinstance(cfg_other, CfgNode):
            _take_offered_keys(self, list(_all_keys(cfg_other)))
        return merge_other(self, cfg_other)

    @functools.wraps(original)
    def build_model(cfg):
        return original(_with_offered_keys(cfg))

    patch.set(CfgNode, "merge_from_list", merge_from_list)
    patch.set(CfgNode, "merge_from_other_cfg", merge_from_other_cfg)
    patch.everywhere(original, build_model)


@_repair(
    upstream="config/config.py:115-134 (merge_from_other_cfg, merge_from_list) with yacs",
    symptom="a merge that ends in an error has already changed every key before the wrong one",
    versions="all (yacs 0.1.8)",
)
def _half_merge(patch: _Patches) -> None:
    for name in ("merge_from_list", "merge_from_other_cfg"):
        patch.set(CfgNode, name, _all_or_nothing(getattr(CfgNode, name)))


def _all_or_nothing(merge):
    @functools.wraps(merge)
    def merge_(self, other):
        merge(self.clone(), other)  # raises before anything is changed
        return merge(self, other)

    return merge_


# ----------------------------------------------------------------------------- the losses ----


@_repair(
    upstream="modeling/meta_arch/baseline.py:131-180, mgn.py:291-394 (if name in loss_names), "
    "modeling/meta_arch/build.py:18-27 (build_model)",
    symptom="a mistyped name in MODEL.LOSSES.NAME trains without that loss, and so does one of "
    "the plugin's in an architecture that computes its losses in its own way",
    versions="all",
)
def _unknown_loss(patch: _Patches) -> None:
    for architecture, known in ((_Baseline, TOOLBOX_LOSSES), (_MGN, MGN_LOSSES)):
        patch.set(architecture, "losses", _with_known_losses(architecture.losses, known))
    original = _meta_build.build_model

    @functools.wraps(original)
    def build_model(cfg):
        model = original(cfg)
        if _has_own_losses(model):
            _watch_losses(model, cfg.MODEL.LOSSES.NAME)
        return model

    patch.everywhere(original, build_model)


def _has_own_losses(model: torch.nn.Module) -> bool:
    """Whether somebody's own class computes losses: neither the toolbox's nor the plugin's."""
    for kind in type(model).__mro__:  # a fork of the toolbox may have more than the toolbox
        if (kind.__module__.split(".")[0] in ("caureid_plugin", "torch")
                or kind in (_Baseline, _MGN, _MoCo, _Distiller)):
            return False
        if vars(kind).keys() & {"losses", "forward"}:
            return True
    return False


def _watch_losses(model: torch.nn.Module, names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in (*TOOLBOX_LOSSES, *PLUGIN_LOSSES)]
    if unknown:
        logger.warning("MODEL.LOSSES.NAME has %s, which is neither FastReID's nor the plugin's "
                       "own: it is left to %s to compute (one of LOSS_REGISTRY by "
                       "caureid_plugin.build_losses).", unknown, type(model).__name__)
    own = [name for name in names if name in PLUGIN_LOSSES]
    if own:
        model.register_forward_hook(functools.partial(_check_losses, own))


def _check_losses(names: Sequence[str], model: torch.nn.Module, _, outputs) -> None:
    if not model.training:
        return
    found = sorted(outputs) if isinstance(outputs, dict) else []
    missing = [name for name in names if PLUGIN_LOSSES[name] not in found]
    if missing:
        given = found if isinstance(outputs, dict) else f"a {type(outputs).__name__}, no dict"
        raise ValueError(
            f"{type(model).__name__} gives no {', '.join(PLUGIN_LOSSES[n] for n in missing)} in "
            f"training, for the plugin's losses {missing} of MODEL.LOSSES.NAME: it gives {given}. "
            "Take them out, set MODEL.META_ARCHITECTURE CAUReID, or call "
            "caureid_plugin.build_losses there, and give each scalar by its name.")


def _with_known_losses(original: Callable, known: Sequence[str]) -> Callable:
    @functools.wraps(original)
    def losses(self, *args, **kwargs):
        unknown = [n for n in self.loss_kwargs["loss_names"] if n not in known]
        if unknown and not _has_own_losses(self):
            raise ValueError(
                f"{type(self).__name__} does not know the losses {unknown} of MODEL.LOSSES.NAME; "
                f"it knows {list(known)}. MODEL.META_ARCHITECTURE CAUReID knows the toolbox's and "
                "the plugin's.")
        return original(self, *args, **kwargs)

    return losses


class _Outputs(dict):
    """What a head gives in training; says so where an architecture asks for more."""

    def __init__(self, outputs: dict, architecture: str, head: str) -> None:
        super().__init__(outputs)
        self._names = architecture, head

    def __missing__(self, key: str) -> None:
        architecture, head = self._names
        raise KeyError(
            f"{architecture} asks its head for {key!r}, which {head} (MODEL.HEADS.NAME) does not "
            f"give: it gives {sorted(self)}. Choose the head that is made for this "
            "MODEL.META_ARCHITECTURE, or another architecture; scores of classes need "
            "MODEL.HEADS.NUM_CLASSES, a Distiller's teacher's as well.")


def _tell_missing_outputs(architecture: str, head: torch.nn.Module, _, outputs):
    if head.training and type(outputs) is dict:
        return _Outputs(outputs, architecture, type(head).__name__)
    return None


@_repair(
    upstream="modeling/meta_arch/baseline.py:112-113 (self.losses(outputs, targets))",
    symptom="an architecture of somebody's own with a head that it is not made for, such as "
    "PartialBaseline with another than DSRHead, is a bare KeyError of its first step, as is a "
    "Distiller whose teacher has no classes",
    versions="all",
)
def _missing_output(patch: _Patches) -> None:
    original = _meta_build.build_model

    @functools.wraps(original)
    def build_model(cfg):
        model = original(cfg)
        if isinstance(getattr(model, "heads", None), torch.nn.Module):
            model.heads.register_forward_hook(
                functools.partial(_tell_missing_outputs, type(model).__name__))
        return model

    patch.everywhere(original, build_model)


@_repair(
    upstream="evaluation/clas_evaluator.py:48-56 (ClasEvaluator.process)",
    symptom="a classification project with a head for re-identification has accuracy 0: the place "
    "of an embedding's largest number is taken for a class",
    versions="all",
)
def _embedding_as_scores(patch: _Patches) -> None:
    original = _clas_evaluator.ClasEvaluator.process

    @functools.wraps(original)
    def process(self, inputs, outputs):
        heads = self.cfg.MODEL.HEADS
        if 0 < heads.NUM_CLASSES != outputs.shape[1] or _gives_embeddings(self.cfg):
            raise ValueError(
                f"The network gives {outputs.shape[1]} numbers for an image, and there are "
                f"{max(heads.NUM_CLASSES, 0)} classes (MODEL.HEADS.NUM_CLASSES): MODEL.HEADS.NAME "
                f"{heads.NAME} gives embeddings, not scores of classes. Set it to ClasHead, or "
                "evaluate with ReidEvaluator.")
        return original(self, inputs, outputs)

    patch.set(_clas_evaluator.ClasEvaluator, "process", process)


def _gives_embeddings(cfg: CfgNode) -> bool:
    """Whether the head is known to, and is what the architecture evaluates with.

    An embedding may be as long as there are classes. Somebody's own parts are left alone.
    """
    try:
        architecture = _meta_build.META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
        forward = REID_HEADS_REGISTRY.get(cfg.MODEL.HEADS.NAME).forward
    except KeyError:
        return False
    of_architecture, of_head = (function.__module__.split(".")[0]
                                for function in (architecture.forward, forward))
    return of_architecture in ("fastreid", "caureid_plugin") and (
        forward is EmbeddingHead.forward or of_head == "caureid_plugin")


# ------------------------------------------------------------------------ for the plugin ----


def dataset_root() -> str:
    """Folder that the toolbox's loaders look for datasets in: FASTREID_DATASETS, or "datasets"."""
    return _data_build._root


def junk_identities(name: str) -> list:
    """Identities of a registered dataset's test images that are no one's: -1 and 0 in Market-1501.

    Args:
        name: as in DATASETS.TESTS.
    """
    return list(getattr(_data_build.DATASET_REGISTRY.get(name), "_junk_pids", []))


def swap_train_loader(trainer, loader) -> None:
    """Gives a running DefaultTrainer another training loader and ends the old one's workers.

    The toolbox's trainer keeps the iterator it made at construction, so that a new loader alone
    would be ignored.
    """
    inner = trainer._trainer
    inner.data_loader.shutdown()
    inner.data_loader = loader
    inner._data_loader_iter = iter(loader)


apply_all()
