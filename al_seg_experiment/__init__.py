"""The paper's experiment (section 4): its protocol, its runs, and the report of what they gave.

    python -m al_seg_experiment run synthetic_small

or, in Python, ``report(run(load_experiment("synthetic_small"), "runs/small"), "runs/small/report")``.
"""

from al_seg_experiment.experiment import Experiment, Query, Stage, Variant, load_experiment
from al_seg_experiment.report.results import Results, read_results
from al_seg_experiment.runner import pieces, run, status

__all__ = [
    "Experiment",
    "Query",
    "Results",
    "Stage",
    "Variant",
    "load_experiment",
    "pieces",
    "read_results",
    "run",
    "status",
]
