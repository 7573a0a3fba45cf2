"""Mistakes in the arguments of environments and agents, found before anything runs.

:func:`mistakes` needs no data: it constructs each environment's settings, and each agent on a dummy environment with
the same spaces. :func:`check_data` builds the environments themselves.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from pydantic import ConfigDict, TypeAdapter, ValidationError

from agents import SubActionDQN
from al_seg_env import registration
from al_seg_env.config import EnvConfig
from al_seg_env.datasets.splits import Splits
from al_seg_env.env import RegionSelectionEnv
from al_seg_env.learner.building import LearnerConfig
from al_seg_env.registration import ENV_OPTIONS, LEARNER_OPTIONS, environment_spec, named_scores
from al_seg_env.storage.comparison import differences
from al_seg_env.storage.validation import close_match
from al_seg_experiment.experiment import LEARNT, METHODS, Experiment, Method, Query, Stage, Variant, check_learning
from al_seg_experiment.pieces import experiment_of, pieces
from al_seg_experiment.policies import policy_function

NOT_DATA = ("splits", "image_size", "images", "cache", "render_mode")
"""Arguments of the ids' own that show the same images: another choice, size or number of them."""
OPTIONS = {
    "scores": list[str],
    "bald_samples": int,
    "render_mode": str | None,
    "cache": str | None,
    "forecast": str | None,
}
"""What the ids take besides their own arguments and the settings of environment and learner."""
FOLDERS = ("cache", "tensorboard_log")
"""Arguments that name a place to write to: an experiment writes into its own folder, whoever wrote its file."""
GIVEN = ("self", "policy", "env", "seed", "tensorboard_log", "_init_setup_model")
"""Arguments of the agent that are not the experiment file's to give."""


@dataclass(frozen=True)
class _Place:
    """An environment that the experiment builds.

    Attributes:
        where: The entry that it comes from.
        env: Its id.
        given: The arguments of that entry.
        arguments: All of its arguments.
        fixed: Arguments that the protocol sets itself, and why.
    """

    where: str
    env: str
    given: Mapping[str, Any]
    arguments: Mapping[str, Any]
    fixed: Mapping[str, str]


def mistakes(experiment: Experiment) -> list[str]:
    """Return a line for each mistake that can be found without the data."""
    found: dict[str, None] = {}
    told: set[str] = set()
    checked: set[str] = set()

    def add(where: str, messages: Iterator[str], *checks: object) -> None:
        if checks:  # what the messages follow from, which many places share
            if repr(checks) in checked:
                return
            checked.add(repr(checks))
        for message in messages:
            if message not in told:  # the experiment's own arguments are in those of all its environments
                told.add(message)
                found[f"{where}: {message}"] = None

    add("variants", _unnamed(experiment))
    add("query", _episodes(experiment.query))
    places = list(_places(experiment))
    for place in places:
        add(place.where, _fixed(place))
        add(place.where, _environment(place.env, place.arguments), place.env, place.arguments)
        add(place.where, _forecast(experiment, place))
        add(place.where, _budget_unit(place))
    if experiment.forecast is not None and not any(map(_names_forecast, places)):
        add("forecast", iter(["no region_features names 'forecast', which its networks are for; add it, or omit them"]))
    for where, part in _variants(experiment):
        for name, method in part.methods.items():
            add(f"{where}methods[{name!r}]", _method(part, method))
        for entry in ("theta_0", "query_theta_0"):
            for number, stage in enumerate(getattr(part, entry)):
                add(f"{where}{entry}[{number}]", _images(part, stage, entry))
        add(f"{where}budgets", _budgets(part))
    if not found and experiment.learnt_methods:
        for where, part in _variants(experiment):
            queries = {"query": part.query}
            queries |= {f"methods[{name!r}]": part.query_of(name) for name in part.learnt_methods}
            for name, query in queries.items():
                add(f"{where}{name}.agent", _agent(part, query), part.arguments, query)
    return list(found)


