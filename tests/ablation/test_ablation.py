"""caureid ablation: its queue with a stub in place of caureid train, its table, and real runs."""

import fcntl
import functools
import json
import signal
import subprocess
import sys
import types
from pathlib import Path

import psutil
import pytest
import yaml
from caureid_plugin.ablation import runner
from caureid_plugin.ablation import runs as ablation_runs
from caureid_plugin.ablation import table as ablation_report
from caureid_plugin.cli import ablation
from caureid_plugin.cli.ablation import command
from caureid_plugin.cli.common import call
from caureid_plugin.runs.metrics import read_rows

import figures
from helpers import warm
from helpers.tiny import KEYS
from helpers.tool_output import is_drawn, read_csv, refusal, table_rows

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
        self.folder, self.todo = folder, {}

    def __call__(self, *words, source=("--family", "synthetic"), keys=SHORT):
        (self.folder / "todo.json").write_text(json.dumps(self.todo))
        return status([*source, "--output", self.folder, *words, *keys])

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
        return read_csv(self.folder / name)

    def states(self):
        return {f"{line['row']}-seed{line['seed']}": line["state"] for line in self.lines()}


def status(words):
    """The exit status of the command."""
    try:
        return call(command, words)
    except SystemExit as leaving:
        return leaving.code


read_yaml = functools.cache(yaml.safe_load)


@pytest.fixture
def tool(monkeypatch, tmp_path):
    stub = tmp_path / "stub.py"
    stub.write_text(STUB)
    monkeypatch.setattr(ablation_runs, "TRAIN", (sys.executable, str(stub)))
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(ablation_report, "draw", lambda *args: args[-1].write(b"drawn"))
    # most of the time of a command without training goes into reading the same YAML again
    monkeypatch.setattr(ablation_runs, "yaml", types.SimpleNamespace(
        safe_load=read_yaml, YAMLError=yaml.YAMLError))
    folder = tmp_path / "out"
    folder.mkdir()
    return Stubbed(folder)


