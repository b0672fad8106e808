"""tools/ablation.py: its queue with a stub in place of train_net.py, its table, and real runs."""

import csv
import fcntl
import functools
import json
import os
import signal
import subprocess
import types
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import ablation
import ablation_report
import ablation_runs
from helpers import warm
from helpers.tiny import KEYS

CONFIGS = warm.REPOSITORY / "configs" / "Synthetic"
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


read_yaml = functools.cache(yaml.safe_load)


@pytest.fixture
def tool(monkeypatch, tmp_path):
    stub = tmp_path / "stub.py"
    stub.write_text(STUB)
    monkeypatch.setattr(ablation_runs, "TRAIN_NET", stub)
    monkeypatch.setattr(ablation, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(ablation_report, "draw", lambda *args: args[-1].write(b"drawn"))
    # most of the time of a command without training goes into reading the same YAML again
    monkeypatch.setattr(ablation_runs, "yaml", types.SimpleNamespace(
        safe_load=read_yaml, YAMLError=yaml.YAMLError))
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
            "--config-file", str(CONFIGS / "ablation" / f"{row}.yml"),
            "SEED", seed, "OUTPUT_DIR", str(tool.folder / call["name"]), *SHORT]
        assert call["threads"] == "3"  # set by the user, left alone
        assert f"last words of {call['name']}" in (
            tool.folder / f"{call['name']}.log").read_text()
    assert f"[10/10] {tool.names[-1]}: mAP " in capsys.readouterr().out
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
    assert "same run as full-seed4" in page and "Seeds: 4, 7" in page and "threads 3" in page


def test_finished_runs_are_not_repeated(tool, capsys):
    assert tool("--rows", "baseline", "centre", "--seeds", 1) == 0
    tool.forget()
    assert tool("--rows", "baseline", "centre", "--seeds", 1) == 0
    assert tool.names == []
    assert "[2/2] centre-seed1: is finished, mAP" in capsys.readouterr().out

    # full finds the run of its twin; rows that were not asked for stay in the table
    assert tool("--rows", "css", "full", "--seeds", 1, 2) == 0
    assert tool.names == ["css-seed1", "css-seed2", "full-seed2"]
    assert {(r["row"], r["runs"], r["same_as"]) for r in tool.lines("summary.csv")} == {
        ("baseline", "1", ""), ("css", "2", ""), ("full", "2", "centre"), ("centre", "2", "full")}


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

    # although the failed run has all its figures, it did not end well: all three are tried again
    tool.forget()
    assert tool("--rows", "baseline", "css", "cacc", "sample", "--seeds", 1) == 0
    assert tool.names == ["baseline-seed1", "css-seed1", "cacc-seed1"]
    assert ["--resume" in call["words"] for call in tool.calls] == [True, False, False]
    assert set(tool.states().values()) == {"finished"}


@pytest.mark.parametrize("checkpoint", ["model_0000.pth", "model_final.pth", None])
def test_half_a_run(tool, checkpoint):
    """With a checkpoint it is resumed; without, or with the last, begun again beside its figures.

    From the last checkpoint FastReID would not evaluate any more.
    """
    tool.todo = {"css-seed1": {"iteration": 4, "exit": 1}}
    if checkpoint:
        tool.todo["css-seed1"]["checkpoint"] = checkpoint
    for _ in range(2):
        assert tool("--rows", "css", "--seeds", 1) == 1
    tool.todo = {}
    assert tool("--rows", "css", "--seeds", 1) == 0
    resumed = checkpoint == "model_0000.pth"
    assert ["--resume" in call["words"] for call in tool.calls] == [False, resumed, resumed]
    folder = tool.folder / "css-seed1"
    kept = {path.name: [json.loads(line)["iteration"] for line in path.read_text().splitlines()]
            for path in folder.glob("metrics*.json")}
    assert kept == ({"metrics.json": [4, 4, 9]} if resumed else
                    {"metrics-1.json": [4], "metrics-2.json": [4], "metrics.json": [9]})
    attempts = json.loads((folder / "attempts.json").read_text())
    assert [a["status"] for a in attempts] == [1, 1, 0]
    spent = [a["seconds"] for a in attempts]
    assert json.loads((folder / "finished.json").read_text())["seconds"] == pytest.approx(
        sum(spent) if resumed else spent[-1])
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


def test_a_folder_at_which_another_process_is_at_work(tool, capsys):
    with (tool.folder / "css-seed1.log").open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        assert tool("--rows", "css", "sample", "--seeds", 1) == 1
    assert tool.names == ["sample-seed1"]
    assert "css-seed1: FAILED, another process is at work in its folder" in capsys.readouterr().out
    assert tool("--rows", "css", "--seeds", 1) == 0


