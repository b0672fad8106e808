#!/usr/bin/env python3
"""Trains the rows of an ablation with several seeds each, and writes their table and plot.

    tools/ablation.py --family synthetic [--rows baseline full] [--seeds 1 2 3] [KEY VALUE ...]
    tools/ablation.py --configs plain.yml own.yml --output logs/own [--baseline plain] [...]

A family is table 2 of the paper (arXiv 2112.10089) on one data set. Every run is a call of
tools/train_net.py with the row's config, the seed and the keys given; it has a folder ROW-seedN
and a log beside it. Options go before keys.

The same command again goes on where it was stopped: finished runs are kept, a run with a
checkpoint is resumed, one without is begun again. A run that fails is reported and the others go
on. Rows whose configs are equal (full and centre) share their runs. The files of the output
folder are written anew whenever a run ends: table.md, table.csv (each run), summary.csv (each
row) and ablation.png. They show the rows and seeds asked for, and others that are finished with
the same settings. Nothing is deleted.
"""

import argparse
import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import caureid_plugin  # first: it makes the toolbox importable

import ablation_report as report
from ablation_runs import Attempt, Run, cores, finish, new_config, plan, share

FAMILIES = {"market": "Market/ablation", "duke": "Duke/ablation",
            "synthetic": "Synthetic/ablation", "market_osnet": "Market/ablation_osnet"}
ROWS = {"baseline": "InfoNCE only", "css": "baseline + CSS", "cacc": "baseline + CACC",
        "full": "baseline + CSS + CACC", "sample": "full, CACC on samples",
        "centre": "full, CACC on centres"}
OWN_KEYS = ("SEED", "OUTPUT_DIR")  # set for each run
TAIL = 12  # lines of a failed run's log to show
POLL_SECONDS = 0.1


