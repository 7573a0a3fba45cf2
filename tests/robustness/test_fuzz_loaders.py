"""Thousands of damaged files and folders: each loads to valid data, or is refused by an error that says what to do."""

import io
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from al_seg_env.datasets import CamVid, Cityscapes, ImageFolder, SegmentationData, Splits
from al_seg_env.datasets.folder import read_classes

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
LABELS = np.arange(35, dtype=np.uint8).reshape(5, 7) % 3
REMEDIES = ("expected", "restore", "Repair", "remove", "repair", "give ", "put the file", "Correct", "Store", "store")
REMEDIES += ("use the data", "keep each", "this release reads", "must hold", "open the data")


class Hang(BaseException):
    """Loading took too long; no exception that a loader may catch."""


linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")


@pytest.fixture(autouse=True)
def no_hang():
    def stop(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refusal(load, place):
    """Return the error that ``load`` raises, checked to be clear, or None if it gives valid data."""
    try:
        check_data(load())
    except (ValueError, OSError) as error:
        kind, text = type(error), str(error)
    else:
        return None
    assert kind in (ValueError, OSError), text  # none of json's, numpy's or Pillow's own
    assert str(place) in text
    assert any(remedy in text for remedy in REMEDIES), text
    assert len(text) < 5000
    return text


def check_data(data):
    assert isinstance(data, SegmentationData)
    assert len(data.names) == len(set(data.names)) > 0
    assert data.palette.shape == (len(data.classes), 3)
    for index in range(len(data.names)):
        image, mask = data.image(index), data.mask(index)
        assert image.dtype == mask.dtype == np.uint8
        assert image.shape == (*data.image_size, 3)
        assert mask.shape == data.image_size
        assert set(np.unique(mask)) <= {*range(len(data.classes)), 255}


def encoded(array, file_format, mode=None, **options):
    stream = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(stream, file_format, **options)
    return stream.getvalue()


def damaged(content, rng):
    """Return bytes with one to four changes: flipped, overwritten, inserted, removed, repeated, cut off."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not content:
            break
        at, change = rng.randrange(len(content)), rng.randrange(7)
        if change == 0:
            content[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            content[at] = rng.choice((0, 1, 2, 6, 8, 127, 128, 255))
        elif change == 2:
            content[at : at + 4] = rng.choice((0, 1, 65535, 60_000, 2**31 - 1, 2**32 - 1)).to_bytes(4, "big")
        elif change == 3:
            content[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif change == 4:
            del content[at : at + rng.randrange(1, 9)]
        elif change == 5:
            content[at:at] = content[at : at + 40]
        else:
            del content[at:]
    return bytes(content)


def with_right_checksums(content):
    """Return a PNG whose chunks have the checksums of what they hold now, so that decoders read on."""
    out, at = content[:8], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        body = content[at + 4 : at + 8 + length]
        out += content[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return out


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


FILES = {
    "png": encoded(RGB, "PNG"),
    "png, turned": encoded(RGB, "PNG", exif=exif(6)),
    "png, palette": encoded(RGB, "PNG", "P", transparency=1),
    "png, alpha": encoded(RGB, "PNG", "RGBA"),
    "png, grey": encoded(LABELS, "PNG"),
    "png, 16 bits": encoded(LABELS.astype(np.uint16), "PNG"),
    "jpeg": encoded(RGB, "JPEG", exif=exif(3)),
    "webp": encoded(RGB, "WEBP"),
    "bmp": encoded(RGB, "BMP", "P"),
    "gif": encoded(LABELS, "GIF"),
    "tiff": encoded(LABELS, "TIFF"),
    "tiff, turned": encoded(LABELS, "TIFF", exif=exif(5)),
    "tiff, lzw": encoded(RGB, "TIFF", compression="tiff_lzw"),
}


@pytest.fixture
def folder(tmp_path):
    for name, array in (("images", RGB), ("masks", LABELS)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(encoded(array, "PNG"))
    (tmp_path / "classes.json").write_text('["road", "car", "sky"]')
    return tmp_path


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged EXIF and of large images, and rightly
@pytest.mark.parametrize("kind", FILES)
def test_damaged_image_files(folder, kind):
    rng = random.Random(kind)
    outcomes = []
    for round_ in range(75):
        content = damaged(FILES[kind], rng)
        if FILES[kind].startswith(b"\x89PNG") and round_ % 4:
            content = with_right_checksums(content)
        name, whole = ("images", FILES["png"]) if round_ % 2 else ("masks", FILES["png, grey"])
        path = folder / name / "a.png"
        path.write_bytes(content)
        size = rng.choice([None, (3, 4)])
        outcomes.append(refusal(lambda size=size: ImageFolder(folder, image_size=size), path.parent))
        path.write_bytes(whole)
    assert any(outcomes)


def nodes(value, path=()):
    """Return the paths to all values in a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, part in items for p in nodes(part, (*path, key)))]


