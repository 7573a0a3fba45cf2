"""Correctness under load: whole pools, many episodes, many environments and processes, and chance over many draws."""

import gc
import hashlib
import os
import subprocess
import sys
import tracemalloc
from contextlib import contextmanager
from functools import partial
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from agents_fakes import FakeRegionEnv
from fakes import CLASSES, SPLITS, closed_form_env, make, numbered_data, play, same
from gymnasium.vector import AsyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, binomtest, chisquare, entropy, hypergeom, kstest
from stable_baselines3.common.vec_env import SubprocVecEnv

from agents import SubActionDQN
from agents.dqn.exploration import draw_guides, follow
from al_seg_env import ArrayData, Splits

ENVS = 8
# Left open, the memory layout would be measured, and with it the clock would decide the last bits of all figures.
tiny = partial(make, scores=["entropy", "bald"], bald_samples=2, channels_last=False)


@contextmanager
def threads(count):
    """The number of threads changes the last bits of a convolution, and forked processes have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with threads(1):
        yield


# ---- whole pools


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 16), st.integers(1, 16)).filter(lambda shape: shape[0] * shape[1] <= 32),
    split=st.sampled_from(["train", "eval"]),
    region_size=st.sampled_from([(8, 10), (9, 11)]),  # the second does not divide the image
    seed=st.integers(0, 10**6),
)
def test_an_episode_over_the_whole_pool_labels_every_region_and_pixel_once(shape, split, region_size, seed):
    images = getattr(SPLITS, split)
    n_regions = 16 * len(images)
    env = closed_form_env(
        numbered_data(void=0.2),
        split=split,
        region_size=region_size,
        crop_size=region_size,
        regions_per_step=shape[0],
        pool_size=shape[1],
        budget=n_regions,
    )
    record = play(env, seed, seed)
    steps = [info["chosen"] for *_, info in record[1:]]
    assert [len(chosen) for chosen in steps[:-1]] == [shape[0]] * (-(-n_regions // shape[0]) - 1)
    assert sorted(sum(steps, ())) == env.grid.regions_of(images).tolist()
    assert len(env.labels.unlabelled) == 0
    for image in images:
        np.testing.assert_array_equal(env.labels.mask(image), env.data.mask(image))
    truth = np.bincount(np.concatenate([env.data.mask(i).ravel() for i in images]), minlength=256)[: len(CLASSES)]
    np.testing.assert_array_equal(sum(info["label_counts"] for *_, info in record[1:]), truth)
    if region_size == (8, 10):  # a crop is exactly its region, so the learner has seen each pixel once, too
        np.testing.assert_array_equal(env.learner.seen, truth)
        assert record[-1][4]["miou"] == pytest.approx(env.learner.miou_after(truth))


# ---- many episodes


def live_objects() -> tuple[int, int]:
    """Return the bytes of all live tensors, and the number of objects that the garbage collector knows."""
    gc.collect()
    objects = gc.get_objects()
    return sum(o.nbytes for o in objects if issubclass(type(o), torch.Tensor)), len(objects)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def traced_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.slow
def test_25_episodes_leave_memory_flat():
    env = tiny(budget=4)
    for seed in range(5):
        play(env, seed)
    (tensors, objects), resident = live_objects(), resident_bytes()
    for seed in range(5, 19):
        play(env, seed, seed)
    tracemalloc.start()  # knows what Python and NumPy hold, to the byte, but makes all slow
    play(env, 19)
    traced = traced_bytes()
    for seed in range(20, 25):
        play(env, seed, seed)
    grown = traced_bytes() - traced
    tracemalloc.stop()
    assert grown < 5 * 20_000  # the observations of one episode are 0.08 MB
    more_tensors, more_objects = live_objects()
    assert more_tensors == tensors
    assert abs(more_objects - objects) < 50  # less than one an episode
    assert resident_bytes() - resident < 16 * 2**20  # the heap's fragments settle at some 2 MB, now and then at 5


# ---- many environments


def actions(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(4, size=(ENVS, 3))


@pytest.fixture(scope="module")
def one_after_another(one_thread):
    """Play one episode of three steps, and the first step of the next, in each of 8 environments."""
    records = []
    for i in range(ENVS):
        env = tiny()
        first = [env.reset(seed=100 + i), *(env.step(actions(step)[i]) for step in range(3))]
        assert first[-1][2]
        records.append([*first, env.reset(), env.step(actions(4)[i])])
    assert not same(records[0], records[1])
    return records


def test_8_environments_of_gymnasium_in_parallel_equal_8_one_after_another(one_after_another):
    envs = AsyncVectorEnv([tiny] * ENVS, context="fork")
    results = [envs.reset(seed=[100 + i for i in range(ENVS)])]
    results += [envs.step(actions(step)) for step in range(5)]  # the one after the end resets
    envs.close()
    assert results[3][2].all()
    for t, (observations, *outcome, infos) in enumerate(results):
        for i, record in enumerate(one_after_another):
            observation, *expected, info = record[t]
            assert same({key: value[i] for key, value in observations.items()}, observation)
            for key, value in info.items():
                np.testing.assert_array_equal(infos[key][i], value)
            if expected:
                assert [value[i] for value in outcome] == expected
            elif outcome:  # the step that reset it
                assert [value[i] for value in outcome] == [0.0, False, False]


def test_8_environments_of_sb3_in_parallel_equal_8_one_after_another(one_after_another):
    envs = SubprocVecEnv([tiny] * ENVS, start_method="fork")
    envs.seed(100)
    first = envs.reset(), envs.reset_infos
    steps = [envs.step(actions(step)) for step in (0, 1, 2, 4)]
    second = envs.reset_infos
    envs.close()
    for i, (*episode, begin, step) in enumerate(one_after_another):
        assert same({key: value[i] for key, value in first[0].items()}, episode[0][0])
        assert same((first[1][i], second[i]), (episode[0][1], begin[1]))
        after = [episode[1][0], episode[2][0], begin[0], step[0]]  # it resets in the step that ends
        for t, (observations, rewards, dones, infos) in enumerate(steps):
            observation, reward, terminated, truncated, info = [*episode[1:], step][t]
            found = dict(infos[i])
            assert found.pop("TimeLimit.truncated") is truncated
            if terminated:
                assert same(found.pop("terminal_observation"), observation)
            assert same(found, info)
            assert (rewards[i], dones[i]) == (reward, terminated)
            assert same({key: value[i] for key, value in observations.items()}, after[t])


# ---- many processes and threads


def digest(value) -> str:
    """Return the sha256 of a nested structure, to the last bit of its numbers."""
    if isinstance(value, dict):
        value = sorted(value.items())
    if isinstance(value, list | tuple):
        content = [type(value), *map(digest, value)]
    elif isinstance(value, np.ndarray):
        content = [value.dtype, value.shape, value.tobytes()]
    else:
        content = [type(value), value]
    return hashlib.sha256(repr(content).encode()).hexdigest()


@pytest.mark.slow
def test_an_episode_is_the_same_in_every_process():
    tests = Path(__file__).resolve().parent
    path = os.pathsep.join([str(tests), str(tests.parent / "support")])
    code = "from test_load import *; torch.set_num_threads(1); print(digest(play(tiny(), 3)))"
    other = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tests.parents[1],
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert other.stdout.strip() == digest(play(tiny(), 3)), other.stderr
    assert other.stdout.strip() != digest(play(tiny(), 4))


def test_the_number_of_threads_changes_predictions_by_rounding_and_nothing_else():
    """Exact: what is chosen, labelled and counted. Entropies: to five digits. Most probable classes: except for ties.

    This is so between updates. Each update multiplies such an error (here, where BatchNorm sees but 12 values in the
    deepest layers, by ten or more), so that figures after many are equal for equal numbers of threads only.
    """
    records = []
    for count in (1, 2):
        env = make(channels_last=False, fit_iterations=0)  # two threads wait for each other long on a busy machine
        with threads(count):
            records.append([env.reset(seed=3), env.step(np.zeros(3, np.int64))])
    for (a, *_, info_a), (b, *_, info_b) in zip(*records, strict=True):
        assert all(same(info_a[key], info_b[key]) for key in ("chosen", "labelled", "label_counts", "next_active"))
        for key in ("state", "candidates"):  # 10 classes' shares of a region's 320 pixels, then entropies
            np.testing.assert_allclose(a[key][..., :10], b[key][..., :10], rtol=0, atol=3.01 / 320, err_msg=key)
            np.testing.assert_allclose(a[key][..., 10:], b[key][..., 10:], rtol=0, atol=1e-5, err_msg=key)


# ---- chance


@pytest.mark.parametrize("steps", [0, 4, 11, 14])
def test_pools_are_uniform_at_every_stage_of_an_episode(steps):
    """Any two places, in one pool or in two, hold any two unlabelled regions equally often."""
    env = closed_form_env(budget=48)
    env.reset(seed=steps)
    for _ in range(steps):
        env.step(np.zeros(3, np.int64))
    left = env.labels.unlabelled
    assert len(left) == 48 - 3 * steps
    count = max(2000, 6 * len(left) ** 2)
    pools = [env.labels.draw_pools(env.np_random, 3, 4) for _ in range(count)]
    for one, other in (((0, 0), (0, 1)), ((0, 0), (1, 0)), ((0, 1), (2, 0))):
        pairs = np.zeros((len(left), len(left)))
        places = [np.searchsorted(left, [drawn[k][n] for drawn in pools]) for k, n in (one, other)]
        np.add.at(pairs, tuple(places), 1)
        assert not pairs.diagonal().any()
        assert chisquare(pairs[~np.eye(len(left), dtype=bool)]).pvalue > 0.01


def test_pools_of_seeded_episodes_are_uniform_and_new_in_every_step():
    env = closed_form_env()
    counts, overlaps = np.zeros(48), np.zeros(10)
    for seed in range(700):
        env.reset(seed=seed)
        first = np.concatenate(env.pools)
        counts[first[0] - 32] += 1  # D_T begins with image 2
        *_, info = env.step(np.zeros(3, np.int64))
        overlaps[len(set(first.tolist()) - set(info["chosen"]) & set(np.concatenate(env.pools).tolist()))] += 1
    assert chisquare(counts).pvalue > 0.01
    # Of 45 regions left 9 were on offer before; 12 are drawn.
    expected = 700 * hypergeom(45, 9, 12).pmf(range(10))
    found, expected = [[*values[:5], values[5:].sum()] for values in (overlaps, expected)]
    assert chisquare(found, expected).pvalue > 0.01


@pytest.mark.parametrize("exploration", ["sub_action", "step"])
def test_exploration_is_independent_by_sub_action_or_by_step_and_uniform(exploration):
    steps, n_pools, n_candidates, epsilon = 20_000, 6, 5, 0.3
    greedy = np.full((steps, n_pools), n_candidates)  # which no uniform choice is
    rng = np.random.default_rng(0)
    drawn = draw_guides((steps, n_pools if exploration == "sub_action" else 1), 1, epsilon, rng)
    observation = {"candidates": np.zeros((steps, n_pools, n_candidates, 1))}
    chosen = follow(drawn, greedy, ("uniform",), observation, rng)
    explored = chosen != n_candidates
    # All 64 patterns of who explores, so that the number of them is binomial, and no two depend on each other.
    found = np.bincount(explored @ (2 ** np.arange(n_pools)[::-1]), minlength=2**n_pools)
    size = np.array(list(product([0, 1], repeat=n_pools))).sum(axis=1)
    if exploration == "sub_action":
        probability = epsilon**size * (1 - epsilon) ** (n_pools - size)
    else:
        probability = epsilon * (size == n_pools) + (1 - epsilon) * (size == 0)
    assert not found[probability == 0].any()
    assert chisquare(found[probability > 0], steps * probability[probability > 0]).pvalue > 0.01
    assert chisquare(np.bincount(chosen[explored])).pvalue > 0.01
    for k in range(n_pools - 1):
        both = explored[:, k] & explored[:, k + 1]
        pairs = chosen[both, k] * n_candidates + chosen[both, k + 1]
        assert chisquare(np.bincount(pairs, minlength=n_candidates**2)).pvalue > 0.001


@pytest.mark.parametrize("exploration", ["sub_action", "step"])
def test_an_agent_departs_from_its_greedy_choice_as_often_as_epsilon_says(exploration):
    env = FakeRegionEnv()  # 3 pools of 4
    agent = SubActionDQN("QueryPolicy", env, seed=0, device="cpu", epsilon=0.4, exploration=exploration)
    observations = [env.reset(seed=seed)[0] for seed in range(1000)]
    batch = {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
    greedy, _ = agent.predict(batch, deterministic=True)
    departures = np.concatenate([(agent.predict(batch)[0] - greedy) % 4 for _ in range(4)])
    # A uniform choice is the greedy one, too, once in 4 times.
    found = np.bincount((departures != 0).sum(axis=1), minlength=4)
    if exploration == "sub_action":
        expected = binom(3, 0.3).pmf(range(4))
    else:
        expected = 0.4 * binom(3, 0.75).pmf(range(4)) + 0.6 * np.eye(4)[0]
    assert chisquare(found, len(departures) * expected).pvalue > 0.01
    assert chisquare(np.bincount(departures[departures > 0])[1:]).pvalue > 0.01


def test_d_s_is_the_best_of_1000_uniform_subsets():
    """Among all 4845 subsets, the rank of the best of 1000 has a known distribution; so does the one chosen."""
    ranks, rng, subsets = [], np.random.default_rng(0), np.array(list(combinations(range(20), 4)))
    for seed in range(60):
        pixels = rng.multinomial(64, rng.dirichlet([0.1] * 12, size=22))  # rare classes, which a subset may lack
        masks = [np.repeat(np.arange(12), counts).astype(np.uint8).reshape(8, 8) for counts in pixels]
        data = ArrayData([np.zeros((8, 8, 3), np.uint8)] * 22, masks, list("abcdefghijkl"))
        splits = Splits.draw(data, seed, sizes={"state": 4, "train": 16, "reward": 2})
        group = sorted(splits.state + splits.train)
        state = pixels[group][subsets].sum(axis=1)
        train = pixels[group].sum(axis=0) - state
        divergences = entropy(train / (16 * 64) + 1e-6, state / (4 * 64) + 1e-6, axis=1)  # of D_T from D_S
        chosen = (subsets == [group.index(i) for i in splits.state]).all(axis=1)
        ranks.append((divergences < divergences[chosen]).mean())
    assert kstest(ranks, beta(1, 1000).cdf).pvalue > 0.01


def test_every_image_is_as_likely_in_every_split():
    data = numbered_data(9, (4, 4))
    sizes = dict.fromkeys(("state", "train", "reward", "eval", "test"), 1)
    drawn = [Splits.draw(data, seed, sizes=sizes) for seed in range(900)]
    for name in ("reward", "eval", "test"):
        assert chisquare(np.bincount([getattr(s, name)[0] for s in drawn], minlength=9)).pvalue > 0.01
    together = np.array([[i in s.state + s.train for i in range(9)] for s in drawn]).sum(axis=0)
    assert binomtest(int(together[0]), 900, 2 / 9).pvalue > 0.01
    assert chisquare(together).pvalue > 0.01
