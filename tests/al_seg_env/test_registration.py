"""How plain values become an environment."""

import json
from contextlib import suppress

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import ID, IMAGE_SIZE, TINY, closed_form_env, make, numbered_data, same
from safetensors.torch import load_file
from stable_baselines3.common.monitor import Monitor
from torch import nn

import al_seg_env
from al_seg_env import CallbackOracle, Entropy, Splits, SyntheticStreets, make_env, save_weights
from al_seg_env.datasets.splits import resolve_splits
from al_seg_env.observation.features import ClassDistribution
from al_seg_env.registration import (
    BUILD_OPTIONS,
    ENV_OPTIONS,
    LEARNER_OPTIONS,
    STREETS_THETA_0,
    environment_spec,
    make_again,
    synthetic_streets,
)


def test_every_registered_environment_is_made_of_plain_values():
    for name in ("SyntheticStreets", "CamVid", "Cityscapes", "ImageFolder"):
        spec = gym.spec(f"al_seg_env/{name}-v0")
        assert isinstance(spec.entry_point, str)
        assert spec.max_episode_steps is None


def test_options_reach_where_they_belong(tmp_path):
    env = make(
        learning_rate=0.25,
        max_grad_norm=2.0,
        split="eval",
        reward_scale=3.0,
        data_seed=4,
        style="render",
        scores=["margin"],
        kl_bins=5,
        pool_images=2,
    ).unwrapped
    assert env.learner.optimizer.param_groups[0]["lr"] == 0.25
    assert env.learner.max_grad_norm == 2.0
    assert (env.config.split, env.config.reward_scale, env.config.pool_images) == ("eval", 3.0, 2)
    assert (env.data.seed, env.data.style) == (4, "render")
    assert env.observation_space["similarity"].shape == (3, 4, 10)
    assert "score_margin" in env.observation_space.spaces
    assert env.grid.region_size == (20, 16)  # lists, as json has no tuples


def test_splits_by_seed_sizes_and_file(tmp_path):
    data = SyntheticStreets(12, (40, 64))
    sizes = {"state": 2, "train": 3, "reward": 2, "eval": 2, "test": None}
    drawn = resolve_splits(data, 5, sizes, {})
    assert drawn == Splits.draw(data, 5, sizes=sizes, sources={})
    changed = resolve_splits(data, {"seed": 5, "train": 1}, sizes, {})
    assert changed == Splits.draw(data, 5, sizes={**sizes, "train": 1}, sources={})
    drawn.save(tmp_path / "splits.json", data)
    assert resolve_splits(data, str(tmp_path / "splits.json"), sizes, {}) == drawn
    env = make(splits=str(tmp_path / "splits.json"))
    assert env.unwrapped.splits == drawn
    with pytest.raises(ValueError, match=r"splits 'nowhere' is neither a file nor .*\['ralis', 'ralis_reward50'\]"):
        resolve_splits(data, "nowhere", sizes, {})


def test_weights_make_theta_0(tmp_path):
    trained = make(learning_rate=0.1).unwrapped
    trained.reset(seed=0)
    *_, after = trained.step(np.zeros(3, np.int64))
    path = tmp_path / "theta_0.safetensors"
    save_weights(trained.learner, path, trained.data.classes)
    _, info = make(weights=str(path)).reset()
    assert info["miou"] == pytest.approx(after["miou"])


def test_streets_start_from_the_theta_0_that_comes_with_the_package():
    assert STREETS_THETA_0.stat().st_size < 2e6
    theta_0 = load_file(STREETS_THETA_0)
    for options in ({}, {"trainable": "decoder"}, {"image_size": [40, 64]}):
        learner = make_again(ID, device="cpu", precision="float32", **options).learner
        of_network = getattr(learner, "whole_state_dict", learner.network.state_dict)()
        assert of_network.keys() == theta_0.keys()
        assert all(torch.equal(of_network[name], value.to(of_network[name].dtype)) for name, value in theta_0.items())
    env = make_again(ID, images=160, splits={"seed": 0, "reward": 8}, device="cpu", precision="float32")
    assert env.reset(seed=0)[1]["miou"] > 20  # scenes of another style than it was trained on


