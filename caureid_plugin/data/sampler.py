"""Camera-aware P x K sampling of clusters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

# Of a cluster with more than this many images for each one to draw, a random part is looked at: a
# batch must not take longer because clusters are large.
IMAGES_LOOKED_AT = 16


class Draw(NamedTuple):
    """One image to load: its row, and the seed of its augmentations.

    With the seed travelling along, an image is augmented alike whichever worker loads it, so that
    a run does not depend on the number of workers.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    seed: int


def check_batch(batch_size: int, num_instances: int, world_size: int = 1) -> None:
    """Checks that each process's part of a batch is made of whole units of ``num_instances``.

    Raises:
        ValueError: it is not; names the keys.
    """
    if batch_size < 1 or num_instances < 1:
        raise ValueError(f"SOLVER.IMS_PER_BATCH {batch_size} and DATALOADER.NUM_INSTANCE "
                         f"{num_instances} must be positive.")
    if batch_size % world_size or batch_size // world_size % num_instances:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {batch_size} over {world_size} process(es) is not divisible "
            f"by DATALOADER.NUM_INSTANCE {num_instances}: change one of the two.")


class ClusterSampler(Sampler[Draw]):
    """Endless batches of P units with K neighbouring images each.

    A unit is K images of one cluster, taken from as many cameras as possible, or K different
    single-image clusters: a cluster of one image needs no second copy of it in the batch. No unit
    is drawn twice within a pass over all of them; what does not fill a batch is left out. With
    fewer units than P, a batch repeats units (with other images where there are any), so that few
    clusters never stop or hang a run.

    Args:
        labels: (N,) clusters 0..K-1, -1 for images that are not drawn.
        camids: (N,) cameras.
        batch_size: images per batch over all processes.
        num_instances: K.
        seed: of every random choice; one number or several (run, epoch).
        skip_batches: batches that are drawn and left out first.
        rank, world_size: this process takes the rank-th contiguous part of each batch.

    Yields:
        :class:`Draw`, ``batch_size // world_size`` of them for each batch.

    Raises:
        ValueError: a batch that K or the number of processes does not divide, or one without
            images; no cluster; labels and cameras of different lengths.
    """

    def __init__(self, labels: np.ndarray, camids: np.ndarray, *, batch_size: int,
                 num_instances: int, seed: int | Sequence[int], rank: int = 0,
                 world_size: int = 1, skip_batches: int = 0) -> None:
        check_batch(batch_size, num_instances, world_size)
        if len(labels) != len(camids):
            raise ValueError(f"{len(labels)} labels for {len(camids)} cameras.")
        local = batch_size // world_size
        members: dict[int, list[int]] = {}
        for index, label in enumerate(np.asarray(labels).tolist()):
            if label >= 0:
                members.setdefault(label, []).append(index)
        if not members:
            raise ValueError("No cluster to draw from, every image is an outlier: raise "
                             "CAUREID.CLUSTER.EPS or lower CAUREID.CLUSTER.MIN_SAMPLES.")
        self._camids = np.asarray(camids)
        self._clusters = [m for _, m in sorted(members.items()) if len(m) > 1]
        self._singles = [m[0] for _, m in sorted(members.items()) if len(m) == 1]
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
        return len(self._clusters) + -(-len(self._singles) // self._num_instances)

    def _batches(self, rng: np.random.Generator) -> Iterator[list[int]]:
        waiting: list[list[int]] = []
        while True:
            # a whole pass at a time; its remainder is dropped, so that no batch holds a cluster
            # twice unless there are fewer units than P
            if self.num_units >= self._num_units:
                waiting = []
            waiting += self._one_pass(rng)
            while len(waiting) >= self._num_units:
                units, waiting = waiting[:self._num_units], waiting[self._num_units:]
                yield [index for unit in units for index in unit]

    def _one_pass(self, rng: np.random.Generator) -> list[list[int]]:
        units = [self._images_of(cluster, rng) for cluster in self._clusters]
        singles = rng.permutation(self._singles).tolist()
        for start in range(0, len(singles), self._num_instances):
            unit = singles[start:start + self._num_instances]
            units.append((unit * self._num_instances)[:self._num_instances])
        return [units[i] for i in rng.permutation(len(units))]

    def _images_of(self, cluster: list[int], rng: np.random.Generator) -> list[int]:
        """K images of a cluster, one camera after the other; repeated only if there are fewer."""
        most = IMAGES_LOOKED_AT * self._num_instances
        if len(cluster) > most:
            cluster = [cluster[i] for i in rng.choice(len(cluster), most, replace=False)]
        shuffled = rng.permutation(cluster)
        seen: dict[int, int] = {}
        turn = []
        for index in shuffled:
            camera = int(self._camids[index])
            seen[camera] = seen.get(camera, 0) + 1
            turn.append(seen[camera])
        by_camera = shuffled[np.argsort(turn, kind="stable")]
        return np.resize(by_camera, self._num_instances).tolist()
