"""The query policy, which selects the region with the highest value from each pool."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from agents.dqn.exploration import rate_at
from agents.dqn.network import CandidateNetwork, QueryNetwork
from agents.dqn.saving import POLICY_KIND, pack_settings, pack_spaces, unpack_settings, unpack_spaces
from agents.dqn.spaces import Sizes
from agents.observations import Observation
from al_seg_env.storage import load_tree, save_tree, well_formed
from al_seg_env.storage.validation import check, check_device

GIVEN = ("observation_space", "action_space", "lr_schedule")
"""Arguments of the constructor that are not settings."""
SelfQueryPolicy = TypeVar("SelfQueryPolicy", bound="QueryPolicy")


class QueryPolicy(BasePolicy):
    """Greedy policy over a :class:`QueryNetwork`, together with its target copy and its optimiser.

    The spaces determine S, F and D, while K and N may differ in each observation. The target network is always in
    evaluation mode. Keys of an observation other than ``state``, ``candidates`` and ``similarity`` are ignored.

    Args:
        observation_space: ``Dict(state=Box(S, F), candidates=Box(K, N, F), similarity=Box(K, N, D))``; ``similarity``
            is optional.
        action_space: ``MultiDiscrete([N] * K)``.
        lr_schedule: Learning rate as a function of the progress remaining, from 1 down to 0.
        optimizer_class: Optimiser; the paper's SGD by default.
        optimizer_kwargs: Arguments of the optimiser. The defaults are for SGD only: weight decay 1e-3 (paper, appendix
            B) and momentum 0.9 (the paper doesn't give it).

    Raises:
        ValueError: If an argument is out of its range, or the spaces are of another kind.
    """

    reads_state: ClassVar[bool] = True
    """Whether the network looks at the regions of the state, so that a replay must store them."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.SGD,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        good = isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)
        check("optimizer_class", optimizer_class, good, "a class of torch.optim")
        good = optimizer_kwargs is None or (isinstance(optimizer_kwargs, dict) and _is_finite(optimizer_kwargs))
        check("optimizer_kwargs", optimizer_kwargs, good, "a dict of the optimiser's arguments, with finite numbers")
        check("lr_schedule", lr_schedule, callable(lr_schedule), "a function of the progress remaining")
        if optimizer_kwargs is None and optimizer_class is torch.optim.SGD:
            optimizer_kwargs = {"momentum": 0.9, "weight_decay": 1e-3}
        super().__init__(
            observation_space,
            action_space,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        self.sizes = Sizes.from_spaces(observation_space, action_space)
        self.q_net = self._make_network()
        self.q_net_target = self._make_network()
        self.q_net_target.load_state_dict(self.q_net.state_dict())
        self.q_net_target.requires_grad_(False)
        self.train(False)
        rate = rate_at(lr_schedule, 1.0)
        self._try_optimizer(rate)
        self.optimizer = self._make_optimizer(self.q_net.parameters(), rate)

    def _make_optimizer(self, parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
        return self.optimizer_class(parameters, lr=rate, **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _try_optimizer(self, rate: float) -> None:
        """Take a step on a dummy parameter, because torch notices some invalid arguments only then."""
        parameter = nn.Parameter(torch.zeros(1))
        parameter.grad = torch.zeros(1)
        try:
            self._make_optimizer([parameter], rate).step()
        except (TypeError, ValueError, LookupError, RuntimeError, ArithmeticError, AttributeError) as error:
            raise ValueError(
                f"optimizer_kwargs is {self.optimizer_kwargs!r}; expected arguments of {self.optimizer_class.__name__} "
                f"({error})"
            ) from error

    def _make_network(self) -> QueryNetwork | CandidateNetwork:
        return QueryNetwork(self.sizes.regions, self.sizes.features, self.sizes.similarity)

    def train(self: SelfQueryPolicy, mode: bool = True) -> SelfQueryPolicy:
        """Set the mode of ``q_net``; ``q_net_target`` stays in evaluation mode."""
        super().train(mode)
        self.q_net_target.train(False)
        return self

    def forward(self, observation: dict[str, Tensor], deterministic: bool = True) -> Tensor:
        """Greedy choices for a batch of observations: (B, K), int64."""
        return self._predict(observation, deterministic)

    def q_values(self, observation: dict[str, Tensor]) -> Tensor:
        """Q(s_t, a_t^{k,n}) for a batch of observations: (B, K, N), float32."""
        return self.q_net.q_values(observation["state"], observation["candidates"], observation.get("similarity"))

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        """The best candidate of each pool, Eq. (1): (B, K). ``deterministic`` makes no difference."""
        assert isinstance(observation, dict)
        q = self.q_values(observation)  # (B, K, N)
        self._check_finite(q)
        return q.argmax(dim=-1)  # Eq. (1)

    @staticmethod
    def _check_finite(values: Tensor) -> None:
        if not torch.isfinite(values).all():
            raise FloatingPointError(
                "The query network's values are not finite, so no best region exists: either the observation has "
                "values that aren't finite, or training diverged (lower learning_rate, or set max_grad_norm)."
            )

    def predict(
        self,
        observation: npt.NDArray[Any] | Observation,
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[np.int64], tuple[npt.NDArray[Any], ...] | None]:
        """Greedy choices: (K,) for a single observation, (B, K) for a batch; int64. ``state`` is returned unchanged."""
        self.set_training_mode(False)
        tensors, batched = self.obs_to_tensor(observation)
        with torch.no_grad():
            actions = self._predict(tensors, deterministic).cpu().numpy()  # (B, K)
        return (actions if batched else actions[0]), state

    def is_vectorized_observation(self, observation: npt.NDArray[Any] | Observation) -> bool:
        """Whether this is a batch of observations. Unlike in the base class, K and N may differ from the spaces'."""
        return self.obs_to_tensor(observation)[1]

    def obs_to_tensor(self, observation: npt.NDArray[Any] | Observation) -> tuple[dict[str, Tensor], bool]:
        """The arrays that the network reads as tensors with a batch dimension, and whether the arrays had one."""
        if not isinstance(observation, dict):
            raise ValueError(
                f"Expected an observation as a dict of arrays, but got {type(observation).__name__}. "
                "With Gymnasium, write `obs, info = env.reset()`."
            )
        names = ("state", "candidates", "similarity") if self.sizes.similarity > 0 else ("state", "candidates")
        if missing := [name for name in names if name not in observation]:
            raise ValueError(
                f"The observation has the keys {sorted(observation)}; {missing} are missing. Pass an observation of an "
                "environment with the policy's observation space."
            )
        parts = {name: np.asarray(observation[name]) for name in names}
        batched = parts["state"].ndim == 3
        self._check_shapes({name: part.shape for name, part in parts.items()}, batched)
        tensors = {
            name: torch.as_tensor(part if batched else part[None], dtype=torch.float32, device=self.device)
            for name, part in parts.items()
        }
        return tensors, batched

    def _check_shapes(self, shapes: dict[str, tuple[int, ...]], batched: bool) -> None:
        batch = shapes["state"][:1] if batched else ()
        n_pools_and_candidates = shapes["candidates"][len(batch) : len(batch) + 2]
        expected = {
            "state": (*batch, self.sizes.regions, self.sizes.features),
            "candidates": (*batch, *n_pools_and_candidates, self.sizes.features),
            "similarity": (*batch, *n_pools_and_candidates, self.sizes.similarity),
        }
        for name, shape in shapes.items():
            if shape != expected[name] or len(n_pools_and_candidates) != 2:
                raise ValueError(
                    f"The observation's shapes are {shapes}; expected {expected['state'][-2:]} for state, "
                    f"(K, N, {self.sizes.features}) for candidates and (K, N, {self.sizes.similarity}) for "
                    "similarity, with any K and N, or all of them with a batch dimension in front."
                )

    def save(self, path: str | Path) -> None:
        """Write the policy atomically to a safetensors file, which can be read without unpickling."""
        spaces_, settings = pack_spaces(self.observation_space, self.action_space), self._get_constructor_parameters()
        settings = {name: value for name, value in settings.items() if name not in GIVEN}
        tree = {"spaces": spaces_, "settings": pack_settings(settings), "parameters": self.state_dict()}
        save_tree(path, POLICY_KIND, tree)

    @classmethod
    def load(cls: type[SelfQueryPolicy], path: str | Path, device: torch.device | str = "auto") -> SelfQueryPolicy:
        """Load a file that :meth:`save` wrote. Nothing in the file is executed.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If the file is damaged, or of another kind or version.
        """
        device = check_device("device", device)
        tree = load_tree(path, POLICY_KIND)
        with well_formed(path):
            settings = unpack_settings(tree["settings"], {})
            policy = cls(*unpack_spaces(tree["spaces"]), lr_schedule=cls._dummy_schedule, **settings)
            policy.load_state_dict(tree["parameters"])
        return policy.to(device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }


class CandidatePolicy(QueryPolicy):
    """Greedy policy over a :class:`CandidateNetwork`, for environments whose features tell which labels exist already.

    With ``labelled``, the K sub-actions are chosen one after the other. Each choice assumes that the labels expected
    from the earlier ones are there already, so a step does not request the same class K times.

    Args:
        observation_space, action_space, lr_schedule: See :class:`QueryPolicy`.
        optimizer_class: AdamW by default.
        optimizer_kwargs: By default, and for AdamW only, weight decay 0.05.
        labelled: First and last column (exclusive) of the features that tell how much of each class is labelled. If
            given, the network values each class separately; see :class:`CandidateNetwork`. ``SubActionDQN`` finds the
            columns by itself.
        predicted: First and last column (exclusive) of the classes' mean probabilities, which the agent's replay
            subtracts from the classes' shares in the labels.
        forecast: First and last column (exclusive) of the classes' mean probabilities in a forecast of what regions
            hold. If given, the network learns corrections of the forecast; see :class:`CandidateNetwork`.
            ``SubActionDQN`` finds the columns by itself.
    """

    reads_state = False

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
        labelled: Sequence[int] | None = None,
        predicted: Sequence[int] | None = None,
        forecast: Sequence[int] | None = None,
    ) -> None:
        if optimizer_kwargs is None and optimizer_class is torch.optim.AdamW:
            optimizer_kwargs = {"weight_decay": 0.05}
        for name, columns in (("labelled", labelled), ("predicted", predicted), ("forecast", forecast)):
            good = columns is None or (isinstance(columns, list | tuple) and [type(c) for c in columns] == [int, int])
            check(name, columns, good, "None, or two column numbers")
        self.labelled = None if labelled is None else list(labelled)
        self.predicted = None if predicted is None else list(predicted)
        self.forecast = None if forecast is None else list(forecast)
        super().__init__(observation_space, action_space, lr_schedule, optimizer_class, optimizer_kwargs)

    def _make_network(self) -> CandidateNetwork:
        labelled, predicted, forecast = (
            None if columns is None else (columns[0], columns[1])
            for columns in (self.labelled, self.predicted, self.forecast)
        )
        return CandidateNetwork(self.sizes.features, labelled=labelled, predicted=predicted, forecast=forecast)

    @property
    def worth(self) -> Tensor:
        """The worth of each class's labels, (C,), float32."""
        return self.q_net.worth  # type: ignore[return-value]

    @worth.setter
    def worth(self, worth: npt.ArrayLike) -> None:
        for network in (self.q_net, self.q_net_target):
            network.worth.copy_(torch.as_tensor(np.asarray(worth), dtype=torch.float32))  # type: ignore[operator]

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        if self.labelled is None:
            return super()._predict(observation, deterministic)
        assert isinstance(observation, dict)
        return self.choose(observation, self.worth)

    def choose(self, observation: dict[str, Tensor], worth: Tensor) -> Tensor:
        """The best candidate of each pool, one pool after the other: (B, K), int64.

        Args:
            observation: A batch of observations.
            worth: The worth of each class's labels, (C,), or (B, C).
        """
        candidates, network = observation["candidates"], self.q_net  # (B, K, N, F)
        assert isinstance(network, CandidateNetwork)
        shares = network.values(candidates).clamp(min=0)  # (B, K, N, C)
        self._check_finite(shares)
        amounts = candidates[:, 0, 0, network.labelled].exp()  # (B, C), 1 + labelled regions
        worth = worth.expand(len(shares), -1).unsqueeze(-1)  # (B, C, 1)
        everyone, chosen = torch.arange(len(shares), device=shares.device), []
        for pool in shares.unbind(dim=1):  # (B, N, C)
            q = (network.raised(pool, amounts[:, None]) @ worth).squeeze(-1)  # (B, N)
            chosen.append(q.argmax(dim=-1))  # Eq. (1)
            amounts = amounts + pool[everyone, chosen[-1]]
        return torch.stack(chosen, dim=1)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        columns = {"labelled": self.labelled, "predicted": self.predicted, "forecast": self.forecast}
        return {**super()._get_constructor_parameters(), **columns}


def _is_finite(value: Any) -> bool:
    """Whether all numbers in nested lists, tuples and dicts are finite."""
    if isinstance(value, Mapping):
        return all(_is_finite(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(_is_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)
