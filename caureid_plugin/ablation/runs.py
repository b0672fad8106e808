"""The runs of caureid ablation: their configs, their folders and the processes that do them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fastreid
import torch
import yaml
from fastreid.config import CfgNode, get_cfg

from .._version import __version__
from ..common.errors import UserError
from ..common.files import write_atomically
from ..common.text import one_line
from ..config import add_caureid_config
from . import table as report

TRAIN = (sys.executable, "-m", "caureid_plugin", "train")
END_SECONDS = 10.0  # from asking a process to end to making it
MOST_CLASHES = 10  # keys named for a folder of another config


def new_config() -> CfgNode:
    """A config with every key at its default."""
    cfg = get_cfg()
    add_caureid_config(cfg)
    return cfg


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"SOLVER.BASE_LR": 0.001, ...} of a config's nested dict, without OUTPUT_DIR."""
    flat = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        elif prefix + key != "OUTPUT_DIR":
            flat[prefix + key] = value
    return flat


def settings_of(cfg: CfgNode) -> dict[str, Any]:
    """The flat values of a config, as they come back from its YAML file."""
    return flatten(yaml.safe_load(cfg.dump()))


def load(path: Path, kind: type = dict) -> Any:
    """The content of a JSON or YAML file in a run's folder.

    Raises:
        ValueError: it is not whole, or not of this kind.
    """
    try:
        if path.suffix == ".yaml":  # without the keys of earlier versions
            content = CfgNode.load_yaml_with_base(str(path))
        else:
            content = json.loads(path.read_text())
        problem = "" if isinstance(content, kind) else f"it holds no {kind.__name__}"
    except (UserError, json.JSONDecodeError, UnicodeDecodeError) as error:
        problem = one_line(error)
    if problem:
        raise UserError(f"{path} is damaged ({problem}): delete the run's folder {path.parent}, "
                        "the run is then begun again.")
    return content


