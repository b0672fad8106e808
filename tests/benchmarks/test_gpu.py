"""The benchmark for a GPU: its stages on tiny sizes, and what becomes of those that go wrong."""

import json
import os
import re
import signal
import subprocess
import time
import types

import psutil
import pytest
from caureid_plugin.ablation import runs as ablation_runs

from benchmarks import clustering, gpu, gpu_notes, gpu_stages, scaling
from benchmarks.gpu_notes import Notes
from helpers import warm
from helpers.tiny import KEYS
from helpers.tool_output import refusal, table_rows

# Notes that it was called, and does what todo.json asks for its stage. Of the facts none is true.
STUB = """
import json, os, signal, subprocess, sys, time
from pathlib import Path

from benchmarks.gpu_notes import Notes, NotMeasured

stage, settings, path = sys.argv[1:]
work, notes = Path(settings).parent, Notes(Path(path))
todo = json.loads((work / "todo.json").read_text()).get(stage, {})
with (work / "calls").open("a") as file:
    file.write(stage + chr(10))
print("first words of", stage, flush=True)
if stage == "facts":
    for what, value in {"device": "A100", "torch": "9.9", "processor": "8086", **todo}.items():
        notes.put(what, {"value": value})
    sys.exit()

def fail():
    raise ValueError("no such thing" + chr(10) + "a second line")

def cannot():
    raise NotMeasured("there is no faiss")

notes.measure("one", lambda: {"s": 1.5})
notes.remark("A remark.")
for name, function in (("fails", fail), ("impossible", cannot)):
    if name in todo:
        notes.measure(name, function)
notes.measure("two", lambda: {"s": 2.5})
if "raises" in todo:
    raise KeyError("a bug")
if "signal" in todo:
    os.kill(os.getpid(), todo["signal"])
if "hangs" in todo:
    child = subprocess.Popen(["sleep", "600"])
    (work / "pid").write_text(str(child.pid))
    if "interrupts" in todo:
        os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(600)
sys.exit(1 if notes.failures else 0)
"""


class Stubbed:
    """The tool with the stub in place of its stages; what it is to do, what was called."""

    def __init__(self, folder):
        self.output, self.work, self.todo = folder, folder / "work", {}
        self.work.mkdir(parents=True)

    def __call__(self, *words):
        (self.work / "calls").unlink(missing_ok=True)
        (self.work / "todo.json").write_text(json.dumps(self.todo))
        return gpu.main(["--output", str(self.output), "--commit", "abc", *words])

    @property
    def calls(self):
        return (self.work / "calls").read_text().split()

    @property
    def stages(self):
        return json.loads((self.output / "results.json").read_text())["stages"]

    @property
    def states(self):
        return {name: stage["state"] for name, stage in self.stages.items()}

    @property
    def page(self):
        return (self.output / "results.md").read_text()


@pytest.fixture
def tool(tmp_path, monkeypatch):
    stub = tmp_path / "stub.py"
    stub.write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", str(warm.REPOSITORY / "tools"))
    monkeypatch.setattr(gpu, "SCRIPT", stub)
    monkeypatch.setattr(gpu, "POLL_SECONDS", 0.01)
    hangup = signal.getsignal(signal.SIGHUP)
    yield Stubbed(tmp_path / "out")
    signal.signal(signal.SIGHUP, hangup)


@pytest.fixture
def fast_clock(monkeypatch):
    """Lets a minute pass in two seconds."""
    monkeypatch.setattr(gpu, "time", types.SimpleNamespace(
        monotonic=lambda: 30 * time.monotonic(), sleep=time.sleep))
    monkeypatch.setattr(gpu, "END_SECONDS", 10)


WITHOUT_DATA = ["tests", "clustering", "steps", "loader", "toolbox"]
DONE = dict.fromkeys(["facts", *WITHOUT_DATA], "finished") | {"rows": "not run"}


