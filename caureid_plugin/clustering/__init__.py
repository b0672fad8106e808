"""Pseudo labels by clustering: k-reciprocal Jaccard distances and DBSCAN, in sparse form.

The stages:

1. :mod:`.inputs`: features and parameters are checked, features become float32.
   :mod:`.standardize` may take away before what a camera adds to them.
2. :mod:`.neighbors`: nearest neighbours under squared L2, by :mod:`.exact_search`,
   :mod:`.projected_search` or :mod:`.faiss_search`, in one process or several;
   :mod:`.memory` says what it will need. :mod:`.lists` puts the lists together, plain or
   camera-aware.
3. :mod:`.encoding`: k-reciprocal sets, their weights and the query expansion.
4. :mod:`.jaccard`: every pair within ``eps``.
5. :mod:`.pseudo_labels`: DBSCAN on that graph, labels in order of first appearance.
   :mod:`.eps` does 4 and 5 for several values of ``eps`` at once and suggests one,
   :mod:`.reliability` drops images whose cluster changes too much from one to the next.
   :mod:`.indicators` tells without identities how good they may be. :mod:`.tracks` does it for
   tracks, of which some cannot be one person.

:mod:`.kernels` holds the compiled loops, :mod:`.threads` runs them.

Letters in the docstrings: N images, D embedding size, K clusters.
"""

from .eps import suggest_eps, sweep_eps
from .indicators import camera_shares, label_indicators, silhouette, silhouettes, stability
from .jaccard import jaccard_distances, jaccard_encoding, jaccard_graph, pairs_within
from .neighbors import Search, search_by_camera, search_neighbors
from .pseudo_labels import (
    assign_pseudo_labels,
    cluster_graph,
    label_statistics,
    labels_at,
    outliers_to_singletons,
)
from .reliability import reliable_labels
from .standardize import standardize_by_camera
from .tracks import Tracks, cluster_tracks

__all__ = [
    "Search", "Tracks", "assign_pseudo_labels", "camera_shares", "cluster_graph",
    "cluster_tracks", "jaccard_distances",
    "jaccard_encoding", "jaccard_graph", "label_indicators", "label_statistics", "labels_at",
    "outliers_to_singletons", "pairs_within", "reliable_labels", "search_by_camera",
    "search_neighbors", "silhouette", "silhouettes", "stability",
    "standardize_by_camera", "suggest_eps", "sweep_eps",
]
