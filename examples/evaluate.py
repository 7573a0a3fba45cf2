"""Compare policies as the paper does: acquire on D_V to a budget, train to convergence, test (section 4.1).

    python examples/evaluate.py --policies uniform entropy bald dqn=runs/train_dqn/agent.safetensors --seeds 0 1 2 \\
        --budgets 96 192 --env-arg weights=runs/pretrain/theta_0.safetensors

One acquisition run passes through all budgets: at each, a copy of the network is trained to convergence on what is
labelled, with early stopping on D_R, and tested. Policies share seeds, theta_0 and splits. Every finished run is kept
in OUT/trials, so that an interrupted evaluation goes on where it stopped. OUT/results.csv holds a row per policy, seed
and budget (mean IoU and IoU per class, percent), OUT/summary.csv means and tests, OUT/val_miou.png and
OUT/test_miou.png the curves.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import environment_arguments, environment_parser, make_environment, plot_lines
from scipy import stats
from tqdm import tqdm

from agents import BALDPolicy, EntropyPolicy, ScorePolicy, SubActionDQN, UniformPolicy
from al_seg_env import RegionSelectionEnv
from al_seg_env.learner.fitting import FitSettings, evaluate, fit_to_convergence
from al_seg_env.storage import write_csv, write_json

SCORES = {"entropy": ["entropy"], "bald": ["bald"], "margin": ["margin"]}


def make_policy(name: str, path: str, seed: int, env: RegionSelectionEnv) -> Any:
    """Return an object with SB3's ``predict``."""
    if path:
        return SubActionDQN.load(path, env=env)
    known = {
        "uniform": lambda: UniformPolicy(seed),
        "entropy": EntropyPolicy,
        "bald": BALDPolicy,
        "margin": lambda: ScorePolicy("score_margin"),
    }
    if name not in known:
        raise SystemExit(f"policy {name!r} is unknown; use {', '.join(known)}, or NAME=path/to/agent.safetensors")
    return known[name]()


def run(
    env: RegionSelectionEnv, policy: Any, seed: int, budgets: Sequence[int], settings: FitSettings
) -> list[dict[str, Any]]:
    """Acquire regions through all budgets; at each, fit a copy of the network and test it."""
    observation, info = env.reset(seed=seed)
    rows: list[dict[str, Any]] = []
    asked = np.zeros(len(env.data.classes), dtype=np.int64)
    terminated = False
    with tqdm(total=max(budgets), desc="regions", leave=False) as bar:
        for budget in sorted(budgets):
            started = time.perf_counter()
            while info["labelled"] < budget and not terminated:
                action, _ = policy.predict(observation, deterministic=True)
                observation, _, terminated, _, info = env.step(action)
                asked += info["label_counts"]
                bar.update(len(info["chosen"]))
            acquired = time.perf_counter() - started
            before = env.learner.state_dict()
            fit = fit_to_convergence(
                env.learner,
                env.frames,
                env.grid,
                env.labels.labelled,
                env.labels.mask,
                env.splits.reward,
                settings,
                np.random.default_rng([seed, budget]),
                progress=f"fit {budget}",
            )
            test = evaluate(env.learner, env.frames, env.splits.test)
            env.learner.load_state_dict(before)
            shares = asked / asked.sum()
            rows.append(
                {
                    "budget": info["labelled"],
                    "val_miou": round(fit.best_miou, 4),
                    "test_miou": round(test.miou, 4),
                    "acquired_miou": round(info["miou"], 4),
                    "class_entropy": round(float(stats.entropy(shares)), 4),
                    "epochs": len(fit.history) - 1,
                    "best_epoch": fit.best_epoch,
                    "acquire_s": round(acquired, 1),
                    "fit_s": round(time.perf_counter() - started - acquired, 1),
                    **_per_class("iou", env.data.classes, test.class_iou),
                    **_per_class("asked", env.data.classes, 100 * shares),
                }
            )
    return rows


def _per_class(prefix: str, classes: Sequence[str], values: Any) -> dict[str, Any]:
    return {f"{prefix}_{c}": "" if v is None else round(float(v), 3) for c, v in zip(classes, values, strict=True)}


def summarise(rows: Sequence[dict[str, Any]], against: str = "uniform") -> list[dict[str, Any]]:
    """Return mean, deviation and n per policy and budget, and a paired t-test against one policy."""
    summary = []
    for budget in sorted({row["budget"] for row in rows}):
        by_policy: dict[str, dict[int, dict[str, Any]]] = {}
        for row in rows:
            if row["budget"] == budget:
                by_policy.setdefault(row["policy"], {})[row["seed"]] = row
        for policy, trials in by_policy.items():
            entry: dict[str, Any] = {"budget": budget, "policy": policy, "n": len(trials)}
            for figure in ("val_miou", "test_miou"):
                values = [trial[figure] for trial in trials.values()]
                entry[f"{figure}_mean"] = round(float(np.mean(values)), 3)
                entry[f"{figure}_std"] = round(float(np.std(values, ddof=1)), 3) if len(values) > 1 else ""
                reference = by_policy.get(against, {})
                seeds = sorted(set(trials) & set(reference))
                ours = [trials[seed][figure] for seed in seeds]
                theirs = [reference[seed][figure] for seed in seeds]
                paired = policy != against and len(seeds) > 1
                entry[f"{figure}_gain"] = round(float(np.mean(ours) - np.mean(theirs)), 3) if paired else ""
                entry[f"{figure}_p"] = round(float(stats.ttest_rel(ours, theirs).pvalue), 4) if paired else ""
            summary.append(entry)
    return summary


