"""tools/train_net.py as a user runs it: train, resume, evaluate, two processes."""

import importlib.util
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
KEYS = """
MODEL.BACKBONE.FEAT_DIM 16 MODEL.HEADS.CAMSEP.REDUCTION 4 MODEL.BN_GROUP_SIZE 8
MODEL.HEADS.CAMSEP.NUM_CAMERAS 2 DATASETS.NAMES ('Market1501',) DATASETS.TESTS ('Market1501',)
INPUT.SIZE_TRAIN [32,16] INPUT.SIZE_TEST [32,16] SOLVER.IMS_PER_BATCH 16 SOLVER.ITERS_PER_EPOCH 3
SOLVER.CHECKPOINT_PERIOD 1 CAUREID.CLUSTER.K1 6 CAUREID.CLUSTER.K2 2 CAUREID.CLUSTER.EPS 0.6
TEST.EVAL_PERIOD 1 TEST.IMS_PER_BATCH 16 DATALOADER.NUM_WORKERS 0
""".split()


@pytest.fixture
def train_net(tiny_market, tmp_path):
    """Runs the script on the tiny dataset; returns its output."""

    def run(folder, *arguments, launcher=(), fails=False):
        command = [sys.executable, *launcher, str(REPOSITORY / "tools" / "train_net.py"),
                   "--config-file", str(REPOSITORY / "configs" / "Synthetic" / "caureid.yml"),
                   *[a for a in arguments if str(a).startswith("--")], *KEYS,
                   "OUTPUT_DIR", str(tmp_path / folder),
                   *[a for a in arguments if not str(a).startswith("--")]]
        environment = {**os.environ, "FASTREID_DATASETS": str(tiny_market), "OMP_NUM_THREADS": "1",
                       "CUDA_VISIBLE_DEVICES": "",
                       "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        done = subprocess.run([str(part) for part in command], env=environment, cwd=tmp_path,
                              check=False, capture_output=True, text=True, timeout=240)
        assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    return run


def _metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def _last(folder, name):
    return [row[name] for row in _metrics(folder) if name in row][-1]


def test_train_resume_and_evaluate(train_net, tmp_path):
    log = train_net("a", "SOLVER.MAX_EPOCH", 1)
    assert "running on the CPU" in log
    assert "epoch 0:" in log and (tmp_path / "a" / "model_final.pth").is_file()
    assert {"start/mAP", "labels/clusters", "loss_cacc"} <= set().union(*_metrics(tmp_path / "a"))

    log = train_net("a", "--resume", "SOLVER.MAX_EPOCH", 2)
    assert "Starting training from epoch 1" in log and "epoch 1:" in log
    after = _last(tmp_path / "a", "mAP")
    rows = _metrics(tmp_path / "a")
    assert [r["iteration"] for r in rows if "labels/clusters" in r] == [0, 3]
    assert [r["iteration"] for r in rows if "mAP" in r] == [2, 5]

    weights = tmp_path / "a" / "model_final.pth"
    assert "memory_bank" in torch.load(weights, weights_only=True)
    assert log.count(f"Look at it: tools/report.py {tmp_path / 'a'}\n") == 1
    log = train_net("b", "--eval-only", "MODEL.WEIGHTS", weights)
    assert "Look at it" not in log
    assert f"{after:.2f}" in log  # the table of the evaluation gives two digits


