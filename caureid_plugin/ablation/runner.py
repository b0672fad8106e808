"""The queue of an ablation's runs, and what it writes whenever one of them ends."""

from __future__ import annotations

import os
import shlex
import signal
import time
from typing import Any

from ..common.signals import EXIT_INTERRUPTED, StopRequest
from . import table as report
from .runs import Attempt, Run, cores, finish, plan, share

TAIL = 12  # lines of a failed run's log to show
POLL_SECONDS = 0.1


class Ablation:
    """The runs of a table, and what has become of them.

    Args:
        runs: {(row, seed): Run}.
        args: what :mod:`caureid_plugin.cli.ablation` takes, with "recipes" (config file and keys)
            and "titles" by row and "source", what the rows are; "command", the command line.

    Attributes:
        failures: {Run: why}.
    """

    def __init__(self, runs: dict[tuple[str, int], Run], args: Any) -> None:
        self.args = args
        self.serving = share(runs, args.rows, args.seeds)
        self.failures: dict[Run, str] = {}
        # seed by seed: each row is there early
        self._waiting = sorted(
            {run for wanted, run in self.serving.items() if self._is_wanted(*wanted)},
            key=lambda run: (args.seeds.index(run.seed), list(args.recipes).index(run.row)))
        self._total = len(self._waiting)
        self._running: list[Attempt] = []
        self._threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // args.jobs)))

    @classmethod
    def of(cls, args: Any) -> Ablation:
        """Plans the runs that a command asks for.

        Raises:
            KeyError, ValueError: of a config file, a key, or a run folder.
        """
        return cls(plan(args.recipes, args.seeds, args.output, args.opts), args)

    def run_to_the_end(self) -> int:
        """Runs it and prints the table; returns the exit status, 1 if a run failed."""
        self.write()
        try:
            # an exception in the midst of subprocess can lose a process that has just begun, or
            # keep the lock without which nobody learns that it ended
            with StopRequest() as request:
                self.run(request)
        except KeyboardInterrupt:
            print("\nInterrupted; what is finished is kept, "
                  f"{self.args.output / 'table.md'} has it. The same command goes on from there.",
                  flush=True)
            return EXIT_INTERRUPTED
        print(f"\n{self.write()}\n\n{self.args.output}: table.md, table.csv, summary.csv, "
              "ablation.png")
        for run, reason in self.failures.items():
            print(f"{run.name} FAILED ({reason}); the same command tries it again.")
        return 1 if self.failures else 0

    def run(self, request: StopRequest) -> None:
        """Runs what is not finished, ``--jobs`` side by side; on an exception ends what runs.

        Raises:
            KeyboardInterrupt: it was asked to stop.
        """
        self._keep_finished()
        try:
            while self._waiting or self._running:
                while self._waiting and len(self._running) < self.args.jobs:
                    self._start(self._waiting.pop(0))
                time.sleep(POLL_SECONDS)
                if request.signal:
                    raise KeyboardInterrupt
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
            attempt = Attempt(run, self._threads)
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
        figures = (run.finished() or {})["figures"]
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

    def results(self) -> list[dict[str, Any]]:
        """A dict for each row and seed that is wanted or finished, as the table takes it."""
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
