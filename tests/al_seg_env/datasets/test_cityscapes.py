import numpy as np
import pytest
from PIL import Image

from al_seg_env.datasets import Cityscapes

TRAINED = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
LABELS = np.arange(36, dtype=np.uint8).reshape(6, 6)
NAMES = {"train": ("ulm_000001_000019", "aachen_000000_000019"), "val": ("lindau_000000_000019",)}


@pytest.fixture
def root(tmp_path):
    for partition, names in NAMES.items():
        for name in names:
            images, masks = (tmp_path / kind / partition / name.split("_")[0] for kind in ("leftImg8bit", "gtFine"))
            images.mkdir(parents=True)
            masks.mkdir(parents=True)
            Image.new("RGB", (6, 6), (1, 2, 3)).save(images / f"{name}_leftImg8bit.png")
            Image.fromarray(LABELS).save(masks / f"{name}_gtFine_labelIds.png")
            Image.new("RGBA", (6, 6)).save(masks / f"{name}_gtFine_color.png")
            Image.fromarray(LABELS).save(masks / f"{name}_gtFine_instanceIds.png")
            (masks / f"{name}_gtFine_polygons.json").write_text("{}")
    return tmp_path


def test_tree(root):
    data = Cityscapes(root)
    assert data.names == ("aachen_000000_000019", "ulm_000001_000019", "lindau_000000_000019")
    assert data.partitions == {"train": (0, 1), "val": (2,)}
    assert data.image(2)[0, 0].tolist() == [1, 2, 3]


def test_labels_become_train_ids(root):
    mask = Cityscapes(root).mask(0).reshape(-1)
    assert mask[TRAINED].tolist() == list(range(19))
    others = [label for label in range(36) if label not in TRAINED]
    assert set(mask[others]) == {255}


def test_classes_and_palette(root):
    data = Cityscapes(root, image_size=(3, 3))
    assert len(data.classes) == len(data.palette) == 19
    assert (data.classes[0], data.classes[13], data.classes[18]) == ("road", "car", "bicycle")
    assert data.palette[13].tolist() == [0, 0, 142]
    assert data.mask(0).shape == (3, 3)


def test_missing_parts(root):
    (root / "gtFine" / "val" / "lindau" / "lindau_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(ValueError, match=r"lindau_000000_000019_leftImg8bit\.png has no mask"):
        Cityscapes(root)
    (root / "gtFine").rename(root / "gtCoarse")
    with pytest.raises(ValueError, match="lacks gtFine/train, gtFine/val .*gtFine_trainvaltest"):
        Cityscapes(root)
