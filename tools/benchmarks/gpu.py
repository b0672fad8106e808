#!/usr/bin/env python3
"""Measures the project on a GPU, within a number of minutes.

    tools/benchmarks/gpu.py --minutes 9 --output logs/gpu
    tools/benchmarks/gpu.py --minutes 60 --output logs/gpu --data datasets \\
        --weights resnet50.pth SOLVER.MAX_EPOCH 8 SOLVER.STEPS "[6]"
    tools/benchmarks/gpu.py --device cpu --quick --output logs/quick      # tiny: to see it work

Stages: facts of the machine, the tests marked cuda, clustering, training steps, the loader,
clustering against FastReID's own, and with --data the method's rows on Market-1501. Each has a
share of the minutes, to which what earlier ones left is added, and a process of its own. What a
stage has found is in results.json and results.md of the output folder at once.

The same command again keeps what is finished, and goes on with the rest. It ends with 1 if a
stage failed, with 3 if one was cut off or not reached, else with 0.
"""

import argparse
import copy
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

# started as a script, Python looks only in this folder
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from caureid_plugin.common.files import write_atomically

from benchmarks.gpu_notes import CUT, FAILED, FINISHED, NOT_RUN, WHAT, page

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "benchmarks" / "gpu_stages.py"
TITLES = {"facts": "Machine", "tests": "Tests marked cuda", "clustering": "Clustering",
          "steps": "Training steps", "loader": "Loader", "toolbox": "Clustering against FastReID",
          "rows": "The method's rows"}
SHARES = {"facts": 12, "tests": 15, "clustering": 25, "steps": 20, "loader": 6, "toolbox": 15,
          "rows": 15}  # of the minutes, in the order of running
MARKET = "Market-1501-v15.09.15"
ALIKE = ("device", "processor", "driver", "CUDA", "cuDNN", "torch", "commit", "sizes", "rows")
END_SECONDS = 25.0  # for a stage to end: a training finishes its step and saves a checkpoint
LEAST_SECONDS = 5.0  # with less than that a stage is not begun
POLL_SECONDS = 0.1

FULL = {
    "sizes": [12_936, 100_000, 1_000_000], "dim": 2048, "toolbox_sizes": [12_936, 100_000],
    "step_words": [], "compiler": "inductor", "workers": [0, 2, 4, 8, 16], "loader_seconds": 5,
    "small": [], "small_rows": []}
# keys of a network and images that a CPU trains in seconds
SMALL = """
MODEL.BACKBONE.NAME build_plain_backbone MODEL.BACKBONE.PRETRAIN False MODEL.BACKBONE.FEAT_DIM 16
MODEL.BACKBONE.LAST_STRIDE 2 INPUT.SIZE_TRAIN [32,16] INPUT.SIZE_TEST [32,16]
SOLVER.IMS_PER_BATCH 16 MODEL.BN_GROUP_SIZE 8""".split()
SMALL_ROWS = """
SOLVER.MAX_EPOCH 1 SOLVER.ITERS_PER_EPOCH 3 DATALOADER.NUM_WORKERS 0 TEST.EVAL_PERIOD 1
MODEL.BACKBONE.WITH_IBN True CAUREID.CLUSTER.CAMERA_AWARE False CAUREID.CLUSTER.K1 12
CAUREID.CLUSTER.K2 2 CAUREID.CLUSTER.EPS 0.6 CAUREID.CLUSTER.MIN_SAMPLES 2""".split()
QUICK = {
    "sizes": [500, 2_000], "dim": 64, "toolbox_sizes": [500],
    "step_words": ["--steps=3", "--warm-up=1", "--images=100", "--clusters=10", "--classes=10",
                   "--threads=1", *SMALL],
    "compiler": "aot_eager", "workers": [0, 2], "loader_seconds": 1, "small": SMALL,
    "small_rows": SMALL_ROWS}


# ------------------------------------------------------------------------------ stages ----


class Stopped(Exception):
    """The results of the output folder cannot be gone on with. Its text is for the user."""


def facts_of(results: dict) -> dict[str, object]:
    """{what: value} of the machine that results were measured on; empty if nothing was."""
    return {row[WHAT]: row["value"] for row in results["stages"].get("facts", {}).get("rows", ())}


