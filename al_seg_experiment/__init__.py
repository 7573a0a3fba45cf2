"""The paper's experiment (section 4): its protocol, its runs, and the report of their results.

    al-seg-env experiment run synthetic_small

or, in Python::

    from al_seg_experiment import load_experiment, run
    from al_seg_experiment.report import report

    run(load_experiment("synthetic_small"), "runs/small")
    report("runs/small")

Its steps by themselves, on any environment, are :func:`pretrain`, :func:`train_forecast`, :func:`train_agent`,
:func:`acquire` and :func:`evaluate`.
"""

from al_seg_experiment.acquisition import acquire
from al_seg_experiment.evaluation import evaluate
from al_seg_experiment.experiment import Convergence, Experiment, ForecastTraining, Method, Query, Refit, Stage, Variant
from al_seg_experiment.forecasting import train_forecast
from al_seg_experiment.pieces import Piece, pieces
from al_seg_experiment.pretraining import pretrain
from al_seg_experiment.query_training import train_agent
from al_seg_experiment.reading import load_experiment
from al_seg_experiment.records import status
from al_seg_experiment.report.results import Results, read_results
from al_seg_experiment.runner import run
from al_seg_experiment.sharing import load_shared, push, share

__all__ = [
    "Convergence",
    "Experiment",
    "ForecastTraining",
    "Method",
    "Piece",
    "Query",
    "Refit",
    "Results",
    "Stage",
    "Variant",
    "acquire",
    "evaluate",
    "load_experiment",
    "load_shared",
    "pieces",
    "pretrain",
    "push",
    "read_results",
    "run",
    "share",
    "status",
    "train_agent",
    "train_forecast",
]
