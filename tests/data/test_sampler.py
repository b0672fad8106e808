"""ClusterSampler: the structure of its batches, found out by loops over what it draws."""

import collections
import itertools

import numpy as np
import pytest
from caureid_plugin.data import ClusterSampler


def make(labels, camids=None, *, batch_size=16, num_instances=4, seed=0, **options):
    labels = np.asarray(labels)
    camids = np.zeros(len(labels), dtype=np.int64) if camids is None else np.asarray(camids)
    return ClusterSampler(labels, camids, batch_size=batch_size, num_instances=num_instances,
                          seed=seed, **options)


def batches_of(sampler, count, size):
    """The first ``count`` batches, as lists of indexes."""
    draws = itertools.islice(sampler, count * size)
    indexes = [draw.index for draw in draws]
    assert len(indexes) == count * size
    return [indexes[start:start + size] for start in range(0, len(indexes), size)]


def units_of(batch, num_instances):
    return [batch[start:start + num_instances] for start in range(0, len(batch), num_instances)]


def random_labels(seed, images=120, clusters=12, outliers=10, cameras=4):
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % clusters
    rng.shuffle(labels)
    labels[rng.permutation(images)[:outliers]] = -1
    return labels, rng.integers(cameras, size=images)


@pytest.mark.parametrize("batch_size, num_instances", [(16, 4), (12, 2), (8, 8), (6, 1)])
def test_units_of_neighbouring_images_of_one_cluster(batch_size, num_instances):
    labels, camids = random_labels(0)
    sampler = make(labels, camids, batch_size=batch_size, num_instances=num_instances)
    for batch in batches_of(sampler, 30, batch_size):
        units = units_of(batch, num_instances)
        clusters = [{labels[index] for index in unit} for unit in units]
        assert all(len(cluster) == 1 for cluster in clusters)
        assert len(set.union(*clusters)) == batch_size // num_instances, "P different clusters"
        assert len(set(batch)) == batch_size, "clusters of ten images need no repetition"


def test_outliers_are_never_drawn():
    labels, camids = random_labels(3, outliers=40)
    labels[7] = 50  # a cluster of one image is not an outlier
    drawn = set(itertools.chain(*batches_of(make(labels, camids), 100, 16)))
    assert drawn == set(np.flatnonzero(labels >= 0).tolist())


@pytest.mark.parametrize("cameras, counts", [
    ([0, 0, 0, 0, 0, 1, 2], [2, 1, 1]),  # each camera once, then the one that has more images
    ([0, 0, 0, 1, 1, 1], [2, 2]),
    ([0, 1, 2, 3, 4, 5], [1, 1, 1, 1]),
    ([0, 0, 0, 0, 0, 0, 1], [3, 1]),
    ([5, 5, 5, 5], [4])])
def test_different_cameras_first(cameras, counts):
    seen = set()
    sampler = make(np.zeros(len(cameras), dtype=np.int64), cameras, batch_size=4)
    for unit in batches_of(sampler, 50, 4):
        assert len(set(unit)) == 4
        drawn = [cameras[index] for index in unit]
        distinct = min(4, len(set(cameras)))
        assert len(set(drawn[:distinct])) == distinct, "the first ones all differ"
        assert sorted(collections.Counter(drawn).values(), reverse=True) == counts
        seen.update(unit)
    assert seen == set(range(len(cameras))), "every image of a cluster has its turn"


@pytest.mark.parametrize("tracks, cameras, distinct, first", [
    ("aaaab", "11112", 2, 2),  # both tracks, then more of the long one
    ("abcde", "11112", 4, 2),  # as many tracks as wanted: both cameras among the first two
    ("aabbcd", "112233", 4, 3),
    ("aaaaaa", "111111", 1, 1)])
def test_different_tracks_before_different_frames(tracks, cameras, distinct, first):
    numbers = np.array([ord(name) for name in tracks])
    camids = [int(camera) for camera in cameras]
    sampler = make(np.zeros(len(tracks), np.int64), camids, batch_size=4, tracks=numbers)
    seen = set()
    for unit in batches_of(sampler, 50, 4):
        assert len(set(unit)) == 4
        drawn = [tracks[index] for index in unit]
        assert len(set(drawn)) == distinct == len(set(drawn[:distinct]))
        assert len({cameras[index] for index in unit[:first]}) == first
        seen.update(unit)
    assert seen == set(range(len(tracks)))


