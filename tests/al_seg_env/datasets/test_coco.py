"""COCO's panoptic and stuff layouts, on small trees in them."""

import json

import numpy as np
import pytest
from PIL import Image

from al_seg_env.datasets import COCOPanoptic, COCOStuff, SegmentationData
from al_seg_env.datasets.coco_stuff import COCO_STUFF_CLASSES

CATEGORIES = [
    {"id": 1, "name": "person", "isthing": 1, "supercategory": "person", "color": [220, 20, 60]},
    {"id": 3, "name": "car", "isthing": 1, "supercategory": "vehicle", "color": [0, 0, 142]},
    {"id": 187, "name": "sky-other-merged", "isthing": 0, "supercategory": "sky", "color": [70, 130, 180]},
]
# By hand: id = R + 256 G + 65536 B, so (7, 1, 0) is 263 and (0, 0, 2) is 131072.
PIXELS = [[[0, 0, 0], [7, 1, 0], [7, 1, 0]], [[0, 0, 2], [9, 0, 0], [0, 0, 2]]]
SEGMENTS = [
    {"id": 263, "category_id": 187, "iscrowd": 0, "area": 2, "bbox": [1, 0, 2, 1]},
    {"id": 9, "category_id": 1, "iscrowd": 1, "area": 1, "bbox": [1, 1, 1, 1]},
    {"id": 131072, "category_id": 3, "iscrowd": 0, "area": 2, "bbox": [0, 1, 3, 1]},
]
EXPECTED = [[255, 2, 2], [1, 0, 1]]


def panoptic(root, masks="annotations"):
    (root / "annotations").mkdir()
    for partition, number in (("train2017", 9), ("val2017", 139)):
        name = f"{number:012d}"
        folder = root / masks / f"panoptic_{partition}"
        for each in (root / partition, folder):
            each.mkdir(parents=True)
        Image.fromarray(np.full((2, 3, 3), 100, np.uint8)).save(root / partition / f"{name}.jpg")
        Image.fromarray(np.array(PIXELS, np.uint8)).save(folder / f"{name}.png")
        content = {
            "images": [{"id": number, "file_name": f"{name}.jpg", "height": 2, "width": 3}],
            "annotations": [{"image_id": number, "file_name": f"{name}.png", "segments_info": SEGMENTS}],
            "categories": CATEGORIES,
        }
        (root / "annotations" / f"panoptic_{partition}.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("masks", ["annotations", "."])
def test_panoptic_pixels_have_the_class_of_their_segment(tmp_path, masks):
    data = COCOPanoptic(panoptic(tmp_path, masks), (4, 4))
    assert isinstance(data, SegmentationData)
    assert data.classes == ("person", "car", "sky-other-merged")
    assert data.names == ("train2017/000000000009", "val2017/000000000139")
    assert data.partitions == {"train": (0,), "val": (1,)}
    np.testing.assert_array_equal(data.full_mask(1), EXPECTED)
    padded = np.full((4, 4), 255)
    padded[:2, :3] = EXPECTED
    np.testing.assert_array_equal(data.mask(0), padded)
    assert data.image(0).shape == (4, 4, 3)


def test_the_fingerprint_follows_masks_and_annotations(tmp_path):
    data = COCOPanoptic(panoptic(tmp_path), (4, 4))
    before = data.fingerprint
    path = tmp_path / "annotations" / "panoptic_val2017.json"
    path.write_text(path.read_text().replace('"category_id": 3', '"category_id":  1'))
    again = COCOPanoptic(tmp_path, (4, 4))
    assert again.full_mask(1).tolist() == [[255, 2, 2], [0, 0, 0]]
    assert again.fingerprint != before


def test_what_is_wrong_with_a_panoptic_tree_is_said(tmp_path):
    root = panoptic(tmp_path)
    path = root / "annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"] = SEGMENTS[:2]
    path.write_text(json.dumps(content))
    data = COCOPanoptic(root, (4, 4), partitions=["val2017"])
    with pytest.raises(ValueError, match=r"139\.png holds the segments \[131072\], which are not in its annotation"):
        data.mask(0)
    content["categories"] = CATEGORIES[::-1]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"val2017\.json: other categories than in .*train2017\.json"):
        COCOPanoptic(root, (4, 4))
    content["annotations"][0]["segments_info"] = [{"id": 1}]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"val2017\.json is malformed \(KeyError: 'category_id'\)"):
        COCOPanoptic(root, (4, 4), partitions=["val2017"])
    (root / "train2017/000000000009.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 files are missing: .*000000000009\.jpg; expected train2017"):
        COCOPanoptic(root, (4, 4), partitions=["train2017"])
    with pytest.raises(ValueError, match=r"lacks test2017 .*expected train2017"):
        COCOPanoptic(root, (4, 4), partitions=["test2017"])


