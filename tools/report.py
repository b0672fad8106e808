#!/usr/bin/env python3
"""Makes one HTML file of a run: how training went, and what it learnt, to look at.

    tools/report.py logs/synthetic/caureid                 # writes report.html into that folder
    tools/report.py logs/synthetic/caureid --output page.html --images 500
    tools/report.py logs/synthetic/caureid --checkpoint logs/synthetic/caureid/model_0004.pth
    tools/report.py logs/my-run MODEL.DEVICE cpu

The run may be finished or still going on. The page holds its pictures and needs no network: curves,
contact sheets of clusters and outliers, attention maps, a map of the embeddings, rank lists, and
the settings. No identity of a training image is read; those of a labelled test set mark right and
wrong in the rank lists. Options stand before config keys. Datasets are looked for below the folder
named by the environment variable FASTREID_DATASETS.
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import caureid_plugin  # first: it makes the toolbox importable
import torch
from caureid_plugin.engine.verdict import judge
from caureid_plugin.files import write_atomically
from caureid_plugin.retrieval.run_folder import column, indicators
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import report_clusters
import report_data
import report_network
import report_ranks
from report_data import Missing, ReportError, Run
from report_draw import Chart, chart_svg

HERE = Path(__file__).resolve().parent
MARKS = {"good": "✓", "mixed": "!", "bad": "✗", "unknown": "?"}  # of a verdict's levels
LOSSES = {"loss_infonce": "InfoNCE", "loss_cacc": "CACC", "loss_camsep": "camera separation"}
NAMES = {"outlier_share": "outliers, share of the images", "silhouette": "silhouette",
         "stability": "stability of the clusters",
         "cross_camera": "clusters that span cameras, share",
         "own_camera": "nearest neighbours of the own camera, share"}


# ------------------------------------------------------------------------------ the sections ----


def attempt(make: Callable[..., dict], *arguments) -> dict:
    """A section, or in its place why it cannot be made."""
    try:
        return {"why": "", **make(*arguments)}
    except Missing as error:
        return {"why": report_data.printable(str(error))}


def headline(run: Run) -> dict:
    """Name, data, progress and verdict."""
    verdict = judge(indicators(run.rows), run.cfg, num_cameras=len(run.names))
    return {
        "name": report_data.printable(run.folder.resolve().name),
        "data": report_data.printable(", ".join(run.cfg.DATASETS.NAMES)),
        "images": len(run.paths), "cameras": len(run.names), "prefix": run.prefix,
        "epochs": f"{run.epochs:.3g}", "max_epoch": run.cfg.SOLVER.MAX_EPOCH,
        "finished": run.is_finished, "level": verdict.level, "mark": MARKS[verdict.level],
        "summary": verdict.summary, "note": verdict.note, "advice": verdict.advice,
        "labelled": any(finding.name.rpartition("/")[2] == "mAP" for finding in verdict.findings),
        "findings": [{"name": NAMES.get(finding.name, finding.name), "level": finding.level,
                      "mark": MARKS[finding.level], "value": finding.figure,
                      "sentence": finding.sentence} for finding in verdict.findings]}


def loss_names(run: Run) -> dict[str, str]:
    """Keys of metrics.json that hold losses, and what the curves are called."""
    keys = sorted({key for row in run.rows for key in row if key.startswith("loss_")})
    if keys:
        return {key: LOSSES.get(key, key.removeprefix("loss_")) for key in keys}
    # the toolbox writes a loss that is alone as the sum only
    names = run.cfg.MODEL.LOSSES.NAME
    return {"total_loss": report_data.printable(names[0]) if len(names) == 1 else "total"}


def curves(run: Run) -> dict:
    """The charts, and what is missing from them.

    Raises:
        Missing: there are no figures.
    """
    if not run.rows:
        raise Missing(run.no_rows)

    def points(key: str, *, after: int = 1, scale: float = 1) -> list[tuple[float, float]]:
        return [((step + after) / run.epoch_steps, scale * value)
                for step, value in column(run.rows, key)]

    def lines(keys: dict[str, str], **options) -> dict[str, list]:
        found = {label: points(key, **options) for key, label in keys.items()}
        return {label: values for label, values in found.items() if values}

    shares = {"labels/outlier_share": "outlier images"}
    if len(run.names) > 1:
        shares["labels/cross_camera"] = "clusters that span cameras"
    retrieval = {name: points(f"start/{name}", after=0) + points(name)
                 for name in ("mAP", "Rank-1")}
    charts = [
        Chart("Losses", "loss", lines(loss_names(run))),
        Chart("Clusters and outliers", "count", lines(
            {"labels/clusters": "clusters", "labels/outliers": "outlier images"}, after=0)),
        Chart("Shares", "%", lines(shares, after=0, scale=100), 105.0),
        Chart("Stability and silhouette", "0 to 1", lines({
            "labels/stability": "stability", "labels/silhouette": "silhouette"}, after=0), 1.05),
        Chart("Retrieval on the labelled test set", "%",
              {name: values for name, values in retrieval.items() if values}, 105.0)]
    missing = [chart.title for chart in charts if not chart.lines]
    return {"charts": [(chart.title, chart_svg(chart, number))
                       for number, chart in enumerate(charts) if chart.lines],
            "missing": missing, "tests": bool(run.cfg.DATASETS.TESTS)}


def origin(run: Run, given: list[str]) -> dict:
    """Settings, versions, command and checkpoint."""
    return {
        "settings": report_data.settings(run.cfg),
        "versions": [("caureid-plugin", caureid_plugin.__version__), ("torch", torch.__version__),
                     ("Python", platform.python_version())],
        "command": report_data.command(run.folder / "log.txt"),
        "checkpoint": report_data.printable(run.checkpoint.name), "written": run.written,
        "given": report_data.printable(" ".join(given))}


def make_page(run: Run, args: argparse.Namespace) -> str:
    """The report of a run, as HTML."""
    print("The network is built")
    model = report_network.build_trained(run)
    sections = {"head": headline(run), "curves": attempt(curves, run)}
    print("Clusters and outliers")
    sections["clusters"] = attempt(
        lambda: {"sheets": report_clusters.sheets(run, args.seed), "most": report_clusters.CROPS})
    sections["outliers"] = attempt(report_clusters.outliers, run, args.seed)
    print("Attention maps")
    sections["attention"] = attempt(report_network.attention_maps, model, run, args.seed)
    print("Map of the embeddings")
    sections["maps"] = attempt(report_network.embedding_maps, model, run, args.images, args.seed)
    print("Rank lists")
    sections["ranks"] = attempt(report_ranks.rank_lists, model, run, args.seed)
    sections["origin"] = origin(run, args.opts)
    pages = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True,
                        lstrip_blocks=True, undefined=StrictUndefined)
    return pages.get_template("report.html.j2").render(sections)


# ------------------------------------------------------------------------------- the command ----


def options_first(words: list[str]) -> list[str]:
    """Puts the options that follow the folder before it: what follows it are config keys."""
    if not words or words[0].startswith("-"):
        return words
    end = 1
    while end < len(words) and words[end].startswith("-"):
        end += 1 if "=" in words[end] or words[end] in ("-h", "--help") else 2
    return words[1:end] + words[:1] + words[end:]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Reads and checks the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path, help="OUTPUT_DIR of the run")
    parser.add_argument("--output", type=Path,
                        help=".html file to write (default: report.html in the run folder)")
    parser.add_argument("--checkpoint", type=Path, help="default: the run's last one")
    parser.add_argument("--images", type=int, default=1500, metavar="N",
                        help="training images on the map of the embeddings, at most (default: "
                             "%(default)s)")
    parser.add_argument("--seed", type=int, default=1,
                        help="of the choice of images (default: %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values")
    args = parser.parse_args(options_first(sys.argv[1:] if argv is None else argv))
    _check(args, parser)
    return args


def _check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """What can be said before anything is computed."""
    if args.images < report_network.LEAST:
        parser.error(f"--images {args.images} must be at least {report_network.LEAST}")
    if not 0 <= args.seed < 2 ** 32:
        parser.error(f"--seed {args.seed} must be from 0 to 2**32 - 1")
    late = [word for word in args.opts if word.startswith("--")]
    if late:
        parser.error(f"{late[0]} stands among config keys: options stand before them")
    if len(args.opts) % 2:
        parser.error(f"config keys and values must come in pairs, got {' '.join(args.opts)}")
    if args.output is None:
        if not args.run_folder.is_dir():  # said by what reads it
            return
        args.output = args.run_folder / "report.html"
    path, folder = args.output, args.output.parent
    if path.suffix.lower() not in (".html", ".htm"):
        parser.error(f"--output {path} must end in .html")
    if not folder.is_dir():
        parser.error(f"--output {path}: the folder {folder} does not exist")
    if path.is_dir() or not os.access(folder, os.W_OK):
        parser.error(f"--output {path} cannot be written: choose another with --output")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        run = report_data.read_run(args.run_folder, args.checkpoint, args.opts)
        page = make_page(run, args).encode("utf-8")
        write_atomically(args.output, lambda file: file.write(page))
    except ReportError as error:
        raise SystemExit(f"tools/report.py: {error}") from error
    except OSError as error:
        raise SystemExit(f"tools/report.py: {args.output} cannot be written: {error}") from error
    print(f"{args.output}: {len(page) / 2 ** 20:.1f} MiB")


if __name__ == "__main__":
    main()
