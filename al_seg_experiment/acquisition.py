"""Spending a budget: a policy acquires regions, and at each budget the network is trained to convergence and tested.

This is the evaluation of section 4.1. Each function works in its own folder and stores each result immediately. Called
again after a kill, it resumes from there, on a CPU bit for bit.
"""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from al_seg_env.env import RegionSelectionEnv
from al_seg_env.learner.fitting import Evaluation, FitSettings, evaluate, fit_to_convergence
from al_seg_env.rendering import overlay_requests
from al_seg_env.storage import load_tree, open_image, replacing, save_tree
from al_seg_experiment.trial_results import write_result

ACQUISITION = "acquisition"
PICTURE = "requests.png"


def acquire(
    env: RegionSelectionEnv,
    policy: Any,
    folder: str | Path,
    *,
    method: str,
    seed: int,
    budgets: Sequence[int],
    fit: FitSettings,
) -> None:
    """Acquire regions through all budgets; at each, train a copy of the network to convergence, and test it.

    Writes ``result-<budget>.json`` for each budget as soon as it is done, and finally ``requests.png``: the images with
    the most requested regions (figure D.1).

    Args:
        env: The environment, made with ``split="eval"`` and the largest of the budgets.
        policy: An object with the ``predict`` of Stable-Baselines3, such as an agent or a baseline.
        folder: Folder for the results, which may hold earlier ones.
        method: The policy's name in the results.
        seed: Seed of the environment and, together with the budget, of the training to convergence.
        budgets: Regions labelled, increasing; all except the last one are rounded up to whole steps.
        fit: Settings of the training to convergence.

    Raises:
        ValueError: If the budgets are not increasing, or the last is not the environment's.
    """
    folder, budgets = Path(folder), list(budgets)
    if not budgets or sorted(set(budgets)) != budgets or env.config.budget != budgets[-1]:
        raise ValueError(
            f"budgets is {budgets} and the environment's budget {env.config.budget}; expected increasing numbers of "
            "regions, the last of which is the environment's"
        )
    _check_policy(policy)
    asked: np.ndarray = np.zeros(len(env.data.classes), dtype=np.int64)
    observation, info = env.reset(seed=seed)
    trial = {"method": method, "seed": seed}
    if (kept := _acquired(folder, budgets, trial)) is not None:
        budget, tree = kept
        observation, info = env.set_state(tree["state"])
        asked = tree["asked"]
        if tree["policy"] is not None:
            policy.rng = tree["policy"]
        budgets = budgets[budgets.index(budget) :]
    with tqdm(total=budgets[-1], initial=info["labelled"], desc=f"{method}, seed {seed}", leave=False) as bar:
        for budget in budgets:
            started = time.perf_counter()
            while info["labelled"] < budget:
                action, _ = policy.predict(observation, deterministic=True)
                observation, _, _, _, info = env.step(action)
                asked = asked + info["label_counts"]
                bar.update(len(info["chosen"]))
            acquired = folder / f"acquired-{budget}.safetensors"
            if not acquired.exists():
                rng = getattr(policy, "rng", None)
                rng = rng if isinstance(rng, np.random.Generator) else None
                save_tree(acquired, ACQUISITION, {**trial, "state": env.get_state(), "asked": asked, "policy": rng})
                _remove_others(folder, acquired)
            took = time.perf_counter() - started
            result = folder / f"result-{budget}.json"
            if not result.exists():
                before = env.learner.state_dict()
                figures = _fit_and_test(env, env.labels.labelled, env.labels.mask, seed, budget, fit, folder)
                env.learner.load_state_dict(before)
                figures["acquired_miou"] = info["miou"]
                figures["asked"] = dict(zip(env.data.classes, map(int, asked), strict=True))
                figures["seconds"] = {
                    "acquiring": round(took, 1),
                    "fitting": round(time.perf_counter() - started - took, 1),
                }
                write_result(result, method, seed, info["labelled"], figures)
    with replacing(folder / PICTURE) as unfinished:
        Image.fromarray(overlay_requests(env.data, env.frames, env.grid, env.labels)).save(unfinished, format="png")
    _remove_others(folder)


