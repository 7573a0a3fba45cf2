"""Temporal-difference targets of decomposed transitions."""

from __future__ import annotations

import torch
from torch import Tensor

from al_seg_env.storage.validation import check_choice

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
    as in Eq. (3). ``"van_hasselt"``: the usual double DQN, with the two in each other's place, as in the released code.

    Args:
        reward: (B,), r_{t+1}, or the discounted sum of n rewards.
        terminated: (B,), bool. Where true the target is the reward alone, even if the next values are not finite.
        next_q: (B, N), Q(s_{t+1}, .; phi) of the candidates of one pool, or of s_{t+n} where n rewards are summed.
        next_q_target: (B, N), the same with phi'.
        discount: gamma, or (B,) gamma^n.
        rule: One of ``TD_TARGETS``.

    Returns:
        (B,).
    """
    check_choice("rule", rule, TD_TARGETS)
    chooser, valuer = (next_q_target, next_q) if rule == "paper" else (next_q, next_q_target)
    best = chooser.argmax(dim=1, keepdim=True)  # (B, 1)
    value = valuer.gather(1, best).squeeze(1)  # (B,)
    return torch.where(terminated, reward, reward + discount * value)  # Eq. (3)
