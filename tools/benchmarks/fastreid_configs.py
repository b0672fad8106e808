#!/usr/bin/env python3
"""Runs FastReID's own configs and projects under the plugin: two steps each, on drawn images.

    tools/benchmarks/fastreid_configs.py --clone fast-reid --output logs/fastreid
    tools/benchmarks/fastreid_configs.py --clone fast-reid --output logs/fastreid --only vit

The clone gives configs, projects and their scripts and stays as it is; FastReID is the one that is
installed. Each config is trained for two steps and evaluated, on the CPU, by the clone's own
script, in a process of its own that imports the plugin first. Images, batch and length are tiny,
the weights random, and what of a project asks for a GPU is off; all other keys are the config's.

What became of each config is in results.jsonl of the output folder at once, the table of all in
results.md, what each has printed in logs/. The same command again keeps what ran with the same
versions, and tries the rest again.
"""

import argparse
import contextlib
import fnmatch
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import yaml

# started as a script, Python looks only in this folder
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fastreid_data import write_all

ROOT = Path(__file__).resolve().parents[2]
STEPS = 2
KEYS = f"""
MODEL.BACKBONE.PRETRAIN False INPUT.SIZE_TRAIN [96,32] INPUT.SIZE_TEST [96,32]
DATALOADER.NUM_WORKERS 0 DATALOADER.NUM_INSTANCE 2 SOLVER.IMS_PER_BATCH 8
SOLVER.ITERS_PER_EPOCH {STEPS} SOLVER.MAX_EPOCH 1 SOLVER.WARMUP_ITERS 0 SOLVER.DELAY_EPOCHS 0
TEST.EVAL_PERIOD 1 TEST.IMS_PER_BATCH 8
""".split()
# what a project needs beyond that, in place of what is named first
PROJECT_KEYS = {
    # images come in their own size, and are cut
    "FastClas": "INPUT.SIZE_TRAIN [0] INPUT.SIZE_TEST [64] INPUT.CROP.SIZE [64]",
    # the weights of its loss ask for CUDA
    "FastAttr": "MODEL.LOSSES.BCE.WEIGHT_ENABLED False",
    # its evaluation asks for faiss on a GPU
    "FastRetri": "INPUT.SIZE_TRAIN [64,64] INPUT.SIZE_TEST [64,64] INPUT.CROP.SIZE [64] "
                 "DATASETS.TESTS ()",
    # partial-fc asks for CUDA; the tests' files, for what reads and writes them
    "FastFace": "INPUT.SIZE_TRAIN [0] INPUT.SIZE_TEST [0] MODEL.HEADS.PFC.ENABLED False "
                "DATASETS.REC_PATH '' DATASETS.TESTS ()",
    # its head is made for this size; its distance asks for CUDA
    "PartialReID": "INPUT.SIZE_TRAIN [384,128] INPUT.SIZE_TEST [384,128] TEST.DSR.ENABLED False",
}
# configs that go on from a run of another one, whose folder is {run}
AFTER = {
    "projects/FastDistill/configs/kd-sbs_r101ibn-sbs_r34.yml": (
        "projects/FastDistill/configs/sbs_r101ibn.yml",
        "KD.MODEL_CONFIG ('{run}/config.yaml',) KD.MODEL_WEIGHTS ('{run}/model_final.pth',)"),
    "projects/NAIC20/configs/submit.yml": (
        "projects/NAIC20/configs/r34-ibn.yml",
        "--eval-only --commit MODEL.WEIGHTS {run}/model_final.pth"),
}
# the first line that a user would add, without a change to the script
START = """
import runpy, sys
import caureid_plugin
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
RUNS, CANNOT = "runs", "cannot"


# -------------------------------------------------------------------------------- plan ----


class Job(NamedTuple):
    """A config to be run, or a project that has none.

    Attributes:
        name: path of the config (or the project's folder) in the clone.
        script: path of what trains it in the clone; "" if there is nothing.
        words: of the command line behind ``--config-file``; may hold {run}.
        after: name of the job whose run it needs; "" for none.
    """

    name: str
    script: str
    words: tuple[str, ...] = ()
    after: str = ""

    @property
    def steps(self) -> int:
        """That it must do: none if it only evaluates."""
        return 0 if "--eval-only" in self.words else STEPS

    def command(self, start: Path, clone: Path, output: Path, runs: Path) -> list[str]:
        """The command line. The run that it needs, if any, is in ``runs``."""
        run = folder_of(runs, self.after)
        return [sys.executable, str(start), str(clone / self.script), "--config-file",
                str(clone / self.name), *(word.format(run=run) for word in self.words),
                "OUTPUT_DIR", str(output)]


def folder_of(parent: Path, name: str) -> Path:
    return parent / name.replace("/", "-")


def plan(clone: Path) -> list[Job]:
    """Every config of ``configs/`` and of each project, in an order that serves AFTER."""
    jobs = [Job(_name(path, clone), "tools/train_net.py", tuple(KEYS))
            for path in sorted((clone / "configs").rglob("*.y*ml"))]
    for project in sorted(path for path in (clone / "projects").glob("*") if path.is_dir()):
        scripts = sorted(project.glob("*_net.py"))
        configs = _configs_of(project / "configs")
        if not scripts or not configs:
            jobs.append(Job(_name(project, clone), ""))
        for path in configs if scripts else ():
            name = _name(path, clone)
            after, words = AFTER.get(name, ("", ""))
            options = [word for word in words.split() if word.startswith("--")]
            keys = [*KEYS, *shlex.split(PROJECT_KEYS.get(project.name, "")), *words.split()]
            keys = [word for word in keys if word not in options]
            jobs.append(Job(name, _name(scripts[0], clone), (*options, *keys), after))
    return sorted(jobs, key=lambda job: job.name in AFTER)  # stable


def _name(path: Path, clone: Path) -> str:
    return path.relative_to(clone).as_posix()


def _configs_of(folder: Path) -> list[Path]:
    """The configs in a project's folder that are not mere bases of others."""
    paths = sorted(folder.glob("*.y*ml"))
    contents = [yaml.safe_load(path.read_text(encoding="utf-8")) or {} for path in paths]
    bases = {content.get("_BASE_") for content in contents}
    return [path for path in paths if path.name not in bases]


# ----------------------------------------------------------------------------- outcome ----


def outcome(code: int | None, text: str, steps: int, wanted: int) -> dict[str, str]:
    """What became of a run.

    Args:
        code: its exit status; None if its time was over.
        text: what it printed.
        steps, wanted: how many steps it did, and should have done.

    Returns:
        "outcome": RUNS or CANNOT; for the latter "reason" on one line, and "by", whose code raised
        it: "plugin", "project" or "FastReID".
    """
    if code == 0 and steps >= wanted:
        return {"outcome": RUNS}
    errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*$", text, re.M)
    package = re.search(r"No module named '(\w+)'", errors[-1]) if errors else None
    if code == 0:
        reason = f"ended as if all were well after {steps} of {wanted} steps"
    elif code is None:
        reason = "did not end in time"
    elif code < 0:
        reason = f"ended by {signal.Signals(-code).name}"
    elif package:
        reason = f"needs {package[1]}, which is not installed"
    else:
        lines = errors or text.strip().splitlines() or [f"exit status {code}"]
        reason = " ".join(lines[-1].split())
    return {"outcome": CANNOT, "reason": reason, "by": _raised_by(text)}


def _raised_by(text: str) -> str:
    """Whose code is the innermost in the last traceback, what they call left aside."""
    of = {"/caureid_plugin/": "plugin", "/projects/": "project", "/fastreid/": "FastReID"}
    for path in reversed(re.findall(r'^ +File "(.+)", line', text, re.M)):
        for part, name in of.items():
            if part in path:
                return name
    return "FastReID"


def steps_of(output: Path) -> int:
    """How many steps a run has done, by its metrics.json."""
    from caureid_plugin.runs import metrics  # imports torch

    rows, _ = metrics.read_rows(output / "metrics.json")
    return rows[-1]["iteration"] + 1 if rows else 0


# --------------------------------------------------------------------------------- run ----


def versions(clone: Path) -> str:
    """What a result depends on, in one line."""
    parts = [f"Python {platform.python_version()}"]
    for package in ("torch", "torchvision", "numpy", "fastreid"):
        try:
            parts.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            parts.append(f"no {package}")
    found = subprocess.run(["git", "-C", str(clone), "rev-parse", "--short", "HEAD"],
                           check=False, capture_output=True, text=True)
    return ", ".join([*parts, f"clone {found.stdout.strip() or 'of an unknown commit'}"])


def read_results(path: Path) -> dict[str, dict]:
    """The last record of each name in a results.jsonl; a line that was cut short is left out."""
    found = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[record["name"]] = record
    return found


class Runner:
    """Runs jobs, in a temporary folder that holds the images and the runs that others need."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.work = args, work
        self.start = work / "start.py"
        self.start.write_text(START)
        write_all(work / "datasets")
        (args.output / "logs").mkdir(parents=True, exist_ok=True)

    def environment(self) -> dict[str, str]:
        """In which the plugin is found, installed or not, the images are, and no GPU."""
        paths = [str(ROOT), os.environ.get("PYTHONPATH")]
        return {"OMP_NUM_THREADS": "1", **os.environ, "CUDA_VISIBLE_DEVICES": "",
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "PYTHONDONTWRITEBYTECODE": "1",  # the clone stays as it is
                "FASTREID_DATASETS": str(self.work / "datasets")}

    def run(self, job: Job, jobs: list[Job]) -> dict:
        """One job, after the one that it needs; its record."""
        if not job.script:
            return {"outcome": CANNOT, "reason": "has no script in Python that trains",
                    "by": "project", "seconds": 0}
        if job.after and not folder_of(self.work, job.after).exists():
            self.run(next(other for other in jobs if other.name == job.after), jobs)
        output = folder_of(self.work, job.name)
        begin, code = time.monotonic(), None
        log = folder_of(self.args.output / "logs", job.name).with_suffix(".txt")
        with log.open("w") as file:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = subprocess.run(
                    job.command(self.start, self.args.clone, output, self.work),
                    stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                    cwd=self.args.clone, env=self.environment(), check=False,
                    timeout=self.args.seconds).returncode
        printed = log.read_text(errors="replace").replace(str(self.args.clone / job.name), "...")
        found = outcome(code, printed, steps_of(output), job.steps)
        if job.name not in {other.after for other in jobs}:
            shutil.rmtree(output, ignore_errors=True)
        return {**found, "seconds": round(time.monotonic() - begin)}


# ------------------------------------------------------------------------------- table ----


def page(records: dict[str, dict]) -> str:
    """The Markdown of all records: a row for each folder of configs and for each project."""
    groups: dict[str, list[dict]] = {}
    for name, record in records.items():
        parts = name.split("/")
        groups.setdefault("/".join(parts[:2] if parts[0] == "projects" else parts[:-1]),
                          []).append(record)
    lines = ["| folder | run | cannot |", "|---|---|---|"]
    for folder, group in sorted(groups.items()):
        cannot: dict[str, list[str]] = {}
        for record in group:
            if record["outcome"] != RUNS:
                reason = f"{record['reason']} ({record['by']})"
                cannot.setdefault(reason, []).append(record["name"].removeprefix(f"{folder}/"))
        told = "; ".join(reason if len(names) == len(group) else f"{', '.join(names)}: {reason}"
                         for reason, names in cannot.items()).replace("|", r"\|")
        good = sum(record["outcome"] == RUNS for record in group)
        lines.append(f"| {folder} | {good} of {len(group)} | {told} |")
    used = sorted({record["versions"] for record in records.values()})
    return "\n".join([*lines, "", *(f"{text}; {os.cpu_count()} cores, CPU." for text in used), ""])


# ------------------------------------------------------------------------ command line ----


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line; paths come back absolute."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clone", type=Path, required=True, metavar="DIR",
                        help="a clone of FastReID, with configs/, projects/ and tools/")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR",
                        help="folder of results.jsonl, results.md and logs/")
    parser.add_argument("--only", default="", metavar="PATTERN",
                        help="configs whose path in the clone contains it; * and ? stand for any")
    parser.add_argument("--seconds", type=float, default=600.0,
                        help="for one config at most (default: %(default)g)")
    args = parser.parse_args(argv)
    args.clone, args.output = args.clone.resolve(), args.output.resolve()
    if not (args.clone / "configs").is_dir() or not (args.clone / "tools/train_net.py").is_file():
        parser.error(f"--clone {args.clone} must hold configs/ and tools/train_net.py of FastReID")
    if args.output.is_relative_to(args.clone):
        parser.error(f"--output {args.output} is in the clone, which stays as it is")
    if not args.seconds > 0:
        parser.error(f"--seconds {args.seconds:g} must be positive")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    jobs = plan(args.clone)
    chosen = [job for job in jobs if fnmatch.fnmatch(job.name, f"*{args.only}*")]
    if not chosen:
        print(f"--only {args.only!r} matches none of {len(jobs)} configs, as "
              f"{jobs[0].name}", file=sys.stderr)
        return 2
    results, known = args.output / "results.jsonl", versions(args.clone)
    with tempfile.TemporaryDirectory() as work:
        runner = Runner(args, Path(work))
        for job in chosen:
            before = read_results(results).get(job.name, {})
            if before.get("outcome") == RUNS and before["versions"] == known:
                print(f"{job.name}: ran before", flush=True)
                continue
            record = {"name": job.name, **runner.run(job, jobs), "versions": known}
            with results.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(f"{job.name}: {record['outcome']} after {record['seconds']} s"
                  + (f", {record['reason']}" if "reason" in record else ""), flush=True)
    records = read_results(results)
    (args.output / "results.md").write_text(page(records))
    print(page(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
