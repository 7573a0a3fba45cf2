"""A Gymnasium environment for active learning in image segmentation (Casanova et al., ICLR 2020)."""

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
from al_seg_env.labelling.request import Answer, Request
from al_seg_env.learner.building import LearnerConfig
from al_seg_env.learner.contract import Learner
from al_seg_env.learner.torch_learner import TorchLearner
from al_seg_env.learner.weights import load_weights, save_weights
from al_seg_env.observation.scores import BALD, Entropy, Margin, PrivilegedRarity, Score
from al_seg_env.registration import make_env, register_envs

register_envs()

__version__ = "0.1.0"

__all__ = [
    "BALD",
    "Answer",
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
    "Request",
    "Score",
    "SegmentationData",
    "Splits",
    "SyntheticStreets",
    "TorchLearner",
    "load_state",
    "load_weights",
    "make_env",
    "save_state",
    "save_weights",
]
