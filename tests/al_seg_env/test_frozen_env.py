"""The environment with a frozen encoder, with replay, and with rewards on a grid."""

import copy
import json
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import SPLITS, TINY, closed_form_env, make, numbered_data, play, same
from gymnasium.utils.env_checker import check_env

from al_seg_env import EnvConfig, load_state, save_state, save_weights
from al_seg_env.datasets.frames import Frames
from al_seg_env.learner.fitting import evaluate
from al_seg_env.learner.inputs import PixelInputs, inputs_of
from al_seg_env.learner.training_crops import training_crops
from al_seg_env.metrics import mean_iou
from al_seg_env.regions import RegionGrid

LIGHT = {"architecture": "Light", "network_options": {"width": 8}, "trainable": "decoder", "learning_rate": 0.1}
FPN = {"trainable": "decoder", "feature_precision": "float32"}
KINDS = {"Light": LIGHT, "FPN": FPN}


def frozen(kind="Light", **options):
    return make(**{**KINDS[kind], **options})


@pytest.mark.parametrize("kind", KINDS)
def test_gymnasium_finds_nothing_wrong(kind):
    check_env(frozen(kind, scores=["entropy", "margin"]).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_two_seeded_runs_are_equal_and_learn(kind):
    env = frozen(kind, scores=["entropy", "bald"], bald_samples=3, replay=0.5, reward_stride=2)
    one, again = play(env, 3), play(env, 3)
    assert same(one, again)
    assert len({result[4]["miou"] for result in one[1:]}) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_forks_states_and_copies_continue_exactly(kind, tmp_path):
    env = frozen(kind, scores=["bald"], bald_samples=2, replay=0.3).unwrapped
    env.reset(seed=1)
    env.action_space.seed(0)
    env.step(env.action_space.sample())
    fork, state = env.fork(), env.get_state()
    save_state(tmp_path / "state", state)
    other = frozen(kind, scores=["bald"], bald_samples=2, replay=0.3).unwrapped
    other.set_state(load_state(tmp_path / "state"))
    sent = pickle.loads(pickle.dumps(env))
    assert fork.learner.encoder is env.learner.encoder
    action = env.action_space.sample()
    expected = copy.deepcopy(env.step(action))
    for twin in (fork, other, sent):
        assert same(copy.deepcopy(twin.step(action)), expected)


def test_a_state_of_another_encoder_is_refused():
    env = frozen().unwrapped
    env.reset(seed=0)
    state = env.get_state()
    for other in ({"feature_precision": "float16"}, {"encoder": "tu-mobilenetv3_small_050"}):
        with pytest.raises(ValueError, match="theta_0 is"):
            frozen(**other).unwrapped.set_state(state)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_one_mode_are_theta_0_of_the_other(kind, tmp_path):
    trained = frozen(kind).unwrapped
    trained.reset(seed=0)
    trained.step(trained.action_space.sample())
    save_weights(trained.learner, tmp_path / "decoder", trained.data.classes)
    options = {**KINDS[kind], "weights": str(tmp_path / "decoder"), "fold_batchnorm": False}
    whole = make(**{**options, "trainable": "all"}).unwrapped
    save_weights(whole.learner, tmp_path / "all", whole.data.classes)
    again = make(**{**options, "weights": str(tmp_path / "all"), "feature_precision": "float32"}).unwrapped
    assert (tmp_path / "decoder").read_bytes() == (tmp_path / "all").read_bytes()
    for image in (0, 5):
        logits = [env.learner.predict(inputs_of(env.learner, env.frames).whole([image])) for env in (whole, again)]
        assert torch.allclose(*logits, atol=1e-5)


def test_whole_figures_do_not_depend_on_the_mode(tmp_path):
    whole = make(fold_batchnorm=False).unwrapped
    divided = frozen("FPN", fold_batchnorm=False).unwrapped
    figures = [evaluate(env.learner, env.frames, env.splits.reward).confusion for env in (whole, divided)]
    assert abs(figures[0] - figures[1]).sum() <= 2  # ties of the most probable class


def test_rewards_are_counted_on_the_grid_and_final_figures_on_every_pixel():
    env = frozen(reward_stride=4, feature_precision="float32").unwrapped
    _, info = env.reset(seed=0)
    masks = env.frames.masks(env.splits.reward)
    classes = env.learner.predict(env.inputs.whole(env.splits.reward)).argmax(dim=1)
    n_classes = len(env.data.classes)
    for step, found in ((4, info["miou"]), (1, evaluate(env.learner, env.frames, env.splits.reward).miou)):
        true, predicted = (maps[:, step // 2 :: step, step // 2 :: step].long() for maps in (masks, classes))
        known = true < n_classes
        cells = torch.bincount(true[known] * n_classes + predicted[known], minlength=n_classes**2)
        assert found == pytest.approx(100 * mean_iou(cells.view(n_classes, n_classes)), abs=0.05)


def test_a_fork_that_counts_rewards_on_another_grid_measures_from_there():
    env, other = make().unwrapped, make(reward_stride=3).unwrapped
    env.reset(seed=0)
    other.reset(seed=0)
    action = np.zeros(len(env.action_space.nvec), np.int64)
    env.step(action)
    other.step(action)
    assert same(env.fork(reward_stride=3).step(action), other.step(action))


def test_pixel_learners_count_rewards_on_the_grid_too():
    env = make(reward_stride=3).unwrapped
    _, info = env.reset(seed=0)
    batches = [(env.frames.images(env.splits.reward), env.frames.masks(env.splits.reward))]
    assert info["miou"] == pytest.approx(100 * mean_iou(env.learner.evaluate(batches, 3)))
    assert info["miou"] != pytest.approx(100 * mean_iou(env.learner.evaluate(batches)))


@pytest.mark.parametrize(("split", "known"), [("train", SPLITS.state), ("eval", SPLITS.train)])
@pytest.mark.parametrize(("replay", "count"), [(0.25, 1), (0.5, 3), (0.9, 27)])
def test_replay_adds_regions_labelled_before_to_each_update(split, known, replay, count):
    env = closed_form_env(split=split, replay=replay, fit_iterations=2)
    assert env.labelled_before == known
    env.reset(seed=0)
    _, _, _, _, info = env.step(np.zeros(3, np.int64))
    assert len(env.learner.targets) == 2
    regions = env.grid.regions_of(known)
    crops = [env.grid.box(region).crop(env.frames.mask(env.grid.box(region).image)) for region in regions]
    for targets in env.learner.targets:
        assert len(targets) == 3 + count
        for target in targets[3:]:  # the crop is the region, flipped or not
            assert any(np.array_equal(target, crop) or np.array_equal(target, crop[:, ::-1]) for crop in crops)
    assert env.learner.targets[0][3:].numpy().tolist() != env.learner.targets[1][3:].numpy().tolist()
    assert info["labelled"] == 3


def test_without_replay_no_random_number_is_drawn_for_it():
    plain, none = closed_form_env(), closed_form_env(replay=0)
    assert same(play(plain, 0), play(none, 0))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"replay": 1.0}, "replay is 1.0; expected a finite number of at least 0 and below 1"),
        ({"replay": -0.1}, "replay is -0.1"),
        ({"reward_stride": 0}, "reward_stride is 0; expected a whole number of at least 1"),
        ({"reward_stride": 2.0}, "reward_stride is 2.0"),
        ({"observation_stride": 2**62}, "observation_stride is 4.*; expected a whole number from 1 to 2147483647"),
    ],
)
def test_settings_out_of_their_range(setting, message):
    with pytest.raises(ValueError, match=message):
        EnvConfig(**setting)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainable": "head"}, "trainable is 'head'; expected one of 'all', 'decoder'"),
        ({"feature_precision": "half"}, "feature_precision is 'half'"),
        ({"label_stride": 0}, "label_stride is 0"),
        ({"crop_labels": "all"}, "crop_labels='all' needs trainable='all'"),
        ({"encoder": "mit_b0", "architecture": "Light"}, None),
        ({"network_options": {"width": 8, "depth": 3}}, "cannot build architecture='Light'"),
    ],
)
def test_arguments_that_do_not_fit(options, message):
    if message is None:
        frozen(**options).close()
    else:
        with pytest.raises(ValueError, match=message):
            frozen(**options)


