"""Tables of the library `datasets`, made here."""

import io

import numpy as np
import pytest
from PIL import Image

from al_seg_env import SegmentationData, make_env
from al_seg_env.datasets import HuggingFaceData, ImageFolder
from al_seg_env.storage import write_png

datasets = pytest.importorskip("datasets")

CLASSES = ["road", "sky"]


def table(n=3, size=(6, 8), **masks):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(n)]
    labels = [Image.fromarray(rng.integers(0, 2, size, dtype=np.uint8)) for _ in range(n)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Image(), "note": datasets.Value("string")}
    )
    rows = {"image": images, "label": labels, "note": ["-"] * n, **masks}
    return datasets.Dataset.from_dict(rows, features=features)


def test_a_table_reads_like_a_folder_of_the_same_files(tmp_path):
    rows = table()
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(3):
        rows[number]["image"].save(tmp_path / f"images/{number}.png")
        write_png(tmp_path / f"masks/{number}.png", np.asarray(rows[number]["label"]))
    for fit, size in (("pad", (4, 8)), ("stretch", (5, 5)), ("pad", (8, 12))):
        data = HuggingFaceData(rows, size, CLASSES, fit=fit)
        files = ImageFolder(tmp_path, classes=CLASSES, image_size=size, fit=fit)
        assert isinstance(data, SegmentationData)
        assert data.names == files.names == ("0", "1", "2")
        for index in range(3):
            np.testing.assert_array_equal(data.image(index), files.image(index))
            np.testing.assert_array_equal(data.mask(index), files.mask(index))
            ours, theirs = data.original(index), files.original(index)
            assert (ours.size, ours.inside) == (theirs.size, theirs.inside)
            np.testing.assert_array_equal(ours.read(), theirs.read())


def test_parts_become_partitions():
    parts = datasets.DatasetDict({"train": table(2), "validation": table(1)})
    data = HuggingFaceData(parts, (6, 8), CLASSES)
    assert data.names == ("train/0", "train/1", "validation/0")
    assert data.partitions == {"train": (0, 1), "val": (2,)}
    np.testing.assert_array_equal(data.image(2), np.asarray(parts["validation"][0]["image"]))


def test_labels_are_those_that_are_named():
    mask = Image.fromarray(np.array([[0, 1, 2, 255]], np.uint8))
    rows = table(1, (1, 4), label=[mask])
    data = HuggingFaceData(rows, (1, 4), CLASSES, labels=[1, 2], ignore_labels=[0])
    np.testing.assert_array_equal(data.mask(0), [[255, 0, 1, 255]])
    with pytest.raises(ValueError, match="the mask of row '0' holds the labels 2, but only 0 to 1, 255 are known"):
        HuggingFaceData(rows, (1, 4), CLASSES).mask(0)
    with pytest.raises(ValueError, match="expected 2 different labels, one per class, and none of them ignored"):
        HuggingFaceData(rows, (1, 4), CLASSES, labels=[1, 2], ignore_labels=[2])


def test_the_fingerprint_follows_rows_and_settings(tmp_path):
    rows = table()
    known = HuggingFaceData(rows, (6, 8), CLASSES).fingerprint
    assert HuggingFaceData(rows, (6, 8), CLASSES).fingerprint == known
    assert HuggingFaceData(rows.select([0, 2]), (6, 8), CLASSES).fingerprint != known
    assert HuggingFaceData(rows, (6, 9), CLASSES).fingerprint != known
    assert HuggingFaceData(rows, (6, 8), CLASSES, ignore_labels=[9]).fingerprint != known


def test_mistakes_are_said():
    rows = table()
    with pytest.raises(
        ValueError, match=r"dataset lacks the columns \['annotation'\]; it has \['image', 'label', 'note'"
    ):
        HuggingFaceData(rows, (6, 8), CLASSES, mask="annotation")
    with pytest.raises(ValueError, match=r"expected a datasets\.Dataset, not a stream"):
        HuggingFaceData(rows.to_iterable_dataset(), (6, 8), CLASSES)
    with pytest.raises(ValueError, match="the mask of row '0' has the pixel mode RGB, not one channel of labels"):
        HuggingFaceData(rows, (6, 8), CLASSES, mask="image").mask(0)
    with pytest.raises(ValueError, match=r"the column 'note' of dataset is Value.*; expected a datasets\.Image"):
        HuggingFaceData(rows, (6, 8), CLASSES, image="note")
    with pytest.raises(ValueError, match=r"the format of dataset is 'numpy'; expected none: dataset\.with_format"):
        HuggingFaceData(rows.with_format("numpy"), (6, 8), CLASSES)
    for parts in ({"val": rows, "validation": rows}, {1: rows}):
        with pytest.raises(ValueError, match="expected named parts, and not both 'val' and 'validation'"):
            HuggingFaceData(datasets.DatasetDict(parts), (6, 8), CLASSES)
    for empty in (rows.select([]), datasets.DatasetDict()):
        with pytest.raises(ValueError, match="expected at least one row"):
            HuggingFaceData(empty, (6, 8), CLASSES)
    other = table(1, (6, 8), label=[Image.new("L", (3, 3))])
    with pytest.raises(ValueError, match=r"has \(3, 3\) pixels; expected the size of its image, \(6, 8\)"):
        HuggingFaceData(other, (6, 8), CLASSES).mask(0)


def encoded(file_format, mode="L"):
    stream = io.BytesIO()
    Image.new(mode, (8, 6)).save(stream, file_format)
    return {"bytes": stream.getvalue(), "path": None}


def test_rows_are_opened_like_files():
    """The library would start Ghostscript for an EPS, and decode masks that JPEG has changed."""
    path = {"bytes": None, "path": "nowhere.png"}
    rows = table(5, label=[encoded("JPEG"), path, None, {"bytes": b"", "path": None}, encoded("PNG")])
    data = HuggingFaceData(rows, (6, 8), CLASSES)
    with pytest.raises(ValueError, match="the mask of row '0' is a JPEG, which changes labels"):
        data.mask(0)
    for row, problem in ((1, "can't be read .*nowhere.png does not exist"), (2, "is missing"), (3, "can't be read")):
        with pytest.raises(OSError, match=f"the mask of row '{row}' {problem}"):
            data.mask(row)
    assert not data.mask(4).any()
    images = HuggingFaceData(table(1, image=[encoded("EPS", "RGB")]), (6, 8), CLASSES)
    with pytest.raises(OSError, match="the image of row '0' can't be read .*cannot identify"):
        images.image(0)


@pytest.mark.parametrize("name", ["labels", "ignore_labels"])
@pytest.mark.parametrize("value", [5, [0, 10**12], [0, -1], [0, "1"]])
def test_labels_that_are_none(name, value):
    with pytest.raises(ValueError, match=rf"^{name}(\[1\])? is .*; expected a (list of labels|whole number from 0 to)"):
        HuggingFaceData(table(1), (6, 8), CLASSES, **{name: value})


def test_an_environment_plays_on_a_table():
    data = HuggingFaceData(table(24, (32, 32)), (32, 32), CLASSES)
    # The encoder is not trained: some of its features are large.
    network = {"architecture": "Light", "encoder": "tu-tf_mobilenetv3_small_minimal_100", "max_grad_norm": 4.0}
    env = make_env(data, **network, budget=8, device="cpu")
    env.reset(seed=0)
    _, _, terminated, _, info = env.step(env.action_space.sample())
    assert not terminated
    assert info["labelled"] == 4
