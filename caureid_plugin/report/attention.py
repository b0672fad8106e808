"""Draws where the network looks: image, camera-specific and camera-agnostic map side by side.

Colours: each map relative to its own mean, grey 1 (what a uniform map has everywhere), red more,
blue less; one scale for all maps of the page.
"""

from __future__ import annotations

import collections
import os
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.data.data_utils import read_image
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.transforms import build_transforms
from PIL import Image
from tabulate import tabulate

from .. import compat
from ..common.errors import UserError
from ..common.files import write_atomically
from ..common.images import IMAGE_SUFFIXES
from ..common.pages import image_uri, render
from ..common.text import printable
from ..data import build_dataset
from ..data.synthetic.dataset import DESCRIPTION, FOLDER, person_mask
from ..engine import build_network, load_config
from ..layers import MAP_KINDS, branch_maps, mass_share, relative_maps, resize_maps
from ..modeling import CamSepHead

TEMPLATE = Path(__file__).with_name("attention.html.j2")
BRANCHES = ("camera-specific", "camera-agnostic")
SIDE = 192  # longest side of a drawn image, in pixels
GAP = 6  # pixels between an image and its maps
COLUMNS = 4  # images in a row of the PNG, each with its two maps
MOST_ROWS = 200  # of the PNG, which holds no more pixels
LEAST_RANGE = 0.1  # of the colour scale, so that a uniform map does not show its rounding errors
COLOURS = "coolwarm"


class Choice(NamedTuple):
    """An image to read: where it is, the group it is drawn in, drawn or only measured."""

    path: str
    group: str
    drawn: bool


class Sample(NamedTuple):
    """An image that was read.

    ``image`` is what the network gets, (3, H, W); ``picture`` what is drawn, uint8 (h, w, 3) with
    sides of at most SIDE; ``person`` its person, bool of the file's own height and width, or None.
    """

    choice: Choice
    image: torch.Tensor
    picture: np.ndarray
    person: np.ndarray | None


class Panel(NamedTuple):
    """What is drawn of a sample: image and two overlays, uint8 of one shape (H, W, 3)."""

    name: str
    group: str
    note: str
    pictures: tuple[np.ndarray, ...]


def list_folder(folder: str) -> list[str]:
    """Paths of a folder's images, sorted.

    Raises:
        ValueError: not a folder; no image in it.
    """
    if not os.path.isdir(folder):
        raise UserError(f"--folder {folder} is not a folder.")
    names = sorted(os.listdir(folder))
    found = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    if not found:
        raise UserError(f"--folder {folder} holds no image, among {len(names)} entries none ends "
                        f"in {', '.join(IMAGE_SUFFIXES)}; folders below it are not searched.")
    return [os.path.join(folder, name) for name in found]


def list_dataset(cfg: CfgNode, name: str, split: str) -> dict[str, list[str]]:
    """Paths of a data set's images by camera, in the order of the cameras' numbers.

    A camera is labelled with the number that the data set gives it, which need not be the one in
    the files' names: Market1501's c1 is camera id 0, PersonX's c3 is camera id 3.

    Raises:
        ValueError: the data set is not registered; the split has no image.
    """
    known = compat.registered_names(DATASET_REGISTRY)
    if name not in known:
        raise UserError(f"There is no dataset {name!r} (--dataset, or DATASETS in the config), "
                        f"known are {known}.")
    data = build_dataset(cfg, name)
    groups: dict[str, list[str]] = {}
    for path, _, camera, *_ in getattr(data, split):
        # the toolbox names a training image's camera and numbers a test image's; whether from 0
        # (Market1501) or as in the file's name (PersonX) is up to the dataset
        label = camera if isinstance(camera, str) else f"{name} camera id {camera}"
        groups.setdefault(label, []).append(path)
    if not groups:
        raise UserError(f"The {split} split of {name} has no image: choose another --split.")
    return {label: groups[label] for label in sorted(groups, key=_by_number)}


def _by_number(text: str) -> list[Any]:
    """Sorting key that puts c2 before c10."""
    parts = re.split(r"(\d+)", text)
    return [int(part) if part.isdigit() else part for part in parts]


