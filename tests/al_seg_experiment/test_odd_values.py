"""Zeros, negatives, NaN, wrong types and wrong lengths in every entry of an experiment."""

import copy
import time

import yaml
from experiments import TINY_EXPERIMENT as TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from al_seg_experiment import Experiment, Stage, load_experiment, pieces
from al_seg_experiment.__main__ import main
from al_seg_experiment.experiment import Convergence, Query

EVERYTHING = {
    **TINY,
    "env": "al_seg_env/SyntheticStreets-v0",
    "arguments": {
        **{**TINY["arguments"], "style": "street", "data_seed": 0, "learning_rate": 0.01, "batch_size": 4},
        **{"observation_stride": 1, "reward_stride": 2, "label_stride": 1, "replay": 0.5, "sub_rewards": True},
        **{
            "labelled_before": "state",
            "region_features": ["labelled", "forecast"],
            "reward": "miou",
            "budget_unit": "regions",
        },
        **{"trainable": "all", "feature_precision": "bfloat16", "on_divergence": "skip", "kl_bins": 8},
    },
    "methods": {
        "uniform": {"policy": "uniform", "arguments": {"pool_size": 3}},
        "dqn": {"agent": {"tau": 0.5}},
        "entropy": {},
    },
    "theta_0": [
        {"env": "al_seg_env/SyntheticStreets-v0", "arguments": {"style": "render"}, "images": "all", "epochs": 1},
        {"epochs": 1, "patience": 1, "updates": 1, "batch_size": 2, "learning_rate": 0.01, "early_stopping": False},
    ],
    "forecast": {"networks": 2, "updates": 1, "batch_size": 2, "learning_rate": 0.1},
    "query": {
        "episodes": 2,
        "policy": "QueryPolicy",
        "arguments": {"budget": 4, "scores": ["entropy"], "bald_samples": 3},
        "agent": {
            **{"batch_size": 4, "epsilon_steps": 3, "learning_rate": 0.1, "learning_rate_decay": 0.9, "gamma": 0.9},
            **{"buffer_size": 20, "n_steps": 2, "tau": 1.0, "loss": "huber", "exploration": "episode"},
            **{"credit": "sub_rewards", "td_target": "paper", "learning_starts": 2, "stats_window_size": 10},
            **{"guides": ["uniform", "score_entropy"], "max_grad_norm": 1.0, "target_update_interval": 3},
            **{"policy_kwargs": {"optimizer_kwargs": {"momentum": 0.9}}, "train_freq": 1, "gradient_steps": 2},
        },
        "refit": {"gradient_steps": 1, "policy_kwargs": {"optimizer_kwargs": {"weight_decay": 0.1}}},
        "references": ["uniform", "entropy"],
        "per_seed": True,
        "checkpoint_every": 1,
        "envs": 1,
    },
    "fit": {
        **{"crop_size": [32, 32], "batch_size": 3, "patience": 1, "max_epochs": 2, "min_updates": 1},
        **{"updates": 2, "replay": 0.5, "learning_rate": 0.01, "fits": 2},
    },
    "full": 1,
    "variants": {"a": {"arguments": {"pool_size": 3}, "agent": {"loss": "huber"}, "budgets": [2]}, "b": None},
    "cache": False,
    "cpus": 1,
    "gpus": 0.5,
}

ODD = (
    *(0, -1, 1, 3, -0.0, 0.5, -1.5, 1e-300, 1e300, 2**31, 2**63, -(2**63), 10**40),
    *(float("nan"), float("inf"), float("-inf"), True, False, None),
    *("", "x", "1", "-1", "nan", "../x", "/x", "a b", "\x00", "é", "x" * 500, "train", "eval"),
    *([], [0], [-1, -1], [1], [1, 2, 3], [0.5, 0.5], ["x"], [None], [[]], [[1, 2]], [1, 1]),
    *({}, {"x": 1}, {"": 1}, {"a": {"b": {}}}, [{}], (), (1, 2)),
)


def ways(value, way=()):
    """Yield the way to each entry, inner ones included."""
    yield way
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from ways(item, (*way, key))


WAYS = [way for way in ways(EVERYTHING) if way]


def with_entry(way, value):
    content = copy.deepcopy(EVERYTHING)
    inner = content
    for key in way[:-1]:
        inner = inner[key]
    inner[way[-1]] = copy.deepcopy(value)
    return content


def check(content):
    """A ValueError that says something, or an experiment with pieces of different names; within two seconds."""
    started = time.process_time()
    message, experiment = None, None
    try:
        experiment = load_experiment(content)
    except ValueError as error:
        message = str(error)
    if experiment is None:
        assert 0 < len(message) < 20_000
    else:
        names = [piece.name for piece in pieces(experiment)]
        assert len(names) == len(set(names))
        assert not any(part in ("", "..") for name in names for part in name.split("/"))
        assert Experiment.model_validate(experiment.as_dict()) == experiment
    assert time.process_time() - started < 2


def test_the_whole_of_it_is_fine_and_nothing_is_missing():
    experiment = load_experiment(EVERYTHING)
    assert experiment.learnt_methods == ("dqn",)
    for model, entries in (
        (Experiment, EVERYTHING),
        (Query, EVERYTHING["query"]),
        (Convergence, EVERYTHING["fit"]),
        (Stage, {**EVERYTHING["theta_0"][0], **EVERYTHING["theta_0"][1]}),
    ):
        assert set(model.model_fields) - set(entries) == set()


def test_every_entry_with_a_few_odd_values():
    """Each entry at least with something of another type, something below its range, and something odd."""
    for number, way in enumerate(WAYS):
        for value in (-1, {"x": 1}, ODD[number % len(ODD)]):
            check(with_entry(way, value))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(WAYS), st.sampled_from(ODD))
def test_any_entry_with_any_odd_value(way, value):
    check(with_entry(way, value))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(WAYS), json_values)
def test_any_entry_with_anything(way, value):
    check(with_entry(way, value))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(WAYS), st.sampled_from(ODD))
def test_the_command_line_ends_with_a_status(tmp_path, capsys, way, value):
    file = tmp_path / "odd.yaml"
    file.write_text(yaml.safe_dump(with_entry(way, value)), encoding="utf-8")
    status = main(["status", str(file), "--out", str(tmp_path / "run")])
    said = capsys.readouterr()
    assert (status, bool(said.err)) in ((0, False), (2, True))
    assert "Traceback" not in said.err


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text("[]{}:,&*!|>'\"%@`#-?~ \n\tab01._", max_size=80).map(str.encode))
def test_any_bytes_as_a_file(tmp_path, content):
    file = tmp_path / "odd.yaml"
    file.write_bytes(content)
    assert main(["status", str(file), "--out", str(tmp_path / "run")]) == 2
