"""Who answers a request for labels, and what is made of a wrong answer."""

import numpy as np
import pytest
from fakes import numbered_data

from al_seg_env import CallbackOracle, GroundTruthOracle
from al_seg_env.frames import Frames
from al_seg_env.oracle import ask
from al_seg_env.regions import RegionGrid

GRID = RegionGrid((32, 40), (9, 11))


def test_ground_truth_reveals_the_masks_of_the_regions():
    data = numbered_data(3, void=0.2)
    regions = [0, 15, 16 + 7]
    masks = ask(GroundTruthOracle(Frames(data)), GRID, regions, 3)
    for region, mask in zip(regions, masks, strict=True):
        image, top, bottom, left, right = GRID.box(region)
        np.testing.assert_array_equal(mask, data.mask(image)[top:bottom, left:right])


def test_callback_is_shown_name_box_and_pixels():
    data, asked = numbered_data(3), []

    def answer(name, box, pixels):
        asked.append((name, box))
        np.testing.assert_array_equal(pixels, data.image(box.image)[box.top : box.bottom, box.left : box.right])
        return np.full(box.size, 255, np.uint8)

    masks = ask(CallbackOracle(data, answer), GRID, [17, 3], 3)
    assert asked == [("image 1", GRID.box(17)), ("image 0", GRID.box(3))]
    assert [mask.shape for mask in masks] == [GRID.box(17).size, GRID.box(3).size]


def test_a_callback_is_asked_once_and_valid_answers_outlive_a_failure():
    asked, mood = [], {"tired": True}

    def answer(name, box, pixels):
        asked.append(box)
        if mood["tired"] and len(asked) == 2:
            return np.full(box.size, 7, np.uint8)
        return np.zeros(box.size, np.uint8)

    oracle = CallbackOracle(numbered_data(3), answer)
    with pytest.raises(ValueError, match=r"the answer for Box\(image=0.*labels \[7\] are no classes"):
        ask(oracle, GRID, [17, 3], 3)
    mood["tired"] = False
    ask(oracle, GRID, [17, 3], 3)
    ask(oracle, GRID, [3, 17], 3)
    assert asked == [GRID.box(17), GRID.box(3), GRID.box(3)]
    assert set(oracle.answers) == {GRID.box(17), GRID.box(3)}


class Answers:
    def __init__(self, masks):
        self.masks = masks

    def label(self, boxes):
        return self.masks


GOOD = np.zeros((9, 11), np.uint8)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([GOOD], "asked for 2 regions and returned 1 masks"),
        ([GOOD] * 3, "asked for 2 regions and returned 3 masks"),
        ([GOOD, GOOD.T], r"mask of region 4 \(image 0\): expected uint8 \(9, 11\), found uint8 \(11, 9\)"),
        ([GOOD, GOOD.astype(np.int64)], r"region 4 \(image 0\): expected uint8 \(9, 11\), found int64"),
        ([GOOD, GOOD + 3], r"region 4 \(image 0\): labels \[3\] are no classes; expected 0 to 2, or 255"),
    ],
)
def test_a_wrong_answer_is_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        ask(Answers(masks), GRID, [0, 4], 3)
