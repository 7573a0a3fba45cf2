"""Sharing: a folder with a card, and back; the Hub itself is a stand-in on this machine."""

from __future__ import annotations

import json
import os
import signal

import gymnasium as gym
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import yaml
from damage import DAMAGES, walk
from experiments import TINY
from hub import TOKEN, hub
from huggingface_hub import HfApi, ModelCard
from processes import in_child

from agents import SubActionDQN
from al_seg_env import ArrayData, Splits, make_env, save_weights
from al_seg_experiment import load_shared, push, share, sharing
from al_seg_experiment.cli import main
from al_seg_experiment.trial_results import sealed

ID = "al_seg_env/SyntheticStreets-v0"
RESULTS = """variant,method,seed,budget,val_miou,test_miou
,uniform,0,0,10,11
,uniform,1,0,12,13
,dqn,0,0,10,11
,dqn,1,0,12,13
,uniform,0,4,20,22
,uniform,1,4,24,26
,dqn,0,4,30,31
,dqn,1,4,30,33
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The arguments of an environment with a theta_0, and an agent that has seen two steps of it."""
    folder = tmp_path_factory.mktemp("trained")
    env = gym.make(ID, **TINY, device="cpu").unwrapped
    save_weights(env.learner, folder / "theta_0.safetensors", env.data.classes)
    arguments = {**TINY, "device": "cpu", "weights": str(folder / "theta_0.safetensors")}
    agent = SubActionDQN("QueryPolicy", gym.make(ID, **arguments), seed=0, learning_starts=1, batch_size=4)
    agent.learn(2)
    agent.save(folder / "agent.safetensors")
    (folder / "results.csv").write_text(RESULTS)
    return arguments, folder


@pytest.fixture
def shared(trained, tmp_path):
    arguments, folder = trained
    about = "Drawn streets."
    return share(
        gym.make(ID, **arguments),
        tmp_path / "streets",
        licence="cc-by-4.0",
        agent=folder / "agent.safetensors",
        results=folder / "results.csv",
        about=about,
    )


def test_what_is_loaded_back_is_what_was_shared(trained, shared):
    arguments, folder = trained
    original = gym.make(ID, **arguments).unwrapped
    env, agent = load_shared(shared)
    observation, info = env.reset(seed=3)
    expected, expected_info = original.reset(seed=3)
    assert info["miou"] == expected_info["miou"]
    for name in expected:
        np.testing.assert_array_equal(observation[name], expected[name])
    before = SubActionDQN.load(folder / "agent.safetensors", original)
    action, _ = agent.predict(observation, deterministic=True)
    np.testing.assert_array_equal(action, before.predict(expected, deterministic=True)[0])
    network = smp.from_pretrained(shared)  # by those who have smp alone
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in original.learner.network.state_dict().items())


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_file_in_turn(shared, tmp_path, damage):
    """What is loaded is the same, or an error names a file that was touched; nothing damaged is uploaded."""

    def loaded(folder):
        env, agent = load_shared(folder)
        observation, info = env.reset(seed=3)
        action, _ = agent.predict(observation, deterministic=True)
        return env.config, env.splits, float(info["miou"]), action.tolist()

    expected, unread = loaded(shared), ("README.md", "results.csv")
    for name, found, message in walk(shared, tmp_path, damage, loaded):
        assert found == expected or message is not None, name
        assert message is None or name not in unread or "swapped" in damage, name
    damaged = shared / "model.safetensors"
    DAMAGES["changed"](damaged)
    with pytest.raises(ValueError, match="model.safetensors is missing or damaged: it is not what was shared"):
        push(shared, "owner/name", endpoint="http://127.0.0.1:9")


