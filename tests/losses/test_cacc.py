"""CACC (eqs. 6 and 7) against loops in double precision."""

import math

import pytest
import torch
import torch.nn.functional as F
from caureid_plugin.losses import batch_camera_centres, cacc_loss


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def plain_centres(features, labels, camids, normalize):
    """{(cluster, camera): mean feature}, in the order of the pairs."""
    members = {}
    for feature, label, camera in zip(features.tolist(), labels.tolist(), camids.tolist(),
                                      strict=True):
        if label != -1:
            members.setdefault((label, camera), []).append(feature)
    centres = {}
    for pair in sorted(members):
        mean = [math.fsum(column) / len(members[pair])
                for column in zip(*members[pair], strict=True)]
        length = math.sqrt(dot(mean, mean)) if normalize else 1.0
        centres[pair] = [x / length for x in mean]
    return centres


def plain_loss(anchors, anchor_labels, centres, centre_labels, num_negatives, temperature):
    """Eq. 7 as it stands: one term for each anchor and positive."""
    anchors, centres, centre_labels = anchors.tolist(), centres.tolist(), centre_labels.tolist()
    losses = []
    for anchor, label in zip(anchors, anchor_labels.tolist(), strict=True):
        scores = [dot(anchor, centre) / temperature for centre in centres]
        positives = [s for s, other in zip(scores, centre_labels, strict=True) if other == label]
        negatives = [s for s, other in zip(scores, centre_labels, strict=True) if other != label]
        if label == -1 or not positives:
            continue
        nearest = sorted(negatives, reverse=True)[:num_negatives]
        top = max(positives + nearest)
        total = math.fsum(math.exp(s - top) for s in positives + nearest)
        terms = [-math.log(math.exp(p - top) / total) for p in positives]
        losses.append(math.fsum(terms) / len(positives))
    return math.fsum(losses) / len(losses)


def make(batch, dim, clusters, cameras, seed, *, images=60, outliers=()):
    """A batch and the camera centres (with clusters) of a bank that holds every cluster."""
    generator = torch.Generator().manual_seed(seed)
    bank = F.normalize(torch.randn(images, dim, generator=generator).double(), dim=1)
    bank_labels = torch.arange(images) % clusters
    bank_camids = torch.randint(cameras, (images,), generator=generator)
    centres = plain_centres(bank, bank_labels, bank_camids, True)
    features = F.normalize(torch.randn(batch, dim, generator=generator).double(), dim=1)
    labels = torch.randint(clusters, (batch,), generator=generator)
    labels[list(outliers)] = -1
    camids = torch.randint(cameras, (batch,), generator=generator)
    return (features, labels, camids, torch.tensor(list(centres.values()), dtype=torch.float64),
            torch.tensor([label for label, _ in centres]))


SHAPES = [
    dict(batch=8, dim=6, clusters=4, cameras=3),
    dict(batch=16, dim=12, clusters=7, cameras=6, outliers=(0, 5, 15)),
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
    expected = plain_centres(features, labels, camids, normalize)
    centres, clusters = batch_camera_centres(features, labels, camids, normalize=normalize)
    assert clusters.tolist() == [label for label, _ in expected]
    wanted = torch.tensor(list(expected.values()), dtype=torch.float64)
    torch.testing.assert_close(centres, wanted, rtol=0, atol=1e-12)
    if normalize:
        torch.testing.assert_close(centres.norm(dim=1), torch.ones(len(centres)).double())


def test_batch_centres_by_hand():
    features = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1], [9, 9]])
    labels, camids = torch.tensor([3, 3, 3, 0, -1]), torch.tensor([1, 1, 0, 5, 1])
    centres, clusters = batch_camera_centres(features, labels, camids, normalize=False)
    assert clusters.tolist() == [0, 3, 3]
    assert centres.tolist() == [[0, 1], [1, 0], [0.5, 0.5]]
    centres, _ = batch_camera_centres(features, labels, camids)
    assert centres[2].tolist() == pytest.approx([math.sqrt(0.5)] * 2)


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


@pytest.mark.parametrize("num_negatives", [1, 3, 50])
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


def test_nearest_negatives_by_hand():
    anchor, label = torch.tensor([[1.0, 0.0]]), torch.tensor([2])
    centres = torch.tensor([[0.6, 0.8], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0], [0.8, 0.6]])
    clusters = torch.tensor([0, 1, 2, 3, 2])  # positives at 1.0 and 0.8, the nearest other at 0.6
    for k, others in [(0, []), (1, [0.6]), (2, [0.6, 0.0]), (3, [0.6, 0.0, -1.0]),
                      (9, [0.6, 0.0, -1.0])]:
        total = sum(math.exp(score) for score in [1.0, 0.8, *others])
        expected = -(math.log(math.exp(1.0) / total) + math.log(math.exp(0.8) / total)) / 2
        loss = cacc_loss(anchor, label, centres, clusters, num_negatives=k, temperature=1.0)
        assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("cameras", [1, 2, 5])
def test_the_minimum_is_the_log_of_the_number_of_positives(cameras):
    anchor = F.normalize(torch.randn(1, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    options = dict(num_negatives=50, temperature=0.07)
    perfect = anchor.repeat(cameras, 1)
    clusters = torch.zeros(cameras).long()
    alone = cacc_loss(anchor, torch.tensor([0]), perfect, clusters, **options).item()
    assert alone == pytest.approx(math.log(cameras), abs=1e-5)
    far = torch.cat((perfect, -anchor))  # a negative as far away as can be
    clusters = torch.cat((clusters, torch.tensor([1])))
    separated = cacc_loss(anchor, torch.tensor([0]), far, clusters, **options).item()
    assert separated == pytest.approx(math.log(cameras), abs=1e-5)


def test_outlier_anchors_have_no_influence():
    anchors, labels, _, centres, clusters = make(6, 5, 4, 3, 6, outliers=(1, 4))
    kept = [0, 2, 3, 5]
    options = dict(num_negatives=3, temperature=0.1)
    anchors.requires_grad_()
    loss = cacc_loss(anchors, labels, centres, clusters, **options)
    alone = cacc_loss(anchors.detach()[kept], labels[kept], centres, clusters, **options)
    assert loss.item() == pytest.approx(alone.item(), abs=1e-12)
    loss.backward()
    assert torch.count_nonzero(anchors.grad[[1, 4]]) == 0
    assert (anchors.grad[kept].abs().sum(dim=1) > 0).all()


def test_an_anchor_without_a_positive_centre_is_left_out():
    anchors, labels, _, centres, clusters = make(4, 5, 3, 2, 7)
    labels = torch.tensor([0, 77, 2, 1])
    options = dict(num_negatives=3, temperature=0.1)
    loss = cacc_loss(anchors, labels, centres, clusters, **options)
    expected = plain_loss(anchors, labels, centres, clusters, **options)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


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
@pytest.mark.parametrize("temperature", [0.07, 1e-3])
def test_gradients_are_finite(shape, temperature):
    features, labels, camids, centres, clusters = make(**shape, seed=8)
    features = features.float().requires_grad_()
    anchors, anchor_labels = batch_camera_centres(features, labels, camids)
    loss = cacc_loss(anchors, anchor_labels, centres.float(), clusters, num_negatives=50,
                     temperature=temperature)
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
