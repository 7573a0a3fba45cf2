"""What do the KL features cost at Cityscapes size, beside pair after pair of regions as a loop would compute them?

25,600 candidates of 19 classes against the 25,600 of the pools and 3,840 labelled regions, in turn with a loop over the
first few candidates, whose time is scaled up, and whose histograms must be equal:

    python benchmarks/kl_cost.py

Prints times, the extra memory at the peak, and how the time grows with the reference set; writes OUT/kl_cost.csv.
"""

from __future__ import annotations

import argparse
import resource
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from timing import describe, median_and_range, timed, write_csv
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from reference import slow_histogram

from al_seg_env.functional import kl_histogram
from al_seg_env.learner.hardware import keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=25_600)
    parser.add_argument("--labelled", type=int, default=3_840)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/kl_cost"))
    args = parser.parse_args()
    keep_freed_memory()
    rng = np.random.default_rng(0)
    candidates, labelled = (
        torch.from_numpy(rng.dirichlet([0.15] * args.classes, size=n)).float() for n in (args.candidates, args.labelled)
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = []
    for _ in tqdm(range(args.rounds), desc="rounds"):
        row = {
            "unlabelled": timed(lambda: kl_histogram(candidates, candidates, 32, own=True)),
            "labelled": timed(lambda: kl_histogram(candidates, labelled, 32)),
        }
        found = kl_histogram(candidates[:1], labelled, 32)
        loop = timed(partial(compare, found, candidates[:1], labelled))
        row["loop"] = loop * args.candidates * (1 + args.candidates / args.labelled)
        row["speedup"] = row["loop"] / (row["unlabelled"] + row["labelled"])
        rows.append({name: round(value, 4) for name, value in row.items()})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_csv(args.out / "kl_cost.csv", rows)
    print(describe(rows))
    print(f"both: {median_and_range([row['unlabelled'] + row['labelled'] for row in rows])} s")
    print(f"extra memory at the peak: {(peak - before) / 1024:.0f} MiB")
    for part in (4, 2, 1):
        size = args.candidates // part
        took = [timed(lambda size=size: kl_histogram(candidates, candidates[:size], 32)) for _ in range(3)]
        print(f"against {size:6d} regions: {median_and_range(took)} s")


def compare(found: torch.Tensor, candidates: torch.Tensor, reference: torch.Tensor) -> None:
    """Compute histograms pair after pair, and see that ``found`` equals them."""
    expected = slow_histogram(candidates.double().numpy(), reference.double().numpy(), 32)
    np.testing.assert_allclose(found, expected, atol=1e-6)


if __name__ == "__main__":
    main()
