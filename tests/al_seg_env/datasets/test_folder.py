import json
import pickle

import numpy as np
import pytest
from PIL import Image

from al_seg_env.datasets import ImageFolder, PairedFiles, SegmentationData
from al_seg_env.datasets.folder import read_classes
from al_seg_env.datasets.pairing import listed, pair_files

RGB = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
LABELS = np.array([[0, 1, 2, 255, 0, 1]] * 4, np.uint8)
CLASSES = ("road", "sky", "car")


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path, **options)
    return path


def folder(root, names=("a", "b"), **arguments):
    for name in names:
        save(root / "images" / f"{name}.png", RGB)
        save(root / "masks" / f"{name}.png", LABELS)
    return ImageFolder(root, **{"classes": CLASSES, **arguments})


def one(tmp_path, image, mask=LABELS, suffix=".png", mask_suffix=".png", **options):
    paths = save(tmp_path / f"i{suffix}", image, **options), save(tmp_path / f"m{mask_suffix}", mask)
    return PairedFiles([paths[0]], [paths[1]], CLASSES)


def test_flat_folder(tmp_path):
    data = folder(tmp_path)
    assert isinstance(data, SegmentationData)
    assert (data.classes, data.names, data.image_size, len(data)) == (CLASSES, ("a", "b"), (4, 6), 2)
    assert data.partitions == {}
    assert data.palette.shape == (3, 3)
    np.testing.assert_array_equal(data.image(1), RGB)
    np.testing.assert_array_equal(data.mask(1), LABELS)
    assert data.image(0).dtype == data.mask(0).dtype == np.uint8
    data.image(0)[:] = 0  # a copy, and writable
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data)).image(0), RGB)


def test_partitions_are_sub_folders(tmp_path):
    data = folder(tmp_path, ("val/x", "train/b", "train/a", "loose", "val/deep/y"))
    assert data.names == ("loose", "train/a", "train/b", "val/deep/y", "val/x")
    assert data.partitions == {"train": (1, 2), "val": (3, 4)}


def test_mask_suffix_and_folder_names(tmp_path):
    save(tmp_path / "rgb" / "a.JPG", RGB)
    save(tmp_path / "gt" / "a_labels.png", LABELS)
    save(tmp_path / "gt" / "a_colour.png", RGB)
    data = ImageFolder(tmp_path, images="rgb", masks="gt", mask_suffix="_labels", classes=CLASSES)
    assert data.names == ("a",)


def test_classes_file(tmp_path):
    classes = [{"name": "road", "color": [1, 2, 3]}, {"name": "sky"}, "car"]
    tmp_path.joinpath("classes.json").write_text(json.dumps({"classes": classes, "ignore": [7, 65535]}))
    labels = np.array([[0, 7, 65535, 255, 2, 1]] * 4, np.uint16)
    save(tmp_path / "images/a.png", RGB)
    save(tmp_path / "masks/a.png", labels)
    data = ImageFolder(tmp_path)
    assert data.classes == CLASSES
    assert data.palette[0].tolist() == [1, 2, 3]
    assert data.mask(0)[0].tolist() == [0, 255, 255, 255, 2, 1]
    given = ImageFolder(tmp_path, palette=[(9, 9, 9)] * 3, ignore_labels=(1,))
    assert given.palette.tolist() == [[9, 9, 9]] * 3
    assert given.mask(0)[0].tolist() == [0, 255, 255, 255, 2, 255]


