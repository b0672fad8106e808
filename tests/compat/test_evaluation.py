"""ReidEvaluator on the CPU: every TEST option against plain loops, compiled and in Python."""

import math
import subprocess
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from caureid_plugin import compat
from caureid_plugin.common.errors import UserError
from caureid_plugin.compat import evaluation
from fastreid.engine import DefaultTrainer
from fastreid.evaluation import ReidEvaluator, inference_on_dataset, rank_cylib, reid_evaluation
from fastreid.modeling import meta_arch
from fastreid.utils import compute_dist
from sklearn.metrics import average_precision_score, roc_curve
from torch import nn
from torch.utils.data import DataLoader

from helpers import plain, warm

CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="shows a defect without CUDA")
QUERIES = 12


@pytest.fixture(scope="module", autouse=True)
def evaluator_ready():
    """As a trainer does it: before the first evaluation."""
    compat.prepare_evaluation()


def test_labels_that_are_text(cfg):
    """As a dataset gives them that reads lists: numbers are numbers, names are an error."""
    evaluator = ReidEvaluator(cfg, 1)
    batch = {"targets": ["7", "-1"], "camids": ["0", "12"], "img_paths": ["q.jpg", "g.jpg"]}
    features = torch.ones(2, 3)
    evaluator.process(batch, features)
    evaluator.process({**batch, "camids": torch.tensor([3, 4])}, features)
    numbers = [{key: p[key].tolist() for key in ("pids", "camids")} for p in evaluator._predictions]
    assert numbers == [{"pids": [7, -1], "camids": [0, 12]}, {"pids": [7, -1], "camids": [3, 4]}]
    assert batch["camids"] == ["0", "12"]
    for key, wrong, what in (("camids", ["0", "north"], "g.jpg: its camera .* got 'north'.*TESTS"),
                             ("targets", [None, "1"], "q.jpg: its identity .* got None")):
        with pytest.raises(ValueError, match=what):
            evaluator.process({**batch, key: wrong}, features)
    with compat.without("text_labels"), pytest.raises(AttributeError, match="'list'.*'to'"):
        evaluator.process(batch, features)


# ----------------------------------------------------------------- plain recomputation ----


def people(seed=0, total=60, identities=6, cameras=3, dim=8):
    """Noisy features, identities and cameras; the first QUERIES rows are the queries."""
    rng = np.random.default_rng(seed)
    pids = np.arange(total) % identities
    camids = rng.integers(0, cameras, total)
    features = rng.normal(size=(identities, dim))[pids] + 1.2 * rng.normal(size=(total, dim))
    features *= rng.uniform(0.5, 2.0, size=(total, 1))  # cosine and Euclidean must differ
    return features.astype(np.float32), pids, camids


def cosine(a, b):
    return 1 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def squared_euclidean(a, b):
    return float(((a - b) ** 2).sum())


def distances(features, metric):
    return np.array([[metric(q, g) for g in features[QUERIES:].astype(np.float64)]
                     for q in features[:QUERIES].astype(np.float64)])


def counted(q, pids, camids):
    """Gallery rows that count for a query: not the same person under the same camera."""
    return [g for g in range(len(pids) - QUERIES) if (pids[QUERIES + g], camids[QUERIES + g])
            != (pids[q], camids[q])]


def plain_metrics(dist, pids, camids):
    precisions, penalties, firsts = [], [], []
    for q in range(QUERIES):
        kept = sorted(counted(q, pids, camids), key=lambda g: dist[q, g])
        hits = [pids[QUERIES + g] == pids[q] for g in kept]
        if not any(hits):
            continue
        precisions.append(average_precision_score(hits, [-dist[q, g] for g in kept]))
        last = max(rank for rank, hit in enumerate(hits) if hit)
        penalties.append(sum(hits) / (last + 1))
        firsts.append(hits.index(True))
    ranks = {f"Rank-{k}": 100 * np.mean([first < k for first in firsts]) for k in (1, 5, 10)}
    precision = 100 * np.mean(precisions)
    return {**ranks, "mAP": precision, "mINP": 100 * np.mean(penalties),
            "metric": (precision + ranks["Rank-1"]) / 2}


