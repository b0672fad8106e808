#!/usr/bin/env python3
"""Times clustering against the toolbox's dense way, or by itself as the number of images N grows.

    tools/benchmarks/clustering.py [--n 12936 --dim 2048 --rounds 3]
    tools/benchmarks/clustering.py --scaling 12936,50000,100000 --backends torch,faiss-flat

The features are simulated, with identities and cameras in them. In the first form both sides take
turns in one process: the plugin's ``assign_pseudo_labels`` and, on the other side, FastReID's own
``compute_jaccard_distance`` with scikit-learn's DBSCAN on its dense matrix; labels and distances
are compared. In the second each size is measured in a process of its own, added to a CSV file at
once (sizes in it are not measured again) and drawn.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import inspect
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from caureid_plugin.clustering import jaccard_graph, memory, neighbors
from caureid_plugin.clustering.simulated import simulate_features
from sklearn.cluster import DBSCAN

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as in gpu.py

from benchmarks.machine import limit_threads, machine_facts
from benchmarks.measure import (
    clustered_ari,
    dense_memory,
    graph_options,
    markdown,
    resolve,
    run_child,
    run_plugin,
    warm_up,
)
from benchmarks.options import device_problem, names, numbers
from benchmarks.scaling import read_rows, run_scaling

DISTANCES = ("search", "encoding", "pairs")  # together what compute_jaccard_distance does
TOOLBOX_MODULE = "fastreid.utils.compute_dist"
MARGIN = 0.01  # distances up to eps + MARGIN are compared, to see pairs that one side has beyond
# Some distances equal eps but for rounding (two images that share 4 of k2 = 6 neighbours and
# nothing else are 0.5 apart); the toolbox's float32 sums put those on either side of it.
ROUNDING = 1e-6


def toolbox_function() -> Callable:
    """FastReID's own ``compute_jaccard_distance``, whatever the plugin's repairs made of it.

    Its module is executed a second time, under no name, so that no repair knows of this copy.

    Raises:
        ImportError: FastReID or faiss is missing.
        RuntimeError: what was found is not the code of that module.
    """
    spec = importlib.util.find_spec(TOOLBOX_MODULE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = module.compute_jaccard_distance
    code = inspect.unwrap(function).__code__
    if (code.co_filename, code.co_name) != (spec.origin, "compute_jaccard_distance"):
        raise RuntimeError(f"compute_jaccard_distance of {TOOLBOX_MODULE} is {code}")
    return function


def run_toolbox(features: np.ndarray, args: argparse.Namespace, option: int
                ) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Seconds ("distances", "DBSCAN", "total"), labels and the (N, N) distances.

    Raises:
        MemoryError: two dense arrays do not fit.
    """
    needed, free = dense_memory(len(features)), memory.available()
    if needed > free:
        raise MemoryError(f"two dense arrays of {len(features):,} x {len(features):,} take "
                          f"{needed:.1f} GiB, {free:.1f} are free")
    function, tensor = toolbox_function(), torch.from_numpy(features)
    limit_threads(args.toolbox_threads)
    try:
        start = time.perf_counter()
        dense = function(tensor, k1=args.k1, k2=args.k2, search_option=option)
        middle = time.perf_counter()
        labels = dense_labels(dense, args.eps, args)
        end = time.perf_counter()
    finally:
        limit_threads(args.threads)
    seconds = {"distances": middle - start, "DBSCAN": end - middle, "total": end - start}
    return seconds, labels, dense


def dense_labels(dense: np.ndarray, eps: float, args: argparse.Namespace) -> np.ndarray:
    """(N,) labels by DBSCAN on a dense matrix of distances."""
    return DBSCAN(eps=eps, min_samples=args.min_samples, metric="precomputed").fit_predict(dense)


@dataclass
class Side:
    """What one way of clustering gave, round by round.

    Attributes:
        name: for the table.
        run: returns seconds of each stage, labels and, for the toolbox, the distances.
        seconds: stage -> one value for each round.
        labels: (N,) of each round.
        error: why it could not run.
    """

    name: str
    run: Callable[[], tuple]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    labels: list[np.ndarray] = field(default_factory=list)
    error: str | None = None

    def once(self) -> tuple:
        """Runs it and takes note; returns what ``run`` gave beyond seconds and labels."""
        spent, labels, *rest = self.run()
        for stage, value in spent.items():
            self.seconds.setdefault(stage, []).append(value)
        self.labels.append(labels)
        return tuple(rest)


