#!/usr/bin/env python3
"""Shows that a run survives being killed, and that a long one leaves nothing behind.

    tools/benchmarks/check_reliability.py kills [KEY VALUE ...] [--kills 20] [--epochs 40]
    tools/benchmarks/check_reliability.py leaks [KEY VALUE ...] [--epochs 50]

`kills` trains to the end without interruption, then once more with `kill -9` at random moments,
each time followed by `--resume`, and compares weights, bank, pseudo labels, optimizer and the rows
of metrics.json (without times) bit for bit. `leaks` counts processes, threads, open files and
memory after each epoch of one run. Both train a network of two layers on 48 images of noise that
they write themselves, on the CPU, leave a table, a picture and a JSON file in --output, and exit
with 1 if they find a difference or a leak.
"""

import argparse
import gc
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

TRAIN = (sys.executable, "-m", "caureid_plugin", "train")
TIMES = {"time", "data_time", "eta_seconds", "cluster_seconds"}
KEYS = """
MODEL.DEVICE cpu MODEL.BACKBONE.FEAT_DIM 16 MODEL.HEADS.CAMSEP.REDUCTION 4 MODEL.BN_GROUP_SIZE 8
MODEL.HEADS.CAMSEP.NUM_CAMERAS 2 DATASETS.NAMES ('Market1501',) DATASETS.TESTS ('Market1501',)
INPUT.SIZE_TRAIN [32,16] INPUT.SIZE_TEST [32,16] SOLVER.IMS_PER_BATCH 16 SOLVER.ITERS_PER_EPOCH 4
SOLVER.CHECKPOINT_PERIOD 1 SOLVER.OPT Adam CAUREID.CLUSTER.K1 6 CAUREID.CLUSTER.K2 2
CAUREID.CLUSTER.MIN_SAMPLES 2 CAUREID.CLUSTER.EPS 0.6 TEST.EVAL_PERIOD 1 TEST.EVAL_AT_START False
TEST.IMS_PER_BATCH 16 DATALOADER.NUM_WORKERS 1
""".split()


def write_images(root: Path, seed: int = 0) -> None:
    """Market-1501's layout: 8 identities to train with and 8 to test with, 2 cameras, 32 x 16."""
    rng = np.random.default_rng(seed)
    base = root / "Market-1501-v15.09.15"
    for person in range(1, 17):
        colours = rng.uniform(20, 235, size=(2, 3))
        parts = ["bounding_box_train"] * 3 if person < 9 else [
            "query", "bounding_box_test", "bounding_box_test"]
        for camera in (1, 2):
            for frame, part in enumerate(parts):
                image = colours.repeat(16, axis=0)[:, None].repeat(16, axis=1) * (1 - 0.15 * camera)
                image += rng.normal(scale=12.0, size=image.shape)
                (base / part).mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(
                    base / part / f"{person:04d}_c{camera}s1_{frame:06d}_00.jpg", quality=95)


def command(folder: Path, epochs: int, keys: list[str]) -> list[str]:
    """A training on the images, without an option to resume."""
    return [*TRAIN, "--config-file", "Synthetic/caureid.yml", *KEYS,
            "SOLVER.MAX_EPOCH", str(epochs), "SOLVER.STEPS", f"[{epochs // 2}]", *keys,
            "OUTPUT_DIR", str(folder)]


