"""Precision and memory layout: measured where left open, and as told where not."""

import logging

import pytest
import torch
from fakes import tiny_network
from torch import nn

from al_seg_env import TorchLearner
from al_seg_env.learner import precision
from al_seg_env.learner.precision import resolve_numerics

CPU = torch.device("cpu")
ORDER = [("float32", True), ("bfloat16", True), ("float32", False), ("bfloat16", False)]


@pytest.fixture
def clock(monkeypatch):
    """Return a function that sets how long each candidate's pass takes."""
    monkeypatch.setattr(precision, "_chosen", {})

    def set_times(times, order=ORDER):
        calls = []

        def seconds(run, device):
            run()
            calls.append(None)
            return times[order[(len(calls) - 1) % len(order)]]

        monkeypatch.setattr(precision, "_seconds", seconds)
        return calls

    return set_times


def choice(precision_name="auto", channels_last=None, network=None):
    dtype, layout = resolve_numerics(tiny_network() if network is None else network, CPU, precision_name, channels_last)
    return str(dtype).removeprefix("torch."), layout


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        ((10, 10, 10, 10), ("float32", True)),
        ((10, 4, 6, 2), ("bfloat16", False)),
        ((10, 20, 7, 16), ("float32", False)),
        ((10, 5, 20, 12), ("bfloat16", True)),
        ((10, 8, 8, 7), ("float32", True)),  # a little faster is not enough to change results
    ],
)
def test_what_is_clearly_faster_is_taken(clock, milliseconds, expected):
    clock(dict(zip(ORDER, milliseconds, strict=True)))
    assert choice() == expected


def test_what_is_told_is_kept_and_a_named_precision_is_never_left_to_the_clock(clock):
    calls = clock(dict(zip(ORDER, (10, 1, 9, 1), strict=True)))
    for name in ("float32", "bfloat16"):
        for layout in (True, False):
            assert choice(name, layout) == (name, layout)
        assert choice(name) == (name, True)
    assert not calls
    clock({("float32", True): 10, ("bfloat16", True): 2}, ORDER[:2])
    assert choice("auto", True) == ("bfloat16", True)


def test_an_architecture_is_measured_once_and_the_figures_are_told(clock, caplog):
    calls = clock(dict(zip(ORDER, (10, 4, 8, 3.5), strict=True)))
    with caplog.at_level(logging.INFO, logger="al_seg_env"):
        assert choice() == choice()
    assert len(calls) == 4 * (1 + precision.PROBE_ROUNDS)
    assert "precision of TinyNetwork: ('bfloat16', True) is used" in caplog.text
    assert "bfloat16 channels_last 4000.0 ms" in caplog.text


def test_the_probe_changes_neither_network_nor_random_state(clock):
    clock(dict(zip(ORDER, (10, 4, 8, 2), strict=True)))
    network = tiny_network().train()
    before, state = {k: v.clone() for k, v in network.state_dict().items()}, torch.random.get_rng_state()
    choice(network=network)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert network.training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_network_that_refuses_the_probe_runs_in_float32(clock):
    class Picky(nn.Conv2d):
        def forward(self, x):
            if x.shape[2] != 40:
                raise ValueError("only 40 pixels")
            return super().forward(x)

    assert choice(network=Picky(3, 2, 1)) == ("float32", True)


def test_a_precision_that_the_device_lacks_is_an_error_only_if_asked_for(clock, monkeypatch):
    clock({("float32", True): 10, ("float32", False): 20}, ORDER[::2])
    monkeypatch.setattr(
        precision, "_cannot_compute", lambda dtype, device: "no such units" if dtype == torch.bfloat16 else None
    )
    with pytest.raises(ValueError, match="'bfloat16' cannot be used on device 'cpu' .no such units.; use 'float32'"):
        choice("bfloat16")
    assert choice() == ("float32", True)


def test_the_learner_shows_its_choice():
    learner = TorchLearner(tiny_network(), 3, device="cpu", precision="bfloat16", channels_last=False)
    assert (learner.dtype, learner.channels_last) == (torch.bfloat16, False)
    with pytest.raises(ValueError, match="precision is 'half'; expected one of 'auto', 'float32', 'bfloat16'"):
        TorchLearner(tiny_network(), 3, device="cpu", precision="half")
