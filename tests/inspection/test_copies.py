"""Copies against loops over all pairs of images."""

import io
import itertools

import caureid_plugin  # noqa: F401  (before everything that imports fastreid)
import imagehash
import numpy as np
import pytest
from caureid_plugin.inspection import COPY_DISTANCE, exact_copies, find_near_copies, run_length
from PIL import Image


def picture(seed):
    """A picture with structure at several scales, as photographs have it."""
    rng = np.random.default_rng(seed)
    total = sum(np.asarray(Image.fromarray(
        rng.integers(256, size=(2 * side, side), dtype=np.uint8)).resize((48, 96), 3), float)
        for side in (2, 4, 8, 16))
    return Image.fromarray((total / 4).astype(np.uint8)).convert("RGB")


def nearest(bits, camids, row, same):
    """The others in the same camera, or in other cameras, that have the fewest different bits."""
    counts = {other: sum(x != y for x, y in zip(bits[row], bits[other], strict=True))
              for other in range(len(bits))
              if other != row and (camids[other] == camids[row]) == same}
    least = min(counts.values(), default=len(bits[0]) + 1)
    return least, {other for other, count in counts.items() if count == least} or {-1}


@pytest.mark.parametrize("cameras", [1, 3])
def test_nearest_by_loops(cameras):
    rng = np.random.default_rng(2)
    bits = rng.random((24, 48)) < 0.5
    bits[10] = bits[11] = bits[12] = bits[3]  # copies with lower and with higher indexes
    bits[20] = bits[5]
    bits[20, :6] ^= True
    camids = rng.integers(cameras, size=24)
    camids[-1] = cameras - 1 if cameras == 1 else 7  # a camera of one image
    found = find_near_copies(bits, camids)
    for row in range(24):
        for same, other, count in ((True, found.within, found.within_bits),
                                   (False, found.across, found.across_bits)):
            least, candidates = nearest(bits, camids, row, same)
            assert count[row] == least and other[row] in candidates
    assert (found.across[0] == -1) == (cameras == 1)
    assert found.within_bits[10] == 0 or cameras > 1


def test_the_threshold_parts_copies_from_others():
    pictures = [picture(seed) for seed in range(20)]
    hashes = [imagehash.phash(image, 16).hash.ravel() for image in pictures]
    for image, bits in zip(pictures, hashes, strict=True):
        file = io.BytesIO()
        image.resize((round(0.9 * image.width), round(0.9 * image.height)), 2).save(
            file, "JPEG", quality=60)
        copy = imagehash.phash(Image.open(file), 16).hash.ravel()
        assert (copy != bits).sum() <= COPY_DISTANCE / 2
        assert sum((copy != other).sum() <= COPY_DISTANCE for other in hashes) == 1


def test_groups_of_equal_hashes_and_images_without_others():
    assert exact_copies([b"b", b"a", b"b", b"c", b"a", b"b"]) == [[0, 2, 5], [1, 4]]
    assert exact_copies([b"a", b"b"]) == exact_copies([]) == []
    found = find_near_copies(np.zeros((1, 256), bool), np.zeros(1, int))
    assert found.within.tolist() == found.across.tolist() == [-1]
    assert found.within_bits.tolist() == found.across_bits.tolist() == [257]


def test_runs_by_loops():
    rng = np.random.default_rng(3)
    bits = rng.random((60, 256)) < 0.5
    order, camids = rng.permutation(60), rng.integers(2, size=60)
    for before, after in itertools.pairwise(order):
        if rng.random() < 0.6:
            bits[after] = bits[before]
            bits[after, rng.choice(256, 20, replace=False)] ^= True
    runs = []
    for camera in (0, 1):
        rows = [row for row in order if camids[row] == camera]
        for place, row in enumerate(rows):
            if place and (bits[row] != bits[rows[place - 1]]).sum() <= 32:
                runs[-1] += 1
            else:
                runs.append(1)
    longer = [length for length in runs if length > 1]
    assert 0 < len(longer) < len(runs)
    assert run_length(bits, camids, order) == pytest.approx(sum(longer) / len(longer))
    far = rng.random((5, 256)) < 0.5
    assert run_length(far, np.zeros(5, int), np.arange(5)) == 1
    assert run_length(np.zeros((6, 256), bool), np.arange(6) // 3, np.arange(6)) == 3
    assert run_length(far[:1], np.zeros(1, int), np.arange(1)) == 1
