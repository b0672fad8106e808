"""The method on 1, 2 and 4 processes: the same losses, bank, labels and weights.

A batch of 32 images in batch-norm groups of 8, which lie within a process in all three cases.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="processes would share one CUDA device")

_SCRIPT = '''
import sys

import caureid_plugin
import torch
from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer, default_setup, launch
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm

KEYS = [
    "MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "CAUReID",
    "MODEL.BACKBONE.NAME", "build_plain_backbone", "MODEL.BACKBONE.FEAT_DIM", 16,
    "MODEL.BACKBONE.PRETRAIN", False, "MODEL.HEADS.NAME", "CamSepHead",
    "MODEL.HEADS.NUM_CLASSES", -1, "MODEL.HEADS.WITH_BNNECK", True,
    "MODEL.HEADS.NECK_FEAT", "after", "MODEL.HEADS.CAMSEP.NUM_CAMERAS", 2,
    "MODEL.HEADS.CAMSEP.REDUCTION", 4, "MODEL.BN_GROUP_SIZE", 8,
    "MODEL.LOSSES.NAME", ("InfoNCELoss", "CameraSeparationLoss", "CACCLoss"),
    "INPUT.SIZE_TRAIN", [32, 16], "INPUT.SIZE_TEST", [32, 16], "INPUT.PADDING.ENABLED", True,
    "INPUT.REA.ENABLED", True, "SOLVER.IMS_PER_BATCH", 32, "SOLVER.ITERS_PER_EPOCH", 3,
    "SOLVER.MAX_EPOCH", 2, "SOLVER.WARMUP_ITERS", 0, "DATALOADER.NUM_WORKERS", 0,
    "CAUREID.CLUSTER.K1", 6, "CAUREID.CLUSTER.K2", 2, "CAUREID.CLUSTER.MIN_SAMPLES", 2,
    "CAUREID.CLUSTER.EPS", 0.6, "CAUREID.LABELS", "extract",
    "DATASETS.TESTS", (), "TEST.IMS_PER_BATCH", 16, "SEED", 3,
]


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
            "labels": model.memory.labels.clone(), "bank": model.memory.features.clone(),
            "weights": torch.cat([p.detach().flatten() for p in model.parameters()]),
            "statistics": torch.cat([b.flatten() for name, b in model.named_buffers()
                                     if "running" in name])})


def use_double_precision():
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # losses and features are cast to float32


def main(folder):
    cfg = get_cfg()
    caureid_plugin.add_caureid_config(cfg)
    cfg.merge_from_list([*KEYS, "OUTPUT_DIR", folder])
    cfg.freeze()
    for precision in ("single", "double"):
        if precision == "double":
            use_double_precision()
        default_setup(cfg, None)
        torch.set_num_threads(1)
        trainer, watch = DefaultTrainer(cfg), Watch()
        trainer.register_hooks([caureid_plugin.UnsupervisedHook(cfg), watch])
        model = getattr(trainer.model, "module", trainer.model)
        model.register_forward_pre_hook(
            lambda model, inputs: ({**inputs[0], "images": inputs[0]["images"].float()},))
        trainer.train()
        torch.save({"steps": watch.steps, "state": model.state_dict()},
                   f"{folder}/{precision}{comm.get_rank()}.pth")


if __name__ == "__main__":
    launch(main, int(sys.argv[1]), dist_url="auto", args=(sys.argv[2],))
'''


@pytest.fixture
def train(tiny_market, tmp_path):
    """Trains on a number of processes; what each has seen, in single and in double precision."""
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)

    def run(count):
        folder = tmp_path / str(count)
        folder.mkdir()
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [sys.executable, str(script), str(count), str(folder)], capture_output=True, text=True,
            timeout=300, check=False, cwd=tmp_path,
            env={**os.environ, "FASTREID_DATASETS": str(tiny_market), "PYTHONPATH": path})
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return {precision: [torch.load(folder / f"{precision}{rank}.pth", weights_only=True)
                            for rank in range(count)] for precision in ("single", "double")}

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


def test_any_number_of_processes_trains_as_one(train):
    """Six steps in two epochs, with the clustering of the second on what the first has learnt.

    In double precision only rounding is left, some 1e-15; a gradient, a statistic or an update of
    the bank that depended on the number of processes would show. In single precision rounding is
    some 1e-6.
    """
    runs = {count: train(count) for count in (1, 2, 4)}
    for precision, tolerance in (("single", 1e-5), ("double", 1e-10)):
        one = runs[1][precision][0]
        assert len(one["steps"]) == 6 and all(len(step["losses"]) == 3 for step in one["steps"])
        first, last = one["steps"][0], one["steps"][-1]
        for name in ("labels", "bank", "weights", "statistics"):  # there was something to get wrong
            assert not torch.equal(first[name], last[name]), name
        assert len(torch.unique(last["labels"])) > 4
        for count in (2, 4):
            _assert_equal_ranks(runs[count][precision])
            _assert_close(runs[count][precision][0], one, tolerance)
