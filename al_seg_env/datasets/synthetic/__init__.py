"""Procedurally drawn streets."""

from al_seg_env.datasets.synthetic.streets import SyntheticStreets

__all__ = ["SyntheticStreets"]
