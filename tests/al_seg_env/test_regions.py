"""The grid of regions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import slow_boxes

from al_seg_env.regions import RegionGrid


@st.composite
def random_grids(draw):
    height, width = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    return RegionGrid((height, width), (draw(st.integers(1, height)), draw(st.integers(1, width))))


@settings(max_examples=60, deadline=None)
@given(grid=random_grids(), images=st.lists(st.integers(0, 6), min_size=1, max_size=3, unique=True))
def test_every_pixel_is_in_exactly_one_region(grid, images):
    seen = np.zeros((7, *grid.image_size), dtype=int)
    for region in grid.regions_of(images):
        box = grid.box(region)
        box.crop(seen[box.image])[...] += 1
        assert box.size == box.crop(seen[box.image]).shape
    assert (seen[images] == 1).all()
    assert seen.sum() == len(images) * grid.image_size[0] * grid.image_size[1]


@settings(max_examples=60, deadline=None)
@given(grid=random_grids(), image=st.integers(0, 50))
def test_ids_are_counted_row_by_row_image_by_image(grid, image):
    ids = grid.regions_of([image])
    assert len(ids) == grid.regions_per_image == len(slow_boxes(grid.image_size, grid.region_size))
    assert ids.tolist() == list(range(image * len(ids), (image + 1) * len(ids)))
    assert (grid.image_of(ids) == image).all()
    for region, expected in zip(ids, slow_boxes(grid.image_size, grid.region_size), strict=True):
        assert grid.box(region) == (image, *expected)


def test_the_grid_of_the_paper():
    grid = RegionGrid((360, 480), (90, 80))  # "80 x 90" is width x height
    assert (grid.shape, grid.regions_per_image) == ((4, 6), 24)
    assert grid.box(24 + 7) == (1, 90, 180, 80, 160)


@pytest.mark.parametrize(
    ("region_size", "what"), [((0, 4), "height"), ((11, 4), "height"), ((4, 0), "width"), ((4, 13), "width")]
)
def test_a_region_that_is_empty_or_larger_than_the_image_is_refused(region_size, what):
    with pytest.raises(ValueError, match=rf"the {what} must be between 1 and the image's"):
        RegionGrid((10, 12), region_size)
