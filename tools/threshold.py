#!/usr/bin/env python3
"""Measures from which similarity on two images of a run are taken for the same person's.

    tools/threshold.py RUN_FOLDER [--images 4000] [--picture threshold.png] [KEY VALUE ...]

Embeds training images of whole clusters, drawn at random, with the run's last checkpoint, and
compares pairs of one cluster and of two. What comes out is kept in the run folder, in
pair_statistics.json, where load_run, tools/index.py and tools/export.py find it. No label of an
identity is read.

"Right" is the share of what a query finds above the threshold that is of its person, if that has as
many images in the index as in training, in an index of as many images as the training set has, or
--index-size, from other cameras and from the query's own.

--true-labels is a diagnostic: the error rates of the thresholds and what is right, as the
identities of the training images and of the labelled test set (DATASETS.TESTS) have them, where
those are known. It changes nothing of what is kept.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import caureid_plugin  # noqa: F401  first: it makes the toolbox importable
import matplotlib
import numpy as np
from caureid_plugin.compat import junk_identities, shown
from caureid_plugin.data import build_dataset
from caureid_plugin.files import write_atomically
from caureid_plugin.retrieval import Embedder, PairStatistics, load_run
from caureid_plugin.retrieval.run_folder import write_statistics
from caureid_plugin.retrieval.threshold import ANY, DEFAULT_RATE, OTHER, OWN
from tabulate import tabulate

from report_data import Missing, Run, read_run
from report_ranks import find_test_set
from search_embedder import options_first, percent, say

matplotlib.use("Agg")
from matplotlib import pyplot

RATES = (0.01, DEFAULT_RATE, 0.0001)  # of false matches
CAMERAS = ", from other cameras than the query's, and from its own"


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


# -------------------------------------------------------------------- the marked diagnostic ----


def by_identity(embedder: Embedder, items: Sequence[tuple], count: int, seed: int
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


def labelled_sets(cfg) -> dict[str, list]:
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


# ---------------------------------------------------------------------------------- output ----


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
            rates = statistics.at(found.value)
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
        rates = statistics.at(value)
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


def work(args: argparse.Namespace) -> None:
    """What the command does."""
    run = read_run(args.run_folder, args.checkpoint, args.opts)
    labelled = labelled_sets(run.cfg) if args.true_labels else {}
    embedder = load_run(run.checkpoint, opts=args.opts)
    measured = measure(run, embedder, args.images, args.seed)
    true = {name: by_identity(embedder, items, args.images, args.seed)
            for name, items in labelled.items()}
    picture = args.picture or args.run_folder / "threshold.png"
    content = draw(measured, true)
    write_atomically(picture, lambda file: file.write(content))
    kept = write_statistics(args.run_folder, embedder.fingerprint, measured)
    across = "of two cameras each" if measured.across else "of whatever camera"
    counts = sized(run.camids, args.index_size)
    say(f"{table(measured, true, counts)}\n"
        f"{len(measured.same)} pairs of one cluster, {len(measured.different)} of two, {across}. "
        "Clusters are no identities: expect more of both errors, above all with people that the "
        f"run has not seen.\nRight: of what a query finds from the threshold on, in an index of "
        f"{sum(counts.values())} images{CAMERAS if measured.across else ''}; none of it where the "
        "person is not in the index.")
    if embedder.verdict.level == "bad":
        say(f"{embedder.verdict.reason} Its clusters are no people then, and searches tell same or "
            "different with --despite-verdict alone.")
    elif embedder.verdict.level == "unknown":
        say(embedder.verdict.reason)
    if measured.lowest_rate > RATES[-1]:
        say("So few pairs of two clusters tell no false match rate below "
            f"{100 * measured.lowest_rate:.2g} %: take more images (--images), if there are any.")
    say(f"{shown(kept)} and {shown(picture)} were written.")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path, metavar="RUN_FOLDER", help="OUTPUT_DIR of a run")
    parser.add_argument("--checkpoint", type=Path, help="another than the last one of the run")
    parser.add_argument("--images", type=int, default=4000, metavar="N",
                        help="training images to embed, about (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    parser.add_argument("--picture", type=Path, metavar="FILE.png",
                        help="histograms (default: threshold.png in the run folder)")
    parser.add_argument("--index-size", type=int, metavar="N",
                        help="images of the index of which it is said how much is right (default: "
                             "as many as the training set has)")
    parser.add_argument("--true-labels", "--truth", action="store_true",
                        help="diagnostic: error rates and what is right by identities, where those "
                             "are known")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE",
                        help="config keys in place of the run's: where its data lie")
    args = parser.parse_args(options_first(
        sys.argv[1:] if argv is None else argv, ("--true-labels", "--truth")))
    if args.index_size is not None and args.index_size < 1:
        parser.error(f"--index-size {args.index_size} must be at least 1")
    if args.images < 1:
        parser.error(f"--images {args.images} must be at least 1")
    if len(args.opts) % 2:
        parser.error(f"config keys and values must come in pairs, got {' '.join(args.opts)}")
    if args.picture and (args.picture.suffix.lower() != ".png" or args.picture.is_dir()
                         or not args.picture.absolute().parent.is_dir()):
        parser.error(f"--picture {args.picture} must be a .png file in a folder that exists")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        work(args)
    except (ValueError, OSError) as error:
        raise SystemExit(f"tools/threshold.py: {error}") from error


if __name__ == "__main__":
    main()