def test_runs_every_row_and_seed_once(tool, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert tool("--seeds", 4, 7) == 0
    # seed by seed; full and centre are the same training
    assert tool.names == [f"{row}-seed{seed}" for seed in (4, 7) for row in ROWS[:-1]]
    for done in tool.calls:
        row, seed = done["name"].split("-seed")
        assert done["words"] == [
            "--config-file", str(CONFIGS / "caureid.yml"),
            "SEED", seed, "OUTPUT_DIR", str(tool.folder / done["name"]), *ablation.ROWS[row][1],
            *SHORT]
        assert done["threads"] == "3"  # set by the user, left alone
        log = (tool.folder / f"{done['name']}.log").read_text()
        assert f"last words of {done['name']}" in log
    assert f"[10/10] {tool.names[-1]}: mAP " in capsys.readouterr().out
    lines = tool.lines()
    assert [(line["row"], line["seed"], line["state"]) for line in lines] == [
        (row, seed, "finished") for row in ROWS for seed in ("4", "7")]
    for line in lines:
        assert line["same_as"] == (f"full-seed{line['seed']}" if line["row"] == "centre" else "")
        folder = line["same_as"] or f"{line['row']}-seed{line['seed']}"
        assert float(line["mAP"]) == 40 + int(line["seed"]) + len(folder)
    page = (tool.folder / "table.md").read_text()
    assert f"`caureid ablation --family synthetic --output {tool.folder} --seeds 4 7 " in page
    assert "same run as full-seed4" in page and "Seeds: 4, 7" in page and "threads 3" in page


def test_finished_runs_are_not_repeated_and_stay_in_the_table(tool, capsys):
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

    # and so do seeds, but not those of other settings
    tool("--rows", "css", "--seeds", 10, keys=[*SHORT, "CAUREID.CLUSTER.EPS", "0.6"])
    tool.forget()
    assert tool("--rows", "css", "--seeds", 3) == 0
    assert tool.names == ["css-seed3"] and set(tool.states().values()) == {"finished"}
    css = next(line for line in tool.lines("summary.csv") if line["row"] == "css")
    assert (css["runs"], css["of"], css["pairs"]) == ("3", "3", "1")
    assert "Seeds: 1, 2, 3\n" in (tool.folder / "table.md").read_text()


def test_a_failed_run_is_reported_and_the_others_go_on(tool, capsys):
    words = ("--rows", "baseline", "css", "cacc", "sample", "--seeds", 1)
    tool.todo = {"baseline-seed1": {"exit": 3, "checkpoint": "model_0000.pth"},
                 "css-seed1": {"exit": 0, "iteration": 4}, "cacc-seed1": {"figures": False}}
    assert tool(*words) == 1
    assert len(tool.names) == 4
    states = tool.states()
    assert states["baseline-seed1"] == "failed: exit status 3"
    assert states["sample-seed1"] == "finished"
    for name, why in (("css-seed1", "is of iteration 4, training ends at 9"),
                      ("cacc-seed1", "has no mAP and Rank-1: metrics.json is missing")):
        assert states[name].startswith("failed: not finished: ") and why in states[name]
        assert f"{tool.folder}/{name}/metrics.json" in states[name]
    printed = capsys.readouterr().out
    assert "\n    last words of baseline-seed1\n" in printed
    assert "baseline-seed1 FAILED (exit status 3); the same command tries it again." in printed

    # although the failed run has all its figures, it did not end well: all three are tried again
    tool.forget()
    assert tool(*words) == 0
    assert [(call["name"], "--resume" in call["words"]) for call in tool.calls] == [
        ("baseline-seed1", True), ("css-seed1", False), ("cacc-seed1", False)]
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


def test_code_and_machine_are_noted_for_the_figures(tool, monkeypatch):
    """A resumed run notes the commit of each process; tools/figures.py reads it all."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    commits = iter(["aaaaaaa", "bbbbbbb", "bbbbbbb", "ccccccc"])
    monkeypatch.setattr(ablation_runs, "code_commit", lambda: next(commits))
    tool.todo = {"css-seed1": {"exit": 1, "checkpoint": "model_0000.pth"}}
    tool("--rows", "css", "--seeds", 1)
    tool.forget()
    keys = [*SHORT, "MODEL.BACKBONE.PRETRAIN_PATH", "/data/w 1.pth"]
    assert tool("--rows", "centre", "--seeds", 2, keys=keys) == 0
    table = figures.read_folder("own", tool.folder, None, None)
    machine = ablation_runs.machine("cpu")
    assert table["made"] == {**machine, "commit": "bbbbbbb", "threads": "3",
                             "date": table["made"]["date"]}
    assert machine["device"] == "CPU" and machine["processor"] == ablation_runs.processor()
    assert table["command"] == ("caureid ablation --family synthetic --rows full centre --seeds 2 "
                                f"{' '.join(keys).replace('/data/w 1.pth', '') + repr('w 1.pth')}")
    full, centre = table["rows"]["full"], table["rows"]["centre"]
    assert full["seeds"]["2"]["mAP"] == 42 + len("centre-seed2") == centre["mean"]["mAP"]
    assert (full["same_as"], centre["same_as"]) == ("centre", "")
    assert table["baseline"] == "baseline" and table["keys"][-1] == "w 1.pth"

    assert tool("--rows", "css", "--seeds", 1) == 0  # resumed, by other code
    noted = json.loads((tool.folder / "css-seed1" / "finished.json").read_text())
    assert noted["machine"]["commit"] == "aaaaaaa, bbbbbbb"
    (tool.folder / "css-seed1" / "finished.json").unlink()
    (tool.folder / "css-seed1" / "last_checkpoint").unlink()
    (tool.folder / "css-seed1" / "metrics.json").unlink()
    assert tool("--rows", "css", "--seeds", 1) == 0  # begun again: what was before does not count
    noted = json.loads((tool.folder / "css-seed1" / "finished.json").read_text())
    assert noted["machine"]["commit"] == "ccccccc"


def test_the_commit_is_that_of_the_clone_and_says_what_differs_from_it(tmp_path, monkeypatch):
    package = tmp_path / "clone" / "caureid_plugin"
    package.mkdir(parents=True)
    monkeypatch.setattr(ablation_runs, "__file__", str(package / "ablation" / "runs.py"))
    (package / "__init__.py").write_text("a = 1\n")

    def git(*words):
        done = subprocess.run(["git", "-c", "user.name=A", "-c", "user.email=a@b.org", "-C",
                               str(package.parent), *words], check=True, capture_output=True)
        return done.stdout.decode().strip()

    git("-c", "init.defaultBranch=main", "init")
    git("add", ".")
    git("commit", "-m", "first")
    git("tag", "-a", "-m", "first", "v1")
    commit = git("rev-parse", "HEAD")[:12]
    assert ablation_runs.code_commit() == commit
    (package.parent / "notes").touch()  # a file that git does not know is no code of the commit
    assert ablation_runs.code_commit() == commit
    (package / "__init__.py").write_text("a = 2\n")
    assert ablation_runs.code_commit() == f"{commit}-dirty"
    # installed into a folder of the clone
    inner = package.parent / "lib" / "caureid_plugin" / "ablation" / "runs.py"
    monkeypatch.setattr(ablation_runs, "__file__", str(inner))
    assert ablation_runs.code_commit() == "unknown"


def test_the_processor_is_named_with_what_rounding_depends_on(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation_runs.torch.backends.cpu, "get_cpu_capability", lambda: "AVX9")
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\ncpu family\t: 23\nmodel\t\t: 49\nmodel name\t: AMD EPYC\n"
                    "flags\t\t: fpu\n\nprocessor\t: 1\n")
    assert ablation_runs.processor(path) == "AMD EPYC (family 23, model 49, AVX9)"
    path.write_text("processor\t: 0\nFeatures\t: fp\n")  # as ARM has it
    monkeypatch.setattr(ablation_runs.platform, "processor", lambda: "")
    monkeypatch.setattr(ablation_runs.platform, "machine", lambda: "aarch64")
    assert ablation_runs.processor(path) == "aarch64 (AVX9)"
    assert ablation_runs.processor(tmp_path / "not there") == "aarch64 (AVX9)"


def test_side_by_side(tool, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(runner, "cores", lambda: 7)
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
def hanging_up_ends():
    """It is ignored where the tests run behind nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.alone
@pytest.mark.usefixtures("hanging_up_ends")
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
    pids = {pid for call in tool.calls for pid in call["pids"] if pid}
    # a dead child of a dead parent may wait for process 1
    alive = {process.pid for process in psutil.process_iter(["status"])
             if process.info["status"] != psutil.STATUS_ZOMBIE}
    assert len(pids) == 4 and not pids & alive
    assert tool.states()["baseline-seed1"] == "finished"
    noted = json.loads((tool.folder / "css-seed1" / "attempts.json").read_text())
    assert [attempt["status"] for attempt in noted] == [-signal.SIGTERM]

    tool.forget()
    assert tool(*words) == 0
    assert set(tool.names) == {"css-seed1", "cacc-seed1", "sample-seed1"}
    assert set(tool.states().values()) == {"finished"}


def test_an_interruption_while_a_process_begins_ends_it(tool, monkeypatch):
    begun = []

    def begin(*words, **options):
        begun.append(subprocess.Popen(*words, **options))
        signal.raise_signal(signal.SIGINT)
        return begun[-1]

    monkeypatch.setattr(ablation_runs, "subprocess", types.SimpleNamespace(
        Popen=begin, run=subprocess.run, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT,
        TimeoutExpired=subprocess.TimeoutExpired))
    tool.todo = {"css-seed1": {"meets": "not there"}}
    assert tool("--rows", "css", "--seeds", 1) == 130
    assert [process.returncode for process in begun] == [-signal.SIGTERM]


@pytest.mark.alone
def test_a_second_interruption_leaves_nothing_running(tool, monkeypatch):
    tool.todo = {"baseline-seed1": {"interrupt": int(signal.SIGINT), "meets": "css-seed1"},
                 "css-seed1": {"meets": "not there"}}
    told, send = [], ablation_runs.Attempt.send

    def interrupted(attempt):
        raise KeyboardInterrupt

    monkeypatch.setattr(ablation_runs.Attempt, "end", interrupted)
    monkeypatch.setattr(ablation_runs.Attempt, "send",
                        lambda attempt, number: (told.append(attempt), send(attempt, number)))
    assert tool("--rows", "baseline", "css", "--seeds", 1, "--jobs", 2) == 130
    assert [attempt.process.wait(20) for attempt in told] == [-signal.SIGTERM] * 2


def test_a_folder_that_is_of_another_config_or_damaged_is_an_error_and_stays(tool, capsys):
    tool("--rows", "baseline", "--seeds", 1, 2)
    before = {path: path.read_bytes() for path in tool.folder.rglob("*") if path.is_file()}
    keys = ["SOLVER.MAX_EPOCH", "3", *SHORT[2:], "CAUREID.CLUSTER.EPS", "0.6"]
    assert tool("--rows", "baseline", "css", "--seeds", 1, 3, keys=keys) == 2
    assert (f"Run folders of another config: {tool.folder}/baseline-seed1\n"
            "  CAUREID.CLUSTER.EPS: 0.5 there, 0.6 here\n"
            "  SOLVER.MAX_EPOCH: 2 there, 3 here\n"
            "Choose another --output, or delete them.") in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in before}
    (tool.folder / "css-seed2").mkdir()
    (tool.folder / "css-seed2" / "model_final.pth").write_bytes(b"")
    assert tool("--rows", "css", "--seeds", 2) == 2
    assert "css-seed2\n  no config.yaml is there, which a run has" in capsys.readouterr().err
    folder = tool.folder / "baseline-seed1"
    (folder / "finished.json").write_text('{"fig')
    assert tool("--rows", "baseline", "--seeds", 1) == 2
    error = capsys.readouterr().err
    assert f"{folder}/finished.json is damaged (" in error
    assert f"delete the run's folder {folder}" in error
    assert len(tool.names) == 2