def test_classes_file_may_be_a_list(tmp_path):
    tmp_path.joinpath("c.json").write_text('["a", "b"]')
    names, colours, ignored = read_classes(tmp_path / "c.json")
    assert (names, colours.shape, ignored) == (("a", "b"), (2, 3), ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not JSON"),
        ("3", "no list of classes"),
        ('{"classes": ["a"], "ignored": [1]}', "unknown keys.*ignored"),
        ('{"classes": ["a"], "ignore": 3}', "not a list"),
        ('{"classes": ["a"], "ignore": [-1]}', "0 to 65535"),
        ('{"classes": [{"colour": 3}]}', "colour"),
        ('{"classes": [{"name": "a", "color": [1, 2]}]}', "palette"),
        ('{"classes": [{"name": "a", "color": "red"}]}', "palette"),
        ('{"classes": [{"name": "a", "color": [1, 2, 300]}]}', "palette"),
        ('["a", "a"]', "different names"),
        ("[]", "different names"),
    ],
)
def test_bad_classes_files(tmp_path, text, message):
    tmp_path.joinpath("classes.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_classes(tmp_path / "classes.json")
    assert "classes.json" in str(caught.value)
    assert '"road"' in str(caught.value)  # the format is shown


def test_missing_folders_classes_and_images(tmp_path):
    with pytest.raises(ValueError, match="lacks images, masks .*expected <root>/images"):
        ImageFolder(tmp_path / "nowhere")
    tmp_path.joinpath("images").mkdir()
    with pytest.raises(ValueError, match="lacks masks .it holds images"):
        ImageFolder(tmp_path)
    tmp_path.joinpath("masks").mkdir()
    with pytest.raises(ValueError, match="classes.json does not exist; give classes"):
        ImageFolder(tmp_path)
    with pytest.raises(ValueError, match="no images in .*expected files with one of .png"):
        ImageFolder(tmp_path, classes=CLASSES)


def test_all_unpaired_files_are_named(tmp_path):
    for name in ("a.png", "b.png", "c.png", "c.JPG", "d.tif", ".hidden.png"):
        save(tmp_path / "images" / name, RGB)
    for name in ("a.png", "c.png", "e.png", "f.png", "d.png", "d.bmp"):
        save(tmp_path / "masks" / name, LABELS)
    (tmp_path / "images" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="do not pair") as caught:
        pair_files(tmp_path / "images", tmp_path / "masks")
    text = str(caught.value)
    for part in (
        "b.png has no mask",
        "e.png has no image",
        "f.png has no image",
        "same stem",
        "c.JPG",
        "d.bmp",
    ):
        assert part in text
    assert "a.png" not in text
    assert "hidden" not in text


def test_lists_of_problems_are_capped():
    assert listed(range(22)).endswith("18; 19; and 2 more")
    assert listed([1, 2]) == "1; 2"


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".bmp", ".TIFF"])
def test_lossless_suffixes(tmp_path, suffix):
    data = one(tmp_path, Image.fromarray(RGB), suffix=suffix, lossless=True)
    np.testing.assert_array_equal(data.image(0), RGB)


def test_kinds_of_images_become_rgb(tmp_path):
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    expected = np.stack([grey] * 3, axis=-1)
    palette = Image.fromarray(grey).convert("P")
    palette.info["transparency"] = bytes(range(256))
    alpha = np.concatenate([RGB, np.full((4, 6, 1), 7, np.uint8)], axis=-1)
    for image, wanted in (
        (grey, expected),
        (grey.astype(np.uint16) * 257, expected),
        (palette, expected),
        (alpha, RGB),
        (Image.fromarray(grey > 100), np.stack([(grey > 100) * 255] * 3, axis=-1)),
    ):
        np.testing.assert_array_equal(one(tmp_path, image).image(0), wanted)
    for wide in (grey.astype(np.int32) * 70000, grey.astype(np.float32)):
        with pytest.raises(ValueError, match=r"i\.tif .*8 or 16"):
            one(tmp_path, wide, suffix=".tif").image(0)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg", ".tif"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_exif_orientation(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, :16] = 255  # the left half
    turned = np.rot90(image, {3: 2, 6: -1}[orientation])
    data = one(tmp_path, image, np.zeros(turned.shape[:2], np.uint8), suffix=suffix, exif=exif)
    assert data.image_size == turned.shape[:2]
    assert np.abs(data.image(0).astype(int) - turned).mean() < 2


@pytest.mark.parametrize("kind", ["L", "P", "I;16", "I"])
def test_kinds_of_masks(tmp_path, kind):
    mask = {
        "L": LABELS,
        "P": Image.fromarray(LABELS).copy(),
        "I;16": LABELS.astype(np.uint16),
        "I": Image.fromarray(LABELS.astype(np.int32)),
    }[kind]
    if kind == "P":
        mask.putpalette(list(range(255, -1, -1)) * 3)
        assert mask.mode == "P"
    data = one(tmp_path, RGB, mask, mask_suffix=".tif" if kind == "I" else ".png")
    np.testing.assert_array_equal(data.mask(0), LABELS)


