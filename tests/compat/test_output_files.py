"""OUTPUT_DIR that cannot be written, and a disk that is full when figures are written."""

import errno
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from caureid_plugin import compat
from fastreid.engine import defaults
from fastreid.utils.checkpoint import Checkpointer
from fastreid.utils.events import EventStorage, JSONWriter, TensorboardXWriter

full_disk = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")


def test_an_output_folder_is_made_or_named_before_anything_is_built(
        make_trainer, tmp_path, monkeypatch):
    make_trainer("OUTPUT_DIR", str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()
    path = tmp_path / "file"
    path.write_text("no folder")
    build = []
    expected = rf"OUTPUT_DIR {path} cannot be written: File exists. It, or something above it, is"
    with monkeypatch.context() as patch:
        patch.setattr(defaults.DefaultTrainer, "build_model",
                      classmethod(lambda *args: build.append(args)))
        with pytest.raises(FileExistsError, match=expected):
            make_trainer("OUTPUT_DIR", str(path))
    assert not build
    with compat.without("output_folder"):
        with pytest.raises(NotADirectoryError) as caught:
            make_trainer("OUTPUT_DIR", str(path))
    assert "OUTPUT_DIR" not in str(caught.value)


def test_an_error_about_another_file_is_left_alone(tiny_cfg, monkeypatch):
    def build(cls, cfg):
        raise FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/weights.pth")

    monkeypatch.setattr(defaults.DefaultTrainer, "build_model", classmethod(build))
    with pytest.raises(FileNotFoundError) as caught:
        defaults.DefaultTrainer(tiny_cfg)
    assert caught.value.filename == "/elsewhere/weights.pth"


@pytest.mark.parametrize("number, advice", [
    (errno.EACCES, r"Let this user write {} \(chmod u\+rwx\)"),
    (errno.EPERM, r"It may be immutable .*`lsattr -d` shows: end that \(chattr -i -a\)"),
    (errno.ENOENT, "It was removed or renamed .*: put it back"),
    (errno.EROFS, "Its file system is mounted read-only.*: mount it for writing"),
    (errno.ENOSPC, "Free space {}"), (errno.EDQUOT, "Free space {}"),
    (errno.EIO, "The disk or the network failed: check it"),
    (errno.ENAMETOOLONG, "Shorten its name")])
def test_the_advice_fits_the_error(make_trainer, tmp_path, monkeypatch, number, advice):
    def fails(*args, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", fails)
    first = rf"{tmp_path} cannot be written: .*\. {advice.format('there')}, or set OUTPUT_DIR to"
    with pytest.raises(OSError, match=first) as caught:
        make_trainer("OUTPUT_DIR", str(tmp_path))
    assert caught.value.errno == number
    monkeypatch.setattr(torch, "save", fails)
    where = advice.format(rf"in {tmp_path} \(OUTPUT_DIR\)")
    with pytest.raises(OSError, match=rf"a\.pth could not be saved: .*\. {where}, then go on with "
                       "--resume") as caught:
        Checkpointer(torch.nn.Linear(1, 1), str(tmp_path)).save("a")
    assert caught.value.errno == number


def test_an_output_folder_that_is_deleted_in_a_run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    checkpointer = Checkpointer(torch.nn.Linear(1, 1), str(folder))
    checkpointer.save("a")
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match=r"b\.pth could not be saved: No such file.*Earlier "
                       r"checkpoints went with their folder\. It was removed or renamed"):
        checkpointer.save("b")


@full_disk
def test_metrics_on_a_full_disk_are_named_once(tmp_path):
    path = tmp_path / "metrics.json"
    path.symlink_to("/dev/full")
    with EventStorage() as storage:
        storage.put_scalar("loss", 1.0)
        writer = JSONWriter(str(path))
        with pytest.raises(OSError, match=rf"{path} cannot be written: No space left on device. "
                                          "Free space there.*--resume") as caught:
            writer.write()
        assert caught.value.errno == errno.ENOSPC
        writer.write()  # the run is ending
        writer.close()
        writer = JSONWriter(str(path))
        writer._file_handle.write("a row that is not flushed")
        with pytest.raises(OSError, match=rf"{path} cannot be written"):
            writer.close()
        with compat.without("unwritable_figures"):
            writer = JSONWriter(str(path))
            for end in ("write", "close"):
                with pytest.raises(OSError) as caught:
                    getattr(writer, end)()
                assert "metrics" not in str(caught.value)


def test_a_tensorboard_on_a_full_disk_is_named(tmp_path, monkeypatch):
    def add_scalar(*values):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = TensorboardXWriter(str(tmp_path))
    monkeypatch.setattr(writer._writer, "add_scalar", add_scalar)
    with EventStorage() as storage:
        storage.put_scalar("loss", 1.0)
        with pytest.raises(OSError, match=rf"{tmp_path} cannot be written: No space left"):
            writer.write()
    writer.close()


class FullDisk(defaults.hooks.HookBase):
    """From the second epoch on, metrics.json is on a disk that is full."""

    ended = False

    def before_epoch(self):
        if self.trainer.epoch == 1:
            writer, = (writer for hook in self.trainer._hooks for writer in
                       getattr(hook, "_writers", ()) if isinstance(writer, JSONWriter))
            with open("/dev/full", "wb") as full:
                os.dup2(full.fileno(), writer._file_handle.fileno())

    def after_train(self):
        self.ended = True


@full_disk
def test_a_run_whose_metrics_cannot_be_written_loses_nothing_else(make_trainer):
    three = "SOLVER.MAX_EPOCH", 3
    trainer, disk = make_trainer(*three), FullDisk()
    trainer.register_hooks([disk])

    def iterations():
        metrics = Path(trainer.cfg.OUTPUT_DIR, "metrics.json")
        return [json.loads(line)["iteration"] for line in metrics.read_text().splitlines()]

    with pytest.raises(OSError, match=r"metrics.json cannot be written: No space left.*--resume"):
        trainer.train()
    assert disk.ended, "the hooks behind the writer end too"
    assert max(iterations()) <= 2
    resumed = make_trainer(*three)
    resumed.resume_or_load(resume=True)
    assert resumed.start_epoch >= 1
    resumed.train()
    assert max(iterations()) >= 5
