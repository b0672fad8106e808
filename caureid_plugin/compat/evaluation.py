"""Repairs so that the figures are right, are all written, and never end a run."""

from __future__ import annotations

import collections
import collections.abc
import contextlib
import functools
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from pathlib import Path

import fastreid.engine.defaults as _defaults
import fastreid.engine.hooks as _hooks
import fastreid.evaluation.rank_cylib as _rank_cylib
import fastreid.utils.compute_dist as _compute_dist
import fastreid.utils.events as _events
import numpy as np
import torch
from fastreid.utils import comm

from ..clustering import Search, jaccard_distances, standardize_by_camera
from ..common.errors import OutOfMemory, UserError
from ..common.text import naming_keys
from .importing import faiss_is_missing, faiss_stand_in, logger
from .repair import Patches, repair
from .writers import write_figures


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


@repair(
    upstream="evaluation/rank_cylib/__init__.py:8-20, called by evaluation/reid_evaluation.py:128",
    symptom="the evaluator is compiled by `make` with whatever `python3` is on the PATH, inside "
    "site-packages, at the first evaluation, and sys.exit(1) ends the run if that fails",
    versions="all (Python >= 3.12 has no distutils, so `make` fails there without setuptools)",
)
def _evaluator_build(patch: Patches) -> None:
    @patch.wrap(_defaults.DefaultTrainer, "__init__")
    def init(original, self, cfg):
        prepare_evaluation()
        original(self, cfg)

    patch.everywhere(_rank_cylib.compile_helper, _compile_evaluator)


@repair(
    upstream="evaluation/reid_evaluation.py:72-79 (ReidEvaluator.evaluate)",
    symptom="the evaluator ranks features as the network gives them: what needs the statistics of "
    "all of them, such as standardising by camera, has no place",
    versions="all",
)
def _ranked_features(patch: Patches) -> None:
    @patch.wrap(_defaults.ReidEvaluator, "evaluate")
    def evaluate(original, self):
        # a config of FastReID without the plugin does not have the key
        if not getattr(self.cfg.TEST, "STANDARDIZE_BY_CAMERA", False):
            return original(self)
        own = self._predictions
        shares = comm.all_gather([(p["feats"], p["camids"]) for p in own])
        features, camids = (torch.cat([batch[place] for share in shares for batch in share])
                            for place in (0, 1))
        with naming_keys({"not standardise": "TEST.STANDARDIZE_BY_CAMERA False"}):
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


@repair(
    upstream="evaluation/reid_evaluation.py:41-47 (ReidEvaluator.process)",
    symptom="test images whose camera or identity is text, be it a number as in the project "
    "NAIC20, end in `'list' object has no attribute 'to'`",
    versions="all",
)
def _text_labels(patch: Patches) -> None:
    @patch.wrap(_defaults.ReidEvaluator, "process")
    def process(original, self, inputs, outputs):
        texts = [key for key in ("targets", "camids") if isinstance(inputs[key], (list, tuple))]
        return original(self, {**inputs, **{key: _as_numbers(inputs, key) for key in texts}},
                        outputs)


def _as_numbers(inputs, key: str) -> torch.Tensor:
    numbers = []
    for place, text in enumerate(inputs[key]):
        try:
            numbers.append(int(text))
        except (TypeError, ValueError):
            what = {"targets": "identity", "camids": "camera"}[key]
            path = inputs["img_paths"][place] if "img_paths" in inputs else "a test image"
            raise UserError(
                f"{path}: its {what} must be a whole number, got {text!r}. The dataset, one of "
                "DATASETS.TESTS, is to give each name a number, the same in query and gallery."
                ) from None
    return torch.tensor(numbers)


