"""Networks of segmentation-models-pytorch, and weights that are read and written."""

import json
import os
import pickle

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from fakes import ClosedFormLearner
from safetensors.torch import load_file, save_file
from segmentation_models_pytorch.decoders.fpn.decoder import MergeBlock

from al_seg_env import LearnerConfig, load_weights, save_weights
from al_seg_env.learner.building import build_network, default_batch_size, normalisation
from al_seg_env.learner.light import Light
from al_seg_env.learner.weights import save_smp, weights_digest

CLASSES = ("road", "car", "sky")
SMALL = {
    "encoder": "tu-tf_mobilenetv3_small_minimal_100",
    "network_options": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
    "device": "cpu",
    "precision": "float32",
}


def config(**options):
    return LearnerConfig(**{**SMALL, **options})


@pytest.fixture(scope="module")
def trained():
    """A learner whose weights and BatchNorm statistics are no longer the initial ones."""
    learner = config().build(CLASSES)
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, size=(2, 3, 32, 32), dtype=np.uint8))
    learner.fit_step(images, torch.zeros(2, 32, 32, dtype=torch.uint8), rng)
    return learner


@pytest.fixture
def saved(trained, tmp_path):
    path = tmp_path / "deep" / "theta_0.safetensors"
    save_weights(trained, path, CLASSES)
    return path


def differences(one, other):
    assert one.keys() == other.keys()
    return [key for key in one if not torch.equal(one[key], other[key])]


def test_weights_come_back_exactly(trained, saved):
    learner = config(weights=str(saved)).build(CLASSES)
    assert not differences(learner.network.state_dict(), trained.network.state_dict())
    assert os.listdir(saved.parent) == [saved.name]  # nothing unfinished is left


@pytest.mark.parametrize("name", ["theta_0", "theta_0.pt", "theta_0.weights"])
def test_weights_come_back_whatever_the_file_is_called(trained, tmp_path, name):
    save_weights(trained, tmp_path / name, CLASSES)
    network = build_network(config(weights_seed=3), 3)
    load_weights(network, tmp_path / name, CLASSES)
    assert not differences(network.state_dict(), trained.network.state_dict())


def test_a_save_writes_beside_the_file_and_then_replaces_it(trained, saved, monkeypatch):
    written = []

    def spy(tensors, path, metadata):
        written.append(path)
        save_file(tensors, path, metadata)

    monkeypatch.setattr("al_seg_env.learner.weights.save_file", spy)
    save_weights(trained, saved, CLASSES)
    assert [path.parent for path in written] == [saved.parent]
    assert saved not in written


def test_an_interrupted_save_leaves_the_old_file_and_no_other(trained, saved, monkeypatch):
    before = saved.read_bytes()

    def interrupted(tensors, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("al_seg_env.learner.weights.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_weights(trained, saved, CLASSES)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_equal_weights_are_equal_files(trained, tmp_path):
    """Of several entries, safetensors would write the order of the moment, so that files of equal weights differed."""
    for number in range(5):
        save_weights(trained, tmp_path / str(number), CLASSES)
    assert len({(tmp_path / str(number)).read_bytes() for number in range(5)}) == 1


def three_entries(path, tensors, classes=CLASSES):
    """Write weights as the versions before one metadata entry did."""
    save_file(tensors, path, {"format": "al-seg-env weights", "version": "1", "classes": json.dumps(list(classes))})


def test_weights_written_before_still_load(trained, saved, tmp_path):
    before = tmp_path / "before.safetensors"
    three_entries(before, {k: v.contiguous() for k, v in trained.network.state_dict().items()})
    learner = config(weights=str(before)).build(CLASSES)
    assert not differences(learner.network.state_dict(), trained.network.state_dict())
    assert weights_digest(before) == weights_digest(saved)
    with pytest.raises(ValueError, match="are for the classes"):
        load_weights(learner.network, before, ("road", "car"))


def test_weights_are_told_apart_by_their_tensors(trained, saved, tmp_path):
    other = config(weights_seed=5).build(CLASSES)
    save_weights(other, tmp_path / "other", CLASSES)
    assert weights_digest(tmp_path / "other") != weights_digest(saved)
    (tmp_path / "broken").write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(ValueError, match="broken' cannot be read as safetensors"):
        weights_digest(tmp_path / "broken")


def test_any_learner_with_a_network_has_weights_to_write(trained, saved, tmp_path):
    class Another:
        network = trained.network

    save_weights(Another(), tmp_path / "another", CLASSES)
    assert (tmp_path / "another").read_bytes() == saved.read_bytes()
    with pytest.raises(ValueError, match="ClosedFormLearner has no network whose weights could be written"):
        save_weights(ClosedFormLearner(), tmp_path / "none", CLASSES)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_encoder_weights_from_a_local_file(tmp_path, suffix):
    encoder = build_network(config(weights_seed=7), 3).encoder
    tensors = {**encoder.state_dict(), "classifier.weight": torch.zeros(1000, 4)}  # published files have one
    path = tmp_path / f"encoder{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(tensors, path)
    network = build_network(config(encoder_weights=str(path)), 3)
    assert not differences(network.encoder.state_dict(), encoder.state_dict())
    plain = build_network(config(), 3)
    assert differences(plain.encoder.state_dict(), encoder.state_dict())
    assert not differences(network.decoder.state_dict(), plain.decoder.state_dict())


def test_random_weights_depend_on_weights_seed_alone():
    torch.manual_seed(1)
    one, global_state = build_network(config(), 3).state_dict(), torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), global_state)
    torch.manual_seed(2)
    assert not differences(build_network(config(), 3).state_dict(), one)
    assert differences(build_network(config(weights_seed=1), 3).state_dict(), one)


