"""Repairs so that one seed decides every random number of a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

import fastreid.engine.defaults as _defaults
import numpy as np
import torch
from fastreid.data import samplers as _samplers
from fastreid.data.samplers import (
    data_sampler as _data_sampler,
)
from fastreid.data.samplers import (
    imbalance_sampler as _imbalance_sampler,
)
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng

from ..common.errors import UserError
from .repair import Patches, raises, repair


@repair(
    upstream="engine/defaults.py:111 (seed_all_rng() without a seed)",
    symptom="there is no key for the random seed: no run can be repeated, and the log names a seed "
    "that does not count; and none that asks for deterministic algorithms",
    versions="all",
)
def _seed(patch: Patches) -> None:
    @patch.wrap(_defaults, "default_setup")
    def default_setup(original, cfg, args):
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


def _names_no_seed(record: logging.LogRecord) -> bool:
    return "generated random seed" not in record.getMessage()


def process_seed(seed: int, rank: int) -> int:
    """Seed (32 bits) of a process's generators: of SEED and rank, hashed together.

    Their sum would give process 1 of SEED 1 the random numbers of process 0 of SEED 2.
    """
    return int(np.random.SeedSequence((seed, rank)).generate_state(1)[0])


def _draw_from_own_state(original: Callable[..., Iterator], *args, **kwargs) -> Iterator:
    """Lets a generator that reseeds NumPy's global state draw from a state of its own."""
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


def _sampler_reseeds_numpy() -> bool:
    outer = np.random.get_state()
    np.random.seed(1)  # the state may be that of the sampler's own seed by chance
    before = np.random.get_state()
    next(iter(_samplers.TrainingSampler(2, seed=0)))
    changed = any(not np.array_equal(a, b)
                  for a, b in zip(before, np.random.get_state(), strict=True))
    np.random.set_state(outer)
    return changed


@repair(
    upstream="data/samplers/*.py (np.random.seed in _infinite_indices)",
    symptom="starting a sampler reseeds NumPy for the whole process; what is drawn afterwards "
    "depends on how far the loader has read ahead",
    versions="all",
    broken=_sampler_reseeds_numpy,
)
def _sampler_state(patch: Patches) -> None:
    for kind in (_data_sampler.TrainingSampler, _imbalance_sampler.ImbalancedDatasetSampler,
                 _samplers.NaiveIdentitySampler, _samplers.BalancedIdentitySampler,
                 _samplers.SetReWeightSampler):
        patch.wrap(kind, "_infinite_indices")(_draw_from_own_state)


def _sampler_accepts_too_few_identities() -> bool:
    items = [("1.jpg", "one", 0), ("2.jpg", "one", 0)]
    return not raises(lambda: _samplers.NaiveIdentitySampler(items, 4, 2, seed=0), ValueError)


@repair(
    upstream="data/samplers/triplet_sampler.py:78 and :236-241",
    symptom="with fewer identities than P, or a batch that K does not divide, the first batch "
    "never comes: the samplers spin for ever",
    versions="all",
    broken=_sampler_accepts_too_few_identities,
)
def _sampler_hang(patch: Patches) -> None:
    for kind in (_samplers.NaiveIdentitySampler, _samplers.BalancedIdentitySampler):
        patch.wrap(kind, "__init__")(_checked_init)


def _checked_init(original, self, data_source, mini_batch_size, num_instances, seed=None):
    original(self, data_source, mini_batch_size, num_instances, seed)
    if mini_batch_size % num_instances:
        raise UserError(
            f"A process's batch of {mini_batch_size} images is not divisible by "
            f"DATALOADER.NUM_INSTANCE {num_instances}: change SOLVER.IMS_PER_BATCH or "
            "DATALOADER.NUM_INSTANCE.")
    needed = self.num_pids_per_batch * comm.get_world_size()
    if self.num_identities < needed:
        raise UserError(
            f"A batch needs {needed} identities, the training set has {self.num_identities}: "
            "lower SOLVER.IMS_PER_BATCH or raise DATALOADER.NUM_INSTANCE.")
