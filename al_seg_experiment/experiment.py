"""The definition of an experiment: a small declarative file, as pydantic models with checks and a schema."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from agents import ExponentialRate, LinearEpsilon
from al_seg_env.learner.fitting import FitSettings
from al_seg_env.registration import ENV_OPTIONS
from al_seg_env.storage.validation import LARGEST_BATCH, LARGEST_NUMBER, check, check_int, close_match

if TYPE_CHECKING:
    JsonValue = Any  # the union of all that json has would have to be narrowed wherever an argument is passed on
else:
    from pydantic import JsonValue

T = TypeVar("T")

MOST = 2**31 - 1  # of what is counted; also the largest seed that torch, NumPy and Stable-Baselines3 all take
LONGEST_NAME = 100  # bytes of UTF-8, so that a folder's name with a prefix and a seed fits every file system

METHODS: dict[str, dict[str, Any]] = {
    "uniform": {"policy": "uniform"},
    "entropy": {"policy": "entropy", "arguments": {"scores": ["entropy"]}},
    "bald": {"policy": "bald", "arguments": {"scores": ["bald"]}},
    "margin": {"policy": "margin", "arguments": {"scores": ["margin"]}},
    "balanced_margin": {"policy": "balanced_margin", "arguments": {"scores": ["balanced_margin"]}},
    "power_margin": {"policy": "power_margin", "arguments": {"scores": ["margin"]}},
    "ripu": {"policy": "ripu", "arguments": {"scores": ["ripu"]}},
    "clasp": {"policy": "clasp", "arguments": {"region_features": ["class_entropy"]}},
    "foreground": {"policy": "foreground", "arguments": {"scores": ["foreground"]}},
    "rarity": {"policy": "rarity", "arguments": {"scores": ["rarity"]}},
    "rarity_entropy": {"policy": "rarity_entropy", "arguments": {"scores": ["rarity_entropy"]}},
    "location_entropy": {"policy": "location_entropy", "arguments": {"scores": ["location_entropy"]}},
    "rarity_regression": {"policy": "rarity_regression"},
    "forecast_rarity": {"policy": "forecast_rarity"},
    "rare": {"policy": "rare", "arguments": {"scores": ["privileged_rarity"]}},
    "greedy": {"policy": "greedy", "arguments": {"scores": ["privileged_rarity"]}},
    "dqn": {"policy": "dqn"},
}
"""The methods known by name: a policy, and arguments of its environment."""

SHARED = ("cache", "device")
"""Arguments of the experiment's environment that also apply to stages on another environment's data."""

LEARNT = "dqn"
"""The policy that is trained before it is compared."""


def _listed(value: Any) -> Any:
    """Return the value with lists instead of tuples, as in JSON."""
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def _different(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(values)) != len(values):
        raise ValueError("expected different numbers, each of them once")
    return values


def _is_name(name: str, others: str) -> bool:
    return all(c.isalnum() or c in others for c in name) and 0 < len(name.encode("utf-8", "replace")) <= LONGEST_NAME


def _reference(name: str) -> str:
    if name not in METHODS or name == LEARNT:
        raise ValueError(f"expected one of {', '.join(each for each in METHODS if each != LEARNT)}")
    return name


def _experiment_name(name: str) -> str:
    if not _is_name(name, " _+-.=,()[]") or name.startswith(".") or name != name.strip():
        raise ValueError(
            "it names a folder within runs/; expected letters, digits, spaces and _ + - . = , ( ) [ ], "
            f"no dot or space first, and at most {LONGEST_NAME} bytes"
        )
    return name


def _method_name(name: str) -> str:
    if not _is_name(name, "_+-") or name == "full":
        raise ValueError(
            f"names of methods consist of letters, digits, _, + and -, at most {LONGEST_NAME} bytes; 'full' is "
            "reserved for full supervision"
        )
    return name


def _variant_name(name: str) -> str:
    if not name.isprintable() or len(name.encode("utf-8", "replace")) > LONGEST_NAME // 2 or name != name.strip():
        raise ValueError(f"names of variants are printable, at most {LONGEST_NAME // 2} bytes, no space around them")
    return name


def _nothing_is_the_default(value: Any) -> Any:
    return {} if value is None else value


def _named_methods(value: Any) -> Any:
    """Turn a list of names into a mapping, and fill in the settings of known methods."""
    if isinstance(value, list | tuple):
        if not all(isinstance(name, str) for name in value) or len(set(value)) != len(value):
            raise ValueError(f"expected different names from {', '.join(METHODS)}, or a mapping")
        value = dict.fromkeys(value)
    if not isinstance(value, Mapping):
        return value
    methods = {}
    for name, entry in value.items():
        if entry is None and name not in METHODS:
            raise ValueError(f"method {name!r} is unknown{close_match(name, METHODS)}; known are {', '.join(METHODS)}")
        if entry is None or isinstance(entry, Mapping):
            entry = {"policy": name, **METHODS.get(name, {}), **(entry or {})}
            needed = METHODS.get(entry["policy"], {}).get("arguments", {}) if isinstance(entry["policy"], str) else {}
            if isinstance(given := entry.get("arguments", {}), Mapping):
                entry["arguments"] = {**needed, **given}
        methods[name] = entry
    return methods


def _named_variants(value: Any) -> Any:
    if isinstance(value, list | tuple):  # one that selects from a preset's has become a mapping
        raise ValueError("expected a mapping; a list of different names selects from the variants of a preset")
    return {"": {}} if value is None or value == {} else value


def agent_arguments(settings: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Return the arguments of :class:`agents.SubActionDQN` for a training of this many environment steps.

    Args:
        settings: Its arguments; ``epsilon_steps`` among them is a linear decay of the exploration from 1 to 0.05 over
            that many environment steps, ``learning_rate_decay`` a factor on the learning rate per step.
        steps: Environment steps of the whole training.
    """
    arguments = dict(settings)
    if {"epsilon", "epsilon_steps"} <= set(arguments):
        raise ValueError("epsilon and epsilon_steps both set how the agent explores; keep one of them")
    if (decayed := arguments.pop("epsilon_steps", None)) is not None:
        arguments["epsilon"] = LinearEpsilon(1.0, 0.05, check_int("epsilon_steps", decayed, 1))
    if (decay := arguments.pop("learning_rate_decay", None)) is not None:
        arguments["learning_rate"] = ExponentialRate(arguments.get("learning_rate", 1e-3), decay, steps)
    return arguments


