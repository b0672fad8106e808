"""Several processes on the CPU, started by the toolbox's launch or by torchrun.

How they end is in tests/common/test_launcher.py, that they may be new interpreters in
tests/engine/test_training.py; here they are started as a user does it.
"""

import re
import signal
import socket
import threading
import time

import psutil
import pytest
import torch
from caureid_plugin import compat
from caureid_plugin.common.errors import UserError
from caureid_plugin.common.launcher import PortError
from caureid_plugin.compat import importing, processes
from fastreid import engine
from fastreid.engine import defaults
from fastreid.layers import get_norm
from fastreid.utils import comm
from torch import nn

from helpers import warm

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="processes would share one CUDA device")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.fixture
def group_of_one(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", world_size=1, rank=0)
    yield
    torch.distributed.destroy_process_group()


def test_data_parallel_works_on_the_cpu(group_of_one):
    parallel = defaults.DistributedDataParallel(
        nn.Linear(2, 2), device_ids=[0], broadcast_buffers=False)
    assert isinstance(parallel, nn.parallel.DistributedDataParallel)
    assert not parallel.broadcast_buffers
    parallel(torch.ones(1, 2)).sum().backward()
    assert parallel.module.weight.grad is not None
    with compat.without("ddp_on_cpu"):
        with pytest.raises(ValueError, match="device_ids"):
            defaults.DistributedDataParallel(nn.Linear(2, 2), device_ids=[0])


def test_sync_batch_norm_on_the_cpu_is_said_before_the_first_step(group_of_one):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), get_norm("syncBN", 4), get_norm("syncBN", 4))
    with pytest.raises(ValueError, match=r"have it, first in 1: set MODEL\.BACKBONE\.NORM "
                       r"and MODEL\.HEADS\.NORM to BN, or train in one process"):
        defaults.DistributedDataParallel(model, device_ids=[0])
    with compat.without("ddp_on_cpu"):  # of torch's own, which knows no key
        with pytest.raises(ValueError, match="^SyncBatchNorm layers only work with GPU modules$"):
            defaults.DistributedDataParallel(model)


def test_the_toolboxs_launch_is_replaced():
    assert engine.launch is compat.launch
    with compat.without("processes"):
        assert engine.launch.__module__ == "fastreid.engine.launch"
        # what each of its processes does
        with pytest.raises(AssertionError, match="cuda is not available"):
            importing.toolbox_launch._distributed_worker(
                0, print, 2, 2, 0, f"tcp://127.0.0.1:{free_port()}", ())


def test_one_process_runs_here():
    seen = []
    engine.launch(lambda *args: seen.append(args), 1, dist_url="auto", args=(1, 2))
    assert seen == [(1, 2)] and not torch.distributed.is_initialized()


def test_launch_joins_the_group_that_torchrun_describes(monkeypatch):
    described = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1",
                 "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in described.items():
        monkeypatch.setenv(name, value)
    seen = []

    def main():
        seen.append(torch.distributed.is_initialized())
        if seen[-1]:
            assert comm.get_local_size() == 1 and comm.get_local_rank() == 0

    for _ in range(2):  # the second joins a group of its own; torchrun gives every run a port
        monkeypatch.setenv("MASTER_PORT", free_port())
        engine.launch(main, 1)
        assert not torch.distributed.is_initialized()
    with compat.without("processes"):
        engine.launch(main, 1)
    assert seen == [True, True, False]


@pytest.mark.parametrize("numbers, url, message", [
    ((0, 1, 0), "auto", "--num-gpus 0 .* must be at least 1"),
    ((1, 2, 2), "tcp://h:1", "--machine-rank 2 must be from 0 to 1"),
    ((1, 2, 0), "auto", "auto works on one machine only")])
def test_numbers_that_cannot_be(numbers, url, message):
    gpus, machines, rank = numbers
    with pytest.raises(ValueError, match=message):
        engine.launch(print, gpus, num_machines=machines, machine_rank=rank, dist_url=url)


@pytest.mark.parametrize("machines, rank", [(1, 0), (2, 0), (2, 1)])
@pytest.mark.parametrize("url", ["tcp://localhost", "file:///nope/x", "env://", "",
                                 "tcp://nobody.invalid:29500"])
def test_processes_that_could_never_meet_are_not_started(monkeypatch, machines, rank, url):
    started = []
    monkeypatch.setattr(processes, "run_processes", lambda *_, **__: started.append(1))
    with pytest.raises(PortError, match=f"--dist-url .*{url}"):
        engine.launch(print, 2, machines, rank, url)
    assert not started


