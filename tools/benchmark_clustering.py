#!/usr/bin/env python3
"""Times clustering against the toolbox's dense way, or by itself as the number of images N grows.

    tools/benchmark_clustering.py [--n 12936 --dim 2048 --rounds 3]
    tools/benchmark_clustering.py --scaling 12936,50000,100000 --backends torch,faiss-ivf

The features are simulated, with identities and cameras in them. In the first form both sides take
turns in one process: the plugin's ``assign_pseudo_labels`` and, on the other side, FastReID's own
``compute_jaccard_distance`` with scikit-learn's DBSCAN on its dense matrix; labels and distances
are compared. In the second each size is measured in a process of its own, added to a CSV file at
once (sizes in it are not measured again) and drawn.
"""

import argparse
import csv
import functools
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import caureid_plugin  # first: it makes the toolbox importable
import numpy as np
import psutil
import torch
from caureid_plugin.clustering import (
    Search,
    assign_pseudo_labels,
    jaccard_graph,
    memory,
    neighbors,
    pseudo_labels,
)
from caureid_plugin.clustering.simulated import simulate_features
from sklearn.cluster import DBSCAN
from sklearn.metrics import adjusted_rand_score
from tabulate import tabulate
from threadpoolctl import threadpool_limits

GIB = 2**30
# stage -> the function that assign_pseudo_labels calls for it
STAGES = {"search": "neighbor_lists", "encoding": "encode", "pairs": "pairs_within",
          "DBSCAN": "cluster_graph"}
DISTANCES = ("search", "encoding", "pairs")  # together what compute_jaccard_distance does
TOOLBOX_MODULE = "fastreid.utils.compute_dist"
MARGIN = 0.01  # distances up to eps + MARGIN are compared, to see pairs that one side has beyond
# Some distances equal eps but for rounding (two images that share 4 of k2 = 6 neighbours and
# nothing else are 0.5 apart); the toolbox's float32 sums put those on either side of it.
ROUNDING = 1e-6
SAMPLE = 1000  # images on which recall is measured
SECONDS_BETWEEN_LINES = 10
SETTINGS = ("dim", "k1", "k2", "eps", "min_samples", "seed", "threads", "device")
FIELDS = ("n", "backend", *SETTINGS, "search", *(f"{stage}_s" for stage in STAGES), "total_s",
          "simulate_s", "kernels_s", "features_gib", "start_gib", "peak_gib",
          "above_features_gib", "above_start_gib", "estimate_gib", "gpu_peak_gib", "clusters",
          "outliers", "ari", "recall", "machine")
KEY = ("n", "backend", *SETTINGS)
ALIKE = tuple(name for name in SETTINGS if name not in ("dim", "device"))  # in one picture


# --------------------------------------------------------------------------- machine ----


def limit_threads(threads: int) -> None:
    """Threads of torch, and of every BLAS and OpenMP library that is loaded by now."""
    torch.set_num_threads(threads)
    threadpool_limits(limits=threads)


def machine_name(device: str) -> str:
    """The processor that computes, and its number of usable cores if it is the CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_cpu_words().get('model name', platform.processor() or 'unknown CPU')}, {cores} cores"


def _cpu_words() -> dict[str, str]:
    """What Linux says of the first core."""
    try:
        text = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:  # not Linux
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def machine_facts(args: argparse.Namespace) -> str:
    """A few lines: processors, threads, versions."""
    bfloat16 = {"avx512_bf16", "amx_bf16"} & set(_cpu_words().get("flags", "").split())
    lines = [f"CPU: {machine_name('cpu')}, {args.threads} thread(s) used"
             + (f" ({args.toolbox_threads} by the toolbox)" if args.toolbox_options else "")
             + f", bfloat16 instructions: {', '.join(sorted(bfloat16)) or 'none'}, "
             f"{memory.available():.1f} GiB free, load {os.getloadavg()[0]:.1f} before this run"]
    if args.device != "cpu":
        lines.append(f"GPU: {machine_name(args.device)}, CUDA {torch.version.cuda}")
    packages = ("torch", "numpy", "scipy", "scikit-learn", "numba", "faiss-cpu", "faiss-gpu",
                "fastreid")
    versions = [f"{name} {_version(name)}" for name in packages if _version(name)]
    return "\n".join([*lines, f"Python {platform.python_version()}, " + ", ".join(versions)])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def current_memory() -> float:
    """GiB that this process has in RAM."""
    return psutil.Process().memory_info().rss / GIB


def forget_peak() -> None:
    """Lets the peak start again from what is in RAM now, where the system can do that (Linux)."""
    # where it cannot, the peak includes the making of the features
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """GiB that this process had in RAM at most.

    Linux carries ``ru_maxrss`` over from the parent at fork and exec, VmHWM is the process's own.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / GIB
    except OSError:
        pass
    import resource  # not on every system

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


