"""A file of each kind that the project writes, and what it takes to write it."""

from agents_fakes import FakeRegionEnv
from fakes import CLASSES, closed_form_env, numbered_data, tiny_network

from agents import Checkpoint, SubActionDQN
from al_seg_env import Splits, TorchLearner, save_state
from al_seg_env.learner.weights import save_weights
from al_seg_env.storage import write_csv, write_json


def agent():
    return SubActionDQN("QueryPolicy", FakeRegionEnv(), seed=0, device="cpu")


def learner(seed=0):
    return TorchLearner(tiny_network(seed=seed), 3, device="cpu", precision="float32")


def started(env):
    env.reset(seed=0)
    return env


def begun(model, folder):
    callback = Checkpoint(folder)
    callback.init_callback(model)
    return callback


def dqn_on(env):
    return SubActionDQN("QueryPolicy", env, seed=0, device="cpu", batch_size=4, buffer_size=30)


WRITERS = {
    "weights.safetensors": lambda path: save_weights(learner(int(path.exists())), path, CLASSES),
    "state.safetensors": lambda path: save_state(path, started(closed_form_env()).get_state()),
    "agent.safetensors": lambda path: agent().save(path),
    "policy.safetensors": lambda path: agent().policy.save(path),
    "replay.safetensors": lambda path: agent().save_replay_buffer(path),
    "splits.json": lambda path: Splits((0, 1), (2, 3), (4,), (5, 6)).save(path, numbered_data()),
    "rows.csv": lambda path: write_csv(path, [{"a": i, "b": "x" * 50} for i in range(200)]),
    "content.json": lambda path: write_json(path, list(range(5000))),
}