def choose(args: SimpleNamespace, cfg: CfgNode) -> list[Choice]:
    """The images to draw, group by group, then those only to measure."""
    if args.images:
        return [Choice(path, "", True) for path in args.images]
    if args.folder:
        groups = {printable(Path(args.folder).resolve().name): list_folder(args.folder)}
    else:
        split = args.split or "train"
        default = cfg.DATASETS.NAMES if split == "train" else cfg.DATASETS.TESTS
        names = [args.dataset] if args.dataset else list(default)
        if not names:
            raise UserError("The config names no dataset (DATASETS.NAMES for --split train, "
                            "DATASETS.TESTS for query and gallery): choose one with --dataset.")
        groups = {key: paths for name in names
                  for key, paths in list_dataset(cfg, name, split).items()}
    drawn, measured = [], []
    for number, (group, paths) in enumerate(groups.items()):
        order = np.random.default_rng([args.seed, number]).permutation(len(paths))
        first = sorted(order[:args.per_camera])
        drawn += [Choice(paths[i], group, True) for i in first]
        others = [paths[i] for i in order[args.per_camera:args.measure]]
        measured += [Choice(path, group, False) for path in others if knows_person(path)]
    return drawn + measured


def knows_person(path: str) -> bool:
    """Whether the image lies in a folder of SyntheticCameras, whose people are known."""
    folder = Path(os.path.abspath(path)).parent.parent
    return folder.name == FOLDER and (folder / DESCRIPTION).is_file()


def read(choices: list[Choice], cfg: CfgNode) -> tuple[list[Sample], dict[str, str]]:
    """The images that can be read, and what is wrong with the others, by path."""
    transform = build_transforms(cfg, is_train=False)
    samples, wrong = [], {}
    for choice in choices:
        try:
            image = read_image(choice.path, format="RGB")
            person = person_mask(choice.path) if knows_person(choice.path) else None
            if person is not None and person.shape != (image.height, image.width):
                raise UserError(f"{choice.path} is {image.height} pixels high and {image.width} "
                                f"wide, but was rendered as {person.shape}: it is another image.")
        except (ValueError, Image.DecompressionBombError) as error:
            named = choice.path in str(error)
            wrong[choice.path] = f"{error}" if named else f"{choice.path}: {error}"
            continue
        factor = SIDE / max(image.size)
        picture = image.resize([max(1, round(factor * side)) for side in image.size])
        samples.append(Sample(choice, transform(image).float(), np.asarray(picture), person))
    return samples, wrong


def build_attentive(cfg: CfgNode, weights: str) -> torch.nn.Module:
    """The config's network with these weights; without any, the one that training starts from.

    Raises:
        ValueError: the weights are missing, no checkpoint or of another architecture; the network
            has no attention.
    """
    if weights and not os.path.isfile(weights):
        raise UserError(f"MODEL.WEIGHTS {weights} is not a file.")
    try:
        model = build_network(cfg, weights)
    except (AttributeError, TypeError) as error:  # of names that are no text
        if not weights:
            raise
        raise UserError(f"MODEL.WEIGHTS {weights} is not a checkpoint of FastReID: "
                        f"{error!r}.") from error
    head = getattr(model, "heads", None)
    if not isinstance(head, CamSepHead):
        raise UserError(f"MODEL.HEADS.NAME {cfg.MODEL.HEADS.NAME} of MODEL.META_ARCHITECTURE "
                        f"{cfg.MODEL.META_ARCHITECTURE} has no attention to draw: it must be a "
                        "single CamSepHead.")
    if head.attention is None:
        raise UserError(f"MODEL.HEADS.CAMSEP.ATTENTION {cfg.MODEL.HEADS.CAMSEP.ATTENTION} leaves "
                        "nothing to draw: it must be harmonious.")
    return model.eval()