# ------------------------------------------------------------------------ both sides ----


def watched(function: Callable, note: Callable[[float, object], None]) -> Callable:
    """The function; ``note(seconds, result)`` is called after each call of it."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        start = time.perf_counter()
        result = function(*args, **kwargs)
        note(time.perf_counter() - start, result)
        return result

    return call


@contextmanager
def watched_stages(note: Callable[[str, float, object], None]) -> Iterator[None]:
    """Within the block ``note(stage, seconds, result)`` is called as clustering goes on."""
    with ExitStack() as stack:
        for stage, name in STAGES.items():
            function = getattr(pseudo_labels, name)
            stack.enter_context(mock.patch.object(
                pseudo_labels, name, watched(function, functools.partial(note, stage))))
        yield


def graph_options(args: argparse.Namespace, backend: str) -> dict:
    """Arguments of the plugin's functions besides features and eps."""
    return {"k1": args.k1, "k2": args.k2, "search": Search(backend=backend, device=args.device)}


def resolve(args: argparse.Namespace, backend: str) -> str:
    """The back end that "auto" stands for."""
    return Search(backend=backend).resolve(args.n, torch.device(args.device))


def run_plugin(features: np.ndarray, args: argparse.Namespace, backend: str, *,
               note: Callable[[str, float, object], None] | None = None,
               progress: Callable[[str, int, int], None] | None = None
               ) -> tuple[dict[str, float], np.ndarray]:
    """Seconds of each stage and in total, and the labels, of one clustering by the plugin."""
    seconds = dict.fromkeys(STAGES, 0.0)

    def add(stage: str, spent: float, result: object) -> None:
        seconds[stage] += spent
        if note is not None:
            note(stage, spent, result)

    with watched_stages(add):
        start = time.perf_counter()
        labels = assign_pseudo_labels(
            features, eps=args.eps, min_samples=args.min_samples, progress=progress,
            **graph_options(args, backend))
        seconds["total"] = time.perf_counter() - start
    return seconds, labels


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


def dense_memory(n: int) -> float:
    """GiB of the two N x N float32 arrays that the toolbox fills."""
    return 2 * 4 * float(n) ** 2 / GIB


def warm_up(args: argparse.Namespace) -> float:
    """Seconds until the compiled loops are ready: a run of every back end on few images."""
    start = time.perf_counter()
    few, _, _ = simulate_features(10 * args.k1, 16, seed=args.seed)
    # duplicates in plenty make the exact search look twice
    few = np.concatenate([few, np.repeat(few[:1], 10 * args.k1, axis=0)])
    for backend in args.backends:  # what "auto" is for few images need not be what it is for N
        run_plugin(few, args, resolve(args, backend))
    limit_threads(args.threads)  # of the libraries, too, that this has loaded
    return time.perf_counter() - start


# ------------------------------------------------------------------------ comparison ----


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
    return _markdown(rows)


def _cell(side: Side, stages: tuple[str, ...]) -> str:
    if any(stage not in side.seconds for stage in stages):
        return ""
    values = np.sum([side.seconds[stage] for stage in stages], axis=0)
    return f"{np.median(values):.2f} ({values.min():.2f}-{values.max():.2f})"


