"""Images and masks of every kind that files come in, against what numpy makes of the same pixels."""

import io
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from raw_png import GREY, RGB, chunk, png

from al_seg_env.datasets import PairedFiles

ORIENTATION = 0x0112
TURNED = {  # how an image is shown, by its EXIF orientation
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}
SIDES = st.integers(1, 9)


def pixels(channels=None, dtype=np.uint8, elements=None):
    shape = st.tuples(SIDES, SIDES) if channels is None else st.tuples(SIDES, SIDES, st.just(channels))
    return arrays.arrays(dtype, shape, elements=elements)


def grey(values):
    return np.stack([values] * 3, axis=-1)


def paletted(indices, **info):
    image = Image.fromarray(indices)
    image.putpalette([(7 * i + c) % 256 for i in range(256) for c in range(3)])
    return image, (7 * indices[..., None].astype(int) + range(3)) % 256, info


# Each makes an image out of pixels: the image, the RGB expected of it, and how to save it.
KINDS = {
    "grey": (pixels(), lambda a: (Image.fromarray(a), grey(a), {})),
    "RGB": (pixels(3), lambda a: (Image.fromarray(a), a, {})),
    "RGBA": (pixels(4), lambda a: (Image.fromarray(a), a[..., :3], {})),
    "LA": (pixels(2), lambda a: (la(a), grey(a[..., 0]), {})),
    "1 bit": (pixels(dtype=bool), lambda a: (Image.fromarray(a), grey(a * 255), {})),
    "16 bits": (pixels(dtype=np.uint16), lambda a: (Image.fromarray(a), grey((a.astype(int) + 128) // 257), {})),
    "palette": (pixels(), paletted),
    "palette, a colour transparent": (pixels(), lambda a: paletted(a, transparency=int(a[0, 0]))),
    "palette with alpha": (pixels(), lambda a: paletted(a, transparency=bytes(range(256)))),
    "grey, a value transparent": (pixels(), lambda a: (Image.fromarray(a), grey(a), {"transparency": int(a[0, 0])})),
    "RGB, a colour transparent": (pixels(3), lambda a: (Image.fromarray(a), a, {"transparency": (1, 2, 3)})),
}


def la(array):
    return Image.merge("LA", [Image.fromarray(np.ascontiguousarray(array[..., c])) for c in range(2)])


def opened(folder, image, mask, classes=3, image_size=None, label_map=None):
    """Return the data made of the encoded bytes, or the pictures, of one image and one mask."""
    for name, content in (("image.png", image), ("mask.png", mask)):
        content = content if isinstance(content, bytes) else encoded(Image.fromarray(content), "PNG")
        Path(folder, name).write_bytes(content)  # the format is told by the content
    names = [f"class {i}" for i in range(classes)]
    return PairedFiles(
        [f"{folder}/image.png"], [f"{folder}/mask.png"], names, image_size=image_size, label_map=label_map
    )


def encoded(image, file_format, orientation=1, **options):
    if orientation != 1:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@settings(max_examples=12, deadline=None)
@given(data=st.data(), orientation=st.integers(1, 8))
def test_an_image_of_any_kind_is_its_rgb_turned(kind, file_format, data, orientation):
    strategy, make = KINDS[kind]
    image, expected, options = make(data.draw(strategy))
    if file_format == "TIFF":
        options = {}
    expected = TURNED[orientation](expected)
    with tempfile.TemporaryDirectory() as folder:
        content = encoded(image, file_format, orientation, **options)
        images = opened(folder, content, np.zeros(expected.shape[:2], np.uint8))
        assert images.image_size == expected.shape[:2]
        found = images.image(0)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=20, deadline=None)
@given(inks=pixels(4), orientation=st.integers(1, 8))
def test_cmyk(inks, orientation):
    light = 255 - inks.astype(float)
    expected = TURNED[orientation](light[..., :3] * light[..., 3:] / 255)
    content = encoded(Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes()), "TIFF", orientation)
    with tempfile.TemporaryDirectory() as folder:
        found = opened(folder, content, np.zeros(expected.shape[:2], np.uint8)).image(0)
    assert np.abs(found - expected).max() <= 1


def packed(labels, bits):
    image = Image.fromarray(labels)
    image.putpalette(list(range(256)) * 3)
    return encoded(image, "PNG", bits=bits)


MASKS = {
    "grey": lambda a, o: encoded(Image.fromarray(a), "PNG", o),
    "palette": lambda a, o: encoded(paletted(a)[0], "PNG", o, transparency=0),
    "grey TIFF": lambda a, o: encoded(Image.fromarray(a), "TIFF", o, compression="tiff_lzw"),
    "16 bits": lambda a, o: encoded(Image.fromarray(a.astype(np.uint16)), "PNG", o),
    "32 bits": lambda a, o: encoded(Image.fromarray(a.astype(np.int32)), "TIFF", o),
}


@pytest.mark.parametrize("kind", MASKS)
@settings(max_examples=25, deadline=None)
@given(
    labels=pixels(),
    classes=st.one_of(st.integers(1, 255), st.just(255)),
    ignored=st.sets(st.integers(0, 255)),
    orientation=st.integers(1, 8),
)
def test_a_mask_has_classes_and_255_or_is_refused(kind, labels, classes, ignored, orientation):
    table = np.arange(256, dtype=np.uint8)
    table[sorted(ignored)] = 255
    expected = TURNED[orientation](table[labels])
    with tempfile.TemporaryDirectory() as folder:
        content = MASKS[kind](labels, orientation)
        data = opened(folder, np.zeros((*expected.shape, 3), np.uint8), content, classes, label_map=table)
        if unknown := sorted(set(np.unique(expected).tolist()) - {*range(classes), 255}):
            with pytest.raises(ValueError, match=rf"mask\.png holds the labels {unknown[0]}\b.* name the missing"):
                data.mask(0)
        else:
            found = data.mask(0)
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, expected)