@pytest.mark.parametrize(
    "options",
    [
        {"weights": None},
        {"weights_seed": 1},
        {"encoder": "tu-mobilenetv3_small_050"},
    ],
)
def test_streets_with_a_start_of_their_own_do_not_load_it(options):
    learner = make_again(ID, device="cpu", precision="float32", **options).learner
    name = "encoder.model.conv_stem.weight"
    found, stored = learner.network.state_dict()[name], load_file(STREETS_THETA_0)[name]
    assert found.shape != stored.shape or not torch.allclose(found, stored.float(), atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "Unet"},
        {"architecture": "Light", "trainable": "decoder"},
        {"network_options": {"decoder_pyramid_channels": 16}},
    ],
)
def test_another_network_on_the_same_encoder_takes_the_encoder_of_it(options):
    learner = make_again(ID, device="cpu", precision="float32", **options).learner
    found = getattr(learner, "whole_state_dict", learner.network.state_dict)()
    encoder = {name: value for name, value in load_file(STREETS_THETA_0).items() if name.startswith("encoder.")}
    assert len(encoder) > 100
    assert all(torch.equal(found[name], value.to(found[name].dtype)) for name, value in encoder.items())


def test_the_layout_is_plain_json_and_names_what_an_agent_relies_on():
    layout = make().unwrapped.layout
    assert json.loads(json.dumps(layout)) == layout
    assert layout["classes"] == list(SyntheticStreets(1).classes)
    assert len(layout["state_images"]) == 2
    assert layout["region_size"] == [20, 16]
    assert layout["similarity"] == "kl_labelled_unlabelled_32_fixed"
    assert closed_form_env(similarity=()).layout["similarity"] is None


def test_the_entry_point_is_a_plain_function_too():
    env = synthetic_streets(**TINY)
    assert isinstance(env, al_seg_env.RegionSelectionEnv)
    assert env.spec is None


@pytest.mark.parametrize("name", ["al_seg_env/CamVid-v0", "al_seg_env/Cityscapes-v0", "al_seg_env/ImageFolder-v0"])
def test_a_root_is_needed(name):
    with pytest.raises(TypeError, match="root"):
        gym.make(name)


def test_an_unknown_option_names_the_known_ones():
    with pytest.raises(
        TypeError,
        match=r"\['lerning_rate'\] \(did you mean 'learning_rate'\?\); known are architecture, .*learning_rate",
    ):
        gym.make(ID, lerning_rate=1)


EVERY_OPTION = ENV_OPTIONS | LEARNER_OPTIONS | BUILD_OPTIONS | {"splits", "image_size", "style", "images", "data_seed"}


@pytest.mark.parametrize("value", [-1, float("nan"), "", [1, 2, 3], {"x": 1}, 10**12, 1e300])
def test_an_odd_value_of_any_option_is_refused_by_its_name_or_plays(value):
    """Numbers that would take all memory or time are odd, too."""
    played = []
    for name in sorted(EVERY_OPTION):
        try:
            env = make(**{name: value})
        except ValueError as error:
            # A seed is fine, but there are fewer images than its default splits take.
            assert name in str(error) or "images are requested" in str(error), (name, error)  # noqa: PT017
            continue
        env.reset(seed=0)
        with suppress(FloatingPointError):  # a rate of 10**12 is a number, but training diverges, and says so
            env.step(np.zeros(3, np.int64))
        played.append(name)
    assert len(played) < len(EVERY_OPTION) / 4, played


QUICK = {"encoder": "tu-tf_mobilenetv3_small_minimal_100", "precision": "float32", "pool_size": 2}


