"""The environment around a learner in closed form: rewards, info, observations and ends, known exactly."""

import math

import gymnasium as gym
import numpy as np
import pytest
from fakes import CLASSES, IMAGE_SIZE, SPLITS, ClosedFormLearner, closed_form_env, numbered_data, play, same
from reference import slow_boxes, slow_counts, slow_features, slow_histogram, slow_pool, slow_shares

from al_seg_env import BALD, Entropy, Margin
from al_seg_env.datasets import ArrayData
from al_seg_env.observation.scores import Score

FIRST = np.zeros(3, np.int64)  # the action that takes the first of each of three pools
SCORES = (Entropy(), BALD(3), Margin())


def truth_of(env, region):
    box = env.grid.box(region)
    return env.data.mask(box.image)[box.top : box.bottom, box.left : box.right]


def counts_of(env, regions):
    return sum((slow_counts(truth_of(env, region), 3) for region in regions), np.zeros(3, np.int64))


# ---- rewards and info


@pytest.mark.parametrize("options", [{}, {"fit_iterations": 3}, {"fit_batch_size": 1}, {"reward_scale": 0.01}])
def test_rewards_and_info_are_those_of_the_closed_form(options):
    env = closed_form_env(numbered_data(void=0.2), **options)
    learner, iterations = env.learner, options.get("fit_iterations", 1)
    _, info = env.reset(seed=0)
    assert same(
        info,
        {
            "chosen": (),
            "labelled": 0,
            "miou": learner.miou_after([0, 0, 0]),
            "class_iou": 100 * learner.class_iou_after([0, 0, 0]),
            "label_counts": np.zeros(3, np.int64),
            "next_active": 3,
        },
    )
    seen, before = np.zeros(3, np.int64), info["miou"]
    for step in range(1, 5):
        pools = env.pools
        _, reward, terminated, truncated, info = env.step(np.array([step % 4, 0, 3]))
        chosen = (int(pools[0][step % 4]), int(pools[1][0]), int(pools[2][3]))
        counts = counts_of(env, chosen)
        seen = seen + iterations * counts
        miou = learner.miou_after(seen)
        assert isinstance(reward, float)
        assert reward == pytest.approx(options.get("reward_scale", 1.0) * (miou - before), abs=1e-12)
        assert (terminated, truncated) == (step == 4, False)
        assert type(info["miou"]) is float
        assert all(type(region) is int for region in info["chosen"])
        assert info["miou"] == pytest.approx(miou)
        assert {**info, "miou": 0, "class_iou": 0, "label_counts": 0} == {
            "chosen": chosen,
            "labelled": 3 * step,
            "miou": 0,
            "class_iou": 0,
            "label_counts": 0,
            "next_active": 0 if terminated else 3,
        }
        np.testing.assert_allclose(info["class_iou"], 100 * learner.class_iou_after(seen))
        np.testing.assert_array_equal(info["label_counts"], counts)
        assert info["label_counts"].dtype == np.int64
        before = miou


@pytest.mark.parametrize("first_reward", ["gain", "miou"])
@pytest.mark.parametrize("counted", [[0], [2, 1], list(range(len(CLASSES)))])
def test_rewards_count_the_chosen_classes_alone(counted, first_reward):
    env = closed_form_env(first_reward=first_reward, reward_classes=[CLASSES[c] for c in counted])
    _, info = env.reset(seed=0)
    before = 0.0 if first_reward == "miou" else info["class_iou"][counted].mean()
    terminated = False
    while not terminated:
        _, reward, terminated, _, info = env.step(FIRST)
        assert reward == pytest.approx(info["class_iou"][counted].mean() - before)
        before = info["class_iou"][counted].mean()


def test_all_reward_classes_are_the_papers_reward():
    assert same(play(closed_form_env(reward_classes=CLASSES), 0), play(closed_form_env(), 0))


def test_reward_classes_are_classes_of_the_data():
    with pytest.raises(ValueError, match=r"reward_classes is \['tram'\]; expected some of the classes of the data"):
        closed_form_env(reward_classes=["tram"])
    with pytest.raises(ValueError, match="D_R has no pixel of road, sky, which reward_classes names; name"):
        closed_form_env(numbered_data(void=1.0), reward_classes=["sky", "road"])
    assert closed_form_env(numbered_data(void=1.0), reward=None, reward_classes=["sky"]).reset(seed=0)


