"""Feature generators and a plain-loop Jaccard distance for the clustering tests."""

import math

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


def _plain_encoding(features, lists, k1):
    """One dict {column: weight} per image, straight from the definition."""
    n = len(features)

    def reciprocal(size):
        short = [ranks[:size] for ranks in lists]
        return [{j for j in short[i] if i in short[j]} for i in range(n)]

    full, half = reciprocal(k1), reciprocal(round(k1 / 2) + 1)
    encoding = []
    for i in range(n):
        members = set(full[i])
        for candidate in full[i]:
            if len(half[candidate] & full[i]) > 2 / 3 * len(half[candidate]):
                members |= half[candidate]
        weights = {
            j: math.exp(-sum((float(a) - float(b)) ** 2 for a, b in zip(features[i], features[j])))
            for j in members
        }
        total = sum(weights.values())
        encoding.append({j: weight / total for j, weight in weights.items()})
    return encoding


@pytest.fixture
def plain_jaccard():
    """Dense (N, N) distances by loops, from features and their neighbour lists (N, k1)."""

    def distances(features, ranks, k2):
        n, k1 = ranks.shape
        lists = ranks.tolist()
        encoding = _plain_encoding(features.tolist(), lists, k1)
        if k2 != 1:
            averaged = []
            for i in range(n):
                row = {}
                for j in lists[i][:k2]:
                    for column, weight in encoding[j].items():
                        row[column] = row.get(column, 0.0) + weight / min(k2, n)
                averaged.append(row)
            encoding = averaged
        result = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                shared = encoding[i].keys() & encoding[j].keys()
                t = sum(min(encoding[i][g], encoding[j][g]) for g in shared)
                result[i, j] = 0.0 if i == j else max(0.0, 1 - t / (2 - t))
        return result

    return distances


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
