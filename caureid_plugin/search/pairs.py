"""``caureid threshold``: similarities of pairs of a run's images, and what follows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
from fastreid.config import CfgNode
from matplotlib import pyplot
from tabulate import tabulate

from ..common.files import write_atomically
from ..common.text import percent, printable, say
from ..compat.registries import junk_identities
from ..data import build_dataset
from ..retrieval import Embedder, PairStatistics, load_run
from ..runs.folder import write_statistics
from ..runs.run import Missing, Run, find_test_set, read_run
from ..runs.threshold import ANY, DEFAULT_RATE, OTHER, OWN

matplotlib.use("Agg")
RATES = (0.01, DEFAULT_RATE, 0.0001)  # of false matches
CAMERAS = ": first results of other cameras than the query's, then of its own"


def sample_clusters(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows of whole clusters, drawn at random until there are ``count``, in order."""
    rng = np.random.default_rng(seed)
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    order = rng.permutation(len(sizes))
    kept = order[:np.searchsorted(np.cumsum(sizes[order]), count) + 1]
    return np.flatnonzero(np.isin(labels, kept))


def measure(run: Run, embedder: Embedder, count: int, seed: int) -> PairStatistics:
    """Pair statistics of training images as the network embeds them."""
    rows = sample_clusters(run.labels, count, seed)
    features = embedder.embed([run.paths[row] for row in rows], progress=True)
    return PairStatistics.from_features(features, run.labels[rows], run.camids[rows], seed=seed)


def by_identity(embedder: Embedder, items: Sequence[tuple[Any, ...]], count: int, seed: int
                ) -> PairStatistics:
    """Pair statistics of images with identities in place of clusters.

    Args:
        items: (path, identity, camera).
    """
    codes = [np.unique([str(item[part]) for item in items], return_inverse=True)[1]
             for part in (1, 2)]
    rows = sample_clusters(codes[0], count, seed)
    features = embedder.embed([items[row][0] for row in rows], progress=True)
    return PairStatistics.from_features(features, codes[0][rows], codes[1][rows], seed=seed)


def labelled_sets(cfg: CfgNode) -> dict[str, list[Any]]:
    """(path, identity, camera) of the images whose identities are known, by name of the set.

    Images of no one, which some test sets have, are left out.

    Raises:
        Missing: there are none.
    """
    sets = {}
    for name in cfg.DATASETS.NAMES:
        items = build_dataset(cfg, name).train
        if len({item[1] for item in items}) > 1:  # own footage has one for all: none
            sets[f"{name}, training images"] = items
    name, query, gallery, _ = find_test_set(cfg)
    if name:
        junk = junk_identities(name)
        sets[f"{name}, test images"] = [item for item in query + gallery if item[1] not in junk]
    if not sets:
        raise Missing("--true-labels: neither the training images nor a test set (DATASETS.TESTS) "
                      "have identities.")
    return sets


def right(statistics: PairStatistics, value: float, counts: dict[str, int]) -> str:
    """Shares of what is marked that are right: from other cameras, from the query's own."""
    found = statistics.expected(value, counts)
    return ", ".join(f"{100 * found[name].share_right:.0f} %" if name in found else "-"
                     for name in ((OTHER, OWN) if statistics.across else (ANY,)))


def sized(camids: np.ndarray, size: int | None) -> dict[str, int]:
    """Images by camera of an index with the cameras' shares of the training set."""
    counts = np.bincount(camids)
    scale = 1 if size is None else size / len(camids)
    return {f"camera {number}": round(scale * count) for number, count in enumerate(counts.tolist())
            if count}


def table(measured: PairStatistics, true: dict[str, PairStatistics], counts: dict[str, int]) -> str:
    """A line for each threshold, and for each set of images."""
    rows = []
    wanted = {"equal error rates": measured.equal_errors()}
    if measured.lowest_rate > DEFAULT_RATE:
        wanted["suggested"] = measured.threshold()
    wanted |= {f"{100 * rate:g} %": measured.threshold(rate)
               for rate in RATES if rate >= measured.lowest_rate}
    for start, found in wanted.items():
        for name, statistics in {"expected": measured, **true}.items():
            rates = statistics.error_rates(found.value)
            first = ["", ""] if name != "expected" else [start, f"{found.value:.3f}"]
            rows.append([*first, name,
                         percent(rates.false_match_rate, len(statistics.different)),
                         percent(rates.false_non_match_rate, len(statistics.same)),
                         right(statistics, found.value, counts)])
    return tabulate(rows, headers=["wanted", "threshold", "of", "false matches",
                                   "false non-matches", "right"], disable_numparse=True)