class Measuring:
    """The stages of one call, and the results that it goes on with.

    Attributes:
        results: as :func:`benchmarks.gpu_notes.page` takes them.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self._end = time.monotonic() + 60 * args.minutes - END_SECONDS
        path = args.output / "results.json"
        self.results = json.loads(path.read_text()) if path.is_file() else {"stages": {}}
        self._before = copy.deepcopy(self.results)
        self.results["command"] = args.command
        args.work.mkdir(parents=True, exist_ok=True)
        chosen = ("device", "quick", "data", "weights", "keys", "work", "commit")
        write_atomically(args.work / "settings.json", json.dumps(
            {**(QUICK if args.quick else FULL), **{name: getattr(args, name) for name in chosen}},
            default=str, indent=1))

    def run(self) -> None:
        """Runs what is asked for and not finished.

        Raises:
            Stopped: there is no GPU, or the folder's results are of something else.
        """
        self._run("facts", sum(SHARES.values()))
        try:
            self._check_facts()
        except Stopped:
            if self._before["stages"]:  # which stay as they were
                self.results = self._before
                self._write()
            raise
        waiting = []
        for name in self.args.stages:
            if name == "rows" and not (self.args.data or self.args.quick):
                self._set(name, state=NOT_RUN, why="--data was not given")
            elif self._state(name) != FINISHED:
                waiting.append(name)
            elif name != "facts":
                print(f"{TITLES[name]}: finished before", flush=True)
        while waiting:
            self._run(waiting[0], sum(SHARES[name] for name in waiting))
            del waiting[0]

    def _state(self, name: str) -> str | None:
        return self.results["stages"].get(name, {}).get("state")

    def _check_facts(self) -> None:
        """Whether there is a GPU, and what is there was measured on this machine, with this code.
        """
        if self._state("facts") != FINISHED:
            raise Stopped("the machine cannot be described: "
                          f"{self.results['stages']['facts']['why']}; see {self._log}")
        facts, before = (facts_of(results) for results in (self.results, self._before))
        if facts["device"] == "CPU" != self.args.device.upper():
            raise Stopped(f"--device {self.args.device} needs a GPU, and torch {facts['torch']} "
                          "finds none: give --device cpu (with --quick two to three minutes)")
        for name in ALIKE if before else ():
            old, new = (known.get(name, "unknown") for known in (before, facts))
            if old != new and not (name == "rows" and "-" in (old, new)):
                raise Stopped(f"--output {self.args.output} holds results of another kind "
                              f"({name}: {old} there, {new} here): choose another folder")

    @property
    def _log(self) -> Path:
        return self.args.output / "log.txt"

    def _run(self, name: str, shares: int) -> None:
        """One stage, in a process of its own; its time is its part of ``shares``."""
        left = self._end - time.monotonic()
        if left < LEAST_SECONDS:
            self._set(name, state=NOT_RUN,
                      why=f"nothing was left of --minutes {self.args.minutes:g}")
            return
        limit = max(left * SHARES[name] / shares, LEAST_SECONDS)
        print(f"{TITLES[name]}: at most {limit:.0f} s", flush=True)
        notes = self.args.work / f"{name}.json"
        old = self.results["stages"].get(name, {}) if name != "facts" else {}
        write_atomically(notes, json.dumps({key: old.get(key, []) for key in ("rows", "remarks")}))
        start, state, why = time.monotonic(), CUT, "it was interrupted"
        with self._log.open("ab") as log:
            size = log.tell()
            process = subprocess.Popen(
                [sys.executable, str(SCRIPT), name, str(self.args.work / "settings.json"),
                 str(notes)], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                cwd=ROOT, env=self._environment(), start_new_session=True)
        try:
            while (code := process.poll()) is None and time.monotonic() - start < limit:
                self._take_over(name, notes)
                time.sleep(POLL_SECONDS)
            if code is None:
                why = f"its {limit:.0f} s were over"
            else:
                state, why = (FAILED, self._reason(notes, code, size)) if code else (FINISHED, "")
        finally:
            end(process)
            self._take_over(name, notes)
            self._set(name, state=state, why=why, seconds=time.monotonic() - start)
        print(f"{TITLES[name]}: {state} after {time.monotonic() - start:.0f} s"
              f"{why and ', '}{why}", flush=True)

    def _environment(self) -> dict[str, str]:
        """In which the plugin is found, installed or not, and the data are.

        Without PYTEST_ADDOPTS: it may ask for plugins that the stage of tests turns off.
        """
        paths = [str(ROOT), os.environ.get("PYTHONPATH")]
        threads = {"OMP_NUM_THREADS": "1"} if self.args.quick else {}  # more would only wait
        own = {name: text for name, text in os.environ.items() if name != "PYTEST_ADDOPTS"}
        return {**threads, **own, "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "FASTREID_DATASETS": str(self.args.data or self.args.work / "images")}

    def _take_over(self, name: str, notes: Path) -> None:
        """What the stage has noted, into the results, if that is new."""
        found = json.loads(notes.read_text())
        new = {key: found[key] for key in ("rows", "remarks")}
        if new != {key: self.results["stages"].get(name, {}).get(key) for key in new}:
            self._set(name, **new, state=CUT, why="gpu.py itself was ended")

    def _set(self, name: str, **changes: object) -> None:
        """Changes what is known of a stage, and writes the files of the output folder."""
        self.results["stages"].setdefault(name, {}).update(changes)
        self._write()

    def _write(self) -> None:
        write_atomically(self.args.output / "results.json", json.dumps(self.results, indent=1))
        write_atomically(self.args.output / "results.md", page(self.results, TITLES))

    def _reason(self, notes: Path, code: int, size: int) -> str:
        """Why a stage failed: its own word, a signal, or the last line of its output."""
        failures = json.loads(notes.read_text()).get("failures")
        if failures:
            return "; ".join(failures)
        if code < 0:
            return f"ended by {signal.Signals(-code).name}" + (
                ", perhaps for want of memory" if code == -signal.SIGKILL else "")
        lines = self._log.read_bytes()[size:].decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), f"status {code}")

    def status(self) -> int:
        """The exit status, by the states of the stages that were asked for."""
        states = {self._state(name) for name in self.args.stages
                  if name != "rows" or self.args.data or self.args.quick}
        return 1 if FAILED in states else 3 if states - {FINISHED} else 0


def end(process: subprocess.Popen) -> None:
    """Ends a stage with all that it has started: politely, then for good."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)


