"""The runs of tools/ablation.py: their configs, their folders and the processes that do them."""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import caureid_plugin  # first: it makes the toolbox importable

import fastreid
import torch
import yaml
from fastreid.config import get_cfg

import ablation_report as report

TRAIN_NET = Path(__file__).resolve().with_name("train_net.py")
END_SECONDS = 10.0  # from asking a process to end to making it
MOST_CLASHES = 10  # keys named for a folder of another config


def new_config():
    """A config with every key at its default."""
    cfg = get_cfg()
    caureid_plugin.add_caureid_config(cfg)
    return cfg


def flatten(node: dict, prefix: str = "") -> dict:
    """{"SOLVER.BASE_LR": 0.001, ...} of a config's nested dict, without OUTPUT_DIR."""
    flat = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        elif prefix + key != "OUTPUT_DIR":
            flat[prefix + key] = value
    return flat


def settings_of(cfg) -> dict:
    """The flat values of a config, as they come back from its YAML file."""
    return flatten(yaml.safe_load(cfg.dump()))


@dataclass(eq=False)
class Run:
    """One training: a row's resolved config with a seed, and its folder."""

    row: str
    seed: int
    config_file: str
    cfg: object

    @property
    def folder(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.name}.log")

    @property
    def last_iteration(self) -> int | None:
        solver = self.cfg.SOLVER
        return solver.MAX_EPOCH * solver.ITERS_PER_EPOCH - 1 if solver.ITERS_PER_EPOCH else None

    @cached_property
    def settings(self) -> dict:
        return settings_of(self.cfg)

    @cached_property
    def fingerprint(self) -> str:
        """The same for equal settings, wherever the folder is."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]

    def finished(self) -> dict | None:
        """What was noted when the run of these settings ended well."""
        marker = self.folder / "finished.json"
        return json.loads(marker.read_text()) if marker.is_file() and not self.clashes() else None

    def started(self) -> bool:
        return (self.folder / "config.yaml").is_file() and not self.clashes()

    def attempts(self) -> list[dict]:
        """What was noted of each process that worked on it, the last one last."""
        path = self.folder / "attempts.json"
        return json.loads(path.read_text()) if path.is_file() else []

    def seconds(self) -> float | None:
        """Time of the processes since it was last begun anew; None if the last did not end well."""
        attempts = self.attempts()
        if not attempts or attempts[-1]["status"] != 0:
            return None
        begun = max((i for i, attempt in enumerate(attempts) if not attempt["resumed"]), default=0)
        return sum(attempt["seconds"] for attempt in attempts[begun:])

    def clashes(self) -> list[str]:
        """What tells the folder's config from this one: "KEY: value there, value here".

        A key that did not exist when the folder was made counts only if it is set here.
        """
        marker, saved = self.folder / "finished.json", self.folder / "config.yaml"
        if marker.is_file() and json.loads(marker.read_text())["fingerprint"] == self.fingerprint:
            return []
        if not saved.is_file():
            used = self.folder.is_dir() and any(self.folder.iterdir())
            return ["no config.yaml is there, which a run has"] if used else []
        there, default = flatten(yaml.safe_load(saved.read_text())), settings_of(new_config())
        here = {key: value for key, value in self.settings.items()
                if key in there or value != default.get(key)}
        return [f"{key}: {there.get(key, 'not set')!r} there, {here.get(key, 'not set')!r} here"
                for key in sorted({*there, *here}) if there.get(key) != here.get(key)]


def plan(configs: dict[str, str], seeds: list[int], output: Path, opts: list[str]) -> dict:
    """{(row, seed): Run} of every row's config file and seed."""
    runs = {}
    for row, path in configs.items():
        cfg = new_config()
        cfg.merge_from_file(path)
        cfg.merge_from_list(opts)
        for seed in seeds:
            cfg.SEED, cfg.OUTPUT_DIR = seed, str(output / f"{row}-seed{seed}")
            runs[row, seed] = Run(row, seed, path, cfg.clone())
    return runs