def test_a_long_track_does_not_hide_the_others():
    """2,000 images of one track, one of each of three more: more than a draw looks at."""
    tracks = np.array([0] * 2000 + [1, 2, 3])
    sampler = make(np.zeros(2003, np.int64), np.zeros(2003, np.int64), batch_size=4, tracks=tracks)
    units = list(batches_of(sampler, 20, 4))
    assert all(sorted(tracks[unit]) == [0, 1, 2, 3] for unit in units)
    assert len({index for unit in units for index in unit if index < 2000}) > 10


@pytest.mark.parametrize("size, counts", [(2, [2, 2]), (3, [2, 1, 1]), (4, [1, 1, 1, 1])])
def test_small_clusters_repeat_images_evenly(size, counts):
    sampler = make([0] * size + [1] * 6, list(range(size)) + [0] * 6, batch_size=8)
    for batch in batches_of(sampler, 20, 8):
        (unit,) = [unit for unit in units_of(batch, 4) if unit[0] < size]
        assert sorted(collections.Counter(unit).values(), reverse=True) == counts


@pytest.mark.parametrize("clusters, length", [(12, 3), (11, 2)])  # in batches of four units
def test_a_pass_has_each_unit_once_and_its_remainder_is_dropped(clusters, length):
    labels = np.repeat(np.arange(clusters), 5)
    sampler = make(labels, np.arange(len(labels)) % 3)
    assert sampler.num_units == clusters
    batches, orders = batches_of(sampler, 20 * length, 16), set()
    for start in range(0, len(batches), length):
        units = [unit for batch in batches[start:start + length] for unit in units_of(batch, 4)]
        orders.add(tuple(int(labels[unit[0]]) for unit in units))
    assert len(orders) == 20, "each pass in another order"
    assert {len(set(order)) for order in orders} == {4 * length}
    assert set(itertools.chain(*orders)) == set(range(clusters)), "each time others are dropped"


@pytest.mark.parametrize("singles, counts", [
    (5, [[1, 1, 1, 1], [4]]), (6, [[1, 1, 1, 1], [2, 2]]), (7, [[1, 1, 1, 1], [2, 1, 1]]),
    (8, [[1, 1, 1, 1]] * 2)])
def test_single_image_clusters_share_units_and_the_last_one_is_filled_up(singles, counts):
    labels = np.append(np.arange(singles), [-1, -1])
    sampler = make(labels, batch_size=8)
    assert sampler.num_units == 2
    together = set()
    for batch in batches_of(sampler, 30, 8):
        found = [sorted(collections.Counter(unit).values(), reverse=True)
                 for unit in units_of(batch, 4)]
        assert sorted(found) == sorted(counts)
        assert set(batch) == set(range(singles))
        together.add(frozenset(batch[:4]))
    assert len(together) > 2, "the singletons are shuffled anew in each pass"


def test_singletons_and_clusters_do_not_mix():
    labels = np.array([0] * 4 + [1] * 4 + list(range(2, 14)))  # two clusters, twelve singletons
    sampler = make(labels, batch_size=20)
    assert sampler.num_units == 5
    for batch in batches_of(sampler, 20, 20):
        kinds = []
        for unit in units_of(batch, 4):
            assert len({index < 8 for index in unit}) == 1
            kinds.append(unit[0] < 8)
        assert sorted(kinds) == [False] * 3 + [True] * 2


@pytest.mark.parametrize("labels, cluster_images", [
    (np.repeat(np.arange(3), 8), 8),  # three clusters for sixteen places
    (np.repeat(np.arange(15), 4), 4),  # one too few
    (np.zeros(2, dtype=np.int64), 2)])
def test_fewer_units_than_places_still_fill_batches(labels, cluster_images):
    sampler = make(labels, batch_size=64)
    count = sampler.num_units
    assert count < 16
    drawn, images = collections.Counter(), set()
    for batch in batches_of(sampler, 10 * count, 64):
        for unit in units_of(batch, 4):
            assert len({labels[index] for index in unit}) == 1
            assert len(set(unit)) == min(4, cluster_images)
            drawn[int(labels[unit[0]])] += 1
        images.update(batch)
    assert set(drawn.values()) == {160}, "whole passes: every unit equally often"
    assert images == set(range(len(labels)))


def test_a_single_image_fills_batches():
    assert batches_of(make([-1, 0, -1], batch_size=64), 30, 64) == [[1] * 64] * 30


# ------------------------------------------------------------------------ one camera a draw ----


