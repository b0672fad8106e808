"""caureid weights: tensors of files that ask for more, and nothing of it is run."""

import argparse
import functools
import os

import numpy as np
import pytest
import torch
from caureid_plugin.cli.common import call
from caureid_plugin.cli.weights import command
from caureid_plugin.common.safe_load import CodeInFile, load_tensors

from helpers.tool_output import refusal


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4),
                               torch.nn.Sequential(torch.nn.Linear(4, 2)))


CONTENTS = {
    "numpy scalars": lambda state: {"state_dict": state, "best": np.float64(3)},
    "a namespace": lambda state: {"model": state, "args": argparse.Namespace(lr=1, names=["a"])},
    "a set": lambda state: {"model": state, "seen": {1, 2}, "type": torch.float16},
    "a whole network": lambda state: network(),
    "one inside": lambda state: {"epoch": 3, "model": network(), "args": argparse.Namespace()},
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", CONTENTS)
def test_tensors_come_out_of_what_is_refused(tmp_path, capsys, name, old):
    expected = network().state_dict()
    source, output = tmp_path / "c.pth", tmp_path / "weights.pth"
    torch.save(CONTENTS[name](expected), source, _use_new_zipfile_serialization=not old)
    if name != "a set":  # some versions of torch read one
        with pytest.raises(CodeInFile, match="caureid weights FILE OUTPUT"):
            load_tensors(source)
    assert not call(command, [source, output])
    found = load_tensors(output)
    assert list(found) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    assert f"{len(expected)} tensors, 43 numbers" in capsys.readouterr().out


@pytest.mark.parametrize("old", [False, True])
def test_nothing_is_run(tmp_path, old):
    fired, source = tmp_path / "fired", tmp_path / "bomb.pth"
    torch.save({"model": {"a": torch.ones(2)}, "x": Bomb(fired)}, source,
               _use_new_zipfile_serialization=not old)
    assert not call(command, [source, tmp_path / "w.pth"])
    assert load_tensors(tmp_path / "w.pth")["a"].tolist() == [1, 1]
    assert not fired.exists()
    torch.load(source, weights_only=False)
    assert fired.exists()


@pytest.mark.parametrize("content, message", [
    (None, "does not exist"), (b"", "damaged: it is empty"), (b"abc", "no file of torch.save"),
    ({"args": argparse.Namespace(a=1)}, "holds no tensors"), ([torch.ones(1)], "holds no tensors")])
def test_what_holds_none(tmp_path, capsys, content, message):
    source = tmp_path / "c.pth"
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content is not None:
        torch.save(content, source)
    error = refusal(functools.partial(call, command), [source, tmp_path / "w.pth"], capsys)
    assert message in error and not (tmp_path / "w.pth").exists()


def test_nothing_is_written_over(tmp_path, capsys):
    torch.save({"a": torch.ones(1)}, tmp_path / "c.pth")
    error = refusal(functools.partial(call, command), [tmp_path / "c.pth"] * 2, capsys)
    assert "is there already" in error