def test_reward_classes_that_the_reward_set_lacks_do_not_count():
    one = numbered_data()
    masks = [np.where((one.mask(i) == 2) & (i in SPLITS.reward), 1, one.mask(i)).astype(np.uint8) for i in range(9)]
    data = ArrayData([one.image(i) for i in range(9)], masks, CLASSES, one.names)
    with pytest.warns(UserWarning, match="D_R has no pixel of sky, which reward_classes names: the reward"):
        closed_form_env(data, reward_classes=["sky", "road"])


def test_the_order_of_reward_classes_does_not_matter():
    env = closed_form_env(reward_classes=["sky", "car"])
    env.reset(seed=0)
    other = closed_form_env(reward_classes=["car", "sky"])
    other.set_state(env.get_state())
    assert same(other.step(FIRST), env.step(FIRST))
    closed_form_env(reward_classes=CLASSES).set_state(closed_form_env().get_state())


def test_first_reward_of_the_released_code_is_the_whole_miou():
    env = closed_form_env(first_reward="miou", reward_scale=2.0)
    _, first = env.reset(seed=0)
    results = [env.step(FIRST) for _ in range(2)]
    assert results[0][1] == pytest.approx(2 * results[0][4]["miou"])
    assert results[1][1] == pytest.approx(2 * (results[1][4]["miou"] - results[0][4]["miou"]))
    assert env.reset()[1]["miou"] == first["miou"]
    result = env.step(FIRST)
    assert result[1] == pytest.approx(2 * result[4]["miou"])  # in every episode


def test_rewards_of_an_episode_add_up_to_its_gain():
    record = play(closed_form_env(), 3)
    assert sum(result[1] for result in record[1:]) == pytest.approx(record[-1][4]["miou"] - record[0][1]["miou"])


def test_a_class_that_d_r_lacks_is_minus_1_in_info():
    env = closed_form_env()
    env.learner.confusion_after = lambda seen: np.array([[3, 1, 0], [0, 0, 0], [0, 0, 5]])
    _, info = env.reset(seed=0)
    assert info["class_iou"].tolist() == pytest.approx([75.0, -1.0, 100.0])
    assert info["miou"] == pytest.approx(87.5)


# ---- training


@pytest.mark.parametrize("crop_labels", ["new", "all"])
def test_training_sees_the_new_regions_only_or_all_that_is_labelled(crop_labels):
    env = closed_form_env(crop_labels=crop_labels, crop_size=None, regions_per_step=4, pool_size=4)
    env.reset(seed=0)
    labelled = []
    for _ in range(3):
        env.learner.forget_calls()
        _, _, _, _, info = env.step(np.zeros(4, np.int64))
        labelled += info["chosen"]
        shown = info["chosen"] if crop_labels == "new" else labelled
        (targets,) = env.learner.targets
        assert len(targets) == 4
        # Whole images, each flipped or not: compare what is visible per image, in any order.
        found = sorted(slow_counts(target, 256).tolist() for target in targets.numpy())
        expected = []
        for region in info["chosen"]:
            image = env.grid.box(region).image
            of_image = [other for other in shown if env.grid.box(other).image == image]
            counts = np.zeros(256, np.int64)
            counts[:3] = counts_of(env, of_image)
            counts[255] = 32 * 40 - 80 * len(of_image)
            expected.append(counts.tolist())
        assert found == sorted(expected)


def test_regions_are_spread_over_updates_and_iterations():
    env = closed_form_env(regions_per_step=5, pool_size=2, fit_batch_size=2, fit_iterations=3)
    env.reset(seed=0)
    env.step(np.zeros(5, np.int64))
    assert [len(targets) for targets in env.learner.targets] == [2, 2, 1] * 3


