"""What a user can put right is one line, wherever it was found; a bug keeps its traceback."""

import io

import pytest
import torch
from caureid_plugin.common.errors import (
    MissingPackage,
    NotFinite,
    OutOfMemory,
    UnknownName,
    UserError,
    in_one_line,
    is_users,
)
from caureid_plugin.common.launcher import PortError, ProcessError, run_processes
from caureid_plugin.common.safe_load import DamagedFile
from torch.utils.data import DataLoader

TEXT = "eps 3 must be below 1 (as an.UserError: says):\nset EPS."


@pytest.mark.parametrize("kind, plain", [
    (UserError, ValueError), (MissingPackage, ImportError), (NotFinite, FloatingPointError),
    (OutOfMemory, MemoryError), (UnknownName, KeyError), (PortError, OSError)])
def test_a_users_error_is_of_its_plain_kind_and_shows_its_text(kind, plain):
    error = kind(TEXT)
    assert isinstance(error, (UserError, plain)) and is_users(error)
    assert str(error) == TEXT and error.args == (TEXT,)


@pytest.mark.parametrize("error", [
    KeyError("x"), ValueError("x"), ImportError("x"), RuntimeError("x"), ConnectionError("x"),
    io.UnsupportedOperation("x")])
def test_a_bug_keeps_its_traceback(error):
    assert not is_users(error)
    with pytest.raises(type(error), match="x"), in_one_line("caureid eps"):
        raise error


@pytest.mark.parametrize("error, line", [
    (UserError(TEXT), "eps 3 must be below 1 (as an.UserError: says): set EPS."),
    (UnknownName("no key X"), "no key X"),
    (UserError(), "UserError"),
    (FileNotFoundError(2, "No such file or directory", "a.yml"),
     "[Errno 2] No such file or directory: 'a.yml'")])
def test_in_one_line(error, line):
    with pytest.raises(SystemExit) as leaving, in_one_line("caureid eps"):
        raise error
    assert leaving.value.code == f"caureid eps: {line}"


class Failing(torch.utils.data.Dataset):
    """Its one item cannot be read."""

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            raise OSError("inner: cause")
        except OSError as error:
            raise self.kind(TEXT) from error


@pytest.mark.parametrize("kind", [UserError, DamagedFile])
def test_the_error_of_a_loaders_worker_is_that_of_this_process(kind):
    with pytest.raises(kind) as raised:
        next(iter(DataLoader(Failing(kind), num_workers=1)))
    assert str(raised.value) == TEXT


def fail(rank, kind):
    raise kind(TEXT)


@pytest.mark.parametrize("kind, arrives", [
    (UserError, UserError), (UnknownName, UserError), (FileNotFoundError, UserError),
    (ValueError, ProcessError)])
def test_it_is_carried_out_of_a_process(kind, arrives):
    with pytest.raises(arrives) as raised:
        run_processes(fail, 1, (kind,))
    text = str(raised.value)
    assert text == TEXT if arrives is UserError else text.endswith(f"ValueError: {TEXT}")
