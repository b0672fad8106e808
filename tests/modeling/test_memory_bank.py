"""MemoryBank against loops: eq. 1, eq. 6 and the running sums behind them."""

import copy

import numpy as np
import pytest
import torch
from caureid_plugin.modeling import MemoryBank, build_memory_bank
from caureid_plugin.modeling.memory_bank import CENTRES, NotFiniteError

from helpers import plain


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def plain_update(features, batch, indexes, momentum):
    """Eq. 1 for one image after the other."""
    features = features.copy()
    for feature, index in zip(batch, indexes, strict=True):
        features[index] = unit(momentum * features[index] + (1 - momentum) * feature)
    return features


def assert_sums_are_right(bank, atol):
    """Means of each cluster and of each (cluster, camera), anew from the rows."""
    clusters = plain.camera_centres(bank.features, bank.labels, torch.zeros_like(bank.camids))
    assert bank.num_clusters == len(clusters)
    np.testing.assert_allclose(bank.centroids, list(clusters.values()), rtol=0, atol=atol)
    for normalize, tolerance in ((False, atol), (True, 10 * atol)):
        expected = plain.camera_centres(bank.features, bank.labels, bank.camids,
                                        normalize=normalize)
        centres, labels = bank.camera_centres(normalize=normalize)
        assert labels.tolist() == [label for label, _ in expected]
        np.testing.assert_allclose(centres, list(expected.values()), rtol=0, atol=tolerance)
    pairs = zip(bank.centre_labels.tolist(), bank.centre_camids.tolist(), strict=True)
    assert list(pairs) == list(expected)


def plain_centres(bank, batch, indexes, momentum, hard):
    """{(cluster, camera): vector}, moved from the normalised means; camera None: of the cluster."""
    labels, camids = bank.labels.tolist(), bank.camids.tolist()
    rows = bank.features.double().numpy()
    groups = {}
    for row, (label, camera) in enumerate(zip(labels, camids, strict=True)):
        if label != -1:
            for pair in ((label, None), (label, camera)):
                groups.setdefault(pair, []).append(row)
    centres = {pair: unit(np.mean(rows[members], axis=0)) for pair, members in groups.items()}
    for pair, members in groups.items():
        given = [feature for feature, index in zip(batch, indexes, strict=True)
                 if index in members]
        if hard and given:
            given = [min(given, key=lambda feature: feature @ centres[pair])]
        for feature in given:
            centres[pair] = unit(momentum * centres[pair] + (1 - momentum) * feature)
    return centres


def random_step(bank, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, bank.features.shape[1], generator=generator)
    indexes = torch.randint(len(bank), (batch,), generator=generator)
    return torch.nn.functional.normalize(features, dim=1), indexes


