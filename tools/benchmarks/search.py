#!/usr/bin/env python3
"""Measures how long an index takes to build, open, extend and answer, on simulated crops.

    OMP_NUM_THREADS=2 tools/benchmarks/search.py [--images 100000] [--dims 128 512 2048]

The crops are of people seen 20 times each by six cameras: random directions and noise. Queries are
others of the same people, asked one at a time, after embedding. Beside it stands the plain way: all
products of the exact 32-bit vectors by numpy, in the same process, with as many threads.
"""

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import caureid_plugin  # noqa: F401  first: it makes the toolbox importable
import numpy as np
from caureid_plugin.retrieval.index import Index
from caureid_plugin.retrieval.index_files import BLOCK_IMAGES, Entry, require_faiss
from tabulate import tabulate
from threadpoolctl import threadpool_limits

SIGHTINGS, CAMERAS, TOP = 20, 6, 10
ADDED = 500  # crops, to an index that is full
NOISE = 0.7  # length of what differs between two images of one person; that they share has 1


@dataclasses.dataclass(frozen=True)
class Size:
    """Stands for a network's preprocessing, which the manifest names."""

    size: tuple[int, int] = (256, 128)


@dataclasses.dataclass(frozen=True)
class Network:
    """What an index asks of a network that is not there."""

    dim: int
    name: str = "simulated"
    fingerprint: str = 32 * "0"
    preprocessing: Size = Size()
    statistics: None = None
    why_no_statistics: str = "The embeddings are simulated."


def simulate(images: int, queries: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops (images, dim) and queries (queries, dim), float32 of length 1."""
    rng = np.random.default_rng(seed)
    people = rng.standard_normal((-(-images // SIGHTINGS), dim), dtype=np.float32)

    def seen(who: np.ndarray) -> np.ndarray:
        features = people[who]
        features += NOISE * rng.standard_normal(features.shape, dtype=np.float32)
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    return (seen(rng.permutation(images) // SIGHTINGS),
            seen(rng.integers(0, len(people), size=queries)))


def build(folder: Path, features: np.ndarray) -> float:
    """Makes the index block by block; gives the seconds."""
    start = time.perf_counter()
    index = Index.create(folder, Network(features.shape[1]))
    for first in range(0, len(features), BLOCK_IMAGES):
        rows = range(first, min(first + BLOCK_IMAGES, len(features)))
        index.add(features[rows.start:rows.stop], [
            Entry("/crops", f"{row:07d}.jpg", str(1 + row % CAMERAS)) for row in rows])
    return time.perf_counter() - start


def add_more(folder: Path, features: np.ndarray) -> float:
    """Adds crops to the full index, as caureid index does after each 500; median milliseconds."""
    index, times = Index.open(folder), []
    with index.writing():
        for number in range(5):
            entries = [Entry("/more", f"{number}_{row}.jpg") for row in range(ADDED)]
            start = time.perf_counter()
            index.add(features[:ADDED], entries)
            times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def exact(features: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Rows of the best, in order."""
    scores = features @ query
    best = np.argpartition(-scores, TOP - 1)[:TOP]
    return best[np.argsort(-scores[best])]


def latencies(ask: Callable[[np.ndarray], object], queries: np.ndarray) -> np.ndarray:
    """Milliseconds of each query, after one that does not count."""
    ask(queries[0])
    times = [time.perf_counter()]
    for query in queries:
        ask(query)
        times.append(time.perf_counter())
    return 1000 * np.diff(times)


def measure(args: argparse.Namespace, dim: int) -> dict[str, str]:
    """One row of the table."""
    features, queries = simulate(args.images, args.queries, dim, args.seed)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "index"
        seconds = build(folder, features)
        size = sum(path.stat().st_size for path in folder.iterdir())
        start = time.perf_counter()
        index = Index.open(folder)
        opened = time.perf_counter() - start
        added = add_more(folder, features)
    ways = {
        "all": lambda query: index.search(query[None], TOP),
        "but one camera": lambda query: index.search(query[None], TOP, without_cameras=["1"]),
        "one camera": lambda query: index.search(query[None], TOP, cameras=["1"]),
        "numpy": lambda query: exact(features, query)}
    times = {name: latencies(ask, queries) for name, ask in ways.items()}
    agree = [len({hit.row for hit in index.search(query[None], TOP)[0]}
                 & set(exact(features, query).tolist())) for query in queries]
    cells = {name: "{:.1f} / {:.1f}".format(*np.percentile(found, (50, 95)))
             for name, found in times.items()}
    ratio = float(np.median(times["numpy"]) / np.median(times["all"]))
    return {"D": str(dim), "build, s": f"{seconds:.1f}", "MiB": f"{size / 2 ** 20:.0f}",
            "open, s": f"{opened:.2f}", f"add {ADDED}, ms": f"{added:.0f}", **cells,
            "numpy / index": f"{ratio:.1f}",
            f"top {TOP} as exact": f"{100 * np.mean(agree) / TOP:.2f} %"}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000, metavar="N")
    parser.add_argument("--queries", type=int, default=200, metavar="N")
    parser.add_argument("--dims", type=int, nargs="+", default=[128, 512, 2048], metavar="D")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    if min(args.queries, *args.dims) < 1 or args.images < ADDED:
        parser.error(f"--images must be at least {ADDED}, --queries and --dims at least 1")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        faiss = require_faiss()
    except ImportError as error:
        raise SystemExit(f"tools/benchmarks/search.py: {error}") from error
    threads = faiss.omp_get_max_threads()
    print(f"{args.images} images, {args.queries} queries, seed {args.seed}, {threads} threads, "
          f"{os.cpu_count()} cores, faiss {faiss.__version__}. Milliseconds: median / 95 %.")
    with threadpool_limits(threads):
        rows = [measure(args, dim) for dim in args.dims]
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
