"""The protocol of section 4.1: pretraining, training the query agent, acquiring through all budgets, and testing.

Each function does one piece of an experiment in a folder of its own. It stores what it finishes at once, and called
again after a kill, it goes on from there, on a CPU bit by bit.
"""

from __future__ import annotations

import importlib
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from torch import Tensor

from al_seg_env.datasets.frames import Frames
from al_seg_env.env import RegionSelectionEnv
from al_seg_env.learner.fitting import Evaluation, Fit, FitSettings, evaluate, fit_to_convergence
from al_seg_env.learner.weights import save_weights
from al_seg_env.regions import RegionGrid
from al_seg_env.storage import load_tree, save_tree, write_csv, write_json
from al_seg_env.types import UInt8Array
from al_seg_experiment.experiment import Experiment, Stage

WEIGHTS = "theta_0.safetensors"
AGENT = "agent.safetensors"
ACQUISITION = "acquisition"
RESULT_FORMAT, RESULT_VERSION = "al-seg-env result", 1


def make_environment(experiment: Experiment, *arguments: Mapping[str, Any], **own: Any) -> RegionSelectionEnv:
    """Return the experiment's environment with further arguments, the last ones over the first ones."""
    merged = dict(experiment.arguments)
    for each in (*arguments, own):
        merged.update(each)
    env = gym.make(experiment.env, **merged).unwrapped
    if not isinstance(env, RegionSelectionEnv):
        raise ValueError(f"env {experiment.env!r} is a {type(env).__name__}; expected one of al_seg_env's")
    return env


def pretrain(experiment: Experiment, stages: Sequence[Stage], folder: Path) -> None:
    """Train theta_0 in stages, each with early stopping on D_R; write ``theta_0.safetensors`` and ``pretrain.csv``."""
    rows: list[dict[str, Any]] = []
    before: str | None = None
    for number, stage in enumerate(stages):
        path = folder / f"stage-{number}.safetensors"
        own = {} if stage.learning_rate is None else {"learning_rate": stage.learning_rate}
        env = make_environment(experiment, own, {} if before is None else {"weights": before})
        history = folder / f"stage-{number}.history.safetensors"
        if not (path.exists() and history.exists()):
            fit = _pretrain_stage(experiment, env, stage, folder / f"stage-{number}.part", number)
            save_weights(env.learner, path, env.data.classes)
            save_tree(history, "history", {"history": fit.history, "best_epoch": fit.best_epoch})
        done = load_tree(history, "history")
        rows += [
            {"stage": number, "epoch": epoch, "val_miou": round(miou, 4), "kept": epoch == done["best_epoch"]}
            for epoch, miou in enumerate(done["history"])
        ]
        before = str(path)
    env = make_environment(experiment, {} if before is None else {"weights": before})
    if rows:
        write_csv(folder / "pretrain.csv", rows)
    save_weights(env.learner, folder / WEIGHTS, env.data.classes)


def _pretrain_stage(
    experiment: Experiment,
    env: RegionSelectionEnv,
    stage: Stage,
    checkpoint: Path,
    number: int,
) -> Fit:
    source = env
    if stage.env is not None or stage.arguments:
        source_id, merged = experiment.source(stage)
        made = gym.make(source_id, **merged).unwrapped
        assert isinstance(made, RegionSelectionEnv)
        source = made
        if source.data.classes != env.data.classes or source.grid.image_size != env.grid.image_size:
            raise ValueError(
                f"stage {number} trains on {source.grid.image_size} images of {list(source.data.classes)}, but the "
                f"experiment's are {env.grid.image_size} of {list(env.data.classes)}; they must be the same"
            )
    splits = source.splits
    images = (*splits.state, *splits.train, *splits.eval) if stage.images == "all" else getattr(splits, stage.images)
    frames, validation = source.frames, source.splits.reward
    if source is not env:  # validated on the target's own images, so both must be at hand
        frames = JoinedFrames(source.frames, images, env.frames, env.splits.reward)
        images, validation = tuple(range(len(images))), tuple(range(len(images), len(images) + len(env.splits.reward)))
    settings = FitSettings(env.config.crop_size, stage.batch_size, stage.patience, stage.epochs, stage.updates)
    whole = RegionGrid(env.grid.image_size, env.grid.image_size)
    rng = np.random.default_rng([0, number])
    return fit_to_convergence(
        env.learner, frames, whole, images, frames.mask, validation, settings, rng, f"stage {number}", checkpoint
    )