# ------------------------------------------------------------------------ command line ----


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line; paths come back absolute, "stages" in their order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0,
                        help="for all stages together (default: %(default)g)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR",
                        help="folder of results.json, results.md and log.txt")
    parser.add_argument("--work", type=Path, metavar="DIR",
                        help="folder of checkpoints and rendered images (default: work in "
                             "--output)")
    parser.add_argument("--stages", metavar="NAMES", default=",".join(SHARES),
                        help="which to run, with commas (default: all; facts is always run)")
    parser.add_argument("--data", type=Path, metavar="DIR",
                        help=f"folder that holds {MARKET}: trains the method's rows on it")
    parser.add_argument("--weights", type=Path, metavar="FILE",
                        help="weights that the rows' backbone starts from; --data needs it")
    parser.add_argument("--device", default="cuda", help="cpu or cuda[:i] (default: %(default)s)")
    parser.add_argument("--quick", action="store_true",
                        help="tiny sizes and the embedded images: whether every stage works")
    parser.add_argument("--commit", default="", metavar="TEXT",
                        help="what is measured, for a copy that git does not know")
    parser.add_argument("keys", nargs=argparse.REMAINDER, metavar="KEY VALUE",
                        help="config keys of the rows, after all options")
    args = parser.parse_args(argv)
    args.command = shlex.join(["tools/benchmarks/gpu.py", *(sys.argv[1:] if argv is None
                                                            else argv)])
    problem = _problem(args) or _data_problem(args)
    if problem:
        parser.error(problem)
    for name in ("output", "work", "data", "weights"):
        path = getattr(args, name)
        setattr(args, name, path and path.resolve())
    args.work = args.work or args.output / "work"
    return args


def _problem(args: argparse.Namespace) -> str | None:
    """What is wrong with time, stages, device and keys; "stages" becomes a list."""
    if not (math.isfinite(args.minutes) and args.minutes >= 1):
        return f"--minutes {args.minutes:g} must be at least 1: a stage needs seconds to end"
    given = args.stages.split(",")
    unknown = [name for name in given if name not in SHARES]
    if unknown:
        return f"--stages {unknown[0]!r} is unknown, known are {','.join(SHARES)}"
    args.stages = [name for name in SHARES if name in given]
    if args.device != "cpu" and args.device.partition(":")[0] != "cuda":
        return f"--device {args.device} must be cpu or cuda[:i]"
    if len(args.keys) % 2 or any(word.startswith("--") for word in args.keys):
        return f"config keys and values must come in pairs, after all options: {args.keys}"
    if args.output.exists() and not args.output.is_dir():
        return f"--output {args.output} is a file, and must be a folder or not be there"
    return None


def _data_problem(args: argparse.Namespace) -> str | None:
    """What is wrong with --data and --weights."""
    if args.data and not (args.data / MARKET).is_dir():
        return f"--data {args.data} must be a folder that holds {MARKET}, and there is none in it"
    if args.data and not args.weights and not args.quick:
        return "--data needs --weights FILE: rows that start from random weights say nothing"
    if args.weights and not args.weights.is_file():
        return f"--weights {args.weights} must be a file, and there is none"
    if not args.data and (args.weights or args.keys):
        return f"{'--weights' if args.weights else 'KEY VALUE'} is for the rows, which need --data"
    return None


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # as Ctrl-C: the stage is ended, too
    try:
        measuring = Measuring(args)
        measuring.run()
    except Stopped as reason:
        print(f"gpu.py: error: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"Interrupted; {args.output / 'results.md'} has what was found.", file=sys.stderr)
        return 130
    print(f"{args.output / 'results.md'} has what was found.")
    return measuring.status()


if __name__ == "__main__":
    sys.exit(main())