@pytest.mark.parametrize("keys, message", [
    (["DATASETS.TESTS", "()"], "DATASETS.TESTS is ()"),
    (["SOLVER.MAX_EPOC", "3"], "did you mean SOLVER.MAX_EPOCH")])
def test_a_wrong_config_is_an_error_before_any_run(tool, capsys, keys, message):
    assert tool("--rows", "css", keys=keys) == 2
    assert message in capsys.readouterr().err
    assert tool.names == [] and not (tool.folder / "table.md").exists()


def test_a_key_that_is_younger_than_the_run_or_gone(tool, capsys):
    """The plugin may gain a key while an ablation waits; it counts only if it is set."""
    tool("--rows", "css", "--seeds", 1)
    folder = tool.folder / "css-seed1"
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    del saved["CAUREID"]["CLUSTER"]["RECALL"]
    saved["MODEL"]["HEADS"]["CAMSEP"]["GAIN"] = 1.0
    (folder / "config.yaml").write_text(yaml.safe_dump(saved))
    marker = json.loads((folder / "finished.json").read_text())
    (folder / "finished.json").write_text(json.dumps({**marker, "fingerprint": "older"}))
    assert tool("--rows", "css", "--seeds", 1) == 0
    assert len(tool.names) == 1
    assert tool("--rows", "css", "--seeds", 1, keys=[*SHORT, "CAUREID.CLUSTER.RECALL", "0.9"]) == 2
    assert "CAUREID.CLUSTER.RECALL: 'not set' there, 0.9 here" in capsys.readouterr().err


