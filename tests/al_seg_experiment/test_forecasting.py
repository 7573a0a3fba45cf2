"""Training the networks of the feature "forecast": by themselves, after a kill, in an experiment, and shared."""

from __future__ import annotations

import json
import shutil

import gymnasium as gym
import numpy as np
import pytest
from experiments import FEATURES, LIGHT, TINY, rows_of
from experiments import WITH_FORECAST as EXPERIMENT
from fakes import same

from agents import SubActionDQN
from al_seg_env import ArrayData, Splits, make_env, save_weights
from al_seg_env.observation.scores import class_rarity
from al_seg_env.storage import load_tree, save_tree
from al_seg_experiment import (
    ForecastTraining,
    evaluate,
    load_experiment,
    load_shared,
    run,
    share,
    status,
    train_agent,
    train_forecast,
)
from al_seg_experiment.cli import main
from al_seg_experiment.forecasting import NETWORK
from al_seg_experiment.policies import make_policy

ID = "al_seg_env/SyntheticStreets-v0"
ARGUMENTS = EXPERIMENT["arguments"]
SETTINGS = ForecastTraining(networks=3, updates=3, batch_size=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_forecast(gym.make(ID, **ARGUMENTS), tmp_path_factory.mktemp("trained") / "forecast", SETTINGS)


def test_each_network_is_trained_without_a_part_of_d_t(trained):
    env = gym.make(ID, **ARGUMENTS).unwrapped
    names = {split: {env.data.names[i] for i in getattr(env.splits, split)} for split in ("state", "train")}
    known = [set(part["images"]) for part in load_tree(trained, "forecast")["networks"]]
    left_out = [names["train"] - each for each in known]
    assert all(names["state"] <= each <= names["state"] | names["train"] for each in known)
    assert sorted(map(len, left_out)) == [2, 2, 2]
    assert set.union(*left_out) == names["train"]
    rows = rows_of(trained.parent / "forecast.csv")
    assert [(row["network"], row["images"], row["unseen"]) for row in rows] == [(str(n), "6", "2") for n in range(3)]
    assert len({row["miou"] for row in rows}) == 3


def test_labels_of_an_image_change_no_network_that_forecasts_it(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (32, 40, 3), dtype=np.uint8) for _ in range(12)]
    masks = [rng.integers(0, 3, (32, 40)).astype(np.uint8) for _ in range(12)]
    kept = {"region_size": (16, 20), "budget": 4, "regions_per_step": 2, "pool_size": 2}
    options = {**LIGHT, **FEATURES, **kept, "encoder": "tu-tf_mobilenetv3_small_minimal_100", "precision": "float32"}

    def make(labels, **more):
        splits = Splits(state=(0, 1), train=(2, 3, 4, 5), reward=(6,), eval=(7, 8, 9), test=(10, 11))
        data = ArrayData(images, labels, ("a", "b", "c"), [f"{i}" for i in range(12)])
        return make_env(data, splits=splits, **options, **more)

    noise = [rng.integers(0, 3, (32, 40)).astype(np.uint8) if i in (3, *range(6, 12)) else masks[i] for i in range(12)]
    described = []
    for labels, name in ((masks, "clean"), (noise, "noisy")):
        gym.register(f"tests/{name}-v0", entry_point=lambda labels=labels, **more: make(labels, **more))
        path = train_forecast(f"tests/{name}-v0", tmp_path / name, SETTINGS)
        env = gym.make(f"tests/{name}-v0", forecast=str(path)).unwrapped
        columns = env.feature_columns("forecast")
        rows = env.observer.described(env.grid.regions_of(range(12)), np.zeros(3, np.int64))
        described.append(rows.reshape(12, 4, -1)[:, :, columns])
    changed = [i for i in range(12) if not np.array_equal(described[0][i], described[1][i])]
    assert 3 not in changed  # whose labels have changed
    assert {2, 4, 5} & set(changed)  # which are forecast by networks that were trained on it


def test_it_resumes_and_what_is_damaged_is_made_again(trained, tmp_path):
    env = gym.make(ID, **ARGUMENTS)
    expected = trained.read_bytes()
    path = train_forecast(env, tmp_path / "forecast", SETTINGS)
    assert path.read_bytes() == expected
    path.unlink()
    kept = path.parent / "network-0.safetensors"
    written = kept.stat().st_mtime_ns
    (path.parent / "network-1.safetensors").unlink()
    damaged = path.parent / "network-2.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    with pytest.warns(UserWarning, match="network-2.safetensors.*set aside"):
        assert train_forecast(env, tmp_path / "forecast", SETTINGS).read_bytes() == expected
    assert kept.stat().st_mtime_ns == written


def test_networks_in_each_others_place_or_of_odd_content_are_trained_again(trained, tmp_path):
    """In its place, a network would forecast the very images that it was trained on."""
    env, folder = gym.make(ID, **ARGUMENTS), tmp_path / "forecast"
    shutil.copytree(trained.parent, folder)
    one, other = folder / "network-0.safetensors", folder / "network-1.safetensors"
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    save_tree(folder / "network-2.safetensors", NETWORK, {"miou": "x"})
    with pytest.warns(UserWarning, match="set aside") as caught:
        assert train_forecast(env, folder, SETTINGS).read_bytes() == trained.read_bytes()
    told = [str(each.message) for each in caught if "trained again" in str(each.message)]
    assert ["trained on other images" in each for each in told] == [True, True, False]
    assert one.read_bytes() == kept


