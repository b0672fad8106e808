"""The oracle's tracks, of names as Market-1501 gives them."""

import csv

import pytest

from benchmarks.tracks import oracle, parse, with_errors, write

# two walks of person 2 with more than 8 seconds between them, one of 7, another camera's
NAMES = ["0002_c1s1_000001_01.jpg", "0002_c1s1_000026_01.jpg", "0002_c1s1_000226_01.jpg",
         "0002_c1s1_000427_00.jpg", "0007_c1s1_000030_01.jpg", "0007_c1s1_000055_01.jpg",
         "0002_c1s2_000228_01.jpg", "0002_c2s1_000027_01.jpg"]


def names(tracks):
    return [[image.name for image in track] for track in tracks]


def test_a_track_ends_where_no_image_follows():
    assert names(oracle([parse(name) for name in reversed(NAMES)])) == [
        NAMES[:3], NAMES[3:4], NAMES[6:7], NAMES[7:], NAMES[4:6]]
    with pytest.raises(ValueError, match="not named as in Market-1501"):
        parse("0002.jpg")


@pytest.mark.parametrize("seed", range(5))
def test_errors_cut_and_join_as_many(seed):
    images = [parse(f"{who:04}_c1s1_{25 * who + 10 * step:06}_01.jpg")
              for who in range(1, 41) for step in range(4)]
    right = oracle(images)
    wrong = with_errors(right, 0.1, seed)
    assert sorted(name for track in names(wrong) for name in track) == sorted(
        image.name for image in images)
    mixed = [track for track in wrong if len({image.identity for image in track}) > 1]
    # 4 of 40 are cut, so 44 pieces, of which 4 pairs are joined
    assert (len(right), len(wrong), len(mixed)) == (40, 40, 4)
    assert names(with_errors(right, 0.1, seed)) == names(wrong)
    assert names(with_errors(right, 0.0, seed)) == names(right)


def test_the_table(tmp_path):
    write(oracle([parse(name) for name in NAMES]), tmp_path, tmp_path / "tracks.csv")
    with (tmp_path / "tracks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"path": str(tmp_path / NAMES[0]), "camera": "1", "track": "0",
                       "seconds": str(1e5 + 1 / 25)}
    assert len(rows) == len(NAMES) and len({row["track"] for row in rows}) == 5
