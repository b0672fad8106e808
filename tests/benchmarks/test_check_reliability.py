"""The tool that kills a run and looks for leaks, on small runs; what it must find, it finds."""

import copy
import json
import subprocess
import types

import pytest
import torch

from benchmarks import check_reliability as tool
from helpers import warm
from helpers.tool_output import refusal


def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path, capsys, monkeypatch):
    def start(arguments, env, stdout, **options):
        return warm.start(arguments[1:], out=stdout.name, env=env)

    monkeypatch.setattr(tool, "subprocess", types.SimpleNamespace(
        Popen=start, DEVNULL=subprocess.DEVNULL))
    output = tmp_path / "kills"
    # this seed kills about two and a half epochs after training starts
    assert tool.main(["kills", "--kills", "1", "--epochs", "5", "--seed", "6", "--output",
                      str(output)]) == 0
    printed = capsys.readouterr().out
    assert "kill  1:" in printed and "OK: 1 kills" in printed
    written = json.loads((output / "kills.json").read_text())
    assert len(written["kills"]) == 1 and written["differences"] == []
    log = (output / "killed.log").read_text()
    assert log.count("Starting training from epoch") == 2
    assert (output / "kills.png").stat().st_size > 1000

    # the same comparison sees one weight, one label, one row
    checkpoint, metrics = output / "killed" / "model_final.pth", output / "killed" / "metrics.json"
    saved = tool.load(checkpoint)
    for part, name, place in (("model", "heads.camera_classifier.weight", (0, 0)),
                              ("memory_bank", "labels", 5)):
        changed = copy.deepcopy(saved)
        changed[part][name][place] += 1e-7 if part == "model" else 1
        torch.save(changed, checkpoint)
        assert tool.compare(output / "whole", output / "killed") == [f"/{part}/{name}"]
    torch.save(saved, checkpoint)
    rows = metrics.read_text().splitlines()
    for wrong, found in (([*rows, rows[-1]], f"{len(rows) + 1} rows instead of {len(rows)}"),
                         ([*rows[:-1], rows[-1].replace('"iteration": ', '"iteration": 1')],
                          f"metrics.json row {len(rows) - 1}")):
        metrics.write_text("\n".join(wrong))
        (difference,) = tool.compare(output / "whole", output / "killed")
        assert found in difference


# Each epoch leaves five files open and a process running.
_LEAK = """
import atexit, subprocess
from fastreid.engine.train_loop import TrainerBase
kept, after = [], TrainerBase.after_epoch

def after_epoch(trainer):
    kept.append([open("/dev/null") for _ in range(5)])
    atexit.register(subprocess.Popen(["sleep", "600"]).kill)
    after(trainer)

TrainerBase.after_epoch = after_epoch
"""


@pytest.mark.parametrize("leak, epochs", [(False, 12), (True, 5)])
def test_leaks_of_a_run(tmp_path, leak, epochs):
    # so few epochs still settle in memory; a file that is just closed may be counted in one of them
    done = warm.run([tool.__file__, "leaks", "DATALOADER.NUM_WORKERS", "0", "--epochs", epochs,
                     "--memory", "100", "--output", "leaks"], tmp_path,
                    prepare=_LEAK if leak else "",
                    env=warm.environment(FASTREID_DATASETS=tmp_path / "leaks" / "images"))
    assert done.returncode == leak, done.stdout + done.stderr
    written = json.loads((tmp_path / "leaks" / "leaks.json").read_text())
    samples, after = written["epochs"], written["after"]
    assert len(samples) == epochs and all(sample["memory"] > 100 for sample in samples)
    if not leak:
        assert "OK: 12 epochs: processes, threads and open files stay" in done.stdout
        assert after["processes"] == 0 and written["leaks"] == []
        return
    assert [sample["processes"] for sample in samples] == [1, 2, 3, 4, 5]
    third, last = samples[2]["files"], samples[4]["files"]
    assert last >= third + 8
    assert written["leaks"] == [
        "processes: 3 after epoch 3, at least 5 in the last 1 epochs",
        f"files: {third} after epoch 3, at least {last} in the last 1 epochs",
        "5 processes outlive the training"]
    assert "FAILED\n" + "\n".join(written["leaks"]) in done.stdout


@pytest.mark.parametrize("changed, found", [
    ({"memory": 909.0}, "OK: 5 epochs"), ({"memory": 911.0}, "memory grew by 11.0 MiB"),
    ({"threads": 5}, "threads: 4 after epoch 3, at least 5"),
])
def test_what_counts_as_a_leak(tmp_path, capsys, changed, found):
    options = tool.parse(["leaks", "--output", str(tmp_path / "leaks")])
    options.output.mkdir()
    usual = {"processes": 1, "threads": 4, "files": 18, "memory": 900.0}
    samples = [{**usual, "threads": 9, "memory": 100.0}, usual, usual, usual, {**usual, **changed}]
    assert tool.report_leaks(options, samples, {**usual, "processes": 0}) == ("OK" in found)
    assert found in capsys.readouterr().out
    assert (tmp_path / "leaks" / "leaks.png").stat().st_size > 1000


@pytest.mark.parametrize("arguments, message", [
    (["kills", "--epochs", "3"], "--epochs 3 must be at least 4"),
    (["leaks", "--output", "{there}"], "is there already"),
    (["leaks", "--output", "{there}/0001_c1"], "looks like the name of an image"),
])
def test_bad_arguments(tmp_path, capsys, arguments, message):
    words = [argument.format(there=tmp_path) for argument in arguments]
    assert message in refusal(tool.main, words, capsys)
