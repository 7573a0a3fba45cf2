"""The pieces of an experiment: its units of running, storing and resuming."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from al_seg_experiment.experiment import Experiment, Variant

Kind = Literal["theta_0", "query_theta_0", "forecast", "query", "reference", "full", "trial"]


@dataclass(frozen=True)
class Piece:
    """A part of an experiment that is run, stored and resumed on its own.

    Attributes:
        name: Its folder within the experiment's; a path with ``/``.
        kind: ``"theta_0"`` and ``"query_theta_0"`` (pretraining for evaluation and for the training of the agent),
            ``"forecast"`` (training of the networks of that feature), ``"query"`` (training of an agent),
            ``"reference"`` (theta_0 tested), ``"full"`` (full supervision) or ``"trial"`` (one method, one seed).
        variant: The variant it belongs to; empty if it belongs to none.
        method: The method of a trial, or of an agent that only this method plays.
        seed: The seed of an agent or a trial.
        needs: Names of the pieces that must be finished before.
    """

    name: str
    kind: Kind
    variant: str = ""
    method: str = ""
    seed: int = 0
    needs: tuple[str, ...] = ()


def pieces(experiment: Experiment) -> list[Piece]:
    """Return all pieces in an order in which they can be run."""
    found: list[Piece] = []
    learnt = experiment.learnt_methods
    agents = () if not learnt else experiment.seeds if experiment.query.per_seed else experiment.seeds[:1]
    for variant, settings in experiment.variants.items():
        prefix = f"variants/{folder_name(variant)}/" if variant else ""
        shared, owner = ("", "") if settings.shares_theta_0 else (prefix, variant)
        theta_0 = Piece(f"{shared}theta_0", "theta_0", owner)
        query_theta_0 = Piece(f"{shared}query_theta_0", "query_theta_0", owner)
        first = [theta_0, Piece(f"{prefix}reference", "reference", variant, needs=(theta_0.name,))]
        forecast = Piece(f"{shared}forecast", "forecast", owner, needs=(query_theta_0.name,))
        forecasts = () if experiment.forecast is None else (forecast.name,)
        first += [query_theta_0] if learnt or forecasts else []
        first += [forecast] if forecasts else []
        found += [piece for piece in first if piece not in found]
        owners = {method: method if experiment.methods[method].agent else "" for method in learnt}
        for seed in agents:
            for method in dict.fromkeys(owners.values()):
                name = prefix + agent_name(method, seed)
                found.append(Piece(name, "query", variant, method, seed, (query_theta_0.name, *forecasts)))
        for seed in experiment.seeds:
            trained = seed if seed in agents else experiment.seeds[0]
            for method in experiment.methods:
                agent = (prefix + agent_name(owners[method], trained),) if method in owners else ()
                needs = (theta_0.name, *forecasts, *agent)
                found.append(Piece(f"{prefix}trials/{method}-{seed}", "trial", variant, method, seed, needs))
        supervised = experiment.seeds if experiment.full is True else experiment.seeds[: int(experiment.full)]
        for seed in supervised:
            found.append(Piece(f"{prefix}trials/full-{seed}", "full", variant, "full", seed, (theta_0.name,)))
    return found


def agent_name(method: str, seed: int) -> str:
    """Return the folder of an agent: the method's own, or the one that all learnt methods share."""
    return f"query/{method}-{seed}" if method else f"query/{seed}"


def experiment_of(experiment: Experiment, piece: Piece) -> Experiment:
    """Return the experiment as a piece sees it; a theta_0 that all variants share belongs to none."""
    if piece.variant in experiment.variants:
        return experiment.of_variant(piece.variant)
    return experiment.model_copy(update={"variants": {"": Variant()}})


def folder_name(variant: str) -> str:
    """Return a variant's name as the name of a folder."""
    return "".join(c if c.isalnum() or c in "_+-= " else f"%{ord(c):02X}" for c in variant)
