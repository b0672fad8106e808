"""Did training go well? Words for the label-free indicators, and what to change.

Which indicators are judged, and the limits, are read off runs whose mAP was known
(docs/indicators.md). They tell runs that went wrong from others, and nothing finer. Where a run
evaluates on labelled images, their mAP counts as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from fastreid.config import CfgNode

LEVELS = ("unknown", "good", "mixed", "bad")  # in the order of their weight
EPS = "CAUREID.CLUSTER.EPS"
LOOKED_BACK = 20  # clusterings: as many as a resumed run knows of the time before
MOST_STEPS = 3  # of advice
FIRST_LOOK = 2000  # steps; the paper's 50 epochs have 20,000

OF_CLUSTERINGS = ("silhouette", "outlier_share", "stability", "cross_camera", "own_camera",
                  "largest_share")  # what is logged of each, judged or to explain it

Indicators = Mapping[str, Sequence[float]]


def collect(figures: Indicators) -> dict[str, list[float]]:
    """What :func:`judge` takes, of figures by their keys in metrics.json.

    mAP keeps its key, which with several test sets is ``NAME/mAP`` for each of them, and
    ``start/NAME/mAP`` before training.
    """
    return {**{name: list(figures.get(f"labels/{name}", ())) for name in OF_CLUSTERINGS},
            **{key: list(values) for key, values in sorted(figures.items())
               if is_precision(key) or is_precision(key, "start/")}}


def is_precision(key: str, prefix: str = "") -> bool:
    """Whether a key of metrics.json is the mAP of a test set; before training: prefix start/."""
    rest = key.removeprefix(prefix)
    return (key.startswith(prefix) and not rest.startswith("start/")
            and rest.rpartition("/")[2] == "mAP")


class Finding(NamedTuple):
    """What one indicator says: name, last value, one of LEVELS, what that means, steps to take.

    ``steps`` name functions of :data:`STEPS`, the most likely one first.
    """

    name: str
    value: float
    level: str
    meaning: str
    steps: tuple[str, ...] = ()

    @property
    def figure(self) -> str:
        """The value as it is written."""
        return f"{self.value:.{1 if is_precision(self.name) else 2}f}"


class Verdict(NamedTuple):
    """What the indicators say of a run: one of LEVELS, in words, what to change, the details.

    ``note``: that the run was a first look, or "". ``advice``: sentences, the most likely step
    first. None asks for what the config has already.
    """

    level: str
    summary: str
    note: str
    advice: list[str]
    findings: list[Finding]


def judge(indicators: Indicators, cfg: CfgNode, *, num_cameras: int | None = None) -> Verdict:
    """Judges a run by its clusterings, and by its evaluations where it has any.

    Args:
        indicators: values in order, of :func:`collect`: of
            :func:`caureid_plugin.clustering.label_indicators` over the clusterings, "mAP" in per
            cent over the evaluations, each test set by itself, "start/mAP" before training.
            "largest_share" tells what to change, the others are judged, and what is missing is not.
            A last value that is not finite is bad; earlier ones are passed over.
        cfg: config of the run.
        num_cameras: of the training set; with 1 no cluster can span cameras.

    Returns:
        the verdict; its level is that of the worst finding, "unknown" without any.
    """
    known = {name: [value for value in values if math.isfinite(value)]
             for name, values in indicators.items()}
    findings = []
    for name in [*filter(is_precision, indicators), *JUDGED]:
        values = indicators.get(name, ())
        if name in OF_CAMERAS and num_cameras == 1:
            continue
        if len(values) and not math.isfinite(values[-1]):
            findings.append(Finding(name, values[-1], *NO_NUMBER))
        elif len(known.get(name, ())) >= LEAST_VALUES.get(name, 1):
            judgement = JUDGED[name](known) if name in JUDGED else _mean_precision(
                known[name], known.get(f"start/{name}"))
            findings.append(Finding(name, known[name][-1], *judgement))
    level = max((finding.level for finding in findings), key=LEVELS.index, default="unknown")
    return Verdict(level, SUMMARIES[level], _first_look(cfg),
                   _advice(findings, cfg, num_cameras), findings)


def _first_look(cfg: CfgNode) -> str:
    steps = cfg.SOLVER.MAX_EPOCH * cfg.SOLVER.ITERS_PER_EPOCH  # 0: as many as the images make
    if not 0 < steps < FIRST_LOOK:
        return ""
    return (f"The run was a first look: {steps:,} steps, by SOLVER.MAX_EPOCH "
            f"{cfg.SOLVER.MAX_EPOCH} and ITERS_PER_EPOCH {cfg.SOLVER.ITERS_PER_EPOCH}. More may "
            "give better results.")


def _advice(findings: Sequence[Finding], cfg: CfgNode, num_cameras: int | None) -> list[str]:
    """Steps of the worst findings first, each once, without those that are taken."""
    worst_first = sorted(findings, key=lambda finding: -LEVELS.index(finding.level))
    wanted = [step for finding in worst_first for step in finding.steps]
    if wanted:
        wanted.insert(0, "weights")  # random weights explain whatever is wrong
    if num_cameras == 2:  # both measured lower there (docs/results.md)
        wanted = [step for step in wanted if step not in ("camera_aware", "standardize")]
    steps = [text for step in dict.fromkeys(wanted) if (text := STEPS[step](cfg))][:MOST_STEPS]
    return [f"{'Most likely helps' if not number else 'Or'}: {text}."
            for number, text in enumerate(steps)]


# ------------------------------------------------------------------------ what can be changed ----


def _start_weights(cfg: CfgNode) -> str:
    if cfg.MODEL.WEIGHTS or cfg.MODEL.BACKBONE.PRETRAIN:
        return ""
    return ("start from trained weights; this run started from random ones "
            "(MODEL.BACKBONE.PRETRAIN True with PRETRAIN_PATH, or MODEL.WEIGHTS)")


def _camera_aware(cfg: CfgNode) -> str:
    return ("" if cfg.CAUREID.CLUSTER.CAMERA_AWARE else
            "neighbours from every camera (CAUREID.CLUSTER.CAMERA_AWARE True)")


def _standardize(cfg: CfgNode) -> str:
    return ("" if cfg.CAUREID.CLUSTER.STANDARDIZE else
            "features standardised by camera (CAUREID.CLUSTER.STANDARDIZE True)")


def _better_weights(cfg: CfgNode) -> str:
    return ("weights trained on re-identification data to start from "
            "(MODEL.BACKBONE.PRETRAIN_PATH or MODEL.WEIGHTS)")


def _lower_eps(cfg: CfgNode) -> str:
    return f"a lower {EPS} than {cfg.CAUREID.CLUSTER.EPS:g} (caureid eps proposes one)"


def _raise_eps(cfg: CfgNode) -> str:
    if cfg.CAUREID.CLUSTER.EPS >= 0.9:  # at 1 all images are one cluster
        return ""
    return f"a higher {EPS} than {cfg.CAUREID.CLUSTER.EPS:g} (caureid eps proposes one)"


def _raise_first_eps(cfg: CfgNode) -> str:
    node = cfg.CAUREID.CLUSTER
    return ("" if node.EPS_FIRST or not node.CAMERA_AWARE or node.EPS >= 0.6 else
            "a larger eps in the first epochs (CAUREID.CLUSTER.EPS_FIRST 0.6, EPS_FIRST_EPOCHS 4)")


def _min_samples(cfg: CfgNode) -> str:
    least = cfg.CAUREID.CLUSTER.MIN_SAMPLES
    return f"CAUREID.CLUSTER.MIN_SAMPLES below {least}" if least > 2 else ""


def _extract(cfg: CfgNode) -> str:
    return ("" if cfg.CAUREID.LABELS == "extract" else
            "features extracted anew for every clustering (CAUREID.LABELS extract)")


def _lower_rate(cfg: CfgNode) -> str:
    return f"a learning rate below {cfg.SOLVER.BASE_LR:g} (SOLVER.BASE_LR)"


def _train_longer(cfg: CfgNode) -> str:
    return f"more than {cfg.SOLVER.MAX_EPOCH} epochs (SOLVER.MAX_EPOCH, with later SOLVER.STEPS)"


# name of a step -> what it asks for by the config of the run, "" if that is so already
STEPS: dict[str, Callable[[CfgNode], str]] = {
    "weights": _start_weights, "camera_aware": _camera_aware, "standardize": _standardize,
    "better_weights": _better_weights, "lower_eps": _lower_eps, "raise_eps": _raise_eps,
    "raise_first_eps": _raise_first_eps, "min_samples": _min_samples, "extract": _extract,
    "lower_rate": _lower_rate, "train_longer": _train_longer}


# ---------------------------------------------------------------------------------- judgement ----

SUMMARIES = {
    "unknown": "Whether training went well is not known: no indicator was logged.",
    "good": "By its indicators training went well.",
    "mixed": "By its indicators training went partly well.",
    "bad": "By its indicators training went wrong.",
}

Judgement = tuple[str, str, tuple[str, ...]]  # level, meaning, steps


NO_NUMBER: Judgement = ("bad", "the last value is not finite: the network gives no usable numbers",
                        ("lower_rate",))


def _grade(value: float, bad: float, mixed: float, steps: tuple[str, ...],
           meanings: Mapping[str, str]) -> Judgement:
    """Judgement of a figure that should be high: the limits are its levels'."""
    level = "bad" if value < bad else "mixed" if value < mixed else "good"
    return level, meanings[level], () if level == "good" else steps


