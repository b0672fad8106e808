"""The figures of --truth: by brute force over small cases, and by TrackEval where it is there."""

import itertools

import numpy as np
import pytest
from caureid_plugin.clustering.tracks import Tracks
from caureid_plugin.common.errors import UserError
from caureid_plugin.people.judge import figures, read_truth, say_truth
from caureid_plugin.people.table import Crop, People


def case(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 12))
    return rng.integers(0, 4, count), np.array(list("abcd"))[rng.integers(0, 4, count)]


def test_figures_by_brute_force():
    for seed in range(200):
        persons, identities = case(seed)
        got = figures(persons, identities)
        ids, numbers = sorted(set(identities)), sorted(set(persons.tolist()) - {0})
        best = 0
        wide = [*numbers, *([None] * len(ids))]
        for chosen in itertools.permutations(wide, len(ids)):
            best = max(best, sum(identity == one and person == other
                                 for one, other in zip(ids, chosen, strict=True)
                                 for person, identity in zip(persons, identities, strict=True)))
        assigned = sum(person > 0 for person in persons)
        assert got.idf1 == pytest.approx(2 * best / (len(persons) + assigned))
        pairs = list(itertools.combinations(range(len(persons)), 2))
        found = {p for p in pairs if persons[p[0]] == persons[p[1]] > 0}
        real = {p for p in pairs if identities[p[0]] == identities[p[1]]}
        for share, of in ((got.precision, found), (got.recall, real)):
            if of:
                assert share == pytest.approx(len(found & real) / len(of))
            else:
                assert np.isnan(share)
        assert got.assigned == pytest.approx(assigned / len(persons))
        assert got.people == len(numbers)


def test_idf1_is_that_of_trackeval():
    try:
        from trackeval.metrics.identity import Identity
    except ImportError:
        pytest.skip("trackeval is not installed")
    metric = Identity({"PRINT_CONFIG": False})
    for seed in range(50):
        persons, identities = case(seed)
        ids = np.unique(identities, return_inverse=True)[1]
        numbers = np.unique(np.append(persons, 0), return_inverse=True)[1][:-1]
        known = persons > 0
        data = {  # each crop is a frame of its own, whose box every tracker finds
            "num_gt_ids": ids.max() + 1, "num_tracker_ids": numbers.max() + 1,
            "num_gt_dets": len(ids), "num_tracker_dets": int(known.sum()),
            "gt_ids": [np.array([one]) for one in ids],
            "tracker_ids": [np.array([one])[known[row:row + 1]] for row, one in enumerate(numbers)],
            "similarity_scores": [np.ones((1, int(one))) for one in known]}
        assert figures(persons, identities).idf1 == pytest.approx(
            metric.eval_sequence(data)["IDF1"] if known.any() else 0.0)


CROPS = [Crop("/d/0001_c1.jpg", "1", "5"), Crop("/d/0002_c1.jpg", "1", "6"),
         Crop("/d/0001_c2.jpg", "2")]


@pytest.mark.parametrize("text, expected", [
    ("path,identity\n/d/0001_c1.jpg,ann\n/d/0001_c2.jpg,ann\n", ["ann", None, "ann"]),
    ("identity,camera,track\nann,1,6\n", [None, "ann", None])])
def test_truth_from_tables(tmp_path, text, expected):
    (tmp_path / "truth.csv").write_text(text)
    assert read_truth(str(tmp_path / "truth.csv")).of(CROPS) == expected


@pytest.mark.parametrize("text, said", [
    ("path,identity\n/d/0001_c1.jpg,ann\n/d/0001_c1.jpg,bob\n", "ann in line 2, bob in line 3"),
    ("camera,track,identity\n1,6,ann\n01,6,bob\n", "ann in line 2, bob in line 3"),
    ("camera,track,identity\n1,6,\n", "no identity in line 2"),
    ("camera,identity\n1,ann\n", "needs the columns path and identity, or"),
    ("path,identity\n/d/gone.jpg,ann\n", "none of the 3 crops")])
def test_truth_that_contradicts_itself_or_fits_nothing_is_refused(tmp_path, text, said):
    (tmp_path / "truth.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        read_truth(str(tmp_path / "truth.csv")).of(CROPS)


def test_what_has_no_identity_is_said(tmp_path):
    tracks = Tracks.of(np.array([0, 0, 1]), ["5", "6", None])
    people = People(CROPS, tracks, np.array([1, 2, 1]), np.ones(3), np.zeros(3, int),
                    np.eye(3, dtype=np.float32), "run", "f", "plain", 0.5, 1, [])
    path = tmp_path / "truth.csv"
    path.write_text("path,identity,note\n/d/0001_c1.jpg,ann,\n/d/0002_c1.jpg,bob,\n")
    said = say_truth(people, read_truth(str(path)))
    assert "2 of 3 crops of 2 identities" in said
    assert said.endswith("1 crops have no identity there, and count in no figure: the table says "
                         "nothing about them.")
    assert "nan" not in said  # there is no pair of one person
    path.write_text(path.read_text() + "/d/0001_c2.jpg,ann,\n")
    assert "have no identity" not in say_truth(people, read_truth(str(path)))


def test_truth_from_a_pattern():
    assert read_truth(r"/(\d{4})_c").of(CROPS) == ["0001", "0002", "0001"]
    assert read_truth(r"/(?:0001)?(0002)?_c").of(CROPS) == [None, "0002", None]
    for pattern, said in (("(", "nor a regular expression"), ("a", "has 0 groups"),
                          ("(x)", "none of the 3 crops"), ("absent.csv", "has 0 groups")):
        with pytest.raises(UserError) as error:
            read_truth(pattern).of(CROPS)
        assert said in str(error.value)
