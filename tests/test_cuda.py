"""What only a GPU can show: that it computes what the CPU does, and that mixed precision trains.

Each test is skipped where there is none. `tools/benchmarks/gpu.py` runs them all.
"""

import copy
import os
import socket

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from caureid_plugin.clustering import assign_pseudo_labels, jaccard_graph
from caureid_plugin.clustering.simulated import simulate_features
from caureid_plugin.losses import (
    batch_camera_centres,
    cacc_loss,
    camera_separation_loss,
    info_nce_loss,
)
from fastreid import engine
from fastreid.engine.train_loop import HookBase
from fastreid.layers import GatherLayer
from fastreid.utils import comm
from torch import nn

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU")]

DEVICE = "cuda"


class Watch(HookBase):
    """Keeps the losses and the labels of every step."""

    def __init__(self):
        self.losses, self.labels = [], []

    def after_step(self):
        latest = self.trainer.storage.latest()
        self.losses.append([latest[name][0] for name in sorted(latest) if "loss_" in name])
        self.labels.append(self.trainer.model.memory.labels.cpu())


@pytest.fixture
def train(train_as_script, monkeypatch):
    """Trains on a device; gives the trainer, what was seen of it, and the weights before."""
    # products rounded to ten bits would hide what is compared
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    def run(device, *options, folder="run"):
        seen, start = Watch(), {}

        def watch(trainer):
            trainer.register_hooks([seen])
            start.update(copy.deepcopy(dict(trainer.model.named_parameters())))

        trainer = train_as_script("MODEL.DEVICE", device, "SEED", 3, *options, folder=folder,
                                  watch=watch)
        return trainer, seen, start

    return run


def test_every_weight_moves_in_mixed_precision(train):
    """Twenty steps: the first may be left out, while the scale of the loss is looked for."""
    trainer, seen, start = train(DEVICE, "SOLVER.AMP.ENABLED", True, "SOLVER.ITERS_PER_EPOCH", 10)
    assert np.isfinite(seen.losses).all() and len(seen.losses) == 20
    still = [name for name, value in trainer.model.named_parameters()
             if value.requires_grad and torch.equal(value, start[name])]
    assert still == [] and len(start) > 30


def draw_batch(dtype):
    """Features and camera scores of a batch, its labels and cameras, and centres of a bank."""
    generator = torch.Generator().manual_seed(0)
    features, scores, centres = (torch.randn(*shape, generator=generator, dtype=dtype)
                                 for shape in ((64, 128), (64, 6), (300, 128)))
    labels = torch.arange(64) // 4
    labels[[5, 9]] = -1
    camids = torch.randint(6, (64,), generator=generator)
    return features, scores, labels, camids, F.normalize(centres, dim=1)


def losses_and_gradients(device, dtype):
    """{name: tensor on the CPU} of the three losses, each with the gradient of its input."""
    features, scores, labels, camids, centres = (
        tensor.to(device) for tensor in draw_batch(dtype))
    owners = torch.arange(300, device=device) // 5
    found = {}

    def note(name, leaf, loss):
        loss.backward()
        found[name], found[f"{name}, gradient"] = loss.detach().cpu(), leaf.grad.cpu()

    leaf = features.clone().requires_grad_()
    note("InfoNCE", leaf, info_nce_loss(F.normalize(leaf, dim=1), labels, centres[::5],
                                        temperature=0.05))
    leaf = features.clone().requires_grad_()
    anchors = batch_camera_centres(F.normalize(leaf, dim=1), labels, camids)
    note("CACC", leaf, cacc_loss(*anchors, centres, owners, num_negatives=50, temperature=0.07))
    leaf = scores.clone().requires_grad_()
    note("camera separation", leaf, camera_separation_loss(leaf, camids))
    return found


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_losses_and_gradients_are_those_of_the_cpu(dtype, tolerance):
    here, there = losses_and_gradients("cpu", dtype), losses_and_gradients(DEVICE, dtype)
    assert len(here) == 6
    for name, expected in here.items():
        assert expected.abs().max() > 0
        torch.testing.assert_close(there[name], expected, rtol=tolerance,
                                   atol=tolerance * expected.abs().max().item(), msg=name)


