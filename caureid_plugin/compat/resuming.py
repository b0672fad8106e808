"""Repairs so that a run stops after any step and goes on bit for bit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import fastreid.engine.defaults as _defaults
import fastreid.engine.hooks as _hooks
import fastreid.engine.train_loop as _train_loop
import fastreid.utils.events as _events
from fastreid.utils import comm

from ..common.errors import NotFinite, UserError, is_users
from ..common.signals import StopNow, StopRequest
from .importing import logger
from .repair import Patches, repair
from .run_config_file import RUN_CONFIG
from .run_state import CollectRandomStates, RunState
from .tag import last_good


@repair(
    upstream="engine/defaults.py:223 (Checkpointer(..., optimizer, scheduler)) with "
    "engine/hooks.py:190 (PeriodicCheckpointer)",
    symptom="a resumed run is another one: random states, the loss scale of mixed precision, the "
    "best metric and smoothed figures start anew; metrics.json keeps the rows of steps that are "
    "done again",
    versions="all",
)
def _run_state(patch: Patches) -> None:
    @patch.wrap(_defaults.DefaultTrainer, "__init__")
    def init(original, self, cfg):
        original(self, cfg)
        seed = cfg.get("SEED", -1)
        self.run_state = RunState(self, seed if seed >= 0 else int(comm.shared_random_seed()))
        self.checkpointer.checkpointables["run_state"] = self.run_state
        self.register_hooks([CollectRandomStates()])
        collects = self._hooks.pop()
        saves = [i for i, hook in enumerate(self._hooks)
                 if isinstance(hook, _hooks.PeriodicCheckpointer)]
        # evaluating draws random numbers too: after it, and before the checkpoint
        self._hooks.insert(saves[0] if saves else len(self._hooks), collects)


STOPPED_CHECKPOINT = "model_stopped"


@repair(
    upstream="engine/train_loop.py:128-153 (TrainerBase.train)",
    symptom="a run can only go on at the start of an epoch: SIGTERM (a scheduler's notice) and "
    "Ctrl-C lose everything since the last checkpoint",
    versions="all",
)
def _training_loop(patch: Patches) -> None:
    patch.set(_train_loop.TrainerBase, "train", _train)

    @patch.wrap(_defaults, "inference_on_dataset")
    def inference_on_dataset(original, model, data_loader, *args, **options):
        if StopRequest.current is None:  # no training runs: a signal does what it always does
            return original(model, data_loader, *args, **options)
        return original(model, _StoppableLoader(data_loader), *args, **options)


def _train(self, start_epoch: int, max_epoch: int, iters_per_epoch: int) -> None:
    """The loop over epochs and steps; after a signal it ends behind a step, with a checkpoint.

    In an evaluation it ends behind a batch: the run goes on behind the step before.

    Raises:
        SystemExit: after SIGTERM, SIGHUP or Ctrl-C, with a code of
            :mod:`caureid_plugin.common.signals`.
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
        except Exception as error:
            if is_users(error):
                logger.error("Training ends: %s", error)
            else:
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
                       last_good(self.checkpointer) if comm.is_main_process() else "")
        raise SystemExit(self.stop_request.exit_code) from None


def _check_start(self, state: RunState) -> None:
    """Looks whether all processes start at one place, and sets aside what --resume must not find.

    Raises:
        ValueError: the processes have found different checkpoints.
    """
    places = comm.all_gather((self.start_epoch, state.steps_done, state.seed))
    if len(set(places)) > 1:
        raise UserError(
            "The processes of this run found different checkpoints (epoch, step and seed: "
            f"{places}). OUTPUT_DIR {self.cfg.OUTPUT_DIR} must be on a file system that all "
            "machines share.")
    if self.start_epoch > 0 and not state.is_resumed:
        logger.warning("The checkpoint holds no state of a run (it is of FastReID without the "
                       "plugin or of an older version): random numbers and rows of metrics.json do "
                       "not go on where they were.")
    tag = Path(self.cfg.OUTPUT_DIR, "last_checkpoint")
    if self.start_epoch == 0 and not state.is_resumed and comm.is_main_process() and tag.is_file():
        config = tag.with_name(RUN_CONFIG)
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


@repair(
    upstream="engine/train_loop.py:293-297 (SimpleTrainer._write_metrics)",
    symptom="a loss that is not finite ends the run without a word on what to change or how to go "
    "on",
    versions="all",
)
def _loss_not_finite(patch: Patches) -> None:
    @patch.wrap(_defaults.DefaultTrainer, "run_step")
    def run_step(original, self):
        try:
            original(self)
        except FloatingPointError as error:
            raise NotFinite(f"{error}\nThe weights were not changed by this step. "
                                     f"{how_to_go_on(self)}") from error


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
