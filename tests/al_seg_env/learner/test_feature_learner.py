"""The learner on cached features equals the whole network with its encoder frozen."""

import copy
import pickle

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from fakes import numbered_data
from torch import nn

from al_seg_env.datasets.frames import Frames
from al_seg_env.learner import feature_learner
from al_seg_env.learner.feature_learner import FeatureLearner
from al_seg_env.learner.inputs import labelled_batches
from al_seg_env.learner.light import Light
from al_seg_env.observation.region_pixels import RegionPixels
from al_seg_env.regions import RegionGrid

SIZE = (70, 101)  # neither is a multiple of anything
ENCODER = "tu-tf_mobilenetv3_small_minimal_100"
ARCHITECTURES = ("Light", "FPN", "Unet", "PSPNet", "DeepLabV3Plus")
EXACT = {"device": "cpu", "precision": "float32", "feature_precision": "float32"}


@pytest.fixture(scope="module")
def frames():
    return Frames(numbered_data(6, SIZE, void=0.1))


def network(architecture="Light", dropout=True, dilations=(), stride=16):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if architecture == "Light":
            made = Light(ENCODER, classes=3, width=16, stride=stride, dilations=dilations)
        else:
            made = smp.create_model(architecture, encoder_name=ENCODER, encoder_weights=None, classes=3)
    for module in made.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and not dropout:
            module.p = 0.0
        if isinstance(module, nn.BatchNorm2d):  # as if trained: not 0 and 1
            module.running_mean.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(1))
            module.running_var.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(2))
    return made


def learner(made=None, **options):
    settings = {"output_stride": 32, "learning_rate": 0.05, **EXACT, **options}
    return FeatureLearner(network() if made is None else made, 3, **settings)


def whole(made):
    """Return the network itself, as a learner in float32 runs it."""
    return copy.deepcopy(made).eval().to(memory_format=torch.channels_last)