@pytest.mark.parametrize("camera_aware", [False, True])
def test_clusters_are_those_of_the_cpu(camera_aware):
    features, _, camids = simulate_features(1500, 64, seed=1)
    options = {"camids": camids} if camera_aware else {"k1": 20, "k2": 3}
    eps = 0.47  # no distance equals it: with k2 = 3 many are 0.5 but for rounding
    graphs = [jaccard_graph(torch.from_numpy(features).to(device), eps=eps, **options)
              for device in ("cpu", DEVICE)]
    assert graphs[0].nnz > 5000 and (graphs[0] != graphs[1]).nnz < 0.001 * graphs[0].nnz
    assert abs(graphs[0] - graphs[1]).max() < 1e-4
    here, there = (assign_pseudo_labels(torch.from_numpy(features).to(device), eps=eps,
                                        min_samples=4, **options) for device in ("cpu", DEVICE))
    assert here.max() > 20 and np.array_equal(here, there)


def test_an_epoch_is_that_of_the_cpu(train):
    """Adam's first steps are as long for a small gradient as for a large one: hence 1 %."""
    once = "SOLVER.MAX_EPOCH", 1
    (ours, here, start), (theirs, there, other) = (
        train(device, *once, folder=device) for device in ("cpu", DEVICE))
    assert next(theirs.model.parameters()).device.type == DEVICE
    assert all(torch.equal(start[name], value.cpu()) for name, value in other.items())
    assert all(map(torch.equal, here.labels, there.labels)) and here.labels[0].max() > 2
    assert len(here.losses) == 3
    assert there.losses[0] == pytest.approx(here.losses[0], rel=1e-3)
    assert np.allclose(there.losses, here.losses, rtol=0.01)
    banks = [trainer.model.memory.features.cpu() for trainer in (ours, theirs)]
    assert (banks[0] * banks[1]).sum(dim=1).min() > 0.99


def test_one_process_with_nccl(train, monkeypatch):
    """What several GPUs would use, on one: gathering with gradient, adding up, a whole epoch."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    described = {"TORCHELASTIC_RUN_ID": "none", "RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1,
                 "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in described.items():
        monkeypatch.setenv(name, str(value))
    seen = []

    def main():
        assert torch.distributed.get_backend() == "nccl"
        leaf = torch.randn(6, 4, device=DEVICE, requires_grad=True)
        gathered, = GatherLayer.apply(leaf)
        (gathered ** 2).sum().backward()
        assert torch.equal(gathered, leaf) and torch.equal(leaf.grad, 2 * leaf)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(DEVICE)
        wrapped = nn.parallel.DistributedDataParallel(net, device_ids=[0])
        wrapped(torch.randn(2, 3, 8, 8, device=DEVICE)).mean().backward()
        statistics = net[1].running_mean.clone()
        torch.distributed.all_reduce(statistics)
        assert torch.equal(statistics, net[1].running_mean)
        assert comm.all_gather("a thing") == ["a thing"]
        seen.extend(train(DEVICE, "SOLVER.MAX_EPOCH", 1)[1].losses)

    engine.launch(main, 1)
    assert len(seen) == 3 and not torch.distributed.is_initialized()


def test_deterministic_runs_are_equal(run_python, script_keys, tiny_market, tmp_path):
    """In interpreters of their own: cuBLAS reads its setting once."""
    saved = []
    for folder in ("one", "other"):
        done = run_python(
            "-m", "caureid_plugin", "train", "--config-file", "Synthetic/caureid.yml",
            *script_keys, "MODEL.DEVICE", DEVICE, "DETERMINISTIC", True, "SEED", 7, "OUTPUT_DIR",
            tmp_path / folder, timeout=240,
            CUDA_VISIBLE_DEVICES=os.environ.get("CUDA_VISIBLE_DEVICES"))
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        saved.append(torch.load(tmp_path / folder / "model_final.pth", map_location="cpu",
                                weights_only=True))
    one, other = saved
    assert one["model"].keys() == other["model"].keys() and len(one["model"]) > 30
    assert all(torch.equal(value, other["model"][name]) for name, value in one["model"].items())
    assert torch.equal(one["memory_bank"]["features"], other["memory_bank"]["features"])
