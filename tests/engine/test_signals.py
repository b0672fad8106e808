"""Signals to real processes: the step is finished, a checkpoint saved, no process stays."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import check_reliability as tool

EPOCHS = 3
LIMIT = 300  # seconds, against hangs: several times what a busy machine takes
SLOW = ("SOLVER.ITERS_PER_EPOCH", "50")  # an epoch in which a signal finds the run


@pytest.fixture
def run(tmp_path):
    """Starts tools/train_net.py on tiny data and waits until it trains."""
    children = []
    tool.write_images(tmp_path / "images")

    def start(folder, *arguments, keys=()):
        command = tool.command(tmp_path / folder, EPOCHS, list(keys))
        command[2:2] = arguments
        # As from a shell. A test run that was started in the background has SIGINT ignored.
        shell = ("import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
                 "os.execv(sys.executable, sys.argv[1:])")
        log = tmp_path / f"{folder}.log"
        before = log.read_bytes().count(b"Starting training from") if log.exists() else 0
        child = tool.start([sys.executable, "-c", shell, *command], tmp_path / "images", log)
        children.append(child)
        if not tool.wait_for_training(child, log, before):
            pytest.fail(log.read_text()[-3000:])
        return child

    yield start
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


@pytest.fixture(autouse=True)
def stacks_on_abort(monkeypatch):
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")


def code_of(child, log):
    """Its exit code; of one that hangs, the log with the stack of every process."""
    try:
        return child.wait(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        for process in [*tool.family_of(child), psutil.Process(child.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGABRT)
        child.wait(timeout=LIMIT)
        pytest.fail(f"It did not end within {LIMIT} s:\n{log.read_text()[-12_000:]}")


def wait_for(path):
    limit = time.monotonic() + LIMIT
    while not path.exists():
        assert time.monotonic() < limit, f"{path} does not come"
        time.sleep(0.05)


def nobody_is_left(child, family):
    assert child.poll() is not None
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


@pytest.mark.parametrize("number, code, to_all, delay", [
    (signal.SIGTERM, 75, False, 0.0),
    (signal.SIGTERM, 75, True, 0.8),  # as a scheduler does, to the loader's workers too
    (signal.SIGINT, 130, True, 0.4),  # as a terminal does
])
def test_a_signal_saves_the_run_and_it_goes_on(run, tmp_path, number, code, to_all, delay):
    child = run("a", keys=SLOW)
    wait_for(tmp_path / "a" / "model_0000.pth")
    time.sleep(delay)
    family = tool.family_of(child)
    (os.killpg if to_all else os.kill)(child.pid, number)
    assert code_of(child, tmp_path / "a.log") == code, (tmp_path / "a.log").read_text()[-3000:]
    nobody_is_left(child, family)
    assert (tmp_path / "a" / "last_checkpoint").read_text() == "model_stopped.pth"
    assert "Stopped by " + number.name in (tmp_path / "a.log").read_text()
    assert code_of(run("a", "--resume", keys=SLOW), tmp_path / "a.log") == 0
    assert code_of(run("whole", keys=SLOW), tmp_path / "whole.log") == 0
    assert tool.compare(tmp_path / "whole", tmp_path / "a") == []


def test_an_error_in_a_step_leaves_no_process(run, tmp_path):
    """An image that is damaged while the run reads it."""
    child = run("a", keys=SLOW)
    wait_for(tmp_path / "a" / "model_0000.pth")
    family = tool.family_of(child)
    damaged = sorted((tmp_path / "images").rglob("bounding_box_train/*.jpg"))[3]
    damaged.write_bytes(b"nothing")
    assert code_of(child, tmp_path / "a.log") == 1
    nobody_is_left(child, family)
    assert damaged.name in (tmp_path / "a.log").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="processes would share one CUDA device")
@pytest.mark.parametrize("number, code, to_all", [
    (signal.SIGTERM, 75, False), (signal.SIGTERM, 75, True), (signal.SIGINT, 130, True)])
def test_two_processes_stop_together_and_go_on(run, tmp_path, number, code, to_all):
    two = ("--num-gpus", "2", "--dist-url", "auto")
    child = run("a", *two, keys=SLOW)
    wait_for(tmp_path / "a" / "model_0000.pth")
    family = tool.family_of(child)
    assert len([p for p in family if p.is_running()]) >= 2
    (os.killpg if to_all else os.kill)(child.pid, number)
    assert code_of(child, tmp_path / "a.log") == code, (tmp_path / "a.log").read_text()[-3000:]
    nobody_is_left(child, family)
    assert (tmp_path / "a" / "last_checkpoint").read_text() == "model_stopped.pth"
    if number == signal.SIGTERM and not to_all:
        assert code_of(run("a", *two, "--resume", keys=SLOW), tmp_path / "a.log") == 0
        assert code_of(run("whole", *two, keys=SLOW), tmp_path / "whole.log") == 0
        assert tool.compare(tmp_path / "whole", tmp_path / "a") == []


def test_a_worker_of_a_loader_outlives_the_first_signal_and_obeys_the_second():
    code = """
import signal, sys, time
from caureid_plugin.compat import _outlive_signals
_outlive_signals(0)
print("ready", flush=True)
time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=1)
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=LIMIT) == -signal.SIGTERM
    finally:
        child.kill()
        child.wait()
