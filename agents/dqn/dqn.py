"""Batch-mode double DQN (paper, section 3.2)."""

from __future__ import annotations

import io
import pathlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    RolloutReturn,
    Schedule,
    TrainFreq,
    TrainFrequencyUnit,
)
from stable_baselines3.common.utils import (
    configure_logger,
    get_parameters_by_name,
    get_system_info,
    polyak_update,
)
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize
from torch import Tensor
from torch.nn import functional as F

from agents.dqn.exploration import (
    EXPLORATIONS,
    UNIFORM,
    Epsilon,
    ExponentialEpsilon,
    draw_guides,
    epsilon_at,
    follow,
    rate_at,
)
from agents.dqn.network import CandidateNetwork, QueryNetwork
from agents.dqn.policy import CandidatePolicy, QueryPolicy
from agents.dqn.replay import CREDITS, DecomposedBatch, DecomposedReplayBuffer
from agents.dqn.saving import (
    PROGRESS,
    load_agent,
    load_replay,
    pack_agent,
    save_agent,
    save_replay,
    unpack_settings,
    unpack_spaces,
    with_suffix,
)
from agents.dqn.spaces import Sizes, check_same_task, read_layout
from agents.dqn.targets import TD_TARGETS, td_targets
from agents.dqn.worth import SPREAD, Worth
from agents.observations import Observation
from agents.training_state import set_parameters
from al_seg_env.storage import well_formed
from al_seg_env.storage.validation import (
    LARGEST_BATCH,
    MOST_REPEATS,
    check,
    check_arguments,
    check_choice,
    check_device,
    check_int,
    check_names,
    check_number,
    check_seed,
)

LARGEST_SEED = 2**32 - 1  # numpy's global random source, which Stable-Baselines3 seeds, takes 32 bits

SelfSubActionDQN = TypeVar("SelfSubActionDQN", bound="SubActionDQN")

FORECAST = "forecast"  # the environment's feature
UNDRAWN = -1  # whom an episode follows that has not begun

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"squared": F.mse_loss, "huber": F.smooth_l1_loss}