def test_masks_that_hold_no_labels_are_refused_all_at_once(tmp_path):
    for name in ("colour.png", "grey.jpg", "bits.png", "fine.png"):
        save(tmp_path / "images" / name, RGB)
    save(tmp_path / "masks/colour.png", RGB)
    save(tmp_path / "masks/grey.jpg", LABELS)
    save(tmp_path / "masks/bits.png", LABELS > 0)
    save(tmp_path / "masks/fine.png", LABELS)
    with pytest.raises(ValueError, match="Store each mask as a PNG with one channel") as caught:
        ImageFolder(tmp_path, classes=CLASSES)
    for part in ("3 problems", "colour.png has the pixel mode RGB", "grey.jpg is a JPEG", "bits.png has"):
        assert part in str(caught.value)


def test_labels_out_of_range(tmp_path):
    data = one(tmp_path, RGB, np.array([[0, 3, 4, 5, 9, 255]] * 4, np.uint8))
    with pytest.raises(ValueError, match=r"m\.png holds the labels 3 to 5, 9, but only 0 to 2, 255 are known"):
        data.mask(0)
    wide = one(tmp_path, RGB, np.array([[0, 300, 1, 1, 1, 1]] * 4, np.uint16))
    with pytest.raises(ValueError, match="holds the labels 300"):
        wide.mask(0)


def test_resizing(tmp_path):
    save(tmp_path / "images/big.png", np.tile(np.uint8([[[0], [255]]]), (20, 20, 3)))  # stripes
    save(tmp_path / "masks/big.png", np.repeat(np.uint8([[0, 2]] * 20), 20, axis=1))
    data = folder(tmp_path, ("small",), image_size=(5, 4))
    assert data.image_size == (5, 4)
    for i in range(2):
        assert data.image(i).shape == (5, 4, 3)
        assert data.mask(i).shape == (5, 4)
    assert 100 < data.image(0).min() <= data.image(0).max() < 155  # antialiased
    np.testing.assert_array_equal(data.mask(0), [[0, 0, 2, 2]] * 5)
    assert set(np.unique(data.mask(1))) <= {0, 1, 2, 255}


def test_all_broken_and_odd_files_are_named(tmp_path):
    folder(tmp_path, "abcdefg")
    (tmp_path / "images/a.png").write_bytes(b"no image")
    (tmp_path / "masks/b.png").write_bytes(b"")
    save(tmp_path / "images/c.png", RGB[:, :5])
    save(tmp_path / "images/d.png", RGB[:3])
    save(tmp_path / "masks/d.png", LABELS[:3])
    with pytest.raises(ValueError, match=r"image_size=\(height, width\)") as caught:
        ImageFolder(tmp_path, classes=CLASSES)
    text = str(caught.value)
    assert "4 problems with 7 images" in text
    assert "images/a.png can't be read" in text
    assert "masks/b.png can't be read" in text
    assert "c.png is 4 x 5 but its mask" in text
    assert "d.png is 3 x 6, most images are 4 x 6" in text
    with pytest.raises(ValueError, match="3 problems"):  # d is welcome when sizes are made equal
        ImageFolder(tmp_path, classes=CLASSES, image_size=(2, 2))


