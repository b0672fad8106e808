"""Feature generators and the plain-loop Jaccard distances for the clustering tests."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def make_features():
    """Features with identity and camera structure, as embeddings of a person have."""

    def make(n, dim=32, *, per_identity=12, cameras=4, noise=0.5, normalise=True, seed=0):
        rng = np.random.default_rng(seed)
        identities = np.arange(n) // per_identity
        appearance = rng.normal(size=(identities[-1] + 1, dim))[identities]
        style = rng.normal(size=(cameras, dim))[rng.integers(0, cameras, n)]
        features = appearance + 0.5 * style + noise * rng.normal(size=(n, dim))
        if normalise:
            features /= np.linalg.norm(features, axis=1, keepdims=True)
        order = rng.permutation(n)
        return features[order].astype(np.float32), identities[order]

    return make


@pytest.fixture(scope="session")
def plain():
    """The module ``plain.py`` beside this file; importlib mode puts no test folder on the path."""
    path = Path(__file__).with_name("plain.py")
    spec = importlib.util.spec_from_file_location("plain_clustering", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def plain_jaccard(plain):
    """Dense (N, N) distances by loops, from features, their neighbour lists (N, k1) and k2."""
    return plain.jaccard_from_ranks


@pytest.fixture
def to_dense():
    """A sparse graph as a dense array, with ``fill`` where nothing is stored."""

    def dense(graph, fill):
        result = np.full(graph.shape, fill, dtype=np.float64)
        for i in range(graph.shape[0]):
            for entry in range(graph.indptr[i], graph.indptr[i + 1]):
                result[i, graph.indices[entry]] = graph.data[entry]
        return result

    return dense