def check_learning(settings: Mapping[str, Any], refit: object) -> None:
    """Raise a ValueError if an agent with these arguments would play through its training without learning."""
    learns = settings.get("gradient_steps") != 0 or settings.get("credit") == "class_rewards"
    check("gradient_steps", 0, bool(refit) or learns, "at least 1, or a refit at the end: nothing would be learnt")


Count = Annotated[int, Field(ge=1, le=MOST)]
Seed = Annotated[int, Field(ge=0, le=MOST)]
Batch = Annotated[int, Field(ge=1, le=LARGEST_BATCH)]
Rate = Annotated[float, Field(gt=0, le=LARGEST_NUMBER, allow_inf_nan=False)]
Several = Annotated[tuple[T, ...], Field(strict=False, min_length=1)]  # a list, too: JSON has no tuples
Pixels = Annotated[tuple[Count, Count], Field(strict=False)]
Arguments = Annotated[dict[str, JsonValue], BeforeValidator(_listed)]
Budgets = Annotated[Several[Count], AfterValidator(_different), AfterValidator(lambda values: tuple(sorted(values)))]


Reference = Annotated[str, AfterValidator(_reference)]


class Entry(BaseModel):
    """A part of an experiment's file: unknown entries and values of other types are refused."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class Stage(Entry):
    """One training of theta_0 on whole labelled images."""

    env: str | None = None
    """Registered environment whose data to train on; the experiment's if omitted."""
    arguments: Arguments = Field(default_factory=dict)
    """Its arguments, overriding the experiment's."""
    images: Literal["state", "train", "eval", "all"] = "train"
    """``"state"`` (D_S) or ``"train"`` (D_T). With data other than the experiment's also ``"eval"`` (D_V), or
    ``"all"`` three."""
    epochs: Count = 60
    """Most epochs."""
    patience: Count = 10
    """Epochs without a better mean IoU on D_R before the stage ends."""
    updates: Count = 10
    """Fewest updates per epoch."""
    early_stopping: bool = True
    """If false: ``epochs`` times ``updates`` updates with a one-cycle learning rate schedule, whose last weights are
    kept."""
    batch_size: Batch = 16
    """Crops per update."""
    learning_rate: Rate | None = None
    """Learning rate of this stage, or the highest of its cycle; the environment's if omitted."""

    @model_validator(mode="after")
    def _tell_what_is_idle(self) -> Stage:
        if not self.early_stopping and self.patience != type(self).model_fields["patience"].default:
            warnings.warn("patience has no effect, since early_stopping is false; omit it", stacklevel=2)
        return self


