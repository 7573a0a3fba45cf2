"""Temporal-difference targets of the decomposed transitions."""

from __future__ import annotations

import torch
from torch import Tensor

TD_TARGETS = ("paper", "van_hasselt")


def td_targets(
    reward: Tensor,
    terminated: Tensor,
    next_q: Tensor,
    next_q_target: Tensor,
    discount: Tensor | float,
    rule: str = "paper",
) -> Tensor:
    """Double-DQN targets y_t^k of sub-actions, Eq. (3).

    ``"paper"``: the target network phi' chooses the next region of the pool, the query network phi values it,
    as Eq. (3) says. ``"van_hasselt"``: the usual double DQN the other way round, as in the released code.

    Args:
        reward: (B,), r_{t+1}; or the discounted sum of n rewards.
        terminated: (B,), bool; there the target is the reward alone, whatever the next values are.
        next_q: (B, N), Q(s_{t+1}, .; phi) of the candidates of one pool; of s_{t+n} where n rewards are summed.
        next_q_target: (B, N), the same with phi'.
        discount: gamma, or (B,) gamma^n.
        rule: one of ``TD_TARGETS``.

    Returns:
        (B,).
    """
    if rule not in TD_TARGETS:
        raise ValueError(f"The rule for TD targets is {rule!r}: expected one of {TD_TARGETS}.")
    chooser, valuer = (next_q_target, next_q) if rule == "paper" else (next_q, next_q_target)
    best = chooser.argmax(dim=1, keepdim=True)  # (B, 1)
    value = valuer.gather(1, best).squeeze(1)  # (B,)
    return torch.where(terminated, reward, reward + discount * value)  # Eq. (3)
