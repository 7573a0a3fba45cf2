"""What an experiment is: a small declarative file, checked before anything runs."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from al_seg_env.learner.fitting import FitSettings
from al_seg_env.registration import ENV_OPTIONS
from al_seg_experiment.reading import merged, read_file, read_preset

T = TypeVar("T")

REFIT = {"gradient_steps", "policy_kwargs"}

METHODS: dict[str, dict[str, Any]] = {
    "uniform": {"policy": "uniform"},
    "entropy": {"policy": "entropy", "arguments": {"scores": ["entropy"]}},
    "bald": {"policy": "bald", "arguments": {"scores": ["bald"]}},
    "margin": {"policy": "margin", "arguments": {"scores": ["margin"]}},
    "rare": {"policy": "rare", "arguments": {"scores": ["privileged_rarity"]}},
    "greedy": {"policy": "greedy", "arguments": {"scores": ["privileged_rarity"]}},
    "dqn": {"policy": "dqn"},
}
"""The methods known by name: a policy, and arguments of the environment that it plays."""


@dataclass(frozen=True)
class Stage:
    """One training of theta_0 on whole labelled images.

    Attributes:
        env: Registered environment whose data are trained on; the experiment's own if left out.
        arguments: Its arguments, over the experiment's own.
        images: ``"state"`` (D_S), ``"train"`` (D_T), ``"eval"``, or ``"all"`` but D_R and test.
        epochs, patience, updates, batch_size: See :class:`~al_seg_env.learner.fitting.FitSettings`.
        learning_rate: Of this stage; the environment's if left out.
    """

    env: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    images: str = "train"
    epochs: int = 60
    patience: int = 10
    updates: int = 10
    batch_size: int = 16
    learning_rate: float | None = None


@dataclass(frozen=True)
class Query:
    """How the query agent is trained on D_T, with a small fixed budget (section 4.1).

    Attributes:
        episodes: Episodes.
        arguments: Arguments of the environment over the experiment's own, such as ``budget``.
        agent: Arguments of :class:`agents.SubActionDQN`, such as ``gamma``; ``epsilon_steps`` for a linear decay,
            ``learning_rate_decay`` for a factor per step.
        refit: Arguments of :meth:`agents.SubActionDQN.refit`, which fits the agent's network anew at the end.
        per_seed: One agent for each seed, or one for all.
        checkpoint_every: Environment steps between checkpoints; an episode's if left out.
        envs: Environments that play side by side, each in a process of its own.
    """

    episodes: int = 100
    arguments: Mapping[str, Any] = field(default_factory=dict)
    agent: Mapping[str, Any] = field(default_factory=dict)
    refit: Mapping[str, Any] = field(default_factory=dict)
    per_seed: bool = True
    checkpoint_every: int | None = None
    envs: int = 1

    def __post_init__(self) -> None:
        if self.envs < 1 or self.episodes < 0:
            raise ValueError(f"query.envs is {self.envs}, query.episodes {self.episodes}; expected at least 1, and 0")
        steps = self.refit.get("gradient_steps", 0)  # refused now, and not at the end of a long training
        if self.refit and (type(steps) is not int or steps < 1 or not set(self.refit) <= REFIT):
            raise ValueError(f"query.refit is {self.refit!r}; expected gradient_steps, at least 1, and policy_kwargs")


@dataclass(frozen=True)
class Variant:
    """A setting to compare with others (appendix E).

    Attributes:
        arguments: Arguments of the environment, over the experiment's own.
        agent: Arguments of the agent, over those of ``query.agent``.
        budgets: Regions labelled, where a region is of another size; the experiment's if left out.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    agent: Mapping[str, Any] = field(default_factory=dict)
    budgets: tuple[int, ...] | None = None

    @property
    def shares_theta_0(self) -> bool:
        """Whether theta_0 is the experiment's own: data, network and crops are the same."""
        return set(self.arguments) <= ENV_OPTIONS - {"crop_size"}