@dataclass
class Difference:
    """Of the distances of two sides, over every pair that either has within eps.

    Attributes:
        pairs: how many, (i, j) and (j, i) counted both, with the diagonal.
        largest: largest difference.
        one_sided: pairs within eps on one side only.
        farthest: the largest distance from eps, on either side, of those.
        same_with_ties: if there are any: whether the labels are the same once the toolbox's
            DBSCAN takes in distances up to eps + ROUNDING.
    """

    pairs: int = 0
    largest: float = 0.0
    one_sided: int = 0
    farthest: float = 0.0
    same_with_ties: bool | None = None


def same_partition(labels: np.ndarray, others: np.ndarray) -> bool:
    """Whether two clusterings have the same outliers and, up to renaming, the same clusters."""
    if not np.array_equal(labels < 0, others < 0):
        return False
    pairs = np.unique(np.stack((labels, others)), axis=1).shape[1]
    return pairs == len(np.unique(labels)) == len(np.unique(others))


def compare_distances(graph, dense: np.ndarray, eps: float) -> Difference:
    """Compares a sparse graph (N, N) of distances <= eps + MARGIN with a dense matrix."""
    found, eps = Difference(), np.float32(eps)
    for start in range(0, len(dense), 256):
        part, theirs = graph[start : start + 256], dense[start : start + 256]
        ours = np.ones(theirs.shape, dtype=np.float32)
        ours[np.repeat(np.arange(len(ours)), np.diff(part.indptr)), part.indices] = part.data
        near, near_theirs = ours <= eps, theirs <= eps
        either, one = near | near_theirs, near != near_theirs
        found.pairs += int(either.sum())
        found.one_sided += int(one.sum())
        found.largest = max(found.largest,
                            float(np.abs(ours - theirs).max(initial=0, where=either)))
        for side in (ours, theirs):
            found.farthest = max(found.farthest,
                                 float(np.abs(side - eps).max(initial=0, where=one)))
    return found


def schedule(ours: list[Side], theirs: list[Side], rounds: int) -> list[tuple[int, Side]]:
    """(round, side) in the order of running: ours before and after each of theirs."""
    if not theirs:
        return [(number, side) for number in range(1, rounds + 1) for side in ours]
    return [(number, side) for number in range(1, rounds + 1) for other in theirs
            for side in (*ours, other, *reversed(ours))]


def compare(features: np.ndarray, args: argparse.Namespace
            ) -> tuple[list[Side], list[Side], dict[tuple[str, str], Difference]]:
    """Runs all sides in turn; the differences are by the names of the two sides."""
    ours = [Side(backend, functools.partial(run_plugin, features, args, backend))
            for backend in args.backends]
    theirs = [Side(f"toolbox, option {option}",
                   functools.partial(run_toolbox, features, args, option))
              for option in args.toolbox_options]
    differences: dict[tuple[str, str], Difference] = {}
    for number, side in schedule(ours, theirs, args.rounds):
        if side.error:
            continue
        print(f"round {number} of {args.rounds}: {side.name} ...", end=" ", flush=True)
        try:
            dense = side.once()
        except Exception as error:  # whatever it is, the other sides are still worth measuring
            if side in ours:
                raise
            side.error = short(error)
            print(side.error, flush=True)
            continue
        print(f"{side.seconds['total'][-1]:.2f} s", flush=True)
        if dense and len(side.labels) == 1:
            for our in ours:
                graph = jaccard_graph(features, eps=min(args.eps + MARGIN, 0.9999),
                                      **graph_options(args, our.name))
                found = compare_distances(graph, *dense, args.eps)
                if found.one_sided:
                    found.same_with_ties = same_partition(
                        our.labels[-1], dense_labels(*dense, args.eps + ROUNDING, args))
                differences[our.name, side.name] = found
        del dense
    return ours, theirs, differences


