"""The launcher with processes that fail, hang, are killed or are told to stop.

Here its processes are forked, which takes no time, and it runs in a process of its own, which can
be sent signals. tests/compat/test_processes.py starts it as a user does.
"""

import errno
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time

import psutil
import pytest
import torch
from caureid_plugin.common import launcher
from caureid_plugin.common.signals import EXIT_INTERRUPTED, EXIT_STOPPED, StopRequest

LIMIT = 60  # seconds after which a wait has failed
FORK = multiprocessing.get_context("fork")
SIGNALS = signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGTSTP

pytestmark = [
    pytest.mark.alone,
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")]


def wait_for(condition):
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # nobody reaps in a container
    except psutil.NoSuchProcess:
        return True


def _launch(work, count, folder):
    os.setpgid(0, 0)  # as a shell does it
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        launcher.run_processes(work, count, (folder,))
    except launcher.ProcessError as error:
        (folder / "error").write_text(str(error))
        sys.exit(1)
    except SystemExit:
        (folder / "launcher_leaves").touch()
        time.sleep(0.2)
        raise


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts the launcher with ``work(index, folder)`` in each process."""
    monkeypatch.setattr(torch.multiprocessing, "get_context", lambda method: FORK)
    monkeypatch.setattr(launcher, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(launcher, "POLL_SECONDS", 0.02)
    started = []

    def begin(work, count=2):
        started.append(FORK.Process(target=_launch, args=(work, count, tmp_path)))
        started[-1].start()
        return started[-1]

    yield begin
    pids = [int(path.name) for path in tmp_path.glob("[0-9]*")]
    try:
        wait_for(lambda: all(is_gone(pid) for pid in pids))
    finally:
        for process in started:
            process.kill()
            process.join()
        for pid in pids:
            if not is_gone(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def result(start, tmp_path):
    """Exit code and error message of a launcher that ends by itself."""

    def run(work, count=2):
        process = start(work, count)
        process.join(LIMIT)
        error = tmp_path / "error"
        return process.exitcode, error.read_text() if error.exists() else None

    return run


def _present(folder):
    (folder / str(os.getpid())).touch()


def _wait_for_all(folder, count):
    wait_for(lambda: len(list(folder.glob("[0-9]*"))) >= count)


def _hang(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        time.sleep(10)


# ----------------------------------------------------------------------------- how they end ----


def _succeed(index, folder):
    (folder / f"done{index}").touch()
    if index:
        sys.exit(0 if index == 1 else None)


def _stop(index, folder):
    time.sleep(launcher.GRACE_SECONDS * index)  # the last one: longer than after a failure
    (folder / f"done{index}").touch()
    sys.exit(EXIT_STOPPED)


@pytest.mark.parametrize("work, code", [(_succeed, 0), (_stop, EXIT_STOPPED)])
def test_the_exit_code_of_runs_and_of_stopped_runs_is_handed_on(result, tmp_path, work, code):
    assert result(work, 3) == (code, None)
    assert len(list(tmp_path.glob("done*"))) == 3


def _fail_beside_hanging_ones(index, folder):
    _present(folder)
    if index != 1:  # with a loader's worker
        FORK.Process(target=lambda: (_present(folder), _hang())).start()
        _hang()
    _wait_for_all(folder, 5)
    raise RuntimeError("the network is broken")


def test_a_failure_ends_the_others_and_what_they_have_started(result):
    code, error = result(_fail_beside_hanging_ones, 3)  # `start` sees that they are gone
    assert code == 1 and error.endswith("RuntimeError: the network is broken")
    assert error.startswith("process 1 of 3 failed, and the others were ended:\n\nTraceback")


def _fail_one_after_the_other(index, folder):
    _present(folder)
    _wait_for_all(folder, 3)
    (folder / f"rank{index}").symlink_to(str(os.getpid()))
    if index:
        before = folder / f"rank{index - 1}"
        wait_for(before.is_symlink)
        wait_for(lambda: is_gone(int(os.readlink(before))))
    else:
        raise RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:1234")
    raise ValueError(f"this is number {index}")


def test_the_cause_is_told_and_not_its_consequences(result, monkeypatch):
    monkeypatch.setattr(launcher, "GRACE_SECONDS", LIMIT)
    code, error = result(_fail_one_after_the_other, 3)
    assert code == 1 and error.startswith("process 1 of 3")
    assert error.endswith("ValueError: this is number 1")


def _be_killed(index, folder):
    _present(folder)
    _wait_for_all(folder, 2)
    if index:
        os.kill(os.getpid(), signal.SIGKILL)
    raise ConnectionResetError("the other is gone")


def test_a_killed_process_is_the_cause(result, monkeypatch):
    monkeypatch.setattr(launcher, "GRACE_SECONDS", LIMIT)
    assert result(_be_killed) == (
        1, "process 1 of 2 was ended by SIGKILL: perhaps by the system, for want of memory")


def _exit_with(code):
    def work(index, folder):
        _present(folder)
        sys.exit(code) if index else _hang()

    return work


@pytest.mark.parametrize("code, message", [
    (3, "process 1 of 2 left with exit code 3, its output says why"),
    ("no data", "process 1 of 2 left with this message:\n\nno data")])
def test_another_exit_code_is_a_failure(result, code, message):
    assert result(_exit_with(code)) == (1, message)


@pytest.mark.parametrize("error, expected", [
    (RuntimeError("[pair.cc:589] Read error [::1]:46: Connection reset by peer"), True),
    (RuntimeError("[unbound_buffer.cc:81] Timed out waiting 1800000ms for recv"), True),
    (BrokenPipeError(), True),
    (torch.distributed.DistStoreError("anything"), True),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    (ValueError("Connection closed by peer"), False)])
def test_which_errors_are_consequences(error, expected):
    assert launcher.is_peer_gone(error) is expected


# -------------------------------------------------------------------------------- signals ----


def _count_signals(index, folder):
    """Leaves a while after the first signal, with the names of all signals in a file."""
    seen = []
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda number, frame: seen.append(number))
    _present(folder)
    while not seen:
        time.sleep(0.02)
    time.sleep(0.3)  # a second one would be here by now
    (folder / f"seen{index}").write_text(" ".join(signal.Signals(n).name for n in seen))
    sys.exit(EXIT_INTERRUPTED if seen[0] == signal.SIGINT else EXIT_STOPPED)


@pytest.mark.parametrize("number, code", [
    (signal.SIGTERM, EXIT_STOPPED), (signal.SIGHUP, EXIT_STOPPED),
    (signal.SIGINT, EXIT_INTERRUPTED)])
@pytest.mark.parametrize("send", [os.kill, os.killpg])  # the latter is what a terminal does
def test_each_process_receives_a_signal_once(start, tmp_path, number, code, send):
    process = start(_count_signals)
    _wait_for_all(tmp_path, 2)
    send(process.pid, number)
    process.join(LIMIT)
    assert process.exitcode == code
    assert [(tmp_path / f"seen{i}").read_text() for i in range(2)] == [number.name] * 2


def _leave_slowly(index, folder):
    for number in (signal.SIGTERM, signal.SIGHUP):  # forked, it has the launcher's handlers
        signal.signal(number, signal.SIG_DFL)
    _present(folder)
    try:
        with StopRequest() as request:
            while not request.signal:
                time.sleep(0.02)
            sys.exit(request.exit_code)
    finally:
        (folder / f"leaves{index}").touch()
        time.sleep(1.0)  # as an interpreter that takes itself down


@pytest.mark.parametrize("leaving", ["leaves0", "leaves1", "launcher_leaves"])
def test_a_second_signal_does_not_change_how_a_run_leaves(start, tmp_path, leaving):
    """A terminal that is closed sends two, by its driver and by its shell."""
    process = start(_leave_slowly)
    _wait_for_all(tmp_path, 2)
    os.kill(process.pid, signal.SIGHUP)
    wait_for((tmp_path / leaving).exists)
    os.kill(process.pid, signal.SIGTERM)
    process.join(LIMIT)
    assert process.exitcode == EXIT_STOPPED and not (tmp_path / "error").exists()


def _sleep(index, folder):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # forked, it has the launcher's handlers
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _present(folder)
    time.sleep(LIMIT)


@pytest.mark.parametrize("number, code", [
    (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, EXIT_INTERRUPTED)])
def test_processes_that_do_not_hold_a_signal_back_end(start, tmp_path, number, code):
    process = start(_sleep)
    _wait_for_all(tmp_path, 2)
    os.kill(process.pid, number)
    process.join(LIMIT)
    assert process.exitcode == code and not (tmp_path / "error").exists()


def _hang_visibly(index, folder):
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: (folder / f"told{index}").touch())
    _present(folder)
    while True:
        time.sleep(10)


def test_a_second_ctrl_c_ends_what_hangs(start, tmp_path):
    process = start(_hang_visibly)
    _wait_for_all(tmp_path, 2)
    os.kill(process.pid, signal.SIGINT)
    wait_for(lambda: len(list(tmp_path.glob("told*"))) == 2)  # two signals at once are one
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    process.join(LIMIT)
    assert process.exitcode == EXIT_INTERRUPTED


def _hang_or_obey(index, folder):
    if index:
        _hang_visibly(index, folder)
    _count_signals(index, folder)


def test_without_their_launcher_processes_stop_or_are_killed(start, tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "ORPHAN_SECONDS", 1.5)
    process = start(_hang_or_obey)
    _wait_for_all(tmp_path, 2)
    process.kill()  # `start` sees that they are gone
    wait_for((tmp_path / "seen0").exists)
    assert (tmp_path / "seen0").read_text() == "SIGTERM"


def test_ctrl_z_stops_all_and_they_go_on(start, tmp_path):
    process = start(_count_signals)
    _wait_for_all(tmp_path, 2)
    everybody = [process.pid, *(int(path.name) for path in tmp_path.glob("[0-9]*"))]

    def stopped():
        return [psutil.Process(p).status() == psutil.STATUS_STOPPED for p in everybody]

    os.kill(process.pid, signal.SIGTSTP)
    wait_for(lambda: all(stopped()))
    os.kill(process.pid, signal.SIGCONT)
    wait_for(lambda: not any(stopped()))
    os.kill(process.pid, signal.SIGTERM)
    process.join(LIMIT)
    assert process.exitcode == EXIT_STOPPED


# -------------------------------------------------------------------------------- the port ----


@pytest.mark.parametrize("family, host", [
    (socket.AF_INET, ""), (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_port_that_is_taken_is_said_at_once(family, host):
    try:
        other = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip("this machine has no such addresses")
    with other:
        port = other.getsockname()[1]
        with pytest.raises(launcher.PortError, match=rf"--dist-url tcp://a:{port}: port {port} of "
                           r"this machine is taken.*take --dist-url auto; for several"):
            launcher.check_port(f"tcp://a:{port}")
    for _ in range(2):  # and looking leaves it free
        launcher.check_port(f"tcp://a:{port}")


def test_a_port_that_this_user_may_not_take(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(launcher.PortError, match="port 80 cannot be used.*from 1024 to 65535"):
        launcher.check_port("tcp://a:80")


@pytest.mark.parametrize("url", [
    "", "AUTO", "tcp://", "tcp://localhost", "tcp://localhost:", "tcp://:29500", "localhost:29500",
    "env://", "file:///nope/x", "http://localhost:29500", "tcp://::1:29500", "tcp://[]:29500",
    "tcp://me@localhost:29500", "tcp://localhost:29500/", "tcp://localhost:29500?rank=0",
    "tcp://localhost:-1", "tcp://localhost:a", "tcp://localhost:\u0661", "tcp://local host:29500",
    f"tcp://localhost:{'9' * 5000}"])
def test_addresses_that_are_none(url):
    with pytest.raises(launcher.PortError, match=re.escape(f"--dist-url {url!r} is no address")
                       + ".*give tcp://host:port .*auto"):
        launcher.check_address(url)


@pytest.mark.parametrize("port", [0, 65536, 70000])
def test_a_port_that_is_none(port):
    url = f"tcp://localhost:{port}"
    with pytest.raises(launcher.PortError, match=f"--dist-url {url}: port {port} .*1 to 65535"):
        launcher.check_address(url)


@pytest.mark.parametrize("host", ["nobody.invalid", "a..b", "a" * 70])
def test_a_host_that_nothing_knows(host):
    with pytest.raises(launcher.PortError,
                       match=rf"--dist-url tcp://{host}:1: .* finds no host {host} \(.*IP address"):
        launcher.check_address(f"tcp://{host}:1")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
@pytest.mark.parametrize("port", [1, 65535])
def test_addresses_at_which_processes_can_meet(host, port):
    launcher.check_address(f"tcp://{host}:{port}")


def test_handlers_are_given_back_and_outside_the_main_thread_none_is_set(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.multiprocessing, "get_context", lambda method: FORK)
    before = [signal.getsignal(number) for number in SIGNALS]
    launcher.run_processes(_succeed, 1, (tmp_path,))
    assert [signal.getsignal(number) for number in SIGNALS] == before
    thread = threading.Thread(target=launcher.run_processes, args=(_succeed, 2, (tmp_path,)))
    thread.start()
    thread.join(LIMIT)
    assert (tmp_path / "done1").exists()  # setting one there would have been an error
    assert [signal.getsignal(number) for number in SIGNALS] == before
