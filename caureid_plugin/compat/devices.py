"""Repairs so that training runs with and without CUDA, and loaders end with their run."""

from __future__ import annotations

import functools
import random
import signal
import sys
import types
from collections.abc import Callable, Iterator

import fastreid.data.build as _data_build
import fastreid.data.data_utils as _data_utils
import fastreid.modeling.meta_arch.build as _meta_build
import fastreid.utils.compute_dist as _compute_dist
import torch
from fastreid.config import CfgNode
from fastreid.modeling.meta_arch import MGN as _MGN
from fastreid.modeling.meta_arch import Baseline as _Baseline

from ..common.errors import UserError
from .importing import logger
from .repair import Patches, raises, repair


@repair(
    upstream="modeling/meta_arch/build.py:25 with config/defaults.py:23 (MODEL.DEVICE = "
    "'cuda')",
    symptom="every config asks for CUDA; without it the model cannot be built; a device that torch "
    "does not know, such as gpu, is an error without the key",
    versions="all",
)
def _default_device(patch: Patches) -> None:
    @patch.wrap(_meta_build, "build_model")
    def build_model(original, cfg):
        try:
            torch.device(cfg.MODEL.DEVICE)
        except RuntimeError as error:
            raise UserError(f"MODEL.DEVICE {cfg.MODEL.DEVICE!r} is no device that torch knows: set "
                            "it to cuda, to one GPU such as cuda:1, or to cpu.") from error
        if str(cfg.MODEL.DEVICE).startswith("cuda") and not torch.cuda.is_available():
            logger.info("MODEL.DEVICE is %r, but there is no CUDA device: running on the CPU.",
                        cfg.MODEL.DEVICE)
            frozen, cfg = cfg.is_frozen(), cfg.clone()
            cfg.defrost()
            cfg.MODEL.DEVICE = "cpu"
            if frozen:
                cfg.freeze()
        return original(cfg)


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


@repair(
    upstream="data/data_utils.py:82-202 (BackgroundGenerator, DataLoaderX)",
    symptom="every loader needs CUDA; each one keeps a thread and its workers for ever, and starts "
    "them when the trainer is built, before anybody has asked for a batch; in a run of several "
    "processes workers are spawned, not forked, and each imports everything anew",
    versions="all",
)
def _train_loader(patch: Patches) -> None:
    patch.everywhere(_data_utils.DataLoaderX, DeviceLoader)


@repair(
    upstream="data/build.py:124 (build_reid_test_loader, num_workers=4)",
    symptom="DATALOADER.NUM_WORKERS does not reach the test loader, which always starts four",
    versions="all",
)
def _test_loader_workers(patch: Patches) -> None:
    @patch.wrap(_data_build, "build_reid_test_loader")
    def build_reid_test_loader(original, *args, **kwargs):
        cfg = kwargs.get("cfg", args[0] if args else None)
        if not isinstance(cfg, CfgNode):
            return original(*args, **kwargs)
        explicit = _data_build._test_loader_from_config(*args, **kwargs)
        workers = kwargs.get("num_workers", cfg.DATALOADER.NUM_WORKERS)
        return original(**explicit, num_workers=workers)


def _jaccard_needs_cuda() -> bool:
    # with CUDA the call would open a context on the first device, whatever the rank
    return torch.cuda.is_available() or raises(
        lambda: _compute_dist.compute_jaccard_distance(torch.eye(4), k1=2, k2=1))


@repair(
    upstream="utils/compute_dist.py:68 (features.cuda()) with :76,82 and utils/faiss_utils.py:115",
    symptom="compute_jaccard_distance with its default search_option fails without CUDA or "
    "without faiss-gpu",
    versions="all",
    broken=_jaccard_needs_cuda,
)
def _jaccard_without_cuda(patch: Patches) -> None:
    @patch.wrap(_compute_dist, "compute_jaccard_distance")
    def compute_jaccard_distance(original, features, k1=20, k2=6, search_option=0, fp16=False):
        if not (torch.cuda.is_available() and hasattr(_compute_dist.faiss, "StandardGpuResources")):
            features, search_option = features.cpu(), 3
        return original(features, k1=k1, k2=k2, search_option=search_option, fp16=fp16)


@repair(
    upstream="modeling/meta_arch/baseline.py:99 (forward) with data/data_utils.py:186 (preload)",
    symptom="MODEL.DEVICE cpu on a machine with CUDA: the loader's batches are on the GPU, the "
    "model is not",
    versions="all",
)
def _batch_on_other_device(patch: Patches) -> None:
    @patch.wrap(_Baseline, "forward")
    def forward(original, self, batched_inputs):
        if isinstance(batched_inputs, dict):
            batched_inputs = to_device(batched_inputs, self.device)
        return original(self, batched_inputs)


def _preprocessing_changes_its_input() -> bool:
    model = types.SimpleNamespace(pixel_mean=torch.ones(1), pixel_std=torch.ones(1))
    images = torch.zeros(1, 3, 1, 1)
    _Baseline.preprocess_image(model, {"images": images})
    return bool(images.any())


@repair(
    upstream="modeling/meta_arch/baseline.py:130 and mgn.py:256 (images.sub_().div_() in place)",
    symptom="TEST.FLIP.ENABLED normalises the flipped images twice, so half of every averaged "
    "feature comes from a wrong image; the caller's batch is changed as well",
    versions="all",
    broken=_preprocessing_changes_its_input,
)
def _preprocess_in_place(patch: Patches) -> None:
    @patch.wrap(_MGN, "preprocess_image")
    @patch.wrap(_Baseline, "preprocess_image")
    def on_a_copy(original, self, batched_inputs):
        if isinstance(batched_inputs, dict):
            batched_inputs = {**batched_inputs, "images": batched_inputs["images"].clone()}
        elif isinstance(batched_inputs, torch.Tensor):
            batched_inputs = batched_inputs.clone()
        return original(self, batched_inputs)


def swap_train_loader(trainer, loader) -> None:
    """Gives a running DefaultTrainer another training loader and ends the old one's workers.

    The toolbox's trainer keeps the iterator it made at construction, so that a new loader
    by itself would be ignored.
    """
    inner = trainer._trainer
    inner.data_loader.shutdown()
    inner.data_loader = loader
    inner._data_loader_iter = iter(loader)
