"""Who answers a request for labels, and what is made of a wrong answer."""

import warnings

import numpy as np
import pytest
from fakes import CLASSES, closed_form_env, numbered_data, same
from PIL import Image
from raw_png import GREY, png

from al_seg_env import ArrayData, CallbackOracle, FolderOracle, GroundTruthOracle, LabelsPending
from al_seg_env.datasets.frames import Frames
from al_seg_env.labelling.label_folder import file_name
from al_seg_env.labelling.oracles import ask
from al_seg_env.labelling.request import requests_of
from al_seg_env.regions import RegionGrid
from al_seg_env.storage import write_png

GRID = RegionGrid((32, 40), (9, 11))


def asked_for(data, *regions):
    return requests_of(data, [GRID.box(region) for region in regions])


def test_ground_truth_reveals_the_masks_of_the_regions():
    data = numbered_data(3, void=0.2)
    regions = [0, 15, 16 + 7]
    answers = ask(GroundTruthOracle(Frames(data)), asked_for(data, *regions))
    for region, mask in zip(regions, [answer.mask for answer in answers], strict=True):
        image, top, bottom, left, right = GRID.box(region)
        np.testing.assert_array_equal(mask, data.mask(image)[top:bottom, left:right])


def test_callback_is_shown_name_box_and_pixels():
    data, asked = numbered_data(3), []

    def answer(name, box, pixels):
        asked.append((name, box))
        np.testing.assert_array_equal(pixels, data.image(box.image)[box.top : box.bottom, box.left : box.right])
        return np.full(box.size, 255, np.uint8)

    masks = [given.mask for given in ask(CallbackOracle(data, answer), asked_for(data, 17, 3))]
    assert asked == [("image 1", GRID.box(17)), ("image 0", GRID.box(3))]
    assert [mask.shape for mask in masks] == [GRID.box(17).size, GRID.box(3).size]


def test_a_callback_is_asked_once_and_valid_answers_outlive_a_failure():
    asked, mood = [], {"tired": True}

    def answer(name, box, pixels):
        asked.append(box)
        if mood["tired"] and len(asked) == 2:
            return np.full(box.size, 7, np.uint8)
        return np.zeros(box.size, np.uint8)

    data = numbered_data(3)
    oracle = CallbackOracle(data, answer)
    with pytest.raises(ValueError, match=r"the answer for Box\(image=0.*labels \[7\] are not classes"):
        ask(oracle, asked_for(data, 17, 3))
    mood["tired"] = False
    ask(oracle, asked_for(data, 17, 3))
    ask(oracle, asked_for(data, 3, 17))
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
        ([GOOD], "the oracle returned 1 masks; expected 2"),
        ([GOOD] * 3, "the oracle returned 3 masks; expected 2"),
        (
            [GOOD, GOOD.T],
            r"mask of Box\(image=0, top=9.*\) of 'image 0': expected uint8 \(9, 11\), found uint8 \(11, 9\)",
        ),
        ([GOOD, GOOD.astype(np.int64)], r"of 'image 0': expected uint8 \(9, 11\), found int64"),
        ([GOOD, GOOD + 3], r"of 'image 0': labels \[3\] are not classes; expected 0 to 2, or 255"),
    ],
)
def test_a_wrong_answer_is_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        ask(Answers(masks), asked_for(numbered_data(3), 0, 4))


def test_all_wrong_answers_are_told_at_once(tmp_path):
    data = numbered_data(3)
    with pytest.raises(ValueError, match=r"2 of 3 answers can't be used: .*labels \[9\].*; .*found uint8 \(11, 9\)"):
        ask(Answers([GOOD + 9, GOOD, GOOD.T]), asked_for(data, 0, 4, 5))
    oracle = FolderOracle(data, tmp_path)
    boxes = [GRID.box(region) for region in (0, 1, 2)]
    (tmp_path / "answers").mkdir()
    for box, label in zip(boxes, (7, 1, 8), strict=True):
        write_png(oracle.labels.path(box), np.full(box.size, label, np.uint8))
    with pytest.raises(ValueError, match=r"2 of 3 answers can't be used: mask .*labels \[7\].*; mask .*labels \[8\]"):
        oracle.label(boxes)


