"""A file is there whole or not at all, at whatever moment its writer is killed."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from caureid_plugin import files

SAVES_UNTIL_KILLED = """
import importlib.util, os, random, signal, sys, time
import torch
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
folder, random = sys.argv[2], random.Random(0)
tag = os.path.join(folder, "last_checkpoint")

def save_for_ever(number):
    while True:
        name = f"model_{number % 3:04d}.pth"
        data = {"epoch": number, "model": {str(i): torch.full((20_000,), number) for i in range(9)}}
        files.write_atomically(os.path.join(folder, name), lambda file: torch.save(data, file))
        files.write_atomically(tag, lambda file: file.write(name.encode()))
        number += 1

def tagged():
    return os.stat(tag).st_mtime_ns if os.path.exists(tag) else None

last = -1
for kill in range(10):
    before = tagged()
    child = os.fork()
    if not child:
        save_for_ever(last + 1)
    while tagged() == before:
        time.sleep(0.001)
    time.sleep(random.uniform(0.01, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = torch.load(os.path.join(folder, open(tag).read()), weights_only=True)
    assert found["epoch"] > last and len(found["model"]) == 9, found["epoch"]
    assert all((w == found["epoch"]).all() for w in found["model"].values())
    last = found["epoch"]
    files.remove_leftovers(folder)
    assert not [name for name in os.listdir(folder) if name.endswith(".part")]
print(last)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the processes that it kills")
def test_a_checkpoint_survives_any_kill(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SAVES_UNTIL_KILLED, files.__file__, str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 9  # every process has saved at least once


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
    resource = pytest.importorskip("resource")
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
    steps = []
    for name in ("fsync", "replace"):
        def step(*args, original=getattr(os, name), name=name):  # noqa: B008  of this name
            if name == "fsync" and os.path.isfile(f"/proc/self/fd/{args[0]}"):
                steps.append(os.path.getsize(f"/proc/self/fd/{args[0]}"))
            else:
                steps.append(name)
            return original(*args)

        monkeypatch.setattr(os, name, step)
    files.write_atomically(tmp_path / "file", lambda file: file.write(b"12345"))
    if sys.platform == "linux":
        assert steps == [5, "replace", "fsync"]


def part_of(folder, pid):
    path = folder / f".model_0001.pth.{pid}.part"
    path.write_bytes(b"half")
    return path


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_kept(tmp_path):
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    dead = [part_of(tmp_path, pid) for pid in (ended.pid, os.getpid(), 2 ** 40)]
    alive = part_of(tmp_path, os.getppid())
    others = [tmp_path / name for name in (".part", ".x.part", "model.12.part", ".model.1.partial")]
    for path in others:
        path.touch()
    assert sorted(files.remove_leftovers(tmp_path)) == sorted(dead)
    assert sorted(tmp_path.iterdir()) == sorted([alive, *others])


def test_the_new_module_needs_nothing_but_python():
    source = Path(files.__file__).read_text()
    assert "torch" not in [line.split()[1] for line in source.splitlines() if "import " in line]
