"""What becomes of finished runs: figures, statistics, tables and the plot."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, BinaryIO

from tabulate import tabulate

from ..common.errors import UserError
from ..common.files import write_atomically
from ..runs.metrics import read_rows

# name in the tables -> name in FastReID's metrics.json
FIGURES = {"mAP": "mAP", "Rank-1": "Rank-1", "start mAP": "start/mAP",
           "start Rank-1": "start/Rank-1", "clusters": "labels/clusters",
           "outliers": "labels/outliers", "ARI": "diagnostic_with_labels/ari"}
SCORES = ("mAP", "Rank-1")
FINISHED = "finished"
Row = dict[str, Any]


def read_figures(folder: Path, last_iteration: int | None) -> dict[str, float]:
    """Last values of FIGURES, those there are; mAP and Rank-1 are of the last epoch.

    Args:
        folder: of the run.
        last_iteration: of the whole training. None where the config does not tell
            (SOLVER.ITERS_PER_EPOCH 0): then the latest in the file, with a final checkpoint.

    Raises:
        ValueError: no evaluation at the last iteration.
    """
    path = folder / "metrics.json"
    rows, problem = read_rows(path)
    evaluated = [row["iteration"] for row in rows if all(name in row for name in SCORES)]
    if not evaluated:
        raise UserError(f"not finished: {path} has no mAP and Rank-1: "
                        f"{problem or 'the evaluation at the end of training is missing'}")
    if last_iteration is None:
        checkpoint = folder / "last_checkpoint"
        if not checkpoint.is_file() or checkpoint.read_text().strip() != "model_final.pth":
            raise UserError(f"not finished: {folder} has no final checkpoint")
        last_iteration = max(row["iteration"] for row in rows)
    # an evaluation that is made after training and not at the end of an epoch has the next number
    if evaluated[-1] not in (last_iteration, last_iteration + 1):
        raise UserError(f"not finished: the last mAP in {path} is of iteration {evaluated[-1]}, "
                        f"training ends at {last_iteration}")
    latest = {key: value for row in rows for key, value in row.items()}
    return {name: latest[key] for name, key in FIGURES.items() if key in latest}


def mean_sd(values: list[float]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n - 1); None where there are too few values."""
    return fmean(values) if values else None, stdev(values) if len(values) > 1 else None


def summarise(results: list[Row], baseline: str) -> list[Row]:
    """One dict for each row: means, standard deviations, differences to the baseline.

    A difference is taken between runs of the same seed, so that its standard deviation is that of
    the pairs.

    Args:
        results: of every row and seed: "row", "title", "seed", "state", "same_as" and, where the
            state is FINISHED, the figures and "minutes".
        baseline: name of a row; without finished runs of it there are no differences.
    """
    done = {(r["row"], r["seed"]): r for r in results if r["state"] == FINISHED}
    summary = []
    for row in dict.fromkeys(r["row"] for r in results):
        own = {seed: r for (name, seed), r in done.items() if name == row}
        line = {"row": row, "title": next(r["title"] for r in results if r["row"] == row),
                "runs": len(own), "of": sum(r["row"] == row for r in results)}
        for score in SCORES:
            line[score], line[f"{score} sd"] = mean_sd([r[score] for r in own.values()])
            pairs = [r[score] - done[baseline, seed][score] for seed, r in own.items()
                     if row != baseline and (baseline, seed) in done]
            line[f"{score} difference"], line[f"{score} difference sd"] = mean_sd(pairs)
            line["pairs"] = len(pairs)
        line["minutes"], _ = mean_sd([r["minutes"] for r in own.values()
                                      if r["minutes"] is not None])
        line["same_as"] = ", ".join(dict.fromkeys(
            r["same_as"].rpartition("-seed")[0] for r in own.values() if r["same_as"]))
        summary.append(line)
    return summary


def _number(value: float | None, form: str = ".2f", sd: float | None = None) -> str:
    if value is None:
        return "-"
    return format(value, form) + ("" if sd is None else f" ({sd:{form.lstrip('+')}})")


def _markdown(lines: list[Row], left: int) -> str:
    """Table of texts; the first ``left`` columns are aligned left."""
    lines = [{name: text.replace("|", r"\|").replace("\n", " ") for name, text in line.items()}
             for line in lines]
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True,
                    colalign=["left"] * left + ["right"] * (len(lines[0]) - left))


