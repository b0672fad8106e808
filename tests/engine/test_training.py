"""Training as a user runs it, by tools/train_net.py and `caureid train`: train, resume, evaluate,
several processes, mistakes."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from caureid_plugin.cli.common import call
from caureid_plugin.cli.train import command
from caureid_plugin.common.errors import UserError
from caureid_plugin.engine import training as train_net

from helpers import warm
from helpers.tiny import KEYS

NO_DEVICE = [word for pair in zip(KEYS[::2], KEYS[1::2], strict=True) for word in pair
             if pair[0] != "MODEL.DEVICE"]  # which the script then finds itself


SCRIPT = warm.REPOSITORY / "tools" / "train_net.py"


@pytest.fixture
def script(tiny_market, tmp_path):
    """Trains on the tiny dataset in a process of its own; returns its output."""

    def run(folder, *arguments, launcher=(SCRIPT,), fails=False, **how):
        words = [str(word) for word in arguments]
        done = warm.run(
            [*launcher, "--config-file",
             "Synthetic/caureid.yml", *[w for w in words if w.startswith("--")], *NO_DEVICE,
             "OUTPUT_DIR", tmp_path / folder, *[w for w in words if not w.startswith("--")]],
            tmp_path, timeout=240, **how)
        assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    return run


def _metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_train_resume_and_evaluate(script, tmp_path):
    log = script("a", "SOLVER.MAX_EPOCH", 1)
    assert "running on the CPU" in log
    assert "epoch 1/1  loss" in log and (tmp_path / "a" / "model_final.pth").is_file()
    assert {"start/mAP", "labels/clusters", "loss_cacc"} <= set().union(*_metrics(tmp_path / "a"))

    log = script("a", "--resume", "SOLVER.MAX_EPOCH", 2)
    assert "Starting training from epoch 1" in log and "epoch 2/2  loss" in log
    rows = _metrics(tmp_path / "a")
    assert [r["iteration"] for r in rows if "labels/clusters" in r] == [0, 3]
    assert [r["iteration"] for r in rows if "mAP" in r] == [2, 5]
    after = [row["mAP"] for row in rows if "mAP" in row][-1]

    weights = tmp_path / "a" / "model_final.pth"
    assert "memory_bank" in torch.load(weights, weights_only=True)
    assert log.count(f"Look at it: caureid report {tmp_path / 'a'}\n") == 1
    log = script("b", "--eval-only", "MODEL.WEIGHTS", weights,
                 launcher=["-m", "caureid_plugin", "train"])
    assert "Look at it" not in log
    assert f"{after:.2f}" in log  # the table of the evaluation gives two digits


def test_two_spawned_processes_equal_one(script, train_as_script, tmp_path):
    """With SGD: Adam makes a step of rounding errors where the true gradient is zero."""
    options = ("SOLVER.MAX_EPOCH", 1, "SOLVER.OPT", "SGD", "TEST.EVAL_AT_START", False)
    assert " in 2 processes" in script("two", "--num-gpus=2", "--dist-url=auto", *options)
    train_as_script(*options, folder="one")
    one, two = (torch.load(tmp_path / name / "model_final.pth", weights_only=True)
                for name in ("one", "two"))
    assert torch.equal(one["memory_bank"]["labels"], two["memory_bank"]["labels"])
    for name, value in one["model"].items():
        torch.testing.assert_close(value, two["model"][name], atol=1e-4, rtol=0, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("program", [[SCRIPT], ["-m", "caureid_plugin", "train"]])
def test_torchrun(script, tmp_path, program):
    log = script(
        "run", "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_AT_START", False,
        launcher=["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0",
                  "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *program])
    assert " in 2 processes" in log and (tmp_path / "run" / "model_final.pth").is_file()


@pytest.mark.parametrize("keys, says", [
    (["SOLVER.MAX_EPOC", "6"], "no config key 'SOLVER.MAX_EPOC', did you mean SOLVER.MAX_EPOCH"),
    (["DATASETS.NAMES", "('CameraFolder',)", "CAMERA_FOLDER.ROOT", "/none"],
     "CAMERA_FOLDER.ROOT /none does not exist"),
    (["MODEL.HEADS.CAMSEP.NUM_CAMERAS", "3"], "come from 2 cameras: set it to 2."),
    ([], "Market/caureid.yml"),  # Markt.yml
    (["--eval-only", "DATASETS.TESTS", "('CameraFolder',)", "CAMERA_FOLDER.QUERY", "/none",
      "CAMERA_FOLDER.GALLERY", "/none"], "CAMERA_FOLDER.QUERY /none"),
])
def test_mistakes_are_one_sentence(tiny_market, tmp_path, monkeypatch, keys, says):
    monkeypatch.setattr("fastreid.engine.defaults.collect_env_info", lambda: "")  # slow
    args = train_net.argument_parser().parse_args(
        ["--config-file", "Synthetic/caureid.yml" if keys else "Markt.yml",
         *[key for key in keys if key.startswith("--")], *KEYS,
         "OUTPUT_DIR", str(tmp_path / "c"), *[key for key in keys if not key.startswith("--")]])
    with pytest.raises((UserError, OSError)) as raised:
        train_net.run(args)
    assert says in str(raised.value)


@pytest.mark.parametrize("words, says", [
    ([], "--config-file is missing, the file of a config, such as configs/OwnData"),
    (["--resume", "--num-gpus", "1", "SOLVER.MAX_EPOCH", "3"], "--config-file is missing, the"),
    (["configs/Market/caureid.yml", "SEED", "1"],
     "--config-file is missing: write it before configs/Market/caureid.yml."),
    (["--eval-only", "--config-file", "", "MODEL.WEIGHTS", "x.pth"], "--config-file is missing")])
def test_a_missing_config_file_is_said(monkeypatch, tmp_path, words, says):
    monkeypatch.chdir(tmp_path)  # where nothing may be written
    args = train_net.argument_parser().parse_args(words)
    with pytest.raises(UserError) as raised:
        train_net.run(args)
    assert says in str(raised.value) and not list(tmp_path.iterdir())


def test_a_mistake_that_two_processes_find_is_one_sentence(script):
    log = script("c", "--num-gpus=2", "--dist-url=auto", "MODEL.HEADS.CAMSEP.NUM_CAMERAS", 3,
                 fails=True, prepare=warm.FORKED_RANKS)
    assert "Traceback" not in log and log.count("train_net.py: ") == 1
    last = log.splitlines()[-1]
    assert last.startswith("train_net.py: ") and last.endswith("come from 2 cameras: set it to 2.")


@pytest.mark.parametrize("place", ["setup", "build_trainer"])
def test_errors_of_the_code_keep_their_traceback(place, monkeypatch):
    """A KeyError in the code is no key that the user got wrong."""
    def fail(_):
        raise KeyError("x")

    monkeypatch.setattr(train_net, "setup", lambda args: None)
    monkeypatch.setattr(train_net, place, fail)
    with pytest.raises(KeyError, match="'x'"):
        call(command, ["--config-file", "Market/caureid.yml"])


def test_the_command_has_the_arguments_of_the_script(monkeypatch):
    """Each option's words, type and default; ``caureid train`` takes them anywhere."""
    parsed = []
    monkeypatch.setattr(train_net, "launch", lambda main, count, args, **how: parsed.append(
        {**vars(args[0]), **how}))
    words = ["--config-file", "Market/caureid.yml"]
    options = [
        "--resume", "--eval-only", "--num-gpus", "3", "--num-machines", "2", "--machine-rank", "1",
        "--dist-url", "tcp://host:3", "--join-timeout", "7.5"]
    keys = ["SEED", "-1"]
    assert {word for action in train_net.argument_parser()._actions
            for word in action.option_strings} == {
        "-h", "--help", *words[:1], *(word for word in options if word.startswith("--"))}
    for given in ([], options):
        train_net.run(train_net.argument_parser().parse_args([*words, *given, *keys]))
        call(command, [*given, *keys, *words])
        assert parsed[-2] == parsed[-1] and parsed[-1]["opts"] == keys
    assert parsed[-1]["num_gpus"] == 3 and parsed[-1]["join_seconds"] == 7.5