@dataclass(eq=False)
class Run:
    """One training: a row's resolved config with a seed, and its folder.

    ``cfg`` is the config file with the keys, the seed and the folder.
    """

    row: str
    seed: int
    config_file: str
    keys: list[str]
    cfg: CfgNode

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
    def settings(self) -> dict[str, Any]:
        return settings_of(self.cfg)

    @cached_property
    def fingerprint(self) -> str:
        """The same for equal settings, wherever the folder is."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]

    def finished(self) -> dict[str, Any] | None:
        """What was noted when the run of these settings ended well."""
        marker = self.folder / "finished.json"
        return load(marker) if marker.is_file() and not self.clashes() else None

    def started(self) -> bool:
        return (self.folder / "config.yaml").is_file() and not self.clashes()

    def attempts(self) -> list[dict[str, Any]]:
        """What was noted of each process that worked on it, the last one last.

        Of one whose end nobody saw, "status" and "seconds" are None. "commit": of the code when it
        began.
        """
        path = self.folder / "attempts.json"
        return load(path, list) if path.is_file() else []

    def last_attempts(self) -> list[dict[str, Any]]:
        """Those since it was last begun anew; none where that is not noted."""
        attempts = self.attempts()
        begun = [i for i, attempt in enumerate(attempts) if not attempt["resumed"]]
        return attempts[begun[-1]:] if begun else []

    def resumable(self) -> bool:
        """Whether there is a checkpoint to go on from.

        From the one after training there is nothing to go on to: where the figures are missing
        nevertheless, FastReID would not evaluate any more.
        """
        last = self.folder / "last_checkpoint"
        if not last.is_file():
            return False
        if last.read_text().strip() != "model_final.pth":
            return True
        try:
            report.read_figures(self.folder, self.last_iteration)
        except ValueError:
            return False
        return True

    def seconds(self) -> float | None:
        """Time of the processes since it was last begun anew.

        None if the last did not end well, or if the time of any of them is unknown.
        """
        attempts = self.last_attempts()
        if not attempts or attempts[-1]["status"] != 0:
            return None
        spent = [attempt["seconds"] for attempt in attempts]
        return None if None in spent else sum(spent)

    def clashes(self) -> list[str]:
        """What tells the folder's config from this one: "KEY: value there, value here".

        A key that did not exist when the folder was made counts only if it is set here.
        """
        marker, saved = self.folder / "finished.json", self.folder / "config.yaml"
        if marker.is_file() and load(marker).get("fingerprint") == self.fingerprint:
            return []
        if not saved.is_file():
            # a hidden file may be what write_atomically had begun when it was killed
            used = self.folder.is_dir() and any(
                not path.name.startswith(".") for path in self.folder.iterdir())
            return ["no config.yaml is there, which a run has"] if used else []
        there, default = flatten(load(saved)), settings_of(new_config())
        here = {key: value for key, value in self.settings.items()
                if key in there or value != default.get(key)}
        return [f"{key}: {there.get(key, 'not set')!r} there, {here.get(key, 'not set')!r} here"
                for key in sorted({*there, *here}) if there.get(key) != here.get(key)]


def plan(recipes: dict[str, tuple[str, list[str]]], seeds: list[int], output: Path,
         opts: list[str]) -> dict[tuple[str, int], Run]:
    """{(row, seed): Run} of every row and seed, and of seeds finished before.

    Args:
        recipes: config file and config keys of each row.
        opts: config keys of all rows, which override a row's.

    Raises:
        ValueError: a config does not name one test set, so that there is no one mAP.
    """
    runs, seeds = {}, sorted({*seeds, *_seeds_there(recipes, output)})
    for row, (path, keys) in recipes.items():
        cfg, words = new_config(), [*keys, *opts]
        cfg.merge_from_file(path)
        cfg.merge_from_list(words)
        if len(cfg.DATASETS.TESTS) != 1:
            raise UserError(f"Row {row} ({path}): DATASETS.TESTS is {tuple(cfg.DATASETS.TESTS)}, "
                            "it must name exactly one data set, whose mAP and Rank-1 the table "
                            "shows: set DATASETS.TESTS.")
        for seed in seeds:
            cfg.SEED, cfg.OUTPUT_DIR = seed, str(output / f"{row}-seed{seed}")
            runs[row, seed] = Run(row, seed, path, words, cfg.clone())
    return runs


def _seeds_there(rows: Container[str], output: Path) -> set[int]:
    """Seeds with which a run of any of the rows is noted as finished, whatever its settings."""
    names = (re.fullmatch(r"(.+)-seed(0|[1-9][0-9]*)", path.parent.name)
             for path in output.glob("*-seed*/finished.json"))
    return {int(name[2]) for name in names if name and name[1] in rows}


def share(runs: dict[tuple[str, int], Run], wanted: list[str], seeds: list[int]
          ) -> dict[tuple[str, int], Run]:
    """{(row, seed): the Run that serves it}: one for equal settings, a finished one if there is.

    Raises:
        ValueError: the folder of a wanted row and seed belongs to other settings, or is damaged.
    """
    problems = defaultdict(list)  # what clashes: the folders of which it does
    for run in runs.values():
        run.attempts()  # that it is damaged had better show before anything runs
        if run.row in wanted and run.seed in seeds and (clashes := run.clashes()):
            more = len(clashes) - MOST_CLASHES
            text = "\n  ".join(clashes[:MOST_CLASHES] + [f"and {more} more"] * (more > 0))
            problems[text].append(str(run.folder))
    if problems:
        raise UserError("\n".join(
            f"Run folders of another config: {', '.join(folders)}\n  {text}"
            for text, folders in problems.items()) + "\nChoose another --output, or delete them.")
    twins = defaultdict(list)
    for run in runs.values():
        twins[run.fingerprint].append(run)
    first = {fingerprint: min(group, key=lambda run: (
        run.finished() is None, not run.started(), run.row not in wanted))
        for fingerprint, group in twins.items()}
    return {key: first[run.fingerprint] for key, run in runs.items()}


def device_name(device: str) -> str:
    """The GPU's name, or "CPU", for a config's MODEL.DEVICE."""
    # a GPU is asked only if the run was on one: the question occupies memory there
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name(device)
    return "CPU"


def processor(path: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, family, model, and the instructions that torch uses on it.

    Rounding depends on them, and how far a training goes on rounding. A virtual machine may
    name no more than the maker.
    """
    try:
        known = dict(re.findall(r"^(\S.*?)\s*: (.+)$", path.read_text(), re.MULTILINE))
    except OSError:  # not Linux
        known = {}
    parts = [f"{label} {known[key]}" for label, key in (("family", "cpu family"),
                                                        ("model", "model")) if key in known]
    parts.append(torch.backends.cpu.get_cpu_capability())
    name = known.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(parts)})"


