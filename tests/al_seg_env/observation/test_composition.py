"""What a region may hold and what is labelled, against slow references and by hand."""

import numpy as np
import pytest
import torch
from fakes import SPLITS, closed_form_env, numbered_data, same
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import slow_boxes
from scipy.special import entr, softmax

from al_seg_env.observation.composition import (
    ClassEntropy,
    Labelled,
    Location,
    MaxProbability,
    MeanProbability,
    class_rewards,
    label_levels,
    sub_rewards,
)
from al_seg_env.observation.features import Prediction, feature_bounds
from al_seg_env.observation.region_pixels import RegionPixels
from al_seg_env.regions import RegionGrid

SIZE, REGION = (11, 14), (4, 5)
GRID = RegionGrid(SIZE, REGION)
FEATURES = [MeanProbability(), MeanProbability(root=True), MaxProbability(), ClassEntropy(), Location(GRID.shape)]
FEATURES += [Labelled()]


def predicted(logits, levels):
    images = np.repeat(np.arange(len(logits)), GRID.regions_per_image)
    cells = np.tile(np.arange(GRID.regions_per_image), len(logits))
    pixels = RegionPixels(GRID, images, cells, logits.device)
    return Prediction(pixels.gather(logits), pixels, label_levels=torch.from_numpy(levels))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), classes=st.integers(1, 6), scale=st.sampled_from([0.0, 1.0, 100.0]))
def test_features_are_those_of_a_slow_reference_and_within_their_bounds(seed, classes, scale):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, *SIZE, generator=generator) * scale
    levels = label_levels(np.random.default_rng(seed).integers(0, 10**6, classes), REGION)
    made = predicted(logits, levels)
    rows = []
    for image in logits.double().numpy():
        p = softmax(image, axis=0)
        for cell, (top, bottom, left, right) in enumerate(slow_boxes(SIZE, REGION)):
            part = p[:, top:bottom, left:right].reshape(classes, -1)
            row, column = divmod(cell, GRID.shape[1])
            place = [float(row == r) for r in range(GRID.shape[0])] + [float(column == c) for c in range(GRID.shape[1])]
            mean = part.mean(axis=1)
            highest, spread = part.max(axis=1), entr(part).mean(axis=1)
            rows.append([*mean, *np.sqrt(mean), *highest, *spread, *place, *levels])
    found = torch.cat([feature(made) for feature in FEATURES], dim=1).numpy()
    np.testing.assert_allclose(found, rows, atol=1e-4)
    low, high = feature_bounds(FEATURES, classes, REGION)
    assert (low - 1e-6 <= found).all()
    assert (found <= high + 1e-5).all()


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
def test_levels_are_logarithms_of_labelled_regions_within_their_bounds(counts):
    found = label_levels(np.array(counts), REGION)
    np.testing.assert_allclose(np.exp(found.astype(float)) - 1, np.array(counts) / 20, rtol=1e-4, atol=1e-5)
    low, high = Labelled().bounds(len(counts), REGION)
    assert (low <= found).all()
    assert (found <= high).all()


@given(seed=st.integers(0, 1000), split=st.integers(0, 12))
def test_sub_rewards_are_the_rise_of_levels_and_a_mix_raises_them_more(seed, split):
    before = np.random.default_rng(seed).integers(0, 50, 3)
    held = np.array([[12, 0, 0], [12 - split, split, 0]])
    found = sub_rewards(class_rewards(held, (3, 4)), label_levels(before, (3, 4)))
    after = [label_levels(before + row, (3, 4)).astype(float).sum() for row in held]
    np.testing.assert_allclose(found, np.array(after) - label_levels(before, (3, 4)).astype(float).sum(), atol=1e-5)
    one, two = sub_rewards(class_rewards(held, (3, 4)), np.zeros(3, np.float32))
    assert two >= one - 1e-6


# Through the environment


def test_sub_rewards_are_what_the_labels_of_each_region_add_to_those_of_before():
    data = numbered_data(void=0.2)
    env = closed_form_env(data=data, sub_rewards=True)
    _, info = env.reset(seed=0)
    assert info["sub_rewards"] == ()
    before = sum(np.bincount(data.mask(i).reshape(-1), minlength=256)[:3] for i in SPLITS.state)
    for _ in range(3):
        *_, info = env.step(np.array([1, 2, 3]))
        counted = []
        for region in info["chosen"]:
            box = env.grid.box(region)
            mask = data.mask(box.image)[box.top : box.bottom, box.left : box.right]
            counted.append([(mask == c).sum() for c in range(3)])
        expected = [np.log((80 + before + counts) / (80 + before)).sum() for counts in np.array(counted)]
        np.testing.assert_allclose(info["sub_rewards"], expected, rtol=1e-4)
        np.testing.assert_allclose(info["class_rewards"], np.array(counted) / 80, rtol=1e-6)
        before = before + np.sum(counted, axis=0)


def test_sub_rewards_are_of_the_classes_that_the_reward_counts():
    parts = []
    for counted in (["road"], ["car", "sky"], []):
        env = closed_form_env(sub_rewards=True, reward_classes=counted)
        env.reset(seed=0)
        parts.append(np.array(env.step(np.zeros(3, np.int64))[-1]["sub_rewards"]))
    np.testing.assert_allclose(parts[0] + parts[1], parts[2], rtol=1e-5)
    assert (parts[0] > 0).any()


def test_the_levels_in_an_observation_follow_the_labels_and_a_reset_forgets_them():
    env = closed_form_env(region_features=["labelled"], class_distribution=None, entropy_pools=[], similarity=[])
    first, _ = env.reset(seed=0)
    assert env.observation_space.contains(first)
    data = env.data
    known = sum(np.bincount(data.mask(i).reshape(-1), minlength=256)[:3] for i in SPLITS.state)
    region = env.grid.region_size
    np.testing.assert_allclose(first["candidates"], np.broadcast_to(label_levels(known, region), (3, 4, 3)), rtol=1e-6)
    second, *_, info = env.step(np.zeros(3, np.int64))
    np.testing.assert_allclose(second["state"][0], label_levels(known + info["label_counts"], region), rtol=1e-6)
    assert not np.allclose(second["candidates"], first["candidates"])
    again, _ = env.reset(seed=0)
    assert same(again, first)


def test_images_labelled_before_can_be_named():
    counted = []
    for name in ("state", "train"):
        env = closed_form_env(split="eval", labelled_before=name, region_features=["labelled"])
        counted.append(env.observer.known_counts.sum())
    assert counted == [2 * 32 * 40, 3 * 32 * 40]


def test_an_embedding_needs_stored_features():
    with pytest.raises(ValueError, match="'embedding' and 'surroundings' need stored features; use trainable='decod"):
        closed_form_env(region_features=["surroundings"])


def test_unknown_features_are_refused():
    with pytest.raises(ValueError, match="region_features is .*expected a list of different ones out of"):
        closed_form_env(region_features=["colour"])
