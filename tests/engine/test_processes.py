"""The method on 1, 2 and 4 processes: the same losses, bank, labels and weights.

A batch of 32 images in batch-norm groups of 8, which lie within a process in all three cases.
"""

import pytest
import torch

from helpers import warm
from helpers.tiny import write_market

KEYS = ("INPUT.PADDING.ENABLED", True, "INPUT.REA.ENABLED", True, "SOLVER.IMS_PER_BATCH", 32,
        "CAUREID.LABELS", "extract", "DATASETS.TESTS", ())

PEERS = {
    "ours": (),
    "cap": ("MODEL.LOSSES.NAME", "('CAPLoss',)", "MODEL.LOSSES.CAP.INTER_EPOCH", 1,
            "CAUREID.MEMORY.CENTRES", "momentum", "MODEL.HEADS.CAMSEP.ATTENTION", "none"),
    "ice": ("MODEL.LOSSES.NAME", "('ICELoss',)", "MODEL.LOSSES.ICE.MOMENTUM", 0.5,
            "CAUREID.MEMORY.CENTRES", "hard", "MODEL.HEADS.CAMSEP.ATTENTION", "none"),
}

_SCRIPT = '''
import sys

import caureid_plugin
import torch
from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer, default_setup, launch
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm


class Watch(HookBase):
    """Keeps what every step has led to."""

    def __init__(self):
        self.steps = []

    def after_step(self):
        model = getattr(self.trainer.model, "module", self.trainer.model)
        latest = self.trainer.storage.latest()
        self.steps.append({
            "losses": torch.tensor([latest[name][0] for name in sorted(latest) if "loss_" in name],
                                   dtype=torch.float64),
            "labels": model.memory.labels.clone(), "bank": torch.cat([
                model.memory.features, model.memory.centroids, model.memory.camera_centres()[0]]),
            "weights": torch.cat([p.detach().flatten() for p in model.parameters()]),
            "statistics": torch.cat([b.flatten() for name, b in model.named_buffers()
                                     if "running" in name])})


def use_double_precision():
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # losses and features are cast to float32


def main(folder, keys):
    cfg = get_cfg()
    caureid_plugin.add_caureid_config(cfg)
    cfg.merge_from_list([*keys, "OUTPUT_DIR", folder])
    cfg.freeze()
    for precision in ("single", "double"):
        if precision == "double":
            use_double_precision()
        default_setup(cfg, None)
        torch.set_num_threads(1)
        trainer, watch = DefaultTrainer(cfg), Watch()
        trainer.register_hooks([caureid_plugin.UnsupervisedHook(cfg), watch])
        model = getattr(trainer.model, "module", trainer.model)
        for network in (model, *([model.teacher.network] if model.teacher else ())):
            network.register_forward_pre_hook(lambda network, inputs: ({
                name: value.float() if "images" in name else value
                for name, value in inputs[0].items()},))
        trainer.train()
        torch.save({"steps": watch.steps, "state": model.state_dict()},
                   f"{folder}/{precision}{comm.get_rank()}.pth")


if __name__ == "__main__":
    launch(main, int(sys.argv[1]), dist_url="auto", args=(sys.argv[2], sys.argv[3:]))
'''


@pytest.fixture(scope="module")
def train(tmp_path_factory, hook_keys):
    """Trains on a number of processes; what each has seen, in single and in double precision."""
    home, runs = tmp_path_factory.mktemp("processes"), {}
    write_market(home / "datasets")  # where the toolbox looks, from its working directory
    (home / "script.py").write_text(_SCRIPT)

    def run(count, peer="ours"):
        if (count, peer) not in runs:
            folder = home / f"{peer}{count}"
            folder.mkdir()
            done = warm.run([home / "script.py", count, folder, *hook_keys, *KEYS, *PEERS[peer]],
                            home,
                            timeout=200,
                            env=warm.environment(FASTREID_DATASETS="datasets"),
                            prepare=warm.FORKED_RANKS)
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
            runs[count, peer] = {precision: [
                torch.load(folder / f"{precision}{rank}.pth", weights_only=True)
                for rank in range(count)] for precision in ("single", "double")}
        return runs[count, peer]

    return run


def _assert_equal_ranks(ranks):
    for other in ranks[1:]:
        for step, expected in zip(other["steps"], ranks[0]["steps"], strict=True):
            for name in ("labels", "bank", "weights", "statistics"):
                assert torch.equal(step[name], expected[name]), name
        for name, value in other["state"].items():
            assert torch.equal(value, ranks[0]["state"][name]), name


def _assert_close(run, expected, tolerance):
    for number, (step, other) in enumerate(zip(run["steps"], expected["steps"], strict=True)):
        assert torch.equal(step["labels"], other["labels"])
        torch.testing.assert_close(step["losses"], other["losses"], rtol=tolerance, atol=tolerance,
                                   msg=lambda text, n=number: f"losses of step {n}: {text}")
        for name in ("bank", "weights", "statistics"):
            torch.testing.assert_close(
                step[name], other[name], rtol=0, atol=tolerance,
                msg=lambda text, n=number, k=name: f"{k} of step {n}: {text}")
    for name, value in run["state"].items():  # the running statistics of batch norm, too
        torch.testing.assert_close(value, expected["state"][name], rtol=tolerance, atol=tolerance,
                                   msg=lambda text, k=name: f"{k}: {text}")


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("precision, tolerance", [("single", 1e-5), ("double", 1e-10)])
def test_any_number_of_processes_trains_as_one(train, count, precision, tolerance):
    """Six steps in two epochs, with the clustering of the second on what the first has learnt.

    In double precision only rounding is left, some 1e-15; a gradient, a statistic or an update of
    the bank that depended on the number of processes would show. In single precision rounding is
    some 1e-6.
    """
    one, ranks = train(1)[precision][0], train(count)[precision]
    assert len(one["steps"]) == 6 and all(len(step["losses"]) == 3 for step in one["steps"])
    first, last = one["steps"][0], one["steps"][-1]
    for name in ("labels", "bank", "weights", "statistics"):  # there was something to get wrong
        assert not torch.equal(first[name], last[name]), name
    assert len(torch.unique(last["labels"])) > 4
    assert len(ranks) == count
    _assert_equal_ranks(ranks)
    _assert_close(ranks[0], one, tolerance)


@pytest.mark.parametrize("peer, losses", [("cap", 0), ("ice", 4)])
def test_two_processes_train_a_method_of_others_as_one(train, peer, losses):
    """Six steps in two epochs; CAP has two losses in the second. A single one is not logged."""
    for precision, tolerance in (("single", 1e-4), ("double", 1e-9)):
        one, ranks = train(1, peer)[precision][0], train(2, peer)[precision]
        assert [len(step["losses"]) for step in one["steps"]] == [losses] * 3 + [
            2 if peer == "cap" else losses] * 3
        assert not torch.equal(one["steps"][0]["bank"], one["steps"][-1]["bank"])
        _assert_equal_ranks(ranks)
        _assert_close(ranks[0], one, tolerance)