def _silhouette(known: Indicators) -> Judgement:
    value, largest = known["silhouette"][-1], (known.get("largest_share") or [0.0])[-1]
    steps, meanings = ("better_weights",), {
        "bad": "clusters lie within each other, or hold few of the images",
        "mixed": "clusters lie close to each other, or leave many images out",
        "good": "clusters are tight, apart, and hold most images"}
    if largest > 0.2:
        steps = ("lower_eps",)
        meanings["bad"] = meanings["mixed"] = (
            f"the largest cluster holds {largest:.0%} of the images: several people or vehicles "
            "are taken for one")
    return _grade(value, 0.2, 0.3, steps, meanings)


def _outliers(known: Indicators) -> Judgement:
    shares = known["outlier_share"]
    share, lowest = shares[-1], min(shares[-LOOKED_BACK:])
    steps = ("raise_first_eps", "raise_eps", "min_samples", "train_longer")
    if share > lowest + 0.1:
        grown = f"outliers grow while training (from {lowest:.0%} of the images): clusters decay"
        return "bad", grown, ("extract", "lower_rate")
    if share > 0.6:
        return "bad", "most images are in no cluster and teach nothing", steps
    if share > 0.35:
        return "mixed", "many images are in no cluster and teach nothing", steps
    return "good", "most images are in a cluster", ()


