"""Acquisition scores against sums over the pixels of each region."""

import math

import numpy as np
import pytest
import torch
from fakes import closed_form_env, make, numbered_data, predicted
from reference import slow_boxes, slow_entropy
from scipy.special import softmax
from scipy.stats import entropy

from al_seg_env import BALD, Entropy, Margin, PrivilegedRarity
from al_seg_env.datasets.frames import Frames
from al_seg_env.observation.scores import (
    BalancedMargin,
    Foreground,
    LocationEntropy,
    Rarity,
    RarityEntropy,
    balanced_weights,
    cell_counts,
    class_rarity,
    foreground_classes,
    location_rarity,
)
from al_seg_env.regions import RegionGrid
from al_seg_env.registration import named_scores

SIZE, REGION = (9, 10), (4, 5)


def random_logits(seed, scale=2.0):
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(seed)) * scale


def made(logits, samples=()):
    return predicted(logits, RegionGrid(SIZE, REGION), lambda count: iter(samples[:count]))


def summed(maps):
    return [m[t:b, l:r].sum() for m in maps for t, b, l, r in slow_boxes(SIZE, REGION)]  # noqa: E741


def test_entropy():
    logits = random_logits(0)
    expected = summed([slow_entropy(image) for image in logits])
    np.testing.assert_allclose(Entropy()(made(logits)), expected, rtol=1e-5)


def test_margin():
    logits = random_logits(0)
    p = np.sort(softmax(logits.double().numpy(), axis=1), axis=1)
    np.testing.assert_allclose(Margin()(made(logits)), summed(1 - (p[:, 2] - p[:, 1])), rtol=1e-5)


def test_bald_asks_for_its_number_of_samples():
    samples = [random_logits(seed) for seed in range(5)]
    p = softmax(np.stack([sample.double().numpy() for sample in samples[:4]]), axis=2)
    information = entropy(p.mean(axis=0), axis=1) - entropy(p, axis=2).mean(axis=0)
    np.testing.assert_allclose(BALD(4)(made(samples[0], samples)), summed(information), rtol=1e-4)


def test_scores_that_weigh_classes():
    logits, weights = random_logits(0), (0.5, 1.0, 3.0)
    p = softmax(logits.double().numpy(), axis=1)
    ordered = np.sort(p, axis=1)
    weighted = np.array(weights)[p.argmax(axis=1)] * (1 - (ordered[:, 2] - ordered[:, 1]))
    np.testing.assert_allclose(BalancedMargin(weights)(made(logits)), summed(weighted), rtol=1e-5)
    pixels = np.array(summed(np.ones_like(p[:, 0])))
    rarity = np.array(summed(np.einsum("bchw,c->bhw", p, weights))) / pixels
    np.testing.assert_allclose(Rarity(weights)(made(logits)), rarity, rtol=1e-5)
    uncertainty = np.array(summed([slow_entropy(image) for image in logits])) / pixels
    np.testing.assert_allclose(RarityEntropy(weights)(made(logits)), rarity * uncertainty, rtol=1e-5)
    cells = np.arange(1.0, 1 + RegionGrid(SIZE, REGION).regions_per_image)
    np.testing.assert_allclose(LocationEntropy(tuple(cells))(made(logits)), np.tile(cells, 2) * uncertainty, rtol=1e-5)
    foreground = np.array(summed(p.argmax(axis=1) == 2)) / pixels
    np.testing.assert_allclose(Foreground((False, False, True))(made(logits)), foreground, atol=1e-6)


def test_weights_come_from_labels_known_before_the_episode_alone():
    names = ["balanced_margin", "rarity", "rarity_entropy", "location_entropy", "foreground"]
    env = make(scores=names).unwrapped
    state = cell_counts(env.frames, env.grid, env.splits.state, len(env.data.classes))
    balanced, rarity, rarity_entropy, location, foreground = env.observer.scores
    assert balanced.weights == balanced_weights(state.sum(axis=0))
    assert rarity.weights == rarity_entropy.weights == class_rarity(state.sum(axis=0))
    assert location.weights == location_rarity(state)
    assert foreground.classes == foreground_classes(state.sum(axis=0))
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)


