"""Compare policies as in the paper: acquire on D_V up to a budget, train to convergence, test (section 4.1).

    python examples/evaluate.py --policies uniform entropy bald dqn=runs/train/agent.safetensors --seeds 0 1 2 \\
        --budgets 96 192 --env-arg weights=runs/pretrain/theta_0.safetensors

One acquisition passes through all budgets. At each budget, a copy of the network is trained to convergence on the
labels so far, with early stopping on D_R, and tested. OUT has results.csv, with a row per policy, seed and budget, and
report/REPORT.md with figures, tables and paired tests. If the script is run again, after a kill or with more policies
and seeds, it runs only what is missing. `al-seg-env evaluate` has more options.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from al_seg_env.command_line import EnvironmentOptions, run
from al_seg_experiment import evaluate
from al_seg_experiment.report import report


@dataclass(frozen=True)
class Options(EnvironmentOptions):
    """The comparison."""

    policies: tuple[str, ...] = ("uniform", "entropy", "bald")
    """Policies: names, NAME=path/to/agent.safetensors or NAME=module:function."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds: one trial of each policy per seed."""
    budgets: tuple[int, ...] = (96, 192)
    """Budgets in labelled regions; multiples of K, except for the largest budget."""
    epochs: int = 40
    """Most epochs of a training to convergence."""
    out: Path = Path("runs/evaluate")
    """Folder of the results."""


def main(options: Options) -> None:
    results = evaluate(
        options.spec,
        options.policies,
        options.out,
        seeds=options.seeds,
        budgets=options.budgets,
        fit={"max_epochs": options.epochs, "patience": 8, "min_updates": 8},
    )
    print("see", report(results))


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
