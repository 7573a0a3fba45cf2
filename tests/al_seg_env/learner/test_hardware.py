"""What happens when memory does not suffice: a smaller batch once, a warning, and nothing lost."""

import copy
import warnings

import numpy as np
import pytest
import torch
from fakes import closed_form_env, tiny_network
from torch import nn

from al_seg_env import TorchLearner
from al_seg_env.learner.hardware import is_out_of_memory, within_memory

FULL = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried ...")


class Limited(nn.Module):
    """A network that takes this many images at once."""

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
    with pytest.warns(RuntimeWarning, match="a batch of 4 does not fit .* continuing with 2 at once.*lower batch_size"):
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


def test_a_prediction_is_the_same_from_halves():
    subject, whole = learner(), learner()
    whole.network.limit = 100
    images, _ = batch(4)
    with pytest.warns(RuntimeWarning, match="a batch of 4 does not fit .* continuing with 2 at once.*lower batch_size"):
        found = subject.predict(images)
    torch.testing.assert_close(found, whole.predict(images))
    assert subject.batch_size == 2


def test_samples_go_on_with_halves():
    subject, whole = (learner(batch_size=4) for _ in range(2))
    for one in (subject, whole):
        one.network.dropout = nn.Dropout(1e-12)  # the samples are the prediction, so that they can be compared
    whole.network.limit = 100
    images, _ = batch(3)
    with pytest.warns(RuntimeWarning, match="a batch of 3 does not fit .* continuing with 2 at once"):
        samples = list(subject.sample(images, 3, np.random.default_rng(0)))
    assert len(samples) == 3
    for sample in samples:
        torch.testing.assert_close(sample, whole.predict(images))
    assert subject.batch_size == 2


@pytest.mark.parametrize("call", ["predict", "sample", "evaluate"])
def test_what_never_fits_leaves_the_learner_usable(call):
    subject = learner()
    subject.network.dropout = nn.Dropout(0.5)
    subject.network.limit = 0
    images, targets = batch(4)
    calls = {
        "predict": lambda: subject.predict(images),
        "sample": lambda: next(subject.sample(images, 2, np.random.default_rng(0))),
        "evaluate": lambda: subject.evaluate([(images, targets)]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(MemoryError, match="lower batch_size"):
            calls[call]()
    subject.network.limit = 100
    calls[call]()


def test_an_environment_observes_the_same_where_memory_is_short():
    """The environment knows nothing of it: its learner copes, and keeps to the smaller batch."""
    envs = []
    for limit in (1, 100):
        network = Limited()
        network.limit = limit
        exact = {"device": "cpu", "precision": "float32", "channels_last": False, "batch_size": 2}
        envs.append(closed_form_env(learner=TorchLearner(network, 3, **exact), crop_size=(8, 10), fit_iterations=0))
    short, whole = envs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found, expected = short.reset(seed=0)[0], whole.reset(seed=0)[0]
        for key in expected:
            np.testing.assert_allclose(found[key], expected[key], atol=1e-5, err_msg=key)
        found, expected = (env.step(np.zeros(3, np.int64)) for env in envs)
    np.testing.assert_allclose(found[0]["state"], expected[0]["state"], atol=1e-5)
    assert found[1] == expected[1]
    assert (short.learner.batch_size, whole.learner.batch_size) == (1, 2)


def test_batches_of_any_length_predict_what_each_image_does():
    """Batches are grown to a few lengths; the images added must not show."""
    subject = TorchLearner(tiny_network(), 3, device="cpu", precision="float32", batch_size=32)
    images, _ = batch(40)
    alone = torch.cat([subject.predict(image[None]) for image in images])
    for count in (1, 3, 4, 13, 31, 32, 40):
        found = subject.predict(images[:count])
        assert found.shape == (count, 3, 8, 8)
        torch.testing.assert_close(found, alone[:count], atol=1e-5, rtol=1e-5)