@pytest.fixture
def signals_of_a_terminal():
    """They are ignored where the tests run behind nohup or in the background of a script."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL,
             signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.alone
@pytest.mark.usefixtures("signals_of_a_terminal")
def test_interruption_ends_the_processes_and_keeps_what_is_finished(tool, capsys):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)]
    tool.todo = {"css-seed1": {"figures": False, "interrupt": int(signal.SIGHUP),
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


@pytest.mark.alone
@pytest.mark.usefixtures("signals_of_a_terminal")
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
    (tool.folder / "css-seed2").mkdir()
    (tool.folder / "css-seed2" / "model_final.pth").write_bytes(b"")
    assert tool("--rows", "css", "--seeds", 2) == 2
    assert "css-seed2\n  no config.yaml is there, which a run has" in capsys.readouterr().err


def test_a_damaged_file_is_named(tool, capsys):
    tool("--rows", "css", "--seeds", 1)
    (tool.folder / "css-seed1" / "finished.json").write_text('{"fig')
    tool.forget()
    assert tool("--rows", "css", "--seeds", 1) == 2
    error = capsys.readouterr().err
    assert f"{tool.folder}/css-seed1/finished.json is damaged (" in error
    assert f"delete the run's folder {tool.folder}/css-seed1" in error
    assert tool.names == []


@pytest.mark.parametrize("keys, message", [
    (["DATASETS.TESTS", "()"], "DATASETS.TESTS is ()"),
    (["SOLVER.MAX_EPOC", "3"], "did you mean SOLVER.MAX_EPOCH")])
def test_a_wrong_config_is_an_error_before_any_run(tool, capsys, keys, message):
    assert tool("--rows", "css", keys=keys) == 2
    assert message in capsys.readouterr().err
    assert tool.names == [] and not (tool.folder / "table.md").exists()


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
    base = CONFIGS / "caureid.yml"
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


@pytest.mark.parametrize("words, message", [
    ("--family duke --rows css CSS", "--rows 'CSS' is unknown, known are baseline, css, cacc"),
    ("--family duke --seeds 1 2 1", "--seeds [1, 2, 1] must be different numbers, none negative"),
    ("--family duke SEED 3", "SEED is set for each run: use --seeds"),
    ("--configs a/x.yml b/x.yml --output o", "two files have the same name"),
])
def test_wrong_command_lines(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        ablation.main(words.split())
    assert message in " ".join(capsys.readouterr().err.split())


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
    _metrics(tmp_path, {"iteration": 9, "mAP": 40.0, "Rank-1": 60.0})
    with pytest.raises(ValueError, match="has no final checkpoint"):
        ablation_report.read_figures(tmp_path, None)
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    assert ablation_report.read_figures(tmp_path, None) == {"mAP": 40.0, "Rank-1": 60.0}


def test_half_a_line_of_metrics_is_left_out(tmp_path):
    (tmp_path / "metrics.json").write_bytes(
        b'{"iteration": 2, "mA\n{"iteration": 9, "mAP": 4.0, "Rank-1": 6.0}\n\xff{')
    assert ablation_report.read_figures(tmp_path, 9) == {"mAP": 4.0, "Rank-1": 6.0}


def _cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def _result(row, seed, score, rank, minutes):
    return {"row": row, "title": f"about {row}", "seed": seed, "state": "finished", "same_as": "",
            "mAP": score, "Rank-1": rank, "clusters": 10.0 + seed, "minutes": minutes}


def test_table_by_hand():
    """Seed 3 has no baseline, seed 4 nothing but it: they count in means, not in differences."""
    results = [_result("plain", 1, 40.0, 60.0, 2.0), _result("plain", 2, 44.0, 60.0, 4.0),
               _result("plain", 4, 51.0, 60.0, 6.0), _result("own", 1, 41.5, 58.0, None),
               _result("own", 2, 45.0, 59.0, 7.0), _result("own", 3, 50.5, 90.0, 8.0),
               _result("one", 2, 43.0, 60.0, None),
               {"row": "one", "title": "about one", "seed": 1, "state": "failed: exit status 1",
                "same_as": ""}]
    summary = ablation_report.summarise(results, "plain")
    assert _cells(ablation_report.summary_table(summary))[2:] == [
        ["plain", "about plain", "3 of 3", "45.00 (5.57)", "-", "60.00 (0.00)", "-", "4.0"],
        ["own", "about own", "3 of 3", "45.67 (4.54)", "+1.25 (0.35)", "69.00 (18.19)",
         "-1.50 (0.71)", "7.5"],
        ["one", "about one", "1 of 2", "43.00", "-1.00", "60.00", "+0.00", "-"]]
    assert [row["pairs"] for row in summary] == [0, 2, 1]
    cells = _cells(ablation_report.page({"Seeds": "1, 2"}, results, summary, "plain"))
    assert ["row", "seed", "state", "mAP", "Rank-1", "clusters", "minutes"] in cells
    assert ["own", "1", "finished", "41.50", "58.00", "11", "-"] in cells
    assert ["one", "1", "failed: exit status 1", "-", "-", "-", "-"] in cells


# ------------------------------------------------------------------------------- real runs ----


def test_two_rows_of_real_training(tiny_market, tmp_path, monkeypatch, capsys):
    def start(command, stdout, env, **options):
        return warm.start(command[1:], out=stdout.name, env=env)

    monkeypatch.setattr(ablation_runs, "subprocess", types.SimpleNamespace(
        Popen=start, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT))
    out = tmp_path / "out"
    words = ["--family", "synthetic", "--output", str(out), "--rows", "baseline", "centre",
             "--seeds", "2", "--jobs", "2", *KEYS, "CAUREID.DIAGNOSTICS", "True"]
    assert ablation.main(words) == 0, capsys.readouterr().out
    expected = {}
    for row in ("baseline", "centre"):
        rows = ablation_report.read_metrics(out / f"{row}-seed2" / "metrics.json")
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
    assert np.asarray(Image.open(out / "ablation.png").convert("RGB")).std() > 5

    # the trainer's own config.yaml is recognised
    (out / "baseline-seed2" / "finished.json").unlink()
    before = (out / "baseline-seed2.log").read_text()
    assert ablation.main(words) == 0
    assert (out / "baseline-seed2.log").read_text() == before