@repair(
    upstream="evaluation/rank.py:156 and evaluation/reid_evaluation.py:112",
    symptom="a small gallery cannot be evaluated: fewer than 10 images raise IndexError, and the "
    "Python ranking raises ValueError when fewer than 50 count for some query; one without any "
    "answer ends in a bare AssertionError",
    versions="all",
)
def _small_gallery(patch: Patches) -> None:
    with warnings.catch_warnings():  # that it is not compiled, which comes before it is used
        warnings.simplefilter("ignore")
        original = importlib.import_module("fastreid.evaluation.rank").evaluate_rank

    @functools.wraps(original)
    def evaluate_rank(distmat, q_pids, g_pids, q_camids, g_camids, max_rank=50,
                      use_metric_cuhk03=False, use_cython=True):
        same = (q_pids[:, None] == g_pids) & (q_camids[:, None] == g_camids)
        if not ((q_pids[:, None] == g_pids) & ~same).any():
            raise UserError(
                f"None of the {len(q_pids)} query images has a gallery image of the same identity "
                "from another camera, so that nothing can be evaluated: images of the query's own "
                "camera are left out. Add some, or correct identities and cameras. Images of one "
                "camera are evaluated as two sets by CAMERA_FOLDER.QUERY and GALLERY, with "
                "CameraFolder in DATASETS.TESTS.")
        # that metric counts identities, which are fewer
        if use_metric_cuhk03 or distmat.shape[1] - same.sum(axis=1).max(initial=0) < max_rank:
            # infinitely far: no hit, and behind every other image
            nobody = -2 - np.arange(max_rank)
            distmat = np.pad(distmat, ((0, 0), (0, max_rank)), constant_values=np.inf)
            g_pids, g_camids = np.append(g_pids, nobody), np.append(g_camids, nobody)
        return original(distmat, q_pids, g_pids, q_camids, g_camids, max_rank, use_metric_cuhk03,
                        use_cython)

    patch.everywhere(original, evaluate_rank)


@repair(
    upstream="utils/compute_dist.py:51-54 (build_dist) with :105 and :156",
    symptom="TEST.RERANK fills two dense arrays over queries and gallery together, in Python "
    "loops, to return the Q x G part of one; with fewer images than K1, neighbour lists are padded "
    "with -1, which indexes the last image",
    versions="all",
)
def _rerank_memory(patch: Patches) -> None:
    @patch.wrap(_compute_dist, "build_dist")
    def build_dist(original, feat_1, feat_2, metric="euclidean", **kwargs):
        if metric == "jaccard":
            return _rerank(feat_1, feat_2, kwargs["k1"], kwargs["k2"])
        return original(feat_1, feat_2, metric, **kwargs)


def _rerank(query: torch.Tensor, gallery: torch.Tensor, k1: int, k2: int) -> np.ndarray:
    """Jaccard distances (Q, G), float32, of features (Q, D) and (G, D).

    Raises:
        ValueError: features that are not finite, or k1 or k2 below 1.
        MemoryError: it would not fit.
    """
    for name, value in (("K1", k1), ("K2", k2)):
        if value < 1:
            raise UserError(f"TEST.RERANK.{name} must be at least 1, got {value}.")
    # exact whatever the size, and on the GPU if there is one, as the toolbox does it
    search = Search(backend="torch", device="cuda" if torch.cuda.is_available() else "cpu")
    try:
        # a list has only k1 neighbours to average over
        return jaccard_distances(query, gallery, k1=k1, k2=min(k1, k2), small=True, search=search)
    except MemoryError as error:
        raise OutOfMemory(
            f"Re-ranking {len(query)} queries against {len(gallery)} images does not fit: lower "
            f"TEST.RERANK.K1 {k1} or set TEST.RERANK.ENABLED False.") from error


@repair(
    upstream="evaluation/roc.py:9 (import faiss), also utils/compute_dist.py:10 and "
    "utils/faiss_utils.py:4",
    symptom="nothing of the toolbox can be imported without faiss, and TEST.ROC, which imports it "
    "at the first evaluation and never uses it, ends the run",
    versions="all",
    broken=faiss_is_missing,
)
def _faiss_missing(patch: Patches) -> None:
    # faiss_stand_in has helped the other two, when the toolbox was imported

    @patch.wrap(_defaults.ReidEvaluator, "evaluate")
    def evaluate(original, self):
        if self.cfg.TEST.ROC.ENABLED:
            with faiss_stand_in():
                importlib.import_module("fastreid.evaluation.roc")  # not before it is compiled
        return original(self)


