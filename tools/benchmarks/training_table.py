"""What tools/benchmarks/training.py has measured: tables, a sentence, a picture, a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

GOAL = 1.10  # CAUReID's step, times Baseline's
BASELINE, CAUREID = "Baseline", "CAUReID"
# what CAUReID's step is made of: each takes away one part more
BREAKDOWN = {
    "plain BN": {"MODEL.BN_GROUP_SIZE": 0},
    "plain BN, no attention": {"MODEL.BN_GROUP_SIZE": 0, "MODEL.HEADS.CAMSEP.ATTENTION": "none"},
}


def conditions(rows: list[dict]) -> list[tuple[str, str]]:
    """(precision, layout) in the order of measuring."""
    return list(dict.fromkeys((row["precision"], row["layout"]) for row in rows))


def pick(rows: list[dict], condition: tuple[str, str], side: str) -> dict:
    """The row of a side under a condition."""
    row, = (r for r in rows if (r["precision"], r["layout"], r["side"]) == (*condition, side))
    return row


def ratio_text(row: dict) -> str:
    """The ratio to Baseline and its interval."""
    return f"{row['ratio']:.3f} ({row['ratio_low']:.3f}-{row['ratio_high']:.3f})"


def table(rows: list[dict]) -> str:
    """Markdown: a line for each precision and layout, Baseline beside CAUReID."""
    lines = []
    for condition in conditions(rows):
        pair = {name: pick(rows, condition, name) for name in (BASELINE, CAUREID)}
        line = dict(zip(("precision", "layout"), condition, strict=True))
        for name, row in pair.items():
            line[f"{name}, ms"] = (
                f"{row['median_ms']:.1f} ({row['p10_ms']:.1f}-{row['p90_ms']:.1f})")
        for name, row in pair.items():
            line[f"{name}, images/s"] = f"{row['images_per_s']:.1f}"
        line["ratio of times (95 %)"] = ratio_text(pair[CAUREID])
        for name, row in pair.items():  # against the first line
            first = pick(rows, conditions(rows)[0], name)["median_ms"]
            line[f"{name}, speed-up"] = f"{first / row['median_ms']:.2f}"
        if pair[CAUREID]["peak_gib"] != "":
            for name, row in pair.items():
                line[f"{name}, peak GiB"] = f"{row['peak_gib']:.2f}"
        line["CAUReID's losses"] = pair[CAUREID]["losses"]
        lines.append(line)
    return _markdown(lines)


def breakdown_table(rows: list[dict]) -> str:
    """Markdown: the ratio to Baseline of CAUReID and of what is left without its parts."""
    lines = []
    for condition in conditions(rows):
        line = dict(zip(("precision", "layout"), condition, strict=True))
        for name in (CAUREID, *BREAKDOWN):
            title = name if name == CAUREID else f"{CAUREID}, {name}"
            line[title] = ratio_text(pick(rows, condition, name))
        lines.append(line)
    return _markdown(lines)


def _markdown(lines: list[dict]) -> str:
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True,
                    colalign=["left", "left"] + ["right"] * (len(lines[0]) - 2))


def verdict(row: dict, device: str) -> str:
    """CAUReID's ratio against the goal, which is one for a GPU."""
    if row["ratio_high"] <= GOAL:
        found = "met"
    elif row["ratio_low"] > GOAL:
        found = "missed"
    else:
        found = "not decided by these steps"
    where = "" if torch.device(device).type == "cuda" else "; that is for a GPU, this is a CPU"
    return (f"{row['precision']}, {row['layout']}: CAUReID's step takes {ratio_text(row)} times "
            f"Baseline's; at most {GOAL:.2f}: {found}{where}")


def draw(rows: list[dict], path: Path) -> None:
    """Saves the picture: ms of a step, a group of bars for each precision and layout."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["side"] for row in rows))
    places = np.arange(len(conditions(rows)))
    width = 0.8 / len(names)
    figure, axis = pyplot.subplots(figsize=(3 + 2 * len(places), 4), layout="constrained")
    for number, name in enumerate(names):
        found = [pick(rows, condition, name) for condition in conditions(rows)]
        median = np.array([row["median_ms"] for row in found])
        spread = np.abs([[row[key] for row in found] for key in ("p10_ms", "p90_ms")] - median)
        label = name if name in (BASELINE, CAUREID) else f"{CAUREID}, {name}"
        bars = axis.bar(places + number * width, median, width, yerr=spread, capsize=3,
                        label=label)
        axis.bar_label(bars, [f"x {row['ratio']:.2f}" for row in found], padding=2)
    axis.set_xticks(places + width * (len(names) - 1) / 2,
                    [", ".join(condition) for condition in conditions(rows)])
    axis.margins(y=0.15)  # room for the ratios above the bars
    axis.set(ylabel="ms per step (median, 10-90 %)")
    axis.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def write_csv(rows: list[dict], path: Path) -> None:
    """One line for each side under each condition."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
