"""Repairs so that one folder holds one run with one config."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path

import fastreid.engine.defaults as _defaults
import yaml
from fastreid.config import CfgNode, get_cfg
from fastreid.utils import comm

from ..common import run_lock
from ..common.errors import UserError
from ..common.text import printable
from . import changed_keys as _resume
from .importing import logger
from .repair import Patches, repair
from .run_config_file import RUN_CONFIG, new_configs, write_run_config
from .yaml_files import read_yaml, section_of


class _ConfigFile(io.StringIO):
    """A new config.yaml; what a run has there stays until another one begins, or this goes on."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def __exit__(self, kind, *rest) -> None:
        if kind is None and os.path.isfile(self._path):
            new_configs[os.path.abspath(self._path)] = self.getvalue()
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
        if mode == "w" and os.path.basename(path) == RUN_CONFIG:
            return _ConfigFile(path)
        return self._original.open(path, mode, *args, **kwargs)


@repair(
    upstream="engine/defaults.py:102-108 (default_setup), :475-481 (auto_scale_hyperparams)",
    symptom="config.yaml is overwritten before anything is accepted: after a refused command, or "
    "an evaluation with other keys, it does not describe the checkpoints beside it",
    versions="all",
)
def _run_config(patch: Patches) -> None:
    @patch.wrap(_defaults, "default_setup")
    def default_setup_(default_setup, cfg, args):
        log, path = logging.getLogger("fastreid"), os.path.join(cfg.OUTPUT_DIR, RUN_CONFIG)
        if not os.path.isfile(path):
            default_setup(cfg, args)
            return
        log.addFilter(_says_not_saved)
        try:
            default_setup(cfg, args)
        finally:
            log.removeFilter(_says_not_saved)
        if getattr(args, "eval_only", False):
            new_configs.pop(os.path.abspath(path), None)

    @patch.wrap(_defaults.DefaultTrainer, "before_train")
    def before_train_(before_train, self):
        if comm.is_main_process() and self.cfg.OUTPUT_DIR:
            path, goes_on = Path(self.cfg.OUTPUT_DIR, RUN_CONFIG), getattr(
                getattr(self, "run_state", None), "is_resumed", False)
            if goes_on and path.is_file():  # until there is a checkpoint that it describes
                new_configs[os.path.abspath(path)] = self.cfg.dump()
            else:
                write_run_config(self.cfg.OUTPUT_DIR, self.cfg.dump())
        before_train(self)

    patch.set(_defaults, "PathManager", _KeepsConfig(_defaults.PathManager))


def _says_not_saved(record: logging.LogRecord) -> bool:
    if str(record.msg).startswith("Full config saved to"):
        record.msg = "config.yaml of the run that is there stays until training begins"
    return True


@repair(
    upstream="engine/defaults.py:241 (DefaultTrainer.resume_or_load)",
    symptom="a run goes on with keys of another config, silently: optimizer and schedule keep the "
    "values of the checkpoint, the rest takes the new ones, and config.yaml names the new ones; "
    "another SOLVER.OPT or loss ends in a traceback",
    versions="all",
)
def _resumed_config(patch: Patches) -> None:
    @patch.wrap(_defaults, "default_setup")
    def default_setup_(default_setup, cfg, args):
        if getattr(args, "resume", False) and not getattr(args, "eval_only", False):
            _changed_keys(cfg)  # refused here before anything is written or built
        default_setup(cfg, args)

    @patch.wrap(_defaults.DefaultTrainer, "resume_or_load")
    def resume_or_load_(resume_or_load, self, resume=True):
        goes_on = resume and self.checkpointer.has_checkpoint()
        changes = _changed_keys(self.cfg) if goes_on else {}
        resume_or_load(self, resume)
        if goes_on:
            _take_over(self, changes)


