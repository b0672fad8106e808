"""MemoryBank against loops: eq. 1, eq. 6 and the running sums behind them."""

import io

import numpy as np
import pytest
import torch
from caureid_plugin.modeling import MemoryBank
from caureid_plugin.modeling.memory_bank import NotFiniteError


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def plain_update(features, batch, indexes, momentum):
    """Eq. 1 for one image after the other."""
    features = features.copy()
    for feature, index in zip(batch, indexes, strict=True):
        features[index] = unit(momentum * features[index] + (1 - momentum) * feature)
    return features


def plain_centroids(bank):
    """Mean feature of each cluster and of each (cluster, camera), anew from the rows."""
    clusters, centres = {}, {}
    rows = bank.features.double().numpy()
    for feature, label, camera in zip(rows, bank.labels.tolist(), bank.camids.tolist(),
                                      strict=True):
        if label != -1:
            clusters.setdefault(label, []).append(feature)
            centres.setdefault((label, camera), []).append(feature)
    clusters = [np.mean(clusters[label], axis=0) for label in sorted(clusters)]
    pairs = sorted(centres)
    return clusters, [np.mean(centres[pair], axis=0) for pair in pairs], pairs


def assert_sums_are_right(bank, atol):
    clusters, means, pairs = plain_centroids(bank)
    assert bank.num_clusters == len(clusters)
    np.testing.assert_allclose(bank.centroids, clusters, rtol=0, atol=atol)
    plain, labels = bank.camera_centres(normalize=False)
    assert labels.tolist() == [label for label, _ in pairs]
    np.testing.assert_allclose(plain, means, rtol=0, atol=atol)
    normalised, labels = bank.camera_centres()
    assert labels.tolist() == [label for label, _ in pairs]
    np.testing.assert_allclose(normalised, unit(np.array(means)), rtol=0, atol=10 * atol)
    assert list(zip(bank.centre_labels.tolist(), bank.centre_camids.tolist(), strict=True)) == pairs


def random_bank(n=60, dim=16, clusters=7, cameras=4, *, seed=0, momentum=0.2, outliers=5):
    generator = torch.Generator().manual_seed(seed)
    bank = MemoryBank(torch.randint(cameras, (n,), generator=generator), dim, momentum=momentum)
    bank.reset(torch.randn(n, dim, generator=generator))
    labels = torch.arange(n) % clusters
    labels[torch.randperm(n, generator=generator)[:outliers]] = -1
    bank.relabel(labels)
    return bank


def random_step(bank, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, bank.features.shape[1], generator=generator)
    indexes = torch.randint(len(bank), (batch,), generator=generator)
    return torch.nn.functional.normalize(features, dim=1), indexes


@pytest.mark.parametrize("momentum, expected", [
    (0.0, (0.0, 1.0)), (0.2, (0.242536, 0.970143)), (0.9, (0.993884, 0.110432))])
