"""Images are opened by what they hold, not by what they are called, and written whole or not at all."""

import os

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from al_seg_env import ImageFolder
from al_seg_env.storage import open_image, write_png

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
0 0 moveto 8 8 lineto stroke
showpage
%%EOF
"""


@pytest.fixture
def programs(monkeypatch):
    """Note every start of Ghostscript in place of making it."""
    started = []

    def ghostscript(*args, **kwargs):
        started.append(args)
        return Image.new("RGB", (8, 8)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    return started


@pytest.mark.parametrize("pixels", [(4, 6), (4, 6, 3)])
def test_what_is_written_is_read(tmp_path, pixels):
    array = np.random.default_rng(0).integers(0, 256, pixels, np.uint8)
    write_png(tmp_path / "deep" / "a.png", array)
    with open_image(tmp_path / "deep" / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), array)
    assert os.listdir(tmp_path / "deep") == ["a.png"]


def test_a_failed_write_leaves_the_old_picture(tmp_path):
    path = tmp_path / "a.png"
    write_png(path, np.zeros((2, 2), np.uint8))
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_png(path, np.zeros((2, 2, 7), np.uint8))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_an_eps_file_with_another_name_starts_no_program(tmp_path, programs):
    path = tmp_path / "a.png"
    path.write_bytes(EPS)
    with Image.open(path) as image:  # what Pillow does by itself
        image.load()
    assert len(programs) == 1
    with pytest.raises(OSError, match="cannot identify image file"), open_image(path) as image:
        image.load()
    assert len(programs) == 1


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_no_data_set_starts_a_program(tmp_path, programs, folder):
    for kind in ("images", "masks"):
        write_png(tmp_path / kind / "a.png", np.zeros((8, 8), np.uint8))
    (tmp_path / folder / "a.png").write_bytes(EPS)
    with pytest.raises(ValueError, match=r"a.png can't be read \(UnidentifiedImageError"):
        ImageFolder(tmp_path, classes=["a"])
    assert not programs


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("pipe.png", "nowhere.png"):
        with pytest.raises(OSError, match=name), open_image(tmp_path / name):
            pass


def test_more_pixels_than_pillows_limit_are_refused(tmp_path, monkeypatch):
    write_png(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ValueError, match="4 x 4 are more than 15 pixels"),
        open_image(tmp_path / "a.png"),
    ):
        pass


def test_labels_in_colours_keep_their_numbers(tmp_path):
    labels = np.array([[0, 1, 255, 200]], np.uint8)
    write_png(tmp_path / "a.png", labels, {"key": "text"}, palette=np.array([[9, 8, 7], [1, 2, 3]], np.uint8))
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["key"] == "text"
        np.testing.assert_array_equal(np.asarray(image), labels)
        assert np.asarray(image.convert("RGB"))[0, :2].tolist() == [[9, 8, 7], [1, 2, 3]]
