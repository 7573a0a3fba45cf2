"""The agent's view of an environment: the sizes of its spaces, and the layout that the agent was trained with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from al_seg_env.storage import differences

OBSERVATION = (
    "a Dict space with state=Box(S, F), candidates=Box(K, N, F) and, where there are such features, "
    "similarity=Box(K, N, D)"
)


@dataclass(frozen=True)
class Sizes:
    """The sizes of an environment. The query network depends on S, F and D, but not on K and N.

    Attributes:
        regions: S, the regions that make up the state.
        features: F, the features of a region.
        pools: K, the sub-actions of a step.
        candidates: N, the regions in a pool.
        similarity: D, the similarity features of a candidate; 0 where the environment has none.
    """

    regions: int
    features: int
    pools: int
    candidates: int
    similarity: int

    @classmethod
    def from_spaces(cls, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> Sizes:
        """Return the sizes of spaces.

        Raises:
            ValueError: If the spaces are not those of region selection.
        """
        shapes = _observation_shapes(observation_space)
        regions, features = shapes["state"]
        pools, candidates, candidate_features = shapes["candidates"]
        if candidate_features != features:
            raise ValueError(
                f"The rows of 'state' have {features} features, those of 'candidates' {candidate_features}: "
                f"expected {OBSERVATION}, with the same F in both."
            )
        similarity = shapes.get("similarity", (pools, candidates, 0))
        if similarity[:2] != (pools, candidates):
            raise ValueError(
                f"'similarity' has shape {similarity}, 'candidates' {shapes['candidates']}: "
                "expected the same K and N in both."
            )
        if 0 in (regions, features, pools, candidates):
            raise ValueError(f"The observation space has the shapes {shapes}; expected sizes of at least 1")
        _check_action_space(action_space, pools, candidates)
        return cls(regions, features, pools, candidates, similarity[2])


def _observation_shapes(observation_space: spaces.Space[Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parts of the observation that the agent reads, by name."""
    if not isinstance(observation_space, spaces.Dict):
        raise ValueError(f"The observation space is {observation_space}; expected {OBSERVATION}, not flattened")
    shapes = {}
    for name, n_dims in (("state", 2), ("candidates", 3), ("similarity", 3)):
        space = observation_space.spaces.get(name)
        if space is None and name == "similarity":
            continue
        if not isinstance(space, spaces.Box) or len(space.shape) != n_dims:
            raise ValueError(
                f"The observation space, with the keys {sorted(observation_space.spaces)}, has {space} "
                f"under {name!r}; expected {OBSERVATION}"
            )
        shapes[name] = space.shape
    return shapes


def _check_action_space(action_space: spaces.Space[Any], pools: int, candidates: int) -> None:
    expected = f"MultiDiscrete([{candidates}] * {pools}), one choice out of N for each of K pools"
    if not isinstance(action_space, spaces.MultiDiscrete):
        raise ValueError(f"The action space is {action_space}; expected {expected}")
    if not np.array_equal(action_space.nvec, [candidates] * pools) or np.any(action_space.start):
        raise ValueError(f"The action space is {action_space}: 'candidates' requires {expected}.")


def read_layout(env: VecEnv) -> dict[str, Any] | None:
    """Return the environments' ``layout`` (classes, images of D_S, parts of the features); ``None`` if they have none.

    Raises:
        ValueError: If a layout does not consist of plain JSON values, or the environments' layouts differ.
    """
    if not env.has_attr("layout"):
        return None
    layouts = env.get_attr("layout")
    try:
        # A saved agent's layout has been through json, where a tuple becomes a list.
        layouts = [json.loads(json.dumps(layout)) for layout in layouts]
    except TypeError as error:
        raise ValueError(f"An environment's `layout` must hold plain JSON values, but {error}.") from error
    first: dict[str, Any] = layouts[0]
    for layout in layouts[1:]:
        if differing := _layout_differences(first, layout, "in the first", "in another"):
            raise ValueError(f"Environments side by side must have the same layout: {'; '.join(differing)}.")
    return first


def check_same_task(
    sizes: Sizes, layout: dict[str, Any] | None, env_sizes: Sizes, env_layout: dict[str, Any] | None
) -> None:
    """Raise a ``ValueError`` if the features of an environment differ in meaning from those the agent was trained on.

    K and N may differ. The layouts are compared only if both are known.
    """
    problems = [
        f"{name} is {getattr(sizes, field)} for the agent, {getattr(env_sizes, field)} in the environment"
        for name, field in (
            ("S (regions of the state)", "regions"),
            ("F (features of a region)", "features"),
            ("D (similarity features)", "similarity"),
        )
        if getattr(sizes, field) != getattr(env_sizes, field)
    ]
    if layout is not None and env_layout is not None:
        # Agents of earlier versions do not know what the embedding's components are of.
        env_layout = {name: value for name, value in env_layout.items() if name in layout or name != "basis_of"}
        problems += _layout_differences(layout, env_layout, "for the agent", "in the environment")
    if problems:
        raise ValueError(
            f"The agent does not fit this environment: {'; '.join(problems)}. Make the environment with the "
            "classes, D_S (state_images; see splits), features and, for the feature 'embedding', D_T (basis_of) that "
            "the agent was trained with, or train a new one."
        )


def _layout_differences(ours: Any, theirs: Any, there: str, here: str) -> list[str]:
    """Return a short line for each entry that differs. Of long lists, it shows the first different element."""
    messages, told = [], []
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name, mine in ours.items():
            other = theirs.get(name)
            if isinstance(mine, list) and isinstance(other, list) and mine != other and max(len(mine), len(other)) > 4:
                first = next((i for i, pair in enumerate(zip(mine, other, strict=False)) if pair[0] != pair[1]), None)
                where = "" if first is None else f", the first different one is {mine[first]!r} and {other[first]!r}"
                messages.append(f"layout.{name} has {len(mine)} entries {there}, {len(other)} {here}{where}")
                told.append(f"layout.{name}")
    return messages + differences({"layout": ours}, {"layout": theirs}, told, there=there, here=here)