def test_every_stage_once(tool, capsys):
    assert tool() == 0
    assert tool.calls == ["facts", *WITHOUT_DATA] and tool.states == DONE
    page = tool.page
    assert page.startswith("# Measured on A100\n") and "Failed" not in page
    rows = table_rows(page)
    assert ["torch", "9.9"] in rows and rows.count(["one", "1.5"]) == 5
    assert page.count("\n- A remark.\n") == 5
    assert page.endswith("## Not measured\n\n- The method's rows: not run, --data was not given.\n")
    assert (tool.output / "log.txt").read_text().count("first words of") == 6
    before = tool.stages["steps"]
    assert tool() == 0  # all is kept, and the machine looked at again
    assert tool.calls == ["facts"] and tool.stages["steps"] == before
    assert "Loader: finished before" in capsys.readouterr().out


def test_what_is_left_is_shared_by_the_stages_to_come(tool, monkeypatch, capsys):
    """Where no time passes each has its part of all of it: 9 minutes less the seconds to end."""
    monkeypatch.setattr(gpu, "time", types.SimpleNamespace(
        monotonic=lambda: 0.0, sleep=time.sleep))
    assert tool("--minutes", "9") == 0
    limits = re.findall(r"at most (\d+) s", capsys.readouterr().out)
    parts = [12 / 108, 15 / 81, 25 / 66, 20 / 41, 6 / 21, 15 / 15]  # the rows have none
    assert limits == [f"{(9 * 60 - 25) * part:.0f}" for part in parts]


def test_stages_that_are_chosen(tool):
    assert tool("--stages", "loader,tests") == 0
    assert tool.calls == ["facts", "tests", "loader"]
    assert "- Clustering: not run, it was not asked for, or not reached." in tool.page


def test_failures_are_said_and_the_other_stages_run(tool):
    tool.todo = {"tests": {"raises": 1}, "clustering": {"fails": 1, "impossible": 1},
                 "steps": {"signal": signal.SIGKILL}, "loader": {"impossible": 1}}
    assert tool() == 1
    failed = dict.fromkeys(["tests", "clustering", "steps"], "failed")
    assert tool.calls == ["facts", *WITHOUT_DATA] and tool.states == DONE | failed
    page = tool.page
    assert "**Failed: Tests marked cuda, Clustering, Training steps.**" in page
    for line in (
            "- Tests marked cuda: failed, KeyError: 'a bug'. Measured before that: one, two.",
            ("- Clustering: failed, fails: ValueError: no such thing a second line. Measured "
             "before that: one, two."), "- Clustering, impossible: there is no faiss.",
            "- Clustering, fails: ValueError: no such thing a second line.",
            ("- Training steps: failed, ended by SIGKILL, perhaps for want of memory. Measured "
             "before that: one, two."), "- Loader, impossible: there is no faiss."):
        assert line in page.splitlines()
    assert table_rows(page).count(["fails", "not measured"]) == 1
    assert "ValueError: no such thing\na second line" in (tool.output / "log.txt").read_text()

    tool.todo = {}
    assert tool() == 0  # only what failed, and of that only what is missing
    assert tool.calls == ["facts", "tests", "clustering", "steps"]
    assert tool.states == DONE
    log = (tool.output / "log.txt").read_text()
    assert log.count("one: measured before\n") == 3 and "Failed" not in tool.page


def test_a_stage_that_hangs_is_cut_off_and_keeps_what_it_has(tool, fast_clock):
    tool.todo = {"tests": {"hangs": 1}}
    assert tool("--minutes", "1.5") == 3
    assert tool.states == DONE | {"tests": "cut off"}
    assert re.search(r"- Tests marked cuda: cut off, its \d+ s were over\.", tool.page)
    assert [row["what"] for row in tool.stages["tests"]["rows"]] == ["one", "two"]
    assert is_gone(int((tool.work / "pid").read_text()))


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # nobody reaps in a container
    except psutil.NoSuchProcess:
        return True


def test_no_time_is_left(tool, fast_clock, monkeypatch):
    monkeypatch.setitem(gpu.SHARES, "tests", 100_000)
    monkeypatch.setitem(gpu.SHARES, "facts", 60_000)  # else 5 s, of this clock, to start a process
    tool.todo = {"tests": {"hangs": 1}}
    assert tool("--minutes", "1") == 3
    assert tool.calls == ["facts", "tests"]
    assert "- Loader: not run, nothing was left of --minutes 1." in tool.page


