"""The search shared by two processes, which run this file as a script."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from caureid_plugin.clustering import (
    Search,
    assign_pseudo_labels,
    exact_search,
    faiss_search,
    projected_search,
    search_by_camera,
    search_neighbors,
)

SIZE = 2
BACKENDS = ["torch", "torch-pca", "faiss-flat"]
BLOCKS = ((exact_search, "TILE_ROWS", 64), (faiss_search, "ROWS", 64),  # something to share
          (projected_search, "FEWEST", 4))


def _features():
    rng = np.random.default_rng(0)
    identities = np.arange(400) // 10
    features = rng.normal(size=(40, 16))[identities] + 0.5 * rng.normal(size=(400, 16))
    features[40:70] = features[39]  # more duplicates than candidates' worth of a list
    return features.astype(np.float32), rng.integers(0, 3, 400)


def _everything(group, backend):
    """Lists, lists by camera and labels."""
    features, camids = _features()
    search = Search(backend=backend, group=group, recall=0.8)
    plain = search_neighbors(features, 12, search=search)
    by_camera = search_by_camera(features, camids, 4, 11, search=search)
    labels = assign_pseudo_labels(features, k1=12, k2=4, eps=0.6, min_samples=3, search=search)
    aware = assign_pseudo_labels(features, camids=camids, eps=0.6, min_samples=3, search=search)
    return [*plain, *by_camera[0], *by_camera[1], labels, aware]


def _errors(rank):
    """What goes wrong in every process, and what does only in the second one."""
    features, _ = _features()
    spoilt = features.copy()
    if rank == 1:
        spoilt[3] = np.nan
    for given, k1, eps, max_memory in ((features, 400, 0.5, None), (features, 4, 2.0, None),
                                       (features, 4, 0.5, 1e-9), (spoilt, 4, 0.5, None)):
        try:
            assign_pseudo_labels(given, k1=k1, k2=2, eps=eps, min_samples=2,
                                 search=Search(group=dist.group.WORLD, max_memory=max_memory))
        except (ValueError, MemoryError, RuntimeError) as error:
            yield f"{type(error).__name__}: {error}"


def _run(rank, folder):
    torch.set_num_threads(1)
    for module, name, value in BLOCKS:
        setattr(module, name, value)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank,
                            world_size=SIZE)
    try:
        for backend in BACKENDS:
            np.savez(folder / f"{rank}-{backend}.npz", *_everything(dist.group.WORLD, backend))
        (folder / f"{rank}.txt").write_text("\n".join(_errors(rank)))
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The folder in which two processes have left their results."""
    from helpers import warm  # which a script would not find

    folder = tmp_path_factory.mktemp("shared")
    processes = [warm.start([__file__, rank, folder], out=folder / f"{rank}.log")
                 for rank in range(SIZE)]
    try:
        for process in processes:
            assert process.wait() == 0, process.log.read_text()
    finally:
        for process in processes:
            process.kill()
    return folder


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_processes_find_what_one_finds(shared, monkeypatch, backend):
    for module, name, value in BLOCKS:
        monkeypatch.setattr(module, name, value)
    torch.set_num_threads(1)  # principal components change their last digits with it
    expected = _everything(None, backend)
    assert expected[-1].max() > 10 and expected[-2].max() > 10, "the case must have clusters"
    for rank in range(SIZE):
        with np.load(shared / f"{rank}-{backend}.npz") as found:
            assert len(found.files) == len(expected)
            for name, array in zip(found.files, expected, strict=True):
                assert np.array_equal(found[name], array)


def test_what_is_wrong_is_said_in_every_process(shared):
    first, second = ((shared / f"{rank}.txt").read_text().splitlines() for rank in range(SIZE))
    assert [line.split(":")[0] for line in first] == [
        "ValueError", "ValueError", "MemoryError", "PeerError"]
    assert second[:3] == first[:3]
    assert second[3].startswith("ValueError") and "features row 3 holds NaN" in second[3]
    assert "features row 3 holds NaN" in first[3], "it fails too, instead of waiting"


if __name__ == "__main__":
    _run(int(sys.argv[1]), Path(sys.argv[2]))
