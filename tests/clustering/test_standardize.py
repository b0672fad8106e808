"""Features standardised within each camera, against loops in float64."""

import math

import numpy as np
import pytest
import torch
from caureid_plugin.clustering import standardize_by_camera
from caureid_plugin.clustering.standardize import CameraStatistics


def by_loops(features, camids):
    """Unit rows; of each camera and dimension mean and n - 1 deviation; unit rows again."""
    rows = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in features]
    result = [None] * len(rows)
    for camera in set(camids):
        members = [i for i, c in enumerate(camids) if c == camera]
        columns = []
        for values in zip(*(rows[i] for i in members), strict=True):
            mean = sum(values) / len(values)
            spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
            columns.append([(v - mean) / (spread + 1e-5) for v in values])
        for place, i in enumerate(members):
            row = [column[place] for column in columns]
            length = math.sqrt(sum(x * x for x in row))
            result[i] = [x / length for x in row]
    return result


def test_it_is_what_loops_give():
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(1.0, 2.0, (30, 5)))
    camids = rng.integers(3, size=30) * 4  # numbers with gaps
    found = standardize_by_camera(features, camids)
    np.testing.assert_allclose(found, by_loops(features.tolist(), camids.tolist()), atol=1e-12)


def test_a_cast_of_one_camera_no_longer_decides_who_is_near():
    torch.manual_seed(0)
    people = torch.randn(40, 6)
    camids = torch.arange(40) % 2
    seen = people + 6.0 * camids[:, None] * torch.tensor([1.0, 0, 0, 0, 0, 0])

    def share_of_own_camera(features):
        unit = torch.nn.functional.normalize(features, dim=1)
        nearest = (unit @ unit.T).fill_diagonal_(-1.0).argmax(dim=1)
        return (camids[nearest] == camids).float().mean()

    assert share_of_own_camera(seen) > 0.8
    assert share_of_own_camera(standardize_by_camera(seen, camids)) < 0.7


def test_dtype_is_kept_and_a_constant_dimension_becomes_zero():
    features = torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [3.0, 4.0, 0.0], [3.0, 0.0, 0.0]])
    found = standardize_by_camera(features, np.array([0, 0, 1, 1]))
    assert found.dtype == torch.float32
    assert not found[:, 2].any()
    assert torch.isfinite(found).all()


def test_a_camera_of_one_image_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"1 of the 2 cameras .* camera 7.*do not standardise"):
        standardize_by_camera(torch.eye(3), np.array([2, 2, 7]))
    with pytest.raises(ValueError, match="camids"):
        standardize_by_camera(torch.eye(3), np.array([2, 2]))


def test_statistics_of_parts_are_those_of_the_whole():
    """Also where a part has none or one of a camera's images."""
    rng = np.random.default_rng(1)
    rows = rng.normal(1.0, 2.0, (30, 5))
    cameras = np.array([0] * 12 + [1] * 10 + [0] + [2] * 7)
    first, second, third = (
        CameraStatistics.of(torch.from_numpy(rows[part]), torch.from_numpy(cameras[part]), 3)
        for part in (slice(5), slice(5, 23), slice(23, 30)))
    found = first.merge(second).merge(third).with_all()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for row, members in enumerate([cameras == 0, cameras == 1, cameras == 2, cameras >= 0]):
        assert found.images[row] == members.sum()
        np.testing.assert_allclose(found.mean[row], unit[members].mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(found.squares[row],
                                   members.sum() * unit[members].var(axis=0), atol=1e-12)


def test_a_dimension_without_spread_tells_nothing_of_other_images():
    seen = torch.nn.functional.normalize(torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0]]))
    camera = torch.zeros(2, dtype=torch.int64)
    query = torch.tensor([[0.6, 0.5, 0.6]])  # the first and third differ from all that was seen
    found = CameraStatistics.of(seen, camera, 1).standardize(query, camera[:1])
    assert found.tolist() == [[0, 1, 0]]