def code_commit() -> str:
    """The commit of the clone that the plugin is imported from, "-dirty" if files differ from it.

    "unknown" where it is imported from no clone, or git is not there.
    """
    clone = Path(__file__).resolve().parents[2]
    if not (clone / ".git").exists():  # it may lie within a clone of something else
        return "unknown"
    try:
        done = subprocess.run(
            ["git", "-C", str(clone), "describe", "--always", "--dirty", "--exclude", "*",
             "--abbrev=12"], check=False, capture_output=True, text=True,
            start_new_session=True)  # a Ctrl-C would end it, and the commit be unknown
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def machine(device: str) -> dict[str, Any]:
    """Versions, device and processor, noted with each run; ``device``: its MODEL.DEVICE."""
    toolbox = fastreid.__version__
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a clone on the path
        toolbox = importlib.metadata.version("fastreid")  # the one above was not kept up to date
    return {"python": platform.python_version(), "torch": torch.__version__, "fastreid": toolbox,
            "caureid-plugin": __version__, "device": device_name(device),
            "processor": processor(), "cores": str(cores())}


def cores() -> int:
    """CPU cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class Attempt:
    """A process at work on a run, from where an earlier attempt left it.

    Raises:
        BlockingIOError: another process is at work in the run's folder.
    """

    def __init__(self, run: Run, threads: str) -> None:
        self.run, self.start, self.commit = run, time.perf_counter(), code_commit()
        run.folder.mkdir(parents=True, exist_ok=True)
        with run.log.open("ab") as log:
            # the process inherits it and holds it as long as it lives, longer than this tool if
            # this is killed
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.resumed = run.resumable()
            if not self.resumed:
                self._begin()
            self._note(run.attempts(), status=None, seconds=None)  # if the end is not seen
            command = [*TRAIN, "--config-file", run.config_file,
                       *(["--resume"] if self.resumed else []), "SEED", str(run.seed),
                       "OUTPUT_DIR", str(run.folder), *run.keys]
            log.write(f"=== {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(command)}\n".encode())
            log.flush()
            # a session of its own: it and its workers are ended together, by end()
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": threads})

    def _begin(self) -> None:
        """Notes the config; what an attempt left that cannot be resumed is moved aside."""
        for name in ("metrics.json", "last_checkpoint"):  # FastReID appends to the first
            path, number = self.run.folder / name, 1
            if path.is_file():
                while (aside := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
                    number += 1
                path.rename(aside)
        write_atomically(self.run.folder / "config.yaml", self.run.cfg.dump())

    def note(self) -> None:
        """Notes the end of the attempt in the run's attempts.json."""
        self._note(self.run.attempts()[:-1], self.process.poll(), time.perf_counter() - self.start)

    def _note(self, attempts: list[dict[str, Any]], status: int | None, seconds: float | None
              ) -> None:
        attempts = [*attempts, {"resumed": self.resumed, "status": status, "seconds": seconds,
                                "commit": self.commit}]
        write_atomically(self.run.folder / "attempts.json", json.dumps(attempts, indent=1))

    def send(self, number: int) -> None:
        """Sends a signal to the process and its workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def end(self) -> None:
        """Ends the process and its workers, politely at first."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self.send(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(END_SECONDS)
        self.note()


def finish(run: Run, threads: str) -> dict[str, Any]:
    """Notes the end of a run in finished.json.

    Raises:
        ValueError: its figures are not complete.
    """
    figures = report.read_figures(run.folder, run.last_iteration)
    commits = dict.fromkeys(attempt.get("commit", "unknown") for attempt in run.last_attempts())
    noted = {"figures": figures, "seconds": run.seconds(), "fingerprint": run.fingerprint,
             "date": time.strftime("%Y-%m-%d"),
             "machine": {**machine(run.cfg.MODEL.DEVICE), "threads": threads,
                         "commit": ", ".join(commits) or "unknown"}}
    write_atomically(run.folder / "finished.json", json.dumps(noted, indent=1))
    return noted
