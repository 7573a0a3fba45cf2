"""The copy that predicts computes what the network does, and follows its weights."""

import copy
import pickle

import pytest
import segmentation_models_pytorch as smp
import torch
from fakes import TinyNetwork, tiny_network
from torch import nn

from al_seg_env import TorchLearner
from al_seg_env.learner.cpu_tuning import use_better_kernels
from al_seg_env.learner.folding import InferenceCopy

EXACT = (torch.float32, torch.contiguous_format)


def images(size=(32, 64), count=2):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))


def with_statistics(network):
    """Give each BatchNorm statistics and weights of its own, as training would."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                with torch.no_grad():
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.uniform_(-0.3, 0.3, generator=generator)
    return network.eval()


def smp_network(architecture="FPN", encoder="tu-tf_mobilenetv3_small_minimal_100"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return with_statistics(smp.create_model(architecture, encoder, encoder_weights=None, classes=3))


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [
        ("FPN", "resnet18"),
        ("FPN", "tu-tf_mobilenetv3_small_minimal_100"),
        ("Unet", "resnet18"),
        ("PSPNet", "resnet18"),
        ("DeepLabV3Plus", "tu-tf_mobilenetv3_small_minimal_100"),
    ],
)
def test_folding_changes_nothing_but_the_layers(architecture, encoder):
    network = smp_network(architecture, encoder)
    follower = InferenceCopy(network, images(), *EXACT)
    with torch.no_grad():
        for x in (images(), images((64, 32), count=1)):
            assert_same(follower.updated()(x), network(x))
    left = [module for module in follower.network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(left) < sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) / 2


class Block(nn.Module):
    def __init__(self, bias, affine):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(5, affine=affine)

    def forward(self, x):
        return self.norm(self.conv(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_pair_by_hand(bias, affine):
    network = with_statistics(Block(bias, affine))
    follower = InferenceCopy(network, images(), *EXACT).updated()
    assert isinstance(follower.norm, nn.Identity)
    scale = (network.norm.weight if affine else 1) / (network.norm.running_var + network.norm.eps).sqrt()
    torch.testing.assert_close(follower.conv.weight, network.conv.weight * scale.view(-1, 1, 1, 1))
    with torch.no_grad():
        assert_same(follower(images()), network(images()))


class UsedTwice(Block):
    """What the convolution gives is needed before the BatchNorm, too."""

    def forward(self, x):
        raw = self.conv(x)
        return self.norm(raw) + raw


class SharedNorm(Block):
    def forward(self, x):
        return self.norm(self.conv(x)) + self.norm(self.conv(x.flip(3)))


class Standardised(nn.Conv2d):
    """A convolution that makes something else of its weights."""

    def forward(self, x):
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight / weight.std(dim=(1, 2, 3), keepdim=True), self.bias, padding=1)


class StandardisedBlock(Block):
    def __init__(self):
        super().__init__(True, True)
        self.conv = Standardised(3, 5, 3)


class Refusing(Block):
    """Can't be copied."""

    def __deepcopy__(self, memo):
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "network",
    [UsedTwice(True, True), SharedNorm(True, True), StandardisedBlock(), Refusing(True, True), nn.Conv2d(3, 4, 1)],
    ids=lambda network: type(network).__name__,
)
def test_where_folding_would_be_wrong_the_network_itself_predicts(network):
    network = with_statistics(network)  # of its own only after construction: at 0 and 1, folding would pass unnoticed
    follower = InferenceCopy(network, images(), *EXACT)
    with torch.no_grad():
        assert torch.equal(follower.updated()(images()), network(images()))


def test_the_copy_follows_every_way_in_which_weights_change():
    network = smp_network()
    follower = InferenceCopy(network, images(), *EXACT)
    first = copy.deepcopy(network.state_dict())

    def by_optimizer():
        torch.optim.SGD(network.parameters(), lr=1e-6).step()

    def by_training():
        network.train()(images()).mean().backward()
        network.eval()

    def by_loading():
        network.load_state_dict(first)

    def by_replacing():
        network.segmentation_head[0].weight = nn.Parameter(network.segmentation_head[0].weight.detach() * 2)

    def by_buffer():
        next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d)).running_mean.add_(0.1)

    with torch.no_grad():
        last = follower.updated()(images()).clone()
    for change in (by_training, by_optimizer, by_replacing, by_loading, by_buffer):
        change()
        with torch.no_grad():
            found, expected = follower.updated()(images()), network(images())
        assert_same(found, expected)
        assert not torch.equal(found, last), change.__name__
        last = found


def test_a_learner_predicts_the_same_with_and_without_folding():
    pictures = (images((33, 45)) * 255).to(torch.uint8)
    options = {"device": "cpu", "precision": "float32", "output_stride": 32}
    folded, plain = (TorchLearner(smp_network(), 3, fold_batchnorm=fold, **options) for fold in (True, False))
    for _ in range(2):
        found = folded.predict(pictures)
        torch.testing.assert_close(found, plain.predict(pictures), atol=2e-4 * float(found.abs().max()), rtol=0)
        assert folded._inference.network is not folded.network
        state = plain.state_dict()
        for value in state["network"].values():
            if value.is_floating_point():
                value.mul_(1.1)
        for learner in (folded, plain):
            learner.load_state_dict(state)


def test_another_network_gets_another_copy():
    learner = TorchLearner(tiny_network(), 3, device="cpu", precision="float32")
    pictures = (images((8, 8)) * 255).to(torch.uint8)
    before = learner.predict(pictures)
    torch.manual_seed(5)
    learner.network = TinyNetwork().eval()
    assert not torch.equal(learner.predict(pictures), before)


def test_a_learner_that_has_predicted_pickles():
    learner = TorchLearner(smp_network(), 3, device="cpu", precision="float32")
    pictures = (images() * 255).to(torch.uint8)
    expected = learner.predict(pictures)
    for other in (pickle.loads(pickle.dumps(learner)), copy.deepcopy(learner)):
        assert torch.equal(other.predict(pictures), expected)


# ---- layers that avoid slow kernels


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.GroupNorm(4, 8)
        self.up = nn.UpsamplingBilinear2d(scale_factor=2)

    def forward(self, x):
        return self.up(self.norm(self.depthwise(self.plain(x))))


def gradients(network, dtype, layout):
    network.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        network(images((12, 10)).contiguous(memory_format=layout)).float().square().mean().backward()
    return [parameter.grad.clone() for parameter in network.parameters()]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_better_kernels_have_the_same_gradients(layout):
    torch.manual_seed(0)
    network = Layers()
    better = copy.deepcopy(network)
    use_better_kernels(better)
    assert better.state_dict().keys() == network.state_dict().keys()
    assert type(better.plain) is nn.Conv2d
    assert type(better.depthwise) is not nn.Conv2d
    exact = gradients(network, torch.float32, torch.contiguous_format)
    for found, expected in zip(gradients(better, torch.float32, layout), exact, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    for found, expected in zip(gradients(better, torch.bfloat16, layout), exact, strict=True):
        assert (found - expected).norm() <= 0.05 * exact[0].norm()