def test_interrupted(tool, capsys):
    tool.todo = {"clustering": {"hangs": 1, "interrupts": 1}}
    assert tool() == 130
    assert "results.md has what was found" in capsys.readouterr().err
    assert tool.states == {"facts": "finished", "tests": "finished", "clustering": "cut off",
                           "rows": "not run"}
    assert "- Clustering: cut off, it was interrupted. Measured before that: one, two." in tool.page
    assert is_gone(int((tool.work / "pid").read_text()))


def test_without_a_gpu(tool, capsys):
    tool.todo = {"facts": {"device": "CPU"}}
    assert tool() == 2 and tool.calls == ["facts"]
    output = capsys.readouterr().err
    assert "--device cuda needs a GPU, and torch 9.9 finds none: give --device cpu" in output
    assert tool("--device", "cpu") == 0


def test_results_of_another_machine_are_left_alone(tool, capsys):
    assert tool() == 0
    before = {name: (tool.output / name).read_text() for name in ("results.json", "results.md")}
    tool.todo = {"facts": {"torch": "9.10"}}
    assert tool() == 2 and tool.calls == ["facts"]
    error = capsys.readouterr().err
    assert f"--output {tool.output} holds results of another kind (torch: 9.9 there, 9.10" in error
    assert json.loads(before["results.json"])["stages"] == tool.stages
    tool.todo = {}
    assert tool() == 0


def test_rows_are_run_with_data(tool, tiny_market, tmp_path):
    weights = tmp_path / "weights.pth"
    weights.touch()
    assert tool("--data", str(tiny_market), "--weights", str(weights), "SOLVER.MAX_EPOCH", "3") == 0
    assert tool.calls == ["facts", *WITHOUT_DATA, "rows"]
    settings = json.loads((tool.work / "settings.json").read_text())
    assert settings["keys"] == ["SOLVER.MAX_EPOCH", "3"] and settings["sizes"][-1] == 1_000_000
    assert (settings["data"], settings["weights"]) == (str(tiny_market), str(weights))


@pytest.mark.parametrize("words, message", [
    ("--minutes 0", "--minutes 0 must be at least 1"),
    ("--minutes nan", "--minutes nan must be at least 1"),
    ("--stages facts,step", "--stages 'step' is unknown, known are facts,tests,"),
    ("--device tpu", "--device tpu must be cpu or cuda[:i]"),
    ("--data {tmp}/none", "none must be a folder that holds Market-1501-v15.09.15"),
    ("--data {tmp} --weights {tmp}/w.pth", "--data {tmp} must be a folder that holds Market"),
    ("--data {market}", "--data needs --weights FILE"),
    ("--data {market} --weights {tmp}/none.pth", "--weights {tmp}/none.pth must be a file"),
    ("--weights {tmp}/w.pth", "--weights is for the rows, which need --data"),
    ("SOLVER.MAX_EPOCH 3", "KEY VALUE is for the rows, which need --data"),
    ("--data {market} --weights {tmp}/w.pth SOLVER.MAX_EPOCH", "must come in pairs"),
    ("--output {tmp}/w.pth", "w.pth is a file, and must be a folder"),
])
def test_bad_options(words, message, tmp_path, tiny_market, capsys):
    (tmp_path / "w.pth").touch()
    places = {"tmp": tmp_path, "market": tiny_market}
    given = ["--output", str(tmp_path / "out"), *words.format(**places).split()]
    assert message.format(**places) in refusal(gpu.main, given, capsys)


def test_a_table_by_hand():
    lines = gpu_notes.table([{"what": "a", "s": 1234.5, "n": 1234567, "same": True},
                             {"what": "b|c", "s": 0.012345, "not measured": "why"}]).splitlines()
    assert lines == ["| what | s | n | same |", "| --- | ---: | ---: | ---: |",
                     "| a | 1,234 | 1,234,567 | True |", r"| b\|c | not measured |  |  |"]
    assert table_rows(gpu_notes.table([{"what": "a", "not measured": "why"}]))[2] == [
        "a", "not measured"]


# -------------------------------------------------------------------------- the real stages ----


@pytest.fixture
def measured(tmp_path):
    """Runs a stage in this process with the sizes of --quick; gives its notes."""

    def run(stage, **changes):
        settings = {**gpu.QUICK, "device": "cpu", "quick": True, "data": None, "weights": None,
                    "keys": [], "work": str(tmp_path), "commit": "", **changes}
        notes = Notes(tmp_path / f"{stage}.json")
        gpu_stages.STAGES[stage](settings, notes)
        assert json.loads(notes.path.read_text())["rows"] == notes.rows
        return notes

    return run