@torch.no_grad()
def network_maps(model: Any, images: list[torch.Tensor], size: int
                 ) -> dict[str, tuple[torch.Tensor, ...]]:
    """For each kind of map, the camera-specific and the camera-agnostic ones, each (N, h, w).

    The N images go through the network in batches of ``size``.
    """
    parts: dict[str, list[Any]] = {kind: [] for kind in MAP_KINDS}
    for start in range(0, len(images), size):
        batch = compat.to_device(
            {"images": torch.stack(images[start:start + size])}, model.device)
        features = model.backbone(model.preprocess_image(batch))
        mask = model.heads.mask(features)
        for kind in MAP_KINDS:
            parts[kind].append([maps.float().cpu() for maps in branch_maps(features, mask, kind)])
    return {kind: tuple(torch.cat(branch) for branch in zip(*parts[kind], strict=True))
            for kind in MAP_KINDS}


def person_shares(maps: torch.Tensor, samples: list[Sample]) -> np.ndarray:
    """Share of each map's mass on the sample's person; NaN where the person is not known."""
    shares = np.full(len(samples), np.nan)
    for i, sample in enumerate(samples):
        if sample.person is not None:
            resized = resize_maps(maps[i:i + 1], sample.person.shape)
            shares[i] = mass_share(resized, torch.from_numpy(sample.person)[None])[0]
    return shares


def report(shares: dict[str, dict[str, tuple[Any, ...]]], samples: list[Sample]) -> str:
    """The table of shares; ``shares[weights][kind]`` holds an (N,) array for either branch."""
    known = np.array([sample.person is not None for sample in samples])
    area = np.array([s.person.mean() for s in samples if s.person is not None])
    counts = collections.Counter(s.choice.group for s in samples if s.person is not None)
    lines, verdicts = [], []
    for weights, kinds in shares.items():
        for kind, branches in kinds.items():
            specific, agnostic = (branch[known] for branch in branches)
            gain = agnostic - specific
            lines.append([weights, kind, _spread(specific), _spread(agnostic),
                          _spread(gain, "+.2f")])
            verdicts.append(f"{weights}, {kind} maps: the camera-agnostic share is "
                            f"{_verdict(100 * gain.mean())}.")
    table = tabulate(lines, ["weights", "map", *BRANCHES, "agnostic - specific"],
                     tablefmt="github", disable_numparse=True)
    images = ", ".join(f"{group or 'chosen'} {count}" for group, count in counts.items())
    return ("Share of a map's mass on the person, in %: mean (standard deviation, n) of the images."
            "\n"
            f"A uniform map's share is that of the area: {_spread(area)}.\n"
            f"Images: {images}; {known.sum()} in all.\n\n{table}\n\n" + "\n".join(verdicts))


def _spread(values: np.ndarray, form: str = ".1f") -> str:
    """Mean and standard deviation (n: of these very images, and 0 for a single one), in %."""
    return f"{100 * values.mean():{form}} ({100 * values.std():{form.lstrip('+')}})"


def _verdict(points: float) -> str:
    if np.isnan(points):
        return "not known: a map is zero everywhere"
    if abs(points) < 0.005:  # a uniform mask's two shares are equal but for rounding
        return "equal to the camera-specific one"
    return f"{'higher' if points > 0 else 'LOWER'} by {abs(points):.2f} points"


def heading(cfg: CfgNode, kind: str, shares: Sequence[np.ndarray]) -> str:
    """Title of the picture: what is drawn, the weights and, where known, the mean shares."""
    lines = [f"Where the network looks: {' and '.join(BRANCHES)} {kind} maps",
             f"Weights: {printable(cfg.MODEL.WEIGHTS)}" if cfg.MODEL.WEIGHTS else
             f"Before training, SEED {max(cfg.SEED, 0)}"]
    known = [branch[~np.isnan(branch)] for branch in shares]
    if len(known[0]):
        lines.append("On the person: {:.1f} % of the camera-specific and {:.1f} % of the camera-"
                     "agnostic mass (mean over {} images)".format(
                         *(100 * branch.mean() for branch in known), len(known[0])))
    return "\n".join(lines)


def colour_range(maps: list[torch.Tensor]) -> float:
    """r of the scale 1 - r ... 1 + r that holds all relative maps, 0.1 to 1."""
    most = max(float((relative - 1).abs().max()) for relative in maps)
    return min(max(most, LEAST_RANGE), 1.0)