def draw(measured: PairStatistics, true: dict[str, PairStatistics]) -> bytes:
    """Both kinds of similarities and the threshold that is suggested, as PNG."""
    kinds = {"clusters of the run": measured, **true}
    figure, axes = pyplot.subplots(len(kinds), 1, figsize=(8, 1.2 + 2.6 * len(kinds)), sharex=True,
                                   layout="constrained", squeeze=False)
    bins = np.arange(-1.0005, 1.02, 0.02)
    value = measured.threshold().value
    for axis, (name, statistics) in zip(axes[:, 0], kinds.items(), strict=True):
        rates = statistics.error_rates(value)
        one, two = (("cluster", "clusters") if statistics is measured else
                    ("identity", "identities"))
        for part, colour, label in ((statistics.different, "#d9761a", f"two {two}"),
                                    (statistics.same, "#2f86d1", f"one {one}")):
            axis.hist(part, bins, density=True, color=colour, alpha=0.6,
                      label=f"{len(part)} pairs of {label}")
        axis.axvline(value, color="black", linewidth=1)
        matches = percent(rates.false_match_rate, len(statistics.different))
        misses = percent(rates.false_non_match_rate, len(statistics.same))
        axis.set_title(f"{name}: from {value:.3f} on {matches} false matches, {misses} false "
                       "non-matches", fontsize=10)
        axis.set_yticks([])
        axis.set_ylabel("share of pairs")
        axis.legend(frameon=False, fontsize=9)
    low = min(part[0] for statistics in kinds.values()
              for part in (statistics.same, statistics.different))
    axes[-1, 0].set_xlim(max(-1, low - 0.02), 1.02)
    axes[-1, 0].set_xlabel("similarity (cosine)")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return buffer.getvalue()


def run(args: SimpleNamespace) -> None:
    """``caureid threshold``.

    Args:
        args: its options.

    Raises:
        ValueError, OSError: the run or its images cannot be used; says why.
    """
    trained = read_run(args.run_folder, args.checkpoint, args.opts)
    labelled = labelled_sets(trained.cfg) if args.true_labels else {}
    embedder = load_run(trained.checkpoint, opts=args.opts)
    measured = measure(trained, embedder, args.images, args.seed)
    true = {name: by_identity(embedder, items, args.images, args.seed)
            for name, items in labelled.items()}
    picture = args.picture or args.run_folder / "threshold.png"
    content = draw(measured, true)
    write_atomically(picture, content)
    kept = write_statistics(args.run_folder, embedder.fingerprint, measured)
    across = "two cameras each" if measured.across else "any cameras"
    counts = sized(trained.camids, args.index_size)
    say(f"{table(measured, true, counts)}\n"
        f"Measured on {len(measured.same)} pairs of one cluster and {len(measured.different)} "
        f"pairs of two clusters, from {across}. Clusters are not identities: expect more errors of "
        "both kinds, above all for people that the run has not seen.\n"
        'The column "right" is the share of results above the threshold that show the query\'s '
        f"person, in an index of {sum(counts.values())} images"
        f"{CAMERAS if measured.across else ''}. If the person is not in the index, no result is "
        "right.")
    if why := embedder.verdict.why_withheld():
        say(f"A search says: {why}")
    elif embedder.verdict.level == "unknown":
        say(embedder.verdict.reason)
    if measured.lowest_rate > RATES[-1]:
        say("With so few pairs of two clusters, no false match rate below "
            f"{100 * measured.lowest_rate:.2g} % can be measured: take more images (--images), if "
            "there are any.")
    say(f"{printable(kept)} and {printable(picture)} were written.")
