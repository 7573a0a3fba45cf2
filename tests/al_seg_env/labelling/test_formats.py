"""Masks in the formats of other tools, read back by the libraries that know them."""

import io
import json
import zipfile

import numpy as np
import pytest
from fakes import CLASSES, numbered_data
from PIL import Image
from raw_png import RGB, png

from al_seg_env import LabelsPending
from al_seg_env.datasets.segmentation_data import default_palette
from al_seg_env.labelling.coco import read_coco, run_lengths, write_coco
from al_seg_env.labelling.cvat import CvatOracle, read_cvat, write_cvat
from al_seg_env.labelling.request import requests_of
from al_seg_env.regions import Box

PALETTE = default_palette(3)


def masks(seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: rng.choice([0, 1, 2, 255], size=size, p=[0.4, 0.3, 0.1, 0.2]).astype(np.uint8)
        for name, size in (("a", (12, 17)), ("b c", (9, 5)), ("d%2Fe_0_0_3x4", (1, 1)))
    }


def sizes():
    return {name: mask.shape for name, mask in masks().items()}


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, mask in expected.items():
        np.testing.assert_array_equal(found[name], mask)


def test_cvat_there_and_back(tmp_path):
    write_cvat(tmp_path / "m.zip", masks().items(), CLASSES, PALETTE)
    assert_equal(read_cvat(tmp_path / "m.zip", CLASSES, sizes()), masks())
    # Classes are matched by name, whatever their numbers are here.
    turned = read_cvat(tmp_path / "m.zip", CLASSES[::-1], {"a": (12, 17)})
    assert_equal(turned, {"a": np.where(masks()["a"] == 255, 255, 2 - masks()["a"])})


def test_datumaro_reads_cvat_s_masks(tmp_path):
    datumaro = pytest.importorskip("datumaro")
    write_cvat(tmp_path / "m.zip", masks().items(), CLASSES, PALETTE)
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        archive.extractall(tmp_path / "m")
    dataset = datumaro.Dataset.import_from(str(tmp_path / "m"), "voc_segmentation")
    names = [label.name for label in dataset.categories()[datumaro.AnnotationType.label]]
    found = {}
    for item in dataset:
        mask = np.full(sizes()[item.id], 255, np.uint8)
        for annotation in item.annotations:
            if annotation.type == datumaro.AnnotationType.mask and names[annotation.label] in CLASSES:
                mask[np.asarray(annotation.image, bool)] = CLASSES.index(names[annotation.label])
        found[item.id] = mask
    assert_equal(found, masks())


