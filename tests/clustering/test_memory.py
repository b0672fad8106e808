import sys
import types

import pytest
import torch
from caureid_plugin.clustering import Search, assign_pseudo_labels, jaccard_graph, memory

from helpers import warm

pytestmark = pytest.mark.alone

CPU = torch.device("cpu")


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """The folder of the control groups' files, on a machine with 8 GiB free."""
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory.psutil, "virtual_memory",
                        lambda: types.SimpleNamespace(available=8 * 2**30))
    return tmp_path


def test_what_does_not_fit_is_said_before_it_starts(make_features, monkeypatch, messages):
    features, _ = make_features(300)
    monkeypatch.setattr("caureid_plugin.clustering.neighbors.search_exact",
                        lambda *args, **options: pytest.fail("it started"))
    with pytest.raises(MemoryError, match=r"allowed by CAUREID\.CLUSTER\.MAX_MEMORY.*raise"):
        jaccard_graph(features, k1=20, k2=6, eps=0.5, search=Search(max_memory=1e-4))
    assert "clustering needs about" in messages[0] and "0.0 are allowed" in messages[0]


def test_what_the_machine_has_free_is_the_limit(make_features, monkeypatch):
    features, _ = make_features(60)
    monkeypatch.setattr(memory, "available", lambda: 1e-6)
    with pytest.raises(MemoryError, match=r"free.*lower CAUREID\.CLUSTER\.K1 or") as e:
        assign_pseudo_labels(features, k1=20, k2=6, eps=0.5, min_samples=3)
    assert "K1_INTRA" not in str(e.value)


def test_camera_aware_lists_are_shortened_by_their_own_keys(make_features, monkeypatch):
    features, _ = make_features(60)
    monkeypatch.setattr(memory, "available", lambda: 1e-6)
    with pytest.raises(MemoryError, match=r"lower CAUREID\.CLUSTER\.K1_INTRA, "
                                          r"CAUREID\.CLUSTER\.K1_INTER or") as e:
        jaccard_graph(features, camids=[0, 1] * 30, eps=0.5)
    assert "CLUSTER.K1 " not in str(e.value)


def test_a_container_has_less_than_the_machine(groups):
    assert memory.available() == 8  # no such files
    (groups / "memory.max").write_text("max\n")
    assert memory.available() == 8
    (groups / "memory.max").write_text(f"{2**30}\n")
    (groups / "memory.current").write_text(f"{2**28}\n")
    assert memory.available() == 0.75


STATISTICS = "anon 7\n{0}inactive_file {1}\n{0}active_file {2}\nfile 7\n"


def test_files_that_a_container_keeps_in_memory_count_as_free(groups):
    (groups / "memory.max").write_text(f"{2**30}\n")
    (groups / "memory.current").write_text(f"{2**30}\n")
    assert memory.available() == 0
    (groups / "memory.stat").write_text(STATISTICS.format("", 2**27, 2**28))
    assert memory.available() == 0.375
    (groups / "memory.current").write_text(f"{2**31}\n")  # more than allowed, for a moment
    assert memory.available() == 0


def test_limits_of_the_first_version_of_control_groups(groups):
    folder = groups / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")  # none
    (folder / "memory.usage_in_bytes").write_text(f"{2**30}\n")
    # "total_": with the groups below it, as the usage is counted
    (folder / "memory.stat").write_text(
        STATISTICS.format("", 1, 2) + STATISTICS.format("total_", 2**27, 2**28))
    assert memory.available() == 8
    (folder / "memory.limit_in_bytes").write_text(f"{2**30}\n")
    assert memory.available() == 0.375


MEASURE = """
import sys
from pathlib import Path
import numpy as np, psutil, torch
from caureid_plugin.clustering import Search, assign_pseudo_labels, memory
n, dim, backend, camera_aware = (
    int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4] == "True")
rng = np.random.default_rng(0)
features = rng.normal(size=(n // 15 + 1, dim)).astype(np.float32)[np.arange(n) // 15]
features += 0.6 * rng.standard_normal((n, dim), dtype=np.float32)
features /= np.linalg.norm(features, axis=1, keepdims=True)
options = dict(camids=rng.integers(0, 4, n)) if camera_aware else dict(k1=30, k2=6)
search = Search(backend=backend)
assign_pseudo_labels(features[:500], eps=0.5, min_samples=4, search=search, **{
    **options, **({"camids": options["camids"][:500]} if camera_aware else {})})  # compile, import
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far, the imports' too
before = psutil.Process().memory_info().rss
assign_pseudo_labels(features, eps=0.5, min_samples=4, search=search, **options)
peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1]
ks = (6, 21) if camera_aware else (30,)
needed = memory.estimate(n, dim, ks, backend=backend, device=torch.device("cpu"))
print(int(peak) / 2**20 - before / 2**30, needed["peak"])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("n, dim, backend, camera_aware", [
    (16000, 64, "torch", True), (8000, 512, "faiss-flat", False)])
def test_the_estimate_is_what_is_taken(tmp_path, n, dim, backend, camera_aware):
    run = warm.run(["-c", MEASURE, n, dim, backend, camera_aware], tmp_path)
    assert run.returncode == 0, run.stderr
    taken, needed = map(float, run.stdout.split())
    assert 0.3 * needed < taken < 1.1 * needed + 0.03, (taken, needed)


def test_estimates_grow_with_the_images_and_not_with_their_square():
    sizes = [10**6, 10**7]
    for backend in ("torch", "torch-pca", "faiss-flat", "faiss-ivf"):
        small, large = (memory.estimate(n, 256, (30,), backend=backend, device=CPU)["peak"]
                        for n in sizes)
        assert 7 < large / small < 11


@pytest.mark.parametrize("backend", ["torch", "torch-pca", "faiss-flat"])
def test_each_process_takes_its_own_part_for_the_search(backend):
    one, four = (memory.estimate(10**6, 256, (6, 21), backend=backend, device=CPU,
                                 processes=count) for count in (1, 4))
    assert one == memory.estimate(10**6, 256, (6, 21), backend=backend, device=CPU)
    assert four["search"] == pytest.approx(4 * one["search"])
    assert four["graph"] == one["graph"]
    assert four["peak"] == max(four["search"], four["graph"])
    assert one["lists"] == 2