def _markdown(rows: list[dict]) -> str:
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True,
                    colalign=["left"] + ["right"] * (len(rows[0]) - 1))


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


def clustered_ari(identities: np.ndarray, labels: np.ndarray) -> float:
    """Adjusted Rand index of the images that are in a cluster; 0 if none is."""
    inlier = labels >= 0
    return float(adjusted_rand_score(identities[inlier], labels[inlier])) if inlier.any() else 0.0


# ------------------------------------------------------------- one size, in its process ----


class Lines:
    """Progress in lines, no more often than every few seconds. Called as clustering asks."""

    def __init__(self, title: str) -> None:
        self._title, self._start = title, time.perf_counter()
        self._last = self._start

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            self.say(f"{stage} {100 * done / total:.0f} %")

    def say(self, text: str) -> None:
        print(f"{self._title}: {text} (after {time.perf_counter() - self._start:.0f} s)",
              flush=True)


def measure_size(args: argparse.Namespace) -> dict:
    """A row of the CSV file for ``args.n`` images and the one back end of ``args.backends``."""
    backend, = args.backends
    kernels = warm_up(args)
    lines = Lines(f"N = {args.n:,}, {backend}")
    start = time.perf_counter()
    features, identities, _ = simulate_features(args.n, args.dim, seed=args.seed)
    row = {"n": args.n, "backend": backend, **{name: getattr(args, name) for name in SETTINGS},
           "search": resolve(args, backend),
           "simulate_s": time.perf_counter() - start, "kernels_s": kernels,
           "features_gib": features.nbytes / GIB, "machine": machine_name(args.device)}
    lines.say(f"{row['features_gib']:.2f} GiB of features, clustering begins")
    # another seed than that of the search, which tunes itself on a sample
    sample = np.sort(np.random.default_rng([args.seed, 2]).choice(
        args.n, min(SAMPLE, args.n), replace=False))
    labels, found = measure_clustering(features, args, sample, row, lines)
    row.update(clusters=len(np.unique(labels[labels >= 0])), outliers=int((labels < 0).sum()),
               ari=clustered_ari(identities, labels))
    lines.say(f"measuring recall at {args.k1} on {len(sample):,} images")
    row["recall"] = recall(found, exact_neighbors(features, sample, args.k1))
    lines.say(f"recall at {args.k1} is {row['recall']:.4f}")
    return row


def measure_clustering(features: np.ndarray, args: argparse.Namespace, sample: np.ndarray,
                       row: dict, lines: Lines) -> tuple[np.ndarray, np.ndarray]:
    """Clusters once. Puts times and memory into ``row``; returns labels, lists of the sample."""
    found: list[np.ndarray] = []
    estimates: list[dict] = []

    def note(stage: str, spent: float, result: object) -> None:
        lines.say(f"{stage} took {spent:.1f} s")
        if stage == "search":
            found.append(result.parts[0][0][sample])

    cuda = torch.device(args.device).type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(args.device)
    forget_peak()
    row["start_gib"] = current_memory()
    watching = watched(memory.estimate, lambda spent, result: estimates.append(result))
    with mock.patch.object(memory, "estimate", watching):
        seconds, labels = run_plugin(features, args, args.backends[0], note=note, progress=lines)
    row["peak_gib"] = peak_memory()
    row["above_features_gib"] = row["peak_gib"] - row["features_gib"]
    row["above_start_gib"] = row["peak_gib"] - row["start_gib"]
    row["estimate_gib"] = max(estimate["peak"] for estimate in estimates)
    row["gpu_peak_gib"] = torch.cuda.max_memory_allocated(args.device) / GIB if cuda else ""
    row.update({f"{stage}_s": value for stage, value in seconds.items()})
    return labels, found[0]


