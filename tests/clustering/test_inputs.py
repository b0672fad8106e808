import numpy as np
import pytest
import torch
from caureid_plugin.clustering import assign_pseudo_labels, jaccard_graph, search_neighbors
from caureid_plugin.clustering.inputs import as_feature_matrix

GOOD = dict(k1=3, k2=2, eps=0.5)


@pytest.mark.parametrize("change, named", [
    (dict(k1=30.0), r"^k1 must .*got 30\.0"),
    (dict(k1=True, k2=1), r"^k1 must .*got True"),
    (dict(k2=0), r"^k2 must .*got 0"),
    (dict(k1=5), r"^k1 must .*smaller than the number of images.*5 and N=5"),
    (dict(k2=4), r"^k2 must .*k2=4 and k1=3"),
    (dict(eps=0), r"^eps must .*got 0"),
    (dict(eps=1 - 1e-12), r"^eps must .*0 < eps < 1"),
    (dict(eps=float("nan")), r"^eps must .*got nan"),
    (dict(eps="0.5"), r"^eps must .*got '0\.5'"),
])
def test_bad_graph_parameters_are_named(change, named):
    features = np.eye(5, dtype=np.float32)
    with pytest.raises(ValueError, match=named):
        jaccard_graph(features, **{**GOOD, **change})
    with pytest.raises(ValueError, match=named):
        assign_pseudo_labels(features, **{**GOOD, **change}, min_samples=2)


@pytest.mark.parametrize("change, named", [
    (dict(k1_intra=0), r"^k1_intra must .*got 0"),
    (dict(k1_inter=-1), r"^k1_inter must .*got -1"),
    (dict(k2_intra=0), r"^k2_intra must .*>= 1, got 0"),
    (dict(k2_inter=-1), r"^k2_inter must .*>= 0, got -1"),
    (dict(k2_intra=4), r"k2_intra must not exceed.*got 4 and 2"),
    (dict(k2_inter=5), r"k2_inter must not exceed.*got 5 and 3"),
    (dict(k1_intra=6), r"^k1_intra must .*smaller.*got 6 and N=6"),
    (dict(k1=3), "k1 cannot be used with camids"),
    (dict(camids=None), "k1_intra and k1_inter and k2_intra and k2_inter cannot .* without camids"),
    (dict(camids=[0, 1]), r"camids must hold one integer for each of the 6 images.*\(2,\)"),
    (dict(camids=[0.5] * 6), "camids must hold one integer.*float64"),
])
def test_bad_camera_aware_parameters_are_named(change, named):
    good = dict(camids=np.arange(6) % 2, k1_intra=2, k1_inter=3, k2_intra=2, k2_inter=2, eps=0.5)
    features = np.eye(6, dtype=np.float32)
    assert jaccard_graph(features, **good).shape == (6, 6)
    with pytest.raises(ValueError, match=named):
        jaccard_graph(features, **{**good, **change})


@pytest.mark.parametrize("min_samples", [0, 2.5])
def test_bad_min_samples_is_named(min_samples):
    with pytest.raises(ValueError, match="^min_samples must"):
        assign_pseudo_labels(np.eye(5, dtype=np.float32), **GOOD, min_samples=min_samples)


@pytest.mark.parametrize("k", [0, 6, 2.5])
def test_neighbor_count_outside_the_images_is_named(k):
    with pytest.raises(ValueError, match=rf"1\.\.N with N=5, got k={k}"):
        search_neighbors(np.eye(5, dtype=np.float32), k)


@pytest.mark.parametrize("value, dtype, message", [
    (np.nan, np.float32, "row 2 holds NaN or infinity.*2 such rows of 6"),
    (-np.inf, np.float16, "row 2 holds NaN or infinity.*2 such rows of 6"),
    (1e300, np.float64, "row 2 holds NaN or infinity in float32"),
    (1e19, np.float64, "row 2 is too large"),  # finite in float32, its squared distances are not
])
def test_the_first_row_that_float32_cannot_hold_is_named(value, dtype, message):
    features = np.ones((6, 4), dtype=dtype)
    features[2, 3] = features[5, 0] = value
    for given in (features, torch.from_numpy(features)):
        with pytest.raises(ValueError, match=message):
            as_feature_matrix(given)
    with pytest.raises(ValueError, match=message):
        assign_pseudo_labels(features, **GOOD, min_samples=2)


@pytest.mark.parametrize("features, named", [
    (np.ones(4, dtype=np.float32), r"\(4,\)"), (torch.ones(4, 0), r"\(4, 0\)"),
    (torch.ones(4, 2, dtype=torch.int32), "int32"),
])
def test_wrong_shape_or_dtype_is_named(features, named):
    with pytest.raises(ValueError, match=named):
        jaccard_graph(features, **GOOD)


def test_every_kind_of_features_becomes_the_same_matrix():
    values = np.arange(12, dtype=np.float32).reshape(4, 3) / 8  # exact in each dtype
    tensor, read_only = torch.from_numpy(values.copy()), values.copy()
    read_only.flags.writeable = False
    for given in (values, values.astype(np.float16), values.astype(np.float64), read_only,
                  np.asfortranarray(values), tensor.bfloat16(), tensor.double().requires_grad_()):
        matrix = as_feature_matrix(given)
        assert matrix.dtype == np.float32 and matrix.flags.c_contiguous
        assert matrix.flags.writeable, "torch warns about arrays it may not write to"
        assert np.array_equal(matrix, values)
    assert as_feature_matrix(np.full((2, 2), 1e18)).dtype == np.float32, "large, but it fits"
