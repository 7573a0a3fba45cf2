"""Checks of what a user sets on the agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.dqn.exploration import EXPLORATIONS, epsilon_at
from agents.dqn.targets import TD_TARGETS

if TYPE_CHECKING:
    from agents.dqn.dqn import SubActionDQN


def check_settings(agent: SubActionDQN) -> None:
    """``ValueError`` for a setting that can't work: what came, and what was expected."""
    for name, least in (
        ("buffer_size", 1),
        ("learning_starts", 0),
        ("batch_size", 2),
        ("target_update_interval", 1),
        ("n_steps", 1),
    ):
        _check_int(name, getattr(agent, name), least)
    _check_int("gradient_steps", agent.gradient_steps, -1)
    _check("gamma", agent.gamma, 0 <= agent.gamma <= 1, "a number from 0 to 1")
    _check("tau", agent.tau, 0 < agent.tau <= 1, "a number above 0, up to 1")
    rate = agent.learning_rate
    _check(
        "learning_rate",
        rate,
        callable(rate) or rate > 0,
        "a positive number or a function of the progress left",
    )
    norm = agent.max_grad_norm
    _check("max_grad_norm", norm, norm is None or norm > 0, "a positive number, or None not to clip")
    guides = agent.guides
    named = isinstance(guides, tuple) and len(guides) > 0 and all(isinstance(name, str) for name in guides)
    _check("guides", guides, named, "a list of names, such as ('uniform', 'score_entropy')")
    for name, choices in (
        ("td_target", TD_TARGETS),
        ("loss", ("squared", "huber")),
        ("exploration", EXPLORATIONS),
    ):
        _check(name, getattr(agent, name), getattr(agent, name) in choices, f"one of {choices}")
    epsilon_at(agent.epsilon, 0)


def _check_int(name: str, value: Any, least: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    _check(name, value, whole and value >= least, f"a whole number, at least {least}")


def _check(name: str, value: Any, good: bool, expected: str) -> None:
    if not good:
        raise ValueError(f"{name} is {value!r}: expected {expected}.")
