"""Comparing policies as in the paper, without an experiment file: one folder of trials, and ``results.csv``."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from tqdm import tqdm

from al_seg_env.env import RegionSelectionEnv
from al_seg_env.learner.fitting import FitSettings
from al_seg_env.registration import environment_spec, make_again
from al_seg_env.storage import read_json, well_formed, write_json
from al_seg_env.storage.validation import check, check_int, close_match
from al_seg_experiment.acquisition import PICTURE, acquire, is_acquired, measure_theta_0, supervise_fully
from al_seg_experiment.checking import equal_budgets
from al_seg_experiment.experiment import MOST
from al_seg_experiment.folders import acquiring, claimed, described, identity
from al_seg_experiment.policies import NamedPolicy, make_policy, parse_policy, policy_function
from al_seg_experiment.trial_results import (
    read_results_of,
    result_row,
    sealed,
    set_damaged_aside,
    unsealed,
    write_rows,
)

PolicyMaker: TypeAlias = Callable[[RegionSelectionEnv, int], Any]
"""Returns a policy for an environment and a seed."""
RESULTS = "results.csv"
NUMERICS = "numerics.json"
FULL, THETA_0 = "full", "theta_0"
KEPT_ENVIRONMENTS = 4
"""Number of environments that are kept from trial to trial, since each holds a network; others are made each time."""


def evaluate(
    env: str | gym.Env | EnvSpec,
    policies: Sequence[str] | Mapping[str, PolicyMaker],
    folder: str | Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    budgets: Sequence[int] = (96, 192),
    fit: Mapping[str, Any] | None = None,
    full: int = 0,
) -> Path:
    """Let policies acquire regions of D_V, train to convergence at each budget, and test (section 4.1).

    Policies share theta_0, splits and seeds, so that they can be compared seed by seed. A trial is stored as soon as a
    budget is done; called again after a kill, or with more policies and seeds, this only runs what is missing.

    Args:
        env: An id, an environment or its ``spec``; ``weights`` among its arguments is theta_0. The largest of
            ``budgets`` takes the place of its ``budget``.
        policies: Names (``"uniform"``, ``"entropy"``, ``"bald"``, ``"margin"``, ``"ripu"``, ``"rarity_entropy"``, and
            ``"rare"`` and ``"greedy"``, which use the ground truth), ``"NAME=path/to/agent.safetensors"`` and
            ``"NAME=module:function"``; or a mapping from names to functions that return a policy for an environment
            and a seed.
        folder: Folder for the results, which may hold earlier ones.
        seeds: One trial of each policy per seed.
        budgets: Regions labelled; all except the largest are rounded up to multiples of K, and must still differ then.
        fit: Fields of :class:`~al_seg_env.learner.fitting.FitSettings` for the training to convergence; ``crop_size``
            is the environment's if omitted.
        full: Number of seeds with which to also train on all labels of D_V, for the line of full supervision.

    Returns:
        The path of ``results.csv``: a row per policy, seed and budget, 0 being theta_0, with mean IoU and IoU per class
        in percent on D_R (``val``) and on the test set, and the pixels requested per class. See
        :func:`al_seg_experiment.report.report` for tables, figures and significance tests.

    Raises:
        ValueError: If an argument is invalid, or the folder holds results of another environment or other settings.
    """
    compared = _named(policies)
    seeds, budgets = _whole(seeds, "seeds", 0), sorted(_whole(budgets, "budgets", 1))
    settings = _fit_settings(fit or {})
    check_int("full", full, 0, len(seeds))
    spec = acquiring("eval", env, budget=budgets[-1])
    first = make_again(spec)
    if problem := next(equal_budgets(tuple(budgets), first.config.regions_per_step, compared[0][0].name), None):
        raise ValueError(f"budgets is {budgets}; {problem}")
    for named, maker in compared:
        if named.agent is not None:  # so that one that does not fit is refused before anything is written
            maker(first, seeds[0])
    if "crop_size" not in (fit or {}):
        settings = replace(settings, crop_size=first.config.crop_size)
    folder = Path(folder)
    made_with = {**identity(spec), "budgets": budgets, "fit": asdict(settings)}
    with claimed(folder, "evaluate", made_with, (RESULTS, NUMERICS, "report", f"{THETA_0}/result-*", "trials")):
        spec = environment_spec(spec, **_numerics(first, folder / NUMERICS))
        players = _Players(spec)
        set_damaged_aside(folder / THETA_0, THETA_0, 0)
        measure_theta_0(players.with_arguments({}), folder / THETA_0)
        trials = [(named, seed) for seed in seeds for named in compared]
        for (named, maker), seed in tqdm(trials, desc="trials"):
            trial = folder / "trials" / f"{named.name}-{seed}"
            with claimed(trial, "trial", {**_plain(named), "seed": seed}, ("result-*", PICTURE)):
                set_damaged_aside(trial, named.name, seed)
                if not is_acquired(trial, budgets):
                    player = players.with_arguments(named.arguments)
                    policy = maker(player, seed)
                    acquire(player, policy, trial, method=named.name, seed=seed, budgets=budgets, fit=settings)
        for seed in seeds[:full]:
            with claimed(
                folder / "trials" / f"{FULL}-{seed}", "full supervision", {"seed": seed}, ("result-*",)
            ) as trial:
                set_damaged_aside(trial, FULL, seed)
                supervise_fully(make_again(spec), trial, seed=seed, fit=settings)
        rows = list(_rows(folder))
        write_rows(folder / RESULTS, rows)
    return folder / RESULTS


class _Players:
    """Environments that trials play in one after the other, so that what they keep of images is computed once."""

    def __init__(self, spec: EnvSpec) -> None:
        self.spec = spec
        self._kept: dict[str, RegionSelectionEnv] = {}

    def with_arguments(self, arguments: Mapping[str, Any]) -> RegionSelectionEnv:
        """Return the environment with some arguments changed."""
        named = json.dumps(arguments, sort_keys=True)
        if named in self._kept:
            return self._kept[named]
        env = make_again(self.spec, **arguments)
        if len(self._kept) < KEPT_ENVIRONMENTS:
            self._kept[named] = env
        return env


def _named(policies: Sequence[str] | Mapping[str, PolicyMaker]) -> list[tuple[NamedPolicy, PolicyMaker]]:
    """Return the policies and the function that makes each."""
    if isinstance(policies, Mapping):
        for name, make in policies.items():
            check(f"policies[{name!r}]", make, callable(make), "a function from environment and seed to a policy")
        found = [(NamedPolicy(name, described(make)), make) for name, make in policies.items()]
    else:
        names = [policies] if isinstance(policies, str) else list(policies)
        good = all(isinstance(name, str) for name in names)
        check("policies", names, good, "names, or a mapping from names to functions of environment and seed")
        parsed = [parse_policy(text) for text in names]
        for own in (each.policy for each in parsed if ":" in each.policy):
            policy_function(own)
        found = [(each, _maker(each)) for each in parsed]
    names = [named.name for named, _ in found]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"policies are {names}; expected at least one, and a name for each")
    return found


def _maker(named: NamedPolicy) -> PolicyMaker:
    return lambda env, seed: make_policy(named.policy, env, seed, named.agent)


def _plain(named: NamedPolicy) -> dict[str, Any]:
    agent = None if named.agent is None else hashlib.sha256(named.agent.read_bytes()).hexdigest()
    return {"policy": named.policy, "arguments": dict(named.arguments), "agent": agent}


def _whole(values: Sequence[int], name: str, least: int) -> list[int]:
    check(name, values, isinstance(values, Iterable) and not isinstance(values, str), "a list of whole numbers")
    found = [check_int(name, value, least, MOST) for value in values]
    if not found or len(set(found)) != len(found):
        raise ValueError(f"{name} is {found}; expected different whole numbers, at least one")
    return found


def _fit_settings(given: Mapping[str, Any]) -> FitSettings:
    known = [field.name for field in fields(FitSettings)]
    if unknown := [name for name in given if name not in known]:
        hint = close_match(unknown[0], known)
        raise ValueError(f"fit has the unknown entry {unknown[0]!r}{hint}; known are {', '.join(known)}")
    return FitSettings(**given)


def _numerics(env: RegionSelectionEnv, path: Path) -> dict[str, Any]:
    """Return the precision and layout that the first process chose, so that timing does not differ between policies."""
    if not path.exists():
        if any(path.parent.rglob("result-*.json")):
            raise ValueError(f"{path} is missing: it holds the precision that all results were computed in; restore it")
        write_json(path, sealed(env.learner.numerics))
    remedy = f"restore it, or remove {path.parent} to start again"
    with well_formed(path):
        numerics = unsealed(read_json(path, remedy))
        if set(numerics) != set(env.learner.numerics):
            raise ValueError(f"it holds {reprlib.repr(numerics)}; {remedy}")
    return numerics


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of all trials in a folder; each curve begins with theta_0."""
    (theta_0,) = read_results_of(folder / THETA_0)
    for trial in sorted((folder / "trials").iterdir()):
        results = read_results_of(trial)
        for result in results:
            if (name := f"{result['method']}-{result['seed']}") != trial.name:
                raise ValueError(f"{trial} holds results of {name}; give the folder back its name, or remove it")
        if results and results[0]["method"] != FULL:
            yield result_row("", {**theta_0, "method": results[0]["method"], "seed": results[0]["seed"]})
        yield from (result_row("", result) for result in results)