@pytest.mark.parametrize(
    "score",
    [
        Entropy(),
        Margin(),
        BALD(2),
        BalancedMargin((0.5, 1.0, 0.5)),
        Rarity((3.0, 3.0, 3.0)),
        RarityEntropy((3.0, 3.0, 3.0)),
        LocationEntropy((2.0,) * RegionGrid(SIZE, REGION).regions_per_image),
        Foreground((True, True, True)),
    ],
    ids=lambda score: score.name,
)
def test_the_most_uncertain_prediction_reaches_the_bound_and_none_exceeds_it(score):
    flat = torch.zeros(2, 3, *SIZE)
    opposites = [torch.full_like(flat, -1e4).index_fill_(1, torch.tensor([c]), 1e4) for c in (0, 1)]
    values = score(made(flat, opposites))
    bound = score.high(3, REGION)
    full = values[0].item()
    expected = {"bald": 20 * math.log(2), "balanced_margin": 20 * 0.5}.get(score.name, bound)  # class 0 wins a tie
    assert full == pytest.approx(expected, rel=1e-5)
    assert values.max() <= bound * (1 + 1e-6)
    assert score(made(random_logits(1), [random_logits(2), random_logits(3)])).min() >= 0


def test_scores_by_name():
    assert named_scores(["margin", "bald", "entropy"], 7) == [Margin(), BALD(7), Entropy()]
    assert named_scores(()) == []


@pytest.mark.parametrize("names", [["entropy", "magic"], "entropy"])
def test_unknown_names_are_refused(names):
    with pytest.raises(ValueError, match="expected a list of different ones out of 'balanced_margin', 'bald', 'ent"):
        named_scores(names)


def test_bald_needs_a_sample():
    for samples in (0, 0.5, True, "2"):
        with pytest.raises(ValueError, match="samples is .*; expected a whole number of at least 1"):
            BALD(samples=samples)
    with pytest.raises(ValueError, match="bald_samples is 'x'; expected a whole number from 1 to 10000"):
        named_scores(["bald"], "x")


def test_privileged_rarity_equals_a_sum_over_the_true_masks_and_is_observed_only_on_request():
    env = make(scores=["privileged_rarity"]).unwrapped
    observation, _ = env.reset(seed=3)
    masks = {image: env.data.mask(image) for image in env.splits.train}
    pixels = np.concatenate([mask.ravel() for mask in masks.values()])
    present = [(pixels == c).sum() for c in range(len(env.data.classes))]
    weights = [sum(present) / max(n, sum(present) / 1e4) if n else 0.0 for n in present]
    for k, pool in enumerate(env.pools):
        for n, region in enumerate(pool):
            image, top, bottom, left, right = env.grid.box(region)
            labels = masks[image][top:bottom, left:right]
            expected = sum(w * math.sqrt((labels == c).sum()) for c, w in enumerate(weights))
            assert observation["score_privileged_rarity"][k, n] == pytest.approx(expected, rel=1e-5)
    assert not any("privileged" in key for key in make().observation_space.spaces)


def test_privileged_rarity_ignores_void_and_absent_classes():
    data = numbered_data(void=0.5)
    frames = Frames.shared(data)
    weights = class_rarity(cell_counts(frames, RegionGrid(data.image_size, (9, 11)), (2, 3), 4).sum(axis=0))
    assert weights[3] == 0.0
    env = closed_form_env(data=data, scores=[PrivilegedRarity(weights[:3])], region_size=(9, 11))
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    box = env.grid.box(env.pools[0][0])
    labels = box.crop(data.mask(box.image))
    expected = sum(w * math.sqrt((labels == c).sum()) for c, w in enumerate(weights))
    assert observation["score_privileged_rarity"][0, 0] == pytest.approx(expected, rel=1e-5)
