"""One SEED, one run: whatever the processes, workers, file system and hash seed."""

import argparse
import contextlib
import glob
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from caureid_plugin import compat
from fastreid.engine import defaults
from fastreid.utils import comm

from helpers.metrics import read_rows


def _tensors(value, name=""):
    """All tensors in nested dicts and lists, by their place."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    inside = value.items() if isinstance(value, dict) else (
        enumerate(value) if isinstance(value, (list, tuple)) else ())
    return {place: tensor for key, part in inside
            for place, tensor in _tensors(part, f"{name}/{key}").items()}


def _saved(folder):
    saved = torch.load(folder / "model_final.pth", weights_only=True)
    return _tensors({key: saved[key] for key in ("model", "optimizer", "memory_bank")})


def _equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------------ another process ----


def test_an_interpreter_of_its_own_gives_the_same_run(train_as_script, run_python, script_keys,
                                                      tmp_path):
    """Also with other workers and another hash seed, which changes the order of every set."""
    train_as_script("INPUT.CJ.ENABLED", True, "SEED", 7, folder="one")
    done = run_python(
        Path(__file__).parents[2] / "tools/train_net.py", "--config-file",
        "Synthetic/caureid.yml", *script_keys, "INPUT.CJ.ENABLED", True,
        "DATALOADER.NUM_WORKERS", 2, "SEED", 7, "OUTPUT_DIR", tmp_path / "other",
        timeout=240, PYTHONHASHSEED=1)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    one, other = (_saved(tmp_path / name) for name in ("one", "other"))
    assert len(one) > 60 and _equal(one, other)
    rows = read_rows(tmp_path / "one")
    assert rows == read_rows(tmp_path / "other")
    assert {"loss_infonce", "labels/clusters", "mAP"} <= set().union(*rows)


# ----------------------------------------------------------------------------- file system ----


def _shuffled(listing):
    def listed(*args, **kwargs):
        found = list(listing(*args, **kwargs))
        random.Random(len(found)).shuffle(found)
        return found

    return listed


class _ShuffledEntries(contextlib.AbstractContextManager):
    """As os.scandir gives them: iterator and context manager."""

    def __init__(self, *args, scandir=os.scandir):
        with scandir(*args) as listing:
            self._entries = iter(_shuffled(list)(listing))

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._entries)

    def __exit__(self, *_):
        pass


def _another_file_system(monkeypatch):
    monkeypatch.setattr(os, "listdir", _shuffled(os.listdir))
    monkeypatch.setattr(os, "scandir", _ShuffledEntries)
    monkeypatch.setattr(glob, "glob", _shuffled(glob.glob))
    monkeypatch.setattr(Path, "glob", _shuffled(Path.glob))
    monkeypatch.setattr(Path, "iterdir", _shuffled(Path.iterdir))


def test_the_order_of_the_file_system_does_not_reach_the_run(train_as_script, tmp_path,
                                                             tiny_market, monkeypatch):
    short = "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_AT_START", False
    train_as_script(*short, folder="one")
    folder = tiny_market / "Market-1501-v15.09.15" / "bounding_box_train"
    listings = (lambda: os.listdir(folder), lambda: glob.glob(f"{folder}/*.jpg"),
                lambda: [entry.name for entry in os.scandir(folder)],
                lambda: list(folder.glob("*.jpg")), lambda: list(folder.iterdir()))
    before = [listing() for listing in listings]
    with monkeypatch.context() as patched:
        _another_file_system(patched)
        after = [listing() for listing in listings]
        train_as_script(*short, folder="other")
        with compat.without("sorted_listing"):
            train_as_script(*short, folder="as it was")
    for one, other in zip(before, after, strict=True):
        assert one != other and sorted(one) == sorted(other)
    assert _equal(_saved(tmp_path / "one"), _saved(tmp_path / "other"))
    assert read_rows(tmp_path / "one") == read_rows(tmp_path / "other")
    assert not _equal(_saved(tmp_path / "one"), _saved(tmp_path / "as it was"))


# ----------------------------------------------------------------------------------- seeds ----


def test_no_process_shares_its_seed_with_one_of_a_neighbouring_run():
    """SEED + rank would give process 1 of SEED 1 what process 0 of SEED 2 draws."""
    seeds = [compat.process_seed(seed, rank) for seed in range(40) for rank in range(16)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert compat.process_seed(3, 1) == compat.process_seed(3, 1)
    assert 0 <= compat.process_seed(2**70, 10**6) < 2**32  # of any size


def test_every_generator_gets_the_seed_of_its_process(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(defaults, "collect_env_info", lambda: "")
    cfg.OUTPUT_DIR = str(tmp_path)
    drawn = []
    for seed, rank in ((7, 0), (7, 1), (8, 0)):
        cfg.SEED = seed
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        defaults.default_setup(cfg, argparse.Namespace(eval_only=True))
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert all(len(set(numbers)) == 3 for numbers in zip(*drawn, strict=True))


# -------------------------------------------------------------------- deterministic algorithms ----


@pytest.fixture
def flags(monkeypatch):
    """Reads torch's flags of determinism."""
    monkeypatch.setattr(defaults, "collect_env_info", lambda: "")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    cudnn = torch.backends.cudnn
    return lambda: (torch.are_deterministic_algorithms_enabled(), cudnn.deterministic,
                    cudnn.benchmark, os.environ.get("CUBLAS_WORKSPACE_CONFIG"))


def test_training_under_deterministic_algorithms(train_as_script, flags, tmp_path):
    seen = []
    train_as_script("DETERMINISTIC", True, "CUDNN_BENCHMARK", True, "SOLVER.MAX_EPOCH", 1,
                    watch=lambda trainer: seen.append(flags()))
    assert seen == [(True, True, False, ":4096:8")]
    assert "mAP" in read_rows(tmp_path / "run")[-1]


def test_a_workspace_of_the_users_own_stays(cfg, flags, tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path), "DETERMINISTIC", True])
    defaults.default_setup(cfg, argparse.Namespace())
    assert flags() == (True, True, False, ":16:8")


@pytest.mark.parametrize("benchmark", [True, False])
def test_without_the_key_the_process_stays_as_it_was(cfg, flags, tmp_path, benchmark):
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path), "CUDNN_BENCHMARK", benchmark])
    assert cfg.DETERMINISTIC is False
    defaults.default_setup(cfg, argparse.Namespace())
    assert flags() == (False, False, benchmark, None)
