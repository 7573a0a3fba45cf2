"""The segmentation network, its optimiser and its initial weights."""

import copy
import pickle

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
from fakes import TinyNetwork, tiny_network
from torch import nn

from al_seg_env import TorchLearner
from al_seg_env.metrics import confusion_matrix
from al_seg_env.storage.validation import check_device

EXACT = {"device": "cpu", "precision": "float32"}


def batch(count=3, size=(20, 26), seed=0, labelled=1.0, classes=3):
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, size=(count, 3, *size), dtype=np.uint8))
    targets = images[:, 0].float().div(256 / classes).to(torch.uint8)  # can be learnt
    hidden = torch.from_numpy(rng.random(targets.shape) >= labelled)
    return images, targets.masked_fill(hidden, 255)


def learner(network=None, **options):
    return TorchLearner(tiny_network() if network is None else network, 3, **{**EXACT, **options})


def rng():
    return np.random.default_rng(5)


def equal_states(one, other):
    """Compare state dicts bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal_states(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal_states, one, other))
    return one == other


def smp_network(architecture, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return smp.create_model(
            architecture,
            encoder_name="tu-tf_mobilenetv3_small_minimal_100",
            encoder_weights=None,
            classes=3,
            **options,
        )


FPN = {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32}
DEEPLAB = {"decoder_channels": 16, "decoder_aspp_dropout": 0.5, "encoder_output_stride": 16}


def test_reset_restores_theta_0_bit_by_bit_and_training_after_it_repeats():
    subject = learner(learning_rate=0.1, learning_rate_decay=0.9, max_grad_norm=1.0)
    initial = subject.state_dict()
    episodes = []
    for _ in range(2):
        subject.reset()
        assert equal_states(subject.state_dict(), initial)
        generator = rng()
        losses = [subject.fit_step(*batch(seed=i), generator) for i in range(4)]
        assert subject.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.9**4)
        episodes.append((losses, subject.state_dict()))
    assert equal_states(*episodes)
    assert not equal_states(episodes[0][1], initial)
    changed = [
        key for key in initial["network"] if not torch.equal(initial["network"][key], episodes[0][1]["network"][key])
    ]
    assert {"body.1.running_mean", "body.1.num_batches_tracked", "body.0.weight"} <= set(changed)


def test_state_dict_is_a_copy_and_goes_on_where_it_was_taken():
    subject, generator = learner(learning_rate=0.1, learning_rate_decay=0.9), rng()
    subject.fit_step(*batch(), generator)
    taken = subject.state_dict()
    kept = copy.deepcopy(taken)
    subject.fit_step(*batch(seed=1), rng())
    after = subject.state_dict()
    assert equal_states(taken, kept)
    for _ in range(2):  # loading twice: the first must not let training write into the copy
        subject.load_state_dict(taken)
        subject.fit_step(*batch(seed=1), rng())
        assert equal_states(subject.state_dict(), after)


def test_fit_step_is_plain_sgd_on_the_cross_entropy_of_labelled_pixels():
    images, targets = batch(labelled=0.3)
    network = tiny_network(dropout=0.0)
    subject = learner(copy.deepcopy(network), learning_rate=0.2, momentum=0.9, weight_decay=0.01)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01)
    network = network.to(memory_format=torch.channels_last).train()
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for _ in range(3):
        logits = network((images / 255 - mean) / std).permute(0, 2, 3, 1)
        known = targets != 255
        loss = F.cross_entropy(logits[known], targets[known].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert subject.fit_step(images, targets, rng()) == pytest.approx(loss.item(), rel=1e-4)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(subject.network.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"precision": "bfloat16"}, {"channels_last": False}])
def test_fit_lowers_the_loss(options):
    subject, generator = learner(learning_rate=0.1, **options), rng()
    losses = [subject.fit_step(*batch(), generator) for _ in range(15)]
    assert losses[-1] < 0.7 * losses[0]


def test_gradients_are_scaled_down_to_max_grad_norm():
    subject = learner(learning_rate=1.0, momentum=0.0, weight_decay=0.0, max_grad_norm=1e-3)
    before = [parameter.detach().clone() for parameter in subject.network.parameters()]
    subject.fit_step(*batch(), rng())
    moved = [new.detach() - old for new, old in zip(subject.network.parameters(), before, strict=True)]
    assert sum(float(change.square().sum()) for change in moved) ** 0.5 == pytest.approx(1e-3, rel=1e-2)


def test_a_batch_without_labels_changes_nothing():
    subject = learner()
    subject.fit_step(*batch(), rng())
    before = subject.state_dict()
    images, targets = batch(labelled=0.0)
    assert subject.fit_step(images, targets, rng()) == 0.0
    assert equal_states(subject.state_dict(), before)


class Diverging(TinyNetwork):
    """Returns what isn't finite when told so: in the loss, or in the gradient alone."""

    failure = None

    def forward(self, x):
        logits = super().forward(x)
        if self.failure == "loss":
            return logits * float("inf")
        if self.failure == "gradient":
            logits.register_hook(lambda gradient: gradient * float("nan"))
        return logits