def test_a_row_is_the_same_training_as_a_file_with_its_keys(tmp_path):
    """A folder that was begun by a file goes on; a key of the command overrides the row's."""
    by_keys, by_file = {}, {}
    for row, (_, keys) in ablation.ROWS.items():
        by_keys[row] = str(CONFIGS / "caureid.yml"), keys
        content = {"_BASE_": by_keys[row][0]}
        for key, value in zip(keys[::2], keys[1::2], strict=True):
            *sections, name = key.split(".")
            node = content
            for section in sections:
                node = node.setdefault(section, {})
            node[name] = value
        by_file[row] = str(tmp_path / f"{row}.yml"), []
        Path(by_file[row][0]).write_text(yaml.safe_dump(content))
    for own in ([], ["MODEL.LOSSES.CACC.ANCHOR", "image"]):
        there, here = (ablation_runs.plan(recipes, [1], tmp_path, own)
                       for recipes in (by_file, by_keys))
        assert [run.fingerprint for run in there.values()] == [
            run.fingerprint for run in here.values()]
    assert {run.cfg.MODEL.LOSSES.CACC.ANCHOR for run in here.values()} == {"image"}


def test_own_configs_as_rows(tool, tmp_path):
    files = []
    for name, eps in (("wide", 0.7), ("narrow", 0.4)):
        files.append(str(tmp_path / f"{name}.yml"))
        Path(files[-1]).write_text(
            f"_BASE_: {CONFIGS / 'caureid.yml'}\nCAUREID:\n  CLUSTER:\n    EPS: {eps}\n")
    source = ["--configs", *files, "Synthetic/caureid.yml"]
    # the stub's mAP tells the names' lengths
    for words, differences in (([], {"wide": "", "narrow": "2.0", "caureid": "3.0"}),
                               (["--baseline", "narrow"],
                                {"wide": "-2.0", "narrow": "", "caureid": "1.0"})):
        assert tool("--seeds", 1, *words, source=source) == 0
        assert tool.names == ["wide-seed1", "narrow-seed1", "caureid-seed1"]
        assert {r["row"]: r["mAP difference"] for r in tool.lines("summary.csv")} == differences