@pytest.mark.parametrize("crop_labels", ["new", "all"])
def test_training_on_all_labelled_regions_draws_as_many_of_them_in_each_pass(crop_labels):
    env = closed_form_env(
        fit_regions="all", crop_labels=crop_labels, crop_size=None, regions_per_step=2, pool_size=4, fit_iterations=40
    )
    env.reset(seed=0)
    labelled = []
    for _ in range(3):
        env.learner.forget_calls()
        _, _, _, _, info = env.step(np.zeros(2, np.int64))
        labelled += info["chosen"]
        assert [len(targets) for targets in env.learner.targets] == [2] * 40
        images = [env.grid.box(region).image for region in labelled]
        of_images = {image: [r for r in labelled if env.grid.box(r).image == image] for image in images}
        everything = {tuple(counts_of(env, regions)) for regions in of_images.values()}
        found = {tuple(slow_counts(target, 3)) for targets in env.learner.targets for target in targets.numpy()}
        if crop_labels == "all":
            assert found == everything
        else:  # with two regions drawn, an image shows one or two of its labels
            single = {tuple(counts_of(env, [region])) for region in labelled}
            pairs = {tuple(counts_of(env, [a, b])) for own in of_images.values() for a in own for b in own if a < b}
            assert single <= found <= single | pairs


def test_no_iteration_means_no_training():
    env = closed_form_env(fit_iterations=0)
    env.reset(seed=0)
    assert env.step(FIRST)[1] == 0.0
    assert not env.learner.targets


# ---- the end


@pytest.mark.parametrize("budget", [1, 2, 3, 7, 12])
def test_an_episode_ends_exactly_at_the_budget(budget):
    env = closed_form_env(budget=budget)
    record = play(env, 0)
    actives = [record[0][1]["next_active"]] + [result[4]["next_active"] for result in record[1:]]
    left, expected = budget, []
    while left:
        expected.append(min(3, left))
        left -= expected[-1]
    assert actives == [*expected, 0]
    assert [len(result[4]["chosen"]) for result in record[1:]] == expected
    assert record[-1][4]["labelled"] == budget
    assert [result[2] for result in record[1:]] == [False] * (len(expected) - 1) + [True]


def test_the_first_sub_actions_count_when_the_budget_is_nearly_spent():
    env = closed_form_env(budget=5)
    env.reset(seed=0)
    env.step(FIRST)
    pools = env.pools
    _, _, terminated, _, info = env.step(np.array([2, 3, 1]))
    assert terminated
    assert info["chosen"] == (int(pools[0][2]), int(pools[1][3]))


@pytest.mark.parametrize("shape", [(3, 4), (5, 7), (4, 12)])
def test_a_pool_is_exhausted_until_every_region_is_labelled_exactly_once(shape):
    env = closed_form_env(regions_per_step=shape[0], pool_size=shape[1], budget=48)
    rng = np.random.default_rng(0)
    observation, info = env.reset(seed=1)
    terminated = False
    while not terminated:
        n_pools, pool_size = shape
        left = 48 - info["labelled"]
        lengths = [len(pool) for pool in env.pools]
        assert sum(lengths) == min(left, n_pools * pool_size)
        assert max(lengths) - min(lengths) <= 1
        for k, length in enumerate(lengths):
            if length:
                repeated = np.arange(pool_size) % length
                for key in ("candidates", "similarity"):
                    np.testing.assert_array_equal(observation[key][k], observation[key][k][:length][repeated])
            else:
                assert not observation["candidates"][k].any()
                assert not observation["similarity"][k].any()
        observation, _, terminated, _, info = env.step(rng.integers(env.action_space.nvec))
    assert sorted(env.labels.labelled) == sorted(env.grid.regions_of(SPLITS.train).tolist())
    assert info["labelled"] == 48


@pytest.mark.parametrize("value", range(4))
@pytest.mark.parametrize("length", [1, 2])
def test_every_value_of_every_sub_action_is_valid_in_short_pools(value, length):
    env = closed_form_env(budget=48)
    env.reset(seed=value)
    while len(env.labels.unlabelled) > 3 * length:
        env.step(FIRST)
    pools = env.pools
    assert [len(pool) for pool in pools] == [length] * 3
    *_, info = env.step(np.full(3, value))
    assert info["chosen"] == tuple(int(pool[value % length]) for pool in pools)


