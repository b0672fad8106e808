"""InfoNCE against cluster centroids, recomputed by loops in double precision."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from caureid_plugin.losses import info_nce_loss

from helpers import plain


def plain_loss(features, labels, centroids, temperature):
    return np.mean([
        plain.cross_entropy([feature @ centroid / temperature for centroid in centroids.numpy()],
                            label)
        for feature, label in zip(features.double().numpy(), labels.tolist(), strict=True)
        if label != -1])


def make(batch, dim, clusters, seed, outliers=()):
    generator = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(batch, dim, generator=generator).double(), dim=1)
    centroids = 0.7 * F.normalize(torch.randn(clusters, dim, generator=generator).double(), dim=1)
    labels = torch.randint(clusters, (batch,), generator=generator)
    labels[list(outliers)] = -1
    return features, labels, centroids


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("batch, dim, clusters, outliers", [
    (8, 16, 5, ()),
    (6, 4, 40, (0, 3)),  # outliers do not count
    (3, 8, 1, ()),  # a single cluster
    (1, 8, 7, ()),
    (7, 8, 5, (0, 1, 2, 3, 4, 5)),  # one image is left
])
def test_by_loops(batch, dim, clusters, outliers, temperature):
    features, labels, centroids = make(batch, dim, clusters, 0, outliers)
    expected = plain_loss(features, labels, centroids, temperature)
    loss = info_nce_loss(features, labels, centroids, temperature=temperature)
    assert loss.shape == () and loss.item() == pytest.approx(expected, abs=1e-12)
    single = info_nce_loss(features.float(), labels, centroids.float(), temperature=temperature)
    assert single.item() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("batch, clusters", [(5, 3), (0, 3), (4, 0)])
def test_only_outliers_give_zero_with_a_graph(batch, clusters):
    features = torch.randn(batch, 8, requires_grad=True)
    labels = torch.full((batch,), -1)
    loss = info_nce_loss(features, labels, torch.randn(clusters, 8), temperature=0.05)
    assert loss.shape == () and loss.item() == 0.0
    loss.backward()
    assert torch.equal(features.grad, torch.zeros(batch, 8))


def test_a_small_temperature_stays_finite():
    features, labels, centroids = make(6, 8, 5, 3)
    features = features.float().requires_grad_()
    loss = info_nce_loss(features, labels, centroids.float(), temperature=1e-4)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(features.grad).all()
    expected = plain_loss(features.detach(), labels, centroids, 1e-4)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("outliers", [(), (0, 2)])
def test_gradient(outliers):
    features, labels, centroids = make(5, 4, 3, 4, outliers)
    assert torch.autograd.gradcheck(
        lambda f: info_nce_loss(f, labels, centroids, temperature=0.3), features.requires_grad_())


@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_smoothing_gives_a_share_of_the_target_to_all_clusters(smoothing):
    features, labels, centroids = make(6, 8, 5, 5, outliers=(2,))
    shares = [np.mean([plain.cross_entropy([float(f @ c) / 0.5 for c in centroids], place)
                       for place in range(5)]) for f in features]
    kept = [share for share, label in zip(shares, labels.tolist(), strict=True) if label != -1]
    expected = ((1 - smoothing) * plain_loss(features, labels, centroids, 0.5)
                + smoothing * np.mean(kept))
    loss = info_nce_loss(features, labels, centroids, temperature=0.5, smoothing=smoothing)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
