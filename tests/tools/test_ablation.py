"""tools/ablation.py: its queue with a stub in place of train_net.py, its table, and real runs."""

import csv
import fcntl
import json
import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "tools"))  # as for a script that is run there

import ablation  # noqa: E402
import ablation_report  # noqa: E402
import ablation_runs  # noqa: E402

ROWS = ["baseline", "css", "cacc", "full", "sample", "centre"]
SHORT = ["SOLVER.MAX_EPOCH", "2", "SOLVER.ITERS_PER_EPOCH", "5"]  # the last iteration is 9

# Notes how it was called, and does what todo.json asks for its run: write figures, fail, ...
STUB = """
import json, os, signal, subprocess, sys, time
from pathlib import Path

words = sys.argv[1:]
folder = Path(words[words.index("OUTPUT_DIR") + 1])
todo = json.loads((folder.parent / "todo.json").read_text()).get(folder.name, {})
child = subprocess.Popen(["sleep", "60"]).pid if "interrupt" in todo else None
call = {"name": folder.name, "words": words, "threads": os.environ["OMP_NUM_THREADS"],
        "pids": [os.getpid(), child]}
with (folder.parent / "calls").open("a") as file:
    file.write(json.dumps(call) + chr(10))
(folder / "here").touch()
seed = int(words[words.index("SEED") + 1])
figures = {"iteration": todo.get("iteration", 9), "mAP": 40.0 + seed + len(folder.name),
           "Rank-1": 60.0 + seed, "labels/clusters": 20.0}
if todo.get("figures", True):
    with (folder / "metrics.json").open("a") as file:
        file.write(json.dumps(figures) + chr(10))
if "checkpoint" in todo:
    (folder / "last_checkpoint").write_text(todo["checkpoint"])
if "meets" in todo:  # another run, which must be at work at the same time
    until = time.monotonic() + 30
    while not (folder.parent / todo["meets"] / "here").exists():
        if time.monotonic() > until:
            sys.exit(7)
        time.sleep(0.01)
print("last words of", folder.name)
sys.stdout.flush()
if "interrupt" in todo:
    os.kill(os.getppid(), todo["interrupt"])
    time.sleep(60)
sys.exit(todo.get("exit", 0))
"""


class Stubbed:
    """The tool on the family "synthetic" with the stub; what the stub is to do, what it did."""

    def __init__(self, folder):
        self.folder = folder
        self.todo = {}

    def __call__(self, *words, keys=SHORT):
        (self.folder / "todo.json").write_text(json.dumps(self.todo))
        return ablation.main(["--family", "synthetic", "--output", str(self.folder),
                              *map(str, words), *keys])

    @property
    def calls(self):
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def names(self):
        return [call["name"] for call in self.calls]

    def forget(self):
        (self.folder / "calls").unlink(missing_ok=True)
        self.todo = {}

    def lines(self, name="table.csv"):
        with (self.folder / name).open(newline="") as file:
            return list(csv.DictReader(file))

    def states(self):
        return {f"{line['row']}-seed{line['seed']}": line["state"] for line in self.lines()}


