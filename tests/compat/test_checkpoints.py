"""Checkpoints are whole, safe to read and of the network that they are loaded into."""

import collections
import copy
import errno
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from caureid_plugin import compat
from fastreid.utils.checkpoint import Checkpointer, PeriodicCheckpointer


@pytest.fixture
def saved(make_model, tmp_path):
    """A checkpoint of the tiny network whose every tensor is 7, as a path."""
    model = make_model()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(7)
    Checkpointer(model, str(tmp_path)).save("seven")
    return str(tmp_path / "seven.pth")


def sevens(model):
    return {name for name, tensor in model.state_dict().items() if (tensor == 7).all()}


def test_the_same_network_loads_completely(make_model, saved):
    model = make_model()
    Checkpointer(model).load(saved)
    assert sevens(model) == set(model.state_dict())


def test_another_number_of_classes_loads_all_but_the_classifier(make_model, saved):
    model = make_model("MODEL.HEADS.NUM_CLASSES", 11)
    Checkpointer(model).load(saved)
    assert set(model.state_dict()) - sevens(model) == {"heads.weight"}


def test_another_width_is_an_error(make_model, saved):
    wide = "MODEL.BACKBONE.FEAT_DIM", 24
    with pytest.raises(ValueError, match=r"another architecture: 5 of 6 backbone.*"
                                         r"backbone\.0\.weight.*MODEL\.WEIGHTS.*MODEL\.BACKBONE"):
        Checkpointer(make_model(*wide)).load(saved)
    with compat.without("foreign_checkpoint"):
        model = make_model(*wide)
        start = copy.deepcopy(model.backbone[0].weight)
        Checkpointer(model).load(saved)  # as if nothing were wrong
        assert torch.equal(model.backbone[0].weight, start)


def test_another_kind_of_network_is_an_error(make_model, saved):
    resnet = "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.DEPTH", "18x"
    with pytest.raises(ValueError, match="another architecture"):
        Checkpointer(make_model(*resnet, "MODEL.BACKBONE.FEAT_DIM", 512)).load(saved)


def test_a_resumed_run_checks_its_checkpoint_too(make_trainer):
    make_trainer().train()
    trainer = make_trainer("MODEL.BACKBONE.FEAT_DIM", 24)
    with pytest.raises(ValueError, match="another architecture"):
        trainer.resume_or_load(resume=True)


SEPARATED = ("MODEL.META_ARCHITECTURE", "CAUReID", "MODEL.HEADS.NAME", "CamSepHead",
             "MODEL.HEADS.CAMSEP.REDUCTION", 4)


@pytest.mark.parametrize("saved_with, loaded_with", [
    ("none", "harmonious"), ("harmonious", "none")])
def test_another_head_is_an_error_where_it_is_evaluated_and_a_warning_where_it_starts(
        make_model, tmp_path, messages, saved_with, loaded_with):
    attention = "MODEL.HEADS.CAMSEP.ATTENTION"
    Checkpointer(make_model(*SEPARATED, attention, saved_with), str(tmp_path)).save("head")
    path = str(tmp_path / "head.pth")
    other = make_model(*SEPARATED, attention, loaded_with)
    with pytest.raises(ValueError, match=r"another architecture.*heads\.attention"):
        compat.load_weights(other, path)
    Checkpointer(other).load(path)
    assert any("head is another one" in text for text in messages)
    compat.load_weights(make_model(*SEPARATED, attention, saved_with), path)


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


@pytest.fixture
def moments(tmp_path, monkeypatch):
    """Saves checkpoints 0 to 4: the last two over the first, number 2 as the best.

    Gives copies of the folder at each moment of the writing, which are what a kill would leave.
    """

    def save_all():
        folder, taken = tmp_path / "run", []
        folder.mkdir()
        save, replace = torch.save, os.replace

        def snapshot():
            taken.append(tmp_path / f"{len(taken):03d}")
            shutil.copytree(folder, taken[-1])

        def save_in_two_writes(data, file):
            whole = io.BytesIO()
            save(data, whole)
            for part in whole.getvalue()[:500], whole.getvalue()[500:]:
                snapshot()
                file.write(part)
                file.flush()

        def watched_replace(old, new):
            snapshot()
            replace(old, new)
            snapshot()

        monkeypatch.setattr(torch, "save", save_in_two_writes)
        monkeypatch.setattr(os, "replace", watched_replace)
        net = Net()
        checkpointer = Checkpointer(net, str(folder))
        names = "model_0", "model_1", "model_best", "model_0", "model_0"
        for epoch, name in enumerate(names):
            set_to(net, epoch)
            checkpointer.save(name, epoch=epoch)
            snapshot()
        monkeypatch.undo()
        return taken

    return save_all


def broken_moments(taken):
    started, broken = False, 0
    for folder in taken:
        started |= (folder / "last_checkpoint").exists()
        if not started:
            continue
        try:
            epoch, value = resumed(folder)
        except (RuntimeError, ValueError, EOFError):
            broken += 1
        else:
            assert epoch == value and epoch != 2  # nothing is mixed, and not the best one
    return broken