class Lookup(nn.Module):
    """The images are the features."""

    def forward(self, inputs):
        return inputs["images"]


def evaluate(cfg, data, model=None):
    rows = [{"images": image, "targets": int(pid), "camids": int(camera)}
            for image, pid, camera in zip(*data, strict=True)]
    return inference_on_dataset(
        model or Lookup(), DataLoader(rows, batch_size=7), ReidEvaluator(cfg, QUERIES),
        flip_test=cfg.TEST.FLIP.ENABLED)


def assert_metrics(results, expected):
    for name, value in expected.items():
        assert results[name] == pytest.approx(value, abs=1e-3), name


def test_metric_equals_plain_loops(cfg):
    data, precisions = people(), []
    for cfg.TEST.METRIC, metric in (("cosine", cosine), ("euclidean", squared_euclidean)):
        expected = plain_metrics(distances(data[0], metric), *data[1:])
        assert_metrics(evaluate(cfg, data), expected)
        assert 20 < expected["mAP"] < 90 and expected["Rank-1"] < 100
        precisions.append(expected["mAP"])
    assert precisions[0] != pytest.approx(precisions[1], abs=0.1)


def plain_aqe(features, times, k, alpha):
    """Every feature becomes the mean of its k nearest, weighted by similarity ** alpha."""
    for _ in range(times):
        similar = np.array([[1 - cosine(a, b) for b in features] for a in features])
        features = np.array([
            np.mean([similar[i, j] ** alpha * features[j]
                     for j in sorted(range(len(features)), key=lambda j: -similar[i, j])[:k]],
                    axis=0)
            for i in range(len(features))])
    return features


def test_query_expansion_equals_plain_loops(cfg):
    cfg.merge_from_list(["TEST.AQE.ENABLED", True, "TEST.AQE.QE_TIME", 2, "TEST.AQE.QE_K", 4,
                         "TEST.AQE.ALPHA", 3.0])
    features, pids, camids = people()
    expanded = plain_aqe(features.astype(np.float64), 2, 4, 3.0)
    expected = plain_metrics(distances(expanded, cosine), pids, camids)
    plain = plain_metrics(distances(features, cosine), pids, camids)
    assert_metrics(evaluate(cfg, (features, pids, camids)), expected)
    assert expected["mAP"] != pytest.approx(plain["mAP"], abs=0.1)


def test_reranking_equals_plain_loops(cfg):
    cfg.merge_from_list(["TEST.RERANK.ENABLED", True, "TEST.RERANK.K1", 8, "TEST.RERANK.K2", 3,
                         "TEST.RERANK.LAMBDA", 0.3])
    features, pids, camids = people()
    unit = features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    jaccard = plain.jaccard_from_ranks(unit, plain.nearest_lists(unit, 8)[0], 3)
    jaccard = jaccard[:QUERIES, QUERIES:]
    found = compute_dist.build_dist(
        *torch.from_numpy(unit.astype(np.float32)).split([QUERIES, len(unit) - QUERIES]),
        metric="jaccard", k1=8, k2=3)
    np.testing.assert_allclose(found, jaccard, atol=1e-5)
    expected = plain_metrics(0.7 * jaccard + 0.3 * distances(features, cosine), pids, camids)
    assert_metrics(evaluate(cfg, (features, pids, camids)), expected)


def test_roc_equals_plain_loops(cfg):
    cfg.TEST.ROC.ENABLED = True
    features, pids, camids = people()
    dist = distances(features, cosine)
    pairs = [(dist[q, g], pids[q] != pids[QUERIES + g])
             for q in range(QUERIES) for g in counted(q, pids, camids)]
    rates = roc_curve([different for _, different in pairs], [score for score, _ in pairs])[:2]
    results = evaluate(cfg, (features, pids, camids))
    for wanted in (1e-4, 1e-3, 1e-2):
        nearest = np.argmin(np.abs(rates[0] - wanted))
        assert results[f"TPR@FPR={wanted:.0e}"] == pytest.approx(rates[1][nearest], abs=1e-6)
    assert_metrics(results, plain_metrics(dist, pids, camids))