def start(arguments: list[str], root: Path, log: Path) -> subprocess.Popen:
    """Starts a training in a process group of its own; its output is added to the log."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "FASTREID_DATASETS": str(root)}
    with log.open("ab") as stream:
        return subprocess.Popen(arguments, env=environment, stdout=stream, stderr=stream,
                                stdin=subprocess.DEVNULL, start_new_session=True)


def resumed(arguments: list[str]) -> list[str]:
    return [*arguments, "--resume"]


# ---------------------------------------------------------------------------------- kills ----


def wait_for_training(child: subprocess.Popen, log: Path, started_before: int) -> bool:
    """Waits until the log says once more that training starts; False if the run ended first."""
    while child.poll() is None:
        if log.read_bytes().count(b"Starting training from epoch") > started_before:
            return True
        time.sleep(0.02)
    return False


def family_of(child: subprocess.Popen) -> list[psutil.Process]:
    try:
        return psutil.Process(child.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill_at_random(arguments: list[str], root: Path, log: Path, rng: random.Random,
                   epoch_seconds: float, start_seconds: float) -> dict | None:
    """One attempt that ends in kill -9; None if the run came to its end before.

    One in five is killed before the training starts, the others within three epochs.
    """
    began = time.monotonic()
    started_before = log.read_bytes().count(b"Starting training from epoch") if log.exists() else 0
    child = start(arguments, root, log)
    if rng.random() < 0.2:
        time.sleep(rng.uniform(0, start_seconds))
    elif wait_for_training(child, log, started_before):
        time.sleep(rng.uniform(0, 3 * epoch_seconds))
    family = family_of(child)
    if child.poll() is not None:
        return None
    child.send_signal(signal.SIGKILL)
    child.wait()
    # a loader's worker looks for its parent every five seconds
    _, left = psutil.wait_procs(family, timeout=20)
    return {"seconds": round(time.monotonic() - began, 2), "processes_left": len(left)}


def load(path: Path) -> dict:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def state_on_disk(folder: Path) -> dict:
    """What a kill left: the checkpoint that last_checkpoint names, if any, loads."""
    tag = folder / "last_checkpoint"
    if not tag.exists():
        return {"checkpoint": None, "step": 0}
    saved = load(folder / tag.read_text())
    steps = saved["run_state"]["steps_done"]
    return {"checkpoint": tag.read_text(),
            "step": (saved["epoch"] + 1) * saved["run_state"]["iters_per_epoch"] + steps}


def rows(folder: Path) -> list[dict]:
    """Rows of metrics.json without the figures that are times."""
    # as written: the runs' reader leaves out rows that were done again, which must not be there
    read = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in read]


def differences(one: object, other: object, name: str = "") -> list[str]:
    """Names of the parts of two checkpoints that are not equal bit for bit."""
    import torch

    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one
                for found in differences(one[key], other[key], f"{name}/{key}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [name]
    if (isinstance(one, (list, tuple)) and isinstance(other, (list, tuple))
            and len(one) == len(other)):
        return [found for i, pair in enumerate(zip(one, other, strict=True))
                for found in differences(*pair, f"{name}/{i}")]
    return [] if type(one) is type(other) and one == other else [name]


def compare(one: Path, other: Path) -> list[str]:
    """What differs between the ends of two runs: names of tensors, of rows."""
    first, second = load(one / "model_final.pth"), load(other / "model_final.pth")
    for saved in (first, second):
        # of these the figures are times, which never repeat; the rows below hold the rest
        for name in ("scalars", "written", "metrics_bytes"):
            del saved["run_state"][name]
    found = differences(first, second)
    ours, theirs = rows(one), rows(other)
    found += [f"metrics.json row {i}"
              for i, pair in enumerate(zip(ours, theirs, strict=False))  # lengths: below
              if pair[0] != pair[1]]
    if len(ours) != len(theirs):
        found.append(f"metrics.json has {len(theirs)} rows instead of {len(ours)}")
    return found


def check_kills(options: argparse.Namespace) -> bool:
    output, rng = options.output, random.Random(options.seed)
    root, whole, killed = output / "images", output / "whole", output / "killed"
    write_images(root)
    arguments = command(whole, options.epochs, options.opts)
    began = time.monotonic()
    child = start(arguments, root, output / "whole.log")
    wait_for_training(child, output / "whole.log", 0)
    start_seconds = time.monotonic() - began
    if child.wait():
        raise SystemExit(f"The run without interruption failed, see {output / 'whole.log'}.")
    epoch_seconds = (time.monotonic() - began - start_seconds) / options.epochs
    print(f"whole run: {start_seconds:.1f} s to start, {epoch_seconds:.2f} s for each of "
          f"{options.epochs} epochs", flush=True)

    arguments, attempts = resumed(command(killed, options.epochs, options.opts)), []
    for number in range(options.kills):
        attempt = kill_at_random(arguments, root, output / "killed.log", rng, epoch_seconds,
                                 start_seconds)
        if attempt is None:
            print(f"the run ended before kill {number + 1}: raise --epochs", flush=True)
            break
        attempts.append({**attempt, **state_on_disk(killed)})
        print("kill {:2d}: {seconds:5.1f} s after its start, goes on at step {step} "
              "({checkpoint})".format(number + 1, **attempts[-1]), flush=True)
    if start(arguments, root, output / "killed.log").wait():
        raise SystemExit(f"A resumed run failed, see {output / 'killed.log'}.")
    return report_kills(options, attempts)


def report_kills(options: argparse.Namespace, attempts: list[dict]) -> bool:
    output = options.output
    found = compare(output / "whole", output / "killed")
    parts = [path.name for path in (output / "killed").glob(".*.part")]
    found += [f"left behind: {name}" for name in parts]
    found += [f"{attempt['processes_left']} processes outlived a kill" for attempt in attempts
              if attempt["processes_left"]]
    if len(attempts) < options.kills:
        found.append(f"{len(attempts)} kills instead of {options.kills}")
    (output / "kills.json").write_text(json.dumps(
        {"kills": attempts, "seed": options.seed, "differences": found}, indent=1))
    draw_kills(attempts, output / "kills.png")
    return verdict(found, f"{len(attempts)} kills: weights, bank, labels, optimizer and rows equal "
                          "those without interruption, bit for bit")


def draw_kills(attempts: list[dict], path: Path) -> None:
    pyplot = plotting()
    figure, axis = pyplot.subplots(figsize=(7, 3.4))
    passed = np.cumsum([attempt["seconds"] for attempt in attempts])
    axis.step(passed, [attempt["step"] for attempt in attempts], where="post")
    axis.plot(passed, [attempt["step"] for attempt in attempts], "x", color="C3", label="kill -9")
    axis.set(xlabel="seconds", ylabel="step that --resume goes on from",
             title="a run under kill -9")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


# ---------------------------------------------------------------------------------- leaks ----


def count(process: psutil.Process) -> dict:
    """What a process holds: processes and threads below it, open files, memory (MiB)."""
    return {"processes": len(process.children(recursive=True)), "threads": process.num_threads(),
            "files": process.num_fds(), "memory": process.memory_info().rss / 2**20}


def check_leaks(options: argparse.Namespace) -> bool:
    output = options.output
    write_images(output / "images")
    os.environ["FASTREID_DATASETS"] = str(output / "images")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from caureid_plugin.engine import training
    from fastreid.engine.train_loop import HookBase

    process, samples = psutil.Process(), []

    class Sample(HookBase):
        def after_epoch(self):
            samples.append(count(process))

    arguments = command(output / "run", options.epochs, options.opts)[len(TRAIN):]
    trainer = training.build_trainer(training.setup(
        training.argument_parser().parse_args(arguments)))
    trainer.register_hooks([Sample()])
    trainer.train()
    del trainer
    gc.collect()
    return report_leaks(options, samples, count(process))


def report_leaks(options: argparse.Namespace, samples: list[dict], after: dict) -> bool:
    output = options.output
    print("epoch  processes  threads  files  memory (MiB)")
    for epoch in sorted({1, 2, 3, *range(10, len(samples) + 1, 10), len(samples)}):
        print("{:5d}  {processes:9d}  {threads:7d}  {files:5d}  {memory:12.1f}".format(
            epoch, **samples[epoch - 1]))
    print("after  {processes:9d}  {threads:7d}  {files:5d}  {memory:12.1f}".format(**after))
    flat, found = samples[2:], []
    late = flat[-max(1, len(flat) // 4):]
    for name in ("processes", "threads", "files"):
        # what is just being closed may be counted in one epoch or another; a leak never goes away
        least = min(sample[name] for sample in late)
        if least > samples[2][name]:
            found.append(f"{name}: {samples[2][name]} after epoch 3, at least {least} in the last "
                         f"{len(late)} epochs")
    growth = flat[-1]["memory"] - flat[0]["memory"]
    if growth > options.memory:
        found.append(f"memory grew by {growth:.1f} MiB after epoch 3")
    if after["processes"]:
        found.append(f"{after['processes']} processes outlive the training")
    (output / "leaks.json").write_text(json.dumps(
        {"epochs": samples, "after": after, "leaks": found}, indent=1))
    draw_leaks(samples, output / "leaks.png")
    return verdict(found, f"{len(samples)} epochs: processes, threads and open files stay as after "
                          f"epoch 3, memory {growth:+.1f} MiB")


def draw_leaks(samples: list[dict], path: Path) -> None:
    pyplot = plotting()
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2))
    epochs = range(1, len(samples) + 1)
    for name in ("processes", "threads", "files"):
        axes[0].plot(epochs, [sample[name] for sample in samples], label=name)
    axes[1].plot(epochs, [sample["memory"] for sample in samples])
    axes[0].set(xlabel="epoch", title="held after each epoch")
    axes[1].set(xlabel="epoch", title="resident memory (MiB)")
    axes[0].legend()
    for axis in axes:
        axis.set_ylim(0, 1.2 * axis.get_ylim()[1])
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def plotting():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def verdict(found: list[str], good: str) -> bool:
    print("\n".join(["FAILED", *found]) if found else f"OK: {good}", flush=True)
    return not found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("check", choices=["kills", "leaks"])
    parser.add_argument("--output", type=Path, default=None,
                        help="folder that does not exist yet (logs/kills, logs/leaks)")
    parser.add_argument("--epochs", type=int, default=None, help="40 for kills, 50 for leaks")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the kills")
    parser.add_argument("--memory", type=float, default=10.0,
                        help="MiB by which memory may grow after epoch 3")
    parser.add_argument("opts", nargs="*", help="config keys and values")
    options = parser.parse_args(arguments)
    options.output = (options.output or Path("logs", options.check)).resolve()
    options.epochs = options.epochs or {"kills": 40, "leaks": 50}[options.check]
    if options.epochs < 4:
        parser.error(f"--epochs {options.epochs} must be at least 4.")
    if options.kills < 1:
        parser.error(f"--kills {options.kills} must be at least 1.")
    if options.output.exists():
        parser.error(f"--output {options.output} is there already: name another or remove it.")
    if re.search(r"[-\d]+_c\d", str(options.output)):
        parser.error(f"--output {options.output} looks like the name of an image: name another.")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    options.output.mkdir(parents=True)
    check = check_kills if options.check == "kills" else check_leaks
    return 0 if check(options) else 1


if __name__ == "__main__":
    sys.exit(main())