def _changed_keys(cfg: CfgNode) -> dict[str, tuple[object, object]]:
    """{key: (the run's value, the new one)} of what differs from the config of the run to go on.

    Raises:
        ValueError: one of them may not, or the run's config.yaml is damaged.
    """
    folder = cfg.OUTPUT_DIR
    path = Path(folder, RUN_CONFIG)
    if not Path(folder, "last_checkpoint").exists() or not path.exists():
        return {}
    try:
        before = read_yaml(str(path))
    except ValueError as error:
        raise UserError(f"{str(error).rstrip('.')}. A run goes on with its own config: restore "
                        "it, or remove the file to go on without a comparison.") from error
    now, defaults = (_resume.flatten(yaml.safe_load(c.dump())) for c in (cfg, get_cfg()))
    if cfg.MODEL.HEADS.NUM_CLASSES == 0:  # the trainer counts them
        del now["MODEL.HEADS.NUM_CLASSES"]
    changes = _resume.differences(_resume.flatten(before), now, defaults)
    problems = _resume.refused(changes, cfg.SOLVER.SCHED)
    if problems:
        raise UserError(_resume.refusal(problems, changes, folder))
    return changes


def _take_over(trainer, changes: dict[str, tuple[object, object]]) -> None:
    """Lets the keys that differ act in a trainer that has loaded its checkpoint, and says so.

    Raises:
        ValueError: SOLVER.MAX_EPOCH is changed to what the run has passed.
    """
    cfg, done, max_epoch = trainer.cfg, trainer.start_epoch, "SOLVER.MAX_EPOCH"
    if not Path(cfg.OUTPUT_DIR, RUN_CONFIG).exists():
        logger.warning("There is no config.yaml in OUTPUT_DIR %s: that the run goes on with its "
                       "own config cannot be checked.", printable(cfg.OUTPUT_DIR))
    if max_epoch in changes and trainer.max_epoch <= done:
        raise UserError(_resume.refusal({max_epoch: f"epochs done: {done}"}, changes,
                                         cfg.OUTPUT_DIR))
    kept = _resume.kept(changes)
    for key, (before, now) in changes.items():
        logger.info("%s %s is %s: the run had %s.", key, _resume.short(now),
                    "of no use any more" if key in kept else "taken over", _resume.short(before))
    trainer.cfg = cfg.clone()
    trainer.cfg.defrost()
    for key, value in kept.items():
        section, _, name = key.rpartition(".")
        section_of(trainer.cfg, section)[name] = value
    if cfg.is_frozen():
        trainer.cfg.freeze()
    if "SOLVER.BASE_LR" in changes:
        before, now = changes["SOLVER.BASE_LR"]
        _multiply_learning_rates(trainer, now / before)
    if _resume.changes_metric(changes):
        trainer.run_state.evaluate_anew()


def _multiply_learning_rates(trainer, factor: float) -> None:
    """Today's rates and, as they are multiples of SOLVER.BASE_LR, those that the schedule gives."""
    for group in trainer.optimizer.param_groups:
        for name in ("lr", "initial_lr"):
            group[name] *= factor
    for schedule in trainer.scheduler.values():
        schedule.base_lrs = [factor * rate for rate in schedule.base_lrs]


@repair(
    upstream="engine/defaults.py:72 (default_setup), :342 (DefaultTrainer.train)",
    symptom="two runs with one OUTPUT_DIR write rows of both into metrics.json and checkpoints "
    "over each other's, and both end as if all were well",
    versions="all",
)
def _one_run(patch: Patches) -> None:
    @patch.wrap(_defaults, "default_setup")
    def default_setup_(default_setup, cfg, args):
        if comm.is_main_process() and cfg.OUTPUT_DIR and not getattr(args, "eval_only", False):
            os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
            run_lock.hold(cfg.OUTPUT_DIR)
        default_setup(cfg, args)

    @patch.wrap(_defaults.DefaultTrainer, "train")
    def train_(train, self):
        if not (comm.is_main_process() and self.cfg.OUTPUT_DIR):
            return train(self)
        run_lock.hold(self.cfg.OUTPUT_DIR)
        try:
            return train(self)
        finally:
            run_lock.release(self.cfg.OUTPUT_DIR)
