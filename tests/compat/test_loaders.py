"""Loaders that work without CUDA and end their workers; samplers that neither spin nor reseed."""

import copy
import itertools
import multiprocessing
import os
import signal
import threading
import time
import types

import numpy as np
import pytest
import torch
from caureid_plugin import compat
from caureid_plugin.common.signals import StopRequest
from caureid_plugin.compat import devices
from fastreid.data import build as data_build
from fastreid.data import samplers
from fastreid.data.samplers import data_sampler, imbalance_sampler
from fastreid.utils import comm
from torch.utils.data import Dataset

CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="shows a defect without CUDA")


class Numbered(Dataset):
    """Item i is a 2 x 2 image of the number i."""

    num_classes = 3

    def __init__(self, size=12, broken=None):
        self.size, self.broken = size, broken

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index == self.broken:
            raise ValueError(f"item {index} is broken")
        return {"images": torch.full((1, 2, 2), float(index)), "targets": int(index) % 3,
                "img_paths": f"{index}.jpg"}


def endless(workers, **options):
    """The toolbox's training loader: batches of 4 in order, for ever."""
    images = Numbered(**options)
    sampler = samplers.TrainingSampler(len(images), shuffle=False)
    return data_build.build_reid_train_loader(
        images, sampler=sampler, total_batch_size=4, num_workers=workers)


def indexes(batch):
    return batch["images"][:, 0, 0, 0].int().tolist()


def alive():
    """Worker processes and threads of this process."""
    return len(multiprocessing.active_children()), len(os.listdir("/proc/self/task"))


def assert_ended(before):
    """No worker and no thread is left over; a queue's thread takes a moment to end."""
    assert alive()[0] == before[0]
    for _ in range(500):
        if alive()[1] <= before[1]:
            return
        time.sleep(0.02)
    pytest.fail("a thread is left over")


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_datasets_items_in_the_samplers_order(workers):
    loader = endless(workers)
    batches = list(itertools.islice(iter(loader), 7))
    loader.shutdown()
    expected = [i % 12 for i in range(28)]
    assert [i for batch in batches for i in indexes(batch)] == expected
    assert [t for batch in batches for t in batch["targets"].tolist()] == [i % 3 for i in expected]
    assert batches[3]["img_paths"] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]


@CPU_ONLY
def test_without_the_repair_a_loader_needs_cuda():
    with compat.without("train_loader"), pytest.raises((RuntimeError, AssertionError),
                                                       match="(?i)cuda|nvidia"):
        endless(0)


