"""Watch a query agent learn to choose regions, in a few minutes on two CPU cores and without any download.

    python examples/quickstart.py

The pictures are in runs/quickstart: the agent's learning curve (agent/episodes.png), whether it is above uniform and
entropy selection (report/verdict_test.png), mean IoU by budget (report/figure_4_test.png), and what it requested
(trials/dqn-0/requests.png). Run again, the script resumes where it was interrupted.
"""

from pathlib import Path
from typing import Any

import gymnasium as gym

import al_seg_env  # noqa: F401  (registers the environments)
from al_seg_experiment import evaluate, train_agent
from al_seg_experiment.report import report
from al_seg_experiment.report.method_comparison import verdict_table
from al_seg_experiment.report.results import read_results

OUT = Path("runs/quickstart")
EPISODES, SEEDS, BUDGETS = 14, range(8), (24,)
SETTING: dict[str, Any] = {
    "splits": {"seed": 0, "state": 3},
    "trainable": "decoder",  # images are encoded once, and steps train what follows
    "regions_per_step": 8,
    "pool_size": 24,
    "budget": 48,
    "fit_iterations": 6,
    "learning_rate": 0.01,
    "replay": 0.5,
    "label_stride": 2,
    "labelled_before": "state",
    "sub_rewards": True,
    "region_features": ["mean_probability", "max_probability", "location", "embedding", "surroundings", "labelled"],
}

print("1/3  The agent plays on drawn streets whose labels are known (D_T), from a theta_0 that has seen renders only")
env = gym.make("al_seg_env/SyntheticStreets-v0", **SETTING)
agent = train_agent(
    env,
    OUT / "agent",
    episodes=EPISODES,
    policy="CandidatePolicy",
    credit="class_rewards",
    exploration="episode",
    epsilon=0.2,
    gamma=0.0,
    learning_rate=2e-3,
    gradient_steps=8,
    refit={"gradient_steps": 1000},
)

print("2/3  The agent, entropy and uniform selection spend a budget on streets that none has seen (D_V)")
fit = {"batch_size": 8, "updates": 100, "replay": 0.0, "learning_rate": 0.05, "crop_size": None}
results = evaluate(env, ["uniform", "entropy", f"dqn={agent}"], OUT, seeds=SEEDS, budgets=BUDGETS, fit=fit)

print("3/3  The verdict, in points of mean IoU on the test streets; more in", report(results))
for row in verdict_table(read_results(results), "test", "dqn").records():
    print("agent minus {heuristic}: {difference:+.2f} [{ci_low:+.2f}, {ci_high:+.2f}], n = {n}".format(**row))