def share(runs: dict, wanted: list[str]) -> dict:
    """{(row, seed): the Run that serves it}: one for equal settings, a finished one if there is.

    Raises:
        ValueError: a wanted row's folder belongs to other settings.
    """
    problems = defaultdict(list)  # what clashes: the folders of which it does
    for run in runs.values():
        if run.row in wanted and (clashes := run.clashes()):
            more = len(clashes) - MOST_CLASHES
            text = "\n  ".join(clashes[:MOST_CLASHES] + [f"and {more} more"] * (more > 0))
            problems[text].append(str(run.folder))
    if problems:
        raise ValueError("\n".join(
            f"Run folders of another config: {', '.join(folders)}\n  {text}"
            for text, folders in problems.items()) + "\nChoose another --output, or delete them.")
    twins = defaultdict(list)
    for run in runs.values():
        twins[run.fingerprint].append(run)
    first = {fingerprint: min(group, key=lambda run: (
        run.finished() is None, not run.started(), run.row not in wanted))
        for fingerprint, group in twins.items()}
    return {key: first[run.fingerprint] for key, run in runs.items()}


def machine() -> dict:
    """Versions and device, noted with each run."""
    device = f"{platform.processor() or platform.machine()} CPU, {cores()} cores"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name(0)
    toolbox = fastreid.__version__
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a clone on the path
        toolbox = importlib.metadata.version("fastreid")  # the one above was not kept up to date
    return {"python": platform.python_version(), "torch": torch.__version__, "fastreid": toolbox,
            "caureid-plugin": caureid_plugin.__version__, "device": device}


def cores() -> int:
    """CPU cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class Attempt:
    """A process at work on a run, from where an earlier attempt left it.

    Raises:
        BlockingIOError: another process is at work in the run's folder.
    """

    def __init__(self, run: Run, opts: list[str], threads: str) -> None:
        self.run, self.start = run, time.perf_counter()
        run.folder.mkdir(parents=True, exist_ok=True)
        with run.log.open("ab") as log:
            # the process inherits it and holds it as long as it lives, longer than this tool if
            # this is killed
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.resumed = (run.folder / "last_checkpoint").is_file()
            if not self.resumed:
                self._begin()
            command = [sys.executable, str(TRAIN_NET), "--config-file", run.config_file,
                       *(["--resume"] if self.resumed else []), "SEED", str(run.seed),
                       "OUTPUT_DIR", str(run.folder), *opts]
            log.write(f"=== {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(command)}\n".encode())
            log.flush()
            # a session of its own: it and its workers are ended together, by end()
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": threads})

    def _begin(self) -> None:
        """Notes the config; figures of an attempt without a checkpoint are moved aside."""
        metrics, number = self.run.folder / "metrics.json", 1
        if metrics.is_file():  # FastReID appends to it
            while (aside := metrics.with_name(f"metrics-{number}.json")).exists():
                number += 1
            metrics.rename(aside)
        report.replace(self.run.folder / "config.yaml", self.run.cfg.dump().encode())

    def note(self) -> None:
        """Adds the attempt to the run's attempts.json."""
        attempts = self.run.attempts()
        attempts.append({"resumed": self.resumed, "status": self.process.poll(),
                         "seconds": time.perf_counter() - self.start})
        report.replace(self.run.folder / "attempts.json", json.dumps(attempts, indent=1).encode())

    def end(self) -> None:
        """Ends the process and its workers, politely at first."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(END_SECONDS)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self.note()


def finish(run: Run, threads: str) -> dict:
    """Notes the end of a run in finished.json.

    Raises:
        ValueError: its figures are not complete.
    """
    noted = {"figures": report.read_figures(run.folder, run.last_iteration),
             "seconds": run.seconds(), "fingerprint": run.fingerprint,
             "machine": {**machine(), "threads": threads}}
    report.replace(run.folder / "finished.json", json.dumps(noted, indent=1).encode())
    return noted
