"""Tracks and DBSCAN under what they forbid, compared with loops over all pairs."""

import itertools

import numpy as np
import pytest
import torch
from caureid_plugin.clustering import (
    Tracks,
    assign_pseudo_labels,
    cluster_tracks,
    jaccard_encoding,
    jaccard_graph,
    labels_at,
    outliers_to_singletons,
    sweep_eps,
)
from caureid_plugin.clustering.tracks import overlapping
from scipy import sparse
from sklearn.cluster import DBSCAN

from helpers import plain


def test_which_images_are_of_one_track():
    camids = np.array([1, 0, 1, 1, 0, 0])
    tracks = Tracks.of(camids, ["a", "a", "a", None, None, "b"], [3, 9, 1, 4, np.nan, np.nan])
    assert tracks.of_image.tolist() == [0, 1, 0, 2, 3, 4] and len(tracks) == 5
    assert tracks.camids.tolist() == [1, 0, 1, 0, 0] == tracks.places.tolist()
    np.testing.assert_equal(tracks.first, [1, 9, 4, np.nan, np.nan])
    np.testing.assert_equal(tracks.last, [3, 9, 4, np.nan, np.nan])
    assert tracks.lengths.tolist() == [2, 1, 1, 1, 1]
    assert Tracks.of(camids, ["a"] * 6, one_place=True).places.tolist() == [0, 0]
    assert np.isnan(Tracks.of(camids, ["a"] * 6).first).all()


def test_the_tracks_of_some_images():
    tracks = Tracks.of(np.array([1, 0, 1, 1, 0]), ["a", "a", "a", None, "b"], [3, 9, 1, 4, 5])
    some = tracks.of_images(np.array([4, 2, 0]))
    assert some.of_image.tolist() == [0, 1, 1] and some.camids.tolist() == [0, 1]
    assert some.first.tolist() == [5, 1] and some.last.tolist() == [5, 3]
    assert some.places.tolist() == [0, 1]


@pytest.mark.parametrize("arguments, message", [
    ((np.zeros(2, np.int64), ["a"]), "camids must hold one integer for each of the 1 images"),
    ((np.zeros(1, np.int64), ["a"], [1.0, 2.0]), "one number for each of the 1 images")])
def test_tracks_of_other_images(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tracks.of(*arguments)


def test_mean_feature_by_loops():
    features = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)) * 9
    tracks = Tracks.of(np.zeros(7, np.int64), ["a", "b", "a", None, "b", "a", "c"])
    for number, mean in enumerate(tracks.mean(features)):
        rows = [row / row.norm() for row, track in zip(features, tracks.of_image, strict=True)
                if track == number]
        expected = sum(rows) / len(rows)
        torch.testing.assert_close(mean, expected / expected.norm())


# -------------------------------------------------------------------------- constraints ----


def forbidden(tracks, one, other):
    return one != other and tracks.places[one] == tracks.places[other] and bool(
        tracks.first[one] <= tracks.last[other] and tracks.first[other] <= tracks.last[one])


def random_case(seed):
    """A graph, its dense distances, tracks, eps and min_samples; every third one has ties."""
    rng = np.random.default_rng(seed)
    n, points = int(rng.integers(2, 25)), rng.random((25, 2))
    points = points[:n]
    dense = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1)).astype(np.float32)
    if seed % 3 == 0:
        steps = np.float32(rng.choice([4, 8, 16]))
        dense = np.round(dense * steps) / steps
    eps = float(rng.choice([0.15, 0.25, 0.4]))
    first = rng.random(n) * 3
    last = first + rng.random(n) * rng.choice([0.0, 0.2, 1.0])
    first[rng.random(n) < 0.2] = np.nan
    last[np.isnan(first)] = np.nan
    camids = rng.integers(0, 2, n)
    tracks = Tracks(np.arange(n), camids, first, last, camids)
    return graph_of(dense, eps), dense, tracks, eps, int(rng.integers(1, 5))


def graph_of(dense, eps):
    stored = np.argwhere(dense <= np.float32(eps))
    return sparse.coo_matrix((dense[dense <= np.float32(eps)], stored.T), dense.shape).tocsr()


