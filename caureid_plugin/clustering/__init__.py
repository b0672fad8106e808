"""Pseudo labels by clustering: k-reciprocal Jaccard distances and DBSCAN, in sparse form.

The stages, each a function of its own:

1. :mod:`.inputs`: features and parameters are checked, features become float32.
2. :mod:`.neighbors`: exact nearest neighbours under squared L2.
3. :mod:`.jaccard`: k-reciprocal encoding, then every pair within ``eps``.
4. :mod:`.pseudo_labels`: DBSCAN on that graph, labels in order of first appearance.

Letters in the docstrings: N images, D embedding size, K clusters.
"""

from .jaccard import jaccard_graph
from .labels import label_statistics, outliers_to_singletons
from .neighbors import search_neighbors
from .pseudo_labels import assign_pseudo_labels

__all__ = [
    "assign_pseudo_labels", "jaccard_graph", "label_statistics", "outliers_to_singletons",
    "search_neighbors",
]
