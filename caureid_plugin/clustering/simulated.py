"""Simulated embeddings of people seen by cameras, to test and to time clustering on.

White noise would be a poor stand-in: its images have no mutual neighbours to speak of. Here an
image is the sum, in a latent space, of a vector of its identity, an offset of its camera and noise
of its own, mapped to D values by a random matrix as the last layer of a network would map it, with
a little noise added there, cut off below 0 (ReLU) and normalised. The defaults are set so that
DBSCAN finds most identities, splits or misses some, and leaves a few per cent as outliers.

Letters: N images, D embedding size, L latent size.
"""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np
from threadpoolctl import threadpool_limits

# Every block has a random stream of its own: temporary arrays stay small whatever N.
ROWS_PER_BLOCK = 2048
SIZE_SHAPE = 3.0  # of the Gamma distribution of identities' sizes: spread like Market-1501's


def simulate_features(n: int, dim: int, *, cameras: int = 6, per_identity: float = 17,
                      seed: int = 0, latent: int = 64, style: float = 0.6, noise: float = 0.6,
                      isotropic: float = 0.25) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features with the structure of people and cameras, made block by block.

    Beyond the result it takes some tens of MiB. The bits depend only on the arguments, not on
    the number of threads.

    Args:
        n: N, images.
        dim: D, size of a feature.
        cameras: each image is from one of them, all equally likely.
        per_identity: mean number of images of an identity. Sizes differ: images fall on
            identities in proportion to weights drawn from a Gamma distribution of shape 3.
        seed: of everything random, >= 0.
        latent: L, dimensions in which identities and cameras differ.
        style: standard deviation of the cameras' offsets; that of identities is 1.
        noise: standard deviation of an image's own part, in the latent space.
        isotropic: standard deviation of the noise added to each of the D values.

    Returns:
        Features (N, D) float32, rows of length 1; identities (N,) int64, 0 to their number - 1,
        in no order; camids (N,) int64.

    Raises:
        ValueError: an argument out of its range.
    """
    _check(n=n, dim=dim, cameras=cameras, latent=latent)
    _check_numbers(per_identity, seed, style=style, noise=noise, isotropic=isotropic)
    rng = np.random.default_rng([seed, 0])
    identities = _draw_identities(rng, n, max(1, round(n / per_identity)))
    camids = rng.integers(cameras, size=n)
    people = rng.standard_normal((identities.max() + 1, latent), dtype=np.float32)
    styles = style * rng.standard_normal((cameras, latent), dtype=np.float32)
    # columns' variance does not grow with L
    mapping = rng.standard_normal((latent, dim), dtype=np.float32) / np.float32(np.sqrt(latent))
    features = np.empty((n, dim), dtype=np.float32)
    # a BLAS may add up in another order with another number of threads
    with threadpool_limits(limits=1, user_api="blas"):
        for number, start in enumerate(range(0, n, ROWS_PER_BLOCK)):
            rows = slice(start, start + ROWS_PER_BLOCK)
            block_rng = np.random.default_rng([seed, 1, number])
            means = people[identities[rows]] + styles[camids[rows]]
            means += noise * block_rng.standard_normal(means.shape, dtype=np.float32)
            fill_polygon(features[rows], means @ mapping, isotropic, block_rng)
    return features, identities, camids


def _draw_identities(rng: np.random.Generator, n: int, count: int) -> np.ndarray:
    """(N,) identities 0 .. K-1, each of which occurs; K is ``count`` or a little less."""
    weights = rng.gamma(SIZE_SHAPE, size=count)
    drawn = rng.choice(count, size=n, p=weights / weights.sum())
    return np.unique(drawn, return_inverse=True)[1].reshape(n)


def fill_polygon(block: np.ndarray, means: np.ndarray, isotropic: float,
          rng: np.random.Generator) -> None:
    """Puts ``means`` plus noise, cut off below 0 and normalised, into ``block`` (R, D)."""
    rng.standard_normal(dtype=np.float32, out=block)
    block *= np.float32(isotropic)
    block += means
    np.maximum(block, 0, out=block)
    lengths = np.sqrt(np.einsum("rd,rd->r", block, block))
    block[lengths == 0, 0] = 1  # only where D is tiny: nothing was above 0
    lengths[lengths == 0] = 1
    block /= lengths[:, None]


def _check(**counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be an integer >= 1, got {value!r}")


def _check_numbers(per_identity: float, seed: int, **deviations: float) -> None:
    if not isinstance(per_identity, Real) or not 1 <= per_identity < np.inf:
        raise ValueError(f"per_identity must be a number >= 1, got {per_identity!r}")
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed must be an integer >= 0, got {seed!r}")
    for name, value in deviations.items():
        if not isinstance(value, Real) or not 0 <= value < np.inf:
            raise ValueError(f"{name} must be a number >= 0, got {value!r}")
