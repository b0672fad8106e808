"""Heat maps of a mask and their shares of mass, against loops and by hand."""

import math

import numpy as np
import pytest
import torch
from caureid_plugin.layers import branch_maps, mass_share, relative_maps, resize_maps


@pytest.fixture
def pair():
    return torch.randn(2, 5, 4, 3), torch.rand(2, 5, 4, 3)


@pytest.mark.parametrize("kind", ["mask", "feature"])
def test_maps_against_loops(pair, kind):
    features, mask = pair
    specific, agnostic = branch_maps(features, mask, kind)
    assert specific.shape == agnostic.shape == (2, 4, 3)
    for b, y, x in np.ndindex(2, 4, 3):
        sums = [0.0, 0.0]
        for c in range(5):
            a = float(mask[b, c, y, x])
            weight = 1.0 if kind == "mask" else abs(float(features[b, c, y, x]))
            sums[0] += a * weight
            sums[1] += (1.0 - a) * weight
        assert float(specific[b, y, x]) == pytest.approx(sums[0] / 5, abs=1e-6)
        assert float(agnostic[b, y, x]) == pytest.approx(sums[1] / 5, abs=1e-6)


def test_resizing_by_hand():
    maps = torch.tensor([[[0.0, 4.0], [8.0, 12.0]]])
    places = torch.tensor([0.0, 0.25, 0.75, 1.0])  # between the centres, the border's beyond them
    expected = 8 * places[:, None] + 4 * places
    assert torch.equal(resize_maps(maps, (4, 4))[0], expected)
    assert torch.equal(resize_maps(maps, (2, 4))[0], expected[[0, 3]])


def test_relative_maps_by_hand():
    maps = torch.tensor([[[1.0, 3.0], [2.0, 2.0]], [[0.5, 0.5], [0.5, 0.5]], [[0.0, 0], [0, 0]]])
    expected = torch.tensor([[[0.5, 1.5], [1.0, 1.0]], [[1.0, 1], [1, 1]], [[0.0, 0], [0, 0]]])
    assert torch.equal(relative_maps(maps), expected)


def test_share_by_hand():
    maps = torch.tensor([[[1.0, 3], [2, 2]], [[0.3, 0.3], [0.3, 0.3]], [[0, 0], [0, 0]]])
    region = torch.tensor([[[0, 1], [0, 0]], [[1, 1], [1, 0]], [[1, 1], [1, 1]]]).bool()
    shares = mass_share(maps, region)
    assert shares.dtype == torch.float64
    assert shares.tolist() == pytest.approx([3 / 8, 3 / 4, math.nan], nan_ok=True)


def test_bad_input(pair):
    features, mask = pair
    with pytest.raises(ValueError, match="kind 'heat' is not one of .*mask.*feature"):
        branch_maps(features, mask, "heat")
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 3\) must both be"):
        branch_maps(features, mask[:, :4])
    region = torch.ones(2, 4, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"region \(1, 4, 3\) must both"):
        mass_share(mask[:, 0], region[:1])
    for value in (-0.1, math.nan, math.inf):
        maps = mask[:, 0].clone()
        maps[0, 0, 0] = value
        with pytest.raises(ValueError, match="negative or non-finite"):
            mass_share(maps, region)
