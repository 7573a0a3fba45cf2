"""What happens when memory does not suffice: a smaller batch once, a warning, and nothing lost."""

import copy
import warnings

import numpy as np
import pytest
import torch
from fakes import closed_form_env, tiny_network
from torch import nn

from al_seg_env import TorchLearner
from al_seg_env.learner.cpu_tuning import keep_freed_memory
from al_seg_env.learner.hardware import is_out_of_memory, within_memory

FULL = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried ...")


class Limited(nn.Module):
    """A network that takes so many images at once."""

    limit = 2

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 3, 3, padding=1)
        self.asked = []

    def forward(self, x):
        self.asked.append(len(x))
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return self.body(x)


def learner(batch_size=4, **options):
    exact = {"device": "cpu", "precision": "float32", "channels_last": False, "learning_rate": 0.1}
    return TorchLearner(Limited(), 3, batch_size=batch_size, **exact, **options)


def batch(count):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, size=(count, 3, 8, 8), dtype=np.uint8))
    targets = torch.from_numpy(rng.choice(np.array([0, 1, 2, 255], np.uint8), size=(count, 8, 8)))
    return images, targets


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FULL, True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("size mismatch"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_is_a_lack_of_memory(error, expected):
    assert is_out_of_memory(error) == expected


def test_what_fits_is_run_once():
    assert within_memory(lambda x, y: (len(x), len(y)), (torch.zeros(5), torch.zeros(5)), "n") == [(5, 5)]


def test_other_errors_pass():
    def run(x):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        within_memory(run, (torch.zeros(4),), "n")


@pytest.mark.parametrize("count", [1, 5])
def test_what_never_fits_names_the_option(count):
    def run(x):
        raise FULL

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(MemoryError, match=r"a batch of \d does not fit into memory .*can't allocate.*; lower n"):
            within_memory(run, (torch.zeros(count),), "n")


def test_evaluation_goes_on_with_halves_and_stays_there():
    subject, whole = learner(), learner()
    whole.network.limit = 100
    batches = [batch(4), batch(4)]
    with pytest.warns(RuntimeWarning, match="a batch of 4 does not fit .* going on with 2 at once.*lower batch_size"):
        found = subject.evaluate(batches)
    assert torch.equal(found, whole.evaluate(batches))
    assert subject.batch_size == 2


def test_an_update_in_halves_is_the_same_update():
    subject, whole = learner(max_grad_norm=1.0), learner(max_grad_norm=1.0)
    whole.network.limit = 100
    images, targets = batch(4)
    targets[3] = 255  # halves with different numbers of labelled pixels
    with pytest.warns(RuntimeWarning, match="lower fit_batch_size or crop_size"):
        loss = subject.fit_step(images, targets, np.random.default_rng(0))
    assert loss == pytest.approx(whole.fit_step(images, targets, np.random.default_rng(0)), rel=1e-5)
    for found, expected in zip(subject.network.parameters(), whole.network.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_an_update_that_never_fits_leaves_everything_as_it_was():
    subject = learner()
    subject.network.limit = 0
    before = copy.deepcopy(subject.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(MemoryError, match="lower fit_batch_size or crop_size"):
            subject.fit_step(*batch(4), np.random.default_rng(0))
    after = subject.state_dict()
    assert all(torch.equal(before["network"][key], after["network"][key]) for key in before["network"])
    assert all(parameter.grad is None for parameter in subject.network.parameters())


def test_observations_are_the_same_from_halves():
    env, whole = closed_form_env(), closed_form_env()
    predict, seen = env.learner.predict, []

    def limited(images):
        if len(images) > 1:
            raise MemoryError
        seen.append(len(images))
        return predict(images)

    env.learner.predict = limited
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for seed in (0, 1):
            found, expected = env.reset(seed=seed)[0], whole.reset(seed=seed)[0]
            assert all(np.array_equal(found[key], expected[key]) for key in expected)
        action = env.action_space.sample()
        found, expected = env.step(action), whole.step(action)
    assert all(np.array_equal(found[0][key], expected[0][key]) for key in expected[0])
    assert found[1] == expected[1]
    assert set(seen) == {1}


def test_batches_of_any_length_predict_what_each_image_does():
    """Batches are grown to a few lengths; the images added must not show."""
    subject = TorchLearner(tiny_network(), 3, device="cpu", precision="float32", batch_size=32)
    images, _ = batch(40)
    alone = torch.cat([subject.predict(image[None]) for image in images])
    for count in (1, 3, 4, 13, 31, 32, 40):
        found = subject.predict(images[:count])
        assert found.shape == (count, 3, 8, 8)
        torch.testing.assert_close(found, alone[:count], atol=1e-5, rtol=1e-5)


def test_the_allocator_is_asked_once_and_anywhere(monkeypatch):
    keep_freed_memory.cache_clear()
    for platform in ("win32", "linux"):
        monkeypatch.setattr("sys.platform", platform)
        keep_freed_memory.cache_clear()
        assert keep_freed_memory() is None
