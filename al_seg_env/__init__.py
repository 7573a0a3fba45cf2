"""A Gymnasium environment for active learning in image segmentation (Casanova et al., ICLR 2020)."""

import os

import torch

from al_seg_env.config import EnvConfig
from al_seg_env.datasets import (
    ArrayData,
    CamVid,
    Cityscapes,
    ImageFolder,
    SegmentationData,
    Splits,
    SyntheticStreets,
)
from al_seg_env.env import RegionSelectionEnv
from al_seg_env.episode import load_state, save_state
from al_seg_env.labelling.oracles import CallbackOracle, FolderOracle, GroundTruthOracle, LabelsPending, Oracle
from al_seg_env.learner.building import LearnerConfig
from al_seg_env.learner.contract import Learner
from al_seg_env.learner.torch_learner import TorchLearner
from al_seg_env.learner.weights import load_weights, save_weights
from al_seg_env.observation.scores import BALD, Entropy, Margin, PrivilegedRarity, Score
from al_seg_env.registration import register_envs

# A forked process (gymnasium's AsyncVectorEnv forks) has none of its parent's OpenMP threads, and would wait
# for them for ever in its first parallel region. With one thread there is no such region.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

register_envs()

__version__ = "0.1.0"

__all__ = [
    "BALD",
    "ArrayData",
    "CallbackOracle",
    "CamVid",
    "Cityscapes",
    "Entropy",
    "EnvConfig",
    "FolderOracle",
    "GroundTruthOracle",
    "ImageFolder",
    "LabelsPending",
    "Learner",
    "LearnerConfig",
    "Margin",
    "Oracle",
    "PrivilegedRarity",
    "RegionSelectionEnv",
    "Score",
    "SegmentationData",
    "Splits",
    "SyntheticStreets",
    "TorchLearner",
    "load_state",
    "load_weights",
    "save_state",
    "save_weights",
]
