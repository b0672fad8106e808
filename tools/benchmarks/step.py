#!/usr/bin/env python3
"""Times a step's losses and its update of the memory bank, as the number of images N grows.

    tools/benchmarks/step.py [--sizes 10000 100000 1000000] [--clusters 1000] [--plot step.png]

Three steps are timed in turn, in one process, on the same batches: the plugin's with both of its
losses (forward, backward, bank update), the plugin's with InfoNCE only, and InfoNCE in the way
SpCL (Ge et al., NeurIPS 2020, https://arxiv.org/abs/2006.02713) published it: the similarities to
all N rows of the bank, averaged over the rows of each cluster, and rows updated one by one. The
third is written anew here after the idea. The network's own time is not part of a step.
"""

import argparse
import csv
import time
from functools import partial
from pathlib import Path

import caureid_plugin  # noqa: F401  (first: it makes the toolbox importable)
import numpy as np
import torch
import torch.nn.functional as F
from caureid_plugin import MemoryBank
from caureid_plugin.modeling.losses import CACCLoss, InfoNCELoss
from tabulate import tabulate
from tqdm import tqdm

CAMERAS = 6  # every cluster is seen by all of them
INSTANCES = 4  # images of a cluster in a batch
IMAGES_PER_CLUSTER = 16  # where K grows with N
MOMENTUM, TEMPERATURE = 0.2, 0.05

BOTH, INFONCE, ALL_ROWS = "InfoNCE + CACC", "InfoNCE", "SpCL's way"
FIXED, PROPORTIONAL = "fixed", "proportional"


def all_rows_logits(features: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor,
                    num_clusters: int, temperature: float) -> torch.Tensor:
    """Mean similarity of each image to the rows of each cluster, by way of all N similarities.

    Args:
        features: (B, D), L2-normalised.
        rows: (N, D), the bank.
        labels: (N,) clusters 0..K-1.
        num_clusters: K.
        temperature: t > 0.

    Returns:
        (B, K) logits.
    """
    # (N, B) rather than (B, N): faster to add up by rows
    similarity = rows @ features.t() / temperature
    sums = similarity.new_zeros(num_clusters, len(features)).index_add(0, labels, similarity)
    sizes = torch.bincount(labels, minlength=num_clusters)
    return (sums / sizes[:, None]).t()


@torch.no_grad()
def update_one_by_one(rows: torch.Tensor, features: torch.Tensor, indexes: torch.Tensor,
                      momentum: float) -> None:
    """Eq. 1 for one image after the other, in place."""
    for feature, index in zip(features, indexes.tolist(), strict=True):
        mixed = momentum * rows[index] + (1.0 - momentum) * feature
        rows[index] = mixed / mixed.norm()


def all_rows_step(features: torch.Tensor, batch: dict, bank: MemoryBank) -> None:
    """InfoNCE and update in SpCL's way; changes the bank's rows and not its sums."""
    features = F.normalize(features, dim=1)
    logits = all_rows_logits(features, bank.features, bank.labels, bank.num_clusters, TEMPERATURE)
    F.cross_entropy(logits, batch["targets"]).backward()
    update_one_by_one(bank.features, features.detach(), batch["indexes"], bank.momentum)


def plugin_step(features: torch.Tensor, batch: dict, bank: MemoryBank, *, losses) -> None:
    """The registered losses and the bank's own update, as in training."""
    total = sum(value for loss in losses
                for value in loss({"features": features}, batch, bank).values())
    total.backward()
    bank.update(F.normalize(features.detach(), dim=1), batch["indexes"])


def make_steps() -> dict:
    """The steps to compare, by name; each is called with features (B, D), batch and bank."""
    infonce = InfoNCELoss(temperature=TEMPERATURE)
    cacc = CACCLoss(anchor="centre", normalize=True, temperature=0.07, num_negatives=50)
    return {BOTH: partial(plugin_step, losses=[infonce, cacc]),
            INFONCE: partial(plugin_step, losses=[infonce]),
            ALL_ROWS: all_rows_step}


def make_bank(size: int, dim: int, generator: torch.Generator) -> MemoryBank:
    """A bank of random unit rows; images come in runs of CAMERAS, one for each camera."""
    bank = MemoryBank(torch.arange(size) % CAMERAS, dim, momentum=MOMENTUM)
    bank.reset(torch.randn(size, dim, generator=generator))
    return bank


