"""What a prediction says of its regions, and the bounds that each part declares."""

import math

import numpy as np
import pytest
import torch
from fakes import predicted
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import slow_features, slow_histogram

from al_seg_env import EnvConfig
from al_seg_env.observation.features import (
    ClassDistribution,
    KLSimilarity,
    PooledEntropy,
    feature_bounds,
    paper_features,
    paper_similarity,
)
from al_seg_env.regions import RegionGrid


def prediction(seed=0, size=(11, 14), region_size=(4, 5), classes=3, scale=3.0):
    """Logits of two images, and what a prediction says of all their regions."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, *size, generator=generator) * scale
    return logits, predicted(logits, RegionGrid(size, region_size))


def test_the_papers_features_are_shares_and_three_poolings_in_order():
    features = paper_features(EnvConfig())
    assert [f.name for f in features] == ["class_shares", *(f"entropy_{m}_8x8" for m in ("min", "avg", "max"))]
    logits, made = prediction()
    found = torch.cat([feature(made) for feature in features], dim=1)
    for image, rows in zip(logits, found.chunk(2), strict=True):
        np.testing.assert_allclose(rows, slow_features(image, (4, 5))[0], atol=2e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    classes=st.integers(1, 6),
    scale=st.sampled_from([0.0, 1.0, 100.0]),
    region_size=st.tuples(st.integers(1, 11), st.integers(1, 14)),
    normalised=st.booleans(),
)
def test_features_keep_the_bounds_and_sizes_that_they_declare(seed, classes, scale, region_size, normalised):
    _, made = prediction(seed, region_size=region_size, classes=classes, scale=scale)
    features = [ClassDistribution(normalised), *(PooledEntropy(mode, 3) for mode in ("min", "avg", "max"))]
    for feature in features:
        low, high = feature_bounds([feature], classes, region_size)
        values = feature(made).numpy()
        assert low.dtype == high.dtype == values.dtype == np.float32
        assert values.shape == (made.regions.count, len(low))
        assert (values >= low - 1e-6).all()
        assert (values <= high + 1e-5).all()


def test_bounds_lie_side_by_side():
    low, high = feature_bounds([ClassDistribution(False), PooledEntropy("max", 2)], 3, (4, 5))
    assert low.tolist() == [0.0] * 7
    assert high.tolist() == pytest.approx([20.0] * 3 + [math.log(3)] * 4)


def test_maps_are_computed_once():
    _, made = prediction()
    assert made.entropy is made.entropy
    assert made.class_counts is made.class_counts


def test_a_prediction_without_a_sampler_says_so():
    with pytest.raises(ValueError, match="was made without a sampler"):
        prediction()[1].samples(3)


def shares(rows, seed):
    return torch.from_numpy(np.random.default_rng(seed).dirichlet([0.4] * 3, size=rows)).float()


@pytest.mark.parametrize("edges", ["fixed", "row"])
@pytest.mark.parametrize("own", [True, False])
def test_similarity_is_to_the_labelled_then_to_the_pools(edges, own):
    candidates, labelled = shares(6, 0), shares(4, 1)
    similarity = KLSimilarity(("labelled", "unlabelled"), 5, edges, own)
    expected = [
        slow_histogram(candidates.double().numpy(), labelled.double().numpy(), 5, edges),
        slow_histogram(candidates.double().numpy(), candidates.double().numpy(), 5, edges, own=not own),
    ]
    found = similarity(candidates, labelled)
    assert found.shape == (6, similarity.size) == (6, 10)
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), atol=1e-6)


def test_similarity_as_configured():
    assert paper_similarity(EnvConfig(similarity=())) is None
    config = EnvConfig(similarity=("unlabelled",), kl_bins=7, kl_edges="row", kl_own=True)
    assert paper_similarity(config) == KLSimilarity(("unlabelled",), 7, "row", True)
    assert paper_similarity(config).name == "kl_unlabelled_7_row_own"


def test_layouts_that_mean_something_else_are_named_differently():
    names = [
        paper_similarity(EnvConfig(**options)).name
        for options in ({}, {"kl_edges": "row"}, {"kl_bins": 5}, {"similarity": ("labelled",)}, {"kl_own": True})
    ]
    assert len(set(names)) == len(names)
