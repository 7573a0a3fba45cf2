"""States of environments: taken, put back, forked, written to files; steps that fail are undone."""

import copy
import pickle
import sys
from multiprocessing.reduction import ForkingPickler

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import ID, TINY, closed_form_env, custom, make, numbered_data, play, same, tiny_network
from processes import in_child

from al_seg_env import ArrayData, Entropy, GroundTruthOracle, TorchLearner, load_state, save_state
from al_seg_env.datasets.frames import Frames
from al_seg_env.registration import synthetic_streets
from al_seg_env.storage import load_tree, save_tree

KINDS = {
    "closed form": lambda: closed_form_env(scores=[Entropy()]),
    "own network": lambda: custom(),
    "registered": lambda: make(scores=["bald"]).unwrapped,
}


def steps(env, count, seed=0):
    """Make steps with random actions, starting again where an episode ends; return what came back."""
    rng = np.random.default_rng(seed)
    results = []
    for _ in range(count):
        result = env.step(rng.integers(env.action_space.nvec))
        results.append(copy.deepcopy(result))
        if result[2]:
            results.append(copy.deepcopy(env.reset()))
    return results


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [0, 1, 2])
def test_an_equal_environment_continues_from_a_state_exactly(kind, before, tmp_path):
    env, other = KINDS[kind](), KINDS[kind]()
    env.reset(seed=3)
    last = steps(env, before)[-1] if before else None
    save_state(tmp_path / "state.safetensors", env.get_state())
    other.reset(seed=8)
    steps(other, 2, seed=5)
    observation, info = other.set_state(load_state(tmp_path / "state.safetensors"))
    assert last is None or same((observation, info), (last[0], last[4]))
    assert same(steps(other, 6), steps(env, 6))  # into the next episode


@pytest.mark.parametrize("kind", KINDS)
def test_a_fork_continues_as_its_origin_would_and_leaves_it_alone(kind):
    env, untouched = KINDS[kind](), KINDS[kind]()
    for one in (env, untouched):
        one.reset(seed=1)
        steps(one, 1)
    fork = env.fork()
    forked = steps(fork, 4)
    assert same(forked, steps(untouched, 4))
    assert same(steps(env, 4), forked)
    assert fork.frames is env.frames
    assert fork.data is env.data


def test_a_fork_with_another_budget_ends_earlier():
    env = closed_form_env(budget=12)
    env.reset(seed=0)
    fork = env.fork(budget=3)
    action = np.zeros(3, np.int64)
    ended, continued = fork.step(action), env.step(action)
    assert ended[2]
    assert not continued[2]
    assert ended[1] == continued[1]
    assert not any(value.any() for value in ended[0].values())


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(
    ("before", "changes"),
    [
        ({}, {"reward_classes": ["car"]}),
        ({"reward_classes": ["car"]}, {"reward_classes": []}),
        ({}, {"reward": None}),
        ({"reward": None}, {"reward": "miou"}),
        ({}, {"first_reward": "miou"}),
    ],
)
def test_a_fork_with_another_reward_measures_it_from_where_it_begins(before, changes, steps):
    """As an environment would that had this reward from the beginning."""
    env, other = closed_form_env(**before), closed_form_env(**{**before, **changes})
    env.reset(seed=0)
    other.reset(seed=0)
    action = np.zeros(3, np.int64)
    for _ in range(steps):
        env.step(action)
        other.step(action)
    fork = env.fork(**changes)
    for _ in range(2):
        assert same(fork.step(action), other.step(action))


def test_a_state_before_the_first_reset_and_after_the_end():
    env, other = closed_form_env(budget=3), closed_form_env(budget=3)
    assert other.set_state(env.get_state()) == ({}, {})
    env.reset(seed=4)
    end = env.step(np.zeros(3, np.int64))
    assert end[2]
    observation, info = other.set_state(env.get_state())
    assert same((observation, info), (end[0], end[4]))
    assert same(other.reset(), env.reset())


def test_a_state_goes_through_wrappers_by_reset():
    env, other = (gym.make(ID, **TINY) for _ in range(2))
    env.reset(seed=0)
    last = env.step(np.zeros(3, np.int64))
    state = env.unwrapped.get_state()
    observation, info = other.reset(options={"state": state})  # never reset before
    assert same((observation, info), (last[0], last[4]))
    assert same(other.step(np.ones(3, np.int64)), env.step(np.ones(3, np.int64)))
    with pytest.raises(ValueError, match="taken before the first reset"):
        other.reset(options={"state": gym.make(ID, **TINY).unwrapped.get_state()})