class Ablation:
    """The runs of a table, and what has become of them.

    Attributes:
        failures: {Run: why}.
    """

    def __init__(self, runs: dict, args: argparse.Namespace) -> None:
        self.args = args
        self.serving = share(runs, args.rows, args.seeds)
        self.failures: dict[Run, str] = {}
        # seed by seed: each row is there early
        self._waiting = sorted(
            {run for wanted, run in self.serving.items() if self._is_wanted(*wanted)},
            key=lambda run: (args.seeds.index(run.seed), list(args.config_files).index(run.row)))
        self._total = len(self._waiting)
        self._running: list[Attempt] = []
        self._threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // args.jobs)))

    def run(self) -> None:
        """Runs what is not finished, ``--jobs`` side by side; on an exception ends what runs."""
        self._keep_finished()
        try:
            while self._waiting or self._running:
                while self._waiting and len(self._running) < self.args.jobs:
                    self._start(self._waiting.pop(0))
                time.sleep(POLL_SECONDS)
                for attempt in [a for a in self._running if a.process.poll() is not None]:
                    self._running.remove(attempt)
                    self._ended(attempt)
        finally:  # nothing runs any more but after an exception
            for attempt in self._running:  # all, before a second Ctrl-C can end the waiting
                attempt.send(signal.SIGTERM)
            for attempt in self._running:
                attempt.end()

    def _is_wanted(self, row: str, seed: int) -> bool:
        return row in self.args.rows and seed in self.args.seeds

    def _keep_finished(self) -> None:
        for run in list(self._waiting):
            if run.finished() or self._ended_unseen(run):
                self._waiting.remove(run)
                self._say(run, f"is finished, {self._scores(run)}")

    def _ended_unseen(self, run: Run) -> bool:
        """Notes the end of a run that has all its figures, if this tool was gone by then."""
        failed = any((attempt["status"] or 0) > 0 for attempt in run.attempts()[-1:])
        if failed or not run.started():
            return False
        try:
            finish(run, self._threads)
        except ValueError:
            return False  # it is resumed
        return True

    def _start(self, run: Run) -> None:
        try:
            attempt = Attempt(run, self.args.opts, self._threads)
        except BlockingIOError:
            self._failed(run, "another process is at work in its folder")
            return
        self._running.append(attempt)
        self._say(run, f"{'resumed' if attempt.resumed else 'started'}, log: {run.log}")

    def _ended(self, attempt: Attempt) -> None:
        run, status = attempt.run, attempt.process.returncode
        attempt.note()
        if status:
            self._failed(run, f"exit status {status}")
            return
        try:
            seconds = finish(run, self._threads)["seconds"]
        except ValueError as error:
            self._failed(run, str(error))
            return
        spent = "" if seconds is None else f" in {seconds / 60:.1f} min"
        self._say(run, f"{self._scores(run)}{spent}{self._remaining()}")
        self.write()

    def _failed(self, run: Run, reason: str) -> None:
        self.failures[run] = reason
        lines = run.log.read_text(errors="replace").splitlines()[-TAIL:]
        self._say(run, f"FAILED, {reason}; the end of {run.log}:\n    " + "\n    ".join(lines))
        self.write()

    def _scores(self, run: Run) -> str:
        figures = run.finished()["figures"]
        return ", ".join(f"{score} {figures[score]:.2f}" for score in report.SCORES)

    def _say(self, run: Run, text: str) -> None:
        ended = self._total - len(self._waiting) - len(self._running)
        print(f"[{ended}/{self._total}] {run.name}: {text}", flush=True)

    def _remaining(self) -> str:
        """Estimate from the finished runs."""
        known = [noted["seconds"] for run in set(self.serving.values())
                 if (noted := run.finished()) and noted["seconds"]]
        left = len(self._waiting) + len(self._running)
        if not (known and left):
            return ""
        minutes = left * sum(known) / len(known) / self.args.jobs / 60
        return f"; {left} to go, about {minutes:.0f} min"

    def results(self) -> list[dict]:
        """A dict for each row and seed that is wanted or finished, as ablation_report takes it."""
        found = []
        for (row, seed), run in self.serving.items():
            noted = run.finished()
            if not noted and not self._is_wanted(row, seed):
                continue
            reason = self.failures.get(run)
            state = report.FINISHED if noted else f"failed: {reason}" if reason else "not finished"
            line = {"row": row, "title": self.args.titles[row], "seed": seed, "state": state,
                    "same_as": "" if run.row == row else run.name}
            if noted:
                seconds = noted["seconds"]
                line.update(noted["figures"], minutes=seconds and seconds / 60)
            found.append(line)
        return found

    def write(self) -> str:
        """Writes the files of the output folder; returns the summary's table."""
        self.args.output.mkdir(parents=True, exist_ok=True)
        results = self.results()
        machines = dict.fromkeys(
            ", ".join(f"{name} {value}" for name, value in noted["machine"].items())
            for run in dict.fromkeys(self.serving.values()) if (noted := run.finished()))
        heads = {"Command": f"`{self.args.command}`",
                 "Rows": self.args.source,
                 "Keys": f"`{shlex.join(self.args.opts)}`" if self.args.opts else "none",
                 "Seeds": ", ".join(map(str, sorted({line["seed"] for line in results}))),
                 "Made with": "; ".join(machines) or "-"}
        return report.write(self.args.output, heads, results, self.args.baseline)


