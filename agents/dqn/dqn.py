"""Batch-mode double DQN (paper, section 3.2)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import configure_logger, get_parameters_by_name, polyak_update
from torch import Tensor
from torch.nn import functional as F

from agents.dqn.base import RegionAgent
from agents.dqn.exploration import UNIFORM, Epsilon, ExponentialEpsilon, draw_guides, epsilon_at, follow
from agents.dqn.network import QueryNetwork
from agents.dqn.policy import QueryPolicy
from agents.dqn.replay import DecomposedBatch, DecomposedReplayBuffer
from agents.dqn.settings import check_settings
from agents.dqn.spaces import read_layout
from agents.dqn.targets import td_targets

SelfSubActionDQN = TypeVar("SelfSubActionDQN", bound="SubActionDQN")

UNDRAWN = -1  # whom an episode follows that has not begun

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"squared": F.mse_loss, "huber": F.smooth_l1_loss}


class SubActionDQN(RegionAgent):
    """DQN whose action is K independent sub-actions, one region out of each pool (paper, section 3.2).

    A step (s_t, a_t, r_{t+1}, s_{t+1}) is learnt from as K transitions, one for each sub-action, all with the
    step's reward. ``learn``, ``predict``, ``save``, ``load``, callbacks and loggers are those of
    Stable-Baselines3::

        agent = SubActionDQN("QueryPolicy", env, seed=0)
        agent.learn(1000)
        actions, _ = agent.predict(observation, deterministic=True)  # (K,), or (n_envs, K) for a batch

    The network does not depend on K and N, so a trained agent plays any environment with the same S, F, D and
    layout. ``save`` writes all but the replay, for which there is ``save_replay_buffer``.

    Args:
        policy: ``"QueryPolicy"``, or a subclass of :class:`QueryPolicy`.
        env: an environment with the spaces of :class:`agents.dqn.spaces.Sizes`, or a vector environment of
            Stable-Baselines3. Observations are not to be normalised by ``VecNormalize``: the network does it.
        learning_rate: a number, or a function of the progress remaining. Paper: 1e-3 on CamVid, 1e-4 on
            Cityscapes.
        buffer_size: capacity of the replay in decomposed transitions. Paper: 600 on CamVid, 3200 on
            Cityscapes.
        learning_starts: environment steps with uniform actions before learning starts.
        batch_size: decomposed transitions in a gradient step; at least 2, for batch normalisation.
        tau: how much of the network goes into the target at an update; 1 copies it.
        gamma: discount factor. The paper gives none; the released code's 0.999 looks about 1000 steps ahead,
            while an episode has tens of steps, so the default is lower.
        train_freq: environment steps between updates, or ``(n, "episode")``.
        gradient_steps: gradient steps in an update; -1 for as many as there were environment steps.
        target_update_interval: environment steps between updates of the target, 5 in the released code (the
            paper gives none); batch-norm statistics are always copied.
        td_target: ``"paper"`` chooses with the target network and values with the query network, Eq. (3);
            ``"van_hasselt"`` does the reverse, like the released code.
        loss: ``"squared"``, Eq. (2), or ``"huber"``, like the released code.
        exploration: ``"sub_action"`` explores each of the K sub-actions by itself; ``"step"`` all or none of
            them, like the released code; ``"episode"`` all or none of an episode's. K independent choices hardly
            change the reward that they share; a whole episode played in one way does (docs/paper/results.md).
        epsilon: probability to explore: a number, or a function of the environment steps done. The paper
            gives none; the default is the released code's.
        guides: what exploring follows, drawn anew each time: ``"uniform"``, or the name of a score in the
            observation, such as ``"score_entropy"``, the highest of which is taken. The trained agent reads no
            scores: those that know the truth will do, where the labels of D_T are at hand.
        n_steps: rewards that a target sums up before it bootstraps, uncorrected (the paper's 1). As many as an
            episode has steps: targets are returns, and nothing is bootstrapped.
        max_grad_norm: gradients are clipped to this norm, by default that of Stable-Baselines3's DQN; None: not
            at all, as in the paper.
        policy_kwargs: arguments of the policy, such as ``optimizer_kwargs``.
        stats_window_size: episodes that logged means are taken over.
        tensorboard_log: folder of TensorBoard logs.
        verbose: 0 nothing, 1 information, 2 debugging.
        seed: of the agent's own random source, of torch and of the environment.
        device: of the network.
        _init_setup_model: whether to build the network at once.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"QueryPolicy": QueryPolicy}
    policy: QueryPolicy

    def __init__(
        self,
        policy: str | type[QueryPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 600,
        learning_starts: int = 1,
        batch_size: int = 16,
        tau: float = 1.0,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        target_update_interval: int = 5,
        td_target: str = "paper",
        loss: str = "squared",
        exploration: str = "sub_action",
        epsilon: Epsilon = ExponentialEpsilon(),  # noqa: B008 - it is frozen
        guides: Sequence[str] = (UNIFORM,),
        n_steps: int = 1,
        max_grad_norm: float | None = 10.0,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,  # type: ignore[arg-type] # None while loading
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            replay_buffer_class=DecomposedReplayBuffer,
            replay_buffer_kwargs={"n_steps": n_steps, "gamma": gamma},
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            sde_support=False,
        )
        self.rng = np.random.default_rng(seed)
        self.layout = None if self.env is None else read_layout(self.env)
        self.target_update_interval = target_update_interval
        self.td_target = td_target
        self.loss = loss
        self.exploration = exploration
        self.epsilon = epsilon
        self.guides = guides if isinstance(guides, str) else tuple(guides)
        self.n_steps = n_steps
        self.max_grad_norm = max_grad_norm
        self._n_calls = 0
        self._followed: np.ndarray = np.full(0 if self.env is None else self.n_envs, UNDRAWN)
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        if isinstance(self.guides, list):  # from json, where there are no tuples
            self.guides = tuple(self.guides)
        check_settings(self)
        with warnings.catch_warnings():  # the base would have it in replay_buffer_kwargs, where it is
            warnings.filterwarnings("ignore", "`n_steps")
            super()._setup_model()

    @property
    def q_net(self) -> QueryNetwork:
        """The query network phi."""
        return self.policy.q_net

    @property
    def q_net_target(self) -> QueryNetwork:
        """Its target copy phi'."""
        return self.policy.q_net_target

    @property
    def exploration_rate(self) -> float:
        """Epsilon of the step that comes next."""
        return epsilon_at(self.epsilon, self.num_timesteps)

    @property
    def followed(self) -> list[str] | None:
        """Who is followed in each environment's episode, a guide or ``"greedy"``; None where that is not by episode."""
        if self.exploration != "episode":
            return None
        return [(*self.guides, "greedy")[number] for number in self._followed]

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions (n_envs, K) for the environment and, the same, for the replay."""
        assert isinstance(self._last_obs, dict)
        epsilon = 1.0 if self.num_timesteps < learning_starts else self.exploration_rate
        if self.exploration == "episode":
            drawn = draw_guides((n_envs,), len(self.guides), epsilon, self.rng)
            self._followed = np.where(self._followed == UNDRAWN, drawn, self._followed)
            followed = self._followed[:, None]  # (n_envs, 1)
        else:
            followed = self._draw_guides((n_envs, self.sizes.pools), epsilon)
        greedy, _ = self.policy.predict(self._last_obs, deterministic=True)
        actions = follow(followed, greedy, self.guides, self._last_obs, self.rng)
        return actions, actions

    def _draw_guides(self, shape: tuple[int, ...], epsilon: float) -> np.ndarray:
        """Who is followed in one step, of shape (..., K) or (..., 1)."""
        drawn = shape if self.exploration == "sub_action" else (*shape[:-1], 1)
        return draw_guides(drawn, len(self.guides), epsilon, self.rng)

    def _store_transition(
        self, replay_buffer: Any, buffer_action: Any, new_obs: Any, reward: Any, dones: Any, infos: Any
    ) -> None:
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        self._followed = np.where(dones, UNDRAWN, self._followed)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if reset_num_timesteps or self._last_obs is None:  # the environments are reset
            self._followed = np.full(self.n_envs, UNDRAWN)
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kwargs)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Choose one region of each pool: (K,) for one observation, (B, K) for a batch, with any K and N.

        Greedy, Eq. (1); unless ``deterministic``, epsilon-greedy (with one draw for all K where exploration is by
        episode).
        """
        actions, state = self.policy.predict(observation, state, episode_start, deterministic=True)
        if not deterministic:
            assert isinstance(observation, dict)
            drawn = self._draw_guides(actions.shape, self.exploration_rate)
            actions = follow(drawn, actions, self.guides, observation, self.rng)
        return actions, state

    def _on_step(self) -> None:
        self._n_calls += 1  # a call is a step of each of the n_envs environments
        if self._n_calls % max(self.target_update_interval // self.n_envs, 1) == 0:
            self._update_target()
        self.logger.record("rollout/epsilon", self.exploration_rate)

    def _update_target(self) -> None:
        polyak_update(self.q_net.parameters(), self.q_net_target.parameters(), self.tau)
        statistics = get_parameters_by_name(self.q_net, ["running_"])
        polyak_update(statistics, get_parameters_by_name(self.q_net_target, ["running_"]), 1.0)

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """Take gradient steps on Eq. (2), each on a batch of decomposed transitions."""
        assert self.replay_buffer is not None
        self._update_learning_rate(self.policy.optimizer)
        losses, q_means = [], []
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            target = self._td_targets(batch)  # (B,)
            self.policy.set_training_mode(True)
            q = self.q_net(batch.state, batch.chosen, batch.similarity)  # (B,)
            loss = LOSSES[self.loss](q, target)  # Eq. (2)
            _check_finite("The loss", loss)
            self._descend(loss)
            losses.append(loss.item())
            q_means.append(q.mean().item())
        self.policy.set_training_mode(False)
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", float(np.mean(losses)))
        self.logger.record("train/q_mean", float(np.mean(q_means)))

    def _td_targets(self, batch: DecomposedBatch) -> Tensor:
        """Targets (B,) of a batch, from both networks in evaluation mode."""
        for name in ("state", "chosen", "similarity"):
            if (part := getattr(batch, name)) is not None:
                _check_finite(f"The replay's {name!r}", part)  # before it gets into the batch-norm statistics
        self.policy.set_training_mode(False)
        goes_on = ~batch.terminated  # (B,); the others are worth their reward, and of whole episodes most are such
        next_q, next_q_target = torch.zeros((2, *batch.next_candidates.shape[:2]), device=self.device)  # (B, N)
        if goes_on.any():
            similarity = None if batch.next_similarity is None else batch.next_similarity[goes_on]
            after = (batch.next_state[goes_on], batch.next_candidates[goes_on], similarity)
            with torch.no_grad():
                next_q[goes_on], next_q_target[goes_on] = self.q_net(*after), self.q_net_target(*after)
        target = td_targets(batch.reward, batch.terminated, next_q, next_q_target, batch.discount, self.td_target)
        _check_finite("The TD target", target)
        return target

    def _descend(self, loss: Tensor) -> None:
        self.policy.optimizer.zero_grad()
        loss.backward()
        max_norm = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        _check_finite("The gradient", torch.nn.utils.clip_grad_norm_(self.q_net.parameters(), max_norm))
        self.policy.optimizer.step()

    def refit(
        self: SelfSubActionDQN, gradient_steps: int, policy_kwargs: dict[str, Any] | None = None
    ) -> SelfSubActionDQN:
        """Fit a new query network to the replay alone, at no cost of environment steps.

        A network that learns while it plays keeps fitting its first few steps; one that begins when all of them are
        there can be held back more, by a larger weight decay.

        Args:
            gradient_steps: Updates, each on ``batch_size`` decomposed transitions.
            policy_kwargs: Arguments of the policy in place of the agent's own, such as ``optimizer_kwargs``.

        Raises:
            ValueError: If the replay is empty, or there are no gradient steps to take.
        """
        assert self.replay_buffer is not None
        if gradient_steps < 1:
            raise ValueError(f"gradient_steps is {gradient_steps!r}: expected at least 1.")
        if self.replay_buffer.size() == 0:
            raise ValueError("The replay is empty: learn() first, or load_replay_buffer().")
        self.policy_kwargs = {**self.policy_kwargs, **(policy_kwargs or {})}
        policy = self.policy_class(self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs)
        self.policy = policy.to(self.device)  # type: ignore[assignment]
        if not hasattr(self, "_logger"):
            self._logger = configure_logger(self.verbose)
        for step in range(1, gradient_steps + 1):
            self.train(1, self.batch_size)
            if step % self.target_update_interval == 0:
                self._update_target()
        return self

    def learn(
        self: SelfSubActionDQN,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "SubActionDQN",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfSubActionDQN:
        """Play and learn for ``total_timesteps`` environment steps; as in Stable-Baselines3."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)


def _check_finite(what: str, value: Tensor) -> None:
    if not torch.isfinite(value).all():
        raise FloatingPointError(
            f"{what} is not finite; the weights were left as they are. Either the environment hands out "
            "values that aren't finite, or training diverges: lower learning_rate, or set max_grad_norm."
        )
