"""The drawn streets: deterministic, imbalanced, and never the same in two styles."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from al_seg_env.datasets.segmentation_data import IGNORE_LABEL, SegmentationData, labels_out_of_range, palette_of
from al_seg_env.datasets.synthetic.streets import SyntheticStreets

STYLES = ("street", "render")
SMALL = (32, 40)


def pixel_counts(data: SyntheticStreets, indexes: range) -> np.ndarray:
    """Return the pixels of each label in each image, ``(n, 256)``."""
    return np.stack([np.bincount(data.mask(i).reshape(-1), minlength=256) for i in indexes])


@pytest.fixture(scope="module", params=STYLES)
def hundred(request: pytest.FixtureRequest) -> SyntheticStreets:
    return SyntheticStreets(count=100, style=request.param)


def test_it_is_a_source_of_images_and_masks():
    data = SyntheticStreets(count=3)
    assert isinstance(data, SegmentationData)
    assert len(data) == len(data.names) == 3
    assert data.names[2] == "street-0002"
    assert len(data.classes) == len(set(data.classes)) == 10
    assert data.palette.dtype == np.uint8
    assert len(np.unique(palette_of(data), axis=0)) == len(data.classes)


@given(
    height=st.integers(32, 110),
    width=st.integers(32, 130),
    seed=st.integers(0, 2**40),
    index=st.integers(0, 10_000),
    style=st.sampled_from(STYLES),
)
@settings(max_examples=40, deadline=None)
def test_any_size_seed_and_index_gives_a_scene(height, width, seed, index, style):
    data = SyntheticStreets(count=index + 1, image_size=(height, width), seed=seed, style=style)
    image, mask = data.image(index), data.mask(index)
    assert image.shape == (height, width, 3)
    assert mask.shape == data.image_size == (height, width)
    assert image.dtype == mask.dtype == np.uint8
    assert not labels_out_of_range(mask, len(data.classes))
    assert np.mean(mask == IGNORE_LABEL) < 0.1
    assert image.std() > 5


@pytest.mark.parametrize("size", [(60, 83), (180, 240), SMALL])
def test_odd_large_and_tiny_sizes_show_the_same_kinds_of_things(size):
    counts = pixel_counts(SyntheticStreets(count=12, image_size=size), range(12)).sum(0)
    assert (counts[[0, 1, 2, 5, 6, 8]] > 0).all()


def test_another_size_shows_the_same_streets():
    small, large = (SyntheticStreets(count=4, image_size=size) for size in ((48, 64), (96, 128)))
    for index in range(4):
        assert np.mean(small.mask(index) == large.mask(index)[::2, ::2]) > 0.9


@pytest.mark.parametrize("style", STYLES)
def test_an_image_depends_on_neither_count_nor_order(style):
    few, many = (SyntheticStreets(count=n, image_size=SMALL, seed=5, style=style) for n in (4, 9))
    for index in (3, 0, 2, 1):
        np.testing.assert_array_equal(few.mask(index), many.mask(index))
    for index in range(4):
        np.testing.assert_array_equal(few.image(index), many.image(index))


def test_what_was_dropped_from_the_cache_is_drawn_again_the_same(monkeypatch):
    monkeypatch.setattr("al_seg_env.datasets.synthetic.streets._MAX_CACHED_BYTES", 1)
    data = SyntheticStreets(count=3, image_size=SMALL, seed=10**9 + 2)
    first = data.image(0)
    data.image(1)
    np.testing.assert_array_equal(data.image(0), first)


def test_a_scene_is_drawn_once_for_all_data_sets_that_hold_it(monkeypatch):
    from al_seg_env.datasets.synthetic import streets

    drawn, draw = [], streets.draw_scene
    monkeypatch.setattr(streets, "draw_scene", lambda *args: drawn.append(args) or draw(*args))
    data, larger = (SyntheticStreets(count=count, image_size=SMALL, seed=10**9) for count in (2, 3))
    assert not drawn
    for each in (data, larger, pickle.loads(pickle.dumps(data))):
        each.mask(1), each.image(1)
    assert len(drawn) == 1
    for other in ({"seed": 10**9 + 1}, {"style": "render"}, {"image_size": (40, 32)}):
        SyntheticStreets(**{"count": 2, "image_size": SMALL, "seed": 10**9, **other}).image(1)
    assert len(drawn) == 4


def test_seeds_and_indexes_give_different_scenes():
    data, other = (SyntheticStreets(count=2, image_size=SMALL, seed=seed) for seed in (0, 1))
    assert (data.mask(0) != data.mask(1)).any()
    assert (data.mask(0) != other.mask(0)).any()


def test_styles_share_classes_but_neither_scenes_nor_looks():
    street, render = (SyntheticStreets(count=30, image_size=SMALL, style=style) for style in STYLES)
    assert street.classes == render.classes
    assert render.names[0] == "render-0000"
    assert all((street.mask(i) != render.mask(i)).mean() > 0.02 for i in range(30))

    def colourfulness(data):
        return np.mean([np.ptp(data.image(i).astype(int), axis=-1).mean() for i in range(30)])

    assert colourfulness(render) > 1.5 * colourfulness(street)


def test_classes_differ_by_two_orders_of_magnitude(hundred):
    counts = pixel_counts(hundred, range(100))[:, :10]
    shares = counts.sum(0) / counts.sum()
    assert (shares > 0).all()
    assert shares.max() >= 100 * shares.min()
    assert hundred.classes[int(shares.argmax())] == "road"
    assert hundred.classes[int(shares.argmin())] == "bicycle"


def test_rare_classes_are_in_few_regions(hundred):
    """A cell of 24 x 32 pixels seldom holds a rare class; where it does, it holds far more than most."""
    masks = np.stack([hundred.mask(i) for i in range(100)])
    cells = masks.reshape(100, 4, 24, 4, 32).swapaxes(2, 3).reshape(1600, -1)
    for name in ("sign", "person", "bicycle"):
        share = np.mean(cells == hundred.classes.index(name), axis=1)
        assert 0.005 < np.mean(share > 0) < 0.2
        assert share[share > 0].mean() > 5 * share.mean()


def test_classes_are_not_told_apart_by_colour_alone(hundred):
    """The nearest mean colour finds more than chance, but leaves most to texture, shape and place."""
    images = np.stack([hundred.image(i)[::4, ::4] for i in range(100)]).reshape(-1, 3).astype(np.float32)
    labels = np.stack([hundred.mask(i)[::4, ::4] for i in range(100)]).reshape(-1)
    means = np.stack([images[labels == label].mean(0) for label in range(10)])
    guess = ((images[:, None] - means) ** 2).sum(-1).argmin(1)
    recall = np.mean([np.mean(guess[labels == label] == label) for label in range(10)])
    assert 0.12 < recall < 0.6


def test_pickling_keeps_the_data_and_leaves_the_drawings():
    data = SyntheticStreets(count=50, image_size=SMALL, seed=3, style="render")
    image = data.image(7)
    stored = pickle.dumps(data)
    assert len(stored) < 5000
    again = pickle.loads(stored)
    np.testing.assert_array_equal(again.image(7), image)
    assert (again.names, again.classes, again.image_size) == (data.names, data.classes, data.image_size)
    assert repr(again) == repr(data)


def test_changing_what_was_returned_changes_nothing():
    data = SyntheticStreets(count=1, image_size=SMALL)
    image, mask = data.image(0), data.mask(0)
    expected = image.copy(), mask.copy()
    image[:], mask[:] = 7, 7
    np.testing.assert_array_equal(data.image(0), expected[0])
    np.testing.assert_array_equal(data.mask(0), expected[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count is 0; expected a whole number from 1 to 1000000"),
        ({"count": 10**12}, "count is 10*; expected a whole number"),
        ({"image_size": (31, 64)}, r"image_size is \(31, 64\).*at least 32"),
        ({"image_size": (64,)}, r"image_size is \(64,\); expected \(height, width\) in pixels"),
        ({"image_size": (64.5, 80)}, r"image_size is \(64.5, 80\); expected \(height, width\)"),
        ({"image_size": 64}, "image_size is 64; "),
        ({"seed": -1}, "seed is -1; expected a whole number of at least 0"),
        ({"seed": 1.0}, "seed is 1.0; expected a whole number"),
        ({"style": "oil"}, "style is 'oil'; expected one of 'street', 'render'"),
    ],
)
def test_a_bad_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SyntheticStreets(**arguments)


@pytest.mark.parametrize("index", [-1, 2])
def test_an_image_that_is_not_there_is_refused(index):
    data = SyntheticStreets(count=2, image_size=SMALL)
    with pytest.raises(IndexError, match="0 to 1"):
        data.image(index)
