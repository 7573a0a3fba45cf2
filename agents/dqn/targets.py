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
    values: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Double-DQN targets y_t^k of sub-actions, Eq. (3).

    With ``"paper"``, the target network phi' chooses the next region of the pool and the query network phi values it,
    as in Eq. (3). With ``"van_hasselt"``, the roles of the two networks are swapped, as in the usual double DQN and in
    the released code.

    Args:
        reward: (B,), r_{t+1}, or the discounted sum of n rewards; (B, C) with ``values``.
        terminated: (B,), bool. Where true, the target is the reward alone, even if the next values are not finite.
        next_q: (B, N), Q(s_{t+1}, .; phi) of the candidates of one pool; of s_{t+n} if n rewards are summed.
        next_q_target: (B, N), the same with phi'.
        discount: gamma, or gamma^n, (B,).
        rule: One of ``TD_TARGETS``.
        values: The values of each class, whose weighted sum is Q, from phi and from phi': (B, N, C) each. Q then only
            chooses the region, and the target is computed for each class.

    Returns:
        (B,), or (B, C) with ``values``.
    """
    check_choice("rule", rule, TD_TARGETS)
    chooser, valuer = (next_q_target, 0) if rule == "paper" else (next_q, 1)
    valued = (next_q[..., None], next_q_target[..., None])[valuer] if values is None else values[valuer]  # (B, N, C)
    best = chooser.argmax(dim=1)  # (B,)
    value = valued[torch.arange(len(best), device=best.device), best]  # (B, C)
    rewards = reward if values is not None else reward[:, None]  # (B, C)
    discount = torch.as_tensor(discount, device=value.device).reshape(-1, 1)  # (B, 1), or one for all
    target = torch.where(terminated[:, None], rewards, rewards + discount * value)  # Eq. (3)
    return target if values is not None else target[:, 0]
