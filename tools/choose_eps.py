#!/usr/bin/env python3
"""Shows what DBSCAN finds at each of several values of eps, and suggests one.

    tools/choose_eps.py --config-file configs/Market/caureid.yml [KEY VALUE ...]
    tools/choose_eps.py --features features.npz --camera-aware --eps 0.3:0.7:0.05

With a config, the training images go through the network as in training: the one that training
starts from, or that of MODEL.WEIGHTS. Otherwise the features are those of a file, taken as they
are (training normalises them): .npz with "features" (N, D) and, if known, "camids" (N,), or .npy
with the features alone. CAUREID.CLUSTER of the config holds every option of the clustering; the
options below go before keys.

The table and the suggestion use no identity. --diagnostics adds columns that do, for studies.
"""

import argparse
import csv
import tokenize
import zipfile
import zlib
from pathlib import Path

import caureid_plugin  # first: it makes the toolbox importable
import numpy as np
import torch
from caureid_plugin.clustering import (
    Search,
    jaccard_encoding,
    outliers_to_singletons,
    standardize_by_camera,
    suggest_eps,
    sweep_eps,
)
from caureid_plugin.data import build_extraction_loader
from caureid_plugin.engine import build_network, check_identities
from sklearn.metrics import adjusted_rand_score
from tabulate import tabulate
from torch.nn.functional import normalize

MOST_VALUES = 200  # of eps
KNOWN_ARRAYS = ("features", "camids", "identities")
# what np.load raises for a file that it cannot read
BROKEN = (EOFError, MemoryError, OSError, OverflowError, RuntimeError, SyntaxError, TypeError,
          ValueError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)
# option -> keys below CAUREID.CLUSTER
COUNTS = {"min_samples": ["MIN_SAMPLES"], "k1": ["K1"], "k2": ["K2"], "k1_intra": ["K1_INTRA"],
          "k1_inter": ["K1_INTER"], "k2_intra": ["K2_INTRA", "K2_INTRA_FIRST"],
          "k2_inter": ["K2_INTER", "K2_INTER_FIRST"]}
# column of a row -> heading, format
COLUMNS = {"eps": ("eps", "g"), "clusters": ("clusters", "d"), "outliers": ("outliers", "d"),
           "largest": ("largest", "d"), "cross_camera": ("span cameras", ".1%"),
           "centres": ("centres", "d")}
DIAGNOSTICS = {"ari": ("ARI*", ".3f"), "ari_clustered": ("ARI clustered*", ".3f"),
               "precision": ("precision*", ".3f"), "recall": ("recall*", ".3f")}


def parse_eps(text: str) -> list[float]:
    """Values of "0.4,0.5,0.6" or of "first:last:step", which holds both ends."""
    try:
        if ":" not in text:
            return [float(part) for part in text.split(",")]
        first, last, step = (float(part) for part in text.split(":"))
        count = round((last - first) / step) + 1 if step > 0 else 0
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a list such as 0.4,0.5 nor first:last:step") from None
    if not 1 <= count <= MOST_VALUES:
        raise argparse.ArgumentTypeError(
            f"{text!r} holds {count} values, 1 to {MOST_VALUES} are allowed")
    # 0.3, not 0.30000000000000004; what exceeds the end by a part of the step is left out
    values = [round(first + i * step, 10) for i in range(count)]
    return [value for value in values if value <= last + 1e-9]


def read_features(path: Path) -> dict:
    """"features" of a file and what else it holds of "camids" and "identities".

    Raises:
        ValueError: no file, another kind of file, a damaged one, or no features in it.
    """
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"--features {path} must end in .npy or .npz")
    if not path.is_file():  # reading a FIFO would wait for ever
        raise ValueError(f"--features {path} is not a file")
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"features": loaded} if isinstance(loaded, np.ndarray) else loaded
        found = {name: arrays[name] for name in KNOWN_ARRAYS if name in arrays}
    except BROKEN as error:
        raise ValueError(f"--features {path} is damaged or holds objects: save plain arrays with "
                         f"np.savez ({error})") from error
    if "features" not in found:
        raise ValueError(f'--features {path} holds no "features", only {sorted(arrays)}')
    return found


def extract(cfg, identities: bool) -> dict:
    """Features and cameras of the training images, and identities if they are asked for.

    Raises:
        ValueError: identities are asked for and the images have none.
    """
    if identities:
        check_identities(cfg, "--diagnostics")
    loader = build_extraction_loader(cfg, caureid_plugin.training_images(cfg))
    model = build_network(cfg, cfg.MODEL.WEIGHTS)
    features = normalize(caureid_plugin.extract_features(model, loader), dim=1)
    found = {"features": features.numpy(), "camids": loader.dataset.camids}
    if identities:
        names = [str(identity) for name in cfg.DATASETS.NAMES
                 for _, identity, _ in caureid_plugin.build_dataset(cfg, name).train]
        found["identities"] = np.unique(names, return_inverse=True)[1]
    return found