def overlay(picture: np.ndarray, relative: np.ndarray, spread: float) -> np.ndarray:
    """Lays a map (H, W) in the colours of 1 - spread ... 1 + spread over the grey image."""
    from matplotlib import colormaps

    grey = picture.mean(axis=2, keepdims=True) / 255
    colours = colormaps[COLOURS]((relative - 1 + spread) / (2 * spread))[..., :3]
    return np.round(255 * (0.4 * grey + 0.6 * colours)).astype(np.uint8)


def draw_panels(samples: list[Sample], branches: Sequence[torch.Tensor],
                shares: Sequence[np.ndarray]) -> tuple[list[Panel], float]:
    """Image and overlays of each sample, and the colours' range.

    Args:
        samples: N of them.
        branches: camera-specific and camera-agnostic maps, each (N, h, w).
        shares: of the person in either, (N,), NaN where not known.
    """
    relative = [relative_maps(maps) for maps in branches]
    spread = colour_range(relative)
    panels = []
    for i, sample in enumerate(samples):
        size = sample.picture.shape[:2]
        maps = [resize_maps(branch[i:i + 1], size)[0].numpy() for branch in relative]
        note = ""
        if sample.person is not None:
            note = "on the person: {:.1f} %, {:.1f} %".format(*(100 * s[i] for s in shares))
        overlays = (overlay(sample.picture, m, spread) for m in maps)
        panels.append(Panel(printable(os.path.basename(sample.choice.path)), sample.choice.group,
                            note, (sample.picture, *overlays)))
    return panels, spread


def rows_of(panels: list[Any]) -> list[list[Any]]:
    """Panels (or choices) in rows of one group each, at most COLUMNS in a row."""
    rows: list[list[Any]] = []
    for panel in panels:
        if not rows or rows[-1][0].group != panel.group or len(rows[-1]) == COLUMNS:
            rows.append([])
        rows[-1].append(panel)
    return rows


def write_png(panels: list[Panel], spread: float, title: str, path: Path) -> None:
    """One row of images for each group, each image beside its two maps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import cm, colors, pyplot

    rows = rows_of(panels)
    columns = max(len(row) for row in rows)
    widest = max(panel.pictures[0].shape[1] for panel in panels)
    width = max(5.5, columns * (3 * widest + 2 * GAP + 24) / 100)
    text = "\n".join(textwrap.fill(line, int(14 * width)) for line in title.splitlines())
    figure, axes = pyplot.subplots(
        len(rows), columns, squeeze=False, layout="constrained",
        figsize=(width, 1.3 + 0.16 * text.count("\n") + 2.5 * len(rows)))
    for axis in axes.flat:
        axis.set_axis_off()
    for line, row in zip(axes, rows, strict=True):
        for axis, panel in zip(line, row, strict=False):  # a row may be shorter
            _draw_panel(axis, panel)
        line[0].text(-0.02, 0.5, row[0].group, rotation=90, ha="right", va="center", fontsize=9,
                     transform=line[0].transAxes, parse_math=False)
    figure.suptitle(text, fontsize=9, parse_math=False)
    scale = cm.ScalarMappable(colors.Normalize(1 - spread, 1 + spread), COLOURS)
    bar = figure.colorbar(scale, ax=axes, location="bottom", fraction=0.3 / len(rows), aspect=40,
                          shrink=0.6, extend="max" if spread == 1 else "neither")
    bar.set_label("map / its mean over the image (1: as if uniform)", fontsize=8)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=100))
    pyplot.close(figure)


def _draw_panel(axis: Any, panel: Panel) -> None:
    height, width, _ = panel.pictures[0].shape
    gap = np.full((height, GAP, 3), 255, np.uint8)
    first, *others = panel.pictures
    axis.imshow(np.concatenate([first, *(part for p in others for part in (gap, p))], axis=1))
    axis.set_title("\n".join(filter(None, [textwrap.shorten(panel.name, 40, placeholder="..."),
                                           panel.note])), fontsize=7, parse_math=False)
    for i, name in enumerate(("image", "specific", "agnostic")):
        axis.text(i * (width + GAP) + width / 2, height + 3, name, fontsize=6, ha="center",
                  va="top")


def write_html(panels: list[Panel], spread: float, title: str, table: str, path: Path) -> None:
    """A page of its own, pictures included."""
    ramp = np.tile(np.linspace(1 - spread, 1 + spread, 256), (8, 1))
    bar = overlay(np.full((8, 256, 3), 255, np.uint8), ramp, spread)
    more = " or more" if spread == 1 else ""
    scale = (f"map / its mean over the image: {1 - spread:.2f} (left), 1 as if uniform (middle), "
             f"{1 + spread:.2f}{more} (right)")
    groups = [(group, [panel for panel in panels if panel.group == group])
              for group in dict.fromkeys(panel.group for panel in panels)]
    page = render(TEMPLATE, {
        "title": title.splitlines(), "table": table, "bar": (_source(bar), scale),
        "groups": [(group, [{
            "name": panel.name, "note": panel.note,
            "pictures": list(zip(map(_source, panel.pictures), ("image", *BRANCHES), strict=True))
        } for panel in members]) for group, members in groups]})
    write_atomically(path, page)


def _source(picture: np.ndarray) -> str:
    return image_uri(Image.fromarray(picture), "png")


def compute(cfg: CfgNode, networks: dict[str, torch.nn.Module], samples: list[Sample]
            ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Maps and shares: ``maps[weights][kind]`` and ``shares[weights][kind]``, by branch."""
    images = [sample.image for sample in samples]
    maps = {name: network_maps(model, images, cfg.TEST.IMS_PER_BATCH)
            for name, model in networks.items()}
    shares = {name: {kind: tuple(person_shares(branch, samples) for branch in branches)
                     for kind, branches in kinds.items()} for name, kinds in maps.items()}
    return maps, shares


