"""People of tracks: nobody twice at one time, known numbers stay, confidences by loops."""

import itertools

import numpy as np
import pytest
import torch
from caureid_plugin.clustering import Search
from caureid_plugin.clustering.tracks import Tracks
from caureid_plugin.people.assign import (
    MOST_TRACKS,
    Settings,
    assign,
    confidences,
    overlapping,
    settings_of,
)
from caureid_plugin.people.corrections import Facts
from torch.nn.functional import normalize

COUNTS = {"k1_intra": 2, "k1_inter": 8, "k2_intra": 1, "k2_inter": 2}
SETTINGS = Settings(0.6, 2, COUNTS, True, True, -1.0, Search())


def footage(seed, people=6, one_place=False):
    """Tracks of people in three cameras at times that often overlap; features that show them."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(people, 8))
    names, cameras, times, rows = [], [], [], []
    for number in range(4 * people):
        camera, start, who = rng.integers(3), rng.integers(30), rng.integers(people)
        for second in range(rng.integers(1, 4)):
            names.append(None if rng.random() < 0.1 else str(number))
            cameras.append(camera)
            times.append(np.nan if rng.random() < 0.1 else float(start + second))
            rows.append(centres[who] + rng.normal(scale=0.5, size=8))
    camids = np.array(cameras)
    tracks = Tracks.of(camids, names, times, one_place=one_place)
    return normalize(torch.tensor(np.array(rows), dtype=torch.float32), dim=1), camids, tracks


def nothing_known(tracks, apart=()):
    count = len(tracks)
    return Facts(np.full(count, -1), [], list(apart), np.zeros(count, dtype=bool))


def at_one_time(tracks):
    """Pairs of tracks in one place at one time, by loops."""
    return {(a, b) for a, b in itertools.combinations(range(len(tracks)), 2)
            if tracks.places[a] == tracks.places[b]
            and tracks.first[a] <= tracks.last[b] and tracks.first[b] <= tracks.last[a]}


@pytest.mark.parametrize("one_place", [False, True])
def test_nobody_is_twice_in_a_place_at_one_time(one_place):
    joined = 0
    for seed in range(30):
        features, camids, tracks = footage(seed, one_place=one_place)
        persons = assign(features, camids, tracks, SETTINGS, facts=nothing_known(tracks)).persons
        pairs = at_one_time(tracks)
        assert pairs
        assert not [pair for pair in pairs if persons[pair[0]] == persons[pair[1]] > 0]
        joined += int((np.bincount(persons)[1:] > 1).sum())
    assert joined > 50


def test_pairs_at_one_time_are_those_of_loops():
    for seed in range(10):
        _, _, tracks = footage(seed, one_place=seed % 2 == 0)
        found = [tuple(sorted(pair)) for pair in overlapping(tracks).tolist()]
        assert len(found) == len(set(found)) and set(found) == at_one_time(tracks)


def test_known_people_keep_their_numbers_and_new_ones_follow():
    for seed in range(20):
        features, camids, tracks = footage(seed)
        before = assign(features, camids, tracks, SETTINGS, facts=nothing_known(tracks)).persons
        rng = np.random.default_rng(seed)
        known = np.where(rng.random(len(tracks)) < 0.4, before, 0) * 10
        numbers = sorted({*known.tolist()} - {0})
        group = np.array([numbers.index(n) if n else -1 for n in known.tolist()])
        facts = Facts(group, numbers, [], np.zeros(len(tracks), dtype=bool))
        after = assign(features, camids, tracks, SETTINGS, facts=facts, first_new=1000).persons
        assert (after[known > 0] == known[known > 0]).all()
        new = sorted(set(after[after >= 1000].tolist()))
        assert new == list(range(1000, 1000 + len(new)))
        assert set(after.tolist()) <= {0, *numbers, *new}
        assert not [p for p in at_one_time(tracks) if after[p[0]] == after[p[1]] > 0]


def test_new_tracks_join_a_known_person_whom_they_resemble():
    features, camids, tracks = footage(3)
    before = assign(features, camids, tracks, SETTINGS, facts=nothing_known(tracks)).persons
    largest = int(np.bincount(before)[1:].argmax()) + 1
    members = np.flatnonzero(before == largest)
    group = np.full(len(tracks), -1)
    group[members[:2]] = 0
    facts = Facts(group, [77], [], np.zeros(len(tracks), dtype=bool))
    after = assign(features, camids, tracks, SETTINGS, facts=facts, first_new=78).persons
    assert len(members) > 2 and (after[members] == 77).all()


def test_numbers_follow_the_order_in_which_tracks_appear():
    features, camids, tracks = footage(5)
    persons = assign(features, camids, tracks, SETTINGS, facts=nothing_known(tracks)).persons
    seen = list(dict.fromkeys(persons[persons > 0].tolist()))
    assert seen == list(range(1, len(seen) + 1))


def test_pairs_that_are_apart_stay_apart_and_who_was_split_off_is_somebody():
    features, camids, tracks = footage(7)
    before = assign(features, camids, tracks, SETTINGS, facts=nothing_known(tracks)).persons
    one, other = np.flatnonzero(before == int(np.bincount(before)[1:].argmax()) + 1)[:2]
    left = np.zeros(len(tracks), dtype=bool)
    left[other] = True
    facts = Facts(
        np.full(len(tracks), -1), [], [(int(one), int(other))], left)
    after = assign(features, camids, tracks, SETTINGS, facts=facts).persons
    assert after[one] != after[other] > 0


@pytest.mark.parametrize("left, expected", [(False, [1, 0]), (True, [1, 2])])
def test_who_was_split_off_and_fits_nobody_is_somebody(left, expected):
    tracks = Tracks.of(np.zeros(5, int), ["a"] * 4 + ["b"])
    plain = Settings(0.5, 4, {"k1": 30, "k2": 6}, False, False, 0.3, Search())
    facts = Facts(np.full(2, -1), [], [(0, 1)], np.array([False, left]))
    features = torch.eye(8)[[0] * 4 + [1]]
    assert assign(features, np.zeros(5, int), tracks, plain, facts=facts).persons.tolist() == (
        expected)


def test_strangers_do_not_become_one_where_there_are_few():
    """Two people, each before a camera of their own, are each other's nearest."""
    features = torch.eye(8)[[0] * 4 + [1] * 4]
    camids = np.array([0] * 4 + [1] * 4)
    tracks = Tracks.of(camids, ["a"] * 4 + ["b"] * 4)
    plain = SETTINGS._replace(standardize=False)
    facts = nothing_known(tracks)
    assert assign(features, camids, tracks, plain, facts=facts).persons.tolist() == [1, 1]
    apart = assign(features, camids, tracks, plain._replace(least=0.3), facts=facts).persons
    assert apart.tolist() == [1, 2]