def encode(cfg, data: dict, untrained: bool):
    """The encoding that CAUREID.CLUSTER asks for, and a description of its neighbours."""
    node = cfg.CAUREID.CLUSTER
    counts = {"k1": node.K1, "k2": node.K2}
    if node.CAMERA_AWARE:
        first = "_FIRST" if untrained else ""
        counts = {"k1_intra": node.K1_INTRA, "k1_inter": node.K1_INTER,
                  "k2_intra": node["K2_INTRA" + first], "k2_inter": node["K2_INTER" + first]}
    features = data["features"]
    if node.STANDARDIZE:
        features = standardize_by_camera(torch.from_numpy(features), data["camids"])
    cameras = {"camids": data["camids"]} if node.CAMERA_AWARE else {}
    search = Search(backend=node.SEARCH, recall=node.RECALL, max_memory=node.MAX_MEMORY or None)
    text = ("camera-aware" if node.CAMERA_AWARE else "plain") + " neighbours, " + ", ".join(
        f"{name} {value}" for name, value in counts.items())
    if node.STANDARDIZE:
        text += ", features standardised by camera"
    # lists as long as there are images, as in training
    return jaccard_encoding(features, small=True, search=search, **counts, **cameras), text


def compare(labels: np.ndarray, identities: np.ndarray) -> dict:
    """Diagnostics, with identity labels. Pairs: two images in one cluster, or of one identity.

    An outlier is a cluster of its own, but for "ari_clustered", which leaves outliers out.
    """

    def pairs(sizes: np.ndarray) -> int:
        return int((sizes * (sizes - 1) // 2).sum())

    inlier, alone = labels >= 0, outliers_to_singletons(labels)
    identities = np.unique(identities, return_inverse=True)[1]
    together = alone * (identities.max() + 1) + identities  # one number for each combination
    right = pairs(np.unique(together, return_counts=True)[1])
    found, real = pairs(np.bincount(alone)), pairs(np.bincount(identities))
    return {
        "ari": adjusted_rand_score(identities, alone),
        "ari_clustered": (adjusted_rand_score(identities[inlier], labels[inlier])
                          if inlier.any() else float("nan")),
        "precision": right / found if found else float("nan"),
        "recall": right / real if real else float("nan"),
    }


def table(rows: list[dict], suggested: float) -> str:
    """Markdown table; the row of the suggestion is marked with an arrow."""
    columns = {name: shown for name, shown in {**COLUMNS, **DIAGNOSTICS}.items()
               if name in rows[0]}
    lines = []
    for row in rows:
        line = {heading: format(row[name], form) for name, (heading, form) in columns.items()}
        for name in ("outliers", "largest"):
            line[name] += f" ({row[name] / row['images']:.1%})"
        lines.append({"": "->" if row["eps"] == suggested else "", **line})
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True,
                    colalign=["right"] * len(lines[0]))


def draw(rows: list[dict], suggested: float, path: Path) -> None:
    """Saves the picture: the figures against eps, the suggestion as a vertical line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    diagnosed = "ari" in rows[0]
    figure, axes = pyplot.subplots(2, 3 if diagnosed else 2, sharex=True, squeeze=False,
                                   figsize=(12 if diagnosed else 8.5, 6))
    eps, images = [row["eps"] for row in rows], rows[0]["images"]

    def line(axis, name: str, label: str, scale: float = 1) -> None:
        if name in rows[0]:
            axis.plot(eps, [scale * row[name] for row in rows], marker=".", label=label)

    line(axes[0, 0], "clusters", "clusters")
    line(axes[0, 0], "centres", "camera centres")
    axes[0, 0].set(title="clusters", ylabel="count")
    line(axes[0, 1], "outliers", "outliers", 100 / images)
    axes[0, 1].set(title="outliers", ylabel="% of the images")
    line(axes[1, 0], "largest", "largest cluster", 100 / images)
    axes[1, 0].set(title="largest cluster", ylabel="% of the images")
    line(axes[1, 1], "cross_camera", "spanning cameras", 100)
    axes[1, 1].set(title="clusters that span cameras", ylabel="% of the clusters", ylim=(0, 105))
    if diagnosed:
        line(axes[0, 2], "ari", "all, outliers alone")
        line(axes[0, 2], "ari_clustered", "clustered images")
        axes[0, 2].set(title="adjusted Rand index (uses identities)")
        line(axes[1, 2], "precision", "precision")
        line(axes[1, 2], "recall", "recall")
        axes[1, 2].set(title="pairs of images (uses identities)")
    for axis in axes.flat:
        axis.axvline(suggested, color="black", linestyle="--", linewidth=1,
                     label=f"suggested: {suggested:g}")
        axis.set_ylim(0, axis.get_ylim()[1])
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("eps")
    for axis in (axes[0, 0], *(axes[:, 2] if diagnosed else ())):
        axis.set_ylim(top=1.3 * axis.get_ylim()[1])  # room for the legend above the curves
        axis.legend(fontsize="small", loc="upper center", ncol=2)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def write(rows: list[dict], suggested: float, path: Path) -> None:
    """One line for each eps, every figure and whether it is the suggestion (1 or 0)."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0], "suggested"])
        writer.writeheader()
        writer.writerows({**row, "suggested": int(row["eps"] == suggested)} for row in rows)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config-file", help="extract the features of its training images")
    source.add_argument("--features", type=Path, help=".npy or .npz file of features")
    parser.add_argument("--eps", type=parse_eps, default="0.3:0.75:0.025", dest="eps_values",
                        help="0.4,0.5,0.6 or first:last:step (default: %(default)s)")
    parser.add_argument("--camera-aware", action=argparse.BooleanOptionalAction,
                        help="camera-aware neighbours or plain ones (default: as configured)")
    for name, keys in COUNTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int,
                            help=f"in place of CAUREID.CLUSTER.{keys[0]}")
    parser.add_argument("--diagnostics", action="store_true",
                        help='compare with identities, the data set\'s or "identities" of the '
                             "file; for studies")
    parser.add_argument("--save-features", type=Path, help="file for the features, .npz")
    parser.add_argument("--output", type=Path, help="CSV file to write")
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values")
    args = parser.parse_args(argv)
    for name, suffix in (("save_features", ".npz"), ("output", ".csv"), ("plot", ".png")):
        path, option = getattr(args, name), f"--{name.replace('_', '-')}"
        if path and path.suffix != suffix:
            parser.error(f"{option} {path} must end in {suffix}")
        if path and not path.parent.is_dir():  # said before minutes of extraction
            parser.error(f"{option} {path}: the folder {path.parent} does not exist")
    return args


