"""Signals that ask a run to stop, and the exit codes by which it says that it did."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

logger = logging.getLogger("fastreid.caureid")

EXIT_STOPPED = 75
"""A run ended because of SIGTERM or SIGHUP, with what it had done in a checkpoint: ``--resume``
goes on.

EX_TEMPFAIL of sysexits.h.
"""

EXIT_INTERRUPTED = 130
"""The same after Ctrl-C (128 + SIGINT, so that a shell ends the loop around it as well)."""

JOIN_SECONDS = 300.0
"""How long a process waits for all the others of a run to start."""


class StopNow(Exception):
    """Raised where a run that was asked to stop can be left."""


class StopRequest:
    """Holds back SIGTERM, SIGHUP and the first Ctrl-C of a block, which looks when it can stop.

    A second Ctrl-C is a KeyboardInterrupt at once. A signal that is ignored stays ignored (a job
    started with nohup), and outside the main thread, where Python allows no handler, nothing is
    held back. While SIGTERM or SIGHUP makes a process leave, by SystemExit, another of them makes
    it leave at once, with the same exit code.

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
        restore(self._before, error[1], [self.signal])
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


def restore(handlers: Mapping[signal.Signals, Any], leaving: object,
            received: Sequence[int | None]) -> None:
    """Gives signals their handlers back, unless the process leaves because of one.

    A terminal that is closed sends SIGHUP by its driver and by its shell. The second would end
    the process before it can leave with its exit code.

    Args:
        handlers: from before.
        leaving: what ends the block, if it is an exception.
        received: signals that the process has received.
    """
    ending = {signal.SIGTERM, signal.SIGHUP}
    code = leaving.code if isinstance(leaving, SystemExit) else None
    leaves = isinstance(code, int) and not ending.isdisjoint(received)
    for number, handler in handlers.items():
        if leaves and number in ending:
            signal.signal(number, functools.partial(_leave_with, code))
        elif handler is not None:  # None: of other code than Python's
            signal.signal(number, handler)


def _leave_with(code: Any, *_: object) -> NoReturn:
    leave_at_once(code)


def leave_at_once(code: int) -> NoReturn:
    """Leaves without the interpreter's teardown.

    Threads of a process group in use would wait there for processes that never answer, or abort.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _leave_terminal() -> None:
    """Lets output to a terminal that was closed go nowhere: each line of it would be an error."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), descriptor)