ODD = (None, True, -1, 0, 1.5, 256, 10**400, float("nan"), float("inf"), "", "a", "x" * 10**4, "\ud800", "\0", "../a")
ODD += ("/etc/passwd", [], {}, [[]], [None], {"name": "a"}, {"": 0}, ["a", "a"], [[1, 2], [3]], list(range(300)))
ODD += ("f", "g") * 4  # names that would do


def rewritten(document, rng):
    """Return the text of a JSON document in which one to three values are replaced, removed, nested or moved."""
    root = [json.loads(json.dumps(document))]
    for _ in range(rng.choice((1, 1, 2, 3))):
        *path, last = (0, *rng.choice(nodes(root[0])))
        parent = root
        for key in path:
            parent = parent[key]
        change = rng.randrange(5)
        if change == 0 and path:
            del parent[last]
        elif change == 1:
            parent[last] = [parent[last]]
        elif change == 2 and isinstance(parent, dict):
            parent[rng.choice(("", "Name", "ignore", "test", "color"))] = parent.pop(last)
        elif change == 3 and isinstance(parent, list) and path:
            parent.append(parent[last])
        else:
            parent[last] = json.loads(json.dumps(rng.choice(ODD)))
    text = json.dumps(root[0])
    if rng.random() < 0.1:
        depth = rng.choice((60, 500, 990, 5000))
        text = text.replace('"a"', "[" * depth + "]" * depth, 1)
    if rng.random() < 0.05:
        text = text.replace("{", '{"classes": 1, "classes": 2, ', 1)
    return text.encode()


CLASSES = {"classes": [{"name": "a", "color": [1, 2, 3]}, {"name": "b"}, "c"], "ignore": [7, 255]}


@pytest.mark.slow
def test_damaged_classes_files(tmp_path):
    rng, path, read = random.Random(1), tmp_path / "classes.json", 0
    for round_ in range(750):
        path.write_bytes(rewritten(CLASSES, rng) if round_ % 3 else damaged(json.dumps(CLASSES).encode(), rng))

        def load():
            names, colours, ignored = read_classes(path)
            assert 1 <= len(names) == len(set(names)) <= 255
            assert all(type(name) is str and name for name in names)
            assert colours.shape == (len(names), 3)
            assert colours.dtype == np.uint8
            assert all(type(label) is int and 0 <= label < 65536 for label in ignored)
            raise OSError(f"{path} was read; expected no more")

        read += "was read" in refusal(load, path)
    assert 10 < read < 500


def test_damaged_splits_files(tmp_path):
    class Names:
        names = tuple("abcdefg")

    document = {"format": "al-seg-env splits", "version": 1, "state": ["a"], "train": ["b", "c"]}
    document |= {"reward": ["d"], "eval": ["e"], "test": []}
    rng, path, read = random.Random(2), tmp_path / "splits.json", 0
    for round_ in range(750):
        path.write_bytes(rewritten(document, rng) if round_ % 3 else damaged(json.dumps(document).encode(), rng))

        def load():
            splits = Splits.load(path, Names)
            ids = [*splits.state, *splits.train, *splits.reward, *splits.eval, *splits.test]
            assert len(ids) == len(set(ids))
            assert set(ids) <= set(range(7))
            raise OSError(f"{path} was read; expected no more")

        read += "was read" in refusal(load, path)
    assert 10 < read < 500


