"""Training the query agent on D_T (section 3.2), resumable as if it had not been interrupted."""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor

from agents import Checkpoint, EpisodeRecorder, InfoLogger, SubActionDQN
from al_seg_env.registration import changing_wrappers, make_again, make_wrapped
from al_seg_env.storage import folder_lock, write_bytes, write_csv
from al_seg_env.storage.locking import LOCK
from al_seg_env.storage.validation import check, check_choices, check_int
from al_seg_experiment.experiment import LEARNT, METHODS, agent_arguments, check_learning
from al_seg_experiment.folders import acquiring, refuse_others
from al_seg_experiment.policies import make_policy
from al_seg_experiment.records import PIECE, read_references
from al_seg_experiment.report.figures import episode_returns
from al_seg_experiment.report.tables import Table
from al_seg_experiment.report.training_curves import ALL

AGENT = "agent.safetensors"
EPISODES, PICTURE, REFERENCES = "episodes.csv", "episodes.png", "references.csv"
REFERENCE_EPISODES = 5
CHECKPOINTS = "checkpoints"


def train_agent(
    env: str | gym.Env | EnvSpec,
    folder: str | Path,
    *,
    episodes: int,
    seed: int = 0,
    resume: bool = True,
    envs: int = 1,
    checkpoint_every: int | None = None,
    refit: Mapping[str, Any] | None = None,
    callbacks: Sequence[BaseCallback] = (),
    plot: bool = True,
    policy: str = "QueryPolicy",
    references: Sequence[str] = (),
    **settings: Any,
) -> Path:
    """Train the paper's query agent, :class:`~agents.SubActionDQN`, and store it.

    After every episode it writes the agent (``agent.safetensors``), a row of ``episodes.csv``, a checkpoint and, with
    matplotlib, the learning curve (``episodes.png``). The folder may be moved, and the training extended by more
    episodes.

    Args:
        env: The environment to train in: an id, an environment or its ``spec``. Regions of D_T are acquired.
        folder: Folder for the results, which may hold earlier ones.
        episodes: Total number of episodes, a multiple of ``envs``.
        seed: Seed of agent and environment.
        resume: Whether to resume from the newest checkpoint in the folder; if false, a folder with one is refused.
        envs: Number of parallel environments; if more than one, each runs in its own process.
        checkpoint_every: Environment steps between checkpoints. If omitted, one episode, or more where writing them
            would take more than a twentieth of the time.
        refit: Arguments of :meth:`~agents.dqn.dqn.SubActionDQN.refit`, which refits the agent's network at the end.
        callbacks: Callbacks of Stable-Baselines3, besides those that record and write checkpoints.
        plot: Whether to draw the learning curve.
        policy: ``"QueryPolicy"``, the paper's, or ``"CandidatePolicy"``.
        references: Names of heuristics, such as ``"entropy"``, that play five episodes each before training, on the
            same images. Their returns go to ``references.csv``, and are lines in the learning curve.
        settings: Arguments of :class:`~agents.SubActionDQN`, such as ``gamma``; ``epsilon_steps`` for an exploration
            rate that falls from 1 to 0.05 over that many environment steps; ``learning_rate_decay`` for a factor on the
            learning rate per step.

    Returns:
        The path of the agent.

    Raises:
        ValueError: If a setting is invalid, or the folder holds a training that can't be resumed with these settings.
    """
    folder = Path(folder)
    check_int("episodes", episodes, 0)
    check_int("envs", envs, 1)
    check("episodes", episodes, episodes % envs == 0, f"a multiple of envs ({envs}), which play side by side")
    if checkpoint_every is not None:
        check_int("checkpoint_every", checkpoint_every, 1)
    references = check_choices("references", list(references), [name for name in METHODS if name != LEARNT])
    check_learning(settings, refit)
    if not resume:
        _refuse_training(folder)
    refuse_others(folder, (AGENT, EPISODES, PICTURE, REFERENCES), (CHECKPOINTS, PIECE, LOCK))
    spec = acquiring("train", env)
    players = make_players(spec, envs)
    per_episode = steps_per_episode(players)
    steps = episodes * per_episode
    agent = SubActionDQN(policy, players, seed=seed, **agent_arguments(settings, steps))
    with folder_lock(folder):  # and not before: a mistake leaves nothing behind
        returns = play_references(spec, references, folder, seed=seed)

        def draw() -> None:
            if plot and recorder.rows and importlib.util.find_spec("matplotlib"):
                plot_returns(recorder.rows, folder / PICTURE, references=returns)

        def after_episode() -> None:
            agent.save(folder / AGENT)
            draw()

        recorder = EpisodeRecorder(folder / EPISODES, after_episode)
        learn(
            agent,
            steps=steps,
            folder=folder,
            checkpoint_every=checkpoint_every or per_episode,
            checkpoint_share=1.0 if checkpoint_every else 0.05,
            callbacks=[recorder, InfoLogger(), *callbacks],
        )
        if episodes and not recorder.rows:  # nothing was left to train, but files may be missing or damaged
            recorder.init_callback(agent)
            recorder.on_training_start({}, {})
            draw()
        if refit:
            agent.refit(**refit)
        agent.save(folder / AGENT)
        players.close()
    return folder / AGENT