def test_all_options_together(cfg):
    cfg.merge_from_list(["TEST.AQE.ENABLED", True, "TEST.RERANK.ENABLED", True,
                         "TEST.ROC.ENABLED", True, "TEST.METRIC", "euclidean"])
    results = evaluate(cfg, people())
    assert all(math.isfinite(value) for value in results.values())
    assert {"Rank-1", "mAP", "mINP", "TPR@FPR=1e-04"} <= set(results)


# --------------------------------------------------------------------------- flipping ----


@pytest.fixture
def model_and_images(tiny_cfg):
    tiny_cfg.MODEL.HEADS.NUM_CLASSES = 8
    torch.manual_seed(0)
    model = meta_arch.build_model(tiny_cfg).eval()
    pids, camids = people()[1:]
    images = 255 * torch.rand(len(pids), 3, 32, 16)
    images += 20 * torch.from_numpy(pids).view(-1, 1, 1, 1)
    images[..., :5] *= 0.3  # the mirror image differs
    return model, images.to(model.device), pids, camids


@torch.no_grad()
def plain_features(model, images):
    mean = torch.tensor([0.485, 0.456, 0.406], device=images.device).view(3, 1, 1) * 255
    std = torch.tensor([0.229, 0.224, 0.225], device=images.device).view(3, 1, 1) * 255
    return torch.cat([model.heads(model.backbone(((image - mean) / std)[None]))
                      for image in images]).cpu().numpy()


@CPU_ONLY
def test_flip_averages_both_views(tiny_cfg, model_and_images, monkeypatch):
    tiny_cfg.TEST.FLIP.ENABLED = True
    model, images, pids, camids = model_and_images
    views = plain_features(model, images), plain_features(model, images.flip(dims=[3]))
    expected = (views[0] + views[1]) / 2
    seen, process = [], ReidEvaluator.process

    def watched(self, inputs, outputs):
        seen.append(outputs.cpu().numpy().copy())
        process(self, inputs, outputs)

    with monkeypatch.context() as patch:
        patch.setattr(ReidEvaluator, "process", watched)
        results = evaluate(tiny_cfg, (images, pids, camids), model)
    np.testing.assert_allclose(np.concatenate(seen), expected, rtol=1e-4, atol=1e-4)
    assert_metrics(results, plain_metrics(distances(expected, cosine), pids, camids))
    assert np.abs(views[0] - views[1]).max() > 0.1
    seen.clear()
    with compat.without("preprocess_in_place"), monkeypatch.context() as patch:
        patch.setattr(ReidEvaluator, "process", watched)  # a repair has taken its place
        evaluate(tiny_cfg, (images, pids, camids), model)
    assert np.abs(np.concatenate(seen) - expected).max() > 0.1


@pytest.mark.parametrize("wrap", [lambda images: {"images": images}, lambda images: images],
                         ids=["dict", "tensor"])
def test_the_callers_images_stay_as_they_were(model_and_images, wrap):
    model, images, _, _ = model_and_images
    original = images.clone()
    with torch.no_grad():
        features = model(wrap(images))
        assert torch.equal(images, original)
        np.testing.assert_allclose(
            features.cpu().numpy(), plain_features(model, original), rtol=1e-4, atol=1e-4)
        with compat.without("preprocess_in_place"):
            model(wrap(images))
    assert not torch.equal(images, original)


def test_the_callers_images_stay_as_they_were_in_mgn():
    model = types.SimpleNamespace(device="cpu", pixel_mean=torch.tensor(2.0),
                                  pixel_std=torch.tensor(4.0))
    images = torch.full((1, 3, 2, 2), 10.0)
    assert (meta_arch.MGN.preprocess_image(model, {"images": images}) == 2).all()
    assert (images == 10).all()
    with compat.without("preprocess_in_place"):
        meta_arch.MGN.preprocess_image(model, images)
    assert (images == 2).all()