def test_names_in_splits_are_no_paths(tmp_path):
    class Names:
        names = ("a", "b", "c")

    for name in ("/etc/passwd", "../a", "./a", "a.png", "A"):
        content = {"format": "al-seg-env splits", "version": 1, "state": [name], "train": ["b"]}
        (tmp_path / "s.json").write_text(json.dumps(content | {"reward": ["c"], "eval": [], "test": []}))
        with pytest.raises(ValueError, match=r"s\.json names 1 images that the data do not have"):
            Splits.load(tmp_path / "s.json", Names)


def test_json_with_a_key_twice_or_a_byte_order_mark(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text('{"classes": ["a"], "classes": ["a", "b"]}')
    with pytest.raises(ValueError, match=r"more than once in one object: \['classes'\]"):
        read_classes(path)
    path.write_text('["a", "b"]', encoding="utf-8-sig")  # as Windows writes it
    assert read_classes(path)[0] == ("a", "b")


def camvid(root):
    for partition in ("train", "val", "test"):
        for name, array in ((partition, RGB), (f"{partition}annot", LABELS)):
            (root / name).mkdir()
            (root / name / f"{partition}1.png").write_bytes(encoded(array, "PNG"))
    return CamVid, root / "val" / "val1.png", root / "valannot" / "val1.png"


def cityscapes(root):
    for partition in ("train", "val"):
        for kind, end, array in (("leftImg8bit", "leftImg8bit", RGB), ("gtFine", "gtFine_labelIds", LABELS)):
            (root / kind / partition / "ulm").mkdir(parents=True)
            (root / kind / partition / "ulm" / f"{partition}_{end}.png").write_bytes(encoded(array, "PNG"))
    return (
        Cityscapes,
        root / "leftImg8bit/val/ulm/val_leftImg8bit.png",
        root / "gtFine/val/ulm/val_gtFine_labelIds.png",
    )


def image_folder(root):
    for name, array in (("images", RGB), ("masks", LABELS)):
        (root / name / "val").mkdir(parents=True)
        for stem in "ab":
            (root / name / "val" / f"{stem}.png").write_bytes(encoded(array, "PNG"))
    (root / "classes.json").write_text('["road", "car", "sky"]')
    return ImageFolder, root / "images/val/a.png", root / "masks/val/a.png"


TREES = (image_folder, camvid, cityscapes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tree", TREES)
def test_damaged_files_in_every_layout(tmp_path, tree):
    loader, image, mask = tree(tmp_path)
    rng = random.Random(3)
    assert refusal(lambda: loader(tmp_path), tmp_path) is None
    for round_ in range(150):
        path, whole = (image, FILES["png"]) if round_ % 2 else (mask, FILES["png, grey"])
        path.write_bytes(with_right_checksums(damaged(whole, rng)) if round_ % 3 else damaged(whole, rng))
        refusal(lambda: loader(tmp_path), path.parent)
        path.write_bytes(whole)
    assert refusal(lambda: loader(tmp_path), tmp_path) is None


# What may lie where a file should: how to put it there, and what the error says of it.
IMPOSTORS = {
    "nothing": (lambda path: None, "has no|no images"),
    "a pipe": (os.mkfifo, "is a folder, pipe or device"),
    "a folder": (Path.mkdir, "has no|no images"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere.png"), "does not exist or is a broken link"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "does not exist or is a broken link"),
    "a device without end": (lambda path: path.symlink_to("/dev/zero"), "is a folder, pipe or device"),
    "an empty file": (Path.touch, "can't be read"),
    "a text": (lambda path: path.write_text("[]"), "can't be read"),
    "another size": (lambda path: path.write_bytes(encoded(RGB[:3], "PNG")), "3 x 7"),
}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("put", IMPOSTORS.values(), ids=IMPOSTORS.keys())
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_no_file_is_refused_at_once(tmp_path, tree, put, which):
    loader, *files = tree(tmp_path)
    path = files[which]
    path.unlink()
    put[0](path)
    with pytest.raises(ValueError, match=put[1]) as caught:
        loader(tmp_path)
    assert str(path.parent.parent) in str(caught.value)


@pytest.mark.parametrize("name", ["a pipe", "a folder", "a link to nothing", "a device without end", "an empty file"])
def test_what_becomes_no_file_after_opening(folder, name):
    data = ImageFolder(folder, image_size=(3, 4))
    for path in (folder / "images/a.png", folder / "masks/a.png"):
        path.unlink()
        IMPOSTORS[name][0](path)
    for load in (data.image, data.mask):
        with pytest.raises(OSError, match=r"a\.png can't be read .*restore it, or remove it, and open"):
            load(0)


@pytest.mark.parametrize("name", ["a pipe", "a folder", "a device without end"])
def test_what_is_no_json_file(tmp_path, name):
    IMPOSTORS[name][0](tmp_path / "x.json")
    for load in (read_classes, lambda path: Splits.load(path, None)):
        with pytest.raises(OSError, match=r"x\.json is a folder, pipe or device, not a file; put the file there"):
            load(tmp_path / "x.json")


@pytest.mark.parametrize("tree", TREES)
def test_links_that_go_round_in_circles_end(tmp_path, tree):
    loader, image, _ = tree(tmp_path)
    for name in "xyz":  # three links to the folder above: 3^40 paths to every image
        (image.parent / name).symlink_to("..", target_is_directory=True)
    with pytest.raises(ValueError, match="are the same folder; remove the link") as caught:
        loader(tmp_path)
    assert str(image.parent) in str(caught.value)


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path):
    _, image, mask = image_folder(tmp_path)
    for path in (image, mask):
        path.parent.rename(tmp_path / path.parent.parent.name[:-1])
        path.parent.symlink_to(f"../{path.parent.parent.name[:-1]}", target_is_directory=True)
    assert ImageFolder(tmp_path).names == ("val/a", "val/b")


@linux
def test_folders_in_folders_without_end():
    root = Path(tempfile.mkdtemp())  # not in tmp_path: pytest cannot remove it
    try:
        for name, array in (("images", RGB), ("masks", LABELS)):
            deep = root / name
            deep.mkdir()
            for _ in range(1200):
                deep /= "d"
                deep.mkdir()
            (deep / "a.png").write_bytes(encoded(array, "PNG"))
        data = ImageFolder(root, classes=["road", "car", "sky"])
        assert data.names == ("d/" * 1200 + "a",)
        check_data(data)
    finally:
        subprocess.run(["rm", "-r", root], check=True)


def test_a_folder_that_cannot_be_listed_is_not_skipped(folder, monkeypatch):
    listing = Path.iterdir

    def refuse(path):
        if path.name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    (folder / "images" / "secret").mkdir()
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(OSError, match=r"the folder .*secret can't be listed .*allow reading it"):
        ImageFolder(folder)


@linux
def test_names_of_any_bytes(folder, tmp_path):
    for kind in ("images", "masks"):
        for name in (b"\xff\xfe", b"a\nb", b"\xe2\x82\xac", b"' \""):
            content = (folder / kind / "a.png").read_bytes()
            Path(os.fsdecode(os.fsencode(folder / kind) + b"/" + name + b".png")).write_bytes(content)
    data = ImageFolder(folder)
    check_data(data)
    assert len(data.names) == 5
    splits = Splits((0,), (1, 2), (3,), (4,))
    splits.save(tmp_path / "splits.json", data)
    assert Splits.load(tmp_path / "splits.json", data) == splits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"classes": {"road", "car", "sky"}},
            "classes is .*; expected a list of 1 to 255 different names",
        ),  # a set has no order, so no labels
        ({"classes": 3}, "classes is .*; expected a list of 1 to 255 different names"),
        ({"palette": [[1, 2, 3], [4], [5, 6]]}, "palette is .*; expected 3 colours"),
        ({"image_size": (True, 4)}, r"image_size is \(True, 4\); expected \(height, width\)"),
        ({"ignore_labels": 0}, "ignore_labels is 0; expected a list of labels"),
        ({"mask_suffix": None}, "mask_suffix is None; expected a text"),
        ({"images": 5}, "images is 5; expected the path of a folder"),
        ({"masks": None}, "masks is None; expected the path of a folder"),
    ],
)
def test_arguments_of_the_wrong_type(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder(folder, **arguments)
