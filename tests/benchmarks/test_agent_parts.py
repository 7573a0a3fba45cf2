"""The agents of an experiment play without their parts, and otherwise as before."""

import importlib
from pathlib import Path

import pytest
import torch
from experiments import WITH_FORECAST, rows_of

from al_seg_env.command_line import run
from al_seg_experiment import load_experiment
from al_seg_experiment import run as run_experiment

EXPERIMENT = {**WITH_FORECAST, "methods": ["dqn"], "budgets": [4]}


@pytest.fixture
def agent_parts(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    return importlib.import_module("agent_parts")


def test_agents_play_without_what_they_learnt(agent_parts, tmp_path, monkeypatch, capsys):
    run_experiment(load_experiment(EXPERIMENT), tmp_path / "run")
    played = {}

    def noted(name, policy):
        def make(env, seed):
            played[name] = policy(env, seed)
            return played[name]

        return make

    for name in ("equal_worth", "forecast_alone"):
        monkeypatch.setattr(agent_parts, name, noted(name, getattr(agent_parts, name)))
    argv = ["--folder", str(tmp_path / "run"), "--out", str(tmp_path / "parts")]
    assert run(agent_parts.main, agent_parts.Options, argv) == 0
    found = {(row["method"], row["budget"]) for row in rows_of(tmp_path / "parts" / "results.csv")}
    assert found == {(name, budget) for name in ("equal_worth", "forecast_alone") for budget in "04"}
    equal, alone = (played[name].policy for name in ("equal_worth", "forecast_alone"))
    assert equal.worth.tolist() == [1.0] * len(equal.worth)
    assert alone.worth.tolist() != equal.worth.tolist()
    weights = {name: policy.q_net.state_dict() for name, policy in (("equal", equal), ("alone", alone))}
    differing = {key for key, value in weights["equal"].items() if not torch.equal(value, weights["alone"][key])}
    assert {key.rpartition(".")[2] for key in differing} <= {"weight", "bias", "worth"}
    assert len({key.rpartition(".")[0] for key in differing}) <= len(equal.q_net.members) + 1  # a layer of each, worth
    capsys.readouterr()
    assert run(agent_parts.main, agent_parts.Options, ["--folder", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
