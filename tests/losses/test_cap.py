"""CAP's losses against loops in double precision."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from caureid_plugin.losses import inter_camera_loss, intra_camera_loss

from helpers import plain


def make(batch, clusters, cameras, *, seed=0, outliers=(), strangers=(), dim=6):
    """A batch and the proxies of a bank of 40 images; it has no proxy of strangers."""
    generator = torch.Generator().manual_seed(seed)
    bank = F.normalize(torch.randn(40, dim, generator=generator).double(), dim=1)
    proxies = plain.camera_centres(bank, torch.arange(40) % clusters,
                                   torch.randint(cameras, (40,), generator=generator),
                                   normalize=True)
    features = F.normalize(torch.randn(batch, dim, generator=generator).double(), dim=1)
    labels = torch.randint(clusters, (batch,), generator=generator)
    labels[list(outliers)], labels[list(strangers)] = -1, 77
    camids = torch.randint(cameras, (batch,), generator=generator)
    centres = torch.from_numpy(np.array(list(proxies.values())))
    pairs = torch.tensor(list(proxies))
    return features, labels, camids, centres, pairs[:, 0], pairs[:, 1]


def sum_over_cameras(losses):
    """The sum of each camera's mean, of (camera, loss)."""
    return sum(np.mean([value for camera, value in losses if camera == wanted])
               for wanted in {camera for camera, _ in losses})


def plain_intra(features, labels, camids, centres, centre_labels, centre_camids, temperature):
    losses = []
    for feature, label, camera in zip(features, labels.tolist(), camids.tolist(), strict=True):
        seen = [place for place, other in enumerate(centre_camids.tolist()) if other == camera]
        own = [number for number, place in enumerate(seen) if centre_labels[place] == label]
        if label != -1 and own:
            scores = [float(feature @ centres[place]) / temperature for place in seen]
            losses.append((camera, plain.cross_entropy(scores, own[0])))
    return sum_over_cameras(losses)


def plain_inter(features, labels, camids, centres, centre_labels, num_negatives, temperature):
    losses = []
    for feature, label, camera in zip(features, labels.tolist(), camids.tolist(), strict=True):
        scores = [(float(feature @ centre) / temperature, other == label)
                  for centre, other in zip(centres, centre_labels.tolist(), strict=True)]
        positives = [score for score, same in scores if same]
        negatives = sorted((score for score, same in scores if not same), reverse=True)
        if label != -1 and positives:
            compared = positives + negatives[:num_negatives]
            losses.append((camera, np.mean([plain.cross_entropy(compared, place)
                                            for place in range(len(positives))])))
    return sum_over_cameras(losses)


SHAPES = [
    dict(batch=9, clusters=5, cameras=3),
    dict(batch=16, clusters=8, cameras=4, outliers=(0, 5), strangers=(3,)),
    dict(batch=6, clusters=4, cameras=1),  # a single camera
    dict(batch=6, clusters=1, cameras=3),  # no other cluster
    dict(batch=8, clusters=40, cameras=5),  # one image per cluster: most have no proxy here
]


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_intra_camera_loss_by_loops(shape, temperature):
    given = make(**shape)
    loss = intra_camera_loss(*given, temperature=temperature)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(plain_intra(*given, temperature), abs=1e-11)


@pytest.mark.parametrize("num_negatives", [0, 2, 50])
@pytest.mark.parametrize("shape", SHAPES)
def test_inter_camera_loss_by_loops(shape, num_negatives):
    given = make(**shape, seed=1)[:5]
    loss = inter_camera_loss(*given, num_negatives=num_negatives, temperature=0.07)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(plain_inter(*given, num_negatives, 0.07), abs=1e-11)


@pytest.mark.parametrize("labels, proxies", [([-1] * 4, 3), ([0, 1, 2, 0], 0), ([5, 6, 7, 8], 3)])
def test_no_proxy_gives_zero_with_a_graph(labels, proxies):
    features = torch.randn(4, 5, requires_grad=True)
    given = (features, torch.tensor(labels), torch.tensor([0, 0, 1, 2]),
             torch.randn(proxies, 5), torch.arange(proxies))
    loss = (intra_camera_loss(*given, torch.zeros(proxies).long(), temperature=0.07)
            + inter_camera_loss(*given, num_negatives=50, temperature=0.07))
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(features.grad, torch.zeros(4, 5))


def test_gradients():
    features, *rest = make(**SHAPES[1], seed=2)
    features.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f: intra_camera_loss(f, *rest, temperature=0.3), features)
    assert torch.autograd.gradcheck(
        lambda f: inter_camera_loss(f, *rest[:4], num_negatives=3, temperature=0.3), features)
