"""Several processes on the CPU, started by the toolbox's launch or by torchrun."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest
import torch
from caureid_plugin import compat
from fastreid import engine
from fastreid.engine import defaults
from torch import nn

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="processes would share one CUDA device")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.fixture
def keep_threads():
    """A process that joins a group takes its share of the cores; give them back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# ------------------------------------------------------------------------ in this process ----


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


def test_the_toolboxs_launch_is_replaced():
    assert engine.launch is compat.launch
    with compat.without("processes"):
        assert engine.launch.__module__ == "fastreid.engine.launch"
        # what each of its processes does
        worker = compat._launch._distributed_worker
        with pytest.raises(AssertionError, match="cuda is not available"):
            worker(0, print, 2, 2, 0, f"tcp://127.0.0.1:{free_port()}", ())
    assert engine.launch is compat.launch


def test_one_process_runs_here():
    seen = []
    engine.launch(lambda *args: seen.append(args), 1, dist_url="auto", args=(1, 2))
    assert seen == [(1, 2)]
    assert not torch.distributed.is_initialized()


@pytest.fixture
def under_torchrun(monkeypatch, keep_threads):
    described = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1",
                 "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in described.items():
        monkeypatch.setenv(name, value)

    def renew():  # torchrun gives every run a port of its own
        monkeypatch.setenv("MASTER_PORT", free_port())

    renew()
    return renew


def test_launch_joins_the_group_that_torchrun_describes(under_torchrun):
    seen = []

    def main():
        seen.append(torch.distributed.is_initialized())
        if seen[-1]:
            assert compat.comm.get_local_size() == 1 and compat.comm.get_local_rank() == 0

    for _ in range(2):  # the second joins a group of its own
        under_torchrun()
        engine.launch(main, 1)
        assert not torch.distributed.is_initialized()
    with compat.without("processes"):
        engine.launch(main, 1)
    assert seen == [True, True, False]


def test_a_free_port_for_several_machines_is_an_error():
    with pytest.raises(ValueError, match="auto works on one machine only"):
        engine.launch(print, 1, num_machines=2, dist_url="auto")


@pytest.mark.parametrize("numbers, url, message", [
    ((0, 1, 0), "auto", "--num-gpus 0 .* must be at least 1"),
    ((-1, 1, 0), "auto", "--num-gpus -1 .* must be at least 1"),
    ((1, 0, 0), "auto", "--num-machines 0 must be at least 1"),
    ((1, 2, 2), "tcp://h:1", "--machine-rank 2 must be from 0 to 1"),
    ((1, 1, 1), "auto", "--machine-rank 1 must be from 0 to 0"),
    ((1, 2, -1), "tcp://h:1", "--machine-rank -1 must be"),
    ((1, 2, 0), "tcp://host", "--dist-url tcp://host has no port")])
def test_numbers_that_cannot_be(numbers, url, message):
    gpus, machines, rank = numbers
    with pytest.raises(ValueError, match=message):
        engine.launch(print, gpus, num_machines=machines, machine_rank=rank, dist_url=url)


def meet(ranks, local_size, world_size, seconds):
    """What processes of the ranks see that wait for each other: None, or the error's text."""
    url, seen = f"tcp://127.0.0.1:{free_port()}", {}

    def wait(position, rank):
        try:
            seen[position] = None, compat._meet(rank, local_size, world_size, url, seconds)
        except RuntimeError as error:
            seen[position] = str(error), None

    threads = [threading.Thread(target=wait, args=pair) for pair in enumerate(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [seen[position][0] for position in range(len(ranks))]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_machine_that_never_comes(rank):
    (error,) = meet([rank], 2, 4, 1.0)
    assert f"Process {rank} of --num-machines 2 with --num-gpus 2 each at --dist-url tcp" in error
    assert "waited 1 s (--join-timeout) for the others, and not all came" in error


def test_two_machines_of_one_rank():
    errors = meet([0, 1, 1], 1, 3, 4.0)
    assert all(errors)
    assert sum("There are two processes 1 of --num-machines 3" in text for text in errors) == 1


def test_processes_that_all_come_meet():
    assert meet([0, 1, 2], 1, 3, 60.0) == [None] * 3


# --------------------------------------------------------------------- several processes ----


_SCRIPT = '''
import sys

import caureid_plugin
import torch
from torch import nn
from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer, launch
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.utils import comm


@BACKBONE_REGISTRY.register()
def build_script_backbone(cfg):
    return nn.Sequential(nn.Conv2d(3, 16, 5, stride=4, bias=False), nn.BatchNorm2d(16), nn.ReLU())


def main(config, failing):
    cfg = get_cfg()
    caureid_plugin.add_caureid_config(cfg)
    cfg.merge_from_file(config)
    cfg.MODEL.BACKBONE.NAME = "build_script_backbone"
    torch.manual_seed(comm.get_rank())  # what must be equal is made equal by DDP
    trainer = DefaultTrainer(cfg)
    model, images = trainer.model.module, set()
    model.register_forward_pre_hook(
        lambda model, inputs: images.update(inputs[0]["img_paths"]) if model.training else None)
    start = model.backbone[0].weight.detach().clone()
    results = trainer.train()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    everybody = comm.all_gather((weights, start, images))
    if comm.is_main_process():
        (one, first, seen), (other, second, unseen) = everybody
        print("SIZE", comm.get_world_size(), comm.get_local_size(), trainer.iter)
        print("EQUAL", torch.equal(one, other), torch.equal(first, second))
        print("MOVED", not torch.equal(start, model.backbone[0].weight))
        print("IMAGES", len(seen), len(unseen), len(seen | unseen))
        print("RESULTS", sorted(results), flush=True)
    comm.synchronize()
    if failing and comm.get_rank() == 1:
        raise OSError("the second process has failed")
    if failing:
        comm.synchronize()  # never ends


if __name__ == "__main__":
    launch(main, 2, dist_url="auto", args=(sys.argv[1], "fail" in sys.argv))
'''

# two steps of 24 are one pass over the 48 training images, half of it in each process
_EXPECTED = ["SIZE 2 2 2", "EQUAL True True", "MOVED True", "IMAGES 24 24 48"]


@pytest.fixture
def script(tiny_cfg, tmp_path):
    tiny_cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 24, "DATALOADER.SAMPLER_TRAIN",
                              "TrainingSampler", "MODEL.LOSSES.NAME", ("CrossEntropyLoss",)])
    path = tmp_path / "script.py"
    path.write_text(_SCRIPT)
    config = tmp_path / "config.yml"
    config.write_text(tiny_cfg.dump())
    return path, config


