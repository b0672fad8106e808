"""Using what was trained: embeddings of images, comparison, search."""

from ..runs.folder import RunError
from ..runs.threshold import Expected, PairStatistics, RunVerdict, Threshold
from .embedder import Comparison, Embedder, load_run
from .index import Hit, Index
from .index_files import Entry, IndexRefused
from .network import EmbeddingNetwork
from .preprocessing import ImageLike, Preprocessing

__all__ = [
    "Comparison", "Embedder", "EmbeddingNetwork", "Entry", "Expected", "Hit", "ImageLike", "Index",
    "IndexRefused", "PairStatistics", "Preprocessing", "RunError", "RunVerdict", "Threshold",
    "load_run",
]
