"""Thousands of damaged and malformed states, checkpoints, agents and weights: a clear error, or a valid load."""

import copy
import json
import random

import numpy as np
import pytest
import torch
import yaml
from agents_fakes import FakeRegionEnv
from experiments import TINY_EXPERIMENT
from fakes import CLASSES, closed_form_env, same, tiny_network
from files import WRITERS, agent, dqn_on

from agents import Checkpoint, QueryPolicy, SubActionDQN
from al_seg_env import load_state
from al_seg_env.learner.weights import load_weights
from al_seg_env.storage import load_tree, save_tree
from al_seg_experiment import load_experiment, pieces
from al_seg_experiment.trial_results import read_result, result_row

MUTATIONS = 160


def damaged(content, rng):
    """Return bytes with one to three random damages."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(max(1, len(data)))
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.randint(1, 9))
        elif kind == 3:
            del data[at : at + rng.randint(1, 40)]
        elif kind == 4:
            data[at:at] = data[at : at + rng.randint(1, 200)]
        elif data:
            data[:8] = rng.randbytes(8)  # the length of the header
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("state.safetensors", load_state),
        ("agent.safetensors", lambda path: SubActionDQN.load(path, device="cpu")),
        ("policy.safetensors", lambda path: QueryPolicy.load(path, device="cpu")),
        ("replay.safetensors", lambda path: load_tree(path, "replay")),
        ("weights.safetensors", lambda path: load_weights(tiny_network(), path, CLASSES)),
    ],
)
def test_damaged_files(name, read, tmp_path):
    path, rng = tmp_path / name, random.Random(name)
    WRITERS[name](path)
    whole, refused = path.read_bytes(), 0
    for _ in range(MUTATIONS):
        content = damaged(whole, rng)
        path.write_bytes(content)
        message = None
        try:
            read(path)
        except ValueError as error:
            message = str(error)
        if message is not None:
            assert name in message
            assert len(message) < 2000
            refused += 1
        else:
            # Weights have no checksum, so that other programs may write them.
            assert name.startswith("weights") or content == whole
    assert refused > MUTATIONS / 2


ODD = [None, True, -1, 10**30, 1e300, float("nan"), "", "../../x", [], {}, (), [[[]]], np.zeros(3), np.zeros((0, 2))]
ODD += [torch.zeros(2, 2), np.array(5), np.full(4, 255, np.uint8), np.arange(6), {"$array": 1}, "x" * 500]


def malformed(tree, rng, odd=ODD):
    """Return a tree in which one value, anywhere, is missing or another."""
    tree = copy.deepcopy(tree)
    inner, way = tree, []
    while isinstance(inner, dict | list) and len(inner) and (not way or rng.random() < 0.8):
        key = rng.choice(sorted(inner, key=str)) if isinstance(inner, dict) else rng.randrange(len(inner))
        way.append((inner, key))
        inner = inner[key]
    parent, key = way[-1]
    if isinstance(parent, dict) and rng.random() < 0.3:
        del parent[key]
    else:
        parent[key] = rng.choice(odd)
    return tree


def test_malformed_states_are_refused_or_played(tmp_path):
    env = closed_form_env()
    env.reset(seed=0)
    env.step(np.zeros(3, np.int64))
    state, rng = env.get_state(), random.Random(0)
    untouched = env.fork()
    expected, refused = untouched.step(np.ones(3, np.int64)), 0
    for number in range(MUTATIONS):
        save_tree(tmp_path / "state", "environment state", malformed(state, rng))
        try:
            observation, _ = env.set_state(load_state(tmp_path / "state"))
        except ValueError:
            refused += 1
        else:
            assert not observation or env.observation_space.contains(observation), number
        env.set_state(state)
    assert same(env.step(np.ones(3, np.int64)), expected)
    assert refused > MUTATIONS / 2


@pytest.mark.slow
def test_malformed_agents_and_checkpoints_are_refused_or_play(tmp_path):
    agent().learn(10).save(tmp_path / "agent.safetensors")
    tree, rng = load_tree(tmp_path / "agent.safetensors", "agent"), random.Random(1)
    observation, refused = FakeRegionEnv().reset(seed=0)[0], 0
    for _ in range(MUTATIONS // 2):
        save_tree(tmp_path / "odd.safetensors", "agent", malformed(tree, rng))
        try:
            loaded = SubActionDQN.load(tmp_path / "odd.safetensors", device="cpu")
            loaded.predict(observation, deterministic=True)
        except (ValueError, FloatingPointError):
            refused += 1
    assert refused > MUTATIONS / 8
    model = dqn_on(closed_form_env())
    model.learn(4, callback=Checkpoint(tmp_path / "run"))
    newest = max((tmp_path / "run").iterdir())
    tree, refused = load_tree(newest, "training checkpoint"), 0
    for _ in range(MUTATIONS // 4):
        save_tree(newest, "training checkpoint", malformed(tree, rng))
        try:
            Checkpoint(tmp_path / "run").resume(model)
        except ValueError:
            refused += 1
    assert refused > MUTATIONS / 16


def test_malformed_experiments_are_refused_or_expanded(tmp_path):
    base = {
        **TINY_EXPERIMENT,
        "variants": {"a": {"arguments": {"pool_size": 3}, "budgets": [2]}, "b": {}},
        "methods": {"uniform": {"policy": "uniform", "arguments": {"pool_size": 3}}, "dqn": None},
    }
    rng, refused = random.Random(2), 0
    plain = [value for value in ODD if value is None or isinstance(value, bool | int | float | str | list | dict)]
    for _ in range(2 * MUTATIONS):
        content = malformed(base, rng, plain)
        (tmp_path / "odd.yaml").write_text(yaml.safe_dump(content))
        try:
            names = [piece.name for piece in pieces(load_experiment(tmp_path / "odd.yaml"))]
        except ValueError as error:
            refused += bool(str(error))
        else:
            assert len(names) == len(set(names))
            assert all((tmp_path / name).resolve().is_relative_to(tmp_path.resolve()) for name in names)
    assert refused > MUTATIONS / 2


def test_damaged_experiment_files_are_refused_or_expanded(tmp_path):
    path, rng, refused = tmp_path / "odd.yaml", random.Random(3), 0
    whole = yaml.safe_dump(TINY_EXPERIMENT).encode()
    for _ in range(MUTATIONS):
        path.write_bytes(damaged(whole, rng))
        try:
            pieces(load_experiment(path))
        except ValueError as error:
            refused += bool(str(error))
    assert refused > MUTATIONS / 4


def test_damaged_results_are_named(tmp_path):
    result = {"format": "al-seg-env result", "version": 1, "method": "uniform", "seed": 0, "budget": 3}
    result |= {"val_miou": 40.5, "val_iou": {"road": 41.0, "car": None}, "asked": {"road": 5, "car": 0}}
    path, rng, refused = tmp_path / "result-3.json", random.Random(4), 0
    for number in range(2 * MUTATIONS):
        odd = [value for value in ODD if value is None or isinstance(value, bool | int | float | str | list | dict)]
        content = json.dumps(malformed(result, rng, odd)).encode()
        path.write_bytes(content if number % 2 else damaged(json.dumps(result).encode(), rng))
        try:
            row = result_row("", read_result(path))
        except ValueError as error:
            assert "result-3.json" in str(error)  # noqa: PT017
            refused += 1
        else:
            assert isinstance(row["val_miou"], float | int)
    assert refused > MUTATIONS / 2
