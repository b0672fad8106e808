"""Clustering as the number of images grows: a process and a row of a CSV file for each size."""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import caureid_plugin
import numpy as np

from benchmarks.measure import SETTINGS, STAGES, dense_memory, markdown

FIELDS = ("n", "backend", *SETTINGS, "search", *(f"{stage}_s" for stage in STAGES), "total_s",
          "simulate_s", "kernels_s", "features_gib", "start_gib", "peak_gib",
          "above_features_gib", "above_start_gib", "estimate_gib", "gpu_peak_gib", "clusters",
          "outliers", "ari", "recall", "machine")
KEY = ("n", "backend", *SETTINGS)
ALIKE = tuple(name for name in SETTINGS if name not in ("dim", "device"))  # in one picture


def start_child(args: argparse.Namespace, n: int, backend: str) -> dict:
    """Measures one size in a fresh process, so that the peak of memory is its own."""
    options = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in SETTINGS]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        script = Path(__file__).resolve().with_name("clustering.py")
        command = [sys.executable, str(script), f"--n={n}", f"--backends={backend}", *options,
                   f"--child-result={path}"]
        folders = [str(Path(caureid_plugin.__file__).parents[1]), os.environ.get("PYTHONPATH")]
        code = subprocess.run(command, env={
            **os.environ, "OMP_NUM_THREADS": str(args.threads),
            "PYTHONPATH": os.pathsep.join(filter(None, folders))}, check=False).returncode
        if path.exists():
            return json.loads(path.read_text())
    if code < 0:
        return {"error": f"ended by signal {-code}" + (", out of memory?" if code == -9 else "")}
    return {"error": f"ended with status {code}, see above"}


def key(row: dict) -> tuple[str, ...]:
    """What tells one measurement from another, as the CSV file spells it."""
    return tuple(str(row[name]) for name in KEY)


def read_rows(path: Path) -> dict[tuple[str, ...], dict]:
    """Finished measurements by their key; none if there is no file yet.

    Raises:
        ValueError: the file has other columns.
    """
    if not path.exists() or not path.stat().st_size:
        return {}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != FIELDS:
            raise ValueError(f"{path} has other columns than this tool writes: move it away, or "
                             "name another file")
        # a row cut short, by a full disk say, is measured again
        return {key(row): row for row in reader if None not in row.values()}


def append_row(path: Path, row: dict) -> None:
    """Adds a measurement to the CSV file, which begins with the names of the columns."""
    fresh = not path.exists() or not path.stat().st_size
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def run_scaling(args: argparse.Namespace) -> None:
    """The second form of the command.

    Raises:
        SystemExit: a size failed; the others are measured and drawn first.
    """
    rows, failed = [], 0
    wanted = [(n, backend) for n in args.scaling for backend in args.backends]
    for number, (n, backend) in enumerate(wanted, 1):
        title = f"{number} of {len(wanted)}: N = {n:,}, {backend}"
        row = {"n": n, "backend": backend, **{name: getattr(args, name) for name in SETTINGS}}
        finished = read_rows(args.output)
        if key(row) in finished:
            print(f"{title}: in {args.output} already", flush=True)
            rows.append(finished[key(row)])
            continue
        print(f"{title}: starting", flush=True)
        result = start_child(args, n, backend)
        if "error" in result:
            failed += 1
            print(f"{title}: {result['error']}", flush=True)
            rows.append({**row, **result})
            continue
        append_row(args.output, result)
        rows.append(result)
        print(f"{title}: {result['total_s']:.1f} s, peak {result['peak_gib']:.2f} GiB, now in "
              f"{args.output}", flush=True)
    print(f"\n{scaling_table(rows)}\n")
    done = [row for row in read_rows(args.output).values()
            if all(row[name] == str(getattr(args, name)) for name in ALIKE)]
    if done:
        draw(done, args.plot)
        print(f"{args.plot}: time and memory against N, {len(done)} measurements of {args.output}")
    if failed:
        raise SystemExit(f"{failed} of {len(wanted)} measurements failed, see the table")


def scaling_table(rows: list[dict]) -> str:
    """Markdown: seconds by stage, GiB of memory, and how good the clusters are."""
    lines = []
    for row in rows:
        line = {"N": f"{int(row['n']):,}", "D": row["dim"], "back end": row["backend"]}
        if "error" in row:
            lines.append({**line, "total, s": row["error"]})
            continue
        if row["search"] != row["backend"]:
            line["back end"] += f" ({row['search']})"
        for stage in STAGES:
            line[f"{stage}, s"] = f"{float(row[f'{stage}_s']):.1f}"
        line["total, s"] = f"{float(row['total_s']):.1f}"
        for title, name in (("features", "features_gib"),
                            ("peak above features", "above_features_gib"),
                            ("peak above start", "above_start_gib"),
                            ("estimated", "estimate_gib"), ("total peak", "peak_gib"),
                            ("GPU peak", "gpu_peak_gib")):
            line[f"{title}, GiB"] = f"{float(row[name]):.2f}" if row[name] != "" else ""
        for name in ("clusters", "outliers"):
            line[name] = f"{int(row[name]):,}"
        line["ARI"] = f"{float(row['ari']):.3f}"
        line["recall"] = f"{float(row['recall']):.4f}"
        lines.append(line)
    columns = list(dict.fromkeys(name for line in sorted(lines, key=len, reverse=True)
                                 for name in line))
    if not any(line.get("GPU peak, GiB") for line in lines):
        columns = [name for name in columns if name != "GPU peak, GiB"]
    return markdown([{name: line.get(name, "") for name in columns} for line in lines])


def draw(rows: list[dict], path: Path) -> None:
    """Saves the picture: N against seconds and GiB, logarithmic, a line for each back end and D."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines: dict[str, list] = {}
    for row in sorted(rows, key=lambda row: int(row["n"])):
        device = "" if row["device"] == "cpu" else f", {row['device']}"
        lines.setdefault(f"{row['backend']}, D = {row['dim']}{device}", []).append(
            [float(row[name]) for name in ("n", "total_s", "above_start_gib")])
    figure, (times, sizes) = pyplot.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for label, line in sorted(lines.items()):
        n, seconds, gib = zip(*line, strict=True)
        times.plot(n, seconds, marker="o", label=label)
        sizes.plot(n, gib, marker="o", label=label)
    every = np.array(sorted({int(row["n"]) for row in rows}))
    sizes.plot(every, [dense_memory(n) for n in every], linestyle="--", color="grey", marker=".",
               label="toolbox: two dense N x N arrays (computed)")
    times.set(ylabel="seconds of clustering")
    # above what the process had before: the libraries' share would hide small N
    sizes.set(ylabel="peak memory that clustering adds, GiB")
    for axis in (times, sizes):
        axis.set(xscale="log", yscale="log", xlabel="images N")
        axis.grid(alpha=0.3, which="both")
    figure.legend(*sizes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