@repair(
    upstream="engine/defaults.py:342-353 (train), engine/hooks.py:204 "
    "(PeriodicCheckpointer), :382 (EvalHook), engine/train_loop.py:153",
    symptom="training without a labelled test set fails: DATASETS.TESTS () raises IndexError, "
    "TEST.EVAL_PERIOD 0 ZeroDivisionError, and train() asserts evaluation results; an error "
    "before the first epoch is hidden behind `no attribute 'epoch'`; a run that fails in its last "
    "epoch is evaluated all the same",
    versions="all",
)
def _training_without_tests(patch: Patches) -> None:
    @patch.wrap(_defaults.DefaultTrainer, "train")
    def train_(train, self):
        self.epoch = self.start_epoch - 1
        self._last_eval_results = getattr(self, "_last_eval_results", collections.OrderedDict())
        return train(self)

    @patch.wrap(_hooks.PeriodicCheckpointer, "before_train")
    def before_train_(before_train, self):
        if self.trainer.cfg.DATASETS.TESTS:
            before_train(self)
        else:
            self.max_epoch, self.metric_name = self.trainer.max_epoch, "metric"

    @patch.wrap(_hooks.EvalHook, "after_train")
    def after_train_(after_train, self):
        if not _is_finished(self.trainer):
            return  # the run has failed or was stopped, perhaps within its last epoch
        if self._period > 0:
            after_train(self)
        else:
            self._do_eval()  # the documented meaning: at the end of training


def _is_finished(trainer) -> bool:
    return getattr(trainer, "is_finished", trainer.iter >= trainer.max_iter)


@repair(
    upstream="utils/events.py:221 (CommonMetricPrinter.write)",
    symptom="an iteration that ends an epoch and the run is printed twice, in a run of fewer than "
    "three iterations as a ZeroDivisionError",
    versions="all",
)
def _printer_twice(patch: Patches) -> None:
    @patch.wrap(_events.CommonMetricPrinter, "write")
    def write(original, self):
        iteration = _events.get_event_storage().iter
        if getattr(self, "_printed", None) != iteration:
            self._printed = iteration
            original(self)


@repair(
    upstream="engine/hooks.py:170-188 (PeriodicWriter) with utils/events.py:105 "
    "(JSONWriter) and :147 (TensorboardXWriter)",
    symptom="figures are missing from metrics.json and TensorBoard when something else was written "
    "at their iteration before: the last evaluation, and everything logged before an epoch's first "
    "step",
    versions="all",
)
def _lost_figures(patch: Patches) -> None:
    for kind in (_events.JSONWriter, _events.TensorboardXWriter):
        patch.set(kind, "write", _writes_every_figure(kind.write))

    @patch.wrap(_hooks.PeriodicWriter, "after_step")
    def after_step_(after_step, self):
        # the last step's figures follow behind its epoch, in one row as for other epochs
        if (self.trainer.iter + 1) % self._period == 0:
            after_step(self)

    @patch.wrap(_hooks.PeriodicWriter, "after_train")
    def after_train_(after_train, self):
        if _is_finished(self.trainer):  # an evaluation after the last epoch
            write_figures(self._writers)
        after_train(self)


def _writes_every_figure(original):
    """Lets a writer remember what it wrote for each figure, not for all of them together."""

    @functools.wraps(original)
    def write(self):
        storage = _events.get_event_storage()
        latest = storage.latest_with_smoothing_hint
        written = self.__dict__.setdefault("_written", {})

        def unwritten(window_size=20):
            return {name: (value, step) for name, (value, step) in latest(window_size).items()
                    if written.get(name, -1) < step}

        fresh = {name: step for name, (_, step) in unwritten().items()}
        self._last_write = -1
        storage.latest_with_smoothing_hint = unwritten
        try:
            original(self)
        finally:
            del storage.latest_with_smoothing_hint
        written.update(fresh)

    return write