def printed(done):
    return [line for line in done.stdout.splitlines() if re.match("[A-Z]+ ", line)]


def test_two_processes_train_one_network(run_python, script, tiny_market):
    done = run_python(*script, "fail", timeout=300, FASTREID_DATASETS=str(tiny_market))
    lines = printed(done)
    assert lines[:4] == _EXPECTED, done.stderr
    assert "'mAP'" in lines[4]
    # the failure of one process ends them all, with its message
    assert done.returncode != 0
    assert "process 1 of 2 failed, and the others were ended" in done.stderr
    assert done.stderr.rstrip().endswith("OSError: the second process has failed")


def test_torchrun_starts_one_run_of_two_processes(run_python, script, tiny_market):
    done = run_python(
        "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port(),
        *script, timeout=300, FASTREID_DATASETS=str(tiny_market))
    assert done.returncode == 0, done.stderr
    lines = printed(done)
    assert lines[:4] == _EXPECTED
    assert len(lines) == 5 and "'mAP'" in lines[4]  # printed once


# ------------------------------------------------------- without training: machines, ends ----


_IDLE = '''
import os
import sys
import time

import caureid_plugin
from fastreid.engine import launch
from fastreid.utils import comm


def main(folder, failing):
    rank = comm.get_rank()
    place = f"{rank} {comm.get_world_size()} {comm.get_local_rank()} {comm.get_local_size()}"
    with open(f"{folder}/{os.getpid()}.part", "w") as file:
        file.write(place)
    os.rename(file.name, f"{folder}/{os.getpid()}.pid")
    comm.synchronize()
    if rank == failing:
        raise OSError("the second process has failed")
    comm.synchronize()  # never ends


if __name__ == "__main__":
    folder, failing, gpus, machines, rank, url = sys.argv[1:]
    launch(main, int(gpus), int(machines), int(rank), url, (folder, int(failing)))
'''


@pytest.fixture
def start(tmp_path):
    """Starts the script above; sees to it that nothing stays of what was started."""
    script, started = tmp_path / "idle.py", []
    script.write_text(_IDLE)
    path = os.pathsep.join([str(compat.Path(compat.__file__).parents[1]),
                            os.environ.get("PYTHONPATH", "")])

    def begin(*before, failing=-1, gpus=2, machines=1, rank=0, url="auto"):
        started.append(subprocess.Popen(
            [sys.executable, *before, str(script), str(tmp_path),
             *map(str, (failing, gpus, machines, rank, url))],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}))
        return started[-1]

    yield begin
    pids = [int(path.stem) for path in tmp_path.glob("*.pid")]
    left = [pid for pid in pids if not _is_gone_soon(pid)]
    for pid in [*left, *(process.pid for process in started if process.poll() is None)]:
        os.kill(pid, signal.SIGKILL)
    for process in started:
        process.communicate()
    assert left == []


def _is_gone_soon(pid):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True  # in a container nobody may be there to reap it
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def _wait_for_places(folder, count):
    """What the processes say of their place in the run, once all are there."""
    end = time.monotonic() + 120
    while len(list(folder.glob("*.pid"))) < count:
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
    return sorted(path.read_text() for path in folder.glob("*.pid"))


def test_two_machines_are_one_run_and_one_failure_ends_both(start, tmp_path):
    url = f"tcp://127.0.0.1:{free_port()}"
    machines = [start(failing=1, gpus=1, machines=2, rank=rank, url=url) for rank in range(2)]
    outputs = [machine.communicate(timeout=180)[0] for machine in machines]
    assert _wait_for_places(tmp_path, 2) == ["0 2 0 1", "1 2 0 1"]
    assert [machine.returncode for machine in machines] == [1, 1], outputs
    assert "process 1 of 2 failed" in outputs[1]
    assert outputs[1].rstrip().endswith("OSError: the second process has failed")
    assert "process 0 of 2 failed" in outputs[0]  # its peer is gone


def test_torchrun_ends_all_when_one_fails(start, tmp_path):
    run = start("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
                free_port(), failing=1)
    output = run.communicate(timeout=180)[0]
    assert _wait_for_places(tmp_path, 2) == ["0 2 0 2", "1 2 1 2"]
    assert run.returncode != 0
    cause = output[output.index("Root Cause"):]  # torchrun's summary
    assert "OSError: the second process has failed" in cause


def test_sigterm_to_torchrun_ends_all(start, tmp_path):
    run = start("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
                free_port())
    _wait_for_places(tmp_path, 2)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=180)
    assert run.returncode != 0


def test_processes_end_when_their_launcher_is_killed(start, tmp_path):
    run = start()
    assert _wait_for_places(tmp_path, 2) == ["0 2 0 2", "1 2 1 2"]
    run.kill()  # `start` sees that they are gone, although they wait for each other