def test_cvat_reads_what_datumaro_writes(tmp_path):
    datumaro = pytest.importorskip("datumaro")
    items = [
        datumaro.DatasetItem(
            id="a",
            media=datumaro.Image.from_numpy(np.zeros((12, 17, 3), np.uint8)),
            annotations=[datumaro.Mask(masks()["a"] == label, label=label, group=label + 1) for label in range(3)],
        )
    ]
    colours = datumaro.MaskCategories({label: tuple(colour) for label, colour in enumerate(PALETTE.tolist())})
    categories = {
        datumaro.AnnotationType.label: datumaro.LabelCategories.from_iterable(CLASSES),
        datumaro.AnnotationType.mask: colours,
    }
    dataset = datumaro.Dataset.from_iterable(items, categories=categories)
    dataset.export(str(tmp_path / "voc"), "voc_segmentation", label_map="source", save_media=True)
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        for path in (tmp_path / "voc").rglob("*"):
            if path.is_file():
                archive.write(path, path.relative_to(tmp_path / "voc"))
    found = read_cvat(tmp_path / "m.zip", CLASSES, sizes())
    assert_equal(found, {"a": masks()["a"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda files: files.pop("labelmap.txt"),
            "has no labelmap.txt; export it from CVAT as 'Segmentation mask 1.1'",
        ),
        (
            lambda files: files.update({"labelmap.txt": b"lorry:1,2,3::"}),
            r"has the classes \['lorry'\]; expected classes out of",
        ),
        (lambda files: files.update({"labelmap.txt": b"road;1,2,3"}), "has the line 'road;1,2,3'; expected name:red"),
        (lambda files: files.update({"labelmap.txt": b"\xff"}), "can't be read"),
        (lambda files: files.update({"labelmap.txt": b"#" * 2**21}), "has 2097152 bytes; expected at most 1048576"),
        (lambda files: files.update({"SegmentationClass/a.png": b"PNG"}), "SegmentationClass/a.png can't be used"),
        (
            lambda files: files.update({"SegmentationClass/a.png": picture((9000, 9000))}),
            "is 9000 x 9000, expected 12 x",
        ),
        (
            lambda files: files.update({"SegmentationClass/a.png": png(17, 16, RGB, [bytes([0, 9] * 51)] * 12)}),
            "does not store its colours with 8",
        ),
        (lambda files: files.update({"SegmentationClass/a.png": picture((12, 17), 9)}), r"the colour \[9, 9, 9\]"),
    ],
)
def test_odd_files_from_cvat_are_named(tmp_path, change, message):
    write_cvat(tmp_path / "m.zip", masks().items(), CLASSES, PALETTE)
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(tmp_path / "m.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=rf"m\.zip.*{message}"):
        read_cvat(tmp_path / "m.zip", CLASSES, sizes())


def picture(size, value=0):
    content = io.BytesIO()
    Image.new("L", size[::-1], value).save(content, format="png")
    return content.getvalue()


def test_no_zip_and_colours_that_cvat_cannot_tell_apart(tmp_path):
    (tmp_path / "m.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="can't be read .*; expected a zip that CVAT exported"):
        read_cvat(tmp_path / "m.zip", CLASSES, sizes())
    for classes, palette in ((CLASSES, PALETTE * 0), (("background", "car", "sky"), PALETTE)):
        with pytest.raises(ValueError, match="CVAT distinguishes classes by colour"):
            write_cvat(tmp_path / "n.zip", masks().items(), classes, palette)


def test_coco_there_and_back(tmp_path):
    write_coco(tmp_path / "m.json", ((f"{name}.png", mask) for name, mask in masks().items()), CLASSES)
    found = read_coco(tmp_path / "m.json", CLASSES, sizes())
    assert_equal(found, {name: mask for name, mask in masks().items() if (mask != 255).any()})


def test_pycocotools_agrees(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    coder = pytest.importorskip("pycocotools.mask")
    write_coco(tmp_path / "m.json", ((f"{name}.png", mask) for name, mask in masks().items()), CLASSES)
    read = coco.COCO(str(tmp_path / "m.json"))
    for image in read.loadImgs(read.getImgIds()):
        mask = np.full((image["height"], image["width"]), 255, np.uint8)
        for annotation in read.loadAnns(read.getAnnIds(imgIds=image["id"], iscrowd=None)):
            inside = read.annToMask(annotation).astype(bool)
            mask[inside] = CLASSES.index(read.cats[annotation["category_id"]]["name"])
            assert annotation["area"] == inside.sum()
            box = coder.toBbox(coder.encode(np.asfortranarray(inside.astype(np.uint8)))).tolist()
            assert annotation["bbox"] == box
        np.testing.assert_array_equal(mask, masks()[image["file_name"].removesuffix(".png")])
    # And in their compressed form, as other tools write it.
    content = json.loads((tmp_path / "m.json").read_text())
    for annotation in content["annotations"]:
        height, width = annotation["segmentation"]["size"]
        rle = coder.frPyObjects(annotation["segmentation"], height, width)
        annotation["segmentation"] = {"size": [height, width], "counts": rle["counts"].decode()}
    (tmp_path / "m.json").write_text(json.dumps(content))
    found = read_coco(tmp_path / "m.json", CLASSES, sizes())
    assert_equal(found, {name: mask for name, mask in masks().items() if (mask != 255).any()})


def test_run_lengths_of_large_masks_in_compressed_form(tmp_path):
    coder = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for threshold in (0.001, 0.5, 0.999):
        mask = np.kron(rng.random((40, 30)) < threshold, np.ones((10, 37), bool)).astype(bool)
        rle = coder.encode(np.asfortranarray(mask.astype(np.uint8)))
        content = {
            "images": [{"id": 7, "file_name": "x/a.jpg"}],
            "categories": [{"id": 3, "name": "car"}],
            "annotations": [
                {
                    "image_id": 7,
                    "category_id": 3,
                    "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode()},
                }
            ],
        }
        (tmp_path / "m.json").write_text(json.dumps(content))
        found = read_coco(tmp_path / "m.json", CLASSES, {"a": mask.shape})
        np.testing.assert_array_equal(found["a"], np.where(mask, 1, 255))
        assert sum(run_lengths(mask)) == mask.size


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[0, 0, 1, 1, 1, 0]], "is a polygon; expected run lengths: export"),
        ({"size": [2, 2], "counts": [4]}, r"has the size \[2, 2\]; expected \[12, 17\]"),
        ({"size": [12, 17], "counts": [4]}, r"the run lengths \[4\] do not fill 12 x 17"),
        ({"size": [12, 17], "counts": [205, -1]}, "do not fill"),
        ({"size": [12, 17], "counts": [10**30]}, "can't be used"),
        ({"size": [12, 17], "counts": "\x00"}, "are not in COCO's compressed form"),
        ({"size": [12, 17], "counts": "o" * 100}, "are not in COCO's compressed form"),
        (None, "TypeError"),
    ],
)
def test_odd_annotations_of_coco_are_named(tmp_path, segmentation, message):
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "road"}],
        "annotations": [{"image_id": 1, "category_id": 1, "segmentation": segmentation}],
    }
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"m\.json can't be used.*{message}|m\.json {message}"):
        read_coco(tmp_path / "m.json", CLASSES, sizes())


