"""What does it save that the query network encodes each state of a batch once?

A gradient step on decomposed transitions drawn from a replay of so many environment steps, in turn with a batch in
which each transition has its own copy of the state. The sizes are those of CamVid at the paper's size, with 3H:

    OMP_NUM_THREADS=1 python benchmarks/shared_states.py

Prints times and ratios; writes OUT/shared_states.csv.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from timing import describe, timed
from torch import Tensor
from tqdm import tqdm

from agents.dqn import QueryNetwork
from al_seg_env.command_line import run
from al_seg_env.storage import write_csv


@dataclass(frozen=True)
class Options:
    """What is measured."""

    regions: int = 240
    """Number of regions of a state."""
    features: int = 203
    """Number of features of a region."""
    batch: int = 256
    """Number of transitions per gradient step."""
    steps: tuple[int, ...] = (10, 50, 100, 200)
    """Number of environment steps in the replay."""
    rounds: int = 5
    """Rounds to time."""
    out: Path = Path("runs/shared_states")
    """Folder of the results."""


def main(options: Options) -> None:
    generator = torch.Generator().manual_seed(0)
    shared = QueryNetwork(options.regions, options.features)
    copied = copy.deepcopy(shared)
    rows = []
    for steps in options.steps:
        of = torch.randint(steps, (options.batch,), generator=generator)
        different, state_of = of.unique(return_inverse=True)
        state = torch.rand(len(different), options.regions, options.features, generator=generator)
        chosen = torch.rand(options.batch, options.features, generator=generator)
        found = []
        for _ in tqdm(range(options.rounds + 1), desc=f"{steps} steps", leave=False):
            once = timed(partial(descend, shared, state, chosen, state_of))
            copies = timed(partial(descend, copied, state[state_of], chosen))
            found.append({"once": round(once, 4), "copied": round(copies, 4), "ratio": round(copies / once, 2)})
        print(f"{steps} environment steps, {len(different)} states in the batch:\n{describe(found[1:])}")
        rows += [{"steps": steps, "states": len(different), **row} for row in found[1:]]  # the first warms up
    write_csv(options.out / "shared_states.csv", rows)


def descend(network: QueryNetwork, state: Tensor, chosen: Tensor, state_of: Tensor | None = None) -> None:
    """Compute a batch's gradients."""
    network.zero_grad()
    network(state, chosen, None, state_of).square().mean().backward()


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
