"""Answers at the originals' resolution in a folder that several processes may use."""

import json
import os

import numpy as np
import pytest
from fakes import numbered_data
from PIL import Image
from processes import in_child

from al_seg_env import Answer, ArrayData, FolderOracle, LabelsPending
from al_seg_env.datasets import ImageFolder
from al_seg_env.datasets.segmentation_data import palette_of
from al_seg_env.labelling.label_folder import LabelFolder
from al_seg_env.labelling.request import requests_of
from al_seg_env.regions import Box
from al_seg_env.storage import write_png

REGION = Box(1, 8, 16, 10, 20)


def ones(value=1):
    return np.full(REGION.size, value, np.uint8)


def test_what_an_answer_cost_is_stored_with_it(tmp_path):
    folder = LabelFolder(tmp_path, numbered_data(3))
    folder.write(REGION, Answer(ones(), seconds=12.5, clicks=4, by="someone"))
    read = LabelFolder(tmp_path, numbered_data(3)).read(REGION)
    assert (read.seconds, read.clicks, read.by) == (12.5, 4, "someone")
    np.testing.assert_array_equal(read.mask, ones())
    assert folder.regions() == [REGION]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"seconds": -1, "clicks": true, "by": 3}', '{"seconds": NaN}']
)
def test_what_other_tools_wrote_into_a_mask_tells_nothing(tmp_path, text):
    folder = LabelFolder(tmp_path, numbered_data(3))
    write_png(folder.path(REGION), ones(), {"al-seg-env": text})
    read = folder.read(REGION)
    assert (read.seconds, read.clicks, read.by) == (None, None, None)


def test_masks_of_equal_size_that_changed_places_are_named(tmp_path):
    data = numbered_data(3)
    folder, other = LabelFolder(tmp_path, data), Box(2, 8, 16, 10, 20)
    folder.write(REGION, Answer(ones(1), seconds=3))
    folder.write(other, Answer(ones(2)))
    folder.path(REGION).rename(tmp_path / "aside")
    folder.path(other).rename(folder.path(REGION))
    (tmp_path / "aside").rename(folder.path(other))
    for region, origin in ((REGION, other), (other, REGION)):
        with pytest.raises(ValueError, match=f"{folder.path(region)} was painted as '{folder.path(origin).name}'"):
            LabelFolder(tmp_path, data).read(region)


def test_a_mask_whose_palette_was_reordered_is_refused(tmp_path):
    """Programs that save indexed pictures may number the colours by how often they occur."""
    data = numbered_data(3)
    folder, colours = LabelFolder(tmp_path, data), palette_of(data)
    mask = np.repeat(np.array([0, 1, 2, 255], np.uint8), 20).reshape(REGION.size)
    write_png(folder.path(REGION), mask, palette=colours)
    np.testing.assert_array_equal(folder.read(REGION).mask, mask)

    def save(numbers, shown):
        write_png(folder.path(REGION), numbers.astype(np.uint8), palette=np.array(shown, np.uint8))

    one, another, third = data.classes
    save(np.where(mask < 2, 1 - mask, mask), colours[[1, 0, 2]])
    with pytest.raises(ValueError, match=f"{folder.path(REGION)}: the number 0 stands for '{one}', but .* '{another}'"):
        folder.read(REGION)
    save(np.where(mask == 2, 3, mask), [*colours[:2], (1, 2, 3), colours[2]])
    with pytest.raises(ValueError, match=f"number 3 stands for no class, but .* '{third}' .* without re-indexing"):
        folder.read(REGION)
    save(mask, [(1, 2, 3)] * 256)  # somebody's own colours
    np.testing.assert_array_equal(folder.read(REGION).mask, mask)


def test_an_answer_that_is_replaced_is_kept(tmp_path):
    folder = LabelFolder(tmp_path, numbered_data(3))
    for value in (0, 1, 2):
        folder.write(REGION, Answer(ones(value), by=f"person {value}"))
    assert (folder.read(REGION).mask == 2).all()
    kept = sorted((tmp_path / "earlier").iterdir())
    assert [np.unique(np.asarray(Image.open(path))).tolist() for path in kept] == [[0], [1]]
    assert folder.regions() == [REGION]


def test_regions_are_found_again_by_their_files(tmp_path):
    data = ArrayData(
        [np.zeros((32, 40, 3), np.uint8)] * 2, [np.zeros((32, 40), np.uint8)] * 2, ["a"], ["x/y.z", "_1_2_"]
    )
    folder = LabelFolder(tmp_path, data)
    regions = [Box(1, 0, 8, 0, 10), Box(0, 0, 8, 0, 10), Box(1, 8, 16, 0, 10)]
    for region in regions:
        folder.write(region, Answer(np.zeros((8, 10), np.uint8)))
    Image.new("L", (3, 3)).save(tmp_path / "holiday.png")
    assert folder.regions() == regions
    Image.new("L", (10, 8)).save(tmp_path / "_1_2__30_0_8x10.png")
    with pytest.raises(ValueError, match=r"_1_2__30_0_8x10.png lies outside of its image, which is 32 x 40"):
        folder.regions()


def photograph(path, seed, size=(60, 80)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)).save(path)


def opened(root):
    return ImageFolder(root, classes=["a", "b"], missing_masks="unlabelled", image_size=(30, 40))


