"""TEST.STANDARDIZE_BY_CAMERA in the toolbox's evaluator."""

import types

import numpy as np
import pytest
import torch
from caureid_plugin import compat
from caureid_plugin.clustering import standardize_by_camera
from caureid_plugin.compat import repair
from fastreid.engine import defaults
from fastreid.evaluation import ReidEvaluator
from fastreid.utils import comm

QUERIES = 8


@pytest.fixture
def evaluator(cfg):
    """An evaluator that was given people whose cameras move their features."""
    compat.prepare_evaluation()
    rng = np.random.default_rng(0)
    pids, camids = np.arange(48) % 8, np.arange(48) // 8 % 3
    casts = 4.0 * rng.normal(size=(3, 16))
    features = torch.tensor(rng.normal(size=(8, 16))[pids] + casts[camids]
                            + 0.4 * rng.normal(size=(48, 16)), dtype=torch.float32)

    def make(on, cameras=camids):
        cfg.TEST.STANDARDIZE_BY_CAMERA = on
        made = ReidEvaluator(cfg, QUERIES)
        for rows in np.array_split(np.arange(48), 5):
            made.process({"targets": torch.from_numpy(pids[rows]),
                          "camids": torch.from_numpy(cameras[rows])}, features[rows])
        return made

    make.data = features, pids, camids
    return make


def mean_average_precision(features, pids, camids):
    """By loops, cosine; images of the query's person under its camera do not count."""
    unit = torch.nn.functional.normalize(features.double(), dim=1).numpy()
    precisions = []
    for query in range(QUERIES):
        others = [g for g in range(QUERIES, 48)
                  if (pids[g], camids[g]) != (pids[query], camids[query])]
        others.sort(key=lambda g: -unit[query] @ unit[g])
        hits = [place for place, g in enumerate(others, 1) if pids[g] == pids[query]]
        precisions.append(np.mean([n / place for n, place in enumerate(hits, 1)]))
    return 100 * np.mean(precisions)


def test_features_are_ranked_standardised_by_camera(evaluator):
    features, pids, camids = evaluator.data
    plain = evaluator(False).evaluate()["mAP"]
    made = evaluator(True)
    found = made.evaluate()["mAP"]
    assert plain == pytest.approx(mean_average_precision(features, pids, camids), abs=1e-3)
    standard = standardize_by_camera(features, camids)
    assert found == pytest.approx(mean_average_precision(standard, pids, camids), abs=1e-3)
    assert found > plain + 5
    assert made.evaluate()["mAP"] == found  # what was collected stays as it was


def test_without_the_repair_the_evaluator_ranks_what_the_network_gave(evaluator):
    plain, found = (evaluator(on).evaluate()["mAP"] for on in (False, True))
    with compat.without("ranked_features"):
        assert evaluator(True).evaluate()["mAP"] == plain
    with compat.without("small_gallery"):
        assert evaluator(True).evaluate()["mAP"] == found
    assert evaluator(True).evaluate()["mAP"] == found


def test_a_camera_of_one_image_is_an_error_with_the_key(evaluator):
    cameras = evaluator.data[2].copy()
    cameras[20] = 9
    with pytest.raises(ValueError, match=r"camera 9.*TEST\.STANDARDIZE_BY_CAMERA False"):
        evaluator(True, cameras).evaluate()


def test_each_process_gets_its_rows_of_what_all_have_changed(evaluator, monkeypatch):
    """Two processes, one after the other: statistics of all images, its own rows."""
    features, _, camids = evaluator.data
    whole = evaluator(True)
    batches = whole._predictions
    shares = [[(p["feats"], p["camids"]) for p in part] for part in (batches[:2], batches[2:])]
    seen = []
    monkeypatch.setattr(comm, "all_gather", lambda own: shares)
    watched = types.SimpleNamespace(evaluate=lambda self: seen.append(self._predictions))
    patches = repair.Patches()
    monkeypatch.setattr(defaults, "ReidEvaluator", watched)
    compat.REPAIRS["ranked_features"]._change(patches)
    for rank, part in enumerate((batches[:2], batches[2:])):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        whole._predictions = part
        watched.evaluate(whole)
    ranked = torch.cat([p["feats"] for share in seen for p in share])
    assert torch.equal(ranked, standardize_by_camera(features, camids))