def test_any_data_become_an_environment():
    data = numbered_data(40)
    env = make_env(data, **QUICK)
    sizes = {name: len(getattr(env.splits, name)) for name in ("state", "train", "reward", "eval", "test")}
    assert sizes == {"state": 2, "train": 10, "reward": 6, "eval": 14, "test": 8}
    assert env.grid.region_size == (IMAGE_SIZE[0] // 4, IMAGE_SIZE[1] // 4)
    assert (env.config.regions_per_step, env.config.budget) == (4, 40)
    env.reset(seed=0)
    _, _, _, _, info = env.step(np.zeros(4, np.int64))
    assert info["labelled"] == 4
    other = make_env(data, splits={"seed": 1, "train": 5}, budget=8, **QUICK)
    assert (len(other.splits.train), other.config.budget) == (5, 8)
    with pytest.raises(TypeError, match=r"unknown options \['bugdet'\] \(did you mean 'budget'\?\); known are "):
        make_env(data, bugdet=8)
    with pytest.raises(ValueError, match="budget is 0"):
        make_env(data, budget=0)


def test_splits_follow_the_partitions_of_any_data():
    data = numbered_data(30)
    data.partitions = {"train": range(20), "val": range(20, 24)}
    splits = make_env(data, **QUICK).splits
    assert splits.reward == (20, 21, 22, 23)
    assert {*splits.state, *splits.train, *splits.eval, *splits.test} == set(range(20))


def test_the_state_set_has_at_most_the_ten_images_of_the_paper():
    assert [len(make_env(numbered_data(n), **QUICK).splits.state) for n in (199, 240)] == [9, 10]


def test_an_environment_is_specified_by_id_environment_and_specification():
    spec = environment_spec(ID, budget=6)
    assert (spec.id, spec.kwargs) == (ID, {"budget": 6})
    assert gym.spec(ID).kwargs == {}  # the registered one is another
    env = make(budget=6)
    for source in (env, env.unwrapped, env.spec):
        changed = environment_spec(source, budget=9)
        assert changed.id == ID
        assert changed.kwargs == {**TINY, "budget": 9}
    assert env.spec.kwargs["budget"] == 6
    assert environment_spec("al_seg_env:" + ID).id == ID
    forecasting = environment_spec(ID, forecast="f", region_features=["forecast"])
    assert environment_spec(forecasting, budget=9).kwargs["forecast"] == "f"
    assert "forecast" not in environment_spec(forecasting, region_features=["location"]).kwargs
    assert environment_spec(forecasting, region_features=["location"], forecast="g").kwargs["forecast"] == "g"
    for unknown in ("al_seg_env/Streets-v0", "no_such_module:A-v0"):
        with pytest.raises(ValueError, match=f"environment '{unknown}' is unknown: "):
            environment_spec(unknown)
    with pytest.raises(ValueError, match=r"has no spec, so it can't be made again .*gymnasium.register"):
        environment_spec(closed_form_env())


def test_an_environment_is_made_again_with_other_arguments():
    oracle = CallbackOracle(numbered_data(), lambda name, box, pixels: pixels[..., 0])
    env = make_again(make(budget=6), oracle=oracle)
    assert env.config.budget == 6
    assert env.oracle is oracle
    assert make_again(env, budget=9).oracle is oracle
    assert env is env.unwrapped
    with pytest.raises(ValueError, match=r"can't be made: unknown options \['bugdet'\] \(did you mean 'budget'\?\)"):
        make_again(env, bugdet=9)
    with pytest.raises(ValueError, match=r"can't be made: unknown options \['env'\]"):
        make_again(ID, **{"env": "x"})  # as --source-arg env=x has it
    with pytest.raises(ValueError, match=r"is a CartPoleEnv; expected a RegionSelectionEnv"):
        make_again("CartPole-v1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"entropy_pools": [], "entropy_bins": 4}, "entropy_bins has no effect, since entropy_pools is empty"),
        ({"similarity": [], "kl_bins": 8, "kl_own": True}, "kl_bins, kl_own has no effect, since similarity is empty"),
        ({"reward": None, "reward_scale": 2.0}, "reward_scale has no effect, since reward is None"),
        ({"reward": None, "reward_classes": ["car"]}, "reward_classes has no effect, since reward is None"),
        ({"bald_samples": 5}, "bald_samples has no effect, since scores lacks 'bald'"),
        ({"feature_precision": "float32"}, "feature_precision has no effect, since trainable is 'all'"),
        ({"trainable": "decoder", "crop_size": [8, 8]}, "crop_size has no effect, since trainable is 'decoder'"),
    ],
)
def test_options_without_effect_are_named(options, message):
    with pytest.warns(UserWarning, match=f"{message}.*; omit it"):
        make(**options)


