"""Decoded frames and the crops that the segmentation network trains on."""

import gc
import io
import os
import pickle
import signal

import numpy as np
import pytest
import torch
from fakes import numbered_data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from processes import in_child

from al_seg_env import ImageFolder, SyntheticStreets
from al_seg_env.datasets import frames as frames_module
from al_seg_env.datasets.frames import Frames
from al_seg_env.learner.training_crops import training_crops
from al_seg_env.regions import RegionGrid

HEIGHT, WIDTH = 20, 26


class PositionData:
    """Images that tell where each pixel comes from, and masks whose value is a function of the place."""

    classes, names, image_size = ("a", "b"), ("one", "two"), (HEIGHT, WIDTH)

    def __init__(self):
        self.decoded = []

    def image(self, index):
        self.decoded.append(index)
        rows, columns = np.mgrid[:HEIGHT, :WIDTH]
        return np.stack([rows, columns, np.full_like(rows, index)], axis=2).astype(np.uint8)

    def mask(self, index):
        self.decoded.append(index)
        return np.full((HEIGHT, WIDTH), index, np.uint8)


def place_labels(image):
    """Return labels that tell the place, so that one can check where a target comes from."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return ((rows * 7 + columns * 3 + image) % 251).astype(np.uint8)


@settings(max_examples=80, deadline=None)
@given(
    region_size=st.tuples(st.integers(1, HEIGHT), st.integers(1, WIDTH)),
    crop_size=st.one_of(st.none(), st.tuples(st.integers(1, 30), st.integers(1, 30))),
    seed=st.integers(0, 1000),
)
def test_crops_hold_their_regions_and_keep_image_and_target_together(region_size, crop_size, seed):
    rng = np.random.default_rng(seed)
    grid = RegionGrid((HEIGHT, WIDTH), region_size)
    regions = rng.integers(2 * grid.regions_per_image, size=3).tolist()
    images, targets = training_crops(Frames(PositionData()), grid, regions, place_labels, crop_size, rng)
    expected = (HEIGHT, WIDTH) if crop_size is None else (min(crop_size[0], HEIGHT), min(crop_size[1], WIDTH))
    assert images.shape == (3, 3, *expected)
    assert images.dtype == targets.dtype == torch.uint8
    for region, image, target in zip(regions, images.numpy(), targets.numpy(), strict=True):
        rows, columns, numbers = image.astype(int)
        box = grid.box(region)
        np.testing.assert_array_equal(target, place_labels(box.image)[rows, columns])
        assert (numbers == box.image).all()
        within = (rows >= box.top) & (rows < box.bottom) & (columns >= box.left) & (columns < box.right)
        # A side on which the region is larger than the crop is filled by the region.
        visible = min(box.size[0], expected[0]) * min(box.size[1], expected[1])
        assert within.sum() == visible
        assert (np.diff(rows, axis=0) == 1).all()
        assert (np.diff(columns, axis=1) == 1).all() or (np.diff(columns, axis=1) == -1).all()


def test_crops_lie_everywhere_and_are_flipped_half_the_time():
    grid, rng = RegionGrid((HEIGHT, WIDTH), (5, 5)), np.random.default_rng(0)
    images, _ = training_crops(Frames(PositionData()), grid, [7] * 400, place_labels, (8, 12), rng)
    box = grid.box(7)
    tops, lefts = images[:, 0].amin(dim=(1, 2)), images[:, 1].amin(dim=(1, 2))
    assert set(tops.tolist()) == set(range(box.bottom - 8, box.top + 1))
    assert set(lefts.tolist()) == set(range(max(0, box.right - 12), box.left + 1))
    flipped = (images[:, 1, 0, 0] > images[:, 1, 0, -1]).sum()
    assert 160 < flipped < 240


def test_frames_are_decoded_once_and_in_order():
    data = PositionData()
    frames = Frames(data)
    batches = list(frames.batches([1, 0, 1], 2))
    assert [tuple(images.shape) for images, _ in batches] == [(2, 3, HEIGHT, WIDTH), (1, 3, HEIGHT, WIDTH)]
    assert [images[:, 2, 0, 0].tolist() for images, _ in batches] == [[1, 0], [1]]
    assert [masks[:, 0, 0].tolist() for _, masks in batches] == [[1, 0], [1]]
    assert sorted(data.decoded) == [0, 0, 1, 1]  # an image and a mask each


def test_frames_do_not_hand_out_the_data_sets_own_arrays():
    data = numbered_data(2)
    before = data.image(1).copy(), data.mask(1).copy()
    frames = Frames(data)
    frames.image(1)[...] = 7
    frames.mask(1)[...] = 0
    np.testing.assert_array_equal(data.image(1), before[0])
    np.testing.assert_array_equal(data.mask(1), before[1])


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        ("image", np.zeros((5, 5, 3), np.uint8), r"image 'two': expected uint8 \(20, 26, 3\), found uint8 \(5, 5, 3\)"),
        ("image", np.zeros((20, 26), np.uint8), r"image 'two'.*found uint8 \(20, 26\)"),
        ("image", np.zeros((20, 26, 3), np.float32), r"image 'two'.*found float32"),
        ("mask", np.zeros((20, 25), np.uint8), r"mask 'two': expected uint8 \(20, 26\), found uint8 \(20, 25\)"),
        ("mask", np.zeros((20, 26), np.int64), r"mask 'two'.*found int64"),
        ("mask", np.full((20, 26), 9, np.uint8), r"mask 'two': labels \[9\] are not classes; expected 0 to 1, or 255"),
    ],
)
def test_a_malformed_image_or_mask_is_named(kind, wrong, message):
    data = PositionData()
    setattr(data, kind, lambda index: wrong)
    with pytest.raises(ValueError, match=message):
        getattr(Frames(data), kind)(1)


class Fingerprinted(PositionData):
    def __init__(self, fingerprint="first"):
        super().__init__()
        self.fingerprint = fingerprint


def test_environments_with_the_same_data_share_what_is_decoded():
    one, same, other = Fingerprinted(), Fingerprinted(), Fingerprinted("second")
    first = Frames.shared(one)
    assert Frames.shared(same) is first
    assert Frames.shared(other) is not first
    first.image(0)
    Frames.shared(same).image(0)
    assert (one.decoded, same.decoded) == ([0], [])
    plain = PositionData()
    assert Frames.shared(plain) is not Frames.shared(PositionData())
    kept = Frames.shared(plain)
    assert Frames.shared(plain) is kept
    del first, kept  # the frames go with the last environment that uses them
    gc.collect()
    assert Frames.shared(same).data is same


def test_a_cache_is_read_by_others_and_decoded_once(tmp_path):
    first, second = Fingerprinted(), Fingerprinted()
    expected = [Frames(PositionData()).image(1), Frames(PositionData()).mask(1)]
    for data in (first, second):
        frames = Frames(data, cache=tmp_path)
        for _ in range(2):
            np.testing.assert_array_equal(frames.image(1), expected[0])
            np.testing.assert_array_equal(frames.mask(1), expected[1])
    assert (first.decoded, second.decoded) == ([1, 1], [])
    assert len(list(tmp_path.rglob("*.npy"))) == 2
    Frames(Fingerprinted("second"), cache=tmp_path).image(1)
    assert len(list(tmp_path.rglob("*.npy"))) == 3


def test_what_is_written_to_a_frame_does_not_reach_the_cache(tmp_path):
    Frames(Fingerprinted(), cache=tmp_path).image(1)[...] = 7
    expected = Frames(PositionData()).image(1)
    np.testing.assert_array_equal(Frames(Fingerprinted(), cache=tmp_path).image(1), expected)


def flipped(content):
    """A byte in the middle of the pixels, which makes another valid label of it."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def archive(content):
    with io.BytesIO() as file:
        np.savez(file, np.zeros((HEIGHT, WIDTH), np.uint8))
        return file.getvalue()