def by_name(notes):
    return {row["what"]: row for row in notes.rows}


def test_facts_and_marked_tests_in_processes_of_their_own(tmp_path, monkeypatch):
    def start(command, stdout, env, **options):
        return warm.start(command[1:], out=stdout.name, env={**env, "CUDA_VISIBLE_DEVICES": ""})

    monkeypatch.setattr(gpu, "subprocess", types.SimpleNamespace(
        Popen=start, DEVNULL=None, STDOUT=None, TimeoutExpired=subprocess.TimeoutExpired))
    monkeypatch.setenv("PYTEST_ADDOPTS", "--randomly-seed=1")  # of a plugin that it turns off
    output = tmp_path / "out"
    assert gpu.main(["--stages", "tests", "--quick", "--device", "cpu", "--output",
                     str(output)]) == 0, (output / "log.txt").read_text()[-3000:]
    stages = json.loads((output / "results.json").read_text())["stages"]
    facts = {row["what"]: row["value"] for row in stages["facts"]["rows"]}
    assert facts["device"] == "CPU" and facts["sizes"] == "quick" and facts["rows"] == "-"
    assert facts["commit"] == ablation_runs.code_commit() and facts["memory, GiB"] > 0.5
    rows = stages["tests"]["rows"]
    assert len(rows) > 7 and {row["not measured"] for row in rows} == {"needs a GPU"}
    assert {row["what"].partition("::")[0] for row in rows} == {
        "test_cuda.py", "compat/test_optimisation.py"}


@pytest.mark.parametrize("report, row", [
    (dict(when="call", failed=False, skipped=False, duration=1.5),
     {"result": "passed", "seconds": 1.5}),
    (dict(when="setup", failed=False, skipped=True, longrepr=("f", 3, "Skipped: needs a GPU")),
     {"not measured": "needs a GPU"}),
    (dict(when="call", failed=True, skipped=False, longrepr=types.SimpleNamespace(
        reprcrash=types.SimpleNamespace(message="assert 1 == 2\nmore"))),
     {"not measured": "failed: assert 1 == 2"}),
    (dict(when="teardown", failed=False, skipped=False), None)])
def test_what_is_noted_of_a_test(tmp_path, report, row):
    notes = Notes(tmp_path / "notes.json")
    recorder = gpu_stages._Recorder(notes)
    recorder.pytest_runtest_logreport(types.SimpleNamespace(nodeid="tests/a.py::t", **report))
    assert notes.rows == ([{"what": "a.py::t", **row}] if row else [])
    assert bool(notes.failures) == report["failed"]


def test_clustering(measured, monkeypatch):
    monkeypatch.setattr(scaling, "subprocess", types.SimpleNamespace(
        run=lambda command, env, check: warm.run(command[1:], os.getcwd(), env=env)))
    notes = measured("clustering", sizes=[600], dim=32)
    row, = notes.rows
    assert row["what"] == "600 x 32" and row["clusters"] > 3 and 0.9 < row["recall"] <= 1
    assert 0 < row["search, s"] < row["total, s"] and notes.failures == []


def test_clustering_against_the_toolbox(measured):
    notes = measured("toolbox", toolbox_sizes=[240], dim=16)
    row, = notes.rows
    assert row["labels"] == "same" and 0 < row["largest difference of a distance"] < 1e-5
    assert row["times as fast"] == pytest.approx(row["FastReID, s"] / row["plugin, s"])
    assert notes.remarks == [
        "FastReID searches on the CPU here, and does all else on the CPU."]


def test_what_the_toolbox_cannot_do_is_no_failure(measured, monkeypatch):
    monkeypatch.setattr(clustering, "dense_memory", lambda n: 1e9)
    notes = measured("toolbox", toolbox_sizes=[240], dim=16)
    row, = notes.rows
    assert row["not measured"].startswith("FastReID cannot do it here, MemoryError: two dense")
    assert notes.failures == []