def test_a_port_that_is_taken_is_said_before_a_process_starts(monkeypatch):
    started = []
    monkeypatch.setattr(processes, "run_processes", lambda *_, **__: started.append(1))
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(PortError, match=f"--dist-url {url}: port .* is taken"):
            engine.launch(print, 2, dist_url=url)
        assert not started
        engine.launch(print, 2, 2, 1, url)  # it is the first machine's port
        engine.launch(print, 1, dist_url=url)  # nobody is to be met
    assert len(started) == 1


def meet(ranks, local_size, world_size, seconds):
    """What processes of the ranks that wait for each other are told: errors, or None."""
    url, seen = f"tcp://127.0.0.1:{free_port()}", [None] * len(ranks)

    def wait(position, rank):
        try:
            processes._meet(rank, local_size, world_size, url, seconds)
        except UserError as error:
            seen[position] = str(error)

    threads = [threading.Thread(target=wait, args=pair) for pair in enumerate(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return seen


@pytest.mark.parametrize("rank", [0, 1])
def test_a_machine_that_never_comes(rank):
    (error,) = meet([rank], 2, 4, 0.5)
    assert f"Process {rank} of --num-machines 2 with --num-gpus 2 each at --dist-url tcp" in error
    assert re.search(r"waited \d+ s for the others, of 0.5 s \(--join-timeout\), and not all came",
                     error)


def test_two_machines_of_one_rank():
    errors = meet([0, 1, 1], 1, 3, 2.0)
    assert all(errors)
    assert sum("There are two processes 1 of --num-machines 3" in text for text in errors) == 1


_TRAINING = '''
import os
import sys

import caureid_plugin
import torch
from fastreid.engine import DefaultTrainer, launch
from fastreid.utils import comm


def main(config):
    cfg = caureid_plugin.load_config(config)
    torch.manual_seed(comm.get_rank())  # what must be equal is made equal by DDP
    trainer = DefaultTrainer(cfg)
    model, images = trainer.model.module, set()
    model.register_forward_pre_hook(
        lambda model, inputs: images.update(inputs[0]["img_paths"]) if model.training else None)
    start = next(model.parameters()).detach().clone()
    results = trainer.train()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    everybody = comm.all_gather((weights, start, images, os.getpid()))
    if comm.is_main_process():
        (one, first, seen, pid), (other, second, unseen, other_pid) = everybody
        print("SIZE", comm.get_world_size(), comm.get_local_size(), trainer.iter)
        print("EQUAL", torch.equal(one, other), torch.equal(first, second))
        print("MOVED", not torch.equal(start, next(model.parameters())))
        print("IMAGES", len(seen), len(unseen), len(seen | unseen))
        print("MEASURED", "mAP" in results)
        print("PIDS", pid, other_pid, flush=True)
    comm.synchronize()
    if comm.get_rank() == 1:
        raise RuntimeError("the second process has failed")
    comm.synchronize()  # never ends


if __name__ == "__main__":
    launch(main, 2, dist_url="auto", args=(sys.argv[1],))
'''


@pytest.fixture
def training(tiny_cfg, tmp_path):
    """A script that trains on two processes until the second fails, and its config."""
    tiny_cfg.merge_from_list([
        "MODEL.BACKBONE.NAME", "build_plain_backbone", "SOLVER.IMS_PER_BATCH", 24,
        "DATALOADER.SAMPLER_TRAIN", "TrainingSampler", "MODEL.LOSSES.NAME", ("CrossEntropyLoss",)])
    script, config = tmp_path / "script.py", tmp_path / "config.yml"
    script.write_text(_TRAINING)
    config.write_text(tiny_cfg.dump())
    return script, config


def is_gone_soon(pid):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True  # in a container nobody may be there to reap it
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def assert_one_network_was_trained(done):
    """By two processes, which are gone."""
    assert done.returncode != 0
    *lines, pids = [line for line in done.stdout.splitlines() if re.match("[A-Z]+ ", line)]
    # two steps of 24 are one pass over the 48 training images, half of it in each process
    assert lines == ["SIZE 2 2 2", "EQUAL True True", "MOVED True", "IMAGES 24 24 48",
                     "MEASURED True"], done.stderr  # each printed once
    assert all(is_gone_soon(int(pid)) for pid in pids.split()[1:])


def test_two_processes_train_one_network_and_one_failure_ends_both(training, tmp_path):
    done = warm.run(training, tmp_path, prepare=warm.FORKED_RANKS)
    assert_one_network_was_trained(done)
    assert "process 1 of 2 failed, and the others were ended" in done.stderr
    assert done.stderr.rstrip().endswith("RuntimeError: the second process has failed")


def test_torchrun_starts_one_run_and_ends_all_when_one_fails(training, tmp_path):
    done = warm.run(["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
                     free_port(), *training], tmp_path, timeout=240)
    assert_one_network_was_trained(done)
    cause = done.stderr[done.stderr.index("Root Cause"):]  # torchrun's summary
    assert "RuntimeError: the second process has failed" in cause


_HANGING = '''
import sys
import time

import caureid_plugin
from caureid_plugin.compat import processes
from fastreid.engine import launch
from fastreid.utils import comm

processes.HANG_SECONDS = 3.0


def main(hanging):
    comm.synchronize()
    if comm.get_rank() in hanging:
        time.sleep(600)
    comm.all_gather(1)


if __name__ == "__main__":
    launch(main, 3, dist_url="auto", args=([int(rank) for rank in sys.argv[1:]],))
'''


@pytest.mark.parametrize("hanging, named", [
    ([1], "Process 1"), pytest.param([0], "Process 0", marks=pytest.mark.slow),
    pytest.param([1, 2], r"Processes \[1, 2\]", marks=pytest.mark.slow)])
def test_a_process_that_hangs_is_named_by_the_others(tmp_path, hanging, named):
    script = tmp_path / "script.py"
    script.write_text(_HANGING)
    done = warm.run([script, *hanging], tmp_path, prepare=warm.FORKED_RANKS)
    assert done.returncode == 1
    assert re.search(rf"ProcessHangs: {named} of 3 \(counted from 0\) did not come to where "
                     r"process \d waited 3 s: .*--resume goes on", done.stderr), done.stderr[-3000:]


_IDLE = '''
import os
import time

import caureid_plugin
from fastreid.engine import launch


def main():
    open(f"{os.getpid()}.pid", "w").close()
    time.sleep(600)


if __name__ == "__main__":
    launch(main, 2)
'''


@pytest.mark.slow
def test_sigterm_to_torchrun_ends_all(tmp_path):
    script, log = tmp_path / "idle.py", tmp_path / "log"
    script.write_text(_IDLE)
    run = warm.start(["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
                      free_port(), script], out=log, cwd=tmp_path)
    try:
        end = time.monotonic() + 120
        while len(pids := [path.stem for path in tmp_path.glob("*.pid")]) < 2:
            assert run.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        run.send_signal(signal.SIGTERM)
        assert run.wait() == 1
    finally:
        run.kill()
    assert all(is_gone_soon(int(pid)) for pid in pids)


_MACHINE = '''
import os
import sys

import caureid_plugin
from fastreid.engine import launch
from fastreid.utils import comm


def main():
    print("PLACE", comm.get_rank(), comm.get_world_size(), comm.get_local_rank(),
          comm.get_local_size(), "of", os.getpid(), flush=True)
    comm.synchronize()
    if comm.get_rank() == 1:
        raise RuntimeError("the second process has failed")
    comm.synchronize()  # never ends


if __name__ == "__main__":
    rank, url = sys.argv[1:]
    launch(main, 1, 2, int(rank), url)
'''


def test_two_machines_are_one_run_and_one_failure_ends_both(tmp_path):
    script, url = tmp_path / "script.py", f"tcp://127.0.0.1:{free_port()}"
    script.write_text(_MACHINE)
    machines = [warm.start([script, rank, url], out=tmp_path / f"log{rank}", cwd=tmp_path,
                           prepare=warm.FORKED_RANKS) for rank in range(2)]
    try:
        assert [machine.wait() for machine in machines] == [1, 1]
    finally:
        for machine in machines:
            machine.kill()
    outputs = [machine.log.read_text() for machine in machines]
    for rank, output in enumerate(outputs):
        pid, = re.findall(rf"PLACE {rank} 2 0 1 of (\d+)", output)
        assert is_gone_soon(int(pid))
        assert f"process {rank} of 2 failed" in output  # the first because its peer is gone
    assert outputs[1].rstrip().endswith("RuntimeError: the second process has failed")