def array(content):
    with io.BytesIO() as file:
        np.save(file, np.zeros((HEIGHT, WIDTH), np.uint8))
        return file.getvalue()


DAMAGES = {
    "nothing": lambda content: b"",
    "a byte": lambda content: b"x",
    "nonsense": lambda content: b"nonsense" * 100,
    "truncated": lambda content: content[: len(content) // 2],
    "a flipped byte": flipped,
    "a zeroed half": lambda content: content[: len(content) // 2] + bytes(len(content) // 2),
    "labels out of range": lambda content: content[:-300] + bytes([9]) * 296 + content[-4:],
    "longer": lambda content: content + b"x",
    "a zip": archive,
    "another array": array,
    "a pickle": lambda content: pickle.dumps([1]),
}


def test_a_pipe_in_the_place_of_a_file_of_the_cache_is_replaced(tmp_path):
    expected = Frames(Fingerprinted(), cache=tmp_path).mask(0)
    (path,) = tmp_path.rglob("*.npy")
    path.unlink()
    os.mkfifo(path)
    np.testing.assert_array_equal(Frames(Fingerprinted(), cache=tmp_path).mask(0), expected)
    assert path.is_file()


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("kind", ["image", "mask"])
def test_a_damaged_file_of_the_cache_is_made_again(tmp_path, kind, damage):
    getattr(Frames(Fingerprinted(), cache=tmp_path), kind)(0)
    (path,) = tmp_path.rglob("*.npy")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    data = Fingerprinted()
    found, expected = (getattr(frames, kind)(0) for frames in (Frames(data, cache=tmp_path), Frames(PositionData())))
    np.testing.assert_array_equal(found, expected)
    assert data.decoded == [0]
    assert path.read_bytes() == whole
    again = Fingerprinted()
    getattr(Frames(again, cache=tmp_path), kind)(0)
    assert not again.decoded


def test_files_of_the_cache_that_changed_places_are_made_again(tmp_path):
    frames = Frames(Fingerprinted(), cache=tmp_path)
    for index in (0, 1):
        frames.mask(index)
    first, second = sorted(tmp_path.rglob("*.mask.npy"))
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    data = Fingerprinted()
    found = Frames(data, cache=tmp_path)
    assert [int(found.mask(index)[0, 0]) for index in (0, 1)] == [0, 1]
    assert data.decoded == [0, 1]


def test_a_folder_in_the_place_of_a_cached_file_is_a_warning(tmp_path):
    Frames(Fingerprinted(), cache=tmp_path).mask(0)
    (path,) = tmp_path.rglob("*.npy")
    path.unlink()
    path.mkdir()
    with pytest.warns(RuntimeWarning, match="cannot be written .*stay in memory"):
        found = Frames(Fingerprinted(), cache=tmp_path).mask(0)
    np.testing.assert_array_equal(found, Frames(PositionData()).mask(0))


def test_what_a_killed_process_left_in_the_cache_is_removed(tmp_path):
    def killed():
        data = Fingerprinted()
        frames = Frames(data, cache=tmp_path)
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        frames.mask(0)

    assert in_child(killed) == -9
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.iterdir())) == 1
    Frames(Fingerprinted(), cache=tmp_path).mask(0)
    assert [path.name for path in folder.iterdir()] == ["0.mask.npy"]


