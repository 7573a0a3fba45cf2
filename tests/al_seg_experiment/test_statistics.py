import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from al_seg_experiment.report.statistics import (
    area_under_curve,
    bootstrap_interval,
    class_entropy,
    holm,
    labels_needed,
    mean_interval,
    paired_test,
    summary,
)

percents = st.integers(0, 10_000).map(lambda n: n / 100)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_summary():
    assert summary([2, 4, 4, 4, 5, 5, 7, 9]) == (5, pytest.approx(math.sqrt(32 / 7)), 8)
    alone = summary([3.5])
    assert (alone.mean, alone.n) == (3.5, 1)
    assert math.isnan(alone.std)


def test_mean_interval_of_student():
    # mean 3, std sqrt(2.5), t(4, 0.975) = 2.776445
    low, high = mean_interval([1, 2, 3, 4, 5])
    assert (low, high) == (pytest.approx(3 - 1.963243, abs=1e-5), pytest.approx(3 + 1.963243, abs=1e-5))
    assert all(math.isnan(end) for end in mean_interval([1]))
    expected = stats.ttest_1samp([1, 2, 3, 4, 5], 0).confidence_interval(0.9)
    np.testing.assert_allclose(mean_interval([1, 2, 3, 4, 5], 0.9), expected)


def test_paired_test_by_hand():
    # Differences 1, 2, 3: mean 2, std 1, t = 2 sqrt(3) = 3.4641 with 2 degrees of freedom, p = 0.07418.
    test = paired_test({0: 11, 1: 12, 2: 13, 7: 0}, {2: 10, 1: 10, 0: 10, 8: 99})
    assert (test.n, test.difference) == (3, 2)
    assert test.t_p == pytest.approx(0.0741799, abs=1e-6)
    assert test.wilcoxon_p == 0.25  # all of one sign: 2 / 2^3
    assert (test.low, test.high) == (pytest.approx(2 - 4.302653 / math.sqrt(3)), pytest.approx(2 + 2.484138, abs=1e-5))


def test_bootstrap_interval_of_a_mean_is_near_the_normal_one():
    values = np.random.default_rng(0).normal(3, 2, size=200)
    low, high = bootstrap_interval(lambda chosen: values[chosen].mean(), len(values), seed=1)
    half = 1.96 * values.std() / math.sqrt(200)
    assert (low, high) == (pytest.approx(values.mean() - half, abs=0.05), pytest.approx(values.mean() + half, abs=0.05))
    assert bootstrap_interval(lambda chosen: values[chosen].mean(), 200, seed=1) == (low, high)


@settings(deadline=None)  # scipy enumerates all signs where there are ties
@given(st.lists(st.tuples(percents, percents), min_size=2, max_size=6))
def test_paired_test_is_that_of_scipy(pairs):
    ours, theirs = (dict(enumerate(values)) for values in zip(*pairs, strict=True))
    differences = np.subtract(*zip(*pairs, strict=True)).round(9)
    test, back = paired_test(ours, theirs), paired_test(theirs, ours)
    assert test.difference == pytest.approx(differences.mean())
    assert back.difference == -test.difference
    assert back.t_p == pytest.approx(test.t_p)
    if len(set(differences)) > 1:
        expected = stats.ttest_rel(*zip(*pairs, strict=True))
        assert test.t_p == pytest.approx(expected.pvalue)
        np.testing.assert_allclose([test.low, test.high], expected.confidence_interval(), atol=1e-9)
        assert test.wilcoxon_p == stats.wilcoxon(differences).pvalue


def test_paired_test_of_equal_differences():
    same = paired_test({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert (same.difference, same.t_p, same.wilcoxon_p) == (0, 1, 1)
    constant = paired_test({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0})
    assert (constant.difference, constant.low, constant.high, constant.t_p) == (1, 1, 1, 0)


@pytest.mark.parametrize("theirs", [{}, {1: 2.0}, {0: 1.0, 5: 2.0}])
def test_no_paired_test_below_two_seeds(theirs):
    assert paired_test({0: 1.0, 1: 2.0}, theirs) is None


def test_holm_known_example():
    # Sorted: 4 x 0.005 = 0.02, 3 x 0.01 = 0.03, 2 x 0.03 = 0.06, 1 x 0.04, which may not fall below 0.06.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1, 1])
    assert holm([]).shape == (0,)
    assert holm([0.2]) == [0.2]


@given(p_values)
def test_holm_is_between_no_correction_and_bonferroni_and_keeps_the_order(p):
    corrected = holm(p)
    assert (corrected >= p).all()
    assert (corrected <= np.minimum(1, np.multiply(p, len(p))) + 1e-12).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= 0).all()
    assert corrected.min() == min(1, min(p) * len(p))


def test_area_under_curve():
    assert area_under_curve([0, 10], [40, 60]) == 50
    assert area_under_curve([100, 200, 500], [40, 50, 50]) == pytest.approx((45 * 100 + 50 * 300) / 400)


@given(st.lists(st.tuples(st.integers(1, 1000), percents), min_size=2, max_size=6))
def test_area_is_that_of_trapezoids_and_within_the_values(steps):
    budgets, values = np.cumsum([step for step, _ in steps]), [value for _, value in steps]
    area = area_under_curve(budgets, values)
    by_hand = sum((budgets[i + 1] - budgets[i]) * (values[i] + values[i + 1]) / 2 for i in range(len(values) - 1))
    assert area == pytest.approx(by_hand / (budgets[-1] - budgets[0]))
    assert min(values) - 1e-9 <= area <= max(values) + 1e-9


@pytest.mark.parametrize(
    ("target", "expected"),
    [(45, 50), (50, 100), (52.5, 250), (55, 400), (55.1, None), (40, 0), (10, 0)],
)
def test_labels_needed(target, expected):
    assert labels_needed([0, 100, 400], [40, 50, 55], target) == expected


def test_labels_needed_is_the_first_crossing():
    assert labels_needed([0, 10, 20, 30], [40, 50, 40, 60], 45) == 5
    assert labels_needed([7], [50], 60) is None


def test_class_entropy():
    assert class_entropy([5, 5, 5, 5]) == pytest.approx(math.log(4))
    assert class_entropy([7, 0, 0]) == 0
    assert class_entropy([3, 1]) == pytest.approx(0.5623351)
    assert math.isnan(class_entropy([0, 0]))


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=19).filter(any))
def test_class_entropy_is_shannons(counts):
    shares = np.array([count for count in counts if count]) / sum(counts)
    assert class_entropy(counts) == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-9)


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"pip install \"al-seg-env\[examples\]\""):
        class_entropy([1, 2])
    with pytest.raises(ImportError, match="the statistics need scipy"):
        mean_interval([1.0, 2.0])