def one_camera(labels, camids, **options):
    return make(labels, camids, cameras="one", **options)


@pytest.mark.parametrize("batch_size, num_instances", [(16, 4), (12, 2), (8, 8)])
def test_a_pass_draws_each_pair_of_a_cluster_and_a_camera_once(batch_size, num_instances):
    labels, camids = random_labels(1)
    pairs = collections.defaultdict(set)
    for index, (label, camera) in enumerate(zip(labels, camids, strict=True)):
        if label >= 0:
            pairs[int(label), int(camera)].add(index)
    sampler = one_camera(labels, camids, batch_size=batch_size, num_instances=num_instances)
    assert sampler.num_units == len(pairs) > 30
    in_a_batch = batch_size // num_instances
    length, drawn = len(pairs) // in_a_batch, set()
    batches = batches_of(sampler, 60 * length, batch_size)
    for start in range(0, len(batches), length):
        units = [unit for batch in batches[start:start + length]
                 for unit in units_of(batch, num_instances)]
        found = [{(int(labels[index]), int(camids[index])) for index in unit} for unit in units]
        assert all(len(pair) == 1 for pair in found)
        assert len(set.union(*found)) == length * in_a_batch, "no pair twice in a pass"
        for unit, (pair,) in zip(units, found, strict=True):
            times = [unit.count(index) for index in pairs[pair]]
            least = num_instances // len(pairs[pair])
            assert set(times) <= {least, least + 1}, "repeated evenly, only if there are fewer"
        drawn.update(itertools.chain(*units))
    assert drawn == set().union(*pairs.values()), "every image has its turn"


def test_a_cluster_comes_several_times_with_one_camera_each():
    sampler = one_camera([0] * 9, [0] * 4 + [1] * 3 + [2] * 2, batch_size=12)
    for batch in batches_of(sampler, 20, 12):
        found = sorted(sorted(unit) for unit in units_of(batch, 4))
        assert found[0] == [0, 1, 2, 3] and found[2] == [7, 7, 8, 8]
        assert set(found[1]) == {4, 5, 6} and len(found[1]) == 4


def test_a_pair_of_one_image_is_that_image_again_and_again():
    for batch in batches_of(one_camera([0, 0, 0], [0, 0, 1], batch_size=8), 20, 8):
        assert sorted(sorted(unit) for unit in units_of(batch, 4)) == [[0, 0, 1, 1], [2] * 4]


def test_single_image_clusters_of_one_camera_share_a_unit():
    labels = np.append([0, 0], np.arange(1, 8))  # five alone under camera 0, two under camera 1
    sampler = one_camera(labels, [0, 0, 0, 0, 0, 0, 0, 1, 1], batch_size=16)
    assert sampler.num_units == 4
    together = set()
    for batch in batches_of(sampler, 40, 16):
        units = sorted(map(sorted, units_of(batch, 4)), key=lambda unit: (-len(set(unit)), unit))
        assert len(set(units[0])) == 4 and set(units[0]) < {2, 3, 4, 5, 6}
        left = {2, 3, 4, 5, 6} - set(units[0])
        assert sorted(units[1:]) == sorted([[0, 0, 1, 1], [7, 7, 8, 8], [*left] * 4])
        together.add(tuple(units[0]))
    assert len(together) == 5


@pytest.mark.parametrize("labels, camids", [
    ([0, 0, 1, 1], [0, 1, 0, 1]), ([0, 1, 2], [0, 0, 0]), ([0, 0, -1, -1], [0, 1, 2, 2])])
def test_one_camera_a_draw_needs_two_images_of_a_pair(labels, camids):
    with pytest.raises(ValueError, match="with DATALOADER.CAMERAS one each draw would be 4 copies"):
        one_camera(labels, camids)
    inliers = {index for index, label in enumerate(labels) if label >= 0}
    single = one_camera(labels, camids, batch_size=2, num_instances=1)
    assert set(itertools.chain(*batches_of(single, 20, 2))) == inliers, "no copies, no error"
    assert set(itertools.chain(*batches_of(make(labels, camids), 20, 16))) == inliers


@pytest.mark.parametrize("cameras", ["mixed", "one"])
def test_batches_that_are_left_out_are_those_of_the_start(cameras):
    labels, camids = random_labels(8)
    whole, rest = (list(itertools.islice(
        make(labels, camids, cameras=cameras, skip_batches=skip), 16 * (20 - skip)))
        for skip in (0, 13))
    assert rest == whole[16 * 13:]


