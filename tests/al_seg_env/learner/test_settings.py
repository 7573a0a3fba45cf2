"""Whatever a user gives for a number or a name: a valid object, or a ValueError that names it, before any work."""

import dataclasses
import math

import numpy as np
import pytest
from fakes import made, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st

from al_seg_env import LearnerConfig, TorchLearner
from al_seg_env.learner.fitting import FitSettings

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(), st.floats(), st.none()), max_size=4),
    st.tuples(st.integers(-5, 500), st.integers(-5, 500)),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from([np.int64(3), np.float32(0.5), np.zeros(2), np.nan, b"x", object(), 10**400, -(10**400)]),
)
NUMBERS = ("learning_rate", "momentum", "weight_decay", "learning_rate_decay", "max_grad_norm", "num_classes")
OTHERS = ("output_stride", "batch_size", "precision", "channels_last", "fold_batchnorm", "mean", "std")


def some_of(names):
    return st.dictionaries(st.sampled_from(sorted(names)), ANYTHING, min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(some_of(field.name for field in dataclasses.fields(LearnerConfig)))
def test_a_configuration_of_a_learner(options):
    config = made(LearnerConfig, options)
    assert config is None or (
        0 < config.learning_rate < math.inf
        and (config.max_grad_norm is None or config.max_grad_norm > 0)
        and (config.batch_size is None or config.batch_size >= 1)
    )


@settings(max_examples=150, deadline=None)
@given(some_of(field.name for field in dataclasses.fields(FitSettings)))
def test_settings_of_a_training(options):
    found = made(FitSettings, options)
    assert found is None or (
        min(found.batch_size, found.patience, found.max_epochs, found.min_updates) >= 1
        and (found.crop_size is None or min(found.crop_size) >= 1)
    )


@settings(max_examples=75, deadline=None)
@given(some_of([*NUMBERS, *OTHERS]))
def test_arguments_of_a_learner(options):
    learner = made(TorchLearner, options, tiny_network(), num_classes=3, device="cpu", precision="float32")
    assert learner is None or (learner.batch_size >= 1 and 1 <= learner.num_classes <= 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_grad_norm": -1.0}, r"max_grad_norm is -1.0; expected a finite number above 0"),
        ({"max_grad_norm": 0}, "max_grad_norm is 0; expected a finite number above 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan; expected a finite number above 0"),
        ({"learning_rate": 10**400}, "learning_rate is 1000.*; expected a finite number above 0"),
        ({"weight_decay": -(10**400)}, "weight_decay is -1000.*; expected a finite number"),
        ({"learning_rate": "0.1"}, "learning_rate is '0.1'; expected a finite number"),
        ({"momentum": 1}, "momentum is 1; expected a finite number of at least 0 and below 1"),
        ({"weight_decay": -1e-4}, "weight_decay is -0.0001; expected a finite number of at least 0"),
        (
            {"learning_rate_decay": 1.5},
            "learning_rate_decay is 1.5; expected a finite number above 0 and up to 1",
        ),
        ({"batch_size": 2.0}, "batch_size is 2.0; expected a whole number from 1 to 65536"),
        ({"batch_size": True}, "batch_size is True; expected a whole number"),
        ({"weights_seed": -1}, "weights_seed is -1; expected a whole number of at least 0"),
        ({"channels_last": 1}, "channels_last is 1; expected one of True, False, None"),
        ({"tune_cpu": None}, "tune_cpu is None; expected one of True, False"),
        ({"precision": "float16"}, "precision is 'float16'; expected one of 'auto', 'float32', 'bfloat16'"),
        ({"network_options": [1]}, r"network_options is \[1\]; expected a mapping from argument to value"),
        ({"encoder": ""}, "encoder is ''; expected a text"),
        ({"weights": 3}, "weights is 3; expected a text"),
    ],
)
def test_what_is_refused_is_named_with_what_is_expected(options, message):
    with pytest.raises(ValueError, match=message):
        LearnerConfig(**options)


@pytest.mark.parametrize("count", [0, 256, 300])
def test_labels_are_uint8_so_there_are_at_most_255_classes(count):
    with pytest.raises(ValueError, match=f"num_classes is {count}; expected a whole number from 1 to 255"):
        TorchLearner(tiny_network(), count, device="cpu", precision="float32")
    with pytest.raises(ValueError, match="classes is .*; expected a list of 1 to 255 different names"):
        LearnerConfig().build([str(i) for i in range(count)])


@pytest.mark.parametrize("settings", [{"batch_size": -1}, {"batch_size": 0}, {"crop_size": [0, 0]}, {"patience": -1}])
def test_trainings_that_would_never_end_or_never_begin(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} is .*; expected"):
        FitSettings(**settings)


def test_lists_of_json_are_sizes():
    assert FitSettings(crop_size=[32, 48]).crop_size == (32, 48)
