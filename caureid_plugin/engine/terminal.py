"""What the terminal shows of a run: a line for each epoch, warnings, the verdict.

The whole log, which begins with some 350 lines of versions and keys, is in log.txt.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import time
from collections.abc import Iterator

import torch
from fastreid.config import CfgNode
from fastreid.engine import HookBase
from fastreid.utils import comm
from termcolor import colored
from tqdm import tqdm

from .verdict import is_precision

LOG = "fastreid.caureid"
FILE_ONLY = {"file_only": True}  # extra= of what only log.txt holds
RESULTS = "fastreid.evaluation.testing"  # logs the table of an evaluation
COLOURS = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}

logger = logging.getLogger(LOG)


class TerminalFormatter(logging.Formatter):
    """Time and text, in colour what should stand out; no names of modules."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if colour := COLOURS.get(record.levelname):
            start, rest = text[:9], text[9:]
            return start + colored(f"{record.levelname} {rest}", colour, attrs=["bold"])
        return text


@contextlib.contextmanager
def shortened_log(cfg: CfgNode, *, results: bool) -> Iterator[None]:
    """Starts the log within it; the terminal then shows what is for it, log.txt holds everything.

    Args:
        cfg: OUTPUT_DIR. Without OUTPUT_DIR there is no log.txt, and nothing is left out.
        results: show the tables of evaluations.

    Example:
        ``with shortened_log(cfg, results=False): default_setup(cfg, args)``
    """
    if not cfg.OUTPUT_DIR:
        yield
        return

    def is_shown(record: logging.LogRecord) -> bool:
        return (record.levelno >= logging.WARNING
                or (record.name == LOG and not getattr(record, "file_only", False))
                or (results and record.name == RESULTS))

    # the toolbox makes the terminal's handler and writes the first 350 lines to it in one call
    toolbox, early, held = logging.getLogger("fastreid"), _Kept(), io.StringIO()
    toolbox.addHandler(early)
    terminal = sys.stdout
    try:
        with contextlib.redirect_stdout(held):
            yield
    finally:
        toolbox.removeHandler(early)
        found = [handler for handler in toolbox.handlers
                 if isinstance(handler, logging.StreamHandler) and handler.stream is held]
        if not found:  # what was printed is no log
            terminal.write(held.getvalue())
        for handler in found:
            handler.setStream(terminal)
            handler.addFilter(is_shown)
            handler.setFormatter(TerminalFormatter())
            for record in early.records:
                handler.handle(record)


class _Kept(logging.Handler):
    """Keeps records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class EpochLines(HookBase):
    """Shows how training goes: a bar for the steps on a terminal, and a line for each epoch.

    Register it last, so that it sees what the other hooks log.

    Args:
        cfg: SOLVER, DATASETS, OUTPUT_DIR.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg
        self._bar: tqdm[None] | None = None

    def before_train(self) -> None:
        solver, trainer = self._cfg.SOLVER, self.trainer
        self._start, self._first = time.perf_counter(), trainer.start_epoch
        logger.info(
            "Training on %s: epochs %d to %d of %d steps, %d images each, seed %d, on %s%s. "
            "The whole log is %s/log.txt.", ", ".join(self._cfg.DATASETS.NAMES),
            trainer.start_epoch + 1, trainer.max_epoch, trainer.iters_per_epoch,
            solver.IMS_PER_BATCH, trainer.run_state.seed, self._device(),
            f" in {count} processes" if (count := comm.get_world_size()) > 1 else "",
            self._cfg.OUTPUT_DIR)

    def _device(self) -> torch.device:
        return next(self.trainer.model.parameters()).device

    def before_epoch(self) -> None:
        steps = self.trainer.iters_per_epoch
        done = self.trainer.iter - self.trainer.epoch * steps
        self._bar = tqdm(desc=f"epoch {self.trainer.epoch + 1}", total=steps, initial=done,
                         leave=False, unit="step",
                         disable=None if comm.is_main_process() else True)

    def after_step(self) -> None:
        if self._bar is not None:
            self._bar.update()
            if not self._bar.disable:
                loss = self.trainer.storage.history("total_loss").latest()
                self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)

    def after_epoch(self) -> None:
        self._close()
        if comm.is_main_process():  # only this one has the figures
            logger.info("%s", self._line())

    def after_train(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self) -> str:
        """At most 90 columns, so that 100 hold the time before it."""
        trainer = self.trainer
        epoch, last = trainer.epoch + 1, trainer.max_epoch
        known = {name: figure.values()[-1] for name, figure in trainer.storage.histories().items()}
        steps = trainer.iters_per_epoch
        loss = trainer.storage.history("total_loss").avg(steps)
        parts = [f"epoch {epoch:>{len(str(last))}}/{last}",
                 f"loss {loss:7.1e}" if loss >= 1000 else f"loss {loss:7.3f}"]
        if "labels/clusters" in known:
            parts += [f"{known['labels/clusters'][0]:6.0f} clusters",
                      f"{100 * known['labels/outlier_share'][0]:3.0f} % outliers"]
        found = [value for key, (value, iteration) in known.items()
                 if is_precision(key) and iteration >= trainer.epoch * steps]
        parts.append(f"mAP {sum(found) / len(found):5.1f}" if found else " " * 9)
        seconds = (time.perf_counter() - self._start) / (epoch - self._first) * (last - epoch)
        minutes, second = divmod(round(seconds), 60)
        parts.append(f"left {minutes // 60}:{minutes % 60:02}:{second:02}")
        return "  ".join(parts)