@pytest.mark.parametrize("failure", ["loss", "gradient"])
@pytest.mark.parametrize("max_grad_norm", [None, 4.0])
def test_divergence_raises_and_leaves_everything_as_it_was(failure, max_grad_norm):
    subject = learner(Diverging(), learning_rate=0.1, learning_rate_decay=0.9, max_grad_norm=max_grad_norm)
    subject.fit_step(*batch(), rng())
    before = subject.state_dict()
    subject.network.failure = failure
    with pytest.raises(FloatingPointError, match="update was not made. Lower the learning rate, set max_grad_norm"):
        subject.fit_step(*batch(seed=1), rng())
    assert equal_states(subject.state_dict(), before)
    assert not any(module.training for module in subject.network.modules())
    subject.network.failure = None
    subject.fit_step(*batch(seed=1), rng())
    after = subject.state_dict()
    subject.load_state_dict(before)
    subject.fit_step(*batch(seed=1), rng())
    assert equal_states(subject.state_dict(), after)


def test_torchs_global_random_state_is_neither_used_nor_touched():
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        subject, generator = learner(), rng()
        loss = subject.fit_step(*batch(), generator)
        samples = []
        for sample in subject.sample(batch()[0], 3, generator):
            assert torch.equal(torch.random.get_rng_state(), before)
            samples.append(sample.clone())
        assert torch.equal(torch.random.get_rng_state(), before)
        results.append((loss, samples, subject.state_dict()))
    assert equal_states(*results)