@pytest.mark.parametrize("momentum", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("batch", [8, 100])  # 100 in a bank of 60: every batch has duplicates
def test_updates_by_loops(make_bank, momentum, batch):
    bank = make_bank(momentum=momentum)
    expected = bank.features.double().numpy()
    for step in range(5):
        features, indexes = random_step(bank, batch, step)
        expected = plain_update(expected, features.double().numpy(), indexes.tolist(), momentum)
        bank.update(features.requires_grad_(), indexes)  # the bank keeps no graph
        np.testing.assert_allclose(bank.features, expected, rtol=0, atol=1e-6)


def test_centroids_after_hundreds_of_updates(make_bank):
    bank = make_bank(n=200, clusters=9, outliers=20)
    labels = bank.labels.clone()
    labels[:100][labels[:100] >= 0] = 0  # one cluster far larger than the others
    bank.relabel(labels)
    before = bank.centroids
    for step in range(400):
        bank.update(*random_step(bank, 64, step))
        if step % 100 == 50:
            assert_sums_are_right(bank, 1e-5)
    assert_sums_are_right(bank, 1e-5)
    assert (bank.centroids - before).abs().amax(dim=1).min() > 1e-2, "they must have moved"
    bank.relabel(labels)
    fresh = MemoryBank(bank.camids, 16, momentum=0.2)
    fresh.features = bank.features
    fresh.relabel(labels)
    assert torch.equal(bank.centroids, fresh.centroids), "relabelling leaves no drift behind"
    assert torch.equal(bank.camera_centres()[0], fresh.camera_centres()[0])


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("batch", [8, 100])  # 100 in a bank of 60: every batch has duplicates
@pytest.mark.parametrize("rule", ["momentum", "hard"])
def test_centres_that_are_vectors_of_their_own_by_loops(make_bank, rule, batch, momentum):
    bank = make_bank(momentum=momentum, centres=rule)
    expected_rows = bank.features.double().numpy()
    for step in range(2):
        bank.relabel(bank.labels)  # begins at the normalised means again
        features, indexes = random_step(bank, batch, step)
        plain_batch = features.double().numpy(), indexes.tolist()
        expected = plain_centres(bank, *plain_batch, momentum, rule == "hard")
        expected_rows = plain_update(expected_rows, *plain_batch, momentum)
        before = bank.centroids
        bank.update(features.requires_grad_(), indexes)  # the bank keeps no graph
        assert not torch.equal(bank.centroids, before)
        np.testing.assert_allclose(
            bank.centroids, [expected[label, None] for label in range(bank.num_clusters)],
            rtol=0, atol=1e-6)
        pairs = list(zip(bank.centre_labels.tolist(), bank.centre_camids.tolist(), strict=True))
        assert pairs == sorted(pair for pair in expected if pair[1] is not None)
        for normalize in (True, False):
            centres, labels = bank.camera_centres(normalize=normalize)
            assert torch.equal(labels, bank.centre_labels)
            np.testing.assert_allclose(centres, [expected[pair] for pair in pairs],
                                       rtol=0, atol=1e-6)
        np.testing.assert_allclose(bank.features, expected_rows, rtol=0, atol=1e-6)


def test_of_images_that_are_equally_hard_the_first_moves_the_centre():
    bank = MemoryBank(torch.tensor([0, 0, 1]), 2, momentum=0.5, centres="hard")
    bank.reset(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    bank.relabel(torch.tensor([0, 0, -1]))  # the third is an outlier and moves nothing
    bank.update(torch.tensor([[0.6, 0.8], [0.6, -0.8], [0.0, -1.0]]), torch.tensor([1, 0, 2]))
    np.testing.assert_allclose(bank.centroids, [unit(np.array([0.8, 0.4]))], rtol=0, atol=1e-6)


def test_fixed_centres_wait_for_the_next_clustering(make_bank):
    bank, moving = make_bank(centres="fixed"), make_bank()
    before = bank.centroids, bank.camera_centres()[0]
    for either in (bank, moving):
        either.update(*random_step(bank, 16, 0))
    assert torch.equal(bank.centroids, before[0])
    assert torch.equal(bank.camera_centres()[0], before[1])
    assert torch.equal(bank.features, moving.features)  # which move, for the next one
    bank.relabel(bank.labels)
    assert_sums_are_right(bank, 1e-6)
    assert not torch.equal(bank.centroids, before[0])


def test_relabel_changes_the_number_of_clusters(make_bank):
    bank = make_bank(n=20, clusters=4, outliers=0)
    features = bank.features.clone()
    for labels in (torch.arange(20) % 9, torch.arange(20) // 2 % 3 - 1, torch.zeros(20),
                   torch.arange(20), torch.full((20,), -1)):
        bank.relabel(labels)
        found = int(labels.max()) + 1
        assert bank.num_clusters == found and bank.centroids.shape == (found, 16)
        assert bank.labels.tolist() == labels.tolist()
        assert torch.equal(bank.features, features)
        if found:
            assert_sums_are_right(bank, 1e-6)
    assert bank.camera_centres()[0].shape == (0, 16)


def test_a_new_bank_is_empty():
    bank = MemoryBank(torch.tensor([0, 1, 0]), 8, momentum=0.2)
    assert len(bank) == 3 and bank.num_clusters == 0
    assert bank.labels.tolist() == [-1, -1, -1]
    assert bank.features.shape == (3, 8) and not bank.features.any()
    assert bank.centroids.shape == (0, 8)


def test_reset_normalises_and_keeps_labels(make_bank):
    bank = make_bank()
    labels = bank.labels.clone()
    new = 7 * torch.randn(60, 16, generator=torch.Generator().manual_seed(5)).double()
    bank.reset(new)
    assert bank.features.dtype == torch.float32
    np.testing.assert_allclose(bank.features, unit(new.numpy()), rtol=0, atol=1e-6)
    assert torch.equal(bank.labels, labels)
    assert_sums_are_right(bank, 1e-6)
    with pytest.raises(ValueError, match=r"\(60, 16\).*\(60, 8\)"):
        bank.reset(torch.randn(60, 8))


@pytest.mark.parametrize("indexes", [[0, 60], [-1, 3]])
def test_index_outside_the_bank(make_bank, indexes):
    bank = make_bank()
    before = bank.features.clone()
    with pytest.raises(IndexError, match=f"{min(indexes)}..{max(indexes)} .* bank of 60 images"):
        bank.update(torch.randn(2, 16), torch.tensor(indexes))
    bank.update(torch.zeros(0, 16), torch.zeros(0, dtype=torch.int64))  # an empty batch
    assert torch.equal(bank.features, before)


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_features_that_are_not_finite_are_refused(make_bank, value):
    bank, intact = make_bank(), make_bank()
    features, _ = random_step(bank, 5, 0)
    features[1, 3] = features[2, 0] = features[4, 0] = value
    with pytest.raises(NotFiniteError, match="features of 2 of 4 images") as error:
        bank.update(features, torch.tensor([8, 59, 7, 12, 59]))  # an image that comes twice
    assert error.value.rows == [7, 59]
    every = torch.randn(60, 16)
    every[[50, 9], 1] = value
    with pytest.raises(NotFiniteError, match="features of 2 of 60 images") as error:
        bank.reset(every)
    assert error.value.rows == [9, 50]
    state = copy.deepcopy(bank.state_dict())
    state["features"][3, 2] = value
    with pytest.raises(NotFiniteError, match="features of 1 of 60 images"):
        bank.load_state_dict(state)
    for name, tensor in bank.state_dict().items():  # it is as it was
        assert torch.equal(tensor, intact.state_dict()[name])


def test_features_of_zero_stay_zero(make_bank):
    bank = make_bank()
    features = torch.randn(60, 16)
    features[5], features[6] = 0.0, 1e-30
    bank.reset(features)
    assert torch.isfinite(bank.features).all() and not bank.features[5].any()
    bank.update(torch.zeros(2, 16), torch.tensor([5, 7]))
    assert not bank.features[5].any() and bank.features[7].norm() == pytest.approx(1.0)
    assert torch.isfinite(bank.centroids).all() and torch.isfinite(bank.camera_centres()[0]).all()


@pytest.mark.parametrize("momentum", [1.0, -0.1, float("nan")])
def test_momentum_outside_its_range(momentum):
    with pytest.raises(ValueError, match=f"CAUREID.MEMORY.MOMENTUM {momentum}"):
        MemoryBank(torch.zeros(3), 4, momentum=momentum)


@pytest.mark.parametrize("rule", CENTRES)
def test_state_dict_round_trip_goes_on_bit_for_bit(make_bank, rule):
    bank = make_bank(centres=rule)
    for step in range(50):
        bank.update(*random_step(bank, 16, step))
    resumed = MemoryBank(bank.camids, 16, momentum=0.2, centres=rule)
    resumed.load_state_dict(bank.state_dict())
    after = []
    for either in (resumed, bank):  # one after the other: they share no memory
        for step in range(50, 55):
            either.update(*random_step(bank, 16, step))
        if rule == "mean":
            assert_sums_are_right(either, 1e-5)
        after.append(copy.deepcopy(either.state_dict()))
    torch.testing.assert_close(*after, rtol=0, atol=0)
    assert resumed.num_clusters == bank.num_clusters


@pytest.mark.parametrize("saved, rule", [("mean", "hard"), ("momentum", "fixed")])
def test_centres_of_another_kind_are_not_loaded(make_bank, saved, rule):
    bank, kind = make_bank(centres=rule), {"mean": "means", "momentum": "vectors of their own"}
    with pytest.raises(ValueError, match=f"bank are {kind[saved]}.*CAUREID.MEMORY.CENTRES is "
                       f"{rule}: resume with the same"):
        bank.load_state_dict(make_bank(centres=saved, clusters=3).state_dict())
    assert bank.num_clusters == 7  # it is as it was


def test_the_config_says_how_the_centres_move(make_cfg):
    cfg = make_cfg("CAUREID.MEMORY.CENTRES", "hard", "CAUREID.MEMORY.MOMENTUM", 0.5,
                   "MODEL.HEADS.EMBEDDING_DIM", 4)
    bank = build_memory_bank(cfg, torch.tensor([0, 1]), "cpu")
    assert bank.features.shape == (2, 4) and bank.momentum == 0.5
    assert "cluster_vectors" in bank.state_dict()
    cfg.CAUREID.MEMORY.CENTRES = "means"
    with pytest.raises(ValueError, match="CAUREID.MEMORY.CENTRES 'means' .*'mean', 'momentum', "
                       "'hard', 'fixed'"):
        build_memory_bank(cfg, torch.tensor([0, 1]), "cpu")


def test_the_threshold_is_restored_exactly_and_may_be_missing(make_bank):
    bank, state = make_bank(), make_bank().state_dict()
    assert bank.threshold is None and "threshold" not in state
    bank.threshold = 2 / 3
    resumed = make_bank()
    resumed.load_state_dict(bank.state_dict())
    assert resumed.threshold == 2 / 3 and type(resumed.threshold) is float
    resumed.load_state_dict(state)  # of before there were thresholds
    assert resumed.threshold is None


@pytest.mark.parametrize("make_other", [
    lambda camids: MemoryBank(camids, 8, momentum=0.2),  # another dimension
    lambda camids: MemoryBank(camids[:-1], 16, momentum=0.2),  # fewer images
    lambda camids: MemoryBank((camids + 1) % 4, 16, momentum=0.2),  # other cameras
])
def test_a_bank_of_other_images_is_not_loaded(make_bank, make_other):
    bank = make_bank()
    other = make_other(bank.camids)
    with pytest.raises(ValueError, match="DATASETS.NAMES"):
        other.load_state_dict(bank.state_dict())
    assert not other.features.any() and other.num_clusters == 0


@pytest.mark.parametrize("rule, field", [
    ("mean", "cluster_sums"), ("mean", "centre_sums"), ("hard", "centre_vectors")])
@pytest.mark.parametrize("change", [
    lambda sums: sums[:-1], lambda sums: sums[:, :1], lambda sums: sums[0],
    lambda sums: sums.sum(), lambda sums: sums[:, :, None], lambda sums: sums * float("nan")])
def test_sums_of_other_clusters_are_not_loaded(make_bank, rule, field, change):
    """One row would be added to all, where it is broadcast."""
    state = make_bank(centres=rule).state_dict()
    state[field] = change(state[field])
    with pytest.raises(ValueError, match=f"memory bank is damaged: {field} has shape .* ask for "
                       r"finite ones of \(\d+, 16\).*Resume from another"):
        make_bank(centres=rule).load_state_dict(state)


@pytest.mark.parametrize("labels", [[0, 0, 2], [1, 1, 1]])
def test_labels_with_a_gap_are_refused(labels):
    bank = MemoryBank(torch.zeros(3), 4, momentum=0.2)
    with pytest.raises(ValueError, match="0..K-1"):
        bank.relabel(torch.tensor(labels))