def test_stored_answers_are_not_requested_again_by_another_process(tmp_path):
    data, asked = numbered_data(3), []

    def answer(name, box, pixels):
        asked.append(box)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return np.full(box.size, len(asked) % 3, np.uint8)

    with pytest.raises(KeyboardInterrupt):
        CallbackOracle(data, answer, tmp_path).label([GRID.box(region) for region in (17, 3, 4)])
    masks = CallbackOracle(data, answer, tmp_path).label([GRID.box(region) for region in (17, 3, 4)])
    assert [mask.flat[0] for mask in masks] == [1, 2, 1]  # the third call to the function was in vain
    assert len(asked) == 4


def test_a_folder_waits_for_its_answers_and_the_step_is_made_again(tmp_path):
    data = numbered_data()
    env, expected = closed_form_env(data=data, oracle=FolderOracle(data, tmp_path)), closed_form_env(data=data)
    for one in (env, expected):
        one.reset(seed=0)
    action = np.array([1, 2, 3])
    with pytest.raises(LabelsPending, match="3 regions wait for their labels: put a mask for each") as pending:
        env.step(action)
    requests = sorted((tmp_path / "requests").iterdir())
    assert [path.name for path in requests] == sorted(path.name for path in pending.value.missing)
    boxes = {file_name(data, box): box for box in map(env.grid.box, range(5 * env.grid.regions_per_image))}
    for number, path in enumerate(requests):
        box = boxes[path.name]
        np.testing.assert_array_equal(
            np.array(Image.open(path)), box.crop(data.image(box.image).transpose(2, 0, 1)).transpose(1, 2, 0)
        )
        if number == 2:
            with pytest.raises(LabelsPending) as pending:
                env.step(action)
            assert [missing.name for missing in pending.value.missing] == [path.name]
        Image.fromarray(box.crop(data.mask(box.image))).save(tmp_path / "answers" / path.name)
    assert same(env.step(action), expected.step(action))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"PNG"), "can't be read .*; write it again"),
        (lambda path: Image.new("RGB", (11, 9)).save(path), "is a PNG of mode RGB; expected a PNG with one channel"),
        (lambda path: Image.new("L", (9, 11)).save(path), r"expected uint8 \(9, 11\), found uint8 \(11, 9\)"),
        (
            lambda path: path.write_bytes(png(11, 4, GREY, [b"\x01" * 6] * 9)),
            "stores grey values with fewer than 8 bits",
        ),
        (lambda path: Image.new("L", (11, 9), 7).save(path), r"labels \[7\] are not classes"),
        (lambda path: path.mkdir(), "can't be read"),
    ],
)
def test_a_malformed_answer_is_named(tmp_path, write, message):
    data = numbered_data(3)
    oracle = FolderOracle(data, tmp_path)
    path = tmp_path / "answers" / file_name(data, GRID.box(0))
    path.parent.mkdir()
    write(path)
    with pytest.raises(ValueError, match=rf"mask .*answers.*{message}"):
        oracle.label([GRID.box(0)])


def test_what_is_wrong_is_told_while_other_answers_are_missing(tmp_path):
    data = numbered_data(3)
    oracle = FolderOracle(data, tmp_path)
    boxes = [GRID.box(region) for region in (0, 1, 2)]
    with pytest.raises(LabelsPending) as pending:
        oracle.label(boxes)
    assert pending.value.problems == []
    first, second, third = pending.value.missing
    Image.new("RGB", (11, 9)).save(first)
    Image.new("L", (11, 9)).save(second.with_suffix(".jpg"))
    (second.parent / ".hidden").touch()
    with pytest.raises(LabelsPending, match="2 regions wait for their labels: put .*; and correct what is") as pending:
        oracle.label(boxes)
    assert pending.value.missing == [second, third]
    assert pending.value.problems == [
        f"mask {first} is a PNG of mode RGB; expected a PNG with one channel of class numbers (mode L or P)",
        f"{first.parent} holds files of no request ({second.stem}.jpg); expected PNGs of the same names as in "
        f"{tmp_path / 'requests'}",
    ]
    second.with_suffix(".jpg").unlink()
    for path in (first, second):
        Image.new("L", (11, 9)).save(path)
    with pytest.raises(LabelsPending, match=f"1 region waits .* beginning with {third.name};") as pending:
        oracle.label(boxes)
    assert not pending.value.problems