def test_random_states_of_action_space_and_environment_are_kept():
    env, other = closed_form_env(), closed_form_env()
    env.reset(seed=0)
    env.action_space.seed(5)
    env.action_space.sample()
    state = env.get_state()
    other.set_state(state)
    assert same(other.action_space.sample(), env.action_space.sample())
    assert other.np_random.random() == env.np_random.random()


def test_a_state_is_a_copy():
    env = custom()
    env.reset(seed=0)
    steps(env, 1)
    state = env.get_state()
    kept = copy.deepcopy(state)
    expected = steps(env, 2)
    assert torch.equal(state["learner"]["network"]["head.weight"], kept["learner"]["network"]["head.weight"])
    for _ in range(2):
        observation, _ = env.set_state(state)
        observation["state"][:] = 7
        assert same(steps(env, 2), expected)


def test_a_state_crosses_processes_whatever_precision_was_measured_there(tmp_path):
    """The other process would compute in bfloat16, had the state not said otherwise."""

    def elsewhere():
        torch.set_num_threads(1)
        env = synthetic_streets(**{**TINY, "precision": "bfloat16"})
        env.reset(seed=2)
        env.step(np.zeros(3, np.int64))
        save_state(tmp_path / "before.safetensors", env.get_state())
        results = [env.step(np.ones(3, np.int64)), env.step(np.ones(3, np.int64))[:4], env.reset()]
        save_tree(tmp_path / "after.safetensors", "results", [list(map(list, results))])

    assert in_child(elsewhere) == 0
    env = synthetic_streets(**TINY)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        env.reset(seed=9)
        env.set_state(load_state(tmp_path / "before.safetensors"))
        assert env.learner.numerics["precision"] == "bfloat16"
        results = [env.step(np.ones(3, np.int64)), env.step(np.ones(3, np.int64))[:4], env.reset()]
    finally:
        torch.set_num_threads(threads)
    assert same([list(map(list, results))], load_tree(tmp_path / "after.safetensors", "results"))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: closed_form_env(pool_size=2), "pool_size is 4 there, 2 here"),
        (lambda: closed_form_env(reward_scale=2.0), "reward_scale is 1.0 there, 2.0 here"),
        (lambda: closed_form_env(region_size=(16, 10)), "region_size is .* there"),
        (lambda: closed_form_env(split="eval"), "split is 'train' there, 'eval' here"),
        (lambda: closed_form_env(scores=[Entropy()]), "observation.score_entropy is missing there"),
        (lambda: closed_form_env(data=renamed()), "images.state is .* there"),
        (lambda: custom(), "theta_0 is .* there"),
    ],
)
def test_a_state_of_another_environment_is_refused_and_changes_nothing(other, message):
    env = closed_form_env()
    env.reset(seed=0)
    steps(env, 1)
    other, untouched = other(), other()
    for one in (other, untouched):
        one.reset(seed=1)
    with pytest.raises(ValueError, match=message):
        other.set_state(env.get_state())
    assert same(steps(other, 2), steps(untouched, 2))


def renamed():
    data = numbered_data()
    images, masks = ([get(i) for i in range(len(data.names))] for get in (data.image, data.mask))
    return ArrayData(images, masks, data.classes, [f"other {i}" for i in range(len(images))])


def test_a_state_with_more_labels_than_the_budget_is_refused():
    env = closed_form_env(budget=12)
    env.reset(seed=0)
    steps(env, 2)
    with pytest.raises(ValueError, match="6 labelled regions, more than budget 5; raise it"):
        closed_form_env(budget=5).set_state(env.get_state())
    more = closed_form_env(budget=48)
    more.set_state(env.get_state())
    assert same(steps(more, 1)[0][0], steps(env, 1)[0][0])


def without(state, *path):
    state = copy.deepcopy(state)
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return state


def test_a_malformed_state_is_refused_and_changes_nothing():
    env = custom()
    env.reset(seed=0)
    steps(env, 1)
    state = env.get_state()
    expected = steps(env.fork(), 2)
    broken = [{}, [], None, {"identity": 3}, *(without(state, key) for key in state)]
    broken += [without(state, "labels", "masks"), without(state, "episode", "pools")]
    broken += [{**state, "learner": {"network": {}, "optimizer": {}}}, {**state, "rng": {"state": 3}}]
    broken += [{**state, "labels": {**state["labels"], "masks": state["labels"]["masks"][1:]}}]
    broken += [{**state, "labels": {**state["labels"], "regions": state["labels"]["regions"] + 10**6}}]
    broken += [{**state, "labels": {**state["labels"], "masks": state["labels"]["masks"] * 0 + 77}}]
    broken += [{**state, "episode": {**state["episode"], "observation": {"state": np.zeros(3, np.float32)}}}]
    broken += [{**state, "episode": {**state["episode"], "pools": (np.array([10**6]),)}}]
    for one in broken:
        with pytest.raises(ValueError, match="state"):
            env.set_state(one)
    assert same(steps(env, 2), expected)


