"""The stages of tools/benchmarks/gpu.py, each of which runs in a process of its own.

    gpu_stages.py STAGE SETTINGS.json NOTES.json       # as gpu.py calls it

A stage is a function of the settings and of the notes that it adds to.
"""

import csv
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import caureid_plugin
import numpy as np
import psutil
import torch
from caureid_plugin.ablation import runs as ablation_runs
from caureid_plugin.ablation import table as ablation_report
from caureid_plugin.ablation.runner import Ablation
from caureid_plugin.cli import ablation
from caureid_plugin.data import training_images
from caureid_plugin.data.unlabelled import build_pseudo_label_loader
from caureid_plugin.runs.metrics import read_rows
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as in gpu.py

from benchmarks import clustering as benchmark_clustering
from benchmarks import measure, scaling, training_table
from benchmarks import training as benchmark_training
from benchmarks.gpu_notes import NOT_MEASURED, Notes, NotMeasured, kind_and_text

ROOT = Path(__file__).resolve().parents[2]
# rows of the table on real data: config file and keys; of the paper's table 2, and the best recipe
ROWS = {**{row: (ablation.FAMILIES["market"], ablation.ROWS[row][1])
           for row in ("baseline", "cacc", "full")},
        "caureid_best": ("Market/caureid_best.yml", [])}
SAME_LOSS = 0.02  # largest relative difference of a compiled network's first loss


# ------------------------------------------------------------------------------- facts ----


def facts(settings: dict, notes: Notes) -> None:
    """The machine, the versions and the commit. "device" is "CPU" where torch finds no GPU."""
    known = ablation_runs.machine(settings["device"])
    gpu = known["device"] != "CPU"
    trained = [Path(settings[name] or "-").name for name in ("data", "weights")]
    found = {
        **known, "commit": settings["commit"] or ablation_runs.code_commit(),
        "memory, GiB": psutil.virtual_memory().total / 2**30,
        "GPU memory, GiB": torch.cuda.mem_get_info(settings["device"])[1] / 2**30 if gpu else "",
        "driver": _driver(), "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
        "TF32 in convolutions, in matrix products":
            f"{torch.backends.cudnn.allow_tf32}, {torch.backends.cuda.matmul.allow_tf32}",
        **{package: _version(package) for package in ("numpy", "faiss-cpu", "faiss-gpu")},
        "sizes": "quick" if settings["quick"] else "full",
        "rows": " ".join([*trained, *settings["keys"]]) if settings["data"] else "-"}
    for what, value in found.items():
        notes.put(what, {"value": value})


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


# ------------------------------------------------------------------------------- tests ----


