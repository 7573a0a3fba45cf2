"""Boxes and labels at the network's size and at the original's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from al_seg_env import ArrayData
from al_seg_env.datasets.originals import Original, fitted, original_of, whole
from al_seg_env.regions import Box, RegionGrid

sides = st.integers(1, 60)
sizes = st.tuples(sides, sides)


def original(size, inside):
    return Original(size, inside, lambda: np.zeros((*size, 3), np.uint8))


def test_a_case_by_hand():
    one = original((4, 6), (2, 3))  # half as large, in a network's image of 3 x 4
    assert one.region(Box(5, 0, 1, 1, 3)) == Box(5, 0, 2, 2, 6)
    assert one.region(Box(5, 1, 3, 2, 4)) == Box(5, 2, 4, 4, 6)  # the rest of the box is padding
    assert not one.holds(Box(5, 2, 3, 0, 4))
    with pytest.raises(ValueError, match=r"is padding; expected a box that meets .* which fills \(2, 3\) pixels"):
        one.region(Box(5, 2, 3, 0, 4))
    labels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    # Centres lie at 1 and 3 in rows, at 1, 3, 5 in columns.
    shown = one.to_network(labels, Box(5, 0, 3, 0, 4))
    assert shown.tolist() == [[7, 9, 11, 255], [19, 21, 23, 255], [255] * 4]
    back = one.to_original(np.array([[1, 2, 3], [4, 5, 6]], np.uint8), Box(5, 0, 2, 0, 3))
    assert back.tolist() == [[1, 1, 2, 2, 3, 3]] * 2 + [[4, 4, 5, 5, 6, 6]] * 2


@given(sizes, sizes, sizes)
def test_regions_of_a_grid_tile_the_original_and_answers_meet_the_whole_mask(size, canvas, region_size):
    inside = fitted(size, canvas)
    assert inside[0] <= min(size[0], canvas[0])
    assert inside[1] <= min(size[1], canvas[1])
    one = original(size, inside)
    grid = RegionGrid(canvas, (min(region_size[0], canvas[0]), min(region_size[1], canvas[1])))
    labels = np.random.default_rng(0).integers(0, 200, size).astype(np.uint8)
    everything = one.to_network(labels, whole(inside))
    times = np.zeros(size, int)
    for box in map(grid.box, range(grid.regions_per_image)):
        if not one.holds(box):
            continue
        region = one.region(box)
        region.crop(times)[...] += 1
        shown = one.to_network(region.crop(labels), box)
        expected = np.full(canvas, 255, np.uint8)
        expected[: inside[0], : inside[1]] = everything
        np.testing.assert_array_equal(shown, box.crop(expected))
        # What a network says of the box comes back unchanged.
        np.testing.assert_array_equal(one.to_network(one.to_original(shown, box), box), shown)
    assert (times == 1).all()


@given(sizes, sizes)
def test_labels_are_shrunk_as_pillow_does_it(size, canvas):
    labels = np.random.default_rng(1).integers(0, 200, size).astype(np.uint8)
    shown = original(size, canvas).to_network(labels, whole(canvas))
    resized = np.asarray(Image.fromarray(labels).resize(canvas[::-1], Image.Resampling.NEAREST))
    # Pillow adds up fractions; where a centre falls on the edge of two pixels it may take the other one.
    on_an_edge = [
        np.array([(2 * i + 1) * n % (2 * m) == 0 for i in range(m)]) for n, m in zip(size, canvas, strict=True)
    ]
    plain = ~(on_an_edge[0][:, None] | on_an_edge[1][None])
    np.testing.assert_array_equal(shown[plain], resized[plain])


@given(sizes, sizes)
def test_even_enlarged_boxes_have_pixels(size, canvas):
    one = original(size, canvas)
    for top in range(canvas[0]):
        box = Box(0, top, top + 1, 0, canvas[1])
        region = one.region(box)
        assert region.size[0] >= 1
        assert one.to_network(np.ones(region.size, np.uint8), box).shape == box.size
        assert one.to_original(np.ones(box.size, np.uint8), box).shape == region.size


def test_data_without_originals_are_their_own():
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    data = ArrayData([pixels], [np.zeros((6, 8), np.uint8)], ["a"])
    one = original_of(data, 0)
    assert (one.size, one.inside, one.path) == ((6, 8), (6, 8), None)
    np.testing.assert_array_equal(one.read(), pixels)