def write_results(out: Path, trials: Path, reference: dict[str, float]) -> list[dict[str, Any]]:
    """Gather all finished trials of a folder into tables and curves; return the summary."""
    rows = [row for path in sorted(trials.glob("*.json")) for row in json.loads(path.read_text())["rows"]]
    summary = summarise(rows)
    write_csv(out / "results.csv", rows)
    write_csv(out / "summary.csv", summary)
    for figure, title in (("val_miou", "validation (D_R)"), ("test_miou", "test")):
        lines = {}
        for policy in dict.fromkeys(entry["policy"] for entry in summary):
            own = [entry for entry in summary if entry["policy"] == policy]
            lines[policy] = (
                [0, *(entry["budget"] for entry in own)],
                [reference[figure], *(entry[f"{figure}_mean"] for entry in own)],
                [0.0, *(entry[f"{figure}_std"] or 0.0 for entry in own)],
            )
        n = max(entry["n"] for entry in summary)
        plot_lines(
            out / f"{figure}.png",
            lines,
            "labelled regions",
            f"mean IoU, {title} (%)",
            f"Mean and standard deviation over {n} seed{'s' if n > 1 else ''}",
        )
    return summary


def main(argv: Sequence[str] | None = None) -> None:
    parser = environment_parser(__doc__ or "", out="evaluate")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--policies",
        nargs="+",
        default=["uniform", "entropy", "bald"],
        help="names, or NAME=path/to/agent.safetensors",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run of each policy per seed")
    parser.add_argument(
        "--budgets", type=int, nargs="+", default=[96, 192], help="regions; all but the last multiples of K"
    )
    parser.add_argument("--epochs", type=int, default=40, help="at most so many when training to convergence")
    parser.add_argument("--patience", type=int, default=8, help="epochs without a gain before training ends")
    parser.add_argument("--updates", type=int, default=8, help="updates per epoch, at least")
    parser.add_argument("--batch-size", type=int, default=32, help="crops per update")
    args = parser.parse_args(argv)
    protocol = {
        "env": args.env,
        "arguments": environment_arguments(args),
        "theta_0": digest(environment_arguments(args).get("weights")),
        "budgets": sorted(args.budgets),
        "fit": [args.epochs, args.patience, args.updates, args.batch_size],
    }
    check_protocol(args.out / "protocol.json", protocol)
    reference: dict[str, float] | None = None
    trials = [(seed, *policy.partition("=")[::2]) for seed in args.seeds for policy in args.policies]
    for seed, name, path in tqdm(trials, desc="trials"):
        stored = args.out / "trials" / f"{name}-{seed}.json"
        agent = digest(path)
        if stored.exists() and json.loads(stored.read_text())["agent"] != agent:
            raise SystemExit(f"{stored} is of another agent than {path or name!r}; choose another name or --out")
        if stored.exists() and reference is not None:
            continue
        env: RegionSelectionEnv = make_environment(  # type: ignore[assignment]
            args, split="eval", budget=max(args.budgets), scores=SCORES.get(name, [])
        ).unwrapped
        pin_numerics(env, args.out / "numerics.json")
        if reference is None:
            reference = theta_0(env, args.out / "theta_0.json")
        if stored.exists():
            continue
        settings = FitSettings(env.config.crop_size, args.batch_size, args.patience, args.epochs, args.updates)
        rows = run(env, make_policy(name, path, seed, env), seed, args.budgets, settings)
        write_json(stored, {"agent": agent, "rows": [{"policy": name, "seed": seed, **row} for row in rows]})
    assert reference is not None
    for entry in write_results(args.out, args.out / "trials", reference):
        print("  ".join(f"{key} {value}" for key, value in entry.items() if value != ""))
    print(f"theta_0: {reference}; results are in {args.out}")


def digest(path: str | None) -> str | None:
    """Return what tells a file's content from another's; a file may be written anew under its old name."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None


def check_protocol(path: Path, protocol: dict[str, Any]) -> None:
    """Refuse to mix results of different settings in one folder."""
    if path.exists():
        stored = json.loads(path.read_text())
        if different := [key for key in protocol if stored.get(key) != protocol[key]]:
            changes = "; ".join(f"{key}: {stored.get(key)} there, {protocol[key]} asked for" for key in different)
            raise SystemExit(f"{path.parent} holds results of other settings ({changes}); choose another --out")
    write_json(path, protocol)


def pin_numerics(env: RegionSelectionEnv, stored: Path) -> None:
    """Use the precision and layout that the first process measured, so that no clock decides between methods."""
    if not stored.exists():
        write_json(stored, env.learner.numerics)  # type: ignore[attr-defined]
    env.learner.numerics = json.loads(stored.read_text())  # type: ignore[attr-defined]


def theta_0(env: RegionSelectionEnv, stored: Path) -> dict[str, float]:
    """Return the figures before anything is labelled."""
    if not stored.exists():
        env.learner.reset()
        figures = {
            figure: round(evaluate(env.learner, env.frames, images).miou, 4)
            for figure, images in (("val_miou", env.splits.reward), ("test_miou", env.splits.test))
        }
        write_json(stored, figures)
    return json.loads(stored.read_text())


if __name__ == "__main__":
    main()