# Steps that fail


class Failing:
    """Raises once when it is asked to, in place of what it wraps."""

    def __init__(self, inner, error, calls=1):
        self.inner, self.error, self.left = inner, error, calls

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("error", [FloatingPointError("the loss is nan"), OSError("gone"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["fit_step", "evaluate", "predict"])
@pytest.mark.parametrize("kind", ["closed form", "own network"])
def test_a_step_that_fails_is_undone_and_can_be_made_again(error, where, kind):
    env, untouched = KINDS[kind](), KINDS[kind]()
    for one in (env, untouched):
        one.reset(seed=0)
        steps(one, 1)
    setattr(env.learner, where, Failing(getattr(env.learner, where), error))
    before = env.get_state()
    with pytest.raises(type(error)):
        env.step(np.zeros(env.action_space.shape, np.int64))
    after = env.get_state()
    answers = after.pop("answers")
    del before["answers"]
    assert str(after) == str(before)
    assert len(answers["regions"]) == len(env.action_space.nvec)
    assert same(steps(env, 2), steps(untouched, 2))


class CountingOracle(GroundTruthOracle):
    def __init__(self, frames):
        super().__init__(frames)
        self.asked = []

    def label(self, boxes):
        self.asked += boxes
        return super().label(boxes)


def test_what_the_oracle_answered_is_not_asked_for_again():
    data = numbered_data()
    oracle = CountingOracle(Frames.shared(data))
    env = closed_form_env(data=data, oracle=oracle, budget=48)
    env.reset(seed=0)
    env.learner.evaluate = Failing(env.learner.evaluate, OSError("gone"))
    with pytest.raises(OSError, match="gone"):
        env.step(np.zeros(3, np.int64))
    other = closed_form_env(data=data, oracle=oracle, budget=48)
    other.set_state(env.get_state())  # they are in the state, too
    for one in (env, other):
        one.step(np.array([0, 0, 1]))  # two of the three regions are wanted again
        while not one.step(np.zeros(3, np.int64))[2]:
            pass
        assert len(one.labels) == 48
    assert len(oracle.asked) == 3 + 45 + 45
    assert len(set(oracle.asked)) == 48


@pytest.mark.parametrize("rate", [1e30, 1e10])
def test_training_that_diverges_can_be_skipped(rate):
    env = make(learning_rate=rate, on_divergence="skip").unwrapped
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="training of this step was undone, its labels are kept: .*not finite|loss is"):
        results = [env.step(np.zeros(3, np.int64)) for _ in range(3)]
    diverged = [result[4]["diverged"] for result in results]
    assert True in diverged
    assert [result[4]["labelled"] for result in results] == [3, 6, 7]
    for (_, reward, _, _, info), skipped in zip(results, diverged, strict=True):
        assert not skipped or reward == 0.0
        assert np.isfinite(info["miou"])


def test_trees_that_cannot_be_stored_say_where(tmp_path):
    with pytest.raises(TypeError, match=r"tree\['a'\]\[1\] is a set, which cannot be stored"):
        save_tree(tmp_path / "x", "k", {"a": [1, {2}]})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("switched_off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "options", [{}, {"architecture": "Light", "trainable": "decoder", "network_options": {"width": 8}}]
)
def test_where_the_caller_has_switched_gradients_off_the_network_trains_all_the_same(switched_off, options):
    expected = play(make(**options), 0)
    env = make(**options)
    with switched_off():
        assert same(play(env, 0), expected)
    action = np.zeros(env.action_space.shape, np.int64)
    env.reset(seed=1)
    env.step(action)
    state = env.unwrapped.get_state()
    expected = copy.deepcopy(env.step(action))
    with switched_off():
        env.unwrapped.set_state(state)
    assert same(env.step(action), expected)


@pytest.mark.parametrize(
    "options", [{}, {"architecture": "Light", "trainable": "decoder", "network_options": {"width": 8}}]
)
def test_environments_and_forks_that_are_made_in_inference_mode_train_all_the_same(options):
    with torch.inference_mode():
        env = make(**options).unwrapped
    expected = make(**options).unwrapped
    action = np.zeros(env.action_space.shape, np.int64)
    for each in (env, expected):
        each.reset(seed=0)
        each.step(action)
    with torch.inference_mode():
        fork = env.fork()
    reached = copy.deepcopy(expected.step(action))
    assert all(same(copy.deepcopy(each.step(action)), reached) for each in (env, fork))


def test_a_network_that_was_made_in_inference_mode_is_refused():
    with torch.inference_mode():
        network = tiny_network()
    with pytest.raises(ValueError, match=r"the network was made within torch\.inference_mode\(\).*; make it, and"):
        TorchLearner(network, 3, device="cpu", precision="float32")


# Interrupts


class Interrupted(BaseException):
    """Raised at a line, as Ctrl-C may be."""


def interrupted_at(number, work):
    """Run ``work``, interrupted at the line of this number in the environment's own files; return whether it was."""
    seen = 0

    def trace(frame, event, _):
        nonlocal seen
        if "/al_seg_env/" not in frame.f_code.co_filename or "/tests/" in frame.f_code.co_filename:
            return None
        if event == "line":
            seen += 1
            if seen == number:
                sys.settrace(None)
                raise Interrupted
        return trace

    sys.settrace(trace)
    try:
        work()
    except Interrupted:
        return True
    finally:
        sys.settrace(None)
    return False


def position(env):
    """Return all that the future depends on; which answers of the oracle are kept aside does not count."""
    return {key: value for key, value in env.get_state().items() if key != "answers"}


def begun(seed=0):
    env = closed_form_env(scores=[Entropy()], oracle=None)
    env.reset(seed=seed)
    env.step(np.ones(3, np.int64))
    return env


WORK = {
    "step": lambda env, _: env.step(np.zeros(3, np.int64)),
    "reset": lambda env, _: env.reset(seed=5),
    "set_state": lambda env, state: env.set_state(state),
}


@pytest.mark.parametrize("name", WORK)
def test_an_interrupt_at_any_line_leaves_the_environment_as_before_or_done(name):
    other = begun(seed=9)
    other.step(np.full(3, 2, np.int64))
    target = other.get_state()
    env, done = begun(), begun()
    WORK[name](done, target)
    start, before, after = env.get_state(), position(begun()), position(done)
    outcomes = {"before": 0, "done": 0}
    for number in range(1, 10**6):
        if not interrupted_at(number, lambda: WORK[name](env, target)):
            break
        now = position(env)
        assert same(now, before) or same(now, after), f"neither as before nor done after line event {number}"
        outcomes["before" if same(now, before) else "done"] += 1
        if same(now, after):
            env.set_state(start)
        assert same(env.labels.unlabelled_count + len(env.labels), 48)
    assert outcomes["before"] > 50
    assert outcomes["done"] > 0


def test_an_interrupted_step_can_be_made_again():
    env, untouched = begun(), begun()
    expected = untouched.step(np.zeros(3, np.int64))
    assert interrupted_at(150, lambda: env.step(np.zeros(3, np.int64)))
    assert same(env.step(np.zeros(3, np.int64)), expected)


def test_a_state_is_sent_to_other_processes_as_bytes():
    """Handles of shared memory, as torch would send, are gone when the sender ends before the receiver has read."""
    env = custom()
    env.reset(seed=0)
    env.step(np.zeros(4, np.int64))
    state = env.get_state()
    sent = bytes(ForkingPickler.dumps(state))
    assert b"rebuild_storage" not in sent
    assert b"rebuild_tensor" not in sent
    received = pickle.loads(sent)
    assert same(received, state)
    assert same(copy.deepcopy(state), state)
    other = custom()
    other.set_state(received)
    assert same(other.step(np.ones(4, np.int64)), env.step(np.ones(4, np.int64)))


@pytest.mark.parametrize(
    "changes",
    [
        {"class_distribution": "counts"},
        {"entropy_pools": ["max"]},
        {"entropy_bins": 4},
        {"region_features": ["location"]},
    ],
)
def test_a_fork_has_its_originals_features(changes):
    env = custom()
    env.reset(seed=0)
    (name,) = changes
    with pytest.raises(ValueError, match=f"{name} is .*: a fork keeps its original's features"):
        env.fork(**changes)
    assert same(env.fork(**{name: getattr(env.config, name)}).reset(seed=1), env.reset(seed=1))


def test_a_budget_that_is_spent_already_ends_the_episode():
    """In another unit than regions, where more may have been spent than a state's new environment allows."""
    env = closed_form_env(budget=10**6, budget_unit="pixels")
    env.reset(seed=0)
    env.step(np.zeros(3, np.int64))
    for other in (closed_form_env(budget=1, budget_unit="pixels"), env.fork(budget=1)):
        other.set_state({**env.get_state(), "identity": other._identity})
        with pytest.raises(gym.error.ResetNeeded):
            other.step(np.zeros(3, np.int64))


def test_unknown_options_of_a_reset_are_refused():
    env = closed_form_env()
    for options in ({"states": 1}, {"state": None, "budget": 3}):
        with pytest.raises(ValueError, match=r"options has (states|budget); expected nothing but 'state'"):
            env.reset(options=options)
    assert same(env.reset(seed=0, options={}), env.reset(seed=0, options=None))
