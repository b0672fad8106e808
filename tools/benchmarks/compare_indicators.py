#!/usr/bin/env python3
"""How closely do the label-free indicators follow mAP? Over runs whose test set has labels.

    tools/benchmarks/compare_indicators.py logs/real logs/synthetic --plot indicators.png
    tools/benchmarks/compare_indicators.py logs/a logs/b logs/c --output indicators.csv

Each argument is a run folder, or a folder of run folders, which makes a group of its own. A run is
trained by tools/train_net.py with TEST.EVAL_AT_START True and TEST.EVAL_PERIOD 1. Every clustering
is paired with the mAP of the same network: that of the evaluation before it. Spearman's rank
correlation is then taken over the epochs of each run (does an indicator tell whether this run gets
better?) and over the last clusterings of the runs of a group (does it tell which run is better?).
"""

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from caureid_plugin.runs import metrics
from scipy.stats import spearmanr
from tabulate import tabulate

INDICATORS = {"outlier_share": "outlier share", "largest_share": "largest cluster's share",
              "cross_camera": "clusters that span cameras", "silhouette": "silhouette",
              "stability": "stability"}
LEAST = 4  # points of a correlation


class Run(NamedTuple):
    """A run: its group, its name, and a row for each clustering (mAP and every indicator)."""

    group: str
    name: str
    rows: list[dict[str, float]]


def read_rows(path: Path) -> list[dict[str, float]]:
    """Clusterings of a metrics.json, each with the mAP of the evaluation before it.

    An indicator that a clustering does not have (stability the first time) is NaN.

    Raises:
        ValueError: not readable; no clustering that has an evaluation before it.
    """
    logged, problem = metrics.read_rows(path)
    if problem:
        raise ValueError(f"{path} cannot be read as the metrics.json of a run: {problem}")
    found, current = [], None
    for row in logged:
        current = row.get("start/mAP", current)
        if "labels/clusters" in row and current is not None:
            found.append({"iteration": row["iteration"], "mAP": current, **{
                name: row.get(f"labels/{name}", float("nan")) for name in INDICATORS}})
        current = row.get("mAP", current)  # of the network behind that iteration
    if not found:
        raise ValueError(f"{path} has no clustering with an evaluation before it: train with "
                         "TEST.EVAL_AT_START True TEST.EVAL_PERIOD 1.")
    return found


def find_runs(folders: list[Path]) -> list[Run]:
    """The runs of the command line. Of a folder's runs, those without figures are named, left out.

    Raises:
        ValueError: a folder without runs; a run that :func:`read_rows` refuses.
    """
    runs = []
    for folder in folders:
        if (folder / "metrics.json").is_file():
            runs.append(Run("runs", folder.name, read_rows(folder / "metrics.json")))
            continue
        inside = sorted(folder.glob("*/metrics.json"))
        if not inside:
            raise ValueError(f"{folder} holds neither metrics.json nor folders with one: give run "
                             "folders (OUTPUT_DIR of a run).")
        for path in inside:
            try:
                runs.append(Run(folder.name, path.parent.name, read_rows(path)))
            except ValueError as error:  # a run that failed before its first step, say
                print(f"left out: {error}")
    if not runs:
        raise ValueError(f"No run of {', '.join(map(str, folders))} can be used.")
    return runs


def correlation(xs: list[float], ys: list[float]) -> float:
    """Spearman's rank correlation of the pairs without NaN; NaN for fewer than four of them."""
    x, y = np.asarray(xs, dtype=float), np.asarray(ys, dtype=float)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < LEAST or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(spearmanr(x, y).statistic)


def correlations(runs: list[Run]) -> list[dict]:
    """For each group and indicator: within runs (median, lowest, highest) and over their ends."""
    table = []
    for group in dict.fromkeys(run.group for run in runs):
        members = [run for run in runs if run.group == group]
        for name in INDICATORS:
            inside = [correlation([row[name] for row in run.rows], [row["mAP"] for row in run.rows])
                      for run in members]
            inside = [value for value in inside if np.isfinite(value)]
            ends = [run.rows[-1] for run in members]
            table.append({
                "group": group, "indicator": name, "runs": len(members),
                "within": float(np.median(inside)) if inside else float("nan"),
                "lowest": min(inside, default=float("nan")),
                "highest": max(inside, default=float("nan")),
                "between": correlation([row[name] for row in ends], [row["mAP"] for row in ends])})
    return table


def draw(runs: list[Run], path: Path) -> None:
    """Saves the picture: mAP against each indicator, a line for each run, its end marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = list(dict.fromkeys(run.group for run in runs))
    figure, axes = pyplot.subplots(
        len(groups), len(INDICATORS), squeeze=False, layout="constrained",
        figsize=(3.1 * len(INDICATORS), 3.2 * len(groups) + 0.8))
    for line, group in zip(axes, groups, strict=True):
        members = [run for run in runs if run.group == group]
        colours = pyplot.get_cmap("tab20")(np.arange(len(members)) % 20)
        for axis, (name, label) in zip(line, INDICATORS.items(), strict=True):
            for run, colour in zip(members, colours, strict=True):
                x, y = [row[name] for row in run.rows], [row["mAP"] for row in run.rows]
                axis.plot(x, y, "-", color=colour, linewidth=0.8, alpha=0.6)
                axis.plot(x[-1], y[-1], "o", color=colour, label=run.name)
            axis.set_xlabel(label)
            axis.grid(alpha=0.3)
        line[0].set_ylabel(f"{group}: mAP (%)")
        line[-1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle("Each line is a run, clustering by clustering; the dot is its "
                    "last", fontsize=9)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def write(runs: list[Run], path: Path) -> None:
    """One line for each clustering of each run."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["group", "run", "iteration", "mAP", *INDICATORS])
        writer.writeheader()
        writer.writerows({"group": run.group, "run": run.name, **row}
                         for run in runs for row in run.rows)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER",
                        help="run folder, or folder of run folders")
    parser.add_argument("--output", type=Path, help="CSV file to write")
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    args = parser.parse_args(argv)
    for name, suffix in (("output", ".csv"), ("plot", ".png")):
        path = getattr(args, name)
        if path and path.suffix != suffix:
            parser.error(f"--{name} {path} must end in {suffix}")
        if path and not path.parent.is_dir():
            parser.error(f"--{name} {path}: the folder {path.parent} does not exist")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        runs = find_runs(args.folders)
    except ValueError as error:
        raise SystemExit(f"tools/benchmarks/compare_indicators.py: {error}") from error
    rows = [{"group": row["group"], "indicator": INDICATORS[row["indicator"]],
             "over epochs": f"{row['within']:+.2f} ({row['lowest']:+.2f} to {row['highest']:+.2f})",
             "over runs' ends": f"{row['between']:+.2f}", "runs": row["runs"]}
            for row in correlations(runs)]
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
    print("\nSpearman's rank correlation with mAP (which needs identity labels). Over epochs: the "
          "median over\nthe runs (lowest to highest). nan: fewer than four points, or no change.")
    if args.output:
        write(runs, args.output)
    if args.plot:
        draw(runs, args.plot)


if __name__ == "__main__":
    main()