@pytest.fixture
def tool(monkeypatch, tmp_path):
    stub = tmp_path / "stub.py"
    stub.write_text(STUB)
    monkeypatch.setattr(ablation_runs, "TRAIN_NET", stub)
    monkeypatch.setattr(ablation, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(ablation_report, "draw", lambda *args: args[-1].write(b"drawn"))
    folder = tmp_path / "out"
    folder.mkdir()
    return Stubbed(folder)


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # a dead child of a dead parent may wait for process 1
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


# ------------------------------------------------------------------------------- the queue ----


def test_runs_every_row_and_seed_once(tool, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert tool("--seeds", 4, 7) == 0
    # seed by seed; full and centre are the same training
    assert tool.names == [f"{row}-seed{seed}" for seed in (4, 7) for row in ROWS[:-1]]
    for call in tool.calls:
        row, seed = call["name"].split("-seed")
        assert call["words"] == [
            "--config-file", str(REPOSITORY / "configs" / "Synthetic" / "ablation" / f"{row}.yml"),
            "SEED", seed, "OUTPUT_DIR", str(tool.folder / call["name"]), *SHORT]
        assert call["threads"] == "3"  # set by the user, left alone
        assert f"last words of {call['name']}" in (
            tool.folder / f"{call['name']}.log").read_text()
    printed = capsys.readouterr().out
    for number, name in enumerate(tool.names):
        assert f"[{number}/10] {name}: started, log: {tool.folder / name}.log\n" in printed
        assert f"[{number + 1}/10] {name}: mAP " in printed

    lines = tool.lines()
    assert [(line["row"], line["seed"]) for line in lines] == [
        (row, seed) for row in ROWS for seed in ("4", "7")]
    assert {line["state"] for line in lines} == {"finished"}
    assert {line["row"]: line["same_as"] for line in lines if line["seed"] == "7"} == {
        **dict.fromkeys(ROWS, ""), "centre": "full-seed7"}
    for line in lines:
        folder = line["same_as"] or f"{line['row']}-seed{line['seed']}"
        assert float(line["mAP"]) == 40 + int(line["seed"]) + len(folder)
    page = (tool.folder / "table.md").read_text()
    assert f"`tools/ablation.py --family synthetic --output {tool.folder} --seeds 4 7 " in page
    assert "full, CACC on centres (same runs as full)" in page
    assert "same run as full-seed4" in page and "Seeds: 4, 7" in page and "threads 3" in page
    assert "- Keys: `SOLVER.MAX_EPOCH 2 SOLVER.ITERS_PER_EPOCH 5`" in page


def test_finished_runs_are_not_repeated(tool, capsys):
    assert tool("--rows", "baseline", "centre", "--seeds", 1, 2) == 0
    noted = (tool.folder / "centre-seed1" / "finished.json").read_text()
    tool.forget()
    assert tool("--rows", "baseline", "centre", "--seeds", 1, 2) == 0
    assert tool.names == []
    assert "[4/4] centre-seed2: is finished, mAP" in capsys.readouterr().out
    assert (tool.folder / "centre-seed1" / "finished.json").read_text() == noted

    # full finds the run of its twin; rows that were not asked for stay in the table
    assert tool("--rows", "css", "full", "--seeds", 1, 2) == 0
    assert tool.names == ["css-seed1", "css-seed2"]
    assert {(r["row"], r["runs"], r["same_as"]) for r in tool.lines("summary.csv")} == {
        ("baseline", "2", ""), ("css", "2", ""), ("full", "2", "centre"), ("centre", "2", "")}
    tool.forget()
    assert tool("--rows", "css", "--seeds", 1, 2, 3) == 0
    assert tool.names == ["css-seed3"]


def test_a_failed_run_is_reported_and_the_others_go_on(tool, capsys):
    tool.todo = {"baseline-seed1": {"exit": 3, "checkpoint": "model_0000.pth"},
                 "css-seed1": {"exit": 0, "iteration": 4}, "cacc-seed1": {"figures": False}}
    assert tool("--rows", "baseline", "css", "cacc", "sample", "--seeds", 1) == 1
    assert len(tool.names) == 4
    assert tool.states() == {
        "baseline-seed1": "failed: exit status 3", "sample-seed1": "finished",
        "css-seed1": f"failed: not finished: the last mAP in {tool.folder}/css-seed1/metrics.json "
                     "is of iteration 4, training ends at 9",
        "cacc-seed1": f"failed: not finished: {tool.folder}/cacc-seed1/metrics.json has no mAP and "
                      "Rank-1, the evaluation at the end of training is missing"}
    printed = capsys.readouterr().out
    assert "FAILED, exit status 3; the end of" in printed
    assert "\n    last words of baseline-seed1\n" in printed
    assert "baseline-seed1 FAILED (exit status 3); the same command tries it again." in printed
    sample = next(r for r in tool.lines("summary.csv") if r["row"] == "sample")
    assert sample["runs"] == "1" and sample["mAP difference"] == ""  # no baseline to compare with

    # although the failed run has all its figures, it did not end well: all three are tried again
    tool.forget()
    assert tool("--rows", "baseline", "css", "cacc", "sample", "--seeds", 1) == 0
    assert tool.names == ["baseline-seed1", "css-seed1", "cacc-seed1"]
    assert ["--resume" in call["words"] for call in tool.calls] == [True, False, False]
    assert set(tool.states().values()) == {"finished"}


@pytest.mark.parametrize("checkpoint", [True, False])
def test_half_a_run(tool, checkpoint):
    """With a checkpoint it is resumed, without it is begun again beside its old figures."""
    tool.todo = {"css-seed1": {"iteration": 4, "exit": 1}}
    if checkpoint:
        tool.todo["css-seed1"]["checkpoint"] = "model_0000.pth"
    for _ in range(2):
        assert tool("--rows", "css", "--seeds", 1) == 1
    tool.todo = {}
    assert tool("--rows", "css", "--seeds", 1) == 0
    assert [call["words"][:3] for call in tool.calls[1:]] == [[
        "--config-file", str(REPOSITORY / "configs" / "Synthetic" / "ablation" / "css.yml"),
        "--resume" if checkpoint else "SEED"]] * 2
    folder = tool.folder / "css-seed1"
    kept = {path.name: [json.loads(line)["iteration"] for line in path.read_text().splitlines()]
            for path in folder.glob("metrics*.json")}
    assert kept == ({"metrics.json": [4, 4, 9]} if checkpoint else
                    {"metrics-1.json": [4], "metrics-2.json": [4], "metrics.json": [9]})
    attempts = json.loads((folder / "attempts.json").read_text())
    assert [a["status"] for a in attempts] == [1, 1, 0]
    spent = [a["seconds"] for a in attempts]
    assert json.loads((folder / "finished.json").read_text())["seconds"] == pytest.approx(
        sum(spent) if checkpoint else spent[-1])
    log = (tool.folder / "css-seed1.log").read_text()
    assert log.count("last words of css-seed1") == log.count("--config-file") == 3


def test_a_run_that_ended_unseen_is_taken_as_finished(tool):
    """The figures are complete, but this tool was killed before it noted the end."""
    tool("--rows", "baseline", "css", "cacc", "--seeds", 1)
    for row in ("baseline", "css", "cacc"):
        (tool.folder / f"{row}-seed1" / "finished.json").unlink()
    (tool.folder / "baseline-seed1" / "attempts.json").unlink()
    (tool.folder / "css-seed1" / "metrics.json").write_text('{"iteration": 4, "mAP": 1.0}\n')
    tool.forget()
    assert tool("--rows", "baseline", "css", "cacc", "--seeds", 1) == 0
    assert tool.names == ["css-seed1"]
    minutes = {line["row"]: line["minutes"] for line in tool.lines()}
    assert minutes["baseline"] == "" and float(minutes["css"]) > 0 < float(minutes["cacc"])


@pytest.fixture(autouse=True)
def signals_of_a_terminal():
    """They are ignored where the tests run behind nohup or in the background of a script."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL,
             signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interruption_ends_the_processes_and_keeps_what_is_finished(tool, capsys, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)]
    tool.todo = {"css-seed1": {"figures": False, "interrupt": int(number),
                               "meets": "cacc-seed1"},
                 "cacc-seed1": {"figures": False, "meets": "not there"}}
    words = ("--rows", "baseline", "css", "cacc", "sample", "--seeds", 1, "--jobs", 2)
    assert tool(*words) == 130
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)] == handlers
    assert "The same command goes on from there" in capsys.readouterr().out
    assert set(tool.names) == {"baseline-seed1", "css-seed1", "cacc-seed1"}
    pids = [pid for call in tool.calls for pid in call["pids"] if pid]
    assert len(pids) == 4 and not any(map(_is_alive, pids))
    assert tool.states()["baseline-seed1"] == "finished"
    noted = json.loads((tool.folder / "css-seed1" / "attempts.json").read_text())
    assert [attempt["status"] for attempt in noted] == [-signal.SIGTERM]

    tool.forget()
    assert tool(*words) == 0
    assert set(tool.names) == {"css-seed1", "cacc-seed1", "sample-seed1"}
    assert set(tool.states().values()) == {"finished"}


def test_a_second_interruption_leaves_nothing_running(tool, monkeypatch):
    tool.todo = {"baseline-seed1": {"interrupt": int(signal.SIGINT), "meets": "css-seed1"},
                 "css-seed1": {"meets": "not there"}}

    def interrupted(attempt):
        raise KeyboardInterrupt

    started = []
    note = ablation_runs.Attempt._note
    monkeypatch.setattr(ablation_runs.Attempt, "end", interrupted)
    monkeypatch.setattr(ablation_runs.Attempt, "_note",
                        lambda attempt, *a, **k: (started.append(attempt), note(attempt, *a, **k)))
    assert tool("--rows", "baseline", "css", "--seeds", 1, "--jobs", 2) == 130
    assert len(started) == 2
    assert [attempt.process.wait(20) for attempt in started] == [-signal.SIGTERM] * 2


def test_minutes_are_unknown_where_an_attempt_was_not_seen_to_end(tool):
    """The tool was killed in an attempt, or never noted the one that began the run."""
    tool("--rows", "css", "--seeds", 1)
    folder = tool.folder / "css-seed1"
    noted = json.loads((folder / "attempts.json").read_text())[0]
    (folder / "finished.json").unlink()
    unseen = {"resumed": False, "status": None, "seconds": None}
    for attempts, known in (([unseen, {**noted, "resumed": True}], False),
                            ([{**noted, "resumed": True}], False), ([unseen], False),
                            ([unseen, noted], True)):
        (folder / "attempts.json").write_text(json.dumps(attempts))
        run = ablation_runs.Run("css", 1, "", type("Config", (), {"OUTPUT_DIR": str(folder)}))
        assert run.seconds() == (noted["seconds"] if known else None)
    (folder / "metrics.json").write_text("")
    (folder / "last_checkpoint").write_text("model_0000.pth")
    (folder / "attempts.json").write_text(json.dumps([unseen]))
    tool.forget()
    assert tool("--rows", "css", "--seeds", 1) == 0
    assert "--resume" in tool.calls[0]["words"] and tool.lines()[0]["minutes"] == ""


def test_an_attempt_is_noted_when_it_starts(tool, monkeypatch):
    monkeypatch.setattr(ablation_runs.Attempt, "note", lambda attempt: None)  # as if killed
    tool("--rows", "css", "--seeds", 1)
    attempts = json.loads((tool.folder / "css-seed1" / "attempts.json").read_text())
    assert attempts == [{"resumed": False, "status": None, "seconds": None}]


def test_a_final_checkpoint_without_figures_is_begun_anew(tool):
    tool.todo = {"css-seed1": {"iteration": 4, "checkpoint": "model_final.pth", "exit": 1}}
    assert tool("--rows", "css", "--seeds", 1) == 1
    tool.forget()
    assert tool("--rows", "css", "--seeds", 1) == 0
    assert [("--resume" in call["words"]) for call in tool.calls] == [False]
    folder = tool.folder / "css-seed1"
    assert (folder / "last_checkpoint-1").read_text() == "model_final.pth"
    assert json.loads((folder / "metrics-1.json").read_text())["iteration"] == 4


def test_seeds_that_finished_before_stay_in_the_table(tool):
    tool("--rows", "baseline", "css", "--seeds", 1)
    tool("--rows", "css", "--seeds", 10, keys=[*SHORT, "CAUREID.CLUSTER.EPS", "0.6"])  # another's
    tool.forget()
    assert tool("--rows", "css", "--seeds", 3) == 0
    assert tool.names == ["css-seed3"]
    assert tool.states() == dict.fromkeys(
        ("baseline-seed1", "css-seed1", "css-seed3"), "finished")
    css = next(line for line in tool.lines("summary.csv") if line["row"] == "css")
    assert (css["runs"], css["of"], css["pairs"]) == ("2", "2", "1")
    assert "Seeds: 1, 3\n" in (tool.folder / "table.md").read_text()


def test_side_by_side(tool, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(ablation, "cores", lambda: 7)
    tool.todo = {"baseline-seed1": {"meets": "css-seed1"}, "css-seed1": {"meets": "baseline-seed1"}}
    assert tool("--rows", "baseline", "css", "cacc", "--seeds", 1, "--jobs", 2) == 0
    assert [call["threads"] for call in tool.calls] == ["3"] * 3


def test_one_after_the_other(tool):
    assert tool("--rows", "baseline", "css", "--seeds", 1, "--jobs", 1) == 0
    ended = {name: (tool.folder / name / "finished.json").stat().st_mtime_ns for name in tool.names}
    begun = {name: (tool.folder / name / "config.yaml").stat().st_mtime_ns for name in tool.names}
    assert begun["css-seed1"] >= ended["baseline-seed1"]


def test_a_folder_at_which_another_process_is_at_work(tool, capsys):
    with (tool.folder / "css-seed1.log").open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        assert tool("--rows", "css", "sample", "--seeds", 1) == 1
    assert tool.names == ["sample-seed1"]
    assert "css-seed1: FAILED, another process is at work in its folder" in capsys.readouterr().out
    assert tool("--rows", "css", "--seeds", 1) == 0


def test_estimate_of_the_remaining_time(tool, capsys):
    tool("--rows", "baseline", "--seeds", 1, 2, 3)
    for seed in (1, 2, 3):
        marker = tool.folder / f"baseline-seed{seed}" / "finished.json"
        marker.write_text(json.dumps({**json.loads(marker.read_text()), "seconds": 1200.0}))
    capsys.readouterr()
    tool("--rows", "baseline", "css", "--seeds", 1, 2, 3)
    # means of 3 x 20 minutes and what the stub takes, next to nothing: 15 and 12 minutes
    assert re.findall(r"; (\d) to go, about (\d+) min", capsys.readouterr().out) == [
        ("2", "30"), ("1", "12")]


# ------------------------------------------------------------------ configs and bad input ----


def test_a_folder_of_another_config_is_an_error_and_stays(tool, capsys):
    tool("--rows", "baseline", "--seeds", 1, 2)
    before = {path: path.read_bytes() for path in tool.folder.rglob("*") if path.is_file()}
    keys = ["SOLVER.MAX_EPOCH", "3", *SHORT[2:], "CAUREID.CLUSTER.EPS", "0.6"]
    assert tool("--rows", "baseline", "css", "--seeds", 1, 3, keys=keys) == 2
    error = capsys.readouterr().err
    assert (f"Run folders of another config: {tool.folder}/baseline-seed1\n"
            "  CAUREID.CLUSTER.EPS: 0.5 there, 0.6 here\n"
            "  SOLVER.MAX_EPOCH: 2 there, 3 here\n"
            "Choose another --output, or delete them.") in error
    assert len(tool.names) == 2
    assert before == {path: path.read_bytes() for path in before}

    (tool.folder / "css-seed1").mkdir()
    assert tool("--rows", "css", "--seeds", 1) == 0  # an empty folder is nobody's
    (tool.folder / "css-seed2").mkdir()
    (tool.folder / "css-seed2" / "model_final.pth").write_bytes(b"")
    assert tool("--rows", "css", "--seeds", 2) == 2
    assert "css-seed2\n  no config.yaml is there, which a run has" in capsys.readouterr().err
    (tool.folder / "css-seed3").mkdir()
    (tool.folder / "css-seed3" / ".config.yaml.123").write_bytes(b"MOD")  # killed while writing
    assert tool("--rows", "css", "--seeds", 3) == 0


@pytest.mark.parametrize("name, content", [
    ("config.yaml", ""), ("config.yaml", "MODEL:\n  BACKBONE: [1,"), ("config.yaml", "\0"),
    ("finished.json", '{"fig'), ("finished.json", "[]"),
    ("attempts.json", ""), ("attempts.json", "{}")])
def test_a_damaged_file_is_named(tool, capsys, name, content):
    tool.todo = {"css-seed1": {"exit": 1}} if name == "config.yaml" else {}
    tool("--rows", "css", "--seeds", 1)
    (tool.folder / "css-seed1" / name).write_text(content)
    tool.forget()
    assert tool("--rows", "css", "--seeds", 1) == 2
    error = capsys.readouterr().err
    assert f"{tool.folder}/css-seed1/{name} is damaged (" in error
    assert f"delete the run's folder {tool.folder}/css-seed1" in error
    assert tool.names == []


@pytest.mark.parametrize("tests", ["()", "('Market1501','DukeMTMC')"])
def test_a_config_without_one_test_set_is_an_error_before_any_run(tool, capsys, tests):
    assert tool("--rows", "css", keys=[*SHORT, "DATASETS.TESTS", tests]) == 2
    error = capsys.readouterr().err.replace(" ", "")
    assert f"DATASETS.TESTSis{tests}" in error and "setDATASETS.TESTS" in error
    assert tool.names == []


def test_a_file_named_like_a_key_is_no_key():
    assert ablation.split_keys("--configs TEST.yml MODEL/a SOLVER.yaml TEST.EVAL_PERIOD 1".split(
    )) == ("--configs TEST.yml MODEL/a SOLVER.yaml".split(), ["TEST.EVAL_PERIOD", "1"])


def test_a_run_on_the_cpu_is_not_said_to_be_on_the_gpu(monkeypatch):
    monkeypatch.setattr(ablation_runs.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ablation_runs.torch.cuda, "get_device_name", lambda device: "a GPU")
    assert ablation_runs.machine("cuda")["device"] == "a GPU"
    assert ablation_runs.machine("cpu")["device"].endswith(f", {ablation_runs.cores()} cores")
    monkeypatch.setattr(ablation_runs.torch.cuda, "is_available", lambda: False)
    assert ablation_runs.machine("cuda") == ablation_runs.machine("cpu")


def test_a_key_that_is_younger_than_the_run(tool, capsys):
    """The plugin may gain a key while an ablation waits; it counts only if it is set."""
    tool("--rows", "css", "--seeds", 1)
    folder = tool.folder / "css-seed1"
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    del saved["CAUREID"]["CLUSTER"]["RECALL"]
    (folder / "config.yaml").write_text(yaml.safe_dump(saved))
    marker = json.loads((folder / "finished.json").read_text())
    (folder / "finished.json").write_text(json.dumps({**marker, "fingerprint": "older"}))
    assert tool("--rows", "css", "--seeds", 1) == 0
    assert len(tool.names) == 1
    assert tool("--rows", "css", "--seeds", 1, keys=[*SHORT, "CAUREID.CLUSTER.RECALL", "0.9"]) == 2
    assert "CAUREID.CLUSTER.RECALL: 'not set' there, 0.9 here" in capsys.readouterr().err


def test_own_configs_as_rows(tool, tmp_path):
    base = REPOSITORY / "configs" / "Synthetic" / "caureid.yml"
    for name, eps in (("wide", 0.7), ("narrow", 0.4)):
        (tmp_path / f"{name}.yml").write_text(
            f"_BASE_: {base}\nCAUREID:\n  CLUSTER:\n    EPS: {eps}\n")
    (tool.folder / "todo.json").write_text("{}")
    files = [str(tmp_path / "wide.yml"), str(tmp_path / "narrow.yml"), "Synthetic/caureid.yml"]
    words = ["--configs", *files, "--output", str(tool.folder), "--seeds", "1"]
    assert ablation.main([*words, *SHORT]) == 0
    assert tool.names == ["wide-seed1", "narrow-seed1", "caureid-seed1"]
    assert {r["row"]: r["mAP difference"] for r in tool.lines("summary.csv")} == {
        "wide": "", "narrow": "2.0", "caureid": "3.0"}  # of the stub, by the names' lengths
    assert ablation.main([*words, "--baseline", "narrow", *SHORT]) == 0
    assert {r["row"]: r["mAP difference"] for r in tool.lines("summary.csv")} == {
        "wide": "-2.0", "narrow": "", "caureid": "1.0"}
    eps = {row: run.settings["CAUREID.CLUSTER.EPS"] for (row, _), run in ablation_runs.plan(
        {"wide": files[0], "narrow": files[1]}, [1], tmp_path, []).items()}
    assert eps == {"wide": 0.7, "narrow": 0.4}


@pytest.mark.parametrize("words, message", [
    ("--family mars", "invalid choice: 'mars' (choose from"),
    ("--family duke --rows css CSS", "--rows 'CSS' is unknown, known are baseline, css, cacc"),
    ("--family duke --baseline none", "--baseline 'none' is unknown, known are baseline, css"),
    ("--family duke --seeds 1 2 1", "--seeds [1, 2, 1] must be different numbers, none negative"),
    ("--family duke --seeds -1 2", "--seeds [-1, 2] must be different numbers, none negative"),
    ("--family duke --jobs 0", "--jobs 0 must be at least 1"),
    ("--family duke SEED 3", "SEED is set for each run: use --seeds"),
    ("--family duke OUTPUT_DIR here", "OUTPUT_DIR is set for each run: use --output"),
    ("--family duke SOLVER.MAX_EPOCH", "config keys and values must come in pairs"),
    ("--family duke SOLVER.MAX_EPOCH 3 --jobs 2", "--jobs must come before the config keys"),
    ("--configs a/x.yml b/x.yml --output o", "two files have the same name"),
    ("--configs a/x.yml", "--configs needs --output"),
    ("--configs Nowhere/x.yml --output o", "There is no config 'Nowhere/x.yml', known are"),
    ("--seeds 1", "one of the arguments --family --configs is required"),
])
def test_wrong_command_lines(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        ablation.main(words.split())
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_unknown_key_is_an_error_before_any_run(tool, capsys):
    assert tool("--rows", "css", keys=["SOLVER.MAX_EPOC", "3"]) == 2
    assert "did you mean SOLVER.MAX_EPOCH" in capsys.readouterr().err
    assert tool.names == [] and not (tool.folder / "table.md").exists()


# ------------------------------------------------------------------- figures and the table ----


def _metrics(folder, *rows):
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_figures_are_the_last_ones(tmp_path):
    _metrics(tmp_path, {"iteration": 0, "start/mAP": 3.0, "labels/clusters": 9.0},
             {"iteration": 4, "mAP": 50.0, "Rank-1": 70.0},
             {"iteration": 5, "labels/clusters": 7.0, "labels/outliers": 2.0},
             {"iteration": 9, "mAP": 40.0, "Rank-1": 60.0, "diagnostic_with_labels/ari": 0.5})
    expected = {"mAP": 40.0, "Rank-1": 60.0, "start mAP": 3.0, "clusters": 7.0, "outliers": 2.0,
                "ARI": 0.5}
    assert ablation_report.read_figures(tmp_path, 9) == expected
    assert ablation_report.read_figures(tmp_path, 8) == expected  # evaluated after training
    with pytest.raises(ValueError, match="of iteration 9, training ends at 14"):
        ablation_report.read_figures(tmp_path, 14)


def test_figures_where_the_config_does_not_tell_the_last_iteration(tmp_path):
    rows = [{"iteration": 9, "mAP": 40.0, "Rank-1": 60.0}]
    _metrics(tmp_path, *rows)
    with pytest.raises(ValueError, match="has no final checkpoint"):
        ablation_report.read_figures(tmp_path, None)
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    assert ablation_report.read_figures(tmp_path, None) == {"mAP": 40.0, "Rank-1": 60.0}
    _metrics(tmp_path, *rows, {"iteration": 10, "total_loss": 1.0})
    with pytest.raises(ValueError, match="of iteration 9, training ends at 10"):
        ablation_report.read_figures(tmp_path, None)
    run = ablation_runs.plan({"a": str(REPOSITORY / "configs/Market/caureid.yml")}, [1], tmp_path,
                             ["SOLVER.ITERS_PER_EPOCH", "0"])["a", 1]
    assert run.last_iteration is None


@pytest.mark.parametrize("half", [b'{"iteration": 2, "mA', b'"mA', b"\0\0", b"\xff{"])
def test_half_a_line_of_metrics_is_left_out(tmp_path, half):
    _metrics(tmp_path, {"iteration": 1, "mAP": 3.0, "Rank-1": 5.0})
    before = (tmp_path / "metrics.json").read_bytes()
    (tmp_path / "metrics.json").write_bytes(
        before + half + b'\n{"iteration": 9, "mAP": 4.0, "Rank-1": 6.0}\n' + half)
    assert ablation_report.read_figures(tmp_path, 9) == {"mAP": 4.0, "Rank-1": 6.0}
    (tmp_path / "metrics.json").write_bytes(before + half)
    with pytest.raises(ValueError, match="of iteration 1, training ends at 9"):
        ablation_report.read_figures(tmp_path, 9)


def _results(rng):
    """Random scores; some runs are missing, one row has none, one is a single run."""
    results = []
    for row in ("plain", "some", "one", "none"):
        for seed in (1, 2, 5, 9):
            there = {"plain": seed != 9, "some": seed != 1, "one": seed == 5, "none": False}[row]
            result = {"row": row, "title": f"about {row}", "seed": seed, "same_as": "",
                      "state": "finished" if there else "not finished"}
            if there:
                result.update({"mAP": rng.uniform(20, 60), "Rank-1": rng.uniform(40, 90),
                               "minutes": rng.uniform(1, 9)})
            results.append(result)
    return results


@pytest.mark.parametrize("seed", range(3))
def test_statistics_against_numpy(seed):
    results = _results(np.random.default_rng(seed))
    summary = {row["row"]: row for row in ablation_report.summarise(results, "plain")}
    assert list(summary) == ["plain", "some", "one", "none"]
    for name, row in summary.items():
        own = {r["seed"]: r for r in results if r["row"] == name and r["state"] == "finished"}
        assert (row["runs"], row["of"]) == (len(own), 4)
        for score in ("mAP", "Rank-1"):
            scores = [r[score] for r in own.values()]
            gains = [own[r["seed"]][score] - r[score] for r in results
                     if r["row"] == "plain" and r["state"] == "finished" and r["seed"] in own]
            gains = [] if name == "plain" else gains
            for key, values in ((score, scores), (f"{score} difference", gains)):
                assert row[key] == (pytest.approx(np.mean(values)) if values else None)
                assert row[f"{key} sd"] == (
                    pytest.approx(np.std(values, ddof=1)) if len(values) > 1 else None)
        assert row["pairs"] == len(gains)
        minutes = [r["minutes"] for r in own.values()]
        assert row["minutes"] == (pytest.approx(np.mean(minutes)) if minutes else None)
    assert summary["some"]["pairs"] == 2 and summary["one"]["pairs"] == 1


def _cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_table_by_hand():
    results = [
        {"row": "plain", "title": "InfoNCE", "seed": 1, "state": "finished", "same_as": "",
         "mAP": 40.0, "Rank-1": 60.0, "clusters": 12.0, "minutes": 2.0},
        {"row": "plain", "title": "InfoNCE", "seed": 2, "state": "finished", "same_as": "",
         "mAP": 44.0, "Rank-1": 60.0, "clusters": 13.0, "minutes": 4.0},
        {"row": "own", "title": "more", "seed": 1, "state": "finished", "same_as": "",
         "mAP": 41.5, "Rank-1": 58.0, "clusters": 14.0, "minutes": None},
        {"row": "own", "title": "more", "seed": 2, "state": "failed: exit status 1",
         "same_as": ""}]
    summary = ablation_report.summarise(results, "plain")
    assert _cells(ablation_report.summary_table(summary))[2:] == [
        ["plain", "InfoNCE", "2 of 2", "42.00 (2.83)", "-", "60.00 (0.00)", "-", "3.0"],
        ["own", "more", "1 of 2", "41.50", "+1.50", "58.00", "-2.00", "-"]]
    page = ablation_report.page({"Seeds": "1, 2"}, results, summary, "plain")
    assert "- Seeds: 1, 2\n" in page and "![mAP and Rank-1](ablation.png)" in page
    cells = _cells(page)
    assert ["row", "seed", "state", "mAP", "Rank-1", "clusters", "minutes"] in cells
    assert ["own", "1", "finished", "41.50", "58.00", "14", "-"] in cells
    assert ["own", "2", "failed: exit status 1", "-", "-", "-", "-"] in cells


def test_bars_and_line_ends_do_not_break_the_table():
    lines = ablation_report._markdown([{"a": "x|y\nz", "b": "1"}], 1).splitlines()
    assert len(lines) == 3 and r"x\|y z" in lines[2]


def test_files_are_replaced_whole(tmp_path):
    results = _results(np.random.default_rng(0))
    nothing = [{**r, "state": "not finished"} for r in results]
    ablation_report.write(tmp_path, {}, nothing, "plain")
    assert {path.name for path in tmp_path.iterdir()} == {"table.md", "table.csv", "summary.csv"}
    ablation_report.write(tmp_path, {}, results, "plain")
    assert {path.name for path in tmp_path.iterdir()} == {
        "table.md", "table.csv", "summary.csv", "ablation.png"}
    with (tmp_path / "table.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(results)
    for line, result in zip(lines, results, strict=True):
        assert line["mAP"] == str(result.get("mAP", "")) and line["title"] == result["title"]
    picture = np.asarray(Image.open(tmp_path / "ablation.png").convert("RGB"))
    assert picture.shape[0] > 300 and picture.std() > 5


# ------------------------------------------------------------------------------- real runs ----

KEYS = """
MODEL.BACKBONE.FEAT_DIM 16 MODEL.HEADS.CAMSEP.REDUCTION 4 MODEL.BN_GROUP_SIZE 8
MODEL.HEADS.CAMSEP.NUM_CAMERAS 2 DATASETS.NAMES ('Market1501',) DATASETS.TESTS ('Market1501',)
INPUT.SIZE_TRAIN [32,16] INPUT.SIZE_TEST [32,16] SOLVER.IMS_PER_BATCH 16 SOLVER.ITERS_PER_EPOCH 3
SOLVER.MAX_EPOCH 2 CAUREID.CLUSTER.K1 6 CAUREID.CLUSTER.K2 2 CAUREID.CLUSTER.EPS 0.6
CAUREID.DIAGNOSTICS True TEST.EVAL_PERIOD 5 TEST.IMS_PER_BATCH 16 DATALOADER.NUM_WORKERS 0
""".split()


@pytest.fixture
def real(tiny_market, tmp_path, monkeypatch):
    """Runs the tool on the tiny data set, with train_net.py."""
    monkeypatch.setenv("FASTREID_DATASETS", str(tiny_market))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv(
        "PYTHONPATH", f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return lambda *words: ablation.main(
        ["--family", "synthetic", "--output", str(tmp_path / "out"), *words, *KEYS])


def test_two_rows_of_real_training(real, tmp_path, capsys):
    words = ("--rows", "baseline", "centre", "--seeds", "2", "--jobs", "2")
    assert real(*words) == 0, capsys.readouterr().out
    out, expected = tmp_path / "out", {}
    for row in ("baseline", "centre"):
        rows = [json.loads(line) for line in
                (out / f"{row}-seed2" / "metrics.json").read_text().splitlines()]
        assert len([r for r in rows if "mAP" in r]) == 1
        losses = {key for r in rows for key in r if key.startswith("loss_")}
        assert losses == (  # FastReID logs the parts of a total, not one loss alone
            {"loss_infonce", "loss_camsep", "loss_cacc"} if row == "centre" else set())
        expected[row] = {
            name: [r[key] for r in rows if key in r][-1] for name, key in (
                ("mAP", "mAP"), ("Rank-1", "Rank-1"), ("start mAP", "start/mAP"),
                ("clusters", "labels/clusters"), ("ARI", "diagnostic_with_labels/ari"))}
    with (out / "table.csv").open(newline="") as file:
        lines = {line["row"]: line for line in csv.DictReader(file)}
    for row, figures in expected.items():
        assert {name: float(lines[row][name]) for name in figures} == figures
        assert float(lines[row]["minutes"]) > 0
    # full was not asked for, and is there because centre is the same
    assert lines["full"]["same_as"] == "centre-seed2"
    with (out / "summary.csv").open(newline="") as file:
        summary = {line["row"]: line for line in csv.DictReader(file)}
    gain = expected["centre"]["mAP"] - expected["baseline"]["mAP"]
    assert float(summary["centre"]["mAP difference"]) == pytest.approx(gain)
    assert np.asarray(Image.open(out / "ablation.png")).std() > 5

    # the trainer's own config.yaml is recognised
    (out / "baseline-seed2" / "finished.json").unlink()
    before = (out / "baseline-seed2.log").read_text()
    assert real(*words) == 0
    assert (out / "baseline-seed2.log").read_text() == before


def test_a_data_set_without_cameras_is_reported(real, tiny_market, tmp_path, capsys):
    image = next(tiny_market.rglob("bounding_box_train/*.jpg"))
    image.rename(image.with_name("0001_000451_03.jpg"))
    assert real("--rows", "full", "--seeds", "1") == 1
    printed = capsys.readouterr().out
    assert "full-seed1: FAILED, exit status 1; the end of" in printed
    assert "0001_000451_03.jpg carries no camera label" in printed
    assert "failed: exit status 1" in (tmp_path / "out" / "table.md").read_text()