def make_labels(size: int, clusters: int) -> torch.Tensor:
    """(N,) clusters, run by run, so that each has images of every camera."""
    return torch.arange(size) // CAMERAS % clusters


def draw_batch(bank: MemoryBank, batch: int, generator: torch.Generator) -> dict:
    """Rows, clusters and cameras of INSTANCES different images from each of B / 4 clusters."""
    clusters = torch.randperm(bank.num_clusters, generator=generator)[:batch // INSTANCES]
    members = len(bank) // (CAMERAS * bank.num_clusters) * CAMERAS
    chosen = torch.stack(
        [torch.randperm(members, generator=generator)[:INSTANCES] for _ in clusters])
    runs = clusters[:, None] + bank.num_clusters * (chosen // CAMERAS)
    indexes = (CAMERAS * runs + chosen % CAMERAS).flatten()
    return {"indexes": indexes, "targets": bank.labels[indexes], "camids": bank.camids[indexes]}


def measure(banks: list[MemoryBank], args: argparse.Namespace, generator: torch.Generator,
            title: str) -> dict:
    """{(N, step): (repeats,) ms}; sizes and steps take turns, the first round is not counted."""
    steps = make_steps()
    times: dict = {(len(bank), name): [] for bank in banks for name in steps}
    with tqdm(total=(args.repeats + 1) * len(times), desc=title, disable=None) as bar:
        for repeat in range(args.repeats + 1):
            for bank in banks:
                batch = draw_batch(bank, args.batch, generator)
                features = torch.randn(args.batch, args.dim, generator=generator)
                # back and forth, so that none always follows the same other
                for name in list(steps)[::-1 if repeat % 2 else 1]:
                    seconds = time_step(name, steps[name], features, batch, bank)
                    times[len(bank), name].append(1e3 * seconds)
                    bar.update()
    return {key: np.array(values[1:]) for key, values in times.items()}


def time_step(name: str, step, features: torch.Tensor, batch: dict, bank: MemoryBank) -> float:
    """Seconds of one step. SpCL's way shares the bank's rows and must leave them as they were."""
    leaf = features.clone().requires_grad_()
    before = bank.features[batch["indexes"]]
    start = time.perf_counter()
    step(leaf, batch, bank)
    seconds = time.perf_counter() - start
    if name == ALL_ROWS:
        bank.features[batch["indexes"]] = before
    return seconds


def summarise(rule: str, banks: list[MemoryBank], times: dict) -> list[dict]:
    """One row for each N and step: quartiles in ms, growth against the same step at least N."""
    rows = []
    for bank in banks:
        for name in (BOTH, INFONCE, ALL_ROWS):
            low, median, high = np.percentile(times[len(bank), name], (25, 50, 75))
            smallest = np.median(times[len(banks[0]), name])
            rows.append({
                "rule": rule, "N": len(bank), "K": bank.num_clusters,
                "centres": len(bank.centre_labels), "step": name, "median_ms": median,
                "q1_ms": low, "q3_ms": high, "growth": median / smallest})
    return rows


def table(rows: list[dict]) -> str:
    """Markdown table of one rule: per N the times, their growth, and the ratios of the steps."""
    lines = []
    for start in range(0, len(rows), 3):
        both, infonce, all_rows = rows[start:start + 3]
        line = {"N": f"{both['N']:,}", "K": f"{both['K']:,}", "centres": f"{both['centres']:,}"}
        for row in (both, infonce, all_rows):
            line[f"{row['step']}, ms"] = (
                f"{row['median_ms']:.2f} ({row['q1_ms']:.2f}-{row['q3_ms']:.2f})")
            line[f"{row['step']}, growth"] = f"{row['growth']:.2f}"
        for row in (infonce, both):
            ratio = all_rows["median_ms"] / row["median_ms"]
            line[f"{ALL_ROWS} / {row['step']}"] = f"{ratio:.1f}"
        lines.append(line)
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True,
                    colalign=["right"] * len(lines[0]))


def draw(rows: list[dict], path: Path) -> None:
    """Saves the picture: time against N, both on logarithmic axes, one panel for each rule."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, rule in zip(axes, (FIXED, PROPORTIONAL), strict=True):
        for name in (BOTH, INFONCE, ALL_ROWS):
            line = [row for row in rows if (row["rule"], row["step"]) == (rule, name)]
            median = np.array([row["median_ms"] for row in line])
            spread = np.abs([[row[key] for row in line] for key in ("q1_ms", "q3_ms")] - median)
            axis.errorbar([row["N"] for row in line], median, yerr=spread, marker="o", capsize=3,
                          label=name)
        axis.set(xscale="log", yscale="log", xlabel="images N", title=f"K {rule}")
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    axes[0].set_ylabel("ms per step (median, quartiles)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line; sizes come back in ascending order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000],
                        help="numbers of images N (default: %(default)s)")
    parser.add_argument("--clusters", type=int, default=1000,
                        help="K where it is fixed (default: %(default)s); where it grows with N "
                             f"it is N / {IMAGES_PER_CLUSTER}")
    parser.add_argument("--dim", type=int, default=256,
                        help="D (default: %(default)s); a bank takes 4 N D bytes")
    parser.add_argument("--batch", type=int, default=64,
                        help=f"images of a batch, {INSTANCES} of a cluster (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15,
                        help="timed rounds (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1,
                        help="torch's threads (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="CSV file to write")
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    args = parser.parse_args(argv)
    args.sizes = sorted(set(args.sizes))
    problem = _problem(args)
    if problem:
        parser.error(problem)
    return args


def _problem(args: argparse.Namespace) -> str | None:
    """What is wrong with the arguments."""
    for name in ("clusters", "dim", "batch", "repeats", "threads"):
        if getattr(args, name) < 1:
            return f"--{name} {getattr(args, name)} must be at least 1"
    least, units = args.sizes[0], args.batch // INSTANCES
    if least < CAMERAS * args.clusters:
        return (f"--sizes {least} is too small for --clusters {args.clusters}: every cluster has "
                f"an image of each of {CAMERAS} cameras, so at least {CAMERAS * args.clusters}")
    if args.batch % INSTANCES:
        return f"--batch {args.batch} must be a multiple of {INSTANCES}, the images of a cluster"
    if units > args.clusters:
        return (f"--batch {args.batch} holds {units} clusters, --clusters {args.clusters} are "
                "fewer")
    if units > least // IMAGES_PER_CLUSTER:
        return (f"--batch {args.batch} holds {units} clusters, --sizes {least} gives only "
                f"{least // IMAGES_PER_CLUSTER} where K is N / {IMAGES_PER_CLUSTER}")
    for name in ("output", "plot"):  # before minutes of measuring
        path = getattr(args, name)
        if path and not path.parent.is_dir():
            return f"--{name} {path}: the folder {path.parent} does not exist"
    if args.plot and args.plot.suffix != ".png":
        return f"--plot {args.plot} must end in .png"
    return None


def run(args: argparse.Namespace) -> list[dict]:
    """Sets up the banks, measures under both rules for K and prints a table for each."""
    generator = torch.Generator().manual_seed(args.seed)
    banks = []
    for size in args.sizes:
        print(f"setting up {size:,} images", flush=True)
        banks.append(make_bank(size, args.dim, generator))
    rows: list[dict] = []
    for rule in (FIXED, PROPORTIONAL):
        for bank in banks:
            clusters = args.clusters if rule == FIXED else len(bank) // IMAGES_PER_CLUSTER
            bank.relabel(make_labels(len(bank), clusters))
        found = summarise(rule, banks, measure(banks, args, generator, f"K {rule}"))
        print(f"\nK {rule}{f', N / {IMAGES_PER_CLUSTER}' if rule == PROPORTIONAL else ''}\n\n"
              f"{table(found)}", flush=True)
        rows += found
    return rows


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    print(f"losses + bank update in ms per step, median (quartiles) of {args.repeats}; growth: "
          f"times the value at N = {args.sizes[0]:,}\n"
          f"D {args.dim}, batch {args.batch // INSTANCES} clusters x {INSTANCES}, {CAMERAS} "
          f"cameras, seed {args.seed}, {args.threads} thread(s) of the CPU, torch "
          f"{torch.__version__}")
    rows = run(args)
    if args.output:
        with args.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        print(f"\n{args.output}: {len(rows)} rows")
    if args.plot:
        draw(rows, args.plot)
        print(f"{args.plot}: time against N")


if __name__ == "__main__":
    main()
