"""A file is there whole or not at all, at whatever moment its writer is killed."""

import errno
import os
import random
import resource
import signal
import stat
import time

import pytest
import torch
from caureid_plugin.common import files


def save_for_ever(folder, number):
    """Checkpoints of rising number, then the file that names the last, as a training does."""
    while True:
        name = f"model_{number % 3:04d}.pth"
        data = {"epoch": number, "model": {str(i): torch.full((20_000,), number) for i in range(9)}}
        files.write_atomically(folder / name, lambda file, data=data: torch.save(data, file))
        files.write_atomically(folder / "last_checkpoint",
                               lambda file, name=name: file.write(name.encode()))
        number += 1


def test_a_checkpoint_survives_any_kill(tmp_path):
    tag, last, moments = tmp_path / "last_checkpoint", -1, random.Random(0)
    for _ in range(4):
        before = tag.stat().st_mtime_ns if tag.exists() else None
        child = os.fork()
        if not child:
            try:
                save_for_ever(tmp_path, last + 1)
            finally:
                os._exit(1)
        while not tag.exists() or tag.stat().st_mtime_ns == before:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.01, 0.1))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        found = torch.load(tmp_path / tag.read_text(), weights_only=True)
        assert found["epoch"] > last and len(found["model"]) == 9
        assert all((weights == found["epoch"]).all() for weights in found["model"].values())
        last = found["epoch"]
        files.remove_leftovers(tmp_path)
        assert not list(tmp_path.glob(".*.part"))


class Gone(BaseException):
    """Stands for any interruption, Ctrl-C among them."""


def fails(error):
    def fail(*args, **kwargs):
        raise error

    return fail


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
@pytest.mark.parametrize("error", [FULL, Gone()], ids=["full disk", "interruption"])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"new, and not finished")
        if step == "write":
            raise error

    if step != "write":
        monkeypatch.setattr(os, step, fails(error))
    with pytest.raises(type(error)):
        files.write_atomically(path, write)
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
    files.write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_told_as_such_by_what_reports_something_else(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # EFBIG, Python ignores SIGXFSZ
    try:
        with pytest.raises(OSError) as caught:
            files.write_atomically(
                tmp_path / "file", lambda file: torch.save(torch.zeros(100_000), file))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG and os.listdir(tmp_path) == []


def test_the_content_is_on_the_disk_before_it_gets_the_name(tmp_path, monkeypatch):
    steps, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        found = os.fstat(descriptor)
        steps.append(f"{found.st_size} bytes" if stat.S_ISREG(found.st_mode) else "folder")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append("name"), replace(*paths)))
    files.write_atomically(tmp_path / "file", lambda file: file.write(b"12345"))
    assert steps == ["5 bytes", "name", "folder"]


def part_of(folder, pid):
    path = folder / f".model_0001.pth.{pid}.part"
    path.write_bytes(b"half")
    return path


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_kept(tmp_path):
    ended = os.fork()
    if not ended:
        os._exit(0)
    os.waitpid(ended, 0)
    dead = [part_of(tmp_path, pid) for pid in (ended, os.getpid(), 2 ** 40)]
    alive = part_of(tmp_path, os.getppid())
    others = [tmp_path / name for name in (".part", ".x.part", "model.12.part", ".model.1.partial")]
    for path in others:
        path.touch()
    assert sorted(files.remove_leftovers(tmp_path)) == sorted(dead)
    assert sorted(tmp_path.iterdir()) == sorted([alive, *others])