@dataclass(frozen=True)
class Experiment:
    """The paper's comparison (section 4), in plain values.

    Attributes:
        name: For titles.
        env: Registered environment.
        arguments: Its arguments.
        methods: Names out of :data:`METHODS`, or a mapping from a name to ``{policy, arguments}``, where the policy is
            a known one or ``"module:function"`` of one's own, called with environment and seed.
        seeds: One trial of each method per seed.
        budgets: Regions labelled; all but the largest multiples of K.
        theta_0: Stages of pretraining before evaluation, one after another.
        query_theta_0: The same before the training of the query agent. D_T must not be among their images: its
            labels would be no news.
        query: Training of the agent.
        fit: Training to convergence; ``updates`` as in :class:`Stage`.
        full: Seeds with which to train with all labels of D_V, too, for the line of full supervision; ``True`` for
            all.
        variants: Named settings to compare (appendix E).
        cache: Keep decoded images as memory-mapped files in the experiment's folder, for data larger than memory.
        cpus, gpus: What a trial takes of a Ray cluster.
    """

    name: str
    env: str = "al_seg_env/SyntheticStreets-v0"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"uniform": METHODS["uniform"]})
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    budgets: tuple[int, ...] = (48, 96)
    theta_0: tuple[Stage, ...] = (Stage(),)
    query_theta_0: tuple[Stage, ...] = (Stage(images="state"),)
    query: Query = Query()
    fit: FitSettings = FitSettings()
    full: bool | int = True
    variants: Mapping[str, Variant] = field(default_factory=lambda: {"": Variant()})
    cache: bool = False
    cpus: float = 1
    gpus: float = 0

    def of_variant(self, name: str) -> Experiment:
        """Return the experiment with a variant's settings, and no other variant."""
        variant = self.variants[name]
        return replace(
            self,
            arguments={**self.arguments, **variant.arguments},
            query=replace(self.query, agent={**self.query.agent, **variant.agent}),
            budgets=variant.budgets or self.budgets,
            variants={"": Variant()},
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain json values."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def load_experiment(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Read an experiment.

    Args:
        source: A yaml or toml file; the name of a preset; or a mapping. A file or mapping may begin from a preset,
            named under ``preset``, whose entries it changes one by one.
        overrides: Entries to change, with dots between levels: ``{"arguments.root": "data/camvid"}``.

    Raises:
        ValueError: If an entry is unknown, missing or wrong; the known ones are listed.
    """
    content = copy.deepcopy(dict(source)) if isinstance(source, Mapping) else read_file(source)
    while "preset" in content:
        content = merged(read_preset(content.pop("preset")), content)
    for name, value in (overrides or {}).items():
        change: dict[str, Any] = {}
        inner = change
        *parents, last = name.split(".")
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
        content = merged(content, change)
    return _experiment(content)


def _experiment(content: Mapping[str, Any]) -> Experiment:
    entries = dict(_of_type(content, Mapping, "the experiment", "a mapping"))
    _check_keys(entries, Experiment, "the experiment")
    if "name" not in entries:
        raise ValueError("the experiment has no name; give it one")
    entries["methods"] = _methods(entries.get("methods", ["uniform"]))
    for name in ("theta_0", "query_theta_0"):
        if name in entries:
            stages = _of_type(entries[name], list, name, "a list of stages")
            entries[name] = tuple(_made(Stage, stage, f"{name}[{i}]") for i, stage in enumerate(stages))
    if "query" in entries:
        entries["query"] = _made(Query, entries["query"], "query")
    if "fit" in entries:
        fit = dict(_of_type(entries["fit"], Mapping, "fit", "a mapping"))
        if isinstance(fit.get("crop_size"), list):
            fit["crop_size"] = tuple(fit["crop_size"])
        entries["fit"] = _made(FitSettings, fit, "fit")
    entries["seeds"] = _numbers(entries.get("seeds", Experiment.seeds), "seeds")
    entries["budgets"] = _budgets(entries.get("budgets", Experiment.budgets))
    variants = _of_type(entries.get("variants") or {"": {}}, Mapping, "variants", "a mapping")
    entries["variants"] = {str(name): _variant(content or {}, str(name)) for name, content in variants.items()}
    experiment = _made(Experiment, entries, "the experiment")
    _check_paths(experiment)
    return experiment


def _variant(content: Any, name: str) -> Variant:
    where = f"variants[{name!r}]"
    content = dict(_of_type(content, Mapping, where, "a mapping"))
    if content.get("budgets") is not None:
        content["budgets"] = _budgets(content["budgets"])
    return _made(Variant, content, where)


def _numbers(values: Any, name: str) -> tuple[int, ...]:
    whole = isinstance(values, list | tuple) and all(type(v) is int and v >= 0 for v in values)
    if not whole or not values or len(set(values)) != len(values):
        raise ValueError(f"{name} is {values!r}; expected a list of different whole numbers")
    return tuple(values)


def _budgets(values: Any) -> tuple[int, ...]:
    budgets = tuple(sorted(_numbers(values, "budgets")))
    if budgets[0] < 1:
        raise ValueError(f"budgets is {list(budgets)}; theta_0 itself, 0, is always there: leave it out")
    return budgets


def _check_paths(experiment: Experiment) -> None:
    """Refuse names of places to write to: an experiment writes into its own folder, whoever wrote its file."""
    places = [experiment.arguments, experiment.query.arguments, experiment.query.agent]
    places += [method["arguments"] for method in experiment.methods.values()]
    places += [stage.arguments for stage in (*experiment.theta_0, *experiment.query_theta_0)]
    places += [place for variant in experiment.variants.values() for place in (variant.arguments, variant.agent)]
    for place in places:
        if found := sorted({"cache", "tensorboard_log"} & set(_of_type(place, Mapping, "arguments", "a mapping"))):
            raise ValueError(
                f"{found[0]} names a folder to write to, and an experiment writes into its own only; leave it out"
            )


def _methods(given: Any) -> dict[str, dict[str, Any]]:
    listed = isinstance(given, list | tuple) and all(isinstance(name, str) for name in given)
    named = dict.fromkeys(given) if listed else given
    if not isinstance(named, Mapping) or not named:
        raise ValueError(f"methods is {given!r}; expected a list of names or a mapping; known are {sorted(METHODS)}")
    methods = {}
    for name, content in named.items():
        if content is None and name not in METHODS:
            close = difflib.get_close_matches(str(name), METHODS, 1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"method {name!r} is unknown{hint}; known are {', '.join(METHODS)}")
        content = _of_type({} if content is None else content, Mapping, f"methods[{str(name)!r}]", "a mapping")
        _of_type(content.get("arguments", {}), Mapping, f"methods[{str(name)!r}].arguments", "a mapping")
        entry = {**METHODS.get(str(name), {}), **content}
        policy = _of_type(entry.get("policy", name), str, f"methods[{str(name)!r}].policy", "a name")
        if policy not in METHODS and ":" not in str(policy):
            raise ValueError(
                f"policy {policy!r} of method {name!r} is unknown; known are {', '.join(METHODS)}, and module:function"
            )
        known = METHODS.get(str(policy), {}).get("arguments", {})
        unknown = sorted(set(entry) - {"policy", "arguments"})
        if unknown:
            raise ValueError(f"method {name!r} has the unknown entries {unknown}; known are policy and arguments")
        methods[str(name)] = {"policy": str(policy), "arguments": {**known, **entry.get("arguments", {})}}
    if any(not _is_file_name(name) for name in methods) or "full" in methods:
        raise ValueError(f"methods are {list(methods)}; names are of letters, digits, _, + and -, and not 'full'")
    return methods


def _is_file_name(name: str) -> bool:
    return bool(name) and all(c.isalnum() or c in "_+-" for c in name)


def _made(kind: type[T], content: Any, where: str) -> T:
    _check_keys(_of_type(content, Mapping, where, "a mapping"), kind, where)
    _check_types(content, kind, where)
    return kind(**content)


def _check_types(content: Mapping[str, Any], kind: type, where: str) -> None:
    """Compare plain values with the annotations of a dataclass's fields; a whole number will do for a number."""
    for name, hint in get_type_hints(kind).items():
        if name not in content:
            continue
        choices = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        types = tuple(get_origin(choice) or choice for choice in choices)
        value = content[name]
        fits = type(value) in types or (type(value) is int and float in types)
        if not fits and not (isinstance(value, dict) and Mapping in types):
            expected = " or ".join("nothing" if t is type(None) else t.__name__.lower() for t in types)
            raise ValueError(f"{where}.{name} is {value!r}; expected {expected}")


def _check_keys(content: Mapping[str, Any], kind: type, where: str) -> None:
    known = [each.name for each in fields(kind)]
    unknown = [str(name) for name in content if name not in known]
    if unknown:
        raise ValueError(f"{where} has the unknown entries {unknown}; known are {', '.join(known)}")


def _of_type(value: Any, kind: type, where: str, expected: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{where} is {value!r}; expected {expected}")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