def _check_policy(policy: Any) -> None:
    """Raise a ValueError unless a policy can be called as this module does."""
    try:
        inspect.signature(policy.predict).bind({}, deterministic=True)
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"the policy is a {type(policy).__name__} ({error}); expected an object with predict(observation, "
            "state=None, episode_start=None, deterministic=False), which returns the action and a state, or None"
        ) from error


def is_acquired(folder: Path, budgets: Sequence[int]) -> bool:
    """Return whether :func:`acquire` has nothing left to do in a folder."""
    return _is_intact(folder / PICTURE) and all((folder / f"result-{budget}.json").exists() for budget in budgets)


def _is_intact(picture: Path) -> bool:
    try:
        with open_image(picture) as image:
            image.load()
    except Exception:  # decoders raise all sorts
        return False
    return True


def supervise_fully(env: RegionSelectionEnv, folder: str | Path, *, seed: int, fit: FitSettings) -> None:
    """Train with all labels of D_V to convergence, and test: the line of full supervision in figure 4.

    Writes ``result-full.json``; the arguments are those of :func:`acquire`.
    """
    result = Path(folder) / "result-full.json"
    if not result.exists():
        regions = env.grid.regions_of(env.splits.eval).tolist()
        figures = _fit_and_test(env, regions, env.frames.mask, seed, len(regions), fit, Path(folder))
        write_result(result, "full", seed, len(regions), figures)


def measure_theta_0(env: RegionSelectionEnv, folder: str | Path) -> None:
    """Test theta_0 itself, and write ``result-0.json``: budget 0, where every method's curve begins."""
    result = Path(folder) / "result-0.json"
    if not result.exists():
        figures = _figures(env, evaluate(env.learner, env.frames, env.splits.reward))
        write_result(result, "theta_0", 0, 0, figures)


def _acquired(folder: Path, budgets: Sequence[int], trial: Mapping[str, Any]) -> tuple[int, dict[str, Any]] | None:
    """Return the largest budget with a stored acquisition and all results before it, and that acquisition.

    A file that is damaged, or of another trial or budget, is set aside.
    """
    missing = [budget for budget in budgets if not (folder / f"result-{budget}.json").exists()]
    for budget in reversed([budget for budget in budgets if budget <= min(missing, default=budgets[-1])]):
        path = folder / f"acquired-{budget}.safetensors"
        if path.exists():
            try:
                tree = load_tree(path, ACQUISITION)
                of = {name: tree.get(name) for name in trial}
                if of != trial:
                    raise ValueError(f"{path} is of the trial {of}; expected {trial}")
                return budget, tree
            except ValueError as error:
                warnings.warn(f"{error}; it is set aside, and regions are acquired again", stacklevel=3)
                path.replace(path.with_suffix(".damaged"))
    return None


def _remove_others(folder: Path, kept: Path | None = None) -> None:
    """Remove the acquisitions stored at earlier budgets: at most one is needed to resume."""
    for path in folder.glob("acquired-*.safetensors"):
        if path != kept:
            path.unlink(missing_ok=True)


def _fit_and_test(
    env: RegionSelectionEnv,
    regions: Sequence[int],
    labels: Callable[[int], Any],
    seed: int,
    budget: int,
    settings: FitSettings,
    folder: Path,
) -> dict[str, Any]:
    """Train to convergence, and return the results on D_R and on the test set."""
    fit = fit_to_convergence(
        env.learner,
        env.frames,
        env.grid,
        regions,
        labels,
        env.splits.reward,
        settings,
        np.random.default_rng([seed, budget]),
        f"fit {budget}",
        folder / f"fit-{budget}.part",
        known=env.labelled_before,
    )
    figures = _figures(env, evaluate(env.learner, env.frames, env.splits.reward))
    return {**figures, "epochs": len(fit.history) - 1, "best_epoch": fit.best_epoch}


def _figures(env: RegionSelectionEnv, validation: Evaluation) -> dict[str, Any]:
    """Return mean IoU and IoU per class on D_R and, where there is one, on the test set."""
    figures: dict[str, Any] = {}
    evaluations = {"val": validation}
    if env.splits.test:
        evaluations["test"] = evaluate(env.learner, env.frames, env.splits.test)
    for split, evaluation in evaluations.items():
        figures[f"{split}_miou"] = evaluation.miou
        figures[f"{split}_iou"] = dict(zip(env.data.classes, evaluation.class_iou, strict=True))
    return figures
