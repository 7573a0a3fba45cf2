"""Labels that were not paid for change nothing: masks replaced by noise, and everything compared bit for bit."""

import numpy as np
import pytest
import torch
from fakes import SMALL, SPLITS, ClosedFormLearner, numbered_data, same, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st

from al_seg_env import BALD, ArrayData, Entropy, EnvConfig, Margin, RegionSelectionEnv, TorchLearner
from al_seg_env.datasets.frames import Frames
from al_seg_env.learner.fitting import FitSettings, evaluate, fit_to_convergence

FIGURES_ON_D_R = ("miou", "class_iou")
ALL = range(9)


def torch_learner():
    return TorchLearner(tiny_network(), 3, learning_rate=0.1, batch_size=2, device="cpu", precision="float32")


LEARNERS = {"closed form": ClosedFormLearner, "network": torch_learner}
both_learners = pytest.mark.parametrize("learner", LEARNERS)
both_splits = pytest.mark.parametrize("split", ["train", "eval"])


@pytest.fixture(autouse=True)
def one_thread():
    """Threads cost such small networks more than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_env(data, learner, split="train", **options):
    return RegionSelectionEnv(
        data,
        SPLITS,
        LEARNERS[learner](),
        config=EnvConfig(**{**SMALL, "crop_size": (16, 20), "split": split, **options}),
        scores=(Entropy(), BALD(2), Margin()),
    )


def with_noise(data, images, seed=1, kept=()):
    """Return the data with noise, void included, for the masks of ``images``, except for the boxes ``kept``."""
    rng = np.random.default_rng(seed)
    masks = [data.mask(number).copy() for number in ALL]
    for number in images:
        masks[number] = rng.choice(np.array([0, 1, 2, 255], np.uint8), size=data.image_size)
    for box in kept:
        box.crop(masks[box.image])[...] = box.crop(data.mask(box.image))
    return ArrayData([data.image(number) for number in ALL], masks, data.classes, data.names)


def weights(learner):
    """Return all that training changes, as arrays and numbers."""

    def plain(part):
        if isinstance(part, dict):
            return {key: plain(value) for key, value in part.items()}
        if isinstance(part, list | tuple):
            return [plain(value) for value in part]
        return part.numpy().copy() if isinstance(part, torch.Tensor) else part

    return plain(learner.state_dict())


def play(env, seed=3, episodes=2):
    """Play episodes with random actions; return what came back in each step, the reward, and the weights then."""
    rng = np.random.default_rng(seed)
    steps = []
    for episode in range(episodes):
        observation, info = env.reset(seed=None if episode else seed)
        reward, terminated = 0.0, False
        while True:
            steps.append({"observation": observation, "reward": reward, "info": info, "weights": weights(env.learner)})
            if terminated:
                break
            observation, reward, terminated, _, info = env.step(rng.integers(env.action_space.nvec))
    return steps


def without_figures(steps):
    """Leave out what D_R alone may decide."""
    return [
        {
            **{key: value for key, value in step.items() if key != "reward"},
            "info": {key: value for key, value in step["info"].items() if key not in FIGURES_ON_D_R},
        }
        for step in steps
    ]


def boxes_chosen(env, steps):
    return [env.grid.box(region) for step in steps for region in step["info"]["chosen"]]


# ---- acquisition


@both_learners
@both_splits
def test_masks_of_all_splits_but_the_two_in_use_change_nothing_at_all(learner, split):
    data, acquired = numbered_data(void=0.1), getattr(SPLITS, split)
    record = play(make_env(data, learner, split))
    unused = set(ALL) - set(acquired) - set(SPLITS.reward)
    assert set(SPLITS.state) | set(SPLITS.test) < unused
    for seed in range(3):
        assert same(play(make_env(with_noise(data, unused, seed), learner, split)), record)


@both_splits
def test_images_of_the_other_pool_and_of_the_test_change_nothing_either(split):
    data = numbered_data(void=0.1)
    record = play(make_env(data, "network", split))
    unused = set(ALL) - set(SPLITS.state) - set(SPLITS.reward) - set(getattr(SPLITS, split))
    noise = numbered_data(seed=5)
    images = [(noise if number in unused else data).image(number) for number in ALL]
    masks = [(noise if number in unused else data).mask(number) for number in ALL]
    assert same(play(make_env(ArrayData(images, masks, data.classes), "network", split)), record)


@both_learners
@both_splits
def test_masks_of_d_r_change_the_reward_and_its_figures_only(learner, split):
    data = numbered_data(void=0.1)
    record = play(make_env(data, learner, split))
    noisy = play(make_env(with_noise(data, SPLITS.reward), learner, split))
    assert same(without_figures(noisy), without_figures(record))
    if learner == "network":  # it is evaluated on D_R, where the closed form needs no masks
        for one, other in zip(noisy, record, strict=True):
            assert all(not np.array_equal(one["info"][key], other["info"][key]) for key in FIGURES_ON_D_R)
        assert [step["reward"] for step in noisy] != [step["reward"] for step in record]


@pytest.mark.parametrize(
    "options", [{}, {"crop_labels": "all", "crop_size": None}, {"fit_iterations": 3, "fit_regions": "all"}]
)
@both_learners
@both_splits
def test_masks_of_regions_never_chosen_change_nothing_at_all(learner, split, options):
    data = numbered_data(void=0.1)
    env = make_env(data, learner, split, **options)
    record = play(env)
    noisy = with_noise(data, set(ALL) - set(SPLITS.reward), kept=boxes_chosen(env, record))
    changed = sum(int((noisy.mask(number) != data.mask(number)).sum()) for number in getattr(SPLITS, split))
    assert changed > 500
    assert same(play(make_env(noisy, learner, split, **options)), record)


@settings(max_examples=8, deadline=None)
@given(
    learner=st.sampled_from(sorted(LEARNERS)),
    split=st.sampled_from(["train", "eval"]),
    step=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_a_mask_counts_from_the_step_in_which_it_is_labelled(learner, split, step, seed):
    data = numbered_data(seed=seed)
    env = make_env(data, learner, split)
    record = play(env, seed, episodes=1)
    known = boxes_chosen(env, record[:step])  # what was labelled before this step
    noisy = with_noise(data, set(ALL) - set(SPLITS.reward), seed, kept=known)
    found = play(make_env(noisy, learner, split), seed, episodes=1)
    assert same(found[:step], record[:step])
    assert [s["info"]["chosen"] for s in found] == [s["info"]["chosen"] for s in record]  # chance is not touched
    for key in ("info", "weights"):
        assert not same(found[step][key], record[step][key])
    if step < 4:  # the last observation is all zeros
        assert not same(found[step]["observation"], record[step]["observation"])


@pytest.mark.parametrize("crop_labels", ["new", "all"])
@both_learners
def test_what_is_kept_between_episodes_holds_no_labels(learner, crop_labels):
    """After episodes with other labels, the environment plays as a new one does."""
    data = numbered_data(void=0.1)
    used = make_env(data, learner, crop_labels=crop_labels, crop_size=None)
    play(used, seed=8)
    assert same(play(used), play(make_env(data, learner, crop_labels=crop_labels, crop_size=None)))


# ---- training to convergence


class Watched(TorchLearner):
    """Remembers its weights whenever it is evaluated: before the first epoch, then after each."""

    def evaluate(self, batches):
        self.history = [*getattr(self, "history", []), weights(self)]
        return super().evaluate(batches)


def converge(data, env, patience=6):
    """Train theta_0 on what ``env`` has labelled, with the images and masks of ``data`` for the rest."""
    learner = Watched(tiny_network(), 3, learning_rate=0.2, device="cpu", precision="float32")
    fit = fit_to_convergence(
        learner,
        Frames(data),
        env.grid,
        env.labels.labelled,
        env.labels.mask,
        SPLITS.reward,
        FitSettings(crop_size=(16, 20), batch_size=4, patience=patience, max_epochs=6),
        np.random.default_rng(0),
    )
    return fit, learner


@pytest.fixture(scope="module")
def acquired():
    """Data, and an environment with 12 regions of D_V labelled."""
    data = numbered_data(void=0.1)
    env = make_env(data, "network", "eval")
    play(env, episodes=1)
    return data, env


@pytest.mark.parametrize("seed", range(3))
def test_the_final_training_sees_neither_test_masks_nor_any_that_is_not_labelled(acquired, seed):
    data, env = acquired
    fit, learner = converge(data, env)
    boxes = [env.grid.box(region) for region in env.labels.labelled]
    noisy = with_noise(data, set(ALL) - set(SPLITS.reward), seed, kept=boxes)
    other_fit, other = converge(noisy, env)
    assert other_fit == fit
    assert same(weights(other), weights(learner))
    assert same(other.history, learner.history)
    figures = [evaluate(learner, Frames(source), SPLITS.test).miou for source in (data, noisy)]
    assert figures[0] != figures[1]  # the test itself does look at them


def test_d_r_decides_which_epoch_is_kept_and_nothing_else(acquired):
    data, env = acquired
    kept = set()
    for seed in range(6):
        fit, learner = converge(with_noise(data, SPLITS.reward, seed), env)
        reference = converge(data, env)[1].history
        assert same(learner.history, reference)
        assert same(weights(learner), reference[fit.best_epoch])
        assert fit.best_epoch == int(np.argmax(fit.history))
        kept.add(fit.best_epoch)
    assert len(kept) > 1


def test_d_r_decides_when_training_stops_and_nothing_before(acquired):
    data, env = acquired
    reference = converge(data, env)[1].history
    lengths = set()
    for seed in range(6):
        fit, learner = converge(with_noise(data, SPLITS.reward, seed), env, patience=1)
        assert same(learner.history, reference[: len(fit.history)])
        lengths.add(len(fit.history))
    assert len(lengths) > 1