def exact_neighbors(features: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    """(R, k) nearest images of some rows, found without the code that is measured.

    Float32 products choose k + 32 candidates, float64 differences order them.
    """
    others, queries = torch.from_numpy(features), torch.from_numpy(features[rows])
    m = min(k + 32, len(features))
    values, ids = torch.empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.int64)
    for start in range(0, len(features), 8192):
        part = others[start : start + 8192]
        # |query|^2 is the same for all of a row
        scores = 2 * queries @ part.T - part.square().sum(dim=1)
        values = torch.cat([values, scores], dim=1)
        ids = torch.cat([ids, torch.arange(start, start + len(part)).expand(len(rows), -1)], dim=1)
        values, kept = values.topk(min(m, values.shape[1]), dim=1)
        ids = ids.gather(1, kept)
    result = np.empty((len(rows), k), dtype=np.int64)
    for at, candidates in enumerate(ids.numpy()):
        gaps = features[candidates].astype(np.float64) - features[rows[at]]
        result[at] = candidates[np.argsort((gaps**2).sum(axis=1), kind="stable")[:k]]
    return result


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Share of the exact neighbours (R, k) that are among the found ones (R, any)."""
    hits = sum(len(set(row) & set(true))
               for row, true in zip(found.tolist(), exact.tolist(), strict=True))
    return hits / exact.size


def run_child(args: argparse.Namespace) -> None:
    """What a process of ``--scaling`` does: one size, its row or its error into a JSON file."""
    try:
        result = measure_size(args)
    except (MemoryError, ImportError, RuntimeError) as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    args.child_result.write_text(json.dumps(result))


# --------------------------------------------------------------------------- scaling ----


def start_child(args: argparse.Namespace, n: int, backend: str) -> dict:
    """Measures one size in a fresh process, so that the peak of memory is its own."""
    options = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in SETTINGS]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        command = [sys.executable, str(Path(__file__).resolve()), f"--n={n}",
                   f"--backends={backend}", *options, f"--child-result={path}"]
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
    return _markdown([{name: line.get(name, "") for name in columns} for line in lines])


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


# ---------------------------------------------------------------------- command line ----


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(text.split(",")))


def _numbers(text: str) -> list[int]:
    return [int(part.replace("_", "")) for part in text.split(",")]


_numbers.__name__ = "list of integers"  # argparse names it in its error


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
    parser.add_argument("--backends", "--backend", type=_names, default=["auto"], metavar="NAMES",
                        help=f"of the search, with commas, of {', '.join(neighbors.BACKENDS)} "
                             "(default: auto)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda[:i] (default: %(default)s)")
    parser.add_argument("--toolbox-options", type=_numbers, metavar="NUMBERS",
                        help="values of the toolbox's search_option, with commas (default: 3, on a "
                             "GPU 0,1,2,3)")
    parser.add_argument("--toolbox-threads", type=int,
                        help="for the toolbox, whose small operations may be slower with several "
                             "(default: as --threads)")
    parser.add_argument("--no-toolbox", action="store_true", help="time the plugin alone")
    parser.add_argument("--scaling", type=_numbers, metavar="SIZES",
                        help="numbers of images, with commas: measure each in its own process")
    parser.add_argument("--output", type=Path, help="CSV file of --scaling (default: "
                        "clustering_scaling.csv)")
    parser.add_argument("--plot", type=Path, help="PNG file of --scaling (default: the CSV file's "
                        "name with .png)")
    parser.add_argument("--child-result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    problem = _problem(args) or _device_problem(args) or _file_problem(args)
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


def _device_problem(args: argparse.Namespace) -> str | None:
    """What is wrong with --device and the toolbox's options, whose default depends on it."""
    try:
        device = torch.device(args.device)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        return f"--device {args.device} must be cpu or cuda[:i]"
    if device.type == "cuda" and not torch.cuda.is_available():
        return f"--device {args.device} needs a GPU, and torch {torch.__version__} finds none"
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        return f"--device {args.device}: there are {torch.cuda.device_count()} GPUs, from cuda:0 on"
    try:
        for backend in args.backends:
            resolve(args, backend)
    except ImportError as error:
        return f"--backends {','.join(args.backends)}: {error}"
    if args.no_toolbox and args.toolbox_options:
        return "--toolbox-options cannot be used with --no-toolbox"
    if args.toolbox_options is None:
        args.toolbox_options = [3] if device.type == "cpu" else [0, 1, 2, 3]
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