def short(error: Exception) -> str:
    """Kind and first line of an error, for a cell of a table."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120] if lines else 'no message'}"


def times_table(ours: list[Side], theirs: list[Side]) -> str:
    """Markdown: a line for each stage, a column for each side; median (least-most) seconds."""
    rows = []
    for label, stages in (("neighbour search", ("search",)), ("encoding", ("encoding",)),
                          ("pairs within eps", ("pairs",)), ("distances, all", ("distances",)),
                          ("DBSCAN", ("DBSCAN",)), ("total", ("total",))):
        row = {"stage, s": label}
        for side in (*ours, *theirs):
            used = DISTANCES if stages == ("distances",) and side in ours else stages
            row[side.name] = _cell(side, used)
        rows.append(row)
    for side in theirs:
        if side.error:
            rows[-1][side.name] = side.error[:60]
    return markdown(rows)


def _cell(side: Side, stages: tuple[str, ...]) -> str:
    if any(stage not in side.seconds for stage in stages):
        return ""
    values = np.sum([side.seconds[stage] for stage in stages], axis=0)
    return f"{np.median(values):.2f} ({values.min():.2f}-{values.max():.2f})"


def verdict(our: Side, their: Side, difference: Difference) -> str:
    """What came of comparing two sides, in a few lines."""
    ratio = np.median(their.seconds["total"]) / np.median(our.seconds["total"])
    identical = all(same_partition(labels, others)
                    for labels in our.labels for others in their.labels)
    lines = [
        f"{our.name} against {their.name}: {ratio:.1f} times as fast",
        (f"labels identical: {'yes' if identical else 'no'} "
         f"({_counts(our.labels[-1])}; {_counts(their.labels[-1])})"),
        (f"largest distance difference over the {difference.pairs:,} pairs within eps: "
         f"{difference.largest:.1e}"),
        f"pairs within eps on one side only: {difference.one_sided:,}"
        + (f", at most {difference.farthest:.1e} from eps" if difference.one_sided else "")]
    if difference.same_with_ties is not None:
        lines.append(f"labels identical if the toolbox's DBSCAN takes in distances up to eps + "
                     f"{ROUNDING:g}, that is ties: {'yes' if difference.same_with_ties else 'no'}")
    return "\n  ".join(lines)


def _counts(labels: np.ndarray) -> str:
    return f"{len(np.unique(labels[labels >= 0])):,} clusters, {(labels < 0).sum():,} outliers"


def run_comparison(args: argparse.Namespace) -> None:
    """The first form of the command."""
    spent = warm_up(args)
    print(f"compiled loops ready after {spent:.1f} s on few images (compiled, or read from numba's "
          "cache): not part of the times below")
    print(f"simulating {args.n:,} x {args.dim} features, seed {args.seed}", flush=True)
    features, identities, _ = simulate_features(args.n, args.dim, seed=args.seed)
    ours, theirs, differences = compare(features, args)
    print(f"\nseconds, median (least-most); k1 {args.k1}, k2 {args.k2}, eps {args.eps}, "
          f"min_samples {args.min_samples}, device {args.device}\n\n{times_table(ours, theirs)}\n")
    for our in ours:
        print(f"{our.name}: {_counts(our.labels[-1])}, ARI of the clustered images against the "
              f"simulated identities {clustered_ari(identities, our.labels[-1]):.3f}")
        for their in theirs:
            if not their.error:
                print(verdict(our, their, differences[our.name, their.name]))
    for their in theirs:
        if their.error:
            print(f"{their.name}: not compared, {their.error}")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line; sizes come back in ascending order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    integers = (("n", 12_936, "images of the comparison"), ("dim", 2048, "size of a feature"),
                ("k1", 30, "length of the neighbour lists"),
                ("k2", 6, "neighbours whose encodings are averaged"),
                ("min-samples", 4, "DBSCAN's"),
                ("rounds", 3, "runs of the toolbox; the plugin runs before and after each"),
                ("seed", 0, "of the simulated features"),
                ("threads", torch.get_num_threads(), "of the CPU"))
    for name, default, text in integers:
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: "
                            "%(default)s)")
    parser.add_argument("--eps", type=float, default=0.6,
                        help="DBSCAN's (default: %(default)s; with k2 = 6, pairs that share 4 of "
                             "6 neighbours are exactly 0.5 apart, where rounding decides)")
    parser.add_argument("--backends", "--backend", type=names, default=["auto"], metavar="NAMES",
                        help=f"of the search, with commas, of {', '.join(neighbors.BACKENDS)} "
                             "(default: auto)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda[:i] (default: %(default)s)")
    parser.add_argument("--toolbox-options", type=numbers, metavar="NUMBERS",
                        help="values of the toolbox's search_option, with commas (default: 3, on a "
                             "GPU 0,1,2,3)")
    parser.add_argument("--toolbox-threads", type=int,
                        help="for the toolbox, whose small operations may be slower with several "
                             "(default: as --threads)")
    parser.add_argument("--no-toolbox", action="store_true", help="time only the plugin")
    parser.add_argument("--scaling", type=numbers, metavar="SIZES",
                        help="numbers of images, with commas: measure each in its own process")
    parser.add_argument("--output", type=Path, help="CSV file of --scaling (default: "
                        "clustering_scaling.csv)")
    parser.add_argument("--plot", type=Path, help="PNG file of --scaling (default: the CSV file's "
                        "name with .png)")
    parser.add_argument("--child-result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    problem = _problem(args) or _sides_problem(args) or _file_problem(args)
    if problem:
        parser.error(problem)
    return args


def _problem(args: argparse.Namespace) -> str | None:
    """What is wrong with the numbers; the sizes of --scaling are sorted, a default is filled in."""
    if args.toolbox_threads is None:
        args.toolbox_threads = args.threads
    for name in ("n", "dim", "k1", "k2", "min_samples", "rounds", "threads", "toolbox_threads"):
        if getattr(args, name) < 1:
            return f"--{name.replace('_', '-')} {getattr(args, name)} must be at least 1"
    if args.seed < 0:
        return f"--seed {args.seed} must be at least 0"
    if not 0 < np.float32(args.eps) < 1:
        return f"--eps {args.eps} must be between 0 and 1, both excluded"
    if args.k2 > args.k1:
        return f"--k2 {args.k2} must not exceed --k1 {args.k1}"
    args.scaling = args.scaling and sorted(set(args.scaling))
    name, least = ("--scaling", args.scaling[0]) if args.scaling else ("--n", args.n)
    if least <= args.k1:
        return f"{name} {least} must be more than --k1 {args.k1}, the neighbours of an image"
    unknown = [backend for backend in args.backends if backend not in neighbors.BACKENDS]
    if unknown:
        known = ", ".join(neighbors.BACKENDS)
        return f"--backends {', '.join(unknown)} is unknown, known are {known}"
    return None


def _sides_problem(args: argparse.Namespace) -> str | None:
    """What is wrong with --device and the toolbox's options, whose default depends on it."""
    problem = device_problem(args.device)
    if problem:
        return problem
    try:
        for backend in args.backends:
            resolve(args, backend)
    except ImportError as error:
        return f"--backends {','.join(args.backends)}: {error}"
    if args.no_toolbox and args.toolbox_options:
        return "--toolbox-options cannot be used with --no-toolbox"
    if args.toolbox_options is None:
        args.toolbox_options = [3] if torch.device(args.device).type == "cpu" else [0, 1, 2, 3]
    unknown = sorted(set(args.toolbox_options) - {0, 1, 2, 3})
    if unknown:
        return f"--toolbox-options {unknown[0]} is unknown, known are 0,1,2,3"
    if args.no_toolbox:
        args.toolbox_options = []
    return None


def _file_problem(args: argparse.Namespace) -> str | None:
    """What is wrong with the files, before hours of measuring."""
    if not args.scaling:
        given = [name for name in ("output", "plot") if getattr(args, name)]
        return f"--{given[0]} needs --scaling" if given else None
    args.output = args.output or Path("clustering_scaling.csv")
    args.plot = args.plot or args.output.with_suffix(".png")
    for name in ("output", "plot"):
        path = getattr(args, name)
        if not path.parent.is_dir():
            return f"--{name} {path}: the folder {path.parent} does not exist"
    if args.plot.suffix != ".png":
        return f"--plot {args.plot} must end in .png"
    try:
        read_rows(args.output)
    except ValueError as error:
        return f"--output {error}"
    return None


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    limit_threads(args.threads)
    if args.child_result:
        run_child(args)
        return
    print(machine_facts(args), flush=True)
    if args.scaling:
        run_scaling(args)
    else:
        run_comparison(args)


if __name__ == "__main__":
    main()