def configure(args: argparse.Namespace):
    """The frozen config: the file, then keys, then the options of this tool."""
    cfg = caureid_plugin.load_config(args.config_file or "", args.opts)
    if args.camera_aware is not None:
        cfg.CAUREID.CLUSTER.CAMERA_AWARE = args.camera_aware
    for name, keys in COUNTS.items():
        if getattr(args, name) is not None:
            for key in keys:
                cfg.CAUREID.CLUSTER[key] = getattr(args, name)
    cfg.freeze()
    return cfg


def load(args: argparse.Namespace, cfg) -> dict:
    """The data, with everything in it that the options need.

    Raises:
        ValueError: it lacks cameras or identities.
    """
    data = extract(cfg, args.diagnostics) if args.config_file else read_features(args.features)
    node = cfg.CAUREID.CLUSTER
    if (node.CAMERA_AWARE or node.STANDARDIZE) and "camids" not in data:
        option = "--camera-aware" if node.CAMERA_AWARE else "CAUREID.CLUSTER.STANDARDIZE"
        raise ValueError(f'{option} needs "camids" (N,) in --features {args.features}')
    if args.diagnostics and np.shape(data.get("identities")) != (len(data["features"]),):
        raise ValueError(f'--diagnostics needs "identities" (N,) in --features {args.features}')
    if args.save_features:
        np.savez(args.save_features, **data)
    return data


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = configure(args)
    data = load(args, cfg)
    node = cfg.CAUREID.CLUSTER
    encoding, neighbours = encode(cfg, data, bool(args.config_file) and not cfg.MODEL.WEIGHTS)
    extra = (lambda labels: compare(labels, data["identities"])) if args.diagnostics else None
    rows = sweep_eps(encoding, args.eps_values, min_samples=node.MIN_SAMPLES,
                     camids=data.get("camids"), extra=extra)
    suggested = suggest_eps(rows)

    cameras = f"{len(np.unique(data['camids']))} cameras" if "camids" in data else "no cameras"
    print(f"{len(data['features'])} images, {cameras}; {neighbours}, min_samples "
          f"{node.MIN_SAMPLES}\n\n{table(rows, suggested)}\n")
    if args.diagnostics:
        print("* diagnostic, uses identity labels: over all images with each outlier on its own; "
              "the clustered ones\n")
    what = "camera centres" if "centres" in rows[0] else "clusters (no cameras are known)"
    print(f"suggested: CAUREID.CLUSTER.EPS {suggested:g}, the most {what}")
    if suggested in (rows[0]["eps"], rows[-1]["eps"]):
        print("It is at an end of the values tried: try --eps with others beyond it.")
    if args.output:
        write(rows, suggested, args.output)
    if args.plot:
        draw(rows, suggested, args.plot)


if __name__ == "__main__":
    main()