ANNOTATION = {"image_id": 139, "file_name": "000000000139.png", "segments_info": SEGMENTS}
OTHER = {"id": 7, "file_name": "7.jpg"}


@pytest.mark.parametrize(
    ("key", "more", "message"),
    [
        ("categories", {"id": 3, "name": "lorry"}, "category '3' comes twice; correct the file"),
        ("categories", {"id": 4, "name": "car"}, "classes is .*'car', 'sky-other-merged', 'car'"),
        ("categories", {"id": 4, "name": None}, "classes is .*None.*; expected a list of 1 to 255 different names"),
        ("images", {"id": 139, "file_name": "7.jpg"}, "image '139' comes twice"),
        ("annotations", ANNOTATION, "image '139' comes twice"),
        ("annotations", {**ANNOTATION, "image_id": 7}, "mask '.*139.png' comes twice"),
        ("segments_info", {"id": 9, "category_id": 3}, "in 000000000139.png, segment '9' comes twice"),
        ("segments_info", {"id": 0, "category_id": 3}, "id of a segment is 0; expected a whole number from 1"),
        ("segments_info", {"id": 9.5, "category_id": 3}, "id of a segment is 9.5"),
        ("segments_info", {"id": 2**24, "category_id": 3}, "id of a segment is 16777216"),
    ],
)
def test_what_comes_twice_in_a_panoptic_file_hides_nothing(tmp_path, key, more, message):
    path = panoptic(tmp_path) / "annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    if key != "images":
        content["images"].append(OTHER)
    (content["annotations"][0] if key == "segments_info" else content)[key].append(more)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"val2017\.json: {message}"):
        COCOPanoptic(tmp_path, (4, 4), partitions=["val2017"])


def test_images_of_one_name_in_two_folders_are_told_apart(tmp_path):
    path = panoptic(tmp_path) / "annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["images"].append({"id": 7, "file_name": "night/000000000139.jpg"})
    content["annotations"].append({**ANNOTATION, "image_id": 7, "file_name": "night.png"})
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="image 'val2017/000000000139' comes twice"):
        COCOPanoptic(tmp_path, (4, 4), partitions=["val2017"])


def test_images_without_an_annotation_are_omitted_but_not_all(tmp_path):
    path = panoptic(tmp_path) / "annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["images"].append(OTHER)
    path.write_text(json.dumps(content))
    assert COCOPanoptic(tmp_path, (4, 4), partitions=["val2017"]).names == ("val2017/000000000139",)
    path.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(ValueError, match=r"val2017\.json: no image has an annotation; use another copy"):
        COCOPanoptic(tmp_path, (4, 4), partitions=["val2017"])


@pytest.mark.parametrize("partitions", [["val2017", "val2017"], ["val2017", "val"]])
@pytest.mark.parametrize("layout", [COCOPanoptic, COCOStuff])
def test_partitions_of_one_name_are_refused(tmp_path, layout, partitions):
    with pytest.raises(ValueError, match="partitions is .*; expected each name only once, without their ending '2017'"):
        layout(tmp_path, (4, 4), partitions=partitions)


def test_stuff_maps_have_171_classes(tmp_path):
    for partition, labels in (("train2017", [[0, 181, 255]]), ("val2017", [[11, 91, 156]])):
        for kind in ("images", "annotations"):
            (tmp_path / kind / partition).mkdir(parents=True)
        Image.new("RGB", (3, 1)).save(tmp_path / "images" / partition / "1.jpg")
        Image.fromarray(np.array(labels, np.uint8)).save(tmp_path / "annotations" / partition / "1.png")
    data = COCOStuff(tmp_path, (1, 3))
    assert len(COCO_STUFF_CLASSES) == len(set(COCO_STUFF_CLASSES)) == 171
    assert data.names == ("train2017/1", "val2017/1")
    assert data.partitions == {"train": (0,), "val": (1,)}
    names = [*data.classes] + [None] * (256 - 171)
    # Labels are COCO's ids less one: 1 is person, 182 wood, 12 the street sign that has no pixels, 92 banner.
    assert [names[label] for label in data.mask(0)[0]] == ["person", "wood", None]
    assert [names[label] for label in data.mask(1)[0]] == [None, "banner", "sky-other"]
    with pytest.raises(ValueError, match=r"lacks .*annotations/test2017.*expected what github"):
        COCOStuff(tmp_path, (1, 3), partitions=["test2017"])
