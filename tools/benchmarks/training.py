#!/usr/bin/env python3
"""Times training steps of CAUReID against FastReID's Baseline with the same backbone and batch.

    tools/benchmarks/training.py [--config-file configs/Market/caureid.yml] [KEY VALUE ...]
    tools/benchmarks/training.py --breakdown --csv steps.csv --plot steps.png
    tools/benchmarks/training.py --steps 5 MODEL.BACKBONE.DEPTH 18x MODEL.BACKBONE.FEAT_DIM 512 \\
        INPUT.SIZE_TRAIN "[128, 64]" SOLVER.IMS_PER_BATCH 32             # small, for a CPU

Baseline is what the toolbox's users train: its EmbeddingHead, plain batch norm, cross entropy over
identities and triplet loss. CAUReID is what the config says, with a memory bank that is updated
after each step. Both run in FastReID's own trainer (SimpleTrainer, or AMPTrainer for mixed
precision) with its own optimizer, take turns step by step in one process, and start from the same
random backbone weights. Images are random and lie in the device's memory: loading, augmenting and
clustering are no part of a step. Precision and memory layout are varied for both.
"""

import argparse
import itertools
import platform
import re
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import caureid_plugin  # first: it makes the toolbox importable
import numpy as np
import torch
from caureid_plugin import MemoryBank, needs_memory
from caureid_plugin.modeling import build_memory_bank, build_teacher
from caureid_plugin.modeling.teacher import VIEWS
from fastreid.config import get_cfg
from fastreid.engine.train_loop import AMPTrainer, SimpleTrainer
from fastreid.modeling import build_model
from fastreid.solver import build_optimizer
from fastreid.utils.events import EventStorage
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as in gpu.py

from benchmarks.options import device_problem, names
from benchmarks.training_table import (
    BASELINE,
    BREAKDOWN,
    CAUREID,
    breakdown_table,
    conditions,
    draw,
    pick,
    table,
    verdict,
    write_csv,
)

BATCHES = 4  # different batches, taken in turn
GIB = 2**30
PRECISIONS = {"fp32": False, "amp": True}  # SOLVER.AMP.ENABLED
LAYOUTS = {"default": False, "channels_last": True}  # MODEL.CHANNELS_LAST
# keys that the tool sets itself, and the option for each
MANAGED = {"MODEL.DEVICE": "--device", "SOLVER.AMP.ENABLED": "--precisions",
           "MODEL.CHANNELS_LAST": "--layouts"}


# ------------------------------------------------------------------------------ sides ----


@dataclass
class Side:
    """One model in training and what was measured of it.

    Attributes:
        name: Baseline, CAUReID or a part of CAUReID.
        precision, layout: keys of PRECISIONS and LAYOUTS.
        trainer: FastReID's.
        bank: CAUReID's memory bank, which the hook would update after each step.
        dtypes: of the losses.
        milliseconds: one value for each timed step.
        held: bytes on the GPU that stay between its steps.
        peak: bytes on the GPU at most, without the other sides' own.
    """

    name: str
    precision: str
    layout: str
    trainer: SimpleTrainer
    bank: MemoryBank | None
    dtypes: set[str] = field(default_factory=set)
    milliseconds: list[float] = field(default_factory=list)
    held: int = 0
    peak: int = 0

    def step(self) -> None:
        """Forward, backward, optimizer, and CAUReID's update of the bank."""
        self.trainer.run_step()
        if self.bank is not None:
            self.bank.update(*self.trainer.model.pop_seen())
            if self.trainer.model.teacher is not None:
                self.trainer.model.teacher.update(self.trainer.model)

    def note_losses(self, model, inputs, losses) -> None:
        """A forward hook: notes the losses' precision."""
        self.dtypes.update(str(value.dtype).removeprefix("torch.") for value in losses.values())


