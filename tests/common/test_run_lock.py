"""A folder is locked for one process, for as long as it lives or until it gives it back."""

import errno
import os
import shutil
import signal
import time

import pytest
from caureid_plugin.common import run_lock

from helpers import warm

HOLD = "import os, sys, time; from caureid_plugin.common import run_lock; "
TRY = HOLD + "run_lock.hold(sys.argv[1]); print('mine')"


def other(folder, tmp_path):
    """What another process says that wants the folder."""
    done = warm.run(["-c", TRY, folder], tmp_path)
    return done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "run"
    made.mkdir()
    yield made
    run_lock.release(made)


def test_it_is_held_until_it_is_given_back(folder, tmp_path):
    run_lock.hold(folder)
    run_lock.hold(tmp_path / "run" / ".." / "run")  # the same folder: holding twice is once
    output = other(folder, tmp_path)
    assert f"process {os.getpid()}, since {time.strftime('%Y-')}" in output and "mine" not in output
    run_lock.release(folder)
    run_lock.release(folder)
    assert "mine" in other(folder, tmp_path)
    run_lock.hold(folder)
    assert (folder / ".run_lock").read_text().count("process") == 1


def test_a_killed_process_does_not_hold_it_nor_do_its_workers(folder, tmp_path):
    code = (HOLD + "run_lock.hold(sys.argv[1]); worker = os.fork();\n"
            "if worker: print(worker, flush=True)\n"
            "time.sleep(100)")
    holder = warm.start(["-c", code, folder], out=tmp_path / "out.txt")
    output = tmp_path / "out.txt"
    while not (output.exists() and output.read_text().strip()):
        assert holder.poll() is None
        time.sleep(0.01)
    worker = int(output.read_text())
    try:
        assert "Another run is at work" in other(folder, tmp_path)
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # it is there
        assert "mine" in other(folder, tmp_path)
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_fork_of_the_holder_is_another_process(folder):
    run_lock.hold(folder)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            run_lock.hold(folder)
            os.write(writing, b"held")
        except BlockingIOError:
            os.write(writing, b"refused")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 10) == b"refused"
    os.close(reading)
    os.close(writing)


def test_it_lasts_when_the_holder_reads_the_file(folder, tmp_path):
    """As whoever copies a run's folder does."""
    run_lock.hold(folder)
    assert f"process {os.getpid()}" in (folder / ".run_lock").read_text()
    with open(folder / ".run_lock", "a"):
        pass
    assert f"process {os.getpid()}" in other(folder, tmp_path)


def test_a_file_that_was_removed_lets_nobody_in(folder, tmp_path):
    run_lock.hold(folder)
    (folder / ".run_lock").unlink()
    assert "Another run is at work" in other(folder, tmp_path)


def test_a_folder_that_was_emptied_is_locked_anew(folder, tmp_path):
    for look in (run_lock.hold, run_lock.hold_again):
        run_lock.hold(folder)
        (folder / ".run_lock").unlink()
        look(folder)
        assert f"process {os.getpid()}" in other(folder, tmp_path)


def test_a_folder_that_another_run_has_made_anew_is_its_own(folder, tmp_path):
    run_lock.hold(folder)
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError):
        run_lock.hold_again(folder)
    run_lock.hold_again(folder)  # it holds nothing any more: nothing to look at
    folder.mkdir()
    run_lock.hold(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            run_lock.hold(folder)
            os.write(writing, b"held")
            time.sleep(100)
        finally:
            os._exit(0)
    try:
        assert os.read(reading, 10) == b"held"
        with pytest.raises(BlockingIOError, match=f"process {child}"):
            run_lock.hold_again(folder)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def test_a_file_system_without_locks_of_folders(folder, tmp_path, monkeypatch, messages):
    """As NFS has it, which locks what is open for writing."""
    flock = run_lock.fcntl.flock

    def of_files(descriptor, operation):
        if os.path.isdir(f"/dev/fd/{descriptor}"):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, operation)

    monkeypatch.setattr(run_lock.fcntl, "flock", of_files)
    run_lock.hold(folder)
    assert not messages and f"process {os.getpid()}" in other(folder, tmp_path)


def test_a_file_system_without_locks_is_said(folder, monkeypatch, messages):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(run_lock.fcntl, "flock", no_locks)
    run_lock.hold(folder)
    assert "cannot be locked (No locks available)" in messages[0]
