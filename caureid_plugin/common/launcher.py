"""Starts the processes of a run on this machine, watches over them, and leaves none behind.

Each process has a process group of its own: what is sent to the launcher reaches a process exactly
once, also when a terminal sends Ctrl-C to everybody, and a process that must be ended is ended with
its loaders' workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch.distributed as dist
import torch.multiprocessing

from .errors import UserError, is_users
from .signals import EXIT_INTERRUPTED, EXIT_STOPPED, leave_at_once, restore

# For the others to end by themselves once one has failed, before they are killed.
GRACE_SECONDS = 5.0
# For a process whose launcher was killed to finish its step and to save a checkpoint.
ORPHAN_SECONDS = 60.0
POLL_SECONDS = 0.2

# What a process says when another one is gone. gloo and the store raise plain RuntimeErrors too.
_PEER_GONE = re.compile(
    r"connection (was )?(closed|reset|refused|aborted)|broken pipe|failed to (recv|send)|"
    r"timed out waiting|socket (closed|error)|remote process exited", re.IGNORECASE)


class ProcessError(RuntimeError):
    """A process of the run failed; the text ends with the traceback of the first that did."""


class PortError(UserError, OSError):
    """The processes of a run cannot start or meet as the command line says."""


# an IPv6 address is in brackets
_ADDRESS = re.compile(r"tcp://(?:\[([^\s\[\]]+)\]|([^\s\[\]:/?#@]+)):([0-9]{1,9})")


def check_address(url: str) -> None:
    """Looks whether processes can meet at ``tcp://host:port``, before any is started.

    Raises:
        PortError: it is no such address, its port is none, or nothing knows the host.
    """
    found = _ADDRESS.fullmatch(url)
    if found is None:
        raise PortError(f"--dist-url {url!r} is no address at which processes can meet: give "
                        "tcp://host:port (an IPv6 address in brackets), or on one machine auto.")
    host, port = found[1] or found[2], int(found[3])
    if not 0 < port < 65536:
        raise PortError(f"--dist-url {url}: port {port} is none: name one from 1 to 65535, or on "
                        "one machine take --dist-url auto.")
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # a name that cannot be one is a UnicodeError
        raise PortError(f"--dist-url {url}: this machine finds no host {host} ({error}): name "
                        "machine 0 as the others know it, or give its IP address.") from error


def check_port(url: str) -> None:
    """Tries the port of ``tcp://host:port`` on this machine, before any process is started.

    It is free again afterwards. Whoever takes it in the moment between is found by the processes
    that wait for each other.

    Args:
        url: one that :func:`check_address` accepts.

    Raises:
        PortError: it is taken, or closed to this user.
    """
    port = int(url.rpartition(":")[2])
    both = socket.has_dualstack_ipv6()
    try:
        socket.create_server(("", port), family=socket.AF_INET6 if both else socket.AF_INET,
                             dualstack_ipv6=both).close()
    except PermissionError as error:
        raise PortError(f"--dist-url {url}: port {port} cannot be used ({error}): name one from "
                        "1024 to 65535.") from error
    except OSError as error:
        if error.errno != errno.EADDRINUSE:  # torch may know another way
            return
        raise PortError(
            f"--dist-url {url}: port {port} of this machine is taken, by another run or program. "
            "On one machine take --dist-url auto; for several, name a free port, the same on "
            "all.") from error


class _Failure(NamedTuple):
    is_consequence: bool
    """Whether it says that another process is gone: that one's failure is the cause."""
    when: float  # of the clock that all processes of a machine share
    text: str
    is_users: bool = False
    """Whether the text is what a user can put right, and holds no traceback."""


def run_processes(target: Callable[..., object], count: int, args: tuple[Any, ...] = (), *,
                  first_rank: int = 0, world_size: int | None = None) -> None:
    """Runs ``target(0, *args)`` to ``target(count - 1, *args)`` in a fresh process each.

    The first failure ends all processes: the others have a few seconds to end by themselves and
    are killed then. SIGTERM, SIGHUP and Ctrl-C are passed on to the processes, each once, and
    waited for; a second Ctrl-C does not wait for long. If the launcher itself is killed, the
    processes receive SIGTERM, and are killed if they have not ended within a minute.

    Args:
        target: picklable function.
        count: processes.
        args: picklable arguments.
        first_rank, world_size: for messages, where other machines take part.

    Raises:
        UserError: the process that failed first did so by what a user can put right.
        ProcessError: with the traceback of the process that failed first.
        SystemExit: the processes left with an exit code after a signal
            (:mod:`caureid_plugin.common.signals`), or were ended by one (128 + its number).
    """
    context = torch.multiprocessing.get_context("spawn")
    children: list[_Child] = []
    with _Signals() as signals:
        try:
            for index in range(count):
                children.append(  # noqa: PERF401  those that started are ended below
                    _Child.start(context, first_rank + index, target, index, args))
            _watch(children, signals)
        finally:
            for child in children:
                child.end()
        failures = [(child.failure, child) for child in children if child.failure
                    and not (signals.seen and child.failure.is_consequence)]
        if failures:
            failure, child = min(failures, key=lambda found: found[0])
            if failure.is_users:
                raise UserError(failure.text)
            raise ProcessError(f"process {child.rank} of {world_size or count} {failure.text}")
        _leave_with(_exit_code([child.process.exitcode or 0 for child in children], signals.seen))


def _exit_code(codes: list[int], seen: list[int]) -> int:
    """The exit code of processes of which none has failed."""
    for code in (EXIT_STOPPED, EXIT_INTERRUPTED):
        if code in codes:
            return code
    return 128 + seen[-1] if any(codes) and seen else 0