@pytest.mark.parametrize("size", [(20, 26), (32, 32), (33, 31), (1, 5)])
def test_odd_sizes_are_padded_and_cropped_back(size):
    images = batch(2, size)[0]
    network = tiny_network()
    subject = learner(network, output_stride=16)
    mean, std = (np.array(x).reshape(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = (images.double().numpy() / 255 - mean) / std
    grown = [(0, 0), (0, 0), (0, -size[0] % 16), (0, -size[1] % 16)]
    padded = np.pad(x, grown, mode="edge")
    assert padded.shape[2] % 16 == padded.shape[3] % 16 == 0
    with torch.no_grad():
        expected = network(torch.from_numpy(padded).float())[:, :, : size[0], : size[1]]
    torch.testing.assert_close(subject.predict(images), expected, atol=1e-4, rtol=1e-4)


def test_a_network_that_refuses_odd_sizes_is_fed_what_it_takes():
    subject = learner(smp_network("FPN", **FPN), output_stride=32)
    images, targets = batch(2, (33, 45))
    assert subject.predict(images).shape == (2, 3, 33, 45)
    assert subject.fit_step(images, targets, rng()) > 0
    assert next(subject.sample(images, 1, rng())).shape == (2, 3, 33, 45)


def test_predict_is_the_network_in_evaluation_mode_and_changes_nothing():
    network = tiny_network().train()
    subject = learner(network, mean=(0, 0, 0), std=(1, 1, 1))
    before, images = subject.state_dict(), batch()[0]
    found = subject.predict(images)
    torch.testing.assert_close(found, network.eval()(images / 255), atol=1e-5, rtol=1e-5)
    assert torch.equal(subject.predict(images), found)
    assert equal_states(subject.state_dict(), before)
    assert found.dtype == torch.float32


def test_evaluate_counts_all_batches():
    subject = learner()
    batches = [batch(2, seed=1, labelled=0.5), batch(1, seed=2)]
    predicted = [subject.predict(images).argmax(dim=1).flatten() for images, _ in batches]
    expected = confusion_matrix(torch.cat(predicted), torch.cat([t.flatten() for _, t in batches]), 3)
    assert torch.equal(subject.evaluate(iter(batches)), expected)


def test_options_of_precision_and_layout_agree():
    images = batch()[0]
    exact = learner(tiny_network()).predict(images)
    contiguous = learner(tiny_network(), channels_last=False).predict(images)
    torch.testing.assert_close(contiguous, exact, atol=1e-5, rtol=1e-5)
    rounded = learner(tiny_network(), precision="bfloat16").predict(images)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.05)


def count_calls(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(None))
    return calls


def rerun_with_dropout(network, images, seed):
    """Rerun all of an smp network with dropout after the encoder, drawn from ``seed``."""
    network.eval()
    for part in (network.decoder, network.segmentation_head):
        for module in part.modules():
            if isinstance(module, nn.Dropout | nn.Dropout2d):
                module.train()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        return network(images / 255)


@pytest.mark.parametrize(("architecture", "options"), [("FPN", FPN), ("PSPNet", {}), ("DeepLabV3Plus", DEEPLAB)])
def test_samples_equal_full_reruns_and_the_encoder_runs_once(architecture, options):
    network = smp_network(architecture, **options)
    subject = learner(network, mean=(0, 0, 0), std=(1, 1, 1), channels_last=False)
    images = batch(2, (32, 64))[0]
    before = subject.state_dict()
    calls = count_calls(network.encoder)
    samples = [sample.clone() for sample in subject.sample(images, 4, rng())]
    assert len(calls) == 1
    assert equal_states(subject.state_dict(), before)
    assert not any(module.training for module in network.modules())
    assert not torch.equal(samples[0], samples[1])
    seed = int(rng().integers(2**63))
    for index, sample in enumerate(samples):
        expected = rerun_with_dropout(copy.deepcopy(network), images, (seed + index) % 2**63)
        torch.testing.assert_close(sample, expected, atol=1e-4, rtol=1e-4)
        network.eval()


def test_samples_average_to_the_expectation_of_dropout():
    """Channels dropped with p = 1/2 after ReLU: a linear head's mean over samples is its undropped output."""
    subject = learner(tiny_network())
    images = batch(1, (6, 6))[0]
    mean = torch.stack(list(subject.sample(images, 600, rng()))).mean(dim=0)
    assert (mean - subject.predict(images)).abs().max() < 0.25


def test_batchnorm_stays_in_evaluation_mode_while_sampling():
    network = tiny_network()
    subject = learner(network, fold_batchnorm=False)
    modes = []
    network.body[1].register_forward_hook(lambda module, *_: modes.append(module.training))
    list(subject.sample(batch()[0], 2, rng()))
    assert modes == [False, False]


def test_sampling_needs_dropout():
    subject = learner(tiny_network(dropout=0.0))
    assert not subject.has_dropout
    with pytest.raises(ValueError, match="TinyNetwork has no dropout, so its samples would all be equal"):
        next(subject.sample(batch()[0], 2, rng()))


def test_dropout_in_the_encoder_alone_is_sampled():
    """Else all samples were equal, and BALD 0."""
    network = smp_network("FPN", decoder_dropout=0.0, **FPN)
    network.encoder = nn.Sequential(nn.Dropout(0.5), network.encoder)
    network.check_input_shape = lambda x: None
    subject = learner(network)
    assert subject.has_dropout
    samples = [sample.clone() for sample in subject.sample(batch(2, (32, 64))[0], 2, rng())]
    assert not torch.equal(*samples)


def test_a_learner_pickles():
    subject = learner(learning_rate=0.1)
    subject.fit_step(*batch(), rng())
    other = pickle.loads(pickle.dumps(subject))
    assert equal_states(other.state_dict(), subject.state_dict())
    for one in (subject, other):
        one.fit_step(*batch(seed=1), rng())
    assert equal_states(other.state_dict(), subject.state_dict())
    other.reset()
    assert not equal_states(other.state_dict(), subject.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu7"}, "device is 'gpu7'; expected a device .*'cpu', or 'auto'"),
        ({"device": f"cuda:{torch.cuda.device_count()}"}, "device is .cuda:..; expected a device"),
        ({"precision": "float16"}, "precision is 'float16'; expected one of 'auto', 'float32', 'bfloat16'"),
        ({"batch_size": 0}, "batch_size is 0; expected a whole number from 1 to 65536"),
    ],
)
def test_options_that_cannot_be_used(options, message):
    with pytest.raises(ValueError, match=message):
        learner(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="describes a machine without a GPU")