@pytest.mark.filterwarnings("ignore:.timm-. encoders are deprecated")
def test_images_are_normalised_as_the_encoder_was_trained():
    assert normalisation("resnet50") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalisation("timm-tf_efficientnet_lite0") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    learner = config(encoder="timm-tf_efficientnet_lite0").build(CLASSES)
    black, white = (torch.full((1, 3, 32, 32), value, dtype=torch.uint8) for value in (0, 255))
    assert learner.prepare(black).unique().tolist() == pytest.approx([-1])
    assert learner.prepare(white).unique().tolist() == pytest.approx([1])


@pytest.mark.parametrize("architecture", ["Unet", "PSPNet", "DeepLabV3Plus"])
def test_other_architectures_of_smp(architecture):
    options = {"decoder_channels": (32, 16, 16, 8, 8)} if architecture == "Unet" else {}
    learner = config(architecture=architecture, network_options=options, max_grad_norm=4.0).build(CLASSES)
    images = torch.zeros(2, 3, 33, 47, dtype=torch.uint8)
    assert learner.predict(images).shape == (2, 3, 33, 47)
    assert learner.fit_step(images, torch.zeros(2, 33, 47, dtype=torch.uint8), np.random.default_rng(0)) > 0
    assert learner.has_dropout == (architecture != "Unet")


def rewrite(path, change=lambda tensors: None, metadata=None):
    """Write the file of weights again with something changed."""
    tensors = load_file(path)
    change(tensors)
    valid = {"format": "al-seg-env weights", "version": "1", "classes": json.dumps(CLASSES)}
    save_file(tensors, path, valid if metadata is None else metadata)


def misfit(path):
    """Return the message with which a file is refused."""
    with pytest.raises(ValueError) as error:
        config(weights=str(path)).build(CLASSES)
    assert repr(str(path)) in str(error.value)
    return str(error.value)


def test_missing_unknown_and_wrongly_shaped_tensors_are_all_named(saved):
    def change(tensors):
        del tensors["segmentation_head.0.bias"]
        tensors["mystery"] = torch.zeros(2)
        tensors["segmentation_head.0.weight"] = torch.zeros(7, 32, 1, 1)

    rewrite(saved, change)
    message = misfit(saved)
    assert "1 missing: segmentation_head.0.bias" in message
    assert "1 unknown: mystery" in message
    assert "1 of another shape: segmentation_head.0.weight: (7, 32, 1, 1) in the file, (3, 32, 1, 1)" in message
    assert "Use the architecture, encoder and number of classes that they were trained with" in message


def test_weights_of_another_architecture(saved):
    with pytest.raises(ValueError, match=r"do not match Unet; \d+ missing: .*, \.\.\.; \d+ unknown:"):
        config(architecture="Unet", network_options={}, weights=str(saved)).build(CLASSES)


@pytest.mark.parametrize("classes", [("road", "car"), ("car", "road", "sky"), ("road", "car", "sky", "bus")])
def test_weights_of_other_classes(saved, classes):
    with pytest.raises(ValueError, match=r"theta_0.* are for the classes \['road', 'car', 'sky'\], but the data have"):
        config(weights=str(saved)).build(classes)


@pytest.mark.parametrize(
    "metadata", [{}, {"format": "pt"}, {"format": "al-seg-env weights", "version": "2", "classes": "[]"}]
)
def test_weights_of_another_format(saved, metadata):
    rewrite(saved, metadata=metadata)
    message = misfit(saved)
    assert "are not 'al-seg-env weights', version 1" in message
    assert "make them with save_weights()" in message


def test_a_truncated_file(saved):
    whole = saved.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:length])
        assert "cannot be read as safetensors" in misfit(saved)


def test_a_file_that_is_not_there(tmp_path):
    assert "there is no such file" in misfit(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="there is no such file"):
        build_network(config(encoder_weights=str(tmp_path / "none.pth")), 3)


def test_a_download_that_fails_says_what_to_do(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("al_seg_env.learner.building.smp.create_model", unreachable)
    with pytest.raises(ValueError, match=r"'imagenet' .* could not be downloaded \(no route.*use a local file"):
        build_network(config(encoder_weights="imagenet"), 3)


class Dangerous:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_a_pickle_is_never_executed(tmp_path, protocol):
    path, mark = tmp_path / "encoder.pth", tmp_path / "executed"
    if protocol == "torch":
        torch.save({"weight": Dangerous(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Dangerous(mark)))
    with pytest.raises(ValueError, match=r"encoder\.pth' cannot be read"):
        build_network(config(encoder_weights=str(path)), 3)
    with pytest.raises(ValueError, match=r"encoder\.pth' cannot be read"):
        load_weights(torch.nn.Linear(1, 1), path, CLASSES)
    assert not mark.exists()


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"epoch": 3}, {"state_dict": {"w": torch.zeros(1)}}])
def test_a_pth_file_that_is_no_state_dict(tmp_path, content):
    path = tmp_path / "encoder.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match="expected a state dict of tensors"):
        build_network(config(encoder_weights=str(path)), 3)