class JoinedFrames(Frames):
    """The images of two data sets of the same classes and size, one after another; decoded and kept by theirs."""

    def __init__(self, a: Frames, of_a: Sequence[int], b: Frames, of_b: Sequence[int]) -> None:
        super().__init__(a.data)
        self._parts = [(a, index) for index in of_a] + [(b, index) for index in of_b]

    def image(self, index: int) -> Tensor:
        """Return an image, ``(H, W, 3)`` uint8."""
        frames, own = self._parts[index]
        return frames.image(own)

    def mask(self, index: int) -> UInt8Array:
        """Return the true labels of an image, ``(H, W)`` uint8."""
        frames, own = self._parts[index]
        return frames.mask(own)


def train_query(experiment: Experiment, weights: Path, folder: Path, seed: int) -> None:
    """Train the query agent on D_T (section 3.2); write ``agent.safetensors`` and ``episodes.csv``."""
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor

    from agents import Checkpoint, EpisodeRecorder, SubActionDQN

    query = experiment.query
    make = partial(make_environment, experiment, query.arguments, split="train", weights=str(weights))
    env = VecMonitor(DummyVecEnv([make]) if query.envs == 1 else SubprocVecEnv([make] * query.envs))
    config = env.get_attr("config", [0])[0]
    per_episode = math.ceil(config.budget / config.regions_per_step)
    total = query.episodes * per_episode
    agent = SubActionDQN("QueryPolicy", env, seed=seed, **query.agent_arguments(total))
    checkpoint = Checkpoint(folder / "checkpoints", every=query.checkpoint_every or per_episode)
    checkpoint.resume(agent)
    recorder = EpisodeRecorder(folder / "episodes.csv")
    if agent.num_timesteps < total:
        remaining = total - agent.num_timesteps
        agent.learn(remaining, callback=[recorder, checkpoint], reset_num_timesteps=False, progress_bar=True)
    if query.refit is not None:
        agent.refit(query.refit.gradient_steps, query.refit.policy_kwargs)
    agent.save(folder / AGENT)
    env.close()


def run_trial(
    experiment: Experiment,
    method: str,
    seed: int,
    weights: Path,
    agent: Path | None,
    folder: Path,
) -> None:
    """Acquire regions of D_V through all budgets; at each, fork, train the fork to convergence, and test it.

    Writes ``result-<budget>.json`` for each budget as soon as it is done, and ``requests.png``.
    """
    entry = experiment.methods[method]
    budgets = experiment.budgets
    if (folder / "requests.png").exists() and all((folder / f"result-{b}.json").exists() for b in budgets):
        return
    env = make_environment(experiment, entry.arguments, split="eval", budget=budgets[-1], weights=str(weights))
    policy = make_policy(entry.policy, env, seed, agent)
    asked: np.ndarray = np.zeros(len(env.data.classes), dtype=np.int64)
    observation, info = env.reset(seed=seed)
    if (kept := _acquired(folder, budgets)) is not None:
        budget, tree = kept
        observation, info = env.set_state(tree["state"])
        asked = tree["asked"]
        if tree["policy"] is not None:
            policy.rng = tree["policy"]
        budgets = budgets[budgets.index(budget) :]
    for budget in budgets:
        started = time.perf_counter()
        while info["labelled"] < budget:
            action, _ = policy.predict(observation, deterministic=True)
            observation, _, _, _, info = env.step(action)
            asked = asked + info["label_counts"]
        acquired = folder / f"acquired-{budget}.safetensors"
        if not acquired.exists():
            rng = getattr(policy, "rng", None)
            rng = rng if isinstance(rng, np.random.Generator) else None
            save_tree(acquired, ACQUISITION, {"state": env.get_state(), "asked": asked, "policy": rng})
            _remove_others(folder, acquired)
        took = time.perf_counter() - started
        result = folder / f"result-{budget}.json"
        if not result.exists():
            before = env.learner.state_dict()
            figures = _fit_and_test(experiment, env, env.labels.labelled, env.labels.mask, seed, budget, folder)
            env.learner.load_state_dict(before)
            figures["acquired_miou"] = info["miou"]
            figures["asked"] = dict(zip(env.data.classes, map(int, asked), strict=True))
            figures["seconds"] = {
                "acquiring": round(took, 1),
                "fitting": round(time.perf_counter() - started - took, 1),
            }
            _write_result(result, method, seed, info["labelled"], figures)
    _picture(env, folder / "requests.png")
    _remove_others(folder)


