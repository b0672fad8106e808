import sys
import types

import numpy as np
import pytest
import torch
from caureid_plugin.clustering import Search, assign_pseudo_labels, jaccard_graph, memory
from caureid_plugin.clustering.jaccard import pairs_within
from scipy import sparse

from helpers import warm

pytestmark = pytest.mark.alone

CPU = torch.device("cpu")


def test_what_does_not_fit_is_said_before_it_starts(make_features, monkeypatch, messages):
    features, _ = make_features(300)
    monkeypatch.setattr("caureid_plugin.clustering.neighbors.search_exact",
                        lambda *args, **options: pytest.fail("it started"))
    with pytest.raises(MemoryError, match="allowed by max_memory.*raise"):
        jaccard_graph(features, k1=20, k2=6, eps=0.5, search=Search(max_memory=1e-4))
    assert "clustering needs about" in messages[0] and "0.0 are allowed" in messages[0]


@pytest.mark.parametrize("options, lengths", [
    ({"k1": 20, "k2": 6}, "k1"),
    ({"camids": [0, 1] * 30}, "k1_intra, k1_inter"),
])
def test_what_the_machine_has_free_is_the_limit(make_features, monkeypatch, options, lengths):
    features, _ = make_features(60)
    monkeypatch.setattr(memory, "available", lambda: 1e-6)
    with pytest.raises(MemoryError, match=f"are free: lower {lengths} or the embedding size"):
        assign_pseudo_labels(features, eps=0.5, min_samples=3, **options)


def test_pairs_without_end_are_an_error_and_not_a_full_memory(monkeypatch):
    """Images that all list the same few neighbours are all within eps of each other."""
    encoding = sparse.csr_matrix(np.full((40, 40), 1 / 40))
    assert pairs_within(encoding, 0.5).nnz == 1600
    monkeypatch.setattr(memory, "available", lambda: 1e-6)
    with pytest.raises(MemoryError, match="780 pairs of images lie within eps 0.5.*lower eps"):
        pairs_within(encoding, 0.5)


@pytest.mark.parametrize("folder, limit, taken, unlimited, statistics", [
    ("", "memory.max", "memory.current", "max", "inactive_file {}\nactive_file {}\n"),
    # version 1; "total_": with the groups below it, as the usage is counted
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", 9223372036854771712,
     "inactive_file 1\nactive_file 2\ntotal_inactive_file {}\ntotal_active_file {}\n"),
], ids=["version 2", "version 1"])
def test_a_container_has_less_than_the_machine(
        tmp_path, monkeypatch, folder, limit, taken, unlimited, statistics):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory.psutil, "virtual_memory",
                        lambda: types.SimpleNamespace(available=8 * 2**30))
    home = tmp_path / folder
    home.mkdir(exist_ok=True)
    assert memory.available() == 8  # no such files
    (home / taken).write_text(f"{2**30}\n")
    for allowed, free in ((unlimited, 8), (2**31, 1), (2**30, 0)):
        (home / limit).write_text(f"{allowed}\n")
        assert memory.available() == free
    # files that it keeps in memory count as free
    (home / "memory.stat").write_text(f"anon 7\n{statistics.format(2**27, 2**28)}file 7\n")
    assert memory.available() == 0.375
    (home / taken).write_text(f"{2**31}\n")  # more than allowed, for a moment
    assert memory.available() == 0


MEASURE = """
import sys
from pathlib import Path
import numpy as np, psutil, torch
from caureid_plugin.clustering import Search, assign_pseudo_labels, memory
n, dim, backend, aware = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4] == "True"
rng = np.random.default_rng(0)
features = rng.normal(size=(n // 15 + 1, dim)).astype(np.float32)[np.arange(n) // 15]
features += 0.6 * rng.standard_normal((n, dim), dtype=np.float32)
features /= np.linalg.norm(features, axis=1, keepdims=True)
camids = rng.integers(0, 4, n)
def cluster(rows):
    options = dict(camids=camids[:rows]) if aware else dict(k1=30, k2=6)
    assign_pseudo_labels(features[:rows], eps=0.5, min_samples=4,
                         search=Search(backend=backend), **options)
cluster(500)  # compile, import
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far, the imports' too
before = psutil.Process().memory_info().rss
cluster(n)
peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1]
needed = memory.estimate(n, dim, (6, 21) if aware else (30,), backend=backend,
                         device=torch.device("cpu"))
print(int(peak) / 2**20 - before / 2**30, needed["peak"])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("n, dim, backend, camera_aware", [
    (16000, 64, "torch", True), (8000, 512, "faiss-flat", False),
    pytest.param(8000, 512, "torch-pca", False, marks=pytest.mark.slow)])
def test_the_estimate_is_what_is_taken(tmp_path, n, dim, backend, camera_aware):
    run = warm.run(["-c", MEASURE, n, dim, backend, camera_aware], tmp_path)
    assert run.returncode == 0, run.stderr
    taken, needed = map(float, run.stdout.split())
    assert 0.3 * needed < taken < 1.1 * needed + 0.03, (taken, needed)


@pytest.mark.parametrize("backend", ["torch", "torch-pca", "faiss-flat"])
def test_estimates_grow_with_the_images_and_not_with_their_square(backend):
    small, large = (memory.estimate(n, 256, (30,), backend=backend, device=CPU)["peak"]
                    for n in (10**6, 10**7))
    assert 7 < large / small < 11


@pytest.mark.parametrize("backend", ["torch", "torch-pca", "faiss-flat"])
def test_each_process_takes_its_own_part_for_the_search(backend):
    one, four = (memory.estimate(10**6, 256, (6, 21), backend=backend, device=CPU, **processes)
                 for processes in ({}, {"processes": 4}))
    assert four["search"] == pytest.approx(4 * one["search"])
    assert four["graph"] == one["graph"] and one["lists"] == 2
    assert four["peak"] == max(four["search"], four["graph"])


@pytest.mark.parametrize("images, processes, expected", [
    (10_000, 2, 4096 * (12 * 10_000 + 8 * 4096)),  # taken in one of the processes
    (30_000, 1, 4096 * (12 * 20_000 + 8 * 4096)),  # of a sample of 20,000
])
def test_principal_components_may_take_more_than_the_search(images, processes, expected):
    needed = memory.estimate(images, 4096, (30,), backend="torch-pca", device=CPU,
                             processes=processes)
    assert needed["search"] * 2**30 == pytest.approx(expected + 0.06 * 2**30)


@pytest.mark.parametrize("images, encoding, pairs", [
    (17_000_000, 8 + 4, 4 + 4),
    (18_000_000, 8 + 8, 4 + 4),  # 120 entries each are more than 2**31
    (72_000_000, 8 + 8, 4 + 8),  # 30 each are more, too
])
def test_indices_of_many_entries_take_64_bits(images, encoding, pairs):
    needed = memory.estimate(images, 64, (30,), backend="torch", device=CPU)
    expected = images * (30 * 8 + 2 * 120 * encoding + 3 * 30 * pairs)
    assert needed["graph"] * 2**30 == pytest.approx(expected + 0.06 * 2**30)
