"""``caureid attention``: what the two branches of a network look at."""

from __future__ import annotations

from typing import Any

import click

from .common import Command, Several, Writable, config_file, config_keys, namespace


@click.command("attention", cls=Command)
@config_file
@click.option("--images", cls=Several, metavar="PATH...", help="draw these images")
@click.option("--folder", type=click.Path(), help="draw images of this folder")
@click.option("--dataset", metavar="NAME",
              help="draw images of this registered dataset (default: DATASETS of the config)")
@click.option("--split", type=click.Choice(["train", "query", "gallery"]),
              help="of the dataset (default: train)")
@click.option("--per-camera", type=click.IntRange(1), default=4, show_default=True, metavar="N",
              help="images drawn, at random, of each camera or of the folder")
@click.option("--measure", type=click.IntRange(0), default=50, show_default=True, metavar="N",
              help="images of each camera whose shares are measured where the person is known, the "
                   "drawn ones among them")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True,
              help="of the choice of images; the network's is SEED")
@click.option("--map", "kind", type=click.Choice(["mask", "feature"]), default="mask",
              show_default=True,
              help="what is drawn: means over the channels of the mask (A and 1 - A), or of the "
                   "features it leaves to either branch")
@click.option("--output", type=Writable(".png", ".html"), default="attention.png",
              show_default=True, help="picture or page to write")
@config_keys
def command(**options: Any) -> None:
    """Draws where the network looks: image, camera-specific and camera-agnostic map.

    \b
        caureid attention --config-file Synthetic/caureid.yml \\
            MODEL.WEIGHTS logs/synthetic/caureid/model_final.pth
        caureid attention ... --dataset Market1501 --split query --per-camera 2
        caureid attention ... --folder people/ --output attention.html
        caureid attention ... --images a.jpg b.jpg

    Without MODEL.WEIGHTS the network is the one that training starts from. On SyntheticCameras the
    person's outline is known. There the share of each map's mass on the person is reported too, at
    the start and, with MODEL.WEIGHTS, after training. Images that cannot be read are named at the
    end, with exit status 1; the others are drawn.

    A colour shows a map relative to its own mean. Grey is 1, what a uniform map has everywhere; red
    is more, blue is less. All maps of the picture share one scale.
    """
    sources = [f"--{name}" for name in ("images", "folder", "dataset") if options[name]]
    if len(sources) > 1:
        raise click.UsageError(f"Give only one of {' and '.join(sources)}.")
    if options["split"] and (options["images"] or options["folder"]):
        raise click.UsageError(f"--split {options['split']} is of a dataset, and there is none "
                               f"with {sources[0]}.")
    from ..report.attention import run

    wrong = run(namespace(**options))
    if wrong:
        raise SystemExit("\n".join(["Could not be drawn or measured, the others were:", *wrong]))