def source_of(stage: Stage, env: str, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return id and arguments of the environment whose images a stage trains on.

    Args:
        stage: The stage.
        env: Id of the environment whose theta_0 is trained.
        arguments: Its arguments.
    """
    source = stage.env or env
    kept = {name: value for name, value in arguments.items() if source == env or name in SHARED}
    return source, {**kept, **stage.arguments}


class ForecastTraining(Entry):
    """Training of the networks that the feature ``"forecast"`` needs.

    See :func:`~al_seg_experiment.train_forecast`.
    """

    networks: Annotated[int, Field(ge=2, le=100)] = 5
    """Networks; each is trained without one of as many parts of D_T."""
    updates: Count = 400
    """Updates of each, at a rate that rises and decays in one cycle."""
    batch_size: Batch = 16
    """Images in an update."""
    learning_rate: Rate = 0.1
    """The highest of the cycle."""


class Refit(Entry):
    """Refit the trained agent's network, from scratch, to its replay.

    See :meth:`~agents.dqn.dqn.SubActionDQN.refit`.
    """

    gradient_steps: Count
    """Gradient steps."""
    policy_kwargs: Arguments | None = None
    """Arguments of the policy that replace its own, such as ``optimizer_kwargs``."""


class Query(Entry):
    """How the query agent is trained on D_T, with a small fixed budget (section 4.1)."""

    episodes: Count = 100
    """Number of episodes."""
    arguments: Arguments = Field(default_factory=dict)
    """Arguments of the environment, overriding the experiment's, such as ``budget``."""
    policy: Literal["QueryPolicy", "CandidatePolicy"] = "QueryPolicy"
    """The paper's query network, or a small one that only sees candidates."""
    agent: Arguments = Field(default_factory=dict)
    """Arguments of :class:`agents.SubActionDQN`, such as ``gamma``; ``epsilon_steps`` for a linear decay of the
    exploration from 1 to 0.05 over that many environment steps; ``learning_rate_decay`` for a factor per step."""
    refit: Refit | None = None
    """Refit the agent's network at the end."""
    references: Annotated[tuple[Reference, ...], Field(strict=False)] = ()
    """Heuristics that play five episodes each on D_T before training, to compare with the learning curve."""
    per_seed: bool = True
    """Whether to train one agent per seed, or one for all seeds."""
    checkpoint_every: Count | None = None
    """Environment steps between checkpoints. If omitted, one episode, or more where writing them would take more than
    a twentieth of the time."""
    envs: Annotated[int, Field(ge=1, le=1024)] = 1
    """Number of parallel environments, each in its own process."""

    def agent_arguments(self, steps: int) -> dict[str, Any]:
        """Return the arguments of :class:`agents.SubActionDQN` for a training of this many environment steps."""
        return agent_arguments(self.agent, steps)


class Convergence(Entry):
    """Training to convergence: see :class:`~al_seg_env.learner.fitting.FitSettings`."""

    crop_size: Pixels | None = FitSettings.crop_size
    """``[height, width]`` of a training crop; null for whole images."""
    batch_size: Batch = FitSettings.batch_size
    """Crops per update."""
    patience: Count = FitSettings.patience
    """Epochs without a better mean IoU on D_R before it stops."""
    max_epochs: Count = FitSettings.max_epochs
    """Most epochs."""
    min_updates: Count = FitSettings.min_updates
    """Fewest updates per epoch."""
    updates: Count | None = FitSettings.updates
    """Updates from theta_0, without early stopping, instead of epochs."""
    replay: Annotated[float, Field(ge=0, lt=1)] = FitSettings.replay
    """With ``updates``: share of each batch that comes from images labelled before the episode."""
    learning_rate: Rate = FitSettings.learning_rate
    """With ``updates``: the highest learning rate of the cycle."""
    fits: Count = FitSettings.fits
    """With ``updates``: fits whose weights are averaged."""

    @property
    def settings(self) -> FitSettings:
        """These settings for :func:`~al_seg_env.learner.fitting.fit_to_convergence`."""
        return FitSettings(**dict(self))


class Method(Entry):
    """A policy and the arguments of its environment."""

    policy: str
    """A known name, or ``module:function`` of a function that takes environment and seed, and returns an object with
    the ``predict`` of Stable-Baselines3."""
    arguments: Arguments = Field(default_factory=dict)
    """Arguments of the environment, overriding the experiment's."""
    agent: Arguments = Field(default_factory=dict)
    """For the policy ``"dqn"``: arguments of the agent, overriding those of ``query.agent``. If there are any,
    the method has its own agents."""

    @field_validator("policy")
    @classmethod
    def _check_policy(cls, policy: str) -> str:
        module, separator, function = policy.partition(":")
        importable = separator and all(part.isidentifier() for part in (*module.split("."), function))
        if policy not in METHODS and not importable:
            known = f"known are {', '.join(METHODS)}, and module:function"
            raise ValueError(f"policy {policy!r} is unknown{close_match(policy, METHODS)}; {known}")
        return policy


class Variant(Entry):
    """A setting to compare with others (appendix E)."""

    arguments: Arguments = Field(default_factory=dict)
    """Arguments of the environment, overriding the experiment's."""
    agent: Arguments = Field(default_factory=dict)
    """Arguments of the agent, overriding those of ``query.agent``."""
    budgets: Budgets | None = None
    """Regions labelled, if regions have another size; the experiment's if omitted."""

    @property
    def shares_theta_0(self) -> bool:
        """Whether theta_0 is that of the experiment, since data, network and crops are the same."""
        return set(self.arguments) <= ENV_OPTIONS - {"crop_size"}


class Experiment(Entry):
    """The paper's comparison (section 4), in plain values.

    ``Experiment.model_json_schema()`` describes it to editors; :func:`~al_seg_experiment.load_experiment` reads it
    from a file, and finds more mistakes: those in the arguments of environments and agents.
    """

    name: Annotated[str, AfterValidator(_experiment_name)]
    """Used in titles; results go to ``runs/NAME`` by default."""
    env: str = "al_seg_env/SyntheticStreets-v0"
    """Registered environment."""
    arguments: Arguments = Field(default_factory=dict)
    """Its arguments."""
    methods: Annotated[
        dict[Annotated[str, AfterValidator(_method_name)], Method],
        BeforeValidator(_named_methods, json_schema_input_type=list[str] | dict[str, Method | None]),
        Field(min_length=1),
    ] = Field(default={"uniform": Method(policy="uniform")})
    """Known methods by name, or a mapping from a name to ``{policy, arguments}``."""
    seeds: Annotated[Several[Seed], AfterValidator(_different)] = (0, 1, 2, 3, 4)
    """One trial of each method per seed."""
    budgets: Budgets = (48, 96)
    """Regions labelled; all but the largest are rounded up to multiples of K, and must still differ then. Budget 0,
    theta_0 itself, is always included."""
    theta_0: Annotated[tuple[Stage, ...], Field(strict=False)] = (Stage(),)
    """Stages of pretraining for evaluation, one after another."""
    query_theta_0: Annotated[tuple[Stage, ...], Field(strict=False)] = (Stage(images="state"),)
    """The same for training the query agent. D_T must not be among their images: its labels would teach the network
    nothing new."""
    forecast: ForecastTraining | None = None
    """Training of the networks that the feature ``"forecast"`` needs, where it is among ``region_features``."""
    query: Query = Query()
    """Training of the agent."""
    fit: Convergence = Convergence()
    """Training to convergence at each budget."""
    full: bool | Annotated[int, Field(ge=0, le=MOST)] = True
    """Number of seeds with which to also train on all labels of D_V, for the line of full supervision; true for all."""
    variants: Annotated[
        dict[
            Annotated[str, AfterValidator(_variant_name)], Annotated[Variant, BeforeValidator(_nothing_is_the_default)]
        ],
        BeforeValidator(_named_variants, json_schema_input_type=dict[str, Variant | None] | list[str] | None),
    ] = Field(default={"": Variant()})
    """Named settings to compare (appendix E); a list of names selects from those of a preset."""
    cache: bool = False
    """Keep decoded images as memory-mapped files in the experiment's folder, for data larger than memory."""
    cpus: Annotated[float, Field(ge=0, le=MOST)] = 1
    """CPU cores that a piece needs on a Ray cluster."""
    gpus: Annotated[float, Field(ge=0, le=MOST)] = 0
    """GPUs that a piece needs on a Ray cluster."""

    @property
    def learnt_methods(self) -> tuple[str, ...]:
        """The methods that play a trained agent."""
        return tuple(name for name, method in self.methods.items() if method.policy == LEARNT)

    def query_of(self, method: str) -> Query:
        """Return how a method's agents are trained; for an empty name, the experiment's default."""
        agent = self.methods[method].agent if method else {}
        return self.query.model_copy(update={"agent": {**self.query.agent, **agent}})

    def of_variant(self, name: str) -> Experiment:
        """Return the experiment with a variant's settings, and no other variant."""
        variant = self.variants[name]
        query = self.query.model_copy(update={"agent": {**self.query.agent, **variant.agent}})
        return self.with_arguments(variant.arguments).model_copy(
            update={"query": query, "budgets": variant.budgets or self.budgets, "variants": {"": Variant()}}
        )

    def with_arguments(self, arguments: Mapping[str, Any]) -> Experiment:
        """Return the experiment with further arguments of its environment."""
        return self.model_copy(update={"arguments": {**self.arguments, **arguments}})

    def source(self, stage: Stage) -> tuple[str, dict[str, Any]]:
        """Return id and arguments of the environment whose images a stage trains on."""
        return source_of(stage, self.env, self.arguments)

    def as_dict(self) -> dict[str, Any]:
        """Return plain json values."""
        return self.model_dump(mode="json")