def _unnamed(experiment: Experiment) -> Iterator[str]:
    """Yield a message if the variant without a name has settings: theta_0 that all variants share would have them."""
    if experiment.variants.get("", Variant()) != Variant():
        yield "the one without a name has settings; give it a name, or set the experiment's own entries"


def _episodes(query: Query) -> Iterator[str]:
    if query.episodes % query.envs:
        yield f"episodes is {query.episodes}; expected a multiple of envs ({query.envs}), which play side by side"


def refusal(found: Sequence[str]) -> ValueError:
    """Return the error that lists mistakes."""
    if len(found) == 1:
        return ValueError(found[0])
    return ValueError("\n  ".join([f"the experiment has {len(found)} mistakes:", *found]))


def _variants(experiment: Experiment) -> Iterator[tuple[str, Experiment]]:
    """Yield each variant's experiment, and the prefix of its entries' names."""
    for name in experiment.variants:
        yield f"variants[{name!r}]: " if name else "", experiment.of_variant(name)


def _places(experiment: Experiment) -> Iterator[_Place]:
    split = {
        "split": "the protocol acquires from D_T in training and from D_V in evaluation",
        "forecast": "the experiment trains the networks of that feature itself, where it has the entry forecast",
    }
    weights = {**split, "weights": "theta_0 is what the stages of theta_0 and query_theta_0 make"}
    base = experiment.arguments
    yield _Place("arguments", experiment.env, base, base, split)
    for where, part in _variants(experiment):
        changed = {name: value for name, value in part.arguments.items() if base.get(name, base) != value}
        yield _Place(f"{where}arguments", part.env, changed, part.arguments, split)
        for entry in ("theta_0", "query_theta_0"):
            for number, stage in enumerate(getattr(part, entry)):
                yield _Place(f"{where}{entry}[{number}].arguments", *_of_stage(part, stage), split)
        query = part.query.arguments
        yield _Place(f"{where}query.arguments", part.env, query, {**part.arguments, **query}, weights)
        for name, method in part.methods.items():
            arguments = method.arguments
            fixed = {**weights, "budget": "the experiment's budgets say how many regions are labelled"}
            of_data = _own_parameters(part.env).keys() - {
                *ENV_OPTIONS,
                *LEARNER_OPTIONS,
                *OPTIONS,
            }  # it may add to scores
            fixed |= dict.fromkeys(of_data, "methods are compared on the same images")
            given = {name: value for name, value in arguments.items() if part.arguments.get(name, base) != value}
            place = f"{where}methods[{name!r}].arguments"
            yield _Place(place, part.env, given, {**part.arguments, **arguments}, fixed)


def _of_stage(experiment: Experiment, stage: Stage) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    env, arguments = experiment.source(stage)
    return env, stage.arguments, arguments


def _fixed(place: _Place) -> Iterator[str]:
    for name in place.given:
        if name in FOLDERS:
            yield f"{name} names a folder to write to, and an experiment writes into its own only; omit it"
        elif name in place.fixed:
            yield f"{name} can't be given here, since {place.fixed[name]}; omit it"


def _budget_unit(place: _Place) -> Iterator[str]:
    unit = place.arguments.get("budget_unit", "regions")
    if unit != "regions":
        yield f"budget_unit is {unit!r}; expected 'regions', in which an experiment counts its budgets"


def _own_parameters(env: str) -> dict[str, inspect.Parameter]:
    """Return the arguments that an id itself declares; empty if it is unknown."""
    try:
        parameters = inspect.signature(_creator(env)).parameters
    except (gym.error.Error, ImportError, AttributeError, TypeError, ValueError):
        return {}
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: parameter for name, parameter in parameters.items() if parameter.kind not in kinds}


def _takes_options(env: str) -> bool:
    """Return whether an id is one of al_seg_env's, which accept the settings of environment and learner."""
    return getattr(_creator(env), "__module__", None) == registration.__name__