@pytest.mark.parametrize("words, message", [
    ("--family duke --rows css ccs", "'--rows': 'ccs' is not one of 'baseline', 'css', 'cacc'"),
    ("--family duke --rows css ice", "'--rows': 'ice' is not one of 'baseline', 'css', 'cacc'"),
    ("--family peers --rows css", "'--rows': 'css' is not one of 'spcl', 'cluster_contrast'"),
    ("--family duke --seeds 1 2 1", "'--seeds': 1 2 1: a number stands there twice"),
    ("--family duke --seeds 1 -2", "-2 is not in the range x>=0"),
    ("--family duke --baseline no", "--baseline 'no' is unknown, known are baseline, css, cacc"),
    ("--family duke SEED 3", "SEED is set for each run: use --seeds"),
    ("--family duke --configs Market/caureid.yml", "give either --family or --configs"),
    ("--configs Market/caureid.yml Duke/caureid.yml --output o", "two files have the same name"),
    ("--configs Markt/caureid.yml --output o", "no config 'Markt/caureid.yml'"),
])
def test_wrong_command_lines(words, message, capsys):
    error = refusal(functools.partial(call, command), words.split(), capsys)
    assert message in " ".join(error.split())


def test_figures_are_the_last_ones(tmp_path):
    rows = [{"iteration": 0, "start/mAP": 3.0, "labels/clusters": 9.0},
            {"iteration": 4, "mAP": 50.0, "Rank-1": 70.0},
            {"iteration": 5, "labels/clusters": 7.0, "labels/outliers": 2.0},
            {"iteration": 9, "mAP": 40.0, "Rank-1": 60.0, "diagnostic_with_labels/ari": 0.5}]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    expected = {"mAP": 40.0, "Rank-1": 60.0, "start mAP": 3.0, "clusters": 7.0, "outliers": 2.0,
                "ARI": 0.5}
    assert ablation_report.read_figures(tmp_path, 9) == expected
    assert ablation_report.read_figures(tmp_path, 8) == expected  # evaluated after training
    with pytest.raises(ValueError, match="of iteration 9, training ends at 14"):
        ablation_report.read_figures(tmp_path, 14)
    with pytest.raises(ValueError, match="has no final checkpoint"):
        ablation_report.read_figures(tmp_path, None)  # the config does not tell where it ends
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    assert ablation_report.read_figures(tmp_path, None) == expected


