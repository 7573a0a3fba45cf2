"""Whatever is given to a data set: a valid object, or a ValueError that names it."""

import gymnasium as gym
import numpy as np
import pytest
from fakes import made
from hypothesis import given, settings
from hypothesis import strategies as st

from al_seg_env import ArrayData, ImageFolder, SyntheticStreets
from al_seg_env.datasets import PairedFiles
from al_seg_env.storage import write_png

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 100),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.one_of(st.integers(-2, 70), st.floats(), st.text(max_size=2)), max_size=4),
    st.tuples(st.integers(-40, 90), st.integers(-40, 90)),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.sampled_from([np.int64(40), np.zeros(2), b"x", 10**400]),
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["count", "image_size", "seed", "style"]), ANYTHING, min_size=1, max_size=3))
def test_streets(options):
    data = made(SyntheticStreets, options)
    assert data is None or (len(data) >= 1 and min(data.image_size) >= 32)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    for name in ("a", "b"):
        write_png(root / "images" / f"{name}.png", np.zeros((8, 10, 3), np.uint8))
        write_png(root / "masks" / f"{name}.png", np.zeros((8, 10), np.uint8))
    return root


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["classes", "palette", "image_size", "ignore_labels"]), ANYTHING, min_size=1))
def test_image_folders(root, options):
    if options.get("classes", ()) is None:  # then classes.json is read
        options = {**options, "classes": 1}
    data = made(ImageFolder, options, root, **{"classes": ["x", "y"], **options})
    assert data is None or (len(data) == 2 and data.image(0).shape == (*data.image_size, 3))


@pytest.mark.parametrize(
    ("images", "masks", "options", "message"),
    [
        ([], [], {}, "0 images and 0 masks are given"),
        ([np.zeros((2, 2, 3), np.uint8)], [], {}, "1 images and 0 masks are given"),
        ([np.zeros(3, np.uint8)], [np.zeros(3, np.uint8)], {}, r"image '0' is \(3,\); expected \(height, width, 3\)"),
        ([np.zeros((0, 2, 3), np.uint8)], [np.zeros((0, 2), np.uint8)], {}, r"image '0' is \(0, 2, 3\); "),
        ([np.zeros((2, 2, 3))], [np.zeros((2, 2), np.uint8)], {}, r"image '0' is float64 \(2, 2, 3\)"),
        (None, None, {"names": ["a", "a"]}, "names has 2 entries; expected 1 different names"),
        (None, None, {"palette": [[1, 2]]}, r"palette is \[\[1, 2\]\]; expected 2 colours .*"),
        (
            None,
            None,
            {"classes": [str(i) for i in range(256)]},
            "256 in all; expected a list of 1 to 255 different names",
        ),
    ],
)
def test_arrays(images, masks, options, message):
    images = [np.zeros((2, 2, 3), np.uint8)] if images is None else images
    masks = [np.zeros((2, 2), np.uint8)] if masks is None else masks
    with pytest.raises(ValueError, match=message):
        ArrayData(images, masks, **{"classes": ["a", "b"], **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_map": np.arange(4)}, r"label_map is int64 \(4,\); expected uint8 with one entry per label"),
        ({"partitions": {"train": [2]}}, "an index in partition 'train' is 2; expected a whole number from 0 to 1"),
        ({"partitions": {"train": [-1]}}, "an index in partition 'train' is -1"),
    ],
)
def test_paired_files(root, options, message):
    files = [[root / kind / f"{name}.png" for name in "ab"] for kind in ("images", "masks")]
    with pytest.raises(ValueError, match=message):
        PairedFiles(*files, ["x", "y"], **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("SyntheticStreets", {"cache": 5}, "cache is 5; expected the path of a file or folder"),
        ("SyntheticStreets", {"oracle": 5}, "oracle is 5; expected an object with a method label or answer"),
        *[(name, {"root": None}, "root is None; expected the path") for name in ("CamVid", "Cityscapes", "GTA5")],
        ("ImageFolder", {"root": 5}, "root is 5; expected the path"),
        ("ImageFolder", {"root": ".", "coloured_masks": "no"}, "coloured_masks is 'no'; expected one of True, False"),
        ("ImageFolder", {"root": ".", "ignore_colours": 5}, "ignore_colours is 5; expected a list of colours"),
        ("ImageFolder", {"root": ".", "ignore_colours": [[1, 2, 3]]}, "ignore_colours is .* unless coloured_masks"),
        ("ImageFolder", {"root": ".", "coloured_masks": True, "ignore_labels": [7]}, "ignore_labels is .*: name the c"),
    ],
)
def test_places_and_objects_through_the_ids(name, options, message):
    with pytest.raises(ValueError, match=message):
        gym.make(f"al_seg_env/{name}-v0", **options)


@pytest.mark.parametrize("size", [[32], 32, [0, 32], [32.0, 32], [32, 32, 32], "32", [True, 40], [10**9, 10**9]])
def test_a_size_that_is_none_through_the_ids(root, size):
    for name, arguments in (("SyntheticStreets", {}), ("ImageFolder", {"root": str(root), "classes": ["x", "y"]})):
        with pytest.raises(ValueError, match="image_size is .*"):
            gym.make(f"al_seg_env/{name}-v0", image_size=size, **arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "images is 0; expected a whole number from 1 to 1000000"),
        ({"data_seed": -1}, "data_seed is -1; expected a whole number of at least 0"),
        ({"data_seed": None}, "data_seed is None; expected a whole number"),
        ({"style": "oil"}, "style is 'oil'; expected one of"),
    ],
)
def test_numbers_through_the_id_are_called_what_the_id_calls_them(options, message):
    with pytest.raises(ValueError, match=message):
        gym.make("al_seg_env/SyntheticStreets-v0", **options)