def test_two_processes_equal_one(train_net, tmp_path):
    """The same losses, labels, bank and weights, whether the batch is on one process or on two.

    With SGD: Adam divides a gradient by its size and so makes a step of rounding errors where the
    true gradient is zero.
    """
    options = ("SOLVER.MAX_EPOCH", 2, "SOLVER.OPT", "SGD")
    train_net("one", *options)
    train_net("two", "--num-gpus=2", "--dist-url=auto", *options)
    one, two = (torch.load(tmp_path / name / "model_final.pth", weights_only=True)
                for name in ("one", "two"))
    for name in ("loss_infonce", "loss_camsep", "loss_cacc", "labels/clusters"):
        assert _last(tmp_path / "one", name) == pytest.approx(
            _last(tmp_path / "two", name), abs=1e-4), name
    for name, value in one["memory_bank"].items():
        # rounding differences of weights (2e-5) grow where the neck's batch norm divides by a
        # small variance, and sums of some ten features add them up
        atol = 1e-3 if name.endswith("sums") else 5e-4
        torch.testing.assert_close(value, two["memory_bank"][name], atol=atol, rtol=0, msg=name)
    for name, value in one["model"].items():
        torch.testing.assert_close(value, two["model"][name], atol=1e-4, rtol=0, msg=name)


def test_torchrun(train_net, tmp_path):
    log = train_net(
        "run", "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_AT_START", False,
        launcher=["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0",
                  "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"])
    assert "World size: 2" in log and (tmp_path / "run" / "model_final.pth").is_file()


def said(log):
    """The last line, which says what is wrong; there is no traceback."""
    assert "Traceback" not in log, log
    assert log.count("train_net.py: ") == 1
    line = log.splitlines()[-1]
    assert line.startswith("train_net.py: ")
    return line.removeprefix("train_net.py: ")


def test_errors_of_the_command(train_net):
    log = train_net("c", "MODEL.HEADS.CAMSEP.NUM_CAMERA", 6, fails=True)
    assert said(log).startswith("There is no config key 'MODEL.HEADS.CAMSEP.NUM_CAMERA', did you "
                                "mean MODEL.HEADS.CAMSEP.NUM_CAMERAS")
    log = train_net("c", "SOLVER.AMP.ENABLED", True, fails=True)
    assert "Set SOLVER.AMP.ENABLED False" in log


@pytest.mark.parametrize("processes", [(), ("--num-gpus=2", "--dist-url=auto")],
                         ids=["one", "two"])
def test_errors_of_data_and_weights_are_one_sentence(train_net, tmp_path, processes):
    none = tmp_path / "none"
    for keys, says in [
            (["DATASETS.NAMES", "('CameraFolder',)", "CAMERA_FOLDER.ROOT", none],
             f"CAMERA_FOLDER.ROOT {none} does not exist"),
            (["MODEL.HEADS.CAMSEP.NUM_CAMERAS", 3], "come from 2 cameras: set it to 2.")]:
        assert says in said(train_net("c", *processes, *keys, fails=True))


@pytest.mark.parametrize("processes", [1, 2])
def test_errors_of_training_keep_their_traceback(processes, monkeypatch):
    """A KeyError in the code is no key that the user got wrong."""
    spec = importlib.util.spec_from_file_location(
        "train_net", REPOSITORY / "tools" / "train_net.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    class Trainer:
        def resume_or_load(self, resume):
            if error is None:
                raise KeyError("a key")

        def train(self):
            raise error

    def launch(main, count, args, **options):
        try:
            main(*args)
        except KeyError as raised:
            if processes == 1:
                raise
            text = "".join(traceback.format_exception(raised)).rstrip()
            raise script.ProcessError(text) from None

    monkeypatch.setattr(script, "setup", lambda args: None)
    monkeypatch.setattr(script, "build_trainer", lambda cfg: Trainer())
    monkeypatch.setattr(script, "launch", launch)
    args = script.default_argument_parser().parse_args([])
    args.join_timeout, error = 1.0, KeyError("x")
    with pytest.raises(KeyError if processes == 1 else script.ProcessError, match="'x'"):
        script.run(args)
    error = None
    with pytest.raises(SystemExit, match=r"^train_net.py: a key$"):
        script.run(args)


def test_a_config_that_does_not_exist_lists_the_others():
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools" / "train_net.py"), "--config-file", "Markt.yml"],
        capture_output=True, text=True, timeout=120, cwd="/", check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert done.returncode and "Market/caureid.yml" in done.stderr
