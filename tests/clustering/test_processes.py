"""The search shared by two processes."""

import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
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


def _run(rank, folder, backend):
    torch.set_num_threads(1)
    exact_search.TILE_ROWS = 64  # so that there is something to share
    faiss_search.ROWS = 64
    projected_search.FEWEST = 4
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank,
                            world_size=SIZE)
    try:
        found = _everything(dist.group.WORLD, backend)
        np.savez(f"{folder}/{rank}.npz", *found)
        errors = []
        for bad in (dict(k1=400, k2=2, eps=0.5), dict(k1=4, k2=2, eps=2.0),
                    dict(k1=4, k2=2, eps=0.5, search=Search(max_memory=1e-9,
                                                            group=dist.group.WORLD))):
            try:
                assign_pseudo_labels(_features()[0], min_samples=2, **bad)
            except (ValueError, MemoryError) as error:
                errors.append(type(error).__name__)
        spoilt = _features()[0]
        if rank == 1:
            spoilt[3] = np.nan
        try:  # one process fails: so does the other, instead of waiting
            assign_pseudo_labels(spoilt, k1=4, k2=2, eps=0.5, min_samples=2,
                                 search=Search(group=dist.group.WORLD))
        except (ValueError, RuntimeError) as error:
            message = f"{type(error).__name__} {error}"
        errors.append(message.split()[0])
        assert "features row 3 holds NaN" in message
        (folder / f"{rank}.txt").write_text(" ".join(errors))
        dist.barrier()
    finally:
        dist.destroy_process_group()
    # Seen once on a loaded machine: libraries' own threads abort the interpreter's teardown
    # ("terminate called without an active exception"). What is tested is done by now.
    os._exit(0)


@pytest.mark.parametrize("backend", ["torch", "torch-pca", "faiss-flat"])
def test_two_processes_find_what_one_finds(tmp_path, monkeypatch, backend):
    monkeypatch.setattr(projected_search, "FEWEST", 4)
    if backend == "faiss-flat":
        pytest.importorskip("faiss")
    mp.spawn(_run, args=(tmp_path, backend), nprocs=SIZE)
    monkeypatch.setattr(exact_search, "TILE_ROWS", 64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as above: principal components change their last digits with it
    try:
        expected = _everything(None, backend)
    finally:
        torch.set_num_threads(threads)
    assert expected[-1].max() > 10 and expected[-2].max() > 10, "the case must have clusters"
    for rank in range(SIZE):
        with np.load(tmp_path / f"{rank}.npz") as found:
            assert len(found.files) == len(expected)
            for name, array in zip(found.files, expected, strict=True):
                assert np.array_equal(found[name], array)
        # what is wrong is said in every process
        assert (tmp_path / f"{rank}.txt").read_text() == (
            "ValueError ValueError MemoryError " + ["PeerError", "ValueError"][rank])
