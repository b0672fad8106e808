"""SpCL's criterion: which images stay in their cluster because it hardly depends on eps.

Ge et al., "Self-paced Contrastive Learning with Hybrid Memory for Domain Adaptive Object Re-ID"
(NeurIPS 2020, arXiv 2006.02713), section 3.2, as their code counts.

Letters: N images. I(i) are the images of i's cluster; an outlier is alone in its own. An image has

- an independence, ``|I(i) & I_looser(i)| / |I(i) | I_looser(i)|``: low if clusters run together at
  a larger eps,
- a compactness, the same at a smaller eps: low if the cluster falls apart there.

An image stays in its cluster if the largest independence in the cluster reaches a threshold, and
its own compactness is the largest in the cluster. So the largest part of a cluster that falls apart
stays. A cluster that dissolves into outliers stays whole, as all its images are equally compact.
The threshold belongs to a whole run: about nine tenths of the first clustering's clusters reach it.

The paper has a threshold for the compactness too; its code has this rule, which is taken from
there. Ours is that one image that is left is no cluster, and that clusters are numbered anew.
"""

from __future__ import annotations

import numpy as np

from .pseudo_labels import number_by_appearance, outliers_to_singletons

# Share of the first clustering's clusters that set the threshold of independence (SpCL's code).
INDEPENDENT_SHARE = 0.9


def reliable_labels(labels: np.ndarray, *, tighter: np.ndarray, looser: np.ndarray,
                    threshold: float | None = None) -> tuple[np.ndarray, float | None]:
    """Makes outliers of the images whose cluster changes too much with eps.

    Args:
        labels: (N,) clusters 0..K-1, -1 for outliers, at the eps in use.
        tighter, looser: (N,) labels of the same images at a smaller and at a larger eps (SpCL:
            0.02 less and more).
        threshold: what this function returned at the first clustering; None: this is the first.

    Returns:
        (N,) int64 labels, clusters 0..K-1 in order of first appearance, -1 for outliers; and the
        threshold to give to the next call, None as long as there has been no cluster.

    Raises:
        ValueError: labels of different lengths.

    Example:
        A cluster that falls into three and two images; another one, which stays as it is.

        >>> labels = np.array([0, 0, 0, 0, 0, 1, 1])
        >>> tighter = np.array([0, 0, 0, 1, 1, 2, 2])
        >>> kept, _ = reliable_labels(labels, tighter=tighter, looser=labels)
        >>> kept.tolist()
        [0, 0, 0, -1, -1, 1, 1]
    """
    labels = np.asarray(labels, dtype=np.int64)
    lengths = {len(labels), len(tighter), len(looser)}
    if len(lengths) > 1:
        raise ValueError(f"Labels at three eps must be of the same images, got {len(labels)}, "
                         f"{len(tighter)} (tighter) and {len(looser)} (looser).")
    inlier = np.flatnonzero(labels >= 0)
    clusters = labels[inlier]
    independence = _largest(_overlap(labels, looser)[inlier], clusters)
    compactness = _overlap(labels, tighter)[inlier]
    if threshold is None:
        threshold = _first_threshold(independence[np.bincount(clusters) > 1])
    if threshold is None:
        return np.full_like(labels, -1), None
    stays = ((independence[clusters] >= threshold)
             & (compactness >= _largest(compactness, clusters)[clusters]))
    stays &= np.bincount(clusters[stays], minlength=len(independence))[clusters] > 1
    kept = np.full_like(labels, -1)
    kept[inlier[stays]] = clusters[stays]
    return number_by_appearance(kept), threshold


def _overlap(labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) intersection over union of the clusters that an image has in two clusterings.

    Equal ratios are equal numbers, whatever they are ratios of.
    """
    one, other = outliers_to_singletons(labels), outliers_to_singletons(others)
    pairs = one * (other.max(initial=0) + 1) + other
    _, pair, counts = np.unique(pairs, return_inverse=True, return_counts=True)
    shared = counts[pair]
    return shared / (np.bincount(one)[one] + np.bincount(other)[other] - shared)


def _largest(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """(K,) the largest value in each cluster 0..K-1."""
    largest = np.zeros(clusters.max(initial=-1) + 1)
    np.maximum.at(largest, clusters, values)
    return largest


def _first_threshold(independence: np.ndarray) -> float | None:
    """The independence at nine tenths of the clusters (K,), the largest first."""
    n = len(independence)
    if not n:
        return None
    return float(np.sort(independence)[::-1][min(n - 1, round(n * INDEPENDENT_SHARE))])