def _acquired(folder: Path, budgets: Sequence[int]) -> tuple[int, dict[str, Any]] | None:
    """Return the largest budget whose acquisition is stored, and what is; a damaged one is set aside."""
    for budget in reversed(budgets):
        path = folder / f"acquired-{budget}.safetensors"
        if path.exists():
            try:
                return budget, load_tree(path, ACQUISITION)
            except ValueError as error:
                warnings.warn(f"{error}; it is set aside, and regions are acquired anew", stacklevel=3)
                path.replace(path.with_suffix(".damaged"))
    return None


def run_full(experiment: Experiment, seed: int, weights: Path, folder: Path) -> None:
    """Train with all labels of D_V to convergence, and test: the line of full supervision in figure 4."""
    env = make_environment(experiment, split="eval", weights=str(weights))
    result = folder / "result-full.json"
    if not result.exists():
        regions = env.grid.regions_of(env.splits.eval).tolist()
        figures = _fit_and_test(experiment, env, regions, env.frames.mask, seed, len(regions), folder)
        _write_result(result, "full", seed, len(regions), figures)


def run_theta_0(experiment: Experiment, weights: Path, folder: Path) -> None:
    """Test theta_0 itself: budget 0."""
    env = make_environment(experiment, split="eval", weights=str(weights))
    if not (folder / "result-0.json").exists():
        figures = _figures(env, evaluate(env.learner, env.frames, env.splits.reward))
        _write_result(folder / "result-0.json", "theta_0", 0, 0, figures)


def make_policy(name: str, env: RegionSelectionEnv, seed: int, agent: Path | None) -> Any:
    """Return an object with the ``predict`` of Stable-Baselines3."""
    import agents

    known: dict[str, Callable[[], Any]] = {
        "uniform": lambda: agents.UniformPolicy(seed),
        "entropy": agents.EntropyPolicy,
        "bald": agents.BALDPolicy,
        "margin": lambda: agents.ScorePolicy("score_margin"),
        "rare": agents.RareClassPolicy,
        "greedy": lambda: agents.GreedyOraclePolicy(env, suggestions=[agents.RareClassPolicy()], seed=seed),
        "dqn": lambda: agents.SubActionDQN.load(str(agent), env=env),
    }
    if name in known:
        return known[name]()
    module, _, function = name.partition(":")
    try:
        made = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"policy {name!r} can't be imported: {error}; expected module:function") from error
    return made(env, seed)


def _fit_and_test(
    experiment: Experiment,
    env: RegionSelectionEnv,
    regions: Sequence[int],
    labels: Callable[[int], Any],
    seed: int,
    budget: int,
    folder: Path,
) -> dict[str, Any]:
    """Train to convergence with early stopping on D_R, and return the figures on D_R and on the test set."""
    fit = fit_to_convergence(
        env.learner,
        env.frames,
        env.grid,
        regions,
        labels,
        env.splits.reward,
        experiment.fit.settings,
        np.random.default_rng([seed, budget]),
        f"fit {budget}",
        folder / f"fit-{budget}.part",
    )
    figures = _figures(env, evaluate(env.learner, env.frames, env.splits.reward))
    return {**figures, "epochs": len(fit.history) - 1, "best_epoch": fit.best_epoch}


def _figures(env: RegionSelectionEnv, validation: Evaluation) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    evaluations = {"val": validation}
    if env.splits.test:
        evaluations["test"] = evaluate(env.learner, env.frames, env.splits.test)
    for split, evaluation in evaluations.items():
        figures[f"{split}_miou"] = evaluation.miou
        figures[f"{split}_iou"] = dict(zip(env.data.classes, evaluation.class_iou, strict=True))
    return figures


def _write_result(path: Path, method: str, seed: int, budget: int, figures: Mapping[str, Any]) -> None:
    about = {"format": RESULT_FORMAT, "version": RESULT_VERSION, "method": method, "seed": seed, "budget": budget}
    write_json(path, {**about, **figures})


def _remove_others(folder: Path, kept: Path | None = None) -> None:
    """Remove the acquisitions stored at earlier budgets: one, at most, is needed to go on."""
    for path in folder.glob("acquired-*.safetensors"):
        if path != kept:
            path.unlink(missing_ok=True)


def _picture(env: RegionSelectionEnv, path: Path) -> None:
    """Draw the images of which the most was asked for, with all that was (figure D.1)."""
    from PIL import Image

    from al_seg_env.rendering import overlay_requests
    from al_seg_env.storage import replacing

    pixels = overlay_requests(env.data, env.frames, env.grid, env.labels)
    with replacing(path) as unfinished:
        Image.fromarray(pixels).save(unfinished, format="png")
