"""Checkpoints are whole, safe to read and of the network that they are loaded into."""

import collections
import errno
import functools
import io
import itertools
import os
import pickle
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from caureid_plugin import compat
from caureid_plugin.common import safe_load
from caureid_plugin.common.safe_load import CodeInFile, DamagedFile, load_tensors, salvage
from caureid_plugin.compat import checkpoints
from fastreid.modeling import backbones
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.utils.checkpoint import Checkpointer


@pytest.fixture
def saved(make_model, tmp_path):
    """A checkpoint of the tiny network whose every tensor is 7, as a path."""
    model = make_model()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(7)
    Checkpointer(model, str(tmp_path)).save("seven")
    return str(tmp_path / "seven.pth")


@pytest.mark.parametrize("classes, fresh", [(8, set()), (11, {"heads.weight"})])
def test_all_but_the_classifier_of_other_classes_loads(make_model, saved, classes, fresh):
    model = make_model("MODEL.HEADS.NUM_CLASSES", classes)
    Checkpointer(model).load(saved)
    assert {name for name, tensor in model.state_dict().items() if (tensor != 7).any()} == fresh


def test_another_width_is_an_error(make_model, saved):
    wide = make_model("MODEL.BACKBONE.FEAT_DIM", 24)
    with pytest.raises(ValueError, match=r"another architecture: 5 of 5 backbone.*"
                                         r"backbone\.0\.weight.*MODEL\.WEIGHTS.*MODEL\.BACKBONE"):
        Checkpointer(wide).load(saved)
    with compat.without("foreign_checkpoint"):
        Checkpointer(wide).load(saved)  # as if nothing were wrong
    assert (wide.backbone[0].weight != 7).all()


def test_another_head_is_an_error_where_it_is_evaluated_and_a_warning_where_it_starts(
        make_model, tmp_path, messages):
    none, harmonious = (make_model(
        "MODEL.META_ARCHITECTURE", "CAUReID", "MODEL.HEADS.NAME", "CamSepHead",
        "MODEL.HEADS.CAMSEP.REDUCTION", 4, "MODEL.HEADS.CAMSEP.ATTENTION", attention)
        for attention in ("none", "harmonious"))
    path = str(tmp_path / "head.pth")
    for saved_from, other in ((none, harmonious), (harmonious, none)):
        Checkpointer(saved_from, str(tmp_path)).save("head")
        with pytest.raises(ValueError, match=r"another architecture.*heads\.attention"):
            compat.load_weights(other, path)
        messages.clear()
        Checkpointer(other).load(path)
        assert any("head is another one" in text for text in messages)
        compat.load_weights(saved_from, path)


# ------------------------------------------------------------------------------- saving ----


class Net(torch.nn.Module):
    """Two weights, all of one value."""

    def __init__(self, value=0.0):
        super().__init__()
        self.first = torch.nn.Parameter(torch.full((3,), value))
        self.second = torch.nn.Parameter(torch.full((4,), value))


def set_to(net, value):
    with torch.no_grad():
        net.first.fill_(value)
        net.second.fill_(value)


def resumed(folder):
    """The epoch that a run in this folder would resume after, and its weights' value."""
    net = Net(-1.0)
    rest = Checkpointer(net, str(folder)).resume_or_load("", resume=True)
    value, = set(torch.cat([net.first, net.second]).tolist())
    return rest.get("epoch"), value


def moments(folder, monkeypatch):
    """Saves checkpoints 0 to 4: the last two over the first, number 2 as the best.

    Gives copies of the folder at each moment of the writing, which are what a kill would leave.
    """
    taken, net, save, replace = [], Net(), torch.save, os.replace

    def snapshot():
        taken.append(folder.with_name(f"{folder.name} {len(taken)}"))
        shutil.copytree(folder, taken[-1])

    def save_in_two_writes(data, file):
        whole = io.BytesIO()
        save(data, whole)
        for part in whole.getvalue()[:500], whole.getvalue()[500:]:
            snapshot()
            file.write(part)
            file.flush()

    folder.mkdir()
    checkpointer = Checkpointer(net, str(folder))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_in_two_writes)
        patch.setattr(os, "replace", lambda *names: (snapshot(), replace(*names)))
        for epoch, name in enumerate(["model_0", "model_1", "model_best", "model_0", "model_0"]):
            set_to(net, epoch)
            checkpointer.save(name, epoch=epoch)
            snapshot()
    return taken


def broken_moments(taken):
    broken = 0
    for folder in itertools.dropwhile(lambda f: not (f / "last_checkpoint").exists(), taken):
        try:
            epoch, value = resumed(folder)
        except (RuntimeError, ValueError, EOFError):
            broken += 1
        else:
            assert epoch == value and epoch != 2  # nothing is mixed, and not the best one
    return broken


def test_whatever_the_moment_of_a_kill_the_run_resumes(tmp_path, monkeypatch):
    taken = moments(tmp_path / "mended", monkeypatch)
    assert len(taken) > 20 and broken_moments(taken) == 0
    assert resumed(taken[-1]) == (4, 4.0)
    with compat.without("whole_checkpoints"):
        taken = moments(tmp_path / "as it was", monkeypatch)
    with pytest.raises(AssertionError, match="and 2 != 2"):
        broken_moments(taken)
    assert broken_moments([f for f in taken if (f / "last_checkpoint").exists()
                           and (f / "last_checkpoint").read_text() != "model_best.pth"]) > 0