def test_one_crop_is_nobody():
    tracks = Tracks.of(np.zeros(1, int), [None])
    plain = Settings(0.5, 4, {"k1": 30, "k2": 6}, False, False, 0.3, Search())
    found = assign(torch.eye(8)[:1], np.zeros(1, int), tracks, plain, facts=nothing_known(tracks))
    assert found.persons.tolist() == [0] and np.isnan(found.confidence).all()


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_confidences_by_loops():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        means = unit(rng.normal(size=(14, 4))).astype(np.float32)
        persons = rng.integers(0, 6, size=14)
        pairs = np.array([pair for pair in itertools.combinations(range(14), 2)
                          if rng.random() < 0.2])
        got, nearest = confidences(means, persons, pairs)
        not_allowed = {frozenset(pair) for pair in pairs.tolist()}
        own, other = {}, {}
        for t in range(14):
            rest = [u for u in range(14) if u != t and persons[u] == persons[t] > 0]
            own[t] = distance(means[t], means[rest].sum(0)) if rest else None
            best = {}
            for p in set(persons.tolist()) - {0, persons[t]}:
                members = [u for u in range(14) if persons[u] == p]
                if not any(frozenset((t, u)) in not_allowed for u in members):
                    centre = means[members].sum(0)
                    best[p] = means[t] @ centre / np.linalg.norm(centre)
            who = max(best, key=best.get) if best else 0
            other[t] = 1 - min(1, max(0, best[who])) if best else 1.0
            assert nearest[t] == who
        joined = [value for t, value in own.items() if value is not None]
        for t in range(14):
            if not persons[t]:
                assert np.isnan(got[t])
                continue
            a = own[t] if own[t] is not None else np.median(joined) if joined else 0.5
            assert got[t] == pytest.approx((other[t] + 1e-6) / (a + other[t] + 2e-6), abs=1e-5)
            assert 0 <= got[t] <= 1


def distance(one, rest):
    return 1 - min(1, max(0, one @ rest / np.linalg.norm(rest)))


def test_lists_of_tracks_are_shorter_unless_their_keys_are_given(cfg):
    camids = np.array([0, 0, 1, 1])
    long = Tracks.of(camids, ["a", "a", "b", "b"])
    single = Tracks.of(camids, [None] * 4)
    assert settings_of(cfg, [], camids, single, -1.0).counts == {"k1": 30, "k2": 6}
    assert settings_of(cfg, [], camids, long, -1.0).counts == {
        name: MOST_TRACKS[name] for name in ("k1", "k2")}
    given = settings_of(cfg, ["CAUREID.CLUSTER.K1"], camids, long, -1.0).counts
    assert given == {"k1": 30, "k2": MOST_TRACKS["k2"]}
    cfg.CAUREID.CLUSTER.CAMERA_AWARE = cfg.CAUREID.CLUSTER.STANDARDIZE = True
    both = settings_of(cfg, [], camids, long, -1.0)
    assert both.counts == COUNTS and both.camera_aware and both.standardize
    one = settings_of(cfg, [], np.array([0, 0, 0, 1]), long, -1.0)
    assert one.camera_aware and not one.standardize  # a camera of one crop
    assert not settings_of(cfg, [], np.zeros(4, int), long, -1.0).camera_aware
