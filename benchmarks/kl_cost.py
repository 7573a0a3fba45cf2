"""What do the KL features cost at Cityscapes size, compared with a loop over pairs of regions?

25,600 candidates of 19 classes against the 25,600 of the pools and 3,840 labelled regions, in turn with a loop over the
pairs of the first candidate, whose time is scaled up, and whose histogram must be equal:

    python benchmarks/kl_cost.py

Prints times, the extra memory at the peak, and how the time grows with the reference set; writes OUT/kl_cost.csv.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from timing import describe, median_and_range, timed
from tqdm import tqdm

from al_seg_env.command_line import run
from al_seg_env.functional import KL_SMOOTHING, kl_histogram
from al_seg_env.learner.cpu_tuning import keep_freed_memory
from al_seg_env.storage import write_csv

BINS = 32


@dataclass(frozen=True)
class Options:
    """What is measured."""

    candidates: int = 25_600
    """Number of candidates."""
    labelled: int = 3_840
    """Number of labelled regions that candidates are compared with."""
    classes: int = 19
    """Number of classes."""
    rounds: int = 5
    """Rounds to time."""
    out: Path = Path("runs/kl_cost")
    """Folder of the results."""


def main(options: Options) -> None:
    keep_freed_memory()
    rng = np.random.default_rng(0)
    candidates, labelled = (
        torch.from_numpy(rng.dirichlet([0.15] * options.classes, size=n)).float()
        for n in (options.candidates, options.labelled)
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = []
    for _ in tqdm(range(options.rounds), desc="rounds"):
        row = {
            "unlabelled": timed(lambda: kl_histogram(candidates, candidates, BINS, own=True)),
            "labelled": timed(lambda: kl_histogram(candidates, labelled, BINS)),
        }
        found = kl_histogram(candidates[:1], labelled, BINS)
        loop = timed(partial(compare, found, candidates[0], labelled))
        row["loop"] = loop * options.candidates * (1 + options.candidates / options.labelled)
        row["speedup"] = row["loop"] / (row["unlabelled"] + row["labelled"])
        rows.append({name: round(value, 4) for name, value in row.items()})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_csv(options.out / "kl_cost.csv", rows)
    print(describe(rows))
    print(f"both: {median_and_range([row['unlabelled'] + row['labelled'] for row in rows])} s")
    print(f"extra memory at the peak: {(peak - before) / 1024:.0f} MiB")
    for part in (4, 2, 1):
        size = options.candidates // part
        took = [timed(partial(kl_histogram, candidates, candidates[:size], BINS)) for _ in range(3)]
        print(f"against {size:6d} regions: {median_and_range(took)} s")


def compare(found: torch.Tensor, candidate: torch.Tensor, reference: torch.Tensor) -> None:
    """Compute a candidate's histogram pair by pair, and check that ``found`` equals it."""
    bound = divergence(np.eye(len(candidate))[0], np.eye(len(candidate))[1])
    expected = np.zeros(BINS)
    for other in reference.double().numpy():
        position = int(divergence(candidate.double().numpy(), other) / bound * BINS)
        expected[min(position, BINS - 1)] += 1 / len(reference)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


def divergence(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    """Return KL(p || q) of two distributions ``(C,)``, smoothed as the library does."""
    p, q = ((each + KL_SMOOTHING) / (1 + KL_SMOOTHING * len(each)) for each in (p, q))
    return max(0.0, float((p * np.log(p / q)).sum()))


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