def side_config(cfg, name: str, precision: str, layout: str, classes: int):
    """The config of one side: of Baseline, of CAUReID, or of a part of CAUReID."""
    cfg = cfg.clone()
    cfg.merge_from_list(["SOLVER.AMP.ENABLED", PRECISIONS[precision],
                         "MODEL.CHANNELS_LAST", LAYOUTS[layout]])
    if name == BASELINE:  # head, neck and losses of FastReID's own strong baselines
        cfg.merge_from_list([
            "MODEL.META_ARCHITECTURE", "Baseline", "MODEL.HEADS.NAME", "EmbeddingHead",
            "MODEL.HEADS.NUM_CLASSES", classes, "MODEL.HEADS.NECK_FEAT", "before",
            "MODEL.LOSSES.NAME", ("CrossEntropyLoss", "TripletLoss"),
            "MODEL.LOSSES.CE.EPSILON", 0.1, "MODEL.LOSSES.TRI.HARD_MINING", True])
        return cfg
    for key, value in BREAKDOWN.get(name, {}).items():
        cfg.merge_from_list([key, value])
    if cfg.MODEL.HEADS.CAMSEP.ATTENTION == "none":  # nothing gives this loss its scores then
        cfg.MODEL.LOSSES.NAME = tuple(
            loss for loss in cfg.MODEL.LOSSES.NAME if loss != "CameraSeparationLoss")
    return cfg