@pytest.mark.parametrize("made", [make, frozen])
def test_observations_on_a_grid_of_pixels(made):
    """Of one pixel a region, features and scores are those of this pixel."""
    one_value = {"entropy_pools": ["avg"], "entropy_bins": 1}
    env = made(observation_stride=1000, precision="float32", scores=["entropy"], **one_value).unwrapped
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    shares, entropies = observation["candidates"][..., :-1], observation["candidates"][..., -1]
    assert set(np.unique(shares)) <= {0.0, 1.0}
    np.testing.assert_allclose(observation["score_entropy"], entropies, rtol=1e-5)
    box = env.grid.box(int(env.pools[0][0]))
    logits = env.learner.predict(env.inputs.whole([box.image]))[0, :, box.top, box.left]
    np.testing.assert_allclose(entropies[0, 0], torch.special.entr(logits.softmax(0)).sum(), rtol=1e-3, atol=1e-4)


def test_states_from_before_the_settings_existed_are_taken():
    env = closed_form_env()
    env.reset(seed=0)
    state = env.get_state()
    assert not {"replay", "reward_stride", "reward_classes", "fit_regions"} & set(state["identity"]["config"])
    closed_form_env().set_state(state)
    for changed in ({"replay": 0.5}, {"reward_stride": 2}, {"fit_regions": "all"}, {"reward_classes": ["car"]}):
        with pytest.raises(ValueError, match=f"{next(iter(changed))} is missing there"):
            closed_form_env(**changed).set_state(state)