def logits_of_whole(reference, of, frames, images):
    prepare = of.encoder.prepare
    pixels = [frames.images([image]) for image in images]
    with torch.inference_mode():
        return torch.cat([prepare.undo(reference(prepare(image)), image) for image in pixels])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_features_and_logits_are_those_of_the_whole_network_bit_for_bit(frames, architecture):
    made = network(architecture)
    subject, reference = learner(made, fold_batchnorm=False), whole(made)
    inputs = subject.inputs(frames)
    for image in (0, 3):
        with torch.inference_mode():
            expected = reference.encoder(subject.encoder.prepare(frames.images([image])))
        for number, stored in zip(subject.encoder.read, inputs.maps(image), strict=True):
            assert torch.equal(stored, expected[number][0].permute(1, 2, 0))
        assert torch.equal(subject.predict(inputs.whole([image])), logits_of_whole(reference, subject, frames, [image]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_what_is_read_is_kept(architecture):
    read = {"Light": (4, 5), "FPN": (2, 3, 4, 5), "Unet": (1, 2, 3, 4, 5), "PSPNet": (3,), "DeepLabV3Plus": (2, 5)}
    assert learner(network(architecture)).encoder.read == read[architecture]


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_is_one_of_the_whole_network_with_frozen_parameters(frames, architecture, stride):
    grid, images = RegionGrid(SIZE, (21, 30)), (0, 2, 5)
    regions = [3, 2 * 16 + 7, 2 * 16 + 8, 5 * 16 + 15]  # the last is a smaller one of the grid's corner
    assert grid.regions_per_image == 16
    made = network(architecture, dropout=False)
    options = {"momentum": 0.9, "weight_decay": 1e-3, "label_stride": stride}
    subject, reference = learner(made, **options), whole(made)
    views, targets = subject.inputs(frames).training_views(
        grid, regions, frames.mask, (30, 30), np.random.default_rng()
    )
    loss = subject.fit_step(views, targets, np.random.default_rng(0))

    reference.train()
    reference.encoder.eval().requires_grad_(False)
    labels = torch.full((3, *SIZE), 255)
    for region in regions:
        box = grid.box(region)
        box.crop(labels[images.index(box.image)]).copy_(box.crop(torch.from_numpy(frames.mask(box.image))))
    if stride > 1:
        rng = np.random.default_rng(0)
        rng.integers(2**63)  # seeds the dropout
        first = rng.integers(stride, size=2)
        for side in (0, 1):
            left_out = torch.arange(SIZE[side]) % stride != first[side]
            labels.movedim(side + 1, 0)[left_out] = 255
    trained = [p for p in reference.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9, weight_decay=1e-3)
    pixels, prepare = frames.images(images), subject.encoder.prepare
    expected = F.cross_entropy(prepare.undo(reference(prepare(pixels)), pixels), labels, ignore_index=255)
    expected.backward()
    optimizer.step()

    assert loss == pytest.approx(expected.item(), rel=1e-5)
    found = subject.whole_state_dict()
    assert found.keys() == reference.state_dict().keys()
    before = made.state_dict()
    for key, value in reference.state_dict().items():
        assert torch.allclose(found[key], value, atol=1e-6), key
        if key.startswith("encoder."):
            assert torch.equal(found[key], before[key]), key
    assert any(not torch.equal(found[key], before[key]) for key in found)


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_of_boxes_are_those_of_whole_images(frames, architecture, stride):
    grid, subject = RegionGrid(SIZE, (21, 30)), learner(network(architecture))
    batch = subject.inputs(frames).whole([0, 1, 4])
    logits = subject.predict(batch)
    regions = np.array([0, 3, 5, 16 + 12, 16 + 15, 32 + 9])
    groups = [
        RegionPixels(grid, part // 16, part % 16, torch.device("cpu"), stride) for part in (regions[:4], regions[4:])
    ]
    found = list(subject.predict_boxes(batch, [pixels.boxes() for pixels in groups]))
    assert len(found) == 2
    for pixels, of_boxes in zip(groups, found, strict=True):
        assert torch.allclose(of_boxes, pixels.gather(logits), atol=1e-5)


HEADS = [((), 16), ((2,), 16), ((1, 3), 16), ((), 8), ((3,), 8), ((2,), 4)]


@pytest.mark.parametrize(("dilations", "stride"), HEADS)
@pytest.mark.parametrize("region_size", [(40, 48), (33, 27)])
def test_windows_of_light_hold_all_that_logits_depend_on(region_size, dilations, stride):
    size = (410, 460)
    frames = Frames(numbered_data(2, size))
    grid, subject = RegionGrid(size, region_size), learner(network(dilations=dilations, stride=stride))
    inputs = subject.inputs(frames)
    batch = inputs.whole([0, 1])
    logits = subject.predict(batch)
    for cell in range(grid.regions_per_image):
        pixels = RegionPixels(
            grid, np.array([0, 1]), np.array([cell, -1 - cell]) % grid.regions_per_image, logits.device
        )
        windows = inputs.windows(batch, pixels.boxes())
        assert windows is not None
        assert max(windows.image_size) < 410
        (found,) = subject.predict_boxes(batch, [pixels.boxes()])
        assert torch.allclose(found, pixels.gather(logits), atol=1e-6 * float(logits.abs().max()))


@pytest.mark.parametrize(("dilations", "stride"), HEADS)
def test_the_reach_of_light_is_not_larger_than_needed(dilations, stride):
    # By gradients: what the logits of a pixel depend on, in pixels of the cells of all the strides that are read.
    made = network(dilations=dilations, stride=stride).eval()
    strides = [cell for cell in (4, 8, 16, 32) if cell >= stride]
    maps = [torch.rand(1, count, 512 // 2**n, 512 // 2**n) for n, count in enumerate(made.encoder.out_channels)]
    maps = [values.requires_grad_() for values in maps]
    reached = 0
    for pixel in range(240, 272):
        logits = made.segmentation_head(made.decoder(maps))[0, :, pixel, pixel]
        gradients = torch.autograd.grad(logits.sum(), maps[-len(strides) :])
        for values, cell in zip(gradients, strides, strict=True):
            cells = values[0].abs().sum(dim=(0, 2)).nonzero().flatten()
            first, last = int(cells[0]) * cell, int(cells[-1]) * cell
            reached = max(reached, pixel - (first + cell - 1), last - pixel)
    assert reached == made.reach


@pytest.mark.parametrize("stride", [2, 32, 12, "8", 8.5, None])
def test_strides_that_light_does_not_read_are_refused(stride):
    with pytest.raises(ValueError, match="stride is"):
        network(stride=stride)


@pytest.mark.parametrize("dilations", [2, "2", (0,), (1.5,), (True,)])
def test_dilations_that_are_no_positive_whole_numbers_are_refused(dilations):
    with pytest.raises(ValueError, match="dilations is"):
        network(dilations=dilations)


@pytest.mark.parametrize("dilations", [(), (2,)])
def test_a_step_on_windows_is_one_on_whole_images(dilations):
    size = (410, 460)
    frames = Frames(numbered_data(2, size))
    grid, rng = RegionGrid(size, (50, 60)), np.random.default_rng(0)
    made = network(dropout=False, dilations=dilations)
    on_windows, on_images = learner(made), learner(made)
    regions = [0, 25, 71]
    views, targets = on_windows.inputs(frames).training_views(grid, regions, frames.mask, None, rng)
    assert views.window is not None
    assert int((targets != 255).sum()) == sum(grid.box(r).size[0] * grid.box(r).size[1] for r in regions)
    inputs = on_images.inputs(frames)
    inputs.reach = None
    whole_views, whole_targets = inputs.training_views(grid, regions, frames.mask, None, rng)
    assert whole_views.window is None
    losses = on_windows.fit_step(views, targets, rng), on_images.fit_step(whole_views, whole_targets, rng)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for key, value in on_images.network.state_dict().items():
        assert torch.allclose(on_windows.network.state_dict()[key], value, atol=1e-6), key


@pytest.mark.parametrize("cached", [1, 2**20])
def test_evaluation_on_a_grid_counts_the_pixels_of_the_grid(frames, cached, monkeypatch):
    monkeypatch.setattr(feature_learner, "CACHED", cached)  # image by image, or all at once
    subject = learner()
    inputs, images = subject.inputs(frames), [1, 2, 3]
    confusion = subject.evaluate(labelled_batches(inputs, frames, images, 2), 3)
    classes = subject.predict(inputs.whole(images)).argmax(dim=1)[:, 1::3, 1::3]
    truth = frames.masks(images)[:, 1::3, 1::3].long()
    expected = torch.zeros(3, 3, dtype=torch.int64)
    for true, predicted in zip(truth[truth < 3], classes[truth < 3], strict=True):
        expected[true, predicted] += 1
    assert torch.equal(confusion, expected)


def test_whole_images_are_evaluated_as_predicted(frames):
    subject = learner()
    inputs = subject.inputs(frames)
    confusion = subject.evaluate(labelled_batches(inputs, frames, [1, 2], 2))
    classes, truth = subject.predict(inputs.whole([1, 2])).argmax(dim=1), frames.masks([1, 2])
    assert int(confusion.diagonal().sum()) == int((classes == truth).sum())


@pytest.mark.parametrize("architecture", ["Light", "FPN", "PSPNet"])
def test_samples_differ_by_dropout_and_average_to_the_prediction(frames, architecture):
    subject = learner(network(architecture))
    batch = subject.inputs(frames).whole([0])
    boxes = RegionPixels(RegionGrid(SIZE, SIZE), np.array([0]), np.array([0]), torch.device("cpu")).boxes()
    samples = list(subject.sample_boxes(batch, boxes, 64, np.random.default_rng(0)))
    again = list(subject.sample_boxes(batch, boxes, 64, np.random.default_rng(0)))
    assert all(map(torch.equal, samples, again))
    assert not torch.equal(samples[0], samples[1])
    of_whole = next(subject.sample(batch, 1, np.random.default_rng(0)))
    assert torch.allclose(of_whole[0].flatten(1), samples[0], atol=1e-5)
    (prediction,) = subject.predict_boxes(batch, [boxes])
    mean = torch.stack(samples).mean(dim=0)
    assert (mean - prediction).abs().mean() < 0.3 * prediction.std()


def test_only_what_follows_the_encoder_is_trained_and_restored(frames):
    subject, rng = learner(), np.random.default_rng(0)
    grid, inputs = RegionGrid(SIZE, (35, 51)), subject.inputs(frames)
    theta_0 = subject.state_dict()
    assert not any(key.startswith("encoder.") for key in theta_0["network"])
    subject.fit_step(*inputs.training_views(grid, [0, 5], frames.mask, None, rng), rng)
    after = subject.state_dict()
    assert any(not torch.equal(theta_0["network"][key], after["network"][key]) for key in after["network"])
    subject.reset()
    assert all(torch.equal(theta_0["network"][key], value) for key, value in subject.network.state_dict().items())
    subject.load_state_dict(after)
    assert all(torch.equal(after["network"][key], value) for key, value in subject.network.state_dict().items())


def test_copies_share_the_encoder_and_nothing_that_is_trained(frames):
    subject = learner()
    twin, sent = copy.deepcopy(subject), pickle.loads(pickle.dumps(subject))
    assert twin.encoder is subject.encoder
    batch = subject.inputs(frames).whole([0, 1])
    expected = subject.predict(batch)
    assert torch.equal(sent.predict(sent.inputs(frames).whole([0, 1])), expected)
    views = twin.inputs(frames).training_views(RegionGrid(SIZE, SIZE), [0], frames.mask, None, np.random.default_rng(0))
    twin.fit_step(*views, np.random.default_rng(0))
    assert not torch.equal(twin.predict(batch), expected)
    assert torch.equal(subject.predict(batch), expected)


def test_weights_on_features_of_another_encoder_are_refused():
    other = network()
    with torch.no_grad():
        next(other.encoder.parameters()).add_(0.1)
    with pytest.raises(ValueError, match="features of encoder"):
        learner().load_state_dict(learner(other).state_dict())
    with pytest.raises(ValueError, match="feature_precision"):
        learner().load_state_dict(learner(feature_precision="float16").state_dict())


class Named(nn.Module):
    """A network of one's own, whose encoder has another name and returns a mapping."""

    def __init__(self, skip=False):
        super().__init__()
        self.body = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3, 2, 1), "unused": nn.Conv2d(4, 4, 1)})
        self.backbone = Backbone()
        self.classifier = nn.Conv2d(4, 3, 1)
        self.skip = skip

    def forward(self, x):
        logits = self.classifier(self.backbone(x)["deep"])
        logits = F.interpolate(logits, size=x.shape[-2:], mode="bilinear")
        return logits + x.mean(dim=1, keepdim=True) if self.skip else logits


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.unused = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        return {"shallow": self.unused(x), "deep": x, "nothing": None}


def test_a_network_of_ones_own_names_its_encoder(frames):
    made = Named()
    subject = learner(made, encoder="backbone", output_stride=2)
    assert subject.encoder.read == (1,)
    found = subject.predict(subject.inputs(frames).whole([4]))
    assert torch.equal(found, logits_of_whole(whole(made), subject, frames, [4]))
    assert subject.whole_state_dict().keys() == made.state_dict().keys()


def test_an_encoder_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ValueError, match=r"'encoder', but Named has no module of this name \(it has body, backbone"):
        learner(Named())


class Residual(Named):
    """A network that needs the image beside its features; silently, it would see something else than an image."""

    def forward(self, x):
        logits = super().forward(x)
        return logits + (x.mean(dim=1, keepdim=True) if isinstance(x, torch.Tensor) else 0.0)


def test_a_network_that_looks_past_its_encoder_is_refused():
    with pytest.raises(ValueError, match=r"cannot be divided .* fails without the image \(.*'mean'"):
        learner(Named(skip=True), encoder="backbone", output_stride=2)
    with pytest.raises(ValueError, match="cannot be divided .* computes other logits"):
        learner(Residual(), encoder="backbone", output_stride=2)


def test_an_unknown_precision_of_features_is_refused():
    with pytest.raises(ValueError, match=r"feature_precision is 'int8'; expected one of 'bfloat16', 'float16'"):
        learner(feature_precision="int8")
