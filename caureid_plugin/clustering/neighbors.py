"""Exact nearest neighbours of every image under squared L2 distance.

With faiss the search is ``IndexFlatL2``; without it, matrix products in torch, one tile of
queries at a time. Both expand |x - y|^2 = |x|^2 + |y|^2 - 2 x.y in float32.
"""

from __future__ import annotations

from numbers import Integral

import numpy as np
import torch

from .inputs import as_feature_matrix

# Distances held at once by the torch search: 32 MiB of float32, whatever N is.
TILE_ENTRIES = 2**23


def search_neighbors(features: torch.Tensor | np.ndarray, k: int) -> np.ndarray:
    """The k nearest images of every image, nearest first, itself among the candidates.

    An image is its own neighbour at distance 0, so it normally comes first. Images at equal
    distance are ordered as the back end orders them: among duplicates an image need not come
    first, and with more than k of them need not be listed at all.

    Args:
        features: (N, D), any floating dtype.
        k: neighbours per image, 1 <= k <= N.

    Returns:
        (N, k), int64, no index twice in a row.

    Raises:
        ValueError: bad features (the first bad row is named) or ``k`` outside 1..N.
    """
    features = as_feature_matrix(features)
    if not isinstance(k, Integral) or not 1 <= k <= len(features):
        raise ValueError(f"k must be an integer in 1..N with N={len(features)}, got k={k!r}")
    k = int(k)
    try:
        import faiss
    except ImportError:
        return _search_torch(features, k)
    index = faiss.IndexFlatL2(features.shape[1])
    index.add(features)
    return index.search(features, k)[1]


@torch.no_grad()
def _search_torch(features: np.ndarray, k: int) -> np.ndarray:
    features = torch.from_numpy(features)
    squared_norms = features.square().sum(dim=1)
    ranks = torch.empty(len(features), k, dtype=torch.int64)
    rows_per_tile = max(1, TILE_ENTRIES // len(features))
    for start in range(0, len(features), rows_per_tile):
        queries = features[start : start + rows_per_tile]
        # |query|^2 is the same for every candidate of a row, so it cannot change the order.
        distances = torch.addmm(squared_norms, queries, features.T, alpha=-2)
        ranks[start : start + rows_per_tile] = distances.topk(k, largest=False).indices
    return ranks.numpy()