def configure(config_file: str, opts: list[str]) -> CfgNode:
    """The frozen config: the file, then keys.

    Raises:
        ValueError: the network is not shown the whole image.
    """
    cfg = load_config(config_file, opts)
    size = list(cfg.INPUT.SIZE_TEST)
    if len(size) != 2 or min(size) < 1 or cfg.INPUT.CROP.ENABLED:
        raise UserError(f"INPUT.SIZE_TEST {size} must be [height, width] and INPUT.CROP.ENABLED "
                        "False, so that maps cover the whole image.")
    cfg.freeze()
    return cfg


def run(args: SimpleNamespace) -> list[str]:
    """Does what ``caureid attention`` is asked for; ``args``: its options.

    Gives what is wrong with the images that could not be drawn or measured.

    Raises:
        ValueError: a config, a network or images that cannot be drawn.
        OSError: a file that cannot be read or written.
    """
    cfg = configure(args.config_file, args.opts)
    as_png = args.output.suffix.lower() == ".png"
    drawn = "trained" if cfg.MODEL.WEIGHTS else "start"
    networks = {drawn: build_attentive(cfg, cfg.MODEL.WEIGHTS)}
    choices = choose(args, cfg)
    rows = len(rows_of([choice for choice in choices if choice.drawn]))
    if as_png and rows > MOST_ROWS:
        raise UserError(f"The images fill {rows} rows of a PNG, which holds {MOST_ROWS}: choose "
                        "fewer images, or an --output that ends in .html.")
    samples, wrong = read(choices, cfg)
    shown = sum(sample.choice.drawn for sample in samples)  # they come first
    if not shown:
        raise UserError("None of the images can be drawn:\n" + "\n".join(wrong.values()))
    known = any(sample.person is not None for sample in samples)
    if known and cfg.MODEL.WEIGHTS:
        networks = {"start": build_attentive(cfg, ""), **networks}
    maps, shares = compute(cfg, networks, samples)
    panels, spread = draw_panels(
        samples[:shown], [branch[:shown] for branch in maps[drawn][args.kind]],
        shares[drawn][args.kind])
    table = report(shares, samples) if known else ""
    title = heading(cfg, args.kind, shares[drawn][args.kind])
    if table:
        print(f"{table}\n")
    if as_png:
        write_png(panels, spread, title, args.output)
    else:
        write_html(panels, spread, title, table, args.output)
    print(f"{args.output}: {shown} images, {drawn} weights, {args.kind} maps")
    return list(wrong.values())