@pytest.mark.parametrize("part", range(4))
def test_no_cluster_holds_two_that_are_in_one_place_at_one_time(part):
    kept_apart = 0
    for seed in range(part * 50, part * 50 + 50):
        graph, dense, tracks, eps, min_samples = random_case(seed)
        labels = cluster_tracks(graph, eps, min_samples, tracks)
        pairs = list(itertools.combinations(range(len(tracks)), 2))
        wrong = [pair for pair in pairs if forbidden(tracks, *pair)]
        found = [tuple(sorted(pair)) for pair in overlapping(tracks).tolist()]
        assert sorted(found) == wrong
        assert tracks.overlaps() == {place: sum(tracks.places[one] == place for one, _ in wrong)
                                     for place in set(tracks.places.tolist())}
        assert not [pair for pair in wrong if labels[pair[0]] == labels[pair[1]] >= 0]
        # whoever shares a cluster is linked through it, in steps of eps
        for cluster in set(labels.tolist()) - {-1}:
            members = np.flatnonzero(labels == cluster)
            links = dense[np.ix_(members, members)] <= np.float32(eps)
            assert (np.linalg.matrix_power(links.astype(float), len(members)) > 0).all()
        plain_labels = DBSCAN(eps=float(np.float32(eps)), min_samples=min_samples,
                              metric="precomputed").fit_predict(dense)
        kept_apart += any(plain_labels[one] == plain_labels[other] >= 0 for one, other in wrong)
    assert kept_apart > 10, "the constraints decide something"


def fit(tracks, groups):
    return not any(forbidden(tracks, *pair)
                   for pair in itertools.combinations(frozenset().union(*groups), 2))


def join(group, groups):
    whole = frozenset().union(*groups)
    for track in whole:
        group[track] = whole


def join_core_points(group, edges, tracks):
    """Edges of one distance."""
    waiting = {frozenset([group[i], group[j]]) for i, j in edges}
    waiting = {edge for edge in waiting if len(edge) == 2 and fit(tracks, edge)}
    while waiting:
        linked = set(waiting.pop())
        while more := {edge for edge in waiting if edge & linked}:
            linked.update(*more)
            waiting -= more
        if fit(tracks, linked):
            join(group, linked)


def by_loops(dense, eps, min_samples, tracks):
    """The rule as it is written, with sets of tracks and loops over all pairs."""
    n, eps = len(tracks), np.float32(eps)
    core = {i for i in range(n) if (dense[i] <= eps).sum() >= min_samples}
    group = [frozenset([i]) for i in range(n)]
    levels = [d for d in np.unique(dense) if d <= eps]
    for level in levels:
        join_core_points(group, [pair for pair in itertools.combinations(core, 2)
                                 if dense[pair] == level], tracks)
    settled = set(core)
    for level in levels:
        new = {}
        for border in set(range(n)) - settled:
            fitting = {group[i] for i in core if dense[border, i] == level
                       and fit(tracks, [[border], group[i]])}
            settled |= {border} if fitting else set()
            if len(fitting) == 1:
                new.setdefault(fitting.pop(), []).append(border)
        for old, borders in new.items():
            if fit(tracks, [old, borders]):
                join(group, [old, borders])
    numbers = {members: number for number, members in enumerate(set(group))}
    return np.array([numbers[group[i]] if i in core or len(group[i]) > 1 else -1
                     for i in range(n)])


@pytest.mark.parametrize("part", range(4))
def test_the_rule_by_loops(part):
    for seed in range(part * 75, part * 75 + 75):
        graph, dense, tracks, eps, min_samples = random_case(seed)
        labels = cluster_tracks(graph, eps, min_samples, tracks)
        expected = by_loops(dense, eps, min_samples, tracks)
        assert np.array_equal(plain.together(labels), plain.together(expected)), seed
        assert np.array_equal(labels < 0, expected < 0), seed


@pytest.mark.parametrize("part", range(4))
def test_the_order_of_the_tracks_does_not_matter(part):
    for seed in range(part * 50, part * 50 + 50):
        graph, _, tracks, eps, min_samples = random_case(seed)
        order = np.random.default_rng(seed).permutation(len(tracks))
        moved = Tracks(np.arange(len(tracks)), tracks.camids[order], tracks.first[order],
                       tracks.last[order], tracks.places[order])
        one = cluster_tracks(graph, eps, min_samples, tracks)
        other = cluster_tracks(graph[order][:, order], eps, min_samples, moved)
        assert np.array_equal(plain.together(one)[np.ix_(order, order)], plain.together(other))
        assert np.array_equal(one[order] < 0, other < 0)


