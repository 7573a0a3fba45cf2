"""What a user can get wrong: each is refused with what came, what was expected, and how to mend it."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import (
    CLASSES,
    ID,
    SPLITS,
    TINY,
    ClosedFormLearner,
    closed_form_env,
    make,
    numbered_data,
    tiny_network,
)

from al_seg_env import BALD, Entropy, EnvConfig, RegionSelectionEnv, Splits, TorchLearner


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 49}, r"budget is 49, but split 'train' has only 48 regions; lower the budget"),
        ({"regions_per_step": 7, "pool_size": 7}, r"7 pools of 7 regions \(K x N\) need 49 regions, but .* has 48"),
        ({"regions_per_step": 7, "pool_size": 7}, r"\(al-seg-env label: --regions-per-step, or --set pool_size="),
        ({"budget": 33, "split": "eval"}, "split 'eval' has only 32 regions"),
        ({"region_size": (33, 10)}, r"region_size \(33, 10\): the height must be between 1 and the image's 32"),
        ({"region_size": (8, 41)}, "the width must be between 1 and the image's 40"),
        ({"region_size": 8}, r"region_size is 8; expected \(height, width\) in pixels, or None"),
        ({"region_size": (8.0, 8.0)}, "region_size is .*; expected"),
        ({"crop_size": (0, 4)}, r"crop_size is \(0, 4\)"),
        ({"budget": 0}, "budget is 0; expected a whole number of at least 1"),
        ({"budget": 3.0}, "budget is 3.0; expected a whole number"),
        ({"pool_size": True}, "pool_size is True; expected a whole number"),
        ({"regions_per_step": -1}, "regions_per_step is -1; expected a whole number of at least 1"),
        ({"fit_iterations": -1}, "fit_iterations is -1; expected a whole number from 0 to 10000"),
        ({"pool_images": 0}, "pool_images is 0; expected a whole number of at least 1"),
        ({"reward_scale": 0}, "reward_scale is 0; expected a finite number above 0"),
        ({"reward_scale": float("nan")}, "reward_scale is nan; expected a finite number above 0"),
        ({"split": "test"}, r"split is 'test'; expected one of 'train', 'eval'"),
        ({"labelled_before": "train"}, "labelled_before is 'train'; expected 'state' or None, since split 'train'"),
        ({"reward_classes": "road"}, "reward_classes is 'road'; expected a list of different names"),
        ({"reward_classes": ["a", "a"]}, "reward_classes is .*; expected a list of different names"),
        ({"fit_regions": None}, "fit_regions is None; expected one of 'new', 'all'"),
        ({"crop_labels": "some"}, "crop_labels is 'some'; expected one of"),
        ({"first_reward": None}, "first_reward is None; expected one of"),
        ({"class_distribution": "logits"}, "class_distribution is 'logits'; expected one of"),
        ({"kl_edges": "log"}, "kl_edges is 'log'; expected one of"),
        ({"entropy_pools": ["sum"]}, "entropy_pools is .*'sum'.*; expected a list of different ones out of"),
        ({"entropy_pools": "min"}, "entropy_pools is 'min'; expected a list"),
        ({"similarity": ["labelled", "labelled"]}, "similarity is .*; expected a list of different ones"),
        ({"class_distribution": None, "entropy_pools": ()}, "there are no features: set class_distribution"),
    ],
)
def test_settings_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        closed_form_env(**options)


def test_a_split_without_images_to_acquire_from():
    splits = Splits(state=(0,), train=(), reward=(1,), eval=(2,))
    with pytest.raises(ValueError, match="split 'train' has no image to acquire regions from; give it some in splits"):
        closed_form_env(splits=splits)


def test_overlapping_splits():
    with pytest.raises(ValueError, match=r"must be disjoint, but train and reward share \[3\]"):
        Splits(state=(0,), train=(2, 3), reward=(3,), eval=(4,))


def test_splits_of_another_data_set():
    splits = Splits(state=(0, 9), train=(1, 2, 30), reward=(3,), eval=(4,))
    with pytest.raises(ValueError, match=r"indices \[9, 30\], but the data have only 9 images; use the splits"):
        closed_form_env(splits=splits)


ACTIONS = {
    "too short": np.zeros(2, np.int64),
    "too long": np.zeros(4, np.int64),
    "two dimensions": np.zeros((1, 3), np.int64),
    "a number": 1,
    "too large": np.array([0, 4, 0]),
    "negative": np.array([0, -1, 0]),
    "floats": np.array([0.0, 1.0, 2.0]),
    "not a number": np.array([np.nan, 0, 0]),
    "booleans": np.array([True, False, True]),
    "text": np.array(["0", "1", "2"]),
    "words": ["one", "two", "three"],
    "nothing": None,
    "huge": np.array([2**63 + 1, 0, 0], dtype=np.uint64),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS.keys())
def test_an_action_that_is_not_in_the_space_changes_nothing(action):
    env = closed_form_env()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"(?s)action .*: expected 3 integers in \[0, 4\), one per pool"):
        env.step(action)
    assert len(env.labels) == 0
    env.step(np.zeros(3, np.int64))


@pytest.mark.parametrize("action", [[0, 1, 2], (3, 3, 3), np.array([0, 1, 2], np.int32), np.array([1, 2, 3], np.uint8)])
def test_integers_of_any_kind_are_an_action(action):
    env = closed_form_env()
    env.reset(seed=0)
    pools = env.pools
    *_, info = env.step(action)
    assert info["chosen"] == tuple(int(pool[n]) for pool, n in zip(pools, action, strict=True))


def test_a_learner_for_other_classes():
    with pytest.raises(ValueError, match=r"logits of shape \(1, 4, 32, 40\) for one image; expected \(1, 3, 32, 40\)"):
        closed_form_env(learner=ClosedFormLearner(num_classes=4))


def test_a_score_that_needs_dropout_without_dropout():
    with pytest.raises(ValueError, match=r"scores \['bald'\] sample the network with dropout, but it has none"):
        closed_form_env(learner=ClosedFormLearner(has_dropout=False), scores=[Entropy(), BALD()])
    with pytest.raises(ValueError, match="choose an architecture with dropout"):
        make(architecture="Unet", network_options={"decoder_channels": [32, 16, 8, 8, 8]}, scores=["bald"])


def test_a_score_given_twice():
    with pytest.raises(ValueError, match=r"scores are \['entropy', 'entropy'\]; expected different names"):
        closed_form_env(scores=[Entropy(), Entropy()])


def test_a_reward_split_without_labels():
    data = numbered_data()
    data.mask(5)[...] = 255
    learner = TorchLearner(tiny_network(), 3, device="cpu", precision="float32")
    env = RegionSelectionEnv(data, SPLITS, learner, config=EnvConfig(region_size=(8, 10), budget=12, pool_size=1))
    with pytest.raises(ValueError, match="without a single labelled pixel is undefined; check its masks"):
        env.reset()


class Broken:
    """Data whose fourth image is not like the others."""

    def __init__(self, **wrong):
        self.good, self.wrong = numbered_data(), wrong
        self.classes, self.names, self.image_size = CLASSES, self.good.names, self.good.image_size

    def image(self, index):
        return self.wrong.get("image", self.good.image(index)) if index == 3 else self.good.image(index)

    def mask(self, index):
        return self.wrong.get("mask", self.good.mask(index)) if index == 3 else self.good.mask(index)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image": np.zeros((32, 41, 3), np.uint8)}, r"image 'image 3': expected uint8 \(32, 40, 3\), found"),
        ({"mask": np.full((32, 40), 3, np.uint8)}, r"mask 'image 3': labels \[3\] are not classes; .*map other labels"),
    ],
)
def test_a_malformed_image_is_named_when_it_is_met(wrong, message):
    env = closed_form_env(Broken(**wrong), regions_per_step=6, pool_size=8, budget=48)
    with pytest.raises(ValueError, match=message):  # noqa: PT012
        env.reset(seed=0)
        for _ in range(8):
            env.step(np.zeros(6, np.int64))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"budget": 10**6}, ValueError, "lower the budget"),
        ({"learning_rat": 1}, TypeError, r"options \['learning_rat'\] \(did you mean 'learning_rate'\?\); known are"),
        ({"scores": "entropy"}, ValueError, "scores is 'entropy'; expected a list of different ones"),
        ({"scores": ["entropi"]}, ValueError, "scores is .*'entropi'.*; expected a list of different ones"),
        ({"weights": "nowhere.safetensors"}, ValueError, "weights 'nowhere.safetensors': there is no such file"),
        ({"encoder_weights": "nowhere.pth"}, ValueError, "'nowhere.pth': there is no such file"),
        ({"encoder": "resnet51"}, ValueError, "cannot build .*encoder='resnet51'"),
        ({"architecture": "Fpm"}, ValueError, "cannot build architecture='Fpm'"),
        ({"device": "abacus"}, ValueError, "device is 'abacus'; expected a device"),
        ({"precision": "int8"}, ValueError, "precision is 'int8'; expected one of 'auto', 'float32', 'bfloat16'"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"splits": {"seed": 0, "train": 100}}, ValueError, "108 images are requested, but 12 are left"),
        ({"splits": "missing.json"}, ValueError, "neither a file nor one of the published splits"),
        ({"image_size": [16, 16]}, ValueError, "image_size"),
    ],
)
def test_options_of_a_registered_environment(options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


def test_an_unknown_render_mode():
    with pytest.raises((ValueError, gym.error.Error), match="ansi"):
        gym.make(ID, render_mode="ansi", **TINY)


@pytest.mark.parametrize(("learning_rate", "steps"), [(1e30, 1), (1e10, 2)])
def test_training_that_diverges_names_the_remedies(learning_rate, steps):
    """Whether the weights themselves overflow, or the loss of the next update."""
    env = make(learning_rate=learning_rate)
    env.reset(seed=0)
    remedies = "(?i)lower the learning rate, set max_grad_norm, or use precision="
    with pytest.raises(FloatingPointError, match=remedies):  # noqa: PT012
        for _ in range(steps):
            env.step(np.zeros(3, np.int64))
    assert env.observation_space.contains(env.reset(seed=0)[0])


def test_weights_that_are_not_finite_to_begin_with():
    network = tiny_network()
    torch.nn.init.constant_(network.head.bias, float("nan"))
    learner = TorchLearner(network, 3, device="cpu", precision="float32")
    env = RegionSelectionEnv(
        numbered_data(), SPLITS, learner, config=EnvConfig(region_size=(8, 10), budget=12, pool_size=1)
    )
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        env.reset(seed=0)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(24, np.int64))