# ------------------------------------------------------------------ compiled evaluation ----


def test_compiled_evaluation_equals_the_python_code():
    from fastreid.evaluation.rank import evaluate_py
    from fastreid.evaluation.rank_cylib.rank_cy import evaluate_cy
    from fastreid.evaluation.rank_cylib.roc_cy import evaluate_roc_cy
    from fastreid.evaluation.roc import evaluate_roc_py

    rng, sizes = np.random.default_rng(0), (15, 60)
    dist = rng.random(sizes).astype(np.float32)
    labels = [rng.integers(0, kinds, size) for kinds in (5, 3) for size in sizes]
    labels[0][0] = 9  # a query whose identity is not in the gallery does not count
    for in_c, in_python, options in ((evaluate_cy, evaluate_py, (20, False)),
                                     (evaluate_roc_cy, evaluate_roc_py, ())):
        for one, other in zip(in_c(dist, *labels, *options), in_python(dist, *labels, *options),
                              strict=True):
            np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=1e-6)


def test_the_compiled_modules_lie_in_the_cache():
    from fastreid.evaluation.rank_cylib import rank_cy

    assert Path(rank_cy.__file__).parent == evaluation._cython_cache()
    toolbox = Path(rank_cylib.__file__).parent
    assert not [p for p in toolbox.iterdir() if p.suffix in (".so", ".c", ".pyd")]


def test_the_evaluator_is_prepared_before_anything_else(make_trainer, monkeypatch):
    order = []
    monkeypatch.setattr(evaluation, "prepare_evaluation", lambda: order.append("evaluator"))
    build = DefaultTrainer.build_train_loader
    monkeypatch.setattr(DefaultTrainer, "build_train_loader", classmethod(
        lambda cls, cfg: order.append("data") or build(cfg)))
    make_trainer()
    assert order == ["evaluator", "data"]


def test_a_failing_compiler_is_tried_and_reported_once_and_never_ends_the_run(
        tmp_path, monkeypatch, messages):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(evaluation, "_CYTHON_BUILD", "raise SystemExit('no compiler here')")
    tries, run = [], subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: tries.append(1) or run(*a, **k))
    for module in (rank_cylib, reid_evaluation):  # every evaluation asks for it
        module.compile_helper()
    warning, = [m for m in messages if "compiled evaluation is not available" in m]
    assert "no compiler here" in warning and len(tries) == 1
    # the toolbox calls `make`; here one that fails, so that nothing is written beside it
    make = tmp_path / "make"
    make.write_text("#!/bin/sh\nexit 2\n")
    make.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with compat.without("evaluator_build"):
        for module in (rank_cylib, reid_evaluation):
            with pytest.raises(SystemExit):
                module.compile_helper()


_IMPORTED_EARLY = """
from fastreid.evaluation import rank, roc
before = rank.IS_CYTHON_AVAI, roc.IS_CYTHON_AVAI
from caureid_plugin import compat
compat.prepare_evaluation()
print(*before, rank.IS_CYTHON_AVAI, roc.IS_CYTHON_AVAI, rank.evaluate_cy, roc.evaluate_roc_cy)
"""


def test_who_imported_the_ranking_early_gets_the_compiled_one(tmp_path):
    done = warm.run(["-c", _IMPORTED_EARLY], tmp_path)
    assert done.stdout.startswith("False False True True <"), done.stdout + done.stderr


@pytest.mark.parametrize("compiled, total, fails", [
    (False, 200, False), (False, 30, True), (True, 30, False), (True, 20, True)])
def test_a_gallery_of_any_size_is_evaluated(cfg, monkeypatch, compiled, total, fails):
    """Fewer than 50 images, or fewer than the 10 of Rank-10, may count for a query."""
    from fastreid.evaluation import rank

    assert rank.IS_CYTHON_AVAI
    monkeypatch.setattr(rank, "IS_CYTHON_AVAI", compiled)
    data = people(total=total)
    assert_metrics(evaluate(cfg, data), plain_metrics(distances(data[0], cosine), *data[1:]))
    if fails:
        with compat.without("small_gallery"), pytest.raises((ValueError, IndexError)):
            evaluate(cfg, data)


