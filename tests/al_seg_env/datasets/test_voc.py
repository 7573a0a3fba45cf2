"""Pascal VOC's layout, on a small tree in it."""

import numpy as np
import pytest
from PIL import Image

from al_seg_env.datasets import PascalVOC, SegmentationData
from al_seg_env.datasets.voc import VOC_CLASSES

SIZES = {"2007_000032": (6, 8), "2007_000033": (6, 8), "2007_000039": (8, 4)}


def tree(root):
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number, (name, size) in enumerate(SIZES.items()):
        Image.fromarray(np.full((*size, 3), 50 * number, np.uint8)).save(root / f"JPEGImages/{name}.jpg")
        labels = np.full(size, number, np.uint8)
        labels[0] = 255
        mask = Image.fromarray(labels, "P")
        mask.putpalette(list(range(256)) * 3)
        mask.save(root / f"SegmentationClass/{name}.png")
    (root / "ImageSets/Segmentation/train.txt").write_text("2007_000039\n2007_000032\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("2007_000033\n")
    return root


def test_reads_the_layout(tmp_path):
    data = PascalVOC(tree(tmp_path), image_size=(8, 8))
    assert isinstance(data, SegmentationData)
    assert len(VOC_CLASSES) == len(data.classes) == 21
    assert data.names == ("2007_000039", "2007_000032", "2007_000033")
    assert data.partitions == {"train": (0, 1), "val": (2,)}
    assert data.image(0).shape == (8, 8, 3)
    expected = np.full((8, 8), 255)  # padded: to the right, as 8 x 4 becomes 8 x 8
    expected[1:, :4] = 2
    np.testing.assert_array_equal(data.mask(0), expected)


def test_all_missing_files_are_named(tmp_path):
    root = tree(tmp_path)
    (root / "JPEGImages/2007_000032.jpg").unlink()
    (root / "SegmentationClass/2007_000033.png").unlink()
    with pytest.raises(ValueError, match=r"2 files of the lists are missing: .*000032\.jpg.*000033\.png.*expected the"):
        PascalVOC(root, image_size=(8, 8))
    (root / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(ValueError, match=r"val\.txt does not exist; expected the folder VOC2012"):
        PascalVOC(root, image_size=(8, 8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"2007_000032\n", r"val\.txt names images again: 2007_000032; keep each in one line of one list"),
        (b"2007_000033\n2007_000033\n", r"val\.txt names images again: 2007_000033"),
        (b"\n", r"val\.txt is empty; expected one name a line, or leave this partition out"),
        ("2007_000033".encode("utf-16"), r"val\.txt is not a text in UTF-8 .*; expected one name a line"),
    ],
)
def test_odd_lists_are_named(tmp_path, content, message):
    (tree(tmp_path) / "ImageSets/Segmentation/val.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        PascalVOC(tmp_path, image_size=(8, 8))


def test_names_may_hold_spaces_and_lists_a_byte_order_mark(tmp_path):
    root = tree(tmp_path)
    for path in (root / "JPEGImages/2007_000033.jpg", root / "SegmentationClass/2007_000033.png"):
        path.rename(path.with_stem("rue é 1"))
    (root / "ImageSets/Segmentation/val.txt").write_bytes("\ufeffrue é 1\r\n".encode())
    assert PascalVOC(root, image_size=(8, 8)).names[2] == "rue é 1"


@pytest.mark.parametrize("partitions", [None, 5, "val", (), ["val", "val"], ["val", None]])
def test_partitions_that_are_none(tmp_path, partitions):
    with pytest.raises(ValueError, match="partitions is .*; expected (a list of names|each name only once)"):
        PascalVOC(tree(tmp_path), image_size=(8, 8), partitions=partitions)