def test_the_terminal_observation_is_zeros_and_costs_no_forward_pass():
    env = closed_form_env(budget=6, scores=SCORES)
    env.reset(seed=0)
    env.step(FIRST)
    env.learner.forget_calls()
    observation, _, terminated, _, _ = env.step(FIRST)
    assert terminated
    assert env.observation_space.contains(observation)
    assert not any(value.any() for value in observation.values())
    assert (env.learner.predicted, env.learner.sampled) == ([], [])
    assert env.learner.evaluated == [[5]]
    assert env.pools == ()


def test_a_step_before_reset_or_after_the_end_needs_a_reset():
    env = closed_form_env(budget=3)
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\)"):
        env.step(FIRST)
    env.reset(seed=0)
    env.step(FIRST)
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\)"):
        env.step(FIRST)
    env.reset()
    env.step(FIRST)


# ---- observations


def slow_observation(env, pools, size=8):
    """Build the observation region by region from the closed-form logits."""
    config, learner = env.config, env.learner
    per_image = env.grid.regions_per_image
    described = {}

    def describe(image):
        if image not in described:
            logits = learner.logits_of(image, env.grid.image_size, learner.seen)
            described[image] = slow_features(logits, env.grid.region_size, size)
        return described[image]

    state = np.concatenate([describe(image)[0] for image in env.splits.state])
    regions = [int(region) for pool in pools for region in pool]
    features = [describe(r // per_image)[0][r % per_image] for r in regions]
    shares = [describe(r // per_image)[1][r % per_image] for r in regions]
    known = [slow_counts(truth_of(env, region), len(CLASSES)) for region in env.labels.labelled]
    labelled = [slow_shares(counts) for counts in known if counts.any()]
    similarity = np.concatenate(
        [
            slow_histogram(shares, labelled, config.kl_bins, config.kl_edges),
            slow_histogram(shares, shares, config.kl_bins, config.kl_edges, own=not config.kl_own),
        ],
        axis=1,
    )
    expected = {"state": state, "candidates": [], "similarity": []}
    start = 0
    for pool in pools:
        rows = [start + n % len(pool) for n in range(config.pool_size)] if len(pool) else []
        for key, values in (("candidates", features), ("similarity", similarity)):
            blank = np.zeros((config.pool_size, len(values[0])))
            expected[key].append(np.array([values[row] for row in rows]) if rows else blank)
        start += len(pool)
    return expected


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"region_size": (9, 11), "crop_size": (9, 11)},  # does not divide
        {"region_size": (5, 7), "crop_size": None, "entropy_bins": 8},  # smaller than the bins
        {"kl_edges": "row", "kl_own": True, "kl_bins": 7},
    ],
)
def test_observations_equal_a_slow_reference(options):
    env = closed_form_env(numbered_data(void=0.3), **options)
    observation, _ = env.reset(seed=2)
    for _ in range(3):
        expected = slow_observation(env, env.pools)
        assert observation.keys() == expected.keys()
        for key, values in expected.items():
            np.testing.assert_allclose(observation[key], values, atol=2e-6, err_msg=key)
        observation, *_ = env.step(FIRST)


def test_the_number_of_images_predicted_at_once_changes_nothing():
    scores = (Entropy(), Margin())
    records = [play(closed_form_env(learner=ClosedFormLearner(batch_size=n), scores=scores), 0) for n in (1, 2, 3, 50)]
    assert all(same(record, records[0]) for record in records)


def test_whole_images_as_regions():
    env = closed_form_env(region_size=None, crop_size=None, regions_per_step=2, pool_size=1, budget=3, split="train")
    observation, _ = env.reset(seed=0)
    assert env.grid.region_size == IMAGE_SIZE
    assert observation["state"].shape == (2, 3 + 3 * 64)
    expected = slow_observation(env, env.pools)
    for key, values in expected.items():
        np.testing.assert_allclose(observation[key], values, atol=2e-6)
    infos = [env.step(np.zeros(2, np.int64))[4] for _ in range(2)]
    assert sorted(infos[0]["chosen"] + infos[1]["chosen"]) == [2, 3, 4]  # the images themselves


def test_the_histogram_of_labelled_regions_uses_the_labels_not_the_prediction():
    """All labels are class 0, so the histogram of a region predicted as ``p`` is one bin: that of KL(p, pure 0)."""
    data = numbered_data()
    for number in range(9):
        data.mask(number)[...] = 0
    env = closed_form_env(data, kl_bins=16)
    observation, _ = env.reset(seed=0)
    assert not observation["similarity"][..., :16].any()  # nothing is labelled yet
    observation, *_ = env.step(FIRST)
    for k, n in np.ndindex(3, 4):
        shares = observation["candidates"][k, n, :3]
        expected = slow_histogram([shares], [[1.0, 0.0, 0.0]], 16)[0]
        np.testing.assert_allclose(observation["similarity"][k, n, :16], expected, atol=1e-6)


def test_scores_equal_their_definition():
    env = closed_form_env(scores=(Entropy(), Margin()))
    observation, _ = env.reset(seed=0)
    for k, n in np.ndindex(3, 4):
        region = int(env.pools[k][n])
        box = env.grid.box(region)
        logits = env.learner.logits_of(box.image, IMAGE_SIZE, env.learner.seen).double()
        p = np.sort(logits[:, box.top : box.bottom, box.left : box.right].softmax(dim=0).numpy(), axis=0)
        assert observation["score_entropy"][k, n] == pytest.approx(-(p * np.log(p)).sum(), rel=1e-4)
        assert observation["score_margin"][k, n] == pytest.approx((1 - p[-1] + p[-2]).sum(), rel=1e-4)


@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize("options", [{}, {"kl_edges": "row", "class_distribution": "counts", "kl_own": True}])
def test_observations_stay_within_their_space(split, options):
    env = closed_form_env(scores=SCORES, split=split, budget=30, region_size=(7, 11), **options)
    record = play(env, 0)
    assert all(env.observation_space.contains(result[0]) for result in record)
    assert all(
        np.isfinite(space.low).all() and np.isfinite(space.high).all() for space in env.observation_space.values()
    )
    images = env.splits.train if split == "train" else env.splits.eval
    assert {env.grid.box(region).image for region in env.labels.labelled} <= set(images)


@pytest.mark.parametrize(
    ("options", "features", "divergences", "names"),
    [
        ({"entropy_pools": ["avg"], "similarity": []}, 3 + 64, None, ["class_shares", "entropy_avg_8x8"]),  # 1H
        ({"similarity": ()}, 3 + 192, None, None),  # 3H
        ({}, 3 + 192, 64, None),  # 3H+KL
        ({"similarity": ("labelled",), "kl_bins": 5}, 3 + 192, 5, None),
        ({"class_distribution": None, "entropy_bins": 2}, 12, 64, None),
        ({"entropy_pools": ()}, 3, 64, ["class_shares"]),
        (
            {"class_distribution": "counts"},
            195,
            64,
            ["class_counts"] + [f"entropy_{m}_8x8" for m in ("min", "avg", "max")],
        ),
    ],
)
def test_each_part_of_the_features_can_be_switched_off(options, features, divergences, names):
    env = closed_form_env(**options)
    record = play(env, 0)
    for observation, *_ in record:
        assert observation["state"].shape == (32, features)
        assert observation["candidates"].shape == (3, 4, features)
        assert ("similarity" in observation) == (divergences is not None)
        if divergences is not None:
            assert observation["similarity"].shape == (3, 4, divergences)
    if names is not None:
        assert env.layout["features"] == names


def test_raw_counts_are_the_shares_times_the_pixels():
    shares, counts = (
        closed_form_env(class_distribution=kind).reset(seed=0)[0]["candidates"] for kind in ("shares", "counts")
    )
    np.testing.assert_allclose(counts[..., :3], shares[..., :3] * 80, atol=1e-4)
    np.testing.assert_array_equal(counts[..., 3:], shares[..., 3:])


def test_pools_of_few_images():
    env = closed_form_env(pool_images=1, regions_per_step=2, pool_size=3)
    for seed in range(5):
        env.reset(seed=seed)
        assert len({env.grid.box(int(region)).image for pool in env.pools for region in pool}) == 1


def test_features_of_ones_own():
    class Height:
        name = "mean_logit"

        def bounds(self, num_classes, region_size):
            return np.full(2, -100, np.float32), np.full(2, 100, np.float32)

        def __call__(self, prediction):
            return prediction.regions.pool(prediction.logits.mean(dim=0), 1, "avg").repeat(1, 2)

    env = closed_form_env(features=[Height()])
    observation, _ = env.reset(seed=0)
    logits = env.learner.logits_of(0, IMAGE_SIZE, [0, 0, 0]).mean(dim=0).numpy()
    top, bottom, left, right = slow_boxes(IMAGE_SIZE, (8, 10))[5]
    expected = slow_pool(logits[top:bottom, left:right], 1, "avg")
    np.testing.assert_allclose(observation["state"][5], np.repeat(expected, 2), atol=1e-5)
    assert env.layout["features"] == ["mean_logit"]


# ---- nothing leaks, nothing is repeated


def noisy_outside(data, kept, seed=9):
    """Replace the masks of all images that are not in ``kept``."""
    noise = numbered_data(seed=seed)
    for number in set(range(9)) - set(kept):
        data.mask(number)[...] = noise.mask(number)
    return data


@pytest.mark.parametrize("split", ["train", "eval"])
def test_masks_that_were_not_asked_for_do_not_change_observations(split):
    acquired = getattr(SPLITS, split)
    env = closed_form_env(numbered_data(), scores=SCORES, split=split)
    leaking = closed_form_env(noisy_outside(numbered_data(), acquired), scores=SCORES, split=split)
    assert same([r[0] for r in play(env, 4)], [r[0] for r in play(leaking, 4)])


def test_labels_of_regions_that_were_not_chosen_do_not_change_anything():
    env = closed_form_env(scores=SCORES)
    record = play(env, 4)
    data = noisy_outside(numbered_data(), ())
    for region in env.labels.labelled:
        box = env.grid.box(region)
        box.crop(data.mask(box.image))[...] = truth_of(env, region)
    assert same(play(closed_form_env(data, scores=SCORES), 4), record)


@pytest.mark.parametrize("scores", [(), SCORES])
def test_two_seeded_runs_are_equal_whatever_was_played_before(scores):
    fresh = closed_form_env(scores=scores)
    record = play(fresh, 11)
    used = closed_form_env(scores=scores)
    play(used, 1, actions_seed=5)
    used.reset(seed=2)
    used.step(FIRST)  # and left in the middle of an episode
    assert same(play(used, 11), record)
    assert not same(play(used, 12), record)
    follow_up = play(fresh, None), play(used, None)
    assert not same(*follow_up)  # 12 was played in between
    assert fresh.learner.resets == 2


def test_an_episode_without_a_seed_goes_on_with_the_random_state():
    one, other = closed_form_env(), closed_form_env()
    play(one, 0)
    play(other, 0)
    assert same(play(one, None), play(other, None))


def test_what_depends_on_theta_0_alone_is_computed_once():
    env = closed_form_env(scores=SCORES, regions_per_step=6, pool_size=8, budget=6)  # all 48 regions are candidates
    env.learner.forget_calls()
    env.reset(seed=0)
    learner = env.learner
    assert sorted(number for call in learner.predicted for number in call) == [0, 1, 2, 3, 4]
    assert sorted(number for call in learner.sampled for number in call) == [2, 3, 4]
    assert learner.evaluated == [[5]]
    learner.forget_calls()
    for seed in (None, 0, 7):
        env.reset(seed=seed)
    assert (learner.predicted, learner.sampled, learner.evaluated) == ([], [], [])


def test_theta_0_is_described_only_where_candidates_are():
    env = closed_form_env(pool_images=1, regions_per_step=2, pool_size=2)
    env.learner.batch_size = 1
    env.learner.forget_calls()
    env.reset(seed=0)
    (image,) = {env.grid.box(int(region)).image for pool in env.pools for region in pool}
    assert sorted(number for call in env.learner.predicted for number in call) == sorted([0, 1, image])


def test_a_step_predicts_each_image_at_most_once():
    env = closed_form_env(scores=SCORES)
    env.reset(seed=0)
    env.learner.forget_calls()
    env.step(FIRST)
    images = {env.grid.box(int(region)).image for pool in env.pools for region in pool}
    assert sorted(n for call in env.learner.predicted for n in call) == sorted({0, 1} | images)
    assert sorted(n for call in env.learner.sampled for n in call) == sorted(images)


# ---- oracles


class Scripted:
    """Answers with what it is told to, or with the truth."""

    def __init__(self, data):
        self.data, self.spoil, self.asked = data, None, []

    def label(self, boxes):
        self.asked.append(list(boxes))
        masks = [self.data.mask(b.image)[b.top : b.bottom, b.left : b.right].copy() for b in boxes]
        return masks if self.spoil is None else self.spoil(masks)


def unreachable(masks):
    raise ConnectionError("nobody is there")


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (unreachable, ConnectionError, "nobody is there"),
        (lambda masks: masks[:2], ValueError, "the oracle returned 2 masks; expected 3"),
        (lambda masks: None, ValueError, "the oracle returned NoneType"),
        (lambda masks: [*masks[:2], masks[2][1:]], ValueError, r"expected uint8 \(8, 10\), found uint8 \(7, 10\)"),
        (lambda masks: [masks[0].astype(float), *masks[1:]], ValueError, "found float64"),
        (lambda masks: [masks[0], masks[1] + 77, masks[2]], ValueError, "are not classes; expected 0 to 2, or 255"),
    ],
)
def test_a_wrong_answer_changes_nothing_and_the_step_can_be_repeated(spoil, error, message):
    data = numbered_data()
    oracle = Scripted(data)
    env = closed_form_env(data, oracle=oracle, render_mode="rgb_array")
    undisturbed = closed_form_env(data)
    for subject in (env, undisturbed):
        subject.reset(seed=0)
        subject.step(FIRST)
    picture = env.render()
    for _ in range(2):
        oracle.spoil = spoil
        with pytest.raises(error, match=message):
            env.step(np.array([1, 2, 3]))
        assert len(env.labels) == 3
        np.testing.assert_array_equal(env.render(), picture)
    oracle.spoil = None
    assert same(env.step(np.array([1, 2, 3])), undisturbed.step(np.array([1, 2, 3])))


