"""What a run needs to go on bit for bit, besides weights, optimizer, schedule and bank."""

from __future__ import annotations

import copy
import os
import random
import types
import weakref
from collections.abc import Callable
from pathlib import Path

import fastreid.engine.hooks as _hooks
import fastreid.engine.train_loop as _train_loop
import fastreid.utils.events as _events
import numpy as np
import torch
from fastreid.utils import comm

from ..common.errors import UserError
from .importing import logger
from .writers import write_figures


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
"""Scalar: from this step on a resumed run evaluates otherwise, as on other test sets."""


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
        return {name: (hint, [(float(value), int(step))
                              for value, step in storage.history(name).values()[-self.WINDOW:]])
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
            raise UserError(
                f"The checkpoint's run_state is damaged: {wrong[0]} is "
                f"{str(state[wrong[0]])[:80]!r}. Write another checkpoint's name into "
                "last_checkpoint.")
        if state["iters_per_epoch"] != iters:
            raise UserError(
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
            write_figures(self._writers())
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


class CollectRandomStates(_train_loop.HookBase):
    """Before each checkpoint, and in every process: the checkpointer runs in the first one only."""

    def after_epoch(self) -> None:
        self.trainer.run_state.steps_done = 0
        self.trainer.run_state.collect_random_states()