def _stability(known: Indicators) -> Judgement:
    return _grade(known["stability"][-1], 0.35, 0.6, ("train_longer", "lower_rate"), {
        "bad": "from one clustering to the next most images change their cluster",
        "mixed": "clusters still change a good deal from one clustering to the next",
        "good": "clusters change little from one clustering to the next"})


_CAMERA_STEPS = ("camera_aware", "standardize", "better_weights")


def _cross_camera(known: Indicators) -> Judgement:
    return _grade(known["cross_camera"][-1], 0.3, 0.4, _CAMERA_STEPS, {
        "bad": "most clusters hold images of one camera only; right where hardly anybody passes "
               "two cameras",
        "mixed": "more than half of the clusters hold images of one camera only",
        "good": "many clusters hold images of several cameras"})


def _own_camera(known: Indicators) -> Judgement:
    shares = known["own_camera"][-LOOKED_BACK:]
    first, last = shares[0], shares[-1]
    moved = f"{last:.0%} of an image's nearest neighbours are of its own camera, first {first:.0%}"
    return _grade(first - last, -0.05, -0.02, _CAMERA_STEPS, {
        "bad": f"training made the network tell cameras apart: {moved}",
        "mixed": f"cameras show a little more than before: {moved}",
        "good": moved})


def _mean_precision(values: Sequence[float], start: Sequence[float] | None) -> Judgement:
    first, last = (start or values[-LOOKED_BACK:])[0], values[-1]
    peak, steps = max(values[-LOOKED_BACK:]), ("lower_rate", "better_weights")
    if last < first - 1.0:
        return "bad", f"training made retrieval worse: mAP {last:.1f}, before {first:.1f}", steps
    if last < max(first, 0.8 * peak):
        return "mixed", f"retrieval fell to mAP {last:.1f}, from {max(first, peak):.1f}", steps
    return _grade(last, 10.0, 25.0, ("better_weights", "train_longer"), {
        "bad": "hardly any right image is found in the labelled ones",
        "mixed": "many right images are not found in the labelled ones",
        "good": "most right images are found early in the labelled ones"})


# indicator -> what it says; besides mAP, of each test set
JUDGED: dict[str, Callable[[Indicators], Judgement]] = {
    "silhouette": _silhouette, "outlier_share": _outliers,
    "stability": _stability, "cross_camera": _cross_camera, "own_camera": _own_camera}
OF_CAMERAS = ("cross_camera", "own_camera")
LEAST_VALUES = {"own_camera": 2}  # that a judgement takes
