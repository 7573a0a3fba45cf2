"""Pictures of what was requested."""

import gymnasium as gym
import numpy as np
import pytest
from fakes import closed_form_env, numbered_data

from al_seg_env.datasets.frames import Frames
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL, ArrayData, palette_of
from al_seg_env.labelling.label_state import LabelState
from al_seg_env.regions import RegionGrid
from al_seg_env.rendering import (
    GAP,
    REQUEST_COLOUR,
    TITLE_HEIGHT,
    UNLABELLED_COLOUR,
    class_key,
    colourise,
    overlay_requests,
    render_step,
)

DATA = numbered_data()
SCALE = 8  # 320 pixels a panel, 40 an image


def panel(frame, index):
    """Return one of the four panels, ``(32 * SCALE, 40 * SCALE, 3)``."""
    left = (index % 2) * (40 * SCALE + GAP)
    top = (index // 2) * (32 * SCALE + TITLE_HEIGHT) + TITLE_HEIGHT
    return frame[top : top + 32 * SCALE, left : left + 40 * SCALE]


def is_yellow(pixels):
    return (pixels == REQUEST_COLOUR).all(axis=-1)


def test_colourise():
    palette = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    painted = colourise(np.array([[0, 1, 255]], np.uint8), palette)
    assert painted.tolist() == [[[1, 2, 3], [4, 5, 6], list(UNLABELLED_COLOUR)]]


def step_of(data, requests=(), slots=3):
    """Return a rendered step of image 0, of which region 0 is labelled as class 1 and 2 is predicted everywhere."""
    labels = LabelState(RegionGrid((32, 40), (8, 10)), [0, 1], len(data.classes))
    labels = labels.with_labels([0], [np.ones((8, 10), np.uint8)], 0)
    predicted = np.full((32, 40), 2, np.uint8)
    boxes = [labels.grid.box(region) for region in requests]
    return render_step(
        data, Frames(data), labels, image=0, predicted=predicted, requests=boxes, slots=slots, caption="caption"
    )


def test_panels_show_image_truth_labels_and_prediction():
    frame = step_of(DATA)
    known = np.full((32, 40), 255, np.uint8)
    known[:8, :10] = 1
    palette = palette_of(DATA)

    def shrunk(index):
        return panel(frame, index)[::SCALE, ::SCALE].astype(int)

    np.testing.assert_array_equal(shrunk(0)[8:], DATA.image(0)[8:])
    blend = 0.4 * DATA.image(0)[:8, :10] + 0.6 * palette[1]
    assert np.abs(shrunk(0)[:8, :10] - blend).max() <= 1
    np.testing.assert_array_equal(shrunk(1), palette[DATA.mask(0)])
    np.testing.assert_array_equal(shrunk(2), colourise(known, palette))
    assert (shrunk(3) == palette[2]).all()
    assert not is_yellow(frame).any()


def test_all_requests_of_a_step_are_shown_wherever_they_are():
    grid = RegionGrid((32, 40), (8, 10))
    requests = [0, 3, grid.regions_per_image + 5]
    empty, frame = step_of(DATA), step_of(DATA, requests)
    assert frame.shape == empty.shape
    below = 2 * (32 * SCALE + TITLE_HEIGHT) + TITLE_HEIGHT
    side = (2 * 40 * SCALE + GAP) // 8 - GAP  # eight thumbnails in a line
    height = round(side * 8 / 10)
    palette = palette_of(DATA)
    for slot, region in enumerate(requests):
        shown = frame[below : below + height, slot * (side + GAP) : slot * (side + GAP) + side]
        box = grid.box(region)
        pixels = box.crop(np.moveaxis(DATA.image(box.image), -1, 0)).transpose(1, 2, 0)
        expected = 0.4 * pixels + 0.6 * palette[1] if region == 0 else pixels
        rows, columns = ((np.arange(n) + 0.5) * size / n for n, size in ((8, height), (10, side)))
        middle = shown[rows.astype(int)][:, columns.astype(int)].astype(int)
        assert np.abs(middle - expected).max() <= 1
    assert not frame[below : below + height, 3 * (side + GAP) :].any()


def test_where_nothing_is_known_the_panel_says_none():
    unknown = ArrayData([DATA.image(0)] * 2, [np.full((32, 40), IGNORE_LABEL, np.uint8)] * 2, DATA.classes)
    truth = panel(step_of(unknown), 1)
    assert (truth != UNLABELLED_COLOUR).any()
    assert not (
        panel(step_of(DATA), 1) != np.repeat(np.repeat(palette_of(DATA)[DATA.mask(0)], SCALE, 0), SCALE, 1)
    ).any()


def test_the_key_shows_the_colour_of_each_class_within_its_width():
    data = ArrayData([DATA.image(0)], [DATA.mask(0)], [f"a long name of class {n}" for n in range(len(DATA.classes))])
    key = np.asarray(class_key(data, 200))
    assert key.shape == (TITLE_HEIGHT * len(data.classes), 200, 3)  # one in a line
    for line, colour in enumerate(palette_of(data)):
        assert (key[line * TITLE_HEIGHT + 9, 8] == colour).all()
    assert class_key(DATA, 4000).height == TITLE_HEIGHT
    longer = np.asarray(class_key(data, 200, unlabelled=True))
    assert (longer[: len(key)] == key).all()
    assert (longer[len(key) + 9, 8] == UNLABELLED_COLOUR).all()


@pytest.mark.parametrize("image_size", [(32, 40), (33, 47), (9, 500)])
def test_frames_have_even_sides(image_size):
    env = closed_form_env(numbered_data(image_size=image_size), region_size=(8, 10), render_mode="rgb_array")
    env.reset(seed=0)
    frames = [env.render()]
    env.step(np.zeros(3, np.int64))
    frames.append(env.render())
    assert {frame.shape for frame in frames} == {frames[0].shape}
    assert frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0
    assert all(frame.dtype == np.uint8 for frame in frames)


def test_what_was_asked_for_is_outlined_in_every_panel():
    env = closed_form_env(render_mode="rgb_array", regions_per_step=6, pool_size=1, pool_images=1)
    env.reset(seed=0)
    assert not is_yellow(env.render()).any()
    _, _, _, _, info = env.step(np.zeros(6, np.int64))
    boxes = [env.grid.box(region) for region in info["chosen"]]
    assert len({box.image for box in boxes}) == 1
    expected = np.zeros((32 * SCALE, 40 * SCALE), bool)
    for box in boxes:
        top, bottom, left, right = (SCALE * side for side in box[1:])
        expected[top:bottom, left:right] = True
        expected[top + 2 : bottom - 2, left + 2 : right - 2] = False
    for index in range(4):
        np.testing.assert_array_equal(is_yellow(panel(env.render(), index)), expected)


def test_labels_of_the_image_asked_about_last_are_shown():
    env = closed_form_env(render_mode="rgb_array")
    env.reset(seed=0)
    _, _, _, _, info = env.step(np.zeros(3, np.int64))
    image = env.grid.box(info["chosen"][-1]).image
    frame = env.render()
    palette = palette_of(DATA)
    middle = panel(frame, 1)[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE]
    np.testing.assert_array_equal(middle, palette[DATA.mask(image)])
    known = panel(frame, 2)[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE]
    np.testing.assert_array_equal(known, colourise(env.labels.mask(image), palette))


def test_rendering_is_repeatable_and_changes_nothing():
    env = closed_form_env(render_mode="rgb_array")
    silent = closed_form_env()
    for subject in (env, silent):
        subject.reset(seed=0)
    np.testing.assert_array_equal(env.render(), env.render())
    rewards = [subject.step(np.zeros(3, np.int64))[1] for subject in (env, silent)]
    assert rewards[0] == rewards[1]


def test_rendering_without_a_mode_warns():
    env = closed_form_env()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode='rgb_array'"):
        assert env.render() is None


def test_rendering_needs_a_reset_first():
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\)"):
        closed_form_env(render_mode="rgb_array").render()


