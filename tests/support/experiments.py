"""A tiny environment and tiny experiments, as plain values, rows of csv files, and pieces without training."""

import csv
import hashlib
import re
import types
from pathlib import Path

import numpy as np
from PIL import Image

from al_seg_env.storage import write_bytes, write_csv
from al_seg_experiment import protocol, runner
from al_seg_experiment.trial_results import write_result

TINY = {
    "image_size": [32, 40],
    "images": 24,
    "splits": {"seed": 0, "state": 2, "train": 6, "reward": 3, "eval": 8},
    "region_size": [16, 20],
    "regions_per_step": 2,
    "pool_size": 2,
    "budget": 4,
    "crop_size": [32, 32],
    "fit_iterations": 1,
    "precision": "float32",
    "weights": None,  # from which a single update makes them better
}

TINY_EXPERIMENT = {
    "name": "tiny",
    "arguments": {
        "image_size": [32, 40],
        "images": 24,
        "splits": {"seed": 0, "state": 2, "train": 6, "reward": 3, "eval": 8},
        "region_size": [16, 20],
        "regions_per_step": 2,
        "pool_size": 2,
        "budget": 4,
        "crop_size": [32, 32],
        "fit_iterations": 1,
        "precision": "float32",
        "device": "cpu",
        "weights": None,
    },
    "methods": ["uniform", "dqn", "rare"],
    "seeds": [0, 1],
    "budgets": [2, 4],
    "theta_0": [
        {"arguments": {"style": "render"}, "images": "all", "epochs": 1, "updates": 1},
        {"epochs": 1, "updates": 1},
    ],
    "query_theta_0": [{"images": "state", "epochs": 1, "updates": 1}],
    "query": {"episodes": 2, "agent": {"batch_size": 4, "epsilon_steps": 3}, "checkpoint_every": 1},
    "fit": {"crop_size": [32, 32], "patience": 1, "max_epochs": 2},
}

LIGHT = {"architecture": "Light", "network_options": {"width": 8}, "trainable": "decoder", "device": "cpu"}
FEATURES = {"region_features": ["mean_probability", "forecast", "labelled"], "entropy_pools": [], "similarity": []}
WITH_FORECAST = {
    "name": "tiny",
    "arguments": {**TINY, **LIGHT, **FEATURES},
    "methods": ["uniform", "rarity_regression", "dqn"],
    "seeds": [0],
    "budgets": [2, 4],
    "theta_0": [{"images": "state", "epochs": 1, "updates": 2, "early_stopping": False}],
    "query_theta_0": [{"images": "state", "epochs": 1, "updates": 2, "early_stopping": False}],
    "forecast": {"networks": 2, "updates": 3, "batch_size": 4},
    "query": {
        "episodes": 2,
        "policy": "CandidatePolicy",
        "arguments": {"sub_rewards": True},
        "agent": {"credit": "class_rewards", "gamma": 0.0, "batch_size": 4},
    },
    "fit": {"crop_size": None, "batch_size": 4, "updates": 2},
    "full": False,
}


def rows_of(path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def assert_picture(path) -> None:
    """See that a file is a picture that is not blank."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.std() > 1, f"{path} is blank"


def contents(folder) -> dict[str, bytes]:
    """Return all files by name, except locks and those set aside, without the version of the code."""
    return {
        path.relative_to(folder).as_posix(): re.sub(rb'"code": ".*"', b"", path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".damaged" and path.name not in (".lock", ".short-lock")
    }


SMALLEST_EXPERIMENT = {
    **TINY_EXPERIMENT,
    "name": "smallest",
    "methods": ["uniform", "dqn"],
    "seeds": [0],
    "theta_0": [{"epochs": 1, "updates": 1}],
    "query": {"episodes": 1, "agent": {"batch_size": 4, "epsilon_steps": 3}, "checkpoint_every": 1},
    "fit": {"crop_size": [32, 32], "patience": 1, "max_epochs": 1},
    "full": 1,
}
"""One piece of each kind."""


def quick_pieces(monkeypatch) -> None:
    """Let pieces write what they would, as files of the same names, without training anything.

    What they write depends on what they are given, and what is there is not made again, as in the real ones.
    """
    monkeypatch.setattr(runner, "check_data", lambda experiment: None)
    numerics = types.SimpleNamespace(numerics={"precision": "float32", "channels_last": True})
    environment = types.SimpleNamespace(learner=numerics)
    for name, stand_in in {
        "make_environment": lambda experiment, *_, **__: environment,
        "pretrain": _pretrain,
        "train_query": _train_query,
        "run_trial": _run_trial,
        "run_full": lambda part, seed, weights, folder: _result(folder, "full", "full", seed, 32, weights),
        "run_theta_0": lambda part, weights, folder: _result(folder, "0", "theta_0", 0, 0, weights),
    }.items():
        monkeypatch.setattr(protocol, name, stand_in)


def _pretrain(part, stages, folder):
    if not (folder / "stage-0.safetensors").exists():
        write_bytes(folder / "stage-0.safetensors", repr(stages).encode())
    write_csv(folder / "pretrain.csv", [{"stage": 0, "epoch": 0}])
    write_bytes(folder / "theta_0.safetensors", (folder / "stage-0.safetensors").read_bytes())


def _train_query(part, weights, folder, seed, method=""):
    checkpoint = folder / "checkpoints" / "checkpoint-000000001.safetensors"
    if not checkpoint.exists():
        write_csv(folder / "episodes.csv", [{"episode": 1, "steps": 2, "return": 0.5}])
        write_bytes(checkpoint, _digest(weights, seed))
    write_bytes(folder / "agent.safetensors", _digest(checkpoint, seed))


def _run_trial(part, method, seed, weights, agent, folder):
    for budget in part.budgets:
        _result(folder, str(budget), method, seed, budget, weights, agent)
    if not (folder / "requests.png").exists():
        write_bytes(folder / "requests.png", _digest(folder / f"result-{part.budgets[-1]}.json"))


def _result(folder, name, method, seed, budget, *made_of):
    if not (folder / f"result-{name}.json").exists():
        miou = _digest(*made_of, method, seed, budget)[0] / 4
        figures = {"val_miou": miou, "val_iou": {"road": miou}, "test_miou": miou, "test_iou": {"road": miou}}
        write_result(folder / f"result-{name}.json", method, seed, budget, figures)


def _digest(*made_of) -> bytes:
    digest = hashlib.sha256()
    for each in made_of:
        digest.update(each.read_bytes() if isinstance(each, Path) else repr(each).encode())
    return digest.digest()