def test_what_ids_choose_themselves_is_not_named(recwarn):
    options = {"entropy_pools": [], "similarity": [], "trainable": "decoder", "reward": None}
    synthetic_streets(images=208, **options)
    assert not [warning for warning in recwarn if "no effect" in str(warning.message)]


def test_a_forecast_without_its_feature_is_refused():
    with pytest.raises(ValueError, match=r"forecast is 'x'; .*region_features does not name 'forecast'; or name it"):
        make(forecast="x")


class Doubled:
    """A score of one's own: twice the entropy."""

    name = "doubled"

    def high(self, num_classes, region_size):
        return 2 * Entropy().high(num_classes, region_size)

    def __call__(self, prediction):
        return 2 * Entropy()(prediction)


def small_network(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, num_classes, 1))


def test_a_network_and_scores_and_features_of_ones_own(tmp_path):
    data, options = SyntheticStreets(24, (32, 40)), {"precision": "float32", "budget": 8}
    env = make_env(
        data, network=small_network, scores=["entropy", Doubled()], features=[ClassDistribution()], **options
    )
    observation, _ = env.reset(seed=0)
    assert observation["candidates"].shape[-1] == len(data.classes)
    np.testing.assert_allclose(observation["score_doubled"], 2 * observation["score_entropy"], rtol=1e-6)
    env.step(np.zeros(4, np.int64))
    save_weights(env.learner, tmp_path / "weights.safetensors", data.classes)
    again = make_env(data, network=small_network, weights=str(tmp_path / "weights.safetensors"), **options)
    assert same(again.learner.network.state_dict(), env.learner.network.state_dict())
    fresh = make_env(data, network=small_network, **options).learner.network.state_dict()
    assert same(fresh, make_env(data, network=small_network, **options).learner.network.state_dict())  # weights_seed
    assert not same(
        fresh, make_env(data, network=small_network, weights_seed=1, **options).learner.network.state_dict()
    )
    with pytest.raises(ValueError, match="network returned a int for 10 classes; expected an nn.Module"):
        make_env(data, network=lambda num_classes: num_classes, **options)
    with pytest.raises(ValueError, match="network is 'FPN'; expected a function from a number of classes to a network"):
        make_env(data, network="FPN", **options)
    with pytest.warns(UserWarning, match="architecture has no effect, since network makes the network"):
        make_env(data, network=small_network, architecture="Unet", **options)
    with pytest.raises(ValueError, match="scores is .*; expected a list of different ones out of .*'doubled'"):
        make_env(data, scores=[Doubled(), "tripled"], **options)


def test_wrappers_that_would_be_lost_are_named():
    class Twice(gym.RewardWrapper):
        def reward(self, reward):
            return 2 * reward

    env = gym.make("al_seg_env/SyntheticStreets-v0", **QUICK)
    assert environment_spec(Monitor(env)).id == "al_seg_env/SyntheticStreets-v0"
    with pytest.raises(ValueError, match="is wrapped in Twice, which is lost where .*; register a function"):
        environment_spec(Monitor(Twice(env)))
