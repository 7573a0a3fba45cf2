"""The report of an experiment: its tables, figures and tests."""

from al_seg_experiment.report.writing import report

__all__ = ["report"]
