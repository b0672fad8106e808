"""Camera-aware P x K sampling of clusters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from ..common.errors import UserError

# Of a cluster with more than this many images for each one to draw, a random part is looked at: a
# batch must not take longer because clusters are large.
IMAGES_LOOKED_AT = 16

CAMERAS = ("mixed", "one")


class Draw(NamedTuple):
    """One image to load: its row, and the seed of its augmentations.

    With the seed travelling along, an image is augmented alike whichever worker loads it, so that
    a run does not depend on the number of workers.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    seed: int


def check_batch(batch_size: int, num_instances: int, world_size: int = 1,
                cameras: str = "mixed") -> None:
    """Checks that each process's part of a batch is made of whole units of ``num_instances``.

    Raises:
        ValueError: it is not, or ``cameras`` is unknown; names the keys.
    """
    if cameras not in CAMERAS:
        raise UserError(f"DATALOADER.CAMERAS {cameras!r} is unknown, known are {CAMERAS}.")
    if batch_size < 1 or num_instances < 1:
        raise UserError(f"SOLVER.IMS_PER_BATCH {batch_size} and DATALOADER.NUM_INSTANCE "
                        f"{num_instances} must be positive.")
    if batch_size % world_size or batch_size // world_size % num_instances:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {batch_size} over {world_size} process(es) is not divisible "
            f"by DATALOADER.NUM_INSTANCE {num_instances}: change one of the two.")


def why_only_copies(labels: np.ndarray, camids: np.ndarray, num_instances: int) -> str | None:
    """Why one camera a draw gives nothing but copies of single images; None: it does not.

    Args:
        labels: (N,) clusters, -1 for outliers.
        camids: (N,) cameras.
        num_instances: images of a unit.
    """
    pairs = Counter(zip(np.asarray(labels).tolist(), np.asarray(camids).tolist(), strict=True))
    if num_instances == 1 or max((n for (label, _), n in pairs.items() if label >= 0),
                                 default=2) > 1:
        return None
    return ("no two images of a cluster come from one camera, so that with DATALOADER.CAMERAS one "
            f"each draw would be {num_instances} copies of an image. Set DATALOADER.CAMERAS mixed.")