def test_a_full_disk_names_the_checkpoint(tmp_path, monkeypatch):
    def full(data, file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"model_0000\.pth could not be saved: No space left.*There "
                                      r"is no earlier checkpoint.*OUTPUT_DIR.*--resume") as caught:
        Checkpointer(Net(1.0), str(tmp_path)).save("model_0000")
    assert caught.value.errno == errno.ENOSPC and os.listdir(tmp_path) == []


@pytest.mark.parametrize("first", [True, False])
def test_what_a_kill_left_is_removed_by_the_first_process_of_the_next_run(tmp_path, first):
    left = tmp_path / f".model_0000.pth.{2 ** 31 + 5}.part"
    checkpointer = Checkpointer(
        Net(1.0 if first else float("nan")), str(tmp_path), save_to_disk=first)
    for step in (lambda: checkpointer.save("model_0000"), lambda: checkpointer.resume_or_load("")):
        left.write_bytes(b"half")
        step()
        assert left.exists() is not first
    assert (tmp_path / "model_0000.pth").exists() is first


def test_a_checkpoint_is_saved_in_its_folder_only(tmp_path):
    with pytest.raises(ValueError, match="no file name"):
        Checkpointer(Net(), str(tmp_path)).save("../model")


class Part:
    """A checkpointable of one value."""

    def __init__(self, value=0):
        self.value = value

    def state_dict(self):
        return {"deep": [{"value": self.value}]}

    def load_state_dict(self, state):
        self.value = state["deep"][0]["value"]


@pytest.mark.parametrize("value", [
    float("nan"), np.float64(0.25), (1, None, "a", True, torch.Size([2])),
    collections.Counter({40: 1, 70: 2}), 2 ** 70])
def test_plain_values_come_back_as_they_were(tmp_path, value):
    Checkpointer(Net(), str(tmp_path), part=Part(value)).save("model_0000", metric=value)
    part = Part()
    rest = Checkpointer(Net(), str(tmp_path), part=part).resume_or_load("")
    expected = value.item() if isinstance(value, np.generic) else value
    for back in part.value, rest["metric"]:
        assert type(back) is type(expected) and repr(back) == repr(expected)


@pytest.mark.parametrize("value", [np.zeros(2), {1}, print])
def test_what_could_not_be_loaded_again_is_not_saved(tmp_path, value):
    checkpointer = Checkpointer(Net(), str(tmp_path), part=Part(value))
    with pytest.raises(TypeError, match=r"plain Python values.*part\.deep\.0\.value is a"):
        checkpointer.save("model_0000")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("where, value", [
    ("second", float("nan")), ("part.deep.0.value", -float("inf"))])
def test_weights_that_exploded_are_not_saved(tmp_path, where, value):
    net, part = Net(), Part(torch.zeros(2))
    checkpointer = Checkpointer(net, str(tmp_path), part=part)
    checkpointer.save("model_0000", epoch=0)
    before = (tmp_path / "model_0000.pth").read_bytes()
    with torch.no_grad():
        (net.second if where == "second" else part.value)[1] = value
    for name in ("model_0000", "model_0001"):
        with pytest.raises(FloatingPointError, match=rf"{name}\.pth is not saved: .*{where} holds.*"
                                                     r"model_0000\.pth is still good.*BASE_LR"):
            checkpointer.save(name, epoch=1)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000.pth"]
    assert (tmp_path / "model_0000.pth").read_bytes() == before
    with compat.without("finite_checkpoints"):
        checkpointer.save("model_0000", epoch=1)
    assert (tmp_path / "model_0000.pth").read_bytes() != before


# ------------------------------------------------------------------------------ resuming ----


@pytest.fixture
def run(tmp_path):
    """A folder with the checkpoints 0, 1 and 2, each an hour newer, and model_best of epoch 1."""
    net, folder = Net(), tmp_path / "a run"
    folder.mkdir()
    checkpointer = Checkpointer(net, str(folder))
    for name in ("model_0000", "model_0001", "model_best", "model_0002"):
        epoch = 1 if name == "model_best" else int(name[-1])
        set_to(net, epoch)
        checkpointer.save(name, epoch=epoch)
        os.utime(folder / f"{name}.pth", (3600 * epoch, 3600 * epoch))
    return folder


def do_as_told(error):
    """Runs the command that an error message offers."""
    command, = re.findall("`(echo .*?)`", str(error))
    subprocess.run(["sh", "-c", command], check=True, timeout=20)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-200])


def change_a_bit(path):
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((3,), 2.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)


