"""How plain values become an environment."""

import json

import gymnasium as gym
import numpy as np
import pytest
from fakes import ID, TINY, closed_form_env, make

import al_seg_env
from al_seg_env import Splits, SyntheticStreets, save_weights
from al_seg_env.registration import resolve_splits, synthetic_streets


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
    with pytest.raises(TypeError, match=r"unknown options \['lerning_rate'\]; known are architecture, .*learning_rate"):
        gym.make(ID, lerning_rate=1)