def summary_table(summary: list[Row]) -> str:
    """Markdown: the rows with mean (standard deviation)."""
    lines = []
    for row in summary:
        title = row["title"] + (f" (same runs as {row['same_as']})" if row["same_as"] else "")
        line = {"row": row["row"], "what": title, "runs": f"{row['runs']} of {row['of']}"}
        for score in SCORES:
            line[score] = _number(row[score], sd=row[f"{score} sd"])
            line[f"{score}, difference"] = _number(
                row[f"{score} difference"], "+.2f", row[f"{score} difference sd"])
        lines.append({**line, "minutes": _number(row["minutes"], ".1f")})
    return _markdown(lines, 2)


def runs_table(results: list[Row]) -> str:
    """Markdown: every run."""
    forms = dict.fromkeys(("clusters", "outliers"), ".0f") | {"ARI": ".3f", "minutes": ".1f"}
    columns = [name for name in (*FIGURES, "minutes") if any(name in r for r in results)]
    return _markdown([
        {"row": r["row"], "seed": str(r["seed"]),
         "state": f"same run as {r['same_as']}" if r["same_as"] else r["state"],
         **{name: _number(r.get(name), forms.get(name, ".2f")) for name in columns}}
        for r in results], 3)


def caption(baseline: str) -> str:
    """What has to be known to read the summary's table."""
    return ("Last epoch; mean over the seeds (standard deviation, n - 1). Differences are to "
            f"{baseline}, seed by seed. Minutes are for one run.")


def page(heads: dict[str, str], results: list[Row], summary: list[Row], baseline: str) -> str:
    """The whole Markdown page; ``heads``: what to say about the runs, by name."""
    return "\n".join([
        "# Ablation", "", *(f"- {name}: {text}" for name, text in heads.items()), "",
        caption(baseline), "", summary_table(summary), "", "## Runs", "", runs_table(results), "",
        *(["![mAP and Rank-1](ablation.png)", ""] if any(row["runs"] for row in summary) else [])])


def csv_text(lines: list[Row]) -> str:
    """CSV with the names of all lines as its header; unknown values stay empty."""
    names = dict.fromkeys(name for line in lines for name in line)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def draw(results: list[Row], summary: list[Row], baseline: str,
         target: BinaryIO) -> None:
    """Draws the mean, the standard deviation and every seed of each row, as PNG, to ``target``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    summary = [row for row in summary if row["runs"]]
    figure, axes = pyplot.subplots(1, 2, figsize=(max(8.0, 1.9 * len(summary)), 3.8))
    for axis, score in zip(axes, SCORES, strict=True):
        for place, row in enumerate(summary):
            seeds = [r[score] for r in results
                     if r["row"] == row["row"] and r["state"] == FINISHED]
            axis.plot([place + 0.18] * len(seeds), seeds, "o", color="tab:blue", alpha=0.5,
                      markersize=4, label=None if place else "a seed")
            axis.errorbar(place, row[score], yerr=row[f"{score} sd"], fmt="D", color="black",
                          capsize=4, label=None if place else "mean, standard deviation")
            if row["row"] == baseline:
                axis.axhline(row[score], color="tab:red", linestyle="--", linewidth=1,
                             label=f"mean of {baseline}")
        axis.set(title=f"{score} (%), last epoch", xlim=(-0.5, len(summary) - 0.5))
        axis.set_xticks(range(len(summary)), [row["row"] for row in summary])
        axis.grid(alpha=0.3, axis="y")
        axis.margins(y=0.12)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, fontsize="small", frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(target, dpi=110, format="png")
    pyplot.close(figure)


def write(folder: Path, heads: dict[str, str], results: list[Row], baseline: str) -> str:
    """Writes table.md, table.csv, summary.csv and ablation.png; returns the summary's table."""
    summary = summarise(results, baseline)
    write_atomically(folder / "table.md", page(heads, results, summary, baseline))
    write_atomically(folder / "table.csv", csv_text(results))
    write_atomically(folder / "summary.csv", csv_text(summary))
    if any(row["runs"] for row in summary):
        picture = io.BytesIO()
        draw(results, summary, baseline, picture)
        write_atomically(folder / "ablation.png", picture.getvalue())
    return summary_table(summary)
