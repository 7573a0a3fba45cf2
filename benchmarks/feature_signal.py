"""How much of what is worth labelling can be read off the features at all? An upper bound for any agent's choices.

At theta_0, the truth-knowing score of each candidate (privileged_rarity: how much of rare classes a region holds) is
regressed linearly on its features over the first draws of pools. On the other draws, the candidate with the highest
prediction is taken from each pool, and the one of highest entropy, and the one that a trained agent values most: of
what the truth-knowing choice gains in rarity over a uniform one, each reaches a share.

    python benchmarks/feature_signal.py --env-arg weights=runs/pretrain/theta_0.safetensors

Prints the shares, and writes OUT/feature_signal.csv.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tyro.conf import arg

from agents import SubActionDQN
from al_seg_env.command_line import EnvironmentOptions, run
from al_seg_env.storage import write_csv


@dataclass(frozen=True)
class Options(EnvironmentOptions):
    """What is measured."""

    draws: int = 12
    """Draws of K pools; two thirds are for the regression."""
    agent: Annotated[Path | None, arg(metavar="PATH")] = None
    """File of a SubActionDQN whose choices are measured, too."""
    seed: int = 0
    """Seed of the first draw."""
    out: Path = Path("runs/feature_signal")
    """Folder of the results."""


def main(options: Options) -> None:
    env = options.make(scores=["entropy", "privileged_rarity"])
    observations = [env.reset(seed=options.seed + draw)[0] for draw in range(options.draws)]
    features = np.stack([np.concatenate([o["candidates"], o["similarity"]], axis=-1) for o in observations])
    rarity = np.stack([o["score_privileged_rarity"] for o in observations])  # (draws, K, N)
    entropy = np.stack([o["score_entropy"] for o in observations])
    split = 2 * options.draws // 3
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 11)))
    model.fit(features[:split].reshape(-1, features.shape[-1]), np.sqrt(rarity[:split]).ravel())
    test = features[split:]
    predicted = model.predict(test.reshape(-1, test.shape[-1])).reshape(test.shape[:-1])
    truth = rarity[split:]
    row: dict[str, Any] = {
        "draws": options.draws,
        "r_squared": round(float(np.corrcoef(predicted.ravel(), np.sqrt(truth).ravel())[0, 1] ** 2), 3),
        "linear_in_features": round(share(truth, predicted), 3),
        "entropy": round(share(truth, entropy[split:]), 3),
    }
    if options.agent is not None:
        agent = SubActionDQN.load(options.agent, env=env, device="cpu")
        actions = np.stack([agent.predict(o, deterministic=True)[0] for o in observations[split:]])  # (draws, K)
        chosen = np.arange(truth.shape[-1]) == actions[..., None]
        row["agent"] = round(share(truth, chosen), 3)
    write_csv(options.out / "feature_signal.csv", [row])
    print(row)


def share(truth: np.ndarray, score: np.ndarray) -> float:
    """Return the rarity gained by the highest scores over a uniform choice, as a share of what is possible."""
    picked = np.take_along_axis(truth, score.argmax(axis=-1)[..., None], axis=-1)
    return float((picked.mean() - truth.mean()) / (truth.max(axis=-1).mean() - truth.mean()))


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
