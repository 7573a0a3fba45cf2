"""The pixels of chosen regions, against loops over boxes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import slow_boxes, slow_counts, slow_pool

from al_seg_env.observation.region_pixels import RegionPixels
from al_seg_env.regions import RegionGrid, cut_boxes

GRIDS = [((12, 15), (4, 5)), ((11, 14), (4, 5)), ((7, 9), (7, 9)), ((3, 10), (1, 4)), ((1, 1), (1, 1))]
CPU = torch.device("cpu")


def chosen(image_size, region_size, count, seed):
    """Some regions of three images in random order, their pixels, and where they lie."""
    grid, rng = RegionGrid(image_size, region_size), np.random.default_rng(seed)
    ids = rng.permutation(3 * grid.regions_per_image)[:count]
    images, cells = np.divmod(ids, grid.regions_per_image)
    boxes = slow_boxes(image_size, region_size)
    return RegionPixels(grid, images, cells, CPU), [
        (image, *boxes[cell]) for image, cell in zip(images, cells, strict=True)
    ]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("image_size", "region_size"), GRIDS)
@pytest.mark.parametrize("count", [1, 5, 1000])
def test_sums_counts_and_pools_by_region(image_size, region_size, count, layout):
    pixels, boxes = chosen(image_size, region_size, count, seed=count)
    generator = torch.Generator().manual_seed(0)
    padded = torch.randn(3, 4, image_size[0] + 2, image_size[1] + 3, generator=generator)
    maps = padded.contiguous(memory_format=layout)[..., : image_size[0], : image_size[1]]
    labels = torch.from_numpy(np.random.default_rng(1).choice([0, 1, 2, 255], size=(3, 1, *image_size)))
    values = pixels.gather(maps)
    assert values.shape == (4, sum((b - t) * (r - w) for _, t, b, w, r in boxes))
    crops = [maps[i, 2, t:b, w:r].numpy() for i, t, b, w, r in boxes]
    np.testing.assert_allclose(pixels.sum(values[2])[:, 0], [crop.sum() for crop in crops], rtol=1e-4, atol=1e-4)
    for mode in ("min", "avg", "max"):
        expected = [slow_pool(crop, 3, mode) for crop in crops]
        np.testing.assert_allclose(pixels.pool(values[2], 3, mode), expected, atol=1e-6)
    found = pixels.class_counts(pixels.gather(labels)[0], 3)
    np.testing.assert_array_equal(found, [slow_counts(labels[i, 0, t:b, w:r], 3) for i, t, b, w, r in boxes])


@pytest.mark.parametrize("stride", [2, 3, 7])
@pytest.mark.parametrize(("image_size", "region_size"), GRIDS)
def test_every_nth_pixel_of_each_region(image_size, region_size, stride):
    grid = RegionGrid(image_size, region_size)
    cells = np.random.default_rng(0).permutation(grid.regions_per_image)
    pixels = RegionPixels(grid, np.zeros_like(cells), cells, CPU, stride)
    maps = torch.rand(1, 2, *image_size)
    crops = [grid.box(cell).crop(maps[0])[:, ::stride, ::stride] for cell in cells.tolist()]
    np.testing.assert_allclose(pixels.sum(pixels.gather(maps)[1])[:, 0], [crop[1].sum() for crop in crops], rtol=1e-5)
    cut = [cut_boxes(maps, [boxes]) for boxes in pixels.boxes()]
    np.testing.assert_array_equal(torch.cat(cut, dim=1), pixels.gather(maps))
    assert [part.shape[1] for part in cut] == [len(b.images) * b.shape[0] * b.shape[1] for b in pixels.boxes()]


@settings(max_examples=50, deadline=None)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    region=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 1000),
)
def test_regions_lose_and_repeat_no_pixel(height, width, region, seed):
    region = min(region[0], height), min(region[1], width)
    pixels, boxes = chosen((height, width), region, 10_000, seed)
    numbers = torch.arange(3 * height * width).view(3, 1, height, width)
    assert sorted(pixels.gather(numbers)[0].tolist()) == list(range(3 * height * width))
    sizes = pixels.sum(torch.ones(3 * height * width))[:, 0]
    assert sizes.tolist() == [(b - t) * (r - w) for _, t, b, w, r in boxes]
