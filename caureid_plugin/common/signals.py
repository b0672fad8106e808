"""Signals that ask a run to stop, and the exit codes by which it says that it did."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from typing import Any, ClassVar

logger = logging.getLogger("fastreid.caureid")

EXIT_STOPPED = 75
"""A run ended because of SIGTERM or SIGHUP, with what it had done in a checkpoint: ``--resume``
goes on.

EX_TEMPFAIL of sysexits.h.
"""

EXIT_INTERRUPTED = 130
"""The same after Ctrl-C (128 + SIGINT, so that a shell ends the loop around it as well)."""


class StopNow(Exception):
    """Raised where a run that was asked to stop can be left."""


class StopRequest:
    """Holds back SIGTERM, SIGHUP and the first Ctrl-C of a block, which looks when it can stop.

    A second Ctrl-C is a KeyboardInterrupt at once. A signal that is ignored stays ignored (a job
    started with nohup), and outside the main thread, where Python allows no handler, nothing is
    held back.

    Attributes:
        signal: what was received, None so far.
        current: that of the block which runs now, None outside of one.
    """

    current: ClassVar[StopRequest | None] = None

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._outer: StopRequest | None = None

    def __enter__(self) -> StopRequest:
        self._outer, StopRequest.current = StopRequest.current, self
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        StopRequest.current = self._outer

    def _receive(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        if number == signal.SIGHUP:
            _leave_terminal()
        again = ", Ctrl-C again ends it at once" if number == signal.SIGINT else ""
        logger.warning("%s: the run stops after this step or batch%s.", self.signal.name, again)

    @property
    def exit_code(self) -> int:
        """The exit code that says by which signal the run was stopped."""
        return EXIT_INTERRUPTED if self.signal == signal.SIGINT else EXIT_STOPPED


def _leave_terminal() -> None:
    """Lets output to a terminal that was closed go nowhere: each line of it would be an error."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), descriptor)