class SubActionDQN(OffPolicyAlgorithm):
    """DQN whose action is K independent sub-actions, one region from each pool (paper, section 3.2).

    A step (s_t, a_t, r_{t+1}, s_{t+1}) is decomposed into K transitions, one for each sub-action, all with the
    step's reward. ``learn``, ``predict``, ``save``, ``load``, callbacks and loggers are those of
    Stable-Baselines3::

        agent = SubActionDQN("QueryPolicy", env, seed=0)
        agent.learn(1000)
        actions, _ = agent.predict(observation, deterministic=True)  # (K,), or (n_envs, K) for a batch

    The network does not depend on K and N, so a trained agent works in any environment with the same S, F, D and
    layout. ``save`` writes everything except the replay, for which there is ``save_replay_buffer``.

    Args:
        policy: ``"QueryPolicy"``, ``"CandidatePolicy"``, or a subclass of one of the two.
        env: Environment with the spaces of :class:`agents.dqn.spaces.Sizes`, or a vector environment of
            Stable-Baselines3. ``VecNormalize`` must not normalise the observations: the network does it.
        learning_rate: A number, or a function of the progress remaining. Paper: 1e-3 on CamVid, 1e-4 on
            Cityscapes.
        buffer_size: Capacity of the replay in decomposed transitions. Paper: 600 on CamVid, 3200 on
            Cityscapes.
        learning_starts: Environment steps before learning starts, in which all exploration follows ``guides``.
        batch_size: Decomposed transitions per gradient step; at least 2, for batch normalisation.
        tau: Soft update coefficient of the target network; 1 copies the network.
        gamma: Discount factor. The paper gives none; the released code's 0.999 looks about 1000 steps ahead,
            while an episode has tens of steps, so the default is lower.
        train_freq: Environment steps between updates, or ``(n, "episode")``.
        gradient_steps: Gradient steps per update; -1 for as many as there were environment steps, 0 to only collect
            transitions, for :meth:`refit`.
        target_update_interval: Environment steps between updates of the target network, 5 in the released code (the
            paper gives none); batch-norm statistics are always copied.
        td_target: ``"paper"`` selects with the target network and evaluates with the query network, Eq. (3);
            ``"van_hasselt"`` does the reverse, like the released code.
        loss: ``"squared"``, Eq. (2), or ``"huber"``, like the released code.
        credit: The reward of a sub-action. ``"shared"``, the paper's: the step's reward. ``"sub_rewards"``: its own,
            from the environment's ``info["sub_rewards"]``. ``"class_rewards"``, for ``CandidatePolicy`` and
            environments with the features ``"labelled"`` and ``"mean_probability"``: each class's share of the region,
            from ``info["class_rewards"]``, minus the mean probability that the segmentation network gave it before.
            The worth of each class is learnt from the step's reward (:class:`agents.dqn.worth.Worth`), and each
            training episode uses a draw from its posterior (posterior sampling).
        worth_spread: With ``"class_rewards"``, the prior standard deviation of the classes' worth, as a multiple of
            the worth that all classes share.
        exploration: ``"sub_action"`` explores each of the K sub-actions independently; ``"step"`` all or none of
            them, like the released code; ``"episode"`` all or none of an episode's. K independent random choices
            barely change the reward they share; a whole episode that follows one policy does
            (docs/paper/results_small.md).
        epsilon: Probability of exploring: a number, or a function of the number of environment steps so far. The
            paper gives none; the default is the released code's.
        guides: What exploration follows, drawn again each time: ``"uniform"``, or the name of a score in the
            observation, such as ``"score_entropy"``, whose maximum is selected. The trained agent reads no scores, so
            they may be computed from the ground truth of D_T.
        n_steps: Rewards that a target sums before it bootstraps, without off-policy correction (the paper's is 1).
            With at least as many as an episode has steps, targets are returns, and nothing is bootstrapped.
        max_grad_norm: Norm to clip gradients to, by default that of Stable-Baselines3's DQN; ``None`` does not clip, as
            in the paper.
        policy_kwargs: Arguments of the policy, such as ``optimizer_kwargs``.
        stats_window_size: Number of episodes that logged values are averaged over.
        tensorboard_log: Folder of TensorBoard logs.
        verbose: 0 for no output, 1 for information, 2 for debugging.
        seed: Seed of the agent's random source, of torch and of the environment, below 2**32.
        device: Device of the network.
        _init_setup_model: Whether to build the network on construction.

    Raises:
        ValueError: If an argument is out of range, or the environment's spaces are of another kind.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "QueryPolicy": QueryPolicy,
        "CandidatePolicy": CandidatePolicy,
    }
    policy: QueryPolicy
    replay_buffer: DecomposedReplayBuffer | None
    rng: np.random.Generator  # exploration draws from it, the replay from a child of it
    layout: dict[str, Any] | None

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
        credit: str = CREDITS[0],
        worth_spread: float = SPREAD,
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
        n_steps = check_int("n_steps", n_steps, 1)
        gamma = check_number("gamma", gamma, least=0, most=1)
        super().__init__(
            policy,
            env,  # type: ignore[arg-type] # None while loading
            _checked_rate(learning_rate),
            check_int("buffer_size", buffer_size, 1),
            check_int("learning_starts", learning_starts, 0),
            check_int("batch_size", batch_size, 2, LARGEST_BATCH),
            check_number("tau", tau, above=0, most=1),
            gamma,
            _checked_train_freq(train_freq),
            check_int("gradient_steps", gradient_steps, -1, MOST_REPEATS),
            replay_buffer_class=DecomposedReplayBuffer,
            replay_buffer_kwargs={"n_steps": n_steps, "gamma": gamma, "credit": credit},
            policy_kwargs=check_arguments("policy_kwargs", policy_kwargs, self._class_of_policy(policy), 3),
            stats_window_size=check_int("stats_window_size", stats_window_size, 1),
            tensorboard_log=tensorboard_log,
            verbose=check_int("verbose", verbose, 0, 2),
            device=check_device("device", device),
            support_multi_env=True,
            seed=check_seed("seed", seed, LARGEST_SEED),
            sde_support=False,
        )
        self.rng = np.random.default_rng(seed)
        self.layout = None if self.env is None else read_layout(self.env)
        self.target_update_interval = check_int("target_update_interval", target_update_interval, 1)
        self.td_target = check_choice("td_target", td_target, TD_TARGETS)
        self.loss = check_choice("loss", loss, tuple(LOSSES))
        self.credit = check_choice("credit", credit, CREDITS)
        self.worth_spread = check_number("worth_spread", worth_spread, above=0)
        if worth_spread != SPREAD and credit != "class_rewards":
            warnings.warn(f"worth_spread has no effect, since credit is {credit!r}; omit it")
        self.exploration = check_choice("exploration", exploration, EXPLORATIONS)
        self.epsilon = epsilon
        epsilon_at(epsilon, 0)
        self.guides = check_names("guides", guides, ("uniform", "score_entropy"))
        self.n_steps = n_steps
        self.max_grad_norm = (
            None
            if max_grad_norm is None
            else check_number("max_grad_norm", max_grad_norm, above=0, alternative="None not to clip")
        )
        self._n_calls = 0
        self._followed: npt.NDArray[np.int64] = np.full(0 if self.env is None else self.n_envs, UNDRAWN)
        self._worth: npt.NDArray[np.float64] = np.full((len(self._followed), 0), np.nan)  # drawn for each episode
        if _init_setup_model:
            self._setup_model()

    def _class_of_policy(self, policy: Any) -> type[BasePolicy]:
        found = self._get_policy_from_name(policy) if isinstance(policy, str) else policy
        good = isinstance(found, type) and issubclass(found, QueryPolicy)
        check("policy", policy, good, f"one of {sorted(self.policy_aliases)}, or a subclass of QueryPolicy")
        return found

    def _setup_model(self) -> None:
        self.sizes = Sizes.from_spaces(self.observation_space, self.action_space)
        if self.env is not None:  # without one, an agent was loaded, and may play where there are no scores
            assert isinstance(self.observation_space, spaces.Dict)
            known = (UNIFORM, *(key for key in self.observation_space if key.startswith("score_")))
            remedy = f"some of {known}: the environment's argument scores adds others"
            check("guides", self.guides, set(self.guides) <= set(known), remedy)
        self.replay_buffer_kwargs["state"] = getattr(self.policy_class, "reads_state", True)
        if self.credit == "class_rewards":
            self._value_classes_apart()
        _check_normalization(self._vec_normalize_env)
        _check_episodes(self.train_freq, self.n_envs)
        rng = self.rng  # a loaded agent's continues where it was, instead of starting again from the seed
        with warnings.catch_warnings():  # the base expects n_steps in replay_buffer_kwargs, where they are
            warnings.filterwarnings("ignore", "`n_steps")
            super()._setup_model()
        self.rng = rng
        assert self.replay_buffer is not None
        self.replay_buffer.rng = self.rng.spawn(1)[0]

    def _value_classes_apart(self) -> None:
        """Tell the policy and the replay which features hold each class's labelled, predicted and forecast amount."""
        good = issubclass(self.policy_class, CandidatePolicy)
        check("policy", self.policy_class.__name__, good, "CandidatePolicy, where credit is 'class_rewards'")
        if self.env is not None:
            self.policy_kwargs = {**self._found_columns(), **self.policy_kwargs}
        self.replay_buffer_kwargs.update({name: self.policy_kwargs[name] for name in ("labelled", "predicted")})

    def _found_columns(self) -> dict[str, list[int]]:
        """Return the columns of ``CandidatePolicy`` that are not among its arguments yet, from the environment."""
        assert self.env is not None
        features = {"labelled": "labelled", "predicted": "mean_probability"}
        if any(name.startswith(f"{FORECAST}_") for name in (self.layout or {}).get("features", ())):
            features["forecast"] = FORECAST
        columns = {}
        for argument, feature in features.items():
            if argument not in self.policy_kwargs:
                found = self.env.env_method("feature_columns", feature, indices=0)[0]
                columns[argument] = [found.start, found.stop]
        if "forecast" in columns:  # of which the classes' mean probabilities come first
            first, last = {**columns, **self.policy_kwargs}["labelled"]
            columns["forecast"][1] = columns["forecast"][0] + last - first
        return columns

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed the agent's random source, torch and the environment; ``None`` leaves them unchanged."""
        seed = check_seed("seed", seed, LARGEST_SEED)
        super().set_random_seed(seed)
        if seed is not None:
            self.rng = np.random.default_rng(seed)
            if self.replay_buffer is not None:
                self.replay_buffer.rng = self.rng.spawn(1)[0]

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Switch to another environment with the same S, F, D and layout.

        Unlike in Stable-Baselines3, K, N and the number of environments may differ. The replay is then emptied, with a
        warning if it held transitions.

        Raises:
            ValueError: If the environment does not match the agent; the message names the difference.
        """
        env = self._wrap_env(env, self.verbose)
        sizes = Sizes.from_spaces(env.observation_space, env.action_space)
        check_same_task(self.sizes, self.layout, sizes, read_layout(env))
        vec_normalize = unwrap_vec_normalize(env)
        _check_normalization(vec_normalize)
        _check_episodes(self.train_freq, env.num_envs)
        resized = (sizes, env.num_envs) != (self.sizes, self.n_envs)
        self.env, self.n_envs, self.sizes = env, env.num_envs, sizes
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self._vec_normalize_env = vec_normalize
        if resized:
            self._renew_replay()
        if force_reset or resized:
            self._last_obs = None

    def _renew_replay(self) -> None:
        if self.replay_buffer is not None and self.replay_buffer.size() > 0:
            warnings.warn("The new environment has another K, N or number of environments: the replay was emptied.")
        self.replay_buffer = DecomposedReplayBuffer(
            self.buffer_size,
            self.observation_space,
            self.action_space,
            self.device,
            self.n_envs,
            **self.replay_buffer_kwargs,
        )
        self.replay_buffer.rng = self.rng.spawn(1)[0]

    @property
    def q_net(self) -> QueryNetwork | CandidateNetwork:
        """The query network phi."""
        return self.policy.q_net

    @property
    def q_net_target(self) -> QueryNetwork | CandidateNetwork:
        """Its target copy phi'."""
        return self.policy.q_net_target

    @property
    def _n_classes(self) -> int:
        """C if each class has its own value, else 0."""
        first, last = self.policy_kwargs["labelled"] if self.credit == "class_rewards" else (0, 0)
        return int(last - first)

    @property
    def exploration_rate(self) -> float:
        """Epsilon of the next step."""
        return epsilon_at(self.epsilon, self.num_timesteps)

    @property
    def followed(self) -> list[str] | None:
        """What each environment's episode follows, a guide or ``"greedy"``; ``None`` unless exploring by episode."""
        if self.exploration != "episode":
            return None
        return [(*self.guides, "greedy")[number] for number in self._followed]

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Actions (n_envs, K) for the environment and, the same, for the replay."""
        assert isinstance(self._last_obs, dict)
        epsilon = 1.0 if self.num_timesteps < learning_starts else self.exploration_rate
        if self.exploration == "episode":
            drawn = draw_guides((n_envs,), len(self.guides), epsilon, self.rng)
            self._followed = np.where(self._followed == UNDRAWN, drawn, self._followed)
            followed = self._followed[:, None]  # (n_envs, 1)
        else:
            followed = self._draw_guides((n_envs, self.sizes.pools), epsilon)
        greedy = self._greedy(self._last_obs)
        actions = follow(followed, greedy, self.guides, self._last_obs, self.rng)
        return actions, actions

    def _greedy(self, observation: Observation) -> npt.NDArray[np.int64]:
        """Greedy sub-actions in training, (n_envs, K): where worth is learnt, as each episode's draw of it has it."""
        if self.credit != "class_rewards":
            return self.policy.predict(observation, deterministic=True)[0]
        assert isinstance(self.policy, CandidatePolicy)
        if np.isnan(self._worth).any():
            posterior = self._learn_worth()
            for lane in np.flatnonzero(np.isnan(self._worth).any(axis=1)):
                self._worth[lane] = posterior.draw(self.rng)
        self.policy.set_training_mode(False)
        tensors, _ = self.policy.obs_to_tensor(observation)
        with torch.no_grad():
            worth = torch.as_tensor(self._worth, dtype=torch.float32, device=self.device)
            return self.policy.choose(tensors, worth).cpu().numpy()

    def _draw_guides(self, shape: tuple[int, ...], epsilon: float) -> npt.NDArray[np.int64]:
        """Whom one step follows: (..., K), or (..., 1) where it is the same in all K."""
        drawn = shape if self.exploration == "sub_action" else (*shape[:-1], 1)
        return draw_guides(drawn, len(self.guides), epsilon, self.rng)

    def _store_transition(
        self, replay_buffer: Any, buffer_action: Any, new_obs: Any, reward: Any, dones: Any, infos: Any
    ) -> None:
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        self._followed = np.where(dones, UNDRAWN, self._followed)
        self._worth[np.asarray(dones, bool)] = np.nan

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
            self._worth = np.full((self.n_envs, self._n_classes), np.nan)
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kwargs)

    def predict(
        self,
        observation: npt.NDArray[Any] | Observation,
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[np.int64], tuple[npt.NDArray[Any], ...] | None]:
        """Choose one region from each pool: (K,) for one observation, (B, K) for a batch, with any K and N, int64.

        Greedy, Eq. (1), if ``deterministic``; else epsilon-greedy (with one draw for all K unless
        ``exploration="sub_action"``).
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
        check_number("the present learning_rate", self.policy.optimizer.param_groups[0]["lr"], least=0)
        losses, q_means = [], []
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            target = self._td_targets(batch)  # (B,), or (B, C) of classes
            self.policy.set_training_mode(True)
            if self.credit == "class_rewards":
                assert isinstance(self.q_net, CandidateNetwork)
                q = self.q_net.values(batch.chosen)  # (B, C)
                errors = self.q_net.normalized_errors(q, target)
            else:
                q = self.q_net(batch.state, batch.chosen, batch.similarity, batch.state_of)  # (B,)
                errors = q - target
            loss = LOSSES[self.loss](errors, torch.zeros_like(errors))  # Eq. (2)
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
        """Targets of a batch, (B,) or (B, C), from both networks in evaluation mode."""
        for name in ("state", "chosen", "similarity"):
            if (part := getattr(batch, name)) is not None:
                _check_finite(f"The replay's {name!r}", part)  # before it gets into the batch-norm statistics
        self.policy.set_training_mode(False)
        # (B,); a terminated one is worth its reward, and so is every one where gamma is 0.
        goes_on = ~batch.terminated & (batch.discount > 0)
        next_q, next_q_target = torch.zeros((2, *batch.next_candidates.shape[:2]), device=self.device)  # (B, N)
        if goes_on.any():
            similarity = None if batch.next_similarity is None else batch.next_similarity[goes_on]
            after = (batch.next_state, batch.next_candidates[goes_on], similarity, batch.next_state_of[goes_on])
            with torch.no_grad():
                next_q[goes_on], next_q_target[goes_on] = self.q_net(*after), self.q_net_target(*after)
        values = None
        if self.credit == "class_rewards":
            shape = (*batch.next_candidates.shape[:2], batch.reward.shape[1])  # (B, N, C)
            values = torch.zeros(shape, device=self.device), torch.zeros(shape, device=self.device)
            if goes_on.any():
                with torch.no_grad():
                    offered = batch.next_candidates[goes_on]
                    values[0][goes_on] = self._values(self.q_net, offered)
                    values[1][goes_on] = self._values(self.q_net_target, offered)
        target = td_targets(
            batch.reward, batch.terminated, next_q, next_q_target, batch.discount, self.td_target, values
        )
        _check_finite("The TD target", target)
        return target

    @staticmethod
    def _values(network: torch.nn.Module, candidates: Tensor) -> Tensor:
        """The values of classes (..., C) of candidates (..., F)."""
        assert isinstance(network, CandidateNetwork)
        return network.values(candidates)

    def _descend(self, loss: Tensor) -> None:
        self.policy.optimizer.zero_grad()
        torch.autograd.backward(loss)
        max_norm = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        _check_finite("The gradient", torch.nn.utils.clip_grad_norm_(self.q_net.parameters(), max_norm))
        self.policy.optimizer.step()

    def refit(
        self: SelfSubActionDQN, gradient_steps: int, policy_kwargs: dict[str, Any] | None = None
    ) -> SelfSubActionDQN:
        """Fit a new query network to the replay alone, without further environment steps.

        A network that learns while it plays keeps fitting its first few steps; one that starts with all steps can be
        regularised more strongly, by a larger weight decay. The learning rate is that of the beginning of a training.

        Args:
            gradient_steps: Updates, each on ``batch_size`` decomposed transitions.
            policy_kwargs: Arguments of the policy that replace the agent's, such as ``optimizer_kwargs``.

        Raises:
            ValueError: If the replay is empty, or there are no gradient steps to take.
        """
        assert self.replay_buffer is not None
        check_int("gradient_steps", gradient_steps, 1)
        given = check_arguments("policy_kwargs", policy_kwargs, self.policy_class, 3)
        if self.replay_buffer.size() == 0:
            raise ValueError("The replay is empty: learn() first, or load_replay_buffer().")
        self.policy_kwargs = {**self.policy_kwargs, **given}
        policy = self.policy_class(self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs)
        self.policy = policy.to(self.device)  # type: ignore[assignment]
        if not hasattr(self, "_logger"):
            self._logger = configure_logger(self.verbose)
        remaining, self._current_progress_remaining = self._current_progress_remaining, 1.0
        if self.credit == "class_rewards":
            self._learn_worth()  # by which targets choose
        for step in range(1, gradient_steps + 1):
            self.train(1, self.batch_size)
            if step % self.target_update_interval == 0:
                self._update_target()
        self._current_progress_remaining = remaining
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
        check_number("total_timesteps", total_timesteps)
        if log_interval is not None:
            check_int("log_interval", log_interval, 1)
        super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        return self

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> RolloutReturn:
        """Collect experience; as in Stable-Baselines3. The last rollout of a training ends with the classes' worth."""
        rollout = super().collect_rollouts(*args, **kwargs)
        last = not rollout.continue_training or self.num_timesteps >= self._total_timesteps
        if last and self.credit == "class_rewards":
            self._learn_worth()  # here, and not at the end of learn(), so that the last checkpoint has it
        return rollout

    def _learn_worth(self) -> Worth:
        """Fit the classes' worth to the replay's rewards, set it in the policy, and return it."""
        assert isinstance(self.policy, CandidatePolicy)
        assert self.replay_buffer is not None
        posterior = Worth.learnt(*self.replay_buffer.beginnings(), spread=self.worth_spread)
        self.policy.worth = posterior.positive
        return posterior

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Write the agent atomically: networks, optimiser, settings, counters and random source.

        The file needs no unpickling; ``.safetensors`` is added to a name without suffix. A setting that is not a
        plain value, such as a function, must be passed to :meth:`load` again. To store the replay, use
        :meth:`save_replay_buffer`; to resume training exactly, :class:`agents.Checkpoint`.

        Args:
            path: The file.
            exclude: Must be ``None``: unlike in Stable-Baselines3, the whole agent is written.
            include: Must be ``None``.
        """
        if exclude is not None or include is not None:
            raise ValueError("exclude and include must be None: the whole agent is always written.")
        save_agent(path, pack_agent(self))

    @classmethod
    def load(
        cls: type[SelfSubActionDQN],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfSubActionDQN:
        """Load an agent that :meth:`save` wrote; nothing in the file is executed.

        The random source continues from its saved state, unless a new ``seed`` is given.

        Args:
            path: The file.
            env: As in :meth:`set_env`.
            device: Device of the network.
            custom_objects: Like ``kwargs``, as in Stable-Baselines3.
            print_system_info: Whether to print the versions of installed packages.
            force_reset: Must be true: the last observation isn't saved.
            kwargs: Arguments of the constructor that replace the stored ones, and ``policy`` if the agent has a
                custom policy class.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, of another kind or version, lacks a setting, or does not match ``env``.
        """
        if not force_reset:
            raise ValueError("force_reset=False needs the last observation, which isn't saved: leave it True.")
        if print_system_info:
            get_system_info()
        tree, given = load_agent(path), {**(custom_objects or {}), **kwargs}
        with well_formed(with_suffix(path)):
            agent = cls._from_tree(tree, device, given)
        if env is not None:
            agent.set_env(env)
            assert agent.env is not None
            if agent.seed is not None:
                agent.env.seed(agent.seed)
        if "seed" in given:
            agent.set_random_seed(given["seed"])
        return agent

    @classmethod
    def _from_tree(
        cls: type[SelfSubActionDQN], tree: Any, device: torch.device | str, given: dict[str, Any]
    ) -> SelfSubActionDQN:
        """Create the agent from a tree of :func:`agents.dqn.saving.pack_agent`, with ``given`` replacing arguments."""
        given = dict(given)
        policy = given.pop("policy", cls.policy_aliases.get(tree["policy"]))
        if policy is None or tree["class"] != cls.__name__:
            raise ValueError(
                f"this is a {tree['class']} with the policy {tree['policy']}; expected a {cls.__name__} with one of "
                f"{sorted(cls.policy_aliases)}. Load it with its own class, and policy=... for a policy of your own"
            )
        settings = unpack_settings(tree["settings"], given)
        agent = cls(policy, None, device=device, _init_setup_model=False, **settings)
        agent.observation_space, agent.action_space = unpack_spaces(tree["spaces"])
        agent.n_envs, agent.layout = check_int("n_envs", tree["n_envs"], 1), tree["layout"]
        if given.get("seed") is None:
            agent.rng = tree["rng"]
        agent._setup_model()
        set_parameters(agent, tree["parameters"])
        vars(agent).update({name: tree["progress"][name] for name in PROGRESS})
        return agent

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """Write the replay atomically, as arrays."""
        assert self.replay_buffer is not None
        save_replay(path, self.replay_buffer)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """Read a file of :meth:`save_replay_buffer` into a replay of the same sizes.

        Args:
            path: The file.
            truncate_last_traj: No effect: this replay detects unfinished episodes by itself.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, of another kind or version, or of other sizes.
        """
        assert self.replay_buffer is not None
        load_replay(path, self.replay_buffer)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []


def _checked_rate(rate: Any) -> float | Schedule:
    if callable(rate):
        schedule: Schedule = rate
        rate_at(schedule, 1.0)
        return schedule
    return check_number("learning_rate", rate, above=0, alternative="a function of the progress remaining")


def _checked_train_freq(value: Any) -> tuple[int, str]:
    """Return the steps or episodes between two updates, and which of the two they are."""
    pair = tuple(value) if isinstance(value, list | tuple) else (value, "step")
    check("train_freq", value, len(pair) == 2, "a whole number of steps, (n, 'step') or (n, 'episode')")
    unit = pair[1].value if isinstance(pair[1], TrainFrequencyUnit) else pair[1]
    return check_int("train_freq", pair[0], 1, MOST_REPEATS), check_choice(
        "the unit of train_freq", unit, ("step", "episode")
    )


def _check_episodes(train_freq: Any, n_envs: int) -> None:
    unit = train_freq.unit.value if isinstance(train_freq, TrainFreq) else train_freq[1]
    if unit == "episode" and n_envs > 1:
        raise ValueError(f"train_freq counts episodes, and there are {n_envs} environments; expected one, or steps")


def _check_normalization(vec_normalize: VecNormalize | None) -> None:
    if vec_normalize is not None and vec_normalize.norm_obs:
        raise ValueError(
            "VecNormalize(norm_obs=True) would normalise each pool by itself, and the query network "
            "normalises its inputs anyway: use VecNormalize(norm_obs=False)."
        )


def _check_finite(what: str, value: Tensor) -> None:
    if not torch.isfinite(value).all():
        raise FloatingPointError(
            f"{what} is not finite; the weights were left unchanged. Either the environment returns "
            "values that aren't finite, or training diverges: lower learning_rate, or set max_grad_norm."
        )
