"""ICE's losses against loops in double precision."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from caureid_plugin.losses import hard_instance_loss, soft_consistency_loss

from helpers import plain


def unit(batch, seed, dim=6):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(batch, dim, generator=generator).double(), dim=1)


def plain_hard(features, labels, keys, temperature):
    losses = []
    for feature, label in zip(features, labels, strict=True):
        if label == -1:
            continue
        scores = [(float(feature @ key) / temperature, other)
                  for key, other in zip(keys, labels, strict=True) if other != -1]
        hardest = min(score for score, other in scores if other == label)
        negatives = [score for score, other in scores if other != label]
        losses.append(plain.cross_entropy([hardest, *negatives], 0))
    return np.mean(losses)


def plain_soft(features, keys, originals, temperature):
    def rows(left, right):
        scores = [[float(a @ b) / temperature for b in right] for a in left]
        return [[math.exp(-plain.cross_entropy(row, place)) for place in range(len(row))]
                for row in scores]

    found, wanted = rows(features, keys), rows(originals, originals)
    return np.mean([math.fsum(q * math.log(q / p) for q, p in zip(goal, row, strict=True))
                    for goal, row in zip(wanted, found, strict=True)])


@pytest.mark.parametrize("labels", [
    [0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 0, 1, 1, 1, 4, 4], [0, -1, 0, -1, 1, 1, 2, 3], [5] * 8])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_hard_instances_by_loops(labels, temperature):
    features, keys = unit(8, 0), unit(8, 1)
    loss = hard_instance_loss(features, torch.tensor(labels), keys, temperature=temperature)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(plain_hard(features, labels, keys, temperature), abs=1e-12)


def test_only_outliers_give_zero_with_a_graph():
    features = torch.randn(3, 4, requires_grad=True)
    loss = hard_instance_loss(features, torch.full((3,), -1), torch.randn(3, 4), temperature=0.1)
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(features.grad, torch.zeros(3, 4))


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("temperature", [0.4, 1.0])
def test_soft_consistency_by_loops(batch, temperature):
    given = unit(batch, 0), unit(batch, 1), unit(batch, 2)
    loss = soft_consistency_loss(*given, temperature=temperature)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(plain_soft(*given, temperature), abs=1e-12)


def test_views_that_agree_cost_nothing():
    features = unit(5, 3)
    assert soft_consistency_loss(features, features, features, temperature=0.4).item() == (
        pytest.approx(0.0, abs=1e-15))


def test_gradients():
    features = unit(6, 4).requires_grad_()
    keys, originals, labels = unit(6, 5), unit(6, 6), torch.tensor([0, 0, 1, 1, -1, 2])
    assert torch.autograd.gradcheck(
        lambda f: hard_instance_loss(f, labels, keys, temperature=0.3), features)
    assert torch.autograd.gradcheck(
        lambda f: soft_consistency_loss(f, keys, originals, temperature=0.4), features)
