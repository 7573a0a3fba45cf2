"""Watch a query agent learn to choose regions, in a few minutes on two CPU cores and without any download.

    python examples/quickstart.py

The pictures are in runs/quickstart: the agent's learning curve with the heuristics' returns (agent/episodes.png), the
comparison with uniform and entropy selection (report/verdict_test.png), mean IoU by budget (report/figure_4_test.png),
and the agent's requests (trials/dqn-0/requests.png). If interrupted, run the script again to resume.
"""

from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

import al_seg_env  # noqa: F401  (registers the environments)
from al_seg_experiment import ForecastTraining, Stage, evaluate, pretrain, train_agent, train_forecast
from al_seg_experiment.report import report
from al_seg_experiment.report.method_comparison import verdict_table
from al_seg_experiment.report.results import read_results

OUT, STREETS = Path("runs/quickstart"), "al_seg_env/SyntheticStreets-v0"
EPISODES, SEEDS, BUDGET = 20, range(10), 32
SETTING: dict[str, Any] = {
    "images": 560, "splits": {"seed": 0, "state": 4, "train": 160, "eval": 256},  # D_V of more regions than are offered
    "image_size": (192, 256), "region_size": (48, 64), "regions_per_step": 16, "pool_size": 60, "budget": BUDGET,
    "architecture": "Light", "network_options": {"width": 64, "stride": 8},  # on an encoder of renders
    "trainable": "decoder", "fit_iterations": 40, "learning_rate": 0.05, "replay": 0.5, "fit_regions": "all",
    "labelled_before": "state", "label_stride": 4, "observation_stride": 4, "reward_stride": 2, "sub_rewards": True,
    "similarity": [], "region_features": ["mean_probability", "forecast", "labelled"],
}  # fmt: skip
FIT = {"batch_size": 10, "updates": 250, "replay": 0.5, "learning_rate": 0.05, "crop_size": None}

torch.set_num_threads(1)  # for such a small head, more threads are slower
print("1/4  theta_0 learns drawn streets from the few images of D_S")
without_forecast = SETTING | {"region_features": ["mean_probability", "labelled"]}
env = gym.make(STREETS, **without_forecast)
stage = Stage(images="state", epochs=1, updates=300, batch_size=4, learning_rate=0.05, early_stopping=False)
theta_0 = str(pretrain(env, [stage], OUT / "theta_0"))

print("2/4  Networks that know the labels of D_T learn to forecast what regions of other images hold")
env = gym.make(STREETS, weights=theta_0, **without_forecast)
forecasting = ForecastTraining(networks=3, updates=600, batch_size=10, learning_rate=0.05)
forecast = str(train_forecast(env, OUT / "forecast", forecasting))

print("3/4  The agent plays on D_T, begins with the forecast, and learns what each class is worth")
env = gym.make(STREETS, weights=theta_0, forecast=forecast, **SETTING)
dqn: dict[str, Any] = {"policy": "CandidatePolicy", "credit": "class_rewards", "exploration": "episode", "epsilon": 0.2}
dqn |= {"gamma": 0.0, "buffer_size": 8000, "gradient_steps": 0}
agent = train_agent(env, OUT / "agent", episodes=EPISODES, references=["uniform", "entropy"], **dqn)

print("4/4  The agent, entropy and uniform selection spend a budget on streets that none has seen (D_V)")
results = evaluate(env, ["uniform", "entropy", f"dqn={agent}"], OUT, seeds=SEEDS, budgets=[BUDGET], fit=FIT)
print("Mean IoU on the test streets, in points; more in", report(results))
for row in verdict_table(read_results(results), "test", "dqn").records():
    print("agent minus {heuristic}: {difference:+.2f} [{ci_low:+.2f}, {ci_high:+.2f}], n = {n}".format(**row))