def test_files_that_go_or_break_later(tmp_path):
    data = folder(tmp_path, "abc")
    (tmp_path / "images/a.png").unlink()
    whole = (tmp_path / "masks/b.png").read_bytes()
    (tmp_path / "masks/b.png").write_bytes(whole[: len(whole) * 2 // 3])
    save(tmp_path / "images/c.png", RGB[:2])
    save(tmp_path / "masks/c.png", RGB)
    with pytest.raises(OSError, match=r"a\.png can't be read"):
        data.image(0)
    with pytest.raises(OSError, match=r"b\.png can't be read"):
        data.mask(1)
    with pytest.raises(OSError, match=r"c\.png is now 2 x 6 pixels, but 4 x 6"):
        data.image(2)
    with pytest.raises(ValueError, match="pixel mode RGB"):
        data.mask(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": "road"}, "different names"),
        ({"classes": ("a", "")}, "different names"),
        ({"classes": [str(i) for i in range(256)]}, "1 to 255"),
        ({"palette": [(0, 0, 0)]}, r"palette is \[\(0, 0, 0\)\]; expected 3 colours .*"),
        ({"image_size": (4,)}, "height, width"),
        ({"image_size": (0, 4)}, "height, width"),
        ({"image_size": 4}, "height, width"),
        ({"ignore_labels": (True,)}, "a whole number"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        folder(tmp_path, **arguments)


def test_paired_files_checks_its_lists(tmp_path):
    image, mask = save(tmp_path / "i.png", RGB), save(tmp_path / "m.png", LABELS)
    with pytest.raises(ValueError, match="0 images and 0 masks"):
        PairedFiles([], [], CLASSES)
    with pytest.raises(ValueError, match="2 images and 1 masks"):
        PairedFiles([image, image], [mask], CLASSES)
    with pytest.raises(ValueError, match="2 different names, .*More than once: i"):
        PairedFiles([image, image], [mask, mask], CLASSES)


COLOURS = ((128, 64, 128), (70, 130, 180), (0, 0, 142))


def coloured_folder(root, mask=LABELS, **arguments):
    """Return data whose masks are painted in the colours of the classes; 255 is black."""
    table = np.zeros((256, 3), np.uint8)
    table[:3] = COLOURS
    save(root / "images" / "a.png", RGB)
    save(root / "masks" / "a.png", table[mask])
    entries = [{"name": name, "color": colour} for name, colour in zip(CLASSES, COLOURS, strict=True)]
    (root / "classes.json").write_text(json.dumps({"classes": entries}))
    return ImageFolder(root, coloured_masks=True, **arguments)


def test_masks_in_colours_are_labels(tmp_path):
    data = coloured_folder(tmp_path, ignore_colours=[(0, 0, 0)])
    np.testing.assert_array_equal(data.mask(0), LABELS)
    Image.open(tmp_path / "masks/a.png").quantize(8).save(tmp_path / "masks/a.png")  # a palette of these colours
    np.testing.assert_array_equal(
        ImageFolder(tmp_path, coloured_masks=True, ignore_colours=[(0, 0, 0)]).mask(0), LABELS
    )
    assert data.fingerprint != coloured_folder(tmp_path, ignore_colours=[(0, 0, 0), (1, 1, 1)]).fingerprint


def test_colours_that_are_no_class_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"a\.png has the colours \[\(0, 0, 0\)\], which belong to no class"):
        coloured_folder(tmp_path).mask(0)
    with pytest.raises(ValueError, match=r"the colours \[\[128, 64, 128\]\] stand for several"):
        coloured_folder(tmp_path, ignore_colours=[COLOURS[0]])


def test_masks_in_colours_must_be_coloured_and_lossless(tmp_path):
    coloured_folder(tmp_path)
    save(tmp_path / "masks" / "a.png", LABELS)
    with pytest.raises(ValueError, match="colour mask .* has the pixel mode L, not colours"):
        ImageFolder(tmp_path, coloured_masks=True)
    (tmp_path / "masks" / "a.png").unlink()
    save(tmp_path / "masks" / "a.jpg", RGB)
    with pytest.raises(ValueError, match="colour mask .* is a JPEG, which changes labels"):
        ImageFolder(tmp_path, coloured_masks=True)


@pytest.mark.parametrize(
    ("images", "masks", "found"),
    [
        ("images", "images", "are the same folder"),
        ("images", "../root/images/", "are the same folder"),
        ("images", "link", "are the same folder"),
        (".", "masks", "lie in each other"),
        ("images", ".", "lie in each other"),
    ],
)
@pytest.mark.parametrize("missing", ["error", "unlabelled"])
def test_images_and_masks_lie_apart(tmp_path, images, masks, found, missing):
    """Otherwise masks would pass for images without a mask, or images for their own masks."""
    root = tmp_path / "root"
    folder(root)
    (root / "link").symlink_to(root / "images")
    with pytest.raises(ValueError, match=f"{found}; move them to two, side by side"):
        ImageFolder(root, images=images, masks=masks, classes=CLASSES, missing_masks=missing)
