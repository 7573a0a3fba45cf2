"""How much of what is worth labelling can be read off the features at all? An upper bound for any agent's choices.

At theta_0, the truth-knowing score of each candidate (privileged_rarity: how much of rare classes a region holds) is
regressed linearly on its features over the first draws of pools. On the other draws, the candidate with the highest
prediction is taken from each pool, and the one of highest entropy, and the one that a trained agent values most: of
what the truth-knowing choice gains in rarity over a uniform one, each reaches a share.

    python benchmarks/feature_signal.py --env-arg weights=runs/pretrain/theta_0.safetensors

Prints the shares, and writes OUT/feature_signal.csv.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from common import environment_parser, make_environment

from agents import SubActionDQN
from al_seg_env.storage import write_csv


def main() -> None:
    parser = environment_parser(__doc__ or "", out="feature_signal")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--draws", type=int, default=12, help="draws of K pools; two thirds for the regression")
    parser.add_argument("--agent", type=Path, help="a SubActionDQN's file, whose choices are measured, too")
    args = parser.parse_args()
    env = make_environment(args, scores=["entropy", "privileged_rarity"])
    observations = [env.reset(seed=args.seed + draw)[0] for draw in range(args.draws)]
    features = np.stack([np.concatenate([o["candidates"], o["similarity"]], axis=-1) for o in observations])
    rarity = np.stack([o["score_privileged_rarity"] for o in observations])  # (draws, K, N)
    entropy = np.stack([o["score_entropy"] for o in observations])
    split = 2 * args.draws // 3
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 11)))
    model.fit(features[:split].reshape(-1, features.shape[-1]), np.sqrt(rarity[:split]).ravel())
    test = features[split:]
    predicted = model.predict(test.reshape(-1, test.shape[-1])).reshape(test.shape[:-1])
    truth = rarity[split:]
    row = {
        "draws": args.draws,
        "r_squared": round(float(np.corrcoef(predicted.ravel(), np.sqrt(truth).ravel())[0, 1] ** 2), 3),
        "linear_in_features": round(share(truth, predicted), 3),
        "entropy": round(share(truth, entropy[split:]), 3),
    }
    if args.agent is not None:
        agent = SubActionDQN.load(args.agent, env=env, device="cpu")
        actions = np.stack([agent.predict(o, deterministic=True)[0] for o in observations[split:]])  # (draws, K)
        chosen = np.arange(truth.shape[-1]) == actions[..., None]
        row["agent"] = round(share(truth, chosen), 3)
    write_csv(args.out / "feature_signal.csv", [row])
    print(row)


def share(truth: np.ndarray, score: np.ndarray) -> float:
    """Return the rarity gained by the highest scores over a uniform choice, as a share of what is possible."""
    picked = np.take_along_axis(truth, score.argmax(axis=-1)[..., None], axis=-1)
    return float((picked.mean() - truth.mean()) / (truth.max(axis=-1).mean() - truth.mean()))


if __name__ == "__main__":
    main()
