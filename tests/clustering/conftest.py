"""Features for the clustering tests; ``helpers.plain`` has what they are compared with."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
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