@pytest.mark.parametrize("words, says", [
    (["--config-file", "Market/caureid.yml", "--num-gpus", "0"], "0 is not in the range x>=1"),
    (["--num-gpu", "2", "--config-file", "Market/caureid.yml"], "Did you mean '--num-gpus'"),
    (["SEED", "1"], "Missing option '--config-file'"),
    (["--config-file", "Market/caureid.yml", "SEED"], "must come in pairs, got SEED")])
def test_a_wrong_command_line(words, says, capsys):
    with pytest.raises(SystemExit, match="2"):
        call(command, words)
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("installed", [False, True])
def test_the_script_finds_the_plugin(installed, tmp_path):
    """The one beside it, which need not be installed; an installed one where there is none."""
    clone, environment = tmp_path / "clone", warm.environment(PYTHONPATH=None)
    (clone / "tools").mkdir(parents=True)
    shutil.copy(SCRIPT, clone / "tools")
    fake = tmp_path / "installed" if installed else clone
    (fake / "caureid_plugin" / "engine").mkdir(parents=True)
    (fake / "caureid_plugin" / "__init__.py").touch()
    (fake / "caureid_plugin" / "engine" / "__init__.py").touch()
    (fake / "caureid_plugin" / "engine" / "training.py").write_text(
        "import argparse\nargument_parser = argparse.ArgumentParser\n"
        "def run(args): print(__file__)\n")
    (fake / "caureid_plugin" / "common").mkdir()
    (fake / "caureid_plugin" / "common" / "__init__.py").touch()
    shutil.copy(warm.REPOSITORY / "caureid_plugin" / "common" / "errors.py",
                fake / "caureid_plugin" / "common")
    if installed:
        environment["PYTHONPATH"] = str(fake)
    done = subprocess.run([sys.executable, "-S", clone / "tools" / "train_net.py"], cwd=tmp_path,
                          env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{fake / 'caureid_plugin' / 'engine' / 'training.py'}\n"