@pytest.mark.parametrize("part", range(4))
def test_without_times_core_points_are_dbscans(part):
    for seed in range(part * 50, part * 50 + 50):
        graph, dense, tracks, eps, min_samples = random_case(seed)
        weights = np.random.default_rng(seed).integers(1, 4, len(tracks))
        unknown = np.full(len(tracks), np.nan)
        free = Tracks(tracks.of_image, tracks.camids, unknown, unknown, tracks.places)
        labels = cluster_tracks(graph, eps, min_samples, free, weights)
        found = DBSCAN(eps=float(np.float32(eps)), min_samples=min_samples,
                       metric="precomputed").fit(dense, sample_weight=weights)
        core = found.core_sample_indices_
        assert np.array_equal(plain.together(labels[core]), plain.together(found.labels_[core]))
        border = np.setdiff1d(np.flatnonzero(found.labels_ >= 0), core)
        for track in border:
            distances = dense[track, core]
            nearest = {labels[c] for c in core[distances == distances.min()]}
            assert labels[track] in nearest if len(nearest) == 1 else labels[track] == -1
        assert (labels[found.labels_ < 0] == -1).all()


def line(*gaps):
    """Distances of points on a line."""
    places = np.concatenate([[0], np.cumsum(gaps)])
    return np.abs(places[:, None] - places[None]).astype(np.float32)


def in_one_camera(*times):
    first, last = np.array(times, dtype=float).T
    camids = np.zeros(len(times), np.int64)
    return Tracks(np.arange(len(times)), camids, first, last, camids)


def test_the_closest_join_first():
    # 0 and 2 are there at one time; 1 is closer to 2
    tracks = in_one_camera((0, 1), (2, 3), (1, 1.5))
    labels = cluster_tracks(graph_of(line(0.2, 0.1), 0.3), 0.3, 2, tracks)
    assert labels[1] == labels[2] != labels[0] and labels[0] >= 0  # a core point on its own


def test_what_is_equally_far_stays_apart():
    tracks = in_one_camera((0, 1), (2, 3), (1, 1.5))
    labels = cluster_tracks(graph_of(line(0.125, 0.125), 0.2), 0.2, 2, tracks)
    assert len(set(labels.tolist())) == 3


def test_touching_times_are_one_time():
    for gap, clusters in ((0.0, 2), (0.1, 1)):
        tracks = in_one_camera((0, 1), (1 + gap, 2))
        assert len(set(cluster_tracks(graph_of(line(0.1), 0.3), 0.3, 1, tracks))) == clusters


def test_a_border_point_goes_to_the_nearest_cluster_that_can_be():
    # 4 is next to 3, whose cluster holds 2, which is there at the same time; 5's is free
    dense = line(0.05, 0.05, 0.05, 0.1, 0.15, 0.05, 0.05)
    times = [(0, 1), (2, 3), (9, 10), (4, 5), (9.5, 9.6), (20, 21), (22, 23), (24, 25)]
    labels = cluster_tracks(graph_of(dense, 0.16), 0.16, 4, in_one_camera(*times))
    assert labels[0] == labels[1] == labels[2] == labels[3]
    assert labels[4] != labels[3]


# -------------------------------------------------------------------- what is known ----


def test_known_people_keep_together_and_apart():
    dense = np.full((5, 5), 0.9, dtype=np.float32)
    np.fill_diagonal(dense, 0)
    for one, other, distance in ((0, 1, 0.1), (1, 2, 0.2), (3, 4, 0.1)):
        dense[one, other] = dense[other, one] = distance
    free = in_one_camera(*[(float(i * 2), i * 2 + 1.0) for i in range(5)])
    graph = graph_of(dense, 0.5)
    assert plain.together(cluster_tracks(graph, 0.5, 2, free))[0].tolist() == [1, 1, 1, 0, 0]
    labels = cluster_tracks(graph, 0.5, 2, free, known=np.array([7, -1, 8, 7, -1]))
    assert plain.together(labels)[0].tolist() == [1, 1, 0, 1, 1]  # 3 by its number, 4 by 3
    labels = cluster_tracks(graph, 0.5, 2, free, apart=[(1, 2), (3, 4)])
    assert plain.together(labels)[1].tolist() == [1, 1, 0, 0, 0]
    assert labels[3] != labels[4]


