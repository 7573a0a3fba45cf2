"""Training the networks of the feature ``"forecast"``, each without a part of D_T."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from al_seg_env.env import RegionSelectionEnv
from al_seg_env.learner.fitting import FitSettings, fit_to_convergence
from al_seg_env.observation.forecast import save_forecast
from al_seg_env.regions import RegionGrid
from al_seg_env.registration import environment_spec, make_again
from al_seg_env.storage import load_tree, save_tree, well_formed, write_csv
from al_seg_env.storage.validation import check, check_int
from al_seg_experiment.experiment import ForecastTraining
from al_seg_experiment.folders import claimed, identity

FORECAST = "forecast.safetensors"
FIGURES = "forecast.csv"
NETWORK = "forecasting network"


def train_forecast(
    env: str | gym.Env | EnvSpec, folder: str | Path, settings: ForecastTraining | None = None, *, seed: int = 0
) -> Path:
    """Train the networks that the feature ``"forecast"`` needs, and store them.

    The images of D_T are dealt out to as many parts as there are networks. Each network starts from theta_0 and is
    trained on D_S and all of D_T but its own part. Writes ``forecast.safetensors``, and each network's mean IoU on its
    part as ``forecast.csv``. Called again after a kill, it resumes; a finished folder is left unchanged.

    Args:
        env: The environment whose images are forecast: an id, an environment or its ``spec``. Its theta_0, from which
            the networks start, must not have been trained on D_T: what is held out would be no news to them.
        folder: Where results are and go.
        settings: Number of networks, and how each is trained.
        seed: Seeds the parts, and the order of the images.

    Returns:
        The path of the networks: pass it as ``forecast=`` when an environment is made.

    Raises:
        ValueError: If D_T has fewer images than there are to be networks, or the folder holds other results.
    """
    settings = ForecastTraining() if settings is None else settings
    spec, seed = environment_spec(env), check_int("seed", seed)
    made_with = {**identity(spec), "settings": settings.model_dump(mode="json"), "seed": seed}
    with claimed(folder, "forecast", made_with, (FORECAST, FIGURES, "network-*")) as claimed_folder:
        return run_forecast(spec, settings, claimed_folder, seed=seed)


def run_forecast(spec: EnvSpec, settings: ForecastTraining, folder: Path, *, seed: int = 0) -> Path:
    """Do the work of :func:`train_forecast`, in a folder that is held already."""
    env = make_again(spec)
    splits, names, n = env.splits, env.data.names, settings.networks
    enough = len(splits.train) >= n
    check("networks", n, enough, f"at most one for each of the {len(splits.train)} images of D_T")
    order = np.random.default_rng(seed).permutation(np.asarray(splits.train, np.int64))
    networks: list[tuple[dict[str, Any], list[str]]] = []
    figures: list[dict[str, Any]] = []
    for number in range(n):
        part = sorted(order[number::n].tolist())
        images = [*splits.state, *(image for image in splits.train if image not in set(part))]
        known = [names[image] for image in images]
        path = folder / f"network-{number}.safetensors"
        found = _trained(path, known)
        if found is None:
            found = _train(env, settings, images, part, folder / f"network-{number}.part", [seed, number])
            save_tree(path, NETWORK, {**found, "images": known})
        networks.append((found["state"], known))
        figures.append({"network": number, "images": len(images), "unseen": len(part), "miou": round(found["miou"], 4)})
    write_csv(folder / FIGURES, figures)
    save_forecast(folder / FORECAST, networks, env.data.classes)
    return folder / FORECAST


def _trained(path: Path, images: list[str]) -> dict[str, Any] | None:
    """Return the network that is trained on these images, ``None`` if there is none that is whole."""
    if not path.exists():
        return None
    try:
        tree: dict[str, Any] = load_tree(path, NETWORK)
        with well_formed(path):
            if tree["images"] != images:
                raise ValueError("it was trained on other images; was it moved?")
            tree = {"state": dict(tree["state"]), "miou": float(tree["miou"])}
    except ValueError as error:
        warnings.warn(f"{error}; it is set aside, and the network is trained again", stacklevel=3)
        path.replace(path.with_suffix(".damaged"))
        return None
    return tree


def _train(
    env: RegionSelectionEnv,
    settings: ForecastTraining,
    images: list[int],
    unseen: list[int],
    checkpoint: Path,
    seed: list[int],
) -> dict[str, Any]:
    """Return a network's state, and its mean IoU in percent on the images that it was not trained on."""
    env.learner.reset()  # so that a training that is resumed is recognised by its start
    fit = fit_to_convergence(
        env.learner,
        env.frames,
        RegionGrid(env.grid.image_size, env.grid.image_size),
        images,
        env.frames.mask,
        unseen,
        FitSettings(
            env.config.crop_size,
            settings.batch_size,
            updates=settings.updates,
            replay=0.0,
            learning_rate=settings.learning_rate,
        ),
        np.random.default_rng(seed),
        f"forecasting network {seed[1]}",
        checkpoint,
    )
    return {"state": env.learner.state_dict(), "miou": fit.best_miou}
