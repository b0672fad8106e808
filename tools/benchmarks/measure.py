"""One clustering of simulated features: its times, its memory, and how right it is."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from caureid_plugin.clustering import Search, assign_pseudo_labels, memory, pseudo_labels
from caureid_plugin.clustering.simulated import simulate_features
from sklearn.metrics import adjusted_rand_score
from tabulate import tabulate

from benchmarks.machine import GIB, current_memory, forget_peak, limit_threads, machine_name

# stage -> the function that assign_pseudo_labels calls for it
STAGES = {"search": "neighbor_lists", "encoding": "encode", "pairs": "pairs_within",
          "DBSCAN": "cluster_graph"}
SAMPLE = 1000  # images on which recall is measured
SECONDS_BETWEEN_LINES = 10
SETTINGS = ("dim", "k1", "k2", "eps", "min_samples", "seed", "threads", "device")


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


def markdown(rows: list[dict]) -> str:
    """A Markdown table, a line for each row."""
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True,
                    colalign=["left"] + ["right"] * (len(rows[0]) - 1))


def clustered_ari(identities: np.ndarray, labels: np.ndarray) -> float:
    """Adjusted Rand index of the images that are in a cluster; 0 if none is."""
    inlier = labels >= 0
    return float(adjusted_rand_score(identities[inlier], labels[inlier])) if inlier.any() else 0.0


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
    for row, candidates in enumerate(ids.numpy()):
        gaps = features[candidates].astype(np.float64) - features[rows[row]]
        result[row] = candidates[np.argsort((gaps**2).sum(axis=1), kind="stable")[:k]]
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
