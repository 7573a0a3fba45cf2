"""Folders of photographs of which some have masks, or none has."""

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from al_seg_env import Answer
from al_seg_env.datasets import ImageFolder
from al_seg_env.registration import make_env

CLASSES = ["road", "sky"]
TURNED = 6  # EXIF: to be turned by 90 degrees clockwise


def photographs(root, sizes, masks=(), turned=()):
    """Write images ``a``, ``b``, ... of these ``(height, width)``, some with a mask, some lying on their side."""
    rng = np.random.default_rng(0)
    for number, size in enumerate(sizes):
        name = chr(ord("a") + number) if number < 26 else f"z{number}"
        image = Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8))
        exif = Image.Exif()
        if number in turned:
            exif[0x0112] = TURNED
        (root / "images").mkdir(parents=True, exist_ok=True)
        image.save(root / "images" / f"{name}.png", exif=exif)
        if number in masks:
            (root / "masks").mkdir(exist_ok=True)
            upright = size[::-1] if number in turned else size
            labels = rng.integers(0, 2, upright).astype(np.uint8)
            Image.fromarray(labels).save(root / "masks" / f"{name}.png")


def test_without_a_folder_of_masks_nothing_is_labelled(tmp_path):
    photographs(tmp_path, [(20, 30), (20, 30)])
    data = ImageFolder(tmp_path, classes=CLASSES, missing_masks="unlabelled")
    assert data.labelled == ()
    assert data.image_size == (20, 30)
    assert (data.mask(1) == 255).all()
    assert data.fingerprint
    with pytest.raises(ValueError, match="lacks masks"):
        ImageFolder(tmp_path, classes=CLASSES)
    with pytest.raises(ValueError, match="missing_masks is 'none'; expected one of 'error', 'unlabelled'"):
        ImageFolder(tmp_path, classes=CLASSES, missing_masks="none")


def test_of_two_images_with_one_name_one_is_to_be_renamed(tmp_path):
    photographs(tmp_path, [(20, 30)])
    Image.new("RGB", (30, 20)).save(tmp_path / "images" / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg and .*a\.png have the same stem\. Rename one of them$"):
        ImageFolder(tmp_path, classes=CLASSES, missing_masks="unlabelled")


def test_images_of_several_sizes_and_orientations_keep_their_proportions(tmp_path):
    photographs(tmp_path, [(20, 40), (40, 20), (20, 40), (6, 8)], masks=(0, 2), turned=(2,))
    data = ImageFolder(tmp_path, classes=CLASSES, missing_masks="unlabelled", image_size=(20, 20))
    assert data.labelled == (0, 2)
    assert [data.original(i).size for i in range(4)] == [(20, 40), (40, 20), (40, 20), (6, 8)]
    assert [data.original(i).inside for i in range(4)] == [(10, 20), (20, 10), (20, 10), (6, 8)]
    for index, (height, width) in enumerate([(10, 20), (20, 10), (20, 10), (6, 8)]):
        image, mask = data.image(index), data.mask(index)
        assert image.shape == (20, 20, 3)
        assert not image[height:].any()
        assert not image[:, width:].any()
        assert (mask[height:] == 255).all()
        assert (mask[:, width:] == 255).all()
        assert (mask[:height, :width] != 255).all() == (index in data.labelled)
    # The turned one is read as people see it.
    pixels = np.rot90(np.asarray(Image.open(tmp_path / "images" / "c.png")), -1)
    np.testing.assert_array_equal(data.original(2).read(), pixels)
    assert data.original(2).path == tmp_path / "images" / "c.png"


def test_without_a_size_the_largest_sides_count(tmp_path):
    photographs(tmp_path, [(10, 16), (12, 14)])
    data = ImageFolder(tmp_path, classes=CLASSES, missing_masks="unlabelled")
    assert data.image_size == (12, 16)
    assert data.original(0).inside == (10, 16)
    np.testing.assert_array_equal(data.image(0)[:10], data.original(0).read())
    stretched = ImageFolder(tmp_path, classes=CLASSES, missing_masks="unlabelled", fit="stretch", image_size=(8, 8))
    assert stretched.original(0).inside == (8, 8)


@pytest.mark.parametrize(
    ("labelled", "expected"),
    [
        (0, {"state": 3, "train": 0, "reward": 0, "eval": 57, "test": 0}),
        (1, {"state": 2, "train": 0, "reward": 1, "eval": 57, "test": 0}),
        (20, {"state": 1, "train": 14, "reward": 5, "eval": 40, "test": 0}),
        (60, {"state": 3, "train": 15, "reward": 10, "eval": 20, "test": 12}),  # all of them
    ],
)
def test_splits_know_what_is_labelled(tmp_path, labelled, expected):
    photographs(tmp_path, [(32, 32)] * 60, masks=range(labelled))
    env = make_env(
        ImageFolder(tmp_path, classes=CLASSES, missing_masks="unlabelled"),
        split="eval",
        reward="miou" if labelled else None,
        network_options={"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
        encoder="tu-tf_mobilenetv3_small_minimal_100",
    )
    assert {name: len(getattr(env.splits, name)) for name in expected} == expected
    if 0 < labelled < 60:
        assert set(env.splits.reward) <= set(env.data.labelled)


def test_without_any_label_a_whole_episode_is_played_without_reward(tmp_path):
    photographs(tmp_path, [(32, 64), (64, 32)] * 5)
    options = {
        "root": str(tmp_path),
        "classes": CLASSES,
        "missing_masks": "unlabelled",
        "scores": ["entropy"],
        "regions_per_step": 2,
        "pool_size": 2,
        "budget": 4,
        "network_options": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
        "encoder": "tu-tf_mobilenetv3_small_minimal_100",
    }
    with pytest.raises(ValueError, match="D_R, on which the reward is measured, holds no image.*reward=None"):
        gym.make("al_seg_env/ImageFolder-v0", **options)

    class Painter:
        asked = []

        def answer(self, requests):
            self.asked += requests
            return [Answer(np.ones(request.region.size, np.uint8), seconds=2.0) for request in requests]

    env = gym.make("al_seg_env/ImageFolder-v0", **options, reward=None, oracle=Painter()).unwrapped
    _, info = env.reset(seed=0)
    assert (info["rewarded"], info["miou"], info["class_iou"].tolist()) == (False, -1.0, [-1, -1])
    # The canvas is 64 x 64; half of each image's sixteen regions are padding.
    assert env.labels.unlabelled_count == 8 * len(env.splits.eval)
    terminated = False
    while not terminated:
        _, reward, terminated, _, info = env.step(env.action_space.sample())
        assert reward == 0
    assert info["labelled"] == 4
    assert {request.size for request in Painter.asked} <= {(32, 64), (64, 32)}
    assert all(request.region.size == (16, 16) for request in Painter.asked)
    assert env.labels.costs.tolist() == [[256.0, -1.0, 2.0]] * 4