def split_keys(argv: list[str]) -> tuple[list[str], list[str]]:
    """Options, and the config keys and values that follow them."""
    groups = set(new_config())
    first = next((i for i, word in enumerate(argv) if word.split(".")[0] in groups
                  and not {"/", os.sep} & set(word)  # a file may be named like a key
                  and not word.endswith((".yml", ".yaml"))), len(argv))
    return argv[:first], argv[first:]


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Reads and checks the command line; adds "config_files" and "titles" by row, "opts"."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s (--family FAMILY | --configs FILE ...) [options] [KEY VALUE ...]")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--family", choices=sorted(FAMILIES), help="table 2 on a data set")
    source.add_argument("--configs", nargs="+", metavar="FILE", help="own config files as rows")
    parser.add_argument("--rows", nargs="+", metavar="ROW",
                        help=f"of the family: {', '.join(ROWS)} (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N",
                        help="(default: 1 2 3)")
    parser.add_argument("--baseline", metavar="ROW",
                        help="row to compare with (default: baseline; the first of --configs)")
    parser.add_argument("--output", type=Path, help="folder (default: logs/ablation/FAMILY)")
    parser.add_argument("--jobs", type=int, default=1,
                        help="runs side by side, which share the CPU's cores (default: 1)")
    options, opts = split_keys(argv)
    args = parser.parse_args(options)
    args.opts, args.command = opts, shlex.join(["tools/ablation.py", *argv])
    problem = _find_rows(args) or _problem(args)
    if problem:
        parser.error(problem)
    return args


def _find_rows(args: argparse.Namespace) -> str | None:
    """Adds the rows' files and titles; returns what is wrong with them."""
    if args.family:
        folder = FAMILIES[args.family]
        files = {row: f"{folder}/{row}.yml" for row in ROWS}
        args.titles, args.source = ROWS, f"family {args.family}, configs/{folder}"
        args.output = args.output or Path("logs/ablation", args.family)
    else:
        files = {Path(path).stem: path for path in args.configs}
        args.titles, args.source = files, ", ".join(args.configs)
        if len(files) < len(args.configs):
            return f"--configs {args.configs}: two files have the same name, which names the row"
        if args.rows or not args.output:
            return "--configs needs --output, and no --rows: its files are the rows"
    args.baseline = args.baseline or next(iter(files))
    args.rows = args.rows or list(files)
    for option, names in (("--rows", args.rows), ("--baseline", [args.baseline])):
        for name in names:
            if name not in files:
                return f"{option} {name!r} is unknown, known are {', '.join(files)}"
    try:
        args.config_files = {row: path if Path(path).is_file() and not args.family
                             else caureid_plugin.get_config_file(path)
                             for row, path in files.items()}
    except FileNotFoundError as error:
        return str(error)
    return None


def _problem(args: argparse.Namespace) -> str | None:
    """What is wrong with seeds, jobs and keys."""
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        return f"--seeds {args.seeds} must be different numbers, none negative"
    if args.jobs < 1:
        return f"--jobs {args.jobs} must be at least 1"
    for word in args.opts:
        if word.startswith("--"):
            return f"{word} must come before the config keys"
    if len(args.opts) % 2:
        return f"config keys and values must come in pairs: {args.opts}"
    for key in args.opts[::2]:
        if key in OWN_KEYS:
            option = "--seeds" if key == "SEED" else "--output"
            return f"{key} is set for each run: use {option}"
    return None


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, unless they are ignored (nohup)."""

    def interrupt(number: int, frame) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(sys.argv[1:] if argv is None else argv)
    try:
        ablation = Ablation(plan(args.config_files, args.seeds, args.output, args.opts), args)
    except (KeyError, ValueError) as error:  # of a config file, a key, a run folder
        print(f"ablation.py: error: {error.args[0]}", file=sys.stderr)
        return 2
    ablation.write()
    try:
        with interruptible():
            ablation.run()
    except KeyboardInterrupt:
        print(f"\nInterrupted; what is finished is kept, {args.output / 'table.md'} has it. The "
              "same command goes on from there.", flush=True)
        return 130
    print(f"\n{ablation.write()}\n\n{args.output}: table.md, table.csv, summary.csv, ablation.png")
    for run, reason in ablation.failures.items():
        print(f"{run.name} FAILED ({reason}); the same command tries it again.")
    return 1 if ablation.failures else 0


if __name__ == "__main__":
    sys.exit(main())