def test_a_test_loader_ends_and_starts_again():
    loader, queries = data_build.build_reid_test_loader(Numbered(10), 4, 3, num_workers=0)
    assert (queries, len(loader)) == (3, 3)
    for _ in range(2):
        assert [indexes(batch) for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_workers_start_at_the_first_batch_and_end_at_shutdown_or_with_their_loader():
    for end in (lambda loader: loader.shutdown(), lambda loader: None):
        before = alive()
        loader = endless(2)
        iterator = iter(loader)
        assert_ended(before)  # nor begun
        next(iterator)
        assert alive()[0] == before[0] + 2
        end(loader)
        del loader, iterator  # no reference cycle waits for the garbage collector
        assert_ended(before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_can_be_used_again_after_shutdown(workers):
    loader = endless(workers)
    loader.shutdown()  # before its first use, nothing to do
    first = indexes(next(iter(loader)))
    loader.shutdown()
    loader.shutdown()
    iterator = iter(loader)
    assert [indexes(next(iterator)) for _ in range(2)] == [first, [4, 5, 6, 7]]
    again = iter(loader)  # from the start, in place of the first pass
    assert indexes(next(again)) == first
    loader.shutdown()
    with pytest.raises(StopIteration):
        next(again)


def test_an_error_in_a_worker_surfaces_and_leaves_no_process():
    before = alive()
    loader = endless(2, broken=5)
    iterator = iter(loader)
    next(iterator)
    with pytest.raises(ValueError, match="item 5 is broken"):
        next(iterator)
    assert_ended(before)
    loader.shutdown()


def test_a_signal_that_comes_while_workers_are_forked_waits(monkeypatch):
    """Python's own hooks around a fork would lose the exception of a second Ctrl-C."""
    seen, fork = [], os.fork

    def with_signal():
        if not seen:  # to this thread: another one of the process would take it at once
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        seen.append(request.signal)
        return fork()

    monkeypatch.setattr(os, "fork", with_signal)
    loader = endless(2)
    with StopRequest() as request:
        next(iter(loader))
        assert seen == [None, None] and request.signal == signal.SIGINT
    loader.shutdown()


class Deaf(Numbered):
    """Target 1 where signals that ask for an end are blocked."""

    def __getitem__(self, index):
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, []) & devices._TO_WORKERS
        return {**super().__getitem__(index), "targets": len(blocked)}


def test_workers_hear_signals():
    loader, _ = data_build.build_reid_test_loader(Deaf(4), 4, 0, num_workers=1)
    assert [batch["targets"].tolist() for batch in loader] == [[0, 0, 0, 0]]


def test_processes_and_threads_stay_flat_over_swaps():
    loader, counts = endless(2), []
    inner = types.SimpleNamespace(data_loader=loader, _data_loader_iter=iter(loader))
    for _ in range(6):
        compat.swap_train_loader(types.SimpleNamespace(_trainer=inner), endless(2))
        next(inner._data_loader_iter)
        counts.append(alive())
    assert {processes for processes, _ in counts} == {counts[0][0]}
    # a leak would add two threads or more with each swap; the last loader's may still be ending
    assert max(threads for _, threads in counts) <= counts[0][1] + 4
    inner.data_loader.shutdown()
    assert alive()[0] == counts[0][0] - 2


def test_the_workers_key_reaches_the_test_loader(tiny_cfg):
    def built(**options):
        return data_build.build_reid_test_loader(tiny_cfg, dataset_name="Market1501", **options)

    tiny_cfg.DATALOADER.NUM_WORKERS = 1
    loader, queries = built()
    assert (loader.num_workers, queries, len(loader.dataset)) == (1, 16, 16 + 33)
    assert loader.batch_sampler.batch_size == 20
    assert built(num_workers=2)[0].num_workers == 2
    by_keyword, _ = data_build.build_reid_test_loader(
        cfg=tiny_cfg, test_set=Numbered(), num_query=5)
    assert (by_keyword.num_workers, len(by_keyword.dataset)) == (1, 12)
    with compat.without("test_loader_workers"):
        assert built()[0].num_workers == 4


# ---------------------------------------------------------------------------- samplers ----


def people(identities, images=4):
    """Items (path, identity, camera) with two cameras each."""
    return [(f"{i}_{j}.jpg", f"id_{i}", f"cam_{j % 2}")
            for i in range(identities) for j in range(images)]


MAKERS = {
    "TrainingSampler": lambda: data_sampler.TrainingSampler(32, seed=5),
    "ImbalancedDatasetSampler": lambda: imbalance_sampler.ImbalancedDatasetSampler(
        people(8), seed=5),
    "NaiveIdentitySampler": lambda: samplers.NaiveIdentitySampler(people(8), 16, 4, seed=5),
    "BalancedIdentitySampler": lambda: samplers.BalancedIdentitySampler(people(8), 16, 4, seed=5),
}


def drawn_around(make):
    """Numbers drawn from NumPy's global state while a sampler is in use, and its indices."""
    np.random.seed(1)
    torch.manual_seed(1)  # one sampler draws from torch
    numbers, indices, source = [], [], iter(make())
    for _ in range(70):
        indices.append(int(next(source)))
        numbers.append(np.random.rand())
    return numbers, indices


@pytest.mark.parametrize("name", MAKERS)
def test_samplers_keep_numpys_global_state(name):
    np.random.seed(1)
    undisturbed = [np.random.rand() for _ in range(70)]
    numbers, indices = drawn_around(MAKERS[name])
    assert numbers == undisturbed
    with compat.without("sampler_state"):
        assert drawn_around(MAKERS[name])[0] != undisturbed
        torch.manual_seed(1)
        alone = [int(i) for i in itertools.islice(iter(MAKERS[name]()), 70)]
    assert indices == alone  # what the toolbox's sampler draws when nobody else does
    assert len(set(indices)) > 8


class Spins(Exception):
    """The sampler has gone round a thousand times without an index."""


@pytest.fixture
def bounded(monkeypatch):
    """Ends what would be an endless loop: each of these is called in every round of one."""
    def limited(original):
        calls = itertools.count()

        def call(*args, **kwargs):
            if next(calls) > 1000:
                raise Spins
            return original(*args, **kwargs)

        return call

    monkeypatch.setattr(np.random, "permutation", limited(np.random.permutation))
    monkeypatch.setattr(copy, "deepcopy", limited(copy.deepcopy))


IDENTITY_SAMPLERS = [samplers.NaiveIdentitySampler, samplers.BalancedIdentitySampler]


@pytest.mark.parametrize("identities, batch, says", [
    (3, 64, r"needs 16 identities.* has 3: .*SOLVER\.IMS_PER_BATCH.*DATALOADER\.NUM_INSTANCE"),
    (8, 10, "batch of 10 images.*NUM_INSTANCE 4")], ids=["too few identities", "no multiple"])
@pytest.mark.parametrize("sampler", IDENTITY_SAMPLERS)
def test_a_batch_that_cannot_be_filled_is_an_error(sampler, identities, batch, says, bounded):
    with pytest.raises(ValueError, match=says):
        sampler(people(identities), batch, 4)
    with compat.without("sampler_hang"), pytest.raises(Spins):
        next(iter(sampler(people(identities), batch, 4)))


@pytest.mark.parametrize("images", [1, 9])
@pytest.mark.parametrize("sampler", IDENTITY_SAMPLERS)
def test_just_enough_identities_give_batches(sampler, images, bounded):
    items = people(4, images)
    drawn = list(itertools.islice(iter(sampler(items, 16, 4)), 48))
    for start in range(0, 48, 16):
        identities = [items[i][1] for i in drawn[start:start + 16]]
        assert sorted(identities) == sorted(4 * [f"id_{i}" for i in range(4)])


@pytest.mark.parametrize("sampler", IDENTITY_SAMPLERS)
def test_every_process_counts(sampler, bounded, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="needs 8 identities.* has 7"):
        sampler(people(7), 16, 4, seed=1)
    assert len(list(itertools.islice(iter(sampler(people(8), 16, 4, seed=1)), 32))) == 32


def test_a_batch_follows_the_model_to_its_device(make_model):
    """With the device "meta", which needs no hardware and refuses to mix as CUDA does."""
    model = make_model().to("meta").eval()
    batch = {"images": torch.rand(2, 3, 32, 16), "targets": torch.zeros(2, dtype=torch.long)}
    assert model(batch).device.type == "meta"
    with compat.without("batch_on_other_device"), pytest.raises(RuntimeError, match="device"):
        model(batch)