def test_killed_while_sharing(trained, tmp_path, monkeypatch):
    """What is there is whole, or nothing is, and the next one removes what the killed one left."""
    arguments, folder = trained
    env = gym.make(ID, **arguments)

    def work():
        monkeypatch.setattr(sharing, "_card", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        share(env, tmp_path / "streets", licence="mit", agent=folder / "agent.safetensors")

    assert in_child(work) == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()] == [".unfinished"]
    share(env, tmp_path / "streets", licence="mit", agent=folder / "agent.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["streets"]


def test_the_card_says_what_it_is(shared):
    card = ModelCard.load(shared / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "al-seg-env"
    assert "active-learning" in card.data.tags
    text = (shared / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["pipeline_tag"] == "image-segmentation"
    for part in (
        "# streets\n",
        "SubActionDQN with QueryPolicy, trained for 2 environment steps",
        "Drawn streets.",
        "2 in D_S, 6 in D_T, 3 in D_R, 8 in D_V",
        "validation: mean ± standard deviation, n = 2 seeds",
        "| 4 | 22.00 ± 2.83 | 30.00 ± 0.00 |",  # (20, 24) and (30, 30)
        "| 4 | 24.00 ± 2.83 | 32.00 ± 1.41 |",  # (22, 26) and (31, 33)
        "env, agent = load_shared(folder)",
    ):
        assert part in text


def test_no_path_of_this_machine_is_in_the_folder(shared, trained, tmp_path):
    for path in shared.iterdir():
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content
        assert str(trained[1]).encode() not in content
    assert "device" not in json.loads((shared / "environment.json").read_text())["arguments"]


def test_theta_0_of_a_frozen_encoder_is_whole(trained, tmp_path):
    arguments = {**trained[0], "trainable": "decoder", "feature_precision": "float32"}
    folder = share(gym.make(ID, **arguments), tmp_path / "out", licence="mit")
    env, agent = load_shared(folder)
    assert agent is None
    assert env.reset(seed=0)[1]["miou"] == gym.make(ID, **arguments).reset(seed=0)[1]["miou"]
    assert smp.from_pretrained(folder).state_dict().keys() >= {"encoder.model.conv_stem.weight"}


class Cells(ArrayData):
    """Images of one's own, which are read from a folder."""

    def __init__(self, root):
        images = np.random.default_rng(len(root)).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
        super().__init__(list(images), list(images[..., 0] % 2), ["cell", "other"])


def cells(root, **options):
    return make_env(Cells(root), **{"encoder": TINY_ENCODER, "architecture": "Light", "device": "cpu", **options})


TINY_ENCODER = "tu-tf_mobilenetv3_small_minimal_100"


def test_files_of_ones_own_must_be_given_and_splits_travel(tmp_path, monkeypatch):
    monkeypatch.setitem(gym.registry, "tests/Cells-v0", gym.envs.registration.EnvSpec("tests/Cells-v0", cells))
    root = tmp_path / "cells"
    root.mkdir()
    data = Cells(str(root))
    splits = Splits.draw(data, seed=5, sizes={"state": 2, "train": 6, "reward": 3, "eval": 4, "test": 1})
    splits.save(tmp_path / "mine.json", data)
    arguments = {"root": str(root), "splits": str(tmp_path / "mine.json"), "budget": 8, "network_options": {"width": 8}}
    env = gym.make("tests/Cells-v0", **arguments).unwrapped
    save_weights(env.learner, tmp_path / "light.safetensors", data.classes)
    weights = str(tmp_path / "light.safetensors")
    folder = share(gym.make("tests/Cells-v0", **arguments, weights=weights), tmp_path / "out", licence="mit")
    assert (folder / "theta_0.safetensors").exists()  # Light is none of smp's
    assert 'load_shared(folder, root="...")' in (folder / "README.md").read_text()
    with pytest.raises(ValueError, match=r"out needs root=\.\.\.: a path on this machine"):
        load_shared(folder)
    again, _ = load_shared(folder, root=str(root))
    assert again.splits == splits
    assert again.config.budget == 8


def test_mistakes(trained, shared, tmp_path):
    arguments, folder = trained
    with pytest.raises(ValueError, match="nothing to share: give agent=, or an environment with weights="):
        share(ID, tmp_path / "none", licence="mit")
    with pytest.raises(ValueError, match="streets holds something; expected a new folder"):
        share(gym.make(ID, **arguments), shared, licence="mit")
    other = {**arguments, "splits": {**TINY["splits"], "state": 3}}
    with pytest.raises(ValueError, match=r"does not fit this environment: S .* is 8 for the agent, 12"):
        share(gym.make(ID, **other), tmp_path / "other", licence="mit", agent=folder / "agent.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["streets"]  # nothing half-written
    stored = json.loads((shared / "environment.json").read_text())
    del stored["digest"]
    hostile = sealed({**stored, "files": {"weights": "../../secret"}})  # as somebody would write it
    (shared / "environment.json").write_text(json.dumps(hostile))
    with pytest.raises(ValueError, match=r"'../../secret' is outside of the folder"):
        load_shared(shared)
    (shared / "environment.json").write_text("{}")
    with pytest.raises(ValueError, match=r"environment\.json: it has no digest"):
        load_shared(shared)
    with pytest.raises(OSError, match=r"environment\.json does not exist"):
        load_shared(tmp_path)
    (shared / "environment.json").write_text(json.dumps(sealed({})))
    with pytest.raises(ValueError, match="repository is 'streets'; expected owner/name"):
        push(shared, "streets")
    with pytest.raises(OSError, match="can't be reached"):
        push(shared, "someone/streets", endpoint="http://127.0.0.1:9")


def test_from_the_command_line_to_a_hub_and_back(trained, shared, tmp_path, monkeypatch, capsys):
    arguments, folder = trained
    given = tmp_path / "env.json"
    given.write_text(json.dumps(arguments))
    out = tmp_path / "out"
    command = ["share", "--env-file", str(given), "--agent", str(folder / "agent.safetensors"), "--out", str(out)]
    assert main(command) == 2
    assert "licence" in capsys.readouterr().err
    assert main([*command, "--licence", "mit"]) == 0
    with hub() as server:
        with monkeypatch.context() as patch:
            patch.setattr("huggingface_hub.constants.ENDPOINT", server.address)  # as HF_ENDPOINT does at import
            patch.setenv("HF_TOKEN", "wrong")
            assert main(["push", str(out), "someone/streets"]) == 2
            assert "401" in capsys.readouterr().err
            patch.setenv("HF_TOKEN", TOKEN)
            for _ in range(2):  # the second time there is a repository
                assert main(["push", str(out), "someone/streets", "--private", "--message", "First"]) == 0
                assert capsys.readouterr().out.startswith(f"{server.address}/someone/streets/commit/")
        assert server.private == {"someone/streets"}
        assert server.messages == ["First", "First"]
        names = sorted(path.name for path in out.iterdir())
        assert sorted(server.repositories["someone/streets"]) == names
        client = HfApi(endpoint=server.address, token=TOKEN)
        fetched = client.snapshot_download("someone/streets", cache_dir=tmp_path / "cache")
    env, agent = load_shared(fetched)
    assert agent.num_timesteps == 2
    agent.predict(env.reset(seed=0)[0])