def test_half_a_line_of_metrics_is_left_out(tmp_path):
    (tmp_path / "metrics.json").write_bytes(
        b'{"iteration": 9, "mAP": 4.0, "Rank-1": 6.0}\n\xff{')
    assert ablation_report.read_figures(tmp_path, 9) == {"mAP": 4.0, "Rank-1": 6.0}
    (tmp_path / "metrics.json").write_bytes(
        b'{"iteration": 2, "mA\n{"iteration": 9, "mAP": 4.0, "Rank-1": 6.0}\n')
    with pytest.raises(ValueError, match="no mAP and Rank-1: .* is damaged, its line 1"):
        ablation_report.read_figures(tmp_path, 9)


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
    assert table_rows(ablation_report.summary_table(summary))[2:] == [
        ["plain", "about plain", "3 of 3", "45.00 (5.57)", "-", "60.00 (0.00)", "-", "4.0"],
        ["own", "about own", "3 of 3", "45.67 (4.54)", "+1.25 (0.35)", "69.00 (18.19)",
         "-1.50 (0.71)", "7.5"],
        ["one", "about one", "1 of 2", "43.00", "-1.00", "60.00", "+0.00", "-"]]
    assert [row["pairs"] for row in summary] == [0, 2, 1]
    cells = table_rows(ablation_report.page({"Seeds": "1, 2"}, results, summary, "plain"))
    assert ["row", "seed", "state", "mAP", "Rank-1", "clusters", "minutes"] in cells
    assert ["own", "1", "finished", "41.50", "58.00", "11", "-"] in cells
    assert ["one", "1", "failed: exit status 1", "-", "-", "-", "-"] in cells


def test_two_rows_of_real_training(tiny_market, tmp_path, monkeypatch, capsys):
    def start(command, stdout, env, **options):
        return warm.start(command[1:], out=stdout.name, env=env)

    monkeypatch.setattr(ablation_runs, "subprocess", types.SimpleNamespace(
        Popen=start, run=subprocess.run, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT))
    out = tmp_path / "out"
    words = ["--family", "synthetic", "--output", str(out), "--rows", "baseline", "centre",
             "--seeds", "2", "--jobs", "2", *KEYS, "CAUREID.DIAGNOSTICS", "True"]
    assert status(words) == 0, capsys.readouterr().out
    lines = {line["row"]: line for line in read_csv(out / "table.csv")}
    scores = {}
    for row in ("baseline", "centre"):
        rows, _ = read_rows(out / f"{row}-seed2" / "metrics.json")
        losses = {key for r in rows for key in r if key.startswith("loss_")}
        assert losses == (  # FastReID logs the parts of a total, not one loss alone
            {"loss_infonce", "loss_camsep", "loss_cacc"} if row == "centre" else set())
        for name, key in (("mAP", "mAP"), ("Rank-1", "Rank-1"), ("start mAP", "start/mAP"),
                          ("clusters", "labels/clusters"), ("ARI", "diagnostic_with_labels/ari")):
            assert float(lines[row][name]) == [r[key] for r in rows if key in r][-1], name
        scores[row] = float(lines[row]["mAP"])
        assert float(lines[row]["minutes"]) > 0
    # full was not asked for, and is there because centre is the same
    assert lines["full"]["same_as"] == "centre-seed2"
    summary = {line["row"]: line for line in read_csv(out / "summary.csv")}
    assert float(summary["centre"]["mAP difference"]) == pytest.approx(
        scores["centre"] - scores["baseline"])
    assert is_drawn(out / "ablation.png")

    # the trainer's own config.yaml is recognised
    (out / "baseline-seed2" / "finished.json").unlink()
    before = (out / "baseline-seed2.log").read_text()
    assert status(words) == 0
    assert (out / "baseline-seed2.log").read_text() == before