class ClusterSampler(Sampler[Draw]):
    """Endless batches of P units with K neighbouring images each.

    With cameras "mixed", a unit is K images of one cluster, taken from as many cameras as
    possible. With "one" it is K images of a cluster under one camera, and each pair of a cluster
    and a camera that has images in it makes a unit. In both, a cluster of one image needs no
    second copy of it in the batch: a unit may also be K different single-image clusters (with
    "one", of one camera). No unit is drawn twice within a pass over all of them; what does not
    fill a batch is left out. With fewer units than P, a batch repeats units (with other images
    where there are any), so that few clusters never stop or hang a run. Where tracks are known, a
    unit has images of as many different ones as possible, before cameras count.

    "one" draws as CAP does (Wang et al., "Camera-aware Proxies for Unsupervised Person
    Re-Identification", AAAI 2021, arXiv 2012.10674; ``ClassUniformlySampler`` of its code, given
    the pairs as classes). From there come the units, the pass that draws each pair once in
    random order, and the repetition of images in a pair of fewer than K. So a batch may hold a
    cluster several times, each time under another camera. Ours are the even repetition (there, a
    random part of K copies of all) and the shared units of single-image clusters (there, outliers
    are not drawn).

    Args:
        labels: (N,) clusters 0..K-1, -1 for images that are not drawn.
        camids: (N,) cameras.
        batch_size: images per batch over all processes.
        num_instances: K.
        seed: of every random choice; one number or several (run, epoch).
        cameras: "mixed" or "one".
        tracks: (N,) the track of each image; None: each image is one.
        skip_batches: batches that are drawn and left out first.
        rank, world_size: this process takes the rank-th contiguous part of each batch.

    Yields:
        :class:`Draw`, ``batch_size // world_size`` of them for each batch.

    Raises:
        ValueError: a batch that K or the number of processes does not divide, or one without
            images; no cluster; labels and cameras of different lengths; unknown ``cameras``, or
            "one" where each pair of a cluster and a camera is a single image.
    """

    def __init__(self, labels: np.ndarray, camids: np.ndarray, *, batch_size: int,
                 num_instances: int, seed: int | Sequence[int], cameras: str = "mixed",
                 tracks: np.ndarray | None = None, rank: int = 0, world_size: int = 1,
                 skip_batches: int = 0) -> None:
        check_batch(batch_size, num_instances, world_size, cameras)
        if len(labels) != len(camids):
            raise UserError(f"{len(labels)} labels for {len(camids)} cameras.")
        local = batch_size // world_size
        members: dict[tuple[int, int], list[int]] = {}
        sizes = Counter(np.asarray(labels).tolist())
        for index, (label, camera) in enumerate(zip(
                np.asarray(labels).tolist(), np.asarray(camids).tolist(), strict=True)):
            if label >= 0:
                pair = (label, camera if cameras == "one" else 0)
                members.setdefault(pair, []).append(index)
        if not members:
            raise UserError("No cluster to draw from, every image is an outlier: raise "
                            "CAUREID.CLUSTER.EPS or lower CAUREID.CLUSTER.MIN_SAMPLES.")
        if cameras == "one" and (problem := why_only_copies(labels, camids, num_instances)):
            raise UserError(problem[0].upper() + problem[1:])
        self._camids, self._has_tracks = np.asarray(camids), tracks is not None
        self._tracks = np.arange(len(labels)) if tracks is None else np.asarray(tracks)
        self._groups: list[list[int]] = []  # of each, K images make a unit
        singles: dict[int, list[int]] = {}  # single-image clusters that may share a unit
        for (label, camera), images in sorted(members.items()):
            if sizes[label] > 1:
                self._groups.append(images)
            else:
                singles.setdefault(camera, []).extend(images)
        self._singles = [images for _, images in sorted(singles.items())]
        self._num_units, self._num_instances = batch_size // num_instances, num_instances
        self._part = slice(rank * local, (rank + 1) * local)
        self._seed, self._skip = seed, skip_batches

    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng(self._seed)
        for number, batch in enumerate(self._batches(rng)):
            seeds = rng.integers(2**31, size=len(batch))
            if number < self._skip:
                continue
            draws = [Draw(int(index), int(seed))
                     for index, seed in zip(batch, seeds, strict=True)]
            yield from draws[self._part]

    @property
    def num_units(self) -> int:
        """Units in one pass over all clusters."""
        return len(self._groups) + sum(
            -(-len(images) // self._num_instances) for images in self._singles)

    def _batches(self, rng: np.random.Generator) -> Iterator[list[int]]:
        waiting: list[list[int]] = []
        while True:
            # a whole pass at a time; its remainder is dropped, so that no batch holds a unit
            # twice unless there are fewer than P
            if self.num_units >= self._num_units:
                waiting = []
            waiting += self._one_pass(rng)
            while len(waiting) >= self._num_units:
                units, waiting = waiting[:self._num_units], waiting[self._num_units:]
                yield [index for unit in units for index in unit]

    def _one_pass(self, rng: np.random.Generator) -> list[list[int]]:
        units = [self._images_of(group, rng) for group in self._groups]
        for images in self._singles:
            singles = rng.permutation(images).tolist()
            for start in range(0, len(singles), self._num_instances):
                unit = singles[start:start + self._num_instances]
                units.append((unit * self._num_instances)[:self._num_instances])
        return [units[i] for i in rng.permutation(len(units))]

    def _images_of(self, group: list[int], rng: np.random.Generator) -> list[int]:
        """K images of a group, one track and one camera after the other; repeated only if there
        are fewer."""
        most = IMAGES_LOOKED_AT * self._num_instances
        if len(group) > most and self._has_tracks:  # a long track must not hide the others
            whole = rng.permutation(group)
            by_track = np.argsort(_turns(self._tracks[whole]), kind="stable")
            group = whole[by_track[:most]].tolist()
        elif len(group) > most:
            group = [group[i] for i in rng.choice(len(group), most, replace=False)]
        shuffled = rng.permutation(group)
        by_track = np.argsort(_turns(self._tracks[shuffled]), kind="stable")
        shuffled = shuffled[by_track]
        turns = _turns(self._tracks[shuffled]), _turns(self._camids[shuffled])
        return np.resize(shuffled[np.lexsort(turns[::-1])], self._num_instances).tolist()


def _turns(values: np.ndarray) -> np.ndarray:
    """How often each value has been there, itself included: [7, 7, 9] gives [1, 2, 1]."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    turns = np.empty(len(values), dtype=np.int64)
    turns[order] = np.arange(1, len(values) + 1) - np.searchsorted(ranked, ranked)
    return turns
