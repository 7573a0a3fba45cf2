"""Settings of an environment: each is checked where it is given."""

import math
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from al_seg_env import EnvConfig

ODD = st.one_of(
    st.sampled_from(
        [0, -1, -5, 1, 2**40, 0.5, math.nan, math.inf, -math.inf, True, None, "", "x", [], {}, b"", object()]
    ),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.one_of(st.integers(-2, 40), st.floats(), st.text(max_size=2), st.none(), st.booleans()), max_size=4),
    st.tuples(st.integers(-2, 40), st.integers(-2, 40)),
    st.lists(st.sampled_from(["min", "avg", "max", "labelled", "unlabelled"]), max_size=4),
)


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from([field.name for field in fields(EnvConfig)]), value=ODD)
def test_any_value_makes_valid_settings_or_a_value_error_that_names_it(name, value):
    try:
        config = EnvConfig(**{name: value})
    except ValueError as error:
        problem: str | None = str(error)
    else:
        problem = None
    if problem is not None:
        assert name in problem
    else:
        kept = getattr(config, name)
        assert kept == (tuple(value) if isinstance(value, list) else value)
        for count in ("regions_per_step", "pool_size", "budget", "fit_batch_size", "entropy_bins", "kl_bins"):
            assert type(getattr(config, count)) is int
            assert getattr(config, count) >= 1
        assert math.isfinite(config.reward_scale)
        assert config.reward_scale > 0


@pytest.mark.parametrize("size", [[32], [32, 40, 3], [0, 4], [True, 4], [1.5, 2], "ab", 7])
def test_sizes_are_height_and_width(size):
    for name in ("region_size", "crop_size"):
        with pytest.raises(ValueError, match=rf"{name} is .*; expected \(height, width\) in pixels, or None"):
            EnvConfig(**{name: size})