def test_every_label_of_255_classes_is_kept(tmp_path):
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    data = opened(tmp_path, np.zeros((16, 16, 3), np.uint8), labels, classes=255)
    np.testing.assert_array_equal(data.mask(0), labels)


@pytest.mark.parametrize("bits", [1, 2, 4])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_palette_masks_of_few_bits_hold_their_numbers(bits, data):
    labels = data.draw(pixels(elements=st.integers(0, 2**bits - 1)))
    with tempfile.TemporaryDirectory() as folder:
        masks = opened(folder, np.zeros((*labels.shape, 3), np.uint8), packed(labels, bits), classes=16)
        np.testing.assert_array_equal(masks.mask(0), labels)


@settings(max_examples=40, deadline=None)
@given(labels=pixels(elements=st.sampled_from([0, 1, 2, 255])), size=st.tuples(SIDES, SIDES), colour=pixels(3))
def test_resizing_keeps_a_uniform_image_and_invents_no_label(labels, size, colour):
    uniform = np.broadcast_to(colour[0, 0], (*labels.shape, 3)).copy()
    with tempfile.TemporaryDirectory() as folder:
        data = opened(folder, uniform, labels, image_size=size)
        image, mask = data.image(0), data.mask(0)
    assert (image.shape, mask.shape) == ((*size, 3), size)
    assert (image == colour[0, 0]).all()
    assert set(np.unique(mask)) <= set(np.unique(labels))
    if size == labels.shape:
        np.testing.assert_array_equal(mask, labels)


def test_grey_values_that_a_decoder_scales_are_no_labels(tmp_path):
    """Pillow reads the 1 of a 4-bit grey PNG as 17, and inverts a TIFF whose zero is white."""
    image = np.zeros((2, 4, 3), np.uint8)
    inverted = encoded(Image.fromarray(image[..., 0]), "TIFF", tiffinfo={262: 0})
    for mask in (png(4, 4, GREY, [b"\x01\x02"] * 2), png(4, 2, GREY, [b"\x1b"] * 2), inverted):
        with pytest.raises(
            ValueError, match=r"mask .*mask\.png stores grey .*changes labels.*Store each mask as a PNG"
        ):
            opened(tmp_path, image, mask)
    values = opened(tmp_path, png(4, 4, GREY, [b"\x01\xf2"] * 2), image[..., 0]).image(0)
    assert values[0, :, 0].tolist() == [0, 17, 255, 34]  # right for an image


def test_lossy_masks_are_refused_whatever_they_are_called(tmp_path):
    image, mask = np.zeros((8, 8, 3), np.uint8), Image.new("L", (8, 8))
    for content in (encoded(mask, "JPEG"), encoded(mask, "TIFF", compression="jpeg")):
        with pytest.raises(ValueError, match=r"mask\.png is a (JPEG|TIFF compressed as JPEG), which changes labels"):
            opened(tmp_path, image, content)


BLACK_AND_DARK = np.array([[0, 0, 0], [1, 0, 0]], np.uint8)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            lambda _: png(1, 16, RGB, [bytes([0, 1, 0, 0, 0, 0])] * 2),
            "does not store its colours with 8 bits per channel",
        ),
        (lambda colours: encoded(colours, "WEBP"), "is a lossy WebP, which changes labels; store it with lossless"),
        (lambda colours: encoded(colours, "WEBP", orientation=3), "is a lossy WebP"),
        (lambda colours: encoded(colours, "WEBP", save_all=True, append_images=[colours]), "is a lossy WebP"),
        (lambda colours: encoded(colours, "JPEG"), "is a JPEG, which changes labels"),
        (lambda colours: encoded(colours, "WEBP", lossless=True), None),
        (lambda colours: encoded(colours, "WEBP", orientation=3, lossless=True), None),
        (lambda colours: encoded(colours, "BMP"), None),
        (lambda colours: encoded(colours, "TIFF"), None),
        (lambda colours: encoded(colours, "PNG"), None),
    ],
)
def test_colours_that_decoding_would_change_are_no_labels(tmp_path, mask, message):
    """Pillow halves 16 bits, and a lossy file moves colours: both would turn class 1, (1, 0, 0), into class 0."""
    colours = np.zeros((2, 1, 3), np.uint8) + BLACK_AND_DARK[1]
    (tmp_path / "image.png").write_bytes(encoded(Image.fromarray(colours), "PNG"))
    (tmp_path / "mask.png").write_bytes(mask(Image.fromarray(colours)))
    paths = [tmp_path / "image.png"], [tmp_path / "mask.png"]
    if message is None:
        assert (PairedFiles(*paths, ["a", "b"], mask_colours=BLACK_AND_DARK).mask(0) == 1).all()
    else:
        with pytest.raises(ValueError, match=rf"mask\.png {message}"):
            PairedFiles(*paths, ["a", "b"], mask_colours=BLACK_AND_DARK)