@pytest.mark.parametrize("known, apart", [([5, 5, -1], []), ([5, -1, 5], [(0, 2)])])
def test_what_is_known_must_not_contradict_itself(known, apart):
    tracks = in_one_camera((0, 1), (0.5, 2), (3, 4))
    with pytest.raises(ValueError, match="known as one, number 5, but they are two people"):
        cluster_tracks(graph_of(line(0.1, 0.1), 0.3), 0.3, 2, tracks, known=np.array(known),
                       apart=apart)


# ------------------------------------------------------------------------- the labels ----


@pytest.fixture
def tracked(make_features):
    """Features of 96 images, and tracks of three images each in two cameras."""
    features, identities = make_features(96, noise=0.5)
    order = np.argsort(identities, kind="stable")
    of_image = np.empty(96, dtype=np.int64)
    of_image[order] = np.arange(96) // 3
    camids = of_image % 2
    start, shot = np.random.default_rng(0).random(32) * 40, np.empty(96)
    shot[order] = np.arange(96) % 3
    tracks = Tracks.of(camids, of_image.tolist(), start[of_image] + shot)
    assert sum(tracks.overlaps().values()) > 5
    return torch.from_numpy(features), camids, tracks


@pytest.mark.parametrize("camera_aware", [False, True])
def test_labels_are_those_of_the_tracks(tracked, camera_aware):
    features, camids, tracks = tracked
    counts = {"k1_intra": 2, "k1_inter": 4} if camera_aware else {"k1": 6, "k2": 2}
    options = {**counts, **({"camids": camids} if camera_aware else {})}
    of_tracks = {**counts, **({"camids": tracks.camids} if camera_aware else {})}
    graph = jaccard_graph(tracks.mean(features), eps=0.6, **of_tracks)
    expected = cluster_tracks(graph, 0.6, 2, tracks)[tracks.of_image]
    labels = assign_pseudo_labels(features, eps=0.6, min_samples=2, tracks=tracks, **options)
    assert np.array_equal(plain.together(labels), plain.together(expected))
    first = [labels.tolist().index(label) for label in range(labels.max() + 1)]
    assert first == sorted(first) and len(first) > 2
    tighter, same = labels_at(features, eps_values=(0.02, 0.6), min_samples=2, tracks=tracks,
                              **options)
    assert np.array_equal(same, labels) and not np.array_equal(tighter, labels)
    rows = sweep_eps(jaccard_encoding(features, tracks=tracks, **options), [0.4, 0.6],
                     min_samples=2, camids=camids, tracks=tracks)
    assert [row["images"] for row in rows] == [96, 96]
    assert rows[1]["clusters"] == labels.max() + 1
    assert rows[1]["outliers"] == (labels < 0).sum()


def test_a_graph_of_something_else_than_the_tracks(tracked):
    features, _, tracks = tracked
    for of, given in ((None, tracks), (tracks, Tracks.of(np.zeros(96, np.int64), [None] * 96))):
        encoding = jaccard_encoding(features, tracks=of, k1=6, k2=2)
        with pytest.raises(ValueError, match="must be of the .* tracks, got one of shape"):
            sweep_eps(encoding, [0.4], min_samples=2, tracks=given)


def test_features_of_other_images_than_the_tracks(tracked):
    features, _, tracks = tracked
    with pytest.raises(ValueError, match="tracks are of 96 images, got features of 95"):
        assign_pseudo_labels(features[1:], eps=0.6, min_samples=4, tracks=tracks, k1=6, k2=2)
    features[7, 0] = np.nan
    with pytest.raises(ValueError, match="features row 7 holds NaN"):
        assign_pseudo_labels(features, eps=0.6, min_samples=4, tracks=tracks, k1=6, k2=2)


def test_an_outlying_track_is_one_cluster():
    tracks = Tracks.of(np.zeros(6, np.int64), ["a", "b", "b", "a", "c", None])
    labels = np.array([-1, 0, 0, -1, -1, -1])
    assert outliers_to_singletons(labels, tracks).tolist() == [1, 0, 0, 1, 2, 3]