def _leave_with(code: int) -> None:
    if code:
        raise SystemExit(code)


# --------------------------------------------------------------------------- the launcher ----


@dataclasses.dataclass
class _Child:
    """A process, and what is known of it."""

    rank: int
    process: Any  # of the context "spawn"
    reports: multiprocessing.connection.Connection | None
    failure: _Failure | None = None
    is_running: bool = True

    @classmethod
    def start(cls, context: Any, rank: int, target: Callable[..., object], index: int,
              args: tuple[Any, ...]) -> _Child:
        reports, own = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(target, index, args, own))
        # until it has its own process group, Ctrl-C would reach it by itself and through us
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            own.close()
        return cls(rank, process, reports)

    def look(self, seen: list[int]) -> None:
        """Takes notice of a report and of the end."""
        if not self.is_running:
            return
        code = self.process.exitcode  # first: what it has reported before is readable now
        while self.reports and self.reports.poll():
            try:
                self.failure = _Failure(*self.reports.recv())
            except EOFError:
                self.reports = None
        if code is None:
            return
        self.is_running = False
        self._kill_group()  # workers of its loaders, if it had no time to end them
        expected = [0, EXIT_STOPPED, EXIT_INTERRUPTED, *(-number for number in seen)]
        if self.failure is None and code not in expected:
            self.failure = _Failure(False, time.monotonic(), _how_it_ended(code))

    def send(self, number: int) -> None:
        """Sends the process a signal."""
        if self.is_running and self.process.exitcode is None:
            os.kill(self.process.pid, number)

    def send_group(self, number: int) -> None:
        """Sends one to its loaders' workers, too."""
        # no such group: it has not made its own yet, or all of it has ended
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def _kill_group(self) -> None:
        self.send_group(signal.SIGKILL)

    def end(self) -> None:
        """Kills it if it is still there."""
        if self.is_running:
            self._kill_group()
            self.process.kill()
        self.process.join()


def _how_it_ended(code: int) -> str:
    if code > 0:
        return f"left with exit code {code}, its output says why"
    name = signal.Signals(-code).name
    hint = ": perhaps by the system, for want of memory" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"


def _watch(children: list[_Child], signals: _Signals) -> None:
    """Returns when all processes have ended, or the time of those that are left is up."""
    deadline = None
    while True:
        for child in children:
            child.look(signals.seen)
        running = [child for child in children if child.is_running]
        if not running or (deadline is not None and time.monotonic() > deadline):
            return
        given_up = signals.seen.count(signal.SIGINT) > 1
        if deadline is None and (given_up or any(child.failure for child in children)):
            deadline = time.monotonic() + GRACE_SECONDS
        sources = [child.reports for child in running if child.reports]
        multiprocessing.connection.wait([*sources, signals.received], POLL_SECONDS)
        for number in signals.new():
            _pass_on(number, running)


def _pass_on(number: int, children: list[_Child]) -> None:
    if number != signal.SIGTSTP:
        for child in children:
            child.send(number)
        return
    for child in children:  # Ctrl-Z: all of the job stops, and goes on when we do
        child.send_group(signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)
    for child in children:
        child.send_group(signal.SIGCONT)


class _Signals:
    """Within a block, SIGTERM, SIGHUP, Ctrl-C and Ctrl-Z are noted instead of obeyed.

    A signal that is ignored stays ignored, and outside the main thread, where Python allows no
    handler, they do what they did.

    Attributes:
        received: readable when a signal has come.
        seen: those that ask for an end, in order, as far as :meth:`new` gave them.
    """

    def __enter__(self) -> _Signals:
        self.received, self._sent = multiprocessing.Pipe(duplex=False)
        self.seen: list[int] = []
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGTSTP):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        restore(self._before, error[1], self.seen)
        self.received.close()
        self._sent.close()

    def _note(self, number: int, frame: object) -> None:
        self._sent.send_bytes(bytes([number]))

    def new(self) -> Iterator[int]:
        while self.received.poll():
            number = self.received.recv_bytes()[0]
            if number != signal.SIGTSTP:
                self.seen.append(number)
            yield number


# --------------------------------------------------------------------------- its processes ----


def _child(target: Callable[..., object], index: int, args: tuple[Any, ...],
           reports: multiprocessing.connection.Connection) -> None:
    os.setpgid(0, 0)
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        target(index, *args)
    except KeyboardInterrupt:
        leave_at_once(EXIT_INTERRUPTED)
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            text = f"left with this message:\n\n{leaving.code}"
            _report(reports, _Failure(False, time.monotonic(), text))
        raise
    except Exception as error:  # noqa: BLE001  whatever it is, the launcher raises it
        text = f"failed, and the others were ended:\n\n{traceback.format_exc().rstrip()}"
        _report(reports, _Failure(is_peer_gone(error), time.monotonic(),
                                  str(error) if is_users(error) else text, is_users(error)))
        leave_at_once(1)


def is_peer_gone(error: BaseException) -> bool:
    """Whether an error says that another process is gone, or has failed."""
    kinds = (ConnectionError, getattr(dist, "DistError", ConnectionError))
    return (getattr(error, "is_consequence", False) or isinstance(error, kinds)
            or (isinstance(error, RuntimeError) and bool(_PEER_GONE.search(str(error)))))


def _report(reports: multiprocessing.connection.Connection, failure: _Failure) -> None:
    with contextlib.suppress(BrokenPipeError):  # the launcher is gone
        reports.send(tuple(failure))


def _end_with_launcher() -> None:
    """Ends this process after the launcher has gone: by SIGTERM, then for good."""
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    multiprocessing.connection.wait([launcher.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_SECONDS)
    os.killpg(0, signal.SIGKILL)