def cut_off_in_the_older_format(path):
    torch.save(Net().state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("damage", [cut_off, change_a_bit, cut_off_in_the_older_format])
def test_a_damaged_checkpoint_is_named_and_the_previous_one_offered(run, damage):
    damage(run / "model_0002.pth")
    with pytest.raises(DamagedFile, match=r"model_0002\.pth is damaged.*newest other checkpoint "
                                          r"that loads is model_0001\.pth") as caught:
        resumed(run)
    assert "weights_only" not in str(caught.value)
    do_as_told(caught.value)
    assert resumed(run) == (1, 1.0)


def test_without_the_repair_a_changed_bit_is_loaded_and_a_broken_file_not_named(run):
    change_a_bit(run / "model_0002.pth")
    net = Net()
    with compat.without("safe_checkpoints"):
        Checkpointer(net, str(run)).resume_or_load("")
        assert net.first.tolist() != [2.0] * 3  # the weights are wrong and nobody knows
        cut_off(run / "model_0002.pth")
        with pytest.raises(RuntimeError) as caught:
            resumed(run)
    assert "model_0002" not in str(caught.value)


def test_the_newest_goes_by_epoch_and_not_by_the_time_of_the_file(run):
    os.utime(run / "model_0000.pth")  # as after copying it back
    cut_off(run / "model_0002.pth")
    with pytest.raises(DamagedFile, match=r"newest other .* loads is model_0001\.pth"):
        resumed(run)


def test_what_is_offered_loads_and_is_never_the_best_by_the_test_set(run):
    os.utime(run / "model_best.pth")  # the newest of all
    names = ["model_0002.pth", "model_0001.pth", "model_0000.pth"]
    for broken, offered in itertools.pairwise(names):
        cut_off(run / broken)
        with pytest.raises(DamagedFile, match=f"{broken} is damaged") as caught:
            resumed(run)
        do_as_told(caught.value)
        assert (run / "last_checkpoint").read_text() == f"{offered}\n"
    assert resumed(run) == (0, 0.0)
    cut_off(run / "model_0000.pth")
    with pytest.raises(DamagedFile, match="No other checkpoint .* loads: remove .*last_checkpoint"):
        resumed(run)


@pytest.mark.parametrize("tag, fault", [
    (b" \n", "is empty"), (b"../model_0001.pth", "no file name"),
    (b"/etc/passwd", "no file name"), (b"a\0b", "is missing"), (5000 * b"x", "is missing"),
    (bytes(range(128, 256)), "which is missing")], ids=range(6))
def test_a_wrong_last_checkpoint_is_told_as_such(run, tag, fault):
    shutil.copy(run / "model_0001.pth", run.parent)
    (run / "last_checkpoint").write_bytes(tag)
    with pytest.raises(ValueError, match=rf"a run/last_checkpoint .*{fault}.*model_0002\.pth") as e:
        resumed(run)
    assert len(str(e.value)) < 1000
    do_as_told(e.value)
    assert resumed(run) == (2, 2.0)


def test_without_the_repair_a_wrong_last_checkpoint_is_obeyed(run):
    shutil.copy(run / "model_0001.pth", run.parent)
    (run / "last_checkpoint").write_text("../model_0001.pth")
    with compat.without("last_checkpoint"):
        assert resumed(run) == (1, 1.0)


def test_checkpoints_without_a_last_one_are_told(run, tmp_path_factory, messages):
    for fresh in Checkpointer(Net(), str(tmp_path_factory.mktemp("fresh"))), Checkpointer(Net()):
        assert fresh.resume_or_load("", resume=True) == {}
    (run / "last_checkpoint").unlink()
    Checkpointer(Net(), str(run)).resume_or_load("", resume=True)
    text, = [text for text in messages if "begins anew" in text]  # once: a fresh folder has none
    do_as_told(text)
    assert resumed(run) == (2, 2.0)


# --------------------------------------------------------------------------- what is read ----


class Bomb:
    """Pickled, it is a command that creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {shlex.quote(str(self.path))}",)


@pytest.fixture
def unsafe_torch(monkeypatch):
    """torch.load with the default of torch < 2.6."""
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *arguments, weights_only=False, **options: load(
        *arguments, weights_only=weights_only, **options))


BOMBS = {
    "zip": torch.save,
    "older": functools.partial(torch.save, _use_new_zipfile_serialization=False),
    "pickle 0": lambda content, path: path.write_bytes(pickle.dumps(content, 0)),
    "pickle 4": lambda content, path: path.write_bytes(pickle.dumps(content, 4)),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", BOMBS.values(), ids=BOMBS)
def test_a_file_with_code_is_refused(run, tmp_path, unsafe_torch, write):
    fired, path = tmp_path / "fired", run / "model_0002.pth"
    write({"model": Net().state_dict(), "epoch": Bomb(fired)}, path)
    with pytest.raises(CodeInFile, match=rf"model_0002\.pth is refused.*{os.name}\.system.*run any "
                                         r"code.*caureid weights FILE.*model_0001\.pth"):
        resumed(run)
    for load in (Checkpointer(Net()).load, functools.partial(compat.load_weights, Net())):
        with pytest.raises(CodeInFile, match=rf"{os.name}\.system"):
            load(str(path))
    assert not fired.exists()


def test_without_the_repair_code_in_a_file_runs(run, tmp_path, unsafe_torch):
    fired = tmp_path / "fired"
    torch.save({"model": Net().state_dict(), "epoch": Bomb(fired)}, run / "model_0002.pth")
    with compat.without("safe_checkpoints"):
        resumed(run)
    assert fired.exists()


@pytest.mark.parametrize("content", [torch.nn.Linear(2, 2), {"model": np.zeros(2)}], ids=type)
def test_other_objects_than_tensors_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "file")
    with pytest.raises(CodeInFile, match=r"Linear|numpy"):
        load_tensors(tmp_path / "file")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_program_is_no_file_of_tensors(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "file"))
    with pytest.raises(DamagedFile, match="a program of torch.jit"):
        load_tensors(tmp_path / "file")


def test_a_tar_is_refused_before_torch_reads_it(tmp_path, monkeypatch):
    """torch < 2.6 runs what is in it in spite of weights_only."""
    with tarfile.open(tmp_path / "file.tar", "w:gz") as archive:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            part = pickle.dumps(Bomb(tmp_path / "fired"), 2)
            entry = tarfile.TarInfo(name)
            entry.size = len(part)
            archive.addfile(entry, io.BytesIO(part))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch reads it"))
    with pytest.raises(DamagedFile,
                       match=r"file\.tar.*tar format of very old torch.*save it again"):
        load_tensors(tmp_path / "file.tar")


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path):
    with pytest.raises(IsADirectoryError):
        load_tensors(tmp_path)


def write_zip(path, edit=lambda name, data: data, compression=zipfile.ZIP_STORED):
    """A file of torch.save, written anew with other parts."""
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(3)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, edit(name, old.read(name)))


def overlap(path):
    """Its last part is the whole file, as it says."""
    write_zip(path)
    content = bytearray(path.read_bytes())
    start = content.rindex(b"PK\x01\x02") + 20  # of the last part's entry: its two lengths
    content[start:start + 8] = 2 * struct.pack("<I", len(content))
    path.write_bytes(content)


def cyclic():
    content = {"w": torch.zeros(1)}
    content["model"] = content
    return content


def doubled(times):
    content = [torch.zeros(1)]
    for _ in range(times):
        content = [content, content]
    return content


DEEP = b"\x80\x02" + 10**5 * b"]" + (10**5 - 1) * b"a" + b"."
# what would take endless time or memory, and what is said of it
HOSTILE = {
    "compressed": (functools.partial(write_zip, compression=zipfile.ZIP_DEFLATED),
                   "part .* is compressed, which torch.save never does"),
    "overlapping": (overlap, "overlap"),
    "deep": (functools.partial(write_zip, edit=lambda name, data: (
        DEEP if name.endswith("data.pkl") else data)), "nested more than 50 deep"),
    "cyclic": (functools.partial(torch.save, cyclic()), "'model' contains itself"),
    "aliases": (functools.partial(torch.save, doubled(40)), "holds [0-9]{13} values"),
    "repeated": (functools.partial(torch.save, {"w": torch.zeros(1).expand(10**6, 10**6)}),
                 "tensor 'w' of shape .1000000, 1000000. is larger than the file"),
    "without values": (functools.partial(torch.save, {"w": torch.empty(3, device="meta")}),
                       "tensor 'w' has no values"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_only_endless_time_or_memory_could_use_is_refused(tmp_path, monkeypatch, name):
    write, message = HOSTILE[name]
    write(tmp_path / "weights.pth")
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda archive: pytest.fail("unpacked")
                        if name in ("compressed", "overlapping") else None)
    for read in (load_tensors, *[salvage] * (name != "without values")):  # which leaves it out
        with pytest.raises(DamagedFile, match=rf"weights\.pth.*{message}"):
            read(tmp_path / "weights.pth")


# a tuple of a tuple of ..., twice each; and lists, the outer ones filled first
TUPLES = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(40))
LISTS = b"".join(b"]q%c" % i for i in range(40)) + b"".join(
    b"h%ch%cah%ca" % (i, i + 1, i + 1) for i in range(39)) + b"h\x00"
ODICT, COUNTER = (b"ccollections\n%b\n" % name for name in (b"OrderedDict", b"Counter"))
STORED = b"X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
PRIME = 2**61 - 1  # Python's hashes are modulo it
LONG = b"".join(b"\x8a\x0f%bK\x01" % (i * PRIME).to_bytes(15, "little")
                for i in range(8, 10_050))
PAIRS = b"".join(b"M%bK\x01\x86K\x01" % i.to_bytes(2, "little") for i in range(10_001))
FAR = "keys and calls hold far more values than it has bytes"
# what takes endless time, or crashes, while it is read, and what is said of it
PICKLES = {
    "a key": (b"}" + TUPLES + b"K\x01s", FAR), "keys": (b"}(" + TUPLES + b"K\x01u", FAR),
    "a dict's pairs": (b"(" + TUPLES + b"K\x01d", FAR),
    "an OrderedDict's pairs": (ODICT + b"]" + TUPLES + b"K\x01\x86a\x85R", FAR),
    "what is counted": (COUNTER + b"]" + TUPLES + b"a\x85R", FAR),
    "attributes": (ODICT + b")R]" + TUPLES + b"K\x01\x86ab", FAR),
    "doubled on the stack": (b"})" + 40 * b"2\x86" + b"K\x01s", FAR),
    "what is called": (LISTS + b")R", FAR),
    "a storage's name": (b"(" + LISTS + b"1(" + STORED + LISTS + b"X\x03\x00\x00\x00cpuK\x01tQ",
                         FAR),
    "a deep key": (b"})" + 10**4 * b"\x85" + b"K\x01s", "is nested more than 1000 deep"),
    "long integers of one hash": (b"}(" + LONG + b"u", "more than 10000 keys of several parts or"),
    "pairs of one hash": (b"}(" + PAIRS + b"u", "more than 10000 keys of several parts or"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_would_be_read_for_ever(tmp_path, monkeypatch, name, zipped):
    content, message = PICKLES[name]
    content, path = b"\x80\x02" + content + b".", tmp_path / "weights.pth"
    path.write_bytes(content)
    if zipped:
        write_zip(path, lambda part, data: content if part.endswith("data.pkl") else data)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch reads it"))
    for read in (load_tensors, salvage):
        with pytest.raises(DamagedFile, match=rf"weights\.pth.*{message}"):
            read(path)


def test_an_older_file_is_followed_to_its_end(tmp_path, monkeypatch):
    """It is a row of pickles, the fourth of which is its content."""
    torch.save({"w": torch.zeros(3)}, tmp_path / "old", _use_new_zipfile_serialization=False)
    content, start = (tmp_path / "old").read_bytes(), b"\x80\x02}q\x00X\x01\x00\x00\x00w"
    assert content.count(start) == 1
    hostile = content.replace(start, start[:3] + TUPLES + b"K\x01s" + start[5:])
    (tmp_path / "new").write_bytes(hostile)
    assert load_tensors(tmp_path / "old")["w"].tolist() == [0, 0, 0]
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch reads it"))
    with pytest.raises(DamagedFile, match=FAR):
        load_tensors(tmp_path / "new")


@pytest.mark.parametrize("old", [True, False])
def test_what_is_large_and_no_attack_is_read(tmp_path, monkeypatch, old):
    """Whole networks name modules in modules, checkpoints the same weights twice."""
    monkeypatch.setattr(safe_load, "SMALL", 0)  # as if they were large
    module = torch.nn.Linear(1, 1)
    for _ in range(20):
        module = torch.nn.Sequential(module, torch.nn.BatchNorm1d(1))
    weights = module.state_dict()
    content = {"model": weights, "model_ema": weights, "sizes": {(1, 2): 3}, "seed": 2**127}
    for name, tree, read in (("whole", module, salvage), ("weights", content, load_tensors)):
        torch.save(tree, tmp_path / name, _use_new_zipfile_serialization=not old)
        found = read(tmp_path / name)
    assert found["sizes"] == {(1, 2): 3} and found["seed"] == 2**127
    assert salvage(tmp_path / "whole").keys() == found["model_ema"].keys() == weights.keys()


class Attributed(collections.OrderedDict):
    """An OrderedDict that is saved with attributes of any name."""

    def __reduce__(self):
        items = {"w": torch.zeros(1)}.items()
        return collections.OrderedDict, (), self.attributes, None, iter(items)


def with_attribute(name, value=()):
    content = Attributed()
    content.attributes = {name: value}
    return content


def a_parameter():
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.numel = 1
    return parameter


@pytest.mark.parametrize("content, name", [
    *[(with_attribute(name), name) for name in ("items", "keys", "values", "get", "__len__")],
    # of a class that can be called and then is empty
    (with_attribute("items", collections.OrderedDict), "items"),
    ({"model": with_attribute("pop")}, "pop"), ({"model": {"w": a_parameter()}}, "numel")])
def test_attributes_that_hide_what_a_dict_holds_are_refused(tmp_path, content, name):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(DamagedFile, match=rf"weights\.pth is no file .* replaces '{name}'"):
        load_tensors(tmp_path / "weights.pth")
    torch.save(with_attribute("_metadata"), tmp_path / "weights.pth")  # as state_dict() has it
    assert load_tensors(tmp_path / "weights.pth").keys() == {"w"}


def test_small_files_may_repeat_and_share_a_little(tmp_path):
    shared = torch.arange(3.0)
    content = {"a": shared.expand(1000, 3), "b": [shared, shared], "c": {1: (True, None)}}
    torch.save(content, tmp_path / "weights.pth")
    read = load_tensors(tmp_path / "weights.pth")
    assert torch.equal(read["a"], content["a"]) and read["c"] == content["c"]


@pytest.mark.parametrize("change, message", [
    ({"model": {1: torch.zeros(3)}}, "'1' .int. is a Tensor"),
    ({"model": {"first": 3}}, "'first' .str. is a int"),
    ({"part": {"a": 1}}, "a part of it .model, part. .*KeyError: 'value'"),
    ({"part": 3}, "a part of it .model, part. .*TypeError")], ids=str)
def test_a_checkpoint_whose_parts_are_others_is_named(run, change, message):
    class Part:
        def load_state_dict(self, state):
            self.value = state["value"]

    content = torch.load(run / "model_0002.pth", weights_only=True)
    torch.save({**content, **change}, run / "model_0002.pth")
    with pytest.raises(ValueError, match=rf"model_0002\.pth is no checkpoint.*{message}.*"
                                         r"newest other .* is model_0001\.pth"):
        Checkpointer(Net(), str(run), part=Part()).resume_or_load("", resume=True)
    torch.save({1: torch.zeros(3)}, run.parent / "weights.pth")
    with pytest.raises(ValueError, match="no weights under the key 'model'"):
        Checkpointer(Net()).load(str(run.parent / "weights.pth"))


@pytest.mark.parametrize("lost", [
    ["optimizer"], ["lr_sched"], ["optimizer", "lr_sched", "epoch"], ["memory_bank"], []], ids=str)
def test_a_run_goes_on_from_a_whole_checkpoint(run, lost):
    """Without its optimizer or schedule it would go on with others, and say nothing."""
    parts = {name: Part() for name in ("optimizer", "lr_sched", "memory_bank", "run_state")}
    content = torch.load(run / "model_0002.pth", weights_only=True)
    content |= {name: parts[name].state_dict() for name in parts if name != "run_state"}
    for name in lost:
        del content[name]
    torch.save(content, run / "model_0002.pth")
    checkpointer = Checkpointer(Net(), str(run), **parts)
    if not lost:  # a checkpoint of FastReID without the plugin has none
        assert checkpointer.resume_or_load("", resume=True)["epoch"] == content["epoch"]
        return
    with pytest.raises(ValueError, match=rf"model_0002\.pth has no {', '.join(lost)}: .*whole "
                                         r"checkpoint.*newest other .* is model_0001\.pth"):
        checkpointer.resume_or_load("", resume=True)
    # its weights are as good as before, whatever the tag of the folder names
    Checkpointer(Net()).load(str(run / "model_0002.pth"))
    (run / "last_checkpoint").write_text("model_0009.pth")
    weights = str(run.parent / "weights.pth")
    torch.save({"model": Net(7.0).state_dict()}, weights)
    checkpointer.resume_or_load(weights, resume=False)
    assert checkpointer.model.first[0].item() == 7


@pytest.mark.parametrize("change", [
    {"steps_done": 4}, {"steps_done": -1}, {"steps_done": 10**12}, {"seed": "1"},
    {"random": {}}, {"scalars": []}, {"best_metric": None}, {"grad_scaler": 1.0}], ids=str)
def test_a_state_that_no_run_has_is_refused(change):
    class Trainer:
        iters_per_epoch = 3

    trainer, ((name, value),) = Trainer(), change.items()
    state = {"seed": 1, "steps_done": 3, "iters_per_epoch": 3, "random": [], "scalars": {},
             "written": {}, "metrics_bytes": None, "best_metric": -1.0, "grad_scaler": None}
    with pytest.raises(ValueError, match=re.escape(
            f"run_state is damaged: {name} is '{value}'.")):
        compat.RunState(trainer, 1).load_state_dict({**state, **change})


def test_counters_are_read_whether_torch_has_a_public_list_or_not(tmp_path, monkeypatch):
    counter = collections.Counter({40: 1, 70: 2})
    torch.save(counter, tmp_path / "file")
    assert load_tensors(tmp_path / "file") == counter
    allowed = {}
    monkeypatch.delattr(torch.serialization, "add_safe_globals", raising=False)  # as in torch 2.2
    monkeypatch.setattr(torch._weights_only_unpickler, "_get_allowed_globals", lambda: allowed)
    checkpoints._allow_counters()
    assert allowed == {"collections.Counter": collections.Counter}


def test_weights_elsewhere_are_not_replaced_by_a_checkpoint(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"MODEL\.WEIGHTS.*none\.pth"):
        Checkpointer(Net(), str(run)).load(str(tmp_path / "none.pth"))
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(DamagedFile, match=r"MODEL\.WEIGHTS") as caught:
        Checkpointer(Net(), str(run)).load(str(tmp_path / "weights.pth"))
    assert "echo" not in str(caught.value)


def test_a_state_dict_alone_is_weights_and_no_checkpoint_of_a_run(run):
    path, net = run / "model_0002.pth", Net()
    torch.save(Net(5.0).state_dict(), path)
    Checkpointer(net).load(str(path))
    assert (net.first == 5).all() and (net.second == 5).all()
    with compat.without("plain_weights"), pytest.raises(ValueError, match="KeyError: 'model'"):
        Checkpointer(net).load(str(path))
    with pytest.raises(ValueError, match="is no checkpoint"):
        resumed(run)


WRAPPED = [  # and what is taken
    (lambda net: {"state_dict": net, "epoch": 3}, "weights under 'state_dict' are taken."),
    (lambda net: {"model": {"state_dict": net}}, "under 'model' > 'state_dict' are"),
    (lambda net: {"model_ema": {}, "model": {}, "state_dict": net}, "under 'state_dict' are"),
]


@pytest.mark.parametrize("prefix", ["", "module.", "module.model."])
@pytest.mark.parametrize("wrap, message", [(None, ""), *WRAPPED])
def test_weights_of_others_are_unwrapped_as_those_of_a_backbone(tmp_path, messages, prefix, wrap,
                                                               message):
    state = {f"{prefix}{name}": value for name, value in Net(5.0).state_dict().items()}
    torch.save(wrap(state) if wrap else state, tmp_path / "weights.pth")
    net = Net()
    Checkpointer(net).load(str(tmp_path / "weights.pth"))
    assert (net.first == 5).all() and (net.second == 5).all()
    told = [text for text in messages if "are taken" in text]
    assert len(told) == bool(wrap or prefix)
    if told:
        assert message.strip(".") in told[0]
        assert (f"without the prefix {prefix!r}" in told[0]) == bool(prefix)


def test_a_run_goes_on_from_no_wrapped_weights(run):
    torch.save({"state_dict": Net(5.0).state_dict()}, run / "model_0002.pth")
    with pytest.raises(ValueError, match="is no checkpoint"):
        resumed(run)


@pytest.mark.parametrize("content", [
    {}, None, {"weights": {"first": torch.zeros(3)}}, {"model": torch.zeros(3), "epoch": 1},
    {"state_dict": {}, "model_ema": {"state_dict": {}}}], ids=repr)
def test_what_holds_no_weights_is_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth is no checkpoint.*'model'.*found:"):
        Checkpointer(Net()).load(str(tmp_path / "weights.pth"))


# --------------------------------------------------------------------- pretrained backbones ----

def readings(module, path):
    """What a module of the toolbox reads a file of torch.save with."""
    hub = module.torch.hub
    yield lambda: module.torch.load(str(path))
    yield lambda: module.torch.load(str(path), map_location=torch.device("cpu"))
    for owner in (hub, module):
        if hasattr(owner, "load_state_dict_from_url"):
            yield lambda load=owner.load_state_dict_from_url: load(
                f"https://nowhere.invalid/{path.name}", model_dir=str(path.parent))


def test_no_backbone_runs_code_in_its_weights(tmp_path, unsafe_torch):
    fired, path = tmp_path / "fired", tmp_path / "bomb.pth"
    torch.save(Bomb(fired), path)
    toolbox = Path(backbones.__file__).parents[2]
    names = {".".join(("fastreid", *path.relative_to(toolbox).with_suffix("").parts))
             for path in toolbox.rglob("*.py")
             if re.search(r"torch\.load\(|load_state_dict_from_url\(", path.read_text())}
    assert len(names) >= 12
    names.remove("fastreid.utils.checkpoint")  # whose only call is replaced by safe_checkpoints
    for name in names:
        assert name.startswith("fastreid.modeling.backbones.")
        module = sys.modules[name]
        for read in readings(module, path):
            with pytest.raises(CodeInFile, match=r"bomb\.pth is refused.*BACKBONE\.PRETRAIN_PATH"):
                read()
            assert not fired.exists()
        assert module.torch.cat is torch.cat and module.torch.hub.get_dir is torch.hub.get_dir
    with compat.without("safe_pretraining"):
        sys.modules["fastreid.modeling.backbones.osnet"].torch.load(str(path))
    assert fired.exists()


@pytest.fixture
def pretrained(cfg):
    """Builds a pretrained backbone without its random weights, which take time."""

    def build(path, name="build_resnet_backbone", depth="18x"):
        cfg.merge_from_list(["MODEL.BACKBONE.NAME", name, "MODEL.BACKBONE.DEPTH", depth,
                             "MODEL.BACKBONE.PRETRAIN", True, "INPUT.SIZE_TRAIN", [32, 16],
                             "MODEL.BACKBONE.PRETRAIN_PATH", str(path)])
        with torch.device("meta"):
            BACKBONE_REGISTRY.get(name)(cfg)

    return build


# one that reads the file itself, one by functions of its own; the others do as these
@pytest.mark.parametrize("backbone", [
    ("build_resnet_backbone", "18x"), ("build_osnet_backbone", "x0_25"),
    ("build_mobilenetv3_backbone", "Small")], ids=str)
def test_a_wrong_pretrained_file_is_named_with_its_key(
        pretrained, tmp_path, unsafe_torch, backbone):
    fired, path = tmp_path / "fired", tmp_path / "weights.pth"
    key = r".*MODEL\.BACKBONE\.PRETRAIN_PATH"

    def refused(error, says):
        with pytest.raises(error, match=says):
            pretrained(path, *backbone)

    refused(FileNotFoundError, key + r".*weights\.pth")
    for make, remove in ((path.mkdir, path.rmdir), (lambda: os.mkfifo(path), path.unlink)):
        make()
        refused(FileNotFoundError, key + r".*weights\.pth")
        remove()
    path.write_bytes(b"")
    refused(DamagedFile, r"weights\.pth" + key)
    torch.save({"model": Bomb(fired), "state_dict": Bomb(fired)}, path)
    refused(CodeInFile, r"weights\.pth" + key)
    assert not fired.exists()


# ResNeXt's own reading takes two words off each name, ShuffleNet's wants a wrapper
@pytest.mark.parametrize("name, depth", [
    ("build_osnet_backbone", "x0_25"), ("build_resnet_backbone", "18x"),
    ("build_resnext_backbone", "50x"), ("build_shufflenetv2_backbone", "0.5x"),
    ("build_vit_backbone", "small"), ("build_mobilenetv3_backbone", "Small")])
@pytest.mark.parametrize("wrap", [None, "model"])
def test_pretrained_weights_are_loaded_whatever_their_prefix(cfg, tmp_path, messages, name, depth,
                                                             wrap):
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", name, "MODEL.BACKBONE.DEPTH", depth,
                         "MODEL.BACKBONE.PRETRAIN", False, "INPUT.SIZE_TRAIN", [64, 32],
                         "MODEL.BACKBONE.STRIDE_SIZE", [16, 16]])
    # no random weights, which take time; the transformer asks for numbers
    with torch.device("cpu" if "vit" in name else "meta"):
        expected = backbones.build_backbone(cfg).state_dict()
    expected = {key: torch.full(value.shape, 0.5, dtype=value.dtype)
                for key, value in expected.items()}
    content = {f"module.encoder_q.{key}": value for key, value in expected.items()}
    path = tmp_path / "weights.pth"
    torch.save({wrap: content, "epoch": 3} if wrap else content, path)
    cfg.merge_from_list(["MODEL.BACKBONE.PRETRAIN", True,
                         "MODEL.BACKBONE.PRETRAIN_PATH", str(path)])
    built = backbones.build_backbone(cfg)
    assert all(torch.equal(value, expected[key]) for key, value in built.state_dict().items())
    counted = sum(not key.endswith("num_batches_tracked") for key in expected)
    assert [text for text in messages if f"{counted} of {counted} tensors loaded, without the "
            "prefix 'module.encoder_q.'" in text]


def test_pretrained_weights_of_another_network_are_refused(cfg, tmp_path):
    path = tmp_path / "weights.pth"
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_osnet_backbone", "MODEL.BACKBONE.PRETRAIN",
                         False, "MODEL.BACKBONE.DEPTH", "x0_25"])
    small = backbones.build_backbone(cfg).state_dict()
    cfg.merge_from_list(["MODEL.BACKBONE.PRETRAIN", True,
                         "MODEL.BACKBONE.PRETRAIN_PATH", str(path)])
    for content, depth, says in (
            ({}, "x0_25", "holds no tensors"), ({"epoch": 3, "model": {}}, "x0_25", "no tensors"),
            (small, "x0_5", r"has 0 of the \d+ tensors.*instead: conv1.conv.weight \(16, 3, 7, 7"),
            ({"a.b": torch.ones(1)}, "x0_25", "In the file instead: a.b")):
        torch.save(content, path)
        cfg.MODEL.BACKBONE.DEPTH = depth
        with pytest.raises(ValueError, match=f"weights.pth.*{says}") as refused:
            backbones.build_backbone(cfg)
        assert "MODEL.BACKBONE.PRETRAIN_PATH" in str(refused.value)
    with compat.without("foreign_pretraining"):
        backbones.build_backbone(cfg)  # random weights, and no word


@pytest.mark.parametrize("of_file, depth, said", [
    ("101x", "50x", "a ResNet-101 of 3, 4, 23, 3 blocks, and the network is a ResNet-50 of 3, 4, "),
    ("18x", "50x", "a ResNet-18 of 2, 2, 2, 2 blocks, and the network is a ResNet-50 of 3, 4, ")])
def test_weights_of_another_depth_are_refused_with_both_keys(cfg, monkeypatch, messages, of_file,
                                                             depth, said):
    """In LUPerson's layout; a deeper network's file has all tensors of the shallower one."""
    def build(depth):
        cfg.MODEL.BACKBONE.DEPTH = depth
        with torch.device("meta"):  # no random weights, which take time
            return backbones.build_backbone(cfg)

    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.PRETRAIN = "build_resnet_backbone", False
    state = {f"module.encoder_{encoder}.{name}": value for encoder in "kq"
             for name, value in build(of_file).state_dict().items()}
    cfg.MODEL.BACKBONE.PRETRAIN, cfg.MODEL.BACKBONE.PRETRAIN_PATH = True, "w.pth"
    monkeypatch.setattr(compat.weights, "_load_pretrained", lambda path: {"state_dict": state})
    with pytest.raises(ValueError, match=r"^w\.pth .* Set MODEL\.BACKBONE\.PRETRAIN_PATH or "
                       rf"MODEL\.BACKBONE\.DEPTH \({depth}\) so that both .* file holds {said}"):
        build(depth)
    assert "w.pth: weights in the layout of MoCo (LUPerson)." in messages


def test_a_transformer_of_images_that_are_not_square(cfg, tmp_path):
    """The toolbox's own resizing takes their positions for those of a square."""
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_vit_backbone", "MODEL.BACKBONE.DEPTH",
                         "small", "MODEL.BACKBONE.PRETRAIN_PATH", str(tmp_path / "w.pth"),
                         "INPUT.SIZE_TRAIN", [64, 32], "MODEL.BACKBONE.STRIDE_SIZE", [16, 16]])
    state = {"pos_embed": torch.ones(1, 129, 384), "blocks.0.attn.qkv.weight": torch.ones(3, 3)}
    torch.save(state, tmp_path / "w.pth")
    cfg.MODEL.BACKBONE.PRETRAIN = True
    with pytest.raises(ValueError, match=r"w\.pth has 0 of .*a transformer of 1 blocks, and the "
                                         "network is a transformer of 8 blocks"):
        backbones.build_backbone(cfg)


