#!/usr/bin/env python3
"""Measures what exported files lose: mAP and Rank-1 on a labelled test set, size and time.

    tools/benchmarks/evaluate_export.py RUN_FOLDER FILE.onnx [FILE.onnx ...] [KEY VALUE ...]

The first row is the run's own network in PyTorch. The test set is the first labelled one of the
run's DATASETS.TESTS, and the figures are FastReID's own (CMC and mAP, cosine distance). Times are
medians for 1 and for 8 images at once, preprocessing aside, all in one process.
"""

import argparse
import time
from pathlib import Path

import caureid_plugin  # noqa: F401  first: it makes the toolbox importable
import numpy as np
import torch
from caureid_plugin.common.errors import UserError, in_one_line
from caureid_plugin.common.text import printable
from caureid_plugin.export import load_export
from caureid_plugin.export.sidecar import read_sidecar
from caureid_plugin.retrieval import Embedder, load_run
from caureid_plugin.runs.folder import read_config
from caureid_plugin.runs.run import find_test_set
from fastreid.evaluation.rank import evaluate_rank
from tabulate import tabulate

REPEATS = 60


def load_file(path: Path, run: Embedder) -> Embedder:
    """An exported file of this run.

    Raises:
        ValueError, OSError, ImportError: it cannot be used, or is of another network.
    """
    found = load_export(path)
    told = read_sidecar(path)
    if told.run != run.fingerprint:
        raise UserError(
            f"{printable(path)} was exported from another network ({printable(told.name)}) than "
            f"{run.name}, so that the difference would be no loss: give the run or checkpoint that "
            "it was made from, or export this one (caureid export).")
    return found


def accuracy(embedder: Embedder, query: list, gallery: list) -> tuple[float, float]:
    """mAP and Rank-1, per cent."""
    features, people, cameras = [], [], []
    for part in (query, gallery):
        features.append(embedder.embed([path for path, _, _ in part], progress=True))
        people.append(np.array([pid for _, pid, _ in part]))
        cameras.append(np.array([camera for _, _, camera in part]))
    cmc, precisions, _ = evaluate_rank(
        1 - features[0] @ features[1].T, people[0], people[1], cameras[0], cameras[1],
        max_rank=min(10, len(gallery)), use_metric_cuhk03=False)
    return 100 * float(np.mean(precisions)), 100 * float(cmc[0])


def milliseconds(embedder: Embedder, count: int) -> float:
    """Median time of a batch, by the image."""
    batch = 255 * torch.rand(count, 3, *embedder.preprocessing.shape,
                             generator=torch.Generator().manual_seed(0))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        embedder(batch)
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times[REPEATS // 6:])) / count


def work(args: argparse.Namespace) -> None:
    run = load_run(args.run, device="cpu", opts=args.opts)
    cfg = read_config(args.run if args.run.is_dir() else args.run.parent, args.opts)
    name, query, gallery, _ = find_test_set(cfg)
    if not name:
        raise UserError("There is no labelled test set to measure with: name one with "
                        "DATASETS.TESTS behind the files.")
    embedders: list[tuple[str, Embedder, Path | None]] = [
        ("PyTorch, the run itself", run, None)]
    embedders += [(printable(path), load_file(path, run), path) for path in args.files]
    rows: list[dict[str, str]] = []
    start = 0.0
    for label, embedder, path in embedders:
        precision, first = accuracy(embedder, query, gallery)
        start = start or precision
        rows.append({"file": label, "mAP": f"{precision:.2f}", "loss": f"{start - precision:.2f}",
                     "Rank-1": f"{first:.2f}",
                     "MiB": "" if path is None else f"{path.stat().st_size / 2 ** 20:.2f}",
                     "ms, 1 image": f"{milliseconds(embedder, 1):.2f}",
                     "ms an image, of 8": f"{milliseconds(embedder, 8):.2f}"})
    print(f"{name}: {len(query)} queries, {len(gallery)} gallery images; "
          f"{torch.get_num_threads()} threads of PyTorch.")
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER",
                        help="OUTPUT_DIR of a run, or a checkpoint in one")
    parser.add_argument("words", nargs="+", metavar="FILE.onnx [KEY VALUE ...]",
                        help="exported files, then config keys in place of the run's")
    args = parser.parse_args(argv)
    names = [word for word in args.words if word.endswith(".onnx")]
    args.files, args.opts = [Path(name) for name in names], args.words[len(names):]
    if not names or args.words[:len(names)] != names:
        parser.error("give exported .onnx files first, then config keys and values")
    if len(args.opts) % 2:
        parser.error(f"config keys and values must come in pairs, got {' '.join(args.opts)}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with in_one_line("tools/benchmarks/evaluate_export.py"):
        work(args)


if __name__ == "__main__":
    main()
