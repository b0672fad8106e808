"""The report of a run: its page is put together from the sections that the other modules make."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from .._version import __version__
from ..common.files import write_atomically
from ..common.pages import render
from ..common.text import one_line, printable
from ..engine.verdict import judge
from ..runs.metrics import column, indicators
from ..runs.run import Missing, ReportError, Run, read_run
from . import clusters, network, ranks
from .draw import Chart, chart_svg
from .origin import command, settings

TEMPLATE = Path(__file__).with_name("page.html.j2")
MARKS = {"good": "✓", "mixed": "!", "bad": "✗", "unknown": "?"}  # of a verdict's levels
LOSSES = {"loss_infonce": "InfoNCE", "loss_cacc": "CACC", "loss_camsep": "camera separation"}
NAMES = {"outlier_share": "outliers, share of the images", "silhouette": "silhouette",
         "stability": "stability of the clusters",
         "cross_camera": "clusters that span cameras, share",
         "own_camera": "nearest neighbours of the own camera, share"}


def attempt(make: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """A section, or in its place why it cannot be made."""
    try:
        return {"why": "", **make(*arguments)}
    except Missing as error:
        return {"why": one_line(error)}


def headline(run: Run) -> dict[str, Any]:
    """Name, data, progress and verdict."""
    verdict = judge(indicators(run.rows), run.cfg, num_cameras=len(run.names))
    return {
        "name": printable(run.folder.resolve().name),
        "data": printable(", ".join(run.cfg.DATASETS.NAMES)),
        "images": len(run.paths), "cameras": len(run.names), "prefix": run.prefix,
        "epochs": f"{run.epochs:.3g}", "max_epoch": run.cfg.SOLVER.MAX_EPOCH,
        "finished": run.is_finished, "level": verdict.level, "mark": MARKS[verdict.level],
        "summary": verdict.summary, "note": verdict.note, "advice": verdict.advice,
        "labelled": any(finding.name.rpartition("/")[2] == "mAP" for finding in verdict.findings),
        "findings": [{"name": NAMES.get(finding.name, finding.name), "level": finding.level,
                      "mark": MARKS[finding.level], "value": finding.figure,
                      "meaning": finding.meaning} for finding in verdict.findings]}


def loss_names(run: Run) -> dict[str, str]:
    """Keys of metrics.json that hold losses, and what the curves are called."""
    keys = sorted({key for row in run.rows for key in row if key.startswith("loss_")})
    if keys:
        return {key: LOSSES.get(key, key.removeprefix("loss_")) for key in keys}
    # the toolbox writes a single loss only as the sum
    names = run.cfg.MODEL.LOSSES.NAME
    return {"total_loss": printable(names[0]) if len(names) == 1 else "total"}


def curves(run: Run) -> dict[str, Any]:
    """The charts, and what is missing from them.

    Raises:
        Missing: there are no figures.
    """
    if not run.rows:
        raise Missing(run.no_rows)

    def points(key: str, *, after: int = 1, scale: float = 1) -> list[tuple[float, float]]:
        return [((step + after) / run.epoch_steps, scale * value)
                for step, value in column(run.rows, key)]

    def lines(keys: dict[str, str], **options: Any) -> dict[str, list[Any]]:
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


def origin(run: Run, given: list[str]) -> dict[str, Any]:
    """Settings, versions, command and checkpoint."""
    return {
        "settings": settings(run.cfg),
        "versions": [("caureid-plugin", __version__), ("torch", torch.__version__),
                     ("Python", platform.python_version())],
        "command": command(run.folder / "log.txt"),
        "checkpoint": printable(run.checkpoint.name), "written": run.written,
        "given": printable(" ".join(given))}


def make_page(run: Run, args: SimpleNamespace) -> str:
    """The report of a run, as HTML."""
    print("The network is built")
    model = network.build_trained(run)
    sections = {"head": headline(run), "curves": attempt(curves, run)}
    print("Clusters and outliers")
    sections["clusters"] = attempt(
        lambda: {"sheets": clusters.sheets(run, args.seed), "most": clusters.CROPS})
    sections["outliers"] = attempt(clusters.outliers, run, args.seed)
    print("Attention maps")
    sections["attention"] = attempt(network.attention_maps, model, run, args.seed)
    print("Map of the embeddings")
    sections["maps"] = attempt(network.embedding_maps, model, run, args.images, args.seed)
    print("Rank lists")
    sections["ranks"] = attempt(ranks.rank_lists, model, run, args.seed)
    sections["origin"] = origin(run, args.opts)
    return render(TEMPLATE, sections)


def write_report(args: SimpleNamespace) -> None:
    """Does what ``caureid report`` is asked for; ``args``: its options.

    Raises:
        ReportError: it is no run folder, or not whole, or its data set is not the run's; the page
            cannot be written.
    """
    run = read_run(args.run_folder, args.checkpoint, args.opts)
    page = make_page(run, args).encode("utf-8")
    try:
        write_atomically(args.output, page)
    except OSError as error:
        raise ReportError(f"{args.output} cannot be written: {error}") from error
    print(f"{args.output}: {len(page) / 2 ** 20:.1f} MiB")