def test_steps(measured):
    notes = measured("steps", compiler="eager", step_words=[
        *gpu.QUICK["step_words"], "INPUT.SIZE_TRAIN", "[16,8]"])
    rows = by_name(notes)
    assert list(rows) == ["fp32, default", "fp32, default, compiled", "fp32, channels_last",
                          "fp32, channels_last, compiled"]
    for name, row in rows.items():
        assert "not measured" not in row, name
        ratio = float(row["ratio (95 %)"].partition(" ")[0])
        assert ratio == pytest.approx(row["CAUReID, ms"] / row["Baseline, ms"], abs=1e-3)
        assert row["CAUReID, first loss"] == pytest.approx(
            rows["fp32, default"]["CAUReID, first loss"], rel=1e-3)
    assert "Mixed precision is not measured" in notes.remarks[0] and len(notes.remarks) == 3


@pytest.mark.parametrize("found, reason", [
    ({"Baseline, first loss": 3.0, "CAUReID, first loss": 5.0},
     "torch.compile does not hold, CAUReID, first loss is 5 in place of 4"), (None, "BackendCom")])
def test_a_compiler_that_does_not_hold(tmp_path, monkeypatch, found, reason):
    from torch._dynamo.exc import TorchDynamoException

    def step(*args, compiler):
        if found:
            return found
        raise TorchDynamoException("BackendCompilerFailed")

    monkeypatch.setattr(gpu_stages, "_step", step)
    notes = Notes(tmp_path / "notes.json")
    notes.put("fp32, default", {"Baseline, first loss": 3.0, "CAUReID, first loss": 4.0})
    with pytest.raises(gpu_notes.NotMeasured, match=reason):
        gpu_stages._compiled_step(None, None, "fp32", "default", notes, "inductor")
    with pytest.raises(gpu_notes.NotMeasured, match="without torch.compile was not measured"):
        gpu_stages._compiled_step(None, None, "amp", "default", notes, "inductor")


def test_loader(measured, tiny_market):
    notes = measured("loader", data=str(tiny_market), workers=[0, 1], loader_seconds=0,
                     small=[*gpu.SMALL, "MODEL.HEADS.CAMSEP.NUM_CAMERAS", "2"])
    rows = by_name(notes)
    assert list(rows) == ["0 workers", "1 workers"]
    assert all(row["images/s"] > 0 for row in rows.values())
    assert notes.remarks == ["48 images of Market1501; batches of 16 at 32 x 16."]


def test_rows(measured, tiny_market, monkeypatch, tmp_path):
    def start(command, stdout, env, **options):
        return warm.start(command[1:], out=stdout.name, env=env)

    monkeypatch.setattr(ablation_runs, "subprocess", types.SimpleNamespace(
        Popen=start, run=subprocess.run, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT))
    monkeypatch.setattr(gpu_stages, "ROWS", {"cacc": gpu_stages.ROWS["cacc"]})
    notes = measured("rows", data=str(tiny_market), small=KEYS, small_rows=[],
                     keys=["SOLVER.MAX_EPOCH", "1"])
    rows = by_name(notes)
    assert 0 < rows["cacc"]["mAP"] <= 100 and rows["cacc"]["minutes"] > 0
    assert notes.failures == []
    finished = json.loads((tmp_path / "rows" / "cacc-seed1" / "finished.json").read_text())
    assert rows["cacc"]["mAP"] == pytest.approx(finished["figures"]["mAP"])


def test_rows_that_did_not_end(measured, monkeypatch, tmp_path):
    with pytest.raises(KeyError, match=r"SOLVER\.MAX_EPOC"):
        measured("rows", keys=["SOLVER.MAX_EPOC", "1"])
    output = tmp_path / "rows"
    (output / "full-seed1").mkdir(parents=True)
    (output / "table.csv").write_text(
        "row,title,seed,state,same_as\nfull,f,1,not finished,\ncacc,c,1,failed: exit status 1,\n")
    (output / "full-seed1" / "metrics.json").write_text('{"iteration": 10}\n{"iteration": 1199}\n')
    monkeypatch.setattr(gpu_stages.Ablation, "of", lambda args: types.SimpleNamespace(
        run_to_the_end=lambda: 130))
    notes = measured("rows")
    rows = by_name(notes)
    assert rows["full"]["not measured"] == "not finished, at step 1,200"
    assert notes.failures == ["cacc: failed: exit status 1"]