def test_weights_given_by_name_are_downloaded_once(tmp_path, monkeypatch):
    source, calls = tmp_path / "source.pth", []
    torch.save({"a": torch.ones(2)}, source)

    def download(url, target, digest, progress):
        calls.append((url, digest))
        shutil.copy(source, target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    load = sys.modules["fastreid.modeling.backbones.resnest"].torch.hub.load_state_dict_from_url
    url, folder = "https://nowhere.invalid/x/net-0123abcd.pth?version=1", str(tmp_path / "new")
    for check_hash in (True, False):
        assert load(url, folder, check_hash=check_hash)["a"].tolist() == [1, 1]
    assert calls == [(url, "0123abcd")]
    load(url, folder, file_name="other.pth")
    assert calls[1:] == [(url, None)]
    source.unlink()  # as if there were no network
    with pytest.raises(FileNotFoundError, match=r"cannot be downloaded.*source\.pth.*Set "
                                                r"MODEL\.BACKBONE\.PRETRAIN_PATH to a file"):
        load("https://nowhere.invalid/net.pth", folder)


# gdown's own errors derive only from Exception
@pytest.mark.parametrize("error", [
    OSError(101, "Network is unreachable"), ImportError("No module named 'gdown'"),
    type("Retrieval", (Exception,), {"__module__": "gdown.exceptions"})("no link")], ids=type)
def test_weights_that_cannot_be_downloaded(pretrained, tmp_path, monkeypatch, error):
    def download(*args, **options):
        raise error

    monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=download))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    osnet = "", "build_osnet_backbone", "x0_25"
    with pytest.raises(FileNotFoundError, match="Set MODEL.BACKBONE.PRETRAIN_PATH to a file") as e:
        pretrained(*osnet)
    assert str(error) in str(e.value)
    error = KeyError("another")  # is not mistaken for one
    with pytest.raises(KeyError, match="another"):
        pretrained(*osnet)
