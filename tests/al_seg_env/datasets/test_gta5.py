import numpy as np
import pytest
from PIL import Image

from al_seg_env.datasets import GTA5, Cityscapes, Splits
from al_seg_env.datasets.cityscapes import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE

# The colours of read_mapping.zip, by label id 0 to 34 (the licence plate, -1 in Cityscapes).
COLOURS = [
    *[(0, 0, 0)] * 4,
    *[(20, 20, 20), (111, 74, 0), (81, 0, 81), (128, 64, 128), (244, 35, 232), (250, 170, 160), (230, 150, 140)],
    *[(70, 70, 70), (102, 102, 156), (190, 153, 153), (180, 165, 180), (150, 100, 100), (150, 120, 90)],
    *[(153, 153, 153), (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152)],
    *[(70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 0, 90), (0, 0, 110)],
    *[(0, 80, 100), (0, 0, 230), (119, 11, 32), (0, 0, 142)],
]
TRAINED = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
LABELS = np.arange(35, dtype=np.uint8).reshape(5, 7)


def write_pair(root, name, labels=LABELS, image_size=None):
    """Write a pair as published: an RGB PNG and a palette PNG."""
    height, width = image_size or labels.shape
    Image.new("RGB", (width, height), (1, 2, int(name) % 256)).save(root / "images" / f"{name}.png")
    label = Image.fromarray(labels)
    label.putpalette([value for colour in COLOURS for value in colour])
    label.save(root / "labels" / f"{name}.png")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for name in ("00002", "00001", "24966"):
        write_pair(tmp_path, name)
    return tmp_path


def test_tree(root):
    assert Image.open(root / "labels" / "00001.png").mode == "P"
    data = GTA5(root)
    assert data.names == ("00001", "00002", "24966")
    assert data.image_size == (5, 7)
    assert data.image(1)[0, 0].tolist() == [1, 2, 2]
    assert not data.partitions


def test_labels_become_train_ids(root):
    mask = GTA5(root).mask(0).reshape(-1)
    assert mask[TRAINED].tolist() == list(range(19))
    others = [label for label in range(35) if label not in TRAINED]
    assert set(mask[others]) == {255}


def test_classes_and_colours_are_those_of_cityscapes_and_of_the_files(root):
    data = GTA5(root)
    assert data.classes == CITYSCAPES_CLASSES
    np.testing.assert_array_equal(data.palette, CITYSCAPES_PALETTE)
    np.testing.assert_array_equal(data.palette, [COLOURS[label] for label in TRAINED])


def test_gives_the_same_masks_as_cityscapes(root, tmp_path):
    other = tmp_path / "cityscapes"
    for partition in ("train", "val"):
        for kind, suffix in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
            folder = other / kind / partition / "ulm"
            folder.mkdir(parents=True)
            Image.fromarray(LABELS).save(folder / f"ulm_{partition}_{suffix}.png")
    np.testing.assert_array_equal(GTA5(root).mask(0), Cityscapes(other).mask(0))


def test_images_of_several_sizes_need_an_image_size(root):
    write_pair(root, "00003", LABELS[:4])
    with pytest.raises(ValueError, match=r"00003\.png is 4 x 7, most images are 5 x 7.*give image_size"):
        GTA5(root)
    data = GTA5(root, image_size=(10, 14))
    assert data.image(2).shape == (10, 14, 3)
    assert data.mask(2).shape == (10, 14)
    assert set(np.unique(data.mask(0))) == {*range(19), 255}  # nearest: no label is made up


def test_published_pairs_that_cannot_be_used_are_left_out(root):
    write_pair(root, "15188")
    write_pair(root, "20801", image_size=(4, 7))
    write_pair(root, "20860", image_size=(4, 7))
    assert GTA5(root).names == ("00001", "00002", "24966")
    write_pair(root, "20861", image_size=(4, 7))
    with pytest.raises(ValueError, match=r"20861\.png is 4 x 7 but its mask"):
        GTA5(root, image_size=(5, 7))


def test_splits_are_drawn_without_partitions(root):
    splits = Splits.draw(GTA5(root), 0, sizes={"state": 1, "train": 1, "reward": None})
    assert len(splits.state) == len(splits.train) == len(splits.reward) == 1


def test_missing_parts(root):
    (root / "labels" / "00002.png").unlink()
    with pytest.raises(ValueError, match=r"00002\.png has no mask"):
        GTA5(root)
    (root / "labels").rename(root / "label")
    with pytest.raises(ValueError, match=r"lacks labels .*01_labels\.zip"):
        GTA5(root)
    with pytest.raises(ValueError, match="lacks images, labels"):
        GTA5(root / "nowhere")


def test_coloured_labels_are_refused(root):
    Image.open(root / "labels" / "00001.png").convert("RGB").save(root / "labels" / "00001.png")
    with pytest.raises(ValueError, match=r"00001\.png has the pixel mode RGB"):
        GTA5(root)
