"""Watch a query agent learn to choose regions, in a few minutes on two CPU cores and without any download.

    python examples/quickstart.py

The pictures are in runs/quickstart: the agent's learning curve (agent/episodes.png), its comparison with uniform and
entropy selection (report/figure_4_val.png, figure_4_test.png), and what it requested (trials/dqn-0/requests.png). Run
again, the script resumes where it was interrupted. A dozen episodes show the loop at work; they are too few to win.
"""

from pathlib import Path

import gymnasium as gym

import al_seg_env  # noqa: F401  (registers the environments)
from al_seg_experiment import Stage, evaluate, pretrain, train_agent
from al_seg_experiment.report import report

OUT = Path("runs/quickstart")
STREETS = "al_seg_env/SyntheticStreets-v0"
EPOCHS, EPISODES, SEEDS = 12, 12, (0, 1, 2)
BUDGETS = (96, 192)

print("1/3  theta_0: a small network learns street scenes of one rendering style (in the paper: GTA5)")
env = gym.make(STREETS, learning_rate=0.02)
renderings = Stage(arguments={"style": "render"}, images="all", epochs=EPOCHS, patience=EPOCHS, updates=20)
theta_0 = pretrain(env, [renderings], OUT / "theta_0")

print("2/3  The agent plays active learning on scenes of another style, whose labels are known (D_T)")
env = gym.make(STREETS, weights=str(theta_0))
agent = train_agent(
    env,
    OUT / "agent",
    episodes=EPISODES,
    epsilon_steps=6 * EPISODES,  # half of its steps; an episode has twelve
    exploration="step",
    buffer_size=4800,
    batch_size=64,
    gradient_steps=4,
    gamma=0.5,
)

print("3/3  The agent, entropy and uniform selection spend a budget on scenes that none has seen (D_V)")
results = evaluate(
    env,
    ["uniform", "entropy", f"dqn={agent}"],
    OUT,
    seeds=SEEDS,
    budgets=BUDGETS,
    fit={"batch_size": 16, "max_epochs": 4, "patience": 3, "min_updates": 4},
)
print("Done. See", report(results), "and the pictures beside it")
