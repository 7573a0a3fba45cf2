"""The forecast of networks that have not seen an image, against a slow reference."""

import copy
import pickle

import numpy as np
import pytest
from fakes import ClosedFormLearner, closed_form_env, make, play, same
from reference import slow_boxes
from scipy.special import entr, softmax

from agents import SubActionDQN
from al_seg_env.observation.forecast import KIND, Forecast, save_forecast
from al_seg_env.storage import save_tree

LIGHT = {"architecture": "Light", "network_options": {"width": 8}, "trainable": "decoder", "learning_rate": 0.1}
FEATURES = {"region_features": ["mean_probability", "forecast"], "entropy_pools": [], "similarity": []}


def environment(**options):
    return make(**{**LIGHT, **FEATURES, **options}).unwrapped


def states_of(env, count):
    """Return as many different networks, as the learner's states."""
    found = []
    for number in range(count):
        env.learner.reset()
        batch = env.inputs.training_views(env.grid, [number], env.frames.mask, None, np.random.default_rng(0))
        env.learner.fit_step(*batch, np.random.default_rng(number))
        found.append(copy.deepcopy(env.learner.state_dict()))
    env.learner.reset()
    return found


@pytest.fixture
def networks(tmp_path):
    """A file of two networks: both were trained on D_S, each on the one half of D_T."""
    env = environment()
    names, splits = env.data.names, env.splits
    first, second = states_of(env, 2)
    known = [[names[i] for i in (*splits.state, *half)] for half in (splits.train[::2], splits.train[1::2])]
    save_forecast(tmp_path / "forecast", [(first, known[0]), (second, known[1])], env.data.classes)
    return tmp_path / "forecast", (first, second)


def slow_forecast(env, states, image):
    """Return the forecast of an image's regions by some networks, region by region."""
    learner, rows = copy.deepcopy(env.learner), []
    for state in states:
        learner.load_state_dict(state)
        p = softmax(learner.predict(env.inputs.whole([image]))[0].double().numpy(), axis=0)
        cells = []
        for top, bottom, left, right in slow_boxes(env.grid.image_size, env.grid.region_size):
            part = p[:, top:bottom, left:right].reshape(len(p), -1)
            cells.append([*part.mean(axis=1), *part.max(axis=1), *entr(part).mean(axis=1)])
        rows.append(cells)
    return np.mean(rows, axis=0)