def test_an_unknown_render_mode_is_refused():
    with pytest.raises(ValueError, match="render_mode 'human' is unknown; use 'rgb_array' or None"):
        closed_form_env(render_mode="human")


def test_the_picture_of_all_requests_shows_the_images_asked_for_most_with_their_labels():
    env = closed_form_env(regions_per_step=6, pool_size=4, budget=18)
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.zeros(6, np.int64))
    picture = overlay_requests(env.data, env.frames, env.grid, env.labels, count=2, columns=2)
    scale = 8  # images of 40 pixels are drawn 320 wide
    key = class_key(env.data, 2 * (40 * scale + 4))
    assert picture.shape == (32 * scale + 18 + key.height, key.width, 3)
    images, regions = np.unique(env.grid.image_of(env.labels.labelled), return_counts=True)
    most = images[np.argsort(-regions, kind="stable")][0]
    palette = palette_of(env.data)
    for cell in range(env.grid.regions_per_image):
        region = most * env.grid.regions_per_image + cell
        box = env.grid.box(region)
        row, column = box.top + 3, box.left + 3  # within the outline
        shown = picture[18 + row * scale + 4, column * scale + 4]
        image = env.data.image(most)[row, column]
        label = env.data.mask(most)[row, column]
        mixed = (image * 0.4 + palette[label] * 0.6).astype(np.uint8)
        np.testing.assert_array_equal(shown, mixed if region in env.labels.labelled else image)
