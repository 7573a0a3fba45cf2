"""Pretraining theta_0 on images whose labels are known before active learning begins (section 4.1)."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from torch import Tensor

from al_seg_env.datasets.frames import Frames
from al_seg_env.env import RegionSelectionEnv
from al_seg_env.learner.fitting import Fit, FitSettings, fit_to_convergence
from al_seg_env.learner.weights import save_weights, weights_digest
from al_seg_env.regions import RegionGrid
from al_seg_env.registration import environment_spec, make_again
from al_seg_env.storage import load_tree, save_tree, tree_digest, write_csv
from al_seg_env.storage.validation import check_int
from al_seg_env.types import UInt8Array
from al_seg_experiment.experiment import Stage, source_of
from al_seg_experiment.folders import claimed, identity
from al_seg_experiment.plotting import plot_lines
from al_seg_experiment.records import without_places

WEIGHTS = "theta_0.safetensors"
CURVES = "pretrain.csv"
HISTORY = "history"


def pretrain(env: str | gym.Env | EnvSpec, stages: Sequence[Stage], folder: str | Path, *, seed: int = 0) -> Path:
    """Train theta_0 in stages, by default each with early stopping on D_R, and store it.

    Writes ``theta_0.safetensors``, the mean IoU on D_R after each epoch as ``pretrain.csv`` and, with matplotlib, its
    curve as ``pretrain.png``. Called again after a kill, it resumes; a finished folder is left unchanged.

    Args:
        env: The environment whose network is trained: an id, an environment or its ``spec``.
        stages: Run one after another; a stage may name another environment (a source, such as GTA5) whose images to
            train on.
        folder: Folder for the results, which may hold earlier ones.
        seed: Seed of the order, crops and flips of the images.

    Returns:
        The path of the weights, to pass to an environment as ``weights=``.

    Raises:
        ValueError: If the folder holds results of other stages or of another environment.
    """
    spec, seed = environment_spec(env), check_int("seed", seed)
    target = make_again(spec)
    for number, stage in enumerate(stages):  # so that a mistake leaves nothing behind
        _source(spec, target, stage, number)
    made_with = {**identity(spec), "stages": [stage.model_dump(mode="json") for stage in stages], "seed": seed}
    with claimed(folder, "pretrain", made_with, (WEIGHTS, CURVES, "pretrain.png", "stage-*")) as claimed_folder:
        weights = run_stages(spec, stages, claimed_folder, seed=seed)
        if stages and importlib.util.find_spec("matplotlib"):
            _plot(_curves(claimed_folder, stages), claimed_folder / "pretrain.png")
    return weights


def run_stages(spec: EnvSpec, stages: Sequence[Stage], folder: Path, *, seed: int = 0) -> Path:
    """Do the work of :func:`pretrain` in a folder that is already locked."""
    before: dict[str, Any] = {}
    for number, stage in enumerate(stages):
        path = folder / f"stage-{number}.safetensors"
        history = folder / f"stage-{number}.history.safetensors"
        made_with = _made_with(environment_spec(spec, **before), stage, number, seed)
        if not _is_trained(path, history, made_with):
            rate = {} if stage.learning_rate is None else {"learning_rate": stage.learning_rate}
            env = make_again(spec, **rate, **before)
            fit = _train_stage(spec, env, stage, folder / f"stage-{number}.part", number, seed)
            save_weights(env.learner, path, env.data.classes)
            trained = {**made_with, "weights": weights_digest(path)}
            save_tree(history, HISTORY, {**trained, "history": fit.history, "best_epoch": fit.best_epoch})
        before = {"weights": str(path)}
    if rows := _curves(folder, stages):
        write_csv(folder / CURVES, rows)
    env = make_again(spec, **before)
    save_weights(env.learner, folder / WEIGHTS, env.data.classes)
    return folder / WEIGHTS


def _made_with(spec: EnvSpec, stage: Stage, number: int, seed: int) -> dict[str, Any]:
    """Return the stage, and a digest of all that its weights depend on, by which no other training passes for it."""
    plain = stage.model_dump(mode="json")
    made_with = without_places({**identity(spec), "stage": plain, "number": number, "seed": seed})
    return {"stage": plain, "made_with": tree_digest(json.loads(json.dumps(made_with)))}


def _is_trained(weights: Path, history: Path, made_with: Mapping[str, Any]) -> bool:
    """Return whether a stage is finished; damaged files and those of other stages are set aside, with a warning."""
    if not (weights.exists() and history.exists()):
        return False
    try:
        done = load_tree(history, HISTORY)
        found = {**made_with, "weights": weights_digest(weights)}
        if any(done.get(name) != value for name, value in found.items()):
            raise ValueError(f"{weights} and {history} are not of one training of this stage")
    except ValueError as error:
        warnings.warn(f"{error}; they are set aside, and the stage is trained again", stacklevel=3)
        for path in (weights, history):
            path.replace(path.with_suffix(".damaged"))
        return False
    return True


def _train_stage(spec: EnvSpec, env: RegionSelectionEnv, stage: Stage, checkpoint: Path, number: int, seed: int) -> Fit:
    source = _source(spec, env, stage, number)
    splits = source.splits
    images = (*splits.state, *splits.train, *splits.eval) if stage.images == "all" else getattr(splits, stage.images)
    frames, validation = source.frames, source.splits.reward
    if source is not env:  # validated on the target's own images, so both must be at hand
        frames = JoinedFrames(source.frames, images, env.frames, env.splits.reward)
        images, validation = tuple(range(len(images))), tuple(range(len(images), len(images) + len(env.splits.reward)))
    settings = FitSettings(env.config.crop_size, stage.batch_size)
    if stage.early_stopping:
        settings = replace(settings, patience=stage.patience, max_epochs=stage.epochs, min_updates=stage.updates)
    else:
        rate = stage.learning_rate or getattr(env.learner, "learning_rate", None) or settings.learning_rate
        settings = replace(settings, updates=stage.epochs * stage.updates, replay=0.0, learning_rate=rate)
    whole = RegionGrid(env.grid.image_size, env.grid.image_size)
    rng = np.random.default_rng([seed, number])
    return fit_to_convergence(
        env.learner, frames, whole, images, frames.mask, validation, settings, rng, f"stage {number}", checkpoint
    )


def _source(spec: EnvSpec, env: RegionSelectionEnv, stage: Stage, number: int) -> RegionSelectionEnv:
    """Return the environment whose images a stage trains on; refuse other classes or another image size."""
    if stage.env is None and not stage.arguments:
        return env
    source_id, arguments = source_of(stage, spec.id, spec.kwargs)
    source = make_again(source_id, **arguments)
    if source.data.classes != env.data.classes or source.grid.image_size != env.grid.image_size:
        raise ValueError(
            f"stage {number} trains on {source.grid.image_size} images of {list(source.data.classes)}, but the "
            f"environment's are {env.grid.image_size} of {list(env.data.classes)}; they must be the same"
        )
    return source


def _curves(folder: Path, stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Return a row per stage and epoch: mean IoU on D_R, and whether its weights were kept."""
    rows: list[dict[str, Any]] = []
    for number in range(len(stages)):
        done = load_tree(folder / f"stage-{number}.history.safetensors", HISTORY)
        rows += [
            {"stage": number, "epoch": epoch, "val_miou": round(miou, 4), "kept": epoch == done["best_epoch"]}
            for epoch, miou in enumerate(done["history"])
        ]
    return rows