def test_whatever_the_moment_of_a_kill_the_run_resumes(moments):
    taken = moments()
    assert len(taken) > 20 and broken_moments(taken) == 0
    assert resumed(taken[-1]) == (4, 4.0)


def test_without_the_repair_a_kill_breaks_the_last_checkpoint(moments):
    with compat.without("whole_checkpoints"):
        taken = moments()
    with pytest.raises(AssertionError, match="and 2 != 2"):
        broken_moments(taken)
    assert broken_moments([f for f in taken if (f / "last_checkpoint").exists()
                           and (f / "last_checkpoint").read_text() != "model_best.pth"]) > 0


def test_the_best_checkpoint_is_never_the_last(tmp_path):
    net, tags = Net(), []
    checkpointer = Checkpointer(net, str(tmp_path))
    periodic = PeriodicCheckpointer(checkpointer, 1, max_epoch=3)
    tag = checkpointer.tag_last_checkpoint
    checkpointer.tag_last_checkpoint = lambda name: (tag(name), tags.append(
        (tmp_path / "last_checkpoint").read_text()
        if (tmp_path / "last_checkpoint").exists() else None))
    for epoch in range(3):
        periodic.step(epoch, metric=epoch)
    assert tags == [None, "model_0000.pth", "model_0000.pth", "model_0001.pth", "model_0001.pth",
                    "model_final.pth"]
    assert (tmp_path / "model_best.pth").exists()


def fill_the_disk(monkeypatch):
    def full(data, file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)


def test_a_full_disk_names_the_checkpoint_and_the_one_that_is_still_good(tmp_path, monkeypatch):
    checkpointer = Checkpointer(Net(1.0), str(tmp_path))
    fill_the_disk(monkeypatch)
    with pytest.raises(OSError, match=r"model_0000\.pth could not be saved: No space left.*There "
                                      r"is no earlier checkpoint.*OUTPUT_DIR.*--resume") as caught:
        checkpointer.save("model_0000")
    assert caught.value.errno == errno.ENOSPC and os.listdir(tmp_path) == []
    monkeypatch.undo()
    checkpointer.save("model_0000", epoch=1)
    before = (tmp_path / "model_0000.pth").read_bytes()
    fill_the_disk(monkeypatch)
    with pytest.raises(OSError, match=r"model_0001\.pth could.*model_0000\.pth is still good"):
        checkpointer.save("model_0001")
    with pytest.raises(OSError, match=r"model_0000\.pth could.*model_0000\.pth is still good"):
        checkpointer.save("model_0000")
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000.pth"]
    assert (tmp_path / "model_0000.pth").read_bytes() == before and resumed(tmp_path) == (1, 1.0)


@pytest.mark.parametrize("step", ["save", "resume"])
def test_what_a_kill_left_is_removed_by_the_next_run(tmp_path, step):
    left = tmp_path / f".model_0000.pth.{2 ** 31 + 5}.part"
    left.write_bytes(b"half")
    checkpointer = Checkpointer(Net(), str(tmp_path))
    checkpointer.save("model_0000") if step == "save" else checkpointer.resume_or_load("")
    assert not left.exists()


def test_other_processes_than_the_first_write_and_remove_nothing(tmp_path):
    left = tmp_path / f".model_0000.pth.{2 ** 31 + 5}.part"
    left.write_bytes(b"half")
    checkpointer = Checkpointer(Net(float("nan")), str(tmp_path), save_to_disk=False)
    checkpointer.save("model_0000")
    checkpointer.resume_or_load("")
    assert list(tmp_path.iterdir()) == [left]


def test_a_checkpoint_is_saved_in_its_folder_only(tmp_path):
    with pytest.raises(ValueError, match="no file name"):
        Checkpointer(Net(), str(tmp_path)).save("../model")


class Part:
    """A checkpointable of one value."""

    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"deep": [{"value": self.value}]}

    def load_state_dict(self, state):
        self.value = state["deep"][0]["value"]


@pytest.mark.parametrize("value", [
    float("nan"), float("inf"), np.float64(0.25), (1, None, "a", True), torch.Size([2]),
    collections.Counter({40: 1, 70: 2}), 2 ** 70])
def test_plain_values_come_back_as_they_were(tmp_path, value):
    Checkpointer(Net(), str(tmp_path), part=Part(value)).save("model_0000", metric=value)
    part = Part(0)
    rest = Checkpointer(Net(), str(tmp_path), part=part).resume_or_load("")
    for back in part.value, rest["metric"]:
        expected = value.item() if isinstance(value, np.generic) else value
        assert type(back) is type(expected) and repr(back) == repr(expected)


@pytest.mark.parametrize("value", [np.zeros(2), Path("x"), {1}, b"raw", print])
def test_what_could_not_be_loaded_again_is_not_saved(tmp_path, value):
    checkpointer = Checkpointer(Net(), str(tmp_path), part=Part(value))
    with pytest.raises(TypeError, match=r"plain Python values.*part\.deep\.0\.value is a"):
        checkpointer.save("model_0000")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["second", "part.deep.0.value"])
def test_weights_that_exploded_are_not_saved(tmp_path, value, where):
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