def make_bank(cfg, args: argparse.Namespace, device: torch.device) -> MemoryBank:
    """A bank of random rows; image k + jK is of cluster k and of camera j modulo the cameras."""
    order = torch.arange(args.images)
    cameras = max(1, cfg.MODEL.HEADS.CAMSEP.NUM_CAMERAS)
    bank = build_memory_bank(cfg, order // args.clusters % cameras, device)
    bank.epoch = cfg.SOLVER.MAX_EPOCH  # every loss takes part
    bank.reset(torch.randn(bank.features.shape,
                           generator=torch.Generator().manual_seed(args.seed)))
    bank.relabel(order % args.clusters)
    return bank


def draw_batches(cfg, args: argparse.Namespace, device: torch.device) -> list[dict]:
    """Batches of NUM_INSTANCE different images from each of as many different clusters as fit.

    "targets" are CAUReID's, clusters; "identities" Baseline's, as many different ones.
    """
    generator = torch.Generator().manual_seed(args.seed)
    instances, members = cfg.DATALOADER.NUM_INSTANCE, args.images // args.clusters
    units = cfg.SOLVER.IMS_PER_BATCH // instances
    cameras = max(1, cfg.MODEL.HEADS.CAMSEP.NUM_CAMERAS)
    batches = []
    for _ in range(BATCHES):
        clusters = torch.randperm(args.clusters, generator=generator)[:units]
        identities = torch.randperm(args.classes, generator=generator)[:units]
        chosen = torch.stack(
            [torch.randperm(members, generator=generator)[:instances] for _ in clusters])
        images = torch.rand(len(clusters) * instances, 3, *cfg.INPUT.SIZE_TRAIN,
                            generator=generator)
        batch = {"images": 255 * images, "targets": clusters.repeat_interleave(instances),
                 "identities": identities.repeat_interleave(instances),
                 "camids": chosen.flatten() % cameras,
                 "indexes": (clusters[:, None] + args.clusters * chosen).flatten()}
        batches.append({key: value.to(device) for key, value in batch.items()})
    return batches


def side_batches(side_name: str, layout: str, batches: list[dict]) -> list[dict]:
    """The batches as a side takes them."""
    if side_name != BASELINE:
        return [{**batch, **dict.fromkeys(VIEWS, batch["images"])} for batch in batches]
    # CAUReID lays out its images itself; Baseline has no key for it and follows its input
    memory_format = torch.channels_last if LAYOUTS[layout] else torch.contiguous_format
    return [{**batch, "targets": batch["identities"],
             "images": batch["images"].contiguous(memory_format=memory_format)}
            for batch in batches]


def build_side(cfg, args: argparse.Namespace, name: str, precision: str, layout: str,
               batches: list[dict], backbone: dict | None = None) -> Side:
    """One side, ready to step; its backbone takes the given weights."""
    cfg = side_config(cfg, name, precision, layout, args.classes)
    device = torch.device(args.device)
    before = allocated(device)
    torch.manual_seed(args.seed)
    model = build_model(cfg)
    if backbone is not None:
        model.backbone.load_state_dict(backbone)
    bank = None
    if name != BASELINE:
        model.teacher = build_teacher(cfg, model)
        bank = model.memory = make_bank(cfg, args, device)
    optimizer, wrapper = build_optimizer(cfg, model)
    loader = itertools.cycle(side_batches(name, layout, batches))
    trainer_type = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
    side = Side(name, precision, layout, trainer_type(model, loader, optimizer, wrapper), bank)
    model.register_forward_hook(side.note_losses)
    side.held = allocated(device) - before
    return side


def build_sides(cfg, args: argparse.Namespace) -> list[Side]:
    """Every side under every precision and layout, all with the backbone of the first."""
    batches = draw_batches(cfg, args, torch.device(args.device))
    names = [BASELINE, CAUREID, *(BREAKDOWN if args.breakdown else ())]
    sides: list[Side] = []
    for precision, layout, name in itertools.product(args.precisions, args.layouts, names):
        weights = sides[0].trainer.model.backbone.state_dict() if sides else None
        sides.append(build_side(cfg, args, name, precision, layout, batches, weights))
    return sides


# ------------------------------------------------------------------------- measuring ----


def allocated(device: torch.device) -> int:
    """Bytes of tensors on the GPU; 0 on the CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def timed_step(side: Side, device: torch.device) -> float:
    """Milliseconds of one step; takes note of its memory on a GPU."""
    cuda = device.type == "cuda"
    before = allocated(device)
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    side.step()
    if cuda:
        torch.cuda.synchronize(device)
    spent = time.perf_counter() - start
    if cuda:
        side.peak = max(side.peak, side.held + torch.cuda.max_memory_allocated(device) - before)
        side.held += allocated(device) - before
    return 1e3 * spent


def measure(sides: list[Side], args: argparse.Namespace) -> None:
    """Times the sides in turn, back and forth; the warm-up is not counted."""
    device = torch.device(args.device)
    rounds = args.warm_up + args.steps
    with EventStorage(0), tqdm(total=rounds * len(sides), desc="steps", disable=None) as bar:
        for number in range(rounds):
            # back and forth, so that none always follows the same other
            for side in sides[::-1 if number % 2 else 1]:
                side.trainer.iter = number
                spent = timed_step(side, device)
                if number >= args.warm_up:
                    side.milliseconds.append(spent)
                bar.update()


def ratio_interval(times: np.ndarray, others: np.ndarray, seed: int) -> tuple[float, ...]:
    """Ratio of two medians, and its 95 % bootstrap interval over the rounds.

    Args:
        times: (steps,) of one side.
        others: (steps,) of the side it is compared with, of the same rounds.
        seed: of the bootstrap.

    Returns:
        ratio, lower end, upper end.
    """
    # a round is drawn as a whole: what slows the machine down slows both
    draws = np.random.default_rng(seed).integers(len(times), size=(2000, len(times)))
    ratios = np.median(times[draws], axis=1) / np.median(others[draws], axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(np.median(times) / np.median(others)), float(low), float(high)


def summarise(sides: list[Side], cfg, args: argparse.Namespace) -> list[dict]:
    """One row for each side: times, images/s, ratio to Baseline under the same conditions."""
    rows = []
    for side in sides:
        times = np.array(side.milliseconds)
        other, = (s for s in sides if (s.name, s.precision, s.layout)
                  == (BASELINE, side.precision, side.layout))
        low, median, high = np.percentile(times, (10, 50, 90))
        ratio = ratio_interval(times, np.array(other.milliseconds), args.seed)
        rows.append({
            "precision": side.precision, "layout": side.layout, "side": side.name,
            "median_ms": median, "p10_ms": low, "p90_ms": high,
            "images_per_s": 1e3 * cfg.SOLVER.IMS_PER_BATCH / median,
            **dict(zip(("ratio", "ratio_low", "ratio_high"), ratio, strict=True)),
            "peak_gib": side.peak / GIB if side.peak else "",
            "losses": " ".join(sorted(side.dtypes)), **settings(cfg, args)})
    return rows


def settings(cfg, args: argparse.Namespace) -> dict:
    """What was measured, for every row of the CSV file."""
    height, width = cfg.INPUT.SIZE_TRAIN
    return {
        "backbone": f"{cfg.MODEL.BACKBONE.NAME} {cfg.MODEL.BACKBONE.DEPTH}", "height": height,
        "width": width, "batch": cfg.SOLVER.IMS_PER_BATCH, "images": args.images,
        "clusters": args.clusters, "classes": args.classes, "steps": args.steps,
        "seed": args.seed, "threads": torch.get_num_threads(),
        "device": device_name(args.device), "torch": torch.__version__}


def device_name(device: str) -> str:
    """The GPU's name, or the processor's."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:  # not Linux
        model = None
    return model[1] if model else platform.processor() or platform.machine()


# ---------------------------------------------------------------------- command line ----


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, object]:
    """Reads and checks the command line; returns it with the config, which is CAUReID's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", default="Market/caureid.yml", metavar="FILE",
                        help="CAUReID's config, a file or a shipped one (default: %(default)s)")
    integers = (("steps", 30, "timed steps of each side"),
                ("warm-up", 10, "steps of each side before, not timed"),
                ("images", 12_936, "images N in the memory bank"),
                ("clusters", 1000, "clusters K in the memory bank"),
                ("classes", 751, "identities of Baseline's classifier"),
                ("threads", torch.get_num_threads(), "of the CPU"),
                ("seed", 1, "of weights, images and batches"))
    for name, default, text in integers:
        parser.add_argument(f"--{name}", type=int, default=default,
                            help=f"{text} (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        help="cpu or cuda[:i] (default: cuda where there is one)")
    parser.add_argument("--precisions", type=names, default=list(PRECISIONS), metavar="NAMES",
                        help=f"with commas, of {', '.join(PRECISIONS)} (default: all; amp needs a "
                             "GPU)")
    parser.add_argument("--layouts", type=names, default=list(LAYOUTS), metavar="NAMES",
                        help=f"of the feature maps in memory, with commas, of "
                             f"{', '.join(LAYOUTS)} (default: all)")
    parser.add_argument("--breakdown", action="store_true",
                        help="time CAUReID without grouped batch norm and attention, too")
    parser.add_argument("--csv", type=Path, help="CSV file to write")
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values")
    args = parser.parse_args(argv)
    problem = _problem(args) or _precision_problem(args)
    if not problem:
        try:
            cfg = load_config(args)
            problem = _config_problem(cfg, args)
        except (FileNotFoundError, KeyError, ValueError) as error:
            problem = str(error.args[0] if isinstance(error, KeyError) else error)
    if problem:
        parser.error(problem)
    return args, cfg


def load_config(args: argparse.Namespace):
    """CAUReID's config from file and command line, without pretrained weights."""
    cfg = get_cfg()
    caureid_plugin.add_caureid_config(cfg)
    path = args.config_file
    cfg.merge_from_file(path if Path(path).is_file() else caureid_plugin.get_config_file(path))
    cfg.merge_from_list(args.opts)
    cfg.MODEL.DEVICE = args.device
    cfg.MODEL.BACKBONE.PRETRAIN = False  # a step takes as long from random ones
    return cfg