def test_the_layout_tells_of_which_images_the_embedding_is():
    sizes = {"seed": 0, "state": 2, "reward": 2, "eval": 3}
    found = [
        frozen(region_features=features, splits=splits).unwrapped.layout.get("basis_of")
        for features in (["embedding"], ["surroundings", "location"], ["location"])
        for splits in ({**sizes, "train": 3}, {**sizes, "train": 4})
    ]
    assert found[0] == found[2] != found[1] == found[3]
    assert found[4:] == [None, None]


def test_the_cache_is_shared_by_environments_and_filled_once(tmp_path):
    options = {"cache": str(tmp_path), **LIGHT}
    one = make(**options).unwrapped
    first = play(one, 0)
    (folder,) = tmp_path.glob("features-*")
    content = (folder / "features.bin").read_bytes()
    about = json.loads((folder / "about.json").read_text())
    assert about["precision"] == "bfloat16"
    assert [output["output"] for output in about["outputs"]] == [4, 5]
    two = make(**options).unwrapped
    assert same(play(two, 0), first)
    assert (folder / "features.bin").read_bytes() == content
    assert same(play(make(**LIGHT).unwrapped, 0), first)  # in memory


def test_only_the_images_that_an_episode_looks_at_are_encoded_ahead():
    env = frozen().unwrapped
    env.reset(seed=0)
    looked_at = {*env.splits.state, *env.splits.train, *env.splits.reward}
    (store,) = env.inputs._stores.values()
    assert set(store._maps) == looked_at
    del env, store
    few = frozen(budget=1, regions_per_step=1, pool_size=1).unwrapped  # four images, one candidate
    few.reset(seed=0)
    (store,) = few.inputs._stores.values()
    others = set(store._maps) - {*few.splits.state, *few.splits.reward}
    assert others == {few.grid.box(int(few.pools[0][0])).image}


def test_a_picture_can_be_drawn():
    env = frozen(render_mode="rgb_array")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert env.render().dtype == np.uint8


def test_the_options_are_plain_values_that_the_spec_keeps():
    env = frozen(replay=0.5, reward_stride=2, label_stride=2)
    spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
    assert same(play(gym.make(spec), 0), play(env, 0))


def test_inputs_of_a_learner_without_any_are_pixels_and_todays_crops():
    frames, grid = Frames(numbered_data()), RegionGrid((32, 40), (8, 10))
    inputs = inputs_of(object(), frames)
    assert isinstance(inputs, PixelInputs)
    assert torch.equal(inputs.whole([3, 1]), frames.images([3, 1]))
    views = inputs.training_views(grid, [5, 20], frames.mask, (12, 14), np.random.default_rng(0))
    crops = training_crops(frames, grid, [5, 20], frames.mask, (12, 14), np.random.default_rng(0))
    assert all(map(torch.equal, views, crops))


def test_labels_are_thinned_at_random_places():
    env = make(label_stride=3, crop_size=[40, 64], **{"image_size": TINY["image_size"]}).unwrapped
    seen = []
    backward = env.learner._backward

    def noting(images, targets, grid, **more):
        rows, columns = grid
        thinned = torch.full_like(targets, 255)
        thinned[:, rows, columns] = targets[:, rows, columns]
        seen.append(thinned)
        return backward(images, targets, grid=grid, **more)

    env.learner._backward = noting
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.step(env.action_space.sample())
    offsets = set()
    for targets in seen:
        rows, columns = ((targets != 255).any(dim=0).any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
        assert len(set((rows % 3).tolist())) == len(set((columns % 3).tolist())) == 1
        offsets.add((int(rows[0]) % 3, int(columns[0]) % 3))
    assert len(seen) == 2
    assert offsets <= {(a, b) for a in range(3) for b in range(3)}
