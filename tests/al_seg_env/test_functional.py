"""The pure tensor functions against SciPy and against slow loops over pixels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import slow_counts, slow_divergence, slow_histogram, slow_pool
from scipy.special import softmax
from scipy.stats import entropy

from al_seg_env import functional

SIZES = {  # image and region
    "divides": ((8, 12), (4, 3)),
    "odd": ((11, 13), (4, 5)),
    "smaller than the bins": ((9, 7), (3, 2)),
    "one pixel": ((1, 1), (1, 1)),
    "single pixels": ((3, 2), (1, 1)),
    "whole image": ((10, 13), (10, 13)),
    "one row": ((7, 10), (7, 4)),
}
grids = pytest.mark.parametrize(("image_size", "region_size"), SIZES.values(), ids=SIZES.keys())


def random_logits(*shape, seed=0, scale=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def distributions(rows, classes, seed=0, concentration=0.3):
    return torch.from_numpy(np.random.default_rng(seed).dirichlet([concentration] * classes, size=rows))


def test_entropy_map_equals_scipy():
    logits = random_logits(2, 5, 4, 3)
    expected = entropy(softmax(logits.double().numpy(), axis=1), axis=1)
    np.testing.assert_allclose(functional.entropy_map(logits), expected, atol=1e-6)


def test_entropy_of_certain_and_of_uniform_pixels():
    logits = torch.zeros(1, 4, 1, 2)
    logits[0, 2, 0, 0] = 1000.0
    np.testing.assert_allclose(functional.entropy_map(logits), [[[0.0, math.log(4)]]], atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.0, 200.0), classes=st.integers(1, 9))
def test_entropy_stays_between_0_and_log_c(seed, scale, classes):
    values = functional.entropy_map(random_logits(1, classes, 3, 3, seed=seed, scale=scale))
    assert values.min() >= 0
    assert values.max() <= math.log(classes) + 1e-5


def test_bald_map_equals_its_formula():
    samples = [random_logits(2, 4, 3, 5, seed=seed) for seed in range(6)]
    p = softmax(np.stack([sample.double().numpy() for sample in samples]), axis=2)  # (T, B, C, H, W)
    expected = entropy(p.mean(axis=0), axis=1) - entropy(p, axis=2).mean(axis=0)
    np.testing.assert_allclose(functional.bald_map(iter(samples)), expected, atol=1e-5)


def test_bald_map_leaves_its_samples_as_they_were():
    samples = [random_logits(1, 3, 2, 2, seed=seed) for seed in range(3)]
    copies = [sample.clone() for sample in samples]
    functional.bald_map(samples)
    assert all(torch.equal(a, b) for a, b in zip(samples, copies, strict=True))


def test_bald_is_0_for_equal_samples_and_log_2_for_certain_opposites():
    logits = random_logits(1, 3, 4, 4)
    assert functional.bald_map([logits] * 4).max() < 1e-5
    opposites = [torch.tensor([1e4, 0.0]).view(1, 2, 1, 1), torch.tensor([0.0, 1e4]).view(1, 2, 1, 1)]
    assert functional.bald_map(opposites).item() == pytest.approx(math.log(2), abs=1e-6)


def test_bald_without_a_sample_is_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        functional.bald_map([])


def test_margin_map():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().view(1, 3, 1, 1)
    assert functional.margin_map(logits).item() == pytest.approx(0.8)
    p = np.sort(softmax(random_logits(2, 4, 3, 3).double().numpy(), axis=1), axis=1)
    expected = 1 - (p[:, -1] - p[:, -2])
    np.testing.assert_allclose(functional.margin_map(random_logits(2, 4, 3, 3)), expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["min", "avg", "max"])
@pytest.mark.parametrize("bins", [1, 3, 8])
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1), (16, 3)])
def test_pool_tiles_equals_loops_over_cells(size, mode, bins):
    tiles = random_logits(3, *size)
    expected = [slow_pool(tile, bins, mode) for tile in tiles.numpy()]
    np.testing.assert_allclose(functional.pool_tiles(tiles, bins, mode), expected, atol=1e-6)


def test_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="'median' is unknown; use 'min', 'avg' or 'max'"):
        functional.pool_tiles(torch.zeros(1, 2, 2), 2, "median")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_class_counts_equal_loops_and_leave_255_out(dtype):
    labels = np.random.default_rng(0).choice([0, 1, 2, 3, 255], size=(5, 4, 3))
    counts = functional.class_counts(torch.from_numpy(labels).to(dtype), 4)
    np.testing.assert_array_equal(counts, [slow_counts(region, 4) for region in labels])


def test_shares():
    found = functional.shares(torch.tensor([[1, 3, 0], [0, 0, 0], [7, 0, 0]]))
    assert found.dtype == torch.float32
    assert found.tolist() == [[0.25, 0.75, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]


def test_kl_divergences_equal_scipy():
    p, q = functional.smooth(distributions(5, 4)), functional.smooth(distributions(7, 4, seed=1))
    expected = [[entropy(a, b) for b in q.numpy()] for a in p.numpy()]
    np.testing.assert_allclose(functional.kl_divergences(p, q), expected, atol=1e-12)


def test_kl_upper_bound_is_that_of_two_pure_classes():
    pure = torch.eye(3, dtype=torch.float64)
    assert functional.kl_upper_bound(3) == pytest.approx(slow_divergence(pure[0], pure[1]))
    assert functional.kl_upper_bound(1) > 0  # bins need a width


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 12), concentration=st.sampled_from([0.02, 0.3, 5.0]))
def test_no_divergence_exceeds_the_upper_bound(seed, classes, concentration):
    p = functional.smooth(distributions(12, classes, seed, concentration))
    assert functional.kl_divergences(p, p).max() <= functional.kl_upper_bound(classes) + 1e-9


@pytest.mark.parametrize("edges", ["fixed", "row"])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("bins", [1, 5, 32])
def test_kl_histogram_equals_a_double_loop(edges, own, bins):
    candidates = distributions(9, 5)
    reference = candidates if own else distributions(14, 5, seed=1)
    found = functional.kl_histogram(candidates, reference, bins, edges=edges, own=own)
    expected = slow_histogram(candidates.numpy(), reference.numpy(), bins, edges, own)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("edges", ["fixed", "row"])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("block", [1, 40, 41, 100])
def test_kl_histogram_does_not_depend_on_the_block(edges, own, block):
    shares = distributions(40, 6).float()
    whole = functional.kl_histogram(shares, shares, 32, edges=edges, own=own)
    assert torch.equal(functional.kl_histogram(shares, shares, 32, edges=edges, own=own, block=block), whole)


@pytest.mark.parametrize("edges", ["fixed", "row"])
def test_kl_histogram_with_nothing_to_compare_with_is_0(edges):
    shares = distributions(3, 4)
    empty = functional.kl_histogram(shares, shares[:0], 8, edges=edges)
    alone = functional.kl_histogram(shares[:1], shares[:1], 8, edges=edges, own=True)
    assert empty.tolist() == [[0.0] * 8] * 3
    assert alone.tolist() == [[0.0] * 8]
    assert functional.kl_histogram(shares[:0], shares, 8, edges=edges).shape == (0, 8)


def test_kl_histogram_by_hand():
    pure = torch.eye(2)
    found = functional.kl_histogram(pure, torch.stack([pure[0], pure[0], pure[1], pure[1]]), 4)
    assert found.tolist() == [[0.5, 0.0, 0.0, 0.5]] * 2  # itself in the first bin, the farthest in the last
    left_out = functional.kl_histogram(pure, pure, 4, own=True)
    assert left_out.tolist() == [[0.0, 0.0, 0.0, 1.0]] * 2


def test_row_edges_of_equal_divergences_do_not_divide_by_0():
    same = torch.tensor([[0.5, 0.5]]).repeat(4, 1)
    assert functional.kl_histogram(same, same, 3, edges="row").tolist() == [[1.0, 0.0, 0.0]] * 4


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(2, 30),
    classes=st.integers(1, 8),
    bins=st.integers(1, 40),
    edges=st.sampled_from(["fixed", "row"]),
    own=st.booleans(),
)
@example(seed=0, rows=2, classes=1, bins=3, edges="fixed", own=True)
def test_histograms_sum_to_1(seed, rows, classes, bins, edges, own):
    shares = distributions(rows, classes, seed, 0.1).float()
    found = functional.kl_histogram(shares, shares, bins, edges=edges, own=own)
    np.testing.assert_allclose(found.sum(dim=1), 1.0, atol=1e-5)
    assert found.min() >= 0


def test_unknown_edges_are_refused():
    shares = distributions(3, 4)
    with pytest.raises(ValueError, match="'log' are unknown; use 'fixed' or 'row'"):
        functional.kl_histogram(shares, shares, 4, edges="log")


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 7)),
    distinct=st.integers(1, 50),
    seed=st.integers(0, 1000),
    cached=st.sampled_from([1, 40, 2**20]),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_maps_of_pixels_in_any_blocks_and_layout_equal_torchs_own(shape, distinct, seed, cached, layout):
    """Few distinct values make ties: the first of equals counts, as for argmax."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.integers(distinct, size=shape).astype(np.float32) - distinct / 2)
    logits = logits.contiguous(memory_format=layout)
    before = logits.clone()
    p = logits.double().softmax(dim=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "CACHED", cached)
        assert torch.equal(functional.class_map(logits).long(), logits.argmax(dim=1))
        entropy = functional.entropy_map(logits)
        torch.testing.assert_close(entropy.double(), torch.special.entr(p).sum(dim=1), atol=1e-5, rtol=1e-5)
        bald = functional.bald_map([logits, logits.flip(1)])
        expected = torch.special.entr((p + p.flip(1)) / 2).sum(dim=1) - torch.special.entr(p).sum(dim=1)
        torch.testing.assert_close(bald.double(), expected, atol=2e-5, rtol=1e-4)
        if shape[1] > 1:
            best = p.topk(2, dim=1).values
            margin = functional.margin_map(logits).double()
            torch.testing.assert_close(margin, 1 - (best[:, 0] - best[:, 1]), atol=1e-5, rtol=1e-5)
    assert torch.equal(logits, before)


def test_a_pixel_that_is_not_finite_has_no_class():
    logits = torch.tensor([[0.0, 1.0], [1.0, float("nan")], [float("inf"), 2.0]]).T[None, :, :, None]
    assert functional.class_map(logits).flatten().tolist() == [1, 2, 2]


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 9),
    references=st.integers(0, 9),
    classes=st.integers(1, 5),
    edges=st.sampled_from(["fixed", "row"]),
    own=st.booleans(),
    block=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_kl_histograms_in_any_blocks_equal_the_slow_reference(count, references, classes, edges, own, block, seed):
    rng = np.random.default_rng(seed)
    candidates = rng.dirichlet([0.3] * classes, size=count)
    reference = candidates if own else rng.dirichlet([0.3] * classes, size=references)
    found = functional.kl_histogram(
        torch.from_numpy(candidates), torch.from_numpy(reference), 4, edges=edges, own=own, block=block
    )
    if classes == 1:  # all divergences are 0
        expected = np.zeros((count, 4))
        expected[:, 0] = float(len(reference) - own > 0)
    else:
        expected = slow_histogram(candidates, reference, 4, edges, own)
    np.testing.assert_allclose(found, expected, atol=1e-6)