def _problem(args: argparse.Namespace) -> str | None:
    """What is wrong with numbers, files and the choice of keys."""
    for name in ("steps", "images", "clusters", "classes", "threads"):
        if getattr(args, name) < 1:
            return f"--{name} {getattr(args, name)} must be at least 1"
    for name in ("warm_up", "seed"):
        if getattr(args, name) < 0:
            return f"--{name.replace('_', '-')} {getattr(args, name)} must be at least 0"
    for name, known in (("precisions", PRECISIONS), ("layouts", LAYOUTS)):
        unknown = [value for value in getattr(args, name) if value not in known]
        if unknown:
            return f"--{name} {','.join(unknown)} is unknown, known are {', '.join(known)}"
    for name in ("csv", "plot"):  # before minutes of measuring
        path = getattr(args, name)
        if path and not path.parent.is_dir():
            return f"--{name} {path}: the folder {path.parent} does not exist"
        if path and path.is_dir():
            return f"--{name} {path} is a folder, it must be a file to write"
    if args.plot and args.plot.suffix != ".png":
        return f"--plot {args.plot} must end in .png"
    for key, option in MANAGED.items():
        if key in args.opts[0::2]:
            return f"{key} is set by {option}, leave it out of the config keys"
    return None


def _precision_problem(args: argparse.Namespace) -> str | None:
    """What is wrong with --device; without a GPU mixed precision is left out, and that is said."""
    problem = device_problem(args.device)
    if problem:
        return problem
    if torch.device(args.device).type == "cpu" and args.precisions == ["amp"]:
        return "--precisions amp: mixed precision needs a GPU (FastReID's AMPTrainer is CUDA's)"
    return None