@pytest.mark.parametrize("labels, options, says", [
    ([-1, -1], {}, "CAUREID.CLUSTER.EPS .*CAUREID.CLUSTER.MIN_SAMPLES"),
    ([], {}, "CAUREID.CLUSTER.EPS"),
    ([0, 0], {"batch_size": 10},
     r"SOLVER.IMS_PER_BATCH 10 over 1 process.*DATALOADER.NUM_INSTANCE 4"),
    ([0, 0], {"batch_size": 12, "world_size": 2}, "SOLVER.IMS_PER_BATCH 12 over 2 process"),
    ([0, 0], {"batch_size": 15, "world_size": 2}, "SOLVER.IMS_PER_BATCH 15 over 2 process"),
    ([0, 0], {"batch_size": 0}, "SOLVER.IMS_PER_BATCH 0"),
    ([0, 0], {"num_instances": 0}, "DATALOADER.NUM_INSTANCE 0"),
    ([0, 0], {"cameras": "two"}, r"DATALOADER.CAMERAS 'two' is unknown.*'mixed', 'one'"),
    ([-1, -1], {"cameras": "one"}, "CAUREID.CLUSTER.EPS"),
    ([0, 0], {"camids": [0]}, "2 labels for 1 cameras")], ids=str)
def test_what_gives_no_batches_is_refused(labels, options, says):
    with pytest.raises(ValueError, match=says):
        make(np.array(labels, dtype=np.int64), **options)


@pytest.mark.parametrize("cameras", ["mixed", "one"])
def test_the_seed_decides_everything(cameras):
    labels, camids = random_labels(5)

    def draws(seed):
        return list(itertools.islice(make(labels, camids, seed=seed, cameras=cameras), 320))

    first = draws(4)
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    assert draws(4) == first
    assert np.array_equal(np.random.get_state()[1], state), "the global generator is not used"
    sampler = make(labels, camids, seed=4, cameras=cameras)
    assert [list(itertools.islice(sampler, 320)) for _ in range(2)] == [first, first]
    assert [draw.index for draw in draws(5)] != [draw.index for draw in first]


def test_seeds_of_the_augmentations():
    labels, camids = random_labels(6)
    draws = list(itertools.islice(make(labels, camids), 1600))
    seeds = [draw.seed for draw in draws]
    assert len(set(seeds)) > 1590 and 0 <= min(seeds) and max(seeds) < 2**31
    by_image = collections.defaultdict(set)
    for draw in draws:
        assert type(draw.index) is int and type(draw.seed) is int
        by_image[draw.index].add(draw.seed)
    assert all(len(seeds) > 1 for seeds in by_image.values()), "an image differs from time to time"


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("labels, cameras", [
    (np.arange(100) % 9, "mixed"), (np.arange(12) % 3, "mixed"), (np.arange(30), "mixed"),
    (np.arange(100) % 9, "one")])
def test_processes_share_the_batch_of_one(labels, cameras, world_size):
    camids = np.arange(len(labels)) % 4
    options = dict(batch_size=32, num_instances=4, seed=7, cameras=cameras)
    whole = itertools.islice(make(labels, camids, **options), 32 * 20)
    parts = [iter(make(labels, camids, rank=rank, world_size=world_size, **options))
             for rank in range(world_size)]
    local = 32 // world_size
    for _ in range(20):
        expected = [next(whole) for _ in range(32)]
        assert [next(part) for part in parts for _ in range(local)] == expected


def test_a_large_cluster_is_not_gone_through_for_each_batch(monkeypatch):
    cameras = np.arange(5000) % 6
    sampler = ClusterSampler(
        np.repeat([0, 1], 2500), cameras, batch_size=8, num_instances=4, seed=3)
    looked_at = []
    permutation = np.random.Generator.permutation

    class Counting(np.random.Generator):
        def permutation(self, x):
            looked_at.append(np.size(x))
            return permutation(self, x)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Counting(np.random.PCG64(seed)))
    drawn = [draw.index for draw in itertools.islice(sampler, 8 * 400)]
    assert max(looked_at) <= 16 * 4
    for start in range(0, len(drawn), 4):  # four images of one cluster from four cameras
        unit = np.array(drawn[start:start + 4])
        assert len(set(unit // 2500)) == 1 and len(set(cameras[unit])) == 4
    assert len(set(drawn)) > 2000, "all images have their chance"