def tests(settings: dict, notes: Notes) -> None:
    """Every test marked ``cuda``."""
    import pytest  # a user without tests need not have it

    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py"))
             if "pytest.mark.cuda" in path.read_text()]
    code = pytest.main(
        [*map(str, files), "-m", "cuda", "-q", "-p", "no:randomly", "-p", "no:cacheprovider",
         f"--rootdir={ROOT}"], plugins=[_Recorder(notes)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {pytest.ExitCode(code).name}, see the log")


class _Recorder:
    """Notes every test as it ends."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def pytest_runtest_logreport(self, report) -> None:
        name = report.nodeid.removeprefix("tests/")
        if report.failed:
            self._notes.fail(name, _reason(report))
        elif report.skipped:
            self._notes.put(name, {NOT_MEASURED: report.longrepr[2].removeprefix("Skipped: ")})
        elif report.when == "call":
            self._notes.put(name, {"result": "passed", "seconds": report.duration})


def _reason(report) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return "failed: " + (crash.message if crash else str(report.longrepr)).partition("\n")[0][:160]


# -------------------------------------------------------------------------- clustering ----


def _clustering_args(settings: dict, n: int, *words: str):
    given = (f"--n={n}", f"--dim={settings['dim']}", f"--device={settings['device']}", *words)
    return benchmark_clustering.parse_args(list(given))


def clustering(settings: dict, notes: Notes) -> None:
    """The plugin's clustering, each size in a process of its own."""
    for n in settings["sizes"]:
        notes.measure(f"{n:,} x {settings['dim']}",
                      partial(_clustered, _clustering_args(settings, n)))


def _clustered(args) -> dict:
    row = scaling.start_child(args, args.n, "auto")
    if "error" in row:
        raise RuntimeError(row["error"])
    return {"search by": row["search"],
            **{f"{stage}, s": row[f"{stage}_s"] for stage in measure.STAGES},
            "total, s": row["total_s"], "recall": row["recall"], "clusters": row["clusters"],
            "outliers": row["outliers"], "ARI": row["ari"], "peak GiB": row["peak_gib"],
            "GPU peak GiB": row["gpu_peak_gib"]}


def toolbox(settings: dict, notes: Notes) -> None:
    """Clustering against FastReID's ``compute_jaccard_distance`` with scikit-learn's DBSCAN.

    The toolbox searches with faiss: on the GPU if faiss is built for it, else on the CPU.
    """
    on_gpu = False
    if settings["device"] != "cpu" and importlib.util.find_spec("faiss"):
        import faiss

        on_gpu = hasattr(faiss, "StandardGpuResources")
    for n in settings["toolbox_sizes"]:
        args = _clustering_args(settings, n, "--rounds=1", f"--toolbox-options={3 * (not on_gpu)}")
        notes.measure(f"{n:,} x {settings['dim']}", partial(_against_toolbox, args))
    if any(NOT_MEASURED not in row for row in notes.rows):
        notes.remark(f"FastReID searches on the {'GPU' if on_gpu else 'CPU'} here, and does all "
                     "else on the CPU.")


def _against_toolbox(args) -> dict:
    measure.warm_up(args)
    features, _, _ = benchmark_clustering.simulate_features(args.n, args.dim, seed=args.seed)
    (our,), (their,), differences = benchmark_clustering.compare(features, args)
    if their.error:
        raise NotMeasured(f"FastReID cannot do it here, {their.error}")
    seconds = [float(np.median(side.seconds["total"])) for side in (our, their)]
    same = benchmark_clustering.same_partition(our.labels[-1], their.labels[-1])
    difference = differences[our.name, their.name]
    return {"plugin, s": seconds[0], "FastReID, s": seconds[1],
            "times as fast": seconds[1] / seconds[0],
            "labels": "same" if same else "same but for ties at eps" if difference.same_with_ties
            else "different", "largest difference of a distance": difference.largest}


# ------------------------------------------------------------------------------- steps ----


def steps(settings: dict, notes: Notes) -> None:
    """A training step against FastReID's Baseline, in each precision, layout, compiled or not."""
    on_gpu = settings["device"] != "cpu"
    args, cfg = benchmark_training.parse_args(
        [f"--device={settings['device']}", *settings["step_words"]])
    benchmark_training.prepare(cfg, args)
    if not on_gpu:
        notes.remark("Mixed precision is not measured: FastReID has it on CUDA only.")
    for precision in ("fp32", "amp") if on_gpu else ("fp32",):
        for layout in benchmark_training.LAYOUTS:
            name = f"{precision}, {layout}"
            notes.measure(name, partial(_step, cfg, args, precision, layout, notes))
            notes.measure(f"{name}, compiled", partial(
                _compiled_step, cfg, args, precision, layout, notes, settings["compiler"]))


def _step(cfg, args, precision: str, layout: str, notes: Notes | None = None,
          compiler: str | None = None) -> dict:
    """One row; ``compiler``: torch.compile's back end for the backbones of both sides."""
    args.precisions, args.layouts = [precision], [layout]
    torch.compiler.reset()  # what an earlier row has compiled counts against a limit
    sides, first = benchmark_training.build_sides(cfg, args), {}
    for side in sides:
        side.trainer.model.register_forward_hook(partial(_note_first, first, side.name))
        if compiler:
            side.trainer.model.backbone.compile(backend=compiler)
    benchmark_training.measure(sides, args)
    base, ours = benchmark_training.summarise(sides, cfg, args)
    if notes is not None:
        notes.remark(training_table.verdict(ours, args.device) + ".")
    row = {}
    for side in (base, ours):
        row[f"{side['side']}, ms"] = float(side["median_ms"])
        row[f"{side['side']}, images/s"] = float(side["images_per_s"])
    row["ratio (95 %)"] = training_table.ratio_text(ours)
    for side in (base, ours):
        row[f"{side['side']}, peak GiB"] = side["peak_gib"]
        row[f"{side['side']}, first loss"] = first[side["side"]]
    return row


def _note_first(first: dict, name: str, model: nn.Module, inputs: tuple, losses: dict) -> None:
    """A forward hook that keeps the total of the first step's losses."""
    if name not in first:
        first[name] = float(sum(loss.detach().float() for loss in losses.values()))


def _compiled_step(cfg, args, precision: str, layout: str, notes: Notes, compiler: str) -> dict:
    """With compiled backbones, if torch.compile can do it and the first losses are the same."""
    plain = notes.find(f"{precision}, {layout}")
    if plain is None:
        raise NotMeasured("the same without torch.compile was not measured")
    try:
        row = _step(cfg, args, precision, layout, compiler=compiler)
    except Exception as error:
        if not type(error).__module__.startswith("torch."):
            raise
        raise NotMeasured(f"torch.compile does not hold, {kind_and_text(error)}") from error
    for name in (f"{side}, first loss" for side in ("Baseline", "CAUReID")):
        if not np.isclose(row[name], plain[name], rtol=SAME_LOSS):
            raise NotMeasured(f"torch.compile does not hold, {name} is {row[name]:.4g} in place "
                              f"of {plain[name]:.4g}")
    return row


# ------------------------------------------------------------------------------ loader ----


def _data(settings: dict) -> list[str]:
    """Config keys: without --data the embedded images, which are rendered on first use."""
    return [] if settings["data"] else ["DATASETS.NAMES", "('SyntheticCameras',)",
                                        "DATASETS.TESTS", "('SyntheticCameras',)"]


def loader(settings: dict, notes: Notes) -> None:
    """Images a second that the training loader gives, decoded, augmented and on the device."""
    cfg = caureid_plugin.load_config("Market/caureid.yml", [*_data(settings), *settings["small"]])
    items = training_images(cfg)
    for workers in settings["workers"]:
        notes.measure(f"{workers} workers", partial(_loaded, cfg, items, workers,
                                                    settings["loader_seconds"]))
    height, width = cfg.INPUT.SIZE_TRAIN
    notes.remark(f"{len(items):,} images of {cfg.DATASETS.NAMES[0]}; batches of "
                 f"{cfg.SOLVER.IMS_PER_BATCH} at {height} x {width}.")


def _loaded(cfg, items: list, workers: int, seconds: float) -> dict:
    cfg = cfg.clone()
    cfg.DATALOADER.NUM_WORKERS = workers
    labels = np.arange(len(items)) // cfg.DATALOADER.NUM_INSTANCE
    batches = build_pseudo_label_loader(cfg, items, labels, 0)
    source, count = iter(batches), 0
    try:
        for _ in range(2 * workers + 2):  # what is read ahead while the workers start
            next(source)
        start = time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds or not count:
            count += len(next(source)["images"])
        return {"images/s": count / spent}
    finally:
        batches.shutdown()


# -------------------------------------------------------------------------------- rows ----


def rows(settings: dict, notes: Notes) -> None:
    """The method's rows on Market-1501, by caureid ablation, which goes on where it was."""
    output = Path(settings["work"], "rows")
    weights = ["MODEL.BACKBONE.PRETRAIN_PATH", settings["weights"]] if settings["weights"] else []
    recipes = {row: (caureid_plugin.get_config_file(name), keys)
               for row, (name, keys) in ROWS.items()}
    Ablation.of(SimpleNamespace(
        recipes=recipes, titles={row: row for row in ROWS}, rows=list(ROWS), seeds=[1],
        baseline="baseline", output=output, jobs=1, command="tools/benchmarks/gpu.py",
        source=", ".join(ROWS),
        opts=["MODEL.DEVICE", settings["device"], *weights, *_data(settings), *settings["small"],
              *settings["small_rows"], *settings["keys"]])).run_to_the_end()
    with (output / "table.csv").open(newline="") as file:
        for run in csv.DictReader(file):
            _note_row(run, output, notes)


def _note_row(run: dict, output: Path, notes: Notes) -> None:
    """Takes over a line of table.csv."""
    if run["state"] == ablation_report.FINISHED:
        notes.put(run["row"], {name: float(run[name]) for name in
                               ("mAP", "Rank-1", "clusters", "outliers", "minutes")
                               if run.get(name)})
    elif run["state"].startswith("failed"):
        notes.fail(run["row"], run["state"])
    else:
        done, _ = read_rows(output / f"{run['row']}-seed1" / "metrics.json")
        step = done[-1]["iteration"] + 1 if done else 0
        notes.put(run["row"], {NOT_MEASURED: f"{run['state']}, at step {step:,}"})


STAGES = {function.__name__: function
          for function in (facts, tests, clustering, steps, loader, toolbox, rows)}


def main(argv: list[str]) -> int:
    stage, settings, path = argv
    notes = Notes(Path(path))
    STAGES[stage](json.loads(Path(settings).read_text()), notes)
    return 1 if notes.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