def test_an_answer_for_an_image_that_was_replaced_is_refused(tmp_path):
    photograph(tmp_path / "images" / "p.png", 0)
    data = opened(tmp_path)
    folder = LabelFolder(tmp_path / "labels", data)
    region = Box(0, 0, 20, 0, 20)
    folder.write(region, Answer(np.zeros((20, 20), np.uint8)))
    photograph(tmp_path / "images" / "p.png", 1)
    for attempt in (folder, LabelFolder(tmp_path / "labels", opened(tmp_path))):
        with pytest.raises(ValueError, match="holds labels of another image of the name 'p'.*Restore that image"):
            attempt.write(region, Answer(np.ones((20, 20), np.uint8)))
        with pytest.raises(ValueError, match="holds labels of another image of the name 'p'"):
            attempt.read(region)
    photograph(tmp_path / "images" / "p.png", 2, size=(90, 80))
    with pytest.raises(OSError, match="is now 90 x 80 pixels, but 60 x 80 when the data were opened"):
        folder.read(region)


def test_masks_at_the_network_s_size_of_version_1_are_not_taken_for_the_originals(tmp_path):
    photograph(tmp_path / "images" / "p.png", 0)
    folder = LabelFolder(tmp_path / "labels", opened(tmp_path))
    folder.write(Box(0, 0, 20, 0, 20), Answer(np.zeros((20, 20), np.uint8)))
    content = json.loads(folder.manifest.read_text())
    folder.manifest.write_text(json.dumps({**content, "version": 1}))
    with pytest.raises(ValueError, match="it is 'al-seg-env labels', version 1"):
        LabelFolder(tmp_path / "labels", opened(tmp_path))
    same_size = LabelFolder(tmp_path / "other", numbered_data(3))
    same_size.write(REGION, Answer(ones()))
    content = json.loads(same_size.manifest.read_text())
    same_size.manifest.write_text(json.dumps({**content, "version": 1}))
    assert (LabelFolder(tmp_path / "other", numbered_data(3)).read(REGION).mask == 1).all()


def test_a_mask_of_a_huge_size_is_not_decoded(tmp_path):
    folder = LabelFolder(tmp_path, numbered_data(3))
    Image.new("L", (9000, 9000)).save(folder.path(REGION))
    with pytest.raises(ValueError, match=r"expected uint8 \(8, 10\), found uint8 \(9000, 9000\)"):
        folder.read(REGION)


def test_two_processes_fill_one_folder(tmp_path):
    data = numbered_data(40, image_size=(16, 20))

    def work(first):
        def fill():
            folder = LabelFolder(tmp_path, data)
            for image in range(first, 40, 2):
                folder.write(Box(image, 0, 8, 0, 10), Answer(np.full((8, 10), image % 3, np.uint8)))

        return fill

    children = []
    for first in (0, 1):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                work(first)()
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    folder = LabelFolder(tmp_path, data)
    assert len(json.loads(folder.manifest.read_text())["images"]) == 40
    assert all((folder.read(region).mask == region.image % 3).all() for region in folder.regions())
    assert len(folder.regions()) == 40


@pytest.mark.parametrize("delay", [0.02, 0.05, 0.1, 0.2])
def test_a_kill_loses_no_answer_that_was_given(tmp_path, delay):
    data = numbered_data(200, image_size=(16, 20))
    log = tmp_path / "given"

    def fill():
        folder = LabelFolder(tmp_path / "labels", data)
        with log.open("a") as given:
            for number in range(2000):
                image = number % 200
                folder.write(Box(image, 0, 8, 0, 10), Answer(np.full((8, 10), image % 3, np.uint8)))
                given.write(f"{image}\n")
                given.flush()

    in_child(fill, kill_after=delay)
    given = {int(line) for line in log.read_text().split()} if log.exists() else set()
    folder = LabelFolder(tmp_path / "labels", data)
    found = folder.regions()
    assert given <= {region.image for region in found}
    assert all((folder.read(region).mask == region.image % 3).all() for region in found)


def test_the_folder_oracle_exports_what_people_need(tmp_path):
    photograph(tmp_path / "images" / "p.png", 0)
    data = opened(tmp_path)
    oracle = FolderOracle(data, tmp_path / "exchange")
    requests = requests_of(data, [Box(0, 10, 20, 10, 20)], lambda image: np.ones((30, 40), np.uint8))
    with pytest.raises(LabelsPending, match="1 region waits for its labels: put a mask for each picture in") as pending:
        oracle.answer(requests)
    (path,) = pending.value.missing
    assert path.name == "p_20_20_20x20.png"
    folder = tmp_path / "exchange"
    assert Image.open(folder / "requests" / path.name).size == (20, 20)
    assert Image.open(folder / "context" / "p_20_20_20x20.jpg").size == (60, 60)
    predicted = Image.open(folder / "prelabels" / path.name)
    assert (np.asarray(predicted) == 1).all()
    assert predicted.getpalette()[3:6] == data.palette[1].tolist()
    assert [entry["name"] for entry in json.loads((folder / "classes.json").read_text())["classes"]] == ["a", "b"]
    predicted.save(path)  # accepted as it is
    assert (oracle.answer(requests)[0].mask == 1).all()
    assert (oracle.label([Box(0, 10, 20, 10, 20)])[0] == np.ones((10, 10))).all()