def test_regions_go_to_cvat_and_come_back(tmp_path):
    data = numbered_data(3)
    oracle = CvatOracle(data, tmp_path)
    boxes = [Box(1, 8, 16, 10, 20), Box(2, 0, 8, 0, 10)]
    requests = requests_of(data, boxes, lambda image: data.mask(image))
    with pytest.raises(LabelsPending, match="2 regions wait for their labels: make a task of the images") as pending:
        oracle.answer(requests)
    assert pending.value.missing == ["image 1_8_10_8x10.png", "image 2_0_0_8x10.png"]
    (batch,) = (tmp_path / "requests").iterdir()
    labels = json.loads((batch / "labels.json").read_text())
    assert [label["name"] for label in labels] == list(CLASSES)
    assert labels[0]["color"] == "#" + bytes(data.palette[0].tolist()).hex()
    with zipfile.ZipFile(batch / "images.zip") as archive:
        shown = {name: Image.open(io.BytesIO(archive.read(name))).size for name in archive.namelist()}
    assert shown == {"image 1_8_10_8x10.png": (30, 24), "image 2_0_0_8x10.png": (20, 16)}
    # The pre-labels are right for one of the two; the other one is left blank.
    (tmp_path / "exported" / "1.zip").write_bytes((batch / "prelabels.zip").read_bytes())
    answers = oracle.answer(requests)
    for box, answer in zip(boxes, answers, strict=True):
        np.testing.assert_array_equal(answer.mask, box.crop(data.mask(box.image)))
    assert CvatOracle(data, tmp_path).labels.regions() == boxes


def test_what_nobody_has_painted_in_cvat_is_no_answer(tmp_path):
    data = numbered_data(3)
    oracle = CvatOracle(data, tmp_path)
    requests = requests_of(data, [Box(1, 8, 16, 10, 20)])
    with pytest.raises(LabelsPending):
        oracle.answer(requests)
    blank = {"image 1_8_10_8x10": np.full((24, 30), 255, np.uint8)}
    write_cvat(tmp_path / "exported" / "1.zip", blank.items(), CLASSES, data.palette)
    with pytest.raises(LabelsPending):
        oracle.answer(requests)