def test_file_names_stay_inside_their_folder(tmp_path):
    names = ["../../evil", "/etc/passwd", "a/b", "..", "plain", "a_0_0_9x11", "\\back"]
    data = ArrayData([np.zeros((32, 40, 3), np.uint8)] * 7, [np.zeros((32, 40), np.uint8)] * 7, CLASSES, names)
    found = [file_name(data, GRID.box(16 * image)) for image in range(7)]
    assert len(set(found)) == 7
    assert all((tmp_path / name).resolve().parent == tmp_path.resolve() for name in found)


def scene(size=(32, 40), classes=CLASSES, name="a", seed=0):
    """Return one image of a scene, at a size, with all of its pixels of class 0."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    return ArrayData([pixels], [np.zeros(size, np.uint8)], classes, [name])


def callback(data, folder):
    return CallbackOracle(data, lambda name, box, pixels: np.ones(box.size, np.uint8), folder)


@pytest.mark.parametrize("kind", [callback, FolderOracle])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (scene(size=(64, 80)), r"image_size is \[32, 40\] there, \[64, 80\] here"),
        (scene(classes=("road", "sky", "car")), r"the classes are \['road', 'car', 'sky'\] there, \['road', 'sky'"),
        (scene(name="b"), r"the images \['a'\] are not in these data"),
    ],
)
def test_labels_are_not_reused_for_other_sizes_classes_or_images(tmp_path, kind, other, message):
    fill(kind(scene(), tmp_path), tmp_path)
    with pytest.raises(ValueError, match=f"holds labels of other data: .*{message}"):
        kind(other, tmp_path)
    assert kind(scene(), tmp_path).label([GRID.box(0)])[0].shape == (9, 11)


def fill(oracle, folder):
    """Have one region labelled, whoever does it."""
    try:
        oracle.label([GRID.box(0)])
    except LabelsPending as pending:
        Image.fromarray(np.ones((9, 11), np.uint8)).save(pending.missing[0])


@pytest.mark.parametrize("kind", [callback, FolderOracle])
def test_labels_are_not_reused_for_other_pixels_of_the_same_name(tmp_path, kind):
    fill(kind(scene(), tmp_path), tmp_path)
    with pytest.raises(ValueError, match="holds labels of another image of the name 'a'"):
        kind(scene(seed=1), tmp_path).label([GRID.box(0)])


@pytest.mark.parametrize("kind", [callback, FolderOracle])
@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "al-seg-env labels"}', "null", '{"images": 3}'])
def test_a_damaged_manifest_is_named(tmp_path, kind, content):
    fill(kind(scene(), tmp_path), tmp_path)
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json can't be read .*restore it from a copy"):
        kind(scene(), tmp_path)


def test_images_may_join_and_masks_without_a_manifest_are_taken_with_a_warning(tmp_path):
    fill(callback(scene(), tmp_path), tmp_path)
    more = ArrayData([scene().image(0)] * 2, [np.zeros((32, 40), np.uint8)] * 2, CLASSES, ["b", "a"])
    oracle = CallbackOracle(more, lambda *_: pytest.fail("the label is there"), tmp_path)
    assert (oracle.label([GRID.box(16)])[0] == 1).all()  # image 1 is "a" now
    (tmp_path / "manifest.json").unlink()
    with pytest.warns(RuntimeWarning, match="holds masks but no manifest"):
        oracle = callback(scene(), tmp_path)
    oracle.label([GRID.box(0)])
    assert (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("kind", [callback, FolderOracle])
@pytest.mark.parametrize("name", ["\u8857" * 30, "x" * 300, "\u8857" * 400])
def test_long_names_in_any_script_fit_into_a_file_name(tmp_path, kind, name):
    fill(kind(scene(name=name), tmp_path), tmp_path)
    assert (kind(scene(name=name), tmp_path).label([GRID.box(0)])[0] == 1).all()
    others = {file_name(scene(name=name + end), GRID.box(0)) for end in ("", "a", "b")}
    assert len(others) == 3


def test_a_mask_without_any_label_is_warned_of_once_by_the_names_of_its_images():
    data = numbered_data()
    for mask in data._masks[2:5]:
        mask[:] = 255
    env = closed_form_env(data=data)
    env.reset(seed=0)
    with pytest.warns(RuntimeWarning, match=r"the masks of 'image \d'.* hold no label at all"):
        env.step(np.zeros(3, np.int64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.step(np.zeros(3, np.int64))
