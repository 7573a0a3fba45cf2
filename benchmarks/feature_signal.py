"""How well can a linear function of the features tell which regions are worth labelling?

The score privileged_rarity tells from the ground truth how much of rare classes a region contains. Ridge regression
predicts it from the region's features at theta_0, cross-validated over five parts of the images. The reported share is
the gain in rarity of the highest prediction in a pool of N held-out regions over a uniform choice, divided by the gain
of the ground truth's choice. It is reported for all features, for each feature alone, for all features but one, for
entropy selection, and for a trained agent.

    python benchmarks/feature_signal.py --env-arg weights=runs/pretrain/theta_0.safetensors

Prints the shares, and writes OUT/feature_signal.csv.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tyro.conf import arg

from agents import SubActionDQN
from al_seg_env import RegionSelectionEnv
from al_seg_env.command_line import EnvironmentOptions, run
from al_seg_env.storage import write_csv

FOLDS = 5
POOLS = 1000
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Options(EnvironmentOptions):
    """What is measured."""

    draws: int = 12
    """Number of draws of K pools, whose different candidates are the measured regions."""
    agent: Annotated[Path | None, arg(metavar="PATH")] = None
    """File of a SubActionDQN whose choices on the drawn pools are measured, too."""
    seed: int = 0
    """Seed of the first draw, of the folds and of the pools."""
    out: Path = Path("runs/feature_signal")
    """Folder of the results."""


def main(options: Options) -> None:
    env = options.make_unwrapped(scores=["entropy", "privileged_rarity"])
    draws = [(env.reset(seed=options.seed + draw)[0], env.pools) for draw in range(options.draws)]
    regions, features, rarity, entropy = candidates(draws)
    rng = np.random.default_rng(options.seed)
    images, image_of = np.unique(env.grid.image_of(regions), return_inverse=True)
    fold_of = (rng.permutation(len(images)) % min(FOLDS, len(images)))[image_of]
    pools = list(drawn_pools(fold_of, env.config.pool_size, rng))
    rows: list[dict[str, Any]] = []
    for name, columns in feature_sets(env):
        if columns:
            predicted = predictions(features[:, columns], np.sqrt(rarity), fold_of)
            r_squared = round(float(np.corrcoef(predicted, np.sqrt(rarity))[0, 1] ** 2), 3)
            row = {
                "choice": name,
                "size": len(columns),
                "r_squared": r_squared,
                "share": share(rarity, predicted, pools),
            }
            rows.append(row)
            print(row, flush=True)
    rows.append({"choice": "entropy", "size": 1, "r_squared": "", "share": share(rarity, entropy, pools)})
    print(rows[-1])
    if options.agent is not None:
        agent = SubActionDQN.load(options.agent, env=env, device="cpu")
        truth = np.stack([o["score_privileged_rarity"] for o, _ in draws])  # (draws, K, N)
        actions = np.stack([agent.predict(o, deterministic=True)[0] for o, _ in draws])[..., None]  # (draws, K, 1)
        best, mean = truth.max(axis=-1).mean(), truth.mean()
        gained = np.take_along_axis(truth, actions, axis=-1).mean() - mean
        rows.append({"choice": "agent", "size": "", "r_squared": "", "share": round(float(gained / (best - mean)), 3)})
        print(rows[-1])
    write_csv(options.out / "feature_signal.csv", rows)


def candidates(draws: list[Any]) -> tuple[npt.NDArray[np.int64], FloatArray, FloatArray, FloatArray]:
    """Return the different regions of all pools, and their features, true rarity and entropy at theta_0."""
    regions, features, rarity, entropy = [], [], [], []
    for observation, pools in draws:
        described = observation["candidates"]
        if "similarity" in observation:
            described = np.concatenate([described, observation["similarity"]], axis=-1)
        for k, pool in enumerate(pools):
            regions.append(pool)
            features.append(described[k, : len(pool)])
            rarity.append(observation["score_privileged_rarity"][k, : len(pool)])
            entropy.append(observation["score_entropy"][k, : len(pool)])
    found, first = np.unique(np.concatenate(regions), return_index=True)
    f, r, e = (np.concatenate(each)[first].astype(np.float64) for each in (features, rarity, entropy))
    return found, f, r, e


def feature_sets(env: RegionSelectionEnv) -> Iterator[tuple[str, list[int]]]:
    """Yield names and columns: all features, each part alone, and all without each part."""
    start, parts = 0, {}
    for name in env.layout["features"]:
        found = env.feature_columns(name)
        parts["forecast" if name.startswith("forecast_") else name] = list(range(found.start, found.stop))
        start = found.stop
    if env.observer.similarity is not None:
        parts["similarity"] = list(range(start, start + env.observer.similarity.size))
    everything = [column for columns in parts.values() for column in columns]
    yield "all features", everything
    if len(parts) > 1:
        for name, columns in parts.items():
            yield f"{name} alone", columns
            yield f"without {name}", [column for column in everything if column not in set(columns)]


def predictions(features: FloatArray, target: FloatArray, fold_of: npt.NDArray[np.int64]) -> FloatArray:
    """Return the prediction for each region of a regression on the other folds."""
    found = np.zeros(len(target))
    for fold in np.unique(fold_of):
        model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 11)))
        model.fit(features[fold_of != fold], target[fold_of != fold])
        found[fold_of == fold] = model.predict(features[fold_of == fold])
    return found


def drawn_pools(fold_of: npt.NDArray[np.int64], size: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Yield pools of regions that lie in one fold, so that one regression has predicted them."""
    folds = [np.flatnonzero(fold_of == fold) for fold in np.unique(fold_of)]
    for number in range(POOLS):
        fold = folds[number % len(folds)]
        yield rng.choice(fold, min(size, len(fold)), replace=False)


def share(truth: FloatArray, score: FloatArray, pools: list[npt.NDArray[np.int64]]) -> float:
    """Return the gain in rarity of the highest scores over a uniform choice, as a share of the largest one."""
    picked = np.mean([truth[pool[score[pool].argmax()]] for pool in pools])
    mean, best = np.mean([truth[pool].mean() for pool in pools]), np.mean([truth[pool].max() for pool in pools])
    return round(float((picked - mean) / (best - mean)), 3)


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
