"""What classes are worth, from the returns of beginnings of episodes."""

import numpy as np
import pytest

from agents.dqn.worth import SPREAD, Worth


def beginnings(worth, noise, n=200, seed=0):
    rng = np.random.default_rng(seed)
    added, steps = rng.random((n, len(worth))), rng.integers(1, 4, size=n)
    added = added * steps[:, None]
    return added, added @ worth + 7.0 * steps + noise * rng.normal(size=n), steps  # 7 a step for whatever is labelled


@pytest.mark.parametrize("worth", [(2.0, 0.5, 0.0), (0.0, 0.0, 30.0), (0.01, 0.02, 0.0)])
def test_worth_and_the_constants_of_steps_are_told_apart(worth):
    found = Worth.learnt(*beginnings(np.array(worth), noise=0.05 * max(worth)))
    np.testing.assert_allclose(found.mean, worth, atol=0.06 * max(worth))
    assert (np.abs(found.mean - worth) < 5 * np.sqrt(np.diag(found.covariance))).all()


def test_it_is_the_posterior_of_a_normal_prior():
    """Against the conditional distribution of a joint normal, which does without inverses of precisions."""
    added, returns, steps = beginnings(np.array([1.0, 3.0]), noise=2.0, n=12)
    found = Worth.learnt(added, returns, np.ones(12))
    d, r = added - added.mean(axis=0), returns - returns.mean()
    total = d.sum(axis=1)
    shared = total @ r / (total @ total)
    noise = np.var(r - shared * total)
    shared = max(shared, r.std() / total.std() / 2)
    prior = (SPREAD * shared) ** 2 * np.eye(2)
    joint = d @ prior @ d.T + noise * np.eye(12)
    gain = prior @ d.T @ np.linalg.inv(joint)
    np.testing.assert_allclose(found.mean, shared + gain @ (r - shared * total), rtol=1e-6)
    np.testing.assert_allclose(found.covariance, prior - gain @ d @ prior, rtol=1e-6, atol=1e-9)


def test_the_spread_leads_from_classes_of_equal_worth_to_least_squares():
    added, returns, steps = beginnings(np.array([1.0, 3.0, 0.5]), noise=2.0, n=60)
    told = [np.concatenate([(steps == step)[:, None] for step in (1, 2, 3)], axis=1), added]
    least_squares = np.linalg.lstsq(np.hstack(told), returns, rcond=None)[0][3:]
    near, between, far = (Worth.learnt(added, returns, steps, spread).mean for spread in (1e-4, 0.5, 1e4))
    np.testing.assert_allclose(near, near[0], rtol=1e-3)
    np.testing.assert_allclose(far, least_squares, rtol=1e-4)
    assert np.std(near) < np.std(between) < np.std(far)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_before_there_are_returns_all_classes_are_worth_the_same(n):
    found = Worth.learnt(np.ones((n, 3)), np.ones(n), np.arange(n))
    np.testing.assert_array_equal(found.mean, np.ones(3))
    assert found.draw(np.random.default_rng(0)).shape == (3,)


def test_returns_that_never_differ_say_nothing():
    added, returns, steps = beginnings(np.zeros(3), noise=0.0)
    np.testing.assert_array_equal(Worth.learnt(added, 0 * returns, steps).mean, np.ones(3))


def test_returns_that_one_class_explains_without_noise():
    added = np.array([[1.0], [2.0], [4.0], [3.0]])
    found = Worth.learnt(added, 5 * added[:, 0], np.ones(4))
    np.testing.assert_allclose(found.mean, [5.0], rtol=1e-6)
    assert np.isfinite(found.draw(np.random.default_rng(0))).all()


def test_draws_are_never_negative_and_spread_like_the_posterior():
    posterior = Worth(np.array([5.0, -1.0]), np.diag([4.0, 0.01]))
    draws = np.stack([posterior.draw(np.random.default_rng(seed)) for seed in range(500)])
    assert (draws >= 0).all()
    assert (draws[:, 1] == 0).all()
    assert draws[:, 0].std() == pytest.approx(2, rel=0.15)
    np.testing.assert_array_equal(posterior.positive, [5.0, 0.0])