def test_momentum_weighs_the_old_value(momentum, expected):
    bank = MemoryBank(torch.tensor([0, 0]), 2, momentum=momentum)
    bank.reset(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
    bank.update(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    assert bank.features[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert bank.features[1].tolist() == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("momentum", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("batch", [8, 100])  # 100 in a bank of 60: every batch has duplicates
def test_updates_by_loops(momentum, batch):
    bank = random_bank(momentum=momentum)
    expected = bank.features.double().numpy()
    for step in range(5):
        features, indexes = random_step(bank, batch, step)
        expected = plain_update(expected, features.double().numpy(), indexes.tolist(), momentum)
        bank.update(features, indexes)
        np.testing.assert_allclose(bank.features, expected, rtol=0, atol=1e-6)


def test_an_outlier_moves_its_row_but_no_centre():
    bank = random_bank()
    outlier = int((bank.labels == -1).nonzero()[0])
    centroids, centres = bank.centroids.clone(), bank.camera_centres(normalize=False)[0].clone()
    before = bank.features.clone()
    features, _ = random_step(bank, 1, 3)
    bank.update(features, torch.tensor([outlier]))
    assert torch.equal(bank.centroids, centroids)
    assert torch.equal(bank.camera_centres(normalize=False)[0], centres)
    expected = plain_update(before.double().numpy(), features.double().numpy(), [outlier], 0.2)
    np.testing.assert_allclose(bank.features, expected, rtol=0, atol=1e-6)
    assert (bank.features[outlier] - before[outlier]).abs().max() > 0.05


def test_centroids_after_hundreds_of_updates():
    bank = random_bank(n=200, clusters=9, outliers=20)
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


def test_relabel_changes_the_number_of_clusters():
    bank = random_bank(n=20, clusters=4, outliers=0)
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


def test_reset_normalises_and_keeps_labels():
    bank = random_bank()
    labels = bank.labels.clone()
    new = 7 * torch.randn(60, 16, generator=torch.Generator().manual_seed(5)).double()
    bank.reset(new)
    assert bank.features.dtype == torch.float32
    np.testing.assert_allclose(bank.features, unit(new.numpy()), rtol=0, atol=1e-6)
    assert torch.equal(bank.labels, labels)
    assert_sums_are_right(bank, 1e-6)
    with pytest.raises(ValueError, match=r"\(60, 16\).*\(60, 8\)"):
        bank.reset(torch.randn(60, 8))


def test_updates_keep_no_graph():
    bank = random_bank()
    features, indexes = random_step(bank, 4, 0)
    features.requires_grad_()
    bank.update(features, indexes)
    for tensor in (bank.features, bank.centroids, bank.camera_centres()[0]):
        assert not tensor.requires_grad


@pytest.mark.parametrize("indexes", [[0, 60], [-1, 3]])
def test_index_outside_the_bank(indexes):
    bank = random_bank()
    before = bank.features.clone()
    with pytest.raises(IndexError, match=f"{min(indexes)}..{max(indexes)} .* bank of 60 images"):
        bank.update(torch.randn(2, 16), torch.tensor(indexes))
    assert torch.equal(bank.features, before)


def test_the_last_row_and_an_empty_batch():
    bank = random_bank()
    before = bank.features.clone()
    bank.update(torch.zeros(0, 16), torch.zeros(0, dtype=torch.int64))
    assert torch.equal(bank.features, before)
    bank.update(random_step(bank, 1, 0)[0], torch.tensor([59]))
    assert (bank.features != before).any(dim=1).nonzero().tolist() == [[59]]


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_features_that_are_not_finite_are_refused(value):
    bank, intact = random_bank(), random_bank()
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
    state = saved(bank)
    state["features"][3, 2] = value
    with pytest.raises(NotFiniteError, match="features of 1 of 60 images"):
        bank.load_state_dict(state)
    for name, tensor in bank.state_dict().items():  # it is as it was
        assert torch.equal(tensor, intact.state_dict()[name])


def test_features_of_zero_stay_zero():
    bank = random_bank()
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


def saved(bank):
    """The state dict as it comes back from a checkpoint file."""
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_state_dict_round_trip_goes_on_bit_for_bit():
    bank = random_bank()
    for step in range(50):
        bank.update(*random_step(bank, 16, step))
    resumed = MemoryBank(bank.camids, 16, momentum=0.2)
    resumed.load_state_dict(saved(bank))
    assert resumed.num_clusters == bank.num_clusters
    for step in range(50, 55):
        for ours, theirs in ((bank.features, resumed.features), (bank.labels, resumed.labels),
                             (bank.centroids, resumed.centroids),
                             (bank.camera_centres()[0], resumed.camera_centres()[0]),
                             (bank.camera_centres()[1], resumed.camera_centres()[1])):
            assert torch.equal(ours, theirs)
        bank.update(*random_step(bank, 16, step))
        resumed.update(*random_step(bank, 16, step))
    assert_sums_are_right(resumed, 1e-5)


@pytest.mark.parametrize("make_other", [
    lambda camids: MemoryBank(camids, 8, momentum=0.2),  # another dimension
    lambda camids: MemoryBank(camids[:-1], 16, momentum=0.2),  # fewer images
    lambda camids: MemoryBank((camids + 1) % 4, 16, momentum=0.2),  # other cameras
])
def test_a_bank_of_other_images_is_not_loaded(make_other):
    bank = random_bank()
    other = make_other(bank.camids)
    with pytest.raises(ValueError, match="DATASETS.NAMES"):
        other.load_state_dict(saved(bank))
    assert not other.features.any() and other.num_clusters == 0


@pytest.mark.parametrize("labels", [[0, 0, 2], [1, 1, 1]])
def test_labels_with_a_gap_are_refused(labels):
    bank = MemoryBank(torch.zeros(3), 4, momentum=0.2)
    with pytest.raises(ValueError, match="0..K-1"):
        bank.relabel(torch.tensor(labels))


def test_a_loaded_bank_shares_no_memory_with_its_source():
    bank = random_bank()
    other = MemoryBank(bank.camids, 16, momentum=0.2)
    other.load_state_dict(bank.state_dict())
    before = bank.features.clone()
    other.update(*random_step(bank, 16, 0))
    assert torch.equal(bank.features, before)