def test_auto_takes_what_is_there(monkeypatch):
    subject = TorchLearner(tiny_network(), 3)
    assert subject.device.type == "cpu"
    assert subject.dtype in {torch.float32, torch.bfloat16}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert check_device("device", "auto") == torch.device("cuda")


@pytest.mark.parametrize("architecture", ["DeepLabV3Plus", "PSPNet", "FPN"])
def test_a_lone_crop_that_batchnorm_refuses_trains_with_its_mirror_image(architecture):
    one = learner(smp_network(architecture), precision="float32", output_stride=32)
    images, targets = batch(1, (32, 32))
    before = copy.deepcopy(one.network.state_dict())
    assert np.isfinite(one.fit_step(images, targets, rng()))
    after = one.network.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert all(bool(torch.isfinite(value).all()) for value in after.values())


def test_a_lone_crop_costs_what_the_pair_with_its_mirror_image_costs():
    network = smp_network("DeepLabV3Plus")
    images, targets = batch(1, (32, 32))
    lone = learner(copy.deepcopy(network), precision="float32", output_stride=32)
    pair = learner(copy.deepcopy(network), precision="float32", output_stride=32)
    mirrored = torch.cat([images, images.flip(3)]), torch.cat([targets, targets.flip(2)])
    assert lone.fit_step(images, targets, rng()) == pair.fit_step(*mirrored, rng())
    assert equal_states(lone.network.state_dict(), pair.network.state_dict())


def test_evaluating_a_diverged_network_is_an_error():
    broken = learner()
    with torch.no_grad():
        next(broken.network.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite.*learning"):
        broken.evaluate([batch(2)])


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_segmentation_networks_of_torchvision_work_as_they_are(name):
    torch.manual_seed(0)
    network = getattr(torchvision.models.segmentation, name)(weights=None, weights_backbone=None, num_classes=3)
    expected = copy.deepcopy(network).eval()
    subject = learner(network, fold_batchnorm=False)
    images, targets = batch(size=(32, 48))
    with torch.no_grad():
        wanted = expected(subject.prepare(images))["out"]
    torch.testing.assert_close(subject.predict(images), wanted)
    before = subject.state_dict()
    subject.fit_step(images, targets, rng())
    assert not equal_states(before["network"], subject.state_dict()["network"])
    twin = copy.deepcopy(subject)
    assert torch.equal(twin.predict(images), subject.predict(images))