@pytest.mark.parametrize("split", ["train", "eval"])
def test_each_image_is_forecast_by_the_networks_that_have_not_seen_it(networks, split):
    path, (first, second) = networks
    env = environment(forecast=str(path), split=split)
    observation, _ = env.reset(seed=0)
    columns = env.feature_columns(env.layout["features"][-1])
    by = dict.fromkeys(env.splits.eval, (first, second))
    by.update(dict.fromkeys(env.splits.train[::2], (second,)))
    by.update(dict.fromkeys(env.splits.train[1::2], (first,)))
    n = env.grid.regions_per_image
    for k, pool in enumerate(env.pools):
        for place, region in enumerate(pool.tolist()):
            expected = slow_forecast(env, by[region // n], region // n)[region % n]
            np.testing.assert_allclose(observation["candidates"][k, place, columns], expected, atol=2e-3)
    known_to_all = slow_forecast(env, (first, second), env.splits.state[0])
    np.testing.assert_allclose(observation["state"][:n, columns], known_to_all, atol=2e-3)
    assert env.observation_space.contains(observation)


def test_it_depends_on_nothing_but_the_image(networks):
    path, _ = networks
    env, again = environment(forecast=str(path)), environment(forecast=str(path))
    images = np.array(env.splits.train)
    forward = env.observer.described(env.grid.regions_of(images), np.zeros(len(env.data.classes), np.int64))
    columns = env.feature_columns(env.layout["features"][-1])
    again.reset(seed=1)
    again.action_space.seed(0)
    again.step(again.action_space.sample())  # the network that is trained changes nothing
    for image in images[::-1]:
        rows = again.observer.described(again.grid.regions_of([image]), np.zeros(len(env.data.classes), np.int64))
        where = int(np.flatnonzero(images == image)[0]) * env.grid.regions_per_image
        np.testing.assert_array_equal(rows[:, columns], forward[where : where + len(rows), columns])


def test_the_environments_own_network_is_left_alone_and_forks_continue(networks):
    path, _ = networks
    env = environment(forecast=str(path))
    before = copy.deepcopy(env.learner.state_dict())
    env.reset(seed=0)
    assert same(env.learner.state_dict(), before)
    env.action_space.seed(0)
    env.step(env.action_space.sample())
    fork, other, action = env.fork(), environment(forecast=str(path)), env.action_space.sample()
    other.set_state(env.get_state())
    expected = copy.deepcopy(env.step(action))
    for twin in (fork, other):
        assert same(copy.deepcopy(twin.step(action)), expected)


def test_it_is_computed_in_the_precision_of_the_state(networks):
    path, _ = networks
    env, other = environment(forecast=str(path), precision="bfloat16"), environment(forecast=str(path))
    env.reset(seed=0)
    other.reset(seed=5)  # which keeps forecasts in float32
    env.action_space.seed(0)
    action = env.action_space.sample()
    other.set_state(env.get_state())
    assert same(copy.deepcopy(other.step(action)), copy.deepcopy(env.step(action)))


@pytest.mark.parametrize("fork", [lambda env: env.fork(), copy.deepcopy], ids=["fork", "deepcopy"])
def test_the_precision_of_a_fork_changes_nothing_elsewhere(networks, fork):
    path, _ = networks
    env, other = environment(forecast=str(path)), environment(forecast=str(path), precision="bfloat16")
    env.reset(seed=0)
    other.reset(seed=0)
    regions, nothing = env.grid.regions_of(env.splits.state), np.zeros(len(env.data.classes), np.int64)
    expected = env.observer.described(regions, nothing), other.observer.described(regions, nothing)
    twin = fork(env)
    twin.set_state(other.get_state())
    assert not np.array_equal(*expected)
    for each, described in zip((env, twin), expected, strict=True):
        np.testing.assert_array_equal(each.observer.described(regions, nothing), described)
        # What is computed from now on, too.
        each.observer.features[-1]._of_image.clear()
        np.testing.assert_array_equal(each.observer.described(regions, nothing), described)


def test_no_more_images_are_kept_than_allowed_and_none_travels(networks, monkeypatch):
    path, _ = networks
    expected = play(environment(forecast=str(path), split="eval"), 0)
    monkeypatch.setattr(Forecast, "MOST_KEPT", 1)
    env = environment(forecast=str(path), split="eval")
    assert same(play(env, 0), expected)
    feature = env.observer.features[-1]
    assert 0 < len(feature._of_image) <= len(env.splits.eval)
    assert pickle.loads(pickle.dumps(feature))._of_image == {}


def test_without_a_file_there_are_spaces_and_a_message(networks):
    env = environment()
    assert env.observation_space.spaces["candidates"].shape[-1] == len(env.data.classes) * 5
    with pytest.raises(ValueError, match="needs forecast=, a file of networks"):
        env.reset(seed=0)


def test_networks_of_another_learner_or_trained_on_unseen_images_are_refused(networks, tmp_path):
    path, (first, _) = networks
    env = environment()
    with pytest.raises(ValueError, match="forecast: its networks do not match the environment's network"):
        environment(forecast=str(path), network_options={"width": 16})
    names, train = env.data.names, [env.data.names[i] for i in env.splits.train]
    for other in (*(names[getattr(env.splits, split)[0]] for split in ("reward", "eval", "test")), "elsewhere-0001"):
        save_forecast(tmp_path / "leaky", [(first, [other])], env.data.classes)
        with pytest.raises(
            ValueError, match=f"leaky: its networks were trained on '{other}', which is not an image of D_S"
        ):
            environment(forecast=str(tmp_path / "leaky"))
    save_forecast(tmp_path / "seen", [(first, train), (first, train[1:])], env.data.classes)
    with pytest.raises(ValueError, match=f"seen: all of its networks were trained on '{train[1]}' of D_T"):
        environment(forecast=str(tmp_path / "seen"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="forecast"):
        environment(forecast=str(path))
    with pytest.raises(OSError, match="nowhere"):
        environment(forecast=str(tmp_path / "nowhere"))


def test_networks_of_other_classes_or_with_odd_states_are_refused(networks, tmp_path):
    _, (first, second) = networks
    env = environment()
    classes, known = env.data.classes, [env.data.names[i] for i in env.splits.state]

    def refused(message, state=first, classes=classes):
        save_forecast(tmp_path / "odd", [(state, known), (second, known)], classes)
        with pytest.raises(ValueError, match=f"odd: {message}"):
            environment(forecast=str(tmp_path / "odd"))

    refused("its networks were trained for the classes", classes=classes[::-1])
    refused("its networks do not match the environment", state={})
    inner = copy.deepcopy(first)
    next(tensor for tensor in inner["network"].values() if tensor.is_floating_point()).reshape(-1)[0] = np.nan
    refused("its networks have weights that are not finite", state=inner)
    save_tree(tmp_path / "before", KIND, {"networks": [{"state": first, "images": known}]})  # without classes
    assert environment(forecast=tmp_path / "before").forecast == tmp_path / "before"
    save_tree(tmp_path / "none", KIND, {"networks": [{"state": None, "images": known}]})
    with pytest.raises(ValueError, match="none: its networks do not match"):
        environment(forecast=str(tmp_path / "none"))


@pytest.mark.parametrize("value", [5, True, "", b"x", [], {}])
def test_anything_but_a_path_is_refused_whether_the_feature_is_named_or_not(value):
    for features in (["forecast"], ["labelled"]):
        with pytest.raises(ValueError, match="forecast is .*; expected the path of a file or folder"):
            environment(forecast=value, region_features=features)


def test_states_and_agents_are_bound_to_their_networks(networks, tmp_path):
    path, (first, second) = networks
    env = environment(forecast=str(path))
    names = [env.data.names[i] for i in env.splits.train]
    save_forecast(tmp_path / "other", [(second, names[:2]), (first, names[2:])], env.data.classes)
    other = environment(forecast=str(tmp_path / "other"))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="the state is of another environment: forecast"):
        other.set_state(env.get_state())
    SubActionDQN("QueryPolicy", env, seed=0).save(tmp_path / "agent")
    assert SubActionDQN.load(tmp_path / "agent", environment(forecast=str(path))) is not None
    with pytest.raises(ValueError, match="forecast_"):
        SubActionDQN.load(tmp_path / "agent", other)


def test_a_custom_learner_will_do(tmp_path):
    """Whatever has ``state_dict`` and ``load_state_dict`` can forecast."""
    env = closed_form_env()
    save_forecast(tmp_path / "forecast", [(ClosedFormLearner().state_dict(), ["image 0"])], env.data.classes)
    feature = Forecast(tmp_path / "forecast", env.frames, env.inputs, env.grid, env.learner, env.splits)
    made = closed_form_env(features=[feature])
    observation, _ = made.reset(seed=0)
    expected = slow_forecast(made, [ClosedFormLearner().state_dict()], 3)
    rows = made.observer.described(made.grid.regions_of([3]), np.zeros(3, np.int64))
    np.testing.assert_allclose(rows, expected, atol=1e-4)
    assert observation["candidates"].shape[-1] == 9