def test_encoder_weights_that_do_not_fit(tmp_path):
    path = tmp_path / "encoder.safetensors"
    save_file({"conv.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"encoder\.safetensors' do not match .*missing: .*1 unknown: conv\.weight"):
        build_network(config(encoder_weights=str(path)), 3)


@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "Transformer9000"},
        {"encoder": "resnet51"},
        {"network_options": {"wings": 2}},
        {"network_options": {"classes": 4}},
        {"encoder_weights": "imagenette", "encoder": "resnet18"},
    ],
)
def test_what_smp_cannot_build_is_a_value_error_that_says_so(options):
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match="segmentation-models-pytorch cannot build") as error:
        build_network(config(**options), 3)
    assert f"{name}={value!r}" in str(error.value)


@pytest.mark.parametrize(
    ("size", "expected"), [((96, 128), 64), ((180, 240), 32), ((360, 480), 8), ((1024, 2048), 1), ((1, 1), 64)]
)
def test_small_images_are_predicted_in_larger_batches(size, expected):
    assert default_batch_size(size) == expected
    assert config().build(CLASSES, size).batch_size == expected
    assert config(batch_size=3).build(CLASSES, size).batch_size == 3


@pytest.mark.parametrize(("size", "expected"), [((96, 128), 64), ((360, 480), 32), ((1024, 2048), 2)])
def test_a_head_on_deep_strides_runs_in_larger_batches(size, expected):
    assert default_batch_size(size, deep=True) == expected
    light = {"architecture": "Light", "network_options": {}}
    assert config(**light, trainable="decoder").build(CLASSES, size).batch_size == expected
    assert config(**light).build(CLASSES, size).batch_size == default_batch_size(size)


def test_feature_maps_are_added_as_smp_does():
    network = build_network(config(), 3)
    maps = [torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    torch.testing.assert_close(network.decoder.merge(maps), MergeBlock("add")(maps))
    parts = build_network(config(network_options={"decoder_merge_policy": "cat"}), 3).decoder.merge
    assert isinstance(parts, MergeBlock)


# segmentation-models-pytorch's own format


IMAGES = torch.randint(0, 256, (2, 3, 32, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def prepared(images):
    """What the learner's network is given: images normalised as its encoder expects them."""
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in normalisation(SMALL["encoder"]))
    return (images / 255 - mean) / std


@torch.inference_mode()
def logits(network, images=IMAGES):
    return network.eval()(prepared(images))


def test_smp_loads_what_is_written_for_it_with_equal_logits(trained, saved, tmp_path):
    save_smp(trained.network, tmp_path / "smp", CLASSES)
    loaded = smp.from_pretrained(tmp_path / "smp")
    assert not differences(loaded.state_dict(), trained.network.state_dict())
    torch.testing.assert_close(logits(loaded), trained.predict(IMAGES), rtol=1e-4, atol=1e-5)
    assert sorted(os.listdir(tmp_path / "smp")) == ["classes.json", "config.json", "model.safetensors"]
    assert weights_digest(tmp_path / "smp") == weights_digest(saved)  # whatever the format, theta_0 is the same


@pytest.mark.parametrize("trainable", ["all", "decoder"])
def test_what_smp_writes_is_theta_0(tmp_path, trainable):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = smp.create_model("FPN", SMALL["encoder"], None, classes=3, **SMALL["network_options"])
    network.save_pretrained(str(tmp_path))
    learner = config(weights=tmp_path, trainable=trainable, feature_precision="float32").build(CLASSES)
    whole = getattr(learner, "whole_state_dict", learner.network.state_dict)()
    assert not differences({key: whole[key] for key in network.state_dict()}, network.state_dict())
    if trainable == "all":
        torch.testing.assert_close(learner.predict(IMAGES), logits(network), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"do not match FPN; .*segmentation_head"):
        config(weights=tmp_path).build((*CLASSES, "tree"))


def test_a_folder_of_smp_that_cannot_be_theta_0_says_why(trained, tmp_path):
    save_smp(trained.network, tmp_path, CLASSES)
    with pytest.raises(ValueError, match=r"are for the classes \['road', 'car', 'sky'\], but the data have \['sky'"):
        config(weights=tmp_path).build(CLASSES[::-1])
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"a folder without model\.safetensors; expected what save_pretrained\(\)"):
        config(weights=tmp_path).build(CLASSES)
    with pytest.raises(ValueError, match=r"Light is not a network of segmentation-models-pytorch.*use save_weights"):
        save_smp(Light(SMALL["encoder"], None, classes=3), tmp_path, CLASSES)
