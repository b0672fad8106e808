#!/usr/bin/env python3
"""Renders SyntheticCameras, trains CA-UReID on it, and shows what it learnt.

    tools/demo.py [--output logs/demo] [--seed 1] [KEY VALUE ...]

It runs tools/train_net.py on configs/Synthetic/caureid_best.yml and then tools/report.py, whose
page report.html is the thing to look at; no weights and no data are downloaded.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def read_metrics(path: Path) -> list[dict]:
    """Rows of FastReID's metrics.json, one per written iteration."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def column(rows: list[dict], key: str) -> list[tuple[int, float]]:
    """(iteration, value) of every row that has the key."""
    return [(row["iteration"], row[key]) for row in rows if key in row]


def report(output: Path, seconds: float, pictures: Path) -> str:
    """The table at the end of the demo, from the run's own metrics.json, and where to look."""
    rows = read_metrics(output / "metrics.json")
    before = {name: column(rows, f"start/{name}")[0][1] for name in ("mAP", "Rank-1")}
    after = {name: column(rows, name)[-1][1] for name in ("mAP", "Rank-1")}
    labels = {name: column(rows, f"labels/{name}") for name in ("clusters", "outliers")}
    lines = ["", f"{'':12}{'before':>10}{'after':>10}"]
    lines += [f"{name + ' (%)':12}{before[name]:10.1f}{after[name]:10.1f}"
              for name in ("mAP", "Rank-1")]
    lines += [f"{name:12}{points[0][1]:10.0f}{points[-1][1]:10.0f}"
              for name, points in labels.items()]
    lines.append(f"{'seconds':12}{'':10}{seconds:10.0f}")
    lines += ["", f"outputs: {output.resolve()}",
              "  people.png, log.txt, metrics.json, model_final.pth, and events for TensorBoard",
              f"  the pictures it learnt from: {pictures.resolve()}", "",
              f"look at it in a browser: {(output / 'report.html').resolve().as_uri()}"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="logs/demo", help="folder of the outputs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values")
    args = parser.parse_args()

    output = Path(args.output)
    metrics = output / "metrics.json"
    if metrics.exists():  # FastReID appends to it; an earlier demo's rows are kept aside
        metrics.rename(output / f"metrics-until-{time.strftime('%Y%m%d-%H%M%S')}.json")
    start = time.perf_counter()
    command = [sys.executable, str(HERE / "train_net.py"), "--config-file",
               "Synthetic/caureid_best.yml", "SEED", str(args.seed), "OUTPUT_DIR", str(output),
               *args.opts]
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(code)
    seconds = time.perf_counter() - start
    data = os.environ.get("FASTREID_DATASETS", "datasets")
    subprocess.run([sys.executable, str(HERE / "show_synthetic.py"), "--output",
                    str(output / "people.png")], check=True)
    subprocess.run([sys.executable, str(HERE / "report.py"), str(output)], check=True)
    print(report(output, seconds, Path(data, "SyntheticCameras")))


if __name__ == "__main__":
    main()