def test_partial_labels_count_as_far_as_they_go():
    data = numbered_data()
    oracle = Scripted(data)

    def upper_half(masks):
        for mask in masks:
            mask[4:] = 255
        return masks

    oracle.spoil = upper_half
    env = closed_form_env(data, oracle=oracle)
    _, first = env.reset(seed=0)
    _, reward, _, _, info = env.step(FIRST)
    counts = sum(slow_counts(truth_of(env, region)[:4], 3) for region in info["chosen"])
    np.testing.assert_array_equal(info["label_counts"], counts)
    assert info["label_counts"].sum() == 3 * 40
    assert reward == pytest.approx(env.learner.miou_after(counts) - first["miou"])
    assert info["labelled"] == 3


def test_an_oracle_that_labels_nothing_leaves_the_histogram_empty():
    data = numbered_data()
    oracle = Scripted(data)
    oracle.spoil = lambda masks: [np.full_like(mask, 255) for mask in masks]
    env = closed_form_env(data, oracle=oracle)
    record = play(env, 0)
    for observation, *_ in record[:-1]:
        assert not observation["similarity"][..., :32].any()
        assert math.isclose(observation["similarity"][0, 0, 32:].sum(), 1, abs_tol=1e-5)
    assert [result[1] for result in record[1:]] == [0.0] * 4


def test_scores_of_ones_own():
    class Area:
        name, needs_dropout = "area", False

        def high(self, num_classes, region_size):
            return float(region_size[0] * region_size[1])

        def __call__(self, prediction):
            return prediction.class_counts.sum(dim=1).float()

    score: Score = Area()
    observation, _ = closed_form_env(scores=[score], region_size=(9, 11)).reset(seed=0)
    assert set(np.unique(observation["score_area"])) <= {99.0, 63.0, 55.0, 35.0}