def _config_problem(cfg, args: argparse.Namespace) -> str | None:
    """What is wrong with the config and the numbers that must fit it."""
    if cfg.MODEL.META_ARCHITECTURE != CAUREID or not needs_memory(cfg):
        return (f"{args.config_file} must be a config of unsupervised training: "
                f"MODEL.META_ARCHITECTURE CAUReID (it is {cfg.MODEL.META_ARCHITECTURE}) with a "
                f"loss against the memory bank (MODEL.LOSSES.NAME is {cfg.MODEL.LOSSES.NAME})")
    batch, instances = cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE
    if instances < 1 or batch < 1 or batch % instances:
        return (f"SOLVER.IMS_PER_BATCH {batch} must be a positive multiple of "
                f"DATALOADER.NUM_INSTANCE {instances}, the images of a cluster")
    units = batch // instances
    if units < 2:
        return (f"SOLVER.IMS_PER_BATCH {batch} must hold at least 2 clusters of "
                f"DATALOADER.NUM_INSTANCE {instances} images, or the triplet loss has no negative")
    for name in ("clusters", "classes"):
        if getattr(args, name) < units:
            return (f"--{name} {getattr(args, name)} is fewer than the {units} in a batch "
                    "(SOLVER.IMS_PER_BATCH / DATALOADER.NUM_INSTANCE)")
    if args.images < args.clusters * instances:
        return (f"--images {args.images} gives {args.clusters} clusters fewer than "
                f"DATALOADER.NUM_INSTANCE {instances} images each: at least "
                f"{args.clusters * instances}")
    return None


def facts(cfg, args: argparse.Namespace) -> str:
    """A few lines on what is measured."""
    what = settings(cfg, args)
    lines = [
        (f"{what['backbone']}, {what['height']} x {what['width']}, batch {what['batch']} of "
         f"{cfg.DATALOADER.NUM_INSTANCE} per cluster; {args.clusters:,} clusters of "
         f"{args.images:,} images; {args.classes:,} classes; {cfg.SOLVER.OPT}; seed {args.seed}"),
        (f"{what['device']}, {args.threads} CPU thread(s), Python {platform.python_version()}, "
         f"torch {torch.__version__}")]
    if torch.device(args.device).type == "cuda":
        lines.append(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, "
                     f"CUDNN_BENCHMARK {cfg.CUDNN_BENCHMARK}, TF32 in convolutions "
                     f"{torch.backends.cudnn.allow_tf32}, in matrix products "
                     f"{torch.backends.cuda.matmul.allow_tf32}")
    return "\n".join(lines)


def prepare(cfg, args: argparse.Namespace) -> None:
    """Sets up torch as FastReID's ``default_setup`` does; leaves out what the CPU cannot do."""
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    # the toolbox asks for GradScaler and autocast by names that torch is about to retire
    warnings.filterwarnings("ignore", message=r".*torch\.cuda\.amp", category=FutureWarning)
    device = torch.device(args.device)
    if device.type == "cuda":
        torch.cuda.set_device(f"cuda:{device.index or 0}")  # it refuses "cuda" without an index
    elif "amp" in args.precisions:
        args.precisions.remove("amp")
        print("amp is left out: FastReID trains in mixed precision on CUDA only, and this is the "
              "CPU")


def main(argv: list[str] | None = None) -> None:
    args, cfg = parse_args(argv)
    prepare(cfg, args)
    print(facts(cfg, args), flush=True)
    sides = build_sides(cfg, args)
    measure(sides, args)
    rows = summarise(sides, cfg, args)
    print(f"\nms per step, median (10-90 %) of {args.steps} after {args.warm_up}: forward, "
          "backward, optimizer, bank update; no data loading. Ratio: CAUReID's median / "
          f"Baseline's; speed-up: against the first line.\n\n{table(rows)}\n")
    if args.breakdown:
        print("Times Baseline's step (95 %), with less and less of the method:\n\n"
              f"{breakdown_table(rows)}\n")
    for condition in conditions(rows):
        print(verdict(pick(rows, condition, CAUREID), args.device))
    if args.csv:
        write_csv(rows, args.csv)
        print(f"{args.csv}: {len(rows)} rows")
    if args.plot:
        draw(rows, args.plot)
        print(f"{args.plot}: ms per step")


if __name__ == "__main__":
    main()