@pytest.mark.parametrize("size", [0, 1, 4, 9])
@pytest.mark.parametrize("compiled", [True, False])
def test_a_small_gallery_is_ranked_without_an_evaluator_too(monkeypatch, compiled, size):
    """Queries that keep different numbers of images; a rank beyond the last image is the last."""
    from fastreid.evaluation import rank

    monkeypatch.setattr(rank, "IS_CYTHON_AVAI", compiled)
    rng = np.random.default_rng(size)
    dist = rng.random((5, size)).astype(np.float32)
    pids, camids = rng.integers(0, 2, (2, 5)), rng.integers(0, 3, (2, 5))
    near, far = (np.resize(values[1], size) for values in (pids, camids))
    given = (dist, pids[0], near, camids[0], far)
    kept = [[g for g in np.argsort(dist[q]) if (near[g], far[g]) != (pids[0][q], camids[0][q])]
            for q in range(5)]
    hits = [[near[g] == pids[0][q] for g in row] for q, row in enumerate(kept)]
    found = [row for row in hits if any(row)]
    if not found:
        with pytest.raises(UserError, match="None of the 5 query images has .* two sets"):
            rank.evaluate_rank(*given)
        return
    cmc, precisions, _ = rank.evaluate_rank(*given, 10)
    assert list(cmc) == pytest.approx(
        [np.mean([any(row[:k]) for row in found]) for k in range(1, 11)])
    expected = [np.mean([sum(row[:k + 1]) / (k + 1) for k, hit in enumerate(row) if hit])
                for row in found]
    assert list(precisions) == pytest.approx(expected, abs=1e-6)


def test_a_gallery_of_few_identities_is_ranked_by_cuhk03s_metric(monkeypatch):
    """One image for each identity counts: 20 images of two identities are two."""
    from fastreid.evaluation import rank

    monkeypatch.setattr(rank, "IS_CYTHON_AVAI", False)
    dist = np.arange(60, dtype=np.float32).reshape(3, 20)
    people = np.arange(20) % 2
    cmc, *_ = rank.evaluate_rank(dist, np.array([0, 1, 1]), people, np.array([7, 7, 8]),
                                 np.full(20, 9), 5, use_metric_cuhk03=True)
    assert len(cmc) == 5 and list(cmc[1:]) == [1.0] * 4


_WITHOUT_COMPILER = """
import logging, sys
import caureid_plugin, numpy as np, torch
from caureid_plugin import compat
from caureid_plugin.compat import evaluation
from fastreid.config import get_cfg
from fastreid.evaluation import ReidEvaluator, rank, roc

logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
compat.prepare_evaluation()
assert not (evaluation._evaluator_is_compiled() or rank.IS_CYTHON_AVAI or roc.IS_CYTHON_AVAI)
cfg = get_cfg()
cfg.TEST.ROC.ENABLED = True
evaluator = ReidEvaluator(cfg, 12)
features, pids, camids = (torch.from_numpy(a) for a in np.load(sys.argv[1]).values())
evaluator.process({"targets": pids, "camids": camids}, features)
results = evaluator.evaluate()
print("RESULTS", *(f"{results[k]:.6f}" for k in ("mAP", "Rank-1", "mINP")))
"""


def test_evaluation_without_a_compiler(tmp_path):
    features, pids, camids = people(total=200)
    np.savez(tmp_path / "data.npz", features, pids, camids)
    done = warm.run(["-c", _WITHOUT_COMPILER, tmp_path / "data.npz"], tmp_path,
                    env=warm.environment(CC="/bin/false", XDG_CACHE_HOME=tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert "WARNING FastReID's compiled evaluation is not available" in done.stdout
    found = [float(v) for v in done.stdout.split("RESULTS ")[1].split()]
    expected = plain_metrics(distances(features, cosine), pids, camids)
    assert found == pytest.approx([expected[k] for k in ("mAP", "Rank-1", "mINP")], abs=1e-3)