def play_references(spec: EnvSpec, references: Sequence[str], folder: Path, *, seed: int) -> dict[str, list[float]]:
    """Let heuristics play some episodes; return the returns of each, and write all of them to ``references.csv``.

    Raises:
        ValueError: If an earlier record is damaged.
    """
    path = folder / REFERENCES
    rows = read_references(path) if path.exists() else []
    for method in references:
        if played := [row["episode"] for row in rows if row["method"] == method]:
            if played != list(range(1, REFERENCE_EPISODES + 1)):
                raise ValueError(
                    f"{path} has the episodes {played} of {method}; expected {REFERENCE_EPISODES}: remove it, and the "
                    "heuristics play again"
                )
            continue
        env = make_again(spec, **METHODS[method].get("arguments", {}))
        policy = make_policy(METHODS[method]["policy"], env, seed)
        for episode in range(REFERENCE_EPISODES):
            observation, _ = env.reset(seed=seed if episode == 0 else None)
            total, terminated = 0.0, False
            while not terminated:
                action, _ = policy.predict(observation, deterministic=True)
                observation, reward, terminated, _, _ = env.step(action)
                total += float(reward)
            rows.append({"method": method, "episode": episode + 1, "return": round(total, 4)})
        write_csv(path, rows)
    return {method: [float(r["return"]) for r in rows if r["method"] == method] for method in references}


def make_players(spec: EnvSpec, envs: int) -> VecEnv:
    """Return a vector environment; if there are several environments, each runs in its own process."""
    if envs == 1:
        return DummyVecEnv([lambda: Monitor(make_wrapped(spec))])
    if lost := changing_wrappers(make_wrapped(spec)):
        raise ValueError(
            f"envs is {envs}, and {spec.id} is wrapped in {', '.join(lost)}; expected envs=1, since wrappers are not "
            "kept in other processes"
        )
    multiprocessing.set_forkserver_preload(["al_seg_env", "stable_baselines3"])  # once, and not by each
    # Without gymnasium's wrappers, whose state in other processes can't be restored.
    return VecMonitor(SubprocVecEnv([partial(make_again, spec)] * envs))


def steps_per_episode(players: VecEnv) -> int:
    """Return the number of environment steps that label the whole budget."""
    config = players.get_attr("config", [0])[0]
    return math.ceil(config.budget / config.regions_per_step)


def learn(
    agent: BaseAlgorithm,
    *,
    steps: int,
    folder: Path,
    checkpoint_every: int,
    checkpoint_share: float = 1.0,
    resume: bool = True,
    callbacks: Sequence[BaseCallback] = (),
) -> None:
    """Train an algorithm of Stable-Baselines3, with checkpoints in a folder.

    Args:
        agent: The algorithm.
        steps: Total number of environment steps.
        folder: Folder for checkpoints, which may hold earlier ones.
        checkpoint_every: Environment steps between checkpoints, at least.
        checkpoint_share: Largest share of the time to spend on writing them.
        resume: Whether to resume from the newest checkpoint; if false, a folder with one is refused.
        callbacks: Callbacks of Stable-Baselines3, besides the one that writes checkpoints.

    Raises:
        ValueError: If the folder holds a training that can't be resumed.
    """
    if not resume:
        _refuse_training(folder)
    checkpoint = Checkpoint(folder / CHECKPOINTS, every=checkpoint_every, share=checkpoint_share)
    checkpoint.resume(agent)
    if agent.num_timesteps < steps:
        agent.learn(
            steps - agent.num_timesteps,
            callback=[*callbacks, checkpoint],
            reset_num_timesteps=False,
            progress_bar=True,
        )


def _refuse_training(folder: Path) -> None:
    if any((folder / CHECKPOINTS).glob("checkpoint-*")):
        raise ValueError(
            f"{folder} holds a training: resume it (resume=True, --resume), choose another folder, or remove it"
        )


def plot_returns(
    rows: Sequence[Mapping[str, Any]], path: Path, *, references: Mapping[str, Sequence[float]] = MappingProxyType({})
) -> None:
    """Draw the return of each episode by the policy that was followed in it, and the mean of the agent's last ten.

    Args:
        rows: The rows of ``episodes.csv``; at least one.
        path: The picture.
        references: Returns of heuristics, whose means are lines.
    """
    episodes = tuple(
        (0, int(row["episode"]), float(row["return"]), row.get("followed", ALL).removeprefix("score_")) for row in rows
    )
    table = Table(("seed", "episode", "return", "followed"), episodes)
    picture = episode_returns({"": table}, {"": references}, ylabel="return: gain in mean IoU on D_R [points]")
    write_bytes(path, picture)