def test_exif_behind_the_pixels_is_not_overlooked(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    late = png(2, 8, GREY, [b"\0\1"], last=chunk(b"eXIf", exif.tobytes()[6:]))
    early = png(2, 8, GREY, [b"\0\1"], first=chunk(b"eXIf", exif.tobytes()[6:]))
    mask = np.zeros((1, 2), np.uint8)
    assert opened(tmp_path, early, mask).image(0)[0, :, 0].tolist() == [1, 0]
    with pytest.raises(OSError, match=r"image\.png .*comes after the pixels; store EXIF before them, or remove it"):
        opened(tmp_path, late, mask).image(0)


def test_kinds_without_a_meaning_in_eight_bits_are_refused_at_once(tmp_path):
    lab = bytearray(encoded(Image.new("YCbCr", (2, 2)), "TIFF"))
    photometric = lab.index(struct.pack("<HHI", 262, 3, 1)) + 8
    lab[photometric : photometric + 2] = struct.pack("<H", 8)
    for content, mode in ((bytes(lab), "LAB"), (encoded(Image.new("F", (2, 2)), "TIFF"), "F")):
        with pytest.raises(ValueError, match=rf"image\.png has the pixel mode {mode}; store it with 8 or 16 bits"):
            opened(tmp_path, content, np.zeros((2, 2), np.uint8))


def test_other_formats_are_not_opened(tmp_path):
    """For an EPS, Pillow would run Ghostscript on the program that it is."""
    for file_format in ("EPS", "PPM"):
        with pytest.raises(ValueError, match=r"image\.png can't be read .*cannot identify"):
            opened(tmp_path, encoded(Image.new("RGB", (2, 2)), file_format), np.zeros((2, 2), np.uint8))


def test_small_files_of_huge_images_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    def bomb(colour_type):
        header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, colour_type, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")

    data = opened(tmp_path, np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8), image_size=(2, 2))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    remedy = r"10000 x 10000 are more than 89478485 pixels; if that is right, raise PIL\.Image\.MAX_IMAGE_PIXELS"
    with pytest.warns(Image.DecompressionBombWarning):  # noqa: PT031
        with pytest.raises(ValueError, match=remedy) as caught:
            opened(tmp_path, bomb(2), bomb(0))
        assert "2 problems" in str(caught.value)
        with pytest.raises(OSError, match=remedy):
            data.image(0)
    with pytest.raises(ValueError, match=r"image_size is \(100000, 100000\); 100000 x 100000 are more than"):
        opened(tmp_path, np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8), image_size=(100_000, 100_000))


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("tif", {}), ("png", {}), ("webp", {"lossless": True}), ("bmp", {"format": "GIF"})],
)
def test_of_several_frames_none_is_used(tmp_path, suffix, options):
    """A stack of pages or an animation is refused, as an image and as a mask; one frame in such a format is fine."""
    frames = [Image.fromarray(np.full((4, 6), value, np.uint8)) for value in (0, 1, 0)]
    for name, count in (("one", 1), ("several", 3)):
        path = tmp_path / f"{name}.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:count], **options)
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "fine.png")
    fine, one, several = tmp_path / "fine.png", tmp_path / f"one.{suffix}", tmp_path / f"several.{suffix}"
    PairedFiles([one], [fine], ["road", "sky"]).image(0)
    for image, mask, kind in ((several, fine, "image"), (fine, several, "mask")):
        with pytest.raises(ValueError, match=rf"{kind} .*several.{suffix} has 3 frames or pages, .* a file of its own"):
            PairedFiles([image], [mask], ["road", "sky"])


def test_the_previews_of_a_camera_are_no_frames(tmp_path):
    photograph, preview = (Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (200, 10))
    photograph.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[preview])
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "mask.png")
    data = PairedFiles([tmp_path / "a.jpg"], [tmp_path / "mask.png"], ["road"])
    np.testing.assert_allclose(data.image(0), 200, atol=3)
