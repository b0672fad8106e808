"""``caureid attention``: what the two branches of a network look at."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import click

from .common import Command, Several, Writable, config_file, config_keys


@click.command("attention", cls=Command)
@config_file
@click.option("--images", cls=Several, type=click.Path(), metavar="FILE...",
              help="draw these images")
@click.option("--folder", type=click.Path(exists=True, file_okay=False), metavar="FOLDER",
              help="draw images of this folder")
@click.option("--dataset", metavar="NAME",
              help="draw images of this dataset  [default: DATASETS of the config]")
@click.option("--split", type=click.Choice(["train", "query", "gallery"]),
              help="part of the dataset  [default: train]")
@click.option("--per-camera", type=click.IntRange(1), default=4, show_default=True, metavar="N",
              help="images to draw from each camera, or from the folder; chosen at random")
@click.option("--measure", type=click.IntRange(0), default=50, show_default=True, metavar="N",
              help="images to measure from each camera, where the person's outline is known")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, metavar="N",
              help="random seed that chooses the images")
@click.option("--map", "kind", type=click.Choice(["mask", "feature"]), default="mask",
              show_default=True,
              help="mask: mean of the mask over its channels (A and 1 - A); feature: mean of the "
                   "features that each branch gets")
@click.option("--output", type=Writable(".png", ".html"), default="attention.png",
              show_default=True, help="picture or page to write")
@config_keys
def command(**options: Any) -> None:
    """Draws where a network looks: each image beside its camera-specific and camera-agnostic map.

    \b
        caureid attention --config-file Synthetic/caureid.yml \\
            MODEL.WEIGHTS logs/synthetic/caureid/model_final.pth
        caureid attention ... --dataset Market1501 --split query --per-camera 2
        caureid attention ... --folder people/ --output attention.html
        caureid attention ... --images a.jpg b.jpg

    Without MODEL.WEIGHTS it takes the network that training starts from. On SyntheticCameras, where
    the person's outline is known, it also measures how much of each map lies on the person.

    Colours show a map relative to its mean: red is more, blue is less, grey is the mean. All maps
    share one scale. Images that cannot be read are named at the end, and the exit status is 1.
    """
    sources = [f"--{name}" for name in ("images", "folder", "dataset") if options[name]]
    if len(sources) > 1:
        raise click.UsageError(f"Give only one of {' and '.join(sources)}.")
    if options["split"] and (options["images"] or options["folder"]):
        raise click.UsageError(f"--split {options['split']} is of a dataset, and there is none "
                               f"with {sources[0]}.")
    from ..report.attention import run

    wrong = run(SimpleNamespace(**options))
    if wrong:
        raise SystemExit("\n".join(["Could not be drawn or measured, the others were:", *wrong]))