def test_a_file_of_the_cache_is_verified_once_and_then_only_mapped(tmp_path, monkeypatch):
    Frames(Fingerprinted(), cache=tmp_path).image(0)
    checks, checksum = [], frames_module.checksum

    def counted(content, key):
        checks.append(key)
        return checksum(content, key)

    monkeypatch.setattr(frames_module, "checksum", counted)
    frames = Frames(Fingerprinted(), cache=tmp_path)
    for _ in range(3):
        frames.images([0, 0])
    assert len(checks) == 1


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(RuntimeWarning, match="cannot be written .*stay in memory"):
        found = Frames(Fingerprinted(), cache=tmp_path / "file").image(1)
    np.testing.assert_array_equal(found, Frames(PositionData()).image(1))


def test_a_cache_needs_a_fingerprint(tmp_path):
    with pytest.raises(ValueError, match="PositionData has no fingerprint; expected a text that changes"):
        Frames(PositionData(), cache=tmp_path)


def test_fingerprints_change_with_what_is_shown(tmp_path):
    for folder, mode, value in (("images", "RGB", (1, 2, 3)), ("masks", "L", 0)):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            Image.new(mode, (32, 32), value).save(tmp_path / folder / f"{name}.png")

    class Darker(ImageFolder):
        def image(self, index):
            return super().image(index) // 2

    made = [
        ImageFolder(tmp_path, classes=["x", "y"]),
        ImageFolder(tmp_path, classes=["x", "y"], image_size=(16, 16)),
        ImageFolder(tmp_path, classes=["x", "z"]),
        SyntheticStreets(4, (32, 32)),
        SyntheticStreets(4, (32, 32), seed=1),
        SyntheticStreets(4, (32, 32), style="render"),
    ]
    first = made[0].fingerprint
    assert len({data.fingerprint for data in made}) == len(made)
    assert ImageFolder(tmp_path, classes=["x", "y"]).fingerprint == first
    assert Darker(tmp_path, classes=["x", "y"]).fingerprint is None
    Image.new("RGB", (32, 32), (9, 9, 9)).save(tmp_path / "images" / "a.png")
    os.utime(tmp_path / "images" / "a.png", ns=(1, 1))
    assert ImageFolder(tmp_path, classes=["x", "y"]).fingerprint != first
