"""What is labelled and what is not, and the pools that are drawn from the rest."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from al_seg_env.labelling.label_state import LabelState
from al_seg_env.regions import RegionGrid

GRID = RegionGrid((7, 10), (3, 4))  # 3 x 3 regions, the last ones smaller
IMAGES = (1, 4)


def random_masks(rng, regions):
    return [rng.choice([0, 1, 2, 255], size=GRID.box(r).size).astype(np.uint8) for r in regions]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_l_and_u_stay_disjoint_and_complete(seed, sizes):
    rng = np.random.default_rng(seed)
    everything = set(GRID.regions_of(IMAGES).tolist())
    state, truth, order, steps = LabelState(GRID, IMAGES, 3), {}, [], []
    for step, size in enumerate(sizes):
        regions = rng.permutation(state.unlabelled)[:size].tolist()
        if not regions:
            break
        masks = random_masks(rng, regions)
        before, state = state, state.with_labels(regions, masks, step)
        assert before.labelled == order
        assert set(before.unlabelled.tolist()) == everything - set(order)
        truth.update(zip(regions, masks, strict=True))
        order += regions
        steps += [step] * len(regions)
    assert (state.labelled, state.labelled_at, len(state)) == (order, steps, len(order))
    assert set(state.labelled).isdisjoint(state.unlabelled.tolist())
    assert set(state.labelled) | set(state.unlabelled.tolist()) == everything
    expected_counts = [[int((truth[r] == c).sum()) for c in range(3)] for r in order]
    np.testing.assert_array_equal(state.class_counts, np.reshape(expected_counts, (-1, 3)))
    for image in IMAGES:
        expected = np.full(GRID.image_size, 255, np.uint8)
        for region, mask in truth.items():
            if GRID.box(region).image == image:
                GRID.box(region).crop(expected)[...] = mask
        np.testing.assert_array_equal(state.mask(image), expected)


def test_mask_of_shows_these_regions_only():
    state = LabelState(GRID, IMAGES, 3)
    old, new = [9, 10], [11, 12, 40]
    masks = [np.full(GRID.box(r).size, r % 3, np.uint8) for r in old + new]
    state = state.with_labels(old, masks[:2], 0).with_labels(new, masks[2:], 1)
    shown = state.mask_of(new)
    for image, regions in ((1, [11, 12]), (4, [40])):
        expected = np.full(GRID.image_size, 255, np.uint8)
        for region in regions:
            GRID.box(region).crop(expected)[...] = region % 3
        np.testing.assert_array_equal(shown(image), expected)


@pytest.mark.parametrize("regions", [[9, 9], [0], [10, 11], [10**6]])
def test_asking_twice_or_for_what_is_not_there_is_refused_and_changes_nothing(regions):
    state = LabelState(GRID, IMAGES, 3)
    state = state.with_labels([11], [np.zeros((3, 2), np.uint8)], 0)
    with pytest.raises(ValueError, match="expected different ids of unlabelled regions of these images"):
        state.with_labels(regions, random_masks(np.random.default_rng(0), regions), 1)
    assert state.labelled == [11]
    assert len(state.unlabelled) == 17


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 7),
    size=st.integers(1, 7),
    labelled=st.integers(0, 18),
    max_images=st.sampled_from([None, 1, 2, 5]),
)
def test_pools_are_disjoint_unlabelled_and_shrink_evenly(seed, count, size, labelled, max_images):
    rng = np.random.default_rng(seed)
    state = LabelState(GRID, IMAGES, 3)
    if labelled:
        regions = rng.permutation(state.unlabelled)[:labelled].tolist()
        state = state.with_labels(regions, random_masks(rng, regions), 0)
    pools = state.draw_pools(rng, count, size, max_images)
    drawn = np.concatenate(pools).tolist()
    assert len(pools) == count
    assert len(drawn) == len(set(drawn)) == min(count * size, 18 - labelled)
    assert set(drawn) <= set(state.unlabelled.tolist())
    lengths = [len(pool) for pool in pools]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)  # the last pools are the empty ones


def test_pools_are_uniform_over_the_unlabelled_regions():
    state = LabelState(GRID, IMAGES, 3)
    state = state.with_labels([9, 10], [np.zeros((3, 4), np.uint8)] * 2, 0)
    rng = np.random.default_rng(0)
    left = state.unlabelled.tolist()
    places = np.zeros((6, len(left)))
    for _ in range(3000):
        drawn = np.concatenate(state.draw_pools(rng, 3, 2))
        places[range(6), [left.index(region) for region in drawn]] += 1
    assert chisquare(places.sum(axis=0)).pvalue > 0.01
    assert all(chisquare(place).pvalue > 0.001 for place in places)  # in every place of every pool


def test_max_images_limits_the_images_but_not_the_pools():
    grid = RegionGrid((4, 4), (2, 2))
    state, rng = LabelState(grid, range(10), 2), np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        images = {int(i) for i in grid.image_of(np.concatenate(state.draw_pools(rng, 2, 3, 2)))}
        assert len(images) <= 2
        seen |= images
    assert seen == set(range(10))
    crowded = grid.image_of(np.concatenate(state.draw_pools(rng, 3, 4, 1)))
    assert len(crowded) == 12
    assert len(set(crowded.tolist())) == 3  # more images where one does not hold enough


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    images=st.lists(st.integers(0, 40), min_size=1, max_size=8, unique=True),
    labelled=st.integers(0, 40),
    max_images=st.sampled_from([None, 1, 3]),
)
def test_pools_are_those_that_a_list_of_all_unlabelled_regions_gives(seed, images, labelled, max_images):
    """Drawn without listing U_t: the same regions, and the same random numbers, as numpy's choice from the list."""
    state = LabelState(GRID, images, 3)
    regions = np.random.default_rng(seed).permutation(GRID.regions_of(images))[:labelled].tolist()
    state = state.with_labels(regions, random_masks(np.random.default_rng(0), regions), 0)
    left = np.array([r for r in GRID.regions_of(images).tolist() if r not in regions], np.int64)
    np.testing.assert_array_equal(state.unlabelled, left)
    assert state.unlabelled_count == len(left)
    ours, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
    pools = state.draw_pools(ours, 3, 4, max_images)
    if max_images is not None:
        open_images, counts = np.unique(left // 9, return_counts=True)
        order = theirs.permutation(len(open_images))
        enough = int(np.searchsorted(np.cumsum(counts[order]), min(12, len(left)))) + 1
        left = left[np.isin(left // 9, open_images[order[: max(max_images, enough)]])]
    expected = theirs.choice(left, size=min(12, state.unlabelled_count), replace=False)
    np.testing.assert_array_equal(np.concatenate(pools), expected)
    assert ours.bit_generator.state == theirs.bit_generator.state
