"""Signals to real processes: the step is finished, a checkpoint saved, no process stays."""

import contextlib
import multiprocessing
import os
import pty
import signal
import subprocess
import time

import psutil
import pytest
from caureid_plugin.common.signals import EXIT_STOPPED, StopRequest

from benchmarks import check_reliability as tool
from helpers import warm

pytestmark = pytest.mark.alone

EPOCHS = 3
LIMIT = 100  # seconds, against hangs: less than pytest's own, so that what hangs is shown
KEYS = ("SOLVER.ITERS_PER_EPOCH", "20")  # an epoch in which a signal finds the run
TWO = ("--num-gpus", "2", "--dist-url", "auto")


class Trainings:
    """`caureid train` on tiny data, in processes of their own."""

    def __init__(self, home):
        self.home, self.children = home, []
        tool.write_images(home / "datasets")  # where the toolbox looks, from its working directory

    def log(self, folder):
        """What it has shown, and its log.txt, which says more."""
        paths = self.home / f"{folder}.log", self.home / folder / "log.txt"
        return "\n".join(path.read_text() for path in paths if path.exists())

    def start(self, folder, *arguments):
        _, *train = tool.command(self.home / folder, EPOCHS, KEYS)
        place = train.index("--config-file")
        child = warm.start(
            [*train[:place], *arguments, *train[place:]],
            out=self.home / f"{folder}.log", cwd=self.home,
            env=warm.environment(FASTREID_DATASETS="datasets"),
            prepare="import faulthandler; faulthandler.enable()" + warm.FORKED_RANKS)
        self.children.append(child)
        return child

    def wait_for(self, child, folder, text):
        """Waits until its log says something."""
        limit = time.monotonic() + LIMIT
        while text not in self.log(folder):
            assert child.poll() is None and time.monotonic() < limit, self.log(folder)[-3000:]
            time.sleep(0.02)

    def family_of(self, child, count):
        """The processes it started, once there are that many: the log tells of none of them."""
        limit = time.monotonic() + LIMIT
        while len(family := tool.family_of(child)) < count:
            assert child.poll() is None and time.monotonic() < limit, (family, child.poll())
            time.sleep(0.01)
        return family

    def code_of(self, child, folder):
        """Its exit code; of one that hangs, the log with the stack of every process."""
        try:
            return child.wait(LIMIT)
        except subprocess.TimeoutExpired:
            for process in [*tool.family_of(child), psutil.Process(child.pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGABRT)
            child.wait(20)
            pytest.fail(f"It did not end within {LIMIT} s:\n{self.log(folder)[-12_000:]}")


@pytest.fixture
def trainings(tmp_path):
    made = Trainings(tmp_path)
    yield made
    for child in made.children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def nobody_is_left(child, family):
    assert child.poll() is not None
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


SAVED, IN_STEPS = "model_0000.pth", "epoch 1: "  # between two epochs; the second's steps begin
EVALUATES = "Start inference"


@pytest.mark.parametrize("processes, number, code, to_all, state, goes_on", [
    (1, signal.SIGTERM, 75, True, IN_STEPS, True),  # as a scheduler does, to the workers too
    (1, signal.SIGINT, 130, True, SAVED, False),  # as a terminal does
    (2, signal.SIGTERM, 75, False, SAVED, True),
    (2, signal.SIGINT, 130, True, IN_STEPS, False),
    (2, signal.SIGHUP, 75, False, EVALUATES, True),
    pytest.param(1, signal.SIGHUP, 75, True, EVALUATES, True, marks=pytest.mark.slow),
    pytest.param(1, signal.SIGTERM, 75, False, SAVED, False, marks=pytest.mark.slow),
    pytest.param(2, signal.SIGTERM, 75, True, IN_STEPS, False, marks=pytest.mark.slow),
])
def test_a_signal_saves_the_run_and_it_goes_on(trainings, processes, number, code, to_all, state,
                                               goes_on):
    arguments = TWO if processes == 2 else ()
    child = trainings.start("a", *arguments)
    trainings.wait_for(child, "a", state)
    family = trainings.family_of(child, processes)  # a loader's worker, or two processes
    (os.killpg if to_all else os.kill)(child.pid, number)
    assert trainings.code_of(child, "a") == code, trainings.log("a")[-3000:]
    nobody_is_left(child, family)
    folder = trainings.home / "a"
    assert (folder / "last_checkpoint").read_text() == "model_stopped.pth"
    assert f"Stopped by {number.name}" in trainings.log("a")
    if goes_on:
        for name, more in (("a", ("--resume",)), ("whole", ())):
            child = trainings.start(name, *arguments, *more)
            assert trainings.code_of(child, name) == 0, trainings.log(name)[-3000:]
        assert tool.compare(trainings.home / "whole", folder) == []


def test_an_error_in_a_step_leaves_no_process(trainings):
    """An image that is damaged while the run reads it."""
    child = trainings.start("a")
    trainings.wait_for(child, "a", SAVED)
    family = tool.family_of(child)
    damaged = sorted((trainings.home / "datasets").rglob("bounding_box_train/*.jpg"))[3]
    damaged.write_bytes(b"nothing")
    assert trainings.code_of(child, "a") == 1
    nobody_is_left(child, family)
    assert damaged.name in trainings.log("a")


def test_a_worker_of_a_loader_outlives_the_first_signal_and_obeys_the_second(tmp_path):
    code = """
import time
from caureid_plugin.compat.devices import _outlive_signals
_outlive_signals(0)
while True:
    time.sleep(0.02)
    print("here", flush=True)
"""
    log = tmp_path / "log"
    log.touch()
    child = warm.start(["-c", code], out=log)

    def says_it_is_here(times):
        before = log.read_text().count("here")
        while log.read_text().count("here") < before + times:
            assert child.poll() is None
            time.sleep(0.01)

    try:
        says_it_is_here(1)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            child.send_signal(number)
            says_it_is_here(5)
        child.send_signal(signal.SIGTERM)
        assert child.wait(LIMIT) == -signal.SIGTERM
    finally:
        child.kill()
        child.wait()


def _closes_its_terminal():
    master, slave = pty.openpty()
    for number in (1, 2):
        os.dup2(slave, number)
    os.close(slave)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with StopRequest() as request:
        os.close(master)
        with contextlib.suppress(OSError):
            os.write(1, b"an error")
            os._exit(2)
        os.kill(os.getpid(), signal.SIGHUP)
        for number in (1, 2):
            os.write(number, b"this goes nowhere")
        os._exit(request.exit_code)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_output_to_a_closed_terminal_is_no_error():
    process = multiprocessing.get_context("fork").Process(target=_closes_its_terminal)
    process.start()
    process.join(LIMIT)
    assert process.exitcode == EXIT_STOPPED
