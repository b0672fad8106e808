"""CACC (eqs. 6 and 7) against loops in double precision."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from caureid_plugin.losses import batch_camera_centres, cacc_loss

from helpers import plain


def plain_loss(anchors, anchor_labels, centres, centre_labels, num_negatives, temperature):
    """Eq. 7 as it stands: one term for each anchor and positive."""
    losses = []
    for anchor, label in zip(anchors.numpy(), anchor_labels.tolist(), strict=True):
        scores = [anchor @ centre / temperature for centre in centres.numpy()]
        own = [other == label for other in centre_labels.tolist()]
        positives = [score for score, same in zip(scores, own, strict=True) if same]
        negatives = [score for score, same in zip(scores, own, strict=True) if not same]
        if label != -1 and positives:
            compared = positives + sorted(negatives, reverse=True)[:num_negatives]
            losses.append(np.mean([plain.cross_entropy(compared, place)
                                   for place in range(len(positives))]))
    return np.mean(losses)


def as_tensor(centres):
    return torch.from_numpy(np.array(list(centres.values())))


def make(batch, dim, clusters, cameras, seed, *, images=60, outliers=(), strangers=()):
    """A batch and the camera centres (with clusters) of a bank; it has no centre of strangers."""
    generator = torch.Generator().manual_seed(seed)
    bank = F.normalize(torch.randn(images, dim, generator=generator).double(), dim=1)
    bank_labels = torch.arange(images) % clusters
    bank_camids = torch.randint(cameras, (images,), generator=generator)
    centres = plain.camera_centres(bank, bank_labels, bank_camids, normalize=True)
    features = F.normalize(torch.randn(batch, dim, generator=generator).double(), dim=1)
    labels = torch.randint(clusters, (batch,), generator=generator)
    labels[list(outliers)], labels[list(strangers)] = -1, 77
    camids = torch.randint(cameras, (batch,), generator=generator)
    return (features, labels, camids, as_tensor(centres),
            torch.tensor([label for label, _ in centres]))


SHAPES = [
    dict(batch=8, dim=6, clusters=4, cameras=3),
    dict(batch=16, dim=12, clusters=7, cameras=6, outliers=(0, 5), strangers=(15,)),
    dict(batch=6, dim=5, clusters=4, cameras=1),  # a single camera
    dict(batch=6, dim=5, clusters=1, cameras=4),  # no negative at all
    dict(batch=1, dim=5, clusters=3, cameras=2),
    dict(batch=5, dim=4, clusters=30, cameras=5, images=30),  # one image per cluster
    dict(batch=7, dim=8, clusters=3, cameras=3, outliers=(0, 1, 2, 3, 4, 5)),
]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_centres_by_loops(shape, normalize):
    features, labels, camids, _, _ = make(**shape, seed=0)
    expected = plain.camera_centres(features, labels, camids, normalize=normalize)
    centres, clusters = batch_camera_centres(features, labels, camids, normalize=normalize)
    assert clusters.tolist() == [label for label, _ in expected]
    torch.testing.assert_close(centres, as_tensor(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch", [4, 0])
def test_no_batch_centre_of_outliers(batch):
    features = torch.randn(batch, 3, requires_grad=True)
    centres, clusters = batch_camera_centres(
        features, torch.full((batch,), -1), torch.zeros(batch).long())
    assert centres.shape == (0, 3) and clusters.shape == (0,)
    loss = cacc_loss(centres, clusters, torch.randn(5, 3), torch.arange(5), num_negatives=3,
                     temperature=0.1)
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(features.grad, torch.zeros(batch, 3))


@pytest.mark.parametrize("num_negatives", [0, 1, 3, 50])
@pytest.mark.parametrize("anchor", ["centre", "sample"])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_by_loops(shape, anchor, num_negatives):
    for seed, temperature in [(0, 0.07), (1, 0.5)]:
        anchors, labels, camids, centres, clusters = make(**shape, seed=seed)
        if seed:  # centres of the bank that were not normalised
            centres = centres * torch.linspace(0.2, 1, len(centres))[:, None].double()
        if anchor == "centre":
            anchors, labels = batch_camera_centres(anchors, labels, camids)
        options = dict(num_negatives=num_negatives, temperature=temperature)
        expected = plain_loss(anchors, labels, centres, clusters, **options)
        loss = cacc_loss(anchors, labels, centres, clusters, **options)
        assert loss.shape == () and loss.item() == pytest.approx(expected, abs=1e-11)
        single = cacc_loss(anchors.float(), labels, centres.float(), clusters, **options)
        assert single.item() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("labels, clusters", [([0, 1, 2, 0], 0), ([-1] * 4, 3)])
def test_nothing_to_learn_from_gives_zero_with_a_graph(labels, clusters):
    anchors = torch.randn(4, 5, requires_grad=True)
    loss = cacc_loss(anchors, torch.tensor(labels), torch.randn(clusters, 5),
                     torch.arange(clusters), num_negatives=50, temperature=0.07)
    assert loss.shape == () and loss.item() == 0.0
    loss.backward()
    assert torch.equal(anchors.grad, torch.zeros(4, 5))


@pytest.mark.parametrize("value", [0.0, 0.5])
@pytest.mark.parametrize("cameras", [1, 2])
def test_features_that_are_all_the_same(value, cameras):
    """Of a network that does not look at its images."""
    features = torch.full((8, 4), value, requires_grad=True)
    labels, camids = torch.arange(8) // 4, torch.arange(8) % cameras
    centres, clusters = batch_camera_centres(features, labels, camids)
    loss = cacc_loss(centres, clusters, centres.detach(), clusters, num_negatives=50,
                     temperature=0.07)
    assert loss.item() == pytest.approx(math.log(len(clusters)))
    loss.backward()
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_a_small_temperature_are_finite(shape):
    features, labels, camids, centres, clusters = make(**shape, seed=8)
    features = features.float().requires_grad_()
    anchors, anchor_labels = batch_camera_centres(features, labels, camids)
    loss = cacc_loss(anchors, anchor_labels, centres.float(), clusters, num_negatives=50,
                     temperature=1e-3)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(features.grad).all()


@pytest.mark.parametrize("num_negatives", [2, 50])
@pytest.mark.parametrize("anchor", ["centre", "normalised centre", "sample"])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3], dict(SHAPES[0], outliers=(2, 3))])
def test_gradient(shape, anchor, num_negatives):
    features, labels, camids, centres, clusters = make(**shape, seed=9)

    def loss(f):
        anchors, anchor_labels = f, labels
        if anchor != "sample":
            anchors, anchor_labels = batch_camera_centres(
                f, labels, camids, normalize=anchor.startswith("normalised"))
        return cacc_loss(anchors, anchor_labels, centres, clusters, temperature=0.3,
                         num_negatives=num_negatives)

    assert torch.autograd.gradcheck(loss, features.requires_grad_())