@cache
def _creator(env: str) -> Any:
    entry_point = environment_spec(env).entry_point
    return load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point


def _names_forecast(place: _Place) -> bool:
    named = place.arguments.get("region_features")
    return isinstance(named, list) and "forecast" in named


def _forecast(experiment: Experiment, place: _Place) -> Iterator[str]:
    if experiment.forecast is None and _names_forecast(place):
        yield "region_features names 'forecast'; add the entry forecast, or omit the feature"


def _environment(env: str, arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the arguments of an environment."""
    try:
        creator = _creator(env)
        hints = _hints(creator)
    except (gym.error.Error, ImportError, AttributeError, TypeError, ValueError, NameError) as error:
        yield f"env is {env!r}; expected a registered environment ({error})"
        return
    parameters = _own_parameters(env)
    missing = [name for name, each in parameters.items() if each.default is each.empty and name not in arguments]
    if missing:
        yield f"{env} needs {', '.join(missing)}; give {'it' if len(missing) == 1 else 'them'} in arguments"
    takes_options = _takes_options(env)
    options = ENV_OPTIONS | LEARNER_OPTIONS | set(OPTIONS) if takes_options else set()
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(creator).parameters.values())
    for name in arguments:
        known = sorted(set(parameters) | options)
        if name not in known and (takes_options or not takes_any):
            yield f"unknown argument {name!r}{close_match(name, known)}; known are {', '.join(known)}"
    yield from dict(_of_type(arguments, {name: hints[name] for name in parameters if name in hints})).values()
    if takes_options:
        yield from _options(arguments)


def _options(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the settings of an environment and its learner."""
    for settings, names in ((EnvConfig, ENV_OPTIONS), (LearnerConfig, LEARNER_OPTIONS)):
        given = {name: value for name, value in arguments.items() if name in names}
        wrong = dict(_of_type(given, _hints(settings)))
        yield from wrong.values()
        fitting = {name: value for name, value in given.items() if name not in wrong}
        yield from _refused(lambda settings=settings, fitting=fitting: settings(**fitting))
    wrong = dict(_of_type(arguments, OPTIONS))
    yield from wrong.values()
    if not wrong:
        samples = arguments.get("bald_samples", 20)
        yield from _refused(lambda: named_scores(arguments.get("scores", ()), samples))


def _of_type(arguments: Mapping[str, Any], hints: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the arguments that do not have their declared type, as in json, and what is wrong."""
    for name, hint in hints.items():
        if name in arguments:
            try:
                _adapter(hint).validate_json(json.dumps(arguments[name]))
            except ValidationError as error:
                expected = " or ".join(dict.fromkeys(each["msg"] for each in error.errors(include_url=False)))
                yield name, f"{name} is {arguments[name]!r}; {expected.replace('Input should be', 'expected')}"


@cache
def _hints(declared: Any) -> dict[str, Any]:
    return get_type_hints(declared)


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=ConfigDict(strict=True, arbitrary_types_allowed=True))


def _refused(make: Any) -> Iterator[str]:
    """Yield why something can't be made from arbitrary plain values."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make()
    except Exception as error:
        yield str(error) or type(error).__name__


def _method(experiment: Experiment, method: Method) -> Iterator[str]:
    policy = method.policy
    if method.agent and policy != LEARNT:
        yield f"policy {policy!r} is not trained, so it has no agent; omit agent, or choose the policy {LEARNT!r}"
    needed = METHODS.get(policy, {}).get("arguments", {}).get("scores", [])
    scores = {**experiment.arguments, **method.arguments}.get("scores", [])
    for score in needed:
        if not isinstance(scores, list) or score not in scores:
            yield f"policy {policy!r} reads the score {score!r}; scores is {scores!r}: add it, or omit scores"
    features = {**experiment.arguments, **method.arguments}.get("region_features", [])
    if policy == "forecast_rarity" and not (isinstance(features, list) and "forecast" in features):
        yield f"policy {policy!r} reads the feature 'forecast'; region_features is {features!r}: add it"


def _images(experiment: Experiment, stage: Stage, entry: str) -> Iterator[str]:
    """Yield why a stage must not train on its images."""
    env, arguments = experiment.source(stage)
    data = _data_arguments(env, arguments)
    if env.rpartition(":")[2] != experiment.env.rpartition(":")[2] or data != _data_arguments(
        env, experiment.arguments
    ):
        return  # other data: none of its images are the experiment's
    allowed = {"theta_0": ("state", "train"), "query_theta_0": ("state",)}[entry]
    why = {
        "theta_0": "D_V is what is acquired from",
        "query_theta_0": "the agent is trained on D_T and evaluated on D_V, whose labels would be no news",
    }[entry]
    if stage.images not in allowed:
        shown = " or ".join(map(repr, allowed))
        yield f"images is {stage.images!r}; expected {shown} of the experiment's own data: {why}"
    for name in ("splits", "images"):
        if arguments.get(name) != experiment.arguments.get(name):
            yield (
                f"{name} differ from the experiment's own, so that other images would be drawn, and those of D_R, D_V "
                "or the test set trained on"
            )


def _data_arguments(env: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of an environment's arguments that identify its data, with normalised paths."""
    parameters = _own_parameters(env)
    named = {name: parameters[name].default for name in parameters if name not in NOT_DATA}
    named.update({name: value for name, value in arguments.items() if name in named})
    return {
        name: str(Path(value).resolve()) if name == "root" and isinstance(value, str) else value
        for name, value in named.items()
    }


def _budgets(experiment: Experiment) -> Iterator[str]:
    """Yield the budgets that fall into the same step, if K is in the file."""
    for name, method in experiment.methods.items():
        step = {**experiment.arguments, **method.arguments}.get("regions_per_step")
        if isinstance(step, int) and not isinstance(step, bool) and step > 0:
            yield from equal_budgets(experiment.budgets, step, name)


def equal_budgets(budgets: tuple[int, ...], step: int, method: str) -> Iterator[str]:
    """Yield the budgets that an episode reaches with the same step; only the largest may end within a step."""
    reached = [min(-(-budget // step) * step, budgets[-1]) for budget in budgets]
    for before, budget, here, there in zip(budgets, budgets[1:], reached, reached[1:], strict=False):
        if here == there:
            yield (
                f"{before} and {budget} are both reached with {here} regions, of which the method {method!r} labels "
                f"{step} in a step; give budgets that are multiples of {step}"
            )


class _Spaces(gym.Env[Any, Any]):
    """The spaces of an environment and nothing else: enough to construct an agent."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        pools = 2
        shapes: dict[str, tuple[int, ...]] = {"state": (2, 3), "candidates": (pools, 2, 3)}
        if arguments.get("similarity", EnvConfig.similarity):
            shapes["similarity"] = (pools, 2, 2)
        shapes.update({f"score_{name}": (pools, 2) for name in arguments.get("scores", ())})
        boxes = [(name, spaces.Box(0.0, 1.0, shape, np.float32)) for name, shape in shapes.items()]
        self.observed = tuple(shapes)
        self.observation_space = spaces.Dict(boxes)
        self.action_space = spaces.MultiDiscrete([2] * pools)

    def feature_columns(self, name: str) -> slice:
        """Stand for :meth:`al_seg_env.RegionSelectionEnv.feature_columns`."""
        return slice(0, 2)


def _agent(experiment: Experiment, query: Query) -> Iterator[str]:
    """Yield what is wrong with the arguments of the agent, by constructing it."""
    known = [name for name in inspect.signature(SubActionDQN).parameters if name not in GIVEN]
    known += ["epsilon_steps", "learning_rate_decay"]
    unknown = [name for name in query.agent if name not in known]
    for name in unknown:
        if name in FOLDERS:
            yield f"{name} names a folder to write to, and an experiment writes into its own only; omit it"
        else:
            yield f"unknown argument {name!r}{close_match(name, known)}; known are {', '.join(known)}"
    if unknown:
        return
    yield from _refused(lambda: check_learning(query.agent, query.refit))
    env = _Spaces({**experiment.arguments, **query.arguments})
    wrong = list(_refused(lambda: _made(query, env, {})))
    yield from wrong
    if query.refit is not None and not wrong:
        policy = {**(query.agent.get("policy_kwargs") or {}), **(query.refit.policy_kwargs or {})}
        yield from (f"query.refit: {each}" for each in _refused(lambda: _made(query, env, policy)))


def _made(query: Query, env: _Spaces, policy_kwargs: Mapping[str, Any]) -> None:
    arguments = query.agent_arguments(steps=query.episodes)
    arguments |= {"device": "cpu", **({"policy_kwargs": dict(policy_kwargs)} if policy_kwargs else {})}
    with torch.random.fork_rng(devices=[]):
        agent = SubActionDQN(query.policy, env, **arguments)
    unseen = [guide for guide in agent.guides if guide != "uniform" and guide not in env.observed]
    if unseen:
        seen = [name for name in env.observed if name.startswith("score_")]
        raise ValueError(
            f"guides names {unseen}, which the observation lacks; it holds {['uniform', *seen]}: add the score to "
            "query.arguments.scores"
        )


@dataclass(frozen=True)
class _Made:
    """The properties of an environment that are compared.

    Attributes:
        data: What identifies its images.
        splits: Its splits.
        classes: Names of the classes.
        image_size: ``(height, width)``.
        regions: Regions in an image.
        step: Regions labelled in a step.
        features: What an agent trained with it depends on: layout, and sizes without K and N.
    """

    data: Any
    splits: Splits
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    regions: int
    step: int
    features: dict[str, Any]


Make = Callable[[str, Mapping[str, Any]], _Made]


def check_data(experiment: Experiment) -> None:
    """Build every environment of an experiment, on the CPU, and compare them.

    Raises:
        ValueError: If data are missing or do not match; if a budget can't be reached; if the agent would be trained on
            images held out for evaluation; if a policy can't be imported. The error lists all problems. Nothing is
            built if there are :func:`mistakes`, as in an experiment that was not read from a file.
    """
    if wrong := mistakes(experiment):
        raise refusal(wrong)
    known: dict[str, _Made] = {}

    def make(env: str, arguments: Mapping[str, Any]) -> _Made:
        key = json.dumps([env, arguments], sort_keys=True)
        if key not in known:
            known[key] = _made_of(env, arguments)
        return known[key]

    found: dict[str, None] = {}
    for where, part in _variants(experiment):
        for message in _of_data(part, make):
            found[f"{where}{message}"] = None
    for piece in pieces(experiment):  # a theta_0 may be shared by variants
        if piece.kind in ("theta_0", "query_theta_0"):
            for message in _sources(experiment_of(experiment, piece), piece.kind, make):
                found[message] = None
    if found:
        raise refusal(list(found))


def _of_data(experiment: Experiment, make: Make) -> Iterator[str]:
    base = make(experiment.env, {**experiment.arguments, "split": "eval"})
    regions = len(base.splits.eval) * base.regions
    if not regions:
        yield "the data have no D_V (eval) to acquire from"
    elif experiment.budgets[-1] > regions:
        yield f"budgets: {experiment.budgets[-1]} regions are to be labelled, and D_V has {regions}"
    for name, method in experiment.methods.items():
        if ":" in method.policy:
            try:
                policy_function(method.policy)
            except ValueError as error:
                yield f"methods[{name!r}]: {error}"
        played = make(experiment.env, {**experiment.arguments, "split": "eval", **method.arguments})
        yield from (f"budgets: {each}" for each in equal_budgets(experiment.budgets, played.step, name))
    if experiment.forecast is not None:
        yield from _forecasting(experiment, experiment.forecast.networks, make)
    if experiment.learnt_methods:
        yield from _training(experiment, base, make)


def _sources(experiment: Experiment, entry: str, make: Make) -> Iterator[str]:
    """Compare the images that theta_0 is trained on with those of the experiment."""
    target = make(experiment.env, experiment.arguments)
    for number, stage in enumerate(getattr(experiment, entry)):
        source = make(*experiment.source(stage)) if stage.env or stage.arguments else target
        if (source.classes, source.image_size) != (target.classes, target.image_size):
            yield (
                f"{entry}[{number}]: its images are {source.image_size} of {list(source.classes)}, and the "
                f"experiment's are {target.image_size} of {list(target.classes)}; they must be the same"
            )


def _forecasting(experiment: Experiment, networks: int, make: Make) -> Iterator[str]:
    """Compare the images that the forecasting networks are trained on with those that the agent is trained on."""
    splits = make(experiment.env, {**experiment.arguments, "split": "eval"}).splits
    if networks > len(splits.train):
        yield f"forecast.networks is {networks}; expected at most one for each of the {len(splits.train)} images of D_T"
    if experiment.learnt_methods:
        arguments = {**experiment.arguments, **experiment.query.arguments, "split": "train"}
        trained = make(experiment.env, arguments).splits
        if {*splits.state, *splits.train} - {*trained.state, *trained.train} or {*splits.state} & {*trained.train}:
            yield (
                "query.arguments: its splits differ from the experiment's, on whose D_S and D_T the networks of the "
                "forecast are trained; omit them"
            )


def _training(experiment: Experiment, base: _Made, make: Make) -> Iterator[str]:
    """Compare the environment in which the agent is trained with those that it is evaluated in."""
    trained = make(experiment.env, {**experiment.arguments, **experiment.query.arguments, "split": "train"})
    if not trained.splits.train:
        yield "query: the data have no D_T (train) to train the agent on"
    seen = {*trained.splits.state, *trained.splits.train, *trained.splits.reward}
    if trained.data == base.data and seen & {*base.splits.eval, *base.splits.test}:
        yield "query.arguments: its splits train the agent on images of the experiment's D_V or test set"
    for name in experiment.learnt_methods:
        arguments = experiment.methods[name].arguments
        played = make(experiment.env, {**experiment.arguments, "split": "eval", **arguments})
        if differing := differences(trained.features, played.features):
            yield (
                f"query.arguments: the agent would be trained (there) with other features than it plays {name!r} with "
                f"(here): {'; '.join(differing)}"
            )


def _made_of(env: str, arguments: Mapping[str, Any]) -> _Made:
    quick: dict[str, Any] = {}  # nothing is measured or compared
    if _takes_options(env):
        quick = {"device": "cpu", "precision": "float32", "channels_last": False, "fold_batchnorm": False}
    try:
        made = gym.make(env, **{**arguments, **quick}).unwrapped
    except (TypeError, gym.error.Error) as error:
        raise ValueError(f"env {env!r} can't be made: {error}") from error
    if not isinstance(made, RegionSelectionEnv):
        raise ValueError(f"env {env!r} is a {type(made).__name__}; expected one of al_seg_env's")
    sizes = {"state": slice(0, 2), "similarity": slice(2, 3), "candidates": slice(2, 3)}  # without K and N
    shapes = {name: space.shape or () for name, space in made.observer.space.items()}
    features = {name: list(shapes[name][part]) for name, part in sizes.items() if name in shapes}
    return _Made(
        getattr(made.data, "fingerprint", id(made.data)),
        made.splits,
        tuple(made.data.classes),
        made.grid.image_size,
        made.grid.regions_per_image,
        made.config.regions_per_step,
        {**features, **made.layout},
    )
