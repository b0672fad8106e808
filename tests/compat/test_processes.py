"""Several processes on the CPU, started by the toolbox's launch or by torchrun."""

import re
import socket

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
    done = run_python(*script, "fail", FASTREID_DATASETS=str(tiny_market))
    lines = printed(done)
    assert lines[:4] == _EXPECTED, done.stderr
    assert "'mAP'" in lines[4]
    # the failure of one process ends them all, with its message
    assert done.returncode != 0
    assert "OSError: the second process has failed" in done.stderr


def test_torchrun_starts_one_run_of_two_processes(run_python, script, tiny_market):
    done = run_python(
        "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port(),
        *script, FASTREID_DATASETS=str(tiny_market))
    assert done.returncode == 0, done.stderr
    lines = printed(done)
    assert lines[:4] == _EXPECTED
    assert len(lines) == 5 and "'mAP'" in lines[4]  # printed once
