"""Clusters at each of several values of eps: the table, the picture and the suggestion."""

from __future__ import annotations

import csv
import tokenize
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fastreid.config import CfgNode
from sklearn.metrics import adjusted_rand_score
from tabulate import tabulate
from torch.nn.functional import normalize

from ..clustering import (
    Search,
    jaccard_encoding,
    outliers_to_singletons,
    standardize_by_camera,
    suggest_eps,
    sweep_eps,
)
from ..common.errors import UserError
from ..common.text import naming_keys
from ..data import build_dataset, build_extraction_loader, training_images
from ..engine import build_network, check_identities, extract_features, load_config
from ..engine.checks import naming_cluster_keys

KNOWN_ARRAYS = ("features", "camids", "identities")
# what np.load raises for a file that it cannot read
BROKEN = (EOFError, MemoryError, OSError, OverflowError, RuntimeError, SyntaxError, TypeError,
          ValueError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)
# column of a row -> heading, format
COLUMNS = {"eps": ("eps", "g"), "clusters": ("clusters", "d"), "outliers": ("outliers", "d"),
           "largest": ("largest", "d"), "cross_camera": ("span cameras", ".1%"),
           "centres": ("centres", "d")}
DIAGNOSTICS = {"ari": ("ARI*", ".3f"), "ari_clustered": ("ARI clustered*", ".3f"),
               "precision": ("precision*", ".3f"), "recall": ("recall*", ".3f")}


def read_features(path: Path) -> dict[str, Any]:
    """"features" of a file and what else it holds of "camids" and "identities".

    Raises:
        ValueError: no file, another kind of file, a damaged one, or no features in it.
    """
    if path.suffix not in (".npy", ".npz"):
        raise UserError(f"--features {path} must end in .npy or .npz")
    if not path.is_file():  # reading a FIFO would wait for ever
        raise UserError(f"--features {path} is not a file")
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"features": loaded} if isinstance(loaded, np.ndarray) else loaded
        found = {name: arrays[name] for name in KNOWN_ARRAYS if name in arrays}
    except BROKEN as error:
        raise UserError(f"--features {path} is damaged or holds objects: save plain arrays with "
                        f"np.savez ({error})") from error
    if "features" not in found:
        raise UserError(f'--features {path} holds no "features", only {sorted(arrays)}')
    return found


def extract(cfg: CfgNode, identities: bool) -> dict[str, Any]:
    """Features and cameras of the training images, and identities if they are asked for.

    Raises:
        ValueError: identities are asked for and the images have none.
    """
    if identities:
        check_identities(cfg, "--diagnostics")
    loader: Any = build_extraction_loader(cfg, training_images(cfg))
    model = build_network(cfg, cfg.MODEL.WEIGHTS)
    features = normalize(extract_features(model, loader), dim=1)
    found = {"features": features.numpy(), "camids": loader.dataset.camids,
             "tracks": loader.dataset.tracks}
    if identities:
        names = [str(identity) for name in cfg.DATASETS.NAMES
                 for _, identity, *_ in build_dataset(cfg, name).train]
        found["identities"] = np.unique(names, return_inverse=True)[1]
    return found


def encode(cfg: CfgNode, data: dict[str, Any], untrained: bool) -> tuple[Any, str]:
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
    if data.get("tracks") is not None:
        text += f", of {len(data['tracks'])} tracks"
    # lists as long as there are images, as in training
    return jaccard_encoding(features, tracks=data.get("tracks"), small=True, search=search,
                            **counts, **cameras), text


def compare(labels: np.ndarray, identities: np.ndarray) -> dict[str, float]:
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


def table(rows: list[dict[str, Any]], suggested: float) -> str:
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


def draw(rows: list[dict[str, Any]], suggested: float, path: Path) -> None:
    """Saves the picture: the figures against eps, the suggestion as a vertical line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    diagnosed = "ari" in rows[0]
    figure, axes = pyplot.subplots(2, 3 if diagnosed else 2, sharex=True, squeeze=False,
                                   figsize=(12 if diagnosed else 8.5, 6))
    eps, images = [row["eps"] for row in rows], rows[0]["images"]

    def line(axis: Any, name: str, label: str, scale: float = 1) -> None:
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


def write(rows: list[dict[str, Any]], suggested: float, path: Path) -> None:
    """One line for each eps, every figure and whether it is the suggestion (1 or 0)."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0], "suggested"])
        writer.writeheader()
        writer.writerows({**row, "suggested": int(row["eps"] == suggested)} for row in rows)


def load(args: SimpleNamespace, cfg: CfgNode) -> dict[str, Any]:
    """The data, with everything in it that the options need.

    Raises:
        ValueError: it lacks cameras or identities.
    """
    data = extract(cfg, args.diagnostics) if args.config_file else read_features(args.features)
    node = cfg.CAUREID.CLUSTER
    if (node.CAMERA_AWARE or node.STANDARDIZE) and "camids" not in data:
        option = "--camera-aware" if node.CAMERA_AWARE else "CAUREID.CLUSTER.STANDARDIZE"
        raise UserError(f'{option} needs "camids" (N,) in --features {args.features}')
    if args.diagnostics and np.shape(data.get("identities", ())) != (len(data["features"]),):
        raise UserError(f'--diagnostics needs "identities" (N,) in --features {args.features}')
    if args.save_features:
        if data.get("tracks") is not None:
            raise UserError(f"--save-features {args.save_features}: such a file holds no tracks, "
                            "and images would be clustered. Set CAMERA_FOLDER.TRACK none.")
        np.savez(args.save_features, **{name: data[name] for name in KNOWN_ARRAYS if name in data})
    return data


def run(args: SimpleNamespace) -> None:
    """Does what ``caureid eps`` is asked for; ``args``: its options.

    Raises:
        ValueError, KeyError: a config, features or values of eps that cannot be used.
        OSError: a file that cannot be read or written.
    """
    cfg = load_config(args.config_file, args.opts)
    cfg.freeze()
    data = load(args, cfg)
    node = cfg.CAUREID.CLUSTER
    untrained = bool(args.config_file) and not cfg.MODEL.WEIGHTS
    extra = (lambda labels: compare(labels, data["identities"])) if args.diagnostics else None
    file = dict.fromkeys(("features", "camids"), f"--features {args.features}")
    with naming_cluster_keys(cfg, 0 if untrained else cfg.SOLVER.MAX_EPOCH), naming_keys(
            {} if args.config_file else file):
        encoding, neighbours = encode(cfg, data, untrained)
        rows = sweep_eps(encoding, args.eps_values, min_samples=node.MIN_SAMPLES,
                         camids=data.get("camids"), tracks=data.get("tracks"), extra=extra)
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