def test_what_does_not_fit_is_refused(trained, tmp_path):
    env = gym.make(ID, **ARGUMENTS)
    with pytest.raises(ValueError, match="networks.*4"):
        train_forecast(env, trained.parent, SETTINGS.model_copy(update={"networks": 4}))
    with pytest.raises(ValueError, match=r"networks is 7; expected at most one for each of the 6 images of D_T"):
        train_forecast(env, tmp_path / "many", ForecastTraining(networks=7, updates=1))
    assert not list((tmp_path / "many").glob("*.safetensors"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    run(load_experiment(EXPERIMENT), folder)
    return folder


def test_an_experiment_trains_them_and_its_pieces_use_them(folder, tmp_path):
    states = {row["piece"]: row["state"] for row in status(load_experiment(EXPERIMENT), folder)}
    assert states["forecast"] == states["query/0"] == states["trials/dqn-0"] == "finished"
    digest = json.loads((folder / "forecast/finished.json").read_text())["files"]["forecast.safetensors"]
    for piece in ("query/0", "trials/dqn-0", "trials/rarity_regression-0"):
        assert json.loads((folder / piece / "piece.json").read_text())["needs"]["forecast"] == digest
    again = run(load_experiment(EXPERIMENT), tmp_path / "again")
    assert again.read_bytes() == (folder / "results.csv").read_bytes()


def test_an_agent_with_a_forecast_is_evaluated_and_shared(folder, tmp_path, capsys):
    arguments = {
        **ARGUMENTS,
        "weights": str(folder / "theta_0/theta_0.safetensors"),
        "forecast": str(folder / "forecast/forecast.safetensors"),
    }
    agent = folder / "query/0/agent.safetensors"
    shared = share(gym.make(ID, **arguments), tmp_path / "shared", licence="mit", agent=agent)
    env, loaded = load_shared(shared)
    assert isinstance(loaded, SubActionDQN)
    expected, _ = gym.make(ID, **arguments).reset(seed=2)
    assert same(env.reset(seed=2)[0], expected)
    given = [f"--env-arg={name}={json.dumps(value)}" for name, value in arguments.items()]
    out = tmp_path / "out"
    options = ["--seeds", "0", "--budgets", "2", "4", "--fit-arg", "updates=2", "--out", str(out)]
    command = ["evaluate", "--env", ID, *given, "--policies", f"mine={agent}", *options]
    assert main(command) == 0, capsys.readouterr().err
    assert {row["method"] for row in rows_of(out / "results.csv")} == {"mine"}


def test_the_rule_by_the_forecast_weighs_forecast_probabilities_by_rarity(trained):
    env = gym.make(ID, **ARGUMENTS, forecast=str(trained), scores=["rarity"]).unwrapped
    observation, _ = env.reset(seed=0)
    policy = make_policy("forecast_rarity", env, 0)
    counts = sum(np.bincount(env.frames.mask(i).ravel(), minlength=256)[:10] for i in env.splits.state)
    columns = env.feature_columns("forecast")
    assert columns == env.feature_columns(env.layout["features"][-2])
    forecast = observation["candidates"][..., columns][..., :10]
    expected = (forecast @ np.array(class_rarity(counts))).argmax(axis=-1)
    np.testing.assert_array_equal(policy.predict(observation)[0], expected)
    with pytest.raises(ValueError, match="there is no feature 'forecast'; there are .*labelled: see"):
        make_policy("forecast_rarity", gym.make(ID, **{**ARGUMENTS, "region_features": ["labelled"]}).unwrapped, 0)


def test_paths_will_do_and_theta_0_is_shared_whatever_the_features(trained, tmp_path):
    train_agent(gym.make(ID, **{**ARGUMENTS, "forecast": trained}), tmp_path / "agent", episodes=1, batch_size=4)
    evaluate(gym.make(ID, **{**ARGUMENTS, "forecast": trained}), ["uniform"], tmp_path / "out", seeds=[0], budgets=[4])
    made = gym.make(ID, **ARGUMENTS).unwrapped
    save_weights(made.learner, tmp_path / "theta_0.safetensors", made.data.classes)
    features = {**ARGUMENTS, "region_features": ["embedding", "surroundings", "forecast"], "class_distribution": None}
    env = gym.make(ID, **{**features, "weights": str(tmp_path / "theta_0.safetensors")}, forecast=str(trained))
    assert (share(env, tmp_path / "shared", licence="mit") / "forecast.safetensors").exists()


def test_images_that_do_not_fit_are_found_before_anything_runs(tmp_path):
    query = {**EXPERIMENT["query"], "arguments": {"sub_rewards": True, "splits": {**TINY["splits"], "train": 5}}}
    with pytest.raises(ValueError, match="the experiment has 3 mistakes") as refused:
        run(load_experiment({**EXPERIMENT, "forecast": {"networks": 7}, "query": query}), tmp_path / "run")
    assert "forecast.networks is 7; expected at most one for each of the 6 images of D_T" in str(refused.value)
    assert "query.arguments: its splits differ from the experiment's" in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forecast": None}, "region_features names 'forecast'; add the entry forecast"),
        ({"arguments": {**ARGUMENTS, "forecast": "x"}}, "forecast can't be given here, since the experiment trains"),
        (
            {"methods": ["forecast_rarity"], "arguments": {**ARGUMENTS, "region_features": ["labelled"]}},
            "policy 'forecast_rarity' reads the feature 'forecast'; region_features is",
        ),
        ({"forecast": {"networks": 1}}, "networks"),
        ({"forecast": {"updates": 0}}, "updates"),
    ],
)
def test_mistakes_are_found_before_anything_runs(changes, message):
    with pytest.raises(ValueError, match=message):
        load_experiment({**EXPERIMENT, **changes})
