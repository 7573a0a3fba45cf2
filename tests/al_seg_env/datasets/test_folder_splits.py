"""Splits of an image folder follow its sub-folders train, val and test."""

import gymnasium as gym
import numpy as np
import pytest

from al_seg_env.storage import write_png

SMALL = {
    "classes": ["x", "y"],
    "encoder": "tu-tf_mobilenetv3_small_minimal_100",
    "network_options": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
    "device": "cpu",
    "precision": "float32",
    "pool_size": 1,
    "budget": 4,
}


def names(tmp_path, **counts):
    """Make a folder with this many images in each sub-folder; return the names in each split of its environment."""
    rng = np.random.default_rng(0)
    options = counts.pop("options", {})
    for folder, count in counts.items():
        for number in range(count):
            for kind, shape in (("images", (32, 32, 3)), ("masks", (32, 32))):
                path = tmp_path / kind / ("" if folder == "none" else folder) / f"{number}.png"
                write_png(path, rng.integers(0, 2, shape, np.uint8))
    env = gym.make("al_seg_env/ImageFolder-v0", root=str(tmp_path), **SMALL, **options).unwrapped
    return {
        name: {env.data.names[i] for i in getattr(env.splits, name)}
        for name in ("state", "train", "reward", "eval", "test")
    }


def inside(folder, count):
    return {f"{folder}/{i}" for i in range(count)}


def test_train_val_and_test_are_followed(tmp_path, caplog):
    found = names(tmp_path, train=12, val=4, test=5)
    assert found["state"] | found["train"] | found["eval"] == inside("train", 12)
    assert found["reward"] == inside("val", 4)
    assert found["test"] == inside("test", 5)
    assert min(map(len, found.values())) >= 1
    assert not caplog.records


def test_without_a_test_folder_test_images_are_of_train(tmp_path):
    found = names(tmp_path, train=20, val=4)
    assert found["reward"] == inside("val", 4)
    assert found["state"] | found["train"] | found["eval"] | found["test"] == inside("train", 20)
    assert len(found["test"]) == 4


def test_without_a_val_folder_reward_images_are_of_train(tmp_path):
    found = names(tmp_path, train=20, test=4)
    assert found["test"] == inside("test", 4)
    assert found["state"] | found["train"] | found["eval"] | found["reward"] == inside("train", 20)


def test_other_folders_are_not_followed_and_that_is_said(tmp_path, caplog):
    found = names(tmp_path, north=10, south=10)
    assert set().union(*found.values()) == inside("north", 10) | inside("south", 10)
    assert "partitions ['north', 'south'] are not followed" in caplog.text


def test_a_folder_without_partitions_is_split_as_before(tmp_path, caplog):
    found = names(tmp_path, none=20)
    assert {name: len(part) for name, part in found.items()} == {
        "state": 1,
        "train": 5,
        "reward": 3,
        "eval": 7,
        "test": 4,
    }
    assert not caplog.records


def test_images_outside_the_followed_folders_are_told_of(tmp_path, caplog):
    found = names(tmp_path, train=12, val=4, extra=3)
    assert not set().union(*found.values()) & inside("extra", 3)
    assert "partitions ['extra'] are in no split" in caplog.text


@pytest.mark.parametrize("size", [None, 2])
def test_a_split_can_be_drawn_from_any_folder(tmp_path, caplog, size):
    part = {"from": "south"} if size is None else {"from": "south", "size": size}
    found = names(tmp_path, north=16, south=4, options={"splits": {"seed": 1, "test": part}})
    assert found["test"] <= inside("south", 4)
    assert len(found["test"]) == (4 if size is None else 2)  # all of it: no split of all images takes some before
    assert not caplog.records