def _plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    curves = {
        number: [row for row in rows if row["stage"] == number] for number in {row["stage"]: None for row in rows}
    }
    lines = {
        f"stage {number}": ([row["epoch"] for row in curve], [row["val_miou"] for row in curve])
        for number, curve in curves.items()
    }
    kept = [row for row in rows if row["kept"]]
    marks = {"kept": ([row["epoch"] for row in kept], [row["val_miou"] for row in kept])}
    plot_lines(path, lines, xlabel="epoch", ylabel="mean IoU on D_R [%]", title="Pretraining of theta_0", marks=marks)


class JoinedFrames(Frames):
    """The images of two data sets of the same classes and size, concatenated; each decodes and caches its own."""

    def __init__(self, a: Frames, of_a: Sequence[int], b: Frames, of_b: Sequence[int]) -> None:
        super().__init__(a.data)
        self._parts = [(a, index) for index in of_a] + [(b, index) for index in of_b]

    def image(self, index: int) -> Tensor:
        """Return an image, ``(H, W, 3)`` uint8."""
        frames, inner = self._parts[index]
        return frames.image(inner)

    def mask(self, index: int) -> UInt8Array:
        """Return the true labels of an image, ``(H, W)`` uint8."""
        frames, inner = self._parts[index]
        return frames.mask(inner)
